"""The seven claims, posed so that a run can support or contradict them: criteria, intervals, verdicts, placebos.

`docs/preregistration.md` has the argument, the notation and the thresholds. A statistic is an array of replicates
(1 + folds + seeds,): of everything, without each fold of the test images, without each seed of all objectives.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
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
VERDICTS = ("supported", "contradicted", "undecided", "not judged", "unspecific")
SUPPORTED, CONTRADICTED, UNDECIDED, NOT_JUDGED, UNSPECIFIC = VERDICTS


def of_kind(layers: Sequence[str], kind: str, stages: Sequence[str] | None = None) -> list[str]:
    """The layers of a kind ("residual", "post-residual"), of some stages if given."""
    return [l for l in layers if layer_kind(l) == kind and (stages is None or stage(l) in stages)]


def end_of(layers: Sequence[str], name: str) -> str:
    """The last post-residual layer of a stage, such as "layer3.1"."""
    return of_kind(layers, "post-residual", [name])[-1]


def over_seeds(replicates: Mapping[tuple[int, ...], Array], seeds: int) -> Array:
    """Means over networks, of seeds (i,), or pairs of networks (i, j) -> (1 + folds,): replicates, NaN where no entry is left."""
    others = [[row[0] for key, row in replicates.items() if seed not in key] for seed in range(seeds)]
    without_seed = [np.mean(values) if values else np.nan for values in others]
    return np.concatenate([np.mean([*replicates.values()], axis=0), without_seed])


def without_each_fold(by_fold: Array, images: Array) -> Array:
    """Means by fold (folds,) of so many images each -> replicates (1 + folds,): the mean, then without each fold."""
    total, images = float(np.sum(by_fold * images)), np.asarray(images)
    return np.concatenate([[total / images.sum()], (total - by_fold * images) / (images.sum() - images)])


def interval(values: Array, seeds: int) -> tuple[float, float, float]:
    """(estimate, low, high) of replicates: 95 %, from a jackknife over seeds and over images and Student's t of seeds - 1 degrees
    of freedom. NaN limits with fewer than 3 seeds; all NaN if a replicate is undefined."""
    estimate = float(values[0])
    if seeds < 3 or not np.isfinite(values).all():
        return (estimate if seeds < 3 else math.nan), math.nan, math.nan
    variance = sum((len(part) - 1) * part.var() for part in (values[1:-seeds], values[-seeds:]) if len(part))
    half = float(stdtrit(seeds - 1, 0.975)) * math.sqrt(variance)
    return estimate, estimate - half, estimate + half


def told(values: Array, seeds: int, digits: int = 2) -> str:
    """Replicates as text: the estimate and, if there is one, its interval, "0.08 [0.05, 0.11]"."""
    estimate, low, high = (f"{x:z.{digits}f}" for x in interval(values, seeds))
    return "an undefined amount" if estimate == "nan" else estimate if low == "nan" else f"{estimate} [{low}, {high}]"


def partial_correlation(x: Array, y: Array, *given: Array) -> Array:
    """Correlation along the last axis of x and y after the regression on all `given`; shapes (..., n) -> (...)."""
    z = np.stack([x, y, *given], axis=-2)
    z = z - z.mean(axis=-1, keepdims=True)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    inverse = np.linalg.inv(z @ np.swapaxes(z, -1, -2))
    return -inverse[..., 0, 1] / np.sqrt(inverse[..., 0, 0] * inverse[..., 1, 1])


def relative(statistic: Callable[..., Array], a: str, b: str, *layer: str) -> Array:
    """s_AB / sqrt(s_AA s_BB): relative to what two seeds of each share; undefined where they share nothing."""
    ab, aa, bb = (statistic(*pair, *layer) for pair in ((a, b), (a, a), (b, b)))
    return ab / np.sqrt(np.where((aa > 0) & (bb > 0), aa * bb, np.nan))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the claims rest on; statistics are methods that give replicates (1 + folds + seeds,), NaN where networks are missing."""

    comparison: Comparison  # its streams are networks, "OBJECTIVE-SEED"
    readings: Mapping[str, Mapping[str, pd.DataFrame]]  # as of `Study.readings`: network -> measure -> (folds, layers)
    seeds: int
    estimator: str = "unbiased"  # which of the comparison's is asked
    places: Mapping[str, str] = field(default_factory=dict)  # objective -> the one in its place: placebos and controls
    ends: Mapping[str, str] = field(default_factory=dict)  # stage -> what is taken for its end, if not the last block

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

    def curves(self, statistic: Callable[..., Array], keys: Sequence, layers: Sequence[str]) -> pd.DataFrame:
        """A statistic of (*key, layer) at every layer with its interval: pair (the key, joined by "-"), layer, value, low, high."""
        cells = itertools.product(((key,) if isinstance(key, str) else key for key in keys), layers)
        rows = [("-".join(key), layer, *interval(statistic(*key, layer), self.seeds)) for key, layer in cells]
        return pd.DataFrame(rows, columns=["pair", "layer", "value", "low", "high"])

    def _over_pairs(self, a: str, b: str, statistic: Callable[..., Array]) -> Array:
        """The mean of statistic(network, network, seed, seed) over pairs of networks of two seeds: one shares initial weights."""
        a, b = (self.places.get(o, o) for o in (a, b))
        pairs = [*(itertools.combinations if a == b else itertools.permutations)(range(self.seeds), 2)]
        if not pairs or not {f"{a}-0", f"{b}-0"} <= {*self.comparison.streams}:
            return np.full(1 + len(self.comparison.weights) + self.seeds, np.nan)
        return over_seeds({(i, j): statistic(f"{a}-{i}", f"{b}-{j}", i, j) for i, j in pairs}, self.seeds)

    def cka(self, a: str, b: str, layer: str) -> Array:
        """c_AB: mean CKA of a layer of two objectives over all pairs of different seeds."""
        return self._over_pairs(a, b, lambda x, y, *_: self.comparison.replicates(x, layer, y, layer, self.estimator))

    def rho(self, a: str, b: str, layer: str) -> Array:
        """c_AB / sqrt(c_AA c_BB): the cosine of what two objectives determine; undefined where seeds share nothing."""
        return relative(self.cka, a, b, layer)

    def pi(self, a: str, b: str, layer: str) -> Array:
        """The same after what untrained networks share has been projected out: a partial cosine."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ra, rb = self.rho(a, U, layer), self.rho(b, U, layer)
            return (self.rho(a, b, layer) - ra * rb) / np.sqrt((1 - ra**2) * (1 - rb**2))

    def angle(self, a: str, b: str, layer: str) -> Array:
        """The angle of which pi is the cosine, in degrees, 0 to 90."""
        return np.degrees(np.arccos(np.clip(self.pi(a, b, layer), 0, 1)))

    def grid_correlation(self, a: str, b: str) -> Array:
        """r_AB: mean partial correlation of two networks' own CKA grids given those of the untrained ones of their seeds."""
        cells = [*itertools.combinations(self.layers, 2)]

        @functools.cache
        def own(x: str) -> Array:  # (1 + folds, cells)
            return np.stack([self.comparison.replicates(x, k, x, l, self.estimator) for k, l in cells], axis=1)

        return self._over_pairs(a, b, lambda x, y, i, j: partial_correlation(*map(own, (x, y, f"{U}-{i}", f"{U}-{j}"))))

    def reading(self, measure: str, objective: str, layer: str) -> Array:
        """The mean of a reading over seeds, in nats."""
        name = self.places.get(objective, objective)
        if f"{name}-0" not in self.readings:
            return np.full(1 + len(next(iter(self.readings.values()))[measure]) + self.seeds, np.nan)
        tables = [self.readings[f"{name}-{seed}"][measure] for seed in range(self.seeds)]
        means = [without_each_fold(table[layer].to_numpy(), table.attrs["images"]) for table in tables]
        return over_seeds({(seed,): mean for seed, mean in enumerate(means)}, self.seeds)

    def told(self, values: Array, digits: int = 2) -> str:
        return told(values, self.seeds, digits)


class Part:
    """A statistic that is claimed to lie above (or below) a threshold: estimate, low, high, verdict."""

    def __init__(
        self,
        statement: str,
        values: Array,  # replicates; the interval is undefined, with the `reason`, where one of them is
        seeds: int,
        *,
        above: float | None = None,
        below: float = 0.0,
        unit: str = "",
        scaled: Array | None = None,  # for figures: the threshold is 1, no effect 0; values / threshold if not given
        denominators: Mapping[str, Array] | None = None,  # of values: undefined too where one's interval has 0
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
        self.scaled, self.without_seed = interval(scaled, seeds), tuple(scaled[-seeds:].tolist())  # each seed in turn
        ends = self.beyond(self.low), self.beyond(self.high)  # NaN compares false
        self.verdict = SUPPORTED if min(ends) > 0 else CONTRADICTED if max(ends) < 0 else UNDECIDED

    def beyond(self, value: float) -> float:
        """By how much a value lies on the claimed side of the threshold."""
        return value - self.threshold if self.side == "above" else self.threshold - value


@dataclass(frozen=True)
class Claim:
    """A claim with its parts, its effect in its own quantities, and its placebos: the same with others in its networks' places."""

    id: str
    statement: str
    parts: Sequence[Part]
    sentence: str
    placebos: Mapping[str, Claim] = field(default_factory=dict)
    gate: str = ""  # why it is not judged; empty if it is

    @property
    def met(self) -> bool:
        """Whether every part is met by its estimate alone: what makes a placebo pass."""
        return all(p.beyond(p.estimate) > 0 for p in self.parts)

    @property
    def verdict(self) -> str:
        """Contradicted if a part is, supported if all are and no placebo passes, undecided if some are undecided."""
        verdicts = {p.verdict for p in self.parts}
        if self.gate or verdicts != {SUPPORTED}:
            return NOT_JUDGED if self.gate else CONTRADICTED if CONTRADICTED in verdicts else UNDECIDED
        return UNSPECIFIC if any(p.met for p in self.placebos.values()) else SUPPORTED

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

        def row(claim: Claim, *names: str) -> dict[str, Any]:
            return {name: getattr(claim, name) for name in names} | {"parts": [*map(vars, claim.parts)]}

        placebos = {name: row(p, "verdict", "met") for name, p in self.placebos.items()}
        whole = row(self, "id", "statement", "verdict", "reason", "sentence") | {"placebos": placebos}
        return json.loads(json.dumps(whole), parse_constant=lambda nan: None)


# Criteria: each has the statement of a claim, and gives its parts and its effect as a sentence


def c1(e: Evidence) -> tuple[list[Part], str]:
    """SimCLR uses the residual network as supervised learning does"""
    ratio = relative(e.grid_correlation, SL, SC)
    return [Part("agreement of the two layer grids beyond untrained ones", ratio, e.seeds, above=0.5)], (
        f"Beyond what untrained networks show, the grid of SimCLR's layers agrees with SL's to {e.told(ratio)} of "
        "what two seeds of one objective do."
    )


def c2(e: Evidence) -> tuple[list[Part], str]:
    """the intermediate representations are similar"""
    shared, same_labels = (np.mean([e.pi(SL, o, l) for l in e.blocks(*MIDDLE)], axis=0) for o in (SC, V))
    return [Part("partial cosine of middle post-residual layers", shared, e.seeds, above=0.5)], (
        f"Beyond untrained networks, middle layers of SL and SimCLR share {e.told(shared)} of their similarity structure; "
        f"SL and SL on SimCLR's views share {e.told(same_labels)}."
    )


def c3(e: Evidence) -> tuple[list[Part], str]:
    """they are reached by dissimilar means"""
    blocks = [l for l in e.blocks(*MIDDLE) if not l.endswith(".0")]  # M*: .0 opens a stage by a projection shortcut
    outputs, branches = (np.mean([e.rho(SL, SC, l + kind) for l in blocks], axis=0) for kind in ("", ".residual"))
    gap = outputs - branches
    return [Part("blocks' outputs agree more than their residual branches", gap, e.seeds, above=0.05)], (
        f"Relative to seeds, SL and SimCLR agree to {e.told(outputs)} after middle blocks and to {e.told(branches)} in what "
        f"those blocks add: a difference of {e.told(gap)}."
    )


def c4(e: Evidence) -> tuple[list[Part], str]:
    """the representations diverge rapidly in the last layers"""
    b, m, end = (e.end(stage) for stage in ("layer1", "layer3", "layer4"))
    place = [*e.blocks(), "head"].index
    across, views = (e.pi(SL, o, m) - e.pi(SL, o, end) for o in (SC, V))
    statement, bends = "the last stage loses more similarity across objectives than across views", {}
    parts = [Part(statement, across - views, e.seeds, above=0.05)]
    for o in (SL, V):
        late = (e.angle(o, SC, end) - e.angle(o, SC, m)) / (place(end) - place(m))
        bends[o] = bend = late - (e.angle(o, SC, m) - e.angle(o, SC, b)) / (place(m) - place(b))
        statement = f"{TITLES[o]} and SimCLR part faster in the last stage than in the middle"
        parts.append(Part(statement, bend, e.seeds, above=0.0, unit="degrees a block", scaled=1 + bend))
    return parts, (
        f"Over the last stage {e.told(across)} of the shared similarity is lost across objectives and {e.told(views)} across "
        f"views; the angle opens by {e.told(bends[SL], 1)} degrees a block more than before."
    )


def _last_stage(e: Evidence, measure: str, objective: str) -> Array:
    """D_A: by how many nats a reading improves over the last stage, beyond what it does in untrained networks."""
    m, end = e.end("layer3"), e.end("layer4")
    trained, untrained = (e.reading(measure, o, m) - e.reading(measure, o, end) for o in (objective, U))
    return trained - untrained


def _less_than_half(e: Evidence, statement: str, other: Array, owner: Array) -> Part:
    """That `other` is less than half of `owner`, tested as a contrast; drawn as a share."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(owner > 0, other / owner, np.nan)
    return Part(statement, other - 0.5 * owner, e.seeds, below=0.0, unit="nats", scaled=2 * (1 - share))


def c5(e: Evidence) -> tuple[list[Part], str]:
    """SL's last layers fit the classes, SimCLR's do not"""
    sl, sc = (_last_stage(e, "probe", o) for o in (SL, SC))
    return [
        Part("SL's last stage improves the class reading", sl, e.seeds, above=0.1, unit="nats"),
        _less_than_half(e, "SimCLR's last stage improves it by less than half as much", sc, sl),
    ], (
        f"Beyond untrained networks, SL's last stage lowers the probe's cross-entropy by {e.told(sl)} nats, SimCLR's by "
        f"{e.told(sc)}."
    )


def c6(e: Evidence) -> tuple[list[Part], str]:
    """SimCLR's last layers fit invariance to views, SL's do not"""
    sc, sl, v = (_last_stage(e, "views", o) for o in (SC, SL, V))
    return [
        Part("SimCLR's last stage improves the view reading", sc, e.seeds, above=0.05, unit="nats"),
        _less_than_half(e, "SL's last stage improves it by less than half as much", sl, sc),
        _less_than_half(e, "so does the last stage of SL on SimCLR's views", v, sc),
    ], (
        f"Beyond untrained networks, the view loss falls by {e.told(sc)} nats in SimCLR's last stage, by {e.told(sl)} in SL's "
        f"and by {e.told(v)} in that of SL on the same views."
    )


def implicit_fit(e: Evidence, measure: str, objective: str, owner: str, layer: str) -> tuple[Array, Array]:
    """What share of the owner's gain over untrained networks another objective reaches at a layer, and the owner's gain."""
    other, gain = (e.reading(measure, U, layer) - e.reading(measure, o, layer) for o in (objective, owner))
    with np.errstate(divide="ignore", invalid="ignore"):
        return other / gain, gain


def c7(e: Evidence, views: str = "views of a class") -> tuple[list[Part], str]:
    """SimCLR implicitly fits the supervised objective in its middle layers, not the reverse"""
    m = e.end("layer3")
    classes, by_labels = implicit_fit(e, "probe", SC, SL, m)
    (sl, by_views), (v, _) = (implicit_fit(e, views, o, SC, m) for o in (SL, V))
    one = {"SL's gain in the class reading": by_labels}
    both = one | {"SimCLR's gain in the view reading within classes": by_views}
    statement = "SimCLR reaches half of SL's gain in the class reading"
    parts = [Part(statement, classes, e.seeds, above=0.5, denominators=one)]
    for title, share in ((TITLES[SL], sl), (TITLES[V], v)):
        statement = f"{title} reaches less of SimCLR's gain in the view reading within classes"
        parts.append(Part(statement, classes - share, e.seeds, above=0.1, denominators=both))
    return parts, (
        f"At the end of stage 3 SimCLR reaches {e.told(classes)} of SL's gain in the class reading; of SimCLR's gain in telling "
        f"views apart within a class SL reaches {e.told(sl)}, SL on the same views {e.told(v)}."
    )


CLAIMS = {"C1": c1, "C2": c2, "C3": c3, "C4": c4, "C5": c5, "C6": c6, "C7": c7}
# whose place is taken by whom
PLACEBOS = {"C3": [(SL, U), (SC, U), (SC, V)], "C5": [(SL, U), (SC, V)], "C6": [(SC, U)], "C7": [(SC, U)]}


def gate(accuracy: Mapping[str, float], seeds: int) -> str:
    """Why claims are not judged, by the probe's accuracy at the pool of each objective and of "pixels"; empty if they are."""
    if seeds < MIN_SEEDS:
        return f"{seeds} seeds, and an interval over seeds needs {MIN_SEEDS}: set seeds to {MIN_SEEDS} or more"
    bar = max(accuracy["pixels"], accuracy[U]) + LEARNT
    weak = " and ".join(f"{TITLES[o]} ({accuracy[o]:.2f})" for o in (SL, SC) if not accuracy[o] >= bar)
    return weak and (
        f"{weak} read the class less than {LEARNT:.2f} above pixels ({accuracy['pixels']:.2f}) and untrained "
        f"networks ({accuracy[U]:.2f}): train longer (epochs_sl, epochs_simclr) or on more images (train_images)"
    )


def judge(evidence: Evidence, reason: str = "", only: Sequence[str] = tuple(CLAIMS)) -> list[Claim]:
    """The claims, judged, with their placebos; `reason` is that of `gate`."""
    claims = []
    for name in only:
        criterion, placebos = CLAIMS[name], {}
        for o, other in PLACEBOS.get(name, ()):
            moved = criterion(dataclasses.replace(evidence, places={o: other}))
            placebos[f"{TITLES[other]} in {TITLES[o]}'s place"] = Claim(name, criterion.__doc__, *moved)
        claims.append(Claim(name, criterion.__doc__, *criterion(evidence), placebos, reason))
    return claims


def parts(claims: Sequence[Claim]) -> pd.DataFrame:
    """Every part of the claims, for a figure with a panel for each: panel, label, value, low, high, threshold, side."""
    rows = []
    for claim, p in ((c, p) for c in claims for p in c.parts):
        panel = f"{claim.id} {p.statement}" + f" ({p.unit})" * bool(p.unit)
        rows.append((panel, p.verdict, p.estimate, p.low, p.high, p.threshold, p.side))
    return pd.DataFrame(rows, columns=["panel", "label", "value", "low", "high", "threshold", "side"])


def one_look(claims: Sequence[Claim], ticks: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row per claim for `charts.forest`: its weakest part in units of the threshold, and the range of its placebos; with `ticks`,
    what attacks make of the claims (row, value), a note says how many seeds a claim rests on and how many attacks agree."""
    rows = []
    for claim in claims:
        weakest, note = claim.weakest, ""
        if ticks is not None:
            others = ticks.loc[ticks["row"] == claim.id, "value"] > 1
            same = f"; {(others == (weakest.scaled[0] > 1)).sum()} of {len(others)} readings on the same side"
            note = f"S = {len(weakest.without_seed)}" + same * bool(len(others))
        placebos = [placebo.weakest.scaled[0] for placebo in claim.placebos.values()]
        bounds = (min(placebos), max(placebos)) if placebos and np.isfinite(placebos).all() else (math.nan, math.nan)
        rows.append((claim.id, claim.statement, *weakest.scaled, *bounds, claim.verdict, note))
    columns = ["row", "label", "value", "low", "high", "placebo_low", "placebo_high", "verdict", "note"]
    return pd.DataFrame(rows, columns=columns)
