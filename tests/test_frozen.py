"""What an earlier version of this project published is still computed from its tables, to 1e-12, where the statistic is the same.

The criteria have changed since (docs/preregistration.md); the similarities and intervals they were made of have not.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from repsim import claims, comparison, store
from repsim.comparison import Comparison

FOLDER = Path(__file__).resolve().parent.parent / "results" / "cifar10-cpu"
PUBLISHED = {claim["id"]: claim["parts"] for claim in json.loads((FOLDER / "claims.json").read_text())}


@pytest.fixture(scope="module")
def cells():
    (path,) = (FOLDER / "tables").glob("cka-*.safetensors")
    return Comparison.from_tensors(*store.load_tensors(path))


def normalised(cells, a, b, a2, b2, layers):
    """Mean over layers of CKA(a, b) / sqrt(CKA(a, a') CKA(b, b')), replicates (1 + folds,)."""
    ratios = [
        cells.replicates(a, l, b, l) / np.sqrt(cells.replicates(a, l, a2, l) * cells.replicates(b, l, b2, l))
        for l in layers
    ]
    return np.mean(ratios, axis=0)


def relative(cells, of, layers):
    a, b = of.split(" and ")
    other = {"0": "1", "1": "0"}
    return normalised(cells, a, b, a[:-1] + other[a[-1]], b[:-1] + other[b[-1]], layers)


def statistics(cells, layers):
    begin, middle = (claims.end_of(layers, s) for s in ("layer1", "layer3"))
    post, residual = (claims.of_kind(layers, kind, claims.MIDDLE) for kind in ("post-residual", "residual"))
    first = claims.of_kind(layers, "post-residual")[0]
    return {
        ("C2", 0): lambda of: relative(cells, of, post),
        ("C3", 0): lambda of: relative(cells, of, residual),
        ("C3", 1): lambda of: relative(cells, of, post) - relative(cells, of, residual),
        ("C4", 0): lambda of: relative(cells, of, [middle]) - relative(cells, of, ["pool"]),
        ("C4", 1): lambda of: (
            2 * relative(cells, of, [middle]) - relative(cells, of, ["pool"]) - relative(cells, of, [begin])
        ),
        ("C5", 0): lambda of: (
            cells.replicates(of, "pool", "labels", "labels") - cells.replicates(of, first, "labels", "labels")
        ),
        ("C6", 0): lambda of: (
            cells.replicates(f"{of}@view-a", "pool", f"{of}@view-b", "pool")
            - cells.replicates(f"{of}@view-a", first, f"{of}@view-b", first)
        ),
    }


@pytest.mark.parametrize("claim, part", [("C2", 0), ("C3", 0), ("C3", 1), ("C4", 0), ("C4", 1), ("C5", 0), ("C6", 0)])
def test_published_estimates_and_intervals_are_what_they_were(cells, claim, part):
    layers = [l for l in cells.layers("sl-0") if l != "head"]
    statistic = statistics(cells, layers)[claim, part]
    estimates = PUBLISHED[claim][part]["estimates"]
    assert estimates
    for estimate in estimates:
        value, low, high = comparison.jackknife(statistic(estimate["of"]), cells.weights)
        published = [estimate[k] for k in ("value", "low", "high")]
        assert np.allclose([value, low, high], published, rtol=0, atol=1e-12), (claim, part, estimate["of"])
