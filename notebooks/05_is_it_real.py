# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Is it real? The claims under attack
#
# A verdict may rest on the estimator, on a handful of images, on one seed, on the augmentations, or on the measure. This chapter measures each
# claim again in the ways a reviewer would ask for, and shows all of it in one figure.

# %% tags=["parameters"]
profile = "results/quick"  # str: published results to draw, a profile (quick, gpu, ...) or a YAML file; paths count from the checkout
changes = {}  # dict: any field of repsim.study.Study, such as {"data": "~/my-images", "width": 32}
slow = True  # bool: also the two attacks that run many networks again, SL at SimCLR's accuracy and stitching

# %%
from repsim import charts, claims
from repsim.study import Study

study = Study.open(profile, **changes)
answers, ticks = study.judge(), study.attacks()
charts.forest(claims.one_look(answers, ticks), ticks, title="Seven claims and what attacks make of them")

# %%
charts.markdown(study.answer(answers))

# %% [markdown]
# *How to read the figure.* A row is a claim. The axis is in units of the claim's own threshold: 0 is no effect, 1 the smallest that counts. The dot is the weakest
# part of the claim with its 95 % interval over seeds and images; the grey band is the placebo; a small mark is the same part measured again in one of the ways below,
# hollow where only part of the claim was. (Where this notebook runs for the first time, the marks come with the figure [at its end](#All-of-it-in-one-look).)

# %% jupyter={"source_hidden": true}
import bisect
import dataclasses
import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.linalg import orthogonal_procrustes

from repsim import cka, models, probes, store, taps, train

evidence = study.evidence()
attacks = []  # rows: claim, name, family, value in units of the threshold, whether the whole claim was measured again


def attack(name, family, parts, whole=True):
    """Note what an attack makes of each claim: claim -> the parts that it measures again."""
    for claim, again in parts.items():
        scaled = [p.scaled[0] for p in again]
        attacks.append((claim, min(scaled) if np.isfinite(scaled).all() else math.nan, family, name, whole))

# %% [markdown]
# ## 1. Is it the estimator, or a few images?
#
# The plain estimate of HSIC is biased: for independent Gaussian features of widths $p$ and $q$ it gives CKA near
# $\sqrt{pq / ((n + p)(n + q))}$. The unbiased one is 0 on average for any $n$. That is why no verdict here rests on the biased one.

# %%
n, p = 128, 1024
x, y = (torch.randn(n, p, generator=store.generator("is it real", i)) for i in (0, 1))
assert abs(cka.cka(x, y, estimator="biased") - p / (n + p)) < 0.02 and abs(cka.cka(x, y)) < 0.02
print(f"{n} images of noise, {p:,} features: biased {cka.cka(x, y, estimator='biased'):.2f}, predicted {p / (n + p):.2f}")

# %% [markdown]
# Nor is the unbiased estimate safe from outliers: a few images can produce a high CKA by themselves (Davari et al. 2022), as two do here.

# %%
spiked = [noise.clone() for noise in (x, y)]
for noise in spiked:
    noise[:2] += 100 * noise[:1].sign()
norms = torch.stack([torch.linalg.vector_norm(s - s.mean(0), dim=1) for s in spiked])
keep = ~torch.isin(torch.arange(n), norms.topk(math.ceil(0.01 * n), dim=1).indices)
assert cka.cka(*spiked) > 0.9 and abs(cka.cka(*(s[keep] for s in spiked))) < 0.05
print(f"noise, two outliers in common: CKA {cka.cka(*spiked):.1f}; without the largest 1 % of either: below 0.05")

# %% [markdown]
# So C1 to C4 are judged again with an RBF kernel, which listens to near neighbours more than to a few large directions, and without every image that is among
# the largest 1 % by norm at the end of some stage of some network. Both come from the pass that made all other Grams.

# %%
curves = [evidence.curves(evidence.cka, [("sl", "simclr")], evidence.blocks()).assign(variant="linear, all images")]
for estimator, title in {"rbf": "RBF kernel", "trimmed": "largest 1 % of images left out"}.items():
    other = dataclasses.replace(evidence, estimator=estimator)
    curves.append(other.curves(other.cka, [("sl", "simclr")], evidence.blocks()).assign(variant=title))
    attack(title, "estimator", {name: claims.CLAIMS[name](other)[0] for name in ("C1", "C2", "C3", "C4")})
charts.lines(pd.concat(curves), y="value", color="variant", y_title="CKA", title="SL and SimCLR by three estimates")

# %% [markdown]
# ## 2. Is it one seed, or the choice of a reference layer?
#
# Every statistic is computed again without each seed index of all objectives; the interval is built from these values, and the figure shows the
# furthest of them. C4 to C7 compare the ends of stages: they are judged again with the block before the end of stage 3 in its place, and C4 with the first block of
# stage 2 in the place of the end of stage 1, and with the head in the place of the last block.

# %%
for claim in answers:
    for seed, scaled in enumerate(zip(*(part.without_seed for part in claim.parts))):
        attacks.append((claim.id, min(scaled) if np.isfinite(scaled).all() else math.nan, "estimator", f"without seed {seed}", True))
others = {
    "stage 3 ends a block earlier": ({"layer3": evidence.blocks("layer3")[-2]}, ("C4", "C5", "C6", "C7")),
    "stage 1 ends a block later": ({"layer1": evidence.blocks("layer2")[0]}, ("C4",)),
    "the head for the last block": ({"layer4": "head"}, ("C4",)),
}
for title, (ends, names) in others.items():
    again = dataclasses.replace(evidence, ends=ends)
    attack(title, "estimator", {name: claims.CLAIMS[name](again)[0] for name in names})

# %% [markdown]
# ## 3. Is it the augmentation, not the objective?
#
# SL sees weaker augmentations than SimCLR. SL trained on SimCLR's own views takes SL's place:

# %%
control = dataclasses.replace(evidence, places={"sl": "sl_simclr_views"})
if "sl_simclr_views" in study.controls:
    attack("SL on SimCLR's views", "control", {c: claims.CLAIMS[c](control)[0] for c in ("C1", "C2", "C3", "C5")})
    both = [("sl", "simclr"), ("sl_simclr_views", "simclr"), ("sl", "sl_simclr_views")]
    charts.show(charts.lines(evidence.curves(evidence.pi, both, evidence.blocks()), y="value", y_title="partial cosine", title="Equal views, equal labels"))

# %% [markdown]
# *How to read it.* If the line of SL on SimCLR's views with SimCLR lay far above that of SL with SimCLR, equal views would explain the similarity.
#
# Nor should a difference be one of success only: SL usually reads the classes better than SimCLR. The snapshot of SL's training at which its probe at the
# end of the network is as good as SimCLR's takes SL's place. The probe gets better with training, so a few halvings of the list of snapshots find it:

# %%
E3, E4 = evidence.end("layer3"), evidence.end("layer4")
splits = ("train", "validation", "test")


@functools.cache
def probed(share):
    """Probes of SL's snapshots at the ends of stages 3 and 4: seed, share, layer, accuracy, and the cross-entropy by fold."""
    rows = []
    for seed in range(study.seeds):
        model, parts = study.snapshot(f"sl-{seed}", share), [getattr(study.images, split) for split in splits]
        given = [value for part in parts for value in (taps.pooled(model, part.images, [E3, E4]), part.labels)]
        probe = probes.linear_probe(*given, classes=len(study.summary.classes))
        folds = probes.by_fold(probe.loss)
        rows += [(seed, share, layer, probe.correct[layer].mean(), *folds[layer]) for layer in (E3, E4)]
    return pd.DataFrame(rows, columns=["seed", "share", "layer", "accuracy", *map(str, range(len(rows[0]) - 4))])


def at_par():
    shares, goal = sorted(train.schedule(train.steps(study.settings("sl-0"), study.summary.train))), study.accuracy()["simclr"]

    def accuracy(share):
        return probed(share).query("layer == @E4").accuracy.mean()

    after = bisect.bisect_left(shares, goal, hi=len(shares) - 1, key=accuracy)
    return probed(min(shares[max(0, after - 1) : after + 1], key=lambda share: abs(accuracy(share) - goal)))


def comparison_at_par():
    snapshots = {f"sl-{i}": study.snapshot(f"sl-{i}", par.share[0]) for i in range(study.seeds)}
    return study.compare([name for name in study.names if name not in snapshots], others=snapshots)


def tables_at_par(par):
    """The readings of SL at that snapshot, as the evidence has them."""
    images = evidence.readings["sl-0"]["probe"].attrs["images"]
    for seed, rows in par.groupby("seed"):
        table = rows.set_index("layer").drop(columns=["seed", "share", "accuracy"]).T.reset_index(drop=True)
        table.attrs["images"] = images
        yield f"sl-{seed}", {"probe": table}


# %%
if slow:
    par = study.table("at-par", at_par)
    readings = evidence.readings | dict(tables_at_par(par))
    matched = dataclasses.replace(evidence, comparison=study.compared("cka-at-par", comparison_at_par), readings=readings)
    attack("SL at SimCLR's accuracy", "control", {c: claims.CLAIMS[c](matched)[0] for c in ("C1", "C2", "C3", "C4", "C5")})
    charts.show(charts.markdown(
        f"After {par.share[0]:.0%} of its training SL reads the class at {par.query('layer == @E4').accuracy.mean():.2f}, the nearest to SimCLR's "
        f"{study.accuracy()['simclr']:.2f}."
    ))

# %% [markdown]
# ## 4. Is it more than chance, and is chance the right baseline?
#
# Shuffle the images of one network and compare again. With $U(\cdot)$ the U-centred Gram, unbiased CKA is a cosine, so that a thousand shuffles are a
# few lines:

# %%
def shuffle_null(k, l, shuffles, generator):
    k, l = (cka.centre(g.double(), "unbiased") for g in (k, l))
    k, l = k / k.norm(), l / l.norm()
    orders = (torch.randperm(len(k), generator=generator) for _ in range(shuffles))
    return (k * l).sum().item(), np.array([(k * l[o][:, o]).sum().item() for o in orders])


def demonstration():
    layer = evidence.end("layer3")
    features = [study.features(name, "test")[layer][:256].double() for name in ("untrained-0", f"untrained-{study.seeds - 1}")]
    observed, null = shuffle_null(*(f @ f.T for f in features), 1000, store.generator("null"))
    return pd.DataFrame({"observed": [observed], "highest of 1,000 shuffles": [null.max()]})


table = study.table("null", demonstration)
observed, highest = table.iloc[0]
charts.markdown(f"Two *untrained* networks at the end of stage 3: CKA {observed:.2f}, the highest of 1,000 shuffles {highest:.2f}.")

# %% [markdown]
# This null is easy to beat: even untrained networks exceed it, as they see the same images. It rules out noise, not trivial causes such as shared
# input. The baseline that counts is the untrained network, and every criterion here is measured against it.
#
# ## 5. Is it the measure?
#
# Mutual nearest neighbours (Huh et al. 2024) ask whether an image has the same neighbours in two networks. For each test image, the share of its ten nearest
# neighbours by cosine in network $a$ that are among those in $b$, less what unrelated features share, takes the place of CKA in C2 to C4; like
# CKA it is averaged over pairs of different seeds, so that ρ and π are between its own ceiling and floor.

# %%
NEIGHBOURS, OBJECTIVES = 10, ["sl", "simclr", "sl_simclr_views", "untrained"]


def mutual_neighbours():
    """CKA's stand-in by fold of the images: a, b, layer, and a column for each fold."""
    layers = [l for l in evidence.layers if l.startswith("layer")]
    present = [o for o in OBJECTIVES if f"{o}-0" in evidence.comparison.streams]
    names, nearest = [f"{o}-{i}" for o in present for i in range(study.seeds)], {}
    for name in names:
        features = study.features(name, "test")
        nearest |= {(name, l): probes.nearest(features[l][:2000], features[l][:2000], NEIGHBOURS + 1)[1] for l in layers}
    images, rows = len(nearest[names[0], layers[0]]), []
    itself = torch.arange(images)[:, None]
    for layer, (a, b) in itertools.product(layers, itertools.combinations(names, 2)):
        if a.rpartition("-")[2] == b.rpartition("-")[2]:
            continue  # one seed: the initial weights are shared
        first, second = nearest[a, layer], nearest[b, layer]  # (images, 11), an image itself among them
        common = (first[:, :, None] == second[:, None, :]).any(2) & (first != itself)
        overlap = common.sum(1).double() / NEIGHBOURS - NEIGHBOURS / (images - 1)
        rows.append((a, b, layer, *probes.by_fold(pd.DataFrame({"overlap": overlap.numpy()}))["overlap"]))
    return pd.DataFrame(rows, columns=["a", "b", "layer", *map(str, range(len(rows[0]) - 3))])


class Neighbours:
    """What `Evidence` asks of a comparison, from the table of mutual neighbours."""

    def __init__(self, table):
        values = table.drop(columns=["a", "b", "layer"]).to_numpy()
        self.weights, self.streams = np.ones(values.shape[1]), [*dict.fromkeys([*table.a, *table.b])]
        self.rows = {(a, b, l): v for a, b, l, v in zip(table.a, table.b, table.layer, values)}

    def layers(self, stream):
        return evidence.comparison.layers(stream)

    def replicates(self, a, layer_a, b, layer_b, estimator="unbiased"):
        by_fold = self.rows[(a, b, layer_a) if (a, b, layer_a) in self.rows else (b, a, layer_a)]
        return claims.without_each_fold(by_fold, self.weights)


neighbours = dataclasses.replace(evidence, comparison=Neighbours(study.table("neighbours", mutual_neighbours)))
attack("mutual neighbours", "measure", {c: claims.CLAIMS[c](neighbours)[0] for c in ("C2", "C3", "C4")})
pairs = [("sl", "sl"), ("simclr", "simclr"), ("sl", "simclr"), ("sl", "untrained")]
charts.lines(neighbours.curves(neighbours.cka, pairs, evidence.blocks()), y="value", y_title="share beyond chance", title="Nearest neighbours in common")

# %% [markdown]
# ## 6. Is it the reading?
#
# C6 uses the loss of a fitted projection. Retrieval needs no fit: is the other view of an image the nearest of all test images' other views? The log odds
# of its rate take the place of the loss. And C7 is judged again with batches of all classes.

# %%
def log_odds(e, objective, layer):
    def one(seed):
        table = e.readings[f"{objective}-{seed}"]["retrieval"]
        rate = claims.without_each_fold(table[layer].to_numpy(), table.attrs["images"])
        images = table.attrs["images"].sum()
        return np.log((rate * images + 0.5) / (images - rate * images + 0.5))

    return claims.over_seeds({(i,): one(i) for i in range(study.seeds)}, study.seeds)


class Retrieval(claims.Evidence):
    """The evidence with the log odds of retrieval in the place of the fitted view loss, in its sign."""

    def reading(self, measure, objective, layer):
        return -log_odds(self, self.places.get(objective, objective), layer)


retrieval = Retrieval(**{f.name: getattr(evidence, f.name) for f in dataclasses.fields(evidence)})
if "sl_simclr_views" in study.controls:
    attack("view retrieval", "measure", {"C6": claims.c6(retrieval)[0]})
    attack("batches of all classes", "measure", {"C7": claims.c7(evidence, "views")[0]})

# %% [markdown]
# ## 7. Is it of use? Stitching
#
# If a layer of SimCLR represents what SL's does, the rest of the SL network should be able to work with it (Lenc and Vedaldi 2015). An affine map of channels,
# fitted by least squares to carry the other network's layer into SL's, replaces that layer; the cross-entropy of the SL network behind it is
# set between another SL seed in front (0) and an untrained network (1).

# %%
FIT, TEST = 512, 1000


@torch.no_grad()
def activations(model, layers, images):
    """Layer -> (n, c, h, w), from one pass."""
    outputs = {layer: [] for layer in layers}
    with taps.tapped(model, taps.resolve(model, layers), lambda layer, output: outputs[layer].append(output.float().clone())):
        for batch in images.split(256):
            model(taps.network_input(batch, model))
    return {layer: torch.cat(parts) for layer, parts in outputs.items()}


def stitch(a, b):
    """Weight (d, c, 1, 1) and bias (d,) of the 1x1 convolution that carries a (n, c, h, w) into b (n, d, h, w), by least squares."""
    x, y = (z.movedim(1, 3).flatten(0, 2).double() for z in (a, b))
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    solution = torch.linalg.pinv(x.T @ x, hermitian=True, rtol=1e-10) @ (x.T @ y)
    return solution[:-1].T[:, :, None, None].float(), solution[-1].float()


@torch.no_grad()
def stitched():
    """Cross-entropy of SL networks behind another network's layer, by fold: front, i, j, layer, and a column for each fold."""
    fit, test, rows = study.images.train.images[:FIT], study.images.test.take(slice(TEST)), []
    layers = evidence.blocks("layer2", "layer3")
    for j in range(study.seeds):
        target, i = study.network(f"sl-{j}").model, (j + 1) % study.seeds
        own = activations(target, layers, fit)
        for front in ("sl", "simclr", "untrained"):
            model = study.network(f"{front}-{i}").model
            seen, tested = activations(model, layers, fit), activations(model, layers, test.images)
            for layer in layers:
                weight, bias = stitch(seen[layer], own[layer])
                tail = models.tail(target, layer)
                logits = torch.cat([tail(F.conv2d(part, weight, bias)) for part in tested[layer].split(256)])
                loss = F.cross_entropy(logits, test.labels, reduction="none").double().numpy()
                rows.append((front, i, j, layer, *probes.by_fold(pd.DataFrame({"loss": loss}))["loss"]))
    return pd.DataFrame(rows, columns=["front", "i", "j", "layer", *map(str, range(len(rows[0]) - 4))])


def behind(front, layer):
    rows = table[(table.front == front) & (table.layer == layer)]
    values = rows.drop(columns=["front", "i", "j", "layer"]).to_numpy()
    return claims.over_seeds(
        {(i, j): claims.without_each_fold(v, np.ones(len(v))) for i, j, v in zip(rows.i, rows.j, values)}, study.seeds
    )


def worth(layer):
    """1: SimCLR's layer serves SL as well as another SL seed's; 0: no better than an untrained one."""
    floor = behind("untrained", layer)
    return (floor - behind("simclr", layer)) / (floor - behind("sl", layer))


# %%
if slow:
    table, middle = study.table("stitching", stitched), evidence.blocks("layer2", "layer3")
    worths = np.mean([worth(l) for l in middle], axis=0)
    attack("stitching", "measure", {"C2": [claims.Part("SimCLR's layers serve SL's network", worths, study.seeds, above=0.5)]})
    curves, look = evidence.curves(behind, ["sl", "simclr", "untrained"], middle), {"y_title": "cross-entropy of SL, nats"}
    chance = {"chance": math.log(len(study.summary.classes))}
    charts.show(charts.lines(curves, y="value", rules=chance, title="Another network's layer in front of SL's rest", **look))

# %% [markdown]
# ## 8. Does the map agree? All layers in one plane
#
# Another family of measures asks how well a rotation lays one cloud of images onto the other: Procrustes' similarity of normalised features, whose arc cosine is a
# metric (Williams et al. 2021). Classical multidimensional scaling draws it.

# %%
def procrustes_angle(x, y):
    x, y = ((v - v.mean(0)) / np.linalg.norm(v - v.mean(0)) for v in (x, y))
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(v, ((0, 0), (0, width - v.shape[1]))) for v in (x, y))
    return math.acos(min(1.0, orthogonal_procrustes(x, y)[1]))


def shape_map():
    names = [f"{o}-{i}" for o in ("untrained", "sl", "simclr") for i in (0, study.seeds - 1)]
    points = [(n, l, study.features(n, "test")[l][:256].double().numpy()) for n in names for l in evidence.blocks()]
    distances = np.array([[procrustes_angle(x, y) for *_, y in points] for *_, x in points])
    centred = distances**2 - (distances**2).mean(0) - (distances**2).mean(1)[:, None] + (distances**2).mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    place = vectors[:, [-1, -2]] * np.sqrt(values[[-1, -2]])
    rows = [(n, l, evidence.blocks().index(l), *xy) for (n, l, _), xy in zip(points, place)]
    return pd.DataFrame(rows, columns=["network", "layer", "position", "first coordinate", "second coordinate"])


charts.path(study.table("shape-map", shape_map), "first coordinate", "second coordinate", title="All blocks of six networks: near means alike up to rotation")

# %% [markdown]
# *How to read it.* Each line runs from a network's first block to its last. Lines that run together and then part are C2 and C4 at one glance.
#
# ## All of it in one look
#
# Every mark of the figure at the top comes from the sections above, and is kept for it and for the [overview](00_overview.ipynb). Where the
# figure at the top has no marks yet, here it is with all of them:

# %%
measured = pd.DataFrame(attacks, columns=["row", "value", "family", "name", "whole"]).dropna(subset="value")
store.write(Path(study.out) / "claims" / "attacks.json", json.dumps(measured.to_dict("records"), indent=1) + "\n")
None if len(ticks) else charts.forest(claims.one_look(answers, measured), measured, title="Seven claims and what attacks make of them")

# %% [markdown]
# <details><summary>Every attack and what it makes of each claim</summary>

# %%
wide = measured[~measured.name.str.startswith("without seed")].pivot_table(index="name", columns="row", values="value", sort=False)
charts.markdown(wide.round(2).astype(object).where(wide.notna(), "").reset_index().rename(columns={"name": "attack"}))

# %% [markdown]
# </details>
#
# ## What we found, and what would change our mind
#
# Attacks change no verdict: they say how far it can be trusted. What none of them touches is shared by all rows: one architecture, one set of images, one
# recipe. A claim whose marks scatter over both sides of 1 depends on how similarity is measured.
#
# Previous: [04 Implicit objective](04_implicit_objective.ipynb) · Next: [06 Between the objectives](06_between_the_objectives.ipynb) ·
# Overview: [00](00_overview.ipynb)
#
# **References.** Song et al. (2012), *Feature selection via dependence maximization*. Davari et al. (2022), *Reliability of CKA as a
# similarity measure in deep learning*. Cui et al. (2022), *Deconfounded representation similarity*. Huh et al. (2024), *The Platonic
# representation hypothesis*. Williams et al. (2021), *Generalized shape metrics on neural representations*. Lenc and Vedaldi (2015), *Understanding image
# representations by measuring their equivariance and equivalence*. Bansal, Nakkiran, Barak (2021), *Revisiting model stitching*.

# %% tags=["nbval-ignore-output"]
charts.markdown(study.colophon())
