"""Figures as they are laid out: the tests read the scene graph that Vega makes and the picture, not our own settings."""

import base64
import functools
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pytest
import torch
import vl_convert
from PIL import Image, ImageFont

from repsim import charts, objectives

ROOT = Path(__file__).resolve().parents[1]
SL = ["stem", "layer1.0.residual", "layer1.0", "layer2.0.residual", "layer2.0", "pool", "head"]
SIMCLR = [*SL[:-1], "head.hidden", "head"]
BLOCKS = ["stem", "layer1.0", "layer2.0", "pool", "head"]
BRANCHES = [f"layer{s}.{b}{kind}" for s in (1, 2, 3, 4) for b in (0, 1) for kind in (".residual", "")]
RESNET = ["stem", *BRANCHES, "pool", "head.hidden", "head"]
NASTY = "it's \"Anna's\" D:\\nets\\a [b.c] {d} ${e} #%:|"


@pytest.fixture(autouse=True)
def renderer():
    charts.use()


# ----- tables, small ones and such as a study has


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


def claims_table(name="C"):
    values, half = np.array([0.6, 1.4, -2.0, 9.0, 1.2]), np.array([0.6, 0.3, 0.5, 0.5, 0.1])
    table = pd.DataFrame({"row": [f"{name}{i}" for i in range(1, 6)], "value": values})
    table = table.assign(low=values - half, high=values + half, verdict=[*charts.VERDICTS])
    table = table.assign(
        label="similar intermediate representations, by dissimilar means",
        note="S = 6; 9 of 11 readings on the same side",
    )
    ticks = [
        (row, 1 + 0.1 * k, family, k > 0, f"{family} {k}")
        for row in table["row"]
        for k, family in enumerate(charts.FAMILIES)
    ]
    ticks = pd.DataFrame(ticks, columns=["row", "value", "family", "whole", "name"])
    return table.assign(
        placebo_low=[np.nan, 0.2, np.nan, -0.1, 0.3], placebo_high=[np.nan, 0.7, np.nan, 0.4, 0.5]
    ), ticks


def estimates():
    rows = [
        ("C1 one", "sl-0 and simclr-1", 0.4, 0.3, 0.5, 0.2, "above"),
        ("C1 one", "sl-1 and simclr-0", 0.2, 0.1, 0.3, 0.2, "above"),
    ]
    rows += [("C2 other", "sl-0", 0.4, 0.3, 0.5, 0.2, "below"), ("C2 other", "sl-1", 0.1, 0.05, 0.15, 0.2, "below")]
    return pd.DataFrame(rows, columns=["panel", "label", "value", "low", "high", "threshold", "side"])


def course():
    """As notebook 07 has it: readings at the pool over shares of training, two networks of two objectives."""
    rows = [
        (f"{objective}-{seed}", measure, share, 0.1 + 0.4 * k * share + 0.02 * seed)
        for k, objective in enumerate(("sl", "simclr"))
        for seed in (0, 1)
        for measure in ("class CKA", "view CKA", "linear probe", "10-NN", "NT-Xent")
        for share in (0, 0.01, 0.022, 0.046, 0.1, 0.22, 0.46, 1)
    ]
    table = pd.DataFrame(rows, columns=["network", "measure", "share", "value"])
    return table.assign(layer="pool", low=table["value"] - 0.05, high=table["value"] + 0.05)


def pairs():
    fall = {("sl", "sl"): 0.005, ("simclr", "simclr"): 0.003, ("sl", "simclr"): 0.03, ("sl", "untrained"): 0.046}
    return pd.concat([line(f"{a}-0", f"{b}-1", RESNET, 0.98, -slope) for (a, b), slope in fall.items()])


def kinds(table):
    residual = table["layer_a"].str.endswith("residual")
    return table.assign(kind=np.where(residual, "residual layers", "other layers"))


def history():
    rows = [
        (f"{o}-0", e, level + 1 / e) for o, level, last in (("sl", 1, 8), ("simclr", 4, 15)) for e in range(1, last)
    ]
    return pd.DataFrame(rows, columns=["network", "epoch", "loss"])


def plane():
    rows = [
        (f"{o}-{i}", n, k, 0.02 * k * (2 - j), 0.2 + 0.05 * k * j)
        for j, o in enumerate(("untrained", "sl", "simclr"))
        for i in (0, 1)
        for k, n in enumerate(BLOCKS)
    ]
    return pd.DataFrame(rows, columns=["network", "layer", "position", "CKA with the classes", "CKA between views"])


def readings():
    names, reads = ("pixels", "untrained-0", "sl-0", "simclr-0"), ("linear probe", "10 nearest neighbours")
    rows = [(n, read, 0.2 + 0.15 * i + 0.02 * j) for i, n in enumerate(names) for j, read in enumerate(reads)]
    table = pd.DataFrame(rows, columns=["network", "reading", "accuracy"])
    table = table.assign(low=table["accuracy"] - 0.02, high=table["accuracy"] + 0.02)
    return charts.bars(table, "network", "accuracy", "reading", rules={"chance": 0.1})


EVERY = {
    "heatmap": lambda: charts.heatmap(cells(gap=("pool", "head"))),
    "heatmaps": lambda: charts.heatmap(pd.concat([cells(), cells("sl-0", "sl-0", SL, SL)])),
    "heatmap of a ResNet": lambda: charts.heatmap(cells(rows=RESNET, cols=RESNET)),
    "lines": lambda: charts.lines(pd.concat([line(), line("sl-0", "sl-1", start=0.95)])),
    "lines of a ResNet": lambda: charts.lines(kinds(pairs()), panel="kind"),
    "lines on a phone": lambda: charts.lines(kinds(pairs()), panel="kind", width=390),
    "legend": lambda: charts.lines(pd.concat([line().assign(pair=f"name {i}", cka=i / 9) for i in range(9)])),
    "many panels": lambda: charts.lines(
        pd.concat([pairs().assign(share=f"{i} %") for i in range(4, 9)]), panel="share"
    ),
    "time": lambda: charts.lines(course(), "share", "value", panel="measure", log=True, shared=False),
    "history": lambda: charts.lines(history(), "epoch", "loss"),
    "path": lambda: charts.path(plane(), "CKA with the classes", "CKA between views", domain=(0, 1)),
    "bars": readings,
    "forest": lambda: charts.forest(*claims_table()),
    "estimates": lambda: charts.forest(estimates()),
}


@functools.cache
def specification(name):
    charts.use()
    return EVERY[name]().to_dict()


# ----- pictures read


@functools.lru_cache(maxsize=64)
def _draw(spec):
    found = []

    def walk(mark, x, y):
        found.append((mark["marktype"], mark.get("name") or mark.get("role") or "", mark.get("items", []), x, y))
        for item in mark.get("items", []) if mark["marktype"] == "group" else ():
            for child in item.get("items", []):
                walk(child, x + item.get("x", 0), y + item.get("y", 0))

    graph = vl_convert.vegalite_to_scenegraph(spec, vl_version=charts.VEGA_LITE)
    walk(graph["scenegraph"], *graph["origin"])
    return found, (graph["width"], graph["height"])


def laid_out(chart):
    """Marks with their places, and the size, of a chart or its specification."""
    return _draw(json.dumps(chart if isinstance(chart, dict) else chart.to_dict()))


def draw(chart):
    """All marks of a chart, in order: (mark type, name, items)."""
    return [mark[:3] for mark in laid_out(chart)[0]]


def texts(chart, name=""):
    said = [item.get("text") for kind, n, items in draw(chart) if kind == "text" and name in n for item in items]
    return [text for one in said for text in (one if isinstance(one, list) else [one]) if text is not None]


def paths(chart):
    """The drawn lines, as lists of items."""
    return [items for kind, n, items in draw(chart) if kind == "line" and "legend" not in n]


def tooltip(item):
    """The tooltip's fields, which Vega also gives to screen readers."""
    return dict(part.split(": ", 1) for part in item["description"].split("; "))


def boxes(chart):
    """(text, corners (4, 2)) of every line of text in a chart."""
    found = []
    for kind, _, items, x, y in laid_out(chart)[0]:
        for item in items if kind == "text" else ():
            lines = item.get("text", "")
            lines = lines.split("\n") if isinstance(lines, str) else lines
            for i, text in enumerate(lines):
                if not text or item.get("opacity") == 0:
                    continue
                size = item.get("fontSize", 11)
                width = ImageFont.load_default(size).getlength(str(text))
                width = min(width, item.get("limit") or width)
                left = {"left": 0.0, "center": -width / 2, "right": -width}[item.get("align", "left")]
                top = {"top": 0, "middle": -0.5, "bottom": -1, "line-top": 0, "line-bottom": -1}.get(
                    item.get("baseline"), -0.8
                )
                top = top * size + i * item.get("lineHeight", size + 2) + 0.12 * size  # ink does not fill a line
                corners = np.array(
                    [[left, top], [left + width, top], [left + width, top + 0.72 * size], [left, top + 0.72 * size]]
                )
                corners = corners + [item.get("dx", 0), item.get("dy", 0)]
                turn = np.radians(item.get("angle", 0))
                corners = corners @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
                found.append((str(text), corners + [x + item.get("x", 0), y + item.get("y", 0)]))
    return found


def apart(one, other):
    """Whether two rectangles do not overlap: some side's direction separates them."""
    for corners in (one, other):
        for side in (corners[1] - corners[0], corners[3] - corners[0]):
            a, b = one @ side, other @ side
            if a.max() <= b.min() or b.max() <= a.min():
                return True
    return False


def problems(spec, width=charts.WIDTH):
    """What a reader would meet: text over text, text outside, a figure wider than the page, no alt text."""
    found, size = boxes(spec), laid_out(spec)[1]
    said = [f"{a!r} over {b!r}" for (a, one), (b, other) in itertools.combinations(found, 2) if not apart(one, other)]
    said += [f"{text!r} outside" for text, box in found if (box < -1).any() or (box > np.add(size, 1)).any()]
    said += [f"{size[0]:.0f} pixels wide"] * (size[0] > width)
    return said + ["no alt text"] * (len(spec.get("description", "")) < 30)


# ----- every figure


@pytest.mark.parametrize("name", EVERY)
def test_a_figure_has_no_text_over_text_or_outside_fits_the_page_and_has_an_alt_text(name):
    assert problems(specification(name), 390 if "phone" in name else charts.WIDTH) == []


def test_what_a_reader_would_meet_is_noticed():
    title, axis = alt.Title("a title that is too long for a figure of forty pixels"), alt.Axis(labelOverlap=False)
    frame = pd.DataFrame({"x": [0, 0.1], "y": [0, 0], "text": ["over one", "another"]})
    chart = alt.Chart(frame, width=40, height=40, title=title, padding=0, autosize="none").mark_text()
    chart = chart.encode(x=alt.X("x:Q", axis=axis), y="y:Q", text="text:N")
    found = problems(chart.to_dict(), 30)
    assert "'over one' over 'another'" in found and "no alt text" in found and "40 pixels wide" in found
    assert any("outside" in problem for problem in found)


@pytest.mark.parametrize("name", EVERY)
def test_a_figure_has_both_representations(name):
    data, about = charts.bundle(specification(name))
    spec, image = data[charts.MIME], Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert spec["$schema"] == "https://vega.github.io/schema/vega-lite/v5.json"
    assert set(data) == {charts.MIME, "image/png", "text/plain"}
    assert image.mode == "P" and len(image.getcolors(256)) <= 256
    about = about["image/png"]
    assert (about["width"], about["height"]) == tuple(round(n / charts.SCALE) for n in image.size)
    assert about["alt"] == spec["description"]
    title = spec["title"] if isinstance(spec["title"], str) else spec["title"]["text"]
    assert data["text/plain"] == title, "the text stays the same when numbers change"
    pixels = np.asarray(image.convert("RGB"))
    assert (pixels[0] == 255).all() and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10, "drawn on white, not blank"


@pytest.mark.parametrize("name", EVERY)
def test_a_figure_is_valid_for_vega_lite_5_and_drawn_as_in_6(name):
    spec = specification(name)
    assert spec == EVERY[name]().to_dict(), "the same table gives the same specification"

    def shape(version):
        vega = vl_convert.vegalite_to_vega(spec, vl_version=version)

        def marks(node):
            return [(m["type"], m.get("name"), marks(m)) for m in node.get("marks", [])]

        return marks(vega), {s["name"] for s in vega.get("signals", [])}

    assert shape(charts.VEGA_LITE) == shape(vl_convert.get_vegalite_versions()[-1])


@pytest.mark.parametrize("name", EVERY)
def test_texts_are_large_and_dark_enough_and_points_are_not_tiny(name):
    marks = draw(specification(name))
    items = [item for kind, _, items in marks if kind == "text" for item in items if item.get("text")]
    assert items and min(item["fontSize"] for item in items) >= 12
    for fill in {item["fill"] for item in items}:
        assert contrast(fill) >= 4.5, fill
    points = [i["size"] for kind, n, items in marks if kind == "symbol" and "legend" not in n for i in items]
    assert all(size >= 16 for size in points if size)


def nasty():
    """Every primitive with names that hold quotes, backslashes, dots, brackets and braces."""
    layers = [f"{NASTY}.{i}" for i in range(4)]
    grid, curve = cells(NASTY, f"{NASTY}2", layers, layers), line(NASTY, f"{NASTY}2", layers)
    curve = curve.rename(columns={"cka": NASTY, "a": "c.d", "layer_a": "layer"})
    points = curve.assign(position=range(4), network=NASTY, **{"x.y[0]": curve[NASTY] ** 2})
    table, ticks = claims_table(NASTY)
    yield charts.heatmap(grid)
    yield charts.heatmap(grid.rename(columns={"cka": NASTY}), color=NASTY)
    yield charts.lines(curve, y=NASTY, color="c.d", panel="b", rules={NASTY: 0.5})
    yield charts.path(points, "x.y[0]", NASTY)
    yield charts.bars(curve, "c.d", NASTY, "b", rules={NASTY: 0.1})
    yield charts.forest(table.assign(label=NASTY, note=NASTY), ticks.assign(name=NASTY))
    yield charts.forest(estimates().assign(label=NASTY, panel=NASTY))


def test_names_may_hold_quotes_backslashes_dots_and_brackets():
    for chart in nasty():
        data, _ = chart._repr_mimebundle_(None, None)
        words = " ".join(map(str, texts(chart)))
        assert "D:\\nets\\a" in words and len(data["image/png"]) > 5000
        assert any(len(items) > 0 for kind, _, items in draw(chart) if kind in ("rect", "line", "symbol"))


def test_without_the_packages_figures_are_none_and_texts_are_printed():
    script = """
import sys
for name in ("altair", "vl_convert", "IPython", "ipywidgets"):
    sys.modules[name] = None
import pandas as pd, torch
from repsim import charts
table = pd.DataFrame({"a": ["sl-0"], "b": ["sl-1"], "layer_a": ["stem"], "layer_b": ["stem"], "cka": [0.5]})
drawn = [charts.heatmap(table), charts.lines(table), charts.path(table, "cka", "cka"), charts.forest(table)]
drawn.append(charts.bars(table, "a", "cka"))
drawn.append(charts.images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["one"]))
assert drawn == [None] * 6
charts.show(charts.markdown(table, "It is 0.50."), None)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "| sl-0 | sl-1 | stem | stem | 0.50 |" in run.stdout and "It is 0.50." in run.stdout


# ----- heatmaps


def test_heatmap_keeps_the_order_of_layers_and_puts_each_value_in_its_place():
    rows = ["z.1", "b.2", "a.3"]  # neither alphabetical nor reversed
    chart = charts.heatmap(cells(rows=rows, cols=rows[::-1] + ["c"]))
    items = next(items for kind, _, items in draw(chart) if kind == "rect")
    assert len(items) == 12
    xs, ys = (sorted({i[k] for i in items}) for k in "xy")
    for item in items:
        tip = tooltip(item)
        assert rows[ys.index(item["y"])] == tip["sl-0 (row)"]
        assert (rows[::-1] + ["c"])[xs.index(item["x"])] == tip["simclr-0 (column)"]
    assert texts(chart, "axis-label") == [*rows[::-1], "c", *rows]


def test_heatmap_tooltips_have_value_and_interval_and_colours_are_clamped():
    items = next(items for kind, _, items in draw(charts.heatmap(cells())) if kind == "rect")
    tip = next(t for t in map(tooltip, items) if (t["sl-0 (row)"], t["simclr-0 (column)"]) == ("layer1.0", "head"))
    assert tip["CKA"] == "0.27 [0.26, 0.28]"
    table = cells().assign(cka=-0.3).drop(columns=["low", "high"])
    table.loc[0, "cka"] = 0.0
    items = next(items for kind, _, items in draw(charts.heatmap(table)) if kind == "rect")
    assert len({item["fill"] for item in items}) == 1 and tooltip(items[1])["CKA"] in ("-0.30", "−0.30")


def test_heatmap_marks_where_stages_begin():
    marks = draw(charts.heatmap(cells()))
    lines = [i for kind, n, items in marks if kind == "rule" and "grid" in n for i in items if i["strokeWidth"]]
    step = next(items for kind, _, items in marks if kind == "rect")[0]["width"]
    across = {item["y"] / step for item in lines if item.get("x2", item["x"]) != item["x"]}
    down = {item["x"] / step for item in lines if item.get("y2", item["y"]) != item["y"]}
    assert across == {1, 3, 5, 6} and down == {1, 3, 5, 6}, "stem | layer1 | layer2 | pool | head"


def test_heatmap_hatches_undefined_cells_and_says_so():
    chart = charts.heatmap(cells(gap=("layer1.0", "head")))
    marks = draw(chart)
    values, grey = [items for kind, _, items in marks if kind == "rect"][:2]
    hatch = next(items for kind, _, items in marks if kind == "symbol" and items and items[0]["shape"].startswith("M"))
    assert len(values) == len(SL) * len(SIMCLR) - 1 and len(grey) == len(hatch) == 1
    assert tooltip(grey[0])["CKA"] == "not defined" and "1 cells not defined" in chart.description


# ----- lines


def test_lines_go_through_the_layers_in_order_and_residual_ones_apart():
    main, residual = sorted(paths(charts.lines(line())), key=len, reverse=True)
    assert (len(main), len(residual)) == (5, 2)
    for items in (main, residual):
        assert [i["x"] for i in items] == sorted(i["x"] for i in items)
        assert [i["y"] for i in items] == sorted(i["y"] for i in items), "falling values go down the page"
    assert texts(charts.lines(line()), "axis-label")[: len(SL)] == [*map(charts.short, SL)]
    points = [i for kind, n, items in draw(charts.lines(line())) if kind == "symbol" for i in items]
    assert {tooltip(i)["layer"]: i["fill"] == "#ffffff" for i in points} == {n: n.endswith(".residual") for n in SL}


def test_a_layer_that_only_one_line_has_is_put_in_its_place():
    both = pd.concat([line(), line("simclr-0", "simclr-1", SIMCLR)])
    assert texts(charts.lines(both), "axis-label")[: len(SIMCLR)] == [*map(charts.short, SIMCLR)]


def test_an_undefined_value_is_a_gap():
    table = line(layers=BLOCKS)
    table.loc[table["layer_a"] == "layer2.0", ["cka", "low", "high"]] = np.nan
    (items,) = paths(charts.lines(table))
    assert [i.get("defined", True) for i in items] == [True, True, False, True, True]


def ends(chart):
    """Name -> (height of its text, colour), of the texts beside the lines."""
    named = [(i, kind) for kind, n, items in draw(chart) if kind == "text" and n.endswith("_marks") for i in items]
    return {i["text"]: (i["y"], i["fill"]) for i, _ in named}


def test_lines_are_named_at_their_ends_in_their_colours():
    one = line(layers=BLOCKS, slope=-0.05)
    two = pd.concat([line(*pair, BLOCKS, slope=0.0) for pair in (("sl-0", "sl-1"), ("sl-1", "sl-0"))])
    chart = charts.lines(pd.concat([one, two]), domain=(0, 1), rules={"chance": 0.1})
    named = ends(chart)
    assert set(named) == {"SL and SimCLR", "two SL seeds", "chance"} and not texts(chart, "legend")
    assert named["SL and SimCLR"] == (pytest.approx(300 * (1 - 0.7)), charts.COLOURS["sl-simclr"])
    assert named["two SL seeds"][0] == pytest.approx(300 * (1 - 0.9)) and named["chance"][0] == pytest.approx(270)
    assert len(paths(chart)) == 3, "each pair of networks is a line, each meaning has one name"


def test_names_of_lines_that_end_together_do_not_overlap():
    table = pd.concat([line().assign(pair=f"name {i}", cka=0.999) for i in range(6)])
    heights = sorted(y for y, _ in ends(charts.lines(table, domain=(0, 1))).values())
    assert len(heights) == 6 and np.diff(heights) == pytest.approx([charts.LINE] * 5) and heights[0] > 0


@pytest.mark.parametrize("places", [[10.0], [25, 25, 25], [20, 80, 50, 52, 51], [90, 89, 88, 10]])
def test_names_move_as_little_as_they_must(places):
    frame = pd.DataFrame({"y": [float(place) for place in places]}, index=[*"abcde"[: len(places)]])
    texts = charts._names(frame, alt.value(0), charts._axis(alt.Y, [0, 100], None), {}, [0, 100], 100)
    moved = texts.data.loc[frame.index, "y"].to_numpy()
    assert (np.diff(np.sort(moved)) >= 15 - 1e-9).all() and (moved >= 7.5 - 1e-9).all() and (moved <= 92.5 + 1e-9).all()
    rivals = np.random.default_rng(0).uniform(7.5, 92.5, (20_000, len(places)))
    rivals = rivals[(np.diff(np.sort(rivals), axis=1) >= 15).all(1)] if len(places) > 1 else rivals
    assert ((moved - places) ** 2).sum() <= ((rivals - places) ** 2).sum(1).min() + 1e-9


def test_more_than_six_names_are_a_legend_and_more_than_five_lines_have_no_bands():
    many = pd.concat([line().assign(pair=f"name {i}") for i in range(7)])
    chart = charts.lines(many)
    assert set(texts(chart, "legend-label")) == {f"name {i}" for i in range(7)} and not ends(chart)
    assert not [items for kind, _, items in draw(chart) if kind == "area"]
    (band,) = [i for kind, _, i in draw(charts.lines(line(layers=BLOCKS), domain=(0, 1))) if kind == "area"]
    assert sorted((band[0]["y"], band[0]["y2"])) == pytest.approx([300 * 0.08, 300 * 0.12]), "0.88 to 0.92"


def test_noise_is_not_magnified():
    table = line(layers=BLOCKS).assign(cka=0.5 + 0.001 * np.arange(5)).drop(columns=["low", "high"])
    heights = [i["y"] for i in paths(charts.lines(table))[0]]
    assert max(heights) - min(heights) == pytest.approx(300 * 0.004 / 0.1)
    assert charts._extent([0.1, 0.9], [np.nan]) == [0, 1] and charts._extent([0.0, 0.01]) == [0, 0.1]
    low, high = charts._extent([-1.0, 3.0])
    assert low == pytest.approx(-1.24) and high == pytest.approx(3.24)


def test_time_is_logarithmic_and_has_a_place_for_its_start():
    table = pd.DataFrame({"network": "sl-0", "share": [0, 0.01, 0.1, 1.0], "value": [0.1, 0.2, 0.3, 0.9]})
    chart = charts.lines(table, "share", "value", log=True)
    xs = [i["x"] for i in paths(chart)[0]]
    assert np.array(xs) / xs[-1] == pytest.approx(np.log1p([0, 1, 10, 100]) / np.log1p(100))
    assert texts(chart, "axis-label")[:4] == ["start", "1 %", "10 %", "100 %"]


# ----- paths, bars, claims, pictures


def test_a_path_runs_in_order_from_an_open_point_to_its_name():
    table = pd.DataFrame(
        {"network": "sl-0", "u": [0.1, 0.5, 0.3], "v": [0.2, 0.4, 0.9], "position": [2, 0, 1], "layer": list("cab")}
    )
    chart = charts.path(table, "u", "v", domain=(0, 1))
    (items,) = [items for items in paths(chart) if items[0]["stroke"] == charts.COLOURS["sl"]]
    size = chart.layer[0].data is not None and chart.width
    assert [i["x"] / size for i in items] == pytest.approx([0.5, 0.3, 0.1])
    (start,) = [i for kind, n, items in draw(chart) if kind == "symbol" for i in items if i["fill"] == "#ffffff"]
    assert start["x"] / size == pytest.approx(0.5)
    assert ends(chart)["SL"][1] == charts.COLOURS["sl"] and "sl-0 0.20 to 0.90" in chart.description
    assert "(a) to the name (c)" in chart.description


def test_bars_keep_their_order_start_at_zero_and_carry_number_and_interval():
    table = pd.DataFrame({"category": ["simclr", "sl"], "value": [0.4, 0.6], "low": [0.35, 0.55], "high": [0.45, 0.65]})
    chart = charts.bars(table, "category", "value", domain=(0, 1), rules={"chance": 0.1})
    items = sorted(next(items for kind, _, items in draw(chart) if kind == "rect"), key=lambda i: i["y"])
    assert [i["fill"] for i in items] == [charts.COLOURS[n] for n in ("simclr", "sl")]
    assert [i["width"] / chart.width for i in items] == pytest.approx([0.4, 0.6]) and all(i["x"] == 0 for i in items)
    assert {"0.40", "0.60", "chance", "SimCLR"} <= set(texts(chart))
    spans = [
        sorted((i["x"], i["x2"]))
        for kind, _, items in draw(chart)
        if kind == "rule"
        for i in items
        if "category" in i.get("description", "")
    ]
    assert sorted(spans)[0] == pytest.approx([0.35 * chart.width, 0.45 * chart.width])


def test_one_look_colours_each_row_by_its_own_side_of_the_threshold():
    table, ticks = claims_table()
    chart = charts.forest(table, ticks)
    marks = draw(chart)
    colour = {verdict: colour for verdict, (colour, _) in charts.VERDICTS.items()}
    dots = [i for kind, _, items in marks if kind == "symbol" for i in items if i.get("size") == 110]
    sides = [i["stroke"] for i in dots]
    assert sides == [colour[s] for s in ("undecided", "supported", "contradicted", "supported", "supported")]
    assert [i["fill"] != "#ffffff" for i in dots] == [True, True, True, False, True], "what is not judged is open"
    xs = [i["x"] for i in dots]
    assert max(xs) == xs[3] == pytest.approx(chart.concat[0].width), "what lies beyond the axis stands at its end"
    bands = [i for kind, _, items in marks if kind == "rect" for i in items if i["fill"] == charts.BAND]
    assert len(bands) == 3
    attacks = [
        i for kind, n, items in marks if kind == "symbol" and "legend" not in n for i in items if i.get("size") == 100
    ]
    assert len(attacks) == 15 and sum(i["fill"] == "#ffffff" for i in attacks) == 5
    assert {i["stroke"] for i in attacks} == set(charts.FAMILIES.values())
    assert {f"{sign} {verdict}" for verdict, (_, sign) in charts.VERDICTS.items()} <= set(texts(chart))


def test_estimates_are_shaded_on_the_claimed_side_and_coloured_by_their_own():
    marks = draw(charts.forest(estimates()))
    colour = {verdict: colour for verdict, (colour, _) in charts.VERDICTS.items()}
    dots = [[i["stroke"] for i in items] for kind, _, items in marks if kind == "symbol"]
    assert dots == [[colour["supported"], colour["undecided"]], [colour["contradicted"], colour["supported"]]]
    above, below = [items[0] for kind, _, items in marks if kind == "rect"]
    assert above["x"] > 0 and below["x"] == 0


def test_images_are_laid_out_row_by_row_below_a_title_and_enlarged_without_smoothing():
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)
    tensor = colours[:, :, None, None].expand(3, 3, 8, 8)
    picture = charts.images(tensor, ["red", "green", "blue"], columns=2, title="RGB", framed=[1])
    sheet = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)
    side, gap, head = 128, 16, 16 + 34
    for i, colour in enumerate(colours.tolist()):
        top, left = head + i // 2 * (side + 36 + gap), gap + i % 2 * (side + gap)
        assert np.abs(sheet[top + side // 2, left + side // 2] - colour).max() < 3
        frame = np.abs(sheet[top + side // 2, left - 3] - [176, 13, 84]).max() < 3
        assert frame == (i == 1)
    assert sheet[:head].min() < 100, "the title is written"
    data, about = picture._repr_mimebundle_()
    assert data["text/plain"] == "RGB" and about["image/png"]["alt"] == "RGB, a grid of 3 images: red, green, blue"
    wide = torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(charts.images(wide, [""], title="").png)).convert("L"))
    assert (sheet < 128).sum() == side * side // 2, "shapes are kept"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: charts.heatmap(cells().drop(columns="cka")), r"table: expected columns .*, got .* without cka"),
        (lambda: charts.heatmap(cells().iloc[:0]), "at least one row"),
        (lambda: charts.lines(line(), y="accuracy"), "without accuracy"),
        (lambda: charts.path(line(), "cka", "low"), "without network, position, layer"),
        (lambda: charts.bars(line(), "a", "cka", color="network"), "without network"),
        (lambda: charts.forest(claims_table()[0].drop(columns="note")), "without note"),
        (lambda: charts.images(torch.zeros(2, 3, 8, 8), ["a", "b"]), "uint8 of shape .* got float32 of shape"),
        (lambda: charts.images(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), []), r"got uint8 of shape \(0, 3"),
        (lambda: charts.images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a"]), "captions: expected 2 texts, got 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ----- names, texts


@pytest.mark.parametrize(
    ("a", "b", "key", "name"),
    [
        ("sl-0", "simclr-1", "sl-simclr", "SL and SimCLR"),
        ("simclr-1", "sl-0", "sl-simclr", "SL and SimCLR"),
        ("sl-0", "sl-1", "sl-sl", "two SL seeds"),
        ("nscl-0", "nscl-1", "nscl-nscl", "two seeds of NSCL"),
        ("sl-0", "sl-0@simclr-1", "sl", "SL"),
        ("labels", "simclr-0", "simclr", "SimCLR"),
        ("sl-0", "pixels", "sl", "SL"),
        ("sl_simclr_views-0", "labels", "sl_simclr_views", "SL on SimCLR's views"),
        ("untrained-1", "sl-0", "sl-untrained", "SL and untrained"),
        ("ce_views-0", "mine", "ce_views-mine", "ce_views-mine"),
    ],
)
def test_pairs_have_keys_and_names(a, b, key, name):
    assert charts.pair(a, b) == key and charts.name(key) == name


def test_networks_and_unknown_things_have_names():
    assert charts.name("sl-12") == "SL, seed 12" and charts.name("pixels") == "raw pixels"
    assert charts.name("texture") == "texture" and charts.name(NASTY) == NASTY


def test_estimates_as_text():
    assert charts.estimate(0.3, 0.25, 0.351) == "0.30 [0.25, 0.35]" and charts.estimate(-0.001) == "0.00"
    assert charts.estimate(np.nan) == "not defined"


def test_axes_are_titled_by_the_quantity_or_not_at_all():
    table = line().rename(columns={"cka": "value"})
    for chart in (charts.lines(table, y="value"), charts.bars(table.assign(value=0.5), "layer_a", "value")):
        assert "value" not in texts(chart, "axis-title")


def test_tables_become_markdown(capsys):
    text = charts.markdown("# T", pd.DataFrame({"a|b": [0.123, -0.0001], "c": ["x\ny", 3]}))
    assert text == "# T\n\n| a\\|b | c |\n| --- | --- |\n| 0.12 | x y |\n| 0.00 | 3 |"
    assert repr(text) == repr(charts.markdown("other")), "stored outputs compare equal"


def test_many_names_make_no_endless_alt_text():
    table = pd.concat([line().assign(pair=f"name {i}") for i in range(40)])
    assert "and 16 more" in charts.lines(table).description and "name 30" not in charts.lines(table).description


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


def contrast(colour, ground="#ffffff"):
    """Contrast ratio, 1 to 21, of two colours (Web Content Accessibility Guidelines 2.2)."""
    dark, light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (colour, ground))
    return (light + 0.05) / (dark + 0.05)


def oklab(rgb):
    """Oklab (Ottosson 2020) of linear RGB, times 100: distances are close to those that people see."""
    to_lms = [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    to_lab = [
        [0.2104543, 0.7936178, -0.0040720],
        [1.9779985, -2.4285922, 0.4505937],
        [0.0259040, 0.7827718, -0.8086758],
    ]
    return 100 * np.array(to_lab) @ np.cbrt(np.array(to_lms) @ np.clip(rgb, 0, 1))


def distances(colours, deficiency):
    seen = {c: oklab(np.array(DEFICIENCY[deficiency]) @ linear(c)) for c in colours}
    return min(np.linalg.norm(seen[one] - seen[two]) for one, two in itertools.combinations(seen, 2))


@pytest.mark.parametrize("deficiency", DEFICIENCY)
@pytest.mark.parametrize(
    ("names", "least"),
    [
        ("sl simclr untrained sl_simclr_views random_labels", 9),
        ("sl-simclr sl-sl simclr-simclr sl-untrained simclr-untrained", 6),
        ("sl-simclr sl-sl simclr-simclr sl-sl_simclr_views simclr-sl_simclr_views", 6),
        ("ce_views supcon nscl simclr untrained rotation", 5.5),
        ("byol barlow vicreg rotation simclr ce_views", 6),
        (" ".join(charts.COLOURS), 1.8),
    ],
)
def test_what_one_figure_shows_is_told_apart_by_everybody(names, least, deficiency):
    assert distances([charts.COLOURS[name] for name in names.split()], deficiency) > least


def test_a_colour_has_one_meaning_and_every_objective_has_one():
    assert len(set(charts.COLOURS.values())) == len(charts.COLOURS) and set(objectives.OBJECTIVES) <= set(
        charts.COLOURS
    )
    colours, _ = charts._paint(["sl", "mine", "theirs", *map(str, range(20))])
    assert len(set(colours.values())) == 23 and colours["SL"] == charts.COLOURS["sl"]


def test_contrast_is_that_of_the_guidelines():
    assert contrast("#000000") == pytest.approx(21) and contrast("#ffffff") == pytest.approx(1)
    assert contrast("#767676") == pytest.approx(4.54, abs=0.005)
    assert contrast("#767676") == contrast("#ffffff", "#767676")


def test_texts_have_contrast():
    verdicts = [colour for colour, _ in charts.VERDICTS.values()]
    for colour in (*charts.COLOURS.values(), *verdicts, *charts.FAMILIES.values(), charts.INK, charts.MUTED):
        assert contrast(colour) >= 4.5
    assert len(charts.VERDICTS) == 5 and len(set(verdicts)) == 5
