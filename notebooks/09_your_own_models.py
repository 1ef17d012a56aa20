# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where do your own two networks agree?
#
# Any two PyTorch modules and any folder of images: no training, no change to your code, and three lines from there to the first map. Here two
# of torchvision's architectures stand in for yours, with random weights so that nothing has to be downloaded.
#
# Previous: [04 Implicit objective](04_implicit_objective.ipynb) · Overview: [00](00_overview.ipynb)

# %% tags=["parameters"]
data = None  # str: a folder with one folder of images per class; None makes one of the embedded images
image_size = 64  # int: pixels a side that the shorter side of an image is resized to; the middle is used
batch_size = 32  # int: images compared at a time; fewer than 4 cannot be compared
count = 256  # int: images made if there is no folder

# %%
import tempfile
import time
from pathlib import Path

from PIL import Image

from repsim import shapes

begun = time.monotonic()
if data is None:
    scratch = tempfile.TemporaryDirectory()
    data = scratch.name
    for i, (image, label) in enumerate(zip(*shapes.draw(count, size=image_size)[:2])):
        home = Path(data) / shapes.SHAPES[label]
        home.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(home / f"{i:04}.png")
print(f"{len(list(Path(data).glob('*/*')))} images in {len(list(Path(data).iterdir()))} class folders")

# %% [markdown]
# ## From images to the first map
#
# A folder is read class by class; a random order, drawn once, mixes the classes in every batch that is compared. `compare`
# takes a dictionary of networks and the images. `layers` names what to look at: `None` stands for the study's layers
# of a torchvision ResNet; for anything else list module paths, as `named_modules()` has them.

# %%
import torch
from torchvision import datasets, models
from torchvision.transforms import v2

from repsim import charts, cka

torch.manual_seed(0)
prepare = v2.Compose([v2.Resize(image_size), v2.CenterCrop(image_size), v2.PILToTensor()])
folder = datasets.ImageFolder(data, prepare)
pictures = torch.utils.data.Subset(folder, torch.randperm(len(folder)).tolist())
images, labels = torch.stack([x for x, _ in pictures]), torch.tensor([y for _, y in pictures])

# %%
networks = {"resnet": models.resnet18(weights=None), "squeezenet": models.squeezenet1_1(weights=None)}
layers = {"resnet": None, "squeezenet": [f"features.{i}" for i in range(13)]}
charts.heatmap(cka.compare(networks, images, layers=layers, batch_size=batch_size).table("resnet", "squeezenet"))

# %% [markdown]
# *How to read it.* Rows are layers of one network, columns of the other, from the input (top, left) to the output. Yellow: the
# two layers agree on which images are alike. Point at a cell for its value and interval.
#
# For **your own weights** replace the two constructors. A file saved with `torch.save(model.state_dict(), file)` is loaded by

# %%
with tempfile.TemporaryDirectory() as temporary:
    file = Path(temporary) / "mine.pt"
    torch.save(networks["resnet"].state_dict(), file)

    mine = models.resnet18(weights=None)
    mine.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))

same = cka.compare({"saved": networks["resnet"], "loaded": mine}, images[:64], batch_size=batch_size)
assert (same.curve("saved", "loaded")["cka"] > 0.9999).all()
print("the loaded network is the saved one in every layer")

# %% [markdown]
# and torchvision's trained ones by `models.resnet18(weights="DEFAULT")`, which downloads them once.
#
# ## The baseline: how alike would they be anyway?
#
# A value of CKA means little alone. Compare with what needs no common training: another network of the *same* architecture
# with other random weights, and the raw pixels.

# %%
other = models.resnet18(weights=None)
comparison = cka.compare(
    {**networks, "other resnet": other},
    images,
    labels=labels,
    pixels=True,
    layers={**layers, "other resnet": None},
    batch_size=batch_size,
)
best = comparison.table("resnet", "squeezenet").sort_values("cka").groupby("layer_a", sort=False).last().reset_index()
order = {layer: i for i, layer in enumerate(comparison.layers("resnet"))}
best = best.sort_values("layer_a", key=lambda column: column.map(order)).assign(
    what="squeezenet, its most similar layer"
)
lines = [
    best,
    comparison.curve("resnet", "other resnet").assign(what="another ResNet, same layer"),
    comparison.curve("resnet", "pixels").assign(what="the pixels"),
]

# %%
import pandas as pd

table = pd.concat(lines)[["layer_a", "what", "cka", "low", "high"]]
charts.lines(table, color="what", kind="post-residual", title="What the ResNet's layers are like")

# %% [markdown]
# *How to read it.* For each layer of the ResNet: how like it is to the most similar layer of the other architecture, to the
# same layer of a twin with other weights, and to the pixels. A similarity between two trained networks is worth reporting
# as far as it exceeds these lines. Bands are 95 % intervals over images.
#
# The measure is linear CKA with the unbiased estimator of HSIC, averaged over batches before the ratio is taken. On the whole
# sample at once `cka.cka` computes the same from two feature matrices, and so does this formula, with $\tilde K$ the Gram
# matrix of centred features with its rows and columns U-centred:
#
# $$\mathrm{CKA} = \frac{\langle \tilde K, \tilde L \rangle}{\lVert \tilde K \rVert \, \lVert \tilde L \rVert}$$

# %%
from repsim.taps import pooled


def centred(x):
    k, n = x @ x.T, len(x)
    k = k - k.diag().diag()
    rows = k.sum(1, keepdim=True) / (n - 2)
    k = k - rows - rows.T + k.sum() / ((n - 1) * (n - 2))
    return k - k.diag().diag()


x = pooled(networks["resnet"], images, ["layer3.1"])["layer3.1"].double()
y = pooled(networks["squeezenet"], images, ["features.9"])["features.9"].double()
k, l = centred(x), centred(y)
assert abs((k * l).sum() / (k.norm() * l.norm()) - cka.cka(x, y)) < 1e-9
print(f"pooled features {tuple(x.shape)} and {tuple(y.shape)}: both ways agree")

# %% [markdown]
# ## Look at it: the explorer
#
# Run this cell in JupyterLab, then click a cell of the map or choose layers from the menus. You see the nearest neighbours of
# some images in both layers, the images on which the two layers differ most, and what every layer says of class and view.

# %%
from repsim.explorer import explore

view = explore(networks, images, labels=labels, classes=folder.classes, layers=layers, batch_size=batch_size)
view

# %% [markdown]
# The same without widgets, for any two layers:

# %%
charts.show(*view.still("layer2.1", "features.7"))

# %% [markdown]
# *How to read it.* In the map an outline marks the two layers. Left of each row of pictures is an image, then come its five
# nearest neighbours (cosine of pooled features) in the one layer and in the other; a frame marks those found by both. The
# strip below holds the images on which the two Gram matrices differ most: each image's share of $1 - \mathrm{CKA}$, which adds
# up to 100 % over all images. Do your networks disagree on particular kinds of images? Last, both networks' class and view
# curves, with a line at each of the two layers.
#
# ## Your own preprocessing
#
# Images of type uint8 are brought into this study's scale, from -2 to 2. Networks trained otherwise want their own: `transform`
# takes a batch and returns a network's input, one for all networks or one by name. It matters, even to one and the same
# network:

# %%
imagenet = v2.Compose(
    [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)
darker = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([1.0, 1.0, 1.0], [0.25, 0.25, 0.25])])
twice = {"ImageNet's": networks["squeezenet"], "study's": networks["squeezenet"], "wrong": networks["squeezenet"]}
inputs = cka.compare(
    twice,
    images,
    layers=layers["squeezenet"],
    transform={"ImageNet's": imagenet, "wrong": darker},
    batch_size=batch_size,
)
scales = [inputs.curve("ImageNet's", name).assign(scale=f"{name} scale") for name in ("study's", "wrong")]
charts.lines(pd.concat(scales), color="scale", title="One network under two scales of its input, against ImageNet's")

# %% [markdown]
# *How to read it.* One network, three inputs: with ImageNet's mean and deviation, in this study's scale, and wrongly shifted.
# Where a curve is below 1 the preprocessing alone has changed what a layer says.
#
# ## A loader instead of a tensor
#
# Whatever yields batches will do: tensors, `(x, y)` pairs, or dictionaries (`input_key` says where the images are). Images are
# read once and need not fit into memory; labels are taken from the loader if it has them.

# %%
from torch.utils.data import DataLoader

loader = DataLoader(pictures, batch_size=batch_size)
streamed = cka.compare(networks, loader, layers=layers)
if len(images) % batch_size == 0:  # the same batches, therefore the same numbers
    difference = streamed.matrix("resnet", "squeezenet") - comparison.matrix("resnet", "squeezenet")
    assert difference.abs().max(axis=None) < 1e-4
print("streams:", ", ".join(streamed.streams), "· images:", streamed.images)

# %% [markdown]
# ## When something does not fit
#
# What is refused is refused at once, and the message says what to write instead:

# %%
tries = {
    "a misspelt layer": lambda: cka.compare(
        networks, images, layers={"resnet": ["layer9.1"], "squeezenet": ["features.3"]}
    ),
    "a module called twice": lambda: cka.compare({"resnet": networks["resnet"]}, images[:8], layers=["layer1.0.relu"]),
    "no layers given": lambda: cka.compare({"squeezenet": networks["squeezenet"]}, images[:8]),
    "integers": lambda: cka.compare(networks, images[:8].long(), layers=layers),
    "too few images": lambda: cka.compare(networks, images[:3], layers=layers),
}
for what, attempt in tries.items():
    try:
        attempt()
    except (TypeError, ValueError) as error:
        print(f"{what}\n    {error}\n")

# %% [markdown]
# ## What we found, and what would change our mind
#
# Networks that have learnt nothing can agree at every depth (the twin's line above), far beyond what they share with the pixels,
# and the preprocessing alone can move a layer. So for your own pair: show the baselines beside the value, and look at the images on which the
# layers disagree before believing a number. A few hundred images give the intervals above; more images narrow them.
#
# Overview: [00](00_overview.ipynb)
#
# **References.** Kornblith, Norouzi, Lee, Hinton (2019), *Similarity of neural network representations revisited*. Nguyen,
# Raghu, Kornblith (2021), *Do wide and deep networks learn the same things?* Székely, Rizzo (2014), *Partial distance
# correlation with methods for dissimilarities* (U-centring). Huh, Cheung, Wang, Isola (2024), *The Platonic representation
# hypothesis* (mutual nearest neighbours).

# %% [markdown]
# ---
# Versions, parameters and time of this execution:

# %%
import platform

import torchvision

from repsim import __version__, study

how = {
    "parameters": f"image_size = {image_size}, batch_size = {batch_size}, {len(images)} images",
    "versions": f"python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
    f"repsim {__version__}, commit {study.commit()}",
    "time": f"{time.monotonic() - begun:.0f} s",
}
charts.markdown(pd.DataFrame({"what": how.keys(), "how": how.values()}))
