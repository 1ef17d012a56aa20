"""The claims once more, on other evidence: what a reviewer would try, and what it does to each verdict.

An attack is another `Evidence`, whose cells are made of the comparison's ("regress the input out", "put the head in the
place of the pool") or measured in another way (mutual k-NN, stitching). The same claims are judged on it by the same
rules and thresholds (`repsim.claims`), and the outcome is, for each claim that the attack touches:

    held         the verdict is what it was
    weakened     it was supported or not supported, and is undecided now
    overturned   supported has become not supported, or the reverse
    decided      it was undecided, and is supported or not supported now
    not tested   it was not supported, on account of a number that the attack does not measure again
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from repsim import claims, store
from repsim.claims import EFFECT, NOT_SUPPORTED, SIMILAR, UNDECIDED, Cell, Claim, Estimate, Evidence, Pair, Part
from repsim.comparison import Comparison
from repsim.measures import deconfounded_cka

HELD, WEAKENED, OVERTURNED, DECIDED, UNTESTED = "held", "weakened", "overturned", "decided", "not tested"
ALPHA = 0.05  # of the family-wise error of a null

Wrap = Callable[[Cell], Cell]
Name = tuple[str, str, str, str]  # a, layer_a, b, layer_b


# The card


def outcome(before: str, after: str) -> str:
    """held, weakened, overturned or decided, of a verdict before and under an attack."""
    if before == after:
        return HELD
    return DECIDED if before == UNDECIDED else WEAKENED if after == UNDECIDED else OVERTURNED


def card(base: Sequence[Claim], attacks: Mapping[str, Sequence[Claim]]) -> pd.DataFrame:
    """One row per attack and claim that it touches: claim, attack, before, after, outcome, because.

    `because` names the parts that bear the verdict under the attack where it is not what it was.

    Raises:
        ValueError: an attack on a claim that is not in `base`.
    """
    before, failing = {claim.id: claim.verdict for claim in base}, {claim.id: _failing(claim) for claim in base}
    rows = []
    for attack, judged in attacks.items():
        for claim in judged:
            if claim.id not in before:
                raise ValueError(f"attacks: expected claims among {', '.join(before)}, got {claim.id} under {attack!r}")
            changed = outcome(before[claim.id], claim.verdict)
            if changed == HELD and failing[claim.id] & _failing(claim):
                changed = UNTESTED
            decisive = [part.statement for part in claim.parts if part.verdict == claim.verdict]
            rows.append(
                {
                    "claim": claim.id,
                    "attack": attack,
                    "before": before[claim.id],
                    "after": claim.verdict,
                    "outcome": changed,
                    "because": "" if changed in (HELD, UNTESTED) else "; ".join(decisive),
                }
            )
    return pd.DataFrame(rows, columns=["claim", "attack", "before", "after", "outcome", "because"])


def _failing(claim: Claim) -> set[tuple[str, Estimate]]:
    """The numbers that are wholly on the side that is not claimed; equal ones in two claims were not measured anew."""
    return {
        (part.statement, e)
        for part in claim.parts
        for e in part.estimates
        if dataclasses.replace(part, estimates=(e,)).verdict == NOT_SUPPORTED
    }


def keep_card(table: pd.DataFrame, out: str | Path) -> pd.DataFrame:
    """Write the card to OUT/card.json, a list of rows, and return it."""
    store.write(Path(out) / "card.json", json.dumps(table.to_dict("records"), indent=1) + "\n")
    return table


def kept_card(out: str | Path, verdicts: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of OUT/card.json; none if there is no such file, or if it was made of other verdicts than these.

    verdicts: claims as `Claim.to_dict` gives them.
    """
    try:
        rows = json.loads((Path(out) / "card.json").read_text())
        of = {claim["id"]: claim["verdict"] for claim in verdicts}
        return rows if all(of[row["claim"]] == row["before"] for row in rows) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def with_card(verdicts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """The claims, each with `attacks`: what each attack that touches it does to it."""
    of = {
        claim["id"]: [{k: v for k, v in r.items() if k != "claim"} for r in rows if r["claim"] == claim["id"]]
        for claim in verdicts
    }
    return [{**claim, "attacks": of[claim["id"]]} for claim in verdicts]


# Evidence made of a comparison's cells


@dataclass(frozen=True, eq=False)
class Cells:
    """What claims ask of a comparison, its layers and intervals of functions of cells, with other cells than its own."""

    comparison: Comparison
    wrap: Wrap

    def layers(self, stream: str) -> list[str]:
        return self.comparison.layers(stream)

    def interval(self, statistic: Callable[[Cell], np.ndarray]) -> tuple[float, float, float]:
        return self.comparison.interval(lambda cell: statistic(self.wrap(cell)))

    def curve(self, a: str, b: str) -> pd.DataFrame:
        """As `Comparison.curve`: a, b, layer_a, layer_b, cka, low, high of same-named layers (or b's only one)."""
        one, other = (self.layers(stream.split("@")[0]) for stream in (a, b))
        rows = []
        for layer in one:
            if len(other) > 1 and layer not in other:
                continue
            name = (a, layer, b, layer if len(other) > 1 else other[0])
            value, low, high = self.interval(lambda cell, name=name: cell(*name))
            rows.append({"a": a, "b": b, "layer_a": layer, "layer_b": name[3], "cka": value, "low": low, "high": high})
        return pd.DataFrame(rows)


def attacked(evidence: Evidence, wrap: Wrap) -> Evidence:
    """The evidence with its cells wrapped."""
    return dataclasses.replace(evidence, comparison=Cells(evidence.comparison, wrap))


def estimated(evidence: Evidence, estimator: str) -> Evidence:
    """The evidence by another estimator that its comparison was made with ("biased")."""
    comparison = evidence.comparison
    values = {"hsic": comparison.hsic, "totals": comparison.totals}
    renamed = {field: {"unbiased": value[estimator]} for field, value in values.items()}
    return dataclasses.replace(evidence, comparison=dataclasses.replace(comparison, **renamed))


def without_input(cell: Cell) -> Cell:
    """CKA with the Gram of the clean images' pixels regressed out of both sides."""

    def left(a: str, layer_a: str, b: str, layer_b: str) -> np.ndarray:
        own = (cell(*source, "pixels", "pixels") for source in ((a, layer_a), (b, layer_b)))
        return deconfounded_cka(cell(a, layer_a, b, layer_b), *own)

    return left


def without_ceilings(cell: Cell) -> Cell:
    """Two seeds of one objective count as equal, so that a normalised score is the raw CKA."""

    def raw(a: str, layer_a: str, b: str, layer_b: str) -> np.ndarray:
        value = cell(a, layer_a, b, layer_b)
        seeds = a != b and "@" not in a + b and _objective(a) == _objective(b)
        return np.ones_like(value) if seeds else value

    return raw


def renamed(objectives: Mapping[str, str] | None = None, layers: Mapping[str, str] | None = None) -> Wrap:
    """Where a claim asks for an objective or a layer, take another: {"sl": "sl_simclr_views"}, {"pool": "head"}."""

    def stream(name: str) -> str:
        own = _objective(name)
        return (objectives or {}).get(own, own) + name.removeprefix(own)

    def wrap(cell: Cell) -> Cell:
        return lambda a, k, b, l: cell(stream(a), (layers or {}).get(k, k), stream(b), (layers or {}).get(l, l))

    return wrap


def clean_against(view: str) -> Wrap:
    """Where a claim compares two views of a network, compare its clean images with the view of that name."""

    def wrap(cell: Cell) -> Cell:
        def against(a: str, layer_a: str, b: str, layer_b: str) -> np.ndarray:
            if "@" in a and "@" in b:
                a, b = a.split("@")[0], f"{b.split('@')[0]}@{view}"
            return cell(a, layer_a, b, layer_b)

        return against

    return wrap


def _objective(stream: str) -> str:
    return stream.split("@")[0].rpartition("-")[0] or stream


# Evidence from cells that are measured one by one


def leave_out(values: Mapping[Name, Callable[[Tensor], float]], n: int, folds: int = 8) -> pd.DataFrame:
    """Each cell's value of all n images (column "all"), then without each fold in turn (image i is in fold i % folds).

    `values`: (a, layer_a, b, layer_b) -> function of the indices of the images that are left.
    """
    fold = torch.arange(n) % folds
    kept = {"all": torch.arange(n)} | {f"without {f}": (fold != f).nonzero().squeeze(1) for f in range(folds)}
    rows = [[*name, n, *(value(index) for index in kept.values())] for name, value in values.items()]
    return pd.DataFrame(rows, columns=["a", "layer_a", "b", "layer_b", "images", *kept])


def share(outcome: Tensor, index: Tensor) -> float:
    """The share of these images for which `outcome` (n,) is true: a value for `leave_out`."""
    return outcome[index].double().mean().item()


def same_layers(
    features: Mapping[str, Mapping[str, Tensor]],
    pairs: Sequence[tuple[str, str]],
    measure: Callable[[Tensor, Tensor], float],
    folds: int = 8,
) -> pd.DataFrame:
    """`leave_out` of a similarity of features (n, p), (n, q), at the layers that both streams of each pair have."""

    def value(a: str, b: str, layer: str) -> Callable[[Tensor], float]:
        return lambda index: measure(features[a][layer][index], features[b][layer][index])

    names = [(a, b, layer) for a, b in pairs for layer in features[a] if layer in features[b]]
    images = len(next(iter(features[pairs[0][0]].values())))
    return leave_out({(a, layer, b, layer): value(a, b, layer) for a, b, layer in names}, images, folds)


def cells(table: pd.DataFrame) -> Cells:
    """What `leave_out` gave, as cells with intervals. A cell that was not measured is NaN."""
    left = [column for column in table.columns if column.startswith("without ")]
    values = {}
    for row in table.to_dict("records"):
        value = np.array([row["all"], *(row[column] for column in left)], dtype=float)
        values[row["a"], row["layer_a"], row["b"], row["layer_b"]] = value
        values[row["b"], row["layer_b"], row["a"], row["layer_a"]] = value
    sources = tuple(dict.fromkeys((a.split("@")[0], layer) for a, layer, _, _ in values))  # of both sides
    n, folds = int(table["images"].iloc[0]), len(left)
    weights = torch.tensor([float(len(range(f, n, folds))) for f in range(folds)], dtype=torch.float64)
    missing = np.full(1 + folds, np.nan)
    return Cells(
        Comparison(sources, torch.zeros(2, 0), {}, {}, weights), lambda _: lambda *name: values.get(name, missing)
    )


# Parts that some attacks add, or put in the place of a claim's own


def beyond_null(claim: Claim, nulls: Mapping[str, pd.DataFrame], layers: Sequence[str]) -> Claim:
    """The claim, and that these layers are more alike than any pair of layers is when the images are shuffled.

    nulls: pair of networks -> `repsim.measures.permutation_null` of it.
    """
    estimates = []
    for pair, null in nulls.items():
        same = null[(null["layer_a"] == null["layer_b"]) & null["layer_a"].isin(layers)]
        estimates += [Estimate(f"{pair}, {r.layer_a}", r.p_family, r.p_family, r.p_family) for r in same.itertuples()]
    part = Part("family-wise p against shuffled images", "below", ALPHA, tuple(estimates))
    return dataclasses.replace(claim, parts=(*claim.parts, part))


def beyond_random_labels(claim: Claim, evidence: Evidence) -> Claim:
    """C5, and that CKA with the classes rises more in SL than in a network trained on shuffled labels."""
    begin = claims.first(evidence.layers)

    def rise(cell: Cell, network: str) -> np.ndarray:
        return cell(network, "pool", "labels", "labels") - cell(network, begin, "labels", "labels")

    control = claims.pairs(evidence.seeds, "sl", "random_labels")
    more = [evidence.estimate(str(p), lambda c, p=p: rise(c, p.networks[0]) - rise(c, p.networks[1])) for p in control]
    part = evidence.part(
        "CKA with the classes rises more than in a network trained on shuffled labels", "above", EFFECT, more
    )
    return dataclasses.replace(claim, parts=(*claim.parts, part))


def stitched(claim: Claim, evidence: Evidence, classes: int) -> Claim:
    """C2 by function: its two parts with accuracy above chance of stitched SL networks in the place of CKA.

    Cells (SL network, layer, other network, layer): accuracy of the SL network behind the other's layer.
    """
    layers = claims.of_kind(evidence.layers, "post-residual", claims.MIDDLE)

    def gain(cell: Cell, pair: Pair, other: str) -> np.ndarray:
        seed = pair.networks[1].rpartition("-")[2]
        return np.mean([cell(pair.networks[0], l, f"{other}-{seed}", l) for l in layers], axis=0) - 1 / classes

    pairs = claims.pairs(evidence.seeds)
    score = [evidence.estimate(str(p), lambda c, p=p: gain(c, p, "simclr") / gain(c, p, "sl")) for p in pairs]
    floor = [evidence.estimate(str(p), lambda c, p=p: gain(c, p, "simclr") - gain(c, p, "untrained")) for p in pairs]
    parts = (
        evidence.part(
            "stitched accuracy above chance, relative to another SL seed's, is high", "above", SIMILAR, score
        ),
        evidence.part("stitched accuracy is above that with an untrained network", "above", 0.0, floor),
    )
    return dataclasses.replace(claim, parts=parts)


def functional(claim: Claim, correlations: Sequence[Estimate]) -> Claim:
    """C4, and that layers which are less alike also differ more in what a probe reads from them."""
    part = Part("dissimilarity and probe gap go together over layers (Spearman)", "above", 0.0, tuple(correlations))
    return dataclasses.replace(claim, parts=(*claim.parts, part))


def rank_correlation(
    of: str, x: Sequence[float], y: Sequence[float], *, generator: torch.Generator, draws: int = 2000
) -> tuple[Estimate, float]:
    """Spearman's correlation of paired values with its 95 % bootstrap interval over pairs, and a permutation p value.

    One-sided (positive). Layers of a network depend on one another, so that both are on the generous side.

    Raises:
        ValueError: different or fewer than 4 values.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(x)
    if len(y) != n or n < 4:
        raise ValueError(f"x, y: expected as many values, at least 4, got {n} and {len(y)}")

    def spearman(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        r, s = (rankdata(v, axis=1) - (n + 1) / 2 for v in (rows, columns))
        with np.errstate(invalid="ignore"):
            return (r * s).sum(1) / np.sqrt((r**2).sum(1) * (s**2).sum(1))

    value = float(spearman(x[None], y[None])[0])
    drawn = torch.randint(n, (draws, n), generator=generator).numpy()
    low, high = np.nanquantile(spearman(x[drawn], y[drawn]), [0.025, 0.975])
    shuffled = torch.rand(draws, n, generator=generator).argsort(1).numpy()
    null = spearman(np.broadcast_to(x, (draws, n)), y[shuffled])
    return Estimate(of, value, float(low), float(high)), float((1 + (null >= value - 1e-12).sum()) / (1 + draws))


def probe_of(table: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """A table of networks in which other objectives take these ones' places: {"sl": "sl_simclr_views"}."""
    taken = {new: old for old, new in objectives.items()}
    left = table[~table["network"].map(_objective).isin(objectives)]
    own = left["network"].map(_objective)
    names = [taken.get(o, o) + n.removeprefix(o) for o, n in zip(own, left["network"])]
    return left.assign(network=names)
