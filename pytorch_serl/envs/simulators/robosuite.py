"""Five tasks of robosuite, one Panda or two, behind this project's environment contract.

Needs `pip install -r requirements/sim.txt`; docs/simulation.md has the system packages.

    env = gym.make('pytorch_serl.envs:pytorch_serl/RobosuiteLift-v0')

Scenes, physics, the arms' controller (OSC_POSE) and the rules of success are robosuite 1.5.2's
(github.com/ARISE-Initiative/robosuite). docs/simulation.md lists what is different here, and why.
"""

import logging
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np

from pytorch_serl.envs.simulators import robosuite_experts as experts
from pytorch_serl.envs.simulators.mujoco import Cameras, check_pictures, clear_errors, import_mujoco, place_camera

RATE = 10  # steps per second
STATE_MAX = 5.0
GRASP_PENALTY = -0.02  # for each command that changes a gripper's state
MAX_OPENING = 0.08  # m between the fingers
DOOR_JOINTS = ("hinge", "latch_joint")


class Task(NamedTuple):
    """What sets one task apart.

    `cameras`: image key -> robosuite's camera, its position and the point looked at (m; None: as it is), degrees.
    `bodies`: name in `privileged_state()` -> robosuite's body. `fixed`: the fixed gripper's command to robosuite.
    """

    setup_mode: str
    limit: int  # steps
    cameras: dict[str, tuple]
    bodies: dict[str, str]
    expert: type
    joint_noise: float = 0.02  # rad, standard deviation of the arm's joints at the start; robosuite's default
    fixed: float = -1.0


WRIST = ("robot0_eye_in_hand", None, None, 75)
TASKS = {
    "Lift": Task(
        "single-arm-learned-gripper",
        50,
        {"image": ("agentview", (0.65, 0.0, 1.3), (-0.03, 0.0, 0.86), 24), "wrist": WRIST},
        {"object": "cube_main"},
        experts.LiftExpert,
    ),
    "PickPlaceCan": Task(
        "single-arm-learned-gripper",
        150,
        {"image": ("agentview", (1.1, 0.0, 1.6), (0.1, 0.0, 0.85), 40), "wrist": WRIST},
        {"object": "Can_main"},
        experts.CanExpert,
    ),
    "Door": Task(
        "single-arm-fixed-gripper",
        80,
        {"image": ("agentview", (0.35, 0.55, 1.5), (-0.12, -0.27, 1.05), 30), "wrist": WRIST},
        {"object": "Door_latch", "door": "Door_door"},
        experts.DoorExpert,
    ),
    "TwoArmPegInHole": Task(
        "dual-arm-fixed-gripper",
        80,
        {
            "image": ("frontview", (1.5, 0.0, 1.25), (0.0, 0.0, 1.02), 24),
            "top": ("agentview", (0.9, 0.0, 1.95), (0.05, 0.0, 1.02), 26),
        },
        {"peg": "peg_main", "hole": "hole_main"},
        experts.PegExpert,
        joint_noise=0.08,
    ),
    "TwoArmLift": Task(
        "dual-arm-learned-gripper",
        100,
        {
            "image": ("agentview", (0.7, 0.0, 1.45), (0.0, 0.0, 0.9), 30),
            "wrist_left": WRIST,
            "wrist_right": ("robot1_eye_in_hand", None, None, 75),
        },
        {"object": "pot_root"},
        experts.PotExpert,
    ),
}


class RobosuiteEnv(gym.Env):
    """One task of robosuite; where its objects are can be seen in the pictures only.

    The reward is 1 at success, which ends the episode, and 0 otherwise.

    Observation (Dict):
        image and the task's other cameras: uint8 (S, S, 3).
        state: float32 (9 or 11 per arm,): the tool's position from where it starts without noise, in 0.2 m; its
            velocity in 0.25 m/s; how it is turned, a rotation vector in 0.5 rad, all along the world's axes; with a
            learned gripper how far it is open, 0 to 1, and whether it was told to (1 open, 0 close). Clipped to
            -5 to 5.

    Action (Box in [-1, 1]): per arm 3 translations (about 0.022 m per unit and step, once it moves) and 3 rotations
        (about 0.22 rad) along the world's axes; with a learned gripper an entry that is rounded to -1 close, 0 hold,
        +1 open.

    info: `succeed` (bool) and `grasp_penalty` (-0.02 for each command that changed a gripper's state).

    Args:
        task: one of TASKS.
        image_size: side of the pictures in pixels.
        max_episode_steps: the episode is truncated after so many steps of 0.1 s; None: the task's own limit.
        render_mode: None or 'rgb_array' (all cameras side by side).

    Raises:
        ImportError: robosuite is not installed.
        RuntimeError: there is no OpenGL, or its pictures are blank or frozen.
    """

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"], "render_fps": RATE, "simulated": True}

    def __init__(self, task="Lift", image_size=128, max_episode_steps=None, render_mode=None):
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; choose one of {', '.join(TASKS)}")
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}; wanted 16 pixels or more")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; choose None or 'rgb_array'")
        self.task, self.image_size, self.render_mode = task, image_size, render_mode
        self._task = TASKS[task]
        self.setup_mode, self.image_keys = self._task.setup_mode, list(self._task.cameras)
        self.max_episode_steps = max_episode_steps or self._task.limit
        self.num_arms = 2 if self.setup_mode.startswith("dual") else 1
        self.learned_gripper = self.setup_mode.endswith("learned-gripper")
        picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = gym.spaces.Box(-STATE_MAX, STATE_MAX, (self.num_arms * (9 + 2 * self.learned_gripper),), np.float32)
        self.observation_space = gym.spaces.Dict({**dict.fromkeys(self.image_keys, picture), "state": state})
        self.action_space = gym.spaces.Box(-1, 1, (self.num_arms * (6 + self.learned_gripper),), np.float32)

        self._mujoco, self._sim, self._cameras = _start_simulator(task, self._task, self.num_arms, image_size)
        self._model, self._data = self._cameras.model, self._cameras.data
        self._sites = [robot.eef_site_id["right"] for robot in self._sim.robots]
        self._home = self._nominal_pose()
        self._check_cameras()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        # one generator serves the whole of robosuite, so its state is set, not the generator replaced
        fresh = np.random.default_rng(int(self.np_random.integers(2**62)))
        self._sim.rng.bit_generator.state = fresh.bit_generator.state
        self._sim.reset()
        self._open, self._steps = np.ones(self.num_arms, bool), 0
        return self._observe(), {"succeed": False, "grasp_penalty": 0.0}

    def step(self, action):
        action = np.clip(np.asarray(action, float).reshape(self.num_arms, -1), -1, 1)  # (A, 6 or 7)
        switches = 0
        if self.learned_gripper:
            commands = np.round(action[:, 6])
            changed = commands == np.where(self._open, -1, 1)
            self._open ^= changed
            switches = int(changed.sum())
        self._sim.step(self._to_robosuite(action[:, :6]))
        self._steps += 1
        succeed = bool(self._sim._check_success())
        truncated = self._steps >= self.max_episode_steps and not succeed
        info = {"succeed": succeed, "grasp_penalty": GRASP_PENALTY * switches if switches else 0.0}
        return self._observe(), float(succeed), succeed, truncated, info

    def render(self):
        """All cameras side by side, uint8 (S, cameras * S, 3)."""
        return np.concatenate([self._picture(key) for key in self.image_keys], axis=1)

    def close(self):
        """Frees the renderer and its OpenGL context."""
        self._cameras.close()

    def privileged_state(self):
        """What no policy may see: the truth, for the expert and for tests.

        Returns a dict: per arm `tip` (A, 3) in m, `turn` (A, 3), the rotation vector from the nominal orientation,
        and `rotation` (A, 3, 3); `opening` (A,) in m and `grip` (A,), where the fingers' motors pull them to; `open`
        (A,), what the grippers were told, and `held` (A,), whether what they have to hold is between their fingers;
        and the task's bodies (`Task.bodies`), each a pair of position (3,) in m and rotation (3, 3); for the door
        `hinge` and `latch` in rad.
        """
        truth: dict[str, Any] = {
            "tip": np.stack([self._tip(arm) for arm in range(self.num_arms)]),
            "rotation": np.stack([self._rotation(arm) for arm in range(self.num_arms)]),
            "turn": np.stack([self._turn(arm) for arm in range(self.num_arms)]),
            "opening": np.array([self._opening(arm) for arm in range(self.num_arms)]),
            "grip": np.array([self._grip(arm) for arm in range(self.num_arms)]),
            "open": self._open.copy(),
            "held": np.array([self._holds(arm) for arm in range(self.num_arms)]),
        }
        for name, body in self._task.bodies.items():
            body = self._data.body(body)
            truth[name] = body.xpos.copy(), body.xmat.reshape(3, 3).copy()
        if self.task == "Door":
            truth["hinge"], truth["latch"] = (float(self._data.joint(f"Door_{n}").qpos[0]) for n in DOOR_JOINTS)
        return truth

    def scripted_expert(self, noise=0.1, seed=None):
        """An expert for this task, without memory; see robosuite_experts.py."""
        return self._task.expert(self, noise, seed)

    # Simulation

    def _to_robosuite(self, twists):
        """robosuite's action: its grippers open at -1, close at 1, and each takes an entry, a fixed one as well."""
        if self.task == "TwoArmPegInHole":  # no grippers
            return twists.ravel()
        grip = np.where(self._open, -1.0, 1.0) if self.learned_gripper else np.full(self.num_arms, self._task.fixed)
        return np.column_stack([twists, grip]).ravel()

    def _nominal_pose(self):
        """Rotations (A, 3, 3) and positions (A, 3) of the tools without the noise at the start."""
        for robot in self._sim.robots:
            self._data.qpos[robot._ref_joint_pos_indexes] = robot.init_qpos
        self._mujoco.mj_forward(self._model, self._data)
        arms = range(self.num_arms)
        return np.stack([self._rotation(arm) for arm in arms]), np.stack([self._tip(arm) for arm in arms])

    def _tip(self, arm):
        return self._data.site_xpos[self._sites[arm]].copy()

    def _rotation(self, arm):
        return self._data.site_xmat[self._sites[arm]].reshape(3, 3).copy()

    def _turn(self, arm):
        return experts.rotation_vector(self._rotation(arm) @ self._home[0][arm].T)

    def _velocity(self, arm):
        velocity, site = np.zeros(6), self._mujoco.mjtObj.mjOBJ_SITE
        self._mujoco.mj_objectVelocity(self._model, self._data, site, self._sites[arm], velocity, 0)
        return velocity[3:]

    def _opening(self, arm):
        if self.task == "TwoArmPegInHole":
            return 0.0
        fingers = self._data.qpos[self._sim.robots[arm]._ref_gripper_joint_pos_indexes["right"]]
        return float(fingers[0] - fingers[1])

    def _grip(self, arm):
        if self.task == "TwoArmPegInHole":
            return 0.0
        return float(self._sim.robots[arm].gripper["right"].current_action[0] + 1) / 2 * MAX_OPENING

    def _holds(self, arm):
        if not self.learned_gripper or self._open[arm]:
            return False
        if self.task == "TwoArmLift":
            geoms = (self._sim.pot.handle0_geoms, self._sim.pot.handle1_geoms)[arm]
        else:
            geoms = self._sim.cube if self.task == "Lift" else self._sim.objects[self._sim.object_id]
        return bool(self._sim._check_grasp(self._sim.robots[arm].gripper["right"], geoms))

    # Observation

    def _observe(self):
        return {**{key: self._picture(key) for key in self.image_keys}, "state": self._state()}

    def _state(self):
        parts = []
        for arm in range(self.num_arms):
            parts += [(self._tip(arm) - self._home[1][arm]) / 0.2, self._velocity(arm) / 0.25, self._turn(arm) / 0.5]
            if self.learned_gripper:
                parts.append([self._opening(arm) / MAX_OPENING, self._open[arm]])
        return np.clip(np.concatenate(parts), -STATE_MAX, STATE_MAX).astype(np.float32)

    def _picture(self, key):
        return self._cameras.picture(key)

    def _check_cameras(self):
        """All cameras must see the arms move, as the wrist's does by itself."""

        def bend():
            for robot in self._sim.robots:
                self._data.qpos[robot._ref_joint_pos_indexes] += 0.1
            self._mujoco.mj_forward(self._model, self._data)

        try:
            check_pictures(self._picture, self.image_keys, bend)
        except RuntimeError:
            self.close()
            raise


def _start_simulator(name, task, num_arms, image_size):
    """The mujoco module, robosuite's environment, and our cameras in it."""
    with clear_errors():
        mujoco = import_mujoco()
        # it reports every file that it loads
        logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
        import robosuite
        from robosuite.controllers import load_composite_controller_config

        controller = load_composite_controller_config(controller="BASIC", robot="Panda")
        controller["body_parts"]["right"]["input_ref_frame"] = "world"
        sim = robosuite.make(
            name,
            robots=["Panda"] * num_arms,
            controller_configs=controller,
            initialization_noise={"magnitude": task.joint_noise, "type": "gaussian"},
            has_renderer=False,
            has_offscreen_renderer=False,  # its pictures are slow, and upside down
            use_camera_obs=False,
            use_object_obs=name == "PickPlaceCan",  # which cannot be reset without
            control_freq=RATE,
            ignore_done=True,  # the time limit is ours
            hard_reset=False,
            seed=0,
        )
        model, data = sim.sim.model._model, sim.sim.data._data
        for camera, position, looked_at, fovy in task.cameras.values():
            if position is None:
                model.cam_fovy[model.camera(camera).id] = fovy
            else:
                place_camera(model, camera, position, looked_at, fovy=fovy)
        option = mujoco.MjvOption()
        option.geomgroup[0] = 0  # shapes for collisions
        option.sitegroup[:] = 0
        names = {key: camera[0] for key, camera in task.cameras.items()}
        return mujoco, sim, Cameras(model, data, names, image_size, option)
