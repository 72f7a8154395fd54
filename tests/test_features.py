"""The benchmarks of backbones: their figures against plain arithmetic, and both commands on tiny data."""

import pickle
import sys

import numpy as np
import pytest
import torch

from pytorch_serl.networks import waypoint
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.training.backbone import save_backbone
from tests.runs import FIXED, ROOT, make_demos, refused

sys.path.insert(0, str(ROOT / "benchmarks"))

import compare_backbones  # noqa: E402
import features  # noqa: E402
import probes  # noqa: E402

import record_demos  # noqa: E402


def test_auc_and_recall_by_counting():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 20, 300) + 0.0, rng.integers(0, 2, 300)
    success, failure = scores[labels == 1], scores[labels == 0]
    pairs = (success[:, None] > failure).mean() + (success[:, None] == failure).mean() / 2
    assert probes.auc(scores, labels) == pytest.approx(pairs)
    for share in (0.0, 0.01, 0.3):
        best = max((success > t).mean() for t in {-1.0, *scores} if (failure > t).mean() <= share)
        assert probes.recall(scores, labels, share) == pytest.approx(best)


def test_ridge_leaves_whole_groups_out(monkeypatch):
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(40, 60)), np.repeat(np.arange(10), 4)
    y = x[:, :2] + rng.normal(size=(40, 2))

    def by_hand(x, y, others, penalty):
        x_mean, y_mean = x.mean(0), y.mean(0)
        gram = (x - x_mean).T @ (x - x_mean) + penalty * np.eye(x.shape[1])
        return (others - x_mean) @ np.linalg.solve(gram, (x - x_mean).T @ (y - y_mean)) + y_mean

    centred = x - x.mean(0)
    scale = np.trace(centred @ centred.T) / len(x)
    errors = []
    for penalty in scale * waypoint.PENALTIES:  # as one would write it, the mean kept from all rows as the ridge does
        left = []
        for group in range(10):
            held = groups == group
            gram = centred[~held].T @ centred[~held] + penalty * np.eye(60)
            weights = np.linalg.solve(gram, centred[~held].T @ (y - y.mean(0))[~held])
            left.append(centred[held] @ weights - (y - y.mean(0))[held])
        errors.append((np.concatenate(left) ** 2).mean())
    others = rng.normal(size=(5, 60))
    wanted = by_hand(x, y, others, scale * waypoint.PENALTIES[int(np.argmin(errors))])
    assert np.allclose(probes.ridge(x, y, others, groups), wanted)


@pytest.mark.parametrize("seed", [0, features.OTHER_SEED])
def test_recordings_are_made_by_a_command_that_exists(seed, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(features, "run", lambda script, *words: calls.append((script, [str(w) for w in words])))
    data = features.recording(tmp_path, FIXED, seed)
    [(script, words)] = calls
    assert script == "record_demos.py"
    args = record_demos.parse_args(words)
    assert (args.seed, args.setup_mode, args.output_dir) == (seed, FIXED, str(data)) and not args.image_keys


def test_runs_of_two_files_of_one_name_are_told_apart(tmp_path):
    """The second's figures were read from the first's run."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "backbone.pt").write_text(name)
    first, second = (features.run_name(str(tmp_path / name / "backbone.pt")) for name in ("a", "b"))
    assert first != second and first.startswith("backbone-") and features.run_name("random") == "random"


def test_places_are_where_the_task_says(monkeypatch):
    frames, places = features.place_frames(FIXED, 3, seed=0)
    assert frames.shape == (3, 128, 128, 3) and places.shape == (3, 2) and np.abs(places).max() <= 12
    again, _ = features.place_frames(FIXED, 3, seed=0)
    other, _ = features.place_frames(FIXED, 3, seed=1)
    assert np.array_equal(frames, again) and not np.array_equal(frames, other)


def test_the_table(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(features, "PLACE_FRAMES", (3, 5))
    monkeypatch.setattr(features, "TEST_FRAMES", 4)
    save_backbone(tmp_path / "mine.pt", ResNet10(), "mine")
    features.main(features.parse_args(["--backbones", "random", str(tmp_path / "mine.pt"), "--setup_modes", FIXED]))
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0].count("|") == lines[-1].count("|") == 6 and "mine.pt" in lines[-1] and "±" in lines[-1]


def classifier_dirs(folder, separable):
    """Two files of each class; bright frames are successes where `separable`."""
    rng, words = np.random.default_rng(0), []
    for label, name in enumerate(("failure", "success")):
        (folder / name).mkdir()
        for i in range(4):
            bright = 120 * label * separable
            images = rng.integers(bright, bright + 130, (4, 32, 32, 3), np.uint8)
            items = [{"observations": {"image": image}, "labels": label, "scene": i} for image in images]
            (folder / name / f"{i}.pkl").write_bytes(pickle.dumps(items))
        words += [f"--{name}_dir", str(folder / name)]
    return words


def test_compare_backbones_says_which_to_take(tmp_path, capsys):
    demos = make_demos(tmp_path / "demos.pkl")
    words = ["--demo_paths", str(demos), "--image_keys", "image", "--setup_mode", FIXED]
    words += classifier_dirs(tmp_path, separable=True)
    save_backbone(tmp_path / "mine.pt", ResNet10(), "mine")
    compare_backbones.main([*words, "--backbones", "random", str(tmp_path / "mine.pt")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("random: cloning ") and "state" in lines[0] and "AUC 1.0000" in lines[0]
    assert lines[-1].startswith(f"take {tmp_path / 'mine.pt'} (--backbone ")
    refused(compare_backbones, capsys, "belong together", words[:-2])


@pytest.mark.parametrize(
    ("figures", "wanted"),
    [
        ({"random": (0.1, 0.9), "a": (0.3, 0.9), "b": (0.4, 0.91)}, "a"),
        ({"random": (0.1, 0.9), "a": (0.3, 0.9), "b": (0.4, 0.95)}, "b"),
        ({"random": (0.1, 0.9)}, "random"),
    ],
)
def test_choice(figures, wanted):
    rows = {name: {"cloning": cloning, "AUC": auc} for name, (cloning, auc) in figures.items()}
    assert compare_backbones.best(rows)[0] == wanted
    assert compare_backbones.best({name: {"cloning": row["cloning"]} for name, row in rows.items()})[0] in (
        "a",
        "random",
    )


@pytest.mark.parametrize(("random", "said"), [(0.3, "no better than a random one's"), (0.31, "is the nearest")])
def test_a_choice_that_does_not_beat_chance_says_so(random, said):
    figures = {"random": {"cloning": random}, "a": {"cloning": 0.3}, "b": {"cloning": 0.4}}
    choice, why = compare_backbones.best(figures)
    assert choice == "a" and said in why and ("record more" in why) == (random == 0.3)


def test_unexplained_is_one_for_noise_and_nothing_for_a_linear_function():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(200, 10)), np.repeat(np.arange(20), 10)
    still = np.full((200, 1), 3.0)
    assert compare_backbones.unexplained(x, np.concatenate([x @ rng.normal(size=(10, 3)), still], 1), groups) < 0.01
    assert 0.9 < compare_backbones.unexplained(x, rng.normal(size=(200, 3)), groups) < 1.2


def test_option_of_a_backbone():
    assert torch.equal(
        *(probes.named_backbones([n])[n].conv_init.weight for n in ("shipped", probes.as_option("shipped")))
    )
    assert probes.as_option("random") == "random"
