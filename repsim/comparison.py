"""The result of a comparison: HSIC of pairs of sources by fold of the images, and CKA with intervals made of it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor

Source = tuple[str, str]  # (stream, layer)


def jackknife(values: np.ndarray, weights: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(estimate, low, high): 95 % intervals by the delete-a-group jackknife with Student's t (weighted: Busing et al. 1999).

    Args:
        values: (1 + folds, ...), a smooth statistic of all images, then without each fold in turn, as functions of
            `Comparison.replicates`.
        weights: (folds,), the images of each fold.

    Returns:
        Arrays (...). Limits are NaN with fewer than two folds, and where a replicate is NaN.

    Raises:
        ValueError: values that are not one more than the weights.
    """
    values, weights = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if values.ndim < 1 or len(values) != 1 + len(weights):
        raise ValueError(f"values: expected 1 + {len(weights)} replicates, got shape {values.shape}")
    whole, without, groups = values[0], values[1:], len(weights)
    if groups < 2:
        return whole, np.full_like(whole, np.nan), np.full_like(whole, np.nan)
    share = (weights / weights.sum()).reshape(-1, *[1] * (values.ndim - 1))
    mean = groups * whole - ((1 - share) * without).sum(0)
    pseudo = whole / share - (1 / share - 1) * without
    variance = ((pseudo - mean) ** 2 / (1 / share - 1)).mean(0)
    half = stdtrit(groups - 1, 0.975) * np.sqrt(variance)
    return whole, whole - half, whole + half


@dataclass(frozen=True, eq=False)
class Comparison:
    """HSIC of pairs of sources, and the CKA made of it.

    A source is (stream, layer): a network or "network@view" with its layers, an extractor of features with its own, or
    "labels", "pixels" or a feature's name with one layer of that name. Intervals are those of `jackknife`; they are NaN
    where there is one batch only, and for pairs of which only the sum over all folds is at hand (see `select`).
    """

    sources: tuple[Source, ...]
    pairs: Tensor  # (2, pairs) int, each pair of sources once: first those at hand by fold
    hsic: dict[str, Tensor]  # estimator -> (folds, pairs by fold) float64, sums over images
    totals: dict[str, Tensor]  # estimator -> (the other pairs,) float64, sums over all folds
    weights: Tensor  # (folds,) float64, images

    @classmethod
    def of(cls, sources: Iterable[Source], hsic: Mapping[str, Tensor], weights: Tensor) -> Comparison:
        """Of HSIC by fold of all pairs: estimator -> (folds, sources, sources)."""
        sources = tuple(sources)
        pairs = torch.triu_indices(len(sources), len(sources))
        values = {name: value[:, pairs[0], pairs[1]] for name, value in hsic.items()}
        return cls(sources, pairs, values, {name: torch.zeros(0, dtype=torch.float64) for name in hsic}, weights)

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stream for stream, _ in self.sources))

    @property
    def images(self) -> int:
        return int(self.weights.sum())

    @property
    def undefined(self) -> list[Source]:
        """Sources whose self-HSIC is not positive: constant over the images."""
        own = [self._index[i, i] for i in range(len(self.sources))]
        bad = torch.stack([~(h.sum(0)[own] > 0) for h in self.hsic.values()]).any(0)
        return [source for source, flag in zip(self.sources, bad.tolist()) if flag]

    def layers(self, stream: str) -> list[str]:
        """The layers of a stream, in the order of the forward pass. Raises ValueError if it is unknown."""
        layers = [layer for name, layer in self.sources if name == stream]
        if not layers:
            close = difflib.get_close_matches(str(stream), self.streams, n=3) or self.streams
            raise ValueError(
                f"stream: expected one of those compared, got {stream!r}; did you mean {', '.join(close)}?"
            )
        return layers

    def replicates(
        self,
        a: str | Sequence[str],
        layer_a: str | Sequence[str],
        b: str | Sequence[str],
        layer_b: str | Sequence[str],
        estimator: str = "unbiased",
    ) -> np.ndarray:
        """CKA of layer_a of stream a with layer_b of stream b: of all images, then without each fold in turn.

        Statistics are functions of such arrays, with intervals by `jackknife`: the similarity relative to the seeds' ceiling
        is `r(a, l, b, l) / np.sqrt(r(a, l, a2, l) * r(b, l, b2, l))`.

        Args:
            a, layer_a, b, layer_b: names, or sequences of equally many, of which each place is a cell.

        Returns:
            (1 + folds,), or (1 + folds, cells) if any argument is a sequence. NaN where CKA is undefined, and without a
            fold where only the sum over all is at hand.

        Raises:
            ValueError: an unknown stream, layer or estimator, or a pair that was not kept.
        """
        names = (a, layer_a, b, layer_b)
        counts = {len(value) for value in names if not isinstance(value, str)}
        if len(counts) > 1:
            raise ValueError(f"a, layer_a, b, layer_b: expected sequences of one length, got {sorted(counts)}")
        if estimator not in self.hsic:
            known = ", ".join(self.hsic)
            raise ValueError(f"estimator: expected one of {known}, got {estimator!r}; compare anew with it")
        count = counts.pop() if counts else 1
        a, layer_a, b, layer_b = ([value] * count if isinstance(value, str) else value for value in names)
        i, j = self._rows(a, layer_a), self._rows(b, layer_b)
        cells = self._index[i, j]
        if (cells < 0).any():
            k = int((cells < 0).argmax())
            first, second = (a[k], layer_a[k]), (b[k], layer_b[k])
            raise ValueError(f"cell: {first} with {second} is not among the pairs that were kept; compare anew")

        def sums(columns: np.ndarray) -> np.ndarray:
            whole = self._sums[estimator].numpy()[columns]
            folds = self.hsic[estimator].numpy()[:, np.minimum(columns, self._folded - 1)]
            return np.concatenate([whole[None], whole - np.where(columns < self._folded, folds, np.nan)])

        own_a, own_b = (sums(self._index[k, k]) for k in (i, j))
        with np.errstate(invalid="ignore"):
            norms = np.sqrt(np.where(own_a > 0, own_a, np.nan) * np.where(own_b > 0, own_b, np.nan))
            values = sums(cells) / norms
        return values[:, 0] if all(isinstance(value, str) for value in names) else values

    def _rows(self, streams: Sequence[str], layers: Sequence[str]) -> list[int]:
        for stream, layer in zip(streams, layers):
            if (stream, layer) not in self._row:
                known = ", ".join(self.layers(stream))
                raise ValueError(f"layer: expected one of {known} of {stream!r}, got {layer!r}")
        return [self._row[source] for source in zip(streams, layers)]

    def matrix(self, a: str, b: str | None = None, estimator: str = "unbiased") -> pd.DataFrame:
        """CKA of all layers of stream a (rows) with all layers of stream b (columns; a itself if not given)."""
        b = a if b is None else b
        rows, columns = self.layers(a), self.layers(b)
        values = self.replicates(a, [k for k in rows for _ in columns], b, columns * len(rows), estimator)[0]
        values = values.reshape(len(rows), len(columns))
        return pd.DataFrame(values, pd.Index(rows, name=a), pd.Index(columns, name=b))

    def table(self, a: str, b: str | None = None, estimator: str = "unbiased") -> pd.DataFrame:
        """The same in long form with intervals: columns a, b, layer_a, layer_b, cka, low, high."""
        b = a if b is None else b
        return self._table(a, b, [(k, l) for k in self.layers(a) for l in self.layers(b)], estimator)

    def curve(self, a: str, b: str, estimator: str = "unbiased") -> pd.DataFrame:
        """As `table`, for layers of the same name; a stream of one layer ("labels") is set against all of the other's."""
        one, other = self.layers(a), self.layers(b)
        if len(one) == 1 or len(other) == 1:
            pairs = [(k, l) for k in one for l in other]
        else:
            pairs = [(k, k) for k in one if k in other]
        if not pairs:
            raise ValueError(f"curve: expected layers that {a!r} and {b!r} both have, got none; use table")
        return self._table(a, b, pairs, estimator)

    def _table(self, a: str, b: str, pairs: list[tuple[str, str]], estimator: str) -> pd.DataFrame:
        layer_a, layer_b = zip(*pairs)
        value, low, high = jackknife(self.replicates(a, layer_a, b, layer_b, estimator), self.weights)
        names = {"a": a, "b": b, "layer_a": layer_a, "layer_b": layer_b}
        return pd.DataFrame({**names, "cka": value, "low": low, "high": high})

    def interval(
        self, function: Callable[[Callable[..., np.ndarray]], np.ndarray], estimator: str = "unbiased"
    ) -> tuple[float, float, float]:
        """(estimate, low, high) of a smooth function of `replicates`, which it is given."""
        values = function(functools.partial(self.replicates, estimator=estimator))
        value, low, high = jackknife(values, self.weights)
        return float(value), float(low), float(high)

    def select(
        self, by_fold: Callable[[Source, Source], bool], totals: Callable[[Source, Source], bool] = lambda a, b: False
    ) -> Comparison:
        """The same with fewer pairs of sources, rounded to float32: a small file.

        Pairs that `by_fold(source, source)` wants keep their HSIC by fold, and so does every source with itself; others that
        `totals` wants keep the sum over all folds: the value is as exact, its interval is NaN. Asking for another pair
        raises ValueError.
        """
        first, second = [], []
        for column, (i, j) in enumerate(self.pairs.T.tolist()):
            a, b = self.sources[i], self.sources[j]
            if column < self._folded and (i == j or by_fold(a, b) or by_fold(b, a)):
                first.append(column)
            elif totals(a, b) or totals(b, a):
                second.append(column)
        hsic = {name: value[:, first].float().double() for name, value in self.hsic.items()}
        sums = {name: value[second].float().double() for name, value in self._sums.items()}
        return dataclasses.replace(self, pairs=self.pairs[:, first + second], hsic=hsic, totals=sums)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, meta): all of it, as tensors and as plain data that JSON holds; in float32 if that is exact."""
        tensors = {
            "cells": self.pairs.short() if len(self.sources) < 1 << 15 else self.pairs.int(),
            "weights": self.weights,
        }
        for prefix, values in (("hsic", self.hsic), ("total", self.totals)):
            for name, value in values.items():
                exact = torch.equal(value.float().double(), value)
                tensors[f"{prefix}.{name}"] = (value.float() if exact else value).contiguous()
        return tensors, {"sources": [list(source) for source in self.sources]}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping) -> Comparison:
        """What `to_tensors` gave, as a Comparison again; also what earlier versions gave, with all pairs by fold."""
        values = {name: value.double() for name, value in tensors.items() if "." in name}
        hsic = {name.removeprefix("hsic."): value for name, value in values.items() if name.startswith("hsic.")}
        totals = {name: values.get(f"total.{name}", torch.zeros(0, dtype=torch.float64)) for name in hsic}
        sources = tuple((stream, layer) for stream, layer in meta["sources"])
        return cls(sources, tensors["cells"].long(), hsic, totals, tensors["weights"])

    @property
    def _folded(self) -> int:
        """How many pairs are at hand by fold."""
        return self.pairs.shape[1] - len(next(iter(self.totals.values())))

    @functools.cached_property
    def _row(self) -> dict[Source, int]:
        return {source: row for row, source in enumerate(self.sources)}

    @functools.cached_property
    def _index(self) -> np.ndarray:
        """(sources, sources): the column of each pair, -1 where it is not at hand."""
        index = np.full((len(self.sources),) * 2, -1)
        i, j = self.pairs.numpy()
        index[i, j] = index[j, i] = np.arange(len(i))
        return index

    @functools.cached_property
    def _sums(self) -> dict[str, Tensor]:
        """Estimator -> (pairs,): the sums over all folds."""
        return {
            name: torch.cat([torch.from_numpy(h.numpy().sum(0)), self.totals[name]]) for name, h in self.hsic.items()
        }
