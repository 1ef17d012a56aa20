"""Random generators named by what they are for.

A generator is a function of its key alone: the one of step 1,000 of a resumed run equals that of a run which was never
interrupted, so that no generator state has to be stored, and two uses never share a stream by accident.
"""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `key`, for example `generator(seed, "views", step)`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
