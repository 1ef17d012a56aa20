"""What can be read out of frozen features at each layer: classes, an image's own other view, SimCLR's loss.

Every probe takes features as a mapping from layer names to tensors (n, p), p differing between layers, and gives each test
image's outcome, a table (n_test, layers), so that differences between layers and networks are paired. `by_fold` averages
outcomes. Layers of one width are fitted together, batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

Features = Mapping[str, Tensor]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the linear probe: mean cross-entropy + penalty/2 |W|^2
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
    _check_features(train=train, validation=validation, test=test)
    train_labels = _check_labels("train_labels", train_labels, train, classes)
    validation_labels = _check_labels("validation_labels", validation_labels, validation, classes)
    test_labels = _check_labels("test_labels", test_labels, test, classes)
    if len(train_labels.unique()) < 2:
        raise ValueError("train_labels: expected at least 2 different classes, got 1; nothing can be told apart")
    if not penalties or not all(p > 0 for p in penalties):
        raise ValueError(f"penalties: expected positive numbers, got {penalties!r}")
    penalties = sorted(penalties, reverse=True)  # and argmax takes the first of equals
    loss, correct, fit = {}, {}, {}
    for layers, (x, x_validation, x_test) in _stacks(train, validation, test):
        weight, bias = _softmax_regression(x, train_labels, classes, penalties)
        predicted = (torch.einsum("lqkp,lnp->lqkn", weight, x_validation) + bias).argmax(2)
        accuracy = (predicted == validation_labels).double().mean(2)
        best, every = accuracy.argmax(1), torch.arange(len(layers), device=x.device)
        logits = weight[every, best] @ x_test.mT + bias[every, best]  # (l, k, n)
        losses = F.cross_entropy(logits.double(), test_labels.expand(len(layers), -1), reduction="none")
        loss |= zip(layers, losses.cpu().numpy())
        correct |= zip(layers, (logits.argmax(1) == test_labels).cpu().numpy())
        fit |= {layer: (layer, accuracy[i, best[i]].item(), penalties[best[i]]) for i, layer in enumerate(layers)}
    table = pd.DataFrame([fit[layer] for layer in train], columns=["layer", "validation_accuracy", "penalty"])
    return LinearProbe(pd.DataFrame(loss, columns=[*train]), pd.DataFrame(correct, columns=[*train]), table)


def _softmax_regression(
    x: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], tolerance: float = 1e-10, steps: int = 2000
) -> tuple[Tensor, Tensor]:
    """Weights (l, q, k, p), biases (l, q, k, 1) of l layers and q falling penalties at once, from centred features (l, n, p).

    The Hessian of cross-entropy is at most (I - 11'/k)/2 (x) X'X/n whatever the weights (Boehning 1992). In the eigenvectors of
    X'X that bound is diagonal: in coordinates scaled by it a gradient step of length 1 needs no line search, and no such step
    is longer than the one before. Anderson's acceleration (1965; Walker and Ni 2011) combines the last ten; where its step is
    twice as long as the shortest so far, it forgets them and goes on from that one. It ends when a step promises less than
    `tolerance` nats; 1e-6 chose other penalties on small validation splits. No layer's or penalty's course depends on others.
    """
    n, k, q = x.shape[1], classes, len(penalties)
    values, vectors = torch.linalg.eigh((x.mT @ x).double() / n)
    vectors = vectors.to(x.dtype)
    x = x @ vectors
    one_hot = F.one_hot(labels, k).T.to(x.dtype)
    target = torch.cat([one_hot @ x, one_hot.sum(1).expand(len(x), k)[..., None]], dim=2)[:, None] / n
    # the last of p + 1 columns is the bias, which is not penalised
    bound = F.pad(0.5 * values.clamp(min=0), (0, 1), value=0.5).to(x.dtype)[:, None, None]
    penalty = F.pad(x.new_tensor(penalties).view(1, q, 1, 1).expand(-1, -1, -1, x.shape[2]), (0, 1))
    scale = (bound + penalty).rsqrt()
    u = safe = x.new_zeros(len(x), q, k, scale.shape[3])
    shortest, done = x.new_full((len(x), q, 1, 1), math.inf), x.new_zeros(len(x), q, 1, 1, dtype=torch.bool)
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
        if cut := int(done.all(0).flatten().cumprod(0).sum()):  # larger penalties end sooner, and are computed no more
            finished.append(w[:, :cut])
            state = (u, safe, step, gain, shortest, done, scale, penalty)
            u, safe, step, gain, shortest, done, scale, penalty = (z[:, cut:] for z in state)
            past = [(move[:, cut:], turn[:, cut:]) for move, turn in past]
            if (q := q - cut) == 0:
                break
        ahead = accelerated = u + step
        astray = gain > 4 * shortest
        safe = torch.where(gain < shortest, ahead, safe)
        shortest = torch.minimum(gain, shortest)
        if past:
            past[-1] = (ahead - past[-1][0], step - past[-1][1])
            moves, turns = (torch.stack(changes, dim=2).flatten(3) for changes in zip(*past))  # (l, q, m, k (p + 1))
            past = [(move * ~astray, turn * ~astray) for move, turn in past[-9:]]
            gram = (turns @ turns.mT).double()
            diagonal = gram.diagonal(dim1=2, dim2=3)
            diagonal += 1e-9 * diagonal.sum(2, keepdim=True) + 1e-30  # a ridge
            mix = torch.linalg.solve(gram, (turns @ step.flatten(2)[..., None]).double()).to(x.dtype)
            accelerated = torch.where(astray, safe, ahead - (mix * moves).sum(2).view_as(u))
        past.append((ahead, step))
        u = torch.where(done, u, accelerated)
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
    Raises ValueError as `linear_probe`, and for k outside 1 ... training images.
    """
    _check_features(train=train, test=test)
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
    Raises ValueError where the views' layers, widths or lengths differ, and for NaN.
    """
    _check_features(view_a=view_a, view_b=view_b)
    correct = {}
    for layer, queries in view_a.items():
        similarity, index = nearest(queries, view_b[layer], min(2, len(queries)))
        hits = index[:, 0] == torch.arange(len(queries), device=index.device)
        correct[layer] = (hits & (similarity[:, 0] > similarity[:, -1])).cpu().numpy()
    return pd.DataFrame(correct)


def layerwise_nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """`objectives.nt_xent` of l layers at once: embeddings a, b (l, n, d) -> each anchor's loss (l, 2n), in nats."""
    layers, n = a.shape[:2]
    z = F.normalize(torch.cat([a, b], dim=1), dim=2)
    logits = (z @ z.mT / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n).repeat(layers)
    return F.cross_entropy(logits.flatten(0, 1), partner, reduction="none").view(layers, 2 * n)


class FittedNTXent(NamedTuple):
    """Outcomes of `fitted_nt_xent`: the loss of each test image (mean of its two views), in nats, one column a layer."""

    mixed: pd.DataFrame  # in batches of all classes; log(2 batch - 1) for embeddings that are all equal
    of_a_class: pd.DataFrame  # in batches of one class; NaN without labels


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
        test_labels: classes (n_test,); the losses in batches of one class are NaN if one has fewer than 16 images.

    Raises:
        ValueError: the features' layers, widths or lengths differ, NaN, a batch below 2 or above the smaller split.
    """
    _check_features(train_a=train_a, train_b=train_b, test_a=test_a, test_b=test_b)
    n_train, n_test = (len(next(iter(split.values()))) for split in (train_a, test_a))
    if not 2 <= batch <= min(n_train, n_test):
        raise ValueError(f"batch: expected 2 to {min(n_train, n_test)} (the smaller split's images), got {batch}")
    generator = torch.Generator().manual_seed(seed)
    order: list[Tensor] = []
    while len(order) < steps:  # an epoch of whole batches; what is left over waits for the next shuffle
        order += torch.randperm(n_train, generator=generator).split(batch)[: n_train // batch]
    batches = {"mixed": _whole_batches(torch.randperm(n_test, generator=generator), batch), "of_a_class": []}
    if test_labels is not None:
        shuffled = torch.randperm(n_test, generator=generator)
        members = [shuffled[test_labels.cpu()[shuffled] == c] for c in test_labels.unique().cpu()]
        size = min(CLASS_BATCH, *map(len, members))
        if size >= SMALLEST_CLASS_BATCH:
            batches["of_a_class"] = [rows for each in members for rows in _whole_batches(each, size)]
    losses: dict[str, dict[str, np.ndarray]] = {"mixed": {}, "of_a_class": {}}
    for layers, (a, b, *test_views) in _stacks(train_a, train_b, test_a, test_b, reference=2):
        p = a.shape[2]
        start = torch.randn(p, dimensions, generator=torch.Generator().manual_seed(seed)) / math.sqrt(p)
        weight = start.to(a.device).repeat(len(layers), 1, 1).requires_grad_()
        optimiser = torch.optim.Adam([weight], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for rows in order[:steps]:
            loss = layerwise_nt_xent(a[:, rows] @ weight, b[:, rows] @ weight, temperature).mean(1).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        a, b = (x @ weight.detach() for x in test_views)
        for name, of_layers in losses.items():
            result = a.new_full((len(layers), n_test), math.nan)
            for rows in batches[name]:
                result[:, rows] = layerwise_nt_xent(a[:, rows], b[:, rows], temperature).unflatten(1, (2, -1)).mean(1)
            of_layers |= zip(layers, result.double().cpu().numpy())
    return FittedNTXent(*(pd.DataFrame(of_layers, columns=[*train_a]) for of_layers in losses.values()))


def _whole_batches(order: Tensor, size: int) -> list[Tensor]:
    """`order` in batches of one size: the last is filled up from the first, and comes first, to be written over."""
    return list(reversed(torch.cat([order, order[: -len(order) % size]]).split(size)))


# --------------------------------------------------------------------------------------------------- summaries, doors
def by_fold(outcomes: pd.DataFrame, folds: int = FOLDS) -> pd.DataFrame:
    """Means of outcomes (n, layers) over `folds` folds of the images, (folds, layers); `attrs["images"]` counts them."""
    fold = np.arange(len(outcomes)) % min(folds, len(outcomes))
    table = outcomes.astype(float).groupby(fold).mean()
    table.attrs["images"] = np.bincount(fold)
    return table


def _stacks(*splits: Features, reference: int = 1) -> Iterator[tuple[list[str], list[Tensor]]]:
    """The layers of each width and their features in every split, (l, n, p), standardised by the first `reference` splits."""
    widths: dict[int, list[str]] = {}
    for layer, x in splits[0].items():
        widths.setdefault(x.shape[1], []).append(layer)
    for layers in widths.values():
        stacks = [torch.stack([split[layer].float() for layer in layers]) for split in splits]
        std, mean = torch.std_mean(torch.cat(stacks[:reference], dim=1), dim=1, keepdim=True, correction=0)
        std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0)  # of features that never vary: 1
        yield layers, [(x - mean) / std for x in stacks]


def _check_features(**splits: Features) -> None:
    """Raise ValueError unless all splits have the same layers and widths, a split's layers one length, "_b" that of its "_a"."""
    first, reference = next(iter(splits.items()))
    for name, features in splits.items():
        if not features or list(features) != list(reference):
            raise ValueError(f"{name}: expected {first}'s layers {list(reference)}, at least one, got {list(features)}")
        if not name.endswith("_b"):
            like, n = name, len(next(iter(features.values())))
        for layer, x in features.items():
            width, got = reference[layer].shape[-1], f"got {x.dtype} of shape {tuple(x.shape)}"
            if x.shape != (n, width) or n == 0 or not x.is_floating_point():
                expected = f"floats of shape ({n or 'n > 0'}, {width}) as {like} and {first} have"
                raise ValueError(f"{name}[{layer!r}]: expected {expected}, {got}")
            if not x.isfinite().all():
                raise ValueError(f"{name}[{layer!r}]: expected finite features, got NaN or infinity")


def _check_labels(name: str, labels: Tensor, features: Features, classes: int) -> Tensor:
    """The labels as int64 on the features' device. Raises ValueError unless there is one of 0 to classes - 1 for each image."""
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    x = next(iter(features.values()))
    if labels.shape != (len(x),) or labels.is_floating_point():
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ValueError(f"{name}: expected integers of shape ({len(x)},), got {got}")
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{name}: expected 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    return labels.long().to(x.device)
