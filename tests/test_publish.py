"""A published study is drawn from its tables alone, and is what it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from repsim import attacks, data, publish, robustness
from repsim.study import Study, publication

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"train_images": 160, "test_images": 96, "width": 4, "epochs_sl": 1, "epochs_simclr": 1, "batch_size": 32}
CONTROLS = ["sl_simclr_views", "random_labels"]
TABLES = ("history", "probe", "knn", "retrieval", "factors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study with everything made by the command, without altair or jupyter, and where it was published."""
    out = tmp_path_factory.mktemp("made") / "runs"
    profile = out.parent / "p.yaml"
    profile.write_text("\n".join(f"{name}: {value}" for name, value in {**SETTINGS, "controls": CONTROLS}.items()))
    blocked = "import sys\nfor n in ('altair', 'IPython', 'papermill', 'nbformat'): sys.modules[n] = None\n"
    code = blocked + "import runpy; runpy.run_module('repsim.study', run_name='__main__')"
    command = [sys.executable, "-c", code, "make", "--profile", str(profile), "--out", str(out)]
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=out.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    study = Study(**SETTINGS, controls=CONTROLS, out=str(out))
    assert study.images.name == "shapes"  # loaded here, before a test puts them out of reach
    return study, out / "published"


@pytest.fixture
def published(made, tmp_path, monkeypatch):
    """A copy of the published folder; networks and images are out of reach."""
    shutil.copytree(made[1], tmp_path / "published")
    for thing in ("train.train", "data.load"):
        monkeypatch.setattr(f"repsim.{thing}", None)
    return tmp_path / "published"


def test_everything_drawn_is_among_the_published_tables(made, published, tmp_path):
    study = Study(artefacts=str(published), out=str(tmp_path / "out"))
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
    study = Study(artefacts=str(published), out=str(tmp_path))
    with pytest.raises(RuntimeError, match="images: not part of the published artefacts.*set artefacts to null"):
        study.images  # noqa: B018
    with pytest.raises(FileNotFoundError, match="probe-other.*no such table"):
        study.table("probe-other", lambda: None)


def test_the_provenance_says_how_it_was_made(made):
    kept = publish.check(made[1])
    assert kept["parameters"]["train_images"] == 160 and not set(publish.PLACES) & set(kept["parameters"])
    assert set(kept["training_seconds"]) == set(made[0].names) and kept["basis"] == made[0].basis()
    assert {"torch", "python"} <= set(kept["versions"]) and kept["commit"] and kept["hardware"]
    assert "claims.json" in kept["checksums"] and len(kept["checksums"]) == 2 + len(
        list((made[1] / "tables").iterdir())
    )
    claims = json.loads((made[1] / "claims.json").read_text())
    assert all(claim["attacks"] for claim in claims)
    basis, verdicts = publish.published(made[1])
    assert basis == made[0].basis() and [v.id for v in verdicts] == [f"C{i}" for i in range(1, 8)]


@pytest.mark.parametrize("harm", ["altered", "truncated", "deleted"])
def test_a_damaged_publication_is_refused_by_name(harm, published):
    (victim,) = (published / "tables").glob("cka-*")
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-9] if harm == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1]))
    if harm == "deleted":
        victim.unlink()
    with pytest.raises(ValueError, match=f"{victim.name} is missing or not what was published"):
        publish.check(published)


def test_a_folder_that_is_no_publication_is_refused(tmp_path):
    for make in (publication, publish.check, lambda f: Study(artefacts=str(f))):
        with pytest.raises(ValueError, match="artefacts: expected a folder with a provenance.json"):
            make(tmp_path)
    assert publish.published(tmp_path) is None


def test_run_all_draws_the_notebooks_from_a_publication(made, tmp_path):
    out = tmp_path / "drawn"
    command = [sys.executable, str(ROOT / "run_all.py"), "--profile", str(made[1].parent.parent / "p.yaml")]
    command += ["--artefacts", str(made[1]), "--out", str(out), "-p", "data", "cifar10"]  # which is not asked for
    refused = subprocess.run([*command, "-p", "width", "8"], capture_output=True, text=True)
    assert refused.returncode == 2 and "width: 8 is asked for, but" in refused.stderr and not out.exists()
    done = subprocess.run([*command, "--only", "00_overview"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "claims.json").read_text()) == json.loads((made[1] / "claims.json").read_text())
    assert not (out / "networks").exists() and (out / "index.html").stat().st_size > 1_000_000


def test_a_summary_says_what_the_images_are(made):
    study, summary = made[0], made[0].summary
    assert (summary.train, summary.test, summary.factors) == (160, 96, True)
    assert summary.fingerprints == tuple(
        data.fingerprint(part) for part in (study.images.train, study.images.validation, study.images.test)
    )


def test_unusable_requests_are_refused(capsys):
    for arguments, message in (
        (["make", "--profile", "nowhere", "--out", "x"], "no file"),
        (["make", "--profile", "quick", "--out", "x", "-p", "width", "["], "not YAML"),
        (["make", "--profile", "quick", "--out", "x", "-p", "speed", "3"], "unknown speed"),
    ):
        with pytest.raises(SystemExit):
            publish.main(arguments)
        assert message in capsys.readouterr().err
