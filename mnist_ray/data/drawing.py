"""One drawing in a picture: found by a local threshold and connected components, and brought into MNIST's form."""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SIDE = 28  # of the network's images
DIGIT_SIDE = 20  # of the box that MNIST fits a digit into

# All that follows is relative to a picture whose longer side has been scaled to this many pixels.
WORK_SIDE = 224
GROUND_SIDE = 56  # the paper is estimated on a smaller picture
GROUND_WINDOW = 25  # of the median there: wider than any stroke, narrower than a shadow

DARKEST = 0.05  # added to lightness in ratios, so that noise on black paper does not count as much as ink
LEAST_CONTRAST = 0.08  # of ink with its paper
LEAST_CONTRAST_TO_NOISE = 5.5  # the noise of 50,000 smoothed pixels rarely reaches 5 standard deviations
PEAK_PIXELS = 60  # ink is as strong as the strongest so many pixels; specks have fewer

LEAST_EXTENT = 0.05  # of a drawing, relative to the picture
SPECK_EXTENT = 0.25  # anything smaller is none, relative to the drawing beside it
DOT, DOT_EXTENT = 0.8, 0.15  # a dot is so thick relative to its extent, and smaller than this share of the picture
SAME_HEIGHT, SAME_PLACE = 0.6, 0.3  # of two digits side by side: relative to the higher, and to the narrower
PIECE_GAP = 0.1  # pieces of one digit are no further apart, relative to the digit
FRAME_EXTENT = 0.7  # a frame spans so much of the picture
FILLING_EXTENT = 0.9  # and a digit along which the picture was cut
THICKEST_STROKE = 0.3  # of such a digit, relative to the picture
EDGE_EXTENT = 0.4  # of a digit that is cut by the picture's edge


class NothingDrawnError(Exception):
    """A picture without a drawing."""


class SeveralDrawnError(Exception):
    """A picture with more than one drawing."""


@dataclass(frozen=True)
class Drawing:
    """A drawing, apart from its paper.

    ink: (height, width), from 0 (paper) to 1; 0 wherever something else is, such as a frame.
    """

    ink: Values

    def is_all_of(self, light_on_dark: Values) -> bool:
        """Report whether a picture shows nothing else than this drawing, on plain black."""
        from scipy import ndimage

        around = ndimage.binary_dilation(_resized(self.ink, SIDE) > 0, np.ones((3, 3)), iterations=2)
        return bool((light_on_dark[~around] < 0.1).all())

    def in_mnist_form(self) -> npt.NDArray[np.uint8]:
        """Scale the drawing into 20x20 and put its centre of mass in the middle of (28, 28), light on dark."""
        rows, columns = (np.flatnonzero((self.ink > 0.25).any(axis=axis)) for axis in (1, 0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        cut = Image.fromarray(self.ink.astype(np.float32)).crop(box)
        scale = DIGIT_SIDE / max(cut.size)
        size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
        pixels = np.asarray(cut.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
        pixels = np.clip(pixels / max(float(pixels.max()), 1e-6), 0, 1)
        form = np.zeros((SIDE, SIDE))
        top, left = (_offset(pixels.sum(axis=axis)) for axis in (1, 0))
        form[top : top + size[1], left : left + size[0]] = pixels
        return np.round(255 * form).astype(np.uint8)


def _offset(weights: Values) -> int:
    """Return the start of a line of pixels whose centre of mass is then in the middle, or as near as it fits."""
    centre = float((weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum())
    return int(np.clip(round(SIDE / 2 - centre), 0, SIDE - len(weights)))


def find_drawing(lightness: Values, shows_digit: bool = True) -> Drawing:
    """Find what is drawn on a picture, dark on light or light on dark.

    lightness: (height, width), from 0 to 1. shows_digit: whether the drawing is one digit, on paper that may be
    uneven; otherwise it is all that stands out from the border. Raises NothingDrawnError, SeveralDrawnError.
    """
    picture = _resized(lightness, WORK_SIDE).clip(0, 1)  # bicubic resizing goes a little beyond
    even = _Inked.of(picture, _even_paper(picture))
    if not shows_digit:
        if not even.things:
            raise NothingDrawnError
        return even.drawing(even.things)
    if even.fills_the_picture():
        return even.drawing(even.things)
    inked, things = even, even.things_apart_from_frames_and_specks() if even.has_clear_edges() else []
    if not things:
        inked = _Inked.of(picture, _local_paper(picture))
        things = inked.things_apart_from_frames_and_specks()
    if not things:
        raise NothingDrawnError
    if not _is_one(things):
        raise SeveralDrawnError
    return inked.drawing(things)


def _even_paper(picture: Values) -> Values:
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return np.full_like(picture, np.median(border))


def _local_paper(picture: Values) -> Values:
    """Estimate the paper by a median around each pixel, which keeps the straight edges of shadows."""
    from scipy import ndimage  # takes 0.1 s to import

    ground = ndimage.median_filter(_resized(picture, GROUND_SIDE), GROUND_WINDOW, mode="reflect")
    scaled = Image.fromarray(ground.astype(np.float32)).resize(picture.shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float64)


def _resized(values: Values, longer_side: int) -> Values:
    scale = longer_side / max(values.shape)
    size = tuple(max(1, round(scale * side)) for side in values.shape[::-1])
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, method), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _Thing:
    """A connected part of the ink. top, left, bottom, right: of its box, the last two exclusive."""

    label: int
    top: int
    left: int
    bottom: int
    right: int
    mask: Mask  # of the box

    @property
    def extent(self) -> int:
        return max(self.bottom - self.top, self.right - self.left)

    @property
    def thickness(self) -> float:
        """The diameter of the largest circle within."""
        from scipy import ndimage

        return 2 * float(ndimage.distance_transform_edt(np.pad(self.mask, 1)).max())


@dataclass(frozen=True, eq=False)
class _Inked:
    """A picture without its paper. ink: 0 for paper, more for ink. parts: the number of each pixel's thing."""

    ink: Values
    noise: float
    peak: float
    parts: npt.NDArray[np.int32]
    things: list[_Thing]

    @classmethod
    def of(cls, picture: Values, paper: Values) -> "_Inked":
        from scipy import ndimage

        ink = picture - paper
        # The cube, because ink stands out further than noise; ratios, because in a shadow ink and its paper are near.
        ratios = np.log(picture + DARKEST) - np.log(paper + DARKEST)
        if (ratios**3).sum() < 0:  # dark on light
            ink = -ink / np.maximum(paper, 0.02)  # a shadow darkens ink and paper in proportion
        smooth = ndimage.gaussian_filter(ink, 1.0)
        beyond = smooth[smooth < 0]  # half of the noise, and no ink
        noise = 1.4826 * float(np.median(-beyond)) if beyond.size else 0.0
        peak = float(np.sort(smooth, axis=None)[-min(PEAK_PIXELS, smooth.size)])
        parts, _ = ndimage.label(smooth > max(0.3 * peak, 3.5 * noise), np.ones((3, 3)))
        things = []
        if peak >= max(LEAST_CONTRAST, LEAST_CONTRAST_TO_NOISE * noise):
            strong = set(np.unique(parts[smooth > 0.55 * peak]).tolist())
            for label, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
                mask = parts[rows, columns] == label
                thing = _Thing(label, rows.start, columns.start, rows.stop, columns.stop, mask)
                if label in strong and thing.extent >= LEAST_EXTENT * max(ink.shape):
                    things.append(thing)
        return cls(ink, noise, peak, parts, things)

    def drawing(self, things: list[_Thing]) -> Drawing:
        from scipy import ndimage

        # A little wider than the things, for the soft edges of ink.
        mask = ndimage.binary_dilation(np.isin(self.parts, [thing.label for thing in things]), iterations=3)
        return Drawing(np.where(mask, np.clip(self.ink - 2 * self.noise, 0, None) / self.peak, 0).clip(0, 1))

    def has_clear_edges(self) -> bool:
        """Report whether something is drawn and nothing reaches the picture's edge, as shadows do."""
        return bool(self.things) and not any(self._is_at_edge(thing) for thing in self.things)

    def fills_the_picture(self) -> bool:
        """Report whether the strokes of one digit reach all sides, as on a picture that was cut along its digit.

        The paper around each pixel cannot be told there, because most of what is around may be ink.
        """
        if not self.things or not _is_one(self.things) or any(self._is_frame(thing) for thing in self.things):
            return False
        height, width = self.ink.shape
        box_height = max(thing.bottom for thing in self.things) - min(thing.top for thing in self.things)
        box_width = max(thing.right for thing in self.things) - min(thing.left for thing in self.things)
        if box_height < FILLING_EXTENT * height or box_width < FILLING_EXTENT * width:
            return False
        return bool(max(thing.thickness for thing in self.things) <= THICKEST_STROKE * max(self.ink.shape))

    def things_apart_from_frames_and_specks(self) -> list[_Thing]:
        things = [thing for thing in self.things if not self._is_frame(thing)]
        at_edge = [thing for thing in things if self._is_at_edge(thing)]
        if len(at_edge) < len(things):
            things = [thing for thing in things if thing not in at_edge]
        else:  # what remains of a shadow's edge, unless it is large
            things = [thing for thing in things if thing.extent >= EDGE_EXTENT * max(self.ink.shape)]
        dot_extent = DOT_EXTENT * max(self.ink.shape)
        things = [thing for thing in things if thing.extent >= dot_extent or thing.thickness < DOT * thing.extent]
        largest = max((thing.extent for thing in things), default=0)
        return [thing for thing in things if thing.extent >= SPECK_EXTENT * largest]

    def _is_at_edge(self, thing: _Thing) -> bool:
        height, width = self.ink.shape
        return thing.top <= 1 or thing.left <= 1 or thing.bottom >= height - 1 or thing.right >= width - 1

    def _is_frame(self, thing: _Thing) -> bool:
        """Report whether a thing encloses another, or is a rectangle of lines about as large as the picture."""
        height, width = thing.mask.shape
        if any(_encloses(thing, other) for other in self.things):
            return True
        if height < FRAME_EXTENT * self.ink.shape[0] or width < FRAME_EXTENT * self.ink.shape[1]:
            return False
        thick = max(2, round(0.06 * min(height, width)))
        sides = (thing.mask[:thick], thing.mask[-thick:], thing.mask[:, :thick].T, thing.mask[:, -thick:].T)
        return all(side.any(axis=0).mean() > 0.9 for side in sides)


def _encloses(thing: _Thing, other: _Thing) -> bool:
    """Report whether another thing that is no speck lies within a hole of this one."""
    from scipy import ndimage

    top, left = other.top - thing.top, other.left - thing.left
    rows, columns = slice(top, other.bottom - thing.top), slice(left, other.right - thing.left)
    height, width = thing.mask.shape
    if top <= 0 or left <= 0 or rows.stop >= height or columns.stop >= width:
        return False
    if other.extent <= SPECK_EXTENT * thing.extent:
        return False
    return bool(ndimage.binary_fill_holes(thing.mask)[rows, columns][other.mask].all())


def _is_one(things: list[_Thing]) -> bool:
    """Report whether the things are pieces of one digit: near to each other, and no two as high, side by side."""
    if any(_are_side_by_side(one, other) for one, other in itertools.combinations(things, 2)):
        return False
    rest = sorted(things, key=lambda thing: thing.extent, reverse=True)
    whole = [rest.pop(0)]
    while rest:
        size = max(thing.extent for thing in whole)
        near = [thing for thing in rest if min(_gap(thing, other) for other in whole) <= PIECE_GAP * size]
        if not near:
            return False
        whole.append(near[0])
        rest.remove(near[0])
    return True


def _are_side_by_side(one: _Thing, other: _Thing) -> bool:
    """Report whether two things are about equally high, and beside each other rather than one above the other."""
    heights = one.bottom - one.top, other.bottom - other.top
    widths = one.right - one.left, other.right - other.left
    overlap = min(one.right, other.right) - max(one.left, other.left)
    return min(heights) >= SAME_HEIGHT * max(heights) and overlap < SAME_PLACE * min(widths)


def _gap(one: _Thing, other: _Thing) -> float:
    """Return the distance between the nearest pixels of two things."""
    from scipy import ndimage

    top, left = min(one.top, other.top), min(one.left, other.left)
    bottom, right = max(one.bottom, other.bottom), max(one.right, other.right)
    away = np.ones((bottom - top, right - left), dtype=bool)
    away[one.top - top : one.bottom - top, one.left - left : one.right - left] = ~one.mask
    distance = ndimage.distance_transform_edt(away)
    return float(
        distance[other.top - top : other.bottom - top, other.left - left : other.right - left][other.mask].min()
    )
