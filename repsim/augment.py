"""Random views of whole batches, on the images' device: one draw per image, from an explicit generator.

A view is a function of images uint8 (n, c, h, w), c 3 or 1, and a generator, and gives network inputs float32 (n, c, h, w) as
`repsim.data.as_input` does; with `rows`, a slice, only these rows of the same. Draws follow torchvision's per-image transforms
RandomResizedCrop, RandomHorizontalFlip, ColorJitter (in the order brightness, contrast, saturation, hue, which torchvision
shuffles), RandomGrayscale, and RandomCrop. They are made on the generator's device: a CPU generator's are the same on all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from repsim.data import as_input

ALL = slice(None)
RATIO = (3 / 4, 4 / 3)  # of a crop, its width over its height
FLIP, JITTER = 0.5, 0.8  # probabilities


def simclr(
    images: Tensor,
    generator: Generator,
    *,
    rows: slice = ALL,
    scale: tuple[float, float] = (0.2, 1.0),
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    grayscale_p: float = 0.2,
) -> Tensor:
    """SimCLR's views for small images (Chen et al. 2020, appendix B.9): resized crop, flip, colour jitter, grayscale, no blur.

    `scale` is the range of the crop's fraction of the area, (1, 1): not cropped; `jitter` the strengths of brightness, contrast,
    saturation (factors in 1 -+ strength) and hue (a shift in -+ strength turns); `grayscale_p` the probability of a grey view.

    Raises TypeError for images that are not uint8 or no generator, ValueError for images that are not (n, c, h, w) or a range,
    strength or probability out of bounds.
    """
    _check(images, generator)
    if not 0 <= grayscale_p <= 1:
        raise ValueError(f"grayscale_p: expected a probability, got {grayscale_p}")
    if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        raise ValueError(f"scale: expected 0 < low <= high <= 1, got {scale}")
    if not (len(jitter) == 4 and all(0 <= s <= 1 for s in jitter[:3]) and 0 <= jitter[3] <= 0.5):
        raise ValueError(f"jitter: expected 4 strengths, three of 0 to 1 and hue 0 to 0.5, got {jitter}")
    n, _, height, width = images.shape
    draws = [crop_boxes(n, height, width, scale, RATIO, generator), chosen(n, FLIP, generator)]
    draws += [*jitter_factors(n, jitter, JITTER, generator), chosen(n, grayscale_p, generator)]
    boxes, mirrored, *factors, grey = (draw[rows].to(images.device) for draw in draws)
    x = images[rows].float().div_(255)
    x = mirror(x, mirrored) if tuple(scale) == (1, 1) else crop(x, boxes, mirrored)
    x = colour(x, *factors)
    return _blend_(x, rgb_to_grayscale(x), 1 - grey.float()).mul_(4).sub_(2)


def supervised(images: Tensor, generator: Generator, *, rows: slice = ALL) -> Tensor:
    """The usual views of supervised training on small images: a crop shifted by up to 4 pixels, over black, and a flip.

    Raises as `simclr` does.
    """
    _check(images, generator)
    n, _, height, width = images.shape
    shifts = torch.randint(0, 9, (n, 2), generator=generator, device=generator.device)
    mirrored = chosen(n, FLIP, generator)
    images, shifts, mirrored = (tensor[rows].to(images.device) for tensor in (images, shifts, mirrored))
    windows = F.pad(images, (4,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (n, c, top, left, h, w), not copied
    view = windows[torch.arange(len(images), device=images.device), :, shifts[:, 0], shifts[:, 1]]
    return as_input(mirror(view, mirrored))


VIEWS: Mapping[str, Callable[..., Tensor]] = {
    "none": lambda images, generator, rows=ALL: as_input(images[rows]),  # nothing is drawn
    "supervised": supervised,
    "simclr": simclr,
}


def chosen(n: int, probability: float, generator: Generator) -> Tensor:
    """(n,) bool, each true with this probability."""
    return torch.rand(n, generator=generator, device=generator.device) < probability


def crop_boxes(n: int, height: int, width: int, scale: tuple, ratio: tuple, generator: Generator) -> Tensor:
    """(n, 4) top, left, height, width in whole pixels: of ten candidates the first that fits, else the largest central one."""
    u = torch.rand(n, 10, 2, generator=generator, device=generator.device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[..., 0])
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** u[..., 1]  # uniform in its logarithm
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)  # of equal values the first
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    v = torch.rand(n, 2, generator=generator, device=generator.device)
    boxes = torch.stack([(v[:, 0] * (height - h + 1)).floor(), (v[:, 1] * (width - w + 1)).floor(), h, w], dim=1)
    h, w = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    central = boxes.new_tensor([(height - h) // 2, (width - w) // 2, h, w])
    return torch.where(fits.any(1, keepdim=True), boxes, central)


def jitter_factors(n: int, strengths: tuple, probability: float, generator: Generator) -> tuple[Tensor, ...]:
    """Brightness, contrast, saturation factors and hue shift, (n,) each; 1, 1, 1 and 0 with probability 1 - `probability`."""
    u = 2 * torch.rand(n, 4, generator=generator, device=generator.device) - 1
    u = u * torch.tensor(strengths, device=u.device) * chosen(n, probability, generator)[:, None]
    return 1 + u[:, 0], 1 + u[:, 1], 1 + u[:, 2], u[:, 3]


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Images (n, c, h, w), those where `mirrored` (n,) is true with left and right exchanged."""
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Square images (n, c, h, h), each turned anticlockwise by `turns` (n,) quarter turns, 0 to 3."""
    return torch.stack([x.rot90(k, (2, 3)) for k in range(4)])[turns, torch.arange(len(x), device=x.device)]


def crop(x: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Cut the boxes (n, 4: top, left, height, width) out of float images (n, c, h, w), mirror, and enlarge back, bilinearly."""
    n, _, height, width = x.shape

    def positions(start: Tensor, length: Tensor, size: int) -> Tensor:
        """(n, size): where each pixel of the enlarged crop lies along an axis of `size` pixels, -1 to 1 as in grid_sample."""
        centres = (torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / size
        pixel = (start + length * centres - 0.5).maximum(start).minimum(start + length - 1)  # never beyond the crop
        return (2 * pixel + 1) / size - 1

    top, left, h, w = boxes.to(x.dtype)[:, :, None].unbind(1)
    rows, columns = positions(top, h, height), positions(left, w, width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    grid = torch.stack([columns[:, None].expand(n, height, width), rows[:, :, None].expand(n, height, width)], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def colour(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Float images (n, c, h, w) in [0, 1] with their brightness, contrast, saturation (factors) and hue (turns) adjusted."""
    x = (x * brightness.view(-1, 1, 1, 1)).clamp_(0, 1)
    x = _blend_(x, rgb_to_grayscale(x).mean((2, 3), keepdim=True), contrast).clamp_(0, 1)
    if x.shape[1] == 1:
        return x
    return _turn_hue(_blend_(x, rgb_to_grayscale(x), saturation).clamp_(0, 1), hue.view(-1, 1, 1, 1))


def _blend_(x: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """weight x + (1 - weight) other, in place: several times faster than torch.lerp or torch.where with a weight an image."""
    weight = weight.view(-1, 1, 1, 1)
    return x.mul_(weight).add_(other * (1 - weight))


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in HSV; value and chroma stay.

    The hue, in sixths of a turn from red, is +-(1 + (green + blue - red - low) / chroma), signed as green - blue. A channel
    is at its highest within one sixth of its own hue (red 0, green 2, blue -2) and at its lowest from two sixths on.
    """
    red, green, blue = x.split(1, dim=1)
    low = x.amin(1, keepdim=True)
    chroma = x.amax(1, keepdim=True) - low
    hue = torch.copysign((green + blue - red - low) / chroma.clamp(min=1e-12) + 1, green - blue) + 6 * turns
    away = hue - x.new_tensor([0.0, 2.0, -2.0]).view(1, 3, 1, 1)
    away -= (away / 6).round_().mul_(6)
    return away.abs_().neg_().add_(2).clamp_(0, 1).mul_(chroma).add_(low)


def _check(images: Tensor, generator: Generator) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a Tensor, got {type(images).__name__}; see repsim.data.load")
    if not isinstance(generator, Generator):
        raise TypeError(f"generator: expected a Generator, got {type(generator).__name__}; see repsim.store.generator")
    as_input(images[:0] if images.ndim else images)  # refuses other types and shapes
