# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # At which step from SL to SimCLR do networks diverge?
#
# SL and SimCLR differ in several ways at once. Here one thing changes at a time, on a ladder of four objectives that share batches, views,
# epochs and recipe, and the angle between neighbouring rungs shows which change matters, and in which blocks.

# %% tags=["parameters"]
profile = "results/small"  # str: published results to draw, a profile (quick, gpu, ...) or a YAML file; paths count from the checkout
changes = {}  # dict: any field of repsim.study.Study, such as {"data": "~/my-images", "width": 32}

# %% jupyter={"source_hidden": true}
import dataclasses
import itertools

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from repsim import charts, claims, objectives, probes, store
from repsim.study import Study

RUNGS = ("ce_views", "supcon", "nscl", "simclr")
STEPS = [*itertools.pairwise(RUNGS)]
FAMILIES = ("byol", "barlow", "vicreg", "rotation")

study = Study.open(profile, **changes)
if study.seeds < 2:
    raise ValueError(f"seeds: expected 2, as different seeds are compared, or 4 for a verdict; got {study.seeds}")
family_seeds = study.seeds if {*FAMILIES} <= {*study.controls} else 2  # two give no interval
seeds_of = dict.fromkeys((*RUNGS, "untrained"), study.seeds) | dict.fromkeys(FAMILIES, family_seeds)
networks = [f"{objective}-{seed}" for objective, seeds in seeds_of.items() for seed in range(seeds)]


def compare():
    """CKA of same-named layers of all networks of this chapter; those that are missing are trained."""
    return study.compare(networks).select(lambda first, second: first[1] == second[1])


# %%
evidence = claims.Evidence(study.compared("objectives", compare, networks), {}, study.seeds)
angles = evidence.curves(evidence.angle, STEPS, evidence.blocks())
title = "How far each rung of the ladder is from the next, block by block"
charts.lines(angles, y="value", y_title="angle, degrees", domain=(0, 90), title=title)


# %%
def degrees(angle, seeds):
    """An angle's replicates as text, with its interval."""
    return (
        "an undefined angle"
        if np.isnan(claims.interval(angle, seeds)[0])
        else f"{claims.told(angle, seeds, 1)} degrees"
    )


def where_it_opens(evidence, steps):
    """One sentence on each step: the angle at the end of stage 4, and the block in which it opens most."""
    blocks, lines = evidence.blocks(), []
    for a, b in steps:
        opening = np.diff([evidence.angle(a, b, block)[0] for block in blocks])
        angle = degrees(evidence.angle(a, b, blocks[-1]), evidence.seeds)
        where = ""
        if np.isfinite(opening).any() and np.nanmax(opening) > 0:
            most = int(np.nanargmax(opening))
            where = f"; it opens most in block {charts.short(blocks[most + 1])}, by {opening[most]:.1f}"
        lines.append(f"- From {charts.name(a)} to {charts.name(b)}: {angle} at the end of stage 4{where}.")
    return "\n".join(lines)


charts.markdown(where_it_opens(evidence, STEPS))

# %% [markdown]
# *How to read the figure.* 0 degrees: two rungs differ no more than two seeds of one rung do. 90 degrees: they share only what untrained networks
# share. Networks of different seeds alone are compared, which share no initial weights; bands are 95 % intervals over seeds and images.
#
# ## The ladder, and its losses as masks
#
# | rung | what is drawn together | what is pushed apart | labels decide |
# |---|---|---|---|
# | cross-entropy, on both views | an image and the weights of its class | the weights of other classes | both |
# | SupCon (Khosla et al. 2020) | all views of a class | all other views | both |
# | NSCL (Luthra et al. 2025) | the two views of an image | views of other classes | what is pushed apart |
# | SimCLR (Chen et al. 2020) | the two views of an image | all other views | neither |
#
# The three contrastive rungs are one formula. With $s_{ik}$ the cosine of two of the $2n$ projections over the temperature,
#
# $$\ell_i = -\frac{1}{|A_i|} \sum_{p \in A_i} \log \frac{e^{s_{ip}}}{\sum_{k \in B_i} e^{s_{ik}}},$$
#
# and a rung is a choice of $A_i$, the views that attract view $i$, and of $B_i$, those that it is compared with: two masks of one similarity matrix.


# %%
def contrastive(za, zb, attract, compare, temperature=0.5):
    """The loss of embeddings (n, d) of two views, with masks (2n, 2n) of what attracts a view and of what it is compared with."""
    z = F.normalize(torch.cat([za, zb]), dim=1)
    similarity = (z @ z.T / temperature).masked_fill(~compare, -torch.inf)
    log_p = similarity.log_softmax(dim=1)
    return -(log_p.masked_fill(~attract, 0).sum(1) / attract.sum(1)).mean()


def masks(labels):
    """Rung -> (attract, compare) for the views of images with these labels (n,)."""
    image, label = torch.arange(len(labels)).repeat(2), labels.repeat(2)
    another_view = ~torch.eye(len(image), dtype=torch.bool)
    same_image = (image[:, None] == image) & another_view
    same_class = (label[:, None] == label) & another_view
    return {
        "supcon": (same_class, another_view),
        "nscl": (same_image, same_image | (another_view & ~same_class)),
        "simclr": (same_image, another_view),
    }


za, zb = torch.randn(2, 32, 16, generator=store.generator("ladder")).unbind()
labels, alone = torch.arange(32) % 4, torch.arange(32)
by_hand = {rung: contrastive(za, zb, *pair) for rung, pair in masks(labels).items()}
assert torch.isclose(by_hand["supcon"], objectives.supcon(za, zb, labels))
assert torch.isclose(by_hand["nscl"], objectives.nscl(za, zb, labels))
assert torch.isclose(by_hand["simclr"], objectives.nt_xent(za, zb))
assert all(torch.isclose(contrastive(za, zb, *pair), by_hand["simclr"]) for pair in masks(alone).values())
print("By hand and by repsim the same; where every image is a class of its own, all three rungs are NT-Xent.")

# %% [markdown]
# ## Did every network learn its task?
#
# A comparison of objectives says nothing of one that was not learnt. Two readings at the pool, to which no contrastive objective was fitted: ten nearest
# neighbours, and a linear probe. A prediction is *not judged* where cross-entropy's or SimCLR's probe is less than 0.10 above raw pixels or
# untrained networks, and any other objective not where its 10-NN accuracy is less than 0.05 above that of untrained networks.


# %%
def learnt():
    """Accuracies on test images at the pool of each network, and of raw pixels; the loss of its last epoch."""
    splits, rows = ("train", "validation", "test"), []
    labels = {split: getattr(study.images, split).labels for split in splits}
    for name in [*networks, "pixels"]:
        layer = "pixels" if name == "pixels" else "pool"
        pool = {split: {layer: study.features(name, split)[layer]} for split in splits}
        classes = len(study.summary.classes)
        neighbours = probes.knn(pool["train"], labels["train"], pool["test"], labels["test"], classes=classes)
        probe = probes.linear_probe(*(x for split in splits for x in (pool[split], labels[split])), classes=classes)
        loss = np.nan if name == "pixels" else study.network(name).history.loss.iloc[-1]
        rows.append((name, neighbours[layer].mean(), probe.correct[layer].mean(), loss))
    return pd.DataFrame(rows, columns=["network", "10-NN", "linear probe", "loss"])


table = study.table("objectives-learnt", learnt, networks)
accuracy = (
    table.assign(objective=table.network.map(charts.objective))
    .groupby("objective", sort=False)[["10-NN", "linear probe", "loss"]]
    .mean()
)
shown = accuracy.reset_index().assign(networks=[seeds_of.get(o, "") for o in accuracy.index])
charts.markdown(
    shown.assign(
        objective=shown.objective.map(charts.name), loss=[f"{x:.2f}" if np.isfinite(x) else "" for x in shown.loss]
    )
)


# %%
def weak(objective, accuracy):
    """Why an objective is not judged; empty if it is. accuracy: a row an objective, columns "10-NN" and "linear probe"."""
    if objective in (RUNGS[0], RUNGS[-1]):
        bar = max(accuracy.loc[["pixels", "untrained"], "linear probe"]) + claims.LEARNT
        column = "linear probe"
    else:
        bar, column = accuracy.loc["untrained", "10-NN"] + 0.05, "10-NN"
    reading = accuracy.loc[objective, column]
    return (
        ""
        if reading >= bar
        else f"{charts.name(objective)} has an accuracy of {reading:.2f} by {column}, and {bar:.2f} is needed"
    )


def gate(accuracy, seeds):
    """Why predictions are not judged; empty if they are."""
    if seeds < claims.MIN_SEEDS:
        return f"{seeds} seeds, and an interval over seeds needs {claims.MIN_SEEDS}: set seeds to {claims.MIN_SEEDS} or more"
    reasons = [*filter(None, (weak(rung, accuracy) for rung in RUNGS))]
    return "; ".join(reasons) + ": train longer (epochs_simclr) or on more images (train_images)" if reasons else ""


reason = gate(accuracy, study.seeds)
charts.markdown(f"**Not judged:** {reason}." if reason else "Every rung has learnt what it needs to be judged.")

# %% [markdown]
# ## How a rung is compared with the next
#
# Raw CKA means little on its own: seeds of one rung disagree, which lowers it, and untrained networks agree, because they see the same images. For the step
# where labels stop attracting, the figure shows both: the ceilings of two seeds, and the floor of an untrained network.

# %%
raw = [("supcon", "supcon"), ("nscl", "nscl"), ("supcon", "nscl"), ("supcon", "untrained"), ("nscl", "untrained")]
charts.lines(
    evidence.curves(evidence.cka, raw, evidence.blocks()),
    y="value",
    y_title="CKA",
    title="One step of the ladder, with its ceilings and its floors",
)

# %% [markdown]
# Three formulae free the similarity of both. Of rungs $A$ and $B$ and untrained networks $U$ at one layer,
#
# $$c_{AB} = \operatorname*{mean}_{i \ne j} \mathrm{CKA}(A_i, B_j), \qquad \rho_{AB} = \frac{c_{AB}}{\sqrt{c_{AA}\, c_{BB}}}, \qquad
# \pi_{AB} = \frac{\rho_{AB} - \rho_{AU}\,\rho_{BU}}{\sqrt{(1 - \rho_{AU}^2)(1 - \rho_{BU}^2)}}, \qquad \theta_{AB} = \arccos \pi_{AB}.$$
#
# $i$ and $j$ are seeds: two networks of one seed began with the same weights and saw the same views, so that they are never compared. If the Gram matrix
# of a network is a part that its objective determines plus a part that its seed does, $\rho$ is the cosine of two objectives' parts. $\pi$ is that cosine after what
# untrained networks share has been projected out of both, and $\theta$ is the angle, which does not saturate near 1 as a cosine does.


# %%
def c(cka_of, a, b, seeds):
    """The mean of cka_of("A-i", "B-j") over all pairs of different seeds."""
    return np.mean([cka_of(f"{a}-{i}", f"{b}-{j}") for i, j in itertools.permutations(range(seeds), 2)])


def rho(cka_of, a, b, seeds):
    return c(cka_of, a, b, seeds) / np.sqrt(c(cka_of, a, a, seeds) * c(cka_of, b, b, seeds))


def theta(cka_of, a, b, seeds):
    """The angle of two objectives beyond untrained networks, in degrees."""
    ab, au, bu = (rho(cka_of, *pair, seeds) for pair in ((a, b), (a, "untrained"), (b, "untrained")))
    pi = (ab - au * bu) / np.sqrt((1 - au**2) * (1 - bu**2))
    return np.degrees(np.arccos(np.clip(pi, 0, 1)))


with np.errstate(invalid="ignore"):  # where seeds share nothing, the angle is not defined
    for layer, step in itertools.product(evidence.blocks(), STEPS):
        angle = theta(lambda a, b, l=layer: evidence.comparison.replicates(a, l, b, l)[0], *step, study.seeds)
        assert np.isclose(angle, evidence.angle(*step, layer)[0], equal_nan=True)

# %% [markdown]
# `evidence.angle` gives the same number once more without each fold of the images and without each seed index of *all* objectives; the two jackknives make its
# interval, by Student's t with as many degrees of freedom as there are seeds, less one.
#
# ## The ladder from end to end

# %%
whole = [(RUNGS[0], rung) for rung in RUNGS[1:]]
charts.lines(
    evidence.curves(evidence.angle, whole, evidence.blocks()),
    y="value",
    y_title="angle, degrees",
    domain=(0, 90),
    title="How far each rung is from cross-entropy",
)

# %%
end, middle = evidence.end("layer4"), evidence.blocks("layer2", "layer3")
walked = sum(evidence.angle(*step, end) for step in STEPS)
straight = evidence.angle(RUNGS[0], RUNGS[-1], end)
charts.markdown(
    f"At the end of stage 4 the three steps add up to {degrees(walked, study.seeds)}, and the two ends are "
    f"{degrees(straight, study.seeds)} apart."
)

# %% [markdown]
# *How to read it.* Angles add up where every step turns a network in the same direction; where the ends are closer than the sum, steps turn in
# directions of their own, or one takes back what another did.
#
# ## Where do the branches differ? Residual and post-residual layers
#
# A residual layer is what a block adds to its input, a post-residual layer what it arrives at. If rungs differed by the means alone, the angle would open in
# the first and stay small in the second.

# %%
kinds = [layer for layer in evidence.layers if layer.startswith("layer")]
curves = evidence.curves(evidence.angle, STEPS, kinds)
residual = curves.layer.str.endswith("residual")
charts.lines(
    curves.assign(kind=residual.map({False: "post-residual layers", True: "residual layers"})).sort_values("kind", kind="stable"),
    y="value",
    panel="kind",
    y_title="angle, degrees",
    domain=(0, 90),
    title="The same steps, in what blocks arrive at and in what they add",
)

# %%
refining = [block for block in middle if not block.endswith(".0")]  # a block that opens a stage has to build it
lines = []
for step in STEPS:
    outputs, branches = (
        np.mean([evidence.angle(*step, block + kind) for block in refining], axis=0) for kind in ("", ".residual")
    )
    lines.append(
        f"- {charts.name('-'.join(step))}: {degrees(branches, study.seeds)} apart in what refining blocks of stages 2 and 3 add, "
        f"{degrees(outputs, study.seeds)} in what they arrive at."
    )
charts.markdown("\n".join(lines))

# %% [markdown]
# ## Other families, between the two ends
#
# BYOL, Barlow Twins and VICReg draw two views of an image together as SimCLR does, without negatives; the prediction of rotations has no pairs at all. They are trained
# with the ladder's recipe, which is not their best. Two networks of each give a position, and four an interval.

# %%
few, ends = dataclasses.replace(evidence, seeds=family_seeds), (RUNGS[0], RUNGS[-1])
reasons = {family: weak(family, accuracy) for family in FAMILIES}
table = few.curves(few.pi, [*itertools.product(FAMILIES, ends)], [end]).dropna(subset="value")
table[["family", "with"]] = table.pair.str.split("-", expand=True).reindex(columns=[0, 1])
table["family"] = [charts.name(family) + " (not judged)" * bool(reasons[family]) for family in table.family]
if len(table):
    charts.show(
        charts.bars(
            table,
            "family",
            "value",
            "with",
            value_title="partial cosine at the end of stage 4",
            rules={"the two ends with each other": evidence.pi(*ends, end)[0]},
            title="Which end of the ladder is a family more similar to?",
        )
    )


# %%
def place(family, evidence, reason):
    """One sentence on a family's position between the two ends; reason: why it is not judged."""
    if reason:
        return f"- {charts.name(family)}: not judged; {reason}."
    end, seeds = evidence.end("layer4"), evidence.seeds
    labels, simclr = (evidence.pi(family, edge, end) for edge in (RUNGS[0], RUNGS[-1]))
    return (
        f"- {charts.name(family)}: its last block shares {claims.told(simclr, seeds)} of its similarity structure with SimCLR's, and "
        f"{claims.told(labels, seeds)} with cross-entropy's; the difference is {claims.told(simclr - labels, seeds)}."
    )


charts.markdown("\n".join(place(family, few, reasons[family]) for family in FAMILIES))

# %% [markdown]
# *How to read it.* 0: a family and an end of the ladder share only what untrained networks share. 1: they differ no more than their seeds do.
#
# The same from the first block to the last, before untrained networks are projected out ($\rho$): the untrained line is the floor of both axes.

# %%
rows = []
for objective, (position, block) in itertools.product((*FAMILIES, "untrained"), enumerate(evidence.blocks())):
    similarities = {f"with {charts.name(edge)}": few.rho(objective, edge, block)[0] for edge in ends}
    rows.append({"network": objective, "layer": block, "position": position} | similarities)
table = pd.DataFrame(rows).dropna()
if len(table):
    charts.show(
        charts.path(
            table,
            *table.columns[-2:],
            domain=(0, 1),
            title="Similarity to the two ends, relative to seeds, block by block",
        )
    )

# %% [markdown]
# *How to read it.* Above the dashed line a block is more similar to SimCLR's than to the classifier's. A line that runs along it and leaves it at its end says that
# the family's last blocks alone take a side.
#
# ## What was predicted
#
# Written down with thresholds before any of these networks was trained ([preregistration](../docs/preregistration.md)). A prediction is *confirmed* if every
# part's interval lies beyond its threshold, *refuted* if one lies wholly on the other side, otherwise *open*. Its placebo is built in: an untrained
# network in a rung's place has no partial cosine at all.

# %%
PREDICTIONS = {  # id -> what was predicted, why, and what it would mean for someone who designs an auxiliary task
    "6.1": (
        "objectives part most where labels stop attracting",
        "from SupCon to NSCL images of a class are no longer drawn together; the other steps only change how",
        "what a task attracts, not what it repels, decides whom it resembles",
    ),
    "6.2": (
        "negatives of one's own class hardly matter",
        "few of 255 candidates are of the same class",
        "labels spent on removing false negatives are wasted",
    ),
    "6.3": (
        "the middle is common to the whole ladder",
        "claim C2, under equal views, batches and epochs",
        "middle layers can be shared between tasks",
    ),
}
OUTCOMES = {
    claims.SUPPORTED: "confirmed",
    claims.CONTRADICTED: "refuted",
    claims.UNDECIDED: "open",
    claims.NOT_JUDGED: "not judged",
}


def judge(evidence, reason=""):
    """The predictions as claims; `reason` is that of `gate`."""
    end, middle, seeds = evidence.end("layer4"), evidence.blocks("layer2", "layer3"), evidence.seeds
    classifier, supcon, nscl, simclr = RUNGS
    labels_stop = evidence.angle(supcon, nscl, end)
    others = {step: evidence.angle(*step, end) for step in ((classifier, supcon), (nscl, simclr))}
    alike = evidence.pi(nscl, simclr, end)
    shared = np.mean([evidence.pi(classifier, simclr, block) for block in middle], axis=0)
    parts = {
        "6.1": tuple(
            claims.Part(
                f"wider than the step from {charts.name(a)} to {charts.name(b)}",
                labels_stop - angle,
                seeds,
                above=5.0,
                unit="degrees",
            )
            for (a, b), angle in others.items()
        ),
        "6.2": (claims.Part("partial cosine of NSCL and SimCLR at the end of stage 4", alike, seeds, above=0.8),),
        "6.3": (claims.Part("partial cosine of cross-entropy and SimCLR in stages 2 and 3", shared, seeds, above=0.5),),
    }
    first, last = (degrees(angle, seeds) for angle in others.values())
    sentences = {
        "6.1": f"Where labels stop attracting, the last block turns by {degrees(labels_stop, seeds)}; at the steps before and after, by {first} and {last}.",
        "6.2": f"With and without negatives of an image's own class (SimCLR, NSCL), last blocks share {claims.told(alike, seeds)} of their similarity structure.",
        "6.3": f"Beyond untrained networks, the two ends of the ladder share {claims.told(shared, seeds)} of their middle layers' similarity structure.",
    }
    return [claims.Claim(i, PREDICTIONS[i][0], parts[i], sentences[i], gate=reason) for i in PREDICTIONS]


answers = judge(evidence, reason)
read = ", ".join(f"{charts.name(o)} {accuracy.loc[o, 'linear probe']:.2f}" for o in (*RUNGS, "pixels", "untrained"))
study.keep(
    "06",
    [
        a.to_dict() | {"verdict": OUTCOMES[a.verdict], "why": PREDICTIONS[a.id][1], "meaning": PREDICTIONS[a.id][2]}
        for a in answers
    ],
    learnt=f"Linear probes at the pool read {read}.",
)
rows = [
    (a.id, *PREDICTIONS[a.id], a.sentence, f"**{OUTCOMES[a.verdict]}**" + f" ({a.reason})" * bool(a.reason))
    for a in answers
]
charts.markdown(
    pd.DataFrame(
        rows, columns=["", "prediction", "because", "if so, for a designer of auxiliary tasks", "effect", "outcome"]
    )
)

# %% [markdown]
# <details><summary>Every part of the predictions with its interval and threshold</summary>

# %%
parts = claims.parts(answers)
charts.forest(parts.assign(label=parts.label.map(OUTCOMES)), title="6.1 to 6.3, part by part")

# %% [markdown]
# </details>
#
# ## What we found, and what would change our mind

# %%
epochs = study.settings("supcon-0").epochs
counts = [f"{sum(OUTCOMES[a.verdict] == word for a in answers)} {word}" for word in OUTCOMES.values()]
charts.markdown(
    f"Of {len(answers)} predictions: {', '.join(counts)}. *This run:* {study.basis()}; {epochs} epoch{'s' * (epochs != 1)} for each rung."
)

# %% [markdown]
# These are networks of one size, trained for as long as SimCLR and with its recipe. Each objective's own best recipe (a lower temperature for SupCon, larger
# batches, wider heads, LARS) could move it, and longer training sharpens the last stage of all. The number of classes matters to 6.2: with ten
# classes a tenth of SimCLR's negatives are of the anchor's own class, with hundreds NSCL and SimCLR are nearly one loss. An ordering of the steps
# that turned out otherwise with equally well trained networks would change our mind about what decides whom a network resembles.
#
# Previous: [05 Is it real?](05_is_it_real.ipynb) · Next: [07 When it happens](07_when_it_happens.ipynb) · Overview: [00](00_overview.ipynb)
#
# **References.** Khosla et al. (2020), *Supervised contrastive learning*. Luthra et al. (2025), *Self-supervised contrastive learning is
# approximately supervised contrastive learning*. Chen et al. (2020), *A simple framework for contrastive learning of visual representations*. Grill
# et al. (2020), *Bootstrap your own latent*. Zbontar et al. (2021), *Barlow Twins*. Bardes et al. (2022), *VICReg*. Gidaris et al. (2018),
# *Unsupervised representation learning by predicting image rotations*. Grigg et al. (2021), arXiv 2110.00528.

# %%
charts.markdown(study.protocol(networks))

# %% tags=["nbval-ignore-output"]
charts.markdown(study.colophon())
