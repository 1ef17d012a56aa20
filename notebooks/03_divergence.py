# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where do they diverge, and towards what?
#
# Claims **C4** (representations diverge rapidly in the last few layers), **C5** (because the last layers fit their own
# objective: classes, in SL) and **C6** (invariance to augmentation, in SimCLR).
#
# Previous: [02 Layerwise comparison](02_layerwise_comparison.ipynb) · Next: [04 Implicit objective](04_implicit_objective.ipynb)
# · Overview: [00](00_overview.ipynb)

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
artefacts = None  # str: a folder of published results to draw instead, such as "../results/cifar10-cpu"; None trains

# %%
import pandas as pd

from repsim import charts, claims, figures, publish
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
charts.markdown(f"**This run:** {study.basis()}.")

# %% [markdown]
# ## The answer of this run

# %%
evidence, probe = study.evidence(), study.probe([*study.core, "pixels"])
c4, c5, c6 = (study.claim(c) for c in (claims.c4(evidence), claims.c5(evidence, probe), claims.c6(evidence)))
figures.verdicts([c4, c5, c6], publish.published())

# %%
figures.learnt(probe, len(study.summary.classes))

# %%
figures.forest([c4, c5, c6], title="C4 to C6: what each verdict rests on")

# %% [markdown]
# *How to read it.* As in [02](02_layerwise_comparison.ipynb): a row is one network or pair, its interval has to lie within the
# shaded side for the claim to hold.
#
# ## C4: the last layers
#
# The curve across objectives, divided by what two seeds of one objective share (1: the objectives differ no more than seeds
# do). The floor: an untrained network in SimCLR's place, under the same ceilings.

# %%
comparison = study.comparison()
rows = []
for pair in claims.pairs(study.seeds):
    one, other = pair.networks

    def score(cell, layer, with_, pair=pair):
        (a, b), (a2, b2) = pair.networks, pair.siblings
        return claims.relative(cell(a, layer, with_, layer), cell(a, layer, a2, layer), cell(b, layer, b2, layer))

    for with_ in (other, f"untrained-{other.rpartition('-')[2]}"):
        for layer in [l for l in comparison.layers("sl-0") if l in comparison.layers("simclr-0")]:
            value, low, high = comparison.interval(lambda c, l=layer, w=with_: score(c, l, w))
            rows.append({"a": one, "b": with_, "layer": layer, "cka": value, "low": low, "high": high})
normalised = pd.DataFrame(rows)
charts.lines(
    normalised,
    panel="kind",
    domain=(0, 1.25),
    y_title="normalised CKA",
    title="SL against SimCLR, relative to seed ceilings",
)

# %%
figures.describe(c4)

# %% [markdown]
# ## C5: towards the classes
#
# CKA of a layer with the one-hot labels asks how far "alike" has come to mean "of one class". A linear probe asks whether the
# class can be read out at all. Untrained networks are the baseline of both figures; what a probe reads of the raw pixels stands
# at the top of this notebook.

# %%
labels = pd.concat([comparison.curve(name, "labels") for name in study.core])
charts.lines(labels, kind="post-residual", title="CKA with the classes")

# %%
charts.lines(
    probe[probe.network != "pixels"],
    y="accuracy",
    kind="post-residual",
    y_title="test accuracy",
    title="Linear probe at every layer",
)

# %%
figures.describe(c5)

# %% [markdown]
# *How to read it.* One line per network, so the distance between lines of one colour is the spread of seeds. A network can
# hold the class for a linear reader long before its whole geometry is about classes: compare the two figures.
#
# ## C6: towards invariance
#
# Two random views of each image (SimCLR's augmentations) are given to every network. CKA between the representations of view
# a and view b asks how far "alike" ignores the augmentation; between a view and the clean image, how far one augmentation moves it.

# %%
a, b = claims.VIEWS
views = pd.concat([comparison.curve(f"{name}@{a}", f"{name}@{b}") for name in study.core])
charts.lines(views, panel="kind", title="CKA between two augmented views")

# %%
clean = pd.concat([comparison.curve(name, f"{name}@{a}") for name in study.core])
charts.lines(clean, panel="kind", title="CKA between a view and the clean image")

# %% [markdown]
# View-CKA is not invariance by itself: a layer that knows only the class has a high view-CKA too. Retrieval tells the two
# apart: is the other view of *this* image the nearest of all test images' views?

# %%
retrieval = study.retrieval(study.core).rename(columns={"accuracy@1": "share"})
charts.lines(
    retrieval,
    y="share",
    kind="post-residual",
    y_title="retrieved at rank 1",
    title="Finding an image's other view among all",
)

# %%
figures.describe(c6)

# %% [markdown]
# ## What we found, and what would change our mind
#
# The verdicts above hold for this run. SL here sees weaker augmentations than SimCLR does, so C6 might speak of augmentations
# rather than of objectives: [05](05_is_it_real.ipynb) puts SL trained on SimCLR's views in SL's place. Longer training may sharpen the
# last layers of both, so a C4 that is not supported or undecided speaks of this scale.
#
# Next: [04 Implicit objective](04_implicit_objective.ipynb)
#
# **References.** Kornblith et al. (2019); Chen et al. (2020); Alain and Bengio (2017), *Understanding intermediate layers using
# linear classifier probes*; Grigg et al. (2021), arXiv 2110.00528.

# %% [markdown]
# ---
# Versions, parameters and time of this execution:

# %%
charts.markdown(study.colophon())
