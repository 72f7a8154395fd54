"""Where the demos' arm went: its state at the first gripper command, and at the end of the episode."""

import numpy as np

from pytorch_serl.data.actions import gripper_columns
from pytorch_serl.data.demos import Demos


def waypoints(demos: Demos) -> tuple[np.ndarray, np.ndarray]:
    """The waypoints of every transition.

    Returns: (N, W, state_dim) float32 and (N, W) bool, whether the waypoint is still ahead. W is 1, the end, or with
        learned grippers 2: the first command of any, which an episode without has at its end, and the end. The first
        command to a gripper that is never told to hold is the one that differs from the one before.
    """
    columns = gripper_columns(demos.action_dim, demos.setup_mode)
    commands = np.array([transition["actions"][columns] for transition in demos.transitions])  # (N, G)
    in_force = (commands != 0).all(0)  # these say in every step how the gripper is to be
    places = np.empty((len(demos.transitions), 1 + bool(columns), demos.state_dim), np.float32)
    ahead = np.ones(places.shape[:2], bool)
    for episode in np.unique(demos.episode_ids):
        rows = np.flatnonzero(demos.episode_ids == episode)
        changes = commands[rows] != 0
        changes[:, in_force] &= np.diff(commands[rows], axis=0, prepend=commands[rows[:1]])[:, in_force] != 0
        first = rows[changes.any(1).argmax()] if changes.any() else rows[-1]
        for waypoint, row in enumerate([first, rows[-1]][-places.shape[1] :]):
            places[rows, waypoint] = demos.transitions[row]["next_observations"]["state"]
            ahead[rows, waypoint] = rows <= row
    return places, ahead
