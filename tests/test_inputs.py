"""Anybody's modules, images, features and labels: each kind of input gives the right value, or an error that says what to do."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cka import gram, quiet, song
from test_taps import noise, vit
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from repsim.cka import cka, compare
from repsim.explorer import disagreement, neighbours
from repsim.models import build, layer_names
from repsim.taps import pooled, resolve

X, Y = noise(48, 3, 8, 8), torch.arange(48) % 4
SMALL = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)).eval()


@torch.no_grad()
def output(model, path, x):
    """What a module gives, or the first part of it, by a hook of our own, on a copy."""
    seen = []
    hook = lambda m, args, out: seen.append((out[0] if isinstance(out, tuple) else out).clone())  # noqa: E731
    handle = model.get_submodule(path).register_forward_hook(hook)
    model.eval()(x)
    handle.remove()
    return seen[0]


# ---- where the channels are --------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A patch embedding without a norm, (n, c, h, w) -> (n, t, c), and an activation after it."""

    def __init__(self, dim=10):
        super().__init__()
        self.embed, self.act = nn.Sequential(nn.Conv2d(3, dim, 4, 4), nn.Flatten(2), Transposed()), nn.GELU()

    def forward(self, x):
        return self.act(self.embed(x)).mean(1)


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class Joined(nn.Module):
    """Channels joined behind a convolution that has as many as the map has rows: (n, 3 + 8, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(x)], 1)


def swin():
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=4)


def convnext(c):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    torch.manual_seed(0)
    return ConvNeXt([CNBlockConfig(c, None, 2)], layer_scale=1.0)


FIRST, LAST = (2, 3), (1, 2)  # the positions of (n, c, h, w) and of (n, h, w, c)
SEQUENCE = nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU())
TURNED = nn.Linear(8, 6), torchvision.ops.Permute([0, 3, 1, 2]), nn.AvgPool2d(2)
LAYOUTS = {
    "Swin's block": (swin, "features.1", X.repeat(1, 1, 4, 4), LAST),
    "Swin's MLP": (swin, "features.1.0.mlp.1", X.repeat(1, 1, 4, 4), LAST),
    "Swin's merging": (swin, "features.2", X.repeat(1, 1, 4, 4), LAST),
    "ConvNeXt's stem": (lambda: convnext(16), "features.0", X.repeat(1, 1, 4, 4), FIRST),
    "ConvNeXt's block": (lambda: convnext(16), "features.1", X.repeat(1, 1, 4, 4), FIRST),
    "ConvNeXt's linear": (lambda: convnext(16), "features.1.0.block.3", X.repeat(1, 1, 4, 4), LAST),
    "a convolution of sequences": (lambda: SEQUENCE, "0", noise(48, 4, 9), (2,)),
    "an activation of sequences": (lambda: SEQUENCE, "2", noise(48, 4, 9), (2,)),
    "tokens": (vit, "encoder.layers.encoder_layer_0.mlp.1", X.repeat(1, 1, 4, 4), (1,)),
    "tokens of a patch embedding": (Tokens, "embed", X, (1,)),
    "an activation of tokens": (Tokens, "act", X, (1,)),
    "a pool of turned tokens": (lambda: nn.Sequential(*TURNED), "2", X, FIRST),
    "joined channels": (lambda: nn.Sequential(Joined()), "0", X, FIRST),
    "an LSTM": (lambda: nn.Sequential(nn.LSTM(4, 5, batch_first=True)), "0", noise(48, 9, 4), (1,)),
    "as many channels as rows": (lambda: build(width=4), "layer2.0", noise(12, 3, 16, 16), FIRST),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_means_are_over_positions_wherever_the_channels_are(name):
    make, path, x, positions = LAYOUTS[name]
    model = make().eval()
    expected = output(model, path, x).mean(positions)
    torch.testing.assert_close(pooled(model, x, [path], batch_size=20)[path], expected, atol=1e-5, rtol=1e-4)
    got = quiet({"a": model}, x, layers=[path], reduction="mean", features={"f": expected}, batch_size=12)
    assert got.matrix("a", "f").iloc[0, 0] == pytest.approx(1, abs=1e-6)


def test_channels_that_are_not_known_are_refused_and_may_be_told():
    model, x, path = convnext(8).eval(), noise(6, 3, 32, 32), "features.1"  # the block's output is (n, 8, 8, 8)
    with pytest.raises(ValueError, match=r"'features.1': of shape \(3, 8, 8, 8\).*reduction=.none'.*lambda x: x.mean"):
        pooled(model, x, [path])
    full = output(model, path, x)
    torch.testing.assert_close(pooled(model, x, [path], reduction=lambda y: y.mean((2, 3)))[path], full.mean((2, 3)))
    odd = nn.Sequential(nn.Unflatten(1, (2, 3, 4)))
    with pytest.raises(ValueError, match="not known"):
        pooled(odd, noise(5, 24), ["0"])


def test_tokens_may_be_chosen():
    model, x, layer = vit().eval(), noise(9, 3, 32, 32), "encoder.ln"
    full = output(model, layer, x)
    settings = {
        "mean": full.mean(1),
        "cls": full[:, 0],
        "none": full.flatten(1),
        (lambda out: out[:, 1:].mean(1)): full[:, 1:].mean(1),
    }
    for reduction, expected in settings.items():
        got = pooled(model, x, [layer, "heads"], reduction=reduction, batch_size=4)
        torch.testing.assert_close(got[layer], expected, atol=1e-5, rtol=1e-4)
        assert got["heads"].shape == (9, 10) or callable(reduction)
        value = quiet({"a": model}, x, layers=[layer], reduction=reduction, features={"f": expected}, batch_size=9)
        assert value.matrix("a", "f").iloc[0, 0] == pytest.approx(1, abs=1e-6)
    several = pooled(model, x, [layer, "heads"], reduction={layer: "cls"})
    torch.testing.assert_close(several[layer], full[:, 0])
    for reduction, match in (
        ({"no layer": "cls"}, "for 'no layer'"),
        ("max", "reduction: expected one of mean, cls, none"),
        (lambda out: out.sum(), "one row an image"),
    ):
        with pytest.raises(ValueError, match=match):
            pooled(model, x, [layer], reduction=reduction)
    with pytest.raises(ValueError, match=r"'encoder.ln': of shape \(3, 17, 32\), which its reduction refuses"):
        pooled(model, x, [layer], reduction=lambda out: out @ out)
    with pytest.raises(ValueError, match="no first token"):
        pooled(SMALL, X, ["0"], reduction="cls")


class TimeFirst(nn.Module):
    """Rows are time steps, of which there are as many as images."""

    def __init__(self, steps):
        super().__init__()
        self.rnn, self.codes, self.steps = nn.GRU(4, 6), nn.Embedding(steps, 6), steps

    def forward(self, x):
        return self.rnn(x.transpose(0, 1))[0].mean(0) + self.codes(torch.arange(self.steps)).mean(0)


@pytest.mark.parametrize("layer", ["rnn", "codes"])
def test_rows_are_images_even_where_something_else_is_as_many(layer):
    model, x = TimeFirst(12).eval(), noise(12, 12, 4)
    for call in (lambda: compare({"a": model}, x, layers=[layer]), lambda: pooled(model, x, [layer])):
        with pytest.raises(ValueError, match=f"'{layer}': of shape .* one row an image"):
            call()
    with torch.no_grad():
        expected = model.rnn(x.transpose(0, 1))[0].transpose(0, 1)
    if layer == "rnn":
        got = pooled(model, x, ["rnn"], reduction=lambda out: out.transpose(0, 1).flatten(1))["rnn"]
        torch.testing.assert_close(got, expected.flatten(1))


# ---- batches, their order and what is beside them ----------------------------------------------------------------------


def clusters(n=200):
    y = torch.arange(10).repeat_interleave(n // 10)
    return 3 * noise(10, 32, seed=5)[y] + noise(n, 32, seed=6), y


def test_sorted_images_are_warned_of_wherever_that_shows_and_only_then():
    x, y = clusters()
    a, b = nn.Sequential(nn.Linear(32, 16)), nn.Sequential(nn.Linear(32, 16), nn.ReLU())
    models, layers = {"a": a, "b": b}, {"a": ["0"], "b": ["1"]}
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = cka(a(x), b(x))
    for arguments in (
        {"models": models, "images": x, "layers": layers},
        {"models": models, "images": DataLoader(TensorDataset(x), 20), "layers": layers},
        {"models": {"a": nn.Sequential(nn.Linear(32, 16))}, "images": noise(200, 32), "layers": ["0"], "labels": y},
        {"features": {"f": x}},
    ):
        with pytest.warns(UserWarning, match=r"sorted, as by class.*images\[torch.randperm\(n\)\]"):
            compare(**arguments, batch_size=20)
    got = quiet(models, x[order], layers=layers, labels=y[order], batch_size=20)
    assert got.matrix("a", "b").iloc[0, 0] == pytest.approx(exact, abs=0.05)
    quiet(models, x, layers=layers, batch_size=200)  # one batch has no order
    for seed in range(20):  # chance alone warns of nothing, whatever the tails
        heavy = noise(160, 6, seed=seed) ** 3
        quiet(features={"f": heavy, "g": heavy.exp()}, labels=torch.arange(160) % 2, batch_size=16)


class Counted(Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, i):
        return X[i], int(Y[i])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(list(zip(X, Y)))


def test_rows_beside_a_loader_need_its_order():
    images, rows = TensorDataset(X), X.flatten(1)
    generator = torch.Generator().manual_seed(0)
    for loader in (
        DataLoader(images, 12, shuffle=True, generator=generator),
        DataLoader(images, 12, sampler=WeightedRandomSampler(torch.ones(48), 48)),
        DataLoader(images, 12, sampler=list(range(47, -1, -1))),
        DataLoader(images, batch_sampler=[list(range(i, 48, 4)) for i in range(4)]),
    ):
        for beside in ({"features": {"f": rows}}, {"labels": Y}):
            with pytest.raises(ValueError, match="rows in the loader's order, got a loader that shuffles or selects"):
                compare({"a": SMALL}, loader, layers=["3"], **beside)
    order = torch.randperm(48, generator=generator)
    for loader, beside in (
        (DataLoader(images, 12), rows),
        (DataLoader(Subset(images, order), 12), rows[order]),
        (DataLoader(Stream(), 12), rows),
        (X.split(12), rows),
    ):
        got = quiet({"a": nn.Sequential(nn.Flatten())}, loader, layers=["0"], features={"f": beside}, labels=False)
        assert got.matrix("a", "f").iloc[0, 0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "y",
    [Y.numpy(), Y.tolist(), [*Y], pd.Series(Y), pd.Series(Y).astype("int8"), Y.byte(), Y.numpy().astype("uint32")],
)
def test_labels_of_any_kind_are_used(y):
    loader = [(X[:24], Y[:24]), (X[24:], Y[24:])]
    for images in (X, loader):
        expected, got = (quiet({"a": SMALL}, images, labels=v, layers=["0", "3"], batch_size=24) for v in (Y, y))
        assert got.streams == ("a", "labels")
        np.testing.assert_array_equal(got.matrix("a", "labels"), expected.matrix("a", "labels"))


@pytest.mark.parametrize(
    "labels, error, match",
    [
        (Y.float(), ValueError, r"labels.flatten\(\).long\(\) if .*, labels.float\(\)\[:, None\] if quantities"),
        (np.linspace(0, 1, 48), ValueError, "expected whole numbers"),
        (Y[:, None], ValueError, r"labels.flatten\(\).long\(\) if they are classes"),
        (["cat"] * 48, TypeError, r"labels: expected numbers, got list \(.*str_\); pd.factorize"),
        (pd.Series(["cat", "dog"] * 24), TypeError, "labels: expected numbers, got Series"),
        ("labels", TypeError, "labels: expected numbers, got str"),
        (Y.to_sparse(), TypeError, "labels: expected a dense tensor"),
    ],
)
def test_labels_that_may_mean_two_things_are_refused(labels, error, match):
    with pytest.raises(error, match=match):
        compare({"a": SMALL}, X, labels=labels, layers=["3"])


def test_targets_of_a_regression_in_a_loader_are_refused_with_both_remedies():
    with pytest.raises(ValueError, match=r"labels \(in batch 0, if not labels=False\): expected whole numbers"):
        compare({"a": SMALL}, [(X, Y.float())], layers=["3"])
    for y, labels, streams in ((Y.float(), False, ("a",)), (Y.float()[:, None], None, ("a", "labels"))):
        assert quiet({"a": SMALL}, [(X, y)], layers=["3"], labels=labels).streams == streams


@pytest.mark.parametrize(
    "images, error, match",
    [
        (list(X), ValueError, r"got shape \(3, 8, 8\) in batch 0; torch.stack\(images\)"),
        (Counted(), TypeError, r"got Counted; .*DataLoader\(dataset, batch_size\)"),
        (iter(Stream()), ValueError, r"in batch 0; .*DataLoader\(dataset, batch_size\)"),
        (DataLoader(Counted(), batch_size=None), ValueError, "got shape .* in batch 0"),
        ([Image.new("RGB", (8, 8))] * 4, ValueError, "got Image in batch 0; torch.stack"),
        ([["a.png", "b.png"]], ValueError, r"images: expected batches .* got str in batch 0; torch.stack"),
        (X.permute(0, 2, 3, 1).mul(255).byte(), ValueError, r"images.permute\(0, 3, 1, 2\) puts channels first"),
        (X[:, :1], ValueError, r"refuses a batch of shape \(3, 1, 8, 8\).*\.expand\(-1, 3, -1, -1\)"),
        (X[:, :, :4], ValueError, r"images: Sequential refuses a batch of shape \(3, 3, 4, 8\)"),
        (X.long(), TypeError, "expected uint8 or float, got torch.int64; pass transform="),
        (X > 0, TypeError, "expected uint8 or float, got torch.bool"),
        ([{"pixel_values": X, "attention_mask": torch.ones(48, 4)}], ValueError, "images: Sequential refuses"),
    ],
)
def test_images_that_do_not_fit_say_what_to_do(images, error, match):
    with pytest.raises(error, match=match):
        compare({"a": SMALL}, images, layers=["3"])
    if not hasattr(images, "__next__"):  # which the first call has read from
        with pytest.raises(error, match=match):
            pooled(SMALL, images, ["3"])


def test_arrays_and_loaders_of_arrays_are_images():
    expected = pooled(SMALL, X, ["3"])["3"]
    for images in (X.numpy(), [X[:20].numpy(), X[20:].numpy()], DataLoader(Counted(), 20), [{"image": X}], [(X,)]):
        torch.testing.assert_close(pooled(SMALL, images, ["3"], batch_size=20)["3"], expected, atol=1e-6, rtol=1e-5)


# ---- features without networks -----------------------------------------------------------------------------------------


def test_features_alone_have_layers_and_intervals():
    x, y = clusters()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    x, y = x[order], y[order]
    clip = {"early": x.numpy(), "late": pd.DataFrame(x.numpy()).clip(0)}
    dino = {"block": x.tanh()[:, :, None], 3: x[:, :5].tolist()}
    ids = [f"image-{i}" for i in order.tolist()]
    names = {"clip": ids, "dino": np.array(ids), "images": pd.Series(ids)}
    got = quiet(features={"clip": clip, "dino": dino}, labels=y.numpy(), ids=names, batch_size=20)
    assert got.streams == ("labels", "clip", "dino") and got.layers("dino") == ["block", "3"]
    assert got.table("clip", "dino")[["low", "high"]].notna().all(axis=None)
    whole = quiet(features={"clip": clip, "dino": dino}, batch_size=200).matrix("clip", "dino")
    for a, x_a in clip.items():
        for b, x_b in dino.items():
            assert whole.loc[a, str(b)] == pytest.approx(cka(x_a, x_b), abs=1e-5)
    for names, match in (
        ({"clip": ids, "dino": ids[::-1]}, "'dino' differs from 'clip' at row 0"),
        ({"clip": ids[:-1]}, "ids: expected one a row of clip, dino or images, got 199 for 'clip'"),
        ({"bert": ids}, "ids: expected one a row of clip, dino or images, got 200 for 'bert'"),
    ):
        with pytest.raises(ValueError, match=match):
            compare(features={"clip": clip, "dino": dino}, ids=names)
    for features, match in (
        ({"clip": clip, "dino": {"block": x[:100]}}, "dino/block: expected one row an image, got 100 for 200"),
        ({"clip": {"early": x / 0}}, "features, clip/early: expected finite values"),
        ({"pixels": x}, "expected different names, no '@', 'labels' or 'pixels'"),
    ):
        with pytest.raises(ValueError, match=match):
            compare(features=features)


# ---- networks ----------------------------------------------------------------------------------------------------------


def wrappers():
    compiled = build(width=4).eval()
    compiled.compile(backend="eager")
    with torch.no_grad():
        compiled(noise(4, 3, 16, 16))
    inner = nn.Sequential()
    inner.add_module("backbone", torch.compile(build(width=4), backend="eager"))
    return {
        "used after model.compile()": (compiled, None),
        "torch.compile": (torch.compile(build(width=4), backend="eager"), None),
        "DataParallel": (nn.DataParallel(build(width=4)), None),
        "a compiled DataParallel": (torch.compile(nn.DataParallel(build(width=4)), backend="eager"), None),
        "an average of weights": (torch.optim.swa_utils.AveragedModel(build(width=4)), None),
        "paths as the wrapper has them": (nn.DataParallel(build(width=4)), ["module.layer1.0", "module.layer4.1.bn2"]),
        "paths of a compiled one": (torch.compile(build(width=4), backend="eager"), ["_orig_mod.layer1.0"]),
        "compiled within": (inner, ["backbone.layer1.0", "backbone.layer4.1.bn2"]),
        "compiled within, its own paths": (inner, ["backbone._orig_mod.layer1.0"]),
    }


@pytest.mark.filterwarnings("ignore")
def test_wrapped_and_compiled_networks_are_seen_through():
    x, plain = noise(16, 3, 16, 16), build(width=4)
    expected = pooled(plain, x)
    for name, (model, layers) in wrappers().items():
        got = pooled(model, x, layers)
        names = layer_names(plain) if layers is None else layers
        assert list(got) == names, name
        for layer, value in got.items():
            own = re.sub(r"module\.|_orig_mod\.|backbone\.", "", layer).replace(".bn2", ".residual")
            torch.testing.assert_close(value, expected[own], msg=lambda text, name=name: f"{name}: {text}")
        assert quiet({"m": model}, x, layers=layers, batch_size=16).layers("m") == names


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_networks_that_cannot_be_read_say_what_to_pass():
    x = noise(8, 3, 16, 16)
    traced = torch.jit.trace(build(width=4).eval(), x)
    for model in (torch.jit.script(build(width=4)), traced):
        with pytest.raises(TypeError, match="scripted or traced.*pass its source module"):
            compare({"m": model}, x, layers=["layer1.0"])
    holder = nn.Sequential()
    holder.add_module("encoder", build(width=4))
    with pytest.raises(TypeError, match=r'such as layers=.*, or layers="all"'):
        compare({"m": holder}, x)
    assert len(quiet({"m": holder}, x, layers=["encoder.layer*.*"]).layers("m")) == 8

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.spare = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 4)

        def forward(self, x):
            return self.blocks[1](self.blocks[0](x))

    with pytest.raises(ValueError, match=r"'blocks': never called .*; name modules within it, as by PATH\.\*"):
        compare({"m": Parts()}, noise(8, 4), layers=["blocks"])
    assert list(pooled(Parts(), noise(8, 4), ["blocks.*"])) == ["blocks.0", "blocks.1"]


class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 8)
        self.register_buffer("grid", torch.arange(8.0).expand(4, -1))
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("nothing", torch.full((2,), float("nan")))

    def forward(self, x):
        self.count[0] += 1
        return self.layer(x.flatten(1)) + self.grid[0]


def test_buffers_are_restored_and_written_only_where_they_changed():
    x, net = noise(16, 3, 4, 4), Buffers()
    versions = [b._version for b in (net.grid, net.nothing)]
    quiet({"n": net}, x, layers=["layer"])
    assert net.count.tolist() == [0, 0] and [b._version for b in (net.grid, net.nothing)] == versions
    with torch.inference_mode():
        made = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8))
    assert quiet({"n": made}, x, layers=["1", "2"]).weights.sum() == 16
    with torch.inference_mode():
        assert quiet({"n": made}, x, layers=["1"]).weights.sum() == 16 and net.count.tolist() == [0, 0]
        inside = Buffers()
        pooled(inside, x, ["layer"])
        assert inside.count.tolist() == [0, 0]
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(48, 8, bias=False), nn.BatchNorm1d(8)).requires_grad_(False)
    frozen[2].running_mean = frozen[2].running_mean[:1].expand(8)
    assert quiet({"n": frozen}, x, layers=["2"]).weights.sum() == 16


def test_grey_images_and_networks_of_one_channel():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    digits = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scaled = (digits / 255 - 0.5) / 0.25
    torch.testing.assert_close(pooled(net, digits, ["1"])["1"], pooled(net, scaled, ["1"])["1"], atol=1e-6, rtol=1e-5)
    both = [quiet({"n": net}, x, layers=["0", "1"], pixels=True).matrix("n", "pixels") for x in (digits, scaled)]
    np.testing.assert_allclose(*both, atol=1e-6)
    for images in (digits, scaled):
        with pytest.raises(ValueError, match=r"\(3, 1, 8, 8\).*repeat a grey channel by .expand\(-1, 3, -1, -1\)"):
            compare({"n": SMALL}, images, layers=["3"])


# ---- all layers, patterns and types ------------------------------------------------------------------------------------


def test_layers_may_be_all_patterns_or_types():
    model, x = build(width=4), noise(8, 3, 16, 16)
    assert list(resolve(model, ["layer*.*"])) == [f"layer{s}.{i}" for s in (1, 2, 3, 4) for i in (0, 1)]
    assert list(resolve(model, "layer1.*.residual")) == ["layer1.0.residual", "layer1.1.residual"]
    assert len(resolve(model, [nn.Conv2d])) == len(resolve(model, nn.Conv2d)) == 20
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)]
    assert list(resolve(vit(), ["encoder.layers.*", "heads"])) == [*blocks, "heads"]
    assert "layer3.0.conv1" in resolve(model, "**.conv1")
    assert "layer3.0.conv1" not in resolve(model, "layer3.*")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every = pooled(model, x, "all")
    assert len(every) == 8 + 67 and "layer1.0.relu@2" in every and "layer1.0.relu" not in every and "stem" in every
    torch.testing.assert_close(every["layer1.0.relu@2"], every["layer1.0"])
    assert list(every)[:4] == ["conv1", "bn1", "stem", "maxpool"]  # the order of the forward pass
    with pytest.warns(UserWarning, match=r"left out .*self_attention.out_proj'.*: never called") as caught:
        got = compare({"v": vit(), "r": model}, noise(8, 3, 32, 32), layers={"v": "all", "r": ["pool"]})
    assert sum("left out" in str(w.message) for w in caught) == 1 and "encoder.ln" in got.layers("v")
    assert not any("out_proj" in l for l in got.layers("v"))


def test_all_complaints_come_at_once():
    model, x = build(width=4), noise(8, 3, 16, 16)
    names = [name for name, _ in model.named_modules() if name]
    with pytest.raises(ValueError, match="called more than once") as refusal:
        compare({"r": model}, x, layers=names)
    assert all(f"'layer{s}.{i}.relu'" in str(refusal.value) for s in (1, 2, 3, 4) for i in (0, 1))
    with pytest.raises(ValueError, match=r"'layr1' \(did you mean layer1.*'pol' \(did you mean pool"):
        compare({"r": model}, x, layers=["layr1", "stem", "pol"])
    for layers, error, match in (
        (["lay3r*"], ValueError, r"got 'lay3r\*'"),
        ([nn.LSTM], ValueError, "LSTM"),
        ([3], TypeError, "names, patterns or module types, got 3"),
    ):
        with pytest.raises(error, match=match):
            resolve(model, layers)


# ---- loaders of dicts --------------------------------------------------------------------------------------------------


class Text(nn.Module):
    """As Hugging Face's models: several tensors by keyword, a mask among them, and a mapping of outputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(20, 6), nn.Linear(6, 6)

    def forward(self, input_ids, attention_mask, scale=None):
        x = self.mix(self.embed(input_ids)) * attention_mask[..., None]
        return {"last": x if scale is None else x * scale[:, None, None]}


def test_a_loaders_dicts_are_given_whole():
    ids = torch.randint(0, 20, (40, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.arange(40)[:, None] % 5 + 2).long()
    loader = [
        {"input_ids": ids[i : i + 10], "attention_mask": mask[i : i + 10], "labels": Y[i : i + 10]}
        for i in range(0, 40, 10)
    ]
    model = Text().eval()
    with torch.no_grad():
        full = model(ids, mask)["last"]
    settings = {"layers": {"out": ""}, "reduction": lambda out: out[:, 0]}
    torch.testing.assert_close(pooled(model, loader, **settings)["out"], full[:, 0])
    result = quiet({"t": model}, loader, layers={"t": {"out": "", "embed": "embed"}}, features={"f": full})
    assert result.streams == ("t", "labels", "f")
    assert result.matrix("t", "f").loc["out", "f"] == pytest.approx(1, abs=1e-6)
    scaled = [batch | {"scale": torch.full((10,), 2.0)} for batch in loader]
    torch.testing.assert_close(pooled(model, scaled, **settings)["out"], 2 * full[:, 0])
    plain = pooled(model, scaled, **settings, transform=lambda x: {k: x[k] for k in loader[0] if k in x})
    torch.testing.assert_close(plain["out"], full[:, 0])
    with pytest.raises(ValueError, match="views, pixels: expected batches of one tensor, got a dict"):
        compare({"t": model}, loader, layers=["embed"], pixels=True)
    one = {"t": nn.Sequential(nn.Embedding(20, 6))}
    taken = quiet(one, loader, layers=["0"], transform=lambda batch: batch["input_ids"])
    assert taken.streams == ("t", "labels")


# ---- anything at the public doors --------------------------------------------------------------------------------------

ARGUMENTS = r"^(x|y|k|query|model|features|images|labels|layers|x, y|features, f|f|a|compare|models, features)\b"
numbers = st.sampled_from(
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int32, torch.int64]
    + [torch.bool, torch.complex64, torch.uint16, torch.float8_e4m3fn]
)


@st.composite
def values(draw):
    """A value of some shape, dtype, layout and container; and its exact numbers as float64, None if it has none."""
    shape = draw(
        st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)
        | st.tuples(st.integers(4, 12), st.integers(1, 9))
    )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 3
    x = draw(st.sampled_from([lambda v: v, lambda v: v * 0, lambda v: v / 0 if v.numel() else v, lambda v: v + 100]))(x)
    dtype = draw(numbers)
    x = x.nan_to_num(0, 0, 0).abs().to(dtype) if dtype in (torch.uint8, torch.uint16, torch.bool) else x.to(dtype)
    layout = draw(st.sampled_from(["plain", "expanded", "transposed", "gradient", "sparse", "meta"]))
    if layout == "expanded" and x.ndim and len(x):
        x = x[:1].expand(x.shape)
    elif layout == "transposed" and x.ndim == 2:
        x = x.T.contiguous().T
    elif layout == "gradient" and dtype in (torch.float32, torch.float64):
        x = x.requires_grad_()
    elif layout in ("sparse", "meta") and dtype == torch.float32:
        return x.to_sparse() if layout == "sparse" else x.to("meta")
    kinds = ["tensor", "array", "list", "nested list", "pandas", "strings", "dict", "none"]
    kind = draw(st.sampled_from(kinds))
    if kind == "tensor" or dtype in (torch.bfloat16, torch.float8_e4m3fn) or x.requires_grad:
        return x
    if kind == "pandas":
        return pd.DataFrame(x.numpy()) if x.ndim == 2 else pd.Series(x.numpy()) if x.ndim == 1 else x.numpy()
    given = [x, x.numpy(), list(x) if x.ndim else [x], x.tolist(), None, ["a"] * 8, {"x": x}, None]
    return given[kinds.index(kind)]


def right_or_refused(call, check):
    """The value is right, or the error is a ValueError or TypeError that begins with the argument's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call()
        except (ValueError, TypeError) as error:
            assert pd.Series([str(error)]).str.contains(ARGUMENTS).all(), f"{type(error).__name__}: {error}"
            return
        check(result)


def exact(value):
    value = value["x"] if isinstance(value, dict) else value
    value = value.detach() if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    return value.double().reshape(len(value), -1)


def same(value, x, y):
    x, y = exact(x), exact(y)
    own = song(gram(x), gram(x)) * song(gram(y), gram(y))
    if np.isnan(value) or not own > 0:
        variances = [float(v.var(0).sum() / v.square().mean().clamp_min(1e-300)) for v in (x, y)]
        assert np.isnan(value) == (min(variances) < 1e-9) or not own > 1e-9
    else:
        assert value == pytest.approx(song(gram(x), gram(y)) / own**0.5, abs=1e-4)


FUZZ = {"max_examples": 150, "deadline": None}
FUZZ["suppress_health_check"] = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(**FUZZ)
@given(values(), values())
def test_cka_of_anything(x, y):
    right_or_refused(lambda: cka(x, y), lambda value: same(value, x, y))
    right_or_refused(
        lambda: compare(features={"f": x, "a": {"b": y}}, batch_size=16),
        lambda result: same(result.matrix("f", "a").iloc[0, 0], x, y),
    )


@settings(**FUZZ)
@given(values(), st.lists(st.integers(-2, 9), max_size=3), st.integers(-1, 9))
def test_neighbours_and_disagreement_of_anything(x, query, k):
    def check(result):
        v = torch.nn.functional.normalize(exact(x))
        for i, row in zip(query, result.tolist()):
            assert i not in row and len(set(row)) == k
            best = (v @ v[i])[[j for j in range(len(v)) if j != i]].sort(descending=True).values[:k]
            torch.testing.assert_close((v @ v[i])[row], best, atol=1e-6, rtol=1e-6)

    right_or_refused(lambda: neighbours(x, query, k), check)
    right_or_refused(
        lambda: disagreement(x, x), lambda parts: torch.testing.assert_close(parts.max(), parts.new_zeros(()))
    )


@settings(**FUZZ)
@given(values(), values(), st.sampled_from([None, "all", ["0"], ["1", "0"], [nn.Linear], ["*"], ["2"], 3, {"l": "0"}]))
def test_networks_take_anything(images, labels, layers):
    width = images.shape[1] if hasattr(images, "shape") and len(images.shape) == 2 and images.shape[1] else 3
    model = nn.Sequential(nn.Linear(width, 4), nn.ReLU()).eval()

    def check(features):
        x = images.detach() if isinstance(images, torch.Tensor) else torch.as_tensor(np.asarray(images))
        with torch.no_grad():
            expected = model[0](x.float())
        expected = expected.mean(tuple(range(1, x.ndim - 1))) if x.ndim > 2 else expected
        for name in {"0", "l"} & set(features):
            torch.testing.assert_close(features[name], expected, atol=1e-3, rtol=1e-3, equal_nan=True)

    right_or_refused(lambda: pooled(model, images, layers), check)
    right_or_refused(
        lambda: compare({"a": model}, images, labels=labels, layers=layers), lambda result: result.table("a")
    )
