"""Compare this package with values of the original HIL-SERL (JAX), quantity by quantity.

    python tests/parity.py tests/goldens/single_pretrained_1cam_seed0.npz
    python tests/parity.py tests/goldens/*_seed0.npz

One line per quantity: its largest error relative to the array's largest magnitude, the tolerance, the verdict. Runs on
the CPU in float32 without dropout and augmentation. Exit status 1 when a quantity is out, 2 when a file cannot be read.
Quantities that a file does not hold (tests/goldens/README.md) are left out of its table.
"""

import argparse
import copy
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from golden_io import load_case, probe_dot  # noqa: E402

from pytorch_serl.agents.sac import SACAgent, SACHybridAgent  # noqa: E402
from pytorch_serl.hil_serl.load import (  # noqa: E402
    agent_table,
    classifier_table,
    load_hil_serl_agent,
    load_hil_serl_classifier,
    modules,
)
from pytorch_serl.networks.actor_critic import sample_tanh_normal  # noqa: E402
from pytorch_serl.networks.classifier import RewardClassifier  # noqa: E402

FORWARD, LOSS, GRADIENT = 1e-5, 1e-4, 1e-3
STEP = {"l2": 1e-3, "dot": 5e-2}  # a first Adam step is lr * sign(g): the sign of |g| near 1e-8 is rounding
STAGES = ("conv_init", "norm_init", "block0", "block1", "block2", "block3")
NOISES = ("critic_next", "temp_next", "actor")
OF_THE_ACTOR_LOSS = ("modules_actor/network/", "modules_actor/Dense_")
SHARED_HEAD = "modules_critic/Dense_0/"
NOTES = (
    "note: the actor's loss trains its own tensors only; the original's gradient into the state branch is not followed",
    "note: gradients of our independent last layers of Q are summed, to compare with the original's shared one",
)


class Table:
    """Rows of (quantity, error, tolerance), printed as they come."""

    def __init__(self, golden: dict, quiet: bool = False):
        self.golden, self.quiet = golden, quiet
        self.rows: list[tuple[str, float, float]] = []

    def add(self, name: str, error: float, tolerance: float) -> None:
        self.rows.append((name, error, tolerance))
        if not self.quiet:
            print(f"  {name:<52} {error:9.1e}   within {tolerance:.0e}   {'ok' if error <= tolerance else 'OUT'}")

    def compare(self, key: str, ours, tolerance: float) -> None:
        """Our array against the golden called `key`, where the file has it."""
        if key in self.golden:
            ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
            self.add(key, relative_error(ours, self.golden[key]), tolerance)

    def failures(self) -> list[tuple[str, float, float]]:
        return [row for row in self.rows if not row[1] <= row[2]]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over largest magnitude; infinite for another shape or anything not finite."""
    theirs = np.asarray(theirs)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    difference = np.abs(np.asarray(ours, np.float64) - theirs).max()
    scale = np.abs(theirs).max()
    return float(difference / scale) if scale > 0 else float(difference)


# ---------------------------------------------------------------- from a golden file to our objects


def params_of(golden: dict, kind: str = "params") -> dict[str, np.ndarray]:
    """The flat parameters under `params/` or `target/`."""
    return {key.removeprefix(f"{kind}/"): value for key, value in golden.items() if key.startswith(f"{kind}/")}


def build_agent(golden: dict) -> SACAgent:
    """The agent of a case with the original's parameters, without dropout."""
    state = golden.get("batch/observations/state")
    settings = dict(
        state_dim=0 if state is None else state.shape[-1],
        discount=float(golden["meta/discount"]),
        tau=float(golden["meta/soft_target_update_rate"]),
        ensemble_size=int(golden["meta/critic_ensemble_size"]),
        dropout=0.0,
        trainable_backbone=str(golden["meta/encoder_type"]) == "resnet",
        device="cpu",
    )
    image_keys = [str(key) for key in golden["meta/image_keys"]]
    continuous = golden["noise/actor/eps"].shape[-1]
    if str(golden["meta/kind"]) == "sac":
        agent = SACAgent(image_keys, continuous, **settings)
    else:
        grasp_dim = golden["params/modules_grasp_critic/Dense_0/bias"].shape[-1]
        agent = SACHybridAgent(image_keys, continuous, grasp_dim, **settings)
    load_hil_serl_agent(agent, params_of(golden), params_of(golden, "target"))
    return agent


def batch_of(golden: dict) -> dict:
    """The case's batch in our layout: the frame-stacking axis (always 1 here) is dropped."""
    batch: dict = {"observations": {}, "next_observations": {}}
    for key, value in golden.items():
        parts = key.split("/")
        if parts[0] == "batch" and len(parts) == 3:
            batch[parts[1]][parts[2]] = value[:, 0]
        elif parts[0] == "batch":
            batch[parts[1]] = value
    return batch


def in_flax_layout(golden: dict, table: dict, tensors: dict[str, torch.Tensor | None]) -> dict[str, np.ndarray]:
    """Gradients or differences by our names -> by flax path and in flax layout, float64.

    Every table entry is a rearrangement of its flax tensor; sending index numbers through it says where each element
    went. Elements that went to several places (the shared last Dense) are summed.
    """
    out = {}
    for name, (path, layout) in table.items():
        shape = golden[f"params/{path}"].shape
        total = np.zeros(int(np.prod(shape)))
        if tensors.get(name) is not None:
            ours = tensors[name].detach().numpy()
            index = layout.to_torch(np.arange(total.size).reshape(shape), ours.shape)
            total = np.bincount(index.ravel(), weights=ours.ravel(), minlength=total.size)
        out[path] = total.reshape(shape)
    return out


# ---------------------------------------------------------------- what is compared


def compare_forward(table: Table, agent: SACAgent, batch: dict, when: str) -> None:
    """Everything without sampling at `observations` or `next_observations`."""
    at = f"out/{when}"
    obs = agent._tensors(batch[when])
    first = agent.image_keys[0]
    backbone = {key: agent.backbone or agent.encoder.backbones[key] for key in agent.image_keys}
    if any(f"{at}/{stage}_sample0/{first}" in table.golden for stage in STAGES):
        for stage, value in zip(STAGES, backbone[first].stages(obs[first][:1]), strict=True):
            table.compare(f"{at}/{stage}_sample0/{first}", value[0].permute(1, 2, 0), FORWARD)
    for key in agent.image_keys:
        feature_map = backbone[key](obs[key])
        table.compare(f"{at}/feature_map/{key}", feature_map.unflatten(2, (4, 4)).permute(0, 2, 3, 1), FORWARD)
    pooled = agent.encoder.pool(agent._features(obs))
    for key in agent.image_keys:
        table.compare(f"{at}/pooled/{key}", pooled[key], FORWARD)
        table.compare(f"{at}/bottleneck/{key}", agent.encoder.heads[key](pooled[key]), FORWARD)
    if agent.state_dim:
        dense = agent.encoder.state_dense(obs["state"])
        table.compare(f"{at}/proprio_dense", dense, FORWARD)
        table.compare(f"{at}/proprio_ln", agent.encoder.state_norm(dense), FORWARD)
    encoding = agent.encoder(pooled)
    table.compare(f"{at}/encoding", encoding, FORWARD)

    mean, std = agent.actor(encoding)
    table.compare(f"{at}/actor_mean", mean, FORWARD)
    table.compare(f"{at}/actor_std", std, FORWARD)
    table.compare(f"{at}/mode_action", torch.tanh(mean), FORWARD)
    if f"{at}/given_eps" in table.golden:
        action, log_prob = sample_tanh_normal(mean, std, torch.from_numpy(table.golden[f"{at}/given_eps"]))
        table.compare(f"{at}/given_action", action, FORWARD)
        table.compare(f"{at}/given_log_prob", log_prob, LOSS)

    arm_actions, _ = agent._split_actions(torch.from_numpy(batch["actions"]))
    target = agent.target["encoder"]
    target_encoding = target(target.pool(agent._features(obs)))
    table.compare(f"{at}/critic_qs", agent.critic(encoding, arm_actions), FORWARD)
    table.compare(f"{at}/target_critic_qs", agent.target["critic"](target_encoding, arm_actions), FORWARD)
    if agent.num_grippers:
        table.compare(f"{at}/grasp_qs", agent.grasp_critic(encoding), FORWARD)
        table.compare(f"{at}/target_grasp_qs", agent.target["grasp_critic"](target_encoding), FORWARD)
    compare_acting(table, agent, batch[when], f"{at}/sample_actions_argmax")


def compare_acting(table: Table, agent: SACAgent, obs: dict, key: str) -> None:
    """`sample_actions(argmax=True)`: continuous entries within tolerance, gripper entries equal."""
    if key not in table.golden:
        return
    ours, theirs = agent.sample_actions(obs, argmax=True), table.golden[key]
    if not agent.num_grippers:
        table.compare(key, ours, FORWARD)
        return
    per_arm = theirs.shape[-1] // agent.num_grippers
    gripper = np.arange(theirs.shape[-1]) % per_arm == per_arm - 1
    table.add(f"{key} (arm)", relative_error(ours[:, ~gripper], theirs[:, ~gripper]), FORWARD)
    table.add(f"{key} (gripper)", float(np.abs(ours - theirs)[:, gripper].max()), 0.0)


def losses_of(agent: SACAgent, batch: dict, noise: dict) -> tuple[dict, dict, dict, dict]:
    """The four losses by the agent's own functions, and what went into them."""
    prepared = agent._prepare(batch, augment=False)
    enc = agent._encode(prepared, for_actor=True)
    losses, info = agent._critic_losses(prepared, enc, noise["critic_next"])
    losses["actor"], _ = agent._actor_loss(enc["obs_actor"], noise["actor"])
    losses["temperature"], _ = agent._temperature_loss(enc, noise["temp_next"])
    return losses, info, prepared, enc


def compare_losses(table: Table, agent: SACAgent, batch: dict, noise: dict) -> dict:
    """Samples, targets and losses; and that `update` reports the same losses. Returns the losses, with graph."""
    losses, info, prepared, enc = losses_of(agent, batch, noise)
    next_policy = enc["next_mean"], enc["next_std"]
    policies = {"critic_next": next_policy, "temp_next": next_policy, "actor": agent.actor(enc["obs_actor"])}
    for name, policy in policies.items():
        action, log_prob = sample_tanh_normal(*policy, noise[name])
        table.compare(f"noise/{name}/action", action, FORWARD)
        table.compare(f"noise/{name}/log_prob", log_prob, LOSS)
    next_action, _ = sample_tanh_normal(*next_policy, noise["critic_next"])
    next_qs = agent.target["critic"](enc["next_target"], next_action)
    table.compare("aux/target_next_qs", next_qs, FORWARD)
    table.compare("aux/target_q", prepared["rewards"] + agent.discount * prepared["masks"] * next_qs.amin(0), FORWARD)
    action, _ = sample_tanh_normal(*policies["actor"], noise["actor"])
    table.compare("aux/actor_qs", agent.critic(enc["obs_actor"], action), FORWARD)
    compare_reported_mean(table, "aux/target_q", info["target_q"])
    if agent.num_grippers:
        compare_grasp(table, agent, prepared, enc, info)
    table.compare("out/temperature", agent.temperature(), FORWARD)

    reported = copy.deepcopy(agent).update(batch, augment=False, noise=noise)
    for name, loss in losses.items():
        table.compare(f"loss/{name}", loss, LOSS)
        difference = (reported[f"{name}_loss"] - loss).abs() / loss.abs()
        table.add(f"loss/{name} as reported by update()", difference.item(), FORWARD)
    return losses


def compare_reported_mean(table: Table, key: str, ours: torch.Tensor) -> None:
    """A mean that a loss function reports; its error is relative to the largest entry, since means can cancel."""
    if key in table.golden:
        theirs = table.golden[key]
        table.add(f"mean of {key} as reported", float(abs(ours - theirs.mean()) / np.abs(theirs).max()), FORWARD)


def compare_grasp(table: Table, agent: SACAgent, batch: dict, enc: dict, info: dict) -> None:
    """Commands as indices, which command double DQN evaluates, and its target."""
    best = agent.grasp_critic(enc["next"]).argmax(-1)
    target_qs = agent.target["grasp_critic"](enc["next_target"])
    for key, ours in (
        ("grasp_action_index", batch["gripper_index"]),
        ("grasp_best_next", best),
        ("grasp_best_next_by_target", target_qs.argmax(-1)),
    ):
        if f"aux/{key}" in table.golden:
            table.add(f"aux/{key}", float((ours.numpy() != table.golden[f"aux/{key}"]).sum()), 0.0)
    next_q = target_qs.gather(1, best[:, None]).squeeze(1)
    reward = batch["rewards"] + batch["grasp_penalty"]
    table.compare("aux/grasp_target_q", reward + agent.discount * batch["masks"] * next_q, FORWARD)
    compare_reported_mean(table, "aux/grasp_target_q", info["grasp_target_q"])


def compare_statistics(
    table: Table, label: str, key: str, ours: dict[str, np.ndarray], tolerance: float | dict, paths: list[str]
) -> None:
    """l2 norm and order-sensitive fingerprint of every tensor in `paths`: one row each, the worst tensor named.

    Errors are relative to the tensor's own norm; a tensor below 1e-6 of the largest one counts as zero.
    """
    names = [str(path) for path in table.golden["meta/stat_paths"]]
    chosen = [i for i, name in enumerate(names) if name in paths]
    if f"{key}/l2" not in table.golden or not chosen:
        return
    norms = np.abs(table.golden[f"{key}/l2"])
    floor = 1e-6 * norms.max()
    for statistic, function in (("l2", np.linalg.norm), ("dot", probe_dot)):
        limit = tolerance[statistic] if isinstance(tolerance, dict) else tolerance
        theirs = table.golden[f"{key}/{statistic}"]
        errors = {names[i]: abs(function(ours[names[i]].ravel()) - theirs[i]) / max(norms[i], floor) for i in chosen}
        worst = max(errors, key=errors.get)
        table.add(f"{label} {statistic}, {len(chosen)} tensors", errors[worst], limit)
        if errors[worst] > limit and not table.quiet:
            print(f"      worst: {worst}")


def compare_gradient(table: Table, name: str, ours: dict[str, np.ndarray], paths: list[str]) -> None:
    """One loss's gradient: norms and fingerprints of every tensor, and whole small tensors."""
    compare_statistics(table, f"grad/{name}", f"grad/{name}", ours, GRADIENT, paths)
    whole = [key for key in table.golden if key.startswith(f"grad_full/{name}/") and key.split("/", 2)[2] in paths]
    errors = [relative_error(ours[key.split("/", 2)[2]], table.golden[key]) for key in whole]
    if errors:
        table.add(f"grad_full/{name}, {len(whole)} tensors", max(errors), GRADIENT)


def compare_gradients(table: Table, agent: SACAgent, losses: dict[str, torch.Tensor]) -> None:
    """Gradients of all losses, as the agent routes them."""
    mapping = agent_table(agent, params_of(table.golden))
    trained = {k: p for k, p in parameters(agent).items() if p.requires_grad}
    for name, loss in losses.items():
        only = {k: p for k, p in trained.items() if name != "actor" or k.startswith("actor.")}
        grads = torch.autograd.grad(loss, list(only.values()), retain_graph=True, allow_unused=True)
        ours = in_flax_layout(table.golden, mapping, dict(zip(only, grads, strict=True)))
        paths = [p for p in ours if name != "actor" or p.startswith(OF_THE_ACTOR_LOSS)]
        compare_gradient(table, name, ours, paths)


def parameters(agent: SACAgent) -> dict[str, torch.nn.Parameter]:
    """Every parameter by `module.tensor`."""
    return {f"{name}.{k}": p for name, module in modules(agent).items() for k, p in module.named_parameters()}


def compare_steps(table: Table, agent: SACAgent, batch: dict, noise: dict, loss_names: list[str]) -> None:
    """One optimiser step on each loss alone, and the target after the critic's; the shared last Dense is left out."""
    mapping = agent_table(agent, params_of(table.golden))
    for name in loss_names:
        stepped = copy.deepcopy(agent)
        before = {k: p.detach().clone() for k, p in parameters(stepped).items()}
        target_before = {k: p.clone() for k, p in stepped.target.named_parameters()}
        stepped._step({name: losses_of(stepped, batch, noise)[0][name]})
        with torch.no_grad():
            torch._foreach_lerp_(list(stepped.target.parameters()), list(stepped.online.parameters()), stepped.tau)
        moved = {k: p - before[k] for k, p in parameters(stepped).items()}
        ours = in_flax_layout(table.golden, mapping, moved)
        paths = {"actor": OF_THE_ACTOR_LOSS, "temperature": ("modules_temperature",)}.get(name, ("modules_",))
        paths = [p for p in ours if p.startswith(paths) and not p.startswith(SHARED_HEAD)]
        compare_statistics(table, f"first Adam step on {name}", f"after/{name}/param_delta", ours, STEP, paths)
        if name == "critic":
            moved = {f"online.{k}": p - target_before[k] for k, p in stepped.target.named_parameters()}
            ours = in_flax_layout(table.golden, mapping, moved)
            paths = [mapping[k][0] for k in moved if not mapping[k][0].startswith(SHARED_HEAD)]
            compare_statistics(table, "target after it", "after/critic/target_delta", ours, STEP, paths)


def compare_agent(table: Table) -> None:
    agent, batch = build_agent(table.golden), batch_of(table.golden)
    noise = {k: torch.from_numpy(table.golden[f"noise/{k}/eps"]) for k in NOISES}
    table.add("target entropy", abs(agent.target_entropy - float(table.golden["meta/target_entropy"])), 0.0)
    with torch.no_grad():
        compare_forward(table, agent, batch, "observations")
        compare_forward(table, agent, batch, "next_observations")
    losses = compare_losses(table, agent, batch, noise)
    compare_gradients(table, agent, losses)
    compare_steps(table, agent, batch, noise, list(losses))


def compare_classifier(table: Table) -> None:
    golden = table.golden
    image_keys = [str(key) for key in golden["meta/image_keys"]]
    classifier = RewardClassifier(image_keys, dropout=0.0, device="cpu")
    load_hil_serl_classifier(classifier, params_of(golden))
    images = {key: torch.from_numpy(golden[f"batch/observations/{key}"][:, 0]) for key in image_keys}
    features = classifier.features(images)
    for key in image_keys:
        feature_map = features[key].unflatten(2, (4, 4)).permute(0, 2, 3, 1)
        table.compare(f"out/feature_map/{key}", feature_map, FORWARD)
        head = classifier.heads[key]
        table.compare(f"out/bottleneck/{key}", head(head.pool(features[key])), FORWARD)
    encoding = classifier.encode(features)
    table.compare("out/encoding", encoding, FORWARD)
    table.compare("out/head_dense0", classifier.dense(encoding), FORWARD)
    table.compare("out/head_ln", classifier.norm(classifier.dense(encoding)), FORWARD)
    logits = classifier(images)
    table.compare("out/logits", logits[:, None], FORWARD)
    prob, _ = classifier.predict_success(images)
    table.compare("out/prob", prob[:, None], FORWARD)
    loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(golden["batch/labels"][:, 0]).float())
    table.compare("loss/bce", loss, LOSS)
    loss.backward()
    mapping = classifier_table(classifier, params_of(golden))
    ours = in_flax_layout(golden, mapping, {k: p.grad for k, p in classifier.named_parameters()})
    compare_gradient(table, "bce", ours, list(ours))
    before = {k: p.detach().clone() for k, p in classifier.named_parameters()}
    torch.optim.Adam(classifier.trainable_parameters(), lr=1e-4).step()
    ours = in_flax_layout(golden, mapping, {k: p.detach() - before[k] for k, p in classifier.named_parameters()})
    compare_statistics(table, "first Adam step", "after/adam/param_delta", ours, STEP, list(ours))


def compare_case(golden: dict, quiet: bool = False) -> Table:
    """Compare one loaded case."""
    table = Table(golden, quiet)
    (compare_classifier if str(golden["meta/kind"]) == "classifier" else compare_agent)(table)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="golden files (.npz)")
    bad, unreadable = 0, 0
    for path in parser.parse_args().files:
        print(path)
        try:
            golden = load_case(path)
            golden["meta/kind"], golden["meta/image_keys"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            print(f"  cannot be read: {error}")
            unreadable += 1
            continue
        try:
            table = compare_case(golden)
        except (ValueError, KeyError) as error:  # parameters that do not fit, an array that every case has
            print(f"  cannot be compared: {error}")
            unreadable += 1
            continue
        bad += len(table.failures())
        print(f"  {len(table.rows)} quantities, {len(table.failures())} out")
    print(*NOTES, sep="\n")
    return 2 if unreadable else 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
