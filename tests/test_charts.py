"""Charts as they are drawn: the tests read the scene graph that Vega lays out, and the picture, not our own settings."""

import base64
import functools
import io
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import vl_convert
from PIL import Image

from repsim import charts, objectives, palette, render

SL = ["stem", "layer1.0.residual", "layer1.0", "layer2.0.residual", "layer2.0", "pool", "head"]
SIMCLR = [*SL[:-1], "head.hidden", "head"]


@pytest.fixture(autouse=True)
def renderer():
    charts.use()


def cells(a="sl-0", b="simclr-0", rows=SL, cols=SIMCLR, gap=None):
    """Value 0.1 * row + 0.01 * column: every cell is recognised by its number."""
    table = [(a, b, r, c, 0.1 * i + 0.01 * j) for i, r in enumerate(rows) for j, c in enumerate(cols)]
    table = pd.DataFrame(table, columns=["a", "b", "layer_a", "layer_b", "cka"])
    table["low"], table["high"] = table["cka"] - 0.01, table["cka"] + 0.01
    if gap is not None:
        table.loc[(table["layer_a"] == gap[0]) & (table["layer_b"] == gap[1]), ["cka", "low", "high"]] = np.nan
    return table


def line(a="sl-0", b="simclr-0", layers=SL, start=0.9, slope=-0.1):
    values = start + slope * np.arange(len(layers))
    table = pd.DataFrame({"a": a, "b": b, "layer_a": layers, "layer_b": layers, "cka": values})
    return table.assign(low=values - 0.02, high=values + 0.02)


def history():
    return pd.DataFrame(
        [(n, e, 2 / e, 1 - 1 / e) for n in ("sl-0", "simclr-0") for e in (1, 2, 3)],
        columns=["network", "epoch", "loss", "accuracy"],
    )


def scores():
    return pd.DataFrame({"category": ["simclr", "sl"], "value": [0.4, 0.6], "low": [0.35, 0.55], "high": [0.45, 0.65]})


def moments(steps=(0, 1, 10)):
    return pd.concat([line(slope=-0.01 * (1 + i)).assign(epoch=s) for i, s in enumerate(steps)])


def panels():
    """Moments, the first of them closer to the second than four decimals tell."""
    table = pd.concat([moments((0, 0.00003, 10)).assign(panel=p) for p in ("one", "other", "third")])
    return table.assign(says=[f"at {e}" for e in table["epoch"]])


def timeline(table):
    return charts.timeline(table, "cka", "comparison", "epoch", "panel", "says", title="Moments", y_title="CKA")


EVERY = {
    "heatmap": lambda: charts.heatmap(cells(gap=("pool", "head"))),
    "heatmaps": lambda: charts.heatmap(pd.concat([cells(), cells("sl-0", "sl-0", SL, SL)])),
    "linked": lambda: charts.heatmap(cells(), linked=True),
    "curves": lambda: charts.curves(pd.concat([line(), line("sl-0", "sl-1", start=0.95)])),
    "panels": lambda: charts.curves(line(), kind="panels"),
    "timeline": lambda: timeline(panels()),
    "history": lambda: charts.history(history(), ["loss", "accuracy"], title="Training"),
    "bars": lambda: charts.bars(scores(), reference=0.1),
}


def draw(chart):
    """All marks of the drawn chart, in order: (mark type, name, items)."""
    return _draw(json.dumps(chart.to_dict()))


@functools.lru_cache(maxsize=64)
def _draw(spec):
    found = []

    def walk(node):
        if "marktype" in node:
            found.append((node["marktype"], node.get("name") or node.get("role") or "", node.get("items", [])))
        for child in node.get("items", []):
            walk(child)

    walk(vl_convert.vegalite_to_scenegraph(spec, vl_version=render.VEGA_LITE)["scenegraph"])
    return found


def texts(chart, name=""):
    return [item.get("text") for kind, n, items in draw(chart) if kind == "text" and name in n for item in items]


def tooltip(item):
    """The tooltip's fields, which Vega also gives to screen readers."""
    return dict(part.split(": ", 1) for part in item["description"].split("; "))


# ----- the renderer


@pytest.mark.parametrize("name", EVERY)
def test_every_chart_has_both_representations_and_alt_text(name):
    chart = EVERY[name]()
    data, about = chart._repr_mimebundle_(None, None)
    spec, image = data[render.MIME], Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert spec["$schema"] == "https://vega.github.io/schema/vega-lite/v5.json"
    assert set(data) == {render.MIME, "image/png", "text/plain"}
    assert image.mode == "P" and len(image.getcolors(256)) <= 256
    about = about["image/png"]
    assert (about["width"], about["height"]) == tuple(round(n / render.SCALE) for n in image.size)
    assert about["width"] <= 1000, "too wide for a notebook"
    assert about["alt"] == spec["description"] and len(about["alt"]) > 30
    assert data["text/plain"] == spec["title"]
    pixels = np.asarray(image.convert("RGB"))
    assert (pixels[0] == 255).all() and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10, "drawn on white, not blank"


@pytest.mark.parametrize("name", EVERY)
def test_every_chart_is_valid_for_vega_lite_5_and_draws_as_in_6(name):
    spec = EVERY[name]().to_dict()

    def shape(version):
        vega = vl_convert.vegalite_to_vega(spec, vl_version=version)

        def marks(node):
            return [(m["type"], m.get("name"), marks(m)) for m in node.get("marks", [])]

        def scales(node):
            own = {(s["name"], s["type"]) for s in node.get("scales", [])}
            return own.union(*(scales(m) for m in node.get("marks", [])))

        return marks(vega), scales(vega), {s["name"] for s in vega.get("signals", [])}

    old, new = shape(render.VEGA_LITE), shape(vl_convert.get_vegalite_versions()[-1])
    assert old[0] == new[0] and old[1] == new[1] and old[2] == new[2]


@pytest.mark.parametrize("name", EVERY)
def test_no_text_is_smaller_than_twelve_pixels_and_no_point_is_tiny(name):
    marks = draw(EVERY[name]())
    sizes = [item["fontSize"] for kind, _, items in marks if kind == "text" for item in items if item.get("text")]
    assert sizes and min(sizes) >= 12
    points = [i["size"] for kind, n, items in marks if kind == "symbol" and "legend" not in n for i in items]
    assert all(size >= 36 for size in points if size)


@pytest.mark.parametrize("name", EVERY)
def test_the_same_table_gives_the_same_specification(name):
    assert EVERY[name]().to_dict() == EVERY[name]().to_dict()


def test_text_stays_the_same_when_numbers_change():
    one, two = (charts.curves(line(start=s), title="Where?")._repr_mimebundle_(None, None) for s in (0.9, 0.8))
    assert one[0]["text/plain"] == two[0]["text/plain"] == "Where?"
    assert one[1]["image/png"]["alt"] != two[1]["image/png"]["alt"], "the numbers are in the alt text"


# ----- heatmaps


def test_heatmap_keeps_the_order_of_layers_and_puts_each_value_in_its_place():
    rows = ["z.1", "b.2", "a.3"]  # neither alphabetical nor reversed
    chart = charts.heatmap(cells(rows=rows, cols=rows[::-1] + ["c"]))
    found = next(items for kind, _, items in draw(chart) if kind == "rect")
    assert len(found) == 12
    xs, ys = (sorted({i[k] for i in found}) for k in "xy")
    for item in found:
        tip = tooltip(item)
        assert rows[ys.index(item["y"])] == tip["sl-0 (row)"]
        assert (rows[::-1] + ["c"])[xs.index(item["x"])] == tip["simclr-0 (column)"]
    labels = texts(chart, "axis-label")
    assert labels == [*rows[::-1], "c", *rows]


def test_heatmap_tooltips_name_both_layers_value_and_interval():
    found = next(items for kind, _, items in draw(charts.heatmap(cells())) if kind == "rect")
    tip = next(t for t in map(tooltip, found) if (t["layer_a"], t["layer_b"]) == ("layer1.0", "head"))
    assert tip["sl-0 (row)"] == "layer1.0" and tip["simclr-0 (column)"] == "head" and tip["CKA"] == "0.27 [0.26, 0.28]"
    assert "0.27 [" not in str(draw(charts.heatmap(cells().drop(columns=["low", "high"]))))


def test_heatmap_marks_where_stages_begin():
    lines = [items for kind, n, items in draw(charts.heatmap(cells())) if kind == "rule" and "layer_" in n]
    found = next(items for kind, _, items in draw(charts.heatmap(cells())) if kind == "rect")
    step = found[0]["width"]
    across = {item["y"] / step for items in lines for item in items if item.get("x2", item["x"]) != item["x"]}
    down = {item["x"] / step for items in lines for item in items if item.get("y2", item["y"]) != item["y"]}
    assert across == {1, 3, 5, 6}, "stem | layer1 | layer2 | pool | head"
    assert down == {1, 3, 5, 6}, "both layers of the head are one stage"
    one = charts.heatmap(cells(rows=["a.0", "a.1"], cols=["a.0", "a.1"]))
    assert not [n for kind, n, _ in draw(one) if kind == "rule" and "layer_" in n]


def test_heatmap_hatches_undefined_cells_and_says_so():
    marks = draw(charts.heatmap(cells(gap=("layer1.0", "head"))))
    values = next(items for kind, _, items in marks if kind == "rect")
    grey = [items for kind, _, items in marks if kind == "rect"][1]
    hatch = next(items for kind, _, items in marks if kind == "symbol" and items and items[0]["shape"].startswith("M"))
    assert len(values) == len(SL) * len(SIMCLR) - 1 and len(grey) == len(hatch) == 1
    assert tooltip(grey[0])["CKA"] == tooltip(hatch[0])["CKA"] == "not defined"
    assert (tooltip(grey[0])["layer_a"], tooltip(grey[0])["layer_b"]) == ("layer1.0", "head")
    assert "1 cells not defined" in charts.heatmap(cells(gap=("layer1.0", "head"))).description


def test_heatmap_tells_kinds_of_layers_apart_by_shape_and_fill():
    strips = [items for kind, n, items in draw(charts.heatmap(cells())) if kind == "symbol" and "legend" not in n]
    (rows, cols) = ([(i["shape"], i["fill"]) for i in items] for items in strips)
    kinds = ["other", "residual", "post-residual", "residual", "post-residual", "other", "other"]
    assert rows == [palette.KINDS[k] for k in kinds] and cols == [*rows, palette.KINDS["other"]]
    assert {"residual", "post-residual", "other"} <= set(texts(charts.heatmap(cells()), "legend"))


def test_heatmap_clamps_its_colours_but_not_its_tooltips():
    table = cells().assign(cka=-0.3).drop(columns=["low", "high"])
    table.loc[0, "cka"] = 0.0
    found = next(items for kind, _, items in draw(charts.heatmap(table)) if kind == "rect")
    assert len({item["fill"] for item in found}) == 1 and tooltip(found[1])["CKA"] in ("-0.30", "−0.30")


def test_linked_heatmap_draws_the_chosen_row():
    chart = charts.heatmap(cells(), linked=True)
    (parameter,) = [p for p in chart.to_dict()["params"] if p["name"] == "row"]
    assert parameter["select"]["fields"] == ["layer_a"] and parameter["bind"]["options"] == SL
    assert parameter["value"] == [{"layer_a": "layer2.0"}] and parameter["select"]["on"] == "click"
    marks = draw(chart)
    points = [items for kind, n, items in marks if kind == "symbol" and "concat_1" in n]
    drawn = [i for items in points for i in items if i.get("size")]
    drawn = [tooltip(i) for i in drawn if "CKA" in i.get("description", "")]
    assert {t["sl-0 (row)"] for t in drawn} == {"layer2.0"}
    assert sorted(t["simclr-0 (column)"] for t in drawn) == sorted(SIMCLR)
    with pytest.raises(ValueError, match="linked: expected a table of one pair, got 2"):
        charts.heatmap(pd.concat([cells(), cells("sl-0", "sl-0", SL, SL)]), linked=True)


# ----- curves


def paths(chart):
    """The drawn lines, as lists of items."""
    return [items for kind, n, items in draw(chart) if kind == "line" and "legend" not in n]


def test_curves_go_through_the_layers_in_order():
    for items in paths(charts.curves(line(), kind="post-residual")):
        xs = [i["x"] for i in items]
        assert xs == sorted(xs) and len(set(xs)) == 5
        assert [i["y"] for i in items] == sorted(i["y"] for i in items), "falling values go down the page"
    labels = texts(charts.curves(line(), kind="post-residual"), "axis-label")
    assert labels[:5] == ["stem", "1.0", "2.0", "pool", "head"]


def test_curves_put_a_layer_that_only_one_line_has_in_its_place():
    both = pd.concat([line(), line("simclr-0", "simclr-1", SIMCLR)])
    labels = texts(charts.curves(both), "axis-label")
    assert labels[: len(SIMCLR)] == ["stem", "1.0 res", "1.0", "2.0 res", "2.0", "pool", "head.hidden", "head"]


def test_curves_of_one_comparison_stay_apart_and_share_a_colour():
    table = pd.concat([line(), line("sl-1", "simclr-1", start=0.85), line("sl-0", "sl-1", start=0.95)])
    lines = paths(charts.curves(table, kind="post-residual"))
    assert len(lines) == 3
    colours = [items[0]["stroke"] for items in lines]
    assert sorted(colours) == sorted([palette.COLOURS["sl-simclr"]] * 2 + [palette.COLOURS["sl-sl"]])
    assert {tuple(i[0].get("strokeDash") or ()) for i in lines} == {(1, 0), (7, 4)}


def test_residual_layers_are_a_line_and_a_shape_of_their_own():
    chart = charts.curves(line())
    assert sorted(map(len, paths(chart))) == [2, 5]
    points = [i for kind, n, items in draw(chart) if kind == "symbol" and "legend" not in n for i in items if i["size"]]
    shapes = {tooltip(i)["layer"]: (i["shape"], i["fill"] == "#ffffff") for i in points}
    assert shapes["layer1.0.residual"] == ("diamond", True)
    assert shapes["layer1.0"] == ("circle", False) and shapes["pool"] == ("square", False)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("residual", {"layer1.0.residual", "layer2.0.residual"}), ("post-residual", {"layer1.0", "layer2.0"})],
)
def test_curves_of_one_kind_leave_out_the_other(kind, expected):
    marks = draw(charts.curves(line(), kind=kind))
    layers = {
        tooltip(i)["layer"]
        for k, n, items in marks
        if k == "symbol"
        for i in items
        if "layer" in i.get("description", "")
    }
    assert layers == expected | {"stem", "pool", "head"}


def test_an_undefined_value_is_a_gap_in_the_curve():
    table = line()
    table.loc[table["layer_a"] == "layer2.0", ["cka", "low", "high"]] = np.nan
    (items,) = paths(charts.curves(table, kind="post-residual"))
    assert [i.get("defined", True) for i in items] == [True, True, False, True, True]


def test_intervals_are_drawn_to_scale():
    chart = charts.curves(line(), kind="post-residual", height=300)
    (band,) = [items for kind, n, items in draw(chart) if kind == "area"]
    assert band[0]["y"] == pytest.approx(300 * (1 - 0.92)) or band[0]["y"] == pytest.approx(300 * (1 - 0.88))


def test_curves_name_their_colours_by_network_or_pair():
    table = line().rename(columns={"layer_a": "layer"}).drop(columns=["a", "b", "layer_b"]).assign(network="simclr-1")
    chart = charts.curves(table, kind="post-residual", y_title="accuracy")
    assert [items[0]["stroke"] for items in paths(chart)] == [palette.COLOURS["simclr"]]
    assert "simclr" in texts(chart, "legend")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("sl-0", "simclr-1", "sl-simclr"),
        ("simclr-1", "sl-0", "sl-simclr"),
        ("sl-0", "sl-1", "sl-sl"),
        ("sl-0", "sl-0@simclr-1", "sl"),
        ("labels", "simclr-0", "simclr"),
        ("sl-0", "pixels", "sl"),
        ("sl_simclr_views-0", "labels", "sl_simclr_views"),
        ("untrained-1", "sl-0", "sl-untrained"),
    ],
)
def test_comparison(a, b, expected):
    assert palette.comparison(a, b) == expected


def test_timeline_has_one_slider_over_the_moments_and_the_start_beside_the_one_that_is_shown():
    chart = timeline(panels())
    (slider,) = [p for p in chart.to_dict()["params"] if p["name"] == "now"]
    assert slider["bind"] | {"name": ""} == {"input": "range", "min": 0, "max": 2, "step": 1, "name": ""}
    assert texts(chart).count("at 10.0") == 3 and "at 0.0" not in texts(chart), "the last is shown"
    thin = [items for items in paths(chart) if items[0]["strokeWidth"] < 2]
    assert len(thin) == 6, "the first moment, residual and post-residual layers, three panels"


# ----- training and single numbers


def test_history_has_a_panel_per_column_and_a_line_per_network():
    chart = charts.history(history(), ["loss", "accuracy"], title="Training")
    lines = paths(chart)
    assert len(lines) == 4 and all(len(items) == 3 for items in lines)
    assert {i[0]["stroke"] for i in lines} == {palette.COLOURS["sl"], palette.COLOURS["simclr"]}
    assert {"loss", "accuracy"} <= set(texts(chart, "axis-title"))


def test_bars_keep_their_order_start_at_zero_and_carry_their_number():
    chart = charts.bars(scores(), domain=(0, 1), reference=0.1)
    items = next(items for kind, _, items in draw(chart) if kind == "rect")
    assert [i["fill"] for i in sorted(items, key=lambda i: i["y"])] == [palette.COLOURS[n] for n in ("simclr", "sl")]
    assert [i["width"] for i in sorted(items, key=lambda i: i["y"])] == pytest.approx([0.4 * 520, 0.6 * 520])
    assert all(i["x"] == 0 for i in items) and {"0.40", "0.60"} <= set(texts(chart))


# ----- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: charts.heatmap(cells().drop(columns="cka")), r"table: expected columns .*, got .* without cka; pass"),
        (lambda: charts.heatmap(cells().iloc[:0]), "at least one row"),
        (lambda: charts.curves(line(), y="accuracy"), "without accuracy"),
        (lambda: charts.curves(line(), kind="odd"), "kind: expected all, residual.* got 'odd'"),
        (lambda: timeline(line()), "without epoch"),
        (lambda: charts.history(history(), ["f1"], title=""), "without f1"),
        (lambda: charts.bars(scores(), color="network"), "without network"),
        (lambda: charts.images(torch.zeros(2, 3, 8, 8)), "uint8 of shape .* got float32 of shape"),
        (lambda: charts.images(torch.zeros(3, 8, 8, dtype=torch.uint8)), r"got uint8 of shape \(3, 8, 8\)"),
        (lambda: charts.images(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)), "n > 0"),
        (lambda: charts.images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a"]), "captions: expected 2.* got 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ----- pictures


def test_images_are_laid_out_row_by_row():
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    picture = charts.images(
        colours[:, :, None, None].expand(3, 3, 8, 8), ["red", "green", "blue"], columns=2, title="RGB"
    )
    sheet = np.asarray(Image.open(io.BytesIO(picture.png)))
    side, gap = 144, 12
    for i, colour in enumerate(colours.tolist()):
        y, x = gap + i // 2 * (side + 36 + gap) + side // 2, gap + i % 2 * (side + gap) + side // 2
        assert sheet[y, x].tolist() == colour
    data, about = picture._repr_mimebundle_()
    assert data["text/plain"] == "RGB" and about["image/png"]["alt"] == "RGB, a grid of 3 images: red, green, blue"
    assert about["image/png"]["width"] == sheet.shape[1] // 2


def test_images_are_enlarged_without_smoothing():
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sheet = np.asarray(Image.open(io.BytesIO(charts.images(image, size=36).png)))[12:-12, 12:-12]
    assert (sheet.reshape(8, 9, 8, 9, 3) == image[0].permute(1, 2, 0).numpy()[:, None, :, None]).all()


# ----- colours


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
DEFICIENCY = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB (D65) of linear RGB."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one, two):
    """Colour difference of two CIELAB colours (Sharma, Wu and Dalal 2005)."""
    mean_c = (np.hypot(*one[1:]) + np.hypot(*two[1:])) / 2
    g = 0.5 * (1 - np.sqrt(mean_c**7 / (mean_c**7 + 25**7)))
    (l1, a1, b1), (l2, a2, b2) = [(x[0], (1 + g) * x[1], x[2]) for x in (one, two)]
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    h = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    turn = 0 if c1 * c2 == 0 else turn
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    l, c = (l1 + l2) / 2, (c1 + c2) / 2
    cos = [np.cos(np.radians(k * h + p)) for k, p in ((1, -30), (2, 0), (3, 6), (4, -63))]
    t = 1 + np.dot([-0.17, 0.24, 0.32, -0.20], cos)
    sl, sc, sh = 1 + 0.015 * (l - 50) ** 2 / np.sqrt(20 + (l - 50) ** 2), 1 + 0.045 * c, 1 + 0.015 * c * t
    rotation = -2 * np.sqrt(c**7 / (c**7 + 25**7)) * np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2))))
    x, y, z = (l2 - l1) / sl, (c2 - c1) / sc, dh / sh
    return float(np.sqrt(x**2 + y**2 + z**2 + rotation * y * z))


def test_ciede2000_gives_published_values():
    pairs = [  # of Sharma, Wu and Dalal (2005), table 1
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (56, -27, -3), 31.9030),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    for one, two, expected in pairs:
        assert ciede2000(np.array(one), np.array(two)) == pytest.approx(expected, abs=1e-4)


def test_every_objective_has_its_colour():
    assert set(objectives.OBJECTIVES) <= set(palette.COLOURS)


@pytest.mark.parametrize("deficiency", DEFICIENCY)
def test_objectives_are_told_apart_by_everybody(deficiency):
    seen = {c: lab(np.array(DEFICIENCY[deficiency]) @ linear(c)) for c in set(palette.COLOURS.values())}
    distance = {frozenset(p): ciede2000(seen[p[0]], seen[p[1]]) for p in itertools.combinations(seen, 2)}
    assert min(distance.values()) > 7.5
    main = [palette.COLOURS[n] for n in ("sl", "simclr", "untrained", "sl-simclr")]
    assert min(distance[frozenset(p)] for p in itertools.combinations(main, 2)) > 15


@pytest.mark.parametrize("deficiency", DEFICIENCY)
def test_what_is_no_objective_is_told_apart_from_the_main_ones_as_well(deficiency):
    main = [palette.COLOURS[n] for n in ("sl", "simclr", "untrained", "sl-simclr")]
    seen = {c: lab(np.array(DEFICIENCY[deficiency]) @ linear(c)) for c in [*main, *palette.SPARE]}
    pairs = [p for p in itertools.combinations(seen, 2) if set(p) & set(palette.SPARE)]
    assert min(ciede2000(seen[one], seen[two]) for one, two in pairs) > 12
    assert all(palette.contrast(colour) >= 3 for colour in palette.SPARE)


def test_contrast_is_that_of_the_guidelines():
    assert palette.contrast("#000000") == pytest.approx(21) and palette.contrast("#ffffff") == pytest.approx(1)
    assert palette.contrast("#767676") == pytest.approx(4.54, abs=0.005)
    assert palette.contrast("#767676") == palette.contrast("#ffffff", "#767676")


@pytest.mark.parametrize("name", palette.COLOURS)
def test_lines_have_contrast(name):
    assert palette.contrast(palette.COLOURS[name]) >= 3


def test_text_on_white_has_contrast_in_every_chart():
    for name, make in EVERY.items():
        fills = {i.get("fill") for kind, _, items in draw(make()) if kind == "text" for i in items if i.get("text")}
        for fill in fills:
            assert re.fullmatch("#[0-9a-f]{6}", fill) and palette.contrast(fill) >= 4.5, (name, fill)
