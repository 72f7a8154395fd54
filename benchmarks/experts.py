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
from pytorch_serl.envs.human.scripted import ScriptedHuman  # noqa: E402

PREFIX = "pytorch_serl/"
FIRST_SEED = 2_000_000
PATIENCE = 0.4  # s, train_hybrid.py's default


class Watcher(ScriptedHuman):
    """The scripted human who only counts when he would have taken over, and lets the expert go on."""

    def reset(self, **kwargs):
        self.takeovers = 0
        return super().reset(**kwargs)

    def step(self, action):
        result = self.env.step(action)
        self._watch.look()
        if self._watch.stalled >= self.patience:
            self.takeovers += 1
            self._watch.start()
        return result


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
        milliseconds, same = with_pictures(env)
        black = np.zeros((env.image_size, env.image_size, 3), np.uint8)
        env._picture = lambda key, black=black: black
        for noise in args.noise:
            rows, blind = episodes(env, args.episodes, noise)
            solved, steps, interrupted = rows.T
            print(
                f"| {task} | {noise:g} | {solved.sum():.0f} of {len(rows)} | {steps[solved > 0].mean():.1f} "
                f"| {steps[solved > 0].max(initial=0):.0f} | {(interrupted > 0).sum()} | {blind:.1f} "
                f"| {milliseconds:.1f} | {'yes' if same else 'NO'} |",
                flush=True,
            )
        env.close()


def simulated_tasks():
    """The registered names of everything that needs a simulator."""
    import pytorch_serl.envs  # noqa: F401

    starts = tuple(PREFIX + name for name in ("Panda", "Robosuite", "MetaWorld"))
    return sorted(name.removeprefix(PREFIX) for name in gym.registry if name.startswith(starts))


def with_pictures(env, steps=20):
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


def episodes(env, count, noise):
    """(count, 3) solved, steps, takeovers; and milliseconds per step."""
    patience = round(PATIENCE * env.metadata["render_fps"])
    watched, rows, seconds = Watcher(env, patience=patience), [], 0.0
    expert = env.scripted_expert(noise, seed=0)
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        watched.reset(seed=seed)
        start, steps, over = time.perf_counter(), 0, False
        while not over:
            _, _, terminated, truncated, info = watched.step(expert.act())
            steps, over = steps + 1, terminated or truncated
        seconds += time.perf_counter() - start
        rows.append((info["succeed"], steps, watched.takeovers))
    rows = np.array(rows, float)
    return rows, 1000 * seconds / rows[:, 1].sum()


if __name__ == "__main__":
    main()
