"""What to tell about demos that were read."""

import numpy as np

from pytorch_serl.data.actions import gripper_columns
from pytorch_serl.data.oddities import COMMANDS, actions_of, episodes_of, no_ops, rewards_of, succeeds
from pytorch_serl.data.rewards import describe, kind_of_rewards


def memory_bytes(transitions):
    """Bytes of all arrays, each counted once."""
    sizes = {}
    for transition in transitions:
        for group in ("observations", "next_observations"):
            sizes.update({id(array): array.nbytes for array in transition[group].values()})
        sizes[id(transition["actions"])] = transition["actions"].nbytes
    return sum(sizes.values())


def summary(demos):
    """Return several lines on the demos; see Demos.summary."""
    actions = actions_of(demos)
    episodes = episodes_of(demos)
    lengths = [len(rows) for rows in episodes]
    kind = kind_of_rewards(demos.transitions, demos.episode_ids)
    successes = sum(succeeds(demos, kind, rows) for rows in episodes)
    penalties = np.array([transition["grasp_penalty"] for transition in demos.transitions])
    images = ", ".join(f"{key} {_size(shape)}" for key, shape in demos.image_shapes.items())
    state = f"state {demos.state_dim}" if demos.state_dim else "no state"
    lines = [
        f"demos for {demos.setup_mode}: {_count(len(episodes), 'episode')}, {_count(len(actions), 'transition')}, "
        f"{successes} successful",
        f"  episode length: {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}",
        f"  rewards: {describe(kind, rewards_of(demos))}",
        f"  observations: {images}, {state}",
        f"  actions: {demos.action_dim} entries, {demos.continuous_dim} continuous; "
        f"{no_ops(demos, actions).mean():.1%} no-ops",
    ]
    lines += [
        f"    [{column}] min {values.min():+.3f}, max {values.max():+.3f}, std {values.std():.3f}"
        for column, values in enumerate(actions.T)
    ]
    for column in gripper_columns(demos.action_dim, demos.setup_mode):
        counts = ", ".join(f"{name} {int((actions[:, column] == value).sum())}" for name, value in COMMANDS)
        lines.append(f"  gripper [{column}]: {counts}")
    lines.append(f"  grasp penalties: {int((penalties != 0).sum())}, sum {penalties.sum():.4g}")
    lines.append(f"  memory: {demos.memory_bytes / 1e9:.3f} GB")
    return "\n".join(lines + [f"  warning: {text}" for text in demos.warnings])


def _count(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(shape):
    return "x".join(str(side) for side in shape)
