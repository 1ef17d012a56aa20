"""Centred kernel alignment of everything with everything, from one pass over the images.

Whatever can be compared is a stream of Gram matrices over the same images: a layer of any network, the same layer under an
augmented view, the labels, the pixels, features from elsewhere. Each batch gives one Gram a source, made inside the forward
hook, and the HSIC of every pair at once (`repsim.grams`). Minibatch CKA (Nguyen, Raghu and Kornblith 2021) averages HSIC
over batches and takes the ratio HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) LAST (`repsim.comparison`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler
from tqdm import tqdm

from repsim import allocator, grams, store
from repsim.comparison import Comparison
from repsim.taps import network_input, resolve, tapped

ESTIMATORS = ("unbiased", "biased")
KERNELS = ("linear", "rbf")
IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input")
LABEL_KEYS = ("label", "labels", "y", "target")


def cka(x: Tensor, y: Tensor, *, estimator: str = "unbiased", kernel: str = "linear", threshold: float = 1.0) -> float:
    """CKA of two representations of the same n images, in float64.

    Args:
        x, y: features (n, p) and (n, q); further dimensions are flattened.
        estimator: "unbiased" (HSIC_1: about 0 for independent features, may be slightly negative, at most 1), or "biased"
            (HSIC_0 of Kornblith et al. 2019, in [0, 1]; for independent noise near sqrt(pq / ((n + p)(n + q)))).
        kernel: "linear", or "rbf" with a bandwidth of `threshold` times the median distance (Kornblith et al. 2019).

    Returns:
        The value; NaN, with a warning, where it is undefined: a representation that is constant over the images.

    Raises:
        TypeError: not tensors. ValueError: different or fewer than 4 rows, NaN or infinity, unknown settings.
    """
    _check_settings((estimator,), kernel, threshold)
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor of shape (n, p), got {type(value).__name__}")
        if value.ndim < 2 or len(value) < 4:
            raise ValueError(f"{name}: expected shape (n, p) with n >= 4, got {tuple(value.shape)}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name}: expected finite values, got NaN or infinity; leave such rows out")
    if len(x) != len(y):
        raise ValueError(f"x, y: expected features of the same images, got {len(x)} and {len(y)} rows")
    centred = []
    for value in (x, y):
        gram, raw = grams.centred_gram(grams.flat(grams.exact(value.detach())))
        varies = gram.trace() > grams.tolerance(value.dtype) * raw
        centred.append(grams.centre(grams.kernel_of(gram, kernel, threshold), estimator) * varies)
    k, l = centred[0], centred[1].to(centred[0].device)
    k, l = (gram / gram.norm().clamp_min(1e-300) for gram in (k, l))
    norms = (k * k).sum() * (l * l).sum()
    if not norms > 0:
        warnings.warn("cka: undefined (NaN), as a representation is constant over the images", stacklevel=2)
        return float("nan")
    return float((k * l).sum() / norms.sqrt())


@torch.no_grad()
def compare(
    models: Mapping[str, nn.Module],
    images: Tensor | Iterable,
    *,
    labels: Tensor | bool | None = None,
    views: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] | None = None,
    features: Mapping[str, Tensor] | None = None,
    pixels: bool = False,
    layers: Sequence[str] | Mapping[str, Sequence[str] | Mapping[str, str]] | None = None,
    estimators: Sequence[str] = ("unbiased",),
    kernel: str = "linear",
    threshold: float = 1.0,
    batch_size: int = 128,
    folds: int = 20,
    transform: Callable[[Tensor], Tensor] | Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    input_key: str | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Minibatch CKA of all layers of all networks, and of labels, pixels and features, from one pass over the images.

    Every network sees a batch before the next one is read: two orders of the images cannot get mixed up. Memory is flat in
    their number: one batch, one layer's activations, a Gram (batch, batch) a source and `folds` matrices (sources,
    sources). Under torch.distributed each of W ranks takes every W-th batch, and all return the same result.

    Args:
        models: name -> network, used on its device in eval mode and left as it was found.
        images: uint8 (n, 3, h, w), brought into the study's scale, or float, given as they are; or a loader (any
            iterable) of tensors, (x, y) pairs or dicts, read once. A tensor is cut into nearly equal batches of at most
            `batch_size`; `batch_size=n` gives the exact value of the full sample. A loader's batches are taken as they
            come, but fewer than 4 images are joined to the batch before.
        labels: classes (n,), or a row of numbers an image (n, c): the stream "labels". None takes them from a loader that
            has them, False leaves them out.
        views: name -> function of (images, generator), called once a batch, its result given to every network: the
            streams "network@view". The generator depends on `seed`, view and batch only.
        features: name -> (n, p), a stream each; beside a loader in its order, which must not be shuffled.
        pixels: add the stream "pixels".
        layers: None, the study's layers; names or module paths for all networks; or a mapping from every network to
            those, or to {name: module path}. See `repsim.taps.resolve`.
        estimators: any of "unbiased", "biased".
        kernel, threshold: as for `cka`. The RBF bandwidth is each batch's own; labels (n,) are compared by equality.
        folds: batch i belongs to fold i % folds; intervals come from leaving out each fold in turn.
        transform: makes a network's input of a batch, for all networks or by name; views are given as they are.
        input_key: where the images are in a loader's dicts; otherwise image, images, pixel_values, x or input.
        autocast: a dtype (torch.bfloat16) in which the networks run under torch.autocast. Grams stay in float32.

    Returns:
        A `Comparison`. Layers that are constant over the images are undefined (NaN) in it, and a warning names them.

    Raises:
        ValueError, TypeError: an argument that cannot be used; fewer than 4 images; NaN or infinite activations (network,
            layer and batch are named); a layer that is unknown, never called, or called twice in a forward pass.
    """
    _check_settings(estimators, kernel, threshold)
    paths = _check_sources(models, layers, views, features, transform, batch_size, folds)
    views, features = dict(views or {}), dict(features or {})
    transforms = transform if isinstance(transform, Mapping) else dict.fromkeys(models, transform)
    device = next((p.device for model in models.values() for p in model.parameters()), torch.device("cpu"))
    exact = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    parallel = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if parallel else (0, 1)
    allocator.tune()

    def measure(bank: grams.Bank, i: int, x: Tensor, y: Tensor | None, extra: Mapping[str, Tensor]) -> None:
        bank.open(len(x))
        x = x.to(device, non_blocking=True)
        for view in (None, *views):
            seen = x if view is None else views[view](x, store.generator(seed, "views", view, i))
            for name, model in models.items():
                stream = name if view is None else f"{name}@{view}"
                given = network_input(seen, model, transforms.get(name) if view is None else None)
                half = nullcontext() if autocast is None else torch.autocast(given.device.type, dtype=autocast)
                with half, tapped(model, paths[name], lambda layer, out, s=stream: bank.put((s, layer), out)):
                    model(given)
        if y is not None:
            (bank.put_classes if y.ndim == 1 else bank.put)(("labels", "labels"), y.to(exact))
        if pixels:
            bank.put(("pixels", "pixels"), x.float())
        for name, rows in extra.items():
            bank.put((name, name), rows.to(exact))
        bank.close(i % folds, i)

    bank: grams.Bank | None = None
    failure: Exception | None = None
    try:
        batches = _batches(images, labels, features, batch_size, input_key)
        for i, (x, y, extra) in enumerate(
            tqdm(batches, desc="compare", unit="batch", leave=False, **({} if progress else {"disable": True}))
        ):
            if bank is None:
                sources = [(s, l) for m in models for s in (m, *(f"{m}@{v}" for v in views)) for l in paths[m]]
                sources += [(s, s) for s in ["labels"] * (y is not None) + ["pixels"] * pixels + list(features)]
                bank = grams.Bank(sources, estimators, folds, exact, kernel, threshold)
            if i % world == rank:
                measure(bank, i, x, y, extra)
    except Exception as error:
        failure = error
    if parallel:
        _sum_over_ranks(bank, failure, device)
    if failure is not None:
        raise failure
    used = bank.weights > 0
    hsic = {estimator: bank.sums[e, used].cpu() for e, estimator in enumerate(bank.estimators)}
    result = Comparison(tuple(bank.row), hsic, bank.weights[used].cpu(), kernel, threshold)
    if result.undefined:
        names = ", ".join(stream if stream == layer else f"{stream}/{layer}" for stream, layer in result.undefined)
        warnings.warn(f"compare: undefined (NaN), being constant (self-HSIC not positive): {names}", stacklevel=3)
    return result


def _sum_over_ranks(bank: grams.Bank | None, failure: Exception | None, device: torch.device) -> None:
    """Sums of all ranks, on all ranks. Where one has failed all learn of it, so that none waits for ever."""
    place = device if dist.get_backend() == "nccl" else torch.device("cpu")
    failed = torch.tensor(float(failure is not None), device=place)
    dist.all_reduce(failed)
    if failed and failure is None:
        raise RuntimeError("compare: expected all ranks to finish, but another one failed; its error says why")
    if not failed:
        for name in ("sums", "weights"):
            total = getattr(bank, name).to(place)
            dist.all_reduce(total)
            setattr(bank, name, total)


def _batches(
    images: Tensor | Iterable, labels: Tensor | bool | None, features: dict[str, Tensor], size: int, key: str | None
) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Tensor]]]:
    """(images, labels or None, features), each of at least 4 images and finite."""
    rows = {**({"labels": labels} if isinstance(labels, Tensor) else {}), **features}
    if isinstance(images, Tensor):
        if images.ndim < 2 or len(images) < 4:
            raise ValueError(f"images: expected at least 4, got shape {tuple(images.shape)}")
        if labels is True:
            raise ValueError("labels: expected a tensor beside a tensor of images, got True")
        total = len(images)
        pieces = ((part, None) for part in images.tensor_split(min(-(-total // size), total // 4)))
    else:
        if isinstance(images, (str, bytes, Mapping)) or not isinstance(images, Iterable):
            raise TypeError(f"images: expected a tensor or a loader of batches, got {type(images).__name__}")
        sampler = getattr(images, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            raise ValueError(
                "images: expected a plain loader, got a DistributedSampler; the ranks share the batches here"
            )
        if rows and isinstance(images, DataLoader) and isinstance(sampler, RandomSampler):
            raise ValueError(f"{', '.join(rows)}: expected rows in the loader's order, got a loader that shuffles")
        total = None
        own = labels is None or labels is True
        pieces = _joined(_unpacked(batch, key, own, i) for i, batch in enumerate(images))
    start = 0
    for x, y in pieces:
        stop = start + len(x)
        _check_rows(rows, total, stop)
        part = {name: value[start:stop] for name, value in rows.items()}
        y = part.pop("labels", y)
        for name, value in (("images", x), ("labels", y)):
            if value is not None and value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(f"{name}: expected finite values, got NaN or infinity in rows {start} to {stop - 1}")
        if labels is True and y is None:
            raise ValueError("labels: expected a loader of (x, y) or of dicts with labels, got none")
        yield x, y, part
        start = stop
    _check_rows(rows, start, start)
    if start == 0:
        raise ValueError("images: expected at least 4, got none")


def _check_rows(rows: Mapping[str, Tensor], total: int | None, seen: int) -> None:
    for name, value in rows.items():
        if len(value) < seen or (total is not None and len(value) != total):
            raise ValueError(
                f"{name}: expected one row an image, got {len(value)} for {total or f'{seen} or more'} images"
            )


def _unpacked(batch: object, key: str | None, labelled: bool, i: int) -> tuple[Tensor, Tensor | None]:
    """(images, labels or None) of a loader's batch: a tensor, (x, y, ...) or a dict."""
    if isinstance(batch, Mapping):
        keys = (key,) if key else IMAGE_KEYS
        x, y = (next((batch[k] for k in names if k in batch), None) for names in (keys, LABEL_KEYS))
        if x is None:
            got = ", ".join(map(str, batch))
            raise ValueError(
                f"images: expected one of {', '.join(keys)} in a loader's dict, got {got}; pass input_key="
            )
    else:
        x, y = (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)
    if not isinstance(x, Tensor) or x.ndim < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"images: expected tensors (m, ...), pairs or dicts of them, got {got} in batch {i}")
    if not labelled or y is None:
        return x, None
    if not isinstance(y, Tensor) or y.ndim not in (1, 2) or len(y) != len(x):
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"labels: expected ({len(x)},) or ({len(x)}, c), got {got} in batch {i}; or pass labels=False")
    return x, y


def _joined(pieces: Iterable[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The same batches, those of fewer than 4 images joined to the one before (the first: to the next)."""
    held: tuple[Tensor, Tensor | None] | None = None
    for x, y in pieces:
        if held is not None and (len(x) < 4 or len(held[0]) < 4):
            held = torch.cat([held[0], x]), None if y is None else torch.cat([held[1], y])
            continue
        if held is not None:
            yield held
        held = x, y
    if held is not None and len(held[0]) < 4:
        raise ValueError(f"images: expected at least 4, got {len(held[0])}")
    if held is not None:
        yield held


def _check_settings(estimators: Sequence[str], kernel: str, threshold: float) -> None:
    if isinstance(estimators, str) or not estimators or not set(estimators) <= set(ESTIMATORS):
        raise ValueError(f"estimators: expected some of {', '.join(ESTIMATORS)}, got {estimators!r}")
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
    if not threshold > 0:
        raise ValueError(f"threshold: expected a positive number, got {threshold}")


def _check_sources(models, layers, views, features, transform, batch_size, folds) -> dict[str, dict[str, str]]:
    """The tapped layers of every network, after all that can be checked before the first image."""
    if not isinstance(models, Mapping) or not models:
        raise TypeError(f"models: expected a dict of at least one named network, got {type(models).__name__}")
    for name, model in models.items():
        if "@" in name or name in ("labels", "pixels"):
            raise ValueError(f'models: expected names without "@", and not "labels" or "pixels", got {name!r}')
        if not isinstance(model, nn.Module):
            raise TypeError(f"models: expected {name!r} to be a torch module, got {type(model).__name__}")
    for name, view in (views or {}).items():
        if not callable(view):
            raise TypeError(f"views: expected {name!r} to be a function of (images, generator), got {view!r}")
    for name, value in (features or {}).items():
        if name in ("labels", "pixels", *models) or "@" in name:
            raise ValueError(f"features: expected a name that is not taken, got {name!r}")
        if not isinstance(value, Tensor) or value.ndim < 1:
            raise TypeError(f"features: expected {name!r} to be a tensor (n, p), got {type(value).__name__}")
    if isinstance(layers, Mapping) and set(layers) != set(models):
        raise ValueError(f"layers: expected an entry for each of {', '.join(models)}, got {', '.join(layers)}")
    if isinstance(transform, Mapping) and not set(transform) <= set(models):
        raise ValueError(f"transform: expected entries for {', '.join(models)}, got {', '.join(transform)}")
    if batch_size < 4 or folds < 2:
        raise ValueError(f"batch_size, folds: expected at least 4 and 2, got {batch_size} and {folds}")
    return {m: resolve(model, layers[m] if isinstance(layers, Mapping) else layers) for m, model in models.items()}
