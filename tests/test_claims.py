"""The claims on synthetic evidence whose answer is known, and how often intervals and verdicts are right."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from repsim import claims
from repsim.claims import SC, SL, Evidence, U, V
from repsim.study import Study

LAYERS = (
    ["stem"]
    + [name for s in (1, 2, 3, 4) for b in (0, 1) for name in (f"layer{s}.{b}.residual", f"layer{s}.{b}")]
    + ["pool", "head"]
)
FOLDS = 20


class Made:
    """What `Evidence` asks of a comparison, from unit vectors g[objective, layer] that seeds blur: CKA of two seeds of one
    objective is `ceiling`, of two objectives `ceiling` times the cosine of their vectors."""

    def __init__(self, vectors, seeds, ceiling=0.8, noise=0.0, generator=None):
        self.vectors, self.seeds, self.ceiling, self.noise = vectors, seeds, ceiling, noise
        self.generator = generator or np.random.default_rng(0)
        self.weights, self.drawn = np.ones(FOLDS), {}
        self.streams = [f"{o}-{i}" for o in dict.fromkeys(o for o, _ in vectors) for i in range(seeds)]

    def layers(self, stream):
        return LAYERS

    def replicates(self, a, k, b, l, estimator="unbiased"):
        one, other = a.rpartition("-")[0], b.rpartition("-")[0]
        value = float(self.vectors[one, k] @ self.vectors[other, l]) * (1.0 if (a, k) == (b, l) else self.ceiling)
        if not self.noise:
            return np.full(1 + FOLDS, value)
        key = tuple(sorted([(a, k), (b, l)]))
        if key not in self.drawn:
            self.drawn[key] = value + self.noise * self.generator.normal()
        return np.full(1 + FOLDS, self.drawn[key])


def unit(*numbers):
    x = np.array(numbers, dtype=float)
    return x / np.linalg.norm(x)


def readings(levels, seeds, spread=0.0, generator=None):
    """levels[objective][layer] in nats -> what Evidence takes, with a spread between seeds."""
    generator = generator or np.random.default_rng(0)
    tables = {}
    for objective, by_layer in levels.items():
        for seed in range(seeds):
            row = {l: v + spread * generator.normal() for l, v in by_layer.items()}
            table = pd.DataFrame([row] * FOLDS)
            table.attrs["images"] = np.full(FOLDS, 100)
            tables[f"{objective}-{seed}"] = {m: table for m in ("probe", "views", "views of a class")}
    return tables


def evidence(vectors, levels=None, seeds=4, **options):
    flat = {o: {"layer3.1": 1.0, "layer4.1": 1.0} for o in (SL, SC, V, U)}
    return Evidence(Made(vectors, seeds, **options), readings(levels or flat, seeds), seeds)


def world(angle, branch=0.0, last=0.0, last_v=0.0):
    """SL and SC share, beyond untrained networks, the cosine of `angle` degrees; in residual branches `branch` more
    degrees apart, after stage 3 `last` more (V `last_v`)."""
    vectors = {}
    for layer in LAYERS:
        late = layer.startswith("layer4") or layer in ("pool", "head")
        a = np.radians(angle + branch * layer.endswith("residual") + last * late)
        v = np.radians(last_v * late)
        vectors[U, layer] = unit(1, 0, 0)
        vectors[SL, layer] = unit(0.5, 1, 0)
        vectors[SC, layer] = unit(0.5, np.cos(a), np.sin(a))
        vectors[V, layer] = unit(0.5, np.cos(v), np.sin(v))
    return vectors


# The formulae


def test_rho_is_free_of_seeds_and_pi_of_what_untrained_networks_share():
    e = evidence(world(60))
    assert e.cka(SL, SL, "layer2.1") == pytest.approx(np.full(1 + FOLDS + 4, 0.8))
    inner = unit(0.5, 1, 0) @ unit(0.5, 0.5, np.sqrt(0.75))
    assert e.rho(SL, SC, "layer2.1") == pytest.approx(np.full(1 + FOLDS + 4, inner))
    assert e.pi(SL, SC, "layer2.1") == pytest.approx(np.full(1 + FOLDS + 4, 0.5))
    assert e.angle(SL, SC, "layer2.1") == pytest.approx(np.full(1 + FOLDS + 4, 60.0))


def test_networks_of_one_seed_are_never_compared():
    asked = []

    class Watching(Made):
        def replicates(self, a, k, b, l, estimator="unbiased"):
            asked.append((a, b))
            return super().replicates(a, k, b, l, estimator)

    e = Evidence(Watching(world(60), 4), {}, 4)
    e.pi(SL, SC, "layer2.1")
    assert asked and all(a[-1] != b[-1] for a, b in asked)


def test_partial_correlation_is_that_of_the_residuals():
    rng = np.random.default_rng(1)
    x, y, u, w = rng.normal(size=(4, 3, 40)) + rng.normal(size=40)
    ours = claims.partial_correlation(x, y, u, w)
    for r in range(3):
        z = np.stack([np.ones(40), u[r], w[r]], axis=1)
        a, b = (v - z @ np.linalg.lstsq(z, v, rcond=None)[0] for v in (x[r], y[r]))
        assert ours[r] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)


def test_leaving_out_a_seed_leaves_out_all_its_pairs():
    pairs = {(i, j): np.array([10.0 * i + j, 0.0]) for i, j in itertools.permutations(range(4), 2)}
    values = claims.over_seeds(pairs, 4)
    others = [v[0] for k, v in pairs.items() if 2 not in k]
    assert values.shape == (1 + 1 + 4,) and values[2 + 2] == np.mean(others) and len(others) == 6


def test_the_interval_is_students_where_seeds_alone_vary():
    x = np.random.default_rng(2).normal(size=6)
    values = claims.over_seeds({(i,): np.array([v] * (1 + FOLDS)) for i, v in enumerate(x)}, 6)
    estimate, low, high = claims.interval(values, 6)
    half = student.ppf(0.975, 5) * x.std(ddof=1) / np.sqrt(6)
    assert (estimate, high - estimate, estimate - low) == pytest.approx((x.mean(), half, half))


def test_the_interval_adds_what_images_leave_uncertain():
    by_fold = np.random.default_rng(3).normal(size=FOLDS)
    without = (by_fold.sum() - by_fold) / (FOLDS - 1)
    values = np.concatenate([[by_fold.mean()], without, np.full(4, by_fold.mean())])
    _, low, high = claims.interval(values, 4)
    assert (high - low) / 2 == pytest.approx(student.ppf(0.975, 3) * by_fold.std(ddof=1) / np.sqrt(FOLDS))


# Coverage and error rates, by simulation


def simulate(seeds, effect, repeats=1500, seed_sd=0.05, image_sd=0.03):
    """Replicates of a mean over pairs of seeds with seeds and images both varying, (repeats) of them."""
    rng = np.random.default_rng(seeds)
    for _ in range(repeats):
        a, b = rng.normal(0, seed_sd, (2, seeds))
        images = rng.normal(0, image_sd * np.sqrt(FOLDS), FOLDS)
        without = (images.sum() - images) / (FOLDS - 1)
        folds = np.concatenate([[images.mean()], without])
        pairs = itertools.permutations(range(seeds), 2)
        yield claims.over_seeds({(i, j): effect + a[i] + b[j] + folds for i, j in pairs}, seeds)


@pytest.mark.parametrize("seeds", [4, 6, 8])
def test_intervals_cover_and_verdicts_err_seldom(seeds):
    truth, verdicts = 0.3, []
    bounds = [claims.interval(v, seeds) for v in simulate(seeds, truth)]
    covered = np.mean([low <= truth <= high for _, low, high in bounds])
    assert covered >= 0.92, "nominal: 0.95"
    for offset in (0.0, 0.15):  # at the threshold, and beyond it by two and a half times the error of four seeds
        parts = [claims.Part("", v, seeds, above=truth - offset) for v in simulate(seeds, truth)]
        verdicts.append({w: np.mean([p.verdict == w for p in parts]) for w in claims.VERDICTS})
    assert verdicts[0][claims.SUPPORTED] <= 0.04 and verdicts[0][claims.CONTRADICTED] <= 0.04
    assert verdicts[1][claims.CONTRADICTED] == 0 and verdicts[1][claims.SUPPORTED] > 0.3
    if seeds > 4:  # more seeds make the rule surer
        assert verdicts[1][claims.SUPPORTED] > 0.8


# Each claim, true and false


def levels(**by_objective):
    """m and e of each objective: levels(sl=(1.0, 0.6), ...)."""
    return {o: {"layer3.1": m, "layer4.1": e} for o, (m, e) in by_objective.items()}


U_LEVELS = (2.0, 2.0)
TRUE = {
    "C1": {"vectors": world(30)},
    "C2": {"vectors": world(30)},
    "C3": {"vectors": world(20, branch=40)},
    "C4": {"vectors": world(20, last=50)},
    "C5": {"levels": levels(sl=(1.2, 0.8), simclr=(1.3, 1.3), sl_simclr_views=(1.2, 0.8), untrained=U_LEVELS)},
    "C6": {"levels": levels(sl=(1.9, 1.9), simclr=(1.5, 1.2), sl_simclr_views=(1.8, 1.75), untrained=U_LEVELS)},
}
FALSE = {
    "C2": {"vectors": world(75)},
    "C3": {"vectors": world(20)},
    "C4": {"vectors": world(20, last=5, last_v=5)},
    "C5": {"levels": levels(sl=(1.2, 0.8), simclr=(1.3, 0.95), sl_simclr_views=(1.2, 0.8), untrained=U_LEVELS)},
    "C6": {"levels": levels(sl=(1.9, 1.9), simclr=(1.5, 1.2), sl_simclr_views=(1.8, 1.55), untrained=U_LEVELS)},
}


def judged(name, vectors=None, levels=None, noise=0.004, spread=0.01, seeds=6, gate=""):
    rng = np.random.default_rng(7)
    e = evidence(vectors or world(30), levels, seeds=seeds, noise=noise, generator=rng)
    if levels:
        e = dataclasses.replace(e, readings=readings(levels, seeds, spread, rng))
    (claim,) = claims.judge(e, gate, only=[name])
    return claim


@pytest.mark.parametrize("name", [n for n in TRUE if n != "C1"])
def test_a_claim_that_is_true_is_supported(name):
    claim = judged(name, **TRUE[name])
    assert claim.verdict == claims.SUPPORTED, claim
    assert all(s > 1 for s in [claim.weakest.scaled[1]]) and not claim.reason


@pytest.mark.parametrize("name", FALSE)
def test_a_claim_that_is_false_is_contradicted(name):
    claim = judged(name, **FALSE[name])
    assert claim.verdict == claims.CONTRADICTED and claim.weakest.scaled[0] < 1


@pytest.mark.parametrize("name", [n for n in TRUE if n != "C1"])
def test_a_gate_and_few_seeds_leave_a_claim_not_judged(name):
    claim = judged(name, **TRUE[name], gate="SimCLR has not learnt")
    assert claim.verdict == claims.NOT_JUDGED and claim.reason == "SimCLR has not learnt"
    assert np.isfinite(claim.parts[0].estimate), "estimates are shown"


def test_noise_leaves_a_claim_undecided():
    claim = judged("C2", vectors=world(60), noise=0.1, seeds=4)
    assert claim.verdict == claims.UNDECIDED


class Grids(Made):
    """Own grids that are mixtures of patterns over pairs of layers: what training, an objective and a seed determine."""

    def __init__(self, mixtures, seeds, seed_noise=0.3):
        super().__init__(world(30), seeds)
        rng = np.random.default_rng(5)
        names = [l for l in LAYERS if l != "head"]
        self.cells = {frozenset(c): i for i, c in enumerate(itertools.combinations(names, 2))}
        patterns = rng.normal(size=(4, len(self.cells)))
        self.grids = {
            (o, i): np.asarray(m) @ patterns + seed_noise * rng.normal(size=len(self.cells))
            for o, m in mixtures.items()
            for i in range(seeds)
        }

    def replicates(self, a, k, b, l, estimator="unbiased"):
        objective, _, seed = a.rpartition("-")
        return np.full(1 + FOLDS, self.grids[objective, int(seed)][self.cells[frozenset((k, l))]])


@pytest.mark.parametrize(
    "simclr, verdict",
    [((1, 1, 0, 0.2), claims.SUPPORTED), ((1, 0, 1, 0), claims.CONTRADICTED)],  # the trained pattern, or another one
)
def test_c1_asks_for_what_training_adds_to_the_grid(simclr, verdict):
    mixtures = {U: (1, 0, 0, 0), SL: (1, 1, 0, 0), SC: simclr, V: (1, 1, 0, 0)}
    (claim,) = claims.judge(Evidence(Grids(mixtures, 6), {}, 6), only=["C1"])
    assert claim.verdict == verdict


@pytest.mark.parametrize(
    "simclr, sl, verdict",
    [
        ((1.4, 1.0), (1.0, 1.9), claims.SUPPORTED),  # SC reads .6 of the classes, SL .1 of the views
        ((1.4, 1.0), (1.0, 1.2), claims.CONTRADICTED),  # SL reads .8 of the views
        ((1.9, 1.0), (1.0, 1.9), claims.CONTRADICTED),  # SC reads .1 of the classes
    ],
)
def test_c7_compares_what_each_reaches_of_the_others_gain(simclr, sl, verdict):
    """Pairs: class reading, view reading within classes, at the end of stage 3; untrained networks read 2.0 of both."""
    rng = np.random.default_rng(9)
    classes, views = ({SC: simclr[k], SL: sl[k], V: sl[k], U: 2.0} for k in (0, 1))
    tables = {}
    for o in classes:
        for i in range(6):
            tables[f"{o}-{i}"] = {}
            for measure, value in (("probe", classes[o]), ("views of a class", views[o])):
                table = pd.DataFrame({"layer3.1": np.full(FOLDS, value + 0.01 * rng.normal())})
                table.attrs["images"] = np.full(FOLDS, 50)
                tables[f"{o}-{i}"][measure] = table
    (claim,) = claims.judge(Evidence(Made(world(30), 6), tables, 6), only=["C7"])
    assert claim.verdict == verdict


# Placebos, and networks that learnt nothing


@pytest.mark.parametrize("angle, last", [(0, 0), (30, 0), (60, 20)])
def test_no_claim_is_supported_of_networks_that_learnt_nothing(angle, last):
    """All four objectives as untrained networks are, blurred by seeds: no verdict but undecided or contradicted."""
    vectors = world(angle, last=last)
    nothing = {(o, l): vectors[U, l] for o in (SL, SC, V, U) for l in LAYERS}
    flat = levels(**dict.fromkeys((SL, SC, V, U), (2.0, 2.0)))
    rng = np.random.default_rng(angle)
    e = Evidence(Made(nothing, 4, noise=0.03, generator=rng), readings(flat, 4, 0.02, rng), 4)
    for claim in claims.judge(e, only=["C2", "C3", "C4", "C5", "C6", "C7"]):
        assert claim.verdict in (claims.UNDECIDED, claims.CONTRADICTED), claim


def test_a_claim_that_a_placebo_meets_is_unspecific():
    """Here outputs agree more than branches do for untrained networks too."""
    vectors = world(20, branch=40)
    for layer in LAYERS:
        if layer.endswith("residual"):
            vectors[U, layer] = unit(0, 0, 1)
    claim = judged("C3", vectors=vectors)
    assert claim.verdict == claims.UNSPECIFIC and "untrained in SimCLR's place" in claim.reason
    placebo = claim.to_dict()["placebos"]["untrained in SimCLR's place"]
    assert placebo["met"] and placebo["verdict"] == placebo["parts"][0]["verdict"] == claims.SUPPORTED


def test_an_untrained_network_in_the_owners_place_gains_nothing():
    for name, title in (("C5", "untrained in SL's place"), ("C6", "untrained in SimCLR's place")):
        placebo = judged(name, **TRUE[name]).placebos[title]
        assert placebo.parts[0].estimate == pytest.approx(0) and not placebo.met


def test_an_undefined_replicate_is_undecided_with_its_reason():
    e = evidence(world(30), seeds=4, ceiling=-0.5)  # seeds have less than nothing in common
    (claim,) = claims.judge(e, only=["C2"])
    assert claim.verdict == claims.UNDECIDED and "undefined" in claim.reason
    assert claim.to_dict()["parts"][0]["low"] is None
    json.dumps(claim.to_dict(), allow_nan=False)


def test_a_ratio_whose_denominator_may_be_zero_is_undecided():
    tied = levels(sl=(2.0, 2.0), simclr=(1.0, 1.0), sl_simclr_views=(2.0, 2.0), untrained=(2.0, 2.0))
    claim = judged("C7", levels=tied, spread=0.05)
    assert claim.verdict != claims.SUPPORTED and "contains 0" in claim.parts[0].reason


def test_without_sl_on_simclrs_views_what_needs_it_is_undefined():
    vectors = {k: v for k, v in world(20, last=50).items() if k[0] != V}
    (claim,) = claims.judge(evidence(vectors), only=["C4"])
    assert claim.parts[0].verdict == claims.UNDECIDED and np.isfinite(claim.parts[1].estimate)


# The gate


def test_the_gate_asks_for_learning_and_seeds_and_says_the_remedy():
    learnt = {SL: 0.7, SC: 0.5, U: 0.25, "pixels": 0.38}
    assert claims.gate(learnt, 4) == ""
    assert "seeds to 4" in claims.gate(learnt, 3)
    weak = claims.gate(learnt | {SC: 0.47}, 4)
    assert "SimCLR (0.47)" in weak and "0.38" in weak and "epochs_simclr" in weak and "SL (" not in weak
    assert "SL (0.40) and SimCLR (0.12)" in claims.gate(learnt | {SL: 0.40, SC: 0.12}, 6)


def test_numbers_are_told_with_their_interval_and_without_a_negative_zero():
    values = np.concatenate([[-0.001], np.full(FOLDS, -0.001), [-0.001, 0.009, -0.011, -0.001]])
    assert claims.told(values, 4) == "0.00 [-0.04, 0.04]"
    assert claims.told(np.full(23, 0.5), 2) == "0.50" and "undefined" in claims.told(np.full(25, np.nan), 4)


def leaves(x):
    """All numbers and texts of nested JSON, in order."""
    inner = x.values() if isinstance(x, dict) else x
    return [leaf for value in inner for leaf in leaves(value)] if isinstance(x, dict | list) else [x]


def test_published_evidence_gives_the_published_claims():
    folder = Path(__file__).resolve().parent.parent / "results" / "quick"
    study, published = Study.open(folder), {row["id"]: row for row in json.loads((folder / "claims.json").read_text())}
    for claim in claims.judge(study.evidence(), study.gate()):
        row = claim.to_dict()
        expected = leaves({name: published[claim.id][name] for name in row})
        assert leaves(row) == [pytest.approx(x, rel=1e-9) if isinstance(x, float) else x for x in expected]
