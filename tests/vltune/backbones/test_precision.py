from pathlib import Path

import pytest
import torch

from vltune.backbones.precision import _cpu_has_bfloat16, fast_bfloat16


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 fma", False),
        ("fpu avx512f avx512_bf16", True),
        ("amx_tile amx_bf16", True),
        ("avx512_bf16_of_another_name", False),
    ],
)
def test_cpu_flags(tmp_path: Path, flags: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n")
    assert _cpu_has_bfloat16(cpuinfo) is expected


def test_a_machine_without_cpuinfo_or_flags_is_not_fast(tmp_path: Path) -> None:
    assert not _cpu_has_bfloat16(tmp_path / "absent")
    (tmp_path / "empty").write_text("")
    assert not _cpu_has_bfloat16(tmp_path / "empty")


def test_other_devices_are_not_fast() -> None:
    assert not fast_bfloat16("meta")
    assert fast_bfloat16(torch.device("cpu")) is _cpu_has_bfloat16()
