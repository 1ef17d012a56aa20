"""Tables -> figures, sentences and Markdown: one palette, one theme, six primitives.

A figure is interactive where Vega-Lite 5 is known (JupyterLab, the report) and a PNG with alt text everywhere else. Tables hold
keys ("sl-simclr"), figures show `name(key)` in its colour. What is undefined (NaN) is a hatched cell or a gap. A table that is
empty or lacks a column is a ValueError. Without altair, vl_convert or fonts every figure is None, and texts are printed.
"""

from __future__ import annotations

import base64
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
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from repsim.models import layer_kind, stage

try:
    import altair as alt
    import vl_convert
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    ImageFont.load_default(12)
except (ImportError, OSError):
    alt = None

IPYTHON = sys.modules.get("IPython")
NOTEBOOK = bool(IPYTHON and IPYTHON.get_ipython())
Chart, Title, Domain = "alt.TopLevelMixin | None", str | None, Sequence[float] | None

VEGA_LITE = "5.8"  # JupyterLab 4 draws with 5.6; this is the nearest that vl_convert has
MIME = "application/vnd.vegalite.v5+json"
SCALE = 1.6  # pixels of a picture per CSS pixel: sharp on dense screens, and notebooks stay small
WIDTH = 920  # of a figure in CSS pixels: what a notebook shows beside its table of contents
LINE = 15  # height of a line of text in CSS pixels
INK, MUTED, RULE, GRID, WHITE, CHOSEN = "#1f2328", "#57606a", "#9aa0a6", "#e6e9ed", "#ffffff", "#b00d54"
BAND, TINT = "#ccd2d9", "#e7f2ee"  # a placebo's interval; the side of a threshold that a claim asserts

# Colour and name of each meaning. Colours have 4.5:1 against white, as labels have them too, and differ to colour-blind readers.
# A meaning that is not here takes a colour that its figure does not use, from the end of the list.
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
    "pixels": "raw pixels",
    "share": "share of training",
    "value": "",  # a column's name, which says nothing of the quantity
}
VERDICTS: Mapping[str, tuple[str, str]] = {  # colour and sign
    "supported": ("#00735c", "✔"),
    "contradicted": ("#a3260f", "✘"),
    "undecided": ("#57606a", "○"),
    "not judged": ("#3d4a7a", "–"),
    "unspecific": ("#7a5200", "≈"),
}
SIGNS = "DejaVu Sans, Segoe UI Symbol, sans-serif"  # a font that has the signs
FAMILIES = {"measure": "#5b2a86", "control": "#b35900", "estimator": "#00788a"}  # of attacks
NUMBERS = ["value", "low", "high"]
AXIS = {"labelFontSize": 12, "titleFontSize": 13, "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal"}
THEME = {  # nothing is smaller than 12 px; screen readers pass over marks of text, as the alt text has them
    "background": WHITE,
    "padding": 14,
    "font": "Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif",
    "title": {"fontSize": 16, "color": INK, "anchor": "start", "offset": 12, "fontWeight": 600}
    | {"subtitleFontSize": 13, "subtitleColor": MUTED, "subtitlePadding": 6},
    "axis": AXIS | {"gridColor": GRID, "domainColor": RULE, "tickColor": RULE, "titlePadding": 8, "labelFlush": False},
    "axisQuantitative": {"tickCount": 5},
    "legend": AXIS | {"labelLimit": 260, "columnPadding": 18},
    "text": {"align": "left", "baseline": "middle", "fontSize": 12, "lineHeight": LINE, "lineBreak": "\n", "color": INK}
    | {"aria": False},
    "view": {"stroke": GRID},
}


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
    one, _, other = key.partition("-")
    if key in NAMES or one not in NAMES:
        return NAMES.get(key, key)
    if other in NAMES:
        return f"two seeds of {NAMES[one]}" if one == other else f"{NAMES[one]} and {NAMES[other]}"
    return f"{NAMES[one]}, seed {other}" if other.isdigit() else key


def short(layer: str) -> str:
    """A layer's name on an axis: "layer1.0.residual" -> "1.0 res", "layer1.0" -> "1.0", any other unchanged."""
    return re.sub(r"^layer(\d+\.\d+)(?:(\.res)idual)?$", lambda m: m[1] + " res" * bool(m[2]), layer)


def estimate(value: float, low: float = np.nan, high: float = np.nan) -> str:
    """ "0.30 [0.25, 0.35]", without an interval "0.30", "not defined" for NaN."""
    interval = f" [{low:z.2f}, {high:z.2f}]" if np.isfinite(low) else ""
    return f"{value:z.2f}{interval}" if np.isfinite(value) else "not defined"


class Text(str):
    """Markdown that Jupyter renders. Its repr says nothing, so that stored outputs compare equal where numbers differ."""

    _repr_markdown_ = str.__str__

    def __repr__(self) -> str:
        return "Markdown"


def show(*things: Any) -> None:
    """`display` in a notebook. Elsewhere nothing: figures need a notebook, and texts have been printed."""
    if NOTEBOOK:
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
            part = "\n".join(map(row, [part, ["---"] * part.shape[1], *part.itertuples(index=False)]))
        texts.append(part)
    text = Text("\n\n".join(texts))
    if not NOTEBOOK:
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


def use() -> None:
    """Register and enable the theme and the renderer; importing this module in a notebook does so."""
    alt.theme.register("repsim", enable=True)(lambda: alt.theme.ThemeConfig(config=THEME))
    alt.renderers.register("repsim", bundle)
    alt.renderers.enable("repsim")
    alt.data_transformers.disable_max_rows()


def bundle(spec: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chart's MIME bundle (Vega-Lite 5, PNG of 256 colours, title) and its metadata (alt text): see `Picture`."""
    spec = spec | {"$schema": "https://vega.github.io/schema/vega-lite/v5.json"}
    png = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=SCALE)
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    title = spec.get("title") or "Chart"
    title = title["text"] if isinstance(title, dict) else title
    pictures, about = Picture(image, title, spec.get("description"), scale=SCALE)._repr_mimebundle_()
    return {MIME: spec, **pictures}, about


class Picture:
    """A PNG that Jupyter shows: `png` (bytes), `alt`, `size` (width, height in CSS pixels) and `title`, which is its text."""

    def __init__(self, image: Image.Image, title: str, alt: str | None = None, *, scale: float = 1):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        self.png, self.title, self.alt = buffer.getvalue(), title, alt or title
        self.size = round(image.width / scale), round(image.height / scale)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.title}
        return data, {"image/png": {"alt": self.alt, "width": self.size[0], "height": self.size[1]}}


def _frame(table: pd.DataFrame, *same: str, **columns: str | None) -> pd.DataFrame:
    """Columns of a table, and low and high, under names of ours: no name of a user's gets into a Vega expression."""
    columns = {ours: column for ours, column in (dict(zip(same, same)) | columns).items() if column is not None}
    if missing := [str(column) for column in columns.values() if column not in table]:
        expected, got = ", ".join(map(str, columns.values())), ", ".join(map(str, table.columns))
        raise ValueError(f"table: expected columns {expected}, got {got} without {', '.join(missing)}")
    if table.empty:
        raise ValueError("table: expected at least one row, got none; check how it was selected")
    columns |= {bound: bound for bound in ("low", "high") if bound in table}
    rows = pd.DataFrame({ours: table[column].to_numpy() for ours, column in columns.items()})
    for column in rows.select_dtypes("float"):  # more digits than any figure shows would make notebooks large
        rows[column] = [float(f"{number:.5g}") for number in rows[column]]
    return rows.assign(shown=[estimate(*row) for row in rows.filter(NUMBERS).to_numpy()]) if "value" in rows else rows


def _title(text: Any) -> str:
    """A title of an axis, a legend or a tooltip; Vega-Lite writes it into expressions and escapes neither of these signs."""
    return str(text).translate({ord("\\"): "∖", ord('"'): "”"})


def _tips(**titles: str) -> list[alt.Tooltip]:
    """Fields that pointers show, with titles."""
    return [alt.Tooltip(f"{field}:N", title=_title(title or "value")) for field, title in titles.items()]


def _extent(*values: Any, span: float = 0.1) -> list[float]:
    """The axis of some values: `span` long at least, as noise is not to be magnified; 0 to 1 if they take half of that."""
    numbers = np.concatenate([np.ravel(some) for some in values]).astype(float)
    numbers = numbers[np.isfinite(numbers)]
    low, high = (numbers.min(), numbers.max()) if len(numbers) else (0.0, 1.0)
    if 0 <= low and high <= 1 and high - low > 0.5:
        return [0.0, 1.0]
    margin = max(0.06 * (high - low), (span - (high - low)) / 2)
    bottom = max(0.0, low - margin) if low >= 0 else low - margin
    return [float(bottom), float(max(high + margin, bottom + span))]


def _axis(channel: type, limits: Sequence[float], title: str | None, **look: Any) -> Callable[[str], Any]:
    """field -> its encoding on an axis, at whose ends what lies beyond is drawn."""
    scale = alt.Scale(domain=[*limits], nice=False, clamp=True)
    return lambda field: channel(f"{field}:Q", title=title and _title(title), scale=scale, axis=alt.Axis(**look))


def _layer_axis(channel: type, field: str, layers: Sequence[str], title: str, size: float, **look: Any) -> Any:
    """The encoding of layers on an axis of some pixels, in their order, with lines between the network's stages."""
    last = [layer for layer, after in itertools.pairwise(layers) if stage(layer) != stage(after)]
    width = {"condition": {"test": f"indexof({json.dumps(last)}, datum.value) >= 0", "value": 2}, "value": 0}
    look |= {"tickBand": "extent", "gridWidth": width, "grid": True, "labelAngle": -90 if channel is alt.X else 0}
    look |= {"labelExpr": json.dumps({n: short(n) for n in layers}) + "[datum.value]", "labelLimit": 120}
    look |= {"labelOverlap": size < 12 * len(layers) and "parity", "labelPadding": 5, "ticks": False}
    scale, axis = alt.Scale(type="band", domain=[*layers], padding=0), alt.Axis(**look)
    return channel(field, type="ordinal", sort=[*layers], title=_title(title), scale=scale, axis=axis)


def _paint(keys: Iterable[str], legend: alt.Legend | None = None) -> tuple[dict[str, str], alt.Color]:
    """Name -> colour, where a key of no known meaning has one that the others do not use; and the encoding of it."""
    known, names = {NAMES[key]: colour for key, colour in COLOURS.items()}, list(dict.fromkeys(map(name, keys)))
    spare = [c for c in reversed(COLOURS.values()) if c not in {known.get(n) for n in names}] + [INK] * len(names)
    colours = {n: known[n] if n in known else spare.pop(0) for n in names}
    return colours, alt.Color("name:N", scale=alt.Scale(domain=[*colours], range=[*colours.values()]), legend=legend)


def _strokes(rows: pd.DataFrame, *encodings: Any, **tips: str) -> list[alt.Chart]:
    """A line for each `stroke` of the rows and its points, filled by `fill`; with titles of fields for pointers."""
    base = alt.Chart(rows).encode(*encodings, detail="stroke:N", tooltip=_tips(**tips))
    points = base.mark_point(size=40, strokeWidth=1.6, opacity=1).encode(fill=alt.Fill("fill:N", scale=None))
    return [base.mark_line(strokeWidth=2.2, strokeJoin="round"), points]


def _names(places: pd.DataFrame, x: Any, up: Callable, colours: Mapping, limits: Any, height: float) -> alt.Chart:
    """A text for each name (index) near its place y, moved as little as possible (least squares) so that no texts overlap."""
    (low, high), places = limits, places.sort_values("y")
    texts = [textwrap.fill(text, 20) for text in places.index]
    line = LINE * (high - low) / height
    sizes = line * np.array([1 + text.count("\n") for text in texts])
    ends = np.cumsum(sizes)  # of a stack of the texts, from the bottom
    wanted = places["y"].clip(low, high) - (ends - sizes / 2)
    first = isotonic_regression(wanted, y_min=low, y_max=max(low, high - ends[-1])) + ends - line / 2  # lines
    places = places.assign(text=texts, y=first, colour=[colours.get(text, MUTED) for text in places.index])
    color = alt.Color("colour:N", scale=None)
    return alt.Chart(places).mark_text(dx=10).encode(x=x, y=up("y"), text="text:N", color=color)


def _together(panels: Mapping[str, alt.LayerChart], columns: int, title: Any, words: str) -> alt.TopLevelMixin:
    """One figure of panels with headings."""
    charts = []
    for heading, panel in panels.items():
        lines = textwrap.wrap(heading, max(20, int(panel.width + 60) // 7))
        charts.append(panel.properties(title=alt.Title(lines, fontSize=13, fontWeight="normal", offset=6)))
    chart = charts[0] if len(charts) == 1 else alt.concat(*charts, columns=columns, spacing=20)
    return chart.properties(title=title, description=words)


def heatmap(table: pd.DataFrame, *, color: str = "cka", title: Title = None, width: int = WIDTH) -> Chart:
    """Every layer of one stream with every layer of another: a panel for each pair (a, b) of the table.

    The table has a row per cell: a, b, layer_a (rows), layer_b (columns), the value in `color` (0 to 1); low and high if known.
    """
    cells = _frame(table, "a", "b", "layer_a", "layer_b", value=color)
    cells["name"] = [f"{name(a)} with {name(b)}" for a, b in zip(cells["a"], cells["b"])]
    label, pairs, panels = name(color), dict([*cells.groupby("name", sort=False)]), {}
    widest = max(part["layer_b"].nunique() for part in pairs.values())
    columns = 2 if len(pairs) > 1 and 2 * (13 * widest + 150) <= width else 1
    step = int(np.clip((width / columns - 150) / widest, 5, 21))
    for heading, part in pairs.items():
        (a, b), rows, layers = part[["a", "b"]].iloc[0], part["layer_a"].unique(), part["layer_b"].unique()
        height, across = step * len(rows), step * len(layers)
        look = {"domain": False, "gridColor": WHITE, "zindex": 1}
        y = _layer_axis(alt.Y, "layer_a", rows, f"{name(a)}, layer", height, **look)
        x = _layer_axis(alt.X, "layer_b", layers, f"{name(b)}, layer", across, **look)
        tips = _tips(layer_a=f"{a} (row)", layer_b=f"{b} (column)", shown=label)
        base = alt.Chart(part.drop(columns=["a", "b", "name"])).encode(x=x, y=y, tooltip=tips)
        legend = alt.Legend(title=_title(label), gradientLength=min(height, 220), gradientThickness=14)
        scale = alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)  # below 0 as 0
        parts = [base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=legend))]
        if part["value"].isna().any():
            gaps, shape = base.transform_filter("!isValid(datum.value)"), "M-1,1L1,-1M-1,0L0,-1M0,1L1,0"
            hatch = gaps.mark_point(shape=shape, size=(step - 2) ** 2, stroke=MUTED, strokeWidth=1, opacity=1)
            parts += [gaps.mark_rect(color=BAND), hatch]
        panels[heading] = alt.layer(*parts).properties(width=across, height=height)
    gaps = f"; {cells['value'].isna().sum()} cells not defined" if cells["value"].isna().any() else ""
    words = _alt(f"Heatmap of {label}, {widest} layers from the input (left, top) to the output{gaps}", cells, "name")
    first = next(iter(pairs)).replace(" with ", " with every layer of ", 1)
    return _together(panels, columns, title or f"{label}, every layer of {first}", words)


def lines(
    table: pd.DataFrame,
    x: str = "layer",
    y: str = "cka",
    color: str = "pair",
    panel: str | None = None,
    *,
    title: Title = None,
    y_title: Title = None,
    domain: Domain = None,
    shared: bool = True,
    log: bool = False,
    rules: Mapping[str, float] | None = None,
    width: int = WIDTH,
) -> Chart:
    """Lines over layers, epochs, shares of training or numbers of images, with names at their ends (six at most; else a legend).

    Args:
        table: a row per point; up to five lines of a panel have bands from low to high.
        x: "layer" (or layer_a; residual layers are a line of open points) or a number.
        color: what a colour means, a key or a name; if missing made of a and b, or of network (`pair`).
        panel: a panel for each value. domain: range of the y axis; if not given it fits the values, of all panels if `shared`.
        log: of x: log(1 + x / the smallest positive x), so that 0 ("start") has a place.
        rules: name -> height of a dashed line, such as chance.
    """
    rows, label, rules = _points(table, x, y, color, panel), name(y) if y_title is None else y_title, rules or {}
    groups, panels = dict([*rows.groupby("panel", sort=False)]), {}
    columns = 2 if len(groups) > 1 and width >= 700 else 1
    look = {"symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 2.4, "symbolOpacity": 1}
    legend = alt.Legend(title=None, orient="top", columns=width // 230, **look)
    direct = width >= 700 and rows["name"].nunique() <= 6
    colours, paint = _paint(rows["key"], None if direct else legend)
    named = [*(colours if direct else ()), *rules]
    margin = 8 + 7 * max((len(text) for n in named for text in textwrap.wrap(n, 20)), default=0)
    plot, height = min(460, (width - 28) / columns - 80 - margin), 300 if len(groups) == 1 else 210
    scale, axis = alt.Scale(zero=False, nice=False), alt.Axis(grid=False)
    if log:
        places = sorted(rows["x"].unique().tolist())
        number = "format(100 * datum.value, '.2~r') + ' %'" if x == "share" else "format(datum.value, ',')"
        look = {"labelExpr": f"datum.value ? {number} : 'start'", "labelOverlap": x != "share", "labelAngle": -90}
        axis = alt.Axis(grid=False, values=places, **look)
        scale = alt.Scale(type="symlog", constant=min(place for place in places if place > 0), nice=False)
    for heading, part in groups.items():
        limits = domain or _extent((rows if shared else part).filter(NUMBERS), [*rules.values()])
        across = alt.X("x:Q", title=_title(name(x)), scale=scale, axis=axis)
        if x == "layer":
            across = _layer_axis(alt.X, "x", part["x"].unique(), x, plot, gridColor=RULE, gridDash=[2, 3])
        up = _axis(alt.Y, limits, label, minExtent=32)
        part = part.drop(columns=["key", "panel"]).assign(fill=part["name"].map(colours).where(~part["open"], WHITE))
        marks = _strokes(part, across, up("value"), paint, line="line", x=name(x), shown=label)
        if "low" in part and part.groupby(["line", "name"]).ngroups <= 5:
            marks.insert(0, marks[0].mark_area(opacity=0.16, aria=False).encode(y=up("low"), y2="high:Q"))
        dashed = alt.Chart(pd.DataFrame({"value": [*rules.values()]}, dtype=float))
        marks.append(dashed.mark_rule(strokeDash=[5, 4], color=MUTED).encode(y=up("value")))
        last = part[part["open"] == part["open"].min()].dropna(subset="value").groupby("stroke").tail(1)
        ends = pd.DataFrame({"y": last.groupby("name")["value"].mean().to_dict() | rules}).filter(named, axis=0)
        if len(ends):
            marks.append(_names(ends, alt.value("width"), up, colours, limits, height))
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
    rows = rows.assign(name=rows["key"].map(name), panel=rows["panel"].map(name) if panel else "")
    rows["open"] = [x == "layer" and layer_kind(place) == "residual" for place in rows["x"]]
    rows["stroke"] = rows["line"] + rows["name"] + rows["open"].map({True: " residual", False: ""})
    networks = [part["x"].unique() for _, part in rows.groupby("line", sort=False)]
    order = [*dict.fromkeys(itertools.chain(*sorted(networks, key=len, reverse=True)))]  # of layers
    return rows.sort_values("x", kind="stable", key=lambda places: places.map(order.index) if x == "layer" else places)


def path(table: pd.DataFrame, x: str, y: str, *, title: Title = None, domain: Domain = None) -> Chart:
    """Points of a plane in the order of `position`, a line for each network, from an open point to its name.

    The table has a row per point: x, y, network (or any name), position, layer. Axes fit the values, or have one `domain` and a
    dashed line where they are equal.
    """
    rows = _frame(table, x=x, y=y, stroke="network", position="position", layer="layer").sort_values("position")
    rows["name"] = rows["stroke"].map(objective).map(name)
    colours, paint = _paint(rows["stroke"].map(objective))
    rows["fill"] = rows["name"].map(colours).where(rows["stroke"].duplicated(), WHITE)
    limits, plot, height = [domain or _extent(rows[column]) for column in ("x", "y")], 460, 368
    across, up = _axis(alt.X, limits[0], x), _axis(alt.Y, limits[1], y, minExtent=32)
    line, points = _strokes(rows, across("x"), up("y"), paint, stroke="line", layer="layer", x=x, y=y)
    last = rows.drop_duplicates("stroke", keep="last").sort_values("x").drop_duplicates("name", keep="last")
    names = _names(last.set_index("name")[["x", "y"]], across("x"), up, colours, limits[1], height)
    marks = [line.encode(order="position:Q"), points, names]
    if domain:
        equal = alt.Chart(pd.DataFrame({"x": domain, "y": domain})).mark_line(color=MUTED, strokeDash=[5, 4])
        marks.insert(0, equal.encode(x=across("x"), y=up("y")))
    note = "Lines run from the open point ({}) to the name ({}).".format(*rows["layer"].iloc[[0, -1]])
    heading = alt.Title(title or f"{y} against {x}", subtitle=textwrap.wrap(note, WIDTH // 8))
    words = _alt(f"{y} against {x}. {note} Ranges of {y}", rows.assign(value=rows["y"]), "stroke")
    return _together({"": alt.layer(*marks).properties(width=plot, height=height)}, 1, heading, words)


def bars(
    table: pd.DataFrame,
    category: str,
    value: str,
    color: str | None = None,
    *,
    title: Title = None,
    value_title: Title = None,
    domain: Domain = None,
    rules: Mapping[str, float] | None = None,
) -> Chart:
    """Horizontal bars from zero, each with its number and its interval (low and high, if the table has them).

    The table has a row per bar: `category`, `value` and, for several bars in a category, `color`. rules: as for `lines`.
    """
    rows, rules = _frame(table, category=category, value=value, key=color or category), rules or {}
    label = name(value) if value_title is None else value_title
    rows = rows.assign(category=rows["category"].map(name), name=rows["key"].map(name))
    rows["end"] = rows.filter(NUMBERS).max(axis=1).clip(lower=0)
    across = _axis(alt.X, domain or _extent(rows.filter(NUMBERS), [0.0, *rules.values()]), label)
    names = alt.Axis(labelLimit=240, ticks=False, labelPadding=6)
    tips = _tips(category=category, **({"name": color} if color else {}), shown=label)
    base = alt.Chart(rows).encode(y=alt.Y("category:N", sort=None, title=None, axis=names), tooltip=tips)
    if color:
        base = base.encode(yOffset=alt.YOffset("name:N", sort=rows["name"].unique().tolist()))
    legend = alt.Legend(title=None, orient="top", symbolType="square", columns=4) if color else None
    bar = base.mark_bar(height=alt.RelativeBandSize(0.86))
    parts = [bar.encode(x=across("value"), color=_paint(rows["key"], legend)[1])]
    if "low" in rows:
        parts.append(base.mark_rule(color=RULE, strokeWidth=2).encode(x=across("low"), x2="high:Q"))
    parts.append(base.mark_text(dx=6).encode(x=across("end"), text=alt.Text("value:Q", format=".2f")))
    if rules:
        marks = alt.Chart(pd.DataFrame({"value": [*rules.values()], "text": [*rules]})).encode(x=across("value"))
        parts.append(marks.mark_rule(color=INK, strokeDash=[5, 3], strokeWidth=1.6))
        parts.append(marks.mark_text(align="center").encode(y=alt.value(-9), text="text:N"))
    chart = alt.layer(*parts).properties(width=520, height=alt.Step(20 if color else 28))
    words = _alt(f"Bars of {label}", rows, *(["category", "name"] if color else ["name"]))
    return _together({"": chart}, 1, title or label, words)


def forest(table: pd.DataFrame, ticks: pd.DataFrame | None = None, *, title: Title = None) -> Chart:
    """Estimates beside their thresholds, in the colour of their side of it (open if not judged); the asserted side is shaded.

    Args:
        table: panel, label, value, low, high, threshold, side ("above", "below"): each panel in its own units. Or all claims in
            one look, in units of their thresholds: row (a claim's id), label, value, low, high, placebo_low, placebo_high (the
            grey band; NaN: none), verdict (of VERDICTS), note.
        ticks: row, value, family (of FAMILIES), name, whole (False, hollow: a part of the claim alone was measured again).
    """
    claims, note, panels = "threshold" not in table, "", {}
    if claims:
        rows = _frame(table, "row", "label", *NUMBERS, "placebo_low", "placebo_high", "verdict", "note")
        rows = rows.assign(threshold=1.0, side="above")
        rows["panel"] = [" · ".join(filter(None, words)) for words in rows[["row", "label", "note"]].to_numpy()]
        rows["label"] = [f"{VERDICTS[verdict][1]} {verdict}" for verdict in rows["verdict"]]
        note = "Units of thresholds: 0 none, 1 the smallest effect that counts. Grey bands: placebos."
    else:
        rows = _frame(table, "panel", "label", *NUMBERS, "threshold", "side").assign(verdict=None)
        rows["label"] = rows["label"].map(name)
    gaps = rows[["low", "high"]].sub(rows["threshold"], axis=0).mul(np.where(rows["side"] == "above", 1, -1), axis=0)
    sides = np.select([(gaps > 0).all(axis=1), (gaps < 0).all(axis=1)], ["supported", "contradicted"], "undecided")
    rows["colour"] = [VERDICTS[side][0] for side in sides]
    rows["fill"] = rows["colour"].mask(rows["verdict"] == "not judged", WHITE)
    if marked := ticks is not None and len(ticks) > 0:
        ticks = _frame(ticks, "row", "value", "family", "name", "whole")
        ticks["fill"] = ticks["family"].map(FAMILIES).fillna(INK).where(ticks["whole"], WHITE)
        note += " Small marks: attacks, hollow where they measure a part of the claim."
    look = {"symbolType": "square", "symbolStrokeWidth": 3, "symbolFillColor": WHITE}
    scale = alt.Scale(domain=[*FAMILIES], range=[*FAMILIES.values()])
    legend = alt.Legend(title="attacks", orient="bottom", columns=4, **look)
    fill, stroke = alt.Fill("fill:N", scale=None), alt.Stroke("family:N", scale=scale, legend=legend)
    columns = 1 if claims else 2
    size = {"width": (WIDTH - 28) / columns - 190, "height": alt.Step(46 if claims else 20)}
    widest = np.clip(_extent(rows.filter(NUMBERS), [-0.5, 1.5]), -4, 6).tolist()
    for heading, part in rows.groupby("panel", sort=False):
        one = part.iloc[0]
        limits = widest if claims else _extent(part.filter(NUMBERS), [one["threshold"], 0.0], span=0.02)
        across = _axis(alt.X, limits, None, labels=not claims or heading == rows["panel"].iloc[-1])
        hue = VERDICTS[one["verdict"]][0] if claims else INK
        axis = alt.Axis(
            labelLimit=136, labelPadding=12, minExtent=150, ticks=False, domain=False, labelFont=SIGNS, labelColor=hue
        )
        y = alt.Y("label:N", sort=None, title=None, axis=axis, scale=alt.Scale(domain=[*part["label"].unique()]))
        tips = _tips(label="of", shown="estimate")
        base = alt.Chart(part).encode(y=y, color=alt.Color("colour:N", scale=None), tooltip=tips)
        ends = pd.DataFrame({"x": [one["threshold"]], "end": [limits[one["side"] == "above"]]})
        claimed = alt.Chart(ends).encode(x=across("x"))
        marks = [claimed.mark_rect(color=TINT).encode(x2="end:Q")]
        if claims and np.isfinite(one["placebo_low"]):
            placebo = base.mark_bar(height=26).encode(x=across("placebo_low"), x2="placebo_high:Q")
            marks.append(placebo.encode(color=alt.value(BAND)))
        marks.append(claimed.mark_rule(color=INK, strokeDash=[5, 4], strokeWidth=1.4))
        marks.append(base.mark_rule(strokeWidth=3).encode(x=across("low"), x2="high:Q"))
        marks.append(base.mark_point(size=110, strokeWidth=2.2, opacity=1).encode(x=across("value"), fill=fill))
        if marked:
            tick = alt.Chart(ticks[ticks["row"] == one["row"]].assign(label=one["label"]))
            tick = tick.mark_point(shape="M-.25,-1H.25V1H-.25Z", size=100, strokeWidth=1.3, opacity=1, yOffset=17)
            tips = _tips(name="attack", family="of", shown="effect / threshold")
            marks.append(tick.encode(across("value"), y, fill, stroke, tooltip=tips))
        panels[str(heading)] = alt.layer(*marks).properties(**size)
    heading = alt.Title(title or "Estimates and thresholds", subtitle=textwrap.wrap(note, WIDTH // 8))
    words = _alt(f"{heading.text}, with 95 % intervals", rows, "panel", "label")
    return _together(panels, columns, heading, words)


def images(
    tensor: Tensor, captions: Sequence[str], columns: int = 10, *, framed: Collection[int] = (), title: str = "Images"
) -> Picture | None:
    """A grid of images, uint8 (n, 3, h, w), row by row below a title, as one picture; small ones are enlarged without smoothing.

    A caption is a short text under an image; those whose numbers are `framed` have a frame. ValueError for no such images, or
    another number of captions.
    """
    kind = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
    if not re.fullmatch(r"uint8 of shape \([1-9]\d*, 3, \d+, \d+\)", kind):
        raise ValueError(f"images: expected uint8 of shape (n, 3, h, w), got {kind}; round and clip to 0..255 first")
    if len(captions) != len(tensor):
        raise ValueError(f"captions: expected {len(tensor)} texts, got {len(captions)}; pass one for each image")
    side, gap, foot, font = 128, 16, 36, ImageFont.load_default(24)
    columns = min(columns, len(tensor))
    width = gap + columns * (side + gap)
    heading = textwrap.fill(title, width // 14)
    top = gap + 34 * (1 + heading.count("\n"))
    sheet = Image.new("RGB", (width, top + -(-len(tensor) // columns) * (side + foot + gap)), WHITE)
    pen = ImageDraw.Draw(sheet)
    pen.multiline_text((gap, gap // 2), heading, INK, ImageFont.load_default(28), spacing=6)
    for i, (array, text) in enumerate(zip(tensor.cpu().permute(0, 2, 3, 1).numpy(), map(str, captions))):
        x, y = gap + i % columns * (side + gap), top + i // columns * (side + foot + gap)
        if i in framed:
            pen.rectangle((x - 7, y - 7, x + side + 6, y + side + 6), CHOSEN)
        smooth = Image.Resampling.LANCZOS if max(array.shape) > side else Image.Resampling.NEAREST
        sheet.paste(ImageOps.pad(Image.fromarray(array), (side, side), smooth, WHITE), (x, y))
        while pen.textlength(text, font) > side + gap:
            text = text.rstrip("…")[:-1] + "…"
        pen.text((x + side / 2, y + side + 8), text, INK, font, anchor="ma")
    words = f"{title}, a grid of {len(tensor)} images: {', '.join(map(str, captions))}"
    return Picture(sheet.quantize(256), title, words, scale=2)


if alt is None:
    heatmap = lines = path = bars = forest = images = lambda *table, **options: None
elif NOTEBOOK:
    use()
