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
# Two layers are similar if they agree on which images resemble each other. Layer by layer, this chapter sets a network trained with
# labels (SL) against one trained without (SimCLR), beside the ceiling of two seeds and the floor of untrained networks.

# %% tags=["parameters"]
profile = "results/quick"  # str: published results to draw, a profile (quick, gpu, ...) or a YAML file; paths count from the checkout
changes = {}  # dict: any field of repsim.study.Study, such as {"data": "~/my-images", "width": 32}

# %%
import itertools

import numpy as np
import pandas as pd
import torch

from repsim import charts, cka, claims, store
from repsim.study import Study

study = Study.open(profile, **changes)
evidence = study.evidence()
pairs = [("sl", "sl"), ("simclr", "simclr"), ("sl", "simclr"), ("sl", "untrained")]
charts.lines(evidence.curves(evidence.cka, pairs, evidence.blocks()), y="value", y_title="CKA", title="Similarity of same-named layers")

# %%
answers = study.judge("C1", "C2", "C3")
charts.markdown(study.answer(answers))

# %% [markdown]
# *How to read the figure.* Each line is a pair of objectives, averaged over all pairs of different seeds; the band is a 95 % interval
# over seeds and images. A line that follows the ceilings says that objectives differ no more than seeds do; one that sinks to the floor,
# that they share only what untrained networks share. Two networks that are compared never have the same initial weights.
#
# **Terms.** *Post-residual* layers are the outputs of blocks, after the shortcut has been added; *residual* layers are what a block adds. A
# *seed ceiling* is the similarity of two networks that differ in nothing but their seed. SL is supervised learning with cross-entropy.
#
# ## The measure
#
# For centred activations $X$ $(n \times p)$ and $Y$ $(n \times q)$ of the same $n$ images, $K = XX^\top$ and $L = YY^\top$ are the
# images' Gram matrices, and centred kernel alignment (Kornblith et al. 2019) is
#
# $$\mathrm{CKA}(K, L) = \frac{\mathrm{HSIC}(K, L)}{\sqrt{\mathrm{HSIC}(K, K)\,\mathrm{HSIC}(L, L)}}.$$
#
# The plain estimate of HSIC is biased upwards where features outnumber images: it calls even pure noise similar. The unbiased
# estimate (Song et al. 2012), with $\tilde K$ the Gram matrix without its diagonal, is
#
# $$\mathrm{HSIC}_1 = \frac{1}{n(n-3)} \left[ \mathrm{tr}(\tilde K \tilde L)
# + \frac{\mathbf{1}^\top \tilde K \mathbf{1}\; \mathbf{1}^\top \tilde L \mathbf{1}}{(n-1)(n-2)}
# - \frac{2}{n-2} \mathbf{1}^\top \tilde K \tilde L \mathbf{1} \right].$$
#
# It is averaged over batches, and the ratio is taken last (Nguyen et al. 2021). The dozen lines below compute it; they agree with the
# function that the study uses.

# %%
def hsic1(k, l):
    n, k, l = len(k), k - k.diag().diag(), l - l.diag().diag()
    terms = (k @ l).trace() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()
    return terms / (n * (n - 3))


def minibatch_cka(x, y, size):
    grams = [(a @ a.T, b @ b.T) for a, b in zip(x.split(size), y.split(size))]
    kl, kk, ll = (sum(hsic1(g[i], g[j]) for g in grams) for i, j in ((0, 1), (0, 0), (1, 1)))
    return kl / (kk * ll).sqrt()


x, y = (torch.randn(128, 2048, dtype=torch.float64, generator=store.generator("noise", i)) for i in (0, 1))
y = y + 0.5 * x
compared = cka.compare(features={"x": x, "y": y}, batch_size=64)
assert np.isclose(compared.matrix("x", "y").iloc[0, 0], minibatch_cka(x, y, 64), atol=1e-6)
noise = x, y - 0.5 * x
assert abs(cka.cka(*noise)) < 0.05 < 0.9 < cka.cka(*noise, estimator="biased")
print("By hand and by repsim the same; of independent noise the unbiased estimate says 0, the biased one over 0.9.")

# %% [markdown]
# ## The baseline: untrained networks
#
# Untrained networks already agree, because they see the same images through the same architecture. The map below sets every layer
# with every other one: of one untrained network with itself, and of two with different initial weights.

# %%
comparison, last = study.comparison(), study.seeds - 1
untrained = [("untrained-0", "untrained-0"), ("untrained-0", f"untrained-{last}")]
charts.heatmap(pd.concat([comparison.table(*pair) for pair in untrained]), title="Untrained networks")

# %% [markdown]
# *How to read a map.* Rows and columns are layers from the input (top, left) to the output; lines separate the network's stages. `res`
# marks residual layers. Yellow: the two layers agree on which images resemble each other.
#
# ## C1: the grid of a network with itself
#
# A block's output carries its input on, so that post-residual layers form blocks per stage; residual layers hold only what each
# block adds. If both objectives use the network in the same way, training changes this grid in the same way.

# %%
grids = [("sl-0", "sl-0"), ("simclr-0", "simclr-0")]
charts.heatmap(pd.concat([comparison.table(*pair) for pair in grids]), title="Trained networks, each with itself")

# %% [markdown]
# The two maps resemble the untrained one, so their plain correlation would say little. C1 therefore asks for their *partial*
# correlation, given the grids of the untrained networks that they started from, relative to that of two seeds of one objective. By hand, for one pair of
# networks: regress the untrained grids out of both, and correlate what is left.

# %%
def grid(name):
    cells = comparison.matrix(name, name).loc[evidence.layers, evidence.layers].to_numpy()
    return cells[np.triu_indices(len(cells), 1)]


def residual_of(values, *others):
    design = np.stack([np.ones_like(values), *others], axis=1)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


others = grid("untrained-0"), grid(f"untrained-{last}")
left = [residual_of(grid(name), *others) for name in ("sl-0", f"simclr-{last}")]
by_hand = np.corrcoef(*left)[0, 1]
assert np.isclose(by_hand, claims.partial_correlation(grid("sl-0"), grid(f"simclr-{last}"), *others))
plain = np.corrcoef(grid("sl-0"), grid(f"simclr-{last}"))[0, 1]
charts.markdown(f"SL's seed 0 with SimCLR's seed {last}: the grids correlate at {plain:.2f}; given the untrained ones, at {by_hand:.2f}.")

# %% [markdown]
# ## C2: every layer with every layer, across objectives

# %%
table = comparison.table("sl-0", f"simclr-{last}")
charts.heatmap(table, title="SL (rows) with SimCLR (columns)")

# %% [markdown]
# One row of that map at a time: choose a layer of SL below the figure.

# %%
if charts.alt is not None:  # figures need altair, numbers do not
    alt = charts.alt
    layer = alt.param(value="layer3.1", bind=alt.binding_select(options=comparison.layers("sl-0"), name="layer of SL: "))
    base = alt.Chart(table[["layer_a", "layer_b", "cka"]].round(3), title="A layer of SL with every layer of SimCLR").add_params(layer)
    base = base.properties(width=800, height=200, description="CKA of one layer of SL, chosen by the reader, with every layer of SimCLR.")
    across = alt.X("layer_b:N", sort=None, title="layer of SimCLR", axis=alt.Axis(labelAngle=-40))
    charts.show(
        base.transform_filter(alt.datum.layer_a == layer)
        .mark_line(point=True, color=charts.COLOURS["sl-simclr"])
        .encode(across, alt.Y("cka:Q", title="CKA", scale=alt.Scale(domain=[0, 1])), tooltip=["layer_a", "layer_b", "cka"])
    )

# %% [markdown]
# The diagonal of that map, layer with same-named layer, is the curve at the top of this chapter. On its own it means little: seeds
# lower it, and the input that all networks share raises it. Two steps free it of both. First, with $c_{AB}$ the mean CKA over pairs of
# different seeds,
#
# $$\rho_{AB} = \frac{c_{AB}}{\sqrt{c_{AA}\, c_{BB}}}$$
#
# is 1 where objectives differ no more than seeds do. Second, with $U$ the untrained networks,
#
# $$\pi_{AB} = \frac{\rho_{AB} - \rho_{AU}\,\rho_{BU}}{\sqrt{(1 - \rho_{AU}^2)(1 - \rho_{BU}^2)}}$$
#
# is what is left of it once the part that untrained networks share is projected out of both: the similarity that training produced.

# %%
def rho(a, b, layer):
    return evidence.cka(a, b, layer) / np.sqrt(evidence.cka(a, a, layer) * evidence.cka(b, b, layer))


def pi(a, b, layer):
    a_untrained, b_untrained = rho(a, "untrained", layer), rho(b, "untrained", layer)
    return (rho(a, b, layer) - a_untrained * b_untrained) / np.sqrt((1 - a_untrained**2) * (1 - b_untrained**2))


with np.errstate(invalid="ignore"):  # where seeds share nothing, rho is not defined
    for layer in evidence.blocks("layer2", "layer3"):
        by_hand, computed = pi("sl", "simclr", layer), evidence.pi("sl", "simclr", layer)
        assert np.allclose(by_hand[np.isfinite(computed)], computed[np.isfinite(computed)])
shared = [("sl", "simclr"), ("sl", "sl_simclr_views")]
charts.lines(
    evidence.curves(evidence.pi, shared, evidence.blocks()),
    y="value", y_title="partial cosine",
    rules={"C2's threshold": 0.5},
    domain=(-0.2, 1.1),
    title="What training made similar, beyond untrained networks and free of seeds",
)

# %% [markdown]
# *How to read it.* 1: the two objectives agree as well as their seeds do. 0: they share what untrained networks share, and no more. SL on
# SimCLR's views has SL's own labels and only SimCLR's augmentations: its line is what equal labels give.
#
# ## C3: by dissimilar means?
#
# A middle block whose shortcut is the identity only has to refine its input. C3 says that what such blocks add (the residual
# layers) differs between objectives more than what they arrive at.

# %%
refining = [block for block in evidence.blocks("layer2", "layer3") if not block.endswith(".0")]
layers = list(itertools.chain(*([f"{block}.residual", block] for block in refining)))
table = evidence.curves(evidence.rho, [("sl", "simclr"), ("sl", "sl_simclr_views"), ("sl", "untrained")], layers)
charts.bars(
    table.assign(layer=[charts.short(l) for l in table.layer]),
    "layer",
    "value",
    "pair",
    value_title="similarity relative to seeds",
    rules={"as two seeds": 1.0},
    title="Outputs of middle blocks, and what they add",
)

# %% [markdown]
# ## What each verdict rests on
#
# <details><summary>Every part of C1 to C3 with its interval and threshold</summary>

# %%
charts.forest(claims.parts(answers), title="C1 to C3, part by part")

# %% [markdown]
# </details>
#
# ## What we found, and what would change our mind
#
# The sentences at the top are computed from this run. Every criterion was fixed before these networks were compared
# ([preregistration](../docs/preregistration.md)); a placebo, untrained networks in the place of trained ones, has to fail it. A ResNet-18 has two
# refining blocks in its middle, so that C3 needs a deeper network to be decided; narrow networks differ between seeds, which widens
# C2's interval: more seeds or more width would narrow it. [03](03_divergence.ipynb) follows the curves into the last layers.
#
# Previous: [01 Training](01_training.ipynb) · Next: [03 Divergence](03_divergence.ipynb) · Overview: [00](00_overview.ipynb)
#
# **References.** Kornblith, Norouzi, Lee, Hinton (2019), *Similarity of neural network representations revisited*. Song et al.
# (2012), *Feature selection via dependence maximization*. Nguyen, Raghu, Kornblith (2021), *Do wide and deep networks learn
# the same things?* Grigg et al. (2021), arXiv 2110.00528.

# %% tags=["nbval-ignore-output"]
charts.markdown(study.colophon())
