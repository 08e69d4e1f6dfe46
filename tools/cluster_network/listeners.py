"""Who listens on a machine, and whether others can reach it."""

import re
from dataclasses import dataclass

from tools.cluster_network.machines import Machine

LISTENING = re.compile(r"\S+\s+\d+\s+\d+\s+(?P<address>\S+):(?P<port>\d+)\s+\S+\s+users:\(\(\"(?P<who>[^\"]+)")


@dataclass(frozen=True)
class Listener:
    address: str
    port: int
    who: str

    @property
    def is_outside(self) -> bool:
        return not self.address.strip("[]").removeprefix("::ffff:").startswith("127.")


def listeners(machine: Machine) -> list[Listener]:
    lines = machine.run("ss", "-ltnpH").stdout.splitlines()
    found = [match for line in lines if (match := LISTENING.match(line))]
    return sorted(
        {Listener(each["address"], int(each["port"]), each["who"]) for each in found}, key=lambda each: each.port
    )
