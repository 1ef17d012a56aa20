# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How does a network learn without labels?
#
# Supervised learning (SL) is told each image's class. SimCLR is told nothing: it learns to find, among hundreds of augmented views, the
# one that comes from the same image. This chapter shows the images, the views, one step of each training, and what came out.

# %% tags=["parameters"]
profile = "results/quick"  # str: published results to draw, a profile (quick, gpu, ...) or a YAML file; paths count from the checkout
changes = {}  # dict: any field of repsim.study.Study, such as {"data": "~/my-images", "width": 32}
network = None  # str: train or load this network alone, such as "simclr-0"; None for all of the study

# %%
import math

import pandas as pd
import torch
import torch.nn.functional as F

from repsim import augment, charts, claims, models, shapes, store, train
from repsim.study import Study

study = Study.open(profile, **changes)
names = [n for n in study.names if not n.startswith("untrained")] if network is None else [network]
study.train_missing(names)
history = study.per_network("history", names, lambda name: study.network(name).history).assign(objective=lambda t: t.network.str.rpartition("-")[0])
charts.lines(history, x="epoch", y="validation_loss", panel="objective", y_title="loss on validation images, nats", shared=False, title="What each network minimised")

# %%
rows = []
for name in ["pixels", *(study.names if network is None else [f"untrained-{network[-1]}", network])]:
    readings = study.readings(name)
    for measure, title in {"correct": "linear probe", "knn": "ten nearest neighbours"}.items():
        table = readings[measure]
        by_fold = table["pixels" if name == "pixels" else claims.end_of(list(table), "layer4")]
        rows.append((name.rpartition("-")[0] or name, title, (by_fold * table.attrs["images"]).sum() / table.attrs["images"].sum()))
accuracy = pd.DataFrame(rows, columns=["objective", "reading", "accuracy"])
spread = accuracy.groupby(["objective", "reading"], sort=False).accuracy.agg(["mean", "min", "max"]).reset_index()
spread = spread.assign(objective=spread.objective.map(charts.name)).rename(columns={"mean": "accuracy", "min": "low", "max": "high"})
chance = 1 / len(study.summary.classes)
charts.bars(spread, "objective", "accuracy", "reading", domain=(0, 1), rules={"chance": chance}, title="What came out: the class, read from the pool")

# %% [markdown]
# *How to read the figures.* A line is a network. The loss of an uninformed network is the logarithm of the number of choices: the classes for SL, the other
# views of a batch for SimCLR. Below, the bars are accuracies on test images, averaged over seeds; the whisker spans the seeds. Raw pixels and untrained
# networks are the baselines that any claim about learning has to beat.
#
# ## What the network sees
#
# The embedded images show one of ten shapes, their class, with everything else about them known: place, size, rotation, colours, texture. In natural
# photographs an object comes with a context. `context` is how often an image's background is the one that its class prefers: at 0 a class is nothing but its
# shape; at 0.8 the background tells as much.

# %%
ten = torch.arange(10)
pictures = [shapes.draw(10, seed=0, size=48, stream="figure", context=context)[0] for context in (0.0, 0.8)]
charts.images(torch.cat(pictures), [name for _ in pictures for name in shapes.SHAPES], title="The ten classes of the embedded images, with context 0 and 0.8")

# %% [markdown]
# Training never shows an image as it is. SL sees a shifted, perhaps mirrored copy. SimCLR sees two *views*: a random crop scaled back to full size, perhaps
# mirrored, with its brightness, contrast, saturation and hue jittered, sometimes grey. What two views of an image share is all that SimCLR can learn from;
# what tells images apart but survives the augmentations is a shortcut. On the embedded images a small hue jitter would leave colour as one, so the default
# study turns the hue by up to half a turn ([what that changes, in numbers](../docs/embedded-images.md)).

# %%
simclr = study.settings("simclr-0")
sample = study.images.train.take(slice(8)).images if not study.artefacts else shapes.draw(8, size=32, stream="figure")[0]
views = [augment.supervised(sample, store.generator("figure", 0))]
views += [augment.simclr(sample, store.generator("figure", i), **simclr.simclr_views()) for i in (1, 2)]
pictures = [sample, *(((v * 0.25 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8) for v in views)]
captions = [name for name in ("image", "SL's view", "view a", "view b") for _ in sample]
charts.images(torch.cat(pictures), captions, columns=len(sample), title="Images, SL's view of them, and SimCLR's two views")

# %% [markdown]
# ## The two losses
#
# SL minimises the cross-entropy between a linear classifier's logits and the label. SimCLR embeds both views of each of $n$ images by a projection head and
# minimises NT-Xent (Chen et al. 2020): with normalised embeddings $z_1, \dots, z_{2n}$, temperature $\tau$, and $j(i)$ the other view of $i$,
#
# $$\mathcal{L} = -\frac{1}{2n} \sum_{i=1}^{2n} \log \frac{\exp(z_i \cdot z_{j(i)} / \tau)}{\sum_{k \neq i} \exp(z_i \cdot z_k / \tau)}.$$
#
# It is a cross-entropy too: which of the other $2n - 1$ views comes from my image?
#
# ## One step of each
#
# These lines are all there is to a training step. Everything random comes from a generator that is named by what it is for, so that a run that was killed
# goes on with the same bits.

# %%
def sl_step(model, images, labels, key):
    view = augment.supervised(images, store.generator(*key, 0))
    logits = model(view.contiguous(memory_format=torch.channels_last))
    return F.cross_entropy(logits, labels)


def simclr_step(model, images, labels, key):  # labels are not used
    views = [augment.simclr(images, store.generator(*key, i), **simclr.simclr_views()) for i in (0, 1)]
    embeddings = model(torch.cat(views).contiguous(memory_format=torch.channels_last))
    z, n = F.normalize(embeddings, dim=1), len(images)
    similarity = z @ z.T / simclr.temperature
    similarity = similarity.fill_diagonal_(float("-inf"))  # a view is no candidate for itself
    other_view = torch.arange(2 * n).roll(n)
    return F.cross_entropy(similarity, other_view)


# %% [markdown]
# They give the same loss and the same gradient as the function that trained the networks of this study:

# %%
images, labels, _ = shapes.draw(32, size=24, stream="figure")
for step, name in ((sl_step, "sl-0"), (simclr_step, "simclr-0")):
    settings = study.settings(name)
    by_hand, by_repsim = settings.build(len(shapes.SHAPES)), train.Trainee(settings, len(shapes.SHAPES))
    loss = step(by_hand, images, labels, (0, "views", 0))
    loss.backward()
    reference = by_repsim.loss(images, labels, (0, "views", 0))
    reference.backward()
    assert torch.isclose(loss, reference, rtol=1e-5)
    gradients = zip(by_hand.parameters(), by_repsim.parameters())
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5) for a, b in gradients)
print("One step of SL and one of SimCLR by hand: the losses and gradients of repsim.train.")

# %% [markdown]
# ## The network
#
# Both train one architecture: torchvision's ResNet with a stem for small images (a 3x3 convolution of stride 1, no pooling), under a classifier (SL) or a
# two-layer projection head (SimCLR). Of each block the later chapters compare two layers: the *residual* one, before the shortcut is added, and the
# *post-residual* one, after addition and ReLU.

# %%
model = simclr.build(len(study.summary.classes))
print(f"{sum(p.numel() for p in model.parameters()):,} weights; layers: {', '.join(models.layer_names(model))}")

# %% [markdown]
# ## Have they learnt?
#
# SimCLR's loss need not fall to zero to be worth something: many views of a batch look alike. What counts is whether the class can be read from the features.

# %%
uninformed = {"sl": math.log(len(study.summary.classes)), "simclr": math.log(2 * simclr.batch_size - 1)}
ends = history.groupby(["objective", "network"]).loss.last().groupby("objective").agg(["min", "max"])
lines = [
    f"- {charts.name(o)}: training loss {ends.loc[o, 'min']:.2f} to {ends.loc[o, 'max']:.2f} nats over seeds; uninformed {uninformed[o]:.2f}"
    for o in ends.index
    if o in uninformed
]
charts.markdown("\n".join(lines))

# %% [markdown]
# ## What we found, and what would change our mind
#
# Where SL and SimCLR read the class clearly better than pixels and untrained networks, the chapters that follow compare representations that have been learnt;
# where they do not, their claims are "not judged", and a longer run is what would change our mind.
#
# Next: [02 Layerwise comparison](02_layerwise_comparison.ipynb) · Overview: [00](00_overview.ipynb)
#
# **References.** Chen, Kornblith, Norouzi, Hinton (2020), *A simple framework for contrastive learning of visual
# representations*. Grigg, Busbridge, Ramapuram, Webb (2021), *Do self-supervised and supervised methods learn similar visual
# representations?* He, Zhang, Ren, Sun (2016), *Deep residual learning for image recognition*.

# %% tags=["nbval-ignore-output"]
charts.markdown(study.colophon())
