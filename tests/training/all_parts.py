"""Everything that a training can do beyond the recipe, at once."""

from typing import Any

ALL_PARTS: dict[str, Any] = {
    "schedule": "cosine",
    "warmup": 0.1,
    "ema": 0.1,
    "augment": 1.0,
    "weight_decay": 0.01,
}
