import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from repsim import data, moments, publish, snapshots, store, train
from repsim.study import Study

SETTINGS = train.Settings(objective="simclr", width=4, epochs=2, batch_size=16, projection=8, learning_rate=0.1)
SMALL = {"train_images": 96, "test_images": 64, "width": 4, "epochs_sl": 2, "epochs_simclr": 4, "batch_size": 32}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data.load("shapes", train_images=48, test_images=32, validation=0.5, root=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(**SMALL, out=str(tmp_path_factory.mktemp("study") / "runs"))


def kept(images, folder, settings=SETTINGS):
    """The weights of every moment before the end, by step."""
    final = train.path(settings, images, folder)
    return {step: snapshots.load(final, step) for step in (0, 1, 3)}  # of 6 steps


# ----- what is kept


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 60, 100, 39_000])
def test_a_schedule_is_logarithmic_from_initialisation_to_the_end(steps):
    plan = moments.schedule(steps)
    shares, at = list(plan), list(plan.values())
    assert shares[0] == at[0] == 0 and at[-1] == steps and shares == sorted(shares)
    assert at == sorted(set(at)) and len(at) <= 2 + 3 * math.log10(steps + 1) + 1 and len(at) < 18
    assert all(step == round(share * steps) for share, step in plan.items())
    with pytest.raises(ValueError, match="steps: .*-1"):
        moments.schedule(-1)


def test_a_moment_is_what_a_run_stopped_there_had(images, tmp_path, monkeypatch):
    train.train(SETTINGS, images, tmp_path / "whole", progress=False)
    whole = kept(images, tmp_path / "whole")
    initial = train.to_half(SETTINGS.build(10).state_dict())
    assert snapshots.equal(whole[0], initial) and not snapshots.equal(whole[1], initial)
    assert not list((tmp_path / "whole").glob("*.step-6")), "the end is the network itself"
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)  # after every step
    rate = train.learning_rate
    for step in (1, 3):

        def stopping(i, *rest, step=step):
            if i == step:
                raise KeyboardInterrupt
            return rate(i, *rest)

        monkeypatch.setattr(train, "learning_rate", stopping)
        with pytest.raises(KeyboardInterrupt):
            train.train(SETTINGS, images, tmp_path / str(step), progress=False)
        checkpoint = train.path(SETTINGS, images, tmp_path / str(step)).with_suffix(".checkpoint")
        tensors = store.load_tensors(checkpoint)[0]
        stopped = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
        assert snapshots.equal(whole[step], train.to_half(stopped))
        monkeypatch.setattr(train, "learning_rate", rate)
        train.train(SETTINGS, images, tmp_path / str(step), progress=False)  # goes on
        resumed = kept(images, tmp_path / str(step))
        assert all(snapshots.equal(resumed[i], whole[i]) for i in whole)


@pytest.mark.parametrize("objective", ["sl", "simclr"])
def test_keeping_moments_changes_no_weight(images, tmp_path, monkeypatch, objective):
    settings = dataclasses.replace(SETTINGS, objective=objective)
    watched = train.train(settings, images, tmp_path / "a", progress=False).model.state_dict()
    monkeypatch.setattr(snapshots, "KEPT", ())
    assert snapshots.equal(train.train(settings, images, tmp_path / "b", progress=False).model.state_dict(), watched)
    assert list((tmp_path / "a").glob("*.step-*")) and not list((tmp_path / "b").glob("*.step-*"))
    controls = dataclasses.replace(SETTINGS, objective="random_labels")
    monkeypatch.undo()
    train.train(controls, images, tmp_path / "b", progress=False)
    assert not list((tmp_path / "b").glob("*.step-*"))


def test_moments_that_are_missing_or_damaged_are_trained_again(study, capsys):
    share = moments.moments(study)[1]
    before = moments.network(study, "sl-0", share).state_dict()
    final = train.path(study.settings("sl-0"), study.images, Path(study.out) / "networks")
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-9])):
        damage(snapshots.path(final, moments.schedule(6)[share]))
        assert snapshots.equal(moments.network(study, "sl-0", share).state_dict(), before)
        assert "sl-0: its moments were not kept" in capsys.readouterr().err
    assert not list(final.parent.glob("*.again"))


# ----- what is measured


def test_a_study_has_every_curve_at_shared_moments_and_makes_them_once(study, monkeypatch):
    moments.make(study)
    assert moments.moments(study)[0] == 0 and moments.moments(study)[-1] == 1
    table = moments.curves(study)
    expected = {"CKA", "normalised CKA", "class CKA", "view CKA", "linear probe", "10-NN", "NT-Xent", "factor scale"}
    assert expected <= set(table.measure)
    assert list(table) == ["share", "step", "epoch", "images_seen", "of", "measure", "layer", "value", "low", "high"]
    simclr = table[(table.of == "simclr-1") & (table.share == 1)].iloc[0]
    assert (simclr.step, simclr.epoch, simclr.images_seen) == (12, 4, 12 * 32)
    start = table[(table.share == 0) & (table.measure == "normalised CKA")]
    defined = start.value.dropna()  # networks this small may have nothing in common
    assert len(defined) > len(start) / 2 and np.allclose(defined, 1), "before training an objective is no difference"
    judged = [claim.to_dict() for claim in moments.predictions(study)]
    assert [claim["id"] for claim in judged] == ["7.1", "7.2", "7.3", "7.4", "7.5"]
    monkeypatch.setattr("repsim.cka.compare", None)  # making them again would fail
    monkeypatch.setattr("repsim.probes.linear_probe", None)
    again = Study(**SMALL, out=study.out)
    pd.testing.assert_frame_equal(moments.curves(again), table)
    assert set(moments.agreement(again).group) == {"stage 1", "middle", "stage 4", "pool"}


def test_published_tables_are_drawn_without_weights_or_images(study, tmp_path):
    moments.make(study)
    shutil.copytree(Path(study.out) / "tables", tmp_path / "tables")
    settings = {f.name: getattr(study, f.name) for f in dataclasses.fields(study) if f.name not in publish.PLACES}
    provenance = {"parameters": settings, "images": study.summary._asdict()}
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    published = Study(artefacts=str(tmp_path), out=str(tmp_path / "out"))
    pd.testing.assert_frame_equal(moments.curves(published), moments.curves(study))
    assert [c.to_dict() for c in moments.predictions(published)] == [c.to_dict() for c in moments.predictions(study)]
    assert not (tmp_path / "out").exists()


def test_the_initialisation_is_evaluated_as_the_untrained_network_is(study):
    found = {l: moments.network(study, "sl-0", 0.0).state_dict()[l] for l in ("conv1.weight", "bn1.running_mean")}
    untrained = study.network("untrained-0").model.state_dict()
    assert all(torch.allclose(found[l], untrained[l], atol=1e-3) for l in found)  # rounded before or after


# ----- times

SHARES = [0.0, 0.01, 0.1, 1.0]


def curve(values, half=0.01):
    values = np.asarray(values, dtype=float)
    return pd.DataFrame({"share": SHARES, "value": values, "low": values - half, "high": values + half})


def test_half_of_a_gain_is_found_between_moments():
    time = moments.half_gain(curve([0.0, 0.0, 0.4, 0.6]), "x")
    assert time.value == pytest.approx(0.01 * 10**0.75) and time.low < time.value < time.high
    assert moments.half_gain(curve([0.0, 0.5, 0.6, 0.6]), "x").value == pytest.approx(0.005 * 2 ** (0.3 / 0.5))


@pytest.mark.parametrize(
    "values, half", [([0.5, 0.4, 0.3, 0.2], 0.01), ([0.1, 0.2, 0.1, 0.12], 0.01), ([0, 0, 0.1, 0.2], 0.2)]
)
def test_a_curve_that_gains_nothing_to_speak_of_has_no_half(values, half):
    assert math.isnan(moments.half_gain(curve(values, half), "x").value)


def test_a_curve_has_settled_when_it_stays_near_its_end():
    time = moments.settled(curve([1.0, 1.0, 0.5, 0.5]), "x")
    assert time.value == pytest.approx(0.01 * 10**0.9) and time.low < time.value < time.high
    assert moments.settled(curve([0.5, 0.5, 0.5, 0.5]), "x").value == pytest.approx(0.005)
    assert moments.settled(curve([1.0, 1.0, 1.0, 0.5], half=0.2), "x").high == 1.0
    assert math.isnan(moments.settled(curve([1.0, math.nan, 1.0, 0.5]), "x").value)


def test_what_is_not_sure_to_be_reached_has_no_time():
    assert moments.exceeds(curve([0.0, 0.0, 0.1, 0.2]), "x").value == pytest.approx(0.01 * 10**0.5)
    assert math.isnan(moments.exceeds(curve([0.0, 0.0, 0.0, 0.055]), "x").value)


def test_an_order_is_open_where_intervals_overlap():
    early, late = moments.Estimate("x", 0.01, 0.005, 0.02), moments.Estimate("x", 0.1, 0.05, 0.2)
    assert moments.later(early, late).value == pytest.approx(1) and moments.later(early, late).low > 0
    overlapping = moments.later(early, moments.Estimate("x", 0.02, 0.01, 0.04))
    assert overlapping.low < 0 < overlapping.value < overlapping.high
