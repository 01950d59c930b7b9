"""The compiled CPU kernels among threads and processes: torch's thread count, the GIL, and children made by fork."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmebm.kernels import native
from mmebm.kernels.reference import MLP, Constraints

if not native.available():
    pytest.skip("the native CPU module cannot be loaded", allow_module_level=True)
from mmebm.kernels import _cpu

DIM, ROWS = 12, 600
PATIENCE = 60.0  # seconds until a child counts as hanging

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network() -> MLP:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(n, m, generator=generator) / m**0.5 for n, m in ((40, DIM), (30, 40), (1, 30))]
    return MLP(weights, [torch.zeros(len(w)) for w in weights], "silu", 0.0, None)


def start() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(4))


HOLD = Constraints("normal", torch.ones(DIM), None, None, None)
TABLE = torch.tensor([[0.02, 0.2, 1.0]]).repeat(5, 1)
RNG = torch.tensor([1, 2, 3])


def everything(threads: int) -> Tensor:
    """A multi-threaded call of every kind, in one tensor."""
    torch.set_num_threads(threads)
    z, net = start(), network()
    dz, d_weights, _ = native.energy_backward(z[:, 0], z, net)
    chains = (native.langevin(z, net, TABLE, RNG, HOLD).z, native.mala(z, net, TABLE, RNG, HOLD).z)
    drawn = native.draw(RNG, 40, ROWS, DIM, "normal", 1)
    moved = native.langevin_update(z, z, TABLE, RNG, 1, HOLD)
    # Not torch.cat: it is parallel, and in a forked child of a multi-threaded process it hangs.
    return torch.from_numpy(np.concatenate([t.numpy().ravel() for t in (*chains, dz, *d_weights, drawn, moved)]))


# threads -------------------------------------------------------------------------------------------------------------


def test_torchs_thread_count_is_taken_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            seen.append(args[-1])
            return getattr(_cpu, name)(*args)

        return call

    names = ("draw", "chain", "energy", "energy_backward", "langevin_update")
    monkeypatch.setattr(native, "_cpu", lambda: SimpleNamespace(**{name: spy(name) for name in names}))
    for n in (1, 3, 2, 1):
        seen.clear()
        everything(n)
        native.energy(start(), network())
        assert seen == [n] * 6


SCRIPT = """
import os, sys
import torch
torch.set_num_threads(1)
from mmebm.kernels import native
from mmebm.kernels.reference import MLP, Constraints
def tasks():
    return len(os.listdir("/proc/self/task"))
z = torch.randn(3000, 8)
net = MLP([torch.randn(64, 8), torch.randn(1, 64)], [torch.zeros(64), torch.zeros(1)], "silu", 0.0, None)
hold = Constraints("normal", torch.ones(8), None, None, None)
counts = [tasks()]
for n in (1, 3, 1):
    torch.set_num_threads(n)
    before = tasks()
    native.langevin(z, net, torch.tensor([[0.02, 0.2, 1.0]]), torch.tensor([1, 2, 3]), hold)
    native.energy_backward(z[:, 0], z, net)
    counts.append(tasks() - before)
print(*counts[1:])
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no /proc on this system")
def test_one_thread_starts_no_other() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=PATIENCE)
    assert run.returncode == 0, run.stderr
    alone, three, again = map(int, run.stdout.split())
    assert alone == 0 and again <= 0
    assert three == (2 if native.build_info()["openmp"] else 0)


@pytest.mark.parametrize("name", ["draw", "chain", "energy", "energy_backward", "langevin_update"])
def test_the_gil_is_free_during_a_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is made to give the GIL up, so the ticker moves during a call only if the call lets go of it."""
    ticks, gained, stop = [0], 0, threading.Event()

    def ticker() -> None:
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(0)

    def watched(*args: Any) -> None:
        nonlocal gained
        before = ticks[0]
        getattr(_cpu, name)(*args)
        gained += ticks[0] - before

    monkeypatch.setattr(native, "_cpu", lambda: SimpleNamespace(**{name: watched}))
    z, net = (
        torch.randn(4000, 64),
        MLP([torch.randn(64, 64), torch.randn(1, 64)], [torch.zeros(64), torch.zeros(1)], "silu", 0.0, None),
    )
    hold = Constraints("normal", torch.ones(64), None, None, None)
    call = {
        "draw": lambda: native.draw(RNG, 4, 4000, 64, "normal", 1),
        "chain": lambda: native.langevin(z, net, TABLE, RNG, hold),
        "energy": lambda: native.energy(z, net),
        "energy_backward": lambda: native.energy_backward(z[:, 0], z, net),
        "langevin_update": lambda: native.langevin_update(z, z, TABLE, RNG, 1, hold),
    }[name]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    thread = threading.Thread(target=ticker, daemon=True)
    thread.start()
    try:
        for _ in range(2000):  # the ticker may be late once, not always
            call()
            if gained:
                break
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert gained > 0


def test_calls_from_several_threads_at_once() -> None:
    expected = everything(2)
    results: list[Tensor] = []
    workers = [threading.Thread(target=lambda: results.append(everything(2))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4 and all(torch.equal(r, expected) for r in results)


# children ------------------------------------------------------------------------------------------------------------


def in_child(function: Callable[[], Tensor]) -> Tensor:
    """What `function` returns in a child made by os.fork, which has `PATIENCE` seconds."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            data = function().numpy().tobytes()
            while data:
                data = data[os.write(send, data) :]
            status = 0
        finally:
            os._exit(status)
    os.close(send)
    parts, deadline = [], time.monotonic() + PATIENCE
    try:
        while True:
            ready, _, _ = select.select([receive], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                pytest.fail("the child hangs")
            part = os.read(receive, 1 << 20)
            if not part:
                break
            parts.append(part)
    finally:
        os.close(receive)
        status = os.waitpid(child, 0)[1]
    assert status == 0
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.float32)


@needs_fork
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_computes_what_its_parent_does(threads: int) -> None:
    expected = everything(2)
    assert torch.equal(in_child(lambda: everything(threads)), expected)
    assert torch.equal(everything(2), expected), "the parent goes on as before"


@needs_fork
def test_a_child_of_a_forked_child() -> None:
    expected = everything(2)
    assert torch.equal(in_child(lambda: in_child(lambda: everything(2))), expected)


def _answer(threads: int, queue: Any) -> None:
    queue.put(everything(threads).numpy())


@needs_fork
@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_of_multiprocessing(threads: int) -> None:
    expected = everything(2)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_answer, args=(threads, queue), daemon=True)
    process.start()
    try:
        got = torch.from_numpy(queue.get(timeout=PATIENCE))
        process.join(PATIENCE)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert torch.equal(got, expected)


class Chains(Dataset):
    """Item i: the chains' end, computed with `threads` torch threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.set_num_threads(self.threads)
        return native.langevin(start(), network(), TABLE, RNG + torch.tensor([0, 0, index]), HOLD).z


@needs_fork
@pytest.mark.parametrize("threads", [1, 2])
def test_the_workers_of_a_data_loader(threads: int) -> None:
    everything(2)
    expected = [Chains(threads)[i] for i in range(4)]
    loader = DataLoader(
        Chains(threads), batch_size=None, num_workers=2, timeout=PATIENCE, multiprocessing_context="fork"
    )
    got = list(loader)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
