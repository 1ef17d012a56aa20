"""Functions as jobs of a SLURM cluster, through submitit.

A job's function is pickled by reference: nodes need the checkout, the Python environment and the folders of the study under
the paths that they have here, on a file system that all share.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import time as clock
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import submitit

# States of jobs that have ended; SLURM forgets those of rarer ones in minutes, and they are ENDED then.
ENDED = ("CANCELLED", "COMPLETED", "ENDED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")


class Resumable(submitit.helpers.Checkpointable):
    """Calls a function. Stopped at its time limit, or preempted, its job goes back into the queue and calls it again."""

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        # Told to end, as all that it has started is, it must not fail of their end: it waits until SLURM ends or requeues it.
        signal.signal(signal.SIGTERM, lambda *_: clock.sleep(3600))
        return function(*args)


class Queue(submitit.slurm.slurm.SlurmInfoWatcher):
    """Asks squeue, which every SLURM has, how jobs fare; submitit's own asks sacct, which needs an accounting database."""

    def _make_command(self) -> list[str] | None:
        waiting = self._registered - self._finished
        return ["squeue", "--me", "--states=all", "--noheader", "--format=%A %T"] if waiting else None

    def read_info(self, string: bytes) -> dict[str, dict[str, str]]:
        states = dict.fromkeys(self._registered - self._finished, "ENDED")
        states |= dict(line.split() for line in string.decode().splitlines())
        return {job: {"State": state if state in ENDED else "RUNNING"} for job, state in states.items()}


def slurm(
    folder: Path, environment: Mapping[str, str], *, cpus: int, gpus=None, time=None, memory=None, partition=None
) -> submitit.SlurmExecutor:
    """Jobs of one process on this cluster, logged below `folder`; what is None is the cluster's default, memory is in GB. One that
    reaches the limit of time (minutes, 240 if None) goes on, up to 10 times. Raises ValueError without SLURM's commands."""
    if shutil.which("sbatch") is None:
        raise ValueError("no sbatch here: start it where SLURM's commands are, such as a cluster's login node")
    submitit.SlurmJob.watcher = Queue(delay_s=30)
    executor = submitit.SlurmExecutor(folder=folder / "%j", max_num_timeout=10)
    setup = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    options = {"time": time or 240, "mem": memory and f"{memory}GB", "gpus_per_node": gpus, "partition": partition}
    executor.update_parameters(job_name="repsim", cpus_per_task=cpus, setup=setup, **options)
    return executor


class Jobs:
    """Calls of functions as jobs of an executor, from several threads."""

    def __init__(self, executor: submitit.Executor):
        self.executor, self.submitted = executor, []

    def call(self, name: str, function: Callable[..., str | None], *args: Any) -> str | None:
        """What `function(*args)` returns, called in a job whose lines that begin with `name` are printed; or why it failed."""
        try:
            job = self.executor.submit(Resumable(), function, *args)
        except RuntimeError as error:  # sbatch said no
            return f"not submitted: {error}"
        self.submitted.append(job)
        print(f"{name:32} job {job.job_id}", flush=True)
        shown, done = 0, False
        while not done:
            clock.sleep(1)
            done = job.done()
            *whole, _ = (job.stdout() or "").split("\n")
            print(*(f"{line}\n" for line in whole[shown:] if line.startswith(name)), sep="", end="", flush=True)
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
