"""Weights on the way: what a network was at a logarithmic schedule of moments of its training.

`train.train` keeps them beside the network, as NAME-KEY.step-STEP and rounded to float16 as it is, without touching what is
trained. A moment is named by its share of the training, so that runs of different length are compared at the same share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repsim.store import load_tensors, save_tensors

KEPT = ("sl", "simclr", "sl_simclr_views")  # the objectives whose moments are kept
# Three moments a decade through the last two, two a decade before: steps of a run of 1,000: 1, 3, 10, 22, 46, 100, 215, ...
SHARES = tuple(10 ** (-k / 3) for k in range(6)) + tuple(10 ** (-2 - k / 2) for k in range(10))


def schedule(steps: int) -> dict[float, int]:
    """The moments of a run of `steps`: share of the training -> step, from 0.0 (initialisation) to 1.0 (the end).

    A share's step is the nearest whole one; of shares that have the same step the largest stays.

    Raises:
        ValueError: a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"steps: expected 0 or more, got {steps}")
    found: dict[int, float] = {}
    for share in SHARES:
        found.setdefault(round(share * steps), share)
    return {0.0: 0} | {share: step for step, share in sorted(found.items()) if step}


def path(final: Path, step: int) -> Path:
    """Where the weights after `step` steps of the network kept as `final` are."""
    return Path(final).with_suffix(f".step-{step}")


def save(final: Path, step: int, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Keep the weights after `step` steps, atomically."""
    save_tensors(path(final, step), weights, {**meta, "step": step})


def load(final: Path, step: int) -> dict[str, Tensor]:
    """What `save` kept. Raises FileNotFoundError, or `store.Damaged` if the file is not what was written."""
    return load_tensors(path(final, step))[0]


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two networks have the same weights to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)
