"""Where `mmebm.langevin`, `mala` and `hmc` are called from and with: modes, transforms, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import mmebm

DIM = 5
SAMPLERS: dict[str, Callable[..., Any]] = {
    "langevin": mmebm.langevin,
    "mala": mmebm.mala,
    "hmc": partial(mmebm.hmc, leapfrog=3),
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
SETTINGS: dict[str, Any] = {"steps": 6, "step_size": 0.3, "seed": 3, "reference": "laplace"}


def sequential(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 9), nn.SiLU(), nn.Linear(9, 7), nn.SiLU(), nn.Linear(7, 1)).to(dtype)


def quadratic(z: Tensor) -> Tensor:
    return z.square().sum(1)


ENERGIES: dict[str, Callable[[], Any]] = {
    "mlp": lambda: mmebm.EnergyMLP(DIM, (9, 7)),
    "sequential": sequential,
    "callable": lambda: quadratic,
}
each_energy = pytest.mark.parametrize("energy", [make() for make in ENERGIES.values()], ids=list(ENERGIES))

# modes ---------------------------------------------------------------------------------------------------------------


@each_sampler
@each_energy
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_changes_nothing(energy: Any, sampler: Callable[..., Tensor], mode: Any) -> None:
    z = torch.randn(12, DIM)
    with mode():
        inside = sampler(energy, z.clone(), **SETTINGS)
    assert torch.equal(inside, sampler(energy, z, **SETTINGS))
    assert not inside.requires_grad


@each_sampler
@each_energy
def test_autocast_leaves_the_state_in_float32(energy: Any, sampler: Callable[..., Tensor]) -> None:
    """A network runs in float32 whatever autocast says; a callable's own products run as autocast has them."""
    z = torch.randn(12, DIM)
    plain = sampler(energy, z, **SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sampler(energy, z, **SETTINGS)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


def test_a_callable_under_autocast_may_give_half_precision() -> None:
    net, z = sequential(), torch.randn(12, DIM)
    seen = []

    def energy(z: Tensor) -> Tensor:
        e = net(z)
        seen.append((z.dtype, e.dtype))
        return e

    plain = mmebm.langevin(energy, z, **SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        cast, info = mmebm.langevin(energy, z, return_info=True, record_every=1, **SETTINGS)
    assert seen[-1] == (torch.float32, torch.bfloat16)
    assert cast.dtype == info.energies.dtype == info.mean_energy.dtype == torch.float32
    # A gradient of bfloat16 products is off by some of its 2^-8; six steps of a = 0.045 carry that and no more.
    assert 0 < (cast - plain).abs().max() < 6 * 0.045 * 2.0**-6 * 5


# float64, layouts, shapes --------------------------------------------------------------------------------------------


@each_sampler
@pytest.mark.parametrize("energy", [mmebm.EnergyMLP(DIM, (9,)).double(), quadratic], ids=["mlp", "callable"])
def test_float64_is_served_by_the_reference_and_said_so(energy: Any, sampler: Callable[..., Any]) -> None:
    z = torch.randn(6, DIM, dtype=torch.float64)
    end, info = sampler(energy, z, return_info=True, **SETTINGS)
    assert end.dtype == info.mean_energy.dtype == torch.float64 and info.backend == "reference"


@each_sampler
@each_energy
def test_the_layout_of_the_start_changes_nothing(energy: Any, sampler: Callable[..., Tensor]) -> None:
    z = torch.randn(DIM, 24).T[::2]
    assert not z.is_contiguous()
    assert torch.equal(sampler(energy, z, **SETTINGS), sampler(energy, z.contiguous(), **SETTINGS))


@each_sampler
@each_energy
@pytest.mark.parametrize("batch", [(), (1,), (12,), (3, 4), (2, 3, 2), (0,), (2, 0)], ids=str)
def test_any_batch_shape(energy: Any, sampler: Callable[..., Any], batch: tuple[int, ...]) -> None:
    """Chains are numbered along the flattened batch; everything comes back in its shape."""
    z = torch.randn(*batch, DIM)
    end, info = sampler(energy, z, return_info=True, record_every=2, **SETTINGS)
    flat, told = sampler(energy, z.reshape(-1, DIM), return_info=True, record_every=2, **SETTINGS)
    assert end.shape == z.shape and torch.equal(end.reshape(-1, DIM), flat)
    assert info.states.shape == (3, *batch, DIM) and info.energies.shape == (3, *batch)
    assert info.mean_energy.shape == info.grad_norm.shape == info.displacement.shape == batch
    assert torch.equal(info.grad_norm.reshape(-1), told.grad_norm)
    chains = len(flat)
    assert info.trajectory.shape == (chains, 3, DIM) and info.energy_trajectory.shape == (chains, 3)
    assert torch.equal(info.trajectory, told.states.transpose(0, 1))
    assert torch.equal(info.energy_trajectory, told.energies.T)


@each_sampler
def test_states_of_several_dimensions(sampler: Callable[..., Any]) -> None:
    """An image energy sees images; the chain is that of the flattened state."""
    image = torch.randn(4, 3, 2, 2)
    weight = torch.rand(3, 2, 2)

    def energy(x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 2, 2)
        return (weight * x.square()).sum((1, 2, 3))

    def flat(x: Tensor) -> Tensor:
        return (weight.flatten() * x.square()).sum(1)

    scale = torch.rand(3, 2, 2) + 0.5
    end, info = sampler(
        energy, image, event_dims=3, reference_scale=scale, return_info=True, record_every=3, **SETTINGS
    )
    expected = sampler(flat, image.flatten(1), reference_scale=scale.flatten(), **SETTINGS)
    torch.testing.assert_close(end.flatten(1), expected)
    assert end.shape == image.shape and info.trajectory.shape == (4, 2, 3, 2, 2)


@each_sampler
@pytest.mark.parametrize("dims", [0, 3])
def test_event_dims_fit_the_start(sampler: Callable[..., Any], dims: int) -> None:
    with pytest.raises(ValueError, match=f"^event_dims: expected 1 to 2, the dimensions of z0, got {dims}"):
        sampler(quadratic, torch.randn(4, DIM), event_dims=dims, **SETTINGS)


# what autograd must be able to do ------------------------------------------------------------------------------------


@each_sampler
@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda z: z.detach().sum(1), "energy: expected a value that autograd can follow back to z"),
        (lambda z: torch.ones(len(z), requires_grad=True) * 2.0, "energy: expected a value that depends on z"),
    ],
)
def test_an_energy_without_a_gradient_is_refused(energy: Any, message: str, sampler: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        sampler(energy, torch.randn(4, DIM), **SETTINGS)


@each_sampler
def test_parameters_of_a_callable_get_no_gradient(sampler: Callable[..., Any]) -> None:
    net = sequential()
    sampler(lambda z: net(z), torch.randn(4, DIM), **SETTINGS)
    assert all(p.grad is None for p in net.parameters())


# torch.func ----------------------------------------------------------------------------------------------------------


def pair() -> tuple[mmebm.EnergyMLP, nn.Sequential]:
    """The same network twice: torch's own layers say what is right."""
    mlp, net = mmebm.EnergyMLP(DIM, (9, 7)).double(), sequential(torch.float64)
    net.load_state_dict({f"{2 * i}.{k}": v for i, m in enumerate(mlp.layers) for k, v in m.state_dict().items()})
    return mlp, net


def one(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: net(z.unsqueeze(0)).reshape(())


def many(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: net(z).reshape(-1)


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "grad": lambda net, z: grad(lambda z: net(z).sum())(z),
    "vmap": lambda net, z: vmap(one(net))(z),
    "vmap_grad": lambda net, z: vmap(grad(one(net)))(z),
    "jacrev": lambda net, z: jacrev(many(net))(z),
    "jacfwd": lambda net, z: jacfwd(many(net))(z),
    "hessian": lambda net, z: vmap(hessian(one(net)))(z),
    "reverse_twice": lambda net, z: vmap(jacrev(jacrev(one(net))))(z),
    "jvp": lambda net, z: jvp(many(net), (z,), (torch.ones_like(z),))[1],
    "vjp": lambda net, z: vjp(many(net), z)[1](torch.ones(len(z), dtype=z.dtype))[0],
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_an_energy_mlp_takes_part_in_transforms(transform: Callable[[nn.Module, Tensor], Tensor]) -> None:
    mlp, net = pair()
    z = torch.randn(6, DIM, dtype=torch.float64)
    expected = transform(net, z)
    assert expected.abs().max() > 0
    torch.testing.assert_close(transform(mlp, z), expected)


def test_gradients_by_sample_and_ensembles() -> None:
    mlp, net = pair()
    z = torch.randn(6, DIM, dtype=torch.float64)

    def by_sample(module: nn.Module) -> dict[str, Tensor]:
        values = {n: p.detach() for n, p in module.named_parameters()}
        of = grad(lambda p, z: functional_call(module, p, (z.unsqueeze(0),)).sum())
        return vmap(of, in_dims=(None, 0))(values, z)

    for mine, theirs in zip(by_sample(mlp).values(), by_sample(net).values(), strict=True):
        torch.testing.assert_close(mine, theirs)
    stacked = {n: torch.stack((p.detach(), 2.0 * p.detach())) for n, p in mlp.named_parameters()}
    both = vmap(lambda p: functional_call(mlp, p, (z,)))(stacked)
    torch.testing.assert_close(both[0], mlp(z))
    assert both.shape == (2, 6) and not torch.allclose(both[0], both[1])


def test_forward_mode() -> None:
    mlp, net = pair()
    z, v = torch.randn(2, 6, DIM, dtype=torch.float64)
    expected = jvp(many(net), (z,), (v,))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, v)
        tangent = torch.autograd.forward_ad.unpack_dual(mlp(dual)).tangent
        with pytest.raises(RuntimeError, match=r"^z0: a chain's end is a sample"):
            mmebm.langevin(mlp, dual, **SETTINGS)
    torch.testing.assert_close(tangent, expected)


@each_sampler
def test_a_sample_is_not_differentiated_or_mapped(sampler: Callable[..., Any]) -> None:
    mlp, z = mmebm.EnergyMLP(DIM, (9,)), torch.randn(6, DIM)
    values = {n: p.detach() for n, p in mlp.named_parameters()}

    def drawn(p: dict[str, Tensor]) -> Tensor:
        return functional_call(_Draw(mlp, sampler), {f"net.{n}": v for n, v in p.items()}, (z,)).sum()

    for name, call in (
        ("z0", lambda: grad(lambda z: sampler(mlp, z, **SETTINGS).sum())(z)),
        ("z0", lambda: vmap(lambda z: sampler(mlp, z, **SETTINGS))(z.unsqueeze(1))),
        ("z0", lambda: jvp(lambda z: sampler(quadratic, z, **SETTINGS), (z,), (z,))),
        ("energy", lambda: grad(drawn)(values)),
    ):
        with pytest.raises(RuntimeError, match=f"^{name}: a chain's end is a sample, not a function to differentiate"):
            call()


class _Draw(nn.Module):
    def __init__(self, net: nn.Module, sampler: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net, self.sampler = net, sampler

    def forward(self, z: Tensor) -> Tensor:
        return self.sampler(self.net, z, **SETTINGS)


@pytest.mark.parametrize("sampler", [mmebm.langevin, mmebm.mala])
def test_a_learned_step_size_is_refused(sampler: Callable[..., Any]) -> None:
    z = torch.randn(6, DIM)
    size = torch.tensor(0.3, requires_grad=True)
    with pytest.raises(ValueError, match=r"^step_size: expected numbers without a gradient"):
        sampler(quadratic, z, steps=2, step_size=size)
    table = torch.tensor([[0.1, 0.2, 1.0]], requires_grad=True)
    with pytest.raises(ValueError, match=r"^coefficients: expected a tensor without a gradient"):
        sampler(quadratic, z, steps=1, coefficients=table)


# torch.compile -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [mmebm.langevin, mmebm.mala])
@pytest.mark.parametrize("batch", [(6,), (2, 3)], ids=str)
def test_the_call_traces_whole(sampler: Callable[..., Any], batch: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    energy, z = mmebm.EnergyMLP(DIM, (9,)), torch.randn(*batch, DIM)

    def call(z: Tensor) -> Tensor:
        return sampler(energy, z, **SETTINGS) * 2.0

    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(z), call(z))


# seeds ---------------------------------------------------------------------------------------------------------------


@each_sampler
@each_energy
def test_manual_seed_reproduces_and_calls_share_no_noise(energy: Any, sampler: Callable[..., Tensor]) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k != "seed"}
    z = torch.randn(12, DIM)
    torch.manual_seed(4)
    runs = [sampler(energy, z, **settings) for _ in range(2)]
    torch.manual_seed(4)
    assert torch.equal(sampler(energy, z, **settings), runs[0])
    assert not (runs[0] == runs[1]).all(1).any()


@each_sampler
@each_energy
def test_a_call_takes_one_integer_of_its_generator(energy: Any, sampler: Callable[..., Tensor]) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k != "seed"}
    generator, other = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    sampler(energy, torch.randn(12, DIM), generator=generator, **settings)
    torch.randint(-(1 << 63), (1 << 63) - 1, (), generator=other)
    assert torch.equal(generator.get_state(), other.get_state())
