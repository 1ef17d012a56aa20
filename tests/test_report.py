"""The report as a browser would read it: nothing from elsewhere, mathematics as MathML, links that lead somewhere."""

import json
import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbconvert.filters.markdown_mistune import MarkdownWithMath
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from repsim import report

VEGA = "application/vnd.vegalite.v5+json"
OVERVIEW = """# Is $f$ *like* $g$?

See [02](02_maps.ipynb), [its maps](02_maps.ipynb#The-maps), [training](01_training.ipynb), [broken](03_broken.ipynb#x),
[readme](../README.md), [here](#The-answer), [paper](https://arxiv.org/abs/2110.00528),
[live](https://mybinder.org/02_maps.ipynb). Costs \\$3 or $4.

![a badge](https://example.org/badge.svg) ![a file](picture.png)"""
CLAIMS = [
    {
        "id": "C1",
        "statement": "They are <alike>",
        "verdict": "supported",
        "sentence": "By .3 & more.",
        "reason": "Why.",
    },
    {"id": "C2", "statement": "They part", "verdict": "not judged", "exploratory": True},
]


def chart(title="A <figure> & more", **encoding):
    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "title": title, "mark": "line"} | encoding
    data = {VEGA: spec, "image/png": f"iVBORw0KGgo{len(title)}=", "text/plain": title}
    return new_output("display_data", data=data, metadata={"image/png": {"alt": f"Alt of {title}", "width": 400}})


def shown(text, kind="text/html"):
    return new_output("display_data", data={kind: text, "text/plain": "plain"})


def code(source, *outputs):
    return new_code_cell(source, execution_count=1, outputs=list(outputs))


def save(folder, name, *cells):
    nbformat.write(new_notebook(cells=list(cells)), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def page_of(paths, out, **settings):
    assert report.write(paths, out, **settings) is None
    return BeautifulSoup(out.read_text(), "html.parser")


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    widget = new_output(
        "display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox(...)"}
    )
    return [
        save(
            folder,
            "00_overview",
            new_markdown_cell(OVERVIEW),
            new_markdown_cell(
                "## The answer\n\n```\n$untouched$\n```\n\nand `$also$`, but $a_i * b_i * c$:\n\n$$\\frac{1}{n}$$"
            ),
            code("display(chart)", chart(), widget),
            code("table", shown("<table border='1'><tr><td>0.5</td></tr></table>")),
            code("print", *(new_output("stream", name=name, text=f"on {name}") for name in ("stdout", "stderr"))),
            code("verdict", shown("**bold** and $x^2$", "text/markdown"), shown("$\\alpha$", "text/latex")),
        ),
        *(save(folder, f"01_training{name}", new_markdown_cell("# Training"), code("1")) for name in ("-sl-0", "")),
        save(folder, "02_maps", new_markdown_cell("# Maps?\n\n## The maps\n\n## The maps"), code("1", chart("Two"))),
        save(folder, "03_broken", code("1", new_output("error", ename="ValueError", evalue="expected <4>\nmore"))),
        folder / "04_missing.ipynb",
        save(folder, "05_unrun", new_markdown_cell("# Unrun"), new_code_cell("1")),
        save(
            folder,
            "06_old",
            new_markdown_cell("# Old\n\n<details><summary>More</summary>\n\n*inside*\n\n</details>"),
            code(""),
        ),
    ]


@pytest.fixture(scope="module")
def soup(notebooks, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "index.html"
    return page_of(notebooks, out, claims=CLAIMS, stale=["06_old"], banner="They learnt & how.")


def test_nothing_is_asked_of_the_network_or_of_other_files(soup):
    for tag in soup.find_all(True):
        assert all(tag[name].startswith("data:") for name in ("src", "srcset", "data", "poster") if tag.get(name)), tag
        assert tag.name not in ("link", "iframe", "object", "embed", "base") and (
            tag.name == "a" or not tag.get("href")
        )
    assert "url(" not in soup.style.text and "@import" not in soup.style.text
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy


def test_every_inner_link_leads_somewhere_and_anchors_are_unique(soup):
    anchors, links = [tag["id"] for tag in soup.select("[id]")], {a["href"] for a in soup.select("a[href]")}
    assert len(anchors) == len(set(anchors)) and {a[1:] for a in links if a.startswith("#")} <= {*anchors}
    outside = {"https://arxiv.org/abs/2110.00528", "https://mybinder.org/02_maps.ipynb"}
    assert {a for a in links if not a.startswith("#")} == outside
    links = {a.text: a["href"] for a in soup.find(id="00_overview").select("a")}
    assert (
        links["02"] == "#02_maps" and links["its maps"] == "#02_maps--the-maps" and links["training"] == "#01_training"
    )
    assert links["broken"] == "#03_broken", "its sections are not in the page"
    assert links["here"] == "#00_overview--the-answer" and "readme" not in links and "readme" in soup.text


def test_mathematics_is_mathml_and_code_is_left_alone(soup):
    first = soup.find(id="00_overview")
    assert [m.get_text() for m in first.h2.find_all("math")] == ["f", "g"] and first.select("math[display=block] mfrac")
    assert [c.text.strip() for c in first.select(".text code") if "$" in c.text] == ["$untouched$", "$also$"]
    assert "Costs $3 or $4." in first.text and not first.select("em em") and len(first.select(".output math")) == 2
    assert soup.select('nav a[href="#00_overview"] math'), "also in the navigation"


def test_environments_are_tables_and_what_cannot_be_converted_is_shown_as_written(tmp_path):
    markdown = MarkdownWithMath(report.Renderer("x", tmp_path, {})).render
    for text in ("$$\\begin{aligned}a&=b\\\\c&=d\\end{aligned}$$", "\\begin{align*}a&=b\\\\c&=d\\end{align*}"):
        assert len(BeautifulSoup(markdown(text), "html.parser").select("mtable mtr")) == 2
    assert "<code>\\left( &lt;x</code>" in markdown("$\\left( <x$")


def test_figures_have_specification_picture_and_alt_text_and_the_first_stands_at_the_head(soup):
    figures = soup.select("figure.chart")
    assert [json.loads(f.script.string)["title"] for f in figures] == ["A <figure> & more", "Two"]
    assert [f.img["alt"] for f in figures] == ["Alt of A <figure> & more", "Alt of Two"] and figures[0].img[
        "width"
    ] == "400"
    assert [f.find_parent(["section", "article"])["id"] for f in figures] == ["top", "02_maps"], "each is stored once"
    assert soup.find(id="00_overview").find("a", string=re.compile("same picture"))["href"] == "#top"


def test_colour_maps_keep_their_colours_in_the_dark(tmp_path):
    maps = {"encoding": {"color": {"scale": {"scheme": "viridis"}}}}
    path = save(tmp_path, "02_maps", code("1", chart("Map", **maps), chart("Curves")))
    figures = page_of([path], tmp_path / "index.html").select("figure")
    assert ["plain" in figure["class"] for figure in figures] == [False, True]


def test_pictures_are_embedded_or_replaced_by_their_text(soup):
    first = soup.find(id="00_overview")
    assert first.find("img", alt="a file")["src"] == "data:image/png;base64,iVBORw=="
    assert "a badge" in first.text and not first.find("img", alt="a badge")


def test_outputs(soup):
    first = soup.find(id="00_overview")
    assert "on stdout" in first.text and "on stderr" not in first.text and "VBox" not in first.text
    assert first.find("strong", string="bold") and first.select(".output table td") and len(first.select(".code")) == 4


def test_what_failed_or_is_outdated_is_marked_and_the_rest_is_shown(soup):
    said = {
        name: soup.find(id=name).select_one(".wrong").text for name in ("03_broken", "04_missing", "05_unrun", "06_old")
    }
    assert said["03_broken"] == "03_broken stopped: ValueError: expected <4>"
    assert said["04_missing"].endswith("has not been executed") and said["05_unrun"].endswith("has not been executed")
    assert (
        "other settings" in said["06_old"]
        and soup.select_one("#06_old .fold details em".replace("#0", r"#\30 ")).text == "inside"
    )
    marks = [link.parent.small and link.parent.small.text for link in soup.select("nav summary a")]
    assert marks == [None, None, None, "not shown", "not shown", "not shown", "outdated"]
    assert not soup.find(id="01_training").select(".wrong, .fold")


def test_a_damaged_notebook_is_listed_and_an_outdated_overview_is_not_at_the_head(tmp_path):
    (tmp_path / "02_maps.ipynb").write_text("{")
    page = page_of([tmp_path / "02_maps.ipynb"], tmp_path / "index.html")
    assert "cannot be read" in page.text and len(str(page)) < 60_000, "no figures, no library"
    path = save(tmp_path, "00_overview", code("1", chart()))
    page = page_of([path], tmp_path / "index.html", stale=["00_overview"])
    assert not page.select("#top figure") and page.select(".fold figure")


def test_one_chapter_for_all_executions_of_a_notebook(soup, tmp_path):
    assert [a["id"] for a in soup.select("article")][:3] == ["00_overview", "01_training", "02_maps"]
    paths = [save(tmp_path, f"01_training-{n}", new_markdown_cell("# T\n\n## Of"), code(n)) for n in ("sl-0", "byol-0")]
    page = page_of(paths, tmp_path / "index.html")
    assert [a["id"] for a in page.select("article")] == ["01_training"] and "byol" in page.article.pre.text
    assert page.select_one("nav li a")["href"] == "#01_training--of"


def test_navigation_opens_the_sections_of_each_chapter_on_demand(soup):
    chapters = [d.summary.a["href"] for d in soup.select("nav details.chapter")]
    assert chapters == [f"#{article['id']}" for article in soup.select("article")]
    sections = soup.select_one('nav a[href="#02_maps"]').find_parent("details")
    assert [a["href"] for a in sections.select("li a")] == ["#02_maps--the-maps", "#02_maps--the-maps-"]
    assert not sections.has_attr("open")


def test_headings_make_one_outline_and_the_title_stands_once(soup, tmp_path):
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:]))
    path = save(tmp_path, "00_overview", new_markdown_cell(f"# {report.TITLE}"), code("1"))
    page = page_of([path], tmp_path / "index.html")
    assert [h.text for h in page.find_all(re.compile("^h[1-6]$"))] == [report.TITLE, "Overview"]


def test_claims_are_on_top_effect_first(soup):
    assert soup.select_one("#top .banner").text == "They learnt & how."
    one, two = ([*li.stripped_strings] for li in soup.select("#top .claims li"))
    assert one == ["C1", "By .3 & more.", "Claim: They are <alike>", "Why.", "✔ supported"]
    assert two == ["C2", "They part", "– not judged (exploratory)"]
    with pytest.raises(ValueError, match="claims: expected id, statement and verdict .*'C3'"):
        report.write([], "index.html", claims=[{"id": "C3"}])


def test_it_is_written_whole_and_only_when_its_inputs_have_changed(notebooks, tmp_path, monkeypatch):
    out, settings = tmp_path / "index.html", {"claims": CLAIMS, "banner": "b"}
    page_of(notebooks[:2], out, **settings)
    first, written = out.read_bytes(), out.stat().st_mtime_ns
    page_of(notebooks[:2], out, **settings)
    assert out.stat().st_mtime_ns == written
    for changed in ({"banner": "c"}, {"claims": CLAIMS[:1]}, {"stale": ["01_training-sl-0"]}):
        page_of(notebooks[:2], out, **settings | changed)
        assert out.read_bytes() != first
    for damaged in (out.read_bytes(), first[:-9]):
        out.write_bytes(damaged)
        page_of(notebooks[:2], out, **settings)
    assert out.read_bytes() == first and [*tmp_path.iterdir()] == [out]
    save(tmp_path, "02_maps", code("1"))
    page_of([tmp_path / "02_maps.ipynb"], out)
    save(tmp_path, "02_maps", code("2"))
    assert "2" in page_of([tmp_path / "02_maps.ipynb"], out).article.pre.text

    kept = out.read_bytes()
    monkeypatch.setattr(report.vl_convert, "javascript_bundle", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(notebooks, out)
    assert out.read_bytes() == kept


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_on_its_ground(soup, scheme):
    """WCAG 2.2: at least 4.5:1, of the five verdicts on their badges as well, whose ground is an eighth of their colour."""
    pairs = re.findall(r"--(\w+): light-dark\(#(\w{6}), #(\w{6})\)", soup.style.text)
    colour = {name: [int(both[scheme][i : i + 2], 16) / 255 for i in (0, 2, 4)] for name, *both in pairs}
    grounds = [(ink, colour[ground]) for ink in ("ink", "muted", "link") for ground in ("page", "raised")]
    verdicts = dict(re.findall(r"\.([\w-]+)(?:, \.wrong)? { color: var\(--(\w+)\); }", soup.style.text))
    for name in ("supported", "contradicted", "undecided", "not-judged", "unspecific"):
        ink = verdicts[name]
        grounds.append((ink, [0.12 * c + 0.88 * p for c, p in zip(colour[ink], colour["page"])]))
    for ink, ground in grounds:
        dark, light = sorted(map(luminance, (colour[ink], ground)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)
    assert len({tuple(colour[ink]) for ink, _ in grounds[6:]}) == 5
