"""How well frozen backbones see the built-in task, which none of them was made from: one table.

    python benchmarks/features.py                                        # places and time: minutes
    python benchmarks/features.py --parts place classifier clone --seeds 0 1 2        # hours on a CPU
    python benchmarks/features.py --backbones random shipped mine.pt --setup_modes single-arm-fixed-gripper

place: how far off, in cm, a ridge regression on the overhead camera's features puts cube or hole, after 20, 100 and
200 frames, on 300 others. classifier: train_classifier.py as in README (one camera), asked about scenes recorded with
another seed. clone: train_offline.py --algo bc, 2,500 updates, solved of 100 unseen episodes. Recordings and runs go to
--output_dir; finished runs are read, not repeated. benchmarks/compare_backbones.py does the like on your own data.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import probes  # noqa: E402

from pytorch_serl.data.demos import SETUP_MODES, num_arms  # noqa: E402
from pytorch_serl.data.frames import read_classifier_frames  # noqa: E402
from pytorch_serl.networks.classifier import RewardClassifier  # noqa: E402
from pytorch_serl.training import build  # noqa: E402
from pytorch_serl.training.evaluate import wilson_interval  # noqa: E402

PARTS = ("place", "classifier", "clone")
PLACE_FRAMES, TEST_FRAMES = (20, 100, 200), 300
OTHER_SEED = 999  # of the scenes that a classifier has never seen
WAIT = 8  # expert's steps at most before a frame of `place_frames`


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", help="random, shipped, published or files; None: those that are here")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["place"])
    parser.add_argument("--setup_modes", nargs="+", choices=SETUP_MODES, default=["single-arm-learned-gripper"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of classifier and clone, and of random")
    parser.add_argument("--cameras", nargs="+", choices=("one", "all"), default=["one", "all"], help="of clone")
    parser.add_argument("--num_epochs", type=int, default=150, help="of classifier")
    parser.add_argument("--max_steps", type=int, default=2500, help="updates of clone")
    parser.add_argument("--output_dir", type=Path, default=Path("./runs/features"))
    return parser.parse_args(argv)


def place_frames(mode: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overhead frames uint8 (N, H, W, 3), each of an episode of its own, and objects' x, y in cm (N, 2 * arms)."""
    env, rng, frames, places = build.make_env("built-in", mode), np.random.default_rng(seed), [], []
    for i in range(count):
        obs, _ = env.reset(seed=100_000 * (seed + 1) + i)
        expert = env.unwrapped.scripted_expert(noise=0.2, seed=i)
        for _ in range(rng.integers(WAIT + 1)):
            obs, _, terminated, truncated, _ = env.step(expert.act())
            if terminated or truncated:
                break
        frames.append(obs["image"])
        places.append(100 * env.unwrapped.privileged_state()["object"][:, :2].ravel())
    env.close()
    return np.stack(frames), np.stack(places)


def place_row(backbone, mode: str) -> list[str]:
    """Mean distance in cm after each number of frames, and ms per frame."""
    frames, places = place_frames(mode, max(PLACE_FRAMES), seed=0)
    others, wanted = place_frames(mode, TEST_FRAMES, seed=1)
    x, _ = probes.features(backbone, frames)
    other_x, milliseconds = probes.features(backbone, others)
    row = []
    for count in PLACE_FRAMES:
        off = (probes.ridge(x[:count], places[:count], other_x) - wanted).reshape(TEST_FRAMES, -1, 2)
        row.append(probes.interval(np.linalg.norm(off, axis=2).mean(1)))
    return [*row, f"{milliseconds:.1f}"]


def run(script: str, *words) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *map(str, words)], cwd=ROOT, check=True)


def recording(folder: Path, mode: str, seed: int) -> Path:
    """The directory of a recording of the built-in task, made if it is not there."""
    data = (folder / f"data-{mode}-{seed}").resolve()
    if not (data / "demos.pkl").exists():
        run("record_demos.py", "--setup_mode", mode, "--seed", seed, "--output_dir", data, "--overwrite")
    return data


def run_name(name: str) -> str:
    """A backbone in the name of its runs: of a file with some of its content's hash, since many are `backbone.pt`."""
    path = Path(probes.as_option(name)).expanduser()
    if not path.is_file():
        return name
    return f"{Path(name).stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


def classifier_row(name: str, mode: str, seed: int, args: argparse.Namespace) -> list[str]:
    """AUC, recall at 1 % false positives, and both rates at the classifier's own threshold, on scenes of OTHER_SEED."""
    out = (args.output_dir / f"{mode}-classifier-{run_name(name)}-{seed}").resolve()
    if not (out / "validation.json").exists():
        data = recording(args.output_dir, mode, 0)
        run("train_classifier.py", "--success_dir", data / "success", "--failure_dir", data / "failure", "--image_keys",
            "image", "--output_dir", out, "--batch_size", 64, "--num_epochs", args.num_epochs, "--seed", seed,
            "--backbone", probes.as_option(name), "--overwrite")  # fmt: skip
    data = recording(args.output_dir, mode, OTHER_SEED)
    frames = read_classifier_frames(data / "success", data / "failure", ["image"])
    classifier, labels = RewardClassifier.from_checkpoint(out / "best.pt"), frames.labels
    parts = [frames.images["image"][i : i + 64] for i in range(0, len(labels), 64)]
    scores = np.concatenate([classifier.predict_success({"image": part})[0] for part in parts])
    success, called = labels == 1, scores > classifier.threshold
    low, high = wilson_interval(int(called[success].sum()), int(success.sum()))
    return [
        f"{probes.auc(scores, labels):.4f}",
        f"{probes.recall(scores, labels):.1%}",
        f"{called[success].mean():.1%} ({low:.0%} to {high:.0%})",
        f"{called[~success].mean():.1%}",
    ]


def clone_row(name: str, mode: str, cameras: str, seed: int, args: argparse.Namespace) -> list[str]:
    """Solved of 100 with its 95 % Wilson interval, and the minutes."""
    out = (args.output_dir / f"{mode}-clone-{cameras}-{run_name(name)}-{seed}").resolve()
    if not (out / "evaluation.json").exists():
        wrists = ["wrist"] if num_arms(mode) == 1 else ["wrist_left", "wrist_right"]
        keys = ["image", *(wrists if cameras == "all" else [])]
        run("train_offline.py", "--demo_paths", recording(args.output_dir, mode, 0) / "demos.pkl", "--image_keys",
            *keys, "--setup_mode", mode, "--algo", "bc", "--max_steps", args.max_steps, "--env", "built-in", "--seed",
            seed, "--save_dir", out, "--backbone", probes.as_option(name), "--overwrite")  # fmt: skip
    figures = json.loads((out / "evaluation.json").read_text())["deterministic"]
    low, high = wilson_interval(figures["successes"], figures["episodes"])
    return [f"{figures['successes']} of {figures['episodes']} ({low:.0%} to {high:.0%})"]


def table(head: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main(args: argparse.Namespace) -> None:
    backbones = probes.named_backbones(args.backbones, args.seeds[0])
    cases = [(mode, name) for mode in args.setup_modes for name in backbones]
    seeded = [(mode, name, seed) for mode, name in cases for seed in args.seeds]
    if "place" in args.parts:
        head = ["setup mode", "backbone", *(f"cm, {count} frames" for count in PLACE_FRAMES), "ms per frame"]
        table(head, [[mode, name, *place_row(backbones[name], mode)] for mode, name in cases])
    if "classifier" in args.parts:
        head = ["setup mode", "backbone", "seed", "AUC", "recall at 1 % false positives", "recall at its threshold",
                "false positives there"]  # fmt: skip
        table(head, [[*case, *classifier_row(case[1], case[0], case[2], args)] for case in seeded])
    if "clone" in args.parts:
        rows = [[mode, name, cameras, seed, *clone_row(name, mode, cameras, seed, args)]
                for mode, name, seed in seeded for cameras in args.cameras]  # fmt: skip
        table(["setup mode", "backbone", "cameras", "seed", "solved"], rows)


if __name__ == "__main__":
    main(parse_args())
