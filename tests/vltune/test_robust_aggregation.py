"""Settings that are refused, decisions by hand, and what every rule must do."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from vltune.config import ConfigError, from_mapping
from vltune.robust_aggregation import RobustAggregation, RobustError, robust_aggregate, screen

RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "clip": {"clip_multiple": 1.0},
    "median": {},
    "trimmed_mean": {"num_malicious": 1},
    "krum": {"num_malicious": 1},
    "multi_krum": {"num_malicious": 1},
    "cosine": {},
}
ROBUST = [rule for rule in RULES if rule != "none"]
START = {"a": torch.ones(3, 5), "b": torch.zeros(7)}


def settings(rule: str, **changes: Any) -> RobustAggregation:
    return from_mapping(RobustAggregation, {"rule": rule, **RULES[rule], **changes}, "robust")


def honest(count: int = 8) -> dict[str, dict[str, Tensor]]:
    """Updates of norm about 4.7 towards one side, with a spread of about 0.5 around it."""
    generator = torch.Generator().manual_seed(5)
    return {
        f"site-{n}": {
            name: value + 1 + 0.1 * torch.randn(value.shape, generator=generator)
            for name, value in START.items()
        }
        for n in range(count)
    }


def examples(updates: dict[str, Any], number: int = 1) -> dict[str, int]:
    return dict.fromkeys(updates, number)


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return sum(float((first[n] - second[n]).square().sum()) for n in first) ** 0.5


@pytest.mark.parametrize("rule", list(RULES))
def test_equal_updates_come_back_as_they_are(rule: str) -> None:
    one = honest()["site-3"]
    updates = {f"site-{n}": one for n in range(8)}
    result = robust_aggregate(settings(rule), START, updates, examples(updates, 13))
    assert all(torch.equal(result.tensors[name], one[name]) for name in one)


@pytest.mark.parametrize("rule", list(RULES))
def test_the_order_of_arrival_changes_nothing(rule: str) -> None:
    updates = honest(5)
    results = [
        robust_aggregate(
            settings(rule), START, {s: updates[s] for s in order}, examples(updates, 3)
        )
        for order in itertools.islice(itertools.permutations(updates), 0, 120, 17)
    ]
    assert len({r.tensors["a"].numpy().tobytes() for r in results}) == 1
    assert len({r.decisions for r in results}) == 1


@pytest.mark.parametrize("factor", [-10.0, 50.0, -1e5])
@pytest.mark.parametrize("rule", ROBUST)
def test_one_far_outlier_among_eight_moves_little(rule: str, factor: float) -> None:
    """The honest mean is about 4.7 from the start and each honest site 0.5 from it.

    Clipping lets the outlier pull by one honest norm of eight at most, 2 * 4.7 / 8 = 1.2; cosine
    does not see an outlier that goes the same way, however far. The mean moves by
    11 * 4.7 / 8 = 6.4 at the least.
    """
    updates = honest()
    mean = robust_aggregate(RobustAggregation(), START, updates, examples(updates)).tensors
    bad = {name: START[name] + factor * (v - START[name]) for name, v in mean.items()}
    attacked = updates | {"site-2": bad}
    plain = robust_aggregate(RobustAggregation(), START, attacked, examples(attacked))
    assert distance(plain.tensors, mean) > 5
    result = robust_aggregate(settings(rule), START, attacked, examples(attacked))
    if rule == "cosine" and factor > 0:
        assert result.decisions == ()
        return
    assert distance(result.tensors, mean) < (1.3 if rule == "clip" else 0.7)
    treated = {decision.site: decision.action for decision in result.decisions}
    if rule in ("krum", "multi_krum", "cosine"):
        assert treated["site-2"] == "left_out"
    if rule == "clip":
        assert treated["site-2"] == "clipped"


def line(*values: float) -> dict[str, dict[str, Tensor]]:
    return {f"s{n}": {"a": torch.tensor([value])} for n, value in enumerate(values)}


def test_clipping_by_hand() -> None:
    """Norms 1, 2, 3: the median is 2, so that 3 becomes 2; mean 5 / 3."""
    updates = line(1, 2, -3)
    zero = {"a": torch.zeros(1)}
    result = robust_aggregate(settings("clip"), zero, updates, examples(updates))
    assert result.tensors["a"].tolist() == [pytest.approx((1 + 2 - 2) / 3)]
    (decision,) = result.decisions
    assert (decision.site, decision.action) == ("s2", "clipped")
    assert decision.reason == "norm 3 cut to 2, 1 times the sites' median 2"
    by_norm = RobustAggregation(rule="clip", clip_norm=2.5)
    assert robust_aggregate(by_norm, zero, updates, examples(updates)).tensors["a"].tolist() == [
        pytest.approx(0.5 / 3)
    ]


def test_krum_takes_one_and_multi_krum_the_best_ones() -> None:
    """Scores at 0, 1, 3, 4, 100 are 10, 5, 5, 10, 18625 (test_robust_rules); ties go by name."""
    updates, zero = line(0, 1, 3, 4, 100), {"a": torch.zeros(1)}
    krum = robust_aggregate(settings("krum"), zero, updates, examples(updates))
    assert krum.tensors["a"].tolist() == [1]
    assert [decision.site for decision in krum.decisions] == ["s0", "s2", "s3", "s4"]
    most = robust_aggregate(settings("multi_krum"), zero, updates, examples(updates))
    assert most.tensors["a"].tolist() == [2]
    (decision,) = most.decisions
    assert decision.site == "s4"
    assert decision.reason == "Krum score 18625; the 4 kept of 5 have at most 10"
    two = robust_aggregate(settings("multi_krum", keep=2), zero, updates, examples(updates))
    assert two.tensors["a"].tolist() == [2]
    assert len(two.decisions) == 3


def test_cosine_leaves_out_who_goes_the_other_way() -> None:
    updates, zero = line(1, 2, 3, -1), {"a": torch.zeros(1)}
    result = robust_aggregate(settings("cosine"), zero, updates, examples(updates))
    assert result.tensors["a"].tolist() == [2]
    assert [(d.site, d.reason) for d in result.decisions] == [
        ("s3", "cosine -1.0000 with the median of the others is below 0")
    ]


def test_where_nobody_is_left_the_global_model_stays() -> None:
    """Three directions at 120 degrees: the others' mean is each one's opposite."""
    angles = torch.tensor([0.0, 2.0943951, 4.1887902])
    updates = {f"s{n}": {"a": torch.stack([a.cos(), a.sin()])} for n, a in enumerate(angles)}
    start = {"a": torch.zeros(2)}
    result = robust_aggregate(settings("cosine", centre="mean"), start, updates, examples(updates))
    assert torch.equal(result.tensors["a"], start["a"])
    assert len(result.decisions) == 3


def test_examples_count_only_where_the_job_says_so() -> None:
    """0, 0, 1 with 1, 1, 8 examples: mean 1 / 3 or 0.8; median 0, or 1 by weight."""
    updates, zero = line(0, 0, 1), {"a": torch.zeros(1)}
    counts = {"s0": 1, "s1": 1, "s2": 8}
    for rule, plain, weighted in (("clip", 1 / 3, 0.8), ("median", 0, 1)):
        others = {} if rule == "median" else {"clip_norm": 9.0, "clip_multiple": None}
        for choice, expected in ((False, plain), (True, weighted)):
            asked = settings(rule, weighted=choice, **others)
            got = robust_aggregate(asked, zero, updates, counts).tensors["a"]
            assert got.tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("rule", "changes", "needed"),
    [
        ("none", {}, 1),
        ("median", {}, 3),
        ("cosine", {}, 3),
        ("clip", {}, 3),
        ("clip", {"clip_multiple": None, "clip_norm": 1.0}, 1),
        ("trimmed_mean", {"num_malicious": 2}, 5),
        ("krum", {"num_malicious": 2}, 7),
        ("multi_krum", {"num_malicious": 1, "keep": 6}, 7),
    ],
)
def test_too_few_updates_are_an_error(rule: str, changes: dict[str, Any], needed: int) -> None:
    asked = settings(rule, **changes)
    assert asked.sites_needed == needed
    screen(asked, START, honest(needed))
    with pytest.raises(RobustError, match=rf"{rule} needs {needed} updates, got {needed - 1}"):
        screen(asked, START, honest(needed - 1))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"rule": "vote"}, "expected one of none, clip, median"),
        ({"rule": "krum"}, "krum needs num_malicious >= 1"),
        ({"rule": "krum", "num_malicious": 0}, "krum needs num_malicious >= 1"),
        ({"rule": "krum", "num_malicious": 1.5}, "expected int, got 1.5"),
        ({"rule": "krum", "num_malicious": 1, "keep": 2}, "krum does not use keep"),
        ({"rule": "krum", "num_malicious": 1, "weighted": True}, "krum does not use weighted"),
        ({"rule": "multi_krum", "num_malicious": 1, "keep": 0}, "keep must be >= 1"),
        ({"rule": "none", "clip_norm": 1.0}, "none does not use clip_norm; it takes none"),
        ({"rule": "clip"}, "needs either clip_norm or clip_multiple"),
        ({"rule": "clip", "clip_norm": 1.0, "clip_multiple": 2.0}, "either"),
        ({"rule": "clip", "clip_norm": -1.0}, "positive and finite"),
        ({"rule": "clip", "clip_norm": ".inf"}, "expected a number"),
        ({"rule": "clip", "clip_multiple": float("inf")}, "positive and finite"),
        ({"rule": "cosine", "min_cosine": 1.0}, r"min_cosine must be in \[-1, 1\)"),
        ({"rule": "cosine", "centre": "mode"}, "expected one of mean, median"),
        ({"rule": "median", "num_malicious": 1}, "median does not use num_malicious"),
        ({"rule": "median", "vote": 1}, "unknown key vote"),
    ],
)
def test_wrong_settings_are_refused(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(RobustAggregation, mapping, "robust")
