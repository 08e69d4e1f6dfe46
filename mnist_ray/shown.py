"""Texts made fit for a terminal: times in a unit that people use, names without escape sequences and the like."""

import unicodedata

UNSHOWN = ("Cc", "Cf", "Cs")  # controls, marks that turn the order of letters round, halves of letters
LAYOUT = "\n\r\t"


def is_shown(text: str) -> bool:
    """Report whether a text of one line holds nothing but what can be seen."""
    return text.isprintable() or not any(unicodedata.category(letter) in UNSHOWN for letter in text)


def shown(text: str, kept: str = "\n\t") -> str:
    """Return the text with a mark in the place of each letter that cannot be seen and is not one of `kept`."""
    if text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if letter not in kept and unicodedata.category(letter) in UNSHOWN else letter
        for letter in text
    )


def duration(seconds: float) -> str:
    """Return a time in the unit that people would use: 41 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
