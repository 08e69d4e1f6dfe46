"""Digits of MNIST drawn again as people's pictures show them, and pictures of nothing or of several digits.

A form is a function of a digit's pixels and a random generator that writes one picture, with PIL and numpy.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Pixels = npt.NDArray[np.uint8]  # of a digit: (28, 28), light on dark
Strength = npt.NDArray[np.float64]  # of ink at each pixel of a picture, from 0 to 1
Form = Callable[[Pixels, np.random.Generator, Path], None]

PAPER_SIDES = ((220, 220), (320, 240), (240, 320), (400, 300))  # (width, height)


def ink_of(digit: Pixels, random: np.random.Generator, size: tuple[int, int] | None = None) -> Strength:
    """Place the enlarged digit anywhere on paper of a random size."""
    width, height = size or PAPER_SIDES[random.integers(len(PAPER_SIDES))]
    side = int(min(width, height) * random.uniform(0.5, 0.8))
    large = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    paper = Image.new("L", (width, height))
    paper.paste(large, (int(random.integers(width - side + 1)), int(random.integers(height - side + 1))))
    return np.asarray(paper, dtype=np.float64) / 255


def drawn(ink: Strength, paper: float = 250, pen: float = 20) -> npt.NDArray[np.float64]:
    """Return the grey values of ink on paper."""
    return paper + (pen - paper) * ink


def grey(values: npt.NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


# --- the forms: one digit


def dark_on_light(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    grey(drawn(ink_of(digit, random))).save(path, "PNG")


def light_on_dark(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    grey(drawn(ink_of(digit, random), paper=15, pen=240)).save(path, "PNG")


def rotated_by_exif(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    """Store the pixels as a camera held otherwise does, with the orientation (2 to 8) that turns them back."""
    turned_back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    orientation = int(random.integers(2, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = grey(drawn(ink_of(digit, random))).transpose(turned_back[orientation])
    picture.convert("RGB").save(path, "JPEG", exif=exif)


def sixteen_bits(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    """Use the whole depth, or the lower 12 bits, as some sensors do."""
    scale = float(random.choice([65535, 4095])) / 255
    values = np.round(drawn(ink_of(digit, random)) * scale).astype(np.uint16)
    Image.fromarray(values).save(path, "PNG")


def floats(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    scale = float(random.choice([1, 255, 65535])) / 255
    Image.fromarray((drawn(ink_of(digit, random)) * scale).astype(np.float32)).save(path, "TIFF")


def white_ink_on_transparency(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    _on_transparency(ink_of(digit, random), 255, path)


def black_ink_on_transparency(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    _on_transparency(ink_of(digit, random), 0, path)


def _on_transparency(ink: Strength, pen: int, path: Path) -> None:
    alpha = np.round(ink * 255).astype(np.uint8)
    Image.fromarray(np.dstack([np.full((*alpha.shape, 3), pen, np.uint8), alpha])).save(path, "PNG")


def in_a_frame(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    picture = grey(drawn(_inside(digit, random)))
    _frame(picture, random)
    picture.save(path, "PNG")


def _inside(digit: Pixels, random: np.random.Generator) -> Strength:
    """Place the digit within a frame's margin."""
    ink = ink_of(digit, random)
    return np.pad(ink, int(min(ink.shape) * random.uniform(0.12, 0.2)))


def _frame(picture: Image.Image, random: np.random.Generator) -> None:
    margin = int(min(picture.size) * random.uniform(0, 0.07))
    box = (margin, margin, picture.width - 1 - margin, picture.height - 1 - margin)
    ImageDraw.Draw(picture).rectangle(box, outline=int(random.integers(0, 90)), width=int(random.integers(2, 8)))


def in_a_shadow(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    ink = ink_of(digit, random)
    grey(drawn(ink, paper=235, pen=40) * _light(ink.shape, random)).save(path, "JPEG", quality=85)


def _light(shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the light on the paper: a slope, and a shadow with a soft edge at any angle."""
    rows, columns = np.indices(shape) / max(shape)
    angle = random.uniform(0, 2 * np.pi)
    across = rows * np.sin(angle) + columns * np.cos(angle)
    across -= np.quantile(across, random.uniform(0.2, 0.8))
    edge = 1 / (1 + np.exp(-across / random.uniform(0.003, 0.03)))
    slope = 1 - random.uniform(0, 0.25) * columns
    return np.asarray(slope * (1 - random.uniform(0.3, 0.6) * edge))


def with_specks(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    picture = grey(drawn(ink_of(digit, random)))
    _specks(picture, random)
    picture.save(path, "PNG")


def _specks(picture: Image.Image, random: np.random.Generator) -> None:
    for _ in range(random.integers(1, 6)):
        x, y = random.integers(picture.width), random.integers(picture.height)
        radius = min(picture.size) * random.uniform(0.002, 0.012)
        ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=30)


def with_noise(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    ink = ink_of(digit, random)
    grey(drawn(ink, paper=210, pen=60) + random.normal(0, random.uniform(15, 40), ink.shape)).save(path, "PNG")


def faint_pencil(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    ink = ink_of(digit, random)
    grey(drawn(ink, paper=205, pen=150) + random.normal(0, 3, ink.shape)).save(path, "JPEG", quality=80)


def in_colour(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    """Ink and paper of different colours, some of them equally light."""
    pairs = [((250, 240, 200), (30, 60, 170)), ((60, 120, 60), (230, 60, 60)), ((255, 220, 0), (200, 0, 120))]
    paper, pen = pairs[random.integers(len(pairs))]
    ink = ink_of(digit, random)
    grey_planes = [np.asarray(grey(drawn(ink, *pair))) for pair in zip(paper, pen, strict=True)]
    Image.fromarray(np.dstack(grey_planes)).save(path, "WEBP", quality=90)


def small_on_a_large_sheet(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    sheet = np.zeros((1200, 1600))
    ink = ink_of(digit, random, (260, 260))
    top, left = random.integers(1200 - 260), random.integers(1600 - 260)
    sheet[top : top + 260, left : left + 260] = ink
    grey(drawn(sheet) + random.normal(0, 4, sheet.shape)).save(path, "JPEG", quality=85)


def in_28_pixels(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    values = digit if random.integers(2) else 255 - digit
    Image.fromarray(values).save(path, str(random.choice(["PNG", "GIF", "BMP"])))


def tightly_cut(digit: Pixels, random: np.random.Generator, path: Path) -> None:
    rows, columns = np.nonzero(digit > 100)
    cut = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    factor = random.integers(3, 9)
    large = Image.fromarray(cut).resize((cut.shape[1] * factor, cut.shape[0] * factor), Image.Resampling.BICUBIC)
    grey(drawn(np.asarray(large) / 255)).save(path, "PNG")


FORMS: Mapping[str, Form] = {
    form.__name__: form
    for form in (
        dark_on_light,
        light_on_dark,
        rotated_by_exif,
        sixteen_bits,
        floats,
        white_ink_on_transparency,
        black_ink_on_transparency,
        in_a_frame,
        in_a_shadow,
        with_specks,
        with_noise,
        faint_pencil,
        in_colour,
        small_on_a_large_sheet,
        in_28_pixels,
        tightly_cut,
    )
}


# --- nothing


def blank(random: np.random.Generator, path: Path) -> None:
    """Draw paper alone: plain, of 28x28 pixels, with noise, a shadow, a frame, specks, or wholly transparent."""
    kind = random.integers(8)
    size = PAPER_SIDES[random.integers(len(PAPER_SIDES))]
    values: npt.NDArray[np.float64] = np.full(size[::-1], float(random.integers(256)))
    if kind == 0:
        values = np.full((28, 28), float(random.choice([0, 255, 128])))
    if kind == 1:
        values = 200 + random.normal(0, random.uniform(3, 40), values.shape)
    if kind == 2:
        values = 235 * _light(values.shape, random) + random.normal(0, 2, values.shape)
    if kind == 3:
        values = 120 + random.normal(0, 20, (28, 28))
    if kind == 4:
        _on_transparency(np.zeros(size), 0, path)
        return
    picture = grey(values if kind < 4 else np.full_like(values, 245))
    if kind == 5:
        _frame(picture, random)
    if kind == 6:
        _specks(picture, random)
    picture.save(path, "PNG")


# --- several digits


def several(digits: list[Pixels], random: np.random.Generator, path: Path) -> None:
    """Draw the digits in a row, or one below the other, of different sizes and near to each other or not."""
    parts = []
    for digit in digits:
        rows, columns = np.nonzero(digit > 60)
        cut = digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        scale = random.uniform(4, 8)
        parts.append(
            Image.fromarray(cut).resize(
                (int(cut.shape[1] * scale), int(cut.shape[0] * scale)), Image.Resampling.BICUBIC
            )
        )
    in_a_row = bool(random.integers(3))
    gap = int(random.uniform(20, 60))
    width = sum(part.width + gap for part in parts) if in_a_row else max(part.width for part in parts)
    height = max(part.height for part in parts) if in_a_row else sum(part.height + gap for part in parts)
    paper = Image.new("L", (width + 80, height + 80))
    position = 40
    for part in parts:
        across = 40 + int(random.integers(1 + (height - part.height if in_a_row else width - part.width)))
        paper.paste(part, (position, across) if in_a_row else (across, position))
        position += gap + (part.width if in_a_row else part.height)
    ink = np.asarray(paper, dtype=np.float64) / 255
    picture = grey(drawn(ink) + random.normal(0, random.choice([0, 10]), ink.shape))
    picture.filter(ImageFilter.GaussianBlur(float(random.choice([0, 1])))).save(path, "PNG")
