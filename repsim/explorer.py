"""A view for JupyterLab: choose two networks and a measure, click a cell, and see what the two layers disagree on.

    explore({"mine": mine, "theirs": theirs}, images)

The same as figures, without widgets: `display(*explore(...).still("layer3.1", "layer4.1"))`.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence

import altair as alt
import ipywidgets as widgets
import torch
import traitlets
from torch import Tensor, nn

from repsim import charts, pairs
from repsim.charts import Picture
from repsim.comparison import Comparison
from repsim.pairs import Subject, prepare


def explore(
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
) -> Explorer:
    """A view for JupyterLab: choose two networks and a measure, click a cell of the map or choose layers from menus.

    Works offline. Enables the figures' theme and renderer (`repsim.charts.use`). For one network pass it alone.

    Args:
        models: name -> network.
        images: uint8 or float (n, 3, h, w), or grey with one channel; all are kept, a few hundred to a few thousand do.
        labels: classes (n,), for captions and class curves. `classes`: their names.
        layers, transform, batch_size: as for `repsim.cka.compare`.
        comparison: made by it before, of these networks and layers (with labels and views for the curves).
        views: as for `compare`. None: SimCLR's augmentations if the images are uint8 and all share one `transform`.

    Raises:
        ValueError, TypeError: as `compare`; images that are no tensor, labels or classes that do not fit.
    """
    settings = {"labels": labels, "classes": classes, "layers": layers, "comparison": comparison}
    return Explorer(prepare(models, images, views=views, transform=transform, batch_size=batch_size, **settings))


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
    """The view that `explore` returns. `subject` holds all that is shown, `still()` gives it as figures."""

    def __init__(self, subject: Subject):
        charts.use()
        self.subject, self.changing, self.shown = subject, False, [0]
        networks = list(subject.features)

        def menu(label: str, options: Iterable[str], value: str | None = None) -> widgets.Dropdown:
            layout = widgets.Layout(width="300px", max_width="100%")
            return widgets.Dropdown(
                options=list(options),
                value=value,
                description=label,
                layout=layout,
                style={"description_width": "76px"},
            )

        self.networks = [menu("Rows", networks, networks[0]), menu("Columns", networks, networks[-1])]
        self.layers = [menu("Row layer", []), menu("Col. layer", [])]
        self.measure = menu("Measure", subject.measures, subject.measures[0])
        self.query = widgets.Text(description="Images", continuous_update=False, layout=self.measure.layout)
        self.query.style.description_width = "76px"
        self.buttons = [
            widgets.Button(description=d, tooltip=t, layout=widgets.Layout(width="auto"))
            for d, t in (
                ("Where they differ", "Neighbours of the images on which the two layers differ most"),
                ("Other images", "Neighbours of the next images of the set"),
            )
        ]
        self.said, self.pictures = widgets.HTML(), widgets.HTML()
        self.map, self.curves = LateChart(), LateChart()
        self._restart()
        for control in (*self.networks, self.measure):
            control.observe(lambda _: self._restart(), "value")
        for control in (*self.layers, self.query):
            control.observe(lambda _: self._look(), "value")
        self.buttons[0].on_click(lambda _: self._ask(self.differ[:4]))
        self.buttons[1].on_click(
            lambda _: self._ask([(max(self.shown) + i) % len(subject.images) for i in (1, 2, 3, 4)])
        )
        controls = [*self.networks, self.measure, *self.layers, self.query, widgets.HBox(self.buttons), self.said]
        side = widgets.VBox(controls, layout=widgets.Layout(margin="16px 0 0 12px", max_width="340px"))
        top = widgets.HBox([self.map, side], layout=widgets.Layout(flex_flow="row wrap"))
        super().__init__([top, self.pictures, self.curves])

    def __repr__(self) -> str:
        return f"Explorer of {', '.join(self.subject.features)}: run this cell in JupyterLab to use it"

    def still(
        self, layer_a: str | None = None, layer_b: str | None = None, **options
    ) -> list[alt.TopLevelMixin | Picture]:
        """The figures of two layers (those chosen, if not given) of the chosen networks; options as for `figures`."""
        (a, chosen_a), (b, chosen_b) = self._chosen()
        options = {"measure": self.measure.value, **options}
        return pairs.figures(self.subject, a, layer_a or chosen_a, b, layer_b or chosen_b, **options)

    def _chosen(self) -> list[tuple[str, str]]:
        return [(network.value, layer.value) for network, layer in zip(self.networks, self.layers)]

    def _ask(self, images: Sequence[int]) -> None:
        self.query.value = ", ".join(map(str, images))

    def _restart(self) -> None:
        """Other networks, or another measure: new menus, map and curves."""
        if self.changing:
            return
        self.changing = True
        for network, layer in zip(self.networks, self.layers):
            names = list(self.subject.features[network.value])
            before, layer.options = layer.value, names
            layer.value = before if before in names else names[-1]
        (a, row), (b, column) = self._chosen()
        self.table = self.subject.table(a, b, self.measure.value)
        self.map.chart = pairs.heatmap(self.table, self.measure.value, row, column)
        self.map.selections.observe(self._click, "cell")
        self.curves.chart = pairs.curves(self.subject, self._chosen())
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
        (a, row), (b, column) = self._chosen()
        self.map.params.row, self.map.params.column = row, column
        for i, layer in enumerate((row, column)):
            if self.curves.chart is not None:
                setattr(self.curves.params, f"layer_{i}", layer)
        apart, self.differ = pairs.apart(self.subject, a, row, b, column)
        if not self.query.value.strip():
            self.changing = True
            self._ask(self.differ[:4])
            self.changing = False
        cell = self.table[(self.table["layer_a"] == row) & (self.table["layer_b"] == column)].iloc[0]
        interval = f" [{cell['low']:.2f}, {cell['high']:.2f}]" if "low" in self.table else ""
        text = f"<b>{self.measure.value} {cell['value']:.2f}</b>{interval}<br>{a} · {row}<br>{b} · {column}"
        try:
            asked = [int(part) for part in self.query.value.replace(",", " ").split()]
            pictures, self.shown = [pairs.faces(self.subject, a, row, b, column, asked)], asked
            text += "<br>Framed: neighbours in both layers."
        except ValueError as error:
            pictures = []
            text += f'<br><span role="alert">Images: numbers with commas, please. {html.escape(str(error))}</span>'
        self.said.value = (
            f'<div role="status" style="line-height: 1.5; color: var(--jp-ui-font-color1, #57606a)">{text}</div>'
        )
        self.pictures.value = "".join(_img(p) for p in (*pictures, apart) if p is not None)


def _img(picture: Picture) -> str:
    data, alt_text = base64.b64encode(picture.png).decode(), html.escape(picture.alt, quote=True)
    return (
        f'<img src="data:image/png;base64,{data}" alt="{alt_text}" width="{picture.size[0]}"'
        ' style="max-width: 100%; height: auto; display: block; margin: 8px 0">'
    )
