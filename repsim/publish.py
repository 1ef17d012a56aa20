"""The published runs that come with the project, beside which notebooks show others."""

from __future__ import annotations

import json
from pathlib import Path

from repsim.claims import Claim
from repsim.study import PLACES, Study, check, publication, publish  # noqa: F401 (for those who look for them here)

RESULTS = Path(__file__).resolve().parent.parent / "results"
PUBLISHED = RESULTS / "cifar10-cpu"  # the largest run, shown beside others
EMBEDDED = RESULTS / "quick"  # the further chapters on images whose factors are known


def published(folder: str | Path = PUBLISHED) -> tuple[str, list[Claim]] | None:
    """The basis and the verdicts of the largest published run; None outside a checkout."""
    if not (Path(folder) / "provenance.json").exists():
        return None
    verdicts = json.loads((Path(folder) / "claims.json").read_text())
    return publication(folder)["basis"], [Claim.from_dict(claim) for claim in verdicts]


def factored(study: Study) -> Study:
    """The study itself where its images have known factors, else the published one of the embedded images."""
    return study if study.summary.factors else Study(artefacts=str(EMBEDDED), out=study.out)
