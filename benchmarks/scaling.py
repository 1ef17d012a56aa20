"""What a study costs: phases and files of one that has run, a pass of the comparison, and the operations behind both.

    python benchmarks/scaling.py study runs/quick      seconds and megabytes of a finished study, by what was made
    python benchmarks/scaling.py pass                  seconds and memory of a comparison: networks x images x layers
    python benchmarks/scaling.py terms                 operations an image: forward pass and Grams

docs/scaling.md shows what it printed, and what follows from that.
"""

import argparse
import json
import multiprocessing
import re
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from repsim import augment, cka, models, store, taps
from repsim.claims import VIEWS


def study(run: Path) -> pd.DataFrame:
    """What a study keeps, by kind: files, megabytes, and the seconds that making them took."""
    rows = []
    for path in sorted(run.glob("**/[!.]*")):
        folder, seconds = path.parent.relative_to(run).as_posix(), 0.0
        if folder == "networks":
            seconds = store.load_tensors(path)[1]["seconds"]
        elif path.suffix == ".csv":
            seconds = store.load_table(path)[1]["seconds"]
        elif folder == "notebooks":
            seconds = json.loads(path.read_text())["metadata"]["papermill"]["duration"]
        elif folder not in (".", "tables"):
            continue
        if path.is_file():
            kind = re.split(r"(-\d+|-pixels)?(-[0-9a-f]{12})?\.", path.name)[0]
            kind = re.sub(r"-(untrained|sl|simclr)$", "", kind) if folder == "tables" else kind
            rows.append((folder, kind, path.stat().st_size / 1e6, seconds))
    table = pd.DataFrame(rows, columns=["folder", "kind", "MB", "seconds"])
    return table.groupby(["folder", "kind"]).agg(files=("MB", "size"), MB=("MB", "sum"), seconds=("seconds", "sum"))


def one_pass(architecture: str, width: int, networks: int, images: int, size: int) -> tuple[float, float, int]:
    """Seconds, peak gigabytes and layers of a comparison as the study makes it: every network on images and two views."""
    torch.set_num_threads(2)
    seen = torch.randint(256, (images, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    built = {f"n{seed}": models.build(architecture, width=width, seed=seed).eval() for seed in range(networks)}
    views = {view: augment.VIEWS["simclr"] for view in VIEWS}
    begun = time.monotonic()
    cka.compare(built, seen, labels=torch.arange(images) % 10, views=views, pixels=True)
    seconds = time.monotonic() - begun
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, len(models.layer_names(built["n0"]))


def passes() -> pd.DataFrame:
    """`one_pass`, each in a process of its own, with one term varied at a time."""
    base = ("resnet18", 16, 2, 512, 32)
    cases = [base, ("resnet18", 16, 4, 512, 32), ("resnet18", 16, 6, 512, 32), ("resnet18", 16, 2, 1024, 32)]
    cases += [("resnet18", 16, 2, 2048, 32), ("resnet50", 16, 2, 512, 32), ("resnet18", 64, 2, 512, 32)]
    names = ["architecture", "width", "networks", "images", "size"]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = [(*case, *pool.submit(one_pass, *case).result()) for case in cases]
    table = pd.DataFrame(rows, columns=[*names, "seconds", "peak_GB", "layers"])
    return table.assign(ms_per_image_network=1000 * table.seconds / table.images / table.networks).round(2)


def terms() -> pd.DataFrame:
    """Per image: parameters, operations of a forward pass, numbers in all layers together, operations of their Grams."""
    rows = []
    for architecture, width, stem, size in (
        ("resnet18", 16, "cifar", 32),
        ("resnet18", 64, "cifar", 32),
        ("resnet50", 64, "cifar", 32),
        ("resnet50", 64, "imagenet", 224),
    ):
        with torch.device("meta"):
            model, x = models.build(architecture, width=width, stem=stem).eval(), torch.empty(1, 3, size, size)
        numbers: list[int] = []
        with (
            FlopCounterMode(display=False) as counter,
            taps.tapped(model, models.layer_paths(model), lambda _, out, numbers=numbers: numbers.append(out.numel())),
        ):
            model(x)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        grams = 2 * 128 * sum(numbers) / 1e9  # a batch of 128: 2 * 128 * 128 * numbers, for 128 images
        rows.append(
            (
                architecture,
                width,
                stem,
                size,
                parameters,
                len(numbers),
                counter.get_total_flops() / 1e9,
                sum(numbers) / 1e6,
                grams,
            )
        )
    names = [
        "architecture",
        "width",
        "stem",
        "size",
        "M_parameters",
        "layers",
        "GFLOP_forward",
        "M_numbers",
        "GFLOP_grams",
    ]
    return pd.DataFrame(rows, columns=names).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["study", "pass", "terms"])
    parser.add_argument("run", nargs="?", type=Path, help="the folder of a finished study")
    args = parser.parse_args()
    if args.what == "study" and (args.run is None or not args.run.is_dir()):
        parser.error(f"study: expected the folder of a finished study, got {args.run}")
    table = {"study": lambda: study(args.run).round(2), "pass": passes, "terms": terms}[args.what]()
    print(table.to_string(index=args.what == "study"))


if __name__ == "__main__":
    main()
