"""The same work as people write it on a GPU: eager loops, torch.compile, a graph captured by hand, a scan in JAX."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmebm.sampling.capturing import capturing

Calls = dict[str, Callable[[], object]]
Absent = dict[str, str]
# torch's name of the precision in which products of float32 matrices are made.
_MATMUL = {"fp32": "highest", "bf16x3": "highest", "bf16w2": "high", "tf32": "high", "bf16": "medium"}


def parameters(net: nn.Sequential) -> tuple[list[Tensor], list[Tensor]]:
    linears = [m for m in net if isinstance(m, nn.Linear)]
    return [m.weight.detach() for m in linears], [m.bias.detach() for m in linears]


def _at(precision: str, call: Callable[[], object]) -> Callable[[], object]:
    """The call with torch's matmul precision set."""

    def inside() -> object:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            return call()
        finally:
            torch.set_float32_matmul_precision(before)

    return inside


def _step(net: Callable[[Tensor], Tensor], z: Tensor, s: float) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(net(z).sum(), z)
    z = z.detach()
    return z - 0.5 * s * s * (grad + z.sign()) + s * torch.randn_like(z)


def _by_hand(weights: list[Tensor], biases: list[Tensor], z: Tensor, s: float) -> Tensor:
    """Without autograd, which torch.compile takes whole; SiLU."""
    h, firsts = z, list[Tensor]()
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        a = torch.addmm(b, h, w.T)
        sigmoid = torch.sigmoid(a)
        h = a * sigmoid
        firsts.append(sigmoid + h * (1.0 - sigmoid))
    back = weights[-1].expand(len(z), -1)
    for w, first in zip(reversed(weights[:-1]), reversed(firsts), strict=True):
        back = (back * first) @ w
    return z - 0.5 * s * s * (back.to(z.dtype) + z.sign()) + s * torch.randn_like(z)


def chains(net: nn.Sequential, z: Tensor, steps: int, s: float, precision: str) -> tuple[Calls, Absent]:
    """K steps from z in each way; and why ways are absent."""
    weights, biases = parameters(net)

    def loop(step: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            x = z
            for _ in range(steps):
                x = step(x)
            return x

        return call

    matmul = _MATMUL[precision]
    eager = loop(lambda x: _step(net, x, s))
    calls: Calls = {"eager, fp32": _at("highest", eager)}
    if precision == "bf16":
        low = nn.Sequential(*(nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in net))
        low.load_state_dict(net.state_dict())
        low = low.to(z.device, torch.bfloat16)
        same: Callable[[Tensor], Tensor] = lambda x: _step(lambda y: low(y.bfloat16()).float(), x, s)  # noqa: E731
        calls["eager, same precision"] = loop(same)
    elif matmul != "highest":
        same = lambda x: _step(net, x, s)  # noqa: E731
        calls["eager, same precision"] = _at(matmul, eager)
    else:
        same = lambda x: _step(net, x, s)  # noqa: E731
    absent: Absent = {}
    compiled = torch.compile(lambda x: _by_hand(weights, biases, x, s))
    calls["torch.compile step"] = _at(matmul, torch.no_grad()(loop(compiled)))
    if z.is_cuda:
        calls["captured graph"] = _captured(_at(matmul, loop(same)))
    else:
        absent["captured graph"] = "no CUDA device"
    if importlib.util.find_spec("jax") is None:
        absent["jax scan"] = "jax is not installed"
    else:
        calls["jax scan"] = _jax(weights, biases, z, steps, s, precision)
    return calls, absent


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with capturing(graph, torch.device("cuda")):
        kept = call()
    return lambda: (graph.replay(), kept)


def _jax(
    weights: list[Tensor], biases: list[Tensor], z: Tensor, steps: int, s: float, precision: str
) -> Callable[[], object]:
    import os

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp

    ws, bs = ([jnp.asarray(t.cpu().numpy()) for t in tensors] for tensors in (weights, biases))
    start, dtype = jnp.asarray(z.cpu().numpy()), jnp.bfloat16 if precision == "bf16" else jnp.float32
    exact = "highest" if _MATMUL[precision] == "highest" else "default"

    def energy(x: jax.Array) -> jax.Array:
        h = x.astype(dtype)
        for w, b in zip(ws[:-1], bs[:-1], strict=True):
            h = jax.nn.silu(jnp.dot(h, w.T.astype(dtype), precision=exact) + b.astype(dtype))
        return (jnp.dot(h, ws[-1].T.astype(dtype), precision=exact) + bs[-1].astype(dtype)).astype(jnp.float32).sum()

    def step(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        noise = jax.random.normal(key, x.shape)
        return x - 0.5 * s * s * (jax.grad(energy)(x) + jnp.sign(x)) + s * noise, None

    chain = jax.jit(lambda x, key: jax.lax.scan(step, x, jax.random.split(key, steps))[0])
    key = jax.random.key(0)
    return lambda: chain(start, key).block_until_ready()


def subsets(mu: Tensor, logvar: Tensor) -> tuple[Calls, Absent]:
    """Every product of experts with a standard-normal prior expert, subset by subset."""
    members = [[i for i in range(len(mu)) if s >> i & 1] for s in range(1, 1 << len(mu))]

    def eager(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        means, logvars = [], []
        for subset in members:
            precision = torch.exp(-logvar[subset])
            total = 1.0 + precision.sum(0)
            means.append((mu[subset] * precision).sum(0) / total)
            logvars.append(-total.log())
        return torch.stack(means), torch.stack(logvars)

    compiled = torch.compile(eager)
    return {"eager, fp32": lambda: eager(mu, logvar), "torch.compile": lambda: compiled(mu, logvar)}, {}
