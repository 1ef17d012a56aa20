"""Weights on the way through training: when they are written, that they are what a run had then, and what a study makes of them."""

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest
import test_train
import torch
from test_train import SETTINGS, stop_at

from repsim import data, store, train
from repsim.study import Study, publish

SMALL = {"train_images": 96, "test_images": 64, "image_size": 16, "width": 4, "batch_size": 32, "device": "cpu"}
images = test_train.images


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(**SMALL, epochs_sl=2, epochs_simclr=1, seeds=1, out=str(tmp_path_factory.mktemp("study") / "runs"))


def equal(a, b):
    """Whether two networks have the same weights to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def on_the_way(images, folder, settings=SETTINGS):
    """The weights of every snapshot, by step."""
    final = train.path(settings, images, folder)
    return {step: store.load_tensors(train.snapshot_path(final, step))[0] for step in (0, 1, 3)}  # of 6 steps


@pytest.mark.parametrize("steps", [0, 1, 2, 7, 60, 100, 39_000])
def test_a_schedule_is_logarithmic_from_initialisation_to_the_end(steps):
    plan = train.schedule(steps)
    shares, at = list(plan), list(plan.values())
    assert shares[0] == at[0] == 0 and at[-1] == steps and shares == sorted(shares)
    assert at == sorted(set(at)) and len(at) <= 2 + 3 * math.log10(steps + 1) + 1 and len(at) < 18
    assert all(step == round(share * steps) for share, step in plan.items())


def test_a_schedule_of_a_thousand_steps_is_the_one_that_networks_have_been_trained_with():
    assert list(train.schedule(1000).values()) == [0, 1, 3, 10, 22, 46, 100, 215, 464, 1000]
    assert train.snapshot_path(Path("sl-0-abc.safetensors"), 22) == Path("sl-0-abc.step-22")
    assert train.SNAPSHOTS == ("sl", "simclr", "sl_simclr_views")


def test_a_snapshot_is_what_a_run_stopped_there_had(images, tmp_path, monkeypatch):
    train.train(SETTINGS, images, tmp_path / "whole", progress=False)
    whole = on_the_way(images, tmp_path / "whole")
    initial = train.to_half(SETTINGS.build(10).state_dict())
    assert equal(whole[0], initial) and not equal(whole[1], initial)
    assert not list((tmp_path / "whole").glob("*.step-6")), "the end is the network itself"
    stop_at(3, images, tmp_path / "stopped", monkeypatch)
    checkpoint = train.path(SETTINGS, images, tmp_path / "stopped").with_suffix(".checkpoint")
    tensors = store.load_tensors(checkpoint)[0]
    weights = {name.removeprefix("model."): w for name, w in tensors.items() if name.startswith("model.")}
    assert equal(whole[3], train.to_half(weights))
    train.train(SETTINGS, images, tmp_path / "stopped", progress=False)  # goes on
    resumed = on_the_way(images, tmp_path / "stopped")
    assert all(equal(resumed[step], whole[step]) for step in whole)


def test_snapshots_change_no_weight_and_are_those_of_three_objectives(images, tmp_path, monkeypatch):
    watched = train.train(SETTINGS, images, tmp_path / "a", progress=False).model.state_dict()
    monkeypatch.setattr(train, "SNAPSHOTS", ())
    assert equal(train.train(SETTINGS, images, tmp_path / "b", progress=False).model.state_dict(), watched)
    assert list((tmp_path / "a").glob("*.step-*")) and not list((tmp_path / "b").glob("*.step-*"))
    monkeypatch.undo()
    control = dataclasses.replace(SETTINGS, objective="random_labels", epochs=1)
    train.train(control, images, tmp_path / "b", progress=False)
    assert not list((tmp_path / "b").glob("*.step-*"))


def test_the_initialisation_is_evaluated_as_the_untrained_network_is(study):
    first, untrained = study.snapshot("sl-0", 0.0), study.snapshot("untrained-0", 1.0)
    backbone = {name: w for name, w in untrained.state_dict().items() if name in first.state_dict()}
    assert not first.training and len(backbone) > 50
    assert all(torch.equal(first.state_dict()[name], w) for name, w in backbone.items() if "head" not in name)


def test_statistics_of_batch_norm_are_those_of_training_images_with_the_weights_of_the_moment(study):
    share = list(train.schedule(6))[2]
    model = study.snapshot("sl-0", share)
    inputs = data.as_input(study.images.train.images)  # fewer than 1,024, and one batch
    expected = model.conv1(inputs).mean((0, 2, 3))
    assert torch.allclose(model.bn1.running_mean, expected, atol=1e-5)
    end = study.snapshot("sl-0", 1.0)
    assert torch.equal(end.conv1.weight, study.network("sl-0").model.conv1.weight)
    assert not torch.equal(end.bn1.running_mean, study.network("sl-0").model.bn1.running_mean)


def test_a_share_without_a_snapshot_is_refused(study):
    with pytest.raises(ValueError, match="share: expected one of 0, 0.215, 0.464, 1, got 0.3 of sl-0"):
        study.snapshot("sl-0", 0.3)
    with pytest.raises(ValueError, match="share: .* of untrained-0"):
        study.snapshot("untrained-0", 0.0)


@pytest.mark.parametrize("damage", [Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:-9])])
def test_a_snapshot_that_is_gone_or_damaged_says_how_to_make_it_again(study, damage):
    share, final = list(train.schedule(6))[1], study.network_file("sl-0")
    study.snapshot("sl-0", share)
    place = train.snapshot_path(final, train.schedule(6)[share])
    whole = place.read_bytes()
    damage(place)
    with pytest.raises(FileNotFoundError, match=f"no whole snapshot of sl-0.* delete {final} to train it again"):
        study.snapshot("sl-0", share)
    place.write_bytes(whole)


def test_a_network_that_is_not_published_has_no_snapshots(study, tmp_path):
    study.table("a-table", lambda: pd.DataFrame({"a": [1]}), ["sl-0"])
    folder = publish(study, tmp_path / "published")
    assert [path.name.partition("-")[0] for path in (folder / "tables").iterdir()] == ["a"]
    with pytest.raises(FileNotFoundError, match="among the published results"):
        Study.open(folder, out=str(tmp_path / "out")).snapshot("sl-0", 1.0)
