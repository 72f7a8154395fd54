"""Who does what when torchrun starts a script in several processes.

Process 0 runs the script as if it were alone: it reads, samples, acts, evaluates, prints and writes. Only the training
steps are shared, those that it calls through a `SharedStep`. The others `follow`: they have no data and no files; they
get parameters and optimisers from process 0 before the first step, and with each step its random state and their rows
of its batch. How a step on some rows becomes one on the whole batch: utils/distributed.py.
"""

import io
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pytorch_serl.utils.device import pick_device
from pytorch_serl.utils.distributed import gather, largest_difference, launched, rank, rows_of, start, world_size
from pytorch_serl.utils.signals import STOP_SIGNALS

TOLERANCE = 1e-5  # of the difference between two processes' parameters; equal machines compute the same bits


class SharedStep:
    """A training step that all processes of torchrun take together; the plain step where there is one process.

    Args:
        step: `step(batch, **options)` returns scalars by name. It averages its gradients, and every row of the batch,
            a dict (of dicts) of tensors, weighs the same.
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
            layout = _each(lambda x: (tuple(x.shape), x.dtype, x.device.type), batch)
            _tell("step", (options, layout, _rng_state(self.device)))
            return self.take(_each(_deal, batch), options)

    def take(self, rows: dict[str, Any], options: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The step on this process's rows. What it reports is averaged over the processes, a maximum excepted."""
        info = self.step(rows, **options)
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
            options, layout, rng = content
            _set_rng_state(rng, device)
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
    """Send every process its rows (B / processes, ...) of process 0's tensor (B, ...); returns process 0's own."""
    parts = [x[rows_of(process)].contiguous() for process in range(world_size())]
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


def _rng_state(device: torch.device) -> list[torch.Tensor]:
    """The states of the generators that an update draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng_state(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
