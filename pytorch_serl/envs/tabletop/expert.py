"""A scripted expert for the built-in task.

It reads `env.unwrapped.privileged_state()`, which no policy sees. It has no memory: it decides from the present state
alone, so it can take over anywhere and recover from whatever it finds.
"""

import numpy as np

from pytorch_serl.envs.expert import CRUISE, Expert
from pytorch_serl.envs.tabletop import sizes

HOVER = sizes.SLOW_ZONE + 0.008  # m, where the expert lines up before it goes down
GRASP_AT = 0.015  # m
CLOSE_BELOW = 0.019  # m, well below GRASP_HEIGHT: where a clone's border lies too high, it closes on nothing for ever
NEARLY = 0.6  # share of the tolerance within which the expert calls itself aligned
CRUISE_STEP = CRUISE * sizes.TRANSLATION_STEP  # m
CRUISE_TURN = CRUISE * sizes.ROTATION_STEP  # rad


class TabletopExpert(Expert):
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
        move, turn, gripper = np.zeros(3), -rpy / sizes.ROTATION_STEP, 0
        if not self.env.learned_gripper:
            move = self._approach(tip, rpy, target, sizes.HOLE_BOTTOM)
        elif held:
            move[2] = sizes.LIFT_HEIGHT + 0.02 - tip[2]
            turn[:] = 0
        elif not is_open:
            gripper = 1
        elif self._can_close(tip, rpy, target):
            gripper = -1
        else:
            move = self._approach(tip, rpy, target, GRASP_AT)
        twist = np.clip(np.concatenate([move / sizes.TRANSLATION_STEP, turn]), -CRUISE, CRUISE)
        twist = np.clip(twist + self.noise * self.rng.standard_normal(6), -1, 1)
        return np.append(twist, gripper) if self.env.learned_gripper else twist

    def _approach(self, tip, rpy, target, bottom):
        """The displacement in m towards the target: sideways at hover height, then straight down."""
        move = np.append(target[:2] - tip[:2], 0.0)
        error = np.abs(move[:2]).max()
        if tip[2] < sizes.SLOW_ZONE:
            move[:2] /= sizes.SLOW_FACTOR  # the command that covers the way in the slow zone
            fits = error <= 0.9 * self.env.tolerance and np.abs(rpy).max() < 0.9 * sizes.SQUARE_ANGLE
        else:
            fits = error <= NEARLY * self.env.tolerance and np.abs(rpy).max() < 0.5 * sizes.SQUARE_ANGLE
        move[2] = (bottom if fits else HOVER) - tip[2]
        return move

    def _can_close(self, tip, rpy, target):
        error = np.abs(target[:2] - tip[:2]).max()
        low, square = tip[2] < CLOSE_BELOW, np.abs(rpy).max() < 0.95 * sizes.SQUARE_ANGLE
        return low and square and error <= 0.95 * self.env.tolerance

    def _estimate(self, tip, rpy, target, is_open, held):
        if held:
            return max(sizes.LIFT_HEIGHT - tip[2], 0) / CRUISE_STEP
        error, angle = np.abs(target[:2] - tip[:2]).max(), np.abs(rpy).max()
        if self.env.learned_gripper:
            bottom, after = GRASP_AT, 1 + (sizes.LIFT_HEIGHT - GRASP_AT) / CRUISE_STEP + (not is_open)
        else:
            bottom, after = sizes.INSERT_DEPTH, 0.0
        if tip[2] < sizes.SLOW_ZONE and error <= self.env.tolerance and angle < sizes.SQUARE_ANGLE:
            return max(tip[2] - bottom, 0) / CRUISE_STEP + after
        sideways = max(error - NEARLY * self.env.tolerance, 0) / CRUISE_STEP
        squaring = max(angle - 0.5 * sizes.SQUARE_ANGLE, 0) / CRUISE_TURN
        to_hover = abs(HOVER - tip[2]) / CRUISE_STEP
        return max(sideways, squaring, to_hover) + (HOVER - bottom) / CRUISE_STEP + after
