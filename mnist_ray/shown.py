"""Text from a record or a folder, made fit for a terminal: escape sequences and the like are taken out."""

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
