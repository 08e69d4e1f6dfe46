"""One line a call: ok, BAD, or OPEN for what is known to be unprotected."""

from dataclasses import dataclass, field

REMEDY = "only the cluster's machines may reach these ports: a firewall has to see to it"


@dataclass
class Verdicts:
    bad: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    num_ok: int = 0

    def note(self, line: str) -> None:
        print(f"    {line}", flush=True)

    def say(self, holds: bool, place: str, listens: str, tried: str, seen: str) -> None:
        line = " | ".join(part for part in (place, listens, tried, " ".join(seen.split())[:160]) if part)
        print(f"{'ok ' if holds else 'BAD'} {line}", flush=True)
        if holds:
            self.num_ok += 1
        else:
            self.bad.append(line)

    def say_open(self, is_open: bool, place: str, listens: str, tried: str, seen: str, reason: str) -> None:
        """A hole that is known. That it is there no more is worth a word too: the page says that it is."""
        line = f"{place} | {listens} | {tried} | {seen} | {reason}"
        if is_open:
            print(f"OPEN {line}", flush=True)
            self.open.append(line)
        else:
            self.say(False, place, listens, tried, f"{seen}: not open any more, take it off the list")

    def summary(self) -> int:
        print(f"\n{self.num_ok} as they should be, {len(self.bad)} BAD, {len(self.open)} OPEN")
        for line in self.bad:
            print(f"BAD {line}")
        for line in self.open:
            print(f"OPEN {line}")
        if self.open:
            print(f"OPEN: {REMEDY}")
        return 1 if self.bad else 0
