"""Scripted experts for the tasks of robosuite: from the true state alone, without memory, so they take over anywhere.

Each has one `_plan`: what the arms do next, and how many steps are left.
"""

import numpy as np

from pytorch_serl.envs.expert import CRUISE, Expert, steps_to_reach

POSITION_UNIT, TURN_UNIT = 0.05, 0.5  # m and rad per unit of action, robosuite's; the arm reaches 0.45 of it in a step
GAIN = 0.45
SPEED, TURN_SPEED = CRUISE * GAIN * POSITION_UNIT, CRUISE * 0.3 * TURN_UNIT  # m and rad per step
FINGER_SPEED = 0.008  # m of opening per step
UP = np.array([0.0, 0.0, 1.0])

HOVER, CLEAR = 0.07, 0.045  # m above where the fingers close: where the expert lines up; where fingers pass over
LINED_UP = 0.016  # m of lateral error at which the expert goes down
TURNED, STRAIGHT = 0.12, 0.3  # rad, the same for the turn
MAX_OPENING, WIDE = 0.08, 0.065  # m between the fingers; open enough


class ArmExpert(Expert):
    """Turns a plan into actions; the tasks add `_plan(truth)`.

    It returns one (move in m, turn in rad, gripper's command or None) per arm and the steps left.
    """

    def act(self):
        """The next action, float32 (6 or 7 per arm,) in [-1, 1]; gripper entries are exactly -1, 0 or 1."""
        arms, _ = self._plan(self.env.privileged_state())
        return np.concatenate([self._command(*arm) for arm in arms]).astype(np.float32)

    def steps_to_go(self):
        """Estimate of the steps to success from here, a float."""
        return float(self._plan(self.env.privileged_state())[1])

    def _command(self, move, turn, gripper):
        twist = np.concatenate([_shorten(move / POSITION_UNIT), _shorten(turn / TURN_UNIT)])
        twist = np.clip(twist + self.noise * self.rng.standard_normal(6), -1, 1)
        return twist if gripper is None else np.append(twist, gripper)


class LiftExpert(ArmExpert):
    """Grasps the cube and lifts it."""

    def _plan(self, truth):
        cube, rotation = truth["object"]
        after = steps_to_reach(0.05, 0.01, SPEED, GAIN) + 1
        # the faces' directions that the wrist reaches, and of these the nearest to where it is
        yaws = _quarter(_yaw(rotation)) + np.array([-np.pi / 2, 0, np.pi / 2])
        turn = min((upright(truth, 0, yaw) for yaw in yaws), key=np.linalg.norm)
        if truth["held"][0]:
            return [(0.1 * UP, turn, 0)], max(0.865 - cube[2], 0) / SPEED
        arm, steps = pick(truth, 0, cube - 0.006 * UP, turn, width=0.04)
        return [arm], steps + after


class CanExpert(ArmExpert):
    """Grasps the can, carries it over the walls to its quarter of the other bin, and lets go."""

    PLACE = np.array([0.1975, 0.4025])  # m, the middle of that quarter
    HALF = np.array([0.08, 0.1])  # m, well inside of it
    CARRY, DROP = 1.0, 0.9  # m, the can's centre above the walls, and where it may fall from
    AWAY = 0.05  # m, robosuite wants the tool so far from the can

    def _plan(self, truth):
        can, tip, turn = truth["object"][0], truth["tip"][0], upright(truth, 0, 0)
        aside = np.abs(self.PLACE - can[:2])
        placed, still = bool((aside < self.HALF).all()), np.zeros(3)
        fingers = min(truth["opening"][0], truth["grip"][0])  # what they are told comes up from nothing first
        leave, loosen = self.AWAY / SPEED + 1, max(WIDE - fingers, 0) / FINGER_SPEED
        if placed and can[2] < self.DROP:
            if not truth["open"][0]:
                return [(still, turn, 1)], 1 + loosen + leave
            if loosen:  # the can would come along
                return [(still, turn, 0)], loosen + leave
            return [(0.1 * UP, turn, 0)], max(self.AWAY - np.linalg.norm(tip - can), 0) / SPEED + 1
        after = (
            9 + leave + (self.CARRY - self.DROP) / SPEED + steps_to_reach((aside - self.HALF).max(), 0.01, SPEED, GAIN)
        )
        rise = max(self.CARRY - 0.02 - can[2], 0) / SPEED
        if not truth["held"][0]:
            arm, steps = pick(truth, 0, can + 0.015 * UP, turn, width=0.04)
            return [arm], steps + rise + after
        if placed:
            return [(np.array([*(self.PLACE - can[:2]), -0.1]), turn, 0)], (can[2] - self.DROP) / SPEED + 9 + leave
        if rise:
            return [(0.1 * UP, turn, 0)], rise + after
        return [(np.array([*(self.PLACE - can[:2]), self.CARRY - can[2]]), turn, 0)], after


class PotExpert(ArmExpert):
    """Each arm grasps a bar of its handle; together they lift the pot."""

    BARS = np.array([[0.045, 0.115, 0.06], [-0.045, -0.115, 0.06]])  # m, in the pot's frame
    LIFTED = 0.975  # m, the pot's centre

    def _plan(self, truth):
        pot, rotation = truth["object"]
        yaw = (_yaw(rotation) - np.pi / 2) % np.pi - np.pi / 2  # from pi, where the handles are before the arms
        turns = [upright(truth, arm, yaw) for arm in range(2)]
        if truth["held"].all():
            goal = truth["tip"][:, 2].min() + 0.05
            arms = [((goal - truth["tip"][arm, 2]) * UP, turns[arm] / 2, 0) for arm in range(2)]
            return arms, max(self.LIFTED - pot[2], 0) / (0.8 * SPEED)
        arms, steps = [], []
        for arm in range(2):
            way, left = pick(truth, arm, pot + rotation @ self.BARS[arm], turns[arm], width=0.02)
            held = truth["held"][arm]
            arms.append((np.zeros(3), np.zeros(3), 0) if held else way)
            steps.append(0 if held else left)
        return arms, max(steps) + max(self.LIFTED - pot[2], 0) / (0.8 * SPEED)


class PegExpert(ArmExpert):
    """Turns peg and hole towards each other, half the way each, lines them up, and puts the peg in."""

    DIRECTION = np.array([-1.0, 0.0, -1.0]) / np.sqrt(2)  # of the peg when it goes in
    MEET = np.array([0.0, 0.1, 1.0])  # m, where the hole is held
    BEFORE, IN = 0.22, 0.11  # m, the peg's centre from the hole's, lined up and put in
    APART = np.array([0.0, -0.2, 0.0])  # m, beside the hole while they turn
    OPEN_ANGLE, TURNED = 0.3, 0.05  # rad, turned far enough to go in; no longer swinging

    def _plan(self, truth):
        (peg, peg_axes), (hole, hole_axes) = truth["peg"], truth["hole"]
        centre, normal = hole + hole_axes @ [0.1, 0, 0], hole_axes[:, 2]
        normal = normal * np.sign(normal @ self.DIRECTION)
        turns = turn_to(peg_axes[:, 2], self.DIRECTION), turn_to(normal, self.DIRECTION)
        angle = max(np.linalg.norm(turn) for turn in turns)
        back, aside = self._split(centre - peg)
        before, near = centre - self.BEFORE * self.DIRECTION, back < self.IN + 0.06
        if angle > self.OPEN_ANGLE:
            goal = before + self.APART
        elif aside > (0.04 if near else 0.02):
            goal = peg - (self.BEFORE - back) * self.DIRECTION if near else before
        else:
            goal = centre - self.IN * self.DIRECTION
        arms = [(goal - peg, turns[0], None), (self.MEET - centre, turns[1], None)]
        if angle <= self.OPEN_ANGLE and aside <= (0.04 if near else 0.02):
            return arms, max(back - 0.13, 0) / SPEED
        # the peg turns about the hand: where it will be from where the hole will be
        steps = self._way(*self._split(self.MEET - (peg - 0.13 * peg_axes[:, 2]) - 0.13 * self.DIRECTION))
        if angle > self.OPEN_ANGLE:
            steps = max(steps, self._way(self.BEFORE, np.linalg.norm(self.APART)))
        return arms, steps + steps_to_reach(angle, self.TURNED, TURN_SPEED, 0.3)

    def _split(self, way):
        """A way (3,) in m along the direction, and what is left aside."""
        along = way @ self.DIRECTION
        return along, np.linalg.norm(way - along * self.DIRECTION)

    def _way(self, back, aside):
        """Steps from there into the hole; when they draw apart both arms move."""
        off = max(self.BEFORE - back, 0) / (1.5 * SPEED) if back < self.IN + 0.06 else 0
        return off + steps_to_reach(aside, 0.02, SPEED, GAIN) + (self.BEFORE - 0.13) / SPEED


class DoorExpert(ArmExpert):
    """Comes over the lever at a slant with open fingers, one of them behind it, presses it down, and pulls."""

    GRIP = np.array([0.095, -0.1, 0.0])  # m, near the lever's end, in the latch's frame
    SLANT = np.array([-np.pi / 4, 0.0, 0.0])  # rad, from upright
    POINTING = np.array([0.0, -1.0, -1.0]) / np.sqrt(2)  # of the fingers then
    BEFORE, CLEAR = 0.07, 0.05  # m, the fingertips before the lever: where the expert lines up; where they are clear
    SWING = 0.1  # m for each rad that is left to turn, which brings the fingertips nearer
    LINED_UP, FITS, HOOKED = 0.012, 0.025, 0.12  # m aside of the lever; from it, once it turns
    FREE = 1.0  # rad, the lever lets the door go
    AJAR, OPEN, REACH = 0.04, 0.3, 0.33  # rad of the hinge; robosuite's rule; m from the hinge to the lever

    def _plan(self, truth):
        latch, axes = truth["object"]
        away = latch + axes @ self.GRIP - truth["tip"][0]
        turn = slanted(truth, 0, self.SLANT)
        before = away @ self.POINTING
        error, angle = np.abs(away - before * self.POINTING).max(), np.linalg.norm(turn)
        press = max(self.FREE - abs(truth["latch"]), 0) * (truth["hinge"] < self.AJAR)
        pull = max(self.OPEN + 0.03 - truth["hinge"], 0) * self.REACH
        left = press * 0.11 / SPEED + pull / (0.5 * SPEED)  # the door is heavy
        clear = before > self.CLEAR - 0.02
        hooked = max(abs(truth["latch"]) / 0.1, truth["hinge"] / self.AJAR) > 1 and not clear
        hooked = hooked and np.linalg.norm(away) < self.HOOKED
        if not hooked and (error > (self.LINED_UP if clear else self.FITS) or angle > (0.15 if clear else 0.4)):
            at = self.BEFORE + self.SWING * angle
            move = away - at * self.POINTING if clear else (before - at) * self.POINTING
            line_up = max(steps_to_reach(error, self.LINED_UP, SPEED, GAIN), (self.BEFORE - before) / SPEED)
            line_up += steps_to_reach(angle, 0.05, TURN_SPEED, 0.3)
            return [(move, turn, None)], line_up + self.BEFORE / SPEED + left
        if not hooked and before > 0.01:
            return [(away + 0.02 * self.POINTING, turn, None)], before / SPEED + left
        if press:
            return [(np.array([away[0], 0.0, -0.06]), turn, None)], left
        return [(np.array([away[0], 0.06, 0.0]), turn, None)], left


def pick(truth, arm, target, turn, width, depth=0.008):
    """Goes for a grasp from above: over it, open, down, close; up and open again where the fingers closed on nothing.

    Args:
        truth: the environment's `privileged_state()`.
        arm: which arm.
        target: (3,) where the fingertips have to be when they close, m.
        turn: (3,) what is left to turn, a rotation vector in rad.
        width: what the object is wide, m; fingers closer than that hold nothing.
        depth: they close when they are so close to the target's height, m.

    Returns the arm's (move, turn, command) and the steps until the fingers hold the object.
    """
    tip, opening = truth["tip"][arm], truth["opening"][arm]
    away, angle = target - tip, np.linalg.norm(turn)
    error, height = np.abs(away[:2]).max(), -away[2]
    shut = (MAX_OPENING - width) / FINGER_SPEED + 1
    fits = min((MAX_OPENING - width) / 2 + 0.002, 0.022)  # m, the fingers are on both sides
    low, still = height < CLEAR, np.zeros(3)
    if not truth["open"][arm]:
        if error < 2 * fits and height < CLEAR and opening > width - 0.004:
            return (still, still, 0), max(opening - width, 0) / FINGER_SPEED
        return (still, still, 1), _line_up(error, height, angle, opening) + shut + 2
    if error <= (fits if low else LINED_UP) and angle <= (STRAIGHT if low else TURNED) and opening > WIDE:
        command = -1 if height < depth else 0
        return (away, turn, command), steps_to_reach(max(height, 0), depth, SPEED, GAIN) + shut
    move = np.array([0, 0, HOVER - height]) if low else np.array([*away[:2], HOVER - height])
    return (move, still if low else turn, 0), _line_up(error, height, angle, opening) + shut


def _line_up(error, height, angle, opening):
    """Steps to where the expert goes down, and down."""
    ways = (
        steps_to_reach(error, LINED_UP, SPEED, GAIN),
        steps_to_reach(angle, TURNED, TURN_SPEED, GAIN),
        steps_to_reach(abs(HOVER - height), 0.02, SPEED, GAIN) if height < HOVER else 0.0,
        max(WIDE - opening, 0) / FINGER_SPEED,
    )
    return max(*ways, max(height - HOVER, 0) / SPEED) + steps_to_reach(HOVER, 0.008, SPEED, GAIN)


def _shorten(vector):
    """Limits the largest entry to CRUISE and keeps the direction."""
    return vector / max(1.0, np.abs(vector).max() / CRUISE)


def _yaw(rotation):
    return np.arctan2(rotation[1, 0], rotation[0, 0])


def _quarter(angle):
    """The smallest angle (rad) that looks the same for a square: -pi/4 to pi/4."""
    return (angle + np.pi / 4) % (np.pi / 2) - np.pi / 4


def upright(truth, arm, yaw):
    """The rotation vector (3,) in rad that brings the tool from where it is to its nominal pose, turned by `yaw`."""
    return slanted(truth, arm, yaw * UP)


def slanted(truth, arm, wanted):
    """The same to the nominal pose turned by the rotation vector `wanted` (3,)."""
    return rotation_vector(rotation_matrix(wanted) @ rotation_matrix(truth["turn"][arm]).T)


def turn_to(first, second):
    """The rotation vector (3,) in rad that turns one unit vector into another."""
    axis = np.cross(first, second)
    sine = np.linalg.norm(axis)
    return axis / max(sine, 1e-12) * np.arctan2(sine, first @ second)


def rotation_matrix(vector):
    """Of a rotation vector (3,) in rad: (3, 3)."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def rotation_vector(matrix):
    """Of a rotation matrix (3, 3): the axis times the angle in rad, (3,); angles short of pi."""
    axis = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]) / 2
    sine = np.linalg.norm(axis)
    return axis / max(sine, 1e-12) * np.arctan2(sine, (np.trace(matrix) - 1) / 2)
