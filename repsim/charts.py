"""DataFrames -> Altair charts, as pure functions; call `use()` once to have them shown everywhere.

Every chart carries its alt text as `description`. Layers keep the order of the table. Lines mark where a stage begins (a
layer's stage is its name up to the first dot). Residual layers are open diamonds, post-residual ones filled circles, all
others squares. An objective has one colour everywhere, see `COLOURS`. A value that is not defined (NaN) is a hatched cell
or a gap in a curve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from repsim.palette import (
    COLOURS,
    INK,
    KINDS,
    MUTED,
    RULE,
    colour_scale,
    comparison,
    dash,
    layer_kind,
    objective,
    short,
)
from repsim.render import Picture, use

__all__ = ["COLOURS", "bars", "comparison", "curves", "heatmap", "history", "images", "timeline", "use"]

CHOSEN = "#b00d54"
WIDTH = 920  # of a figure in CSS pixels, about: what a notebook shows beside its table of contents


# ----- what the charts share


def _checked(table: pd.DataFrame, columns: Iterable[str], remedy: str) -> pd.DataFrame:
    columns = list(columns)
    if missing := [c for c in columns if c not in table]:
        got = ", ".join(map(str, table.columns))
        raise ValueError(
            f"table: expected columns {', '.join(columns)}, got {got} without {', '.join(missing)}; {remedy}"
        )
    if table.empty:
        raise ValueError("table: expected at least one row, got none; check how it was selected")
    return table


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _layers(table: pd.DataFrame) -> list[str]:
    """The layers in the table's order; one that only a later line has goes behind the one that it follows there."""
    order: list[str] = []
    for _, rows in table.groupby("line", sort=False):
        place = 0
        for layer in _unique(rows["layer"]):
            if layer not in order:
                order.insert(place, layer)
            place = order.index(layer) + 1
    return order


def _starts(layers: Sequence[str]) -> list[int]:
    """Where a new stage begins."""
    return [i for i in range(1, len(layers)) if layers[i].split(".")[0] != layers[i - 1].split(".")[0]]


def _shown(value: str, table: pd.DataFrame) -> dict[str, str]:
    """A calculated field for tooltips: the value with its interval, or that it is not defined."""
    text = f"format(datum['{value}'], '.2f')"
    if {"low", "high"} <= set(table):
        text += (
            " + (isValid(datum.low) ? ' [' + format(datum.low, '.2f') + ', ' + format(datum.high, '.2f') + ']' : '')"
        )
    return {"shown": f"isValid(datum['{value}']) ? {text} : 'not defined'"}


def _span(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}" if values.notna().any() else "not defined"


def _kind(names: Iterable[str], channel: str) -> Any:
    """The shape or fill of layer kinds, with one legend for both."""
    present = set(names)
    legend = alt.Legend(title=None, orient="bottom", symbolSize=90, values=[k for k in KINDS if k in present])
    scale = alt.Scale(domain=[*KINDS], range=[look[channel == "fill"] for look in KINDS.values()])
    return {"shape": alt.Shape, "fill": alt.Fill}[channel]("kind:N", scale=scale, legend=legend)


def _kind_legend(names: Iterable[str]) -> alt.Chart:
    """Marks out of sight: the legend of the kinds, where the colours of the marks mean something else."""
    frame = pd.DataFrame({"kind": _unique(names)})
    marks = alt.Chart(frame).mark_point(opacity=1, strokeWidth=1.3, size=0, aria=False)
    place = {"x": alt.value(0), "y": alt.value(0), "stroke": alt.value(INK)}
    return marks.encode(**place, shape=_kind(frame["kind"], "shape"), fill=_kind(frame["kind"], "fill"))


def _side_by_side(panels: list[alt.LayerChart], **properties: Any) -> alt.LayerChart | alt.HConcatChart:
    chart = panels[0] if len(panels) == 1 else alt.hconcat(*panels, spacing=24)
    return chart.properties(**properties)


def _width(layers: int, panels: int) -> int:
    return max(240, layers * int(np.clip((WIDTH / panels - 70) / layers, 14, 24 if panels > 1 else 36)))


def _line_legend() -> alt.Legend:
    look = {"symbolType": "stroke", "symbolSize": 500, "symbolOpacity": 1, "symbolStrokeWidth": 2.4}
    return alt.Legend(title=None, orient="top", columns=4, **look)  # more would make a page's width of the legend


def _subtitle(text: str) -> alt.Title:
    return alt.Title(text, fontSize=14, fontWeight="normal", offset=8)


# ----- heatmaps


def heatmap(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    color: str = "cka",
    color_title: str | None = None,
    linked: bool = False,
) -> alt.LayerChart | alt.HConcatChart | alt.ConcatChart:
    """Every layer of one stream with every layer of another; one panel for each pair (a, b) in the table.

    Args:
        table: one row per cell: a, b, layer_a (rows), layer_b (columns), the value in `color`; low and high if known.
        linked: the row that was clicked, or chosen from a menu, is drawn as a curve beside the map. One pair only.

    Raises:
        ValueError: a column is missing, the table is empty, or `linked` with more than one pair.
    """
    table = _checked(table, ["a", "b", "layer_a", "layer_b", color], "pass Comparison.table(a, b), or several in one")
    pairs = list(dict.fromkeys(zip(table["a"], table["b"])))
    if linked and len(pairs) > 1:
        raise ValueError(f"linked: expected a table of one pair, got {len(pairs)}; draw one linked chart for each")
    name = color_title or ("CKA" if color == "cka" else color.replace("_", " "))
    widest = max(table["layer_a"].nunique(), table["layer_b"].nunique())
    step = int(np.clip((WIDTH / (1.75 if linked else min(2, len(pairs))) - 110) / widest, 13, 21))
    panels, words = [], []
    for a, b in pairs:
        cells = table[(table["a"] == a) & (table["b"] == b)]
        panels.append(_map(cells, color, name, step, linked))
        gaps = int(cells[color].isna().sum())
        size = f"{cells['layer_a'].nunique()} layers of {a} (rows) with {cells['layer_b'].nunique()} of {b} (columns)"
        words.append(f"{size}, {_span(cells[color])}" + (f", {gaps} cells not defined" if gaps else ""))
    if len(pairs) == 1:
        chart, default = panels[0], f"{name}, every layer of {pairs[0][0]} with every layer of {pairs[0][1]}"
    else:
        panels = [p.properties(title=_subtitle(f"{a} with {b}")) for p, (a, b) in zip(panels, pairs)]
        chart, default = alt.concat(*panels, columns=2, spacing=24), f"{name}, every layer with every layer"
    return chart.properties(title=title or default, description=f"Heatmap of {name}: {'; '.join(words)}.")


def _map(cells, value, name, step, linked) -> alt.LayerChart | alt.HConcatChart:
    a, b = cells["a"].iloc[0], cells["b"].iloc[0]
    rows, cols = _unique(cells["layer_a"]), _unique(cells["layer_b"])
    width, height = step * len(cols), step * len(rows)
    keep = [c for c in ("layer_a", "layer_b", value, "low", "high") if c in cells]
    cells = cells[keep]
    if linked:
        cells = cells.assign(kind=cells["layer_b"].map(layer_kind), at=cells["layer_b"].map(cols.index), path="main")

    def axis(channel, field, stream, names, **more):
        labels = json.dumps({n: short(n) for n in names}) + "[datum.value]"
        style = {"ticks": False, "domain": False, "offset": 16, "labelOverlap": False, "labelLimit": 130, **more}
        scale = alt.Scale(type="band", domain=names, paddingInner=0, paddingOuter=0)
        return channel(
            field, type="ordinal", scale=scale, axis=alt.Axis(title=f"{stream}, layer", labelExpr=labels, **style)
        )

    y = axis(alt.Y, "layer_a", a, rows, labelPadding=4)
    x = axis(alt.X, "layer_b", b, cols, labelPadding=4, labelAngle=-90)
    tips = [
        alt.Tooltip("layer_a:N", title=f"{a} (row)"),
        alt.Tooltip("layer_b:N", title=f"{b} (column)"),
        alt.Tooltip("shown:N", title=name),
    ]
    base = alt.Chart(cells).transform_calculate(**_shown(value, cells)).encode(x=x, y=y, tooltip=tips)
    colour = alt.Color(
        f"{value}:Q",
        scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True),  # below 0 as 0
        legend=alt.Legend(title=name, gradientLength=min(height, 220), gradientThickness=14),
    )
    parts = [base.mark_rect().encode(color=colour)]
    if cells[value].isna().any():
        gaps = base.transform_filter(f"!isValid(datum['{value}'])")
        lines = {"shape": "M-1,1L1,-1M-1,0L0,-1M0,1L1,0", "size": (step - 2) ** 2, "filled": False, "opacity": 1}
        parts += [gaps.mark_rect(color="#d0d4d9"), gaps.mark_point(stroke=MUTED, strokeWidth=1, **lines)]
    for channel, names, encoding in ((alt.Y, rows, y), (alt.X, cols, x)):
        where = pd.DataFrame({"layer": [names[i] for i in _starts(names)]})
        edge = channel("layer", type="ordinal", bandPosition=0, scale=encoding["scale"])
        for thick, stroke in ((2.6, "#ffffff"), (0.9, INK)) if len(where) else ():
            line = alt.Chart(where).mark_rule(strokeWidth=thick, color=stroke, aria=False)
            parts.append(line.encode(**{"y" if channel is alt.Y else "x": edge}))
    kinds = [layer_kind(n) for n in [*rows, *cols]]
    look = {"stroke": alt.value(INK), "shape": _kind(kinds, "shape"), "fill": _kind(kinds, "fill")}
    for field, names, where in (
        ("layer_a", rows, {"y": y, "x": alt.value(-9)}),
        ("layer_b", cols, {"x": x, "y": alt.value(height + 9)}),
    ):
        strip = alt.Chart(pd.DataFrame({field: names, "kind": [layer_kind(n) for n in names]}))
        marks = strip.mark_point(size=min(70, 0.3 * step**2), strokeWidth=1.2, opacity=1, aria=False)
        parts.append(marks.encode(**where, **look))
    if not linked:
        return alt.layer(*parts).properties(width=width, height=height)

    first = next((n for n in reversed(rows) if layer_kind(n) == "post-residual"), rows[-1])
    row = alt.selection_point(
        name="row",
        fields=["layer_a"],
        value=[{"layer_a": first}],
        bind=alt.binding_select(options=rows, name=f"{a}, layer "),
        on="click",
        clear=False,
        toggle=False,
        empty=False,
    )
    parts[0] = parts[0].add_params(row).properties(name="cells")
    marked = alt.Chart(pd.DataFrame({"layer_a": rows})).transform_filter(row)
    outline = marked.mark_rect(fill=None, stroke=CHOSEN, strokeWidth=3, aria=False)
    parts.append(outline.encode(y=y, x=alt.value(0), x2=alt.value(width)))
    chosen = alt.Chart(cells).transform_filter(row).transform_calculate(**_shown(value, cells)).encode(tooltip=tips)
    curve = _curve(
        chosen, cells, value, name, cols, f"{b}, layer", (0, 1), lambda line=False: {"color": alt.value(CHOSEN)}
    )
    said = marked.transform_calculate(said=f"'{a}, ' + datum.layer_a + ' (outlined)'")
    said = said.mark_text(align="left", fontSize=14, fontWeight="bold", color=CHOSEN, aria=False)
    curve.append(said.encode(text="said:N", x=alt.value(0), y=alt.value(-12)))
    return alt.hconcat(
        alt.layer(*parts).properties(width=width, height=height),
        alt.layer(*curve).properties(width=max(260, 13 * len(cols)), height=height),
        spacing=24,
    )


# ----- curves


def _curve(
    base: alt.Chart,
    table: pd.DataFrame,
    value: str,
    name: str,
    layers: Sequence[str],
    axis_title: str,
    domain: tuple[float, float] | None,
    paint: Callable[..., dict[str, Any]],
    detail: Sequence[str] = (),
    kinds: Sequence[str] = (),
) -> list[alt.Chart]:
    """Boundaries, intervals, lines and points along the layers (the column `at`); `paint` gives colour and dash."""
    labels = json.dumps([short(n) for n in layers]) + "[datum.value]"
    ticks = {"values": list(range(len(layers))), "labelExpr": labels, "labelAngle": -90, "labelOverlap": False}
    across = alt.Scale(domain=[-0.5, len(layers) - 0.5], nice=False, zero=False)
    up = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain), clamp=True, nice=False)
    x = alt.X("at:Q", scale=across, axis=alt.Axis(title=axis_title, grid=False, labelLimit=130, **ticks))
    base = base.encode(
        x=x,
        y=alt.Y(f"{value}:Q", title=name, scale=up, axis=alt.Axis(tickCount=6)),
        detail=list(detail),
    )
    edges = alt.Chart(pd.DataFrame({"at": [i - 0.5 for i in _starts(layers)]}, dtype=float))
    parts = [edges.mark_rule(color=RULE, strokeDash=[2, 3], aria=False).encode(x=x)]
    if {"low", "high"} <= set(table):
        band = base.mark_area(opacity=0.18, aria=False)
        parts.append(band.encode(y=alt.Y("low:Q", title=name, scale=up), y2="high:Q", **paint(None)))
    parts.append(base.mark_line(strokeWidth=2.4).encode(**paint(line=True)))
    parts.append(_kind_legend(kinds or table["kind"]))
    dots = base.encode(shape=_kind(kinds or table["kind"], "shape"), **paint())
    if "residual" in set(table["kind"]):
        hollow = dots.transform_filter("datum.kind == 'residual'")
        parts.append(hollow.mark_point(fill="#ffffff", size=75, strokeWidth=1.8, opacity=1))
    full = dots.transform_filter("datum.kind != 'residual'")
    return [*parts, full.mark_point(filled=True, size=75, opacity=1)]


def _named(table: pd.DataFrame, color: str) -> pd.DataFrame:
    """The table with the columns `layer`, `color` (made from a and b, or network, if missing) and a name per `line`."""
    if "layer" not in table and "layer_a" in table:
        table = table.rename(columns={"layer_a": "layer"})
    if color not in table and {"a", "b"} <= set(table):
        table = table.assign(**{color: [comparison(a, b) for a, b in zip(table["a"], table["b"])]})
    elif color not in table and "network" in table:
        table = table.assign(**{color: [objective(n) for n in table["network"]]})
    said = [table[c].astype(str) for c in ("a", "b", "network") if c in table] or [table[color].astype(str)] * (
        color in table
    )
    return table.assign(line=[" · ".join(names) for names in zip(*said)] if said else "")


def curves(
    table: pd.DataFrame,
    y: str = "cka",
    color: str = "comparison",
    kind: str = "all",
    *,
    title: str | None = None,
    y_title: str | None = None,
    domain: tuple[float, float] | None = (0, 1),
    width: int | None = None,
    height: int = 300,
) -> alt.LayerChart | alt.HConcatChart:
    """A value at every layer with its interval: one line for each network or pair of networks.

    Args:
        table: one row per layer and line: layer (or layer_a), `y`, low and high if known, and the column `color`, or
            else network or a and b, from which it is made (`objective`, `comparison`). Each a, b and network is a line.
        kind: "all" layers, residual ones as a line of their own; "residual" or "post-residual" ones alone (with stem,
            pool and head); "panels" shows these two side by side.
        domain: range of the y axis, at whose ends what lies beyond is drawn; None fits it to the values.

    Raises:
        ValueError: a column is missing, the table is empty, or `kind` is unknown.
    """
    if kind not in ("all", "residual", "post-residual", "panels"):
        raise ValueError(f"kind: expected all, residual, post-residual or panels, got {kind!r}")
    table = _checked(
        _named(table, color), ["layer", y, color], "pass Comparison.curve(a, b), or name columns with y and color"
    )
    table = table.assign(kind=[layer_kind(n) for n in table["layer"]])
    name = y_title or ("CKA" if y == "cka" else y.replace("_", " "))
    names = _unique(table[color])
    legend = _line_legend()
    colour = alt.Color(f"{color}:N", scale=colour_scale(names), legend=legend)
    stroke = alt.StrokeDash(f"{color}:N", scale=alt.Scale(domain=names, range=[dash(n) for n in names]), legend=legend)

    def paint(line=False):
        return {"color": colour, "strokeDash": stroke} if line else {"color": colour}

    kinds = [
        k
        for k in _unique(table["kind"])
        if (k, kind) not in (("residual", "post-residual"), ("post-residual", "residual"))
    ]
    panels = []
    for part in ("post-residual", "residual") if kind == "panels" else (kind,):
        left_out = {"residual": "post-residual", "post-residual": "residual"}.get(part)
        rows = _placed(table[table["kind"] != left_out], [y, color], split=part == "all")
        tips = [alt.Tooltip("line:N"), alt.Tooltip("layer:N"), alt.Tooltip("shown:N", title=name)]
        base = alt.Chart(rows).transform_calculate(**_shown(y, rows)).encode(tooltip=tips)
        layers = _layers(rows)
        panel = alt.layer(*_curve(base, rows, y, name, layers, "layer", domain, paint, ["line:N", "path:N"], kinds))
        panel = panel.properties(width=width or _width(len(layers), 1 + (kind == "panels")), height=height)
        panels.append(panel.properties(title=_subtitle(f"{part} layers")) if kind == "panels" else panel)
    words = "; ".join(f"{n} {_span(rows[y])}" for n, rows in table.groupby(color, sort=False))
    words = f"Curves of {name} over {table['layer'].nunique()} layers: {words}."
    return _side_by_side(panels, title=title or f"{name}, layer by layer", description=words)


def _placed(table: pd.DataFrame, columns: Sequence[str], split: bool) -> pd.DataFrame:
    """The columns that a curve needs, each layer's place `at` and, if split, a `path` of their own for residual layers."""
    layers = _layers(table)
    keep = _unique(c for c in ("line", "layer", "kind", *columns, "low", "high") if c in table)
    path = np.where(split & (table["kind"] == "residual"), "residual", "main")
    return table[keep].assign(at=[layers.index(n) for n in table["layer"]], path=path)


def timeline(
    table: pd.DataFrame,
    y: str,
    color: str,
    step: str,
    panel: str,
    says: str,
    *,
    title: str,
    y_title: str,
    domain: tuple[float, float] = (0, 1),
) -> alt.ConcatChart:
    """Layer curves at several moments of training: a slider chooses one, and a picture, which has none, shows the last.

    `table` is as for `curves` with the numbers `step` besides. Each value of the column `panel` has a panel, two in a row, with a
    line per network or pair; the first moment stays as thin grey lines. `says` is the column with a text for each moment.

    Raises:
        ValueError: a column is missing, or the table is empty.
    """
    columns = ["layer", y, color, step, panel, says]
    table = _checked(_named(table, color), columns, "add the moments of training as a column")
    moments = sorted(table[step].unique())
    table = table.assign(kind=[layer_kind(n) for n in table["layer"]], moment=[moments.index(m) for m in table[step]])
    text = table.drop_duplicates("moment").set_index("moment")[says].sort_index()
    slider = alt.binding_range(min=0, max=len(moments) - 1, step=1, name="checkpoint ")
    now = alt.param(name="now", value=len(moments) - 1, bind=slider)
    tips = [
        alt.Tooltip("line:N"),
        alt.Tooltip("layer:N"),
        alt.Tooltip(f"{step}:Q"),
        alt.Tooltip("shown:N", title=y_title),
    ]
    colour = alt.Color(f"{color}:N", scale=colour_scale(_unique(table[color])), legend=_line_legend())
    kinds, detail = _unique(table["kind"]), ["line:N", "path:N"]
    panels = []
    for label in _unique(table[panel]):
        rows = _placed(table[table[panel] == label], _unique([y, step, "moment", color]), split=True)
        layers = _layers(rows)
        base = alt.Chart(rows).transform_calculate(**_shown(y, rows)).encode(tooltip=tips)
        chosen = base.transform_filter("datum.moment == now")
        curve = _curve(
            chosen, rows, y, y_title, layers, "layer", domain, lambda line=False: {"color": colour}, detail, kinds
        )
        where = {"x": curve[0].encoding.x, "y": curve[-1].encoding.y, "detail": detail}
        thin = base.transform_filter("datum.moment == 0").mark_line(strokeWidth=1.2, color=RULE).encode(**where)
        note = alt.Chart(pd.DataFrame({"moment": text.index, "text": text.values})).transform_filter(
            "datum.moment == now"
        )
        note = note.mark_text(align="left", fontSize=13, fontWeight="bold", color=INK)
        note = note.encode(text="text:N", x=alt.value(10), y=alt.value(14))
        drawn = alt.layer(curve[0], thin, *curve[1:], note)
        panels.append(drawn.properties(width=_width(len(layers), 2), height=250, title=_subtitle(label)))
    words = (
        f"Curves of {y_title} over the layers at {len(moments)} moments of training, {text.iloc[0]} to {text.iloc[-1]}."
    )
    return alt.concat(*panels, columns=2, spacing=24).properties(title=title, description=words).add_params(now)


# ----- training and single numbers


def history(table: pd.DataFrame, columns: Sequence[str], *, title: str) -> alt.LayerChart | alt.HConcatChart:
    """Training curves: a panel per column, a line per network.

    `table` has a row per network and epoch: network, epoch and `columns`. Raises ValueError for a missing column or an empty
    table.
    """
    table = _checked(
        _named(table, "objective"), ["network", "epoch", *columns], "choose the columns to draw with columns=[...]"
    )
    colour = alt.Color("objective:N", scale=colour_scale(_unique(table["objective"])), legend=_line_legend())
    panels = []
    for column in columns:
        lines = alt.Chart(table[["network", "objective", "epoch", column]].dropna()).encode(
            x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y(f"{column}:Q", title=column.replace("_", " "), scale=alt.Scale(zero=False)),
            color=colour,
            tooltip=[alt.Tooltip("network:N"), alt.Tooltip("epoch:Q"), alt.Tooltip(f"{column}:Q", format=".3f")],
            detail="network:N",
        )
        drawn = alt.layer(lines.mark_line(strokeWidth=2.4), lines.mark_circle(size=40))
        panels.append(drawn.properties(width=360, height=240))
    ends = (f"{n} {rows[columns[0]].iloc[-1]:.2f}" for n, rows in table.groupby("network", sort=False))
    words = f"Training curves of {', '.join(columns)} by epoch. Last {columns[0]}: {'; '.join(ends)}."
    return _side_by_side(panels, title=title, description=words)


def bars(
    table: pd.DataFrame,
    category: str = "category",
    value: str = "value",
    color: str | None = None,
    *,
    title: str | None = None,
    value_title: str | None = None,
    domain: tuple[float, float] | None = None,
    reference: float | None = None,
) -> alt.LayerChart:
    """Horizontal bars from zero, each with its number and its interval (low and high, if the table has them).

    Args:
        table: one row per bar: `category`, `value` and, for several bars in a category, `color`.
        reference: a value to compare with, as a dashed line.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    by = _unique([category, color or category])
    table = _checked(table, [*by, value], "name the columns with category, value and color")
    intervals = ["low", "high"] if {"low", "high"} <= set(table) else []
    table = table.assign(end=table[[value, *intervals]].max(axis=1).clip(lower=0))
    names, name = _unique(table[by[-1]]), value_title or value.replace("_", " ")
    tips = [*(alt.Tooltip(f"{c}:N") for c in by), alt.Tooltip("shown:N", title=name)]
    base = alt.Chart(table[[*by, value, "end", *intervals]]).transform_calculate(**_shown(value, table))
    labels = alt.Axis(labelLimit=260, ticks=False, labelPadding=6)
    base = base.encode(y=alt.Y(f"{category}:N", sort=_unique(table[category]), title=None, axis=labels), tooltip=tips)
    if color:
        base = base.encode(yOffset=alt.YOffset(f"{color}:N", sort=names))
    legend = alt.Legend(title=None, orient="top", symbolType="square") if color else None
    fill = alt.Color(f"{by[-1]}:N", scale=colour_scale(names), legend=legend)
    plain = not color and not set(names) <= set(COLOURS)
    scale = alt.Undefined if domain is None else alt.Scale(domain=list(domain), clamp=True)
    bar = base.mark_bar().encode(x=alt.X(f"{value}:Q", title=name, scale=scale))
    parts = [bar.encode(color=alt.value(COLOURS["sl"]) if plain else fill)]
    if intervals:
        for stroke, thick in (("#ffffff", 4), (INK, 2)):
            parts.append(
                base.mark_rule(color=stroke, strokeWidth=thick).encode(x=alt.X("low:Q", title=name), x2="high:Q")
            )
    number = base.mark_text(align="left", dx=6, fontSize=12, color=INK)
    parts.append(number.encode(x=alt.X("end:Q", title=name), text=alt.Text(f"{value}:Q", format=".2f")))
    if reference is not None:
        line = alt.Chart(pd.DataFrame({"reference": [reference]})).encode(x=alt.X("reference:Q", title=name))
        parts += [
            line.mark_rule(strokeWidth=4, color="#ffffff"),
            line.mark_rule(strokeWidth=2, strokeDash=[5, 3], color=INK),
        ]
    words = "; ".join(
        f"{' '.join(map(str, row[:-1]))} {row[-1]:.2f}" for row in table[[*by, value]].itertuples(index=False)
    )
    chart = alt.layer(*parts).properties(width=520, height=alt.Step(20 if color else 28))
    return chart.properties(title=title or name, description=f"Bars of {name}: {words}.")


# ----- pictures and text


def images(
    tensor: Tensor, captions: Sequence[str] | None = None, columns: int = 10, *, size: int = 72, title: str = "Images"
) -> Picture:
    """A grid of images with captions, row by row, as one picture.

    Args:
        tensor: uint8 (n, 3, h, w).
        captions: one short text per image.
        size: an image's width in the grid in CSS pixels; images are enlarged without smoothing.
        title: the start of the alt text (nothing is written above the grid).

    Raises:
        ValueError: not uint8 of shape (n, 3, h, w), no image, or another number of captions.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind != "uint8" or tensor.ndim != 4 or tensor.shape[1] != 3 or not len(tensor):
        got = f"{kind} of shape {tuple(tensor.shape)}"
        raise ValueError(
            f"images: expected uint8 of shape (n, 3, h, w), n > 0, got {got}; round and clip to 0..255 first"
        )
    if captions is not None and len(captions) != len(tensor):
        raise ValueError(
            f"captions: expected {len(tensor)}, one per image, got {len(captions)}; pass None for no captions"
        )
    scale, gap = 2, 12
    side, foot, columns = size * scale, 0 if captions is None else 18 * scale, min(columns, len(tensor))
    rows = -(-len(tensor) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + foot + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12 * scale)
    for i, array in enumerate(tensor.cpu().permute(0, 2, 3, 1).numpy()):
        left, top = gap + i % columns * (side + gap), gap + i // columns * (side + foot + gap)
        sheet.paste(Image.fromarray(array).resize((side, side), Image.Resampling.NEAREST), (left, top))
        text = "" if captions is None else str(captions[i])
        while draw.textlength(text, font) > side + gap:
            text = text.rstrip("…")[:-1] + "…"
        draw.text((left + side / 2, top + side + 4), text, INK, font, anchor="ma")
    said = "" if captions is None else ": " + ", ".join(map(str, captions))
    return Picture(sheet, title, f"{title}, a grid of {len(tensor)} images{said}", scale=scale)
