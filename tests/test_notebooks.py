"""The functions that stand in the notebooks, on numbers whose answer is known."""

import ast
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from repsim import claims
from repsim.comparison import Comparison

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def functions(notebook):
    """The imports, functions and constants (in capitals) of a notebook's script, which is not run."""
    nodes = ast.parse((NOTEBOOKS / f"{notebook}.py").read_text()).body
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    constants = [n for n in nodes if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]).isupper()]
    names = {}
    kept = [n for n in nodes if isinstance(n, kinds) or n in constants]
    exec(compile(ast.Module(kept, []), notebook, "exec"), names)
    return SimpleNamespace(**names)


# 06 Between the objectives


@pytest.fixture(scope="module")
def ladder():
    return functions("06_between_the_objectives")


def evidence(angles, seeds=4, folds=5, noise=0.0):
    """Rungs at these angles (rung -> degrees at a layer's index) in the plane beyond what they share with untrained networks.

    The Gram matrix of a network is its objective's vector plus one that its seed alone has; HSIC is their product.
    """
    generator, vectors = np.random.default_rng(0), {}
    for place, layer in enumerate(BLOCKS):
        for number, (rung, angle) in enumerate(angles.items()):
            turn = np.radians(angle(place))
            for seed in range(seeds):
                seeds_own = np.zeros(len(angles) * seeds)
                seeds_own[number * seeds + seed] = 0.5
                objective = [1, 0, 0] if rung == "untrained" else [0.6, np.cos(turn), np.sin(turn)]
                vectors[f"{rung}-{seed}", layer] = np.concatenate([objective, seeds_own])
    rows = np.stack(list(vectors.values()))
    hsic = np.stack([rows @ rows.T] * folds)
    spread = generator.normal(size=hsic.shape)
    hsic += noise * (spread + spread.transpose(0, 2, 1))
    compared = Comparison.of(vectors, {"unbiased": torch.tensor(hsic)}, torch.full((folds,), 100.0))
    return claims.Evidence(compared, {}, seeds)


def fan(supcon, nscl, simclr, late=0.0):
    """Angles from cross-entropy, the same in all layers but for `late` degrees more of NSCL and SimCLR in stage 4."""
    return {
        "untrained": lambda place: 0,
        "ce_views": lambda place: 0,
        "supcon": lambda place: supcon,
        "nscl": lambda place: nscl + late * (place >= 6),
        "simclr": lambda place: simclr + late * (place >= 6),
    }


def test_the_angle_by_hand_is_the_angle_between_what_objectives_determine(ladder):
    e = evidence(fan(10, 30, 35))

    def cka(a, b):
        return e.comparison.replicates(a, "layer3.1", b, "layer3.1")[0]

    for step, angle in zip(ladder.STEPS, (10, 20, 5)):
        assert ladder.theta(cka, *step, 4) == pytest.approx(angle) == e.angle(*step, "layer3.1")[0]
    assert cka("supcon-0", "supcon-1") < 0.9 < ladder.rho(cka, "supcon", "supcon", 4) == pytest.approx(1)


def test_where_the_angle_opens_is_told_block_by_block(ladder):
    lines = ladder.where_it_opens(evidence(fan(10, 30, 35, late=25)), ladder.STEPS).splitlines()
    assert len(lines) == 3 and "cross-entropy" in lines[0] and "10.0 [10.0, 10.0] degrees" in lines[0]
    assert "45.0 [45.0, 45.0] degrees" in lines[1] and "it opens most in block 4.0, by 25.0" in lines[1]
    assert "an undefined angle" in ladder.where_it_opens(evidence(fan(10, 30, 35), seeds=1), ladder.STEPS)


@pytest.mark.parametrize(
    "angles, noise, outcomes",
    [
        (fan(10, 50, 55), 0.0, ["confirmed", "confirmed", "confirmed"]),  # cos 55 = .57
        (fan(40, 50, 55), 0.0, ["refuted", "confirmed", "confirmed"]),  # at the first step it turns by more
        (fan(10, 14, 15), 0.0, ["refuted", "confirmed", "confirmed"]),  # wider than one step, not than the other
        (fan(10, 50, 90), 0.0, ["refuted", "refuted", "refuted"]),
        (fan(10, 30, 35, late=30), 0.0, ["confirmed", "confirmed", "confirmed"]),  # 50 degrees, in the last stage alone
        (fan(10, 50, 55), 1.0, ["open", "open", "open"]),
    ],
)
def test_predictions_of_the_ladder(ladder, angles, noise, outcomes):
    judged = ladder.judge(evidence(angles, noise=noise))
    assert [p.id for p in judged] == ["6.1", "6.2", "6.3"]
    assert [ladder.OUTCOMES[p.verdict] for p in judged] == outcomes
    assert [[p.threshold for p in claim.parts] for claim in judged] == [[5.0, 5.0], [0.8], [0.5]]
    gated = ladder.judge(evidence(angles, noise=noise), "no reason")
    assert {ladder.OUTCOMES[p.verdict] for p in gated} == {"not judged"}


def test_what_has_not_learnt_is_not_judged(ladder):
    rungs, others = [*ladder.RUNGS], ["byol", "untrained", "pixels"]
    accuracy = pd.DataFrame(index=rungs + others, data={"10-NN": 0.40, "linear probe": 0.50})
    accuracy.loc["untrained"], accuracy.loc["pixels"] = (0.25, 0.20), (0.30, 0.35)
    assert ladder.gate(accuracy, 4) == ""
    assert "3 seeds" in ladder.gate(accuracy, 3)
    for objective, column, least in (
        ("simclr", "linear probe", 0.45),
        ("ce_views", "linear probe", 0.45),
        ("nscl", "10-NN", 0.30),
    ):
        for reading, reason in ((least + 0.001, False), (least - 0.001, True)):
            changed = accuracy.copy()
            changed.loc[objective, column] = reading
            assert bool(ladder.gate(changed, 4)) == bool(ladder.weak(objective, changed)) == reason
    accuracy.loc["byol", "10-NN"] = 0.29
    assert ladder.gate(accuracy, 4) == "" and "0.30 is needed" in ladder.weak("byol", accuracy)


def test_the_masks_say_what_attracts_and_what_is_compared(ladder):
    """Views 0, 1, 2 of three images, the first two of one class, and their other views 3, 4, 5."""
    masks = ladder.masks(torch.tensor([0, 0, 1]))
    of_first = {rung: [mask[0].nonzero().flatten().tolist() for mask in pair] for rung, pair in masks.items()}
    assert of_first == {
        "supcon": [[1, 3, 4], [1, 2, 3, 4, 5]],
        "nscl": [[3], [2, 3, 5]],
        "simclr": [[3], [1, 2, 3, 4, 5]],
    }
    za, zb = torch.eye(3), torch.eye(3)  # cosine 1 with the own image's other view, otherwise 0
    losses = {rung: ladder.contrastive(za, zb, *pair, temperature=1.0).item() for rung, pair in masks.items()}
    e = np.e
    assert losses["simclr"] == pytest.approx(np.log(e + 4) - 1)
    assert losses["nscl"] == pytest.approx((2 * np.log(e + 2) + np.log(e + 4)) / 3 - 1)
    mean_cosine = (
        4 * 1 / 3 + 2 * 1
    ) / 6  # with what attracts: of three views one has cosine 1, of the third class the only one
    assert losses["supcon"] == pytest.approx(np.log(e + 4) - mean_cosine)


def test_a_family_is_placed_between_the_two_ends_or_not_judged(ladder):
    angles = fan(10, 50, 60) | {"byol": lambda place: 60 if place >= 6 else 0}
    text = ladder.place("byol", evidence(angles), "")
    assert "1.00 [1.00, 1.00] of its similarity structure with SimCLR's" in text
    assert "0.50 [0.50, 0.50] with cross-entropy's" in text and "difference is 0.50" in text
    assert ladder.place("byol", evidence(angles), "too weak").endswith("not judged; too weak.")
