"""How good a reward classifier is on frames it was not trained on, and which threshold to use it with."""

import os
import warnings
from typing import Any

import numpy as np

from pytorch_serl.training.evaluate import wilson_interval
from pytorch_serl.utils.files import atomic_write

MIN_RECALL = 0.97  # of the validation successes, where the failures allow it
SHEET_COLUMNS = 4  # frames per kind of mistake in the contact sheet


def choose_threshold(prob: np.ndarray, labels: np.ndarray, max_fpr: float, lowest: float = 0.5) -> float:
    """The highest threshold that MIN_RECALL of the successes pass, or where that is not enough, a higher one.

    Enough is `lowest`, and that at most `max_fpr` of unseen failures are expected to pass. A false success ends the
    robot's episode with a reward that it did not earn, and the policy learns to seek it; a missed success costs a few
    steps. And a policy comes to see failures that nobody recorded, so recall beyond MIN_RECALL is spent on a distance
    from them. One more failure, drawn as these n were, is above the k-th largest of them with chance k / (n + 1) (the
    rank argument of conformal prediction, Vovk et al. 2005): k - 1 of them may pass, not `max_fpr` * n, and none where
    n is below 1 / `max_fpr`. A threshold lies between two probabilities, so that rounding does not decide.

    Args:
        prob: (N,) predicted probability of success. labels: (N,) 1 success, 0 failure.
    """
    failures, successes = np.sort(prob[labels == 0])[::-1], np.sort(prob[labels == 1])
    allowed = max(0, int(max_fpr * (len(failures) + 1)) - 1)  # false positives that may remain
    needed = failures[allowed] if allowed < len(failures) else 0.0
    above = min(prob[prob > needed], default=1.0)
    threshold = float(needed + above) / 2 if needed > lowest else lowest
    passing = successes[int((1 - MIN_RECALL) * len(successes))]
    below = max(prob[prob < passing], default=0.0)
    halfway = 1 - np.sqrt((1 - passing) * (1 - below))  # by what is missing to 1
    return max(threshold, float(min(halfway, np.nextafter(passing, 0.0))))


def area_under_curve(prob: np.ndarray, labels: np.ndarray) -> float:
    """ROC AUC: the chance that a success frame scores above a failure frame, ties counting half."""
    _, inverse, counts = np.unique(prob, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # (N,) mean rank, from 1
    successes = int(labels.sum())
    failures = len(labels) - successes
    return float((ranks[labels == 1].sum() - successes * (successes + 1) / 2) / (successes * failures))


def confusion(prob: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Counts and rates of the decision prob > threshold."""
    called = prob > threshold
    tp, fp = int((called & (labels == 1)).sum()), int((called & (labels == 0)).sum())
    fn, tn = int((~called & (labels == 1)).sum()), int((~called & (labels == 0)).sum())
    return {
        "threshold": float(threshold),
        "true_positives": tp,
        "false_positives": fp,
        "true_negatives": tn,
        "false_negatives": fn,
        "accuracy": (tp + tn) / len(labels),
        "false_positive_rate": fp / (fp + tn),
        "false_positive_rate_upper_95": float(wilson_interval(fp, fp + tn)[1]),
        "recall": tp / (tp + fn),
    }


def balanced_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Sigmoid cross-entropy in nats, both classes weighing half as in the training batches; logits (N,) float64."""
    loss = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))  # (N,)
    return float((loss[labels == 1].mean() + loss[labels == 0].mean()) / 2)


def scaled_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """`balanced_loss` of the logits shrunk by the factor that suits the frames best; at most ln 2, that of a guess.

    A head becomes overconfident while it still learns to tell the classes apart. Its plain loss then rises from the
    first epochs on and would choose one that has hardly been trained; of an over-confident answer a threshold loses
    nothing.
    """
    return min(balanced_loss(scale * logits, labels) for scale in np.geomspace(1 / 256, 1, 33))


def validation_report(logits: np.ndarray, labels: np.ndarray, max_fpr: float) -> dict[str, Any]:
    """Figures on the validation frames, at 0.5 and at the threshold chosen for `max_fpr`; logits (N,) float64.

    `informative` says whether they show that the classes are told apart at all: the AUC's lower 95 % bound is above
    that of a guess, 0.5. Where they do not, the threshold means nothing, but still lets no more failures pass.
    """
    prob = 1.0 / (1.0 + np.exp(-logits))
    auc, fewer = area_under_curve(logits, labels), int(np.bincount(labels, minlength=2).min())
    lower = float(wilson_interval(auc * fewer, fewer)[0])  # as of so many comparisons: frames of a scene are alike
    return {
        "success_frames": int(labels.sum()),
        "failure_frames": int((1 - labels).sum()),
        "loss": balanced_loss(logits, labels),
        "scaled_loss": scaled_loss(logits, labels),
        "auc": auc,
        "auc_lower_95": lower,
        "informative": lower > 0.5,
        "max_fpr": max_fpr,
        "at_half": confusion(prob, labels, 0.5),
        "at_threshold": confusion(prob, labels, choose_threshold(prob, labels, max_fpr)),
    }


def describe(report: dict[str, Any]) -> str:
    """The report in a few lines for the terminal."""
    lines = [
        f"validation: {report['success_frames']} success and {report['failure_frames']} failure frames, loss "
        f"{report['loss']:.4f}, AUC {report['auc']:.4f}"
    ]
    for name in ("at_half", "at_threshold"):
        c = report[name]
        lines.append(
            f"  at {c['threshold']:.4f}: accuracy {c['accuracy']:.2%}, false-positive rate "
            f"{c['false_positive_rate']:.2%} ({c['false_positives']} of {report['failure_frames']}, at most "
            f"{c['false_positive_rate_upper_95']:.1%} with 95 % confidence), recall {c['recall']:.2%} "
            f"({c['true_positives']} of {report['success_frames']})"
        )
    chosen = report["at_threshold"]
    if not report.get("informative", True):
        lines.append(
            f"  warning: these frames do not show that it tells success from failure: AUC {report['auc']:.2f}, at "
            f"least {report['auc_lower_95']:.2f} with 95 % confidence, and 0.5 is a guess. So the threshold "
            f"{chosen['threshold']:.4f} says little about other frames; do not let it reward a robot. Look at how the "
            "frames were split, record more scenes, or use better features (--backbone, --train_backbone)"
        )
    elif chosen["recall"] < 0.5:
        lines.append(
            f"  warning: to keep false positives at {report['max_fpr']:.1%} the threshold misses most successes; "
            "record more failure frames that look like success, or use better features (--backbone, --train_backbone)"
        )
    count = report["failure_frames"]
    if report["max_fpr"] == 0:
        lines.append(f"  note: no number of frames shows a rate of 0; the threshold is above all {count} failures")
    elif (count + 1) * report["max_fpr"] < 1:
        lines.append(
            f"  note: {count} failure frames cannot show a rate of {report['max_fpr']:.1%}; hold "
            f"back at least {int(np.ceil(1 / report['max_fpr'])) - 1}"
        )
    return "\n".join(lines)


def describe_course(train_loss: list[float], val_loss: list[float], best_epoch: int) -> str:
    """What the losses per epoch say against the weights that were kept; empty where they say nothing."""
    if best_epoch != 1 or len(val_loss) < 2:
        return ""
    return (
        f"warning: of {len(val_loss)} epochs the first is kept, and may hardly have been trained: the validation loss "
        f"was {val_loss[0]:.2f} after it and is {val_loss[-1]:.2f} now, while the training loss went from "
        f"{train_loss[0]:.2f} to {train_loss[-1]:.2f}. Validation contradicts training where scenes lie on both sides "
        "of the split, and where training scenes are learned by heart: look at the split above, record more scenes, or "
        "use better features (--backbone, --train_backbone)"
    )


def mistakes_sheet(
    path: str | os.PathLike,
    images: dict[str, np.ndarray],
    prob: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    threshold: float,
) -> None:
    """Draw the failure frames scored highest and the success frames scored lowest into a PNG, mistakes framed in red.

    Args:
        images: camera -> uint8 (N, H, W, 3); cameras are drawn side by side.
        names: (N,) a caption per frame.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warnings.warn(f"matplotlib is not installed: no {path} (pip install matplotlib)", stacklevel=2)
        return
    rows = [
        np.flatnonzero(labels == 0)[np.argsort(-prob[labels == 0], kind="stable")],
        np.flatnonzero(labels == 1)[np.argsort(prob[labels == 1], kind="stable")],
    ]
    width = max(x.shape[2] for x in images.values()) + 2  # pixels; narrower cameras are padded
    height = max(x.shape[1] for x in images.values())
    figure = Figure(figsize=(2.6 * SHEET_COLUMNS * min(len(images), 2), 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"validation: failures scored highest, successes scored lowest (threshold {threshold:.3f})")
    axes = figure.subplots(2, SHEET_COLUMNS)
    for line, order, label in zip(axes, rows, (0, 1), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, row in zip(line, order, strict=False):
            strip = [
                np.pad(x[row], ((0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0))) for x in images.values()
            ]
            axis.imshow(np.concatenate(strip, 1))
            wrong = (prob[row] > threshold) != label
            name = names[row].encode(errors="replace").decode()  # a file's, which need not be text
            axis.set_title(
                f"{name}\n{'success' if label else 'FAILURE'}, p {prob[row]:.3f}",
                fontsize=7,
                color="red" if wrong else "black",
                parse_math=False,
            )
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
