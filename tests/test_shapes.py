"""Embedded images: drawn as their factors say, the same bits on every machine."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.stats import chi2_contingency
from sklearn.linear_model import LogisticRegression

from repsim import shapes
from repsim.data import ImageSet, as_input, fingerprint, load


def test_shapes_are_deterministic_and_their_streams_independent():
    a = load("shapes", train_images=100, test_images=50)
    b = load("shapes", train_images=100, test_images=50)
    assert [len(p) for p in (a.train, a.validation, a.test)] == [100, 10, 50]
    assert a.train.images.shape == (100, 3, 32, 32) and a.train.classes == shapes.SHAPES
    for part in ("train", "validation", "test"):
        assert fingerprint(getattr(a, part)) == fingerprint(getattr(b, part))
        pd.testing.assert_frame_equal(getattr(a, part).factors, getattr(b, part).factors)
    train, others = (
        {image.numpy().tobytes() for p in parts for image in p.images} for parts in ([a.train], [a.test, a.validation])
    )
    assert not train & others
    assert fingerprint(load("shapes", train_images=100, seed=1).train) != fingerprint(a.train)
    assert load("shapes", train_images=20, image_size=48).test.images.shape[2:] == (48, 48)
    assert a.test.labels.bincount().tolist() == [5] * 10


@pytest.mark.parametrize(
    "options, bits",
    [({}, "d449c2a31ed243e8"), ({"context": 0.8, "saturation": 0.25, "size": 24}, "be06c8231e16ee76")],
)
def test_shapes_have_the_bits_they_had(options, bits):
    """The pixels of a seed, made on another day, by another number of threads and on another machine."""
    pixels, labels, factors = shapes.draw(1050, seed=3, **options)
    assert fingerprint(ImageSet(pixels, labels, shapes.SHAPES)) == bits
    fewer, _, fewer_factors = shapes.draw(13, seed=3, **options)
    assert fewer.equal(pixels[:13])
    pd.testing.assert_frame_equal(fewer_factors, factors[:13])


def outline(shape):
    """The area of a shape and the points (400, 400) inside it, y upwards, from the signed distance alone."""
    size = 400
    grid = (torch.arange(size, dtype=torch.float32) + 0.5) * (2.4 / size) - 1.2
    inside = (shapes.OUTLINES[shape](grid[None, :], grid[:, None]) < 0).double()
    area = inside.sum().item() * (2.4 / size) ** 2
    return area, inside


POLYGONS = {  # corners by plane geometry, independent of the half planes that `distance` uses
    "triangle": [(1.04 * np.cos(a), 1.04 * np.sin(a)) for a in np.radians([90, 210, 330])],
    "square": [(-0.74, -0.74), (0.74, -0.74), (0.74, 0.74), (-0.74, 0.74)],
    "star": [
        (r * np.cos(a), r * np.sin(a))
        for k in range(5)
        for r, a in (
            (0.34 / np.cos(np.radians(72)), np.radians(90 + 72 * k)),
            (0.34 / np.cos(np.radians(36)), np.radians(126 + 72 * k)),
        )
    ],
    "hourglass": [(0.1, 0), (1.0, 0.9), (-1.0, 0.9), (-0.1, 0), (-1.0, -0.9), (1.0, -0.9)],
}


@pytest.mark.parametrize("shape", POLYGONS)
def test_outlines_are_the_polygons_that_pillow_fills(shape):
    _, inside = outline(shape)
    canvas = Image.new("1", (400, 400))
    ImageDraw.Draw(canvas).polygon([((x + 1.2) / 2.4 * 400, (y + 1.2) / 2.4 * 400) for x, y in POLYGONS[shape]], fill=1)
    expected = torch.from_numpy(np.array(canvas))
    overlap = (inside.bool() & expected).sum() / (inside.bool() | expected).sum()
    assert overlap > 0.97


def test_round_outlines_have_their_areas():
    assert outline("disc")[0] == pytest.approx(np.pi * 0.85**2, rel=0.01)
    assert outline("ring")[0] == pytest.approx(np.pi * (0.9**2 - 0.46**2), rel=0.01)
    assert outline("cross")[0] == pytest.approx(2 * 1.9 * 0.6 - 0.6**2, rel=0.01)


def factors_of(n, **constant):
    """`n` times the same factors, but for these."""
    one = shapes.draw_factors(torch.zeros(1, dtype=torch.int64), torch.Generator().manual_seed(0))
    return pd.concat([one] * n, ignore_index=True).assign(**constant)


def cover(shape, size=64, **placed):
    """The fraction of each pixel that a shape covers, recovered from two renderings with different foregrounds."""
    factors = factors_of(2, noise=0.0, background_hue=0.1, foreground_hue=[0.0, 0.5], **placed)
    labels = torch.full((2,), shapes.SHAPES.index(shape))
    red, cyan = shapes.render(factors, labels, size, torch.Generator()).double()
    return (red - cyan)[0] / (0.6 * 255)  # hue 0 and 0.5 have red 1 and 0.4


@pytest.mark.parametrize("x, y, scale", [(0.0, 0.0, 0.5), (0.3, -0.2, 0.45), (-0.35, 0.1, 0.6)])
def test_a_disc_lies_where_its_factors_say(x, y, scale):
    c = cover("disc", x=x, y=y, scale=scale)
    grid = (torch.arange(64, dtype=torch.float64) + 0.5) / 32 - 1
    area = c.sum().item() / 32**2
    assert area == pytest.approx(np.pi * (0.85 * scale) ** 2, rel=0.01)
    assert (c.sum(0) @ grid / c.sum()).item() == pytest.approx(x, abs=0.01)
    assert (c.sum(1) @ grid / c.sum()).item() == pytest.approx(-y, abs=0.01), "y points up"


def test_rotation_is_anticlockwise_in_degrees():
    tip = {angle: cover("chevron", size=65, x=0.0, y=0.0, scale=0.7, rotation=angle) for angle in (0.0, 40.0)}
    turned = torch.from_numpy(np.array(Image.fromarray(tip[0.0].float().numpy()).rotate(40, Image.Resampling.BILINEAR)))
    assert (turned - tip[40.0]).abs().mean() < 0.01
    back = torch.from_numpy(np.array(Image.fromarray(tip[0.0].float().numpy()).rotate(-40, Image.Resampling.BILINEAR)))
    assert (back - tip[40.0]).abs().mean() > 0.05


def test_noise_has_the_deviation_that_its_factor_says():
    factors = factors_of(2, noise=[0.0, 0.05], texture="waves", texture_frequency=1.0)
    labels = torch.zeros(2, dtype=torch.int64)
    clean, noisy = shapes.render(factors, labels, 128, torch.Generator().manual_seed(1)).double()
    middle = (clean > 60) & (clean < 195)  # elsewhere it is clipped
    assert ((noisy - clean)[middle] / 255).std().item() == pytest.approx(0.05, rel=0.03)


def backgrounds(size=64, **factors):
    """Renderings whose shape is too small to be seen."""
    factors = factors_of(
        len(next(iter(factors.values()))), **{"noise": 0.0, "scale": 0.001, "texture_phase": 0.0} | factors
    )
    return shapes.render(factors, torch.zeros(len(factors), dtype=torch.int64), size, torch.Generator()).double()


@pytest.mark.parametrize("texture", shapes.TEXTURES)
def test_textures_have_orientation_of_period_180_degrees(texture):
    a, half, quarter = backgrounds(texture=[texture] * 3, texture_angle=[20.0, 200.0, 110.0], texture_frequency=1.0)
    assert (a - half).abs().mean() < 2 < 10 < (a - quarter).abs().mean()


def test_the_frequency_of_a_texture_is_its_number_of_periods():
    images = backgrounds(texture=["waves"] * 2, texture_angle=0.0, texture_frequency=[1.25, 2.5])
    row = images.mean((1, 2))  # (2, 64), along the orientation
    strongest = torch.fft.rfft(row - row.mean(1, keepdim=True)).abs().argmax(1)
    assert strongest.tolist() == [3, 6], "1.2 periods a half image at frequency 1"


def test_saturation_is_that_of_the_colours():
    factors = factors_of(20, noise=0.0, foreground_hue=np.linspace(0, 1, 20), background_hue=np.linspace(0.3, 1, 20))
    labels = torch.zeros(20, dtype=torch.int64)
    for saturation in (0.0, 0.25, 1.0):
        images = shapes.render(factors, labels, 32, torch.Generator(), saturation).double()
        high, low = images.amax(1), images.amin(1)
        assert (high - low).div(high.clamp(min=1)).max().item() == pytest.approx(0.6 * saturation, abs=0.02)


def test_factors_are_independent_of_class_and_of_one_another():
    _, labels, factors = shapes.draw(5000, seed=0, size=8)
    assert factors["texture"].value_counts().min() > 1100
    numeric = factors.drop(columns="texture").assign(
        label=labels.numpy(), kind=factors["texture"].map(shapes.TEXTURES.index)
    )
    correlation = numeric.corr().to_numpy() - np.eye(numeric.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(5000)


def preferred(labels, factors):
    """Whether each image has the background that its class prefers, from its factors alone."""
    texture, frequency = (np.array(values) for values in zip(*(shapes.BACKGROUNDS[label] for label in labels)))
    return ((factors["texture"] == texture) & ((factors["texture_frequency"] / frequency - 1).abs() <= 0.2)).to_numpy()


@pytest.mark.parametrize("context", [0.0, 0.4, 0.8, 1.0])
def test_context_is_the_fraction_of_images_whose_background_goes_with_their_class(context):
    _, labels, factors = shapes.draw(5000, context=context, size=8)
    expected = context + (1 - context) / 12  # one of twelve by chance
    assert abs(preferred(labels, factors).mean() - expected) <= 4 * np.sqrt(expected * (1 - expected) / 5000)
    kinds = factors["texture"] + pd.cut(factors["texture_frequency"], [0, 0.8, 1.4, 3]).astype(str)
    table = pd.crosstab(kinds, labels.numpy())
    assert table.shape == (12 if context < 1 else 10, 10)
    if context == 0:
        assert chi2_contingency(table).pvalue > 1e-3


def test_more_context_changes_the_backgrounds_of_some_images_and_nothing_else():
    draws = {context: shapes.draw(1000, seed=2, size=12, context=context) for context in (0.0, 0.4, 0.8)}
    labels, texture = draws[0.0][1], ["texture", "texture_frequency"]
    for less, more in ((0.0, 0.4), (0.4, 0.8)):
        (a, _, before), (b, _, after) = draws[less], draws[more]
        pd.testing.assert_frame_equal(before.drop(columns=texture), after.drop(columns=texture))
        changed = np.array((before[texture] != after[texture]).any(axis=1))
        assert 0.2 < changed.mean() < 0.45 and preferred(labels, after)[changed].all()
        assert not preferred(labels, before)[changed].any()
        assert a[~changed].equal(b[~changed]) and (a[changed] != b[changed]).flatten(1).any(1).all()


def test_a_linear_classifier_of_the_pixels_does_badly_but_not_by_chance():
    splits = load("shapes", train_images=2000, test_images=1000)
    x, y = (as_input(p.images).flatten(1).numpy() for p in (splits.train, splits.test))
    accuracy = LogisticRegression(C=1e-4, max_iter=50).fit(x, splits.train.labels).score(y, splits.test.labels)
    assert 0.15 < accuracy < 0.35
