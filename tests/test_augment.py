import colorsys
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import (
    ColorJitter,
    Compose,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
)
from torchvision.transforms.v2 import functional as TF

from repsim import augment, data, store

N = 4000


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=store.generator("images"))


@pytest.mark.parametrize("size", [(32, 32), (24, 48), (60, 20)])
def test_crops_are_distributed_as_torchvisions(size):
    ours = augment.crop_boxes(N, *size, (0.2, 1.0), (3 / 4, 4 / 3), store.generator("crop"))
    assert (ours[:, :2] >= 0).all() and (ours[:, 2] >= 1).all() and (ours[:, 3] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all() and (ours[:, 1] + ours[:, 3] <= size[1]).all()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.zeros(3, *size)
        theirs = torch.tensor([RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(N)])
    for statistic in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert ks_2samp(statistic(ours).numpy(), statistic(theirs.float()).numpy()).pvalue > 1e-3


def test_jitter_and_choices_are_distributed_as_torchvisions():
    factors = augment.jitter_factors(N, (0.4, 0.4, 0.4, 0.1), 1.0, store.generator("jitter"))
    jitter = ColorJitter(0.4, 0.4, 0.4, 0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ranges = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        theirs = [ColorJitter.get_params(*ranges)[1:] for _ in range(N)]
    for ours, expected in zip(factors, zip(*theirs)):
        assert ks_2samp(ours.numpy(), expected).pvalue > 1e-3
    partly = augment.jitter_factors(N, (0.4, 0.4, 0.4, 0.1), 0.8, store.generator("partly"))
    alone = (partly[0] == 1) & (partly[1] == 1) & (partly[2] == 1) & (partly[3] == 0)
    assert abs(alone.float().mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / N)
    assert abs(augment.chosen(N, 0.3, store.generator("c")).float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / N)


def test_colour_agrees_with_torchvision(images):
    x, n = images.float() / 255, len(images)
    b, c, s, h = augment.jitter_factors(n, (0.4, 0.4, 0.4, 0.5), 1.0, store.generator("agree"))
    ours = augment.colour(x, b, c, s, h)
    for i in range(n):
        y = TF.adjust_brightness(x[i], b[i].item())
        y = TF.adjust_saturation(TF.adjust_contrast(y, c[i].item()), s[i].item())
        y = TF.adjust_hue(y, h[i].item())
        assert torch.allclose(ours[i], y, atol=2e-5)


def test_grey_images_have_no_hue_to_shift():
    x = torch.rand(4, 1, 8, 8).expand(4, 3, 8, 8)
    one = torch.ones(4)
    assert torch.allclose(augment.colour(x, one, one, one, torch.full((4,), 0.3)), x, atol=1e-6)


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.floats(-0.5, 0.5))
def test_hue_turns_as_in_colorsys(pixel, turns):
    red, green, blue = (v / 255 for v in pixel)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    expected = torch.tensor(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    one = torch.ones(1)
    ours = augment.colour(torch.tensor(pixel).view(1, 3, 1, 1) / 255, one, one, one, torch.tensor([turns]))
    assert torch.allclose(ours.flatten(), expected, atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
@pytest.mark.parametrize("antialias", [False, True])
def test_crops_are_scaled_back_as_torchvision_does(size, mirrored, antialias):
    x = torch.rand(20, 3, *size, generator=store.generator("noise"))
    boxes = augment.crop_boxes(20, *size, (0.01, 1.0), (1 / 2, 2), store.generator("boxes"))
    ours = augment.crop(x, boxes, torch.full((20,), mirrored))
    for i, (top, left, height, width) in enumerate(boxes.int().tolist()):
        theirs = TF.resized_crop(x[i], top, left, height, width, list(size), antialias=antialias)
        assert torch.allclose(ours[i], theirs.flip(-1) if mirrored else theirs, atol=2e-5)


def test_whole_views_are_distributed_as_torchvisions():
    """Colour and detail of views, ours and those of a pipeline of torchvision's per-image transforms."""
    noise = torch.rand(1500, 3, 4, 4, generator=store.generator("smooth"))
    many = torch.nn.functional.interpolate(noise, (16, 16), mode="bicubic").clamp(0, 1).mul(255).byte()
    ours = augment.simclr(many, store.generator("whole")) * 0.25 + 0.5
    pipeline = Compose(
        [
            RandomResizedCrop(16, (0.2, 1.0)),
            RandomHorizontalFlip(),
            RandomApply([ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            RandomGrayscale(0.2),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([pipeline(x) for x in many.float() / 255])
    statistics = {
        "brightness": lambda x: x.mean((1, 2, 3)),
        "contrast": lambda x: x.std((1, 2, 3)),
        "saturation": lambda x: (x.amax(1) - x.amin(1)).mean((1, 2)),
        "red against green": lambda x: (x[:, 0] - x[:, 1]).mean((1, 2)),
        "detail": lambda x: x.diff(dim=-1).abs().mean((1, 2, 3)),
    }
    for name, statistic in statistics.items():
        assert ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 1e-3, name


def test_the_supervised_view_is_a_shifted_and_perhaps_mirrored_crop(images):
    views = augment.supervised(images, store.generator("s"))
    padded = data.as_input(torch.nn.functional.pad(images, (4,) * 4))
    found = set()
    for view, image in zip(views, padded):
        places = []
        for top in range(9):
            for left in range(9):
                crop = image[:, top : top + 32, left : left + 32]
                places += [(top, left, flip) for flip in (0, 1) if torch.equal(view, crop.flip(-1) if flip else crop)]
        assert len(places) == 1
        found.add(places[0])
    assert len(found) > 15 and len({f for _, _, f in found}) == 2


@pytest.mark.parametrize("name", ["supervised", "simclr"])
def test_each_image_has_its_own_draw_and_the_state_decides(name, images):
    view = augment.VIEWS[name]
    same = images[:1].expand(24, -1, -1, -1)
    before = same.clone()
    views = view(same, store.generator(1))
    assert torch.equal(same, before) and views.shape == same.shape and views.dtype == torch.float32
    distinct = {v.numpy().tobytes() for v in views}
    assert len(distinct) >= (20 if name != "supervised" else 15)
    assert torch.equal(views, view(same, store.generator(1)))
    assert not torch.equal(views, view(same, store.generator(2)))


def test_without_strength_a_view_is_the_image(images):
    still = {"scale": (1, 1), "jitter": (0, 0, 0, 0), "grayscale_p": 0}
    x = data.as_input(images)
    views = augment.simclr(images, store.generator(0), **still)
    flipped = (views - x).abs().amax((1, 2, 3)) > 1e-5  # through HSV
    assert 4 < flipped.sum() < 20 and torch.allclose(views[flipped], x[flipped].flip(-1), rtol=0, atol=1e-5)
    assert torch.equal(augment.VIEWS["none"](images, store.generator(0)), x)


@pytest.mark.parametrize("name", augment.VIEWS)
def test_some_rows_have_the_draws_that_they_have_among_all(name, images):
    whole = augment.VIEWS[name](images, store.generator(0))
    parts = [augment.VIEWS[name](images, store.generator(0), rows=slice(i, i + 8)) for i in (0, 8, 16)]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


@pytest.mark.parametrize("name", augment.VIEWS)
def test_views_of_grey_images_are_grey_and_drawn_alike(name, images):
    grey = images[:, :1]
    views = augment.VIEWS[name](grey, store.generator(0))
    repeated = augment.VIEWS[name](grey.expand(-1, 3, -1, -1), store.generator(0))
    assert views.shape == grey.shape
    assert torch.allclose(views.expand_as(repeated), repeated, atol=3e-3)  # GREY adds up to 0.9999


@pytest.mark.parametrize("name", augment.VIEWS)
def test_views_leave_the_images_alone_and_keep_their_shape(name, images):
    wide = images[..., :20, :]
    before = wide.clone()
    view = augment.VIEWS[name](wide, store.generator(0))
    assert torch.equal(wide, before) and view.shape == wide.shape and view.dtype == torch.float32
    assert view.isfinite().all() and view.min() >= -2 - 1e-5 and view.max() <= 2 + 1e-5
    assert augment.VIEWS[name](wide[:1], store.generator(0)).shape == (1, 3, 20, 32)


def test_a_share_of_the_views_is_grey(images):
    many = images.repeat(40, 1, 1, 1)
    views = augment.simclr(many, store.generator("grey"))
    grey = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-6
    assert abs(grey.float().mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / len(many))
    assert kstest(grey.nonzero().flatten().numpy() / len(many), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"images": torch.zeros(2, 3, 8, 8)}, TypeError, "uint8.*float32"),
        ({"images": torch.zeros(3, 8, 8, dtype=torch.uint8)}, ValueError, r"\(3, 8, 8\)|shape"),
        ({"images": [[1]]}, TypeError, "images: .*list"),
        ({"generator": 3}, TypeError, "generator: .*int"),
        ({"generator": None}, TypeError, "generator: .*NoneType.*repsim.store"),
        ({"scale": (0.0, 1.0)}, ValueError, "scale"),
        ({"scale": (0.5, 0.2)}, ValueError, "scale"),
        ({"scale": (0.5,)}, ValueError, "scale"),
        ({"jitter": (0.4, 0.4, 0.4)}, ValueError, "jitter"),
        ({"jitter": (2, 0, 0, 0)}, ValueError, "jitter"),
        ({"jitter": (0, 0, 0, 0.6)}, ValueError, "jitter"),
        ({"grayscale_p": -0.1}, ValueError, "grayscale_p"),
    ],
)
def test_unusable_arguments_are_named(options, error, message, images):
    arguments = {"images": images, "generator": store.generator(0)} | options
    with pytest.raises(error, match=message):
        augment.simclr(arguments.pop("images"), arguments.pop("generator"), **arguments)
