"""Malicious sites by hand, and the benchmark's own way from a world to rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress

from vltune.config import ConfigError
from vltune.parameters import update_norm
from vltune_lab.bench.attackers import Attack, flip_labels, spoil, stamp
from vltune_lab.bench.attacks import NOBODY, RULES, Plan, job_of, run_attacks

START = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(0.5)}
TRAINED = {"a": torch.tensor([1.5, 2.0]), "b": torch.tensor(0.25)}


def attack(kind: str, factor: float = 10.0) -> Attack:
    return Attack(kind, ("site-8",), factor, "umbrella")  # type: ignore[arg-type]


def test_what_is_sent_by_hand() -> None:
    """The honest step is (0.5, 0) and -0.25; ten times backwards, four times forwards."""
    flipped = spoil(attack("sign_flip"), START, TRAINED, 0)
    assert flipped["a"].tolist() == [-4.0, 2.0]
    assert float(flipped["b"]) == 3.0
    scaled = spoil(attack("backdoor", 4.0), START, TRAINED, 0)
    assert scaled["a"].tolist() == [3.0, 2.0]
    assert float(scaled["b"]) == -0.5
    assert spoil(attack("label_flip"), START, TRAINED, 0) == TRAINED
    noise = spoil(attack("noise"), START, TRAINED, 5)
    honest = update_norm(TRAINED, START)
    assert update_norm(noise, START) == pytest.approx(10 * honest)
    assert not torch.equal(noise["a"], spoil(attack("noise"), START, TRAINED, 6)["a"])


def test_labels_flip_and_unknown_stays() -> None:
    assert flip_labels(torch.tensor([[1, 0, -1]])).tolist() == [[0, 1, -1]]


def test_the_stamp_is_in_one_corner_and_nowhere_else() -> None:
    image = Image.fromarray(np.full((40, 64, 3), 7, dtype=np.uint8))
    pixels = np.array(stamp(image))
    assert {tuple(p) for p in pixels[-10:, -10:].reshape(-1, 3)} == {(0, 255, 0), (255, 0, 255)}
    assert (pixels[:-10] == 7).all()
    assert (pixels[:, :-10] == 7).all()


def test_the_plan() -> None:
    names = [name for name, _ in Plan().situations()]
    assert names[0] == NOBODY
    assert len(names) == 9
    factors = {name: a.factor for name, a in Plan().situations() if a is not None}
    assert factors["backdoor, 2 of 8"] == 4
    assert factors["backdoor, 1 of 8"] == 8
    assert factors["sign_flip, 1 of 8"] == 10
    with pytest.raises(ConfigError, match="unknown"):
        Plan(rules=("best",))
    with pytest.raises(ConfigError, match="backdoor needs a target class"):
        Attack("backdoor", ("site-1",))
    for rule in RULES:  # each is a job that would be accepted
        assert job_of(7, rule, quick=True)["federation"]["min_sites"] == 7


@pytest.mark.slow
def test_rows_and_a_second_call_measures_nothing(tmp_path: Path) -> None:
    plan = Plan(rules=("none", "multi_krum"), kinds=("backdoor",), counts=(2,), quick=True)
    with Progress(disable=True) as bars:
        rows = run_attacks(tmp_path, bars, plan)
    by_name = {(row["setting"], row["method"]): row for row in rows}
    assert len(by_name) == 4
    assert all(0 <= row["mAP"] <= 1 and 0 <= row["backdoor"] <= 1 for row in rows)
    krum = by_name["backdoor, 2 of 8", "multi_krum"]
    assert krum["acted_on_malicious"] == 2
    assert krum["acted_on_honest"] == 0
    assert by_name[NOBODY, "none"]["acted_on_honest"] == 0
    with Progress(disable=True) as bars:
        assert run_attacks(tmp_path, bars, plan) == rows
