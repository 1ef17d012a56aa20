"""The study's networks: torchvision's ResNets with a CIFAR stem, any base width, and a classifier or projection head.

Layer names (see `layer_paths`), in the order of the forward pass:

    stem                      after the first convolution, batch norm and ReLU
    layer1.0.residual         a block's last batch norm, BEFORE the shortcut is added
    layer1.0                  the block's output, AFTER addition and ReLU (post-residual)
    ...
    pool                      after global average pooling
    head.hidden               the projection head's hidden layer, after its ReLU (projection head only)
    head                      the classifier's logits, or the projection head's output
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

ARCHITECTURES: Mapping[str, tuple[type[nn.Module], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
STAGES = ("layer1", "layer2", "layer3", "layer4")
STEMS = {"cifar": (3, 1, 1), "imagenet": (7, 2, 3)}  # kernel size, stride and padding of the first convolution
HEADS = ("linear", "projection")
WIDTHS = range(4, 4097, 4)


class _Shortcut(nn.Conv2d):
    """A 1x1 convolution with a stride, as one without of every stride-th pixel: the same function of the same weights.

    oneDNN's gradient of a strided 1x1 convolution with few input channels writes past its memory (oneDNN issue 6035): fewer
    than 8 on CPUs with AVX2 alone, 8 at 48 pixels a side with AVX-512. The process ends, or nobody notices.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


class ResNet(TorchvisionResNet):
    """torchvision's ResNet whose first stage has `width` channels instead of 64 (each stage doubles it); `build` gives the head."""

    def __init__(self, block: type[nn.Module], layers: tuple[int, ...], width: int, stem: str):
        self.width, self.features = width, 8 * width * block.expansion
        super().__init__(block, list(layers))
        self.conv1 = nn.Conv2d(3, width, *STEMS[stem], bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)
        if stem == "cifar":  # an ImageNet stem would leave 8x8 of a 32x32 image
            self.maxpool = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1):
                module.__class__ = _Shortcut

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:  # torchvision fixes the stem's width at 64 just before it makes the first stage
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, blocks, stride, dilate)


def projection_head(features: int, hidden: int, outputs: int) -> nn.Sequential:
    """SimCLR's two-layer projection head (Chen et al. 2020): linear, batch norm, ReLU, linear."""
    first, last = nn.Linear(features, hidden, bias=False), nn.Linear(hidden, outputs)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), last)


def build(
    architecture: str = "resnet18",
    *,
    width: int = 64,
    stem: str = "cifar",
    head: str = "linear",
    outputs: int = 10,
    hidden: int | None = None,
    seed: int = 0,
) -> ResNet:
    """A freshly initialised network; the same arguments give the same weights, whatever was drawn before.

    `width` is the channels of the first stage, a multiple of 4; torchvision's own networks have 64. The stem is "cifar" (3x3,
    stride 1, no pooling) or "imagenet" (7x7, stride 2, max pooling), the head "linear" (a classifier of `outputs` classes) or
    "projection" (onto `outputs` dimensions, with as many `hidden` units as the backbone has features if None). Backbones of
    one seed are equal whatever their heads. Raises ValueError for another architecture, stem, head, or number.
    """
    for name, value, known in (
        ("architecture", architecture, ARCHITECTURES),
        ("stem", stem, STEMS),
        ("head", head, HEADS),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    if width not in WIDTHS or min(outputs, 1 if hidden is None else hidden) < 1:
        numbers = f"{width}, {outputs} and {hidden}"
        raise ValueError(f"width, outputs, hidden: expected a multiple of 4 and positive numbers, got {numbers}")
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator, which stays as it is
        torch.manual_seed(seed)
        model = ResNet(*ARCHITECTURES[architecture], width, stem)
        n, linear = model.features, head == "linear"
        model.fc = nn.Linear(n, outputs) if linear else projection_head(n, hidden or n, outputs)
    return model


def layer_paths(model: nn.Module) -> dict[str, str]:
    """The layer names of a torchvision ResNet (else TypeError) -> the paths of the modules whose outputs they are, in order."""
    if not isinstance(model, TorchvisionResNet):
        raise TypeError(
            f"model: the study's layer names exist for torchvision ResNets only, got {type(model).__name__}; "
            'pass module paths instead, such as layers=["encoder.layers.0", "heads"]'
        )
    paths = {"stem": "relu"}
    for name, block in ((f"{stage}.{i}", block) for stage in STAGES for i, block in enumerate(getattr(model, stage))):
        paths |= {f"{name}.residual": f"{name}.{'bn3' if isinstance(block, Bottleneck) else 'bn2'}", name: name}
    head = {"head.hidden": "fc.2", "head": "fc.3"} if isinstance(model.fc, nn.Sequential) else {"head": "fc"}
    return paths | {"pool": "avgpool"} | ({} if isinstance(model.fc, nn.Identity) else head)


def layer_names(model: nn.Module) -> list[str]:
    """The layer names of a torchvision ResNet (else TypeError), in the order of the forward pass."""
    return list(layer_paths(model))


def layer_kind(name: str) -> str:
    """ "residual", "post-residual", "stem", "pool" or "head", from a layer's name."""
    blocks = "residual" if name.endswith(".residual") else "post-residual"
    return blocks if name.startswith("layer") else stage(name)


def stage(name: str) -> str:
    """The stage that a layer belongs to: "stem", "layer1" ... "layer4", "pool" or "head"."""
    return name.split(".")[0]


def tail(model: ResNet, layer: str) -> nn.Sequential:
    """What follows a post-residual layer, head included: its output (n, c, h, w) -> the network's, (n, outputs)."""
    blocks = [name for name in layer_names(model) if layer_kind(name) == "post-residual"]
    if layer not in blocks:
        raise ValueError(f"layer: expected a post-residual layer, such as {blocks[0]}, got {layer!r}")
    behind = map(model.get_submodule, blocks[blocks.index(layer) + 1 :])
    return nn.Sequential(*behind, model.avgpool, nn.Flatten(1), model.fc)
