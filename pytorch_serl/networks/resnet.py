"""From camera to encoding: ResNet-10 backbone, one trained head per camera, the state branch, the waypoint branch.

A frame's way: uint8 (B, H, W, 3) -> `ResNet10` -> feature map (B, 512, 16) -> `ImageHead` -> (B, 256)
-> concatenated with the other cameras and the state by `ObservationEncoder` -> (B, 256 * cameras + 64).
A frozen backbone's feature map never changes, so replay stores that instead of the frame (data/replay_buffer.py).
Reference: HIL-SERL (arXiv 2410.21845) vision/resnet_v1.py and common/encoding.py.

With a waypoint branch, which the original has not, the map comes with its keypoints, (B, 528, 16) together, and another
64 numbers of the encoding say where the arm is to go (networks/waypoint.py).
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from pytorch_serl.networks.mlp import LAYER_NORM_EPS, dense, variance_scaling_
from pytorch_serl.networks.waypoint import BRANCH_DIM, Waypoint, keypoints

IMAGE_SIZE = 128
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEATURE_SHAPE = (512, 16)  # channels, 4 x 4 positions: after the last block
LOCAL_SHAPE = (128, 16, 16)  # channels, rows, columns: after the second
WIDTHS = (64, 64, 128, 256, 512)  # channels after the pooling and after each block
KEYPOINT_MAPS = (0, 1)  # after the pooling and after the first block: fine maps tell places exactly
BOTTLENECK_DIM, STATE_EMBEDDING_DIM = 256, 64


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False, dtype=torch.float32)
    variance_scaling_(conv.weight, in_channels * kernel * kernel, scale=2.0)
    return conv


def _pad_same(x: torch.Tensor) -> torch.Tensor:
    """JAX's "SAME" for a 3x3 stride-2 window on an even side: one row below, one column right, none above or left."""
    return F.pad(x, (0, 1, 0, 1))


def resized(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, 128, 128) in 0..255, what the network sees of frames of any size."""
    x = images.permute(0, 3, 1, 2).float()
    if x.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        x = F.interpolate(x, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    return x


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm(4) and a projected shortcut where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = _conv(in_channels, channels, 3, stride, 1 if stride == 1 else 0)
        self.norm1 = nn.GroupNorm(4, channels, eps=1e-5, dtype=torch.float32)
        self.conv2 = _conv(channels, channels, 3, 1, 1)
        self.norm2 = nn.GroupNorm(4, channels, eps=1e-5, dtype=torch.float32)
        if in_channels != channels:
            self.conv_proj = _conv(in_channels, channels, 1, stride, 0)
            self.norm_proj = nn.GroupNorm(4, channels, eps=1e-5, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(_pad_same(x) if self.stride == 2 else x)))
        y = self.norm2(self.conv2(y))
        shortcut = self.norm_proj(self.conv_proj(x)) if hasattr(self, "conv_proj") else x
        return F.relu(y + shortcut)


class ResNet10(nn.Module):
    """ResNet-10 with four stages of one block, GroupNorm(4), no convolution bias. 4.9 million parameters."""

    def __init__(self):
        super().__init__()
        self.conv_init = _conv(3, 64, 7, 2, 3)
        self.norm_init = nn.GroupNorm(4, 64, eps=1e-5, dtype=torch.float32)
        self.blocks = nn.ModuleList(ResNetBlock(WIDTHS[i], WIDTHS[i + 1], stride=1 if i == 0 else 2) for i in range(4))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)  # as images come: no convolution has to reorder them

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, H, W, 3) in 0..255 -> float32 (B, 3, 128, 128), resized with antialias, ImageNet-normalised."""
        return (resized(images) / 255.0 - self.mean) / self.std

    def stages(self, images: torch.Tensor, blocks: int = 4) -> list[torch.Tensor]:
        """Every intermediate map: conv_init, norm_init (before ReLU), then the blocks; last is (B, 512, 4, 4)."""
        outputs = [self.conv_init(self.preprocess(images))]  # (B, 64, 64, 64)
        outputs.append(self.norm_init(outputs[-1]))
        return outputs + self._blocks(outputs[-1], blocks)[1:]

    def _blocks(self, x: torch.Tensor, blocks: int = 4) -> list[torch.Tensor]:
        """norm_init's output to the map after the pooling, (B, 64, 32, 32), and after each block."""
        outputs = [F.relu(F.max_pool2d(_pad_same(x), 3, 2))]  # ReLU keeps order, and costs less after the pooling
        for block in self.blocks[:blocks]:
            outputs.append(block(outputs[-1]))
        return outputs

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, H, W, 3) -> feature map (B, 512, 16), position = 4 * row + column."""
        return self.stages(images)[-1].flatten(2)

    def with_keypoints(self, images: torch.Tensor, of: Sequence[int] = KEYPOINT_MAPS) -> torch.Tensor:
        """uint8 (B, H, W, 3) -> (B, 528, 16): the feature map, then the keypoints of the maps `of`, 0 to 4."""
        maps = self._blocks(self.norm_init(self.conv_init(self.preprocess(images))))
        points = torch.cat([keypoints(maps[i]) for i in of], -1)  # (B, 256)
        return torch.cat([maps[-1].flatten(2), points.unflatten(-1, (keypoint_rows(of), -1))], 1)

    def local(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, H, W, 3) -> the second block's map (B, 128, 16, 16), 8 pixels to a place."""
        return self.stages(images, blocks=2)[-1]


def keypoint_rows(of: Sequence[int]) -> int:
    """Rows of 16 numbers that hold x and y of every channel of the maps `of`. Raises ValueError for other maps."""
    if not set(of) <= set(range(len(WIDTHS))):
        raise ValueError(f"keypoints of the maps {list(of)}; wanted some of 0 to {len(WIDTHS) - 1}")
    return 2 * sum(WIDTHS[i] for i in of) // 16


def fast_dropout(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Dropout of (B, D), D divisible by 4; on a CPU the mask comes from 16-bit random numbers, four to each draw.

    There PyTorch's own mask, one serial draw per element, takes longer than the Dense that follows. The rate is
    rounded to a multiple of 2^-16.
    """
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    draws = torch.empty(x.numel() // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    draws = draws.view(x.shape[1], -1)  # (D, B): in the layout of `ImageHead.pool`
    dropped = round(rate * 2**16)
    kept = torch.ge(draws, dropped - 2**15, out=x.new_empty(draws.shape)).T  # 0.0 or 1.0
    return torch.addcmul(x.new_zeros(()), kept, x, value=2**16 / (2**16 - dropped))


class ImageHead(nn.Module):
    """Spatial learned embeddings (8 weighted sums per channel), dropout, Dense 256, LayerNorm, tanh."""

    NUM_EMBEDDINGS = 8

    def __init__(self, dropout: float = 0.1):
        super().__init__()
        channels, positions = FEATURE_SHAPE
        self.embeddings = nn.Parameter(torch.empty(channels, positions, self.NUM_EMBEDDINGS, dtype=torch.float32))
        variance_scaling_(self.embeddings, channels * positions)
        pooled_dim = channels * self.NUM_EMBEDDINGS
        self.bottleneck = nn.Linear(pooled_dim, BOTTLENECK_DIM, dtype=torch.float32)
        variance_scaling_(self.bottleneck.weight, pooled_dim)
        nn.init.zeros_(self.bottleneck.bias)
        self.norm = nn.LayerNorm(BOTTLENECK_DIM, eps=LAYER_NORM_EPS, dtype=torch.float32)
        self.dropout = dropout

    def pool(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, 512, 16) -> (B, 4096); index = 8 * channel + embedding. In memory the batch comes last.

        One product per channel, whose rows are long that way, and which leaves what `bottleneck` can read as it is.
        """
        pooled = torch.bmm(self.embeddings.transpose(1, 2), feature_map.permute(1, 2, 0))  # (512, 8, B)
        return pooled.flatten(0, 1).T

    def forward(self, pooled: torch.Tensor, dropout: bool | float = False) -> torch.Tensor:
        """(B, 4096) -> (B, 256). Dropout acts only where the caller asks: at this head's rate, or at another one."""
        rate = self.dropout if dropout is True else float(dropout)
        if rate:
            pooled = fast_dropout(pooled, rate)
        dense = torch.addmm(self.bottleneck.bias[:, None], self.bottleneck.weight, pooled.T)  # (256, B), as pooled lies
        return torch.tanh(self.norm(dense.T))


class LocalHead(nn.Module):
    """Three convolutions that look for the same things at every place, then each channel's largest and mean answer.

    What decides is often small: whether a peg's shoulder touches the rim of its hole is a matter of a pixel or two. The
    map after the second block still has that, and one set of weights for all its places learns it from every scene,
    where `ImageHead` has other weights for each place and sees few scenes there. Two more channels say where a place
    is (CoordConv, arXiv 1807.03247), for what counts at one place only.
    """

    DIM = 64

    def __init__(self, dropout: float = 0.1):
        super().__init__()
        channels, rows, columns = LOCAL_SHAPE
        widths = (channels + 2, self.DIM, self.DIM, self.DIM)
        self.convs = nn.ModuleList(_conv(widths[i], widths[i + 1], k, 1, k // 2) for i, k in enumerate((1, 3, 3)))
        self.norms = nn.ModuleList(nn.GroupNorm(4, self.DIM, eps=1e-5, dtype=torch.float32) for _ in self.convs)
        axes = (torch.linspace(-1, 1, n, dtype=torch.float32) for n in (rows, columns))
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (2, 16, 16)
        self.register_buffer("places", places, persistent=False)
        self.dropout = dropout

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, 128, 16, 16) -> (B, 128): the largest answers, then the mean ones."""
        x = torch.cat([maps, self.places.expand(len(maps), -1, -1, -1)], 1)
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], -1)

    def forward(self, pooled: torch.Tensor, dropout: bool = False) -> torch.Tensor:
        """(B, 128) -> (B, 128). Dropout acts only where the caller asks."""
        return F.dropout(pooled, self.dropout, dropout)


def check_image_keys(image_keys: Iterable[str]) -> list[str]:
    """The camera names as a list. Raises ValueError for duplicates and for names that a module cannot have."""
    keys = [image_keys] if isinstance(image_keys, str) else list(image_keys)
    keys = [str(key) if isinstance(key, str) else key for key in keys]  # numpy's text becomes python's
    if len(set(keys)) < len(keys):
        raise ValueError(f"image_keys is {keys}; wanted each camera once")
    for key in keys:
        if not key or "." in key or hasattr(nn.ModuleDict(), key):
            raise ValueError(f"image_keys has {key!r}, which cannot name a PyTorch module; rename the camera")
    return keys


class ObservationEncoder(nn.Module):
    """One `ImageHead` per camera, the state branch, and where wanted the waypoint branch, which reads both.

    With `trainable_backbone` also one ResNet-10 per camera.

    The frozen backbone is shared by all cameras and lives outside this module, so that nothing here can train,
    average or copy it. Trainable backbones are one per camera, as in the original's `encoder_type="resnet"`.
    """

    def __init__(
        self,
        image_keys: list[str],
        state_dim: int,
        dropout: float,
        trainable_backbone: bool = False,
        num_waypoints: int = 0,
        keypoint_maps: Sequence[int] = KEYPOINT_MAPS,
    ):
        super().__init__()
        self.image_keys = list(image_keys)
        self.heads = nn.ModuleDict({key: ImageHead(dropout) for key in self.image_keys})
        self.backbones = nn.ModuleDict({key: ResNet10() for key in self.image_keys} if trainable_backbone else {})
        if state_dim:
            self.state_dense = dense(state_dim, STATE_EMBEDDING_DIM)
            self.state_norm = nn.LayerNorm(STATE_EMBEDDING_DIM, eps=LAYER_NORM_EPS, dtype=torch.float32)
        self.state_dim = state_dim
        self.encoding_dim = BOTTLENECK_DIM * len(self.image_keys) + (STATE_EMBEDDING_DIM if state_dim else 0)
        self.waypoint, self.keypoint_maps = None, list(keypoint_maps)
        if num_waypoints:
            num_keypoints = keypoint_rows(self.keypoint_maps) * 16 * len(self.image_keys)
            self.waypoint = Waypoint(num_keypoints, state_dim, num_waypoints)
            self.encoding_dim += BRANCH_DIM

    def see(self, backbone: ResNet10, images: torch.Tensor) -> torch.Tensor:
        """What `pool` takes of a camera's frames, uint8 (B, H, W, 3): the frozen backbone's map, and keypoints."""
        return backbone(images) if self.waypoint is None else backbone.with_keypoints(images, self.keypoint_maps)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Of one frame that was seen."""
        channels, positions = FEATURE_SHAPE
        return channels + (keypoint_rows(self.keypoint_maps) if self.waypoint is not None else 0), positions

    def pool(self, obs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Frozen feature maps (B, 512, 16), or uint8 images for trainable backbones, to pooled (B, 4096) by camera.

        With a waypoint branch the maps come with their keypoints (B, 528, 16), and `waypoint` (B, W * state_dim) says
        where the arm is to go. This is the part that a pass with and one without dropout share; `state` goes through
        unchanged.
        """
        maps = {k: self.backbones[k](obs[k]) if k in self.backbones else obs[k] for k in self.image_keys}
        if self.waypoint is None:
            return obs | {k: self.heads[k].pool(v) for k, v in maps.items()}
        pooled = {k: self.heads[k].pool(v[:, : FEATURE_SHAPE[0]]) for k, v in maps.items()}
        return obs | pooled | {"waypoint": self.waypoint.read(self.waypoint_inputs(obs))}

    def waypoint_inputs(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Every camera's keypoints, then the state: (B, 256 * cameras + state_dim)."""
        points = [obs[k][:, FEATURE_SHAPE[0] :].flatten(1) for k in self.image_keys]
        return torch.cat([*points, obs["state"]], -1)

    def forward(self, pooled: dict[str, torch.Tensor], dropout: bool | float = False) -> torch.Tensor:
        """`pool`'s output to the encoding (B, encoding_dim): cameras in `image_keys` order, state, waypoint."""
        parts = [self.heads[key](pooled[key], dropout) for key in self.image_keys]
        if self.state_dim:
            parts.append(torch.tanh(self.state_norm(self.state_dense(pooled["state"]))))
        if self.waypoint is not None:
            parts.append(self.waypoint(pooled["waypoint"]))
        return torch.cat(parts, -1)
