"""Requests that would change something; each names what would come of it."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.cluster_network.listeners import listeners
from tools.cluster_network.machines import Machine, waited_for
from tools.cluster_network.site import WRONG, Site, holds_soon, is_refused
from tools.cluster_network.verdicts import Verdicts


@dataclass(frozen=True)
class Try:
    """A request, and whether something came of it."""

    what: str
    listens: str
    request: Sequence[Any]
    came_of_it: Callable[[], bool]
    with_token: bool = True  # the control


VICTIM = """
@ray.remote(num_cpus=0.01, resources={"node:WORKER": 0.01})
class Victim:
    def who(self): return ray.get_runtime_context().get_actor_id()
print(ray.get(Victim.options(name="victim", lifetime="detached").remote().who.remote()))
"""
STATE = "from ray.util.state import get_actor; print(get_actor('ACTOR').state)"
NODE = "print(*(n['NodeID'] for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] == 'ADDRESS'))"
KV = "InternalKVGcsService"


def try_requests(site: Site, verdicts: Verdicts) -> None:
    """Strangers first, then what came of it, then the same with the token and what comes of that."""
    tries = [*of_state(site), *of_actors(site), *of_agents(site)]
    requests = json.dumps([each.request for each in tries])
    shown = {
        "no token": site.strangers("some", requests),
        "a wrong token": site.strangers("some", requests, token=WRONG),
    }
    touched = [each.came_of_it() for each in tries]
    for number, each in enumerate(tries):
        place = place_of(each.request)
        for with_what, answers in shown.items():
            refused = is_refused(answers[number]) and not touched[number]
            verdicts.say(refused, place, each.listens, f"{each.what}, {with_what}", answers[number])
        if each.with_token:
            (answer,) = site.owners(each.request)
            works = not is_refused(answer) and holds_soon(each.came_of_it)
            verdicts.say(works, place, each.listens, f"{each.what}, the token", f"works: {answer[:40]}")
    verdicts.say(len(site.alive()) == 1 + len(site.workers), "", "", "all of that", "all nodes are alive")


def place_of(request: Sequence[Any]) -> str:
    return str(request[0]) if ":" in request[0] else str(request[1]).removeprefix("http://").partition("/")[0]


def call(address: str, call: str, fields: dict[str, Any]) -> list[Any]:
    service, method = call.split("/")
    return [address, f"ray.rpc.{service}", method, fields]


def coded(content: bytes | str) -> str:
    return base64.b64encode(content.encode() if isinstance(content, str) else content).decode()


def of_state(site: Site) -> list[Try]:
    gcs = f"{site.head.address}:6379"

    def key(name: str) -> dict[str, Any]:
        return {"key": coded(name), "namespace": coded("victims")}

    def is_there(name: str) -> bool:
        (answer,) = site.owners(call(gcs, f"{KV}/InternalKVExists", key(name)))
        return answer.endswith("\\x10\\x01'") or answer.endswith('\\x10\\x01"')

    site.owners(call(gcs, f"{KV}/InternalKVPut", {**key("kept"), "value": coded("1"), "overwrite": True}))
    if not is_there("kept"):
        raise RuntimeError("a key that was put with the token is not there")
    put = {**key("mark"), "value": coded("1"), "overwrite": True}
    return [
        Try("puts a key", "gcs_server", call(gcs, f"{KV}/InternalKVPut", put), lambda: is_there("mark")),
        Try("deletes a key", "gcs_server", call(gcs, f"{KV}/InternalKVDel", key("kept")), lambda: not is_there("kept")),
        *of_nodes(site),
    ]


def of_nodes(site: Site) -> list[Try]:
    """The controls come last of all: `end_nodes`."""
    worker = site.workers[0]
    gcs, raylet = f"{site.head.address}:6379", f"{worker.address}:6380"
    (identity,) = site.on_head(NODE.replace("ADDRESS", worker.address)).split()
    node = {"nodeId": coded(bytes.fromhex(identity))}
    why = {"reason": "DRAIN_NODE_REASON_PREEMPTION", "reasonMessage": "stranger", "deadlineTimestampMs": "1"}
    calls = [
        ("unregisters a node", call(gcs, "NodeInfoGcsService/UnregisterNode", node)),
        ("drains a node", call(gcs, "autoscaler.AutoscalerStateService/DrainNode", node | why)),
        ("shuts a node down", call(raylet, "NodeManagerService/ShutdownRaylet", {"graceful": False})),
        ("drains a node", call(raylet, "NodeManagerService/DrainRaylet", why)),
        ("leases a worker", call(raylet, "NodeManagerService/RequestWorkerLease", {})),
    ]
    lost = lambda: worker.address not in site.alive()  # noqa: E731
    return [
        Try(what, "raylet" if request[0] == raylet else "gcs_server", request, lost, False) for what, request in calls
    ]


def of_actors(site: Site) -> list[Try]:
    """An actor on a worker: at its raylet, at its own port, which is a worker's port, and in the cluster's state."""
    worker = site.workers[0]
    actor = site.on_head(VICTIM.replace("WORKER", worker.address))
    (port,) = {each.port for each in listeners(worker) if each.who.startswith("ray::Victim")}
    died = lambda: "ALIVE" not in site.on_head(STATE.replace("ACTOR", actor))  # noqa: E731
    identity = coded(bytes.fromhex(actor))
    killed = {"intendedActorId": identity, "forceKill": True}
    raylet, own, gcs = f"{worker.address}:6380", f"{worker.address}:{port}", f"{site.head.address}:6379"
    in_state = {"actorId": identity, "forceKill": True, "noRestart": True}
    return [
        Try("kills an actor", "raylet", call(raylet, "NodeManagerService/KillLocalActor", killed), died, False),
        Try("ends a worker", "a worker", call(own, "CoreWorkerService/Exit", {"forceExit": True}), died, False),
        Try("runs a task", "a worker", call(own, "CoreWorkerService/PushTask", {}), died, False),
        Try("kills an actor", "a worker", call(own, "CoreWorkerService/KillActor", killed), died, False),
        Try("kills an actor", "gcs_server", call(gcs, "ActorInfoGcsService/KillActorViaGcs", in_state), died),
    ]


def of_agents(site: Site) -> list[Try]:
    def has_mark(machine: Machine, name: str) -> Callable[[], bool]:
        return lambda: machine.run("test", "-e", f"/tmp/{name}").returncode == 0

    def job(name: str, entrypoint: str) -> str:
        return coded(json.dumps({"entrypoint": entrypoint, "submission_id": name}))

    head, worker = (f"http://{machine.address}:6384/api/job_agent/jobs/" for machine in (site.head, site.workers[0]))
    site.owners(["POST", head, job("kept", "sleep 600")], ["POST", head, job("ended", "true")])

    def status(name: str) -> str:
        (answer,) = site.owners(["GET", f"http://127.0.0.1:8265/api/jobs/{name}", ""])
        return answer

    waited_for("two jobs", lambda: "RUNNING" in status("kept") and "SUCCEEDED" in status("ended"), 60)
    agent, mark, mark2 = "ray::DashboardAgent", job("mark", "touch /tmp/stranger"), job("mark2", "touch /tmp/stranger")
    marked, marked2 = has_mark(site.head, "stranger"), has_mark(site.workers[0], "stranger")
    return [
        Try("runs a command", agent, ["POST", head, mark], marked),
        Try("runs a command", agent, ["POST", worker, mark2], marked2, False),
        Try("stops a job", agent, ["POST", f"{head}kept/stop", ""], lambda: "RUNNING" not in status("kept")),
        Try("deletes a job", agent, ["DELETE", f"{head}ended", ""], lambda: status("ended").startswith("404")),
        *of_environments(site),
    ]


def of_environments(site: Site) -> list[Try]:
    """The agent that unpacks packages and installs what a job asks for."""
    from ray.core.generated import runtime_env_agent_pb2

    messages: Any = runtime_env_agent_pb2  # its names are made when it is imported
    url = f"http://{site.workers[0].address}:6382"
    environment = json.dumps({"env_vars": {"STRANGER": "1"}})
    make = messages.GetOrCreateRuntimeEnvRequest(
        serialized_runtime_env=environment, job_id=b"01000000", source_process="stranger"
    )
    drop = messages.DeleteRuntimeEnvIfPossibleRequest(serialized_runtime_env=environment, source_process="stranger")

    def known() -> bool:
        (answer,) = site.owners(["POST", f"{url}/get_runtime_envs_info", coded(b"\x08\x64")])
        return "STRANGER" in answer

    agent = "ray::RuntimeEnvAgent"
    made = ["POST", f"{url}/get_or_create_runtime_env", coded(make.SerializeToString())]
    dropped = ["POST", f"{url}/delete_runtime_env_if_possible", coded(drop.SerializeToString())]
    return [
        Try("makes an environment", agent, made, known),
        Try("drops an environment", agent, dropped, lambda: False, False),
    ]
