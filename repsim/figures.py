"""What is drawn and written of this study alone: verdicts, the plane of classes and views, one panel per factor."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd
from IPython.display import Markdown

from repsim import charts
from repsim.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Part
from repsim.palette import KINDS, layer_kind
from repsim.predictions import OUTCOMES as OUTCOME_OF
from repsim.render import INK, MUTED

MARKS = {SUPPORTED: "✔ supported", NOT_SUPPORTED: "✘ not supported", UNDECIDED: "○ undecided"}
PREDICTED = {verdict: f"{MARKS[verdict][0]} {word}" for verdict, word in OUTCOME_OF.items()}  # of predictions
SIGNS = "DejaVu Sans, Segoe UI Symbol, sans-serif"  # a font that has the signs: a picture takes one for the whole text
VERDICT_COLOURS = {SUPPORTED: "#00735c", NOT_SUPPORTED: "#a3260f", UNDECIDED: "#57606a"}  # 4.5:1 against white at least


def markdown(table: pd.DataFrame) -> Markdown:
    """A table as Markdown, its index left out: rendered everywhere, compared nowhere."""
    rows = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return Markdown("\n".join("| " + " | ".join(row) + " |" for row in cells))


def verdicts(
    claims: Sequence[Claim],
    published: tuple[str, Sequence[Claim]] | None = None,
    marks: Mapping[str, str] = MARKS,
    what: str = "claim",
) -> Markdown:
    """The claims with their verdicts, part by part; beside them those of the published run (`repsim.publish.published`)."""
    marks = {verdict: mark.replace(" ", "\N{NO-BREAK SPACE}") for verdict, mark in marks.items()}
    basis, others = published if published and published[0] != claims[0].basis else ("", [])
    known = {claim.id: claim for claim in others}
    rows = []
    for claim in claims:
        beside = known.get(claim.id)
        rows.append((f"**{claim.id}**", f"**{claim.statement}**", f"**{marks[claim.verdict]}**"))
        rows[-1] += (f"**{marks[beside.verdict]}**" if beside else "",)
        same = {part.statement: part for part in beside.parts} if beside else {}
        for part in claim.parts:
            row = (
                "",
                f"{part.statement} (claimed: {part.side} {part.threshold:g})",
                f"{marks[part.verdict]}: {found(part)}",
            )
            other = same.get(part.statement)
            rows.append((*row, f"{marks[other.verdict]}: {found(other)}" if other else ""))
    table = pd.DataFrame(rows, columns=["", what, "this run", "published run"])
    if not others:
        return markdown(table.drop(columns="published run"))
    return Markdown(f"{markdown(table).data}\n\n*Published run:* {basis}.")


def predictions(judged: Sequence[Claim]) -> Markdown:
    """Predictions (`repsim.predictions`) with what became of them, part by part."""
    return verdicts(judged, marks=PREDICTED, what="prediction")


def found(part: Part) -> str:
    """The range of a part's estimates, with two decimals."""
    values = [e.value for e in part.estimates if not math.isnan(e.value)]
    if not values:
        return "not defined" if part.estimates else "no pair of networks to judge it on"
    low, high = min(values), max(values)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def learnt(probe: pd.DataFrame, classes: int) -> Markdown:
    """Linear probes at the pool beside the baselines, and a warning where an objective is not above them.

    probe: network, layer, accuracy, low, high of untrained, SL and SimCLR networks and of the pixels.
    """
    rows = probe[probe["layer"].isin(["pool", "pixels"])].assign(of=lambda t: t["network"].map(charts.objective))
    of = dict(list(rows.groupby("of", sort=False)))
    read = {name: ", ".join(f"{v:.2f}" for v in part["accuracy"]) for name, part in of.items()}
    titles = {"sl": "SL", "simclr": "SimCLR", "untrained": "untrained", "pixels": "raw pixels"}
    said = "; ".join(f"{title} {read[name]}" for name, title in titles.items() if name in read)
    bar = max(of[name]["high"].max() for name in ("untrained", "pixels") if name in of)
    weak = [titles[name] for name in ("sl", "simclr") if not of[name]["low"].min() > bar]
    warning = (
        f" **{' and '.join(weak)} {'are' if len(weak) > 1 else 'is'} not clearly above these baselines in every seed: the "
        "verdicts of such a run show the method, they say little of the objectives.**"
    )
    return Markdown(
        f"*Have the networks learnt the classes?* Linear probes at the pool read {said}; chance is {1 / classes:.2f}."
        f"{warning if weak else ''}"
    )


def describe(claim: Claim, marks: Mapping[str, str] = MARKS) -> Markdown:
    """A claim's verdict and what decided it, as a paragraph; of a prediction with the marks PREDICTED."""
    word = {verdict: mark[2:] for verdict, mark in marks.items()}
    parts = "; ".join(
        f"{part.statement}, {found(part)} (claimed: {part.side} {part.threshold:g}): {word[part.verdict]}"
        for part in claim.parts
    )
    return Markdown(
        f"**{claim.id}**, {claim.statement}: **{word[claim.verdict]}** at this scale. In its parts: {parts}."
    )


def forest(claims: Sequence[Claim], *, title: str, marks: Mapping[str, str] = MARKS) -> alt.ConcatChart:
    """Each estimate of each part with its 95 % interval; the claimed side of the threshold is shaded.

    Raises:
        ValueError: no claims.
    """
    if not claims:
        raise ValueError("claims: expected at least one, got none")
    panels = []
    for claim in claims:
        for part in claim.parts:
            rows = pd.DataFrame([{"of": e.of, "value": e.value, "low": e.low, "high": e.high} for e in part.estimates])
            if rows.empty:
                continue
            panels.append(_part(claim, part, rows, marks))
    chart = alt.concat(*panels, columns=2, spacing={"row": 14, "column": 30}).resolve_scale(x="independent")
    words = "; ".join(f"{c.id} {c.statement}: {marks[c.verdict][2:]}" for c in claims)
    return chart.properties(title=title, description=f"Forest plot of the claims. {words}.")


def _part(claim: Claim, part: Part, rows: pd.DataFrame, marks: Mapping[str, str]) -> alt.LayerChart:
    bounds = [*rows[["value", "low", "high"]].stack().dropna(), part.threshold, 0.0]
    margin = 0.08 * (max(bounds) - min(bounds) or 1.0)
    ends = (min(bounds) - margin, max(bounds) + margin)
    side = (part.threshold, ends[1]) if part.side == "above" else (ends[0], part.threshold)
    scale, ticks = alt.Scale(domain=list(ends), nice=False), alt.Axis(tickCount=6)
    shade = alt.Chart(pd.DataFrame({"from": [side[0]], "to": [side[1]]})).mark_rect(color="#dcefe9")
    limit = alt.Chart(pd.DataFrame({"at": [part.threshold]})).mark_rule(color=MUTED, strokeDash=[5, 4], strokeWidth=2)
    tips = ["of", *(alt.Tooltip(f"{c}:Q", format=".3f") for c in ("value", "low", "high"))]
    label = alt.Axis(
        title=None, labelLimit=120, ticks=False, domain=False, minExtent=126, maxExtent=126, labelPadding=6
    )
    base = alt.Chart(rows).encode(
        y=alt.Y("of:N", sort=None, scale=alt.Scale(domain=list(rows["of"])), axis=label), tooltip=tips
    )
    colour = VERDICT_COLOURS[part.verdict]
    layers = [
        shade.encode(x=alt.X("from:Q", scale=scale, axis=ticks, title=None), x2="to:Q"),
        limit.encode(x="at:Q"),
        base.mark_rule(strokeWidth=2.5, color=colour).encode(x=alt.X("low:Q", title=None), x2="high:Q"),
        base.mark_point(filled=True, size=90, opacity=1, color=colour).encode(x=alt.X("value:Q", title=None)),
    ]
    said = textwrap.wrap(f"{claim.id} {part.statement}", 60)
    heading = alt.Title(
        said, fontSize=13, subtitle=marks[part.verdict], subtitleColor=colour, subtitleFont=SIGNS, offset=4
    )
    return alt.layer(*layers).properties(width=280, height=alt.Step(20), title=heading)


def path(
    table: pd.DataFrame,
    x: str,
    y: str,
    *,
    x_title: str,
    y_title: str,
    title: str,
    domain: tuple[float, float] | None = None,
) -> alt.LayerChart:
    """Layers as points of a plane, joined in the order of `position`, one line per network: network, layer, position, x, y.

    domain: of both axes, with a line where they are equal.
    """
    table = table.assign(
        objective=[charts.objective(n) for n in table["network"]], kind=[layer_kind(l) for l in table["layer"]]
    )
    table = table[table["kind"] != "residual"]
    names = list(dict.fromkeys(table["objective"]))
    colour = alt.Color(
        "objective:N",
        scale=alt.Scale(domain=names, range=[charts.COLOURS[n] for n in names]),
        legend=alt.Legend(title=None, orient="top"),
    )
    scale = alt.Undefined if domain is None else alt.Scale(domain=list(domain), nice=False)
    across, up = alt.X(f"{x}:Q", title=x_title, scale=scale), alt.Y(f"{y}:Q", title=y_title, scale=scale)
    base = alt.Chart(table).encode(x=across, y=up, color=colour)
    equal = alt.Chart(pd.DataFrame({x: domain, y: domain} if domain else {x: [], y: []})).encode(x=across, y=up)
    equal = equal.mark_line(color=MUTED, strokeDash=[5, 4], strokeWidth=1.2, aria=False)
    tips = ["network", "layer", alt.Tooltip(f"{x}:Q", format=".2f"), alt.Tooltip(f"{y}:Q", format=".2f")]
    line = base.mark_line(strokeWidth=2).encode(order="position:Q", detail="network:N")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(tooltip=tips)
    last = base.transform_filter("datum.layer == 'stem' || datum.layer == 'pool'")
    text = last.encode(text="layer:N", color=alt.value(INK))
    halo = text.mark_text(dx=8, align="left", fontSize=12, stroke="#ffffff", strokeWidth=4, aria=False)
    text = text.mark_text(dx=8, align="left", fontSize=12)
    words = "; ".join(
        f"{n}: from ({rows[x].iloc[0]:.2f}, {rows[y].iloc[0]:.2f}) to ({rows[x].iloc[-1]:.2f}, {rows[y].iloc[-1]:.2f})"
        for n, rows in table.groupby("network", sort=False)
    )
    return alt.layer(*([equal] if domain else []), line, points, halo, text).properties(
        width=460, height=380, title=title, description=f"{y_title} against {x_title}, layer by layer. {words}."
    )


def panels(table: pd.DataFrame, y: str, by: str, *, title: str, columns: int = 3) -> alt.ConcatChart:
    """Layer curves of `table` (network, layer, y, low, high), post-residual layers, one small panel per value of `by`."""
    parts = [
        charts.curves(
            rows.drop(columns=by), y=y, kind="post-residual", title=str(value), domain=None, width=250, height=170
        )
        for value, rows in table.groupby(by, sort=False)
    ]
    return alt.concat(*parts, columns=columns, spacing=20).properties(
        title=title, description=f"{title}. Panels: {', '.join(map(str, table[by].unique()))}."
    )


def over_time(
    table: pd.DataFrame,
    by: str,
    color: str,
    *,
    y_title: str,
    title: str,
    columns: int = 3,
    domain: tuple[float, float] | None = None,
    scheme: str | None = None,
) -> alt.ConcatChart:
    """Values over the share of training, on a logarithmic axis: share, of, value, low, high, and the columns `by` and `color`.

    A panel per value of `by`, a line per `of` and `color`; where the colours are no objectives but in an order, give a `scheme`.
    The initialisation stands at half the share of the first moment that follows.

    Raises:
        ValueError: an empty table.
    """
    if table.empty:
        raise ValueError("table: expected at least one row, got none; with one seed there are no pairs")
    shares = sorted(table["share"].unique())
    table = table.round({"value": 4, "low": 4, "high": 4})
    table = table.assign(at=_places(table["share"]), when=[percent(s) for s in table["share"]])
    table["line"] = table["of"] + " " + table[color].astype(str)
    places = [float(f"{p:.5g}") for p in _places(shares)]
    label = f"datum.value < {1.01 * places[0]} ? 'start' : format(100 * datum.value, '.2~r') + ' %'"
    colours = list(dict.fromkeys(table[color]))
    scale = alt.Scale(domain=colours, scheme=scheme) if scheme else charts.colour_scale(colours)
    legend = alt.Legend(
        title=None, orient="top", symbolType="stroke", symbolSize=400, symbolStrokeWidth=2.4, symbolOpacity=1
    )
    parts = []
    for value, rows in table.groupby(by, sort=False):
        x = alt.X(
            "at:Q",
            scale=alt.Scale(type="log", nice=False, domain=[places[0], 1]),
            axis=alt.Axis(values=places, labelExpr=label, title="share of training", grid=False, labelAngle=-45),
        )
        y = {"scale": alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain), clamp=True)}
        y |= {"axis": alt.Axis(minExtent=32, tickCount=5)}
        base = alt.Chart(rows[["line", color, "when", "at", "value", "low", "high"]]).encode(
            x=x,
            color=alt.Color(f"{color}:N", scale=scale, sort=colours, legend=legend),
            detail="line:N",
            tooltip=["line", "when", *(alt.Tooltip(f"{c}:Q", format=".2f") for c in ("value", "low", "high"))],
        )
        band = base.mark_area(opacity=0.14, aria=False).encode(y=alt.Y("low:Q", title=y_title, **y), y2="high:Q")
        line = base.mark_line(strokeWidth=2.2, point={"size": 36}).encode(y=alt.Y("value:Q", title=y_title, **y))
        heading = alt.Title(str(value), fontSize=13, fontWeight="normal", offset=6)
        width = 820 // columns - 30
        parts.append(alt.layer(band, line).properties(width=width, height=170, title=heading))
    ends = table.groupby([by, color, "share"], sort=False)["value"].mean().unstack()
    ends = ends.rename(columns=float)[[shares[0], shares[-1]]]
    words = "; ".join(f"{' '.join(map(str, key))} from {a:.2f} to {b:.2f}" for key, a, b in ends.itertuples())
    chart = alt.concat(*parts, columns=columns, spacing=20).properties(title=title)
    return chart.properties(description=f"{title}. {y_title} from the start to the end of training: {words}.")


def _places(shares: Sequence[float]) -> list[float]:
    first = min(s for s in shares if s > 0)
    return [float(s) if s > 0 else first / 2 for s in shares]


def percent(share: float) -> str:
    """A share of the training as text, "start" for 0."""
    return f"{100 * share:.2g} %" if 0 < share < 1 else "100 %" if share else "start"


def courses(table: pd.DataFrame, x: str, y: str, *, x_title: str, y_title: str, title: str) -> alt.ConcatChart:
    """Each network's way through a plane, moment by moment: share, network, layer, x, y; a panel per layer.

    The points grow from the initialisation to the end.
    """
    table = table.sort_values("share").assign(
        objective=[charts.objective(n) for n in table.sort_values("share")["network"]],
        when=lambda t: [percent(s) for s in t["share"]],
        moment=lambda t: t["share"].rank(method="dense"),
    )
    names = list(dict.fromkeys(sorted(table["objective"], reverse=True)))
    legend = alt.Legend(title=None, orient="top")
    ranges = [alt.Scale(domain=[float(table[c].min()), float(table[c].max())], nice=True, zero=False) for c in (x, y)]
    parts = []
    for layer in dict.fromkeys(table.sort_values("position")["layer"]):
        rows = table[table["layer"] == layer]
        base = alt.Chart(rows[["network", "objective", "when", "moment", x, y]].round(4)).encode(
            x=alt.X(f"{x}:Q", title=x_title, scale=ranges[0], axis=alt.Axis(tickCount=5)),
            y=alt.Y(f"{y}:Q", title=y_title, scale=ranges[1], axis=alt.Axis(tickCount=5)),
            color=alt.Color("objective:N", scale=charts.colour_scale(names), legend=legend),
            detail="network:N",
            tooltip=["network", "when", alt.Tooltip(f"{x}:Q", format=".2f"), alt.Tooltip(f"{y}:Q", format=".2f")],
        )
        size = alt.Size("moment:O", scale=alt.Scale(range=[14, 150]), legend=None)
        points = base.mark_point(filled=True, opacity=0.9).encode(size=size)
        drawn = alt.layer(base.mark_line(strokeWidth=1.6).encode(order="moment:Q"), points)
        heading = alt.Title(layer, fontSize=13, fontWeight="normal", offset=6)
        parts.append(drawn.properties(width=230, height=210, title=heading))
    last = table[table["layer"] == "pool"].groupby("network", sort=False)
    words = "; ".join(
        f"{n}: from ({rows[x].iloc[0]:.2f}, {rows[y].iloc[0]:.2f}) to ({rows[x].iloc[-1]:.2f}, {rows[y].iloc[-1]:.2f})"
        for n, rows in last
    )
    chart = alt.concat(*parts, columns=3, spacing=20).properties(title=title)
    return chart.properties(
        description=f"{y_title} against {x_title} over training, a panel per layer. At the pool {words}."
    )


# A held verdict is quiet, an overturned one is not: background and ink of a tile
OUTCOMES = {
    "held": ("#dcefe9", "#00735c"),
    "decided": ("#dbe9f6", "#0b4f8a"),
    "weakened": ("#f6e8c3", "#6b4e00"),
    "overturned": ("#a3260f", "#ffffff"),
    "not tested": ("#f2f3f5", "#57606a"),
}


def sign(outcome: str, after: str) -> str:
    """Of a verdict under attack: = held, – not tested, or an arrow to what it has become."""
    return {"held": "=", "not tested": "–"}.get(outcome, f"→{MARKS[after][0]}")


def card(table: pd.DataFrame, *, title: str) -> alt.LayerChart:
    """The claims card (`robustness.card`): a row per attack, a column per claim, its outcome as colour and sign.

    Raises:
        ValueError: an empty table.
    """
    if table.empty:
        raise ValueError("table: expected at least one row, got none")
    table = table.assign(sign=list(map(sign, table["outcome"], table["after"])))
    claims = sorted(table["claim"].unique())
    before = table.drop_duplicates("claim").set_index("claim")["before"]
    heads = json.dumps({c: [c, before[c]] for c in claims}) + "[datum.value]"
    base = alt.Chart(table).encode(
        x=alt.X(
            "claim:N",
            sort=claims,
            axis=alt.Axis(orient="top", title=None, labelExpr=heads, labelAngle=0, labelPadding=24, ticks=False),
        ),
        y=alt.Y(
            "attack:N", sort=None, axis=alt.Axis(title=None, labelLimit=260, ticks=False, domain=False, labelPadding=8)
        ),
        tooltip=["claim", "attack", "before", "after", "outcome", "because"],
    )
    present = [o for o in OUTCOMES if o in set(table["outcome"])]
    shade = alt.Color(
        "outcome:N",
        scale=alt.Scale(domain=present, range=[OUTCOMES[o][0] for o in present]),
        legend=alt.Legend(
            title=None,
            orient="bottom",
            symbolType="square",
            symbolSize=260,
            symbolStrokeColor=MUTED,
        ),
    )
    ink = alt.Color("outcome:N", scale=alt.Scale(domain=present, range=[OUTCOMES[o][1] for o in present]), legend=None)
    tiles = base.mark_rect(stroke="#ffffff", strokeWidth=2).encode(color=shade)
    signs = base.mark_text(fontSize=15, font=SIGNS).encode(text="sign:N", color=ink)
    counts = table["outcome"].value_counts()
    words = ", ".join(f"{counts[o]} {o}" for o in present)
    chart = alt.layer(tiles, signs).resolve_scale(color="independent")
    return chart.properties(
        width=alt.Step(96), height=alt.Step(24), title=title, description=f"{title}. Of {len(table)} verdicts {words}."
    )


def card_table(rows: Sequence[Mapping[str, str]]) -> Markdown:
    """The rows of a card (`robustness.kept_card`) as a table of signs; says so if there are none."""
    if not rows:
        return Markdown("*No attacks have been made on these verdicts yet; notebook 05 makes them.*")
    table = pd.DataFrame(rows)
    table["sign"] = list(map(sign, table["outcome"], table["after"]))
    heads = {c: f"{c} ({v})" for c, v in table.drop_duplicates("claim").set_index("claim")["before"].items()}
    wide = table.pivot(index="attack", columns="claim", values="sign").fillna("").loc[table["attack"].unique()]
    return markdown(wide.rename(columns=heads).reset_index())


def effect(table: pd.DataFrame, *attacks: str) -> Markdown:
    """What these attacks do to the verdicts, as a sentence each."""
    said = []
    for attack in attacks:
        rows = table[table["attack"] == attack]
        if rows.empty:
            said.append(f"Under *{attack}*: not judged in this run.")
            continue
        why = {SUPPORTED: "", NOT_SUPPORTED: "what fails: ", UNDECIDED: "what is undecided: "}
        parts = [
            f"**{r.claim} {r.outcome}** ({r.before}, now {r.after}; {why[r.after]}{r.because})"
            for r in rows.itertuples()
            if r.because
        ]
        for quiet in ("held", "not tested"):
            same = [f"{r.claim} ({r.after})" for r in rows.itertuples() if r.outcome == quiet]
            parts += [f"{quiet}: {', '.join(same)}"] if same else []
        said.append(f"Under *{attack}*: {'; '.join(parts)}.")
    return Markdown("\n\n".join(said))


def sizes(table: pd.DataFrame, *, title: str) -> alt.LayerChart:
    """CKA against the number of images: n, pair, estimator, cka (`attacks.sample_sizes`)."""
    ticks = sorted(table["n"].unique().tolist())
    base = alt.Chart(table).encode(
        x=alt.X("n:Q", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=ticks, title="images", grid=False)),
        y=alt.Y("cka:Q", title="CKA", scale=alt.Scale(domain=[min(-0.1, table["cka"].min()), 1])),
        color=alt.Color("pair:N", scale=alt.Scale(range=["#4a1259", MUTED]), sort=None, legend=_wide_legend()),
        tooltip=["pair", "estimator", "n", alt.Tooltip("cka:Q", format=".2f")],
    )
    dash = alt.StrokeDash("estimator:N", scale=alt.Scale(range=[[5, 4], [1, 0]]), legend=_wide_legend())
    ends = table[table["n"] == ticks[0]]
    words = "; ".join(f"{r.pair}, {r.estimator}: {r.cka:.2f} at n = {r.n}" for r in ends.itertuples())
    lines = base.mark_line(strokeWidth=2.4).encode(strokeDash=dash)
    chart = alt.layer(lines, base.mark_point(filled=True, size=60, opacity=1).encode(detail="estimator:N"))
    return chart.properties(width=520, height=280, title=title, description=f"{title}. {words}.")


def _wide_legend() -> alt.Legend:
    return alt.Legend(
        title=None, orient="top", columns=1, labelLimit=400, symbolType="stroke", symbolSize=400, symbolStrokeColor=INK
    )


def scatter(table: pd.DataFrame, x: str, y: str, *, x_title: str, y_title: str, title: str) -> alt.Chart:
    """A point per row, a colour per pair of networks, its shape by the layer's kind: pair, layer, x, y."""
    table = table.assign(kind=[layer_kind(l) for l in table["layer"]])
    chart = alt.Chart(table).mark_point(filled=True, size=80, opacity=0.9)
    chart = chart.encode(
        x=alt.X(f"{x}:Q", title=x_title),
        y=alt.Y(f"{y}:Q", title=y_title),
        color=alt.Color(
            "pair:N", scale=alt.Scale(range=["#4a1259", "#00a575"]), legend=alt.Legend(title=None, orient="top")
        ),
        shape=alt.Shape(
            "kind:N",
            scale=alt.Scale(domain=[*KINDS], range=[shape for shape, _ in KINDS.values()]),
            legend=alt.Legend(title=None, orient="bottom"),
        ),
        tooltip=["pair", "layer", alt.Tooltip(f"{x}:Q", format=".2f"), alt.Tooltip(f"{y}:Q", format=".2f")],
    )
    return chart.properties(
        width=460, height=320, title=title, description=f"{y_title} against {x_title}, a point per layer."
    )


def survivors(table: pd.DataFrame) -> Markdown:
    """Of each verdict the attacks that change it, how many it holds under, and which could not test it (`robustness.card`)."""
    said = []
    for claim, rows in table.groupby("claim"):
        by = {o: rows.loc[rows["outcome"] == o, "attack"].tolist() for o in OUTCOMES}
        what = [f"{o} by {', '.join(by[o])}" for o in ("overturned", "weakened", "decided") if by[o]]
        tested = len(rows) - len(by["not tested"])
        held = f"all {tested}" if len(by["held"]) == tested else f"{len(by['held'])} of {tested}"
        what += [f"holds under {held} attacks"] if tested else []
        what += [f"not tested by {', '.join(by['not tested'])}"] if by["not tested"] else []
        what = "; ".join(what)
        said.append(f"- **{claim}** ({rows['before'].iloc[0]}): {what}.")
    return Markdown("\n".join(said))
