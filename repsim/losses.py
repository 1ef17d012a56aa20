"""The objectives, each a pure function of embeddings (and labels) that returns a scalar, in float32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """At least float32: a softmax over similarities is not to be trusted in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_pair(za: Tensor, zb: Tensor, names: str = "za, zb") -> None:
    if za.ndim != 2 or za.shape != zb.shape or len(za) < 2:
        raise ValueError(
            f"{names}: expected two views of the same n >= 2 images, both (n, d), got {tuple(za.shape)} and {tuple(zb.shape)}"
        )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits (n, classes) against labels (n,), in nats."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits, labels: expected (n, classes) and (n,), got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    return F.cross_entropy(wide(logits), labels)


def nt_xent(za: Tensor, zb: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1), in nats.

    Row i of `za` and row i of `zb`, both (n, d), are embeddings of two views of image i. For each of the 2n views the
    other view of its image is the positive among the 2n - 1 others: log(2n - 1) when all embeddings are equal.
    """
    similarity, positive = _similarities(za, zb, temperature)
    return F.cross_entropy(similarity, positive)


def supcon(za: Tensor, zb: Tensor, labels: Tensor, temperature: float = 0.5) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, L_out, equation 2), in nats.

    As `nt_xent`, with every other view of the same class as a positive; the mean over positives is outside the logarithm.
    With labels (n,) that all differ it is `nt_xent`.
    """
    same, (similarity, _) = _same(za, labels), _similarities(za, zb, temperature)
    same.fill_diagonal_(False)
    log_p = similarity.log_softmax(dim=1)
    return -(log_p.masked_fill(~same, 0).sum(1) / same.sum(1)).mean()


def nscl(za: Tensor, zb: Tensor, labels: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent whose negatives are of other classes only (Luthra et al. 2025, "negatives-only supervised"), in nats.

    The positive is the image's other view, as in `nt_xent`, which it is where labels (n,) all differ; 0 where all are equal.
    """
    same, (similarity, positive) = _same(za, labels), _similarities(za, zb, temperature)
    same[torch.arange(len(same), device=same.device), positive] = False
    return F.cross_entropy(similarity.masked_fill(same, float("-inf")), positive)


def negative_cosine(p: Tensor, t: Tensor) -> Tensor:
    """Mean 2 - 2 cos of the rows of p and t, both (n, d): 0 to 4 (Grill et al. 2020, equation 2: one direction of BYOL)."""
    _check_pair(p, t, "p, t")
    return (2 - 2 * F.cosine_similarity(wide(p), wide(t))).mean()


def barlow_twins(za: Tensor, zb: Tensor, weight: float = 5e-3) -> Tensor:
    """Redundancy reduction (Zbontar et al. 2021, equation 1): how far the views' cross-correlation (d, d) is from identity.

    The squares of its diagonal's distance from 1 are summed, and `weight` times those of all other entries. Every
    dimension is standardised over the batch as by a batch norm (biased variance plus 1e-5).
    """
    _check_pair(za, zb)
    if not weight >= 0:
        raise ValueError(f"weight: expected 0 or more, got {weight}")
    za, zb = (F.batch_norm(wide(z), None, None, training=True) for z in (za, zb))
    squares = (za.T @ zb / len(za) - torch.eye(za.shape[1], dtype=za.dtype, device=za.device)).square()
    return squares.trace() + weight * (squares.sum() - squares.trace())


def vicreg(
    za: Tensor, zb: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, eps: float = 1e-4
) -> Tensor:
    """Variance-invariance-covariance regularisation (Bardes et al. 2022, equation 6), of embeddings (n, d).

    Invariance is the mean square of za - zb; variance a hinge that asks each dimension for a standard deviation of 1, averaged
    over the two views as the authors' code has it; covariance the squares off the diagonal, over d, of both views.
    """
    _check_pair(za, zb)
    if not min(invariance, variance, covariance) >= 0 or not eps > 0:
        raise ValueError(
            "invariance, variance, covariance, eps: expected weights of 0 or more and a positive eps, "
            f"got {invariance}, {variance}, {covariance} and {eps}"
        )
    za, zb = wide(za), wide(zb)
    spread = sum(F.relu(1 - (z.var(0) + eps).sqrt()).mean() for z in (za, zb)) / 2
    squares = [torch.cov(z.T).reshape(z.shape[1], -1).square() for z in (za, zb)]
    redundancy = sum(s.sum() - s.trace() for s in squares) / za.shape[1]
    return invariance * F.mse_loss(za, zb) + variance * spread + covariance * redundancy


def _similarities(za: Tensor, zb: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cosines of all 2n views over the temperature, (2n, 2n) with -inf on the diagonal; where each image's other view is."""
    _check_pair(za, zb)
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    n = len(za)
    z = F.normalize(wide(torch.cat([za, zb])), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    return similarity, torch.arange(2 * n, device=z.device).roll(n)


def _same(za: Tensor, labels: Tensor) -> Tensor:
    """Whether two of the 2n views are of one class, (2n, 2n)."""
    if labels.shape != za.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels: expected whole numbers of shape {tuple(za.shape[:1])}, got {labels.dtype} of {tuple(labels.shape)}"
        )
    labels = labels.repeat(2)
    return labels[:, None] == labels
