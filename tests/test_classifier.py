"""Reward classifier and train_classifier.py: a square in a corner is a success, one in the middle a failure."""

import json
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from pytorch_serl.networks.augment import random_crop
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.training import run
from pytorch_serl.training.backbone import find_backbone
from pytorch_serl.training.classifier_report import (
    area_under_curve,
    balanced_loss,
    choose_threshold,
    confusion,
    describe,
    scaled_loss,
    validation_report,
)
from pytorch_serl.utils.files import WriteError, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import train_classifier  # noqa: E402

SIZE = 32


def picture(rng, label, size=SIZE):
    """Noise and a bright square, in the upper left corner for a success, else lower right."""
    image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
    corner = size // 8 if label else size // 2
    image[corner : corner + size // 3, corner : corner + size // 3] = (230, 60, 30)
    return image


def batch(rng, labels, keys=("image",)):
    return {key: np.stack([picture(rng, label) for label in labels]) for key in keys}


def tensors(images):
    return {key: torch.from_numpy(x) for key, x in images.items()}


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return RewardClassifier(["image"], device="cpu")


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize("trainable", [False, True])
def test_overfits_one_batch_and_frozen_backbone_stays(trainable):
    torch.manual_seed(0)
    backbone = ResNet10()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    model = RewardClassifier(["image"], backbone=backbone, trainable_backbone=trainable, device="cpu")
    labels = torch.tensor([1.0, 0.0] * 2)
    images = tensors(batch(np.random.default_rng(0), labels.int().tolist()))
    # weight decay and all parameters, the frozen ones too: the mistake that must not matter
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prob, success = model.predict_success(images)
    assert (success == labels.bool().numpy()).all() and loss < 0.2, (loss, prob)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())  # a trainable one is a copy
    moved = any(not torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert moved == trainable
    count = sum(p.numel() for p in model.trainable_parameters())
    assert count == sum(p.numel() for p in model.parameters()) - (0 if trainable else 4_905_792)


def test_predict_success_of_single_batch_and_tensor(classifier):
    rng = np.random.default_rng(1)
    image = picture(rng, 1)
    prob, success = classifier.predict_success({"image": image, "state": np.zeros(3)})
    assert type(prob) is float and type(success) is bool and success == (prob > 0.5)
    assert classifier.predict_success({"image": torch.from_numpy(image)}) == (prob, success)
    assert classifier.predict_success({"image": image[None]})[0].shape == (1,)
    images = batch(rng, [1, 0, 1])
    probs, successes = classifier.predict_success(images)
    assert probs.shape == successes.shape == (3,) and successes.dtype == bool
    singles = [classifier.predict_success({"image": x})[0] for x in images["image"]]
    np.testing.assert_allclose(probs, singles, atol=1e-6)
    mirrored = image[:, ::-1]
    mirrored.flags.writeable = False  # a view with a negative stride that cannot be written
    assert classifier.predict_success({"image": mirrored})[0] != prob
    classifier.threshold = prob
    assert classifier.predict_success({"image": image}) == (prob, False)
    assert classifier.training  # dropout was off in the prediction only


def test_threads_may_ask_a_classifier_in_training(classifier):
    """Nothing of the module is switched for a prediction: another thread, or a training step, would see it."""
    images = [{"image": picture(np.random.default_rng(i), i % 2)} for i in range(6)]
    wanted = [classifier.predict_success(obs) for obs in images]
    modes = []
    for module in classifier.modules():
        module.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
        module.train = None  # whoever calls it fails
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(classifier.predict_success, images * 5))
    assert answers == wanted * 5 and classifier.training and all(modes)


def test_dropout_can_be_asked_for(classifier):
    features = classifier.features(tensors(batch(np.random.default_rng(0), [1, 0])))
    still = classifier.logits(features, dropout=False)
    assert torch.equal(still, classifier.eval().logits(features))
    assert not torch.equal(still, classifier.logits(features, dropout=True))


def test_confident_probabilities_still_differ(classifier):
    with torch.no_grad():
        classifier.out.bias.fill_(40.0)
    prob, _ = classifier.predict_success({"image": picture(np.random.default_rng(0), 1)})
    assert prob <= 1.0 and math.isclose(prob, 1.0)
    with torch.no_grad():
        classifier.out.bias.fill_(25.0)  # float32 has no number between this probability and 1
    assert classifier.predict_success({"image": picture(np.random.default_rng(0), 1)})[0] < 1.0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda o: o | {"image": o["image"] / 255.0}, "float64.*wanted uint8.*255"),
        (lambda o: o | {"image": torch.rand(8, 8, 3)}, "float32.*wanted uint8"),
        (lambda o: {"side": o["image"], "state": 0}, r"\['image', 'wrist'\]; it has \['side', 'state'\]"),
        (lambda o: o | {"wrist": o["image"][None]}, "differ in batch size"),
        (lambda o: o | {"image": o["image"].transpose(2, 0, 1)}, r"\(3, 32, 32\); wanted \(H, W, 3\)"),
        (lambda o: o | {"image": o["image"][None, None]}, "wanted"),
    ],
)
def test_bad_observations_are_named(change, message):
    image = picture(np.random.default_rng(0), 1)
    model = RewardClassifier(["image", "wrist"], device="cpu")
    with pytest.raises(ValueError, match=message):
        model.predict_success(change({"image": image, "wrist": image}))


def test_other_image_size_warns_once(classifier):
    classifier.image_shapes = {"image": (64, 48)}
    with pytest.warns(UserWarning, match="32x32.*64x48"):
        classifier.predict_success({"image": picture(np.random.default_rng(0), 1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.predict_success({"image": picture(np.random.default_rng(0), 1)})


@pytest.mark.parametrize("local, shape, encoding", [(True, (128, 16, 16), 256), (False, (512, 16), 512)])
def test_feature_path_equals_image_path(local, shape, encoding):
    torch.manual_seed(0)
    model = RewardClassifier(["image", "wrist"], local=local, device="cpu").eval()
    assert model.feature_shape == shape
    images = tensors(batch(np.random.default_rng(0), [1, 0, 1], ("image", "wrist")))
    features = model.features(images)
    assert all(maps.shape == (3, *model.feature_shape) and not maps.requires_grad for maps in features.values())
    assert torch.equal(model.logits(features), model(images)) and model(images).shape == (3,)
    assert model.encode(features).shape == (3, encoding)
    swapped = model({"image": images["wrist"], "wrist": images["image"]})
    assert not torch.allclose(swapped, model(images))  # each camera has its own head
    assert not torch.equal(model.train().logits(features), model.logits(features))  # dropout


def test_damaged_classifiers_are_refused(classifier, tmp_path):
    whole = classifier.checkpoint()
    for change in ({"image_keys": 3}, {"threshold": "high"}, {"weights": {"head.bias": "text"}}):
        torch.save(whole | change, tmp_path / "c.pt")
        with pytest.raises(ValueError, match="c.pt: a damaged reward classifier"):
            RewardClassifier.from_checkpoint(tmp_path / "c.pt", "cpu")


def test_save_and_load_are_bit_equal(classifier, tmp_path):
    classifier.threshold, classifier.image_shapes = 0.73, {"image": (SIZE, SIZE)}
    classifier.validation = {"auc": 0.9}
    obs = batch(np.random.default_rng(0), [1, 0])
    classifier.save(tmp_path / "c.pt")
    copy = RewardClassifier.from_checkpoint(tmp_path / "c.pt", "cpu")
    assert (copy.predict_success(obs)[0] == classifier.predict_success(obs)[0]).all()
    assert (copy.threshold, copy.image_shapes, copy.validation) == (0.73, {"image": (SIZE, SIZE)}, {"auc": 0.9})
    shared = ResNet10()
    before = shared.conv_init.weight.clone()
    other = RewardClassifier(["image"], backbone=shared, device="cpu")
    other.load(tmp_path / "c.pt")
    assert (other.predict_success(obs)[0] == classifier.predict_success(obs)[0]).all()
    assert torch.equal(shared.conv_init.weight, before)  # an agent may be using it


def test_the_file_decides_which_heads(classifier, tmp_path):
    """Files from before there were local ones, and the original's classifiers, look at the last map."""
    obs = batch(np.random.default_rng(0), [1, 0])
    original = RewardClassifier(["image"], local=False, device="cpu")
    content = original.checkpoint()
    del content["local"]
    torch.save(content, tmp_path / "old.pt")
    copies = [RewardClassifier.from_checkpoint(tmp_path / "old.pt", "cpu"), RewardClassifier(["image"], device="cpu")]
    copies[1].load(tmp_path / "old.pt")
    for copy in copies:
        assert not copy.local and (copy.predict_success(obs)[0] == original.predict_success(obs)[0]).all()
    assert classifier.local
    weights = {k: v for k, v in content["weights"].items() if k != "dense.bias"}
    torch.save(content | {"weights": weights}, tmp_path / "bad.pt")
    before = classifier.predict_success(obs)[0]
    with pytest.raises(ValueError, match="dense.bias is absent, here"):
        classifier.load(tmp_path / "bad.pt")
    assert classifier.local and (classifier.predict_success(obs)[0] == before).all()


def test_local_heads_see_what_is_small_and_anywhere():
    """A square that may lie anywhere has a hole of three pixels, or a wider one; 40 of each are learned.

    The original's heads still guess after so many steps: 0.5.
    """
    rng, labels = np.random.default_rng(0), torch.arange(140) % 2
    frames = rng.integers(0, 60, (140, 64, 64, 3), dtype=np.uint8)
    for frame, label in zip(frames, labels):
        x, y = rng.integers(4, 44, 2)
        frame[y : y + 16, x : x + 16] = (230, 60, 30)
        hole = slice(6, 9) if label else slice(5, 10)
        frame[y : y + 16, x : x + 16][hole, hole] = 30
    torch.manual_seed(0)
    model = RewardClassifier(["image"], dropout=0.0, device="cpu")
    features = model.features({"image": torch.from_numpy(frames)})["image"]
    optimizer = torch.optim.Adam(model.trainable_parameters(), lr=1e-3)
    for _ in range(30):
        logits = model.logits({"image": features[:80]})
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[:80].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (model.logits({"image": features[80:]}) > 0) == labels[80:]
    assert right.float().mean() > 0.95


def test_load_refuses_whole_and_names_the_mismatch(classifier, tmp_path):
    classifier.save(tmp_path / "c.pt")
    other = RewardClassifier(["side"], device="cpu")
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"c.pt does not fit.*image_keys are \['image'\], here \['side'\].*heads"):
        other.load(tmp_path / "c.pt")
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    (tmp_path / "bad.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:1000])
    torch.save({"kind": "SACAgent"}, tmp_path / "agent.pt")
    for name, message in (("bad", "not a readable"), ("agent", "not a reward classifier"), ("none", "no such")):
        with pytest.raises(ValueError, match=message):
            RewardClassifier.from_checkpoint(tmp_path / f"{name}.pt")


@pytest.mark.parametrize("keys", [[], ["image", "image"]])
def test_image_keys_are_checked(keys):
    with pytest.raises(ValueError, match="image_keys"):
        RewardClassifier(keys)


# ---------------------------------------------------------------- the report


@pytest.mark.parametrize("apart", [1.0, 3.0, 8.0, 100.0])
@pytest.mark.parametrize("limit", [0.0, 0.01, 0.05, 0.5])
def test_threshold_is_the_highest_that_enough_successes_pass_unless_failures_want_more(apart, limit):
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.4).astype(np.int64)
    prob = 1 / (1 + np.exp(-(rng.normal(size=400) * 2 + apart * (labels - 0.3))))
    threshold, failures = choose_threshold(prob, labels, limit), int((labels == 0).sum())
    chosen = confusion(prob, labels, threshold)
    assert chosen["false_positive_rate"] <= limit and threshold >= 0.5
    just_below = confusion(prob, labels, max(prob[prob <= threshold]) - 1e-12)
    if threshold > 0.5 and chosen["recall"] < 0.97:  # lower, and too many failures pass
        assert (just_below["false_positives"] + 1) / (failures + 1) > limit
    elif threshold > 0.5:  # higher, and too few successes pass
        assert confusion(prob, labels, min(prob[prob > threshold]))["recall"] < 0.97


def test_threshold_by_hand():
    assert choose_threshold(np.array([0.1, 0.9]), np.array([0, 1]), 0.0) == pytest.approx(1 - (0.9 * 0.1) ** 0.5)
    assert choose_threshold(np.array([0.9, 0.7, 0.8]), np.array([0, 1, 1]), 0.0) == pytest.approx(0.95)
    assert choose_threshold(np.array([0.1, 0.4]), np.array([0, 1]), 0.0) == 0.5
    assert 0.5 < choose_threshold(np.array([0.0, 1.0, 1.0]), np.array([0, 1, 1]), 0.0) < 1  # which 1 passes


@pytest.mark.parametrize("frames, limit", [(160, 0.01), (250, 0.02), (99, 0.01)])
def test_threshold_keeps_the_rate_on_frames_it_has_not_seen(frames, limit):
    rng, labels = np.random.default_rng(0), np.eye(1, frames + 1, dtype=np.int64)[0]  # the success asks for nothing
    passing = [1 - choose_threshold(np.append(0.0, rng.random(frames)), labels, limit) for _ in range(2000)]
    assert limit / 4 < np.mean(passing) < limit  # of all such failures


def test_figures_by_hand():
    prob, labels = np.array([0.9, 0.6, 0.6, 0.2]), np.array([1, 1, 0, 0])
    c = confusion(prob, labels, 0.5)
    counts = [c[k] for k in ("true_positives", "false_positives", "true_negatives", "false_negatives")]
    assert counts == [2, 1, 1, 0] and c["accuracy"] == 0.75 and c["recall"] == 1 and c["false_positive_rate"] == 0.5
    assert area_under_curve(prob, labels) == pytest.approx(3.5 / 4)  # three pairs in order, one tie
    logits = np.array([0.0, 0.0, 800.0])
    assert balanced_loss(logits, np.array([1, 0, 1])) == pytest.approx((math.log(2) / 2 + math.log(2)) / 2)


@pytest.mark.parametrize("gap, informative", [(3.0, True), (0.0, False), (-3.0, False)])
def test_figures_that_say_nothing_are_said_to(gap, informative):
    rng, labels = np.random.default_rng(0), np.repeat([1, 0], [30, 60])
    report = validation_report(rng.normal(size=90) + gap * labels, labels, 0.01)
    assert report["informative"] is informative and (report["auc_lower_95"] > 0.5) is informative
    assert ("do not show that it tells success from failure" in describe(report)) is not informative
    assert report["at_threshold"]["false_positive_rate"] <= 0.01  # also where the threshold means little
    assert not validation_report(np.array([3.0, -3.0]), np.array([1, 0]), 0.01)["informative"]  # two frames
    old = {name: value for name, value in report.items() if name not in ("informative", "auc_lower_95")}
    assert "AUC" in describe(old)  # of a classifier that an earlier version saved


@pytest.mark.parametrize("max_fpr, note", [(0.0, "above all 5 failures"), (0.1, "hold back at least 9"), (0.2, "")])
def test_what_few_failures_cannot_show(max_fpr, note):
    report = validation_report(np.linspace(-3, 3, 10), np.repeat([0, 1], 5), max_fpr)
    last = describe(report).splitlines()[-1]
    assert note in last and ("note:" in last) == bool(note) and "many more" not in last


# ---------------------------------------------------------------- what the scripts share


def test_rng_state_survives_a_checkpoint(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    run.seed_all(3)
    draw()
    run.save_checkpoint(tmp_path / "rng.pt", run.rng_state())
    wanted = [draw() for _ in range(3)]
    run.set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [draw() for _ in range(3)] == wanted


def test_run_directory_is_not_lost(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="no checkpoint to resume"):
        run.prepare_run_dir(out, True, False)
    run.prepare_run_dir(out, False, False)
    run.prepare_run_dir(out, False, False)  # an empty directory is a fresh run
    for name in ("last.pt", "buffer_demo_0000007.pt", "mine.txt", "mine.pt"):
        (out / name).write_text("x")
    with pytest.raises(
        ValueError, match=r"holds a run already \(buffer_demo_0000007.pt, last.pt\).*--resume.*--overwrite"
    ):
        run.prepare_run_dir(out, False, False)
    run.check_run_dir(out, False, True)
    assert (out / "last.pt").exists()
    run.prepare_run_dir(out, True, False)
    run.prepare_run_dir(out, False, True)
    assert {file.name for file in out.iterdir()} == {"mine.txt", "mine.pt"}


def test_metric_log_goes_back_to_the_checkpoint(tmp_path):
    log = run.MetricLogger(tmp_path)
    for step in range(4):
        log.log(step, {"loss": torch.tensor(step / 2)})
    log.close()
    with open(tmp_path / run.METRICS, "a") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote
    log = run.MetricLogger(tmp_path, resume_step=1)
    log.log(2, {"loss": 7.0})
    log.close()
    assert log.series("loss") == ([0, 1, 2], [0.0, 0.5, 7.0])
    assert [json.loads(line)["step"] for line in (tmp_path / run.METRICS).read_text().splitlines()] == [0, 1, 2]


def test_metrics_that_cannot_be_written_are_one_line(tmp_path):
    log = run.MetricLogger(tmp_path)
    log.file = tmp_path / "gone" / run.METRICS
    with pytest.raises(WriteError, match="cannot be written"):
        log.log(0, {"loss": 1.0})
    log.writer = types.SimpleNamespace(close=lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    log.close()


def test_user_errors_leave_defects_alone(capsys):
    with pytest.raises(SystemExit) as stop, run.user_errors():
        raise ValueError("a\nb")
    assert stop.value.code == 2 and capsys.readouterr().err == "error: a b\n"
    with pytest.raises(KeyError), run.user_errors():
        raise KeyError("defect")


# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three files of 8 frames per class."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label, name in ((1, "success"), (0, "failure")):
        (root / name).mkdir()
        for episode in range(3):
            frames = [{"observations": {"image": picture(rng, label)}, "labels": label} for _ in range(8)]
            (root / name / f"{episode}.pkl").write_bytes(pickle.dumps(frames))
    return root


@pytest.fixture(autouse=True)
def no_published_backbone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))


def flags(data, out, **changes):
    """Command line with short settings; a value of None leaves the flag out, True gives it without a value."""
    values = (
        dict(
            success_dir=data / "success",
            failure_dir=data / "failure",
            image_keys="image",
            output_dir=out,
            batch_size=8,
            num_epochs=4,
            crop_views=2,
            lr=1e-3,
            device="cpu",
        )
        | changes
    )
    words = []
    for name, value in values.items():
        if value is not None:
            words += [f"--{name}"] + ([] if value is True else [str(value)])
    return words


def train(*words):
    train_classifier.main(train_classifier.parse_args(list(words)))


def test_script_as_in_the_readme(data, tmp_path):
    command = [
        "--success_dir",
        "./data/success",
        "--failure_dir",
        "./data/failure",
        "--image_keys",
        "image",
        "--output_dir",
        "./classifier_ckpt",
        "--batch_size",
        "64",
        "--num_epochs",
        "30",
        "--lr",
        "3e-4",
    ]
    os.symlink(data, tmp_path / "data")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_classifier.py"), *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "classifier_ckpt"
    names = {file.name for file in out.iterdir() if not file.name.startswith("events")}
    assert names == {
        "best.pt",
        "last.pt",
        "settings.json",
        "validation.json",
        "metrics.jsonl",
        "learning_curve.png",
        "mistakes.png",
    }
    report = json.loads((out / "validation.json").read_text())
    assert report["at_threshold"]["accuracy"] == 1.0 and report["auc"] == 1.0
    assert "computed once" in done.stdout and "best classifier: classifier_ckpt/best.pt" in done.stdout
    assert done.stdout.rstrip().endswith("--reward classifier --classifier_ckpt classifier_ckpt/best.pt")
    model = RewardClassifier.from_checkpoint(out / "best.pt", "cpu")
    assert model.validation == report and model.image_shapes == {"image": (SIZE, SIZE)}
    assert model.threshold == report["at_threshold"]["threshold"]
    for label in (0, 1):
        assert model.predict_success({"image": picture(np.random.default_rng(9), label)})[1] == bool(label)


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_resume_continues_bit_for_bit(data, tmp_path):
    train(*flags(data, tmp_path / "whole"))
    train(*flags(data, tmp_path / "half", num_epochs=2))
    torch.rand(5)
    train(*flags(data, tmp_path / "half", resume=True))
    whole, half = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "half"))
    for part in ("classifier", "optimizer", "rng", "progress", "data"):
        assert equal(whole[part], half[part]), part
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "half")]
    assert metrics[0] == metrics[1] and len(metrics[0].splitlines()) == 4
    best = [load_checkpoint(tmp_path / name / "best.pt") for name in ("whole", "half")]
    assert equal(*best)
    shorter = load_checkpoint(tmp_path / "whole" / "last.pt")
    train(*flags(data, tmp_path / "other", num_epochs=4, seed=1))
    assert not equal(shorter["classifier"], load_checkpoint(tmp_path / "other" / "last.pt")["classifier"])


def test_resume_keeps_its_split(data, tmp_path, capsys, monkeypatch):
    train(*flags(data, tmp_path / "run", num_epochs=1))
    first = capsys.readouterr().out
    assert "held out together by file name; 1 of 3 scenes are held out" in first
    monkeypatch.setattr(train_classifier, "split_by_group", None)  # as if the rules had changed since
    train(*flags(data, tmp_path / "run", num_epochs=2, resume=True))
    again = capsys.readouterr().out
    line = next(line for line in first.splitlines() if line.startswith("split: "))
    assert line in again and "8 of 24 frames for validation" in line
    report = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert (report["success_frames"], report["failure_frames"]) == (8, 8) and report["split"].startswith(line)


def test_runs_of_an_independent_split_are_not_continued(data, tmp_path, capsys):
    out = tmp_path / "run"
    train(*flags(data, out, num_epochs=1))
    content = load_checkpoint(out / "last.pt")
    del content["split"]
    run.save_checkpoint(out / "last.pt", content)
    refused(capsys, "last.pt.*earlier version.*best.pt can be used.*--overwrite", flags(data, out, resume=True))


def scripted_logits(monkeypatch, epochs):
    """Let validation see these logits, one array per epoch, then the first one's."""
    left = list(epochs)
    monkeypatch.setattr(train_classifier, "validation_logits", lambda *_: left.pop(0) if left else epochs[0])


def test_an_untrained_first_epoch_is_not_kept_silently(data, tmp_path, capsys, monkeypatch):
    labels = np.repeat([1, 0], 8)
    guess = np.tile([0.02, -0.01], 8)
    sure_and_wrong = np.tile([4.0, -4.0], 8)
    scripted_logits(monkeypatch, [guess, sure_and_wrong, sure_and_wrong])
    train(*flags(data, tmp_path / "contradicted", num_epochs=3))
    text = capsys.readouterr().out
    assert re.search(r"warning: of 3 epochs the first is kept.*was 0.69 after it and is 2.02 now", text), text
    assert "do not show that it tells success from failure" in text and "(epoch 1, " in text
    # told apart, though with more confidence than is due: better than a guess, whose loss is lower
    good = np.where(labels == 1, 9.0, -9.0) - 50.0 * (np.arange(16) == 0)
    scripted_logits(monkeypatch, [guess, good, guess])
    train(*flags(data, tmp_path / "kept", num_epochs=3))
    text = capsys.readouterr().out
    assert balanced_loss(good, labels) > balanced_loss(guess, labels) > scaled_loss(good, labels)
    assert "(epoch 2, " in text and "the first is kept" not in text


def test_interrupt_saves_the_last_whole_epoch(data, tmp_path, monkeypatch, capsys):
    train(*flags(data, tmp_path / "whole", num_epochs=2))
    train_epoch, calls = train_classifier.train_epoch, []

    def interrupted_epoch(*inputs):
        calls.append(train_epoch(*inputs))
        if len(calls) == 2:
            raise KeyboardInterrupt  # the second epoch's steps are done and must not count
        return calls[-1]

    monkeypatch.setattr(train_classifier, "train_epoch", interrupted_epoch)
    with pytest.raises(SystemExit) as stop:
        train(*flags(data, tmp_path / "run", num_epochs=2))
    assert stop.value.code == 130 and "epoch 1 is saved in" in capsys.readouterr().out
    train(*flags(data, tmp_path / "run", num_epochs=2, resume=True))
    whole, resumed = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "run"))
    assert equal(whole["classifier"], resumed["classifier"]) and equal(whole["rng"], resumed["rng"])


def test_a_second_interrupt_waits_for_the_file(data, tmp_path, monkeypatch):
    save = train_classifier.save_checkpoint

    def saved_amid_a_signal(path, content):
        signal.raise_signal(signal.SIGINT)
        save(path, content)

    def interrupted_epoch(*inputs):
        monkeypatch.setattr(train_classifier, "save_checkpoint", saved_amid_a_signal)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_classifier, "train_epoch", interrupted_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(*flags(data, tmp_path / "run", num_epochs=2))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["epoch"] == 0


def test_trained_backbone_is_saved_for_the_agents(data, tmp_path):
    train(*flags(data, tmp_path / "run", num_epochs=1, train_backbone=True))
    backbone, _ = find_backbone(tmp_path / "run" / "backbone.pt")
    best = RewardClassifier.from_checkpoint(tmp_path / "run" / "best.pt", "cpu")
    assert equal(dict(backbone.state_dict()), dict(best.backbone.state_dict()))
    torch.manual_seed(0)
    untrained = RewardClassifier(["image"], device="cpu").backbone
    assert not torch.equal(backbone.conv_init.weight, untrained.conv_init.weight)
    train(*flags(data, tmp_path / "frozen", num_epochs=1, backbone=tmp_path / "run" / "backbone.pt"))
    frozen = RewardClassifier.from_checkpoint(tmp_path / "frozen" / "best.pt", "cpu")
    assert equal(dict(backbone.state_dict()), dict(frozen.backbone.state_dict()))


def test_training_sees_crops_of_balanced_batches():
    labels = np.array([1] * 3 + [0] * 20)
    batches = train_classifier.balanced_batches(labels, 8)
    assert batches.shape == (5, 8) and (labels[batches[:, :4]] == 1).all() and (labels[batches[:, 4:]] == 0).all()
    assert sorted(batches[:, 4:].flatten().tolist()) == list(range(3, 23))  # each failure once
    assert min(np.bincount(batches[:, :4].flatten())) >= 6  # each success 6 or 7 times

    torch.manual_seed(0)
    model = RewardClassifier(["image"], device="cpu").eval()
    images = batch(np.random.default_rng(0), [1, 0])
    part = train_classifier.Part(images, np.array([1]), np.array([0]))
    train_classifier.add_frozen_features(model, part, 3)
    maps = part.maps["image"].float()
    assert maps.shape == (3, 1, *model.feature_shape)
    own = model.features({"image": torch.from_numpy(images["image"][1:])})["image"]
    torch.testing.assert_close(maps[0], own, atol=1e-2, rtol=1e-3)  # float16
    frame = torch.from_numpy(images["image"][1:])
    crops = [
        model.features({"image": random_crop(frame, torch.tensor([[y, x]]), 128)})["image"]
        for y in range(9)
        for x in range(9)
    ]
    assert min((maps[1] - crop).abs().max() for crop in crops) < 1e-2


def break_data(data, tmp_path, kind):
    """A copy of the failure directory with something wrong in it."""
    folder = tmp_path / kind
    folder.mkdir()
    frames = pickle.loads((data / "failure" / "0.pkl").read_bytes())
    if kind == "unsafe":
        frames[0]["infos"] = Path("x")
    if kind == "float":
        frames[3]["observations"]["image"] = frames[3]["observations"]["image"] / 255.0
    if kind == "label":
        frames[2]["labels"] = 1
    if kind != "empty":
        (folder / "0.pkl").write_bytes(pickle.dumps(frames))
    return folder


@pytest.mark.parametrize(
    "kind, message",
    [
        ("empty", "empty class"),
        ("unsafe", "0.pkl.*pathlib"),
        ("float", "0.pkl: transition 3.*image.*float64"),
        ("label", "0.pkl: transition 2.*labels"),
    ],
)
def test_bad_data_is_one_line_and_exit_2(data, tmp_path, capsys, kind, message):
    refused(capsys, message, flags(data, tmp_path / "out", failure_dir=break_data(data, tmp_path, kind)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"success_dir": "nowhere"}, "nowhere.*no such directory"),
        ({"batch_size": 0}, "--batch_size is 0; wanted an even number"),
        ({"batch_size": 7}, "--batch_size is 7; wanted an even number"),
        ({"batch_size": "many"}, "batch_size.*many"),
        ({"num_epochs": 0}, "--num_epochs is 0"),
        ({"lr": -1}, "--lr is -1"),
        ({"lr": "nan"}, "--lr is nan"),
        ({"val_fraction": 1.5}, "--val_fraction is 1.5"),
        ({"max_fpr": 1}, "--max_fpr is 1"),
        ({"crop_views": 0}, "--crop_views is 0"),
        ({"dropout": 1}, "--dropout is 1"),
        ({"seed": -1}, "--seed is -1"),
        ({"image_keys": "wrist"}, "wrist.*image"),
        ({"device": "cuda:99"}, "cuda:99.*not usable"),
        ({"backbone": "random", "download_backbone": True}, "--backbone says random; give one"),
        ({"backbone": "nowhere.pt"}, "nowhere.pt: no such backbone"),
        ({"resume": True}, "last.pt: no checkpoint to resume from"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"output_dir": None}, "output_dir"),
        ({"no_such_flag": 1}, "no_such_flag.*--help"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(data, tmp_path, capsys, changes, message):
    refused(capsys, message, flags(data, tmp_path / "out", **changes))


def test_resume_of_another_run_is_refused(data, tmp_path, capsys):
    out = tmp_path / "out"
    train(*flags(data, out, num_epochs=1))
    before = (out / "last.pt").read_bytes()
    refused(capsys, "holds a run already.*best.pt.*--resume.*--overwrite", flags(data, out))
    refused(capsys, "lr was 0.001, is 0.01", flags(data, out, resume=True, lr=0.01))
    (tmp_path / "two").mkdir()
    for number in (0, 1):
        (tmp_path / "two" / f"{number}.pkl").write_bytes((data / "failure" / f"{number}.pkl").read_bytes())
    refused(capsys, "trained on other frames", flags(data, out, resume=True, failure_dir=tmp_path / "two"))
    refused(capsys, "no such directory", flags(data, out, overwrite=True, success_dir="nowhere"))
    assert (out / "last.pt").read_bytes() == before  # a refused --overwrite deletes nothing
    content = load_checkpoint(out / "last.pt")
    content["settings"]["image_keys"] = ["wrist"]
    run.save_checkpoint(out / "last.pt", content)
    refused(capsys, r"image_keys was \['wrist'\], is \['image'\]", flags(data, out, resume=True))
    train(*flags(data, out, num_epochs=1, overwrite=True))


def refused(capsys, message, words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(*words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert re.search(message, error), error


def test_what_is_fixed_follows_from_the_options():
    """What an earlier version listed, and no name in MAY_CHANGE is of no option."""
    args = train_classifier.parse_args(
        ["--success_dir", "a", "--failure_dir", "b", "--image_keys", "c", "--output_dir", "d"]
    )
    listed = "image_keys batch_size lr dropout val_fraction max_fpr crop_views train_backbone seed"
    assert set(train_classifier.fixed_settings(args, train_classifier.MAY_CHANGE)) == set(listed.split())
    assert set(train_classifier.MAY_CHANGE) <= vars(args).keys()
