"""What a reader of the notebooks meets in JupyterLab: every notebook is opened and run, figures answer, links lead on."""

import re
from pathlib import Path

import nbformat
import pytest

from repsim.render import MIME

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
EXPLORER = "09_your_own_models.ipynb"
SIZE = {"width": 1500, "height": 950}

# JupyterLab's own, in a server without language servers and collaboration; nothing of the notebooks is among them.
ALLOWED = [r"/lsp/status", r"favicon", r"ResizeObserver loop"]
RUN_TIME = 600_000


def stored(name):
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def code_cells(name):
    return [cell for cell in stored(name).cells if cell.cell_type == "code"]


def charts_in(name):
    return sum(MIME in output.get("data", {}) for cell in code_cells(name) for output in cell.outputs)


@pytest.fixture
def open_notebook(watched, lab):
    def opened(name, **options):
        seen = watched(allowed=ALLOWED, viewport=SIZE, **options)
        seen.page.goto(lab[0](name))
        seen.page.wait_for_selector(".jp-Notebook .jp-Cell .jp-RenderedMarkdown h1")
        seen.page.wait_for_function(
            "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
        )
        return seen

    return opened


def run_all(seen, name):
    """Run > Run All Cells, until every cell has its number."""
    page = seen.page
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    expected = [f"[{i + 1}]:" for i in range(len(code_cells(name)))]
    page.wait_for_function(
        """expected => {
            const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')]
            const said = prompts.map(prompt => prompt.textContent.trim()).filter(text => text !== '[ ]:')
            const idle = document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status === 'idle'
            const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
            return failed || (idle && expected.every((text, i) => said[i] === text))
        }""",
        arg=expected,
        timeout=RUN_TIME,
    )


def runs_and_shows_what_it_should(seen, name):
    page = seen.page
    seen.shot(f"lab-{name[:2]}-first-screen")
    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.get_by_role("menuitem", name="Clear Outputs of All Cells").click()
    assert page.locator(".jp-Notebook .vega-embed").count() == 0
    run_all(seen, name)

    outputs = page.locator(".jp-Notebook .jp-OutputArea-output")
    for kind in ("error", "stderr"):
        found = page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]')
        assert found.count() == 0, found.all_inner_texts()
    raw = re.compile(r"VBox\(|Dropdown\(|HTML\(|model not found|Loading widget|alt\.\w*Chart|<IPython|<repsim")
    assert not raw.search("\n".join(outputs.all_inner_texts()))

    # live figures, each with a size
    page.wait_for_function(
        "n => document.querySelectorAll('.jp-Notebook .jp-RenderedVegaCommon5 canvas').length === n",
        arg=charts_in(name),
    )
    for canvas in page.locator(".jp-RenderedVegaCommon5 canvas").all():
        assert canvas.bounding_box()["width"] > 200

    # mathematics, tables and headings
    maths = any("$$" in cell.source for cell in stored(name).cells if cell.cell_type == "markdown")
    assert (page.locator(".jp-Notebook mjx-container").count() > 0) >= maths
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    for table in page.locator(".jp-OutputArea-output table").all():
        assert table.locator("tr").count() > 1
    headings = sum(
        cell.source.count("\n## ") + cell.source.startswith("## ")
        for cell in stored(name).cells
        if cell.cell_type == "markdown"
    )
    page.get_by_role("tab", name="Table of Contents").click()
    page.wait_for_selector(".jp-TableOfContents-content .jp-tocItem")
    assert page.locator(".jp-TableOfContents-content .jp-tocItem").count() >= headings + 1

    # all of it in one picture
    height = page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
    page.set_viewport_size({"width": SIZE["width"], "height": min(height + 150, 14_000)})
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    page.wait_for_timeout(800)
    seen.shot(f"lab-{name[:2]}-all")
    page.set_viewport_size(SIZE)


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != EXPLORER])
def test_a_notebook_runs_and_shows_what_it_should(open_notebook, name):
    runs_and_shows_what_it_should(open_notebook(name), name)


def tooltip(page, canvas, places):
    """Move over the figure until a tooltip is there; its text and the place."""
    canvas.evaluate("figure => figure.scrollIntoView({block: 'center'})")
    page.wait_for_timeout(300)
    box = canvas.bounding_box()
    for x, y in places:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        page.wait_for_timeout(300)
        shown = page.locator("#vg-tooltip-element.visible")
        if shown.count():
            return shown.inner_text(), (box["x"] + x * box["width"], box["y"] + y * box["height"])
    raise AssertionError("no tooltip anywhere over the figure")


ACROSS = [(x / 20, y / 20) for y in (6, 8, 10) for x in range(6, 15)]


def test_a_stored_figure_says_what_a_cell_is_without_a_run(open_notebook):
    seen = open_notebook("02_layerwise_comparison.ipynb")
    page = seen.page
    maps = page.locator(".jp-RenderedVegaCommon5", has=page.locator("canvas"))
    linked = page.locator(".jp-RenderedVegaCommon5", has=page.locator("select")).first
    linked.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    text, _ = tooltip(page, linked.locator("canvas"), ACROSS)
    assert re.search(r"sl-0 \(row\):\s*\S+", text) and re.search(r"simclr-1 \(column\):\s*\S+", text)
    assert re.search(r"CKA:\s*-?\d\.\d\d \[-?\d\.\d\d, -?\d\.\d\d\]", text)
    assert maps.count() == charts_in("02_layerwise_comparison.ipynb")
    seen.shot("lab-02-tooltip")
    before = linked.locator("canvas").screenshot()
    linked.locator("select").select_option("stem")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    assert linked.locator("canvas").screenshot() != before


def test_your_own_models_run_and_the_explorer_answers_clicks_and_keys(open_notebook):
    seen = open_notebook(EXPLORER)
    page = seen.page
    runs_and_shows_what_it_should(seen, EXPLORER)
    view = page.locator(".jp-OutputArea-output .jupyter-widgets.widget-vbox").first
    view.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('.jupyter-widgets .vega-embed .marks').length === 2")
    page.wait_for_timeout(1000)
    status = view.get_by_role("status")
    assert re.search(r"unbiased CKA -?\d\.\d\d \[", status.inner_text())

    canvas = view.locator(".vega-embed .marks").first
    text, place = tooltip(page, canvas, ACROSS)
    row, column = (re.search(rf"{end}\):?\s*(\S+)", text)[1] for end in ("row", "column"))
    pictures = view.locator("img").first.get_attribute("src")
    page.mouse.click(*place)
    page.wait_for_function(
        "([row, column]) => [row, column].every(t => document.querySelector('[role=status]').innerText.includes(t))",
        arg=[row, column],
    )
    assert (
        view.get_by_label("Row layer").input_value() == row and view.get_by_label("Col. layer").input_value() == column
    )
    page.wait_for_function("before => document.querySelector('.widget-vbox img').src !== before", arg=pictures)
    assert view.locator("img").count() == 2 and all(image.get_attribute("alt") for image in view.locator("img").all())
    page.mouse.move(0, 0)
    seen.shot("explorer-clicked")

    # by keyboard alone: menus, text, buttons
    menu = view.get_by_label("Row layer")
    menu.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('[role=status]').innerText.includes('· layer1.0.residual\\n')")
    assert menu.input_value() == "layer1.0.residual"
    view.get_by_label("Images").fill("3, 5")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.widget-vbox img').alt.includes('image 3:')")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Where they differ"
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('.widget-vbox img').alt.includes('image 3:')")

    view.get_by_label("Measure").select_option("mutual 10-NN")
    page.wait_for_function("document.querySelector('[role=status]').innerText.includes('mutual 10-NN')")
    view.get_by_label("Columns", exact=True).select_option("resnet")
    page.wait_for_function("document.querySelectorAll('[role=status]')[0].innerText.split('resnet').length === 3")
    page.wait_for_timeout(1500)
    seen.shot("explorer-other-measure")

    page.set_viewport_size({"width": 1000, "height": 900})
    page.wait_for_timeout(500)
    seen.shot("explorer-narrow")


def test_lab_opens_on_the_overview_and_links_lead_on(watched, lab):
    seen = watched(allowed=ALLOWED, viewport=SIZE)
    page = seen.page
    page.goto(lab[1])
    page.wait_for_selector('.lm-TabBar-tab.lm-mod-current:has-text("00_overview.ipynb")')
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-RenderedMarkdown h1")
    assert "00_overview.ipynb" in page.url
    title = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) h1").inner_text()
    assert title.startswith("Do self-supervised and supervised methods")
    visited = {"00_overview.ipynb"}
    for name in [n for n in NOTEBOOKS if n in "".join(c.source for c in stored("00_overview.ipynb").cells)]:
        page.locator(".lm-TabBar-tab", has_text="00_overview.ipynb").first.click()
        link = page.locator(f'.jp-NotebookPanel:not(.lm-mod-hidden) .jp-RenderedMarkdown a[href*="{name}"]').first
        link.scroll_into_view_if_needed()
        link.click()
        page.wait_for_selector(f'.lm-TabBar-tab.lm-mod-current:has-text("{name}")')
        page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-RenderedMarkdown h1")
        visited.add(name)
    assert len(visited) > 4
    seen.shot("lab-links")
