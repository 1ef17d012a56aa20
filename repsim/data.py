"""Images and labels as tensors: the embedded set "shapes", torchvision's sets by name, or a folder of images.

    splits = load("shapes", train_images=2000, test_images=1000)    # or "cifar10", or "~/pictures"
    network(as_input(splits.train.images))

Every split is in a seeded random order, so that consecutive images are a random batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import os
import tempfile
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from repsim import shapes, store

PARTS = ("train", "test")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images uint8 (n, c, h, w) of 3 or 1 channels, labels int64 (n,) that index `classes`, and, for embedded data, a row
    of factors each (`repsim.shapes.draw_factors`). TypeError or ValueError where they are of another dtype, shape or range.
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
        index = torch.arange(len(self), device=self.images.device)[index]
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
            f"images: expected uint8 of 0 to 255, got {images.dtype}; as_input makes network inputs of them"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(
            f"images: expected shape (n, 3, h, w), or (n, 1, h, w) for grey images, got {tuple(images.shape)}; "
            "images[None] makes a batch of one, images.permute(0, 3, 1, 2) moves channels that are last"
        )


def as_input(images: Tensor) -> Tensor:
    """Network inputs: uint8 (n, c, h, w) -> float32 (x / 255 - 0.5) / 0.25, in [-2, 2], on the same device; c is 3 or 1.

    The scale is fixed, no statistic of a data set, so that views and sets are all in one scale. TypeError or ValueError where
    the images have another dtype or shape.
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
    """What is known of image sets without having them; the fingerprints are those of train, validation and test."""

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
    order = stratified_order(pool.labels, store.generator(seed, use))
    parts = order[: sum(sizes)].split(list(sizes))
    return [pool.take(p[torch.randperm(len(p), generator=store.generator(seed, use, i))]) for i, p in enumerate(parts)]


def check_appearance(source: str | Path, context: float, saturation: float) -> None:
    """Raise ValueError unless these are 0 to 1, and 0 and 1 for other images than the embedded ones."""
    for name, value, neutral in (("context", context, 0), ("saturation", saturation, 1)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number of 0 to 1, got {value!r}")
        if value != neutral and str(source).lower() != "shapes":
            raise ValueError(f"{name}: expected {neutral}, as only shapes have one, got {value!r} with {str(source)!r}")


def load(
    source: str | Path,
    *,
    train_images: int | None = None,
    test_images: int | None = None,
    validation: float = 0.1,
    image_size: int | None = None,
    channels: int = 3,
    context: float = 0.0,
    saturation: float = 1.0,
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
        channels: 3, or 1 for grey images (luma, ITU-R 601).
        context, saturation: of "shapes" alone, 0 to 1; see `repsim.shapes.draw`.
        seed: of the embedded images and of every choice of a subset.

    Raises:
        ValueError: a number out of range, more images than there are, fewer than two classes, a bad folder or image, or
            `context` or `saturation` with other images than "shapes".
        FileNotFoundError: no such name or folder, or one without train/ or test/.
        RuntimeError: a set that cannot be downloaded; says where to put its files.
    """
    for name, value in (("train_images", train_images), ("test_images", test_images), ("image_size", image_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a positive whole number or None, got {value!r}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation: expected a fraction of 0 to below 1, got {validation!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 3 or 1 (grey), got {channels!r}")
    check_appearance(source, context, saturation)
    name, root = str(source).lower(), Path(root).expanduser()
    if name == "shapes":
        wanted = 8000 if train_images is None else train_images + round(validation * train_images)
        draw = partial(shapes.draw, seed=seed, size=image_size or 32, context=context, saturation=saturation)
        made = draw(wanted, stream="train"), draw(test_images or 2000, stream="test")
        title, pool, test = name, *(ImageSet(x, labels, shapes.SHAPES, factors) for x, labels, factors in made)
    elif name in TORCHVISION:
        title, pool, test = _torchvision(name, root, image_size)
    else:
        title, pool, test = _folder(source, root, image_size)
    if channels == 1:
        pool, test = (dataclasses.replace(part, images=_grey(part.images)) for part in (pool, test))

    most = round(len(pool) / (1 + validation))
    n = most if train_images is None else train_images
    held_out = len(pool) - most if train_images is None else round(validation * train_images)
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


def _grey(images: Tensor) -> Tensor:
    """uint8 (n, 3, h, w) -> (n, 1, h, w), Pillow's luma in its whole numbers: a grey image stays as it is."""
    weights = torch.tensor([19595, 38470, 7471])[:, None, None]
    return torch.cat([((part * weights).sum(1, keepdim=True) + 0x8000 >> 16).byte() for part in images.split(1000)])


def of_classes(splits: Splits, classes: Sequence[str]) -> Splits:
    """The images of these classes alone, in the order that they had; labels index `classes`.

    Raises ValueError unless these are at least two different classes of the splits.
    """
    known = splits.train.classes
    if len(classes) < 2 or len({*classes} & {*known}) < len(classes):
        raise ValueError(f"classes: expected at least 2 different ones of {', '.join(known)}, got {list(classes)}")
    label = torch.full((len(known),), -1)
    label[[known.index(name) for name in classes]] = torch.arange(len(classes))

    def restricted(part: ImageSet) -> ImageSet:
        part = part.take(label[part.labels] >= 0)
        return dataclasses.replace(part, labels=label[part.labels], classes=tuple(classes))

    return Splits(splits.name, *map(restricted, (splits.train, splits.validation, splits.test)))


# Where the images come from: each gives a title, all there is to train on, and all there is to test on


def _square(images: Any, size: int | None) -> Any:
    """Images (a tensor or Pillow's) whose shorter side is resized to `size`, their middle cut out; None: as they are."""
    return images if size is None else transforms.center_crop(transforms.resize(images, [size]), [size])


# name: title, data set; all of them put their files below `root`
TORCHVISION = {
    "cifar10": ("CIFAR-10", datasets.CIFAR10),
    "cifar100": ("CIFAR-100", datasets.CIFAR100),
    "svhn": ("SVHN", datasets.SVHN),
    "stl10": ("STL-10", datasets.STL10),
    "fashionmnist": ("Fashion-MNIST", datasets.FashionMNIST),
}


def _torchvision(name: str, root: Path, image_size: int | None) -> tuple[str, ImageSet, ImageSet]:
    title, dataset = TORCHVISION[name]
    root = root.resolve()
    named = "split" in inspect.signature(dataset).parameters  # split="train", where others have train=True
    options = [{"split": part} if named else {"train": part == "train"} for part in PARTS]
    try:
        opened = [dataset(root, download=True, **option) for option in options]
    except (OSError, RuntimeError) as error:  # no network, a refused or damaged download, an unwritable folder
        raise RuntimeError(
            f"{title}: not whole below {root}, and torchvision could not download it ({' '.join(str(error).split())}); where "
            f"there is a network, run torchvision.datasets.{dataset.__name__}({str(root)!r}, download=True), and copy that "
            "folder here"
        ) from error
    return title, *(_from_torchvision(one, image_size) for one in opened)


def _from_torchvision(one: Any, image_size: int | None) -> ImageSet:
    images = torch.as_tensor(one.data)
    if images.ndim == 3:  # grey (n, h, w)
        images = images[:, None].expand(-1, 3, -1, -1)
    elif images.shape[1] != 3:  # (n, h, w, 3)
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(np.asarray(one.labels if hasattr(one, "labels") else one.targets)).long()
    classes = tuple(getattr(one, "classes", None) or map(str, range(int(labels.max()) + 1)))
    images = torch.cat([_square(part, image_size) for part in images.split(1000)])  # in parts: bounds the memory
    return ImageSet(images.contiguous(), labels, classes)


def _listing(folder: Path) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """The classes of train/ or test/ and (file, label) of all its images, in alphabetical order, as ImageFolder has them.

    What is hidden (any part of its path begins with ".") is no image. Names are compared in Unicode's composed form, as some
    file systems decompose them.
    """
    composed = partial(unicodedata.normalize, "NFC")

    def is_image(path: str) -> bool:
        return f"{os.sep}." not in path.removeprefix(str(folder)) and path.lower().endswith(IMG_EXTENSIONS)

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected train/CLASS/* and test/CLASS/* in {folder.parent}")
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if not names:
        raise ValueError(f"{folder}: no class folders; expected one folder of images per class, {folder.name}/CLASS/*")
    classes = sorted(set(map(composed, names)))
    try:
        labels = {name: classes.index(composed(name)) for name in names}
        samples = datasets.ImageFolder.make_dataset(folder, labels, is_valid_file=is_image)
    except FileNotFoundError as error:  # a class without images; torchvision names it
        raise ValueError(f"{folder}: every class folder has to hold images; {error}") from error
    return tuple(classes), sorted(samples, key=lambda sample: (sample[1], *map(composed, os.path.split(sample[0]))))


def _viewed(path: str) -> Image.Image:
    """The image in RGB as a viewer shows it: turned as its EXIF data say, 16 bits scaled to 8, transparency over white.

    Raises ValueError, naming the file, where it is no image or has floating-point or 32-bit pixels.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith(("I", "F")):
                pixels = np.asarray(image)
                if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
                    raise ValueError(f"its pixels are no 8 or 16 bits (mode {image.mode}); convert them to 8")
                image = Image.fromarray((pixels / 257).round().astype(np.uint8))
            if "transparency" in image.info or image.mode.lower() in ("la", "pa", "rgba"):
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Exception as error:  # a decoder given garbage raises OSError, SyntaxError, ValueError, struct.error, ...
        raise ValueError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error


def _folder(source: str | Path, root: Path, image_size: int | None) -> tuple[str, ImageSet, ImageSet]:
    """Images of a folder, decoded once and cached below `root` until a file's name, size or time of change differs."""
    folder = Path(source).expanduser().resolve()
    if not folder.is_dir():
        what = "is a file; unpack it" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"source: expected one of shapes, {', '.join(TORCHVISION)}, or a folder with train/CLASS/* and test/CLASS/*; "
            f"got {str(source)!r}, and {folder} {what}"
        )
    (classes, train), (of_test, test) = (_listing(folder / part) for part in PARTS)
    if classes != of_test:
        only = [sorted({*a} - {*b}) for a, b in ((classes, of_test), (of_test, classes))]
        raise ValueError(
            f"{folder}: expected the same classes in train and test; only in train: {only[0]}; only in test: {only[1]}"
        )
    if len(classes) < 2:
        raise ValueError(f"{folder}: expected images of at least 2 classes, got one, {classes[0]!r}")
    paths, labels = zip(*train, *test)
    files = [(os.path.relpath(path, folder), os.stat(path)) for path in paths]
    files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
    key = store.digest([2, str(folder), image_size, files])  # 2: the version of `_decode`
    images = store.load_or_make(
        root / "folders" / f"{folder.name}-{key}.safetensors",
        lambda path: store.load_tensors(path)[0]["images"],
        lambda: _decode(paths, image_size),
        lambda path, images: store.save_tensors(path, {"images": images}, {"folder": str(folder), "size": image_size}),
    )
    sizes = [len(train), len(test)]
    parts = zip(images.split(sizes), torch.tensor(labels).split(sizes))  # views: large folders are not copied
    return folder.name, *(ImageSet(*part, classes) for part in parts)


def _decode(paths: Sequence[str], image_size: int | None) -> Tensor:
    """All files as uint8 (n, 3, h, w). Raises ValueError naming a file that is not an image, or of another size."""
    first = _viewed(paths[0])
    _, height, width = shape = transforms.pil_to_tensor(_square(first, image_size)).shape
    images = torch.empty(len(paths), *shape, dtype=torch.uint8)

    def fill(i: int) -> None:
        image = transforms.pil_to_tensor(_square(_viewed(paths[i]), image_size))
        if image.shape != shape:
            raise ValueError(
                f"{paths[i]}: {image.shape[2]}x{image.shape[1]} pixels where {paths[0]} has {width}x{height}; give images of "
                "mixed sizes one size: image_size=64, or -p image_size 64 on the command line"
            )
        images[i] = image

    # Threads pay from about the size of a thumbnail; on smaller images they only wait for one another.
    with ThreadPoolExecutor(1 if math.prod(first.size) < 10_000 else os.cpu_count()) as pool:
        work = pool.map(fill, range(len(paths)))
        list(tqdm(work, total=len(paths), desc="decoding", unit="image", disable=None, leave=False))
    return images


def jpeg_copy(root: str | Path, folder: str | Path, *, quality: int = 75) -> None:
    """Write torchvision's CIFAR-10 (below `root`, downloaded if need be) to a new `folder` as JPEGs, part/CLASS/NNNN.jpg.

    The folder is there when all of it is. Raises FileExistsError if it is there already, and as `load` does.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"folder: expected a path where nothing is, got {str(folder)!r}")
    _, *parts = _torchvision("cifar10", Path(root).expanduser(), None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        copy = Path(temporary, "copy")
        for part, image_set in zip(PARTS, parts):
            for label, name in enumerate(image_set.classes):
                (copy / part / name).mkdir(parents=True)
                for i, image in enumerate(image_set.images[image_set.labels == label]):
                    transforms.to_pil_image(image).save(copy / part / name / f"{i:04}.jpg", quality=quality)
        copy.rename(folder)
