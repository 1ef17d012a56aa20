"""What else compares or describes representations: other measures than CKA, its null, its confounds, class geometry.

Features are (n, p): one row per image, the same images in the same order on both sides; computed in float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch import Tensor

from repsim import cka


# ------------------------------------------------------------------------------------------- comparisons of two layers
def mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> float:
    """Share of an image's k nearest neighbours (cosine) in x (n, p) that are among those in y (n, q), mean over images.

    In [0, 1]; k / (n - 1) for unrelated features. Depends on neighbourhoods alone (Huh et al. 2024).

    Raises:
        ValueError: different or too few rows, NaN or infinity, k outside 1 ... n - 1.
    """
    x, y = _pair(x, y)
    n = len(x)
    if not 1 <= k < n:
        raise ValueError(f"k: expected 1 to {n - 1} (the other images), got {k}")
    neighbours = torch.zeros(2, n, n, dtype=torch.bool)
    for side, features in enumerate((x, y)):
        unit = F.normalize(features)
        similarity = (unit @ unit.T).fill_diagonal_(-math.inf)
        neighbours[side].scatter_(1, similarity.topk(k, dim=1).indices.cpu(), True)
    return neighbours.all(dim=0).sum().item() / (n * k)


def angular_shape_distance(x: Tensor, y: Tensor) -> float:
    """arccos |X'Y|_* in [0, pi / 2], of centred and normalised features: a metric on shapes (Williams et al. 2021).

    The angle left after the best rotation of y onto x (orthogonal Procrustes); 0: equal up to rotation, shift and scale. Obeys
    the triangle inequality, so a map of layers (MDS) may be drawn from it. Unrelated features stay below pi / 2 by much when p is
    not small beside n: compare with a permuted or untrained pair.

    Raises:
        ValueError: different or fewer than 2 rows, NaN or infinity, features that are constant over the images.
    """
    return math.acos(min(1.0, _nuclear(x, y)))


def _nuclear(x: Tensor, y: Tensor) -> float:
    """|X'Y|_* in [0, 1] of centred features of Frobenius norm 1."""
    units = []
    for name, features in zip("xy", _pair(x, y)):
        centred = features - features.mean(0)
        norm = torch.linalg.vector_norm(centred)
        if norm <= 1e-12 * torch.linalg.vector_norm(features):
            raise ValueError(f"{name}: expected features that vary over the images, got constant ones")
        if centred.shape[1] > len(centred):  # wide: rotate it into as many columns as images
            centred = torch.linalg.qr(centred.T, mode="r").R.T
        units.append(centred / norm)
    return torch.linalg.svdvals(units[0].T @ units[1]).sum().item()


def rsa(x: Tensor, y: Tensor, metric: str = "correlation") -> float:
    """Spearman correlation of the two dissimilarity matrices (Kriegeskorte et al. 2008), in [-1, 1], about 0 if unrelated.

    Args:
        metric: between images' rows: "correlation" (1 - Pearson), "cosine" or "euclidean", as scipy names them.

    Raises:
        ValueError: different or fewer than 3 rows, NaN or infinity, a row whose dissimilarity is not defined.
    """
    dissimilarities = []
    for name, features in zip("xy", _pair(x, y, rows=3)):
        distances = pdist(features.cpu().numpy(), metric)
        if not np.isfinite(distances).all():
            raise ValueError(f"{name}: expected rows that have a {metric}, got one that is constant; use euclidean")
        dissimilarities.append(distances)
    return float(spearmanr(*dissimilarities).statistic)


# ---------------------------------------------------------------------------------------------- what CKA has to beat
def permutation_null(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    permutations: int = 2000,
    alpha: float = 0.05,
    generator: torch.Generator,
) -> pd.DataFrame:
    """Unbiased CKA of all pairs of layers against the same after shuffling b's images: what pairing the images is worth.

    All pairs share each shuffle, whose CKAs are one matrix product; thousands take minutes at n = 500 images and memory
    for 2 (layers of a + layers of b) n^2 numbers. The family-wise p compares with the largest CKA of all pairs under
    each shuffle (Westfall and Young 1993). The calibrated score is (CKA - q) / (1 - q) with q the null's 1 - alpha
    quantile (after Groeger et al. 2026, not cut off at 0): 1 for equal geometry, at most 0 for what a shuffle gives.

    Args:
        a, b: layer -> Gram matrix (n, n) of the same n images, not centred (for features X that is X X').
        generator: draws the shuffles, on the CPU.

    Returns:
        layer_a, layer_b, cka, null_mean, null_quantile, p, p_family, calibrated; p at least 1 / (permutations + 1).

    Raises:
        ValueError: Grams that are not (n, n) with one n >= 4, NaN or infinity, constant features, fewer than 1 / alpha
            permutations.
    """
    rows = [_centred_row(f"a[{layer!r}]", gram) for layer, gram in a.items()]
    others = [_centred_row(f"b[{layer!r}]", gram) for layer, gram in b.items()]
    if len({row.shape for row in rows + others}) != 1:
        raise ValueError(
            f"a, b: expected Grams of the same images, got {sorted({len(g) for g in [*a.values(), *b.values()]})}"
        )
    if permutations * alpha < 1:
        raise ValueError(
            f"permutations: expected at least {math.ceil(1 / alpha)} for alpha = {alpha}, got {permutations}"
        )
    n = len(rows[0])
    i, j = torch.triu_indices(n, n, 1, device=rows[0].device)
    x = torch.stack([row[i, j] for row in rows])
    y = torch.stack(others).flatten(1)
    observed = 2 * (x @ y[:, i * n + j].T).double()
    null = torch.empty(permutations, *observed.shape, dtype=torch.float64)
    for shuffled in null:
        order = torch.randperm(n, generator=generator).to(i.device)
        shuffled[:] = 2 * (x @ y[:, order[i] * n + order[j]].T)
    observed, null = observed.cpu().numpy(), null.numpy()
    quantile = np.quantile(null, 1 - alpha, axis=0)
    table = {
        "cka": observed,
        "null_mean": null.mean(0),
        "null_quantile": quantile,
        "p": (1 + (null >= observed).sum(0)) / (1 + permutations),
        "p_family": (1 + (null.max((1, 2), keepdims=True) >= observed).sum(0)) / (1 + permutations),
        "calibrated": (observed - quantile) / (1 - quantile),
    }
    index = pd.MultiIndex.from_product([a, b], names=["layer_a", "layer_b"])
    return pd.DataFrame({name: value.flatten() for name, value in table.items()}, index=index).reset_index()


def _centred_row(name: str, gram: Tensor) -> Tensor:
    """U-centred Gram of norm 1, float32: the inner product of two is unbiased CKA."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) < 4 or not gram.isfinite().all():
        raise ValueError(f"{name}: expected a finite Gram matrix (n, n), n >= 4, got shape {tuple(gram.shape)} or NaN")
    centred = cka.centre(gram, "unbiased")
    norm = torch.linalg.vector_norm(centred)
    if norm <= 1e-7 * torch.linalg.vector_norm(gram.double()):
        raise ValueError(f"{name}: expected features that vary over the images, got constant ones")
    return (centred / norm).float()


def deconfounded_cka(ab: np.ndarray, a_input: np.ndarray, b_input: np.ndarray) -> np.ndarray:
    """CKA of what is left of two Gram matrices once the input's is regressed out of both (after Cui et al. 2022).

    With centred Grams as vectors CKA is their cosine, so this is the partial one (partial distance correlation: Szekely
    and Rizzo 2014), (ab - a_input b_input) / sqrt((1 - a_input^2) (1 - b_input^2)), and needs no more than CKAs of each
    pair. Biased, in [-1, 1]; of unbiased CKAs nearly so. Arrays broadcast; NaN where a layer is its input.
    """
    ab, a_input, b_input = (np.asarray(value, dtype=np.float64) for value in (ab, a_input, b_input))
    left = np.maximum(1 - a_input**2, 0) * np.maximum(1 - b_input**2, 0)
    return np.divide(
        ab - a_input * b_input, np.sqrt(left), out=np.full(np.shape(left + ab), np.nan), where=left > 1e-12
    )


def drop_top_norm(*features: Tensor, fraction: float = 0.01) -> Tensor:
    """Indices (sorted) of the images left when those farthest from the mean are dropped (Davari et al. 2022).

    From each of the features (n, p) the `fraction`, rounded up, of largest centred norm is dropped.

    Raises:
        ValueError: different rows, NaN or infinity, a fraction outside [0, 1).
    """
    if not features or not 0 <= fraction < 1:
        raise ValueError(f"fraction: expected features and a number in [0, 1), got {len(features)} and {fraction}")
    keep = torch.ones(len(features[0]), dtype=torch.bool)
    for x in features:
        x, _ = _pair(x, features[0])
        norms = torch.linalg.vector_norm(x - x.mean(0), dim=1)
        keep[norms.topk(math.ceil(fraction * len(x))).indices.cpu()] = False
    return keep.nonzero().squeeze(1)


# ----------------------------------------------------------------------------------------------------------- classes
def within_class_centred(x: Tensor, labels: Tensor) -> Tensor:
    """x (n, p) with each class's mean taken off: what is left is not class information. Raises as `neural_collapse`."""
    x, labels, means, _ = _by_class(x, labels)
    return x - means[labels]


def nearest_class_centre(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy on the test images (m, p) of the nearest (Euclidean) class mean of the training images (n, p).

    Raises:
        ValueError: as `neural_collapse`; another width; a test label that no training image has.
    """
    _, classes, means, names = _by_class(train, train_labels)
    test, _ = _pair(test, test)
    if test.shape[1:] != train.shape[1:] or test_labels.shape != test.shape[:1]:
        raise ValueError(
            f"test: expected (m, {train.shape[1]}) and labels (m,), got {tuple(test.shape)}, {tuple(test_labels.shape)}"
        )
    if not torch.isin(test_labels, names).all():
        raise ValueError(f"test_labels: expected labels of the training images {names.tolist()}, got others")
    return (names[torch.cdist(test, means).argmin(1)] == test_labels).double().mean().item()


class NeuralCollapse(NamedTuple):
    """How far features have collapsed onto their classes (Papyan, Han and Donoho 2020); 0, 0: entirely."""

    nc1: float  # tr(S_W pinv(S_B)) / C: spread within classes relative to that of their means
    etf_deviation: float  # mean |cos + 1 / (C - 1)| over pairs of centred class means: 0 for a simplex


def neural_collapse(x: Tensor, labels: Tensor) -> NeuralCollapse:
    """NC1 and NC2 of features (n, p) with labels (n,), from the covariances within and between classes.

    Between-class directions below 1e-10 of the largest count as none.

    Raises:
        ValueError: NaN or infinity, labels of another length, fewer than 2 classes, class means that are all equal.
    """
    x, labels, means, names = _by_class(x, labels)
    within = x - means[labels]
    centred = means - means.mean(0)  # the classes weigh the same
    norms = torch.linalg.vector_norm(centred, dim=1)
    if norms.max() <= 1e-12 * torch.linalg.vector_norm(x, dim=1).max():
        raise ValueError("x: expected classes whose means differ, got equal means; nothing can collapse onto them")
    count = len(names)
    # S_B = M'M / C has rank C - 1 at most: its pseudo-inverse from M's singular values, without a (p, p) matrix
    _, values, directions = torch.linalg.svd(centred / math.sqrt(count), full_matrices=False)
    kept = values.square() > 1e-10 * values.square().max()
    nc1 = ((within @ directions[kept].T) / values[kept]).square().sum() / len(x) / count
    cosines = (centred @ centred.T / norms.outer(norms).clamp_min(1e-300)).fill_diagonal_(-1 / (count - 1))
    deviation = (cosines + 1 / (count - 1)).abs().sum() / (count * (count - 1))
    return NeuralCollapse(nc1.item(), deviation.item())


# ---------------------------------------------------------------------------------------------------------- stitching
class Stitch(NamedTuple):
    """A 1x1 convolution, weight (d, c, 1, 1) and bias (d,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, a: Tensor) -> Tensor:
        return F.conv2d(a, self.weight, self.bias)


def stitch(a: Tensor, b: Tensor) -> Stitch:
    """The 1x1 convolution from activations a (n, c, h, w) to b (n, d, h, w) of the same images, by least squares.

    Linear stitching (Lenc and Vedaldi 2015; Bansal, Nakkiran and Barak 2021, whose stitches are trained on the task). Of
    many equally good weights the smallest; not symmetric. Score it on other images than it was fitted to.

    Raises:
        ValueError: not four-dimensional, other images or places, NaN or infinity.
    """
    if a.ndim != 4 or b.ndim != 4 or (len(a), *a.shape[2:]) != (len(b), *b.shape[2:]):
        raise ValueError(f"a, b: expected (n, c, h, w) and (n, d, h, w), got {tuple(a.shape)} and {tuple(b.shape)}")
    x, y = _pair(*(z.movedim(1, 3).flatten(0, 2) for z in (a, b)))
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    weight = torch.linalg.pinv(x.T @ x, hermitian=True, rtol=1e-10) @ (x.T @ y)  # (c, d)
    bias = mean_y - mean_x @ weight
    return Stitch(*(value.to(a.device, a.dtype) for value in (weight.T[:, :, None, None], bias)))


# -------------------------------------------------------------------------------------------------------------- doors
def _pair(x: Tensor, y: Tensor, rows: int = 2) -> tuple[Tensor, Tensor]:
    """Both in float64, after the checks that every comparison needs."""
    for name, value in (("x", x), ("y", y)):
        if value.ndim != 2 or len(value) < rows:
            raise ValueError(f"{name}: expected shape (n, p) with n >= {rows}, got {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name}: expected finite values, got NaN or infinity; leave such rows out")
    if len(x) != len(y):
        raise ValueError(f"x, y: expected features of the same images, got {len(x)} and {len(y)} rows")
    x, y = (cka.exact(value.detach()) for value in (x, y))
    return x, y.to(x.device)


def _by_class(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x in float64, labels as positions 0 ... C - 1, class means (C, p), and the C labels."""
    x, _ = _pair(x, x)
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels: expected integers ({len(x)},), got {labels.dtype} of shape {tuple(labels.shape)}")
    names, index, counts = labels.to(x.device).unique(return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"labels: expected at least 2 classes, got {len(names)}")
    means = x.new_zeros(len(names), x.shape[1]).index_add_(0, index, x) / counts[:, None]
    return x, index, means, names
