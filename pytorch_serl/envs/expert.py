"""What scripted experts share: they read the privileged state, which no policy sees, and have no memory."""

import numpy as np

CRUISE = 0.8  # largest command before noise: clones have a tanh and learn +-1 badly


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


def steps_to_reach(distance, within, speed, gain):
    """Steps until a command in proportion to the distance has brought it down to `within`.

    Args:
        distance: (,) 0 or more, in any unit.
        within: the distance that will do, above 0, in the same unit.
        speed: the largest change per step, in that unit.
        gain: share of the distance that a step covers, where that is less than `speed`; 0 to 1.

    Returns a float, 0 where the distance will do already.
    """
    near = speed / gain
    fast = max(distance - max(near, within), 0) / speed
    slow = np.log(max(min(distance, near) / within, 1)) / -np.log1p(-gain)
    return float(fast + slow)
