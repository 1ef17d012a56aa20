"""What two layers agree on, against naive references; the view's controls and its still figures."""

import io
import json
from collections import OrderedDict

import altair as alt
import ipywidgets as widgets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.models import squeezenet1_1

from repsim import explorer, models, shapes, store
from repsim.charts import Picture
from repsim.cka import cka, compare

IMAGES, LABELS, _ = shapes.draw(24, seed=3, size=32)


def features(n=30, p=6, seed=0):
    return torch.randn(n, p, generator=store.generator("explorer", seed))


# ----- neighbours, disagreement


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 20), p=st.integers(1, 5), seed=st.integers(0, 99), data=st.data())
def test_neighbours_are_those_of_a_plain_search(n, p, seed, data):
    k = data.draw(st.integers(1, n - 1))
    query = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3))
    x = features(n, p, seed).double()
    for i, found in zip(query, explorer.neighbours(x, query, k).tolist()):
        cosine = {j: float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for j in range(n) if j != i}
        assert i not in found and len(set(found)) == k
        assert [cosine[j] for j in found] == pytest.approx(sorted(cosine.values(), reverse=True)[:k], abs=1e-12)


def test_equal_images_are_neighbours_in_the_order_of_their_numbers_and_zeros_are_nobodys():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert explorer.neighbours(x, [1], 4).tolist() == [[0, 2, 3, 4]]


@pytest.mark.parametrize(
    "query, k, words", [([0], 0, "k: expected 1 to 29"), ([0], 30, "got 30"), ([30], 3, "got 30"), ([-1], 3, "-1")]
)
def test_neighbours_refuses_what_there_is_not(query, k, words):
    with pytest.raises(ValueError, match=words):
        explorer.neighbours(features(), query, k)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(4, 25), p=st.integers(2, 6), q=st.integers(2, 6), seed=st.integers(0, 99))
def test_disagreement_is_an_exact_division_of_one_minus_cka(n, p, q, seed):
    x, y = features(n, p, seed), features(n, q, seed + 100)
    parts = explorer.disagreement(x, y)
    assert parts.shape == (n,) and (parts >= 0).all()
    assert float(parts.sum()) == pytest.approx(1 - cka(x, y), abs=1e-9)


def test_disagreement_of_an_image_is_its_row_of_the_difference_by_hand():
    n, x, y = 7, features(7, 3, 1).double(), features(7, 4, 2).double()
    centred = []
    for f in (x, y):
        gram = [[float(f[i] @ f[j]) if i != j else 0.0 for j in range(n)] for i in range(n)]
        sums, total = [sum(row) for row in gram], sum(map(sum, gram))
        u = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            for j in range(n):
                if i != j:
                    u[i, j] = gram[i][j] - (sums[i] + sums[j]) / (n - 2) + total / ((n - 1) * (n - 2))
        centred.append(u / (u**2).sum().sqrt())
    expected = [float(((centred[0][i] - centred[1][i]) ** 2).sum()) / 2 for i in range(n)]
    assert explorer.disagreement(x, y).tolist() == pytest.approx(expected, abs=1e-10)


def test_the_image_that_was_changed_disagrees_most_and_equal_layers_do_not():
    x = features(40, 8)
    assert float(explorer.disagreement(x, 3 * x @ torch.linalg.qr(features(8, 8, 5)).Q + 7).sum()) == pytest.approx(
        0, abs=1e-5
    )
    y = x.clone()
    y[17] = -4 * y[17]
    assert int(explorer.disagreement(x, y).argmax()) == 17


def test_disagreement_refuses_constant_features_and_other_images():
    with pytest.raises(ValueError, match="y: expected features that vary"):
        explorer.disagreement(features(), torch.ones(30, 4))
    for other in (features(29), features(30).flatten(), features(3)):
        with pytest.raises(ValueError, match="[xy]: expected"):
            explorer.disagreement(features(3) if len(other) == 3 else features(), other)


def test_mutual_neighbours_of_all_layers_are_those_of_each_pair():
    a, b = {"u": features(20, 4, 1), "v": features(20, 3, 2)}, {"w": features(20, 5, 3) + 1}
    table = explorer.mutual_neighbours(a, b, k=4)
    assert list(zip(table["layer_a"], table["layer_b"])) == [("u", "w"), ("v", "w")]
    for row in table.itertuples():
        lists = [explorer.neighbours(x, range(20), 4).tolist() for x in (a[row.layer_a], b[row.layer_b])]
        shared = [len(set(p) & set(q)) for p, q in zip(*lists)]
        assert row.value == pytest.approx(sum(shared) / 80)
    assert explorer.mutual_neighbours(a, a, k=4).set_index(["layer_a", "layer_b"])["value"]["u", "u"] == 1


# ----- the view


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {"ours": models.build("resnet18", width=4), "squeezenet": squeezenet1_1(weights=None)}


LAYERS = {"ours": ["stem", "layer2.0", "pool"], "squeezenet": {"early": "features.3", "late": "features.12"}}


@pytest.fixture
def view(networks):
    return explorer.explore(networks, IMAGES, labels=LABELS, classes=shapes.SHAPES, layers=LAYERS, batch_size=12)


def text(view):
    return view.status.value


def test_three_lines_show_own_networks(view, networks):
    assert isinstance(view, widgets.VBox)
    assert [menu.options for menu in view.layers] == [("stem", "layer2.0", "pool"), ("early", "late")]
    assert view.measure.options == ("unbiased CKA", "biased CKA", "mutual 10-NN")
    mixed = IMAGES[torch.randperm(24, generator=store.generator("order"))]
    expected = compare(networks, mixed, layers=LAYERS, batch_size=12).matrix("ours", "squeezenet").loc["pool", "late"]
    assert f"unbiased CKA {expected:.2f}" in text(view) and "pool" in text(view) and "late" in text(view)
    for picture in (view.faces, view.apart):
        assert picture.value.count("<img") == 1 and picture.value.count('alt="') == 1
    beside = next(row for row in view.children if view.map in getattr(row, "children", ()))
    assert view.faces in beside.children, "the neighbours stand beside the map"


def test_a_click_on_a_cell_chooses_both_layers(view):
    before = view.faces.value
    # what JupyterChart receives from the browser
    view.map._vl_selections = {
        "cell": {
            "value": {
                "layer_a": ["stem"],
                "layer_b": ["early"],
                "vlPoint": {"or": [{"layer_a": "stem", "layer_b": "early"}]},
            },
            "store": [],
        }
    }
    assert [menu.value for menu in view.layers] == ["stem", "early"]
    assert view.map.params.row == "stem" and view.map.params.column == "early"
    assert "stem" in text(view) and view.faces.value != before


def test_menus_do_what_a_click_does(view):
    view.layers[0].value = "layer2.0"
    assert view.map.params.row == "layer2.0" and "layer2.0" in text(view)


def test_another_network_or_measure_redraws_the_map(view):
    assert "squeezenet" in json.dumps(view.map.spec)
    view.networks[1].value = "ours"
    assert "squeezenet" not in json.dumps(view.map.spec)
    assert view.layers[1].options == ("stem", "layer2.0", "pool")
    view.layers[1].value = "pool"
    assert "unbiased CKA 1.00" in text(view)
    view.measure.value = "mutual 10-NN"
    assert "mutual 10-NN 1.00" in text(view) and "mutual 10-NN" in json.dumps(view.map.spec)
    view.layers[1].value = "stem"  # the new map listens too
    assert view.map.params.column == "stem"


def test_images_are_chosen_by_number_and_by_button(view):
    assert view.query.value == ", ".join(map(str, view.differ[:4]))
    view.query.value = "3, 5"
    assert "image 3:" in view.faces.value and "image 5:" in view.faces.value
    view.buttons[1].click()
    assert view.query.value == "6, 7, 8, 9"
    view.query.value = "twelve"
    assert 'role="alert"' in text(view) and view.faces.value == ""
    view.query.value = "99 <b>"
    assert "&lt;b&gt;" in text(view)
    view.buttons[0].click()
    assert view.query.value == ", ".join(map(str, view.differ[:4])) and 'role="alert"' not in text(view)


def test_what_is_stored_of_the_view_is_the_same_every_time_and_says_what_it_is(view):
    data = view._repr_mimebundle_()
    assert data["text/plain"] == "Explorer of ours, squeezenet: run this cell in JupyterLab to use it"


def test_the_view_asks_the_network_for_nothing(view):
    library, script = view.map.library, view.map._esm
    assert len(library) > 500_000 and len(script) < 1000 and "https://esm.sh" not in library + script


# ----- the same without widgets


def test_still_figures_hold_what_the_view_shows(view):
    heatmap, faces, apart, curves = view.still("layer2.0", "early", query=[3, 5])
    assert isinstance(heatmap, alt.LayerChart) and isinstance(curves, alt.HConcatChart)
    assert isinstance(faces, Picture) and isinstance(apart, Picture)
    assert "image 3:" in faces.alt and "ours layer2.0" in faces.alt and "squeezenet early" in apart.alt
    assert Image.open(io.BytesIO(faces.png)).width == 2 * faces.size[0] <= 2 * 960
    lines = {row.get("name") for rows in curves.to_dict()["datasets"].values() for row in rows} - {None}
    assert lines == {"with the classes", "with its view (simclr)"}
    assert all(f.to_dict()["description"] for f in (heatmap, curves))


def test_the_outline_is_around_the_chosen_cell(view):
    parameters = {p["name"]: p.get("value") for p in view.still("stem", "late")[0].to_dict()["params"]}
    assert parameters["row"] == "stem" and parameters["column"] == "late"


def test_without_labels_and_views_there_are_no_curves(networks):
    floats = IMAGES.float() / 255
    layers = ["features.3", "features.12"]
    figures = explorer.explore({"n": networks["squeezenet"]}, floats, layers=layers).still(*layers)
    assert [type(f).__name__ for f in figures] == ["LayerChart", "Picture", "Picture"]
    assert figures[1].alt.startswith("Nearest images in n features.3 and n features.12")


def test_images_in_the_order_of_their_classes_have_class_curves(networks):
    order = LABELS.argsort(stable=True)
    seen = explorer.explore(networks, IMAGES[order], labels=LABELS[order], layers=LAYERS, batch_size=12)
    assert not seen.comparison.undefined


def test_grey_or_float_images_are_shown():
    net = nn.Sequential(OrderedDict(flat=nn.Flatten()))
    grey = explorer.explore({"n": net}, torch.randn(8, 1, 5, 5, generator=store.generator("grey")), layers=["flat"])
    assert grey.images.shape == (8, 3, 5, 5) and grey.images.dtype == torch.uint8
    assert grey.images.min() == 0 and grey.images.max() == 255
    digits = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=store.generator("digits"))
    one_channel = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    seen = explorer.explore({"n": one_channel}, digits.numpy(), labels=[0, 1, 2] * 4, layers=["0", "1"])
    assert torch.equal(seen.images, digits.expand(-1, 3, -1, -1)) and seen.names[:3] == [
        "class 0",
        "class 1",
        "class 2",
    ]
    expected = one_channel((digits / 255 - 0.5) / 0.25).mean((2, 3))
    torch.testing.assert_close(seen.features["n"]["1"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"images": [1, 2]}, "images: expected one tensor .* got list; of a loader make one"),
        ({"images": list(IMAGES)}, r"of a list torch.stack\(images\)"),
        ({"images": IMAGES.permute(0, 2, 3, 1).numpy()}, r"images: expected .*got shape \(24, 32, 32, 3\)"),
        ({"labels": LABELS.float()}, "labels: expected whole numbers"),
        ({"images": IMAGES[:4]}, "images: expected one tensor"),
        ({"labels": LABELS[:5]}, r"labels: expected \(24,\)"),
        ({"labels": LABELS, "classes": ["a"]}, "classes: expected a name for each of the labels, got 1"),
        ({"classes": ["a"]}, "classes: .* pass both or neither"),
    ],
)
def test_errors_at_the_door(networks, settings, words):
    with pytest.raises(ValueError, match=words):
        explorer.explore(networks, **{"images": IMAGES, "layers": LAYERS, **settings})


def test_unknown_layers_are_named(view):
    with pytest.raises(ValueError, match="layer_b: expected a layer of squeezenet, one of early, late, got 'pool'"):
        view.still("stem", "pool")
