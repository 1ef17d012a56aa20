"""The embedded image set: ten shapes, whose every other property is known.

    images, labels, factors = draw(2000, seed=0)

The class is the shape. Position, scale, rotation, colours, background texture and noise vary independently of it, so that
a linear classifier of the pixels does badly and a small ResNet does well. Pixels are made by correctly rounded operations
only (+ - * / sqrt min max; the sine of an angle is taken in double precision and then rounded), so that they do not depend
on the machine or on the number of threads.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from repsim import rng

SHAPES = ("disc", "ring", "crescent", "heart", "triangle", "square", "cross", "star", "hourglass", "chevron")
TEXTURES = ("stripes", "waves", "dashes", "zigzag")


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


def distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance (negative inside; a lower bound beyond corners) from an outline of about unit radius, y upwards."""
    match shape:
        case "disc":
            return _disc(x, y, 0.85)
        case "ring":
            return (_disc(x, y, 0.68)).abs() - 0.22
        case "crescent":
            return torch.maximum(_disc(x, y, 0.95), -_disc(x, y, 0.8, (0.5, 0.0)))
        case "heart":
            return _heart(x, y)
        case "triangle":
            return _sides(x, y, 3, 0.52).amax(0)
        case "square":
            return _box(x, y, 0.74, 0.74)
        case "cross":
            return torch.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))
        case "star":  # within at least four of a pentagram's five lines
            return _sides(x, -y, 5, 0.34).topk(2, dim=0).values[1]
        case "hourglass":
            return torch.maximum(y.abs() - 0.9, (x.abs() - y.abs() - 0.1) * math.sqrt(0.5))
        case "chevron":
            return torch.maximum(((y - x.abs() + 0.35) * math.sqrt(0.5)).abs() - 0.3, x.abs() - 0.85)
    raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {shape!r}")


def _wave(t: Tensor) -> Tensor:
    """A triangle wave of period 1 in [-1, 1]."""
    return (t - t.floor() - 0.5).abs() * 4 - 1


def _texture(name: str, u: Tensor, v: Tensor) -> Tensor:
    """One of TEXTURES in [-1, 1] at coordinates along (u) and across (v) its orientation; turned by 180 degrees, the same."""
    match name:
        case "stripes":
            return (3 * _wave(u * 2.5)).clamp(-1, 1)
        case "waves":
            return _wave(u * 1.2)
        case "dashes":
            return (3 * torch.minimum(_wave(u * 2.5), _wave(v * 1.2) + 0.3)).clamp(-1, 1)
        case "zigzag":
            return (3 * _wave(u * 2 + 0.35 * _wave(v * 1.5 + 0.25))).clamp(-1, 1)
    raise ValueError(f"texture: expected one of {', '.join(TEXTURES)}, got {name!r}")


def _colour(hue: Tensor) -> Tensor:
    """Hue (n, 1, 1) in [0, 1) -> RGB (n, 3, 1, 1), saturation 0.6, brightest channel 1."""
    thirds = torch.tensor([0.0, 4.0, 2.0])[:, None, None]
    pure = (((hue[:, None] * 6 + thirds) % 6 - 3).abs() - 1).clamp(0, 1)
    return 0.4 + 0.6 * pure


def draw_factors(n: int, generator: torch.Generator) -> pd.DataFrame:
    """What makes `n` images beside their shape, drawn independently and uniformly.

    Columns: x, y (centre, in half images, right and up), scale (radius in half images), rotation (degrees,
    anticlockwise), foreground_hue, background_hue (circular, period 1), texture (a name of TEXTURES), texture_angle
    (degrees, period 180), texture_phase (in half images), noise (standard deviation; intensities are 0 to 1).
    """
    u = torch.rand(n, 10, generator=generator, dtype=torch.float64).numpy()

    def between(i: int, low: float, high: float) -> np.ndarray:
        return low + (high - low) * u[:, i]

    return pd.DataFrame(
        {
            "x": between(0, -0.35, 0.35),
            "y": between(1, -0.35, 0.35),
            "scale": between(2, 0.45, 0.75),
            "rotation": between(3, -40, 40),
            "foreground_hue": u[:, 4],
            "background_hue": u[:, 5],
            "texture": np.array(TEXTURES)[(u[:, 6] * len(TEXTURES)).astype(int)],
            "texture_angle": between(7, 0, 180),
            "texture_phase": between(8, 0, 2),
            "noise": between(9, 0, 0.22),
        }
    )


def render(factors: pd.DataFrame, labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
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
        u = right * part["texture_angle_cos"] + up * part["texture_angle_sin"] + part["texture_phase"]
        v = right * part["texture_angle_sin"] - up * part["texture_angle_cos"] + part["texture_phase"]
        outline, texture = torch.empty(n, size, size), torch.empty(n, size, size)
        for label, shape in enumerate(SHAPES):
            i = (labels[start : start + n] == label).nonzero().squeeze(1)
            outline[i] = distance(shape, x[i], y[i])
        for kind, name in enumerate(TEXTURES):
            i = (kinds[start : start + n] == kind).nonzero().squeeze(1)
            texture[i] = _texture(name, u[i], v[i])
        # The share of a pixel that is covered, from the distance in pixels: anti-aliasing.
        cover = (0.5 - outline * part["scale"] * (size / 2)).clamp(0, 1)[:, None]
        ground = _colour(part["background_hue"]) * (0.48 * (1 + 0.65 * texture))[:, None]
        picture = ground + (_colour(part["foreground_hue"]) - ground) * cover
        draws = torch.rand(n, 2, 3, size, size, generator=generator)
        deviation = part["noise"][:, None] * math.sqrt(6)  # the difference of two uniform draws has a variance of 1/6
        picture = picture + (draws[:, 0] - draws[:, 1]) * deviation
        images[start : start + n] = (picture * 255).round().clamp(0, 255).byte()
    return images


def draw(n: int, *, seed: int = 0, size: int = 32, stream: str = "train") -> tuple[Tensor, Tensor, pd.DataFrame]:
    """`n` images uint8 (n, 3, size, size), labels int64 (n,) that index SHAPES, and their factors (see `draw_factors`).

    The same arguments give the same images on every machine, more images begin with the same ones, and `stream`
    ("train", "test", ...) names independent draws. The classes take turns.

    Raises:
        ValueError: size below 8.
    """
    if size < 8:
        raise ValueError(f"image_size: expected at least 8 pixels a side for shapes, got {size}")
    labels = torch.arange(n) % len(SHAPES)
    factors = draw_factors(n, rng.generator(seed, "shapes", stream, "factors"))
    return render(factors, labels, size, rng.generator(seed, "shapes", stream, "noise")), labels, factors
