"""Activations of named layers of any network, and what users hand in as tensors: images, features, labels, loaders.

A hook that keeps a reference to a layer's output and reads it afterwards reads the wrong thing where a later operation
works in place: torchvision's residual blocks do `out += identity` and then ReLU, both in the memory of the last batch
norm's output. Here the reduction runs INSIDE the hook, before anything can touch the tensor, and nothing else is kept.
"""

from __future__ import annotations

import ctypes
import difflib
import functools
import os
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, pooling

from repsim.models import layer_paths

Inputs = Tensor | dict[str, Tensor]  # what a network is given: one tensor, or several by keyword
Layers = Sequence[str | type[nn.Module]] | Mapping[str, str] | str | type[nn.Module] | None
Reduction = str | Callable[[Tensor], Tensor]  # one of REDUCTIONS, or a function of a layer's output
Taps = dict[str, tuple[str, Callable[[Tensor], Tensor]]]  # layer -> its module's path, what makes rows of its output

REDUCTIONS = ("mean", "cls", "none")
IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input")
LABEL_KEYS = ("label", "labels", "y", "target")
MASK_KEYS = ("attention_mask", "pixel_mask")
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
# Modules whose outputs have their channels in dimension 1, and those that have them in the last one
CHANNELS_FIRST = (conv._ConvNd, batchnorm._NormBase, nn.GroupNorm, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample)
CHANNELS_FIRST += (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd)
CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase, nn.TransformerEncoderLayer)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the network within WRAPPERS and torch.compile, by path without the parts that those add."""
    while isinstance(model, WRAPPERS) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return {_plain(path): module for path, module in model.named_modules(remove_duplicate=False)}


def _plain(path: str) -> str:
    return re.sub(r"(?<![^.])_orig_mod(\.|$)", "", path).rstrip(".")


def resolve(model: nn.Module, layers: Layers = None) -> dict[str, str]:
    """The layers to tap: name -> module path.

    Args:
        layers: None, the study's layers of one of our ResNets (`repsim.models.layer_paths`); "all" modules; a list of the
            study's names, of module paths, of patterns ("layer*.*", "encoder.layers.*": a `*` is any text without a dot,
            `**` any text) and of module types; or a mapping of names of your own to those. A module that one forward pass
            calls several times must be named by call: `path@2` is its second; what "all", a pattern or a type stands for is
            `path@*`, every call.

    Raises TypeError for None where the model is not one of our ResNets, for what is no name, and for scripted models; ValueError
    for unknown layers, a name given twice, or no layer at all.
    """
    modules, study = _modules(model), {}
    model = modules[""]
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("models: expected a module in Python, got a scripted or traced one; pass its source module")
    try:
        study = layer_paths(model)
    except TypeError as error:
        if layers is None:
            raise TypeError(f'{error}, or layers="all"') from None
    if isinstance(layers, (str, type)) or not isinstance(layers, Iterable):
        layers = study if layers is None else [layers]
    paths = {path: path for path in modules} | study
    names = {path: name for name, path in paths.items() if path}  # a study's name comes after its path
    chosen, unknown = {}, []
    for name, what in layers.items() if isinstance(layers, Mapping) else [(item, item) for item in layers]:
        if not isinstance(what, (str, type)) or not isinstance(name, (str, type)):
            raise TypeError(f"layers: expected names, patterns or module types, got {what!r}")
        if isinstance(what, type):
            found = [path for path in names if isinstance(modules[path], what)]
        elif what == "all" or "*" in what:
            pattern = ".*" if what == "all" else re.escape(what).replace(r"\*\*", ".*").replace(r"\*", "[^.]*")
            found = [path for path in names if re.fullmatch(pattern, path) or re.fullmatch(pattern, names[path])]
        else:
            base, at, call = what.partition("@")
            path = next((paths[p] for p in (_plain(base), _plain(base).removeprefix("module.")) if p in paths), None)
            if path is None or not re.fullmatch(r"(@[1-9]\d*)?", at + call):
                close = difflib.get_close_matches(base, paths, n=4) or list(modules)[1:9]
                unknown.append(f"{what!r}{'' if name == what else f' for {name!r}'} (did you mean {', '.join(close)}?)")
            elif not chosen.get(name, "@*").endswith("@*"):
                raise ValueError(f"layers: expected each name once, got {name} more than once")
            else:
                chosen[name] = path + at + call
            continue
        chosen = {names[path]: path + "@*" for path in found} | chosen
        unknown += [] if found else [repr(what)]
    if unknown or not chosen:
        got = ", ".join(unknown) or "none"
        raise ValueError(f"layers: expected layers or module paths of {type(model).__name__}, got {got}")
    return chosen


@contextmanager
def tapped(model: nn.Module, layers: Mapping[str, str], reduce: Callable[[str, Tensor], None]) -> Iterator[nn.Module]:
    """Within: every forward pass of `model`, in eval mode, calls `reduce(name, output)` for each of `layers`, as from `resolve`.

    `output` is the layer's, or its first tensor if it is a tuple, list or dict; reduce it at once, as later operations may write
    over it. Compiled networks run uncompiled; the one within wrappers is given. Modes, buffers and hooks are afterwards as
    before. Layers never called, called more than once without `path@k` or without a tensor raise ValueError or TypeError.
    """
    modules, calls = _modules(model), Counter()
    model = modules[""]
    wanted: dict[nn.Module, list[tuple[str, str]]] = {model: []}
    for name, path in layers.items():
        base, _, call = path.partition("@")
        wanted.setdefault(modules[base], []).append((name, call))

    def tap(module: nn.Module, args: object, output: object) -> None:
        calls[module] += 1
        output = [*output.values()] if isinstance(output, Mapping) else output
        parts = output if isinstance(output, (tuple, list)) else [output]
        tensor = next((part for part in parts if isinstance(part, Tensor)), None)
        for name, call in wanted[module]:
            if tensor is not None and call in ("", "*", str(calls[module])):
                reduce(name, tensor)
            elif tensor is None and call != "*":
                raise TypeError(f"layers: expected {name!r} to give a tensor, got {type(output).__name__}")
        if module is model:  # the end of a forward pass
            for each, entries in wanted.items():
                for name, call in entries:
                    if call != "*" and (fault := _miscalled(call, calls[each])):
                        raise ValueError(f"layers: {name!r} is {fault}")
            calls.clear()

    copies = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    with ExitStack() as undo:
        for module in model.modules():
            undo.callback(vars(module).update, training=module.training, _buffers=module._buffers)
            module._buffers = {key: copies.get(buffer, buffer) for key, buffer in module._buffers.items()}
        for module in wanted:
            undo.callback(module.register_forward_hook(tap).remove)
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        yield model.eval()


def _miscalled(call: str, calls: int) -> str | None:
    """What is wrong with how often a forward pass calls a module of which this call is asked for, if anything."""
    if calls < (int(call) if call.isdigit() else 1):
        times = f"only {calls} times" if calls else "never"
        return f"{times} called in a forward pass; name modules within it, as by PATH.*, or drop it"
    return None if call or calls == 1 else "called more than once in a forward pass; PATH@2 names the second call"


def survey(
    model: nn.Module,
    layers: Layers,
    inputs: Inputs,
    reduction: Reduction | Mapping[str, Reduction],
    transform: Callable | None = None,
    default: Reduction = "none",
) -> Taps:
    """The layers to tap, tried on three images of a batch: what cannot be used is told at once, before any long work.

    In the order of the forward pass. Of `path@*`, what is never called or gives no row an image is left out, with a warning;
    what is called k times becomes `path@1` to `path@k`. `default` reduces layers that a mapping of reductions does not name.
    """
    chosen, modules, names = resolve(model, layers), _modules(model), defaultdict(list)
    reductions = reduction if isinstance(reduction, Mapping) else dict.fromkeys(chosen, reduction)
    for name, value in reductions.items():
        if name not in chosen or not (callable(value) or value in REDUCTIONS):
            expected = f"one of {', '.join(REDUCTIONS)} or a function, for layers {', '.join(chosen)}"
            raise ValueError(f"reduction: expected {expected}, got {value!r} for {name!r}")
    for name, path in chosen.items():
        names[path.partition("@")[0]].append(name)
    known: list[tuple[nn.Module, int, torch.Size]] = []  # as `_channels` keeps them
    tried: list[tuple[str, Callable | str]] = []  # name of each call's layer, what makes rows of its output or why not

    def attempt(path: str, x: Tensor) -> None:
        axis = _channels(modules[path], x.shape, known)
        tried.extend((name, _reducer(reductions.get(name, default), axis, x)) for name in names[path])

    # three, so that no other dimension is taken for that of the images
    sample = network_input(_each(lambda x: x[torch.arange(3) % len(x)], inputs), model, transform)
    try:
        run(model, {path: (path + "@*", lambda output: output) for path in modules}, sample, attempt)
    except Exception as error:
        shape = _each(lambda x: tuple(x.shape), sample)
        remedy = "resize them, repeat a grey channel by .expand(-1, 3, -1, -1), or pass transform= for this network"
        problem = f"refuses a batch of shape {shape} ({type(error).__name__}: {error})"
        raise ValueError(f"images: {type(modules['']).__name__} {problem}; {remedy}") from error
    taps: list[tuple[int, str, str, Callable]] = []  # place in the forward pass, name, path, what makes rows
    faults: dict[str, list[str]] = defaultdict(list)  # what is wrong -> names
    for name, path in chosen.items():
        call = path.partition("@")[2]
        calls = [(at, reduce) for at, (tapped_name, reduce) in enumerate(tried) if tapped_name == name]
        if fault := _miscalled(call, len(calls)):
            faults[fault].append(name)
        for k, (at, reduce) in enumerate(calls, start=1):
            suffix = f"@{k}" if call == "*" and len(calls) > 1 else ""
            if call in ("", "*", str(k)) and isinstance(reduce, str):
                faults[reduce].append(name)
            elif call in ("", "*", str(k)):
                taps.append((at, name + suffix, path.removesuffix("@*") + suffix, reduce))
    text = "; ".join(f"{', '.join(map(repr, names))}: {fault}" for fault, names in faults.items())
    if not taps or not all(chosen[name].endswith("@*") for names in faults.values() for name in names):
        raise ValueError(f"layers: expected layers that a forward pass calls once, with a row an image, got {text}")
    if faults:
        warnings.warn(f"layers: left out {text}", stacklevel=4)
    return {name: (path, reduce) for _, name, path, reduce in sorted(taps, key=lambda tap: tap[0])}


def _channels(module: nn.Module, shape: torch.Size, known: list[tuple[nn.Module, int, torch.Size]]) -> int | None:
    """The dimension of an output's channels, None where it cannot be told; adds to `known` what the module's type says."""
    last = len(shape) - 1
    norm = type(module) in (nn.LayerNorm, nn.RMSNorm) and len(module.normalized_shape) == 1
    if last > 1 and (norm or isinstance(module, CHANNELS_FIRST + CHANNELS_LAST)):
        known.append((module, 1 if isinstance(module, CHANNELS_FIRST) else last, shape))
        return known[-1][1]
    if last < 2 or not known:
        return last if last < 2 else None
    # The type does not say: channels stay where modules within, or else all before, had them, unless those disagree or
    # dimensions were moved; then they are where the last of them had as many channels.
    _, axis, before = known[-1]
    within = set(module.modules())
    kinds = {a == 1 for m, a, _ in known if m in within} or {a == 1 for _, a, _ in known}
    moved = len(shape) != len(before) or (shape[axis] != before[axis] and sorted(shape) == sorted(before))
    if len(kinds) == 1 and not moved:
        return axis
    places = [d for d in (1, last) if shape[d] == before[axis]]
    return places[0] if len(places) == 1 else None


def _reducer(reduction: Reduction, axis: int | None, x: Tensor) -> Callable[[Tensor], Tensor] | str:
    """What makes rows of a layer's output, of which x is that of three images; or why nothing does."""
    shape, positions = tuple(x.shape), tuple(d for d in range(1, x.ndim) if d != axis)
    reduce = reduction if callable(reduction) else lambda output: output
    if x.ndim > 2 and reduction == "mean":
        if axis is None:
            remedy = "pass reduction='none', or where they are in dimension 1 lambda x: x.mean((2, 3))"
            return f"of shape {shape}, of which the dimension of the channels is not known; {remedy}"
        reduce = lambda x: x.to(torch.promote_types(x.dtype, torch.float32)).mean(positions)  # noqa: E731
    if x.ndim > 2 and reduction == "cls":
        if positions != (1,):
            return f"of shape {shape}, which has no first token; reduction='cls' takes it of (n, t, c)"
        reduce = lambda x: x[:, 0]  # noqa: E731
    try:
        got = tuple(reduce(x).shape)
    except Exception as error:
        return f"of shape {shape}, which its reduction refuses ({error})"
    return reduce if got[:1] == (3,) else f"of shape {got} for three images and not one row an image"


def run(model: nn.Module, taps: Taps, inputs: Inputs, keep: Callable[[str, Tensor], None]) -> None:
    """One forward pass, of one tensor or of several by keyword, that calls `keep(layer, rows)`."""
    paths = {name: path for name, (path, _) in taps.items()}
    with tapped(model, paths, lambda name, output: keep(name, taps[name][1](output))) as network:
        network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


@torch.no_grad()
def pooled(
    model: nn.Module,
    images: Tensor | Iterable,
    layers: Layers = None,
    *,
    reduction: Reduction | Mapping[str, Reduction] = "mean",
    batch_size: int = 256,
    transform: Callable[[Inputs], Inputs] | None = None,
) -> dict[str, Tensor]:
    """Pooled features: layer -> float32 (n, channels) on the CPU, one row an image in the order of the images.

    Args:
        images: as for `network_input`; or a loader, as for `batches`, whose labels are not used.
        layers: as for `resolve`.
        reduction: "mean" over all positions (pixels, tokens, padding too) of every channel, "cls" for the first token of
            (n, t, c), "none" for all of it, or a function of a layer's output (m, ...) that gives (m, ...); or a mapping of layers
            to those, "mean" for the others.
        transform: makes the network's input of a batch.

    Raises ValueError or TypeError for an argument that cannot be used, and for no images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    parts, taps = defaultdict(list), {}
    tune_allocator()
    for x, _, _ in batches(images, batch_size):
        taps = taps or survey(model, layers, x, reduction, transform, "mean")
        x = network_input(x, model, transform)
        run(model, taps, x, lambda name, x: parts[name].append(x.float().reshape(len(x), -1).cpu().clone()))
    return {name: torch.cat(parts[name]) for name in taps}


def as_tensor(value: object, name: str) -> Tensor:
    """A tensor of real numbers, without gradients, from whatever numpy makes an array of; else TypeError. Whole numbers other than
    uint8 become int64."""
    if not isinstance(value, Tensor):
        try:
            value = torch.from_numpy(np.array(value, order="C"))
        except Exception as error:  # text, rows of unequal length, an array on an accelerator
            got = f"{type(value).__name__} ({str(error).partition('. ')[0]})"
            raise TypeError(f"{name}: expected numbers, got {got}; pd.factorize(...)[0] makes some of names") from error
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta or value.is_complex():
        kind = f"{value.layout} {value.dtype} on {value.device}"
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got {kind}; value.to_dense() or .real")
    value = value.detach()
    if value.is_floating_point():
        return value if value.itemsize > 1 else value.float()  # few functions take float8
    return value if value.dtype in (torch.uint8, torch.bool) else value.long()


def as_features(value: object, name: str, least: int = 1) -> Tensor:
    """Features (n, ...) of at least `least` images as `as_tensor` takes them; ValueError for fewer, none, NaN or infinity."""
    value = as_tensor(value, name)
    if value.ndim < 1 or len(value) < least or value.numel() == 0:
        raise ValueError(f"{name}: expected shape (n, p), n >= {least} images, got {tuple(value.shape)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity; leave such rows out")
    return value


def as_labels(value: object, name: str = "labels") -> Tensor:
    """Whole numbers (n,), classes, or a row of numbers an image (n, c); ValueError where it is not clear which is meant."""
    labels = as_features(value, name)
    whole = not labels.is_floating_point()
    if not (labels.ndim == 1 and whole) and (labels.ndim != 2 or (labels.shape[1] == 1 and whole)):
        remedy = "pass labels.flatten().long() if they are classes, labels.float()[:, None] if quantities"
        got = f"{labels.dtype} of shape {tuple(labels.shape)}; {remedy}"
        raise ValueError(f"{name}: expected whole numbers (n,) for classes or rows (n, c) for quantities, got {got}")
    return labels


def _each(function: Callable, inputs: Inputs) -> Inputs:
    return {k: function(v) for k, v in inputs.items()} if isinstance(inputs, Mapping) else function(inputs)


def network_input(images: Inputs, model: nn.Module, transform: Callable[[Inputs], Inputs] | None = None) -> Inputs:
    """What `model` is given, on its device and, if floating, in its dtype: `transform(images)`, or uint8 images of one or three
    channels in the study's scale, from -2 to 2, or floats as they are. Raises ValueError or TypeError for other images."""
    weights = ((p.device, p.dtype) for p in model.parameters() if p.is_floating_point())
    device, dtype = next(weights, (None, None))
    images = _each(lambda x: x.to(device=device, non_blocking=True), images)
    if transform is not None:
        images = transform(images)
        if not isinstance(images, (Tensor, Mapping)):
            raise TypeError(f"transform: expected a tensor or a dict of tensors from it, got {type(images).__name__}")
    elif isinstance(images, Tensor) and images.dtype == torch.uint8:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            remedy = "images.permute(0, 3, 1, 2) puts channels first, transform= makes a network's input of others"
            raise ValueError(f"images: expected uint8 of shape (n, 1 or 3, h, w), got {tuple(images.shape)}; {remedy}")
        images = images.float().mul_(4 / 255).sub_(2)
    elif isinstance(images, Tensor) and not images.is_floating_point():
        raise TypeError(f"images: expected uint8 or float, got {images.dtype}; pass transform= for other inputs")
    return _each(lambda x: x.to(device=device, dtype=dtype) if x.is_floating_point() else x, images)


def batches(images: object, size: int, least: int = 1) -> Iterator[tuple[Inputs, object, int]]:
    """(inputs, labels or None, rows) of each batch: of a tensor, nearly equal parts of `least` to `size` rows; of a loader its own.

    A batch is a tensor, a pair (x, y), or a dict, of which the first of `IMAGE_KEYS` is taken, with an attention or pixel mask
    beside it, or else all tensors but its labels, by keyword. Raises TypeError or ValueError for images of other kinds.
    """
    if hasattr(images, "__array__"):
        x = as_tensor(images, "images")
        if x.ndim < 2 or len(x) < least or x.numel() == 0:
            raise ValueError(f"images: expected at least {least}, in a tensor (n, ...), got shape {tuple(x.shape)}")
        parts = x.tensor_split(max(1, min(-(-len(x) // size), len(x) // least)))
        yield from ((as_features(part, "images"), None, len(part)) for part in parts)
        return
    if isinstance(images, (str, bytes, Mapping)) or not isinstance(images, Iterable):
        remedy = "DataLoader(dataset, batch_size) makes batches of a data set"
        raise TypeError(f"images: expected a tensor or a loader of batches, got {type(images).__name__}; {remedy}")
    largest = 0
    for i, batch in enumerate(images):
        if isinstance(batch, Mapping):
            y = next((batch[k] for k in LABEL_KEYS if k in batch), None)
            first = next((k for k in IMAGE_KEYS if k in batch), None)
            keys = [k for k in batch if k not in LABEL_KEYS] if first is None else [first, *MASK_KEYS]
            x = {k: as_features(batch[k], "images") for k in keys if isinstance(batch.get(k), (Tensor, np.ndarray))}
            x = next(iter(x.values())) if len(x) == 1 else x
        else:
            x, y = (*batch, None)[:2] if isinstance(batch, (tuple, list)) and batch else (batch, None)
            x = as_features(x, "images") if hasattr(x, "__array__") else x
        shape = tuple(getattr(next(iter(x.values()), None) if isinstance(x, dict) else x, "shape", ()))
        if len(shape) < 2 or (len(shape) == 3 and shape[0] in (1, 3)):
            got = f"shape {shape}" if shape else list(batch) if isinstance(batch, Mapping) else type(x).__name__
            kinds = f"tensors, pairs (x, y) or dicts with {', '.join(IMAGE_KEYS)}, got {got} in batch {i}"
            remedy = (
                "torch.stack(images) makes a batch of a list of images, DataLoader(dataset, batch_size) of a data set"
            )
            raise ValueError(f"images: expected batches (m, ...) as {kinds}; {remedy}")
        largest = max(largest, shape[0])
        yield x, y, shape[0]
    if largest < least:
        raise ValueError(f"images: expected batches of at least {least}, got {largest or 'none'}")


@functools.cache
def tune_allocator() -> bool:
    """Have glibc keep large freed memory instead of returning it to the system, by mallopt(3), once a process; not if
    `REPSIM_MALLOC=0`. On the CPU inference gets 1.2 to 2 times faster, training 1.15 times."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if os.environ.get("REPSIM_MALLOC") == "0" or not hasattr(libc, "gnu_get_libc_version"):
        return False
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # mallopt(3)
    raised = libc.mallopt(mmap_threshold, 1 << 30) or libc.mallopt(mmap_max, 0)  # older releases refuse the former
    return bool(raised and libc.mallopt(trim_threshold, -1) and libc.mallopt(top_pad, 256 << 20))
