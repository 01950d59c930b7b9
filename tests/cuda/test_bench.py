"""The checks that `python -m bench gpu` makes of each kernel for chains, rehearsed on the host."""

from __future__ import annotations

import pytest
import torch

from bench.gpu import checks
from mmebm.kernels.cuda import chains


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
def test_every_kernel_for_chains_is_checked() -> None:
    rows = list(checks.chains_by_kernel(torch.device("cpu"), 0, tiny=True))
    assert [row for row in rows if row["verdict"] != "ok"] == []
    for variant in ("wgmma", "warp", "block"):
        assert {row["precision"] for row in rows if f"by {variant}," in row["case"]} == (
            {"bf16"} if variant == "wgmma" else set(checks.ALL)
        )
    assert not chains._forced
