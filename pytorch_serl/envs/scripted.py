"""A scripted expert for the built-in task, and a scripted human who takes over where a policy is lost.

Both read `env.unwrapped.privileged_state()`, which no policy sees. The expert has no memory: it decides from
the present state alone, so it can take over anywhere and recover from whatever it finds. The human works with
every environment that has a `scripted_expert()`, panda.py's included.
"""

import gymnasium as gym
import numpy as np

from pytorch_serl.envs import tabletop as task

CRUISE = 0.8  # largest command before noise: clones have a tanh and learn +-1 badly
HOVER = task.SLOW_ZONE + 0.008  # m, where the expert lines up before it goes down
GRASP_AT = 0.015  # m
CLOSE_BELOW = 0.019  # m, well below GRASP_HEIGHT: where a clone's border lies too high, it closes on nothing for ever
NEARLY = 0.6  # share of the tolerance within which the expert calls itself aligned
CRUISE_STEP = CRUISE * task.TRANSLATION_STEP  # m
CRUISE_TURN = CRUISE * task.ROTATION_STEP  # rad


class Expert:
    """What every scripted expert is made of; it adds `act()` and `steps_to_go()`.

    Args:
        env: the task, wrapped or not, with a `privileged_state()`.
        noise: standard deviation of the Gaussian noise on the continuous part, in units of action.
        seed: seed of that noise.
    """

    def __init__(self, env, noise=0.1, seed=None):
        self.env = env.unwrapped
        self.noise = noise
        self.rng = np.random.default_rng(seed)


class ScriptedExpert(Expert):
    """Solves the built-in task from any state: line up above the object, go down, then close and lift, or insert."""

    def act(self):
        """The next action, float32 (A,) in [-1, 1]; gripper entries are exactly -1, 0 or 1."""
        state = self.env.privileged_state()
        blocks = [self._act_arm(*row) for row in self._rows(state)]
        return np.concatenate(blocks).astype(np.float32)

    def steps_to_go(self):
        """Estimate of the steps to success from here, a float; the slowest arm counts."""
        return max(self._estimate(*row) for row in self._rows(self.env.privileged_state()))

    def _rows(self, state):
        return zip(state["tip"], state["rpy"], state["object"], state["open"], state["held"], strict=True)

    def _act_arm(self, tip, rpy, target, is_open, held):
        move, turn, gripper = np.zeros(3), -rpy / task.ROTATION_STEP, 0
        if not self.env.learned_gripper:
            move = self._approach(tip, rpy, target, task.HOLE_BOTTOM)
        elif held:
            move[2] = task.LIFT_HEIGHT + 0.02 - tip[2]
            turn[:] = 0
        elif not is_open:
            gripper = 1
        elif self._can_close(tip, rpy, target):
            gripper = -1
        else:
            move = self._approach(tip, rpy, target, GRASP_AT)
        twist = np.clip(np.concatenate([move / task.TRANSLATION_STEP, turn]), -CRUISE, CRUISE)
        twist = np.clip(twist + self.noise * self.rng.standard_normal(6), -1, 1)
        return np.append(twist, gripper) if self.env.learned_gripper else twist

    def _approach(self, tip, rpy, target, bottom):
        """The displacement in m towards the target: sideways at hover height, then straight down."""
        move = np.append(target[:2] - tip[:2], 0.0)
        error = np.abs(move[:2]).max()
        if tip[2] < task.SLOW_ZONE:
            move[:2] /= task.SLOW_FACTOR  # the command that covers the way in the slow zone
            fits = error <= 0.9 * self.env.tolerance and np.abs(rpy).max() < 0.9 * task.SQUARE_ANGLE
        else:
            fits = error <= NEARLY * self.env.tolerance and np.abs(rpy).max() < 0.5 * task.SQUARE_ANGLE
        move[2] = (bottom if fits else HOVER) - tip[2]
        return move

    def _can_close(self, tip, rpy, target):
        error = np.abs(target[:2] - tip[:2]).max()
        low, square = tip[2] < CLOSE_BELOW, np.abs(rpy).max() < 0.95 * task.SQUARE_ANGLE
        return low and square and error <= 0.95 * self.env.tolerance

    def _estimate(self, tip, rpy, target, is_open, held):
        if held:
            return max(task.LIFT_HEIGHT - tip[2], 0) / CRUISE_STEP
        error, angle = np.abs(target[:2] - tip[:2]).max(), np.abs(rpy).max()
        if self.env.learned_gripper:
            bottom, after = GRASP_AT, 1 + (task.LIFT_HEIGHT - GRASP_AT) / CRUISE_STEP + (not is_open)
        else:
            bottom, after = task.INSERT_DEPTH, 0.0
        if tip[2] < task.SLOW_ZONE and error <= self.env.tolerance and angle < task.SQUARE_ANGLE:
            return max(tip[2] - bottom, 0) / CRUISE_STEP + after
        sideways = max(error - NEARLY * self.env.tolerance, 0) / CRUISE_STEP
        squaring = max(angle - 0.5 * task.SQUARE_ANGLE, 0) / CRUISE_TURN
        to_hover = abs(HOVER - tip[2]) / CRUISE_STEP
        return max(sideways, squaring, to_hover) + (HOVER - bottom) / CRUISE_STEP + after


class ScriptedHuman(gym.Wrapper):
    """Stands beside the robot during training: watches the policy, takes over where it is lost, hands back.

    He judges by the expert's estimate of the steps to go. When it has not come down by `progress` steps
    within the last `patience` steps, he acts by the expert for a burst of steps, then lets the policy try
    again.
    In the steps he took, `info['intervene_action']` is the action that was executed (float32).

    Args:
        env: a TabletopEnv or another environment with a `scripted_expert(noise)`, wrapped or not.
        patience: steps without progress before he takes over.
        burst: (shortest, longest) number of steps he acts; drawn anew for every burst.
        progress: how much the estimate must come down to count as progress, in steps of the expert.
        attention: share of episodes that he watches at all, 0 to 1.
        noise: standard deviation of the noise on his actions.
        seed: seed of his bursts, attention and noise; `reset(seed=...)` sets it anew.
    """

    def __init__(self, env, patience=4, burst=(8, 12), progress=0.5, attention=1.0, noise=0.1, seed=None):
        super().__init__(env)
        self.patience, self.burst, self.progress, self.attention = patience, burst, progress, attention
        self.expert = env.unwrapped.scripted_expert(noise)
        self._seed(seed)

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._seed(seed)
        self._watching = self._rng.random() < self.attention
        self._burst_left = 0
        self._start_watch()
        return obs, info

    def step(self, action):
        if self._burst_left == 0 and self._watching and self._stalled >= self.patience:
            self._burst_left = int(self._rng.integers(self.burst[0], self.burst[1] + 1))
        intervening = self._burst_left > 0
        if intervening:
            action = self.expert.act()
        obs, reward, terminated, truncated, info = self.env.step(action)
        if intervening:
            info["intervene_action"] = action
            self._burst_left -= 1
            self._start_watch()
        else:
            self._watch()
        return obs, reward, terminated, truncated, info

    def _start_watch(self):
        self._best, self._stalled = self.expert.steps_to_go(), 0

    def _watch(self):
        estimate = self.expert.steps_to_go()
        if estimate <= self._best - self.progress:
            self._best, self._stalled = estimate, 0
        else:
            self._stalled += 1

    def _seed(self, seed):
        self._rng = np.random.default_rng(None if seed is None else [seed, 1])
        self.expert.rng = np.random.default_rng(None if seed is None else [seed, 2])
