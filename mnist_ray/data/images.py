"""Image files as the network takes them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_ray.errors import ImageFileError

SIDE = 28  # of the network's images
DIGIT_SIDE = 20  # of the box that MNIST fits a digit into


def read_image(path: Path) -> np.ndarray:
    """An image file of any size, dark on light or light on dark -> (1, 28, 28) uint8, light on dark.

    An image of 28x28 is taken as it is, polarity aside; any other is brought into MNIST's form: the drawing
    scaled into 20x20 and placed with its centre of mass in the middle. Raises ImageFileError.
    """
    try:
        with Image.open(path) as file:
            grey = _on_white(file).convert("L")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not an image that Pillow reads"
        raise ImageFileError(f"{path}: {reason}: give a PNG, JPEG or other image file") from None
    light_on_dark = ImageOps.invert(grey) if _border_is_light(np.asarray(grey)) else grey
    if grey.size == (SIDE, SIDE):
        return np.asarray(light_on_dark)[None]
    return _as_mnist_does(ImageOps.autocontrast(light_on_dark), path)[None]


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)


def _border_is_light(pixels: np.ndarray) -> bool:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool(np.median(border) > 127)


def _as_mnist_does(image: Image.Image, path: Path) -> np.ndarray:
    box = image.point(lambda value: 255 if value > 63 else 0).getbbox()
    if box is None:
        raise ImageFileError(f"{path}: nothing is drawn on it: give an image of one digit")
    digit = ImageOps.contain(image.crop(box), (DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(digit, dtype=np.float64)
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(digit, (_offset(pixels.sum(axis=0)), _offset(pixels.sum(axis=1))))
    return np.asarray(canvas)


def _offset(weights: np.ndarray) -> int:
    """Where a line of pixels must start so that its centre of mass is in the middle, and all of it inside."""
    centre = float((weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum())
    return int(np.clip(round(SIDE / 2 - centre), 0, SIDE - len(weights)))
