import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from repsim import claims
from repsim.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, Claim, Estimate, Evidence, Part
from repsim.comparison import Comparison

LAYERS = ["stem", "layer1.0.residual", "layer1.0", "layer1.1.residual", "layer1.1", "layer2.0.residual", "layer2.0",
          "layer2.1.residual", "layer2.1", "layer3.0.residual", "layer3.0", "layer3.1.residual", "layer3.1",
          "layer4.0.residual", "layer4.0", "layer4.1.residual", "layer4.1", "pool", "head"]  # fmt: skip


def part(side, threshold, *triples):
    return Part("p", side, threshold, tuple(Estimate("n", *t) for t in triples))


@pytest.mark.parametrize(
    "side, triples, verdict",
    [
        ("above", [(0.5, 0.4, 0.6), (0.9, 0.8, 1.0)], SUPPORTED),
        ("above", [(0.5, 0.4, 0.6), (0.9, 0.1, 1.7)], UNDECIDED),
        ("above", [(0.5, 0.4, 0.6), (0.1, 0.0, 0.15)], NOT_SUPPORTED),
        ("below", [(0.1, 0.0, 0.15)], SUPPORTED),
        ("below", [(0.5, 0.4, 0.6)], NOT_SUPPORTED),
        ("above", [(math.nan, math.nan, math.nan)], UNDECIDED),
        ("above", [(0.5, 0.4, 0.6), (math.nan, math.nan, math.nan)], UNDECIDED),
        ("below", [], UNDECIDED),
    ],
)
def test_a_part_is_decided_by_all_its_intervals(side, triples, verdict):
    assert part(side, 0.2, *triples).verdict == verdict


@given(st.lists(st.sampled_from([SUPPORTED, NOT_SUPPORTED, UNDECIDED]), min_size=1, max_size=4))
def test_a_claim_is_as_good_as_its_worst_part(verdicts):
    example = {SUPPORTED: (1, 0.9, 1.1), NOT_SUPPORTED: (-1, -1.1, -0.9), UNDECIDED: (0, -1, 1)}
    claim = Claim("C0", "s", tuple(part("above", 0.0, example[v]) for v in verdicts), "b")
    worst = max(verdicts, key=[SUPPORTED, UNDECIDED, NOT_SUPPORTED].index)
    assert claim.verdict == worst


def test_claims_survive_json_with_undefined_numbers():
    claim = Claim("C1", "s", (part("above", 0.1, (0.5, 0.4, 0.6), (math.nan,) * 3),), "b")
    text = json.dumps(claim.to_dict(), allow_nan=False)
    again = Claim.from_dict(json.loads(text))
    assert repr(again) == repr(claim) and json.loads(text)["verdict"] == UNDECIDED
    with pytest.raises(KeyError):
        Claim.from_dict({"id": "C1"})


def study(similarity):
    """Evidence in which CKA(a, layer_a, b, layer_b) is what `similarity` says, in every one of 6 folds."""
    networks = [f"{o}-{s}" for o in ("untrained", "sl", "simclr") for s in (0, 1)]
    streams = networks + [f"{n}@{v}" for n in networks for v in claims.VIEWS]
    sources = [(s, l) for s in streams for l in LAYERS] + [("labels", "labels")]
    matrix = np.array([[1.0 if a == b else similarity(*a, *b) for b in sources] for a in sources])
    hsic = torch.from_numpy(np.maximum(matrix, matrix.T)).expand(6, -1, -1).clone()
    return Evidence(Comparison.of(sources, {"unbiased": hsic}, torch.full((6,), 32.0)), 2, "made up")


def paper(a, la, b, lb):
    """A world in which every claim holds."""
    depth = lambda l: LAYERS.index(l) / (len(LAYERS) - 1)  # noqa: E731
    of = [x.split("@")[0].split("-")[0] for x in (a, b)]
    residual = la.endswith("residual") or lb.endswith("residual")
    if "labels" in (a, b):
        layer, network = (la, of[0]) if b == "labels" else (lb, of[1])
        end = max(0.0, depth(layer) - 0.7)
        return {"sl": 0.05 + 0.3 * depth(layer) + end, "simclr": 0.05 + 0.3 * depth(layer)}.get(network, 0.05)
    if a.split("@")[0] == b.split("@")[0] and a != b:  # views
        return 0.5 + 0.3 * depth(la) + max(0.0, depth(la) - 0.7) if of[0] == "simclr" else 0.5
    same = la == lb
    if of == ["sl", "simclr"] or of == ["simclr", "sl"]:
        base = (0.3 if residual else 0.85 - (2 * max(0.0, depth(la) - 0.68))) if same else 0.1
    elif "untrained" in of and of[0] != of[1]:
        base = 0.4 if same else 0.1
    else:
        base = 0.9 if same else 0.1
    if a == b and not same:
        stage = la.split(".")[0] == lb.split(".")[0]
        base = 0.2 if residual or not stage else 0.8
    return base


def tables(rise):
    rows = [
        {
            "network": n,
            "layer": l,
            "accuracy": 0.2 + rise * i / 19,
            "loss": 3.0,
            "low": 0.19 + rise * i / 19,
            "high": 0.21 + rise * i / 19,
        }
        for n in ("sl-0", "sl-1", "simclr-0", "simclr-1")
        for i, l in enumerate(LAYERS)
    ]
    probe = pd.DataFrame(rows)
    return probe, probe.assign(low=2.99, high=3.01)


def judged(evidence, rise=0.5):
    probe, contrastive = tables(rise)
    found = [c(evidence) for c in (claims.c1, claims.c2, claims.c3, claims.c4, claims.c6)]
    return {c.id: c for c in [*found, claims.c5(evidence, probe), claims.c7(evidence, probe, contrastive)]}


def test_in_a_world_where_every_claim_holds_all_are_supported():
    found = judged(study(paper))
    assert {k: v.verdict for k, v in found.items()} == dict.fromkeys(found, SUPPORTED), [
        c.to_dict() for c in found.values()
    ]


def test_in_a_world_of_equal_networks_none_of_the_differences_is():
    found = judged(study(lambda a, la, b, lb: 0.9), rise=0.0)
    for name in ("C1", "C3", "C4", "C5", "C6", "C7"):
        assert found[name].verdict == NOT_SUPPORTED, found[name].to_dict()


def test_residual_layers_that_differ_between_seeds_as_well_do_not_carry_c3():
    def noisy(a, la, b, lb):
        of = {x.split("@")[0].split("-")[0] for x in (a, b)}
        if la == lb and la.endswith("residual") and len(of) == 1 and a != b and "labels" not in of:
            return 0.35  # two seeds of one objective: hardly more alike than two objectives (0.3)
        return paper(a, la, b, lb)

    assert judged(study(noisy))["C3"].verdict == NOT_SUPPORTED


def test_one_seed_decides_nothing_about_pairs():
    evidence = study(paper)
    one = Evidence(evidence.comparison, 1, "one seed")
    assert claims.pairs(1) == [] and claims.c3(one).verdict == UNDECIDED


def test_pairs_never_share_initial_weights():
    for seeds in (2, 3, 4):
        for p in claims.pairs(seeds):
            assert p.networks[0][-1] != p.networks[1][-1]
            assert all(a.split("-")[0] == b.split("-")[0] and a != b for a, b in zip(p.networks, p.siblings))


def test_rise_adds_the_intervals():
    table = pd.DataFrame(
        {"network": "n", "layer": ["a", "b"], "accuracy": [0.2, 0.5], "low": [0.17, 0.46], "high": [0.24, 0.53]}
    )
    e = claims.rise_of(table, "n", "a", "b")
    assert (e.value, e.low, e.high) == pytest.approx((0.3, 0.3 - math.hypot(0.04, 0.04), 0.3 + math.hypot(0.03, 0.03)))
