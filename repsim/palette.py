"""Names and colours that every figure shares: one colour per objective, one shape per kind of layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

INK, MUTED, RULE, GRID = "#1f2328", "#57606a", "#9aa0a6", "#e6e9ed"

# Each at least 3:1 against white and apart from the others, also as seen with protanopia, deuteranopia or tritanopia.
# A seed ceiling ("sl-sl") has its objective's colour and a dashed line, a floor ("sl-untrained") a dotted one.
COLOURS: Mapping[str, str] = {
    "sl": "#0072b2",
    "simclr": "#d55e00",
    "untrained": "#808080",
    "sl-simclr": "#4a1259",
    "sl-sl": "#0072b2",
    "simclr-simclr": "#d55e00",
    "untrained-untrained": "#808080",
    "sl-untrained": "#0072b2",
    "simclr-untrained": "#d55e00",
    "sl_simclr_views": "#0493ff",
    "random_labels": "#a84521",
    "ce_views": "#1218c0",
    "supcon": "#00a575",
    "nscl": "#a47a50",
    "byol": "#f240ee",
    "barlow": "#004d40",
    "vicreg": "#a427f8",
    "rotation": "#8b0000",
    "simclr_sl_middle": "#3b4da2",
    "simclr_sl_top": "#888cba",
    "sl_simclr_middle": "#846b66",
    "simclr_simplex": "#540801",
    "simclr_random_prototypes": "#03032e",
}
# Of what is no objective; apart from one another and from SL, SimCLR and their pair
SPARE = ("#155c59", "#a98565", "#791037", "#4f5208", "#86604f")
KINDS: Mapping[str, tuple[str, str]] = {  # shape and fill
    "residual": ("diamond", "#ffffff"),
    "post-residual": ("circle", INK),
    "other": ("square", "#9aa0a6"),
}


def layer_kind(layer: str) -> str:
    """A key of `KINDS`: "layer1.0.residual" is residual, "layer1.0" post-residual, any other name other."""
    if layer.endswith(".residual"):
        return "residual"
    return "post-residual" if re.fullmatch(r"layer\d+\.\d+", layer) else "other"


def short(layer: str) -> str:
    """A layer's name on an axis: "layer1.0.residual" -> "1.0 res", "layer1.0" -> "1.0", any other unchanged."""
    match = re.fullmatch(r"layer(\d+\.\d+)(\.residual)?", layer)
    return layer if match is None else match[1] + (" res" if match[2] else "")


def objective(stream: str) -> str:
    """ "sl-0" and "sl-0@simclr-1" -> "sl"; "labels" -> "labels"."""
    return re.sub(r"-\d+$", "", stream.split("@")[0])


def comparison(a: str, b: str) -> str:
    """What is compared: "sl-0" and "simclr-1" -> "sl-simclr"; a network and its view, labels or pixels -> "sl"."""
    known = [*COLOURS]
    a, b = sorted((a, b), key=lambda s: known.index(objective(s)) if objective(s) in COLOURS else len(known))
    if a.split("@")[0] == b.split("@")[0] or objective(b) in ("labels", "pixels"):
        return objective(a)
    return f"{objective(a)}-{objective(b)}"


def contrast(colour: str, background: str = "#ffffff") -> float:
    """Contrast ratio, 1 to 21, of two colours like "#0072b2" (Web Content Accessibility Guidelines 2.2)."""

    def luminance(c: str) -> float:
        rgb = np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    dark, light = sorted((luminance(colour), luminance(background)))
    return (light + 0.05) / (dark + 0.05)


def colour_scale(names: Sequence[str]) -> alt.Scale:
    used = {COLOURS.get(n) for n in names}
    spare = dict.fromkeys(c for c in (*SPARE, *reversed(COLOURS.values())) if c not in used)
    spare = iter([*spare, *[INK] * len(names)])
    return alt.Scale(domain=list(names), range=[COLOURS[n] if n in COLOURS else next(spare) for n in names])


def dash(name: str) -> list[int]:
    a, _, b = name.partition("-")
    return [7, 4] if a == b else [2, 3] if b == "untrained" else [1, 0]
