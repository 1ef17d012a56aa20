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
# Train one network with labels (SL) and the same network without (SimCLR), and compare them layer by layer. How similar are they, where do they
# diverge, and which objective does each layer fit? The question is that of Grigg, Busbridge, Ramapuram and Webb
# ([arXiv 2110.00528](https://arxiv.org/abs/2110.00528)); every number here is computed by these notebooks, none is quoted.

# %% tags=["parameters"]
profile = "results/quick"  # str: published results to draw, a profile (quick, gpu, ...) or a YAML file; paths count from the checkout
changes = {}  # dict: any field of repsim.study.Study, such as {"data": "~/my-images", "width": 32}

# %%
import pandas as pd

from repsim import charts, claims
from repsim.study import Study

study = Study.open(profile, **changes)
evidence = study.evidence()
pairs = [("sl", "sl"), ("sl", "simclr"), ("sl", "untrained")]
similarity = evidence.curves(evidence.cka, pairs, evidence.blocks()).assign(question="How similar are same-named layers? (CKA)")
views = evidence.curves(lambda o, l: evidence.reading("retrieval", o, l), ["sl", "simclr", "untrained"], evidence.blocks())
both = pd.concat([similarity, views.assign(question="Is an image's other view its nearest? (share)")])
charts.lines(both, panel="question", y="value", y_title="", shared=False, title="Two networks layer by layer, from input to output")

# %%
answers = study.judge()
charts.markdown(study.answer(answers))

# %% [markdown]
# **Terms.** *CKA* (centred kernel alignment): how far two layers agree on which images resemble each other, 0 to 1. *SL*: supervised learning with
# cross-entropy. *SimCLR*: learning to tell which of many augmented *views* come from one image. *Seed ceiling*: the similarity of two networks that differ in
# nothing but their seed. *Post-residual layer*: the output of a block; *residual layer*: what the block adds to its input. *Pool*: the features after global
# average pooling. *Probe*: a linear classifier on a frozen layer. *Placebo*: untrained networks in the place of trained ones.
#
# ## The seven claims in one look

# %%
ticks = study.attacks()
charts.forest(claims.one_look(answers, ticks), ticks, title="Seven claims, in units of the smallest effect that counts")

# %% [markdown]
# *How to read it.* A row is a claim drawn from the paper's abstract. 0 is no effect, 1 the smallest that counts; the dot is the claim's weakest part with its 95 %
# interval over seeds and images. The grey band is what a placebo reaches. Small marks are the same number measured again in other ways
# ([05](05_is_it_real.ipynb)). The criteria were fixed beforehand ([preregistration](../docs/preregistration.md)).
#
# ## The chapters
#
# | notebook | question | claims |
# |---|---|---|
# | [01 Training](01_training.ipynb) | How does a network learn without labels? | |
# | [02 Layerwise comparison](02_layerwise_comparison.ipynb) | Do both objectives use the network in the same way? | C1, C2, C3 |
# | [03 Divergence](03_divergence.ipynb) | Where do they diverge, and towards what? | C4, C5, C6 |
# | [04 Implicit objective](04_implicit_objective.ipynb) | Does each objective fit the other's, without being asked? | C7 |
# | [05 Is it real?](05_is_it_real.ipynb) | Which of these conclusions survive a reviewer? | all |
# | [06 Between the objectives](06_between_the_objectives.ipynb) | At which step from SL to SimCLR do networks diverge? | predictions |
# | [07 When it happens](07_when_it_happens.ipynb) | When in training do they agree and diverge? | predictions |
# | [08 Auxiliary tasks](08_auxiliary_tasks.ipynb) | What follows for the design of auxiliary tasks? | predictions |
# | [09 Your own models](09_your_own_models.ipynb) | What do my networks have in common? | |
#
# ## How the numbers are made

# %%
charts.markdown(study.protocol().query("what != 'versions'"))

# %% [markdown]
# ## What would change our mind
#
# Everything above is one architecture, one set of images, a few seeds and the stated number of epochs. Run it larger, or on your own
# images: change `profile` or `changes` in the second cell, or use `python run_all.py`.

# %% tags=["nbval-ignore-output"]
charts.markdown(study.colophon())
