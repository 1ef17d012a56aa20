"""Centred kernel alignment of everything with everything, from one pass over the images.

Whatever can be compared is a stream of Gram matrices over the same images. Each batch gives one Gram a source, made inside the
forward hook, and the HSIC of every pair at once: with U-centred Grams of m images (Szekely and Rizzo 2014) as the rows of a
matrix, HSIC_1(K, L) = <U(K), U(L)> / (m (m - 3)) (unbiased: Song et al. 2012) of all pairs is that matrix times its transpose.
Minibatch CKA (Nguyen, Raghu and Kornblith 2021) averages HSIC over batches and takes the ratio
HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) LAST (`repsim.comparison`). Grams are made in float32, all after that in float64.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
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
LABELS, PIXELS = ("labels", "labels"), ("pixels", "pixels")  # sources


def cka(x: Tensor, y: Tensor, *, estimator: str = "unbiased") -> float:
    """Linear CKA of features x (n, ...) and y (n, ...) of the same images, in float64; NaN, with a warning, if one is constant.

    estimator: "unbiased" (HSIC_1: about 0 for independent features, may be slightly negative, at most 1), or "biased" (HSIC_0 of
    Kornblith et al. 2019, in [0, 1]; for independent noise, (n, p) and (n, q), near sqrt(pq / ((n + p)(n + q)))). Raises
    TypeError or ValueError for what holds no numbers, fewer than 4 or different rows, NaN, infinity and other estimators.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator: expected one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    x, y = (as_features(value, name, least=4) for name, value in (("x", x), ("y", y)))
    if x.ndim < 2 or y.ndim < 2 or len(x) != len(y):
        got = f"{tuple(x.shape)} and {tuple(y.shape)}; x[:, None] makes one feature of numbers"
        raise ValueError(f"x, y: expected features (n, p) and (n, q) of the same images, got {got}")
    centred = []
    for value in (x, y):
        gram, raw = centred_gram(flat(exact(value)))
        gram = centre(gram, estimator) * (gram.trace() > tolerance(value.dtype) * raw)
        centred.append(gram / gram.norm().clamp_min(1e-300))
    k, l = centred[0], centred[1].to(centred[0].device)
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
    leave_out: Tensor | Sequence[int] | None = None,
    batch_size: int = 128,
    folds: int = 20,
    transform: Callable[[Inputs], Inputs] | Mapping[str, Callable[[Inputs], Inputs]] | None = None,
    progress: bool = False,
) -> Comparison:
    """Minibatch CKA of all layers of all networks, and of labels, pixels and features, from one pass over the images.

    Memory is flat in the number of images. Only images of one batch are compared with each other, so their order must be random:
    a warning says where it is that of the classes. Under torch.autocast the networks run in half precision, Grams in float32.

    Args:
        models: name -> network, used on its device in eval mode and left as it was. Without any, features are compared.
        images: as for `repsim.taps.pooled`, in nearly equal batches of at most `batch_size` (n gives the value of the full
            sample); or a loader, whose batches of fewer than 4 images are left out, with a warning.
        labels: classes (n,), whole numbers, or a row of numbers an image (n, c): the stream "labels". None takes them from a
            loader that has them, False leaves them out.
        views: name -> function of (images, generator), whose result every network is given: the streams "network@view".
        features: name -> (n, p), a stream each, or name -> {layer: (n, p)}; beside a loader in its order, which has to be
            that of its data set (the order of an IterableDataset cannot be checked).
        ids: names of features, or "images", -> n names of the images, which have to be the same in the same order.
        pixels: add the stream "pixels".
        layers, reduction: as for `repsim.taps.pooled`; layers may be a mapping from every network to its own.
        estimators: "unbiased", "biased"; "rbf", which is unbiased with an RBF kernel for all but classes, its bandwidth that
            of the batch; "trimmed", unbiased without the images `leave_out`, positions in the order of the pass.
        folds: batch i belongs to fold i % folds; intervals come from leaving out each fold in turn.
        transform: makes a network's input of a batch, for all networks or by name; views are given as they are.

    Layers that are constant over the images are undefined (NaN); a warning names them. Raises ValueError or TypeError for an
    argument that cannot be used, and for NaN or infinite activations.
    """
    models, views, features = ({} if value is None else value for value in (models, views, features))
    _check(models, views, features, layers, transform, batch_size, folds, estimators)
    given: dict[Source, Tensor] = {}
    for name, value in features.items():
        for layer, x in (value if isinstance(value, Mapping) else {name: value}).items():
            title = "/".join(dict.fromkeys((name, str(layer))))
            given[name, str(layer)] = as_features(x, f"features, {title}", least=4)
    _check_ids(ids or {}, {stream: len(x) for (stream, _), x in given.items()})
    if images is None:
        if models or pixels:
            raise TypeError("images: expected a tensor or a loader of batches, got None")
        images = torch.zeros(len(next(iter(given.values()))), 1)
    total = len(images) if hasattr(images, "__array__") and images.ndim else None
    if labels is not None and labels is not False:
        given[LABELS], labels = as_labels(labels), False
    if given and isinstance(images, DataLoader) and not isinstance(images.dataset, IterableDataset):
        if type(getattr(images.batch_sampler or images, "sampler", None)) is not SequentialSampler:
            problem = "expected rows in the loader's order, got a loader that shuffles or selects"
            remedy = "DataLoader(Subset(dataset, order)) has an order in which to give the rows"
            raise ValueError(f"{', '.join(stream for stream, _ in given)}: {problem}; {remedy}")
    dropped = torch.zeros(0, dtype=torch.int64) if leave_out is None else as_tensor(leave_out, "leave_out").cpu()
    if dropped.is_floating_point() or dropped.ndim != 1 or ("trimmed" in estimators) != (leave_out is not None):
        raise ValueError("leave_out: expected positions of images (k,), together with the estimator 'trimmed' alone")
    transforms = transform if isinstance(transform, Mapping) else dict.fromkeys(models, transform)
    wanted = layers if isinstance(layers, Mapping) else dict.fromkeys(models, layers)
    device = next((p.device for model in models.values() for p in model.parameters()), torch.device("cpu"))
    exact_device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    taps.tune_allocator()

    sums, tapped, stop, small = None, {}, 0, 0
    pieces = taps.batches(images, batch_size, least=4)
    for i, (x, y, count) in enumerate(tqdm(pieces, desc="compare", unit="batch", leave=False, disable=not progress)):
        start, stop = stop, stop + count
        if count < 4:  # which has no HSIC
            small += count
            continue
        if (views or pixels) and not isinstance(x, Tensor):
            raise ValueError("views, pixels: expected batches of one tensor, got a dict; give its images alone")
        part = {LABELS: None, PIXELS: x.float() if pixels else None, **_slice(given, start, stop, total)}
        if labels is None and y is not None:
            part[LABELS] = as_labels(y, f"labels (in batch {i}, if not labels=False)")
        part = {source: values for source, values in part.items() if values is not None}
        if sums is None:
            for name, model in models.items():
                tapped[name] = taps.survey(model, wanted[name], x, reduction, transforms.get(name))
            sources = [(s, l) for m in models for s in (m, *(f"{m}@{v}" for v in views)) for l in tapped[m]]
            sums = HsicSums([*sources, *part], estimators, folds, exact_device)
        sums.begin_batch(count, ~torch.isin(torch.arange(start, stop), dropped))
        x = x.to(device, non_blocking=True) if isinstance(x, Tensor) else x
        for view in (None, *views):
            seen = x if view is None else views[view](x, store.generator(0, "views", view, i))
            for name, model in models.items():
                stream = name if view is None else f"{name}@{view}"
                inputs = taps.network_input(seen, model, transforms.get(name) if view is None else None)
                taps.run(model, tapped[name], inputs, partial(sums.add, stream))
        for source, values in part.items():
            sums.add(*source, values.to(exact_device))
        sums.end_batch(i % folds, i)
    _slice(given, stop, stop, stop)
    used = sums.weights > 0
    hsic = {estimator: sums.sums[e, used].cpu() for e, estimator in enumerate(sums.estimators)}
    result = Comparison.of(sums.row, hsic, sums.weights[used].cpu())
    if names := ", ".join("/".join(dict.fromkeys(source)) for source in result.undefined):
        warnings.warn(f"compare: undefined (NaN), being constant (self-HSIC not positive): {names}", stacklevel=3)
    if small:
        warnings.warn(f"compare: {small} images in batches of fewer than 4 are left out; use drop_last", stacklevel=3)
    if ordered := ", ".join(stream for stream, totals in sums.means.items() if means_differ(*totals)):
        problem = f"batches differ in their means beyond chance ({ordered}): the images seem sorted, as by class"
        remedy = "put them into one random order first, by images[torch.randperm(n)] or DataLoader(..., shuffle=True)"
        warnings.warn(f"compare: {problem}. What distinguishes batches is never compared; {remedy}", stacklevel=3)
    return result


def flat(x: Tensor) -> Tensor:
    """(m, ...) -> (m, p), a view in any dense memory format: a Gram does not care for the order of features."""
    x = x[:, None] if x.ndim == 1 else x
    return x.permute(0, *sorted(range(1, x.ndim), key=lambda d: -x.stride(d))).flatten(1)


def exact(x: Tensor) -> Tensor:
    """x in float64; on the CPU where its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def tolerance(dtype: torch.dtype) -> float:
    """The share of a Gram's trace below which what centring leaves is rounding: the source is constant."""
    return (16 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps) ** 2


def centred_gram(x: Tensor, scaled: bool = True) -> tuple[Tensor, Tensor]:
    """Gram (m, m) of the centred columns of x (m, p), taken in parts that fit into the processor's cache, and its trace without
    centring; float64. `scaled` reads x twice so that squares neither overflow nor vanish in float32, whatever its scale."""
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
    """x x^T (m, m) of x (m, p), about a fifth faster than `x @ x.T` on the CPU where p is in the thousands: of the mirrored
    halves one is computed, and the columns are taken in four parts, which threads share better."""
    if x.shape[1] < 2048 or x.shape[1] % 4:
        return x @ x.T
    parts, half = x.unflatten(1, (4, -1)).transpose(0, 1), len(x) // 2
    top = torch.bmm(parts[:, :half], parts.mT).sum(dim=0)
    corner = torch.bmm(parts[:, half:], parts[:, half:].mT).sum(dim=0)
    return torch.cat([top, torch.cat([top[:, half:].T, corner], dim=1)])


def rbf(gram: Tensor) -> Tensor:
    """exp(-d^2 / (2 median(d^2))) of the features whose linear Gram this is; 0 where they are constant. The median is over
    all m^2 entries, the zero diagonal included, as in the code of Kornblith et al. 2019."""
    energy = gram.diagonal()
    distances = (energy[:, None] + energy[None, :] - 2 * gram).clamp_min_(0).fill_diagonal_(0)
    ordered = distances.flatten().sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return torch.where(median == 0, torch.zeros_like(gram), torch.exp(-distances / (2 * median)))


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


def means_differ(batches: int, images: int, total: Tensor, squares: Tensor, within: Tensor) -> bool:
    """Whether the means of batches differ far beyond chance, from totals that `HsicSums` keeps: an F test of all columns with
    the degrees of freedom of one, which makes p too large."""
    between, inside = batches - 1, images - batches
    spread = float(squares) - float(total @ total) / images
    if min(between, inside) < 1 or not spread > 1e-10 * float(squares + within):  # one batch, or rounding
        return False
    return fdtrc(between, inside, spread / between / max(float(within) / inside, 1e-300)) < 1e-6


class HsicSums:
    """The centred Grams of one batch, one row a source, and `sums` (estimators, folds, sources, sources): the HSIC of all pairs
    over the batches of each fold, weighted by images, which `weights` (folds,) counts."""

    def __init__(self, sources: Sequence[Source], estimators: Sequence[str], folds: int, device: torch.device):
        self.row, self.estimators = {source: row for row, source in enumerate(sources)}, tuple(estimators)
        shape = (len(self.estimators), folds, len(self.row), len(self.row))
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.weights = self.sums.new_zeros(folds)
        self.careful = [False] * len(self.row)  # whose features must be centred first
        self.last = {stream: layer for stream, layer in sources if "@" not in stream}  # of which `means` keeps totals
        self.means: dict[str, list] = {stream: [0, 0, 0.0, 0.0, 0.0] for stream in self.last}

    def begin_batch(self, images: int, keep: Tensor) -> None:
        """Begin a batch of so many images, of which "trimmed" uses those where `keep` (images,) is true."""
        self.images, self.keep = images, keep.nonzero().squeeze(1).to(self.sums.device)
        self.rows = self.sums.new_zeros(len(self.estimators), len(self.row), images**2, dtype=torch.float32)
        self.norms = self.sums.new_zeros(len(self.estimators), len(self.row))

    def add(self, stream: str, layer: str, x: Tensor) -> None:
        """Reduce features x (m, ...), or classes (m,) if they are the labels, to the centred Gram of their source."""
        if x.ndim == 0 or len(x) != self.images:
            raise ValueError(f"{stream}: expected one row an image ({self.images}), got {[*x.shape]} from {layer!r}")
        row, classes = self.row[stream, layer], x.ndim == 1 and (stream, layer) == LABELS
        x = flat(x if x.is_floating_point() else x.double())
        x = x.cpu() if x.device.type == "mps" else x  # which has no float64
        if self.last.get(stream) == layer:
            part = x[:, :: max(1, x.shape[1] // 1024)].double()
            mean = part.mean(0)
            totals = (1, len(x), len(x) * mean, len(x) * (mean @ mean), (part - mean).square().sum())
            self.means[stream] = [a + b for a, b in zip(self.means[stream], totals)]
        if classes:
            self._store(row, (x == x.T).to(self.sums), classes)
            return
        cpu = x.device.type == "cpu"
        with ExitStack() as undo:  # products of float32 in float32, whatever the caller chose for the networks
            undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            undo.enter_context(torch.autocast(x.device.type, enabled=False))
            # On an accelerator bandwidth is cheap and waiting for a number is not: features are always centred. Half
            # precision needs a cast, which the same pass makes.
            if cpu and x.dtype in (torch.float32, torch.float64) and not self.careful[row]:
                gram = product(x)
                self._store(row, gram)
                known = [self.norms[self.estimators.index(e), row] for e in ESTIMATORS if e in self.estimators]
                remaining = float(known[0] if known else torch.linalg.vector_norm(centre(gram, "unbiased")))
                raw = float(torch.linalg.vector_norm(gram.fill_diagonal_(0)))
                # U-centring cancels the features' mean in exact arithmetic only. Rounding of K's entries averages out over
                # m of them: |K| <= 4 m |U(K)| leaves CKA an error of 1e-6. False for NaN, overflow and underflow.
                if 1e-28 < raw <= 4 * self.images * remaining < 1e36:
                    return
                self.careful[row] = True
            gram, raw = centred_gram(x, scaled=not cpu)
            if cpu and not 1e-20 < float(raw) < 1e36:
                gram, raw = centred_gram(x)
        self._store(row, gram)
        self.norms[:, row] *= gram.trace() > tolerance(x.dtype) * raw  # a constant source has no HSIC

    def _store(self, row: int, gram: Tensor, classes: bool = False) -> None:
        """Centre a Gram (m, m) for every estimator, as rows of norm 1 and their norms. RBF of classes has the same CKA."""
        for e, estimator in enumerate(self.estimators):
            kernel = rbf(gram.double()) if estimator == "rbf" and not classes else gram
            if estimator == "trimmed":
                if len(self.keep) < 4:
                    continue
                kernel = gram[self.keep][:, self.keep]
            kernel = centre(kernel, "biased" if estimator == "biased" else "unbiased")
            self.norms[e, row] = norm = torch.linalg.vector_norm(kernel)
            self.rows[e, row, : kernel.numel()] = (kernel / norm.clamp_min(1e-300)).flatten()

    def end_batch(self, fold: int, batch: int) -> None:
        """Add the HSIC of all pairs to a fold. Raises ValueError, naming the source, if one was not finite."""
        for (stream, layer), finite in zip(self.row, torch.isfinite(self.norms).all(0).tolist()):
            if not finite:
                raise ValueError(f"{stream}: expected finite values, got NaN or inf from {layer!r}, batch {batch}")
        for e, estimator in enumerate(self.estimators):
            m = len(self.keep) if estimator == "trimmed" else self.images
            if m < 4:
                continue
            products = self.sums.new_zeros(len(self.row), len(self.row))
            for part in self.rows[e].split(max(1, (1 << 19) // len(self.row)), dim=1):
                part = part.double()
                products.addmm_(part, part.T)
            scale = (m - 1) ** 2 if estimator == "biased" else m * (m - 3)
            self.sums[e, fold] += products * self.norms[e][:, None] * self.norms[e] * (m / scale)
        self.weights[fold] += self.images


def _slice(given: Mapping[Source, Tensor], start: int, stop: int, total: int | None) -> dict[Source, Tensor]:
    """The rows of this batch; a source with fewer rows than images seen, or with others than there are, is refused."""
    for source, x in given.items():
        if len(x) < stop or (total is not None and len(x) != total):
            name, images = "/".join(dict.fromkeys(source)), total or f"{stop} or more"
            raise ValueError(f"{name}: expected one row an image, got {len(x)} for {images} images")
    return {source: x[start:stop] for source, x in given.items()}


def _check(models, views, features, layers, transform, batch_size, folds, estimators) -> None:
    """All that can be checked before the first image."""
    for name, kind, value in (
        ("models", nn.Module, models),
        ("views", Callable, views),
        ("features", object, features),
    ):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name}: expected a dict by name, such as {{'mine': ...}}, got {type(value).__name__}")
        for key, part in value.items():
            if not isinstance(part, kind):
                raise TypeError(f"{name}: expected {key!r} to be a {kind.__name__}, got {type(part).__name__}")
    if not models and not features:
        raise TypeError("models: expected a dict of at least one named network, or features, got none")
    for name in (*models, *features):
        if not isinstance(name, str) or "@" in name or name in ("labels", "pixels") or name in {*models} & {*features}:
            raise ValueError(f"models, features: expected different names, no '@', 'labels' or 'pixels', got {name!r}")
    if isinstance(layers, Mapping) and set(layers) != set(models):
        raise ValueError(f"layers: expected an entry for each of {', '.join(models)}, got {list(layers)}")
    if isinstance(transform, Mapping) and not set(transform) <= set(models):
        raise ValueError(f"transform: expected entries for {', '.join(models)}, got {list(transform)}")
    if batch_size < 4 or folds < 2:
        raise ValueError(f"batch_size, folds: expected at least 4 and 2, got {batch_size} and {folds}")
    if isinstance(estimators, str) or not estimators or not set(estimators) <= set(VARIANTS):
        raise ValueError(f"estimators: expected some of {', '.join(VARIANTS)}, got {estimators!r}")


def _check_ids(ids: Mapping[str, Sequence], counts: Mapping[str, int]) -> None:
    """That all names of images are the same, in the same order, and as many as there are rows of features."""
    for name, value in ids.items():
        if counts.get(name, len(value) if name == "images" else None) != len(value):
            raise ValueError(f"ids: expected one a row of {', '.join(counts)} or images, got {len(value)} for {name!r}")
        first = next(iter(ids))
        if rows := [i for i, (a, b) in enumerate(itertools.zip_longest(ids[first], value)) if a != b]:
            problem = f"{name!r} differs from {first!r} at row {rows[0]}; sort the rows of both by their ids"
            raise ValueError(f"ids: expected the same images in the same order, but {problem}")
