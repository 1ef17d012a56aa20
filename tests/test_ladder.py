"""Chapter 06: which step of the ladder is said to part, and what its tables hold."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from repsim import claims, data, ladder, models, predictions, publish, robustness
from repsim.claims import Claim, Estimate, Evidence, Part
from repsim.study import Study

LAYERS = models.layer_names(models.build(width=4))[:-1]
NOISE = np.array([0, 1, -1, 1, -1, 1, -1, 1, -1])  # of all images, then without each fold


def evidence(likeness, seeds=2, noise=1e-4):
    """Networks whose seeds are alike to 0.9, and neighbouring rungs, same seed, to likeness[seed][step] of that everywhere."""
    generator, rows = np.random.default_rng(0), []
    objectives = [*ladder.RUNGS, *ladder.FAMILIES, "sl", "untrained"]
    for layer in LAYERS:

        def add(a, b, value, layer=layer):
            jackknife = value + noise * NOISE * generator.permutation(np.abs(generator.normal(size=9)))
            rows.append([a, layer, b, layer, 768, value, *jackknife[1:]])

        for name in objectives:
            for i, j in itertools.combinations(range(seeds), 2):
                add(f"{name}-{i}", f"{name}-{j}", 0.9)
        for a, b in itertools.combinations(objectives, 2):
            for i in range(seeds):
                step = ladder.STEPS.index((a, b)) if (a, b) in ladder.STEPS else None
                add(f"{a}-{i}", f"{b}-{i}", 0.5 if step is None else 0.9 * likeness[i][step])
    columns = ["a", "layer_a", "b", "layer_b", "images", "all", *(f"without {f}" for f in range(8))]
    return Evidence(robustness.cells(pd.DataFrame(rows, columns=columns)), seeds, "synthetic")


def test_the_step_that_beats_every_other_in_every_seed_is_where_the_ladder_parts():
    found = evidence([[0.95, 0.6, 0.9], [0.9, 0.7, 0.9]])
    assert [(p.step, p.decided) for p in ladder.partings(found)] == [(("supcon", "nscl"), True)] * 3
    assert "between **SupCon and NSCL**" in str(ladder.partings(found)[2])
    drops = ladder.drops(found).set_index(["layers", "step", "seed"])["drop"]
    assert len(drops) == 3 * 3 * 2 and drops["pool", "SupCon to NSCL", "0"] == pytest.approx(0.4)
    outcomes = {p.id: predictions.outcome(p) for p in ladder.judge(found, None)}
    assert outcomes["6.1"] == outcomes["6.2"] == "confirmed" and outcomes["6.3"] == "refuted"
    assert "6.7" not in outcomes, "these images have no factors"


@pytest.mark.parametrize(
    "likeness, noise, why",
    [
        ([[0.95, 0.6, 0.9], [0.95, 0.9, 0.6]], 1e-4, "seeds disagree"),
        ([[0.9, 0.6, 0.62], [0.9, 0.6, 0.62]], 1e-1, "intervals overlap"),
        ([[0.9, math.nan, 0.8], [0.9, math.nan, 0.8]], 1e-4, "a step is undefined"),
    ],
)
def test_where_the_ladder_parts_is_open_otherwise(likeness, noise, why):
    for parting in ladder.partings(evidence(likeness, noise=noise)):
        assert parting.step and not parting.decided and "**no single step**" in str(parting), why


def test_one_seed_has_no_ceiling_and_leaves_all_open():
    found = evidence([[0.9, 0.5, 0.9]], seeds=1)
    assert [p.step for p in ladder.partings(found)] == [None] * 3 and ladder.drops(found).empty
    judged = {p.id: p.verdict for p in ladder.judge(found, None)}
    assert judged["6.1"] == judged["6.2"] == claims.UNDECIDED


def test_predictions_are_kept_with_what_became_of_them(tmp_path):
    def claim(name, *estimates):
        return Claim(name, "s", (Part("p", "above", 0.5, tuple(estimates)),), "b")

    three = [
        claim("6.1", Estimate("a", 0.8, 0.7, 0.9)),
        claim("6.2", Estimate("a", 0.8, 0.7, 0.9), Estimate("b", 0.2, 0.1, 0.3)),
        claim("6.3", Estimate("a", math.nan, math.nan, math.nan)),
    ]
    assert predictions.keep(three, tmp_path, "06") == three
    predictions.keep([claim("7.1")], tmp_path, "07")
    rows = predictions.kept(tmp_path)
    assert [(r["id"], r["chapter"], r["outcome"]) for r in rows] == [
        ("6.1", "06", "confirmed"),
        ("6.2", "06", "refuted"),
        ("6.3", "06", "open"),
        ("7.1", "07", "open"),
    ]
    assert Claim.from_dict(rows[1]).verdict == claims.NOT_SUPPORTED
    (tmp_path / "predictions" / "06.json").write_text("[")
    assert [r["id"] for r in predictions.kept(tmp_path)] == ["7.1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of the smallest networks with the chapter made, and where it was published."""
    settings = {"train_images": 64, "test_images": 48, "width": 4, "epochs_sl": 1, "epochs_simclr": 1, "batch_size": 32}
    study = Study(**settings, out=str(tmp_path_factory.mktemp("ladder") / "runs"), device="cpu")
    ladder.make(study)
    return study


def test_the_chapter_shares_all_but_the_loss(made):
    options = [made.settings(f"{o}-1").chosen() for o in (*ladder.RUNGS, *ladder.FAMILIES)]
    assert all({**o, "objective": ""} == {**options[0], "objective": ""} for o in options)
    assert made.settings("rotation-0").epochs == made.epochs_simclr
    assert made.names == [f"{o}-{i}" for o in ("untrained", "sl", "simclr") for i in (0, 1)], (
        "the study has no more of them"
    )


def test_the_tables_of_the_chapter(made):
    found, names = ladder.evidence(made), ladder.names(made)
    assert names[:4] == ["ce_views-0", "ce_views-1", "supcon-0", "supcon-1"] and "byol-1" not in names
    steps = ladder.curves(found, ladder.STEPS)
    assert list(steps.columns) == ["a", "b", "layer", "step", "cka", "low", "high"]
    assert set(steps["layer"]) == set(LAYERS) and len(steps) == 3 * 2 * len(LAYERS)
    near = ladder.near(found)
    assert (
        set(near["a"]) == {f"{o}-0" for o in (*ladder.RUNGS, *ladder.FAMILIES)} and not (near["a"] == near["b"]).any()
    )
    plane = ladder.plane(near)
    assert plane.groupby("network")["layer"].apply(list).map(tuple).nunique() == 1 and len(plane) == 4 * len(LAYERS)
    assert list(ladder.learnt(made)["network"]) == names
    kept = json.loads((Path(made.out) / "predictions" / "06.json").read_text())
    assert [p["id"] for p in kept] == list(ladder.EXPECTED)
    factors = made.factors(["supcon-0", "simclr-0"])
    score = factors.set_index(["network", "layer", "factor"])["score"]
    assert ladder.gap(factors, "supcon-0", "simclr-0", "x").value == pytest.approx(
        score["simclr-0", "pool", "x"] - score["supcon-0", "pool", "x"]
    )


def test_published_tables_are_enough(made, tmp_path, monkeypatch):
    folder = publish.publish(made, tmp_path / "published")
    assert len(publish.check(folder)["checksums"]) > len(ladder.names(made))
    monkeypatch.setattr("repsim.train.train", None)
    monkeypatch.setattr(data, "load", None)
    drawn = Study(artefacts=str(folder), out=str(tmp_path / "out"))
    again = ladder.judge(ladder.evidence(drawn), drawn.factors(ladder.names(drawn)))
    assert [repr(p.to_dict()) for p in again] == [
        repr(p.to_dict()) for p in ladder.judge(ladder.evidence(made), made.factors(ladder.names(made)))
    ]
    assert ladder.learnt(drawn).equals(ladder.learnt(made))
