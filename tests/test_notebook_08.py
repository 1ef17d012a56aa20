"""The functions of notebook 08, on numbers with known answers."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from chapters import definitions
from torch import nn

from repsim import claims, data, models
from repsim.study import Study


@pytest.fixture
def chapter():
    """What the notebook defines, as a namespace to which its variables can be added."""
    names = definitions("08_auxiliary_tasks")
    return SimpleNamespace(names=names, **{name: value for name, value in names.items() if callable(value)})


def replicates(estimate, folds=5, seeds=4, noise=0.0):
    """(1 + folds + seeds,): the estimate, and around it by turns what it is without each fold and each seed."""
    return estimate + noise * np.array([0.0] + [(-1) ** i for i in range(folds + seeds)])


def colours(n, classes=2):
    """Images of one colour a class, which any layer can tell apart, as three equal splits."""
    labels = torch.arange(n) % classes
    images = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    images[torch.arange(n), labels] = 200
    part = data.ImageSet(images, labels, tuple(map(str, range(classes))))
    return data.Splits("colours", part, part, part)


# The loss of an auxiliary step


def test_of_equal_embeddings_and_logits_an_auxiliary_step_knows_nothing(chapter):
    model = models.build(width=4, head="projection", outputs=8)
    classifier = nn.Linear(16, 10)  # the end of stage 3 has four times the width
    for layer in (model.fc[-1], classifier):
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.bias)
    views = torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()
    loss = chapter.auxiliary_loss(model.eval(), classifier, views, torch.arange(6), 0.5)
    assert math.isclose(loss.item(), math.log(11) + math.log(10), rel_tol=1e-5)


# Where to cut


def test_fine_tuning_above_a_cut_learns_and_leaves_the_network_as_it_was(chapter):
    model, images = models.build(width=4, outputs=10).eval(), colours(64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = chapter.fine_tuned_losses(model, "layer3.1", images, epochs=4, batch=16)
    assert losses.shape == (64,) and losses.mean() < 0.5 * math.log(2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    again = chapter.fine_tuned_losses(model, "layer3.1", images, epochs=4, batch=16)
    assert np.array_equal(losses, again)


def test_fine_tuning_is_scored_at_the_epoch_that_validation_images_are_read_best_in(chapter):
    right = colours(32)
    wrong = data.ImageSet(right.train.images, 1 - right.train.labels, right.train.classes)
    contradiction = data.Splits("contradiction", right.train, wrong, wrong)
    options = {"cut": "layer3.1", "epochs": 5, "batch": 8}
    early = chapter.fine_tuned_losses(models.build(width=4).eval(), images=contradiction, **options)
    late = chapter.fine_tuned_losses(models.build(width=4).eval(), images=right, **options)
    assert early.mean() < -np.log1p(-np.exp(-late)).mean(), "the better it learns, the worse it reads the wrong classes"


def test_a_probe_reads_what_can_be_told_apart(chapter):
    losses = chapter.probe_losses(models.build(width=4).eval(), colours(40), ["layer1.0", "layer4.1"])
    assert list(losses) == ["layer1.0", "layer4.1"] and losses.shape == (40, 2)
    assert (losses.to_numpy() < 0.3).all()


def test_what_is_kept_by_fold_gives_the_mean_over_images_again(chapter):
    losses = pd.DataFrame({"a": np.arange(50.0), "above a": np.arange(50.0) ** 2})
    kept = chapter.by_fold(losses)
    readings = {f"sl-{i}": {"tuned": chapter.as_reading(kept, {"a": "above a"})} for i in range(3)}
    reading = claims.Evidence(None, readings, 3).reading("tuned", "sl", "a")
    assert len(reading) == 1 + 20 + 3 and math.isclose(reading[0], losses["above a"].mean())
    assert math.isclose(reading[1], losses["above a"][np.arange(50) % 20 != 0].mean())


@pytest.mark.parametrize("better, spread, valid", [(0.3, 0.01, True), (0.3, 0.5, False), (-0.3, 0.01, False)])
def test_a_fine_tuning_is_valid_only_where_it_is_shown_to_beat_its_probe(chapter, better, spread, valid):
    def table(value):
        folds = pd.DataFrame({"layer3.1": np.full(5, value)})
        folds.attrs["images"] = np.full(5, 10)
        return folds

    seeds = {f"sl-{i}": {"probe": table(1.0), "fine-tuned": table(1 - better + spread * (-1) ** i)} for i in range(4)}
    assert chapter.beats_its_probe(claims.Evidence(None, seeds, 4), "sl", "layer3.1") is valid


def test_a_gain_is_how_much_lower_a_loss_is(chapter):
    def reading(value):
        folds = pd.DataFrame({"layer4.1": np.full(5, value)})
        folds.attrs["images"] = np.full(5, 10)
        return {"probe": folds}

    losses = {"untrained": 2.0, "sl": 0.5, "simclr": 1.25}
    evidence = claims.Evidence(None, {f"{o}-{i}": reading(x) for o, x in losses.items() for i in range(3)}, 3)
    assert np.allclose(chapter.gain(evidence, "probe", "sl", "layer4.1"), 1.5)
    assert np.allclose(chapter.gain(evidence, "probe", "sl", "layer4.1", over="simclr"), 0.75)


# Predictions


def test_the_predictions_are_those_of_the_preregistration(chapter):
    table = chapter.registered()
    assert list(table.index) == ["8.1", "8.2", "8.3", "8.4", "8.5", "8.6"]
    assert table.prediction["8.3"] == "cross-entropy in SimCLR's middle is nearly free"
    assert table.meaning["8.1"] == "cut a supervised network before its last stage"
    assert not table.isna().any(axis=None)


@pytest.mark.parametrize(
    "cost, verdict, scaled", [(0.1, "supported", 1.125), (0.2, "undecided", 1.0), (0.6, "contradicted", 0.5)]
)
def test_a_cost_is_set_against_a_share_of_a_gain(chapter, cost, verdict, scaled):
    part = chapter.less_than(0.2, "", replicates(cost, noise=0.002), replicates(1.0), 4)
    assert part.verdict == verdict and math.isclose(part.scaled[0], scaled)


@pytest.mark.parametrize(
    "cost, verdict, scaled", [(0.0, "supported", 2.0), (0.05, "undecided", 1.0), (0.1, "contradicted", 0.0)]
)
def test_a_cost_is_set_against_a_limit(chapter, cost, verdict, scaled):
    part = chapter.at_most(0.05, "", replicates(cost, noise=0.002), 4)
    assert part.verdict == verdict and math.isclose(part.scaled[0], scaled)


def test_a_prediction_is_confirmed_refuted_open_or_not_judged(chapter):
    judged = chapter.names["judged"] = {}
    parts = {x: claims.Part("", replicates(x, noise=0.002), 4, above=0.05) for x in (0.0, 0.05, 0.1)}
    outcomes = {
        "8.1": ("confirmed", (parts[0.1],), ""),
        "8.2": ("refuted", (parts[0.1], parts[0.0]), ""),
        "8.3": ("open", (parts[0.1], parts[0.05]), ""),
        "8.4": ("not judged", (parts[0.1],), "two seeds"),
    }
    for id, (expected, of, gate) in outcomes.items():
        text = chapter.predicted(id, "It costs 0.1.", *of, gate=gate)
        assert f"**{id}: {expected}.**" in text and text.startswith("- It costs 0.1.") and gate in text
    words = [chapter.advice(id, "cut it", judged[id]).split(": cut it")[0] for id in outcomes]
    assert words == ["1. To do", "1. Not to do", "1. Not decided", "1. Not decided"]
    assert "not run" in chapter.advice("8.5", "choose views", None)


# The grid


def test_a_cell_changes_simclr_s_views_alone(chapter, tmp_path):
    chapter.names["study"] = SimpleNamespace(out=str(tmp_path), device="cpu")
    kept, jittered, whole = (chapter.open_cell(0.5, views) for views in chapter.names["VIEWS"])
    assert isinstance(kept, Study) and kept.context == 0.5 and kept.seeds >= claims.MIN_SEEDS
    for name in ("sl-0", "untrained-0"):
        assert kept.settings(name) == jittered.settings(name) == whole.settings(name), "trained once"
    for name in ("simclr-0", "sl_simclr_views-0", "sl_simclr_middle-0"):
        strengths = [(s.settings(name).hue, s.settings(name).crop) for s in (kept, jittered, whole)]
        assert strengths == [(0.0, 0.2), (0.5, 0.2), (0.5, 1.0)]
        assert (
            kept.settings(name).learning_rate
            == kept.settings("simclr-0" if name == "simclr-0" else "sl-0").learning_rate
        )


def grid(losses):
    """The grid's table of one cell from losses without any spread: quantity -> value."""
    rows = [(0.5, "hue kept", quantity, *replicates(value)) for quantity, value in losses.items()]
    return pd.DataFrame(rows, columns=["context", "views", "quantity", *map(str, range(10))])


def test_shares_and_gains_of_a_cell(chapter):
    losses = {"pi": 0.7, "untrained m": 2.0, "sl m": 1.0, "simclr m": 1.25}
    losses |= {"sl_simclr_views e": 0.9, "sl_simclr_middle e": 0.8}
    cells = chapter.derived(grid(losses))
    assert {quantity: round(values[0], 9) for quantity, values in cells[0.5, "hue kept"].items()} == {
        "similarity": 0.7,
        "owner": 1.0,
        "share": 0.75,
        "gain": 0.1,
    }


def test_a_share_of_a_gain_that_may_be_none_is_a_gap_in_the_figure(chapter):
    def of(noise):
        return {"owner": replicates(0.1, noise=noise), "share": replicates(0.5), "gain": replicates(0.2)}

    cells = {(0.0, "hue kept"): of(0.5), (1.0, "hue kept"): of(0.001)}
    table = chapter.shown(cells, {"share": "share", "gain": "gain"}, 4).set_index(["quantity", "context"])
    assert table.loc[("share", 0.0), ["value", "low", "high"]].isna().all()
    assert table.loc[("share", 1.0), "value"] == 0.5 and (table.loc["gain", "value"] == 0.2).all()


def test_a_rank_correlation_is_taken_in_every_replicate(chapter):
    first = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [5.0, 4.0]])
    second = np.array([[1.0, 9.0], [4.0, 7.0], [9.0, 5.0], [25.0, 1.0]])
    assert chapter.rank_correlation(first, second).tolist() == [1.0, -1.0]


# A study of some classes


def test_networks_of_some_classes_never_meet_those_of_all(tmp_path):
    small = {"train_images": 40, "test_images": 40, "image_size": 16, "width": 4, "out": str(tmp_path)}
    whole = Study(**small)
    halves = [Study(**small, classes=list(whole.summary.classes[i : i + 5])) for i in (0, 5)]
    assert len({s.network_file("sl-0") for s in (whole, *halves)}) == 3
    assert [len(s.images.train.classes) for s in halves] == [5, 5]
    assert sum(len(s.images.train) for s in halves) == 40
    with pytest.raises(ValueError, match="classes: expected at least 2 different ones of .*'sphere'"):
        Study(**small, classes=["disc", "sphere"]).images  # noqa: B018 (loaded now)
