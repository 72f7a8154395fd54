"""A scripted human who takes over where a policy is lost; works with every environment that has a scripted expert.

Such an environment has a `scripted_expert(noise, seed)` with `act()` and `steps_to_go()`: docs/simulation.md.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np

PATIENCE, BURST, PROGRESS = 4, (8, 12), 0.5  # steps of an environment at RATE, steps of the expert
RATE = 10.0  # steps per second


class Watch:
    """Counts the steps in a row in which the expert's estimate of the steps to go has not come down by `progress`."""

    def __init__(self, expert, progress):
        self.expert, self.progress = expert, progress
        self.start()

    def start(self):
        self.best, self.stalled = self.expert.steps_to_go(), 0

    def look(self):
        estimate = self.expert.steps_to_go()
        if estimate <= self.best - self.progress:
            self.best, self.stalled = estimate, 0
        else:
            self.stalled += 1


class ScriptedHuman(gym.Wrapper):
    """Stands beside the robot during training: watches the policy, takes over where it is lost, hands back.

    He judges by the expert's estimate of the steps to go. When it has not come down by `progress` steps
    within the last `patience` steps, he acts by the expert for a burst of steps, then lets the policy try
    again. Where `reset` is told that an evaluation begins (`options={'evaluation': True}`) he stays out of it.
    In the steps he took, `info['intervene_action']` is the action that was executed (float32).

    Args:
        env: an environment with a `scripted_expert(noise, seed)`, wrapped or not.
        patience: steps without progress before he takes over.
        burst: (shortest, longest) number of steps he acts; drawn anew for every burst.
        progress: how much the estimate must come down to count as progress, in steps of the expert.
        attention: share of episodes that he watches at all, 0 to 1.
        noise: standard deviation of the noise on his actions.
        seed: seed of his bursts, attention and noise; `reset(seed=...)` sets it anew.
    """

    def __init__(self, env, patience=PATIENCE, burst=BURST, progress=PROGRESS, attention=1.0, noise=0.1, seed=None):
        super().__init__(env)
        self.patience, self.burst, self.progress, self.attention = patience, burst, progress, attention
        self.noise = noise
        self._seed(seed)

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._seed(seed)
        self._watching = self._rng.random() < self.attention and not (options or {}).get("evaluation")
        self._burst_left = 0
        self._watch = Watch(self.expert, self.progress)
        return obs, info

    def step(self, action):
        if self._burst_left == 0 and self._watching and self._watch.stalled >= self.patience:
            self._burst_left = int(self._rng.integers(self.burst[0], self.burst[1] + 1))
        intervening = self._burst_left > 0
        if intervening:
            action = self.expert.act()
        obs, reward, terminated, truncated, info = self.env.step(np.array(action))  # a copy: it may be changed there
        if intervening:
            info["intervene_action"] = action
            self._burst_left -= 1
            self._watch.start()
        else:
            self._watch.look()
        return obs, reward, terminated, truncated, info

    def _seed(self, seed):
        self._rng = np.random.default_rng(None if seed is None else [seed, 1])
        self.expert = self.env.unwrapped.scripted_expert(self.noise, None if seed is None else [seed, 2])


@dataclass
class ExpertCheck:
    """What an expert did when nobody else acted.

    steps_to_success: of the episodes that he solved. interruptions: seed of an episode -> steps in which the human,
    who watches for a lost policy, would have taken over. longest_stall: steps in a row without progress, at most.
    rate: steps per second.
    """

    episodes: int
    steps_to_success: list
    interruptions: dict
    longest_stall: int
    rate: float

    def __str__(self):
        solved = len(self.steps_to_success)
        mean = f" in {np.mean(self.steps_to_success):.1f} steps" if solved else ""
        text = f"the expert alone solved {solved} of {self.episodes} episodes{mean}; the scripted human would "
        if not self.interruptions:
            return text + f"not have interrupted him (longest time without progress: {self.longest_stall} steps)"
        seed, steps = next(iter(self.interruptions.items()))
        enough = (self.longest_stall + 1) / self.rate
        return (
            f"WARNING: {text}have interrupted him {sum(map(len, self.interruptions.values()))} times, in "
            f"{len(self.interruptions)} episodes (first: seed {seed}, step {steps[0]}); his steps_to_go() has to fall "
            f"steadily, by {PROGRESS} and more, while he acts, or give --patience {enough:.3g} (seconds)"
        )


def check_expert(env, episodes=10, seed=0, noise=0.1, patience=PATIENCE, progress=PROGRESS, rate=RATE):
    """Let the expert act alone, and count how often the scripted human would have taken him for a lost policy.

    Args:
        env: with a `scripted_expert`; episodes are seeded seed, seed + 1, ...
        patience, progress: as in `ScriptedHuman`.
        rate: steps per second, for the text.
    Returns: an ExpertCheck, whose text says what to do.
    """
    check = ExpertCheck(episodes, [], {}, 0, rate)
    for number in range(seed, seed + episodes):
        env.reset(seed=number)
        expert = env.unwrapped.scripted_expert(noise, [number, 2])
        watch, steps, over = Watch(expert, progress), 0, False
        while not over:
            if watch.stalled == patience:  # and more, as long as it lasts, is the same interruption
                check.interruptions.setdefault(number, []).append(steps)
            *_, terminated, truncated, info = env.step(expert.act())
            steps, over = steps + 1, terminated or truncated
            if not over:
                watch.look()
            check.longest_stall = max(check.longest_stall, watch.stalled)
        if info["succeed"]:
            check.steps_to_success.append(steps)
    return check
