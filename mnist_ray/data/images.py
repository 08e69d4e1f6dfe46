"""Image files, in the form of the network's input."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_ray.data.drawing import SIDE, NothingDrawnError, SeveralDrawnError, Values, find_drawing
from mnist_ray.errors import ImageFileError
from mnist_ray.storage.files import read_bounded

# None of these starts another program, as EPS does.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")

MOST_BYTES = 64 * 10**6  # of a file
MOST_PIXELS = 89 * 10**6
READ_SIDE = 900  # a larger picture is reduced, before it is computed with
INK_VARIES = 0.1  # standard deviation of what is visible: beyond it there is paper, not ink alone


def read_image(path: Path, shows_digit: bool = True) -> npt.NDArray[np.uint8]:
    """Read an image file of any size, dark on light or light on dark -> (1, 28, 28) uint8, light on dark.

    An image of 28x28 with one thing on a plain ground keeps its pixels, inverted if dark on light. Any other is
    brought into MNIST's form: the drawing is scaled into 20x20 and placed with its centre of mass in the middle.
    shows_digit: whether the picture must show one digit; otherwise all that stands out from the border is taken.
    Raises ImageFileError.
    """
    lightness = _lightness(path)
    try:
        drawing = find_drawing(lightness, shows_digit)
    except NothingDrawnError:
        raise ImageFileError(f"{path}: the image is empty: give an image of one digit") from None
    except SeveralDrawnError:
        raise ImageFileError(f"{path}: the image shows more than one thing: give an image of one digit") from None
    if lightness.shape == (SIDE, SIDE):
        border = np.concatenate([lightness[0], lightness[-1], lightness[:, 0], lightness[:, -1]])
        light_on_dark = 1 - lightness if np.median(border) > 0.5 else lightness
        if not shows_digit or drawing.is_all_of(light_on_dark):
            return np.round(255 * light_on_dark).astype(np.uint8)[None]
    return drawing.in_mnist_form()[None]


def _lightness(path: Path) -> Values:
    """Return a picture as a viewer shows it, (height, width) from 0 to 1, reduced if it is large.

    Raises ImageFileError.
    """
    try:
        content = read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise ImageFileError(f"{path}: {error.strerror}: give a PNG, JPEG or other image file") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about damaged parts that do not matter and many pixels
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    size = f"{width}x{height} pixels, more than {MOST_PIXELS:,}"
                    raise ImageFileError(f"{path}: it has {size}: make it smaller")
                image.load()
                return _lightness_of(ImageOps.exif_transpose(image))
    except ImageFileError:
        raise
    except Image.DecompressionBombError:
        raise ImageFileError(f"{path}: it has more than {MOST_PIXELS:,} pixels: make it smaller") from None
    except UnidentifiedImageError:
        raise ImageFileError(f"{path}: it is not in one of the formats {', '.join(FORMATS)}: convert it") from None
    except Exception as error:  # decoders raise anything on a damaged file: SyntaxError, IndexError, MemoryError ...
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ImageFileError(f"{path}: it is damaged or of an unusual kind ({reason}): save it as PNG") from None


def _lightness_of(image: Image.Image) -> Values:
    if image.mode.startswith(("I", "F")):
        return _scaled(_reduced(np.asarray(image)))
    if image.has_transparency_data:
        # Premultiplied, so that the colour of what cannot be seen does not count.
        return _one_channel(_on_paper(_reduced(np.asarray(image.convert("RGBA").convert("RGBa"))) / 255))
    if image.mode in ("1", "L"):
        return _reduced(np.asarray(image.convert("L"))) / 255
    return _one_channel(_reduced(np.asarray(image.convert("RGB"))) / 255)


def _reduced(pixels: npt.NDArray[Any]) -> Values:
    """Average blocks of pixels, so that neither side is much longer than READ_SIDE. pixels: (height, width, ...)."""
    factor = -(-max(pixels.shape[:2]) // READ_SIDE)
    height, width = (max(1, side // factor) for side in pixels.shape[:2])
    rows, columns = min(factor, pixels.shape[0]), min(factor, pixels.shape[1])
    blocks = pixels[: height * rows, : width * columns].reshape(height, rows, width, columns, *pixels.shape[2:])
    means: Values = blocks.mean(axis=(1, 3), dtype=np.float64)
    return means


def _scaled(values: Values) -> Values:
    """Bring values of any depth into 0 .. 1, from zero or the lowest to the highest; a few outliers do not count."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros_like(values)
    values = np.where(finite, values, np.median(values[finite]))
    low, high = np.quantile(values, [0.0005, 0.9995])
    low = min(float(low), 0.0)
    return np.clip((values - low) / (float(high) - low or 1.0), 0, 1)


def _on_paper(premultiplied: Values) -> Values:
    """Put a picture with transparent parts on paper against which its ink is seen. (h, w, 4) -> (h, w, 3).

    The paper has the visible parts' own colour if those show paper, otherwise black below light ink or white.
    """
    alpha = premultiplied[..., 3:]
    visible = alpha[..., 0] > 0.5
    if not visible.any():
        visible = alpha[..., 0] >= alpha.max()
    colours = premultiplied[visible][:, :3] / np.maximum(alpha[visible], 1e-6)
    if colours.mean(axis=1).std() > INK_VARIES:
        paper = np.median(colours, axis=0)
    else:
        paper = np.full(3, float(colours.mean() < 0.5))
    return premultiplied[..., :3] + (1 - alpha) * paper


def _one_channel(colours: Values) -> Values:
    """Project colours on the line along which they differ most, which tells ink from equally light paper.

    (h, w, 3) from 0 to 1 -> (h, w) from 0 to 1.
    """
    points = colours.reshape(-1, 3)
    _, axes = np.linalg.eigh(np.cov(points, rowvar=False) if len(points) > 1 else np.eye(3))
    axis = axes[:, -1] * (1 if axes[:, -1].sum() >= 0 else -1)
    darkest, lightest = float(axis[axis < 0].sum()), float(axis[axis > 0].sum())
    lightness: Values = (colours @ axis - darkest) / (lightest - darkest)
    return lightness
