"""The contract of kernels/ops.py: registration, fakes, tracing, autograd marks, errors and dispatch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map, tree_map_only

from mmebm.kernels import dispatch, native, ops, reference

ROWS, DIM, STEPS = 4, 5, 6


def randn(*shape: int, dtype: torch.dtype, grad: bool = False, strided: bool = False) -> Tensor:
    """`strided` gives the transposed layout of the last two dimensions."""
    x = torch.randn(shape, dtype=dtype)
    if strided and len(shape) > 1:
        x = x.mT.contiguous().mT
    return x.requires_grad_(grad)


def case(name: str, dtype: torch.dtype = torch.float32, rows: int = ROWS, **layout: Any) -> dict[str, Any]:
    """A good call of `torch.ops.mmebm.<name>` by argument; `layout`: grad, strided."""

    def floats(*shape: int) -> Tensor:
        return randn(*shape, dtype=dtype, **layout)

    net = {
        "weights": [floats(7, DIM), floats(1, 7)],
        "biases": [floats(7), floats(1)],
        "activation": "silu",
        "slope": 0.01,
        "bound": 3.0,
    }
    rng = torch.tensor([11, 2, 3])
    table = torch.rand(STEPS, 3)
    hold = {
        "reference": "laplace",
        "reference_scale": torch.rand(DIM, dtype=dtype) + 0.5,
        "grad_clip": 2.0,
        "lower": -3.0,
        "upper": 3.0,
    }
    where = {"precision": "", "backend": "auto"}
    experts = {
        "z": floats(2, rows, DIM),
        "loc": floats(3, rows, DIM),
        "scale": torch.rand(3, rows, DIM, dtype=dtype).add(0.5).requires_grad_(layout.get("grad", False)),
        "present": torch.arange(rows) % 8,
        "law": "normal",
    }
    z = floats(rows, DIM)
    return {
        "draw": {
            "rng": rng, "steps": 2, "rows": rows, "dim": DIM, "law": "normal", "purpose": 1,
            "scale": torch.rand(DIM).requires_grad_(layout.get("grad", False)), "backend": "auto",
        },
        "energy": {"z": z, **net, **where},
        "energy_backward": {"g": floats(rows), "z": z, **net, "parameters": True, **where},
        "energy_and_grad": {"z": z, **net, **where},
        "langevin": {
            "z": z, **net, "coefficients": table, "rng": rng, **hold, "record_every": 2, "statistics": True, **where
        },
        "langevin_update": {
            "z": z, "grad": floats(rows, DIM), "coefficients": table, "rng": rng, "step": 1, **hold, "backend": "auto"
        },
        "mixture_log_prob": {**experts, "backend": "auto"},
        "mixture_log_prob_backward": {"g": floats(2, rows), **experts, "parameters": True, "backend": "auto"},
    }[name]  # fmt: skip


def operator(name: str) -> Any:
    return getattr(torch.ops.mmebm, name).default


def tensors(result: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor)]


@pytest.mark.parametrize("name", ops.OPERATORS)
def test_every_operator_is_declared_public_and_in_the_reference(name: str) -> None:
    schema = operator(name)._schema
    assert not schema.is_mutable
    assert torch.Tag.pt2_compliant_tag in operator(name).tags
    assert callable(getattr(ops, name)) and callable(getattr(reference, name))


@pytest.mark.parametrize("layout", [{}, {"grad": True}, {"strided": True}], ids=["plain", "grad", "strided"])
@pytest.mark.parametrize("name", ops._SCHEMAS)
def test_opcheck(name: str, layout: dict[str, bool]) -> None:
    args = tuple(case(name, torch.float64 if "grad" in layout else torch.float32, **layout).values())
    checks = list(torch.library._OPCHECK_DEFAULT_UTILS)
    if name == "mixture_log_prob_backward" and "grad" in layout:
        checks.remove("test_aot_dispatch_dynamic")  # it differentiates, and that is refused
    torch.library.opcheck(operator(name), args, test_utils=checks)


VARIANTS = [
    *((name, {}) for name in ops._SCHEMAS),
    ("draw", {"steps": 0}),
    ("draw", {"law": "laplace", "scale": None}),
    ("energy_backward", {"parameters": False}),
    ("langevin", {"record_every": 0}),
    ("langevin", {"record_every": STEPS + 1}),
    ("langevin", {"statistics": False}),
    ("langevin", {"coefficients": torch.zeros(0, 3)}),
    ("mixture_log_prob_backward", {"parameters": False}),
    ("mixture_log_prob", {"z": torch.zeros(ROWS, DIM)}),
    ("mixture_log_prob", {"z": torch.zeros(0, 2, ROWS, DIM)}),
]


@pytest.mark.parametrize("rows", [ROWS, 1, 0])
@pytest.mark.parametrize(("name", "change"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_fakes_agree_with_the_real_thing(name: str, change: dict[str, Any], rows: int) -> None:
    args = case(name, rows=rows) | change
    if "z" in change and rows != ROWS:
        args["z"] = args["z"][..., :rows, :]
    with FakeTensorMode() as mode:
        fake = operator(name)(**tree_map_only(Tensor, mode.from_tensor, args))
    real = operator(name)(**args)
    described = tree_map(lambda t: (t.shape, t.dtype, t.device, t.stride()), (fake, real))
    assert described[0] == described[1]


def test_energy_traces_whole_with_its_gradients() -> None:
    for compiler in ("eager", "aot_eager"):
        torch._dynamo.reset()
        args = case("energy", grad=True)
        leaves = [args["z"], *args["weights"], *args["biases"]]

        def loss(args: dict[str, Any]) -> Tensor:
            call = {k: v for k, v in args.items() if k != "precision"}
            return ops.energy(call.pop("z"), call.pop("weights"), call.pop("biases"), **call).square().sum()

        traced = torch.compile(loss, fullgraph=True, backend=compiler)(args)
        plain = loss(args)
        assert torch.equal(traced, plain)
        for a, b in zip(torch.autograd.grad(traced, leaves), torch.autograd.grad(plain, leaves), strict=True):
            assert torch.equal(a, b)


def test_langevin_traces_whole_and_advances_the_offset_inside() -> None:
    args = case("langevin")
    net = args["weights"], args["biases"]

    def twice(z: Tensor, rng: Tensor) -> Tensor:
        for _ in range(2):
            z = ops.langevin(
                z, *net, args["coefficients"], rng, reference="normal", reference_scale=args["reference_scale"]
            ).z
            rng = rng + rng.new_tensor([0, STEPS, 0])
        return z

    expected = twice(args["z"], args["rng"])
    for compiler in ("eager", "aot_eager"):
        torch._dynamo.reset()
        assert torch.equal(torch.compile(twice, fullgraph=True, backend=compiler)(args["z"], args["rng"]), expected)


@pytest.mark.parametrize("name", ["draw", "energy_and_grad", "langevin", "langevin_update"])
def test_what_samplers_return_is_not_differentiable(name: str) -> None:
    assert all(not t.requires_grad for t in tensors(operator(name)(**case(name, grad=True))))


@pytest.mark.parametrize("wanted", ["z", "loc", "scale"])
def test_a_second_derivative_of_the_mixture_is_refused(wanted: str) -> None:
    args = case("mixture_log_prob")
    x = args[wanted].requires_grad_()
    (grad,) = torch.autograd.grad(operator("mixture_log_prob")(**args).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="mixture_log_prob is differentiable once"):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ops._SCHEMAS)
def test_every_output_is_written(name: str, dtype: torch.dtype, poisoned_empty: None) -> None:
    results = tensors(operator(name)(**case(name, dtype)))
    assert results and all(t.numel() and torch.isfinite(t).all() for t in results)


# errors --------------------------------------------------------------------------------------------------------------

F64 = torch.float64
BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("draw", {"rng": torch.zeros(3)}, ValueError, r"rng: expected int64 \[3\].*got float32 \[3\]"),
    ("draw", {"rng": torch.zeros(2, dtype=torch.int64)}, ValueError, r"rng: .*got int64 \[2\]"),
    ("draw", {"steps": -1}, ValueError, "steps: .*>= 0, got -1"),
    ("draw", {"rows": -1}, ValueError, "rows: .*>= 0, got -1"),
    ("draw", {"dim": 0}, ValueError, "dim: .*>= 1, got 0"),
    ("draw", {"dim": (1 << 26) + 1}, ValueError, "dim: expected at most 67108864"),
    ("draw", {"law": "cauchy"}, ValueError, "law: .*normal, laplace, got 'cauchy'"),
    ("draw", {"purpose": 6}, ValueError, "purpose: expected 0 to 5, got 6"),
    ("draw", {"scale": torch.ones(DIM + 1)}, ValueError, r"scale: expected shape \[5\], got float32 \[6\]"),
    ("draw", {"scale": torch.ones(DIM, dtype=F64)}, TypeError, "scale: .*float64"),
    *(
        entry
        for name in ("energy", "energy_backward", "energy_and_grad", "langevin")
        for entry in (
            (name, {"z": torch.zeros(DIM)}, ValueError, r"z: expected shape \[\*, \*\], got float32 \[5\]"),
            (name, {"z": torch.zeros(ROWS, DIM, dtype=torch.int64)}, TypeError, "z: .*float32 or float64, got int64"),
            (name, {"z": torch.zeros(ROWS, 9)}, ValueError, r"weights\[0\]: expected shape \[\*, 9\], got float32 \[7"),
            (name, {"z": torch.zeros(ROWS, DIM, dtype=F64)}, TypeError, r"weights\[0\]: expected torch.float64"),
            (name, {"weights": [torch.zeros(1, DIM)]}, ValueError, "weights, biases: .*got 1 and 2"),
            (name, {"weights": [], "biases": []}, ValueError, "weights, biases: .*at least one, got 0 and 0"),
            (name, {"weights": [torch.zeros(7, DIM), torch.zeros(2, 7)]}, ValueError, r"weights\[1\]: .*\[1, 7\]"),
            (name, {"biases": [torch.zeros(6), torch.zeros(1)]}, ValueError, r"biases\[0\]: .*\[7\], got float32"),
            (name, {"biases": [torch.zeros(7), torch.zeros(1, dtype=F64)]}, TypeError, r"biases\[1\]: .*got float64"),
            (name, {"activation": "swish"}, ValueError, "activation: expected one of .*got 'swish'"),
            (name, {"bound": 0.0}, ValueError, "bound: expected a finite number > 0 or None, got 0"),
            (name, {"bound": -1.0}, ValueError, "bound: .*got -1"),
            (name, {"bound": float("nan")}, ValueError, "bound: .*got nan"),
            (name, {"bound": float("inf")}, ValueError, "bound: .*got inf"),
        )
    ),
    ("energy_backward", {"g": torch.zeros(ROWS + 1)}, ValueError, r"g: expected shape \[4\], got float32 \[5\]"),
    ("langevin_update", {"z": torch.zeros(DIM)}, ValueError, r"z: expected shape \[\*, \*\]"),
    ("langevin_update", {"grad": torch.zeros(ROWS, 2)}, ValueError, r"grad: expected shape \[4, 5\], got .*\[4, 2\]"),
    ("langevin_update", {"grad": torch.zeros(ROWS, DIM, dtype=F64)}, TypeError, "grad: expected torch.float32"),
    ("langevin_update", {"step": -1}, ValueError, "step: expected 0 to 5, .*got -1"),
    ("langevin_update", {"step": STEPS}, ValueError, "step: expected 0 to 5, .*got 6"),
    *(
        entry
        for name in ("langevin", "langevin_update")
        for entry in (
            (name, {"rng": torch.zeros(3)}, ValueError, "rng: .*got float32"),
            (name, {"rng": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"rng: .*got int64 \[3, 1\]"),
            (name, {"coefficients": torch.zeros(STEPS, 2)}, ValueError, r"coefficients: .*\[K, 3\].*got float32"),
            (name, {"coefficients": torch.zeros(STEPS, 3, dtype=F64)}, ValueError, "coefficients: .*got float64"),
            (name, {"reference": "gauss"}, ValueError, "reference: expected one of .*none, got 'gauss'"),
            (name, {"reference_scale": torch.ones(1)}, ValueError, r"reference_scale: .*\[5\], got float32 \[1\]"),
            (name, {"reference_scale": torch.ones(DIM, dtype=F64)}, TypeError, "reference_scale: .*got float64"),
            (name, {"grad_clip": 0.0}, ValueError, "grad_clip: .*> 0 or None, got 0"),
            (name, {"grad_clip": float("nan")}, ValueError, "grad_clip: .*got nan"),
            (name, {"lower": 3.0}, ValueError, r"clamp: expected lower < upper, got \(3.0, 3.0\)"),
            (name, {"upper": float("nan")}, ValueError, r"clamp: .*nan"),
        )
    ),
    ("langevin", {"record_every": -1}, ValueError, "record_every: .*>= 0, got -1"),
    *(
        entry
        for name in ("mixture_log_prob", "mixture_log_prob_backward")
        for entry in (
            (name, {"z": torch.zeros(DIM)}, ValueError, r"z: expected floating \[.., B, d\], got float32 \[5\]"),
            (name, {"loc": torch.zeros(3, ROWS, 2)}, ValueError, r"loc: expected shape \[\*, 4, 5\], got float32"),
            (name, {"loc": torch.zeros(3, ROWS, DIM, dtype=F64)}, TypeError, "loc: .*got float64"),
            (name, {"scale": torch.ones(2, ROWS, DIM)}, ValueError, r"scale: expected shape \[3, 4, 5\]"),
            (name, {"loc": torch.zeros(0, ROWS, DIM), "scale": torch.ones(0, ROWS, DIM)}, ValueError, "loc: .*got 0"),
            (name, {"loc": torch.zeros(32, 4, 5), "scale": torch.ones(32, 4, 5)}, ValueError, "loc: .*1 to 31.*got 32"),
            (name, {"present": torch.ones(ROWS)}, ValueError, "present: .*int64.*got float32"),
            (name, {"present": torch.ones(2, dtype=torch.int64)}, ValueError, r"present: .*\[4\].*got int64 \[2\]"),
            (name, {"law": "student"}, ValueError, "law: .*got 'student'"),
        )
    ),
    ("mixture_log_prob_backward", {"g": torch.zeros(ROWS)}, ValueError, r"g: expected shape \[2, 4\], got float32"),
    *((name, {"precision": "fp8"}, ValueError, "precision: expected one of fp32, .*got 'fp8'")
      for name in ("energy", "energy_and_grad", "langevin")),
    *((name, {"backend": "tpu"}, ValueError, "backend: .*got 'tpu'") for name in ops._SCHEMAS),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD)
def test_an_error_names_the_argument(name: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^{message}"):
        operator(name)(**case(name) | change)


# dispatch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The backend module that serves each draw."""
    calls: list[str] = []
    for module in (reference, native):
        real = module.draw

        def draw(*args: Any, real: Any = real, name: str = module.__name__) -> Tensor:
            calls.append(name.rsplit(".", 1)[-1])
            return real(*args)

        monkeypatch.setattr(module, "draw", draw)
    yield calls


def draw(**change: Any) -> Tensor:
    return operator("draw")(**case("draw") | change)


@pytest.mark.parametrize("name", ops._SCHEMAS)
def test_a_backend_that_cannot_serve_says_why(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^backend='triton' cannot serve mmebm::{name}: .*\w"):
        operator(name)(**case(name) | {"backend": "triton"})


def test_the_native_backend_says_what_its_import_said(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, "ImportError: no such file"))
    with pytest.raises(ValueError, match=r"backend='cpu' cannot serve mmebm::draw: .*ImportError: no such file"):
        draw(backend="cpu")
    draw()
    assert asked == ["reference"]


def test_the_native_backend_refuses_float64() -> None:
    assert "float32" in (dispatch.unsupported("cpu", "draw", torch.device("cpu"), F64) or "") or not native.available()


def test_the_environment_stands_in_for_auto(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> None:
    monkeypatch.setenv("MMEBM_BACKEND", "reference")
    draw()
    monkeypatch.setenv("MMEBM_BACKEND", "triton")
    draw(backend="reference")
    assert asked == ["reference", "reference"]
    with pytest.raises(ValueError, match=r"^MMEBM_BACKEND='triton' cannot serve mmebm::draw: "):
        draw()
    monkeypatch.setenv("MMEBM_BACKEND", "tpu")
    with pytest.raises(ValueError, match=r"^MMEBM_BACKEND: expected 'auto' or one of .*got 'tpu'"):
        draw()
    monkeypatch.setenv("MMEBM_BACKEND", "auto")
    draw()
    assert len(asked) == 3


def test_unset_precision_follows_torch() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for setting, expected in (("highest", "fp32"), ("high", "tf32"), ("medium", "bf16")):
            torch.set_float32_matmul_precision(setting)
            assert dispatch.precision("") == expected
            assert dispatch.precision("bf16x3") == "bf16x3"
    finally:
        torch.set_float32_matmul_precision(before)
