"""A hand-made protocol file (two methods, two seeds) and a speed file."""

from typing import Any

import pytest

SOURCE = {
    "command": "vltune bench demo",
    "commit": "0123456789abcdef0123",
    "versions": {"python": "3.11"},
    "hardware": "a processor, 2 cores",
}


def row(method: str, seed: int, mAP: float, **others: Any) -> dict[str, Any]:
    return {"method": method, "setting": "4 sites", "seed": seed, "mAP": mAP, **others}


@pytest.fixture
def protocol() -> dict[str, Any]:
    rows = [
        row("zero-shot", 1, 0.40),
        row("FedMPT", 1, 0.50, bytes_up=512_000, spurious_activation=0.25),
        row("FedMPT", 2, 0.54, bytes_up=512_000, spurious_activation=-0.05),
    ]
    return {"protocol": "fedmpt-demo", **SOURCE, "rows": rows}


@pytest.fixture
def speed() -> dict[str, Any]:
    rows = [
        {
            "name": "text | prompts",
            "baseline": 1480.4,
            "ours": 67.12,
            "ratio": 22.06,
            "unit": "ms",
            "max_abs_error": 3.1e-6,
            "repeats": 5,
        }
    ]
    return {"benchmark": "speed", **SOURCE, "rows": rows}
