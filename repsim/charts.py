"""Tables -> figures, sentences and Markdown: one palette, one theme, six primitives.

A figure is interactive where Vega-Lite 5 is known (JupyterLab, the report) and a PNG with alt text everywhere else. It is at most
WIDTH pixels wide; `width=390` makes one for a phone. Tables hold keys ("sl-simclr", "ce_views"), figures show `name(key)` in its
colour. What is undefined (NaN) is a hatched cell or a gap. On a machine without altair, vl_convert or fonts every figure is None,
and texts are printed. Figures are dark on white; a page in dark mode can invert all but pictures and heatmaps.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from repsim.comparison import jackknife
from repsim.models import layer_kind, stage

try:
    import altair as alt
    import vl_convert
    from PIL import Image, ImageDraw, ImageFont

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
}
AXES = {"share": "share of training", "n": "images"}  # of lines
VERDICTS: Mapping[str, tuple[str, str]] = {  # colour and sign
    "supported": ("#00735c", "✔"),
    "contradicted": ("#a3260f", "✘"),
    "undecided": ("#57606a", "○"),
    "not judged": ("#3d4a7a", "–"),
    "unspecific": ("#7a5200", "≈"),
}
SIGNS = "DejaVu Sans, Segoe UI Symbol, sans-serif"  # a font that has the signs
FAMILIES = {"measure": "#5b2a86", "control": "#b35900", "estimator": "#00788a"}  # of attacks


# ----- names, colours, texts


def objective(network: str) -> str:
    """ "sl-0" and "sl-0@simclr-1" -> "sl"; "labels" -> "labels"."""
    return re.sub(r"-\d+$", "", network.split("@")[0])


def pair(a: str, b: str) -> str:
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
    match = re.fullmatch(r"layer(\d+\.\d+)(\.residual)?", layer)
    return layer if match is None else match[1] + (" res" if match[2] else "")


def percent(share: float) -> str:
    """A share of the training as text, "start" for 0."""
    return f"{100 * share:.2g} %" if 0 < share < 1 else "100 %" if share else "start"


def contrast(colour: str, ground: str = WHITE) -> float:
    """Contrast ratio, 1 to 21, of two colours like "#0072b2" (Web Content Accessibility Guidelines 2.2)."""

    def luminance(text: str) -> float:
        rgb = np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(colour), luminance(ground)))
    return (light + 0.05) / (dark + 0.05)


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
    texts = []
    for part in parts:
        if isinstance(part, pd.DataFrame):
            rows = [part.columns, ["---"] * part.shape[1], *part.itertuples(index=False)]
            cells = [[f"{c:z.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
            inner = (" | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) for row in cells)
            part = "\n".join(f"| {row} |" for row in inner)
        texts.append(part)
    text = Text("\n\n".join(texts))
    if not notebook():
        print(text, end="\n\n")
    return text


def sentence(template: str, *values: Any) -> Text:
    """Markdown with each {} of the template filled by a number, or by "value [low, high]", both with two decimals.

    values: numbers, triples (value, low, high), or replicates (1 + folds,): of everything, then without each fold (`jackknife`).
    """

    def filled(value: Any) -> str:
        numbers = np.atleast_1d(np.asarray(value, dtype=float))
        if not isinstance(value, tuple) and len(numbers) > 1:
            numbers = jackknife(numbers, np.ones(len(numbers) - 1))
        return f"{numbers[0]:z.2f}" + (f" [{numbers[1]:z.2f}, {numbers[2]:z.2f}]" if len(numbers) == 3 else "")

    return markdown(template.format(*map(filled, values)))


def _alt(what: str, rows: pd.DataFrame, by: Sequence[str] = ("name",)) -> str:
    """An alt text: what is shown, then for each name the range of its values; a long list ends with a count."""
    words = []
    for names, values in rows.groupby(list(by), sort=False, dropna=False)["value"]:
        ends = dict.fromkeys(f"{v:z.2f}" for v in (values.min(), values.max()))
        words.append(f"{', '.join(n for n in map(str, names) if n)} {' to '.join(ends)}".replace("nan", "not defined"))
    more = f"; and {len(words) - 24} more" if len(words) > 24 else ""
    return f"{what}. {'; '.join(words[:24])}{more}."


# ----- how figures reach a reader


def figure(draw: Callable) -> Callable:
    """A primitive that is None where the packages for figures are missing."""

    @functools.wraps(draw)
    def made(*args: Any, **options: Any) -> Any:
        return None if alt is None else draw(*args, **options)

    return made


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
        "line": {"strokeJoin": "round"},
    }


def bundle(spec: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chart's MIME bundle (Vega-Lite 5 specification, PNG of 256 colours, title) and its metadata.

    The text is the title alone, so that stored outputs compare equal where numbers differ; the alt text is metadata.
    """
    rounded = {key: [_rounded(row) for row in rows] for key, rows in spec.get("datasets", {}).items()}
    spec = {**spec, "$schema": "https://vega.github.io/schema/vega-lite/v5.json", "datasets": rounded}
    png = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=SCALE)
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    title = spec.get("title") or "Chart"
    title = title.get("text") or "Chart" if isinstance(title, dict) else title
    title = " ".join(title) if isinstance(title, list) else title
    pictures, about = Picture(image, title, spec.get("description"), scale=SCALE)._repr_mimebundle_()
    return {MIME: spec, **pictures}, about


def _rounded(row: Any) -> Any:
    """Numbers of a table's row with 5 significant digits, more than any figure shows: a notebook stays small."""
    if isinstance(row, dict):
        return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
    return row


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

TIP = (  # a value with its interval, or that it is undefined
    "isValid(datum.value) ? format(datum.value, '.2f') + (isValid(datum.low) ? ' [' + format(datum.low, '.2f') + ', '"
    " + format(datum.high, '.2f') + ']' : '') : 'not defined'"
)


def _frame(table: pd.DataFrame, **columns: str | None) -> pd.DataFrame:
    """Columns of a table, and low and high, under names of ours: no name of a user's gets into a Vega expression."""
    columns = {ours: column for ours, column in columns.items() if column is not None}
    if missing := [str(column) for column in columns.values() if column not in table]:
        expected, got = ", ".join(map(str, columns.values())), ", ".join(map(str, table.columns))
        raise ValueError(f"table: expected columns {expected}, got {got} without {', '.join(missing)}")
    if table.empty:
        raise ValueError("table: expected at least one row, got none; check how it was selected")
    columns |= {bound: bound for bound in ("low", "high") if bound in table}
    return pd.DataFrame({ours: table[column].to_numpy() for ours, column in columns.items()})


def _numbers(rows: pd.DataFrame, *columns: str) -> list[float]:
    """All defined numbers of these columns, and of low and high."""
    values = rows[[c for c in (*columns, "low", "high") if c in rows]].to_numpy(dtype=float).ravel()
    return values[np.isfinite(values)].tolist()


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _paint(keys: Iterable[str], legend: alt.Legend | None = None) -> tuple[dict[str, str], alt.Color]:
    """Name -> colour, where a key of no known meaning has one that the others do not use; and the encoding of it."""
    keys = _unique(map(str, keys))
    spare = [c for c in reversed(COLOURS.values()) if c not in {COLOURS.get(key) for key in keys}] + [INK] * len(keys)
    colours = {name(key): COLOURS[key] if key in COLOURS else spare.pop(0) for key in keys}
    return colours, alt.Color("name:N", scale=alt.Scale(domain=[*colours], range=[*colours.values()]), legend=legend)


def _hue(field: str = "colour", channel: str = "Color") -> Any:
    """A column of colours as they are."""
    return getattr(alt, channel)(f"{field}:N", scale=None)


def _title(text: Any) -> str:
    """A title of an axis, a legend or a tooltip; Vega-Lite writes it into expressions and escapes neither of these signs."""
    return str(text).translate({ord("\\"): "∖", ord('"'): "”"})


def _tips(format: str = "", **titles: str) -> list[alt.Tooltip]:
    """Fields that pointers show, with titles."""
    look = {"type": "quantitative", "format": format} if format else {"type": "nominal"}
    return [alt.Tooltip(field, title=_title(title), **look) for field, title in titles.items()]


def _starts(layers: Sequence[str]) -> list[int]:
    """Where a new stage begins."""
    return [i for i in range(1, len(layers)) if stage(layers[i]) != stage(layers[i - 1])]


def _extent(values: Sequence[float], span: float = 0.1) -> list[float]:
    """The axis of some values: `span` long at least, from 0 to 1 if they take half of that, not below 0 if no value is."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if 0 <= low and high <= 1 and high - low > 0.5:
        return [0.0, 1.0]
    margin = max(0.06 * (high - low), (span - (high - low)) / 2)
    bottom = max(0.0, low - margin) if low >= 0 else low - margin
    return [bottom, max(high + margin, bottom + span)]


def _axis(channel: str, limits: Sequence[float], title: str | None, **look: Any) -> Callable[[str], Any]:
    """field -> its encoding on an axis, at whose ends what lies beyond is drawn."""
    scale = alt.Scale(domain=[float(end) for end in limits], nice=False, clamp=True)
    axis = alt.Axis(**{"tickCount": 5, "minExtent": 32 if channel == "Y" else 0} | look)
    title = title and _title(title)
    return lambda field: getattr(alt, channel)(f"{field}:Q", title=title, scale=scale, axis=axis)


def _text(frame: pd.DataFrame, **look: Any) -> alt.Chart:
    """The column `text`, in the colours of `colour` if there is one; screen readers pass over it, as the alt text has it."""
    look = {"align": "left", "baseline": "middle", "fontSize": 12.5, "color": INK, "aria": False} | look
    marks = alt.Chart(frame).mark_text(**look).encode(text="text:N")
    return marks.encode(color=_hue()) if "colour" in frame else marks


def _apart(places: Sequence[float], sizes: Sequence[float], length: float) -> np.ndarray:
    """Places in 0 ... length, moved as little as possible (least squares) so that things of these sizes do not overlap."""
    order, moved = np.argsort(places, kind="stable"), np.empty(len(places))
    places, sizes = np.asarray(places, float)[order], np.asarray(sizes, float)[order]
    offsets = np.cumsum(np.append(0, (sizes[1:] + sizes[:-1]) / 2))
    fit = IsotonicRegression(y_min=0, y_max=max(0, length - offsets[-1])).fit_transform(offsets, places - offsets)
    moved[order] = fit + offsets
    return moved


def _labels(named: Sequence[tuple[str, str, float]], limits: Sequence[float], height: float) -> pd.DataFrame:
    """(name, colour, value) -> a row per line of text at the height of its value, or as near as texts do not overlap."""
    wrapped, unit = [textwrap.wrap(text, 20) or [""] for text, _, _ in named], (limits[1] - limits[0]) / height
    places = [(limits[1] - np.clip(v, *limits)) / unit for _, _, v in named]
    moved = limits[1] - unit * _apart(places, [LINE * len(parts) for parts in wrapped], height)
    rows = [
        (part, colour, value, middle, whole, middle - unit * LINE * (k - (len(parts) - 1) / 2))
        for (whole, colour, value), parts, middle in zip(named, wrapped, moved)
        for k, part in enumerate(parts)
    ]
    return pd.DataFrame(rows, columns=["text", "colour", "value", "middle", "name", "y"])


def _together(panels: Mapping[str, alt.LayerChart], columns: int, title: Any, words: str) -> alt.TopLevelMixin:
    """One figure of panels with headings."""
    charts = []
    for heading, panel in panels.items():
        if heading:
            text = textwrap.wrap(heading, max(20, int(panel.width + 60) // 7))
            panel = panel.properties(title=alt.Title(text, fontSize=13, fontWeight="normal", offset=6))
        charts.append(panel)
    chart = charts[0] if len(charts) == 1 else alt.concat(*charts, columns=columns, spacing=20)
    return chart.properties(title=title, description=words)


# ----- heatmaps


@figure
def heatmap(
    table: pd.DataFrame,
    *,
    color: str = "cka",
    title: str | None = None,
    color_title: str | None = None,
    linked: bool = False,
    width: int = WIDTH,
) -> alt.TopLevelMixin | None:
    """Every layer of one stream with every layer of another: a panel for each pair (a, b) of the table.

    Args:
        table: a row per cell: a, b, layer_a (rows), layer_b (columns), the value in `color` (0 to 1); low and high if known.
        linked: the row that was clicked, or chosen from a menu, is a curve beside the map. One pair only.

    Raises:
        ValueError: a column is missing, the table is empty, or `linked` with more than one pair.
    """
    cells = _frame(table, a="a", b="b", layer_a="layer_a", layer_b="layer_b", value=color)
    cells["name"] = [f"{name(a)} with {name(b)}" for a, b in zip(cells["a"], cells["b"])]
    label, pairs = color_title or name(color), dict([*cells.groupby(["a", "b"], sort=False)])
    if linked and len(pairs) > 1:
        raise ValueError(f"linked: expected a table of one pair, got {len(pairs)}; draw one linked chart for each")
    widest = max(part["layer_b"].nunique() for part in pairs.values())
    columns = 2 if len(pairs) > 1 and 2 * (13 * widest + 150) <= width else 1
    step = int(np.clip((width / (1.75 if linked else columns) - 150) / widest, 5, 21))
    maps = [_map(part, str(a), str(b), label, step, linked) for (a, b), part in pairs.items()]
    gaps = f"; {cells['value'].isna().sum()} cells not defined" if cells["value"].isna().any() else ""
    words = _alt(f"Heatmap of {label}, {widest} layers from the input (left, top) to the output{gaps}", cells)
    names = _unique(cells["name"])
    title = title or f"{label}, every layer of {names[0].replace(' with ', ' with every layer of ', 1)}"
    return _together(dict(zip(names if len(pairs) > 1 else [""], maps)), columns, title, words)


def _map(cells: pd.DataFrame, a: str, b: str, label: str, step: int, linked: bool) -> alt.TopLevelMixin:
    rows, columns = _unique(cells["layer_a"]), _unique(cells["layer_b"])
    size = {"width": step * len(columns), "height": step * len(rows)}
    cells = cells.drop(columns=["a", "b", "name"])

    def axis(channel: Any, field: str, network: str, layers: Sequence[str], **look: Any) -> Any:
        look |= {"labelExpr": json.dumps({n: short(n) for n in layers}) + "[datum.value]", "labelLimit": 120}
        look |= {"ticks": False, "domain": False, "labelPadding": 4, "labelOverlap": step < 12 and "parity"}
        scale = alt.Scale(type="band", domain=layers, paddingInner=0, paddingOuter=0)
        return channel(
            field, type="ordinal", scale=scale, axis=alt.Axis(title=_title(f"{name(network)}, layer"), **look)
        )

    y, x = axis(alt.Y, "layer_a", a, rows), axis(alt.X, "layer_b", b, columns, labelAngle=-90)
    tips = _tips(layer_a=f"{a} (row)", layer_b=f"{b} (column)", shown=label)
    base = alt.Chart(cells).transform_calculate(shown=TIP).encode(x=x, y=y, tooltip=tips)
    legend = alt.Legend(title=_title(label), gradientLength=min(size["height"], 220), gradientThickness=14)
    scale = alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)  # below 0 as 0
    parts = [base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=legend))]
    if cells["value"].isna().any():
        gaps, look = base.transform_filter("!isValid(datum.value)"), {"filled": False, "opacity": 1, "strokeWidth": 1}
        hatch = gaps.mark_point(shape="M-1,1L1,-1M-1,0L0,-1M0,1L1,0", size=(step - 2) ** 2, stroke=MUTED, **look)
        parts += [gaps.mark_rect(color=BAND), hatch]
    for side, own, layers in (("y", y, rows), ("x", x, columns)):
        edges = alt.Chart(pd.DataFrame({"layer": [layers[i] for i in _starts(layers)]}, dtype=object))
        edge = type(own)("layer", type="ordinal", bandPosition=0, scale=own["scale"])
        for thick, colour in ((2.6, WHITE), (0.9, INK)) if _starts(layers) else ():
            parts.append(edges.mark_rule(strokeWidth=thick, color=colour, aria=False).encode(**{side: edge}))
    if not linked:
        return alt.layer(*parts).properties(**size)
    first = next((n for n in reversed(rows) if layer_kind(n) == "post-residual"), rows[-1])
    menu = {"bind": alt.binding_select(options=rows, name=f"{a}, layer "), "value": [{"layer_a": first}]}
    row = alt.selection_point("row", fields=["layer_a"], on="click", clear=False, toggle=False, empty=False, **menu)
    parts[0] = parts[0].add_params(row).properties(name="cells")
    texts = pd.DataFrame({"layer_a": rows, "text": [f"{name(a)}, {n} (outlined)" for n in rows]})
    outline = alt.Chart(texts).transform_filter(row).mark_rect(fill=None, stroke=CHOSEN, strokeWidth=3, aria=False)
    parts.append(outline.encode(y=y, x=alt.value(0), x2=alt.value(size["width"])))
    cells = cells.assign(at=cells["layer_b"].map(columns.index), open=cells["layer_b"].map(layer_kind) == "residual")
    up = _axis("Y", (0, 1), label)
    curve = alt.Chart(cells).transform_filter(row).transform_calculate(shown=TIP).encode(x=x, tooltip=tips)
    beside = [curve.mark_line(color=CHOSEN, strokeWidth=2).encode(y=up("value"), order="at:Q", detail="open:N")]
    if "low" in cells:
        beside.append(curve.mark_rule(strokeWidth=5, opacity=0.3, color=CHOSEN).encode(y=up("low"), y2="high:Q"))
    fill = alt.condition("datum.open", alt.value(WHITE), alt.value(CHOSEN))
    beside.append(curve.mark_point(stroke=CHOSEN, size=44, opacity=1).encode(y=up("value"), fill=fill))
    beside.append(_text(texts, color=CHOSEN).transform_filter(row).encode(x=alt.value(0), y=alt.value(-12)))
    beside = alt.layer(*beside).properties(width=max(240, 13 * len(columns)), height=size["height"])
    return alt.hconcat(alt.layer(*parts).properties(**size), beside, spacing=24)


# ----- lines, paths, bars


@figure
def lines(
    table: pd.DataFrame,
    x: str = "layer",
    y: str = "cka",
    color: str = "pair",
    panel: str | None = None,
    slider: str | None = None,
    *,
    line: str | None = None,
    title: str | None = None,
    y_title: str | None = None,
    domain: Sequence[float] | None = None,
    span: float = 0.1,
    shared: bool = True,
    log: bool = False,
    rules: Mapping[str, float] | None = None,
    width: int = WIDTH,
) -> alt.TopLevelMixin | None:
    """Lines over layers, epochs, shares of training or numbers of images, with their names at their ends.

    More than six names become a legend. Up to five lines of a panel have bands from `low` to `high`; pointers show all intervals.

    Args:
        table: a row per point. x: "layer" (or layer_a; residual layers are a line of open points) or a number.
        color: what a colour means, a key or a name; if missing made of a and b (`pair`) or of network (`objective`).
        panel: a panel for each value; "kind" sets post-residual and residual layers side by side.
        slider: moments, of which a reader chooses one; a picture shows the last. Thin grey is the first.
        line: what tells lines of one colour apart; a and b, or network, if not given.
        domain: range of the y axis; if not given it fits the values and is at least `span` long, as noise is not to be magnified.
        shared: panels have one y axis. log: of x, where 0 ("start") stands at half of the smallest positive value.
        rules: name -> height of a dashed line, such as chance.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    rows = _points(table, x, y, color, panel, slider, line)
    moments = sorted(rows["moment"].unique())
    rows["moment"] = rows["moment"].map(moments.index)
    groups, label, rules = (
        dict([*rows.groupby("panel", sort=False)]),
        name(y) if y_title is None else y_title,
        rules or {},
    )
    names = [set(part["name"]) for part in groups.values()]
    few = len(groups) in (1, 2, 4)
    direct = len(set().union(*names)) <= 6 and (few or all(n == names[0] for n in names))
    look = {"symbolType": "stroke", "symbolSize": 400, "symbolStrokeWidth": 2.4, "symbolOpacity": 1}
    legend = None if direct else alt.Legend(title=None, orient="top", columns=width // 230, **look)
    colours, paint = _paint(rows["key"], legend)
    written = [*(colours if direct else ()), *rules]
    margin = max([8 + 7 * len(text) for n in written for text in textwrap.wrap(n, 20)], default=0)
    longest = max(part["x"].nunique() for part in groups.values())
    for columns in [n for n in ((2, 1) if few else (3, 2, 1)) if n <= len(groups)]:
        plot = (width - 28 - 76 * columns - margin * (columns if columns < 3 else 1)) / columns
        if plot >= (12 * longest if x == "layer" else 190):
            break
    plot, height = min(plot, 44 * longest if x == "layer" else 560), {1: 300, 2: 250, 4: 220}.get(len(groups), 190)

    panels = {}
    for i, (heading, part) in enumerate(groups.items()):
        bounds = _numbers(rows if shared else part, "value") + [*rules.values()]
        limits = list(domain) if domain else _extent(bounds, span)
        part, across, edges = _across(part.drop(columns=["key", "panel"]), x, log, plot, bool(heading))
        up = _axis("Y", limits, label if not shared or i % columns == 0 else None)
        tips = _tips(line="line", x=AXES.get(x, x), shown=label)
        every = alt.Chart(part).transform_calculate(shown=TIP).encode(x=across, color=paint, tooltip=tips)
        every, marks = every.encode(detail=["line:N", "branch:N"]), [edges]
        if slider:
            first = every.transform_filter("datum.moment == 0").mark_line(strokeWidth=1.2)
            marks.append(first.encode(y=up("value"), color=alt.value(RULE)))
            every = every.transform_filter("datum.moment == now")
        if "low" in part and len(part[["line", "name"]].drop_duplicates()) <= 5:
            marks.append(every.mark_area(opacity=0.16, aria=False).encode(y=up("low"), y2="high:Q"))
        every = every.encode(y=up("value"))
        marks.append(every.mark_line(strokeWidth=2.2))
        marks.append(every.transform_filter("!datum.open").mark_point(filled=True, size=40, opacity=1))
        marks.append(every.transform_filter("datum.open").mark_point(fill=WHITE, size=44, strokeWidth=1.6, opacity=1))
        dashed = alt.Chart(pd.DataFrame({"value": [*rules.values()]}, dtype=float))
        marks.append(dashed.mark_rule(strokeDash=[5, 4], color=MUTED).encode(y=up("value")))
        if written and (columns < 3 or i % columns == columns - 1):
            beside = _ends(part, colours if direct else {}, rules, limits, plot, height, up)
            marks += [mark.transform_filter("datum.moment == now") if slider else mark for mark in beside]
        if slider:
            told = pd.DataFrame({"moment": range(len(moments)), "text": [_moment(m, slider) for m in moments]})
            note = _text(told, fontWeight="bold").transform_filter("datum.moment == now")
            marks.append(note.encode(x=alt.value(8), y=alt.value(12)))
        panels[heading] = alt.layer(*marks).properties(width=plot, height=height)

    over = "layers" if x == "layer" else AXES.get(x, x)
    last = rows[rows["moment"] == len(moments) - 1]
    words = _alt(f"Lines of {label} over {last['x'].nunique()} {over}", last, ["panel", "name"])
    chart = _together(panels, columns, title or f"{label} over {over}", words)
    if slider:
        choice = {"options": list(range(len(moments))), "labels": [_moment(m, slider) for m in moments]}
        buttons = alt.binding_radio(name=f"{AXES.get(slider, slider)}: ", **choice)
        chart = chart.add_params(alt.param(name="now", value=len(moments) - 1, bind=buttons))
    return chart


def _ends(part, colours, rules, limits, plot, height, up) -> list[alt.Chart]:
    """The names of lines and rules at the right edge, each at the mean height of its lines' ends, with a stroke from there."""
    last = part[part["branch"] == part["branch"].min()].dropna(subset="value").sort_values("at", kind="stable")
    last = last.groupby(["moment", "name", "line"], sort=False).tail(1)
    texts = []
    for moment, at_once in last.groupby("moment"):
        heights = at_once.groupby("name", sort=False)["value"].mean()
        named = [(n, colours[n], value) for n, value in heights.items() if n in colours]
        named += [(n, MUTED, value) for n, value in rules.items()]
        texts.append(_labels(named, limits, height).assign(moment=moment))
    if not texts:
        return []
    base = alt.Chart(pd.concat(texts)).mark_rule(aria=False).encode(color=_hue(), y=up("value"), y2="middle:Q")
    strokes = base.encode(x=alt.value(plot + 1), x2=alt.value(plot + 9))
    return [strokes, _text(pd.concat(texts)).encode(x=alt.value(plot + 12), y=up("y"))]


def _moment(value: Any, column: str) -> str:
    return percent(value) if column == "share" else str(value)


def _points(table, x, y, color, panel, slider, line) -> pd.DataFrame:
    """Points of `lines`: x, value, low, high, key, name, line, panel, moment, open (residual), branch (residual beside others)."""
    if x == "layer" and "layer" not in table:
        table = table.rename(columns={"layer_a": "layer"})
    sources = ["a", "b"] if {"a", "b"} <= set(table) else [c for c in ("network",) if c in table]
    if color not in table and sources:
        key = pair if len(sources) == 2 else objective
        table = table.assign(**{color: [key(*names) for names in table[sources].to_numpy()]})
    if panel == "kind" and x in table:
        kinds, other = table[x].map(layer_kind), {"post-residual": "residual", "residual": "post-residual"}
        shown = [kind for kind in other if (kinds == kind).any()] or ["post-residual"]
        table = pd.concat([table[kinds != other[kind]].assign(kind=f"{kind} layers") for kind in shown])
    rows = _frame(table, x=x, value=y, key=color, panel=panel, moment=slider)
    told = table[[line] if line else sources or [color]].astype(str).to_numpy()
    rows = rows.assign(line=[" · ".join(names) for names in told], name=rows["key"].map(name))
    rows = rows.assign(panel=rows["panel"].map(name) if panel else "", moment=rows["moment"] if slider else 0)
    rows["open"] = [x == "layer" and layer_kind(str(v)) == "residual" for v in rows["x"]]
    rows["branch"] = rows["open"].astype(int) if panel != "kind" else 0
    return rows


def _across(rows: pd.DataFrame, x: str, log: bool, plot: float, many: bool) -> tuple[pd.DataFrame, alt.X, alt.Chart]:
    """The rows with the place `at` of each point, the axis, and where stages of a network begin."""
    look: dict[str, Any] = {"grid": False, "title": None if many and x == "layer" else _title(AXES.get(x, x))}
    layers: list[str] = []
    for _, part in rows.groupby("line", sort=False) if x == "layer" else ():
        place = 0
        for layer in _unique(part["x"]):  # one that only a later line has goes behind the one that it follows there
            if layer not in layers:
                layers.insert(place, layer)
            place = layers.index(layer) + 1
    if x == "layer":
        at, scale = rows["x"].map(layers.index), alt.Scale(domain=[-0.5, len(layers) - 0.5], nice=False)
        look |= {"values": list(range(len(layers))), "labelExpr": json.dumps([*map(short, layers)]) + "[datum.value]"}
        look |= {"labelAngle": -90, "labelLimit": 120, "labelOverlap": plot < 12 * len(layers) and "parity"}
    else:
        at, scale = rows["x"].astype(float), alt.Scale(zero=False, nice=False)
        if log:
            at = at.where(at > 0, at[at > 0].min() / 2)
            places = sorted({float(f"{place:.5g}") for place in at})
            start = f"datum.value < {1.01 * places[0]} ? 'start' : " if (rows["x"] == 0).any() else ""
            text = "format(100 * datum.value, '.2~r') + ' %'" if x == "share" else "format(datum.value, ',')"
            look |= {"values": places, "labelExpr": start + text, "labelAngle": -45, "labelOverlap": "parity"}
            scale = alt.Scale(type="log", nice=False, domain=[places[0], places[-1]])
        elif (at % 1 == 0).all():
            look["tickMinStep"] = 1
    across = alt.X("at:Q", scale=scale, axis=alt.Axis(**look))
    edges = alt.Chart(pd.DataFrame({"at": [i - 0.5 for i in _starts(layers)]}, dtype=float))
    return rows.assign(at=at), across, edges.mark_rule(color=RULE, strokeDash=[2, 3], aria=False).encode(x=across)


@figure
def path(
    table: pd.DataFrame,
    x: str,
    y: str,
    color: str = "network",
    order: str = "position",
    *,
    title: str | None = None,
    domain: Sequence[float] | None = None,
    width: int = WIDTH,
) -> alt.TopLevelMixin | None:
    """Points of a plane in the order of a column, each line from an open point to its name: layers, or moments of training.

    Args:
        table: a row per point: x, y, `color` (a network or any name; a line for each), `order`; layer, if known, for pointers.
        domain: of both axes, with a dashed line where they are equal; if not given they fit the values.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    at = "layer" if "layer" in table else order
    rows = _frame(table, x=x, y=y, line=color, order=order, at=at).sort_values("order", kind="stable")
    first, last = (_moment(rows["at"].iloc[k], order) for k in (0, -1))
    keys = rows["line"].astype(str).map(objective)
    rows = rows.assign(line=rows["line"].astype(str), name=keys.map(name))
    colours, paint = _paint(keys.sort_index())
    plot = min(460, width - 108 - 7 * max(min(len(n), 20) for n in colours))
    height, limits = 0.8 * plot, [domain or _extent(_numbers(rows, c)) for c in ("x", "y")]
    across, up = _axis("X", limits[0], str(x)), _axis("Y", limits[1], str(y))
    tied = rows.groupby("line", sort=False)
    ends = tied.tail(1).sort_values("x").drop_duplicates("name", keep="last").set_index("name")
    room = (ends["x"] - limits[0][0]) / (limits[0][1] - limits[0][0]) * plot > 14 + 7 * ends.index.str.len()
    left = room & (ends["x"] < ends["line"].map(tied["x"].first()))  # a name stands where its line goes
    texts = _labels([(n, colours[n], v) for n, v in ends["y"].items()], limits[1], height)
    texts = texts.assign(x=texts["name"].map(ends["x"]), left=texts["name"].map(left))
    tips = _tips(line="line", at=at) + _tips(".2f", x=x, y=y)
    base = alt.Chart(rows).encode(x=across("x"), y=up("y"), color=paint, detail="line:N")
    dots, start = base.encode(tooltip=tips), base.properties(data=tied.head(1)).encode(tooltip=tips)
    marks = [
        base.mark_line(strokeWidth=2).encode(order="order:Q"),
        dots.mark_point(filled=True, size=56, opacity=1),
        start.mark_point(fill=WHITE, size=64, strokeWidth=2, opacity=1),
    ]
    for test, look in (("datum.left", {"align": "right", "dx": -10}), ("!datum.left", {"dx": 10})):
        marks.append(_text(texts, **look).transform_filter(test).encode(x=across("x"), y=up("y")))
    if domain:
        equal = alt.Chart(pd.DataFrame({"x": limits[0], "y": limits[0]})).mark_line(color=MUTED, strokeDash=[5, 4])
        marks.insert(0, equal.encode(x=across("x"), y=up("y")))
    words = []
    for n, way in tied:
        (x0, y0), (x1, y1) = way[["x", "y"]].iloc[[0, -1]].to_numpy()
        words.append(f"{name(n)} from ({x0:z.2f}, {y0:z.2f}) to ({x1:z.2f}, {y1:z.2f})")
    note = f"Lines run from the open point ({first}) to the name ({last})."
    heading = alt.Title(title or f"{y} against {x}", subtitle=textwrap.wrap(note, width // 7))
    chart = alt.layer(*marks).properties(width=plot, height=height)
    return _together({"": chart}, 1, heading, f"{y} against {x}. {note} {'; '.join(words)}.")


@figure
def bars(
    table: pd.DataFrame,
    category: str = "category",
    value: str = "value",
    color: str | None = None,
    *,
    title: str | None = None,
    value_title: str | None = None,
    domain: Sequence[float] | None = None,
    rules: Mapping[str, float] | None = None,
    width: int = WIDTH,
) -> alt.TopLevelMixin | None:
    """Horizontal bars from zero, each with its number and its interval (low and high, if the table has them).

    Args:
        table: a row per bar: `category`, `value` and, for several bars in a category, `color`.
        rules: name -> place of a dashed line, such as chance.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    rows, rules = _frame(table, category=category, value=value, key=color or category), rules or {}
    label, meant = value_title or name(value), color or set(rows["key"]) & set(COLOURS)
    rows = rows.assign(category=rows["category"].map(name), name=rows["key"].map(name))
    legend = alt.Legend(title=None, orient="top", symbolType="square") if color else None
    paint = _paint(rows["key"], legend)[1] if meant else alt.value(COLOURS["sl"])
    rows["end"] = rows[[c for c in ("value", "high") if c in rows]].max(axis=1).clip(lower=0)
    across = _axis("X", domain or _extent([0.0, *_numbers(rows, "value"), *rules.values()]), label)
    names = alt.Axis(labelLimit=240, ticks=False, labelPadding=6)
    base = alt.Chart(rows).transform_calculate(shown=TIP)
    base = base.encode(y=alt.Y("category:N", sort=None, title=None, axis=names))
    base = base.encode(tooltip=_tips(category=category, **({"name": color} if color else {}), shown=label))
    if color:
        base = base.encode(yOffset=alt.YOffset("name:N", sort=_unique(rows["name"])))
    parts = [base.mark_bar(height=alt.RelativeBandSize(0.86)).encode(x=across("value"), color=paint)]
    if "low" in rows:
        parts.append(base.mark_rule(color=RULE, strokeWidth=2).encode(x=across("low"), x2="high:Q"))
    number = base.mark_text(align="left", dx=6, fontSize=12, color=INK)
    parts.append(number.encode(x=across("end"), text=alt.Text("value:Q", format=".2f")))
    marks = pd.DataFrame({"x": [*rules.values()], "text": [*rules]})
    if rules:
        parts.append(alt.Chart(marks).mark_rule(color=INK, strokeDash=[5, 3], strokeWidth=1.6).encode(x=across("x")))
        parts.append(_text(marks, align="center", dy=-9).encode(x=across("x"), y=alt.value(0)))
    plot = min(520, width - 88 - min(240, 7 * max(map(len, rows["category"]))))
    chart = alt.layer(*parts).properties(width=plot, height=alt.Step(20 if color else 28))
    words = _alt(f"Bars of {label}", rows, ["category", "name"] if color else ["name"])
    return _together({"": chart}, 1, title or label, words)


# ----- claims, pictures


def _side(value: float, low: float, high: float, threshold: float = 1.0, side: str = "above") -> str:
    """The colour of an interval: wholly beyond its threshold, wholly on the other side, or neither."""
    ends = (low - threshold, high - threshold) if side == "above" else (threshold - high, threshold - low)
    return VERDICTS["supported" if ends[0] > 0 else "contradicted" if ends[1] < 0 else "undecided"][0]


def _dots(rows: pd.DataFrame, across: Callable[[str], alt.X], y: alt.Y, **tips: str) -> list[alt.Chart]:
    """Intervals and dots in the colours of `colour`, dots filled with `fill`."""
    base = alt.Chart(rows).transform_calculate(shown=TIP).encode(y=y, color=_hue(), tooltip=_tips(**tips))
    dot = base.mark_point(size=110, strokeWidth=2.2, opacity=1).encode(x=across("value"), fill=_hue("fill", "Fill"))
    return [base.mark_rule(strokeWidth=3).encode(x=across("low"), x2="high:Q"), dot]


@figure
def forest(
    table: pd.DataFrame, ticks: pd.DataFrame | None = None, *, title: str | None = None, width: int = WIDTH
) -> alt.TopLevelMixin | None:
    """All claims in one look: a row per claim, in units of its threshold (0 none, 1 the smallest effect that counts).

    A dot with its interval has the colour of its side of the threshold (open if it is not judged), a grey band is the placebo, and
    a mark below it an attack.

    Args:
        table: row (a claim's id), label, value, low, high, placebo_low, placebo_high (NaN: none), verdict (of VERDICTS), note.
            Or, with a panel for each part in its own units: panel, label, value, low, high, threshold, side ("above", "below").
        ticks: row, value, family (of FAMILIES), name, whole (False, hollow: a part of the claim alone was measured again).

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    if "threshold" in table:
        return _estimates(table, title, width)
    columns = ("row", "label", "value", "low", "high", "placebo_low", "placebo_high", "verdict", "note")
    rows = _frame(table, **{c: c for c in columns})
    wide = width >= 700  # texts stand beside the axis, else above and below each dot
    step, plot = (66, width - 550) if wide else (132, width - 36)
    rows["colour"] = [_side(*of) for of in rows[["value", "low", "high"]].to_numpy()]
    rows["fill"] = rows["colour"].where(rows["verdict"] != "not judged", WHITE)
    rows["y"] = step * (np.arange(len(rows)) + 0.5)
    rows = rows.assign(top=rows["y"] - 13, bottom=rows["y"] + 13, above=rows["y"] - 20, below=rows["y"] + 30)
    height, ends = step * len(rows), [-0.5, 1.5, *_numbers(rows, "value")]
    limits = [max(-4.0, min(ends) - 0.2), min(6.0, max(ends) + 0.2)]
    note = "effect in units of its threshold: 0 none, 1 the smallest that counts" if wide else "effect / threshold"
    across, up = _axis("X", limits, note, orient="top", grid=False), _axis("Y", (height, 0), None)

    def at(field: str = "y") -> alt.Y:
        return up(field).axis(None)

    placebo = alt.Chart(rows.dropna(subset=["placebo_low", "placebo_high"])).mark_rect(color=BAND, aria=False)
    tracks = alt.Chart(rows.assign(none=0.0, effect=1.0, end=limits[1])).encode(y=at("above"), y2="below:Q")
    parts = [
        tracks.mark_rect(color=TINT).encode(x=across("effect"), x2="end:Q"),
        placebo.encode(x=across("placebo_low"), x2="placebo_high:Q", y=at("top"), y2="bottom:Q"),
        tracks.mark_rule(color=RULE, strokeWidth=1.4).encode(x=across("none")),
        tracks.mark_rule(color=INK, strokeWidth=1.4, strokeDash=[5, 4]).encode(x=across("effect")),
        *_dots(rows, across, at(), row="claim", label="statement", shown="effect / threshold", verdict="verdict"),
    ]
    legend = "Dots: estimates with 95 % intervals over seeds. Grey: placebos."
    if ticks is not None and len(ticks):
        marks = _frame(ticks, **{c: c for c in ("row", "value", "family", "name", "whole")})
        marks["y"] = marks["row"].map(dict(zip(rows["row"], rows["y"] + 21)))
        hues = [FAMILIES.get(family, INK) for family in marks["family"]]
        marks["fill"] = [hue if whole else WHITE for hue, whole in zip(hues, marks["whole"])]
        symbol = alt.Legend(
            title="attacks", orient="bottom", symbolType="square", symbolStrokeWidth=3, symbolFillColor=WHITE
        )
        stroke = alt.Stroke("family:N", scale=alt.Scale(domain=[*FAMILIES], range=[*FAMILIES.values()]), legend=symbol)
        tick = alt.Chart(marks).mark_point(shape="M-.25,-1H.25V1H-.25Z", size=100, strokeWidth=1.3, opacity=1)
        tick = tick.encode(x=across("value"), y=at(), fill=_hue("fill", "Fill"), stroke=stroke)
        parts.append(tick.encode(tooltip=_tips(name="attack", family="of") + _tips(".2f", value="value")))
        legend += " Small marks: attacks, hollow where they measure a part of the claim."

    statements = [f"{row}  {label}" for row, label in zip(rows["row"], rows["label"])]
    places = [(-246, 0, 36), (plot + 14, -15, 40), (plot + 14, 9, 42)]  # x, beside the dot, characters
    if not wide:
        places = [(0, -42, plot // 7), (0, 42, 40), (0, 60, plot // 7)]
    signs = [f"{VERDICTS[verdict][1]} {verdict}" for verdict in rows["verdict"]]
    bold = {"font": SIGNS, "fontWeight": "bold"}
    hues = [[INK] * len(rows), [VERDICTS[verdict][0] for verdict in rows["verdict"]], [MUTED] * len(rows)]
    for texts, hue, (x, dy, chars), look in zip((statements, signs, rows["note"]), hues, places, ({}, bold, {})):
        wrapped = [textwrap.wrap(str(text), chars) for text in texts]
        written = [
            (text, colour, middle + dy + LINE * (k - (len(own) - 1) / 2))
            for own, colour, middle in zip(wrapped, hue, rows["y"])
            for k, text in enumerate(own)
        ]
        frame = pd.DataFrame(written, columns=["text", "colour", "y"])
        parts.append(_text(frame, **look).encode(x=alt.value(x), y=at()))
    heading = alt.Title(title or "Claims in units of their thresholds", subtitle=textwrap.wrap(legend, width // 7))
    named = rows.assign(name=[f"{text} ({verdict}):" for text, verdict in zip(statements, rows["verdict"])])
    words = _alt(f"{heading.text}, in units of each threshold", named)
    return _together({"": alt.layer(*parts).properties(width=plot, height=height)}, 1, heading, words)


def _estimates(table: pd.DataFrame, title: str | None, width: int) -> alt.TopLevelMixin:
    """The estimates of each part in its own units; the claimed side of the threshold is shaded."""
    rows = _frame(table, **{c: c for c in ("panel", "label", "value", "low", "high", "threshold", "side")})
    of = zip(rows["value"], rows["low"], rows["high"], rows["threshold"], rows["side"])
    rows = rows.assign(label=rows["label"].map(name), colour=[_side(*one) for one in of])
    rows["fill"] = rows["colour"]
    columns = 2 if width >= 700 else 1
    plot, panels = (width - 28) / columns - 190, {}
    for heading, part in rows.groupby("panel", sort=False):
        limit, side = part[["threshold", "side"]].iloc[0]
        limits = _extent([*_numbers(part, "value"), limit, 0.0], 0.02)
        across = _axis("X", limits, None)
        ends = [limit, limits[1]] if side == "above" else [limits[0], limit]
        shade, rule = (alt.Chart(pd.DataFrame({"x": [x], "end": ends[1:]})) for x in (ends[0], limit))
        labels = alt.Axis(labelLimit=146, minExtent=150, ticks=False, domain=False)
        parts = [shade.mark_rect(color=TINT).encode(x=across("x"), x2="end:Q")]
        parts.append(rule.mark_rule(color=INK, strokeDash=[5, 4], strokeWidth=1.4).encode(x=across("x")))
        parts += _dots(part, across, alt.Y("label:N", sort=None, title=None, axis=labels), label="of", shown="estimate")
        panels[str(heading)] = alt.layer(*parts).properties(width=plot, height=alt.Step(20))
    words = _alt("Estimates with 95 % intervals and thresholds", rows.assign(name=rows["label"]), ["panel", "name"])
    return _together(panels, columns, title or "Estimates and thresholds", words).resolve_scale(x="independent")


@figure
def images(
    tensor: Tensor,
    captions: Sequence[str] | None = None,
    columns: int = 10,
    *,
    rows: Sequence[str] | None = None,
    size: int = 72,
    title: str = "Images",
) -> Picture | None:
    """A grid of images, row by row, as one picture.

    Args:
        tensor: uint8 (n, 3, h, w). captions: a short text under each. rows: a label at the left of each row.
        size: an image's width in the grid in CSS pixels; images are enlarged without smoothing.
        title: the start of the alt text (nothing is written above the grid).

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
    scale, gap = 2, 12
    side, foot, font = size * scale, 0 if captions is None else 18 * scale, ImageFont.load_default(12 * scale)
    margin = max((round(font.getlength(text)) + gap for text in rows or ()), default=0)
    sheet = Image.new("RGB", (margin + columns * (side + gap) + gap, count * (side + foot + gap) + gap), WHITE)
    pen = ImageDraw.Draw(sheet)
    for i, array in enumerate(tensor.cpu().permute(0, 2, 3, 1).numpy()):
        left, top = margin + gap + i % columns * (side + gap), gap + i // columns * (side + foot + gap)
        sheet.paste(Image.fromarray(array).resize((side, side), Image.Resampling.NEAREST), (left, top))
        text = "" if captions is None else str(captions[i])
        while pen.textlength(text, font) > side + gap:
            text = text.rstrip("…")[:-1] + "…"
        pen.text((left + side / 2, top + side + 4), text, INK, font, anchor="ma")
        if rows and i % columns == 0:
            pen.text((gap, top + side / 2), rows[i // columns], INK, font, anchor="lm")
    words = "; ".join(", ".join(map(str, texts)) for texts in (rows, captions) if texts)
    return Picture(sheet, title, f"{title}, a grid of {len(tensor)} images{': ' if words else ''}{words}", scale=scale)


if alt is not None and notebook():
    use()
