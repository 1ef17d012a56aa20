"""Kill a study again and again, and damage what it keeps: is anything lost?

    python benchmarks/durability.py                     # 100 kills of run_all.py, then every kept file damaged three times
    python benchmarks/durability.py --kills 5 --seed 1

One uninterrupted run of a tiny study is the reference. Then `run_all.py` is started and killed with SIGKILL, over and over in
one folder: half the kills at a random moment of the next few notebooks' work, half within 50 ms of one of its next writes; half
take the notebook's kernel along, half leave it behind. Whenever a run gets to its end, the folder is compared and emptied.
After each kill, every file with a final name has to be whole and equal to the reference's, and none may be gone that was there
before. Then all files are truncated, bit-flipped or deleted, each in each way, in three rounds of one run each.

Equal: weights, histories, tables, comparisons, verdicts, card and claims.json to the last bit. Durations may differ, and with
them executed notebooks and index.html, which only have to be whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil  # of ipykernel

from repsim import store

ROOT = Path(__file__).resolve().parent.parent
PROFILE = """
data: shapes
train_images: 192
test_images: 64
width: 4
epochs_sl: 1
epochs_simclr: 2
batch_size: 64
seeds: 2
device: cpu
"""
DAMAGES = ("truncated", "bit-flipped", "deleted")


class Run:
    """A run_all.py that goes on, and all that it started."""

    def __init__(self, folder: Path):
        self.log = open(folder / "log", "a")  # noqa: SIM115 (as long as the process)
        command = [sys.executable, str(ROOT / "run_all.py"), "--profile", str(folder / "tiny.yaml")]
        self.process = psutil.Popen(
            [*command, "--out", str(folder / "out")], stdout=self.log, stderr=subprocess.STDOUT, cwd=ROOT
        )

    def work(self) -> float:
        """CPU seconds so far: a moment in them is as likely to lie in the work on a busy machine as on an idle one."""
        try:
            processes = [self.process, *self.process.children(recursive=True)]
            return sum(sum(p.cpu_times()[:4]) for p in processes)  # of reaped children too
        except psutil.Error:
            return 0.0

    def kill(self, kernels: bool) -> None:
        children = self.process.children(recursive=True)
        for process in [self.process, *children] if kernels else [self.process]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        self.process.wait()
        self.log.close()

    def finish(self) -> int:
        code = self.process.wait()
        self.log.close()
        return code


def names(out: Path) -> list[Path]:
    """Files with a final name: neither locks, checkpoints nor what is being written."""
    files = [p for p in out.rglob("*") if p.is_file() and not p.name.startswith(".") and ".checkpoint" not in p.name]
    return sorted(p.relative_to(out) for p in files)


def content(path: Path) -> str:
    """What a file says, durations apart. Raises if it is not whole."""
    if path.suffix == ".safetensors" or path.suffix.startswith(".step-"):  # a network, and its moments on the way
        tensors, meta = store.load_tensors(path)
        said = {name: [str(t.dtype), list(t.shape), t.numpy().tobytes().hex()] for name, t in tensors.items()}
        return store.digest([said, {k: v for k, v in meta.items() if k != "seconds"}])
    if path.suffix == ".csv":
        table, meta = store.load_table(path)
        return store.digest([table.to_csv(), {k: v for k, v in meta.items() if k != "seconds"}])
    if path.suffix == ".ipynb":
        return str(len(json.loads(path.read_text())["cells"]))
    if path.suffix == ".html":
        return str(path.read_text().rstrip().endswith("</html>"))
    return store.digest(json.loads(path.read_text()))


def differences(out: Path, reference: dict[str, str], required: set[str]) -> list[str]:
    """What is damaged, other than in the reference, or missing of what is required."""
    found, wrong = set(map(str, names(out))), []
    for name in sorted(found):
        try:
            # claims.json and index.html collect what there is, and are whole before the study is
            if content(out / name) != reference.get(name) and (name in required or name not in COLLECTED):
                wrong.append(f"{name} differs")
        except Exception as error:  # of any reader: not whole
            wrong.append(f"{name} is damaged ({type(error).__name__}: {error})")
    return wrong + [f"{name} is gone" for name in sorted(required - found)]


COLLECTED = {"claims.json", "predictions.json", "index.html"}


def snapshot(out: Path) -> list:
    """Names, sizes and times of all files, half-written ones too."""
    state = []
    for directory, _, files in os.walk(out):
        for file in files:
            try:
                status = os.stat(os.path.join(directory, file))
            except FileNotFoundError:
                continue
            state.append((file, status.st_size, status.st_mtime_ns))
    return sorted(state)


def until(run: Run, out: Path, moment: float, writes: int, jitter: float) -> bool:
    """Wait for so many CPU seconds, or so many writes and a moment more; whether the run still goes on then."""
    seen, state = 0, snapshot(out)
    while run.process.poll() is None:
        if writes:
            now = snapshot(out)
            seen, state = seen + (now != state), now
            if seen >= writes:
                time.sleep(jitter)
                return run.process.poll() is None
        elif run.work() >= moment:
            return True
        time.sleep(0.005 if writes else 0.05)
    return False


def damage(path: Path, how: str, draw: random.Random) -> None:
    if how == "deleted":
        return path.unlink()
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[draw.randrange(len(data)) :]
    else:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--notebooks", type=float, default=2.0, help="a kill comes within so many notebooks' work")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, begun = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch), Path(scratch) / "out"
        (folder / "tiny.yaml").write_text(PROFILE)

        def fail(why: str, wrong: list[str]) -> int:
            print(f"LOST: {why}\n  " + "\n  ".join(wrong))
            print("".join((folder / "log").read_text().splitlines(keepends=True)[-40:]))
            return 1

        run, work = Run(folder), 0.0
        while run.process.poll() is None:
            work = max(work, run.work())
            time.sleep(0.1)
        if run.finish():
            return fail("the uninterrupted run failed", [])
        reference = {str(name): content(out / name) for name in names(out)}
        notebooks = sum(name.endswith(".ipynb") for name in reference)
        print(f"uninterrupted: {len(reference)} files, {notebooks} notebooks, {work:.0f} CPU seconds", flush=True)
        shutil.rmtree(out)

        kinds, passes, lost, kills, kept = Counter(), 0, 0, 0, set()
        while kills < args.kills:
            at_write, kernels = draw.random() < 0.5, draw.random() < 0.5
            moment = draw.uniform(0, args.notebooks * work / notebooks)
            writes, jitter = (draw.randint(1, 8) if at_write else 0), draw.uniform(0, 0.05)
            run = Run(folder)
            if until(run, out, moment, writes, jitter):
                run.kill(kernels)
                kills += 1
                kinds[("at a write" if at_write else "at a moment") + (", kernel too" if kernels else "")] += 1
                wrong = differences(out, reference, kept)
                kept = {str(name) for name in names(out)} - COLLECTED
                print(f"kill {kills}: {len(kept)} files kept, {'; '.join(wrong) or 'all whole'}", flush=True)
            else:
                passes += 1
                failed = run.finish()
                wrong = differences(out, reference, set(reference)) + ["the run failed"] * bool(failed)
                print(f"pass {passes}: {'; '.join(wrong) or 'identical'}", flush=True)
                shutil.rmtree(out)
                kept = set()
            if wrong:
                lost += 1
                fail("after a kill", wrong)
        failed = Run(folder).finish()
        wrong = differences(out, reference, set(reference)) + ["the run failed"] * bool(failed)
        lost += bool(wrong)
        if wrong:
            fail("at the end", wrong)
        print(
            f"{kills} kills ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}) over {passes + 1} passes", end=" "
        )
        print(f"through the study, each ending identical: {kills - lost} survived, {lost} lost", flush=True)

        damaged, lost_files = 0, 0
        for shift in range(len(DAMAGES)):
            for i, name in enumerate(names(out)):
                damage(out / name, DAMAGES[(i + shift) % len(DAMAGES)], draw)
                damaged += 1
            failed = Run(folder).finish()
            wrong = differences(out, reference, set(reference)) + ["the run failed"] * bool(failed)
            lost_files += len(wrong)
            if wrong:
                fail("after damage", wrong)
        print(f"{damaged} files truncated, bit-flipped or deleted: {damaged - lost_files} survived, {lost_files} lost")
        print(f"{(time.monotonic() - begun) / 60:.0f} minutes, seed {args.seed}")
    return int(lost + lost_files > 0)


if __name__ == "__main__":
    sys.exit(main())
