"""Chapter 06: a ladder of objectives from cross-entropy to SimCLR, and other families of self-supervision beside it.

Rung by rung one thing changes, under the same initial weights, batches, views, epochs and recipe:

    ce_views    a classifier of both views
    supcon      images of one class are drawn together and all others pushed apart; no classifier
    nscl        only the two views of an image are drawn together; images of other classes are pushed apart
    simclr      all other images are pushed apart: no label is used

Two rungs i and j of one seed are compared by CKA(i, j) / sqrt(CKA(i, i') CKA(j, j')), where i' and j' are the same rungs
of another seed. They share initial weights and views, which seeds do not, so that this may exceed 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from repsim import claims, predictions
from repsim.claims import EFFECT, SIMILAR, SUPPORTED, Cell, Claim, Estimate, Evidence, Pair, Part
from repsim.comparison import Source
from repsim.study import Study

RUNGS = ("ce_views", "supcon", "nscl", "simclr")
FAMILIES = ("byol", "barlow", "vicreg", "rotation")
FAMILY_SEEDS = 1  # networks of each family; a rung has the study's seeds
STEPS = tuple(itertools.pairwise(RUNGS))
TITLES: Mapping[str, str] = {
    "ce_views": "cross-entropy",
    "supcon": "SupCon",
    "nscl": "NSCL",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "barlow": "Barlow Twins",
    "vicreg": "VICReg",
    "rotation": "rotation",
    "untrained": "untrained",
}
POSITION, COLOUR = ("x", "y"), ("foreground_hue", "background_hue")  # factors of the embedded images

# What was expected, and why, before any result; `judge` gives the parts and thresholds of each.
EXPECTED: Mapping[str, tuple[str, str]] = {
    "6.1": (
        "the pool parts most between SupCon and NSCL",
        "there labels stop drawing images of a class together; before and after it only how they do so, or whether they "
        "push apart, changes",
    ),
    "6.2": (
        "NSCL and SimCLR are alike at the pool",
        "with several classes few negatives are of the same class (Luthra et al. 2025)",
    ),
    "6.3": (
        "residual layers part most at the first step, from cross-entropy to SupCon",
        "a contrast of pairs behind a projection head may reach the same features by other means",
    ),
    "6.4": (
        "middle post-residual layers stay alike over the whole ladder",
        "claim C2 says so of its two ends",
    ),
    "6.5": (
        "BYOL, Barlow Twins and VICReg are more like SimCLR than like cross-entropy at the pool",
        "all ask two views of an image for the same embedding",
    ),
    "6.6": (
        "rotation prediction is less like SimCLR at the pool than any of these is",
        "its task asks for the orientation, which no other objective needs",
    ),
    "6.7": (
        "SupCon drops more of an image's position than SimCLR does",
        "only SimCLR has to tell images of one class apart",
    ),
}


# What the chapter draws, each a table of the study


def seeds(study: Study, objective: str) -> int:
    return min(study.seeds, FAMILY_SEEDS) if objective in FAMILIES else study.seeds


def names(study: Study, objectives: Sequence[str] = (*RUNGS, *FAMILIES, "sl", "untrained")) -> list[str]:
    """The chapter's networks, or those of some objectives."""
    return [f"{objective}-{seed}" for objective in objectives for seed in range(seeds(study, objective))]


def same_layer(first: Source, second: Source) -> bool:
    """Whether the chapter asks for this pair of sources: layers of one name, and the classes."""
    return first[1] == second[1] or second[0] == "labels"


def evidence(study: Study) -> Evidence:
    """CKA of same-named layers of all the chapter's networks; they are trained on first use."""
    networks = names(study)
    options = {"views": {}, "pixels": False, "estimators": ("unbiased",)}
    comparison = study.compared("ladder", lambda: study.compare(networks, **options).select(same_layer), networks)
    return Evidence(comparison, study.seeds, study.basis())


def make(study: Study) -> list[Claim]:
    """Make all that the chapter draws and keep its verdicts; what is there is kept."""
    study.history(names(study)), study.knn(names(study))
    return predictions.keep(judge(evidence(study), study.factors(names(study))), study.out, "06")


def learnt(study: Study) -> pd.DataFrame:
    """Whether each network learnt its objective: network, first and last loss (nats, or the objective's own), k-NN at the pool."""
    history, knn = study.history(names(study)), study.knn(names(study)).set_index(["network", "layer"])
    rows = [
        {
            "network": name,
            "epochs": int(part["epoch"].iloc[-1]),
            "loss in the first epoch": f"{part['loss'].iloc[0]:.3f}",
            "in the last": f"{part['loss'].iloc[-1]:.3f}",
            "on validation images": f"{part['validation_loss'].iloc[-1]:.3f}",
            "10-NN accuracy at the pool": f"{knn.loc[(name, 'pool'), 'accuracy']:.2f}",
        }
        for name, part in history.groupby("network", sort=False)
    ]
    return pd.DataFrame(rows)


# The ladder


def groups(evidence: Evidence) -> dict[str, list[str]]:
    """The layers of which the ladder is asked where it parts."""
    residual, post = (claims.of_kind(evidence.layers, kind, claims.MIDDLE) for kind in ("residual", "post-residual"))
    return {"middle residual layers": residual, "middle post-residual layers": post, "pool": ["pool"]}


def pairs(count: int, a: str, b: str) -> list[Pair]:
    """Networks of one seed, with another seed of each as their ceilings. Empty with one seed, which has no ceiling."""
    following = [(i + 1) % count for i in range(count)] if count > 1 else []
    return [Pair((f"{a}-{i}", f"{b}-{i}"), (f"{a}-{j}", f"{b}-{j}")) for i, j in enumerate(following)]


def curves(evidence: Evidence, ends: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Normalised CKA of these pairs of objectives at every layer: a, b, layer, cka, low, high, and `step`, who they are."""
    rows = []
    for a, b in ends:
        for pair, layer in itertools.product(pairs(evidence.seeds, a, b), evidence.layers):
            found = evidence.estimate(str(pair), lambda c, p=pair, l=layer: claims.normalised(c, p, [l]))
            step = f"{TITLES[a]} and {TITLES[b]}"
            named = {"a": pair.networks[0], "b": pair.networks[1], "layer": layer, "step": step}
            rows.append(named | {"cka": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def drops(evidence: Evidence) -> pd.DataFrame:
    """1 - normalised CKA of neighbouring rungs: layers, step, seed, drop, low, high."""
    rows = []
    for group, layers in groups(evidence).items():
        for (a, b), seed in itertools.product(STEPS, range(len(pairs(evidence.seeds, *STEPS[0])))):
            pair = pairs(evidence.seeds, a, b)[seed]
            found = evidence.estimate("", lambda c, p=pair, l=layers: 1 - claims.normalised(c, p, l))
            named = {"layers": group, "step": f"{TITLES[a]} to {TITLES[b]}", "seed": str(seed)}
            rows.append(named | {"drop": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows, columns=["layers", "step", "seed", "drop", "low", "high"])


def margins(evidence: Evidence, layers: Sequence[str], step: tuple[str, str]) -> tuple[Part, ...]:
    """That these layers part more at this step than at each other one, for every seed: the difference of the two drops."""
    parts = []
    for other in STEPS:
        if other == step:
            continue
        both = zip(pairs(evidence.seeds, *step), pairs(evidence.seeds, *other))
        more = [
            evidence.estimate(
                f"seed {i}", lambda c, p=p, q=q: claims.normalised(c, q, layers) - claims.normalised(c, p, layers)
            )
            for i, (p, q) in enumerate(both)
        ]
        statement = f"the drop exceeds that from {TITLES[other[0]]} to {TITLES[other[1]]}"
        parts.append(evidence.part(statement, "above", 0.0, more))
    return tuple(parts)


@dataclass(frozen=True)
class Parting:
    """Where some layers part most: the step with the largest mean drop, and whether it beats every other one for every seed."""

    layers: str
    step: tuple[str, str] | None  # None with one seed, or where nothing is defined
    decided: bool

    def __str__(self) -> str:
        if self.step is None:
            return f"{self.layers}: open, there is no ceiling to compare with"
        a, b = (TITLES[name] for name in self.step)
        if self.decided:
            return f"{self.layers}: between **{a} and {b}**, by more than at any other step, whatever the seed"
        return (
            f"{self.layers}: **no single step**; the largest mean drop is between {a} and {b}, but it does not exceed every "
            "other one for every seed"
        )


def partings(evidence: Evidence) -> list[Parting]:
    """At which step each group of layers parts."""
    means = drops(evidence).groupby(["layers", "step"])["drop"].mean()
    found = []
    for group, layers in groups(evidence).items():
        mean = {step: means.get((group, f"{TITLES[step[0]]} to {TITLES[step[1]]}"), math.nan) for step in STEPS}
        defined = {step: value for step, value in mean.items() if not math.isnan(value)}
        step = max(defined, key=defined.__getitem__) if defined else None
        decided = step is not None and Claim("", "", margins(evidence, layers, step), "").verdict == SUPPORTED
        found.append(Parting(group, step, decided))
    return found


# The families


def near(evidence: Evidence, objectives: Sequence[str] = (*RUNGS, *FAMILIES)) -> pd.DataFrame:
    """CKA of every objective's network of seed 0 with those of both ends, of the same seed: a, b, layer, cka, low, high.

    An end with itself, whose CKA is 1, is left out.
    """
    found = [
        evidence.comparison.curve(f"{objective}-0", f"{end}-0")
        for end in (RUNGS[0], RUNGS[-1])
        for objective in objectives
        if objective != end
    ]
    table = pd.concat(found, ignore_index=True).rename(columns={"layer_a": "layer"}).drop(columns="layer_b")
    return table[table["layer"].isin(evidence.layers)]


def plane(table: pd.DataFrame) -> pd.DataFrame:
    """`near`, as a plane: network, layer, position, x (CKA with cross-entropy), y (with SimCLR); families only."""
    table = table.assign(objective=[a.rpartition("-")[0] for a in table["a"]])
    wide = table[table["objective"].isin(FAMILIES)].pivot(index=["a", "layer"], columns="b", values="cka").reset_index()
    order = {layer: i for i, layer in enumerate(dict.fromkeys(table["layer"]))}
    wide = wide.rename(columns={"a": "network", f"{RUNGS[0]}-0": "x", f"{RUNGS[-1]}-0": "y"})
    return wide.assign(position=wide["layer"].map(order)).sort_values(["network", "position"], ignore_index=True)


# The predictions, judged


def judge(evidence: Evidence, factors: pd.DataFrame | None) -> list[Claim]:
    """All predictions that this study can judge. `factors`: network, layer, factor, score, low, high; None without factors."""
    layers, count = groups(evidence), evidence.seeds
    joint = [name for name in FAMILIES if name != "rotation"]
    family = range(min(count, FAMILY_SEEDS))

    def score(a: str, b: str, group: str) -> list[Estimate]:
        chosen = layers[group]
        return [evidence.estimate(str(p), lambda c, p=p: claims.normalised(c, p, chosen)) for p in pairs(count, a, b)]

    def nearer(a: str, to: str, than: tuple[str, str]) -> list[Estimate]:
        """CKA(a, to) - CKA(than) at the pool, all of one seed."""

        def more(cell: Cell, i: int) -> object:
            one, other = f"{than[0]}-{i}", f"{than[1]}-{i}"
            return cell(f"{a}-{i}", "pool", f"{to}-{i}", "pool") - cell(one, "pool", other, "pool")

        return [evidence.estimate(f"{a}-{i}", lambda c, i=i: more(c, i)) for i in family]

    ladder = [score(RUNGS[0], rung, "middle post-residual layers") for rung in RUNGS[1:]]
    parts = {
        "6.1": margins(evidence, layers["pool"], ("supcon", "nscl")),
        "6.2": (evidence.part("normalised CKA", "above", SIMILAR, score("nscl", "simclr", "pool")),),
        "6.3": margins(evidence, layers["middle residual layers"], ("ce_views", "supcon")),
        "6.4": tuple(
            evidence.part(f"normalised CKA of {TITLES[rung]} with cross-entropy", "above", SIMILAR, found)
            for rung, found in zip(RUNGS[1:], ladder)
        ),
        "6.5": tuple(
            evidence.part(
                f"{TITLES[f]}: CKA with SimCLR less CKA with cross-entropy",
                "above",
                EFFECT,
                nearer(f, "simclr", (f, "ce_views")),
            )
            for f in joint
        ),
        "6.6": tuple(
            evidence.part(
                f"CKA of SimCLR with {TITLES[f]} less that with rotation",
                "above",
                EFFECT,
                nearer(f, "simclr", ("rotation", "simclr")),
            )
            for f in joint
        ),
    }
    if factors is not None:
        parts["6.7"] = tuple(
            Part(
                f"score of {factor} at the pool, SimCLR less SupCon",
                "above",
                EFFECT,
                tuple(gap(factors, f"supcon-{i}", f"simclr-{i}", factor) for i in range(count)),
            )
            for factor in POSITION
        )
    return [Claim(name, EXPECTED[name][0], found, evidence.basis) for name, found in parts.items()]


def gap(factors: pd.DataFrame, one: str, other: str, factor: str) -> Estimate:
    """How much better a factor is read from the pool of `other` than of `one`; intervals are added in quadrature."""
    rows = factors[(factors["layer"] == "pool") & (factors["factor"] == factor)]
    rows = rows[rows["network"].isin([one, other])].assign(layer=rows["network"], network=f"{other} less {one}")
    return claims.rise_of(rows, f"{other} less {one}", one, other, "score")
