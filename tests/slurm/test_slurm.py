"""On a real SLURM, which `tests/slurm/start.sh` sets up on one machine: the study, and jobs that do not end well."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

cluster = pytest.importorskip("repsim.cluster", reason='no submitit here: pip install -e ".[cluster]"')
ROOT = Path(__file__).resolve().parents[2]
MICRO = "data: shapes\ntrain_images: 256\ntest_images: 64\nwidth: 4\nepochs_sl: 1\nepochs_simclr: 1\nbatch_size: 32\n"

pytestmark = pytest.mark.skipif(
    not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
    reason="no SLURM here: tests/slurm/start.sh sets one up",
)


@pytest.fixture
def jobs(tmp_path):
    jobs = cluster.Jobs(cluster.slurm(tmp_path / "slurm", {"ANSWER": "4 2"}, cpus=1, time=10))
    yield jobs
    jobs.cancel()


def called(jobs, *call):
    """`jobs.call` in a thread, once its job runs: the job, and a function that waits for what the call returns."""
    returned = []
    thread = threading.Thread(target=lambda: returned.append(jobs.call("name", *call)))
    thread.start()
    while not jobs.submitted or queue(jobs.submitted[0].job_id) != "RUNNING":
        time.sleep(0.5)

    def result():
        thread.join()
        return returned[0]

    return jobs.submitted[0], result


def queue(job):
    done = subprocess.run(["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True)
    return done.stdout.strip()


def test_the_study_gives_the_same_claims_on_slurm_and_two_at_a_time_as_in_order(tmp_path):
    (tmp_path / "micro.yaml").write_text(MICRO)
    run = [sys.executable, str(ROOT / "run_all.py"), "--profile", str(tmp_path / "micro.yaml")]
    claims = []
    for name, *options in (["in-order"], ["two", "--jobs", "2"], ["slurm", "--engine", "slurm", "--time", "30"]):
        command = [*run, "--out", str(tmp_path / name), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        claims.append((tmp_path / name / "claims.json").read_bytes())
    assert claims[0] == claims[1] == claims[2] and len(json.loads(claims[0])) == 7
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "0 to run" in again.stdout


def test_an_interrupted_study_leaves_no_job_behind(tmp_path):
    (tmp_path / "micro.yaml").write_text(MICRO)
    command = [sys.executable, str(ROOT / "run_all.py"), "--profile", str(tmp_path / "micro.yaml"), "--engine", "slurm"]
    running = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    ids = []
    for line in running.stdout:
        if " job " in line:
            ids.append(line.split()[-1])
        if len(ids) == 4:  # the four trainings
            break
    running.send_signal(signal.SIGINT)
    running.stdout.read()
    assert running.wait() == 130
    deadline = time.monotonic() + 60
    while any(queue(job) for job in ids) and time.monotonic() < deadline:
        time.sleep(1)
    assert not any(queue(job) for job in ids)


def test_a_job_has_the_environment_and_tells_what_its_function_returned_or_raised(jobs):
    assert jobs.call("name", os.getenv, "ANSWER") == "4 2"
    assert "FileNotFoundError" in jobs.call("name", os.stat, "/nowhere")


def test_a_cancelled_job_is_a_failure(jobs):
    job, result = called(jobs, time.sleep, 300)
    job.cancel()
    assert "CANCELLED" in result() and str(job.paths.stderr)


def test_a_preempted_job_is_queued_again_and_ends_well(jobs, tmp_path):
    script = f"echo x >> {tmp_path}/calls; [ $(wc -l < {tmp_path}/calls) = 2 ] || exec sleep 300"
    job, result = called(jobs, subprocess.check_call, ["bash", "-c", script])
    while not (tmp_path / "calls").exists():
        time.sleep(0.5)
    job._interrupt()
    assert result() == 0 and (tmp_path / "calls").read_text() == "x\nx\n"


def test_what_slurm_refuses_says_so(tmp_path):
    refused = cluster.Jobs(cluster.slurm(tmp_path, {}, cpus=1, partition="nowhere"))
    assert "invalid partition specified: nowhere" in refused.call("name", os.getcwd)
