"""Activations of named layers of any module, reduced inside the forward pass.

A hook that keeps a reference to a layer's output and reads it afterwards reads the wrong thing where a later operation
works in place: torchvision's residual blocks do `out += identity` and then ReLU, both in the memory of the last batch
norm's output. Here the reduction runs INSIDE the hook, before anything can touch the tensor, and nothing else is kept.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repsim import allocator
from repsim.data import as_input
from repsim.models import layer_paths


def resolve(model: nn.Module, layers: Sequence[str] | Mapping[str, str] | None = None) -> dict[str, str]:
    """The layers to tap: name -> module path, in the order given.

    Args:
        layers: None, the study's layers of one of our ResNets (`repsim.models.layer_paths`); a list of its names or of
            module paths; or a mapping of names of your own to module paths. A module that one forward pass calls several
            times must be named by call: `path@2` is its second.

    Raises:
        TypeError: layers is None and the model is not one of our ResNets, or layers is a string.
        ValueError: an unknown layer (close matches are listed), a name given twice, or no layer at all.
    """
    if isinstance(layers, str):
        raise TypeError(f"layers: expected a list of names or a mapping, got the string {layers!r}; write [{layers!r}]")
    try:
        study = layer_paths(model)
    except TypeError:
        if layers is None:
            raise
        study = {}
    if layers is None:
        return study
    named = list(layers.items()) if isinstance(layers, Mapping) else [(name, study.get(name, name)) for name in layers]
    if not named:
        raise ValueError("layers: expected at least one layer, got none")
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise ValueError(f"layers: expected each name once, got {', '.join(twice)} more than once")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, path in named:
        base, at, call = path.partition("@")
        if base not in modules or (at and not (call.isdigit() and int(call) > 0)):
            known = dict.fromkeys([*study, *filter(None, modules)])
            close = difflib.get_close_matches(base, known, n=4) or list(modules)[1:9]
            raise ValueError(
                f"layers: expected a layer or module path of {type(model).__name__}, got {path!r}"
                f"{'' if name == path else f' for {name!r}'}; did you mean {', '.join(close)}?"
            )
    return dict(named)


@contextmanager
def tapped(model: nn.Module, layers: Mapping[str, str], reduce: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within: every forward pass of `model`, in eval mode, calls `reduce(name, output)` for each of `layers`.

    `output` is the layer's output at that moment, of any shape; reduce it at once, as later operations may write over it.
    Of an output that is a tuple, list or dict (an attention layer's, an LSTM's) the first tensor is taken. Afterwards,
    also after an exception, the mode of every submodule, all buffers and all hooks are as before.

    Args:
        layers: name -> module path, as from `resolve`.

    Raises:
        ValueError: from the forward pass: a layer that it never calls, or calls more than once without `path@k`.
        TypeError: a layer whose output holds no tensor.
    """
    calls: Counter[nn.Module] = Counter()
    wanted: dict[nn.Module, list[tuple[str, str, int]]] = {}
    for name, path in layers.items():
        base, _, call = path.partition("@")
        wanted.setdefault(model.get_submodule(base), []).append((name, base, int(call or 0)))

    def begin(module: nn.Module, args: object) -> None:
        calls.clear()

    def tap(module: nn.Module, args: object, output: object) -> None:
        calls[module] += 1
        for name, path, call in wanted[module]:
            if call == 0 and calls[module] > 1:
                raise ValueError(
                    f"layers: expected {name!r} to be called once in a forward pass, but it is called again; "
                    f"{path + '@1'!r} names its first call and {path + '@2'!r} its second"
                )
            if call in (0, calls[module]):
                reduce(name, _tensor(output, name))

    def end(module: nn.Module, args: object, output: object) -> None:
        for tapped_module, entries in wanted.items():
            for name, path, call in entries:
                if (count := calls[tapped_module]) < max(call, 1):
                    times = f"only {count} times" if count else "never"
                    raise ValueError(f"layers: {name!r} (module {path!r}) is {times} called in a forward pass; drop it")

    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [(m, key, b, b.detach().clone()) for m in modules for key, b in m._buffers.items() if b is not None]
    handles = []
    try:
        handles.append(model.register_forward_pre_hook(begin))
        handles.extend(module.register_forward_hook(tap) for module in wanted)
        handles.append(model.register_forward_hook(end))
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in zip(modules, modes):
            module.training = mode
        with torch.no_grad():
            for module, key, buffer, before in buffers:
                module._buffers[key] = buffer
                buffer.copy_(before)


def _tensor(output: object, name: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise TypeError(f"layers: expected {name!r} to give a tensor, got {type(output).__name__}; tap a module inside it")


def network_input(images: Tensor, model: nn.Module, transform: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What `model` is given, on its device: `transform(images)`, or uint8 (n, 3, h, w) in the study's scale, or floats as
    they are; where both are floating, in the model's dtype.

    Raises:
        TypeError: integers other than uint8, without a transform. ValueError: uint8 images of another shape.
    """
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None:
        images = images.to(weight.device, non_blocking=True)
    if transform is not None:
        images = transform(images)
    elif images.dtype == torch.uint8:
        if images.ndim != 4:
            raise ValueError(f"images: expected uint8 of shape (n, 3, h, w), got {tuple(images.shape)}")
        images = as_input(images)
    elif not images.is_floating_point():
        raise TypeError(f"images: expected uint8 or float, got {images.dtype}; pass transform= for other inputs")
    return images if weight is None or not images.is_floating_point() else images.to(weight)


@torch.no_grad()
def pooled(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[str] | Mapping[str, str] | None = None,
    *,
    batch_size: int = 256,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Pooled features: layer -> float32 (n, channels) on the CPU.

    The spatial mean of every channel of (n, c, h, w), the mean over tokens of (n, t, c), and (n, c) as it is.

    Args:
        images: uint8 (n, 3, h, w), brought into the study's scale, or float, given as they are.

    Raises:
        ValueError, TypeError: as `resolve`, `tapped` and `network_input`; no images, or a batch size below 1.
    """
    if not isinstance(images, Tensor) or images.ndim < 2 or len(images) == 0:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: expected a tensor of at least one image, got {got}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    paths = resolve(model, layers)
    parts: dict[str, list[Tensor]] = {name: [] for name in paths}

    def reduce(name: str, output: Tensor) -> None:
        if output.ndim > 2:
            output = output.float().mean(dim=1 if output.ndim == 3 else tuple(range(2, output.ndim)))
        parts[name].append(output.float().reshape(len(output), -1).cpu().clone())

    allocator.tune()
    for batch in images.split(batch_size):
        given = network_input(batch, model, transform)
        with tapped(model, paths, reduce):
            model(given)
    return {name: torch.cat(values) for name, values in parts.items()}
