"""Tables -> figures, sentences and Markdown: one palette, one theme, six primitives.

A figure is interactive where Vega-Lite 5 is known (JupyterLab, the report) and a PNG with alt text everywhere else. It is at most
WIDTH pixels wide; `width=390` makes one for a phone. Tables hold keys ("sl-simclr", "ce_views"), figures show `name(key)` in its
colour. What is undefined (NaN) is a hatched cell or a gap. On a machine without altair, vl_convert or fonts every figure is None,
and texts are printed. A table that is empty or lacks a column is a ValueError. Figures are dark on white; a page in dark mode can
invert all but pictures and heatmaps.
"""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from repsim.models import layer_kind, stage

try:
    import altair as alt
    import vl_convert
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    ImageFont.load_default(12)
except (ImportError, OSError):
    alt = None

VEGA_LITE = "5.8"  # JupyterLab 4 draws with 5.6; this is the nearest that vl_convert has
MIME = "application/vnd.vegalite.v5+json"
SCALE = 1.6  # pixels of a picture per CSS pixel: sharp on dense screens, and notebooks stay small
WIDTH = 920  # of a figure in CSS pixels: what a notebook shows beside its table of contents
LINE = 15  # height of a line of text in CSS pixels
INK, MUTED, RULE, GRID, WHITE, CHOSEN = "#1f2328", "#57606a", "#9aa0a6", "#e6e9ed", "#ffffff", "#b00d54"
BAND, TINT = "#ccd2d9", "#e7f2ee"  # a placebo's interval; the side of a threshold that a claim asserts

# Colour and name of each meaning. Colours have 4.5:1 against white, so that a line's label can have its colour, and differ to
# colour-blind readers too, most of all within one figure. A meaning that is not here takes a colour that its figure does not
# use, from the end of the list.
MEANINGS: Mapping[str, tuple[str, str]] = {
    "sl": ("#0072b2", "SL"),
    "simclr": ("#c24e00", "SimCLR"),
    "untrained": ("#6e6e6e", "untrained"),
    "sl_simclr_views": ("#4b2d78", "SL on SimCLR's views"),
    "sl-simclr": ("#e10f78", "SL and SimCLR"),
    "sl-sl": ("#000f96", "two SL seeds"),
    "simclr-simclr": ("#782d00", "two SimCLR seeds"),
    "untrained-untrained": ("#5a5a69", "two untrained networks"),
    "sl-untrained": ("#00695a", "SL and untrained"),
    "simclr-untrained": ("#5a7800", "SimCLR and untrained"),
    "sl-sl_simclr_views": ("#4b5a3c", "SL and SL on SimCLR's views"),
    "simclr-sl_simclr_views": ("#0069ff", "SimCLR and SL on SimCLR's views"),
    "random_labels": ("#690000", "SL on shuffled labels"),
    "ce_views": ("#1e2d5a", "cross-entropy on both views"),
    "supcon": ("#00872d", "SupCon"),
    "nscl": ("#4b3c1e", "NSCL"),
    "vicreg": ("#2d2d1e", "VICReg"),
    "sl_simclr_middle": ("#4b1e2d", "SL, NT-Xent in the middle"),
    "barlow": ("#4b785a", "Barlow Twins"),
    "rotation": ("#782d4b", "rotation"),
    "simclr_sl_middle": ("#0000f0", "SimCLR, classes in the middle"),
    "byol": ("#c32dc3", "BYOL"),
    "simclr_sl_top": ("#69784b", "SimCLR, classes at the pool"),
}
COLOURS = {key: colour for key, (colour, _) in MEANINGS.items()}
NAMES = {key: title for key, (_, title) in MEANINGS.items()} | {
    "cka": "CKA",
    "foreground_hue": "hue of the shape",
    "background_hue": "hue of the background",
    "x": "horizontal position",
    "y": "vertical position",
    "scale": "size",
    "pixels": "raw pixels",
    "validation_loss": "validation loss",
    "share": "share of training",
    "n": "images",
    "value": "",  # a column's name, which says nothing of the quantity
}
Chart = "alt.TopLevelMixin | None"
VERDICTS: Mapping[str, tuple[str, str]] = {  # colour and sign
    "supported": ("#00735c", "✔"),
    "contradicted": ("#a3260f", "✘"),
    "undecided": ("#57606a", "○"),
    "not judged": ("#3d4a7a", "–"),
    "unspecific": ("#7a5200", "≈"),
}
SIGNS = "DejaVu Sans, Segoe UI Symbol, sans-serif"  # a font that has the signs
FAMILIES = {"measure": "#5b2a86", "control": "#b35900", "estimator": "#00788a"}  # of attacks


# ----- names, texts


def objective(network: str) -> str:
    """ "sl-0" and "sl-0@simclr-1" -> "sl"; "labels" -> "labels"."""
    return re.sub(r"-\d+$", "", network.split("@")[0])


def pair(a: str, b: str = "labels") -> str:
    """The key of two networks: "sl-0" and "simclr-1" -> "sl-simclr"; of one and its view, labels or pixels -> "sl"."""
    known = [*COLOURS]
    a, b = sorted((a, b), key=lambda s: known.index(objective(s)) if objective(s) in COLOURS else len(known))
    if a.split("@")[0] == b.split("@")[0] or objective(b) in ("labels", "pixels"):
        return objective(a)
    return f"{objective(a)}-{objective(b)}"


def name(key: Any) -> str:
    """What a figure shows for a key: "sl-1" -> "SL, seed 1", "ce_views-nscl" -> "cross-entropy ... and NSCL"; else the key."""
    key = str(key)
    if re.fullmatch(r"\w+-\d+ and \w+-\d+", key):
        return " and ".join(name(part).replace(", seed", "") for part in key.split(" and "))
    one, _, other = key.partition("-")
    if key in NAMES or one not in NAMES:
        return NAMES.get(key, key)
    if other in NAMES:
        return f"two seeds of {NAMES[one]}" if one == other else f"{NAMES[one]} and {NAMES[other]}"
    return f"{NAMES[one]}, seed {other}" if other.isdigit() else key


def short(layer: str) -> str:
    """A layer's name on an axis: "layer1.0.residual" -> "1.0 res", "layer1.0" -> "1.0", any other unchanged."""
    return re.sub(r"^layer(\d+\.\d+)(?:(\.res)idual)?$", lambda m: m[1] + " res" * bool(m[2]), layer)


def percent(share: float) -> str:
    """A share of the training as text, "start" for 0."""
    return f"{100 * share:.2g} %" if 0 < share < 1 else "100 %" if share else "start"


def estimate(value: float, low: float = np.nan, high: float = np.nan) -> str:
    """ "0.30 [0.25, 0.35]", without an interval "0.30", "not defined" for NaN."""
    interval = f" [{low:z.2f}, {high:z.2f}]" if np.isfinite(low) else ""
    return f"{value:z.2f}{interval}" if np.isfinite(value) else "not defined"


class Text(str):
    """Markdown that Jupyter renders. Its repr says nothing, so that stored outputs compare equal where numbers differ."""

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return "Markdown"


def notebook() -> bool:
    """Whether this runs in IPython."""
    ipython = sys.modules.get("IPython")
    return bool(ipython and ipython.get_ipython())


def show(*things: Any) -> None:
    """`display` in a notebook. Elsewhere nothing: figures need a notebook, and texts have been printed."""
    if notebook():
        from IPython.display import display

        display(*(thing for thing in things if thing is not None))


def markdown(*parts: str | pd.DataFrame) -> Text:
    """Texts and tables (no index; floats with two decimals) as paragraphs of Markdown, printed where there is no notebook."""

    def row(cells: Iterable[Any]) -> str:
        texts = (f"{cell:z.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"

    texts = []
    for part in parts:
        if isinstance(part, pd.DataFrame):
            rows = [part.columns, ["---"] * part.shape[1], *part.itertuples(index=False)]
            part = "\n".join(map(row, rows))
        texts.append(part)
    text = Text("\n\n".join(texts))
    if not notebook():
        print(text, end="\n\n")
    return text


def _alt(what: str, rows: pd.DataFrame, *by: str) -> str:
    """An alt text: what is shown, then for each name the range of its values; a long list ends with a count."""
    words = []
    for names, values in rows.groupby(list(by), sort=False)["value"]:
        ends = dict.fromkeys(estimate(end) for end in (values.min(), values.max()))
        words.append(f"{', '.join(n for n in map(str, names) if n)} {' to '.join(ends)}")
    more = f"; and {len(words) - 24} more" if len(words) > 24 else ""
    return f"{what}. {'; '.join(words[:24])}{more}."


# ----- how figures reach a reader


def figure(draw: Callable) -> Callable:
    """A primitive that is None where the packages for figures are missing."""
    return functools.wraps(draw)(lambda *args, **options: None if alt is None else draw(*args, **options))


def use() -> None:
    """Register and enable the theme and the renderer; importing this module in a notebook does so."""
    alt.theme.register("repsim", enable=True)(lambda: alt.theme.ThemeConfig(config=theme()))
    alt.renderers.register("repsim", bundle)
    alt.renderers.enable("repsim")
    alt.data_transformers.disable_max_rows()


def theme() -> dict[str, Any]:
    """The Vega-Lite configuration: white ground, nothing smaller than 12 px."""
    text = {"labelFontSize": 12, "titleFontSize": 13, "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal"}
    title = {"fontSize": 16, "color": INK, "anchor": "start", "offset": 12, "fontWeight": 600}
    axis = {"gridColor": GRID, "domainColor": RULE, "tickColor": RULE, "titlePadding": 8, "labelFlush": False}
    return {
        "background": WHITE,
        "padding": 14,
        "font": "Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif",
        "title": title | {"subtitleFontSize": 13, "subtitleColor": MUTED, "subtitlePadding": 6},
        "axis": text | axis,
        "legend": text | {"labelLimit": 260, "columnPadding": 18},
        "view": {"stroke": GRID},
    }


def bundle(spec: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chart's MIME bundle (Vega-Lite 5 specification, PNG of 256 colours, title) and its metadata.

    The text is the title alone, so that stored outputs compare equal where numbers differ; the alt text is metadata.
    """
    spec = spec | {"$schema": "https://vega.github.io/schema/vega-lite/v5.json"}
    png = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=SCALE)
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    title = spec.get("title") or "Chart"
    title = title["text"] if isinstance(title, dict) else title
    pictures, about = Picture(image, title, spec.get("description"), scale=SCALE)._repr_mimebundle_()
    return {MIME: spec, **pictures}, about


class Picture:
    """A PNG image that Jupyter shows with alt text.

    Attributes: `png` (bytes), `title` (shown where no picture can be), `alt`, `size` (width, height in CSS pixels).
    """

    def __init__(self, image: Image.Image, title: str, alt: str | None = None, *, scale: float = 1):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        self.png, self.title, self.alt = buffer.getvalue(), title, alt or title
        self.size = round(image.width / scale), round(image.height / scale)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.title}
        return data, {"image/png": {"alt": self.alt, "width": self.size[0], "height": self.size[1]}}


# ----- what the primitives share


def _frame(table: pd.DataFrame, **columns: str | None) -> pd.DataFrame:
    """Columns of a table, and low and high, under names of ours: no name of a user's gets into a Vega expression."""
    columns = {ours: column for ours, column in columns.items() if column is not None}
    if missing := [str(column) for column in columns.values() if column not in table]:
        expected, got = ", ".join(map(str, columns.values())), ", ".join(map(str, table.columns))
        raise ValueError(f"table: expected columns {expected}, got {got} without {', '.join(missing)}")
    if table.empty:
        raise ValueError("table: expected at least one row, got none; check how it was selected")
    columns |= {bound: bound for bound in ("low", "high") if bound in table}
    rows = pd.DataFrame({ours: table[column].to_numpy() for ours, column in columns.items()})
    for column in rows.select_dtypes("float"):  # more digits than any figure shows would make notebooks large
        rows[column] = [float(f"{number:.5g}") for number in rows[column]]
    numbers = rows[[column for column in ("value", "low", "high") if column in rows]].to_numpy()
    return rows.assign(shown=[estimate(*row) for row in numbers]) if "value" in rows else rows


def _numbers(rows: pd.DataFrame, *columns: str) -> list[float]:
    """All defined numbers of these columns, and of low and high."""
    values = rows[[c for c in (*columns, "low", "high") if c in rows]].to_numpy(dtype=float).ravel()
    return values[np.isfinite(values)].tolist()


def _extent(values: Sequence[float], span: float = 0.1) -> list[float]:
    """The axis of some values: `span` long at least, as noise is not to be magnified; 0 to 1 if they take half of that."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if 0 <= low and high <= 1 and high - low > 0.5:
        return [0.0, 1.0]
    margin = max(0.06 * (high - low), (span - (high - low)) / 2)
    bottom = max(0.0, low - margin) if low >= 0 else low - margin
    return [bottom, max(high + margin, bottom + span)]


def _paint(keys: Iterable[str], legend: alt.Legend | None = None) -> tuple[dict[str, str], alt.Color]:
    """Name -> colour, where a key of no known meaning has one that the others do not use; and the encoding of it."""
    known, names = {NAMES[key]: colour for key, colour in COLOURS.items()}, list(dict.fromkeys(map(name, keys)))
    spare = [c for c in reversed(COLOURS.values()) if c not in {known.get(n) for n in names}] + [INK] * len(names)
    colours = {n: known[n] if n in known else spare.pop(0) for n in names}
    return colours, alt.Color("name:N", scale=alt.Scale(domain=[*colours], range=[*colours.values()]), legend=legend)


def _as_is(channel: str, field: str) -> Any:
    """An encoding of colours (Color, Fill) or pixels (X, Y) that a column holds."""
    look = {"type": "quantitative", "axis": None} if channel in "XY" else {"type": "nominal"}
    return getattr(alt, channel)(field, scale=None, **look)


def _title(text: Any) -> str:
    """A title of an axis, a legend or a tooltip; Vega-Lite writes it into expressions and escapes neither of these signs."""
    return str(text).translate({ord("\\"): "∖", ord('"'): "”"})


def _tips(**titles: str) -> list[alt.Tooltip]:
    """Fields that pointers show, with titles."""
    return [alt.Tooltip(f"{field}:N", title=_title(title or "value")) for field, title in titles.items()]


def _axis(channel: str, limits: Sequence[float], title: str | None, **look: Any) -> Callable[[str], Any]:
    """field -> its encoding on an axis, at whose ends what lies beyond is drawn."""
    scale = alt.Scale(domain=[float(end) for end in limits], nice=False, clamp=True)
    axis = alt.Axis(**{"tickCount": 5, "minExtent": 32 if channel == "Y" else 0} | look)
    return lambda field: getattr(alt, channel)(f"{field}:Q", title=title and _title(title), scale=scale, axis=axis)


def _layer_axis(channel: str, field: str, layers: Sequence[str], title: str | None, size: float, **look: Any) -> Any:
    """The encoding of layers on an axis of some pixels, in their order."""
    look |= {"labelExpr": json.dumps({n: short(n) for n in layers}) + "[datum.value]", "labelLimit": 120}
    look |= {"labelOverlap": size < 12 * len(layers) and "parity", "title": title and _title(title)}
    scale = alt.Scale(type="band", domain=[*layers], paddingInner=0, paddingOuter=0)
    return getattr(alt, channel)(field, type="ordinal", sort=[*layers], scale=scale, axis=alt.Axis(**look))


def _edges(encoding: Any, *looks: Mapping[str, Any]) -> list[alt.Chart]:
    """Rules where stages begin on an axis of layers."""
    layers = encoding["scale"]["domain"]
    starts = [n for before, n in itertools.pairwise(layers) if stage(n) != stage(before)]
    at = type(encoding)("start", type="ordinal", bandPosition=0, scale=encoding["scale"])
    base = alt.Chart(pd.DataFrame({"start": starts}, dtype=object))
    return [base.mark_rule(aria=False, **look).encode(at) for look in looks if starts]


def _text(frame: pd.DataFrame, **look: Any) -> alt.Chart:
    """Texts of one or more lines around pixels x and y; screen readers pass over them, as the alt text has them."""
    look = {"align": "left", "baseline": "middle", "fontSize": 12.5, "lineHeight": LINE, "aria": False} | look
    frame = frame.assign(y=frame["y"] - LINE / 2 * frame["text"].str.count("\n"))  # of the first line
    marks = alt.Chart(frame).mark_text(lineBreak="\n", **look)
    return marks.encode(x=_as_is("X", "x"), y=_as_is("Y", "y"), color=_as_is("Color", "colour"), text="text:N")


def _apart(places: Sequence[float], sizes: Sequence[float], length: float) -> np.ndarray:
    """Places in 0 ... length, moved as little as possible (least squares) so that things of these sizes do not overlap."""
    order, moved = np.argsort(places, kind="stable"), np.empty(len(places))
    places, sizes = np.asarray(places, float)[order], np.asarray(sizes, float)[order]
    offsets = np.cumsum(np.append(0, (sizes[1:] + sizes[:-1]) / 2))
    fit = IsotonicRegression(y_min=0, y_max=max(0, length - offsets[-1])).fit_transform(offsets, places - offsets)
    moved[order] = fit + offsets
    return moved


def _labels(values: Mapping[str, float], colours: Mapping[str, str], limits: Any, height: float) -> pd.DataFrame:
    """name, text, colour, end (pixels at the height of the value) and y (as near to it as texts do not overlap)."""
    (low, high), frame = limits, pd.DataFrame({"name": [*values], "end": [*values.values()]})
    frame["end"] = height * (high - frame["end"].clip(low, high)) / (high - low)
    frame["text"] = ["\n".join(textwrap.wrap(n, 20)) for n in values]
    frame["colour"] = frame["name"].map(colours).fillna(MUTED)
    return frame.assign(y=_apart(frame["end"], LINE * (1 + frame["text"].str.count("\n")), height))


def _together(panels: Mapping[str, alt.LayerChart], columns: int, title: Any, words: str) -> alt.TopLevelMixin:
    """One figure of panels with headings."""
    charts = []
    for heading, panel in panels.items():
        text = textwrap.wrap(heading, max(20, int(panel.width + 60) // 7))
        heads = {"title": alt.Title(text, fontSize=13, fontWeight="normal", offset=6)} if heading else {}
        charts.append(panel.properties(**heads))
    chart = charts[0] if len(charts) == 1 else alt.concat(*charts, columns=columns, spacing=20)
    return chart.properties(title=title, description=words)


# ----- the primitives


@figure
def heatmap(table: pd.DataFrame, *, color: str = "cka", title: str | None = None, width: int = WIDTH) -> Chart:
    """Every layer of one stream with every layer of another: a panel for each pair (a, b) of the table.

    Args:
        table: a row per cell: a, b, layer_a (rows), layer_b (columns), the value in `color` (0 to 1); low and high if known.
    """
    cells = _frame(table, a="a", b="b", layer_a="layer_a", layer_b="layer_b", value=color)
    cells["name"] = [f"{name(a)} with {name(b)}" for a, b in zip(cells["a"], cells["b"])]
    label, pairs = name(color), dict([*cells.groupby("name", sort=False)])
    widest = max(part["layer_b"].nunique() for part in pairs.values())
    columns = 2 if len(pairs) > 1 and 2 * (13 * widest + 150) <= width else 1
    step, panels = int(np.clip((width / columns - 150) / widest, 5, 21)), {}
    for heading, part in pairs.items():
        (a, b), sides = part[["a", "b"]].iloc[0], [part[column].unique().tolist() for column in ("layer_a", "layer_b")]
        height, across = (step * len(layers) for layers in sides)
        look = {"ticks": False, "domain": False, "labelPadding": 4}
        y = _layer_axis("Y", "layer_a", sides[0], f"{name(a)}, layer", height, **look)
        x = _layer_axis("X", "layer_b", sides[1], f"{name(b)}, layer", across, labelAngle=-90, **look)
        tips = _tips(layer_a=f"{a} (row)", layer_b=f"{b} (column)", shown=label)
        base = alt.Chart(part.drop(columns=["a", "b", "name"])).encode(x=x, y=y, tooltip=tips)
        legend = alt.Legend(title=_title(label), gradientLength=min(height, 220), gradientThickness=14)
        scale = alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)  # below 0 as 0
        parts = [base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=legend))]
        if part["value"].isna().any():
            gaps, look = base.transform_filter("!isValid(datum.value)"), {"filled": False, "opacity": 1}
            hatch = gaps.mark_point(shape="M-1,1L1,-1M-1,0L0,-1M0,1L1,0", size=(step - 2) ** 2, stroke=MUTED, **look)
            parts += [gaps.mark_rect(color=BAND), hatch.encode(strokeWidth=alt.value(1))]
        for side in (y, x):
            parts += _edges(side, {"strokeWidth": 2.6, "color": WHITE}, {"strokeWidth": 0.9, "color": INK})
        panels[heading if len(pairs) > 1 else ""] = alt.layer(*parts).properties(width=across, height=height)
    gaps = f"; {cells['value'].isna().sum()} cells not defined" if cells["value"].isna().any() else ""
    words = _alt(f"Heatmap of {label}, {widest} layers from the input (left, top) to the output{gaps}", cells, "name")
    first = next(iter(pairs)).replace(" with ", " with every layer of ", 1)
    return _together(panels, columns, title or f"{label}, every layer of {first}", words)


@figure
def lines(
    table: pd.DataFrame,
    x: str = "layer",
    y: str = "cka",
    color: str = "pair",
    panel: str | None = None,
    *,
    title: str | None = None,
    y_title: str | None = None,
    domain: Sequence[float] | None = None,
    shared: bool = True,
    log: bool = False,
    rules: Mapping[str, float] | None = None,
    width: int = WIDTH,
) -> Chart:
    """Lines over layers, epochs, shares of training or numbers of images, with their names at their ends.

    More than six names become a legend. Up to five lines of a panel have bands from `low` to `high`; pointers show all intervals.

    Args:
        table: a row per point. x: "layer" (or layer_a; residual layers are a line of open points) or a number.
        color: what a colour means, a key or a name; if missing made of a and b, or of network (`pair`).
        panel: a panel for each value. domain: range of the y axis; if not given it fits the values, of all panels if `shared`.
        log: of x: log(1 + x / the smallest positive x), so that 0 ("start") has a place.
        rules: name -> height of a dashed line, such as chance.
    """
    rows, label, rules = _points(table, x, y, color, panel), name(y) if y_title is None else y_title, rules or {}
    groups = dict([*rows.groupby("panel", sort=False)])
    names, few = [set(part["name"]) for part in groups.values()], len(groups) in (1, 2, 4)
    direct = len(set().union(*names)) <= 6 and (few or all(n == names[0] for n in names))
    look = {"symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 2.4, "symbolOpacity": 1}
    legend = None if direct else alt.Legend(title=None, orient="top", columns=width // 230, **look)
    colours, paint = _paint(rows["key"], legend)
    written = colours if direct else {}
    margin = max([8 + 7 * len(text) for n in (*written, *rules) for text in textwrap.wrap(n, 20)], default=0)
    longest = max(part["x"].nunique() for part in groups.values())
    least, most = (12 * longest, 44 * longest) if x == "layer" else (190, 560)
    for columns in range(min(len(groups), 2 if few else 3), 0, -1):
        plot = (width - 28 - 76 * columns - margin * (columns if columns < 3 else 1)) / columns
        if plot >= least:
            break
    plot, height, panels = min(plot, most), {1: 300, 2: 250, 4: 220}.get(len(groups), 190), {}

    for i, (heading, part) in enumerate(groups.items()):
        limits = domain or _extent(_numbers(rows if shared else part, "value") + [*rules.values()])
        up = _axis("Y", limits, label if not shared or i % columns == 0 else None)
        across = _across(part, x, log, plot, bool(heading))
        part = part.drop(columns=["key", "panel"]).assign(fill=part["name"].map(colours).where(~part["open"], WHITE))
        base = alt.Chart(part).encode(x=across, color=paint)
        base = base.encode(detail=["line:N", "open:N"], tooltip=_tips(line="line", x=name(x), shown=label))
        marks = _edges(across, {"color": RULE, "strokeDash": [2, 3]}) if x == "layer" else []
        if "low" in part and len(part[["line", "name"]].drop_duplicates()) <= 5:
            marks.append(base.mark_area(opacity=0.16, aria=False).encode(y=up("low"), y2="high:Q"))
        marks.append(base.mark_line(strokeWidth=2.2, strokeJoin="round").encode(y=up("value")))
        points = base.mark_point(size=36, strokeWidth=1.6, opacity=1)
        marks.append(points.encode(y=up("value"), fill=_as_is("Fill", "fill")))
        dashed = alt.Chart(pd.DataFrame({"value": [*rules.values()]}, dtype=float))
        marks.append(dashed.mark_rule(strokeDash=[5, 4], color=MUTED).encode(y=up("value")))
        if columns < 3 or i % columns == columns - 1 or i == len(groups) - 1:
            marks += _ends(part, written, rules, limits, plot, height)
        panels[heading] = alt.layer(*marks).properties(width=plot, height=height)
    over = "layers" if x == "layer" else name(x)
    words = _alt(f"Lines of {label} over {rows['x'].nunique()} {over}", rows, "panel", "name")
    return _together(panels, columns, title or f"{label} over {over}", words)


def _points(table: pd.DataFrame, x: str, y: str, color: str, panel: str | None) -> pd.DataFrame:
    """Points of `lines`, in order: x, value, low, high, shown, key, name, line, panel, open (residual layers)."""
    ends = [column for column in ("a", "b", "network") if column in table]
    if color not in table and ends:
        table = table.assign(**{color: [pair(*networks) for networks in table[ends].to_numpy()]})
    table = table if "layer" in table else table.rename(columns={"layer_a": "layer"})
    rows = _frame(table, x=x, value=y, key=color, panel=panel)
    rows["line"] = [" · ".join(map(str, one)) for one in table[ends or [color]].to_numpy()]
    rows = rows.assign(name=rows["key"].map(name), panel=rows["panel"].map(name) if panel else "", open=False)
    order = None
    if x == "layer":
        rows["open"] = [layer_kind(layer) == "residual" for layer in rows["x"]]
        networks = (part["x"].unique() for _, part in rows.groupby("line", sort=False))
        order = {
            layer: i for i, layer in enumerate(dict.fromkeys(itertools.chain(*sorted(networks, key=len, reverse=True))))
        }
    return rows.sort_values("x", kind="stable", key=lambda places: places.map(order or float))


def _across(rows: pd.DataFrame, x: str, log: bool, plot: float, many: bool) -> alt.X:
    """The axis of layers, or of numbers."""
    places = rows["x"].drop_duplicates().tolist()
    if x == "layer":
        return _layer_axis("X", "x", places, "" if many else x, plot, labelAngle=-90, grid=False)
    scale, look = alt.Scale(zero=False, nice=False), {"grid": False, "title": _title(name(x))}
    if log:
        scale = alt.Scale(type="symlog", constant=min(place for place in places if place > 0), nice=False)
        label = "format(100 * datum.value, '.2~r') + ' %'" if x == "share" else "format(datum.value, ',')"
        look |= {"labelExpr": f"datum.value ? {label} : 'start'", "labelAngle": -45, "labelOverlap": "parity"}
        look["values"] = places
    elif all(place % 1 == 0 for place in places):
        look["tickMinStep"] = 1
    return alt.X("x:Q", scale=scale, axis=alt.Axis(**look))


def _ends(part, colours, rules, limits, plot, height) -> list[alt.Chart]:
    """The names of lines and rules at the right edge, each at the mean height of its lines' ends, with a stroke from there."""
    last = part[part["open"] == part["open"].min()].dropna(subset="value").groupby(["name", "line"], sort=False).tail(1)
    heights = last[last["name"].isin([*colours])].groupby("name", sort=False)["value"].mean()
    if not len(values := heights.to_dict() | rules):
        return []
    texts = _labels(values, colours, limits, height).assign(x=plot + 12)
    strokes = alt.Chart(texts).mark_rule(aria=False).encode(y=_as_is("Y", "end"), y2="y:Q")
    return [
        strokes.encode(x=alt.value(plot + 1), x2=alt.value(plot + 9), color=_as_is("Color", "colour")),
        _text(texts),
    ]


@figure
def path(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    title: str | None = None,
    domain: Sequence[float] | None = None,
    width: int = WIDTH,
) -> Chart:
    """Points of a plane in the order of `position`, a line for each network, from an open point to its name.

    Args:
        table: a row per point: x, y, network (or any name), position, layer.
        domain: of both axes, with a dashed line where they are equal; if not given they fit the values.
    """
    rows = _frame(table, x=x, y=y, line="network", order="position", layer="layer")
    rows["name"] = rows["line"].map(objective).map(name)
    colours, paint = _paint(rows["line"].map(objective))
    rows = rows.sort_values("order", kind="stable")
    lines = rows.groupby("line", sort=False)
    plot = min(460, width - 108 - 7 * max(min(len(n), 20) for n in colours))
    height, limits = 0.8 * plot, [domain or _extent(_numbers(rows, column)) for column in ("x", "y")]
    across, up = _axis("X", limits[0], x), _axis("Y", limits[1], y)
    ends = lines.tail(1).sort_values("x").drop_duplicates("name", keep="last").set_index("name")
    texts = _labels(ends["y"].to_dict(), colours, limits[1], height).set_index("name")
    texts["x"] = (ends["x"] - limits[0][0]) / (limits[0][1] - limits[0][0]) * plot
    back = ends["x"] < ends["line"].map(lines["x"].first())  # a name stands where its line goes
    back &= texts["x"] > 14 + 7 * ends.index.str.len()
    base = alt.Chart(rows).encode(x=across("x"), y=up("y"), color=paint, detail="line:N")
    base = base.encode(tooltip=_tips(line="line", layer="layer", x=x, y=y))
    marks = [
        base.mark_line(strokeWidth=2, strokeJoin="round").encode(order="order:Q"),
        base.mark_point(filled=True, size=56, opacity=1),
        base.properties(data=lines.head(1)).mark_point(fill=WHITE, size=64, strokeWidth=2, opacity=1),
    ]
    for side, look in ((texts[back], {"align": "right", "dx": -10}), (texts[~back], {"dx": 10})):
        marks.append(_text(side, **look))
    if domain:
        equal = alt.Chart(pd.DataFrame({"x": domain, "y": domain})).mark_line(color=MUTED, strokeDash=[5, 4])
        marks.insert(0, equal.encode(x=across("x"), y=up("y")))
    first, last = rows["layer"].iloc[[0, -1]]
    note = f"Lines run from the open point ({first}) to the name ({last})."
    heading = alt.Title(title or f"{y} against {x}", subtitle=textwrap.wrap(note, width // 7))
    words = _alt(f"{y} against {x}. {note} Ranges of {y}", rows.assign(value=rows["y"]), "line")
    return _together({"": alt.layer(*marks).properties(width=plot, height=height)}, 1, heading, words)


@figure
def bars(
    table: pd.DataFrame,
    category: str,
    value: str,
    color: str | None = None,
    *,
    title: str | None = None,
    value_title: str | None = None,
    domain: Sequence[float] | None = None,
    rules: Mapping[str, float] | None = None,
    width: int = WIDTH,
) -> Chart:
    """Horizontal bars from zero, each with its number and its interval (low and high, if the table has them).

    Args:
        table: a row per bar: `category`, `value` and, for several bars in a category, `color`.
        rules: name -> place of a dashed line, such as chance.
    """
    rows, rules = _frame(table, category=category, value=value, key=color or category), rules or {}
    label = name(value) if value_title is None else value_title
    rows = rows.assign(category=rows["category"].map(name), name=rows["key"].map(name))
    rows["end"] = rows[[c for c in ("value", "high") if c in rows]].max(axis=1).clip(lower=0)
    legend = alt.Legend(title=None, orient="top", symbolType="square") if color else None
    limits = domain or _extent([0.0, *_numbers(rows, "value"), *rules.values()])
    across, names = _axis("X", limits, label), alt.Axis(labelLimit=240, ticks=False, labelPadding=6)
    base = alt.Chart(rows).encode(y=alt.Y("category:N", sort=None, title=None, axis=names))
    base = base.encode(tooltip=_tips(category=category, **({"name": color} if color else {}), shown=label))
    if color:
        base = base.encode(yOffset=alt.YOffset("name:N", sort=rows["name"].unique().tolist()))
    bar = base.mark_bar(height=alt.RelativeBandSize(0.86))
    parts = [bar.encode(x=across("value"), color=_paint(rows["key"], legend)[1])]
    if "low" in rows:
        parts.append(base.mark_rule(color=RULE, strokeWidth=2).encode(x=across("low"), x2="high:Q"))
    number = base.mark_text(align="left", dx=6, fontSize=12, color=INK)
    parts.append(number.encode(x=across("end"), text=alt.Text("value:Q", format=".2f")))
    plot = min(520, width - 88 - min(240, 7 * max(map(len, rows["category"]))))
    if rules:
        marks = pd.DataFrame({"value": [*rules.values()], "text": [*rules], "y": -9, "colour": INK})
        marks["x"] = (marks["value"] - limits[0]) / (limits[1] - limits[0]) * plot
        dashed = alt.Chart(marks).mark_rule(color=INK, strokeDash=[5, 3], strokeWidth=1.6)
        parts += [dashed.encode(x=across("value")), _text(marks, align="center")]
    chart = alt.layer(*parts).properties(width=plot, height=alt.Step(20 if color else 28))
    words = _alt(f"Bars of {label}", rows, *(["category", "name"] if color else ["name"]))
    return _together({"": chart}, 1, title or label, words)


def _dots(rows: pd.DataFrame, across: Callable[[str], alt.X], y: alt.Y, **tips: str) -> list[alt.Chart]:
    """Intervals and dots in the colour of their side of the threshold, dots hollow where the verdict is not judged."""
    sign = np.where(rows["side"] == "above", 1, -1)
    ends = [sign * (rows[end] - rows["threshold"]) for end in ("low", "high")]
    sides = np.select([np.minimum(*ends) > 0, np.maximum(*ends) < 0], ["supported", "contradicted"], "undecided")
    rows = rows.assign(colour=[VERDICTS[side][0] for side in sides])
    rows["fill"] = rows["colour"].mask(rows["verdict"] == "not judged", WHITE)
    base = alt.Chart(rows).encode(y=y, color=_as_is("Color", "colour"), tooltip=_tips(**tips))
    dot = base.mark_point(size=110, strokeWidth=2.2, opacity=1).encode(x=across("value"), fill=_as_is("Fill", "fill"))
    return [base.mark_rule(strokeWidth=3).encode(x=across("low"), x2="high:Q"), dot]


@figure
def forest(
    table: pd.DataFrame, ticks: pd.DataFrame | None = None, *, title: str | None = None, width: int = WIDTH
) -> Chart:
    """All claims in one look: a row per claim, in units of its threshold (0 none, 1 the smallest effect that counts).

    A dot with its interval has the colour of its side of the threshold (open if it is not judged), a grey band is the placebo, and
    a mark below it an attack.

    Args:
        table: row (a claim's id), label, value, low, high, placebo_low, placebo_high (NaN: none), verdict (of VERDICTS), note.
            Or, with a panel for each part in its own units: panel, label, value, low, high, threshold, side ("above", "below").
        ticks: row, value, family (of FAMILIES), name, whole (False, hollow: a part of the claim alone was measured again).
    """
    if "threshold" in table:
        return _estimates(table, title, width)
    columns = ("row", "label", "value", "low", "high", "placebo_low", "placebo_high", "verdict", "note")
    rows = _frame(table, **{c: c for c in columns}).assign(threshold=1.0, side="above")
    wide = width >= 700  # texts stand beside the axis, else above and below each dot
    step, plot = (66, width - 550) if wide else (132, width - 36)
    rows["y"] = step * (np.arange(len(rows)) + 0.5)
    rows = rows.assign(top=rows["y"] - 13, bottom=rows["y"] + 13, above=rows["y"] - 20, below=rows["y"] + 30)
    height, ends = step * len(rows), [-0.5, 1.5, *_numbers(rows, "value")]
    limits = [max(-4.0, min(ends) - 0.2), min(6.0, max(ends) + 0.2)]
    note = "effect in units of its threshold: 0 none, 1 the smallest that counts" if wide else "effect / threshold"
    across, middle = _axis("X", limits, note, orient="top", grid=False), _as_is("Y", "y")
    placebo = alt.Chart(rows.dropna(subset=["placebo_low", "placebo_high"])).mark_rect(color=BAND, aria=False)
    tracks = alt.Chart(rows.assign(none=0.0, effect=1.0, end=limits[1])).encode(y=_as_is("Y", "above"), y2="below:Q")
    parts = [
        tracks.mark_rect(color=TINT).encode(x=across("effect"), x2="end:Q"),
        placebo.encode(x=across("placebo_low"), x2="placebo_high:Q", y=_as_is("Y", "top"), y2="bottom:Q"),
        tracks.mark_rule(color=RULE, strokeWidth=1.4).encode(x=across("none")),
        tracks.mark_rule(color=INK, strokeWidth=1.4, strokeDash=[5, 4]).encode(x=across("effect")),
        *_dots(rows, across, middle, row="claim", label="statement", shown="effect / threshold", verdict="verdict"),
    ]
    legend = "Dots: estimates with 95 % intervals over seeds. Grey: placebos."
    if ticks is not None and len(ticks):
        marks = _frame(ticks, **{c: c for c in ("row", "value", "family", "name", "whole")})
        marks["y"] = marks["row"].map(rows.set_index("row")["y"] + 21)
        marks["fill"] = marks["family"].map(FAMILIES).fillna(INK).where(marks["whole"], WHITE)
        look = {"symbolType": "square", "symbolStrokeWidth": 3, "symbolFillColor": WHITE}
        scale = alt.Scale(domain=[*FAMILIES], range=[*FAMILIES.values()])
        stroke = alt.Stroke("family:N", scale=scale, legend=alt.Legend(title="attacks", orient="bottom", **look))
        tick = alt.Chart(marks).mark_point(shape="M-.25,-1H.25V1H-.25Z", size=100, strokeWidth=1.3, opacity=1)
        tick = tick.encode(x=across("value"), y=middle, fill=_as_is("Fill", "fill"), stroke=stroke)
        parts.append(tick.encode(tooltip=_tips(name="attack", family="of", shown="effect / threshold")))
        legend += " Small marks: attacks, hollow where they measure a part of the claim."

    signs = [f"{VERDICTS[verdict][1]} {verdict}" for verdict in rows["verdict"]]
    hues = [VERDICTS[verdict][0] for verdict in rows["verdict"]]
    statements = [f"{row}  {label}" for row, label in zip(rows["row"], rows["label"])]
    places = [(-246, 0, 36), (plot + 14, -15, 40), (plot + 14, 9, 42)]  # x, beside the dot, characters
    if not wide:
        places = [(0, -42, plot // 7), (0, 42, 40), (0, 60, plot // 7)]
    looks = ({}, {"font": SIGNS, "fontWeight": "bold"}, {})
    for texts, hue, (x, beside, chars), look in zip(
        (statements, signs, rows["note"]), (INK, hues, MUTED), places, looks
    ):
        wrapped = ["\n".join(textwrap.wrap(str(text), chars)) for text in texts]
        parts.append(_text(pd.DataFrame({"text": wrapped, "colour": hue, "x": x, "y": rows["y"] + beside}), **look))
    heading = alt.Title(title or "Claims in units of their thresholds", subtitle=textwrap.wrap(legend, width // 7))
    named = rows.assign(name=[f"{text} ({verdict}):" for text, verdict in zip(statements, rows["verdict"])])
    words = _alt(f"{heading.text}, in units of each threshold", named, "name")
    return _together({"": alt.layer(*parts).properties(width=plot, height=height)}, 1, heading, words)


def _estimates(table: pd.DataFrame, title: str | None, width: int) -> alt.TopLevelMixin:
    """The estimates of each part in its own units; the claimed side of the threshold is shaded."""
    rows = _frame(table, **{c: c for c in ("panel", "label", "value", "low", "high", "threshold", "side")})
    rows = rows.assign(label=rows["label"].map(name), verdict="")
    columns = 2 if width >= 700 else 1
    plot, panels = (width - 28) / columns - 190, {}
    for heading, part in rows.groupby("panel", sort=False):
        limit, side = part[["threshold", "side"]].iloc[0]
        limits = _extent([*_numbers(part, "value"), limit, 0.0], 0.02)
        across, end = _axis("X", limits, None), limits[1] if side == "above" else limits[0]
        shade = alt.Chart(pd.DataFrame({"x": [limit], "end": [end]})).encode(x=across("x"))
        labels = alt.Axis(labelLimit=146, minExtent=150, ticks=False, domain=False)
        y = alt.Y("label:N", sort=None, title=None, axis=labels)
        parts = [shade.mark_rect(color=TINT).encode(x2="end:Q")]
        parts.append(shade.mark_rule(color=INK, strokeDash=[5, 4], strokeWidth=1.4))
        parts += _dots(part, across, y, label="of", shown="estimate")
        panels[str(heading)] = alt.layer(*parts).properties(width=plot, height=alt.Step(20))
    words = _alt("Estimates with 95 % intervals and thresholds", rows.assign(name=rows["label"]), "panel", "name")
    return _together(panels, columns, title or "Estimates and thresholds", words).resolve_scale(x="independent")


@figure
def images(
    tensor: Tensor,
    captions: Sequence[str] | None = None,
    columns: int = 10,
    *,
    rows: Sequence[str] | None = None,
    framed: Collection[int] = (),
    size: int = 72,
    title: str = "Images",
    words: str | None = None,
) -> Picture | None:
    """A grid of images, row by row, below a title, as one picture.

    Args:
        tensor: uint8 (n, 3, h, w). captions: a short text under each. rows: a label at the left of each row.
        framed: numbers of the images that have a frame. words: the alt text, if not made of title, rows and captions.
        size: of an image in the grid in CSS pixels; smaller images are enlarged without smoothing.

    Raises:
        ValueError: not uint8 of shape (n, 3, h, w), no image, or another number of captions or row labels.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind != "uint8" or tensor.ndim != 4 or tensor.shape[1] != 3 or not len(tensor):
        got = f"{kind} of shape {tuple(tensor.shape)}"
        raise ValueError(
            f"images: expected uint8 of shape (n, 3, h, w), n > 0, got {got}; round and clip to 0..255 first"
        )
    columns = min(columns, len(tensor))
    count = -(-len(tensor) // columns)
    for argument, texts, expected in (("captions", captions, len(tensor)), ("rows", rows, count)):
        if texts is not None and len(texts) != expected:
            raise ValueError(f"{argument}: expected {expected} texts, got {len(texts)}; pass None for none")
    scale, gap, font = 2, 16, ImageFont.load_default(24)
    side, foot = size * scale, 36 if captions else 0
    margin = gap + max((round(font.getlength(text)) + gap for text in rows or ()), default=0)
    heading = textwrap.wrap(title, (margin + columns * (side + gap)) // 14)
    head = gap + 34 * len(heading)
    sheet = Image.new("RGB", (margin + columns * (side + gap), head + count * (side + foot + gap)), WHITE)
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((gap, gap // 2), "\n".join(heading), INK, ImageFont.load_default(28), spacing=6)
    for i, array in enumerate(tensor.cpu().permute(0, 2, 3, 1).numpy()):
        left, top = margin + i % columns * (side + gap), head + i // columns * (side + foot + gap)
        if i in framed:
            pen.rectangle((left - 7, top - 7, left + side + 6, top + side + 6), CHOSEN)
        smooth = Image.Resampling.LANCZOS if max(array.shape) > side else Image.Resampling.NEAREST
        sheet.paste(ImageOps.pad(Image.fromarray(array), (side, side), smooth, WHITE), (left, top))
        text = str(captions[i]) if captions else ""
        while pen.textlength(text, font) > side + gap:
            text = text.rstrip("…")[:-1] + "…"
        pen.text((left + side / 2, top + side + 8), text, INK, font, anchor="ma")
        if rows and i % columns == 0:
            pen.text((gap, top + side / 2), rows[i // columns], INK, font, anchor="lm")
    told = "; ".join(", ".join(map(str, texts)) for texts in (rows, captions) if texts)
    words = words or f"{title}, a grid of {len(tensor)} images{': ' if told else ''}{told}"
    return Picture(sheet.quantize(256), title, words, scale=scale)


if alt is not None and notebook():
    use()
