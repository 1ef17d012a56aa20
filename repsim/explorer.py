"""A view for JupyterLab: choose two networks and a measure, click a cell, and see what the two layers disagree on.

    explore({"mine": mine, "theirs": theirs}, images)

The same as figures, without widgets: `display(*explore(...).still("layer3.1", "layer4.1"))`. All of it is computed from the
pooled features of every layer (`repsim.taps.pooled`) and a comparison (`repsim.cka.compare`).
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence

import altair as alt
import ipywidgets as widgets
import pandas as pd
import torch
import torch.nn.functional as F
import traitlets
from torch import Tensor, nn

from repsim import augment, charts, cka, store
from repsim.charts import Picture
from repsim.comparison import Comparison
from repsim.taps import Layers, Reduction, as_features, as_labels, as_tensor, pooled

K = 10  # neighbours of the mutual k-NN measure
NEAREST = 5  # neighbours shown
MUTUAL = f"mutual {K}-NN"


# ----- what two layers say of the same images


def neighbours(features: Tensor, query: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """The k other images most similar to each of `query`, by cosine: indices (q, k) and similarities (q, k), best first.

    Args:
        features: (n, p), one row an image. A row of zeros has similarity 0 with all; ties go to the lower index.

    Raises:
        TypeError: no numbers. ValueError: not (n, p), not finite, k outside 1 ... n - 1, or an index that is no image's.
    """
    features = _matrix(features, "features", least=2)
    n, query = len(features), [int(i) for i in query]
    if not 1 <= k < n:
        raise ValueError(f"k: expected 1 to {n - 1} (the other images), got {k}")
    if bad := [i for i in query if not 0 <= i < n]:
        raise ValueError(f"query: expected images from 0 to {n - 1}, got {', '.join(map(str, bad))}")
    unit, chosen = F.normalize(cka.exact(features)), torch.tensor(query, dtype=torch.int64)
    similarity = unit[chosen] @ unit.T
    similarity[torch.arange(len(chosen)), chosen] = -torch.inf
    nearest = similarity.sort(dim=1, descending=True, stable=True)
    return nearest.indices[:, :k], nearest.values[:, :k]


def disagreement(x: Tensor, y: Tensor) -> Tensor:
    """How much each image adds to 1 - CKA of features x (n, p) and y (n, q): float64 (n,), not negative.

    With both Grams U-centred and scaled to norm 1, |K - L|^2 = 2 - 2 CKA (unbiased), and row i of K - L is image i's part.

    Raises:
        TypeError: no numbers. ValueError: different or fewer than 4 rows, or features that are constant over the images.
    """
    x, y = _matrix(x, "x", least=4), _matrix(y, "y", least=4)
    if len(x) != len(y):
        raise ValueError(f"x, y: expected features of the same images, got {len(x)} and {len(y)} rows")
    centred = []
    for name, features in (("x", x), ("y", y)):
        gram, raw = cka.centred_gram(cka.exact(features))
        varies = gram.trace() > cka.tolerance(features.dtype) * raw
        energy, gram = gram.trace(), cka.centre(gram, "unbiased")
        if not (varies and gram.norm() > 1e-12 * energy):  # one image alone differs: nothing is left off the diagonal
            raise ValueError(f"{name}: expected features that vary over the images, got constant or undefined ones")
        centred.append(gram / gram.norm())
    return (centred[0] - centred[1]).square().sum(1) / 2


def mutual_neighbours(a: Mapping[str, Tensor], b: Mapping[str, Tensor], k: int = K) -> pd.DataFrame:
    """Share of an image's k nearest neighbours in a layer of a that are among those in a layer of b, mean over the images,
    for all layers (Huh et al. 2024: mutual k-NN): columns layer_a, layer_b, value. k / (n - 1) for unrelated features.

    Raises:
        TypeError, ValueError: as `neighbours`; layers of different images.
    """

    def members(layers: Mapping[str, Tensor]) -> Tensor:
        lists = [neighbours(features, range(len(features)), k)[0] for features in layers.values()]
        return torch.stack([torch.zeros(len(i), len(i)).scatter_(1, i, 1).flatten() for i in lists])

    counts = {len(features) for layers in (a, b) for features in layers.values()}
    if len(counts) != 1:
        raise ValueError(f"a, b: expected layers of the same images, got {sorted(counts)} rows")
    first = members(a)
    shared = first @ (first if a is b else members(b)).T / first[0].sum()
    rows = [(m, l, shared[i, j].item()) for i, m in enumerate(a) for j, l in enumerate(b)]
    return pd.DataFrame(rows, columns=["layer_a", "layer_b", "value"])


def _matrix(value: object, name: str, least: int) -> Tensor:
    value = as_features(value, name, least)
    if value.ndim != 2:
        raise ValueError(f"{name}: expected shape (n, p), got {tuple(value.shape)}; pool or flatten them first")
    return value


# ----- the view


def explore(
    models: Mapping[str, nn.Module],
    images: Tensor,
    *,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    layers: Layers | Mapping[str, Layers] = None,
    reduction: Reduction | Mapping[str, Reduction] = "mean",
    comparison: Comparison | None = None,
    views: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] | None = None,
    transform: Callable[[Tensor], Tensor] | Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    batch_size: int = 64,
) -> Explorer:
    """A view for JupyterLab: choose two networks and a measure, click a cell of the map or choose layers from menus.

    Works offline. Enables the figures' theme and renderer (`repsim.charts.use`). For one network pass it alone.

    Args:
        models: name -> network.
        images: uint8 or float (n, 3, h, w), or grey with one channel; all are kept, a few hundred to a few thousand do.
        labels: classes (n,), for captions and class curves. `classes`: their names.
        layers, transform, batch_size: as for `repsim.cka.compare`.
        reduction: of the features in which neighbours are found, as for `repsim.taps.pooled`.
        comparison: made before, of these networks and layers (with labels and views for the curves).
        views: as for `compare`. None: SimCLR's augmentations if the images are uint8 in colour and all share a `transform`.

    Raises:
        ValueError, TypeError: as `compare`; images that are no tensor, labels or classes that do not fit.
    """
    kind = f"shape {tuple(images.shape)}" if hasattr(images, "shape") else type(images).__name__
    if not hasattr(images, "__array__") or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) <= NEAREST:
        raise ValueError(
            f"images: expected one tensor (n, 3, h, w) or (n, 1, h, w), n > {NEAREST}, got {kind}; "
            "of a loader make one, such as torch.cat([x for x, _ in loader]), of a list torch.stack(images)"
        )
    images = as_tensor(images, "images")
    labels = None if labels is None else as_labels(labels)
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"labels: expected ({len(images)},), a class for each image, got {tuple(labels.shape)}")
    if classes is not None and (labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < len(classes)):
        raise ValueError(f"classes: expected a name for each of the labels, got {len(classes)}; pass both or neither")
    if comparison is None:
        if (
            views is None
            and images.dtype == torch.uint8
            and images.shape[1] == 3
            and not isinstance(transform, Mapping)
        ):
            views = {"simclr": _view(transform)}
        order = torch.randperm(len(images), generator=store.generator("order"))  # class order has no CKA within batches
        settings = {"layers": layers, "views": views, "transform": transform, "batch_size": batch_size}
        mixed = None if labels is None else labels[order]
        comparison = cka.compare(models, images[order], labels=mixed, estimators=cka.ESTIMATORS, **settings)
    features = {}
    for name, model in models.items():
        own = transform.get(name) if isinstance(transform, Mapping) else transform
        wanted = layers[name] if isinstance(layers, Mapping) else layers
        features[name] = pooled(model, images, wanted, reduction=reduction, batch_size=batch_size, transform=own)
        if comparison.layers(name) != list(features[name]):
            raise ValueError(f"comparison: expected the layers given for {name!r}, got {comparison.layers(name)}")
    if images.dtype != torch.uint8:
        low, high = images.min().float(), images.max().float()
        images = ((images.float() - low) * (255 / (high - low).clamp_min(1e-12))).round().byte()
    names = None if labels is None else [classes[i] if classes else f"class {i}" for i in labels.tolist()]
    return Explorer(images.expand(-1, 3, -1, -1).cpu(), names, comparison, features)


def _view(transform: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor, torch.Generator], Tensor]:
    """SimCLR's view of uint8 images, in the scale of the study or as `transform` makes it."""
    if transform is None:
        return augment.simclr

    def view(images: Tensor, generator: torch.Generator) -> Tensor:
        return transform(((augment.simclr(images, generator) + 2) * (255 / 4)).round().clamp(0, 255).byte())

    return view


class LateChart(alt.JupyterChart):
    """A JupyterChart that loads its library when it is drawn: anywidget waits two seconds for a module, and on a busy
    machine this one takes longer. Arrow keys in the menus beside it choose a line; else they would be JupyterLab's."""

    _esm = """
    export default { async render(context) {
      const module = new Blob([context.model.get("library")], { type: "text/javascript" });
      const library = await import(URL.createObjectURL(module));
      const end = await library.default.render(context);
      const menus = context.el.closest(".jp-OutputArea-output")?.querySelectorAll("select") ?? [];
      menus.forEach((menu) => menu.setAttribute("data-lm-suppress-shortcuts", "true"));
      return end;
    } }"""
    library = traitlets.Unicode().tag(sync=True)

    def __init__(self, chart: alt.TopLevelMixin | None = None):
        alt.JupyterChart.enable_offline(True)
        super().__init__(chart, library=alt.JupyterChart._esm)


class Explorer(widgets.VBox):
    """The view that `explore` returns; `still()` gives it as figures.

    Attributes: `images` uint8 (n, 3, h, w) as they are shown, `names` of each image's class, `comparison`, and `features`
    (n, channels) by network and layer.
    """

    def __init__(self, images, names, comparison: Comparison, features: Mapping[str, Mapping[str, Tensor]]):
        charts.use()
        self.images, self.names, self.comparison, self.features = images, names, comparison, features
        self.measures = [f"{estimator} CKA" for estimator in comparison.hsic] + [MUTUAL] * (len(images) > K)
        self.changing, self.shown, networks = False, [0], list(features)
        look = {"layout": widgets.Layout(width="290px", max_width="100%"), "style": {"description_width": "76px"}}

        def menu(label: str, options: Iterable[str], value: str | None = None) -> widgets.Dropdown:
            return widgets.Dropdown(options=list(options), value=value, description=label, **look)

        self.networks = [menu("Rows", networks, networks[0]), menu("Columns", networks, networks[-1])]
        self.layers = [menu("Row layer", []), menu("Col. layer", [])]
        self.measure = menu("Measure", self.measures, self.measures[0])
        self.query = widgets.Text(description="Images", continuous_update=False, **look)
        self.buttons = [
            widgets.Button(description=d, tooltip=t, layout=widgets.Layout(width="auto"))
            for d, t in (
                ("Where they differ", "Neighbours of the images on which the two layers differ most"),
                ("Other images", "Neighbours of the next images of the set"),
            )
        ]
        self.status, self.faces, self.apart = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.map, self.curves = LateChart(), LateChart()
        self._restart()
        for control in (*self.networks, self.measure):
            control.observe(lambda _: self._restart(), "value")
        for control in (*self.layers, self.query):
            control.observe(lambda _: self._look(), "value")
        self.buttons[0].on_click(lambda _: self._ask(self.differ[:4]))
        self.buttons[1].on_click(lambda _: self._ask([(max(self.shown) + i) % len(images) for i in (1, 2, 3, 4)]))
        wrap = widgets.Layout(flex_flow="row wrap")
        pairs = zip((*self.networks, self.measure), (*self.layers, self.query))
        controls = [*(widgets.VBox(pair) for pair in pairs), widgets.VBox([widgets.HBox(self.buttons), self.status])]
        side_by_side = widgets.HBox([self.map, self.faces], layout=wrap)
        super().__init__([widgets.HBox(controls, layout=wrap), side_by_side, self.apart, self.curves])

    def __repr__(self) -> str:
        return f"Explorer of {', '.join(self.features)}: run this cell in JupyterLab to use it"

    def still(
        self,
        layer_a: str | None = None,
        layer_b: str | None = None,
        *,
        measure: str | None = None,
        query: Sequence[int] | None = None,
    ) -> list[alt.TopLevelMixin | Picture]:
        """The figures of two layers (those chosen, if not given) of the chosen networks: the map, neighbours of `query`, the
        images that differ most, and curves if there are classes or views.

        Raises ValueError for an unknown layer, measure or image.
        """
        cell = [(network, layer or own) for (network, own), layer in zip(self._cell(), (layer_a, layer_b))]
        for name, (network, layer) in zip(("layer_a", "layer_b"), cell):
            if layer not in self.features[network]:
                known = ", ".join(self.features[network])
                raise ValueError(f"{name}: expected a layer of {network}, one of {known}, got {layer!r}")
        apart, order = self._apart(cell)
        faces = self._faces(cell, order[:4] if query is None else query)
        table = self.table(measure or self.measure.value)
        figures = [
            _heatmap(table, measure or self.measure.value, cell[0][1], cell[1][1]),
            faces,
            apart,
            self._curves(cell),
        ]
        return [figure for figure in figures if figure is not None]

    def table(self, measure: str) -> pd.DataFrame:
        """All layers of the one chosen network with all of the other: a, b, layer_a, layer_b, value; low, high if known."""
        a, b = (network for network, _ in self._cell())
        if measure not in self.measures:
            raise ValueError(f"measure: expected one of {', '.join(self.measures)}, got {measure!r}")
        if measure == MUTUAL:
            return mutual_neighbours(self.features[a], self.features[b]).assign(a=a, b=b)
        table = self.comparison.table(a, b, estimator=measure.removesuffix(" CKA")).rename(columns={"cka": "value"})
        return table if table["low"].notna().any() else table.drop(columns=["low", "high"])

    def _cell(self) -> list[tuple[str, str]]:
        return [(network.value, layer.value) for network, layer in zip(self.networks, self.layers)]

    def _ask(self, images: Sequence[int]) -> None:
        self.query.value = ", ".join(map(str, images))

    def _restart(self) -> None:
        """Other networks, or another measure: new menus, map and curves."""
        if self.changing:
            return
        self.changing = True
        for network, layer in zip(self.networks, self.layers):
            names = list(self.features[network.value])
            before, layer.options = layer.value, names
            layer.value = before if before in names else names[-1]
        cell = self._cell()
        self.values = self.table(self.measure.value)
        self.map.chart = _heatmap(self.values, self.measure.value, cell[0][1], cell[1][1])
        self.map.selections.observe(self._click, "cell")
        self.curves.chart = self._curves(cell)
        self.changing = False
        self._look()

    def _click(self, change) -> None:
        if change.new.value:
            cell = change.new.value[0]
            self.changing = True
            self.layers[0].value, self.layers[1].value = cell["layer_a"], cell["layer_b"]
            self.changing = False
            self._look()

    def _look(self) -> None:
        """Two layers and some images: the outline, numbers and pictures."""
        if self.changing:
            return
        (a, row), (b, column) = cell = self._cell()
        self.map.params.row, self.map.params.column = row, column
        for i, layer in enumerate((row, column)):
            if self.curves.chart is not None:
                setattr(self.curves.params, f"layer_{i}", layer)
        apart, self.differ = self._apart(cell)
        if not self.query.value.strip():
            self.changing = True
            self._ask(self.differ[:4])
            self.changing = False
        value = self.values[(self.values["layer_a"] == row) & (self.values["layer_b"] == column)].iloc[0]
        number = charts.estimate(*value[[c for c in ("value", "low", "high") if c in value]])
        words = [html.escape(text) for text in (f"{a} · {row}", f"{b} · {column}")]
        text = f"<b>{self.measure.value} {number}</b><br>{'<br>'.join(words)}"
        faces = None
        try:
            asked = [int(part) for part in self.query.value.replace(",", " ").split()]
            faces, self.shown = self._faces(cell, asked), asked
        except ValueError as error:
            text += f'<br><span role="alert">Images: numbers with commas, please. {html.escape(str(error))}</span>'
        style = "line-height: 1.4; color: var(--jp-ui-font-color1, #57606a)"
        self.status.value = f'<div role="status" style="{style}">{text}</div>'
        self.faces.value, self.apart.value = _tag(faces), _tag(apart)

    def _faces(self, cell: Sequence[tuple[str, str]], query: Sequence[int]) -> Picture:
        """Each of `query` with its nearest neighbours in both layers, one above the other; those in both are framed."""
        lists = [neighbours(self.features[network][layer], query, NEAREST)[0].tolist() for network, layer in cell]
        shown, framed, told = [], [], []
        for i, *nearest in zip(query, *lists):
            for one in nearest:
                framed += [
                    len(shown) + 1 + place for place, j in enumerate(one) if all(j in other for other in nearest)
                ]
                shown += [i, *one]
            told.append(f"image {i}: {nearest[0]} and {nearest[1]}")
        a, b = (" ".join(source) for source in cell)
        words = (
            f"Nearest images in {a} and {b}, {len(framed) // 2} of {NEAREST * len(query)} the same. {'; '.join(told)}."
        )
        title = f"Nearest in {a} (above) and {b} (below); framed: in both"
        captions, look = [self._caption(i) for i in shown], {"size": 58, "title": title, "words": words}
        return charts.images(self.images[shown], captions, 1 + NEAREST, framed=framed, **look)

    def _caption(self, i: int) -> str:
        return f"{i}" if self.names is None else f"{i} {self.names[i]}"

    def _apart(self, cell: Sequence[tuple[str, str]], count: int = 12) -> tuple[Picture | None, list[int]]:
        """The images that add most to the disagreement of two layers, with their share of it; None where it is undefined."""
        try:
            parts = disagreement(*(self.features[network][layer] for network, layer in cell))
        except ValueError:
            return None, list(range(min(count, len(self.images))))
        order = parts.argsort(descending=True, stable=True)[:count].tolist()
        shares = [f"{100 * share:.1f} %" for share in parts[order] / parts.sum().clamp_min(1e-300)]
        listed = ", ".join(f"{self._caption(i)} {share}" for i, share in zip(order, shares))
        a, b = (" ".join(source) for source in cell)
        words = f"Images on which {a} and {b} differ most, with their share of 1 - CKA: {listed}."
        look = {"size": 58, "title": "Where the two layers differ most: image, share of 1 - CKA", "words": words}
        captions = [f"{i}  {share}" for i, share in zip(order, shares)]
        return charts.images(self.images[order], captions, count, **look), order

    def _curves(self, cell: Sequence[tuple[str, str]]) -> alt.HConcatChart | None:
        """Class and view curves of each network of the cell, with lines at its layers; None without classes and views."""
        panels = []
        for network in dict(cell):
            streams = [s for s in self.comparison.streams if s == "labels" or s.startswith(f"{network}@")]
            if not streams:
                return None
            names = {
                s: "with the classes" if s == "labels" else f"with its view ({s.partition('@')[2]})" for s in streams
            }
            table = pd.concat([self.comparison.curve(network, s).assign(what=names[s]) for s in streams])
            panel, places = charts.lines(table, color="what", width=440), pd.DataFrame({"x": [*self.features[network]]})
            at = alt.Chart(places).encode(x=next(mark.encoding.x for mark in panel.layer if mark.mark.type == "line"))
            rules = [
                at.add_params(alt.param(name=f"layer_{i}", value=layer))
                .transform_filter(f"datum.x === layer_{i}")
                .mark_rule(color=charts.CHOSEN, strokeWidth=3, aria=False)
                for i, (other, layer) in enumerate(cell)
                if other == network
            ]
            size = {"width": panel.width, "height": panel.height}
            title = alt.Title(network, fontSize=14, fontWeight="normal")
            panels.append(alt.layer(panel.layer[0], *rules, *panel.layer[1:]).properties(title=title, **size))
        words = f"CKA, layer by layer, with classes and augmented views: {', '.join(dict(cell))}."
        title = "How much class and view information each layer shares"
        return alt.hconcat(*panels, spacing=24).properties(title=title, description=words)


def _heatmap(table: pd.DataFrame, measure: str, row: str, column: str) -> alt.LayerChart:
    """The map, with an outline around the chosen cell; JupyterChart hears of clicks, and moves the outline by parameters."""
    title = f"{measure}: {table['a'].iloc[0]} with {table['b'].iloc[0]}"
    chart = charts.heatmap(table.rename(columns={"value": measure}), color=measure, title=title, width=560)
    place = {channel: chart.layer[0].encoding[channel] for channel in ("x", "y")}
    chosen = [alt.param(name="row", value=row), alt.param(name="column", value=column)]
    click = alt.selection_point(name="cell", fields=["layer_a", "layer_b"], on="click", toggle=False, clear=False)
    outline = alt.Chart(table[["layer_a", "layer_b"]]).encode(**place)
    outline = outline.transform_filter("datum.layer_a === row && datum.layer_b === column")
    looks = (("#fff", 5), (charts.CHOSEN, 3))
    lines = [outline.mark_rect(fill=None, stroke=s, strokeWidth=w, aria=False) for s, w in looks]
    layers = [chart.layer[0].add_params(click, *chosen), *chart.layer[1:], *lines]
    keep = {"width": chart.width, "height": chart.height, "title": chart.title, "description": chart.description}
    return alt.layer(*layers).properties(**keep)


def _tag(picture: Picture | None) -> str:
    if picture is None:
        return ""
    data, words = base64.b64encode(picture.png).decode(), html.escape(picture.alt, quote=True)
    return (
        f'<img src="data:image/png;base64,{data}" alt="{words}" width="{picture.size[0]}"'
        ' style="max-width: 100%; height: auto; display: block; margin: 8px 0">'
    )
