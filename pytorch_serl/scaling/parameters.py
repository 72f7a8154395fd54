"""Parameters between processes: a whole agent as bytes, what acts as one vector, and memory that two of them share."""

import io
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pytorch_serl.agents.sac import SACAgent


class SharedParameters:
    """Two slots of shared memory and a version: one process writes, another reads, nobody waits.

    Args:
        count: float32 numbers in a slot.
        context: of `multiprocessing`.
    """

    def __init__(self, count: int, context: Any):
        try:
            self.memory = context.RawArray("f", 2 * count)  # in /dev/shm where it fits, else in the temporary folder
        except OSError as error:
            raise ValueError(
                f"no room for the {8 * count / 1e6:.0f} MB that are shared with the learner's process ({error}); start "
                "the container with --shm-size=1g, or give --learner inline"
            ) from None
        self.version = context.Value("q", 0, lock=False)

    @property
    def slots(self) -> torch.Tensor:
        """Both slots, (2, count)."""
        return torch.frombuffer(self.memory, dtype=torch.float32).view(2, -1)

    def write(self, modules: Iterable[nn.Module]) -> int:
        """Publish the modules' parameters as the next version, which it returns."""
        version = self.version.value + 1
        self.slots[version % 2].copy_(pack(modules))
        self.version.value = version
        return version

    def read(self, modules: Iterable[nn.Module], known: int) -> int:
        """Take over the newest version if it is newer than `known`; returns the version that the modules have now."""
        while (version := self.version.value) != known:
            values = self.slots[version % 2].clone()
            if self.version.value == version:  # else this slot may have been overwritten meanwhile
                unpack(values, modules)
                return version
        return known


def pack(modules: Iterable[nn.Module]) -> torch.Tensor:
    """The modules' parameters one after the other, (N,) float32."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in _parameters(modules)])


@torch.no_grad()
def unpack(values: torch.Tensor, modules: Iterable[nn.Module]) -> None:
    """Take over what `pack` returned for modules of the same kind."""
    start = 0
    for parameter in _parameters(modules):
        parameter.copy_(values[start : start + parameter.numel()].view(parameter.shape))
        start += parameter.numel()


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def acting_modules(agent: SACAgent) -> list[nn.Module]:
    """What an action of the averaged policy depends on and training changes."""
    return [agent.average_actor, *(module for name, module in agent.target.items() if name != "critic")]


def to_bytes(state: dict[str, Any]) -> bytes:
    """An agent's `state_dict()`, or another dict of tensors, for a process that may have other devices."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def from_bytes(state: bytes, device: torch.device | str) -> dict[str, Any]:
    """What `to_bytes` was given, on a device of this process."""
    return torch.load(io.BytesIO(state), device, weights_only=True)
