"""The backbone that comes with the repository: its file, and checkpoints that name it instead of holding it."""

import hashlib

import numpy as np
import pytest
import torch

from pytorch_serl.agents.sac import SACAgent, SACHybridAgent
from pytorch_serl.networks import shipped
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.training import build
from pytorch_serl.training.backbone import find_backbone, read_backbone, shipped_backbone
from pytorch_serl.training.checkpoint import RunCheckpoint
from pytorch_serl.utils.files import load_checkpoint

KEYS = ["image", "wrist"]


def make_agent(backbone, kind="SAC", seed=0):
    torch.manual_seed(seed)
    settings = {"state_dim": 3, "device": "cpu", "backbone": backbone}
    return SACAgent(KEYS, 6, **settings) if kind == "SAC" else SACHybridAgent(KEYS, 12, 9, **settings)


def observation(seed=0):
    rng = np.random.default_rng(seed)
    obs = {key: rng.integers(0, 256, (64, 48, 3), np.uint8) for key in KEYS}
    return obs | {"state": rng.normal(size=3).astype(np.float32)}


def one_bit_off() -> ResNet10:
    resnet = shipped_backbone()
    bias = resnet.blocks[3].norm2.bias
    bias[-1] = torch.nextafter(bias[-1], torch.tensor(9.0))
    return resnet


# ---------------------------------------------------------------- the file


def test_file_is_the_one_meant_and_small():
    content = shipped.SHIPPED_PATH.read_bytes()
    assert hashlib.sha256(content).hexdigest() == shipped.SHIPPED_SHA256 and len(content) < 10.5e6
    file = load_checkpoint(shipped.SHIPPED_PATH)
    assert {value.dtype for value in file["state"].values()} == {torch.float16}
    resnet, line = read_backbone(shipped.SHIPPED_PATH)  # --backbone takes it as any other
    assert file["source"] in line and shipped.is_shipped(resnet)


def test_it_sees():
    """Its features are no random network's: it tells a square's place in unseen pictures better than one."""
    rng = np.random.default_rng(0)
    places = rng.integers(10, 100, (90, 2))
    images = np.broadcast_to(rng.integers(60, 200, (90, 1, 1, 3)), (90, 128, 128, 3)).astype(np.uint8)
    for image, (row, column) in zip(images, places):
        image[row : row + 16, column : column + 16] = rng.integers(0, 256, 3)

    def error(resnet):
        with torch.no_grad():
            maps = torch.cat([resnet(part) for part in torch.from_numpy(images).split(16)]).flatten(1).double()
        maps, wanted = maps - maps[:60].mean(0), torch.from_numpy(places).double()
        gram = maps[:60] @ maps[:60].T
        weights = torch.linalg.solve(gram + 0.01 * gram.trace() / 60 * torch.eye(60), wanted[:60] - wanted[:60].mean(0))
        return float((maps[60:] @ maps[:60].T @ weights + wanted[:60].mean(0) - wanted[60:]).abs().mean())

    torch.manual_seed(0)
    assert error(shipped_backbone()) < 0.8 * error(ResNet10().eval())


@pytest.mark.parametrize("damage", ["one byte", "cut off", "another file", "absent"])
def test_a_damaged_file_is_named_and_not_used(damage, tmp_path, monkeypatch):
    content = bytearray(shipped.SHIPPED_PATH.read_bytes())
    path = tmp_path / "shipped.pt"
    if damage == "one byte":
        content[len(content) // 2] ^= 1
    if damage != "absent":
        path.write_bytes({"cut off": content[:1000], "another file": b"version https"}.get(damage, content))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shipped, "SHIPPED_PATH", path)
    with pytest.raises(ValueError) as error:
        find_backbone()
    wanted = "cannot be read" if damage == "absent" else f"wanted {shipped.SHIPPED_SHA256}"
    assert str(path) in str(error.value) and wanted in str(error.value) and "restore it" in str(error.value)
    assert find_backbone("random")[0] is None  # it is not wanted there
    assert not shipped.is_shipped(ResNet10())


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", ["SAC", "hybrid"])
def test_a_policy_names_the_shipped_backbone_and_acts_the_same(kind, tmp_path):
    agent = make_agent(shipped_backbone(), kind)
    agent.save_policy(tmp_path / "best.pt"), agent.save(tmp_path / "whole.pt")
    saved = load_checkpoint(tmp_path / "best.pt")
    assert "backbone" not in saved["modules"] and "optimizers" not in saved
    assert saved["backbone_sha256"] == shipped.SHIPPED_SHA256
    assert (tmp_path / "best.pt").stat().st_size < 0.3 * (tmp_path / "whole.pt").stat().st_size

    other = make_agent(ResNet10(), kind, seed=1)
    assert not np.array_equal(
        other.sample_actions(observation(), argmax=True), agent.sample_actions(observation(), argmax=True)
    )
    optimizer = other.optimizers["actor"].state_dict()
    other.load(tmp_path / "best.pt")
    whole = make_agent(None, kind, seed=2)
    whole.load(tmp_path / "whole.pt")  # what agent.save wrote holds everything, as before
    again = build.load_agent(tmp_path / "best.pt")
    for seed in range(3):
        action = agent.sample_actions(observation(seed), argmax=True)
        assert all(
            np.array_equal(action, x.sample_actions(observation(seed), argmax=True)) for x in (other, whole, again)
        )
    assert shipped.is_shipped(other.backbone) and other.optimizers["actor"].state_dict() == optimizer
    for name, module in agent.state_dict()["modules"].items():
        assert all(torch.equal(v, other.state_dict()["modules"][name][k]) for k, v in module.items())


@pytest.mark.parametrize("make", [ResNet10, one_bit_off], ids=["random", "one bit off"])
def test_any_other_backbone_is_in_the_file(make, tmp_path):
    resnet = make().requires_grad_(False)
    agent = make_agent(resnet)
    agent.save_policy(tmp_path / "best.pt")
    saved = load_checkpoint(tmp_path / "best.pt")
    assert "backbone_sha256" not in saved and "backbone" in saved["modules"]
    other = make_agent(shipped_backbone(), seed=1)
    other.load(tmp_path / "best.pt")
    assert all(torch.equal(v, resnet.state_dict()[k]) for k, v in other.backbone.state_dict().items())


def test_a_trained_backbone_is_in_the_file(tmp_path):
    agent = SACAgent(["image"], 6, device="cpu", trainable_backbone=True, backbone=shipped_backbone())
    agent.save_policy(tmp_path / "best.pt")
    saved = load_checkpoint(tmp_path / "best.pt")
    assert "backbone_sha256" not in saved
    assert any(name.startswith("encoder.backbones.image") for name in saved["modules"]["online"])


def test_a_classifier_names_it_too(tmp_path):
    torch.manual_seed(0)
    classifier = RewardClassifier(KEYS, backbone=shipped_backbone(), device="cpu").eval()
    classifier.save(tmp_path / "best.pt")
    assert not any(name.startswith("backbone.") for name in load_checkpoint(tmp_path / "best.pt")["weights"])
    again = RewardClassifier.from_checkpoint(tmp_path / "best.pt", "cpu")
    assert again.predict_success(observation()) == classifier.predict_success(observation())

    for other in (  # these hold theirs, as every classifier did
        RewardClassifier(KEYS, backbone=ResNet10(), device="cpu"),
        RewardClassifier(KEYS, backbone=shipped_backbone(), trainable_backbone=True, device="cpu"),
    ):
        other.eval().save(tmp_path / "other.pt")
        assert "backbone.conv_init.weight" in load_checkpoint(tmp_path / "other.pt")["weights"]
        again = RewardClassifier.from_checkpoint(tmp_path / "other.pt", "cpu")
        assert again.predict_success(observation()) == other.predict_success(observation())


@pytest.mark.parametrize("what", ["agent", "classifier"])
@pytest.mark.parametrize("reason", ["another version", "absent"])
def test_a_named_backbone_that_is_not_here_is_said(what, reason, tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    if what == "agent":
        make_agent(shipped_backbone()).save_policy(path)
    else:
        RewardClassifier(KEYS, backbone=shipped_backbone(), device="cpu").save(path)
    if reason == "absent":
        monkeypatch.setattr(shipped, "SHIPPED_PATH", tmp_path / "gone.pt")
        wanted = (str(tmp_path / "gone.pt"), "restore it")
    else:
        saved = load_checkpoint(path)
        torch.save(saved | {"backbone_sha256": "ab" * 32}, path)
        wanted = ("ab" * 32, shipped.SHIPPED_SHA256, "use the version")
    mine = make_agent(None) if what == "agent" else RewardClassifier(KEYS, device="cpu")
    before = {k: v.clone() for k, v in mine.backbone.state_dict().items()}
    with pytest.raises(ValueError) as error:
        mine.load(path)
    assert all(text in str(error.value) for text in (str(path), *wanted))
    assert all(torch.equal(v, before[k]) for k, v in mine.backbone.state_dict().items())


def test_a_run_does_not_go_on_without_optimisers(tmp_path):
    agent = make_agent(None)
    run = RunCheckpoint(tmp_path, agent, {}, {"script": "x", "settings": {}, "demos": 0})
    run.save(3, {"evaluated": 0})
    assert run.load() == (3, {"evaluated": 0})
    saved = load_checkpoint(tmp_path / "last.pt")
    saved["agent"].pop("optimizers")
    torch.save(saved, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="last.pt: its agent has no optimisers"):
        run.load()
