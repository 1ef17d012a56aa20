# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Do self-supervised and supervised methods learn similar visual representations?
#
# Train one network with labels and the same network without (SimCLR), and compare them layer by layer: do they see the world
# alike, where do they part, and what does each layer serve? The question is that of Grigg, Busbridge, Ramapuram and Webb
# ([arXiv 2110.00528](https://arxiv.org/abs/2110.00528)); every number here is computed by these notebooks, none is quoted.

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

from repsim import charts, claims, figures, publish, robustness
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
# ## The answer
#
# Seven claims, read off the paper's abstract, each judged by rules that were fixed beforehand: by this run and, where there is one, by the largest
# published run, whose tables come with the project.

# %%
verdicts = [study.claim(claim) for claim in study.verdicts()]
published = publish.published()
figures.verdicts(verdicts, published)


# %%
def counted(found):
    count = pd.Series([c.verdict for c in found]).value_counts()
    return ", ".join(
        f"{count[v]} {v}" for v in (claims.SUPPORTED, claims.NOT_SUPPORTED, claims.UNDECIDED) if v in count
    )


said = [f"Of {len(verdicts)} claims, at this scale: {counted(verdicts)}."]
if published and published[0] != study.basis():
    said.append(f"The published run ({published[0]}): {counted(published[1])}.")
charts.markdown(" ".join(said))

# %%
figures.learnt(study.probe([*study.core, "pixels"]), len(study.summary.classes))

# %%
largest = Study(artefacts=str(publish.PUBLISHED)) if published and not artefacts else study
kinds = [("sl", "simclr"), ("sl", "sl"), ("simclr", "simclr"), ("sl", "untrained")]
charts.lines(
    pd.concat([largest.comparison().curve(f"{a}-0", f"{b}-{largest.seeds - 1}") for a, b in kinds]),
    panel="kind",
    title=f"How alike are same-named layers of two networks? ({largest.summary.name})",
)

# %% [markdown]
# *How to read it.* Each curve compares two networks layer by layer, from the input to the output: 1 says that the layers agree
# on which images are alike, 0 that they do not. The curve of SL against SimCLR is to be read beside its ceilings (two seeds
# of one objective) and its floor (a trained against an untrained network). Left: what the network represents after each
# block. Right: what each block adds.
#
# ## Do the verdicts survive a reviewer?
#
# Each verdict was attacked: other estimators and measures, nulls, controls ([05](05_is_it_real.ipynb)). Of the largest run there is:

# %%
rows = robustness.kept_card(largest.artefacts or study.out, [c.to_dict() for c in largest.verdicts()])
figures.card_table(rows)

# %% [markdown]
# *How to read it.* A row is an attack, a column a claim with its verdict. =: the verdict held; an arrow: it became ✔ supported,
# ✘ not supported or ○ undecided; –: it was not supported, on account of a number that this attack does not measure again. An empty
# cell: the attack does not touch the claim.
#
# ## What the verdicts of this run rest on

# %%
figures.forest(verdicts, title="All claims: estimates, intervals, and the side that each claim asserts")

# %% [markdown]
# ## The map
#
# | notebook | question | claims |
# |---|---|---|
# | [01 Training](01_training.ipynb) | How does a network learn without labels? | |
# | [02 Layerwise comparison](02_layerwise_comparison.ipynb) | Do both objectives use the network in the same way? | C1, C2, C3 |
# | [03 Divergence](03_divergence.ipynb) | Where do they diverge, and towards what? | C4, C5, C6 |
# | [04 Implicit objective](04_implicit_objective.ipynb) | Does each objective fit the other's, without being asked? | C7 |
# | [05 Is it real?](05_is_it_real.ipynb) | Which of these conclusions survive a reviewer? | all |
# | [06 Between the objectives](06_between_the_objectives.ipynb) | At which step from SL to SimCLR do networks part? | predictions |
# | [07 When it happens](07_when_it_happens.ipynb) | When in training do they agree and part? | predictions |
# | [08 Auxiliary tasks](08_auxiliary_tasks.ipynb) | What follows for the design of auxiliary tasks? | predictions |
# | [09 Your own models](09_your_own_models.ipynb) | What do my networks have in common? | |
#
# ## How the numbers are made

# %%
charts.markdown(study.protocol())

# %% [markdown]
# ## What would change our mind
#
# Everything above is one architecture, one image set, a few seeds and the stated number of epochs. Run it larger or on your own
# images: `python run_all.py --profile cifar10`, or any parameter of the second cell by `-p NAME VALUE`.

# %% [markdown]
# ---
# Versions, parameters and time of this execution:

# %%
charts.markdown(study.colophon())
