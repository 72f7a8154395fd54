"""Six tasks of Meta-World, a Sawyer arm, behind this project's environment contract.

Needs `pip install -r requirements/sim.txt`; docs/simulation.md has the system packages.

    env = gym.make('pytorch_serl.envs:pytorch_serl/MetaWorldAssembly-v0')

Scenes, physics, rules of success and the experts' policies are Meta-World 3.1.1's (github.com/Farama-Foundation/
Metaworld). The first four tasks with the first camera, proprioception, action repeat and length are those of IBRL (Hu
et al., arXiv 2311.02198). docs/simulation.md lists what is different here, and why.
"""

import warnings
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import gymnasium as gym
import numpy as np

from pytorch_serl.envs.expert import CRUISE, Expert, steps_to_reach
from pytorch_serl.envs.simulators.mujoco import Cameras, check_pictures, clear_errors, import_mujoco

REPEAT = 2  # steps of Meta-World per step
UNIT = 0.02  # m per unit of action: two steps of 0.01 m
HAND_MID, HAND_HALF = np.array([0.0, 0.65, 0.25]), np.array([0.3, 0.3, 0.25])  # m, of the state's position
GRASP_PENALTY = -0.02  # for each command that changes the gripper's state
LIFTED = 0.015  # m: a thing so much higher than at the start is in the air
HELD = {True: 0.07, False: 0.055}  # m: a thing that is held is at most so far below its place, in the air or not
PRESSED, CLOSED, OPENED = 0.5, 0.6, 0.9  # openings: pressing on a thing from above; holding one; free to close again
REGRASP_RISE = 0.1  # m that it rises meanwhile
LEAD = 0.15  # m that what pulls the hand may be ahead of it along an axis; the experts' is at most 0.14


class Task(NamedTuple):
    """What sets one task apart. Efforts are Meta-World's: 1 closes, -1 opens.

    `gain`: the shipped policy's, in units of action per m. `grip`: where it wants the hand, from the thing (m), give
    or take `height` above and below. `legs`: its way from here, see MetaWorldExpert. `effort`: of the closed gripper;
    the policies' own 1 squeezes thin things out of it. `closes_from`: the shipped policy's effort from which on it
    means to close; box-close's closes by half all the way down. `fixed`: of a fixed gripper.

    Where the expert goes beyond the shipped policy: `slack`, a closed gripper so near to `grip` sideways holds the
    thing (m; below 0 that policy judges alone); `empty`, one that is less open than this holds nothing (0 where the
    thing is too thin to tell); `end`, the site that has to reach the goal, and its place from the thing then (m).
    """

    gain: float
    grip: tuple[float, float, float]
    legs: Callable
    effort: float = 1.0
    closes_from: float = 0.05
    fixed: float | None = None
    slack: float = -1.0
    height: float = 0.0
    empty: float = 0.0
    end: tuple[str, tuple[float, float]] | None = None


# What is left of the shipped policies' ways: (distance, how near is enough) in m, one leg after the other. All are
# given (3,): the hand, its places at the thing (Task.grip) and at the second one, where there is one, and the goal.


def _assembly_legs(hand, wrench, second, goal):
    peg = goal + [0.12, 0, 0.14]
    down, lift, across, onto = (0.07, 0.02), (0.16, 0.04), (_far(wrench[:2], peg[:2]), 0.02), (0.2, 0.1)
    if _far(hand[:2], wrench[:2]) > 0.02:
        return [(_far(hand, wrench + [0, 0, 0.1]), 0.02), down, lift, across, onto]
    if _far(hand[:2], peg[:2]) <= 0.02:
        return [(max(hand[2] - peg[2] + 0.2, 0), 0.1)]
    if abs(hand[2] - wrench[2]) > 0.05:
        return [(hand[2] - wrench[2] - 0.03, 0.02), lift, across, onto]
    if abs(hand[2] - peg[2]) > 0.04:
        return [(abs(hand[2] - peg[2]), 0.04), across, onto]
    return [across, onto]


def _box_legs(hand, lid, second, goal):
    box = np.array([*goal[:2], 0.15])
    across = (_far(lid[:2], box[:2]), 0.02)
    if _far(hand[:2], lid[:2]) > 0.01:
        return [(_far(hand, [*lid[:2], 0.2]), 0.01), (0.165, 0.05), (0.1, 0.04), across]  # it falls to the table first
    if abs(hand[2] - lid[2]) > 0.05:
        return [(abs(hand[2] - lid[2]), 0.05), (0.1, 0.04), across]
    if abs(hand[2] - box[2]) > 0.04:
        return [(abs(hand[2] - box[2]), 0.04), across]
    return [across]


def _coffee_legs(hand, mug, second, goal):
    push = (_far(mug[:2] - [0.01, 0], goal[:2]), 0.05)
    if _far(hand[:2], mug[:2]) > 0.06:
        return [(_far(hand, mug + [0, 0, 0.2]), 0.06), (0.15, 0.02), push]
    if abs(hand[2] - mug[2]) > 0.02:
        return [(abs(hand[2] - mug[2]), 0.02), push]
    return [push]


def _stick_legs(hand, stick, thermos, goal):
    pull = (_far(thermos[:2] - [-0.015, 0], goal[:2]), 0.05)
    aside = [(abs(stick[1] - thermos[1]), 0.02), (abs(stick[2] - thermos[2]), 0.02), (abs(stick[0] - thermos[0]), 0.04)]
    if abs(stick[0] - thermos[0]) <= 0.04:
        return [pull]
    if _far(hand[:2], stick[:2]) > 0.02:
        return [(_far(hand, stick + [0, 0, 0.1]), 0.02), (0.1, 0.02), *aside, pull]
    if abs(hand[2] - stick[2]) > 0.02:
        return [(abs(hand[2] - stick[2]), 0.02), *aside, pull]
    return [*aside, pull]


def _button_legs(hand, thing, second, goal):
    if _far(hand[:2], thing[:2]) > 0.04:
        return [(_far(hand, thing + [0, 0, 0.1]), 0.04), (0.18, 0.03)]
    return [(max(hand[2] - thing[2] + 0.08, 0), 0.03)]


def _drawer_legs(hand, handle, second, goal):
    pull = (abs(handle[1] - goal[1]), 0.03)
    if _far(hand[:2], handle[:2]) > 0.06:
        return [(_far(hand, handle + [0, 0, 0.3]), 0.06), (0.3, 0.04), pull]
    if abs(hand[2] - handle[2]) > 0.04:
        return [(abs(hand[2] - handle[2]), 0.04), pull]
    return [pull]


def _far(first, second):
    """The largest distance along an axis: each is limited by itself."""
    return float(np.abs(np.subtract(first, second)).max())


TASKS = {
    "assembly": Task(
        10, (-0.02, 0, 0), _assembly_legs, effort=0.6, slack=0.04, height=0.045, empty=0.4, end=("RoundNut", (-0.14, 0))
    ),
    "box-close": Task(25, (0, 0, 0.02), _box_legs, closes_from=0.75, slack=0.015, height=0.045),
    "coffee-push": Task(10, (0.01, 0, 0.05), _coffee_legs, effort=0.5),
    "stick-pull": Task(25, (-0.015, 0, 0.03), _stick_legs, effort=0.7, slack=0.04, height=0.015, empty=0.32),
    "button-press-topdown": Task(25, (0, 0, 0), _button_legs, fixed=1.0),
    "drawer-open": Task(4, (0, 0, -0.02), _drawer_legs, fixed=-1.0),
}


class MetaWorldEnv(gym.Env):
    """One task of Meta-World; where its objects and goals are can be seen in the picture only.

    The reward is 1 at success, which ends the episode, and 0 otherwise.

    Observation (Dict):
        image, wrist: uint8 (S, S, 3), Meta-World's cameras corner4 and gripperPOV, which moves with the hand.
        state: float32 (4,): the hand's x, y, z in its range, -1 to 1, and how far the gripper is open, 0 to 1.

    Action (Box in [-1, 1]): 3 translations (0.02 m per unit, which the hand follows softly: nine tenths of it), and
        with a learned gripper an entry that is rounded to
        -1 close, 0 hold, +1 open. button-press-topdown has the gripper closed for good, drawer-open open.

    info: `succeed` (bool) and `grasp_penalty` (-0.02 where the command changed the gripper's state).

    Args:
        task: one of TASKS.
        image_size: side of the pictures in pixels.
        max_episode_steps: the episode is truncated after so many steps of 0.025 s; at most 250.
        render_mode: None or 'rgb_array'.

    Raises:
        ImportError: Meta-World is not installed.
        RuntimeError: there is no OpenGL, or its picture is blank or frozen.
    """

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"], "render_fps": 40, "simulated": True}
    image_keys: ClassVar[list[str]] = ["image", "wrist"]

    def __init__(self, task="assembly", image_size=128, max_episode_steps=100, render_mode=None):
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; choose one of {', '.join(TASKS)}")
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}; wanted 16 pixels or more")
        if max_episode_steps > 250:
            raise ValueError(f"max_episode_steps is {max_episode_steps}; Meta-World takes at most 250 of these steps")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; choose None or 'rgb_array'")
        self.task, self.image_size, self.max_episode_steps = task, image_size, max_episode_steps
        self.render_mode, self._task = render_mode, TASKS[task]
        self.learned_gripper = self._task.fixed is None
        self.setup_mode = "single-arm-learned-gripper" if self.learned_gripper else "single-arm-fixed-gripper"
        picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = gym.spaces.Box(-2, 2, (4,), np.float32)
        self.observation_space = gym.spaces.Dict(dict.fromkeys(self.image_keys, picture) | {"state": state})
        self.action_space = gym.spaces.Box(-1, 1, (3 + self.learned_gripper,), np.float32)
        self._mujoco, self._sim, self._policy, self._cameras = _start_simulator(task, image_size)
        self._check_camera()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._sim.seed(int(self.np_random.integers(2**31)))
        self._full, _ = self._sim.reset()
        self._rest = self._full[6]  # m: the thing's height
        self._show_goal()
        self._open, self._steps = True, 0
        return self._observe(), {"succeed": False, "grasp_penalty": 0.0}

    def step(self, action):
        action = np.clip(np.asarray(action, float).reshape(self.action_space.shape), -1, 1)
        switches = self.learned_gripper and round(float(action[3])) == (-1 if self._open else 1)
        self._open ^= switches
        succeed = False
        for _ in range(REPEAT):
            self._full, _, _, _, info = self._sim.step(np.array([*action[:3], self._effort()]))
            self._limit_lead()
            succeed = bool(info["success"])
            if succeed:
                break
        self._steps += 1
        truncated = self._steps >= self.max_episode_steps and not succeed
        info = {"succeed": succeed, "grasp_penalty": GRASP_PENALTY if switches else 0.0}
        return self._observe(), float(succeed), succeed, truncated, info

    def render(self):
        """Both cameras' pictures side by side, uint8 (S, 2 S, 3)."""
        return np.concatenate([self._picture(key) for key in self.image_keys], axis=1)

    def close(self):
        """Frees the renderer and its OpenGL context."""
        self._cameras.close()

    def privileged_state(self):
        """What no policy may see: the truth, for the expert and for tests.

        Returns a dict: `full` (39,), Meta-World's own observation with the goal in it; `hand` and `object` (3,) in
        m, `goal` (3,) in m; `opening`, 0 to 1, and `open`, what the gripper was told; `lifted`, the object.
        """
        full = self._full.copy()
        return {
            "full": full,
            "hand": full[:3],
            "opening": float(full[3]),
            "object": full[4:7],
            "second": full[11:14],
            "goal": full[-3:],
            "open": bool(self._open),
            "lifted": bool(self._full[6] > self._rest + LIFTED),
        }

    def scripted_expert(self, noise=0.1, seed=None):
        """Meta-World's own policy for this task as an expert; see MetaWorldExpert."""
        return MetaWorldExpert(self, noise, seed)

    # Simulation

    def _effort(self):
        if self.learned_gripper:
            return -1.0 if self._open else self._task.effort
        return self._task.fixed

    def _limit_lead(self):
        """Keeps what pulls the hand, which moves by every command, near a hand that is held up by something.

        Else it would run ahead, and so many commands back would do nothing.
        """
        hand, pull = self._full[:3], self._sim.data.mocap_pos[0]
        pull[:] = np.clip(pull, hand - LEAD, hand + LEAD)

    def _show_goal(self):
        """Puts the goals' marks into the model: where Meta-World puts them, the next mj_forward undoes it."""
        for name, position in self._sim._target_site_config:
            self._sim.model.site(name).pos = position[:3]
        self._mujoco.mj_forward(self._sim.model, self._sim.data)

    # Observation

    def _observe(self):
        return {key: self._picture(key) for key in self.image_keys} | {"state": self._state()}

    def _state(self):
        hand = (self._full[:3] - HAND_MID) / HAND_HALF
        return np.clip(np.append(hand, self._full[3]), -2, 2).astype(np.float32)

    def _picture(self, key):
        return self._cameras.picture(key)

    def _check_camera(self):
        """The cameras must see the hand move, or the table under it."""

        def move():
            self._sim.data.qpos[:7] += 0.2  # the arm's joints
            self._mujoco.mj_forward(self._sim.model, self._sim.data)

        self._sim.seed(0)
        self._sim.reset()
        try:
            check_pictures(self._picture, self.image_keys, move)
        except RuntimeError:
            self.close()
            raise


def _start_simulator(task, image_size):
    """The mujoco module, Meta-World's environment and policy, and our camera in it."""
    with clear_errors():
        mujoco = import_mujoco()
        import metaworld
        from metaworld.policies import ENV_POLICY_MAP

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's, on its spaces' precision
            sim = metaworld.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        sim._partially_observable = False  # else the goal would be zeros in what the policy gets
        sim.__dict__.pop("sawyer_observation_space", None)  # a cached one, to which step() clips the goal
        sim._freeze_rand_vec, sim.seeded_rand_vec, sim._set_task_called = False, True, True
        names = {"image": "corner4", "wrist": "gripperPOV"}
        return mujoco, sim, ENV_POLICY_MAP[f"{task}-v3"](), Cameras(sim.model, sim.data, names, image_size)


class MetaWorldExpert(Expert):
    """The policy that Meta-World ships for the task, in this environment's actions; it has no memory.

    It also has to go on from where another policy got lost, so three things are added. What is held counts as held
    wherever the hand took it, where the shipped policy drops it to take it anew. A gripper that closed on nothing
    opens while it rises. And what turned in the hand is led to the goal by the end that has to be there.
    """

    def act(self):
        """The next action, float32 (3 or 4,) in [-1, 1]; the gripper entry is exactly -1, 0 or 1."""
        truth = self._truth()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "constant may be too high", at every start
            wanted = self.env._policy.get_action(truth["full"])
        rise = self._rise(truth)
        if rise:
            wanted[2] = CRUISE
        elif truth["held"] and not truth["lifted"] and truth["opening"] > CLOSED:
            wanted[2] = min(wanted[2], 0.0)  # not up before it has closed
        move = np.clip(wanted[:3], -CRUISE, CRUISE) + self.noise * self.rng.standard_normal(3)
        move = np.clip(move, -1, 1)
        if not self.env.learned_gripper:
            return move.astype(np.float32)
        close = wanted[3] > self.env._task.closes_from and not rise
        return np.append(move, 0 if close != truth["open"] else 1 - 2 * close).astype(np.float32)

    def steps_to_go(self):
        """Estimate of the steps to success from here, a float: the legs that are left of the policy's way."""
        truth, task = self._truth(), self.env._task
        rise = self._rise(truth)
        thing, second = truth["object"] + task.grip, truth["second"] + task.grip
        legs = [(rise, 0.01)] * bool(rise) + task.legs(truth["hand"] + [0, 0, rise], thing, second, truth["goal"])
        return sum(steps_to_reach(distance, within, CRUISE * UNIT, task.gain * UNIT) for distance, within in legs)

    def _truth(self):
        """`privileged_state` as the shipped policy is to see it, with `off`, the hand's way from its place, and `held`.

        The goal is where the thing's end will reach it. Where the thing is held, all things are moved so that the hand
        is where that policy would hold it.
        """
        truth, task = self.env.privileged_state(), self.env._task
        thing, full = truth["object"], truth["full"]  # views: they move with it
        if task.end:
            site, wanted = task.end
            full[-3:-1] -= self.env._sim.data.site(site).xpos[:2] - thing[:2] - wanted
        truth["off"] = off = truth["hand"] - thing - task.grip
        near = np.hypot(*off[:2]) <= task.slack and abs(off[2]) <= HELD[truth["lifted"]]
        truth["held"] = near and not truth["open"] and truth["opening"] >= task.empty
        if truth["held"]:
            excess = off[2] - np.clip(off[2], -task.height, task.height) if truth["lifted"] else 0.0
            for things in (full[4:7], full[11:14], full[-3:]):
                things += [*off[:2], excess]
        return truth

    def _rise(self, truth):
        """How far the hand has to rise (m) while the gripper opens again; 0 where it need not."""
        empty, opening = self.env._task.empty, truth["opening"]
        if not empty or truth["held"]:
            return 0.0
        if truth["open"]:
            return REGRASP_RISE * min(max((OPENED - opening) / (OPENED - empty), 0.0), 1.0)
        above = np.hypot(*truth["off"][:2]) <= 0.03 and 0 < truth["off"][2] < 0.1  # it has closed before it was there
        return REGRASP_RISE * (opening < empty or (above and opening < PRESSED))
