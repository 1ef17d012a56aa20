"""What two layers agree and disagree on: neighbours, images on which their Grams differ, and still figures of both.

Computed from the pooled features of every layer (`repsim.taps.pooled`) and a comparison (`repsim.cka.compare`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from repsim import augment, charts, cka, store
from repsim.charts import INK, Picture
from repsim.cka import compare
from repsim.comparison import Comparison
from repsim.taps import pooled, resolve

K = 10  # neighbours of the mutual k-NN measure
NEAREST = 5  # neighbours shown
MUTUAL = f"mutual {K}-NN"
Cell = tuple[Tensor, str, bool]  # an image (3, h, w), its caption, whether it is framed


# ----- what two layers say of the same images


def neighbours(features: Tensor, query: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """The k other images most similar to each of `query`, by cosine: indices (q, k) and similarities (q, k), best first.

    Args:
        features: (n, p), one row an image. A row of zeros has similarity 0 with all; ties go to the lower index.

    Raises:
        ValueError: not (n, p), k outside 1 ... n - 1, or an index that is no image's.
    """
    if features.ndim != 2:
        raise ValueError(f"features: expected shape (n, p), got {tuple(features.shape)}; pool or flatten them first")
    n = len(features)
    if not 1 <= k < n:
        raise ValueError(f"k: expected 1 to {n - 1} (the other images), got {k}")
    if bad := [i for i in query if not 0 <= i < n]:
        raise ValueError(f"query: expected images from 0 to {n - 1}, got {', '.join(map(str, bad))}")
    unit, chosen = F.normalize(features.double()), torch.as_tensor(list(query), dtype=torch.int64)
    similarity = unit[chosen] @ unit.T
    similarity[torch.arange(len(chosen)), chosen] = -torch.inf
    found = similarity.sort(dim=1, descending=True, stable=True)
    return found.indices[:, :k], found.values[:, :k]


def disagreement(x: Tensor, y: Tensor) -> Tensor:
    """How much each image adds to 1 - CKA of features x (n, p) and y (n, q): float64 (n,), not negative.

    With both Grams U-centred and scaled to norm 1, |K - L|^2 = 2 - 2 CKA (unbiased), and row i of K - L is image i's part.

    Raises:
        ValueError: different or fewer than 4 rows, or features that are constant over the images.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 4:
        raise ValueError(f"x, y: expected (n, p) and (n, q), n >= 4, got {tuple(x.shape)} and {tuple(y.shape)}")
    centred = []
    for name, features in (("x", x), ("y", y)):
        gram, raw = cka.centred_gram(features.double())
        if not gram.trace() > cka.tolerance(features.dtype) * raw:
            raise ValueError(f"{name}: expected features that vary over the images, got constant or undefined ones")
        gram = cka.centre(gram, "unbiased")
        centred.append(gram / gram.norm())
    return (centred[0] - centred[1]).square().sum(1) / 2


def mutual_neighbours(a: Mapping[str, Tensor], b: Mapping[str, Tensor], k: int = K) -> pd.DataFrame:
    """The fraction of an image's k nearest neighbours (cosine) that all layers of a share with all of b: layer_a, layer_b, value."""

    def members(layers: Mapping[str, Tensor]) -> Tensor:
        everyone = range(len(next(iter(layers.values()))))
        found = [neighbours(features, everyone, k)[0] for features in layers.values()]
        return torch.stack([torch.zeros(len(i), len(i)).scatter_(1, i, 1).flatten() for i in found])

    first = members(a)
    shared = first @ (first if a is b else members(b)).T / (first[0].sum())
    rows = [(m, l, shared[i, j].item()) for i, m in enumerate(a) for j, l in enumerate(b)]
    return pd.DataFrame(rows, columns=["layer_a", "layer_b", "value"])


# ----- what the view and the still figures draw from


@dataclass(frozen=True, eq=False)
class Subject:
    """Networks seen through one set of images, all computed: `images` uint8 (n, 3, h, w) as they are shown, a name of
    each image's class, the comparison, and features (n, channels) by network and layer."""

    images: Tensor
    names: Sequence[str] | None
    comparison: Comparison
    features: Mapping[str, Mapping[str, Tensor]]

    @property
    def measures(self) -> list[str]:
        return [f"{estimator} CKA" for estimator in self.comparison.hsic] + [MUTUAL] * (len(self.images) > K)

    def table(self, a: str, b: str, measure: str) -> pd.DataFrame:
        """All layers of a with all layers of b: columns a, b, layer_a, layer_b, value; low, high if there are intervals."""
        if measure not in self.measures:
            raise ValueError(f"measure: expected one of {', '.join(self.measures)}, got {measure!r}")
        if measure == MUTUAL:
            return mutual_neighbours(self.features[a], self.features[b]).assign(a=a, b=b)
        table = self.comparison.table(a, b, estimator=measure.removesuffix(" CKA")).rename(columns={"cka": "value"})
        return table if table["low"].notna().any() else table.drop(columns=["low", "high"])


def prepare(
    models: Mapping[str, nn.Module],
    images: Tensor,
    *,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    layers: Sequence[str] | Mapping[str, Sequence[str] | Mapping[str, str]] | None = None,
    comparison: Comparison | None = None,
    views: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] | None = None,
    transform: Callable[[Tensor], Tensor] | Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    batch_size: int = 64,
) -> Subject:
    """Everything that `explore` shows. Arguments as for it."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) <= NEAREST:
        got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"images: expected one tensor (n, 3, h, w), n > {NEAREST}, got {got}; "
            "of a loader make one, such as torch.cat([x for x, _ in loader])"
        )
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"labels: expected ({len(images)},), a class for each image, got {tuple(labels.shape)}")
    if classes is not None and (labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < len(classes)):
        raise ValueError(f"classes: expected a name for each of the labels, got {len(classes)}; pass both or neither")
    if comparison is None:
        plain = images.dtype == torch.uint8 and images.shape[1] == 3
        if views is None and plain and not isinstance(transform, Mapping):
            views = {"simclr": _through(transform)}
        settings = {"layers": layers, "views": views, "transform": transform, "batch_size": batch_size}
        order = torch.randperm(
            len(images), generator=store.generator("order")
        )  # batches of images in class order have no CKA
        given = images[order], None if labels is None else labels[order]
        comparison = compare(models, given[0], labels=given[1], estimators=("unbiased", "biased"), **settings)
    features = {}
    for name, model in models.items():
        wanted = layers[name] if isinstance(layers, Mapping) else layers
        if comparison.layers(name) != list(resolve(model, wanted)):
            raise ValueError(f"comparison: expected the layers given for {name!r}, got {comparison.layers(name)}")
        own = transform.get(name) if isinstance(transform, Mapping) else transform
        features[name] = pooled(model, images, wanted, batch_size=batch_size, transform=own)
    if images.dtype != torch.uint8:
        low, high = images.min().float(), images.max().float()
        images = ((images.float() - low) * (255 / (high - low).clamp_min(1e-12))).round().byte()
    names = None if labels is None else [classes[i] if classes else f"class {i}" for i in labels.tolist()]
    return Subject(images.expand(-1, 3, -1, -1).cpu(), names, comparison, features)


def _through(transform: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor, torch.Generator], Tensor]:
    """SimCLR's view of uint8 images, in the scale of the study or as `transform` makes it."""
    if transform is None:
        return augment.simclr

    def view(images: Tensor, generator: torch.Generator) -> Tensor:
        return transform(((augment.simclr(images, generator) + 2) * (255 / 4)).round().clamp(0, 255).byte())

    return view


# ----- figures


def heatmap(table: pd.DataFrame, measure: str, row: str, column: str) -> alt.LayerChart:
    """The map, with an outline around the chosen cell; JupyterChart hears of clicks, and moves the outline by parameters."""
    title = f"{measure}: {table['a'].iloc[0]} with {table['b'].iloc[0]}"
    chart = charts.heatmap(table, color="value", color_title=measure, title=title)
    place = {channel: chart.layer[0].encoding[channel] for channel in ("x", "y")}
    chosen = [alt.param(name="row", value=row), alt.param(name="column", value=column)]
    click = alt.selection_point(name="cell", fields=["layer_a", "layer_b"], on="click", toggle=False, clear=False)
    outline = alt.Chart(table[["layer_a", "layer_b"]]).encode(**place)
    outline = outline.transform_filter("datum.layer_a === row && datum.layer_b === column")
    lines = [
        outline.mark_rect(fill=None, stroke=s, strokeWidth=w, aria=False) for s, w in (("#fff", 5), (charts.CHOSEN, 3))
    ]
    layers = [chart.layer[0].add_params(click, *chosen), *chart.layer[1:], *lines]
    return alt.layer(*layers).properties(
        width=chart.width, height=chart.height, title=chart.title, description=chart.description
    )


def curves(subject: Subject, chosen: Sequence[tuple[str, str]]) -> alt.HConcatChart | None:
    """Class and view curves, a panel for each network in `chosen` (network, layer), with lines at those layers.

    None where the comparison has neither classes nor views.
    """
    panels = []
    for network in dict(chosen):
        streams = [s for s in subject.comparison.streams if s == "labels" or s.startswith(f"{network}@")]
        if not streams:
            return None
        names = {s: "with the classes" if s == "labels" else f"with its view ({s.partition('@')[2]})" for s in streams}
        table = pd.concat([subject.comparison.curve(network, s).assign(what=names[s]) for s in streams])
        panel = charts.lines(table, color="what", width=440)
        order = list(subject.features[network])
        layers = alt.Chart(pd.DataFrame({"layer": order, "at": range(len(order))})).encode(x=panel.layer[0].encoding.x)
        lines = [
            layers.add_params(alt.param(name=f"layer_{i}", value=layer))
            .transform_filter(f"datum.layer === layer_{i}")
            .mark_rule(color=charts.CHOSEN, strokeWidth=3, aria=False)
            for i, (other, layer) in enumerate(chosen)
            if other == network
        ]
        title = alt.Title(network, fontSize=14, fontWeight="normal")
        panels.append(
            alt.layer(panel.layer[0], *lines, *panel.layer[1:]).properties(
                width=panel.width, height=panel.height, title=title
            )
        )
    words = f"CKA, layer by layer, with classes and augmented views: {', '.join(dict(chosen))}."
    title = "What each layer says of class and view"
    return alt.hconcat(*panels, spacing=24).properties(title=title, description=words)


def _sheet(
    rows: Sequence[Sequence[Cell]], title: str, said: str, heads: Mapping[int, str], gap_at: int = -1
) -> Picture:
    """Images in rows, with headings above some columns (`heads`) and a wider gap before column `gap_at`."""
    scale, side, gap = 2, 2 * 68, 2 * 8
    font, foot, head = ImageFont.load_default(scale * 12), scale * 17, scale * 22
    lefts = [gap + j * (side + gap) + (j >= gap_at > 0) * 2 * gap for j in range(len(rows[0]))]
    sheet = Image.new("RGB", (lefts[-1] + side + gap, gap + head + len(rows) * (side + foot + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in heads.items():
        draw.text((lefts[column], gap // 2), text, INK, ImageFont.load_default(scale * 13))
    for i, row in enumerate(rows):
        top = gap + head + i * (side + foot + gap)
        for left, (image, caption, framed) in zip(lefts, row):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            shrinks = max(picture.size) > side
            size = [max(1, round(edge * side / max(picture.size))) for edge in picture.size]
            picture = picture.resize(size, Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST)
            if framed:
                draw.rectangle((left - 7, top - 7, left + side + 6, top + side + 6), charts.CHOSEN)
            sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
            while draw.textlength(caption, font) > side + gap:
                caption = caption.rstrip("…")[:-1] + "…"
            draw.text((left + side / 2, top + side + 8), caption, INK, font, anchor="ma")
    return Picture(sheet.quantize(256), title, said, scale=scale)


def faces(subject: Subject, a: str, layer_a: str, b: str, layer_b: str, query: Sequence[int]) -> Picture:
    """Each of `query` with its nearest neighbours in both layers; those found in both are framed."""
    pair = [subject.features[a][layer_a], subject.features[b][layer_b]]
    found = [neighbours(features, query, NEAREST)[0].tolist() for features in pair]
    rows, same = [], 0
    for i, *lists in zip(query, *found):
        both = set(lists[0]) & set(lists[1])
        same += len(both)
        cells = [[(subject.images[j], _caption(subject, j), j in both) for j in one] for one in lists]
        rows.append([(subject.images[i], _caption(subject, i), False), *cells[0], *cells[1]])
    heads = {0: "Image", 1: f"Nearest in {a} · {layer_a}", NEAREST + 1: f"Nearest in {b} · {layer_b}"}
    listed = "; ".join(f"image {i}: {one} and {other}" for i, one, other in zip(query, *found))
    said = f"Nearest images in {a} {layer_a} and {b} {layer_b}, {same} of {NEAREST * len(query)} the same. {listed}."
    return _sheet(rows, "Nearest neighbours in both layers", said, heads, NEAREST + 1)


def _caption(subject: Subject, i: int) -> str:
    return f"{i}" if subject.names is None else f"{i} {subject.names[i]}"


def apart(
    subject: Subject, a: str, layer_a: str, b: str, layer_b: str, count: int = 11
) -> tuple[Picture | None, list[int]]:
    """The images that add most to the disagreement of two layers, with their share of it; None where it is undefined."""
    try:
        parts = disagreement(subject.features[a][layer_a], subject.features[b][layer_b])
    except ValueError:
        return None, list(range(min(count, len(subject.images))))
    order = parts.argsort(descending=True, stable=True)[:count].tolist()
    shares = parts / parts.sum().clamp_min(1e-300)
    row = [(subject.images[i], f"{i}  {100 * shares[i]:.1f} %", False) for i in order]
    listed = ", ".join(f"{_caption(subject, i)} {100 * shares[i]:.1f} %" for i in order)
    words = f"Images on which {a} {layer_a} and {b} {layer_b} differ most, with their share of 1 - CKA: {listed}."
    return _sheet(
        [row], "Where they differ", words, {0: "Where the two layers differ most: image, share of 1 - CKA"}
    ), order


def figures(
    subject: Subject,
    a: str,
    layer_a: str,
    b: str,
    layer_b: str,
    *,
    measure: str | None = None,
    query: Sequence[int] | None = None,
) -> list[alt.TopLevelMixin | Picture]:
    """The still figures of two layers: map, neighbours, images that differ most, and curves if there are classes or views.

    Raises ValueError for an unknown network, layer, measure or image.
    """
    for name, network, layer in (("layer_a", a, layer_a), ("layer_b", b, layer_b)):
        if network not in subject.features:
            raise ValueError(f"network: expected one of {', '.join(subject.features)}, got {network!r}")
        if layer not in subject.features[network]:
            known = ", ".join(subject.features[network])
            raise ValueError(f"{name}: expected a layer of {network}, one of {known}, got {layer!r}")
    differ, order = apart(subject, a, layer_a, b, layer_b)
    measure = measure or subject.measures[0]
    drawn = [
        heatmap(subject.table(a, b, measure), measure, layer_a, layer_b),
        faces(subject, a, layer_a, b, layer_b, order[:4] if query is None else query),
        differ,
        curves(subject, [(a, layer_a), (b, layer_b)]),
    ]
    return [figure for figure in drawn if figure is not None]
