"""The report in a real browser: it opens from disk without a request or an error, and does what it shows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from mnist_ray.record.rundir import RunDir
from mnist_ray.report.write import write_report
from tests.report.made_up import Until, made_up_spec, make_up

HOSTILE_REASON = (
    "<img src=x onerror=\"document.title='harmed'\"><script>document.title='harmed'</script> {{ 7*7 }} =1+1"
)
LONG_REASON = (
    "RuntimeError: the worker's memory ran out at step 1234, and no other node of the cluster had any to spare"
)
HOSTILE_FOLDER = "<img src=x onerror=\"document.title='harmed'\"> <b>"


@dataclass
class Opened:
    """A page, and everything that it asked for or complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    storage = tmp_path_factory.mktemp("runs") / HOSTILE_FOLDER  # which the page shows in the resolved spec
    made = make_up(
        made_up_spec(storage, name="made.up-run_1", search={"num_trials": 40}),
        failures=(4, 9),
        reason=HOSTILE_REASON,
    )
    write_report(made)
    return made


def opened(chromium: Browser, report: Path, **options: Any) -> Iterator[Opened]:
    context = chromium.new_context(**options)
    page = context.new_page()
    found = Opened(page)
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.goto(report.as_uri())
    yield found
    context.close()


@pytest.fixture
def report(chromium: Browser, run: RunDir) -> Iterator[Opened]:
    yield from opened(chromium, run.paths.report, color_scheme="light", viewport={"width": 1280, "height": 900})


@pytest.fixture(scope="module")
def run_with_all_parts(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Every hyperparameter has its column."""
    parts = {"schedule": "cosine", "ema": 0.1, "weight_decay": 0.01, "augment": 1.0}
    made = make_up(made_up_spec(tmp_path_factory.mktemp("runs"), training=parts), failures=(4,), reason=LONG_REASON)
    write_report(made)
    return made


def unfold(page: Page) -> None:
    """Open everything that is folded away, and wait until its figures are drawn."""
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    page.wait_for_function("document.querySelectorAll('[data-figure]:not([data-drawn])').length === 0")


def test_page_opens_without_a_request(report: Opened, run: RunDir) -> None:
    unfold(report.page)
    figures = report.page.locator("[data-figure]")
    assert figures.count() >= 16
    for number in range(figures.count()):
        assert figures.nth(number).locator("svg.main-svg").count() >= 1
    inside = report.page.locator("[data-figure=history] .scatterlayer .trace").count()
    assert inside >= 1
    assert [url for url in report.requests if not url.startswith(("data:", "blob:"))] == [run.paths.report.as_uri()]
    assert report.complaints == []


def test_figures_are_drawn_at_once(report: Opened) -> None:
    """Without scrolling, or a picture of the whole page has blanks. What is folded away has no size yet."""
    undrawn = report.page.locator("[data-figure]:not(:has(svg.main-svg))")
    assert report.page.locator("[data-figure]:has(svg.main-svg)").count() >= 8
    for number in range(undrawn.count()):
        assert undrawn.nth(number).evaluate("each => each.closest('details:not([open])') !== null")


def test_policy_forbids_eval_and_requests(report: Opened) -> None:
    later = (
        "() => new Promise((done) => setTimeout(() => { try { done(eval('1')) } catch (error) { done(error.name) } }))"
    )
    refusal = report.page.evaluate(later)  # at once, the debugger's own leave would count
    assert refusal == "EvalError"
    reached = report.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')")
    assert reached == "refused"
    assert any("Content Security Policy" in text for text in report.complaints)


def test_figure_is_saved_as_an_image(report: Opened) -> None:
    figure = report.page.locator("[data-figure=train_loss]")
    figure.hover()
    with report.page.expect_download(timeout=20_000) as download:
        figure.locator("[data-title*=ownload]").first.click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    assert report.complaints == []


def column(page: Page, index: int) -> list[str]:
    rows = page.locator("#trainings tbody tr:visible")
    return [text.strip() for text in rows.locator(f":nth-child({index})").all_inner_texts()]


def test_table_sorts_by_number(report: Opened) -> None:
    heading = report.page.locator("#trainings thead th", has_text="val loss")
    index = report.page.locator("#trainings thead th").all_inner_texts().index("val loss") + 1
    heading.locator("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    values = [float(text) for text in column(report.page, index) if text]
    assert values == sorted(values) and len(values) > 30
    assert column(report.page, index)[-1] == ""
    heading.locator("button").click()
    values = [float(text) for text in column(report.page, index) if text]
    assert values == sorted(values, reverse=True)
    assert column(report.page, index)[-1] == ""


def test_table_filters_and_counts(report: Opened) -> None:
    total = report.page.locator("#trainings tbody tr").count()
    report.page.fill("#filter", "failed")
    assert report.page.locator("#trainings tbody tr:visible").count() == 2
    expect(report.page.locator("#count")).to_have_text(f"2 of {total}")
    report.page.fill("#filter", "")
    assert report.page.locator("#trainings tbody tr:visible").count() == total


def test_row_opens_its_curve(report: Opened) -> None:
    report.page.locator("button.open", has_text="trial-0000").first.focus()
    report.page.keyboard.press("Enter")
    dialog = report.page.locator("#curve")
    expect(dialog).to_be_visible()
    expect(dialog.locator("h3")).to_have_text("trial-0000")
    expect(dialog.locator("svg.main-svg").first).to_be_visible()
    assert dialog.locator(".scatterlayer .trace").count() >= 4
    report.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    report.page.locator("button.open", has_text="trial-0004").click()
    expect(dialog.locator("#curve-text")).to_have_text("No epoch of this training is on record.")


def test_hostile_texts_do_no_harm(report: Opened) -> None:
    assert report.page.title() == "made.up-run_1 · mnist_ray report"
    assert report.page.locator("#trainings td", has_text="onerror").count() == 2
    assert report.page.locator("img[src=x]").count() == 0
    assert "<img src=x onerror=" in (report.page.locator("#repeat details code").text_content() or "")
    assert report.page.locator("#trainings").get_by_text("{{ 7*7 }}").count() == 2


def colours_of(page: Page) -> tuple[str, str]:
    script = "() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color] }"
    ground, ink = page.evaluate(script)
    return ground, ink


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes_are_readable(chromium: Browser, run: RunDir, scheme: str) -> None:
    for found in opened(chromium, run.paths.report, color_scheme=scheme, viewport={"width": 1280, "height": 900}):
        colour, text_colour = colours_of(found.page)
        ground, ink = luminance(colour), luminance(text_colour)
        assert (ground > ink) == (scheme == "light")
        lighter, darker = max(ground, ink), min(ground, ink)
        assert (lighter + 0.05) / (darker + 0.05) > 7
        script = "() => document.querySelector('[data-figure=train_loss]')._fullLayout.paper_bgcolor"
        before: str = found.page.evaluate(script)
        found.page.locator("#theme").click()
        found.page.wait_for_function(f"({script})() !== '{before}'")
        assert colours_of(found.page)[0] != colour
        assert found.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_follow_the_theme(chromium: Browser, run: RunDir, scheme: str) -> None:
    """But for the confusion matrix, whose numbers stand on colours."""
    texts = """() => [...document.querySelectorAll('[data-figure]:not([data-figure=confusion])')].flatMap((figure) =>
        [...figure.querySelectorAll('text'), ...figure.querySelectorAll('rect.bg')].map((each) =>
            [figure.dataset.figure, each.tagName, getComputedStyle(each)]))
        .filter(([name, tag, style]) => style.fillOpacity !== '0' && !style.fill.endsWith(', 0)'))  // seen through
        .map(([name, tag, style]) => [name, tag, style.fill])"""
    for found in opened(chromium, run.paths.report, color_scheme=scheme, viewport={"width": 1280, "height": 900}):
        unfold(found.page)
        script = "() => getComputedStyle(document.querySelector('figure')).backgroundColor"
        ground = luminance(found.page.evaluate(script))
        fills = {(name, tag, luminance(fill)) for name, tag, fill in found.page.evaluate(texts)}
        assert len({name for name, _, _ in fills}) >= 12
        for name, tag, fill in fills:
            contrast = (max(fill, ground) + 0.05) / (min(fill, ground) + 0.05)
            assert (contrast > 4.5) if tag == "text" else (contrast < 1.1), (name, tag, contrast)


def test_narrow_screen_does_not_scroll_sideways(chromium: Browser, run: RunDir) -> None:
    for found in opened(chromium, run.paths.report, viewport={"width": 360, "height": 740}):
        unfold(found.page)
        assert found.page.evaluate("document.documentElement.scrollWidth") <= 360
        assert found.complaints == []


def test_page_is_accessible(report: Opened) -> None:
    unnamed = report.page.evaluate(
        """() => [...document.querySelectorAll('img, [role=img], button, input, section, [role=region]')]
            .filter((each) => !(each.alt || each.getAttribute('aria-label') || each.textContent.trim() ||
                each.labels?.length || document.getElementById(each.getAttribute('aria-labelledby'))?.textContent))
            .map((each) => each.outerHTML)"""
    )
    assert unnamed == []
    tags = report.page.locator("h1, h2, h3").evaluate_all("all => all.map(e => e.tagName)")
    levels = [int(name[1]) for name in tags]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert report.page.locator("html").get_attribute("lang") == "en"
    report.page.keyboard.press("Tab")
    assert report.page.evaluate("document.activeElement.className") == "skip"


WIDTHS_OF_TABLES = """() => [...document.querySelectorAll('.scroll')].filter((each) => each.offsetParent)
    .map((each) => [each.getAttribute('aria-label'), each.scrollWidth - each.clientWidth])"""


def test_tables_fit_a_desktop(chromium: Browser, run_with_all_parts: RunDir) -> None:
    """With every hyperparameter in use, no accuracy and no reason is cut off."""
    for found in opened(chromium, run_with_all_parts.paths.report, viewport={"width": 1280, "height": 900}):
        widths = dict(found.page.evaluate(WIDTHS_OF_TABLES))
        assert len(widths) >= 7 and {name for name, hidden in widths.items() if hidden > 0} == set()
        reason = found.page.locator("#trainings .remark", has_text=LONG_REASON)
        box = reason.bounding_box()
        assert box is not None and box["x"] + box["width"] <= 1280


def test_accuracy_shows_on_a_phone(chromium: Browser, run_with_all_parts: RunDir) -> None:
    for found in opened(chromium, run_with_all_parts.paths.report, viewport={"width": 390, "height": 844}):
        for label in ("Test scores by role", "Models"):
            region = found.page.locator(f"[aria-label='{label}']")
            cells = region.locator("tbody tr:first-child td", has_text=re.compile(r"^\d+\.\d\d %"))
            box = cells.first.bounding_box()
            assert box is not None and box["x"] + box["width"] <= 390, label


WHAT_IS_PRINTED = """() => window.addEventListener('beforeprint', () => {
    const widths = [...document.querySelectorAll('svg.main-svg')].map((each) => each.width.baseVal.value);
    window.printed = {
        undrawn: document.querySelectorAll('[data-figure]:not(:has(svg.main-svg))').length,
        widest: Math.max(...widths),
        folded: document.querySelectorAll('details:not([open])').length,
        theme: document.documentElement.dataset.theme,
    };
})"""


def test_page_prints_in_full(chromium: Browser, run_with_all_parts: RunDir, tmp_path: Path) -> None:
    """On white, with what is folded away and every figure; afterwards the page is as it was."""
    before = "() => [...document.querySelectorAll('details')].map((each) => each.open)"
    for found in opened(chromium, run_with_all_parts.paths.report, color_scheme="dark"):
        page = found.page
        folded, ground = page.evaluate(before), colours_of(page)[0]
        page.evaluate(WHAT_IS_PRINTED)
        content = page.pdf(path=tmp_path / "report.pdf", print_background=True, format="A4")
        assert len(re.findall(rb"/Type ?/Page\b(?!s)", content)) > 3
        printed = page.evaluate("window.printed")
        assert (printed["undrawn"], printed["folded"], printed["theme"]) == (0, 0, "light")
        assert printed["widest"] <= 700, "wider than a page"
        assert page.evaluate(before) == folded and colours_of(page)[0] == ground
        page.set_viewport_size({"width": 718, "height": 1000})  # A4 within Chromium's own margins
        page.emulate_media(media="print")
        widths = dict(page.evaluate(WIDTHS_OF_TABLES))
        assert {name for name, hidden in widths.items() if hidden > 0} == set()
        assert page.locator(".tallest").evaluate("each => each.scrollHeight - each.clientHeight") <= 1
        assert found.complaints == []


def test_texts_and_tables_need_no_script(chromium: Browser, run: RunDir) -> None:
    options = {"java_script_enabled": False, "viewport": {"width": 1280, "height": 900}}
    for found in opened(chromium, run.paths.report, **options):
        expect(found.page.locator(".conclusion")).to_contain_text("selected configuration")
        expect(found.page.locator("#trainings tbody tr").first).to_be_visible()
        expect(found.page.locator("figure").first).to_be_hidden()
        expect(found.page.locator("#filter")).to_be_hidden()
        folded = found.page.locator("#search details li").first
        expect(folded).to_be_hidden()
        found.page.emulate_media(media="print")
        expect(folded).to_be_visible()


@pytest.mark.parametrize("until", ["searched", "selected"])
def test_unfinished_run_opens(chromium: Browser, tmp_path: Path, until: Until) -> None:
    made = make_up(made_up_spec(tmp_path), until=until)
    write_report(made)
    for found in opened(chromium, made.paths.report):
        unfold(found.page)
        expect(found.page.locator(".missing")).to_be_visible()
        assert found.complaints == []
