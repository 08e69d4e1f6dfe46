"""The bundle in the package is the strict one of the version that the figures are made for."""

import hashlib
from importlib.resources import files

from plotly.offline import get_plotlyjs_version

from mnist_ray.reviewing.page import PLOTLY_BUNDLE, plotly_bundle

# Of package/plotly-strict.min.js in the npm package.
SHA256 = "4ac841837b31c1bfd2ab140e3a248ddcc6c2106978fbf2c1c18a7aada930a37a"


def test_it_is_npms_file_unchanged() -> None:
    assert hashlib.sha256(plotly_bundle().encode()).hexdigest() == SHA256
    assert (files("mnist_ray.reviewing") / "page" / PLOTLY_BUNDLE).is_file()


def test_figures_are_made_for_it() -> None:
    bundle = plotly_bundle()
    assert f"plotly.js (strict - minified) v{get_plotlyjs_version()}\n" in bundle[:200]
    assert "</script" not in bundle and "\r" not in bundle
