"""Linear probes of every layer: one batched fit against scikit-learn's LogisticRegression layer by layer.

Both standardise, fit the same penalties, choose on the same validation split and are scored on the same test images, in one
run on the same threads, taking turns for `--repeats` rounds; the ratio is that of the medians.

    python benchmarks/probes.py                       # ResNet-18 of width 16, untrained, embedded images
    python benchmarks/probes.py --width 64 --source FOLDER --epochs 5
    python benchmarks/probes.py --images 1024 --test-images 512 --width 8 --tol 1e-7

With its own tolerance scikit-learn stops short of the optimum at small penalties, and may choose another one on a small
validation split; `--tol 1e-7` lets it go on, for a comparison of accuracies rather than of times.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from repsim import data, models, probes, taps, train


def sklearn_probe(splits: list, penalties: tuple[float, ...], tol: float) -> pd.DataFrame:
    """layer, accuracy, penalty: the same protocol, one fit for each layer and penalty."""
    rows = []
    for layer in splits[0][0]:
        scaler = StandardScaler().fit(splits[0][0][layer].double().numpy())  # in float32 it stops anywhere
        (x, y), (v, v_y), (t, t_y) = (
            (scaler.transform(f[layer].double().numpy()), labels.numpy()) for f, labels in splits
        )
        fits = [
            LogisticRegression(C=1 / (len(x) * p), tol=tol, max_iter=20000).fit(x, y) for p in sorted(penalties)[::-1]
        ]
        best = max(fits, key=lambda fit: fit.score(v, v_y))  # the first of equals: the larger penalty
        rows.append((layer, best.score(t, t_y), 1 / (best.C * len(x))))
    return pd.DataFrame(rows, columns=["layer", "accuracy", "penalty"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="shapes", help="as repsim.data.load")
    parser.add_argument("--images", type=int, default=5000, help="training images")
    parser.add_argument("--test-images", type=int, default=2500)
    parser.add_argument("--architecture", default="resnet18", choices=models.ARCHITECTURES)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=0, help="of supervised training before; 0: as initialised")
    parser.add_argument("--tol", type=float, default=1e-4, help="scikit-learn's tolerance; 1e-4 is its own")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)  # numpy's and scipy's, which scikit-learn runs on

    images = data.load(args.source, train_images=args.images, test_images=args.test_images)
    parts = images.train, images.validation, images.test
    if args.epochs:
        settings = train.Settings(architecture=args.architecture, width=args.width, epochs=args.epochs, batch_size=128)
        with tempfile.TemporaryDirectory() as folder:
            network = train.train(settings, images, Path(folder)).model
    else:
        network = models.build(args.architecture, width=args.width, outputs=len(images.train.classes)).eval()
    splits = [(taps.pooled(network, part.images), part.labels) for part in parts]
    classes = len(images.train.classes)

    ours, theirs = [], []
    for _ in range(args.repeats):
        start = time.perf_counter()
        probe = probes.linear_probe(*(v for split in splits for v in split), classes=classes)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        reference = sklearn_probe(splits, probes.PENALTIES, args.tol)
        theirs.append(time.perf_counter() - start)
    table = probe.fit.assign(accuracy=probe.correct.mean().to_numpy())
    table = table.merge(reference, on="layer", suffixes=("", "_sklearn"))
    table["points"] = 100 * (table.accuracy - table.accuracy_sklearn)
    columns = ["layer", "accuracy", "accuracy_sklearn", "points", "penalty", "penalty_sklearn"]
    print(table[columns].to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"{len(table)} layers x {len(probes.PENALTIES)} penalties, {len(images.train)} images, {args.threads} threads: "
        f"all at once {a:.2f} s, scikit-learn {b:.2f} s, ratio {b / a:.1f}; accuracy differs by "
        f"{table.points.abs().max():.2f} points at most, {table.points.mean():+.2f} on average"
    )


if __name__ == "__main__":
    main()
