import subprocess
import sys

import pytest
import torch
from torchvision.models import resnet18, resnet50

from repsim import models


@pytest.mark.parametrize("architecture, blocks", [("resnet18", 8), ("resnet34", 16), ("resnet50", 16)])
def test_layers_of_the_study_in_order(architecture, blocks):
    model = models.build(architecture, width=4, head="projection", outputs=8)
    names = models.layer_names(model)
    assert names[0] == "stem" and names[-3:] == ["pool", "head.hidden", "head"]
    body = names[1:-3]
    assert len(body) == 2 * blocks
    assert [n for n in body if models.layer_kind(n) == "residual"] == body[0::2]
    assert [f"{n}.residual" for n in body[1::2]] == body[0::2]
    assert set(models.layer_paths(model).values()) <= {name for name, _ in model.named_modules()}


@pytest.mark.parametrize("architecture, reference", [("resnet18", resnet18), ("resnet50", resnet50)])
def test_width_64_with_the_imagenet_stem_is_torchvisions_network(architecture, reference):
    ours, theirs = models.build(architecture, stem="imagenet", outputs=1000), reference(weights=None)
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)  # a shortcut sums in another order
    torch.testing.assert_close(ours.double().eval()(x), theirs.double().eval()(x), rtol=1e-9, atol=1e-9)


def test_cifar_stem_keeps_the_resolution_and_width_scales_every_stage():
    model = models.build("resnet18", width=12)
    assert model.maxpool(model.relu(model.bn1(model.conv1(torch.zeros(1, 3, 32, 32))))).shape == (1, 12, 32, 32)
    assert [getattr(model, f"layer{i}")[-1].bn2.num_features for i in (1, 2, 3, 4)] == [12, 24, 48, 96]


def test_equal_seeds_share_the_backbone_whatever_the_head_and_the_global_generator():
    one = models.build(width=4, seed=3)
    torch.rand(5)
    state = torch.random.get_rng_state()
    two = models.build(width=4, seed=3, head="projection", outputs=16)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = models.build(width=4, seed=4)
    for name, value in one.state_dict().items():
        if not name.startswith("fc"):
            assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_layer_names_exist_for_resnets_only():
    with pytest.raises(TypeError, match="Linear.*module paths"):
        models.layer_names(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("size", [24, 32, 48, 64, 96, 224])
def test_a_training_step_survives_at_every_width_and_size(size):
    """In a process of its own: oneDNN's gradient of a strided 1x1 convolution with few channels corrupts memory, see
    `models._Shortcut`. The process is ended by the C library where it notices."""
    script = f"""
import torch
from repsim import models
for architecture in ("resnet18", "resnet50"):
    for width in (4, 8, 12, 16):
        model = models.build(architecture, width=width).to(memory_format=torch.channels_last)
        assert not [m for m in model.modules() if type(m) is torch.nn.Conv2d and m.kernel_size == (1, 1) and m.stride != (1, 1)]
        x = torch.randn(4 if {size} > 100 else 32, 3, {size}, {size}).contiguous(memory_format=torch.channels_last)
        model(x).square().sum().backward()
        if {size} > 100:
            break
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_shortcut_is_the_strided_convolution():
    ours, x = models.build(width=8).layer2[0].downsample[0], torch.randn(2, 8, 9, 9, dtype=torch.float64)
    plain = torch.nn.functional.conv2d(x, ours.double().weight, stride=2)
    assert ours(x).shape == plain.shape and torch.allclose(ours(x), plain, atol=1e-12)


@pytest.mark.parametrize(
    "options, names",
    [
        ({"architecture": "vgg"}, "architecture: .*'vgg'"),
        ({"width": 6}, "width.*got 6"),
        ({"stem": "large"}, "stem: .*'large'"),
        ({"head": "none"}, "head: .*'none'"),
        ({"outputs": 0}, "outputs"),
        ({"head": "projection", "hidden": 0}, "hidden"),
    ],
)
def test_unusable_arguments_are_named(options, names):
    with pytest.raises(ValueError, match=names):
        models.build(**options)
