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


def draw_all(page: Page) -> None:
    """Scroll through the page, as figures are drawn when they come near."""
    for figure in page.locator("[data-figure]").all():
        figure.scroll_into_view_if_needed()
        expect(figure).to_have_attribute("data-drawn", "yes", timeout=20_000)


def test_page_opens_without_a_request(report: Opened, run: RunDir) -> None:
    draw_all(report.page)
    figures = report.page.locator("[data-figure]")
    assert figures.count() >= 13
    for number in range(figures.count()):
        assert figures.nth(number).locator("svg.main-svg").count() >= 1
    inside = report.page.locator("[data-figure=history] .scatterlayer .trace").count()
    assert inside >= 1
    assert [url for url in report.requests if not url.startswith(("data:", "blob:"))] == [run.paths.report.as_uri()]
    assert report.complaints == []


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
    figure.scroll_into_view_if_needed()
    expect(figure).to_have_attribute("data-drawn", "yes", timeout=20_000)
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
        figure = found.page.locator("[data-figure=train_loss]")
        figure.scroll_into_view_if_needed()
        expect(figure).to_have_attribute("data-drawn", "yes", timeout=20_000)
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
        draw_all(found.page)
        script = "() => getComputedStyle(document.querySelector('figure')).backgroundColor"
        ground = luminance(found.page.evaluate(script))
        fills = {(name, tag, luminance(fill)) for name, tag, fill in found.page.evaluate(texts)}
        assert len({name for name, _, _ in fills}) >= 12
        for name, tag, fill in fills:
            contrast = (max(fill, ground) + 0.05) / (min(fill, ground) + 0.05)
            assert (contrast > 4.5) if tag == "text" else (contrast < 1.1), (name, tag, contrast)


def test_narrow_screen_does_not_scroll_sideways(chromium: Browser, run: RunDir) -> None:
    for found in opened(chromium, run.paths.report, viewport={"width": 360, "height": 740}):
        draw_all(found.page)
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


def test_page_prints_in_full(report: Opened, tmp_path: Path) -> None:
    draw_all(report.page)
    content = report.page.pdf(path=tmp_path / "report.pdf", print_background=True)
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page/") + content.count(b"/Type/Page") > 3
    report.page.emulate_media(media="print")
    assert report.page.locator(".tallest").evaluate("each => each.scrollHeight - each.clientHeight") <= 1


@pytest.mark.parametrize("until", ["searched", "selected"])
def test_unfinished_run_opens(chromium: Browser, tmp_path: Path, until: Until) -> None:
    made = make_up(made_up_spec(tmp_path), until=until)
    write_report(made)
    for found in opened(chromium, made.paths.report):
        draw_all(found.page)
        expect(found.page.locator(".missing")).to_be_visible()
        assert found.complaints == []
