"""`mmebm.langevin`: what people type, what it refuses, and what it promises about seeds and splits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import mmebm
from mmebm.energy import Network, recognise
from mmebm.kernels import ops
from mmebm.sampling import target

DIM = 5


def sequential(activation: nn.Module | None = None, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    act = activation or nn.SiLU()
    return nn.Sequential(nn.Linear(DIM, 9), act, nn.Linear(9, 7), copy.deepcopy(act), nn.Linear(7, 1)).to(dtype)


def start(rows: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, DIM, dtype=dtype)


def quadratic(z: Tensor) -> Tensor:
    return z.square().sum(1)


def sample(energy: Any, z: Tensor, **options: Any) -> Tensor:
    options = {"steps": 8, "step_size": 0.3, "seed": 3, "reference": "laplace"} | options
    return mmebm.langevin(energy, z, **options)  # type: ignore[return-value]


def given(**sizes: Any) -> dict[str, Any]:
    return {"step_size": None} | sizes


# step sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [sequential(dtype=torch.float32), quadratic], ids=["mlp", "callable"])
def test_every_way_to_give_the_step_size_is_the_same_chain(energy: Any) -> None:
    z = start(dtype=torch.float32)
    expected = sample(energy, z, step_size=0.5)
    for size in (
        given(convention=mmebm.physics(0.125)),
        given(convention=mmebm.welling_teh(0.25)),
        given(coefficients=torch.tensor([[0.125, 0.5, 1.0]]).repeat(8, 1)),
        given(step_size=[0.5] * 8),
        given(step_size=torch.tensor(0.5)),
    ):
        assert torch.equal(sample(energy, z, **size), expected)


def test_a_schedule_is_followed_step_by_step() -> None:
    net, z = sequential(), start()
    sizes = [0.5, 0.3, 0.1]
    whole = sample(net, z, steps=3, step_size=sizes)
    for k, s in enumerate(sizes):
        z = sample(net, z, steps=1, step_size=s, offset=k)
    assert torch.equal(z, whole)


@pytest.mark.parametrize(
    "size",
    [
        given(),
        given(step_size=0.1, convention=mmebm.physics(0.1)),
        given(step_size=0.1, coefficients=torch.zeros(8, 3)),
        given(convention=mmebm.physics(0.1), coefficients=torch.zeros(8, 3)),
    ],
)
def test_exactly_one_step_size(size: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^step_size, convention, coefficients: expected exactly one"):
        sample(quadratic, start(), **size)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"steps": -1}, ValueError, "steps: .*got -1"),
    ({"steps": 1.5}, ValueError, "steps: .*got 1.5"),
    ({"steps": True}, ValueError, "steps: .*got True"),
    ({"step_size": 0.0}, ValueError, "step_size: .*> 0, got 0"),
    ({"step_size": [0.1, 0.2]}, ValueError, "convention: expected 1 or steps=8 values, got 2"),
    (given(convention="physics"), TypeError, "convention: expected a StepSize.*'physics'"),
    (given(coefficients=torch.zeros(7, 3)), ValueError, r"coefficients: .*\[steps=8, 3\].*got \[7, 3\]"),
    (given(coefficients=[[0.1, 0.2, 1.0]] * 8), ValueError, "coefficients: expected a tensor.*got list"),
    ({"reference": "gauss"}, ValueError, "reference: expected one of .*got 'gauss'"),
    ({"reference_scale": 0.0}, ValueError, "reference_scale: .*> 0.*got 0"),
    ({"reference_scale": float("nan")}, ValueError, "reference_scale: .*got nan"),
    ({"reference_scale": torch.ones(DIM + 1)}, ValueError, r"reference_scale: .*one or \[5\]"),
    ({"reference_scale": -torch.ones(DIM)}, ValueError, "reference_scale: .*> 0"),
    ({"bound": 0.0}, ValueError, "bound: .*> 0 or None, got 0"),
    ({"grad_clip": -1.0}, ValueError, "grad_clip: .*> 0 or None, got -1"),
    ({"clamp": (1.0, -1.0)}, ValueError, r"clamp: expected lower < upper, got \(1.0, -1.0\)"),
    ({"check": "never"}, ValueError, "check: expected 'auto', 'raise' or 'off', got 'never'"),
    ({"record_every": 2}, ValueError, "record_every: .*return_info=True, got 2"),
    ({"record_every": 0, "return_info": True}, ValueError, "record_every: .*>= 1.*got 0"),
    ({"seed": 1.0}, TypeError, "seed: expected an integer.*got 1.0"),
    ({"generator": torch.Generator()}, ValueError, "seed, generator: expected at most one"),
    ({"backend": "tpu"}, ValueError, "backend: expected .*got 'tpu'"),
]


@pytest.mark.parametrize("energy", [sequential(), quadratic], ids=["mlp", "callable"])
@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_an_error_names_the_argument(change: dict[str, Any], error: type[Exception], message: str, energy: Any) -> None:
    with pytest.raises(error, match=rf"^{message}"):
        sample(energy, start(), **change)


@pytest.mark.parametrize(
    ("z0", "error", "message"),
    [
        ([[0.0] * DIM], TypeError, "z0: expected a tensor"),
        (torch.tensor(0.0), ValueError, r"event_dims: expected 1 to 0, the dimensions of z0, got 1"),
        (torch.zeros(2, DIM, dtype=torch.int64), TypeError, "z0: expected float32 or float64, got torch.int64"),
        (torch.zeros(2, DIM, dtype=torch.bfloat16), TypeError, "z0: expected float32 or float64, got torch.bfloat16"),
        (
            torch.zeros(2, DIM + 1, dtype=torch.float64),
            ValueError,
            r"weights\[0\]: expected shape \[\*, 6\], got .*5\]",
        ),
    ],
)
def test_a_bad_start_is_refused(z0: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^{message}"):
        sample(sequential(), z0)


@pytest.mark.parametrize(
    ("energy", "error", "message"),
    [
        (3.0, TypeError, "energy: expected a module or a callable .*got float"),
        (lambda z: z.sum(), ValueError, r"energy: expected one value per row, \[12\], got torch.Size\(\[\]\)"),
        (lambda z: z, ValueError, r"energy: .*\[12\], got torch.Size\(\[12, 5\]\)"),
        (lambda z: 0.0, ValueError, "energy: .*float"),
        (nn.Linear(DIM, 2).double(), ValueError, r"energy: .*torch.Size\(\[12, 2\]\)"),
    ],
)
def test_a_bad_energy_is_refused(energy: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^{message}"):
        sample(energy, start())


# seeds and splits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [sequential(), quadratic], ids=["mlp", "callable"])
def test_a_seed_is_a_run(energy: Any) -> None:
    z = start()
    state = torch.get_rng_state()
    first = sample(energy, z, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "a seeded run leaves torch's generator alone"
    assert torch.equal(sample(energy, z, seed=5), first)
    assert torch.equal(sample(energy, z, seed=torch.tensor(5)), first)
    assert torch.equal(sample(energy, z, seed=5 + 2**64), first)
    assert not torch.equal(sample(energy, z, seed=6), first)
    assert not torch.equal(sample(energy, z, seed=5, offset=1), first)


def test_without_a_seed_torch_decides() -> None:
    z = start()
    torch.manual_seed(8)
    runs = [sample(quadratic, z, seed=None) for _ in range(2)]
    assert not torch.equal(*runs)
    torch.manual_seed(8)
    assert torch.equal(sample(quadratic, z, seed=None), runs[0])
    drawn = [sample(quadratic, z, seed=None, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("energy", [sequential(), quadratic], ids=["mlp", "callable"])
def test_a_batch_and_a_chain_can_be_split(energy: Any) -> None:
    z = start(12)
    whole = sample(energy, z)
    rows = torch.cat([sample(energy, part, chain_offset=first) for first, part in ((0, z[:5]), (5, z[5:]))])
    torch.testing.assert_close(rows, whole)  # to rounding: BLAS orders its sums by the number of rows
    half = sample(energy, sample(energy, z, steps=3), steps=5, offset=3)
    assert torch.equal(half, whole)


# energies ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The calls of the operator that runs all steps."""
    calls: list[int] = []
    real = ops.langevin

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(ops, "langevin", counted)
    return calls


OPTIONS: list[dict[str, Any]] = [
    {},
    {"reference": None},
    {"reference": "normal", "reference_scale": 0.7},
    {"reference_scale": torch.linspace(0.5, 1.5, DIM)},
    {"negate": True},
    {"bound": 0.2},
    {"bound": 0.2, "negate": True},
    {"grad_clip": 0.1},
    {"clamp": (-0.5, 0.5)},
]


def old_weight_norm(linear: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, and used
        return nn.utils.weight_norm(linear)


RECOGNISED: dict[str, Callable[[], nn.Module]] = {
    "silu": sequential,
    "gelu": lambda: sequential(nn.GELU()),
    "gelu_tanh": lambda: sequential(nn.GELU(approximate="tanh")),
    "leaky_relu": lambda: sequential(nn.LeakyReLU(0.2)),
    "relu": lambda: sequential(nn.ReLU()),
    "softplus": lambda: sequential(nn.Softplus()),
    "tanh": lambda: sequential(nn.Tanh()),
    "elu": lambda: sequential(nn.ELU()),
    "linear": lambda: nn.Sequential(nn.Linear(DIM, 1)).double(),
    "no_bias": lambda: nn.Sequential(nn.Linear(DIM, 4, bias=False), nn.SiLU(), nn.Linear(4, 1, bias=False)).double(),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(DIM, 4), nn.Identity(), nn.SiLU()), nn.Linear(4, 1)
    ).double(),
    "energy_mlp": lambda: mmebm.EnergyMLP(DIM, (6, 7), "leaky_relu").double(),
    "spectral": lambda: mmebm.EnergyMLP(DIM, (6,), "tanh", spectral_norm=3.0).double().eval(),
    "flat": lambda: mmebm.EnergyMLP(DIM, ()).double(),
    "idle_dropout": lambda: nn.Sequential(
        nn.Linear(DIM, 4), nn.Dropout(0.5), nn.SiLU(), nn.Linear(4, 1)
    ).double().eval(),
    "old_spectral_norm": lambda: nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(DIM, 4)), nn.SiLU(), nn.Linear(4, 1)
    ).double().eval(),
    "old_weight_norm": lambda: nn.Sequential(old_weight_norm(nn.Linear(DIM, 4)), nn.SiLU(), nn.Linear(4, 1)).double(),
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_a_recognised_network_runs_as_one_and_as_its_callable_does(options: dict[str, Any], fused: list[int]) -> None:
    net, z = sequential(), start()
    got = sample(net, z, **options)
    assert len(fused) == 1
    general = sample(lambda z: net(z), z, **options)
    assert len(fused) == 1
    torch.testing.assert_close(got, general)


@pytest.mark.parametrize("kind", RECOGNISED)
def test_what_is_recognised(kind: str, fused: list[int]) -> None:
    net, z = RECOGNISED[kind](), start()
    got = sample(net, z)
    assert len(fused) == 1
    torch.testing.assert_close(got, sample(lambda z: net(z), z))


def test_an_energy_mlp_is_its_sequential() -> None:
    net, mlp = sequential(nn.LeakyReLU(0.2)), mmebm.EnergyMLP(DIM, (9, 7), "leaky_relu", slope=0.2).double()
    mlp.layers.load_state_dict({f"{i}.{k}": v for i, m in enumerate(net[::2]) for k, v in m.state_dict().items()})
    z = start()
    assert torch.equal(sample(net, z), sample(mlp, z))
    torch.testing.assert_close(mlp(z), net(z).squeeze(1))


def test_the_gain_is_the_norm_of_the_last_layer_and_one_that_of_the_others() -> None:
    mlp = mmebm.EnergyMLP(DIM, (4,), spectral_norm=3.0).double()
    for _ in range(300):  # power iterations, one a reading
        mlp.network()
    first, last = (torch.linalg.matrix_norm(w, 2).item() for w in mlp.eval().network().weights)
    assert first == pytest.approx(1.0) and last == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "swish"}, "activation: expected one of .*got 'swish'"),
        ({"dim": 0}, "dim, hidden: expected widths >= 1"),
        ({"hidden": (4, 0)}, "dim, hidden: expected widths >= 1"),
        ({"spectral_norm": 0.0}, "spectral_norm: expected a gain > 0 or None, got 0"),
    ],
)
def test_an_impossible_network_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        mmebm.EnergyMLP(**{"dim": DIM} | change)


class Twisted(nn.Sequential):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) + z.square().sum(1, keepdim=True)


class Doubled(nn.Linear):
    def forward(self, z: Tensor) -> Tensor:
        return 2.0 * super().forward(z)


def hooked() -> nn.Module:
    net = sequential()
    net[2].register_forward_hook(lambda _, inputs, output: 2.0 * output)
    return net


def pre_hooked(module: nn.Module) -> nn.Module:
    module.register_forward_pre_hook(lambda _, inputs: (2.0 * inputs[0],))
    return module


GENERAL: dict[str, Callable[[], nn.Module]] = {
    "activation": lambda: sequential(nn.Mish()),
    "elu_alpha": lambda: sequential(nn.ELU(alpha=0.5)),
    "softplus_beta": lambda: sequential(nn.Softplus(beta=2.0)),
    "mixed": lambda: nn.Sequential(
        nn.Linear(DIM, 4), nn.SiLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)
    ).double(),
    "two_slopes": lambda: nn.Sequential(
        nn.Linear(DIM, 4), nn.LeakyReLU(0.1), nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1)
    ).double(),
    "norm_layer": lambda: nn.Sequential(nn.LayerNorm(DIM), nn.SiLU(), nn.Linear(DIM, 1)).double(),
    "ends_flat": lambda: nn.Sequential(nn.Linear(DIM, 4), nn.SiLU(), nn.Linear(4, 1), nn.Flatten(0)).double(),
    "own_forward": lambda: Twisted(nn.Linear(DIM, 4), nn.SiLU(), nn.Linear(4, 1)).double(),
    "own_linear": lambda: nn.Sequential(Doubled(DIM, 4), nn.SiLU(), nn.Linear(4, 1)).double(),
    "hooked": hooked,
    "normed_activation": lambda: nn.Sequential(nn.Linear(DIM, 4), pre_hooked(nn.SiLU()), nn.Linear(4, 1)).double(),
    "pre_hooked": lambda: nn.Sequential(pre_hooked(nn.Linear(DIM, 4)), nn.SiLU(), nn.Linear(4, 1)).double(),
}  # fmt: skip


@pytest.mark.parametrize("kind", GENERAL)
def test_what_is_more_than_an_mlp_goes_the_general_path(kind: str, fused: list[int]) -> None:
    net, z = GENERAL[kind](), start()
    assert isinstance(recognise(net), str)
    got = sample(net, z)
    assert not fused
    assert torch.equal(got, sample(lambda z: net(z), z))


def test_an_active_dropout_goes_the_general_path() -> None:
    net = nn.Sequential(nn.Linear(DIM, 4), nn.Dropout(0.5), nn.SiLU(), nn.Linear(4, 1))
    assert "Dropout" in recognise(net)
    assert isinstance(recognise(net.eval()), Network)


def test_an_unsupported_layer_is_named_once() -> None:
    target._told.clear()
    nets = [sequential(nn.Mish()), sequential(nn.Hardswish()), sequential(nn.Mish())]
    for net, expected in zip(nets, ("Mish", "Hardswish", None), strict=True):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            sample(net, start())
        assert [expected] == [next(n for n in ("Mish", "Hardswish") if n in str(w.message)) for w in told] or not told
        assert bool(told) == bool(expected)
        assert all(w.filename == __file__ for w in told), "the warning points at the caller"


def test_a_callable_is_told_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(quadratic, start())


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights_are_read_live(norm: Callable[[nn.Module], nn.Module], fused: list[int]) -> None:
    net, z = sequential(), start()
    for layer in net[::2]:
        norm(layer)
    net.eval()  # a power iteration per reading would move the weights between the two calls
    assert isinstance(recognise(net), Network)
    before = sample(net, z)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    after = sample(net, z)
    assert len(fused) == 2 and not torch.equal(before, after)
    torch.testing.assert_close(after, sample(lambda z: net(z), z))


def test_a_callable_may_give_a_column() -> None:
    z = start()
    assert torch.equal(sample(quadratic, z), sample(lambda z: quadratic(z).unsqueeze(1), z))


def test_negate_means_f_is_minus_the_energy() -> None:
    net, z = sequential(), start()
    for energy in (net, quadratic):
        torch.testing.assert_close(sample(energy, z), sample(lambda z, e=energy: -e(z), z, negate=True))


def test_bound_is_c_tanh_of_the_energy_over_c() -> None:
    net, z = sequential(), start()
    torch.testing.assert_close(sample(net, z, bound=0.3), sample(lambda z: 0.3 * torch.tanh(net(z) / 0.3), z))


# the result ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [sequential(), quadratic], ids=["mlp", "callable"])
def test_the_result_is_detached_new_and_like_the_start(energy: Any) -> None:
    z = start().requires_grad_()
    for steps in (0, 1, 4):
        got = sample(energy, z, steps=steps)
        assert not got.requires_grad and got.shape == z.shape and got.dtype == z.dtype
        assert got.data_ptr() != z.data_ptr()
    assert torch.equal(sample(energy, z, steps=0), z)
    assert z.grad is None
    assert not isinstance(energy, nn.Module) or all(p.grad is None for p in energy.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("energy", [sequential(), quadratic], ids=["mlp", "callable"])
def test_the_callers_grad_mode_changes_nothing(energy: Any, mode: Callable[[], Any]) -> None:
    z = start()
    with mode():
        inside = sample(energy, z.clone())
    assert torch.equal(inside, sample(energy, z))


@pytest.mark.parametrize("energy", [sequential(), quadratic], ids=["mlp", "callable"])
def test_info(energy: Any) -> None:
    z = start()
    options: dict[str, Any] = {"steps": 7, "offset": 2, "chain_offset": 4, "bound": 5.0}
    end, info = mmebm.langevin(
        energy, z, step_size=0.3, seed=3, reference="laplace", record_every=2, return_info=True, **options
    )
    assert torch.equal(end, sample(energy, z, **options))
    assert info.states.shape == (3, 12, DIM) and info.energies.shape == (3, 12)
    assert torch.equal(info.states[0], sample(energy, z, **options | {"steps": 2}))
    value = energy(info.states.flatten(0, 1)).reshape(3, 12)
    torch.testing.assert_close(info.energies, 5.0 * torch.tanh(value / 5.0))
    assert torch.equal(info.coefficients, mmebm.short_run(0.3).coefficients(7))
    assert info.rng.tolist() == [3, 2, 4] and info.non_finite == 0

    # the means, from a run that keeps everything
    _, full = mmebm.langevin(
        energy, z, step_size=0.3, seed=3, reference="laplace", record_every=1, return_info=True, **options
    )
    path = torch.cat((z.unsqueeze(0), full.states))
    left = path[:-1].flatten(0, 1).requires_grad_()
    value = 5.0 * torch.tanh(energy(left).reshape(-1) / 5.0)
    (grad,) = torch.autograd.grad(value.sum(), left)
    torch.testing.assert_close(info.mean_energy, value.detach().view(7, 12).mean(0))
    torch.testing.assert_close(info.grad_norm, grad.norm(dim=1).view(7, 12).mean(0))
    torch.testing.assert_close(info.displacement, path.diff(dim=0).norm(dim=2).mean(0))


def test_info_without_a_record_is_short() -> None:
    for energy in (sequential(), quadratic):
        _, info = sample(energy, start(), return_info=True)
        assert info.states.shape == (0, 12, DIM) and info.energies.shape == (0, 12) and info.grad_norm.shape == (12,)


# chains that are lost ------------------------------------------------------------------------------------------------


def quartic(z: Tensor) -> Tensor:
    return z.pow(4).sum(1)


LOST: dict[str, Any] = {"steps": 20, "step_size": None, "coefficients": torch.tensor([[0.5, 0.125, 1.0]]).repeat(20, 1)}


def runaway() -> Tensor:
    """Two rows at rest, three that a quartic throws out."""
    return torch.cat((torch.zeros(2, DIM), torch.full((3, DIM), 9.0))).double()


@pytest.mark.parametrize("options", [{}, {"return_info": True}, {"check": "raise"}])
def test_lost_chains_are_counted(options: dict[str, Any]) -> None:
    with pytest.raises(mmebm.NonFiniteChains) as error:
        sample(quartic, runaway(), **LOST, **options)
    message = str(error.value)
    assert message.startswith("3 of 5 chains are not finite after 20 steps: 2, 3, 4 (largest a=0.5, b=0.125")
    assert ("mean |dE/dz| of the finite ones" in message) == ("return_info" in options)


def test_infinite_chains_are_lost_as_nan_ones_are() -> None:
    z = torch.zeros(3, DIM, dtype=torch.float64)
    z[1] = 1e308
    table = given(coefficients=torch.tensor([[10.0, 0.0, 1.0]]), steps=1)
    assert torch.isinf(sample(quadratic, z, **table, check="off")[1]).all()
    with pytest.raises(mmebm.NonFiniteChains, match=r"^1 of 3 chains"):
        sample(quadratic, z, **table)


def test_lost_chains_of_a_network_are_counted() -> None:
    net = sequential()
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(mmebm.NonFiniteChains, match=r"^12 of 12 chains"):
        sample(net, start())


def test_unchecked_chains_come_back_as_they_are() -> None:
    end, info = sample(quartic, runaway(), **LOST, check="off", return_info=True)
    assert torch.isfinite(end).all(dim=1).tolist() == [True, True, False, False, False]
    assert info.non_finite is None


# tracing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "energy", [mmebm.EnergyMLP(DIM, (6,)), sequential(dtype=torch.float32)], ids=["mlp", "sequential"]
)
@pytest.mark.parametrize(
    "options", [{"seed": 4}, {"seed": 4, "reference_scale": torch.full((DIM,), 0.5)}], ids=["float", "tensor"]
)
def test_the_call_traces_whole(energy: nn.Module, options: dict[str, Any]) -> None:
    def call(z: Tensor) -> Tensor:
        return sample(energy, z, clamp=(-2.0, 2.0), **options) + 1.0

    torch._dynamo.reset()
    z = start(dtype=torch.float32)
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(z), call(z))


def test_a_traced_call_takes_a_new_seed_each_time() -> None:
    torch._dynamo.reset()
    energy, z = mmebm.EnergyMLP(DIM, (6,)), start(dtype=torch.float32)
    call = torch.compile(lambda z: sample(energy, z, seed=None), fullgraph=True, backend="eager")
    assert not torch.equal(call(z), call(z))
