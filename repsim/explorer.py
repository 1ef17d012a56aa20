"""A view for JupyterLab: choose two networks and a measure, click a cell, and see what the two layers disagree on.

    explore({"mine": mine, "theirs": theirs}, images)

The same as figures, without widgets: `display(*explore(...).still("layer3.1", "layer4.1"))`.
"""

from __future__ import annotations

import base64
import html
import itertools
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
from repsim.taps import Layers, as_features, as_labels, as_tensor, pooled

K = 10  # neighbours of the mutual k-NN measure
NEAREST = 5  # neighbours shown
MUTUAL = f"mutual {K}-NN"
Cell = list[tuple[str, str]]  # two networks, each with a layer


def neighbours(features: Tensor, query: Sequence[int], k: int) -> Tensor:
    """Indices (q, k) of the k other images most similar to each of `query`, by cosine of features (n, p): the best first, of
    equals the lower index. Raises ValueError for k outside 1 ... n - 1 or an index that is no image's, and as `as_features`."""
    features, query = as_features(features, "features", least=2), torch.tensor([*map(int, query)], dtype=torch.int64)
    if not 1 <= k < len(features):
        raise ValueError(f"k: expected 1 to {len(features) - 1} (the other images), got {k}")
    if bad := [i for i in query.tolist() if not 0 <= i < len(features)]:
        raise ValueError(f"query: expected images from 0 to {len(features) - 1}, got {', '.join(map(str, bad))}")
    unit = F.normalize(cka.exact(features).reshape(len(features), -1))
    similarity = unit[query] @ unit.T
    similarity[torch.arange(len(query)), query] = -torch.inf
    return similarity.argsort(dim=1, descending=True, stable=True)[:, :k]


def disagreement(x: Tensor, y: Tensor) -> Tensor:
    """How much each image adds to 1 - CKA of features x (n, p) and y (n, q): float64 (n,), not negative.

    With both Grams U-centred and scaled to norm 1, |K - L|^2 = 2 - 2 CKA (unbiased), and row i of K - L is image i's part. Raises
    ValueError for different or fewer than 4 rows or features that are constant over the images, and as `as_features`.
    """
    grams = []
    for name, features in (("x", x), ("y", y)):
        features = as_features(features, name, least=4)
        gram, raw = cka.centred_gram(cka.exact(features).reshape(len(features), -1))
        energy, centred = gram.trace(), cka.centre(gram, "unbiased")  # of one odd image alone nothing is left
        if energy <= cka.tolerance(features.dtype) * raw or centred.norm() <= 1e-12 * energy:
            raise ValueError(f"{name}: expected features that vary over the images, got constant or undefined ones")
        grams.append(centred / centred.norm())
    if len(grams[0]) != len(grams[1]):
        raise ValueError(f"x, y: expected features of the same images, got {len(grams[0])} and {len(grams[1])} rows")
    return (grams[0] - grams[1]).square().sum(1) / 2


def mutual_neighbours(a: Mapping[str, Tensor], b: Mapping[str, Tensor], k: int = K) -> pd.DataFrame:
    """Share of an image's k nearest neighbours in a layer of a that are among those in a layer of b, mean over the images,
    for all layers (Huh et al. 2024: mutual k-NN): columns layer_a, layer_b, value. k / (n - 1) for unrelated features."""

    def near(x: Tensor) -> Tensor:  # (n, n): whether image j is one of the nearest of image i
        return F.one_hot(neighbours(x, range(len(x)), k), len(x)).sum(1).bool()

    first, second = ({layer: near(x) for layer, x in layers.items()} for layers in (a, b))
    rows = [
        (m, l, ((x & y).sum() / x.sum()).item()) for (m, x), (l, y) in itertools.product(first.items(), second.items())
    ]
    return pd.DataFrame(rows, columns=["layer_a", "layer_b", "value"])


def explore(
    models: Mapping[str, nn.Module],
    images: Tensor,
    *,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    layers: Layers | Mapping[str, Layers] = None,
    transform: Callable[[Tensor], Tensor] | Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    batch_size: int = 64,
) -> Explorer:
    """A view for JupyterLab, offline: choose two networks and a measure, click a cell of the map or choose layers from menus.

    Args:
        models: name -> network; one alone will do.
        images: uint8 or float (n, 3, h, w), or grey with one channel; all are kept, a few hundred to a few thousand do. Those of
            type uint8, in colour and without a `transform`, have curves of SimCLR's views.
        labels: classes (n,), for captions and class curves. `classes`: their names.
        layers, transform, batch_size: as for `repsim.cka.compare`, whose errors it raises; a ValueError for images that are no
            tensor, or labels or classes that do not fit.
    """
    kind = f"shape {tuple(images.shape)}" if hasattr(images, "shape") else type(images).__name__
    if not hasattr(images, "__array__") or images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) <= NEAREST:
        raise ValueError(
            f"images: expected one tensor (n, 3, h, w) or (n, 1, h, w), n > {NEAREST}, got {kind}; "
            "of a loader make one, such as torch.cat([x for x, _ in loader]), of a list torch.stack(images)"
        )
    images, labels = as_tensor(images, "images"), None if labels is None else as_labels(labels)
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"labels: expected ({len(images)},), a class for each image, got {tuple(labels.shape)}")
    if classes is not None and (labels is None or not 0 <= int(labels.min()) <= int(labels.max()) < len(classes)):
        raise ValueError(f"classes: expected a name for each of the labels, got {len(classes)}; pass both or neither")
    ready = images.dtype == torch.uint8 and images.shape[1] == 3 and transform is None
    order = torch.randperm(len(images), generator=store.generator("order"))  # class order has no CKA within batches
    settings = {"layers": layers, "transform": transform, "batch_size": batch_size, "estimators": cka.ESTIMATORS}
    views, mixed = {"simclr": augment.simclr} if ready else None, None if labels is None else labels[order]
    comparison, features = cka.compare(models, images[order], labels=mixed, views=views, **settings), {}
    for name, model in models.items():
        own = transform.get(name) if isinstance(transform, Mapping) else transform
        wanted = layers[name] if isinstance(layers, Mapping) else layers
        features[name] = pooled(model, images, wanted, batch_size=batch_size, transform=own)
    if images.dtype != torch.uint8:
        low, high = images.min().float(), images.max().float()
        images = ((images.float() - low) * (255 / (high - low).clamp_min(1e-12))).round().byte()
    names = None if labels is None else [classes[i] if classes else f"class {i}" for i in labels.tolist()]
    return Explorer(images.expand(-1, 3, -1, -1).cpu(), names, comparison, features)


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

    def __init__(self):
        alt.JupyterChart.enable_offline(True)
        super().__init__(None, library=alt.JupyterChart._esm)


class Explorer(widgets.VBox):
    """The view that `explore` returns: `images` uint8 (n, 3, h, w) as they are shown, `names` of each image's class, `comparison`,
    and `features` (n, channels) by network and layer. `still()` gives it as figures."""

    def __init__(self, images, names, comparison: Comparison, features: Mapping[str, Mapping[str, Tensor]]):
        charts.use()
        self.images, self.names, self.comparison, self.features = images, names, comparison, features
        self.captions = [f"{i} {names[i]}" if names else f"{i}" for i in range(len(images))]
        self.measures = [f"{estimator} CKA" for estimator in comparison.hsic] + [MUTUAL] * (len(images) > K)
        self.changing, self.shown, networks = False, [0], list(features)
        look = {"layout": widgets.Layout(width="290px", max_width="100%"), "style": {"description_width": "76px"}}

        def menu(label: str, options: Iterable[str], chosen: int | None = None) -> widgets.Dropdown:
            return widgets.Dropdown(options=list(options), index=chosen, description=label, **look)

        self.networks = [menu("Rows", networks, 0), menu("Columns", networks, len(networks) - 1)]
        self.layers = [menu("Row layer", []), menu("Col. layer", [])]
        self.measure, self.query = menu("Measure", self.measures, 0), widgets.Text(description="Images", **look)
        self.query.continuous_update = False
        self.buttons = [widgets.Button(description=text) for text in ("Where they differ", "Other images")]
        self.status, self.faces, self.apart = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.map, self.curves = LateChart(), LateChart()
        for control in (*self.networks, self.measure):
            control.observe(lambda _: self._restart(), "value")
        for control in (*self.layers, self.query):
            control.observe(lambda _: self._look(), "value")
        self._restart()
        self.buttons[0].on_click(lambda _: self._ask(self.differ[:4]))
        self.buttons[1].on_click(lambda _: self._ask([(max(self.shown) + i) % len(images) for i in (1, 2, 3, 4)]))
        wrap = widgets.Layout(flex_flow="row wrap")
        pairs = zip((*self.networks, self.measure), (*self.layers, self.query))
        controls = [*map(widgets.VBox, pairs), widgets.VBox([widgets.HBox(self.buttons), self.status])]
        side_by_side = widgets.HBox([self.map, self.faces], layout=wrap)
        super().__init__([widgets.HBox(controls, layout=wrap), side_by_side, self.apart, self.curves])

    def __repr__(self) -> str:
        return f"Explorer of {', '.join(self.features)}: run this cell in JupyterLab to use it"

    def still(self, layer_a: str | None = None, layer_b: str | None = None, query: Sequence[int] | None = None) -> list:
        """The figures of two layers (those chosen, if not given) of the chosen networks: the map, neighbours of `query`, the
        images that differ most, and curves if there are classes or views. ValueError for an unknown layer or image."""
        cell = [(network, layer or own) for (network, own), layer in zip(self._cell(), (layer_a, layer_b))]
        for name, (network, layer) in zip(("layer_a", "layer_b"), cell):
            if layer not in self.features[network]:
                known = ", ".join(self.features[network])
                raise ValueError(f"{name}: expected a layer of {network}, one of {known}, got {layer!r}")
        apart, order = self._apart(cell)
        faces = self._faces(cell, order[:4] if query is None else query)
        figures = [_heatmap(self.values, self.measure.value, cell), faces, apart, self._curves(cell)]
        return [figure for figure in figures if figure is not None]

    def _table(self) -> pd.DataFrame:
        """All layers of the one chosen network with all of the other: a, b, layer_a, layer_b, value, perhaps low and high."""
        a, b = (network for network, _ in self._cell())
        if self.measure.value == MUTUAL:
            return mutual_neighbours(self.features[a], self.features[b]).assign(a=a, b=b)
        table = self.comparison.table(a, b, estimator=self.measure.value.removesuffix(" CKA"))
        return table.rename(columns={"cka": "value"})

    def _cell(self) -> Cell:
        return [(network.value, layer.value) for network, layer in zip(self.networks, self.layers)]

    def _ask(self, images: Sequence[int]) -> None:
        self.query.value = ", ".join(map(str, images))

    def _restart(self) -> None:
        """Other networks, or another measure: new menus, map and curves."""
        self.changing = True
        for network, layer in zip(self.networks, self.layers):
            before, layer.options = layer.value, list(self.features[network.value])
            layer.value = before if before in layer.options else layer.options[-1]
        self.values = self._table()
        self.map.chart = _heatmap(self.values, self.measure.value, self._cell())
        self.map.selections.observe(self._click, "cell")
        self.curves.chart = self._curves(self._cell())
        self.changing = False
        self._look()

    def _click(self, change) -> None:
        if change.new.value:
            self.changing = True
            for menu, end in zip(self.layers, ("layer_a", "layer_b")):
                menu.value = change.new.value[0][end]
            self.changing = False
            self._look()

    def _look(self) -> None:
        """Two layers and some images: the outline, numbers and pictures."""
        if self.changing:
            return
        (a, row), (b, column) = cell = self._cell()
        self.map.params.row, self.map.params.column = row, column
        apart, self.differ = self._apart(cell)
        if not self.query.value.strip():
            return self._ask(self.differ[:4])  # and look again
        value = self.values[(self.values["layer_a"] == row) & (self.values["layer_b"] == column)].iloc[0]
        words = html.escape(f"{a} · {row}\n{b} · {column}").replace("\n", "<br>")
        text = f"<b>{self.measure.value} {charts.estimate(*value.filter(charts.NUMBERS))}</b><br>{words}"
        faces = None
        try:
            asked = [int(part) for part in self.query.value.replace(",", " ").split()]
            faces, self.shown = self._faces(cell, asked), asked
        except ValueError as error:
            text += f'<br><span role="alert">Images: numbers with commas, please. {html.escape(str(error))}</span>'
        style = "line-height: 1.4; color: var(--jp-ui-font-color1, #57606a)"
        self.status.value = f'<div role="status" style="{style}">{text}</div>'
        self.faces.value, self.apart.value = _tag(faces), _tag(apart)

    def _faces(self, cell: Cell, query: Sequence[int]) -> Picture:
        """Each of `query` with its nearest neighbours in both layers, one above the other; those in both are framed."""
        lists = [neighbours(self.features[network][layer], query, NEAREST).tolist() for network, layer in cell]
        shown, framed, told = [], [], []
        for i, *both in zip(query, *lists):
            for nearest in both:
                framed += [len(shown) + n for n, j in enumerate(nearest, 1) if j in both[0] and j in both[1]]
                shown += [i, *nearest]
            told.append(f"image {i}: {both[0]} and {both[1]}")
        a, b = map(" ".join, cell)
        title, captions = f"Nearest in {a} (above) and {b} (below); framed: in both", [self.captions[i] for i in shown]
        picture = charts.images(self.images[shown], captions, 1 + NEAREST, framed=framed, title=title)
        same = f"{len(framed) // 2} of {NEAREST * len(query)} the same"
        picture.alt = f"Nearest images in {a} and {b}, {same}. {'; '.join(told)}."
        return picture

    def _apart(self, cell: Cell) -> tuple[Picture | None, list[int]]:
        """The images that add most to the disagreement of two layers, with their share of it; None where it is undefined."""
        try:
            parts = disagreement(*(self.features[network][layer] for network, layer in cell))
        except ValueError:
            return None, [*range(min(12, len(self.images)))]
        order = parts.argsort(descending=True, stable=True)[:12].tolist()
        shares = [f"{100 * share:.1f} %" for share in parts[order] / parts.sum().clamp_min(1e-300)]
        listed = ", ".join(f"{self.captions[i]} {share}" for i, share in zip(order, shares))
        a, b = map(" ".join, cell)
        title, captions = "Where the two layers differ most: image, share of 1 - CKA", zip(map(str, order), shares)
        picture = charts.images(self.images[order], [*map("  ".join, captions)], 12, title=title)
        picture.alt = f"Images on which {a} and {b} differ most, with their share of 1 - CKA: {listed}."
        return picture, order

    def _curves(self, cell: Cell) -> alt.HConcatChart | None:
        """Class and view curves of each network of the cell; None without classes and views."""
        panels, comparison = [], self.comparison
        for network in dict(cell):
            told = {"labels": "with the classes", f"{network}@simclr": "with its view (simclr)"}
            curves = [comparison.curve(network, s).assign(what=told[s]) for s in comparison.streams if s in told]
            if not curves:
                return None
            panels.append(charts.lines(pd.concat(curves), color="what", title=network, width=440))
        words = f"CKA, layer by layer, with classes and augmented views: {', '.join(dict(cell))}."
        title = "How much class and view information each layer shares"
        return alt.hconcat(*panels, spacing=24).properties(title=title, description=words)


def _heatmap(table: pd.DataFrame, measure: str, cell: Cell) -> alt.LayerChart:
    """The map, with an outline around the chosen cell; JupyterChart hears of clicks, and moves the outline by parameters."""
    (a, row), (b, column) = cell
    renamed = table.rename(columns={"value": measure})
    chart = charts.heatmap(renamed, color=measure, title=f"{measure}: {a} with {b}", width=560)
    place = [chart.layer[0].encoding.x, chart.layer[0].encoding.y]
    click = alt.selection_point(name="cell", fields=["layer_a", "layer_b"], on="click", toggle=False, clear=False)
    chart = chart.add_params(click, alt.param(name="row", value=row), alt.param(name="column", value=column))
    outline = alt.Chart(table[["layer_a", "layer_b"]]).encode(*place)
    outline = outline.transform_filter("datum.layer_a === row && datum.layer_b === column")
    for stroke, width in (("#fff", 5), (charts.CHOSEN, 3)):
        chart += outline.mark_rect(fill=None, stroke=stroke, strokeWidth=width, aria=False)
    return chart


def _tag(picture: Picture | None) -> str:
    if picture is None:
        return ""
    data, words = base64.b64encode(picture.png).decode(), html.escape(picture.alt, quote=True)
    style = "max-width: 100%; height: auto; display: block; margin: 8px 0"
    return f'<img src="data:image/png;base64,{data}" alt="{words}" width="{picture.size[0]}" style="{style}">'
