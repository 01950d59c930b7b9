"""The body of the CUDA whole-chain kernel, run on the host by the emulator of a block, against the float64 reference.

What may be lost is twice what PyTorch loses with operands rounded in the same way (bench/gpu/emulate.py); what
emulation cannot see is listed in csrc/cuda/simt.hpp. The kernel compiles, and is not launched yet.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.gpu import emulate
from mmebm.kernels import reference
from mmebm.kernels.reference import MLP
from mmebm.kernels.reference.activations import ACTIVATIONS

ROOT = Path(__file__).parents[2]
TERMS = {"bf16": 1, "bf16w2": 2, "bf16x3": 3}
REFERENCES = {"none": 0, "normal": 1, "laplace": 2}
Pointer = ctypes.c_void_p

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ found")


class Call(ctypes.Structure):
    """mmebm::cuda::Chain."""

    _fields_ = [
        ("z", Pointer), ("rows", ctypes.c_int64), ("steps", ctypes.c_int64), ("weight", Pointer * 4),
        ("bias", Pointer * 4), ("in_", ctypes.c_int * 4), ("out", ctypes.c_int * 4), ("linear", ctypes.c_int),
        ("activation", ctypes.c_int), ("slope", ctypes.c_float), ("bound", ctypes.c_float), ("table", Pointer),
        ("rng", Pointer), ("reference", ctypes.c_int), ("scale", Pointer), ("clip", ctypes.c_float),
        ("lower", ctypes.c_float), ("upper", ctypes.c_float), ("end", Pointer), ("record_every", ctypes.c_int64),
        ("states", Pointer), ("energies", Pointer), ("mean_energy", Pointer), ("grad_norm", Pointer),
        ("displacement", Pointer),
    ]  # fmt: skip


class Hold(NamedTuple):
    reference: str = "laplace"
    clip: float | None = None
    lower: float | None = None
    upper: float | None = None


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("emulated") / "chain.so"
    source = ROOT / "tests" / "csrc" / "emulated_chain.cpp"
    command = ["g++", "-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, str(source), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def network(dim: int, hidden: tuple[int, ...], activation: str = "silu", bound: float | None = None) -> MLP:
    widths = (dim, *hidden, 1)
    weights = [torch.randn(o, i) * 1.5 / math.sqrt(i) for i, o in pairwise(widths)]
    return MLP(weights, [0.3 * torch.randn(o) for o in widths[1:]], activation, 0.1, bound)


def run(
    library: ctypes.CDLL, z: Tensor, net: MLP, table: Tensor, rng: Tensor, scale: Tensor, hold: Hold, precision: str,
    every: int = 0,
) -> list[Tensor]:  # fmt: skip
    """End, states, energies, and the three means; outputs are poisoned before."""
    (rows, dim), steps = z.shape, len(table)
    kept = steps // every if every else 0
    shapes = [(rows, dim), (kept, rows, dim), (kept, rows), (rows,), (rows,), (rows,)]
    out = [torch.full(shape, math.nan) for shape in shapes]
    end, states, energies, *means = (t.data_ptr() for t in out)
    call = Call(
        z.data_ptr(), rows, steps, in_=tuple(w.shape[1] for w in net.weights), out=tuple(len(w) for w in net.weights),
        linear=len(net.weights), activation=list(ACTIVATIONS).index(net.activation), slope=net.slope,
        bound=net.bound or 0.0, table=table.data_ptr(), rng=rng.data_ptr(), reference=REFERENCES[hold.reference],
        scale=scale.data_ptr(), clip=hold.clip or 0.0, lower=-math.inf if hold.lower is None else hold.lower,
        upper=math.inf if hold.upper is None else hold.upper, end=end, record_every=every, states=states,
        energies=energies, mean_energy=means[0], grad_norm=means[1], displacement=means[2],
    )  # fmt: skip
    call.weight = (Pointer * 4)(*(w.data_ptr() for w in net.weights))
    call.bias = (Pointer * 4)(*(b.data_ptr() for b in net.biases))
    padded = (16, 32) if dim <= 16 and max(map(len, net.weights[:-1])) <= 32 else (32, 64)
    assert library.chain(ctypes.byref(call), *padded, TERMS[precision]) == 0
    return out


def plain(
    z: Tensor, net: MLP, table: Tensor, rng: Tensor, scale: Tensor, hold: Hold, precision: str, every: int = 0
) -> list[Tensor]:
    """The same in plain PyTorch, in z's dtype, with products' operands rounded."""
    noise = reference.draw(rng, len(table), *z.shape, "normal", 0).to(z.dtype)
    cast = net._replace(weights=[w.to(z.dtype) for w in net.weights], biases=[b.to(z.dtype) for b in net.biases])
    scale, states, energies, totals = scale.to(z.dtype), [], [], torch.zeros(3, len(z), dtype=z.dtype)
    for k, ((a, b, t), eps) in enumerate(zip(table.to(z.dtype), noise, strict=True)):
        e, grad = emulate.energy_and_grad(z, cast, precision)
        norm = grad.norm(dim=1)
        if hold.clip is not None:
            grad = grad * (hold.clip / norm.clamp_min(hold.clip)).unsqueeze(1)
        pull = {"none": 0.0 * z, "normal": z / scale**2, "laplace": z.sign() / scale}[hold.reference]
        new = z - a * (t * grad + pull) + b * eps
        if hold.lower is not None or hold.upper is not None:
            new = new.clamp(hold.lower, hold.upper)
        totals += torch.stack((e, norm, (new - z).norm(dim=1)))
        z = new
        if every and (k + 1) % every == 0:
            states.append(z)
            energies.append(emulate.energy_and_grad(z, cast, precision)[0])
    kept = [z.new_empty(0, *z.shape), z.new_empty(0, len(z))]
    if states:
        kept = [torch.stack(states), torch.stack(energies)]
    return [z, *kept, *(totals / len(table))]


def compare(
    library: ctypes.CDLL, net: MLP, rows: int, hold: Hold, precision: str, steps: int = 3, every: int = 2
) -> None:
    dim = net.weights[0].shape[1]
    z, scale, rng = torch.randn(rows, dim), torch.rand(dim) + 0.75, torch.tensor([5, 2**32 - 2, 2**32 - 20])
    k = torch.arange(steps)
    table = torch.stack((0.02 + 0.01 * k, 0.2 + 0.05 * k, 1.5 - 0.3 * k), 1)
    got = run(library, z, net, table, rng, scale, hold, precision, every)
    same = plain(z, net, table, rng, scale, hold, precision, every)
    exact = plain(z.double(), net, table, rng, scale, hold, "fp32", every)
    for a, b, c in zip(got, same, exact, strict=True):
        assert a.isfinite().all() and a.shape == c.shape
        lost = (b - c).square().mean().sqrt() + 2.0**-22 * c.square().mean().sqrt()
        assert (a - c).square().mean().sqrt() <= 2.0 * lost


@pytest.mark.parametrize("precision", TERMS)
@pytest.mark.parametrize(
    ("dim", "hidden", "rows"), [(16, (32,), 32), (5, (20, 32), 45), (9, (7, 30, 11), 7), (30, (64, 50), 33)]
)
def test_shapes(library: ctypes.CDLL, dim: int, hidden: tuple[int, ...], rows: int, precision: str) -> None:
    compare(library, network(dim, hidden), rows, Hold(), precision)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(library: ctypes.CDLL, activation: str) -> None:
    compare(library, network(6, (20, 24), activation), 40, Hold(), "bf16x3")


@pytest.mark.parametrize(
    "hold",
    [Hold("none"), Hold("normal"), Hold(clip=0.4), Hold("normal", lower=-1.2), Hold("none", 0.7, -1.0, 1.1)],
    ids=str,
)
@pytest.mark.parametrize("bound", [None, 1.5])
def test_what_holds_a_chain(library: ctypes.CDLL, hold: Hold, bound: float | None) -> None:
    compare(library, network(6, (20, 24), bound=bound), 40, hold, "bf16x3", steps=4, every=1)


def test_a_chain_does_not_hang_on_its_batch(library: ctypes.CDLL) -> None:
    net, z, scale = network(7, (20, 24)), torch.randn(70, 7), torch.ones(7)
    table, rng = torch.tensor([[0.02, 0.2, 1.0]] * 4), torch.tensor([3, 0, 0])
    whole = run(library, z, net, table, rng, scale, Hold(), "bf16")[0]
    for first, last in ((0, 1), (20, 61)):
        at = rng + torch.tensor([0, 0, first])
        part = run(library, z[first:last].contiguous(), net, table, at, scale, Hold(), "bf16")[0]
        assert torch.equal(part, whole[first:last])
    half = run(library, z, net, table[:2], rng, scale, Hold(), "bf16")[0]
    rest = run(library, half, net, table[2:], rng + torch.tensor([0, 2, 0]), scale, Hold(), "bf16")[0]
    assert torch.equal(rest, whole)


def test_a_nan_stays_in_its_chain(library: ctypes.CDLL) -> None:
    z: Any = torch.randn(20, 5)
    z[3, 2] = math.nan
    end = run(library, z, network(5, (20,)), torch.tensor([[0.02, 0.2, 1.0]] * 2), torch.tensor([3, 0, 0]),
              torch.ones(5), Hold("laplace", 0.5, -2.0, 2.0), "bf16")[0]  # fmt: skip
    assert end[3].isnan().all() and end[[i for i in range(20) if i != 3]].isfinite().all()
