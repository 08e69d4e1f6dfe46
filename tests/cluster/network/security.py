"""What a stranger on the same network can do."""

from tests.cluster.network.cluster import Cluster


def print_security(made: Cluster) -> int:
    for name in ("head", "worker1"):
        print(name, made.machines[name].run("ss", "-ltnpH").stdout)
    return 0
