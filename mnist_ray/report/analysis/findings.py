"""One statement about a search, for people."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A statement about a search. A warning makes the search less believable and says what to do."""

    text: str
    is_warning: bool = False
    patch: str | None = None  # YAML for the spec, where a warning has one
    is_key: bool = False  # one of the few that a report shows unfolded
