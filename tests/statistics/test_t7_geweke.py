"""Tier 7: the joint test of Geweke ("Getting it right", JASA 2004), with kernels that hold a posterior fixed.

From a draw of the joint law of (z, x), steps that hold p(z | x) fixed and draws of p(x | z) in turn give draws of the
joint law again. Many rows run side by side, so that both samples, this one and one straight from the model, are
independent draws and no effective sample size enters.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mmebm

from .latent import TRIALS, Kernel, LatentModel
from .laws import judge, rejects, same_counts, same_law, same_mean, stream
from .targets import Backend, Net, Target, constant

OPERATOR = "mala"
ROWS, ROUNDS, STEPS = 1 << 16, 4, 3
MODEL = LatentModel.example()


def mala(backend: Backend) -> Kernel:
    return lambda target, z, rng: backend.mala(target, z, constant(STEPS, 1.0), rng).z


def langevin(backend: Backend) -> Kernel:
    return lambda target, z, rng: backend.langevin(target, z, constant(STEPS, 1.0), rng).z


def hmc(backend: Backend) -> Kernel:
    def kernel(target: Target, z: Tensor, rng: Tensor) -> Tensor:
        seed, offset, first = rng.tolist()
        energy, there = module(target.net).to(backend.device), z.to(backend.device)
        out = mmebm.hmc(
            energy, there, steps=STEPS, step_size=0.7, leapfrog=2, reference=target.reference,
            reference_scale=target.scales().to(backend.device), seed=seed, offset=offset, chain_offset=first,
            backend=backend.name,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out.cpu()

    return kernel


def module(net: Net) -> nn.Sequential:
    """The posterior's energy as users have theirs: softplus between linear layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(net.weights, net.biases, strict=True):
        linear = nn.Linear(*reversed(weight.shape))
        linear.weight.data, linear.bias.data = weight, bias
        layers += [linear, nn.Softplus()]
    return nn.Sequential(*layers[:-1])


KERNELS: dict[str, Callable[[Backend], Kernel]] = {"mala": mala, "hmc": hmc}


def joint(rows: int) -> tuple[Tensor, Tensor]:
    z = MODEL.draw_prior(rows)
    return z, MODEL.draw_data(z)


def successive(kernel: Kernel, rng: Tensor) -> tuple[Tensor, Tensor]:
    z, x = joint(ROWS)
    for _ in range(ROUNDS):
        z = MODEL.by_posterior(kernel, z, x, rng)
        x = MODEL.draw_data(z)
        rng = rng + torch.tensor([0, STEPS, 0])
    return z, x


def functions(z: Tensor, x: Tensor) -> Tensor:
    """[n, 8]: moments to the second order of z and x."""
    z, x = z.double(), x.double().unsqueeze(1)
    return torch.cat((z, z**2, z.prod(1, keepdim=True), x, x * z), 1)


@pytest.mark.parametrize("name", KERNELS)
def test_both_ways_to_the_joint_law_agree(name: str, backend: Backend) -> None:
    z, x = successive(KERNELS[name](backend), stream(80))
    expected_z, expected_x = joint(2 * ROWS)
    for axis in range(z.shape[1]):
        judge(same_law(z[:, axis], expected_z[:, axis]), f"z_{axis}")
    judge(same_counts(*(torch.bincount(v, minlength=TRIALS + 1) for v in (x, expected_x))), "x")
    judge(same_mean(functions(z, x), functions(expected_z, expected_x)), "moments")


def test_uncorrected_chains_are_told_apart(backend: Backend) -> None:
    z, x = successive(langevin(backend), stream(81))
    expected_z, expected_x = joint(2 * ROWS)
    assert rejects(same_law(z[:, 0], expected_z[:, 0])) and rejects(same_law(z[:, 1], expected_z[:, 1]))
    assert rejects(same_mean(functions(z, x), functions(expected_z, expected_x)))


def test_a_posterior_is_the_joint_law_for_given_data() -> None:
    """As functions of z, U of the posterior and -log p(x | z) - log p(z) differ by a constant."""
    z = torch.randn(100, 2, dtype=torch.float64)
    for x in range(TRIALS + 1):
        law = torch.distributions.Binomial(TRIALS, logits=z @ MODEL.direction.double())
        difference = MODEL.posterior(x).potential(z) - MODEL.prior.potential(z) + law.log_prob(torch.tensor(float(x)))
        torch.testing.assert_close(difference, difference[:1].expand(100))
