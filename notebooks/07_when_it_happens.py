# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # When in training do they agree, and when do they diverge?
#
# The other chapters compare networks at the end of training. This one follows SL and SimCLR from the first step to the last: when their middle layers begin to
# agree beyond what untrained networks share, when the last stage departs from them, and whether SimCLR learns views before classes.

# %% tags=["parameters"]
profile = "results/small"  # str: published results to draw, a profile (quick, gpu, ...) or a YAML file; paths count from the checkout
changes = {}  # dict: any field of repsim.study.Study, such as {"data": "~/my-images", "width": 32}

# %%
from pathlib import Path

from repsim import charts, store
from repsim.study import Study

study = Study.open(profile, **changes)
if study.seeds < 2:
    raise ValueError(f"seeds: expected 2, as different seeds are compared, or 4 for a verdict; got {study.seeds}")
OBJECTIVES = ("untrained", "sl", "simclr")
networks = [f"{objective}-{seed}" for objective in OBJECTIVES for seed in range(study.seeds)]


def show(courses):
    """The figure of two statistics over training (share, value, low, high, curve), and what it says."""
    title = "SL and SimCLR from the first step to the last"
    figure = charts.lines(courses, "share", "value", "curve", log=True, y_title="difference of similarity", title=title)
    early = min(courses.share, key=lambda share: abs(share - 0.1))
    told = {(row.curve, row.share): charts.estimate(row.value, row.low, row.high) for row in courses.itertuples()}
    (agree, agreed), (apart, parted) = ([told[curve, share] for share in (early, 1.0)] for curve in courses.curve.unique())
    charts.show(figure, charts.markdown(
        f"Beyond untrained networks, the middle layers of SL and SimCLR agree by {agree} after {percent(early)} of training "
        f"and by {agreed} at its end; stage 4 falls behind stage 3 by {apart} and by {parted}."
    ))


def percent(share):
    """A share of the training as text, "start" for 0."""
    return f"{100 * share:.2g} %" if 0 < share < 1 else "100 %" if share else "start"


kept = Path(study.artefacts or study.out) / f"tables/courses-{study.key_of(networks)}.csv"
if seen := kept.exists():  # else it is made below
    show(store.load_table(kept)[0])

# %% [markdown]
# *How to read the figure.* The agreement is 0 where SL resembles SimCLR no more than it resembles untrained networks, and the gap is 0 where SL and SimCLR are
# as similar at the end of stage 4 as at the end of stage 3. Both are 0 before the first step, so that whatever a line shows, training made. The axis is
# logarithmic; bands are 95 % intervals over seeds. (Where this notebook runs for the first time, the figure comes [below](#A-similarity-that-begins-at-zero).)
#
# ## A similarity that begins at zero
#
# [Chapter 02](02_layerwise_comparison.ipynb) divides CKA by what seeds share. Seed by seed, with $t$ a moment of training,
#
# $$c_{AB,i}(t) = \operatorname*{mean}_{j \ne i} \tfrac12 \left[\mathrm{CKA}(A_i, B_j) + \mathrm{CKA}(A_j, B_i)\right], \qquad
# \rho_{AB,i}(t) = \frac{c_{AB,i}}{\sqrt{c_{AA,i}\, c_{BB,i}}}.$$
#
# Before the first step, networks differ in their seeds alone: $\rho = 1$ for every pair of objectives, by construction. A curve of $\rho$ over training
# therefore shows how similarity *decays*. What training builds is the difference from untrained networks $U$, which begins at 0:
#
# $$a_i(t) = \operatorname*{mean}_{l \,\in\, \text{stages 2, 3}} \left[\rho_{\mathrm{SL},\mathrm{SC},i}(l, t) - \rho_{\mathrm{SL},U,i}(l, t)\right], \qquad
# d_i(t) = \rho_{\mathrm{SL},\mathrm{SC},i}(m, t) - \rho_{\mathrm{SL},\mathrm{SC},i}(e, t),$$
#
# with $l$ the outputs of blocks, $m$ the last block of stage 3 and $e$ that of stage 4. The figure below shows $\rho$ itself,
# block by block; choose a moment.

# %% jupyter={"source_hidden": true}
import functools
import itertools

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from repsim import augment, cka, claims, models, probes, taps, train

study.train_missing()
TRAINED = ("sl", "simclr")
IMAGES, BATCH = 1024, 64  # test images that are compared, and those of a batch, at most
seeds = range(study.seeds)
layers = models.layer_names(study.settings("sl-0").build(2, "meta"))
blocks, middle = (claims.of_kind(layers, "post-residual", stages) for stages in (None, claims.MIDDLE))
m, e = (claims.end_of(layers, stage) for stage in ("layer3", "layer4"))
lengths = {o: train.steps(study.settings(f"{o}-0"), study.summary.train) for o in TRAINED}
plans = {objective: train.schedule(steps) for objective, steps in lengths.items()}  # share of training -> step
shares = [share for share in plans["sl"] if share in plans["simclr"]]


def shares_of(name):
    return [1.0] if name.startswith("untrained") else shares


def same_share(share):
    """A moment: objective -> share of its training. Untrained networks are the same at every moment."""
    return {"untrained": 1.0, "sl": share, "simclr": share}


def centred_row(x):
    """Features (n, ...) of a batch -> the entries above the diagonal of its U-centred Gram matrix (n (n - 1) / 2,)."""
    x = x.flatten(1).cpu().double()
    gram = cka.centre(x @ x.T, "unbiased")
    return gram[tuple(torch.triu_indices(*gram.shape, 1))]


@torch.no_grad()
def rows_of(model, images):
    """Block -> (entries,): its centred Gram matrices of all whole batches, one after the other, as a row of length 1."""
    size, rows = min(BATCH, len(images)), {block: [] for block in blocks}
    with taps.tapped(model, taps.resolve(model, blocks), lambda block, x: rows[block].append(centred_row(x))):
        for batch in images[: len(images) // size * size].split(size):
            model(taps.network_input(batch.to(study.torch_device), model))
    return {block: F.normalize(torch.cat(row), dim=0) for block, row in rows.items()}


def grams(name):
    """What a network leaves for comparisons: block -> (shares, entries) in float16."""
    images = study.images.test.images[:IMAGES]
    moments = [rows_of(study.snapshot(name, share), images) for share in shares_of(name)]
    return {block: torch.stack([rows[block] for rows in moments]).half() for block in blocks}


def kept_grams(name):
    """The same from a file, made with the first study that has this network."""
    file = f"{study.out}/tensors/grams-{name}-{study.key_of([name])}.safetensors"
    load, save = (lambda path: store.load_tensors(path)[0]), (lambda path, made: store.save_tensors(path, made, {}))
    return store.load_or_make(file, load, functools.partial(grams, name), save)


def similarity(moment):
    """CKA of same-named blocks of all pairs of networks of different seeds, at moment(share) for every share."""
    of = {name: kept_grams(name) for name in networks}
    places = [(name, share) for name in networks for share in shares_of(name)]
    pairs = [*itertools.combinations_with_replacement(OBJECTIVES, 2)]
    wanted = {(a, at[a], b, at[b]) for at in map(moment, shares) for a, b in pairs}
    rows = []
    for block in blocks:
        unit = F.normalize(torch.cat([of[name][block] for name in networks]).float(), dim=1)
        values = (unit @ unit.T).double().numpy().round(6)
        for (k, (one, s)), (l, (other, t)) in itertools.combinations(enumerate(places), 2):
            (a, _, i), (b, _, j) = one.rpartition("-"), other.rpartition("-")
            if i != j and (a, s, b, t) in wanted:
                rows.append((block, one, s, other, t, values[k, l]))
    return pd.DataFrame(rows, columns=["layer", "a", "share_a", "b", "share_b", "cka"])


def both_ways(table):
    """(layer, network, share, network, share) -> CKA, in either order of the two."""
    cells = {}
    for layer, one, s, other, t, value in table.itertuples(index=False):
        cells[layer, one, s, other, t] = cells[layer, other, t, one, s] = value
    return cells


cells = both_ways(study.table("moments", functools.partial(similarity, same_share), networks))


def c(a, b, layer, moment):
    """(seeds,): CKA of seed i with every other seed j, averaged over j and over both orders, A_i with B_j and A_j with B_i."""

    def cell(i, j):
        return cells[layer, f"{a}-{i}", moment[a], f"{b}-{j}", moment[b]]

    return np.array([np.mean([(cell(i, j) + cell(j, i)) / 2 for j in seeds if j != i]) for i in seeds])


def rho(a, b, layer, moment):
    """(seeds,): c_AB / sqrt(c_AA c_BB) of each seed; NaN where its networks share nothing with those of its own objective."""
    first, second = (np.where(x > 0, x, np.nan) for x in (c(a, a, layer, moment), c(b, b, layer, moment)))
    return c(a, b, layer, moment) / np.sqrt(first * second)


def agreement(moment):
    """a: how much more similar SL's middle layers are to SimCLR's than to untrained networks'."""
    return np.mean([rho("sl", "simclr", l, moment) - rho("sl", "untrained", l, moment) for l in middle], axis=0)


def gap(moment):
    """d: how much less similar SL and SimCLR are at the end of stage 4 than at the end of stage 3."""
    return rho("sl", "simclr", m, moment) - rho("sl", "simclr", e, moment)


def replicates(values):
    """(seeds,) -> (1 + seeds,): their mean, then without each seed."""
    return claims.over_seeds({(i,): np.array([value]) for i, value in enumerate(values)}, len(values))


def over_seeds(values):
    """(seeds,) -> estimate, low, high: the mean, with Student's t over seeds."""
    return claims.interval(replicates(values), len(values))


def course(statistic, moment=same_share):
    """(shares, seeds): a statistic of moments over training."""
    return np.stack([statistic(moment(share)) for share in shares])


def over_time(values, **columns):
    """(shares, seeds) -> share, value, low, high, and the same entry of each further column in all rows."""
    rows = [(share, *over_seeds(row)) for share, row in zip(shares, values)]
    return pd.DataFrame(rows, columns=["share", "value", "low", "high"]).assign(**columns)


# %%
courses = {"agreement of the middle": course(agreement), "gap to the last stage": course(gap)}

curves = study.table("courses", lambda: pd.concat([over_time(values, curve=name) for name, values in courses.items()]), networks)
None if seen else show(curves)

# %%
pairs = [("sl", "simclr"), ("sl", "untrained"), ("simclr", "untrained")]
rows = [
    (share, block, "-".join(pair), *over_seeds(rho(*pair, block, same_share(share))))
    for share, block, pair in itertools.product(shares, blocks, pairs)
]
table = pd.DataFrame(rows, columns=["share", "layer", "pair", "value", "low", "high"])
table = table.assign(moment=[percent(share) for share in table.share], pair=table.pair.map(charts.name)).round(3)
if charts.alt is not None:  # figures need altair, numbers do not
    alt, moments = charts.alt, table.moment.unique().tolist()
    now = alt.param(value=moments[-1], bind=alt.binding_radio(options=moments, name="share of the training: "))
    base = alt.Chart(table, title="Every block, moment by moment (in a picture: the end)").transform_filter(alt.datum.moment == now)
    names = table.pair.unique().tolist()
    colours = alt.Scale(domain=names, range=[charts.COLOURS["-".join(pair)] for pair in pairs])
    base = base.encode(alt.X("layer:N", sort=None, axis=alt.Axis(labelAngle=0)), alt.Color("pair:N", title=None, scale=colours, legend=alt.Legend(orient="top")))
    line = base.mark_line(point=True).encode(alt.Y("value:Q", title="similarity relative to seeds"), tooltip=["pair", "layer", "moment", "value"])
    band = base.mark_area(opacity=0.16).encode(y="low:Q", y2="high:Q")
    words = "Similarity relative to seeds of SL, SimCLR and untrained networks, block by block, at a moment of training that the reader chooses."
    charts.show((band + line).add_params(now).properties(width=800, height=280, description=words))

# %% [markdown]
# *How to read it.* In the beginning all lines lie at 1. A line that sinks says that training drew the two apart; where SL's line with SimCLR
# stays above its line with untrained networks, the two objectives moved in the same direction.
#
# **What each network leaves.** Every network is compared with every other one at every moment, but not all have to be at hand at once: once a network has left
# the Gram matrices of its blocks (and, below, its readings), its snapshots can go, and further seeds can be trained and added (`seeds` 2, then 4, then 6).
# With U-centring (Székely and Rizzo 2014) unbiased CKA is a plain cosine: HSIC averaged over batches of one size is the inner product of the rows that
# `centred_row` makes, all batches one after the other. Batches of 64 images take half the space of batches of 128 and estimate
# the same quantity. The cosine is the number that the other chapters use:

# %%
x, y = (torch.randn(192, 32, generator=store.generator("moments", i)) for i in (0, 1))
rows = [torch.cat([centred_row(part) for part in features.split(64)]).half().double() for features in (x, x + y)]
compared = cka.compare(features={"x": x, "y": x + y}, batch_size=64)
assert np.isclose(F.cosine_similarity(*rows, dim=0), compared.matrix("x", "y").iloc[0, 0], atol=1e-3)
print("The cosine of two rows in float16 is unbiased minibatch CKA.")

# %% [markdown]
# **Batch norm.** The running averages of the first steps belong to older weights. Every moment, the end and the untrained networks are evaluated with
# statistics measured over the first 1,024 training images; numbers at the end differ a little from those of other chapters.
#
# ## The same share, or the same number of images?
#
# SL and SimCLR train for different numbers of epochs. The figures compare them at the same share of their own training, at which they have seen different
# numbers of images (SimCLR two views of each):

# %%
seen = {o: np.array([plans[o][share] for share in shares]) * study.settings(f"{o}-0").batch_size for o in TRAINED}
columns = {"share of training": [percent(share) for share in shares]}
for objective, images in seen.items():
    columns[f"{charts.name(objective)}: step"] = [f"{plans[objective][share]:,}" for share in shares]
    columns[f"{charts.name(objective)}: images"] = [f"{n:,}" for n in images]
charts.markdown(pd.DataFrame(columns))

# %% [markdown]
# If the number of images is what counts, SL has to be set against SimCLR's snapshot that has seen as many of them, to the nearest that there is:


# %%
def same_images(share):
    """SL after this share of its training, and SimCLR at the share at which it has seen the number of images nearest to SL's, by ratio."""
    distances = np.abs(np.log(np.maximum(seen["simclr"], 0.5)) - np.log(max(seen["sl"][shares.index(share)], 0.5)))
    return same_share(share) | {"simclr": shares[int(distances.argmin())]}


cells |= both_ways(study.table("moments-by-images", functools.partial(similarity, same_images), networks))
ways = {"at the same share of training": same_share, "after the same number of images": same_images}
table = pd.concat([over_time(course(agreement, moment), way=way) for way, moment in ways.items()])
title = "Agreement over the course of SL"
charts.lines(table, "share", "value", "way", log=True, y_title="agreement of the middle", title=title)

# %% [markdown]
# *How to read it.* Where the lines coincide, it does not matter how the two trainings are set side by side. At the right end SL is complete and SimCLR,
# in the second line, still has most of its epochs ahead.
#
# ## What a time is
#
# The half time of a curve is the share of training at which it first reaches half of its final value, on straight lines over the logarithm of the share. A curve that
# ends at or below 0 has none.


# %%
def crossing(shares, values, level):
    """The share of training at which a curve first reaches `level`; NaN if it never does, or is undefined somewhere.

    Between moments it is straight over log(share); the initialisation stands at half of the first share after it.
    """
    shares, values = np.asarray(shares, dtype=float), np.asarray(values, dtype=float)
    place = np.log(np.where(shares > 0, shares, shares[shares > 0].min() / 2))
    reached = np.flatnonzero(values >= level)
    if len(reached) == 0 or not np.isfinite(values).all():
        return np.nan
    k = reached[0]
    if k == 0:
        return np.exp(place[0])
    return np.exp(np.interp(level, values[k - 1 : k + 1], place[k - 1 : k + 1]))


def half_times(values):
    """(shares, seeds) -> (seeds,): when each seed's curve first reaches half of its final value; NaN without a gain."""
    return np.array([crossing(shares, curve, curve[-1] / 2) if curve[-1] > 0 else np.nan for curve in values.T])


synthetic = crossing([0.0, 0.01, 0.1, 1.0], [0.0, 0.1, 0.3, 0.4], level=0.2)
assert np.isclose(synthetic, 0.01 * 10**0.5)
print(f"0.1 after 1 % of training and 0.3 after 10 %: the curve passes 0.2 after {100 * synthetic:.1f} %.")

# %% [markdown]
# Each seed has its own curve (its mean over all other seeds) and its own time. Times spread over factors rather than over differences, so that their mean and
# interval are taken of log10, with Student's t over seeds.
#
# ## Classes and views
#
# Two readings at $m$ and at $e$, as in [chapter 03](03_divergence.ipynb), on fewer images: the class reading $y$ is the cross-entropy of a linear probe, the view reading
# $q$ is SimCLR's own loss of a fitted linear projection, both in nats on test images. Each is shown as a gain over the untrained network of the same seed.

# %%
READ = 2000  # training, validation and test images of the readings, at most


@functools.cache
def augmented():
    """Two views of each training image, and two of each test image."""
    images = {"train": study.images.train.images[:READ], "test": study.images.test.images[:READ]}
    pairs, strengths = itertools.product(images, claims.VIEWS), study.settings("simclr-0").simclr_views()
    return [augment.simclr(images[split], store.generator("moments", split, v), **strengths) for split, v in pairs]


def readings(name):
    """share, measure ("classes", "views", "views of a class"), layer, value in nats: what cannot be read out of a network."""
    splits, most = study.images, slice(READ)
    parts = [splits.train.take(most), splits.validation.take(most), splits.test.take(most)]
    batch, rows = min(128, len(parts[0]), len(parts[2])), []
    for share in shares_of(name):
        read = functools.partial(taps.pooled, study.snapshot(name, share), layers=[m, e])
        known = [value for part in parts for value in (read(part.images), part.labels)]
        probe = probes.linear_probe(*known, classes=len(study.summary.classes))
        views, temperature = [read(images) for images in augmented()], study.settings("simclr-0").temperature
        fitted = probes.fitted_nt_xent(*views, parts[2].labels, batch=batch, temperature=temperature, steps=150)
        losses = {"classes": probe.loss, "views": fitted.mixed, "views of a class": fitted.of_a_class}
        rows += [(share, measure, layer, loss[layer].mean()) for measure, loss in losses.items() for layer in (m, e)]
    return pd.DataFrame(rows, columns=["share", "measure", "layer", "value"])


nats = {}
for name in networks:
    table = study.table(f"moments-{name}", functools.partial(readings, name), [name])
    nats |= {(name, *row[:3]): row[3] for row in table.itertuples(index=False)}


def gain(measure, objective, layer):
    """(shares, seeds): by how many nats each network reads better than the untrained network of its seed."""

    def below(seed, share):
        return nats[f"untrained-{seed}", 1.0, measure, layer] - nats[f"{objective}-{seed}", share, measure, layer]

    return np.array([[below(seed, share) for seed in seeds] for share in shares])


gains = [
    over_time(gain(what, objective, layer), objective=objective, images=seen[objective], layer=layer).assign(
        reading=f"{what}, end of stage {layer[5]}"
    )
    for what, layer, objective in itertools.product(("classes", "views"), (m, e), ("sl", "simclr"))
]
look = dict(y="value", color="objective", panel="reading", log=True, shared=False, y_title="nats better than untrained")
charts.lines(pd.concat(gains), "share", title="What SL and SimCLR come to know of classes and views", **look)

# %% [markdown]
# *How to read it.* 0: no better than an untrained network. A line that first falls loses something that random features offer before it learns. The same
# gains at the end of stage 4, by the number of images that each network has seen:

# %%
at_the_end = pd.concat(gains).query("layer == @e").rename(columns={"images": "images seen"})
charts.lines(at_the_end, "images seen", title="The same by the number of images", **look)

# %% [markdown]
# ## What was predicted
#
# Written down before any of these networks was compared ([preregistration](../docs/preregistration.md)). A prediction is *confirmed* if its interval lies beyond
# the threshold, *refuted* if it lies wholly on the other side, otherwise *open*, also where a seed has no half time. None is judged with fewer than four seeds, or where the linear probe of SL or
# SimCLR at the pool is less than 0.10 above raw pixels or untrained networks. The half times, as shares of training:

# %%
times = {name: half_times(values) for name, values in courses.items()}
measures = ("views", "classes", "views of a class")
times |= {f"SimCLR's {measure}": half_times(gain(measure, "simclr", e)) for measure in measures}


def told(times):
    """Half times (seeds,) as text: the geometric mean, with its interval if there is one, as shares of training."""
    mean, low, high = 10 ** np.array(over_seeds(np.log10(times)))
    interval = f" [{percent(low)}, {percent(high)}]" if np.isfinite([low, high]).all() else ""
    return percent(mean) + interval if np.isfinite(mean) else "an undefined share"


rows = [(name, *(percent(t) if np.isfinite(t) else "none" for t in of), told(of)) for name, of in times.items()]
charts.markdown(pd.DataFrame(rows, columns=["half time", *(f"seed {i}" for i in seeds), "all seeds"]))

# %% [markdown]
# *Views of a class* is the view reading in batches of images of one class, where knowing the class does not help ([04](04_implicit_objective.ipynb)); it is
# shown beside the others and decides nothing.

# %%
PREDICTIONS = {
    "7.1": (
        "agreement forms early",
        "alignment was seen to form in the first epoch (Kapoor et al. 2025)",
        "a short joint phase suffices for a common trunk",
    ),
    "7.2": (
        "the last stage parts after the middle agrees",
        "something has to be learnt before it can differ",
        "late layers can be specialised late",
    ),
    "7.3": ("SimCLR learns views before classes", "its loss asks for views", "early stopping favours view information"),
}
OUTCOMES = dict(zip(claims.VERDICTS, ("confirmed", "refuted", "open", "not judged")))


def later(statement, first, second):
    """The part that the second half time (seeds,) is later than the first: log10 of their ratio, seed by seed, above 0."""
    ratio = replicates(np.log10(second / first))
    return claims.Part(statement, ratio, len(first), above=0.0, unit="log10 of the ratio", scaled=1 + ratio)


def judge(times, reason=""):
    """The predictions as claims; `reason` says why they are not judged."""
    agree, depart, views, classes, _ = times.values()
    share = replicates(np.log10(agree))
    parts = {
        "7.1": claims.Part("half time of the agreement", share, len(agree), below=-1.0, unit="log10 of the share"),
        "7.2": later("half time of the gap over that of the agreement", agree, depart),
        "7.3": later("half time of the class reading over that of the view reading", views, classes),
    }
    sentences = {
        "7.1": f"The agreement of middle layers reaches half of its final value after {told(agree)} of training.",
        "7.2": f"The gap to the last stage reaches half of its final value after {told(depart)} of training, the agreement of "
        f"middle layers after {told(agree)}.",
        "7.3": f"At the end of SimCLR's stage 4 half of the gain in the view reading is there after {told(views)} of training, "
        f"half of the gain in the class reading after {told(classes)}.",
    }
    return [claims.Claim(i, PREDICTIONS[i][0], (parts[i],), sentences[i], gate=reason) for i in PREDICTIONS]


answers = judge(times, study.gate())
columns = ["prediction", "because", "if so, for a designer of auxiliary tasks", "effect", "outcome"]
verdicts, rows = [], []
for answer in answers:
    (statement, why, meaning), outcome = PREDICTIONS[answer.id], OUTCOMES[answer.verdict]
    verdicts.append(answer.to_dict() | {"verdict": outcome, "why": why, "meaning": meaning})
    rows.append((answer.id, statement, why, meaning, answer.sentence, f"**{outcome}**"))
study.keep("07", verdicts)
charts.show(charts.markdown(pd.DataFrame(rows, columns=["", *columns])))
charts.markdown("\n".join(dict.fromkeys(f"**{OUTCOMES[a.verdict]}:** {a.reason}." for a in answers if a.reason)))

# %% [markdown]
# <details><summary>Every part of the predictions with its interval and threshold</summary>

# %%
parts = claims.parts(answers)
charts.forest(parts.assign(label=parts.label.map(OUTCOMES)), title="7.1 to 7.3, part by part")

# %% [markdown]
# </details>
#
# ## What we found, and what would change our mind

# %%
counts = [f"{sum(OUTCOMES[a.verdict] == word for a in answers)} {word}" for word in OUTCOMES.values()]
when = 10 ** np.log10(times["agreement of the middle"]).mean()
half = " and ".join(f"step {when * steps:.0f} of {steps:,} of {charts.name(o)}" for o, steps in lengths.items())
where = f" Half of the agreement is there at {half}." if np.isfinite(when) else ""
run = f"*This run:* {study.basis()}. {study.learnt()}"
charts.markdown(f"Of {len(answers)} predictions: {', '.join(counts)}.{where} {run}")

# %% [markdown]
# A half time is known to about the distance of two snapshots, a factor of two in the second half of the axis and of three in the first; the order of two times in
# one network is safer than a time by itself. The learning rate rises over the first tenth of training and falls to zero at its end, and both leave
# their mark on *when*: another schedule would move times without changing what a network ends as. A half time is relative to the end: networks that go on
# improving have a later one. If the order of two times turned round with another schedule or with twice the epochs, that would change our mind.
#
# Previous: [06 Between the objectives](06_between_the_objectives.ipynb) · Next: [08 Auxiliary tasks](08_auxiliary_tasks.ipynb) · Overview: [00](00_overview.ipynb)
#
# **References.** Kapoor et al. (2025), on alignment in the first epoch. Raghu et al. (2017), *SVCCA*, on layers that converge bottom-up. Székely and Rizzo (2014),
# *Partial distance correlation with methods for dissimilarities*. Kornblith et al. (2019). Chen et al. (2020). Grigg et al. (2021), arXiv 2110.00528.

# %%
protocol = study.protocol(networks).set_index("what")["how"]
protocol["evaluation"] = (
    "eval mode, batch-norm statistics measured over the first 1,024 training images at every moment"
)
protocol["CKA"] = (
    f"linear, unbiased, whole activation maps of at most {IMAGES:,} test images, in batches of {BATCH}, ratio last"
)
protocol["intervals"] = f"95 %: Student's t over {study.seeds} seeds, each seed's similarity its mean over all others"
protocol["readings"] = f"fitted to at most {READ:,} training images, scored on at most {READ:,} test images"
charts.markdown(protocol.reset_index())

# %% tags=["nbval-ignore-output"]
charts.markdown(study.colophon())
