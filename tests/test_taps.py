"""Taps: the right tensor, each once, and the network as it was."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from repsim.models import build, layer_names, layer_paths
from repsim.taps import network_input, pooled, resolve, tapped, tune_allocator


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit():
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )


class Twice(nn.Module):
    """Calls one module twice, one never, and keeps a buffer that counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.linear, self.unused, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x):
        self.passes += 1
        self.average = 0.9 * self.average + x.mean(0)
        return self.drop(self.linear(self.linear(x).relu()))


def collect(model, layers, x):
    out = {}
    with torch.no_grad(), tapped(model, resolve(model, layers), lambda name, value: out.update({name: value.clone()})):
        model(x)
    return out


def reference(model, x):
    """The study's layers of a ResNet by a forward pass written out, in float64, with nothing in place."""
    model = copy.deepcopy(model).double().eval()
    out, x = {}, model.bn1(model.conv1(x.double())).clamp(min=0)
    out["stem"] = x
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(model, stage)):
            convs = [
                (getattr(block, f"conv{k}"), getattr(block, f"bn{k}")) for k in (1, 2, 3) if hasattr(block, f"conv{k}")
            ]
            y = x
            for k, (conv, norm) in enumerate(convs):
                y = norm(conv(y if k == 0 else y.clamp(min=0)))
            out[f"{stage}.{index}.residual"] = y
            x = (y + (x if block.downsample is None else block.downsample(x))).clamp(min=0)
            out[f"{stage}.{index}"] = x
    out["pool"] = x.mean((2, 3), keepdim=True)
    out["head"] = model.fc(out["pool"].flatten(1))
    return out


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_layers_of_a_resnet_are_those_before_anything_in_place(architecture, memory):
    model = build(architecture, width=4).to(memory_format=memory)
    x = noise(4, 3, 32, 32).to(memory_format=memory)
    expected, got = reference(model, x), collect(model, None, x)
    assert list(got) == list(expected) == layer_names(model)
    for name, value in expected.items():
        torch.testing.assert_close(got[name].double(), value, rtol=1e-4, atol=1e-4, msg=name)
    # what a kept reference would hold instead is something else: the test can fail
    assert (expected["layer1.0.residual"] - expected["layer1.0"]).abs().max() > 0.1


def test_parent_child_and_several_names_of_one_module():
    model = build(width=4)
    got = collect(model, {"block": "layer1.0", "inside": "layer1.0.bn2", "again": "layer1.0"}, noise(4, 3, 16, 16))
    assert list(got) == ["inside", "block", "again"]
    assert torch.equal(got["block"], got["again"]) and not torch.equal(got["block"], got["inside"])


def test_any_module_by_its_paths():
    model, x = vit().eval(), noise(5, 3, 32, 32)
    got = collect(model, ["conv_proj", "encoder.layers.encoder_layer_0.self_attention", "encoder.ln", "heads"], x)
    shapes = [tuple(value.shape) for value in got.values()]
    assert shapes == [(5, 32, 4, 4), (5, 17, 32), (5, 17, 32), (5, 10)]
    torch.testing.assert_close(got["heads"], model(x))


def test_calls_of_one_module_are_told_apart_or_refused():
    model, x = Twice().eval(), noise(4, 8)
    got = collect(model, ["linear@1", "linear@2"], x)
    torch.testing.assert_close(got["linear@1"], model.linear(x))
    torch.testing.assert_close(got["linear@2"], model.linear(model.linear(x).relu()))
    with pytest.raises(ValueError, match="more than once.*PATH@2 names the second"):
        collect(model, ["linear"], x)
    with pytest.raises(ValueError, match="never called"):
        collect(model, ["unused"], x)
    with pytest.raises(ValueError, match="only 2 times called"):
        collect(model, ["linear@3"], x)
    text = nn.Module()
    text.forward = lambda x: "no tensor"
    with pytest.raises(TypeError, match="'0' to give a tensor, got str"):
        collect(nn.Sequential(text), ["0"], x)
    with pytest.raises(ValueError, match="'layer1.0.relu'.*more than once"):
        collect(build(width=4), ["layer1.0.relu"], noise(2, 3, 16, 16))


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    model = Twice().train()
    model.drop.eval()
    model.linear.weight.requires_grad_(False)
    before, buffers = copy.deepcopy(model.state_dict()), dict(model.named_buffers())

    def reduce(name, value):
        assert not any(module.training for module in model.modules())
        if fails:
            raise RuntimeError("inside the hook")

    with pytest.raises(RuntimeError, match="inside") if fails else torch.no_grad():
        with tapped(model, {"first": "linear@1"}, reduce):
            model(noise(4, 8))
    assert model.training and model.linear.training and not model.drop.training
    assert not model.linear.weight.requires_grad and model.linear.bias.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(value is buffers[key] for key, value in model.named_buffers())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_resolve():
    model = build(width=4)
    assert resolve(model) == layer_paths(model)
    assert resolve(model, ["pool", "layer1.0.residual", "layer1.0.conv1"]) == {
        "pool": "avgpool", "layer1.0.residual": "layer1.0.bn2", "layer1.0.conv1": "layer1.0.conv1",
    }  # fmt: skip
    assert resolve(vit(), {"last": "heads"}) == {"last": "heads"}
    with pytest.raises(TypeError, match="module paths"):
        resolve(vit())
    assert resolve(model, "pool") == {"pool": "avgpool"} and resolve(model, {"mine": "stem"}) == {"mine": "relu"}


@pytest.mark.parametrize(
    "layers, error, match",
    [
        (["layer1.0.residul"], ValueError, "did you mean.*layer1.0.residual"),
        (["layer9"], ValueError, "layer9.*did you mean"),
        ({"mine": "nowhere"}, ValueError, "'nowhere' for 'mine'"),
        (["pool@0"], ValueError, "pool@0"),
        (["pool@x"], ValueError, "pool@x"),
        (["pool", "stem", "pool"], ValueError, "pool more than once"),
        ([], ValueError, "got none"),
    ],
)
def test_unusable_layers(layers, error, match):
    with pytest.raises(error, match=match):
        resolve(build(width=4), layers)


def test_pooled_features():
    model, x = build(width=4), noise(10, 3, 16, 16)
    got, full = pooled(model, x, batch_size=4), collect(model, None, x)
    for name, value in full.items():
        expected = value.mean((2, 3)) if value.ndim == 4 else value
        torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-5)
    tokens = pooled(vit(), noise(3, 3, 32, 32), ["encoder.ln"], batch_size=2)["encoder.ln"]
    torch.testing.assert_close(tokens, collect(vit(), ["encoder.ln"], noise(3, 3, 32, 32))["encoder.ln"].mean(1))
    torch.testing.assert_close(pooled(model, x.numpy(), ["pool"])["pool"], got["pool"])
    for images, settings in ((x[:0], {}), (x, {"batch_size": 0})):
        with pytest.raises(ValueError, match="expected"):
            pooled(model, images, **settings)


def test_network_input():
    model = build(width=4)
    grey = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    torch.testing.assert_close(network_input(grey, model), torch.full((2, 3, 4, 4), 2.0))
    assert network_input(grey, model.double()).dtype == torch.float64
    assert network_input(grey, model, lambda x: x.double() / 255).max() == 1
    with pytest.raises(TypeError, match="int64"):
        network_input(grey.long(), model)
    with pytest.raises(ValueError, match="of shape"):
        network_input(grey[0], model)


def test_the_allocator_has_a_switch(monkeypatch):
    monkeypatch.setenv("REPSIM_MALLOC", "0")
    assert tune_allocator.__wrapped__() is False
    monkeypatch.delenv("REPSIM_MALLOC")
    monkeypatch.setattr("sys.platform", "darwin")
    assert tune_allocator.__wrapped__() is False
