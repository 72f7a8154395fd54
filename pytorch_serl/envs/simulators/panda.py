"""A Franka Panda in MuJoCo picks up a cube: gym-hil's task behind this project's environment contract.

Needs `pip install -r requirements/sim.txt`; docs/simulation.md has the system packages.

    env = gym.make('pytorch_serl.envs:pytorch_serl/PandaPickCube-v0')

The scene, the physics, the controller and the rule of success are gym-hil 0.1.14's (github.com/huggingface/gym-hil,
`PandaPickCubeBase-v0`). docs/simulation.md lists what is different here, and why. The expert for the scripted human
and the demos is in this file, too.
"""

from typing import ClassVar

import gymnasium as gym
import numpy as np

from pytorch_serl.envs.expert import CRUISE, Expert
from pytorch_serl.envs.simulators.mujoco import Cameras, check_pictures, clear_errors, import_mujoco, place_camera

STEP = 0.025  # m per unit of action and step, as gym-hil's own end-effector wrapper has it
CONTROL_DT = 0.1  # s per step, gym-hil's default
WORKSPACE = np.array([[0.2, -0.3, 0.0], [0.6, 0.3, 0.5]])  # m, gym-hil's limits of the set point
CUBE_RANGE = np.array([[0.3, -0.15], [0.5, 0.15]])  # m, where gym-hil puts a randomised cube
CUBE_HALF = 0.02  # m
CLOSED_ANGLE = 0.8  # rad, the finger joint when the gripper is closed around nothing
STATE_MAX = 5.0
GRASP_PENALTY = -0.02  # for each command that changes the gripper's state
FINGER_PADS = (("left_pad1", "left_pad2"), ("right_pad1", "right_pad2"))
CAMERAS = {  # key: gym-hil's camera; position, point looked at and upward direction in its body's frame (m); degrees
    "image": ("front", (1.3, 0.0, 0.7), (0.42, 0.0, 0.07), (0, 0, 1), 22),
    "wrist": ("handcam_rgb", (0.08, 0.0, -0.02), (0.055, 0.0, 0.2), (-1, 0, 0), 88),
}


class PandaPickCubeEnv(gym.Env):
    """One arm with a learned gripper has to lift the cube by 10 cm; setup mode single-arm-learned-gripper.

    Where the cube is can be seen in the pictures only. The reward is 1 at success, which ends the episode, and 0
    otherwise. A cube that is pushed 5 cm out of its range ends the episode, too, without success.

    Observation (Dict):
        image: uint8 (S, S, 3), from the front, of the table where cubes lie.
        wrist: uint8 (S, S, 3), from the hand, the fingertips in its upper half.
        state: float32 (11,): the tool's x, y, z in the workspace, -1 to 1; its velocity in units of 0.25 m/s; how
            far the controller's set point is from it, in units of 0.025 m; how far the fingers are open, 0 to 1;
            whether they were told to (1 open, 0 close). Clipped to -5 to 5.

    Action (Box in [-1, 1]): 3 translations that move the set point (0.025 m per unit); 3 rotations that are ignored,
        since gym-hil keeps the hand upright; a gripper entry that is rounded to -1 close, 0 hold, +1 open.

    info: `succeed` (bool) and `grasp_penalty` (-0.02 where the command changed the gripper's state).

    Args:
        image_size: side of the pictures in pixels.
        max_episode_steps: the episode is truncated after so many steps of 0.1 s.
        render_mode: None or 'rgb_array' (both cameras side by side).

    Raises:
        ImportError: gym-hil is not installed.
        RuntimeError: there is no OpenGL, or its pictures are blank or frozen.
    """

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"], "render_fps": 10, "simulated": True}
    setup_mode = "single-arm-learned-gripper"
    image_keys: ClassVar[list[str]] = list(CAMERAS)

    def __init__(self, image_size=128, max_episode_steps=50, render_mode=None):
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}; wanted 16 pixels or more")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; choose None or 'rgb_array'")
        self.image_size, self.max_episode_steps, self.render_mode = image_size, max_episode_steps, render_mode
        picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = gym.spaces.Box(-STATE_MAX, STATE_MAX, (11,), np.float32)
        self.observation_space = gym.spaces.Dict({**dict.fromkeys(CAMERAS, picture), "state": state})
        self.action_space = gym.spaces.Box(-1, 1, (7,), np.float32)

        self._mujoco, self._sim, self._cameras = _start_simulator(image_size)
        self._model, self._data = self._sim.model, self._sim.data
        self._cube = self._model.geom("block").id
        self._pads = [[self._model.geom(name).id for name in side] for side in FINGER_PADS]
        self._check_cameras()

    def reset(self, *, seed=None, options=None):
        """Starts an episode; `options={'object_xy': (2,)}` puts the cube there (m)."""
        super().reset(seed=seed)
        xy = self.np_random.uniform(*CUBE_RANGE)
        if options and "object_xy" in options:
            xy = np.asarray(options["object_xy"], float).reshape(2)
        self._place_cube(xy)
        self._open, self._steps = True, 0
        return self._observe(), {"succeed": False, "grasp_penalty": 0.0}

    def step(self, action):
        action = np.clip(np.asarray(action, float).reshape(7), -1, 1)
        command = round(float(action[6]))
        switches = command == (-1 if self._open else 1)
        self._open ^= switches
        # gym-hil adds the last entry to how far the gripper is told to be closed, and limits that to 0 to 1
        _, reward, terminated, _, info = self._sim.step(np.array([*(STEP * action[:3]), 0, 0, 0, -command]))
        self._steps += 1
        truncated = self._steps >= self.max_episode_steps and not terminated
        penalty = GRASP_PENALTY if switches else 0.0
        info = {"succeed": bool(info["succeed"]), "grasp_penalty": penalty}
        return self._observe(), float(reward), bool(terminated), truncated, info

    def render(self):
        """Both cameras side by side, uint8 (S, 2 S, 3)."""
        return np.concatenate([self._picture(key) for key in CAMERAS], axis=1)

    def close(self):
        """Frees the renderer and its OpenGL context."""
        self._cameras.close()

    def privileged_state(self):
        """What no policy may see: the truth, for the expert and for tests.

        Returns a dict: `tip`, `target` (the controller's set point) and `object` (the cube's centre), (3,) in m;
        `velocity` of the tip, (3,) in m/s; `angle` and `angle_speed` of the finger joint in rad and rad/s, 0 is open;
        `open`, what the gripper was told; `held`, whether the cube is between its closing fingers.
        """
        fingers = self._data.joint("right_driver_joint")
        return {
            "tip": self._sensor("2f85/pinch_pos"),
            "velocity": self._sensor("2f85/pinch_vel"),
            "target": self._data.mocap_pos[0].copy(),
            "object": self._sensor("block_pos"),
            "angle": float(fingers.qpos[0]),
            "angle_speed": float(fingers.qvel[0]),
            "open": bool(self._open),
            "held": not self._open and all(self._touches(pads) for pads in self._pads),
        }

    def scripted_expert(self, noise=0.1, seed=None):
        """An expert for this task; see PandaExpert."""
        return PandaExpert(self, noise, seed)

    # Simulation

    def _place_cube(self, xy):
        """Puts everything at its start; gym-hil's own randomisation would draw from numpy's global generator."""
        self._sim.reset()
        self._data.joint("block").qpos[:2] = xy
        self._mujoco.mj_forward(self._model, self._data)

    def _touches(self, geoms):
        """Whether the cube is in contact with one of these shapes."""
        pairs = self._data.contact.geom  # (contacts, 2)
        return bool((np.isin(pairs, geoms).any(1) & (pairs == self._cube).any(1)).any())

    def _sensor(self, name):
        return self._data.sensor(name).data.copy()

    # Observation

    def _observe(self):
        return {**{key: self._picture(key) for key in CAMERAS}, "state": self._state()}

    def _state(self):
        truth = self.privileged_state()
        low, high = WORKSPACE
        fingers = [1 - truth["angle"] / CLOSED_ANGLE, truth["open"]]
        position = 2 * (truth["tip"] - low) / (high - low) - 1
        velocity, lag = truth["velocity"] * CONTROL_DT / STEP, (truth["target"] - truth["tip"]) / STEP
        state = np.concatenate([position, velocity, lag, fingers])
        return np.clip(state, -STATE_MAX, STATE_MAX).astype(np.float32)

    def _picture(self, key):
        return self._cameras.picture(key)

    def _check_cameras(self):
        """Both cameras must see a cube that moved."""
        self._place_cube((0.4, -0.05))
        try:
            check_pictures(self._picture, self.image_keys, lambda: self._place_cube((0.4, 0.05)))
        except RuntimeError:
            self.close()
            raise


def _start_simulator(image_size):
    """The mujoco module, gym-hil's environment, and our cameras in it."""
    with clear_errors():
        mujoco = import_mujoco()
        from gym_hil.envs import PandaPickCubeGymEnv

        sim = PandaPickCubeGymEnv(control_dt=CONTROL_DT)
        sim.close()  # its renderer: slow, and of other cameras
        for camera in CAMERAS.values():
            place_camera(sim.model, *camera)
        names = {key: camera[0] for key, camera in CAMERAS.items()}
        return mujoco, sim, Cameras(sim.model, sim.data, names, image_size)


HOVER = 0.07  # m, where the expert lines up
CLEAR = 0.055  # m, the fingertips pass over a cube from here on
GRASP_AT = 0.022  # m, the fingertips when they close
LIFT = 0.16  # m, of the set point, well above the success
SUCCESS = CUBE_HALF + 0.1  # m, the cube's centre, gym-hil's rule
LINED_UP, FITS = 0.006, 0.012  # m, lateral error at which the expert goes down, and at which it closes
OPEN_ANGLE = 0.1  # rad, the fingers are wide enough
SETTLED = 0.5  # rad/s, the fingers have come to rest
CRUISE_STEP = CRUISE * STEP  # m


class PandaExpert(Expert):
    """Picks up the cube from any state: line up above it, go down, close, lift; open where it closed on nothing.

    It has no memory: it decides from `privileged_state()` alone, so it can take over anywhere.
    """

    def act(self):
        """The next action, float32 (7,) in [-1, 1]; the gripper entry is exactly -1, 0 or 1."""
        truth = self.env.privileged_state()
        goal, gripper = self._decide(truth)
        move = np.clip((goal - truth["target"]) / STEP, -CRUISE, CRUISE)
        twist = np.append(move, np.zeros(3)) + self.noise * self.rng.standard_normal(6)
        return np.append(np.clip(twist, -1, 1), gripper).astype(np.float32)

    def steps_to_go(self):
        """Estimate of the steps to success from here, a float."""
        truth = self.env.privileged_state()
        if truth["held"]:
            return max(SUCCESS - truth["object"][2], 0) / CRUISE_STEP
        error, height = np.abs(truth["object"] - truth["tip"])[:2].max(), truth["tip"][2]
        after = 3 + (SUCCESS - CUBE_HALF) / CRUISE_STEP + 2 * (not truth["open"])
        if height < CLEAR and error <= FITS:
            return max(height - GRASP_AT, 0) / CRUISE_STEP + after
        sideways, to_hover = max(error - LINED_UP, 0), abs(HOVER - height)
        return (max(sideways, to_hover) + HOVER - GRASP_AT) / CRUISE_STEP + after

    def _decide(self, truth):
        """Where the set point has to go, (3,) in m, and the gripper's command."""
        tip, goal, cube = truth["tip"], truth["target"].copy(), truth["object"]
        if truth["held"]:
            goal[2] = LIFT
            return goal, 0
        if not truth["open"]:
            return goal, int(abs(truth["angle_speed"]) < SETTLED)  # it opens when it has closed on nothing
        error = np.abs(cube - tip)[:2].max()
        low = tip[2] < CLEAR
        if error > (FITS if low else LINED_UP) or truth["angle"] > OPEN_ANGLE:
            goal[2] = HOVER
            if not low:
                goal[:2] = cube[:2]
            return goal, 0
        goal[:] = [*cube[:2], GRASP_AT]
        return goal, -int(tip[2] < GRASP_AT + 0.006)
