import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import procrustes as scipy_procrustes
from scipy.stats import kstest, rankdata
from sklearn.linear_model import LinearRegression
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestCentroid, NearestNeighbors

from repsim import claims, measures
from repsim.cka import cka

N, CLASSES = 200, 5
LABELS = torch.arange(N) % CLASSES


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(p, seed=0):
    return torch.linalg.qr(normal(p, p, seed=seed)).Q


# Pairs of "networks" of which it is known what they share.
X = normal(N, 12, seed=1)
ROTATED = X, 3 * X @ rotation(12)
INDEPENDENT = X, normal(N, 20, seed=2)
CLASSES_ONLY = tuple(
    4 * normal(CLASSES, 16, seed=s)[LABELS] / math.sqrt(2) + normal(N, 16, seed=s + 10) for s in (3, 4)
)
OUTLIERS_ONLY = normal(N, 12, seed=5), normal(N, 20, seed=6)
for side in OUTLIERS_ONLY:  # two images far out on one line
    side[:2] += 60 * torch.tensor([[1.0], [-1.0]]) * F.normalize(normal(1, side.shape[1], seed=7))


def verdict(x, y):
    null = measures.permutation_null({"x": x @ x.T}, {"y": y @ y.T}, permutations=200, generator=generator(0)).iloc[0]
    return null.cka, null.p, null.calibrated


def generator(seed):
    return torch.Generator().manual_seed(seed)


CHANCE = 10 / (N - 1)


def test_identical_up_to_rotation():
    assert measures.mutual_knn(*ROTATED) == 1
    assert measures.angular_shape_distance(*ROTATED) < 1e-4
    assert measures.rsa(*ROTATED, metric="cosine") > 1 - 1e-9
    assert verdict(*ROTATED) == (pytest.approx(1, abs=1e-5), 1 / 201, pytest.approx(1, abs=1e-5))


def test_independent():
    assert abs(measures.mutual_knn(*INDEPENDENT) - CHANCE) < 0.02
    shuffled = measures.angular_shape_distance(X, INDEPENDENT[1][torch.randperm(N, generator=generator(0))])
    assert abs(measures.angular_shape_distance(*INDEPENDENT) - shuffled) < 0.05
    assert measures.angular_shape_distance(*INDEPENDENT) > 0.9
    assert abs(measures.rsa(*INDEPENDENT)) < 0.05
    value, p, calibrated = verdict(*INDEPENDENT)
    assert abs(value) < 0.05 and p > 0.05 and calibrated < 0.01


def test_sharing_only_classes():
    x, y = CLASSES_ONLY
    value, p, calibrated = verdict(x, y)
    assert value > 0.5 and p == 1 / 201 and calibrated > 0.4
    assert measures.mutual_knn(x, y) > 3 * CHANCE and measures.rsa(x, y) > 0.3
    inside = [measures.within_class_centred(z, LABELS) for z in (x, y)]
    value, p, _ = verdict(*inside)
    assert abs(value) < 0.05 and p > 0.05
    assert abs(measures.mutual_knn(*inside) - CHANCE) < 0.02 and abs(measures.rsa(*inside)) < 0.05
    assert measures.nearest_class_centre(x[:100], LABELS[:100], x[100:], LABELS[100:]) > 0.9
    assert measures.nearest_class_centre(inside[0][:100], LABELS[:100], inside[0][100:], LABELS[100:]) < 0.4


def test_sharing_only_two_outliers():
    x, y = OUTLIERS_ONLY
    assert cka(x, y) > 0.8  # the trap: this is what the others are for
    assert measures.angular_shape_distance(x, y) < 0.8
    assert abs(measures.mutual_knn(x, y) - CHANCE) < 0.03
    assert measures.rsa(x, y) < 0.1
    left = measures.drop_top_norm(x, y, fraction=0.01)
    assert left.tolist() == list(range(2, N))
    value, p, _ = verdict(x[left], y[left])
    assert abs(value) < 0.05 and p > 0.05
    assert measures.angular_shape_distance(x[left], y[left]) > 1


# ----------------------------------------------------------------------------------------------------------- references
@pytest.mark.parametrize("k", [1, 10, 50])
def test_mutual_knn_is_sklearns_neighbours(k):
    x, y = CLASSES_ONLY
    sets = []
    for z in (x, y):
        index = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(z).kneighbors()[1]
        sets.append([set(row) for row in index])
    expected = np.mean([len(a & b) / k for a, b in zip(*sets)])
    assert math.isclose(measures.mutual_knn(x, y, k), expected)


def test_angular_shape_distance_is_scipys_procrustes():
    y = X @ rotation(12) + 0.5 * normal(N, 12, seed=8)
    disparity = scipy_procrustes(X.numpy(), y.numpy())[2]  # with the best scale too: 1 - nuclear norm squared
    assert math.isclose(measures.angular_shape_distance(X, y), math.acos(math.sqrt(1 - disparity)), abs_tol=1e-9)


def test_angular_shape_distance_of_wide_features_is_that_of_the_full_product():
    x, y = normal(30, 100, seed=1), normal(30, 7, seed=2)
    a, b = ((z - z.mean(0)).numpy() for z in (x, y))
    nuclear = np.linalg.norm(a.T @ b, "nuc") / np.linalg.norm(a) / np.linalg.norm(b)
    assert math.isclose(math.cos(measures.angular_shape_distance(x, y)), nuclear, abs_tol=1e-10)


@pytest.mark.parametrize("metric", ["correlation", "cosine", "euclidean"])
def test_rsa_is_the_correlation_of_ranks(metric):
    x, y = CLASSES_ONLY
    upper = np.triu_indices(N, 1)
    ranks = [rankdata(pairwise_distances(z.numpy(), metric=metric)[upper]) for z in (x, y)]
    assert math.isclose(measures.rsa(x, y, metric), np.corrcoef(ranks)[0, 1], abs_tol=1e-8)


def test_nearest_class_centre_is_sklearns():
    x = CLASSES_ONLY[0] + 2 * normal(N, 16, seed=20)
    labels = LABELS * 3 + 1  # any integers
    reference = NearestCentroid().fit(x[:120], labels[:120]).score(x[120:], labels[120:])
    assert 0.3 < reference < 1
    assert math.isclose(measures.nearest_class_centre(x[:120], labels[:120], x[120:], labels[120:]), reference)


def test_neural_collapse_is_its_definition():
    x, labels = CLASSES_ONLY[0], LABELS.clone()
    labels[:40] = 0  # classes of different sizes
    z, l = x.numpy(), labels.numpy()
    means = np.stack([z[l == c].mean(0) for c in range(CLASSES)])
    within = sum(np.outer(row - means[c], row - means[c]) for row, c in zip(z, l)) / N
    centred = means - means.mean(0)
    between = centred.T @ centred / CLASSES
    norms = np.linalg.norm(centred, axis=1)
    cosines = (centred @ centred.T / np.outer(norms, norms))[~np.eye(CLASSES, dtype=bool)]
    result = measures.neural_collapse(x, labels)
    assert math.isclose(result.nc1, np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / CLASSES, rel_tol=1e-8)
    assert math.isclose(result.etf_deviation, np.abs(cosines + 1 / (CLASSES - 1)).mean(), rel_tol=1e-8)


def test_a_simplex_has_collapsed_and_noise_has_not():
    simplex = torch.eye(CLASSES, dtype=torch.float64)[LABELS] @ rotation(CLASSES) + 5
    assert all(abs(value) < 1e-7 for value in measures.neural_collapse(simplex, LABELS))
    assert measures.neural_collapse(X, LABELS).nc1 > 1
    # random labels on the features of a network that has collapsed onto others
    shuffled = LABELS[torch.randperm(N, generator=generator(0))]
    assert measures.neural_collapse(simplex + 0.1 * normal(N, CLASSES), shuffled).nc1 > 1


def test_stitch_is_linear_regression_at_every_place():
    a, mixing = normal(6, 4, 5, 3).float(), normal(4, 7, seed=1).float()
    b = torch.einsum("nchw,cd->ndhw", a, mixing) + 2 + 0.5 * normal(6, 7, 5, 3, seed=2).float()
    fit = measures.stitch(a, b)
    x, y = (z.movedim(1, 3).flatten(0, 2).double().numpy() for z in (a, b))
    reference = LinearRegression().fit(x, y)
    assert np.allclose(fit.weight[:, :, 0, 0], reference.coef_, atol=1e-5) and fit.weight.shape == (7, 4, 1, 1)
    assert np.allclose(fit.bias, reference.intercept_, atol=1e-5)
    assert np.allclose(fit(a).movedim(1, 3).flatten(0, 2), reference.predict(x), atol=1e-4)


def test_stitch_with_dead_channels_is_exact_and_small():
    a = normal(8, 3, 4, 4)
    doubled = torch.cat([a, a, torch.zeros_like(a)], dim=1)
    fit = measures.stitch(doubled, a)
    assert torch.allclose(fit(doubled), a, atol=1e-6)
    assert torch.allclose(fit.weight[:, :3], fit.weight[:, 3:6], atol=1e-8) and fit.weight[:, 6:].abs().max() == 0


# ---------------------------------------------------------------------------------------------------------------- null
def test_permutation_null_is_cka_of_shuffled_images():
    a = {"one": X[:40], "two": X[:40, :3] ** 2}
    b = {"same": X[:40] + normal(40, 12, seed=9), "other": normal(40, 5, seed=10), "third": normal(40, 1, seed=11)}
    kwargs = dict(permutations=50, alpha=0.1)
    table = measures.permutation_null(*({k: v @ v.T for k, v in s.items()} for s in (a, b)), **kwargs,
                                      generator=generator(3))  # fmt: skip
    shuffles = generator(3)
    null = []
    for _ in range(50):
        order = torch.randperm(40, generator=shuffles)
        null.append([[cka(x, y[order]) for y in b.values()] for x in a.values()])
    null = np.array(null)
    for row in table.itertuples():
        i, j = list(a).index(row.layer_a), list(b).index(row.layer_b)
        value = cka(a[row.layer_a], b[row.layer_b])
        assert math.isclose(row.cka, value, abs_tol=1e-5)
        assert math.isclose(row.null_mean, null[:, i, j].mean(), abs_tol=1e-5)
        quantile = np.quantile(null[:, i, j], 0.9)
        assert math.isclose(row.null_quantile, quantile, abs_tol=1e-5)
        assert math.isclose(row.calibrated, (value - quantile) / (1 - quantile), abs_tol=1e-4)
        assert math.isclose(row.p, (1 + (null[:, i, j] >= value).sum()) / 51)
        assert math.isclose(row.p_family, (1 + (null.max((1, 2)) >= value).sum()) / 51)
    assert len(table) == 6 and (table.p_family >= table.p).all()


def test_p_values_of_unrelated_features_are_uniform_and_the_family_is_protected():
    p, false_alarms = [], 0
    for seed in range(60):
        a = {str(i): normal(24, 4, seed=1000 + 10 * seed + i) for i in range(3)}
        b = {str(i): normal(24, 4, seed=5000 + 10 * seed + i) for i in range(3)}
        grams = ({k: v @ v.T for k, v in s.items()} for s in (a, b))
        table = measures.permutation_null(*grams, permutations=99, generator=generator(seed))
        p.append(table.p[0])
        false_alarms += (table.p_family <= 0.05).any()
    assert kstest(p, "uniform").pvalue > 0.01
    assert false_alarms <= 9  # 3 expected; more than 9 in 60 has probability 0.001


# ------------------------------------------------------------------------------------------------------- from CKAs alone
def test_deconfounded_cka_regresses_the_inputs_gram_out():
    pixels = normal(60, 6, seed=1)
    x, y = pixels @ normal(6, 9, seed=2) + normal(60, 9, seed=3), pixels @ normal(6, 7, seed=4) + normal(60, 7, seed=5)

    def centred(z):
        h = np.eye(60) - 1 / 60
        return (h @ (z @ z.T).numpy() @ h).flatten()

    c, left = centred(pixels), []
    for z in (x, y):
        k = centred(z)
        left.append(k - (k @ c) / (c @ c) * c)
    expected = left[0] @ left[1] / np.linalg.norm(left[0]) / np.linalg.norm(left[1])
    values = [cka(p, q, estimator="biased") for p, q in ((x, y), (x, pixels), (y, pixels))]
    assert math.isclose(measures.deconfounded_cka(*values), expected, abs_tol=1e-9)
    assert expected < 0.7 * values[0]


def test_scores_broadcast_and_are_undefined_where_they_must_be():
    cross = np.array([[0.4, 0.5], [0.2, 0.6]])
    result = measures.deconfounded_cka(cross, np.array([[0.0], [1.0]]), np.array([[0.0, 0.5]]))
    assert result[0, 0] == 0.4 and result[0, 1] == pytest.approx(0.5 / math.sqrt(0.75)) and np.isnan(result[1]).all()
    score = claims.relative(cross, np.array([0.8, -0.9]), np.array([0.2, -0.1]))
    assert score[:, 0] == pytest.approx([1.0, 0.5]) and np.isnan(score[:, 1]).all(), "two negative ceilings are none"


# ---------------------------------------------------------------------------------------------------------- invariances
COMPARISONS = {
    "mutual_knn": lambda x, y: measures.mutual_knn(x, y, 3),
    "angular": measures.angular_shape_distance,
    "rsa_cosine": lambda x, y: measures.rsa(x, y, "cosine"),
    "rsa_euclidean": lambda x, y: measures.rsa(x, y, "euclidean"),
}


@pytest.mark.parametrize("name", COMPARISONS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(8, 25), p=st.integers(2, 30), q=st.integers(2, 30),
       scale=st.floats(1e-3, 1e3))  # fmt: skip
def test_symmetric_and_invariant_to_rotation_scale_and_the_images_order(name, seed, n, p, q, scale):
    measure = COMPARISONS[name]
    x, y = normal(n, p, seed=seed), normal(n, q, seed=seed + 1)
    x[:, 0] += y[:, 0]
    order = torch.randperm(n, generator=generator(seed))
    value = measure(x, y)
    tolerance = dict(abs=1e-6) if name == "angular" else dict(abs=1e-8)
    assert measure(y, x) == pytest.approx(value, **tolerance)
    assert measure(scale * x @ rotation(p, seed), y) == pytest.approx(value, **tolerance)
    assert measure(x[order], y[order]) == pytest.approx(value, **tolerance)
    if name in ("angular", "rsa_euclidean"):
        assert measure(x + 3, y) == pytest.approx(value, **tolerance)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(4, 15))
def test_angular_shape_distance_is_a_metric(seed, n):
    x, y, z = (normal(n, p, seed=seed + i) for i, p in enumerate((3, 8, 20)))
    d = measures.angular_shape_distance
    assert 0 <= d(x, z) <= d(x, y) + d(y, z) + 1e-9 and d(x, y) <= math.pi / 2 and d(x, x) < 1e-6


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_class_geometry_is_invariant_to_rotation_shift_scale_and_class_names(seed, scale):
    x, labels = CLASSES_ONLY[0], LABELS
    moved = scale * x @ rotation(16, seed) + 3 * scale
    names = torch.randperm(50, generator=generator(seed))[:CLASSES]
    assert np.allclose(measures.neural_collapse(x, labels), measures.neural_collapse(moved, names[labels]), rtol=1e-6)
    assert measures.within_class_centred(moved, labels).norm() == pytest.approx(
        scale * measures.within_class_centred(x, labels).norm().item(), rel=1e-9
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), fraction=st.floats(0, 0.5))
def test_drop_top_norm_keeps_the_central_ones(seed, fraction):
    x = normal(50, 4, seed=seed) + 100
    left = measures.drop_top_norm(x, fraction=fraction)
    norms = (x - x.mean(0)).norm(dim=1)
    assert len(left) == 50 - math.ceil(50 * fraction) and (left.diff() > 0).all()
    gone = [i for i in range(50) if i not in set(left.tolist())]
    assert not gone or norms[gone].min() >= norms[left].max()


# --------------------------------------------------------------------------------------------------------------- doors
NAN = X.clone()
NAN[3, 3] = float("nan")
GRAM = X @ X.T


def null(a=GRAM, b=GRAM, **kwargs):
    return measures.permutation_null({"l": a}, {"l": b}, **{"permutations": 20, "generator": generator(0), **kwargs})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measures.mutual_knn(X, X[1:]), "^x, y: expected features of the same images, got 200 and 199"),
        (lambda: measures.mutual_knn(X, X, k=200), r"^k: expected 1 to 199 .*, got 200"),
        (lambda: measures.mutual_knn(X[0], X), r"^x: expected shape \(n, p\)"),
        (lambda: measures.angular_shape_distance(X, NAN), "^y: expected finite values, got NaN"),
        (lambda: measures.angular_shape_distance(X, torch.ones(N, 3)), "^y: expected features that vary"),
        (lambda: measures.rsa(X, torch.ones(N, 3)), "^y: expected rows that have a correlation"),
        (lambda: measures.rsa(X[:2], X[:2]), r"^x: expected shape \(n, p\) with n >= 3"),
        (lambda: null(GRAM[:, 1:]), r"^a\['l'\]: expected a finite Gram matrix \(n, n\)"),
        (lambda: null(b=GRAM[1:, 1:]), r"^a, b: expected Grams of the same images, got \[199, 200\]"),
        (lambda: null(b=torch.ones(N, N)), r"^b\['l'\]: expected features that vary"),
        (lambda: null(GRAM * float("nan")), r"^a\['l'\]: expected a finite Gram"),
        (lambda: null(permutations=19), "^permutations: expected at least 20 for alpha = 0.05, got 19"),
        (lambda: measures.drop_top_norm(X, fraction=1.0), r"^fraction: expected .* \[0, 1\), got"),
        (lambda: measures.neural_collapse(X, LABELS[1:]), r"^labels: expected integers \(200,\)"),
        (lambda: measures.neural_collapse(X, LABELS * 0), "^labels: expected at least 2 classes, got 1"),
        (lambda: measures.neural_collapse(torch.ones(N, 3), LABELS), "^x: expected classes whose means differ"),
        (lambda: measures.within_class_centred(NAN, LABELS), "^x: expected finite values"),
        (lambda: measures.nearest_class_centre(X, LABELS, X[:, 1:], LABELS), r"^test: expected \(m, 12\)"),
        (lambda: measures.nearest_class_centre(X, LABELS, X, LABELS + 1), "^test_labels: expected labels of the training"),
        (lambda: measures.stitch(normal(2, 3, 4, 4), normal(2, 3, 4, 5)), r"^a, b: expected \(n, c, h, w\)"),
        (lambda: measures.stitch(normal(2, 3), normal(2, 3)), r"^a, b: expected \(n, c, h, w\)"),
    ],
)  # fmt: skip
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
