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
import torch.nn.functional as F
from torch import Tensor, nn

WAIT = timedelta(days=1)  # torchrun ends all ranks when one dies; a rank may wait long for a network made elsewhere


@contextlib.contextmanager
def started(device: torch.device | str) -> Iterator[None]:
    """Join the other ranks, if torchrun started this process; on CUDA each takes a GPU: ValueError where they are too few."""
    if "RANK" not in os.environ:
        yield
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"--nproc-per-node: expected at most the number of GPUs, {gpus}, got at least {local + 1}")
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=WAIT)
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


class _Sum(torch.autograd.Function):
    """The sum over all ranks, with gradients, which torch.distributed.nn has no longer."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def all_gather(x: Tensor) -> Tensor:
    """The rows (n / ranks, d) of all ranks, (n, d) in order of rank, on every rank, with gradients."""
    return _Sum.apply(F.pad(x, (0, 0, rank() * len(x), (ranks() - 1 - rank()) * len(x))))


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over the batches of all ranks, for where torch's own, SyncBatchNorm, does not run: off CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        axes, channels = (0, 2, 3)[: x.ndim - 1], (1, -1, 1, 1)[: x.ndim]
        mean = _Sum.apply(x.mean(axes)) / ranks()
        x = x - mean.view(channels)
        variance = _Sum.apply(x.square().mean(axes)) / ranks()
        n = x.numel() // x.shape[1] * ranks()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return x * scale.view(channels) + self.bias.view(channels)


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """What trains `model`, sharing its weights, with all ranks: whole-batch norms, averaged gradients; with one rank the model."""
    if ranks() == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.__class__ = _BatchNorm
    return nn.parallel.DistributedDataParallel(model)
