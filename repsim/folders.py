"""A folder of images in ImageFolder's layout (train/CLASS/*, test/CLASS/*) as tensors: decoded once, then cached."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from tqdm import tqdm

from repsim import store


def read(folder: Path, root: Path, image_size: int | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """All images and labels of a folder, and its classes in alphabetical order.

    Returns "train" and "test", uint8 (n, 3, h, w), and "train_labels" and "test_labels", int64 (n,). They are cached below
    `root` until a file's name, size or time of change differs.

    Raises:
        FileNotFoundError: no train/ or test/.
        ValueError: an empty folder, no classes, other classes in test, a corrupt image, mixed sizes without image_size.
    """
    classes, listed = zip(*(_listing(folder / part) for part in ("train", "test")))
    if classes[0] != classes[1]:
        only = [sorted(set(classes[i]) - set(classes[1 - i])) for i in (0, 1)]
        raise ValueError(
            f"{folder}: expected the same classes in train and test; only in train: {only[0]}; only in test: {only[1]}"
        )
    files = [[(str(Path(p).relative_to(folder)), os.stat(p)) for p, _ in part] for part in listed]
    state = [[[name, stat.st_size, stat.st_mtime_ns] for name, stat in part] for part in files]
    key = store.digest([1, str(folder), image_size, state])  # 1: the version of what is below

    def decode() -> dict[str, Tensor]:
        images = _decode([p for part in listed for p, _ in part], image_size).split([len(part) for part in listed])
        return {"train": images[0], "test": images[1]}

    tensors = store.load_or_make(
        root / "folders" / f"{folder.name}-{key}.safetensors",
        lambda path: store.load_tensors(path)[0],
        decode,
        lambda path, tensors: store.save_tensors(path, tensors, {"folder": str(folder), "image_size": image_size}),
    )
    for part, listing in zip(("train", "test"), listed):
        tensors[f"{part}_labels"] = torch.tensor([label for _, label in listing])
    return tensors, classes[0]


def _listing(folder: Path) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """The classes of train/ or test/ and (file, label) of all its images, in alphabetical order."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected train/CLASS/* and test/CLASS/* in {folder.parent}")
    classes = tuple(sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith(".")))
    if not classes:
        what = "has files but no class folders" if any(folder.iterdir()) else "is empty"
        raise ValueError(f"{folder}: {what}; expected one folder of images per class, {folder.name}/CLASS/*")
    try:
        return classes, make_dataset(folder, {name: i for i, name in enumerate(classes)}, IMG_EXTENSIONS)
    except FileNotFoundError as error:  # a class without images; torchvision names it
        raise ValueError(f"{folder}: every class folder has to hold images; {error}") from error


def _decode(paths: Sequence[str], image_size: int | None) -> Tensor:
    """All files as uint8 (n, 3, h, w). Raises ValueError naming a file that is not an image, or of another size."""

    def one(path: str) -> Tensor:
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"more than 8 bits a channel, mode {image.mode}; convert it to 8")
                image = image.convert("RGB")
        except Exception as error:  # a decoder given garbage raises OSError, SyntaxError, ValueError, struct.error, ...
            raise ValueError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error
        if image_size is not None and image.size != (image_size, image_size):
            scale = image_size / min(image.size)
            size = [max(image_size, round(side * scale)) for side in image.size]
            left, top = ((side - image_size) // 2 for side in size)
            image = image.resize(size, Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + image_size, top + image_size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    first = one(paths[0])
    images = torch.empty(len(paths), *first.shape, dtype=torch.uint8)

    def fill(i: int) -> None:
        image = one(paths[i])
        if image.shape != first.shape:
            raise ValueError(
                f"{paths[i]}: {image.shape[2]}x{image.shape[1]} pixels where {paths[0]} has "
                f"{first.shape[2]}x{first.shape[1]}; for images of mixed sizes give image_size, e.g. image_size=64"
            )
        images[i] = image

    # Threads pay from about the size of a thumbnail; on smaller images they only wait for one another.
    with Image.open(paths[0]) as image:
        workers = 1 if math.prod(image.size) < 10_000 else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        work = map(fill, range(len(paths))) if workers == 1 else pool.map(fill, range(len(paths)))
        for _ in tqdm(work, total=len(paths), desc="decoding", unit="image", disable=None, leave=False):
            pass
    return images
