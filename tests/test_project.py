"""The files that have to agree with one another do."""

import ast
import base64
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

from repsim import profiles
from repsim.charts import MIME
from repsim.study import PLACES

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_environment_yml_takes_its_packages_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["channels"] == ["conda-forge"] and environment["name"] == "repsim"
    assert f"python{PROJECT['requires-python']}" in conda and "pip" in conda
    (line,) = pip["pip"]
    extras = re.fullmatch(r"-e \.\[(.*)\]", line).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_the_readme_opens_with_the_two_lines_and_ci_runs_the_second():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", readme, re.S)
    install_and_run, install_and_test = blocks[0].strip().splitlines()
    assert install_and_run == "pip install -e . && python run_all.py"
    assert install_and_test == 'pip install -e ".[test]" && pytest --nbval'
    assert 'pip install -e ".[test]" && pytest --nbval' in ci


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_is_executed_in_order_whole_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert path.stat().st_size < 1_500_000
    lost = [  # shown is the last value of a cell, and what `display` is given
        ast.unparse(line)
        for cell in code
        for line in ast.parse(cell.source).body[:-1]
        if isinstance(line, ast.Expr) and re.match(r"(figures|charts|Markdown)\b(?!\.(use|show))", ast.unparse(line))
    ]
    assert not lost, "nobody sees these"
    ignored = [cell for cell in code if any("ignore" in tag for tag in cell.metadata.get("tags", []))]
    assert len(ignored) <= 1, "outputs that are not compared cannot be trusted"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_holds_the_cells_of_its_script(path):
    def cells(notebook):
        return [(c.cell_type, c.source, sorted(c.metadata.get("tags", []))) for c in notebook.cells]

    assert cells(nbformat.read(path, as_version=4)) == cells(jupytext.read(path.with_suffix(".py")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_as_plain_html_shows_every_figure(path):
    """What `jupyter nbconvert --to html` makes, which has neither a kernel nor a network."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [o.data for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    assert all("image/png" in data for data in outputs if MIME in data), "no figure without a picture"
    expected = [data["image/png"].replace("\n", "") for data in outputs if "image/png" in data]
    page = BeautifulSoup(HTMLExporter().from_notebook_node(notebook)[0], "html.parser")
    shown = [image["src"].partition("base64,")[2].replace("\n", "") for image in page.select(".jp-OutputArea img")]
    assert shown == expected and len(shown) > 0
    assert "Chart(...)" not in page.text and "VBox(" not in page.text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_between_notebooks_lead_somewhere(path):
    text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert re.search(rf"^#+ {re.escape(target[1:].replace('-', ' '))}$", text, re.M), target
        else:
            assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_numerical_core_needs_no_notebook_packages():
    script = """
import sys
for name in ("altair", "vl_convert", "IPython", "ipywidgets", "papermill", "nbconvert", "nbformat", "jupytext"):
    sys.modules[name] = None
import repsim.study, repsim.probes, repsim.cka, repsim.train, repsim.claims
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_imports_go_one_way():
    imports = {
        path.stem: set(re.findall(r"^(?:from repsim\.|    from repsim\.)(\w+)", path.read_text(), re.M))
        | {
            n.strip()
            for line in re.findall(r"^from repsim import (.+)$", path.read_text(), re.M)
            for n in line.split(",")
        }
        for path in (ROOT / "repsim").glob("*.py")
    }
    seen: dict[str, bool] = {}

    def visit(name, trail):
        assert name not in trail, f"a circle: {' -> '.join([*trail, name])}"
        if name not in seen:
            for other in imports.get(name, set()) & imports.keys():
                visit(other, (*trail, name))
            seen[name] = True

    for name in imports:
        visit(name, ())


def test_a_changed_number_in_a_stored_output_is_noticed(tmp_path):
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    output = nbformat.v4.new_output("stream", name="stdout", text="3.1\n")
    notebook.cells = [nbformat.v4.new_code_cell("print(3.1)", execution_count=1, outputs=[output])]
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())

    def run():
        nbformat.write(notebook, tmp_path / "n.ipynb")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--nbval",
            "--nbval-current-env",
            "-p",
            "no:cacheprovider",
            "n.ipynb",
        ]
        return subprocess.run(command, cwd=tmp_path, capture_output=True).returncode

    assert run() == 0
    notebook.cells[0].outputs[0].text = "3.2\n"
    assert run() == 1


@pytest.mark.parametrize(
    "published", sorted(p.parent for p in (ROOT / "results").glob("*/provenance.json")), ids=lambda p: p.name
)
def test_published_results_are_whole_small_and_of_a_profile(published):
    about = profiles.publication(published)
    files = {str(p.relative_to(published)): p for p in published.rglob("*") if p.is_file()}
    assert {*about["checksums"], "provenance.json"} == {*files}
    assert sum(p.stat().st_size for name, p in files.items() if "networks" not in name) < 10e6
    if published.name in ("cifar10-cpu", "cifar10-beyond"):
        return  # of an earlier version; tests/test_frozen.py reads the first
    fields = profiles.read(profiles.PROFILES / f"{published.name}.yaml")
    asked = {name: value for name, value in fields.items() if name not in PLACES}
    assert asked == {name: about["parameters"][name] for name in asked}


def test_the_readme_shows_the_overviews_figure_and_the_published_verdicts():
    notebook = nbformat.read(ROOT / "notebooks" / "00_overview.ipynb", as_version=4)
    outputs = [o.get("data", {}) for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    pictures = [data["image/png"] for data in outputs if "image/png" in data]
    assert base64.b64decode(pictures[0]) == (ROOT / "docs" / "found.png").read_bytes()
    claims = json.loads((ROOT / "results" / "quick" / "claims.json").read_text())
    readme = (ROOT / "README.md").read_text()
    stated = re.findall(r"^\| (C\d) \| (.*?) \| (.*?) \| \*?\*?(.*?)\*?\*? \|$", readme, re.M)
    expected = [(c["id"], c["statement"], c["sentence"], c["verdict"]) for c in claims if c["id"].startswith("C")]
    assert stated == expected
    assert len(re.sub(r"<details>.*?</details>", "", readme, flags=re.S).split()) <= 1500
