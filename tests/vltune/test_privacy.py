"""Site-level privacy of one update, and what the job may ask for."""

import math
from typing import Any

import pytest
import torch

from vltune.config import ConfigError, from_mapping
from vltune.privacy import PrivacyConfig, PrivacyError, privatise_update, secret_generator
from vltune.robust_rules import clip_update, update_norms
from vltune.seed import torch_generator

GOOD = {"level": "site", "noise_multiplier": 1.5, "clip_norm": 0.5, "delta": 1e-5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "both"}, "expected one of none, site, record"),
        ({"noise_multiplier": 0}, "needs noise_multiplier > 0 and finite, got 0"),
        ({"noise_multiplier": None}, "needs noise_multiplier > 0 and finite, got None"),
        ({"clip_norm": -1.0}, "needs clip_norm > 0"),
        ({"clip_norm": math.inf}, "needs clip_norm > 0 and finite"),
        ({"delta": 1.0}, r"delta must be in \(0, 1\), got 1.0"),
        ({"delta": 0}, "needs delta > 0"),
        ({"max_epsilon": 0}, "max_epsilon must be > 0"),
        ({"level": "none"}, "level none does not use noise_multiplier, clip_norm, delta"),
        ({"epsilon": 8}, "unknown key epsilon"),
    ],
)
def test_a_wrong_value_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(PrivacyConfig, GOOD | changes, "the job's privacy")


def test_without_a_level_nothing_is_promised() -> None:
    assert from_mapping(PrivacyConfig, {}, "x") == PrivacyConfig()
    with pytest.raises(PrivacyError, match="neither noise"):
        _ = PrivacyConfig().bounds


def trained_by(step: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    start = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(1)}
    return start, {
        "a": start["a"] + torch.tensor([3.0, 0.0]) * step,
        "b": torch.tensor([4.0]) * step,
    }


def test_without_noise_it_is_plain_clipping() -> None:
    """|(3, 0, 4)| = 5, bound 1: a fifth of the way, (1.6, 2) and 0.8."""
    start, trained = trained_by(1.0)
    generator = torch_generator(0)
    sent = privatise_update(
        start, trained, clip_norm=1.0, noise_multiplier=0.0, generator=generator
    )
    torch.testing.assert_close(sent["a"], torch.tensor([1.6, 2.0]))
    torch.testing.assert_close(sent["b"], torch.tensor([0.8]))
    assert all(torch.equal(sent[k], v) for k, v in clip_update(start, trained, 1.0).items())


def test_noise_has_the_stated_spread_and_hides_the_update() -> None:
    """Z c = 6 around a clipped update of norm 2: mean square of the distance is 36."""
    start = {"w": torch.zeros(101, 103)}
    trained = {"w": torch.full((101, 103), 5.0)}
    sent = privatise_update(
        start, trained, clip_norm=2.0, noise_multiplier=3.0, generator=torch_generator(5)
    )
    noise = sent["w"] - clip_update(start, trained, 2.0)["w"]
    assert float(noise.std()) == pytest.approx(6.0, rel=0.02)
    assert abs(float(noise.mean())) < 0.2
    # Canary: at this noise the direction of the update is all but gone.
    cosine = torch.cosine_similarity(sent["w"].flatten(), trained["w"].flatten(), dim=0)
    assert abs(float(cosine)) < 0.1
    assert update_norms(start, [sent])[0] > 100 * 2.0


def test_nobody_can_follow_the_noise() -> None:
    draws = {float(torch.randn(1, generator=secret_generator())) for _ in range(8)}
    torch.manual_seed(7)
    draws.add(float(torch.randn(1, generator=secret_generator())))
    torch.manual_seed(7)
    draws.add(float(torch.randn(1, generator=secret_generator())))
    assert len(draws) == 10
