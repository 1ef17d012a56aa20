"""What a network can be trained for: losses of embeddings, and objectives: a name, the head, the views, and the loss.

Some objectives train an extra module beside the network (a predictor, a classifier on a middle layer) or keep an average of its
weights; both are dropped when training ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repsim import models

TAU = 0.99  # of BYOL's target at the start of training (Grill et al. 2020 for few epochs), 1 at its end


def at_least_float32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x


def in_full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The loss in at least float32, within autocast too: a softmax over similarities is unreliable in half precision."""

    @wraps(loss)
    def outside_autocast(*inputs: Any, **settings: Any) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            return loss(*map(at_least_float32, inputs), **settings)

    return outside_autocast


def _similarities(za: Tensor, zb: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cosines of all 2n views over the temperature, (2n, 2n) with -inf on the diagonal; where each image's other view is."""
    _check_pair(za, zb)
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    n = len(za)
    z = F.normalize(torch.cat([za, zb]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    return similarity, torch.arange(2 * n, device=z.device).roll(n)


def _same_class(za: Tensor, labels: Tensor) -> Tensor:
    """Whether two of the 2n views are of one class, (2n, 2n)."""
    if labels.shape != za.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels: expected whole numbers ({len(za)},), got {labels.dtype} of {tuple(labels.shape)}")
    return labels.repeat(2)[:, None] == labels.repeat(2)


def _check_pair(a: Tensor, b: Tensor, names: str = "za, zb") -> None:
    if a.ndim != 2 or a.shape != b.shape or len(a) < 2:
        raise ValueError(f"{names}: expected two views (n, d), n >= 2, got {tuple(a.shape)} and {tuple(b.shape)}")


@in_full_precision
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (n, classes) against labels (n,), in nats."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"logits, labels: expected (n, classes) and (n,), got {shapes}")
    return F.cross_entropy(logits, labels)


@in_full_precision
def nt_xent(za: Tensor, zb: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1), in nats: log(2n - 1) if all embeddings are equal.

    Rows i of `za` and `zb`, both (n, d), are of two views of image i, each the positive of the other among 2n - 1 views.
    """
    similarity, positive = _similarities(za, zb, temperature)
    return F.cross_entropy(similarity, positive)


@in_full_precision
def supcon(za: Tensor, zb: Tensor, labels: Tensor, temperature: float = 0.5) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, L_out, equation 2), in nats: as `nt_xent`, with every other view of the
    same class, by labels (n,), as a positive; the mean over positives is outside the logarithm."""
    same, (similarity, _) = _same_class(za, labels).fill_diagonal_(False), _similarities(za, zb, temperature)
    log_p = similarity.log_softmax(dim=1)
    return -(log_p.masked_fill(~same, 0).sum(1) / same.sum(1)).mean()


@in_full_precision
def nscl(za: Tensor, zb: Tensor, labels: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent whose negatives are of other classes only (Luthra et al. 2025, "negatives-only supervised"), in nats; labels (n,)."""
    same, (similarity, positive) = _same_class(za, labels), _similarities(za, zb, temperature)
    same[torch.arange(len(same), device=same.device), positive] = False
    return F.cross_entropy(similarity.masked_fill(same, float("-inf")), positive)


@in_full_precision
def negative_cosine(p: Tensor, t: Tensor) -> Tensor:
    """Mean 2 - 2 cos of the rows of p and t, both (n, d): 0 to 4 (Grill et al. 2020, equation 2: one direction of BYOL)."""
    _check_pair(p, t, "p, t")
    return (2 - 2 * F.cosine_similarity(p, t)).mean()


@in_full_precision
def barlow_twins(za: Tensor, zb: Tensor) -> Tensor:
    """Redundancy reduction (Zbontar et al. 2021, equation 1, weight 0.005): how far the views' correlation (d, d) is from identity.
    Dimensions are standardised over the batch as by a batch norm (biased variance plus 1e-5)."""
    _check_pair(za, zb)
    za, zb = (F.batch_norm(z, None, None, training=True) for z in (za, zb))
    squares = (za.T @ zb / len(za) - torch.eye(za.shape[1], dtype=za.dtype, device=za.device)).square()
    return squares.trace() + 5e-3 * (squares.sum() - squares.trace())


@in_full_precision
def vicreg(za: Tensor, zb: Tensor) -> Tensor:
    """Variance-invariance-covariance regularisation (Bardes et al. 2022, equation 6, weights 25, 25, 1), of embeddings (n, d);
    the hinge on standard deviations is averaged over the two views, as in the authors' code."""
    _check_pair(za, zb)
    spread = sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (za, zb)) / 2
    squares = [torch.cov(z.T).reshape(z.shape[1], -1).square() for z in (za, zb)]
    redundancy = sum(s.sum() - s.trace() for s in squares) / za.shape[1]
    return 25.0 * F.mse_loss(za, zb) + 25.0 * spread + redundancy


@dataclass(frozen=True, eq=False)
class BatchOutputs:
    """What a loss is made of: one batch of n images, whole, in every rank of a torchrun; float32 at least."""

    outputs: tuple[Tensor, ...]  # of the network, (n, outputs) for each view
    labels: Tensor  # (n,)
    settings: Any  # train.Settings
    extra_module: nn.Module | None = None
    features: tuple[Tensor, ...] = ()  # of the objective's `layer`, pooled, (n, channels) for each view
    targets: tuple[Tensor, ...] = ()  # outputs of the network's moving average, without gradients, for each view


@dataclass(frozen=True)
class Objective:
    """What a network is trained for: its head, the views it sees, and the loss of its outputs, one per view."""

    head: str  # "linear" or "projection"
    views: str  # one of augment.VIEWS
    loss: Callable[[BatchOutputs], Tensor]
    n_views: int = 1
    random_labels: bool = False
    base: str = "simclr"  # the objective whose epochs and recipe a study gives it
    rotated: bool = False  # every view by a random number of quarter turns, 0 to 3, which is its label
    # (settings, n, classes) -> a module of n inputs, the channels of `layer` or the network's outputs, trained beside it
    extra_module: Callable[[Any, int, int], nn.Module] | None = None
    layer: str | None = None  # the layer or module ("layer3": the end of stage 3) whose pooled features the loss reads
    ema_copy: bool = False  # keep a copy of the network whose weights follow by moving average, as BYOL's target does


def _cross_entropy(batch: BatchOutputs) -> Tensor:
    return sum(cross_entropy(output, batch.labels) for output in batch.outputs) / len(batch.outputs)


def _nt_xent(batch: BatchOutputs) -> Tensor:
    return nt_xent(*batch.outputs, batch.settings.temperature)


def _byol(batch: BatchOutputs) -> Tensor:
    """Each view's prediction of the target's other view, both directions summed; one batch norm over both, as in the head."""
    a, b = batch.extra_module(torch.cat(batch.outputs)).chunk(2)
    return negative_cosine(a, batch.targets[1]) + negative_cosine(b, batch.targets[0])


def _nt_xent_and_classes(batch: BatchOutputs) -> Tensor:
    logits = (batch.extra_module(features) for features in batch.features)
    return _nt_xent(batch) + sum(cross_entropy(x, batch.labels) for x in logits) / len(batch.features)


def _classes_and_nt_xent(batch: BatchOutputs) -> Tensor:
    """Cross-entropy of the first view, as in sl_simclr_views; one batch norm over both views, as in SimCLR's own head."""
    a, b = batch.extra_module(torch.cat(batch.features)).chunk(2)
    return cross_entropy(batch.outputs[0], batch.labels) + nt_xent(a, b, batch.settings.temperature)


def _projector(settings: Any, n: int, classes: int) -> nn.Module:
    return models.projection_head(n, settings.hidden or n, settings.projection)


_supervised = partial(Objective, "linear", loss=_cross_entropy)
_contrastive = partial(Objective, "projection", "simclr", n_views=2)
_classified = partial(_contrastive, _nt_xent_and_classes, extra_module=lambda _, n, classes: nn.Linear(n, classes))

# Barlow Twins and VICReg are sums over dimensions, written for LARS, which does not feel their scale. SGD does: Barlow
# Twins' is multiplied by 0.1, as in solo-learn's recipe for CIFAR-10 (da Costa et al. 2022), VICReg's by 1/25.

OBJECTIVES: Mapping[str, Objective] = {
    "sl": _supervised("supervised", base="sl"),
    "simclr": _contrastive(_nt_xent),
    "untrained": _supervised("none", base="sl"),
    # controls: on one of SimCLR's views; with shuffled labels
    "sl_simclr_views": _supervised("simclr", base="sl"),
    "random_labels": _supervised("supervised", base="sl", random_labels=True),
    # between SL and SimCLR, all on SimCLR's two views
    "ce_views": _supervised("simclr", n_views=2),
    "supcon": _contrastive(lambda batch: supcon(*batch.outputs, batch.labels, batch.settings.temperature)),
    "nscl": _contrastive(lambda batch: nscl(*batch.outputs, batch.labels, batch.settings.temperature)),
    # other families of self-supervision
    "byol": _contrastive(_byol, extra_module=lambda _, n, classes: models.projection_head(n, 4 * n, n), ema_copy=True),
    "barlow": _contrastive(lambda batch: 0.1 * barlow_twins(*batch.outputs)),
    "vicreg": _contrastive(lambda batch: vicreg(*batch.outputs) / 25),
    "rotation": _supervised("supervised", rotated=True),
    # auxiliary tasks (chapter 08): cross-entropy at the end of SimCLR's stage 3 or at its pool; NT-Xent at the end of SL's stage 3
    "simclr_sl_middle": _classified(layer="layer3"),
    "simclr_sl_top": _classified(layer="pool"),
    "sl_simclr_middle": Objective(
        "linear", "simclr", _classes_and_nt_xent, n_views=2, base="sl", extra_module=_projector, layer="layer3"
    ),
}


def tau(step: int, steps: int) -> float:
    """How much of itself the moving average keeps at step 0 <= step < steps: TAU, rising to 1 with a cosine (Grill et al. 2020)."""
    return 1 - (1 - TAU) * (math.cos(math.pi * step / steps) + 1) / 2
