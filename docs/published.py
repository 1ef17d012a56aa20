"""The README's picture and its tables of a published run: `python docs/published.py > tables.md` also draws docs/found.png."""

import json
from pathlib import Path

import pandas as pd
import vl_convert

from repsim import charts, figures, publish, robustness
from repsim.claims import Claim
from repsim.study import Study

FOLDER = publish.PUBLISHED
BEYOND = FOLDER.with_name("cifar10-beyond")  # of the further chapters


def decisive(claim: Claim) -> str:
    """The parts that bear the verdict, with their numbers."""
    parts = [part for part in claim.parts if part.verdict == claim.verdict]
    return "; ".join(f"{p.statement}: {figures.found(p)} (claimed: {p.side} {p.threshold:g})" for p in parts)


def outcomes(folder: Path = BEYOND) -> None:
    """Print the predictions of 06 to 08 with what became of them, as a Markdown table."""
    rows = json.loads((folder / "predictions.json").read_text())
    table = pd.DataFrame([(r["id"], r["statement"], r["outcome"]) for r in rows])
    table.columns = ["", "prediction", "on this run"]
    charts.markdown(table)


def main() -> None:
    publish.check(FOLDER)
    rows = json.loads((FOLDER / "claims.json").read_text())
    claims = [Claim.from_dict(row) for row in rows]
    table = pd.DataFrame([(c.id, c.statement, c.verdict, decisive(c)) for c in claims])
    table.columns = ["", "claim", "at this scale", "what decided it (a number for each network or pair)"]
    charts.markdown(table)
    figures.card_table(robustness.kept_card(FOLDER, rows))
    outcomes()

    charts.use()
    study = Study(artefacts=str(FOLDER))
    kinds = [("sl", "simclr"), ("sl", "sl"), ("simclr", "simclr"), ("sl", "untrained")]
    curves = [study.comparison().curve(f"{a}-0", f"{b}-{study.seeds - 1}") for a, b in kinds]
    title = f"CKA of same-named layers of two networks ({study.summary.name})"
    spec = charts.lines(pd.concat(curves), panel="kind", title=title).to_dict()
    png = vl_convert.vegalite_to_png(spec, vl_version=charts.VEGA_LITE, scale=1.6)
    (Path(__file__).parent / "found.png").write_bytes(png)


if __name__ == "__main__":
    main()
