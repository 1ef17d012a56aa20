"""What a reader meets in JupyterLab: stored figures answer, the explorer answers clicks and keys, links lead on."""

import re

import pytest
from test_browser_lab import EXPLORER, NOTEBOOKS, charts_in, runs_and_shows_what_it_should, stored

pytestmark = pytest.mark.browser


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
DIAGONAL = [(0.3 + 0.02 * x, y / 20) for y in (8, 10) for x in range(12)]


def test_a_stored_figure_says_what_a_cell_is_without_a_run(open_notebook):
    seen = open_notebook("02_layerwise_comparison.ipynb")
    page = seen.page
    maps = page.locator(".jp-RenderedVegaCommon5", has=page.locator("canvas"))
    grid = maps.nth(3)  # of SL with SimCLR
    grid.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    text, _ = tooltip(page, grid.locator("canvas"), ACROSS)
    assert re.search(r"sl-0 \(row\):\s*\S+", text) and re.search(r"simclr-\d \(column\):\s*\S+", text)
    assert re.search(r"CKA:\s*-?\d\.\d\d", text)
    for place in DIAGONAL:  # same-named layers have an interval
        text, _ = tooltip(page, grid.locator("canvas"), [place])
        if re.search(r"CKA:\s*-?\d\.\d\d \[-?\d\.\d\d, -?\d\.\d\d\]", text):
            break
    else:
        raise AssertionError(f"no interval on the diagonal: {text}")
    assert maps.count() == charts_in("02_layerwise_comparison.ipynb")
    seen.shot("lab-02-tooltip")
    rows = page.locator(".jp-RenderedVegaCommon5", has=page.locator("select")).first
    rows.scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    before = rows.locator("canvas").screenshot()
    rows.locator("select").select_option("stem")
    page.wait_for_timeout(500)
    assert rows.locator("canvas").screenshot() != before


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
    view.get_by_label("Columns", exact=True).select_option("SL")
    page.wait_for_function("document.querySelectorAll('[role=status]')[0].innerText.split('SL').length === 3")
    page.wait_for_timeout(1500)
    seen.shot("explorer-other-measure")

    page.set_viewport_size({"width": 1000, "height": 900})
    page.wait_for_timeout(500)
    seen.shot("explorer-narrow")


def test_lab_opens_on_the_overview_and_links_lead_on(lab_page, lab):
    seen = lab_page()
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
