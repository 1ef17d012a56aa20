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
# One ResNet is trained twice on the same images: once with labels (**SL**, cross-entropy), once without (**SimCLR**, which
# asks the network to recognise two random views of one image among the views of all others). This notebook trains *one*
# network, chosen by its parameter `network`, and shows what it saw, what it minimised and what came out.
#
# Next: [02 Layerwise comparison](02_layerwise_comparison.ipynb) · Overview: [00](00_overview.ipynb)

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
network = "simclr-0"  # str: the network of this execution, OBJECTIVE-SEED: sl-0, sl-1, simclr-0, ...

# %%
import pandas as pd
import torch

from repsim import augment, charts, losses, models, rng, train
from repsim.data import load
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
settings = study.settings(network)
objective = train.OBJECTIVES[settings.objective]
images = study.summary
charts.markdown(f"**This run** trains `{network}`, {objective.title}, on {study.basis()}.")

# %% [markdown]
# ## What the network sees
#
# The images, three of each class, one class a column. Each class is a folder of pictures or, in the embedded set, a shape; everything
# else about an image (place, size, rotation, colours, texture, noise) is nuisance.

# %%
if study.artefacts:
    charts.show(charts.markdown("*Published results come without their images. Shown here are embedded ones.*"))
    train_set = load("shapes", train_images=300, test_images=10).train
else:
    train_set = study.images.train
rows = [torch.nonzero(train_set.labels == c).flatten()[:3] for c in range(len(train_set.classes))]
sample = torch.stack([r[i] for i in range(3) for r in rows[:10]])
charts.images(
    train_set.images[sample], [train_set.classes[c] for c in train_set.labels[sample]], title="Training images"
)

# %% [markdown]
# Training never shows an image as it is. SL sees a shifted, perhaps mirrored copy. SimCLR sees two *views*: a random crop
# scaled back to full size, perhaps mirrored, its brightness, contrast, saturation and hue jittered, sometimes turned grey.
# What two views of an image share is all that SimCLR can learn from.

# %%
shown = train_set.images[sample[:8]]
views = [augment.VIEWS["supervised"](shown, rng.generator("figure", 0))]
views += [augment.VIEWS["simclr"](shown, rng.generator("figure", i)) for i in (1, 2)]
pictures = [shown] + [((v * 0.25 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8) for v in views]
rows = ["image", "SL", "SimCLR a", "SimCLR b"]
charts.images(torch.cat(pictures), columns=len(shown), rows=rows, title="Images and their views")

# %% [markdown]
# ## The loss
#
# SL minimises cross-entropy between the classifier's logits and the label. SimCLR embeds both views of each of $n$ images
# and minimises NT-Xent (Chen et al. 2020): with normalised embeddings $z_1, \dots, z_{2n}$ and $j(i)$ the other view of $i$,
#
# $$\mathcal{L} = -\frac{1}{2n} \sum_{i=1}^{2n} \log \frac{\exp(z_i \cdot z_{j(i)} / \tau)}{\sum_{k \neq i} \exp(z_i \cdot z_k / \tau)}.$$
#
# It is a cross-entropy too: which of the other $2n - 1$ views comes from my image? Written out by hand, it agrees with the
# function that trains the network:

# %%
za, zb = torch.randn(2, 6, 4, dtype=torch.float64, generator=rng.generator("example")).unbind()
z = torch.nn.functional.normalize(torch.cat([za, zb]), dim=1)
by_hand = 0.0
for i in range(12):
    others = [z[i] @ z[k] / 0.5 for k in range(12) if k != i]
    by_hand -= (z[i] @ z[(i + 6) % 12] / 0.5 - torch.logsumexp(torch.stack(others), 0)) / 12
assert torch.isclose(losses.nt_xent(za, zb, temperature=0.5), by_hand, rtol=1e-12)
print("NT-Xent by hand and by repsim.losses agree.")

# %% [markdown]
# ## The network
#
# torchvision's ResNet with a stem for small images (3x3 convolution, stride 1, no pooling). Of each block the later
# notebooks compare two layers: the **residual** one, before the shortcut is added, and the **post-residual** one, after
# addition and ReLU.

# %%
model = settings.build(classes=len(images.classes))
print(f"{sum(p.numel() for p in model.parameters()):,} weights; layers compared:")
print(", ".join(models.layer_names(model)))

# %% [markdown]
# ## Training
#
# Loaded if these settings have been trained on these images before, otherwise trained now, with a checkpoint after every
# epoch. Every random draw is a function of the seed, so a second run on the same machine gives the same weights.

# %%
history = study.history([network])
losses_by_epoch = history.melt(["network", "epoch"], ["loss", "validation_loss"], "split", "loss, nats")
charts.lines(losses_by_epoch, "epoch", "loss, nats", panel="split", title=f"{charts.name(network)}: loss per epoch")

# %% [markdown]
# *How to read it.* Left: the mean loss over an epoch's steps, on augmented training images. Right: the same loss on held-out
# images, with the weights after that epoch. The loss of an uninformed network is the logarithm of the number of choices: the
# classes for SL, the other views of a batch for SimCLR (fewer on the right where there are fewer held-out images than a batch has).

# %%
choices = len(images.classes) if objective.head == "linear" else 2 * settings.batch_size - 1
uninformed, last = torch.tensor(float(choices)).log().item(), history.loss.iloc[-1]
where = "**below** it" if last < uninformed else "**not below** it: it has learnt nothing yet"
charts.markdown(f"The uninformed loss is {uninformed:.1f} nats; `{network}` ends {where}, at {last:.1f}.")

# %% [markdown]
# ## What came out
#
# Is the class in the representation? A linear classifier and a vote of the ten nearest neighbours read it from the pooled
# features of test images, beside the same two readings of the raw pixels and of an untrained network: the baselines
# that any claim about learning has to beat.

# %%
baselines = ["pixels", f"untrained-{settings.seed}"]
linear, nearest = study.probe([*baselines, network]), study.knn([*baselines, network])
table = pd.concat([linear.assign(reading="linear probe"), nearest.assign(reading="10 nearest neighbours")])
table = table[table.layer.isin(["pool", "pixels"])]
charts.bars(
    table,
    "network",
    "accuracy",
    "reading",
    domain=(0, 1),
    rules={"chance": 1 / len(images.classes)},
    title="Test accuracy read from raw pixels, an untrained network and this one",
)

# %%
linear = table[table.reading == "linear probe"].set_index("network")
better = linear.low[network] > max(linear.high["pixels"], linear.high[f"untrained-{settings.seed}"])
charts.markdown(
    f"The linear probe of `{network}` is {'clearly' if better else '**not** clearly'} above both baselines."
)

# %% [markdown]
# *How to read it.* Bars are accuracies on test images that nothing was chosen on, with 95 % intervals; the dashed line is
# chance. The linear probe's penalty is chosen on a validation split of the training set.
#
# ## What we found, and what would change our mind
#
# Whether this network has learnt more about the classes than pixels and random weights offer is computed above, and it is the
# first thing to look at: where it has not, as can happen after few epochs on few images, any similarity that the next
# notebooks find is one of architecture and images rather than of learning, and a longer run is what would change our mind.
#
# Next: [02 Layerwise comparison](02_layerwise_comparison.ipynb)
#
# **References.** Chen, Kornblith, Norouzi, Hinton (2020), *A simple framework for contrastive learning of visual
# representations*. Grigg, Busbridge, Ramapuram, Webb (2021), *Do self-supervised and supervised methods learn similar visual
# representations?* He, Zhang, Ren, Sun (2016), *Deep residual learning for image recognition*.

# %% [markdown]
# ---
# Versions, parameters and time of this execution:

# %%
charts.markdown(study.colophon())
