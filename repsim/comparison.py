"""The result of a comparison: HSIC of pairs of sources by fold of the images, and CKA with intervals made of it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor

Source = tuple[str, str]  # (stream, layer)
Array = np.ndarray


def jackknife(values: Array, weights: Array) -> tuple[Array, Array, Array]:
    """(estimate, low, high): 95 % intervals by the delete-a-group jackknife with Student's t (weighted: Busing et al. 1999).

    `values` (1 + folds, ...) are a smooth statistic of all images, then without each fold in turn, as `Comparison.replicates`;
    `weights` (folds,) the images of each fold, ValueError for another number of them. Limits are NaN with fewer than two folds,
    and where a replicate is NaN.
    """
    values, weights = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if values.ndim < 1 or len(values) != 1 + len(weights):
        raise ValueError(f"values: expected 1 + {len(weights)} replicates, got shape {values.shape}")
    whole, without, groups = values[0], values[1:], len(weights)
    if groups < 2:
        return whole, whole * np.nan, whole * np.nan
    share = (weights / weights.sum()).reshape(-1, *[1] * (values.ndim - 1))
    mean = groups * whole - ((1 - share) * without).sum(0)
    pseudo = whole / share - (1 / share - 1) * without
    variance = ((pseudo - mean) ** 2 / (1 / share - 1)).mean(0)
    half = stdtrit(groups - 1, 0.975) * np.sqrt(variance)
    return whole, whole - half, whole + half


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """HSIC of pairs of sources, and the CKA made of it.

    A source is (stream, layer): a network or "network@view" with its layers, an extractor of features with its own, or
    "labels", "pixels" or a feature's name with one layer of that name. Intervals are those of `jackknife`; they are NaN
    where there is one batch only, and for pairs of which only the sum over all folds is at hand (see `select`).
    """

    sources: tuple[Source, ...]
    pairs: list[tuple[Source, Source]]  # each once
    hsic: dict[str, Array]  # estimator -> (1 + folds, pairs): sums over all images, then over each fold's (or NaN)
    weights: Array  # (folds,), images

    @classmethod
    def of(cls, sources: Iterable[Source], hsic: Mapping[str, Tensor], weights: Tensor) -> Comparison:
        """Of HSIC by fold of all pairs: estimator -> (folds, sources, sources)."""
        sources = tuple(sources)
        pairs, (i, j) = [*itertools.combinations_with_replacement(sources, 2)], np.triu_indices(len(sources))
        by_fold = {name: np.asarray(value)[:, i, j] for name, value in hsic.items()}
        hsic = {name: np.concatenate([value.sum(0)[None], value]) for name, value in by_fold.items()}
        return cls(sources, pairs, hsic, np.asarray(weights, dtype=float))

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stream for stream, _ in self.sources))

    @property
    def undefined(self) -> list[Source]:
        """Sources whose self-HSIC is not positive: constant over the images."""
        return [s for s in self.sources if not all(h[0, self._column[s, s]] > 0 for h in self.hsic.values())]

    def layers(self, stream: str) -> list[str]:
        """The layers of a stream, in the order of the forward pass. Raises ValueError if it is unknown."""
        layers = [layer for name, layer in self.sources if name == stream]
        if not layers:
            close = difflib.get_close_matches(str(stream), self.streams) or self.streams
            raise ValueError(f"stream: expected one of those compared, such as {', '.join(close)}, got {stream!r}")
        return layers

    def replicates(self, a: str, layer_a: str, b: str, layer_b: str, estimator: str = "unbiased") -> Array:
        """CKA of layer_a of stream a with layer_b of stream b, (1 + folds,): of all images, then without each fold in turn.

        Statistics are functions of such arrays, with intervals by `jackknife`: the similarity relative to the seeds' ceiling
        is `r(a, l, b, l) / np.sqrt(r(a, l, a2, l) * r(b, l, b2, l))`. NaN where CKA is undefined, and without a fold where only
        the sum over all is at hand. Raises ValueError for an unknown stream, layer or estimator, or a pair that was not kept.
        """
        if estimator not in self.hsic:
            raise ValueError(f"estimator: expected one of {', '.join(self.hsic)}, got {estimator!r}; compare anew")
        s, t = (a, layer_a), (b, layer_b)
        if (s, t) not in self._column:
            for stream, layer in (s, t):
                if layer not in (known := self.layers(stream)):
                    raise ValueError(f"layer: expected one of {', '.join(known)} of {stream!r}, got {layer!r}")
            raise ValueError(f"cell: {s} with {t} is not among the pairs that were kept; compare anew")
        sums = self.hsic[estimator][:, [self._column[pair] for pair in ((s, t), (s, s), (t, t))]]
        both, *own = np.concatenate([sums[:1], sums[:1] - sums[1:]]).T
        own_s, own_t = (np.where(hsic > 0, hsic, np.nan) for hsic in own)
        return both / np.sqrt(own_s * own_t)

    def table(
        self, a: str, b: str | None = None, estimator: str = "unbiased", layers: list | None = None
    ) -> pd.DataFrame:
        """CKA of all layers of stream a (itself if b is not given) with all of stream b, or of these pairs of layers, with
        intervals: columns a, b, layer_a, layer_b, cka, low, high."""
        b = a if b is None else b
        layers = [*itertools.product(self.layers(a), self.layers(b))] if layers is None else layers
        replicates = np.stack([self.replicates(a, k, b, l, estimator) for k, l in layers]).T
        value, low, high = jackknife(replicates, self.weights)
        names = dict(zip(("a", "b", "layer_a", "layer_b"), (a, b, *zip(*layers))))
        return pd.DataFrame({**names, "cka": value, "low": low, "high": high})

    def matrix(self, a: str, b: str | None = None, estimator: str = "unbiased") -> pd.DataFrame:
        """The same without intervals, as a matrix: rows are layers of stream a, columns of stream b."""
        table, columns = self.table(a, b, estimator), self.layers(a if b is None else b)
        values = table["cka"].to_numpy().reshape(-1, len(columns))
        return pd.DataFrame(values, pd.Index(self.layers(a), name=a), pd.Index(columns, name=table["b"][0]))

    def curve(self, a: str, b: str, estimator: str = "unbiased") -> pd.DataFrame:
        """As `table`, for layers of the same name; a stream of one layer ("labels") is set against all of the other's."""
        one, other = self.layers(a), self.layers(b)
        pairs = None if 1 in (len(one), len(other)) else [(k, k) for k in one if k in other]
        if pairs == []:
            raise ValueError(f"curve: expected layers that {a!r} and {b!r} both have, got none; use table")
        return self.table(a, b, estimator, pairs)

    def select(self, by_fold: Callable[[Source, Source], bool]) -> Comparison:
        """The same, rounded to float32, with intervals of fewer pairs of sources: a small file.

        Pairs that `by_fold(source, source)` wants, in whichever order, keep their HSIC by fold, and so does every source with
        itself; the others keep the sum over all folds: the value is as exact, its interval is NaN.
        """
        folded = np.array([s == t or by_fold(s, t) or by_fold(t, s) for s, t in self.pairs])
        hsic = {name: sums.astype("float32").astype(float) for name, sums in self.hsic.items()}
        for sums in hsic.values():
            sums[1:, ~folded] = np.nan
            sums[0] = np.where(np.isnan(sums[1:]).any(0), sums[0], sums[1:].sum(0))
        return dataclasses.replace(self, hsic=hsic)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, plain data for JSON): pairs by fold first, then only the sums of the others; in float32 where exact."""
        folded = ~np.all([np.isnan(sums).any(0) for sums in self.hsic.values()], axis=0)
        row = {source: i for i, source in enumerate(self.sources)}
        cells = np.array([(row[s], row[t]) for s, t in self.pairs])[np.argsort(~folded, kind="stable")]
        index = torch.int16 if len(row) < 1 << 15 else torch.int32
        tensors = {"cells": torch.tensor(cells.T, dtype=index), "weights": torch.tensor(self.weights)}
        for name, sums in self.hsic.items():
            for prefix, values in (("hsic", sums[1:, folded]), ("total", sums[0, ~folded])):
                value = torch.tensor(values)
                tensors[f"{prefix}.{name}"] = value.float() if torch.equal(value.float().double(), value) else value
        return tensors, {"sources": [list(source) for source in self.sources]}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping) -> Comparison:
        """What `to_tensors` gave, as a Comparison again; also what earlier versions gave, with all pairs by fold."""
        hsic = {}
        for name in (key.removeprefix("hsic.") for key in tensors if key.startswith("hsic.")):
            by_fold = tensors[f"hsic.{name}"].double().numpy()
            rest = tensors.get(f"total.{name}", torch.zeros(0)).double().numpy()
            totals = np.concatenate([by_fold.sum(0), rest])
            hsic[name] = np.vstack([totals, np.pad(by_fold, ((0, 0), (0, len(rest))), constant_values=np.nan)])
        sources = tuple((stream, layer) for stream, layer in meta["sources"])
        pairs = [(sources[i], sources[j]) for i, j in tensors["cells"].T.tolist()]
        return cls(sources, pairs, hsic, tensors["weights"].numpy())

    @functools.cached_property
    def _column(self) -> dict[tuple[Source, Source], int]:
        """Two sources, in whichever order -> the column of their pair in `hsic`."""
        return {pair: column for column, (s, t) in enumerate(self.pairs) for pair in ((s, t), (t, s))}
