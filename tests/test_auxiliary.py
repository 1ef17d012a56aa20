import copy
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from repsim import auxiliary, models, predictions, taps, train
from repsim import robustness as rb
from repsim.claims import NOT_SUPPORTED, SUPPORTED, UNDECIDED
from repsim.objectives import OBJECTIVES, BatchOutputs
from repsim.study import Study

SMALL = {"train_images": 64, "test_images": 48, "image_size": 16, "width": 4, "batch_size": 32, "seeds": 1}
SMALL |= {"epochs_sl": 1, "epochs_simclr": 1}


@pytest.mark.parametrize(
    "architecture, layer", [("resnet18", "layer2.0"), ("resnet18", "layer3.1"), ("resnet50", "pool")]
)
def test_a_cut_network_is_the_network_up_to_that_layer_and_learns_all_of_it(architecture, layer):
    model = models.build(architecture, width=4, head="projection", seed=3)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    short = auxiliary.cut(model, layer, 5)
    assert torch.equal(short.eval()(images), torch.zeros(6, 5))
    backbone = copy.deepcopy(short)
    backbone.fc = torch.nn.Identity()
    torch.testing.assert_close(backbone(images), taps.pooled(model, images, [layer])[layer])
    stages = [n for n in ("layer1", "layer2", "layer3", "layer4") if list(getattr(short, n).parameters())]
    assert stages == [f"layer{i}" for i in range(1, 5 if layer == "pool" else int(layer[5]) + 1)]
    torch.nn.init.normal_(short.fc.weight)
    short.train()(images).square().sum().backward()
    assert all(p.grad is not None for p in short.parameters()) and not any(
        p.grad is not None for p in model.parameters()
    )
    with pytest.raises(ValueError, match=r"got 'layer2.0.residual'"):
        auxiliary.cut(model, "layer2.0.residual", 5)


@pytest.mark.parametrize(
    "name, above", [("simclr_sl_middle", True), ("sl_simclr_middle", True), ("simclr_sl_top", False)]
)
def test_the_auxiliary_loss_reaches_only_what_lies_below_it(name, above):
    settings = train.Settings(objective=name, width=4)
    trainee = train.Trainee(settings, 10)
    plain = train.Settings(objective="simclr" if name.startswith("simclr") else "sl", width=4).build(10)
    assert all(torch.equal(a, b) for a, b in zip(trainee.model.parameters(), plain.parameters()))
    images, labels = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    with train._pooled(trainee.model, OBJECTIVES[name].layer) as found:
        outputs = trainee.model(images).detach().chunk(2)
    OBJECTIVES[name].loss(BatchOutputs(outputs, labels, settings, trainee.extra_module, found[0].chunk(2))).backward()
    reached = {n.split(".")[0] for n, p in trainee.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"conv1", "bn1", "layer1", "layer2", "layer3"} | (set() if above else {"layer4"})
    assert all(p.grad is not None for p in trainee.extra_module.parameters())


def outcomes(rates, n=400):
    """Cells whose value is the share of n images that are right: {cell: share}."""
    hits = {cell: torch.arange(n) * 7919 % n < rate * n for cell, rate in rates.items()}
    return rb.cells(rb.leave_out({c: lambda i, h=h: h[i].double().mean().item() for c, h in hits.items()}, n))


DEPTHS = ["layer1.1", "layer2.1", "layer3.1", "pool"]


def tables(**changes):
    """Tables in which every network does equally well everywhere, but for `changes`: {part: {cell: share}}."""
    names = [f"{o}-{s}" for o in (*auxiliary.BESIDE, *auxiliary.NETWORKS, *auxiliary.CONTROLS) for s in (0, 1)]
    same = {
        "own": {(n, d, "own", m): 0.5 for n in names for d in DEPTHS for m in ("probe", "retrieval")},
        "transfer": {(n, d, "texture", "probe"): 0.5 for n in names for d in DEPTHS},
        "finetuned": {(n, d, "texture", "fine-tuned"): 0.5 for n in names for d in DEPTHS},
        "comparison": {(f"sl-{s}", d, n, d): 0.5 for s in (0, 1) for n in names if n[:3] != "sl-" for d in DEPTHS},
    }
    cells = {part: outcomes(rates | changes.get(part, {})) for part, rates in same.items()}
    peaks = {"simclr-0": "layer3.1", "simclr-1": "layer3.1"}
    return auxiliary.Tables(
        **cells, peaks=peaks, depths=DEPTHS, tasks=["texture"], objectives=auxiliary.NETWORKS, seeds=2, basis="b"
    )


def verdict(prediction, **changes):
    return prediction(tables(**changes)).verdict


def test_a_prediction_has_to_hold_for_every_seed():
    def own(first, second):
        middle = {("simclr-0", "layer3.1", "own", "probe"): first, ("simclr-1", "layer3.1", "own", "probe"): second}
        return middle | {(f"sl-{s}", "pool", "own", "probe"): 0.8 for s in (0, 1)}

    assert verdict(auxiliary.peak, own=own(0.7, 0.7)) == SUPPORTED
    assert verdict(auxiliary.peak, own=own(0.7, 0.5)) == UNDECIDED
    assert verdict(auxiliary.peak, own=own(0.7, 0.3)) == NOT_SUPPORTED
    assert verdict(auxiliary.peak, own=own(0.7, 0.7) | {("sl-0", "pool", "own", "probe"): 0.3}) == NOT_SUPPORTED


def test_cutting_at_the_peak_may_be_no_worse_than_anywhere_else():
    assert verdict(auxiliary.cut_at_peak) == SUPPORTED
    assert verdict(auxiliary.cut_at_peak, transfer={("simclr-1", "layer1.1", "texture", "probe"): 0.7}) == NOT_SUPPORTED


def test_a_control_that_was_not_trained_leaves_its_prediction_open():
    top = {(f"simclr_sl_top-{s}", "pool", "own", m): 0.2 for s in (0, 1) for m in ("probe", "retrieval")}
    assert verdict(auxiliary.middle_not_top, own=top) == UNDECIDED
    trained = dataclasses.replace(tables(own=top), objectives=(*auxiliary.NETWORKS, *auxiliary.CONTROLS))
    assert auxiliary.middle_not_top(trained).verdict == SUPPORTED


def test_nearness_is_to_sl_of_another_seed():
    near = {("sl-0", d, "simclr_sl_middle-1", d): 0.9 for d in DEPTHS} | {
        ("sl-1", d, "simclr_sl_middle-0", d): 0.9 for d in DEPTHS
    }
    assert verdict(auxiliary.nearer_to_sl, comparison=near) == SUPPORTED
    one = dataclasses.replace(tables(comparison=near), seeds=1)
    assert auxiliary.nearer_to_sl(one).verdict == UNDECIDED


def test_a_study_makes_its_tables_always_the_same_and_draws_them_without_images(tmp_path, monkeypatch):
    monkeypatch.setattr(auxiliary, "SECOND", {"train": 40, "validation": 40, "test": 24})
    monkeypatch.setattr(auxiliary, "STEPS", 3)
    study = Study(**SMALL, out=str(tmp_path / "a"))
    found = auxiliary.make(study)
    assert len({c.id for c in found}) == len(found) == 12
    assert all(np.isfinite(e.value) for c in found for p in c.parts for e in p.estimates)
    other = Study(**SMALL, out=str(tmp_path / "b"))
    tuned = [auxiliary.finetuned(s, ["sl-0"]) for s in (study, other)]
    pd.testing.assert_frame_equal(*tuned, check_exact=True)

    kept = {"parameters": SMALL, "images": study.summary._asdict(), "checksums": {}}
    (tmp_path / "a" / "provenance.json").write_text(json.dumps(kept))
    drawn = Study(artefacts=str(tmp_path / "a"), out=str(tmp_path / "c"))
    assert repr([c.to_dict() for c in auxiliary.make(drawn)]) == repr([c.to_dict() for c in found])
    assert [p["id"] for p in predictions.kept(drawn.out)] == [c.id for c in found]
