"""The security check: every request is made without the token, its effect is looked for, and the same request with the
token has to work.
"""

from tools.cluster_network.canary import look_for_secrets, submitted
from tools.cluster_network.cluster import Cluster
from tools.cluster_network.commands import end_nodes, try_commands, try_job_server
from tools.cluster_network.ports import open_ports
from tools.cluster_network.requests import try_every_call, try_requests
from tools.cluster_network.training import try_a_training
from tools.cluster_network.under_test import ClusterUnderTest
from tools.cluster_network.verdicts import Verdicts

SSH = 22  # the way in; it asks for a key

# The reason why a port is open to other machines.
NEEDED = {
    6379: "the cluster's state (GCS): all nodes, drivers",
    6380: "raylet: the head and other raylets lease workers",
    6381: "objects between nodes",
    6382: "runtime environments: its raylet only, but Ray binds it to the node's address and has no option",
    6383: "dashboard agent, gRPC: the head's dashboard; no option",
    6384: "dashboard agent, HTTP: the head's job server; no option",
    10001: "Ray Client's server, head only: `ray start --head` has no way to leave it out; nobody here uses it",
}
GRPC = (6379, 6380, 6381, 6383, 10001)


def print_security(cluster: Cluster) -> int:
    """Print a verdict on every attempt; return 0 if all is well but for what is known to be open."""
    verdicts = Verdicts()
    target = ClusterUnderTest(cluster)
    check_ports(target, verdicts)
    ports = {
        f"{machine.address}:{each.port}": each.process
        for machine in (target.head, target.workers[0])
        for each in open_ports(machine)
        if each.is_reachable and each.port in GRPC
    }
    try_every_call(target, ports, verdicts)
    alive = target.alive()
    verdicts.record(len(alive) == 1 + len(target.workers), "", "", "all of that", f"all {len(alive)} nodes are alive")
    try_requests(target, verdicts)
    try_commands(target, verdicts)
    try_job_server(target, verdicts)
    with submitted(cluster) as job:
        try_a_training(target, job, verdicts)
    look_for_secrets(cluster, [target.head, *target.workers], verdicts)
    end_nodes(target, verdicts)
    return verdicts.summary()


def check_ports(target: ClusterUnderTest, verdicts: Verdicts) -> None:
    """Compare the ports that other machines reach with those that are needed."""
    for machine in (target.head, *target.workers):
        for each in open_ports(machine):
            if not each.is_reachable:
                verdicts.note(f"{machine.name} {each.port}: {each.process}, on loopback")
            elif each.port != SSH:
                reason = NEEDED.get(each.port)
                verdicts.record(
                    reason is not None, f"{machine.name} {each.port}", each.process, "listens", reason or "no reason"
                )
