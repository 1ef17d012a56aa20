import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from repsim import claims, data, probes, store, train
from repsim.profiles import PROFILES, ROOT, changed, read_changes
from repsim.study import Study, main

SMALL = {"train_images": 200, "test_images": 64, "width": 4, "epochs_sl": 1, "epochs_simclr": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(**SMALL, out=str(tmp_path_factory.mktemp("study") / "runs"))


def test_a_study_makes_every_table_once(study, monkeypatch):
    judged = study.judge()
    assert [c.id for c in judged] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    readings, history = study.readings("simclr-1"), study.network("sl-0").history
    assert {"probe", "correct", "knn", "retrieval", "views", "views of a class"} == set(readings)
    again = Study(**SMALL, out=study.out)
    for module in ("linear_probe", "knn", "retrieval", "fitted_nt_xent"):
        monkeypatch.setattr(f"repsim.probes.{module}", None)  # making them again would fail
    monkeypatch.setattr("repsim.cka.compare", None)
    monkeypatch.setattr("repsim.train._train", None)
    assert repr([c.to_dict() for c in again.judge()]) == repr([c.to_dict() for c in judged])
    pd.testing.assert_frame_equal(again.network("sl-0").history, history, check_exact=True)
    for measure, table in again.readings("simclr-1").items():
        pd.testing.assert_frame_equal(table, readings[measure], check_exact=True)


def test_readings_are_those_of_the_probes(study):
    """The class is read by fold of the test images; the pool is the end of stage 4."""
    labels = {split: getattr(study.images, split).labels for split in ("train", "validation", "test")}
    features = {split: {"pool": study.features("sl-1", split)["pool"]} for split in labels}
    probe = probes.linear_probe(*(v for s in labels for v in (features[s], labels[s])), classes=10)
    by_fold = study.readings("sl-1")["correct"]
    assert list(by_fold) == ["stem", *claims.of_kind(list(study.features("sl-1", "test")), "post-residual"), "head"]
    assert (by_fold["layer4.1"] * by_fold.attrs["images"]).sum() == probe.correct["pool"].sum()
    assert study.accuracy()["sl"] == pytest.approx(
        np.mean(
            [
                np.average(study.readings(f"sl-{i}")["correct"]["layer4.1"], weights=by_fold.attrs["images"])
                for i in (0, 1)
            ]
        )
    )


def test_the_comparison_holds_every_network_labels_and_pixels(study):
    assert {"labels", "pixels", *study.names} == set(study.comparison().streams)


def test_changed_settings_and_changed_images_never_meet_an_old_table(study, tmp_path):
    keys = {study.key_of(study.names)}
    for change in ({"epochs_sl": 2}, {"test_images": 96}, {"seeds": 1}, {"recipe": {"momentum": 0.8}}):
        other = Study(**SMALL | change, out=study.out)
        keys.add(other.key_of(other.names))
    assert len(keys) == 5
    assert Study(**SMALL, out=str(tmp_path)).key_of(study.names) in keys


def test_contexts_and_saturation_are_of_the_embedded_images(study):
    images = Study(**SMALL, context=1, saturation=0.0, out=study.out).images
    expected = data.load("shapes", train_images=200, test_images=64, context=1.0, saturation=0.0)
    assert data.summary(images) == data.summary(expected) != study.summary
    with pytest.raises(ValueError, match="context: expected 0, as only shapes have one, got 0.8 with 'cifar10'"):
        Study(data="cifar10", context=0.8).images  # noqa: B018


def test_claims_are_kept_with_what_they_rest_on(study):
    (claim,) = study.judge("C1")
    (kept,) = json.loads((Path(study.out) / "claims" / "C1.json").read_text())
    assert (kept["id"], kept["verdict"], kept["sentence"]) == ("C1", claims.NOT_JUDGED, claim.sentence)
    assert "seeds to 4" in kept["reason"] and kept["basis"] == study.basis() and kept["exploratory"]
    assert kept["preregistration"] and "Linear probes at the pool read" in kept["learnt"]
    assert "not judged" in study.answer([claim]) and "Exploratory" in study.answer([claim])


def test_controls_are_further_networks():
    study = Study(controls=["sl_simclr_views", "random_labels"])
    assert study.names[-4:] == ["sl_simclr_views-0", "sl_simclr_views-1", "random_labels-0", "random_labels-1"]
    assert study.settings("sl_simclr_views-1").epochs == study.epochs_sl


def test_recipes_apply_to_all_or_to_one_objective():
    study = Study(recipe={"momentum": 0.8, "simclr": {"temperature": 0.2}})
    assert study.settings("sl-0").momentum == study.settings("simclr-0").momentum == 0.8
    assert (study.settings("simclr-1").temperature, study.settings("sl-1").temperature) == (0.2, 0.5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": "wide"}, r"width: expected int, got 'wide' \(str\)"),
        ({"threads": 0}, "threads"),
        ({"device": "gpu"}, "device: expected one of auto, cpu, cuda, mps, got 'gpu'"),
        ({"width": True}, "width: expected int, got True"),
        ({"width": 6}, "width: .*6"),
        ({"train_images": 0}, "train_images"),
        ({"train_images": 1.5}, r"train_images: expected int \| null, got 1.5"),
        ({"test_images": 4}, r"test_images: expected a number in \[8, inf\), got 4"),
        ({"seeds": 0}, "seeds"),
        ({"saturation": 1.5}, r"saturation: expected a number in \[0, 1\], got 1.5"),
        ({"architecture": "vgg"}, "architecture: .*'vgg'"),
        ({"controls": ["sl"]}, "controls: .*'sl'"),
        ({"controls": ["moco"]}, "controls: .*'moco'"),
        ({"controls": ["random_label"]}, "did you mean random_labels"),
        ({"recipe": {"sl": {"learning_rte": 1.0}}}, "recipe: .*'learning_rte' .did you mean learning_rate"),
        ({"recipe": {"speed": 3}}, "recipe: .*'speed'"),
        ({"recipe": {"simclr": {"speed": 3}}}, "recipe: .*speed"),
        ({"recipe": {"temperature": -1.0}}, "temperature"),
        ({"recipe": []}, "recipe: expected dict"),
    ],
)
def test_unusable_settings_are_refused_when_the_study_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        Study(**options)


def test_unknown_networks_and_images_are_refused():
    with pytest.raises(ValueError, match="network: .*'moco-0'"):
        Study().settings("moco-0")
    with pytest.raises((ValueError, FileNotFoundError), match="mnist3000"):
        Study(data="mnist3000").images  # noqa: B018


@pytest.mark.parametrize("name", sorted(p.stem for p in PROFILES.glob("*.yaml")))
def test_every_profile_is_a_study(name):
    assert Study.open(name).out == str(ROOT / "runs" / name)


@pytest.mark.parametrize(
    "content, message",
    [("a: [", "not YAML"), ("- a", "map parameters"), ("wdith: 3", "parameter: .*'wdith' .did you mean width")],
)
def test_unusable_profiles_are_refused(content, message, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        Study.open(file)
    with pytest.raises(ValueError, match="no file .*qiuck.*did you mean quick"):
        Study.open("qiuck")
    with pytest.raises(ValueError, match="profile: .*got 3"):
        Study.open(3)


def test_a_damaged_table_is_made_again(study):
    table = study.table("history-sl-0", lambda: study.network("sl-0").history, ["sl-0"])
    (file,) = [p for p in (Path(study.out) / "tables").glob("history-sl-0-*.csv")]
    file.write_text(file.read_text().replace("0.", "1.", 1))
    with pytest.warns(UserWarning, match="checksum.*made again"):
        again = study.table("history-sl-0", lambda: study.network("sl-0").history, ["sl-0"])
    pd.testing.assert_frame_equal(again, table)
    about = store.load_table(file)[1]
    assert about["table"] == "history-sl-0"
    assert about["protocol"] == dict(study.protocol().itertuples(index=False))


def test_a_network_keeps_its_tables_whatever_other_networks_a_study_has(study, monkeypatch):
    table = study.readings("sl-0")["probe"]
    monkeypatch.setattr("repsim.probes.linear_probe", None)  # making them again would fail
    fewer = Study(**SMALL, seeds=1, out=study.out)
    assert fewer.names != study.names
    pd.testing.assert_frame_equal(fewer.readings("sl-0")["probe"], table)


def test_a_study_is_a_profile_with_changes_wherever_it_is_opened(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text("width: 4\nrecipe: {momentum: 0.8, simclr: {learning_rate: 0.2}}\n")
    monkeypatch.chdir(tmp_path)
    study = Study.open(file, seeds=3, **{"recipe.simclr.temperature": 0.2})
    assert (study.width, study.seeds, study.out) == (4, 3, str(ROOT / "runs" / "mine"))
    assert study.recipe == {"momentum": 0.8, "simclr": {"learning_rate": 0.2, "temperature": 0.2}}
    assert Study.open("profiles/quick.yaml", out="x").out == str(ROOT / "x"), "paths count from the checkout"
    own = Study.open("quick", data="tests")
    assert (own.data, own.context) == (str(ROOT / "tests"), 0.0), "contexts are of the embedded images"
    assert (Study.open("quick").data, Study.open("quick").context) == ("shapes", 0.8)
    values = {"recipe.sl.weight_decay": "5e-5", "data": "~/my images", "controls": "[supcon]", "image_size": "null"}
    read = {"recipe.sl.weight_decay": 5e-5, "data": "~/my images", "controls": ["supcon"], "image_size": None}
    assert read_changes(values.items()) == read
    with pytest.raises(ValueError, match="parameter: expected .*'wdith' .did you mean width"):
        Study.open(file, wdith=3)
    with pytest.raises(ValueError, match="width.x: width is not a mapping, but 4"):
        changed({"width": 4}, {"width.x": 3})


def test_threads_are_a_setting_that_leaves_keys_and_the_caller_alone(tmp_path):
    study = Study(**SMALL, out=str(tmp_path / "a"))
    chosen = {"width": 4, "epochs": 1, "batch_size": 32, "learning_rate": 0.1}  # as before there was such a setting
    assert study.settings("sl-0").chosen() == chosen
    other = dataclasses.replace(study, threads=2)
    assert other.key_of(study.names) != study.key_of(study.names) and other.settings("sl-0").threads == 2
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        other.network("sl-0", lambda passes: seen.append(torch.get_num_threads()))
        study.network("sl-0", lambda passes: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 3 and seen == [2] * (len(seen) // 2) + [1] * (len(seen) // 2)
    finally:
        torch.set_num_threads(before)


def test_networks_are_the_same_side_by_side_with_one_bar_and_only_what_is_missing_is_trained(
    tmp_path, capfd, monkeypatch
):
    alone, beside = (Study(**SMALL, seeds=1, device="cpu", out=str(tmp_path / name)) for name in "ab")
    torch.set_num_threads(2)  # what a network trains with does not depend on the caller
    alone.train_missing()
    torch.set_num_threads(1)
    beside.train_missing(processes=2)
    assert beside.missing() == [] and "Training 2 of 3 networks, about " in capfd.readouterr().err
    monkeypatch.setattr(train, "_train", None)  # training would fail
    for name in ("sl-0", "simclr-0"):
        one, other = (study.network(name).model.state_dict() for study in (alone, beside))
        assert all(torch.equal(one[key], other[key]) for key in one)
    beside.train_missing()
    assert capfd.readouterr().err == ""


def test_a_network_that_cannot_be_trained_is_named_with_the_reason(tmp_path, monkeypatch):
    study = Study(**SMALL, seeds=1, device="cpu", out=str(tmp_path), recipe={"sl": {"learning_rate": 1e30}})
    with pytest.raises(RuntimeError, match="^sl-0: .*RuntimeError: sl-0: the loss is"):
        study.train_missing(processes=2)
    assert study.missing() == ["sl-0"]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif '--passes' in sys.orig_argv: os.kill(os.getpid(), 11)"
    )
    with pytest.raises(RuntimeError, match="^sl-0: the process died .out of memory, or a crash in a native library"):
        study.train_missing(["sl-0"], processes=1)


def test_what_there_is_no_time_for_is_not_started(tmp_path, monkeypatch):
    study = Study(**SMALL, seeds=2, device="cpu", out=str(tmp_path))
    assert study.missing() == ["sl-0", "simclr-0", "sl-1", "simclr-1"], "in the order of seeds"
    study.network("sl-0")
    monkeypatch.setattr(train, "seconds_per_pass", lambda settings, images, device: 1.0)
    monkeypatch.setattr(train, "passes", lambda settings, images: 3600 if settings.name != "simclr-0" else 0)
    (tmp_path / "p.yaml").write_text("width: 4")
    fields = [f for n, v in (SMALL | {"out": tmp_path}).items() for f in ("-p", n, str(v))]
    main(["--profile", str(tmp_path / "p.yaml"), "--minutes", "2", *fields, "simclr-0", "sl-1", "simclr-1"])
    assert study.missing() == ["sl-1", "simclr-1"]


def test_published_results_take_neither_other_settings_nor_other_images(tmp_path):
    published = Study.open("results/cifar10-cpu", out=str(tmp_path))
    assert published.missing() == [] and published.width == 16
    for changes, message in (
        ({"width": 32}, "width: 32 is asked for, but .*cifar10-cpu was made with 16"),
        ({"threads": 2}, "threads: 2"),
        ({"recipe": {}}, "recipe: {}"),
        ({"wdith": 16}, "parameter: .*'wdith'"),
        ({"data": "shapes"}, "data: .shapes. holds other images than .*cifar10-cpu was made of"),
    ):
        with pytest.raises(ValueError, match=message):
            Study.open("results/cifar10-cpu", **changes)
    assert Study.open("results/cifar10-cpu", width=16, device="cpu", out=str(tmp_path)).out == str(tmp_path)
    with pytest.raises(FileNotFoundError, match="sl-0.*not among the published results"):
        published.network("sl-0")
    with pytest.raises(ValueError, match="profile: expected a folder with a provenance.json"):
        Study.open(tmp_path)
