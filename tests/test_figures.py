"""What is written of a run: whether its networks have learnt, and what attacks did to its verdicts."""

import pandas as pd
import pytest

from repsim import figures
from repsim import robustness as rb
from repsim.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Estimate, Part


def probe(sl=0.5, simclr=0.4, untrained=0.2, pixels=0.3):
    rows = [(f"{name}-{seed}", "pool", value) for name, value in (("sl", sl), ("simclr", simclr)) for seed in (0, 1)]
    rows += [("untrained-0", "pool", untrained), ("untrained-0", "layer1.0", 0.9), ("pixels", "pixels", pixels)]
    table = pd.DataFrame(rows, columns=["network", "layer", "accuracy"])
    return table.assign(low=table.accuracy - 0.02, high=table.accuracy + 0.02)


@pytest.mark.parametrize(
    "given, weak",
    [
        ({}, None),
        ({"simclr": 0.33}, "SimCLR is"),
        ({"sl": 0.1, "simclr": 0.1}, "SL and SimCLR are"),
        ({"pixels": 0.39}, "SimCLR is"),
    ],
)
def test_networks_that_are_not_above_the_baselines_are_named(given, weak):
    text = figures.learnt(probe(**given), classes=10).data
    assert "chance is 0.10" in text and f"raw pixels {given.get('pixels', 0.3):.2f}" in text
    assert "0.90" not in text, "only the pool is read"
    assert (f"**{weak} not clearly above" in text) if weak else "**" not in text


def claim(name, *bounds):
    parts = [Part(f"part {i}", "above", 0.0, (Estimate("x", sum(b) / 2, *b),)) for i, b in enumerate(bounds)]
    return Claim(name, "s", tuple(parts), "b")


def test_a_verdict_that_rests_on_what_an_attack_leaves_alone_was_not_tested():
    base = [claim("C1", (-2, -1), (1, 2)), claim("C2", (1, 2)), claim("C3", (-1, 1))]
    attacks = {
        "leaves": [claim("C1", (-2, -1), (3, 4)), claim("C2", (1, 2)), claim("C3", (-1, 1))],
        "measures": [claim("C1", (-3, -1), (-1, 1)), claim("C2", (-3, -2)), claim("C3", (1, 2))],
    }
    table = rb.card(base, attacks)
    assert table.outcome.tolist() == ["not tested", "held", "held", "held", "overturned", "decided"]
    assert table.because.tolist() == ["", "", "", "", "part 0", "part 0"]
    signs = [figures.sign(r.outcome, r.after) for r in table.itertuples()]
    assert signs == ["–", "=", "=", "=", "→✘", "→✔"]
    assert figures.card_table(table.to_dict("records")).data.splitlines()[2:] == [
        "| leaves | – | = | = |",
        "| measures | = | →✘ | →✔ |",
    ]
    said = figures.survivors(table).data.splitlines()
    assert said[0] == "- **C1** (not supported): holds under all 1 attacks; not tested by leaves."
    assert said[1] == "- **C2** (supported): overturned by measures; holds under 1 of 2 attacks."
    assert "not tested: C1 (not supported)" in figures.effect(table, "leaves").data
    assert (
        "**C2 overturned** (supported, now not supported; what fails: part 0)" in figures.effect(table, "measures").data
    )


def test_an_undecided_verdict_has_its_own_sign_under_an_attack():
    assert [c.verdict for c in (claim("C", (1, 2)), claim("C", (-1, 1)), claim("C", (-2, -1)))] == [
        SUPPORTED,
        UNDECIDED,
        NOT_SUPPORTED,
    ]
    assert figures.sign("weakened", UNDECIDED) == "→○"
