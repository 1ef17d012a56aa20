"""The report as it is sent to somebody: one file, opened from disk, with the network off."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from repsim import publish, report, robustness
from repsim.charts import MIME

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1440, "height": 900}


def attacked(claims):
    """A card with every outcome: the verdicts before are real, those after are every one in turn."""
    verdicts = ["supported", "not supported", "undecided"]
    for i, attack in enumerate(
        ["biased estimator", "RBF kernel", "images in any top 1 % dropped", "input regressed out"]
    ):
        for j, claim in enumerate(claims[: 7 - i]):
            before, after = claim["verdict"], verdicts[(i + j) % 3]
            because = "" if before == after else claim["parts"][0]["statement"]
            row = {"claim": claim["id"], "attack": attack, "before": before, "after": after}
            yield {**row, "outcome": robustness.outcome(before, after), "because": because}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    claims = json.loads((publish.PUBLISHED / "claims.json").read_text())
    notebooks, card = [ROOT / "notebooks" / name for name in NOTEBOOKS], list(attacked(claims))
    out, summary = tmp_path_factory.mktemp("report") / "index.html", report.summarise(claims, card)
    return report.write(notebooks, out, claims=claims, card=card, summary=summary)


@pytest.fixture
def opened(watched, page_file):
    def make(viewport=DESKTOP, **options):
        seen = watched(offline=True, viewport=viewport, **options)
        seen.page.goto(page_file.as_uri())
        return seen

    return make


def draw_all(page):
    """Scroll through the page, as figures are drawn when they come into sight."""
    for figure in page.locator("figure.figure").all():
        figure.scroll_into_view_if_needed()
        page.wait_for_timeout(60)
    page.wait_for_function(
        "[...document.querySelectorAll('figure.figure')].every(f => f.querySelector('.chart canvas, .chart svg'))"
    )


def test_every_figure_is_drawn_and_answers_offline(opened, page_file):
    seen = opened()
    page = seen.page
    expected = 0
    for name in NOTEBOOKS:
        cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
        expected += sum(MIME in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert page.locator("figure.figure").count() == expected > 10
    draw_all(page)
    page.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")
    seen.shot("report-desktop")
    assert page_file.stat().st_size < 10_000_000
    assert page.locator("#top .claims li").count() == 7 and page.locator("#top .card td.overturned").count() > 0
    said = page.locator("figure.figure .chart[role='graphics-document']")
    assert said.count() == expected and all(len(one.get_attribute("aria-label")) > 20 for one in said.all())
    for name in NOTEBOOKS:
        assert page.locator(f"[id='{name.removesuffix('.ipynb')}']").count() == 1
    assert page.locator("math").count() > 5 and not re.search(r"\$\$|kept\d{6}kept", page.inner_text("body"))
    assert "run this cell in JupyterLab" in page.inner_text("body")

    figure = page.locator("figure.figure").nth(3)
    figure.scroll_into_view_if_needed()
    box = figure.locator("canvas, svg").first.bounding_box()
    for x, y in [(x / 20, y / 20) for y in (7, 9, 11) for x in range(4, 16)]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        page.wait_for_timeout(150)
        if page.locator("#vg-tooltip-element.visible").count():
            break
    assert re.search(r"\d\.\d\d", page.locator("#vg-tooltip-element.visible").inner_text())
    seen.shot("report-tooltip")


def test_navigation_leads_to_every_notebook(opened):
    seen = opened()
    page = seen.page
    for name in NOTEBOOKS:
        stem = name.removesuffix(".ipynb")
        page.locator(f'nav a[href="#{stem}"]').first.click()
        page.wait_for_function(
            "id => Math.abs(document.getElementById(id).getBoundingClientRect().top) < 120", arg=stem
        )
        assert page.url.endswith(f"#{stem}")
    for link in page.locator("a[href^='#']").all():
        target = link.get_attribute("href")[1:]
        assert not target or page.evaluate("id => document.getElementById(id) !== null", target), target


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_the_screen_and_the_scheme(opened, viewport, scheme):
    seen = opened(viewport, color_scheme=scheme, is_mobile=viewport is PHONE, has_touch=viewport is PHONE)
    page = seen.page
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    light = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3"
    )
    assert (light > 200) == (scheme == "light")
    name = f"report-{'phone' if viewport is PHONE else 'desktop'}-{scheme}"
    page.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")
    page.wait_for_timeout(300)
    seen.shot(f"{name}-top")
    page.locator("[id='02_layerwise_comparison']").scroll_into_view_if_needed()
    page.locator("figure.figure").nth(8).scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    seen.shot(f"{name}-figure")


def test_without_scripts_there_are_pictures(watched, page_file):
    seen = watched(offline=True, viewport=DESKTOP, java_script_enabled=False)
    seen.page.goto(page_file.as_uri())
    pictures = seen.page.locator("figure.figure img")
    assert pictures.count() > 10 and pictures.first.is_visible()
    assert all(picture.get_attribute("alt") for picture in pictures.all())


def test_it_prints(opened):
    seen = opened()
    seen.page.emulate_media(media="print")
    (ROOT / "screenshots").mkdir(exist_ok=True)
    document = seen.page.pdf(path=ROOT / "screenshots" / "report.pdf", format="A4")
    assert document.startswith(b"%PDF") and len(document) > 200_000
