"""Gram matrices of one batch, and from them the HSIC of every pair of sources as one matrix product.

With the U-centred Grams of m images (Szekely and Rizzo 2014) as the rows of a matrix,

    HSIC_1(K, L) = <U(K), U(L)> / (m (m - 3))        (unbiased: Song et al. 2012)

of all pairs is that matrix times its transpose. Grams are made in float32, everything after that in float64. U-centring
cancels the features' mean exactly, but only in exact arithmetic. So K is made from the features as they are, and how much
of it survives the centring is read off K; where that is too little, the features are centred first and the source is
remembered: only such sources pay for centring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Source = tuple[str, str]  # (stream, layer)


def flat(x: Tensor) -> Tensor:
    """(m, ...) -> (m, p), a view in any dense memory format: a Gram does not care for the order of features."""
    if x.ndim == 1:
        return x[:, None]
    return x.permute(0, *sorted(range(1, x.ndim), key=lambda d: -x.stride(d))).flatten(1)


def exact(x: Tensor) -> Tensor:
    """x in float64; on the CPU where its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def tolerance(dtype: torch.dtype) -> float:
    """The share of a Gram's trace below which what centring leaves is rounding: the source is constant."""
    return (16 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps) ** 2


def centred_gram(x: Tensor, scaled: bool = True) -> tuple[Tensor, Tensor]:
    """Gram (m, m) of the centred columns of x (m, p), and its trace without centring; float64.

    Takes the columns in parts that fit into the processor's cache: x is read from memory once and never copied whole.
    `scaled` spends another pass so that squares neither overflow nor vanish in float32, whatever the scale of x.
    """
    m = len(x)
    gram = x.new_zeros(m, m, dtype=torch.float64)
    offset = gram.new_zeros(())
    for part in x.split(max(1, (1 << 17 if x.device.type == "cpu" else 1 << 26) // m), dim=1):
        part = part if part.dtype == torch.float64 else part.float()
        square = gram.new_ones(())
        if scaled:
            scale = torch.stack(part.aminmax()).abs().amax().clamp_min(torch.finfo(part.dtype).tiny)
            part, square = part / scale, scale.double().square()
        mean = part.mean(dim=0)
        part = part - mean
        gram += (part @ part.T).double() * square
        offset += (mean @ mean).double() * square
    return gram, gram.trace() + m * offset


def product(x: Tensor) -> Tensor:
    """x x^T (m, m) of x (m, p), about a fifth faster than `x @ x.T` on the CPU where p is in the thousands.

    Of the mirrored halves only one is computed, and the columns are taken in four parts, which threads share better.
    """
    if x.shape[1] < 2048 or x.shape[1] % 4:
        return x @ x.T
    parts, half = x.unflatten(1, (4, -1)).transpose(0, 1), len(x) // 2
    top = torch.bmm(parts[:, :half], parts.mT).sum(dim=0)
    corner = torch.bmm(parts[:, half:], parts[:, half:].mT).sum(dim=0)
    return torch.cat([top, torch.cat([top[:, half:].T, corner], dim=1)])


def kernel_of(gram: Tensor, kernel: str, threshold: float) -> Tensor:
    """The Gram itself ("linear"), or exp(-d^2 / (2 threshold^2 median(d^2))) of the same features ("rbf").

    The median is numpy's over all m^2 entries, the zero diagonal included, as in the code of Kornblith et al. 2019.
    """
    if kernel == "linear":
        return gram
    energy = gram.diagonal()
    distances = (energy[:, None] + energy[None, :] - 2 * gram).clamp_min_(0).fill_diagonal_(0)
    ordered = distances.flatten().sort().values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return torch.where(median > 0, torch.exp(-distances / (2 * threshold**2 * median)), torch.zeros_like(gram))


def centre(gram: Tensor, estimator: str) -> Tensor:
    """U-centred ("unbiased") or doubly centred ("biased") copy of a Gram (m, m), in float64."""
    m = len(gram)
    gram = gram.to(torch.float64, copy=True)
    if estimator == "biased":
        rows = gram.mean(dim=1)
        rows -= rows.mean() / 2
        return gram.sub_(rows[:, None]).sub_(rows[None, :])
    gram.fill_diagonal_(0)
    rows = gram.sum(dim=1).div_(m - 2)
    rows -= rows.sum() / (2 * (m - 1))
    return gram.sub_(rows[:, None]).sub_(rows[None, :]).fill_diagonal_(0)


class Bank:
    """The centred Grams of one batch, one row a source, and the HSIC of all pairs summed over the batches of each fold.

    `sums` is float64 (estimators, folds, sources, sources), weighted by images; `weights` (folds,) counts the images.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        estimators: Sequence[str],
        folds: int,
        device: torch.device,
        kernel: str = "linear",
        threshold: float = 1.0,
    ):
        self.row = {source: row for row, source in enumerate(sources)}
        self.estimators, self.kernel, self.threshold = tuple(estimators), kernel, threshold
        shape = (len(self.estimators), folds, len(sources), len(sources))
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.weights = torch.zeros(folds, dtype=torch.float64, device=device)
        self.careful = [kernel != "linear"] * len(sources)  # whose features must be centred first
        self.rows = torch.empty(0)

    def open(self, images: int) -> None:
        """Begin a batch of so many images."""
        self.images, count = images, len(self.row)
        if self.rows.shape[-1] != images**2:
            self.rows = self.sums.new_empty(len(self.estimators), count, images**2, dtype=torch.float32)
        self.norms = self.sums.new_zeros(len(self.estimators), count)
        self.energy = self.sums.new_full((count,), float("nan"))

    def put(self, source: Source, x: Tensor) -> None:
        """Reduce features x (m, ...) to the centred Gram of their source."""
        if x.ndim == 0 or len(x) != self.images:
            raise ValueError(
                f"{source[0]}: expected one row an image ({self.images}) from layer {source[1]!r}, got shape "
                f"{tuple(x.shape)}; tap a layer whose first dimension is the batch"
            )
        x = flat(x if x.is_floating_point() else x.double())
        x = x.cpu() if x.device.type == "mps" else x  # which has no float64
        row = self.row[source]
        with _float32_products(x.device.type):
            # On an accelerator bandwidth is cheap and asking for a number is not: always centre. Half precision needs a
            # cast, which the same pass makes.
            if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not self.careful[row]:
                gram = product(x)
                centred = [centre(gram, estimator) for estimator in self.estimators]
                raw, left = (float(torch.linalg.vector_norm(k)) for k in (gram.fill_diagonal_(0), centred[0]))
                # Rounding of K's entries averages out over m of them: |K| <= 4 m |U(K)| leaves CKA an error of about 1e-6.
                # False for NaN, and where squares overflowed or vanished.
                if 1e-28 < raw <= 4 * self.images * left < 1e36:
                    return self._keep(row, centred, raw)
                self.careful[row] = True
            gram, raw = centred_gram(x, scaled=x.device.type != "cpu")
            if x.device.type == "cpu" and not 1e-20 < float(raw) < 1e36:
                gram, raw = centred_gram(x)
        varies = gram.trace() > tolerance(x.dtype) * raw
        gram = kernel_of(gram, self.kernel, self.threshold)
        self._keep(row, [centre(gram, estimator) for estimator in self.estimators], raw, varies)

    def put_classes(self, source: Source, labels: Tensor) -> None:
        """The Gram of one-hot labels (m,). RBF would make it another function of two values, with the same CKA."""
        gram = (labels[:, None] == labels[None, :]).to(self.sums)
        self._keep(self.row[source], [centre(gram, estimator) for estimator in self.estimators], 1.0)

    def _keep(self, row: int, centred: list[Tensor], energy: Tensor | float, varies: Tensor | bool = True) -> None:
        for e, gram in enumerate(centred):
            norm = torch.linalg.vector_norm(gram)
            self.rows[e, row] = (gram / norm.clamp_min(1e-300)).flatten()
            self.norms[e, row] = norm * varies
        self.energy[row] = energy

    def close(self, fold: int, batch: int) -> None:
        """Add the HSIC of all pairs to a fold. Raises ValueError, naming the source, if one was not finite."""
        bad = (~torch.isfinite(self.energy)).tolist()
        if any(bad):
            stream, layer = list(self.row)[bad.index(True)]
            raise ValueError(
                f"{stream}: expected finite values, got NaN or infinity from layer {layer!r}, batch {batch}"
            )
        m, count = self.images, len(self.row)
        for e, estimator in enumerate(self.estimators):
            products = self.sums.new_zeros(count, count)
            for part in self.rows[e].split(max(1, (1 << 19) // count), dim=1):
                part = part.double()
                products.addmm_(part, part.T)
            scale = m * (m - 3) if estimator == "unbiased" else (m - 1) ** 2
            self.sums[e, fold] += products * self.norms[e][:, None] * self.norms[e] * (m / scale)
        self.weights[fold] += m


@contextmanager
def _float32_products(device: str) -> Iterator[None]:
    """Products of float32 in float32, whatever the caller chose for the networks (autocast, TF32)."""
    before = torch.get_float32_matmul_precision()
    with torch.autocast(device, enabled=False):
        if before == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
