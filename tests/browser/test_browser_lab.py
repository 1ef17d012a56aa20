"""Every notebook is opened and run in JupyterLab, and shows what it should."""

import re
from pathlib import Path

import nbformat
import pytest

from repsim.charts import MIME

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
EXPLORER = "09_your_own_models.ipynb"
RUN_TIME = 600_000


def stored(name):
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def code_cells(name):
    return [cell for cell in stored(name).cells if cell.cell_type == "code"]


def charts_in(name):
    return sum(MIME in output.get("data", {}) for cell in code_cells(name) for output in cell.outputs)


def run_all(seen, name):
    """Run > Run All Cells, until every cell whose code is shown has its number."""
    page = seen.page
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    folded = [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in code_cells(name)]
    expected = [f"[{i}]:" for i, hidden in enumerate(folded, 1) if not hidden]
    page.wait_for_function(
        """expected => {
            const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')]
            const said = prompts.map(prompt => prompt.textContent.trim()).filter(text => text !== '[ ]:')
            const idle = document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status === 'idle'
            const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
            return failed || (idle && expected.every(text => said.includes(text)))
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
    size = page.viewport_size
    page.set_viewport_size({"width": size["width"], "height": min(height + 150, 14_000)})
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    page.wait_for_timeout(800)
    seen.shot(f"lab-{name[:2]}-all")
    page.set_viewport_size(size)


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name != EXPLORER])
def test_a_notebook_runs_and_shows_what_it_should(open_notebook, name):
    runs_and_shows_what_it_should(open_notebook(name), name)
