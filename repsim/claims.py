"""The claims C1 to C7 as contrasts that a run can support or refute.

The verdict logic stands here, before any result. A claim has parts; a part is one number per network or per pair of
networks, each with a 95 % interval over images, that is claimed to lie on one side of a threshold:

    supported        every interval lies wholly on the claimed side
    not supported    some interval lies wholly on the other side
    undecided        otherwise: an interval contains the threshold, or a number is undefined

A claim is supported if all its parts are, not supported if one part is not, and undecided otherwise. "Every" runs over
the seeds, so that a claim never rests on one network.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from repsim.comparison import Comparison
from repsim.models import layer_kind, stage

VIEWS = ("view-a", "view-b")  # the two augmented views of the test images that C6 and C7 compare

# Thresholds, and why
SIMILAR = 0.7  # of a normalised score: two networks share more than two thirds of what two seeds of one objective share
EFFECT = 0.05  # of CKA or accuracy: the smallest difference we speak of; several times the spread over 1,000 images
NATS = 0.1  # of a loss: the smallest difference we speak of

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, and the networks it belongs to; NaN where it is undefined."""

    of: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    """All `estimates` are claimed to be `side` ("above" or "below") `threshold`."""

    statement: str
    side: str
    threshold: float
    estimates: tuple[Estimate, ...]

    @property
    def verdict(self) -> str:
        sign = 1.0 if self.side == "above" else -1.0
        bounds = [sorted((sign * (e.low - self.threshold), sign * (e.high - self.threshold))) for e in self.estimates]
        if any(high < 0 for _, high in bounds):  # comparisons with NaN are false
            return NOT_SUPPORTED
        return SUPPORTED if bounds and all(low > 0 for low, _ in bounds) else UNDECIDED


@dataclass(frozen=True)
class Claim:
    """A claim, its parts, and what it rests on: images, networks, scale."""

    id: str
    statement: str
    parts: tuple[Part, ...]
    basis: str

    @property
    def verdict(self) -> str:
        verdicts = [part.verdict for part in self.parts]
        if NOT_SUPPORTED in verdicts:
            return NOT_SUPPORTED
        return SUPPORTED if verdicts and all(v == SUPPORTED for v in verdicts) else UNDECIDED

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the verdicts of claim and parts; NaN becomes None."""
        value = dataclasses.asdict(self) | {"verdict": self.verdict}
        for part, entry in zip(self.parts, value["parts"]):
            entry["verdict"] = part.verdict
            for estimate in entry["estimates"]:
                estimate |= {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in estimate.items()}
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; verdicts are computed anew. Raises KeyError or TypeError for anything else."""

        def number(x: float | None) -> float:
            return math.nan if x is None else float(x)

        parts = []
        for part in value["parts"]:
            estimates = tuple(
                Estimate(e["of"], number(e["value"]), number(e["low"]), number(e["high"])) for e in part["estimates"]
            )
            parts.append(Part(part["statement"], part["side"], float(part["threshold"]), estimates))
        return cls(value["id"], value["statement"], tuple(parts), value["basis"])


# Layers


def of_kind(layers: Sequence[str], kind: str, stages: Sequence[str] | None = None) -> list[str]:
    """The layers of a kind ("residual", "post-residual"), of some stages if given."""
    return [l for l in layers if layer_kind(l) == kind and (stages is None or stage(l) in stages)]


MIDDLE = ("layer2", "layer3")


def first(layers: Sequence[str]) -> str:
    """The first post-residual layer."""
    return of_kind(layers, "post-residual")[0]


def end_of(layers: Sequence[str], name: str) -> str:
    """The last post-residual layer of a stage."""
    return of_kind(layers, "post-residual", [name])[-1]


# Statistics: functions of `cell(a, layer_a, b, layer_b)`, the CKA of all images and of all but each fold in turn
# (see `repsim.cka.Comparison.interval`), so that each comes with its interval.

Cell = Callable[[str, str, str, str], np.ndarray]


def within_stages(cell: Cell, network: str, layers: Sequence[str]) -> np.ndarray:
    """Mean CKA between different layers of one network and one stage, over all stages."""
    pairs = [(a, b) for a, b in itertools.combinations(layers, 2) if stage(a) == stage(b)]
    return np.mean([cell(network, a, network, b) for a, b in pairs], axis=0)


def grid_correlation(cell: Cell, a: str, b: str, layers: Sequence[str]) -> np.ndarray:
    """Pearson correlation of two networks' own grids: over all pairs of different layers, CKA in a against CKA in b."""
    pairs = list(itertools.combinations(layers, 2))
    x, y = (np.array([cell(n, k, n, l) for k, l in pairs]) for n in (a, b))
    x, y = x - x.mean(0), y - y.mean(0)
    return (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))


def mean_cka(cell: Cell, a: str, b: str, layers: Sequence[str]) -> np.ndarray:
    """Mean CKA of same-named layers."""
    return np.mean([cell(a, l, b, l) for l in layers], axis=0)


def normalised(cell: Cell, pair: Pair, layers: Sequence[str]) -> np.ndarray:
    """Mean over layers of CKA(a, b) / sqrt(CKA(a, a') CKA(b, b')), where a' and b' are other seeds of the same objectives.

    1 says that the two objectives differ no more than two seeds of one do.
    """
    (a, b), (a2, b2) = pair.networks, pair.siblings
    return np.mean([relative(cell(a, l, b, l), cell(a, l, a2, l), cell(b, l, b2, l)) for l in layers], axis=0)


def relative(cross: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """cross / sqrt(first second), a CKA relative to two ceilings; NaN, hence undecided, where seeds have nothing in common."""
    first, second = (np.where(np.asarray(ceiling) > 0, ceiling, np.nan) for ceiling in (first, second))
    return cross / np.sqrt(first * second)


@dataclass(frozen=True)
class Pair:
    """Two networks of different objectives and seeds, and another seed of each. Initial weights are never shared."""

    networks: tuple[str, str]
    siblings: tuple[str, str]

    def __str__(self) -> str:
        return " and ".join(self.networks)


def pairs(seeds: int, a: str = "sl", b: str = "simclr") -> list[Pair]:
    """Each seed of objective a with the next seed of b. Empty with one seed: no ceiling, and equal initial weights."""
    following = [(i + 1) % seeds for i in range(seeds)] if seeds > 1 else []
    return [Pair((f"{a}-{i}", f"{b}-{j}"), (f"{a}-{j}", f"{b}-{i}")) for i, j in enumerate(following)]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a claim is judged on: the comparison of all networks, and how many seeds each objective has."""

    comparison: Comparison
    seeds: int
    basis: str

    def networks(self, objective: str) -> list[str]:
        return [f"{objective}-{seed}" for seed in range(self.seeds)]

    @property
    def layers(self) -> list[str]:
        """The layers that networks of both objectives have, in order, heads left out."""
        return [l for l in self.comparison.layers("sl-0") if layer_kind(l) != "head"]

    def estimate(self, of: str, statistic: Callable[[Cell], np.ndarray]) -> Estimate:
        return Estimate(of, *self.comparison.interval(statistic))

    def part(self, statement: str, side: str, threshold: float, estimates: Sequence[Estimate]) -> Part:
        return Part(statement, side, threshold, tuple(estimates))


def c1(evidence: Evidence) -> Claim:
    """Both objectives use the ResNet in the same way."""
    layers, est = evidence.layers, evidence.estimate
    post, residual = of_kind(layers, "post-residual"), of_kind(layers, "residual")
    trained = [n for objective in ("sl", "simclr") for n in evidence.networks(objective)]
    gap = [est(n, lambda c, n=n: within_stages(c, n, post) - within_stages(c, n, residual)) for n in trained]
    same = [est(str(p), lambda c, p=p: grid_correlation(c, *p.networks, layers)) for p in pairs(evidence.seeds)]
    parts = (
        evidence.part("within a stage, post-residual layers are more alike than residual ones", "above", EFFECT, gap),
        evidence.part("the two objectives' own grids correlate", "above", SIMILAR, same),
    )
    return Claim("C1", "SimCLR uses the residual network as supervised learning does", parts, evidence.basis)


def c2(evidence: Evidence) -> Claim:
    """Similar intermediate representations."""
    layers, est = of_kind(evidence.layers, "post-residual", MIDDLE), evidence.estimate
    score = [est(str(p), lambda c, p=p: normalised(c, p, layers)) for p in pairs(evidence.seeds)]

    def above_floor(c: Cell, p: Pair) -> np.ndarray:
        cross = mean_cka(c, *p.networks, layers)
        untrained = [f"untrained-{seed}" for seed in range(evidence.seeds)]
        # a network and the untrained one of another seed: initial weights are never shared
        floors = [mean_cka(c, n, u, layers) for n in p.networks for u in untrained if n[-2:] != u[-2:]]
        return cross - np.max(floors, axis=0)

    floor = [est(str(p), lambda c, p=p: above_floor(c, p)) for p in pairs(evidence.seeds)]
    parts = (
        evidence.part("normalised CKA of middle post-residual layers is high", "above", SIMILAR, score),
        evidence.part("CKA of these layers is above that of either network with an untrained one", "above", 0.0, floor),
    )
    return Claim("C2", "the intermediate representations are similar", parts, evidence.basis)


def c3(evidence: Evidence) -> Claim:
    """Through dissimilar means."""
    est = evidence.estimate
    post, residual = (of_kind(evidence.layers, kind, MIDDLE) for kind in ("post-residual", "residual"))
    low = [est(str(p), lambda c, p=p: normalised(c, p, residual)) for p in pairs(evidence.seeds)]
    gap = [
        est(str(p), lambda c, p=p: normalised(c, p, post) - normalised(c, p, residual)) for p in pairs(evidence.seeds)
    ]
    parts = (
        evidence.part("normalised CKA of middle residual layers is low", "below", SIMILAR, low),
        evidence.part(
            "normalised CKA of middle residual layers is lower than that of post-residual ones", "above", EFFECT, gap
        ),
    )
    return Claim("C3", "they are reached by dissimilar means (residual layers)", parts, evidence.basis)


def c4(evidence: Evidence) -> Claim:
    """Rapid divergence in the last few layers."""
    layers, est = evidence.layers, evidence.estimate
    begin, middle = end_of(layers, "layer1"), end_of(layers, "layer3")

    def drop(c: Cell, p: Pair) -> np.ndarray:
        return normalised(c, p, [middle]) - normalised(c, p, ["pool"])

    def before(c: Cell, p: Pair) -> np.ndarray:
        return normalised(c, p, [begin]) - normalised(c, p, [middle])

    falls = [est(str(p), lambda c, p=p: drop(c, p)) for p in pairs(evidence.seeds)]
    faster = [est(str(p), lambda c, p=p: drop(c, p) - before(c, p)) for p in pairs(evidence.seeds)]
    parts = (
        evidence.part("normalised CKA falls from the end of stage 3 to the pool", "above", EFFECT, falls),
        evidence.part(
            "normalised CKA falls by more over the last stage than from the end of stage 1 to that of stage 3",
            "above",
            0.0,
            faster,
        ),
    )
    return Claim("C4", "the representations diverge rapidly in the last few layers", parts, evidence.basis)


def c5(evidence: Evidence, probe: pd.DataFrame) -> Claim:
    """The last layers fit the supervised objective, in SL above all. `probe`: network, layer, accuracy, low, high."""
    layers, est = evidence.layers, evidence.estimate
    trained = [n for objective in ("sl", "simclr") for n in evidence.networks(objective)]

    def labels(c: Cell, network: str, layer: str) -> np.ndarray:
        return c(network, layer, "labels", "labels")

    rise = [est(n, lambda c, n=n: labels(c, n, "pool") - labels(c, n, first(layers))) for n in trained]

    def last_stage(c: Cell, network: str) -> np.ndarray:
        return labels(c, network, "pool") - labels(c, network, end_of(layers, "layer3"))

    faster = [
        est(str(p), lambda c, p=p: last_stage(c, p.networks[0]) - last_stage(c, p.networks[1]))
        for p in pairs(evidence.seeds)
    ]
    accuracy = [rise_of(probe, n, first(layers), "pool") for n in trained]
    parts = (
        evidence.part("CKA with the classes rises from the first block to the pool", "above", EFFECT, rise),
        evidence.part(
            "over the last stage CKA with the classes rises more in SL than in SimCLR", "above", EFFECT, faster
        ),
        evidence.part("linear-probe accuracy rises from the first block to the pool", "above", EFFECT, accuracy),
    )
    return Claim("C5", "the last layers fit the classes, much faster in SL", parts, evidence.basis)


def c6(evidence: Evidence) -> Claim:
    """SimCLR's last layers fit augmentation invariance."""
    layers, est = evidence.layers, evidence.estimate

    def rise(c: Cell, network: str, start: str, stop: str) -> np.ndarray:
        a, b = (f"{network}@{view}" for view in VIEWS)
        return c(a, stop, b, stop) - c(a, start, b, start)

    begin, middle = first(layers), end_of(layers, "layer3")
    simclr, sl = evidence.networks("simclr"), evidence.networks("sl")
    parts = (
        evidence.part(
            "CKA between two views rises from the first block to the pool in SimCLR",
            "above",
            EFFECT,
            [est(n, lambda c, n=n: rise(c, n, begin, "pool")) for n in simclr],
        ),
        evidence.part(
            "CKA between two views rises over the last stage alone in SimCLR",
            "above",
            EFFECT,
            [est(n, lambda c, n=n: rise(c, n, middle, "pool")) for n in simclr],
        ),
        evidence.part(
            "CKA between two views does not rise from the first block to the pool in SL",
            "below",
            EFFECT,
            [est(n, lambda c, n=n: rise(c, n, begin, "pool")) for n in sl],
        ),
    )
    return Claim("C6", "the last layers fit augmentation invariance in SimCLR, not in SL", parts, evidence.basis)


def c7(evidence: Evidence, probe: pd.DataFrame, contrastive: pd.DataFrame) -> Claim:
    """SimCLR implicitly fits the supervised objective in its middle, the reverse is not true.

    `probe`: network, layer, accuracy, low, high; `contrastive`: network, layer, loss, low, high of a fitted projection.
    """
    layers, est = evidence.layers, evidence.estimate
    begin, middle = first(layers), end_of(layers, "layer3")
    simclr, sl = evidence.networks("simclr"), evidence.networks("sl")

    def labels(c: Cell, network: str) -> np.ndarray:
        return c(network, middle, "labels", "labels") - c(network, begin, "labels", "labels")

    def views(c: Cell, network: str) -> np.ndarray:
        a, b = (f"{network}@{view}" for view in VIEWS)
        return c(a, middle, b, middle) - c(a, begin, b, begin)

    parts = (
        evidence.part(
            "CKA with the classes grows from the first block to the end of stage 3 in SimCLR",
            "above",
            EFFECT,
            [est(n, lambda c, n=n: labels(c, n)) for n in simclr],
        ),
        evidence.part(
            "linear-probe accuracy grows from the first block to the end of stage 3 in SimCLR",
            "above",
            EFFECT,
            [rise_of(probe, n, begin, middle) for n in simclr],
        ),
        evidence.part(
            "CKA between two views does not grow from the first block to the end of stage 3 in SL",
            "below",
            EFFECT,
            [est(n, lambda c, n=n: views(c, n)) for n in sl],
        ),
        evidence.part(
            "the loss of a fitted contrastive projection does not fall from the first block to the end of stage 3 in SL",
            "below",
            NATS,
            [rise_of(contrastive, n, middle, begin, "loss") for n in sl],
        ),
    )
    return Claim(
        "C7",
        "SimCLR implicitly fits the supervised objective in its middle layers, not the reverse",
        parts,
        evidence.basis,
    )


def judge(evidence: Evidence, probe: pd.DataFrame, contrastive: pd.DataFrame) -> list[Claim]:
    """All claims, judged; the tables are as for `c5` and `c7`."""
    judged = [claim(evidence) for claim in (c1, c2, c3, c4)]
    return [*judged, c5(evidence, probe), c6(evidence), c7(evidence, probe, contrastive)]


def rise_of(table: pd.DataFrame, network: str, start: str, stop: str, column: str = "accuracy") -> Estimate:
    """table[stop] - table[start] of one network; the two intervals are added in quadrature, as if independent.

    Both are measured on the same images and correlate positively, so this interval is wide rather than narrow.
    """
    rows = table[table["network"] == network].set_index("layer")
    a, b = rows.loc[start], rows.loc[stop]
    value = b[column] - a[column]
    below = math.hypot(b[column] - b["low"], a["high"] - a[column])
    above = math.hypot(b["high"] - b[column], a[column] - a["low"])
    return Estimate(network, float(value), float(value - below), float(value + above))
