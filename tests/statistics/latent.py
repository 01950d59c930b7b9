"""A latent model whose posterior energy is an MLP again: z ~ exp(-E) p_0, x | z ~ Binomial(4, sigmoid(w . z)).

-log p(x | z) = x softplus(-w . z) + (4 - x) softplus(w . z) but for a constant: two more units beside a softplus E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .targets import Net, Target, random_net

TRIALS = 4
Kernel = Callable[[Target, Tensor, Tensor], Tensor]  # target, z, rng -> z after some steps of a chain each


class LatentModel(NamedTuple):
    """The energy E has one softplus layer and weights above 0, so that p_alpha can be drawn by rejection."""

    prior: Target
    direction: Tensor  # w [d]

    @classmethod
    def example(cls) -> LatentModel:
        """In two dimensions, the same in every session."""
        net = random_net(2, (6,), "softplus", seed=3)
        net = Net([1.5 * net.weights[0], 0.8 * net.weights[1].abs()], [net.biases[0], torch.zeros(1)], "softplus")
        return cls(Target(net, "normal", torch.tensor([1.0, 1.25])), torch.tensor([2.0, -1.0]))

    def draw_prior(self, n: int) -> Tensor:
        """Independent draws [n, d] of p_alpha from torch's generator: one of p_0 is kept with probability exp(-E)."""
        kept: list[Tensor] = []
        while sum(map(len, kept)) < n:
            z = self.prior.scales() * torch.randn(4 * n, self.prior.dim)
            energy = self.prior.energy(z.double())
            if bool((energy < 0).any()):
                raise ValueError("prior: expected an energy that is never below 0")
            kept.append(z[torch.rand(len(z), dtype=torch.float64) < torch.exp(-energy)])
        return torch.cat(kept)[:n]

    def draw_data(self, z: Tensor) -> Tensor:
        """x int64 [n], given z [n, d]."""
        p = torch.sigmoid(z.double() @ self.direction.double())
        return (torch.rand(len(z), TRIALS, dtype=torch.float64) < p.unsqueeze(1)).sum(1)

    def posterior(self, x: int) -> Target:
        """p(z | x)."""
        net, w = self.prior.net, self.direction
        first = torch.cat((net.weights[0], -w.view(1, -1), w.view(1, -1)))
        last = torch.cat((net.weights[1], torch.tensor([[float(x), float(TRIALS - x)]])), dim=1)
        biases = [torch.cat((net.biases[0], torch.zeros(2))), net.biases[1]]
        return self.prior._replace(net=Net([first, last], biases, "softplus"))

    def by_posterior(self, kernel: Kernel, z: Tensor, x: Tensor, rng: Tensor) -> Tensor:
        """`kernel` on every row with the posterior of its x: one call a value of x, no two rows of one chain."""
        out = torch.empty_like(z)
        for value in range(TRIALS + 1):
            rows = (x == value).nonzero().squeeze(1)
            out[rows] = kernel(self.posterior(value), z[rows], rng)
            rng = rng + torch.tensor([0, 0, len(rows)])
        return out
