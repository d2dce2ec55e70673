import itertools
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel

from vltune.flare.aggregator import META_SITE, RejectedUpdateError, ValidatingAggregator
from vltune.flare.exchange import update_reply
from vltune.parameters import LocalUpdate
from vltune.robust_aggregation import RobustError

GLOBAL = {"bias": torch.zeros(3), "weight": torch.zeros(2, 3)}


def answer(
    site: str,
    value: float,
    examples: int = 1,
    round_number: int = 0,
    histograms: dict[str, Any] | None = None,
    **changes: Any,
) -> FLModel:
    params = {"bias": np.full(3, value, np.float32), "weight": np.zeros((2, 3), np.float32)}
    params |= changes
    params = {name: array for name, array in params.items() if array is not None}
    meta = {META_SITE: site, "num_examples": examples, "histograms": histograms or {}}
    return FLModel(params=params, current_round=round_number, meta=meta, metrics={"loss": 0.5})


def aggregator(**arguments) -> ValidatingAggregator:
    made = ValidatingAggregator(**arguments)
    made.start_round(0, GLOBAL)
    return made


def test_the_mean_is_weighted_by_examples() -> None:
    """(1 * 3 + 4 * 1) / (3 + 1) = 1.75."""
    it = aggregator()
    it.accept_model(answer("b", 4.0, 1))
    it.accept_model(answer("a", 1.0, 3))
    assert list(it.accepted) == ["a", "b"]
    assert it.average()["bias"].tolist() == [1.75] * 3


def test_uniform_weights_ignore_examples() -> None:
    """(1 + 4) / 2 = 2.5."""
    it = aggregator(weight_by="uniform")
    it.accept_model(answer("a", 1.0, 300))
    it.accept_model(answer("b", 4.0, 1))
    assert it.average()["bias"].tolist() == [2.5] * 3


def test_the_order_of_arrival_cannot_change_a_bit() -> None:
    generator = np.random.default_rng(5)
    answers = [
        answer(f"site-{n}", 0, 7 + 13 * n, weight=generator.normal(size=(2, 3)).astype(np.float32))
        for n in range(5)
    ]
    results = set()
    for order in itertools.permutations(answers):
        it = aggregator()
        for one in order:
            it.accept_model(one)
        results.add(it.average()["weight"].numpy().tobytes())
    assert len(results) == 1


def test_one_site_alone_gets_back_exactly_what_it_sent() -> None:
    values = torch.randn(2, 3, generator=torch.Generator().manual_seed(3))
    it = aggregator()
    it.accept_model(answer("a", 0.1, 769, weight=values.numpy()))
    assert torch.equal(it.average()["weight"], values)


def test_the_sum_is_kept_in_double_precision() -> None:
    """In fp32, 2^24 + 1 = 2^24: the small site would be lost. Exact: 1 / 3."""
    it = aggregator(max_update_norm=1e9)
    for site, value in (("a", 2.0**24), ("b", 1.0), ("c", -(2.0**24))):
        it.accept_model(answer(site, value))
    assert it.average()["bias"].tolist() == [float(np.float32(1 / 3))] * 3


def test_without_updates_the_global_model_stays() -> None:
    assert torch.equal(aggregator().average()["bias"], GLOBAL["bias"])


def test_flares_own_type_carries_the_mean() -> None:
    it = aggregator()
    it.accept_model(answer("a", 2.0))
    model = it.aggregate_model()
    assert model.params["bias"].tolist() == [2.0] * 3
    assert it.accepted == {}


REJECTED = {
    "nan": (answer("a", float("nan")), "NaN"),
    "infinity": (answer("a", float("inf")), "NaN or infinity"),
    "unknown key": (answer("a", 1.0, offset=np.zeros(2, np.float32)), "unknown: .'offset'"),
    "missing key": (answer("a", 1.0, bias=None), "missing: .'bias'"),
    "shape": (answer("a", 1.0, bias=np.zeros(5, np.float32)), r"expected shape \(3,\)"),
    "dtype": (answer("a", 1.0, bias=np.zeros(3)), "float32"),
    "zero examples": (answer("a", 1.0, 0), "num_examples is 0"),
    "other round": (answer("a", 1.0, round_number=3), "update of round 3, this is round 0"),
    "absurd norm": (answer("a", 1e4), "norm is 17320.5"),
    "histograms": (
        answer("a", 1.0, histograms={"positives": np.zeros(3, np.int32)}),
        "histograms: expected",
    ),
    "no arrays": (answer("a", 1.0, bias=[1, 2, 3]), "expected names and arrays"),
}


@pytest.mark.parametrize("name", list(REJECTED))
def test_what_is_not_in_order_is_refused_with_site_and_reason(name: str) -> None:
    """The norm: sqrt(3 * (1e4)^2) = 17320.5 > 1000."""
    it = aggregator()
    model, reason = REJECTED[name]
    with pytest.raises(RejectedUpdateError, match=f"a.*{reason}"):
        it.accept_model(model)
    it.accept_model(answer("b", 2.0))
    assert it.average()["bias"].tolist() == [2.0] * 3


def test_a_second_update_of_a_site_is_refused() -> None:
    it = aggregator()
    it.accept_model(answer("a", 1.0))
    with pytest.raises(RejectedUpdateError, match="a: second update"):
        it.accept_model(answer("a", 9.0))
    assert it.average()["bias"].tolist() == [1.0] * 3


def test_a_site_keeps_to_the_number_of_examples_that_it_announced() -> None:
    it = ValidatingAggregator()
    it.start_round(0, GLOBAL, {"a": 5})
    with pytest.raises(RejectedUpdateError, match="num_examples is 9000, but it announced 5"):
        it.accept_model(answer("a", 1.0, 9000))
    with pytest.raises(RejectedUpdateError, match="b: does not take part"):
        it.accept_model(answer("b", 1.0, 5))


def test_differences_are_refused() -> None:
    model = answer("a", 1.0)
    model.params_type = "DIFF"
    with pytest.raises(RejectedUpdateError, match="full"):
        aggregator().accept_model(model)


def test_under_scatter_and_gather_a_refusal_is_false_and_no_exception() -> None:
    peer, context = FLContext(), FLContext()
    peer.set_prop(FLContextKey.CLIENT_NAME, "a")
    peer.set_prop("__identity_name__", "a")
    context.set_peer_context(peer)
    it = aggregator()
    good = {name: value + 1 for name, value in GLOBAL.items()}
    bad = {name: value * torch.nan for name, value in GLOBAL.items()}
    assert it.accept(update_reply(LocalUpdate(bad, 3), 0), context) is False
    assert it.accept(update_reply(LocalUpdate(good, 3), 0), context) is True
    assert list(it.accepted) == ["a"]


def test_a_robust_rule_takes_the_place_of_the_mean() -> None:
    """Median of 1, 2, 90 is 2; examples do not count."""
    it = aggregator(robust={"rule": "median"})
    for site, value, examples in (("a", 1.0, 1), ("b", 90.0, 500), ("c", 2.0, 1)):
        it.accept_model(answer(site, value, examples))
    assert it.average()["bias"].tolist() == [2.0] * 3
    assert it.decisions == ()


def test_who_is_left_out_is_said_and_forgotten_with_the_round() -> None:
    """Without c the mean is (1 + 2) / 2; by examples (3 * 1 + 2) / 4."""
    for weighted, expected in ((False, 1.5), (True, 1.25)):
        it = aggregator(robust={"rule": "cosine", "weighted": weighted})
        for site, value, examples in (("a", 1.0, 3), ("b", 2.0, 1), ("c", -90.0, 7)):
            it.accept_model(answer(site, value, examples))
        assert it.average()["bias"].tolist() == [expected] * 3
        assert [(d.site, d.action) for d in it.decisions] == [("c", "left_out")]
        it.start_round(1, GLOBAL)
        it.average()
        assert it.decisions == ()


def test_too_few_updates_for_the_rule_are_an_error_and_no_plain_mean() -> None:
    it = aggregator(robust={"rule": "median"})
    it.accept_model(answer("a", 1.0))
    with pytest.raises(RobustError, match="median needs 3 updates, got 1 of a"):
        it.average()
