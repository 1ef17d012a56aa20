"""Run the study: every notebook with the parameters of a profile, in order, skipping what is up to date.

    python run_all.py                                   the quick profile, embedded images, a few minutes on two cores
    python run_all.py --profile gpu -p data ~/images -p recipe.simclr.temperature 0.2
    python run_all.py --profile results/cifar10-cpu     published results, drawn from their tables; nothing is trained

Leaves OUT/index.html, OUT/claims.json and OUT/notebooks/. A notebook is run again when its source, the repsim module, its
parameters, the images or a notebook it needs has changed, or a file of its is gone or damaged. Paths count from the checkout.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent
SEEN = ROOT / "runs" / f".seen-{hashlib.sha256(repr(sys.argv[1:]).encode()).hexdigest()[:16]}.json"


def hashes(files: Iterable[Path]) -> dict[str, str]:
    """The names of those files that there are, with hashes of what they hold."""
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()}


if __name__ == "__main__" and SEEN.exists():  # the same command as before: nothing is imported, which takes seconds
    seen = json.loads(SEEN.read_text())
    if seen["files"] == hashes(map(Path, seen["files"])):
        sys.exit(print(seen["told"]))

from repsim import profiles, store  # noqa: E402
from repsim.study import Study, publish  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
TRAINING = "01_training"
DIED = "it died (out of memory, or a crash in a native library)"
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
FURTHER = {
    "06_between_the_objectives": ([TRAINING], ["claims/06.json"], ["ce_views", "supcon", "nscl", *FAMILIES]),
    "07_when_it_happens": ([TRAINING], ["claims/07.json"], []),
    "08_auxiliary_tasks": ([TRAINING], ["claims/08.json"], ["simclr_sl_middle", "simclr_sl_top", "sl_simclr_middle"]),
}


class Job(NamedTuple):  # one execution of a notebook
    name: str  # of the job and of the output: "01_training-sl-0", "02_layerwise_comparison"
    source: Path
    output: Path
    parameters: dict[str, Any]
    needs: list[str]
    leaves: list[Path]
    networks: list[str]
    state: str  # a hash of all that it depends on


def fingerprint(value: Any, *files: Path) -> str:
    """A hash of a value, and of the names and contents of those files that there are."""
    return hashlib.sha256(json.dumps([value, hashes(files)], sort_keys=True, default=str).encode()).hexdigest()


def jobs(study: Study, parameters: dict[str, Any], slow: bool = True) -> dict[str, Job]:
    """All executions of the study by name, the further chapters too, each after what it needs; `slow`: with all attacks."""
    out, plan = Path(study.out), {}
    images = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(Path(study.data).rglob("*"))]
    code = [*ROOT.glob("repsim/*.py"), Path(study.artefacts or out) / "provenance.json"]
    shared = fingerprint([dataclasses.asdict(study), images], *code)

    def add(name: str, notebook: str, needs: list, leaves: list, networks: list, **more: Any) -> None:
        source, output = NOTEBOOKS / f"{notebook}.ipynb", out / "notebooks" / f"{name}.ipynb"
        cells = ["".join(cell["source"]) for cell in json.loads(source.read_text())["cells"]]
        state = fingerprint([shared, cells, parameters | more, [plan[job].state for job in needs]])
        files = [out / file for file in leaves]
        plan[name] = Job(name, source, output, parameters | more, needs, files, networks, state)

    own = [] if study.artefacts else [name for name in study.names if not name.startswith("untrained-")]
    for network in own:
        add(f"{TRAINING}-{network}", TRAINING, [], [], [network], network=network)
    add(TRAINING, TRAINING, list(plan), [], own)
    for chapter, (needs, leaves, objectives) in (CHAPTERS | FURTHER).items():
        more = [o if o[-1].isdigit() else f"{o}-{seed}" for o in objectives for seed in range(study.seeds)]
        less = {} if slow or study.artefacts or chapter != "05_is_it_real" else {"slow": False}
        needed = plan[TRAINING].needs if needs == [TRAINING] else needs  # the networks, not the page about them
        add(chapter, chapter, needed, leaves, [] if study.artefacts else own + more, **less)
    return plan


def up_to_date(job: Job) -> bool:
    """Whether the notebook was executed in this state, and it and the files that it left are as they were left."""
    try:
        notebook = json.loads(job.output.read_text())
        return notebook["metadata"].pop("repsim") == fingerprint([job.state, notebook], *job.leaves)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def execute(job: Job) -> str | None:
    """Execute one notebook; why it failed, if it did. Its output replaces the old one only when it is whole."""
    import papermill
    from traitlets.config import Config

    failure = None
    with tempfile.TemporaryDirectory() as scratch:
        executed = Path(scratch) / job.source.name
        # sockets in a folder, not ports: of two kernels that start at once, both may choose the same port
        kernel = {"transport": "tcp" if os.name == "nt" else "ipc", "connection_file": f"{scratch}/kernel.json"}
        options = {"kernel_name": "python3", "cwd": NOTEBOOKS, "config": Config(KernelManager=kernel)}
        options |= {"progress_bar": False, "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"]}  # of ours to say
        try:
            papermill.execute_notebook(job.source, executed, job.parameters, **options)
        except papermill.PapermillExecutionError as error:
            failure = f"{error.ename}: {error.evalue}\n  in cell {error.exec_count} of {job.output}"
        except RuntimeError as error:
            return DIED if "died" in str(error) else str(error)
        notebook = json.loads(executed.read_text())
    if failure is None:
        notebook["metadata"]["repsim"] = fingerprint([job.state, notebook], *job.leaves)
    store.write(job.output, json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return failure


def execute_plainly(job: Job) -> str | None:
    """Execute a notebook's script with this job's parameters in the place of its own; what it prints is kept."""
    text = job.source.with_suffix(".py").read_text()
    for name, value in job.parameters.items():
        text = re.sub(rf"^{name} = .*$", lambda _, line=f"{name} = {value!r}": line, text, count=1, flags=re.M)
    done = subprocess.run([sys.executable, "-"], input=text, cwd=NOTEBOOKS, capture_output=True, text=True)
    store.write(job.output.with_suffix(".txt"), done.stdout)
    return (done.stderr.strip().rpartition("\n")[2] or DIED) if done.returncode else None


def run(plan: dict[str, Job], at_a_time: int, work: Callable[[Job], str | None]) -> list[str]:
    """Execute jobs, several at a time, each after those that it needs and only if they succeeded; the names of those that did."""
    pool, done = ThreadPoolExecutor(at_a_time), {}

    def attempt(job: Job) -> bool:
        if not all([done[name].result() for name in job.needs if name in done]):
            return False
        begun = time.monotonic()
        print(f"{job.name:32} starts", flush=True)
        try:
            failure = work(job)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        print(f"{job.name:32} {'failed' if failure else 'done'} {time.monotonic() - begun:6.0f} s", flush=True)
        if failure:
            print(f"  {job.name}: {failure}", file=sys.stderr, flush=True)
        return not failure

    for name, job in plan.items():  # what a job waits for has begun before it
        done[name] = pool.submit(attempt, job)
    return [name for name in plan if done[name].result()]


def collect(plan: dict[str, Job], out: Path, fresh: Collection[str], shown: Collection[str]) -> None:
    """claims.json and index.html from what has been executed with these settings; even if nothing was: it may have been killed."""
    kept = {file.name: json.loads(file.read_text()) for name in fresh for file in plan[name].leaves}
    attacks = kept.pop("attacks.json", [])
    claims = sorted(sum(kept.values(), []), key=lambda row: (row["id"][0].isdigit(), row["id"]))
    for claim in claims:
        claim["attacks"] = [row for row in attacks if row["row"] == claim["id"]]
        if claim["verdict"] == "not judged":
            print(f"{claim['id']} is not judged: {claim['reason']}", flush=True)
    store.write(out / "claims.json", json.dumps(claims, indent=1, allow_nan=False) + "\n")
    if shown:
        from repsim import report

        banner, pages = claims[0]["learnt"] if claims else "", [plan[name].output for name in sorted(shown)]
        report.write(pages, out / "index.html", stale={*shown} - {*fresh}, claims=claims, banner=banner)


def environment(threads: int) -> dict[str, str]:
    """What decides how a notebook's process computes, beside its parameters; a waiting thread leaves its core to others."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    shared = {"OMP_WAIT_POLICY": "PASSIVE", "REPSIM_BATCH": "1", "TQDM_DISABLE": "1", "PYTHONPATH": path}
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)) | shared


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--profile", default="quick", metavar="NAME|FILE|DIR", help="a profile, a YAML file, or published results")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a field of the study")
    add("--only", metavar="NOTEBOOK", help="run this notebook and what it needs")
    add("--all", action="store_true", help="also the slow attacks of 05, and 06 to 08")
    add("--jobs", type=int, metavar="N", help="at a time; if not given 1 on a GPU, else up to 4 that have cores")
    add("--minutes", type=float, metavar="N", help="train as many seeds as there is time for, and draw those")
    add("--force", action="store_true", help="run what is up to date as well (networks are kept)")
    add("--list", action="store_true", help="say what there is and what would run, and stop")
    add("--plain", action="store_true", help="run the notebooks' scripts, which need no Jupyter; figures are left out")
    add("--publish", metavar="DIR", help="when all is done, copy tables and verdicts there")
    add("--out", metavar="DIR", help="where results go; runs/PROFILE if not given")
    add("--engine", choices=["local", "slurm"], default="local", help="where notebooks are executed")
    add("--partition", metavar="NAME", help="of SLURM; the cluster's default if not given")
    add("--gpus", type=int, metavar="N", help="of SLURM, for a notebook; none if not given")
    add("--time", type=int, metavar="MINUTES", help="of SLURM, for a notebook; 240 if not given")
    add("--memory", type=int, metavar="GB", help="of SLURM, for a notebook; the cluster's default if not given")
    options = parser.parse_args(argv)
    try:
        for name in ("jobs", "minutes", "gpus", "time", "memory"):
            if (value := getattr(options, name)) is not None and value <= 0:
                raise ValueError(f"--{name}: expected a positive number, got {value}")
        changes = profiles.read_changes(options.p) | ({"out": options.out} if options.out else {})
        study = Study.open(options.profile, **changes)
        parameters, out = {"profile": options.profile, "changes": changes}, Path(study.out)
        plan = jobs(study, parameters, slow=options.all or options.only is not None)
        chosen = {name for name, job in plan.items() if options.only in (None, name, job.source.stem)}
        if not chosen:
            raise ValueError(f"--only: expected one of {', '.join(plan)}, got {options.only!r}")
        asked = {name: getattr(options, name) for name in ("partition", "gpus", "time", "memory")}
        if options.engine == "local" and (given := [f"--{n} {v}" for n, v in asked.items() if v is not None]):
            raise ValueError(f"{' '.join(given)}: only with --engine slurm")
        submit = None
        if options.engine == "slurm":
            from repsim import cluster

            submit = cluster.Jobs(cluster.slurm(out / "slurm", environment(study.threads), cpus=study.threads, **asked))
        chosen -= set() if options.all or options.only else set(FURTHER)
        for name in reversed(plan):
            chosen |= set(plan[name].needs) if name in chosen else set()
        current = {name for name, job in plan.items() if not (options.force or options.plain) and up_to_date(job)}
        todo = {name: job for name, job in plan.items() if name in chosen - current}
        if options.list:
            for name in plan:
                unasked = "with --all" if name in FURTHER and not options.all else "to run"
                print(f"{name:32} {'up to date' if name in current else unasked}")
            return 0
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        os.environ |= environment(study.threads)
        cores = os.cpu_count() or 1 if study.torch_device.type == "cpu" else 1
        at_a_time = len(plan) if submit else options.jobs or max(1, min(4, cores // study.threads))
        networks = list(dict.fromkeys(name for job in todo.values() for name in job.networks))
        _ = networks and study.images  # looked at once, and fetched: the nodes of a cluster may have no network
        if networks and not submit:
            study.train_missing(networks, processes=at_a_time, minutes=options.minutes and 0.75 * options.minutes)
        if options.minutes and (missing := study.missing(networks)):
            whole = min(int(name.rpartition("-")[2]) for name in missing)
            if whole == 0:
                raise RuntimeError(f"{', '.join(missing)}: there was no time for these; the same command goes on")
            return main([*(sys.argv[1:] if argv is None else argv), "-p", "seeds", str(whole)])
        work = execute_plainly if options.plain else execute
        print(f"{len(todo)} notebooks to run, {len(chosen & current)} up to date", flush=True)
        done = run(todo, at_a_time, lambda job: submit.call(job.name, work, job) if submit else work(job))
    except ImportError as error:
        parser.exit(1, f'run_all.py: error: {error}; --engine slurm needs pip install -e ".[cluster]"\n')
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(1, f"run_all.py: error: {error}\n")
    except KeyboardInterrupt:
        print("stopped; what is whole is kept, and the same command goes on", file=sys.stderr, flush=True)
        if submit:
            submit.cancel()
        os._exit(130)  # kernels end with this process
    shown = [n for n, job in plan.items() if (n in chosen or job.output.exists()) and "network" not in job.parameters]
    collect(plan, out, {*done, *current}, [] if options.plain else shown)
    print(f"{len(done)} of {len(todo)} run, {len(chosen & current)} up to date; read {out / 'index.html'}")
    if options.publish and len(done) == len(todo):
        print(publish(study, ROOT / options.publish))
    elif argv is None and len(done) == len(todo) and not (options.force or options.plain or Path(study.data).is_dir()):
        source = profiles.located(options.profile)
        read = [source / "provenance.json" if source.is_dir() else source, *ROOT.glob("repsim/*.*"), Path(__file__)]
        left = [out / "index.html", *out.glob("claims*/*.json"), *out.glob("*.json"), *out.glob("notebooks/*")]
        told = f"0 to run, {len(chosen)} up to date; read {out / 'index.html'}"
        store.write(SEEN, json.dumps({"told": told, "files": hashes([*read, *NOTEBOOKS.glob("*.ipynb"), *left])}))
    return int(len(done) < len(todo))


if __name__ == "__main__":
    from run_all import main  # a module that the jobs of a cluster can import

    sys.exit(main())
