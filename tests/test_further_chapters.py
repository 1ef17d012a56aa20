"""06 to 08 as committed draw published tables; here they train every network that they ask for, as small as can be."""

import json
from pathlib import Path

import papermill
import pytest

from repsim import predictions

ROOT = Path(__file__).resolve().parent.parent
MICRO = {"train_images": 96, "test_images": 64, "width": 4, "epochs_sl": 1, "epochs_simclr": 2, "batch_size": 32}
MICRO |= {"seeds": 1}  # the tests of ladder, moments and auxiliary have two
IDS = {"06_between_the_objectives": 7, "07_when_it_happens": 5, "08_auxiliary_tasks": 12}  # predictions


@pytest.mark.parametrize("chapter", IDS)
def test_a_chapter_trains_what_it_needs_and_judges_its_predictions(chapter, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    out = tmp_path_factory.getbasetemp() / "further"
    executed = papermill.execute_notebook(
        ROOT / "notebooks" / f"{chapter}.ipynb",
        out.parent / f"{chapter}.ipynb",
        {"profile": "quick", "changes": MICRO | {"controls": [], "out": str(out), "device": "cpu"}},
        cwd=ROOT / "notebooks",
        kernel_name="python3",
        progress_bar=False,
    )
    rows = json.loads((out / "predictions" / f"{chapter[:2]}.json").read_text())
    assert [row["id"] for row in rows] == [f"{int(chapter[:2])}.{i + 1}" for i in range(IDS[chapter])]
    assert {row["outcome"] for row in rows} <= set(predictions.OUTCOMES.values())
    said = [o["data"].get("text/markdown", "") for c in executed.cells for o in c.get("outputs", []) if "data" in o]
    assert any(text.startswith("**Here:** shapes, 96 training") for text in said), "its own images have the factors"
