"""Files that are whole or absent: written atomically, checksummed, verified when read, locked while they are made.

Two formats, both self-contained: tensors with JSON-able metadata in one safetensors file, and tables as CSV whose first
line carries the checksum and the metadata as a comment.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor


class Damaged(ValueError):
    """A file does not hold what was written to it."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of a JSON-able value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `key`, for example `generator(seed, "views", step)`.

    Step 1,000 of a resumed run draws what it draws in a run that was never interrupted, without any stored state, and two
    uses never share a stream by accident.
    """
    total = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(total[:8], "big") >> 1)


def write(path: Path, data: bytes | str) -> None:
    """Write `data` so that `path` holds either what it held before or all of `data`, even if the machine stops.

    Raises OSError where the folder cannot be written or the disk is full; `path` is as before and no temporary file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, Tensor], meta: str) -> str:
    total = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        total.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return total.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors and JSON-able metadata to one checksummed safetensors file, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = canonical(meta)
    write(path, safetensors.torch.save(tensors, {"meta": text, "sha256": _checksum(tensors, text)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. Raises FileNotFoundError, or Damaged if the file is truncated, altered or not one of ours."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise Damaged(f"{path}: not a whole safetensors file ({error})") from error
    if meta.get("sha256") != _checksum(tensors, meta.get("meta", "")):
        raise Damaged(f"{path}: its content does not match its checksum")
    return tensors, json.loads(meta["meta"])


def load_meta(path: Path) -> dict[str, Any]:
    """The metadata of a file of either format, without reading the rest. Raises as `load_tensors`, but for its content."""
    try:
        if Path(path).suffix == ".csv":
            with open(path) as file:
                return json.loads(file.readline().split(" ", 3)[3])
        with safetensors.safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["meta"])
    except (safetensors.SafetensorError, KeyError, IndexError, ValueError) as error:
        raise Damaged(f"{path}: not one of our files ({error})") from error


def save_table(path: Path, table: pd.DataFrame, meta: Mapping[str, Any] | None = None) -> None:
    """Write a table (its index is dropped) as CSV under a comment line with checksum and metadata, atomically."""
    body = table.to_csv(index=False, lineterminator="\n")
    text = canonical(meta or {})
    total = hashlib.sha256((text + "\n" + body).encode()).hexdigest()
    write(path, f"# sha256 {total} {text}\n{body}")


def load_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What `save_table` wrote, floating-point numbers to the last bit. Raises as `load_tensors`."""
    try:
        head, body = Path(path).read_text().split("\n", 1)
        mark, name, total, text = head.split(" ", 3)
    except ValueError as error:  # also UnicodeDecodeError
        raise Damaged(f"{path}: not one of our tables") from error
    if (mark, name) != ("#", "sha256") or hashlib.sha256((text + "\n" + body).encode()).hexdigest() != total:
        raise Damaged(f"{path}: its content does not match its checksum")
    exact = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
    return pd.read_csv(io.StringIO(body), **exact), json.loads(text)


def load_or_make(path: Path, load: Callable[[Path], Any], make: Callable[[], Any], save: Callable[..., None]) -> Any:
    """`load(path)` where the file is there and whole; otherwise make it, save it and return it.

    One process at a time does so, and whoever else asks, in any process, waits; a killed process releases its lock.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{path.name}: another process is making it; waiting", file=sys.stderr)
        lock.acquire()
    try:
        for litter in path.parent.glob(f".{path.stem}.*.tmp"):  # of a writer that was killed: nobody else writes now
            litter.unlink(missing_ok=True)
        if path.exists():
            try:
                return load(path)
            except Damaged as error:
                warnings.warn(f"{error}; it is made again", stacklevel=2)
        value = make()
        save(path, value)
        return value
    finally:
        lock.release()
