"""The contract of kernels/ops: registration, fakes, tracing, autograd marks, errors and dispatch."""

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
    normals = {"mu": floats(3, rows, DIM), "logvar": floats(3, rows, DIM), "present": torch.arange(rows) % 8}
    chain = {"coefficients": table, "rng": rng, **hold, "record_every": 2, "statistics": True}
    z = floats(rows, DIM)
    return {
        "draw": {
            "rng": rng, "steps": 2, "rows": rows, "dim": DIM, "law": "normal", "purpose": 1,
            "scale": torch.rand(DIM).requires_grad_(layout.get("grad", False)), "backend": "auto",
        },
        "energy": {"z": z, **net, **where},
        "energy_backward": {"g": floats(rows), "z": z, **net, "parameters": True, **where},
        "energy_and_grad": {"z": z, **net, **where},
        "langevin": {"z": z, **net, **chain, **where},
        "langevin_update": {
            "z": z, "grad": floats(rows, DIM), "coefficients": table, "rng": rng, "step": 1, **hold, "backend": "auto"
        },
        "mala": {"z": z, **net, **chain, **where},
        "mixture_log_prob": {**experts, "backend": "auto"},
        "mixture_log_prob_backward": {"g": floats(2, rows), **experts, "parameters": True, "backend": "auto"},
        "product_of_experts": {**normals, "prior": "full", "backend": "auto"},
        "product_of_experts_backward": {
            "g_mu": floats(rows, DIM), "g_logvar": floats(rows, DIM), **normals, "prior": "full", "backend": "auto"
        },
        "subset_experts": {
            **normals, "subset": None, "rng": None, "mode": "all", "prior": "full", "backend": "auto"
        },
        "subset_experts_backward": {
            "g_mu": floats(7, rows, DIM), "g_logvar": floats(7, rows, DIM), "g_kl": floats(0),
            **normals, "mode": "all", "prior": "full", "backend": "auto",
        },
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


ONCE = ("mixture_log_prob", "product_of_experts", "subset_experts")
ONCE_BACKWARD = tuple(f"{name}_backward" for name in ONCE)
RNG = torch.tensor([11, 2, 3])
# Changes that turn the case, which asks for all subsets, into the other modes.
CHOSEN = {"mode": "one", "subset": torch.arange(ROWS) % 8}
DRAWN = {"mode": "one", "rng": RNG}
KL = {"mode": "kl"}
KL_GRADIENT = {"mode": "kl", "g_mu": torch.zeros(0), "g_logvar": torch.zeros(0), "g_kl": torch.ones(7, ROWS)}


@pytest.mark.parametrize("layout", [{}, {"grad": True}, {"strided": True}], ids=["plain", "grad", "strided"])
@pytest.mark.parametrize("name", ops._SCHEMAS)
def test_opcheck(name: str, layout: dict[str, bool]) -> None:
    args = tuple(case(name, torch.float64 if "grad" in layout else torch.float32, **layout).values())
    checks = list(torch.library._OPCHECK_DEFAULT_UTILS)
    if name in ONCE_BACKWARD and "grad" in layout:
        checks.remove("test_aot_dispatch_dynamic")  # it differentiates, and that is refused
    torch.library.opcheck(operator(name), args, test_utils=checks)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("change", [CHOSEN, DRAWN, KL], ids=["chosen", "drawn", "kl"])
def test_opcheck_of_the_other_modes_of_subset_experts(change: dict[str, Any], grad: bool) -> None:
    torch.library.opcheck(operator("subset_experts"), (), case("subset_experts", grad=grad) | change)


VARIANTS = [
    *((name, {}) for name in ops._SCHEMAS),
    ("draw", {"steps": 0}),
    ("draw", {"law": "laplace", "scale": None}),
    ("energy_backward", {"parameters": False}),
    *(
        (name, change)
        for name in ("langevin", "mala")
        for change in (
            {"record_every": 0},
            {"record_every": STEPS + 1},
            {"statistics": False},
            {"coefficients": torch.zeros(0, 3)},
        )
    ),
    ("mixture_log_prob_backward", {"parameters": False}),
    ("mixture_log_prob", {"z": torch.zeros(ROWS, DIM)}),
    ("mixture_log_prob", {"z": torch.zeros(0, 2, ROWS, DIM)}),
    ("product_of_experts", {"mu": torch.zeros(1, ROWS, DIM), "logvar": torch.zeros(1, ROWS, DIM)}),
    ("subset_experts", CHOSEN),
    ("subset_experts", DRAWN),
    ("subset_experts", KL),
    ("subset_experts", KL | {"mu": torch.zeros(1, ROWS, DIM), "logvar": torch.zeros(1, ROWS, DIM)}),
    ("subset_experts_backward", KL_GRADIENT),
]
BY_ROW = {"z": -2, "mu": -2, "logvar": -2, "subset": 0, "g_kl": 1}


@pytest.mark.parametrize("rows", [ROWS, 1, 0])
@pytest.mark.parametrize(("name", "change"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_fakes_agree_with_the_real_thing(name: str, change: dict[str, Any], rows: int) -> None:
    args = case(name, rows=rows) | change
    for key in change.keys() & BY_ROW.keys():
        if args[key].dim() > 1 or key == "subset":
            args[key] = args[key].narrow(BY_ROW[key], 0, rows).contiguous()
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


@pytest.mark.parametrize("name", ["draw", "energy_and_grad", "langevin", "mala", "langevin_update"])
def test_what_samplers_return_is_not_differentiable(name: str) -> None:
    assert all(not t.requires_grad for t in tensors(operator(name)(**case(name, grad=True))))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [*(("mixture_log_prob", w) for w in ("z", "loc", "scale")), *((n, w) for n in ONCE[1:] for w in ("mu", "logvar"))],
)
def test_a_second_derivative_is_refused_where_there_is_none(name: str, wanted: str) -> None:
    args = case(name)
    x = args[wanted].requires_grad_()
    value = sum(t.sum() for t in tensors(operator(name)(**args)))
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name} is differentiable once"):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.parametrize("change", [{}, CHOSEN, DRAWN, KL], ids=["all", "chosen", "drawn", "kl"])
def test_subset_experts_traces_whole_with_its_gradients(change: dict[str, Any]) -> None:
    args = case("subset_experts", grad=True) | change
    leaves = [args["mu"], args["logvar"]]

    def loss(args: dict[str, Any]) -> Tensor:
        out = ops.subset_experts(**args)
        return out.mu.square().sum() + out.logvar.sum() + out.kl.sum() + out.subset.sum()

    plain = loss(args)
    for compiler in ("eager", "aot_eager"):
        torch._dynamo.reset()
        traced = torch.compile(loss, fullgraph=True, backend=compiler)(args)
        assert torch.equal(traced, plain)
        grads = zip(torch.autograd.grad(traced, leaves), torch.autograd.grad(loss(args), leaves), strict=True)
        assert all(torch.equal(a, b) for a, b in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ops._SCHEMAS)
def test_every_output_is_written(name: str, dtype: torch.dtype, poisoned_empty: None) -> None:
    results = tensors(operator(name)(**case(name, dtype)))
    unasked = {"subset_experts": 2}.get(name, 0)  # the chosen subset and the KL
    assert sum(t.numel() > 0 for t in results) == len(results) - unasked
    assert all(torch.isfinite(t).all() for t in results)


@pytest.mark.parametrize("change", [CHOSEN, DRAWN, KL], ids=["chosen", "drawn", "kl"])
def test_every_output_of_the_other_modes_is_written(change: dict[str, Any], poisoned_empty: None) -> None:
    assert all(torch.isfinite(t).all() for t in tensors(operator("subset_experts")(**case("subset_experts") | change)))


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
        for name in ("energy", "energy_backward", "energy_and_grad", "langevin", "mala")
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
        for name in ("langevin", "mala", "langevin_update")
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
    *((name, {"record_every": -1}, ValueError, "record_every: .*>= 0, got -1") for name in ("langevin", "mala")),
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
    *(
        entry
        for name in (*ONCE[1:], *ONCE_BACKWARD[1:])
        for entry in (
            (name, {"mu": torch.zeros(ROWS, DIM)}, ValueError, r"mu: .*\[\*, \*, \*\], got float32 \[4, 5\]"),
            (name, {"mu": torch.zeros(3, ROWS, DIM, dtype=torch.int64)}, TypeError, "mu: .*got int64"),
            (name, {"logvar": torch.zeros(3, ROWS, 2)}, ValueError, r"logvar: expected shape \[3, 4, 5\], got float32"),
            (name, {"logvar": torch.zeros(3, ROWS, DIM, dtype=F64)}, TypeError, "logvar: .*got float64"),
            (name, {"mu": torch.zeros(0, ROWS, DIM), "logvar": torch.zeros(0, ROWS, DIM)}, ValueError, "mu: .*got 0"),
            (name, {"mu": torch.zeros(32, 4, 5), "logvar": torch.zeros(32, 4, 5)}, ValueError, "mu: .*1 to 31.*got 32"),
            (name, {"present": torch.ones(ROWS)}, ValueError, "present: .*int64.*got float32"),
            (name, {"present": torch.ones(2, dtype=torch.int64)}, ValueError, r"present: .*\[4\].*got int64 \[2\]"),
            (name, {"prior": "sometimes"}, ValueError, "prior: expected one of never, always, full, got 'sometimes'"),
        )
    ),
    *(
        (name, {"mode": mode, "mu": torch.zeros(17, ROWS, DIM), "logvar": torch.zeros(17, ROWS, DIM)}, ValueError,
         f"mu: expected at most 16 experts for mode '{mode}', .*got 17")
        for name in ("subset_experts", "subset_experts_backward") for mode in ("all", "kl")
    ),
    ("subset_experts", {"mode": "some"}, ValueError, "mode: expected one of all, one, kl, got 'some'"),
    ("subset_experts", {"mode": "one"}, ValueError, "subset, rng: expected exactly one .*'one', got neither"),
    ("subset_experts", DRAWN | CHOSEN, ValueError, "subset, rng: expected exactly one .*'one', got both"),
    ("subset_experts", {"rng": RNG}, ValueError, "subset, rng: expected neither for mode 'all', got one"),
    ("subset_experts", CHOSEN | KL, ValueError, "subset, rng: expected neither for mode 'kl', got one"),
    ("subset_experts", CHOSEN | {"subset": torch.ones(ROWS)}, ValueError, "subset: .*int64.*got float32"),
    ("subset_experts", {"mode": "one", "rng": torch.zeros(3)}, ValueError, "rng: .*got float32"),
    ("subset_experts_backward", {"mode": "one"}, ValueError, "mode: expected one of all, kl, got 'one'"),
    ("subset_experts_backward", KL, ValueError, r"g_mu: expected shape \[0\], got float32 \[7, 4, 5\]"),
    ("subset_experts_backward", {"g_logvar": torch.ones(6, ROWS, DIM)}, ValueError, r"g_logvar: .*\[7, 4, 5\], got"),
    ("subset_experts_backward", KL_GRADIENT | {"g_kl": torch.ones(7)}, ValueError, r"g_kl: .*\[7, 4\], got float32"),
    ("product_of_experts_backward", {"g_mu": torch.zeros(ROWS)}, ValueError, r"g_mu: expected shape \[4, 5\], got"),
    ("product_of_experts_backward", {"g_logvar": torch.zeros(4, 5, dtype=F64)}, TypeError, "g_logvar: .*got float64"),
    *((name, {"precision": "fp8"}, ValueError, "precision: expected one of fp32, .*got 'fp8'")
      for name in ("energy", "energy_and_grad", "langevin", "mala")),
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
