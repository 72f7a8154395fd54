"""Where the demos' arm went next: the state at the next gripper command, or at the end of the episode."""

import numpy as np

from pytorch_serl.data.actions import gripper_columns
from pytorch_serl.data.demos import Demos


def next_waypoints(demos: Demos) -> np.ndarray:
    """The waypoint of every transition, (N, state_dim) float32.

    A gripper command counts where it changes what that gripper was told last; holding on to a command does not.
    """
    columns = gripper_columns(demos.action_dim, demos.setup_mode)
    told = np.zeros(len(columns))  # the last command of each gripper, 0 before its first
    is_waypoint, episode = [], None
    for number, transition in zip(demos.episode_ids, demos.transitions):
        if number != episode:
            episode, told = number, np.zeros(len(columns))
        command = transition["actions"][columns]
        is_waypoint.append(bool(((command != 0) & (command != told)).any()))
        told = np.where(command != 0, command, told)
    waypoints = np.empty((len(demos.transitions), demos.state_dim), np.float32)
    episode = waypoint = None
    for row in reversed(range(len(demos.transitions))):
        if demos.episode_ids[row] != episode or is_waypoint[row]:
            episode, waypoint = demos.episode_ids[row], demos.transitions[row]["next_observations"]["state"]
        waypoints[row] = waypoint
    return waypoints
