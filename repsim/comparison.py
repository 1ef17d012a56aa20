"""The result of a comparison: HSIC of pairs of sources by fold of the images, and CKA with intervals made of it."""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor

Source = tuple[str, str]  # (stream, layer)
Array = np.ndarray


def jackknife(values: Array, weights: Array) -> tuple[Array, Array, Array]:
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
    pairs: Array  # (2, pairs) int, each pair of sources once
    hsic: dict[
        str, Array
    ]  # estimator -> (folds, pairs), sums over a fold's images; NaN where only the total is at hand
    totals: dict[str, Array]  # estimator -> (pairs,), sums over all images
    weights: Array  # (folds,), images

    @classmethod
    def of(cls, sources: Iterable[Source], hsic: Mapping[str, Tensor], weights: Tensor) -> Comparison:
        """Of HSIC by fold of all pairs: estimator -> (folds, sources, sources)."""
        sources = tuple(sources)
        pairs = np.stack(np.triu_indices(len(sources)))
        by_fold = {name: np.asarray(value)[:, pairs[0], pairs[1]] for name, value in hsic.items()}
        totals = {name: value.sum(0) for name, value in by_fold.items()}
        return cls(sources, pairs, by_fold, totals, np.asarray(weights, dtype=float))

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stream for stream, _ in self.sources))

    @property
    def undefined(self) -> list[Source]:
        """Sources whose self-HSIC is not positive: constant over the images."""
        own = self._column.diagonal()
        bad = np.any([~(total[own] > 0) for total in self.totals.values()], axis=0)
        return [source for source, flag in zip(self.sources, bad) if flag]

    def layers(self, stream: str) -> list[str]:
        """The layers of a stream, in the order of the forward pass. Raises ValueError if it is unknown."""
        layers = [layer for name, layer in self.sources if name == stream]
        if not layers:
            close = difflib.get_close_matches(str(stream), self.streams, n=3) or self.streams
            raise ValueError(
                f"stream: expected one of those compared, got {stream!r}; did you mean {', '.join(close)}?"
            )
        return layers

    def replicates(self, a: str, layer_a: str, b: str, layer_b: str, estimator: str = "unbiased") -> Array:
        """CKA of layer_a of stream a with layer_b of stream b, (1 + folds,): of all images, then without each fold in turn.

        Statistics are functions of such arrays, with intervals by `jackknife`: the similarity relative to the seeds' ceiling
        is `r(a, l, b, l) / np.sqrt(r(a, l, a2, l) * r(b, l, b2, l))`. NaN where CKA is undefined, and without a fold where only
        the sum over all is at hand.

        Raises:
            ValueError: an unknown stream, layer or estimator, or a pair that was not kept.
        """
        return self._replicates(a, b, [(layer_a, layer_b)], estimator)[:, 0]

    def _replicates(self, a: str, b: str, layers: Sequence[tuple[str, str]], estimator: str) -> Array:
        """The same of several pairs of layers, (1 + folds, pairs)."""
        if estimator not in self.hsic:
            known = ", ".join(self.hsic)
            raise ValueError(f"estimator: expected one of {known}, got {estimator!r}; compare anew with it")
        rows = []
        for stream, own in ((a, [k for k, _ in layers]), (b, [l for _, l in layers])):
            if unknown := [layer for layer in own if (stream, layer) not in self._row]:
                known = ", ".join(self.layers(stream))
                raise ValueError(f"layer: expected one of {known} of {stream!r}, got {unknown[0]!r}")
            rows.append([self._row[stream, layer] for layer in own])
        cells = self._column[rows[0], rows[1]]
        if (cells < 0).any():
            k, l = layers[int((cells < 0).argmax())]
            raise ValueError(f"cell: {(a, k)} with {(b, l)} is not among the pairs that were kept; compare anew")

        def sums(columns: Array) -> Array:
            total = self.totals[estimator][columns]
            return np.concatenate([total[None], total - self.hsic[estimator][:, columns]])

        with np.errstate(invalid="ignore"):
            own_a, own_b = (np.where((own := sums(self._column[k, k])) > 0, own, np.nan) for k in rows)
            return sums(cells) / np.sqrt(own_a * own_b)

    def matrix(self, a: str, b: str | None = None, estimator: str = "unbiased") -> pd.DataFrame:
        """CKA of all layers of stream a (rows) with all layers of stream b (columns; a itself if not given)."""
        b = a if b is None else b
        rows, columns = self.layers(a), self.layers(b)
        values = self._replicates(a, b, [*itertools.product(rows, columns)], estimator)[0]
        values = values.reshape(len(rows), len(columns))
        return pd.DataFrame(values, pd.Index(rows, name=a), pd.Index(columns, name=b))

    def table(self, a: str, b: str | None = None, estimator: str = "unbiased") -> pd.DataFrame:
        """The same in long form with intervals: columns a, b, layer_a, layer_b, cka, low, high."""
        b = a if b is None else b
        return self._table(a, b, [*itertools.product(self.layers(a), self.layers(b))], estimator)

    def curve(self, a: str, b: str, estimator: str = "unbiased") -> pd.DataFrame:
        """As `table`, for layers of the same name; a stream of one layer ("labels") is set against all of the other's."""
        one, other = self.layers(a), self.layers(b)
        if len(one) == 1 or len(other) == 1:
            return self.table(a, b, estimator)
        if not (pairs := [(k, k) for k in one if k in other]):
            raise ValueError(f"curve: expected layers that {a!r} and {b!r} both have, got none; use table")
        return self._table(a, b, pairs, estimator)

    def _table(self, a: str, b: str, layers: list[tuple[str, str]], estimator: str) -> pd.DataFrame:
        value, low, high = jackknife(self._replicates(a, b, layers, estimator), self.weights)
        layer_a, layer_b = zip(*layers)
        names = {"a": a, "b": b, "layer_a": layer_a, "layer_b": layer_b}
        return pd.DataFrame({**names, "cka": value, "low": low, "high": high})

    def select(self, by_fold: Callable[[Source, Source], bool]) -> Comparison:
        """The same, rounded to float32, with intervals of fewer pairs of sources: a small file.

        Pairs that `by_fold(source, source)` wants, in whichever order, keep their HSIC by fold, and so does every source with
        itself; the others keep the sum over all folds: the value is as exact, its interval is NaN.
        """
        named = [(self.sources[i], self.sources[j]) for i, j in self.pairs.T]
        folded = np.array([a == b or by_fold(a, b) or by_fold(b, a) for a, b in named])
        hsic, sums = {}, {}
        for name, value in self.hsic.items():
            hsic[name] = np.where(folded, value, np.nan).astype("float32").astype(float)
            total = self.totals[name].astype("float32").astype(float)
            sums[name] = np.where(np.isnan(hsic[name]).any(0), total, hsic[name].sum(0))
        return Comparison(self.sources, self.pairs, hsic, sums, self.weights)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, meta): all of it, as tensors and as plain data that JSON holds; in float32 if that is exact.

        Pairs that are at hand by fold come first; only of the others are sums over all folds kept.
        """
        folded = ~np.all([np.isnan(value).any(0) for value in self.hsic.values()], axis=0)
        order = np.argsort(~folded, kind="stable")
        index = torch.int16 if len(self.sources) < 1 << 15 else torch.int32
        tensors = {"cells": torch.tensor(self.pairs[:, order], dtype=index), "weights": torch.tensor(self.weights)}
        for name, by_fold in self.hsic.items():
            for prefix, values in (("hsic", by_fold[:, folded]), ("total", self.totals[name][~folded])):
                value = torch.tensor(values)
                exact = torch.equal(value.float().double(), value)
                tensors[f"{prefix}.{name}"] = value.float() if exact else value
        return tensors, {"sources": [list(source) for source in self.sources]}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping) -> Comparison:
        """What `to_tensors` gave, as a Comparison again; also what earlier versions gave, with all pairs by fold."""
        hsic, totals = {}, {}
        for name in (key.removeprefix("hsic.") for key in tensors if key.startswith("hsic.")):
            by_fold = tensors[f"hsic.{name}"].double().numpy()
            rest = tensors.get(f"total.{name}", torch.zeros(0)).double().numpy()
            hsic[name] = np.pad(by_fold, ((0, 0), (0, len(rest))), constant_values=np.nan)
            totals[name] = np.concatenate([by_fold.sum(0), rest])
        sources = tuple((stream, layer) for stream, layer in meta["sources"])
        return cls(sources, tensors["cells"].long().numpy(), hsic, totals, tensors["weights"].numpy())

    @functools.cached_property
    def _row(self) -> dict[Source, int]:
        return {source: row for row, source in enumerate(self.sources)}

    @functools.cached_property
    def _column(self) -> Array:
        """(sources, sources): the column of each pair, -1 where it is not at hand."""
        columns = np.full((len(self.sources),) * 2, -1)
        i, j = self.pairs
        columns[i, j] = columns[j, i] = np.arange(len(i))
        return columns
