"""Signatures that people have: torchebm's `LangevinDynamics` and latent-EBM code's `sample_langevin_prior_z`.

The same update, step for step, in the same convention; the noise is this engine's own, so that runs agree in law and
not in their bits. What the originals accept and ignore is refused by name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmebm.energy import Network, recognise

from .info import LangevinInfo
from .langevin import langevin
from .streams import fresh_seed
from .target import Clamp, Energy

_log = logging.getLogger("mmebm")


class LangevinDynamics:
    """torchebm's sampler (torchebm 0.8): x <- x - eta grad E + noise_scale sqrt(2 eta) eps, clamped after the noise.

    `step_size` eta and `noise_scale`: a number, one a step, or an object with `get_value`, `step` and `reset` as
    torchebm's schedulers have. `model(x, **model_kwargs)` gives the energies [n].
    """

    def __init__(
        self,
        model: Energy,
        step_size: Any = 1e-3,
        noise_scale: Any = 1.0,
        decay: float = 0.0,
        clamp: Clamp | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        integrator: str | None = None,
    ) -> None:
        if decay:
            raise ValueError(f"decay: expected 0, as torchebm has no use for it, got {decay}")
        if integrator not in (None, "euler_maruyama"):
            raise ValueError(f"integrator: expected None or 'euler_maruyama', got {integrator!r}")
        for name, value in (("step_size", step_size), ("noise_scale", noise_scale)):
            if isinstance(value, int | float) and not value > 0:
                raise ValueError(f"{name}: expected a number > 0, got {value}")
        self.model, self.step_size, self.noise_scale = model, step_size, noise_scale
        self.clamp, self.dtype = clamp, dtype
        parameter = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
        self.device = torch.device(device or ("cpu" if parameter is None else parameter.device))

    def sample(
        self,
        x: Tensor | None = None,
        dim: int | Sequence[int] | None = None,
        n_steps: int = 100,
        n_samples: int = 1,
        thin: int = 1,
        return_trajectory: bool = False,
        return_diagnostics: bool = False,
        reset_schedulers: bool = True,
        *,
        y: Tensor | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """x [n, *shape] after `n_steps`, or the trajectory [n, n_steps // thin, *shape]; with diagnostics, mean and var
        over chains [n_kept, *shape] and the mean energy [n_kept].
        """
        if thin < 1:
            raise ValueError(f"thin: expected an integer >= 1, got {thin}")
        if x is None and dim is None:
            raise ValueError("x, dim: expected one of them, got neither")
        if x is None:
            shape = (dim,) if isinstance(dim, int) else tuple(dim or ())
            x = torch.randn(n_samples, *shape, generator=generator, dtype=self.dtype, device=self.device)
        x = x.to(self.device, self.dtype)
        a, noise = (_scheduled(s, n_steps, reset_schedulers) for s in (self.step_size, self.noise_scale))
        table = torch.tensor(
            [(eta, scale * math.sqrt(2.0 * eta), 1.0) for eta, scale in zip(a, noise, strict=True)], device=self.device
        ).view(n_steps, 3)
        wanted = return_trajectory or return_diagnostics
        end = langevin(
            self._energy(y, model_kwargs), x, steps=n_steps, coefficients=table, clamp=self.clamp, generator=generator,
            record_every=thin if wanted else None, return_info=wanted, event_dims=x.dim() - 1, check="off",
        )  # fmt: skip
        if isinstance(end, Tensor):
            return end
        z, info = end
        out = info.trajectory if return_trajectory else z
        return (out, _diagnostics(info)) if return_diagnostics else out

    def _energy(self, y: Tensor | None, model_kwargs: Mapping[str, Any] | None) -> Energy:
        given = dict(model_kwargs or {}) | ({} if y is None else {"y": y})
        return partial(self.model, **given) if given else self.model

    def __repr__(self) -> str:
        return f"LangevinDynamics(step_size={self.step_size}, noise_scale={self.noise_scale}, clamp={self.clamp})"


def _scheduled(value: Any, steps: int, reset: bool) -> list[float]:
    """The value before each step, as torchebm reads it: get_value, then step."""
    if isinstance(value, int | float):
        return [float(value)] * steps
    if hasattr(value, "get_value"):
        if reset:
            value.reset()
        values = []
        for _ in range(steps):
            values.append(float(value.get_value()))
            value.step()
        return values
    values = [float(v) for v in value]
    if len(values) != steps:
        raise ValueError(f"step_size, noise_scale: expected n_steps={steps} values, got {len(values)}")
    return values


def _diagnostics(info: LangevinInfo) -> dict[str, Tensor]:
    states = info.states  # [kept, n, *shape]
    many = states.shape[1] > 1
    mean = states.mean(1)
    var = states.var(1, unbiased=False).clamp(1e-10, 1e10) if many else torch.zeros_like(mean)
    return {"mean": mean, "var": var, "energy": info.energies.mean(1)}


# Energy forms of latent-EBM code, of a net that gives a score: how the engine has them.
_FORMS: dict[str, dict[str, Any]] = {"identity": {}, "tanh": {"negate": True, "bound": 1.0}}


def sample_langevin_prior_z(
    z: Tensor,
    netE: nn.Module,
    verbose: bool = False,
    *,
    e_l_steps: int = 60,
    e_l_step_size: float = 0.4,
    e_l_with_noise: bool = True,
    e_prior_sig: float = 1.0,
    e_energy_form: str = "identity",
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Pang et al.'s prior chain (NeurIPS 2020, their code): z [B, nz, 1, 1] and the last step's mean |grad E|.

        z <- z - s^2/2 (grad E(z) + z / sig^2) + s eps

    The keyword arguments are what the original reads from its `args`, with its defaults. `netE(z)` gives scores
    [B, 1, 1, 1]. Where `netE` is their wrapper of one nn.Sequential `ebm`, and that alone gives the same scores at z,
    the chain runs as one operator. `verbose` logs the summed energy every five steps (logger "mmebm", level INFO).
    """
    if e_energy_form not in ("identity", "tanh", "sigmoid", "softplus"):
        raise ValueError(f"e_energy_form: expected identity, tanh, sigmoid or softplus, got {e_energy_form!r}")
    if e_l_steps < 1:
        raise ValueError(f"e_l_steps: expected an integer >= 1, got {e_l_steps}")
    shape, flat = z.shape, z.detach().flatten(1)
    energy, form = _latent_energy(netE, shape, e_energy_form, flat)
    table = torch.tensor([[0.5 * e_l_step_size**2, e_l_step_size if e_l_with_noise else 0.0, 1.0]], device=z.device)
    seed = int(fresh_seed(z.device, generator)) if seed is None else seed
    settings: dict[str, Any] = {
        "reference": "normal", "reference_scale": e_prior_sig, "seed": seed, "check": "off", "return_info": True,
        **form,
    }  # fmt: skip
    every = 5 if verbose else None
    before, info = langevin(
        energy, flat, steps=e_l_steps - 1, coefficients=table.expand(e_l_steps - 1, 3), record_every=every, **settings
    )
    end, last = langevin(energy, before, steps=1, coefficients=table, offset=e_l_steps - 1, **settings)
    if verbose:
        _log_energies(flat, energy, form, info, last, e_l_steps)
    return end.view(shape), last.grad_norm.mean()


def _latent_energy(net: nn.Module, shape: torch.Size, form: str, flat: Tensor) -> tuple[Energy, dict[str, Any]]:
    """The energy of flat z [B, nz], and what of its form the engine computes itself."""
    inner = next(iter(net.children()), None) if isinstance(net, nn.Module) else None
    if form in _FORMS and len(list(net.children())) == 1 and isinstance(recognise(inner), Network):
        with torch.no_grad():
            if torch.equal(net(flat.view(shape)).flatten(), inner(flat).flatten()):  # type: ignore[misc]
                return inner, _FORMS[form]  # type: ignore[return-value]

    def energy(z: Tensor) -> Tensor:
        score = net(z.view(-1, *shape[1:])).flatten()
        if form == "tanh":
            return torch.tanh(-score)
        if form == "sigmoid":
            return torch.sigmoid(score)
        return nn.functional.softplus(score) if form == "softplus" else score

    return energy, {}


def _log_energies(
    start: Tensor, energy: Energy, form: dict[str, Any], info: LangevinInfo, last: LangevinInfo, steps: int
) -> None:
    """As the original does: before steps 1, 6, 11, .. and before the last."""
    _, first = langevin(energy, start, steps=1, step_size=1.0, seed=0, return_info=True, check="off", **form)
    sums = [first.mean_energy.sum(), *info.energies.sum(1)]
    for i, value in enumerate(sums):
        if 5 * i < steps - 1:
            _log.info("Langevin prior %3d/%3d: energy=%8.3f", 5 * i + 1, steps, float(value))
    _log.info("Langevin prior %3d/%3d: energy=%8.3f", steps, steps, float(last.mean_energy.sum()))
