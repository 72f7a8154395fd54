"""Where the arm is to go, read from the picture by a linear function that the demos fit in closed form.

Waypoints are the state at the first gripper command and at the end of the episode (James and Davison, arXiv
2105.14829, call such places keyframes): where the cube, the hole or the goal was. Cloned actions tell little of these
places, since far from them they are all as large as they may be; the demos' own states tell them in every frame. And a
backbone's map tells them badly, where two dozen scenes have as many lights; keypoints do not mind the light: for each
channel of a block's map, the mean place of a softmax over it (spatial softmax; Levine et al., arXiv 1504.00702).
20 demos are enough for a ridge regression, and too few for gradient descent. docs/experiments.md says what it is worth;
where the map tells the places as well, which the demos show, there is nothing to gain.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pytorch_serl.networks.mlp import LAYER_NORM_EPS, dense

BRANCH_DIM = 64
PENALTIES = 10.0 ** np.arange(-5.0, 2.0, 0.5)  # of the ridge, in mean squared norms of a row
LARGEST = 3.0  # standard deviations
MAX_ERROR = 0.3  # of the waypoints' spread, in episodes left out of the fit
ENOUGH = 2  # numbers that are told so: one alone is no place
NEGLIGIBLE = 0.1  # of the displacements' spread, there
MAX_ROWS = 1500  # of a fit: it takes seconds, and frames of one episode tell the same


def keypoints(feature_map: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, 2 C) in -1..1: x of every channel, then y, each channel standardised over its places."""
    z = feature_map.flatten(2)  # (B, C, H * W)
    z = (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-3)
    weight = torch.softmax(z, -1)
    rows, columns = (torch.linspace(-1, 1, n, dtype=z.dtype, device=z.device) for n in feature_map.shape[2:])
    x, y = columns.repeat(len(rows)), rows.repeat_interleave(len(columns))  # (H * W,)
    return torch.cat([weight @ x, weight @ y], -1)


class Waypoint(nn.Module):
    """The displacements to the waypoints in standard deviations of the demos', and a branch of the encoder on them.

    `weight` and `bias` are fitted, not trained: all 0 until `fit`.

    Args:
        num_keypoints: coordinates of all cameras together.
        state_dim: length of `state`, and of a waypoint.
        num_waypoints: W.
    """

    def __init__(self, num_keypoints: int, state_dim: int, num_waypoints: int):
        super().__init__()
        self.state_dim, outputs = state_dim, num_waypoints * state_dim
        weight = torch.zeros(outputs, num_keypoints + state_dim, dtype=torch.float32)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float32), requires_grad=False)
        self.dense = dense(outputs, BRANCH_DIM)
        self.norm = nn.LayerNorm(BRANCH_DIM, eps=LAYER_NORM_EPS, dtype=torch.float32)

    def read(self, inputs: torch.Tensor) -> torch.Tensor:
        """Keypoints and state (B, num_keypoints + state_dim) to standardised displacements (B, W * state_dim).

        They are clipped: behind a waypoint nothing says what is read of it, and it must not drown the others.
        """
        return F.linear(inputs, self.weight, self.bias).clamp(-LARGEST, LARGEST)

    def forward(self, waypoints: torch.Tensor) -> torch.Tensor:
        """What `read` returned to the branch's part of the encoding (B, 64)."""
        return torch.tanh(self.norm(self.dense(waypoints)))

    @property
    def is_fitted(self) -> bool:
        return bool(self.weight.any())

    @torch.no_grad()
    def fit(
        self,
        inputs: np.ndarray,
        displacements: np.ndarray,
        ahead: np.ndarray,
        episodes: np.ndarray,
        maps: np.ndarray | None = None,
    ) -> np.ndarray:
        """Fit `weight` and `bias`; a number that the frames do not tell to within MAX_ERROR stays 0.

        In the demos themselves a fit is exact. A clone would trust it, and be led astray by it everywhere else. Beside
        numbers that are told stand those whose error is NEGLIGIBLE because their waypoint is nearly always the same, as
        the height of a table. Where fewer than ENOUGH are told, or `maps` tell what either tells as well, all stay 0.

        Args:
            inputs: (N, num_keypoints + state_dim), as `read` takes them.
            displacements: (N, W, state_dim), waypoints minus state, in the state's units.
            ahead: (N, W) bool, the rows that count for a waypoint; rows of two episodes or more.
            episodes: (N,) of which episode a row is.
            maps: (N, M) what the policy sees by without the branch.
        Returns: (W, state_dim) the root mean square error in episodes left out of the fit, over the waypoints' standard
            deviation: 1 where the frames tell nothing of a waypoint that the state did not, and as little where it is
            always the same.
        """
        scale, fits, errors = self._scale(inputs.astype(np.float64)), [], []
        for waypoint in range(displacements.shape[1]):
            rows = np.flatnonzero(ahead[:, waypoint])
            rows = rows[np.unique(np.linspace(0, len(rows) - 1, MAX_ROWS).round().astype(int))]
            y = displacements[rows, waypoint].astype(np.float64)
            spread, places = y.std(0), (y + inputs[rows, -self.state_dim :]).std(0)
            moves, differs = (x > 1e-6 * max(1.0, spread.max()) for x in (spread, places))
            y /= np.where(moves, spread, 1.0)
            seen = [inputs[rows] * scale]
            if maps is not None:
                by_map = np.concatenate([maps[rows], inputs[rows, -self.state_dim :]], 1).astype(np.float64)
                seen.append(by_map * self._scale(by_map))
            lines = [ridge(x, y, episodes[rows]) for x in seen]
            fits.append(lines[0])
            over_places = spread / np.where(differs, places, 1.0)
            errors.append([np.where(moves & differs, line.error * over_places, 1.0) for line in lines])
        weight, bias, error = (np.concatenate(parts, -1) for parts in zip(*fits))  # error: over the displacements'
        ours, *others = np.concatenate(errors, -1)
        told = ours <= MAX_ERROR
        for theirs in others:
            either = told | (theirs <= MAX_ERROR)
            told &= (ours[either] ** 2).sum() < (theirs[either] ** 2).sum()
        told = (told | (error <= NEGLIGIBLE)) & (told.sum() >= ENOUGH)
        self.weight.copy_(torch.from_numpy((scale[:, None] * weight * told).T).float())  # MPS has no float64
        self.bias.copy_(torch.from_numpy(bias * told).float())
        return np.stack(errors)[:, 0]

    def _scale(self, x: np.ndarray) -> np.ndarray:
        """Factors (D,) that give the keypoints altogether and every entry of the state a variance of 1 or less."""
        variance = x.var(0)
        points, state = variance[: -self.state_dim].sum(), variance[-self.state_dim :]
        scale = np.concatenate([np.full(len(variance) - self.state_dim, points), state * self.state_dim])
        return 1 / np.sqrt(np.where(scale > 1e-12, scale, np.inf))


class Line(NamedTuple):
    """y = x @ weight + bias; `error`: the root mean square per column of what it leaves of groups left out."""

    weight: np.ndarray
    bias: np.ndarray
    error: np.ndarray


def ridge(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Line:
    """The linear function from x (N, D) to y (N, K), with the penalty of least error where every group is left out.

    Frames of one episode are like each other, and belong into one group of `groups` (N,).
    """
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    few = len(x) <= x.shape[1]  # the smaller of the two products has the same eigenvalues
    values, vectors = np.linalg.eigh(x @ x.T if few else x.T @ x)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    u = vectors if few else x @ vectors / np.sqrt(values)  # (N, R): x's left singular vectors
    best = None
    for penalty in values.sum() / len(x) * PENALTIES:
        shrink = values / (values + penalty)
        rest = y - u @ (shrink[:, None] * (u.T @ y))  # of the fit to all; what one without a group leaves follows
        left = np.empty_like(y)
        for rows in members:
            hat = (u[rows] * shrink) @ u[rows].T + 1 / len(x)  # the means are fitted, too
            left[rows] = np.linalg.solve(np.eye(len(rows)) - hat, rest[rows])
        if best is None or (left**2).mean() < (best[1] ** 2).mean():
            best = penalty, left
    penalty, left = best
    weight = x.T @ (u @ ((u.T @ y) / (values + penalty)[:, None]))
    return Line(weight, y_mean - x_mean @ weight, np.sqrt((left**2).mean(0)))
