"""A study: its settings, the networks it needs, and every table the notebooks draw, each loaded if there and made if not.

    study = Study.open("quick", width=16)      # a profile with a change; "results/quick": published tables, without images
    study.network("simclr-0").model            # trained on first use
    study.comparison().matrix("sl-0", "simclr-1")

All is kept below `out`, keyed by the settings and the images' content: a killed study goes on, a changed one meets no old result.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import joblib
import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from repsim import __version__, augment, cka, claims, data, distributed, models, probes, profiles, store, taps, train
from repsim.claims import Claim, Evidence
from repsim.comparison import Comparison, Source
from repsim.probes import FOLDS
from repsim.profiles import ROOT, check_known

CKA_IMAGES = 2560  # test images of the comparison at most: the first ones, which are a random sample
PLACES = ("data", "device", "out", "artefacts")  # fields of a study that say where, not what
Names = Sequence[str] | None  # of networks; None: all of the study
FROM_8 = pd.Interval(8, math.inf, closed="left")
TABLES = 1  # the format of tables: the published ones are found by it
PACKAGES = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
PACKAGES |= {"repsim": __version__}
FORMATS = {"csv": (store.load_table, store.save_table), "safetensors": (store.load_tensors, store.save_tensors)}
VERSIONS = ", ".join(f"{name} {version}" for name, version in PACKAGES.items())


@dataclass(frozen=True, eq=False)
class Study:
    """The settings of a study, which a notebook's `profile` and `changes` give. Checked when made: ValueError names the field."""

    data: str = "shapes"  # image set: "shapes" (embedded), a torchvision set such as "cifar10", or a folder
    train_images: Annotated[int | None, train.FROM_1] = 2000  # images trained on; None: all
    test_images: Annotated[int | None, FROM_8] = 1000  # images compared and tested on; None: all
    image_size: Annotated[int | None, train.FROM_1] = None  # resized to so many pixels a side; None: as they are
    classes: list = field(default_factory=list)  # names of the classes that the images are restricted to; all if empty
    context: Annotated[float, train.TO_1] = 0.0  # of shapes: the share of images whose background their class prefers
    saturation: Annotated[float, train.TO_1] = 1.0  # of shapes: 1 full colours, 0 greys
    architecture: str = "resnet18"  # or resnet34, resnet50
    width: int = 8  # channels of the first stage
    epochs_sl: int = 10
    epochs_simclr: int = 20
    batch_size: int = 128
    seeds: Annotated[int, train.FROM_1] = 2  # networks per objective
    controls: list = field(default_factory=list)  # further objectives, as many seeds each, such as sl_simclr_views
    recipe: dict = field(default_factory=dict)  # other train.Settings, for all or per objective: {"simclr": {...}}
    device: str = "auto"  # "cpu", "cuda", "mps"; auto takes the fastest there is
    threads: int = 1  # CPU threads that a network trains with; another number gives other last bits
    out: str = "runs/study"  # where networks, tables and claims are kept
    artefacts: str | None = None  # a folder of published tables, drawn from instead of `out`; nothing is trained

    def __post_init__(self) -> None:
        train.check_types(self)
        check_known("device", self.device.partition(":")[0], ("auto", "cpu", "cuda", "mps"))
        for objective in self.controls:
            check_known("controls", objective, sorted(train.OBJECTIVES.keys() - {"untrained", "sl", "simclr"}))
        for name in self.names:  # every network's own checks
            self.settings(name)
        object.__setattr__(self, "begun", time.monotonic())

    @classmethod
    def open(cls, profile: str | Path, **changes: Any) -> Study:
        """The study of a profile or of published results, with changes of its fields; what every notebook begins with.

        profile: a name in profiles/ ("quick"), a YAML file, or published results ("results/cifar10-cpu"), which take only `out`,
        `device` and `data`, their own images, as changes. Relative paths, in `out` (runs/PROFILE) too, count from the checkout.
        changes: any fields, and parts of mappings: `**{"recipe.simclr.temperature": 0.2}`. ValueError names what cannot be.
        """
        profiles.check_injected()
        source = profiles.located(profile)
        kept, published = profiles.read(source), source.is_dir()
        values = profiles.changed(kept, changes)
        for name, value in values.items():
            check_known("parameter", name, [f.name for f in dataclasses.fields(cls)])
            if published and name not in PLACES and value != kept.get(name):
                asked = f"{value!r} is asked for, but {source} was made with {kept.get(name)!r}"
                raise ValueError(f"{name}: {asked}; own images and settings need a profile, such as quick")
        values.setdefault("out", f"runs/{source.stem}{'-published' * published}")
        values["out"] = str(ROOT / Path(values["out"]).expanduser())
        values["artefacts"] = str(source) if published else None
        images = str(values.get("data", "shapes"))
        if images.lower() not in ("shapes", *data.TORCHVISION) and (ROOT / Path(images).expanduser()).is_dir():
            values["data"] = str(ROOT / Path(images).expanduser())
        if images.lower() != "shapes":  # a profile's context and saturation are of the embedded images
            values = {k: v for k, v in values.items() if k in changes or k not in ("context", "saturation")}
        study = cls(**values)
        if published and "data" in changes:
            study.images  # noqa: B018 (checked now)
        return study

    @functools.cached_property
    def names(self) -> list[str]:
        """All networks of this study, "OBJECTIVE-SEED": untrained, SL and SimCLR ones, and the controls."""
        return [f"{o}-{seed}" for o in ("untrained", "sl", "simclr", *self.controls) for seed in range(self.seeds)]

    def settings(self, name: str) -> train.Settings:
        """How the network `name` is trained. Raises ValueError for an unknown objective, or a recipe that it cannot have."""
        objective, _, seed = name.rpartition("-")
        if objective not in train.OBJECTIVES or not seed.isdecimal():
            raise ValueError(f"network: expected OBJECTIVE-SEED of {', '.join(train.OBJECTIVES)}, got {name!r}")
        base = train.OBJECTIVES[objective].base  # a control is trained as what it is a control of
        epochs = {"untrained": 0, "sl": self.epochs_sl, "simclr": self.epochs_simclr}
        options = {name: getattr(self, name) for name in ("architecture", "width", "batch_size", "threads")}
        options |= {"epochs": epochs.get(objective, epochs[base]), "learning_rate": 0.1}
        options |= {key: value for key, value in self.recipe.items() if key not in train.OBJECTIVES}
        try:
            options |= self.recipe.get(base, {}) | self.recipe.get(objective, {})
            for key in options:
                check_known("recipe", key, [*(f.name for f in dataclasses.fields(train.Settings)), *train.OBJECTIVES])
            return train.Settings(objective=objective, seed=int(seed), **options)
        except TypeError as error:
            raise ValueError(f"recipe: {error}") from error

    @functools.cached_property
    def torch_device(self) -> torch.device:
        fastest = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
        return torch.device(fastest if self.device == "auto" else self.device)

    @functools.cached_property
    def images(self) -> data.Splits:
        """The images. Raises as `data.load`; ValueError too if published results were made of other images."""
        names = ("train_images", "test_images", "image_size", "context", "saturation")
        options = {name: getattr(self, name) for name in names}
        images = data.load(self.data, **options, root=Path(self.out).parent / "data")
        images = data.of_classes(images, self.classes) if self.classes else images
        if self.artefacts and [*data.summary(images).fingerprints] != [*self.summary.fingerprints]:
            remedy = "give its own as data, or open a profile"
            raise ValueError(f"data: {self.data!r} holds other images than {self.artefacts} was made of; {remedy}")
        return images

    @functools.cached_property
    def summary(self) -> data.Summary:
        """The images' title, sizes, classes and fingerprints."""
        if self.artefacts:
            return data.Summary(**profiles.publication(self.artefacts)["images"])
        return data.summary(self.images)

    def _path(self, name: str) -> Path:
        path = Path(self.artefacts or self.out) / name
        if self.artefacts and not path.exists():
            raise FileNotFoundError(f"{path}: not among the published results; a profile and the images make it")
        return path

    def network_file(self, name: str) -> Path:
        """Where the network `name` is kept. Raises FileNotFoundError where published results do not hold it."""
        train_images, validation_images, *_ = self.summary.fingerprints
        return self._path(f"networks/{name}-{self.settings(name).key(train_images + validation_images)}.safetensors")

    @functools.cache  # noqa: B019 (one study lives as long as its notebook)
    def network(self, name: str, progress: bool | Callable[[int], Any] = True) -> train.Trained:
        """The network `name`, in eval mode on the study's device; trained now if it is not there yet, and not published."""
        file = self.network_file(name)
        if self.artefacts:
            return train.load(file, self.torch_device)
        return train.train(self.settings(name), self.images, file.parent, device=self.torch_device, progress=progress)

    def snapshot(self, name: str, share: float) -> nn.Module:
        """The network `name` after this share (`train.schedule`) of its training, in eval mode on the study's device.

        Batch-norm statistics are of the first 1,024 training images, at the end (1.0) too: running averages of the first steps
        are of older weights. Raises ValueError for another share, FileNotFoundError for a file that is not whole.
        """
        settings, final = self.network(name).settings, self.network_file(name)
        plan = {1.0: train.steps(settings, self.summary.train)}
        plan |= train.schedule(plan[1.0]) if settings.objective in train.SNAPSHOTS else {}
        if share not in plan:
            known = ", ".join(f"{moment:.3g}" for moment in sorted(plan))
            raise ValueError(f"share: expected one of {known}, got {share!r} of {name}")
        path = final if share == 1 else train.snapshot_path(final, plan[share])
        try:
            weights, _ = store.load_tensors(path)
        except (FileNotFoundError, store.Damaged) as error:
            problem = f"no whole snapshot of {name}, as training writes them; delete {final} to train it again"
            raise FileNotFoundError(f"{path}: {problem}") from error
        model = settings.build(len(self.summary.classes), self.torch_device)
        model.load_state_dict(weights)
        train.measure_batch_norm(model, self.images.train.images[:1024].to(self.torch_device))
        return model.eval()

    def missing(self, names: Names = None) -> list[str]:
        """Those of these networks, or of all, that have yet to be trained, in the order of seeds."""
        names = [] if self.artefacts else dict.fromkeys(self.names if names is None else names)
        names = [n for n in names if not (n.startswith("untrained-") or self.network_file(n).exists())]
        return sorted(names, key=lambda name: int(name.rpartition("-")[2]))

    def train_missing(self, names: Names = None, *, processes: int | None = None, minutes: float | None = None) -> None:
        """Train those of these networks, or of all, that are missing; say before how many and how long, and show one bar.

        `processes` at a time, which changes no bit: 0 in this process; None as many as have cores, on a CPU and where that pays.
        None is started that would not be done after so many `minutes`. Raises RuntimeError, at the end, where some failed.
        """
        names = self.names if names is None else names
        if not (missing := self.missing(names)):
            return
        passes = {name: train.passes(self.settings(name), self.summary.train) for name in missing}
        seconds = train.seconds_per_pass(self.settings("simclr-0"), self.images, self.torch_device)
        if processes is None:  # they take some seconds to start
            pays = self.torch_device.type == "cpu" and sum(passes.values()) * seconds > 20
            processes = joblib.cpu_count() // self.threads if pays and "REPSIM_BATCH" not in os.environ else 0
        shares = [[] for _ in range(max(1, min(processes, len(missing))))]
        for name in missing:  # each goes to the process that would be done first
            min(shares, key=lambda share: (sum(map(passes.get, share)), len(share))).append(name)
        longest = tqdm.format_interval(seconds * max(sum(map(passes.get, share)) for share in shares))
        told = f"Training {len(missing)} of {len(set(names))} networks, about {longest}: {', '.join(missing)}"
        print(told, file=sys.stderr)
        with train.progress_bar(sum(passes.values()), "training") as bar:
            if processes:
                return self._train_apart(shares, minutes, bar)
            for name in missing:  # not cached, as all may be too large for the device
                self.network.__wrapped__(self, name, bar.update)

    def _train_apart(self, shares: Sequence[Sequence[str]], minutes: float | None, bar: tqdm) -> None:
        """Train each share of the networks in a process of its own, which ends when nobody reads its numbers of passes."""
        command = [sys.executable, "-m", "repsim.train", "--passes", *(["--minutes", str(minutes)] if minutes else [])]
        for name, value in (dataclasses.asdict(self) | {"out": str(Path(self.out).resolve())}).items():
            command += ["-p", name, json.dumps(value)]
        reading, writing = os.pipe()
        options = {"stdout": writing, "stderr": writing, "start_new_session": True}  # Ctrl-C is not for it
        options["env"] = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        processes, said = [subprocess.Popen([*command, *share], **options) for share in shares], ""
        os.close(writing)
        with open(reading) as lines:
            for line in map(str.strip, lines):
                if line.isdigit():
                    bar.update(int(line))
                else:
                    said = line or said
        statuses = [process.wait() for process in processes]
        if any(statuses):
            died = "the process died (out of memory, or a crash in a native library)"
            raise RuntimeError(f"{', '.join(self.missing(sum(shares, [])))}: {died if min(statuses) < 0 else said}")

    def key_of(self, names: Sequence[str]) -> str:
        """Of what is made of these networks: their settings, and the images."""
        return store.digest([self.summary.fingerprints, [self.settings(n).chosen() for n in names], TABLES])

    def _kept(self, name: str, ending: str, make: Callable[[], tuple], networks: Names) -> tuple[Any, dict]:
        """(content, metadata) of a CSV or safetensors file of these networks: read if it is there, otherwise made and kept."""
        networks, begun = self.names if networks is None else networks, time.monotonic()
        path = self._path(f"tables/{name}-{self.key_of(networks)}.{ending}")
        load, save = FORMATS[ending]

        def save_with_protocol(path: Path, made: tuple[Any, dict]) -> None:
            about = {"table": name, "networks": list(networks), "protocol": dict(self.protocol().to_numpy())}
            save(path, made[0], made[1] | about | {"seconds": round(time.monotonic() - begun, 1)})

        return load(path) if self.artefacts else store.load_or_make(path, load, make, save_with_protocol)

    def table(self, name: str, make: Callable[[], pd.DataFrame], networks: Names = None) -> pd.DataFrame:
        """The table `name` of this study, or of some of its networks: read if it is there, otherwise made and kept."""
        return self._kept(name, "csv", lambda: (make(), {}), networks)[0]

    def compared(self, name: str, make: Callable[[], Comparison], networks: Names = None) -> Comparison:
        """As `table`, for a comparison, with intervals of layers of one name, of a network's own grid, and of the labels."""

        def kept(a: Source, b: Source) -> bool:
            return a[1] == b[1] or a[0] == b[0] or "labels" in (a[0], b[0])

        made = self._kept(name, "safetensors", lambda: make().select(kept).to_tensors(), networks)
        return Comparison.from_tensors(*made)

    def per_network(self, table: str, names: Sequence[str], make: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
        """One table per network, kept one by one (for any study with that network), as one with a column `network`."""
        tables = [self.table(f"{table}-{n}", functools.partial(make, n), [n]).assign(network=n) for n in names]
        return pd.concat(tables, ignore_index=True)

    @functools.cache  # noqa: B019
    def comparison(self) -> Comparison:
        """CKA of all layers of all networks, "labels" and "pixels" over the first CKA_IMAGES test images, from one pass.

        Estimators: "unbiased", "rbf", and "trimmed", without the largest 1 % of images by norm at the end of any stage.
        """

        def make() -> Comparison:
            self.train_missing()
            labels, largest = self.images.test.labels[:CKA_IMAGES], set()  # as Davari et al. (2022) leave out
            for name, stage in itertools.product(self.names, models.STAGES):
                features = self.features(name, "test")
                x = features[claims.end_of(list(features), stage)][: len(labels)].double()
                norms = torch.linalg.vector_norm(x - x.mean(0), dim=1)
                largest |= set(norms.topk(math.ceil(0.01 * len(labels))).indices.tolist())
            options = {"labels": labels, "pixels": True, "estimators": ("unbiased", "rbf", "trimmed")}
            return self.compare(self.names, leave_out=torch.tensor(sorted(largest)), **options)

        return self.compared("cka", make)

    def compare(self, networks: Sequence[str], others: Mapping[str, nn.Module] | None = None, **options) -> Comparison:
        """CKA of all layers of these networks, trained if missing, and `others`, such as snapshots: name -> network.

        Of the first CKA_IMAGES test images, in FOLDS folds, with `options` of `cka.compare`. `compared` keeps the result.
        """
        self.train_missing(networks)
        images = self.images.test.images[:CKA_IMAGES]
        batches = FOLDS * math.ceil(len(images) / (FOLDS * 128)) if len(images) >= 4 * FOLDS else len(images) // 4
        nets = {name: self.network(name).model for name in networks} | dict(others or {})
        options |= {"batch_size": math.ceil(len(images) / batches), "folds": FOLDS}
        return cka.compare(nets, images, progress=True, **options)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def features(self, name: str, split: str, view: str | None = None) -> dict[str, Tensor]:
        """Pooled features of a network's layers, or "pixels": layer -> (n, channels), of images or of a SimCLR view of them."""
        images = getattr(self.images, split).images
        if view is not None:
            draws = (store.generator("features", split, view, i) for i in itertools.count())
            strengths, chunks = self.settings("simclr-0").simclr_views(), zip(images.split(1024), draws)
            images = torch.cat([augment.simclr(*chunk, **strengths) for chunk in chunks])
        if name == "pixels":
            return {"pixels": (data.as_input(images) if view is None else images).flatten(1)}
        return taps.pooled(self.network(name).model, images)

    @functools.cache  # noqa: B019
    def readings(self, name: str) -> dict[str, pd.DataFrame]:
        """What can be read out of each layer of a network, by fold of the test images: measure -> (folds, layers).

        "probe" (cross-entropy, nats), "correct" (of its most probable class), "knn" (ten nearest training images), and of all but
        "pixels" "retrieval" (of an image's other view), "views" (fitted NT-Xent, nats), "views of a class" (in batches of one
        class). Residual layers and the pool, the end of stage 4, are left out.
        """

        def of(split: str, view: str | None = None) -> dict[str, Tensor]:
            features = self.features(name, split, view)
            return {l: x for l, x in features.items() if models.layer_kind(l) not in ("residual", "pool")}

        def make() -> tuple[dict[str, Tensor], dict[str, Any]]:  # each test image's outcomes, and the layers' names
            labels = {split: getattr(self.images, split).labels for split in ("train", "validation", "test")}
            classes, temperature = len(self.summary.classes), self.settings("simclr-0").temperature
            probe = probes.linear_probe(*(x for split in labels for x in (of(split), labels[split])), classes=classes)
            tables = {"probe": probe.loss, "correct": probe.correct}
            tables["knn"] = probes.knn(of("train"), labels["train"], of("test"), labels["test"], classes=classes)
            if name != "pixels":
                views = [of(split, view) for split in ("train", "test") for view in claims.VIEWS]
                options = {"batch": min(128, self.summary.train, self.summary.test), "temperature": temperature}
                fitted = probes.fitted_nt_xent(*views, labels["test"], steps=150, **options)
                tables["retrieval"] = probes.retrieval(*views[2:])
                tables |= {"views": fitted.mixed, "views of a class": fitted.of_a_class}
            outcomes = {measure: torch.tensor(table.to_numpy(dtype="float32")) for measure, table in tables.items()}
            return outcomes, {"layers": {measure: list(table) for measure, table in tables.items()}}

        networks = [] if name == "pixels" else [name]
        outcomes, about = self._kept(f"readings-{name}", "safetensors", make, networks)
        folds = folded(outcomes, about)
        tables = {m: pd.DataFrame(folds[m].numpy(), columns=layers) for m, layers in about["layers"].items()}
        for table in tables.values():
            table.attrs["images"] = folds["images"].numpy()
        return tables

    def basis(self) -> str:
        """The scale of this study in one sentence."""
        images, sl, simclr = self.summary, self.settings("sl-0"), self.settings("simclr-0")
        size = f"{images.train:,} training and {images.test:,} test images"
        epochs = f"{sl.epochs} epochs SL, {simclr.epochs} epochs SimCLR"
        return f"{images.name}, {size}; {sl.architecture} of width {sl.width}; {epochs}; {self.seeds} seeds"

    @functools.cache  # noqa: B019
    def evidence(self) -> Evidence:
        """Comparison and readings of all networks, which are trained if they are missing."""
        return Evidence(self.comparison(), {name: self.readings(name) for name in self.names}, self.seeds)

    @functools.cache  # noqa: B019
    def accuracy(self) -> dict[str, float]:
        """Accuracy of the linear probe at the pool, averaged over seeds and images, of each objective, and of "pixels"."""
        evidence = Evidence(None, {name: self.readings(name) for name in self.names}, self.seeds)
        layer = claims.end_of(list(self.readings("sl-0")["correct"]), "layer4")
        objectives, pixels = ("untrained", "sl", "simclr", *self.controls), self.readings("pixels")["correct"]
        accuracy = {o: float(evidence.reading("correct", o, layer)[0]) for o in objectives}
        return accuracy | {"pixels": float(np.average(pixels["pixels"], weights=pixels.attrs["images"]))}

    def gate(self) -> str:
        """Why the claims are not judged, with the remedy; empty if they are."""
        return claims.gate(self.accuracy(), self.seeds)

    def learnt(self) -> str:
        """What linear probes read at the pool of each objective and of the baselines, in one sentence."""
        accuracy, titles = self.accuracy(), claims.TITLES | {"pixels": "raw pixels"}
        read = ", ".join(f"{titles[o]} {accuracy[o]:.2f}" for o in titles if o in accuracy)
        return f"Linear probes at the pool read {read}; chance is {1 / len(self.summary.classes):.2f}."

    @functools.cache  # noqa: B019
    def judge(self, *ids: str) -> list[Claim]:
        """These claims, judged and kept in OUT/claims; all of them, and not kept, if none is named."""
        judged = claims.judge(self.evidence(), self.gate(), ids or tuple(claims.CLAIMS))
        if ids:
            self.keep("-".join(ids), [claim.to_dict() for claim in judged])
        return judged

    def keep(self, name: str, verdicts: list[dict[str, Any]], learnt: str | None = None) -> None:
        """Write verdicts to OUT/claims/NAME.json, for run_all.py to collect, with what they rest on and networks have learnt."""
        about = {"basis": self.basis(), "exploratory": self.summary.factors}
        about["preregistration"] = git("log -1 --format=%h -- docs/preregistration.md")
        about["learnt"] = self.learnt() if learnt is None else learnt
        text = json.dumps([about | row for row in verdicts], indent=1, allow_nan=False)
        store.write(Path(self.out) / "claims" / f"{name}.json", text + "\n")

    def answer(self, judged: Sequence[Claim]) -> str:
        """Markdown: each claim's effect with its verdict, and whether the networks have learnt."""
        reasons = [f" {claim.reason}." * bool(claim.reason and not claim.gate) for claim in judged]
        lines = [f"- {c.sentence} **{c.id}: {c.verdict}.**{reason}" for c, reason in zip(judged, reasons)]
        lines.append(f"\n*This run:* {self.basis()}. {self.learnt()}")
        if self.summary.factors:
            lines.append("\n*Exploratory: these images were designed so that the phenomenon shows.*")
        if gate := self.gate():
            lines.append(f"\n**Not judged:** {gate}.")
        return "\n".join(lines)

    def attacks(self) -> pd.DataFrame:
        """What attacks make of the claims, as chapter 05 left it or as it is published; no rows if there is nothing."""
        file = Path(self.artefacts or self.out) / ("claims.json" if self.artefacts else "claims/attacks.json")
        rows = json.loads(file.read_text()) if file.exists() else []
        rows = [attack for claim in rows for attack in claim["attacks"]] if self.artefacts else rows
        return pd.DataFrame(rows, columns=["row", "value", "family", "name", "whole"])

    def protocol(self, networks: Names = None) -> pd.DataFrame:
        """How the numbers of these networks, or of all, are made: two columns, what and how. Every table's file carries it."""
        images = self.summary
        rows = {
            "images": f"{images.name}: {images.train:,} training, {images.validation:,} validation (cut from the "
            f"training set), {images.test:,} test; stratified, seed 0",
            "networks": ", ".join(networks or self.names),
            "architecture": f"{self.architecture}, width {self.width}",
            "evaluation": "test images, eval mode, weights of the last epoch",
            "CKA": f"linear, unbiased, whole activation maps of the first {min(CKA_IMAGES, images.test):,} test images; HSIC "
            "averaged over batches of at most 128, ratio last",
            "intervals": f"95 %: delete-one jackknife over seeds and over {FOLDS} folds of the images, Student's t with "
            f"{self.seeds - 1} degrees of freedom",
            "views": "SimCLR's augmentations, two draws per image from seeded generators, the same for all networks",
            "probes": "logistic regression on pooled, standardised features; penalty chosen on the validation split",
            "versions": VERSIONS,
        }
        return pd.DataFrame(rows.items(), columns=["what", "how"])

    def colophon(self) -> pd.DataFrame:
        """What produced this execution: versions, commit, parameters, time. Two columns, what and how."""
        unsaid = ("out", "data") if self.artefacts else ("out",)  # published results' images are in the protocol
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in unsaid and v is not None}
        rows = {
            "parameters": ", ".join(f"{name} = {value}" for name, value in fields.items()).replace(f"{ROOT}/", ""),
            "versions": f"{VERSIONS}, commit {git('describe --always --dirty')}",
            "device": f"{self.torch_device}, {torch.get_num_threads()} threads on {os.cpu_count()} cores",
            "time": f"{time.monotonic() - self.begun:.0f} s since the study was opened in this notebook",
        }
        return pd.DataFrame(rows.items(), columns=["what", "how"])


def folded(outcomes: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Readings by fold of the test images, measure -> (folds, layers), with each fold's number of "images", as published."""
    if "images" in outcomes:
        return dict(outcomes)
    tables = {measure: probes.by_fold(pd.DataFrame(outcomes[measure].double().numpy())) for measure in about["layers"]}
    counts = torch.tensor(tables["probe"].attrs["images"])
    return {measure: torch.tensor(table.to_numpy()) for measure, table in tables.items()} | {"images": counts}


def git(arguments: str) -> str:
    """What git says of this checkout; "unknown" if nothing."""
    done = subprocess.run(f"git {arguments}", shell=True, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def publish(study: Study, folder: str | Path) -> Path:
    """Copy tables of these settings and images and the verdicts that run_all.py collected, and say in provenance.json how they were
    made: a folder for `Study.open`. Networks that lie in it stay; readings are kept by fold. Raises `store.Damaged`.
    """
    folder, verdicts, abouts = Path(folder), Path(study.out) / "claims.json", {}
    commit = git("describe --always --dirty")  # before anything in the checkout changes
    shutil.rmtree(folder / "tables", ignore_errors=True)
    (folder / "tables").mkdir(parents=True)
    (folder / "claims.json").unlink(missing_ok=True)
    if verdicts.exists() and json.loads(verdicts.read_text()):
        shutil.copyfile(verdicts, folder / "claims.json")
    for path in sorted((Path(study.out) / "tables").glob("[!.]*")):
        (load, save), (name, _, key) = FORMATS[path.suffix[1:]], path.stem.rpartition("-")
        content, about = load(path)
        if key == study.key_of(about["networks"]):
            abouts[name] = about
            if name.startswith("readings-"):
                save(folder / "tables" / path.name, folded(content, about), about)
            else:
                shutil.copyfile(path, folder / "tables" / path.name)
    files = sorted(path for part in ("tables/*", "networks/*", "claims.json") for path in folder.glob(part))
    networks = {name: study.network_file(name) for about in abouts.values() for name in about["networks"]}
    cuda = study.torch_device.type == "cuda"
    provenance = {
        "parameters": {name: value for name, value in dataclasses.asdict(study).items() if name not in PLACES},
        "images": study.summary._asdict(),
        "basis": study.basis(),
        "made": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "versions": PACKAGES,
        "hardware": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {study.threads} threads",
        "training_seconds": {n: store.load_tensors(f)[1]["seconds"] for n, f in sorted(networks.items()) if f.exists()},
        "seconds": {name: about["seconds"] for name, about in abouts.items()},
        "checksums": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }
    store.write(folder / "provenance.json", json.dumps(provenance, indent=1, allow_nan=False) + "\n")
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Train networks of a study where its notebooks look for them; by all ranks where torchrun starts them."""
    parser = argparse.ArgumentParser(prog="python -m repsim.train", description=main.__doc__)
    add = parser.add_argument
    add("network", nargs="+", help="OBJECTIVE-SEED, such as simclr-0")
    add("--profile", default="quick", metavar="NAME|FILE", help="profiles/NAME.yaml or a YAML file")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a field of the study")
    add("--minutes", type=float, help="start no network that would not be done by then")
    add("--passes", action="store_true", help="print the number of image passes after each step, for a bar")
    options, begun = parser.parse_args(argv), time.monotonic()
    try:
        study = Study.open(options.profile, **profiles.read_changes(options.p))
        _ = study.images, [study.settings(name) for name in options.network]  # looked at before the ranks meet
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    report = functools.partial(print, flush=True) if options.passes else True
    with distributed.started(study.torch_device):
        measured = study.settings("simclr-0"), study.images, study.torch_device
        per_pass = train.seconds_per_pass(*measured) if options.minutes else 0
        for name in options.network:
            seconds = per_pass * train.passes(study.settings(name), study.summary.train)
            if options.minutes and time.monotonic() - begun + seconds > 60 * options.minutes:
                break
            loss = study.network(name, report).history.loss.iloc[-1]
            if not (distributed.rank() or options.passes):
                print(f"{name}: loss {loss:.4f}, kept in {study.network_file(name).parent}", flush=True)
