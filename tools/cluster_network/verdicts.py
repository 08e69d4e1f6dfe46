"""The verdicts of a security check, one line each: ok, BAD, or OPEN for a port that is known to be unprotected."""

from dataclasses import dataclass, field

REMEDY = "only the cluster's machines may reach these ports: set up a firewall"


@dataclass
class Verdicts:
    """All verdicts of one check; each is printed when it is recorded."""

    bad: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    num_ok: int = 0

    def note(self, line: str) -> None:
        """Print a fact that needs no verdict."""
        print(f"    {line}", flush=True)

    def record(self, holds: bool, address: str, process: str, attempt: str, result: str) -> None:
        """Record an attempt against a process at an address, and whether its result is right."""
        line = " | ".join(part for part in (address, process, attempt, " ".join(result.split())[:160]) if part)
        print(f"{'ok ' if holds else 'BAD'} {line}", flush=True)
        if holds:
            self.num_ok += 1
        else:
            self.bad.append(line)

    def record_open(self, is_open: bool, address: str, process: str, attempt: str, result: str, reason: str) -> None:
        """Record a known hole. A hole that is closed is BAD: docs/clusters/evidence.md still lists it."""
        line = f"{address} | {process} | {attempt} | {result} | {reason}"
        if is_open:
            print(f"OPEN {line}", flush=True)
            self.open.append(line)
        else:
            self.record(False, address, process, attempt, f"{result}: not open any more, take it off the list")

    def summary(self) -> int:
        """Print the counts and all lines that are not ok; return the exit code, 1 where a line is BAD."""
        print(f"\n{self.num_ok} ok, {len(self.bad)} BAD, {len(self.open)} OPEN")
        for line in self.bad:
            print(f"BAD {line}")
        for line in self.open:
            print(f"OPEN {line}")
        if self.open:
            print(f"OPEN: {REMEDY}")
        return 1 if self.bad else 0
