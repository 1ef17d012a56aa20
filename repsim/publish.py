"""A study without notebooks: everything they draw, made on a bare machine and published with its provenance.

    python -m repsim.study make --profile cifar10 --out runs/cifar10 -p data ~/cifar10

leaves in OUT/published what the same notebooks draw anywhere else: small tables, verdicts, card, and provenance.json, which
says how they were made. Networks and images stay where they are. `Study(artefacts=FOLDER)` reads it.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from repsim import __version__, attacks, auxiliary, distributed, ladder, moments, predictions, robustness, store, train
from repsim.claims import Claim
from repsim.study import PROFILES, Study, commit, parameters, publication

RESULTS = Path(__file__).resolve().parent.parent / "results"
PUBLISHED = RESULTS / "cifar10-cpu"  # the largest run, shown beside others
EMBEDDED = RESULTS / "quick"  # the further chapters on images whose factors are known
PLACES = ("data", "device", "out", "artefacts")  # fields of a study that say where, not what


FURTHER: Mapping[str, Callable[[Study], Any]] = {  # what further chapters draw
    "06_between_the_objectives": ladder.make,
    "07_when_it_happens": moments.make,
    "08_auxiliary_tasks": auxiliary.make,
}


def make(
    study: Study, log: Callable[[str], None] = print, core: bool = True, further: bool = False
) -> dict[str, float]:
    """Make everything that notebooks draw, and keep it in `study.out`; what is there is kept. Seconds by step.

    `core` is what 00 to 05 draw, `further` what the further chapters do.
    """
    seconds: dict[str, float] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        done = work()
        seconds[name] = round(time.monotonic() - begun, 1)
        log(f"{name}: {seconds[name]:.0f} s")
        return done

    if core:
        for name in study.names:
            step(name, lambda name=name: study.network(name))
        step("history", study.history)
        step("comparison", study.comparison)
        for name in [*study.names, "pixels"]:  # by network, whose features are then made once
            step(f"readings of {name}", lambda name=name: readings(study, name))
        judged, attacked = step("attacks", lambda: attacks.verdicts(study))
        step("figures of attacks", lambda: attacks.figure_tables(study))
        for claim in judged:
            study.claim(claim)
        robustness.keep_card(robustness.card(judged, attacked), study.out)
    for chapter, work in FURTHER.items() if further else ():
        step(chapter, lambda work=work: work(study))
    return seconds


def readings(study: Study, name: str) -> None:
    """Make the tables of one network."""
    for table in (study.probe, study.knn, study.factors):
        table([name])
    if name != "pixels":
        study.retrieval([name])
    if not name.startswith(("pixels", "random_labels")):
        study.contrastive([name])


def publish(study: Study, folder: Path, seconds: Mapping[str, float], core: bool = True, further: bool = False) -> Path:
    """Copy what `make` left to `folder`, with provenance.json: settings, images, machine, versions, time, checksums.

    Verdicts of earlier runs in `study.out` go along only with the tables that they rest on: `core` and `further` as for `make`.
    """
    folder, out = Path(folder), Path(study.out)
    shutil.rmtree(folder / "tables", ignore_errors=True)
    (folder / "tables").mkdir(parents=True)
    for name in ("claims.json", "card.json", "predictions.json"):
        (folder / name).unlink(missing_ok=True)
    for path in study.used:
        shutil.copyfile(path, folder / "tables" / path.name)
    parts = sorted((folder / "tables").iterdir())
    verdicts = [json.loads(path.read_text()) for path in sorted((out / "claims").glob("*.json"))]
    if core and verdicts:
        verdicts = robustness.with_card(verdicts, robustness.kept_card(out, verdicts))
        store.write(folder / "claims.json", json.dumps(verdicts, indent=1, allow_nan=False) + "\n")
        shutil.copyfile(out / "card.json", folder / "card.json")
        parts += [folder / "claims.json", folder / "card.json"]
    if further and (judged := predictions.kept(out)):
        store.write(folder / "predictions.json", json.dumps(judged, indent=1, allow_nan=False) + "\n")
        parts.append(folder / "predictions.json")
    cuda = study.torch_device.type == "cuda"
    names = [*(study.names if core else ()), *((*ladder.names(study), *auxiliary.names(study)) if further else ())]
    kept = [n for n in dict.fromkeys(names) if train.path(study.settings(n), study.images, out / "networks").exists()]
    provenance = {
        "parameters": {f.name: getattr(study, f.name) for f in dataclasses.fields(study) if f.name not in PLACES},
        "images": study.summary._asdict(),
        "basis": study.basis(),
        "made": datetime.date.today().isoformat(),
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "repsim": __version__,
        },
        "hardware": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "training_seconds": {name: round(study.network(name).seconds, 1) for name in kept},
        "seconds": dict(seconds),
        "checksums": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in parts},
    }
    store.write(folder / "provenance.json", json.dumps(provenance, indent=1, allow_nan=False) + "\n")
    return folder


def check(folder: str | Path) -> dict[str, Any]:
    """What provenance.json says of `folder`, after its files have been found whole.

    Raises:
        ValueError: no provenance.json; a file that is missing or not what was published.
    """
    kept = publication(folder)
    for name, checksum in kept["checksums"].items():
        path = Path(folder) / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            raise ValueError(f"artefacts: {path} is missing or not what was published; restore it")
    return kept


def published(folder: str | Path = PUBLISHED) -> tuple[str, list[Claim]] | None:
    """The basis and the verdicts of the largest published run; None outside a checkout."""
    if not (Path(folder) / "provenance.json").exists():
        return None
    verdicts = json.loads((Path(folder) / "claims.json").read_text())
    return publication(folder)["basis"], [Claim.from_dict(claim) for claim in verdicts]


def factored(study: Study) -> Study:
    """The study itself where its images have known factors, else the published one of the embedded images."""
    return study if study.summary.factors else Study(artefacts=str(EMBEDDED), out=study.out)


def main(argv: Sequence[str] | None = None) -> None:
    kinds = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m repsim.study", **kinds)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train networks ahead of the notebooks; by all ranks under torchrun")
    training.add_argument("network", nargs="+", help="OBJECTIVE-SEED, such as simclr-0")
    for command in (training, commands.add_parser("make", help="make networks, tables, verdicts, and OUT/published")):
        command.add_argument(
            "--profile", default="quick", metavar="NAME|FILE", help="profiles/NAME.yaml or a YAML file"
        )
        command.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
        command.add_argument("--out", metavar="DIR", help="where all is kept; runs/PROFILE if not given")
    what = commands.choices["make"].add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="what the further chapters draw as well")
    what.add_argument("--further", action="store_true", help="what they draw alone")
    options = parser.parse_args(argv)
    out = options.out or str(PROFILES.parent / "runs" / Path(options.profile).stem)
    try:
        study = Study(**parameters(options.profile, options.p) | {"out": out})
        for name in getattr(options, "network", []):
            study.settings(name)
    except ValueError as error:
        parser.error(str(error))
    if options.command == "make":
        print(study.basis(), flush=True)
        parts = {"core": not options.further, "further": options.all or options.further}
        seconds = make(study, lambda text: print(text, flush=True), **parts)
        print(publish(study, Path(out) / "published", seconds, **parts))
        return
    with distributed.started(study.torch_device):
        for name in options.network:
            loss = study.network(name).history.loss.iloc[-1]
            if not distributed.rank():
                print(f"{name}: loss {loss:.4f}, kept in {Path(out) / 'networks'}")


if __name__ == "__main__":
    main()
