"""`python -m mmebm.info`: what is built, what the machine has, and what each operator would use."""

from __future__ import annotations

import itertools
import os

import torch

from mmebm.kernels import dispatch, native, ops
from mmebm.kernels.cuda import module as cuda
from mmebm.kernels.reference import MLP
from mmebm.training.run import environment

NETWORKS = ((32, 64, 64), (32, 128, 128), (32, 256, 256), (100, 200, 200), (64, 512, 512))


def _chains(device: torch.device) -> list[str]:
    """What serves chains of some networks, and whether as one launch or layer by layer."""
    lines = []
    for widths in NETWORKS:
        told = []
        for precision in dispatch.PRECISIONS:
            weights = [torch.empty(n, m, device="meta") for m, n in itertools.pairwise((*widths, 1))]
            net = MLP(weights, [w[:, 0] for w in weights], "silu", 0.0, None, precision)
            try:
                chosen = dispatch.choose("auto", "langevin", device, torch.float32, net)
            except ValueError:
                chosen = "refused"
            whole = chosen == "refused" or dispatch.in_one_launch(chosen, net, device)
            told.append(f"{precision} {chosen}{'' if whole else ', layer by layer'}")
        lines.append(f"  {'-'.join(map(str, (*widths, 1))):<18} " + "; ".join(told))
    return lines


def report() -> str:
    """Plain text, one fact a line."""
    lines = [f"{name:<10} {value}" for name, value in environment().items()]
    if native.available():
        lines += [f"{'native':<10} built; " + ", ".join(f"{k} {v}" for k, v in native.build_info().items())]
    else:
        lines += [f"{'native':<10} missing: {native.reason()}"]
    if cuda.available():
        lines += [f"{'_cuda':<10} built; " + ", ".join(f"{k} {v}" for k, v in cuda.build_info().items())]
    else:
        lines += [f"{'_cuda':<10} missing: {cuda.reason()}"]
    if wanted := os.environ.get("MMEBM_BACKEND"):
        lines += [f"{'backend':<10} {wanted} (MMEBM_BACKEND)"]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
        lines.append(f"{'cuda':<10} {torch.cuda.get_device_name()}")
    else:
        lines.append(f"{'cuda':<10} no device")
    for device in devices:
        lines += ["", f"operators on {device}, float32"]
        for operator in ops.OPERATORS:
            notes = [
                f"{name}: {dispatch.unsupported(name, operator, device, torch.float32) or 'could serve it too'}"
                for name in dispatch.BACKENDS
            ]
            try:
                chosen = dispatch.choose("auto", operator, device, torch.float32)
                del notes[dispatch.BACKENDS.index(chosen)]
            except ValueError as error:
                chosen, notes = "refused", [str(error), *notes]
            lines.append(f"  {operator:<18} {chosen:<10} " + "; ".join(notes))
        lines += ["", f"chains on {device}, by network and precision", *_chains(device)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
