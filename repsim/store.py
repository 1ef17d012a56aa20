"""Files that are whole or absent: written atomically, checksummed, verified when read, locked while they are made.

Two formats, both self-contained: named tensors with JSON-able metadata in a safetensors file, and tables as CSV below a
comment line of checksum and metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor


class Damaged(ValueError):
    """A file does not hold what was written to it."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of a JSON-able value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `key`, as in `generator(seed, "views", step)`: no two uses share one, and no state is kept."""
    total = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(total[:8], "big") >> 1)


def write(path: Path, content: bytes | str) -> None:
    """Write `content` so that `path` holds all of it or what it held before, even if the machine stops or the disk is full."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, Tensor], meta: str) -> str:
    total = hashlib.sha256(meta.encode())
    for name, tensor in sorted(tensors.items()):
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


def save_table(path: Path, table: pd.DataFrame, meta: Mapping[str, Any]) -> None:
    """Write a table (its index is dropped) and JSON-able metadata as checksummed CSV, atomically."""
    content = canonical(meta) + "\n" + table.to_csv(index=False, lineterminator="\n")
    write(path, f"# sha256 {hashlib.sha256(content.encode()).hexdigest()} {content}")


def load_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What `save_table` wrote, floating-point numbers to the last bit. Raises as `load_tensors`."""
    mark, _, content = Path(path).read_text(errors="replace").partition("# sha256 ")
    checksum, _, content = content.partition(" ")
    if mark or hashlib.sha256(content.encode()).hexdigest() != checksum:
        raise Damaged(f"{path}: its content does not match its checksum")
    meta, _, body = content.partition("\n")
    exact = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
    return pd.read_csv(io.StringIO(body), **exact), json.loads(meta)


def load_or_make(path: Path, load: Callable[[Path], Any], make: Callable[[], Any], save: Callable[..., None]) -> Any:
    """`load(path)` where the file is there and whole; otherwise `make()`, after `save(path, it)`, while other processes wait."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
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
