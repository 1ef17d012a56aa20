"""The embedded image set: ten shapes, whose every other property is known.

The class is the shape. Position, scale, rotation, colours and noise are independent of it; the background texture goes with
it in a fraction `context` of the images, as natural objects come with contexts. Textures are turned and shifted at random, so
that a linear classifier of the pixels does badly and a small ResNet does well. Only correctly rounded operations (+ - * / sqrt
min max; the sine in double precision and then rounded) make pixels, which no machine and number of threads change.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repsim import store


def _disc(x: Tensor, y: Tensor, radius: float) -> Tensor:
    return (x * x + y * y).sqrt() - radius


def _box(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    return torch.maximum(x.abs() - a, y.abs() - b)


def _sides(x: Tensor, y: Tensor, n: int, distance: float) -> Tensor:
    """Distances (n, ...) from the lines of a regular polygon's sides, the first below the centre."""
    angles = [2 * math.pi * i / n - math.pi / 2 for i in range(n)]
    return torch.stack([x * math.cos(a) + y * math.sin(a) - distance for a in angles])


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner, and two discs."""
    a, b = (y + x) * math.sqrt(0.5) + 0.15, (y - x) * math.sqrt(0.5) + 0.15
    lobes = torch.minimum(_disc(a - 0.48, b, 0.48), _disc(a, b - 0.48, 0.48))
    return torch.minimum(_box(a, b, 0.48, 0.48), lobes)


# Signed distance (negative inside; a lower bound beyond corners) from an outline of about unit radius, y upwards.
OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y: _disc(x, y, 0.85),
    "ring": lambda x, y: _disc(x, y, 0.68).abs() - 0.22,
    "crescent": lambda x, y: torch.maximum(_disc(x, y, 0.95), -_disc(x - 0.5, y, 0.8)),
    "heart": _heart,
    "triangle": lambda x, y: _sides(x, y, 3, 0.52).amax(0),
    "square": lambda x, y: _box(x, y, 0.74, 0.74),
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)),
    "star": lambda x, y: _sides(x, -y, 5, 0.34).topk(2, dim=0).values[1],  # within four of a pentagram's five lines
    "hourglass": lambda x, y: torch.maximum(y.abs() - 0.9, (x.abs() - y.abs() - 0.1) * math.sqrt(0.5)),
    "chevron": lambda x, y: torch.maximum(((y - x.abs() + 0.35) * math.sqrt(0.5)).abs() - 0.3, x.abs() - 0.85),
}
SHAPES = tuple(OUTLINES)


def _wave(t: Tensor) -> Tensor:
    """A triangle wave of period 1 in [-1, 1]."""
    return (t - t.floor() - 0.5).abs() * 4 - 1


# In [-1, 1] at coordinates along (u) and across (v) the orientation; turned by 180 degrees, the same.
PATTERNS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stripes": lambda u, v: (3 * _wave(u * 2.5)).clamp(-1, 1),
    "waves": lambda u, v: _wave(u * 1.2),
    "dashes": lambda u, v: (3 * torch.minimum(_wave(u * 2.5), _wave(v * 1.2) + 0.3)).clamp(-1, 1),
    "zigzag": lambda u, v: (3 * _wave(u * 2 + 0.35 * _wave(v * 1.5 + 0.25))).clamp(-1, 1),
}
TEXTURES = tuple(PATTERNS)
# What backgrounds are filled with, and its frequency; class i prefers the i-th, and no class prefers the last two.
BACKGROUNDS = tuple((texture, frequency) for frequency in (0.6, 1.1, 1.9) for texture in TEXTURES)


def _colour(hue: Tensor, saturation: float) -> Tensor:
    """Hue (n, 1, 1) in [0, 1) -> RGB (n, 3, 1, 1), brightest channel 1."""
    thirds = torch.tensor([0.0, 4.0, 2.0])[:, None, None]
    return (1 - saturation) + saturation * (((hue[:, None] * 6 + thirds) % 6 - 3).abs() - 1).clamp(0, 1)


def draw_factors(labels: Tensor, generator: torch.Generator, context: float = 0.0) -> pd.DataFrame:
    """What makes images beside their shape, drawn independently and uniformly, but for the background of some.

    Lengths are in half images, intensities 0 to 1. With probability `context` an image has the background that its class,
    `labels` (n,), prefers, otherwise any of BACKGROUNDS. Another `context` changes those backgrounds and no other draw.
    """
    u = torch.rand(len(labels), 12, generator=generator, dtype=torch.float64).numpy().T
    background = np.where(u[10] < context, labels.numpy(), (u[6] * len(BACKGROUNDS)).astype(int))
    textures, frequencies = (np.array(values)[background] for values in zip(*BACKGROUNDS))
    factors = {
        "x": 0.7 * u[0] - 0.35,  # of the centre, to the right
        "y": 0.7 * u[1] - 0.35,  # upwards
        "scale": 0.45 + (0.75 - 0.45) * u[2],  # the radius, 0.45 to 0.75
        "rotation": 80 * u[3] - 40,  # degrees, anticlockwise
        "foreground_hue": u[4],  # period 1
        "background_hue": u[5],
        "texture": textures,
        "texture_frequency": frequencies * (0.8 + (1.2 - 0.8) * u[11]),  # 0.8 to 1.2 times; 1 is about 2 periods
        "texture_angle": 180 * u[7],  # degrees, period 180
        "texture_phase": 2 * u[8],  # a shift, at frequency 1
        "noise": 0.22 * u[9],  # standard deviation
    }
    return pd.DataFrame(factors)


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along and across axes that are turned anticlockwise by angles in degrees, float64 (n, 1, 1)."""
    cos, sin = angle.deg2rad().cos().float(), angle.deg2rad().sin().float()
    return x * cos + y * sin, y * cos - x * sin


def render(factors: pd.DataFrame, labels: Tensor, size: int, noise: torch.Generator, saturation: float = 1) -> Tensor:
    """Embedded images uint8 (n, 3, size, size) of these factors."""
    images = torch.empty(len(factors), 3, size, size, dtype=torch.uint8)
    right = ((torch.arange(size) + 0.5) * (2 / size) - 1).expand(1, 1, -1)
    up = -right.mT
    for start in range(0, len(factors), 100):  # bounds the memory
        rows = slice(start, start + 100)
        columns = factors[rows].drop(columns="texture").items()
        exact = {name: torch.tensor(column.to_numpy(float))[:, None, None] for name, column in columns}
        value, n = {name: column.float() for name, column in exact.items()}, range(len(factors[rows]))
        x, y = (right - value["x"]) / value["scale"], (up - value["y"]) / value["scale"]
        x, y = _turned(x, y, exact["rotation"])
        u, v = _turned(right, up, exact["texture_angle"])
        u, v = (axis * value["texture_frequency"] + value["texture_phase"] for axis in (u, -v))
        outline = torch.stack([distance(x, y) for distance in OUTLINES.values()])[labels[rows], n]
        patterns = {name: pattern(u, v) for name, pattern in PATTERNS.items()}
        texture = torch.stack([patterns[name][i] for i, name in enumerate(factors["texture"][rows])])
        # The fraction of a pixel that is covered, from the distance in pixels: anti-aliasing.
        cover = (0.5 - outline * value["scale"] * (size / 2)).clamp(0, 1)[:, None]
        foreground, ground = (_colour(value[f"{part}_hue"], 0.6 * saturation) for part in ("foreground", "background"))
        ground = ground * (0.48 * (1 + 0.65 * texture))[:, None]
        draws = torch.rand(len(n), 2, 3, size, size, generator=noise)  # the difference of two has a variance of 1/6
        deviation = value["noise"][:, None] * math.sqrt(6)
        picture = ground + (foreground - ground) * cover + (draws[:, 0] - draws[:, 1]) * deviation
        images[rows] = (picture * 255).round().clamp(0, 255).byte()
    return images


def draw(
    n: int, *, seed: int = 0, size: int = 32, stream: str = "train", context: float = 0.0, saturation: float = 1.0
) -> tuple[Tensor, Tensor, pd.DataFrame]:
    """`n` images uint8 (n, 3, size, size), labels int64 (n,) that index SHAPES, and their factors (see `draw_factors`).

    The same arguments give the same images on every machine, more images begin with the same ones, and `stream`
    ("train", "test", ...) names independent draws. The classes take turns. `saturation` 1 gives colours of saturation 0.6
    in HSV, 0 greys. Raises ValueError where size is below 8, or context or saturation not of 0 to 1.
    """
    if size < 8:
        raise ValueError(f"image_size: expected at least 8 pixels a side for shapes, got {size}")
    if not (0 <= context <= 1 and 0 <= saturation <= 1):
        raise ValueError(f"context, saturation: expected numbers of 0 to 1, got {context!r} and {saturation!r}")
    labels = torch.arange(n) % len(SHAPES)
    factors = draw_factors(labels, store.generator(seed, "shapes", stream, "factors"), context)
    noise = store.generator(seed, "shapes", stream, "noise")
    return render(factors, labels, size, noise, saturation), labels, factors
