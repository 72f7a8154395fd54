"""What an agent does besides learning: observations to tensors, frames to stored features, checkpoints."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from pytorch_serl.networks.augment import crop_offsets, random_crop
from pytorch_serl.networks.resnet import FEATURE_SHAPE, IMAGE_SIZE, ObservationEncoder, ResNet10
from pytorch_serl.networks.shipped import SHIPPED_SHA256, is_shipped, named_state
from pytorch_serl.utils.files import load_checkpoint, load_into, save_checkpoint, uncompiled

Tensors = dict[str, torch.Tensor]
FRAMES_IN_CACHE = 16  # a CPU takes a third less for many frames in passes of so many, and for fewer all cameras in one
ROW_GAP = 48  # entries between two rows of features; a multiple of a cache line


def _tensor(x: Any) -> torch.Tensor:
    """`x` as a tensor; an array with negative strides, as `frame[..., ::-1]` from a BGR camera has, is copied."""
    try:
        return torch.as_tensor(np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"an observation holds a {type(x).__name__}; wanted arrays or tensors ({error})") from None


def _need(obs: Any, keys: Iterable[str]) -> None:
    """Raise ValueError for what is no observation with these entries."""
    if not isinstance(obs, Mapping):
        got = f"an observation is a {type(obs).__name__}"
        raise ValueError(f"{got}; wanted a dict of images and state, and env.reset() returns (obs, info)")
    if missing := [key for key in keys if key not in obs]:
        raise ValueError(f"observation lacks {missing}; it has {sorted(obs)}")


def check_settings(
    state_dim: int,
    discount: float,
    tau: float,
    q_range: tuple[float, ...] | None,
    init_temperature: float,
    dropout: float,
) -> None:
    """Raise ValueError for numbers with which no agent can be made, or none would learn."""
    for name, value, fine, wanted in (
        ("state_dim", state_dim, state_dim >= 0, "0 or more"),
        ("discount", discount, 0 <= discount <= 1, "0 to 1"),
        ("tau", tau, 0 <= tau <= 1, "a share from 0 to 1"),
        ("q_range", q_range, q_range is None or (len(q_range) == 2 and q_range[0] < q_range[1]), "(lowest, highest)"),
        ("init_temperature", init_temperature, init_temperature > 0, "a number above 0"),
        ("dropout", dropout, 0 <= dropout < 1, "a rate from 0 to below 1"),
    ):
        if not fine:
            raise ValueError(f"{name} is {value}; wanted {wanted}")


def _float_features(x: torch.Tensor) -> torch.Tensor:
    """Stored features (B, C, 16) as float32; on a CPU with gaps between the rows.

    `ImageHead.pool` reads the same channel of every row. A power of two apart, these would all be kept in the same few
    places of the cache.
    """
    if x.device.type != "cpu":
        return x.float()
    rows = torch.empty(len(x), x.shape[1:].numel() + ROW_GAP, dtype=torch.float32)
    return rows[:, :-ROW_GAP].view(x.shape).copy_(x)


def keypoint_maps(config: dict[str, Any]) -> list[int] | bool:
    """Of which maps an agent's waypoint branch reads the keypoints, as the settings of a checkpoint say; False: none.

    Older versions said True, and read those of the first and the third block, or knew no branch.
    """
    waypoint = config.get("waypoint", False)
    return [1, 3] if waypoint is True else waypoint


class PixelAgent:
    """The base of `SACAgent`, which sets the attributes that are declared here."""

    image_keys: list[str]
    state_dim: int
    device: torch.device
    config: dict[str, Any]
    backbone: ResNet10 | None  # frozen; None when a trained one is part of `online`
    encoder: ObservationEncoder  # a part of `online`
    online: nn.Module
    target: nn.Module
    actor: nn.Module
    average_actor: nn.Module
    temperature: nn.Module
    optimizers: dict[str, torch.optim.Optimizer]

    # ---------------------------------------------------------------- observations

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Of what is stored of a frame: the frozen backbone's map, and with a waypoint branch its keypoints."""
        return self.encoder.feature_shape

    def _tensors(self, obs: dict[str, Any]) -> Tensors:
        """Check keys, dtypes and shapes of a batch of observations and move it to the device."""
        _need(obs, self.image_keys + ["state"] * bool(self.state_dim))
        out = {}
        for key in self.image_keys:
            image = _tensor(obs[key])
            is_image = image.dtype == torch.uint8 and image.ndim == 4 and image.shape[-1] == 3
            is_feature = image.dtype.is_floating_point and image.shape[1:] == self.feature_shape and self.backbone
            if not is_image and not is_feature:
                wanted = "wanted uint8 (B, H, W, 3) in 0..255"
                if self.backbone and image.dtype.is_floating_point and image.shape[2:] == FEATURE_SHAPE[1:]:
                    wanted = f"features of another agent: of a frame this one stores {tuple(self.feature_shape)}"
                raise ValueError(f"observation {key!r} is {image.dtype} {tuple(image.shape)}; {wanted}")
            out[key] = self._to_device(image) if is_image else _float_features(self._to_device(image))
        if self.state_dim:
            state = self._to_device(_tensor(obs["state"]).float())
            if state.ndim != 2 or state.shape[-1] != self.state_dim:
                raise ValueError(f"state is {tuple(state.shape)}; wanted (B, {self.state_dim})")
            out["state"] = state
        elif "state" in obs and not getattr(self, "_state_warned", False):
            self._state_warned = True
            warnings.warn(
                "the observation has a 'state' but the agent was built without state_dim and ignores it", stacklevel=4
            )
        sizes = {key: len(value) for key, value in out.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"the batch has {sizes} entries by key; wanted the same number, at least one")
        return out

    def _to_device(self, x: torch.Tensor) -> torch.Tensor:
        """`x` on the device; CUDA copies it while the program goes on, so that an update never waits for the GPU."""
        return x.to(self.device, non_blocking=self.device.type == "cuda")

    def _features(self, obs: Tensors, augment: bool = False) -> Tensors:
        """Crop uint8 images (one offset per sample, the same for its cameras), then run the frozen backbone, if any.

        Keypoints are those of the whole images: a crop would move them.
        """
        images = [k for k in self.image_keys if obs[k].dtype == torch.uint8]
        whole = [obs[k] for k in images]
        if images and augment:
            offsets = crop_offsets(len(whole[0]), self.device)
            obs = obs | {k: random_crop(obs[k], offsets, IMAGE_SIZE) for k in images}
        if images and self.backbone is not None:
            maps = self._maps([obs[k] for k in images])
            if augment and self.encoder.waypoint is not None:
                for cropped, kept in zip(maps, self._maps(whole)):
                    cropped[:, FEATURE_SHAPE[0] :] = kept[:, FEATURE_SHAPE[0] :]
            obs = obs | dict(zip(images, maps))
        return obs

    @torch.no_grad()
    def _maps(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        """What is stored of each camera's frames, (B, *feature_shape), in passes that suit the device."""
        see = partial(self.encoder.see, self.backbone)
        if len(images[0]) <= FRAMES_IN_CACHE and len({x.shape for x in images}) == 1:
            return list(see(torch.cat(images)).chunk(len(images)))
        parts = [x.split(FRAMES_IN_CACHE if self.device.type == "cpu" else len(x)) for x in images]
        return [torch.cat([see(part) for part in split]) for split in parts]

    @torch.no_grad()
    def encode_frames(
        self, obs: dict[str, Any], views: int = 1, generator: torch.Generator | None = None
    ) -> dict[str, np.ndarray]:
        """Replace the images of one observation by the frozen backbone's output, to be stored instead of them.

        View 0 is the image as it is, the others are random crops of it (the same crop for every camera); keypoints are
        those of view 0 in all of them. `generator`: of the crops, on the agent's device; default PyTorch's own.
        Returns: images as float16 (views, *feature_shape), other entries unchanged. Raises ValueError without frozen
        backbone, and for images that are not uint8 (H, W, 3).
        """
        if self.backbone is None:
            raise ValueError("features of a trainable backbone change with every update and cannot be stored")
        if views < 1:
            raise ValueError(f"views is {views}; wanted 1 or more")
        _need(obs, self.image_keys)
        frames = {k: _tensor(obs[k]) for k in self.image_keys}
        for key, frame in frames.items():
            if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
                got = f"observation {key!r} is {frame.dtype} {tuple(frame.shape)}"
                raise ValueError(f"{got}; encode_frames takes one observation at a time, uint8 (H, W, 3) in 0..255")
        images = {k: frame[None].to(self.device).expand(views, -1, -1, -1) for k, frame in frames.items()}
        offsets = crop_offsets(views, self.device, generator)
        offsets[0] = 4
        crops = [random_crop(images[k], offsets, IMAGE_SIZE) if views > 1 else images[k] for k in self.image_keys]
        maps = [x.half().cpu().numpy() for x in self._maps(crops)]
        for x in maps:
            x[:, FEATURE_SHAPE[0] :] = x[:1, FEATURE_SHAPE[0] :]
        return dict(obs) | dict(zip(self.image_keys, maps))

    def _batched(self, obs: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        """Add a batch axis to a single observation; says whether it was single."""
        key = self.image_keys[0] if self.image_keys else "state"
        _need(obs, [key])
        image = _tensor(obs[key])
        single_ndim = 1 if key == "state" else 3 if image.dtype == torch.uint8 else len(FEATURE_SHAPE)
        if image.ndim != single_ndim:
            return False, obs
        return True, {k: _tensor(obs[k])[None] for k in (*self.image_keys, "state") if k in obs}

    # ---------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes, the frozen backbone, and the settings that rebuild the agent."""
        names = ("online", "target", "actor", "average_actor", "temperature")
        modules = {name: getattr(self, name) for name in names}
        if self.backbone is not None:
            modules["backbone"] = self.backbone
        return {
            "kind": type(self).__name__,
            "config": self.config,
            "modules": {k: uncompiled(m.state_dict()) for k, m in modules.items()},
            "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
        }

    def policy_state_dict(self) -> dict[str, Any]:
        """`state_dict()` of a policy to use or to start from, as small as it can be: no optimisers, the average only
        once where it is the online network, and the backbone by its hash where it is the shipped one.
        """
        state = self.state_dict()
        del state["optimizers"]
        modules = state["modules"]
        for name, average in (("online", "target"), ("actor", "average_actor")):
            same = {k: v for k, v in modules[name].items() if k in modules[average]}
            modules[average] |= {k: v for k, v in same.items() if torch.equal(v, modules[average][k])}
        if self.backbone is not None and is_shipped(self.backbone):
            del modules["backbone"]
            state["backbone_sha256"] = SHIPPED_SHA256
        return state

    def check_finite(self) -> None:
        """Raise FloatingPointError where a trained parameter is NaN or infinite, so that it is never saved."""
        for name in ("online", "actor", "temperature"):
            for tensor, values in getattr(self, name).named_parameters():
                if not torch.isfinite(values).all():
                    raise FloatingPointError(f"{name}.{tensor} holds NaN or infinity and is not saved; try a lower lr")

    def load_state_dict(self, state: dict[str, Any], source: str = "checkpoint") -> None:
        """Take over a `state_dict()` or `policy_state_dict()`; without optimisers in it, this agent's stay as they are.

        Raises ValueError naming what does not fit, or the backbone that is named and not here; nothing is loaded in
        part.
        """
        if not self._well_formed(state):
            has = sorted(map(str, state))[:6] if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"{source}: not an agent checkpoint of this project (it has {has})")
        if "backbone_sha256" in state:
            backbone = named_state(state["backbone_sha256"], source)
            state = state | {"modules": state["modules"] | {"backbone": backbone}}
        if misfits := self._misfits(state):
            raise ValueError(f"{source} does not fit this agent: " + "; ".join(misfits[:8]))
        self.backbone = copy.deepcopy(self.backbone)  # a classifier may share the one that was passed in
        for name in self.state_dict()["modules"]:
            load_into(getattr(self, name), state["modules"][name])
        for name in state.get("optimizers", {}):
            optimizer = self.optimizers[name]
            own = [{k: group[k] for k in ("lr", "fused")} for group in optimizer.param_groups]
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))  # else both agents would share it
            for group, settings in zip(optimizer.param_groups, own):  # this run's and this device's, not the file's
                group.update(settings)

    def _misfits(self, state: dict[str, Any]) -> list[str]:
        """What of a well-formed `state_dict()` belongs to another agent."""
        shaping = ("image_keys", "action_dim", "state_dim", "ensemble_size", "trainable_backbone", "waypoint")
        kind, config = type(self).__name__, state["config"]
        wrong = [f"it holds a {state['kind']}, this run needs a {kind}"] * (state["kind"] != kind)
        config = {**config, "waypoint": keypoint_maps(config)}
        wrong += [f"{k} is {config.get(k)}, here {self.config[k]}" for k in shaping if config.get(k) != self.config[k]]
        for name, module in self.state_dict()["modules"].items():
            theirs = {k: tuple(v.shape) for k, v in uncompiled(state["modules"].get(name, {})).items()}
            ours = {k: tuple(v.shape) for k, v in module.items()}
            wrong += [
                f"{name}.{k} is {theirs.get(k)}, here {ours.get(k)}"
                for k in sorted(ours.keys() | theirs.keys())
                if ours.get(k) != theirs.get(k)
            ]
        for name in state.get("optimizers", {}):
            optimizer = self.optimizers[name]
            groups = optimizer.param_groups, state["optimizers"][name]["param_groups"]
            ours, theirs = ([len(group["params"]) for group in part] for part in groups)
            wrong += [f"its {name} optimiser has {theirs} parameters, here {ours}"] * (ours != theirs)
        return wrong

    def _well_formed(self, state: Any) -> bool:
        """Whether `state` has the parts of a `state_dict()`, each of its kind."""
        if not isinstance(state, dict) or not {"kind", "config", "modules"} <= set(state):
            return False
        optimizers = state.get("optimizers", dict.fromkeys(self.optimizers, {"state": {}, "param_groups": []}))
        if not all(isinstance(part, dict) for part in (state["config"], state["modules"], optimizers)):
            return False
        if optimizers.keys() != self.optimizers.keys():
            return False
        tensors = [x for m in state["modules"].values() for x in (m.values() if isinstance(m, dict) else [m])]
        return all(isinstance(x, torch.Tensor) for x in tensors) and all(
            isinstance(o, dict) and {"state", "param_groups"} <= o.keys() for o in optimizers.values()
        )

    def save(self, path: str) -> None:
        """Write `state_dict()` to `path`, atomically. Raises FloatingPointError as `check_finite` does."""
        self.check_finite()
        save_checkpoint(path, self.state_dict())

    def save_policy(self, path: str) -> None:
        """Write `policy_state_dict()`, which `load` takes as well, to `path`, atomically; raises as `save` does."""
        self.check_finite()
        save_checkpoint(path, self.policy_state_dict())

    def load(self, path: str) -> None:
        """Take over what `save` or `save_policy` wrote.

        Raises ValueError for a file of another agent, naming what differs.
        """
        content = load_checkpoint(path, self.device)
        self.load_state_dict(content.get("agent", content), str(path))
