"""Images: drawn as their factors say, split without overlap, read as they are, and refused with a reason."""

import os
import re
import urllib.error

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

from repsim import data
from repsim.data import ImageSet, as_input, fingerprint, load


def images(n, size=8, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def image_set(n=20, classes=2):
    return ImageSet(images(n), torch.arange(n) % classes, tuple(map(str, range(classes))))


def rows(part):
    """The images as a set of byte strings."""
    return {image.numpy().tobytes() for image in part.images}


def write(folder, n=6, size=(10, 10), classes=("cat", "dog"), parts=("train", "test"), suffix=".png"):
    """A folder of n random images for each part and class; returns the pixels by file."""
    pixels = {}
    for part in parts:
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                path = folder / part / name / f"{i}{suffix}"
                pixels[path] = np.random.default_rng(len(pixels)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels[path]).save(path)
    return pixels


# Image sets


def test_as_input_is_the_fixed_scale():
    x = images(4)
    expected = (x.double() / 255 - 0.5) / 0.25
    assert as_input(x).dtype == torch.float32
    torch.testing.assert_close(as_input(x).double(), expected, atol=5e-7, rtol=0)
    assert x.equal(images(4)), "the images were changed"
    assert as_input(x[:, :1]).equal(as_input(x)[:, :1]), "grey images have the same scale"


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (images(2).float(), TypeError, "images: expected uint8 .* got torch.float32"),
        (images(2)[0], ValueError, r"got \(3, 8, 8\)"),
        (images(2)[:, :2], ValueError, r"got \(2, 2, 8, 8\)"),
        (images(2).permute(0, 2, 3, 1), ValueError, r"got \(2, 8, 8, 3\)"),
    ],
)
def test_images_are_checked_at_the_door(bad, error, message):
    with pytest.raises(error, match=message):
        as_input(bad)
    with pytest.raises(error, match=message):
        ImageSet(bad, torch.zeros(len(bad), dtype=torch.int64), ("a",))


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (torch.zeros(3, dtype=torch.int64), ValueError, r"labels: expected .* for each of 4 images, got shape \(3,\)"),
        (torch.zeros(4), TypeError, "labels: expected int64, got torch.float32"),
        (torch.tensor([0, 1, 2, 0]), ValueError, "labels: expected 0 to 1 .* got 0 to 2"),
        (torch.tensor([0, -1, 1, 0]), ValueError, "got -1 to 1"),
    ],
)
def test_labels_are_checked_at_the_door(labels, error, message):
    with pytest.raises(error, match=message):
        ImageSet(images(4), labels, ("a", "b"))


@pytest.mark.parametrize(
    "index, expected",
    [
        (torch.tensor([3, 0]), [3, 0]),
        ([1, 1], [1, 1]),
        (slice(-2, None), [4, 5]),
        (torch.arange(6) > 3, [4, 5]),
        ([], []),
        (np.array([5]), [5]),
    ],
)
def test_take_keeps_images_labels_and_factors_together(index, expected):
    whole = ImageSet(images(6), torch.arange(6), tuple("abcdef"), pd.DataFrame({"x": range(6)}))
    part = whole.take(index)
    assert part.labels.tolist() == part.factors.x.tolist() == expected
    assert part.images.equal(whole.images[expected]) and list(part.factors.index) == list(range(len(expected)))


def test_fingerprint_tells_images_labels_and_classes_apart():
    a = image_set()
    other = a.images.clone()
    other[7, 2, 3, 3] ^= 1
    different = [
        ImageSet(other, a.labels, a.classes),
        ImageSet(a.images, 1 - a.labels, a.classes),
        ImageSet(a.images, a.labels, ("0", "2")),
        ImageSet(a.images.reshape(20, 3, 4, 16), a.labels, a.classes),
        a.take(slice(0, 19)),
    ]
    strided = ImageSet(a.images.to(memory_format=torch.channels_last), a.labels.clone(), a.classes)
    assert fingerprint(strided) == fingerprint(a) and len(fingerprint(a)) == 16
    assert len({fingerprint(s) for s in [a, *different]}) == 6


# Splits


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_every_beginning_of_a_stratified_order_has_all_classes_in_proportion(counts, seed, share):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = data.stratified_order(labels, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(len(labels)))
    part = labels[order[: round(share * len(labels))]].bincount(minlength=len(counts))
    of = part / torch.tensor(counts)  # the shares of the classes differ by one image of the smaller ones at most
    slack = 1 / torch.tensor(counts)
    assert ((of[:, None] - of[None]).abs() <= (slack[:, None] + slack[None]) / 2 + 1e-6).all()


def test_a_study_of_some_classes_has_their_images_in_order_and_labels_of_its_own():
    whole = load("shapes", train_images=60, test_images=30, image_size=16)
    known = whole.train.classes
    chosen = (known[7], known[2], known[4])
    part = data.of_classes(whole, chosen)
    for old, new in zip((whole.train, whole.validation, whole.test), (part.train, part.validation, part.test)):
        rows = [i for i, label in enumerate(old.labels.tolist()) if known[label] in chosen]
        assert new.classes == chosen and new.images.equal(old.images[rows])
        assert [chosen[label] for label in new.labels] == [known[label] for label in old.labels[rows]]
        assert new.factors.x.tolist() == old.factors.x.iloc[rows].tolist()
    assert fingerprint(data.of_classes(whole, known).train) == fingerprint(whole.train)


@pytest.mark.parametrize(
    "classes, message", [(["disc", "cube"], "'cube'"), (["disc"], "at least 2"), (["disc", "disc"], "different")]
)
def test_classes_that_are_unknown_too_few_or_named_twice_are_refused(classes, message):
    splits = load("shapes", train_images=20, test_images=20, image_size=16)
    with pytest.raises(ValueError, match=f"classes: .*{message}"):
        data.of_classes(splits, classes)


def test_splits_are_stratified_disjoint_and_seeded(tmp_path):
    write(tmp_path / "pets", n=22)
    splits = load(tmp_path / "pets", train_images=30, test_images=10, validation=0.2, root=tmp_path)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [30, 6, 10]
    assert [p.labels.bincount().tolist() for p in (splits.train, splits.validation, splits.test)] == [
        [15, 15],
        [3, 3],
        [5, 5],
    ]
    assert not rows(splits.train) & rows(splits.validation)
    whole = {part: {p.tobytes() for p in folder_pixels(tmp_path / "pets" / part)} for part in ("train", "test")}
    assert rows(splits.train) | rows(splits.validation) < whole["train"] and rows(splits.test) < whole["test"]
    again = load(tmp_path / "pets", train_images=30, test_images=10, validation=0.2, root=tmp_path)
    other = load(tmp_path / "pets", train_images=30, test_images=10, validation=0.2, root=tmp_path, seed=1)
    for part in ("train", "validation", "test"):
        assert fingerprint(getattr(again, part)) == fingerprint(getattr(splits, part))
        assert fingerprint(getattr(other, part)) != fingerprint(getattr(splits, part))
    assert splits.train.labels.tolist() != sorted(splits.train.labels.tolist()), "in the folder's order"


def folder_pixels(folder):
    return [np.asarray(Image.open(p)).transpose(2, 0, 1) for p in sorted(folder.rglob("*.png"))]


def test_without_numbers_all_images_are_used(tmp_path):
    write(tmp_path / "pets", n=22)
    splits = load(tmp_path / "pets", root=tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 4, 44)
    assert len(load(tmp_path / "pets", root=tmp_path, validation=0).train) == 44


def test_more_images_than_there_are_is_an_error_with_the_numbers(tmp_path):
    write(tmp_path / "pets", n=10)
    assert len(load(tmp_path / "pets", train_images=18, root=tmp_path).validation) == 2
    message = "train_images: expected fewer, got 19 and 2 for validation .*: pets has 20 images to train on"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "pets", train_images=19, root=tmp_path)
    with pytest.raises(ValueError, match="test_images: expected at most 20, .* got 21"):
        load(tmp_path / "pets", test_images=21, root=tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"train_images": 0}, "train_images: expected a positive"),
        ({"test_images": -1}, "test_images: expected a positive"),
        ({"image_size": 31.5}, "image_size: expected a positive whole number or None, got 31.5"),
        ({"image_size": 4}, "image_size: expected at least 8"),
        ({"validation": 1.5}, "validation: expected a fraction"),
        ({"validation": float("nan")}, "validation: expected a fraction"),
        ({"context": 1.5}, "context: expected a number of 0 to 1, got 1.5"),
        ({"saturation": float("nan")}, "saturation: expected a number of 0 to 1, got nan"),
        ({"source": "cifar10", "context": 0.8}, "context: expected 0, as only shapes have one, got 0.8 with 'cifar10'"),
        ({"source": "pets", "saturation": 0.5}, "saturation: expected 1, .* got 0.5 with 'pets'"),
    ],
)
def test_numbers_are_checked_at_the_door(settings, message):
    with pytest.raises(ValueError, match=message):
        load(**{"source": "shapes"} | settings)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(FileNotFoundError, match="shapes, cifar10, cifar100, svhn, stl10, fashionmnist, .*'cifar11'"):
        load("cifar11")


# torchvision's sets


class Colour:  # as torchvision's CIFAR and SVHN hold their images
    def __init__(self, root, train=True, download=False):
        assert download
        self.data = np.random.default_rng(train).integers(0, 256, (44, 6, 6, 3), dtype=np.uint8)
        self.targets, self.classes = [i % 2 for i in range(44)], ["cat", "dog"]


class Grey:
    def __init__(self, root, split="train", download=False):
        assert split in ("train", "test")
        self.data = torch.from_numpy(np.random.default_rng(len(split)).integers(0, 256, (44, 6, 6), dtype=np.uint8))
        self.labels = np.arange(44) % 3


def test_torchvision_sets_become_tensors(monkeypatch, tmp_path):
    monkeypatch.setitem(data.TORCHVISION, "cifar10", ("CIFAR-10", Colour, "train"))
    splits = load("CIFAR10", root=tmp_path)
    assert splits.name == "CIFAR-10" and splits.train.classes == ("cat", "dog")
    assert splits.train.images.shape == (40, 3, 6, 6) and len(splits.test) == 44
    whole = Colour(tmp_path, train=False, download=True)
    assert rows(splits.test) == {np.ascontiguousarray(x.transpose(2, 0, 1)).tobytes() for x in whole.data}
    labels = {x.transpose(2, 0, 1).tobytes(): y for x, y in zip(whole.data, whole.targets)}
    assert [labels[x.numpy().tobytes()] for x in splits.test.images] == splits.test.labels.tolist()

    monkeypatch.setitem(data.TORCHVISION, "svhn", ("SVHN", Grey, "split"))
    splits = load("svhn", root=tmp_path, image_size=12)
    assert splits.train.images.shape == (40, 3, 12, 12) and splits.train.classes == ("0", "1", "2")
    assert splits.train.images[:, 0].equal(splits.train.images[:, 2]), "grey is repeated"


@pytest.mark.parametrize("name", data.TORCHVISION)
def test_offline_says_what_was_tried_and_what_to_do(monkeypatch, tmp_path, name):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.utils, "_urlretrieve", offline)
    monkeypatch.setattr(datasets.utils, "_get_redirect_url", lambda url, max_hops=3: url)
    title, dataset, _ = data.TORCHVISION[name]
    with pytest.raises(RuntimeError) as caught:
        load(name, root=tmp_path)
    message = str(caught.value)
    assert title in message and str(tmp_path) in message and "no route to host" in message and "\n" not in message
    call = re.search(r"run torchvision\.datasets\.(\w+\(.*?\)),", message)[1]
    with pytest.raises((urllib.error.URLError, RuntimeError), match="no route to host"):  # its call downloads
        eval(call, {dataset.__name__: dataset})


# Folders


def test_a_folder_is_read_as_it_is_with_torchvisions_labels(tmp_path, monkeypatch):
    write(tmp_path / "pets", n=4, size=(12, 9), classes=("zebra", "ant", "Cat"))
    (tmp_path / "pets" / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "pets" / "train" / "zebra" / "notes.txt").write_text("not an image")
    monkeypatch.setenv("HOME", str(tmp_path))
    splits = load("~/pets", root="~/cache")
    reference = datasets.ImageFolder(tmp_path / "pets" / "test")
    assert splits.name == "pets" and list(splits.test.classes) == reference.classes
    expected = {np.asarray(x).transpose(2, 0, 1).tobytes(): y for x, y in reference}
    assert splits.test.images.shape == (12, 3, 9, 12)
    assert [expected[x.numpy().tobytes()] for x in splits.test.images] == splits.test.labels.tolist()
    assert len(list((tmp_path / "cache" / "folders").glob("pets-*.safetensors"))) == 1


def test_a_folder_is_decoded_once_until_a_file_changes(tmp_path, monkeypatch):
    pixels = write(tmp_path / "pets")
    calls = []
    decode = data._decode
    monkeypatch.setattr(data, "_decode", lambda *args: calls.append(1) or decode(*args))
    first = load(tmp_path / "pets", root=tmp_path)
    assert fingerprint(load(tmp_path / "pets", root=tmp_path).train) == fingerprint(first.train) and len(calls) == 1
    load(tmp_path / "pets", root=tmp_path, image_size=5)
    assert len(calls) == 2
    changed = next(iter(pixels))
    Image.fromarray(255 - pixels[changed]).save(changed)
    os.utime(changed, ns=(1, 1))
    again = load(tmp_path / "pets", root=tmp_path)
    assert len(calls) == 3
    both = [rows(s.train) | rows(s.validation) for s in (first, again)]
    assert len(both[0] - both[1]) == 1


@pytest.mark.parametrize(
    "options, fingerprints",
    [
        ({}, ("c7b7215fc37adeb8", "a2348305f4f7e461", "e4102a81a8a8baf6")),
        (
            {"train_images": 30, "test_images": 10, "validation": 0.2, "seed": 1},
            ("386bd7a9baed4f79", "98135006d71307f6", "d67a8dcc485d88e7"),
        ),
        ({"image_size": 6}, ("9b83458c0edf0bfb", "f311ca2b74d5bf79", "b962aa452035782d")),
    ],
)
def test_a_folder_has_the_fingerprints_it_had(tmp_path, options, fingerprints):
    """Published networks are known by these: other pixels, another order or another subset would be other networks."""
    write(tmp_path / "pets", n=22)
    assert data.summary(load(tmp_path / "pets", root=tmp_path, **options)).fingerprints == fingerprints


def test_a_damaged_cache_is_made_again(tmp_path):
    write(tmp_path / "pets")
    first = load(tmp_path / "pets", root=tmp_path)
    (cache,) = (tmp_path / "folders").glob("*.safetensors")
    cache.write_bytes(cache.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="made again"):
        again = load(tmp_path / "pets", root=tmp_path)
    assert fingerprint(again.train) == fingerprint(first.train)
    assert [p.name for p in (tmp_path / "folders").iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.parametrize("size", [(10, 10), (120, 130)])  # decoded one by one, and in threads
def test_mixed_sizes_need_an_image_size(tmp_path, size):
    write(tmp_path / "pets", size=size)
    Image.new("RGB", (14, 10)).save(tmp_path / "pets" / "test" / "dog" / "odd.png")
    with pytest.raises(
        ValueError, match=r"odd\.png: 14x10 pixels where .* has \d+x\d+; .*image_size=64.*-p image_size 64"
    ):
        load(tmp_path / "pets", root=tmp_path)
    assert load(tmp_path / "pets", root=tmp_path, image_size=8).test.images.shape == (13, 3, 8, 8)


def test_resizing_keeps_the_proportions_and_the_middle(tmp_path):
    write(tmp_path / "pets", n=1)
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (200, 100, 50)  # the middle third is what is left
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            Image.fromarray(wide).save(tmp_path / "pets" / part / name / "0.png")
    splits = load(tmp_path / "pets", root=tmp_path, image_size=10)
    colour = splits.test.images[0, :, 2:-2, 2:-2]
    assert colour.equal(torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand_as(colour))


def read(tmp_path, image, name="seen.png", **options):
    """The pixels (h, w, 3) that are read of one more image in a folder."""
    write(tmp_path / "pets", n=1, classes=("dog",), parts=("train", "test"))
    for part in ("train", "test"):
        (tmp_path / "pets" / part / "cat").mkdir()
        image.save(tmp_path / "pets" / part / "cat" / name, **options)
    splits = load(tmp_path / "pets", root=tmp_path, validation=0)
    (cat,) = splits.train.images[splits.train.labels == 0]
    return cat.permute(1, 2, 0).numpy()


GREY = np.arange(100, dtype=np.uint8).reshape(10, 10)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY).convert("RGBA"),
        Image.fromarray(GREY).convert("P"),
        Image.fromarray(GREY).convert("LA"),
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(GREY.astype(np.int32) * 257),
    ],
    ids=lambda image: image.mode,
)
def test_images_of_every_mode_are_read_as_they_are_shown(tmp_path, image):
    assert (read(tmp_path, image, "seen.tif" if image.mode == "I" else "seen.png") == GREY[..., None]).all()


def test_ink_is_read_as_light(tmp_path):
    ink = np.zeros((10, 10, 4), np.uint8)
    ink[..., 1] = 255  # magenta
    assert np.abs(read(tmp_path, Image.fromarray(ink, "CMYK"), "ink.tif").astype(int) - (255, 0, 255)).max() < 5


def test_what_is_transparent_is_white(tmp_path):
    alpha = np.tile(np.array([0, 128, 255], np.uint8).repeat(10)[:10], (10, 1))
    black = np.dstack([np.zeros((10, 10, 3), np.uint8), alpha])
    assert np.abs(read(tmp_path, Image.fromarray(black)).astype(int) - (255 - alpha.astype(int))[..., None]).max() <= 1


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.fromarray(GREY % 2, "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    seen = read(tmp_path, image, transparency=0)
    assert (seen[GREY % 2 == 0] == 255).all() and (seen[GREY % 2 == 1] == (0, 0, 255)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_data_say(tmp_path, orientation):
    upright = np.zeros((10, 10, 3), np.uint8)
    upright[:3, :5] = 255  # a corner, wider than high
    turned = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),  # shown a quarter turn clockwise
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (read(tmp_path, Image.fromarray(np.ascontiguousarray(turned)), exif=exif) == upright).all()


def test_pixels_without_a_fixed_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"deep\.tiff: .*no 8 or 16 bits \(mode F\); convert them to 8"):
        read(tmp_path, Image.fromarray(np.ones((10, 10), np.float32)), "deep.tiff")


def test_grey_images_on_request(tmp_path):
    write(tmp_path / "pets", n=22)
    colour, grey = (load(tmp_path / "pets", root=tmp_path, channels=channels) for channels in (3, 1))
    assert grey.train.images.shape == (40, 1, 10, 10) and grey.test.labels.equal(colour.test.labels)
    for image, expected in zip(grey.train.images, colour.train.images):
        assert (image[0].numpy() == np.asarray(Image.fromarray(expected.permute(1, 2, 0).numpy()).convert("L"))).all()
    assert load("shapes", train_images=20, channels=1).train.images.shape == (20, 1, 32, 32)


def test_what_is_hidden_is_no_image(tmp_path):
    write(tmp_path / ".cache" / "pets", n=12)  # hidden above the folder: no matter
    folder = tmp_path / ".cache" / "pets"
    before = load(folder, root=tmp_path)
    for hidden in ("train/cat/.ipynb_checkpoints", "train/cat/deep/.Trash-1000/er", "test/.thumbnails"):
        (folder / hidden).mkdir(parents=True)
        Image.new("RGB", (10, 10)).save(folder / hidden / "0-checkpoint.png")
    (folder / "train" / "dog" / "._00.png").write_bytes(b"\0\5\26\7" + bytes(100))
    assert data.summary(load(folder, root=tmp_path)) == data.summary(before)


@pytest.mark.parametrize("size", [(10, 10), (120, 130)])
@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_a_corrupt_image_is_named_and_nothing_is_cached(tmp_path, content, size):
    write(tmp_path / "pets", size=size)
    bad = tmp_path / "pets" / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[: len(bad.read_bytes()) // 2] if content == "half" else content)
    with pytest.raises(ValueError, match=r"train/dog/3\.png: cannot be read as an image"):
        load(tmp_path / "pets", root=tmp_path)
    assert not list((tmp_path / "folders").glob("*.safetensors"))


@pytest.mark.parametrize(
    "classes, of_test, change, message",
    [
        ([], [], None, r"No such file or directory: .*pets/train'"),
        ([], [], lambda folder: folder.write_bytes(b"PK"), "Not a directory"),
        (["cat", "dog"], [], None, r"No such file or directory: .*pets/test'"),
        ([], [], lambda folder: (folder / "train").mkdir(parents=True), "class_to_index"),
        (["cat", "dog"], ["cat", "dog"], lambda folder: (folder / "train" / "bird").mkdir(), "classes bird"),
        (["cat", "dog"], ["cat", "dog"], lambda f: (f / "train/cat/0.png").rename(f / "train/cat/.0.png"), "classes cat"),
        (["cat", "dog"], ["cat", "wolf"], None, r"pets: .* same 2 or more classes .*; only in one: \['dog', 'wolf'\]"),
        (["cat"], ["cat"], None, r"pets: expected the same 2 or more classes in train and test, got 1 and 1"),
    ],
)  # fmt: skip
def test_a_folder_of_another_layout_is_refused_with_a_reason(tmp_path, classes, of_test, change, message):
    write(tmp_path / "pets", n=1, classes=classes, parts=("train",))
    write(tmp_path / "pets", n=1, classes=of_test, parts=("test",))
    if change:
        change(tmp_path / "pets")
    with pytest.raises(ValueError if "same" in message else FileNotFoundError, match=message) as caught:
        load(tmp_path / "pets", root=tmp_path)
    assert "train/CLASS/" in str(caught.value) or "same" in message
