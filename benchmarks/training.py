"""Images per second of a training step: repsim's against a ceiling and against the usual ways to make views.

    pip install -e ".[bench]"
    python benchmarks/training.py                                           # ResNet-18 of width 16
    python benchmarks/training.py --precision bfloat16                      # the same where the CPU multiplies in bfloat16
    python benchmarks/training.py --architecture resnet50 --width 64 --batch 512 --steps 50       # for a GPU

All train copies of one network on batches of one size, with one optimiser, in one run, taking turns. All but the last have
one precision and one memory format, channels_last, and what differs is where a batch comes from:

    ceiling        ready-made random tensors: nothing but the step
    repsim         uint8 images on the device, views of the whole batch made there (repsim.augment)
    kornia         the same with kornia's batched augmentations, one draw per image
    torchvision    a DataLoader whose workers apply torchvision.transforms.v2 to PIL images one by one
    tv tensors     the same on uint8 tensors, as torchvision's documentation has it
    lightly        a DataLoader with lightly's SimCLRTransform, and lightly's NTXentLoss
    usual          as torchvision, in the memory format, and on a CPU the precision, that PyTorch has if none is asked for

Medians over rounds; a share is the median over rounds of the ratio within a round. A turn is a whole epoch of `--steps`
batches, so that no worker of a DataLoader is busy in another's turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from repsim import augment, data, models, objectives, store, taps, train

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # an epoch: network inputs of all views, labels
SCALE = {"mean": [0.5] * 3, "std": [0.25] * 3}  # of repsim.data.as_input
CROP, JITTER = {"scale": (0.2, 1.0)}, (0.4, 0.4, 0.4, 0.1)  # repsim.augment.simclr's


class Pictures(Dataset):
    """Images, each as its views, with its label."""

    def __init__(self, images: list, labels: Tensor, transform: Callable):
        self.images, self.labels, self.transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        return self.transform(self.images[i]), self.labels[i]


def batches(images: data.ImageSet, objective: str, args: argparse.Namespace) -> dict[str, Batches]:
    """Where each way's batches come from."""
    views, size = train.OBJECTIVES[objective].n_views, images.images.shape[-1]
    on_device = images.to(args.device)
    random = torch.randn(views * args.batch, 3, size, size, device=args.device)
    random = random.contiguous(memory_format=torch.channels_last)

    def ready() -> Iterator[tuple[Tensor, Tensor]]:
        for labels in on_device.labels.split(args.batch):
            yield random, labels

    def batched(view: Callable[[Tensor, int], Tensor]) -> Batches:
        def epoch() -> Iterator[tuple[Tensor, Tensor]]:
            for step, index in enumerate(torch.randperm(len(images)).to(args.device).split(args.batch)):
                made = [view(on_device.images[index], views * step + i) for i in range(views)]
                yield torch.cat(made).contiguous(memory_format=torch.channels_last), on_device.labels[index]

        return epoch

    pictures = [F.to_pil_image(image) for image in images.images]

    def loaded(
        transform: Callable, pictures: list = pictures, layout: torch.memory_format = torch.channels_last
    ) -> Batches:
        loader = DataLoader(
            Pictures(pictures, images.labels, transform),
            batch_size=args.batch,
            shuffle=True,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            multiprocessing_context="fork" if args.workers else None,
            pin_memory=args.device == "cuda",
        )

        def epoch() -> Iterator[tuple[Tensor, Tensor]]:
            for made, labels in loader:
                x = torch.cat([m.to(args.device, non_blocking=True) for m in made])
                yield x.contiguous(memory_format=layout), labels.to(args.device, non_blocking=True)

        return epoch

    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**SCALE)]
    per_image = {
        "sl": [v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()],
        "simclr": [
            v2.RandomResizedCrop(size, **CROP),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8),
            v2.RandomGrayscale(0.2),
        ],
    }[objective]
    ours = augment.VIEWS[train.OBJECTIVES[objective].views]
    ways = {"ceiling": ready, "repsim": batched(lambda x, i: ours(x, store.generator("views", i)))}
    if find_spec("kornia"):
        import kornia.augmentation as K

        chain = nn.Sequential(
            *{
                "sl": [K.RandomCrop((size, size), padding=4), K.RandomHorizontalFlip()],
                "simclr": [
                    K.RandomResizedCrop((size, size), **CROP, cropping_mode="resample"),
                    K.RandomHorizontalFlip(),
                    K.ColorJitter(*JITTER, p=0.8),
                    K.RandomGrayscale(p=0.2),
                ],
            }[objective]
        )
        ways["kornia"] = batched(lambda x, i: chain(x.float().div_(255)).sub_(0.5).div_(0.25))
    one = v2.Compose([*per_image, *tensor])
    ways["torchvision"] = loaded(lambda image: [one(image) for _ in range(views)])
    ways["tv tensors"] = loaded(lambda image: [one(image) for _ in range(views)], list(images.images))
    if objective == "simclr" and find_spec("lightly"):
        from lightly.transforms import SimCLRTransform

        ways["lightly"] = loaded(
            SimCLRTransform(size, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0, normalize=SCALE)
        )
    ways["usual"] = loaded(lambda image: [one(image) for _ in range(views)], layout=torch.contiguous_format)
    return ways


def loss_of(way: str, objective: str) -> Callable[[Tensor, Tensor], Tensor]:
    if objective == "sl":
        return objectives.cross_entropy
    if way == "lightly":
        from lightly.loss import NTXentLoss

        theirs = NTXentLoss(temperature=0.5)
        return lambda outputs, labels: theirs(*outputs.chunk(2))
    return lambda outputs, labels: objectives.nt_xent(*outputs.chunk(2), temperature=0.5)


def turn(
    epoch: Batches, model: nn.Module, optimizer: torch.optim.Optimizer | None, loss: Callable | None, half: bool
) -> float:
    """Seconds of an epoch of training steps, in bfloat16 if `half`, or without an optimiser of making its batches."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for x, labels in epoch():
        if optimizer is not None:
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                outputs = model(x)
            optimizer.zero_grad(set_to_none=True)
            loss(objectives.at_least_float32(outputs), labels).backward()
            optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(images: data.ImageSet, objective: str, args: argparse.Namespace, steps: bool) -> pd.DataFrame:
    """way, images/s and ratios: of training steps, or of making views alone."""
    settings = train.Settings(
        objective=objective, architecture=args.architecture, width=args.width, batch_size=args.batch
    )
    ways, runs = batches(images, objective, args), {}
    for way, epoch in ways.items():
        if not steps and way in ("ceiling", "usual"):
            continue
        model = settings.build(len(images.classes), args.device).train()
        if way == "usual":
            model = model.to(memory_format=torch.contiguous_format)
        optimizer = train._optimizer(model, settings, torch.device(args.device)) if steps else None
        half = args.device == "cuda" or (args.precision == "bfloat16" and way != "usual")
        runs[way] = (epoch, model, optimizer, loss_of(way, objective), half)
        turn(*runs[way])  # starts workers, tunes kernels
    seconds = {way: [] for way in runs}
    for _ in range(args.rounds):
        for way, run in runs.items():
            seconds[way].append(turn(*run))
    table = pd.DataFrame({"objective": objective, "way": list(runs)})
    table["images/s"] = [round(len(images) / statistics.median(seconds[way])) for way in runs]
    for name, base in (("of the ceiling", "ceiling"), ("repsim is faster by", "repsim")):
        if base in runs:
            ratios = {way: [b / s for b, s in zip(seconds[base], seconds[way])] for way in runs}
            if base == "repsim":
                ratios = {way: [1 / r for r in values] for way, values in ratios.items()}
            table[name] = [f"{statistics.median(ratios[way]):.2f}" for way in runs]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet18", choices=models.ARCHITECTURES)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", default="shapes", help="as repsim.data.load")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "bfloat16"), help="auto: bfloat16 on CUDA, float32 elsewhere"
    )
    parser.add_argument("--workers", type=int, default=torch.get_num_threads(), help="of each DataLoader")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    taps.tune_allocator()
    images = data.load(args.source, train_images=args.steps * args.batch, test_images=32).train
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} threads"
    print(
        f"{args.architecture}, width {args.width}, batch {args.batch}, {images.images.shape[-1]} pixels, {where}, "
        f"precision {args.precision}, {args.workers} workers, torch {torch.__version__}; medians of {args.rounds} rounds of "
        f"{args.steps} steps"
    )
    for title, steps in (("Training steps", True), ("Views alone", False)):
        tables = [measure(images, objective, args, steps) for objective in ("sl", "simclr")]
        print(f"\n{title}\n{pd.concat(tables).fillna('').to_string(index=False)}", flush=True)


if __name__ == "__main__":
    main()
