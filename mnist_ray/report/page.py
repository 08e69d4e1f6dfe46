"""One HTML file that needs nothing beside it: template, style, script and plotly's own bundle in one.

The bundle builds functions at run time for WebGL traces alone, which the page's content security policy forbids; no
figure of a report has one, Optuna's parallel coordinates included (docs/decisions/0009).
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs


def render(context: Mapping[str, Any], figures: Mapping[str, go.Figure], curves: Mapping[str, Any]) -> bytes:
    """The page. context: the template's values, escaped as they are put in; figures: by the id that the context gives
    them; curves: of each training, as `report.js` reads them.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(_text("report.html.jinja"))
    scripts = [get_plotlyjs(), _text("report.js")]
    payload = {"figures": {name: _plain(figure) for name, figure in figures.items()}, "curves": curves}
    page = template.render(
        **context,
        css=Markup(_text("report.css")),
        plotly=Markup(scripts[0]),
        script=Markup(scripts[1]),
        script_hashes=Markup(" ".join(_hash_source(script) for script in scripts)),
        payload=htmlsafe_json_dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False),
    )
    return page.encode()


def _text(name: str) -> str:
    return files(__package__).joinpath("page_files", name).read_text(encoding="utf-8")


def _hash_source(script: str) -> str:
    """As a content security policy names an inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Builtin types, without the template: the page has its own, light and dark."""
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return {"data": plain["data"], "layout": plain["layout"]}
