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
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, pooling

from repsim.models import layer_paths

Inputs = Tensor | dict[str, Tensor]  # what a network is given: one tensor, or several by keyword
Layers = Sequence[str | type[nn.Module]] | Mapping[str, str] | str | type[nn.Module] | None
Reduction = str | Callable[[Tensor], Tensor]  # one of REDUCTIONS, or a function of a layer's output

REDUCTIONS = ("mean", "cls", "none")
IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input")
LABEL_KEYS = ("label", "labels", "y", "target")
MASK_KEYS = ("attention_mask", "pixel_mask")
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)
# Modules whose outputs have their channels in dimension 1, and those that have them in the last one
CHANNELS_FIRST = (conv._ConvNd, batchnorm._NormBase, nn.GroupNorm, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample)
CHANNELS_FIRST += (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd)
CHANNELS_LAST = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
CHANNELS_LAST += (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


# ------------------------------------------------------------------------------------------------------------- layers
def unwrapped(model: nn.Module) -> nn.Module:
    """The network within torch.compile, DataParallel, DistributedDataParallel or AveragedModel."""
    while isinstance(model, WRAPPERS) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def _plain(path: str) -> str:
    """A module path without the parts that torch.compile adds."""
    return re.sub(r"(?<![^.])_orig_mod(\.|$)", "", path).rstrip(".")


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        modules.setdefault(_plain(path), module)
    return modules


def resolve(model: nn.Module, layers: Layers = None) -> dict[str, str]:
    """The layers to tap: name -> module path.

    Args:
        layers: None, the study's layers of one of our ResNets (`repsim.models.layer_paths`); "all" modules; a list of the
            study's names, of module paths, of patterns ("layer*.*", "encoder.layers.*": a `*` is any text without a dot,
            `**` any text) and of module types; or a mapping of names of your own to names or paths. A module that one
            forward pass calls several times must be named by call: `path@2` is its second. What torch.compile and
            DataParallel add to paths may be left out.

    Raises:
        TypeError: layers is None and the model is not one of our ResNets, layers are no names, or the model is scripted.
        ValueError: unknown layers (close matches are listed), a name given twice, or no layer at all.
    """
    return {name: path for name, (path, _) in _choice(unwrapped(model), layers).items()}


def _choice(model: nn.Module, layers: Layers) -> dict[str, tuple[str, bool]]:
    """As `resolve`: name -> (module path, whether it was asked for by its own name)."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "models: expected a module that Python runs, got a scripted or traced one; pass its source module"
        )
    modules, study = _modules(model), {}
    try:
        study = layer_paths(model)
    except TypeError as error:
        if layers is None:
            inner = [path for path, module in modules.items() if path and hasattr(module, "layer4")]
            hint = f'; it holds a ResNet: layers=["{inner[0]}.layer*.*"]' if inner else ""
            raise TypeError(f'{error}, or layers="all"{hint}') from None
    layers = study if layers is None else [layers] if isinstance(layers, (str, type)) else layers
    if not isinstance(layers, Iterable):
        raise TypeError(f"layers: expected names, patterns or module types, got {layers!r}")
    names = {path: path for path in modules if path} | {path: name for name, path in study.items()}
    chosen: dict[str, tuple[str, bool]] = {}
    unknown = []
    for name, what in layers.items() if isinstance(layers, Mapping) else [(item, item) for item in layers]:
        if not isinstance(what, (str, type)) or not isinstance(name, (str, type)):
            raise TypeError(f"layers: expected names, patterns or module types, got {what!r}")
        if isinstance(what, type) or what == "all" or "*" in what:
            fits = _matcher(what)
            several = {n: (path, False) for path, n in names.items() if fits(modules[path], path, n)}
            chosen = several | chosen
            unknown += [] if several else [repr(what)]
            continue
        base, at, call = what.partition("@")
        tries = (study.get(base), base, re.sub(r"^(module\.)+", "", _plain(base)))
        path = next((p for p in tries if p in modules), None)
        if path is None or not re.fullmatch(r"(@[1-9]\d*)?", at + call):
            close = difflib.get_close_matches(base, [*study, *modules], n=4) or list(modules)[1:9]
            unknown.append(f"{what!r}{'' if name == what else f' for {name!r}'} (did you mean {', '.join(close)}?)")
        elif chosen.get(name, ("", False))[1]:
            raise ValueError(f"layers: expected each name once, got {name} more than once")
        else:
            chosen[name] = path + at + call, True
    if unknown:
        raise ValueError(f"layers: expected layers or module paths of {type(model).__name__}, got {', '.join(unknown)}")
    if not chosen:
        raise ValueError("layers: expected at least one layer, got none")
    return chosen


def _matcher(what: str | type) -> Callable[..., bool]:
    """Whether a module is of this type, or one of its names fits this pattern."""
    if isinstance(what, type):
        return lambda module, *names: isinstance(module, what)
    pattern = ".*" if what == "all" else re.escape(what).replace(r"\*\*", ".*").replace(r"\*", "[^.]*")
    return lambda module, *names: any(re.fullmatch(pattern, name) for name in names)


@contextmanager
def tapped(model: nn.Module, layers: Mapping[str, str], reduce: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within: every forward pass of `model`, in eval mode, calls `reduce(name, output)` for each of `layers`.

    `output` is the layer's output at that moment, of any shape; reduce it at once, as later operations may write over it.
    Of an output that is a tuple, list or dict (an attention layer's, an LSTM's) the first tensor is taken. What
    torch.compile made runs uncompiled, as compiled code calls no hooks. The network runs on copies of its buffers; modes,
    buffers and hooks are afterwards as before, also after an exception.

    Args:
        layers: name -> module path, as from `resolve`.

    Raises:
        ValueError: from the forward pass: a layer that it never calls, or calls more than once without `path@k`.
        TypeError: a layer whose output holds no tensor.
    """
    model = unwrapped(model)
    modules, calls, wanted = _modules(model), Counter(), defaultdict(list)
    for name, path in layers.items():
        wanted[modules[path.partition("@")[0]]].append((name, path))

    def begin(module: nn.Module, args: object) -> None:
        calls.clear()

    def tap(module: nn.Module, args: object, output: object) -> None:
        calls[module] += 1
        for name, path in wanted[module]:
            if path.partition("@")[2] in ("", str(calls[module])):
                if (tensor := _tensor(output)) is None:
                    raise TypeError(f"layers: expected {name!r} to give a tensor, got {type(output).__name__}")
                reduce(name, tensor)

    def end(module: nn.Module, args: object, output: object) -> None:
        for module, entries in wanted.items():
            for name, path in entries:
                if fault := _miscalled(path, calls[module]):
                    raise ValueError(f"layers: {name!r} (module {path!r}) is {fault}")

    modes = [(module, module.training) for module in model.modules()]
    buffers = [(m, key, buffer) for m, _ in modes for key, buffer in m._buffers.items() if buffer is not None]
    copies = {buffer: buffer.detach().clone() for _, _, buffer in buffers}
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    handles = [model.register_forward_pre_hook(begin)]
    handles += [module.register_forward_hook(tap) for module in wanted]
    handles += [model.register_forward_hook(end)]
    try:
        for module, key, buffer in buffers:
            module._buffers[key] = copies[buffer]
        model.eval()
        with eager:
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
        for module, key, buffer in buffers:
            module._buffers[key] = buffer


def _miscalled(path: str, calls: int) -> str | None:
    """What is wrong with how often a forward pass calls the module of this path, if anything."""
    call = path.partition("@")[2]
    if calls < int(call or 1):
        times = f"only {calls} times" if calls else "never"
        return f"{times} called in a forward pass; name modules within it, as by PATH.*, or drop it"
    return None if call or calls == 1 else "called more than once in a forward pass; PATH@2 names the second call"


def _tensor(output: object) -> Tensor | None:
    output = output.values() if isinstance(output, Mapping) else output
    parts = output if isinstance(output, Iterable) and not isinstance(output, Tensor) else (output,)
    return next((part for part in parts if isinstance(part, Tensor)), None)


# ----------------------------------------------------------------------------------------------------------- features
class Tap(NamedTuple):
    """A layer to tap: the path of its module, and what makes rows of its output, (n, ...) -> (n, ...)."""

    path: str
    reduce: Callable[[Tensor], Tensor]


def survey(
    model: nn.Module,
    layers: Layers,
    inputs: Inputs,
    reduction: Reduction | Mapping[str, Reduction],
    transform: Callable | None = None,
    default: str = "none",
) -> dict[str, Tap]:
    """The layers to tap, tried on three images of a batch: what cannot be used is told at once, before any long work.

    Of those that "all", a pattern or a type stands for, what is never called or gives no row an image is left out, and named
    in a warning; what is called k times becomes `path@1` to `path@k`. `default` is the reduction of layers that a mapping does
    not name. Raises as `pooled`.
    """
    model = unwrapped(model)
    wanted, modules, names = _choice(model, layers), _modules(model), defaultdict(list)
    reductions = reduction if isinstance(reduction, Mapping) else dict.fromkeys(wanted, reduction)
    for name, value in reductions.items():
        if name not in wanted or not (callable(value) or value in REDUCTIONS):
            known = f"one of {', '.join(REDUCTIONS)} or a function, for layers {', '.join(wanted)}"
            raise ValueError(f"reduction: expected {known}, got {value!r} for {name!r}")
    for name, (path, _) in wanted.items():
        names[modules[path.partition("@")[0]]].append(name)
    known: list[tuple[nn.Module, int, torch.Size]] = []  # as `_channels` keeps them
    tried: list[tuple[str, int, Callable | str]] = []  # name, call, what makes rows of the output or what is wrong
    calls: Counter[str] = Counter()

    def attempt(module: nn.Module, args: object, output: object) -> None:
        x = _tensor(output)
        axis = None if x is None else _channels(module, x.shape, known)
        for name in names[module]:
            calls[name] += 1
            try:
                tried.append((name, calls[name], _reducer(reductions.get(name, default), axis, x)))
            except ValueError as error:
                tried.append((name, calls[name], str(error)))

    # three, so that no other dimension is taken for that of the images
    sample = network_input(_each(lambda x: x[torch.arange(3) % rows(inputs)], inputs), model, transform)
    handles = [module.register_forward_hook(attempt) for module in model.modules()]
    try:
        run(model, {}, sample)
    except Exception as error:
        shape = tuple(sample.shape) if isinstance(sample, Tensor) else {k: tuple(v.shape) for k, v in sample.items()}
        raise ValueError(
            f"images: {type(model).__name__} refuses a batch of shape {shape} ({type(error).__name__}: {error}); resize them, "
            "repeat a grey channel by .expand(-1, 3, -1, -1), or pass transform= for this network"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    taps: dict[str, Tap] = {}
    faults: dict[str, list[str]] = defaultdict(list)  # what is wrong -> names
    for name, call, reduce in tried:
        path, asked = wanted[name]
        if path.partition("@")[2] not in ("", str(call)):
            continue
        if isinstance(reduce, str):
            faults[reduce].append(name)
        else:
            suffix = "" if asked or calls[name] == 1 else f"@{call}"
            taps[name + suffix] = Tap(path + suffix, reduce)
    for name, (path, asked) in wanted.items():
        if (fault := _miscalled(path, calls[name])) and (asked or not calls[name]):
            faults[fault].append(name)
    text = "; ".join(f"{', '.join(map(repr, names))}: {fault}" for fault, names in faults.items())
    if not taps or any(wanted[name][1] for names in faults.values() for name in names):
        raise ValueError(f"layers: expected layers that a forward pass calls once, with a row an image, got {text}")
    if faults:
        warnings.warn(f"layers: left out {text}", stacklevel=4)
    return {name: taps[name] for name in wanted} if all(asked for _, asked in wanted.values()) else taps


def _channels(module: nn.Module, shape: torch.Size, known: list[tuple[nn.Module, int, torch.Size]]) -> int | None:
    """The dimension of an output's channels, None where it cannot be told; adds to `known` what the module's type says.

    A convolution has its channels in dimension 1, a linear layer in the last. Any other module's are where the last
    such module before or within it put as many; if that does not decide it, they stay where all modules within had them.
    """
    last = len(shape) - 1
    norm = type(module) in (nn.LayerNorm, nn.RMSNorm) and len(module.normalized_shape) == 1
    if last > 1 and (norm or isinstance(module, CHANNELS_FIRST + CHANNELS_LAST)):
        known.append((module, 1 if isinstance(module, CHANNELS_FIRST) else last, shape))
        return known[-1][1]
    if last < 2 or not known:
        return last if last < 2 else None
    _, axis, before = known[-1]
    within = set(module.modules())
    if len(within) == 1 and type(module).__module__.startswith("torch.nn") and shape == before:  # as an activation
        return axis
    kinds = {a == 1 for m, a, _ in known if m in within} or {a == 1 for _, a, _ in known}
    places = [d for d in (1, last) if shape[d] == before[axis]]
    if len(shape) == len(before) and len(kinds) == 1 and (axis in places or sorted(shape) != sorted(before)):
        return axis
    return places[0] if len(places) == 1 else None


def _reducer(reduction: Reduction, axis: int | None, x: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What makes rows of a layer's output, of which x is that of three images. Raises ValueError where it cannot."""
    if x is None:
        raise ValueError("without a tensor in its output; tap a module inside it")
    shape, positions = tuple(x.shape), tuple(d for d in range(1, x.ndim) if d != axis)
    reduce = reduction if callable(reduction) else lambda output: output
    if x.ndim > 2 and reduction == "mean":
        if axis is None:
            raise ValueError(
                f"of shape {shape}, of which the dimension of the channels is not known; pass reduction='none', or a function "
                "of it such as lambda x: x.mean((2, 3)), where they are in dimension 1"
            )
        reduce = lambda x: x.to(torch.promote_types(x.dtype, torch.float32)).mean(positions)  # noqa: E731
    if x.ndim > 2 and reduction == "cls":
        if positions != (1,):
            raise ValueError(f"of shape {shape} and has no first token, which reduction='cls' takes of (n, t, c)")
        reduce = lambda x: x[:, 0]  # noqa: E731
    try:
        got = tuple(reduce(x).shape)
    except Exception as error:
        raise ValueError(f"of shape {shape}, which its reduction refuses ({error})") from error
    if not got or got[0] != 3:
        raise ValueError(
            f"of shape {got} for three images and not one row an image, which the first dimension must hold"
        )
    return reduce


def run(model: nn.Module, taps: Mapping[str, Tap], inputs: Inputs, keep: Callable | None = None) -> None:
    """One forward pass, of one tensor or of several by keyword, that calls `keep(layer, rows)`."""
    paths = {name: tap.path for name, tap in taps.items()}
    with tapped(model, paths, lambda name, output: keep(name, taps[name].reduce(output))):
        model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


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
        images: uint8 (n, 3, h, w) or (n, 1, h, w), brought into the study's scale, or float, given as they are; or a loader,
            as for `batches`, whose labels are not used.
        layers: as for `resolve`.
        reduction: "mean" over all positions (pixels, tokens, padding too) of every channel, "cls" for the first token of
            (n, t, c), "none" for all of it, or a function of a layer's output (m, ...) that gives (m, ...); or a mapping of
            layers to those, "mean" for the others.
        transform: makes the network's input of a batch.

    Raises:
        ValueError, TypeError: as `survey` and `network_input`; no images, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    model, parts, taps = unwrapped(model), defaultdict(list), {}
    tune_allocator()

    def keep(name: str, x: Tensor) -> None:
        parts[name].append(x.float().reshape(len(x), -1).cpu().clone())

    for x, _ in batches(images, batch_size, labels=False):
        taps = taps or survey(model, layers, x, reduction, transform, "mean")
        run(model, taps, network_input(x, model, transform), keep)
    return {name: torch.cat(parts[name]) for name in taps}


# ------------------------------------------------------------------------------------------------------------- inputs
def as_tensor(value: object, name: str) -> Tensor:
    """A tensor of real numbers, without gradients, from a tensor, an array, a list of numbers, a Series or a DataFrame.

    Whole numbers other than uint8 become int64, floats beyond float64 or below float16 the nearest of those.

    Raises:
        TypeError: what holds no numbers, several tensors, or a sparse or complex one; `name` is the argument's.
    """
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
            raise TypeError(f"{name}: expected one tensor, got a {kind} of {len(value)}; torch.stack(...) them")
        try:
            array = np.asarray(value)
        except Exception as error:  # rows of unequal length, an array on an accelerator
            raise TypeError(f"{name}: expected a tensor or an array of numbers, got {kind}: {error}") from error
        if array.dtype.kind not in "biuf":
            remedy = "pd.factorize(...)[0] makes numbers of names"
            raise TypeError(f"{name}: expected numbers, got {kind} of {array.dtype}; {remedy}")
        plain = array.dtype.name in ("bool", "uint8", "float16", "float32")
        dtype = array.dtype.name if plain else "float64" if array.dtype.kind == "f" else "int64"
        return torch.from_numpy(np.array(array, dtype=dtype, order="C"))
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_meta or value.is_complex():
        kind = "meta" if value.is_meta else "nested" if value.is_nested else f"{value.layout} {value.dtype}"
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got a {kind} one; value.to_dense() or .real")
    value = value.detach()
    if value.is_floating_point():
        return value if value.itemsize > 1 else value.float()  # few functions take float8
    return value if value.dtype in (torch.uint8, torch.bool) else value.long()


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
    """Whole numbers (n,), classes, or a row of numbers an image (n, c), as `as_features` takes them.

    Raises:
        TypeError, ValueError: as `as_features`; numbers of which it is not clear whether they are classes.
    """
    labels = as_features(value, "labels")
    classes = labels.ndim == 1 and not labels.is_floating_point()
    if not classes and (labels.ndim != 2 or (labels.shape[1] == 1 and not labels.is_floating_point())):
        raise ValueError(
            f"labels: expected whole numbers (n,) for classes or rows (n, c) for quantities, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; pass labels.flatten().long() if they are classes, labels.float()[:, None] if quantities"
        )
    return labels


def _each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    return {k: function(v) for k, v in inputs.items()} if isinstance(inputs, Mapping) else function(inputs)


def rows(inputs: Inputs) -> int:
    """How many images there are in a batch."""
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def network_input(images: Inputs, model: nn.Module, transform: Callable[[Inputs], Inputs] | None = None) -> Inputs:
    """What `model` is given, on its device: `transform(images)`, or uint8 images of one or three channels in the study's
    scale, from -2 to 2, or floats as they are; where both are floating, in the model's dtype.

    Raises:
        TypeError: integers other than uint8, without a transform. ValueError: uint8 images of another shape.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    device, dtype = (weight.device, weight.dtype) if weight.numel() else (None, None)
    images = _each(lambda x: x.to(device=device, non_blocking=True), images)
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
    return _each(lambda x: x.to(device=device, dtype=dtype) if x.is_floating_point() else x, images)


def batches(images: object, size: int, least: int = 1, labels: bool = True) -> Iterator[tuple[Inputs, Tensor | None]]:
    """(inputs, labels or None) of each batch: of a tensor or array, nearly equal parts of at most `size` rows; of a loader
    its batches as they come, those of fewer than `least` rows joined to the batch before.

    Args:
        images: a tensor or an array; or an iterable of those, of pairs (x, y), or of dicts, of which the first of
            `IMAGE_KEYS` is taken, with an attention or pixel mask beside it; of a dict without any of them all tensors but
            its labels. Several tensors are given to the network by keyword; transform= may choose among them.
        labels: whether to take a loader's labels, if there are any.

    Raises:
        TypeError, ValueError: what holds no batch of images; too few of them.
    """
    if isinstance(images, Tensor) or hasattr(images, "__array__"):
        x = as_tensor(images, "images")
        if x.ndim < 2 or len(x) < least or x.numel() == 0:
            raise ValueError(f"images: expected at least {least}, in a tensor (n, ...), got shape {tuple(x.shape)}")
        yield from ((part, None) for part in x.tensor_split(max(1, min(-(-len(x) // size), len(x) // least))))
        return
    if isinstance(images, (str, bytes, Mapping)) or not isinstance(images, Iterable):
        raise TypeError(
            f"images: expected a tensor or a loader of batches, got {type(images).__name__}; "
            "DataLoader(dataset, batch_size) makes batches of a data set"
        )
    held: tuple[Inputs, Tensor | None] | None = None
    for i, batch in enumerate(images):
        x, y = _unpacked(batch, labels, i)
        if held is None or min(rows(x), rows(held[0])) >= least:
            if held is not None:
                yield held
            held = x, y
            continue
        try:
            both = torch.cat([held[0], x]) if isinstance(x, Tensor) else {k: torch.cat([held[0][k], x[k]]) for k in x}
            held = both, None if y is None else torch.cat([held[1], y])
        except (RuntimeError, TypeError, KeyError) as error:
            raise ValueError(
                f"images: batch {i} is too small, and cannot be joined ({error}); use drop_last"
            ) from error
    if held is None or rows(held[0]) < least:
        raise ValueError(f"images: expected at least {least}, got {'none' if held is None else rows(held[0])}")
    yield held


def _unpacked(batch: object, labelled: bool, i: int) -> tuple[Inputs, Tensor | None]:
    """The inputs and labels of a loader's batch i."""
    x, y = (*batch, None)[:2] if isinstance(batch, (tuple, list)) and batch else (batch, None)
    if isinstance(batch, Mapping):
        y = next((batch[k] for k in LABEL_KEYS if k in batch), None)
        first = next((k for k in IMAGE_KEYS if k in batch), None)
        keys = [k for k in batch if k not in LABEL_KEYS] if first is None else [first, *MASK_KEYS]
        x = {k: as_tensor(batch[k], "images") for k in keys if isinstance(batch.get(k), (Tensor, np.ndarray))}
        x = next(iter(x.values())) if len(x) == 1 else x
    elif isinstance(x, Tensor) or hasattr(x, "__array__"):
        x = as_tensor(x, "images")
    first = next(iter(x.values()), None) if isinstance(x, dict) else x
    shape = tuple(first.shape) if isinstance(first, Tensor) else ()
    if len(shape) < 2 or shape[0] == 0 or (len(shape) == 3 and shape[0] in (1, 3)):
        got = (
            f"shape {shape}"
            if shape
            else ", ".join(map(str, batch))
            if isinstance(batch, Mapping)
            else type(x).__name__
        )
        raise ValueError(
            f"images: expected batches (m, ...) as tensors, pairs (x, y) or dicts with {', '.join(IMAGE_KEYS)}, got {got} in "
            f"batch {i}; torch.stack(images) makes a batch of a list of images, DataLoader(dataset, batch_size) of a data set"
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


@functools.cache
def tune_allocator() -> bool:
    """Raise glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD by mallopt(3), once a process and for all of it.

    Large activations are then kept instead of returned to the system and faulted in again: inference gets 1.2 to 2 times
    faster on the CPU, training 1.15 times; freed memory stays with the process. Nothing happens with `REPSIM_MALLOC=0` in
    the environment, and without glibc (whose name other C libraries' mallopt, which does nothing, does not have).
    """
    if os.environ.get("REPSIM_MALLOC") == "0" or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # mallopt(3)
    # older releases refuse such a threshold
    raised = libc.mallopt(mmap_threshold, 1 << 30) or libc.mallopt(mmap_max, 0)
    return bool(raised and libc.mallopt(trim_threshold, -1) and libc.mallopt(top_pad, 256 << 20))
