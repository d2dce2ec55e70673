"""The aggregator with a job's `aggregation`: LoRA's factors by hand, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import MetaKey
from nvflare.app_common.abstract.fl_model import FLModel

from vltune.config import ConfigError
from vltune.flare.aggregator import META_SITE, RejectedUpdateError, ValidatingAggregator
from vltune.lora_residual import split_residual

A, B = "base_model.model.fc.lora_A.weight", "base_model.model.fc.lora_B.weight"
START = {A: torch.ones(1, 2), B: torch.zeros(2, 1)}


def made(mode: str, start: dict[str, torch.Tensor] = START, **others: Any) -> ValidatingAggregator:
    it = ValidatingAggregator(aggregation={"mode": mode, **others})
    it.start_round(0, start)
    return it


def answer(site: str, a: list[list[float]] | None, b: list[list[float]] | None, n: int) -> FLModel:
    params = {A: a, B: b}
    arrays = {name: np.array(v, np.float32) for name, v in params.items() if v is not None}
    meta = {META_SITE: site, "num_examples": n, "histograms": {}}
    return FLModel(params=arrays, current_round=0, meta=meta, metrics={})


def test_fedavg_says_how_far_it_is_from_the_mean_product() -> None:
    """Sites (A, B) = ((1, 0), (1, 0)^T) and ((0, 1), (0, 1)^T), weights 3 and 1.

    Mean product diag(3/4, 1/4); mean A (3/4, 1/4), mean B the same, their product
    ((9, 3), (3, 1)) / 16. Difference ((3, -3), (-3, 3)) / 16, norm 6/16; the mean's norm is
    sqrt(10) / 4. Error 1.5 / sqrt(10).
    """
    it = made("fedavg")
    it.accept_model(answer("a", [[1, 0]], [[1], [0]], 3))
    it.accept_model(answer("b", [[0, 1]], [[0], [1]], 1))
    joined = it.average()
    assert joined[A].tolist() == [[0.75, 0.25]]
    assert joined[B].tolist() == [[0.75], [0.25]]
    assert it.exactness is not None
    assert it.exactness.overall == pytest.approx(1.5 / 10**0.5)


def test_fedex_sends_the_rest_as_a_residual_and_takes_none_back() -> None:
    it = made("fedex")
    it.accept_model(answer("a", [[1, 0]], [[1], [0]], 3))
    it.accept_model(answer("b", [[0, 1]], [[0], [1]], 1))
    joined = it.average()
    shared, residual = split_residual(joined)
    assert set(shared) == {A, B}
    assert residual
    full = shared[B] @ shared[A] + _dense(residual)
    assert torch.allclose(full, torch.diag(torch.tensor([0.75, 0.25])), atol=1e-6)
    assert it.exactness is not None
    assert it.exactness.overall < 1e-6
    it.start_round(0, joined)
    it.accept_model(answer("a", [[1, 0]], [[0], [0]], 1))
    message = answer("b", [[1, 0]], [[0], [0]], 1)
    message.params |= {name: value.numpy() for name, value in residual.items()}
    with pytest.raises(RejectedUpdateError, match="unknown"):
        it.accept_model(message)
    # One site with B = 0: nothing of its own, so the whole weight is what was sent as residual.
    again, kept = split_residual(it.average())
    assert torch.allclose(again[B] @ again[A] + _dense(kept), _dense(residual), atol=1e-6)


def _dense(residual: dict[str, torch.Tensor]) -> torch.Tensor:
    if len(residual) == 1:
        return next(iter(residual.values()))
    left, right = sorted(residual, reverse=True)
    return residual[left] @ residual[right]


def test_plora_takes_only_b() -> None:
    it = made("plora", {B: torch.zeros(2, 1)})
    it.accept_model(answer("a", None, [[4], [0]], 1))
    with pytest.raises(RejectedUpdateError, match=r"unknown.*lora_A"):
        it.accept_model(answer("b", [[1, 1]], [[0], [0]], 1))
    assert it.average()[B].tolist() == [[4], [0]]
    assert it.exactness is None


def test_a_lower_rank_is_taken_where_the_mode_allows() -> None:
    start = {A: torch.ones(2, 2), B: torch.zeros(2, 2)}
    low = answer("a", [[1, 0]], [[1], [0]], 1)
    it = made("svd", start)
    it.accept_model(low)
    joined = it.average()
    assert torch.allclose(joined[B] @ joined[A], torch.tensor([[1.0, 0], [0, 0]]), atol=1e-6)
    with pytest.raises(RejectedUpdateError, match="shape"):
        made("fedavg", start).accept_model(low)


def test_a_large_update_of_a_lower_rank_is_refused_too() -> None:
    it = made("svd", {A: torch.ones(2, 2), B: torch.zeros(2, 2)})
    it.max_update_norm = 10.0
    with pytest.raises(RejectedUpdateError, match="the update's norm"):
        it.accept_model(answer("a", [[100, 0]], [[1], [0]], 1))


def test_a_lower_rank_is_measured_against_what_the_site_was_given() -> None:
    """Its row of A moved by 3; the row that it never saw, of norm 500, is no move of its own."""
    it = made("svd", {A: torch.tensor([[1.0, 0], [300, 400]]), B: torch.zeros(2, 2)})
    it.max_update_norm = 3.0
    it.accept_model(answer("a", [[4, 0]], [[0], [0]], 1))
    with pytest.raises(RejectedUpdateError, match=r"norm is 3\.5,"):
        it.accept_model(answer("b", [[4.5, 0]], [[0], [0]], 1))


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("svd", "singular values"),
        ("fedex", "forms the products"),
        ("plora", "take the filter away"),
    ],
)
def test_processed_tensors_are_refused_with_the_reason(mode: str, reason: str) -> None:
    start = {B: torch.zeros(2, 1)} if mode == "plora" else START
    message = answer("a", None if mode == "plora" else [[1, 0]], [[1], [0]], 1)
    message.meta[MetaKey.PROCESSED_ALGORITHM] = "HE"
    with pytest.raises(RejectedUpdateError, match=reason) as caught:
        made(mode, start).accept_model(message)
    assert "HE" in str(caught.value)


def test_a_wrong_key_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"expected one of fedavg, .* got 'mean'"):
        ValidatingAggregator(aggregation={"mode": "mean"})
    with pytest.raises(ConfigError, match="rank"):
        ValidatingAggregator(aggregation={"mode": "svd", "rank": 3})


def test_a_rule_screens_factors_before_the_mode_joins_them() -> None:
    """Five sites on B = 1, 1, 1, 1, -50 with A = 1: without the last the product is exact."""
    it = ValidatingAggregator(
        aggregation={"mode": "fedex"}, robust={"rule": "multi_krum", "num_malicious": 1}
    )
    it.start_round(0, START)
    for site, value in zip("abcde", (1, 1, 1, 1, -50), strict=True):
        it.accept_model(answer(site, [[1, 1]], [[value], [value]], 3))
    joined = it.average()
    assert joined[B].tolist() == [[1], [1]]
    assert [decision.site for decision in it.decisions] == ["e"]
    assert it.exactness is not None
    assert it.exactness.overall < 1e-6


def test_a_median_of_factors_has_no_exactness_error() -> None:
    it = ValidatingAggregator(aggregation={"mode": "fedavg"}, robust={"rule": "median"})
    it.start_round(0, START)
    for site, value in zip("abc", (1, 2, -50), strict=True):
        it.accept_model(answer(site, [[1, value]], [[value], [value]], 3))
    joined = it.average()
    assert (joined[A].tolist(), joined[B].tolist()) == ([[1, 1]], [[1], [1]])
    assert it.exactness is None


def test_under_a_rule_all_sites_have_the_jobs_rank() -> None:
    start = {A: torch.ones(2, 2), B: torch.zeros(2, 2)}
    for robust, refused in ((None, False), ({"rule": "clip", "clip_norm": 9.0}, True)):
        it = ValidatingAggregator(aggregation={"mode": "svd"}, robust=robust)
        it.start_round(0, start)
        small = answer("a", [[1, 1]], [[1], [1]], 3)
        if refused:
            with pytest.raises(RejectedUpdateError, match="expected shape"):
                it.accept_model(small)
        else:
            it.accept_model(small)


def test_what_does_not_go_together_does_not_start() -> None:
    with pytest.raises(ConfigError, match="robust rules excludes hetlora"):
        ValidatingAggregator(
            aggregation={"mode": "hetlora"}, robust={"rule": "clip", "clip_norm": 1.0}
        )
    with pytest.raises(ConfigError, match="excludes LoRA modes with products"):
        ValidatingAggregator(aggregation={"mode": "stack"}, robust={"rule": "median"})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CKKS", "homomorphic encryption excludes robust rules: .*cannot tell a bad update"),
        ("blockwise8", r"quantized updates \(int8, fp16\) excludes checks"),
        ("unheard of", "adds plain tensors"),
    ],
)
def test_a_sites_filter_is_refused_by_the_table(name: str, reason: str) -> None:
    it = ValidatingAggregator(aggregation={"mode": "ffa"}, robust={"rule": "median"})
    message = answer("a", None, [[1], [0]], 1)
    message.meta[MetaKey.PROCESSED_ALGORITHM] = name
    with pytest.raises(RejectedUpdateError, match=f"a: .*{reason}"):
        it.refuse_processed("a", message)
