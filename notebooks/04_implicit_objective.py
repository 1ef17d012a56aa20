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
# SimCLR is never told a class, and SL is never asked to recognise an image. This chapter measures how much of the other's gain over untrained
# networks each of them reaches at the end of stage 3: of the class reading, and of recognising an image's other view among images of its class.

# %% tags=["parameters"]
profile = "results/quick"  # str: published results to draw, a profile (quick, gpu, ...) or a YAML file; paths count from the checkout
changes = {}  # dict: any field of repsim.study.Study, such as {"data": "~/my-images", "width": 32}

# %%
import itertools
import math

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from repsim import charts, claims, objectives, shapes
from repsim.study import Study

study = Study.open(profile, **changes)
evidence = study.evidence()
names = {"probe": "SimCLR's share of SL's class gain", "views of a class": "SL's share of SimCLR's view gain, within classes"}


def share(measure, objective, layer):
    owner = "sl" if measure == "probe" else "simclr"
    untrained = evidence.reading(measure, "untrained", layer)
    gain = untrained - evidence.reading(measure, owner, layer)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (untrained - evidence.reading(measure, objective, layer)) / gain


rows = [("probe", "simclr"), ("views of a class", "sl"), ("views of a class", "sl_simclr_views")]
middle = evidence.blocks("layer2", "layer3")
table = evidence.curves(share, rows, middle)
table["share of the owner's gain"] = [charts.name(o) for o in table.pair.str.rpartition("-")[2]]
table["reading"] = ["of SL's class gain" if p.startswith("probe") else "of SimCLR's view gain, within classes" for p in table.pair]
charts.lines(
    table, color="share of the owner's gain", panel="reading", y="value", y_title="share", rules={"owner": 1.0}, title="What each objective reaches of the other's gain"
)

# %%
answers = study.judge("C7")
charts.markdown(study.answer(answers))

# %% [markdown]
# *How to read the figure.* 0: no better than an untrained network; 1: as good as the network that was trained for it. The claim is an
# asymmetry: SimCLR's middle holds half of what SL has learnt of the classes, and SL's middle clearly less of what SimCLR has learnt about views.
#
# ## Why "within classes"
#
# An embedding that knows only the class already finds an image's other view better than chance: it rules out the images of all other classes.
# By formula: with $n$ images a batch, $C$ classes and embeddings that are equal within a class and orthogonal between classes, NT-Xent is far below its
# uninformed value $\log(2n - 1)$; in batches of one class it is exactly that value. So the reading that C7 uses
# is taken in batches of one class, where knowing the class is knowing nothing:

# %%
n, classes, temperature = 120, 10, 0.5
label = torch.arange(n) % classes
embedding = torch.eye(classes)[label]
mixed = objectives.nt_xent(embedding, embedding, temperature).item()
inside = objectives.nt_xent(embedding[label == 0], embedding[label == 0], temperature).item()
assert math.isclose(inside, math.log(2 * n / classes - 1), rel_tol=1e-6)
print(f"class-only embeddings, {n} images: {mixed:.2f} nats in mixed batches (uninformed {math.log(2 * n - 1):.2f}), {inside:.2f} in batches of one class (uninformed {math.log(2 * n / classes - 1):.2f})")

# %% [markdown]
# ## Both readings, at every layer

# %%
four = ["untrained", "sl", "sl_simclr_views", "simclr"]
readings = {
    "probe": "classes: probe's cross-entropy",
    "views": "views: NT-Xent in mixed batches",
    "views of a class": "views: NT-Xent within a class",
}
curves = [
    evidence.curves(lambda o, l, m=measure: evidence.reading(m, o, l), four, evidence.blocks()).assign(reading=title)
    for measure, title in readings.items()
]
charts.lines(pd.concat(curves), panel="reading", y="value", y_title="nats", shared=False, title="Three losses, fitted at every layer (lower is better)")

# %% [markdown]
# *How to read it.* The untrained line is what a random layer already offers to a linear reader. Between the second and the third panel lies what is
# only class knowledge: a line that falls in the second and stays in the third knows the class, not the image.
#
# ## Classes against views, layer by layer

# %%
path = []
for objective in four:
    for position, layer in enumerate(evidence.blocks()):
        gains = [
            evidence.reading(m, "untrained", layer)[0] - evidence.reading(m, objective, layer)[0]
            for m in ("probe", "views of a class")
        ]
        path.append({"network": objective, "layer": layer, "position": position, "classes": gains[0], "views": gains[1]})
charts.path(pd.DataFrame(path), "classes", "views", title="Gain over untrained networks, from the first block to the last, in nats")

# %% [markdown]
# *How to read it.* A line begins at its open point, the first block. To the right: the layer knows more of the class than an untrained one does;
# upwards: more of the image within its class. Untrained networks stay at the origin.
#
# ## Which factors does each layer keep?
#
# The embedded images are drawn from known factors, which no set of photographs offers. A ridge regression reads each factor from each layer's
# pooled features: $R^2$ for numbers (angles as sine and cosine), accuracy for categories. Its penalty has the least leave-one-out error on training images.

# %%
PERIODS = {"foreground_hue": 1, "background_hue": 1, "texture_angle": 180}


def known(part):
    """The factors that a layer is asked for, and the shape: a row per image."""
    shape = pd.Categorical.from_codes(part.labels.numpy(), list(part.classes))
    texture = pd.CategoricalDtype(shapes.TEXTURES)
    return part.factors.drop(columns="texture_phase").astype({"texture": texture}).assign(shape=shape)


def targets(factor):
    """What is regressed, (n, t): sine and cosine of an angle, a column for each category, or the number itself."""
    if factor.name in PERIODS:
        angle = 2 * np.pi / PERIODS[factor.name] * factor.to_numpy()
        return np.stack([np.sin(angle), np.cos(angle)], axis=1)
    if isinstance(factor.dtype, pd.CategoricalDtype):
        return np.eye(len(factor.cat.categories))[factor.cat.codes]
    return factor.to_numpy()[:, None]


def factor_scores(train, train_factors, test, test_factors):
    """How well each factor is read from each layer (its features, (n, p)): layer, factor, score on test images."""
    rows = []
    for layer, factor in itertools.product(train, train_factors):
        scaler = StandardScaler().fit(train[layer].double())
        x, x_test = (scaler.transform(split[layer].double()) for split in (train, test))
        y, y_test = (targets(factors[factor]) for factors in (train_factors, test_factors))
        read = RidgeCV(alphas=len(x) * 10.0 ** np.arange(-6, 2)).fit(x, y).predict(x_test).reshape(y_test.shape)
        categories = isinstance(train_factors[factor].dtype, pd.CategoricalDtype)
        score = (read.argmax(1) == y_test.argmax(1)).mean() if categories else r2_score(y_test, read, multioutput="variance_weighted")
        rows.append((layer, factor, score))
    return pd.DataFrame(rows, columns=["layer", "factor", "score"])


def read_factors(name):
    splits = [(study.features(name, split), known(getattr(study.images, split))) for split in ("train", "test")]
    return factor_scores(*splits[0], *splits[1])


if study.summary.factors:
    factors = study.per_network("factors", ["untrained-0", "sl-0", "simclr-0"], read_factors)
    titles = {"foreground_hue": "hue of the shape", "background_hue": "hue of the background", "x": "horizontal position", "y": "vertical position", "scale": "size"}
    blocks = factors[factors.layer.isin(evidence.blocks())].replace({"factor": titles})
    encoded = blocks.groupby("factor").score.max()
    shown = blocks[blocks.factor.isin(encoded[encoded > 0.1].index)]
    charts.show(charts.lines(shown[["network", "layer", "factor", "score"]], y="score", panel="factor", y_title="score", title="Factors that some layer encodes"))
    hidden = ", ".join(encoded[encoded <= 0.1].index)
    charts.show(charts.markdown(f"No network encodes these linearly: {hidden}." if hidden else "Every factor is encoded by some layer."))
else:
    charts.show(charts.markdown("These images come without known factors; the embedded images have them."))

# %% [markdown]
# ## What the verdict rests on
#
# <details><summary>Every part of C7 with its interval and threshold</summary>

# %%
charts.forest(claims.parts(answers), title="C7, part by part")

# %% [markdown]
# </details>
#
# The same criterion with mixed batches, which reward class knowledge, for comparison (descriptive):

# %%
mixed_parts, _ = claims.c7(evidence, "views")
charts.forest(claims.parts([claims.Claim("C7", "with mixed batches", tuple(mixed_parts), "")]), title="C7 with mixed batches")

# %% [markdown]
# ## What we found, and what would change our mind
#
# The sentence at the top is computed from this run. A deeper probe or a longer fit reads more out of a layer than a linear one does; it would have to change
# the *asymmetry* to change the verdict. Augmentations that remove what tells classes apart (or keep what only tells images apart) move
# SimCLR's share: [08](08_auxiliary_tasks.ipynb) turns that into an experiment.
#
# Previous: [03 Divergence](03_divergence.ipynb) · Next: [05 Is it real?](05_is_it_real.ipynb) · Overview: [00](00_overview.ipynb)
#
# **References.** Grigg et al. (2021), arXiv 2110.00528; Chen et al. (2020); Alain and Bengio (2017).

# %% tags=["nbval-ignore-output"]
charts.markdown(study.colophon())
