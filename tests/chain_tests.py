"""What chains of every GPU backend must do, under whatever runs their kernels without a GPU."""

from __future__ import annotations

import pytest
import torch

from mmebm.kernels import ops
from mmebm.kernels.reference import noise

from .chains import compare, network, run, schedule, stream

each_operator = pytest.mark.parametrize("operator", ["langevin", "mala"])


class ChainTests:
    backend: str

    @each_operator
    @pytest.mark.parametrize("rows", [0, 4])
    def test_no_steps_and_no_chains(self, operator: str, rows: int, poisoned_empty: None) -> None:
        z, net = torch.randn(rows, 3), network(3)
        got = run(operator, z, net, schedule(0), self.backend, record_every=1, statistics=True)
        assert torch.equal(got[0], z) and (rows == 0 or got[0].data_ptr() != z.data_ptr())
        assert got[1].shape == (0, rows, 3)
        assert all(torch.equal(t, torch.zeros(rows)) for t in got[3:])
        assert run(operator, z[:0], net, schedule(4), self.backend, record_every=2)[1].shape == (2, 0, 3)

    @each_operator
    def test_a_chain_split_in_steps_is_the_same_to_the_bit(self, operator: str) -> None:
        z, net, table = torch.randn(9, 6), network(6), schedule(6)
        hold = {"reference": "laplace", "grad_clip": 1.0}
        whole = run(operator, z, net, table, self.backend, **hold)[0]
        for k, stop in ((0, 2), (2, 6)):
            z = run(operator, z, net, table[k:stop], self.backend, rng=stream(offset=3 + k), **hold)[0]
        assert torch.equal(z, whole)

    @each_operator
    def test_what_is_recorded_changes_no_bit(self, operator: str) -> None:
        z, net = torch.randn(9, 4), network(4)
        chain = run(operator, z, net, schedule(5), self.backend, record_every=1, statistics=True)
        assert torch.equal(chain[0], run(operator, z, net, schedule(5), self.backend)[0])
        assert torch.equal(chain[1][-1], chain[0])

    @pytest.mark.parametrize("dim", [3, 16, 40])
    def test_the_noise_of_a_chain_is_that_of_draw(self, dim: int) -> None:
        table = torch.tensor([[0.0, 1.0, 0.0]])
        got = run("langevin", torch.zeros(5, dim), network(dim), table, self.backend)[0]
        eps = ops.draw(stream(), 1, 5, dim, law="normal", purpose=noise.CHAIN_NOISE, backend=self.backend)[0]
        assert torch.equal(got, eps)

    @each_operator
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_chain_that_is_lost_leaves_the_others_alone(self, operator: str, bad: float) -> None:
        z, net, hold = torch.randn(9, 4), network(4), {"reference": "normal", "bound": 2.0, "grad_clip": 1.0}
        kept = run(operator, z, net, schedule(4), self.backend, **hold)[0]
        z[3, 1] = bad
        got = run(operator, z, net, schedule(4), self.backend, **hold)[0]
        others = torch.arange(9) != 3
        assert torch.equal(got[others], kept[others]) and not got[3].isfinite().all()

    def test_nan_energies_reject(self) -> None:
        weights, biases = network(4)
        biases[-1] = torch.full((1,), float("nan"))
        z = torch.randn(9, 4)
        got = run("mala", z, (weights, biases), schedule(4), self.backend, statistics=True)
        assert torch.equal(got[0], z) and not got[6].any()

    def test_without_noise_nothing_is_accepted(self) -> None:
        z, table = torch.randn(9, 4), torch.tensor([[0.1, 0.0, 1.0]]).repeat(3, 1)
        got = run("mala", z, network(4), table, self.backend, statistics=True)
        assert torch.equal(got[0], z) and not got[6].any()

    @each_operator
    def test_a_box_without_zero_holds_no_padding(self, operator: str) -> None:
        z, net = 0.5 + torch.rand(20, 11), network(11)
        exact = compare(self.backend, operator, z, net, schedule(3), clamp=(0.3, 2.0), statistics=True)
        assert (exact[5] > 0.0).any()
