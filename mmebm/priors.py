"""Priors over the shared latent: StandardNormal, StandardLaplace, and the energy-based prior that tilts one of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmebm.energy import EnergyMLP, Network
from mmebm.kernels import checks, ops
from mmebm.kernels.reference.noise import REFERENCE_DRAW
from mmebm.sampling import LangevinInfo, LogPartition, langevin, log_partition
from mmebm.sampling.conventions import Size
from mmebm.sampling.streams import rng_state


def log_density(law: str, z: Tensor, loc: Tensor | float, scale: Tensor) -> Tensor:
    """log density of independent Normal or Laplace coordinates: [.., d] -> [..]; `scale` broadcasts against z."""
    u = (z - loc) / scale
    if law == "normal":
        return -(0.5 * u * u + scale.log() + 0.5 * math.log(2.0 * math.pi)).sum(-1)
    return -(u.abs() + (2.0 * scale).log()).sum(-1)


def _draw(law: str, scale: Tensor, n: int, seed: int | Tensor | None, offset: int | Tensor, first_chain: int) -> Tensor:
    """[n, d] of scale [d], in its dtype; the draw itself is float32."""
    rng = rng_state(seed, offset, first_chain, device=scale.device)
    z = ops.draw(rng, 1, n, len(scale), law=law, purpose=REFERENCE_DRAW, scale=scale.detach().float())[0]
    return z.to(scale.dtype)


class Prior(nn.Module):
    """Independent coordinates of one law with scale [d]."""

    normalised = True
    scale: Tensor

    def __init__(self, dim: int, law: str, scale: float | Tensor = 1.0) -> None:
        super().__init__()
        checks.one_of("law", law, checks.LAWS)
        scale = torch.as_tensor(scale, dtype=torch.float32)
        if scale.dim() > 1 or scale.numel() not in (1, dim) or not bool((scale > 0).all()):
            raise ValueError(f"scale: expected numbers > 0, one or [{dim}], got {scale.tolist()}")
        self.dim, self.law = dim, law
        self.register_buffer("scale", scale.expand(dim).clone())

    def log_prob(self, z: Tensor) -> Tensor:
        """[.., d] -> [..]."""
        return log_density(self.law, z, 0.0, self.scale.to(z.dtype))

    def sample(self, n: int, *, seed: int | None = None, offset: int = 0, first_chain: int = 0) -> Tensor:
        """[n, d]; row i is a function of (seed, offset, first_chain + i)."""
        return _draw(self.law, self.scale, n, seed, offset, first_chain)


class StandardNormal(Prior):
    def __init__(self, dim: int, scale: float | Tensor = 1.0) -> None:
        super().__init__(dim, "normal", scale)


class StandardLaplace(Prior):
    def __init__(self, dim: int, scale: float | Tensor = 1.0) -> None:
        super().__init__(dim, "laplace", scale)


class EnergyPrior(nn.Module):
    """p_alpha(z) = exp(-E_alpha(z)) p_0(z) / Z(alpha), sampled by Langevin chains that start at p_0.

    `reference` names p_0's law, `reference_scale` its scale (a number or [d]); with `learn_scale` the scale is a
    parameter that moves in the energy's update only. `steps` and `step_size` (short-run: a = s^2/2, b = s) are the
    chains drawn at sampling time. `bound`, `grad_clip` and `clamp` as in `mmebm.langevin`; p_alpha is a distribution
    wherever the energy is bounded or its Lipschitz constant is below 1 / scale, or p_0 is normal.
    Source: Pang et al. (NeurIPS 2020); Yuan, Cui, Li and Han (ECCV 2024).
    """

    normalised = False

    def __init__(
        self,
        energy: EnergyMLP,
        reference: str = "laplace",
        reference_scale: float | Tensor = 1.0,
        *,
        learn_scale: bool = False,
        bound: float | None = None,
        grad_clip: float | None = None,
        clamp: tuple[float | None, float | None] | None = None,
        steps: int = 200,
        step_size: Size = 0.2,
    ) -> None:
        super().__init__()
        self.energy = energy
        base = Prior(energy.dim, reference, reference_scale)
        self.dim, self.reference = energy.dim, reference
        self.log_scale = nn.Parameter(base.scale.log(), requires_grad=learn_scale)
        self.bound, self.grad_clip, self.clamp = bound, grad_clip, clamp
        self.steps, self.step_size = steps, step_size

    @property
    def reference_scale(self) -> Tensor:
        return self.log_scale.exp()

    def network(self, frozen: bool = False) -> Network:
        net = self.energy.network()
        return net.detached() if frozen else net

    def energy_of(self, z: Tensor, *, frozen: bool = False) -> Tensor:
        """E(z), bounded: [.., d] -> [..]; `frozen` gives the parameters no gradient, z still."""
        return self.network(frozen).energy(z, bound=self.bound)

    def reference_log_prob(self, z: Tensor, *, frozen: bool = False) -> Tensor:
        """log p_0(z): [.., d] -> [..]."""
        scale = self.reference_scale
        return log_density(self.reference, z, 0.0, (scale.detach() if frozen else scale).to(z.dtype))

    def log_prob(self, z: Tensor) -> Tensor:
        """-E(z) + log p_0(z), without -log Z(alpha): [.., d] -> [..]."""
        return self.reference_log_prob(z) - self.energy_of(z)

    def sample_reference(
        self, n: int, *, seed: int | Tensor | None = None, offset: int | Tensor = 0, first_chain: int = 0
    ) -> Tensor:
        """Draws of p_0 [n, d]: where chains start."""
        return _draw(self.reference, self.reference_scale, n, seed, offset, first_chain)

    def chain(self, z: Tensor, *, steps: int | None = None, **options: Any) -> Tensor | tuple[Tensor, LangevinInfo]:
        """Langevin steps towards p_alpha from z [B, d]; options as in `mmebm.langevin`."""
        steps = self.steps if steps is None else steps
        if not {"convention", "coefficients"} & options.keys():
            options.setdefault("step_size", self.step_size)
        return langevin(
            self.energy, z, steps=steps, reference=self.reference, reference_scale=self.reference_scale,
            bound=self.bound, grad_clip=self.grad_clip, clamp=self.clamp, **options,
        )  # fmt: skip

    def sample(
        self, n: int, *, steps: int | None = None, seed: int | None = None, offset: int = 0, first_chain: int = 0
    ) -> Tensor:
        """[n, d]: chains from p_0. Uses steps offset..offset+max(1, steps)-1 of streams first_chain..+n-1."""
        if seed is None:
            seed = int(rng_state(None, device=self.log_scale.device)[0])
        z = self.sample_reference(n, seed=seed, offset=offset, first_chain=first_chain)
        return self.chain(z, steps=steps, seed=seed, offset=offset, chain_offset=first_chain)  # type: ignore[return-value]

    def log_partition(self, **options: Any) -> LogPartition:
        """An estimate of log Z(alpha) by annealed importance sampling; options as in `mmebm.log_partition`.

        p_alpha is that of E as `bound` has it; `grad_clip` and `clamp` hold chains and take no part.
        """
        return log_partition(
            self.energy, self.dim, reference=self.reference, reference_scale=self.reference_scale.detach(),
            bound=self.bound, device=self.log_scale.device, dtype=self.log_scale.dtype, **options,
        )  # fmt: skip
