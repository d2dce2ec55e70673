"""Where bfloat16 is fast: a CPU without its instructions is hundreds of times slower with it."""

import functools
from pathlib import Path

import torch

_CPU_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})


def fast_bfloat16(device: torch.device | str) -> bool:
    """Return whether `device` multiplies bfloat16 matrices in hardware.

    CUDA is asked; a CPU is judged by its flags in /proc/cpuinfo, so it is False off Linux.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and _cpu_has_bfloat16()


@functools.cache
def _cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return not _CPU_FLAGS.isdisjoint(flags)
