"""A scripted human who takes over where a policy is lost; works with every environment that has a scripted expert."""

import gymnasium as gym
import numpy as np


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
        obs, reward, terminated, truncated, info = self.env.step(np.array(action))  # a copy: it may be changed there
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
