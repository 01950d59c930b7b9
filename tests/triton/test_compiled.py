"""The kernels' machine code, compiled ahead of time for sm_80 and sm_90, against budgets.csv. Nothing runs here.

A row of budgets.csv is a configuration and what Triton 3.9 made of it when the row was written: bytes of stack a thread
and of shared memory a program, instructions of a thread in one step, loads and stores of spilled registers in it, and
tensor-core instructions. A change that makes any of the first four larger by more than a twentieth, or the last other,
fails: look at it, and where it is meant write the new row, which is printed.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from mmebm.kernels.reference import MLP, Constraints

triton = pytest.importorskip("triton", reason="backend triton cannot run here")

from mmebm.kernels import triton as backend  # noqa: E402
from mmebm.kernels.triton import chain, launch  # noqa: E402
from mmebm.kernels.triton.draw import draw_kernel  # noqa: E402
from mmebm.kernels.triton.update import update_kernel  # noqa: E402

from .cubin import Code, compiled  # noqa: E402

BUDGETS = list(csv.DictReader(Path(__file__).with_name("budgets.csv").open()))
RECORDED_WITH = "3.9."  # other versions are held to what does not depend on a compiler's choices
MEASURED = ("stack", "shared", "instructions", "spills", "tensor")
SHARED_LIMIT = {80: 166912, 90: 232448}
CAPABILITY = {80: (8, 0), 90: (9, 0)}


def described(row: dict[str, str]) -> str:
    return "-".join(
        row[key] for key in ("kernel", "sm", "dim", "hidden", "activation", "precision", "options") if row[key]
    )


def cases(of: list[dict[str, str]]) -> list[Any]:
    return [
        pytest.param(row, id=described(row), marks=[] if row["always"] == "1" else [pytest.mark.slow]) for row in of
    ]


def layers(dim: int, *widths: int, precision: str = "bf16") -> MLP:
    sizes = [dim, *widths, 1]
    weights = [torch.empty(n, m, device="meta") for m, n in itertools.pairwise(sizes)]
    return MLP(weights, [w[:, 0] for w in weights], "silu", 0.01, None, precision)


def constants(row: dict[str, str]) -> tuple[dict[str, Any], MLP]:
    """A configuration's compile-time arguments, as a call would give them."""
    dim, widths = int(row["dim"]), [int(h) for h in row["hidden"].split("x")]
    options = row["options"].split("+")
    held = "held" in options
    net = layers(dim, *widths, precision=row["precision"])
    net = net._replace(activation=row["activation"], bound=5.0 if held else None)
    scale = torch.empty(dim, device="meta")
    hold = Constraints("laplace", scale, 1.0, -3.0, 3.0) if held else Constraints("normal", scale, None, None, None)
    device = torch.device("meta")
    asked = {"RECORD": "record" in options, "STATISTICS": "statistics" in options}
    return launch.shape(net) | launch.flags(net, hold, device) | {"M": launch.tile(net, device).rows} | asked, net


def measured(code: Code) -> dict[str, int]:
    loop = code.loop
    values = (code.stack, code.shared, sum(loop.values()), loop["LDL"] + loop["STL"], loop["HGMMA"] + loop["HMMA"])
    return dict(zip(MEASURED, values, strict=True))


def check(row: dict[str, str], code: Code) -> None:
    got = measured(code)
    print(",".join([*list(row.values())[:-5], *map(str, got.values())]))
    if not triton.__version__.startswith(RECORDED_WITH):
        return
    for name in MEASURED[:-1]:
        assert got[name] <= 1.05 * int(row[name]), f"{name}: {got[name]} are above the budget of {row[name]}"
    assert got["tensor"] == int(row["tensor"])


@pytest.mark.parametrize("row", cases([r for r in BUDGETS if r["kernel"] in ("langevin", "mala")]))
def test_chains(row: dict[str, str]) -> None:
    values, net = constants(row)
    kernel, sm = getattr(chain, f"{row['kernel']}_kernel"), int(row["sm"])
    code = compiled(kernel, values, sm)
    widths = row["hidden"].split("x")
    parts = (f"d{row['dim']}", f"h{widths[0]}", f"l{len(widths)}", row["activation"], row["precision"])
    assert code.name == "_".join((f"{row['kernel']}_chain", *parts)), "profilers filter on a kernel's name"
    assert code.shared <= SHARED_LIMIT[sm]
    assert code.shared <= launch.shared_bytes(net, row["precision"], CAPABILITY[sm]) + 512, "what fits is foretold"
    # Three coefficients of the step, and nothing of the network.
    work_of_annealing = row["kernel"] == "mala" and "statistics" in row["options"]
    assert code.loop["LDG"] == 3 + work_of_annealing
    if row["kernel"] == "langevin" and sm >= 90 and row["precision"].startswith("bf16") and not row["options"]:
        # A call's four normals and a product's results are where the next operation wants them.
        assert not any(code.loop[name] for name in ("BAR", "STS", "LDS", "SHFL"))
    if row["precision"] != "fp32":
        assert code.loop["HGMMA" if sm >= 90 else "HMMA"] > 0
    check(row, code)


ELEMENTWISE = {
    "draw": (draw_kernel, {"PURPOSE": 1, "SCALED": False, "M": 64}),
    "langevin_update": (update_kernel, {"REFERENCE": "normal", "CLIP": False, "CLAMP": False}),
}


@pytest.mark.parametrize("sm", [80, 90])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_kernels_of_elements_keep_to_their_registers(name: str, sm: int) -> None:
    kernel, fixed = ELEMENTWISE[name]
    sizes = {"LAW": "normal", "D": 32} if name == "draw" else {"M": 64, "D": 32}
    code = compiled(kernel, fixed | sizes, sm)
    assert code.stack == 0 and code.whole["LDL"] + code.whole["STL"] == 0


def test_every_kernel_has_a_configuration_that_always_runs() -> None:
    always = {(row["kernel"], row["sm"]) for row in BUDGETS if row["always"] == "1"}
    assert always == {(kernel, sm) for kernel in ("langevin", "mala") for sm in ("80", "90")}


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (layers(32, 8, 8, 8, 8), "up to 3 hidden layers, the network has 4"),
        (layers(129, 8), "up to 128 dimensions, the network has 129"),
        (layers(32, 64, 200), "hidden layers of width up to 128, the network has 200"),
        (layers(65, 8, precision="fp32"), "up to 64 dimensions at precision fp32, the network has 65"),
        (layers(32, 100, precision="fp32"), "width up to 64 at precision fp32, the network has 100"),
    ],
)
def test_what_does_not_fit_is_named(net: MLP, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "INTERPRETED", False)
    assert reason in str(launch.too_large(net, torch.device("meta")))


def test_what_fits_has_no_reason() -> None:
    for net in (layers(1), layers(128, 128, 128, 128), layers(64, 64, 64, 64, precision="fp32")):
        assert launch.too_large(net, torch.device("meta")) is None


def test_calls_that_it_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for operator in ("draw", "langevin", "mala", "langevin_update"):
        for device, dtype, reason in (
            ("cpu", torch.float32, "it runs on cuda tensors, the call is on cpu"),
            ("cpu", torch.float64, "it computes in float32, the call is in torch.float64"),
        ):
            assert backend.unsupported(operator, torch.device(device), dtype) == reason
    assert "no kernel for 'divide'" in str(backend.unsupported("divide", torch.device("cpu"), torch.float32))
