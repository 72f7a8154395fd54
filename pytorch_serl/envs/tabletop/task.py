"""The built-in task: grasp and lift a cube, or insert a peg, seen by cameras. Plain numpy, no physics engine.

With a learned gripper every arm has to grasp the cube in its half of the table and lift it; with a fixed
gripper every arm holds a peg and has to put it into a hole. Where the cube or the hole is can be seen in the
pictures only. The reward is 1 at success, which ends the episode, and 0 otherwise.

    env = gym.make('pytorch_serl.envs:pytorch_serl/Tabletop-v0', setup_mode='single-arm-learned-gripper')

The physics is kinematic and tells the same story as a real cell: the tool's tip moves by what is commanded,
more slowly sideways near the table; fingers that come down on the cube stay on top of it; a gripper that
closes around the cube, squared up and low enough, holds it; a peg enters only the hole. Nothing is pushed.
"""

from typing import ClassVar

import gymnasium as gym
import numpy as np

from pytorch_serl.envs.tabletop import cameras
from pytorch_serl.envs.tabletop.expert import TabletopExpert
from pytorch_serl.envs.tabletop.near_miss import near_miss
from pytorch_serl.envs.tabletop.sizes import (
    ANGLE_MAX,
    CUBE_HALF,
    GRASP_HEIGHT,
    GRASP_PENALTY,
    GRASP_TOLERANCE,
    HOLE_BOTTOM,
    INSERT_DEPTH,
    INSERT_TOLERANCE,
    LIFT_HEIGHT,
    OBJECT_RANGE,
    REACH,
    ROTATION_STEP,
    SLOW_FACTOR,
    SLOW_ZONE,
    SQUARE_ANGLE,
    TRANSLATION_STEP,
    Z_MAX,
)

SETUP_MODES = (
    "single-arm-fixed-gripper",
    "single-arm-learned-gripper",
    "dual-arm-fixed-gripper",
    "dual-arm-learned-gripper",
)


class TabletopEnv(gym.Env):
    """One or two arms over a table, in one of four setup modes.

    Observation (Dict):
        image: uint8 (S, S, 3), the overhead camera.
        wrist (one arm), or wrist_left and wrist_right (two): uint8 (S, S, 3).
        state: float32 (6 or 8 per arm,), in [-1, 1]: the tip's x, y, z, the tool's roll, pitch, yaw, and for
            a learned gripper whether it is open (1 open, 0 closed) and whether something is between the
            closed fingers (1 or 0), as the width reading of a real gripper tells.

    Action (Box in [-1, 1]): per arm 3 translations (0.025 m per unit), 3 rotations (0.15 rad per unit), and
        for a learned gripper an entry that is rounded to -1 close, 0 hold, +1 open. An arm stands still in
        the step in which its gripper opens or closes.

    info: `succeed` (bool) and `grasp_penalty` (-0.02 for each gripper that changed its state in this step).

    Args:
        setup_mode: one of SETUP_MODES.
        image_size: side of the pictures in pixels.
        max_episode_steps: the episode is truncated after so many steps.
        tolerance: lateral error in m that a grasp or an insertion allows; None for the mode's default
            (0.010 grasping, 0.005 inserting).
        render_mode: None or 'rgb_array' (all cameras side by side).
    """

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"], "render_fps": 10, "simulated": True}
    eval_copies = 10  # a CPU takes a third less for the frames of ten observations together

    def __init__(
        self,
        setup_mode="single-arm-learned-gripper",
        image_size=128,
        max_episode_steps=50,
        tolerance=None,
        render_mode=None,
    ):
        if setup_mode not in SETUP_MODES:
            raise ValueError(f"setup_mode is {setup_mode!r}; choose one of {', '.join(SETUP_MODES)}")
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}; wanted 16 pixels or more")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; choose None or 'rgb_array'")
        self.setup_mode, self.image_size, self.max_episode_steps = setup_mode, image_size, max_episode_steps
        self.render_mode = render_mode
        self.num_arms = 2 if setup_mode.startswith("dual") else 1
        self.learned_gripper = setup_mode.endswith("learned-gripper")
        default = GRASP_TOLERANCE if self.learned_gripper else INSERT_TOLERANCE
        self.tolerance = default if tolerance is None else float(tolerance)
        self.centres = np.array([[0.0, 0.0]] if self.num_arms == 1 else [[-REACH, 0.0], [REACH, 0.0]])  # (A, 2)
        self.z_min = 0.0 if self.learned_gripper else HOLE_BOTTOM

        self.wrist_keys = ["wrist"] if self.num_arms == 1 else ["wrist_left", "wrist_right"]
        self.image_keys = ["image", *self.wrist_keys]
        picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._block = 7 if self.learned_gripper else 6  # action entries per arm
        state_dim = self.num_arms * (8 if self.learned_gripper else 6)
        spaces = dict.fromkeys(self.image_keys, picture)
        spaces["state"] = gym.spaces.Box(-1, 1, (state_dim,), np.float32)
        self.observation_space = gym.spaces.Dict(spaces)
        self.action_space = gym.spaces.Box(-1, 1, (self.num_arms * self._block,), np.float32)

        half_x = REACH * self.num_arms
        self._overhead = cameras.Overhead(image_size, half_x)
        self._wrist = cameras.Wrist(image_size, "cube" if self.learned_gripper else "hole")
        self._texture, self._texture_corner = cameras.table_texture(half_x)

    def reset(self, *, seed=None, options=None):
        """Starts an episode; `options={'object_xy': (A, 2)}` puts the cubes or holes there (m)."""
        super().reset(seed=seed)
        n, uniform = self.num_arms, self.np_random.uniform
        xy = self.centres + uniform(-0.10, 0.10, (n, 2))
        self._tip = np.column_stack([xy, uniform(0.10, 0.13, n)])  # (A, 3)
        self._rpy = uniform(-0.25, 0.25, (n, 3))
        self._open = np.full(n, self.learned_gripper)  # a fixed gripper stays closed around its peg
        self._held = np.zeros(n, bool)
        self._held_offset = np.zeros((n, 3))  # m, from the tip to the centre of a held cube
        xy = self.centres + uniform(-OBJECT_RANGE, OBJECT_RANGE, (n, 2))
        if options and "object_xy" in options:
            xy = np.asarray(options["object_xy"], float).reshape(n, 2)
        self._object = np.column_stack([xy, np.full(n, CUBE_HALF if self.learned_gripper else 0.0)])  # (A, 3)
        self._steps = 0
        self._set_light(uniform(0.95, 1.05) * uniform(0.98, 1.02, 3))
        return self._observe(), {"succeed": False, "grasp_penalty": 0.0}

    def step(self, action):
        action = np.clip(np.asarray(action, float).reshape(self.num_arms, self._block), -1, 1)
        changes = 0
        for arm in range(self.num_arms):
            if self.learned_gripper and self._wants_change(arm, action[arm, 6]):
                self._switch_gripper(arm)
                changes += 1
            else:
                self._move(arm, action[arm])
        self._steps += 1
        succeed = self._succeeded()
        truncated = self._steps >= self.max_episode_steps and not succeed
        info = {"succeed": succeed, "grasp_penalty": GRASP_PENALTY * changes if changes else 0.0}
        return self._observe(), float(succeed), succeed, truncated, info

    def render(self):
        """All cameras side by side, uint8 (S, cameras * S, 3)."""
        obs = self._observe()
        return np.concatenate([obs[key] for key in self.image_keys], axis=1)

    def privileged_state(self):
        """What no policy may see: the true poses, for the scripted expert and for tests.

        Returns a dict of copies, one row per arm: `tip` and `object` (A, 3) in m (a cube's centre, a hole's
        opening), `rpy` (A, 3) in rad, `open` and `held` (A,) bool.
        """
        return {
            "tip": self._tip.copy(),
            "rpy": self._rpy.copy(),
            "object": self._object.copy(),
            "open": self._open.copy(),
            "held": self._held.copy(),
        }

    def scripted_expert(self, noise=0.1, seed=None):
        """An expert for this task; see TabletopExpert."""
        return TabletopExpert(self, noise, seed)

    def near_miss(self, rng):
        """Actions that fail by a little, for classifier frames; see `near_miss` in the file of that name."""
        return near_miss(self, rng)

    # Physics

    def _wants_change(self, arm, entry):
        command = round(float(entry))
        return (command == 1 and not self._open[arm]) or (command == -1 and self._open[arm])

    def _switch_gripper(self, arm):
        self._open[arm] = not self._open[arm]
        if self._open[arm]:
            if self._held[arm]:  # the cube drops straight down
                self._object[arm, 2] = CUBE_HALF
            self._held[arm] = False
            return
        error = np.abs(self._object[arm, :2] - self._tip[arm, :2])
        low = self._tip[arm, 2] < GRASP_HEIGHT
        if low and (error <= self.tolerance).all() and self._is_square(self._rpy[arm]):
            self._held[arm] = True
            self._held_offset[arm] = self._object[arm] - self._tip[arm]

    def _move(self, arm, action):
        old, speed = self._tip[arm].copy(), np.full(3, TRANSLATION_STEP)
        if old[2] < SLOW_ZONE:
            speed[:2] *= SLOW_FACTOR
        tip = old + speed * action[:3]
        tip[:2] = np.clip(tip[:2], self.centres[arm] - REACH, self.centres[arm] + REACH)
        tip[2] = np.clip(tip[2], self.z_min, Z_MAX)
        rpy = np.clip(self._rpy[arm] + ROTATION_STEP * action[3:6], -ANGLE_MAX, ANGLE_MAX)
        if self.learned_gripper:
            tip = self._stop_at_cube(arm, old, tip)
        else:
            tip, rpy = self._stop_at_table(arm, old, tip, rpy)
        self._tip[arm], self._rpy[arm] = tip, rpy

    def _stop_at_cube(self, arm, old, tip):
        if self._held[arm]:  # the cube cannot go through the table
            tip[2] = max(tip[2], CUBE_HALF - self._held_offset[arm, 2])
            self._object[arm] = tip + self._held_offset[arm]
            return tip
        top = 2 * CUBE_HALF
        if self._hits_cube(arm, tip) and not self._hits_cube(arm, old):
            if old[2] >= top:
                tip[2] = top
            else:
                tip[:2] = old[:2]
        return tip

    def _hits_cube(self, arm, tip):
        """Whether a finger would be inside the cube with the tip there."""
        dx, dy = np.abs(self._object[arm, :2] - tip[:2])
        inner = self._gap(arm)
        outer = inner + cameras.FINGER_THICKNESS
        in_x = inner < dx + CUBE_HALF and dx - CUBE_HALF < outer
        return tip[2] < 2 * CUBE_HALF and in_x and dy < CUBE_HALF + cameras.FINGER_HALF_WIDTH

    def _stop_at_table(self, arm, old, tip, rpy):
        hole = self._object[arm, :2]
        if old[2] < 0:  # in the hole: its walls guide the peg
            tip[:2] = np.clip(tip[:2], hole - self.tolerance, hole + self.tolerance)
            rpy = np.clip(rpy, -0.99 * SQUARE_ANGLE, 0.99 * SQUARE_ANGLE)
        elif tip[2] < 0:
            fits = (np.abs(hole - tip[:2]) <= self.tolerance).all() and self._is_square(rpy)
            tip[2] = tip[2] if fits else 0.0
        return tip, rpy

    @staticmethod
    def _is_square(rpy):
        return bool((np.abs(rpy) < SQUARE_ANGLE).all())

    def _succeeded(self):
        if self.learned_gripper:
            return bool((self._held & (self._tip[:, 2] >= LIFT_HEIGHT)).all())
        return bool((self._tip[:, 2] <= INSERT_DEPTH).all())

    def _gap(self, arm):
        """Half the distance between the fingers, m."""
        if not self.learned_gripper:
            return cameras.PEG_HALF
        if self._held[arm]:
            return CUBE_HALF
        return CUBE_HALF + self.tolerance if self._open[arm] else 0.001

    # Observation

    def _observe(self):
        scene = [self._describe(arm) for arm in range(self.num_arms)]
        obs = {"image": self._overhead.draw(self._background, scene, self._colours)}
        for key, arm in zip(self.wrist_keys, scene, strict=True):
            obs[key] = self._wrist.draw(self._texels, self._texture_corner, arm, self._colours)
        obs["state"] = self._state()
        return obs

    def _state(self):
        columns = [
            (self._tip[:, :2] - self.centres) / REACH,
            2 * (self._tip[:, 2:] - self.z_min) / (Z_MAX - self.z_min) - 1,
            self._rpy / ANGLE_MAX,
        ]
        if self.learned_gripper:
            columns += [self._open[:, None], self._held[:, None]]
        return np.clip(np.concatenate(columns, axis=1), -1, 1).astype(np.float32).ravel()

    def _describe(self, arm):
        """One arm and its object as the plain floats that the cameras draw."""
        return {
            "kind": "cube" if self.learned_gripper else "hole",
            "index": arm,
            "tool": self._tip[arm].tolist(),
            "rpy": self._rpy[arm].tolist(),
            "object": self._object[arm].tolist(),
            "half": CUBE_HALF if self.learned_gripper else cameras.PEG_HALF + 0.003,
            "gap": float(self._gap(arm)),
            "held": bool(self._held[arm]),
        }

    def _set_light(self, gain):
        """Tints this episode's table and colours; `gain`: (3,) around 1."""
        levels = np.clip(np.arange(256)[:, None] * gain, 0, 255).round().astype(np.uint8)  # (256, 3)
        self._background = np.stack([levels[self._overhead.background[c], c] for c in range(3)])  # (3, S, S)
        texels = self._texture.copy()
        for c in range(3):
            texels[..., c] = levels[self._texture[..., c], c]
        self._texels = texels.view(np.uint32)[..., 0]
        self._colours = {
            name: np.minimum(np.array(colour) * gain, 254).astype(np.float32)[:, None, None]
            for name, colour in cameras.COLOURS.items()
        }
