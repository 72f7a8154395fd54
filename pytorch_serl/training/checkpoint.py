"""Checkpoints of a run: agent, step, random states in `last.pt`, buffers in append-only parts beside it."""

from pathlib import Path
from typing import Any

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.training.run import LAST, rng_state, save_checkpoint, set_rng_state
from pytorch_serl.utils.files import load_checkpoint


class RunCheckpoint:
    """Saves and restores everything a run needs to go on as if it had not stopped.

    A buffer is written in parts, each holding what came since the one before, so that saving costs what is new.
    `last.pt` names the parts that belong to it: a kill between a part and `last.pt` leaves the older state whole.

    Args:
        path: the run directory.
        agent: saved with its optimisers.
        buffers: by name.
    """

    def __init__(self, path: Path, agent: SACAgent, buffers: dict[str, ReplayBuffer]):
        self.path, self.agent, self.buffers = path, agent, buffers
        self.parts: list[dict[str, Any]] = []
        self.counters = {name: (0, 0) for name in buffers}

    def save(self, step: int, progress: dict[str, Any]) -> Path:
        """Write the new part of every buffer, then `last.pt`; `progress` is what the script wants back on resume."""
        for name, buffer in self.buffers.items():
            part = buffer.export(self.counters[name])
            if part["counters"] != self.counters[name]:
                file = f"buffer_{name}_{part['counters'][0]:07d}.pt"
                save_checkpoint(self.path / file, part)
                self.parts.append({"buffer": name, "file": file})
                self.counters[name] = part["counters"]
        content = {
            "step": step, "agent": self.agent.state_dict(), "rng": rng_state(), "progress": progress,
            "parts": self.parts, "sampling": {name: buffer.rng_state() for name, buffer in self.buffers.items()},
        }  # fmt: skip
        save_checkpoint(self.path / LAST, content)
        return self.path / LAST

    def load(self) -> tuple[int, dict[str, Any]]:
        """Restore agent, buffers and random states from `last.pt`; returns the step and `progress`.

        Raises ValueError for a checkpoint of another agent or a missing buffer part, before anything is changed.
        """
        content = load_checkpoint(self.path / LAST)
        if not {"step", "agent", "rng", "parts", "sampling"} <= set(content):
            raise ValueError(f"{self.path / LAST}: not a run's checkpoint (it has {sorted(map(str, content))[:6]})")
        parts = [(part["buffer"], load_checkpoint(self.path / part["file"])) for part in content["parts"]]
        self.agent.load_state_dict(content["agent"], str(self.path / LAST))
        for name, part in parts:
            self.buffers[name].restore(part)
            self.counters[name] = part["counters"]
        self.parts = content["parts"]
        for name, state in content["sampling"].items():
            self.buffers[name].set_rng_state(state)
        set_rng_state(content["rng"])
        return content["step"], content["progress"]
