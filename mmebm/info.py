"""`python -m mmebm.info`: what is built, what the machine has, and what each operator would use."""

from __future__ import annotations

import os

import torch

from mmebm.kernels import dispatch, native, ops
from mmebm.training.run import environment


def report() -> str:
    """Plain text, one fact a line."""
    lines = [f"{name:<10} {value}" for name, value in environment().items()]
    if native.available():
        lines += [f"{'native':<10} built; " + ", ".join(f"{k} {v}" for k, v in native.build_info().items())]
    else:
        lines += [f"{'native':<10} missing: {native.reason()}"]
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
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
