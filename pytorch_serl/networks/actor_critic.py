"""Actor, critic ensemble, grasp critic and temperature, all on top of the observation encoding."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from pytorch_serl.networks.mlp import EnsembleDense, EnsembleLayerNorm, dense, mlp

HIDDEN_DIMS = (256, 256)
STD_MIN, STD_MAX = 1e-5, 5.0


class Actor(nn.Module):
    """Tanh-squashed diagonal Gaussian policy with a state-dependent standard deviation (SAC, arXiv 1812.05905).

    As in HIL-SERL the standard deviation is clipped to [1e-5, 5], not its logarithm.
    """

    def __init__(self, encoding_dim: int, action_dim: int):
        super().__init__()
        self.network = mlp(encoding_dim, HIDDEN_DIMS)
        self.mean = dense(HIDDEN_DIMS[-1], action_dim)
        self.log_std = dense(HIDDEN_DIMS[-1], action_dim)

    def forward(self, encoding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoding (B, D) to mean and standard deviation before the tanh, both (B, A)."""
        x = self.network(encoding)  # (B, 256)
        return self.mean(x), self.log_std(x).exp().clamp(STD_MIN, STD_MAX)


def normal_log_prob(u: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """log N(u; mean, std) summed over the last axis: (B, A) -> (B,)."""
    z = (u - mean) / std
    return (-0.5 * z * z - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def tanh_log_det(u: torch.Tensor) -> torch.Tensor:
    """log |d tanh(u) / du| in the stable form 2 (log 2 - u - softplus(-2u)), summed: (B, A) -> (B,)."""
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u)).sum(-1)


def sample_tanh_normal(mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Action tanh(mean + std * noise) and its log-probability from the pre-tanh value; noise is N(0, 1), (B, A).

    Reference: SAC (arXiv 1812.05905), appendix C.
    """
    u = mean + std * noise
    return torch.tanh(u), normal_log_prob(u, mean, std) - tanh_log_det(u)


class Critic(nn.Module):
    """`ensemble_size` Q-functions of encoding and continuous action.

    Deviation: the original shares the last Dense across the ensemble; here every member has its own.
    """

    def __init__(self, encoding_dim: int, action_dim: int, ensemble_size: int = 2):
        super().__init__()
        self.ensemble_size = ensemble_size
        layers, in_dim = [], encoding_dim + action_dim
        for width in HIDDEN_DIMS:
            layers += [EnsembleDense(ensemble_size, in_dim, width), EnsembleLayerNorm(ensemble_size, width), nn.Tanh()]
            in_dim = width
        self.network = nn.Sequential(*layers)
        self.head = EnsembleDense(ensemble_size, in_dim, 1)

    def forward(self, encoding: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """(B, D), (B, A) -> Q (E, B)."""
        x = torch.cat([encoding, action], -1).expand(self.ensemble_size, -1, -1)  # (E, B, D + A)
        return self.head(self.network(x)).squeeze(-1)


class GraspCritic(nn.Module):
    """DQN over discrete gripper commands on the encoding alone: 3 outputs for one arm, 9 = 3 * left + right for two.

    As in the original, the second Dense has neither LayerNorm nor activation.
    """

    def __init__(self, encoding_dim: int, num_outputs: int):
        super().__init__()
        self.network = mlp(encoding_dim, HIDDEN_DIMS, activate_final=False)
        self.head = dense(HIDDEN_DIMS[-1], num_outputs)

    def forward(self, encoding: torch.Tensor) -> torch.Tensor:
        """(B, D) -> Q of every command (B, K)."""
        return self.head(self.network(encoding))


class Temperature(nn.Module):
    """SAC's entropy coefficient, softplus of one free parameter so that it stays positive."""

    def __init__(self, initial: float = 1e-2):
        super().__init__()
        self.lagrange = nn.Parameter(torch.tensor(math.log(math.expm1(initial)), dtype=torch.float32))

    def forward(self) -> torch.Tensor:
        return F.softplus(self.lagrange)
