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
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


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


@pytest.mark.parametrize(
    "options, names",
    [
        ({"architecture": "vgg"}, "architecture: .*'vgg'"),
        ({"width": 6}, "width: .*6"),
        ({"stem": "large"}, "stem: .*'large'"),
        ({"head": "none"}, "head: .*'none'"),
        ({"outputs": 0}, "outputs"),
        ({"head": "projection", "hidden": 0}, "hidden"),
    ],
)
def test_unusable_arguments_are_named(options, names):
    with pytest.raises(ValueError, match=names):
        models.build(**options)


def test_layer_names_exist_for_resnets_only():
    with pytest.raises(TypeError, match="Linear.*module paths"):
        models.layer_names(torch.nn.Linear(2, 2))
