"""Two ranks that torchrun starts, against one process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import work

from repsim import distributed, study, train

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*arguments):
    return subprocess.run([*TORCHRUN, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def close(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.allclose(value, b[name], rtol=1e-8, atol=1e-10), name


def test_two_ranks_give_what_one_process_gives_even_if_one_of_them_failed_before(tmp_path):
    (tmp_path / "one").mkdir()
    expected = work(tmp_path / "one")
    failed = torchrun("tests/ranks.py", tmp_path, "fail")  # a hang would run into the timeout
    assert failed.returncode and "a rank fails" in failed.stderr
    assert list(tmp_path.glob("*.checkpoint")) and not list(tmp_path.glob("*.safetensors"))
    done = torchrun("tests/ranks.py", tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        results = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        for what in ("sl", "simclr", "weights", "found"):  # loss and gradients; weights and running statistics
            close(results[what], expected[what])
        history = results["history"].to_numpy() - expected["history"].to_numpy()
        assert abs(history).max() < 1e-8
    (kept,) = tmp_path.glob("*.safetensors")
    assert (tmp_path / "one" / kept.name).exists()  # the same key
    assert not list(tmp_path.glob("*.checkpoint*"))


def test_what_the_command_lines_train_is_what_a_study_finds(tmp_path, monkeypatch, capsys):
    micro = {"train_images": 64, "test_images": 32, "width": 4, "epochs_sl": 1, "epochs_simclr": 1, "batch_size": 16}
    file, out = tmp_path / "micro.yaml", tmp_path / "runs" / "micro"
    file.write_text("".join(f"{name}: {value}\n" for name, value in micro.items()))
    study.main(["--profile", str(file), "-p", "out", str(out), "-p", "device", "cpu", "simclr-1", "sl-0"])
    assert "simclr-1: loss" in capsys.readouterr().out
    monkeypatch.setattr(train, "_train", None)  # training would fail
    mine = study.Study(**micro, out=str(out), device="cpu")
    assert mine.network("simclr-1").settings.objective == "simclr" and mine.network("sl-0").settings.seed == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--profile", "nowhere", "sl-0"], "profile: no file"),
        (["sl-x"], "network: .*'sl-x'"),
        (["-p", "speed", "3", "sl-0"], "got .speed."),
        (["-p", "data", "nowhere", "sl-0"], "source: .*nowhere"),
        ([], "network"),
    ],
)
def test_unusable_command_lines_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        study.main(arguments)
    assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    assert distributed.rows_of_rank(15) == slice(None)
    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert distributed.rows_of_rank(16) == slice(8, 16)
    with pytest.raises(ValueError, match="batch_size: .*ranks, 2, got 15"):
        distributed.rows_of_rank(15)
