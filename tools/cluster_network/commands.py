"""Ray's own clients, its job server, and what ends a node."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.ray_head import BIN
from tools.cluster_network.machines import Machine, waited_for
from tools.cluster_network.requests import coded
from tools.cluster_network.site import WRONG, Site, holds_soon, is_refused
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
    what: str
    machine: Machine
    words: list[str]
    came_of_it: Callable[[], bool]


def try_commands(site: Site, verdicts: Verdicts) -> None:
    """Each with RAY_AUTH_MODE unset, with a wrong token and, as the control, with the right one."""
    gcs = f"{site.head.address}:6379"
    client = f"ray://{site.head.address}:10001"

    def python(script: str, address: str, mark: str) -> list[str]:
        return [sys.executable, "-c", script.replace("ADDRESS", address).replace("MARK", mark)]

    def marked(mark: str) -> Callable[[], bool]:
        return lambda: any(each.run("test", "-e", f"/tmp/{mark}").returncode == 0 for each in site.workers)

    def put(mark: str) -> Callable[[], bool]:
        return lambda: site.on_head(IS_PUT.replace("MARK", mark)) == "True"

    # A driver needs a raylet on its own machine: a stranger's would be a program of another user of a worker.
    commands = [
        Command("ray.init and a task", site.workers[0], python(TASK, gcs, "driver"), marked("driver")),
        Command("Ray Client and a task", site.client, python(TASK, client, "client"), marked("client")),
        Command("GcsClient puts a key", site.client, python(PUT, gcs, "cython"), put("cython")),
    ]
    outsiders = [
        Command("ray.init and a task", site.client, python(TASK, gcs, "driver"), marked("driver")),
        Command(
            "ray drain-node", site.client, drain_command(site), lambda: site.workers[-1].address not in site.alive()
        ),
    ]
    environments = {
        "no token": {"RAY_AUTH_MODE": ""},
        "a wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": WRONG},
    }
    jobs = [(command, shown) for command in commands + outsiders for shown in environments]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda job: run_command(site, job[0], environments[job[1]]), jobs))
    for (command, shown), (code, said) in zip(jobs, done, strict=True):
        verdicts.say(code != 0 and not command.came_of_it(), command.machine.name, "", f"{command.what}, {shown}", said)
    for command in commands:
        code, said = run_command(site, command, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": site.token})
        works = code == 0 and holds_soon(command.came_of_it)
        verdicts.say(works, command.machine.name, "", f"{command.what}, the token", "works" if works else said)


def drain_command(site: Site) -> list[str]:
    script = "print(*(n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == 'ADDRESS'))"
    node = site.on_head(script.replace("ADDRESS", site.workers[-1].address))
    return [
        str(BIN / "ray"), "drain-node", f"--address={site.head.address}:6379", f"--node-id={node}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=stranger", "--deadline-remaining-seconds=1",
    ]  # fmt: skip


def run_command(site: Site, command: Command, environment: dict[str, str]) -> tuple[int, str]:
    changes = {"HOME": str(site.client.home / "empty"), **environment}
    words = command.words if changes.get("RAY_AUTH_MODE") else ["env", "-u", "RAY_AUTH_MODE", *command.words]
    done = command.machine.run(*words, changes=changes, timeout_s=180)
    return done.returncode, (done.stderr.strip().splitlines() or [done.stdout.strip()[-100:]])[-1][:100]


# --- the job server ----------------------------------------------------------------------------------------------


def try_job_server(site: Site, verdicts: Verdicts) -> None:
    outside = f"http://{site.head.address}:8265/api/jobs/"
    (answer,) = site.strangers("some", json.dumps([["GET", outside, ""]]))
    verdicts.say("refused" in answer, f"{site.head.address}:8265", "dashboard", "connects from outside", answer)
    server = "http://127.0.0.1:8265"
    mark = coded(json.dumps({"entrypoint": "touch /tmp/tunnel", "submission_id": "tunnel"}))
    tries = [
        ["POST", f"{server}/api/jobs/", mark],
        ["POST", f"{server}/api/jobs/kept/stop", ""],
        ["DELETE", f"{server}/api/jobs/kept", ""],
        ["PUT", f"{server}/api/packages/gcs/_ray_pkg_0123456789abcdef.zip", coded(b"PK")],
        ["PUT", f"{server}/api/serve/applications/", coded("{}")],
        ["DELETE", f"{server}/api/serve/applications/", ""],
        ["POST", f"{server}/report_events", coded("[]")],
        ["POST", f"{server}/api/task_events", coded("[]")],
        ["POST", f"{server}/api/task_events/query", coded("{}")],
        ["POST", f"{server}/api/authenticate", ""],
        ["GET", f"{server}/api/jobs/", ""],
        ["GET", f"{server}/api/jobs/kept/logs", ""],
        ["GET", f"{server}/api/v0/logs", ""],
        ["GET", f"{server}/api/v0/logs/file?node_ip={site.head.address}&filename=raylet.out", ""],
        ["GET", f"{server}/api/v0/actors", ""],
        ["GET", f"{server}/nodes?view=summary", ""],
    ]  # fmt: skip
    for shown, token in (("no token", ""), ("a wrong token", WRONG)):
        for request, answer in zip(tries, site.strangers("some", json.dumps(tries), token=token), strict=True):
            tried = f"{request[0]} {request[1].removeprefix(server)} through the tunnel, {shown}"
            verdicts.say(is_refused(answer), "127.0.0.1:8265", "dashboard", tried, answer)
    touched = site.head.run("test", "-e", "/tmp/tunnel").returncode == 0
    verdicts.say(not touched, "", "", "all of that", "no command ran" if not touched else "a command ran")
    (answer,) = site.owners(tries[0])
    works = answer.startswith("200") and holds_soon(lambda: site.head.run("test", "-e", "/tmp/tunnel").returncode == 0)
    verdicts.say(works, "127.0.0.1:8265", "dashboard", "POST /api/jobs/, the token", f"works: {answer[:40]}")


# --- what ends a node --------------------------------------------------------------------------------------------


def end_nodes(site: Site, verdicts: Verdicts) -> None:
    """Last, because it works: with the token as it should, and by the one call that Ray 2.60 does not guard."""
    first, last = site.workers[0], site.workers[-1]
    drain = Command("", site.client, drain_command(site), lambda: last.address not in site.alive())
    code, said = run_command(site, drain, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": site.token})
    gone = code == 0 and holds_soon(drain.came_of_it)
    verdicts.say(gone, site.client.name, "", "ray drain-node, the token", "works: the node is gone" if gone else said)
    site.owners([f"{first.address}:6380", "ray.rpc.NodeManagerService", "ShutdownRaylet", {"graceful": False}])
    gone = holds_soon(lambda: first.address not in site.alive())
    verdicts.say(gone, f"{first.address}:6380", "raylet", "ShutdownRaylet, the token", "works: the node is gone")
    for machine, port, who in ((a_new_node(site), 6380, "raylet"), (site.head, 6379, "gcs_server")):
        crash(site, machine, port, who, verdicts)


def a_new_node(site: Site) -> Machine:
    (name, *_) = [name for name, each in site.made.machines.items() if name.startswith("spare") and not each.processes]
    site.made.join(name)
    machine = site.made.machines[name]
    waited_for("a new node", lambda: machine.address in site.alive(), 60)
    return machine


def crash(site: Site, machine: Machine, port: int, who: str, verdicts: Verdicts) -> None:
    answer = site.strangers("crash", f"{machine.address}:{port}")
    died = holds_soon(lambda: not any(f"/{who} " in command for command in machine.commands()))
    verdicts.say_open(
        died, f"{machine.address}:{port}", who, "StartSync without node_id, no token", f"{answer}, {who} has died",
        "Ray 2.60 looks for node_id, and ends where there is none, before it looks at the token",
    )  # fmt: skip
