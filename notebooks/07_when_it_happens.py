# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # When does it happen?
#
# The curves of **C2** to **C7** at the end of training are the outcome of a course. When do two objectives come to agree, when
# do they begin to part, and does a network know the classes before it ignores the augmentations, or after?
#
# As it stands here this notebook draws the published run on CIFAR-10 from its tables. `artefacts = None` in the next cell trains the
# networks that its settings ask for instead, a quarter of an hour on two cores if none is there yet.
#
# Previous: [06 Between the objectives](06_between_the_objectives.ipynb) · Next: [08 Auxiliary tasks](08_auxiliary_tasks.ipynb) · The end
# of training: [02](02_layerwise_comparison.ipynb), [03](03_divergence.ipynb), [04](04_implicit_objective.ipynb) ·
# Overview: [00](00_overview.ipynb)

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
artefacts = (
    "../results/cifar10-beyond"  # str: published results to draw, with their own settings for all above; None trains
)

# %%
import pandas as pd

from repsim import charts, claims, figures, moments, predictions, publish
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
judged = predictions.keep(moments.predictions(study), out, "07")
figures.predictions(judged)

# %%
table = moments.curves(study)
outputs = table[~table.layer.str.contains("residual|head")]
agree = table[table.measure == "normalised CKA"]
panels = {
    "SL with SimCLR, post-residual (normalised CKA)": agree[agree.layer.isin(outputs.layer)],
    "SL with SimCLR, residual (normalised CKA)": agree[agree.layer.str.contains("residual")],
    "with the classes (CKA)": outputs[outputs.measure == "class CKA"],
    "between two views (CKA)": outputs[outputs.measure == "view CKA"],
}
course = pd.concat([rows.assign(panel=panel) for panel, rows in panels.items()])
course["pair"] = ["sl-simclr" if "and" in of else charts.objective(of) for of in course.of]
course = course.rename(columns={"of": "network"})
charts.lines(
    course,
    y="value",
    panel="panel",
    slider="share",
    y_title="CKA",
    domain=(0, 1.2),
    title="From the first step to the last",
)

# %% [markdown]
# *How to read it.* The slider below the figure chooses a moment; it works in JupyterLab, in the report and in any page without a
# kernel, and a picture shows the end. One line is one network or pair with its 95 % interval; thin grey is the initialisation.
# Normalised CKA is 1 before the first step by construction: two networks that no objective has touched differ as two seeds do.
# So the upper panels start at 1 and may go either way (above 1 two objectives are more alike than two seeds of one at that moment),
# and *agreement is formed* when the curve stays near its final value.
#
# ## What was expected, before any result
#
# | | prediction | because | refuted if |
# |---|---|---|---|
# | 7.1 | the agreement of middle layers is formed within the first tenth of training | alignment between networks is reported to form in the first epoch (Kapoor et al. 2025) | normalised CKA of middle post-residual layers still moves by more than 10 % of its final value later on |
# | 7.2 | the last layers begin to diverge only after it | what is specific to an objective is at the end of the network, and refined late | the pool falls 0.05 behind the middle earlier |
# | 7.3 | in SL class information comes before invariance | it is asked for classes; invariance follows, as far as classes need it | view-CKA at the pool has half of its gain first |
# | 7.4 | in SimCLR class information comes after invariance | it is asked for invariance; classes follow | class information has half of its gain first |
# | 7.5 | colour comes before shape (embedded images) | the simplest cue is learnt first | shape has half of its gain first |
#
# The answers are computed in [`repsim/moments.py`](../repsim/moments.py). With $v(t)$ a curve over the share of training $t$,
#
# $$t_{1/2} = \min\{t : v(t) \ge \tfrac12 (v(0) + v(1))\}, \qquad
# t_{\mathrm{settled}} = \min\{t : |v(u) - v(1)| \le 0.1\,|v(1)| \text{ for all } u \ge t\},$$
#
# interpolated in $\log t$ between the moments that were kept. A time's interval is where the bounds of the curve's own 95 %
# interval get there. Of two times the ratio is judged, and it is open where their intervals overlap, or where a curve gains
# too little (0.05) to have a half.
#
# **Moments and what is shared.** Weights are kept at a logarithmic schedule while a network is trained, which changes nothing of
# it. SL and SimCLR are compared at the same *share* of their training, to the nearest whole step. By then they have seen other
# numbers of images (and SimCLR two views of each):

# %%
seen = table[table.measure == "class CKA"].drop_duplicates(["share", "step"])
rows = [
    {"share of training": charts.percent(share)}
    | {
        f"{title}: step (epoch), images": f"{r.step:.0f} ({r.epoch:.2g}), {r.images_seen:,.0f}"
        for name, title in (("sl-0", "SL"), ("simclr-0", "SimCLR"))
        for r in table[(table.of == name) & (table.share == share) & (table.measure == "class CKA")]
        .head(1)
        .itertuples()
    }
    for share in moments.moments(study)
]
charts.markdown(pd.DataFrame(rows))

# %% [markdown]
# **Batch norm.** The running averages of the first steps belong to older weights, so that a network evaluated with them would be none
# that ever was. Every moment, and the end as well, is evaluated with statistics measured over training images. Numbers at the
# end therefore differ a little from those of 02 to 04 for the same study, whose networks keep their running averages.

# %%
figures.forest(judged, title="What each answer rests on", marks=figures.PREDICTED)

# %% [markdown]
# *How to read it.* As in [02](02_layerwise_comparison.ipynb): a row is one network or pair; its interval has to lie within the shaded
# side. Times are shares of training; a comparison of two times is the logarithm of their ratio, 1 being ten times later. A row
# without a mark has no such time: something gained too little to have a half. The times themselves, as shares of training:


# %%
def told(t):
    percent = charts.percent
    return f"{percent(t.value)} ({percent(t.low)} to {percent(t.high)})" if t.value == t.value else "none"


times = pd.DataFrame(
    [(of, what, told(t)) for (of, what), t in moments.times(study).items()], columns=["of", "what", "time"]
)
for kind in (times.of.str.contains("and"), ~times.of.str.contains("and")):
    if kind.any():
        charts.show(charts.markdown(times[kind].pivot(index="of", columns="what", values="time").reset_index()))

# %% [markdown]
# A pair's agreement is formed when it has settled; it diverges when the pool is 0.05 behind the middle. A network's times are
# those of half of a gain at the pool.
#
# ## When does agreement form, and when does divergence begin?
#
# The baseline is the start itself: normalised CKA of 1. Lines go by depth, residual and post-residual layers apart.

# %%
agreement = moments.agreement(study)
pairs = claims.pairs(study.seeds)
if pairs:
    charts.show(
        charts.lines(
            agreement.assign(
                panel=[f"{kind} layers, {charts.name(of)}" for kind, of in zip(agreement.kind, agreement.of)]
            ),
            "share",
            "value",
            "group",
            "panel",
            log=True,
            y_title="normalised CKA",
            title="SL with SimCLR, relative to seeds at the same moment",
        )
    )

# %%
charts.show(figures.describe(judged[0], figures.PREDICTED), figures.describe(judged[1], figures.PREDICTED))

# %% [markdown]
# The raw numbers behind it: CKA across objectives and between two seeds of each. Networks are alike before they learn, because
# their input is; what training does to that likeness is the shape of these lines.

# %%
raw = (
    table[(table.measure == "CKA") & table.layer.isin(moments.read_layers(agree.layer.unique()))]
    if pairs
    else table[:0]
)
if pairs:
    raw = raw.assign(pair=[charts.pair(*of.split(" and ")) for of in raw.of])
    charts.show(
        charts.lines(
            raw,
            "share",
            "value",
            panel="layer",
            line="of",
            log=True,
            y_title="CKA",
            title="CKA at the ends of stages and the pool",
        )
    )

# %% [markdown]
# ## Class information, before or after invariance?
#
# Each network's way through the plane of the two: to the right the geometry is more about classes, upwards it ignores the
# augmentations more. A way that goes right first and then up learns classes first.

# %%
wide = (
    table[table.measure.isin(["class CKA", "view CKA"])]
    .pivot_table(index=["of", "layer", "share"], columns="measure", values="value", sort=False)
    .reset_index()
)
layers = moments.read_layers(agree.layer.unique() if pairs else wide.layer.unique())
plane = wide[wide.layer.isin(layers)].rename(
    columns={"of": "network", "class CKA": "CKA with the classes", "view CKA": "CKA between views"}
)
plane = plane.assign(position=[layers.index(l) for l in plane.layer])
charts.path(
    plane,
    "CKA with the classes",
    "CKA between views",
    order="share",
    panel="layer",
    grow=True,
    title="Classes and invariance, moment by moment (points grow with time)",
)

# %% [markdown]
# The same with what a reader gets out: a linear classifier, nearest neighbours, and SimCLR's own loss fitted on frozen features (lower
# is better), at the pool. They are fitted to few images here, so their level is below what the same networks
# would give with all of them.

# %%
read = table[
    table.measure.isin(["class CKA", "view CKA", "linear probe", "10-NN", "NT-Xent"]) & (table.layer == "pool")
]
read = read.assign(objective=[charts.objective(of) for of in read.of])
charts.lines(
    read,
    "share",
    "value",
    "objective",
    "measure",
    line="of",
    log=True,
    shared=False,
    y_title="at the pool",
    title="What the pool holds over training",
)

# %%
charts.show(figures.describe(judged[2], figures.PREDICTED), figures.describe(judged[3], figures.PREDICTED))

# %% [markdown]
# ## Which factors come first, and which are given up?
#
# The embedded images are made of known factors. A ridge regression reads each from the pool ($R^2$; accuracy for texture and
# shape). What falls was there in random features and is given up; what rises is learnt. Where a study's own images have no
# known factors, the published run on the embedded ones is shown.

# %%
embedded = publish.factored(study)
factors = moments.curves(embedded)
factors = factors[factors.measure.str.startswith("factor ") & (factors.layer == "pool")]
factors = factors.assign(
    objective=[charts.objective(of) for of in factors.of],
    factor=factors.measure.str.removeprefix("factor ").str.replace("_", " "),
)
charts.show(
    charts.markdown(f"**Here:** {embedded.basis()}."),
    charts.lines(
        factors,
        "share",
        "value",
        "objective",
        "factor",
        line="of",
        log=True,
        y_title="read out",
        title="Factors at the pool over training",
    ),
)

# %%
ends = factors[factors.share.isin([0, 1])].groupby(["objective", "factor", "share"], sort=False).value.mean().unstack()
said = []
for objective in ("sl", "simclr"):
    change = (ends.loc[objective][1.0] - ends.loc[objective][0.0]).sort_values()
    gained = [f"{f} ({c:+.2f})" for f, c in change[::-1].items() if c > claims.EFFECT]
    lost = [f"{f} ({c:+.2f})" for f, c in change.items() if c < -claims.EFFECT]
    title = {"sl": "SL", "simclr": "SimCLR"}[objective]
    said.append(
        f"**{title}** gains {', '.join(gained) or 'nothing to speak of'}; gives up {', '.join(lost) or 'nothing to speak of'}."
    )
colour = moments.predictions(embedded)[4:]
charts.show(charts.markdown("\n\n".join(said)), *(figures.describe(c, figures.PREDICTED) for c in colour))

# %% [markdown]
# ## What we found, and what would change our mind

# %%
charts.markdown("\n".join(f"- **{c.id}**, {c.statement}: **{predictions.outcome(c)}**." for c in judged))

# %% [markdown]
# A few moments of a few short runs: times are known to about the distance of two moments, a factor of two. The learning rate
# rises over the first tenth of training and falls to zero at its end, and both leave their mark on *when*: another schedule
# would move times without changing what a network ends as. The order of two times in one network is safer than a time by
# itself. "Share of training" is a choice: by images seen, SimCLR's moments lie later.
#
# Next: [08 Auxiliary tasks](08_auxiliary_tasks.ipynb) · Overview: [00](00_overview.ipynb)
#
# **References.** Kapoor et al. (2025), on alignment in the first epoch; Raghu et al. (2017), *SVCCA*, on layers that converge bottom-up;
# Kornblith et al. (2019); Chen et al. (2020); Grigg et al. (2021), arXiv 2110.00528.

# %% [markdown]
# ---
# How the numbers are made, and versions, parameters and time of this execution:

# %%
charts.show(charts.markdown(moments.protocol(study)), charts.markdown(study.colophon()))
