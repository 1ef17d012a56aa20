import dataclasses
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from repsim import augment, data, distributed, models, objectives, store, train

SETTINGS = train.Settings(objective="simclr", width=4, epochs=2, batch_size=16, projection=8, learning_rate=0.1)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data.load("shapes", train_images=48, test_images=32, validation=0.5, root=tmp_path_factory.mktemp("data"))


def weights(trained):
    return torch.cat([v.double().flatten() for v in trained.model.state_dict().values()])


def stop_at(step, images, folder, monkeypatch, settings=SETTINGS):
    """Train up to this step, with a checkpoint after every one; returns the last."""
    with monkeypatch.context() as patch:
        rate = train.learning_rate
        patch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(train, "learning_rate", lambda i, *rest: rate(i, *rest) if i < step else interrupt())
        with pytest.raises(KeyboardInterrupt):
            train.train(settings, images, folder, progress=False)
    (checkpoint,) = folder.glob("*.checkpoint")
    return checkpoint


def interrupt():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    return train.train(SETTINGS, images, tmp_path_factory.mktemp("whole"), progress=False)


def test_the_same_settings_give_the_same_bits(images, uninterrupted, tmp_path):
    torch.rand(3)  # the global generator plays no part
    again = train.train(SETTINGS, images, tmp_path, progress=False)
    assert torch.equal(weights(again), weights(uninterrupted))
    assert again.history.equals(uninterrupted.history)
    other = train.train(dataclasses.replace(SETTINGS, seed=1), images, tmp_path, progress=False)
    assert not torch.equal(weights(other), weights(uninterrupted))


def test_precision_is_of_the_passes_alone(images, uninterrupted, tmp_path):
    """ "auto" is what the processor multiplies in; in bfloat16 the course is another, close to it, of float32 weights."""
    full, half = (
        train.train(dataclasses.replace(SETTINGS, precision=p), images, tmp_path, progress=False)
        for p in ("float32", "bfloat16")
    )
    natural = half if train.multiplies_bfloat16(torch.device("cpu")) else full
    assert torch.equal(weights(natural), weights(uninterrupted))
    assert {v.dtype for v in half.model.parameters()} == {torch.float32}
    step = weights(full) - weights(train.train(dataclasses.replace(SETTINGS, epochs=0), images, tmp_path))
    assert 0 < (weights(half) - weights(full)).norm() < 0.2 * step.norm()
    assert len({dataclasses.replace(SETTINGS, precision=p).key("") for p in ("auto", "float32", "bfloat16")}) == 3


def test_what_is_trained_is_loaded(images, tmp_path, monkeypatch):
    first = train.train(SETTINGS, images, tmp_path, progress=False)
    monkeypatch.setattr(train, "_train", None)  # training again would fail
    second = train.train(SETTINGS, images, tmp_path, progress=False)
    assert torch.equal(weights(first), weights(second)) and first.history.equals(second.history)
    assert not second.model.training and second.settings == SETTINGS


def read_layer(step):
    """An auxiliary classifier on a middle layer, beside SimCLR: the smallest objective with an extra module on a layer."""
    logits = step.extra_module(torch.cat(step.features))
    return objectives.nt_xent(*step.outputs) + objectives.cross_entropy(logits, step.labels.repeat(2))


@pytest.fixture(autouse=True)
def reading(monkeypatch):
    made = objectives.Objective(
        "projection",
        "simclr",
        read_layer,
        n_views=2,
        extra_module=lambda settings, features, classes: torch.nn.Linear(features, classes),
        layer="layer2",
    )
    monkeypatch.setitem(train.OBJECTIVES, "reading", made)


@pytest.mark.parametrize("objective", [o for o in objectives.OBJECTIVES if o not in ("untrained", "rotation")])
def test_training_lowers_the_loss(objective, images, tmp_path):
    settings = dataclasses.replace(SETTINGS, objective=objective, width=8, epochs=30, learning_rate=0.5)
    history = train.train(settings, images, tmp_path, progress=False).history
    # 0.18 or more with one thread and two, AVX2 and AVX-512, which all train another course
    assert history.loss.iloc[0] - history.loss.iloc[-5:].mean() > 0.1
    assert history.epoch.tolist() == list(range(1, 31))


@pytest.mark.parametrize(
    "stop, objective, precision",
    [(stop, "simclr", "auto") for stop in (1, 2, 3, 4, 5)]
    + [(stop, objective, "auto") for stop in (2, 4) for objective in ("byol", "reading", "rotation")]
    + [(3, objective, "bfloat16") for objective in ("simclr", "byol")],
)
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(images, tmp_path, monkeypatch, stop, objective, precision):
    settings = dataclasses.replace(SETTINGS, objective=objective, precision=precision)
    whole = train.train(settings, images, tmp_path / "whole", progress=False)
    stop_at(stop, images, tmp_path, monkeypatch, settings)
    resumed = train.train(settings, images, tmp_path, progress=False)
    assert torch.equal(weights(resumed), weights(whole)) and resumed.history.equals(whole.history)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_a_killed_process_resumes_to_the_same_bits(images, uninterrupted, tmp_path):
    script = textwrap.dedent(f"""
        import os, signal
        from repsim import data, train
        images = data.load("shapes", train_images=48, test_images=32, validation=0.5, root={str(tmp_path)!r})
        train.CHECKPOINT_SECONDS, step = 0.0, train.learning_rate
        def killed(i, *rest):
            if i == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(i, *rest)
        train.learning_rate = killed
        train.train(train.Settings(**{dataclasses.asdict(SETTINGS)!r}), images, {str(tmp_path)!r}, progress=False)
    """)
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -signal.SIGKILL
    assert list(tmp_path.glob("*.checkpoint")), "nothing was kept before the kill"
    resumed = train.train(SETTINGS, images, tmp_path, progress=False)
    assert torch.equal(weights(resumed), weights(uninterrupted))


def test_after_a_damaged_checkpoint_training_begins_anew(images, uninterrupted, tmp_path, monkeypatch):
    checkpoint = stop_at(4, images, tmp_path, monkeypatch)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="not a whole safetensors file.*training begins anew"):
        resumed = train.train(SETTINGS, images, tmp_path, progress=False)
    assert torch.equal(weights(resumed), weights(uninterrupted))


def test_damaged_weights_are_trained_again(images, uninterrupted, tmp_path):
    train.train(SETTINGS, images, tmp_path, progress=False)
    file = train.path(SETTINGS, images, tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="checksum"):
        again = train.train(SETTINGS, images, tmp_path, progress=False)
    assert torch.equal(weights(again), weights(uninterrupted))


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(images, tmp_path, monkeypatch):
    save, calls = store.save_tensors, []

    def full(path, *rest):
        nonlocal calls
        calls += [path] * (path.suffix == ".checkpoint")  # snapshots are kept as well
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(path, *rest)

    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(store, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        train.train(SETTINGS, images, tmp_path, progress=False)
    (kept,) = tmp_path.glob("*.checkpoint")
    assert store.load_tensors(kept)[1]["step"] == 2


def test_divergence_stops_with_step_and_settings(images, tmp_path):
    settings = dataclasses.replace(SETTINGS, objective="sl", learning_rate=1e20)
    with pytest.raises(RuntimeError, match="sl-0: the loss is (nan|inf) at step .*learning_rate.*1e.20"):
        train.train(settings, images, tmp_path, progress=False)
    assert not list(tmp_path.glob("*.safetensors"))


def test_untrained_networks_keep_their_weights_and_measure_their_statistics(images, tmp_path):
    settings = dataclasses.replace(SETTINGS, objective="untrained", epochs=0)
    model, fresh = train.train(settings, images, tmp_path, progress=False).model, settings.build(10)
    for (name, value), initial in zip(model.named_parameters(), fresh.parameters()):
        assert torch.equal(value, initial.half().float()), name
    x = data.as_input(images.train.images)
    stem = fresh.conv1(x).detach()
    assert torch.allclose(model.bn1.running_mean, stem.mean((0, 2, 3)), atol=1e-3)


def test_random_labels_are_shuffled_once_and_as_many_of_each_class(images):
    shuffled = train._shuffled(images.train, 0)
    assert torch.equal(shuffled.labels.bincount(), images.train.labels.bincount())
    assert (shuffled.labels != images.train.labels).float().mean() > 0.7
    assert torch.equal(shuffled.labels, train._shuffled(images.train, 0).labels)
    assert torch.equal(shuffled.images, images.train.images)


def test_networks_of_one_seed_begin_with_the_same_backbone_and_see_the_same_views(images, monkeypatch):
    made, seen, view = {}, {}, augment.VIEWS["simclr"]
    for name in ("ce_views", "supcon", "nscl", "simclr", "byol", "barlow", "vicreg", "reading"):
        settings = dataclasses.replace(SETTINGS, objective=name)
        made[name], seen[name] = train.Trainee(settings, 10), []

        def noted(*args, name=name, **options):
            seen[name].append(view(*args, **options))
            return seen[name][-1]

        monkeypatch.setitem(augment.VIEWS, "simclr", noted)
        made[name].loss(images.train.images[:8], images.train.labels[:8], (0, "views", 0))
    for name, trainee in made.items():
        ours = {k: v for k, v in trainee.model.named_parameters() if not k.startswith("fc")}
        theirs = dict(made["simclr"].model.named_parameters())
        assert all(torch.equal(v, theirs[k]) for k, v in ours.items()), name
        assert len(seen[name]) == 2 and all(torch.equal(a, b) for a, b in zip(seen[name], seen["simclr"])), name


def test_extra_modules_learn_the_moving_average_follows_and_neither_is_kept(images, tmp_path, monkeypatch):
    made, trainee = [], train.Trainee
    monkeypatch.setattr(train, "Trainee", lambda *args: made.append(trainee(*args)) or made[-1])
    for name in ("byol", "reading"):
        settings = dataclasses.replace(SETTINGS, objective=name)
        trained = train.train(settings, images, tmp_path, progress=False)
        fresh, end = trainee(settings, 10), made[-1]
        assert not torch.equal(next(end.extra_module.parameters()), next(fresh.extra_module.parameters()))
        assert trained.model.state_dict().keys() == settings.build(10).state_dict().keys()
    began = trainee(dataclasses.replace(SETTINGS, objective="byol"), 10).model
    own, network, began = (next(m.parameters()) for m in (made[0].ema_copy, made[0].model, began))
    assert 0 < (own - began).norm() < (network - began).norm()  # between where it began and the network
    assert own.grad is None and objectives.tau(0, 10) == objectives.TAU and objectives.tau(10, 10) == 1


def test_features_of_a_layer_are_its_means_before_later_layers_write_over_them(images):
    settings, x = dataclasses.replace(SETTINGS, width=8), data.as_input(images.train.images[:4])
    model = settings.build(10)
    for layer, path in models.layer_paths(model).items():
        taken = []
        handle = model.get_submodule(path).register_forward_hook(
            lambda m, a, out, t=taken: t.append(out.detach().clone())
        )
        _, found = train._pooled(model, x, layer)
        handle.remove()
        expected = taken[0].flatten(2).mean(2) if taken[0].ndim > 2 else taken[0]
        assert torch.allclose(found, expected, atol=1e-6), layer


def test_rotation_turns_each_view_by_the_label_that_it_asks_for(images):
    x, turns = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4), torch.tensor([3, 1])
    assert torch.equal(augment.turn(x, turns), torch.stack([x[0].rot90(3, (1, 2)), x[1].rot90(1, (1, 2))]))
    assert dataclasses.replace(SETTINGS, objective="rotation").build(10).fc.out_features == 4


def test_ranks_refuse_an_objective_with_extra_modules(images, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    with pytest.raises(ValueError, match="objective: .*'byol'.*one process"):
        train.train(dataclasses.replace(SETTINGS, objective="byol"), images, tmp_path, progress=False)


def test_learning_rate_warms_up_then_falls_to_zero():
    settings = train.Settings(learning_rate=0.4, batch_size=128, warmup=0.2)
    rates = [train.learning_rate(i, 100, settings) for i in range(100)]
    assert rates[0] == pytest.approx(0.2 / 20) and max(rates) == rates[19] == rates[20] == pytest.approx(0.2)
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True) and rates[-1] < 1e-3


@pytest.mark.parametrize(
    "options, named",
    [
        ({"objective": "guess"}, "objective: .*'guess'"),
        ({"optimizer": "lars"}, "optimizer: expected one of sgd, got 'lars'"),
        ({"precision": "fp16"}, "precision: expected one of auto, float32, bfloat16, got 'fp16'"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": 1.5}, "epochs: expected int, got 1.5"),
        ({"batch_size": 1}, "batch_size"),
        ({"learning_rate": 0.0}, r"learning_rate: expected a number in \(0, inf\), got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"temperature": -1.0}, "temperature"),
        ({"momentum": 1.0}, "momentum"),
        ({"width": 7}, r"width: expected a number in range\(4, 4097, 4\), got 7"),
        ({"stem": "large"}, "stem: expected one of cifar, imagenet, got 'large'"),
        ({"hidden": 0}, "hidden"),
        ({"architecture": "vit"}, "architecture: .*'vit'"),
    ],
)
def test_unusable_settings_are_refused_when_they_are_made(options, named):
    with pytest.raises(ValueError, match=named):
        train.Settings(**options)


def test_a_batch_larger_than_the_training_set_is_refused(images, tmp_path):
    with pytest.raises(ValueError, match="batch_size: .*48, got 64"):
        train.train(dataclasses.replace(SETTINGS, batch_size=64), images, tmp_path, progress=False)


def test_the_strengths_of_simclrs_views_are_settings(images, tmp_path):
    """They reach the views, have a key of their own, and leave an objective without such views as it is."""
    batch, labels, key = images.train.images[:16], images.train.labels[:16], (0, "views", 0)

    def loss(objective, **strengths):
        settings = dataclasses.replace(SETTINGS, objective=objective, **strengths)
        return train.Trainee(settings, 10).loss(batch, labels, key).item()

    for strength in ({"crop": 1.0}, {"colour": 0.0}, {"hue": 0.5}, {"grayscale": 1.0}):
        assert loss("simclr", **strength) != loss("simclr") and loss("sl", **strength) == loss("sl")
        assert dataclasses.replace(SETTINGS, **strength).key("") != SETTINGS.key("")
    plain = {"crop": 1.0, "colour": 0.0, "hue": 0.0, "grayscale": 0.0}
    settings = dataclasses.replace(SETTINGS, **plain)
    seen = augment.VIEWS["simclr"](batch, torch.Generator().manual_seed(0), **settings.simclr_views())
    still = data.as_input(batch)
    nearest = torch.minimum((seen - still).abs().amax((1, 2, 3)), (seen - still.flip(-1)).abs().amax((1, 2, 3)))
    assert nearest.max() < 1e-5  # nothing but flips is left
    for bad in ({"crop": 0.0}, {"colour": 1.5}, {"hue": 0.6}, {"grayscale": -0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}.*{next(iter(bad.values()))}"):
            dataclasses.replace(SETTINGS, **bad)


def test_weights_are_rounded_to_float16_once(images, uninterrupted, tmp_path):
    """What training returns is what is kept: every number is one that float16 holds, and what it cannot hold stays."""
    state = uninterrupted.model.state_dict()
    assert all(torch.equal(v.half().to(v.dtype), v) for v in state.values() if v.is_floating_point())
    kept = train.train(SETTINGS, images, tmp_path, progress=False).model.state_dict()
    on_disk, _ = store.load_tensors(next(tmp_path.glob("simclr-0-*.safetensors")))
    assert {v.dtype for v in on_disk.values()} == {torch.float16, torch.int64}
    assert all(torch.equal(v.to(kept[k].dtype), kept[k]) for k, v in on_disk.items())
    huge = train.to_half({"a": torch.tensor([1e6, 1.0]), "b": torch.tensor([1.0])})
    assert huge["a"].dtype == torch.float32 and huge["b"].dtype == torch.float16
