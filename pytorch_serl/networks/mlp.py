"""Dense layers and MLPs with flax's initialisers: Dense, LayerNorm, tanh (HIL-SERL networks/mlp.py).

Parameters are float32 whatever torch's default dtype is, as the observations are.
"""

import math

import torch
from torch import nn

LAYER_NORM_EPS = 1e-6  # flax's default; torch's is 1e-5


def variance_scaling_(weight: torch.Tensor, fan_in: int, scale: float = 1.0) -> torch.Tensor:
    """Fill with flax's truncated-normal variance scaling: variance scale / fan_in, cut at 2 deviations.

    scale 1 is lecun_normal, scale 2 kaiming_normal. 0.8796 is the deviation that a unit normal keeps after the cut.
    """
    std = math.sqrt(scale / fan_in) / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def dense(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer, xavier-uniform weights and zero bias."""
    layer = nn.Linear(in_dim, out_dim, dtype=torch.float32)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(in_dim: int, hidden_dims: tuple[int, ...], activate_final: bool = True) -> nn.Sequential:
    """Dense, LayerNorm, tanh for each width in `hidden_dims`; `activate_final=False` leaves the last Dense bare."""
    layers: list[nn.Module] = []
    for i, width in enumerate(hidden_dims):
        layers.append(dense(in_dim, width))
        if activate_final or i + 1 < len(hidden_dims):
            layers += [nn.LayerNorm(width, eps=LAYER_NORM_EPS, dtype=torch.float32), nn.Tanh()]
        in_dim = width
    return nn.Sequential(*layers)


class EnsembleDense(nn.Module):
    """`ensemble_size` independent linear layers as one batched matrix product: (E, B, in) -> (E, B, out)."""

    def __init__(self, ensemble_size: int, in_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ensemble_size, in_dim, out_dim, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, 1, out_dim, dtype=torch.float32))
        for member in self.weight:
            nn.init.xavier_uniform_(member)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleLayerNorm(nn.Module):
    """LayerNorm over the last axis with one scale and bias per ensemble member: (E, B, D) -> (E, B, D)."""

    def __init__(self, ensemble_size: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ensemble_size, 1, dim, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, 1, dim, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = nn.functional.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
        return torch.addcmul(self.bias, normed, self.weight)
