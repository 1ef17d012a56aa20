"""The seven claims, posed so that a run can support or contradict them: criteria, intervals, verdicts, placebos.

`docs/preregistration.md` has the argument, the notation and the thresholds; this file computes them. A statistic is an array of
replicates (1 + folds + seeds,): of everything, without each fold of the test images, without each seed of all
objectives. Statistics are plain numpy on such arrays; `interval` turns one into an estimate with its 95 % interval at the end.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from repsim.comparison import Array, Comparison
from repsim.models import layer_kind, stage

VIEWS = ("view-a", "view-b")  # the two views of each test image that view readings compare
SL, SC, V, U = "sl", "simclr", "sl_simclr_views", "untrained"
TITLES: Mapping[str, str] = {SL: "SL", SC: "SimCLR", V: "SL on SimCLR's views", U: "untrained"}
MIDDLE = ("layer2", "layer3")
LEARNT = 0.10  # of probe accuracy at the pool: how far SL and SimCLR have to lie above pixels and untrained networks
MIN_SEEDS = 4  # with fewer no verdict is given
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
NOT_JUDGED, UNSPECIFIC = "not judged", "unspecific"
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED, NOT_JUDGED, UNSPECIFIC)


def of_kind(layers: Sequence[str], kind: str, stages: Sequence[str] | None = None) -> list[str]:
    """The layers of a kind ("residual", "post-residual"), of some stages if given."""
    return [l for l in layers if layer_kind(l) == kind and (stages is None or stage(l) in stages)]


def end_of(layers: Sequence[str], name: str) -> str:
    """The last post-residual layer of a stage, such as "layer3.1"."""
    return of_kind(layers, "post-residual", [name])[-1]


# Replicates


def over_seeds(replicates: Mapping[tuple[int, ...], Array], seeds: int) -> Array:
    """Means over networks or pairs of networks, as replicates (1 + folds + seeds,).

    Args:
        replicates: the seeds of a network (i,) or of a pair (i, j) -> (1 + folds,). Leaving out a seed leaves out all of its
            entries; NaN where none is left.
    """
    mean = np.mean([*replicates.values()], axis=0)
    others = [[row[0] for key, row in replicates.items() if seed not in key] for seed in range(seeds)]
    return np.concatenate([mean, [np.mean(values) if values else np.nan for values in others]])


def without_each_fold(by_fold: Array, images: Array) -> Array:
    """Means by fold (folds,) of so many images each -> replicates (1 + folds,): the mean, then without each fold."""
    total, images = float(np.sum(by_fold * images)), np.asarray(images)
    return np.concatenate([[total / images.sum()], (total - by_fold * images) / (images.sum() - images)])


def interval(values: Array, seeds: int) -> tuple[float, float, float]:
    """(estimate, low, high) of replicates (1 + folds + seeds,): 95 %, over seeds and images.

    The variance is the delete-one-seed jackknife's plus the delete-one-fold jackknife's, the quantile Student's with seeds - 1
    degrees of freedom. NaN limits with fewer than 3 seeds; all NaN if a replicate is undefined.
    """
    estimate = float(values[0])
    if seeds < 3 or not np.isfinite(values).all():
        return (estimate if seeds < 3 else math.nan), math.nan, math.nan
    variance = sum((len(part) - 1) * part.var() for part in (values[1:-seeds], values[-seeds:]) if len(part))
    half = float(stdtrit(seeds - 1, 0.975)) * math.sqrt(variance)
    return estimate, estimate - half, estimate + half


def told(values: Array, seeds: int, digits: int = 2) -> str:
    """Replicates as text: the estimate and, if there is one, its interval, "0.08 [0.05, 0.11]"."""
    estimate, low, high = interval(values, seeds)
    if math.isnan(estimate):
        return "an undefined amount"
    text = f"{estimate:z.{digits}f}"
    return text if math.isnan(low) else f"{text} [{low:z.{digits}f}, {high:z.{digits}f}]"


def partial_correlation(x: Array, y: Array, *given: Array) -> Array:
    """Correlation along the last axis of x and y after the regression on all `given`; shapes (..., n) -> (...)."""
    z = np.stack([x, y, *given], axis=-2)
    z = z - z.mean(axis=-1, keepdims=True)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    inverse = np.linalg.inv(z @ np.swapaxes(z, -1, -2))
    return -inverse[..., 0, 1] / np.sqrt(inverse[..., 0, 0] * inverse[..., 1, 1])


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the claims rest on; statistics are methods that give replicates (1 + folds + seeds,), NaN where networks are missing.

    Attributes:
        comparison: CKA of all networks, each seed of each objective being a stream "OBJECTIVE-SEED".
        readings: network -> measure -> means by fold of the test images (folds, layers): "probe" (cross-entropy, nats),
            "views" (fitted NT-Xent, nats), "views of a class" (the same in batches of one class).
        estimator: which of the comparison's estimators is asked.
        places: objective -> the one that stands in its place, for placebos and controls.
        ends: stage -> the layer that is taken for its end, if not the last block.
    """

    comparison: Comparison
    readings: Mapping[str, Mapping[str, pd.DataFrame]]
    seeds: int
    estimator: str = "unbiased"
    places: Mapping[str, str] = field(default_factory=dict)
    ends: Mapping[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """The layers that networks of all objectives have, in order: heads are left out."""
        return [l for l in self.comparison.layers(self.comparison.streams[0]) if layer_kind(l) != "head"]

    def blocks(self, *stages: str) -> list[str]:
        """The post-residual layers of these stages, or of all."""
        return of_kind(self.layers, "post-residual", stages or None)

    def end(self, name: str) -> str:
        """The last block of a stage, or what is taken for it."""
        return self.ends.get(name, end_of(self.layers, name))

    def curves(
        self, statistic: Callable[..., Array], keys: Sequence[str | tuple[str, ...]], layers: Sequence[str]
    ) -> pd.DataFrame:
        """A statistic of (*key, layer) at every layer with its interval: pair (the key, joined by "-"), layer, value, low, high."""
        rows = []
        for key, layer in itertools.product(keys, layers):
            names = (key,) if isinstance(key, str) else key
            rows.append(("-".join(names), layer, *interval(statistic(*names, layer), self.seeds)))
        return pd.DataFrame(rows, columns=["pair", "layer", "value", "low", "high"])

    def _over_pairs(self, a: str, b: str, statistic: Callable[[int, int], Array]) -> Array:
        """The mean over pairs of networks, but never of one seed, whose initial weights are shared."""
        pairs = [(i, j) for i, j in itertools.product(range(self.seeds), repeat=2) if (i < j if a == b else i != j)]
        if not pairs or {f"{a}-0", f"{b}-0"} - set(self.comparison.streams):
            return np.full(1 + len(self.comparison.weights) + self.seeds, np.nan)
        return over_seeds({pair: statistic(*pair) for pair in pairs}, self.seeds)

    def cka(self, a: str, b: str, layer: str) -> Array:
        """c_AB: mean CKA of a layer of two objectives over all pairs of different seeds."""
        a, b = (self.places.get(o, o) for o in (a, b))

        def cka(i: int, j: int) -> Array:
            return self.comparison.replicates(f"{a}-{i}", layer, f"{b}-{j}", layer, self.estimator)

        return self._over_pairs(a, b, cka)

    def rho(self, a: str, b: str, layer: str) -> Array:
        """c_AB / sqrt(c_AA c_BB): the cosine of what two objectives determine; undefined where seeds share nothing."""
        first, second = (np.where(c > 0, c, np.nan) for c in (self.cka(a, a, layer), self.cka(b, b, layer)))
        return self.cka(a, b, layer) / np.sqrt(first * second)

    def pi(self, a: str, b: str, layer: str) -> Array:
        """The same after what untrained networks share has been projected out: a partial cosine."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ra, rb = self.rho(a, U, layer), self.rho(b, U, layer)
            return (self.rho(a, b, layer) - ra * rb) / np.sqrt((1 - ra**2) * (1 - rb**2))

    def angle(self, a: str, b: str, layer: str) -> Array:
        """The angle of which pi is the cosine, in degrees, 0 to 90."""
        return np.degrees(np.arccos(np.clip(self.pi(a, b, layer), 0, 1)))

    def grid_correlation(self, a: str, b: str) -> Array:
        """Mean over pairs of seeds of the partial correlation of two networks' own CKA grids given both untrained ones."""
        a, b = (self.places.get(o, o) for o in (a, b))
        cells = [*itertools.combinations(self.layers, 2)]

        @functools.cache
        def grid(name: str) -> Array:  # (1 + folds, cells)
            return np.stack([self.comparison.replicates(name, k, name, l, self.estimator) for k, l in cells], axis=1)

        def correlation(i: int, j: int) -> Array:
            return partial_correlation(*(grid(name) for name in (f"{a}-{i}", f"{b}-{j}", f"{U}-{i}", f"{U}-{j}")))

        return self._over_pairs(a, b, correlation)

    def reading(self, measure: str, objective: str, layer: str) -> Array:
        """The mean of a reading over seeds, in nats."""
        networks = [f"{self.places.get(objective, objective)}-{seed}" for seed in range(self.seeds)]
        tables = [self.readings.get(name, {}).get(measure) for name in networks]
        if any(table is None for table in tables):
            return np.full(1 + len(next(iter(self.readings[f"{SL}-0"].values()))) + self.seeds, np.nan)
        means = [without_each_fold(table[layer].to_numpy(), table.attrs["images"]) for table in tables]
        return over_seeds({(seed,): mean for seed, mean in enumerate(means)}, self.seeds)


# Parts and claims


class Part:
    """A statistic that is claimed to lie above (or below) a threshold: estimate, low, high, verdict.

    Args:
        values: replicates; the interval is undefined, with the `reason`, where one of them is.
        scaled: the same for figures, in units in which the threshold is 1 and no effect is 0; values / threshold if not given.
            `scaled` becomes its (estimate, low, high), `without_seed` its estimates without each seed in turn.
        denominators: title -> replicates that `values` were divided by: undefined too where the interval of one contains 0.
    """

    def __init__(
        self,
        statement: str,
        values: Array,
        seeds: int,
        *,
        above: float | None = None,
        below: float = 0.0,
        unit: str = "",
        scaled: Array | None = None,
        denominators: Mapping[str, Array] | None = None,
    ):
        self.statement, self.unit, self.side = statement, unit, "below" if above is None else "above"
        self.threshold = float(below if above is None else above)
        self.reason = "" if np.isfinite(values).all() else "undefined when some seed or fold is left out"
        for name, denominator in (denominators or {}).items():
            _, low, high = interval(denominator, seeds)
            if not (low > 0 or high < 0):
                self.reason = f"the interval of {name} contains 0"
        self.estimate, low, high = interval(values, seeds)
        self.low, self.high = (math.nan, math.nan) if self.reason else (low, high)
        scaled = values / self.threshold if scaled is None else scaled
        self.scaled, self.without_seed = interval(scaled, seeds), tuple(scaled[-seeds:].tolist())

    def beyond(self, value: float) -> float:
        """By how much a value lies on the claimed side of the threshold."""
        return value - self.threshold if self.side == "above" else self.threshold - value

    @property
    def verdict(self) -> str:
        ends = self.beyond(self.low), self.beyond(self.high)  # NaN compares false
        return SUPPORTED if min(ends) > 0 else CONTRADICTED if max(ends) < 0 else UNDECIDED


@dataclass(frozen=True)
class Claim:
    """A claim with its parts, its effect in its own quantities, and its placebos: the same with others in its networks' places.

    `gate` is why it is not judged, empty if it is.
    """

    id: str
    statement: str
    parts: Sequence[Part]
    sentence: str
    placebos: Mapping[str, Claim] = field(default_factory=dict)
    gate: str = ""

    @property
    def met(self) -> bool:
        """Whether every part is met by its estimate alone: what makes a placebo pass."""
        return all(p.beyond(p.estimate) > 0 for p in self.parts)

    @property
    def verdict(self) -> str:
        """Contradicted if a part is, supported if all are and no placebo passes, undecided if some are undecided."""
        verdicts = {p.verdict for p in self.parts}
        if self.gate:
            return NOT_JUDGED
        if verdicts == {SUPPORTED}:
            return UNSPECIFIC if any(p.met for p in self.placebos.values()) else SUPPORTED
        return CONTRADICTED if CONTRADICTED in verdicts else UNDECIDED

    @property
    def reason(self) -> str:
        """Why the claim is not judged, unspecific or undecided; empty otherwise."""
        if self.verdict == UNSPECIFIC:
            return f"{' and '.join(name for name, p in self.placebos.items() if p.met)} would meet it too"
        return self.gate or "; ".join(p.reason for p in self.parts if p.reason and self.verdict == UNDECIDED)

    @property
    def weakest(self) -> Part:
        """The part that lies furthest short of its threshold, in units of it; an undefined one before all others."""
        return min(self.parts, key=lambda p: -math.inf if math.isnan(p.scaled[0]) else p.scaled[0])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: NaN becomes None. A placebo has its own verdict, and whether its estimates alone would do (met)."""

        def plain(x: Any) -> Any:
            if isinstance(x, tuple):
                return [*map(plain, x)]
            return None if isinstance(x, float) and not math.isfinite(x) else x

        def row(claim: Claim, *names: str) -> dict[str, Any]:
            parts = [{k: plain(x) for k, x in vars(p).items()} | {"verdict": p.verdict} for p in claim.parts]
            return {name: getattr(claim, name) for name in names} | {"parts": parts}

        placebos = {name: row(placebo, "verdict", "met") for name, placebo in self.placebos.items()}
        return row(self, "id", "statement", "verdict", "reason", "sentence") | {"placebos": placebos}


# Criteria: the parts of a claim, and its effect as a sentence


def c1(e: Evidence) -> tuple[list[Part], str]:
    """SimCLR uses the residual network as supervised learning does."""
    across, sl, sc = (e.grid_correlation(*pair) for pair in ((SL, SC), (SL, SL), (SC, SC)))
    ratio = across / np.sqrt(np.where((sl > 0) & (sc > 0), sl * sc, np.nan))
    sentence = (
        f"Beyond what untrained networks show, the grid of SimCLR's layers agrees with SL's to {told(ratio, e.seeds)} of "
        "what two seeds of one objective do."
    )
    return [Part("agreement of the two layer grids beyond untrained ones", ratio, e.seeds, above=0.5)], sentence


def c2(e: Evidence) -> tuple[list[Part], str]:
    """The intermediate representations are similar."""
    layers = e.blocks(*MIDDLE)
    shared, same_labels = (np.mean([e.pi(SL, other, l) for l in layers], axis=0) for other in (SC, V))
    sentence = (
        f"Beyond untrained networks, middle layers of SL and SimCLR share {told(shared, e.seeds)} of their similarity structure; "
        f"SL and SL on SimCLR's views share {told(same_labels, e.seeds)}."
    )
    return [Part("partial cosine of middle post-residual layers", shared, e.seeds, above=0.5)], sentence


def c3(e: Evidence) -> tuple[list[Part], str]:
    """They are reached by dissimilar means: residual branches."""
    blocks = [l for l in e.blocks(*MIDDLE) if not l.endswith(".0")]  # which opens a stage by a projection shortcut
    outputs, branches = (np.mean([e.rho(SL, SC, l + kind) for l in blocks], axis=0) for kind in ("", ".residual"))
    gap = outputs - branches
    sentence = (
        f"Relative to seeds, SL and SimCLR agree to {told(outputs, e.seeds)} after middle blocks and to "
        f"{told(branches, e.seeds)} in what those blocks add: a difference of {told(gap, e.seeds)}."
    )
    return [Part("blocks' outputs agree more than their residual branches", gap, e.seeds, above=0.05)], sentence


def c4(e: Evidence) -> tuple[list[Part], str]:
    """The representations diverge rapidly in the last layers."""
    b, m, end = (e.end(stage) for stage in ("layer1", "layer3", "layer4"))
    order = [*e.blocks(), "head"]
    last, before = order.index(end) - order.index(m), order.index(m) - order.index(b)
    across, views = (e.pi(SL, other, m) - e.pi(SL, other, end) for other in (SC, V))
    statement = "the last stage loses more similarity across objectives than across views"
    parts, bends = [Part(statement, across - views, e.seeds, above=0.05)], {}
    for first in (SL, V):
        start, middle, stop = (e.angle(first, SC, l) for l in (b, m, end))
        bend = (stop - middle) / last - (middle - start) / before
        statement, bends[first] = f"{TITLES[first]} and SimCLR part faster in the last stage than in the middle", bend
        parts.append(Part(statement, bend, e.seeds, above=0.0, unit="degrees a block", scaled=1 + bend))
    sentence = (
        f"Over the last stage {told(across, e.seeds)} of the shared similarity is lost across objectives and "
        f"{told(views, e.seeds)} across views; the angle opens by {told(bends[SL], e.seeds, 1)} degrees a block more than before."
    )
    return parts, sentence


def _last_stage(e: Evidence, measure: str, objective: str) -> Array:
    """By how many nats a reading improves over the last stage, beyond what it does in untrained networks."""
    m, end = e.end("layer3"), e.end("layer4")
    trained, untrained = (e.reading(measure, o, m) - e.reading(measure, o, end) for o in (objective, U))
    return trained - untrained


def _less_than_half(statement: str, other: Array, owner: Array, seeds: int) -> Part:
    """That `other` is less than half of `owner`, tested as a contrast; drawn as a share."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(owner > 0, other / owner, np.nan)
    return Part(statement, other - 0.5 * owner, seeds, below=0.0, unit="nats", scaled=2 * (1 - share))


def c5(e: Evidence) -> tuple[list[Part], str]:
    """SL's last layers fit the classes, SimCLR's do not."""
    sl, sc = (_last_stage(e, "probe", o) for o in (SL, SC))
    parts = [
        Part("SL's last stage improves the class reading", sl, e.seeds, above=0.1, unit="nats"),
        _less_than_half("SimCLR's last stage improves it by less than half as much", sc, sl, e.seeds),
    ]
    sentence = (
        f"Beyond untrained networks, SL's last stage lowers the probe's cross-entropy by {told(sl, e.seeds)} nats, "
        f"SimCLR's by {told(sc, e.seeds)}."
    )
    return parts, sentence


def c6(e: Evidence) -> tuple[list[Part], str]:
    """SimCLR's last layers fit invariance to views, SL's do not."""
    sc, sl, v = (_last_stage(e, "views", o) for o in (SC, SL, V))
    parts = [
        Part("SimCLR's last stage improves the view reading", sc, e.seeds, above=0.05, unit="nats"),
        _less_than_half("SL's last stage improves it by less than half as much", sl, sc, e.seeds),
        _less_than_half("so does the last stage of SL on SimCLR's views", v, sc, e.seeds),
    ]
    sentence = (
        f"Beyond untrained networks, the view loss falls by {told(sc, e.seeds)} nats in SimCLR's last stage, by "
        f"{told(sl, e.seeds)} in SL's and by {told(v, e.seeds)} in that of SL on the same views."
    )
    return parts, sentence


def implicit_fit(e: Evidence, measure: str, objective: str, owner: str, layer: str) -> tuple[Array, Array]:
    """What share of the owner's gain over untrained networks another objective reaches at a layer, and the owner's gain."""
    other, gain = (e.reading(measure, U, layer) - e.reading(measure, o, layer) for o in (objective, owner))
    with np.errstate(divide="ignore", invalid="ignore"):
        return other / gain, gain


def c7(e: Evidence, views: str = "views of a class") -> tuple[list[Part], str]:
    """SimCLR fits SL's objective in its middle layers, not the reverse."""
    m = e.end("layer3")
    classes, by_labels = implicit_fit(e, "probe", SC, SL, m)
    shares = {other: implicit_fit(e, views, other, SC, m)[0] for other in (SL, V)}
    gains = {"SL's gain in the class reading": by_labels}
    statement = "SimCLR reaches half of SL's gain in the class reading"
    parts = [Part(statement, classes, e.seeds, above=0.5, denominators=gains)]
    gains = gains | {"SimCLR's gain in the view reading within classes": implicit_fit(e, views, SL, SC, m)[1]}
    for other, share in shares.items():
        statement = f"{TITLES[other]} reaches less of SimCLR's gain in the view reading within classes"
        parts.append(Part(statement, classes - share, e.seeds, above=0.1, denominators=gains))
    sentence = (
        f"At the end of stage 3 SimCLR reaches {told(classes, e.seeds)} of SL's gain in the class reading; of SimCLR's gain "
        f"in telling views apart within a class SL reaches {told(shares[SL], e.seeds)}, SL on the same views "
        f"{told(shares[V], e.seeds)}."
    )
    return parts, sentence


CLAIMS: Mapping[str, tuple[str, Callable[[Evidence], tuple[list[Part], str]]]] = {
    "C1": ("SimCLR uses the residual network as supervised learning does", c1),
    "C2": ("the intermediate representations are similar", c2),
    "C3": ("they are reached by dissimilar means", c3),
    "C4": ("the representations diverge rapidly in the last layers", c4),
    "C5": ("SL's last layers fit the classes, SimCLR's do not", c5),
    "C6": ("SimCLR's last layers fit invariance to views, SL's do not", c6),
    "C7": ("SimCLR implicitly fits the supervised objective in its middle layers, not the reverse", c7),
}
PLACEBOS: Mapping[str, tuple[tuple[str, str], ...]] = {  # (what stands in whose place, who stands there)
    "C3": ((SL, U), (SC, U), (SC, V)),
    "C5": ((SL, U), (SC, V)),
    "C6": ((SC, U),),
    "C7": ((SC, U),),
}


def gate(accuracy: Mapping[str, float], seeds: int) -> str:
    """Why claims are not judged; empty if they are.

    Args:
        accuracy: probe accuracy at the pool, averaged over seeds, of "sl", "simclr", "untrained" and of the "pixels".
    """
    if seeds < MIN_SEEDS:
        return f"{seeds} seeds, and an interval over seeds needs {MIN_SEEDS}: set seeds to {MIN_SEEDS} or more"
    bar = max(accuracy["pixels"], accuracy[U]) + LEARNT
    weak = [f"{TITLES[o]} ({accuracy[o]:.2f})" for o in (SL, SC) if not accuracy[o] >= bar]
    if not weak:
        return ""
    return (
        f"{' and '.join(weak)} read the class less than {LEARNT:.2f} above pixels ({accuracy['pixels']:.2f}) and untrained "
        f"networks ({accuracy[U]:.2f}): train longer (epochs_sl, epochs_simclr) or on more images (train_images)"
    )


def judge(evidence: Evidence, reason: str = "", only: Sequence[str] = tuple(CLAIMS)) -> list[Claim]:
    """The claims, judged, with their placebos; `reason` is that of `gate`."""
    claims = []
    for name in only:
        statement, criterion = CLAIMS[name]
        placebos = {}
        for objective, other in PLACEBOS.get(name, ()):
            moved = criterion(dataclasses.replace(evidence, places={objective: other}))
            placebos[f"{TITLES[other]} in {TITLES[objective]}'s place"] = Claim(name, statement, *moved)
        claims.append(Claim(name, statement, *criterion(evidence), placebos, reason))
    return claims


# Tables of claims


def parts(claims: Sequence[Claim]) -> pd.DataFrame:
    """Every part of the claims, for a figure with a panel for each: panel, label, value, low, high, threshold, side."""
    rows = []
    for claim, p in ((c, p) for c in claims for p in c.parts):
        panel = f"{claim.id} {p.statement}" + f" ({p.unit})" * bool(p.unit)
        rows.append((panel, p.verdict, p.estimate, p.low, p.high, p.threshold, p.side))
    return pd.DataFrame(rows, columns=["panel", "label", "value", "low", "high", "threshold", "side"])


def one_look(claims: Sequence[Claim], ticks: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per claim for `charts.forest`: its weakest part in units of the threshold, and the range of its placebos.

    ticks: what attacks make of the claims (row, value); a note then says how many seeds a claim rests on and how many agree.
    """
    rows = []
    for claim in claims:
        weakest, note = claim.weakest, ""
        if ticks is not None:
            values = ticks.loc[ticks["row"] == claim.id, "value"]
            same = ((values > 1) == (weakest.scaled[0] > 1)).sum()
            agree = f"; {same} of {len(values)} readings on the same side" if len(values) else ""
            note = f"S = {len(weakest.without_seed)}{agree}"
        placebos = [placebo.weakest.scaled[0] for placebo in claim.placebos.values()]
        bounds = (min(placebos), max(placebos)) if placebos and np.isfinite(placebos).all() else (math.nan, math.nan)
        rows.append((claim.id, claim.statement, *weakest.scaled, *bounds, claim.verdict, note))
    columns = ["row", "label", "value", "low", "high", "placebo_low", "placebo_high", "verdict", "note"]
    return pd.DataFrame(rows, columns=columns)
