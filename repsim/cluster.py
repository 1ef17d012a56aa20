"""Functions as jobs of a SLURM cluster, through submitit.

A job's function is pickled by reference, so that the node needs the checkout, the Python environment and the folders of the
study under the paths that they have here: a file system that all nodes share.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import submitit

RESTARTS = 10  # how often a job may reach its time limit and go on
ENDED = set(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE ENDED FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED RECONFIG_FAIL REVOKED "
    "TIMEOUT".split()
)


class Resumable(submitit.helpers.Checkpointable):
    """Calls a function. Stopped at its time limit, or preempted, its job goes back into the queue and calls it again."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        told_to_end = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
        try:
            return function(*args)
        except Exception:
            if told_to_end.is_set():  # so were the processes that it had started: not a failure of its own
                time.sleep(3600)  # until SLURM ends or requeues the job
            raise


class Queue(submitit.slurm.slurm.SlurmInfoWatcher):
    """Asks squeue, which every SLURM has, how jobs fare; submitit's own asks sacct, which needs an accounting database."""

    def _make_command(self) -> list[str] | None:
        waiting = self._registered - self._finished
        return ["squeue", "--me", "--states=all", "--noheader", "--format=%A %T"] if waiting else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string if isinstance(string, str) else string.decode()
        states = dict.fromkeys(
            self._registered - self._finished, "ENDED"
        )  # of those that SLURM has forgotten, in minutes
        states |= dict(line.split() for line in text.splitlines())
        return {job: {"State": state if state in ENDED else "RUNNING"} for job, state in states.items()}


def slurm(
    folder: Path,
    environment: Mapping[str, str],
    *,
    cpus: int,
    gpus: int | None = None,
    time: int | None = None,
    memory: int | None = None,
    partition: str | None = None,
) -> submitit.SlurmExecutor:
    """Jobs of one process on this cluster, logged below `folder`, with these environment variables.

    They have so many CPUs and GPUs and so much memory (GB) of a node of the partition, or the cluster's defaults. A job that
    reaches the limit of time (minutes, 240 if None) is queued again, up to `RESTARTS` times. Raises ValueError where SLURM's
    commands are not.
    """
    for command in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise ValueError(f"no {command} here: start it where SLURM's commands are, such as a cluster's login node")
    submitit.SlurmJob.watcher = Queue(delay_s=30)
    executor = submitit.SlurmExecutor(folder=folder / "%j", max_num_timeout=RESTARTS)
    options = {"partition": partition, "gpus_per_node": gpus, "mem": memory and f"{memory}GB"}
    executor.update_parameters(
        job_name="repsim",
        time=time or 240,
        cpus_per_task=cpus,
        setup=[f"export {name}={shlex.quote(value)}" for name, value in environment.items()],
        **{name: value for name, value in options.items() if value is not None},
    )
    return executor


class Jobs:
    """Calls of functions as jobs of an executor, from several threads."""

    def __init__(self, executor: submitit.Executor):
        self.executor, self.lock, self.submitted = executor, threading.Lock(), []

    def call(self, name: str, function: Callable[..., str | None], *args: Any) -> str | None:
        """What `function(*args)` returns, called in a job; or, if the job ends without that, why.

        Meanwhile prints those lines of the job's output that begin with `name`.
        """
        try:
            with self.lock:
                job = self.executor.submit(Resumable(), function, *args)
                self.submitted.append(job)
        except RuntimeError as error:  # sbatch said no
            return f"not submitted: {error}"
        print(f"{name:32} job {job.job_id}", flush=True)
        shown, done = 0, False
        while not done:
            time.sleep(1)
            done = job.done()
            *whole, _ = (job.stdout() or "").split("\n")
            for line in whole[shown:]:
                if line.startswith(name):
                    print(line, flush=True)
            shown = len(whole)
        try:
            return job.result()
        except submitit.core.utils.FailedJobError as error:  # the traceback, in a frame
            return f"job {job.job_id}: {error}"
        except submitit.core.utils.UncompletedJobError:
            return f"job {job.job_id} ended without a result ({job.state}); its log: {job.paths.stderr}"

    def cancel(self) -> None:
        """End all jobs that still wait or run."""
        for job in self.submitted:
            if not job.paths.result_pickle.exists():
                job.cancel(check=False)
