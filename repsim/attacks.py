"""The attacks of a study, each measured once and kept: its further comparisons, tables and the verdicts under all of them.

`verdicts(study)` gives the claims and, for each attack, the claims that it touches judged anew (`repsim.robustness`). The
other functions give the tables behind them, which figures draw. Attacks on pooled features or on single Grams take the
first SAMPLE test images, which are stratified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import KernelPCA
from torch import Tensor, nn

from repsim import augment, cka, claims, grams, measures, models, probes, store, taps
from repsim import robustness as rb
from repsim.claims import VIEWS, Claim, Estimate, Evidence
from repsim.comparison import Comparison
from repsim.study import Study

SAMPLE = 256  # test images of the attacks whose cost grows with their square
STITCH_FIT = 512  # training images that a stitch is fitted to
PERMUTATIONS = 1000
AUGMENTATIONS = ("crop", "flip", "jitter", "grayscale")
MEASURES: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "mutual k-NN": measures.mutual_knn,
    "shape similarity": lambda x, y: np.cos(measures.angular_shape_distance(x, y)),
    "RSA": partial(measures.rsa, metric="euclidean"),
}


def networks(study: Study, *objectives: str) -> list[str]:
    """The study's networks of these objectives that it has; of untrained, SL and SimCLR if none is named."""
    wanted = objectives or ("untrained", "sl", "simclr")
    return [name for name in study.names if name.rpartition("-")[0] in wanted]


def pairs(study: Study) -> list[tuple[str, str]]:
    """All pairs of networks that C2 to C4 speak of: across objectives, two seeds of one, and with untrained ones."""
    found = []
    for pair in claims.pairs(study.seeds):
        (a, b), (a2, b2) = pair.networks, pair.siblings
        untrained = [(n, u) for n in (a, b) for u in networks(study, "untrained") if n[-2:] != u[-2:]]
        found += [(a, b), *(tuple(sorted(p)) for p in ((a, a2), (b, b2))), *untrained]
    return list(dict.fromkeys(found))


# Further comparisons


def rbf(study: Study) -> Comparison:
    """With the RBF kernel, clean images only."""
    names = networks(study)
    return study.compared("rbf", partial(study.compare, names, views=None, pixels=False, kernel="rbf"), names)


def trimmed(study: Study) -> Comparison:
    """Without the images that are among the 1 % of largest norm at the end of some stage of a trained network; clean only."""
    names = networks(study)

    def make() -> Comparison:
        return study.compare(names, study.images.test.take(kept_images(study)), views=None, pixels=False)

    return study.compared("trimmed", make, names)


def kept_images(study: Study) -> Tensor:
    """Indices of the test images that `trimmed` compares."""
    ends = [
        study.features(name, "test")[claims.end_of(study.features(name, "test"), f"layer{stage}")]
        for name in networks(study, "sl", "simclr")
        for stage in (1, 2, 3, 4)
    ]
    return measures.drop_top_norm(*ends, fraction=0.01)


def augmentations(study: Study) -> Comparison:
    """Each of SimCLR's augmentations by itself: streams NETWORK and "NETWORK@crop", ...; no residual layers, no heads."""
    names = [*networks(study, "sl", "simclr"), "untrained-0"]

    def make() -> Comparison:
        layers = models.layer_names(study.network("sl-0").model)
        layers = [l for l in layers if models.layer_kind(l) not in ("residual", "head")]
        views = {view: augment.VIEWS[view] for view in AUGMENTATIONS}
        return study.compare(names, views=views, layers=layers, pixels=False)

    return study.compared("augmentations", make, names)


# Tables of cells (`robustness.leave_out`)


def other_measure(study: Study, measure: str) -> pd.DataFrame:
    """Same-named layers of all `pairs` by one of MEASURES, on pooled features of SAMPLE images."""

    def make() -> pd.DataFrame:
        features = {n: _sample(study.features(n, "test")) for n in networks(study)}
        return rb.same_layers(features, pairs(study), MEASURES[measure])

    return study.table(f"cells-{measure.replace(' ', '-')}", make, networks(study))


def view_cka(study: Study, *, centred: bool) -> pd.DataFrame:
    """CKA of pooled features of two views, post-residual layers and pool; `centred`: the classes' means taken off."""
    names = networks(study)

    def features(name: str, view: str) -> dict[str, Tensor]:
        found = {l: x for l, x in study.features(name, "test", view).items() if _outputs(l)}
        if centred:
            found = {l: measures.within_class_centred(x, study.images.test.labels) for l, x in found.items()}
        return _sample(found)

    def make() -> pd.DataFrame:
        found = {f"{n}@{view}": features(n, view) for n in names for view in VIEWS}
        return rb.same_layers(found, [tuple(f"{n}@{view}" for view in VIEWS) for n in names], cka.cka)

    return study.table(f"cells-views-{'centred' if centred else 'pooled'}", make, names)


def retrieval(study: Study) -> pd.DataFrame:
    """In the place of two views' CKA: how often an image's other view is the nearest of all."""
    names, (a, b) = networks(study), VIEWS

    def make() -> pd.DataFrame:
        values = {}
        for n in names:
            hits = probes.retrieval(study.features(n, "test", a), study.features(n, "test", b), per_image=True)
            values |= {
                (f"{n}@{a}", l, f"{n}@{b}", l): partial(rb.share, torch.tensor(hits[l].to_numpy())) for l in hits
            }
        return rb.leave_out(values, len(study.images.test))

    return study.table("cells-retrieval", make, names)


def class_centres(study: Study) -> pd.DataFrame:
    """In the place of CKA with the classes: accuracy of the nearest class centre (of the training images)."""
    names = networks(study)

    def make() -> pd.DataFrame:
        train, test, values = study.images.train, study.images.test, {}

        def value(x: Tensor, y: Tensor, index: Tensor) -> float:
            return measures.nearest_class_centre(x, train.labels, y[index], test.labels[index])

        for n in names:
            x, y = study.features(n, "train"), study.features(n, "test")
            values |= {(n, l, "labels", "labels"): partial(value, x[l], y[l]) for l in x if _outputs(l)}
        return rb.leave_out(values, len(test))

    return study.table("cells-class-centres", make, names)


def stitching(study: Study) -> pd.DataFrame:
    """Accuracy of each SL network behind the post-residual layers of other seeds: (SL network, layer, other, layer)."""
    names = networks(study)

    def make() -> pd.DataFrame:
        fit, test, values = study.images.train.images[:STITCH_FIT], study.images.test, {}
        for target in networks(study, "sl"):
            b = study.network(target).model
            others = [n for n in names if n[-2:] != target[-2:]]
            paths = {l: p for l, p in models.layer_paths(b).items() if models.layer_kind(l) == "post-residual"}
            own = _activations(b, paths, fit)
            for other in others:
                a = study.network(other).model
                theirs = _activations(a, paths, fit)
                stitches = {layer: measures.stitch(theirs.pop(layer), own[layer]) for layer in paths}
                for layer, classes in _behind(a, b, paths, stitches, test.images).items():
                    values[target, layer, other, layer] = partial(rb.share, classes == test.labels)
        return rb.leave_out(values, len(test))

    return study.table("cells-stitching", make, names)


@torch.no_grad()
def _activations(model: nn.Module, paths: Mapping[str, str], images: Tensor) -> dict[str, Tensor]:
    """Of every layer, (n, c, h, w), from one pass."""
    parts: dict[str, list[Tensor]] = {layer: [] for layer in paths}
    with taps.tapped(model, paths, lambda layer, output: parts[layer].append(output.float().clone())):
        for batch in images.split(256):
            model(taps.network_input(batch, model))
    return {layer: torch.cat(part) for layer, part in parts.items()}


@torch.no_grad()
def _behind(
    a: nn.Module, b: nn.Module, paths: Mapping[str, str], stitches: Mapping[str, measures.Stitch], images: Tensor
) -> dict[str, Tensor]:
    """Classes (n,) that b gives when a layer's output is a's, stitched, for every layer."""
    predicted: dict[str, list[Tensor]] = {layer: [] for layer in paths}
    for batch in images.split(256):
        for layer, output in _activations(a, paths, batch).items():
            predicted[layer].append(models.tail(b, layer)(stitches[layer](output)).argmax(1).cpu())
    return {layer: torch.cat(part) for layer, part in predicted.items()}


def _sample(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {layer: x[:SAMPLE] for layer, x in features.items()}


def _outputs(layer: str) -> bool:
    return models.layer_kind(layer) in ("post-residual", "pool")


# Other tables


def null(study: Study, a: str, b: str) -> pd.DataFrame:
    """`measures.permutation_null` of all layers of a with all of b: whole activation maps of SAMPLE images."""

    def make() -> pd.DataFrame:
        both = [_grams(study.network(n).model, study.images.test.images[:SAMPLE]) for n in (a, b)]
        return measures.permutation_null(*both, permutations=PERMUTATIONS, generator=store.generator("null", a, b))

    return study.table(f"null-{a}-{b}", make, [a, b]).assign(a=a, b=b)


@torch.no_grad()
def _grams(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def reduce(layer: str, output: Tensor) -> None:
        x = grams.exact(output.flatten(1))
        found[layer] = (x - x.mean(0)) @ (x - x.mean(0)).T

    paths = {l: p for l, p in models.layer_paths(model).items() if models.layer_kind(l) != "head"}
    with taps.tapped(model, paths, reduce):
        model(taps.network_input(images, model))
    return found


def collapse(study: Study) -> pd.DataFrame:
    """Neural collapse of the test images along the layers, controls included: network, layer, quantity, value."""

    def make() -> pd.DataFrame:
        train, test = study.images.train.labels, study.images.test.labels
        rows = []
        for n in networks(study, "untrained", "sl", "simclr", "random_labels"):
            x, y = study.features(n, "train"), study.features(n, "test")
            for layer in filter(_outputs, y):
                found = measures.neural_collapse(y[layer], test)
                rows += [
                    (n, layer, "log10 NC1 (spread within classes)", np.log10(found.nc1)),
                    (n, layer, "deviation from a simplex", found.etf_deviation),
                    (
                        n,
                        layer,
                        "nearest class centre, accuracy",
                        measures.nearest_class_centre(x[layer], train, y[layer], test),
                    ),
                ]
        return pd.DataFrame(rows, columns=["network", "layer", "quantity", "value"])

    return study.table("collapse", make)


def shape_map(study: Study) -> pd.DataFrame:
    """All layers of all networks in the plane (classical MDS of angular shape distances): network, layer, position, x, y."""

    def make() -> pd.DataFrame:
        sources = [(n, l, x) for n in networks(study) for l, x in _sample(study.features(n, "test")).items()]
        sources = [(n, l, x) for n, l, x in sources if models.layer_kind(l) not in ("residual", "head")]
        distances = np.zeros((len(sources), len(sources)))
        for i, (_, _, x) in enumerate(sources):
            for j, (_, _, y) in enumerate(sources[:i]):
                distances[i, j] = distances[j, i] = measures.angular_shape_distance(x, y)
        # KernelPCA of -d^2 / 2, which it centres on both sides, is classical MDS
        place = KernelPCA(2, kernel="precomputed", eigen_solver="dense").fit_transform(-(distances**2) / 2)
        table = pd.DataFrame([(n, l) for n, l, _ in sources], columns=["network", "layer"])
        return table.assign(position=table.groupby("network").cumcount(), x=place[:, 0], y=place[:, 1])

    return study.table("shape-map", make, networks(study))


def sample_sizes(study: Study, layer: str) -> pd.DataFrame:
    """CKA by both estimators against the number of images: SL with SimCLR at a layer, and noise of the same width.

    Columns n, pair, estimator, cka. Each value is of one batch of n images.
    """
    a, b = "sl-0", f"simclr-{study.seeds - 1}"

    def make() -> pd.DataFrame:
        images = study.images.test.images[: 2 * SAMPLE]
        paths = {layer: models.layer_paths(study.network(a).model)[layer]}
        found = {
            f"{a} and {b}, {layer}": [
                _activations(study.network(n).model, paths, images)[layer].flatten(1) for n in (a, b)
            ]
        }
        shape = found[f"{a} and {b}, {layer}"][0].shape
        found["independent noise of that width"] = [
            torch.randn(shape, generator=store.generator("noise", i)) for i in (0, 1)
        ]
        sizes = [n for n in (16, 32, 64, 128, 256, 512) if n <= len(images)]
        rows = [
            (n, pair, estimator, cka.cka(x[:n].cpu(), y[:n].cpu(), estimator=estimator))
            for pair, (x, y) in found.items()
            for estimator in ("unbiased", "biased")
            for n in sizes
        ]
        return pd.DataFrame(rows, columns=["n", "pair", "estimator", "cka"])

    return study.table(f"sample-sizes-{layer}", make, [a, b])


def gaps(study: Study, evidence: Evidence, probe: pd.DataFrame) -> pd.DataFrame:
    """Per pair and layer: dissimilarity 1 - CKA(SL, SimCLR), and gap, the probes' difference in accuracy."""
    accuracy = probe.set_index(["network", "layer"])["accuracy"]
    rows = []
    for pair in claims.pairs(study.seeds):
        a, b = pair.networks
        matrix = evidence.comparison.matrix(a, b)
        for layer in evidence.layers:
            rows.append((str(pair), layer, 1 - matrix.loc[layer, layer], abs(accuracy[a, layer] - accuracy[b, layer])))
    return pd.DataFrame(rows, columns=["pair", "layer", "dissimilarity", "gap"])


def correlations(study: Study, evidence: Evidence, probe: pd.DataFrame) -> dict[str, tuple[Estimate, float]]:
    """Pair -> Spearman's correlation of dissimilarity and gap over layers, with its permutation p value."""
    table = gaps(study, evidence, probe)
    return {
        pair: rb.rank_correlation(pair, rows["dissimilarity"], rows["gap"], generator=store.generator("layers", pair))
        for pair, rows in table.groupby("pair", sort=False)
    }


def figure_tables(study: Study) -> None:
    """Make the tables that figures draw and no verdict needs."""
    collapse(study), shape_map(study), view_cka(study, centred=False)
    sample_sizes(study, claims.end_of(study.evidence().layers, "layer3"))


# All of them


def verdicts(study: Study) -> tuple[list[Claim], dict[str, list[Claim]]]:
    """The claims, and for each attack those that it touches, judged anew. Attacks that need controls ask `study.controls`."""
    judged_on = [n for n in study.names if not n.startswith("random_labels")]
    base, probe, contrastive = study.evidence(), study.probe([*judged_on, "pixels"]), study.contrastive(judged_on)
    c2, c3, c4, c5, c6 = claims.c2, claims.c3, claims.c4, claims.c5, claims.c6

    def on(comparison: Comparison | rb.Cells) -> Evidence:
        return Evidence(comparison, study.seeds, base.basis)

    def clean(comparison: Comparison) -> list[Claim]:
        found = on(comparison)
        return [claims.c1(found), c2(found), c3(found), c4(found), c5(found, probe)]

    judged = claims.judge(base, probe, contrastive)
    attacks = {
        "biased estimator": claims.judge(rb.estimated(base, "biased"), probe, contrastive),
        "RBF kernel": clean(rbf(study)),
        "images in any top 1 % dropped": clean(trimmed(study)),
        "input regressed out": claims.judge(rb.attacked(base, rb.without_input), probe, contrastive),
        "no seed ceilings": [c(rb.attacked(base, rb.without_ceilings)) for c in (c2, c3, c4)],
    }
    if "sl_simclr_views" in study.controls:
        swap = {"sl": "sl_simclr_views"}
        tables = [rb.probe_of(table, swap) for table in (probe, contrastive)]
        attacks["SL on SimCLR's views"] = claims.judge(rb.attacked(base, rb.renamed(swap)), *tables)
    if study.seeds > 1:
        nulls = {str(p): null(study, *p.networks) for p in claims.pairs(study.seeds)}
        outputs = claims.of_kind(base.layers, "post-residual", claims.MIDDLE)
        ends = {c2: outputs, c3: outputs, c4: [claims.end_of(base.layers, "layer3")]}
        attacks["shuffled images"] = [rb.beyond_null(c(base), nulls, layers) for c, layers in ends.items()]
        for measure in MEASURES:
            found = on(rb.cells(other_measure(study, measure)))
            attacks[measure] = [c2(found), c3(found), c4(found)]
        correlated = [estimate for estimate, _ in correlations(study, base, probe).values()]
        classes = len(study.summary.classes)
        attacks["stitching"] = [rb.stitched(c2(base), on(rb.cells(stitching(study))), classes)]
        attacks["probe gap"] = [rb.functional(c4(base), correlated)]
    attacks["nearest class centre"] = [c5(on(rb.cells(class_centres(study))), probe)]
    if "random_labels" in study.controls:
        attacks["shuffled labels"] = [rb.beyond_random_labels(c5(base, probe), base)]
    attacks["class means taken off"] = [c6(on(rb.cells(view_cka(study, centred=True))))]
    attacks["view retrieval"] = [c6(on(rb.cells(retrieval(study))))]
    single = on(augmentations(study))
    for view in AUGMENTATIONS:
        attacks[f"{view} only"] = [c6(rb.attacked(single, rb.clean_against(view)))]
    head = rb.attacked(base, rb.renamed(layers={"pool": "head"}))
    attacks["head for pool"] = [c4(head), c6(head)]
    return judged, attacks
