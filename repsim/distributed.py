"""One network over several processes that torchrun starts ("ranks"), giving what one process gives, up to rounding.

Every rank computes its share of each batch and the loss of the whole batch: outputs are gathered, batch norms see the whole
batch, and gradients are averaged. Without torchrun there is one rank and all of this does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextlib.contextmanager
def started(device: torch.device | str) -> Iterator[None]:
    """Join the other ranks, if torchrun started this process; on CUDA each takes a GPU: ValueError where they are too few."""
    if "RANK" not in os.environ:
        yield
        return
    if cuda := torch.device(device).type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"--nproc-per-node: expected at most the number of GPUs, {gpus}, got at least {local + 1}")
        torch.cuda.set_device(local)
    # torchrun ends all ranks when one dies; a rank may wait long for a network made elsewhere
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(days=1))
    yield
    dist.destroy_process_group()  # not after an error: the others may be waiting for this rank


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 is the one that reads and writes files."""
    return dist.get_rank() if ranks() > 1 else 0


def rows_of_rank(n: int) -> slice:
    """The rows of a batch of n that this rank computes; ValueError where the ranks cannot share n evenly."""
    if n % ranks():
        raise ValueError(f"batch_size: expected a multiple of the number of ranks, {ranks()}, got {n}")
    size = n // ranks()
    return slice(rank() * size, (rank() + 1) * size) if ranks() > 1 else slice(None)


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    if ranks() > 1:
        dist.broadcast_object_list(values)
    return values[0]


class _AllGather(torch.autograd.Function):
    """The rows (n / ranks, ...) of all ranks, (n, ...) in order of rank, on every rank; torch's own gives no gradients."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        whole = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ranks())]
        dist.all_gather(whole, rows.contiguous())
        return torch.cat(whole)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rows_of_rank(len(total))]


all_gather = _AllGather.apply


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """What trains `model`, sharing its weights, with all ranks: whole-batch norms, averaged gradients; with one rank the model."""
    if ranks() == 1:
        return model
    if device.type == "cuda":
        return nn.parallel.DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model))
    # torch's whole-batch norm runs on CUDA alone: here every rank normalises the whole batch and takes its rows
    for norm in (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
        norm.register_forward_pre_hook(lambda norm, inputs: all_gather(*inputs) if norm.training else None)
        norm.register_forward_hook(lambda norm, _, out: out[rows_of_rank(len(out))] if norm.training else None)
    return nn.parallel.DistributedDataParallel(model)
