"""Several processes, started by torchrun, that take every training step together; in one, all of this does nothing.

Process 0 runs the script as if it were alone: it reads, samples, acts, evaluates, prints and writes. Only the training
steps are shared, those that it calls through a `SharedStep`. The others `follow`: they have no data and no files; they
get parameters and optimisers from process 0 before the first step, and with each step their rows of its batch. Each
draws its own random numbers. Gradients are averaged before the optimisers step, so that the parameters stay equal
without being sent, and in what is not drawn each step is that of one process on the whole batch, up to rounding.
"""

import importlib
import io
import os
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.training import build
from pytorch_serl.utils.device import pick_device
from pytorch_serl.utils.signals import STOP_SIGNALS

PATIENCE = timedelta(days=7)  # the others wait for the next step while process 0 acts, evaluates, or is paused
TOLERANCE = 1e-5  # of the difference between two processes' parameters; equal machines compute the same bits


# ---------------------------------------------------------------- the processes


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


@torch.no_grad()
def average(tensors: list[torch.Tensor]) -> None:
    """Give every process the mean of all processes' tensors, in place and in one message."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([x.reshape(-1) for x in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for x, mean in zip(tensors, flat.split([x.numel() for x in tensors])):
        x.copy_(mean.view(x.shape))


def gather(x: torch.Tensor) -> torch.Tensor:
    """`x` of every process: (...) -> (processes, ...)."""
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.stack(parts)


@torch.no_grad()
def largest_difference(parameters: Iterable[nn.Parameter]) -> float:
    """By how much any parameter of any process differs from process 0's, at most; all processes call it."""
    own = torch.cat([p.reshape(-1) for p in parameters])
    first = own.clone()
    dist.broadcast(first, src=0)
    return gather((own - first).abs().max()).max().item()


# ---------------------------------------------------------------- the steps that they share


class SharedStep:
    """A training step that all processes of torchrun take together; the plain step where there is one process.

    Args:
        step: `step(batch, **options)` returns scalars by name. It averages its gradients (`average`), and every row of
            the batch, a dict (of dicts) of tensors, weighs the same. So do the rows of an option that is a dict.
        modules: what it trains, on one device.
        state: returns what the other processes' `make_step` takes (see `run`), in types that `torch.load` admits with
            `weights_only=True`.
    """

    def __init__(self, step: Callable[..., dict[str, torch.Tensor]], modules: Iterable[nn.Module], state: Callable):
        self.step, self.state, self.followed = step, state, False
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.device = self.parameters[0].device

    def __call__(self, batch: dict[str, Any], **options: Any) -> dict[str, torch.Tensor]:
        """Process 0's call, with the whole batch; returns the scalars of the whole batch."""
        if world_size() == 1:
            return self.step(batch, **options)
        with _together():
            if not self.followed:
                _tell("begin", (self.device.type, _to_bytes(self.state())))
                self.followed = True
            shared = {"batch": batch} | {name: x for name, x in options.items() if isinstance(x, dict)}
            options = {name: x for name, x in options.items() if name not in shared}
            layout = _each(lambda x: (tuple(x.shape), x.dtype, x.device.type), shared)
            _tell("step", (layout, options, _seed(self.device)))
            return self.take(_each(_deal, shared), options)

    def take(self, rows: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The step on this process's rows. What it reports is averaged over the processes, a maximum excepted."""
        info = self.step(**rows, **options)
        table = gather(torch.stack([value.detach().float() for value in info.values()])).unbind(1)  # (processes,) each
        return {name: x.max() if name.endswith("_max") else x.mean() for name, x in zip(info, table)}

    def check(self) -> None:
        """Raise FloatingPointError where the processes' parameters have drifted apart; call it before a save."""
        if world_size() == 1 or not self.followed:
            return
        with _together():
            _tell("check")
            difference = largest_difference(self.parameters)
        if difference > TOLERANCE:
            raise FloatingPointError(
                f"the parameters of torchrun's {world_size()} processes differ by up to {difference:.1e}, and should "
                "be equal: what was learned since the last checkpoint is not saved. Are their GPUs of one kind?"
            )


def shared_update(agent: SACAgent) -> SharedStep:
    """`agent.update`, taken by all processes of torchrun together."""
    agent.average = average
    return SharedStep(agent.update, (agent.online, agent.actor, agent.temperature), agent.state_dict)


def make_shared_update(state: dict[str, Any], device: torch.device) -> SharedStep:
    """`shared_update` in the other processes, from the first one's `state_dict()`."""
    return shared_update(build.restore_agent(state, device, "process 0"))


# ---------------------------------------------------------------- who does what


def run(main: Callable[[], None], make_step: Callable[[dict[str, Any], torch.device], SharedStep]) -> None:
    """Run `main` in process 0, and let the others follow its steps; plain `main()` where there is one process.

    Args:
        make_step: makes the others' step from what process 0's `state` returned and their own device.
    """
    if not launched():
        return main()
    start()
    if rank() > 0:
        return follow(make_step)
    print(f"{world_size()} processes share every update; this one, the first, does everything else", flush=True)
    try:
        main()
    finally:
        if world_size() > 1:  # not after a step that failed
            with suppress(RuntimeError):  # one of them is gone; what happened is on its way up already
                _tell("stop")
            dist.destroy_process_group()


def follow(make_step: Callable[[dict[str, Any], torch.device], SharedStep]) -> None:
    """Do what process 0 says until it says stop, or is gone. Ctrl-C is its matter, too."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            command, content = _hear()
        except RuntimeError:
            raise SystemExit(f"process {rank()} of torchrun ends: process 0 is gone") from None
        if command == "begin":
            device = pick_device(content[0])
            shared = make_step(torch.load(io.BytesIO(content[1]), "cpu", weights_only=True), device)
        elif command == "step":
            layout, options, seed = content
            torch.manual_seed(seed + rank())
            shared.take(_each(_receive, layout), options)
        elif command == "check":
            largest_difference(shared.parameters)
        elif command == "stop":
            return dist.destroy_process_group()


def check_options(device: torch.device, batch_size: int) -> None:
    """Raise ValueError for what several processes cannot do with these options."""
    count = world_size()
    if count == 1:
        return
    if device.type == "cuda":
        here, gpus, index = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count(), device.index or 0
        if here > gpus:
            raise ValueError(f"torchrun started {here} processes beside {gpus} GPUs; wanted one GPU for each")
        if index != int(os.environ["LOCAL_RANK"]):
            raise ValueError(f"--device {device} is one GPU for {count} processes of torchrun; give --device cuda")
    elif device.type != "cpu":
        raise ValueError(f"torchrun's processes cannot share the device {device}; give --device cpu or cuda")
    if batch_size % (2 * count):
        raise ValueError(
            f"--batch_size {batch_size} cannot be shared by {count} processes; wanted a multiple of {2 * count}, so "
            "that each has as many rows, and of both halves of the batch"
        )


# ---------------------------------------------------------------- messages


@contextmanager
def _together() -> Iterator[None]:
    """Leave the others when something goes wrong inside: they would wait for the rest of it, and end when left."""
    try:
        yield
    except BaseException:
        dist.destroy_process_group()
        raise


def _tell(command: str, content: Any = None) -> None:
    dist.broadcast_object_list([command, content], src=0, device=torch.device("cpu"))


def _hear() -> list[Any]:
    message = [None, None]
    dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))
    return message


def _each(function: Callable[[Any], Any], tree: dict[str, Any]) -> dict[str, Any]:
    """`function` of every leaf of a dict of dicts."""
    return {key: _each(function, x) if isinstance(x, dict) else function(x) for key, x in tree.items()}


def _deal(x: torch.Tensor) -> torch.Tensor:
    """Send every process its rows (B / processes, ...) of process 0's tensor (B, ...); returns process 0's own.

    Every `world_size()`-th row, so that a batch of two halves gives each as many of both.
    """
    parts = [x[process :: world_size()].contiguous() for process in range(world_size())]
    own = torch.empty_like(parts[0])
    dist.scatter(own, parts, src=0)
    return own


def _receive(layout: tuple[tuple[int, ...], torch.dtype, str]) -> torch.Tensor:
    """What `_deal` sends."""
    (size, *shape), dtype, device = layout
    rows = torch.empty(size // world_size(), *shape, dtype=dtype, device=device)
    dist.scatter(rows, src=0)
    return rows


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _seed(device: torch.device) -> int:
    """A seed for the others' numbers of a step, from the state of process 0's generators: after --resume the same."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return zlib.crc32(b"".join(state.numpy().tobytes() for state in states))
