"""How figures reach a reader: one theme, one renderer, and pictures with alt text.

A chart is an interactive figure where Vega-Lite 5 is known (JupyterLab, the report) and a PNG everywhere else.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import altair as alt
import vl_convert
from PIL import Image

from repsim.palette import GRID, INK, MUTED, RULE  # noqa: F401 (figures take INK and MUTED from here)

VEGA_LITE = "5.8"  # JupyterLab 4 draws with 5.6; this is the nearest that vl_convert has
MIME = "application/vnd.vegalite.v5+json"
SCALE = 1.6  # pixels of a picture per CSS pixel: sharp on dense screens, and notebooks stay small


def use() -> None:
    """Register and enable the theme and the renderer; call it once, before the first chart."""
    alt.theme.register("repsim", enable=True)(theme)
    alt.renderers.register("repsim", bundle)
    alt.renderers.enable("repsim")
    alt.data_transformers.disable_max_rows()


def theme() -> alt.theme.ThemeConfig:
    """White ground in light and in dark surroundings, nothing smaller than 12 px."""
    text = {"labelFontSize": 12, "titleFontSize": 13, "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal"}
    config = {
        "background": "#ffffff",
        "padding": 14,
        "font": "Helvetica Neue, Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif",
        "title": {
            "fontSize": 16,
            "color": INK,
            "anchor": "start",
            "offset": 12,
            "fontWeight": 600,
            "subtitleFontSize": 13,
        },
        "axis": {
            **text,
            "gridColor": GRID,
            "domainColor": RULE,
            "tickColor": RULE,
            "titlePadding": 8,
            "labelFlush": False,
        },
        "legend": {**text, "labelLimit": 260, "columnPadding": 18},
        "view": {"stroke": GRID, "continuousWidth": 420, "continuousHeight": 280},
    }
    return {"config": config}


def bundle(spec: dict[str, Any], **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A chart's MIME bundle (Vega-Lite 5 specification, PNG of 256 colours, title) and its metadata.

    The text is the title alone, so that stored outputs compare equal where numbers differ; the alt text is metadata.
    """
    data = {name: [_short(row) for row in rows] for name, rows in spec.get("datasets", {}).items()}
    spec = {**spec, "$schema": "https://vega.github.io/schema/vega-lite/v5.json", "datasets": data}
    png = vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=SCALE)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    title = spec.get("title") or "Chart"
    title = title.get("text") or "Chart" if isinstance(title, dict) else title
    title = " ".join(title) if isinstance(title, list) else title
    picture = Picture(image.quantize(256, Image.Quantize.MAXCOVERAGE), title, spec.get("description"), scale=SCALE)
    pictures, about = picture._repr_mimebundle_()
    return {MIME: spec, **pictures}, about


def _short(row: Any) -> Any:
    """Numbers of a table's row with 5 significant digits, more than any figure shows: a notebook stays small."""
    if isinstance(row, dict):
        return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in row.items()}
    return row


class Picture:
    """A PNG image that Jupyter shows with alt text.

    Attributes: `png` (bytes), `title` (shown where no picture can be), `alt`, `size` (width, height in CSS pixels).
    """

    def __init__(self, image: Image.Image, title: str, alt: str | None = None, *, scale: float = 1):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        self.png, self.title, self.alt = buffer.getvalue(), title, alt or title
        self.size = round(image.width / scale), round(image.height / scale)

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.title}
        return data, {"image/png": {"alt": self.alt, "width": self.size[0], "height": self.size[1]}}
