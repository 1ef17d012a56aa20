"""What users hand in, as tensors: arrays, tables, lists and loaders, converted without loss or refused with the call to make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input")
LABEL_KEYS = ("label", "labels", "y", "target")
MASK_KEYS = ("attention_mask", "pixel_mask")
PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool)

Inputs = Tensor | dict[str, Tensor]  # what a network is given: one tensor, or several by keyword


def as_tensor(value: object, name: str) -> Tensor:
    """A tensor of real numbers, without gradients, from a tensor, an array, a list of numbers, a Series or a DataFrame.

    Whole numbers other than uint8 become int64, floats beyond float64 or below float16 the nearest of those.

    Raises:
        TypeError: what holds no numbers, several tensors, or a sparse or complex one; `name` is the argument's.
    """
    if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
        raise TypeError(
            f"{name}: expected one tensor, got a list of {len(value)}; torch.stack(...) or torch.cat(...) them"
        )
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        if isinstance(value, (str, bytes, Mapping)):
            raise TypeError(f"{name}: expected a tensor or an array of numbers, got {kind}")
        try:
            array = np.asarray(value)
        except Exception as error:  # rows of unequal length, an array on an accelerator
            raise TypeError(f"{name}: expected a tensor or an array of numbers, got {kind}: {error}") from error
        if array.dtype.kind not in "biuf":
            remedy = "pd.factorize(...)[0] makes numbers of names" if array.dtype.kind in "OSUT" else "convert it first"
            raise TypeError(f"{name}: expected numbers, got {kind} of {array.dtype}; {remedy}")
        exact = array.dtype.newbyteorder("=") if array.dtype.name in ("bool", "uint8", "float16", "float32") else None
        target = exact or (np.float64 if array.dtype.kind == "f" else np.int64)
        return torch.from_numpy(np.array(array, dtype=target, order="C"))
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta or value.is_complex():
        kind = "meta" if value.is_meta else "nested" if value.is_nested else f"{value.layout} {value.dtype}"
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got a {kind} one; value.to_dense() or .real")
    value = value.detach()
    return value if value.dtype in PLAIN else value.float() if value.is_floating_point() else value.long()


def as_features(value: object, name: str, least: int = 1) -> Tensor:
    """Features (n, ...) of at least `least` images, finite, as `as_tensor` takes them.

    Raises:
        TypeError: as `as_tensor`. ValueError: too few rows, no column, NaN or infinity.
    """
    value = as_tensor(value, name)
    if value.ndim < 1 or len(value) < least or value.numel() == 0:
        raise ValueError(f"{name}: expected shape (n, p), n >= {least} images, got {tuple(value.shape)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity; leave such rows out")
    return value


def as_labels(value: object) -> Tensor:
    """Classes (n,), or a row of numbers an image (n, c), as `as_tensor` takes them.

    Raises:
        TypeError: as `as_tensor`. ValueError: numbers of which it is not clear whether they are classes.
    """
    labels = as_tensor(value, "labels")
    shape, floating = tuple(labels.shape), labels.is_floating_point()
    if labels.ndim not in (1, 2) or labels.numel() == 0:
        raise ValueError(f"labels: expected classes (n,) or rows of numbers (n, c), got shape {shape}")
    if floating and not torch.isfinite(labels).all():
        raise ValueError("labels: expected finite values, got NaN or infinity; leave such images out")
    if (labels.ndim == 1) == floating and (floating or shape[1] == 1):
        remedy = (
            "labels.long() if they are classes, labels[:, None] if quantities"
            if floating
            else ("labels.squeeze(1) if they are classes, labels.float() if quantities")
        )
        raise ValueError(
            f"labels: expected whole numbers (n,) for classes or floats (n, c) for quantities, got {labels.dtype} of shape "
            f"{shape}; pass {remedy}"
        )
    return labels


def rows(inputs: Inputs) -> int:
    """How many images there are in a batch."""
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def take(inputs: Inputs, index: Tensor) -> Inputs:
    """The images at these positions."""
    if isinstance(inputs, Tensor):
        return inputs[index.to(inputs.device)]
    n = rows(inputs)
    return {k: v[index.to(v.device)] if v.ndim and len(v) == n else v for k, v in inputs.items()}


def network_input(images: Inputs, model: nn.Module, transform: Callable[[Inputs], Inputs] | None = None) -> Inputs:
    """What `model` is given, on its device: `transform(images)`, or uint8 images of one or three channels in the study's
    scale, from -2 to 2, or floats as they are; where both are floating, in the model's dtype.

    Raises:
        TypeError: integers other than uint8, without a transform. ValueError: uint8 images of another shape.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)

    def placed(x: Tensor) -> Tensor:
        return x if weight is None else x.to(weight.device, non_blocking=True)

    def cast(x: object) -> object:
        return placed(x).to(weight) if weight is not None and isinstance(x, Tensor) and x.is_floating_point() else x

    images = {k: placed(v) for k, v in images.items()} if isinstance(images, Mapping) else placed(images)
    if transform is not None:
        images = transform(images)
        if not isinstance(images, (Tensor, Mapping)):
            raise TypeError(f"transform: expected a tensor or a dict of tensors from it, got {type(images).__name__}")
    elif isinstance(images, Tensor) and images.dtype == torch.uint8:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images: expected uint8 of shape (n, 3, h, w) or (n, 1, h, w), got {tuple(images.shape)}; "
                "images.permute(0, 3, 1, 2) puts channels first, transform= makes a network's input of anything else"
            )
        images = images.float().mul_(4 / 255).sub_(2)
    elif isinstance(images, Tensor) and not images.is_floating_point():
        raise TypeError(f"images: expected uint8 or float, got {images.dtype}; pass transform= for other inputs")
    return {k: cast(v) for k, v in images.items()} if isinstance(images, Mapping) else cast(images)


def batches(
    images: object,
    size: int,
    *,
    least: int = 1,
    input_key: str | Sequence[str] | None = None,
    labels: bool | None = None,
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """(inputs, labels or None) of each batch: of a tensor or array, nearly equal parts of at most `size` rows; of a loader
    its batches as they come, those of fewer than `least` rows joined to the batch before.

    Args:
        images: a tensor or an array; or an iterable of those, of pairs (x, y), or of dicts, of which the first of
            `IMAGE_KEYS` is taken, with an attention or pixel mask beside it; a dict without any of them is taken whole,
            without its labels. Several tensors are given to the network by keyword.
        input_key: the key, or the keys, to take from dicts instead.
        labels: whether to take a loader's labels; None: if there are any.

    Raises:
        TypeError, ValueError: what holds no batch of images; too few of them.
    """
    if isinstance(images, Tensor) or hasattr(images, "__array__"):
        x = as_tensor(images, "images")
        if x.ndim < 2 or len(x) < least or x.numel() == 0:
            raise ValueError(f"images: expected at least {least}, in a tensor (n, ...), got shape {tuple(x.shape)}")
        for part in x.tensor_split(max(1, min(-(-len(x) // size), len(x) // least))):
            yield part, None
        return
    if isinstance(images, (str, bytes, Mapping)) or not isinstance(images, Iterable):
        raise TypeError(
            f"images: expected a tensor or a loader of batches, got {type(images).__name__}; "
            "DataLoader(dataset, batch_size) makes batches of a data set"
        )
    held: tuple[Inputs, Tensor | None] | None = None
    for i, batch in enumerate(images):
        new = _unpacked(batch, input_key, labels is not False, i)
        if labels and new[1] is None:
            raise ValueError("labels: expected a loader of (x, y) or of dicts with labels, got none")
        if held is not None and min(rows(new[0]), rows(held[0])) < least:
            held = _joined(held, new)
            continue
        if held is not None:
            yield held
        held = new
    if held is None or rows(held[0]) < least:
        raise ValueError(f"images: expected at least {least}, got {'none' if held is None else rows(held[0])}")
    yield held


def check_order(loader: object, names: str) -> None:
    """Raises ValueError unless a DataLoader reads its data set in order, so that rows given beside it (`names`) fit.

    The order of an IterableDataset, and of any other iterable, cannot be known: it is taken to be that of the rows.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, torch.utils.data.IterableDataset):
        return
    groups = loader.batch_sampler
    sampler = loader.sampler if groups is None else getattr(groups, "sampler", None)
    if type(sampler) is not SequentialSampler or (groups is not None and type(groups) is not BatchSampler):
        order = type(groups if sampler is None or type(sampler) is SequentialSampler else sampler).__name__
        raise ValueError(
            f"{names}: expected rows in the loader's order, got a loader that shuffles or selects ({order}); "
            "DataLoader(torch.utils.data.Subset(dataset, order)) has an order of its own, in which to give the rows"
        )


def _unpacked(batch: object, key: str | Sequence[str] | None, labelled: bool, i: int) -> tuple[Inputs, Tensor | None]:
    y = None
    if isinstance(batch, Mapping):
        keys = (key,) if isinstance(key, str) else tuple(key or ())
        if not keys:
            first = next((k for k in IMAGE_KEYS if k in batch), None)
            others = [k for k, v in batch.items() if k not in LABEL_KEYS and isinstance(v, (Tensor, np.ndarray))]
            keys = (first, *(k for k in MASK_KEYS if k in batch)) if first else tuple(others)
        if not keys or any(k not in batch for k in keys):
            wanted, got = ", ".join(keys or IMAGE_KEYS), ", ".join(map(str, batch))
            raise ValueError(f"images: expected {wanted} in a loader's dict, got {got}; pass input_key=")
        x = {k: as_tensor(batch[k], "images") for k in keys}
        x = x if len(x) > 1 or keys[0] == "input_ids" else x[keys[0]]
        y = next((batch[k] for k in LABEL_KEYS if k in batch and k not in keys), None)
    else:
        pair = isinstance(batch, (tuple, list))
        x, y = (*batch, None)[:2] if pair and batch else (batch, None)
        if not isinstance(x, Tensor) and not hasattr(x, "__array__"):
            raise TypeError(
                f"images: expected tensors (m, ...), pairs or dicts of them, got {type(x).__name__} in batch {i}; "
                "torch.stack([...]) makes one tensor of a list of images"
            )
        x = as_tensor(x, "images")
    shapes = [tuple(v.shape) for v in ([x] if isinstance(x, Tensor) else x.values())]
    single = len(shapes[0]) == 3 and shapes[0][0] in (1, 3)
    if single or len(shapes[0]) < 2 or shapes[0][0] == 0:
        raise (ValueError if single else TypeError)(
            f"images: expected batches (m, ...), got shape {shapes[0]} in batch {i}, {'one image' if single else 'no batch'}; "
            "torch.stack(images) makes one tensor of a list of images, DataLoader(dataset, batch_size) batches of a data set"
        )
    if not labelled or y is None:
        return x, None
    try:
        y = as_labels(y)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}; in batch {i}, or pass labels=False") from error
    if len(y) != rows(x):
        raise ValueError(f"labels: expected {rows(x)} of them, got {len(y)} in batch {i}; or pass labels=False")
    return x, y


def _joined(a: tuple[Inputs, Tensor | None], b: tuple[Inputs, Tensor | None]) -> tuple[Inputs, Tensor | None]:
    try:
        if isinstance(a[0], Tensor):
            x = torch.cat([a[0], b[0]])
        else:
            x = {k: torch.cat([v, b[0][k]]) for k, v in a[0].items()}
        return x, None if a[1] is None else torch.cat([a[1], b[1]])
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(
            f"images: a batch is too small, and cannot join the one before ({error}); use drop_last"
        ) from error
