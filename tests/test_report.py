"""The report as a browser would read it: nothing from elsewhere, mathematics as MathML, links that lead somewhere."""

import json
import re
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from repsim import charts, report
from repsim.claims import Claim, Estimate, Part

LAYERS = ["stem", "layer1.0.residual", "layer1.0", "pool"]


def chart(title="A <figure> & more"):
    charts.use()
    table = pd.DataFrame(
        {"a": "sl-0", "b": "simclr-0", "layer_a": LAYERS, "layer_b": LAYERS, "cka": [0.9, 0.5, 0.7, 0.3]}
    )
    data, metadata = charts.lines(table, title=title)._repr_mimebundle_(None, None)
    return new_output("display_data", data=data, metadata=metadata)


def code(source, *outputs, count=1):
    return new_code_cell(source, execution_count=count, outputs=list(outputs))


def html(text):
    return new_output("execute_result", data={"text/html": text, "text/plain": "plain"}, execution_count=1)


def save(folder, name, *cells):
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


CLAIM = Claim(
    "C2",
    "Both learn <similar> layers",
    (
        Part(
            "normalised CKA is high",
            "above",
            0.7,
            (Estimate("sl-0, simclr-0", 0.66, 0.6, 0.75), Estimate("x", *[float("nan")] * 3)),
        ),
    ),
    "256 test images",
)


CARD = [
    {"claim": claim, "attack": attack, "before": before, "after": after, "outcome": outcome, "because": because}
    for claim, attack, before, after, outcome, because in (
        ("C2", "biased estimator", "undecided", "supported", "decided", "normalised CKA is <high>"),
        ("C1", "biased estimator", "supported", "supported", "held", ""),
        ("C1", "RBF kernel", "supported", "not supported", "overturned", "grids correlate"),
    )
]


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    return [
        save(
            folder,
            "00_overview",
            new_markdown_cell(
                "# Is $f$ *like* $g$?\n\nSee [02](02_layerwise_comparison.ipynb),"
                " [its maps](02_layerwise_comparison.ipynb#The-maps),"
                " [training](01_training.ipynb), [broken](03_divergence.ipynb), [readme](../README.md), [here](#The-answer),"
                " [paper](https://arxiv.org/abs/2110.00528). Costs \\$3 or $4.\n\n![a badge](https://example.org/badge.svg)"
                " ![a file](picture.png)"
            ),
            new_markdown_cell(
                "## The answer\n\n```\n$untouched$\n```\n\nand `$also$`, but $a_i * b_i * c$:\n\n$$\\frac{1}{n}\\tag{1}$$"
            ),
            code("display(chart)", chart()),
            code("table", html("<table border='1' class='dataframe'><tr><td>0.5</td></tr></table>")),
            code(
                "print",
                new_output("stream", name="stdout", text="heard"),
                new_output("stream", name="stderr", text="unheard"),
            ),
            code(
                "widget",
                new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}),
            ),
            code(
                "verdict",
                new_output("display_data", data={"text/markdown": "**bold** and $x^2$", "text/plain": "plain"}),
            ),
        ),
        save(folder, "01_training_sl-0", new_markdown_cell("# Training"), code("1")),
        save(folder, "01_training_simclr-0", new_markdown_cell("# Training"), code("1")),
        save(
            folder,
            "02_layerwise_comparison",
            new_markdown_cell("# Maps?\n\n## The maps\n\n## The maps"),
            code("1", chart("Two")),
        ),
        save(
            folder,
            "03_divergence",
            new_markdown_cell("# Never shown"),
            code("boom", new_output("error", ename="ValueError", evalue="expected <4>\nmore", traceback=["..."])),
        ),
        folder / "04_implicit_objective.ipynb",
        save(folder, "05_unrun", new_markdown_cell("# Unrun"), new_code_cell("1")),
    ]


@pytest.fixture(scope="module")
def page(notebooks, tmp_path_factory):
    (notebooks[0].parent / "picture.png").write_bytes(b"\x89PNG")
    out = tmp_path_factory.mktemp("out") / "index.html"
    settings = {"claims": [CLAIM.to_dict()], "card": CARD, "summary": "At **this** scale, $n = 256$."}
    assert report.write(notebooks, out, **settings) == out
    return out.read_text()


@pytest.fixture(scope="module")
def soup(page):
    return BeautifulSoup(page, "html.parser")


def article(soup, name):
    return soup.find("article", id=name)


def test_nothing_is_asked_of_the_network_or_of_other_files(soup, page):
    for tag in soup.find_all(True):
        for attribute in ("src", "srcset", "data", "poster", "action", "background"):
            assert not tag.get(attribute) or tag[attribute].startswith("data:"), tag
        assert tag.name not in ("link", "iframe", "object", "embed", "base")
        assert tag.name == "a" or not tag.get("href")
    for style in soup.find_all("style"):
        assert "url(" not in style.text and "@import" not in style.text
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy


def test_every_inner_link_leads_somewhere_and_anchors_are_unique(soup):
    anchors = [tag["id"] for tag in soup.select("[id]")]
    assert len(anchors) == len(set(anchors))
    links = [a["href"] for a in soup.select("a[href]")]
    assert {a for a in links if not a.startswith("#")} == {"https://arxiv.org/abs/2110.00528"}
    assert {a[1:] for a in links if a.startswith("#")} <= set(anchors)


def test_links_between_notebooks_become_anchors(soup):
    links = {a.text: a["href"] for a in article(soup, "00_overview").select("a")}
    assert links["02"] == "#02_layerwise_comparison" and links["its maps"] == "#02_layerwise_comparison--the-maps"
    assert links["training"] in ("#01_training_sl-0", "#01_training_simclr-0"), "one of its executions"
    assert links["broken"] == "#03_divergence" and links["here"] == "#00_overview--the-answer"
    assert "readme" not in links and "readme" in article(soup, "00_overview").text


def test_mathematics_is_mathml_and_code_is_left_alone(soup):
    first = article(soup, "00_overview")
    assert [m.get_text() for m in first.h2.find_all("math")] == ["f", "g"]
    assert first.select("math[display=block] mfrac")
    assert [c.text.strip() for c in first.select("code") if "$" in c.text] == ["$untouched$", "$also$"]
    assert "Costs $3 or $4." in first.text and not first.select("em em")
    assert first.select(".output_markdown msup") and soup.select(".summary math")
    assert soup.select('nav a[href="#00_overview"] math'), "also in the navigation"


def test_alignments_are_tables_and_what_cannot_be_converted_is_shown_as_written():
    kept = {}
    stage = report.Offline(kept)
    assert "<mtable" in kept[stage.maths("$$\\begin{aligned}a&=b\\\\c&=d\\end{aligned}$$")]
    assert kept[stage.maths("$\\left( <x$")].startswith("<") and "<x" not in kept[stage.maths("$\\left( <x$")]


@pytest.mark.parametrize("text", ["costs $5 and $6", "\\$x$ y", "`$x$`", "a$b$c", "$ x $", "~~~\n$x$\n~~~", "$x\ny$"])
def test_dollars_that_are_not_mathematics(text):
    assert report.Offline({}).maths(text) == text


def test_figures_have_specification_picture_and_alt_text(soup):
    figures = soup.select("figure.figure")
    assert len(figures) == 2
    for figure in figures:
        spec = json.loads(figure.find("script", type="application/json").string)
        assert spec["layer"] and "$schema" not in spec
        assert figure.img["src"].startswith("data:image/png;base64,") and figure.img["alt"] == spec["description"]
        assert figure.img["width"] and figure.select("div.chart")
    assert json.loads(figures[0].script.string)["title"] == "A <figure> & more"
    assert all(image.get("alt") for image in soup.select("img"))


def test_the_chart_library_is_embedded_once_and_ends_where_it_should(page):
    assert page.count("vegaEmbed(figure") == 1

    class Scripts(HTMLParser):
        found = []

        def handle_starttag(self, tag, attrs):
            if tag == "script" and not attrs:
                self.found.append(0)

    Scripts().feed(page)
    assert len(Scripts.found) == 3


def test_pictures_are_embedded_or_replaced_by_their_text(soup):
    first = article(soup, "00_overview")
    assert first.find("img", alt="a file")["src"].startswith("data:image/png;base64,")
    assert "a badge" in first.text and not first.find("img", alt="a badge")


def test_outputs(soup):
    first = article(soup, "00_overview")
    assert "heard" in first.text and "unheard" not in first.text and "model_id" not in first.text
    assert first.find("strong", string="bold") and first.select(".table table td")
    assert len(first.select("details.code")) == 5


def test_what_failed_is_listed_and_the_rest_is_shown(soup):
    assert "stopped: ValueError: expected <4>" in article(soup, "03_divergence").text
    assert "Never shown" not in soup.text and "more" not in article(soup, "03_divergence").text
    assert "has not been executed" in article(soup, "04_implicit_objective").text
    assert "has not been executed" in article(soup, "05_unrun").text
    assert article(soup, "01_training_sl-0").h2.text == "Training"


def test_a_damaged_notebook_is_listed_too(tmp_path):
    (tmp_path / "00_overview.ipynb").write_text("{")
    page = report.write([tmp_path / "00_overview.ipynb"], tmp_path / "index.html").read_text()
    assert "cannot be read" in page and "window.vegaEmbed" not in page, "no figures, no library"
    assert len(page) < 60_000


def test_navigation_lists_notebooks_and_sections_in_order(soup):
    own = [a["href"] for a in soup.select("nav > details > ol > li > a")]
    assert own == ["#top", *(f"#{a['id']}" for a in soup.select("article"))]
    second = soup.select_one('nav a[href="#02_layerwise_comparison"]').parent
    assert [a["href"] for a in second.ol.select("a")] == [f"#02_layerwise_comparison--the-maps{d}" for d in ("", "-")]
    notes = [a.small.text for a in soup.select("nav a") if a.small and "01_" in a["href"]]
    assert notes == ["01_training_sl-0", "01_training_simclr-0"], "equal titles are told apart"


def test_headings_make_one_outline(soup):
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:])), "no level is skipped"


def test_claims_are_on_top_with_their_parts(soup):
    claim = soup.select_one("#top .claims li")
    assert claim.select_one("summary").get_text(" ").split() == "C2 Both learn <similar> layers ○ undecided".split()
    cells = [td.text for td in claim.select("td")]
    assert cells == ["sl-0, simclr-0", "0.66", "0.60 to 0.75", "above 0.7", "x", "not defined", "", "above 0.7"]
    assert "Rests on: 256 test images" in claim.text


def test_the_card_is_a_table_of_attacks_and_claims(soup):
    table = soup.select_one("#top .card table")
    heads = [th.get_text(" ", strip=True) for th in table.select("thead th[scope=col]")]
    assert heads == ["attack", "C1 ✔ supported", "C2 ○ undecided"]
    rows = {tr.th.text: [td.get_text(" ", strip=True) for td in tr.select("td")] for tr in table.select("tbody tr")}
    assert rows == {"biased estimator": ["= held", "→✔ decided"], "RBF kernel": ["→✘ overturned", ""]}
    assert [td.get("class") for td in table.select("td")] == [["held"], ["decided"], ["overturned"], None]
    changed = [li.text for li in soup.select("#top .because li")]
    assert changed[0] == "C2 under biased estimator: decided, from undecided to supported: normalised CKA is <high>"
    assert len(changed) == 2, "what held needs no reason"


def test_the_summary_counts_verdicts_and_outcomes():
    text = report.summarise([CLAIM.to_dict(), {**CLAIM.to_dict(), "verdict": "supported"}], CARD)
    assert "**Of 2 claims: 1 supported, 1 undecided.** This run: 256 test images." in text
    assert "under 2 attacks. Of 3 verdicts under attack: 1 held, 1 decided, 1 overturned." in text
    assert text.endswith("1 overturned.")
    predictions = [{"outcome": outcome} for outcome in ("open", "confirmed", "open")]
    text = report.summarise([CLAIM.to_dict()], predictions=predictions)
    assert text.endswith("Of 3 predictions of the further chapters: 1 confirmed, 2 open.")
    assert "attack" not in report.summarise([CLAIM.to_dict()]) and report.summarise([]) == ""


def test_a_notebook_with_the_pages_title_does_not_repeat_it(tmp_path):
    path = save(tmp_path, "00_overview", new_markdown_cell(f"# {report.TITLE}"), code("1"))
    page = BeautifulSoup(report.write([path], tmp_path / "index.html").read_text(), "html.parser")
    assert [h.text for h in page.find_all(re.compile("^h[1-6]$"))] == [report.TITLE, "Overview"]
    assert page.select_one('nav a[href="#00_overview"]').text == "Overview"


def test_a_picture_that_two_executions_share_is_there_once(tmp_path):
    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "views"})
    paths = [save(tmp_path, f"01_training-{n}", new_markdown_cell("# T"), code("1", picture)) for n in ("a", "b")]
    page = BeautifulSoup(report.write(paths, tmp_path / "index.html").read_text(), "html.parser")
    assert (
        len(page.select("img")) == 1 and page.find("a", string=re.compile("same picture"))["href"] == "#01_training-a"
    )


def test_it_is_small_and_written_whole(page, notebooks, tmp_path):
    assert len(page.encode()) < 2_000_000
    out = tmp_path / "index.html"
    out.write_text("old")
    with pytest.raises(TypeError):
        report.write(notebooks[:1], out, claims=[{"parts": [{"estimates": [{"value": "not a number"}]}]}])
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def test_the_same_notebooks_give_the_same_page(notebooks, tmp_path):
    one, two = (report.write(notebooks[:2], tmp_path / name).read_text() for name in ("a.html", "b.html"))
    assert one == two


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_on_its_ground(page, scheme):
    from repsim.charts import contrast

    blocks = re.findall(r":root \{(.+?)\}", page, re.DOTALL)
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if scheme == "dark":
        colour |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))
    pairs = [(ink, ground) for ink in ("ink", "muted", "link") for ground in ("page", "raised")]
    pairs += [(v, f"ground-{v}") for v in ("good", "bad", "open", "warn", "note")] + [("ink", "ground-bad")]
    for ink, ground in pairs:
        assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)


def test_the_renderers_type_is_what_the_report_looks_for():
    assert charts.MIME in chart().data
