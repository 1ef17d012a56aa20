"""Executed notebooks -> one self-contained page: figures, mathematics and navigation work offline, from the file system."""

from __future__ import annotations

import base64
import html
import json
import mimetypes
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jinja2
import nbformat
import vl_convert
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.preprocessors import Preprocessor
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from repsim import store
from repsim.charts import MIME
from repsim.figures import MARKS, OUTCOMES, sign
from repsim.predictions import OUTCOMES as PREDICTED

TITLE = "Do self-supervised and supervised methods learn similar visual representations?"
SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/latex", "text/plain"]
# code, which is left alone | display mathematics | inline mathematics
_MATHS = re.compile(
    r"(?P<code>^(?P<fence>```+|~~~+).*?^(?P=fence)|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)|\\\$)"
    r"|\$\$(?P<display>.+?)\$\$|(?<![\w$])\$(?![\s$])(?P<inline>[^$\n]+?)(?<!\s)\$(?![\w$])",
    re.DOTALL | re.MULTILINE,
)


class Offline(Preprocessor):
    """Mathematics becomes MathML, charts become figures; both wait under a key in `kept` until the HTML is ready."""

    def __init__(self, kept: dict[str, str], **options: Any):
        super().__init__(**options)
        self.kept = kept

    def keep(self, text: str) -> str:
        key = f"kept{len(self.kept):06d}kept"
        self.kept[key] = text
        return key

    def maths(self, text: str) -> str:
        def replace(match: re.Match) -> str:
            if match["code"]:
                return match[0]
            latex, display = match["display"] or match["inline"], bool(match["display"])
            latex = re.sub(r"(\\(?:begin|end)){aligned}", r"\1{align*}", latex)
            try:
                return self.keep(convert(latex.strip(), display="block" if display else "inline"))
            except Exception:  # the converter's errors have no common class; the source is still readable
                return self.keep(f"<code>{html.escape(latex.strip())}</code>")

        return _MATHS.sub(replace, text)

    def figure(self, spec: Mapping[str, Any], png: str, about: Mapping[str, Any]) -> str:
        """Interactive where scripts run, a picture where they do not and on paper."""
        text = about.get("alt") or spec.get("description") or "Chart"
        # Altair made it for the Vega-Lite of the embedded scripts; without a schema no version is claimed
        chart = {key: value for key, value in spec.items() if key != "$schema"}
        chart = json.dumps(chart, separators=(",", ":")).replace("<", "\\u003c")
        size = "".join(f' {name}="{int(about[name])}"' for name in ("width", "height") if name in about)
        figure = (
            '<figure class="figure"><div class="chart"></div>'
            f'<img src="data:image/png;base64,{png}" alt="{html.escape(text)}"{size}>'
            f'<script type="application/json">{chart}</script></figure>'
        )
        return self.keep(figure)

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "markdown":
            cell.source = self.maths(cell.source)
        outputs = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if MIME in data and "image/png" in data:
                about = output.metadata.get("image/png", {})
                data = output.data = {"text/html": self.figure(data[MIME], data["image/png"], about)}
            if "text/latex" in data and "text/html" not in data:
                data["text/markdown"] = data.pop("text/latex")
            if "text/markdown" in data:
                data["text/markdown"] = self.maths(data["text/markdown"])
            if output.get("name") != "stderr" and (not data or set(data) & set(SHOWN)):  # widgets need a kernel
                outputs.append(output)
        if "outputs" in cell:
            cell.outputs = outputs
        return cell, resources


def _failure(path: Path) -> str | None:
    """Why an executed notebook cannot be shown; None if it can."""
    if not path.exists():
        return "has not been executed"
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        return f"cannot be read: {type(error).__name__}"
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    errors = [o for c in cells for o in c.outputs if o.output_type == "error"]
    if errors:
        return f"stopped: {errors[0].ename}: {errors[0].evalue}".splitlines()[0][:300]
    return None if any(c.execution_count for c in cells) or not cells else "has not been executed"


def _slug(text: str) -> str:
    return re.sub(r"[^\w]+", "-", re.sub(r"kept\d{6}kept", "", text).lower()).strip("-") or "section"


def _notebook(path: Path, kept: dict[str, str]) -> tuple[BeautifulSoup, dict[str, Any]]:
    """A notebook's body, with headings one level down and anchors of their own, and its entry in the navigation."""
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        config=Config({"NbConvertBase": {"display_data_priority": SHOWN}}),
    )
    exporter.register_preprocessor(Offline(kept), enabled=True)
    body, _ = exporter.from_notebook_node(nbformat.read(path, as_version=4))
    soup = BeautifulSoup(body, "html.parser")
    entry: dict[str, Any] = {"id": path.stem, "title": path.stem.replace("_", " "), "sections": []}
    for mark in soup.select("a.anchor-link"):
        mark.decompose()
    anchors: set[str] = set()
    for heading in soup.find_all(re.compile("^h[1-6]$")):
        level, text = int(heading.name[1]), heading.get_text().strip()
        anchor = f"{path.stem}--{_slug(text)}"
        while anchor in anchors:
            anchor += "-"
        anchors.add(anchor)
        if level == 1 and not entry["sections"]:
            entry["title"] = html.escape(text)
        elif level == 2:
            entry["sections"].append({"id": anchor, "title": html.escape(text)})
        heading.name, heading["id"] = f"h{min(level + 1, 6)}", anchor
    for tag in soup.select("[id]"):
        if tag["id"] not in anchors:
            del tag["id"]
    for code in soup.select("div.input"):
        details = soup.new_tag("details", attrs={"class": "code"})
        summary = soup.new_tag("summary")
        summary.string = "Code"
        code.wrap(details).insert(0, summary)
    for table in soup.select("table"):
        table.attrs = {}
        table.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0"}))
    return soup, entry


def _offline(soup: BeautifulSoup, folder: Path, known: Mapping[str, set[str]]) -> None:
    """Links between notebooks become anchors; pictures are embedded; whatever else would need a file or the network goes."""
    for link in soup.select("a[href]"):
        target, _, fragment = unquote(link["href"]).partition("#")
        if re.match(r"(https?|mailto):", target):
            continue
        stem = Path(target).stem if target else ""
        if target.endswith((".ipynb", ".py")):  # of a notebook that is executed several times: its first execution
            stem = next(
                (s for s in sorted(known) if s == stem or s.startswith(f"{stem}_") or s.startswith(f"{stem}-")), ""
            )
            anchor = f"{stem}--{_slug(fragment)}"
            if stem:
                link["href"] = "#" + (anchor if fragment and anchor in known[stem] else stem)
                continue
        elif not target and fragment:
            own = soup.find(id=re.compile(rf"--{re.escape(_slug(fragment))}$"))
            if own is not None:
                link["href"] = f"#{own['id']}"
                continue
        link.unwrap()
    for image in soup.select("img[src]"):
        if image["src"].startswith("data:"):
            continue
        file = folder / unquote(image["src"])
        if not re.match(r"\w+:", image["src"]) and file.is_file():
            kind = mimetypes.guess_type(file.name)[0] or "image/png"
            image["src"] = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
        else:
            image.replace_with(image.get("alt", ""))
    for tag in soup.find_all(["script", "link", "iframe", "object", "embed"]):
        if tag.name != "script" or tag.get("src"):
            tag.decompose()
    _wide(soup.find_all("img"))


def _once(soup: BeautifulSoup, notebook: str, shown: dict[str, str]) -> None:
    """A picture that an earlier notebook has as well, such as another execution of the same one, becomes a link to it."""
    for image in soup.select("img[src]"):
        first = shown.setdefault(image["src"], notebook)
        if first != notebook:
            link = soup.new_tag("a", href=f"#{first}")
            link.string = f"The same picture as in {first}."
            image.replace_with(link)


def _wide(images: Iterable[Tag]) -> None:
    for image in images:
        image["loading"] = "lazy"
        image["alt"] = image.get("alt") or "Figure"


def _restore(text: str, kept: Mapping[str, str]) -> str:
    return re.sub(r"kept\d{6}kept", lambda match: kept.get(match[0], ""), text)


def _markdown(kept: dict[str, str]) -> Callable[[str], str]:
    return lambda text: _restore(markdown2html(Offline(kept).maths(text)), kept)


def summarise(
    claims: Sequence[Mapping[str, Any]],
    card: Sequence[Mapping[str, str]] = (),
    predictions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """How many claims the run bears out, what it rests on, what the attacks do to them, and what became of the predictions,
    as Markdown; "" without claims.

    `claims` and `card` as for `write`; `predictions` as in predictions.json, each with its outcome.
    """
    if not claims:
        return ""

    def counted(rows: Sequence[Mapping[str, Any]], column: str, order: Iterable[str]) -> str:
        found = [row[column] for row in rows]
        return ", ".join(f"{found.count(word)} {word}" for word in order if word in found)

    text = (
        f"**Of {len(claims)} claims: {counted(claims, 'verdict', MARKS)}.** This run: {claims[0]['basis']}."
        " Each verdict is computed from intervals over test images, by rules that were fixed beforehand; open a claim to see"
        " its numbers."
    )
    if card:
        text += (
            f" Then the claims were judged on other evidence, under {len({row['attack'] for row in card})} attacks. Of"
            f" {len(card)} verdicts under attack: {counted(card, 'outcome', OUTCOMES)}."
        )
    if predictions:
        counts = counted(predictions, "outcome", PREDICTED.values())
        text += f" Of {len(predictions)} predictions of the further chapters: {counts}."
    return text


def _matrix(card: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The card as a table: its claims with their verdicts, and a row for each attack, which leaves some claims alone."""
    cells = {(row["attack"], row["claim"]): row for row in card}
    claims = dict(sorted((row["claim"], row["before"]) for row in card))
    attacks = {attack: [cells.get((attack, claim)) for claim in claims] for attack, _ in cells}
    return {"claims": claims, "attacks": attacks, "changed": [row for row in card if row["because"]]}


def write(
    notebooks: Sequence[Path],
    out: Path,
    *,
    title: str = TITLE,
    stale: Collection[str] = (),
    claims: Sequence[Mapping[str, Any]] = (),
    card: Sequence[Mapping[str, str]] = (),
    summary: str = "",
) -> Path:
    """Write one HTML page with all `notebooks`, which asks the network for nothing, and return its path.

    Args:
        notebooks: executed notebooks in their order; one that is missing, was not executed or holds an error is listed as
            such. Their names are their anchors: `index.html#02_layerwise_comparison`.
        out: the page; written atomically.
        stale: names of notebooks whose execution is of other settings, images or sources: listed, but not shown.
        claims: as in claims.json: id, statement, verdict, basis, and parts with statement, verdict, side, threshold and
            estimates (of, value, low, high).
        card: as in card.json: claim, attack, before, after, outcome, because.
        summary: Markdown, at the top of the page; mathematics between dollar signs.

    Raises:
        OSError: `out` cannot be written.
    """
    kept: dict[str, str] = {}
    paths = [Path(path) for path in notebooks]
    old = "was executed with other settings, images or sources; run it again"
    failures = {path: _failure(path) or (old if path.stem in stale else None) for path in paths}
    parts = [(path, *_notebook(path, kept)) for path in paths if failures[path] is None]
    entries = [entry for *_, entry in parts]
    known = {path.stem: set() for path in paths} | {e["id"]: {s["id"] for s in e["sections"]} for e in entries}
    shown: dict[str, str] = {}  # pictures, and the notebook that has each first
    for path, soup, entry in parts:
        if entry["title"] == html.escape(title):  # which the page has on top
            soup.find("h2").string = entry["title"] = "Overview"
        _offline(soup, path.parent, known)
        _once(soup, entry["id"], shown)
        entry["body"] = _restore(str(soup), kept)
        entry["title"], same = _restore(entry["title"], kept), [e for e in entries if e["title"] == entry["title"]]
        entry["note"] = path.stem if len(same) > 1 else ""
        for section in entry["sections"]:
            section["title"] = _restore(section["title"], kept)
    failed = [
        {"id": path.stem, "title": path.stem.replace("_", " "), "failure": failures[path]}
        for path in paths
        if failures[path]
    ]
    everything = {entry["id"]: entry for entry in [*entries, *failed]}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["markdown"] = _markdown(kept)
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    page = environment.get_template("report.html.j2").render(
        title=title,
        summary=summary,
        claims=claims,
        verdicts={verdict: mark.split()[0] for verdict, mark in MARKS.items()},
        card=_matrix(card),
        sign=sign,
        notebooks=[everything[path.stem] for path in paths],
        light=light,
        dark=dark,
        charts=any('class="figure"' in entry["body"] for entry in entries),
        vega=vl_convert.javascript_bundle().replace("</script", "<\\/script"),
    )
    store.write(Path(out), page)
    return Path(out)
