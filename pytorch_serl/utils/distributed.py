"""Several processes, started by torchrun, that take every training step together; in one, all of this does nothing.

They hold the same parameters, and each has every `world_size()`-th row of the batch. Random numbers are drawn for the
whole batch in each of them, from the same state, and it keeps those of its own rows; gradients are averaged before the
optimisers step. So each steps as one process would on the whole batch, up to rounding, and the parameters stay equal
without being sent. Who has the batch, and who runs the script: scaling/torchrun.py.
"""

import importlib
import os
from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

PATIENCE = timedelta(days=7)  # the others wait for the next step while process 0 acts, evaluates, or is paused


def launched() -> bool:
    """Whether torchrun started this process beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def start() -> None:
    """Join the others that torchrun started: gloo for what is on a CPU, nccl for what is on CUDA."""
    # Adam imports this module later, and its functions would keep the group as a default argument: a group that
    # outlives `destroy_process_group` can abort the process at its end ("terminate called without an active exception")
    importlib.import_module("torch.distributed.nn")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)


def world_size() -> int:
    """Number of processes; 1 where torchrun started no others."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def rows_of(process: int) -> slice:
    """A process's rows of a batch; alternating, so that a batch of two halves gives it as many of both."""
    return slice(process, None, world_size())


def of_whole_batch(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """`function(rows)`, with the random numbers that these rows would get in the whole batch.

    `function` may draw random numbers for each row, and must not look at other rows: here those are zeros.
    """
    if world_size() == 1:
        return function(rows)
    whole = rows.new_zeros(len(rows) * world_size(), *rows.shape[1:])
    whole[rows_of(rank())] = rows
    return function(whole)[rows_of(rank())]


def gather(x: torch.Tensor) -> torch.Tensor:
    """`x` of every process, without gradient: (...) -> (processes, ...)."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.stack(parts)


def whole_batch(rows: torch.Tensor) -> torch.Tensor:
    """The whole batch of which every process has `rows`, without gradient: (B / processes,) -> (B,)."""
    return rows if world_size() == 1 else gather(rows).transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients, in one message."""
    if world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads])):
        grad.copy_(mean.view(grad.shape))


@torch.no_grad()
def largest_difference(parameters: Iterable[nn.Parameter]) -> float:
    """By how much any parameter of any process differs from process 0's, at most; all processes call it."""
    own = torch.cat([p.reshape(-1) for p in parameters])
    first = own.clone()
    dist.broadcast(first, src=0)
    return gather((own - first).abs().max()).max().item()
