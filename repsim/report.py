"""Executed notebooks -> one self-contained page: figures, mathematics and navigation work offline, from the file system."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jinja2
import nbformat
import vl_convert
from latex2mathml.converter import convert
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from repsim import store

TITLE = "Do self-supervised and supervised methods learn similar visual representations?"
TEMPLATE = Path(__file__).with_name("report.html.j2")
Claims = Sequence[Mapping[str, Any]]


class Renderer(IPythonRenderer):
    """nbconvert's Markdown with MathML, headings one level down, links between chapters (name: whether its sections are in the
    page) and images of `folder` embedded; notes `title` and `sections`."""

    def __init__(self, name: str, folder: Path, chapters: Mapping[str, bool]):
        super().__init__(escape=False, path=str(folder))
        self.name, self.chapters = name, chapters
        self.title, self.sections = name.replace("_", " "), dict[str, str]()

    def block_math(self, body: str, display: str = "block") -> str:
        try:  # the converter aligns at "&" in align* alone
            return convert(re.sub(r"(\\(?:begin|end)){aligned}", r"\1{align*}", body.strip()), display=display)
        except Exception:  # the converter's errors have no common class; the source is still readable
            return f"<code>{html.escape(body.strip())}</code>"

    inline_math = partialmethod(block_math, display="inline")

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def heading(self, text: str, level: int, **attributes: Any) -> str:
        text = "Overview" if level == 1 and text == TITLE else text  # the page has that title at its head
        anchor, tag = _anchor(self.name, text), f"h{min(level + 1, 6)}"
        while anchor in self.sections:
            anchor += "-"
        self.title = text if level == 1 and not self.sections else self.title
        self.sections[anchor] = text if level == 2 else ""
        return f'<{tag} id="{anchor}">{text}</{tag}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        target, _, fragment = unquote(url).partition("#")
        chapter = _chapter(target) if target else self.name
        if ":" in url or chapter not in self.chapters:
            return super().link(text, url, title) if re.match("(https?|mailto):", url) else text
        return f'<a href="#{_anchor(chapter, fragment) if fragment and self.chapters[chapter] else chapter}">{text}</a>'

    def image(self, text: str, url: str, title: str | None = None) -> str:
        source = url if url.startswith("data:") else self._src_to_base64(unquote(url))
        return super().image(text, source, title) if source else text


def _anchor(name: str, heading: str) -> str:
    words = re.sub(r"<math.*?</math>|<.*?>|&\w+;|\W+", " ", heading).lower().split()
    return f"{name}--{'-'.join(words)}"


def _chapter(path: Path | str) -> str:  # 01_training for 01_training-sl-0.ipynb
    return Path(path).stem.partition("-")[0]


def _read(path: Path, stale: Collection[str]) -> tuple[list[nbformat.NotebookNode], str]:
    """The cells of an executed notebook, none where it cannot be shown, and what is wrong with it ("" if nothing)."""
    try:
        cells = nbformat.read(path, as_version=4).cells
    except (OSError, ValueError, nbformat.ValidationError) as error:
        return [], f"cannot be read: {type(error).__name__}" if path.exists() else "has not been executed"
    code = [cell for cell in cells if cell.cell_type == "code"]
    if errors := [output for cell in code for output in cell.outputs if output.output_type == "error"]:
        return [], f"stopped: {errors[0].ename}: {errors[0].evalue}".splitlines()[0][:300]
    if code and not any(cell.execution_count for cell in code):
        return [], "has not been executed"
    return cells, "was executed with other settings, images or sources; run it again" if path.stem in stale else ""


def write(
    notebooks: Sequence[Path], path: Path, *, stale: Collection[str] = (), claims: Claims = (), banner: str = ""
) -> None:
    """Write one HTML page, which asks the network for nothing, unless `path` is that page already.

    Args:
        notebooks: executed ones, in the order of their names, which are their anchors (`index.html#02_name`); of 01_training,
            01_training-sl-0 and so on the first alone. Those that failed or are missing are listed as such.
        stale: names of notebooks that were executed with other settings, images or sources: marked so, and in a fold.
        claims: each with id, statement, verdict (else a ValueError), and perhaps sentence, reason (str), exploratory (bool).
        banner: a sentence for the head of the page, above the first picture of 00_overview.
    """
    if lacking := [claim for claim in claims if not {"id", "statement", "verdict"} <= {*claim}]:
        raise ValueError(f"claims: expected id, statement and verdict in each, got {lacking[0]!r}")
    executions = {_chapter(p): p for p in sorted(map(Path, notebooks), key=lambda p: p.stem, reverse=True)}
    files = [(p.stem, p.exists() and p.read_bytes()) for p in (*executions.values(), TEMPLATE, Path(__file__))]
    inputs = hashlib.sha256(repr((files, sorted(stale), [*claims], banner)).encode()).hexdigest()
    old = Path(path).read_text(errors="replace") if Path(path).exists() else ""
    if f'content="{inputs}"' in old[:2000] and old.endswith("</html>"):
        return

    read = {name: _read(executions[name], stale) for name in reversed(executions)}
    shown, chapters, head = {name: bool(cells) for name, (cells, _) in read.items()}, {}, []
    for name, (cells, wrong) in read.items():
        renderer = Renderer(name, executions[name].parent, shown)
        markdown = MarkdownWithMath(renderer).render
        for cell in cells:
            cell.html = markdown(cell.source) if cell.cell_type == "markdown" else ""
            for output in cell.get("outputs", []):
                data = output.setdefault("data", {})
                if text := data.get("text/markdown") or data.get("text/latex"):
                    data.setdefault("text/html", markdown(text))
                if name == "00_overview" and "image/png" in data and not (wrong or head):
                    head.append(output)
        chapters[name] = {"cells": cells, "wrong": wrong, "about": renderer}
    values = {"title": TITLE, "inputs": inputs, "banner": banner, "claims": claims, "head": head, "chapters": chapters}
    helpers = {"code": Highlight2HTML(), "ansi2html": ansi2html, "vega": vl_convert.javascript_bundle()}
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text())
    store.write(Path(path), page.render(**values, **helpers))
