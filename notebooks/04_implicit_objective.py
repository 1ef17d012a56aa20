# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does each objective fit the other's, without being asked?
#
# Claim **C7**: SimCLR implicitly fits the supervised objective in its intermediate layers; the reverse is not true. And, on
# the embedded images whose every factor is known: which factors does each layer keep, and which does it give up?
#
# Previous: [03 Divergence](03_divergence.ipynb) · Overview: [00](00_overview.ipynb)

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
import math

import pandas as pd

from repsim import charts, claims, figures, losses, publish
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
evidence, probe, contrastive = study.evidence(), study.probe([*study.core, "pixels"]), study.contrastive(study.core)
c7 = study.claim(claims.c7(evidence, probe, contrastive))
figures.verdicts([c7], publish.published())

# %%
figures.learnt(probe, len(study.summary.classes))

# %%
figures.forest([c7], title="C7: what the verdict rests on")

# %% [markdown]
# ## Both objectives at every layer
#
# The question is asked directly: freeze the network, and fit *each objective* on top of *each layer*. For the supervised
# objective a linear classifier, for SimCLR's a linear projection trained with NT-Xent on two views. What remains of NT-Xent on test
# images, and how often the classifier is right there, say how much of that objective a layer already serves.
#
# As a check that the two objectives are measured on the right scale: embeddings that are all equal give NT-Xent its
# uninformed value, $\log(2n - 1)$.

# %%
import torch

same = torch.ones(8, 4)
assert math.isclose(losses.nt_xent(same, same).item(), math.log(15), rel_tol=1e-6)
charts.lines(
    contrastive,
    y="loss",
    panel="kind",
    y_title="NT-Xent of a fitted projection, nats",
    title="SimCLR's objective, fitted at every layer (lower is better)",
)

# %%
charts.lines(
    probe[probe.network != "pixels"],
    y="accuracy",
    panel="kind",
    y_title="test accuracy",
    title="The supervised objective, fitted at every layer (higher is better)",
)

# %% [markdown]
# *How to read it.* The untrained network is the baseline of both figures: what a random layer already offers to a linear
# reader. C7 is judged by growth from the first block to the end of stage 3: it expects SimCLR's curve to climb there in the second
# figure, and SL's not to sink there in the first.

# %%
charts.markdown(f"Embeddings that are all equal would give {contrastive.chance.iloc[0]:.2f} nats in the first figure.")

# %% [markdown]
#
# ## Classes against views, in one figure
#
# Each layer is a point: how much of its geometry is about classes (CKA with labels), and how much survives augmentation (CKA
# between two views). Read a line from the stem to the pool.

# %%
comparison = study.comparison()
a, b = claims.VIEWS
rows = []
for name in [n for n in study.core if n.endswith("-0")]:
    classes = comparison.curve(name, "labels").set_index("layer_a").cka
    views = comparison.curve(f"{name}@{a}", f"{name}@{b}").set_index("layer_a").cka
    for position, layer in enumerate(evidence.layers):
        rows.append(
            {
                "network": name,
                "layer": layer,
                "CKA with the classes": classes[layer],
                "CKA between two views": views[layer],
                "position": position,
            }
        )
plane = pd.DataFrame(rows)
plane = plane[~plane.layer.str.endswith(".residual")]
charts.path(
    plane, "CKA with the classes", "CKA between two views", title="From stem to pool: classes against view invariance"
)

# %%
figures.describe(c7)

# %% [markdown]
# ## Which factors does each layer keep?
#
# The embedded images are drawn from known factors. A ridge regression reads each of them from each layer's pooled features:
# $R^2$ for continuous factors (angles as sine and cosine), accuracy for categories. No natural-image set can show this.

# %%
factors = study.factors(["untrained-0", "sl-0", "simclr-0"])
if factors is None:
    charts.show(charts.markdown("These images come without known factors; run the embedded set to see this figure."))
else:
    charts.show(
        charts.lines(
            factors,
            y="score",
            panel="factor",
            kind="post-residual",
            title="How well each factor can be read from each layer",
        )
    )

# %% [markdown]
# *How to read it.* One panel per factor. One would expect SL to lose what its classes do not need, and SimCLR what its views vary
# (position and scale by the crop, colours by the jitter); the curves show whether they do. A factor that the untrained network
# already offers was not learnt.
#
# ## What we found, and what would change our mind
#
# The verdict above holds for this run. "Grows" is measured here against a threshold of 0.05 in CKA or accuracy, or 0.1 nats,
# between the first block and the end of the third stage; the forest plot shows how far each number is from it. A deeper probe
# or a longer fit reads more out of a layer than a linear one does, and training longer on more images is what separates
# SimCLR's middle layers from an untrained network's: a "not supported" of a small run is a statement about that run.
#
# Next: [05 Is it real?](05_is_it_real.ipynb) · Overview: [00](00_overview.ipynb)
#
# **References.** Grigg et al. (2021), arXiv 2110.00528; Chen et al. (2020); Alain and Bengio (2017).

# %% [markdown]
# ---
# Versions, parameters and time of this execution:

# %%
charts.markdown(study.colophon())
