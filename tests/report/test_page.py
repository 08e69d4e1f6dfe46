"""The parts of plotly in the page keep to the page's policy."""

import json
import re
from pathlib import Path

import numpy as np
import plotly.colors
from PIL import Image
from plotly.offline import get_plotlyjs

from mnist_ray.report.figures import DIFFERENCE_COLOUR, ROLE_COLOURS
from mnist_ray.report.review import Review
from mnist_ray.report.write import report_html
from tests.report.made_up import made_up_spec, make_up

DOCS = Path(__file__).parents[2] / "docs"
DRAWN_IN_SVG = {"bar", "heatmap", "scatter"}  # a WebGL trace builds functions at run time


def test_figures_need_no_webgl(tmp_path: Path) -> None:
    """The browser's tests draw them all; this one names the trace that would be refused on a machine with WebGL."""
    page = report_html(Review.of(make_up(made_up_spec(tmp_path, search={"num_trials": 1200})))).decode()
    payload = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert payload is not None
    figures = json.loads(payload[1])["figures"]
    assert len(figures) >= 16
    kinds = {trace.get("type", "scatter") for figure in figures.values() for trace in figure["data"]}
    assert kinds <= DRAWN_IN_SVG


def test_picture_has_the_colours_of_the_page() -> None:
    """The README's picture, by the two roles and the difference."""
    pixels = np.asarray(Image.open(DOCS / "report.png").convert("RGB")).reshape(-1, 3).astype(int)
    for colour in (*ROLE_COLOURS.values(), DIFFERENCE_COLOUR):
        distances = np.abs(pixels - plotly.colors.hex_to_rgb(colour)).max(axis=1)
        assert (distances < 40).sum() > 50, colour


def test_plotly_stays_inside_its_element() -> None:
    assert "</script" not in get_plotlyjs() and "\r" not in get_plotlyjs()
