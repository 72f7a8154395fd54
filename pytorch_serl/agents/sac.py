"""HIL-SERL's agents: SAC on an image encoding, and SAC with a DQN "grasp critic" for the grippers.

References: HIL-SERL (arXiv 2410.21845), SAC (arXiv 1812.05905), RLPD (arXiv 2302.02948), Double DQN
(arXiv 1509.06461), DQfD (arXiv 1704.03732) for the cloning margin. A batch is the dict that
`data/replay_buffer.py` samples; rewards, masks and Q are (B,), an ensemble is the leading axis (E, B).

Deviations from the original, all on purpose: an optimiser steps only when its loss was computed; encoder, critic
and grasp critic share one Adam on their summed gradients; every Q has its own last Dense; the actor reads the whole
encoding detached; the optional cloning term (`clone_weight`), beside which the temperature stays as it is, is absent
from the original and 0 by default; so are the waypoint branch (`waypoint`, networks/waypoint.py), off by default, and
`averaged`, the policy that acts in the scripts' training, and that they evaluate and keep.
"""

import copy
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from pytorch_serl.agents.base import PixelAgent, Tensors, check_settings
from pytorch_serl.networks.actor_critic import Actor, Critic, GraspCritic, Temperature, sample_tanh_normal
from pytorch_serl.networks.resnet import KEYPOINT_MAPS, ObservationEncoder, ResNet10, check_image_keys
from pytorch_serl.utils.device import DEVICE, make_adam, pick_device
from pytorch_serl.utils.files import load_into

CLONE_DROPOUT = 0.5  # what the scripts ask for, of the pooled features
CLONE_STD, MAX_CLONED_ACTION = 0.05, 0.95  # of the cloned policy before its tanh; recorded actions are clipped to this
CLONE_MARGIN = 0.1  # a demonstrated gripper command beats every other by this much Q (DQfD's large margin)
MAX_ADVANTAGE_WEIGHT = 5.0  # of exp(advantage)
BATCH_COLUMNS = ("actions", "rewards", "masks", "grasp_penalty", "is_demo")  # the last two are optional


def alone(tensors: list[torch.Tensor]) -> None:
    """The mean over the processes that take an update together, in place: here there is one."""


def join_actions(arm_actions: torch.Tensor, grasp_q: torch.Tensor, num_grippers: int) -> torch.Tensor:
    """The arms' continuous part (B, A) and Q of every gripper command (B, 3 or 9) to full actions (B, A + grippers).

    The best command, of equal ones the first, becomes the last entry of each arm's block: -1, 0 or 1.
    """
    index = grasp_q.argmax(-1)  # (B,)
    places = [3**i for i in reversed(range(num_grippers))]
    commands = torch.stack([index.div(p, rounding_mode="floor") % 3 - 1 for p in places], -1)  # (B, G)
    blocks = arm_actions.unflatten(-1, (num_grippers, -1))
    return torch.cat([blocks, commands[..., None].to(blocks.dtype)], -1).flatten(1)


class SACAgent(PixelAgent):
    """Soft actor-critic for continuous actions.

    Args:
        image_keys: cameras, in the order of the encoding.
        action_dim: continuous dimensions of the action, in [-1, 1].
        lr: learning rate of the three Adams.
        state_dim: length of `state`; 0 leaves the state out.
        discount: per step.
        tau: share of the online parameters in each target update.
        ensemble_size: number of critics.
        q_range: what the rewards allow a return to be; the critics' targets are clipped to it. None does not clip.
        target_entropy: in nats; default -action_dim / 2, gripper entries counted.
        dropout: rate on the pooled features, in the actor's training pass only.
        trainable_backbone: train one ResNet-10 per camera instead of sharing one frozen backbone.
        waypoint: give the encoding a branch on where the arm is to go, read from frozen features and state
            (networks/waypoint.py); it says nothing before `build.fit_waypoint`. Or of which maps it reads the keypoints
            (`keypoint_maps` in agents/base.py); True: of KEYPOINT_MAPS.
        backbone: the frozen ResNet-10, or with `trainable_backbone` where each of them starts; random when None.
        device: where everything lives; default `DEVICE`. Raises ValueError for the name of one that is not here.
    """

    num_grippers = 0
    average: Callable[[list[torch.Tensor]], None] = staticmethod(alone)  # scaling/torchrun.py sets another

    def __init__(
        self,
        image_keys: Iterable[str],
        action_dim: int,
        lr: float = 3e-4,
        *,
        state_dim: int = 0,
        discount: float = 0.95,
        tau: float = 0.005,
        ensemble_size: int = 2,
        target_entropy: float | None = None,
        q_range: tuple[float, float] | None = None,
        init_temperature: float = 1e-2,
        dropout: float = 0.1,
        trainable_backbone: bool = False,
        waypoint: bool | Sequence[int] = False,
        backbone: ResNet10 | None = None,
        device: torch.device | str | None = None,
    ):
        self.image_keys = check_image_keys(image_keys)
        if action_dim < 1 or ensemble_size < 1:
            raise ValueError(f"action_dim is {action_dim}, ensemble_size {ensemble_size}; wanted 1 or more of both")
        if not self.image_keys and not state_dim:
            raise ValueError("an agent needs at least one camera in image_keys or a state_dim above 0")
        if waypoint and (not self.image_keys or not state_dim or trainable_backbone):
            raise ValueError("waypoint needs cameras, a state_dim above 0 and a frozen backbone")
        device = pick_device(device) if isinstance(device, str) else device
        self.device = torch.device(device) if device is not None else DEVICE
        # numpy's numbers and tensors are python's from here on, so that a checkpoint can hold them
        action_dim, state_dim, ensemble_size = (operator.index(n) for n in (action_dim, state_dim, ensemble_size))
        lr, discount, tau, dropout = float(lr), float(discount), float(tau), float(dropout)
        init_temperature = float(init_temperature)
        trainable_backbone = bool(trainable_backbone)
        maps = list(waypoint) if isinstance(waypoint, Sequence) else list(KEYPOINT_MAPS) if waypoint else []
        q_range = None if q_range is None else tuple(map(float, q_range))
        target_entropy = None if target_entropy is None else float(target_entropy)
        check_settings(state_dim, discount, tau, q_range, init_temperature, dropout)
        self.action_dim, self.state_dim = action_dim, state_dim
        self.discount, self.tau = discount, tau
        self.q_range = (-float("inf"), float("inf")) if q_range is None else q_range
        self.target_entropy = -(action_dim + self.num_grippers) / 2 if target_entropy is None else target_entropy
        self.config = dict(
            image_keys=self.image_keys,
            action_dim=action_dim,
            lr=lr,
            state_dim=state_dim,
            discount=discount,
            tau=tau,
            ensemble_size=ensemble_size,
            target_entropy=self.target_entropy,
            q_range=q_range,
            init_temperature=init_temperature,
            dropout=dropout,
            trainable_backbone=trainable_backbone,
            waypoint=maps or False,
        )
        self.backbone = None
        if self.image_keys and not trainable_backbone:
            if backbone is not None and any(p.requires_grad for p in backbone.parameters()):
                backbone = copy.deepcopy(backbone)  # somebody else may train it
            self.backbone = (backbone or ResNet10()).requires_grad_(False).eval()
            self.backbone.to(self.device)

        num_waypoints = (2 if self.num_grippers else 1) if maps else 0  # the first gripper command, and the end
        # `online` learns from the critics' losses, `target` is its average; the frozen backbone is in neither
        self.encoder = ObservationEncoder(self.image_keys, state_dim, dropout, trainable_backbone, num_waypoints, maps)
        if backbone is not None:
            for trained in self.encoder.backbones.values():
                load_into(trained, backbone.state_dict())
        self.actor = Actor(self.encoder.encoding_dim, action_dim).to(self.device)
        self.temperature = Temperature(init_temperature).to(self.device)
        self.critic = Critic(self.encoder.encoding_dim, action_dim, ensemble_size)
        self.online = nn.ModuleDict({"encoder": self.encoder, "critic": self.critic, **self._more_critics()})
        self.online.to(self.device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.average_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.optimizers = {
            name: make_adam(module.parameters(), lr)
            for name, module in (("online", self.online), ("actor", self.actor), ("temperature", self.temperature))
        }

    def _more_critics(self) -> dict[str, nn.Module]:
        return {}

    @torch.no_grad()
    def zero_q(self) -> None:
        """Let every Q start at 0: its last Dense becomes 0, as sparse returns nearly are.

        The original's initialisers give each network an offset of its own, with a deviation of about 0.9. The targets
        bootstrap on it for hundreds of updates, and the cloned gripper choice, read off the same Q, suffers.
        """
        for networks in (self.online, self.target):
            for name in networks.keys() - {"encoder"}:
                for parameter in networks[name].head.parameters():
                    parameter.zero_()

    def fit_waypoint(self, *data: np.ndarray) -> np.ndarray:
        """`Waypoint.fit`; the target network reads the same from then on."""
        error = self.encoder.waypoint.fit(*data)
        load_into(self.target["encoder"].waypoint, self.encoder.waypoint.state_dict())
        return error

    # ---------------------------------------------------------------- one update

    def update(
        self,
        batch: dict[str, Any],
        critic_only: bool = False,
        *,
        train_critic: bool = True,
        sac_weight: float = 1.0,
        clone_weight: float = 0.0,
        clone_std: float = CLONE_STD,
        clone_dropout: float = 0.0,
        critics_train_encoder: bool = True,
        advantage_weighted: bool = False,
        advantage_share: float = 0.5,
        augment: bool = True,
        noise: Tensors | None = None,
    ) -> Tensors:
        """One gradient step on every loss, all computed at the parameters from before the step, then the target.

        Args:
            batch: `observations`, `next_observations` (uint8 images or stored float features, `state`), `actions`
                (B, A), `rewards`, `masks` (B,), optionally `grasp_penalty` and `is_demo` (B,).
            critic_only: skip actor and temperature (the cheap half of HIL-SERL's cta_ratio).
            train_critic: False leaves the critics' losses out (pure cloning).
            sac_weight: weight of SAC's actor loss.
            clone_weight: weight of behaviour cloning on the demo transitions; it trains the encoder, too. Where it is
                above 0 the temperature stays as it is.
            clone_std: deviation of the cloned policy before its tanh, which is how much it explores.
            clone_dropout: rate on the pooled features in the cloning term's pass: without, a clone of few demos learns
                their noise by heart.
            critics_train_encoder: False lets the critics read the encoding detached, which is right beside cloning:
                their gradients, of few demos and a changing policy, move the encoder under the clone, and it forgets.
            advantage_weighted: weigh cloned actions by their advantage (AWAC, arXiv 2006.09359). The critics then read
                the encoding detached, too.
            advantage_share: of the advantage in that weight, the rest is 1. 0 where all demos are equally good: there
                advantages are noise, and weighted by them fewer demos count.
            augment: random crops on uint8 images (stored features carry theirs already).
            noise: normal draws (B, A) for `critic_next`, `temp_next`, `actor`, and where advantages weigh for
                `advantage`, to reproduce a reference.
        Returns: detached scalars on the device, by metric name.
        Raises ValueError for a batch that lacks something, has other shapes, or is too small for its advantages.
        """
        batch = self._prepare(batch, augment)
        draws = ("critic_next", "temp_next", "actor")
        noise = noise or {k: torch.randn_like(batch["arm_actions"]) for k in draws}
        train_actor = bool(sac_weight) and not critic_only
        enc = self._encode(batch, train_actor, train_critic or train_actor, clone_dropout if clone_weight else 0.0)

        detached = advantage_weighted or not critics_train_encoder
        critic_enc = enc | {"obs": enc["obs"].detach()} if detached else enc
        losses, info = self._critic_losses(batch, critic_enc, noise["critic_next"]) if train_critic else ({}, {})
        if not critic_only:
            if train_actor:
                actor_loss, actor_info = self._actor_loss(enc["obs_actor"], noise["actor"])
                losses["actor"] = sac_weight * actor_loss
                temperature_loss, temperature_info = self._temperature_loss(enc, noise["temp_next"])
                if not clone_weight:  # else it would go on rising against the deviation that cloning wants
                    losses["temperature"] = temperature_loss
                info |= actor_info | temperature_info
            if clone_weight:
                share = advantage_share * advantage_weighted
                clone_loss, clone_info = self._clone_loss(batch, enc, share, noise.get("advantage"), clone_std)
                losses["clone"] = clone_weight * clone_loss
                info |= clone_info

        self._step(losses)
        with torch.no_grad():  # else the target would become part of an ever longer graph
            for average, module in ((self.target, self.online), (self.average_actor, self.actor)):
                torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), self.tau)
        return info | {f"{name}_loss": loss.detach() for name, loss in losses.items()}

    def _step(self, losses: Tensors) -> None:
        """Backward every loss into the parameters it trains, then step: what got no gradient stays as it is."""
        online, actor = [p for p in self.online.parameters() if p.requires_grad], list(self.actor.parameters())
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if "actor" in losses:
            losses["actor"].backward(inputs=actor)  # through the critic, not into it
        if "temperature" in losses:
            losses["temperature"].backward()
        encoder_losses = [loss for name, loss in losses.items() if name not in ("actor", "temperature")]
        if encoder_losses:
            sum(encoder_losses).backward(inputs=online + actor)
        self.average([p.grad for p in (*online, *actor, *self.temperature.parameters()) if p.grad is not None])
        for optimizer in self.optimizers.values():
            optimizer.step()

    def _critic_losses(self, batch: dict, enc: Tensors, noise: torch.Tensor) -> tuple[Tensors, Tensors]:
        loss, info = self._critic_loss(batch, enc, noise)
        return {"critic": loss}, info

    def _critic_loss(self, batch: dict, enc: Tensors, noise: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """(Q_i(s, a) - y)^2, y = r + discount * mask * min_i Q'_i(s', a'), a' ~ pi(s'); SAC eq. 5 without entropy."""
        with torch.no_grad():
            next_action, _ = sample_tanh_normal(enc["next_mean"], enc["next_std"], noise)
            next_q = self.target["critic"](enc["next_target"], next_action).amin(0)  # (E, B) -> (B,)
            target_q = (batch["rewards"] + self.discount * batch["masks"] * next_q).clamp(*self.q_range)
        q = self.critic(enc["obs"], batch["arm_actions"])  # (E, B)
        assert target_q.shape == q.shape[1:]
        return ((q - target_q) ** 2).mean(), {
            "q": q.detach().mean(),
            "target_q": target_q.mean(),
            "q_max": q.detach().max(),
        }

    def _actor_loss(self, encoding: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """temperature * log pi(a|s) - mean_i Q_i(s, a), a ~ pi(s); SAC eq. 7 with the ensemble's mean, not minimum."""
        mean, std = self.actor(encoding)
        action, log_prob = sample_tanh_normal(mean, std, noise)
        q = self.critic(encoding, action).mean(0)  # (E, B) -> (B,)
        assert q.shape == log_prob.shape
        loss = (self.temperature().detach() * log_prob - q).mean()
        return loss, {"policy_std": std.detach().mean(), "saturation": (action.detach().abs() > 0.99).float().mean()}

    def _temperature_loss(self, enc: Tensors, noise: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """temperature * (entropy - target_entropy), entropy of actions drawn at the next observations; SAC eq. 18."""
        with torch.no_grad():
            _, log_prob = sample_tanh_normal(enc["next_mean"], enc["next_std"], noise)
            entropy = -log_prob.mean()
        temperature = self.temperature()
        return temperature * (entropy - self.target_entropy), {"entropy": entropy, "temperature": temperature.detach()}

    def _clone_loss(
        self,
        batch: dict,
        enc: Tensors,
        advantage_share: float,
        noise: torch.Tensor | None = None,
        clone_std: float = CLONE_STD,
    ) -> tuple[torch.Tensor, Tensors]:
        """w KL(pi(.|s) || N(atanh a, clone_std)) before the tanh, over the demo transitions, in units of (atanh a)^2.

        Reverse KL, because the likelihood's optimal standard deviation is large while the mean is still wrong, and
        beyond 5 the policy's clip leaves it no gradient to come back. w is 1, or a share of it is `_advantage_weight`
        (AWAC eq. 13).
        """
        mean, std = self.actor(enc["obs_clone"])  # (B, A)
        target = torch.atanh(batch["arm_actions"].clamp(-MAX_CLONED_ACTION, MAX_CLONED_ACTION))
        divergence = (0.5 * (mean - target) ** 2 + 0.5 * std**2 - clone_std**2 * std.log()).mean(-1)  # (B,)
        weight = batch["is_demo"]
        if advantage_share:
            weight = weight * (
                1 - advantage_share + advantage_share * self._advantage_weight(batch, enc["obs"].detach(), noise)
            )
        num_demos = batch["is_demo"].sum().clamp(min=1.0)
        error = (mean.detach().tanh() - batch["arm_actions"]).abs().mean(-1)
        return (weight * divergence).sum() / num_demos, {"clone_error": (batch["is_demo"] * error).sum() / num_demos}

    @torch.no_grad()
    def _advantage_weight(self, batch: dict, encoding: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """exp(advantage / spread of Q over the batch), capped, mean 1: (B,)."""
        if len(encoding) < 2:
            raise ValueError("advantage_weighted needs a batch of two or more: the spread of Q over it is the unit")
        mean, std = self.actor(encoding)
        policy_action, _ = sample_tanh_normal(mean, std, torch.randn_like(mean) if noise is None else noise)
        q = self.critic(encoding, batch["arm_actions"])  # (E, B)
        advantage = (q - self.critic(encoding, policy_action)).amin(0)  # (E, B) -> (B,)
        q = q.mean(0)  # (B,)
        spread = self._batch_mean((q - self._batch_mean(q)) ** 2).sqrt()
        weight = (advantage / (spread + 1e-3)).exp().clamp(max=MAX_ADVANTAGE_WEIGHT)
        return weight / self._batch_mean(weight)

    def _batch_mean(self, x: torch.Tensor) -> torch.Tensor:
        """Mean over a whole batch (B,), rows that other processes have included."""
        mean = x.mean()
        self.average([mean])
        return mean

    # ---------------------------------------------------------------- from batch to encodings

    def _encode(self, batch: dict, for_actor: bool, for_next: bool = True, clone_dropout: float = 0.0) -> Tensors:
        """Every encoding (B, D) that one update needs: `obs` and `obs_clone` with gradient, the rest without; dropout
        for the actor.

        Of the next observation in the actor's pass only the policy is needed: `next_mean` and `next_std` (B, A).
        """
        pooled = self.encoder.pool(batch["observations"])
        encodings = {"obs": self.encoder(pooled)}
        encodings["obs_clone"] = self.encoder(pooled, dropout=clone_dropout) if clone_dropout else encodings["obs"]
        with torch.no_grad():
            if for_actor:
                encodings["obs_actor"] = self.encoder(pooled, dropout=True)
            if for_next:  # cloning alone looks at no next observation
                next_pooled = self.encoder.pool(batch["next_observations"])
                policy = self.actor(self.encoder(next_pooled, dropout=True))
                encodings["next_mean"], encodings["next_std"] = policy
                target_encoder = self.target["encoder"]
                encodings["next_target"] = target_encoder(target_encoder.pool(batch["next_observations"]))
                if self.num_grippers:
                    encodings["next"] = self.encoder(next_pooled)
        return encodings

    def _prepare(self, batch: dict[str, Any], augment: bool) -> dict[str, Any]:
        """Check a sampled batch, move it to the device, crop its images and run the frozen backbone on them."""
        missing = [k for k in ("observations", "next_observations", *BATCH_COLUMNS[:3]) if k not in batch]
        if missing:
            raise ValueError(f"the batch lacks {missing}; it has {sorted(batch)}")
        out: dict[str, Any] = {
            k: self._to_device(torch.as_tensor(v, dtype=torch.float32)) for k, v in batch.items() if k in BATCH_COLUMNS
        }
        wrong = {k: tuple(v.shape) for k, v in out.items() if k != "actions" and v.shape != out["actions"].shape[:1]}
        if wrong:
            raise ValueError(f"the batch has {wrong} beside actions {tuple(out['actions'].shape)}; wanted (B,)")
        for key in ("observations", "next_observations"):
            out[key] = self._features(self._tensors(batch[key]), augment)
        out.setdefault("is_demo", torch.ones_like(out["rewards"]))
        if out["actions"].ndim != 2:
            raise ValueError(f"actions are {tuple(out['actions'].shape)}; wanted (B, A), one action an observation")
        for key in ("observations", "next_observations"):
            if len(out["actions"]) != (size := len(next(iter(out[key].values())))):
                raise ValueError(f"the batch has {len(out['actions'])} actions beside another number of {key}, {size}")
        out["arm_actions"], out["gripper_index"] = self._split_actions(out["actions"])
        return out

    def _split_actions(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Full actions to the arms' continuous part (B, A) and the joint gripper index (B,) or None."""
        if actions.shape[-1] != self.action_dim:
            raise ValueError(
                f"actions are {tuple(actions.shape)}; the agent was built with action_dim={self.action_dim}"
            )
        return actions, None

    # ---------------------------------------------------------------- acting

    @torch.no_grad()
    def encode(self, obs: dict[str, Any]) -> torch.Tensor:
        """The encoding (B, D) of a batch of observations, given as to `sample_actions`."""
        return self._see(self.encoder, obs)

    def _see(self, encoder: ObservationEncoder, obs: dict[str, Any]) -> torch.Tensor:
        return encoder(encoder.pool(self._features(self._tensors(obs))))

    @torch.no_grad()
    def sample_actions(self, obs: dict[str, Any], argmax: bool = False, averaged: bool = False) -> np.ndarray:
        """Actions for one observation or a batch of them.

        Args:
            obs: uint8 images (H, W, 3) or (B, H, W, 3), or features of one view of them, (C, 16) or (B, C, 16), from
                `encode_frames` (`build.acting_view`); `state` (D,) or (B, D).
            argmax: the policy's mode instead of a sample. Gripper commands are always the best ones.
            averaged: act as the policy that `averaged` returns.
        Returns: float32 (A,) or (B, A) in [-1, 1], gripper entries in {-1, 0, 1}.
        Raises ValueError for an observation of other keys, dtypes or shapes, FloatingPointError instead of NaN.
        """
        single, obs = self._batched(obs)
        networks, actor = (self.target, self.average_actor) if averaged else (self.online, self.actor)
        encoding = self._see(networks["encoder"], obs)
        mean, std = actor(encoding)
        action = torch.tanh(mean if argmax else mean + std * torch.randn_like(mean))
        action = self._join_actions(action, encoding, networks).cpu().numpy()
        if not np.isfinite(action).all():
            raise FloatingPointError("the action is NaN: the networks diverged, or the observation's state holds NaN")
        return action[0] if single else action

    def _join_actions(self, arm_actions: torch.Tensor, encoding: torch.Tensor, networks: nn.ModuleDict) -> torch.Tensor:
        return arm_actions

    def averaged(self) -> "SACAgent":
        """A copy that acts by the averages over the last 1 / tau updates: target networks and averaged actor.

        Single updates move a policy's success rate up and down by more than learning does; the average is calmer
        (Polyak averaging). The frozen backbone is shared, not copied.
        """
        twin = copy.deepcopy(self, {id(self.backbone): self.backbone})
        load_into(twin.online, self.target.state_dict())
        load_into(twin.actor, self.average_actor.state_dict())
        return twin


class SACHybridAgent(SACAgent):
    """SAC for the arms and Double DQN for the grippers; one class for one arm and two.

    Args:
        continuous_action_dim: all arms' continuous dimensions together.
        grasp_action_dim: 3 for one gripper, 9 for two (index = 3 * left + right, each 0 close, 1 hold, 2 open).
        Others as in `SACAgent`. Full actions are one block per arm, its gripper entry last: [6, g] or [6, g, 6, g].
    """

    def __init__(
        self,
        image_keys: Iterable[str],
        continuous_action_dim: int = 6,
        grasp_action_dim: int = 3,
        lr: float = 3e-4,
        **settings,
    ):
        if "action_dim" in settings:
            raise ValueError("got action_dim; wanted continuous_action_dim, of the arms alone, and grasp_action_dim")
        if grasp_action_dim not in (3, 9):
            raise ValueError(f"grasp_action_dim is {grasp_action_dim}; wanted 3 (one gripper) or 9 (two)")
        self.num_grippers = 1 if grasp_action_dim == 3 else 2
        if continuous_action_dim % self.num_grippers:
            raise ValueError(
                f"continuous_action_dim {continuous_action_dim} does not divide by {self.num_grippers} arms"
            )
        super().__init__(image_keys, continuous_action_dim, lr, **settings)

    def _more_critics(self) -> dict[str, nn.Module]:
        self.grasp_critic = GraspCritic(self.encoder.encoding_dim, 3**self.num_grippers)
        return {"grasp_critic": self.grasp_critic}

    def _split_actions(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if actions.shape[-1] != self.action_dim + self.num_grippers:
            wanted = f"{self.action_dim} continuous + {self.num_grippers} gripper entries"
            raise ValueError(f"actions are {tuple(actions.shape)}; wanted {wanted}")
        blocks = actions.unflatten(-1, (self.num_grippers, -1))  # (B, G, A / G + 1)
        commands = blocks[..., -1].round().clamp(-1, 1).long() + 1  # (B, G) in 0..2
        index = commands[:, 0]
        for i in range(1, self.num_grippers):
            index = 3 * index + commands[:, i]
        return blocks[..., :-1].flatten(1), index

    def _join_actions(self, arm_actions: torch.Tensor, encoding: torch.Tensor, networks: nn.ModuleDict) -> torch.Tensor:
        return join_actions(arm_actions, networks["grasp_critic"](encoding), self.num_grippers)

    def _critic_losses(self, batch: dict, enc: Tensors, noise: torch.Tensor) -> tuple[Tensors, Tensors]:
        losses, info = super()._critic_losses(batch, enc, noise)
        losses["grasp_critic"], grasp_info = self._grasp_critic_loss(batch, enc)
        return losses, info | grasp_info

    def _grasp_critic_loss(self, batch: dict, enc: Tensors) -> tuple[torch.Tensor, Tensors]:
        """(Q(s)[g] - y)^2, y = r + penalty + discount * mask * Q'(s')[argmax Q(s')]; Double DQN (arXiv 1509.06461)."""
        with torch.no_grad():
            best = self.grasp_critic(enc["next"]).argmax(-1, keepdim=True)  # (B, 1)
            next_q = self.target["grasp_critic"](enc["next_target"]).gather(1, best).squeeze(1)  # (B,)
            reward = batch["rewards"] + batch["grasp_penalty"]
            target_q = (reward + self.discount * batch["masks"] * next_q).clamp(max=self.q_range[1])
        q = self.grasp_critic(enc["obs"]).gather(1, batch["gripper_index"][:, None]).squeeze(1)  # (B,)
        assert q.shape == target_q.shape
        return ((q - target_q) ** 2).mean(), {"grasp_q": q.detach().mean(), "grasp_target_q": target_q.mean()}

    def _clone_loss(self, batch: dict, enc: Tensors, *settings: Any) -> tuple[torch.Tensor, Tensors]:
        """The arms' loss plus a large gripper margin: max_g [Q(s)[g] + m 1(g != g*)] - Q(s)[g*] (DQfD eq. 2).

        Its mean is taken over each command's demo transitions, then over the commands: a gripper closes once in an
        episode, and in the mean over all transitions that would drown in holding.
        """
        loss, info = super()._clone_loss(batch, enc, *settings)
        q, index = self.grasp_critic(enc["obs_clone"]), batch["gripper_index"][:, None]
        margin = torch.full_like(q, CLONE_MARGIN).scatter(1, index, 0.0)
        violation = (q + margin).amax(-1) - q.gather(1, index).squeeze(1)  # (B,) >= 0
        is_demo, num_demos = batch["is_demo"], batch["is_demo"].sum().clamp(min=1.0)
        counts = (is_demo[:, None] * (margin == 0)).sum(0)  # demo transitions of every command
        self.average([counts])
        weight = is_demo / counts.clamp(min=1e-6)[index.squeeze(1)] / (counts > 0).sum().clamp(min=1)  # (B,), sum 1
        accuracy = (is_demo * (q.argmax(-1) == index.squeeze(1))).sum() / num_demos
        return loss + (weight * violation).sum(), info | {"gripper_accuracy": accuracy}

    def _prepare(self, batch: dict[str, Any], augment: bool) -> dict[str, Any]:
        if "grasp_penalty" not in batch:
            raise ValueError(
                "batch lacks 'grasp_penalty' (B,), a part of the grasp critic's reward; pass zeros if there is none"
            )
        actions = torch.as_tensor(batch.get("actions", ()))
        if actions.device.type == "cpu" and math.isnan(actions.sum()):  # elsewhere the update would wait for the answer
            raise ValueError("the batch's actions hold NaN; wanted a gripper command -1, 0 or 1, the rest in [-1, 1]")
        return super()._prepare(batch, augment)
