"""Chapter 07: its functions against independent ones, and the chapter itself, block of seeds by block of seeds and published."""

import ast
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from chapters import definitions

from repsim import cka, claims, probes
from repsim.study import publish

SCRIPT = Path(__file__).resolve().parent.parent / "notebooks" / "07_when_it_happens.py"
MICRO = {"train_images": 72, "test_images": 80, "image_size": 16, "width": 4, "epochs_sl": 1, "epochs_simclr": 2}
MICRO |= {"batch_size": 16, "device": "cpu", "controls": []}


@pytest.fixture
def chapter():
    """What the notebook defines, to which a test adds its variables."""
    return definitions("07_when_it_happens")


# ----- times

SHARES = [0.0, 0.01, 0.1, 1.0]


def test_a_crossing_lies_on_a_straight_line_over_the_logarithm_of_the_share(chapter):
    crossing = chapter["crossing"]
    assert crossing(SHARES, [0.0, 0.1, 0.3, 0.4], 0.2) == pytest.approx(0.01 * 10**0.5)
    assert crossing(SHARES, [0.0, 0.1, 0.3, 0.4], 0.3) == pytest.approx(0.1)
    assert crossing(SHARES, [0.0, 0.4, 0.1, 0.4], 0.2) == pytest.approx(0.005 * 2**0.5)  # the first of two
    assert crossing(SHARES, [0.3, 0.1, 0.1, 0.4], 0.2) == pytest.approx(0.005)  # there at the start


def test_what_is_never_reached_or_undefined_has_no_time(chapter):
    assert np.isnan(chapter["crossing"](SHARES, [0.0, 0.1, 0.1, 0.1], 0.2))
    assert np.isnan(chapter["crossing"](SHARES, [0.0, 0.5, np.nan, 0.5], 0.2))
    chapter["shares"] = SHARES
    curves = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -0.1], [0.5, 1.0, -0.2], [1.0, 1.0, -0.1]])
    assert chapter["half_times"](curves) == pytest.approx([0.1, 0.01 * 10**0.5, np.nan], nan_ok=True)


def test_an_interval_over_seeds_is_students(chapter):
    values = np.array([0.3, 0.1, 0.45, 0.2])
    low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    assert chapter["over_seeds"](values) == pytest.approx((values.mean(), low, high))


def times(agree, depart, views, classes):
    names = ("agreement of the middle", "gap to the last stage", "SimCLR's views", "SimCLR's classes", "other")
    return dict(zip(names, map(np.array, (agree, depart, views, classes, views))))


def judge(chapter, *of, reason=""):
    """The chapter's verdicts of these half times."""
    chapter["PREDICTIONS"] = {f"7.{k}": ("statement", "why", "meaning") for k in (1, 2, 3)}
    return [claim.verdict for claim in chapter["judge"](times(*of), reason)]


def test_predictions_are_judged_by_the_ratio_of_times_seed_by_seed(chapter):
    early, late, none = [0.01, 0.02, 0.015, 0.012], [0.3, 0.5, 0.4, 0.2], [0.01, np.nan, 0.02, 0.01]
    assert judge(chapter, early, late, early, late) == [claims.SUPPORTED] * 3
    assert judge(chapter, late, early, late, early) == [claims.CONTRADICTED] * 3
    spread = [0.01, 0.9, 0.01, 0.9]
    assert judge(chapter, spread, spread[::-1], none, late) == [claims.UNDECIDED] * 3
    assert judge(chapter, early, late, early, late, reason="2 seeds") == [claims.NOT_JUDGED] * 3
    (_, second, _) = chapter["judge"](times(early, late, early, late))
    ratios = np.log10(np.array(late) / np.array(early))
    low, high = scipy.stats.t.interval(0.95, 3, ratios.mean(), scipy.stats.sem(ratios))
    assert (second.parts[0].low, second.parts[0].high) == pytest.approx((low, high))


# ----- similarity


def test_a_cosine_of_rows_is_unbiased_minibatch_cka(chapter):
    x, noise = torch.randn(2, 96, 3, 5, generator=torch.Generator().manual_seed(0)).unbind()
    y = x + noise
    rows = [torch.cat([chapter["centred_row"](part) for part in features.split(32)]) for features in (x, y)]
    expected = cka.compare(features={"x": x.flatten(1), "y": y.flatten(1)}, batch_size=32).matrix("x", "y").iloc[0, 0]
    assert F.cosine_similarity(*rows, dim=0).item() == pytest.approx(expected, abs=1e-5)
    half = [F.normalize(row, dim=0).half().double() for row in rows]
    assert F.cosine_similarity(*half, dim=0).item() == pytest.approx(expected, abs=1e-4)


def test_a_seeds_similarity_is_its_mean_over_all_other_seeds_in_both_orders(chapter):
    moment, draw = {"sl": 0.1, "simclr": 0.2, "untrained": 1.0}, np.random.default_rng(0)
    pairs = itertools.combinations([f"{o}-{i}" for o in ("sl", "simclr") for i in range(3)], 2)
    share = {name: moment[name[:-2]] for name in [f"{o}-{i}" for o in ("sl", "simclr") for i in range(3)]}
    values = {pair: draw.uniform(0.2, 0.9) for pair in pairs}
    cells = {("layer2.0", a, share[a], b, share[b]): v for (a, b), v in values.items()}
    cells |= {(layer, b, t, a, s): v for (layer, a, s, b, t), v in cells.items()}
    chapter |= {"seeds": range(3), "cells": cells}
    across = (
        values["sl-0", "simclr-1"]
        + values["sl-0", "simclr-2"]
        + values["sl-1", "simclr-0"]
        + values["sl-2", "simclr-0"]
    )
    within = [(values[f"{o}-0", f"{o}-1"] + values[f"{o}-0", f"{o}-2"]) / 2 for o in ("sl", "simclr")]
    assert chapter["c"]("sl", "simclr", "layer2.0", moment)[0] == pytest.approx(across / 4)
    assert chapter["rho"]("sl", "simclr", "layer2.0", moment)[0] == pytest.approx(across / 4 / np.sqrt(np.prod(within)))
    chapter["cells"] = cells | dict.fromkeys((k for k in cells if "simclr" in k[1] and "simclr" in k[3]), -0.1)
    assert np.isnan(chapter["rho"]("sl", "simclr", "layer2.0", moment)).all(), "seeds of SimCLR share nothing"


# ----- the chapter


def run(profile, **changes):
    """Execute the script with these parameters; the names that it defines."""
    parameters = {"profile": profile, "changes": changes}
    tree, names = ast.parse(SCRIPT.read_text()), {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and (name := getattr(node.targets[0], "id", "")) in parameters:
            node.value = ast.parse(repr(parameters[name]), mode="eval").body
    exec(compile(tree, str(SCRIPT), "exec"), names)
    return names


def test_seeds_are_added_block_by_block_and_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("REPSIM_BATCH", "1")  # one network after the other
    fit = probes.fitted_nt_xent
    monkeypatch.setattr(probes, "fitted_nt_xent", lambda *views, **how: fit(*views, **how | {"steps": 2}))
    out = tmp_path / "runs"
    run("quick", **MICRO, seeds=2, out=str(out))
    first = {path: path.read_bytes() for path in out.glob("*/*-[01]-*.safetensors")}
    assert {path.parent.name for path in first} == {"networks", "tensors", "tables"}
    for snapshot in (out / "networks").glob("*.step-*"):
        snapshot.unlink()
    names = run("quick", **MICRO, seeds=3, out=str(out))
    assert all(path.read_bytes() == content for path, content in first.items())

    study, images = names["study"], names["study"].images.test.images
    models = {name: study.snapshot(name, 1.0) for name in ("sl-0", "simclr-2", "untrained-1")}
    compared = cka.compare(models, images[:64], batch_size=64)
    cells = names["cells"]
    for (a, b), layer in itertools.product(itertools.combinations(models, 2), ("layer1.0", "layer3.1")):
        assert cells[layer, a, 1.0, b, 1.0] == pytest.approx(compared.matrix(a, b).loc[layer, layer], abs=2e-3)
    for pair in (("sl", "simclr"), ("sl", "untrained")):
        assert names["rho"](*pair, "layer2.1", names["same_share"](0.0)) == pytest.approx(1, abs=1e-3)
    assert names["courses"]["agreement of the middle"][0] == pytest.approx(0, abs=1e-3), "it begins at zero"
    assert names["gain"]("classes", "simclr", names["e"])[0] == pytest.approx(0, abs=1e-3)
    assert names["same_images"](1.0)["simclr"] < 1, "SimCLR has seen SL's number of images before its end"

    verdicts = json.loads((out / "claims" / "07.json").read_text())
    assert [(v["id"], v["verdict"]) for v in verdicts] == [
        ("7.1", "not judged"),
        ("7.2", "not judged"),
        ("7.3", "not judged"),
    ]
    folder = publish(study, tmp_path / "published")
    shown = capsys.readouterr().out
    run(str(folder), out=str(tmp_path / "drawn"))
    again = json.loads((tmp_path / "drawn" / "claims" / "07.json").read_text())
    assert [(v["sentence"], v["why"], v["meaning"]) for v in again] == [
        (v["sentence"], v["why"], v["meaning"]) for v in verdicts
    ]
    assert "3 not judged" in shown and not (tmp_path / "drawn" / "networks").exists()


def test_one_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seeds: expected 2.* got 1"):
        run("quick", **MICRO, seeds=1, out=str(tmp_path))
