"""Run the study: every notebook with the parameters of a profile, in order, skipping what is up to date.

    python run_all.py                                   the quick profile, embedded images, a few minutes on two cores
    python run_all.py --profile gpu -p data ~/images -p train_images 5000 -p recipe.simclr.temperature 0.2
    python run_all.py --profile results/cifar10-cpu     published results, drawn from their tables; nothing is trained
    python run_all.py --only 03_divergence              one notebook, and what it needs; --all: the further chapters too
    python run_all.py --minutes 60                      as many seeds as there is time for; the same command goes on
    python run_all.py --plain                           the notebooks' scripts, which need no Jupyter; without figures
    python run_all.py --engine slurm --gpus 1           every notebook as a job of a SLURM cluster
    python run_all.py --publish results/mine            tables and verdicts, copied with their provenance

Leaves OUT/index.html, OUT/claims.json and OUT/notebooks/. A notebook is run again when its source, the
repsim module, its parameters, the images, or a notebook it needs has changed, or when a file of its is gone or damaged.
On CPUs of one kind networks are the same to the last bit for any --jobs and --engine, and in JupyterLab.
"""

from __future__ import annotations

import argparse
import dataclasses
import graphlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# torch, papermill and repsim, which take seconds, are imported where they are needed
ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ROOT / "notebooks"
TRAINING = "01_training"
DIED = "The kernel died (out of memory, or a crash in a native library)."
# A notebook: what it needs, the files below OUT that it leaves, and objectives that it trains beside the study's own.
CHAPTERS = {
    "02_layerwise_comparison": ([TRAINING], ["claims/C1-C2-C3.json"], []),
    "03_divergence": ([TRAINING], ["claims/C4-C5-C6.json"], []),
    "04_implicit_objective": ([TRAINING], ["claims/C7.json"], []),
    "05_is_it_real": ([TRAINING], ["claims/attacks.json"], []),
    "00_overview": (["02_layerwise_comparison", "03_divergence", "04_implicit_objective", "05_is_it_real"], [], []),
}
# Further chapters: run with --all, or where --only names them. Of an objective with a number only that seed is trained.
FAMILIES = [f"{family}-{seed}" for family in ("byol", "barlow", "vicreg", "rotation") for seed in (0, 1)]
LADDER = ["ce_views", "supcon", "nscl", *FAMILIES]
TASKS = ["simclr_sl_middle", "simclr_sl_top", "sl_simclr_middle"]
FURTHER = {
    "06_between_the_objectives": ([TRAINING], ["claims/06.json"], LADDER),
    "07_when_it_happens": ([TRAINING], ["claims/07.json"], []),
    "08_auxiliary_tasks": ([TRAINING], ["claims/08.json"], TASKS),
}


@dataclass(frozen=True, eq=False)
class Job:
    """One execution of a notebook."""

    name: str  # of the job and of the output: "01_training-sl-0", "02_layerwise_comparison"
    source: Path
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()

    def output(self, out: Path) -> Path:
        return out / "notebooks" / f"{self.name}.ipynb"


def jobs(study: Any, parameters: dict[str, Any]) -> dict[str, Job]:
    """All executions of the study by name, the further chapters too, each after what it needs."""
    trained = () if study.artefacts else tuple(name for name in study.names if not name.startswith("untrained-"))
    source, each = NOTEBOOKS / f"{TRAINING}.ipynb", tuple(f"{TRAINING}-{name}" for name in trained)
    plan = [Job(job, source, parameters | {"network": n}, networks=(n,)) for job, n in zip(each, trained)]
    plan.append(Job(TRAINING, source, parameters, each, networks=trained))
    for chapter, (needs, leaves, objectives) in (CHAPTERS | FURTHER).items():
        needed = each if needs == [TRAINING] else tuple(needs)
        more = [o if o[-1].isdigit() else f"{o}-{seed}" for o in objectives for seed in range(study.seeds)]
        networks = () if study.artefacts else (*trained, *more)
        plan.append(Job(chapter, NOTEBOOKS / f"{chapter}.ipynb", parameters, needed, tuple(leaves), networks))
    return {job.name: job for job in plan}


# What an execution depends on, as one hash that the executed notebook carries


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def contents(folder: Path, *patterns: str) -> list[tuple[Path, str]]:
    """Files with hashes of what they hold, in alphabetical order."""
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def image_files(folder: str) -> list[tuple[Path, int, int]]:
    """Files of an image folder with their sizes and times; none if `folder` is the name of an image set."""
    paths = sorted(Path(folder).rglob("*")) if os.path.isdir(folder) else []
    return [(path, status.st_size, status.st_mtime_ns) for path in paths if (status := path.stat()) and path.is_file()]


def states(plan: dict[str, Job], study: Any) -> dict[str, str]:
    """Of each job a hash of all that it depends on."""
    published = contents(Path(study.artefacts), "provenance.json") if study.artefacts else []
    everywhere = [contents(ROOT / "repsim", "*.py"), dataclasses.asdict(study), image_files(study.data), published]
    result: dict[str, str] = {}
    for job in plan.values():
        code = ["".join(cell["source"]) for cell in json.loads(job.source.read_text())["cells"]]
        result[job.name] = digest([everywhere, code, job.parameters, [result[name] for name in job.needs]])
    return result


def outcome(job: Job, out: Path, state: str, notebook: dict[str, Any]) -> str:
    """A hash of what an execution depended on, of the executed notebook and of the files that it left."""
    return digest([state, notebook, contents(out, *job.leaves)])


def up_to_date(job: Job, out: Path, state: str) -> bool:
    """Whether the notebook was executed in this state, and it and the files that it left are as they were left."""
    try:
        notebook = json.loads(job.output(out).read_text())
        return notebook["metadata"].pop("repsim") == outcome(job, out, state, notebook)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def seen(out: str, profile: str, images: str) -> str:
    """A hash of all that a run reads and leaves, but for networks and tables: an equal one says that nothing has changed."""
    read = [*contents(ROOT, "run_all.py", "repsim/*.*", "results/*/provenance.json"), *contents(NOTEBOOKS, "*")]
    left = contents(Path(out), "*.json", "index.html", "notebooks/*", "claims/*.json")
    return digest([read, contents(Path(profile).parent, Path(profile).name), image_files(images), left])


# Execution


def execute(job: Job, out: Path, state: str) -> str | None:
    """Execute one notebook; why it failed, if it did. Its output replaces the old one only when it is whole."""
    import nbformat
    import papermill

    from repsim import store

    options = {"kernel_name": "python3", "cwd": NOTEBOOKS, "progress_bar": False}
    options["extra_arguments"] = ["--IPKernelApp.log_level=CRITICAL"]  # the terminal is for what this program says
    failure = None
    with tempfile.TemporaryDirectory() as scratch:
        executed = Path(scratch) / job.source.name
        for starts_left in (2, 1, 0):
            try:
                papermill.execute_notebook(job.source, executed, job.parameters, **options)
                break
            except papermill.PapermillExecutionError as error:
                failure = f"{error.ename}: {error.evalue}\n  in cell {error.exec_count} of {job.output(out)}"
                break
            except RuntimeError as error:  # two kernels that start at once may choose the same port, and one dies of it
                if not starts_left or "before replying" not in str(error):
                    return DIED if "died" in str(error) else str(error)
        notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:  # progress bars are for the terminal
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" or "\r" not in o.text]
    if failure is None:
        notebook.metadata["repsim"] = outcome(job, out, state, json.loads(nbformat.writes(notebook)))
    store.write(job.output(out), nbformat.writes(notebook) + "\n")
    return failure


def execute_plainly(job: Job, out: Path, state: str) -> str | None:
    """Execute a notebook's script with this job's parameters in the place of its own; what it prints is kept."""
    from repsim import store

    text = job.source.with_suffix(".py").read_text()
    for name, value in job.parameters.items():
        text = re.sub(rf"^{name} = .*$", lambda _, line=f"{name} = {value!r}": line, text, count=1, flags=re.M)
    done = subprocess.run([sys.executable, "-"], input=text, cwd=NOTEBOOKS, capture_output=True, text=True)
    store.write(out / "notebooks" / f"{job.name}.txt", done.stdout)
    if done.returncode < 0:
        return DIED.replace("kernel", "process")
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else None


def run(plan: dict[str, Job], at_a_time: int, work: Callable[[Job], str | None]) -> list[str]:
    """Execute jobs, each after those that it needs, several at a time; the names of those that succeeded.

    What needs a job that failed is not executed.
    """
    order = graphlib.TopologicalSorter({name: set(job.needs) & set(plan) for name, job in plan.items()})
    order.prepare()
    done, reasons, running = [], set(), {}

    def attempt(name: str) -> str | None:
        begun = time.monotonic()
        print(f"{name:32} starts", flush=True)
        try:
            failure = work(plan[name])
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        print(f"{name:32} {'failed' if failure else 'done'} {time.monotonic() - begun:6.0f} s", flush=True)
        return failure

    pool = ThreadPoolExecutor(at_a_time)
    try:
        while running := running | {pool.submit(attempt, name): name for name in order.get_ready()}:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, failure = running.pop(future), future.result()
                if failure:
                    print(f"  {name}: {'the same' if failure in reasons else failure}", file=sys.stderr, flush=True)
                    reasons.add(failure)
                else:
                    order.done(name)
                    done.append(name)
        return done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def collect(plan: dict[str, Job], out: Path, fresh: Iterable[str], shown: Iterable[str]) -> None:
    """claims.json and index.html from what has been executed with these settings, images and sources."""
    from repsim import store

    kept = {file: json.loads((out / file).read_text()) for name in fresh for file in plan[name].leaves}
    attacks = kept.pop("claims/attacks.json", [])
    claims = sorted(sum(kept.values(), []), key=lambda row: (row["id"][0].isdigit(), row["id"]))
    for claim in claims:
        claim["attacks"] = [row for row in attacks if row["row"] == claim["id"]]
    store.write(out / "claims.json", json.dumps(claims, indent=1, allow_nan=False) + "\n")
    for claim in (c for c in claims if c["verdict"] == "not judged"):
        print(f"{claim['id']} is not judged: {claim['reason']}", flush=True)
    if pages := [plan[name].output(out) for name in sorted(shown)]:
        from repsim import report

        stale, banner = set(shown) - set(fresh), claims[0]["learnt"] if claims else ""
        report.write(pages, out / "index.html", stale=stale, claims=claims, banner=banner)


# The command line


def environment(threads: int) -> dict[str, str]:
    """What decides how a notebook's process computes, beside its parameters."""
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    shared = {"OMP_WAIT_POLICY": "PASSIVE", "REPSIM_BATCH": "1", "PYTHONPATH": path}  # others use the cores too
    return dict.fromkeys(libraries, str(threads)) | shared


def cluster(options: argparse.Namespace, out: Path, threads: int) -> Any:
    """Where --engine slurm submits to; None for local processes."""
    asked = {name: getattr(options, name) for name in ("partition", "gpus", "time", "memory")}
    if options.engine == "local":
        for name in asked:
            if asked[name] is not None:
                raise ValueError(f"--{name} {asked[name]}: only with --engine slurm")
        return None
    try:
        from repsim import cluster
    except ImportError as error:
        raise ValueError(f'--engine slurm: {error}; pip install -e ".[cluster]"') from error
    return cluster.Jobs(cluster.slurm(out / "slurm", environment(threads), cpus=threads, **asked))


def positive(text: str) -> float:
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return int(number) if number.is_integer() else number


def arguments(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    add, fields = parser.add_argument, {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    add("--profile", default="quick", metavar="NAME|FILE|DIR", help="a profile, a YAML file, or published results")
    add("-p", **fields, dest="changes", help="a field of the study")
    add("--only", metavar="NOTEBOOK", help="run this notebook and what it needs")
    add("--all", action="store_true", help=f"the further chapters as well: {', '.join(FURTHER)}")
    add("--jobs", type=positive, metavar="N", help="at a time; if not given 1 on a GPU, else up to 4 that have cores")
    add("--minutes", type=positive, metavar="N", help="train as many seeds as there is time for, and draw those")
    add("--force", action="store_true", help="run what is up to date as well (networks are kept)")
    add("--list", action="store_true", help="say what there is and what would run, and stop")
    add("--plain", action="store_true", help="run the notebooks' scripts, which need no Jupyter; figures are left out")
    add("--publish", type=absolute, metavar="DIR", help="when all is done, copy tables and verdicts there")
    add("--out", type=absolute, metavar="DIR", help="where results go; runs/PROFILE if not given")
    add("--engine", choices=["local", "slurm"], default="local", help="where notebooks are executed")
    add("--partition", metavar="NAME", help="of SLURM; the cluster's default if not given")
    add("--gpus", type=positive, metavar="N", help="of SLURM, for a notebook; none if not given")
    add("--time", type=positive, metavar="MINUTES", help="of SLURM, for a notebook; 240 if not given")
    add("--memory", type=positive, metavar="GB", help="of SLURM, for a notebook; the cluster's default if not given")
    options = parser.parse_args(argv)
    if os.sep in options.profile or options.profile.endswith((".yaml", ".yml")):
        options.profile = str(absolute(options.profile))
    return options


def absolute(path: str) -> Path:
    """A path as the shell means it; where there is nothing, as the checkout does."""
    here = Path(path).expanduser().resolve()
    return here if here.exists() or not (ROOT / path).exists() else ROOT / path


def opened(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The study, and the parameters of its notebooks."""
    from repsim.profiles import read_changes
    from repsim.study import Study

    changes = read_changes(options.changes) | ({"out": str(options.out)} if options.out else {})
    if isinstance(changes.get("data"), str) and absolute(changes["data"]).is_dir():
        changes["data"] = str(absolute(changes["data"]))
    return Study.open(options.profile, **changes), {"profile": options.profile, "changes": changes}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = arguments(parser, argv)
    record = (options.out or ROOT / "runs") / f".seen-{digest(vars(options))[:16]}"
    if record.exists() and not (options.force or options.list or options.plain or options.publish):
        kept = json.loads(record.read_text())
        if kept["seen"] == seen(*kept["of"]):
            print(f"0 to run, {kept['jobs']} up to date; read {kept['of'][0]}/index.html")
            return 0
    try:
        study, parameters = opened(options)
        plan, out = jobs(study, parameters), Path(study.out)
        chosen = {name for name, job in plan.items() if options.only in (None, name, job.source.stem)}
        if not chosen:
            raise ValueError(f"--only: expected one of {', '.join(plan)}, got {options.only!r}")
        submit = cluster(options, out, study.threads)
    except ValueError as error:
        parser.error(str(error))
    chosen -= set() if options.all or options.only else set(FURTHER)
    for name in reversed(plan):
        chosen |= set(plan[name].needs) if name in chosen else set()
    state = states(plan, study)
    current = {n for n in plan if not (options.force or options.plain) and up_to_date(plan[n], out, state[n])}
    todo = {name: job for name, job in plan.items() if name in chosen - current}
    if options.list:
        for name in plan:
            unasked = "with --all" if name in FURTHER and not options.all else "to run"
            print(f"{name:32} {'up to date' if name in current else unasked}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    os.environ |= environment(study.threads)
    most = 1 if study.torch_device.type != "cpu" else min(4, (os.cpu_count() or 1) // study.threads)
    at_a_time = len(plan) if submit else options.jobs or max(1, most)
    try:
        networks = list(dict.fromkeys(name for job in todo.values() for name in job.networks))
        if networks:
            _ = study.images  # looked at once, and fetched: the nodes of a cluster may have no network
        if networks and not submit:
            study.train_missing(networks, processes=at_a_time, minutes=options.minutes and 0.75 * options.minutes)
        if options.minutes and (missing := study.missing(networks)):
            whole = min(int(name.rpartition("-")[2]) for name in missing)
            if whole == 0:
                raise RuntimeError(f"{', '.join(missing)}: there was no time for these; the same command goes on")
            return main([*(sys.argv[1:] if argv is None else argv), "-p", "seeds", str(whole)])
        work = execute_plainly if options.plain else execute
        print(f"{len(todo)} notebooks to run, {len(chosen & current)} up to date", flush=True)
        call = submit.call if submit else lambda name, function, *of: function(*of)
        done = run(todo, at_a_time, lambda job: call(job.name, work, job, out, state[job.name]))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"run_all.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is whole is kept, and the same command goes on", file=sys.stderr, flush=True)
        if submit:
            submit.cancel()
        os._exit(130)  # kernels end with this process
    there = {name for name, job in plan.items() if job.output(out).exists()}
    shown = [] if options.plain else [n for n in plan if n in chosen | there and "network" not in plan[n].parameters]
    collect(plan, out, {*done, *current}, shown)  # always: a run may have been killed just before
    print(f"{len(done)} of {len(todo)} run, {len(chosen & current)} up to date; read {out / 'index.html'}")
    if len(done) < len(todo):
        return 1

    from repsim import profiles, store
    from repsim.study import publish

    if options.publish:
        print(publish(study, options.publish))
    source = profiles.located(options.profile)
    of = [str(out), str(source / "provenance.json" if study.artefacts else source), study.data]
    store.write(record, json.dumps({"of": of, "jobs": len(chosen), "seen": seen(*of)}))
    return 0


if __name__ == "__main__":
    from run_all import main  # a module that the jobs of a cluster can import

    sys.exit(main())
