"""The embedded image set: ten shapes, whose every other property is known.

    images, labels, factors = draw(2000, seed=0, context=0.8)

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


def _disc(x: Tensor, y: Tensor, radius: float, at: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    dx, dy = x - at[0], y - at[1]
    return (dx * dx + dy * dy).sqrt() - radius


def _box(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    return torch.maximum(x.abs() - a, y.abs() - b)


def _sides(x: Tensor, y: Tensor, n: int, distance: float) -> Tensor:
    """Distances (n, ...) from the lines of a regular polygon's sides, the first below the centre."""
    angles = [2 * math.pi * i / n - math.pi / 2 for i in range(n)]
    return torch.stack([x * math.cos(a) + y * math.sin(a) - distance for a in angles])


def _heart(x: Tensor, y: Tensor) -> Tensor:
    s = 0.48
    a, b = (y + x) * math.sqrt(0.5) + 0.15, (y - x) * math.sqrt(0.5) + 0.15  # a square on its corner, and two discs
    lobes = torch.minimum(_disc(a, b, s, (s, 0.0)), _disc(a, b, s, (0.0, s)))
    return torch.minimum(_box(a, b, s, s), lobes)


# Signed distance (negative inside; a lower bound beyond corners) from an outline of about unit radius, y upwards.
OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda x, y: _disc(x, y, 0.85),
    "ring": lambda x, y: _disc(x, y, 0.68).abs() - 0.22,
    "crescent": lambda x, y: torch.maximum(_disc(x, y, 0.95), -_disc(x, y, 0.8, (0.5, 0.0))),
    "heart": _heart,
    "triangle": lambda x, y: _sides(x, y, 3, 0.52).amax(0),
    "square": lambda x, y: _box(x, y, 0.74, 0.74),
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95)),
    # within at least four of a pentagram's five lines
    "star": lambda x, y: _sides(x, -y, 5, 0.34).topk(2, dim=0).values[1],
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
    pure = (((hue[:, None] * 6 + thirds) % 6 - 3).abs() - 1).clamp(0, 1)
    return (1 - saturation) + saturation * pure


def draw_factors(labels: Tensor, generator: torch.Generator, context: float = 0.0) -> pd.DataFrame:
    """What makes images beside their shape, drawn independently and uniformly, but for the background of some.

    Lengths are in half images, intensities 0 to 1. With probability `context` an image has the background that its class,
    `labels` (n,), prefers, otherwise any of BACKGROUNDS. Another `context` changes those backgrounds and no other draw.
    """
    u = torch.rand(len(labels), 12, generator=generator, dtype=torch.float64).numpy()

    def between(i: int, low: float, high: float) -> np.ndarray:
        return low + (high - low) * u[:, i]

    background = np.where(u[:, 10] < context, labels.numpy(), (u[:, 6] * len(BACKGROUNDS)).astype(int))
    textures, frequencies = (np.array(values)[background] for values in zip(*BACKGROUNDS))
    return pd.DataFrame(
        {
            "x": between(0, -0.35, 0.35),  # of the centre, to the right
            "y": between(1, -0.35, 0.35),  # upwards
            "scale": between(2, 0.45, 0.75),  # the radius
            "rotation": between(3, -40, 40),  # degrees, anticlockwise
            "foreground_hue": u[:, 4],  # period 1
            "background_hue": u[:, 5],
            "texture": textures,
            "texture_frequency": frequencies * between(11, 0.8, 1.2),  # 1 is about 2 periods
            "texture_angle": between(7, 0, 180),  # degrees, period 180
            "texture_phase": between(8, 0, 2),  # a shift, at frequency 1
            "noise": between(9, 0, 0.22),  # standard deviation
        }
    )


def render(
    factors: pd.DataFrame, labels: Tensor, size: int, generator: torch.Generator, saturation: float = 1.0
) -> Tensor:
    """Embedded images uint8 (n, 3, size, size) of these factors; the generator gives the noise only."""
    images = torch.empty(len(factors), 3, size, size, dtype=torch.uint8)
    kinds = torch.tensor(factors["texture"].map(TEXTURES.index).to_list())
    value = {name: torch.tensor(factors[name].to_list(), dtype=torch.float64) for name in factors if name != "texture"}
    for angle in ("rotation", "texture_angle"):
        value[f"{angle}_cos"], value[f"{angle}_sin"] = value[angle].deg2rad().cos(), value[angle].deg2rad().sin()
    value = {name: column.float()[:, None, None] for name, column in value.items()}
    grid = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
    right, up = grid[None, None, :], -grid[None, :, None]

    for start in range(0, len(factors), 1000):  # bounds the memory
        part = {name: column[start : start + 1000] for name, column in value.items()}
        n = len(part["x"])
        a, b = (right - part["x"]) / part["scale"], (up - part["y"]) / part["scale"]
        x, y = a * part["rotation_cos"] + b * part["rotation_sin"], b * part["rotation_cos"] - a * part["rotation_sin"]
        along = right * part["texture_angle_cos"] + up * part["texture_angle_sin"]
        across = right * part["texture_angle_sin"] - up * part["texture_angle_cos"]
        u, v = (axis * part["texture_frequency"] + part["texture_phase"] for axis in (along, across))
        outline, texture = torch.empty(n, size, size), torch.empty(n, size, size)
        for label, distance in enumerate(OUTLINES.values()):
            i = labels[start : start + n] == label
            outline[i] = distance(x[i], y[i])
        for kind, pattern in enumerate(PATTERNS.values()):
            i = kinds[start : start + n] == kind
            texture[i] = pattern(u[i], v[i])
        # The fraction of a pixel that is covered, from the distance in pixels: anti-aliasing.
        cover = (0.5 - outline * part["scale"] * (size / 2)).clamp(0, 1)[:, None]
        foreground, ground = (_colour(part[f"{name}_hue"], 0.6 * saturation) for name in ("foreground", "background"))
        ground = ground * (0.48 * (1 + 0.65 * texture))[:, None]
        picture = ground + (foreground - ground) * cover
        noise = torch.rand(n, 2, 3, size, size, generator=generator)
        deviation = part["noise"][:, None] * math.sqrt(6)  # the difference of two uniform draws has a variance of 1/6
        picture = picture + (noise[:, 0] - noise[:, 1]) * deviation
        images[start : start + n] = (picture * 255).round().clamp(0, 255).byte()
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
