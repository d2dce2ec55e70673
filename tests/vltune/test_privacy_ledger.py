"""Epsilon against the formula, and what is kept on disk."""

import math
from pathlib import Path

import pytest

from vltune.privacy import PrivacyConfig, PrivacyError
from vltune.privacy_ledger import ORDERS, Charge, PrivacyLedger, epsilon_of

CONFIG = PrivacyConfig("site", 2.0, 1.0, 1e-5)


def by_hand(noise_multiplier: float, steps: int, delta: float) -> float:
    """Gaussian mechanism: RDP at order a is a T / (2 z^2).

    To (epsilon, delta) by Canonne, Kamath and Steinke 2020, Proposition 12:
    epsilon = rdp + log((a - 1) / a) - (log delta + log a) / (a - 1), the smallest over orders.
    """
    return min(
        a * steps / (2 * noise_multiplier**2)
        + math.log((a - 1) / a)
        - (math.log(delta) + math.log(a)) / (a - 1)
        for a in ORDERS
    )


@pytest.mark.parametrize(("z", "steps"), [(1.0, 1), (2.0, 8), (20.0, 50), (0.5, 3)])
def test_epsilon_of_the_gaussian_mechanism_by_hand(z: float, steps: int) -> None:
    epsilon = epsilon_of([Charge(z, 1.0, steps)], 1e-5)
    assert epsilon == pytest.approx(by_hand(z, steps, 1e-5), rel=1e-9)
    # Exact for one Gaussian mechanism is smaller, the classical sqrt(2 log(1.25/d)) T^.5 / z larger
    # where that bound holds at all (epsilon <= 1).
    if epsilon <= 1:
        assert epsilon < math.sqrt(2 * math.log(1.25e5) * steps) / z


def test_order_and_splitting_of_charges_change_nothing_and_sampling_helps() -> None:
    whole = epsilon_of([Charge(1.0, 0.1, 30)], 1e-5)
    parts = [Charge(1.0, 0.1, 10), Charge(1.0, 0.1, 20)]
    assert epsilon_of(parts, 1e-5) == pytest.approx(whole, rel=1e-12)
    assert epsilon_of([Charge(1.0, 1.0, 30)], 1e-5) > 5 * whole
    assert epsilon_of([], 1e-5) == 0
    # DP-SGD's textbook case (Abadi et al. 2016: q = 0.01, z = 4, 10,000 steps, delta 1e-5): the
    # moments accountant gave 1.26.
    assert epsilon_of([Charge(4.0, 0.01, 10_000)], 1e-5) == pytest.approx(1.26, abs=0.25)


def test_a_charge_is_on_disk_before_it_is_used_and_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    first = PrivacyLedger(path, CONFIG)
    assert first.charge(1.0, 3) == first.epsilon
    again = PrivacyLedger(path, CONFIG)
    assert again.epsilon == first.epsilon == pytest.approx(by_hand(2.0, 3, 1e-5))
    assert again.charge(1.0, 1) == pytest.approx(by_hand(2.0, 4, 1e-5))
    assert path.stat().st_mode & 0o077 == 0


def test_the_budget_is_kept(tmp_path: Path) -> None:
    limit = by_hand(2.0, 2, 1e-5) + 1e-9
    ledger = PrivacyLedger(
        tmp_path / "ledger.json", PrivacyConfig("site", 2.0, 1.0, 1e-5, max_epsilon=limit)
    )
    ledger.charge(1.0, 1)
    ledger.charge(1.0, 1)
    with pytest.raises(PrivacyError, match=r"budget is spent: epsilon would be .*max_epsilon"):
        ledger.charge(1.0, 1)
    assert ledger.epsilon < limit


@pytest.mark.parametrize("text", ["", "{}", '{"charges": [{"steps": 1}]}', '{"charges": 3}'])
def test_a_damaged_ledger_ends_the_run(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(text)
    with pytest.raises(PrivacyError, match="not known what was spent"):
        PrivacyLedger(path, CONFIG)
