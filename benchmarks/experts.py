"""How good the scripted experts of the simulated tasks are, and how fast the tasks.

    python benchmarks/experts.py                                              every task, 100 episodes, noise 0 and 0.1
    python benchmarks/experts.py --tasks RobosuiteLift-v0 --episodes 10 --noise 0.1

Needs `pip install -r requirements/sim.txt`. A line of a table per task and noise: how many episodes the expert solves,
the steps that takes (mean and most), in how many of them a scripted human with 0.4 s of patience would have taken over
from him, milliseconds per step without and with pictures, and whether the same seed gives the same episode bit for
bit, pictures included. The episodes, seeded from 2,000,000 on, run without pictures, which decide nothing in them.
"""

import argparse
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pytorch_serl.envs.human.scripted import PATIENCE, RATE, check_expert  # noqa: E402
from pytorch_serl.training import build  # noqa: E402
from pytorch_serl.training.humans import scripted_steps  # noqa: E402

PREFIX = "pytorch_serl/"
FIRST_SEED = 2_000_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", nargs="+", help="registered names without pytorch_serl/ (all simulated tasks)")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per task and noise (100)")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1], help="noise on the actions (0 and 0.1)")
    args = parser.parse_args()
    print("| task | noise | solved | steps | most | interrupted | ms/step blind | ms/step | same seed, same episode |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task in args.tasks or simulated_tasks():
        env = gym.make(f"pytorch_serl.envs:{PREFIX}{task.removeprefix(PREFIX)}").unwrapped
        milliseconds, same = speed(env)
        black = np.zeros((env.image_size, env.image_size, 3), np.uint8)
        env._picture = lambda key, black=black: black
        blind, _ = speed(env)
        rate = build.steps_per_second(env)
        patience = scripted_steps(PATIENCE / RATE, (), rate)["patience"]  # train_hybrid.py's default
        for noise in args.noise:
            check = check_expert(env, args.episodes, FIRST_SEED, noise, patience)
            steps = check.steps_to_success or [0]
            print(
                f"| {task} | {noise:g} | {len(check.steps_to_success)} of {check.episodes} | {np.mean(steps):.1f} "
                f"| {max(steps)} | {len(check.interruptions)} | {blind:.1f} | {milliseconds:.1f} "
                f"| {'yes' if same else 'NO'} |",
                flush=True,
            )
        env.close()


def simulated_tasks():
    """The registered names of everything that needs a simulator."""
    import pytorch_serl.envs  # noqa: F401

    starts = tuple(PREFIX + name for name in ("Panda", "Robosuite", "MetaWorld"))
    return sorted(name.removeprefix(PREFIX) for name in gym.registry if name.startswith(starts))


def speed(env, steps=20):
    """Milliseconds per step, and whether the same seed gives the same observations, bit for bit."""
    traces, seconds = [], 0.0
    for _ in range(2):
        expert = env.scripted_expert(noise=0.3, seed=1)
        trace = [env.reset(seed=1)[0]]
        start = time.perf_counter()
        for _ in range(steps):
            trace.append(env.step(expert.act())[0])
        seconds += time.perf_counter() - start
        traces.append(b"".join(np.ascontiguousarray(value).tobytes() for obs in trace for value in obs.values()))
    return 1000 * seconds / (2 * steps), traces[0] == traces[1]


if __name__ == "__main__":
    main()
