"""The report as it is sent to somebody: one file, opened from disk, with the network off."""

import re
from pathlib import Path

import nbformat
import pytest

from repsim import report

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VERDICTS = ("supported", "contradicted", "undecided", "not judged", "unspecific")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    page = tmp_path_factory.mktemp("report") / "index.html"
    texts = {"statement": "They are alike", "sentence": "They share 0.66 [0.58, 0.74] of it.", "reason": "Because."}
    claims = [{"id": f"C{i}", "verdict": verdict, **texts} for i, verdict in enumerate(VERDICTS, 1)]
    report.write(NOTEBOOKS, page, claims=claims, banner="The networks have learnt.", stale=[NOTEBOOKS[-2].stem])
    return page


@pytest.fixture
def opened(watched, page_file):
    def make(viewport=DESKTOP, **options):
        seen = watched(offline=True, viewport=viewport, **options)
        seen.page.goto(page_file.as_uri())
        return seen

    return make


def figures_in_sight(page):
    """Scroll through the page, as charts are drawn when they come near; all but those of the outdated chapter's fold."""
    page.evaluate("document.querySelectorAll('.fold').forEach(fold => { fold.open = true; })")
    for figure in page.locator("figure.chart").all():
        figure.scroll_into_view_if_needed()
        page.wait_for_timeout(60)
    page.wait_for_function("[...document.querySelectorAll('figure.chart')].every(f => f.matches('.live'))")
    page.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")
    page.wait_for_timeout(300)


def point_at(page, figure):
    """Move over a chart until it shows a tooltip; its text."""
    figure.scroll_into_view_if_needed()
    box = figure.locator("svg").first.bounding_box()
    for x, y in [(x / 20, y / 20) for y in (7, 9, 11) for x in range(4, 16)]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        page.wait_for_timeout(150)
        if page.locator("#vg-tooltip-element.visible").count():
            return page.locator("#vg-tooltip-element.visible").inner_text()
    raise AssertionError("no tooltip anywhere over the figure")


def test_every_figure_is_drawn_and_answers_offline(opened, page_file):
    page = opened().page
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    types = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    figures = sum("application/vnd.vegalite.v5+json" in data for data in types)
    assert page.locator("figure.chart").count() == figures > 10 and page_file.stat().st_size < 10_000_000
    figures_in_sight(page)
    labels = [one.get_attribute("aria-label") for one in page.locator("[role='graphics-document']").all()]
    assert len(labels) == figures and all(len(label) > 20 for label in labels)
    assert page.locator("math").count() > 5 and "$$" not in page.inner_text("body")
    assert "run this cell in JupyterLab" in page.inner_text("body")
    assert page.locator("#top figure.live").count() == 1 and page.locator("#top .claims li").count() == len(VERDICTS)
    assert re.search(r"\d\.\d\d", point_at(page, page.locator("figure.chart").nth(3)))


def test_the_sidebar_leads_to_every_chapter_and_opens_its_sections_on_demand(opened):
    page = opened().page
    for path in NOTEBOOKS:
        page.locator(f'nav a[href="#{path.stem}"]').click()
        page.wait_for_function(
            "id => Math.abs(document.getElementById(id).getBoundingClientRect().top) < 120", arg=path.stem
        )
        page.wait_for_function("id => document.querySelector('nav [aria-current]').hash === `#${id}`", arg=path.stem)
        (chapter,) = page.locator("nav .chapter[open]").all()
        assert chapter.locator("summary a").get_attribute("href") == f"#{path.stem}"
        assert path == NOTEBOOKS[0] or chapter.locator("li a").first.is_visible()
    first = page.locator("nav details.chapter").nth(1)
    first.locator("summary").click(position={"x": 5, "y": 12})
    assert first.locator("li a").first.is_visible() and page.url.endswith(NOTEBOOKS[-1].stem), (
        "without leaving the place"
    )


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_the_screen_and_the_scheme(opened, viewport):
    seen = opened(viewport, is_mobile=viewport is PHONE, has_touch=viewport is PHONE)
    page, name = seen.page, f"report-{'phone' if viewport is PHONE else 'desktop'}"
    figures_in_sight(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
        assert (sum(ground) / 3 > 200) == (scheme == "light")
        filters = {f.evaluate("f => getComputedStyle(f).filter") != "none" for f in page.locator("figure.plain").all()}
        assert filters == {scheme == "dark"}
        seen.shot(f"{name}-{scheme}-top")
    menu, link = page.locator("nav > details > summary"), page.locator('nav a[href="#01_training"]')
    assert menu.is_visible() == (viewport is PHONE) != link.is_visible()
    if viewport is PHONE:
        menu.click()
        seen.shot(f"{name}-menu")
        link.click()
        assert not link.is_visible(), "the menu is closed"
    page.locator("figure.chart").nth(8).scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    seen.shot(f"{name}-figure")


def test_without_scripts_there_are_pictures(opened):
    pictures = opened(java_script_enabled=False).page.locator("figure.chart img")
    assert pictures.count() > 10 and pictures.first.is_visible()
    assert all(picture.get_attribute("alt") for picture in pictures.all())


def test_it_prints_pictures_and_no_tooltip(opened):
    page = opened().page
    figure = page.locator("#top figure")
    figure.locator("svg").wait_for()
    point_at(page, figure)
    page.emulate_media(media="print")
    assert not page.locator("#vg-tooltip-element").is_visible() and not page.locator("nav").is_visible()
    assert figure.locator("img").is_visible() and not figure.locator("svg").is_visible()
    (ROOT / "screenshots").mkdir(exist_ok=True)
    document = page.pdf(path=ROOT / "screenshots" / "report.pdf", format="A4")
    assert document.startswith(b"%PDF") and len(document) > 200_000
