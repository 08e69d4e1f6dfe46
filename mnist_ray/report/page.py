"""One HTML file that needs nothing beside it: template, style, script and plotly's own bundle in one.

The bundle builds functions at run time for WebGL traces alone, which the page's content security policy forbids; no
figure of a report has such a trace, Optuna's parallel coordinates included (docs/decisions/0009).
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mnist_ray.report.analysis.findings import Finding
from mnist_ray.report.analysis.verdict import Verdict
from mnist_ray.report.errors import Errors, Gallery
from mnist_ray.report.illustrations import Illustration
from mnist_ray.report.tables import Curve, Table, TrainingsTable


@dataclass(frozen=True)
class Page:
    """Everything that the page shows; texts are escaped when the template takes them in."""

    name: str
    data_name: str
    began: str
    ended: str | None
    verdict: Verdict
    roles: Table
    role_figures: list[Illustration]
    definitions: list[tuple[str, str]]
    missing: list[str]  # of an unfinished run
    warnings: list[Finding]
    models: Table
    configurations: Table
    second_tests: Mapping[str, list[str]]
    divided: list[Gallery]
    curves: list[Illustration]
    key_findings: list[str]
    candidates: Table
    search_note: str
    other_findings: list[str]
    search_figures: list[Illustration]
    trainings: TrainingsTable
    training_curves: Mapping[str, Curve]
    errors: Errors | None
    error_figures: list[Illustration]
    costs: Table
    time_text: str
    time_figures: list[Illustration]
    protocol: list[str]
    provenance: list[tuple[str, str]]
    commands: str
    spec: str
    version: str
    num_events: int

    @property
    def contents(self) -> list[tuple[str, str]]:
        """The sections that have something to show: their ids and titles."""
        sections = [
            ("verdict", "Verdict", True),
            ("models", "Models", self.models.rows),
            ("divided", "Who is right", self.divided),
            ("curves", "Curves", self.curves),
            ("search", "Search", self.key_findings or self.other_findings),
            ("errors", "Errors", self.errors),
            ("costs", "Costs", self.costs.rows),
            ("table", "All trainings", self.trainings.rows),
            ("protocol", "Protocol", True),
            ("provenance", "Provenance", True),
            ("repeat", "Repeat it", True),
        ]
        return [(name, title) for name, title, is_there in sections if is_there]

    @property
    def drawings(self) -> dict[str, go.Figure]:
        """The figures by their ids."""
        shown = [*self.role_figures, *self.curves, *self.search_figures, *self.error_figures, *self.time_figures]
        return {each.id: each.drawing for each in shown}


def render(page: Page) -> bytes:
    """Return the page as HTML. Equal bytes for equal pages."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(page_file("report.html.jinja"))
    plotly, script = get_plotlyjs(), page_file("report.js")
    payload = {
        "figures": {name: _plain(figure) for name, figure in page.drawings.items()},
        "curves": {name: asdict(curve) for name, curve in page.training_curves.items()},
    }
    html = template.render(
        page=page,
        css=Markup(page_file("report.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        script_hashes=Markup(f"{_hash_source(plotly)} {_hash_source(script)}"),
        payload=htmlsafe_json_dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False),
    )
    return html.encode()


def page_file(name: str) -> str:
    """Return a template, the style or the script."""
    return files(__package__).joinpath("page_files", name).read_text(encoding="utf-8")


def _hash_source(script: str) -> str:
    """Return the name of an inline script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Return a figure in builtin types, without its template: the page has its own, light and dark."""
    plain = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return {"data": plain["data"], "layout": plain["layout"]}
