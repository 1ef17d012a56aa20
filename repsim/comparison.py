"""The result of a comparison: HSIC of all pairs of sources by fold of the images, and CKA with intervals made of it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Comparison:
    """HSIC of all pairs of sources, by fold of the images, and the CKA made of it.

    A source is (stream, layer): a network or "network@view" with its layers, or "labels", "pixels" or a feature's name
    with one layer of that name. Intervals are 95 % by the delete-a-group jackknife over folds (weighted: Busing et al.
    1999) with Student's t; they are NaN where there is one batch only.
    """

    sources: tuple[tuple[str, str], ...]
    hsic: dict[str, Tensor]  # estimator -> (folds, sources, sources) float64, sums over images; NaN: not kept
    weights: Tensor  # (folds,) float64, images
    kernel: str = "linear"
    threshold: float = 1.0

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stream for stream, _ in self.sources))

    @property
    def images(self) -> int:
        return int(self.weights.sum())

    @property
    def undefined(self) -> list[tuple[str, str]]:
        """Sources whose self-HSIC is not positive: constant over the images."""
        bad = torch.stack([~(h.sum(0).diagonal() > 0) for h in self.hsic.values()]).any(0)
        return [source for source, flag in zip(self.sources, bad.tolist()) if flag]

    def layers(self, stream: str) -> list[str]:
        """The layers of a stream, in the order of the forward pass. Raises ValueError if it is unknown."""
        found = [layer for name, layer in self.sources if name == stream]
        if not found:
            close = difflib.get_close_matches(str(stream), self.streams, n=3) or self.streams
            raise ValueError(
                f"stream: expected one of those compared, got {stream!r}; did you mean {', '.join(close)}?"
            )
        return found

    def matrix(self, a: str, b: str | None = None, estimator: str = "unbiased") -> pd.DataFrame:
        """CKA of all layers of stream a (rows) with all layers of stream b (columns; a itself if not given)."""
        b = a if b is None else b
        rows, columns = self.layers(a), self.layers(b)
        cells = self._cells([(a, l) for l in rows for _ in columns], [(b, l) for _ in rows for l in columns], estimator)
        values = cells[0].reshape(len(rows), len(columns))
        return pd.DataFrame(values, pd.Index(rows, name=a), pd.Index(columns, name=b))

    def table(self, a: str, b: str | None = None, estimator: str = "unbiased") -> pd.DataFrame:
        """The same in long form with intervals: columns a, b, layer_a, layer_b, cka, low, high."""
        b = a if b is None else b
        return self._table([((a, k), (b, l)) for k in self.layers(a) for l in self.layers(b)], estimator)

    def curve(self, a: str, b: str, estimator: str = "unbiased") -> pd.DataFrame:
        """As `table`, for layers of the same name; a stream of one layer ("labels") is set against all of the other's."""
        one, other = self.layers(a), self.layers(b)
        if len(one) == 1 or len(other) == 1:
            pairs = [(k, l) for k in one for l in other]
        else:
            pairs = [(k, k) for k in one if k in other]
        if not pairs:
            raise ValueError(f"curve: expected layers that {a!r} and {b!r} both have, got none; use table")
        return self._table([((a, k), (b, l)) for k, l in pairs], estimator)

    def difference(
        self, first: tuple[str, str, str, str], second: tuple[str, str, str, str], estimator: str = "unbiased"
    ) -> tuple[float, float, float]:
        """(estimate, low, high) of CKA(first) - CKA(second), cells (a, layer_a, b, layer_b), on the same images."""
        return self.interval(lambda cell: cell(*first) - cell(*second), estimator)

    def interval(
        self, function: Callable[[Callable[..., np.ndarray]], np.ndarray], estimator: str = "unbiased"
    ) -> tuple[float, float, float]:
        """(estimate, low, high) of any smooth function of cells, which are given by `cell(a, layer_a, b, layer_b)`.

        For example the similarity relative to its seeds' ceiling:
        `interval(lambda cell: cell(a, l, b, l) / np.sqrt(cell(a, l, a2, l) * cell(b, l, b2, l)))`.
        """

        def cell(a: str, layer_a: str, b: str, layer_b: str) -> np.ndarray:
            return self._cells([(a, layer_a)], [(b, layer_b)], estimator)[:, 0]

        value, low, high = self._jackknife(np.asarray(function(cell), dtype=float))
        return float(value), float(low), float(high)

    def select(self, keep: Callable[[tuple[str, str], tuple[str, str]], bool]) -> Comparison:
        """The same with only the pairs of sources that `keep(source, source)` wants, rounded to float32: a small file.

        Every source keeps its HSIC with itself. Asking for another pair raises ValueError.
        """
        mask = torch.tensor([[a == b or keep(a, b) or keep(b, a) for b in self.sources] for a in self.sources])
        hsic = {name: torch.where(mask, value.float().double(), torch.nan) for name, value in self.hsic.items()}
        return dataclasses.replace(self, hsic=hsic)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, meta): all of it, as tensors and as plain data that JSON holds; each pair once, in float32 if exact."""
        cells = torch.triu(~torch.stack([h.isnan().any(0) for h in self.hsic.values()]).any(0)).nonzero().T
        tensors = {"cells": cells.int(), "weights": self.weights}
        for name, value in self.hsic.items():
            value = value[:, cells[0], cells[1]]
            tensors[f"hsic.{name}"] = value.float() if torch.equal(value.float().double(), value) else value
        meta = {"sources": [list(s) for s in self.sources], "kernel": self.kernel, "threshold": self.threshold}
        return tensors, meta

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping) -> Comparison:
        """What `to_tensors` gave, as a Comparison again."""
        (i, j), count = tensors["cells"].long(), len(meta["sources"])
        hsic = {}
        for name, value in tensors.items():
            if name.startswith("hsic."):
                whole = torch.full((len(value), count, count), torch.nan, dtype=torch.float64)
                whole[:, i, j] = whole[:, j, i] = value.double()
                hsic[name.removeprefix("hsic.")] = whole
        sources = tuple((stream, layer) for stream, layer in meta["sources"])
        return cls(sources, hsic, tensors["weights"], meta["kernel"], meta["threshold"])

    def _table(self, pairs: list[tuple[tuple[str, str], tuple[str, str]]], estimator: str) -> pd.DataFrame:
        value, low, high = self._jackknife(self._cells([p for p, _ in pairs], [q for _, q in pairs], estimator))
        names = {"a": [p[0] for p, _ in pairs], "b": [q[0] for _, q in pairs]}
        layers = {"layer_a": [p[1] for p, _ in pairs], "layer_b": [q[1] for _, q in pairs]}
        return pd.DataFrame({**names, **layers, "cka": value, "low": low, "high": high})

    def _cells(self, first: list[tuple[str, str]], second: list[tuple[str, str]], estimator: str) -> np.ndarray:
        """(1 + folds, cells): CKA of all images, then without each fold in turn."""
        if estimator not in self.hsic:
            raise ValueError(
                f"estimator: expected one of {', '.join(self.hsic)}, got {estimator!r}; compare anew with it"
            )
        row = {source: k for k, source in enumerate(self.sources)}
        for stream, layer in (*first, *second):
            if (stream, layer) not in row:
                raise ValueError(
                    f"layer: expected one of {', '.join(self.layers(stream))} of {stream!r}, got {layer!r}"
                )
        i, j = [row[s] for s in first], [row[s] for s in second]
        hsic = self.hsic[estimator].numpy()

        def sums(values: np.ndarray) -> np.ndarray:
            return np.concatenate([values.sum(0, keepdims=True), values.sum(0) - values])

        cells = hsic[:, i, j]
        if np.isnan(cells).any():
            k = int(np.isnan(cells).any(0).argmax())
            raise ValueError(f"cell: {first[k]} with {second[k]} is not among the pairs that were kept; compare anew")
        own = sums(np.diagonal(hsic, axis1=1, axis2=2))
        own = np.where(own > 0, own, np.nan)
        with np.errstate(invalid="ignore"):
            return sums(cells) / np.sqrt(own[:, i] * own[:, j])

    def _jackknife(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimate and limits of values (1 + folds, ...): the estimate, then leaving out each fold."""
        groups = len(self.weights)
        if groups < 2:
            return values[0], np.full_like(values[0], np.nan), np.full_like(values[0], np.nan)
        share = (self.weights / self.weights.sum()).numpy().reshape(-1, *[1] * (values.ndim - 1))
        whole, left = values[0], values[1:]
        mean = groups * whole - ((1 - share) * left).sum(0)
        pseudo = whole / share - (1 / share - 1) * left
        variance = ((pseudo - mean) ** 2 / (1 / share - 1)).mean(0)
        half = stdtrit(groups - 1, 0.975) * np.sqrt(variance)
        return whole, whole - half, whole + half
