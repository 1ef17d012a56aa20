# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Do both objectives use the network in the same way?
#
# Claims **C1** (SimCLR uses the residual network as supervised learning does), **C2** (intermediate representations are
# similar) and **C3** (reached by dissimilar means), judged on the networks of this run. Each layer of each network is
# compared with each layer of each other by CKA, in one pass over the test images.
#
# Previous: [01 Training](01_training.ipynb) · Next: [03 Divergence](03_divergence.ipynb) · Overview: [00](00_overview.ipynb)

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
import numpy as np
import pandas as pd
import torch

from repsim import charts, claims, figures, publish, rng
from repsim.cka import cka
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
evidence = study.evidence()
c1, c2, c3 = (study.claim(judge(evidence)) for judge in (claims.c1, claims.c2, claims.c3))
figures.verdicts([c1, c2, c3], publish.published())

# %%
figures.learnt(study.probe([*study.core, "pixels"]), len(study.summary.classes))

# %%
figures.forest([c1, c2, c3], title="C1 to C3: what each verdict rests on")

# %% [markdown]
# *How to read it.* One row per network or pair of networks and part of a claim: the estimate, its 95 % interval over test
# images, and the side of the threshold that the claim asserts (shaded). A claim is supported when all its rows lie wholly
# on that side, not supported when one lies wholly on the other, undecided otherwise. The thresholds were set beforehand, in
# `repsim/claims.py`, with their reasons. The sections below show where the numbers come from.

# %% [markdown]
# ## The measure
#
# Two layers are similar if they say the same of *which images are alike*. For centred activations $X$ $(n \times p)$ and $Y$
# $(n \times q)$ of the same $n$ images, $K = XX^\top$ and $L = YY^\top$ are the images' Gram matrices, and
#
# $$\mathrm{CKA}(K, L) = \frac{\mathrm{HSIC}(K, L)}{\sqrt{\mathrm{HSIC}(K, K)\,\mathrm{HSIC}(L, L)}}.$$
#
# The plain estimate of HSIC is biased upwards, badly so when features outnumber images: of pure noise it says "similar". We
# use the unbiased one (Song et al. 2012), with $\tilde K$ the Gram matrix without its diagonal,
#
# $$\mathrm{HSIC}_1 = \frac{1}{n(n-3)} \left[ \mathrm{tr}(\tilde K \tilde L)
# + \frac{\mathbf{1}^\top \tilde K \mathbf{1}\; \mathbf{1}^\top \tilde L \mathbf{1}}{(n-1)(n-2)}
# - \frac{2}{n-2} \mathbf{1}^\top \tilde K \tilde L \mathbf{1} \right],$$
#
# averaged over batches before the ratio is taken (Nguyen et al. 2021). C2 to C4 use the *normalised* score
# $\mathrm{CKA}(a, b) / \sqrt{\mathrm{CKA}(a, a')\,\mathrm{CKA}(b, b')}$ with $a', b'$ other seeds of the same objectives: 1 says as alike
# as two seeds. *Middle* layers are those of stages 2 and 3. Two *grids correlate* by Pearson's coefficient over all pairs of
# different layers. Written out, it agrees with the function used below,
# and on independent noise it is near zero where the biased one is not:


# %%
def hsic1(k, l):
    n, k, l = len(k), k - k.diag().diag(), l - l.diag().diag()
    terms = (k @ l).trace() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()
    return terms / (n * (n - 3))


x, y = (torch.randn(64, 2048, dtype=torch.float64, generator=rng.generator("noise", i)) for i in (0, 1))
k, l = x @ x.T, y @ y.T
assert np.isclose(cka(x, y), hsic1(k, l) / (hsic1(k, k) * hsic1(l, l)).sqrt())
print(
    f"64 images, 2,048 independent noise features: unbiased {cka(x, y):.2f}, biased {cka(x, y, estimator='biased'):.2f}"
)

# %% [markdown]
# ## The baseline: networks that have learnt nothing
#
# Two untrained networks of different initial weights. Whatever similarity they show comes from the architecture and the
# images, not from learning.

# %%
comparison = study.comparison()
charts.heatmap(
    pd.concat([comparison.table("untrained-0"), comparison.table("untrained-0", f"untrained-{study.seeds - 1}")]),
    title="Untrained: a network with itself, and with another",
)

# %% [markdown]
# *How to read a heatmap.* Rows and columns are layers from the input (top, left) to the output; lines separate the network's
# stages. Circles mark post-residual layers, diamonds residual ones. Yellow: the two layers agree on which images are alike.
#
# ## C1: the grid of a network with itself

# %%
charts.heatmap(
    pd.concat([comparison.table("sl-0"), comparison.table("simclr-0")]),
    title="Each network with itself: SL and SimCLR",
)

# %%
figures.describe(c1)

# %% [markdown]
# Post-residual layers pass their input on, so they may form blocks per stage; a residual layer holds only what its block adds.
# The claim is that both objectives show this pattern: within a stage post-residual layers are more alike than residual
# ones, and the two grids correlate.
#
# ## C2 and C3: layer by layer across objectives

# %%
charts.heatmap(
    comparison.table("sl-0", f"simclr-{study.seeds - 1}"), title="SL (rows) against SimCLR (columns)", linked=True
)

# %% [markdown]
# The diagonal of that map, layer against same layer, is the curve that C2 and C3 speak of. It means little alone: two seeds of
# *one* objective differ too, and two untrained networks agree by themselves. So each curve is drawn beside its ceilings
# (two seeds) and its floor (a trained network with an untrained one); whether it lies between them is what C2 asks. With two seeds or
# more, networks compared never share their initial weights.


# %%
def pairs(a, b):
    return (
        [(f"{a}-{i}", f"{b}-{(i + 1) % study.seeds}") for i in range(study.seeds)]
        if a != b
        else [(f"{a}-0", f"{a}-{study.seeds - 1}")]
    )


kinds = [("sl", "simclr"), ("sl", "sl"), ("simclr", "simclr"), ("sl", "untrained"), ("simclr", "untrained")]
curves = pd.concat([comparison.curve(*pair) for a, b in kinds for pair in pairs(a, b)])
charts.lines(
    curves, panel="kind", title="CKA of same-named layers: across objectives, seeds, and with untrained networks"
)

# %% [markdown]
# *How to read it.* Left, post-residual layers: what the network represents (C2). Right, residual layers: what each block adds
# (C3). Bands are 95 % intervals over images. A curve across objectives that follows its ceilings says "as similar as two
# seeds"; one that sinks to the floor says "no more alike than either is to random weights".

# %%
charts.show(figures.describe(c2), figures.describe(c3))

# %% [markdown]
# ## What we found, and what would change our mind
#
# The verdicts above hold for this run's networks, images and scale. C3 is the one to doubt first: residual layers of two
# seeds differ as well, so only the *normalised* curve (across objectives over the geometric mean of the ceilings) can carry
# it. A third objective, longer training or stronger augmentations for SL can each move these curves;
# [03](03_divergence.ipynb) looks at the last layers, and asks whether the objectives pull apart there.
#
# Next: [03 Divergence](03_divergence.ipynb)
#
# **References.** Kornblith, Norouzi, Lee, Hinton (2019), *Similarity of neural network representations revisited*. Song et al.
# (2012), *Feature selection via dependence maximization*. Nguyen, Raghu, Kornblith (2021), *Do wide and deep networks learn
# the same things?* Grigg et al. (2021), arXiv 2110.00528.

# %% [markdown]
# ---
# Versions, parameters and time of this execution:

# %%
charts.markdown(study.colophon())
