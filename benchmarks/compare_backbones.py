"""Which frozen backbone suits your own data: a minute, no training.

    python benchmarks/compare_backbones.py --demo_paths ./data/demos.pkl --image_keys image \\
        --setup_mode single-arm-learned-gripper --success_dir ./data/success --failure_dir ./data/failure
    python benchmarks/compare_backbones.py ... --backbones shipped ~/.serl/resnet10_params.pkl mine.pt

Three questions, each answered by ridge regression on the features and on episodes or scenes that were held out: how far
off is a clone of the demos (share of the actions' variance that stays unexplained), how well does it tell the recorded
state from the pictures alone (the same share), and how well does it order success and failure frames (AUC). It says
which backbone to take: the one that clones best, unless another tells success clearly better, and whether it beats a
random one at that. Without --backbones it compares random, shipped, and the published weights where they are.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import probes  # noqa: E402

from pytorch_serl.data.demos import SETUP_MODES, Demos, read_demos  # noqa: E402
from pytorch_serl.data.frames import ClassifierFrames, read_classifier_frames, split_by_group  # noqa: E402
from pytorch_serl.networks.resnet import ResNet10  # noqa: E402
from pytorch_serl.training.run import Parser, user_errors  # noqa: E402

FOLDS = 5
MOST_FRAMES = 2000  # of each camera; more make the regression slow and the answer hardly surer
CLEARLY = 0.02  # of AUC


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--demo_paths", nargs="+", required=True, help="as in train_offline.py")
    parser.add_argument("--image_keys", nargs="+", required=True, help="cameras to use")
    parser.add_argument("--setup_mode", required=True, choices=SETUP_MODES)
    parser.add_argument("--success_dir", help="as in train_classifier.py; with --failure_dir")
    parser.add_argument("--failure_dir", help="as in train_classifier.py; with --success_dir")
    parser.add_argument("--backbones", nargs="+", help="random, shipped, published or files")
    args = parser.parse_args(argv)
    if (args.success_dir is None) != (args.failure_dir is None):
        parser.error("--success_dir and --failure_dir belong together; give both or neither")
    return args


def all_features(backbone: ResNet10, images: dict[str, np.ndarray]) -> np.ndarray:
    """Every camera's features beside each other, (N, 8192 * cameras)."""
    return np.concatenate([probes.features(backbone, frames)[0] for frames in images.values()], 1)


def unexplained(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    """Share of y's variance that a ridge regression leaves on held-out groups, over the columns that change."""
    y = y[:, y.std(0) > 1e-6]
    y = (y - y.mean(0)) / y.std(0)
    names = np.random.default_rng(0).permutation(np.unique(groups))
    errors = np.empty_like(y)
    for fold in np.array_split(names, min(FOLDS, len(names))):
        held = np.isin(groups, fold)
        errors[held] = probes.ridge(x[~held], y[~held], x[held], groups[~held]) - y[held]
    return float((errors**2).mean())


def demo_figures(backbone: ResNet10, demos: Demos) -> dict[str, float]:
    """Cloning error, and the state's where there is one, on held-out episodes."""
    rows = np.arange(0, len(demos.transitions), -(-len(demos.transitions) // MOST_FRAMES))
    chosen = [demos.transitions[i] for i in rows]
    images = {key: np.stack([t["observations"][key] for t in chosen]) for key in demos.image_keys}
    x, groups = all_features(backbone, images), demos.episode_ids[rows]
    actions, figures = np.stack([t["actions"] for t in chosen]), {}
    if demos.state_dim:
        state = np.stack([t["observations"]["state"] for t in chosen]).astype(float)
        figures["state"] = unexplained(x, state, groups)
        scale = np.sqrt((x - x.mean(0)).var(0).sum() / max(1, demos.state_dim))  # as loud as all features together
        x = np.concatenate([x, (state - state.mean(0)) / (state.std(0) + 1e-6) * scale], 1)
    return {"cloning": unexplained(x, actions.astype(float), groups)} | figures


def classifier_figures(backbone: ResNet10, frames: ClassifierFrames) -> dict[str, float]:
    """AUC on held-out scenes."""
    train, val, _ = split_by_group(frames)
    step = -(-len(train) // MOST_FRAMES)
    train, labels = train[::step], frames.labels
    parts = [all_features(backbone, {k: v[rows] for k, v in frames.images.items()}) for rows in (train, val)]
    scores = probes.ridge(parts[0], labels[train, None].astype(float), parts[1], frames.files[train])[:, 0]
    return {"AUC": probes.auc(scores, labels[val])}


def best(figures: dict[str, dict[str, float]]) -> tuple[str, str]:
    """The backbone to take and why; the random one is there to be beaten, and is never named."""
    names = [name for name in figures if name != "random"] or list(figures)
    choice = min(names, key=lambda name: figures[name]["cloning"])
    sees = max(names, key=lambda name: figures[name].get("AUC", 0.0))
    auc = {name: row.get("AUC", 0.0) for name, row in figures.items()}
    if auc[sees] > auc[choice] + CLEARLY:
        if auc.get("random", 0.0) >= auc[sees]:
            return sees, "it tells success no better than a random one on these frames; record more"
        return sees, f"it tells success from failure clearly better than {choice}, which clones best"
    if choice != "random" and figures.get("random", {}).get("cloning", np.inf) <= figures[choice]["cloning"]:
        return choice, "its clone of the demos is no better than a random one's on held-out episodes; record more"
    return choice, "its clone of the demos is the nearest on held-out episodes"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with user_errors():
        demos = read_demos(args.demo_paths, args.image_keys, args.setup_mode)
        if len(np.unique(demos.episode_ids)) < 2:
            raise ValueError("one episode cannot be split into one to learn from and one to ask; record more")
        frames = None
        if args.success_dir:
            frames = read_classifier_frames(args.success_dir, args.failure_dir, args.image_keys)
        backbones = probes.named_backbones(args.backbones)
        figures = {}
        for name, backbone in backbones.items():
            figures[name] = demo_figures(backbone, demos) | (classifier_figures(backbone, frames) if frames else {})
            print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures[name].items()), flush=True)
    print("cloning and state: share of variance unexplained, lower is better; AUC: higher is better")
    choice, why = best(figures)
    print(f"take {choice} (--backbone {probes.as_option(choice)}): {why}")


if __name__ == "__main__":
    main()
