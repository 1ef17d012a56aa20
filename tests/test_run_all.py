import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil  # of ipykernel
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
run_all = __import__("run_all")
from repsim.study import Study  # noqa: E402

PARAMETERS = 'profile = "quick"\nchanges = {}'
OUT = "import json, pathlib\nout = pathlib.Path(changes['out'])\n"
CLAIM = """
import json, pathlib
folder = pathlib.Path(changes["out"]) / "claims"
folder.mkdir(parents=True, exist_ok=True)
claim = {"id": "%s", "statement": "s", "basis": "b", "verdict": "undecided", "reason": "", "learnt": "l", "parts": []}
(folder / "%s.json").write_text(json.dumps([claim]))
"""


def notebook(folder, name, code, extra=""):
    new = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    )
    first = nbformat.v4.new_code_cell(PARAMETERS + extra, metadata={"tags": ["parameters"]})
    new.cells = [nbformat.v4.new_markdown_cell(f"# {name}"), first, nbformat.v4.new_code_cell(code)]
    nbformat.write(new, folder / f"{name}.ipynb")


@pytest.fixture(autouse=True)
def environment_is_put_back(monkeypatch):
    """`run_all.main` says in this process's environment how many threads a kernel has; later tests start processes too."""
    for name, value in run_all.environment(1).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Notebooks that only leave a trace: train <- a <- c, train <- b; and a further chapter, train <- d."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    trace = f"open({str(tmp_path / 'trace')!r}, 'a').write(%r + '\\n')\n"
    notebook(notebooks, "01_training", trace % "train", '\nnetwork = ""')
    notebook(notebooks, "a", trace % "a" + CLAIM % ("C1", "C1"))
    notebook(notebooks, "b", trace % "b" + CLAIM % ("C2", "C2"))
    notebook(notebooks, "c", trace % "c")
    notebook(notebooks, "d", trace % "d" + CLAIM % ("6.1", "d"))
    monkeypatch.setattr(run_all, "FURTHER", {"d": (["01_training"], ["claims/d.json"], ["supcon", "byol-0"])})
    monkeypatch.setattr(run_all, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(
        run_all,
        "CHAPTERS",
        {
            "a": (["01_training"], ["claims/C1.json"], []),
            "b": (["01_training"], ["claims/C2.json"], []),
            "c": (["a"], [], []),
        },
    )
    profile = tmp_path / "p.yaml"
    profile.write_text("seeds: 1\nwidth: 8\ntrain_images: 32\ntest_images: 16\nbatch_size: 16\n")
    trained = []
    monkeypatch.setattr(Study, "train_missing", lambda self, names, **how: trained.append((names, how)))

    def run(*options):
        (tmp_path / "trace").write_text("")
        code = run_all.main(["--profile", str(profile), "--out", str(tmp_path / "out"), *options])
        return code, sorted((tmp_path / "trace").read_text().split())

    run.folder, run.notebooks, run.out, run.trained = tmp_path, notebooks, tmp_path / "out", trained
    return run


def test_runs_once_and_then_only_what_changed(project):
    assert project() == (0, ["a", "b", "c", "train", "train", "train"])
    assert [c["id"] for c in json.loads((project.out / "claims.json").read_text())] == ["C1", "C2"]
    written = (project.out / "index.html").stat().st_mtime_ns
    assert project() == (0, []) and (project.out / "index.html").stat().st_mtime_ns == written
    (project.out / "claims" / "C2.json").write_text("{")  # a verdict is damaged
    assert project() == (0, ["b"])
    source = project.notebooks / "a.ipynb"
    source.write_text(source.read_text().replace("'a' + ", "'a' + '' + "))
    assert project() == (0, ["a", "c"])
    assert project("-p", "width", "4")[1] == ["a", "b", "c", "train", "train", "train"]
    assert project("--force", "--only", "b", "-p", "width", "4")[1] == ["b", "train", "train"]


def test_what_is_damaged_or_gone_is_made_again(project):
    project()
    whole = {path: path.read_bytes() for path in project.out.rglob("*") if path.is_file()}

    def changed(name):
        return whole[project.out / name].replace(b"undecided", b"undecideD").replace(b"# a", b"# A")

    damages = [
        ("claims/C2.json", changed("claims/C2.json"), ["b"]),  # still a claim
        ("notebooks/a.ipynb", changed("notebooks/a.ipynb"), ["a"]),  # still a notebook
        *(
            (name, damage, [])
            for name in ("claims.json", "index.html")
            for damage in (whole[project.out / name][:-9], None)
        ),
    ]
    for name, damaged, again in damages:
        path = project.out / name
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        assert project() == (0, again), name
        # an executed notebook holds times, and the report a checksum of those
        made, before = (re.sub(rb"\b[0-9a-f]{64}\b", b"", content) for content in (path.read_bytes(), whole[path]))
        assert again == ["a"] or made == before, name


@pytest.fixture(params=["in order", "two at a time", "submitit", "slurm"])
def engine(request, monkeypatch):
    """The options of every way to execute notebooks. "submitit" is its executor of local processes in place of SLURM's."""
    if request.param in ("in order", "two at a time"):
        return ["--jobs", "1" if request.param == "in order" else "2"]
    submitit = pytest.importorskip("submitit", reason='no submitit here: pip install -e ".[cluster]"')
    if request.param == "submitit":
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setattr("repsim.cluster.slurm", lambda folder, *_, **__: submitit.LocalExecutor(folder / "%j"))
    elif not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True).returncode != 0:
        pytest.skip("no SLURM here: tests/slurm/start.sh sets one up")
    return ["--engine", "slurm"]


def test_a_failure_stops_what_depends_on_it_and_nothing_else(project, engine, capfd):
    good = (project.notebooks / "a.ipynb").read_text()
    notebook(project.notebooks, "a", "x = 1\nraise RuntimeError('no more disk')")
    code, ran = project(*engine)
    assert code != 0 and ran == ["b", "train", "train", "train"]
    assert "no more disk" in capfd.readouterr().err
    kept = json.loads((project.out / "notebooks" / "a.ipynb").read_text())
    assert any(o["output_type"] == "error" for c in kept["cells"] for o in c.get("outputs", []))
    (project.notebooks / "a.ipynb").write_text(good)
    assert project(*engine) == (0, ["a", "c"])
    out = capfd.readouterr().out
    assert re.search(r"^c +done", out, re.M) and "2 of 2 run, 4 up to date" in out


def test_a_kernel_that_dies_in_the_middle_is_said_and_leaves_what_was_there(project, capfd):
    project()
    whole = (project.out / "notebooks" / "a.ipynb").read_bytes()
    notebook(project.notebooks, "a", "import os\nos.kill(os.getpid(), 9)")
    code, ran = project()
    assert code != 0 and ran == []
    page = (project.out / "index.html").read_text()
    assert "was executed with other settings, images or sources" in page and 'id="C2"' in page and 'id="C1"' not in page
    notebook(project.notebooks, "b", "import os\nos.kill(os.getpid(), 9)")
    assert project()[1] == []
    assert capfd.readouterr().err.count(": it died (out of memory, or a crash in a native library)") == 3
    assert (project.out / "notebooks" / "a.ipynb").read_bytes() == whole


def test_verdicts_of_other_settings_are_not_mixed_into_the_report(project):
    project()
    project("--only", "b", "-p", "width", "4")
    assert [c["id"] for c in json.loads((project.out / "claims.json").read_text())] == ["C2"]
    assert (project.out / "index.html").read_text().count("was executed with other settings") == 3, "01, a and c"
    assert project() == (0, ["b", "train", "train"])
    assert [c["id"] for c in json.loads((project.out / "claims.json").read_text())] == ["C1", "C2"]


def test_list_says_what_would_run_and_runs_nothing(project, capfd):
    assert project("--list") == (0, [])
    listed = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    names = ["01_training-sl-0", "01_training-simclr-0", "01_training", "a", "b", "c"]
    assert listed == dict.fromkeys(names, "to run") | {"d": "with --all"}
    project("--only", "a")
    project("--list")
    listed = dict(
        line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines() if "to run" in line or "date" in line
    )
    assert listed["a"] == "up to date" and listed["b"] == "to run"


def test_further_chapters_run_when_asked_for_and_stay_in_the_report(project, capfd):
    assert project() == (0, ["a", "b", "c", "train", "train", "train"])
    assert [c["id"] for c in json.loads((project.out / "claims.json").read_text())] == ["C1", "C2"]
    assert project("--all") == (0, ["d"]) and project("--all") == (0, [])
    assert [c["id"] for c in json.loads((project.out / "claims.json").read_text())] == ["C1", "C2", "6.1"]
    assert project() == (0, []) and 'id="d"' in (project.out / "index.html").read_text()
    (project.out / "claims" / "d.json").unlink()
    assert project("--only", "d") == (0, ["d"])
    capfd.readouterr()
    project("--list", "--all")
    assert re.search(r"^d +up to date", capfd.readouterr().out, re.M)


def test_every_chapter_is_there_with_what_it_trains(tmp_path):
    plan = run_all.jobs(Study.open("quick", seeds=1, out=str(tmp_path)), {})
    own = [name for name in Study.open("quick", seeds=1).names if not name.startswith("untrained")]
    assert all(job.source.exists() for job in plan.values()) and plan["01_training-sl-0"].networks == ["sl-0"]
    assert plan["02_layerwise_comparison"].networks == own and "sl-0" in own
    for name in ("06_between_the_objectives", "07_when_it_happens", "08_auxiliary_tasks"):
        assert plan[name].needs == [f"01_training-{network}" for network in own]
    rungs = ("ce_views-0", "supcon-0", "nscl-0")
    families = ("byol-0", "byol-1", "barlow-0", "barlow-1", "vicreg-0", "vicreg-1", "rotation-0", "rotation-1")
    assert plan["06_between_the_objectives"].networks == [*own, *rungs, *families]


def test_networks_are_trained_before_the_notebooks_and_only_those_that_they_need(project, monkeypatch):
    monkeypatch.setattr(Study, "missing", lambda self, names: [])
    project("--only", "01_training-sl-0", "--jobs", "1")
    project("--jobs", "2", "--minutes", "60")
    assert project("--all") == (0, ["d"])
    assert project.trained == [
        (["sl-0"], {"processes": 1, "minutes": None}),
        (["simclr-0", "sl-0"], {"processes": 2, "minutes": 45}),
        (["sl-0", "simclr-0", "supcon-0", "byol-0"], {"processes": pytest.approx(2, abs=2), "minutes": None}),
    ]


def test_where_time_ends_whole_seeds_are_drawn(project, monkeypatch, capfd):
    """The networks of seed 0 are there, of seed 1 one is missing."""
    missing = ["simclr-1"]
    monkeypatch.setattr(Study, "missing", lambda self, names: [name for name in missing if name in names])
    assert project("-p", "seeds", "2", "--minutes", "1") == (0, ["a", "b", "c", "train", "train", "train"])
    missing = ["sl-0", "sl-1"]
    with pytest.raises(SystemExit):
        project("-p", "seeds", "2", "--minutes", "1", "--force")
    assert "sl-0, sl-1: there was no time for these" in capfd.readouterr().err


def test_images_are_looked_at_once_before_anything_runs(project, capfd):
    with pytest.raises(SystemExit):
        project("-p", "data", str(project.folder))
    error = capfd.readouterr().err
    assert error.count("run_all.py: error") == error.count("train/CLASS") == 1 and not project.trained


def test_scripts_run_without_jupyter_and_what_they_leave_is_collected(project, monkeypatch, capfd):
    blocked = (
        "import sys\nfor n in ('altair', 'IPython', 'papermill', 'nbformat', 'ipykernel'): sys.modules[n] = None\n"
    )
    (project.folder / "blocked").mkdir()
    (project.folder / "blocked" / "sitecustomize.py").write_text(blocked)
    monkeypatch.setenv("PYTHONPATH", str(project.folder / "blocked"))
    cells = """# %% tags=["parameters"]
profile = "none"  # str: another comment
changes = {}

# %%
from repsim.study import Study
print(Study.open(profile, **changes).width, "\\d")
"""
    scripts = {name: cells + CLAIM % (claim, claim) for name, claim in (("a", "C1"), ("b", "C2"))}
    scripts |= {"01_training": "network = 1\nprint(network)", "c": "raise RuntimeError('no more disk')"}
    for name, script in scripts.items():
        (project.notebooks / f"{name}.py").write_text(script)
    code = f"""{blocked}
import runpy, pathlib, run_all
run_all.NOTEBOOKS = pathlib.Path({str(project.notebooks)!r})
run_all.CHAPTERS, run_all.FURTHER = {run_all.CHAPTERS!r}, {{}}
sys.exit(run_all.main(sys.argv[1:]))
"""
    options = ["--plain", "--profile", str(project.folder / "p.yaml"), "--out", str(project.out)]
    environment = os.environ | {"PYTHONPATH": f"{project.folder / 'blocked'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "-p", "epochs_sl", "1", "-p", "epochs_simclr", "1"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "c: RuntimeError: no more disk" in done.stderr and "5 of 6 run" in done.stdout
    printed = {path.stem: path.read_text() for path in (project.out / "notebooks").glob("*.txt")}
    assert printed["a"] == "8 \\d\n" and printed["01_training-sl-0"] == "sl-0\n" and printed["01_training"] == "1\n"
    assert [c["id"] for c in json.loads((project.out / "claims.json").read_text())] == ["C1", "C2"]
    assert list((project.out / "networks").glob("simclr-0-*.safetensors"))


def test_a_killed_run_leaves_no_process_behind(project):
    """Neither a kernel nor a training."""
    started = OUT + "(out / network).touch()\nimport time\ntime.sleep(600)"
    notebook(project.notebooks, "01_training", started, '\nnetwork = ""')
    for options, ready in (
        (["-p", "epochs_sl", "0", "-p", "epochs_simclr", "0"], lambda: (project.out / "sl-0").exists()),
        (["-p", "epochs_sl", "9999"], lambda: list((project.out / "networks").glob("*.checkpoint"))),
    ):
        code = f"import run_all, pathlib; run_all.NOTEBOOKS = pathlib.Path({str(project.notebooks)!r}); "
        code += "run_all.CHAPTERS = run_all.FURTHER = {}; "
        command = ["--profile", str(project.folder / "p.yaml"), "--out", str(project.out), "--jobs", "2", *options]
        running = psutil.Popen([sys.executable, "-c", code + f"run_all.main({command!r})"], cwd=ROOT)
        while not ready():
            assert running.poll() is None
            time.sleep(0.1)
        children = running.children(recursive=True)
        assert children
        running.kill()
        left = psutil.wait_procs([running, *children], timeout=60)[1]
        for process in left:
            process.kill()
        assert left == []


@pytest.mark.parametrize(
    "options, message",
    [
        (["--profile", "nowhere"], "profile: no file"),
        (["-p", "widht", "3"], "parameter: expected .*'widht' .did you mean width"),
        (["-p", "width", "wide"], "width: expected int, got 'wide'"),
        (["-p", "width", "["], "while parsing"),
        (["-p", "recipe", "{simclr: {temperature: 0}}"], "temperature"),
        (["--only", "99_nothing"], "--only: .*99_nothing"),
        (["--jobs", "0"], "--jobs"),
        (["--minutes", "-1"], "--minutes"),
        (["-p", "threads", "-1"], "threads: .*-1"),
        (["--engine", "cloud"], "--engine: invalid choice: 'cloud'"),
        (["--gpus", "1"], "--gpus 1: only with --engine slurm"),
        (["--engine", "slurm", "--time", "0"], "--time"),
    ],
)
def test_unusable_requests_are_refused_before_anything_runs(options, message, project, capfd):
    with pytest.raises(SystemExit) as stop:
        project(*options)
    assert stop.value.code and not project.out.exists()
    assert re.search(message, capfd.readouterr().err)


def test_slurm_is_refused_where_it_cannot_be(project, capfd, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "submitit", None)
        without.delitem(sys.modules, "repsim.cluster", raising=False)
        without.delattr("repsim.cluster", raising=False)
        with pytest.raises(SystemExit):
            project("--engine", "slurm")
    assert 'pip install -e ".[cluster]"' in capfd.readouterr().err
    pytest.importorskip("submitit", reason='no submitit here: pip install -e ".[cluster]"')
    monkeypatch.setenv("PATH", str(project.folder))
    with pytest.raises(SystemExit):
        project("--engine", "slurm")
    assert "no sbatch here" in capfd.readouterr().err and not project.out.exists()


PAPERMILL = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["-y", "changes: {wdith: 3}"], "parameter: expected .*'wdith' .did you mean width"),
        (["-y", "changes: {width: wide}"], "width: expected int, got 'wide'"),
        (["-p", "width", "16"], "width: this notebook has no such parameter.*changes: {'width': ...}"),
        (["-p", "profile", "qiuck"], "profile: no file .*did you mean quick"),
    ],
)
def test_plain_papermill_refuses_what_the_study_does_not_have_in_the_first_cell(options, message, tmp_path):
    cells = "from repsim.study import Study\nstudy = Study.open(profile, **changes)"
    notebook(tmp_path, "n", cells)
    done = subprocess.run(
        [*PAPERMILL, str(tmp_path / "n.ipynb"), str(tmp_path / "done.ipynb"), *options], capture_output=True, text=True
    )
    assert (
        done.returncode != 0 and re.search(message, done.stderr) and "In [2]" in done.stderr or "In [3]" in done.stderr
    )


def test_a_real_notebook_runs_with_plain_papermill_and_a_profile_file(tmp_path):
    """The smallest possible study through the notebook that needs least."""
    (tmp_path / "micro.yaml").write_text(
        "data: shapes\ntrain_images: 64\ntest_images: 64\nwidth: 4\nepochs_sl: 1\nepochs_simclr: 1\nbatch_size: 32\n"
        f"out: {tmp_path / 'runs' / 'micro'}\nrecipe: {{learning_rate: 0.5}}\n"
    )
    command = [
        *PAPERMILL,
        "01_training.ipynb",
        str(tmp_path / "done.ipynb"),
        "-p",
        "profile",
        str(tmp_path / "micro.yaml"),
    ]
    done = subprocess.run(
        [*command, "-p", "network", "sl-0"],
        cwd=ROOT / "notebooks",
        env=os.environ | {"TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "runs" / "micro" / "networks").glob("sl-0-*.safetensors"))


def test_slow_attacks_are_made_with_all_and_drawn_where_they_are_published():
    asked = {}
    for profile, slow in (("quick", True), ("quick", False), ("results/quick", False)):
        plan = run_all.jobs(Study.open(profile), {"profile": profile}, slow)
        asked[profile, slow] = plan["05_is_it_real"].parameters.get("slow", "as in the notebook")
    assert list(asked.values()) == ["as in the notebook", False, "as in the notebook"]
    assert "\nslow = True  # bool" in (ROOT / "notebooks" / "05_is_it_real.py").read_text()
