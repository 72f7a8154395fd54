"""The built-in task done beside its object: what a reward classifier has to tell from success."""

from collections.abc import Iterator

import numpy as np

from pytorch_serl.envs.tabletop import sizes

NEAR, FAR = 1.6, 4.5  # how far beside, in tolerances


def near_miss(env, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields the actions (A,) of the whole routine beside the object: closed on nothing and lifted, or pressed down.

    With two arms, one of them may do it right: the task is done only when both have. `env` is a `TabletopEnv` after
    its reset; each action is to be executed before the next one is asked for.
    """
    arms = env.num_arms
    angle = rng.uniform(0, 2 * np.pi, arms)
    beside = np.column_stack([np.cos(angle), np.sin(angle)]) * rng.uniform(NEAR, FAR, (arms, 1)) * env.tolerance
    wrong = np.ones(arms, bool)
    if arms == 2 and rng.random() < 0.5:
        wrong[rng.integers(2)] = False
    truth = env.privileged_state()["object"][:, :2]
    yield from routine(env, np.where(wrong[:, None], truth + beside, truth))


def routine(env, target_xy: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the actions of the whole task done at `target_xy` (arms, 2), m, whatever is there."""
    bottom = 0.012 if env.learned_gripper else sizes.HOLE_BOTTOM
    above = np.column_stack([target_xy, np.full(env.num_arms, sizes.SLOW_ZONE + 0.008)])
    below = np.column_stack([target_xy, np.full(env.num_arms, bottom)])
    stages = [(above, 0, 14), (below, 0, 6)]
    if env.learned_gripper:
        stages += [(below, -1, 1), (above + np.array([0, 0, 0.02]), 0, 6)]
    for goal, gripper, steps in stages:
        for _ in range(steps):
            state = env.privileged_state()  # the arms' own poses only
            move, turn = (goal - state["tip"]) / sizes.TRANSLATION_STEP, -state["rpy"] / sizes.ROTATION_STEP
            columns = [move, turn] + ([np.full((env.num_arms, 1), gripper)] if env.learned_gripper else [])
            yield np.clip(np.concatenate(columns, axis=1), -1, 1).astype(np.float32).ravel()
            if gripper == 0 and max(np.abs(move).max(), np.abs(turn).max()) < 0.2:
                break
