import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from repsim import objectives, probes

CLASSES = 4
WIDTHS = {"early": 6, "middle": 12, "twin": 12, "late": 20}


def draw(n, seed, noise=4.0):
    """Features of correlated, differently scaled columns around class means that are the same for every seed; labels."""
    generator, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    features = {}
    for layer, p in WIDTHS.items():
        means, mixing = torch.randn(CLASSES, p, generator=fixed), torch.randn(p, p, generator=fixed)
        x = means[labels] + noise * torch.randn(n, p, generator=generator) @ mixing / p**0.5
        features[layer] = x * torch.logspace(-2, 2, p) + 5
    return features, labels


TRAIN, VALIDATION, TEST = draw(600, 0), draw(300, 1), draw(500, 2)


# ------------------------------------------------------------------------------------------------------- linear probe
@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_weights_are_those_of_logistic_regression(penalty):
    x = StandardScaler().fit_transform(TRAIN[0]["late"].double().numpy())
    weight, bias = probes._softmax_regression(
        torch.tensor(x)[None], TRAIN[1], CLASSES, [0.3, penalty], tolerance=1e-18, steps=20_000
    )
    reference = LogisticRegression(C=1 / (len(x) * penalty), solver="newton-cg", tol=1e-10, max_iter=500).fit(
        x, TRAIN[1].numpy()
    )
    assert np.abs(weight[0, 1].numpy() - reference.coef_).max() < 1e-4 * np.abs(reference.coef_).max() + 1e-5
    intercept = bias[0, 1, :, 0].numpy()
    assert np.allclose(intercept - intercept.mean(), reference.intercept_ - reference.intercept_.mean(), atol=1e-4)


@pytest.mark.parametrize("images", [40, 300])
def test_accuracy_and_penalty_are_those_of_a_grid_search(images):
    """To the last image, and on a validation split so small that many penalties are nearly equal on it."""
    chosen = {layer: x[:images] for layer, x in VALIDATION[0].items()}, VALIDATION[1][:images]
    probe = probes.linear_probe(*TRAIN, *chosen, *TEST, classes=CLASSES)
    table = probe.fit.set_index("layer").assign(accuracy=probe.correct.mean())
    assert list(table.index) == list(probe.loss) == list(WIDTHS)
    for layer in WIDTHS:
        scaler = StandardScaler().fit(TRAIN[0][layer].double())
        train, validation, test = (scaler.transform(s[0][layer].double()) for s in (TRAIN, chosen, TEST))
        scores = {}
        for penalty in sorted(probes.PENALTIES, reverse=True):
            model = LogisticRegression(C=1 / (len(train) * penalty), tol=1e-8, max_iter=5000)
            model.fit(train, TRAIN[1].numpy())
            scores[penalty] = model.score(validation, chosen[1]), model.score(test, TEST[1])
            if penalty == table.penalty[layer]:
                chosen_loss = -model.predict_log_proba(test)[np.arange(len(test)), TEST[1]]
                assert np.allclose(probe.loss[layer], chosen_loss, rtol=1e-3, atol=1e-3)
        best = max(scores, key=lambda penalty: scores[penalty][0])  # the first of equals
        assert table.penalty[layer] == best
        assert (table.validation_accuracy[layer], table.accuracy[layer]) == pytest.approx(scores[best])


def test_the_test_split_chooses_nothing():
    one, other = (
        probes.linear_probe(*TRAIN, *VALIDATION, TEST[0], labels, classes=CLASSES)
        for labels in (TEST[1], TEST[1].roll(7))
    )
    assert (one.correct.mean() > other.correct.mean() + 0.1).all() and (one.loss.mean() < other.loss.mean()).all()
    assert one.fit.equals(other.fit)


def test_of_equally_good_penalties_the_larger_is_chosen():
    x, labels = torch.tensor([[-1.0], [1.0]]).repeat(20, 1), torch.tensor([0, 1]).repeat(20)
    split = ({"a": x}, labels)
    assert probes.linear_probe(*split, *split, *split, classes=2, penalties=[0.1, 0.01]).fit.penalty[0] == 0.1


def test_a_layer_does_not_depend_on_the_others_and_runs_repeat_exactly():
    everything = probes.linear_probe(*TRAIN, *VALIDATION, *TEST, classes=CLASSES).loss
    assert everything.equals(probes.linear_probe(*TRAIN, *VALIDATION, *TEST, classes=CLASSES).loss)
    alone = [v for x, labels in (TRAIN, VALIDATION, TEST) for v in ({"twin": x["twin"]}, labels)]
    alone = probes.linear_probe(*alone, classes=CLASSES).loss
    assert np.allclose(alone["twin"], everything["twin"], atol=1e-3)


def test_features_that_never_vary_do_no_harm():
    splits = []
    for x, labels in (TRAIN, VALIDATION, TEST):
        dead = torch.cat([x["late"], torch.full((len(labels), 3), 0.7)], dim=1)
        splits += [{"late": dead, "dead": torch.zeros(len(labels), 2)}, labels]
    accuracy = probes.linear_probe(*splits, classes=CLASSES).correct.mean()
    alone = probes.linear_probe(*TRAIN, *VALIDATION, *TEST, classes=CLASSES).correct.mean()
    assert abs(accuracy["late"] - alone["late"]) < 0.01
    assert accuracy["dead"] == (TEST[1] == TRAIN[1].mode().values).double().mean()


# ---------------------------------------------------------------------------------------------------------------- k-NN
@pytest.mark.parametrize("k", [1, 5, 10])
def test_knn_is_sklearns_where_votes_decide(k):
    correct = probes.knn(*TRAIN, *TEST, classes=CLASSES, k=k)
    for layer in WIDTHS:
        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        reference.fit(TRAIN[0][layer].double(), TRAIN[1])
        share = np.sort(reference.predict_proba(TEST[0][layer].double()))
        clear = share[:, -1] > share[:, -2] + 1e-9
        assert clear.mean() > 0.6
        expected = reference.predict(TEST[0][layer].double()) == TEST[1].numpy()
        assert (correct[layer][clear] == expected[clear]).mean() > 0.998  # two neighbours may be equal in float32


def test_knn_ties_go_to_the_more_similar():
    angles = torch.tensor([10.0, 50.0, -20.0, -30.0]).deg2rad()
    train = {"a": torch.stack([angles.cos(), angles.sin()], dim=1)}
    test = {"a": torch.tensor([[1.0, 0.0]])}
    # two votes each: cosines of 10 and 50 degrees sum to 1.63, those of 20 and 30 to 1.81
    for labels in ([0, 0, 1, 1], [1, 1, 0, 0]):
        winner = torch.tensor([labels[2]])
        assert probes.knn(train, torch.tensor(labels), test, winner, classes=2, k=4)["a"].all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_knn_does_not_depend_on_rotation_scale_or_the_images_order(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q
    order = torch.randperm(600, generator=generator)
    train, test = TRAIN[0]["late"], TEST[0]["late"]
    one = probes.knn({"a": train}, TRAIN[1], {"a": test}, TEST[1], classes=CLASSES)
    other = probes.knn(
        {"a": scale * train[order] @ rotation}, TRAIN[1][order], {"a": test @ rotation}, TEST[1], classes=CLASSES,
    )  # fmt: skip
    assert (one["a"] != other["a"]).mean() < 0.01


# ------------------------------------------------------------------------------------------------------------ retrieval
def test_retrieval_against_a_loop(monkeypatch):
    monkeypatch.setattr(probes, "CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(150, 8, generator=generator)
    b = a + 0.8 * torch.randn(150, 8, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(a[:, None].double(), b[None].double(), dim=2)
    expected = [bool(cosine[i].argmax() == i) for i in range(150)]
    assert 0.2 < np.mean(expected) < 0.95
    assert probes.retrieval({"a": a}, {"a": b})["a"].tolist() == expected


def test_retrieval_of_collapsed_features_is_nothing_and_of_invariant_ones_everything():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    views = {"collapsed": torch.ones(40, 5), "classes only": x[:4].repeat(10, 1), "invariant": x}
    assert probes.retrieval(views, {k: 3 * v for k, v in views.items()}).mean().tolist() == [0, 0, 1]


# --------------------------------------------------------------------------------------------------------- NT-Xent
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 9), temperature=st.floats(0.1, 2))
def test_layerwise_nt_xent_is_the_naive_formula_of_each_layer(seed, n, temperature):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64)
    result = probes.layerwise_nt_xent(a, b, temperature)
    for layer in range(3):
        z = torch.cat([a[layer], b[layer]]).numpy()
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        for i in range(2 * n):
            partner = (i + n) % (2 * n)
            others = [math.exp(z[i] @ z[j] / temperature) for j in range(2 * n) if j != i]
            assert math.isclose(
                result[layer, i], -math.log(math.exp(z[i] @ z[partner] / temperature) / sum(others)), abs_tol=1e-9
            )
        assert torch.isclose(result[layer].mean(), objectives.nt_xent(a[layer], b[layer], temperature))


def views(n, seed):
    """Two views that share a signal: strongly in "late", weakly in "early", not at all in "noise"."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 8, generator=generator)
    result = []
    for _ in range(2):
        noise = torch.randn(3, n, 8, generator=generator)
        # next to the signal, columns of large noise that a good projection has to drop
        result.append({
            "late": torch.cat([shared + 0.2 * noise[0], 5 * noise[1]], dim=1),
            "early": torch.cat([shared + 0.8 * noise[0], 5 * noise[1]], dim=1),
            "noise": noise[2], "constant": torch.ones(n, 3),
        })  # fmt: skip
    return result


def test_fitted_nt_xent_finds_the_shared_signal_and_only_that():
    train, test = views(512, 0), views(300, 1)
    loss = probes.fitted_nt_xent(*train, *test, batch=64, dimensions=16, steps=200).mixed.mean()
    chance = math.log(2 * 64 - 1)
    assert loss["late"] < loss["early"] - 0.5 < chance - 0.6
    assert loss["noise"] > chance - 0.01  # as good as nothing, whatever it learnt by heart
    assert loss["constant"] == pytest.approx(chance, abs=1e-5)
    # an untrained projection of the same features does worse than the trained one
    untrained = probes.fitted_nt_xent(*train, *test, batch=64, dimensions=16, steps=1, learning_rate=0.0)
    assert loss["late"] < untrained.mixed["late"].mean() - 0.5


def test_fitted_nt_xent_scores_every_test_image_once_at_the_size_of_a_batch():
    train, test = views(128, 0), views(100, 1)  # 100 images in batches of 64: the second is filled up
    per_image = probes.fitted_nt_xent(*train, *test, batch=64, steps=10).mixed
    assert per_image.shape == (100, 4) and per_image.notna().all().all()
    assert np.allclose(per_image["constant"], math.log(127), atol=1e-5)


def test_knowing_the_class_is_chance_in_batches_of_one_class():
    """Embeddings that are the class and nothing else: far below chance in mixed batches, chance within a class."""
    labels = torch.arange(4).repeat(50)
    x = torch.eye(4)[labels] + 1e-4 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    classes, (instance_a, instance_b) = {"x": x}, ({"x": v["late"]} for v in views(200, 2))
    known = probes.fitted_nt_xent(classes, classes, classes, classes, labels, batch=64, steps=30, dimensions=4)
    assert known.of_a_class["x"].mean() == pytest.approx(math.log(2 * 50 - 1), abs=0.05)
    assert known.mixed["x"].mean() < math.log(2 * 64 - 1) - 0.8
    one = probes.fitted_nt_xent(instance_a, instance_b, instance_a, instance_b, labels, batch=64, steps=100)
    assert one.of_a_class["x"].mean() < math.log(99) - 1 and one.of_a_class.shape == (200, 1)
    few = torch.arange(20).repeat(10)  # ten images a class are too few
    assert probes.fitted_nt_xent(*[classes] * 4, few, batch=64, steps=2).of_a_class.isna().all().all()
    assert probes.fitted_nt_xent(*[classes] * 4, batch=64, steps=2).of_a_class.isna().all().all()


def test_fitted_nt_xent_depends_on_its_seed_and_not_on_other_layers():
    train, test = views(128, 0), views(100, 1)
    kwargs = dict(batch=32, steps=20)
    everything = probes.fitted_nt_xent(*train, *test, **kwargs).mixed
    assert everything.equals(probes.fitted_nt_xent(*train, *test, **kwargs).mixed)
    alone = probes.fitted_nt_xent(*({"early": v["early"]} for v in (*train, *test)), **kwargs).mixed
    assert np.allclose(alone["early"], everything["early"], atol=1e-4)
    assert not np.allclose(everything, probes.fitted_nt_xent(*train, *test, **kwargs, seed=1).mixed, atol=1e-4)


def test_folds_are_means_of_every_twentieth_image():
    outcomes = pd.DataFrame({"a": np.arange(50.0), "b": np.arange(50) % 3 == 0})
    table = probes.by_fold(outcomes)
    assert table.shape == (20, 2) and table.attrs["images"].tolist() == [3] * 10 + [2] * 10
    assert table["a"][3] == (3 + 23 + 43) / 3 and table["b"][0] == np.mean([0 % 3 == 0, 20 % 3 == 0, 40 % 3 == 0])
    assert (table["a"] * table.attrs["images"]).sum() == outcomes["a"].sum()


# --------------------------------------------------------------------------------------------------------------- doors
def broken(split, **changes):
    return ({**split[0], **changes}, split[1])


NAN = torch.full((600, 6), float("nan"))


@pytest.mark.parametrize(
    ("train", "validation", "classes", "message"),
    [
        (({}, TRAIN[1]), VALIDATION, 4, r"^train: expected .* at least one, got \[\]"),
        (TRAIN, ({"early": VALIDATION[0]["early"]}, VALIDATION[1]), 4, r"^validation: expected train's layers"),
        (TRAIN, broken(VALIDATION, early=torch.zeros(300, 7)), 4, r"^validation\['early'\]: expected floats .* 6\)"),
        (
            broken(TRAIN, middle=torch.zeros(599, 12)),
            VALIDATION,
            4,
            r"^train\['middle'\]: expected floats .*\(600, 12\)",
        ),
        (broken(TRAIN, early=torch.zeros(600, 6).long()), VALIDATION, 4, r"^train\['early'\]: expected floats .*int64"),
        (broken(TRAIN, early=NAN), VALIDATION, 4, r"^train\['early'\]: expected finite features, got NaN"),
        ((TRAIN[0], TRAIN[1][1:]), VALIDATION, 4, r"^train_labels: expected integers of shape \(600,\).*\(599,\)"),
        ((TRAIN[0], TRAIN[1].float()), VALIDATION, 4, r"^train_labels: expected integers"),
        (TRAIN, (VALIDATION[0], VALIDATION[1] - 1), 4, r"^validation_labels: expected 0 to 3, got -1 to 2"),
        (TRAIN, VALIDATION, 3, r"^train_labels: expected 0 to 2, got 0 to 3"),
        (TRAIN, VALIDATION, 1, r"^classes: expected at least 2, got 1"),
        ((TRAIN[0], torch.zeros(600).long()), VALIDATION, 4, r"^train_labels: expected at least 2 different classes"),
    ],
)
def test_linear_probe_refuses(train, validation, classes, message):
    with pytest.raises(ValueError, match=message):
        probes.linear_probe(*train, *validation, *TEST, classes=classes)


@pytest.mark.parametrize("penalties", [[], [0.1, 0.0], [-1.0]])
def test_linear_probe_refuses_penalties_that_are_not_positive(penalties):
    with pytest.raises(ValueError, match="^penalties: expected positive numbers"):
        probes.linear_probe(*TRAIN, *VALIDATION, *TEST, classes=CLASSES, penalties=penalties)


def test_the_other_probes_refuse():
    with pytest.raises(ValueError, match="^k: expected 1 to 600 .*, got 601"):
        probes.knn(*TRAIN, *TEST, classes=CLASSES, k=601)
    with pytest.raises(ValueError, match="^test: expected train's layers"):
        probes.knn(*TRAIN, {"other": TEST[0]["early"]}, TEST[1], classes=CLASSES)
    with pytest.raises(
        ValueError, match=r"^view_b\['early'\]: expected floats of shape \(600, 6\) as view_a .*\(500, 6\)"
    ):
        probes.retrieval(TRAIN[0], TEST[0])
    train, test = views(64, 0), views(32, 1)
    with pytest.raises(ValueError, match=r"^batch: expected 2 to 32 .*, got 33"):
        probes.fitted_nt_xent(*train, *test, batch=33)
    with pytest.raises(ValueError, match=r"^train_b\['late'\]: expected .* \(64, 16\) as train_a .* \(32, 16\)"):
        probes.fitted_nt_xent(train[0], test[1], *test, batch=8)
