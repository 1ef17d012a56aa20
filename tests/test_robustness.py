"""Networks with a known answer through the whole card: an attack that should overturn a verdict does, another does not."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from repsim import attacks, claims, measures, models, probes, store
from repsim import robustness as rb
from repsim.cka import cka
from repsim.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED, VIEWS, Claim, Estimate, Evidence, Part
from repsim.comparison import Comparison
from repsim.study import Study

LAYERS = [l for s in (1, 2, 3, 4) for l in (f"layer{s}.0.residual", f"layer{s}.0")] + ["pool"]
NETWORKS = [f"{o}-{s}" for o in ("untrained", "sl", "simclr") for s in (0, 1)]
PAIRS = attacks.pairs(SimpleNamespace(seeds=2, names=NETWORKS))
N, P, CLASSES = 160, 12, 4
LABELS = torch.arange(N) % CLASSES


def draw(*key, n=N, p=P):
    return torch.randn(n, p, generator=store.generator(*key))


def rotation(*key):
    return torch.linalg.qr(draw("rotation", *key, n=P)).Q


def evidence(features, measure=cka):
    return Evidence(rb.cells(rb.same_layers(features, PAIRS, measure)), 2, "made up")


def by_measure(features):
    """C2 under each of the other measures."""
    return {name: [claims.c2(evidence(features, measure))] for name, measure in attacks.MEASURES.items()}


def outcomes(base, found):
    return dict(rb.card(base, found)[["attack", "outcome"]].itertuples(index=False))


def network(name, signal):
    """Every layer is the signal of its objective in a basis of its own; untrained networks have noise."""
    objective = name.rpartition("-")[0]
    if objective == "untrained":
        return {l: draw(name, l) for l in LAYERS}
    return {l: signal(objective) @ rotation(name, l) for l in LAYERS}


EQUAL = {n: network(n, lambda objective: draw("shared")) for n in NETWORKS}
UNRELATED = {n: network(n, lambda objective: draw(objective)) for n in NETWORKS}


def with_outliers(rows):
    """UNRELATED, but a few images lie far out in one direction in every trained network."""
    features = {n: {l: x.clone() for l, x in layers.items()} for n, layers in UNRELATED.items()}
    for name, layers in features.items():
        if not name.startswith("untrained"):
            for layer, x in layers.items():
                x[rows] += 300 * torch.nn.functional.normalize(draw("spike", name, layer, n=1))
    return features


def test_networks_that_are_equal_up_to_rotation_hold_under_every_measure():
    base = [claims.c2(evidence(EQUAL))]
    assert base[0].verdict == SUPPORTED
    assert set(outcomes(base, by_measure(EQUAL)).values()) == {rb.HELD}


def test_unrelated_networks_are_unrelated_under_every_measure():
    base = [claims.c2(evidence(UNRELATED))]
    assert base[0].verdict == NOT_SUPPORTED
    assert set(outcomes(base, by_measure(UNRELATED)).values()) == {rb.HELD}


def test_a_few_shared_outliers_are_found_by_dropping_them_and_by_measures_of_neighbourhoods():
    features = with_outliers([0, 1, 2, 3])
    base = [claims.c2(evidence(features))]
    assert base[0].verdict == SUPPORTED, "unbiased CKA is fooled"
    trained = [features[n]["layer3.0"] for n in NETWORKS if not n.startswith("untrained")]
    keep = measures.drop_top_norm(*trained, fraction=0.025)
    assert not set(keep.tolist()) & {0, 1, 2, 3}
    left = {n: {l: x[keep] for l, x in layers.items()} for n, layers in features.items()}
    found = outcomes(base, {"dropped": [claims.c2(evidence(left))], **by_measure(features)})
    assert found == {
        "dropped": rb.OVERTURNED,
        "mutual k-NN": rb.OVERTURNED,
        "RSA": rb.OVERTURNED,
        "shape similarity": rb.HELD,  # it weighs images by their norm as CKA does
    }


def test_two_shared_outliers_make_cka_but_no_interval_that_supports_anything():
    base = evidence(with_outliers([0, 1]))
    value, low, high = base.comparison.interval(lambda c: c("sl-0", "layer2.0", "simclr-1", "layer2.0"))
    assert value > 0.9 and low < 0.3 and claims.c2(base).verdict == UNDECIDED


def views(simclr_at_pool):
    """Two views of every layer: SL's agree half everywhere, SimCLR's at the pool as `simclr_at_pool(view)` says."""
    features = {}
    for name in NETWORKS:
        for view in VIEWS:
            layers = {l: (draw(name) + draw(name, view)) @ rotation(name, l) for l in LAYERS}
            if name.startswith("simclr"):
                layers = {l: draw(name, l) / 2 + draw(name, l, view) for l in LAYERS} | {
                    "pool": simclr_at_pool(name, view)
                }
            features[f"{name}@{view}"] = layers
    return features


def c6(features):
    streams = [tuple(f"{n}@{view}" for view in VIEWS) for n in NETWORKS]
    return claims.c6(Evidence(rb.cells(rb.same_layers(features, streams, cka)), 2, "made up"))


def c6_by_retrieval(features):
    a, b = VIEWS
    values = {}
    for n in NETWORKS:
        hits = probes.retrieval(features[f"{n}@{a}"], features[f"{n}@{b}"], per_image=True)
        values |= {(f"{n}@{a}", l, f"{n}@{b}", l): partial(rb.share, torch.tensor(hits[l].to_numpy())) for l in hits}
    return claims.c6(Evidence(rb.cells(rb.leave_out(values, N)), 2, "made up"))


def centred(features):
    return {s: {l: measures.within_class_centred(x, LABELS) for l, x in f.items()} for s, f in features.items()}


def test_views_that_share_only_their_class_are_not_invariance():
    means = 4 * draw("means", n=CLASSES)
    only_classes = views(lambda name, view: means[LABELS] + draw(name, "pool", view))
    images = views(lambda name, view: 3 * draw(name, "pool") + draw(name, "pool", view))
    for features, expected in ((only_classes, rb.OVERTURNED), (images, rb.HELD)):
        base = c6(features)
        assert base.verdict == SUPPORTED, base.to_dict()
        found = outcomes([base], {"centred": [c6(centred(features))], "retrieval": [c6_by_retrieval(features)]})
        assert found == {"centred": expected, "retrieval": expected}


def test_similarity_that_shuffled_images_give_as_well_is_not_held():
    claimed = Claim("C2", "s", (Part("p", "above", 0.0, (Estimate("x", 1.0, 0.9, 1.1),)),), "b")
    layers = ["layer2.0", "layer3.0"]
    for features, verdict in ((EQUAL, SUPPORTED), (UNRELATED, NOT_SUPPORTED)):
        grams = [{l: features[n][l] @ features[n][l].T for l in layers} for n in ("sl-0", "simclr-1")]
        null = measures.permutation_null(*grams, permutations=200, generator=store.generator("test"))
        found = rb.beyond_null(claimed, {"sl-0 and simclr-1": null}, layers)
        assert found.verdict == verdict and len(found.parts[-1].estimates) == 2


# Evidence from cells that are given


def given(similarity, names=NETWORKS):
    """Evidence in which every cell is what `similarity(a, layer_a, b, layer_b)` says, in each of 6 folds."""
    streams = [*names, *(f"{n}@{v}" for n in names for v in VIEWS)]
    sources = [(s, l) for s in streams for l in [*LAYERS, "head"]] + [("labels", "labels"), ("pixels", "pixels")]
    matrix = np.array([[1.0 if a == b else similarity(*a, *b) for b in sources] for a in sources])
    hsic = torch.from_numpy(np.maximum(matrix, matrix.T)).expand(6, -1, -1).clone()
    return Evidence(Comparison(tuple(sources), {"unbiased": hsic}, torch.full((6,), 32.0)), 2, "made up")


def test_similarity_that_comes_from_the_input_alone_does_not_survive_its_removal():
    def same_input(a, la, b, lb):
        objectives = {n.rpartition("-")[0] for n in (a, b)}
        if "pixels" in (a, b):
            return 0.1 if "untrained" in objectives else 0.85
        if la != lb or "untrained" in objectives:
            return 0.1
        return 0.72 if len(objectives) == 2 else 0.8  # 0.85^2 = 0.7225: across objectives nothing but the input

    base = given(same_input)
    assert claims.c2(base).verdict == SUPPORTED
    left = rb.attacked(base, rb.without_input)
    assert outcomes([claims.c2(base)], {"input": [claims.c2(left)]}) == {"input": rb.OVERTURNED}
    value = left.comparison.interval(lambda c: c("sl-0", "layer2.0", "simclr-1", "layer2.0"))[0]
    assert value == pytest.approx((0.72 - 0.85**2) / (1 - 0.85**2))


def test_without_ceilings_the_raw_number_is_judged():
    def ceiling(a, la, b, lb):
        objectives = {n.rpartition("-")[0] for n in (a, b)}
        return 0.1 if la != lb or "untrained" in objectives else 0.5

    base = given(ceiling)
    raw = rb.attacked(base, rb.without_ceilings)
    assert claims.c2(base).verdict == SUPPORTED and claims.c2(raw).verdict == NOT_SUPPORTED
    values = claims.c2(raw).parts[0].estimates
    assert [e.value for e in values] == pytest.approx([0.5, 0.5])
    own = ("sl-0@view-a", "pool", "sl-0@view-b", "pool")  # two views of a network are not two seeds
    assert raw.comparison.interval(lambda c: c(*own))[0] == base.comparison.interval(lambda c: c(*own))[0]


def test_a_control_and_a_layer_take_the_places_of_others():
    asked = []

    def cell(*name):
        asked.append(name)
        return np.zeros(3)

    rb.renamed({"sl": "sl_simclr_views"})(cell)("sl-0@view-a", "pool", "labels", "labels")
    rb.renamed({"sl": "sl_simclr_views"})(cell)("simclr-1", "pool", "untrained-0", "pool")
    rb.renamed(layers={"pool": "head"})(cell)("sl-0", "pool", "simclr-1", "layer4.0")
    rb.clean_against("crop")(cell)("sl-0@view-a", "pool", "sl-0@view-b", "pool")
    rb.clean_against("crop")(cell)("sl-0", "pool", "labels", "labels")
    assert asked == [
        ("sl_simclr_views-0@view-a", "pool", "labels", "labels"),
        ("simclr-1", "pool", "untrained-0", "pool"),
        ("sl-0", "head", "simclr-1", "layer4.0"),
        ("sl-0", "pool", "sl-0@crop", "pool"),
        ("sl-0", "pool", "labels", "labels"),
    ]
    table = pd.DataFrame({"network": ["sl-0", "sl_simclr_views-0", "simclr-1", "pixels"], "accuracy": [1, 2, 3, 4]})
    swapped = rb.probe_of(table, {"sl": "sl_simclr_views"})
    assert dict(zip(swapped.network, swapped.accuracy)) == {"sl-0": 2, "simclr-1": 3, "pixels": 4}


def test_classes_that_a_network_on_shuffled_labels_fits_as_well_are_not_fitted():
    names = [*NETWORKS, "random_labels-0", "random_labels-1"]
    depth = [*LAYERS, "head"].index

    def classes(control, a, la, b, lb):
        if "labels" not in (a, b) or "pixels" in (a, b):
            return 0.3
        layer, name = (la, a) if b == "labels" else (lb, b)
        slope = {"sl": 0.06, "simclr": 0.02, "random_labels": control}.get(name.split("@")[0].rpartition("-")[0], 0.0)
        return 0.1 + slope * depth(layer)

    rows = [(n, l, 0.3 + 0.05 * depth(l)) for n in NETWORKS for l in LAYERS]
    probe = pd.DataFrame(rows, columns=["network", "layer", "accuracy"])
    probe = probe.assign(low=probe.accuracy - 0.01, high=probe.accuracy + 0.01)
    for control, verdict in ((0.0, SUPPORTED), (0.06, NOT_SUPPORTED)):
        found = given(partial(classes, control), names)
        assert claims.c5(found, probe).verdict == SUPPORTED
        assert rb.beyond_random_labels(claims.c5(found, probe), found).verdict == verdict


@pytest.mark.parametrize("simclr, verdict", [(0.55, SUPPORTED), (0.12, NOT_SUPPORTED)])
def test_c2_by_stitching_asks_for_the_accuracy_behind_the_other_networks_layer(simclr, verdict):
    accuracy = {"sl": 0.6, "simclr": simclr, "untrained": 0.15}
    values = {
        (f"sl-{i}", l, f"{o}-{1 - i}", l): lambda index, o=o: accuracy[o] + 1e-4 * len(index)
        for i in (0, 1)
        for l in LAYERS
        for o in accuracy
    }
    measured = Evidence(rb.cells(rb.leave_out(values, N)), 2, "made up")
    found = rb.stitched(claims.c2(evidence(EQUAL)), measured, 10)
    assert found.verdict == verdict
    gain = [accuracy[o] + 1e-4 * N - 0.1 for o in ("simclr", "sl")]
    assert found.parts[0].estimates[0].value == pytest.approx(gain[0] / gain[1])


# The logic of the card


@pytest.mark.parametrize(
    "before, after, expected",
    [
        (SUPPORTED, SUPPORTED, rb.HELD),
        (NOT_SUPPORTED, NOT_SUPPORTED, rb.HELD),
        (UNDECIDED, UNDECIDED, rb.HELD),
        (SUPPORTED, UNDECIDED, rb.WEAKENED),
        (NOT_SUPPORTED, UNDECIDED, rb.WEAKENED),
        (SUPPORTED, NOT_SUPPORTED, rb.OVERTURNED),
        (NOT_SUPPORTED, SUPPORTED, rb.OVERTURNED),
        (UNDECIDED, SUPPORTED, rb.DECIDED),
        (UNDECIDED, NOT_SUPPORTED, rb.DECIDED),
    ],
)
def test_every_change_of_a_verdict_has_its_name(before, after, expected):
    assert rb.outcome(before, after) == expected


def claim_of(verdict, name="C1"):
    low, high = {SUPPORTED: (0.5, 0.7), NOT_SUPPORTED: (-0.7, -0.5), UNDECIDED: (-0.5, 0.5)}[verdict]
    sure = Part("sure", "above", -9.0, (Estimate("x", 0.0, 0.0, 0.0),))
    return Claim(name, "s", (sure, Part("asked", "above", 0.0, (Estimate("x", (low + high) / 2, low, high),))), "b")


def test_the_card_says_what_changed_and_which_part_did_it_and_survives_its_file(tmp_path):
    base = [claim_of(SUPPORTED), claim_of(UNDECIDED, "C2")]
    table = rb.card(base, {"one": [claim_of(NOT_SUPPORTED)], "two": [claim_of(SUPPORTED), claim_of(UNDECIDED, "C2")]})
    assert table[["claim", "attack", "outcome", "because"]].values.tolist() == [
        ["C1", "one", "overturned", "asked"],
        ["C1", "two", "held", ""],
        ["C2", "two", "held", ""],
    ]
    verdicts = [claim.to_dict() for claim in base]
    assert rb.kept_card(tmp_path, verdicts) == []
    rb.keep_card(table, tmp_path)
    assert (rows := rb.kept_card(tmp_path, verdicts)) == table.to_dict("records")
    assert [len(claim["attacks"]) for claim in rb.with_card(verdicts, rows)] == table.groupby("claim").size().tolist()
    others = [claim | {"verdict": "another"} for claim in verdicts]
    assert rb.kept_card(tmp_path, others) == [], "a card of other verdicts"
    with pytest.raises(ValueError, match="expected claims among C1, C2, got C9 under 'one'"):
        rb.card(base, {"one": [claim_of(SUPPORTED, "C9")]})


# What the numbers are


def test_intervals_of_measured_cells_are_the_jackknifes():
    x = draw("jackknife", n=50, p=1)[:, 0].double()
    cells = rb.cells(rb.leave_out({("a-0", "l", "b-0", "l"): lambda i: x[i].mean().item()}, 50, folds=50))
    value, low, high = cells.interval(lambda c: c("b-0", "l", "a-0", "l"))  # either way round
    from scipy.stats import t

    half = t.ppf(0.975, 49) * x.std().item() / math.sqrt(50)  # of a mean, leaving out one by one is exact
    assert (value, low, high) == pytest.approx((x.mean().item(), x.mean().item() - half, x.mean().item() + half))
    assert np.isnan(cells.interval(lambda c: c("a-0", "l", "c-0", "l"))[0])
    assert cells.layers("a-0") == ["l"] and len(cells.curve("a-0", "b-0")) == 1


def test_rank_correlation_is_spearmans_with_ties():
    x = np.round(draw("x", n=24, p=1)[:, 0].numpy(), 1)
    y = np.round(x + 0.5 * draw("y", n=24, p=1)[:, 0].numpy(), 1)
    estimate, p = rb.rank_correlation("n", x, y, generator=store.generator("r"))
    reference = spearmanr(x, y, alternative="greater")
    assert estimate.value == pytest.approx(reference.statistic) and estimate.low < estimate.value < estimate.high
    assert p < 0.01 and reference.pvalue < 0.01
    noise, p = rb.rank_correlation("n", x, draw("z", n=24, p=1)[:, 0].numpy(), generator=store.generator("r"))
    assert noise.low < 0 < noise.high and 0.02 < p < 0.98
    with pytest.raises(ValueError, match="at least 4, got 3 and 4"):
        rb.rank_correlation("n", [1, 2, 3], [1, 2, 3, 4], generator=store.generator("r"))


# A small study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    small = {"train_images": 64, "test_images": 48, "width": 4, "epochs_sl": 1, "epochs_simclr": 1, "batch_size": 32}
    return Study(**small, controls=["sl_simclr_views", "random_labels"], out=str(tmp_path_factory.mktemp("robust")))


def test_a_study_is_attacked_once_and_every_attack_is_on_the_card(study, monkeypatch):
    monkeypatch.setattr(attacks, "PERMUTATIONS", 40)
    names = [n for n in study.names if not n.startswith("random")]
    flat = pd.DataFrame(
        [(n, l) for n in names for l in models.layer_names(study.network(n).model)], columns=["network", "layer"]
    )
    monkeypatch.setattr(Study, "contrastive", lambda self, names=None: flat.assign(loss=3.0, low=2.9, high=3.1))
    base, found = attacks.verdicts(study)
    table = rb.card(base, found)
    assert [c.id for c in base] == [f"C{i}" for i in range(1, 8)] and set(table.claim) == {c.id for c in base}
    assert set(table.attack) == set(found) and len(found) == 21
    for claim, plain in zip(base[:4], (claims.c1, claims.c2, claims.c3, claims.c4)):
        again = plain(study.evidence())  # the study's own comparison, of one estimator
        values = [[e.value for p in c.parts for e in p.estimates] for c in (claim, again)]
        np.testing.assert_allclose(*values, rtol=1e-4)
    for function in ("cka.compare", "measures.permutation_null", "measures.stitch", "probes.retrieval", "measures.rsa"):
        monkeypatch.setattr(f"repsim.{function}", None)  # making anything again would fail
    pd.testing.assert_frame_equal(rb.card(*attacks.verdicts(study)), table)


def test_a_network_stitched_to_itself_is_itself(study):
    model, images = study.network("sl-0").model, study.images.test.images
    with torch.no_grad():
        own = model(attacks.taps.network_input(images, model)).argmax(1)
    paths = {layer: models.layer_paths(model)[layer] for layer in ("layer1.0", "layer4.1")}
    outputs = attacks._activations(model, paths, images)
    for layer, output in outputs.items():
        channels = output.shape[1]
        identity = measures.Stitch(torch.eye(channels)[:, :, None, None], torch.zeros(channels))
        (classes,) = attacks._behind(model, model, {layer: paths[layer]}, {layer: identity}, images).values()
        assert (classes == own).all()
    fitted = {layer: measures.stitch(output, output) for layer, output in outputs.items()}
    for classes in attacks._behind(model, model, paths, fitted, images).values():
        assert (classes == own).float().mean() > 0.95
    assert not model.training and not any(module._forward_hooks for module in model.modules())


def test_one_seed_has_fewer_attacks_and_no_false_confidence(study, monkeypatch):
    one = dataclasses.replace(study, seeds=1, controls=[])
    flat = pd.DataFrame(
        [(n, l) for n in one.names for l in models.layer_names(one.network(n).model)], columns=["network", "layer"]
    )
    monkeypatch.setattr(Study, "contrastive", lambda self, names=None: flat.assign(loss=3.0, low=2.9, high=3.1))
    base, found = attacks.verdicts(one)
    assert {c.id: c.verdict for c in base if c.id in ("C2", "C3", "C4")} == dict.fromkeys(("C2", "C3", "C4"), UNDECIDED)
    assert not {"stitching", "mutual k-NN", "SL on SimCLR's views", "shuffled labels"} & set(found)
