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
# Up to the end of stage 3 all objectives have to build features; the last stage serves each one's own task. This chapter follows the angle
# between SL and SimCLR through the network, and what each network's layers know of the classes and of the augmented views.

# %% tags=["parameters"]
profile = "results/quick"  # str: published results to draw, a profile (quick, gpu, ...) or a YAML file; paths count from the checkout
changes = {}  # dict: any field of repsim.study.Study, such as {"data": "~/my-images", "width": 32}

# %%
import numpy as np
import pandas as pd
import torch

from repsim import charts, cka, claims, probes, store
from repsim.study import Study

study = Study.open(profile, **changes)
evidence = study.evidence()
trained = [("sl", "simclr"), ("sl", "sl_simclr_views"), ("simclr", "sl_simclr_views")]
angles = evidence.curves(evidence.angle, trained, evidence.blocks())
charts.lines(angles, y="value", y_title="angle, degrees", domain=(0, 90), title="How far objectives are apart, block by block")

# %%
answers = study.judge("C4", "C5", "C6")
charts.markdown(study.answer(answers))

# %% [markdown]
# *How to read the figure.* The angle's cosine is the similarity beyond untrained networks, free of seeds (π of
# [chapter 02](02_layerwise_comparison.ipynb)): 0 degrees, as two seeds of one objective; 90 degrees, nothing in common but what untrained
# networks share. An angle does not saturate where similarity is high, as a cosine does. Bands are 95 % intervals over seeds and images.
#
# ## C4: how fast, per block
#
# "Rapid divergence" means that the angle opens faster over the blocks of the last stage than over those of stages 2 and 3, and by more than
# SL loses to itself when it is trained on SimCLR's views.

# %%
b, m, e = (claims.end_of(evidence.layers, stage) for stage in ("layer1", "layer3", "layer4"))
blocks = {"stages 2 and 3": (b, m, ("layer2", "layer3")), "stage 4": (m, e, ("layer4",))}
rows = []
for (one, other), (where, (start, stop, stages)) in [(p, w) for p in trained for w in blocks.items()]:
    opening = evidence.angle(one, other, stop) - evidence.angle(one, other, start)
    value, low, high = claims.interval(opening / len(evidence.blocks(*stages)), evidence.seeds)
    rows.append({"pair": f"{one}-{other}", "where": where, "value": value, "low": low, "high": high})
charts.bars(pd.DataFrame(rows), "pair", "value", "where", value_title="degrees a block", title="How fast the angle opens")

# %% [markdown]
# ## C5: towards the classes
#
# A linear probe asks how well a linear classifier can read the class from a frozen layer. It is fitted to training images and scored by its
# cross-entropy on test images, in nats, which sees more than the accuracy does. The probe in a dozen lines, on made-up features,
# agrees with the one that the study uses:

# %%
generator = store.generator("probe example")
labels = torch.arange(300) % 3
features = torch.randn(3, 8, generator=generator)[labels] + torch.randn(300, 8, generator=generator)
train, test = slice(0, 200), slice(200, 300)
x = (features - features[train].mean(0)) / features[train].std(0, correction=0)
weight, bias = torch.zeros(8, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")


def closure():
    optimiser.zero_grad()
    loss = torch.nn.functional.cross_entropy(x[train] @ weight + bias, labels[train]) + 0.01 / 2 * weight.square().sum()
    loss.backward()
    return loss


optimiser.step(closure)
by_hand = torch.nn.functional.cross_entropy(x[test] @ weight + bias, labels[test]).item()
halves = [value for part in (train, train, test) for value in ({"example": features[part]}, labels[part])]
assert np.isclose(by_hand, probes.linear_probe(*halves, classes=3, penalties=[0.01]).loss["example"].mean(), atol=1e-3)

# %%
objectives = ["untrained", "sl", "sl_simclr_views", "simclr"]
reading = evidence.curves(lambda o, l: evidence.reading("probe", o, l), objectives, evidence.blocks())
charts.lines(
    reading,
    y="value", y_title="probe's cross-entropy, nats",
    rules={"chance": np.log(len(study.summary.classes))},
    title="What a linear probe does not know of the class (lower is better)",
)

# %% [markdown]
# *How to read it.* C5 looks at the last stage: by how many nats does a line fall from the end of stage 3 to the end of stage 4, beyond what the untrained
# networks' line does there? SL's line should fall, and SimCLR's by less than half as much.
#
# ## C6: towards invariance
#
# SimCLR asks the projection head to find an image's other view among all views of a batch. So the same question is put to every layer: a
# linear projection of the frozen layer is fitted with SimCLR's own loss, NT-Xent, and scored on two views of each test image.

# %%
views = evidence.curves(lambda o, l: evidence.reading("views", o, l), objectives, evidence.blocks())
charts.lines(views, y="value", y_title="fitted NT-Xent, nats", title="What a layer does not know of an image's other view (lower is better)")

# %% [markdown]
# *How to read it.* C6 expects SimCLR's line to fall over the last stage, beyond untrained networks, and the lines of SL, on its own views and on
# SimCLR's, to fall by less than half as much.
#
# CKA between the two views tells a different story: a layer that knows the class, and nothing else of the image, gives two views high CKA. Both are shown
# here, CKA for one network of each objective, with the share of test images whose other view is the nearest of all:

# %%
def view_cka():
    """CKA of pooled features of the two views of each test image: pair (the objective), layer, value."""
    rows = []
    for objective in objectives:
        one, other = (study.features(f"{objective}-0", "test", view) for view in claims.VIEWS)
        rows += [(objective, layer, cka.cka(one[layer], other[layer])) for layer in evidence.blocks()]
    return pd.DataFrame(rows, columns=["pair", "layer", "value"])


tables = {
    "CKA between two views": study.table("view-cka", view_cka),
    "other view retrieved": evidence.curves(lambda o, l: evidence.reading("retrieval", o, l), objectives, evidence.blocks()),
}
charts.lines(
    pd.concat([table.assign(question=name) for name, table in tables.items()]),
    panel="question",
    y="value", y_title="",
    shared=False,
    title="Two other questions about views",
)

# %% [markdown]
# ## What each verdict rests on
#
# <details><summary>Every part of C4 to C6 with its interval and threshold</summary>

# %%
charts.forest(claims.parts(answers), title="C4 to C6, part by part")

# %% [markdown]
# </details>
#
# ## What we found, and what would change our mind
#
# The sentences at the top are computed from this run, by criteria that were fixed beforehand
# ([preregistration](../docs/preregistration.md)). All three claims compare the last stage with the stage before it, beyond what untrained networks do
# there, so that depth by itself decides nothing; the reference is SL on SimCLR's views wherever the augmentations could be the cause. A longer training
# sharpens the last stage of both objectives: an undecided claim of a short run may be decided by a longer one.
#
# Previous: [02 Layerwise comparison](02_layerwise_comparison.ipynb) · Next: [04 Implicit objective](04_implicit_objective.ipynb) ·
# Overview: [00](00_overview.ipynb)
#
# **References.** Chen, Kornblith, Norouzi, Hinton (2020), *A simple framework for contrastive learning of visual representations*. Alain
# and Bengio (2017), *Understanding intermediate layers using linear classifier probes*. Grigg et al. (2021), arXiv 2110.00528.

# %% tags=["nbval-ignore-output"]
charts.markdown(study.colophon())
