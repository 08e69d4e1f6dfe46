"""Requests that would change the cluster, each with a look at its effect."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.cluster_network.machines import Machine, wait_for
from tools.cluster_network.ports import open_ports
from tools.cluster_network.under_test import WRONG_TOKEN, ClusterUnderTest, holds_soon, is_refused
from tools.cluster_network.verdicts import Verdicts


@dataclass(frozen=True)
class Attempt:
    """A request, and a look at its effect."""

    what: str
    process: str
    request: Sequence[Any]
    has_effect: Callable[[], bool]
    is_control: bool = True  # whether the same request with the token is tried afterwards


VICTIM = """
@ray.remote(num_cpus=0.01, resources={"node:WORKER": 0.01})
class Victim:
    def id(self): return ray.get_runtime_context().get_actor_id()
print(ray.get(Victim.options(name="victim", lifetime="detached").remote().id.remote()))
"""
STATE = "from ray.util.state import get_actor; print(get_actor('ACTOR').state)"
NODE = "print(*(n['NodeID'] for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] == 'ADDRESS'))"
KV = "InternalKVGcsService"


def try_requests(target: ClusterUnderTest, verdicts: Verdicts) -> None:
    """Make each request as a stranger, look at its effects, then make it with the token and look again."""
    attempts = [*key_attempts(target), *node_attempts(target), *actor_attempts(target), *job_attempts(target)]
    attempts += environment_attempts(target)
    requests = json.dumps([each.request for each in attempts])
    answers_by_token = {
        "no token": target.as_stranger("some", requests),
        "a wrong token": target.as_stranger("some", requests, token=WRONG_TOKEN),
    }
    had_effect = [each.has_effect() for each in attempts]
    for number, each in enumerate(attempts):
        address = address_of(each.request)
        for which_token, answers in answers_by_token.items():
            refused = is_refused(answers[number]) and not had_effect[number]
            verdicts.record(refused, address, each.process, f"{each.what}, {which_token}", answers[number])
        if each.is_control:
            (answer,) = target.as_owner(each.request)
            works = not is_refused(answer) and holds_soon(each.has_effect)
            verdicts.record(works, address, each.process, f"{each.what}, the token", f"works: {answer[:40]}")
    verdicts.record(len(target.alive()) == 1 + len(target.workers), "", "", "all of that", "all nodes are alive")


def try_every_call(target: ClusterUnderTest, ports: Mapping[str, str], verdicts: Verdicts) -> None:
    """Make every gRPC call at each port, without a request in it: the token is checked before the request is read.

    ports: the listening process by address.
    """
    for which_token, token in (("no token", ""), ("a wrong token", WRONG_TOKEN)):
        answers = target.as_stranger("every", *ports, token=token)
        for address, process in ports.items():
            accepted = {call: answer for call, answer in answers[address].items() if answer != "UNAUTHENTICATED"}
            attempt = f"each of {len(answers[address])} gRPC calls, {which_token}"
            holds = bool(answers[address]) and not accepted
            verdicts.record(holds, address, process, attempt, str(accepted or "UNAUTHENTICATED"))


def address_of(request: Sequence[Any]) -> str:
    """Return the host and port that a request goes to."""
    return str(request[0]) if ":" in request[0] else str(request[1]).removeprefix("http://").partition("/")[0]


def call(address: str, call: str, fields: Mapping[str, object]) -> list[Any]:
    """Return a gRPC request as stranger.py takes it. call: SERVICE/METHOD; fields: of the protobuf message, as JSON."""
    service, method = call.split("/")
    return [address, f"ray.rpc.{service}", method, fields]


def base64_text(content: bytes | str) -> str:
    return base64.b64encode(content.encode() if isinstance(content, str) else content).decode()


def key_attempts(target: ClusterUnderTest) -> list[Attempt]:
    """Put and delete keys of the cluster's state."""
    gcs = f"{target.head.address}:6379"

    def key(name: str) -> dict[str, object]:
        return {"key": base64_text(name), "namespace": base64_text("victims")}

    def is_there(name: str) -> bool:
        (answer,) = target.as_owner(call(gcs, f"{KV}/InternalKVExists", key(name)))
        return answer.endswith("\\x10\\x01'") or answer.endswith('\\x10\\x01"')

    target.as_owner(call(gcs, f"{KV}/InternalKVPut", {**key("kept"), "value": base64_text("1"), "overwrite": True}))
    if not is_there("kept"):
        raise RuntimeError("a key that was put with the token is not there")
    put = {**key("mark"), "value": base64_text("1"), "overwrite": True}
    return [
        Attempt("puts a key", "gcs_server", call(gcs, f"{KV}/InternalKVPut", put), lambda: is_there("mark")),
        Attempt(
            "deletes a key", "gcs_server", call(gcs, f"{KV}/InternalKVDel", key("kept")), lambda: not is_there("kept")
        ),
    ]


def node_attempts(target: ClusterUnderTest) -> list[Attempt]:
    """End or use a node; `end_nodes` does the same with the token, last of all."""
    worker = target.workers[0]
    gcs, raylet = f"{target.head.address}:6379", f"{worker.address}:6380"
    (identity,) = target.on_head(NODE.replace("ADDRESS", worker.address)).split()
    node = {"nodeId": base64_text(bytes.fromhex(identity))}
    reason = {"reason": "DRAIN_NODE_REASON_PREEMPTION", "reasonMessage": "stranger", "deadlineTimestampMs": "1"}
    calls = [
        ("unregisters a node", call(gcs, "NodeInfoGcsService/UnregisterNode", node)),
        ("drains a node", call(gcs, "autoscaler.AutoscalerStateService/DrainNode", node | reason)),
        ("shuts a node down", call(raylet, "NodeManagerService/ShutdownRaylet", {"graceful": False})),
        ("drains a node", call(raylet, "NodeManagerService/DrainRaylet", reason)),
        ("leases a worker", call(raylet, "NodeManagerService/RequestWorkerLease", {})),
    ]
    lost = lambda: worker.address not in target.alive()  # noqa: E731
    return [
        Attempt(what, "raylet" if request[0] == raylet else "gcs_server", request, lost, False)
        for what, request in calls
    ]


def actor_attempts(target: ClusterUnderTest) -> list[Attempt]:
    """End an actor on a worker: at its raylet, at the worker's own port, and in the cluster's state."""
    worker = target.workers[0]
    actor = target.on_head(VICTIM.replace("WORKER", worker.address))
    (port,) = {each.port for each in open_ports(worker) if each.process.startswith("ray::Victim")}
    is_gone = lambda: "ALIVE" not in target.on_head(STATE.replace("ACTOR", actor))  # noqa: E731
    identity = base64_text(bytes.fromhex(actor))
    killed = {"intendedActorId": identity, "forceKill": True}
    raylet, own, gcs = f"{worker.address}:6380", f"{worker.address}:{port}", f"{target.head.address}:6379"
    in_state = {"actorId": identity, "forceKill": True, "noRestart": True}
    return [
        Attempt("kills an actor", "raylet", call(raylet, "NodeManagerService/KillLocalActor", killed), is_gone, False),
        Attempt("ends a worker", "a worker", call(own, "CoreWorkerService/Exit", {"forceExit": True}), is_gone, False),
        Attempt("runs a task", "a worker", call(own, "CoreWorkerService/PushTask", {}), is_gone, False),
        Attempt("kills an actor", "a worker", call(own, "CoreWorkerService/KillActor", killed), is_gone, False),
        Attempt("kills an actor", "gcs_server", call(gcs, "ActorInfoGcsService/KillActorViaGcs", in_state), is_gone),
    ]


def job_attempts(target: ClusterUnderTest) -> list[Attempt]:
    """Run, stop and delete jobs at the dashboard agents."""

    def has_mark(machine: Machine, name: str) -> Callable[[], bool]:
        return lambda: machine.run("test", "-e", f"/tmp/{name}").returncode == 0

    def job(name: str, entrypoint: str) -> str:
        return base64_text(json.dumps({"entrypoint": entrypoint, "submission_id": name}))

    head, worker = (
        f"http://{machine.address}:6384/api/job_agent/jobs/" for machine in (target.head, target.workers[0])
    )
    target.as_owner(["POST", head, job("kept", "sleep 600")], ["POST", head, job("ended", "true")])

    def status(name: str) -> str:
        (answer,) = target.as_owner(["GET", f"http://127.0.0.1:8265/api/jobs/{name}", ""])
        return answer

    wait_for("two jobs", lambda: "RUNNING" in status("kept") and "SUCCEEDED" in status("ended"), 60)
    agent, mark, mark2 = "ray::DashboardAgent", job("mark", "touch /tmp/stranger"), job("mark2", "touch /tmp/stranger")
    marked, marked2 = has_mark(target.head, "stranger"), has_mark(target.workers[0], "stranger")
    return [
        Attempt("runs a command", agent, ["POST", head, mark], marked),
        Attempt("runs a command", agent, ["POST", worker, mark2], marked2, False),
        Attempt("stops a job", agent, ["POST", f"{head}kept/stop", ""], lambda: "RUNNING" not in status("kept")),
        Attempt("deletes a job", agent, ["DELETE", f"{head}ended", ""], lambda: status("ended").startswith("404")),
    ]


def environment_attempts(target: ClusterUnderTest) -> list[Attempt]:
    """Make and drop an environment at the agent that unpacks packages and installs a job's requirements."""
    from ray.core.generated import runtime_env_agent_pb2

    messages: Any = runtime_env_agent_pb2  # its names are made when it is imported
    url = f"http://{target.workers[0].address}:6382"
    environment = json.dumps({"env_vars": {"STRANGER": "1"}})
    make = messages.GetOrCreateRuntimeEnvRequest(
        serialized_runtime_env=environment, job_id=b"01000000", source_process="stranger"
    )
    drop = messages.DeleteRuntimeEnvIfPossibleRequest(serialized_runtime_env=environment, source_process="stranger")

    def is_known() -> bool:
        (answer,) = target.as_owner(["POST", f"{url}/get_runtime_envs_info", base64_text(b"\x08\x64")])
        return "STRANGER" in answer

    agent = "ray::RuntimeEnvAgent"
    made = ["POST", f"{url}/get_or_create_runtime_env", base64_text(make.SerializeToString())]
    dropped = ["POST", f"{url}/delete_runtime_env_if_possible", base64_text(drop.SerializeToString())]
    return [
        Attempt("makes an environment", agent, made, is_known),
        Attempt("drops an environment", agent, dropped, lambda: False, False),
    ]
