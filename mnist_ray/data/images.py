"""Image files, in the form of the network's input."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_ray.errors import ImageFileError

SIDE = 28  # of the network's images
DIGIT_SIDE = 20  # of the box that MNIST fits a digit into


def read_image(path: Path) -> np.ndarray:
    """Read an image file of any size, dark on light or light on dark -> (1, 28, 28) uint8, light on dark.

    An image of 28x28 keeps its pixels, inverted if dark on light. Any other is brought into MNIST's form: the drawing
    is scaled into 20x20 and placed with its centre of mass in the middle. Raises ImageFileError.
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
    return _in_mnist_form(ImageOps.autocontrast(light_on_dark), path)[None]


def _on_white(image: Image.Image) -> Image.Image:
    """Put an image with transparent parts on a white ground."""
    if not image.has_transparency_data:
        return image
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)


def _border_is_light(pixels: np.ndarray) -> bool:
    """Return whether the median of the border's pixels is in the lighter half. pixels: (height, width) uint8."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool(np.median(border) > 127)


def _in_mnist_form(image: Image.Image, path: Path) -> np.ndarray:
    """Scale the drawing into 20x20 and centre its mass in (28, 28) uint8. Raises ImageFileError, which names `path`."""
    box = image.point(lambda value: 255 if value > 63 else 0).getbbox()
    if box is None:
        raise ImageFileError(f"{path}: nothing is drawn on it: give an image of one digit")
    digit = ImageOps.contain(image.crop(box), (DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(digit, dtype=np.float64)
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(digit, (_offset(pixels.sum(axis=0)), _offset(pixels.sum(axis=1))))
    return np.asarray(canvas)


def _offset(weights: np.ndarray) -> int:
    """Return the start of a line of pixels whose centre of mass is then in the middle, or as near as it fits."""
    centre = float((weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum())
    return int(np.clip(round(SIDE / 2 - centre), 0, SIDE - len(weights)))
