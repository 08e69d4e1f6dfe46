"""A picture is read as a viewer shows it; whatever cannot be answered is refused with one line."""

import io
import os
import random
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mnist_ray.data.digits import enlarged_digits
from mnist_ray.data.images import FORMATS, MOST_BYTES, read_image
from mnist_ray.errors import ImageFileError
from tests.data import redrawn

FOUR = enlarged_digits().images[4, 0]
DIGIT = np.where(FOUR > 100, 255, 0).astype(np.uint8)  # with clear strokes


def likeness(one: redrawn.Pixels, other: redrawn.Pixels) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def refusal(path: Path) -> str:
    """Return the message of a refused file, which is one line that begins with its path."""
    with pytest.raises(ImageFileError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# --- forms of one digit


@pytest.mark.parametrize("form", redrawn.FORMS)
def test_every_form_shows_the_same_digit(tmp_path: Path, form: str) -> None:
    redrawn.dark_on_light(DIGIT, np.random.default_rng(0), tmp_path / "plain")
    plain = read_image(tmp_path / "plain")
    for seed in range(3):
        redrawn.FORMS[form](DIGIT, np.random.default_rng(seed), tmp_path / "picture")
        found = read_image(tmp_path / "picture")
        assert found.shape == (1, 28, 28) and found.dtype == np.uint8
        assert likeness(found, DIGIT if form == "in_28_pixels" else plain) > 0.85, seed


@pytest.mark.parametrize("is_dark_on_light", [False, True])
def test_small_images_keep_their_pixels(tmp_path: Path, is_dark_on_light: bool) -> None:
    Image.fromarray(255 - FOUR if is_dark_on_light else FOUR).save(tmp_path / "digit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "digit.png")[0], FOUR)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_orientation_is_followed(tmp_path: Path, kind: str, orientation: int) -> None:
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(255 - DIGIT).resize((224, 224))
    stored = upright.transpose(back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned", kind, exif=exif)
    upright.save(tmp_path / "upright", "PNG")
    assert likeness(read_image(tmp_path / "turned"), read_image(tmp_path / "upright")) > 0.99


def test_colour_of_invisible_pixels_does_not_count(tmp_path: Path) -> None:
    alpha = np.asarray(Image.fromarray(DIGIT).resize((224, 224)))
    hidden = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    hidden[alpha > 0] = 255
    Image.fromarray(np.dstack([hidden, alpha])).save(tmp_path / "digit.png")
    redrawn.dark_on_light(DIGIT, np.random.default_rng(0), tmp_path / "plain")
    assert likeness(read_image(tmp_path / "digit.png"), read_image(tmp_path / "plain")) > 0.85


def test_pixels_that_are_no_numbers_do_not_count(tmp_path: Path) -> None:
    values = redrawn.drawn(redrawn.ink_of(DIGIT, np.random.default_rng(0))).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "plain", "TIFF")
    values[3, 3], values[5, 5], values[7, 7] = np.nan, np.inf, 1e30
    Image.fromarray(values).save(tmp_path / "digit", "TIFF")
    assert likeness(read_image(tmp_path / "digit"), read_image(tmp_path / "plain")) > 0.95


def test_short_dash_beside_a_digit_is_none(tmp_path: Path) -> None:
    picture = Image.new("L", (300, 300), 255)
    picture.paste(Image.fromarray(255 - DIGIT).resize((224, 224)), (0, 0))
    picture.save(tmp_path / "alone.png")
    ImageDraw.Draw(picture).line((240, 270, 264, 282), fill=20, width=5)
    picture.save(tmp_path / "dash.png")
    assert likeness(read_image(tmp_path / "dash.png"), read_image(tmp_path / "alone.png")) > 0.99


def test_clothes_need_not_be_one_thing(tmp_path: Path) -> None:
    picture = Image.new("L", (200, 200), 255)
    for left in (20, 120):
        ImageDraw.Draw(picture).rectangle((left, 20, left + 50, 180), fill=30)
    picture.save(tmp_path / "shoes.png")
    assert "more than one thing" in refusal(tmp_path / "shoes.png")
    assert read_image(tmp_path / "shoes.png", shows_digit=False).max() > 200


# --- nothing, and several


@pytest.mark.parametrize("seed", range(16))
def test_paper_alone_has_no_answer(tmp_path: Path, seed: int) -> None:
    redrawn.blank(np.random.default_rng(seed), tmp_path / "paper")
    assert "the image is empty" in refusal(tmp_path / "paper")


@pytest.mark.parametrize("seed", range(6))
def test_several_digits_have_no_answer(tmp_path: Path, seed: int) -> None:
    digits = list(enlarged_digits().images[seed : seed + 2 + seed % 2, 0])
    redrawn.several(digits, np.random.default_rng(seed), tmp_path / "several")
    assert "shows more than one thing" in refusal(tmp_path / "several")


def test_two_lone_dots_are_nothing(tmp_path: Path) -> None:
    picture = Image.new("L", (4000, 4000), 255)
    for place in ((10, 10), (3900, 3800)):
        picture.putpixel(place, 0)
    picture.save(tmp_path / "dots.png")
    assert "the image is empty" in refusal(tmp_path / "dots.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (2, 3), (28, 1), (20_000, 2)])
def test_odd_sizes_have_no_answer(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 90).save(tmp_path / "odd.png")
    assert "the image is empty" in refusal(tmp_path / "odd.png")


# --- files that are no pictures


def test_pictures_must_be_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s.png"))
    listening.close()
    with (tmp_path / "large.png").open("wb") as sparse:
        sparse.truncate(MOST_BYTES + 1)
    for path, said in (
        (tmp_path / "pipe.png", "it is a named pipe, not a file"),
        (tmp_path / "s.png", "it is a socket, not a file"),
        (Path("/dev/zero"), "it is a device, not a file"),
        (tmp_path, "it is a directory, not a file"),
        (tmp_path / "large.png", "it is larger than 64 MB"),
        (tmp_path / "absent.png", "No such file"),
    ):
        assert said in refusal(path)


@pytest.mark.parametrize("size", [(9500, 9500), (14_000, 14_000)])
def test_too_many_pixels_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "large.png")
    with warnings.catch_warnings(record=True) as warned:
        assert "more than 89,000,000" in refusal(tmp_path / "large.png")
    assert not warned


@pytest.mark.parametrize("kind", ["AVIF", "EPS", "PCX", "TGA", "PDF"])
def test_other_formats_are_refused(tmp_path: Path, kind: str) -> None:
    assert kind not in FORMATS
    path = tmp_path / "digit"
    Image.fromarray(DIGIT).convert("RGB").save(path, kind)
    assert "it is not in one of the formats PNG, JPEG" in refusal(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_end_in_one_line(tmp_path: Path, kind: str) -> None:
    """Change, cut and repeat bytes, more of the header than of the rest: an answer or one line, nothing else."""
    chance = random.Random(kind)
    whole = io.BytesIO()
    Image.fromarray(255 - DIGIT).resize((64, 64)).convert("RGB").save(whole, kind)
    for number in range(60):
        content = bytearray(whole.getvalue())
        for _ in range(chance.randint(1, 8)):
            position = chance.randrange(len(content) if chance.random() < 0.3 else min(len(content), 120))
            content[position] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
        if number % 4 == 0:
            del content[chance.randrange(len(content)) :]
        path = tmp_path / "damaged"
        path.write_bytes(content)
        try:
            read_image(path)
        except ImageFileError:
            refusal(path)
