"""Which backend "auto" is on a GPU, with backends that serve what they are told to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mmebm.kernels import dispatch
from mmebm.kernels.reference import MLP

CUDA = torch.device("cuda")


def chosen(monkeypatch: pytest.MonkeyPatch, operator: str, precision: str, *, one_launch: bool, served: bool) -> str:
    def backend(name: str) -> SimpleNamespace:
        refused = name == "triton" and not served
        return SimpleNamespace(
            unsupported=lambda *_: "it is absent" if refused else None,
            in_one_launch=lambda *_: name != "triton" or one_launch,
        )

    monkeypatch.setattr(dispatch, "_module", backend)
    monkeypatch.delenv("MMEBM_BACKEND", raising=False)
    net = MLP([torch.zeros(1, 4)], [torch.zeros(1)], "silu", 0.0, None, precision)
    return dispatch.choose("auto", operator, CUDA, torch.float32, net)


@pytest.mark.parametrize(
    ("operator", "precision", "one_launch", "served", "expected"),
    [
        ("langevin", "bf16", True, True, "triton"),
        ("langevin", "bf16", False, True, "cuda"),
        ("langevin", "bf16", True, False, "cuda"),
        ("langevin", "bf16x3", True, True, "cuda"),
        ("langevin", "fp32", True, True, "cuda"),
        ("mala", "bf16", True, True, "cuda"),
    ],
)
def test_chains_in_bf16_that_triton_runs_at_once_go_there(
    operator: str, precision: str, one_launch: bool, served: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(monkeypatch, operator, precision, one_launch=one_launch, served=served) == expected
