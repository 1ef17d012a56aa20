# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From description to design: what should an auxiliary task ask for, and where?
#
# The paper's abstract ends on design: *"Our work particularly highlights the importance of the learned intermediate representations, and
# raises critical questions for auxiliary task design"* (Grigg et al. 2021). If SimCLR fits the classes in its middle layers and its
# own objective in the last ones, three things should follow, and each is a prediction that can fail:
#
# - **(a) Cut.** Without its last stage SimCLR should serve other tasks better; cut it where class information peaks.
# - **(b) Place.** A supervised auxiliary task belongs in SimCLR's middle; the reverse, NT-Xent in SL's middle, does not fit.
# - **(c) Pull.** A label-free pull of SimCLR's embeddings to the corners of a simplex should narrow the distance to SL.
#
# The predictions, with their controls and thresholds, stand in `repsim/auxiliary.py`. Those of (b) and (c) were written before any of
# their networks was trained. Those of (a) were not blind: the fine-tuning's learning rate and steps were chosen on seed 0 of the tiny
# run, whose probes at every depth were seen in those trials, so there only seed 1 and other studies are a test. Each is judged as
# the claims are: on numbers with 95 % intervals, for every seed.
#
# As it stands here this notebook draws the published run on CIFAR-10 from its tables. `artefacts = None` in the next cell trains the
# networks that its settings ask for instead, a quarter of an hour on two cores if none is there yet.
#
# Previous: [07 When it happens](07_when_it_happens.ipynb) · Next: [09 Your own models](09_your_own_models.ipynb) ·
# Overview: [00](00_overview.ipynb)

# %% tags=["parameters"]
data = "shapes"  # str: "shapes" (embedded), a torchvision set such as "cifar10", or a folder with train/ and test/
train_images = 1024  # int: images trained on; None for all
test_images = 512  # int: images compared and tested on; None for all
image_size = None  # int: pixels a side that images are resized to; None leaves them as they are
architecture = "resnet18"  # str: resnet18, resnet34 or resnet50
width = 8  # int: channels of the first stage; 64 is the standard network
epochs_sl = 5  # int: epochs of supervised training
epochs_simclr = 8  # int: epochs of SimCLR
batch_size = 128  # int: images in a training batch
seeds = 2  # int: networks per objective
controls = ["sl_simclr_views", "random_labels"]  # list: further objectives to train; 05 needs these two
recipe = {}  # dict: other training settings, such as {"simclr": {"learning_rate": 0.2}}
device = "auto"  # str: cpu, cuda, mps, or auto
out = "../runs/tiny"  # str: where networks, tables and verdicts are kept
artefacts = (
    "../results/cifar10-beyond"  # str: published results to draw, with their own settings for all above; None trains
)

# %%
import pandas as pd

from repsim import auxiliary, charts, figures, publish
from repsim.study import Study

study = Study(
    data=data,
    train_images=train_images,
    test_images=test_images,
    image_size=image_size,
    architecture=architecture,
    width=width,
    epochs_sl=epochs_sl,
    epochs_simclr=epochs_simclr,
    batch_size=batch_size,
    seeds=seeds,
    controls=controls,
    recipe=recipe,
    device=device,
    out=out,
    artefacts=artefacts,
)
names = [f"{objective}-{seed}" for objective in auxiliary.objectives(study) for seed in range(study.seeds)]
charts.markdown(f"**This run:** {study.basis()}; networks of this chapter: {', '.join(names)}.")

# %% [markdown]
# ## The answer of this run

# %%
found = {prediction.id: prediction for prediction in auxiliary.make(study)}
tables = auxiliary.tables(study)
figures.predictions(list(found.values()))

# %%
shown = [*auxiliary.BESIDE[1:], *tables.objectives]
known = pd.concat(
    auxiliary.curves(tables.own, [f"{o}-0" for o in shown], tables.depths, "own", measure).assign(measure=said)
    for measure, said in (("probe", "class: linear-probe accuracy"), ("retrieval", "image: other view found at rank 1"))
)
lines = known.drop(columns=["low", "high"]).rename(columns={"value": "share"})  # the intervals of differences are below
charts.lines(lines, y="share", panel="measure", title="What the depths know of the class and of the image, seed 0")

# %% [markdown]
# *How to read it.* Left what a linear probe reads of the class, right how often an image's other view is its nearest. An auxiliary
# task that is worth having lifts one without lowering the other. One seed, no intervals: those of the differences that count, at
# the pool and the end of stage 3 and for every seed, are in the figures below.

# %%
chance = 1 / len(study.summary.classes)
pool = known[(known.layer == "pool") & known.measure.str.startswith("class")].set_index("network").value
charts.markdown(
    f"Read from the pool, chance being {chance:.2f}: " + ", ".join(f"{n} {v:.2f}" for n, v in pool.items()) + ". "
    "The nearer SimCLR is to chance, the less its depth of most class information means."
)

# %% [markdown]
# ## (a) Where should one cut?
#
# **Predictions.** If the last stage serves SimCLR's own objective, (8.1) class information peaks before it, (8.2) other tasks are
# read better at the end of stage 3 than at the pool, (8.4) the peak of class information says where to cut, and (8.5)
# after a short fine-tuning the last stage is not missed. **Controls:** the same cuts of SL, whose last stage is claimed to fit the
# classes (8.3), and the same layers with random weights (grey).
#
# The second set of images is embedded in repsim and drawn with another seed, so that it is there offline whatever the study's own
# images are: its tasks are the background's *texture*, which SimCLR's augmentations keep, and the shape's *colour*, which they
# change (and the *shape*, where the study has other images). A network cut at depth $d$ is all layers up to $d$, the mean over
# space, and a fresh linear classifier: fitted alone (probe), or trained with the layers for a few dozen steps on a few hundred images
# (fine-tuned). Trained from the random weights of the same seed it is the control "from scratch".

# %%
cut = ["untrained-0", "sl-0", "simclr-0"]
curves = [
    auxiliary.curves(tables.transfer, cut, tables.depths, task, "probe").assign(task=f"{task}, probe")
    for task in tables.tasks
]
task = tables.tasks[0]
tuned = auxiliary.curves(tables.finetuned, cut, tables.depths, task, "fine-tuned")
curves += [tuned.assign(task=f"{task}, fine-tuned on {auxiliary.LABELLED} images")]
charts.lines(
    pd.concat(curves).rename(columns={"value": "accuracy"}),
    y="accuracy",
    panel="task",
    title="The second set, from every depth, seed 0",
)

# %%
figures.forest(
    [found[i] for i in ("8.1", "8.2", "8.3", "8.5")],
    title="Cutting: what the predictions rest on",
    marks=figures.PREDICTED,
)

# %% [markdown]
# *How to read it.* Compare each line's end of stage 3 with its pool: a fall says that cutting helps. The grey line is what the
# architecture gives with no training; a coloured line below it says that training has cost something.

# %%
for i in ("8.1", "8.2", "8.3", "8.4", "8.5"):
    charts.show(figures.describe(found[i], figures.PREDICTED))


# %%
def at_pool(cells, objective, measure):
    names = [f"{objective}-{seed}" for seed in range(study.seeds)]
    return ", ".join(f"{v:.2f}" for v in auxiliary.curves(cells, names, ["pool"], task, measure).value)


peaks = ", ".join(f"{layer} in {name}" for name, layer in tables.peaks.items())
tuned = "; ".join(
    f"{said} {at_pool(tables.finetuned, o, 'fine-tuned')}"
    for o, said in zip(["untrained", "sl", "simclr"], ["from scratch", "SL", "SimCLR"])
)
charts.markdown(
    f"On validation images a probe of the class peaks at {peaks}. Fine-tuned whole, networks are right about the {task} of these "
    f"shares of the test images, chance being {auxiliary.chance(task):.2f}: {tuned}; a probe of SimCLR's pool with nothing tuned of "
    f"{at_pool(tables.transfer, 'simclr', 'probe')}. Where tuning a whole network ends near chance, 8.5 compares a cut with a "
    "training that failed, and says nothing of the last stage."
)

# %% [markdown]
# ## (b) Where does an auxiliary objective belong?
#
# The loss is a sum of two, with the auxiliary one read off an intermediate layer, averaged over space, through a module
# that is dropped after training:
#
# $$\mathcal{L} = \mathcal{L}_{\text{top}} + \mathcal{L}_{\text{aux}}\big(h(\overline{x}_{\text{stage 3}})\big).$$
#
# `simclr_sl_middle` has NT-Xent at the top and cross-entropy of a linear classifier in the middle; `sl_simclr_middle` has
# cross-entropy at the top, on the first of the two views, and NT-Xent of a projection head in the middle. **Predictions.** As C7
# says that SimCLR fits the classes there by itself and SL does not fit invariance, the first should add class information
# and cost no invariance (8.6) and come nearer to SL (8.9), and the second should cost class information (8.8). **Controls:**
# SimCLR and SL on SimCLR's views, of the same initial weights, batches and views; and cross-entropy at the pool (8.7), where the
# study's `controls` name `simclr_sl_top`.

# %%
other = study.seeds - 1
near = pd.concat(
    tables.comparison.curve("sl-0", f"{o}-{other}").assign(network=f"{o}-{other}").drop(columns=["a", "b"])
    for o in shown
)
near = near.rename(columns={"layer_a": "layer"}).drop(columns=["low", "high"])
charts.lines(near, title="CKA with SL of another seed, at every depth")

# %%
figures.forest(
    [found[i] for i in ("8.6", "8.7", "8.8", "8.9")],
    title="Placing: what the predictions rest on",
    marks=figures.PREDICTED,
)

# %% [markdown]
# *How to read it.* Each row is a difference of two networks on the same test images, and of one seed. An empty panel is left out: a
# control that was not trained in this run leaves its prediction open.

# %%
for i in ("8.6", "8.7", "8.8", "8.9"):
    charts.show(figures.describe(found[i], figures.PREDICTED))

# %% [markdown]
# **Which auxiliary task keeps what of an image?** The factors of the embedded images are known, and ridge regression asks each
# layer for them ($R^2$, or accuracy for the texture). The question is what class labels in the middle, or a simplex, make a
# network forget. Where a study's own images have no known factors, the published run on the embedded ones is shown.

# %%
embedded = publish.factored(study)
asked = [f"{o}-0" for o in (*auxiliary.BESIDE[1:], *auxiliary.objectives(embedded))]
kept = ["x", "y", "scale", "rotation", "foreground_hue", "texture"]
rows = embedded.factors(asked)
rows = rows[rows.factor.isin(kept) & rows.layer.isin(tables.depths)]
lines = rows.drop(columns=["low", "high"])
charts.show(
    charts.markdown(f"**Here:** {embedded.basis()}."),
    charts.lines(
        lines, y="score", panel="factor", title="What each layer knows of position, scale, rotation, colour and texture"
    ),
)

# %%
at = rows[rows.layer == "pool"].pivot(index="factor", columns="network", values="score").loc[kept]
read = at[at.max(axis=1) > 0.05]  # the others nobody reads
said = [
    f"*{f}* is kept most by {v.idxmax()} ({v.max():.2f}) and least by {v.idxmin()} ({v.min():.2f})"
    for f, v in read.iterrows()
]
said += [f"*{f}* is read from none" for f in kept if f not in read.index]
charts.markdown("At the pool: " + "; ".join(said) + ".")

# %% [markdown]
# ## (c) A pull to a simplex, without labels
#
# Supervised training ends in neural collapse: class means at the corners of a simplex (Papyan et al. 2020). `simclr_simplex`
# adds to NT-Xent a *swapped prediction* (SwAV, Caron et al. 2020) with fixed prototypes $c_k$ that form a simplex, any two with
# the cosine $-1 / (K - 1)$. Assignments $q$ are balanced over the batch by Sinkhorn's iterations, so that all corners are
# used, and each view predicts the other's:
#
# $$\mathcal{L} = \mathcal{L}_{\text{NT-Xent}} - \tfrac{1}{2} \sum_k \big(q^b_k \log p^a_k + q^a_k \log p^b_k\big), \qquad
# p_k \propto \exp(z \cdot c_k / 0.1).$$
#
# **Predictions.** The last stage should diverge less from SL (8.10) and the classes should be easier to read (8.11). **Control:**
# random directions in the place of the simplex (8.12), where the study's `controls` name `simclr_random_prototypes`.

# %%
rows = near[near.network.str.startswith(("sl-", "simclr-", "simclr_simplex", "simclr_random"))]
charts.lines(rows, title="CKA with SL of another seed: SimCLR, and SimCLR with prototypes")

# %%
figures.forest(
    [found[i] for i in ("8.10", "8.11", "8.12")], title="Pulling: what the predictions rest on", marks=figures.PREDICTED
)

# %% [markdown]
# *How to read it.* SimCLR and SimCLR with prototypes share initial weights, batches and views; the line of SL, another seed of the
# target itself, is the ceiling. Where they end tells whether the pull brought the network nearer to SL; the accuracy tells whether that
# helped.

# %%
for i in ("8.10", "8.11", "8.12"):
    charts.show(figures.describe(found[i], figures.PREDICTED))

# %% [markdown]
# ## What we found, and what would change our mind
#
# A prediction that is refuted here is refuted for this run: its networks, its images, its few epochs. Short training favours
# layers near the input, so a cut that helps here may not help a network trained to the end; a control that was not trained
# leaves its prediction open, as does an interval that holds the threshold. The auxiliary losses have the weight 1, which was not
# tuned. Of about five recipes of fine-tuning (SGD at 0.02 to 0.2, 40 or 64 steps) those with small rates learnt next to nothing
# from the fresh classifier; the rate kept is 0.2, with 48 steps, and another one may change 8.5. The second set of images is simple.
#
# To train the two optional controls: `-p controls "[sl_simclr_views, random_labels, simclr_sl_top, simclr_random_prototypes]"`.
#
# Next: [09 Your own models](09_your_own_models.ipynb) · Overview: [00](00_overview.ipynb)
#
# **References.** Grigg et al. (2021), arXiv 2110.00528. Bordes et al. (2022), *Guillotine regularization: why removing layers is
# needed to improve generalization in self-supervised learning*. Caron et al. (2020), *Unsupervised learning of visual features by
# contrasting cluster assignments* (SwAV). Cuturi (2013), *Sinkhorn distances*. Papyan, Han, Donoho (2020), *Prevalence of neural
# collapse*. Lee et al. (2015), *Deeply-supervised nets*. Yosinski et al. (2014), *How transferable are features in deep neural
# networks?*

# %% [markdown]
# ---
# How the numbers are made, and versions, parameters and time of this execution:

# %%
charts.show(charts.markdown(study.protocol(auxiliary.names(study))), charts.markdown(study.colophon()))
