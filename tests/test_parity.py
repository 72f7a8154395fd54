"""The original's values, equation by equation (tests/parity.py compares them), and the import of its parameters."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from golden_io import load_case, recipe_tensor

from pytorch_serl.agents.sac import SACAgent, SACHybridAgent
from pytorch_serl.hil_serl.load import (
    agent_table,
    classifier_table,
    load_hil_serl_agent,
    load_hil_serl_classifier,
    modules,
    shapes_of,
)
from pytorch_serl.networks.actor_critic import Temperature, normal_log_prob, sample_tanh_normal, tanh_log_det
from pytorch_serl.networks.augment import random_crop
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.networks.resnet import ResNet10

GOLDENS = Path(__file__).parent / "goldens"
CASES = sorted(path.name for path in GOLDENS.glob("*_seed0.npz"))


@pytest.fixture(scope="module")
def units():
    return dict(np.load(GOLDENS / "units.npz"))


def made_up(table: dict, shapes: dict, seed: int = 0) -> dict:
    """Flax parameters of the right names and shapes for whatever `table` describes."""
    wanted = {path: layout.flax_shape(shapes[name]) for name, (path, layout) in table.items()}
    return {path: recipe_tensor(path, shape, seed) for path, shape in wanted.items()}


def made_up_params(agent: SACAgent, seed: int = 0) -> dict:
    return made_up(agent_table(agent, {}), shapes_of(modules(agent)), seed)


def snapshot(agent: SACAgent) -> dict:
    """Every tensor of the agent and of its target, as {name: clone}."""
    named = modules(agent) | {"target": agent.target}
    return {f"{name}.{k}": v.clone() for name, module in named.items() for k, v in module.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- the cases


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    table = parity.compare_case(load_case(GOLDENS / name), quiet=True)
    assert len(table.rows) >= (13 if name.startswith("classifier") else 50)
    assert not table.failures()


def test_parity_notices_a_wrong_network():
    golden = load_case(GOLDENS / "classifier_1cam_seed0.npz")
    golden["params/Dense_1/bias"] = golden["params/Dense_1/bias"] + 1e-3
    out = {name for name, _, _ in parity.compare_case(golden, quiet=True).failures()}
    assert {"out/logits", "out/prob", "loss/bce"} <= out and "out/encoding" not in out


def test_script_exit_status_of_an_unreadable_file(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    command = [sys.executable, str(Path(parity.__file__)), str(tmp_path / "bad.npz")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "cannot be read" in result.stdout


# ---------------------------------------------------------------- units


def test_tanh_normal(units):
    loc, scale, eps = (torch.from_numpy(units[f"tanh/{k}"]) for k in ("loc", "scale", "eps"))
    loc.requires_grad_(), scale.requires_grad_()
    u = loc + scale * eps
    action, log_prob = sample_tanh_normal(loc, scale, eps)
    assert (action.detach().abs() == 1).any() and log_prob.isfinite().all()  # saturated rows are in it
    for name, ours in (
        ("pre_tanh", u),
        ("action", action),
        ("log_det", tanh_log_det(u)),
        ("log_prob", log_prob),
        ("base_log_prob", normal_log_prob(u, loc, scale)),
        ("mode", torch.tanh(loc)),
    ):
        np.testing.assert_allclose(ours.detach().numpy(), units[f"tanh/{name}"], rtol=2e-5, atol=2e-6, err_msg=name)
    grads = torch.autograd.grad(log_prob.sum(), (loc, scale))
    for name, grad in zip(("loc", "scale"), grads, strict=True):
        np.testing.assert_allclose(
            grad.numpy(), units[f"tanh/grad_sum_logp_{name}"], rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_random_crop(units):
    images, offsets = units["crop/img"], units["crop/offset_yx"]  # (B, T, H, W, C), (B, T, 2)
    assert {0, 8} <= set(offsets.ravel())  # both edges are in it
    for t in range(images.shape[1]):
        out = random_crop(torch.from_numpy(images[:, t]), torch.from_numpy(offsets[:, t]).long()).numpy()
        np.testing.assert_array_equal(out, units["crop/out"][:, t])
        for image, (y, x), crop in zip(images[:, t], offsets[:, t], out, strict=True):
            padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="edge")
            np.testing.assert_array_equal(crop, padded[y : y + image.shape[0], x : x + image.shape[1]])


@pytest.mark.parametrize("name", ["resize_down", "resize_up"])
def test_resize(units, name):
    resnet = ResNet10()
    ours = (resnet.preprocess(torch.from_numpy(units[f"{name}/in"])) * resnet.std + resnet.mean) * 255
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1).numpy(), units[f"{name}/out"], atol=2e-3)


def test_temperature(units):
    temperature = Temperature()
    np.testing.assert_allclose(temperature.lagrange.item(), units["lagrange/init_param"], rtol=1e-6)
    np.testing.assert_allclose(temperature().item(), units["lagrange/init_value"], rtol=1e-5)
    penalty = temperature() * (-3.7 - -3.0)  # the temperature's loss at entropy -3.7, target -3
    np.testing.assert_allclose(penalty.item(), units["lagrange/penalty_lhs-3.7_rhs-3.0"], rtol=1e-5)


# ---------------------------------------------------------------- initialisation


def check_init(stats: dict, table: dict, tensors: dict) -> None:
    """Mean, deviation and bound of every tensor are the original's, up to the sampling error of its size."""
    paths = {path: name for name, (path, _) in table.items()}
    assert stats.keys() == paths.keys()
    for path, theirs in stats.items():
        ours = tensors[paths[path]].double()
        size = np.prod(theirs["shape"])
        std = theirs["std"]
        within = 6 * std / size**0.5 + 1e-6
        np.testing.assert_allclose(ours.mean(), theirs["mean"], rtol=1e-6, atol=within, err_msg=path)
        np.testing.assert_allclose(ours.std(correction=0), std, rtol=0.01 + 4 / size**0.5, atol=1e-7, err_msg=path)
        largest = ours.abs().max().item()
        if size > 1000:  # uniform or cut normal: the largest value sits at the bound
            np.testing.assert_allclose(largest, theirs["absmax"], rtol=0.05, err_msg=path)


@pytest.mark.parametrize("case", ["single", "dual"])
def test_agent_initialisation(case):
    torch.manual_seed(0)
    continuous, grasp = (6, 3) if case == "single" else (12, 9)
    agent = SACHybridAgent(["image"], continuous, grasp, state_dim=10, device="cpu")
    tensors = {f"{n}.{k}": v for n, m in modules(agent).items() for k, v in m.state_dict().items()}
    stats = json.loads((GOLDENS / f"init_stats_{case}_pretrained_1cam.json").read_text())
    check_init(stats, agent_table(agent, {}), tensors)


def test_classifier_initialisation():
    torch.manual_seed(0)
    classifier = RewardClassifier(["image"], local=False, device="cpu")
    stats = json.loads((GOLDENS / "init_stats_classifier_1cam.json").read_text())
    check_init(stats, classifier_table(classifier, {}), classifier.state_dict())


# ---------------------------------------------------------------- several cameras


@pytest.mark.parametrize("keys", [("wrist_1", "side"), ("side", "wrist_1"), ("b", "c", "a")])
def test_several_cameras(keys):
    """The backbone sits under the alphabetically first camera, the encoding has the cameras in `image_keys` order."""
    agent = SACAgent(keys, 6, state_dim=3, device="cpu")
    params = made_up_params(agent)
    assert {path.split("/")[2] for path in params if "pretrained_encoder" in path} == {f"encoder_{min(keys)}"}
    load_hil_serl_agent(agent, params)
    rng = np.random.default_rng(0)
    obs = {key: rng.integers(0, 256, (1, 128, 128, 3), dtype=np.uint8) for key in keys} | {"state": np.ones((1, 3))}
    with torch.no_grad():
        encoding = agent.encoder(agent.encoder.pool(agent._features(agent._tensors(obs))))
        for i, key in enumerate(keys):
            alone = SACAgent(
                [key], 6, device="cpu"
            )  # this camera only; gets this camera's head and the shared backbone
            own = {
                path.replace(f"encoder_{min(keys)}/pretrained", f"encoder_{key}/pretrained"): value
                for path, value in params.items()
                if f"encoder_{key}/" in path or "pretrained_encoder" in path
            }
            load_hil_serl_agent(alone, made_up_params(alone, 1) | own)
            expected = alone.encoder(alone.encoder.pool(alone._features(alone._tensors({key: obs[key]}))))
            torch.testing.assert_close(encoding[:, 256 * i : 256 * (i + 1)], expected)


def test_backbone_under_another_camera_is_found():
    agent = SACAgent(("wrist_1", "side"), 6, device="cpu")
    params = made_up_params(agent)
    moved = {path.replace("encoder_side/pretrained", "encoder_wrist_1/pretrained"): v for path, v in params.items()}
    assert moved.keys() != params.keys()
    load_hil_serl_agent(agent, moved)
    kernel = params["modules_actor/encoder/encoder_side/pretrained_encoder/conv_init/kernel"]
    assert np.array_equal(agent.backbone.conv_init.weight.numpy(), kernel.transpose(3, 2, 0, 1))


def test_trainable_backbone_per_camera():
    agent = SACHybridAgent(("wrist_1", "side"), 12, 9, trainable_backbone=True, device="cpu")
    params = made_up_params(agent)
    load_hil_serl_agent(agent, params, made_up_params(agent, 1))
    for key in ("wrist_1", "side"):
        kernel = params[f"modules_actor/encoder/encoder_{key}/conv_init/kernel"]
        online, target = (
            encoder.backbones[key].conv_init.weight for encoder in (agent.encoder, agent.target["encoder"])
        )
        assert np.array_equal(online.detach().numpy(), kernel.transpose(3, 2, 0, 1))
        assert not torch.equal(online, target)


def test_classifier_with_two_cameras():
    classifier = RewardClassifier(("wrist_1", "side"), local=False, device="cpu")
    shared = classifier.backbone
    before = shared.conv_init.weight.clone()
    params = made_up(classifier_table(classifier, {}), {k: tuple(v.shape) for k, v in classifier.state_dict().items()})
    load_hil_serl_classifier(classifier, {f"params/{path}": value for path, value in params.items()})
    kernel = params["encoder_def/encoder_side/pretrained_encoder/conv_init/kernel"]
    assert np.array_equal(classifier.backbone.conv_init.weight.detach().numpy(), kernel.transpose(3, 2, 0, 1))
    assert torch.equal(shared.conv_init.weight, before)  # an agent that shares the backbone keeps its own
    bad = params | {"Dense_2/bias": np.zeros(1), "Dense_0/bias": np.zeros(7)}
    del bad["Dense_1/bias"]
    state = {k: v.clone() for k, v in classifier.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_hil_serl_classifier(classifier, bad)
    for text in ("Dense_1/bias: missing", "Dense_2/bias: unknown", "Dense_0/bias: shape is (7,), wanted (256,)"):
        assert text in str(error.value)
    assert same(state, classifier.state_dict())


# ---------------------------------------------------------------- import


@pytest.fixture(scope="module")
def agent():
    return SACHybridAgent(["image"], 6, 3, state_dim=4, device="cpu")


def test_import_accepts_prefix_and_nesting_and_resets_adam(agent):
    params = made_up_params(agent)
    load_hil_serl_agent(agent, params)
    flat = snapshot(agent)
    head = flat["online.critic.head.weight"]
    assert torch.equal(head[0], head[1])  # the copied last Dense
    assert torch.equal(head, flat["target.critic.head.weight"])  # target defaults to params
    nested: dict = {}
    for path, value in params.items():
        node = nested
        *parents, leaf = path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    for form in ({f"params/{path}": value for path, value in params.items()}, nested, {"params": nested}):
        load_hil_serl_agent(agent, made_up_params(agent, 5))
        agent.optimizers["temperature"].zero_grad()
        agent.temperature().backward()
        agent.optimizers["temperature"].step()
        assert not same(flat, snapshot(agent))
        load_hil_serl_agent(agent, form)
        assert same(flat, snapshot(agent))
        assert not agent.optimizers["temperature"].state


def test_import_lists_everything_that_is_wrong_and_loads_nothing(agent):
    before = snapshot(agent)
    params = made_up_params(agent, 7)
    del params["modules_actor/Dense_0/kernel"], params["modules_temperature/lagrange"]
    params["modules_actor/Dense_7/kernel"] = np.zeros((2, 2))
    params["modules_grasp_critic/Dense_0/bias"] = np.zeros(9)
    params["modules_critic/Dense_0/bias"] = np.array([np.nan])
    with pytest.raises(ValueError) as error:
        load_hil_serl_agent(agent, params)
    for text in (
        "modules_actor/Dense_0/kernel: missing, wanted (256, 6)",
        "modules_temperature/lagrange: missing, wanted ()",
        "modules_actor/Dense_7/kernel: unknown",
        "modules_grasp_critic/Dense_0/bias: shape is (9,), wanted (3,)",
        "modules_critic/Dense_0/bias: float64 values that are not all finite",
    ):
        assert text in str(error.value)
    assert same(before, snapshot(agent))


def test_import_of_another_ensemble_size(agent):
    params = made_up_params(SACHybridAgent(["image"], 6, 3, state_dim=4, ensemble_size=3, device="cpu"))
    with pytest.raises(ValueError) as error:
        load_hil_serl_agent(agent, params)
    problems = str(error.value).split(": ", 1)[1].split("; ")
    assert len(problems) == 8 and all("VmapMLP_0" in problem and "shape is (3, " in problem for problem in problems)


def test_import_of_a_target(agent):
    params, target = made_up_params(agent, 1), made_up_params(agent, 2)
    target |= {path: params[path] for path in params if "pretrained_encoder" in path}
    load_hil_serl_agent(agent, params, target)
    ours = agent.target["grasp_critic"].head.weight.numpy()
    assert np.array_equal(ours, target["modules_grasp_critic/Dense_0/kernel"].T)
    before = snapshot(agent)
    frozen = "modules_actor/encoder/encoder_image/pretrained_encoder/ResNetBlock_2/Conv_0/kernel"
    bad = target | {frozen: target[frozen] + 1, "modules_critic/Dense_0/bias": np.zeros(2)}
    with pytest.raises(ValueError) as error:
        load_hil_serl_agent(agent, params, bad)
    assert f"target {frozen}: differs" in str(error.value)
    assert "target modules_critic/Dense_0/bias: shape is (2,), wanted (1,)" in str(error.value)
    assert same(before, snapshot(agent))


def test_import_of_a_target_whose_frozen_weights_were_averaged(agent):
    params = made_up_params(agent, 1)
    frozen = {path: value for path, value in params.items() if "pretrained_encoder" in path}
    averaged = dict(frozen)
    for _ in range(200):  # what the original does to its whole tree in each update
        averaged = {path: np.float32(0.995) * v + np.float32(0.005) * frozen[path] for path, v in averaged.items()}
    assert any((averaged[path] != frozen[path]).any() for path in frozen)
    load_hil_serl_agent(agent, params, params | averaged)
    kernel = next(value for path, value in frozen.items() if path.endswith("conv_init/kernel"))
    assert np.array_equal(agent.backbone.conv_init.weight.numpy(), kernel.transpose(3, 2, 0, 1))
    other = {path: value + 0.01 for path, value in frozen.items()}
    with pytest.raises(ValueError, match="differs from the online one"):
        load_hil_serl_agent(agent, params, params | other)
