"""Simulated environments of somebody else's, with an expert: `--env tests.expert_env:Expert-v0`."""

import gymnasium as gym
import numpy as np

from pytorch_serl.envs.human.scripted import PATIENCE

LENGTH, FIRST = 12, 0.2  # steps, the first state


class Expert:
    """Has no generator of its own name, as other people's experts."""

    def __init__(self, env, noise, seed):
        self.env, self.noise, self.numbers = env, noise, np.random.default_rng(seed)

    def act(self):
        return np.full(6, 0.5 + self.noise * self.numbers.uniform(), np.float32)

    def steps_to_go(self):
        return self.env.stall + 20.0 * (1 - self.env.way) if self.env.way < 0.5 else 0.0


class ExpertEnv(gym.Env):
    """Success after four steps in which all of an action lies above 0.4; an estimate that stalls with `stall`."""

    made, resets = 0, []

    def __init__(self, simulated=None, eval_copies=None, expert=True, stall=0, offset=0.0, fps=None):
        ExpertEnv.made += 1
        if simulated is not None:
            self.simulated = simulated
        if eval_copies is not None:
            self.eval_copies = eval_copies
        self.stall, self.offset = stall, offset
        self.metadata = self.metadata | ({} if fps is None else {"render_fps": fps})
        if expert:
            self.scripted_expert = lambda noise, seed: Expert(self, noise, seed)
        image = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        state = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = gym.spaces.Dict({"image": image, "state": state})
        self.action_space = gym.spaces.Box(-1, 1, (6,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        ExpertEnv.resets.append((seed, options))
        self.good, self.steps = 0, 0
        return self._observe(), {}

    @property
    def way(self):
        return max(0, self.good - self.stall) / 8

    def step(self, action):
        self.steps += 1
        self.good += bool((np.asarray(action) > 0.4).all())
        solved = self.way >= 0.5
        info = {"succeed": solved, "grasp_penalty": 0.0}
        return self._observe(), float(solved), solved, self.steps >= LENGTH + self.stall and not solved, info

    def _observe(self):
        image = self.np_random.integers(0, 256, (32, 32, 3), np.uint8)
        state = np.array([FIRST + self.offset + 0.1 * self.good, *self.np_random.uniform(-0.01, 0.01, 2)], np.float32)
        return {"image": image, "state": state}


class Simulated(ExpertEnv):
    metadata = {"render_modes": [], "simulated": True, "eval_copies": 3}  # noqa: RUF012

    def scripted_expert(self, noise, seed):
        return Expert(self, noise, seed)


gym.register("Expert-v0", ExpertEnv)
gym.register("Simulated-v0", Simulated)
gym.register("Stalling-v0", ExpertEnv, kwargs={"stall": 2 * PATIENCE, "simulated": True})
gym.register("Factory-v0", lambda **options: Simulated(**options))
