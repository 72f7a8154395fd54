"""Setup modes, and the checks on a demo file's actions: zero throughout, gripper columns, the mode that fits.

Actions lie in [-1, 1]. With a learned gripper the last entry of each arm's block is -1 (close), 0 (hold) or
1 (open).
"""

import numpy as np

from pytorch_serl.data.checks import Place

SETUP_MODES = (
    "single-arm-fixed-gripper",
    "single-arm-learned-gripper",
    "dual-arm-fixed-gripper",
    "dual-arm-learned-gripper",
)
ONE_ARM = 8  # entries that one arm has at most: seven joints and a gripper
SNAP_DISTANCE = 0.11  # HIL-SERL's space mouse draws gripper commands from [-1, -0.9] and [0.9, 1]


def num_arms(setup_mode: str) -> int:
    """Return 1 or 2; raises ValueError for an unknown mode."""
    if setup_mode not in SETUP_MODES:
        raise ValueError(f"setup_mode: got {setup_mode!r}, wanted one of {', '.join(SETUP_MODES)}")
    return 2 if setup_mode.startswith("dual") else 1


def num_grippers(setup_mode: str) -> int:
    """Return the number of learned grippers: 0, 1 or 2."""
    arms = num_arms(setup_mode)
    return arms if setup_mode.endswith("learned-gripper") else 0


def gripper_columns(action_dim: int, setup_mode: str) -> list[int]:
    """Return the action columns that hold gripper commands: the last of each arm's block, or none."""
    return _last_columns(action_dim, num_arms(setup_mode)) if num_grippers(setup_mode) else []


def continuous_columns(action_dim: int, setup_mode: str) -> list[int]:
    grippers = gripper_columns(action_dim, setup_mode)
    return [column for column in range(action_dim) if column not in grippers]


def check_action_dim(place, action_dim, setup_mode):
    """Raise where actions of this length cannot belong to the mode."""
    arms, grippers = num_arms(setup_mode), num_grippers(setup_mode)
    if action_dim % arms:
        raise place.error(
            "actions",
            f"{action_dim} entries",
            f"an even number for {setup_mode}",
            f"use --setup_mode single-arm-{'learned' if grippers else 'fixed'}-gripper or record both arms",
        )
    if action_dim <= grippers:
        raise place.error(
            "actions",
            f"{action_dim} entries",
            f"continuous entries beside the gripper's for {setup_mode}",
            f"use --setup_mode {_other_gripper(setup_mode)} or record the arm's motion too",
        )


def check_not_zero(path, actions, episode_ids):
    """Raise where the actions (N, A) are zero in the whole file or in a whole episode."""
    moving = (actions != 0).any(axis=1)
    if not moving.any():
        raise Place(path, 0, len(actions) - 1).error(
            "actions",
            "0 in every entry",
            "the commands that moved the robot",
            "record again: the actions were not written (of no use even if the robot moved)",
        )
    for episode in np.unique(episode_ids):
        rows = np.flatnonzero(episode_ids == episode)
        if not moving[rows].any():
            raise Place(path, int(rows[0]), int(rows[-1])).error(
                "actions",
                "0 in every entry of the episode",
                "the commands that moved the robot",
                "leave this episode out or record it again",
            )


def snap_grippers(path, actions, setup_mode, one_episode=False):
    """Return actions (N, A) with gripper entries exactly -1, 0 or 1, and the number of entries changed.

    one_episode: a column with one value throughout says nothing; a policy may push one way all the time.
    Raises DataError where the columns do not fit the setup mode.
    """
    columns = gripper_columns(actions.shape[1], setup_mode)
    if not (one_episode and len(np.unique(actions[:, _last_columns(actions.shape[1], num_arms(setup_mode))[0]])) == 1):
        _check_no_hidden_gripper(path, actions, setup_mode)
    if not columns:
        return actions, 0
    commands = actions[:, columns]
    snapped, far = nearest_commands(commands)
    never_commanded = (commands != 0).any(axis=0) & (snapped == 0).all(axis=0)
    far |= never_commanded & (commands != 0)  # small values only: a twist entry, not a gripper
    if far.any():
        index, which = np.argwhere(far)[0]
        raise Place(path, int(index)).error(
            f"actions[{columns[which]}]",
            f"{commands[index, which]:.4g}",
            "a gripper command -1, 0 or 1",
            f"store -1 close, 0 hold, 1 open; if this entry is no gripper, use --setup_mode "
            f"{_other_gripper(setup_mode)}",
        )
    result = actions.copy()
    result[:, columns] = snapped
    return result, int((commands != snapped).sum())


def nearest_commands(commands):
    """The gripper command -1, 0 or 1 nearest to each entry, and which entries are too far from theirs to mean it."""
    snapped = np.round(commands) + 0.0  # without a minus before a zero
    return snapped, np.abs(commands - snapped) > SNAP_DISTANCE


def in_force(action: np.ndarray, before: np.ndarray | None, num_grippers: int) -> np.ndarray:
    """An action (A,) that says of each gripper which command is in force: 0 (hold) becomes the one that it prolongs.

    To a robot that is the same, since a command that changes nothing does nothing. To a clone it is not: as recorded,
    closing is right in one frame of an episode, and wrong in those around it, which look the same.

    Args:
        before: what this returned for the step before; None at an episode's start, whose first holds stay.
        num_grippers: learned ones, each the last entry of its arm's block.
    """
    action = np.array(action, np.float32)
    if num_grippers and before is not None:
        commands, last = (x.reshape(num_grippers, -1)[:, -1] for x in (action, before))
        commands[:] = np.where(commands == 0, last, commands)
    return action


def _check_no_hidden_gripper(path, actions, setup_mode):
    """Raise where a column that the mode takes for continuous holds gripper commands, or one arm's mode two arms."""
    arms, size = num_arms(setup_mode), actions.shape[1]
    if arms == 1 and _are_two_arms(actions):
        fitting, columns = "dual-arm-learned-gripper", _last_columns(size, 2)
    elif not num_grippers(setup_mode) and _arms_have_grippers(actions, arms):
        fitting, columns = _other_gripper(setup_mode), _last_columns(size, arms)
    else:
        return
    hidden = next(column for column in columns if actions[:, column].any())
    index = int(np.flatnonzero(actions[:, hidden])[0])
    wanted = "continuous motion" if hidden not in gripper_columns(size, setup_mode) else f"at most {ONE_ARM} entries"
    raise Place(path, index).error(
        f"actions[{hidden}]",
        "gripper commands (-1, 0 or 1 throughout)",
        f"{wanted} for {setup_mode}",
        f"use --setup_mode {fitting} or leave the gripper's column out",
    )


def _are_two_arms(actions):
    """Whether the columns are those of two arms with grippers.

    Where only the last one has commands they may be the gripper of one arm that leaves a direction alone; then the
    number of entries decides.
    """
    size = actions.shape[1]
    return _arms_have_grippers(actions, 2) and (size > ONE_ARM or bool(actions[:, size // 2 - 1].any()))


def _arms_have_grippers(actions, arms):
    """Whether each arm's last column takes gripper values only, its other columns do not, and a gripper is used.

    One of two arms may have a gripper that nobody uses: all 0.
    """
    if actions.shape[1] % arms or actions.shape[1] < 2 * arms:
        return False
    if not actions[:, _last_columns(actions.shape[1], arms)].any():
        return False
    for block in np.split(actions, arms, axis=1):
        like_gripper = (block == 0) | (np.abs(block) >= 1 - SNAP_DISTANCE)  # (N, A / arms)
        if not like_gripper[:, -1].all() or like_gripper[:, :-1].all():
            return False
    return True


def _last_columns(action_dim, arms):
    block = action_dim // arms
    return [block * (arm + 1) - 1 for arm in range(arms)]


def _other_gripper(setup_mode):
    if setup_mode.endswith("fixed-gripper"):
        return setup_mode.replace("fixed", "learned")
    return setup_mode.replace("learned", "fixed")
