"""What recorded rewards mean: the ordinary step's reward, which episodes succeeded, and how far returns can go.

Recordings differ: 1 at success and 0 else (this project's, HIL-SERL's), another number at success, -1 a step and 0 at
the goal, -1 a step throughout until the goal ends the episode, -1 at a failure, shaped rewards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEW = 5  # with more different rewards in the steps before an episode's last one they are shaped
MOST = 0.5  # or with this share of them different, three at least
SAME = 1e-6  # rewards this near are one


@dataclass(frozen=True)
class RewardKind:
    """ordinary: the reward of a step that reaches nothing. shaped: most steps have a reward of their own.

    by_end: nothing is rewarded above the ordinary negative reward; what ends an episode for good is the goal.
    """

    ordinary: float
    shaped: bool = False
    by_end: bool = False

    def reached(self, rewards: np.ndarray, terminated: bool) -> bool:
        """Whether an episode with these rewards (n,), in order, succeeded."""
        if self.shaped:
            return bool(terminated and rewards[-1] >= rewards.max() - SAME)
        if self.by_end:
            return bool(terminated and rewards[-1] >= self.ordinary - SAME)
        return bool((rewards > self.ordinary + SAME).any())


def reward_kind(rewards: np.ndarray, last: np.ndarray) -> RewardKind:
    """What the rewards (N,) mean; last (N,) bool marks the last step of each episode."""
    rewards = np.round(rewards / SAME) * SAME
    steps = rewards[~last] if (~last).any() else np.zeros(1)
    different = len(np.unique(steps))
    if different > FEW or (different > 2 and different > MOST * len(steps)):
        return RewardKind(float(np.median(steps)), shaped=True)
    starts = np.append(True, last[:-1]) & ~last  # an episode does not begin with its success
    values, counts = np.unique(rewards[starts] if starts.any() else steps, return_counts=True)
    ordinary = float(values[np.argmax(counts)])
    if ordinary > 0 and rewards.min() >= 0 and len(np.unique(np.append(rewards, 0.0))) == 2:
        ordinary = 0.0  # 0 and one other number: frames of success from the first on
    highest = float(rewards.max())
    return RewardKind(ordinary, by_end=highest <= ordinary + SAME and ordinary < -SAME)


def kind_of_rewards(transitions: Sequence[dict], episode_ids: np.ndarray) -> RewardKind:
    """`reward_kind` of demo transitions; episode_ids (N,)."""
    last = np.append(np.diff(episode_ids) != 0, True)
    return reward_kind(np.array([transition["rewards"] for transition in transitions]), last)


def return_bounds(transitions: Sequence[dict], discount: float) -> tuple[float, float]:
    """The lowest and the highest return that steps rewarded like these can add up to, however many there are.

    A reward that ends the episode counts once, any other may come again and again.
    """
    going_on = [t["rewards"] for t in transitions if t["masks"] > 0] or [0.0]
    ending = [t["rewards"] for t in transitions if t["masks"] == 0]
    horizon = 1 / max(1 - discount, 1e-3)
    lowest, highest = min(going_on) * horizon, max(going_on) * horizon
    return float(min([lowest, *ending])), float(max([highest, *ending]))


def describe(kind: RewardKind, rewards: np.ndarray) -> str:
    """The rewards (N,) in a few words."""
    lowest, highest = rewards.min(), rewards.max()
    if kind.shaped:
        text = f"shaped, {lowest:.4g} to {highest:.4g}; success is an episode that ends (mask 0) with its largest"
    elif kind.by_end:
        text = f"{kind.ordinary:g} a step, none above it; success is an episode that ends (mask 0)"
    else:
        text = f"{kind.ordinary:g} a step"
        for name, others in (
            ("at success", rewards[rewards > kind.ordinary + SAME]),
            ("at something worse", rewards[rewards < kind.ordinary - SAME]),
        ):
            text += f", {' or '.join(f'{value:g}' for value in np.unique(others)[:FEW])} {name}" * bool(len(others))
    return text
