"""The ports at which a machine's processes listen."""

import re
from dataclasses import dataclass

from tools.cluster_network.machines import Machine

LISTENING = re.compile(r"\S+\s+\d+\s+\d+\s+(?P<address>\S+):(?P<port>\d+)\s+\S+\s+users:\(\(\"(?P<process>[^\"]+)")


@dataclass(frozen=True)
class OpenPort:
    """A port at which a process listens."""

    address: str
    port: int
    process: str

    @property
    def is_reachable(self) -> bool:
        """Whether other machines reach the port."""
        return not self.address.strip("[]").removeprefix("::ffff:").startswith("127.")


def open_ports(machine: Machine) -> list[OpenPort]:
    """Return all ports at which something on a machine listens, in order."""
    matches = [match for line in machine.run("ss", "-ltnpH").stdout.splitlines() if (match := LISTENING.match(line))]
    ports = {OpenPort(each["address"], int(each["port"]), each["process"]) for each in matches}
    return sorted(ports, key=lambda each: each.port)
