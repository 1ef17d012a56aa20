"""What a network can be trained for: a name, the head, the views, and the loss of what comes out.

All objectives share what is not theirs: a seed's initial backbone and order of batches, and, where their views are the
same, the views. Some train a companion beside the network (a predictor, a classifier on a middle layer) or keep a slow copy
of it; both are dropped when training ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repsim import losses, models

TAU = 0.99  # of BYOL's target at the start of training (Grill et al. 2020 for few epochs), 1 at its end


@dataclass(frozen=True, eq=False)
class Step:
    """What a loss is made of: one batch of n images, whole, in every rank of a torchrun; float32 at least."""

    outputs: tuple[Tensor, ...]  # of the network, (n, outputs) for each view
    labels: Tensor  # (n,)
    settings: Any  # train.Settings
    companion: nn.Module | None = None
    features: tuple[Tensor, ...] = ()  # of the objective's `layer`, pooled, (n, channels) for each view
    targets: tuple[Tensor, ...] = ()  # outputs of the network's slow copy, without gradients, for each view


@dataclass(frozen=True)
class Objective:
    """What a network is trained for: its head, the views it sees, and the loss of its outputs, one per view.

    Args:
        base: the objective whose epochs and recipe a study gives it.
        turned: every view is turned by a random number of quarter turns, 0 to 3, which is its label.
        companion: (settings, features, classes) -> a module that is trained beside the network and dropped at the end, of
            `features` inputs: the channels of `layer`, or without a layer the network's outputs.
        layer: a layer or module path (`taps.resolve`; "layer3" is the end of stage 3) whose pooled features the loss reads.
        slow: keep a copy of the network whose weights follow by moving average, as BYOL's target does.
    """

    title: str
    head: str
    views: str
    loss: Callable[[Step], Tensor]
    n_views: int = 1
    random_labels: bool = False
    base: str = "simclr"
    turned: bool = False
    companion: Callable[[Any, int, int], nn.Module] | None = None
    layer: str | None = None
    slow: bool = False


def _cross_entropy(step: Step) -> Tensor:
    """Averaged over the views."""
    return sum(losses.cross_entropy(output, step.labels) for output in step.outputs) / len(step.outputs)


def _nt_xent(step: Step) -> Tensor:
    return losses.nt_xent(*step.outputs, step.settings.temperature)


def _supcon(step: Step) -> Tensor:
    return losses.supcon(*step.outputs, step.labels, step.settings.temperature)


def _nscl(step: Step) -> Tensor:
    return losses.nscl(*step.outputs, step.labels, step.settings.temperature)


def _byol(step: Step) -> Tensor:
    """Each view's prediction of the target's other view, both directions summed; one batch norm over both, as in the head."""
    a, b = step.companion(torch.cat(step.outputs)).chunk(2)
    target_a, target_b = step.targets
    return losses.negative_cosine(a, target_b) + losses.negative_cosine(b, target_a)


def _predictor(settings: Any, features: int, classes: int) -> nn.Module:
    return models.projection_head(features, 4 * features, features)


# Both losses are sums over dimensions, written for LARS, which does not feel their scale. SGD does: Barlow Twins' is
# multiplied by 0.1, as in solo-learn's recipe for CIFAR-10 (da Costa et al. 2022), VICReg's by 1/25.


def _barlow(step: Step) -> Tensor:
    return 0.1 * losses.barlow_twins(*step.outputs)


def _vicreg(step: Step) -> Tensor:
    return losses.vicreg(*step.outputs) / 25


# Auxiliary tasks: a second loss, of a middle layer or of the embeddings, added with weight 1 (chapter 08)


def _classifier(settings: Any, features: int, classes: int) -> nn.Module:
    return nn.Linear(features, classes)


def _projector(settings: Any, features: int, classes: int) -> nn.Module:
    return models.projection_head(features, settings.hidden or features, settings.projection)


def _nt_xent_and_classes(step: Step) -> Tensor:
    logits = (step.companion(features) for features in step.features)
    return _nt_xent(step) + sum(losses.cross_entropy(x, step.labels) for x in logits) / len(step.features)


def _classes_and_nt_xent(step: Step) -> Tensor:
    """Cross-entropy of the first view, as in sl_simclr_views; one batch norm over both views, as in SimCLR's own head."""
    a, b = step.companion(torch.cat(step.features)).chunk(2)
    return losses.cross_entropy(step.outputs[0], step.labels) + losses.nt_xent(a, b, step.settings.temperature)


OBJECTIVES: Mapping[str, Objective] = {
    "sl": Objective("supervised (cross-entropy)", "linear", "supervised", _cross_entropy, base="sl"),
    "simclr": Objective("SimCLR (NT-Xent)", "projection", "simclr", _nt_xent, n_views=2),
    "untrained": Objective("untrained", "linear", "none", _cross_entropy, base="sl"),
    # controls
    "sl_simclr_views": Objective("supervised on one of SimCLR's views", "linear", "simclr", _cross_entropy, base="sl"),
    "random_labels": Objective(
        "supervised on shuffled labels", "linear", "supervised", _cross_entropy, random_labels=True, base="sl"
    ),
    # between SL and SimCLR, all on SimCLR's two views
    "ce_views": Objective("cross-entropy on both of SimCLR's views", "linear", "simclr", _cross_entropy, n_views=2),
    "supcon": Objective("supervised contrastive (SupCon)", "projection", "simclr", _supcon, n_views=2),
    "nscl": Objective("NT-Xent, negatives of other classes only (NSCL)", "projection", "simclr", _nscl, n_views=2),
    # other families of self-supervision
    "byol": Objective("BYOL", "projection", "simclr", _byol, n_views=2, companion=_predictor, slow=True),
    "barlow": Objective("Barlow Twins", "projection", "simclr", _barlow, n_views=2),
    "vicreg": Objective("VICReg", "projection", "simclr", _vicreg, n_views=2),
    "rotation": Objective("rotation prediction", "linear", "supervised", _cross_entropy, turned=True),
    # auxiliary tasks
    "simclr_sl_middle": Objective(
        "SimCLR, with cross-entropy at the end of stage 3",
        "projection",
        "simclr",
        _nt_xent_and_classes,
        n_views=2,
        companion=_classifier,
        layer="layer3",
    ),
    "simclr_sl_top": Objective(
        "SimCLR, with cross-entropy at the pool",
        "projection",
        "simclr",
        _nt_xent_and_classes,
        n_views=2,
        companion=_classifier,
        layer="pool",
    ),
    "sl_simclr_middle": Objective(
        "supervised on one of SimCLR's views, with NT-Xent at the end of stage 3",
        "linear",
        "simclr",
        _classes_and_nt_xent,
        n_views=2,
        base="sl",
        companion=_projector,
        layer="layer3",
    ),
}


def tau(step: int, steps: int) -> float:
    """How much of itself the slow copy keeps at step 0 <= step < steps: TAU, rising to 1 with a cosine (Grill et al. 2020)."""
    return 1 - (1 - TAU) * (math.cos(math.pi * step / steps) + 1) / 2
