"""What is written of this study's claims and predictions: verdicts, attacks, and whether the networks have learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from repsim import charts
from repsim.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Part
from repsim.predictions import OUTCOMES as OUTCOME_OF

MARKS = {SUPPORTED: "✔ supported", NOT_SUPPORTED: "✘ not supported", UNDECIDED: "○ undecided"}
PREDICTED = {verdict: f"{MARKS[verdict][0]} {word}" for verdict, word in OUTCOME_OF.items()}  # of predictions
OUTCOMES = ("held", "decided", "weakened", "overturned", "not tested")  # of a verdict under attack


def verdicts(
    claims: Sequence[Claim],
    published: tuple[str, Sequence[Claim]] | None = None,
    marks: Mapping[str, str] = MARKS,
    what: str = "claim",
) -> charts.Text:
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
            statement, other = f"{part.statement} (claimed: {part.side} {part.threshold:g})", same.get(part.statement)
            told = [f"{marks[p.verdict]}: {found(p)}" if p else "" for p in (part, other)]
            rows.append(("", statement, *told))
    table = pd.DataFrame(rows, columns=["", what, "this run", "published run"])
    if not others:
        return charts.markdown(table.drop(columns="published run"))
    return charts.markdown(table, f"*Published run:* {basis}.")


def predictions(judged: Sequence[Claim]) -> charts.Text:
    """Predictions (`repsim.predictions`) with what became of them, part by part."""
    return verdicts(judged, marks=PREDICTED, what="prediction")


def found(part: Part) -> str:
    """The range of a part's estimates, with two decimals."""
    values = [e.value for e in part.estimates if not math.isnan(e.value)]
    if not values:
        return "not defined" if part.estimates else "no pair of networks to judge it on"
    return " to ".join(dict.fromkeys(f"{value:z.2f}" for value in (min(values), max(values))))


def learnt(probe: pd.DataFrame, classes: int) -> charts.Text:
    """Linear probes at the pool beside the baselines, and a warning where an objective is not above them.

    probe: network, layer, accuracy, low, high of untrained, SL and SimCLR networks and of the pixels.
    """
    rows = probe[probe["layer"].isin(["pool", "pixels"])].assign(of=lambda t: t["network"].map(charts.objective))
    of = dict(list(rows.groupby("of", sort=False)))
    read = {name: ", ".join(f"{v:.2f}" for v in part["accuracy"]) for name, part in of.items()}
    said = "; ".join(f"{charts.name(n)} {read[n]}" for n in ("sl", "simclr", "untrained", "pixels") if n in read)
    bar = max(of[name]["high"].max() for name in ("untrained", "pixels") if name in of)
    weak = [charts.name(name) for name in ("sl", "simclr") if not of[name]["low"].min() > bar]
    warning = (
        f" **{' and '.join(weak)} {'are' if len(weak) > 1 else 'is'} not clearly above these baselines in every seed: the "
        "verdicts of such a run show the method, they say little of the objectives.**"
    )
    return charts.markdown(
        f"*Have the networks learnt the classes?* Linear probes at the pool read {said}; chance is {1 / classes:.2f}."
        f"{warning if weak else ''}"
    )


def describe(claim: Claim, marks: Mapping[str, str] = MARKS) -> charts.Text:
    """A claim's verdict and what decided it, as a paragraph; of a prediction with the marks PREDICTED."""
    word = {verdict: mark[2:] for verdict, mark in marks.items()}
    parts = "; ".join(
        f"{part.statement}, {found(part)} (claimed: {part.side} {part.threshold:g}): {word[part.verdict]}"
        for part in claim.parts
    )
    return charts.markdown(
        f"**{claim.id}**, {claim.statement}: **{word[claim.verdict]}** at this scale. In its parts: {parts}."
    )


def forest(claims: Sequence[Claim], *, title: str, marks: Mapping[str, str] = MARKS) -> Any:
    """Each estimate of each part with its 95 % interval; the claimed side of the threshold is shaded.

    Raises:
        ValueError: no claims.
    """
    rows = [
        {"panel": f"{claim.id} {part.statement}: {marks[part.verdict][2:]}", "label": e.of, "value": e.value}
        | {"low": e.low, "high": e.high, "threshold": part.threshold, "side": part.side}
        for claim in claims
        for part in claim.parts
        for e in part.estimates
    ]
    if not rows:
        raise ValueError("claims: expected at least one with estimates, got none")
    return charts.forest(pd.DataFrame(rows), title=title)


def sign(outcome: str, after: str) -> str:
    """Of a verdict under attack: = held, – not tested, or an arrow to what it has become."""
    return {"held": "=", "not tested": "–"}.get(outcome, f"→{MARKS[after][0]}")


def card_table(rows: Sequence[Mapping[str, str]]) -> charts.Text:
    """The rows of a card (`robustness.kept_card`) as a table of signs; says so if there are none."""
    if not len(rows):
        return charts.markdown("*No attacks have been made on these verdicts yet; notebook 05 makes them.*")
    table = pd.DataFrame(rows)
    table["sign"] = list(map(sign, table["outcome"], table["after"]))
    heads = {c: f"{c} ({v})" for c, v in table.drop_duplicates("claim").set_index("claim")["before"].items()}
    wide = table.pivot(index="attack", columns="claim", values="sign").fillna("").loc[table["attack"].unique()]
    return charts.markdown(wide.rename(columns=heads).reset_index())


def effect(table: pd.DataFrame, *attacks: str) -> charts.Text:
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
    return charts.markdown("\n\n".join(said))


def survivors(table: pd.DataFrame) -> charts.Text:
    """Of each verdict the attacks that change it, how many it holds under, and which could not test it (`robustness.card`)."""
    said = []
    for claim, rows in table.groupby("claim"):
        by = {o: rows.loc[rows["outcome"] == o, "attack"].tolist() for o in OUTCOMES}
        what = [f"{o} by {', '.join(by[o])}" for o in ("overturned", "weakened", "decided") if by[o]]
        tested = len(rows) - len(by["not tested"])
        held = f"all {tested}" if len(by["held"]) == tested else f"{len(by['held'])} of {tested}"
        what += [f"holds under {held} attacks"] if tested else []
        what += [f"not tested by {', '.join(by['not tested'])}"] if by["not tested"] else []
        said.append(f"- **{claim}** ({rows['before'].iloc[0]}): {'; '.join(what)}.")
    return charts.markdown("\n".join(said))
