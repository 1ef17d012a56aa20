from pathlib import Path

import pandas as pd
import pytest

from repsim import data, store
from repsim.study import PROFILES, Study, check_names, profile

SMALL = {"train_images": 200, "test_images": 64, "width": 4, "epochs_sl": 1, "epochs_simclr": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(**SMALL, out=str(tmp_path_factory.mktemp("study") / "runs"))


def test_a_study_makes_every_table_once(study, monkeypatch):
    verdicts = study.verdicts()
    assert [c.id for c in verdicts] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    tables = {name: getattr(study, name)() for name in ("probe", "knn", "retrieval", "contrastive", "factors")}
    assert set(tables["probe"].network) == {*study.names, "pixels"}
    assert {"x", "rotation", "foreground_hue", "shape"} <= set(tables["factors"].factor)
    again = Study(**SMALL, out=study.out)
    for module in ("linear_probe", "knn", "retrieval", "fitted_nt_xent", "factor_probe"):
        monkeypatch.setattr(f"repsim.probes.{module}", None)  # making them again would fail
    monkeypatch.setattr("repsim.cka.compare", None)
    monkeypatch.setattr("repsim.train._train", None)
    assert repr([c.to_dict() for c in again.verdicts()]) == repr([c.to_dict() for c in verdicts])
    for name, table in tables.items():
        pd.testing.assert_frame_equal(getattr(again, name)(), table, check_exact=True)


def test_the_comparison_holds_every_network_its_views_labels_and_pixels(study):
    streams = set(study.comparison().streams)
    assert {"labels", "pixels", *study.names} | {f"{n}@view-{v}" for n in study.names for v in "ab"} == streams


def test_changed_settings_and_changed_images_never_meet_an_old_table(study, tmp_path):
    keys = {study.key}
    for change in ({"epochs_sl": 2}, {"test_images": 96}, {"seeds": 1}, {"recipe": {"momentum": 0.8}}):
        keys.add(Study(**SMALL | change, out=study.out).key)
    assert len(keys) == 5
    assert Study(**SMALL, out=str(tmp_path)).key == study.key


def test_contexts_and_saturation_are_of_the_embedded_images(study):
    images = Study(**SMALL, context=1, saturation=0.0, out=study.out).images
    expected = data.load("shapes", train_images=200, test_images=64, context=1.0, saturation=0.0)
    assert data.summary(images) == data.summary(expected) != study.summary
    with pytest.raises(ValueError, match="context: expected 0, as only shapes have one, got 0.8 with 'cifar10'"):
        Study(data="cifar10", context=0.8)
    with pytest.raises(ValueError, match="saturation: expected a number of 0 to 1, got 1.5"):
        Study(saturation=1.5)


def test_a_claim_is_kept_whole(study):
    claim = study.claim(study.verdicts()[0])
    assert '"verdict"' in (kept := (Path(study.out) / "claims" / "C1.json")).read_text()
    assert claim.id == "C1" and kept.stat().st_size > 100


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
        ({"width": "wide"}, "width: expected int, got 'wide'"),
        ({"width": True}, "width: expected int, got True"),
        ({"width": 6}, "width: .*6"),
        ({"train_images": 0}, "train_images"),
        ({"train_images": 1.5}, r"train_images: expected int \| null, got 1.5"),
        ({"test_images": 4}, "test_images: expected at least 8"),
        ({"seeds": 0}, "seeds"),
        ({"architecture": "vgg"}, "architecture: .*'vgg'"),
        ({"controls": ["sl"]}, "controls: .*'sl'"),
        ({"controls": ["moco"]}, "controls: .*'moco'"),
        ({"recipe": {"speed": 3}}, "recipe: 'speed'"),
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
    Study(**profile(name))


@pytest.mark.parametrize(
    "content, message", [("a: [", "not YAML"), ("- a", "map parameters"), ("speed: 3", "unknown speed")]
)
def test_unusable_profiles_are_refused(content, message, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        profile(file)
    with pytest.raises(ValueError, match="no file .*nothing.*quick"):
        profile("nothing")
    with pytest.raises(ValueError, match="unknown speed.*width"):
        check_names({"speed": 1})


def test_a_damaged_table_is_made_again(study):
    table = study.probe()
    (file,) = [p for p in (Path(study.out) / "tables").glob("probe-pixels-*.csv")]
    file.write_text(file.read_text().replace("0.", "1.", 1))
    with pytest.warns(UserWarning, match="checksum.*made again"):
        pd.testing.assert_frame_equal(study.probe(), table)
    about = store.load_table(file)[1]
    assert about["table"] == "probe-pixels"
    assert about["protocol"] == dict(study.protocol().itertuples(index=False))


def test_the_fingerprint_of_the_images_decides(study):
    images = study.images.train
    other = data.ImageSet(images.images.clone(), images.labels, images.classes)
    other.images[0, 0, 0, 0] ^= 1
    assert data.fingerprint(other) != data.fingerprint(images)


def test_a_network_keeps_its_tables_whatever_other_networks_a_study_has(study, monkeypatch):
    probe = study.probe()
    monkeypatch.setattr("repsim.probes.linear_probe", None)  # making them again would fail
    fewer = Study(**SMALL, seeds=1, out=study.out)
    assert fewer.key != study.key
    kept = probe[probe.network.isin([*fewer.names, "pixels"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(fewer.probe(), kept)
