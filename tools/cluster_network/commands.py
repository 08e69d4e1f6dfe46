"""Attempts with Ray's own clients, at its job server, and with requests that end a node."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.ray_head import BIN
from tools.cluster_network.machines import Machine, wait_for
from tools.cluster_network.requests import base64_text
from tools.cluster_network.under_test import WRONG_TOKEN, ClusterUnderTest, holds_soon, is_refused
from tools.cluster_network.verdicts import Verdicts

TASK = """
import pathlib, ray
ray.init('ADDRESS', logging_level=40)
ray.get(ray.remote(lambda: pathlib.Path('/tmp/MARK').touch()).options(num_cpus=0.01).remote())
"""
PUT = """
from ray._raylet import GcsClient
GcsClient(address='ADDRESS').internal_kv_put(b'MARK', b'1', True, b'victims', 5)
"""
IS_PUT = """
from ray.experimental.internal_kv import _internal_kv_exists
print(_internal_kv_exists(b'MARK', namespace=b'victims'))
"""


@dataclass(frozen=True)
class Command:
    """A command of a client, and a look at its effect."""

    what: str
    machine: Machine
    words: list[str]
    has_effect: Callable[[], bool]


def try_commands(target: ClusterUnderTest, verdicts: Verdicts) -> None:
    """Run each command with RAY_AUTH_MODE unset, with a wrong token and, as the control, with the right one."""
    gcs = f"{target.head.address}:6379"
    client = f"ray://{target.head.address}:10001"

    def python(script: str, address: str, mark: str) -> list[str]:
        return [sys.executable, "-c", script.replace("ADDRESS", address).replace("MARK", mark)]

    def marked(mark: str) -> Callable[[], bool]:
        return lambda: any(each.run("test", "-e", f"/tmp/{mark}").returncode == 0 for each in target.workers)

    def put(mark: str) -> Callable[[], bool]:
        return lambda: target.on_head(IS_PUT.replace("MARK", mark)) == "True"

    # A driver needs a raylet on its own machine: a stranger's would be a program of another user of a worker.
    commands = [
        Command("ray.init and a task", target.workers[0], python(TASK, gcs, "driver"), marked("driver")),
        Command("Ray Client and a task", target.client, python(TASK, client, "client"), marked("client")),
        Command("GcsClient puts a key", target.client, python(PUT, gcs, "cython"), put("cython")),
    ]
    outsiders = [
        Command("ray.init and a task", target.client, python(TASK, gcs, "driver"), marked("driver")),
        Command(
            "ray drain-node",
            target.client,
            drain_command(target),
            lambda: target.workers[-1].address not in target.alive(),
        ),
    ]
    environments = {
        "no token": {"RAY_AUTH_MODE": ""},
        "a wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG_TOKEN},
    }
    runs = [(command, which_token) for command in commands + outsiders for which_token in environments]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda each: run_command(target, each[0], environments[each[1]]), runs))
    for (command, which_token), (code, output) in zip(runs, done, strict=True):
        refused = code != 0 and not command.has_effect()
        verdicts.record(refused, command.machine.name, "", f"{command.what}, {which_token}", output)
    for command in commands:
        code, output = run_command(target, command, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": target.token})
        works = code == 0 and holds_soon(command.has_effect)
        verdicts.record(works, command.machine.name, "", f"{command.what}, the token", "works" if works else output)


def drain_command(target: ClusterUnderTest) -> list[str]:
    """Return the words of `ray drain-node` for the last worker."""
    script = "print(*(n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == 'ADDRESS'))"
    node = target.on_head(script.replace("ADDRESS", target.workers[-1].address))
    return [
        str(BIN / "ray"), "drain-node", f"--address={target.head.address}:6379", f"--node-id={node}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=stranger", "--deadline-remaining-seconds=1",
    ]  # fmt: skip


def run_command(target: ClusterUnderTest, command: Command, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command with an empty home; return its exit code and the last line of its output."""
    changes = {"HOME": str(target.client.home / "empty"), **environment}
    words = command.words if changes.get("RAY_AUTH_MODE") else ["env", "-u", "RAY_AUTH_MODE", *command.words]
    done = command.machine.run(*words, changes=changes, timeout_s=180)
    return done.returncode, (done.stderr.strip().splitlines() or [done.stdout.strip()[-100:]])[-1][:100]


# --- the job server ----------------------------------------------------------------------------------------------


def try_job_server(target: ClusterUnderTest, verdicts: Verdicts) -> None:
    """Make requests at the dashboard: from outside, through the tunnel without the token, and with it."""
    outside = f"http://{target.head.address}:8265/api/jobs/"
    (answer,) = target.as_stranger("some", json.dumps([["GET", outside, ""]]))
    verdicts.record("refused" in answer, f"{target.head.address}:8265", "dashboard", "connects from outside", answer)
    server = "http://127.0.0.1:8265"
    mark = base64_text(json.dumps({"entrypoint": "touch /tmp/tunnel", "submission_id": "tunnel"}))
    requests = [
        ["POST", f"{server}/api/jobs/", mark],
        ["POST", f"{server}/api/jobs/kept/stop", ""],
        ["DELETE", f"{server}/api/jobs/kept", ""],
        ["PUT", f"{server}/api/packages/gcs/_ray_pkg_0123456789abcdef.zip", base64_text(b"PK")],
        ["PUT", f"{server}/api/serve/applications/", base64_text("{}")],
        ["DELETE", f"{server}/api/serve/applications/", ""],
        ["POST", f"{server}/report_events", base64_text("[]")],
        ["POST", f"{server}/api/task_events", base64_text("[]")],
        ["POST", f"{server}/api/task_events/query", base64_text("{}")],
        ["POST", f"{server}/api/authenticate", ""],
        ["GET", f"{server}/api/jobs/", ""],
        ["GET", f"{server}/api/jobs/kept/logs", ""],
        ["GET", f"{server}/api/v0/logs", ""],
        ["GET", f"{server}/api/v0/logs/file?node_ip={target.head.address}&filename=raylet.out", ""],
        ["GET", f"{server}/api/v0/actors", ""],
        ["GET", f"{server}/nodes?view=summary", ""],
    ]  # fmt: skip
    for which_token, token in (("no token", ""), ("a wrong token", WRONG_TOKEN)):
        answers = target.as_stranger("some", json.dumps(requests), token=token)
        for request, answer in zip(requests, answers, strict=True):
            attempt = f"{request[0]} {request[1].removeprefix(server)} through the tunnel, {which_token}"
            verdicts.record(is_refused(answer), "127.0.0.1:8265", "dashboard", attempt, answer)

    def has_run() -> bool:
        return target.head.run("test", "-e", "/tmp/tunnel").returncode == 0

    verdicts.record(not has_run(), "", "", "all of that", "a command ran" if has_run() else "no command ran")
    (answer,) = target.as_owner(requests[0])
    works = answer.startswith("200") and holds_soon(has_run)
    verdicts.record(works, "127.0.0.1:8265", "dashboard", "POST /api/jobs/, the token", f"works: {answer[:40]}")


# --- ending a node ----------------------------------------------------------------------------------------------


def end_nodes(target: ClusterUnderTest, verdicts: Verdicts) -> None:
    """End nodes with the token, and by the one call that Ray 2.60 does not guard. Last, because both work."""
    first, last = target.workers[0], target.workers[-1]
    drain = Command("", target.client, drain_command(target), lambda: last.address not in target.alive())
    code, output = run_command(target, drain, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": target.token})
    is_gone = code == 0 and holds_soon(drain.has_effect)
    result = "works: the node is gone" if is_gone else output
    verdicts.record(is_gone, target.client.name, "", "ray drain-node, the token", result)
    target.as_owner([f"{first.address}:6380", "ray.rpc.NodeManagerService", "ShutdownRaylet", {"graceful": False}])
    is_gone = holds_soon(lambda: first.address not in target.alive())
    verdicts.record(is_gone, f"{first.address}:6380", "raylet", "ShutdownRaylet, the token", "works: the node is gone")
    for machine, port, process in ((_new_node(target), 6380, "raylet"), (target.head, 6379, "gcs_server")):
        _crash(target, machine, port, process, verdicts)


def _new_node(target: ClusterUnderTest) -> Machine:
    """Let a spare machine join the cluster and return it."""
    machines = target.cluster.machines
    (name, *_) = [name for name, each in machines.items() if name.startswith("spare") and not each.processes]
    target.cluster.join(name)
    machine = machines[name]
    wait_for("a new node", lambda: machine.address in target.alive(), 60)
    return machine


def _crash(target: ClusterUnderTest, machine: Machine, port: int, process: str, verdicts: Verdicts) -> None:
    answer = target.as_stranger("crash", f"{machine.address}:{port}")
    is_gone = holds_soon(lambda: not any(f"/{process} " in command for command in machine.commands()))
    verdicts.record_open(
        is_gone, f"{machine.address}:{port}", process, "StartSync without node_id, no token",
        f"{answer}, {process} has died",
        "Ray 2.60 looks for node_id, and ends where there is none, before it looks at the token",
    )  # fmt: skip
