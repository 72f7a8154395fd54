"""Exported policies act as their agents do; what cannot be exported ends in one line."""

import json
import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import export_policy
from pytorch_serl.agents.sac import SACAgent, SACHybridAgent
from pytorch_serl.export import check, policy
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.training import build
from pytorch_serl.training.build import load_agent
from tests.runs import ROOT, command, make_demos, refused

NO_ONNX = policy.missing_for_onnx()
onnx_only = pytest.mark.skipif(NO_ONNX is not None, reason=f"no ONNX: {NO_ONNX}")
KINDS = {
    "fixed": lambda: SACAgent(["image"], 6, state_dim=3, device="cpu"),
    "dual-fixed-trainable": lambda: SACAgent(["image", "wrist"], 12, trainable_backbone=True, device="cpu"),
    "dual-learned": lambda: SACHybridAgent(["wrist", "image"], 12, 9, state_dim=3, device="cpu"),
}


def observations(agent, batch, sizes=((128, 128), (60, 100)), seed=0):
    rng = np.random.default_rng(seed)
    obs = {k: rng.integers(0, 256, (batch, *size, 3), np.uint8) for k, size in zip(agent.image_keys, sizes)}
    return obs | ({"state": rng.normal(size=(batch, agent.state_dim)).astype(np.float32)} if agent.state_dim else {})


def assert_same(agent, action, obs):
    wanted = agent.sample_actions(obs, argmax=True)
    assert action.dtype == np.float32 and action.shape == wanted.shape
    assert np.abs(action - wanted).max() < check.RANDOM_TOLERANCE


@pytest.fixture(
    scope="module",
    params=["dual-learned", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "dual-learned")],
)
def exported(request, tmp_path_factory):
    """An agent of each kind, from its checkpoint, and its program."""
    path = tmp_path_factory.mktemp("kinds") / "agent.pt"
    torch.manual_seed(1)
    KINDS[request.param]().save(path)
    agent = load_agent(path)
    return agent, policy.make_program(agent)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A learned-gripper agent's checkpoint, and demos with the observations that it takes."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    SACHybridAgent(["image"], 6, 3, state_dim=3, device="cpu").save(folder / "best.pt")
    make_demos(folder / "demos.pkl", episodes=2, action_dim=7, gripper=True)
    return folder


@pytest.mark.parametrize("size", [(128, 128), (128, 200), (64, 90), (240, 320), (37, 500)])
def test_resizing_is_the_networks(size):
    images = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    resnet = ResNet10()
    difference = resnet.preprocess(policy.resize(images)) - resnet.preprocess(images)
    assert difference.abs().max() < (1e-9 if size == (128, 128) else 2e-6)


def test_the_program_acts_as_the_agent(exported, tmp_path):
    """After a round trip through the file; batches of one and more, other frame sizes, keys in any order."""
    agent, program = exported
    policy.save_program(tmp_path / "policy.pt2", program, policy.describe(agent))
    facts = {policy.FACTS_FILE: ""}
    loaded = torch.export.load(tmp_path / "policy.pt2", extra_files=facts).module()
    assert json.loads(facts[policy.FACTS_FILE])["image_keys"] == agent.image_keys
    for batch, sizes in ((1, ((128, 128), (60, 100))), (3, ((150, 96), (128, 128)))):
        obs = observations(agent, batch, sizes)
        reverse = {key: torch.from_numpy(obs[key]) for key in reversed(obs)}
        assert_same(agent, loaded(reverse).numpy(), obs)


def test_a_loaded_agent_is_the_saved_one(saved):
    agent = load_agent(saved / "best.pt")
    again = SACHybridAgent(["image"], 6, 3, state_dim=3, device="cpu")
    again.load(saved / "best.pt")
    obs = observations(agent, 2)
    assert agent.config == again.config
    assert np.array_equal(agent.sample_actions(obs, argmax=True), again.sample_actions(obs, argmax=True))


def test_of_a_runs_checkpoint_the_average_is_exported(saved, tmp_path, capsys):
    agent = load_agent(saved / "best.pt")
    with torch.no_grad():
        agent.average_actor.mean.bias.fill_(0.7)
    torch.save({"agent": agent.state_dict()}, tmp_path / "last.pt")
    used = build.policy_of(load_agent(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert (used.actor.mean.bias == 0.7).all() and "the averaged policy is used" in capsys.readouterr().out
    assert build.policy_of(agent, saved / "best.pt") is agent


def test_the_command_writes_what_it_checked(saved, tmp_path, capsys):
    options = {
        "ckpt": saved / "best.pt",
        "demo_paths": saved / "demos.pkl",
        "output_dir": tmp_path,
        "formats": "pt2",
        "observations": 20,
    }
    export_policy.main(command(options))
    out = capsys.readouterr().out
    assert "checked on 20 observations (8 recorded in" in out and "12 of them shifted" in out
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt2"]
    refused(export_policy, capsys, "policy.pt2 exists; give --overwrite", command(options))
    export_policy.main(command(options | {"overwrite": True, "demo_paths": None, "observations": 2}))
    assert "2 observations (random)" in capsys.readouterr().out


def test_a_folder_that_only_others_may_write_to(saved, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != saved)  # of root nothing else keeps it closed
    message = f"{saved} cannot be written to; name another folder with --output_dir"
    refused(export_policy, capsys, message, command({"ckpt": saved / "best.pt"}))


def test_without_options_it_takes_the_demos_of_the_run(saved, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"demo_paths": [str(saved / "demos.pkl"), "gone.pkl"]}))
    found, words, tolerance = check.gather(load_agent(saved / "best.pt"), [], tmp_path, 5)
    assert len(found) == 5 and "demos.pkl" in words and "gone" not in words and tolerance == check.TOLERANCE


@pytest.mark.parametrize("damage", ["absent", "other", "broken"])
def test_demos_of_the_run_that_no_longer_fit_stop_no_export(damage, saved, tmp_path, capsys):
    demos = make_demos(tmp_path / "demos.pkl", keys=("side",)) if damage == "other" else tmp_path / "demos.pkl"
    if damage == "broken":
        demos.write_bytes(b"nothing")
    (tmp_path / "settings.json").write_text(json.dumps({"demo_paths": [str(demos)]}))
    found, words, _ = check.gather(load_agent(saved / "best.pt"), [], tmp_path, 2)
    assert len(found) == 2 and words == "random"
    said = capsys.readouterr().out
    assert (
        said.startswith("the demos of the run do not serve") and str(demos) in said if damage != "absent" else not said
    )


def test_another_action_is_an_error_and_leaves_no_file(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(policy, "join_actions", lambda arm, *rest: torch.cat([arm, torch.ones_like(arm[:, :1])], -1))
    options = {"ckpt": saved / "best.pt", "output_dir": tmp_path, "formats": "pt2", "observations": 8}
    with pytest.raises(SystemExit) as error:
        export_policy.main(command(options))
    assert error.value.code == 2 and not list(tmp_path.iterdir())
    assert "error: policy.pt2: not the agent's actions, see above; nothing was written" in capsys.readouterr().err


def test_near_ties_of_the_gripper_are_told_from_errors():
    is_gripper, wanted = np.array([False, True]), np.array([[0.5, 1.0], [0.5, 1.0]], np.float32)
    other = np.array([[0.5, 1.0], [0.5, -1.0]], np.float32)
    for near_tie, same in ((np.array([True, False]), False), (np.array([False, True]), True)):
        result = check.Comparison(tolerance=1e-5)
        result.add(other, wanted, is_gripper, near_tie)
        assert (result.grippers, result.largest, result.same) == (1, 0.0, same)
    result.add(np.array([[np.nan, 1.0]], np.float32), wanted[:1], is_gripper, near_tie[:1])
    assert not result.same


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ckpt": "absent.pt"}, "absent.pt: no such checkpoint file"),
        ({"ckpt": "backbone.pt"}, "backbone.pt: not an agent's checkpoint"),
        ({"ckpt": "odd.pt"}, "odd.pt: its settings do not make an agent"),
        ({"ckpt": "nan.pt"}, "holds NaN or infinity"),
        ({"demo_paths": "absent.pkl"}, "absent.pkl: file: got no such file"),
        ({"demo_paths": "other.pkl"}, "state: got 2 entries, wanted 3 entries"),
        ({"demo_paths": "cameras.pkl"}, "observations['image']: got keys 'side', 'state'"),
        ({"observations": 0}, "--observations is 0; wanted 1 or more"),
        ({"formats": "tflite"}, "invalid choice: 'tflite'"),
        ({"output_dir": "best.pt"}, "best.pt"),
    ],
)
def test_wrong_input_ends_in_one_line(change, message, saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = torch.load(saved / "best.pt", weights_only=True)
    torch.save({"kind": "backbone", "state": {}}, "backbone.pt")
    torch.save(content | {"config": content["config"] | {"colour": 1}}, "odd.pt")
    torch.save(content, "best.pt")
    content["modules"]["actor"]["mean.bias"][0] = np.nan
    torch.save(content, "nan.pt")
    make_demos(tmp_path / "cameras.pkl", keys=("side",))
    demos = pickle.loads((saved / "demos.pkl").read_bytes())
    for transition in demos:
        transition["observations"] = transition["observations"] | {"state": np.zeros(2, np.float32)}
    (tmp_path / "other.pkl").write_bytes(pickle.dumps(demos))
    refused(export_policy, capsys, message, command({"ckpt": "best.pt", "formats": "pt2"} | change))
    assert not list(tmp_path.glob("policy*"))


def test_without_the_packages_there_is_no_onnx_file(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(policy, "ONNX_PACKAGES", ("numpy", "no_such_package"))
    options = {"ckpt": saved / "best.pt", "output_dir": tmp_path, "observations": 1}
    hint = "no_such_package not installed: python -m pip install -r requirements/export.txt"
    refused(export_policy, capsys, f"--formats onnx: {hint}", command(options | {"formats": "onnx"}))
    export_policy.main(command(options))
    assert f"no policy.onnx: {hint}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt2"]


# ONNX


@onnx_only
def test_the_onnx_file_acts_as_the_agent(exported, tmp_path):
    import onnxruntime

    agent, program = exported
    policy.save_onnx(tmp_path / "policy.onnx", program, policy.describe(agent))
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map[policy.FACTS]) == policy.describe(agent)
    for batch, sizes in ((1, ((128, 128), (60, 100))), (3, ((150, 96), (128, 128)))):
        obs = observations(agent, batch, sizes)
        assert_same(agent, session.run(["action"], obs)[0], obs)
    assert str(ROOT).encode() not in (tmp_path / "policy.onnx").read_bytes()


@onnx_only
def test_the_command_runs_it_without_torch_and_the_page_moves_a_robot_with_it(saved, tmp_path, capsys):
    export_policy.main(command({"ckpt": saved / "best.pt", "output_dir": tmp_path, "observations": 3}))
    assert "policy.onnx" in capsys.readouterr().out
    page = (ROOT / "docs" / "export.md").read_text()
    loop = re.search(r"```python\n(# robot_loop\.py\n.*?)```", page, re.S).group(1)
    loop = loop.replace("HZ = 10", "HZ = 200").replace("STEPS = 300", "STEPS = 3")
    (tmp_path / "robot_loop.py").write_text(loop + "\nimport sys\nassert 'torch' not in sys.modules\n")
    done = subprocess.run([sys.executable, "robot_loop.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("action") == 3


@onnx_only
def test_a_file_that_onnxruntime_cannot_run_is_said(tmp_path):
    (tmp_path / "policy.onnx").write_bytes(b"nothing")
    with check.OnnxProcess(tmp_path / "policy.onnx") as process:
        with pytest.raises(check.ExportError, match="onnxruntime could not run the file"):
            for _ in range(100):  # the pipe takes some bytes before the process ends
                process({"image": np.zeros((1, 128, 128, 3), np.uint8)})


def test_an_old_pytorch_is_named(monkeypatch):
    monkeypatch.setattr(policy, "ONNX_PACKAGES", ())
    monkeypatch.setattr(policy, "torch", types.SimpleNamespace(__version__="2.4.1+cpu"))
    assert "PyTorch is 2.4.1+cpu, wanted 2.5 or newer" in policy.missing_for_onnx()
