# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What do your own two networks have in common?
#
# Any two PyTorch modules and any images, without training and without a change to your code. The cell marked "edit here" names them; everything below
# follows from it. As it stands, it compares an SL and a SimCLR network of the default study.

# %% tags=["parameters"]
data = None  # str: a folder with one folder of images per class; None takes embedded images
image_size = 24  # int: pixels a side that the shorter side of an image is resized to; the middle is used
batch_size = 100  # int: images compared at a time; fewer than 4 cannot be compared

# %%
import copy
import tempfile
from pathlib import Path

import pandas as pd
import torch
import torchvision
from torchvision import datasets
from torchvision.transforms import v2

from repsim import charts, cka, shapes
from repsim.study import Study

# ----- edit here: two networks, and the layers to look at (None: all layers of a ResNet; else names, or patterns of names)
published = Study.open("results/quick")
networks = {"SL": published.network("sl-0").model, "SimCLR": published.network("simclr-1").model}
layers = {"SL": None, "SimCLR": None}
# networks = {"resnet": torchvision.models.resnet18(), "squeezenet": torchvision.models.squeezenet1_1()}
# layers = {"resnet": None, "squeezenet": ["features.*"]}
# -----

if data is None:
    images, labels, _ = shapes.draw(500, size=image_size, stream="your own", context=published.context, saturation=published.saturation)
    classes = shapes.SHAPES
else:
    prepare = v2.Compose([v2.Resize(image_size), v2.CenterCrop(image_size), v2.PILToTensor()])
    folder = datasets.ImageFolder(data, prepare)
    order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(0)).tolist()  # mixes the classes in every batch
    images, labels = (torch.stack(part) for part in zip(*((folder[i][0], torch.tensor(folder[i][1])) for i in order)))
    classes = folder.classes
one, other = networks
comparison = cka.compare(networks, images, labels=labels, pixels=True, layers=layers, batch_size=batch_size)
charts.heatmap(comparison.table(one, other), title=f"{one} (rows) with {other} (columns)")

# %%
best = comparison.matrix(one, other).stack().sort_values()
charts.markdown(
    f"The most similar layers are `{best.index[-1][0]}` of {one} and `{best.index[-1][1]}` of {other}: CKA {best.iloc[-1]:.2f}, over "
    f"{len(images)} images. The least similar: `{best.index[0][0]}` and `{best.index[0][1]}`, {best.iloc[0]:.2f}."
)

# %% [markdown]
# *How to read it.* Rows are layers of one network, columns of the other, from the input (top, left) to the output. Yellow: the two layers agree on which images
# resemble each other. Point at a cell for its value and interval.
#
# ## The baseline: how similar would they be anyway?
#
# A value of CKA means little on its own. Set it beside what needs no common training: a copy of the first network with fresh random weights, and the raw pixels.

# %%
fresh = copy.deepcopy(networks[one])
torch.manual_seed(0)
for module in fresh.modules():
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
baseline = cka.compare(
    {one: networks[one], "fresh": fresh}, images, pixels=True, layers={one: layers[one], "fresh": layers[one]}, batch_size=batch_size
)
names = comparison.layers(one)
table = comparison.table(one, other).sort_values("cka").groupby("layer_a", sort=False).last().loc[names].reset_index()
lines = [
    table.assign(pair=f"{other}, its most similar layer"),
    baseline.curve(one, "fresh").assign(pair=f"{one} with random weights, same layer"),
    baseline.curve(one, "pixels").assign(pair="the pixels"),
]
lines = pd.concat(lines).rename(columns={"layer_a": "layer"})[["layer", "pair", "cka", "low", "high"]]
charts.lines(lines[~lines.layer.str.endswith("residual")], title=f"What the layers of {one} resemble")

# %% [markdown]
# *How to read it.* A similarity between two trained networks is worth reporting as far as it exceeds the two baselines. Bands are 95 % intervals over images.
#
# The measure is linear CKA with the unbiased estimate of HSIC, averaged over batches before the ratio is taken. For two feature matrices `cka.cka` computes the
# same at once, and so does this formula, with $\tilde K$ the Gram matrix with its rows and columns U-centred (Székely and Rizzo 2014):
#
# $$\mathrm{CKA} = \frac{\langle \tilde K, \tilde L \rangle}{\lVert \tilde K \rVert \, \lVert \tilde L \rVert}$$

# %%
def centred(x):
    k, n = x @ x.T, len(x)
    k = k - k.diag().diag()
    rows = k.sum(1, keepdim=True) / (n - 2)
    k = k - rows - rows.T + k.sum() / ((n - 1) * (n - 2))
    return k - k.diag().diag()


x, y = torch.randn(2, 60, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
y = x + y
k, l = centred(x), centred(y)
assert abs((k * l).sum() / (k.norm() * l.norm()) - cka.cka(x, y)) < 1e-9
print("by formula and by repsim the same")

# %% [markdown]
# ## Look at it: the explorer
#
# Run this cell in JupyterLab, then click a cell of the map or choose layers from the menus. Beside the map stand the nearest neighbours of some images in both
# layers and the images on which the two layers differ most.

# %%
from repsim.explorer import explore

view = explore(networks, images, labels=labels, classes=classes, layers=layers, batch_size=batch_size)
view

# %% [markdown]
# The same without widgets, for the last layers that both maps have:

# %%
charts.show(*view.still(comparison.layers(one)[-2], comparison.layers(other)[-2]))

# %% [markdown]
# *How to read it.* Left of each row is an image, then come its five nearest neighbours (cosine of pooled features) in the one layer and in the other; a frame
# marks those that both have. The strip below holds the images on which the two Gram matrices differ most, with each image's share of $1 - \mathrm{CKA}$.
#
# ## Your own weights, preprocessing, loaders
#
# A file saved by `torch.save(model.state_dict(), file)` is loaded with `weights_only=True`. Images of type uint8 are brought into this study's scale, from -2 to 2;
# networks that were trained otherwise want their own preprocessing, as `transform`, one for all networks or one by name. Whatever yields batches can stand for
# the images: tensors, `(x, y)` pairs, or dictionaries.

# %%
with tempfile.TemporaryDirectory() as temporary:
    file = Path(temporary) / "mine.pt"
    torch.save(networks[one].state_dict(), file)
    mine = copy.deepcopy(networks[one])
    mine.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
same = cka.compare({"saved": networks[one], "loaded": mine}, images[:100], layers={"saved": layers[one], "loaded": layers[one]})
assert (same.curve("saved", "loaded")["cka"] > 0.9999).all()

imagenet = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
scaled = cka.compare({"study's scale": networks[one], "ImageNet's": networks[one]}, images[:200], transform={"ImageNet's": imagenet}, layers=layers[one], batch_size=batch_size)
worst = scaled.curve("study's scale", "ImageNet's").cka.min()

loader = torch.utils.data.DataLoader(list(zip(images, labels)), batch_size=batch_size)
streamed = cka.compare(networks, loader, layers=layers)
assert (streamed.matrix(one, other) - comparison.matrix(one, other)).abs().max(axis=None) < 1e-4
charts.markdown(f"Saved and loaded weights agree in every layer, and a loader gives the same numbers. ImageNet's scale in place of the study's lowers CKA to {worst:.2f} in one layer.")

# %% [markdown]
# ## When something does not fit
#
# What is refused is refused at once, and the message says what to write instead:

# %%
squeezenet = torchvision.models.squeezenet1_1()
tries = {
    "a misspelt layer": lambda: cka.compare({"net": squeezenet}, images, layers=["feature.3"]),
    "no layers given": lambda: cka.compare({"net": squeezenet}, images[:8]),
    "integers": lambda: cka.compare({"net": squeezenet}, images[:8].long(), layers=["features.3"]),
    "too few images": lambda: cka.compare(networks, images[:3], layers=layers),
}
for what, attempt in tries.items():
    try:
        attempt()
    except (TypeError, ValueError) as error:
        print(f"{what}\n    {error}\n")

# %% [markdown]
# ## Models from timm and Hugging Face
#
# These models bring their own preprocessing, which `transform` applies, and their layers are named by patterns. With random weights, as here, nothing is
# downloaded; the comments say how to get trained weights. Both packages come with `pip install -e ".[zoo]"`.

# %%
try:
    import timm
    import transformers
except ImportError as error:
    zoo = charts.markdown(f"The package {error.name} is not installed, so that this cell compares nothing.")
else:
    torch.manual_seed(0)
    convnext = timm.create_model("convnext_atto")  # with pretrained=True: trained weights
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(convnext), is_training=False)
    dino = transformers.Dinov2Model(transformers.Dinov2Config(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=56))
    # trained: dino = transformers.AutoModel.from_pretrained("facebook/dinov2-small")
    processor = transformers.BitImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    # trained: processor = transformers.AutoImageProcessor.from_pretrained("facebook/dinov2-small")
    preprocessing = {"ConvNeXt": lambda x: prepare(x / 255), "DINOv2": lambda x: dict(processor(x, return_tensors="pt"))}
    stages = {"ConvNeXt": ["stages.*"], "DINOv2": ["encoder.layer.*"]}
    both = cka.compare({"ConvNeXt": convnext, "DINOv2": dino}, images[:64], layers=stages, transform=preprocessing, batch_size=32)
    zoo = charts.heatmap(both.table("ConvNeXt", "DINOv2"), title="ConvNeXt of timm (rows) with DINOv2 of Hugging Face (columns), random weights")
zoo

# %% [markdown]
# ## What we found, and what would change our mind
#
# Networks that have learnt nothing can agree at every depth, and preprocessing alone can move a layer: show the baselines beside the value, and look at the
# images on which the layers disagree before believing a number. A few hundred images give the intervals above; more images narrow them.
#
# Overview: [00](00_overview.ipynb)
#
# **References.** Kornblith, Norouzi, Lee, Hinton (2019), *Similarity of neural network representations revisited*. Nguyen,
# Raghu, Kornblith (2021), *Do wide and deep networks learn the same things?* Székely, Rizzo (2014), *Partial distance
# correlation with methods for dissimilarities*. Huh, Cheung, Wang, Isola (2024), *The Platonic representation hypothesis*.
