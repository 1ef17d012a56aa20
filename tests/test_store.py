import multiprocessing
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest
import torch

from repsim import store

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([True, False]),
    "c": torch.zeros(0),
}
META = {"name": "x", "n": [1, 2.5, None]}


def test_tensors_come_back_as_they_were(tmp_path):
    store.save_tensors(tmp_path / "t", TENSORS, META)
    tensors, meta = store.load_tensors(tmp_path / "t")
    assert meta == META and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in TENSORS.items())


def test_tables_come_back_to_the_last_bit(tmp_path):
    table = pd.DataFrame({"layer": ["a,b", "é"], "x": [0.1 + 0.2, np.nan], "n": [1, 2]})
    store.save_table(tmp_path / "t.csv", table, META)
    loaded, meta = store.load_table(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(loaded, table, check_exact=True, check_dtype=False)
    assert meta == META


@pytest.mark.parametrize("kind", ["tensors", "table"])
def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "tensors":
        store.save_tensors(path, {"a": torch.arange(4.0)}, {"k": 1})
        load = store.load_tensors
    else:
        store.save_table(path, pd.DataFrame({"a": [1.5, 2.5]}), {"k": 1})
        load = store.load_table
    whole, expected = path.read_bytes(), repr(load(path))
    for i in range(len(whole)):
        path.write_bytes(whole[:i])
        with pytest.raises(store.Damaged):
            load(path)
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        try:  # a bit that means nothing may flip, but nothing else may be read
            assert repr(load(path)) == expected
        except store.Damaged:
            pass


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    store.write(tmp_path / "f", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old" and os.listdir(tmp_path) == ["f"]


def test_a_writer_killed_at_any_moment_leaves_old_or_new(tmp_path):
    path = tmp_path / "f"
    script = textwrap.dedent(f"""
        from repsim import store
        store.write({str(path)!r}, "0" * 10**6); print("ready", flush=True)
        i = 0
        while True:
            i += 1
            store.write({str(path)!r}, str(i % 10) * 10**6)
    """)
    for wait in (0.0, 0.013, 0.031):
        writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(wait)
        writer.kill()
        writer.wait()
        content = path.read_text()
        assert len(content) == 10**6 and len(set(content)) == 1


def _make(path, log):
    def make():
        with open(log, "a") as file:
            file.write("made\n")
        time.sleep(0.3)
        return pd.DataFrame({"a": [1]})

    store.load_or_make(path, lambda p: store.load_table(p)[0], make, lambda p, table: store.save_table(p, table, {}))


def test_of_two_processes_one_makes_and_the_other_waits(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_make, args=(tmp_path / "t.csv", tmp_path / "log")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0, 0] and (tmp_path / "log").read_text() == "made\n"


def test_what_is_damaged_is_made_again_and_said(tmp_path):
    path, log = tmp_path / "t.csv", tmp_path / "log"
    _make(path, log)
    path.write_text(path.read_text()[:-1] + "7\n")
    with pytest.warns(UserWarning, match="checksum.*made again"):
        _make(path, log)
    assert log.read_text() == "made\nmade\n" and store.load_table(path)[0].a.tolist() == [1]


def test_what_killed_writers_left_goes_with_the_next_maker_and_nothing_else_does(tmp_path):
    others = {tmp_path / ".t-2.csv.abc.tmp", tmp_path / "t.csv.bak"}
    for path in (tmp_path / ".t.csv.abc.tmp", tmp_path / ".t.checkpoint.def.tmp", *others):
        path.write_text("half")
    _make(tmp_path / "t.csv", tmp_path / "log")
    assert set(tmp_path.iterdir()) - {tmp_path / ".t.csv.lock"} == {tmp_path / "t.csv", tmp_path / "log", *others}


def test_digest_ignores_order_and_refuses_what_has_no_json():
    assert store.digest({"a": 1, "b": 2}) == store.digest({"b": 2, "a": 1}) != store.digest({"a": 1, "b": 3})
    with pytest.raises(ValueError):
        store.digest(float("nan"))
