"""The learning half of train_hybrid.py: two buffers, batches half and half, updates, checkpoints; no environment."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pytorch_serl.agents.sac import CLONE_STD, SACAgent
from pytorch_serl.data.actions import in_force
from pytorch_serl.data.demos import Demos
from pytorch_serl.data.episode_files import episode_files, read_episode
from pytorch_serl.data.replay_buffer import ReplayBuffer, sample_each
from pytorch_serl.training import build
from pytorch_serl.training.alarms import check_numbers
from pytorch_serl.training.checkpoint import RunCheckpoint
from pytorch_serl.training.limits import Limits

CRITIC_STEPS = 1000  # the last ones of the pretraining, with critics, where an update takes up to twice as long


@dataclass(frozen=True)
class Schedule:
    """How much is learned when; the options of train_hybrid.py of these names."""

    batch_size: int
    cta_ratio: int
    cycles_per_step: int
    pretrain_steps: int
    clone_weight: float
    clone_steps: int
    imitate_successes: bool = False
    algo: str = "hil_serl"
    clone_std: float = CLONE_STD


class Learner:
    """Learns from demos and from what an actor sends.

    Args:
        agent: acts in the same process, too, unless the learner has one of its own (scaling/processes.py).
        save_dir: of the run's checkpoint.
        identity: what a resumed run must share (training/checkpoint.py).
        schedule: see `Schedule`.
        capacity: transitions of the online buffer.
        demo_capacity: transitions of the buffer of demos and corrections.
        views: stored crops of each demo frame, and of each that a human's action led to.
        seed: of the sampling.
        limits: of what is learned from recorded episodes.
        update: `agent.update`, or what takes it together with other processes (scaling/torchrun.py).
    """

    def __init__(
        self,
        agent: SACAgent,
        save_dir: Path,
        identity: dict[str, Any],
        schedule: Schedule,
        *,
        capacity: int,
        demo_capacity: int,
        views: int,
        seed: int,
        limits: Limits,
        update: Callable[..., dict[str, torch.Tensor]] | None = None,
    ):
        self.agent, self.schedule, self.views, self.save_dir = agent, schedule, views, save_dir
        self.update, self.limits = update or agent.update, limits
        self.online = ReplayBuffer(capacity, agent.image_keys, seed=seed)
        self.demo = ReplayBuffer(demo_capacity, agent.image_keys, seed=seed + 1)
        self.checkpoint = RunCheckpoint(save_dir, agent, {"online": self.online, "demo": self.demo}, identity)
        self.pretrained, self.clone_dropout, self.full = 0, 0.0, False
        self.episode: list[dict[str, Any]] = []  # the transitions of the one that goes on

    # ---------------------------------------------------------------- data

    def store_demos(self, demos: Demos) -> None:
        """Put the demos into their buffer, encoded where the backbone is frozen; shows a progress bar."""
        progress = partial(tqdm, desc="encoding the demos", unit="transition", mininterval=1)
        build.add_demos(self.demo, demos, self.agent, self.views, progress=progress, keep=True)
        build.fit_waypoint(self.agent, self.demo, demos)
        self.clone_dropout = build.clone_dropout(self.agent)

    def full_size_gb(self) -> tuple[float, float]:
        """Memory in GB of the buffers of demos and corrections, and of online experience, when they are full."""
        full_gb, views = self.demo.full_size_gb(), 1 if self.agent.backbone is None else self.views
        return full_gb, full_gb / views * self.online.capacity / self.demo.capacity

    def add(self, transition: dict[str, Any], to_demos: bool = False) -> None:
        """Store a transition of the actor; a correction also beside the demos, to be imitated.

        What is imitated has the gripper commands that are in force (`in_force`).
        """
        self.online.add(self._with_views(transition, 1))
        before = self.episode[-1]["actions"] if self.episode else None
        action = in_force(transition["actions"], before, self.agent.num_grippers)
        self.episode.append(transition | {"actions": action})
        if to_demos and not (transition["dones"] and not np.any(transition["actions"])):  # he judged, and moved nothing
            self.imitate(self.episode[-1])

    def end_episode(self, solved_alone: bool) -> None:
        """The episode of which `add` had the transitions is complete; `solved_alone`: without help."""
        if solved_alone and self.schedule.imitate_successes:
            for transition in self.episode:
                self.imitate(transition)
        self.episode = []

    def imitate(self, transition: dict[str, Any]) -> None:
        """Store a transition beside the demos, whose frames have `views` views."""
        self.demo.add(self._with_views(transition, self.views))
        if self.demo.num_added > len(self.demo) and not self.full:
            self.full = True
            tqdm.write("demos and corrections fill their buffer: now the oldest, the demos, make room for newer ones")

    def _with_views(self, transition: dict[str, Any], views: int) -> dict[str, Any]:
        names = ("observations", "next_observations")
        return transition | {k: build.with_views(self.agent, transition[k], views) for k in names if k in transition}

    def sample(self, batch_size: int) -> dict[str, Any]:
        """RLPD's batch: half online, half demos; `is_demo` marks the half that the cloning term reads."""
        half = batch_size // 2
        is_demo = torch.cat([torch.zeros(half), torch.ones(half)])
        return sample_each([self.online, self.demo], half) | {"is_demo": is_demo}

    # ---------------------------------------------------------------- learning

    def cloning(self, weight: float) -> dict[str, float]:
        """The options of an update's cloning term."""
        return {"clone_weight": weight, "clone_std": self.schedule.clone_std, "clone_dropout": self.clone_dropout}

    def pretrain(self) -> dict[str, torch.Tensor]:
        """One update of cloning the demos, in the last CRITIC_STEPS with the critics trained beside it.

        At the weight that the cloning term has later: Adam divides by gradients of the past, and were those smaller,
        the first online steps would be too large by as much, and undo the clone.
        """
        plan = self.schedule
        batch = self.demo.sample(plan.batch_size)
        critics = self.pretrained >= plan.pretrain_steps - CRITIC_STEPS
        cloning = self.cloning(plan.clone_weight or 1.0)
        info = self.update(batch, train_critic=critics, sac_weight=0.0, critics_train_encoder=False, **cloning)
        self.pretrained += 1
        check_numbers(info, [batch], self.save_dir, f"pretraining update {self.pretrained}")
        return info

    def learn(self, step: int) -> dict[str, torch.Tensor]:
        """What an environment step allows: cycles of cta_ratio - 1 critic-only updates, then one of everything.

        Each is on a fresh batch; HG-DAgger takes as many of cloning alone. `step` counts environment steps; the cloning
        term fades with it, and as long as it is there it alone trains the encoder. Raises FloatingPointError as
        `check_numbers` does.
        """
        plan = self.schedule
        if plan.algo == "hg_dagger":
            return self._imitate_only(step)
        clone = plan.clone_weight * max(0.0, 1.0 - step / plan.clone_steps)
        for _ in range(plan.cycles_per_step):
            batches = [self.sample(plan.batch_size)]
            for _ in range(plan.cta_ratio - 1):
                self.update(batches[-1], critic_only=True, critics_train_encoder=not clone)
                batches.append(self.sample(plan.batch_size))
            info = self.update(batches[-1], critics_train_encoder=not clone, **self.cloning(clone))
            check_numbers(info, batches, self.save_dir, f"environment step {step}")
        return info

    def _imitate_only(self, step: int) -> dict[str, torch.Tensor]:
        """HG-DAgger (arXiv 1810.02890): as many updates, all of cloning demos and corrections; nothing is rewarded."""
        plan = self.schedule
        for _ in range(plan.cycles_per_step * plan.cta_ratio):
            batch = self.demo.sample(plan.batch_size)
            info = self.update(batch, train_critic=False, sac_weight=0.0, **self.cloning(plan.clone_weight))
            check_numbers(info, [batch], self.save_dir, f"environment step {step}")
        return info

    # ---------------------------------------------------------------- what a learner in another process needs

    def catch_up(self, behind: int) -> None:
        """Wait until no more than `behind` environment steps are left to learn from; here none ever is."""

    def close(self) -> None:
        """End; here there is nothing to end."""

    # ---------------------------------------------------------------- saving

    def averaged(self) -> SACAgent:
        """The averaged policy, to be evaluated; `save_averaged` keeps this one, whatever was learned since."""
        self.candidate = self.agent.averaged()
        return self.candidate

    def save_averaged(self, path: Path) -> None:
        """Write what `averaged` returned last."""
        self.candidate.save_policy(path)

    def save(self, step: int, progress: dict[str, Any]) -> Path:
        """Write everything that --resume needs; `progress` is the script's own."""
        return self.checkpoint.save(step, progress | {"pretrained": self.pretrained})

    def load(self) -> tuple[int, dict[str, Any]]:
        """Take over what `save` wrote; returns its step and progress."""
        step, progress = self.checkpoint.load()
        self.pretrained, self.clone_dropout = progress["pretrained"], build.clone_dropout(self.agent)
        return step, progress

    def recover(self, first: int, end: int | None = None) -> tuple[int, int]:
        """Take over episodes that the run recorded after its checkpoint: all from number `first` on, or before `end`.

        This and `load` are the way back of every learner that stands in for one that is gone. Returns: the number that
        the next episode has, and how many steps these had.
        """
        steps = 0
        for number, path in episode_files(self.save_dir).items():
            if number < first or (end is not None and number >= end):
                continue
            recorded = self.limits.recorded(path, read_episode(path))
            for transition in build.stored_transitions(self.agent, recorded, self.views):
                self.add(transition, to_demos=transition["corrected"])
            alone = not any(step["corrected"] for step in recorded)
            self.end_episode(bool(recorded) and alone and bool(recorded[-1].get("succeed")))
            first, steps = number + 1, steps + len(recorded)
        return first, steps
