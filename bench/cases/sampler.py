"""The public call: what it adds to the kernel it ends in, and its loop for any callable against a hand-written one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import mmebm
from bench.case import SUBJECT, Call, Case, Contender, Family
from bench.cases.langevin import STEP_SIZE, Chains, ends, network, oracle, rng, starts
from bench.contenders import chains, mlp
from mmebm.kernels import dispatch, native, pointers, reference


def module(x: Chains) -> nn.Sequential:
    """The net as people have it."""
    layers: list[nn.Module] = []
    for i, (w, b) in enumerate(zip(x.weights, x.biases, strict=True)):
        linear = nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            linear.weight.copy_(w)
            linear.bias.copy_(b)
        layers += [linear] if i + 1 == len(x.weights) else [linear, nn.SiLU()]
    return nn.Sequential(*layers)


def _public(x: Chains, general: bool) -> Call:
    """A seed that moves on, as the noise of the others does; the first call has that of `rng(0)`."""
    net, seed = module(x), int(rng(0)[0])
    energy = (lambda z: net(z)) if general else net
    offset = 0

    def call() -> Tensor:
        nonlocal offset
        z = mmebm.langevin(
            energy, x.z0, steps=x.steps, step_size=STEP_SIZE, reference="laplace", seed=seed, offset=offset
        )
        offset += x.steps
        return z  # type: ignore[return-value]

    return call


def _bare(x: Chains) -> Call:
    """The compiled function alone: pointers at hand, memory for the result at hand, nothing checked."""
    kernel, out = native._cpu().chain, torch.empty_like(x.z0)
    net = pointers.Net(reference.MLP(x.weights, x.biases, "silu", 0.0, None))
    hold = pointers.hold_args(reference.Constraints("laplace", x.scale, None, None, None), x.scale)
    arguments = (False, x.z0.data_ptr(), len(x.z0), x.steps, net.args, x.table.data_ptr())
    seed, offset, first = rng(0).tolist()
    threads = torch.get_num_threads()

    def call() -> Tensor:
        nonlocal offset
        stream = (seed, offset, first)
        kernel(*arguments, stream, hold, out.data_ptr(), (0, 0, 0), (0, 0, 0, 0, 0), threads)
        offset += x.steps
        return out

    return call


def _no_native() -> str | None:
    return dispatch.unsupported("cpu", "langevin", torch.device("cpu"), torch.float32)


def _case(name: str, d: int, h: int, B: int, K: int, general: bool, contenders: dict[str, Contender]) -> Case:
    weights, biases = network(d, h, 2)
    return Case(
        name=f"{name}/{d}x{h}/B{B}",
        operator="langevin_update" if general else "langevin",
        sizes={"B": B, "d": d, "h": h, "L": 2, "K": K},
        inputs=lambda steps: Chains(starts(B, d), weights, biases, mmebm.short_run(STEP_SIZE), steps),
        contenders={SUBJECT: Contender(lambda x: _public(x, general)), **contenders},
        work=1e-9 * mlp.flops(d, h, 2) * B * K,
        unit="GFLOP",
        oracle=oracle(reference.langevin),
        select=lambda _, z: (ends(z),),
        moments=lambda x, z: z - x.z0,
        tolerance=(1e-3, 1e-3 * STEP_SIZE),
        outliers=0.002,  # a sign(z) flips where z passes zero within rounding
        steps=K,
        gate_steps=K,
    )


def public_call(d: int, h: int, B: int, K: int = 50) -> Case:
    """Below 1 by what the call costs beside the kernel."""
    return _case("public", d, h, B, K, False, {"bare kernel": Contender(_bare, absent=_no_native)})


def callable_energy(d: int, h: int, B: int, K: int = 50) -> Case:
    """The same net behind a lambda: a loop with autograd on either side."""
    return _case("callable", d, h, B, K, True, {"hand-written loop": chains.loop_of_modules(module)})


FAMILIES = (
    Family(public_call, ({"d": 16, "h": 64, "B": 64}, {"d": 32, "h": 128, "B": 64}), {"d": 5, "h": 9, "B": 20, "K": 4}),
    Family(
        callable_energy,
        ({"d": 16, "h": 64, "B": 64}, {"d": 32, "h": 128, "B": 64}, {"d": 32, "h": 128, "B": 4096}),
        {"d": 5, "h": 9, "B": 20, "K": 4},
    ),
)
