"""What tests/test_distributed.py has one process and two ranks do alike, in float64, where nothing but rounding differs.

In float32 the gradients of a ReLU network are not determined to 1e-5: a unit at its kink goes one way or the other.
"""

import os
import sys
import warnings
from pathlib import Path

import torch

from repsim import augment, data, distributed, train

SETTINGS = {"width": 4, "epochs": 2, "batch_size": 16, "projection": 8}


def work(folder: Path, fail: bool = False) -> dict:
    """Gradients of one step of each objective; weights and history of a whole training, of which rank 1 may fail at step 4."""
    build, views, rate = train.Settings.build, augment.VIEWS, train.learning_rate
    train.Settings.build = lambda *a, **k: build(*a, **k).double()
    augment.VIEWS = {name: lambda *a, f=view, **k: f(*a, **k).double() for name, view in views.items()}
    train.CHECKPOINT_SECONDS, seconds = 0.0, train.CHECKPOINT_SECONDS

    def failing(step, *rest):
        if fail and step == 4 and distributed.rank() == 1:
            raise RuntimeError("a rank fails")
        return rate(step, *rest)

    train.learning_rate = failing
    try:
        images = data.load("shapes", train_images=48, test_images=32, validation=0.5, root=folder)
        settings = train.Settings(objective="simclr", **SETTINGS)
        trained = train.train(settings, images, folder, progress=False)
        found = train.train(settings, images, folder, progress=False)
        results = {"weights": trained.model.state_dict(), "history": trained.history, "found": found.model.state_dict()}
        for objective in ("sl", "simclr"):
            settings = train.Settings(objective=objective, **SETTINGS)
            trainee = train.Trainee(settings, 10)
            network = distributed.data_parallel(trainee.model, torch.device("cpu"))
            loss = trainee.loss(images.train.images[:16], images.train.labels[:16], (0, "views", 0), network)
            loss.backward()
            gradients = {name: p.grad for name, p in trainee.model.named_parameters()}
            results[objective] = gradients | {"loss": loss.detach()}
        return results
    finally:
        train.Settings.build, augment.VIEWS, train.learning_rate = build, views, rate
        train.CHECKPOINT_SECONDS = seconds


if __name__ == "__main__":
    warnings.simplefilter("error")
    folder = Path(sys.argv[1])
    with distributed.started("cpu"):
        torch.save(work(folder, "fail" in sys.argv), folder / f"rank{os.environ['RANK']}.pt")
