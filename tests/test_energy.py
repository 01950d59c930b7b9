"""EnergyMLP: what its options mean, and which nets are recognised as one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmebm.energy import EnergyMLP, Network, recognise


def gradient_norms(energy: EnergyMLP, z: torch.Tensor) -> torch.Tensor:
    z = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(energy(z).sum(), z)
    return grad.norm(dim=1)


def test_input_scale_divides_z() -> None:
    scale = torch.tensor([0.1, 2.0, 0.5])
    scaled, plain = EnergyMLP(3, (8, 8), input_scale=scale), EnergyMLP(3, (8, 8))
    plain.load_state_dict(scaled.state_dict() | {"input_scale": torch.ones(3)})
    z = torch.randn(20, 3)
    torch.testing.assert_close(scaled(z), plain(z / scale))
    assert not torch.allclose(scaled(z), plain(z))
    assert torch.equal(EnergyMLP(3, (8,), input_scale=0.1).input_scale, torch.full((3,), 0.1))


@pytest.mark.parametrize("gain", [0.5, 60.0])
def test_spectral_norm_holds_the_slope(gain: float) -> None:
    energy = EnergyMLP(4, (32, 32), "tanh", spectral_norm=gain)
    with torch.no_grad():
        for layer in energy.layers:
            layer.parametrizations.weight.original.mul_(100.0)
    for _ in range(50):
        energy.network()  # power iteration
    weights = energy.eval().network().detached().weights
    norms = [float(torch.linalg.matrix_norm(w, 2)) for w in weights]
    # tanh's slope is at most 1, so the product of the norms bounds |dE/dz|.
    assert norms == pytest.approx([1.0, 1.0, gain], rel=1e-2)
    assert float(gradient_norms(energy, torch.randn(500, 4)).max()) <= gain * 1.02


def test_negated_is_minus_e_and_detached_has_no_history() -> None:
    net = EnergyMLP(3, (8,)).network()
    z = torch.randn(5, 3)
    assert torch.equal(net.negated().energy(z), -net.energy(z))
    assert net.energy(z).requires_grad and not net.detached().energy(z).requires_grad


def test_leading_dimensions_pass_through() -> None:
    energy = EnergyMLP(3, (8,))
    z = torch.randn(2, 4, 3)
    assert energy(z).shape == (2, 4)
    torch.testing.assert_close(energy(z)[1, 2], energy(z[1, 2:3])[0])


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 1)),
            r"Sigmoid\(\) is neither a Linear nor a supported",
        ),
        (nn.Sequential(nn.Linear(3, 4), nn.ELU(2.0), nn.Linear(4, 1)), "ELU"),
        (nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)), "not a Linear with one output"),
        (nn.Sequential(nn.Linear(3, 4), nn.SiLU()), "not a Linear with one output"),
        (nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), "mixes activations"),
        (nn.Sequential(nn.LayerNorm(3), nn.SiLU(), nn.Linear(3, 1)), "LayerNorm"),
        (nn.Linear(3, 1), "Linear is no EnergyMLP or nn.Sequential"),
        (nn.Sequential(), "not a Linear with one output"),
    ],
)
def test_what_is_not_recognised_says_why(module: nn.Module, reason: str) -> None:
    found = recognise(module)
    assert isinstance(found, str)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found)


def test_a_sequential_is_recognised_with_its_live_weights() -> None:
    inner = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LeakyReLU(0.3))
    module = nn.Sequential(inner, nn.Identity(), nn.Linear(4, 1))
    net = recognise(module)
    assert isinstance(net, Network) and (net.activation, net.slope) == ("leaky_relu", 0.3)
    z = torch.randn(6, 3)
    torch.testing.assert_close(net.energy(z), module(z).squeeze(1))
    with torch.no_grad():
        inner[0].weight.mul_(2.0)
    assert net.weights[0] is inner[0].weight


@pytest.mark.parametrize(
    ("options", "argument"),
    [({"activation": "swish"}, "activation"), ({"hidden": (0,)}, "hidden"), ({"spectral_norm": 0.0}, "spectral_norm"),
     ({"input_scale": 0.0}, "input_scale"), ({"input_scale": torch.ones(2)}, "input_scale")],
)  # fmt: skip
def test_bad_options_are_named(options: dict[str, object], argument: str) -> None:
    with pytest.raises(ValueError, match=argument):
        EnergyMLP(3, **options)
