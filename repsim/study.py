"""A study: its settings, the networks it needs, and every table the notebooks draw, each loaded if there and made if not.

    study = Study(data="shapes", train_images=2000, out="runs/mine")
    study.network("simclr-0").model          # trained on first use
    study.comparison().matrix("sl-0", "simclr-1")
    study.probe()                            # a DataFrame

    python -m repsim.study train sl-0 simclr-0 --profile cifar10                   networks ahead of the notebooks
    torchrun --nproc-per-node 8 -m repsim.study train simclr-0 --profile cifar10   one by eight GPUs
    python -m repsim.study make --profile cifar10                                  all that the notebooks draw

Everything is kept below `out`, keyed by the settings and by the images' content, so that a killed study goes on where it
was and a changed setting never meets an old result.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import runpy
import subprocess
import time
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision
import yaml
from torch import Tensor

from repsim import __version__, augment, cka, claims, data, grams, probes, store, taps, train
from repsim.claims import VIEWS, Claim, Evidence

PROFILES = Path(__file__).resolve().parent.parent / "profiles"
REMEDY = "set artefacts to null, and data to the images, to make it"
# What the objectives need beside the common settings; `recipe` overrides it.
RECIPES: Mapping[str, Mapping[str, Any]] = {"sl": {"learning_rate": 0.1}, "simclr": {"learning_rate": 0.1}}
TABLES = 1  # the format of tables: the published ones are found by it
CIRCULAR = {"foreground_hue": 1, "background_hue": 1, "texture_angle": 180}  # factors of the embedded images -> period


@dataclass(frozen=True, eq=False)
class Study:
    """The settings of a study, which are the parameters of every notebook. Checked when made: ValueError names the field."""

    data: str = "shapes"  # image set: "shapes" (embedded), a torchvision set such as "cifar10", or a folder
    train_images: int | None = 2000  # images trained on; None: all
    test_images: int | None = 1000  # images compared and tested on; None: all
    image_size: int | None = None  # images are resized to this many pixels a side; None: as they are
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
    out: str = "runs/study"  # where networks, tables and claims are kept
    artefacts: str | None = None  # a folder of published tables to draw from, with their settings; nothing is trained

    def __post_init__(self) -> None:
        if isinstance(self.artefacts, str):  # the published settings replace the others
            for name, value in publication(self.artefacts)["parameters"].items():
                object.__setattr__(self, name, value)
        hints = typing.get_type_hints(Study)
        for name, hint in hints.items():
            value, kinds = getattr(self, name), typing.get_args(hint) or (hint,)
            kinds = (float, int) if kinds == (float,) else kinds
            if not isinstance(value, kinds) or isinstance(value, bool):
                kind = " | ".join("null" if k is types.NoneType else k.__name__ for k in kinds)
                raise ValueError(f"{name}: expected {kind}, got {value!r} ({type(value).__name__})")
        for name in ("train_images", "test_images", "image_size", "width", "seeds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.test_images is not None and self.test_images < 8:
            raise ValueError(f"test_images: expected at least 8 for a comparison, got {self.test_images}")
        data.check_appearance(self.data, self.context, self.saturation)
        for objective in self.controls:
            if objective not in train.OBJECTIVES or objective in ("untrained", "sl", "simclr"):
                others = ", ".join(o for o in train.OBJECTIVES if o not in ("untrained", "sl", "simclr"))
                raise ValueError(f"controls: expected some of {others}, got {objective!r}")
        for key in self.recipe:
            if key not in train.OBJECTIVES and key not in {f.name for f in dataclasses.fields(train.Settings)}:
                raise ValueError(f"recipe: {key!r} is neither an objective nor a field of train.Settings")
        object.__setattr__(self, "begun", time.monotonic())
        object.__setattr__(self, "used", {})  # the files of tables that were read or made
        for name in self.names:  # every network's own checks
            self.settings(name)

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
        """Raises RuntimeError if the study is drawn from published artefacts, which have none."""
        if self.artefacts is not None:
            raise RuntimeError(f"images: not part of the published artefacts in {self.artefacts}; {REMEDY}")
        return data.load(
            self.data,
            train_images=self.train_images,
            test_images=self.test_images,
            image_size=self.image_size,
            context=self.context,
            saturation=self.saturation,
            root=Path(self.out).parent / "data",
        )

    @functools.cached_property
    def summary(self) -> data.Summary:
        """The images' title, sizes, classes and fingerprints."""
        if self.artefacts is None:
            return data.summary(self.images)
        kept = publication(self.artefacts)["images"]
        return data.Summary(**kept | {name: tuple(kept[name]) for name in ("classes", "fingerprints")})

    @functools.cache  # noqa: B019 (one study lives as long as its notebook)
    def network(self, name: str, progress: bool = True) -> train.Trained:
        """The network `name`, in eval mode on the study's device; trained now if it is not there yet."""
        folder = Path(self.out) / "networks"
        return train.train(self.settings(name), self.images, folder, device=self.torch_device, progress=progress)

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

        def made() -> pd.DataFrame:
            begun = time.monotonic()
            table = make()
            table.attrs["seconds"] = round(time.monotonic() - begun, 1)
            return table

        return self._kept(
            f"{name}-{self.key_of(self.names if networks is None else networks)}.csv",
            lambda path: store.load_table(path)[0],
            made,
            lambda path, table: store.save_table(
                path, table, {"table": name, **table.attrs, "protocol": self._protocol()}
            ),
        )

    def compared(
        self, name: str, make: Callable[[], cka.Comparison], networks: Sequence[str] | None = None
    ) -> cka.Comparison:
        """As `table`, for a comparison, of which the pairs that are `drawn` are kept."""

        def save(path: Path, comparison: cka.Comparison) -> None:
            tensors, meta = comparison.to_tensors()
            store.save_tensors(path, tensors, {**meta, "protocol": self._protocol()})

        return self._kept(
            f"{name}-{self.key_of(self.names if networks is None else networks)}.safetensors",
            lambda path: cka.Comparison.from_tensors(*store.load_tensors(path)),
            lambda: make().select(drawn),
            save,
        )

    def _kept(self, file: str, load: Callable, make: Callable, save: Callable) -> Any:
        if self.artefacts is None:
            kept = store.load_or_make(path := Path(self.out) / "tables" / file, load, make, save)
            self.used[path] = True
            return kept
        path = Path(self.artefacts) / "tables" / file
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such table among the published artefacts; {REMEDY}")
        return load(path)

    @functools.cache  # noqa: B019
    def comparison(self) -> cka.Comparison:
        """CKA of everything with everything over the test images, from one pass, by both estimators.

        Streams: every network, "NETWORK@view-a" and "NETWORK@view-b" (two draws of SimCLR's augmentations), "labels",
        "pixels".
        """
        return self.compared("cka", lambda: self.compare(self.names))

    def compare(self, names: Sequence[str], images: data.ImageSet | None = None, **options: Any) -> cka.Comparison:
        """`cka.compare` of these networks over the test images (or others), as `comparison` has it but for `options`."""
        images = self.images.test if images is None else images
        views = {view: augment.VIEWS["simclr"] for view in VIEWS}
        settings = {"pixels": True, "views": views, "estimators": cka.ESTIMATORS, "progress": True} | options
        models = {name: self.network(name).model for name in names}
        return cka.compare(models, images.images, labels=images.labels, batch_size=self.compare_batch, **settings)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def features(self, name: str, split: str, view: str | None = None) -> dict[str, Tensor]:
        """Pooled features of every layer of a network: layer -> (n, channels), of the images or of a random view of them.

        "pixels" is a network too, of one layer of that name.
        """
        images = getattr(self.images, split).images
        if view is not None:
            draw = augment.VIEWS["simclr"]
            chunks = enumerate(images.split(1024))
            images = torch.cat([draw(chunk, store.generator("features", split, view, i)) for i, chunk in chunks])
        if name == "pixels":
            x = data.as_input(images) if images.dtype == torch.uint8 else images
            return {"pixels": x.flatten(1)}
        return taps.pooled(self.network(name).model, images)

    def per_network(self, table: str, names: Sequence[str], make: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
        """One table per network, kept one by one (for any study with that network), as one with a column `network`."""
        parts = [
            self.table(f"{table}-{name}", functools.partial(make, name), [] if name == "pixels" else [name]).assign(
                network=name
            )
            for name in names
        ]
        return pd.concat(parts, ignore_index=True)

    def _splits(self, name: str) -> list[Any]:
        parts = ((self.features(name, s), getattr(self.images, s).labels) for s in ("train", "validation", "test"))
        return [value for part in parts for value in part]

    def probe(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """Linear-probe accuracy of every layer of every network, and of the pixels: network, layer, accuracy, low, high.

        Of all networks, or of those in `names`; so for the others below.
        """
        classes = len(self.summary.classes)
        return self.per_network(
            "probe",
            [*self.names, "pixels"] if names is None else names,
            lambda name: probes.linear_probe(*self._splits(name), classes=classes),
        )

    def knn(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """Cosine 10-NN accuracy of every layer, likewise."""

        def make(name: str) -> pd.DataFrame:
            train_x, train_y, _, _, test_x, test_y = self._splits(name)
            return probes.knn(train_x, train_y, test_x, test_y, classes=len(self.summary.classes))

        return self.per_network("knn", [*self.names, "pixels"] if names is None else names, make)

    def retrieval(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """How often an image's other view is the nearest of all test images': network, layer, accuracy@1, low, high."""
        a, b = VIEWS
        return self.per_network(
            "retrieval",
            self.names if names is None else names,
            lambda name: probes.retrieval(self.features(name, "test", a), self.features(name, "test", b)),
        )

    def contrastive(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """NT-Xent on the test images of a linear projection fitted to each frozen layer: network, layer, loss, low, high."""
        views = [(split, view) for split in ("train", "test") for view in VIEWS]
        batch = min(128, self.summary.train, self.summary.test)
        return self.per_network(
            "contrastive",
            self.names if names is None else names,
            lambda name: probes.fitted_nt_xent(*(self.features(name, *v) for v in views), batch=batch, steps=150),
        )

    def factors(self, names: Sequence[str] | None = None) -> pd.DataFrame | None:
        """How well each known factor of the embedded images can be read out of each layer; None for other images."""
        if not self.summary.factors:
            return None

        return self.per_network(
            "factors",
            [*self.names, "pixels"] if names is None else names,
            lambda name: probes.factor_probe(
                self.features(name, "train"),
                known_factors(self.images.train),
                self.features(name, "test"),
                known_factors(self.images.test),
                circular=CIRCULAR,
            ),
        )

    def history(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """The training histories: network, epoch, loss, validation_loss, learning_rate."""
        return self.per_network("history", self.names if names is None else names, lambda n: self.network(n).history)

    # What the claims rest on

    @property
    def compare_batch(self) -> int:
        """Images in a batch of the comparison: 128, or fewer so that there are at least 8 batches for an interval."""
        return max(4, min(128, self.summary.test // 8))

    def basis(self) -> str:
        """The scale of this study in one sentence."""
        images, settings = self.summary, self.settings("sl-0")
        return (
            f"{images.name}, {images.train:,} training and {images.test:,} test images; {settings.architecture} of "
            f"width {settings.width}; {settings.epochs} epochs SL, {self.settings('simclr-0').epochs} epochs SimCLR; "
            f"{self.seeds} seeds"
        )

    def evidence(self) -> Evidence:
        return Evidence(self.comparison(), self.seeds, self.basis())

    def verdicts(self) -> list[Claim]:
        """All claims, judged."""
        return claims.judge(self.evidence(), self.probe([*self.core, "pixels"]), self.contrastive(self.core))

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
            "parameters": ", ".join(f"{name} = {value}" for name, value in changed.items()),
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
            "CKA": f"linear, HSIC averaged over batches of at most {self.compare_batch}, ratio last; unbiased unless "
            "another estimator is named; whole activation maps",
            "intervals": "95 %, jackknife over batches of images (CKA), Wilson (accuracies)",
            "views": "SimCLR's augmentations, two draws per image from seeded generators, the same for all networks",
            "probes": "logistic regression on pooled, standardised features; penalty chosen on the validation split",
            "versions": f"python {platform.python_version()}, torch {torch.__version__}, torchvision "
            f"{torchvision.__version__}, repsim {__version__}",
        }

    def claim(self, claim: Claim) -> Claim:
        """Keep a claim's verdict for the overview and return it."""
        text = json.dumps(claim.to_dict(), indent=1, allow_nan=False)
        store.write(Path(self.out) / "claims" / f"{claim.id}.json", text + "\n")
        return claim


def drawn(first: grams.Source, second: grams.Source) -> bool:
    """Whether figures or claims ask for this pair of sources: all pairs of clean images, and views of a network's layer."""
    (a, k), (b, l) = first, second
    return "@" not in a + b or b in ("labels", "pixels") or (a.split("@")[0], k) == (b.split("@")[0], l)


def known_factors(part: data.ImageSet) -> pd.DataFrame:
    """The factors of embedded images that a layer is asked for, and their shape."""
    shape = pd.Categorical.from_codes(part.labels.numpy(), list(part.classes))
    return part.factors.drop(columns="texture_phase").astype({"texture": "category"}).assign(shape=shape)


def publication(folder: str | Path) -> dict[str, Any]:
    """What FOLDER/provenance.json says of published artefacts: parameters, images, and how they were made.

    Raises:
        ValueError: no such file, or not one that `repsim.publish` wrote.
    """
    try:
        kept = json.loads((Path(folder) / "provenance.json").read_text())
        return kept | {"parameters": dict(kept["parameters"]), "images": dict(kept["images"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"artefacts: expected a folder with a provenance.json, such as results/NAME, got {str(folder)!r} ({error!r})"
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


def profile(name: str | Path) -> dict[str, Any]:
    """The parameters in profiles/NAME.yaml, or in a YAML file.

    Raises:
        ValueError: no such profile, not a mapping, or a parameter that `Study` does not have.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ValueError(f"profile: no file {path}; the profiles there are: {known}; or give a YAML file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"profile: {path} is not YAML ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"profile: {path} has to map parameters to values, got {type(values).__name__}")
    return check_names(values)


def parameters(name: str | Path, changes: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """A profile's parameters with `changes` of (name, YAML value). Raises ValueError as `profile`, and for what is not YAML."""
    try:
        values = {key: yaml.safe_load(value) for key, value in changes}
    except yaml.YAMLError as error:
        raise ValueError(f"parameter: not YAML ({error})") from error
    return check_names(profile(name) | values)


def check_names(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` if all are fields of `Study`. Raises ValueError naming those that are not."""
    known = [f.name for f in dataclasses.fields(Study)]
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ValueError(f"parameter: unknown {', '.join(unknown)}; the parameters are {', '.join(known)}")
    return dict(parameters)


if __name__ == "__main__":  # python -m repsim.study train or make; the module that does it imports this one
    runpy.run_module("repsim.publish", run_name="__main__")
