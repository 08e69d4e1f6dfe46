"""The one rule by which any picture becomes 28x28 and grey."""

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_ray.data.images import FORMATS, MOST_PIXELS
from mnist_ray.data.labelled_images import IMAGE_SHAPE

SIDE = IMAGE_SHAPE[0]
MOST_PIXELS_PER_BYTE = 9000  # of a packed file: deflate packs a byte into 1,032, and a byte holds up to 8 pixels
LOSSY = ("JPEG", "WEBP")  # a plain area takes next to no bytes there


def in_network_form(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Make a picture 28x28 and grey, (28, 28) uint8; a grey picture of 28x28 keeps its pixels.

    The steps: turned as its EXIF orientation says; transparent parts on white; grey as 0.299 R + 0.587 G + 0.114 B
    (ITU-R 601-2), of 16 bits the upper eight; scaled until the longer side is 28, by Pillow's bilinear filter, which
    averages where it reduces; the shorter side filled up evenly with the median of the border. Light and dark stay as
    they are. Raises ValueError for pixels that are floating-point numbers.
    """
    grey = _grey(ImageOps.exif_transpose(image))
    if grey.size == (SIDE, SIDE):
        return np.array(grey)  # a copy, because Pillow's own pixels cannot be written to, of which torch warns
    scale = SIDE / max(grey.size)
    width, height = (max(1, round(side * scale)) for side in grey.size)
    pixels = np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    filled = np.full(IMAGE_SHAPE, np.sort(border)[len(border) // 2])
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    filled[top : top + height, left : left + width] = pixels
    return filled


def decoded(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode an image file -> (28, 28) uint8. Raises ValueError that says what is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about damaged parts that do not matter and many pixels
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                num_pixels = image.width * image.height
                is_possible = image.format in LOSSY or num_pixels <= MOST_PIXELS_PER_BYTE * len(content)
                if num_pixels > MOST_PIXELS or not is_possible:
                    size = f"{image.width}x{image.height} pixels"
                    raise ValueError(f"its header says {size}, which its {len(content):,} bytes cannot be trusted with")
                return in_network_form(image)
    except UnidentifiedImageError:
        raise ValueError(f"not an image in one of {', '.join(FORMATS)}") from None
    except ValueError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MOST_PIXELS:,} pixels") from None
    except Exception as error:  # decoders raise anything on a damaged file: SyntaxError, IndexError, MemoryError ...
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"damaged: {reason}") from None


def _grey(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "1"):
        return image.convert("L")
    if image.mode.startswith("F"):
        raise ValueError("its pixels are floating-point numbers: save it with 8 bits")
    if image.mode.startswith("I"):  # 16 bits
        return Image.fromarray((np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image.convert("RGB").convert("L")
