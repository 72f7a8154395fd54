"""Train a reward classifier that tells success from failure by the camera images.

    python train_classifier.py --success_dir ./data/success --failure_dir ./data/failure --image_keys image \
        --output_dir ./classifier_ckpt --batch_size 64 --num_epochs 150
    python train_classifier.py --success_dir ./data/success --failure_dir ./data/failure --image_keys image \
        --output_dir ./classifier_ckpt --train_backbone        (trains the ResNet-10 too; wants a GPU)

Writes into --output_dir: best.pt (use it: RewardClassifier.from_checkpoint), last.pt (for --resume), settings.json,
validation.json, metrics.jsonl, learning_curve.png, mistakes.png, TensorBoard events, and with --train_backbone
backbone.pt, which --backbone of the other scripts takes.
Reference: HIL-SERL (arXiv 2410.21845) examples/train_reward_classifier.py, which has no validation and calls one
gradient step an epoch; here an epoch is one pass over the larger class of the training frames.
"""

import copy
import math
import shlex
import sys
import time
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from pytorch_serl.data.frames import read_classifier_frames, split_by_group
from pytorch_serl.networks.augment import crop_offsets, random_crop
from pytorch_serl.networks.classifier import SETTINGS, RewardClassifier
from pytorch_serl.networks.resnet import IMAGE_SIZE
from pytorch_serl.scaling import torchrun
from pytorch_serl.training.arguments import fixed_settings
from pytorch_serl.training.backbone import find_backbone, save_backbone
from pytorch_serl.training.classifier_report import (
    MIN_RECALL,
    describe,
    describe_course,
    mistakes_sheet,
    validation_report,
)
from pytorch_serl.training.run import (
    CURVE,
    LAST,
    MetricLogger,
    Parser,
    check_run_dir,
    hold_run_dir,
    learning_curve,
    prepare_run_dir,
    print_settings,
    rng_state,
    run_script,
    save_json,
    save_settings,
    seed_all,
    set_rng_state,
    uninterrupted,
    user_errors,
)
from pytorch_serl.utils.device import make_adam, pick_device
from pytorch_serl.utils.files import load_checkpoint, save_checkpoint
from pytorch_serl.utils.signals import catch_stops

BEST = "best.pt"
OWN_FILES = ("validation.json", "mistakes.png", "backbone.pt")  # beside those that every run writes
CHUNK = 64  # frames per pass of the frozen backbone
# what a resumed run may have otherwise, beside what every script's may
MAY_CHANGE = ("success_dir", "failure_dir", "output_dir", "save_every", "num_epochs", "patience")


def parse_args(argv=None):
    parser = Parser(__doc__.split("\n")[0])
    data = parser.add_argument_group("data")
    data.add_argument("--success_dir", required=True, help="directory of pickles with success frames")
    data.add_argument("--failure_dir", required=True, help="directory of pickles with failure frames")
    data.add_argument("--image_keys", nargs="+", required=True, help="cameras to look at, one or several")
    data.add_argument("--val_fraction", type=float, default=0.2, help="share of each class held back, in whole scenes")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", required=True, help="directory that the run is written to")
    run.add_argument("--resume", action="store_true", help="continue the run in --output_dir where it stopped")
    run.add_argument("--overwrite", action="store_true", help="delete the run in --output_dir and start anew")
    run.add_argument("--save_every", type=int, default=10, help="epochs between two writes of last.pt")
    run.add_argument("--seed", type=int, default=0, help="of split, initial weights, crops and batches")
    run.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu")
    train = parser.add_argument_group("training")
    train.add_argument("--batch_size", type=int, default=64, help="frames, half of each class (even; original: 256)")
    train.add_argument("--num_epochs", type=int, default=150, help="passes over the larger class of training frames")
    train.add_argument(
        "--patience", type=int, default=10, help="stop after so many epochs without a better val/scaled_loss"
    )
    train.add_argument("--lr", type=float, default=3e-4, help="Adam's; 1e-4 in the original's code, 3e-4 in the paper")
    train.add_argument("--dropout", type=float, default=0.1, help="rate (original: 0.1)")
    train.add_argument(
        "--crop_views",
        type=int,
        default=2,
        help="frozen backbone: crops of each frame whose features are computed once, the frame as it is included",
    )
    train.add_argument(
        "--max_fpr",
        type=float,
        default=0.01,
        help="the threshold saved is one that the validation failures let expect to call at most this share of other "
        f"failures a success; it is as high as {MIN_RECALL * 100:.0f} %% of the validation successes allow, or higher "
        "where it has to be",
    )
    back = parser.add_argument_group("backbone")
    back.add_argument(
        "--backbone",
        help="ResNet-10 to start from: HIL-SERL's resnet10_params.pkl, a backbone.pt, or random (for comparisons); "
        "None: ~/.serl/resnet10_params.pkl where it exists, else the shipped one (docs/backbone.md)",
    )
    back.add_argument("--download_backbone", action="store_true", help="fetch the published ResNet-10 first (21 MB)")
    back.add_argument(
        "--train_backbone", action="store_true", help="train the ResNet-10 too, one for all cameras; slow on a CPU"
    )
    return parser.parse_args(argv)


def check_args(args):
    """Raise ValueError for a number that cannot be meant."""
    limits = {
        "batch_size": (args.batch_size >= 2 and args.batch_size % 2 == 0, "an even number, half of each class"),
        "num_epochs": (args.num_epochs >= 1, "1 or more"),
        "patience": (args.patience >= 1, "1 or more epochs"),
        "save_every": (args.save_every >= 1, "1 or more epochs"),
        "crop_views": (args.crop_views >= 1, "1 or more"),
        "lr": (0 < args.lr < 1, "a learning rate between 0 and 1"),
        "dropout": (0 <= args.dropout < 1, "a rate from 0 to below 1"),
        "val_fraction": (0 < args.val_fraction < 1, "a share between 0 and 1"),
        "max_fpr": (0 <= args.max_fpr < 1, "a rate from 0 to below 1"),
        "seed": (0 <= args.seed < 2**63, "0 to 2^63 - 1"),
    }
    for name, (fine, wanted) in limits.items():
        if not fine:
            raise ValueError(f"--{name} is {getattr(args, name)}; wanted {wanted}")
    if args.backbone is not None and args.download_backbone:
        raise ValueError(
            f"--download_backbone fetches the published weights, --backbone says {args.backbone}; give one"
        )


@dataclass
class Part:
    """The training or the validation frames: rows of all frames, their labels (N,), and their frozen features."""

    images: dict[str, np.ndarray]  # all frames, camera -> uint8 (all, H, W, 3)
    rows: np.ndarray
    labels: np.ndarray
    maps: dict[str, torch.Tensor] | None = None  # camera -> (views, N, *feature_shape); None with a trained backbone

    def load(self, index, device):
        """Images of the part's frames `index` (an array or a slice) on the device."""
        return {k: torch.from_numpy(x[self.rows[index]]).to(device) for k, x in self.images.items()}


@torch.no_grad()
def add_frozen_features(classifier, part, views):
    """Run the frozen backbone once on every frame: view 0 is the frame as it is, the others are random crops.

    Several views are kept in float16, a single one (validation) in float32.
    """
    dtype, rows, device = torch.float32 if views == 1 else torch.float16, len(part.rows), classifier.device
    shape = (views, rows, *classifier.feature_shape)
    part.maps = {k: torch.empty(shape, dtype=dtype, device=device) for k in part.images}
    chunks = [(view, slice(start, start + CHUNK)) for view in range(views) for start in range(0, rows, CHUNK)]
    for view, chunk in tqdm(chunks, desc="frozen features", unit="batch"):
        images = part.load(chunk, device)
        if view > 0:
            offsets = crop_offsets(len(part.rows[chunk]), device)
            images = {k: random_crop(x, offsets, IMAGE_SIZE) for k, x in images.items()}
        for key, maps in classifier.features(images).items():
            part.maps[key][view, chunk] = maps


def balanced_batches(labels, batch_size):
    """Row indices (B,) of one epoch's batches, success first; the smaller class is repeated, no batch is smaller."""
    half, classes = batch_size // 2, [torch.from_numpy(np.flatnonzero(labels == label)) for label in (1, 0)]
    steps = math.ceil(max(map(len, classes)) / half)
    streams = []
    for rows in classes:
        passes = [rows[torch.randperm(len(rows))] for _ in range(math.ceil(steps * half / len(rows)))]
        streams.append(torch.cat(passes)[: steps * half].view(steps, half))
    return torch.cat(streams, 1)  # (steps, B)


def train_step(classifier, optimizer, batch):
    """One gradient step on `maps` (B, *feature_shape) or `images` (B, H, W, 3) per camera and `targets` (B,)."""
    parameters, targets = classifier.trainable_parameters(), batch["targets"]
    if "maps" in batch:
        logits = classifier.logits({k: x.float() for k, x in batch["maps"].items()})
    else:
        logits = classifier(batch["images"])
    loss = F.binary_cross_entropy_with_logits(logits, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    torchrun.average([p.grad for p in parameters if p.grad is not None])
    optimizer.step()
    return {"loss": loss.detach(), "accuracy": ((logits > 0) == (targets > 0.5)).float().mean()}


def shared_step(classifier, optimizer):
    """`train_step`, taken by all processes of torchrun together."""

    def state():
        return {"classifier": classifier.checkpoint(), "optimizer": optimizer.state_dict()}

    return torchrun.SharedStep(partial(train_step, classifier, optimizer), [classifier], state)


def make_shared_step(state, device):
    """`shared_step` in the other processes, from the first one's state."""
    content = state["classifier"]
    classifier = RewardClassifier(**{key: content[key] for key in SETTINGS}, device=device)
    classifier.load_checkpoint(content)
    optimizer = make_adam(classifier.trainable_parameters(), lr=0.0)  # the state brings its own
    optimizer.load_state_dict(state["optimizer"])
    return shared_step(classifier.train(), optimizer)


def train_epoch(classifier, step, part, batch_size):
    """One pass over the larger class; returns mean loss and accuracy, both under dropout and crops."""
    classifier.train()
    device = classifier.device
    targets = torch.tensor([1.0, 0.0], dtype=torch.float32, device=device).repeat_interleave(batch_size // 2)  # (B,)
    totals = torch.zeros(2, device=device)
    batches = balanced_batches(part.labels, batch_size)
    for index in tqdm(batches, desc="  batches", leave=False, disable=part.maps is not None):
        if part.maps is not None:
            views = torch.randint(len(part.maps[classifier.image_keys[0]]), (batch_size,)).to(device)
            index = index.to(device)
            inputs = {"maps": {k: maps[views, index] for k, maps in part.maps.items()}}
        else:
            offsets = crop_offsets(batch_size, device)
            images = part.load(index.numpy(), device)
            inputs = {"images": {k: random_crop(x, offsets, IMAGE_SIZE) for k, x in images.items()}}
        with uninterrupted():
            info = step(inputs | {"targets": targets})
        totals += torch.stack([info["loss"], info["accuracy"]])
    loss, accuracy = (totals / len(batches)).tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the training loss is {loss}; try a lower --lr")
    return loss, accuracy


@torch.no_grad()
def validation_logits(classifier, part):
    """Logits (N,) float64 of the part's frames, without dropout and crops."""
    logits = []
    for start in range(0, len(part.rows), CHUNK):
        chunk = slice(start, start + CHUNK)
        if part.maps is not None:
            maps = {k: maps[0, chunk] for k, maps in part.maps.items()}
            logits.append(classifier.logits(maps, dropout=False))
        else:
            logits.append(classifier(part.load(chunk, classifier.device), dropout=False))
    return torch.cat(logits).cpu().double().numpy()


def fingerprint(frames):
    """A number that changes with the frames, to whose rows a resumed run's split refers."""
    code = zlib.crc32(frames.labels.tobytes())
    for key in frames.images:
        for image in frames.images[key]:
            code = zlib.crc32(image, code)
    return code


def read_resume(out, args, data_code):
    """The content of last.pt, checked against this run's settings and data."""
    path = out / LAST
    content = load_checkpoint(path)
    if not {"classifier", "optimizer", "rng", "progress", "settings", "data"} <= content.keys():
        raise ValueError(f"{path}: not written by train_classifier.py (it has {sorted(map(str, content))[:6]})")
    then = content["settings"]
    pairs = [(name, then[name], now) for name, now in fixed_settings(args, MAY_CHANGE).items() if name in then]
    changed = [f"--{name} was {before}, is {now}" for name, before, now in pairs if before != now]
    if changed:
        raise ValueError(f"{path} belongs to other settings: " + "; ".join(changed) + "; resume with the same ones")
    if content["data"] != data_code:
        raise ValueError(f"{path} was trained on other frames; start anew with --overwrite or another --output_dir")
    if "split" not in content:
        raise ValueError(
            f"{path} was written by an earlier version, which held other frames back: it split success and failure "
            f"independently. It cannot go on with today's split; {BEST} can be used as before, and to train start anew "
            "with --overwrite or another --output_dir"
        )
    if content["progress"]["best_epoch"] and not (out / BEST).is_file():
        raise ValueError(f"{out / BEST} is missing beside {path}; put it back or start anew with --overwrite")
    return content


def split_frames(frames, args, resumed):
    """The training and the validation part, and what last.pt keeps of the split; a resumed run keeps the one it had."""
    if resumed:
        split = resumed["split"]
        val_rows = split["val_rows"].numpy()
        train_rows = np.setdiff1d(np.arange(len(frames.labels)), val_rows)
    else:
        train_rows, val_rows, text = split_by_group(frames, args.val_fraction, args.seed)
        split = {"val_rows": torch.from_numpy(val_rows), "text": text}
    train, val = (Part(frames.images, rows, frames.labels[rows]) for rows in (train_rows, val_rows))
    return train, val, split


def draw_curves(path, logger):
    names = {
        "cross-entropy (nats)": ("train/loss", "val/loss", "val/scaled_loss"),
        "accuracy at 0.5": ("train/accuracy", "val/accuracy"),
    }
    panels = {ylabel: {name: logger.series(name) for name in lines} for ylabel, lines in names.items()}
    learning_curve(path, panels, xlabel="epoch")


def finish(out, best, val, frames):
    """Figures, worst frames and, where it was trained, the backbone of the best classifier."""
    save_json(out / "validation.json", best.validation)
    prob = 1 / (1 + np.exp(-validation_logits(best, val)))
    first = np.searchsorted(frames.files, np.arange(len(frames.file_names)))  # a file's first row; files are in order
    files = frames.files[val.rows]
    names = [f"{Path(frames.file_names[f]).name} #{row - first[f]}" for row, f in zip(val.rows, files, strict=True)]
    images = {k: x[val.rows] for k, x in val.images.items()}
    mistakes_sheet(out / "mistakes.png", images, prob, val.labels, names, best.threshold)
    if best.trainable_backbone:
        save_backbone(out / "backbone.pt", best.backbone, "trained by train_classifier.py on the user's frames")
        print(f"backbone for the agents: --backbone {out / 'backbone.pt'}")
    print(describe(best.validation))


def main(args):
    with hold_run_dir(args.output_dir):
        run(args)


def run(args):
    out = Path(args.output_dir)
    with user_errors():
        # settings, device, seeds
        print_settings(vars(args))
        check_args(args)
        check_run_dir(out, args.resume, args.overwrite, OWN_FILES)
        device = pick_device(args.device)
        torchrun.check_options(device, args.batch_size)
        torch.backends.cudnn.deterministic = True  # so that a resumed run repeats an uninterrupted one on CUDA, too
        seed_all(args.seed)

        # data
        frames = read_classifier_frames(args.success_dir, args.failure_dir, args.image_keys)
        print(frames.summary())
        data_code = fingerprint(frames)
        resumed = read_resume(out, args, data_code) if args.resume else None
        train, val, split = split_frames(frames, args, resumed)
        print(split["text"])

        # networks and optimiser
        backbone, line = (None, f"backbone: as in {out / LAST}")
        if not resumed:
            backbone, line = find_backbone(args.backbone, download=args.download_backbone)
        print(line)
        classifier = RewardClassifier(
            args.image_keys,
            backbone=backbone,
            dropout=args.dropout,
            trainable_backbone=args.train_backbone,
            device=device,
        )
        if resumed:
            classifier.load_checkpoint(resumed["classifier"], str(out / LAST))
        prepare_run_dir(out, args.resume, args.overwrite, OWN_FILES)
    classifier.image_shapes = {k: x.shape[1:3] for k, x in frames.images.items()}
    optimizer = make_adam(classifier.trainable_parameters(), args.lr)
    step = shared_step(classifier, optimizer)
    parts = (classifier.trainable_parameters(), classifier.parameters())
    trainable, everything = (sum(p.numel() for p in ps) for ps in parts)
    print(f"device {device}; {trainable:,} trainable and {everything - trainable:,} frozen parameters")

    seed_all(args.seed)  # the same crops in a resumed run, whatever the initialisation above drew
    if not args.train_backbone:
        started = time.perf_counter()
        add_frozen_features(classifier, train, args.crop_views)
        add_frozen_features(classifier, val, 1)
        gb = sum(maps.nbytes for part in (train, val) for maps in part.maps.values()) / 1e9
        print(
            f"the backbone is frozen: the features of {args.crop_views} crops per frame were computed once "
            f"({time.perf_counter() - started:.1f} s, {gb:.2f} GB), and the epochs train the heads on them"
        )

    # resume
    progress = {"epoch": 0, "best_epoch": 0, "best_loss": math.inf}
    if resumed:
        optimizer.load_state_dict(resumed["optimizer"])
        progress = resumed["progress"]
        set_rng_state(resumed["rng"])
        print(f"resumed after epoch {progress['epoch']}")
    save_settings(out, vars(args))
    with user_errors():
        logger = MetricLogger(out, progress["epoch"] if resumed else None)

    def snapshot():
        return copy.deepcopy(
            {
                "classifier": classifier.checkpoint(),
                "optimizer": optimizer.state_dict(),
                "rng": rng_state(),
                "progress": progress,
                "settings": vars(args),
                "data": data_code,
                "split": split,
            }
        )

    # the loop
    state = snapshot()  # of the end of the last whole epoch; an interrupted epoch is run again
    catch_stops()
    bar = tqdm(total=args.num_epochs, initial=progress["epoch"], desc="epochs")
    interrupted = False
    try:
        while progress["epoch"] < args.num_epochs and progress["epoch"] - progress["best_epoch"] < args.patience:
            loss, accuracy = train_epoch(classifier, step, train, args.batch_size)
            report = validation_report(validation_logits(classifier, val), val.labels, args.max_fpr)
            val_accuracy, val_fpr = (report["at_half"][name] for name in ("accuracy", "false_positive_rate"))
            progress["epoch"] += 1
            if report["scaled_loss"] < progress["best_loss"]:
                progress |= {"best_epoch": progress["epoch"], "best_loss": report["scaled_loss"]}
                classifier.threshold = report["at_threshold"]["threshold"]
                classifier.validation = report | {"epoch": progress["epoch"], "split": split["text"]}
                classifier.save(out / BEST)
            logger.log(
                progress["epoch"],
                {
                    "train/loss": loss,
                    "train/accuracy": accuracy,
                    "val/loss": report["loss"],
                    "val/scaled_loss": report["scaled_loss"],
                    "val/auc": report["auc"],
                    "val/accuracy": val_accuracy,
                    "val/false_positive_rate": val_fpr,
                },
            )
            state = snapshot()
            if progress["epoch"] % args.save_every == 0:
                step.check()
                save_checkpoint(out / LAST, state)
            bar.set_postfix_str(f"loss {loss:.4f}, acc {accuracy:.3f}, val {report['loss']:.4f}, {val_accuracy:.3f}")
            bar.update()
    except KeyboardInterrupt:
        interrupted = True
    with uninterrupted():
        step.check()
        save_checkpoint(out / LAST, state)
    bar.close()
    logger.close()
    draw_curves(out / CURVE, logger)
    if interrupted:
        print(f"interrupted: epoch {state['progress']['epoch']} is saved in {out / LAST}; continue with --resume")
        sys.exit(130)

    # summary
    if progress["epoch"] < args.num_epochs:
        print(f"stopped early: no better val/scaled_loss for {args.patience} epochs")
    best = RewardClassifier.from_checkpoint(out / BEST, device)
    finish(out, best, replace(val, maps=None), frames)
    if text := describe_course(logger.series("train/loss")[1], logger.series("val/loss")[1], progress["best_epoch"]):
        print(text)
    print(f"best classifier: {out / BEST} (epoch {progress['best_epoch']}, threshold {best.threshold:.4f})")
    print(f"to reward by it: train_hybrid.py ... --reward classifier --classifier_ckpt {shlex.quote(str(out / BEST))}")


if __name__ == "__main__":
    run_script(lambda: torchrun.run(lambda: main(parse_args()), make_shared_step))
