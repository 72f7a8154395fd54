"""Whatever the constructors accept, `save` and `load` carry through; float32 networks whatever the default dtype."""

from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from pytorch_serl.agents.sac import SACAgent, SACHybridAgent
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.training.backbone import read_backbone, save_backbone
from pytorch_serl.training.build import load_agent
from pytorch_serl.utils.files import load_checkpoint, plain, save_checkpoint

FRAME = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
OBS = {"image": FRAME, "state": np.ones(3, np.float32)}


@pytest.fixture(scope="module")
def backbone():
    return ResNet10()


def acts_alike(one, other):
    return np.array_equal(one.sample_actions(OBS, argmax=True), other.sample_actions(OBS, argmax=True))


NUMBERS = [np.float32, np.float64, np.float16, np.array, torch.tensor]


@pytest.mark.parametrize("number", NUMBERS)
def test_settings_of_any_number_type_are_saved(number, backbone, tmp_path):
    values = ("lr", 1e-3), ("discount", 0.9), ("tau", 0.01), ("init_temperature", 0.1)
    settings = {name: number(value) for name, value in values} | {"dropout": number(0.25), "target_entropy": number(-2)}
    sizes = {"state_dim": np.int64(3), "ensemble_size": np.array(3), "q_range": np.array([0.0, 1.0], np.float32)}
    keys, sizes["trainable_backbone"] = np.array(["image"]), np.bool_(False)
    agent = SACHybridAgent(keys, np.int32(6), np.int64(3), **settings, **sizes, backbone=backbone, device="cpu")
    agent.save(tmp_path / "agent.pt")
    again = load_agent(tmp_path / "agent.pt")
    assert acts_alike(agent, again) and again.config == agent.config
    assert again.config["q_range"] == (0.0, 1.0) and again.discount == float(number(0.9))
    assert type(again.config["image_keys"][0]) is str and type(again.optimizers["actor"].param_groups[0]["lr"]) is float


def test_a_learning_rate_that_a_schedule_set_is_saved(backbone, tmp_path):
    agent = SACAgent(["image"], 6, state_dim=3, backbone=backbone, device="cpu")
    agent.optimizers["actor"].param_groups[0]["lr"] = np.linspace(1e-3, 1e-4, 5)[2]
    agent.save(tmp_path / "agent.pt")
    assert acts_alike(agent, load_agent(tmp_path / "agent.pt"))
    with pytest.raises(ValueError, match="^device 'gpu' is not usable here"):  # it is not the file's fault
        load_agent(tmp_path / "agent.pt", "gpu")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_classifiers_settings_and_figures_are_saved(number, backbone, tmp_path):
    classifier = RewardClassifier(
        np.array(["image"]), dropout=number(0.25), trainable_backbone=np.bool_(False), backbone=backbone, device="cpu"
    )
    classifier.threshold, classifier.image_shapes = number(0.75), {np.str_("image"): np.array([32, 32])}
    classifier.validation = {
        "auc": np.float64(0.9),
        "confusion": np.array([[3, 1], [0, 4]]),
        "file": Path("data/success"),
        "range": (np.float32(0.5), np.int64(2)),
        "epochs": {np.int64(1): OrderedDict(loss=np.array(0.5))},
        "names": {"one"},
        "share": Fraction(1, 2),
    }
    classifier.save(tmp_path / "classifier.pt")
    again = RewardClassifier.from_checkpoint(tmp_path / "classifier.pt", "cpu")
    assert again.predict_success(OBS) == classifier.eval().predict_success(OBS)
    assert again.threshold == 0.75 and again.dropout == 0.25 and again.image_shapes == {"image": (32, 32)}
    assert again.validation == {
        "auc": 0.9,
        "confusion": [[3, 1], [0, 4]],
        "file": "data/success",
        "range": (0.5, 2),
        "epochs": {1: {"loss": 0.5}},
        "names": ["one"],
        "share": 0.5,
    }


def test_what_no_file_can_hold_is_refused_when_it_is_saved(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"figures": [np.longdouble(0.5), np.str_("x"), np.zeros(2, bool), None]})
    assert load_checkpoint(tmp_path / "a.pt") == {"figures": [0.5, "x", [False, False], None]}
    with pytest.raises(ValueError, match=r"b\.pt\['figures'\]\[1\] is a object, which no checkpoint holds"):
        save_checkpoint(tmp_path / "b.pt", {"figures": [1, object()]})
    assert not list(tmp_path.glob("*b.pt*"))
    state = torch.nn.Linear(2, 2).state_dict()
    assert plain(state)._metadata == state._metadata and plain(state)["weight"] is state["weight"]


def compiled(module):
    return torch.compile(module, backend="eager")


def test_a_compiled_agent_is_saved_by_the_plain_names(backbone, tmp_path):
    plain_agent, agent = (SACAgent(["image"], 6, state_dim=3, backbone=backbone, device="cpu") for _ in range(2))
    agent.actor, agent.backbone = compiled(agent.actor), compiled(agent.backbone)
    agent.encoder.heads["image"] = compiled(agent.encoder.heads["image"])
    agent.save(tmp_path / "compiled.pt")
    saved = load_checkpoint(tmp_path / "compiled.pt")
    assert not [name for module in saved["modules"].values() for name in module if "_orig_mod" in name]
    assert acts_alike(load_agent(tmp_path / "compiled.pt"), agent)
    plain_agent.save(tmp_path / "plain.pt")
    agent.load(tmp_path / "plain.pt")  # into compiled modules
    assert acts_alike(agent, plain_agent) and acts_alike(agent.averaged(), plain_agent.averaged())


def test_files_with_a_compiled_modules_names_are_read(backbone, tmp_path):
    agent = SACAgent(["image"], 6, state_dim=3, backbone=backbone, device="cpu")
    old = agent.state_dict()
    old["modules"]["actor"] = {f"_orig_mod.{name}": tensor for name, tensor in old["modules"]["actor"].items()}
    torch.save(old, tmp_path / "old.pt")
    assert acts_alike(load_agent(tmp_path / "old.pt"), agent)
    torch.save({"kind": "backbone", "state": compiled(backbone).state_dict(), "source": "x"}, tmp_path / "backbone.pt")
    same = read_backbone(tmp_path / "backbone.pt")[0].state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in backbone.state_dict().items())


def test_a_compiled_classifier_and_backbone_are_saved_by_the_plain_names(backbone, tmp_path):
    classifier = RewardClassifier(["image"], backbone=backbone, device="cpu").eval()
    wanted = classifier.predict_success(OBS)
    classifier.backbone, classifier.heads["image"] = compiled(backbone), compiled(classifier.heads["image"])
    classifier.save(tmp_path / "classifier.pt")
    again = RewardClassifier.from_checkpoint(tmp_path / "classifier.pt", "cpu")
    assert again.predict_success(OBS) == pytest.approx(wanted)
    classifier.load(tmp_path / "classifier.pt")
    save_backbone(tmp_path / "backbone.pt", classifier.backbone, "here")
    same = read_backbone(tmp_path / "backbone.pt")[0].state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in backbone.state_dict().items())


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_default_dtype_of_float64_changes_nothing(trainable, double, tmp_path):
    agent = SACHybridAgent(["image"], 6, 3, state_dim=3, trainable_backbone=trainable, device="cpu")
    parameters = [*agent.online.parameters(), *agent.actor.parameters(), *agent.temperature.parameters()]
    assert {p.dtype for p in parameters} == {torch.float32}
    obs = {key: np.stack([value] * 4) for key, value in OBS.items()}
    batch = {"observations": obs, "next_observations": obs, "actions": np.zeros((4, 7)), "rewards": np.zeros(4)}
    batch |= {"masks": np.ones(4), "grasp_penalty": np.zeros(4), "is_demo": np.ones(4)}
    info = agent.update(batch, clone_weight=1.0, advantage_weighted=True)
    assert all(torch.isfinite(value) for value in info.values())
    action = agent.sample_actions(OBS)
    assert action.dtype == np.float32 and action.shape == (7,)
    agent.save(tmp_path / "agent.pt")
    assert acts_alike(agent, load_agent(tmp_path / "agent.pt"))


@pytest.mark.parametrize("trainable", [False, True])
def test_a_classifier_under_a_default_dtype_of_float64(trainable, double, tmp_path):
    classifier = RewardClassifier(["image"], trainable_backbone=trainable, device="cpu")
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    classifier({"image": torch.from_numpy(np.stack([FRAME] * 2))}).sum().backward()
    classifier.save(tmp_path / "classifier.pt")
    again = RewardClassifier.from_checkpoint(tmp_path / "classifier.pt", "cpu")
    assert again.predict_success(OBS) == classifier.eval().predict_success(OBS)
