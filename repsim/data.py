"""Images and labels as tensors: the embedded set "shapes", torchvision's sets by name, or a folder of images.

`load` gives splits in a seeded random order, so that consecutive images are a random batch; a network takes
`as_input(splits.train.images)`.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
        n, k, labels = len(self), len(self.classes), self.labels
        if labels.dtype != torch.int64:
            raise TypeError(f"labels: expected int64, got {labels.dtype}; convert with .long()")
        if labels.shape != (n,):
            raise ValueError(f"labels: expected one for each of {n} images, got shape {tuple(labels.shape)}")
        if n and not 0 <= labels.min() <= labels.max() < k:
            raise ValueError(f"labels: expected 0 to {k - 1} ({k} classes), got {labels.min()} to {labels.max()}")
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


class Splits(NamedTuple):
    name: str
    train: ImageSet
    validation: ImageSet  # what choices are made on
    test: ImageSet  # what is only ever reported on


class Summary(NamedTuple):  # what is known of splits without having them
    name: str
    train: int
    validation: int
    test: int
    classes: tuple[str, ...]
    factors: bool  # whether they are known
    fingerprints: tuple[str, ...]  # of train, validation and test


def summary(splits: Splits) -> Summary:
    name, *parts = splits
    about = splits.train.classes, splits.train.factors is not None, tuple(map(fingerprint, parts))
    return Summary(name, *map(len, parts), *about)


def fingerprint(image_set: ImageSet) -> str:
    """The first 16 hexadecimal digits of a SHA-256 of images, labels and class names."""
    total = hashlib.sha256(repr((tuple(image_set.images.shape), image_set.classes)).encode())
    for tensor in (image_set.images, image_set.labels):
        total.update(memoryview(tensor.cpu().contiguous().view(-1).numpy()).cast("B"))
    return total.hexdigest()[:16]


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images: expected uint8 of 0 to 255, got {images.dtype}; as_input makes inputs of them")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        remedy = "images[None] makes a batch of one, images.permute(0, 3, 1, 2) moves channels that are last"
        raise ValueError(f"images: expected shape (n, 3 or 1, h, w), got {tuple(images.shape)}; {remedy}")


def as_input(images: Tensor) -> Tensor:
    """Network inputs: uint8 (n, c, h, w) -> float32 (x / 255 - 0.5) / 0.25, in [-2, 2], on the same device; c is 3 or 1.

    The scale is fixed, no statistic of a data set. TypeError or ValueError where images have another dtype or shape.
    """
    _check_images(images)
    return images.float().mul_(4 / 255).sub_(2)


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order (n,) in which every class is spread evenly: each beginning of it is a stratified sample."""
    order = torch.randperm(len(labels), generator=generator)
    classes = pd.Series(labels[order].numpy())
    members = classes.groupby(classes)
    place = (members.cumcount() + 0.5) / members.transform("size")
    return order[torch.tensor(place.to_numpy()).argsort(stable=True)]


def _subsets(pool: ImageSet, sizes: Sequence[int], seed: int, use: str) -> list[ImageSet]:
    """Disjoint stratified random subsets of `pool`, each in random order."""
    order = stratified_order(pool.labels, store.generator(seed, use))
    parts = order[: sum(sizes)].split(list(sizes))
    return [pool.take(p[torch.randperm(len(p), generator=store.generator(seed, use, i))]) for i, p in enumerate(parts)]


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

    source: "shapes" (embedded; 8,000 and 2,000 images, or as many as asked for), one of `TORCHVISION` (downloaded below `root`),
    or a folder with train/CLASS/* and test/CLASS/* (cached below `root`).
    train_images, test_images: how many are trained and tested on; None: all that validation leaves, and all.
    validation: validation images per training image; they are cut from the training set, beside `train_images`.
    image_size: pixels a side; the shorter side is resized to it and the middle cut out. None: as the images are.
    channels: 3, or 1 for grey images (luma, ITU-R 601). context, saturation: of "shapes", 0 to 1; see `repsim.shapes.draw`.

    Raises ValueError (a number out of range, more images than there are, other classes in test, a bad image),
    FileNotFoundError (no such name or folder, or an empty one) or RuntimeError (a set that cannot be downloaded).
    """
    for name, value in {"train_images": train_images, "test_images": test_images, "image_size": image_size}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a positive whole number or None, got {value!r}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation: expected a fraction of 0 to below 1, got {validation!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 3 or 1 (grey), got {channels!r}")
    name, root = str(source).lower(), Path(root).expanduser()
    for field, value, neutral in (("context", context, 0), ("saturation", saturation, 1)):
        if not 0 <= value <= 1:
            raise ValueError(f"{field}: expected a number of 0 to 1, got {value!r}")
        if value != neutral and name != "shapes":
            raise ValueError(f"{field}: expected {neutral}, as only shapes have one, got {value!r} with {source!r}")
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

    n = train_images or round(len(pool) / (1 + validation))
    held_out = round(validation * n) if train_images else len(pool) - n
    if n + held_out > len(pool):
        asked = f"{n} and {held_out} for validation ({validation:g} per training image)"
        raise ValueError(f"train_images: expected fewer, got {asked}: {title} has {len(pool)} images to train on")
    if (test_images or 0) > len(test):
        raise ValueError(f"test_images: expected at most {len(test)}, all there are in {title}, got {test_images}")
    held_out_set, train_set = _subsets(pool, (held_out, n), seed, "train")
    return Splits(title, train_set, held_out_set, *_subsets(test, (test_images or len(test),), seed, "test"))


def _grey(images: Tensor) -> Tensor:
    """uint8 (n, 3, h, w) -> (n, 1, h, w), Pillow's luma in its whole numbers: a grey image stays as it is."""
    weights = torch.tensor([19595, 38470, 7471])[:, None, None]
    return torch.cat([((part * weights).sum(1, keepdim=True) + 0x8000 >> 16).byte() for part in images.split(1000)])


def of_classes(splits: Splits, classes: Sequence[str]) -> Splits:
    """The images of these classes alone (at least two different ones, or ValueError), in order; labels index `classes`."""
    known = splits.train.classes
    if len(classes) < 2 or len({*classes} & {*known}) < len(classes):
        raise ValueError(f"classes: expected at least 2 different ones of {', '.join(known)}, got {list(classes)}")
    label = torch.tensor([classes.index(name) if name in classes else -1 for name in known])

    chosen = [part.take(label[part.labels] >= 0) for part in splits[1:]]
    renamed = [dataclasses.replace(part, labels=label[part.labels], classes=tuple(classes)) for part in chosen]
    return Splits(splits.name, *renamed)


# Where the images come from: each gives a title, all there is to train on, and all there is to test on

TORCHVISION = {  # name: title, data set, the argument that says which part; all put their files below `root`
    "cifar10": ("CIFAR-10", datasets.CIFAR10, "train"),
    "cifar100": ("CIFAR-100", datasets.CIFAR100, "train"),
    "svhn": ("SVHN", datasets.SVHN, "split"),
    "stl10": ("STL-10", datasets.STL10, "split"),
    "fashionmnist": ("Fashion-MNIST", datasets.FashionMNIST, "train"),
}


def _square(images: Any, size: int | None) -> Any:
    """Images (a tensor or Pillow's) whose shorter side is resized to `size`, their middle cut out; None: as they are."""
    return images if size is None else transforms.center_crop(transforms.resize(images, [size]), [size])


def _torchvision(name: str, root: Path, image_size: int | None) -> tuple[str, ImageSet, ImageSet]:
    title, dataset, argument = TORCHVISION[name]
    root, sets = root.resolve(), []
    call = f"torchvision.datasets.{dataset.__name__}({str(root)!r}, download=True)"
    for part in PARTS:
        try:
            one = dataset(root, **{argument: part if argument == "split" else part == "train"}, download=True)
        except (OSError, RuntimeError) as error:  # no network, a refused or damaged download, an unwritable folder
            remedy = f"where there is a network, run {call}, and copy that folder here"
            raise RuntimeError(f"{title}: not whole below {root} ({' '.join(str(error).split())}); {remedy}") from error
        images = torch.as_tensor(one.data)
        if images.ndim == 3:  # grey (n, h, w)
            images = images[:, None].expand(-1, 3, -1, -1)
        elif images.shape[1] != 3:  # (n, h, w, 3)
            images = images.permute(0, 3, 1, 2)
        images = torch.cat([_square(some, image_size) for some in images.split(1000)])  # in parts: bounds the memory
        labels = torch.as_tensor(np.asarray(one.labels if hasattr(one, "labels") else one.targets)).long()
        classes = tuple(getattr(one, "classes", None) or map(str, range(int(labels.max()) + 1)))
        sets.append(ImageSet(images.contiguous(), labels, classes))
    return title, *sets


def _listing(folder: Path) -> tuple[list[str], list[str], list[int]]:
    """The classes of train/ or test/, all its images and their labels, in alphabetical order, as ImageFolder has them.

    What is hidden (its path begins with "." anywhere) is no image. Names are compared in Unicode's composed form (NFC).
    """
    composed = partial(unicodedata.normalize, "NFC")

    def is_image(path: str) -> bool:
        return f"{os.sep}." not in path.removeprefix(str(folder)) and path.lower().endswith(IMG_EXTENSIONS)

    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    classes = sorted({*map(composed, names)})
    labels = {name: classes.index(composed(name)) for name in names}
    samples = datasets.ImageFolder.make_dataset(folder, labels, is_valid_file=is_image)
    samples.sort(key=lambda sample: (sample[1], *map(composed, os.path.split(sample[0]))))
    return classes, *map(list, zip(*samples))


def _read(path: str, image_size: int | None) -> Tensor:
    """An image, uint8 (3, h, w), as a viewer shows it: turned as EXIF data say, 16 bits scaled to 8, transparency over white."""
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
            return transforms.pil_to_tensor(_square(image.convert("RGB"), image_size))
    except Exception as error:  # a decoder given garbage raises OSError, SyntaxError, ValueError, struct.error, ...
        raise ValueError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error


def _folder(source: str | Path, root: Path, image_size: int | None) -> tuple[str, ImageSet, ImageSet]:
    """Images of a folder, decoded once and cached below `root` until a file's name, size or time of change differs."""
    folder = Path(source).expanduser().resolve()
    try:
        (classes, train, train_labels), (of_test, test, test_labels) = (_listing(folder / part) for part in PARTS)
    except (OSError, ValueError) as error:  # no folder, no classes, or a class without images; the error says which
        known = f"shapes, {', '.join(TORCHVISION)}, or a folder with images in train/CLASS/* and test/CLASS/*"
        raise FileNotFoundError(f"source: expected one of {known}, got {str(source)!r}: {error}") from error
    if classes != of_test or len(classes) < 2:
        got = f"{len(classes)} and {len(of_test)}; only in one: {sorted({*classes} ^ {*of_test})}"
        raise ValueError(f"{folder}: expected the same 2 or more classes in train and test, got {got}")
    paths = train + test
    files = [[os.path.relpath(path, folder), (stat := os.stat(path)).st_size, stat.st_mtime_ns] for path in paths]
    key = store.digest([2, str(folder), image_size, files])  # 2: the version of `_decode`
    images = store.load_or_make(
        root / "folders" / f"{folder.name}-{key}.safetensors",
        lambda path: store.load_tensors(path)[0]["images"],
        lambda: _decode(paths, image_size),
        lambda path, images: store.save_tensors(path, {"images": images}, {"folder": str(folder), "size": image_size}),
    )
    parts = zip(images.split([len(train), len(test)]), (train_labels, test_labels))  # views: nothing is copied
    return folder.name, *(ImageSet(part, torch.tensor(labels), tuple(classes)) for part, labels in parts)


def _decode(paths: Sequence[str], image_size: int | None) -> Tensor:
    """All files as uint8 (n, 3, h, w). Raises ValueError naming a file that is not an image, or of another size."""
    images = _read(paths[0], image_size).repeat(len(paths), 1, 1, 1)

    def fill(i: int) -> None:
        image = _read(paths[i], image_size)
        if image.shape != images.shape[1:]:
            (_, h, w), (_, _, height, width) = image.shape, images.shape
            sizes = f"{w}x{h} pixels where {paths[0]} has {width}x{height}"
            raise ValueError(f"{paths[i]}: {sizes}; give them one size, image_size=64 (-p image_size 64 of run_all.py)")
        images[i] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        [*tqdm(pool.map(fill, range(len(paths))), "decoding", len(paths), leave=False, disable=None, unit="image")]
    return images


def jpeg_copy(root: str | Path, folder: str | Path, *, quality: int = 75) -> None:
    """Write torchvision's CIFAR-10 (below `root`) to a new `folder` as part/CLASS/NNNN.jpg."""
    folder = Path(folder).expanduser()
    if folder.exists():
        raise FileExistsError(f"folder: expected a path where nothing is, got {str(folder)!r}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        for part, images in zip(PARTS, _torchvision("cifar10", Path(root).expanduser(), None)[1:]):
            for label, name in enumerate(images.classes):
                place = Path(temporary, "copy", part, name)
                place.mkdir(parents=True)
                for i, image in enumerate(images.images[images.labels == label]):
                    transforms.to_pil_image(image).save(place / f"{i:04}.jpg", quality=quality)
        Path(temporary, "copy").rename(folder)  # all of it or, after an error, nothing
