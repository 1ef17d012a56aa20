"""One training loop for every objective: deterministic, resumable, read from top to bottom in one sitting.

Every random draw is a function of the seed and of what it is for: the initial weights, the order of an epoch, the views
of a step. A run that is killed and started again therefore ends with the same bits (on the CPU) as one never interrupted,
and networks of one seed share initial backbone, batches and, where their objectives use the same views, the views.

    python -m repsim.train --profile gpu sl-0 simclr-0                             networks of a study, ahead of its notebooks
    torchrun --nproc-per-node 8 -m repsim.train --profile gpu simclr-0             one network by eight GPUs
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import runpy
import sys
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def check_types(settings: Any) -> None:
    """Raise ValueError, naming the field and its value, where a field of a dataclass is not of the type it is annotated with."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        value, kinds = getattr(settings, name), typing.get_args(hint) or (hint,)
        whole = isinstance(value, int) and float in kinds
        if not (isinstance(value, kinds) or whole) or (isinstance(value, bool) and bool not in kinds):
            expected = " | ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)
            raise ValueError(f"{name}: expected {expected}, got {value!r} ({type(value).__name__})")


# field of Settings -> what it has to be, in words and as a test
LIMITS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "objective": (f"one of {', '.join(OBJECTIVES)}", lambda name: name in OBJECTIVES),
    "epochs": ("0 or more", lambda n: n >= 0),
    "batch_size": ("2 or more", lambda n: n >= 2),
    "optimizer": ("sgd", lambda name: name == "sgd"),
    "learning_rate": ("a positive number", lambda x: 0 < x < math.inf),
    "momentum": ("0 to below 1", lambda x: 0 <= x < 1),
    "weight_decay": ("0 or more", lambda x: x >= 0),
    "warmup": ("0 to below 1", lambda x: 0 <= x < 1),
    "temperature": ("a positive number", lambda x: x > 0),
    "crop": ("more than 0 and at most 1", lambda x: 0 < x <= 1),
    "colour": ("0 to 1", lambda x: 0 <= x <= 1),
    "hue": ("0 to 0.5", lambda x: 0 <= x <= 0.5),
    "grayscale": ("0 to 1", lambda x: 0 <= x <= 1),
    "precision": ("auto, float32 or bfloat16", lambda name: name in ("auto", "float32", "bfloat16")),
    "threads": ("1 or more", lambda n: n >= 1),
}


@dataclass(frozen=True)
class Settings:
    """All that decides a network's weights, but for the images. Checked when made: ValueError names what is wrong."""

    objective: str = "sl"
    seed: int = 0
    architecture: str = "resnet18"
    width: int = 64
    stem: str = "cifar"
    epochs: int = 100
    batch_size: int = 256
    optimizer: str = "sgd"  # the only one; files name it
    learning_rate: float = 0.06  # per 256 images of a batch, reached after the warm-up, then cosine to zero
    momentum: float = 0.9
    weight_decay: float = 5e-4  # not on biases and batch norms
    warmup: float = 0.1  # share of the steps
    temperature: float = 0.5  # of NT-Xent, SupCon and NSCL
    projection: int = 128  # dimensions of the projection head's output
    hidden: int | None = None  # its hidden units; as many as the backbone has features if None
    crop: float = 0.2  # of SimCLR's views: the smallest share of the area that a crop may have; 1: not cropped
    colour: float = 0.4  # strength of their brightness, contrast and saturation jitter, 0 to 1
    hue: float = 0.1  # strength of their hue jitter, in turns, 0 to 0.5 (any hue)
    grayscale: float = 0.2  # the probability that a view is grey
    precision: str = "auto"  # of the passes: "float32", "bfloat16" (autocast), or what the device multiplies in
    threads: int = 1  # CPU threads; another number gives other last bits

    def __post_init__(self) -> None:
        check_types(self)
        for name, (expected, allows) in LIMITS.items():
            if not allows(value := getattr(self, name)):
                raise ValueError(f"{name}: expected {expected}, got {value!r}")
        models.check(self.architecture, **self._built(classes=2))

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
        jitter = (self.colour, self.colour, self.colour, self.hue)
        return {"scale": (self.crop, 1.0), "jitter": jitter, "grayscale_p": self.grayscale}

    def _built(self, classes: int) -> dict[str, Any]:
        head, rotated = OBJECTIVES[self.objective].head, OBJECTIVES[self.objective].rotated
        outputs = self.projection if head == "projection" else 4 if rotated else classes
        return {"width": self.width, "stem": self.stem, "head": head, "outputs": outputs, "hidden": self.hidden}

    def build(self, classes: int, device: torch.device | str = "cpu") -> models.ResNet:
        """The network before training."""
        model = models.build(self.architecture, seed=self.seed, **self._built(classes))
        return model.to(device, memory_format=torch.channels_last)


@dataclass(frozen=True, eq=False)
class Trained:
    """A network in eval mode, the settings it was trained with, and its history: epoch, loss, validation_loss, learning_rate."""

    model: models.ResNet
    settings: Settings
    history: pd.DataFrame
    seconds: float


class Diverged(RuntimeError):
    """The loss is not finite any more."""


def passes(settings: Settings, images: int) -> int:
    """How many views go through the network while it trains on so many images: what its time is proportional to."""
    return steps(settings, images) * settings.batch_size * OBJECTIVES[settings.objective].n_views


def steps(settings: Settings, images: int) -> int:
    """How many steps a training on so many images takes; the last, smaller batch of an epoch's order is not used."""
    return settings.epochs * (images // settings.batch_size)


def schedule(steps: int) -> dict[float, int]:
    """When snapshots are taken: share of the training -> the nearest step, from 0.0 (initialisation) to 1.0 (the network itself).

    Of shares with the same step the largest counts. Raises ValueError for a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"steps: expected 0 or more, got {steps}")
    shares: dict[int, float] = {}
    for share in SHARES:
        shares.setdefault(round(share * steps), share)
    return {0.0: 0} | {share: step for step, share in sorted(shares.items()) if step}


def snapshot_path(final: Path, step: int) -> Path:
    """Where the weights after `step` steps of the network that is kept as `final` are."""
    return Path(final).with_suffix(f".step-{step}")


def seconds_per_pass(settings: Settings, images: data.Splits, device: torch.device | str = "cpu") -> float:
    """How long a view takes here in training, in seconds: the mean of three steps, after one that warms up."""
    taps.tune_allocator()
    part = images.train.take(slice(settings.batch_size)).to(device)
    trainee = Trainee(settings, len(part.classes), device)
    times = []
    with _threads(settings.threads):
        for step in range(4):
            loss = step_loss(trainee.model, part.images, part.labels, settings, (0, "measured", step), trainee=trainee)
            loss.backward()
            loss.item()  # waits for the device
            times.append(time.monotonic())
    return (times[-1] - times[0]) / (3 * len(part) * OBJECTIVES[settings.objective].n_views)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within: torch computes with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def progress_bar(total: int, title: str, **options: Any) -> tqdm:
    """A bar over image passes, which a log file gets every ten seconds."""
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    options |= {"unit": "image", "unit_scale": True, "leave": False, "mininterval": 0.1 if live else 10}
    return tqdm(total=total, desc=title, **options)


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


class Trainee(nn.Module):
    """A network in training, with what its objective trains beside it: `extra_module` and `ema_copy`, each None if it has none."""

    def __init__(self, settings: Settings, classes: int, device: torch.device | str = "cpu"):
        super().__init__()
        objective = OBJECTIVES[settings.objective]
        self.model = settings.build(classes, device)
        self.extra_module = self.ema_copy = None
        if objective.extra_module:
            with torch.no_grad(), _pooled(self.model.eval(), objective.layer) as pooled:
                output = self.model(torch.zeros(1, 3, 32, 32, device=device))
            inputs = (pooled or [output])[0].shape[1]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(store.generator(settings.seed, "companion").initial_seed())
                self.extra_module = objective.extra_module(settings, inputs, classes).to(device)
            self.model.train()
        if objective.ema_copy:
            self.ema_copy = copy.deepcopy(self.model).requires_grad_(False)

    @torch.no_grad()
    def follow(self, keep: float) -> None:
        """The moving average keeps this share of its weights and takes the rest from the network; its batch norms are its own."""
        if self.ema_copy is not None:
            for average, weight in zip(self.ema_copy.parameters(), self.model.parameters()):
                average.lerp_(weight, 1 - keep)


@contextlib.contextmanager
def _pooled(model: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """Within: the spatial means of the layer's outputs are added to the list, at once, as later layers work in place."""
    features: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        features.append(at_least_float32(output).flatten(2).mean(2) if output.ndim > 2 else at_least_float32(output))

    module = model.get_submodule(models.layer_paths(model).get(layer, layer)) if layer else nn.Identity()
    with module.register_forward_hook(keep):
        yield features


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16, rather than emulate it: CUDA, and CPUs with AVX512-BF16 or AMX."""
    cpu = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" or (device.type == "cpu" and cpu)


def step_loss(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    key: tuple[int | str, ...],
    rows: slice = augment.ALL,
    trainee: Trainee | None = None,
) -> Tensor:
    """The objective's loss on one batch; `key` names the generators of its views; `rows` are what this rank computes.

    `network` is the trainee's, or what trains it with other ranks; without a trainee there is no extra module.
    """
    objective = OBJECTIVES[settings.objective]
    view, n = augment.VIEWS[objective.views], objective.n_views
    strengths = settings.simclr_views() if objective.views == "simclr" else {}
    x = torch.cat([view(images, store.generator(*key, i), rows=rows, **strengths) for i in range(n)])
    if objective.rotated:
        labels = torch.randint(4, labels.shape, generator=store.generator(*key, "turns")).to(labels.device)
        x = augment.turn(x, labels[rows].repeat(n))
    x = x.contiguous(memory_format=torch.channels_last)
    half = multiplies_bfloat16(x.device) if settings.precision == "auto" else settings.precision == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half), _pooled(network, objective.layer) as pooled:
        outputs = network(x).chunk(n)
        with torch.no_grad():
            targets = trainee.ema_copy(x).chunk(n) if objective.ema_copy else ()
    if rows != augment.ALL:
        outputs = map(distributed.all_gather, outputs)
    outputs, targets = (tuple(map(at_least_float32, parts)) for parts in (outputs, targets))
    features = pooled[0].chunk(n) if pooled else ()
    extra_module = getattr(trainee, "extra_module", None)
    return objective.loss(BatchOutputs(outputs, labels, settings, extra_module, features, targets))


@torch.no_grad()
def validation_loss(trainee: Trainee, images: data.ImageSet, settings: Settings) -> float:
    """The objective's mean loss in eval mode over whole batches of `images`, with views that are the same every time."""
    training, size = trainee.training, min(settings.batch_size, len(images))
    trainee.eval()
    losses = []
    for i in range(0, len(images) - size + 1, size):
        batch, key = (images.images[i : i + size], images.labels[i : i + size]), (settings.seed, "validation", i)
        losses.append(step_loss(trainee.model, *batch, settings, key, trainee=trainee).item())
    trainee.train(training)
    return sum(losses) / len(losses)


def measure_batch_norm(model: nn.Module, images: Tensor, batch_size: int = 256) -> None:
    """Set the running statistics of every batch norm to their averages over `images`, weights untouched.

    An untrained network would otherwise be evaluated with mean 0 and variance 1, which no trained one is.
    """
    inputs = (data.as_input(batch) for batch in images.split(batch_size) if len(batch) > 1)
    torch.optim.swa_utils.update_bn((x.contiguous(memory_format=torch.channels_last) for x in inputs), model)


def path(settings: Settings, images: data.Splits, folder: Path) -> Path:
    """Where the weights of these settings on these images are kept."""
    key = settings.key(data.fingerprint(images.train) + data.fingerprint(images.validation))
    return Path(folder) / f"{settings.name}-{key}.safetensors"


def train(
    settings: Settings,
    images: data.Splits,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    progress: bool | Callable[[int], Any] = True,
) -> Trained:
    """Load the network that these settings give on these images from `folder`; train it, and keep it there, if it is not.

    Checkpoints are written beside it after every epoch and every two minutes, so that a killed run goes on where it was, and
    of the objectives SNAPSHOTS the weights at some moments on the way (`schedule`), rounded as the network is; these stay.
    A second process that asks for the same network waits for the first and loads. The ranks of a torchrun, all of which
    call this, train it together; only rank 0 reads and writes `folder`.
    `progress` shows a bar over image passes, or is called with the number of passes since it was last called.

    Raises:
        ValueError: fewer training images than one batch; a batch that the ranks cannot share evenly; ranks for an
            objective with an extra module; a checkpoint of other settings under this name.
        Diverged: the loss became NaN or infinite; the last checkpoint stays.
        OSError: `folder` cannot be written; what was in it is intact.
    """
    if len(images.train) < settings.batch_size and settings.epochs:
        raise ValueError(
            f"batch_size: expected at most the number of training images, {len(images.train)}, got {settings.batch_size}"
        )
    if len(images.validation) < 2:
        raise ValueError(f"validation: expected at least 2 images, got {len(images.validation)}")
    objective = OBJECTIVES[settings.objective]
    if distributed.ranks() > 1 and (objective.extra_module or objective.ema_copy):
        raise ValueError(
            f"objective: expected one that trains the network alone, got {settings.objective!r}, whose extra modules the ranks "
            "of a torchrun do not share; train it by one process"
        )
    final, device = path(settings, images, folder), torch.device(device)

    def make(kept: Trained | None = None) -> Trained:
        """What rank 0 has loaded; if it has not, all ranks train together and round as is kept: the same now and when loaded."""
        with _threads(settings.threads):
            if not (trained := distributed.broadcast(kept)):
                trained = _train(settings, images, final, device, progress if not distributed.rank() else False)
                trained.model.load_state_dict(to_half(trained.model.state_dict()))  # which are float32 again
        return trained

    if distributed.rank():
        trained = make()
    else:
        trained = store.load_or_make(final, lambda p: make(load(p)), make, lambda p, made: _save(p, made, images))
    trained.model.to(device, memory_format=torch.channels_last)
    return trained


def to_half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are kept: each floating-point tensor in float16, or as it is if a number would overflow there."""
    halves = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    return {name: h if h.isfinite().all() else weights[name] for name, h in halves.items()}


def _save(path: Path, trained: Trained, images: data.Splits) -> None:
    meta = {
        "settings": dataclasses.asdict(trained.settings),
        "classes": list(images.train.classes),
        "images": images.name,
        "history": trained.history.to_dict("list"),
        "seconds": round(trained.seconds, 1),
        "passes": passes(trained.settings, len(images.train)),
        "torch": torch.__version__,
    }
    store.save_tensors(path, to_half(trained.model.state_dict()), meta)
    for checkpoint in _checkpoints(path):
        checkpoint.unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu") -> Trained:
    """A network that `train` kept. Raises `store.Damaged` if the file is not what was written."""
    weights, meta = store.load_tensors(path)
    settings = Settings(**meta["settings"])
    model = settings.build(len(meta["classes"]))
    model.load_state_dict(weights)
    model = model.to(device, memory_format=torch.channels_last).eval()
    return Trained(model, settings, pd.DataFrame(meta["history"], columns=HISTORY), meta["seconds"])


def _checkpoints(final: Path) -> tuple[Path, Path]:
    """The newest checkpoint and the one before it."""
    return final.with_suffix(".checkpoint"), final.with_suffix(".checkpoint-before")


def _train(
    settings: Settings, images: data.Splits, final: Path, device: torch.device, progress: bool | Callable[[int], Any]
) -> Trained:
    begun = time.monotonic()
    taps.tune_allocator()
    trainee = Trainee(settings, len(images.train.classes), device)
    model = trainee.model
    train_set, validation = images.train.to(device), images.validation.to(device)
    if OBJECTIVES[settings.objective].random_labels:
        train_set, validation = (_shuffled(part, settings.seed) for part in (train_set, validation))
    if settings.epochs == 0 or settings.objective == "untrained":
        measure_batch_norm(model, train_set.images)
        loss = validation_loss(trainee, validation, settings)
        history = pd.DataFrame({"epoch": [0], "loss": [loss], "validation_loss": [loss], "learning_rate": [0.0]})
        return Trained(model.eval(), settings, history, time.monotonic() - begun)

    optimizer = _optimizer(trainee, settings, device)
    batch_size, per_epoch = settings.batch_size, len(train_set) // settings.batch_size
    total, per_step = steps(settings, len(train_set)), batch_size * OBJECTIVES[settings.objective].n_views
    step, epoch_losses, history, before = _resume(final, trainee, optimizer, settings)
    begun -= before
    network, rows = distributed.data_parallel(model, device), distributed.rows_of_rank(batch_size)
    saved, order = time.monotonic(), None
    bar = progress_bar(total * per_step, settings.name, disable=progress is not True)
    report = progress if callable(progress) else bar.update
    report(step * per_step)
    trainee.train()
    moments = schedule(total).values() if settings.objective in SNAPSHOTS else ()
    while step < total:
        if step in moments and not distributed.rank():
            meta = {"settings": dataclasses.asdict(settings), "step": step}
            store.save_tensors(snapshot_path(final, step), to_half(model.state_dict()), meta)
        epoch, position = divmod(step, per_epoch)
        if order is None or position == 0:
            order = torch.randperm(len(train_set), generator=store.generator(settings.seed, "order", epoch)).to(device)
        index = order[position * batch_size : (position + 1) * batch_size]
        batch, key = (train_set.images[index], train_set.labels[index]), (settings.seed, "views", step)
        loss = step_loss(network, *batch, settings, key, rows, trainee)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, settings)
        optimizer.step()
        trainee.follow(tau(step, total))
        epoch_losses.append(loss.detach())
        step += 1
        report(per_step)

        end_of_epoch = step % per_epoch == 0
        if end_of_epoch or time.monotonic() - saved > CHECKPOINT_SECONDS:
            epoch_losses = _finite(epoch_losses, step, settings)
            if end_of_epoch:
                mean, validated = sum(epoch_losses) / per_epoch, validation_loss(trainee, validation, settings)
                history.append(dict(zip(HISTORY, (epoch + 1, mean, validated, group["lr"]))))
                epoch_losses = []
                bar.set_postfix(loss=f"{mean:.3f}")
            if not distributed.rank():
                _checkpoint(final, trainee, optimizer, settings, step, epoch_losses, history, time.monotonic() - begun)
            saved = time.monotonic()
    bar.close()
    return Trained(model.eval(), settings, pd.DataFrame(history, columns=HISTORY), time.monotonic() - begun)


def _shuffled(images: data.ImageSet, seed: int) -> data.ImageSet:
    """The same images with the labels of one another: as many of each class, and nothing to learn from them."""
    order = torch.randperm(len(images), generator=store.generator(seed, "random labels", len(images)))
    return dataclasses.replace(images, labels=images.labels[order.to(images.labels.device)])


def _finite(step_losses: list[Tensor | float], step: int, settings: Settings) -> list[float]:
    """The losses of the last steps before `step`, as numbers."""
    losses = [float(loss) for loss in step_losses]
    for i, loss in enumerate(losses, step - len(losses)):
        if not math.isfinite(loss):
            raise Diverged(
                f"{settings.name}: the loss is {loss} at step {i}; a smaller learning_rate or a longer warmup usually helps; "
                f"settings: {dataclasses.asdict(settings)}"
            )
    return losses


def _checkpoint(final, trainee, optimizer, settings, step, epoch_losses, history, seconds) -> None:
    """Write what training goes on from; the checkpoint before stays until the next one."""
    buffers = {f"momentum.{i}": s["momentum_buffer"] for i, s in optimizer.state_dict()["state"].items()}
    meta = {"settings": dataclasses.asdict(settings), "step": step, "seconds": seconds}
    meta |= {"epoch_losses": epoch_losses, "history": history}
    newest, previous = _checkpoints(final)
    try:
        if newest.exists():
            newest.replace(previous)
        store.save_tensors(newest, trainee.state_dict() | buffers, meta)  # model.*, extra_module.*, ema_copy.*
    except OSError as error:
        problem = f"the checkpoint of step {step} cannot be written ({error.strerror}); the one before is intact"
        raise OSError(error.errno, f"{newest}: {problem}") from error


def _resume(final, trainee, optimizer, settings) -> tuple[int, list[float], list[dict], float]:
    """Load rank 0's newest whole checkpoint into trainee and optimiser; step 0 if there is none."""
    tensors, meta = distributed.broadcast(({}, {}) if distributed.rank() else _newest(final, settings))
    if not meta:
        return 0, [], [], 0.0
    names = [name for name in tensors if name.startswith("momentum.")]
    buffers = {int(name.partition(".")[2]): {"momentum_buffer": tensors.pop(name)} for name in names}
    trainee.load_state_dict(tensors)
    optimizer.load_state_dict({"state": buffers, "param_groups": optimizer.state_dict()["param_groups"]})
    return meta["step"], meta["epoch_losses"], meta["history"], meta["seconds"]


def _newest(final: Path, settings: Settings) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest whole checkpoint; empty if there is none."""
    for checkpoint in filter(Path.exists, _checkpoints(final)):
        try:
            tensors, meta = store.load_tensors(checkpoint)
        except store.Damaged as error:
            warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=2)
            continue
        if Settings(**meta["settings"]) != settings:
            raise ValueError(f"{checkpoint}: a checkpoint of other settings, {meta['settings']}; remove or rename it")
        return tensors, meta
    return {}, {}


if __name__ == "__main__":  # the command line is the study's, which imports this module
    runpy.run_module("repsim.study", run_name="__main__")
