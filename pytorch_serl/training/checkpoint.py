"""Checkpoints of a run: agent, step, random states in `last.pt`, buffers in append-only parts beside it."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.demos import Demos
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.training.run import BEST, BUFFER_PART, LAST, rng_state, set_rng_state
from pytorch_serl.utils.files import load_checkpoint, save_checkpoint

PART = {"counters", "tail", "first", "columns", "frames"}
IN_STEPS = ("patience", "burst")  # settings that are options in seconds
CONTENT = {"step", "agent", "rng", "progress", "parts", "sampling", "identity"}


def identity(script: str, settings: dict[str, Any], demos: Demos) -> dict[str, Any]:
    """What a resumed run must share with the run that it continues.

    Args:
        script: the script's name.
        settings: options by name, those that change what is learned.
        demos: a checksum of their actions and rewards goes in.
    """
    rows = [np.append(t["actions"], t["rewards"]).astype(np.float32) for t in demos.transitions]
    return {"script": script, "settings": dict(settings), "demos": zlib.crc32(np.stack(rows).tobytes())}


class RunCheckpoint:
    """Saves and restores everything a run needs to go on as if it had not stopped.

    A buffer is written in parts, each holding what came since the one before, so that saving costs what is new.
    `last.pt` names the parts that belong to it: a kill between a part and `last.pt` leaves the older state whole.

    Args:
        path: the run directory.
        agent: saved with its optimisers.
        buffers: by name.
        identity: what `identity` returned for this run.
    """

    def __init__(self, path: Path, agent: SACAgent, buffers: dict[str, ReplayBuffer], identity: dict[str, Any]):
        self.path, self.agent, self.buffers, self.identity = path, agent, buffers, identity
        self.parts: list[dict[str, Any]] = []
        self.counters = {name: (0, 0) for name in buffers}

    def save(self, step: int, progress: dict[str, Any]) -> Path:
        """Write the new part of every buffer, then `last.pt`.

        `progress` is what the script wants back on resume; its `evaluated` is the step of the last evaluation, after
        which there is a `best.pt`. Raises FloatingPointError, and leaves `last.pt` as it is, where a parameter is NaN.
        """
        self.agent.check_finite()
        for name, buffer in self.buffers.items():
            part = buffer.export(self.counters[name], copy=False)
            if part["counters"] != self.counters[name]:
                file = BUFFER_PART.format(name, f"{part['counters'][0]:07d}")
                save_checkpoint(self.path / file, part)
                self.parts.append({"buffer": name, "file": file})
                self.counters[name] = part["counters"]
        content = {
            "step": step,
            "agent": self.agent.state_dict(),
            "rng": rng_state(),
            "progress": progress,
            "parts": self.parts,
            "sampling": {name: buffer.rng_state() for name, buffer in self.buffers.items()},
            "identity": self.identity,
        }
        save_checkpoint(self.path / LAST, content)
        return self.path / LAST

    def load(self) -> tuple[int, dict[str, Any]]:
        """Restore agent, buffers and random states from `last.pt`; returns the step and `progress`.

        Raises ValueError for a checkpoint of another script, other settings, other demos or another agent, and for a
        missing buffer part or `best.pt`, before anything is changed.
        """
        content = load_checkpoint(self.path / LAST)
        if not CONTENT <= set(content):
            raise ValueError(f"{self.path / LAST}: not a run's checkpoint (it has {sorted(map(str, content))[:6]})")
        self._check_identity(content["identity"])
        if "optimizers" not in content["agent"]:
            raise ValueError(f"{self.path / LAST}: its agent has no optimisers, as {BEST} has none; it cannot go on")
        if content["progress"]["evaluated"] > 0 and not (self.path / BEST).is_file():
            raise ValueError(f"{self.path / BEST} is missing beside {LAST}; put it back or start anew")
        if (self.path / BEST).is_file() and "modules" not in load_checkpoint(self.path / BEST):
            raise ValueError(
                f"{self.path / BEST} beside {LAST} is not an agent's checkpoint; put it back or start anew"
            )
        # mapped, not read: in memory they would stand beside the buffers that they are copied into
        parts = [(part["buffer"], load_checkpoint(self.path / part["file"], mmap=True)) for part in content["parts"]]
        for (_, part), named in zip(parts, content["parts"]):
            if not PART <= part.keys():
                raise ValueError(f"{self.path / named['file']}: not a part of a buffer (it has {sorted(part)[:6]})")
        self.agent.load_state_dict(content["agent"], str(self.path / LAST))
        for name, part in parts:
            self.buffers[name].restore(part)
            self.counters[name] = part["counters"]
        self.parts = content["parts"]
        for name, state in content["sampling"].items():
            self.buffers[name].set_rng_state(state)
        set_rng_state(content["rng"])
        return content["step"], content["progress"]

    def _check_identity(self, saved: dict[str, Any]) -> None:
        path, own = self.path / LAST, self.identity
        if saved["script"] != own["script"]:
            raise ValueError(f"{path} was written by {saved['script']}, this is {own['script']}")
        names = own["settings"].keys() & saved["settings"].keys()  # another version may know others besides
        pairs = {name: (saved["settings"][name], own["settings"][name]) for name in sorted(names)}
        changed = [
            f"--{name} was {then}, is {now}" + " (steps: seconds times the environment's rate)" * (name in IN_STEPS)
            for name, (then, now) in pairs.items()
            if then != now
        ]
        if changed:
            raise ValueError(f"{path} belongs to other settings: " + "; ".join(changed) + "; resume with the same ones")
        if saved["demos"] != own["demos"]:
            raise ValueError(f"{path} was trained on other demos; start anew with --overwrite or another --save_dir")
