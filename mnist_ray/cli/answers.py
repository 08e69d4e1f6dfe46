"""The answers to pictures, as `predict` prints them: in words, drawn, as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import ImageFileError

if TYPE_CHECKING:
    from mnist_ray.pipeline.prediction import Prediction

LIGHT = 96  # of 255: a pixel from here on is drawn
HALF_BLOCKS = " ▄▀█"  # neither row, the lower one, the upper one, both


def in_words(answer: "Prediction", class_names: Sequence[str]) -> str:
    """Return an answer: "7 (99.2 %; then 1: 0.5 %, 9: 0.2 %)", or "unsure (7: 62.0 %, 1: 30.1 %, 9: 4.0 %)"."""
    best = answer.ranking[:3]
    names, shares = [class_names[each] for each in best], [_percent(answer.probabilities[each]) for each in best]
    listed = [f"{name}: {share}" for name, share in zip(names, shares, strict=True)]
    if not answer.is_unsure:
        return f"{names[0]} ({shares[0]}; then {', '.join(listed[1:])})"
    reason = ", unlike the training images" if answer.is_like_training_images is False else ""
    return f"unsure{reason} ({', '.join(listed)})"


def _percent(probability: float) -> str:
    """Return a probability in percent, which is never rounded to certainty."""
    if probability > 0.999:
        return ">99.9 %"
    return f"{100 * probability:.1f} %" if probability >= 0.001 else "<0.1 %"


def drawn(answer: "Prediction") -> str:
    """Draw what the network saw, two rows of pixels a line, in a frame."""
    light = (answer.image >= LIGHT).astype(int)
    lines = ["".join(HALF_BLOCKS[index] for index in 2 * upper + lower) for upper, lower in light.reshape(14, 2, 28)]
    edge = "─" * 28
    return "\n".join([f"┌{edge}┐", *(f"│{line}│" for line in lines), f"└{edge}┘"])


def columns(path: Path, answer: "Prediction | ImageFileError", class_names: Sequence[str]) -> dict[str, Any]:
    """Return an answer, or why there is none, for programs."""
    if isinstance(answer, ImageFileError):
        return {"path": str(path), "error": str(answer)}
    return {
        "path": str(path),
        "class": class_names[answer.ranking[0]],
        "is_unsure": answer.is_unsure,
        "is_like_training_images": answer.is_like_training_images,
        "probabilities": answer.probabilities.tolist(),
    }
