"""Chapter 08: what the claims say of designing auxiliary tasks, as predictions.

Those of (b) and (c) stood here before their networks; those of (a) after trials on one seed of a tiny study (see `RATE`).

(a) Cutting: networks without their last stages, probed and fine-tuned on a second set of images.
(b) Placing: cross-entropy in the middle of SimCLR, and NT-Xent in the middle of SL.
(c) Pulling: SimCLR's embeddings drawn to the corners of a simplex, without labels.

Networks that are compared share initial backbone, batches and views, and every difference is taken on the same test images,
so that it is a paired one. A prediction has to hold for every seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from repsim import augment, claims, data, models, objectives, predictions, probes, shapes, store, taps
from repsim import robustness as rb
from repsim.claims import EFFECT, VIEWS, Cell, Claim, Estimate, Part
from repsim.comparison import Comparison
from repsim.study import Study

NETWORKS = ("simclr_sl_middle", "sl_simclr_middle", "simclr_simplex")
CONTROLS = ("simclr_sl_top", "simclr_random_prototypes")  # trained if the study's controls name them
BESIDE = ("untrained", "sl", "simclr", "sl_simclr_views")  # what they are set against
# Of a fine-tuning: images, steps, images in a batch, learning rate; chosen on seed 0 of the notebook's tiny study
LABELLED, STEPS, BATCH, RATE = 256, 48, 32, 0.2
SECOND = {"train": 512, "validation": 256, "test": 768}  # images of the second set
HUES = 6  # classes of the task "colour"


def objectives(study: Study) -> list[str]:
    """What this chapter trains beside the study's own networks."""
    return [*NETWORKS, *(name for name in CONTROLS if name in study.controls)]


def names(study: Study) -> list[str]:
    """All networks of the chapter: those that it trains, and those beside them."""
    return networks(study, [*BESIDE, *objectives(study)])


def networks(study: Study, objectives: Sequence[str]) -> list[str]:
    return [f"{objective}-{seed}" for objective in objectives for seed in range(study.seeds)]


# (a) Cutting


def depths(study: Study) -> list[str]:
    """Where a network is cut: the end of each stage; that of the last, averaged over space, is the pool."""
    blocks = models.ARCHITECTURES[study.architecture][1]
    return [f"layer{stage}.{count - 1}" for stage, count in enumerate(blocks[:3], 1)] + ["pool"]


def cut(model: models.ResNet, layer: str, classes: int) -> models.ResNet:
    """A copy of the network up to a post-residual layer or the pool, averaged over space, and a linear classifier of zeros.

    Raises:
        ValueError: another layer.
    """
    short = copy.deepcopy(model)
    stages = list(models.STAGES)
    if layer != "pool":
        if models.layer_kind(layer) != "post-residual" or layer not in models.layer_names(model):
            raise ValueError(f"layer: expected pool or a post-residual layer such as layer3.1, got {layer!r}")
        stage, block = layer.split(".")
        setattr(short, stage, getattr(short, stage)[: int(block) + 1])
        for later in stages[stages.index(stage) + 1 :]:
            setattr(short, later, nn.Identity())
        stages = stages[: stages.index(stage) + 1]
    last = list(getattr(short, stages[-1])[-1].children())
    features = next(m for m in reversed(last) if isinstance(m, nn.BatchNorm2d)).num_features
    short.fc = nn.Linear(features, classes).to(next(model.parameters()).device)
    for parameter in short.fc.parameters():
        nn.init.zeros_(parameter)
    return short


def second(study: Study) -> dict[str, dict[str, data.ImageSet]]:
    """The second set of images: task -> train, validation and test of the same embedded images, by what is asked of them.

    "texture" of the background, which SimCLR's augmentations keep; "colour", the hue of the shape in sixths, which they
    change; "shape" where that is not the study's own task. Drawn with another seed than the study's own.
    """
    size = max(8, study.images.test.images.shape[-1])
    hues = tuple(f"hue {i}/{HUES}" for i in range(HUES))
    found: dict[str, dict[str, data.ImageSet]] = {"texture": {}, "colour": {}}
    if study.data != "shapes":
        found["shape"] = {}
    for part, n in SECOND.items():
        images, shape, factors = shapes.draw(n, seed=1, size=size, stream=f"second {part}")
        labels = {
            "texture": (torch.tensor([shapes.TEXTURES.index(t) for t in factors["texture"]]), shapes.TEXTURES),
            "colour": (torch.tensor((factors["foreground_hue"] * HUES).astype(int).to_numpy()), hues),
            "shape": (shape, shapes.SHAPES),
        }
        for task in found:
            found[task][part] = data.ImageSet(images, *labels[task], factors)
    return found


def chance(task: str) -> float:
    """Accuracy of a guess."""
    return 1 / {"texture": len(shapes.TEXTURES), "colour": HUES, "shape": len(shapes.SHAPES)}[task]


def transfer(study: Study, names: Sequence[str]) -> pd.DataFrame:
    """Linear-probe accuracy on the second images, at every depth: cells (network, layer, task, "probe")."""

    def make(name: str) -> pd.DataFrame:
        tasks, model = second(study), study.network(name).model
        parts = next(iter(tasks.values()))  # the images of all tasks are the same
        x = {part: taps.pooled(model, images.images, depths(study)) for part, images in parts.items()}
        values = {}
        for task, sets in tasks.items():
            given = [value for part in parts for value in (x[part], sets[part].labels)]
            hits = probes.linear_probe(*given, classes=len(sets["train"].classes), per_image=True)
            values |= {(name, l, task, "probe"): partial(rb.share, torch.tensor(hits[l].to_numpy())) for l in hits}
        return rb.leave_out(values, len(parts["test"]))

    return study.per_network("transfer", names, make).drop(columns="network")


def finetuned(study: Study, names: Sequence[str]) -> pd.DataFrame:
    """Accuracy on the second images of cut networks, fine-tuned on 256 of them: cells (network, depth, task, "fine-tuned").

    The networks named untrained start from the random weights of that seed: training from scratch.
    """

    def make(name: str) -> pd.DataFrame:
        task, sets = next(iter(second(study).items()))
        values, model = {}, study.network(name).model
        for depth in depths(study):
            correct = finetune(
                cut(model, depth, len(sets["train"].classes)), sets["train"].take(slice(LABELLED)), sets["test"]
            )
            values[name, depth, task, "fine-tuned"] = partial(rb.share, correct)
        return rb.leave_out(values, len(sets["test"]))

    return study.per_network("finetuned", names, make).drop(columns="network")


def finetune(model: models.ResNet, labelled: data.ImageSet, test: data.ImageSet) -> Tensor:
    """Train the whole network for `STEPS` steps of SGD on SL's views of `labelled`; which of `test` are then right (n,)."""
    device = next(model.parameters()).device
    labelled, view = labelled.to(device), augment.VIEWS["supervised"]
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    batches = len(labelled) // BATCH
    model.train()
    for step in range(STEPS):
        epoch, i = divmod(step, batches)
        order = torch.randperm(len(labelled), generator=store.generator("finetune", epoch))
        rows = order[i * BATCH : (i + 1) * BATCH].to(device)
        x = view(labelled.images[rows], store.generator("finetune", "views", step))
        loss = objectives.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), labelled.labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(taps.network_input(x, model)).cpu() for x in test.images.split(256)])
    return logits.argmax(1) == test.labels.cpu()


# (b) Placing and (c) pulling


def own(study: Study, names: Sequence[str]) -> pd.DataFrame:
    """On the study's own test images, at every depth: cells (network, depth, "own", "probe") and (..., "retrieval").

    The share of images whose class a linear probe gives, and of those whose other view is the nearest of all.
    """

    def make(name: str) -> pd.DataFrame:
        def at(*part: str) -> dict[str, Tensor]:
            features = study.features(name, *part)
            return {layer: features[layer] for layer in depths(study)}

        parts = ((at(s), getattr(study.images, s).labels) for s in ("train", "validation", "test"))
        given = [value for part in parts for value in part]
        hits = {
            "probe": probes.linear_probe(*given, classes=len(study.summary.classes), per_image=True),
            "retrieval": probes.retrieval(*(at("test", view) for view in VIEWS), per_image=True),
        }
        values = {
            (name, layer, "own", measure): partial(rb.share, torch.tensor(found[layer].to_numpy()))
            for measure, found in hits.items()
            for layer in found
        }
        return rb.leave_out(values, len(study.images.test))

    return study.per_network("own", names, make).drop(columns="network")


def comparison(study: Study) -> Comparison:
    """CKA of the study's networks and this chapter's at every depth, with the classes, and of two views."""
    used = names(study)
    return study.compared(
        "cka-auxiliary", lambda: study.compare(used, layers=depths(study), estimators=("unbiased",)), used
    )


# Everything at once

Statistic = Callable[[Cell, int], np.ndarray]  # of cells and a seed


@dataclass(frozen=True, eq=False)
class Tables:
    """What the predictions are judged on."""

    own: rb.Cells  # cells (network, depth, "own", "probe" or "retrieval")
    transfer: rb.Cells  # cells (network, depth, task, "probe")
    finetuned: rb.Cells  # cells (network, depth, task, "fine-tuned")
    comparison: Comparison
    peaks: Mapping[str, str]  # network -> the depth where its linear probe is best on the validation images
    depths: Sequence[str]
    tasks: Sequence[str]
    objectives: Sequence[str]  # that were trained
    seeds: int
    basis: str

    def each(self, cells: rb.Cells | Comparison, of: str, statistic: Statistic) -> tuple[Estimate, ...]:
        """The statistic for every seed, whose number it is given; `of` names the networks, with {0} for the seed."""
        return tuple(Estimate(of.format(s), *cells.interval(lambda c, s=s: statistic(c, s))) for s in range(self.seeds))


def tables(study: Study) -> Tables:
    """All of this chapter's tables; what is not there is made, with the networks that it needs."""
    cutting = networks(study, ("untrained", "sl", "simclr"))
    moved = transfer(study, cutting)
    probe = study.probe(networks(study, ("simclr",)))
    probe = probe[probe["layer"].isin(depths(study))]
    best = probe.loc[probe.groupby("network")["validation_accuracy"].idxmax()]
    return Tables(
        rb.cells(own(study, names(study))),
        rb.cells(moved),
        rb.cells(finetuned(study, cutting)),
        comparison(study),
        dict(zip(best["network"], best["layer"])),
        depths(study),
        list(dict.fromkeys(moved["b"])),
        objectives(study),
        study.seeds,
        study.basis(),
    )


# The predictions, each a pure function of the tables


def _less(a: str, b: str, layer: str, task: str, measure: str) -> Statistic:
    """Network a less network b, at one layer."""
    return lambda c, s: c(f"{a}-{s}", layer, task, measure) - c(f"{b}-{s}", layer, task, measure)


def _rise(network: str, start: str, stop: str, task: str, measure: str) -> Statistic:
    """One network's layer `stop` less its layer `start`."""
    return lambda c, s: c(f"{network}-{s}", stop, task, measure) - c(f"{network}-{s}", start, task, measure)


def peak(t: Tables) -> Claim:
    middle = t.depths[-2]
    simclr = t.each(t.own, "simclr-{0}", _rise("simclr", "pool", middle, "own", "probe"))
    sl = t.each(t.own, "sl-{0}", _rise("sl", middle, "pool", "own", "probe"))
    parts = (
        Part(
            "SimCLR: a linear probe reads the classes better at the end of stage 3 than at the pool",
            "above",
            0.0,
            simclr,
        ),
        Part("control, SL: it reads them better at the pool", "above", 0.0, sl),
    )
    return Claim("8.1", "SimCLR's class information peaks before its last stage, SL's does not", parts, t.basis)


def transfers(t: Tables) -> Claim:
    parts = []
    for task in t.tasks:
        rises = t.each(t.transfer, "simclr-{0}", _rise("simclr", "pool", t.depths[-2], task, "probe"))
        parts.append(Part(f"{task} is read better at the end of stage 3 than at the pool", "above", 0.0, rises))
    return Claim("8.2", "a SimCLR network transfers better with its last stage cut off", tuple(parts), t.basis)


def costs_sl_more(t: Tables) -> Claim:
    parts = []
    for task in t.tasks:

        def more(c: Cell, s: int, task: str = task) -> np.ndarray:
            lost = (_rise(n, "pool", t.depths[-2], task, "probe")(c, s) for n in ("sl", "simclr"))
            return next(lost) - next(lost)

        found = t.each(t.transfer, "sl-{0}, simclr-{0}", more)
        parts.append(Part(f"of {task}, the last stage loses more in SL than in SimCLR", "above", 0.0, found))
    return Claim("8.3", "control: SL has more reason to be cut than SimCLR", tuple(parts), t.basis)


def cut_at_peak(t: Tables) -> Claim:
    parts = []
    for task in t.tasks:
        found = []
        for network, at in t.peaks.items():
            for other in (d for d in t.depths if d != at):
                value = t.transfer.interval(
                    lambda c, n=network, a=at, o=other, t=task: c(n, a, t, "probe") - c(n, o, t, "probe")
                )
                found.append(Estimate(f"{network}, {at} for {other}", *value))
        parts.append(
            Part(f"{task}: accuracy at the peak's depth less that at any other", "above", -EFFECT, tuple(found))
        )
    return Claim(
        "8.4", "where SimCLR's class information peaks is where to cut it for another task", tuple(parts), t.basis
    )


def finetunes(t: Tables) -> Claim:
    middle, task = t.depths[-2], t.tasks[0]
    cut_off = t.each(t.finetuned, "simclr-{0}", _rise("simclr", "pool", middle, task, "fine-tuned"))
    learnt = t.each(t.finetuned, "simclr-{0}", _less("simclr", "untrained", middle, task, "fine-tuned"))
    parts = (
        Part("cut after stage 3 it does not serve worse than whole", "above", -EFFECT, cut_off),
        Part("control: and better than the same layers from scratch", "above", 0.0, learnt),
    )
    statement = f"fine-tuned for {task} on {LABELLED} images, SimCLR's last stage can be spared"
    return Claim("8.5", statement, parts, t.basis)


def _against(t: Tables, a: str, b: str, layer: str, measure: str) -> tuple[Estimate, ...]:
    """Network a less network b on the study's own images; nothing if either was not trained."""
    if not {a, b} <= {*t.objectives, *BESIDE}:
        return ()
    return t.each(t.own, f"{a}-{{0}}", _less(a, b, layer, "own", measure))


def classes_in_the_middle(t: Tables) -> Claim:
    gain = _against(t, "simclr_sl_middle", "simclr", "pool", "probe")
    kept = _against(t, "simclr_sl_middle", "simclr", "pool", "retrieval")
    parts = (
        Part("the classes are read better at the pool than in SimCLR", "above", 0.0, gain),
        Part("an image's other view is found there as often", "above", -EFFECT, kept),
    )
    return Claim("8.6", "cross-entropy in SimCLR's middle adds the classes and costs no invariance", parts, t.basis)


def middle_not_top(t: Tables) -> Claim:
    parts = tuple(
        Part(
            f"{said} at the pool than with cross-entropy there",
            "above",
            0.0,
            _against(t, "simclr_sl_middle", "simclr_sl_top", "pool", m),
        )
        for m, said in (("probe", "classes are read better"), ("retrieval", "other views are found more often"))
    )
    return Claim("8.7", "control: the middle is the better place for it, not the top", parts, t.basis)


def views_in_the_middle(t: Tables) -> Claim:
    gain = _against(t, "sl_simclr_middle", "sl_simclr_views", t.depths[-2], "retrieval")
    cost = _against(t, "sl_simclr_middle", "sl_simclr_views", "pool", "probe")
    parts = (
        Part("other views are found more often at the end of stage 3 than in SL on SimCLR's views", "above", 0.0, gain),
        Part("the classes are read worse at the pool", "below", 0.0, cost),
    )
    return Claim(
        "8.8", "the reverse, NT-Xent in SL's middle, is at odds with SL: it costs class information", parts, t.basis
    )


def _nearer(t: Tables, name: str, layer: str, to: str = "simclr") -> tuple[Estimate, ...]:
    """How much nearer to SL, by CKA at a layer, `name` is than `to` of its seed; SL has another, hence other initial weights."""
    found = []
    for pair in claims.pairs(t.seeds, "sl", name):
        (sl, own), seed = pair.networks, pair.networks[1].rpartition("-")[2]
        value = t.comparison.interval(
            lambda c, a=sl, b=own, s=seed: c(a, layer, b, layer) - c(a, layer, f"{to}-{s}", layer)
        )
        found.append(Estimate(own, *value))
    return tuple(found)


def nearer_to_sl(t: Tables) -> Claim:
    parts = tuple(
        Part(f"CKA with SL {where} is higher than SimCLR's", "above", 0.0, _nearer(t, "simclr_sl_middle", layer))
        for where, layer in (("at the end of stage 3", t.depths[-2]), ("at the pool", "pool"))
    )
    return Claim("8.9", "classes in the middle bring SimCLR's representation nearer to SL's", parts, t.basis)


def simplex_converges(t: Tables) -> Claim:
    def fall(c: Cell, sl: str, network: str) -> np.ndarray:
        return c(sl, t.depths[-2], network, t.depths[-2]) - c(sl, "pool", network, "pool")

    less = []
    for pair in claims.pairs(t.seeds, "sl", "simclr_simplex"):
        (sl, name), seed = pair.networks, pair.networks[1].rpartition("-")[2]
        value = t.comparison.interval(lambda c, a=sl, b=name, s=seed: fall(c, a, f"simclr-{s}") - fall(c, a, b))
        less.append(Estimate(name, *value))
    parts = (
        Part("CKA with SL at the pool is higher than SimCLR's", "above", 0.0, _nearer(t, "simclr_simplex", "pool")),
        Part("it falls less from the end of stage 3 to the pool", "above", 0.0, tuple(less)),
    )
    return Claim("8.10", "a label-free pull to a simplex narrows the last stage's divergence from SL", parts, t.basis)


def simplex_gains(t: Tables) -> Claim:
    parts = (
        Part(
            "the classes are read better at the pool than in SimCLR",
            "above",
            0.0,
            _against(t, "simclr_simplex", "simclr", "pool", "probe"),
        ),
    )
    return Claim("8.11", "and it makes the classes easier to read", parts, t.basis)


def simplex_not_any(t: Tables) -> Claim:
    gain = _against(t, "simclr_simplex", "simclr_random_prototypes", "pool", "probe")
    near = _nearer(t, "simclr_simplex", "pool", "simclr_random_prototypes") if CONTROLS[1] in t.objectives else ()
    parts = (
        Part("the classes are read better at the pool than with random prototypes", "above", 0.0, gain),
        Part("CKA with SL at the pool is higher than with random prototypes", "above", 0.0, near),
    )
    return Claim("8.12", "control: it is the simplex, not any fixed prototypes", parts, t.basis)


CUTTING = (peak, transfers, costs_sl_more, cut_at_peak, finetunes)
PLACING = (classes_in_the_middle, middle_not_top, views_in_the_middle, nearer_to_sl)
PULLING = (simplex_converges, simplex_gains, simplex_not_any)


def judge(t: Tables) -> list[Claim]:
    """All predictions of this chapter, judged by the rules of `repsim.claims`."""
    return [prediction(t) for prediction in (*CUTTING, *PLACING, *PULLING)]


def make(study: Study) -> list[Claim]:
    """Make all that this chapter draws, keep what became of its predictions in OUT/predictions/08.json, and return them."""
    if study.summary.factors:
        study.factors([f"{objective}-0" for objective in (*BESIDE[1:], *objectives(study))])
    return predictions.keep(judge(tables(study)), study.out, "08")


def curves(cells: rb.Cells, names: Sequence[str], layers: Sequence[str], task: str, measure: str) -> pd.DataFrame:
    """Cells as rows for a figure: network, layer, value, low, high."""
    rows = [
        (name, layer, *cells.interval(lambda c, n=name, l=layer: c(n, l, task, measure)))
        for name in names
        for layer in layers
    ]
    return pd.DataFrame(rows, columns=["network", "layer", "value", "low", "high"])
