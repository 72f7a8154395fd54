"""Agents: shapes, equations by hand, who trains what, saving, determinism, devices, learning."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytorch_serl.agents.sac import SACAgent, SACHybridAgent
from pytorch_serl.networks import augment
from pytorch_serl.networks import resnet as resnet_module
from pytorch_serl.networks.augment import crop_offsets
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.networks.resnet import FEATURE_SHAPE, ResNet10, fast_dropout
from pytorch_serl.utils.device import DEVICE

LOSSES = {"critic_loss", "grasp_critic_loss", "actor_loss", "temperature_loss"}


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return ResNet10()


def make_agent(seed=0, cameras=(), state_dim=5, arms=0, **settings):
    """A SACAgent (arms=0) or a hybrid one, on the CPU."""
    torch.manual_seed(seed)
    settings = {"state_dim": state_dim, "device": "cpu"} | settings
    if not arms:
        return SACAgent(cameras, 6, **settings)
    return SACHybridAgent(cameras, 6 * arms, 3**arms, **settings)


def make_obs(agent, n, rng, size=None):
    """float32 features, or uint8 images of `size` (H, W)."""
    obs = {}
    for key in agent.image_keys:
        if size is None:
            obs[key] = rng.standard_normal((n, *FEATURE_SHAPE), dtype=np.float32)
        else:
            obs[key] = rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)
    if agent.state_dim:
        obs["state"] = rng.standard_normal((n, agent.state_dim), dtype=np.float32)
    return obs


def make_batch(agent, n=4, seed=0, size=None):
    rng = np.random.default_rng(seed)
    arms = max(agent.num_grippers, 1)
    actions = rng.uniform(-1, 1, (n, arms, agent.action_dim // arms + bool(agent.num_grippers)))
    if agent.num_grippers:
        actions[..., -1] = rng.integers(-1, 2, (n, arms))
    return {
        "observations": make_obs(agent, n, rng, size),
        "next_observations": make_obs(agent, n, rng, size),
        "actions": actions.reshape(n, -1).astype(np.float32),
        "rewards": rng.standard_normal(n, dtype=np.float32),
        "masks": (rng.random(n) < 0.8).astype(np.float32),
        "grasp_penalty": np.where(rng.random(n) < 0.5, -0.02, 0).astype(np.float32),
    }


def tensors(agent):
    """Everything a checkpoint holds, Adam's state too, as {name: clone}."""
    state, out = agent.state_dict(), {}
    for name, module in state["modules"].items():
        out |= {f"{name}.{k}": v.clone() for k, v in module.items()}
    for name, optimizer in state["optimizers"].items():
        out |= {f"adam.{name}.{i}.{k}": v.clone() for i, s in optimizer["state"].items() for k, v in s.items()}
    return out


def changed(before, after):
    """First parts of the names whose tensor is new or differs in any bit."""
    return {k for k in after if k not in before or not torch.equal(before[k], after[k])}


def set_constant(layer, values):
    """Make a last layer output `values` whatever comes in."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor(values).reshape(layer.bias.shape))


# ---------------------------------------------------------------- interface


def test_the_specified_python():
    agent = SACAgent(image_keys=["image"], action_dim=6, lr=3e-4)
    hybrid = SACHybridAgent(image_keys=["image"], continuous_action_dim=6, grasp_action_dim=3, lr=3e-4)
    classifier = RewardClassifier(image_keys=["image"])
    obs = {"image": np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)}
    success_prob, is_success = classifier.predict_success(obs)
    assert isinstance(success_prob, float) and 0 <= success_prob <= 1 and isinstance(is_success, bool)
    assert agent.sample_actions(obs, argmax=False).shape == (6,) and hybrid.sample_actions(obs).shape == (7,)
    assert agent.device == DEVICE and agent.discount == 0.95 and agent.tau == 0.005 and agent.critic.ensemble_size == 2
    assert (agent.target_entropy, hybrid.target_entropy) == (-3.0, -3.5)
    assert all(g["lr"] == 3e-4 for optimizer in hybrid.optimizers.values() for g in optimizer.param_groups)


def test_target_entropy_counts_grippers():
    assert make_agent(arms=2).target_entropy == -7.0
    assert SACAgent([], 12, state_dim=1, device="cpu").target_entropy == -6.0


@pytest.mark.parametrize("arms", [0, 1, 2])
@pytest.mark.parametrize("state_dim", [0, 5])
@pytest.mark.parametrize("cameras", [("image",), ("wrist", "side")])
def test_shapes(resnet, cameras, state_dim, arms):
    agent = make_agent(0, cameras, state_dim, arms, backbone=resnet)
    action_dim = {0: 6, 1: 7, 2: 14}[arms]
    rng = np.random.default_rng(0)
    batch = make_obs(agent, 3, rng, (64, 64))
    single = {k: v[0] for k, v in batch.items()}
    for obs, shape in (
        (batch, (3, action_dim)),
        (single, (action_dim,)),
        ({k: v[:1] for k, v in batch.items()}, (1, action_dim)),
    ):
        for as_given in (obs, {k: torch.as_tensor(v) for k, v in obs.items()}):
            action = agent.sample_actions(as_given)
            assert isinstance(action, np.ndarray) and action.dtype == np.float32 and action.shape == shape
            assert np.abs(action).max() <= 1
            if arms:
                assert set(action.reshape(-1, arms, 7)[..., -1].ravel()) <= {-1, 0, 1}
    np.testing.assert_allclose(
        agent.sample_actions(single, argmax=True), agent.sample_actions(batch, argmax=True)[0], atol=1e-5
    )
    assert not np.array_equal(agent.sample_actions(single), agent.sample_actions(single))

    info = agent.update(make_batch(agent, 1))  # batch of one, stored features
    assert {k for k in info if k.endswith("_loss")} == (LOSSES if arms else LOSSES - {"grasp_critic_loss"})
    assert all(v.shape == () and v.isfinite() and not v.requires_grad for v in info.values())
    assert {k for k in agent.update(make_batch(agent, 1), critic_only=True) if k.endswith("_loss")} == (
        {"critic_loss", "grasp_critic_loss"} if arms else {"critic_loss"}
    )


def test_other_image_sizes_and_arm_dimensions(resnet):
    agent = SACHybridAgent(["a", "b"], 3, 3, backbone=resnet, device="cpu")  # an arm that only translates
    rng = np.random.default_rng(0)
    obs = {
        "a": rng.integers(0, 256, (2, 96, 160, 3), dtype=np.uint8),
        "b": rng.integers(0, 256, (2, 240, 200, 3), dtype=np.uint8),
    }
    assert agent.sample_actions(obs).shape == (2, 4)


def test_encoder_resizes_like_torchvision(resnet):
    from torchvision.transforms.v2.functional import resize

    images = torch.randint(0, 256, (2, 90, 200, 3), dtype=torch.uint8)
    expected = resize(images.permute(0, 3, 1, 2).float(), [128, 128], antialias=True).permute(0, 2, 3, 1)
    ours = resnet.preprocess(images)
    direct = (expected / 255 - resnet.mean.flatten()) / resnet.std.flatten()
    torch.testing.assert_close(ours.permute(0, 2, 3, 1), direct, atol=1e-5, rtol=1e-5)


def test_pictures_with_negative_strides(resnet):
    agent = make_agent(0, ["image"], backbone=resnet)
    bgr = make_obs(agent, 2, np.random.default_rng(0), (64, 64))
    rgb = bgr | {"image": bgr["image"][..., ::-1]}
    copied = bgr | {"image": rgb["image"].copy()}
    assert np.array_equal(agent.sample_actions(rgb, argmax=True), agent.sample_actions(copied, argmax=True))
    one = {key: value[0] for key, value in rgb.items()}
    assert np.array_equal(
        agent.encode_frames(one)["image"], agent.encode_frames({k: v.copy() for k, v in one.items()})["image"]
    )


def test_batches_are_checked():
    agent = make_agent(0, ["image"], arms=1)
    batch = make_batch(agent, 3)
    for key in ("observations", "next_observations", "actions", "rewards", "masks", "grasp_penalty"):
        with pytest.raises(ValueError, match=f"batch lacks .*{key}"):
            agent.update({k: v for k, v in batch.items() if k != key})
    for change in ({"rewards": batch["rewards"][:, None]}, {"masks": batch["masks"][:1]}):
        with pytest.raises(ValueError, match=r"wanted \(B,\)"):
            agent.update(batch | change)
    with pytest.raises(ValueError, match="another number of observations"):
        agent.update(batch | {k: batch[k][:2] for k in ("actions", "rewards", "masks", "grasp_penalty")})
    one = make_batch(agent, 1)
    agent.update(one, clone_weight=1.0)
    with pytest.raises(ValueError, match="batch of two or more"):
        agent.update(one, clone_weight=1.0, advantage_weighted=True)
    for settings in ({"action_dim": 0}, {"action_dim": 6, "ensemble_size": 0}):
        with pytest.raises(ValueError, match="wanted 1 or more of both"):
            SACAgent(["image"], device="cpu", **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dropout": 1.0}, "dropout is 1.0; wanted a rate from 0 to below 1"),
        ({"dropout": -0.5}, "dropout is -0.5"),
        ({"discount": 2}, "discount is 2.0; wanted 0 to 1"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"q_range": (1, 0)}, r"q_range is \(1.0, 0.0\); wanted \(lowest, highest\)"),
        ({"state_dim": -1}, "state_dim is -1; wanted 0 or more"),
        ({"init_temperature": 0}, "init_temperature is 0.0; wanted a number above 0"),
        ({"device": "gpu"}, "device 'gpu' is not usable here"),
        ({"action_dim": 6}, "wanted continuous_action_dim"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        SACHybridAgent(["image"], **({"device": "cpu"} | settings))


def test_a_batch_with_nan_as_a_gripper_command_is_refused():
    agent = make_agent(0, ["image"], arms=1)
    batch = make_batch(agent, 3)
    batch["actions"][1, -1] = np.nan
    with pytest.raises(ValueError, match="actions hold NaN; wanted a gripper command"):
        agent.update(batch)


def test_observations_are_checked():
    agent = make_agent(0, ["a", "b"], arms=1)
    obs = make_obs(agent, 2, np.random.default_rng(0))
    for change, text in (
        ({"b": obs["b"][:1]}, "wanted the same number"),
        ({"state": obs["state"][:1]}, "wanted the same number"),
        ({k: v[:0] for k, v in obs.items()}, "at least one"),
        ({"a": None}, "holds a NoneType"),
        ({"state": None}, "holds a NoneType"),
    ):
        with pytest.raises(ValueError, match=text):
            agent.sample_actions(obs | change)
    for other in ((obs, {}), [obs], obs["a"], None):  # the first is what env.reset() returns
        for look in (agent.sample_actions, agent.encode, agent.encode_frames):
            with pytest.raises(ValueError, match=f"is a {type(other).__name__}; wanted a dict .* returns .obs, info."):
                look(other)
    with pytest.raises(FloatingPointError, match="state holds NaN"):
        agent.sample_actions(obs | {"state": np.full_like(obs["state"], np.nan)})


def test_damaged_agents_are_refused_and_change_nothing(tmp_path):
    agent = make_agent(0, ["image"], arms=1)
    whole, before = agent.state_dict(), tensors(agent)
    optimizers = whole["optimizers"]
    for damaged in (
        {"agent": 3},
        whole | {"config": 3},
        whole | {"modules": {"online": 3}},
        whole | {"modules": whole["modules"] | {"actor": {"weight": "text"}}},
        whole | {"optimizers": {}},
        whole | {"optimizers": optimizers | {"actor": {"state": {}}}},
        whole | {"optimizers": optimizers | {"actor": optimizers["temperature"]}},
    ):
        torch.save(damaged, tmp_path / "agent.pt")
        with pytest.raises(ValueError, match="agent.pt: not an agent checkpoint|its actor optimiser has"):
            agent.load(tmp_path / "agent.pt")
        assert not changed(before, tensors(agent))


def test_camera_names():
    assert SACAgent("image", 6, device="cpu").image_keys == ["image"]
    assert RewardClassifier("image", device="cpu").image_keys == ["image"]
    for keys, text in (
        (["a", "a"], "each camera once"),
        (["observation.image"], "rename the camera"),
        (["training"], "training"),
    ):
        for make in (lambda k: SACAgent(k, 6, device="cpu"), lambda k: RewardClassifier(k, device="cpu")):
            with pytest.raises(ValueError, match=text):
                make(keys)


def test_a_trained_backbone_starts_from_the_given_one(resnet):
    agent = make_agent(0, ["a", "b"], trainable_backbone=True, backbone=resnet)
    assert agent.backbone is None
    for encoder in (agent.encoder, agent.target["encoder"]):
        for key in ("a", "b"):
            assert torch.equal(encoder.backbones[key].conv_init.weight, resnet.conv_init.weight)
    before = resnet.conv_init.weight.clone()
    batch = make_batch(agent, 2, size=(32, 32))
    agent.update(batch)
    assert torch.equal(resnet.conv_init.weight, before)
    assert not torch.equal(agent.encoder.backbones["a"].conv_init.weight, before)


def test_bad_input_is_refused(resnet):
    agent = make_agent(0, ["image"], 5, 1, backbone=resnet)
    good = make_obs(agent, 2, np.random.default_rng(0), (32, 32))
    for bad, text in (
        ({"image": good["image"] / 255.0}, "wanted uint8"),
        ({"image": good["image"][..., :1]}, "wanted uint8"),
        ({"state": good["state"][:, :4]}, r"wanted \(B, 5\)"),
    ):
        with pytest.raises(ValueError, match=text):
            agent.sample_actions(good | bad)
    with pytest.raises(ValueError, match="lacks .'image'."):
        agent.sample_actions({"state": good["state"]})
    with pytest.raises(ValueError, match="lacks .'state'."):
        agent.sample_actions({"image": good["image"]})
    batch = make_batch(agent)
    with pytest.raises(ValueError, match="6 continuous . 1 gripper"):
        agent.update(batch | {"actions": batch["actions"][:, :6]})
    with pytest.raises(ValueError, match="grasp_penalty"):
        agent.update({k: v for k, v in batch.items() if k != "grasp_penalty"})
    with pytest.raises(ValueError, match="action_dim=6"):
        make_agent().update(make_batch(make_agent(arms=1)))
    with pytest.raises(ValueError, match="wanted 3 .* or 9"):
        SACHybridAgent(["image"], 6, 4)
    with pytest.raises(ValueError, match="at least one camera"):
        SACAgent([], 6)


# ---------------------------------------------------------------- equations


def two_samples(agent, **others):
    batch = make_batch(agent, 2) | {"rewards": np.array([1, 2], np.float32), "masks": np.array([1, 0], np.float32)}
    return batch | others


def test_critic_loss_by_hand():
    agent = make_agent(ensemble_size=3, discount=0.5)
    set_constant(agent.critic.head, [1.0, 2.0, 3.0])
    set_constant(agent.target["critic"].head, [5.0, 4.0, 6.0])
    info = agent.update(two_samples(agent), critic_only=True)
    # y = 1 + 0.5 * min(5, 4, 6) = 3 and, masked, y = 2; the mean over the ensemble and the batch of (q - y)^2
    expected = np.mean([(q - y) ** 2 for q in (1, 2, 3) for y in (3, 2)])
    assert info["critic_loss"].item() == pytest.approx(expected) and info["target_q"].item() == pytest.approx(2.5)


def test_actor_and_temperature_loss_by_hand():
    agent = make_agent(ensemble_size=3, init_temperature=0.2)
    set_constant(agent.critic.head, [1.0, 2.0, 6.0])
    set_constant(agent.actor.mean, [0.3] * 6)
    set_constant(agent.actor.log_std, [math.log(0.5)] * 6)
    noise = {k: torch.full((2, 6), v) for k, v in (("critic_next", 0.0), ("temp_next", -1.0), ("actor", 1.0))}
    info = agent.update(two_samples(agent), noise=noise)

    def log_prob(eps):
        u = 0.3 + 0.5 * eps
        return 6 * (-0.5 * eps**2 - math.log(0.5) - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(u) ** 2))

    assert info["actor_loss"].item() == pytest.approx(0.2 * log_prob(1.0) - 3.0, rel=1e-5)  # mean of Q, not minimum
    entropy = -log_prob(-1.0)
    assert info["temperature_loss"].item() == pytest.approx(0.2 * (entropy + 3.0), rel=1e-5)
    assert (agent.temperature().item() < 0.2) == (entropy > -3.0)  # too much entropy lowers the temperature


def test_standard_deviation_is_clipped_not_its_logarithm():
    agent = make_agent()
    for log_std, std in ((10.0, 5.0), (-30.0, 1e-5), (0.0, 1.0)):
        set_constant(agent.actor.log_std, [log_std] * 6)
        assert agent.actor(torch.zeros(1, 64))[1].unique().item() == pytest.approx(std)


def test_grasp_critic_loss_by_hand():
    agent = make_agent(arms=1, discount=0.5)
    set_constant(agent.grasp_critic.head, [0.0, 1.0, 5.0])  # picks command 2
    set_constant(agent.target["grasp_critic"].head, [7.0, 8.0, 2.0])  # evaluates it: 2, not 8
    actions = make_batch(agent, 2)["actions"]
    actions[:, -1] = [-1, 0]  # commands 0 and 1
    batch = two_samples(agent, actions=actions, grasp_penalty=np.array([-0.25, 0], np.float32))
    info = agent.update(batch, critic_only=True)
    targets = (1 - 0.25 + 0.5 * 2, 2)
    assert info["grasp_target_q"].item() == pytest.approx(np.mean(targets))
    assert info["grasp_critic_loss"].item() == pytest.approx(np.mean([(0 - targets[0]) ** 2, (1 - targets[1]) ** 2]))


@pytest.mark.parametrize("how", [{}, {"critic_only": True}, {"clone_weight": 1.0}, {"sac_weight": 0.0}])
def test_grasp_penalty_reaches_the_loss_and_only_that_one(how):
    reported = []
    for penalty in (0.0, -1.0):
        agent = make_agent(arms=2, dropout=0.0)
        torch.manual_seed(1)
        reported.append(agent.update(make_batch(agent) | {"grasp_penalty": np.full(4, penalty, np.float32)}, **how))
    assert {k for k in reported[0] if reported[0][k] != reported[1][k]} == {"grasp_critic_loss", "grasp_target_q"}


@pytest.mark.parametrize("arms", [0, 1, 2])
def test_zero_q_is_the_start_of_both_networks_and_learns(arms):
    agent = make_agent(arms=arms)
    before = tensors(agent)
    agent.zero_q()
    assert all(".head." in name for name in changed(before, tensors(agent)))
    encoding, action = torch.randn(4, agent.encoder.encoding_dim), torch.randn(4, agent.action_dim)
    for networks in (agent.online, agent.target):
        assert (networks["critic"](encoding, action) == 0).all()
        assert not arms or (networks["grasp_critic"](encoding) == 0).all()
    for _ in range(2):
        agent.update(make_batch(agent))
    q = agent.critic(encoding, action)
    assert (q != 0).all() and not torch.equal(q[0], q[1])


def test_joint_gripper_index_both_ways():
    agent = make_agent(arms=2)
    for left in (-1, 0, 1):
        for right in (-1, 0, 1):
            action = torch.arange(14.0)[None] / 100
            action[0, 6], action[0, 13] = left, right
            arm, index = agent._split_actions(action)
            assert index.item() == 3 * (left + 1) + right + 1
            assert torch.equal(arm[0], action[0, [*range(6), *range(7, 13)]])
            set_constant(agent.grasp_critic.head, [float(i == index.item()) for i in range(9)])
            assert torch.equal(agent._join_actions(arm, torch.zeros(1, 64), agent.online), action)
    _, index = agent._split_actions(torch.tensor([[0.0] * 6 + [0.4] + [0.0] * 6 + [-0.6]]))
    assert index.item() == 3 * 1 + 0  # the nearest command


def test_greedy_gripper_even_when_sampling():
    agent = make_agent(arms=1)
    set_constant(agent.grasp_critic.head, [0.0, 0.0, 1.0])
    obs = make_obs(agent, 50, np.random.default_rng(0))
    assert (agent.sample_actions(obs)[:, -1] == 1).all()


# ---------------------------------------------------------------- who trains what


def test_routing_of_the_actor_and_temperature_losses():
    agent = make_agent(cameras=["image"], arms=1)
    agent.update(make_batch(agent))
    before = tensors(agent)
    agent.update(make_batch(agent, seed=1), train_critic=False)
    moved = changed(before, tensors(agent))
    assert not any(
        name.startswith(("online", "adam.online", "backbone")) for name in moved
    )  # encoder and critics: no bit
    assert {k for k in before if k.startswith(("actor.", "temperature."))} <= moved


def test_the_temperature_stays_while_cloning_sets_the_deviation():
    agent = make_agent(cameras=["image"], arms=1)
    info = agent.update(make_batch(agent), clone_weight=1.0)
    assert agent.temperature().item() == pytest.approx(0.01, rel=1e-6) and "temperature_loss" not in info
    info = agent.update(make_batch(agent))
    assert agent.temperature().item() != pytest.approx(0.01, rel=1e-6) and "temperature_loss" in info


def test_routing_of_the_critic_losses():
    agent = make_agent(cameras=["image"], arms=1)
    agent.update(make_batch(agent))
    before = tensors(agent)
    agent.update(make_batch(agent, seed=1), critic_only=True)
    moved = changed(before, tensors(agent))
    assert {name.split(".")[0] for name in moved} == {"online", "target", "average_actor", "adam"}
    assert not any(name.startswith(("adam.actor", "adam.temperature")) for name in moved)  # momentum does not move them
    for part in ("online.encoder.heads", "online.encoder.state", "online.critic", "online.grasp_critic"):
        names = {k for k in before if k.startswith(part)}
        assert names and names <= moved


def test_actor_loss_gradient_stops_at_the_encoding():
    agent = make_agent(cameras=["image"], arms=1)
    prepared = agent._prepare(make_batch(agent), augment=False)
    enc = agent._encode(prepared, for_actor=True)
    loss, _ = agent._actor_loss(enc["obs_actor"], torch.randn(4, 6))
    grads = torch.autograd.grad(loss, list(agent.encoder.parameters()), allow_unused=True)
    assert all(g is None for g in grads)
    assert enc["obs"].requires_grad and enc["obs_clone"].requires_grad
    assert not any(v.requires_grad for k, v in enc.items() if k not in ("obs", "obs_clone"))


def test_losses_of_one_update_read_the_old_parameters():
    agent = make_agent(arms=1, dropout=0.0)
    batch, noise = make_batch(agent), {k: torch.randn(4, 6) for k in ("critic_next", "temp_next", "actor")}
    prepared = agent._prepare(batch, augment=False)
    expected, _ = agent._actor_loss(agent._encode(prepared, for_actor=True)["obs_actor"], noise["actor"])
    assert agent.update(batch, noise=noise)["actor_loss"].item() == expected.item()


@pytest.mark.parametrize(
    "options, shared", [({}, True), ({"advantage_weighted": True}, False), ({"critics_train_encoder": False}, False)]
)
def test_cloning_alone_shapes_the_encoder_where_the_critics_must_not(options, shared):
    """Other rewards change the critics, and where these train it the encoder, too."""
    after = []
    for reward in (0.0, 1.0):
        agent = make_agent(0, ["image"], arms=1)
        batch = make_batch(agent) | {"rewards": np.full(4, reward, np.float32)}
        torch.manual_seed(1)
        agent.update(batch, sac_weight=0.0, clone_weight=1.0, **options)
        after.append(tensors(agent))
    differ = {name.split(".")[1] for name in changed(*after) if name.startswith("online.")}
    assert differ == {"critic", "grasp_critic"} | ({"encoder"} if shared else set())


def test_critics_alone_leave_the_encoder_where_they_must_not_train_it():
    agent = make_agent(0, ["image"], arms=1)
    before = tensors(agent)
    agent.update(make_batch(agent), critic_only=True, critics_train_encoder=False)
    moved = {name.split(".")[1] for name in changed(before, tensors(agent)) if name.startswith("online.")}
    assert moved == {"critic", "grasp_critic"}


def test_a_share_of_the_advantage_weighs_the_clone():
    batch = make_batch(make_agent(arms=1)) | {"is_demo": np.ones(4, np.float32)}
    losses = []
    for options in ({}, {"advantage_share": 0.0}, {"advantage_share": 0.25}, {"advantage_share": 0.5}):
        agent = make_agent(arms=1)
        torch.manual_seed(1)
        info = agent.update(batch, sac_weight=0.0, clone_weight=1.0, advantage_weighted=bool(options), **options)
        losses.append(info["clone_loss"].item())
    assert losses[0] == losses[1] != losses[2]
    assert losses[2] - losses[0] == pytest.approx((losses[3] - losses[0]) / 2, rel=1e-3)


@pytest.mark.parametrize("arms", [0, 1])
def test_frozen_backbone_never_moves_and_is_stored_once(arms):
    agent = make_agent(cameras=["a", "b"], arms=arms)
    before = tensors(agent)
    for i in range(3):
        agent.update(make_batch(agent, 2, seed=i, size=(32, 32)), critic_only=i == 1)
    after = tensors(agent)
    frozen = {k for k in after if k.startswith("backbone.")}
    assert len(frozen) == 36 and not frozen & changed(before, after)
    ids = {id(p) for p in agent.backbone.parameters()}
    for optimizer in agent.optimizers.values():
        assert not ids & {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not ids & {id(p) for module in (agent.online, agent.target, agent.actor) for p in module.parameters()}
    assert not any(p.requires_grad or p.grad is not None for p in agent.backbone.parameters())
    assert sum("conv_init.weight" in k for k in after) == 1
    assert all(p.is_leaf and not p.requires_grad for p in agent.target.parameters())


def test_trainable_backbone_moves_with_its_target():
    agent = make_agent(cameras=["a", "b"], arms=1, trainable_backbone=True)
    before = tensors(agent)
    agent.update(make_batch(agent, 2, size=(32, 32)), critic_only=True)
    after = tensors(agent)
    assert agent.backbone is None
    for key in ("a", "b"):
        name = f"encoder.backbones.{key}.conv_init.weight"
        assert not torch.equal(after[f"online.{name}"], before[f"online.{name}"])
        assert not torch.equal(after[f"target.{name}"], before[f"target.{name}"])
    assert not torch.equal(
        after["online.encoder.backbones.a.conv_init.weight"], after["online.encoder.backbones.b.conv_init.weight"]
    )


@pytest.mark.parametrize("trainable", [False, True])
def test_target_moves_by_exactly_tau(trainable):
    agent = make_agent(cameras=["image"], arms=1, trainable_backbone=trainable, tau=0.01)
    size = (32, 32) if trainable else None
    agent.update(make_batch(agent, 2, size=size))
    for critic_only in (True, False):
        before = tensors(agent)
        agent.update(make_batch(agent, 2, seed=1, size=size), critic_only)
        after = tensors(agent)
        names = [k.removeprefix("target.") for k in after if k.startswith("target.")]
        assert len(names) == len(list(agent.online.parameters()))
        for name in names:
            expected = torch.lerp(before[f"target.{name}"], after[f"online.{name}"], 0.01)
            assert torch.equal(after[f"target.{name}"], expected), name


@pytest.mark.parametrize("arms", [0, 1])
def test_the_average_can_act_without_a_copy(arms):
    agent = make_agent(cameras=["image"], arms=arms)
    for seed in range(3):
        agent.update(make_batch(agent, seed=seed))
    obs = make_obs(agent, 2, np.random.default_rng(0))
    action = agent.sample_actions(obs, argmax=True, averaged=True)
    assert np.array_equal(action, agent.averaged().sample_actions(obs, argmax=True))
    assert not np.array_equal(action, agent.sample_actions(obs, argmax=True))


def test_dropout_acts_in_the_actors_passes_only():
    agent = make_agent(cameras=["image"], arms=1)
    prepared = agent._prepare(make_batch(agent), augment=False)
    first, second = (agent._encode(prepared, for_actor=True) for _ in range(2))
    assert {k for k in first if not torch.equal(first[k], second[k])} == {"next_mean", "next_std", "obs_actor"}
    obs = make_obs(agent, 2, np.random.default_rng(0))
    assert np.array_equal(agent.sample_actions(obs, argmax=True), agent.sample_actions(obs, argmax=True))


@pytest.mark.parametrize("shape", [(128, 128, 3), (9, 5, 1)])
def test_crops_by_blocks_are_crops_by_index(shape):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (162, *shape), dtype=torch.uint8)
    offsets = torch.cat([torch.cartesian_prod(torch.arange(9), torch.arange(9)), crop_offsets(81, "cpu")])
    for frames in (images, images.flip(2), images[:, :, :, :1]):  # also views that are not contiguous
        assert torch.equal(augment._copy_blocks(frames, offsets - 4), augment._gather(frames, offsets - 4))


def test_a_crop_shifts_what_frames_of_any_size_show_by_as_much():
    small = torch.randint(0, 256, (81, 32, 32, 3), dtype=torch.uint8)
    large = small.repeat_interleave(40, 1).repeat_interleave(20, 2)  # 1280 x 640: 10 and 5 pixels to one of 128
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    whole = [x.repeat_interleave(4, 1).repeat_interleave(4, 2) for x in (small, small.flip(0))]  # 128 x 128
    for frames, at_128 in zip((large, large.flip(0)), whole):
        crops = augment.random_crop(frames, offsets, 128)
        assert torch.equal(crops[:, 5::10, 2::5], augment.random_crop(at_128, offsets, 128))
        assert torch.equal(augment.random_crop(at_128, offsets, 128), augment.random_crop(at_128, offsets))


def test_fast_dropout_is_dropout():
    torch.manual_seed(0)
    x = torch.randn(256, 4096)
    out = fast_dropout(x, 0.1)
    dropped = (out == 0).float()
    assert torch.allclose(out, x / 0.9 * (1 - dropped), rtol=1e-4)
    assert abs(dropped.mean() - 0.1) < 5 * (0.09 / x.numel()) ** 0.5
    lanes = dropped.T.reshape(-1, 4)  # the four entries that share one draw are independent
    assert (lanes.mean(0) - 0.1).abs().max() < 5 * (0.09 / len(lanes)) ** 0.5
    assert (torch.corrcoef(lanes.T) - torch.eye(4)).abs().max() < 5 / len(lanes) ** 0.5


def test_cloning_alone_encodes_no_next_observation():
    losses = []
    for spoil in (1.0, float("nan")):
        agent = make_agent(cameras=["image"], arms=1)
        batch = make_batch(agent)
        batch["next_observations"]["state"] *= spoil
        info = agent.update(batch, train_critic=False, sac_weight=0.0, clone_weight=1.0)
        losses.append({k: v.item() for k, v in info.items()})
    assert losses[0] == losses[1] and set(losses[0]) >= {"clone_loss", "clone_error"}


def test_crops_are_shared_by_cameras_and_differ_between_samples():
    agent = make_agent(cameras=["a", "b"], trainable_backbone=True)
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8).repeat(16, 0)
    obs = {"a": image, "b": image, "state": np.zeros((16, 5), np.float32)}
    batch = make_batch(agent, 16) | {"observations": obs, "next_observations": obs}
    prepared = agent._prepare(batch, augment=True)
    now, later = prepared["observations"], prepared["next_observations"]
    assert torch.equal(now["a"], now["b"]) and not torch.equal(now["a"], later["a"])
    assert not torch.equal(now["a"][:1].expand(16, -1, -1, -1), now["a"])
    assert torch.equal(agent._prepare(batch, augment=False)["observations"]["a"], torch.from_numpy(image))


def test_cloning_uses_demonstrations_only():
    agent = make_agent(arms=1)
    batch = make_batch(agent, 4) | {"is_demo": np.array([1, 1, 0, 0], np.float32)}
    other = {k: v.copy() for k, v in batch.items() if isinstance(v, np.ndarray)}
    other["actions"][2:] = 0.5
    other["actions"][2:, -1] = 1
    losses = []
    for actions in (batch["actions"], other["actions"]):
        prepared = agent._prepare(batch | {"actions": actions}, augment=False)
        losses.append(agent._clone_loss(prepared, agent._encode(prepared, for_actor=False), False)[0])
    assert losses[0] == losses[1]


def test_a_rare_gripper_command_weighs_as_much_as_a_frequent_one():
    agent = make_agent(arms=1)
    q = torch.tensor([0.0, 0.3, 0.0]).repeat(4, 1)  # holding is best everywhere, by more than the margin
    agent.grasp_critic.forward = lambda encoding: q
    batch, losses = make_batch(agent, 4), []
    for commands in ([0, 0, 0, 0], [-1, 0, 0, 0], [-1, -1, 0, 0]):
        batch["actions"][:, -1] = commands
        prepared = agent._prepare(batch, augment=False)
        losses.append(agent._clone_loss(prepared, agent._encode(prepared, for_actor=False), 0.0)[0].item())
    assert losses[1] - losses[0] == pytest.approx(0.4 / 2, rel=1e-4)  # of holding and closing, one is 0.3 + 0.1 off
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)


# ---------------------------------------------------------------- determinism and saving


def run(agent, steps, start=0):
    for i in range(start, start + steps):
        agent.update(make_batch(agent, 4, seed=i), critic_only=i % 2 == 0)


def test_same_seed_same_bits():
    runs = []
    for _ in range(2):
        agent = make_agent(3, ["image"], arms=1)
        run(agent, 20)
        runs.append(tensors(agent))
    assert runs[0].keys() == runs[1].keys() and not changed(*runs)


def test_save_and_load(tmp_path):
    agent = make_agent(0, ["image"], arms=2)
    run(agent, 3)
    agent.save(tmp_path / "agent.pt")
    other = make_agent(1, ["image"], arms=2)
    assert changed(tensors(agent), tensors(other))
    other.load(tmp_path / "agent.pt")
    assert not changed(tensors(agent), tensors(other))
    obs = make_obs(agent, 3, np.random.default_rng(0), (64, 64))
    assert np.array_equal(agent.sample_actions(obs, argmax=True), other.sample_actions(obs, argmax=True))
    assert list(tmp_path.iterdir()) == [tmp_path / "agent.pt"]


def test_learning_rate_is_this_runs_not_the_files(tmp_path):
    agent = make_agent(0, ["image"], arms=1, lr=1e-3)
    run(agent, 2)
    agent.save(tmp_path / "agent.pt")
    other = make_agent(1, ["image"], arms=1, lr=1e-5)
    other.optimizers["online"].param_groups[0]["fused"] = False  # as on a device that has no fused Adam
    other.load(tmp_path / "agent.pt")
    assert {group["lr"] for o in other.optimizers.values() for group in o.param_groups} == {1e-5}
    assert other.optimizers["online"].param_groups[0]["fused"] is False
    assert (
        other.optimizers["online"].state_dict()["state"].keys()
        == agent.optimizers["online"].state_dict()["state"].keys()
    )


def test_resume_is_the_same_run(tmp_path):
    whole = make_agent(0, ["image"], arms=1)
    run(whole, 20)
    first = make_agent(0, ["image"], arms=1)
    run(first, 10)
    first.save(tmp_path / "agent.pt")
    rng = torch.get_rng_state()
    second = make_agent(9, ["image"], arms=1)
    second.load(tmp_path / "agent.pt")
    torch.set_rng_state(rng)
    run(second, 10, start=10)
    assert not changed(tensors(whole), tensors(second))


def test_load_refuses_what_does_not_fit_and_stays_untouched(tmp_path, resnet):
    agent = make_agent(0, ["image"], arms=1)
    before = tensors(agent)
    others = {
        "this run needs a SACHybridAgent": make_agent(0, ["image"]),
        "action_dim is 12, here 6": make_agent(0, ["image"], arms=2),
        r"image_keys is \['side'\], here \['image'\]": make_agent(0, ["side"], arms=1),
        "state_dim is 4, here 5": make_agent(0, ["image"], 4, 1),
        "ensemble_size is 3, here 2": make_agent(0, ["image"], arms=1, ensemble_size=3),
        "trainable_backbone is True, here False": make_agent(0, ["image"], arms=1, trainable_backbone=True),
    }
    for text, other in others.items():
        other.save(tmp_path / "other.pt")
        with pytest.raises(ValueError, match=f"other.pt.*{text}"):
            agent.load(tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:1000])
    RewardClassifier(["image"], backbone=resnet, device="cpu").save(tmp_path / "classifier.pt")
    for name in ("cut.pt", "absent.pt", "classifier.pt"):
        with pytest.raises(ValueError, match=name):
            agent.load(tmp_path / name)
    assert not changed(before, tensors(agent))


def test_loading_leaves_a_shared_backbone_alone(tmp_path, resnet):
    make_agent(7, ["image"]).save(tmp_path / "agent.pt")
    classifier = RewardClassifier(["image"], backbone=resnet, device="cpu")
    agent = make_agent(0, ["image"], backbone=resnet)
    before = classifier.backbone.conv_init.weight.clone()
    agent.load(tmp_path / "agent.pt")
    assert torch.equal(classifier.backbone.conv_init.weight, before)
    assert not torch.equal(agent.backbone.conv_init.weight, before)


# ---------------------------------------------------------------- devices

# Operations of acting and updating, each with a kernel on MPS in torch's native_functions.yaml (or composed of such).
# _upsample_bilinear2d_aa (frames that are not 128x128) has one in recent torch only; older versions need
# PYTORCH_ENABLE_MPS_FALLBACK=1 there. Adam is fused on CUDA and CPU; on MPS it is the plain one, as in this test.
ON_MPS = set(
    """_foreach_lerp_ _local_scalar_dense _to_copy _unsafe_view _upsample_bilinear2d_aa abs add add_ addcdiv_ addcmul
    addcmul_ addmm all amax amin arange argmax atanh baddbmm bernoulli_ bitwise_and bmm cat clamp clamp_min clone
    constant_pad_nd convolution convolution_backward copy_ detach div div_ empty empty_like eq exp expand fill_ full
    full_like gather ge gt index le lerp_ lift_fresh log logical_and logical_and_ lt max max_pool2d_with_indices
    max_pool2d_with_indices_backward mean minimum mm mul mul_ native_group_norm native_group_norm_backward
    native_layer_norm native_layer_norm_backward ne neg new_empty_strided new_zeros ones_like permute pow randint
    randn_like relu remainder round rsub scalar_tensor scatter scatter_add select slice softplus softplus_backward split
    sqrt squeeze stack std sub sum t tanh tanh_backward threshold_backward transpose unsqueeze view where where zero_
    zeros zeros_like""".split()
)


class Watch(TorchDispatchMode):
    """Collects operations and the dtypes of everything that goes in and out."""

    def __init__(self):
        super().__init__()
        self.operations, self.dtypes = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.namespace == "aten":
            self.operations.add(function._schema.name.removeprefix("aten::"))
        self.dtypes |= {x.dtype for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        return out


@pytest.mark.parametrize("trainable", [False, True])
def test_float32_and_operations_that_mps_has(trainable, monkeypatch):
    monkeypatch.setattr(resnet_module, "fast_dropout", torch.nn.functional.dropout)  # what it is away from the CPU
    monkeypatch.setattr(augment, "_copy_blocks", augment._gather)
    agent = make_agent(0, ["image"], arms=2, trainable_backbone=trainable)
    for name, module in (("online", agent.online), ("actor", agent.actor), ("temperature", agent.temperature)):
        agent.optimizers[name] = torch.optim.Adam(module.parameters(), lr=3e-4)
    batch = make_batch(agent, 2, size=(40, 48)) | {"is_demo": np.ones(2, np.float32)}
    with Watch() as watch:
        agent.sample_actions(batch["observations"])
        agent.sample_actions({k: v[0] for k, v in batch["observations"].items()}, argmax=True)
        agent.update(batch, critic_only=True)
        agent.update(batch, clone_weight=1.0, advantage_weighted=True)
        if not trainable:
            agent.encode_frames({k: v[0] for k, v in batch["observations"].items()}, views=2)
    assert torch.float32 in watch.dtypes and torch.float64 not in watch.dtypes
    assert len(watch.operations) > 40 and watch.operations <= ON_MPS, watch.operations - ON_MPS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("trainable", [False, True])
def test_an_update_never_waits_for_the_gpu(trainable):
    agent = make_agent(0, ["image"], arms=1, trainable_backbone=trainable, device="cuda")
    batch = make_batch(agent, 4, size=(128, 128))
    agent.update(batch, clone_weight=1.0)  # Adam and cuDNN set themselves up
    try:
        torch.cuda.set_sync_debug_mode("error")
        agent.update(batch, critic_only=True)
        agent.update(batch, clone_weight=1.0, advantage_weighted=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_float64_input_becomes_float32():
    agent = make_agent(arms=1)
    batch = make_batch(agent)
    batch = {
        k: {n: a.astype(np.float64) for n, a in v.items()} if isinstance(v, dict) else v.astype(np.float64)
        for k, v in batch.items()
    }
    prepared = agent._prepare(batch, augment=False)
    floats = [t for t in tree_leaves(prepared) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float32}
    assert agent.sample_actions(batch["observations"]).dtype == np.float32


def test_an_agent_stays_float32_where_a_notebook_computes_in_float64():
    agent = make_agent(cameras=["image"], arms=1)
    batch = make_batch(agent)
    torch.set_default_dtype(torch.float64)
    try:
        agent.update(batch, clone_weight=1.0)
        assert agent.sample_actions(batch["observations"]).dtype == np.float32
    finally:
        torch.set_default_dtype(torch.float32)


# ---------------------------------------------------------------- stored features


def test_features_stored_instead_of_frames_give_the_same_action(resnet):
    agent = make_agent(0, ["a", "b"], backbone=resnet)
    obs = {k: v[0] for k, v in make_obs(agent, 1, np.random.default_rng(0), (64, 64)).items()}
    stored = agent.encode_frames(obs, views=3)
    assert stored["a"].shape == (3, *FEATURE_SHAPE) and stored["a"].dtype == np.float16
    assert stored["state"] is obs["state"]
    features = {"a": stored["a"][0], "b": stored["b"][0], "state": obs["state"]}
    np.testing.assert_allclose(
        agent.sample_actions(features, argmax=True), agent.sample_actions(obs, argmax=True), atol=2e-3
    )
    assert not np.array_equal(stored["a"][0], stored["a"][1])
    with pytest.raises(ValueError, match=r"features of another agent: of a frame this one stores \(512, 16\)"):
        agent.sample_actions(features | {"a": np.zeros((520, 16), np.float16)})
    with pytest.raises(ValueError, match="trainable backbone"):
        make_agent(0, ["a"], trainable_backbone=True).encode_frames(obs)


# ---------------------------------------------------------------- learning


def one_step_batch(agent, rng, reward, n=64):
    """Random actions in a task that ends after one step."""
    obs = {"state": np.ones((n, agent.state_dim), np.float32)}
    actions = rng.uniform(-1, 1, (n, agent.action_dim + agent.num_grippers)).astype(np.float32)
    if agent.num_grippers:
        actions[:, -1] = rng.integers(-1, 2, n)
    return {
        "observations": obs,
        "next_observations": obs,
        "actions": actions,
        "rewards": reward(actions).astype(np.float32),
        "masks": np.zeros(n, np.float32),
        "grasp_penalty": np.zeros(n, np.float32),
    }


def test_sac_solves_a_one_step_bandit():
    torch.manual_seed(0)
    optimum = np.array([0.5, -0.3])
    agent = SACAgent([], 2, lr=1e-3, state_dim=1, init_temperature=1e-2, device="cpu")
    rng = np.random.default_rng(0)
    for _ in range(300):
        agent.update(one_step_batch(agent, rng, lambda a: 1 - ((a - optimum) ** 2).sum(-1)))
    action = agent.sample_actions({"state": np.ones(1, np.float32)}, argmax=True)
    np.testing.assert_allclose(action, optimum, atol=0.1)


@pytest.mark.parametrize("command", [-1, 1])
def test_hybrid_learns_the_rewarded_gripper_command(command):
    torch.manual_seed(0)
    agent = SACHybridAgent([], 2, 3, lr=1e-3, state_dim=1, device="cpu")
    rng = np.random.default_rng(0)
    for _ in range(120):
        agent.update(one_step_batch(agent, rng, lambda a: (a[:, -1] == command).astype(float)))
    obs = {"state": np.ones(1, np.float32)}
    assert agent.sample_actions(obs)[-1] == command
    with torch.no_grad():
        q = agent.grasp_critic(agent.encoder(agent._tensors({"state": np.ones((1, 1), np.float32)})))[0]
    np.testing.assert_allclose(q.numpy(), [float(i - 1 == command) for i in range(3)], atol=0.1)


def test_a_penalty_alone_teaches_the_gripper_to_hold():
    torch.manual_seed(0)
    agent = SACHybridAgent([], 2, 3, lr=1e-3, state_dim=1, device="cpu")
    rng = np.random.default_rng(0)
    for _ in range(120):
        batch = one_step_batch(agent, rng, lambda a: np.zeros(len(a)))
        agent.update(batch | {"grasp_penalty": np.where(batch["actions"][:, -1] == 0, 0, -0.5).astype(np.float32)})
    assert agent.sample_actions({"state": np.ones(1, np.float32)})[-1] == 0


def test_an_ignored_state_is_said_once(resnet):
    agent = SACAgent(["image"], 6, backbone=resnet, device="cpu")
    obs = {"image": np.zeros((32, 32, 3), np.uint8), "state": np.zeros(3, np.float32)}
    with pytest.warns(UserWarning, match="state_dim"):
        agent.sample_actions(obs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.sample_actions(obs)


# ---------------------------------------------------------------- somebody else's


def test_a_copy_of_an_agents_state_is_its_own():
    """Adam's averages, too: two agents that go on from one state do not disturb each other."""
    agent, fork, alone = make_agent(0, arms=1), make_agent(1, arms=1), make_agent(2, arms=1)
    agent.update(make_batch(agent, 4, 0))
    for other in (fork, alone):
        other.load_state_dict(agent.state_dict())
    before = tensors(fork)
    agent.update(make_batch(agent, 4, 1))
    assert all(torch.equal(before[name], value) for name, value in tensors(fork).items())


@pytest.mark.parametrize("kind", ["agent", "classifier"])
def test_a_backbone_that_somebody_trains_is_copied(kind):
    classifier = RewardClassifier(["a"], trainable_backbone=True, device="cpu")
    trained = len(classifier.trainable_parameters())
    if kind == "agent":
        other = make_agent(0, ["a"], backbone=classifier.backbone)
    else:
        other = RewardClassifier(["a"], backbone=classifier.backbone, device="cpu")
    assert len(classifier.trainable_parameters()) == trained > 11
    assert not any(p.requires_grad for p in other.backbone.parameters())
    assert make_agent(0, ["a"], backbone=other.backbone).backbone is other.backbone  # a frozen one is shared


@pytest.mark.parametrize(
    "change, message",
    [
        ({"b": np.zeros((20, 20, 3), np.float32)}, "'b' is torch.float32"),
        ({"b": np.zeros((20, 20, 1), np.uint8)}, "'b' is torch.uint8"),
        ({"a": np.zeros((2, 20, 20, 3), np.uint8)}, "one observation at a time"),
        ({"b": None}, "lacks"),
        ({"views": 0}, "views is 0"),
    ],
)
def test_frames_to_encode_are_checked_camera_by_camera(change, message, resnet):
    agent = make_agent(0, ["a", "b"], backbone=resnet)
    obs = {k: v[0] for k, v in make_obs(agent, 1, np.random.default_rng(0), (20, 20)).items()}
    views = change.pop("views", 2)
    obs = {k: v for k, v in (obs | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        agent.encode_frames(obs, views)


def test_chunks_of_actions_and_groups_of_other_lengths_are_refused():
    agent = make_agent(0)
    batch, longer = make_batch(agent, 4), make_batch(agent, 5)
    cloning = {"train_critic": False, "sac_weight": 0.0, "clone_weight": 1.0}
    with pytest.raises(ValueError, match="one action an observation"):
        agent.update(batch | {"actions": batch["actions"][:, None]}, **cloning)
    for key in ("observations", "next_observations"):
        with pytest.raises(ValueError, match=f"4 actions beside another number of {key}, 5"):
            agent.update(batch | {key: longer[key]}, train_critic=False)
