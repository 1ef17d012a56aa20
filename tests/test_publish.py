"""A published study is drawn from its tables alone, and is what it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from repsim import attacks, data, publish, robustness, store
from repsim.study import PLACES, ROOT, Study, check, publication

SETTINGS = {"train_images": 160, "test_images": 96, "width": 4, "epochs_sl": 1, "epochs_simclr": 1, "batch_size": 32}
CONTROLS = ["sl_simclr_views", "random_labels"]
TABLES = ("history", "probe", "knn", "retrieval", "factors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of which all is made that 05 draws, beside a table of other settings, and where it was published."""
    study = Study(**SETTINGS, controls=CONTROLS, device="cpu", out=str(tmp_path_factory.mktemp("made") / "runs"))
    claims, attacked = attacks.verdicts(study)
    attacks.figure_tables(study)
    for name in TABLES:
        getattr(study, name)()
    card = robustness.keep_card(robustness.card(claims, attacked), study.out)
    rows = robustness.with_card(
        [claim.to_dict() for claim in claims], robustness.kept_card(study.out, [c.to_dict() for c in claims])
    )
    store.write(Path(study.out) / "claims.json", json.dumps(rows))  # as run_all.py collects them
    store.write(Path(study.out) / "predictions.json", "[]")
    Study(**SETTINGS | {"epochs_sl": 2}, seeds=1, device="cpu", out=study.out).probe(["sl-0"])
    assert len(card) and study.images.name == "shapes"  # loaded here, before a test puts them out of reach
    return study, publish.publish(study, Path(study.out) / "published")


@pytest.fixture
def published(made, tmp_path, monkeypatch):
    """A copy of the published folder; networks and images are out of reach."""
    shutil.copytree(made[1], tmp_path / "published")
    for thing in ("train.train", "data.load"):
        monkeypatch.setattr(f"repsim.{thing}", None)
    return tmp_path / "published"


def test_everything_drawn_is_among_the_published_tables(made, published, tmp_path):
    study = Study.open(published, out=str(tmp_path / "out"))
    assert (study.basis(), study.names, study.width) == (made[0].basis(), made[0].names, 4)
    before, after = (attacks.verdicts(s) for s in (made[0], study))
    assert [repr(c.to_dict()) for c in before[0]] == [repr(c.to_dict()) for c in after[0]]
    pd.testing.assert_frame_equal(robustness.card(*before), robustness.card(*after))
    assert "data = " not in study.colophon().how.str.cat()  # it would be of the images, and they are the published ones
    attacks.figure_tables(study)
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(study, name)(), getattr(made[0], name)(), check_exact=True)
    assert not list((published / "tables").glob(".*")) and not (tmp_path / "out" / "tables").exists()


def test_what_a_publication_lacks_is_said(published, tmp_path):
    study = Study.open(published, out=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="probe-other.*no such table among the published results"):
        study.table("probe-other", lambda: None)
    with pytest.raises(FileNotFoundError, match="sl-0.*no such network among the published results"):
        study.network("sl-0")


def test_published_results_take_their_own_images_and_networks(made, tmp_path, monkeypatch):
    folder = tmp_path / "published"
    shutil.copytree(made[1], folder)
    study = Study.open(folder, data="shapes", out=str(tmp_path / "out"))  # the default of embedded images
    assert data.summary(study.images).fingerprints == made[0].summary.fingerprints
    shutil.copytree(Path(made[0].out) / "networks", folder / "networks")
    monkeypatch.setattr("repsim.train.train", None)
    state = made[0].network("simclr-1").model.state_dict()
    assert all(value.equal(state[name]) for name, value in study.network("simclr-1").model.state_dict().items())
    other = json.loads((folder / "provenance.json").read_text())
    other["images"]["fingerprints"][0] = "0" * 64
    (folder / "provenance.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="data: shapes holds other images than .*published was made of"):
        Study.open(folder, data="shapes", out=str(tmp_path / "out"))


def test_the_provenance_says_how_it_was_made(made):
    kept = check(made[1])
    assert kept["parameters"]["train_images"] == 160 and not set(PLACES) & set(kept["parameters"])
    assert set(kept["training_seconds"]) == set(made[0].names) and kept["basis"] == made[0].basis()
    assert {"torch", "python"} <= set(kept["versions"]) and kept["commit"] and kept["hardware"]
    files = {str(path.relative_to(made[1])) for path in made[1].rglob("*") if path.is_file()}
    assert files == {*kept["checksums"], "provenance.json"} and {"claims.json", "card.json"} < files
    own = {path.name for path in (Path(made[0].out) / "tables").glob("*.*") if not path.name.startswith(".")}
    other = own - {Path(name).name for name in files}
    assert len(other) == 1 and other.pop().startswith("probe-sl-0-"), "all but the table of other settings"
    assert kept["seconds"]["cka"] >= 0
    basis, verdicts = publish.published(made[1])
    assert basis == made[0].basis() and [v.id for v in verdicts] == [f"C{i}" for i in range(1, 8)]


@pytest.mark.parametrize("harm", ["altered", "truncated", "deleted"])
def test_a_damaged_publication_is_refused_by_name(harm, published):
    (victim,) = (published / "tables").glob("cka-*")
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-9] if harm == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1]))
    if harm == "deleted":
        victim.unlink()
    for read in (check, Study.open):
        with pytest.raises(ValueError, match=f"{victim.name} is missing or not what was published"):
            read(published)


def test_a_folder_that_is_no_publication_is_refused(tmp_path):
    for make in (publication, check, Study.open):
        with pytest.raises(ValueError, match="profile: expected a folder with a provenance.json"):
            make(tmp_path)
    assert publish.published(tmp_path) is None


def test_run_all_draws_the_notebooks_from_a_publication(made, tmp_path):
    out = tmp_path / "drawn"
    command = [sys.executable, str(ROOT / "run_all.py"), "--profile", str(made[1]), "--out", str(out)]
    refused = subprocess.run([*command, "-p", "width", "8"], capture_output=True, text=True)
    assert refused.returncode == 2 and "width: 8 is asked for, but" in refused.stderr and not out.exists()
    done = subprocess.run([*command, "--only", "00_overview"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "claims.json").read_text()) == json.loads((made[1] / "claims.json").read_text())
    assert not (out / "networks").exists() and (out / "index.html").stat().st_size > 1_000_000


def test_run_all_publishes_what_it_made(made, tmp_path):
    """What there is of a study is found by its settings, so no notebook has to run again for that."""
    code = "import run_all; run_all.CHAPTERS = run_all.FURTHER = {}; run_all.TRAINING = 'none'; "
    (tmp_path / "none.py").write_text("")
    (tmp_path / "none.ipynb").write_text('{"cells": []}')
    code += f"import pathlib, sys; run_all.NOTEBOOKS = pathlib.Path({str(tmp_path)!r}); sys.exit(run_all.main(sys.argv[1:]))"
    fields = [text for name, value in SETTINGS.items() for text in ("-p", name, str(value))]
    options = ["--plain", "--out", made[0].out, *fields, "-p", "controls", str(CONTROLS), "-p", "seeds", "2"]
    command = [sys.executable, "-c", code, *options, "-p", "device", "cpu", "--publish", str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    names = {path.name for path in (tmp_path / "again" / "tables").iterdir()}
    assert names == {path.name for path in (made[1] / "tables").iterdir()} and check(tmp_path / "again")


def test_a_summary_says_what_the_images_are(made):
    study, summary = made[0], made[0].summary
    assert (summary.train, summary.test, summary.factors) == (160, 96, True)
    assert summary.fingerprints == tuple(
        data.fingerprint(part) for part in (study.images.train, study.images.validation, study.images.test)
    )
