"""Where the settings of a study come from: a YAML file, a folder of published results, and changes on a command line."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent  # the checkout, from which relative paths count
PROFILES = ROOT / "profiles"


def check_known(what: str, name: object, known: Iterable[str]) -> None:
    """Raise ValueError, with what is like it, if `name` is not among the known ones."""
    if name not in (known := [*known]):
        like = " or ".join(difflib.get_close_matches(str(name), known))
        meant = f" (did you mean {like}?)" if like else ""
        raise ValueError(f"{what}: expected one of {', '.join(known)}, got {name!r}{meant}")


def located(profile: str | Path) -> Path:
    """The YAML file or the folder of published results that a name or a path stands for. Raises ValueError if there is none."""
    paths = [PROFILES / f"{profile}.yaml", ROOT / Path(str(profile)).expanduser()]
    if not (there := [path for path in paths if path.exists()]):
        names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
        published = sorted(f"results/{path.parent.name}" for path in ROOT.glob("results/*/provenance.json"))
        check_known(f"profile: no file {paths[1]}", profile, [*names, *published])
    return there[0]


def read(source: Path) -> dict[str, Any]:
    """The settings that a YAML file or a folder of published results gives. Raises ValueError if it is neither."""
    values = publication(source)["parameters"] if source.is_dir() else _parsed(f"profile {source}", source.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"profile: {source} has to map parameters to values, got {type(values).__name__}")
    return values


def read_changes(changes: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Names and values of a command line, the values as JSON or YAML. Raises ValueError for what is neither."""
    return {name: _parsed(name, text) for name, text in changes}


def _parsed(what: str, text: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)  # to YAML 1.1 the number 1e-5 is a text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what}: not YAML ({error})") from error


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`; "recipe.simclr.temperature" changes that entry alone. Raises ValueError where there can be none."""
    values = dict(values)
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest and not isinstance(values.setdefault(first, {}), dict):
            raise ValueError(f"{name}: {first} is not a mapping, but {values[first]!r}")
        values[first] = changed(values[first], {rest: value}) if rest else value
    return values


def check_injected() -> None:
    """Raise ValueError if papermill was given a parameter that the notebook does not have: it would warn and go on."""
    known: list[str] = []
    for cell in vars(sys.modules["__main__"]).get("In", ()):  # the cells that this notebook has executed
        assigned = re.findall(r"^(\w+) = ", cell, re.M)
        if cell.startswith("# Parameters\n") and (unknown := sorted(set(assigned) - set(known))):
            remedy = f"its own are {', '.join(known)}; a field of the study goes into changes: {{{unknown[0]!r}: ...}}"
            raise ValueError(f"{', '.join(unknown)}: this notebook has no such parameter; {remedy}")
        known += assigned


def publication(folder: str | Path) -> dict[str, Any]:
    """What provenance.json says of published results. Raises ValueError where it does not, or a file is not what was published."""
    source = Path(folder) / "provenance.json"
    try:
        checksums = (about := json.loads(source.read_text()))["checksums"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"expected a folder with a provenance.json, such as results/NAME, got {str(folder)!r}"
        raise ValueError(f"profile: {problem} ({error!r})") from error
    for name, checksum in checksums.items():
        path = Path(folder) / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            raise ValueError(f"{path} is missing or not what was published; restore it")
    return about
