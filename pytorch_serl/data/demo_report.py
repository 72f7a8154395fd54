"""What to tell about demos that were read: the summary, and warnings on what is odd but usable."""

import numpy as np

from pytorch_serl.data.actions import continuous_columns, gripper_columns

NO_OP_SHARE = 0.10  # above this share of actions that move nothing, say so
COMMANDS = (("close", -1), ("hold", 0), ("open", 1))


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
    actions = _actions(demos)
    episodes = _episodes(demos)
    lengths = [len(rows) for rows in episodes]
    successes = sum(_succeeds(demos, rows) for rows in episodes)
    penalties = np.array([transition["grasp_penalty"] for transition in demos.transitions])
    images = ", ".join(f"{key} {_size(shape)}" for key, shape in demos.image_shapes.items())
    state = f"state {demos.state_dim}" if demos.state_dim else "no state"
    lines = [
        f"demos for {demos.setup_mode}: {_count(len(episodes), 'episode')}, {_count(len(actions), 'transition')}, "
        f"{successes} successful",
        f"  episode length: {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}",
        f"  observations: {images}, {state}",
        f"  actions: {demos.action_dim} entries, {demos.continuous_dim} continuous; {_no_ops(actions).mean():.1%} "
        f"no-ops",
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


def find_oddities(path, demos, has_masks, has_penalty, snapped, mismatched):
    """Return one line per thing in one file that is odd but usable, with numbers.

    snapped: number of gripper entries moved to -1, 0 or 1. mismatched: transitions whose next_observations
    differ from the following observations.
    """
    actions = _actions(demos)
    texts = _action_oddities(demos, actions) + _gripper_oddities(demos, actions, has_penalty, snapped)
    texts += _episode_oddities(demos, has_masks)
    if mismatched:
        texts.append(
            "next_observations differ from the following observations in "
            f"{_share(len(mismatched), len(actions))} transitions inside episodes (first: transition "
            f"{mismatched[0]}); frames are missing or were stored apart"
        )
    for key in demos.image_keys:
        texts += _image_oddities(demos, key)
    return [f"{path}: {text}" for text in texts]


def _action_oddities(demos, actions):
    texts = []
    columns = continuous_columns(demos.action_dim, demos.setup_mode)
    still = [column for column in columns if np.ptp(actions[:, column]) == 0] if len(actions) > 1 else []
    if still:
        values = ", ".join(f"actions[{column}] = {actions[0, column]:g}" for column in still)
        texts.append(f"action dimensions that never change: {values}")
    no_ops = int(_no_ops(actions).sum())
    if no_ops > NO_OP_SHARE * len(actions):
        texts.append(f"actions: {_share(no_ops, len(actions))} are no-ops (all 0); they teach to stand still")
    return texts


def _gripper_oddities(demos, actions, has_penalty, snapped):
    texts = []
    columns = gripper_columns(demos.action_dim, demos.setup_mode)
    if snapped:
        texts.append(
            f"actions: {_share(snapped, len(actions) * len(columns))} gripper entries were near -1, 0 or 1 "
            "and were set to it"
        )
    for column in columns:
        for name, value in (COMMANDS[0], COMMANDS[2]):
            if not (actions[:, column] == value).any():
                texts.append(f"actions[{column}]: the gripper never {name}s (0 of {len(actions)} actions are {value})")
    if columns and not has_penalty:
        texts.append("grasp_penalty: in no transition, taken as 0; nothing keeps the gripper from fluttering")
    return texts


def _episode_oddities(demos, has_masks):
    texts, transitions = [], demos.transitions
    last_rows = {int(rows[-1]): _succeeds(demos, rows) for rows in _episodes(demos)}
    failed = [row for row, success in last_rows.items() if not success]
    if failed:
        texts.append(f"rewards: {_share(len(failed), len(last_rows))} episodes without success")
    terminal = [row for row in failed if transitions[row]["dones"] and transitions[row]["masks"] == 0]
    if terminal:
        source = "" if has_masks else "absent, taken as 1 - dones: "
        texts.append(
            f"masks: {source}{len(terminal)} episodes end without reward as terminal; if they are timeouts, "
            "they count as terminal too, and their masks should be 1"
        )
    ends = [transitions[row] for row in last_rows if transitions[row]["dones"]]
    bootstrapped = sum(end["rewards"] > 0 and end["masks"] == 1 for end in ends)
    if bootstrapped:
        texts.append(f"masks: {bootstrapped} episodes end with reward and mask 1 (not terminal)")
    if not transitions[-1]["dones"]:
        texts.append(f"dones: the last transition, {len(transitions) - 1}, is not done; its episode is cut off")
    return texts


def _image_oddities(demos, key):
    images = [transition["observations"][key] for transition in demos.transitions]
    highest = np.array([image.max() for image in images])
    blank = highest == np.array([image.min() for image in images])
    if blank.any():
        return [
            f"observations[{key!r}]: {_share(int(blank.sum()), len(images))} images are blank (one value throughout; "
            f"first: transition {int(np.argmax(blank))})"
        ]
    if highest.max() <= 1:
        return [f"observations[{key!r}]: no pixel above 1 in {len(images)} images; were they floats?"]
    if len(images) > 1 and all(np.array_equal(image, images[0]) for image in images):
        return [f"observations[{key!r}]: all {len(images)} images are the same; the camera hangs"]
    return []


def _actions(demos):
    return np.stack([transition["actions"] for transition in demos.transitions])  # (N, A)


def _no_ops(actions):
    return (actions == 0).all(axis=1)  # (N,)


def _episodes(demos):
    """Row indices of each episode, in order."""
    return np.split(np.arange(len(demos.episode_ids)), np.flatnonzero(np.diff(demos.episode_ids)) + 1)


def _succeeds(demos, rows):
    return any(demos.transitions[row]["rewards"] > 0 for row in rows)


def _share(count, total):
    return f"{count} of {total} ({count / total:.1%})"


def _count(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(shape):
    return "x".join(str(side) for side in shape)
