"""Predictions of the further chapters: claims whose statement and thresholds stood before the result.

They are judged as the claims C1 to C7 are (`repsim.claims`), and what becomes of them has its own words: a supported
prediction is confirmed, one that is not supported is refuted, and an undecided one is open.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repsim import store
from repsim.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "open"
OUTCOMES = {SUPPORTED: CONFIRMED, NOT_SUPPORTED: REFUTED, UNDECIDED: OPEN}


def outcome(prediction: Claim) -> str:
    """confirmed, refuted or open."""
    return OUTCOMES[prediction.verdict]


def keep(predictions: Sequence[Claim], out: str | Path, chapter: str) -> list[Claim]:
    """Write them to OUT/predictions/CHAPTER.json, a list of claims with their `outcome`, and return them."""
    rows = [p.to_dict() | {"chapter": chapter, "outcome": outcome(p)} for p in predictions]
    text = json.dumps(rows, indent=1, allow_nan=False)
    store.write(Path(out) / "predictions" / f"{chapter}.json", text + "\n")
    return list(predictions)


def kept(out: str | Path) -> list[dict[str, Any]]:
    """All that chapters kept in OUT/predictions, chapter by chapter; a damaged file is left out."""
    rows: list[dict[str, Any]] = []
    for path in sorted((Path(out) / "predictions").glob("*.json")):
        with contextlib.suppress(ValueError):
            rows += json.loads(path.read_text())
    return rows
