"""A study: its settings, the networks it needs, and every table the notebooks draw, each loaded if there and made if not.

    study = Study.open("quick", width=16)      # a profile with a change
    study.network("simclr-0").model            # trained on first use
    study.comparison().matrix("sl-0", "simclr-1")
    study.readings("sl-0")["probe"]            # a DataFrame
    Study.open("results/quick").comparison()   # of published results, without images and networks

Everything is kept below `out`, keyed by the settings and by the images' content, so that a killed study goes on where it
was and a changed setting never meets an old result.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from repsim import __version__, augment, cka, claims, data, distributed, models, probes, profiles, store, taps, train
from repsim.claims import VIEWS, Claim, Evidence
from repsim.comparison import Comparison, Source
from repsim.probes import FOLDS
from repsim.profiles import ROOT, check_known

REMEDY = "it can be made with a profile and the images"
SIZES = ("train_images", "test_images", "image_size", "context", "saturation")  # fields that data.load takes
CKA_IMAGES = 2560  # test images of the comparison at most: the first ones, which are a random sample
PLACES = ("data", "device", "out", "artefacts")  # fields of a study that say where, not what
WORTH_A_PROCESS = 20  # seconds of training that starting processes pays for
# What the objectives need beside the common settings; `recipe` overrides it.
RECIPES: Mapping[str, Mapping[str, Any]] = {"sl": {"learning_rate": 0.1}, "simclr": {"learning_rate": 0.1}}
TABLES = 1  # the format of tables: the published ones are found by it
PACKAGES = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
PACKAGES |= {"repsim": __version__}
VERSIONS = ", ".join(f"{name} {version}" for name, version in PACKAGES.items())


@dataclass(frozen=True, eq=False)
class Study:
    """The settings of a study, which a notebook's `profile` and `changes` give. Checked when made: ValueError names the field."""

    data: str = "shapes"  # image set: "shapes" (embedded), a torchvision set such as "cifar10", or a folder
    train_images: int | None = 2000  # images trained on; None: all
    test_images: int | None = 1000  # images compared and tested on; None: all
    image_size: int | None = None  # images are resized to this many pixels a side; None: as they are
    classes: list = field(default_factory=list)  # names of the classes that the images are restricted to; all if empty
    context: float = 0.0  # of shapes: the fraction of images whose background is the one that their class prefers
    saturation: float = 1.0  # of shapes: 1 full colours, 0 greys
    architecture: str = "resnet18"  # or resnet34, resnet50
    width: int = 8  # channels of the first stage
    epochs_sl: int = 10
    epochs_simclr: int = 20
    batch_size: int = 128
    seeds: int = 2  # networks per objective
    controls: list = field(default_factory=list)  # further objectives, as many seeds each, such as sl_simclr_views
    recipe: dict = field(default_factory=dict)  # other train.Settings, for all or per objective: {"simclr": {...}}
    device: str = "auto"  # "cpu", "cuda", "mps"; auto takes the fastest there is
    threads: int = 1  # CPU threads that a network trains with; another number gives other last bits
    out: str = "runs/study"  # where networks, tables and claims are kept
    artefacts: str | None = None  # a folder of published tables, drawn from instead of `out`; nothing is trained

    def __post_init__(self) -> None:
        train.check_types(self)
        smallest = dict.fromkeys(("train_images", "image_size", "width", "seeds", "threads"), 1) | {"test_images": 8}
        for name, bound in smallest.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise ValueError(f"{name}: expected at least {bound}, got {value}")
        check_known("device", self.device.partition(":")[0], ("auto", "cpu", "cuda", "mps"))
        data.check_appearance(self.data, self.context, self.saturation)
        for objective in self.controls:
            check_known("controls", objective, sorted(train.OBJECTIVES.keys() - {"untrained", "sl", "simclr"}))
        known = [*train.OBJECTIVES, *(f.name for f in dataclasses.fields(train.Settings))]
        for key, value in self.recipe.items():
            for name in value if key in train.OBJECTIVES and isinstance(value, dict) else [key]:
                check_known("recipe", name, known)
        object.__setattr__(self, "begun", time.monotonic())
        for name in self.names:  # every network's own checks
            self.settings(name)

    @classmethod
    def open(cls, profile: str | Path, **changes: Any) -> Study:
        """The study of a profile or of published results, with changes of its fields; what every notebook begins with.

        Args:
            profile: a name in profiles/ ("quick"), a YAML file, or a folder of published results ("results/cifar10-cpu"), of
                which nothing is trained. Relative paths, here and in `out`, count from the checkout.
            changes: any fields, and parts of those that are mappings: `**{"recipe.simclr.temperature": 0.2}`. `out` is
                runs/PROFILE if not given. Published results take `out`, `device`, and `data`: their own images.

        Raises:
            ValueError: an unknown profile or field, a value that a field cannot have, settings that published results
                were not made with, or images that they are not of; a parameter that papermill was given beside these two.
        """
        profiles.check_injected()
        source = profiles.located(profile)
        published, kept = source.is_dir(), profiles.read(source)
        values = profiles.changed(kept, changes)
        for name in values:
            check_known("parameter", name, [f.name for f in dataclasses.fields(cls)])
        if published:
            made = cls(**kept)
            for name, value in values.items():
                if name not in PLACES and value != getattr(made, name):
                    raise ValueError(
                        f"{name}: {value!r} is asked for, but {source} was made with {getattr(made, name)!r}; own images and "
                        f"settings need a profile, such as quick"
                    )
            values["artefacts"] = str(source)
        default = f"runs/{source.name}-published" if published else f"runs/{source.stem}"
        values["out"] = str(ROOT / Path(values.get("out", default)).expanduser())
        images = str(values.get("data", "shapes"))
        if images.lower() not in ("shapes", *data.TORCHVISION) and (ROOT / Path(images).expanduser()).is_dir():
            values["data"] = str(ROOT / Path(images).expanduser())
        if images.lower() != "shapes":  # a profile's context and saturation are of the embedded images
            for name in {"context", "saturation"} - set(changes):
                values.pop(name, None)
        study = cls(**values)
        if published and "data" in changes:
            study.images  # noqa: B018 (checked now)
        return study

    @functools.cached_property
    def names(self) -> list[str]:
        """All networks of this study, "OBJECTIVE-SEED": untrained, SL and SimCLR ones, and the controls."""
        return [f"{o}-{seed}" for o in ("untrained", "sl", "simclr", *self.controls) for seed in range(self.seeds)]

    def settings(self, name: str) -> train.Settings:
        """How the network `name` is trained."""
        objective, _, seed = name.rpartition("-")
        if objective not in train.OBJECTIVES or not seed.isdecimal():
            known = ", ".join(train.OBJECTIVES)
            raise ValueError(f"network: expected OBJECTIVE-SEED with an objective of {known}, got {name!r}")
        base = train.OBJECTIVES[objective].base  # a control is trained as what it is a control of
        epochs = {"untrained": 0, "sl": self.epochs_sl, "simclr": self.epochs_simclr}
        options = {name: getattr(self, name) for name in ("architecture", "width", "batch_size", "threads")}
        options |= {"epochs": epochs.get(objective, epochs[base])} | RECIPES[base]
        options |= {key: value for key, value in self.recipe.items() if key not in train.OBJECTIVES}
        try:
            options |= self.recipe.get(base, {}) | self.recipe.get(objective, {})
            return train.Settings(objective=objective, seed=int(seed), **options)
        except TypeError as error:
            raise ValueError(f"recipe: {error}") from error

    @functools.cached_property
    def torch_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")

    @functools.cached_property
    def images(self) -> data.Splits:
        """The images, loaded once.

        Raises:
            ValueError, FileNotFoundError, RuntimeError: as `data.load`. ValueError too if the study is drawn from published
                results, which hold none, and `data` does not say where they are, or names other images.
        """
        if self.artefacts is not None and self.data == "shapes" and self.summary.name != "shapes":
            raise ValueError(f"images: not part of the published results in {self.artefacts}; give data to have them")
        sizes = {name: getattr(self, name) for name in SIZES}
        images = data.load(self.data, **sizes, root=Path(self.out).parent / "data")
        images = data.of_classes(images, self.classes) if self.classes else images
        if self.artefacts is not None and data.summary(images).fingerprints != self.summary.fingerprints:
            made = f"{self.artefacts} was made of"
            raise ValueError(f"data: {self.data} holds other images than {made}; they need a profile")
        return images

    @functools.cached_property
    def summary(self) -> data.Summary:
        """The images' title, sizes, classes and fingerprints."""
        if self.artefacts is None:
            return data.summary(self.images)
        kept = profiles.publication(self.artefacts)["images"]
        return data.Summary(**kept | {name: tuple(kept[name]) for name in ("classes", "fingerprints")})

    # Networks

    @property
    def folder(self) -> Path:
        """Where networks and tables are: `artefacts`, or `out`."""
        return Path(self.artefacts or self.out)

    def network_file(self, name: str) -> Path:
        """Where the network `name` is kept."""
        train_images, validation_images, *_ = self.summary.fingerprints
        key = self.settings(name).key(train_images + validation_images)
        return self.folder / "networks" / f"{name}-{key}.safetensors"

    @functools.cache  # noqa: B019 (one study lives as long as its notebook)
    def network(self, name: str, progress: bool | Callable[[int], Any] = True) -> train.Trained:
        """The network `name`, in eval mode on the study's device; trained now if it is not there yet.

        Of published results, the network published with them. Raises FileNotFoundError if there is none.
        """
        file = self.network_file(name)
        if self.artefacts is None:
            how = {"device": self.torch_device, "progress": progress}
            return train.train(self.settings(name), self.images, file.parent, **how)
        if not file.exists():
            raise FileNotFoundError(f"{file}: no such network among the published results; {REMEDY}")
        return train.load(file, self.torch_device)

    def snapshot(self, name: str, share: float) -> nn.Module:
        """The network `name` after this share of its training, 0.0 to 1.0 (`train.schedule`), in eval mode on the study's device.

        Batch-norm statistics are measured over the first 1,024 training images, at the end (1.0) too: running averages of the
        first steps are of older weights.

        Raises:
            ValueError: a share of which no snapshot is taken.
            FileNotFoundError: the snapshot is gone, damaged or not published; it says how to make it again.
        """
        trained, file = self.network(name), self.network_file(name)
        model = copy.deepcopy(trained.model)
        if share != 1:
            plan = train.schedule(train.steps(trained.settings, self.summary.train))
            if share not in plan or trained.settings.objective not in train.SNAPSHOTS:
                raise ValueError(
                    f"share: expected one of {', '.join(f'{s:.3g}' for s in plan)} or 1 of a network of "
                    f"{', '.join(train.SNAPSHOTS)}, got {share!r} of {name}"
                )
            place = train.snapshot_path(file, plan[share])
            try:
                model.load_state_dict(store.load_tensors(place)[0])
            except (FileNotFoundError, store.Damaged) as error:
                raise FileNotFoundError(
                    f"{place}: no whole snapshot of {name}; snapshots are written while a network is trained: delete {file} to "
                    "train it again"
                ) from error
        train.measure_batch_norm(model, self.images.train.images[:1024].to(self.torch_device))
        return model.eval()

    def missing(self, names: Sequence[str] | None = None) -> list[str]:
        """Those of these networks, or of all, that have yet to be trained, in the order of seeds."""
        names = [n for n in dict.fromkeys(self.names if names is None else names) if not n.startswith("untrained-")]
        by_seed = sorted(names, key=lambda name: int(name.rpartition("-")[2]))
        return [name for name in by_seed if self.artefacts is None and not self.network_file(name).exists()]

    def expected_seconds(self, name: str) -> float:
        """How long the network will train, by the time that an image takes now."""
        return train.passes(self.settings(name), self.summary.train) * self._seconds_per_pass

    @functools.cached_property
    def _seconds_per_pass(self) -> float:
        return train.seconds_per_pass(self.settings("simclr-0"), self.images, self.torch_device)

    def train_missing(
        self, names: Sequence[str] | None = None, *, processes: int | None = None, minutes: float | None = None
    ) -> None:
        """Train those of these networks, or of all, that are missing; say before how many and how long, and show one bar.

        Their bits do not depend on how many are trained at a time.

        Args:
            processes: how many to train side by side, each in a process of its own; None: on a CPU as many as have cores,
                where that pays, otherwise one after the other in this process.
            minutes: a network that would not be done after so many is not started, nor any after it.

        Raises:
            RuntimeError: some could not be trained; says which and why. The others are kept.
        """
        names = self.names if names is None else names
        if not (missing := self.missing(names)):
            return
        seconds = {name: self.expected_seconds(name) for name in missing}
        if processes is None:
            pays = self.torch_device.type == "cpu" and sum(seconds.values()) > WORTH_A_PROCESS
            processes = joblib.cpu_count() // self.threads if pays and "REPSIM_BATCH" not in os.environ else 0
        shares: list[list[str]] = [[] for _ in range(max(1, min(processes, len(missing))))]
        for name in missing:
            min(shares, key=lambda share: (sum(map(seconds.get, share)), len(share))).append(name)
        longest = tqdm.format_interval(max(sum(map(seconds.get, share)) for share in shares))
        what = f"{len(missing)} of {len(set(names))} networks, about {longest}: {', '.join(missing)}"
        print(f"Training {what}", file=sys.stderr)
        total = sum(train.passes(self.settings(name), self.summary.train) for name in missing)
        with train.progress_bar(total, "training") as bar:
            if processes:
                self._train_apart(shares, minutes, bar)
            else:
                for name in missing:
                    folder = self.network_file(name).parent
                    train.train(self.settings(name), self.images, folder, device=self.torch_device, progress=bar.update)

    def _train_apart(self, shares: Sequence[Sequence[str]], minutes: float | None, bar: tqdm) -> None:
        """Train each share of the networks in a process of its own, which ends with this one: it has nobody to report to."""
        command = [sys.executable, "-m", "repsim.train", "--passes", *(["--minutes", str(minutes)] if minutes else [])]
        for name, value in (dataclasses.asdict(self) | {"out": str(Path(self.out).resolve())}).items():
            command += ["-p", name, json.dumps(value)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(self.threads)}
        # in sessions of their own: Ctrl-C is for this process, which then ends the others
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        children = [subprocess.Popen([*command, *share], env=environment, **options) for share in shares]

        def follow(child: subprocess.Popen) -> str:
            """Why a process failed, if it did: the last line that is not a number of passes."""
            said = ""
            for line in map(str.strip, child.stdout):
                if line.isdigit():
                    with bar.get_lock():
                        bar.update(int(line))
                else:
                    said = line or said
            if child.wait() < 0:  # by a signal
                return "the process died (out of memory, or a crash in a native library)"
            return (said or f"it ended with status {child.returncode}") if child.returncode else ""

        with ThreadPoolExecutor(len(children)) as pool:
            try:
                failures = set(pool.map(follow, children)) - {""}
            except BaseException:
                for child in children:
                    child.terminate()
                raise
        if failures:
            raise RuntimeError(f"{', '.join(self.missing(sum(shares, [])))}: {'; '.join(sorted(failures))}")

    # What is made once and kept

    def key_of(self, names: Sequence[str]) -> str:
        """Of what is made of these networks: their settings, and the images."""
        return store.digest([self.summary.fingerprints, [self.settings(n).chosen() for n in names], TABLES])

    def table(self, name: str, make: Callable[[], pd.DataFrame], networks: Sequence[str] | None = None) -> pd.DataFrame:
        """The table `name` of this study, or of some of its networks: read if it is there, otherwise made and kept."""
        return self._kept(f"tables/{name}", "csv", networks, lambda p: store.load_table(p)[0], make, store.save_table)

    def compared(self, name: str, make: Callable[[], Comparison], networks: Sequence[str] | None = None) -> Comparison:
        """As `table`, for a comparison, which keeps intervals of the pairs that `keeps_folds` names."""
        kept = self._tensors(f"tables/{name}", lambda: make().select(keeps_folds).to_tensors(), networks)
        return Comparison.from_tensors(*kept)

    def tensors(
        self, name: str, make: Callable[[], Mapping[str, Tensor]], networks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """As `table`, for named tensors that tables are made of: kept in OUT/tensors, and not published, as they are large."""
        return dict(self._tensors(f"tensors/{name}", lambda: (make(), {}), networks)[0])

    def _tensors(self, name: str, make: Callable[[], tuple], networks: Sequence[str] | None) -> tuple[dict, dict]:
        """As `table`, for tensors with metadata."""

        def save(path: Path, made: tuple[dict, dict], about: dict[str, Any]) -> None:
            store.save_tensors(path, made[0], made[1] | about)

        return self._kept(name, "safetensors", networks, store.load_tensors, make, save)

    def _kept(self, name, ending, networks, load, make, save) -> Any:
        """What load(path) or make() gives, in the latter case after save(path, it, about), about being how it was made."""
        networks, begun = self.names if networks is None else networks, time.monotonic()
        path = self.folder / f"{name}-{self.key_of(networks)}.{ending}"
        if self.artefacts is not None:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such table among the published results; {REMEDY}")
            return load(path)

        def save_with_protocol(path: Path, made: Any) -> None:
            about = {"table": Path(name).name, "networks": list(networks), "protocol": dict(self.protocol().to_numpy())}
            save(path, made, about | {"seconds": round(time.monotonic() - begun, 1)})

        return store.load_or_make(path, load, make, save_with_protocol)

    @functools.cached_property
    def views(self) -> dict[str, Callable[..., Tensor]]:
        """The two draws of SimCLR's augmentations, in the strengths that this study trains with, of which readings are made."""
        return dict.fromkeys(VIEWS, functools.partial(augment.simclr, **self.settings("simclr-0").simclr_views()))

    @functools.cache  # noqa: B019
    def comparison(self) -> Comparison:
        """CKA of all layers of all networks over the first CKA_IMAGES test images, from one pass.

        Streams: every network, "labels", "pixels". Estimators: "unbiased", "rbf", and "trimmed", without the images that are
        among the largest 1 % by norm at the end of some stage of some network.
        """

        def make() -> Comparison:
            self.train_missing()
            labels, estimators = self.images.test.labels[:CKA_IMAGES], ("unbiased", "rbf", "trimmed")
            options = {"labels": labels, "pixels": True, "estimators": estimators}
            return self.compare(self.names, leave_out=self._outliers(len(labels)), **options)

        return self.compared("cka", make)

    def compare(
        self, networks: Sequence[str], others: Mapping[str, nn.Module] | None = None, **options: Any
    ) -> Comparison:
        """CKA of all layers of these networks, which are trained if missing, over the first CKA_IMAGES test images, in FOLDS folds.

        others: name -> further networks, such as snapshots. options: further arguments of `cka.compare`. `compared` keeps the
        result.
        """
        self.train_missing(networks)
        images = self.images.test.images[:CKA_IMAGES]
        batches = FOLDS * math.ceil(len(images) / (FOLDS * 128)) if len(images) >= 4 * FOLDS else len(images) // 4
        nets = {name: self.network(name).model for name in networks} | dict(others or {})
        options |= {"batch_size": math.ceil(len(images) / batches), "folds": FOLDS}
        return cka.compare(nets, images, progress=True, **options)

    def _outliers(self, count: int, fraction: float = 0.01) -> Tensor:
        """Those of the first test images that are among the farthest from the mean at the end of a stage (Davari et al. 2022)."""
        largest = set()
        for name in self.names:
            features = self.features(name, "test")
            for stage in models.STAGES:
                x = features[claims.end_of(list(features), stage)][:count].double()
                norms = torch.linalg.vector_norm(x - x.mean(0), dim=1)
                largest |= set(norms.topk(math.ceil(fraction * count)).indices.tolist())
        return torch.tensor(sorted(largest))

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def features(self, name: str, split: str, view: str | None = None) -> dict[str, Tensor]:
        """Pooled features of every layer of a network: layer -> (n, channels), of the images or of a random view of them.

        "pixels" is a network too, of one layer of that name.
        """
        images = getattr(self.images, split).images
        if view is not None:
            chunks = enumerate(images.split(1024))
            draws = [self.views[view](chunk, store.generator("features", split, view, i)) for i, chunk in chunks]
            images = torch.cat(draws)
        if name == "pixels":
            x = data.as_input(images) if images.dtype == torch.uint8 else images
            return {"pixels": x.flatten(1)}
        return taps.pooled(self.network(name).model, images)

    @functools.cache  # noqa: B019
    def readings(self, name: str) -> dict[str, pd.DataFrame]:
        """What can be read out of each layer of a network, by fold of the test images: measure -> (folds, layers).

        Measures: "probe" (cross-entropy, nats), "correct" (of its most probable class), "knn" (ten nearest training images),
        "retrieval" (of an image's other view), "views" (fitted NT-Xent, nats), "views of a class" (the same in batches of one
        class); of "pixels" the first three. Residual layers and the pool, which is the end of stage 4, are left out.
        """
        networks = [] if name == "pixels" else [name]
        return folded(*self._tensors(f"tables/readings-{name}", lambda: self._read(name), networks))

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Each test image's outcomes, measure -> (n, layers), and the layers' names."""

        def of(split: str, view: str | None = None) -> dict[str, Tensor]:
            features = self.features(name, split, view)
            return {l: x for l, x in features.items() if models.layer_kind(l) not in ("residual", "pool")}

        labels = {split: getattr(self.images, split).labels for split in ("train", "validation", "test")}
        classes = len(self.summary.classes)
        fit = [value for split in labels for value in (of(split), labels[split])]
        probe = probes.linear_probe(*fit, classes=classes)
        tables = {"probe": probe.loss, "correct": probe.correct}
        tables["knn"] = probes.knn(of("train"), labels["train"], of("test"), labels["test"], classes=classes)
        if name != "pixels":
            views = [of(split, view) for split in ("train", "test") for view in VIEWS]
            options = {"batch": min(128, self.summary.train, self.summary.test), "steps": 150}
            options["temperature"] = self.settings("simclr-0").temperature
            fitted = probes.fitted_nt_xent(*views, labels["test"], **options)
            tables |= {"retrieval": probes.retrieval(*views[2:]), "views": fitted.mixed}
            tables |= {"views of a class": fitted.of_a_class}
        outcomes = {measure: torch.tensor(table.to_numpy(dtype="float32")) for measure, table in tables.items()}
        return outcomes, {"layers": {measure: list(table) for measure, table in tables.items()}}

    def per_network(self, table: str, names: Sequence[str], make: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
        """One table per network, kept one by one (for any study with that network), as one with a column `network`."""
        tables = [self.table(f"{table}-{n}", functools.partial(make, n), [n]).assign(network=n) for n in names]
        return pd.concat(tables, ignore_index=True)

    def history(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """The training histories: network, epoch, loss, validation_loss, learning_rate."""
        return self.per_network("history", self.names if names is None else names, lambda n: self.network(n).history)

    # What the claims rest on

    def basis(self) -> str:
        """The scale of this study in one sentence."""
        images, settings = self.summary, self.settings("sl-0")
        return (
            f"{images.name}, {images.train:,} training and {images.test:,} test images; {settings.architecture} of "
            f"width {settings.width}; {settings.epochs} epochs SL, {self.settings('simclr-0').epochs} epochs SimCLR; "
            f"{self.seeds} seeds"
        )

    @functools.cache  # noqa: B019
    def evidence(self) -> Evidence:
        """Comparison and readings of all networks, which are trained if they are missing."""
        self.train_missing()
        return Evidence(self.comparison(), {name: self.readings(name) for name in self.names}, self.seeds)

    @functools.cache  # noqa: B019
    def accuracy(self) -> dict[str, float]:
        """Accuracy of the linear probe at the pool, averaged over seeds and images, of each objective, and of "pixels"."""
        readings = {name: self.readings(name) for name in self.names}
        evidence = Evidence(None, readings, self.seeds)
        layer = claims.end_of(list(readings["sl-0"]["correct"]), "layer4")
        objectives = ("untrained", "sl", "simclr", *self.controls)
        accuracy = {o: float(evidence.reading("correct", o, layer)[0]) for o in objectives}
        pixels = self.readings("pixels")["correct"]
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
        """Write verdicts to OUT/claims/NAME.json, for run_all.py to collect, each with what this study's are based on.

        learnt: what the networks have learnt, in one sentence, where they are others than the study's own.
        """
        about = {"basis": self.basis(), "exploratory": self.summary.factors}
        about["preregistration"] = git("log", "-1", "--format=%h", "--", "docs/preregistration.md")
        about["learnt"] = self.learnt() if learnt is None else learnt
        text = json.dumps([about | row for row in verdicts], indent=1, allow_nan=False)
        store.write(Path(self.out) / "claims" / f"{name}.json", text + "\n")

    def answer(self, judged: Sequence[Claim]) -> str:
        """Markdown: each claim's effect with its verdict, and whether the networks have learnt."""
        lines = []
        for claim in judged:
            reason = f" {claim.reason}." * bool(claim.reason and not claim.gate)
            lines.append(f"- {claim.sentence} **{claim.id}: {claim.verdict}.**{reason}")
        lines.append(f"\n*This run:* {self.basis()}. {self.learnt()}")
        if self.summary.factors:
            lines.append("\n*Exploratory: these images were designed so that the phenomenon shows.*")
        if self.gate():
            lines.append(f"\n**Not judged:** {self.gate()}.")
        return "\n".join(lines)

    def attacks(self) -> pd.DataFrame:
        """What attacks make of the claims, as chapter 05 left it or as it is published; no rows if there is nothing."""
        file = self.folder / ("claims.json" if self.artefacts else "claims/attacks.json")
        rows = json.loads(file.read_text()) if file.exists() else []
        rows = [attack for claim in rows for attack in claim["attacks"]] if self.artefacts else rows
        return pd.DataFrame(rows, columns=["row", "value", "family", "name", "whole"])

    def protocol(self, networks: Sequence[str] | None = None) -> pd.DataFrame:
        """How the numbers of this study are made: two columns, what and how. Every table's file carries it.

        networks: where they are not those that the study itself trains.
        """
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
        unsaid = (
            ("out", "data") if self.artefacts else ("out",)
        )  # the protocol says of what images published results are
        parameters = {name: value for name, value in dataclasses.asdict(self).items() if name not in unsaid}
        text = ", ".join(f"{name} = {value}" for name, value in parameters.items() if value is not None)
        rows = {
            "parameters": text.replace(f"{ROOT}/", ""),
            "versions": f"{VERSIONS}, commit {git('describe', '--always', '--dirty')}",
            "device": f"{self.torch_device}, {torch.get_num_threads()} threads on {os.cpu_count()} cores",
            "time": f"{time.monotonic() - self.begun:.0f} s since the study was opened in this notebook",
        }
        return pd.DataFrame(rows.items(), columns=["what", "how"])


def keeps_folds(first: Source, second: Source) -> bool:
    """Whether this pair needs an interval: layers of one name, a network's own grid, and the labels."""
    (a, k), (b, l) = first, second
    return k == l or a == b or "labels" in (a, b)


def folded(outcomes: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Readings by fold of the test images, measure -> (folds, layers), from each image's outcomes or from published folds."""
    layers = about["layers"]
    tables = {name: pd.DataFrame(outcomes[name].double().numpy(), columns=layers[name]) for name in layers}
    if "images" not in outcomes:
        return {measure: probes.by_fold(table) for measure, table in tables.items()}
    for table in tables.values():
        table.attrs["images"] = outcomes["images"].numpy()
    return tables


def git(*arguments: str) -> str:
    """What git says of this checkout; "unknown" if nothing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def publish(study: Study, folder: str | Path) -> Path:
    """Copy what a run kept of this study to `folder`: tables, verdicts, and provenance.json, which says how they were made.

    Tables are those in `study.out` that are of networks with these settings on these images; readings are kept by fold, a
    hundredth of each image's outcomes. Verdicts are those that run_all.py collected. Networks that lie in `folder` stay.
    `Study.open(folder)` reads it.
    """
    folder, verdicts = Path(folder), Path(study.out) / "claims.json"
    commit = git("describe", "--always", "--dirty")  # before anything in the checkout changes
    shutil.rmtree(folder / "tables", ignore_errors=True)
    (folder / "tables").mkdir(parents=True)
    (folder / "claims.json").unlink(missing_ok=True)
    if verdicts.exists() and json.loads(verdicts.read_text()):
        shutil.copyfile(verdicts, folder / "claims.json")
    seconds, networks = {}, set()
    for path in sorted((Path(study.out) / "tables").glob("[!.]*")):
        about, target = store.load_meta(path), folder / "tables" / path.name
        name, _, key = path.stem.rpartition("-")
        if key != study.key_of(about["networks"]):
            continue
        if name.startswith("readings-"):
            tables = folded(*store.load_tensors(path))
            tensors = {measure: torch.tensor(table.to_numpy()) for measure, table in tables.items()}
            store.save_tensors(target, tensors | {"images": torch.tensor(tables["probe"].attrs["images"])}, about)
        else:
            shutil.copyfile(path, target)
        networks |= set(about["networks"])
        seconds[name] = about["seconds"]
    files = sorted(path for part in ("tables/*", "networks/*", "claims.json") for path in folder.glob(part))
    trained = {name: file for name in sorted(networks) if (file := study.network_file(name)).exists()}
    cuda = study.torch_device.type == "cuda"
    provenance = {
        "parameters": {name: value for name, value in dataclasses.asdict(study).items() if name not in PLACES},
        "images": study.summary._asdict(),
        "basis": study.basis(),
        "made": datetime.date.today().isoformat(),
        "commit": commit,
        "versions": PACKAGES,
        "hardware": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {study.threads} threads",
        "training_seconds": {name: store.load_meta(file)["seconds"] for name, file in trained.items()},
        "seconds": seconds,
        "checksums": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }
    store.write(folder / "provenance.json", json.dumps(provenance, indent=1, allow_nan=False) + "\n")
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Train networks of a study where its notebooks look for them; by all ranks where torchrun starts them."""
    parser = argparse.ArgumentParser(prog="python -m repsim.train", description=main.__doc__)
    add, fields = parser.add_argument, {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    add("network", nargs="+", help="OBJECTIVE-SEED, such as simclr-0")
    add("--profile", default="quick", metavar="NAME|FILE", help="profiles/NAME.yaml or a YAML file")
    add("-p", **fields, help="a field of the study")
    add("--minutes", type=float, default=math.inf, help="start no network that would not be done by then")
    add("--passes", action="store_true", help="print the number of image passes after each step, for a bar")
    options, begun = parser.parse_args(argv), time.monotonic()
    try:
        study = Study.open(options.profile, **profiles.read_changes(options.p))
        for name in options.network:
            study.settings(name)
        study.images  # noqa: B018 (looked at before the ranks meet)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    report = functools.partial(print, flush=True) if options.passes else True
    with distributed.started(study.torch_device):
        for name in options.network:
            expected = study.expected_seconds(name) if math.isfinite(options.minutes) else 0
            if time.monotonic() - begun + expected > 60 * options.minutes:
                break
            loss = study.network(name, report).history.loss.iloc[-1]
            if not (distributed.rank() or options.passes):
                print(f"{name}: loss {loss:.4f}, kept in {study.network_file(name).parent}", flush=True)


if __name__ == "__main__":  # python -m repsim.train
    main()
