"""When it happens: the curves of C2 to C7 at every moment of training that was kept (`repsim.snapshots`).

A moment is a share of the training, 0.0 to 1.0, so that SL and SimCLR, which take different numbers of steps, are compared
at the same share; the images that they have seen by then differ. Every moment's network is evaluated with batch-norm
statistics measured over training images, as the running averages of the first steps are of older weights; so is the end,
whose numbers therefore differ a little from those of other notebooks.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn
from tqdm import tqdm

from repsim import augment, cka, claims, models, probes, rng, snapshots, store, taps, train
from repsim.claims import EFFECT, VIEWS, Claim, Estimate, Part
from repsim.comparison import Comparison
from repsim.predictions import keep
from repsim.snapshots import schedule
from repsim.study import CIRCULAR, Study, known_factors

IMAGES = 1024  # test images compared at most; batch-norm statistics are measured over as many training images
FIT, TEST = 512, 512  # images that the readings are fitted to and tested on, at most
SETTLED = 0.1  # a curve has settled when it stays within this share of its final value

# The networks of a moment


def names(study: Study) -> list[str]:
    """The networks whose moments are kept."""
    return [name for name in study.core if name.rpartition("-")[0] in snapshots.KEPT]


def steps(study: Study, name: str) -> int:
    """How many steps the network `name` is trained."""
    settings = study.settings(name)
    return settings.epochs * (study.summary.train // settings.batch_size)


def moments(study: Study) -> list[float]:
    """The shares of training at which all networks were kept, from 0.0 to 1.0."""
    kept = [schedule(steps(study, name)) for name in names(study)]
    return [share for share in kept[0] if all(share in other for other in kept)]


def place(shares: Sequence[float]) -> np.ndarray:
    """Where moments stand on a logarithmic axis: the initialisation at half the share of the first that follows."""
    shares = np.asarray(shares, dtype=float)
    return np.where(shares > 0, shares, 0.5 * shares[shares > 0].min())


def network(study: Study, name: str, share: float) -> nn.Module:
    """The network `name` at a moment, in eval mode with batch-norm statistics measured over training images.

    Where its moments were not kept, or are damaged, it is trained again beside the study, which leaves them.
    """
    trained, step = study.network(name), schedule(steps(study, name))[share]
    weights = trained.model.state_dict()
    if share < 1:
        final = train.path(trained.settings, study.images, Path(study.out) / "networks")
        try:
            weights = snapshots.load(final, step)
        except (FileNotFoundError, store.Damaged):
            weights = _made_again(study, name, final, step)
    model = trained.settings.build(len(study.summary.classes), study.torch_device)
    model.load_state_dict(weights)
    train.measure_batch_norm(model, study.images.train.images[:IMAGES].to(study.torch_device))
    return model.eval()


def _made_again(study: Study, name: str, final: Path, step: int) -> dict[str, Tensor]:
    """Train a kept network a second time in a folder of its own, and move the moments to where they belong."""
    scratch = final.with_suffix(".again")  # a killed one goes on from its checkpoint
    with store.locked(final):
        with contextlib.suppress(FileNotFoundError, store.Damaged):
            return snapshots.load(final, step)  # another process has made it meanwhile
        print(f"{name}: its moments were not kept, so it is trained again\r", file=sys.stderr)
        again = train.train(study.settings(name), study.images, scratch, device=study.torch_device)
        if not snapshots.equal(again.model.state_dict(), study.network(name).model.state_dict()):
            warnings.warn(f"{name}: trained again it took another course than what is kept of it", stacklevel=3)
        for each in schedule(steps(study, name)).values():
            if (found := snapshots.path(scratch / final.name, each)).exists():
                found.replace(snapshots.path(final, each))
        shutil.rmtree(scratch)
        return snapshots.load(final, step)


# What is measured at every moment, once


def comparisons(study: Study) -> dict[float, Comparison]:
    """For each moment the CKA of same-named layers of all its networks, their two views and the labels."""
    images = study.images.test.take(slice(IMAGES)) if study.artefacts is None else None

    def make(share: float) -> Comparison:
        found = cka.compare(
            {name: network(study, name, share) for name in names(study)},
            images.images,
            labels=images.labels,
            views={view: augment.VIEWS["simclr"] for view in VIEWS},
            batch_size=study.compare_batch,
            progress=True,
        )
        return found.select(lambda a, b: a[1] == b[1] or "labels" in (a[0], b[0]))

    return {s: study.compared(f"moment-cka-{s:.2g}", lambda s=s: make(s), names(study)) for s in moments(study)}


def readings(study: Study) -> pd.DataFrame:
    """What can be read out at each moment at the ends of stages and the pool: share, network, measure, layer, value, low, high.

    Measures: "linear probe" and "10-NN" (accuracies), "NT-Xent" (nats, of a fitted projection; of stage 3 and the pool only)
    and, for the embedded images, "factor NAME" (R^2, or accuracy of categories). From FIT training and TEST test images.
    """
    parts = []
    for share in moments(study):
        table = study.table(f"moment-readings-{share:.2g}", lambda s=share: _readings(study, s), names(study))
        parts.append(table.assign(share=share))
    return pd.concat(parts, ignore_index=True)


def _readings(study: Study, share: float) -> pd.DataFrame:
    splits = [study.images.train.take(slice(FIT)), study.images.validation, study.images.test.take(slice(TEST))]
    view = augment.VIEWS["simclr"]
    ends = (splits[0], splits[2])
    drawn = [view(part.images, rng.generator("moments", v, i)) for i, part in enumerate(ends) for v in VIEWS]
    classes, batch = len(study.summary.classes), min(128, *map(len, ends))
    fit_labels, _, test_labels = (part.labels for part in splits)
    parts = []
    for name in tqdm(names(study), desc=f"readings at {share:.2g}", unit="network", leave=False):
        model = network(study, name, share)
        layers = read_layers(models.layer_names(model))
        fit, validation, test = (taps.pooled(model, part.images, layers) for part in splits)
        views = [taps.pooled(model, images, layers[2:5:2]) for images in drawn]  # the end of stage 3, and the pool
        probed = probes.linear_probe(
            fit, fit_labels, validation, splits[1].labels, test, test_labels, classes=classes
        ).rename(columns={"accuracy": "value"})
        nearest = probes.knn(fit, fit_labels, test, test_labels, classes=classes).rename(columns={"accuracy": "value"})
        loss = probes.fitted_nt_xent(*views, batch=batch, steps=100).rename(columns={"loss": "value"})
        found = [(probed, "linear probe"), (nearest, "10-NN"), (loss, "NT-Xent")]
        if study.summary.factors:
            read = probes.factor_probe(fit, known_factors(splits[0]), test, known_factors(splits[2]), circular=CIRCULAR)
            read = read.rename(columns={"score": "value"})
            found += [(rows, f"factor {factor}") for factor, rows in read.groupby("factor", sort=False)]
        parts += [table.assign(network=name, measure=measure) for table, measure in found]
    return pd.concat(parts, ignore_index=True)[["network", "measure", "layer", "value", "low", "high"]]


def make(study: Study) -> None:
    """Make all that the notebook draws and keep it, with what became of the predictions."""
    keep(predictions(study), study.out, "07")


# The curves


def curves(study: Study) -> pd.DataFrame:
    """Everything over time, in long form: share, step, epoch, images_seen, of, measure, layer, value, low, high.

    `of` is a network or a pair ("sl-0 and simclr-1"). Beside the measures of `readings`: "CKA" of a pair, "normalised CKA" of a
    pair across objectives (relative to two seeds at the same moment, `claims.normalised`), "class CKA", "view CKA". A pair of
    networks with other numbers of steps has no step, epoch and images_seen (images drawn, each as one or two views).
    """
    found = []
    for share, comparison in comparisons(study).items():
        for pair in claims.pairs(study.seeds):
            for layer in shared_layers(comparison):
                value = comparison.interval(lambda c, p=pair, l=layer: claims.normalised(c, p, [l]))
                found.append((share, str(pair), "normalised CKA", layer, *value))
        views = {name: [f"{name}@{view}" for view in VIEWS] for name in names(study)}
        wanted = [(" and ".join(pair), "CKA", pair) for pair in drawn_pairs(study)]
        wanted += [(n, "class CKA", (n, "labels")) for n in views] + [(n, "view CKA", views[n]) for n in views]
        for of, measure, streams in wanted:
            table = comparison.curve(*streams)
            found += [
                (share, of, measure, layer, *value)
                for layer, *value in table[["layer_a", "cka", "low", "high"]].itertuples(index=False)
            ]
    columns = ["share", "of", "measure", "layer", "value", "low", "high"]
    read = readings(study).rename(columns={"network": "of"})
    table = pd.concat([pd.DataFrame(found, columns=columns), read[columns]], ignore_index=True)
    when = {}
    for of in table["of"].unique():
        ends = {(steps(study, n), study.settings(n).batch_size, study.settings(n).epochs) for n in of.split(" and ")}
        total, batch, epochs = ends.pop() if len(ends) == 1 else (math.nan,) * 3
        for share in moments(study):
            step = schedule(total)[share] if total == total else math.nan
            when[of, share] = (step, step * epochs / total, step * batch)
    places = pd.DataFrame(
        [when[key] for key in zip(table["of"], table["share"])], columns=["step", "epoch", "images_seen"]
    )
    return pd.concat([table[["share"]], places, table.drop(columns="share")], axis=1)


def agreement(study: Study) -> pd.DataFrame:
    """Normalised CKA by group of layers: share, of, kind, group, value, low, high; empty with one seed."""
    found = []
    for share, comparison in comparisons(study).items():
        for pair in claims.pairs(study.seeds):
            for kind in ("post-residual", "residual"):
                for group, layers in groups(shared_layers(comparison), kind).items():
                    value = comparison.interval(lambda c, p=pair, l=layers: claims.normalised(c, p, l))
                    found.append((share, str(pair), kind, group, *value))
    return pd.DataFrame(found, columns=["share", "of", "kind", "group", "value", "low", "high"])


def drawn_pairs(study: Study) -> list[tuple[str, str]]:
    """Pairs across objectives and the seed ceilings."""
    cross = [pair.networks for pair in claims.pairs(study.seeds)]
    seeds = [(f"{o}-{i}", f"{o}-{i + 1}") for o in ("sl", "simclr") for i in range(study.seeds - 1)]
    return [*cross, *seeds]


def shared_layers(comparison: Comparison) -> list[str]:
    """The layers that networks of both objectives have, heads left out."""
    return [l for l in comparison.layers("sl-0") if models.layer_kind(l) != "head"]


def read_layers(layers: Sequence[str]) -> list[str]:
    """The ends of the stages, and the pool."""
    return [*(claims.end_of(layers, stage) for stage in models.STAGES), "pool"]


def groups(layers: Sequence[str], kind: str) -> dict[str, list[str]]:
    """Groups of layers of a kind: first stage, middle, last stage, and the pool beside post-residual ones."""
    stages = {"stage 1": ("layer1",), "middle": claims.MIDDLE, "stage 4": ("layer4",)}
    found = {group: claims.of_kind(layers, kind, names) for group, names in stages.items()}
    return found | ({"pool": ["pool"]} if kind == "post-residual" else {})


# Times


def crossing(shares: Sequence[float], values: Sequence[float], level: float, *, last: bool = False) -> float:
    """The share of training at which a curve gets to `level` from below, or from above if `last`.

    The first time that it is there, or with `last` the time from which on it stays at the level or below. Between moments
    the curve is taken as straight over the logarithm of the share (`place`). NaN if it does not happen, or a value is NaN.
    """
    at, values = np.log(place(shares)), np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        return math.nan
    there = values <= level if last else values >= level
    if last:
        i = 0 if there.all() else int(np.flatnonzero(~there)[-1]) + 1
    else:
        i = int(there.argmax()) if there.any() else len(values)
    if i == len(values):
        return math.nan
    if i == 0:
        return float(np.exp(at[0]))
    return float(np.exp(at[i - 1] + (at[i] - at[i - 1]) * (level - values[i - 1]) / (values[i] - values[i - 1])))


def half_gain(curve: pd.DataFrame, of: str) -> Estimate:
    """When a curve (share, value, low, high) has half of what it gains between initialisation and end.

    The interval is where the curve's bounds get there, the end of training at the latest. All NaN if the gain is no more than
    EFFECT, or the intervals of initialisation and end overlap: there is no gain to speak of.
    """
    start, end = curve.iloc[0], curve.iloc[-1]
    if not (end["value"] - start["value"] > EFFECT and end["low"] > start["high"]):
        return Estimate(of, math.nan, math.nan, math.nan)
    level = (start["value"] + end["value"]) / 2
    value, early, late = (crossing(curve["share"], curve[c], level) for c in ("value", "high", "low"))
    return Estimate(of, value, early, 1.0 if math.isnan(late) else late)


def settled(curve: pd.DataFrame, of: str) -> Estimate:
    """From when on a curve (share, value, low, high) stays within SETTLED of its final value.

    The interval is from when the nearest to when the farthest value between its bounds does, the end of training at the latest.
    All NaN if a value is undefined.
    """
    final = curve["value"].iloc[-1]
    below, above = final - curve["high"], curve["low"] - final  # how far the whole interval is off, if positive
    nearest, farthest = np.maximum(0, np.maximum(below, above)), np.maximum(-below, -above)
    distances = ((curve["value"] - final).abs(), nearest, farthest)
    value, early, late = (crossing(curve["share"], d, SETTLED * abs(final), last=True) for d in distances)
    return Estimate(of, value, early, 1.0 if math.isnan(late) and not math.isnan(value) else late)


def exceeds(curve: pd.DataFrame, of: str, level: float = EFFECT) -> Estimate:
    """When a curve (share, value, low, high) first reaches `level`, and its bounds do; all NaN if its lower bound never does."""
    times = [crossing(curve["share"], curve[c], level) for c in ("value", "high", "low")]
    return Estimate(of, *(times if np.isfinite(times).all() else (math.nan,) * 3))


def later(first: Estimate, second: Estimate) -> Estimate:
    """log10 of how many times later `second` is than `first`; 0 is outside the interval if theirs do not overlap."""

    def log(a: float, b: float) -> float:
        return math.log10(b / a)

    return Estimate(first.of, log(first.value, second.value), log(first.high, second.low), log(first.low, second.high))


def times(study: Study) -> dict[tuple[str, str], Estimate]:
    """When it happens, as shares of the training: (pair or network, what) -> time; NaN where there is none.

    Of a pair "agreement formed" (normalised CKA of middle post-residual layers has `settled`) and "divergence begins" (the
    pool's is lower by EFFECT). Of a network half of the gain at the pool of "class CKA", "linear probe", "view CKA" and, for the
    embedded images, of how well "hue" (of the foreground) and "shape" can be read out.
    """
    kept, read, found = comparisons(study), readings(study), {}
    middle = claims.of_kind(shared_layers(kept[1.0]), "post-residual", claims.MIDDLE)

    def over_time(statistic: Callable) -> pd.DataFrame:
        rows = [(share, *comparison.interval(statistic)) for share, comparison in kept.items()]
        return pd.DataFrame(rows, columns=["share", "value", "low", "high"])

    for p in claims.pairs(study.seeds):
        formed = over_time(lambda c, p=p: claims.normalised(c, p, middle))
        gap = over_time(lambda c, p=p: claims.normalised(c, p, middle) - claims.normalised(c, p, ["pool"]))
        found[str(p), "agreement formed"] = settled(formed, str(p))
        found[str(p), "divergence begins"] = exceeds(gap, str(p))
    measures = {"linear probe": "linear probe"}
    if study.summary.factors:
        measures |= {"hue": "factor foreground_hue", "shape": "factor shape"}
    for n in names(study):
        a, b = (f"{n}@{view}" for view in VIEWS)
        gains = {
            "class CKA": over_time(lambda c, n=n: c(n, "pool", "labels", "labels")),
            "view CKA": over_time(lambda c, a=a, b=b: c(a, "pool", b, "pool")),
        }
        rows = read[(read["network"] == n) & (read["layer"] == "pool")].set_index("measure")
        gains |= {what: rows.loc[measure] for what, measure in measures.items()}
        found |= {(n, what): half_gain(curve, n) for what, curve in gains.items()}
    return found


# What was expected, before any result


def predictions(study: Study) -> list[Claim]:
    """The predictions of notebook 07, judged (`repsim.predictions`); open where intervals of times overlap."""
    when, basis = times(study), study.basis()

    def part(statement: str, side: str, first: str, second: str, of: Sequence[str]) -> Part:
        ratios = tuple(later(when[n, first], when[n, second]) for n in of)
        return Part(f"{statement} (log10 of the ratio of times)", side, 0.0, ratios)

    def order(objective: str, side: str) -> tuple[Part, ...]:
        """Class information at the pool, by two measures of it, before or after invariance."""
        said, of = (
            {"below": "before", "above": "after"}[side],
            [n for n in names(study) if n.startswith(f"{objective}-")],
        )
        measures = {"class CKA": "CKA with the classes", "linear probe": "linear-probe accuracy"}
        return tuple(
            part(f"{title} has half of its gain {said} CKA between views", side, "view CKA", measure, of)
            for measure, title in measures.items()
        )

    pairs = [str(pair) for pair in claims.pairs(study.seeds)]
    formed = tuple(when[of, "agreement formed"] for of in pairs)
    tenth = Part("share of training from which normalised CKA stays within 10 % of its end", "below", 0.1, formed)
    after = part(
        "the pool falls behind the middle later than that", "above", "agreement formed", "divergence begins", pairs
    )
    found = [
        Claim("7.1", "the agreement of middle layers is formed within the first tenth of training", (tenth,), basis),
        Claim("7.2", "the last layers begin to diverge only after it", (after,), basis),
        Claim("7.3", "in SL class information comes before invariance", order("sl", "below"), basis),
        Claim("7.4", "in SimCLR class information comes after invariance", order("simclr", "above"), basis),
    ]
    if study.summary.factors:
        colour = part("shape has half of its gain at the pool later than hue", "above", "hue", "shape", names(study))
        found.append(Claim("7.5", "colour comes before shape", (colour,), basis))
    return found


def protocol(study: Study) -> pd.DataFrame:
    """`Study.protocol` of these numbers: two columns, what and how."""
    rows = dict(study.protocol(names(study)).itertuples(index=False)) | {
        "evaluation": f"at most {IMAGES:,} test images, eval mode, the weights of each moment with batch-norm statistics "
        f"measured over at most {IMAGES:,} training images",
        "readings": f"fitted to at most {FIT:,} training images, tested on at most {TEST:,} test images",
    }
    return pd.DataFrame({"what": rows.keys(), "how": rows.values()})
