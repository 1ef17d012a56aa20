"""What can be read out of frozen features at each layer: classes, an image's own other view, SimCLR's loss, factors.

Every probe takes features as a mapping from layer names to tensors (n, p), p differing between layers, and gives each test
image's outcome, a table (n_test, layers), so that differences between layers and networks are paired. `accuracies` and
`by_fold` summarise outcomes. Layers of one width are fitted together, batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor

Features = Mapping[str, Tensor]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the linear probe: mean cross-entropy + penalty/2 |W|^2
RIDGE_PENALTIES = tuple(10.0**e for e in range(-6, 2))  # of the factor probe: mean squared error + penalty |W|^2
CHUNK = 1024  # rows of a similarity matrix held at once
FOLDS = 20  # of the test images, for the jackknife: image i belongs to fold i % FOLDS
CLASS_BATCH, SMALLEST_CLASS_BATCH = 64, 16  # images of a batch of one class


# ------------------------------------------------------------------------------------------------------------- classes
class LinearProbe(NamedTuple):
    """Outcomes of `linear_probe`, one column a layer."""

    loss: pd.DataFrame  # cross-entropy of each test image, in nats
    correct: pd.DataFrame  # whether its class is the most probable one
    fit: pd.DataFrame  # layer, validation_accuracy, penalty


def linear_probe(
    train: Features,
    train_labels: Tensor,
    validation: Features,
    validation_labels: Tensor,
    test: Features,
    test_labels: Tensor,
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> LinearProbe:
    """Multinomial logistic regression on each layer's standardised features, scored on the test images.

    The objective is mean cross-entropy + penalty/2 |W|^2 (scikit-learn's C is 1 / (n penalty)). The penalty is the one
    with the best validation accuracy, the larger one of equals; the test set is only ever scored. No randomness.

    Raises:
        ValueError: the splits' layers or widths differ, lengths differ, NaN, labels out of range, fewer than 2 classes,
            a penalty that is not positive.
    """
    _check_same(train=train, validation=validation, test=test)
    train_labels = _check_labels("train_labels", train_labels, train, classes)
    validation_labels = _check_labels("validation_labels", validation_labels, validation, classes)
    test_labels = _check_labels("test_labels", test_labels, test, classes)
    if len(train_labels.unique()) < 2:
        raise ValueError("train_labels: expected at least 2 different classes, got 1; nothing can be told apart")
    if not penalties or not all(p > 0 for p in penalties):
        raise ValueError(f"penalties: expected positive numbers, got {penalties!r}")
    penalties = sorted(penalties, reverse=True)  # and argmax takes the first of equals
    loss, correct, fit = {}, {}, {}
    for layers in _by_width(train):
        mean, std = _moments(x := _stack(train, layers))
        weight, bias = _softmax_regression((x - mean) / std, train_labels, classes, penalties)
        x = (_stack(validation, layers) - mean) / std
        predicted = (torch.einsum("lqkp,lnp->lqkn", weight, x) + bias).argmax(2)
        accuracy = (predicted == validation_labels).double().mean(2)
        best = accuracy.argmax(1)
        every = torch.arange(len(layers), device=best.device)
        x = (_stack(test, layers) - mean) / std
        logits = weight[every, best] @ x.mT + bias[every, best]  # (l, k, n)
        losses = F.cross_entropy(logits.double(), test_labels.expand(len(layers), -1), reduction="none")
        hits = logits.argmax(1) == test_labels
        for i, layer in enumerate(layers):
            loss[layer], correct[layer] = losses[i].cpu().numpy(), hits[i].cpu().numpy()
            fit[layer] = (layer, accuracy[i, best[i]].item(), penalties[best[i]])
    table = pd.DataFrame([fit[layer] for layer in train], columns=["layer", "validation_accuracy", "penalty"])
    return LinearProbe(*(pd.DataFrame({layer: values[layer] for layer in train}) for values in (loss, correct)), table)


def _softmax_regression(
    x: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], tolerance: float = 1e-10, steps: int = 2000
) -> tuple[Tensor, Tensor]:
    """Weights (l, q, k, p), biases (l, q, k, 1) of l layers and q penalties at once, from centred features (l, n, p).

    The Hessian of cross-entropy is at most (I - 11'/k)/2 (x) X'X/n whatever the weights (Boehning 1992). In the
    eigenvectors of X'X that bound is diagonal: in coordinates scaled by it a gradient step of length 1 needs no line
    search, and no such step is longer than the one before. Anderson's acceleration (1965; Walker and Ni 2011) combines
    the last ten; where its step is twice as long as the shortest so far, it forgets them and goes on from that one. It ends
    when a step promises less than `tolerance` nats; with 1e-6, penalties that are nearly equal on a small validation split
    were chosen otherwise than at the optimum. No layer's or penalty's course depends on its company.
    """
    n, k, q = x.shape[1], classes, len(penalties)
    values, vectors = torch.linalg.eigh((x.mT @ x).double() / n)
    vectors = vectors.to(x.dtype)
    x = x @ vectors
    one_hot = F.one_hot(labels, k).T.to(x.dtype)
    target = torch.cat([one_hot @ x, one_hot.sum(1).expand(len(x), k)[..., None]], dim=2)[:, None] / n
    # the last of p + 1 columns is the bias, which is not penalised
    bound = F.pad(0.5 * values.clamp(min=0), (0, 1), value=0.5).to(x.dtype)[:, None, None, :]
    penalty = torch.tensor(penalties, dtype=x.dtype, device=x.device).view(1, q, 1, 1).repeat(1, 1, 1, bound.shape[-1])
    penalty[..., -1] = 0
    scale = (bound + penalty).rsqrt()
    u = safe = x.new_zeros(len(x), q, k, bound.shape[-1])
    shortest, done = torch.full_like(u[..., :1, :1], math.inf), torch.zeros_like(u[..., :1, :1], dtype=torch.bool)
    finished: list[Tensor] = []
    past: list[tuple[Tensor, Tensor]] = []  # changes of u + step and of step, from each iteration to the next
    for _ in range(steps):
        w = u * scale
        # images last: softmax over a middle dimension is vectorised along them, 20 times faster than over a short last
        logits = torch.baddbmm(w[..., -1:].flatten(1, 2), w[..., :-1].flatten(1, 2), x.mT)
        share = logits.unflatten(1, (q, k)).softmax(2).flatten(1, 2)
        expected = torch.cat([share @ x, share.sum(2, keepdim=True)], dim=2).unflatten(1, (q, k)) / n
        step = scale * (target - expected - penalty * w)
        gain = step.square().sum((2, 3), keepdim=True)
        done = done | (gain < tolerance)
        if done[:, 0].all():  # the larger the penalty the sooner: what is finished need not be computed on
            cut = int(done.all(dim=0).flatten().cumprod(0).sum())
            finished.append((u * scale)[:, :cut])
            u, safe, step, gain, shortest, done = (z[:, cut:] for z in (u, safe, step, gain, shortest, done))
            scale, penalty, q = scale[:, cut:], penalty[:, cut:], q - cut
            past = [(move[:, cut:], turn[:, cut:]) for move, turn in past]
            if q == 0:
                break
        astray = gain > 4 * shortest
        safe = torch.where(gain < shortest, u + step, safe)
        shortest = torch.minimum(gain, shortest)
        ahead = u + step
        if past:
            past[-1] = (ahead - past[-1][0], step - past[-1][1])
            moves, turns = (torch.stack(changes, dim=2).flatten(3) for changes in zip(*past))  # (l, q, m, k (p + 1))
            past = [(move * ~astray, turn * ~astray) for move, turn in past[-9:]]
            gram = (turns @ turns.mT).double()
            ridge = 1e-9 * gram.diagonal(dim1=2, dim2=3).sum(2)[..., None, None] + 1e-30
            gram += ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=x.device)
            mix = torch.linalg.solve(gram, (turns @ step.flatten(2)[..., None]).double()).to(x.dtype)
            u_next = torch.where(astray, safe, ahead - (mix * moves).sum(2).view_as(u))
        else:
            u_next = ahead
        past.append((ahead, step))
        u = torch.where(done, u, u_next)
    w = torch.cat([*finished, u * scale], dim=1)
    return (w[..., :-1].flatten(1, 2) @ vectors.mT).unflatten(1, (-1, k)), w[..., -1:]


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and positions (n, k) of the k rows of `bank` (m, p) that are nearest to each row of `queries` (n, p)."""
    queries, bank = F.normalize(queries.float()), F.normalize(bank.float())
    parts = [(chunk @ bank.T).topk(k, dim=1) for chunk in queries.split(CHUNK)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def knn(
    train: Features, train_labels: Tensor, test: Features, test_labels: Tensor, *, classes: int, k: int = 10
) -> pd.DataFrame:
    """Whether the k nearest training images by cosine, each with one vote, give a test image its class: bool (n, layers).

    Of classes with equally many votes the one whose voters are more similar in sum wins. Nothing to tune, no randomness.

    Raises:
        ValueError: as `linear_probe`, and k outside 1 ... training images.
    """
    _check_same(train=train, test=test)
    train_labels = _check_labels("train_labels", train_labels, train, classes)
    test_labels = _check_labels("test_labels", test_labels, test, classes)
    if not 1 <= k <= len(train_labels):
        raise ValueError(f"k: expected 1 to {len(train_labels)} (the training images), got {k}")
    correct = {}
    for layer in train:
        similarity, index = nearest(test[layer], train[layer], k)
        votes = torch.zeros(len(index), classes, dtype=torch.float64, device=index.device)
        # |similarity| <= 1: the second term sums to less than half a vote and so decides between equals only
        votes.scatter_add_(1, train_labels[index], 1 + similarity.double() / (4 * k))
        correct[layer] = (votes.argmax(1) == test_labels).cpu().numpy()
    return pd.DataFrame(correct)


# --------------------------------------------------------------------------------------------------------------- views
def retrieval(view_a: Features, view_b: Features) -> pd.DataFrame:
    """Whether an image's view b is the nearest, by cosine, of all images' views b to its view a: bool (n, layers).

    It must be strictly the nearest: representations that are equal retrieve nothing. Chance is 1 / n.

    Raises:
        ValueError: the views' layers, widths or lengths differ, or NaN.
    """
    n = _check_pairs("view_a", view_a, "view_b", view_b)
    correct = {}
    for layer in view_a:
        similarity, index = nearest(view_a[layer], view_b[layer], min(2, n))
        own = index[:, 0] == torch.arange(n, device=index.device)
        tied = (similarity[:, 0] == similarity[:, 1]) if n > 1 else torch.zeros_like(own)
        correct[layer] = (own & ~tied).cpu().numpy()
    return pd.DataFrame(correct)


def layerwise_nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent of l layers at once: embeddings a, b (l, n, d), normalised here -> each anchor's loss (l, 2n), in nats.

    Each anchor's partner is the same image's other view, among the 2n - 1 others (Chen et al. 2020).
    """
    layers, n = a.shape[:2]
    z = F.normalize(torch.cat([a, b], dim=1), dim=2)
    logits = (z @ z.mT / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n).repeat(layers)
    return F.cross_entropy(logits.flatten(0, 1), partner, reduction="none").view(layers, 2 * n)


class FittedNTXent(NamedTuple):
    """Outcomes of `fitted_nt_xent`: the loss of each test image (mean of its two views), in nats, one column a layer."""

    mixed: pd.DataFrame  # in batches of all classes; log(2 batch - 1) for embeddings that are all equal
    of_a_class: pd.DataFrame | None  # in batches of one class; None without labels


def fitted_nt_xent(
    train_a: Features,
    train_b: Features,
    test_a: Features,
    test_b: Features,
    test_labels: Tensor | None = None,
    *,
    dimensions: int = 64,
    temperature: float = 0.5,
    steps: int = 200,
    batch: int = 256,
    learning_rate: float = 2e-2,
    seed: int = 0,
) -> FittedNTXent:
    """SimCLR's own loss at every layer: a linear projection of frozen features, trained with NT-Xent.

    Features are standardised by the training views. Each layer has its own projection onto `dimensions`, trained by
    Adam with cosine decay; the layers share the batches, and a layer's result does not depend on which others come
    along. The loss falls with fewer negatives: compare at equal `batch` only. In batches of ONE class, of min(64, the
    smallest class) test images, to know the class is to know nothing: what is left is telling images of a class apart.

    Args:
        test_labels: classes (n_test,); NaN columns are given for batches of one class where a class has fewer than 16 images.

    Raises:
        ValueError: the features' layers, widths or lengths differ, NaN, a batch below 2 or above the smaller split.
    """
    _check_same(train_a=train_a, test_a=test_a)
    n_train = _check_pairs("train_a", train_a, "train_b", train_b)
    n_test = _check_pairs("test_a", test_a, "test_b", test_b)
    if not 2 <= batch <= min(n_train, n_test):
        raise ValueError(f"batch: expected 2 to {min(n_train, n_test)} (the smaller split's images), got {batch}")
    generator = torch.Generator().manual_seed(seed)
    whole = n_train // batch  # batches of an epoch; what is left over waits for the next shuffle
    epochs = (
        torch.randperm(n_train, generator=generator).split(batch)[:whole] for _ in range(math.ceil(steps / whole))
    )
    order = list(chain.from_iterable(epochs))[:steps]
    mixed = _whole_batches(torch.randperm(n_test, generator=generator), batch)
    of_a_class: list[Tensor] = []
    if test_labels is not None:
        shuffled = torch.randperm(n_test, generator=generator)
        members = [shuffled[test_labels.cpu()[shuffled] == c] for c in test_labels.unique().cpu()]
        size = min(CLASS_BATCH, *map(len, members))
        if size >= SMALLEST_CLASS_BATCH:
            of_a_class = [rows for each in members for rows in _whole_batches(each, size)]
    losses: dict[str, dict[str, np.ndarray]] = {"mixed": {}, "of_a_class": {}}
    for layers in _by_width(train_a):
        a, b = _stack(train_a, layers), _stack(train_b, layers)
        mean, std = _moments(torch.cat([a, b], dim=1))
        a, b = (a - mean) / std, (b - mean) / std
        p = a.shape[2]
        start = torch.randn(p, dimensions, generator=torch.Generator().manual_seed(seed)) / math.sqrt(p)
        weight = start.to(a.device).repeat(len(layers), 1, 1).requires_grad_()
        optimiser = torch.optim.Adam([weight], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for row in order:
            loss = layerwise_nt_xent(a[:, row] @ weight, b[:, row] @ weight, temperature).mean(1).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            a, b = ((_stack(views, layers) - mean) / std @ weight for views in (test_a, test_b))
            for name, batches in (("mixed", mixed), ("of_a_class", of_a_class)):
                result = a.new_full((len(layers), n_test), math.nan)
                for row in batches:
                    pair = layerwise_nt_xent(a[:, row], b[:, row], temperature).unflatten(1, (2, len(row)))
                    result[:, row] = pair.mean(1)
                losses[name] |= dict(zip(layers, result.double().cpu().numpy()))
    mixed_table, class_table = (pd.DataFrame({layer: values[layer] for layer in train_a}) for values in losses.values())
    return FittedNTXent(mixed_table, None if test_labels is None else class_table)


def _whole_batches(order: Tensor, size: int) -> list[Tensor]:
    """`order` in batches of one size: the last is filled up from the first, and comes first, so that the outcomes of its
    repeated images are written over."""
    return list(reversed(torch.cat([order, order[: -len(order) % size]]).split(size)))


# ------------------------------------------------------------------------------------------------------------- factors
def factor_probe(
    train: Features,
    train_factors: pd.DataFrame,
    test: Features,
    test_factors: pd.DataFrame,
    *,
    circular: Mapping[str, float] | None = None,
    penalties: Sequence[float] = RIDGE_PENALTIES,
) -> pd.DataFrame:
    """How well can each factor be read out linearly? Ridge regression, its penalty by leave-one-out error.

    A numeric column is scored by R^2. A column in `circular` (name -> period) is regressed as sine and cosine, scored
    by their joint R^2. Any other column (categories, text, bool) is regressed as one-hot, scored by the accuracy of the
    largest. The penalty is chosen on the training images only (scikit-learn's RidgeCV).

    Returns:
        layer, factor, score, low, high (95 %; of R^2 by the delta method), measure ("R2" or "accuracy"), chance (the
        largest class's share, or 0), penalty.

    Raises:
        ValueError: layers, widths, columns, categories or lengths differ, NaN, a factor that is constant.
    """
    _check_same(train=train, test=test)
    circular = dict(circular or {})
    for name, factors, features in (("train_factors", train_factors, train), ("test_factors", test_factors, test)):
        if len(factors) != (n := len(next(iter(features.values())))):
            raise ValueError(f"{name}: expected one row for each of {n} images, got {len(factors)}")
        if list(factors.columns) != list(train_factors.columns) or not set(circular) <= set(factors.columns):
            raise ValueError(
                f"{name}: expected train_factors' columns {list(train_factors.columns)}, with those in circular "
                f"{list(circular)}, got {list(factors.columns)}"
            )
    pairs = {f: _encode(f, train_factors[f], test_factors[f], circular.get(f)) for f in train_factors}
    rows = []
    for layer in train:
        scaler = StandardScaler().fit(train[layer].double().cpu())
        x, x_test = (scaler.transform(split[layer].double().cpu()) for split in (train, test))
        for factor, (y, y_test, categorical) in pairs.items():
            model = RidgeCV(alphas=len(x) * np.array(penalties)).fit(x, y)
            predicted = model.predict(x_test).reshape(y_test.shape)
            if categorical:
                hits = pd.DataFrame({layer: predicted.argmax(1) == y_test.argmax(1)})
                score = accuracies(hits).iloc[0, 1:].tolist()
                measure, chance = "accuracy", y_test.mean(0).max()
            else:
                residual = np.square(y_test - predicted).sum(1)
                spread = np.square(y_test - y_test.mean(0)).sum(1)
                ratio = residual.mean() / spread.mean()
                half = 1.96 * (residual - ratio * spread).std() / spread.mean() / math.sqrt(len(spread))
                score = [1 - ratio, 1 - ratio - half, 1 - ratio + half]
                measure, chance = "R2", 0.0
            rows.append((layer, factor, *score, measure, chance, model.alpha_ / len(x)))
    return pd.DataFrame(rows, columns=["layer", "factor", "score", "low", "high", "measure", "chance", "penalty"])


def _encode(name: str, train: pd.Series, test: pd.Series, period: float | None) -> tuple[np.ndarray, np.ndarray, bool]:
    """A factor as regression targets (n, t) of both splits, and whether they are one-hot."""
    columns = [train, test]
    if any(column.isna().any() for column in columns):
        raise ValueError(f"factors[{name!r}]: expected a value for each image, got NaN; drop those images")
    if any(column.nunique() < 2 for column in columns):
        raise ValueError(
            f"factors[{name!r}]: expected at least 2 values in each split, got a constant; drop the column"
        )
    if period is not None:
        angles = [column.to_numpy(np.float64) * (2 * np.pi / period) for column in columns]
        return *(np.stack([np.sin(a), np.cos(a)], axis=1) for a in angles), False
    if pd.api.types.is_bool_dtype(train.dtype) or not pd.api.types.is_numeric_dtype(train.dtype):
        categories = train.astype("category").cat.categories
        if not set(test.unique()) <= set(categories):
            raise ValueError(f"factors[{name!r}]: expected test values among {list(categories)}, got others")
        return *(np.eye(len(categories))[categories.get_indexer(column)] for column in columns), True
    return *(column.to_numpy(np.float64)[:, None] for column in columns), False


# ----------------------------------------------------------------------------------------------------------- summaries
def accuracies(correct: pd.DataFrame) -> pd.DataFrame:
    """Outcomes (n, layers) of bool -> layer, accuracy, low, high: the mean with its 95 % Wilson interval."""
    rows = []
    for layer in correct:
        test = binomtest(int(correct[layer].sum()), len(correct))
        rows.append((layer, test.statistic, *test.proportion_ci(method="wilson")))
    return pd.DataFrame(rows, columns=["layer", "accuracy", "low", "high"])


def by_fold(outcomes: pd.DataFrame, folds: int = FOLDS) -> pd.DataFrame:
    """Means of outcomes (n, layers) over `folds` folds of the images, (folds, layers); `attrs["images"]` counts them."""
    fold = np.arange(len(outcomes)) % min(folds, len(outcomes))
    table = outcomes.astype(float).groupby(fold).mean()
    table.attrs["images"] = np.bincount(fold)
    return table


# --------------------------------------------------------------------------------------------------------------- doors
def _by_width(features: Features) -> Iterable[list[str]]:
    """Layers' names grouped by the number of features, so that each group stacks without padding."""
    widths: dict[int, list[str]] = {}
    for layer, x in features.items():
        widths.setdefault(x.shape[1], []).append(layer)
    return widths.values()


def _stack(features: Features, layers: Sequence[str]) -> Tensor:
    return torch.stack([features[layer].float() for layer in layers])


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over images, (..., n, p) -> (..., 1, p); of features that never vary, 1."""
    std, mean = torch.std_mean(x, dim=-2, keepdim=True, correction=0)
    return mean, torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0)


def _check_same(**splits: Features) -> None:
    """Features of several splits: the same layers of the same widths, one length within a split, finite."""
    reference_name, reference = next(iter(splits.items()))
    for name, features in splits.items():
        if not features:
            raise ValueError(f"{name}: expected at least one layer, got none")
        if list(features) != list(reference):
            raise ValueError(f"{name}: expected {reference_name}'s layers {list(reference)}, got {list(features)}")
        n = len(next(iter(features.values())))
        for layer, x in features.items():
            shape, width = tuple(x.shape), reference[layer].shape[-1]
            if x.ndim != 2 or n == 0 or shape != (n, width) or not x.is_floating_point():
                raise ValueError(
                    f"{name}[{layer!r}]: expected floats of shape ({n or 'n > 0'}, {width}) as the other layers and "
                    f"{reference_name} have, got {x.dtype} of shape {shape}"
                )
            if not x.isfinite().all():
                raise ValueError(f"{name}[{layer!r}]: expected finite features, got NaN or infinity")


def _check_pairs(name_a: str, a: Features, name_b: str, b: Features) -> int:
    """Two views of the same images; gives their number."""
    _check_same(**{name_a: a, name_b: b})
    n, n_b = len(next(iter(a.values()))), len(next(iter(b.values())))
    if n != n_b:
        raise ValueError(f"{name_b}: expected views of {name_a}'s {n} images, got {n_b}")
    return n


def _check_labels(name: str, labels: Tensor, features: Features, classes: int) -> Tensor:
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    x = next(iter(features.values()))
    if labels.shape != (len(x),) or labels.is_floating_point():
        shape = tuple(labels.shape)
        raise ValueError(f"{name}: expected integers of shape ({len(x)},), got {labels.dtype} of shape {shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{name}: expected 0 to {classes - 1}, got {labels.min().item()} to {labels.max().item()}")
    return labels.long().to(x.device)
