"""The benchmark's own way from worlds to rows, on a few images."""

from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from vltune.config import ConfigError
from vltune_lab.bench.fedvlm import SETTINGS, run_fedvlm, settings_of

pytestmark = pytest.mark.slow


def test_rows_of_all_methods_and_a_second_call_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def rows() -> dict[str, dict[str, Any]]:
        with Progress(disable=True) as bars:
            found = run_fedvlm([5], Path("worlds"), bars, quick=True, settings=SETTINGS[:1])
        return {row["method"]: row for row in found}

    first = rows()
    fedavg, plora = first["FedAvg LoRA"], first["pLoRA (FedVLM)"]
    assert plora["bytes_up"] < 0.51 * fedavg["bytes_up"]
    assert first["FFA-LoRA"]["bytes_up"] < 0.51 * fedavg["bytes_up"]
    assert first["FFA-LoRA"]["exactness_error"] < 1e-6 < fedavg["exactness_error"]
    assert first["fedex"]["exactness_error"] < 1e-6
    assert all(first[name]["bytes_up"] is None for name in ("zero-shot", "local only"))
    for row in first.values():
        sites = [row[f"accuracy_site-{number}"] for number in range(1, 5)]
        assert row["accuracy"] == pytest.approx(sum(sites) / 4)
        assert row["worst_site"] == min(sites)
    assert rows() == first  # the measured seconds too


def test_an_unknown_setting_is_refused() -> None:
    assert settings_of("IID, house style") == (SETTINGS[3], SETTINGS[0])
    with pytest.raises(ConfigError, match=r"unknown \['iid'\]; known: house style, "):
        settings_of("iid")
