"""A published study is drawn from its tables alone, and is what it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from repsim import claims, data, store
from repsim.profiles import ROOT, publication
from repsim.study import PLACES, Study, publish

SETTINGS = {"train_images": 160, "test_images": 200, "image_size": 16, "width": 4, "epochs_sl": 1, "epochs_simclr": 1}
SETTINGS |= {"batch_size": 32, "seeds": 2, "controls": ["sl_simclr_views"], "device": "cpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of which all is made that the claims rest on, beside a table of other settings, and where it was published."""
    study = Study(**SETTINGS, out=str(tmp_path_factory.mktemp("made") / "runs"))
    study.judge(*claims.CLAIMS)
    study.per_network("history", study.names, lambda n: study.network(n).history), study.readings("pixels")
    kept = json.loads((Path(study.out) / "claims" / "C1-C2-C3-C4-C5-C6-C7.json").read_text())
    store.write(Path(study.out) / "claims.json", json.dumps([row | {"attacks": []} for row in kept]))
    Study(**SETTINGS | {"epochs_sl": 2, "seeds": 1}, out=study.out).readings("sl-0")
    return study, publish(study, Path(study.out) / "published")


@pytest.fixture
def published(made, tmp_path, monkeypatch):
    """A copy of the published folder; networks and images are out of reach."""
    shutil.copytree(made[1], tmp_path / "published")
    for thing in ("train.train", "data.load"):
        monkeypatch.setattr(f"repsim.{thing}", None)
    return tmp_path / "published"


def test_everything_is_among_the_published_tables(made, published, tmp_path):
    study = Study.open(published, out=str(tmp_path / "out"))
    assert (study.basis(), study.names, study.width) == (made[0].basis(), made[0].names, 4)
    before, after = ([c.to_dict() for c in s.judge()] for s in (made[0], study))
    assert [c["verdict"] for c in before] == [c["verdict"] for c in after] == [claims.NOT_JUDGED] * 7
    for one, other in zip(before, after):
        for p, q in zip(one["parts"], other["parts"]):
            assert (p["estimate"] is None) == (q["estimate"] is None)
            assert p["estimate"] is None or np.isclose(p["estimate"], q["estimate"], atol=1e-6)
    assert study.accuracy() == pytest.approx(made[0].accuracy())
    one, other = (s.per_network("history", made[0].names, lambda n: 1 / 0) for s in (study, made[0]))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert not list((published / "tables").glob(".*")) and not (tmp_path / "out" / "tables").exists()


def test_readings_are_each_images_where_they_were_made_and_by_fold_where_they_are_published(made):
    study, folder = made
    (own,), (public,) = (sorted(Path(p).glob("readings-sl-1-*")) for p in (f"{study.out}/tables", folder / "tables"))
    each, folded = store.load_tensors(own)[0], store.load_tensors(public)[0]
    assert each["probe"].shape[0] == 200 and folded["probe"].shape[0] == 20
    mean = (folded["probe"] * folded["images"][:, None]).sum(0) / 200
    assert np.allclose(mean, each["probe"].double().mean(0), atol=1e-6)
    assert public.stat().st_size < own.stat().st_size / 3


def test_provenance_says_what_was_made_and_how(made):
    about = publication(made[1])
    assert about["parameters"]["width"] == 4 and not set(about["parameters"]) & set(PLACES)
    assert about["images"]["test"] == 200 and about["commit"] and about["versions"]["torch"]
    assert set(about["training_seconds"]) >= {"sl-0", "simclr-1"} and about["basis"] == made[0].basis()


def test_published_images_are_out_of_reach_unless_they_are_given(published, tmp_path, monkeypatch):
    study = Study.open(published, out=str(tmp_path))
    with pytest.raises(ValueError, match="width: 8 is asked for, but .* was made with 4"):
        Study.open(published, width=8)
    monkeypatch.undo()
    assert study.summary.name == "shapes" and [*data.summary(study.images).fingerprints] == study.summary.fingerprints


def test_damaged_published_files_are_named(published):
    path = next((published / "tables").glob("readings-sl-0-*"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{path.name} is missing or not what was published"):
        publication(published)


def test_only_folders_with_a_provenance_are_published_results():
    with pytest.raises(ValueError, match="provenance.json"):
        publication(ROOT / "docs")
