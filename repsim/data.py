"""Images and labels as tensors: the embedded set "shapes", torchvision's sets by name, or a folder of images.

    splits = load("shapes", train_images=2000, test_images=1000)    # or "cifar10", or "~/pictures"
    network(as_input(splits.train.images))

Every split is in a seeded random order, so that consecutive images are a random batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as transforms

from repsim import folders, rng, shapes


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 (n, 3, h, w), labels int64 (n,) that index `classes`, and, for embedded data, a row of factors each.

    `repsim.shapes.draw_factors` says which factors.

    Raises:
        TypeError, ValueError: another dtype or shape, labels of another length, or labels that are no class's.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    factors: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        _check_images(self.images)
        n, k = len(self.images), len(self.classes)
        if self.labels.dtype != torch.int64:
            raise TypeError(f"labels: expected int64, got {self.labels.dtype}; convert with .long()")
        if self.labels.shape != (n,):
            raise ValueError(f"labels: expected one for each of {n} images, got shape {tuple(self.labels.shape)}")
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < k:
            raise ValueError(
                f"labels: expected 0 to {k - 1} ({k} classes), got {self.labels.min()} to {self.labels.max()}"
            )
        if self.factors is not None and len(self.factors) != n:
            raise ValueError(f"factors: expected one row for each of {n} images, got {len(self.factors)}")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor | Sequence[int] | slice) -> ImageSet:
        """The images at `index` (positions, a boolean mask or a slice), in that order."""
        if isinstance(index, slice):
            index = torch.arange(len(self))[index]
        index = torch.as_tensor(index, device=self.images.device)
        index = index if index.numel() else index.long()
        factors = None if self.factors is None else self.factors.iloc[index.cpu().numpy()].reset_index(drop=True)
        return dataclasses.replace(self, images=self.images[index], labels=self.labels[index], factors=factors)

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set with images and labels on `device`."""
        return dataclasses.replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Splits:
    """What is trained on, what choices are made on, and what is only ever reported on."""

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images: expected uint8 of 0 to 255, got {images.dtype}; as_input makes what networks are given"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"images: expected shape (n, 3, h, w), got {tuple(images.shape)}; "
            "images[None] makes a batch of one, .expand(-1, 3, -1, -1) repeats a grey channel"
        )


def as_input(images: Tensor) -> Tensor:
    """What networks are given: uint8 (n, 3, h, w) -> float32 (x / 255 - 0.5) / 0.25, in [-2, 2], on the same device.

    The scale is fixed, no statistic of a data set, so that views and sets are all in one scale.

    Raises:
        TypeError, ValueError: not uint8, or not of shape (n, 3, h, w).
    """
    _check_images(images)
    return images.float().mul_(4 / 255).sub_(2)


def fingerprint(image_set: ImageSet) -> str:
    """The first 16 hexadecimal digits of a SHA-256 of images, labels and class names."""
    total = hashlib.sha256(repr((tuple(image_set.images.shape), image_set.classes)).encode())
    for tensor in (image_set.images, image_set.labels):
        total.update(memoryview(tensor.cpu().contiguous().view(-1).numpy()).cast("B"))
    return total.hexdigest()[:16]


class Summary(NamedTuple):
    """What can be said of image sets without having them; the fingerprints are those of train, validation and test."""

    name: str
    train: int
    validation: int
    test: int
    classes: tuple[str, ...]
    factors: bool  # whether they are known
    fingerprints: tuple[str, ...]


def summary(splits: Splits) -> Summary:
    """Sizes, classes and fingerprints of the three parts."""
    parts = (splits.train, splits.validation, splits.test)
    known = splits.train.factors is not None
    return Summary(splits.name, *map(len, parts), tuple(splits.train.classes), known, tuple(map(fingerprint, parts)))


# Splitting


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order (n,) in which every class is spread evenly: each beginning of it is a stratified sample."""
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    place = torch.zeros(len(labels), dtype=torch.float64)
    for label in shuffled.unique():
        members = (shuffled == label).nonzero().squeeze(1)
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[place.argsort(stable=True)]


def _subsets(pool: ImageSet, sizes: Sequence[int], seed: int, use: str) -> list[ImageSet]:
    """Disjoint stratified random subsets of `pool`, each in random order."""
    order = stratified_order(pool.labels, rng.generator(seed, use))
    parts = order[: sum(sizes)].split(list(sizes))
    return [pool.take(p[torch.randperm(len(p), generator=rng.generator(seed, use, i))]) for i, p in enumerate(parts)]


def load(
    source: str | Path,
    *,
    train_images: int | None = None,
    test_images: int | None = None,
    validation: float = 0.1,
    image_size: int | None = None,
    seed: int = 0,
    root: str | Path = "data",
) -> Splits:
    """The image set `source`: stratified, seeded subsets for training, validation and test.

    Args:
        source: "shapes" (embedded, made on the spot, as many as asked for: 8,000 and 2,000 if not), one of `TORCHVISION`
            (downloaded below `root`), or a folder with train/CLASS/* and test/CLASS/* (cached below `root`).
        train_images: images trained on; None: all that validation leaves.
        test_images: images of the test set; None: all.
        validation: validation images per training image; they are cut from the training set, beside `train_images`.
        image_size: pixels a side; the shorter side is resized to it and the middle cut out. None: as the images are.
        seed: of the embedded images and of every choice of a subset.

    Raises:
        ValueError: an unknown name, a number out of range, more images than there are, a bad folder or image.
        FileNotFoundError: no such folder, or one without train/ or test/.
        RuntimeError: a set that cannot be downloaded; says where to put its files.
    """
    for name, value in (("train_images", train_images), ("test_images", test_images), ("image_size", image_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a positive whole number or None, got {value!r}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation: expected a share of 0 to below 1, got {validation!r}")
    name = str(source).lower()
    if name == "shapes":
        wanted = 8000 if train_images is None else train_images + round(validation * train_images)
        title, pool, test = _shapes(wanted, test_images or 2000, image_size, seed)
    elif name in TORCHVISION:
        title, pool, test = _torchvision(name, Path(root).expanduser(), image_size)
    else:
        title, pool, test = _folder(source, Path(root).expanduser(), image_size)

    most = round(len(pool) / (1 + validation))
    if train_images is None:
        n, held_out = most, len(pool) - most
    else:
        n, held_out = train_images, round(validation * train_images)
    if n + held_out > len(pool):
        most -= most + round(validation * most) > len(pool)
        raise ValueError(
            f"train_images: expected at most {most}, got {n}: {title} has {len(pool)} images to train on, and "
            f"{held_out} more are held out for validation ({validation:g} per training image)"
        )
    if (test_images or 0) > len(test):
        raise ValueError(f"test_images: expected at most {len(test)}, all there are in {title}, got {test_images}")
    held_out_set, train_set = _subsets(pool, (held_out, n), seed, "train")
    return Splits(title, train_set, held_out_set, *_subsets(test, (test_images or len(test),), seed, "test"))


# Where the images come from: each gives a title, all there is to train on, and all there is to test on


def _shapes(train: int, test: int, size: int | None, seed: int) -> tuple[str, ImageSet, ImageSet]:
    sets = []
    for stream, n in (("train", train), ("test", test)):
        images, labels, factors = shapes.draw(n, seed=seed, size=size or 32, stream=stream)
        sets.append(ImageSet(images, labels, shapes.SHAPES, factors))
    return "shapes", *sets


def _folder(source: str | Path, root: Path, image_size: int | None) -> tuple[str, ImageSet, ImageSet]:
    folder = Path(source).expanduser().resolve()
    if not folder.is_dir():
        what = "is a file; unpack it" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"source: expected one of shapes, {', '.join(TORCHVISION)}, or a folder with train/CLASS/* and test/CLASS/*; "
            f"got {str(source)!r}, and {folder} {what}"
        )
    tensors, classes = folders.read(folder, root, image_size)
    return folder.name, *(ImageSet(tensors[part], tensors[f"{part}_labels"], classes) for part in ("train", "test"))


class _Source(NamedTuple):
    """A set of torchvision's: its title, how it is opened, where its files come from and what they are called."""

    title: str
    open: Callable[..., Any]
    splits: bool  # opened by split="train", others by train=True
    origin: str
    files: str


TORCHVISION: dict[str, _Source] = {
    "cifar10": _Source(
        "CIFAR-10", datasets.CIFAR10, False, "https://www.cs.toronto.edu/~kriz", "cifar-10-python.tar.gz"
    ),
    "cifar100": _Source(
        "CIFAR-100", datasets.CIFAR100, False, "https://www.cs.toronto.edu/~kriz", "cifar-100-python.tar.gz"
    ),
    "svhn": _Source("SVHN", datasets.SVHN, True, "http://ufldl.stanford.edu/housenumbers", "{train,test}_32x32.mat"),
    "stl10": _Source("STL-10", datasets.STL10, True, "http://ai.stanford.edu/~acoates/stl10", "stl10_binary.tar.gz"),
    "fashionmnist": _Source(
        "Fashion-MNIST",
        datasets.FashionMNIST,
        False,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
    ),
}


def _torchvision(name: str, root: Path, image_size: int | None) -> tuple[str, ImageSet, ImageSet]:
    source, root = TORCHVISION[name], root.resolve()
    try:
        parts = [{"split": part} if source.splits else {"train": part == "train"} for part in ("train", "test")]
        opened = [source.open(root, download=True, **part) for part in parts]
    except (OSError, RuntimeError) as error:  # no network, a refused or damaged download, an unwritable folder
        raise RuntimeError(
            f"{source.title}: not whole below {root}, and torchvision could not download it from {source.origin} "
            f"({' '.join(str(error).split())}); get it from there where there is a network, and place it as "
            f"{root / source.files}"
        ) from error
    return source.title, *(_from_torchvision(one, image_size) for one in opened)


def _from_torchvision(one: Any, image_size: int | None) -> ImageSet:
    images = torch.as_tensor(one.data)
    if images.ndim == 3:  # grey (n, h, w)
        images = images[:, None].expand(-1, 3, -1, -1)
    elif images.shape[1] != 3:  # (n, h, w, 3)
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(np.asarray(one.labels if hasattr(one, "labels") else one.targets)).long()
    classes = tuple(getattr(one, "classes", None) or map(str, range(int(labels.max()) + 1)))
    if image_size is not None:
        parts = images.split(1000)  # bounds the memory of the resampling
        images = torch.cat([transforms.center_crop(transforms.resize(p, [image_size]), [image_size]) for p in parts])
    return ImageSet(images.contiguous(), labels, classes)
