"""The tables of docs/results.md: trains what is not there yet, evaluates random actions, prints one row per method.

    python benchmarks/results.py --setup_modes single-arm-fixed-gripper --methods random bc awac hybrid alone

Demos and runs go to --output_dir (./runs/results); a finished run is read, not repeated. Words after `--` go to the
training script.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pytorch_serl.data.demos import SETUP_MODES, num_arms, num_grippers  # noqa: E402
from pytorch_serl.training import build  # noqa: E402
from pytorch_serl.training.evaluate import FINAL_SEED, evaluate, wilson_interval  # noqa: E402

METHODS = {
    "random": "random actions",
    "bc": "cloning of 20 demos (`--algo bc`)",
    "awac": "offline default (`--algo awac`)",
    "hybrid": "hybrid, scripted human",
    "alone": "hybrid, no human",
}
OPTIONS = {"bc": ["--algo", "bc"], "awac": [], "hybrid": [], "alone": ["--human", "env"]}


class RandomPolicy:
    """Uniform arm actions, and gripper commands each as likely as the others."""

    def __init__(self, setup_mode, seed):
        self.num_grippers, self.image_keys = num_grippers(setup_mode), ["image"]
        self.arms, self.rng = num_arms(setup_mode), np.random.default_rng(seed)

    def sample_actions(self, obs, argmax):
        blocks = self.rng.uniform(-1, 1, (self.arms, 6))
        if self.num_grippers:
            blocks = np.column_stack([blocks, self.rng.integers(-1, 2, self.arms)])
        return blocks.ravel().astype(np.float32)


def random_row(mode, seed):
    result = evaluate(RandomPolicy(mode, seed), build.make_env("built-in", mode), 100, seed=FINAL_SEED)
    steps = np.mean(result.steps_to_success) if result.successes else None
    return result.successes, steps, 0, 0.0


def trained_row(mode, method, seed, folder, extra):
    """Train unless there is an evaluation, then read what the run wrote."""
    out = folder / f"{mode}-{method}-{seed}"
    if not (out / "evaluation.json").exists():
        demos = folder / f"data-{mode}"
        if not (demos / "demos.pkl").exists():
            record = [sys.executable, ROOT / "record_demos.py", "--num_classifier_episodes", "0"]
            subprocess.run([*record, "--setup_mode", mode, "--output_dir", demos.resolve()], cwd=ROOT, check=True)
        cameras = ["image", "wrist"] if num_arms(mode) == 1 else ["image", "wrist_left", "wrist_right"]
        online = method in ("hybrid", "alone")
        command = [sys.executable, ROOT / ("train_hybrid.py" if online else "train_offline.py"), "--env", "built-in"]
        command += ["--demo_paths", demos / "demos.pkl", "--image_keys", *cameras, "--setup_mode", mode]
        command += ["--seed", seed, "--save_dir", out, "--overwrite", *OPTIONS[method], *extra]
        subprocess.run([str(word) for word in command], check=True)
    figures = json.loads((out / "evaluation.json").read_text())["deterministic"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "minutes" in row][-1]
    env_steps = last["step"] if method in ("hybrid", "alone") else 0
    return figures["successes"], figures["mean_steps_to_success"], env_steps, last["minutes"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--setup_modes", nargs="+", choices=SETUP_MODES, default=list(SETUP_MODES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output_dir", type=Path, default=Path("./runs/results"))
    args, extra = parser.parse_known_args()
    rows = []
    for mode, method, seed in [(m, k, s) for m in args.setup_modes for k in args.methods for s in args.seeds]:
        if method == "random":
            solved, steps, env_steps, minutes = random_row(mode, seed)
        else:
            words = [word for word in extra if word != "--"]
            solved, steps, env_steps, minutes = trained_row(mode, method, seed, args.output_dir, words)
        low, high = wilson_interval(solved, 100)
        mean = "-" if steps is None else f"{steps:.1f}"
        rows.append(
            f"| {mode} | {METHODS[method]} | {seed} | {solved} ({low:.0%} to {high:.0%}) | {mean} | {env_steps:,} | "
            f"{minutes:.1f} |"
        )
        print(rows[-1], flush=True)
    print(
        "\n| setup mode | method | seed | solved of 100 (interval) | steps to success | environment steps | minutes |"
    )
    print("|---|---|---|---|---|---|---|\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
