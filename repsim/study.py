"""A study: its settings, the networks it needs, and every table the notebooks draw, each loaded if there and made if not.

    study = Study.open("quick", width=16)      # a profile with a change
    study.network("simclr-0").model            # trained on first use
    study.comparison().matrix("sl-0", "simclr-1")
    study.probe()                              # a DataFrame
    Study.open("results/cifar10-cpu").probe()  # of published results, without images and networks

Everything is kept below `out`, keyed by the settings and by the images' content, so that a killed study goes on where it
was and a changed setting never meets an old result.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import datetime
import difflib
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
import yaml
from torch import Tensor, nn

from repsim import __version__, augment, cka, claims, data, distributed, models, probes, store, taps, train
from repsim.claims import VIEWS, Claim, Evidence
from repsim.comparison import Comparison
from repsim.probes import FOLDS

ROOT = Path(__file__).resolve().parent.parent  # the checkout, from which relative paths count
PROFILES = ROOT / "profiles"
REMEDY = "it can be made with a profile and the images"
SIZES = ("train_images", "test_images", "image_size", "context", "saturation")  # fields that data.load takes
CKA_IMAGES = 2560  # test images of the comparison at most: the first ones, which are a random sample
PLACES = ("data", "device", "out", "artefacts")  # fields of a study that say where, not what
WORTH_A_PROCESS = 20  # seconds of training that starting processes pays for
DIED = "the process died (out of memory, or a crash in a native library)"
# What the objectives need beside the common settings; `recipe` overrides it.
RECIPES: Mapping[str, Mapping[str, Any]] = {"sl": {"learning_rate": 0.1}, "simclr": {"learning_rate": 0.1}}
TABLES = 1  # the format of tables: the published ones are found by it
CIRCULAR = {"foreground_hue": 1, "background_hue": 1, "texture_angle": 180}  # factors of the embedded images -> period


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
    artefacts: str | None = None  # a folder of published tables to draw from, with their settings; nothing is trained

    def __post_init__(self) -> None:
        if isinstance(self.artefacts, str):  # the published settings replace the others
            for name, value in publication(self.artefacts)["parameters"].items():
                object.__setattr__(self, name, value)
        train.check_types(self)
        for name in ("train_images", "test_images", "image_size", "width", "seeds", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.device.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            raise ValueError(f"device: expected auto, cpu, cuda or mps, got {self.device!r}")
        if self.test_images is not None and self.test_images < 8:
            raise ValueError(f"test_images: expected at least 8 for a comparison, got {self.test_images}")
        data.check_appearance(self.data, self.context, self.saturation)
        others = [o for o in train.OBJECTIVES if o not in ("untrained", "sl", "simclr")]
        for objective in self.controls:
            if objective not in others:
                raise ValueError(
                    f"controls: expected some of {', '.join(others)}, got {objective!r}{similar(objective, others)}"
                )
        settings = [f.name for f in dataclasses.fields(train.Settings)]
        for key, value in self.recipe.items():
            of_objective = key in train.OBJECTIVES and isinstance(value, dict)
            for name in value if of_objective else [key]:
                if name not in settings:
                    known = settings if of_objective else [*settings, *train.OBJECTIVES]
                    raise ValueError(
                        f"recipe: {name!r} is neither an objective nor a field of train.Settings{similar(name, known)}"
                    )
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
        _check_injected()
        source = located(profile)
        if source.is_dir():
            check(source)
            values = {name: changes.pop(name) for name in PLACES if name in changes}
            made = dataclasses.asdict(cls(artefacts=str(source)))
            for name, value in check_names(changes).items():
                if value != made[name]:
                    raise ValueError(
                        f"{name}: {value!r} is asked for, but {source} was made with {made[name]!r}; own images and settings "
                        f"need a profile, such as quick"
                    )
            values |= {"artefacts": str(source)}
        else:
            values = check_names(changed(read_profile(source), changes))
        default = f"runs/{source.name}-published" if source.is_dir() else f"runs/{source.stem}"
        values |= {"out": str(ROOT / Path(values.get("out", default)).expanduser())}
        images = str(values.get("data", "shapes"))
        if images.lower() not in ("shapes", *data.TORCHVISION) and (ROOT / Path(images).expanduser()).is_dir():
            values["data"] = str(ROOT / Path(images).expanduser())
        if images.lower() != "shapes":  # a profile's context and saturation are of the embedded images
            for name in {"context", "saturation"} - set(changes):
                values.pop(name, None)
        study = cls(**values)
        if source.is_dir() and "data" in values:
            study.images  # noqa: B018 (checked now)
        return study

    @functools.cached_property
    def core(self) -> list[str]:
        """The networks that the claims speak of, "<objective>-<seed>"."""
        return [f"{objective}-{seed}" for objective in ("untrained", "sl", "simclr") for seed in range(self.seeds)]

    @functools.cached_property
    def names(self) -> list[str]:
        """All networks of this study: those of the core, and the controls."""
        return [*self.core, *(f"{objective}-{seed}" for objective in self.controls for seed in range(self.seeds))]

    def settings(self, name: str) -> train.Settings:
        """How the network `name` is trained."""
        objective, _, seed = name.rpartition("-")
        if objective not in train.OBJECTIVES or not seed.isdecimal():
            raise ValueError(
                f"network: expected OBJECTIVE-SEED with an objective of {', '.join(train.OBJECTIVES)}, got {name!r}"
            )
        base = train.OBJECTIVES[objective].base
        epochs = {"untrained": 0, "sl": self.epochs_sl, "simclr": self.epochs_simclr}
        options = {
            "architecture": self.architecture,
            "width": self.width,
            "batch_size": self.batch_size,
            "epochs": epochs.get(objective, epochs[base]),
            "threads": self.threads,
            **RECIPES[base],
            **{key: value for key, value in self.recipe.items() if key not in train.OBJECTIVES},
            **self.recipe.get(base, {}),  # a control is trained as what it is a control of
            **self.recipe.get(objective, {}),
        }
        try:
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
            raise ValueError(
                f"data: {self.data} holds other images than {self.artefacts} was made of; they need a profile"
            )
        return images

    @functools.cached_property
    def summary(self) -> data.Summary:
        """The images' title, sizes, classes and fingerprints."""
        if self.artefacts is None:
            return data.summary(self.images)
        kept = publication(self.artefacts)["images"]
        return data.Summary(**kept | {name: tuple(kept[name]) for name in ("classes", "fingerprints")})

    @functools.cache  # noqa: B019 (one study lives as long as its notebook)
    def network(self, name: str, progress: bool | Callable[[int], Any] = True) -> train.Trained:
        """The network `name`, in eval mode on the study's device; trained now if it is not there yet.

        Of published results, the network published with them. Raises FileNotFoundError if there is none.
        """
        if self.artefacts is None:
            folder = Path(self.out) / "networks"
            return train.train(self.settings(name), self.images, folder, device=self.torch_device, progress=progress)
        if not (file := self.network_file(name)).exists():
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
        model = trained.settings.build(len(self.summary.classes), self.torch_device)
        model.load_state_dict(trained.model.state_dict())
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

    def network_file(self, name: str) -> Path:
        """Where the network `name` is kept."""
        settings, images = self.settings(name), self.summary.fingerprints
        return (
            Path(self.artefacts or self.out) / "networks" / f"{name}-{settings.key(images[0] + images[1])}.safetensors"
        )

    def missing(self, names: Sequence[str] | None = None) -> list[str]:
        """Those of these networks, or of all, that have yet to be trained, in the order of seeds."""
        names = [n for n in dict.fromkeys(self.names if names is None else names) if not n.startswith("untrained-")]
        by_seed = sorted(names, key=lambda name: int(name.rpartition("-")[2]))
        return [name for name in by_seed if self.artefacts is None and not self.network_file(name).exists()]

    def expected_seconds(self, name: str) -> float:
        """How long the network will train: its passes, by the time of one in the last network like it, or as measured now."""
        settings, like = self.settings(name), ("architecture", "width", "stem", "precision", "threads")
        passes = train.passes(settings, self.summary.train)
        files = sorted((Path(self.out) / "networks").glob("*.safetensors"), key=os.path.getmtime, reverse=True)
        for file in files:
            with contextlib.suppress(store.Damaged):
                meta = store.load_meta(file)
                same = all(meta["settings"].get(field, 1) == getattr(settings, field) for field in like)
                if same and meta["images"] == self.summary.name and meta.get("passes"):
                    return passes * meta["seconds"] / meta["passes"]
        return passes * self._seconds_per_pass

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
        missing = self.missing(names)
        if not missing:
            return
        seconds = {name: self.expected_seconds(name) for name in missing}
        if processes is None:
            pays = self.torch_device.type == "cpu" and "REPSIM_BATCH" not in os.environ
            processes = cores() // self.threads if pays and sum(seconds.values()) > WORTH_A_PROCESS else 0
        shares: list[list[str]] = [[] for _ in range(max(1, min(processes, len(missing))))]
        for name in missing:
            min(shares, key=lambda share: (sum(seconds[n] for n in share), len(share))).append(name)
        longest = max(sum(seconds[n] for n in share) for share in shares)
        count = len(set(self.names if names is None else names))
        print(
            f"Training {len(missing)} of {count} networks, about {duration(longest)}: {', '.join(missing)}",
            file=sys.stderr,
        )
        total = sum(train.passes(self.settings(name), self.summary.train) for name in missing)
        with train.progress_bar(total, "training") as bar:
            if processes > 0:
                return self._train_apart(shares, minutes, bar)
            for name in missing:
                folder = Path(self.out) / "networks"
                train.train(self.settings(name), self.images, folder, device=self.torch_device, progress=bar.update)

    def _train_apart(self, shares: Sequence[Sequence[str]], minutes: float | None, bar: Any) -> None:
        """Train each share of the networks in a process of its own, which ends with this one."""
        command = [sys.executable, "-m", "repsim.train", "--passes", *(["--minutes", str(minutes)] if minutes else [])]
        for name, value in (dataclasses.asdict(self) | {"out": str(Path(self.out).resolve())}).items():
            command += ["-p", name, json.dumps(value)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(self.threads)}
        children: list[subprocess.Popen] = []
        lock = threading.Lock()

        def train_share(names: Sequence[str]) -> str | None:
            """Why it failed, if it did."""
            with tempfile.TemporaryFile("w+") as errors:
                pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
                # in a session of its own: Ctrl-C is for this process, which then ends the others
                child = subprocess.Popen([*command, *names], env=environment, start_new_session=True, **pipes)
                children.append(child)
                with child.stdout as lines:
                    for line in filter(str.isdigit, map(str.strip, lines)):
                        with lock:
                            bar.update(int(line))
                if child.wait() < 0:  # by a signal
                    return DIED
                errors.seek(0)
                return errors.read().strip().rpartition("\n")[2] if child.returncode else None

        with ThreadPoolExecutor(len(shares)) as pool:
            try:
                failures = set(pool.map(train_share, shares)) - {None}
            except BaseException:
                for child in children:
                    child.terminate()
                raise
        if failures:
            raise RuntimeError(f"{', '.join(self.missing(sum(shares, [])))}: {'; '.join(sorted(failures))}")

    # What is made once and kept

    @functools.cached_property
    def key(self) -> str:
        """Of what is made of all networks."""
        return self.key_of(self.names)

    def key_of(self, names: Sequence[str]) -> str:
        """Of what is made of these networks: their settings, and the images."""
        return store.digest([self.summary.fingerprints, [self.settings(n).chosen() for n in names], TABLES])

    def table(self, name: str, make: Callable[[], pd.DataFrame], networks: Sequence[str] | None = None) -> pd.DataFrame:
        """The table `name` of this study, or of some of its networks: read if it is there, otherwise made and kept."""

        names = self.names if networks is None else networks

        def save(path: Path, made: tuple[pd.DataFrame, float]) -> None:
            store.save_table(path, made[0], self._about(name, names, made[1]))

        return self._kept(self._file(name, names, "csv"), lambda path: store.load_table(path)[0], make, save)

    def compared(self, name: str, make: Callable[[], Comparison], networks: Sequence[str] | None = None) -> Comparison:
        """As `table`, for a comparison, of which the pairs that are `drawn` are kept."""
        names = self.names if networks is None else networks

        def save(path: Path, made: tuple[Comparison, float]) -> None:
            tensors, meta = made[0].to_tensors()
            store.save_tensors(path, tensors, meta | self._about(name, names, made[1]))

        return self._kept(
            self._file(name, names, "safetensors"),
            lambda path: Comparison.from_tensors(*store.load_tensors(path)),
            lambda: make().select(by_fold, wanted),
            save,
        )

    def tensors(
        self, name: str, make: Callable[[], Mapping[str, Tensor]], networks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """As `table`, for named tensors that tables are made of: kept in OUT/tensors, and not published, as they are large."""
        names = self.names if networks is None else networks

        def save(path: Path, made: tuple[Mapping[str, Tensor], float]) -> None:
            store.save_tensors(path, made[0], self._about(name, names, made[1]))

        path = Path(self.artefacts or self.out) / "tensors" / self._file(name, names, "safetensors").name
        return dict(self._kept(path, lambda path: store.load_tensors(path)[0], make, save))

    def _file(self, name: str, networks: Sequence[str], ending: str) -> Path:
        return Path(self.artefacts or self.out) / "tables" / f"{name}-{self.key_of(networks)}.{ending}"

    def _about(self, name: str, networks: Sequence[str], seconds: float) -> dict[str, Any]:
        about = {"table": name, "networks": list(networks), "seconds": round(seconds, 1)}
        return about | {"protocol": self._protocol()}

    def _kept(self, path: Path, load: Callable, make: Callable, save: Callable) -> Any:
        if self.artefacts is None:

            def timed() -> tuple[Any, float]:
                begun = time.monotonic()
                return make(), time.monotonic() - begun

            made = store.load_or_make(path, lambda path: (load(path), 0.0), timed, save)
            return made[0]
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such table among the published results; {REMEDY}")
        return load(path)

    @functools.cached_property
    def views(self) -> dict[str, Callable[..., Tensor]]:
        """The two draws of SimCLR's augmentations, in the strengths that this study trains with, of which readings are made."""
        return dict.fromkeys(VIEWS, functools.partial(augment.simclr, **self.settings("simclr-0").simclr_views()))

    @functools.cache  # noqa: B019
    def comparison(self) -> Comparison:
        """CKA of all layers of all networks over the first CKA_IMAGES test images, from one pass.

        Streams: every network, "NETWORK@view-a" and "NETWORK@view-b", "labels", "pixels". Estimators: "unbiased", "rbf", and
        "trimmed", without the images that are among the largest 1 % by norm at the end of some stage of some network.
        """
        return self.compared("cka", self._compare)

    def _compare(self) -> Comparison:
        self.train_missing(self.names)
        labels = self.images.test.labels[:CKA_IMAGES]
        return self.compare(
            self.names,
            labels=labels,
            views=self.views,
            pixels=True,
            estimators=("unbiased", "rbf", "trimmed"),
            leave_out=self._outliers(len(labels)),
        )

    def compare(self, networks: Sequence[str], **options: Any) -> Comparison:
        """CKA of all layers of these networks, which are trained if missing, over the first CKA_IMAGES test images, in FOLDS folds.

        options: further arguments of `cka.compare`. `compared` keeps the result.
        """
        self.train_missing(networks)
        images = self.images.test.images[:CKA_IMAGES]
        batches = FOLDS * math.ceil(len(images) / (FOLDS * 128)) if len(images) >= 4 * FOLDS else len(images) // 4
        models = {name: self.network(name).model for name in networks}
        options |= {"batch_size": math.ceil(len(images) / batches), "folds": FOLDS}
        return cka.compare(models, images, progress=True, **options)

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
        names = [] if name == "pixels" else [name]

        def load(path: Path) -> dict[str, pd.DataFrame]:
            tensors, meta = store.load_tensors(path)
            tables = {
                m: pd.DataFrame(tensors[m].double().numpy(), columns=layers) for m, layers in meta["layers"].items()
            }
            if "images" not in tensors:  # each image's outcome, as it is kept where it was made
                return {measure: probes.by_fold(table) for measure, table in tables.items()}
            for table in tables.values():
                table.attrs["images"] = tensors["images"].numpy()
            return tables

        def save(path: Path, made: tuple[dict[str, pd.DataFrame], float]) -> None:
            tensors = {measure: torch.tensor(table.to_numpy(dtype="float32")) for measure, table in made[0].items()}
            layers = {measure: list(table) for measure, table in made[0].items()}
            store.save_tensors(path, tensors, {"layers": layers, **self._about(f"readings-{name}", names, made[1])})

        path = self._file(f"readings-{name}", names, "safetensors")
        made = self._kept(path, load, lambda: self._read(name), save)
        folded = all("images" in table.attrs for table in made.values())
        return made if folded else {measure: probes.by_fold(table) for measure, table in made.items()}

    def _read(self, name: str) -> dict[str, pd.DataFrame]:
        """Each test image's outcomes: measure -> (n, layers)."""

        def of(split: str, view: str | None = None) -> dict[str, Tensor]:
            features = self.features(name, split, view)
            return {l: x for l, x in features.items() if models.layer_kind(l) not in ("residual", "pool")}

        labels = {split: getattr(self.images, split).labels for split in ("train", "validation", "test")}
        classes = len(self.summary.classes)
        fit = [value for split in labels for value in (of(split), labels[split])]
        probe = probes.linear_probe(*fit, classes=classes)
        tables = {"probe": probe.loss, "correct": probe.correct}
        tables["knn"] = probes.knn(of("train"), labels["train"], of("test"), labels["test"], classes=classes)
        if name == "pixels":
            return {measure: table.astype("float32") for measure, table in tables.items()}
        views = [of(split, view) for split in ("train", "test") for view in VIEWS]
        fitted = probes.fitted_nt_xent(
            *views,
            labels["test"],
            batch=min(128, self.summary.train, self.summary.test),
            temperature=self.settings("simclr-0").temperature,
            steps=150,
        )
        tables["retrieval"] = probes.retrieval(*views[2:])
        tables |= {"views": fitted.mixed, "views of a class": fitted.of_a_class}
        return {measure: table.astype("float32") for measure, table in tables.items()}  # as they are kept

    def per_network(self, table: str, names: Sequence[str], make: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
        """One table per network, kept one by one (for any study with that network), as one with a column `network`."""
        networks = [name for name in names if name != "pixels"]
        self.train_missing([n for n in networks if not self._file(f"{table}-{n}", [n], "csv").exists()])
        parts = [
            self.table(f"{table}-{name}", functools.partial(make, name), [] if name == "pixels" else [name]).assign(
                network=name
            )
            for name in names
        ]
        return pd.concat(parts, ignore_index=True)

    def factors(self, names: Sequence[str]) -> pd.DataFrame | None:
        """How well each known factor of the embedded images can be read out of each layer; None for other images."""
        if not self.summary.factors:
            return None

        def make(name: str) -> pd.DataFrame:
            splits = [(self.features(name, s), known_factors(getattr(self.images, s))) for s in ("train", "test")]
            return probes.factor_probe(*splits[0], *splits[1], circular=CIRCULAR)

        return self.per_network("factors", names, make)

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
        self.train_missing(self.names)
        return Evidence(self.comparison(), {name: self.readings(name) for name in self.names}, self.seeds)

    @functools.cache  # noqa: B019
    def accuracy(self) -> dict[str, float]:
        """Accuracy of the linear probe at the pool, averaged over seeds and images, of each objective, and of "pixels"."""
        sums: dict[str, list[float]] = {}
        for name in [*self.names, "pixels"]:
            table = self.readings(name)["correct"]
            layer = "pixels" if name == "pixels" else claims.end_of(list(table), "layer4")
            mean = np.average(table[layer], weights=table.attrs["images"])
            sums.setdefault(name.rpartition("-")[0] or name, []).append(mean)
        return {objective: float(np.mean(values)) for objective, values in sums.items()}

    def gate(self) -> str:
        """Why the claims are not judged, with the remedy; empty if they are."""
        return claims.gate(self.accuracy(), self.seeds)

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
        about = {"basis": self.basis(), "exploratory": self.summary.factors, "preregistration": preregistration()}
        about["learnt"] = self.learnt() if learnt is None else learnt
        text = json.dumps([about | row for row in verdicts], indent=1, allow_nan=False)
        store.write(Path(self.out) / "claims" / f"{name}.json", text + "\n")

    def learnt(self) -> str:
        """What linear probes read at the pool of each objective and of the baselines, in one sentence."""
        accuracy, titles = self.accuracy(), claims.TITLES | {"pixels": "raw pixels"}
        read = ", ".join(f"{titles[o]} {accuracy[o]:.2f}" for o in titles if o in accuracy)
        return f"Linear probes at the pool read {read}; chance is {1 / len(self.summary.classes):.2f}."

    def answer(self, judged: Sequence[Claim]) -> str:
        """Markdown: each claim's effect with its verdict, and whether the networks have learnt."""
        lines = [
            f"- {c.sentence} **{c.id}: {c.verdict}.**" + f" {c.reason}." * bool(c.reason and not c.gate) for c in judged
        ]
        lines.append(f"\n*This run:* {self.basis()}. {self.learnt()}")
        if self.summary.factors:
            lines.append("\n*Exploratory: these images were designed so that the phenomenon shows.*")
        if self.gate():
            lines.append(f"\n**Not judged:** {self.gate()}.")
        return "\n".join(lines)

    def keep_attacks(self, ticks: pd.DataFrame) -> pd.DataFrame:
        """Keep what attacks make of the claims (row, value, family, name, whole) and return it without undefined values."""
        ticks = ticks[np.isfinite(ticks["value"])].reset_index(drop=True)
        store.write(Path(self.out) / "claims" / "attacks.json", json.dumps(ticks.to_dict("records"), indent=1) + "\n")
        return ticks

    def attacks(self) -> pd.DataFrame:
        """What `keep_attacks` kept, or what is published; no rows if there is nothing."""
        file = Path(self.artefacts) / "claims.json" if self.artefacts else Path(self.out) / "claims" / "attacks.json"
        rows = json.loads(file.read_text()) if file.exists() else []
        rows = [attack for claim in rows for attack in claim["attacks"]] if self.artefacts else rows
        return pd.DataFrame(rows, columns=["row", "value", "family", "name", "whole"])

    def notes(self, ticks: pd.DataFrame) -> dict[str, str]:
        """For each claim how many seeds it rests on, and how many of the attacks agree with it."""
        notes = {}
        for claim in self.judge():
            values = ticks.loc[ticks["row"] == claim.id, "value"]
            same = ((values > 1) == (claim.weakest.scaled[0] > 1)).sum()
            notes[claim.id] = f"S = {self.seeds}" + (
                f"; {same} of {len(values)} readings on the same side" if len(values) else ""
            )
        return notes

    def colophon(self) -> pd.DataFrame:
        """What produced this execution: versions, commit, parameters, time. Two columns, what and how."""
        unsaid = (
            {"out", "data"} if self.artefacts else {"out"}
        )  # the protocol says what images published results are of
        changed = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in unsaid and getattr(self, f.name) is not None
        }
        rows = {
            "parameters": ", ".join(f"{k} = {v}" for k, v in changed.items()).replace(f"{ROOT}/", ""),
            "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
            f"torchvision {torchvision.__version__}, repsim {__version__}, commit {commit()}",
            "device": f"{self.torch_device}, {torch.get_num_threads()} threads on {os.cpu_count()} cores",
            "time": f"{time.monotonic() - self.begun:.0f} s since the study was opened in this notebook",
        }
        return pd.DataFrame({"what": rows.keys(), "how": rows.values()})

    def protocol(self, networks: Sequence[str] | None = None) -> pd.DataFrame:
        """How the numbers of this study are made: two columns, what and how. Every table's file carries it.

        networks: where they are not those that the study itself trains.
        """
        rows = self._protocol() | ({"networks": ", ".join(networks)} if networks else {})
        return pd.DataFrame({"what": rows.keys(), "how": rows.values()})

    def _protocol(self) -> dict[str, str]:
        images = self.summary
        return {
            "images": f"{images.name}: {images.train:,} training, {images.validation:,} validation (cut from the "
            f"training set), {images.test:,} test; stratified, seed 0",
            "networks": ", ".join(self.names),
            "architecture": f"{self.architecture}, width {self.width}",
            "evaluation": "test images, eval mode, weights of the last epoch",
            "CKA": f"linear, unbiased, whole activation maps of the first {min(CKA_IMAGES, images.test):,} test images; HSIC "
            "averaged over batches of at most 128, ratio last",
            "intervals": f"95 %: delete-one jackknife over seeds and over {FOLDS} folds of the images, Student's t with "
            f"{self.seeds - 1} degrees of freedom",
            "views": "SimCLR's augmentations, two draws per image from seeded generators, the same for all networks",
            "probes": "logistic regression on pooled, standardised features; penalty chosen on the validation split",
            "versions": f"python {platform.python_version()}, torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}, repsim {__version__}",
        }


def wanted(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether figures or claims ask for this pair of sources: all pairs of clean images, and views of a network's layer."""
    (a, k), (b, l) = first, second
    return "@" not in a + b or b in ("labels", "pixels") or (a.split("@")[0], k) == (b.split("@")[0], l)


def by_fold(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether this pair needs an interval: layers of one name, a network's own grid, and its views."""
    (a, k), (b, l) = first, second
    return wanted(first, second) and (k == l or a.split("@")[0] == b.split("@")[0] or "labels" in (a, b))


@functools.cache
def preregistration() -> str:
    """The commit of docs/preregistration.md; "unknown" outside a checkout."""
    command = ["git", "log", "-1", "--format=%h", "--", "docs/preregistration.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True) if shutil.which("git") else None
    return done.stdout.strip() or "unknown" if done else "unknown"


def known_factors(part: data.ImageSet) -> pd.DataFrame:
    """The factors of embedded images that a layer is asked for, and their shape."""
    shape = pd.Categorical.from_codes(part.labels.numpy(), list(part.classes))
    return part.factors.drop(columns="texture_phase").astype({"texture": "category"}).assign(shape=shape)


def publish(study: Study, folder: str | Path) -> Path:
    """Copy what a run kept of this study to `folder`: tables, verdicts, and provenance.json, which says how they were made.

    Tables are those in `study.out` that are of networks with these settings on these images; verdicts are those that
    run_all.py collected. Networks that lie in `folder` stay. `Study.open(folder)` reads it.
    """
    folder, out = Path(folder), Path(study.out)
    shutil.rmtree(folder / "tables", ignore_errors=True)
    (folder / "tables").mkdir(parents=True)
    seconds, networks = {}, set()
    for path in sorted(path for ending in ("csv", "safetensors") for path in (out / "tables").glob(f"[!.]*.{ending}")):
        about = store.load_meta(path)
        if path.stem.endswith(f"-{study.key_of(about.get('networks', study.names))}"):
            if path.name.startswith("readings-"):
                _fold(path, folder / "tables" / path.name)
            else:
                shutil.copyfile(path, folder / "tables" / path.name)
            networks |= set(about.get("networks", ()))
            seconds[path.stem.rpartition("-")[0]] = about.get("seconds")
    parts = sorted([*(folder / "tables").iterdir(), *folder.glob("networks/*")])
    for name in ("claims.json",):
        (folder / name).unlink(missing_ok=True)
        if (out / name).exists() and json.loads((out / name).read_text()):
            shutil.copyfile(out / name, folder / name)
            parts.append(folder / name)
    trained = {name: file for name in sorted(networks) if (file := study.network_file(name)).exists()}
    cuda = study.torch_device.type == "cuda"
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
        "hardware": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {study.threads} threads",
        "training_seconds": {name: store.load_meta(file)["seconds"] for name, file in trained.items()},
        "seconds": seconds,
        "checksums": {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in parts},
    }
    store.write(folder / "provenance.json", json.dumps(provenance, indent=1, allow_nan=False) + "\n")
    return folder


def _fold(source: Path, target: Path) -> None:
    """Copy a network's readings by fold of the images, a hundredth of each image's outcomes."""
    tensors, meta = store.load_tensors(source)
    tables = {m: probes.by_fold(pd.DataFrame(x.double().numpy())) for m, x in tensors.items()}
    folded = {m: torch.tensor(table.to_numpy()) for m, table in tables.items()}
    folded["images"] = torch.tensor(next(iter(tables.values())).attrs["images"])
    store.save_tensors(target, folded, meta)


def check(folder: str | Path) -> dict[str, Any]:
    """What provenance.json says of published results, after their files have been found whole.

    Raises:
        ValueError: no provenance.json; a file that is missing or not what was published.
    """
    kept = publication(folder)
    for name, checksum in kept["checksums"].items():
        path = Path(folder) / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            raise ValueError(f"{path} is missing or not what was published; restore it")
    return kept


def publication(folder: str | Path) -> dict[str, Any]:
    """What FOLDER/provenance.json says of published results: parameters, images, and how they were made.

    Raises:
        ValueError: no such file, or not one that `publish` wrote.
    """
    try:
        kept = json.loads((Path(folder) / "provenance.json").read_text())
        return kept | {"parameters": dict(kept["parameters"]), "images": dict(kept["images"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"profile: expected a folder with a provenance.json, such as results/NAME, got {str(folder)!r} ({error!r})"
        ) from error


def commit() -> str:
    """The commit of this checkout, with a mark if files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def located(profile: str | Path) -> Path:
    """The file of a profile, or the folder of published results, that `profile` stands for in `Study.open`."""
    if not isinstance(profile, str | Path):
        raise ValueError(f"profile: expected a name or a path, got {profile!r}")
    path = ROOT / Path(profile).expanduser()
    for candidate in (PROFILES / f"{profile}.yaml", path):
        if candidate.is_file() or candidate.is_dir():
            return candidate
    known = [
        *sorted(p.stem for p in PROFILES.glob("*.yaml")),
        *sorted(f"results/{p.parent.name}" for p in ROOT.glob("results/*/provenance.json")),
    ]
    raise ValueError(
        f"profile: no file {path}, and no profile {str(profile)!r}{similar(str(profile), known)}; there are {', '.join(known)}"
    )


def read_profile(file: str | Path) -> dict[str, Any]:
    """The fields of `Study` in a YAML file.

    Raises:
        ValueError: not YAML, not a mapping, or a field that `Study` does not have.
    """
    try:
        values = yaml.safe_load(Path(file).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"profile: {file} is not YAML ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"profile: {file} has to map parameters to values, got {type(values).__name__}")
    return check_names(values)


def read_changes(changes: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Names and values of a command line, the values as JSON or YAML. Raises ValueError for what is neither."""

    def read(text: str) -> Any:
        try:
            return json.loads(text)  # to YAML 1.1 the number 1e-5 is a text
        except ValueError:
            return yaml.safe_load(text)

    try:
        return {name: read(text) for name, text in changes}
    except yaml.YAMLError as error:
        raise ValueError(f"parameter: not YAML ({error})") from error


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`; "recipe.simclr.temperature" changes that entry of the mapping `recipe` alone.

    Raises:
        ValueError: a part of something that is not a mapping.
    """
    values = dict(values)
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            inner = values.get(first, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{name}: {first} is not a mapping, but {inner!r}")
            value = changed(inner, {rest: value})
        values[first] = value
    return values


def check_names(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` if all are fields of `Study`. Raises ValueError naming one that is not, and those that are like it."""
    known = [f.name for f in dataclasses.fields(Study)]
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(
                f"{name} = {value!r}: a study has no parameter {name}{similar(name, known)}; there are {', '.join(known)}"
            )
    return dict(parameters)


def similar(name: object, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" with what `name` may have been meant for; "" if nothing is like it."""
    found = difflib.get_close_matches(str(name), list(known))
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def _check_injected() -> None:
    """Raise ValueError if papermill was given a parameter that the notebook does not have: it would warn and go on."""
    known: set[str] = set()
    for cell in vars(sys.modules["__main__"]).get("In", ()):  # the cells that this notebook has executed
        try:
            assigned = [t.id for node in ast.parse(cell).body if isinstance(node, ast.Assign) for t in node.targets]
        except (SyntaxError, AttributeError):
            continue
        if cell.startswith("# Parameters\n"):
            for name in set(assigned) - known:
                raise ValueError(
                    f"{name}: this notebook has no such parameter; its own are {', '.join(sorted(known))}, and a field of "
                    f"the study goes into changes: {{{name!r}: ...}}"
                )
        known |= set(assigned)


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def duration(seconds: float) -> str:
    """A time as a reader takes it: "50 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(argv: Sequence[str] | None = None) -> None:
    """Train networks of a study where its notebooks look for them; by all ranks where torchrun starts them."""
    parser = argparse.ArgumentParser(prog="python -m repsim.train", description=main.__doc__)
    parser.add_argument("network", nargs="+", help="OBJECTIVE-SEED, such as simclr-0")
    parser.add_argument("--profile", default="quick", metavar="NAME|FILE", help="profiles/NAME.yaml or a YAML file")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a field of the study"
    )
    parser.add_argument("--minutes", type=float, help="start no network that would not be done by then")
    parser.add_argument(
        "--passes", action="store_true", help="print the number of image passes after each step, for a bar"
    )
    options, until = parser.parse_args(argv), time.monotonic()
    until += 60 * (options.minutes or math.inf)
    try:
        study = Study.open(options.profile, **read_changes(options.p))
        for name in options.network:
            study.settings(name)
        study.images  # noqa: B018 (looked at before the ranks meet)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    report = functools.partial(print, flush=True) if options.passes else True
    with distributed.started(study.torch_device):
        for name in options.network:
            if options.minutes and time.monotonic() + study.expected_seconds(name) > until:
                break
            loss = study.network(name, report).history.loss.iloc[-1]
            if not (distributed.rank() or options.passes):
                print(f"{name}: loss {loss:.4f}, kept in {study.network_file(name).parent}", flush=True)


if __name__ == "__main__":  # python -m repsim.train
    main()
