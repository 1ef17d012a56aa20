"""Run the study: every notebook with the parameters of a profile, in order, skipping what is up to date.

    python run_all.py                                   the quick profile, embedded images, a few minutes on two cores
    python run_all.py --profile cifar10 -p data ~/cifar10 -p train_images 5000
    python run_all.py --only 03_divergence              one notebook, and what it needs
    python run_all.py --all                             the further chapters, 06 to 08, as well
    python run_all.py --jobs 1                          one notebook at a time
    python run_all.py --engine slurm --gpus 1           every notebook as a job of a SLURM cluster
    python run_all.py --list                            what there is and what would run

Leaves OUT/index.html, OUT/claims.json, OUT/predictions.json and OUT/notebooks/. A notebook is run again when its source, the
repsim module, its parameters, the images, or a notebook it needs has changed, or when a file of its is gone or damaged.
On CPUs of one kind the results are the same to the last bit for any --jobs and --engine: only --threads changes them.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import papermill
import torch
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
from papermill.engines import NBClientEngine, papermill_engines

from repsim import data, publish, report, robustness, store, study
from repsim.study import Study

if TYPE_CHECKING:
    from repsim.cluster import Jobs  # needs submitit, which only --engine slurm does

ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ROOT / "notebooks"
TRAINING = "01_training"
# A notebook, what it needs, and the files below OUT that it leaves.
CHAPTERS = {
    "02_layerwise_comparison": ([TRAINING], ["claims/C1.json", "claims/C2.json", "claims/C3.json"]),
    "03_divergence": ([TRAINING], ["claims/C4.json", "claims/C5.json", "claims/C6.json"]),
    "04_implicit_objective": ([TRAINING], ["claims/C7.json"]),
    "05_is_it_real": ([TRAINING], ["card.json"]),
    "00_overview": (["02_layerwise_comparison", "03_divergence", "04_implicit_objective", "05_is_it_real"], []),
}
# The same of further chapters, which train networks of their own: run with --all, or where --only names them.
FURTHER = {
    "06_between_the_objectives": ([TRAINING], ["predictions/06.json"]),
    "07_when_it_happens": ([TRAINING], ["predictions/07.json"]),
    "08_auxiliary_tasks": ([TRAINING], ["predictions/08.json"]),
}


@dataclass(frozen=True, eq=False)
class Job:
    """One execution of a notebook."""

    name: str  # of the task and of the output: "01_training-sl-0", "02_layerwise_comparison"
    source: Path
    parameters: dict
    needs: tuple[str, ...]
    leaves: tuple[str, ...] = ()

    def output(self, out: Path) -> Path:
        return out / "notebooks" / f"{self.name}.ipynb"


def jobs(parameters: dict, further: bool = False) -> list[Job]:
    """All executions of the study, each after what it needs; with the further chapters, if wanted."""
    training = [
        Job(f"{TRAINING}-{name}", NOTEBOOKS / f"{TRAINING}.ipynb", {**parameters, "network": name}, ())
        for name in Study(**parameters).names
        if not name.startswith("untrained")
    ]
    drawn = bool(parameters.get("artefacts"))  # from published tables, which need no network
    names = {TRAINING: () if drawn else tuple(job.name for job in training)}
    chapters = []
    for chapter, (needs, leaves) in (CHAPTERS | (FURTHER if further else {})).items():
        needed = tuple(name for need in needs for name in names.get(need, (need,)))
        chapters.append(Job(chapter, NOTEBOOKS / f"{chapter}.ipynb", parameters, needed, tuple(leaves)))
    return training + chapters


# What a job depends on, as one hash that the executed notebook carries


def inputs(job: Job, by_name: dict[str, Job], images: str) -> str:
    code = [cell.source for cell in nbformat.read(job.source, as_version=4).cells]
    module = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((ROOT / "repsim").glob("*.py"))]
    needed = [inputs(by_name[name], by_name, images) for name in job.needs]
    return store.digest([code, module, job.parameters, images, needed], length=32)


def is_folder(source: object) -> bool:
    """Whether a study's images are a folder, rather than a set that has a name."""
    named = isinstance(source, str) and source.lower() in ("shapes", *data.TORCHVISION)
    return isinstance(source, str) and not named and Path(source).expanduser().is_dir()


def folder_state(folder: object) -> str:
    """Names, sizes and times of all files of an image folder; empty for images that have a name."""
    if not is_folder(folder):
        return ""
    files = ((path, path.stat()) for path in sorted(Path(folder).expanduser().rglob("*")) if path.is_file())
    return store.digest([(str(path), status.st_size, status.st_mtime_ns) for path, status in files])


def left(job: Job, out: Path, notebook: dict) -> str:
    """What an execution left, as one hash: the executed notebook and its files."""
    files = [path.read_text() if (path := out / name).exists() else None for name in job.leaves]
    return hashlib.sha256(json.dumps([notebook, files], sort_keys=True).encode()).hexdigest()


def up_to_date(job: Job, out: Path, state: str) -> bool:
    """Whether the executed notebook carries this state, and it and the files that it left are as they were left."""
    try:
        notebook = json.loads(job.output(out).read_text())
        whole = notebook["metadata"].pop("repsim_left") == left(job, out, notebook)
        return whole and notebook["metadata"]["repsim_inputs"] == state
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


# Execution


class Reporter(NBClientEngine):
    """papermill's own engine, telling on the terminal which cell runs, and how far the training in it is."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, status, **options):
        total = sum(cell.cell_type == "code" for cell in nb_man.nb.cells)
        start = nb_man.cell_start

        def cell_start(cell, cell_index=None, **kwargs):
            if cell.cell_type == "code":
                done = sum(c.cell_type == "code" for c in nb_man.nb.cells[:cell_index])
                status.cell(done + 1, total)
            return start(cell, cell_index=cell_index, **kwargs)

        nb_man.cell_start = cell_start
        quiet = ["--IPKernelApp.log_level=CRITICAL"]  # the terminal is for the status
        return super().execute_managed_notebook(
            nb_man, kernel_name, **options | {"stderr_file": status, "extra_arguments": quiet}
        )


papermill_engines.register("reporter", Reporter)


class Status:
    """One line per notebook: rewritten in place on a terminal, else printed when it starts, every ten seconds, and ends."""

    def __init__(self, name: str, expected: float | None, live: bool):
        self.name, self.live, self.begun, self.printed = name, live, time.monotonic(), 0.0
        self.expected = f" of about {expected:.0f} s" if expected else ""
        self.where, self.detail = "starting", ""
        self.show()

    def cell(self, number: int, total: int) -> None:
        self.where, self.detail = f"cell {number}/{total}", ""
        self.show(force=False)

    def write(self, text: str) -> None:  # the kernel's stderr: the last state of a progress bar
        lines = [line for line in text.replace("\n", "\r").split("\r") if line.strip()]
        if lines:
            self.detail = lines[-1].strip()
            self.show(force=False)

    def flush(self) -> None: ...

    def show(self, force: bool = True, end: str = "") -> None:
        now = time.monotonic()
        if not force and now - self.printed < (0.2 if self.live else 10):
            return
        self.printed = now
        line = f"{self.name:32} {self.where:12} {now - self.begun:4.0f} s{self.expected}  {self.detail}".rstrip()
        if self.live:
            print(f"\r\x1b[K{line[: os.get_terminal_size().columns - 1]}", end=end, flush=True)
        else:
            print(line, flush=True)

    def finish(self, state: str) -> None:
        self.where, self.detail, self.expected = state, "", ""
        self.show(end="\n")


def execute(job: Job, out: Path, state: str, live: bool = False) -> str | None:
    """Execute one notebook; why it failed, if it did. Its output replaces the old one only when it is whole."""
    output = job.output(out)
    output.parent.mkdir(parents=True, exist_ok=True)
    status = Status(job.name, duration(output), live)
    with tempfile.TemporaryDirectory() as scratch:
        executed = Path(scratch) / output.name
        for starts_left in (2, 1, 0):
            try:
                papermill.execute_notebook(
                    job.source,
                    executed,
                    job.parameters,
                    engine_name="reporter",
                    kernel_name="python3",
                    cwd=NOTEBOOKS,
                    progress_bar=False,
                    status=status,
                )
                failure = None
                break
            except papermill.PapermillExecutionError as error:
                failure = error
                break
            except RuntimeError as error:
                if starts_left and "before replying" in str(error):
                    continue  # two kernels that start at once may choose the same port, and one dies of it
                status.finish("failed")
                return f"{job.name}: {error}, as one does that is out of memory; {output} is as it was"
        notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:  # progress bars are for the terminal
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" or "\r" not in o.text]
    if failure is None:
        notebook.metadata["repsim_inputs"] = state
        notebook.metadata["repsim_left"] = left(job, out, json.loads(nbformat.writes(notebook)))
    store.write(output, nbformat.writes(notebook) + "\n")
    status.finish("failed" if failure else "done")
    return failure and f"{failure.ename}: {failure.evalue}\n  in cell {failure.exec_count} of {output}"


@functools.cache
def end_with_parent() -> None:
    """Where doit runs notebooks in processes of its own: end this one, and with it its kernel, when run_all.py is killed.

    It would wait for the next notebook for ever."""
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def attempt(job: Job, out: Path, state: str, live: bool, cluster: Jobs | None) -> bool:
    """Execute one notebook, here or as a job of the cluster; whether it succeeded."""
    end_with_parent()
    try:
        failure = cluster.call(job.name, execute, job, out, state) if cluster else execute(job, out, state, live)
    except Exception as error:  # of which doit would say nothing
        failure = f"{job.name}: {type(error).__name__}: {error}"
    if failure:
        print(f"  {failure}", file=sys.stderr)
    return failure is None


def duration(executed: Path) -> float | None:
    """How long the notebook took when it was last executed there."""
    try:
        return json.loads(executed.read_text())["metadata"]["papermill"]["duration"]
    except (OSError, ValueError, KeyError):
        return None


def collect(out: Path, states: dict[Job, str], planned: list[Job]) -> None:
    """claims.json, predictions.json and index.html from what has been executed with these settings, images and sources."""
    fresh = [job for job, state in states.items() if up_to_date(job, out, state)]
    left = sorted(file for job in fresh for file in job.leaves)
    verdicts = [json.loads((out / file).read_text()) for file in left if file.startswith("claims/")]
    card = robustness.kept_card(out, verdicts) if "card.json" in left else []
    verdicts = robustness.with_card(verdicts, card)
    store.write(out / "claims.json", json.dumps(verdicts, indent=1, allow_nan=False) + "\n")
    predicted = [
        row for file in left if file.startswith("predictions/") for row in json.loads((out / file).read_text())
    ]
    store.write(out / "predictions.json", json.dumps(predicted, indent=1, allow_nan=False) + "\n")
    shown = sorted((job for job in states if job in planned or job.output(out).exists()), key=lambda job: job.name)
    report.write(
        [job.output(out) for job in shown],
        out / "index.html",
        stale=[job.name for job in shown if job not in fresh],
        claims=verdicts,
    )


def drawn_from(artefacts: Path, parameters: dict) -> dict:
    """The parameters with these published artefacts, found whole. Raises ValueError if they are of other settings."""
    for name, value in publish.check(artefacts)["parameters"].items():
        if name in parameters and parameters[name] != value:
            raise ValueError(f"{name}: {parameters[name]!r} is asked for, but {artefacts} was made with {value!r}")
    return parameters | {"artefacts": str(artefacts)}


def alongside(parameters: dict, threads: int) -> int:
    """How many notebooks run at a time: one where they share a GPU, else as many as have cores, at most 4 for their memory."""
    if torch.cuda.is_available() and parameters.get("device", "auto") != "cpu":
        return 1
    return max(1, min(4, (os.cpu_count() or 1) // threads))


def environment(threads: int) -> dict[str, str]:
    """What decides how a notebook's kernel computes, beside its parameters."""
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(libraries, str(threads)) | {"OMP_WAIT_POLICY": "PASSIVE"}  # notebooks may share the cores


def cluster(options: argparse.Namespace) -> Jobs | None:
    """Where --engine slurm submits to; None for local processes."""
    given = {name: getattr(options, name) for name in ("partition", "gpus", "time", "memory")}
    if options.engine == "local":
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"--{name} {value}: only with --engine slurm")
        return None
    try:
        from repsim import cluster
    except ImportError as error:
        raise ValueError(f'--engine slurm: {error}; pip install -e ".[cluster]"') from error
    variables = environment(options.threads) | {"PYTHONPATH": str(ROOT)}
    return cluster.Jobs(cluster.slurm(options.out / "slurm", variables, cpus=options.threads, **given))


def arguments(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick", metavar="NAME|FILE", help="profiles/NAME.yaml or a YAML file")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="set", help="a parameter"
    )
    parser.add_argument("--only", metavar="NOTEBOOK", help="run this notebook and what it needs")
    parser.add_argument("--all", action="store_true", help=f"the further chapters as well: {', '.join(FURTHER)}")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="notebooks at a time; if not given 1 on a GPU, else up to 4 that have cores",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=os.environ.get("OMP_NUM_THREADS", "1"),
        metavar="N",
        help="CPU threads of a notebook; $OMP_NUM_THREADS, or 1, if not given",
    )
    parser.add_argument("--force", action="store_true", help="run what is up to date as well (networks are kept)")
    parser.add_argument("--list", action="store_true", help="say what there is and what would run, and stop")
    parser.add_argument(
        "--artefacts", type=Path, metavar="DIR", help="draw published tables, such as results/NAME; train nothing"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go; runs/PROFILE if not given")
    parser.add_argument("--engine", choices=["local", "slurm"], default="local", help="where notebooks are executed")
    slurm = parser.add_argument_group("with --engine slurm, for each notebook")
    slurm.add_argument("--partition", metavar="NAME", help="the cluster's default if not given")
    slurm.add_argument("--gpus", type=int, metavar="N", help="none if not given")
    slurm.add_argument("--time", type=int, metavar="MINUTES", help="240 if not given; what is stopped by it goes on")
    slurm.add_argument("--memory", type=int, metavar="GB", help="the cluster's default if not given")
    options = parser.parse_args(argv)
    try:
        parameters = study.parameters(options.profile, options.set)
        out = options.out or ROOT / "runs" / Path(options.profile).stem
        options.out = out.expanduser().resolve()
        parameters = {"artefacts": None} | parameters | {"out": str(options.out)}
        if options.artefacts:
            parameters = drawn_from(options.artefacts.expanduser().resolve(), parameters)
        if parameters.get("artefacts"):  # kernels run elsewhere
            parameters["artefacts"] = str(Path(parameters["artefacts"]).expanduser().resolve())
        if is_folder(parameters.get("data")):
            parameters["data"] = str(Path(parameters["data"]).expanduser().resolve())
        options.all = options.all or options.only in FURTHER
        planned = jobs(parameters, options.all)
        for name in ("jobs", "threads", "gpus", "time", "memory"):
            if getattr(options, name) is not None and getattr(options, name) < 1:
                raise ValueError(f"--{name}: expected a positive number, got {getattr(options, name)}")
        if options.only and not any(options.only in (j.name, j.source.stem) for j in planned):
            names = [job.name for job in jobs(parameters, further=True)]
            raise ValueError(f"--only: expected one of {', '.join(names)}, got {options.only!r}")
        for job in planned:
            unknown = set(job.parameters) - set(papermill.inspect_notebook(job.source))
            if unknown:
                raise ValueError(f"{job.source.name}: does not take {', '.join(sorted(unknown))}")
        options.cluster = cluster(options)
    except ValueError as error:
        parser.error(str(error))
    return options, parameters


def main(argv: list[str] | None = None) -> int:
    options, parameters = arguments(argv)
    out, every = options.out, jobs(parameters, further=True)
    planned = [job for job in every if options.all or job.name not in FURTHER]
    by_name = {job.name: job for job in every}
    published = json.dumps(study.publication(parameters["artefacts"])) if parameters.get("artefacts") else ""
    images = folder_state(parameters.get("data")) + published
    states = {job: inputs(job, by_name, images) for job in every}
    current = {job.name: not options.force and up_to_date(job, out, states[job]) for job in planned}
    if options.list:
        for job in planned:
            print(f"{job.name:32} {'up to date' if current[job.name] else 'to run'}")
        for chapter in [] if options.all else FURTHER:
            print(f"{chapter:32} with --all")
        return 0

    if str(parameters.get("data")).lower() in data.TORCHVISION and not published and not all(current.values()):
        try:
            _ = Study(**parameters).images  # fetched once, here: nodes of a cluster may have no network
        except RuntimeError as error:
            print(f"run_all.py: error: {error}", file=sys.stderr)
            return 1
    at_a_time = options.jobs or (len(planned) if options.cluster else alongside(parameters, options.threads))
    live = sys.stdout.isatty() and at_a_time == 1 and not options.cluster
    os.environ |= environment(options.threads)
    print(f"{options.threads} CPU threads a notebook; another number would give other last bits", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C

    def task_notebook():
        for job in planned:
            yield {
                "name": job.name,
                "actions": [(attempt, [job, out, states[job], live, options.cluster])],
                "io": {"capture": False},
                "task_dep": [f"notebook:{name}" for name in job.needs],
                "uptodate": [current[job.name]],
                "title": lambda task: task.name,
            }

    selected = ["notebook"]
    if options.only:
        selected = [f"notebook:{j.name}" for j in planned if options.only in (j.name, j.source.stem)]
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # what is up to date is read from the outputs, not from doit's records
        tasks = {
            "task_notebook": task_notebook,
            "DOIT_CONFIG": {
                "dep_file": f"{scratch}/doit",
                "backend": "json",
                "reporter": "zero",
                "verbosity": 2,
                "continue": True,
                "num_process": at_a_time if at_a_time > 1 else 0,
                "par_type": "thread" if options.cluster else "process",  # threads only wait
            },
        }
        try:
            code = DoitMain(ModuleTaskLoader(tasks)).run(["run", *selected])
        except KeyboardInterrupt:
            if options.cluster:
                options.cluster.cancel()
            print("stopped; what is whole is kept, and the same command goes on", file=sys.stderr)
            return 130
    skipped = sum(current.values())
    collect(out, states, planned)  # always: a run may have been killed just before
    print(f"{len(planned) - skipped} to run, {skipped} up to date; read {out / 'index.html'}")
    return code


if __name__ == "__main__":
    from run_all import main  # a module that the jobs of a cluster can import

    sys.exit(main())
