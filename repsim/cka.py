"""Centred kernel alignment of everything with everything, from one pass over the images.

Whatever can be compared is a stream of Gram matrices over the same images: a layer of any network, the same layer under an
augmented view, the labels, the pixels, features from elsewhere. Each batch gives one Gram a source, made inside the forward
hook, and the HSIC of every pair at once. Minibatch CKA (Nguyen, Raghu and Kornblith 2021) averages HSIC over batches and
takes the ratio HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) LAST (`repsim.comparison`).

With the U-centred Grams of m images (Szekely and Rizzo 2014) as the rows of a matrix,

    HSIC_1(K, L) = <U(K), U(L)> / (m (m - 3))        (unbiased: Song et al. 2012)

of all pairs is that matrix times its transpose. Grams are made in float32, everything after that in float64. U-centring
cancels the features' mean exactly, but only in exact arithmetic. So K is made from the features as they are, and how much
of it survives the centring is read off K; where that is too little, the features are centred first and the source is
remembered: only such sources pay for centring.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from scipy.special import fdtrc
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from tqdm import tqdm

from repsim import store, taps
from repsim.comparison import Comparison, Source
from repsim.taps import Inputs, Layers, Reduction, as_features, as_labels, as_tensor

ESTIMATORS = ("unbiased", "biased")
VARIANTS = (*ESTIMATORS, "rbf", "trimmed")  # what one pass of `compare` can give
KERNELS = ("linear", "rbf")
LABELS, PIXELS = ("labels", "labels"), ("pixels", "pixels")  # sources


def cka(x: Tensor, y: Tensor, *, estimator: str = "unbiased", kernel: str = "linear", threshold: float = 1.0) -> float:
    """CKA of two representations of the same n images, in float64.

    Args:
        x, y: features (n, p) and (n, q), tensors or arrays; further dimensions are flattened.
        estimator: "unbiased" (HSIC_1: about 0 for independent features, may be slightly negative, at most 1), or "biased"
            (HSIC_0 of Kornblith et al. 2019, in [0, 1]; for independent noise near sqrt(pq / ((n + p)(n + q)))).
        kernel: "linear", or "rbf" with a bandwidth of `threshold` times the median distance (Kornblith et al. 2019).

    Returns:
        The value; NaN, with a warning, where it is undefined: a representation that is constant over the images.

    Raises:
        TypeError: no numbers. ValueError: different or fewer than 4 rows, NaN or infinity, unknown settings.
    """
    for name, value, known in (("estimator", estimator, ESTIMATORS), ("kernel", kernel, KERNELS)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if not threshold > 0:
        raise ValueError(f"threshold: expected a positive number, got {threshold}")
    x, y = (as_features(value, name, least=4) for name, value in (("x", x), ("y", y)))
    if x.ndim < 2 or y.ndim < 2 or len(x) != len(y):
        raise ValueError(
            f"x, y: expected features (n, p) and (n, q) of the same images, got {tuple(x.shape)} and {tuple(y.shape)}; "
            "x[:, None] makes one feature of numbers"
        )
    centred = []
    for value in (x, y):
        gram, raw = centred_gram(flat(exact(value)))
        varies = gram.trace() > tolerance(value.dtype) * raw
        centred.append(centre(rbf(gram, threshold) if kernel == "rbf" else gram, estimator) * varies)
    k, l = centred[0], centred[1].to(centred[0].device)
    k, l = (gram / gram.norm().clamp_min(1e-300) for gram in (k, l))
    norms = (k * k).sum() * (l * l).sum()
    if not norms > 0:
        warnings.warn("cka: undefined (NaN), as a representation is constant over the images", stacklevel=2)
        return float("nan")
    return float((k * l).sum() / norms.sqrt())


@torch.no_grad()
def compare(
    models: Mapping[str, nn.Module] | None = None,
    images: Tensor | Iterable | None = None,
    *,
    labels: Tensor | bool | None = None,
    views: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] | None = None,
    features: Mapping[str, Tensor | Mapping[str, Tensor]] | None = None,
    ids: Mapping[str, Sequence] | None = None,
    pixels: bool = False,
    layers: Layers | Mapping[str, Layers] = None,
    reduction: Reduction | Mapping[str, Reduction] = "none",
    estimators: Sequence[str] = ("unbiased",),
    threshold: float = 1.0,
    leave_out: Tensor | Sequence[int] | None = None,
    batch_size: int = 128,
    folds: int = 20,
    transform: Callable[[Inputs], Inputs] | Mapping[str, Callable[[Inputs], Inputs]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Minibatch CKA of all layers of all networks, and of labels, pixels and features, from one pass over the images.

    Every network sees a batch before the next one is read: two orders of the images cannot get mixed up. Memory is flat in
    their number: one batch, one layer's activations, a Gram (batch, batch) a source and `folds` matrices (sources,
    sources). Only images of one batch are compared with each other, so their order must be random: a warning says where it
    is that of the classes. Under torch.autocast the networks run in half precision, Grams stay in float32.

    Args:
        models: name -> network, used on its device in eval mode and left as it was. Without any, features are compared.
        images: uint8 (n, 3, h, w) or (n, 1, h, w), brought into the study's scale, or float, given as they are, in nearly
            equal batches of at most `batch_size` (`batch_size=n` gives the exact value of the full sample); or a loader, read
            once, whose batches are taken as they come (`repsim.taps.batches`), fewer than 4 images with the batch before.
        labels: whole numbers (n,), the classes, or a row of numbers an image (n, c): the stream "labels". None takes them
            from a loader that has them, False leaves them out.
        views: name -> function of (images, generator), called once a batch, its result given to every network: the
            streams "network@view". The generator depends on `seed`, view and batch only.
        features: name -> (n, p), a stream each, or name -> {layer: (n, p)}; beside a loader in its order, which has to be
            that of its data set (the order of an IterableDataset cannot be checked).
        ids: names of features, or "images", -> n names of the images, which have to be the same in the same order.
        pixels: add the stream "pixels".
        layers: as for `repsim.taps.resolve`, for all networks; or a mapping from every network to those.
        reduction: "none" compares whole activation maps; else as for `repsim.taps.pooled`.
        estimators: "unbiased", "biased"; "rbf", which is unbiased with an RBF kernel, whose bandwidth, `threshold` times the
            median distance, is each batch's own (classes are compared by equality); "trimmed", unbiased without the images
            `leave_out`, positions in the order of the pass.
        folds: batch i belongs to fold i % folds; intervals come from leaving out each fold in turn.
        transform: makes a network's input of a batch, for all networks or by name; views are given as they are.

    Returns:
        A `Comparison`. Layers that are constant over the images are undefined (NaN) in it, and a warning names them.

    Raises:
        ValueError, TypeError: an argument that cannot be used, as `repsim.taps.survey` finds on three images too; fewer than
            4 images; NaN or infinite activations (network, layer and batch are named).
    """
    models, views, features = ({} if value is None else value for value in (models, views, features))
    _check(models, views, features, layers, transform, batch_size, folds, estimators, threshold)
    given: dict[Source, Tensor] = {}
    for name, value in features.items():
        for layer, x in value.items() if isinstance(value, Mapping) else ((name, value),):
            title = f"features, {name if layer == name else f'{name}/{layer}'}"
            given[name, str(layer)] = as_features(x, title, least=4)
    _check_ids(ids or {}, given)
    if images is None:
        if models or pixels or not given:
            raise TypeError("images: expected a tensor or a loader of batches, got None")
        images = torch.zeros(len(next(iter(given.values()))), 1)
    total = None
    if isinstance(images, Tensor) or hasattr(images, "__array__"):
        images = as_tensor(images, "images")
        total = len(images) if images.ndim else 0
    if labels is not None and labels is not False:
        given[LABELS], labels = as_labels(labels), False
    if given and isinstance(images, DataLoader) and not isinstance(images.dataset, IterableDataset):
        if type(getattr(images.batch_sampler or images, "sampler", None)) is not SequentialSampler:
            raise ValueError(
                f"{', '.join(stream for stream, _ in given)}: expected rows in the loader's order, got a loader that shuffles or "
                "selects; DataLoader(torch.utils.data.Subset(dataset, order)) has an order in which to give the rows"
            )
    dropped = torch.zeros(0, dtype=torch.int64) if leave_out is None else as_tensor(leave_out, "leave_out").cpu()
    if dropped.is_floating_point() or dropped.ndim != 1 or ("trimmed" in estimators) != (leave_out is not None):
        raise ValueError("leave_out: expected positions of images (k,), together with the estimator 'trimmed' alone")
    transforms = transform if isinstance(transform, Mapping) else dict.fromkeys(models, transform)
    device = next((p.device for model in models.values() for p in model.parameters()), torch.device("cpu"))
    exact_device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    taps.tune_allocator()

    sums: HsicSums | None = None
    start = 0
    pieces = taps.batches(images, batch_size, least=4, labels=labels is None)
    for i, (x, y) in enumerate(tqdm(pieces, desc="compare", unit="batch", leave=False, disable=not progress)):
        stop = start + taps.rows(x)
        _check_images(x, start, stop, tensor=bool(views) or pixels)
        part = _slice(given, start, stop, total)
        part = {LABELS: part.pop(LABELS, y), PIXELS: x.float() if pixels else None, **part}
        part = {source: values for source, values in part.items() if values is not None}
        if sums is None:
            tapped = {}
            for name, model in models.items():
                wanted = layers[name] if isinstance(layers, Mapping) else layers
                tapped[name] = taps.survey(model, wanted, x, reduction, transforms.get(name))
            sources = [(s, l) for m in models for s in (m, *(f"{m}@{v}" for v in views)) for l in tapped[m]]
            sums = HsicSums([*sources, *part], estimators, folds, exact_device, threshold)
        keep = ~torch.isin(torch.arange(start, stop), dropped) if "trimmed" in estimators else None
        sums.begin_batch(stop - start, keep)
        x = {k: v.to(device) for k, v in x.items()} if isinstance(x, dict) else x.to(device, non_blocking=True)
        for view in (None, *views):
            seen = x if view is None else views[view](x, store.generator(seed, "views", view, i))
            for name, model in models.items():
                stream = name if view is None else f"{name}@{view}"
                inputs = taps.network_input(seen, model, transforms.get(name) if view is None else None)
                taps.run(model, tapped[name], inputs, partial(sums.add, stream))
        for source, values in part.items():
            add = sums.add_classes if source == LABELS and values.ndim == 1 else sums.add
            add(*source, values.to(exact_device))
        sums.end_batch(i % folds, i)
        start = stop
    _slice(given, start, start, start)
    used = sums.weights > 0
    hsic = {estimator: sums.sums[e, used].cpu() for e, estimator in enumerate(sums.estimators)}
    result = Comparison.of(sums.row, hsic, sums.weights[used].cpu())
    if result.undefined:
        names = ", ".join(stream if stream == layer else f"{stream}/{layer}" for stream, layer in result.undefined)
        warnings.warn(f"compare: undefined (NaN), being constant (self-HSIC not positive): {names}", stacklevel=3)
    if ordered := [stream for stream, means in sums.means.items() if means.p_value() < 1e-6]:
        warnings.warn(
            f"compare: batches differ in their means far beyond chance ({', '.join(ordered)}): the images seem to be sorted, as "
            "by class. What distinguishes batches is never compared; put the images into one random order first, such as "
            "images[torch.randperm(n)], Subset(dataset, torch.randperm(n)) or DataLoader(..., shuffle=True)",
            stacklevel=3,
        )
    return result


def flat(x: Tensor) -> Tensor:
    """(m, ...) -> (m, p), a view in any dense memory format: a Gram does not care for the order of features."""
    if x.ndim == 1:
        return x[:, None]
    return x.permute(0, *sorted(range(1, x.ndim), key=lambda d: -x.stride(d))).flatten(1)


def exact(x: Tensor) -> Tensor:
    """x in float64; on the CPU where its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def tolerance(dtype: torch.dtype) -> float:
    """The share of a Gram's trace below which what centring leaves is rounding: the source is constant."""
    return (16 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps) ** 2


def centred_gram(x: Tensor, scaled: bool = True) -> tuple[Tensor, Tensor]:
    """Gram (m, m) of the centred columns of x (m, p), and its trace without centring; float64.

    Takes the columns in parts that fit into the processor's cache: x is read from memory once and never copied whole.
    `scaled` spends another pass so that squares neither overflow nor vanish in float32, whatever the scale of x.
    """
    m = len(x)
    gram = x.new_zeros(m, m, dtype=torch.float64)
    offset = gram.new_zeros(())
    for part in x.split(max(1, (1 << 17 if x.device.type == "cpu" else 1 << 26) // m), dim=1):
        part = part if part.dtype == torch.float64 else part.float()
        square = gram.new_ones(())
        if scaled:
            scale = torch.stack(part.aminmax()).abs().amax().clamp_min(torch.finfo(part.dtype).tiny)
            part, square = part / scale, scale.double().square()
        mean = part.mean(dim=0)
        part = part - mean
        gram += (part @ part.T).double() * square
        offset += (mean @ mean).double() * square
    return gram, gram.trace() + m * offset


def product(x: Tensor) -> Tensor:
    """x x^T (m, m) of x (m, p), about a fifth faster than `x @ x.T` on the CPU where p is in the thousands.

    Of the mirrored halves only one is computed, and the columns are taken in four parts, which threads share better.
    """
    if x.shape[1] < 2048 or x.shape[1] % 4:
        return x @ x.T
    parts, half = x.unflatten(1, (4, -1)).transpose(0, 1), len(x) // 2
    top = torch.bmm(parts[:, :half], parts.mT).sum(dim=0)
    corner = torch.bmm(parts[:, half:], parts[:, half:].mT).sum(dim=0)
    return torch.cat([top, torch.cat([top[:, half:].T, corner], dim=1)])


def rbf(gram: Tensor, threshold: float) -> Tensor:
    """exp(-d^2 / (2 threshold^2 median(d^2))) of the features whose linear Gram this is.

    The median is numpy's over all m^2 entries, the zero diagonal included, as in the code of Kornblith et al. 2019.
    """
    energy = gram.diagonal()
    distances = (energy[:, None] + energy[None, :] - 2 * gram).clamp_min_(0).fill_diagonal_(0)
    ordered = distances.flatten().sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return torch.where(median > 0, torch.exp(-distances / (2 * threshold**2 * median)), torch.zeros_like(gram))


def centre(gram: Tensor, estimator: str) -> Tensor:
    """U-centred ("unbiased") or doubly centred ("biased") copy of a Gram (m, m), in float64."""
    m = len(gram)
    gram = gram.to(torch.float64, copy=True)
    if estimator == "biased":
        rows = gram.mean(dim=1)
        rows -= rows.mean() / 2
        return gram.sub_(rows[:, None]).sub_(rows[None, :])
    gram.fill_diagonal_(0)
    rows = gram.sum(dim=1).div_(m - 2)
    rows -= rows.sum() / (2 * (m - 1))
    return gram.sub_(rows[:, None]).sub_(rows[None, :]).fill_diagonal_(0)


class BatchMeans:
    """An F test of whether the means of batches differ by more than chance: between over within variance, of all columns."""

    def __init__(self) -> None:
        self.batches, self.images, self.sum, self.squares, self.within = 0, 0, 0.0, 0.0, 0.0

    def add(self, x: Tensor) -> None:
        """A batch of features (m, p), of which at most about a thousand columns are used."""
        x = x[:, :: max(1, x.shape[1] // 1024)].double()
        mean = x.mean(0)
        self.batches, self.images = self.batches + 1, self.images + len(x)
        self.sum, self.squares = self.sum + len(x) * mean, self.squares + len(x) * (mean @ mean)
        self.within = self.within + (x - mean).square().sum()

    def p_value(self) -> float:
        """Of an F test with the degrees of freedom of one column, which is too large for several: 1 if nothing is known."""
        between, within = self.batches - 1, self.images - self.batches  # degrees of freedom
        if between < 1 or within < 1:
            return 1.0
        spread = float(self.squares) - float(self.sum @ self.sum) / self.images
        if not spread > 1e-10 * float(self.squares + self.within):  # rounding
            return 1.0
        return float(fdtrc(between, within, spread / between / max(float(self.within) / within, 1e-300)))


class HsicSums:
    """The centred Grams of one batch, one row a source, and the HSIC of all pairs summed over the batches of each fold.

    `sums` is float64 (estimators, folds, sources, sources), weighted by images; `weights` (folds,) counts the images, those
    that "trimmed" leaves out included; `means` has the last layer of every stream of clean images.
    """

    def __init__(
        self, sources: Sequence[Source], estimators: Sequence[str], folds: int, device, threshold: float = 1.0
    ):
        self.row = {source: row for row, source in enumerate(sources)}
        self.estimators, self.threshold = tuple(estimators), threshold
        shape = (len(self.estimators), folds, len(sources), len(sources))
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.weights = torch.zeros(folds, dtype=torch.float64, device=device)
        self.careful = [False] * len(sources)  # whose features must be centred first
        self.rows = torch.empty(0)
        self.last = {stream: layer for stream, layer in sources if "@" not in stream}
        self.means = {stream: BatchMeans() for stream in self.last}

    def begin_batch(self, images: int, keep: Tensor | None = None) -> None:
        """Begin a batch of so many images, of which "trimmed" uses those where `keep` (images,) is true."""
        self.images, count = images, len(self.row)
        if self.rows.shape[-1] != images**2 or keep is not None:
            self.rows = self.sums.new_zeros(len(self.estimators), count, images**2, dtype=torch.float32)
        self.keep = None if keep is None else keep.nonzero().squeeze(1).to(self.sums.device)
        self.norms = self.sums.new_zeros(len(self.estimators), count)
        self.energy = self.sums.new_full((count,), float("nan"))

    def add(self, stream: str, layer: str, x: Tensor) -> None:
        """Reduce features x (m, ...) to the centred Gram of their source."""
        if x.ndim == 0 or len(x) != self.images:
            raise ValueError(
                f"{stream}: expected one row an image ({self.images}) from layer {layer!r}, got shape "
                f"{tuple(x.shape)}; tap a layer whose first dimension is the batch"
            )
        x = flat(x if x.is_floating_point() else x.double())
        x = x.cpu() if x.device.type == "mps" else x  # which has no float64
        if self.last.get(stream) == layer:
            self.means[stream].add(x)
        row, cpu = self.row[stream, layer], x.device.type == "cpu"
        with _float32_products(x.device.type):
            # On an accelerator bandwidth is cheap and waiting for a number is not: features are always centred. Half
            # precision needs a cast, which the same pass makes.
            if cpu and x.dtype in (torch.float32, torch.float64) and not self.careful[row]:
                gram = product(x)
                self._store(row, gram)
                known = [self.norms[self.estimators.index(e), row] for e in ESTIMATORS if e in self.estimators]
                remaining = float(known[0] if known else torch.linalg.vector_norm(centre(gram, "unbiased")))
                raw = self.energy[row] = torch.linalg.vector_norm(gram.fill_diagonal_(0))
                # Rounding of K's entries averages out over m of them: |K| <= 4 m |U(K)| leaves CKA an error of about 1e-6.
                # False for NaN, and where squares overflowed or vanished.
                if 1e-28 < float(raw) <= 4 * self.images * remaining < 1e36:
                    return
                self.careful[row] = True
            gram, raw = centred_gram(x, scaled=not cpu)
            if cpu and not 1e-20 < float(raw) < 1e36:
                gram, raw = centred_gram(x)
        self._store(row, gram)
        self.norms[:, row] *= gram.trace() > tolerance(x.dtype) * raw  # a constant source has no HSIC
        self.energy[row] = raw

    def add_classes(self, stream: str, layer: str, labels: Tensor) -> None:
        """The Gram of one-hot labels (m,). RBF would make it another function of two values, with the same CKA."""
        self.means[stream].add(labels[:, None])
        row = self.row[stream, layer]
        self._store(row, (labels[:, None] == labels[None, :]).to(self.sums), classes=True)
        self.energy[row] = 1.0

    def _store(self, row: int, gram: Tensor, classes: bool = False) -> None:
        """Centre a Gram (m, m) for every estimator, as rows of norm 1 and their norms."""
        for e, estimator in enumerate(self.estimators):
            kernel = gram
            if estimator == "rbf" and not classes:
                kernel = rbf(gram.double(), self.threshold)
            elif estimator == "trimmed":
                if len(self.keep) < 4:
                    continue
                kernel = gram[self.keep][:, self.keep]
            kernel = centre(kernel, "biased" if estimator == "biased" else "unbiased")
            self.norms[e, row] = norm = torch.linalg.vector_norm(kernel)
            self.rows[e, row, : kernel.numel()] = (kernel / norm.clamp_min(1e-300)).flatten()

    def end_batch(self, fold: int, batch: int) -> None:
        """Add the HSIC of all pairs to a fold. Raises ValueError, naming the source, if one was not finite."""
        bad = (~torch.isfinite(self.energy)).tolist()
        if any(bad):
            stream, layer = list(self.row)[bad.index(True)]
            raise ValueError(
                f"{stream}: expected finite values, got NaN or infinity from layer {layer!r}, batch {batch}"
            )
        count = len(self.row)
        for e, estimator in enumerate(self.estimators):
            m = len(self.keep) if estimator == "trimmed" else self.images
            if m < 4:
                continue
            products = self.sums.new_zeros(count, count)
            for part in self.rows[e].split(max(1, (1 << 19) // count), dim=1):
                part = part.double()
                products.addmm_(part, part.T)
            scale = (m - 1) ** 2 if estimator == "biased" else m * (m - 3)
            self.sums[e, fold] += products * self.norms[e][:, None] * self.norms[e] * (m / scale)
        self.weights[fold] += self.images


@contextmanager
def _float32_products(device: str) -> Iterator[None]:
    """Products of float32 in float32, whatever the caller chose for the networks (autocast, TF32)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _slice(given: Mapping[Source, Tensor], start: int, stop: int, total: int | None) -> dict[Source, Tensor]:
    """The rows of this batch; a source with fewer rows than images seen, or with others than there are, is refused."""
    for (stream, layer), x in given.items():
        if len(x) < stop or (total is not None and len(x) != total):
            name = stream if stream == layer else f"{stream}/{layer}"
            raise ValueError(f"{name}: expected one row an image, got {len(x)} for {total or f'{stop} or more'} images")
    return {source: x[start:stop] for source, x in given.items()}


def _check_images(x: Inputs, start: int, stop: int, tensor: bool) -> None:
    if tensor and not isinstance(x, Tensor):
        raise ValueError("views, pixels: expected batches of one tensor, got a dict; give its images alone")
    for value in [x] if isinstance(x, Tensor) else x.values():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"images: expected finite values, got NaN or infinity in rows {start} to {stop - 1}")


def _check(models, views, features, layers, transform, batch_size, folds, estimators, threshold) -> None:
    """All that can be checked before the first image."""
    for name, value in (("models", models), ("views", views), ("features", features)):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name}: expected a dict by name, such as {{'mine': ...}}, got {type(value).__name__}")
    if not models and not features:
        raise TypeError("models: expected a dict of at least one named network, or features, got none")
    for name in (*models, *features):
        if (
            not isinstance(name, str)
            or "@" in name
            or name in ("labels", "pixels")
            or (name in models and name in features)
        ):
            raise ValueError(
                f'models, features: expected different names without "@", not "labels" or "pixels", got {name!r}'
            )
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"models: expected {name!r} to be a torch module, got {type(model).__name__}")
    for name, view in views.items():
        if not callable(view):
            raise TypeError(f"views: expected {name!r} to be a function of (images, generator), got {view!r}")
    if isinstance(layers, Mapping) and set(layers) != set(models):
        raise ValueError(
            f"layers: expected an entry for each of {', '.join(models)}, got {', '.join(map(str, layers))}"
        )
    if isinstance(transform, Mapping) and not set(transform) <= set(models):
        raise ValueError(f"transform: expected entries for {', '.join(models)}, got {', '.join(transform)}")
    if batch_size < 4 or folds < 2:
        raise ValueError(f"batch_size, folds: expected at least 4 and 2, got {batch_size} and {folds}")
    if isinstance(estimators, str) or not estimators or not set(estimators) <= set(VARIANTS):
        raise ValueError(f"estimators: expected some of {', '.join(VARIANTS)}, got {estimators!r}")
    if not threshold > 0:
        raise ValueError(f"threshold: expected a positive number, got {threshold}")


def _check_ids(ids: Mapping[str, Sequence], given: Mapping[Source, Tensor]) -> None:
    """That all names of images are the same, in the same order, and as many as there are rows."""
    counts = {stream: len(x) for (stream, _), x in given.items()}
    for name, value in ids.items():
        if name not in counts and name != "images":
            raise ValueError(f"ids: expected names of features, or images, got {name!r}")
        if len(value) != counts.get(name, len(value)):
            raise ValueError(f"ids: expected {counts[name]} for {name!r}, one a row, got {len(value)}")
        first = next(iter(ids))
        row = next((i for i, (a, b) in enumerate(itertools.zip_longest(ids[first], value)) if a != b), None)
        if row is not None:
            raise ValueError(
                f"ids: expected the same images in the same order, but {name!r} differs from {first!r} at row {row}; "
                "sort the rows of both by their ids, and drop those that only one of them has"
            )
