"""One training loop for every objective: deterministic, resumable, read from top to bottom in one sitting.

Every random draw is a function of the seed and of what it is for: the initial weights, the order of an epoch, the views
of a step. A run that is killed and started again therefore ends with the same bits (on the CPU) as one never interrupted,
and networks of one seed share initial backbone, batches and, where their objectives use the same views, the views.

`python -m repsim.train --profile gpu sl-0 simclr-0` trains networks of a study, by all GPUs under torchrun.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import math
import sys
import time
import timeit
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from repsim import augment, data, distributed, models, store, taps
from repsim.objectives import OBJECTIVES, BatchOutputs, at_least_float32, tau

CHECKPOINT_SECONDS = 120.0
HISTORY = ["epoch", "loss", "validation_loss", "learning_rate"]
SNAPSHOTS = ("sl", "simclr", "sl_simclr_views")  # objectives of which weights on the way are kept
# Three snapshots a decade through the last two, two a decade before: of 1,000 steps those after 1, 3, 10, 22, 46, 100, 215, ...
SHARES = tuple(10 ** (-k / 3) for k in range(6)) + tuple(10 ** (-2 - k / 2) for k in range(10))
FORMAT = 2  # raised whenever the same settings would give other weights: files of another format are not found
FROM_0, FROM_1, FROM_2 = (pd.Interval(low, math.inf, closed="left") for low in (0, 1, 2))
TO_1, BELOW_1, ABOVE_0 = (pd.Interval(0, 1, closed=ends) for ends in ("both", "left", "right"))
POSITIVE, TO_HALF = pd.Interval(0, math.inf, closed="neither"), pd.Interval(0, 0.5, closed="both")
Device = torch.device | str
Progress = bool | Callable[[int], Any]


def check_types(settings: Any) -> None:
    """ValueError, naming field and value, where a dataclass's is not of its type or, if Annotated, in its range or choice."""
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        hint, *allowed = typing.get_args(hint) if typing.get_origin(hint) is Annotated else [hint]
        value, kinds = getattr(settings, name), typing.get_args(hint) or (hint,)
        whole = isinstance(value, int) and float in kinds
        if not (isinstance(value, kinds) or whole) or (isinstance(value, bool) and bool not in kinds):
            expected = " | ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{name}: expected {expected}, got {value!r} ({type(value).__name__})")
        if allowed and value is not None and value not in allowed[0]:
            expected = f"one of {', '.join(allowed[0])}" if isinstance(value, str) else f"a number in {allowed[0]}"
            raise ValueError(f"{name}: expected {expected}, got {value!r}")


@dataclass(frozen=True)
class Settings:
    """All that decides a network's weights, but for the images. Checked when made: ValueError names what is wrong."""

    objective: Annotated[str, OBJECTIVES] = "sl"
    seed: int = 0
    architecture: Annotated[str, models.ARCHITECTURES] = "resnet18"
    width: Annotated[int, models.WIDTHS] = 64
    stem: Annotated[str, models.STEMS] = "cifar"
    epochs: Annotated[int, FROM_0] = 100
    batch_size: Annotated[int, FROM_2] = 256
    optimizer: Annotated[str, ["sgd"]] = "sgd"  # files name it
    learning_rate: Annotated[float, POSITIVE] = 0.06  # per 256 images of a batch, at its peak after the warm-up
    momentum: Annotated[float, BELOW_1] = 0.9
    weight_decay: Annotated[float, FROM_0] = 5e-4  # not on biases and batch norms
    warmup: Annotated[float, BELOW_1] = 0.1  # share of the steps
    temperature: Annotated[float, POSITIVE] = 0.5  # of NT-Xent, SupCon and NSCL
    projection: Annotated[int, FROM_1] = 128  # dimensions of the projection head's output
    hidden: Annotated[int | None, FROM_1] = None  # its hidden units; as many as the backbone has features if None
    crop: Annotated[float, ABOVE_0] = 0.2  # of SimCLR's views: the smallest share of the area; 1: not cropped
    colour: Annotated[float, TO_1] = 0.4  # strength of their brightness, contrast and saturation jitter
    hue: Annotated[float, TO_HALF] = 0.1  # strength of their hue jitter, in turns; 0.5: any hue
    grayscale: Annotated[float, TO_1] = 0.2  # the probability that a view is grey
    precision: Annotated[str, ["auto", "float32", "bfloat16"]] = "auto"  # auto: what the device multiplies in
    threads: Annotated[int, FROM_1] = 1  # CPU threads; another number gives other last bits

    __post_init__ = check_types

    @property
    def name(self) -> str:
        return f"{self.objective}-{self.seed}"

    def key(self, images: str) -> str:
        """Names the weights that these settings give on the images with this fingerprint."""
        return store.digest({"format": FORMAT, "images": images} | self.chosen())

    def chosen(self) -> dict[str, Any]:
        """The fields that are not at their defaults: a field added later leaves the keys of older networks as they are."""
        return {f.name: v for f in dataclasses.fields(self) if (v := getattr(self, f.name)) != f.default}

    def simclr_views(self) -> dict[str, Any]:
        """The strengths of SimCLR's views as arguments of `augment.simclr`."""
        return {"scale": (self.crop, 1.0), "jitter": (*[self.colour] * 3, self.hue), "grayscale_p": self.grayscale}

    def build(self, classes: int, device: Device = "cpu") -> models.ResNet:
        """The network before training."""
        head, rotated = OBJECTIVES[self.objective].head, OBJECTIVES[self.objective].rotated
        outputs = self.projection if head == "projection" else 4 if rotated else classes
        options = {name: getattr(self, name) for name in ("architecture", "width", "stem", "hidden", "seed")}
        model = models.build(head=head, outputs=outputs, **options)
        return model.to(device, memory_format=torch.channels_last)


@dataclass(frozen=True, eq=False)
class Trained:
    """A network in eval mode, the settings it was trained with, and its history: epoch, loss, validation_loss, learning_rate."""

    model: models.ResNet
    settings: Settings
    history: pd.DataFrame
    seconds: float


def passes(settings: Settings, images: int) -> int:
    """How many views go through the network while it trains on so many images: what its time is proportional to."""
    return steps(settings, images) * settings.batch_size * OBJECTIVES[settings.objective].n_views


def steps(settings: Settings, images: int) -> int:
    """How many steps a training on so many images takes; the last, smaller batch of an epoch's order is not used."""
    return settings.epochs * (images // settings.batch_size)


def schedule(steps: int) -> dict[float, int]:
    """When snapshots are taken: share of the training -> nearest step, from 0.0 (initialisation) to 1.0 (the network itself)."""
    shares = {0: 0.0}
    for share in SHARES:
        shares.setdefault(round(share * steps), share)  # of shares with the same step the largest counts
    return {share: step for step, share in sorted(shares.items())}


def snapshot_path(final: Path, step: int) -> Path:
    """Where the weights after `step` steps of the network that is kept as `final` are."""
    return Path(final).with_suffix(f".step-{step}")


def seconds_per_pass(settings: Settings, images: data.Splits, device: Device = "cpu") -> float:
    """How long a view takes here in training, in seconds: the mean of three steps, after one that warms up."""
    part = images.train.take(slice(settings.batch_size)).to(device)
    trainee = Trainee(settings, len(part.classes), device)

    def step() -> None:
        loss = trainee.loss(part.images, part.labels, (0, "measured"))
        loss.backward()
        loss.item()  # waits for the device

    with contextlib.ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(settings.threads)
        step()
        return timeit.timeit(step, number=3) / (3 * len(part) * trainee.objective.n_views)


def progress_bar(total: int, title: str, **options: Any) -> tqdm:
    """A bar over image passes, which a log file gets every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() or "ipykernel" in sys.modules else 10
    return tqdm(total=total, desc=title, unit="image", unit_scale=True, leave=False, mininterval=interval, **options)


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up to the peak, then cosine to zero (Loshchilov and Hutter 2017), for step 0 <= step < steps."""
    peak = settings.learning_rate * settings.batch_size / 256
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _optimizer(model: nn.Module, settings: Settings, device: torch.device) -> torch.optim.SGD:
    """SGD whose weight decay spares biases and batch norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, fused=device.type == "cuda" or None)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16, rather than emulate it: CUDA, and CPUs with AVX512-BF16 or AMX."""
    cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" or (device.type == "cpu" and cpu)


class Trainee(nn.Module):
    """A network in training, with what its objective trains beside it: `extra_module` and `ema_copy`, each None if it has none."""

    def __init__(self, settings: Settings, classes: int, device: Device = "cpu"):
        super().__init__()
        taps.tune_allocator()
        self.settings, self.objective = settings, OBJECTIVES[settings.objective]
        self.model = settings.build(classes, device)
        self.extra_module = self.ema_copy = None
        if self.objective.extra_module:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                _, read = _pooled(self.model.eval(), torch.zeros(1, 3, 32, 32, device=device), self.objective.layer)
                torch.manual_seed(store.generator(settings.seed, "companion").initial_seed())
                self.extra_module = self.objective.extra_module(settings, read.shape[1], classes).to(device)
            self.model.train()
        if self.objective.ema_copy:
            self.ema_copy = copy.deepcopy(self.model).requires_grad_(False)

    def loss(self, images: Tensor, labels: Tensor, key: tuple, network: nn.Module | None = None) -> Tensor:
        """The objective's loss on one batch, by the generators `key`; of `network`, trained with other ranks, by rows of each."""
        settings, objective, n = self.settings, self.objective, self.objective.n_views
        rows = distributed.rows_of_rank(len(images)) if network else augment.ALL
        view = augment.VIEWS[objective.views]
        strengths = settings.simclr_views() if objective.views == "simclr" else {}
        x = torch.cat([view(images, store.generator(*key, i), rows=rows, **strengths) for i in range(n)])
        if objective.rotated:
            labels = torch.randint(4, labels.shape, generator=store.generator(*key, "turns")).to(labels.device)
            x = augment.turn(x, labels[rows].repeat(n))
        x = x.contiguous(memory_format=torch.channels_last)
        half = multiplies_bfloat16(x.device) if settings.precision == "auto" else settings.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            outputs, read = _pooled(network or self.model, x, objective.layer)
            with torch.no_grad():
                targets = self.ema_copy(x) if self.ema_copy else outputs
        outputs, read, targets = (at_least_float32(features).chunk(n) for features in (outputs, read, targets))
        if rows != augment.ALL:
            outputs = tuple(map(distributed.all_gather, outputs))
        return objective.loss(BatchOutputs(outputs, labels, settings, self.extra_module, read, targets))

    @torch.no_grad()
    def validation_loss(self, images: data.ImageSet) -> float:
        """The mean loss in eval mode over whole batches of `images`, with views that are the same every time."""
        training, losses, size = self.training, [], min(self.settings.batch_size, len(images))
        self.eval()
        for i in range(0, len(images) - size + 1, size):
            batch = images.take(slice(i, i + size))
            losses.append(float(self.loss(batch.images, batch.labels, (self.settings.seed, "validation", i))))
        self.train(training)
        return sum(losses) / len(losses)


def _pooled(network: nn.Module, x: Tensor, layer: str | None) -> tuple[Tensor, Tensor]:
    """The network's outputs, and the spatial means of this layer's, (n, channels); the outputs again if there is no layer."""
    if layer is None:
        return (outputs := network(x)), outputs
    means = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:  # at once: later layers work in place
        means.append(at_least_float32(output).reshape(*output.shape[:2], -1).mean(2))

    with network.get_submodule(models.layer_paths(network).get(layer, layer)).register_forward_hook(keep):
        return network(x), means[0]


def measure_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Set the running statistics of every batch norm, 0 and 1 before training, to their averages over `images`."""
    inputs = (data.as_input(batch) for batch in images.split(256) if len(batch) > 1)
    torch.optim.swa_utils.update_bn((x.contiguous(memory_format=torch.channels_last) for x in inputs), model)


def path(settings: Settings, images: data.Splits, folder: Path) -> Path:
    """Where the weights of these settings on these images are kept."""
    key = settings.key(data.fingerprint(images.train) + data.fingerprint(images.validation))
    return Path(folder) / f"{settings.name}-{key}.safetensors"


def train(
    settings: Settings, images: data.Splits, folder: Path, *, device: Device = "cpu", progress: Progress = True
) -> Trained:
    """Load the network that these settings give on these images from `folder`; train it, and keep it there, if it is not.

    A checkpoint is written beside it after every epoch and every two minutes, so that a killed run goes on where it was, and of
    the objectives SNAPSHOTS the weights at some moments on the way (`schedule`), rounded as the network is; these stay. A second
    process that asks for the same network waits for the first; the ranks of a torchrun, all of which call this, train it
    together. `progress` shows a bar over image passes, or is called with the number of passes since it was last called.

    Raises ValueError for what cannot be trained so; RuntimeError where the loss became NaN or infinite; OSError where `folder`
    cannot be written.
    """
    if len(images.train) < settings.batch_size and settings.epochs:
        raise ValueError(f"batch_size: expected at most all images, {len(images.train)}, got {settings.batch_size}")
    if len(images.validation) < 2:
        raise ValueError(f"validation: expected at least 2 images, got {len(images.validation)}")
    objective = OBJECTIVES[settings.objective]
    if distributed.ranks() > 1 and (objective.extra_module or objective.ema_copy):
        alone = "one that trains the network alone, as ranks share nothing else"
        raise ValueError(f"objective: expected {alone}, got {settings.objective!r}; train it by one process")
    final, device, shown = path(settings, images, folder), torch.device(device), not distributed.rank() and progress

    def make(kept: Trained | None = None) -> Trained:
        """What rank 0 has loaded; if it has not, what all ranks train together."""
        return distributed.broadcast(kept) or _train(settings, images, final, device, shown)

    def save(path: Path, trained: Trained) -> None:
        meta = {"settings": dataclasses.asdict(settings), "classes": list(images.train.classes), "images": images.name}
        meta |= {"history": trained.history.to_dict("list"), "seconds": round(trained.seconds, 1)}
        meta |= {"passes": passes(settings, len(images.train)), "torch": torch.__version__}
        store.save_tensors(path, to_half(trained.model.state_dict()), meta)
        path.with_suffix(".checkpoint").unlink(missing_ok=True)

    with contextlib.ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(settings.threads)
        trained = make() if distributed.rank() else store.load_or_make(final, lambda p: make(load(p)), make, save)
    trained.model.to(device, memory_format=torch.channels_last)
    return trained


def to_half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are kept: each floating-point tensor in float16, or as it is if a number would overflow there."""
    halves = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    return {name: h if h.isfinite().all() else weights[name] for name, h in halves.items()}


def load(path: Path, device: Device = "cpu") -> Trained:
    """A network that `train` kept. Raises `store.Damaged` if the file is not what was written."""
    weights, meta = store.load_tensors(path)
    settings = Settings(**meta["settings"])
    model = settings.build(len(meta["classes"]), device).eval()
    model.load_state_dict(weights)
    return Trained(model, settings, pd.DataFrame(meta["history"], columns=HISTORY), meta["seconds"])


def _train(settings: Settings, images: data.Splits, final: Path, device: torch.device, progress: Progress) -> Trained:
    begun = saved = time.monotonic()
    trainee = Trainee(settings, len(images.train.classes), device)
    model, objective = trainee.model, trainee.objective
    train_set, validation = images.train.to(device), images.validation.to(device)
    if objective.random_labels:
        train_set, validation = (_shuffled(part, settings.seed) for part in (train_set, validation))
    optimizer = _optimizer(trainee, settings, device)
    first, epoch_losses, history, before = _resume(checkpoint := final.with_suffix(".checkpoint"), trainee, optimizer)
    begun -= before
    batch_size, per_epoch = settings.batch_size, len(train_set) // settings.batch_size
    total = steps(settings, len(train_set)) if settings.objective != "untrained" else 0
    per_step = batch_size * objective.n_views
    moments = schedule(total).values() if settings.objective in SNAPSHOTS and not distributed.rank() else ()
    network = distributed.data_parallel(model, device) if total else model
    bar = progress_bar(total * per_step, settings.name, disable=progress is not True)
    report = progress if callable(progress) else bar.update
    report(first * per_step)
    trainee.train()
    for step in range(first, total):
        if step in moments:
            meta = {"settings": dataclasses.asdict(settings), "step": step}
            store.save_tensors(snapshot_path(final, step), to_half(model.state_dict()), meta)
        epoch, position = divmod(step, per_epoch)
        if step == first or position == 0:
            order = torch.randperm(len(train_set), generator=store.generator(settings.seed, "order", epoch)).to(device)
        batch = order[position * batch_size : (position + 1) * batch_size]
        loss = trainee.loss(train_set.images[batch], train_set.labels[batch], (settings.seed, "views", step), network)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, settings)
        optimizer.step()
        if trainee.ema_copy:  # its batch norms are its own
            for average, weight in zip(trainee.ema_copy.parameters(), model.parameters()):
                average.lerp_(weight.detach(), 1 - tau(step, total))
        epoch_losses.append(loss.detach())
        report(per_step)

        end_of_epoch = position == per_epoch - 1
        if end_of_epoch or time.monotonic() - saved > CHECKPOINT_SECONDS:
            epoch_losses = [float(loss) for loss in epoch_losses]
            if not math.isfinite(sum(epoch_losses)):
                problem = f"{settings.name}: the loss is {epoch_losses[-1]} at step {step}"
                raise RuntimeError(f"{problem}; a smaller learning_rate or longer warmup usually helps; {settings}")
            if end_of_epoch:
                mean, validated = sum(epoch_losses) / per_epoch, trainee.validation_loss(validation)
                history.append(dict(zip(HISTORY, (epoch + 1, mean, validated, group["lr"]))))
                epoch_losses = []
                bar.set_postfix(loss=f"{mean:.3f}")
            if not distributed.rank():
                meta = {"settings": dataclasses.asdict(settings), "step": step + 1, "seconds": time.monotonic() - begun}
                meta |= {"epoch_losses": epoch_losses, "history": history}
                momenta = {f"momentum.{i}": s["momentum_buffer"] for i, s in optimizer.state_dict()["state"].items()}
                store.save_tensors(checkpoint, trainee.state_dict() | momenta, meta)
            saved = time.monotonic()
    bar.close()
    if not total:
        measure_batch_norm(model, train_set.images)
        loss = trainee.validation_loss(validation)
        history = [dict(zip(HISTORY, (0, loss, loss, 0.0)))]
    model.load_state_dict(to_half(model.state_dict()))  # float32 again: the same numbers now and when loaded
    return Trained(model.eval(), settings, pd.DataFrame(history, columns=HISTORY), time.monotonic() - begun)


def _resume(checkpoint: Path, trainee: Trainee, optimizer: torch.optim.Optimizer) -> tuple[int, list, list, float]:
    """Load rank 0's checkpoint, if there is a whole one; its step, the losses since the epoch began, history and seconds."""
    tensors, meta = {}, {"step": 0, "epoch_losses": [], "history": [], "seconds": 0.0}
    if not distributed.rank() and checkpoint.exists():
        try:
            tensors, meta = store.load_tensors(checkpoint)
        except store.Damaged as error:
            warnings.warn(f"{error}; training begins anew", stacklevel=2)
    tensors, meta = distributed.broadcast((tensors, meta))
    if tensors:
        names = [name for name in tensors if name.startswith("momentum.")]
        momenta = {int(name.partition(".")[2]): {"momentum_buffer": tensors.pop(name)} for name in names}
        trainee.load_state_dict(tensors)
        optimizer.load_state_dict({"state": momenta, "param_groups": optimizer.state_dict()["param_groups"]})
    return meta["step"], meta["epoch_losses"], meta["history"], meta["seconds"]


def _shuffled(images: data.ImageSet, seed: int) -> data.ImageSet:
    """The same images with the labels of one another: as many of each class, and nothing to learn from them."""
    order = torch.randperm(len(images), generator=store.generator(seed, "random labels", len(images)))
    return dataclasses.replace(images, labels=images.labels[order.to(images.labels.device)])


if __name__ == "__main__":  # the command line is the study's, which imports this module
    importlib.import_module("repsim.study").main()
