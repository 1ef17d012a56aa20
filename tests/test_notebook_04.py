"""The functions of notebook 04, on factors with known answers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from chapters import definitions
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

ALPHAS = 800 * 10.0 ** np.arange(-6, 2)


@pytest.fixture
def chapter():
    return SimpleNamespace(**definitions("04_implicit_objective"))


def factors(n, seed):
    """Features of two layers, and factors that are functions of them and of noise; layer "b" lacks the first four."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 9))
    table = pd.DataFrame({
        "size": 2 + x @ np.arange(9) + 4 * generator.normal(size=n),
        "unrelated": generator.normal(size=n),
        "foreground_hue": np.arctan2(x[:, 0], x[:, 1]) / (2 * np.pi) % 1,
        "texture": pd.Categorical.from_codes((x[:, 2] > 0.3).astype(int) + (x[:, 2] > 1), ["dots", "flat", "waves"]),
        "flag": pd.Categorical(x[:, 4] > 0),
    })  # fmt: skip
    return {"a": torch.tensor(x * 10.0 + 3), "b": torch.tensor(x[:, 4:]).float()}, table


def test_each_kind_of_factor_is_read_by_a_ridge_regression_and_scored_in_its_measure(chapter):
    train, test = factors(800, 0), factors(400, 1)
    table = chapter.factor_scores(*train, *test)
    assert list(table) == ["layer", "factor", "score"] and len(table) == 10
    score = table.set_index(["layer", "factor"]).score
    for layer in ("a", "b"):
        scaler = StandardScaler().fit(train[0][layer])
        x, x_test = scaler.transform(train[0][layer]), scaler.transform(test[0][layer])
        for factor in ("size", "unrelated"):
            expected = RidgeCV(ALPHAS).fit(x, train[1][factor]).score(x_test, test[1][factor])
            assert score[layer, factor] == pytest.approx(expected, abs=1e-6)
        circle, truth = (np.exp(2j * np.pi * t[1].foreground_hue.to_numpy()) for t in (train, test))
        fit = RidgeCV(ALPHAS).fit(x, np.stack([circle.real, circle.imag], axis=1)).predict(x_test) @ [1, 1j]
        residual, spread = (np.square(np.abs(z)).sum() for z in (fit - truth, truth - truth.mean()))
        assert score[layer, "foreground_hue"] == pytest.approx(1 - residual / spread, abs=1e-6)
        for factor in ("texture", "flag"):
            fit = RidgeCV(ALPHAS).fit(x, pd.get_dummies(train[1][factor]).astype(float)).predict(x_test)
            assert score[layer, factor] == (test[1][factor].cat.codes == fit.argmax(1)).mean()
    assert score["a", "foreground_hue"] > 0.7 > 0.1 > score["b", "foreground_hue"]
    assert abs(score["a", "unrelated"]) < 0.05 and score["a", "flag"] > 0.95
