"""CKA: against a float64 reference by another formula, where others go wrong, and at every door."""

import contextlib
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from test_taps import collect, noise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from repsim.cka import HsicSums, cka, compare, product
from repsim.comparison import Comparison, jackknife
from repsim.models import build, layer_names


def song(k, l):
    """HSIC_1 as Song et al. 2012 print it, in float64."""
    n = len(k)
    k, l = k.double().clone().fill_diagonal_(0), l.double().clone().fill_diagonal_(0)
    one = torch.ones(n, dtype=torch.float64)
    trace = (k @ l).trace() + one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    return float(trace / (n * (n - 3)))


def hsic0(k, l):
    n = len(k)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    return float((k.double() @ h @ l.double() @ h).trace() / (n - 1) ** 2)


def gram(x):
    x = x.double().flatten(1)
    x = x - x.mean(0)
    return x @ x.T


def reference(xs, ys, hsic=song):
    """Minibatch CKA of two lists of batches of features, the batches weighted by their images."""

    def mean(a, b):
        return sum(len(x) * hsic(gram(x), gram(y)) for x, y in zip(a, b))

    return mean(xs, ys) / (mean(xs, xs) * mean(ys, ys)) ** 0.5


class Layers(nn.Module):
    """A module whose layer k is any given function of the images."""

    def __init__(self, *functions):
        super().__init__()
        for k, function in enumerate(functions):
            layer = nn.Module()
            layer.forward = function
            self.add_module(f"l{k}", layer)

    def forward(self, x):
        return [layer(x) for layer in self.children()][-1]


def quiet(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compare(*arguments, **options)


# ---- one pair ----------------------------------------------------------------------------------------------------------


def test_check_values():
    r = np.random.RandomState(1337)
    x = r.randn(100, 10)
    y = torch.from_numpy(r.randn(100, 10) + x)
    x = torch.from_numpy(x)
    assert cka(x, y, estimator="biased") == pytest.approx(0.55761, abs=5e-6)
    assert cka(x, y) == pytest.approx(0.51346, abs=5e-6)


@pytest.mark.parametrize("estimator, hsic", [("unbiased", song), ("biased", hsic0)])
@pytest.mark.parametrize("offset", [0, 3, 100, 1000])
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1, 1e4, 1e20])
def test_float32_features_against_the_reference(estimator, hsic, offset, scale):
    x = noise(60, 40) + offset
    y = (x + noise(60, 40, seed=1)).reshape(60, 8, 5)
    expected = reference([x], [y], hsic)
    assert cka(x * scale, y, estimator=estimator) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 40), st.integers(1, 60), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_invariances(seed, n, p, scale, offset):
    x, y = noise(n, p, seed=seed).double(), noise(n, 7, seed=seed + 1).double()
    rotation = torch.linalg.qr(noise(p, p, seed=seed + 2).double()).Q
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for options in ({}, {"estimator": "biased"}):
        value = cka(x, y, **options)
        assert cka(scale * x @ rotation + offset, y, **options) == pytest.approx(value, abs=1e-8)
        assert cka(x[order], y[order], **options) == pytest.approx(value, abs=1e-8)
        assert cka(y, x, **options) == pytest.approx(value, abs=1e-12)
        assert cka(x, x, **options) == pytest.approx(1, abs=1e-12)
        assert abs(value) <= 1 + 1e-12


def test_a_constant_representation_is_undefined():
    for constant in (torch.zeros(20, 3), torch.full((20, 3), 0.1), torch.full((20, 3), 0.1, dtype=torch.float64)):
        with pytest.warns(UserWarning, match="undefined"):
            assert np.isnan(cka(constant, noise(20, 5)))
        with pytest.warns(UserWarning, match="undefined"):
            compare(features={"f": constant, "g": noise(20, 5)}, estimators=("rbf",))


@pytest.mark.parametrize(
    "x, y, options, error, match",
    [
        (["a"] * 9, noise(9, 2), {}, TypeError, "x: expected numbers"),
        (noise(9, 2), noise(8, 2), {}, ValueError, r"same images, got \(9, 2\) and \(8, 2\)"),
        (noise(3, 2), noise(3, 2), {}, ValueError, "n >= 4 images, got \\(3, 2\\)"),
        (noise(9), noise(9), {}, ValueError, r"x, y: expected features \(n, p\).*got \(9,\) and \(9,\); x\[:, None\]"),
        (noise(9, 2), noise(9, 2) / 0, {}, ValueError, "y: expected finite"),
        (noise(9, 2), noise(9, 2), {"estimator": "exact"}, ValueError, "exact"),
    ],
)
def test_unusable_features(x, y, options, error, match):
    with pytest.raises(error, match=match):
        cka(x, y, **options)


# ---- everything at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator, hsic", [("unbiased", song), ("biased", hsic0)])
def test_all_layers_of_two_resnets_against_the_reference(estimator, hsic):
    nets = {"a": build(width=4), "b": build(width=4, seed=1).to(memory_format=torch.channels_last)}
    x, y = noise(50, 3, 16, 16), torch.arange(50) % 3
    got = quiet(nets, x, labels=y, pixels=True, estimators=(estimator,), batch_size=20)
    layers = {name: collect(net, None, x) for name, net in nets.items()}
    single = {"labels": nn.functional.one_hot(y).double(), "pixels": x}
    assert got.streams == ("a", "b", "labels", "pixels") and got.layers("a") == layer_names(nets["a"])

    def pair(p, q):
        return reference(p.tensor_split(3), q.tensor_split(3), hsic)

    matrix = got.matrix("a", "b", estimator)
    assert list(matrix.index) == list(matrix.columns) == layer_names(nets["a"])
    for la, lb in zip(
        ("stem", "layer1.0.residual", "layer4.1", "pool"), ("stem", "layer1.0", "layer2.0.residual", "head")
    ):
        assert matrix.loc[la, lb] == pytest.approx(pair(layers["a"][la], layers["b"][lb]), abs=1e-5)
    for name, value in single.items():
        curve = got.curve("b", name, estimator).set_index("layer_a")["cka"]
        assert curve["layer3.0.residual"] == pytest.approx(pair(layers["b"]["layer3.0.residual"], value), abs=1e-5)
    assert got.matrix("labels", "pixels", estimator).iloc[0, 0] == pytest.approx(pair(*single.values()), abs=1e-5)
    own = got.matrix("a", estimator=estimator)
    assert np.allclose(np.diag(own), 1, atol=1e-7) and np.allclose(own, own.T, atol=1e-12)


def test_one_batch_is_the_full_sample():
    net, x, f = build(width=4), noise(40, 3, 16, 16), noise(40, 6, seed=1)
    got = quiet({"a": net}, x, features={"f": f}, batch_size=40, estimators=("unbiased", "biased"))
    table = got.curve("a", "f")
    for layer, value in collect(net, None, x).items():
        for estimator in ("unbiased", "biased"):
            expected = cka(value, f, estimator=estimator)
            assert got.matrix("a", "f", estimator).loc[layer, "f"] == pytest.approx(expected, abs=1e-5)
    assert table["low"].isna().all() and table["high"].isna().all() and table["cka"].notna().all()


def test_further_estimators_come_from_the_same_pass():
    """RBF is that of `cka` batch by batch; "trimmed" is unbiased CKA of the images that remain, also with whole batches out."""
    net = Layers(lambda x: x.flatten(1) + 1, lambda x: x.tanh())
    x, f, y = noise(60, 3, 4, 4), noise(60, 6, seed=1), Y[:60]
    dropped = torch.tensor([3, 17, 18, 39, *range(40, 58)])  # of the last batch two images remain: they have no HSIC
    every = ("unbiased", "rbf", "trimmed", "biased")
    settings = {"labels": y, "features": {"f": f}, "layers": ["l0", "l1"], "batch_size": 20}
    got = compare({"a": net}, x, estimators=every, leave_out=dropped, **settings)
    plain = quiet({"a": net}, x, estimators=("unbiased", "biased"), **settings)
    for a, b in (("a", "a"), ("a", "f"), ("a", "labels"), ("f", "labels")):
        for estimator in ("unbiased", "biased"):
            np.testing.assert_array_equal(got.matrix(a, b, estimator), plain.matrix(a, b, estimator))

    def kernel(v):
        d = torch.cdist(v.double().flatten(1), v.double().flatten(1), compute_mode="donot_use_mm_for_euclid_dist") ** 2
        return torch.exp(-d / (2 * float(np.median(d.numpy()))))

    values = {"l0": net.l0(x), "l1": net.l1(x), "f": f}
    left = [torch.tensor([i for i in range(k, k + 20) if i not in dropped]) for k in (0, 20)]
    for a, b in (("l0", "l1"), ("l0", "f"), ("l1", "f")):
        pairs = list(zip(values[a].split(20), values[b].split(20)))

        def mean(p, q, pairs=pairs):
            return sum(song(kernel(u[p]), kernel(u[q])) for u in pairs)

        row, column = ("a", a), (("a", b) if b != "f" else ("f", "f"))
        value = got.replicates(*row, *column, "rbf")[0]
        assert value == pytest.approx(mean(0, 1) / (mean(0, 0) * mean(1, 1)) ** 0.5, abs=1e-5)
        value = got.replicates(*row, *column, "trimmed")[0]
        parts = [[values[name][i].flatten(1) for i in left] for name in (a, b)]
        assert value == pytest.approx(reference(*parts), abs=1e-5)
    expected = reference([nn.functional.one_hot(y[i]) for i in left], [values["l0"][i] for i in left])
    assert got.replicates("labels", "labels", "a", "l0", "trimmed")[0] == pytest.approx(expected, abs=1e-5)
    for options in ({"leave_out": dropped}, {"estimators": ("trimmed",)}, {"estimators": every, "leave_out": [0.5]}):
        with pytest.raises(ValueError, match="leave_out"):
            compare({"a": net}, x, layers=["l0"], **options)


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0, 1e3])
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1.0, 1e4, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_offsets_and_scales(offset, scale, dtype):
    mix = noise(48, 300, seed=3).to(dtype) / 7

    def shifted(x):
        return (x.flatten(1).to(dtype) @ mix + offset) * scale

    x = noise(96, 3, 4, 4)
    net, every = Layers(shifted, lambda x: x), ("unbiased", "biased")
    got = quiet({"a": net}, x, layers=["l0", "l1"], batch_size=32, estimators=every)
    for estimator, hsic in (("unbiased", song), ("biased", hsic0)):
        expected = reference(shifted(x).double().div(scale).split(32), x.split(32), hsic)
        assert got.matrix("a", estimator=estimator).loc["l0", "l1"] == pytest.approx(expected, abs=1e-5)
        assert got.matrix("a", estimator=estimator).loc["l0", "l0"] == pytest.approx(1, abs=1e-6)


@given(m=st.integers(4, 130), p=st.sampled_from([1, 50, 2047, 2048, 2050, 5000, 16384]), double=st.booleans())
@settings(max_examples=25, deadline=None)
def test_products_equal_those_in_float64(m, p, double):
    x = noise(m, p).to(torch.float64 if double else torch.float32)
    got = product(x)
    assert got.dtype == x.dtype
    torch.testing.assert_close(got.double(), x.double() @ x.double().T, rtol=1e-6, atol=1e-5 * p**0.5)


def test_only_sources_that_need_it_are_centred_first():
    sums = HsicSums([("s", "plain"), ("s", "shifted")], ("unbiased",), 2, torch.device("cpu"))
    sums.begin_batch(32, torch.ones(32))
    sums.add("s", "plain", noise(32, 50).relu())
    sums.add("s", "shifted", noise(32, 50) + 30)
    sums.end_batch(0, 0)
    assert sums.careful == [False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations(dtype):
    def half(x):
        return (x.flatten(1) + 2).to(dtype)

    x = noise(64, 3, 4, 4)
    got = quiet({"a": Layers(half, lambda x: x.tanh())}, x, layers=["l0", "l1"], batch_size=32)
    assert got.matrix("a").loc["l0", "l1"] == pytest.approx(reference(half(x).split(32), x.tanh().split(32)), abs=1e-5)


@pytest.mark.parametrize("precision", ["medium", "high"])
def test_grams_stay_in_float32(precision):
    x, layers = noise(64, 3, 8, 8), ["l0", "l1"]
    net = Layers(lambda x: x, lambda x: x.tanh())
    expected = quiet({"a": net}, x, layers=layers).matrix("a")
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = quiet({"a": net}, x, layers=layers).matrix("a")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_autocast_runs_the_network_in_half_precision():
    net, x = build(width=8), noise(64, 3, 16, 16)
    full = quiet({"a": net}, x).matrix("a")
    with torch.autocast("cpu", torch.bfloat16):
        half = quiet({"a": net}, x).matrix("a")
    error = (full - half).abs().to_numpy()
    assert 1e-6 < error.max() < 0.05


def test_constant_layers_are_undefined_and_named():
    net = Layers(lambda x: x, lambda x: torch.full_like(x, 0.1), lambda x: torch.zeros_like(x))
    with pytest.warns(UserWarning, match="a/l1, a/l2") as caught:
        got = compare({"a": net}, noise(64, 3, 4, 4), layers=["l0", "l1", "l2"], batch_size=16)
    assert len(caught) == 1 and got.undefined == [("a", "l1"), ("a", "l2")]
    matrix = got.matrix("a")
    assert matrix.loc["l0", "l0"] == pytest.approx(1) and matrix.isna().sum().sum() == 8
    assert got.table("a").query("layer_a == 'l1'")[["cka", "low", "high"]].isna().all(axis=None)


def test_a_layer_may_be_constant_in_some_batches():
    def late(x):
        return x * (x[:1] > 0)  # constant zero in the batches that begin with a negative image

    x = noise(64, 6)
    x[:, 0] = torch.where(torch.arange(64) < 16, -1.0, 1.0)
    x[:16, 1:] = -x[:16, 1:].abs()
    got = quiet({"a": Layers(late, lambda x: x)}, x, layers=["l0", "l1"], batch_size=16)
    expected = reference([late(part) for part in x.split(16)], x.split(16))
    assert got.matrix("a").loc["l0", "l1"] == pytest.approx(expected, abs=1e-5)


def test_nan_names_network_layer_and_batch():
    def broken(x):
        return torch.where(x[:, :1] > 2.9, float("nan"), x)

    x = noise(64, 6).clamp(-2, 2)
    x[50, 0] = 3
    for value in (broken, lambda x: 1 / broken(x).nan_to_num(0)):
        net = Layers(lambda x: x, value)
        with pytest.raises(ValueError, match="second.*NaN.*'l1'.*batch 3"):
            compare({"first": Layers(lambda x: x, lambda x: x), "second": net}, x, layers=["l0", "l1"], batch_size=16)


def test_identical_networks_give_one():
    same = build(width=4)
    got = quiet({"a": same, "b": same, "c": build(width=4)}, noise(48, 3, 16, 16), batch_size=16)
    for other in "bc":
        np.testing.assert_allclose(got.curve("a", other)["cka"], 1, atol=1e-7)


# ---- images ------------------------------------------------------------------------------------------------------------

NET = Layers(lambda x: x.flatten(1), lambda x: x.flatten(1)[:, :5].tanh())
X, Y = noise(66, 3, 4, 4), torch.arange(66) % 5


def both(images=X, **options):
    return quiet({"a": NET}, images, layers=["l0", "l1"], **options)


def cell(result, b="labels"):
    return result.curve("a", b)["cka"].tolist()


def test_loaders_tensors_pairs_and_dicts_agree():
    parts = list(zip(X.split(11), Y.split(11)))
    expected = both(labels=Y, batch_size=11)
    for loader in (
        parts,
        iter(parts),
        [list(part) for part in parts],
        [{"image": x, "label": y} for x, y in parts],
        DataLoader(TensorDataset(X, Y), batch_size=11),
    ):
        got = both(loader)
        assert cell(got) == cell(expected) and got.weights.sum() == 66
    chosen = both([{"mine": x, "other": -x, "y": y} for x, y in parts], transform=lambda batch: batch["mine"])
    assert cell(chosen) == cell(expected)
    assert cell(both(list(X.split(11)), labels=Y)) == cell(expected)
    assert both(parts, labels=False).streams == ("a",)
    assert cell(both(labels=nn.functional.one_hot(Y), batch_size=11)) == pytest.approx(cell(expected), abs=1e-6)


@pytest.mark.parametrize("n, size, sizes", [(1000, 128, [125] * 8), (7, 4, [7])])
def test_batches_of_a_tensor_are_nearly_equal(n, size, sizes):
    seen = []
    quiet({"a": Layers(lambda x: seen.append(len(x)) or x)}, noise(n, 4), layers=["l0"], batch_size=size)
    assert seen == [3, *sizes]  # layers are tried on three images first


def test_a_short_batch_counts_for_what_it_is_and_one_of_fewer_than_four_images_for_nothing():
    for batches in ([X[:30], X[30:60], X[60:]], [X[:30], X[30:60], X[60:63]], [X[:2], X[2:30], X[30:63]]):
        long = [b for b in batches if len(b) > 3]
        small = sum(map(len, batches)) - sum(map(len, long))
        left_out = pytest.warns(UserWarning, match=f"compare: {small} images in batches of fewer than 4 are left out")
        with left_out if small else contextlib.nullcontext():
            got = compare({"a": NET}, batches, layers=["l0", "l1"], features={"f": torch.cat(batches).flatten(1)})
        assert got.matrix("a").loc["l0", "l1"] == pytest.approx(reference(long, [NET.l1(b) for b in long]), abs=1e-5)
        assert got.matrix("a", "f").loc["l0", "f"] == pytest.approx(1) and got.weights.sum() == sum(map(len, long))


def test_a_shuffled_loader_cannot_mix_up_two_networks():
    loader = DataLoader(TensorDataset(X, Y), batch_size=22, shuffle=True, generator=torch.Generator().manual_seed(0))
    got = quiet({"a": NET, "b": NET}, loader, layers=["l0", "l1"])
    np.testing.assert_allclose(got.curve("a", "b")["cka"], 1, atol=1e-7)
    with pytest.raises(ValueError, match="f: expected rows in the loader's order"):
        both(loader, features={"f": X.flatten(1)})


def test_views():
    def noisy(x, generator):
        return x + torch.randn(x.shape, generator=generator)

    nets, layers = {"a": NET, "b": NET}, ["l0", "l1"]
    got = quiet(nets, X, views={"noisy": noisy, "again": noisy}, layers=layers, batch_size=22)
    assert got.streams == ("a", "a@noisy", "a@again", "b", "b@noisy", "b@again")
    assert cell(got, "a@noisy")[0] == pytest.approx(0.5, abs=0.1)  # signal and noise alike
    assert got.curve("a@noisy", "b@noisy")["cka"].tolist() == pytest.approx([1, 1])  # both saw the same draw
    assert got.curve("a@noisy", "a@again")["cka"].max() < 0.9  # two views are two draws
    repeated = quiet(nets, X, views={"noisy": noisy}, layers=layers, batch_size=22)
    np.testing.assert_allclose(repeated.matrix("a", "a@noisy"), got.matrix("a", "a@noisy"), atol=1e-9)


def test_transforms_and_layers_by_network():
    layers, transform = {"a": ["l0"], "b": {"mine": "l1"}}, {"b": lambda x: X[:1].expand_as(x) * x}
    got = quiet({"a": NET, "b": NET}, X, layers=layers, transform=transform)
    assert got.layers("b") == ["mine"] and got.matrix("a", "b").shape == (1, 1)
    assert got.matrix("a", "b").loc["l0", "mine"] < both().matrix("a").loc["l0", "l1"] - 1e-3
    whole = both((X * 8).long().float()).matrix("a")
    np.testing.assert_allclose(both((X * 8).long(), transform=lambda x: x.float()).matrix("a"), whole, atol=1e-6)


# ---- intervals ---------------------------------------------------------------------------------------------------------


def test_intervals_cover():
    """Of 95 % intervals of a known value, about 95 % hold it, also with folds of unequal size; and of a difference."""
    truth, hits, differences = 0.5, 0, 0
    for seed in range(120):
        x, e = noise(330, 8, seed=2 * seed), noise(330, 8, seed=2 * seed + 1)
        # independent halves of one Gaussian: as p grows in a population CKA(x, [x, e]) = |Sxx|^2 / (|Sxx| |S|) = 1 / sqrt 2
        features = {"x": x, "both": torch.cat([x, e], 1), "other": torch.cat([e, x], 1), "e": e}
        got = quiet({"a": Layers(lambda x: x)}, x, layers=["l0"], features=features, batch_size=30, folds=4)
        low, high = got.table("x", "both")[["low", "high"]].iloc[0]
        hits += low <= truth**0.5 <= high
        replicates = (got.replicates(x, x, y, y) for x, y in (("x", "both"), ("e", "other")))
        estimate, low, high = jackknife(np.subtract(*replicates), got.weights)
        differences += low <= 0 <= high
    assert 105 <= hits and 105 <= differences <= 120 and hits <= 120


def test_replicates_leave_out_each_fold_and_any_function_of_them_has_an_interval():
    got = both(labels=Y, features={"f": X.flatten(1)[:, :7]}, batch_size=11)
    parts = [[v.split(11)[k] for k in range(6)] for v in (NET.l1(X), X.flatten(1)[:, :7])]
    expected = [reference(*parts)] + [reference(*[p[:k] + p[k + 1 :] for p in parts]) for k in range(6)]
    np.testing.assert_allclose(got.replicates("a", "l1", "f", "f"), expected, atol=1e-5)
    first, second = ("a", "l0", "labels", "labels"), ("a", "l1", "f", "f")
    several = np.stack([got.replicates(*first), got.replicates(*second)], 1)
    estimate, low, high = jackknife(several[:, 0] - several[:, 1], got.weights)
    assert low < estimate < high and estimate == got.matrix("a", "labels").loc["l0"].iloc[0] - several[0, 1]
    assert jackknife(several[:, 0] - several[:, 0], got.weights) == (0, 0, 0)
    interval = jackknife(several[:, 1], got.weights)
    assert got.curve("a", "f").loc[1, ["cka", "low", "high"]].tolist() == pytest.approx(interval, rel=1e-9)
    with pytest.raises(ValueError, match=r"1 \+ 6 replicates"):
        jackknife(np.zeros(6), got.weights)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    """For equal groups the delete-a-group jackknife of a mean is the standard error of the groups' means, exactly."""
    x = np.random.RandomState(0).randn(8, 5)
    values = np.array([x.mean(), *(np.delete(x, k, 0).mean() for k in range(8))])
    value, low, high = jackknife(values, np.full(8, 5))
    assert value == values[0] and high - value == pytest.approx(student.ppf(0.975, 7) * x.mean(1).std(ddof=1) / 8**0.5)
    assert np.isnan(jackknife(np.ones((2, 3)), [5])[1]).all()


def test_folds_bound_what_is_kept():
    many = quiet({"a": NET}, noise(400, 3, 4, 4), layers=["l0", "l1"], batch_size=4, folds=10)
    assert many.hsic["unbiased"].shape == (1 + 10, 3) and many.weights.tolist() == [40] * 10
    assert both(batch_size=22).hsic["unbiased"].shape == (1 + 3, 3)


def test_questions_about_what_was_not_compared():
    got = both(labels=Y)
    for ask, match in [
        (lambda: got.matrix("A"), "such as a, labels, got 'A'"),
        (lambda: got.layers("c"), "'c'"),
        (lambda: got.matrix("a", estimator="biased"), "expected one of unbiased, got 'biased'"),
        (lambda: got.replicates("a", "l7", "a", "l0"), "l0, l1 of 'a', got 'l7'"),
    ]:
        with pytest.raises(ValueError, match=match):
            ask()
    other = quiet({"a": NET, "b": NET}, X, layers={"a": ["l0", "l1"], "b": {"x": "l0", "y": "l1"}})
    with pytest.raises(ValueError, match="none; use table"):
        other.curve("a", "b")


# ---- doors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"models": NET}, TypeError, "models: expected a dict"),
        ({"models": {}}, TypeError, "at least one"),
        ({"models": {"a": lambda x: x}}, TypeError, "'a' to be a Module, got function"),
        ({"models": {}, "images": None}, TypeError, "or features, got none"),
        ({"images": None}, TypeError, "images: expected a tensor"),
        ({"models": {"a@b": NET}}, ValueError, "a@b"),
        ({"models": {"labels": NET}}, ValueError, "labels"),
        ({"images": X[:3]}, ValueError, "images: expected at least 4"),
        ({"images": X.numpy()[0, 0, 0]}, ValueError, r"images: expected at least 4, .*got shape \(4,\)"),
        ({"images": 3}, TypeError, "got int"),
        ({"images": []}, ValueError, "got none"),
        ({"images": [X[:2], X[:3]]}, ValueError, "at least 4, got 3"),
        ({"images": [{"photo": "p.png"}]}, ValueError, r"got \['photo'\] in batch 0"),
        ({"images": [(["a"], X)]}, ValueError, "got list in batch 0"),
        ({"images": [(X, ["a"] * 66)]}, TypeError, r"labels \(in batch 0, if not labels=False\): expected numbers"),
        ({"images": X.clone().index_fill_(0, torch.tensor([9]), float("nan"))}, ValueError, "images: expected finite"),
        ({"labels": Y[:60]}, ValueError, "labels: expected one row an image, got 60 for 66 images"),
        ({"labels": True}, ValueError, "labels: expected shape"),
        ({"labels": Y / 0.0}, ValueError, "labels: expected finite"),
        ({"images": [X[:40], X[40:]], "features": {"f": noise(50, 2)}}, ValueError, "got 50 for 66 or more"),
        ({"images": [X[:40], X[40:]], "features": {"f": noise(70, 2)}}, ValueError, "got 70 for 66"),
        ({"features": {"f": noise(66, 2) / 0}}, ValueError, "f: expected finite"),
        ({"features": {"a": noise(66, 2)}}, ValueError, "different names, .* got 'a'"),
        ({"features": {"f": ["cat"]}}, TypeError, "features, f: expected numbers, got list .*; pd.factorize"),
        ({"features": noise(66, 2)}, TypeError, "features: expected a dict by name"),
        ({"views": {"v": 3}}, TypeError, "'v' to be a Callable"),
        ({"views": {"v": lambda x, g: x[:5]}}, ValueError, r"a@v: expected one row an image \(33\)"),
        ({"layers": ["l7"]}, ValueError, "'l7'"),
        ({"layers": None}, TypeError, "module paths"),
        ({"layers": {"b": ["l0"]}}, ValueError, "each of a, got .'b'"),
        ({"transform": {"b": abs}}, ValueError, "transform"),
        ({"estimators": "biased"}, ValueError, "estimators"),
        ({"estimators": ("exact",)}, ValueError, "exact"),
        ({"batch_size": 3}, ValueError, "got 3 and 20"),
        ({"folds": 1}, ValueError, "got 40 and 1"),
        ({"models": {"a": Layers(lambda x: x.sum())}, "layers": ["l0"]}, ValueError, "'l0': of shape .*one row an im"),
    ],
)
def test_unusable_arguments(options, error, match):
    arguments = {"models": {"a": NET}, "images": X, "layers": ["l0", "l1"], "batch_size": 40, **options}
    with pytest.raises(error, match=match):
        compare(arguments.pop("models"), arguments.pop("images"), **arguments)


# ---- files ------------------------------------------------------------------------------------------------------------


def test_of_some_pairs_the_sum_over_folds_is_enough():
    options = {"labels": Y, "views": {"v": lambda x, generator: x + torch.randn(x.shape, generator=generator)}}
    got = both(**options, features={"f": X.flatten(1)[:, :7]}, batch_size=11, estimators=("unbiased", "biased"))
    kept = got.select(lambda s, t: "labels" in (s[0], t[0]) or (s[0] + "@v" == t[0] and s[1] == t[1]))
    tensors, meta = kept.to_tensors()
    loaded = Comparison.from_tensors(tensors, json.loads(json.dumps(meta)))
    for comparison in (kept, loaded, kept.select(lambda s, t: True)):
        for estimator in ("unbiased", "biased"):
            pd.testing.assert_frame_equal(*(c.table("a", "labels", estimator) for c in (comparison, got)), rtol=1e-5)
            pd.testing.assert_frame_equal(*(c.curve("a", "a@v", estimator) for c in (comparison, got)), rtol=1e-5)
            part, whole = (c.table("a", "f", estimator) for c in (comparison, got))
            np.testing.assert_allclose(part["cka"], whole["cka"], rtol=1e-6)
            assert part[["low", "high"]].isna().all(axis=None) and whole.notna().all(axis=None)
        assert np.isnan(comparison.replicates("a", "l0", "f", "f")[1:]).all() and not comparison.undefined
    assert tensors["hsic.biased"].shape == (6, 6 + 5 + 2) and tensors["total.biased"].shape == (21 - 13,)
    assert tensors["hsic.unbiased"].dtype == torch.float32
    again = Comparison.from_tensors(*got.to_tensors())  # nothing is rounded without being asked
    pd.testing.assert_frame_equal(again.table("a", "f"), got.table("a", "f"), rtol=1e-12)


def test_files_of_earlier_versions_are_read():
    tensors = {
        "cells": torch.tensor([[0, 0, 1], [0, 1, 1]], dtype=torch.int32),
        "weights": torch.tensor([8.0, 8.0], dtype=torch.float64),
        "hsic.unbiased": torch.tensor([[4.0, 1.0, 1.0], [5.0, 2.0, 3.0]]),
    }
    got = Comparison.from_tensors(tensors, {"sources": [["a", "x"], ["b", "y"]], "kernel": "rbf", "threshold": 1.0})
    np.testing.assert_allclose(got.replicates("a", "x", "b", "y"), [3 / 6, 2 / 15**0.5, 1 / 2])
