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
