import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repsim import objectives


def naive_nt_xent(za, zb, temperature):
    z = [v / v.norm() for v in torch.cat([za, zb])]
    n, total = len(za), 0.0
    for i in range(2 * n):
        others = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i]
        positive = math.exp(float(z[i] @ z[(i + n) % (2 * n)]) / temperature)
        total -= math.log(positive / sum(others)) / (2 * n)
    return total


def pair(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, d, generator=generator, dtype=torch.float64).unbind()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(1, 5), st.integers(0, 10**6), st.floats(0.1, 2.0))
def test_nt_xent_is_the_definition(n, d, seed, temperature):
    za, zb = pair(n, d, seed)
    assert objectives.nt_xent(za, zb, temperature).item() == pytest.approx(naive_nt_xent(za, zb, temperature), rel=1e-9)


def test_nt_xent_knows_no_order_of_views_and_images_and_no_scale():
    za, zb = pair(6, 4, 0)
    value, order = objectives.nt_xent(za, zb), torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.isclose(objectives.nt_xent(zb, za), value)
    assert torch.isclose(objectives.nt_xent(za[order], zb[order]), value)
    assert torch.isclose(objectives.nt_xent(7 * za, 0.1 * zb), value)
    assert not torch.isclose(objectives.nt_xent(za, zb[order]), value)


def test_nt_xent_of_equal_embeddings_is_uninformed_and_its_gradient_is_right():
    assert objectives.nt_xent(torch.ones(8, 3), torch.ones(8, 3)).item() == pytest.approx(math.log(15))
    za, zb = (z.requires_grad_() for z in pair(4, 3, 1))
    assert torch.autograd.gradcheck(objectives.nt_xent, (za, zb))


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_number_of_classes():
    assert objectives.cross_entropy(torch.zeros(5, 10), torch.arange(5)).item() == pytest.approx(math.log(10))


def naive_contrast(za, zb, labels, temperature, supervised):
    """SupCon (supervised) or NSCL, by loops over anchors and over what each is compared with."""
    z, y, n, total = [v / v.norm() for v in torch.cat([za, zb])], labels.tolist() * 2, len(za), 0.0
    for i in range(2 * n):
        other, same = (i + n) % (2 * n), [k for k in range(2 * n) if k != i and y[k] == y[i]]
        against = [k for k in range(2 * n) if k != i and (supervised or k == other or y[k] != y[i])]
        e = {k: torch.exp(z[i] @ z[k] / temperature) for k in against}
        positives = same if supervised else [other]
        total -= sum(torch.log(e[p] / sum(e.values())) for p in positives) / len(positives)
    return total / (2 * n)


def naive_barlow(za, zb):
    za, zb = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (za, zb))
    total, d = 0.0, za.shape[1]
    for i in range(d):
        for j in range(d):
            c = (za[:, i] * zb[:, j]).sum() / len(za)
            total += (1 - c) ** 2 if i == j else 0.005 * c**2
    return total


def naive_vicreg(za, zb):
    n, d = za.shape
    total = 25 * sum((za[i, j] - zb[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)
    for z in (za, zb):
        z = z - z.mean(0)
        for i in range(d):
            spread = ((z[:, i] ** 2).sum() / (n - 1) + 1e-4).sqrt()
            total += 25 * torch.clamp(1 - spread, min=0) / d / 2
            total += sum(((z[:, i] * z[:, j]).sum() / (n - 1)) ** 2 for j in range(d) if j != i) / d
    return total


LABELS = torch.tensor([0, 1, 0, 2, 1, 0])
NAIVE = {
    "supcon": (lambda a, b: objectives.supcon(a, b, LABELS, 0.3), lambda a, b: naive_contrast(a, b, LABELS, 0.3, True)),
    "nscl": (lambda a, b: objectives.nscl(a, b, LABELS, 0.3), lambda a, b: naive_contrast(a, b, LABELS, 0.3, False)),
    "byol": (
        objectives.negative_cosine,
        lambda a, b: sum(((p / p.norm() - t / t.norm()) ** 2).sum() for p, t in zip(a, b)) / len(a),
    ),
    "barlow": (objectives.barlow_twins, naive_barlow),
    "vicreg": (objectives.vicreg, naive_vicreg),
}


def values_and_gradients(loss, pair):
    leaves = [z.clone().requires_grad_() for z in pair]
    value = loss(*leaves)
    return torch.cat([value.reshape(1), *(g.flatten() for g in torch.autograd.grad(value, leaves))])


@pytest.mark.parametrize("scale", [0.5, 2.0])  # of which VICReg's hinge asks for more spread, and for none
@pytest.mark.parametrize("name", NAIVE)
def test_a_loss_and_its_gradient_are_the_definition(name, scale):
    ours, naive = NAIVE[name]
    za, zb = (scale * z for z in pair(6, 4, 7))
    assert torch.allclose(values_and_gradients(ours, (za, zb)), values_and_gradients(naive, (za, zb)), rtol=1e-9)
    assert torch.autograd.gradcheck(ours, (za.requires_grad_(), zb.requires_grad_()))


@pytest.mark.parametrize(
    "name, ours, theirs",
    [
        ("BarlowTwinsLoss", objectives.barlow_twins, lambda loss, a, b: loss(a, b)),
        ("VICRegLoss", objectives.vicreg, lambda loss, a, b: loss(a, b)),
        ("NegativeCosineSimilarity", objectives.negative_cosine, lambda loss, a, b: 2 + 2 * loss(a, b)),
        ("NTXentLoss", objectives.nt_xent, lambda loss, a, b: loss(a, b)),
    ],
)
def test_a_loss_is_that_of_lightly(name, ours, theirs):
    lightly = pytest.importorskip("lightly.loss", reason='no lightly here: pip install -e ".[bench]"')
    made = getattr(lightly, name)()
    za, zb = (z.float() for z in pair(32, 16, 3))
    value, expected = (
        values_and_gradients(ours, (za, zb)),
        values_and_gradients(lambda a, b: theirs(made, a, b), (za, zb)),
    )
    assert torch.allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_with_an_image_per_class_labels_say_nothing_and_with_one_class_nothing_is_pushed_away():
    (za, zb), different = pair(6, 4, 5), torch.arange(6)
    expected = objectives.nt_xent(za, zb, 0.2)
    assert torch.isclose(objectives.supcon(za, zb, different, 0.2), expected)
    assert torch.isclose(objectives.nscl(za, zb, different, 0.2), expected)
    assert objectives.nscl(za, zb, torch.zeros(6, dtype=torch.long)).item() == 0


@pytest.mark.parametrize("a, b", [((4, 2), (3, 2)), ((4, 2), (4, 3)), ((4,), (4,)), ((1, 2), (1, 2))])
def test_unusable_views_are_refused(a, b):
    with pytest.raises(ValueError, match="za, zb: expected two views"):
        objectives.nt_xent(torch.zeros(a), torch.zeros(b))
    for loss in (objectives.barlow_twins, objectives.vicreg):
        with pytest.raises(ValueError, match="za, zb: expected two views"):
            loss(torch.zeros(a), torch.zeros(b))
    with pytest.raises(ValueError, match="p, t: expected two views"):
        objectives.negative_cosine(torch.zeros(a), torch.zeros(b))


def test_unusable_temperatures_and_labels_are_refused():
    za, zb = pair(4, 2, 0)
    for loss in (objectives.supcon, objectives.nscl):
        with pytest.raises(ValueError, match=r"labels: .*\(4,\), got .*\(3,\)"):
            loss(za, zb, torch.zeros(3, dtype=torch.long))
        with pytest.raises(ValueError, match="temperature: .*-1"):
            loss(za, zb, torch.arange(4), temperature=-1)
    with pytest.raises(ValueError, match="temperature: .*0"):
        objectives.nt_xent(za, zb, temperature=0)
    with pytest.raises(ValueError, match="logits, labels"):
        objectives.cross_entropy(torch.zeros(3, 2), torch.zeros(4, dtype=torch.long))


def test_losses_are_computed_in_float32_at_least():
    za, zb = (z.to(torch.bfloat16) for z in pair(8, 4, 2))
    assert objectives.nt_xent(za, zb).dtype == torch.float32
    assert objectives.nt_xent(za, zb).item() == pytest.approx(
        objectives.nt_xent(za.double(), zb.double()).item(), rel=1e-5
    )
    assert objectives.cross_entropy(za, torch.zeros(8, dtype=torch.long)).dtype == torch.float32


EVERY = {
    "cross_entropy": lambda a, b, y: objectives.cross_entropy(a, y),
    "nt_xent": lambda a, b, y: objectives.nt_xent(a, b, 0.1),
    "supcon": lambda a, b, y: objectives.supcon(a, b, y, 0.1),
    "nscl": lambda a, b, y: objectives.nscl(a, b, y, 0.1),
    "negative_cosine": lambda a, b, y: objectives.negative_cosine(a, b),
    "barlow_twins": lambda a, b, y: objectives.barlow_twins(a, b),
    "vicreg": lambda a, b, y: objectives.vicreg(a, b),
}


@pytest.mark.parametrize("name", EVERY)
def test_losses_and_gradients_keep_their_precision_inside_autocast(name):
    loss, y = EVERY[name], torch.arange(64) % 8
    exact = [z.requires_grad_() for z in pair(64, 32, 2)]
    leaves = [z.detach().float().requires_grad_() for z in exact]
    used = exact[:1] if name == "cross_entropy" else exact
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(*leaves, y)
    gradients = torch.autograd.grad(value, leaves[: len(used)])
    reference = loss(*exact, y)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(reference.item(), rel=1e-5)
    for got, expected in zip(gradients, torch.autograd.grad(reference, used)):
        assert (got - expected).norm() < 1e-5 * expected.norm()  # 1e-3 to 4e-2 in bfloat16
