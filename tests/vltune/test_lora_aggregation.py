import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vltune.lora_aggregation import Aggregated, LoraSum, aggregate
from vltune.lora_factors import Factors, LoraError, factor_name, name_factors, pair_factors
from vltune.lora_modes import MODES, LoraAggregation, ModeName
from vltune.lora_residual import read_residual
from vltune.parameters import ParameterError

SIZES = {"enc.q": (23, 29), "dec.v": (31, 19)}
r = 3
ONE_FACTOR: tuple[ModeName, ...] = ("ffa", "fedsa", "plora")
TWO_FACTORS: tuple[ModeName, ...] = ("fedavg", "svd", "fedex", "stack", "hetlora")
ALL = (*ONE_FACTOR, *TWO_FACTORS)
NAME_A, NAME_B = factor_name("m", "A"), factor_name("m", "B")

# Two sites with one and three examples; r = 1, D_out = D_in = 2.
BY_HAND = {
    "a": {NAME_A: torch.tensor([[1.0, 0.0]]), NAME_B: torch.tensor([[2.0], [0.0]])},
    "b": {NAME_A: torch.tensor([[0.0, 1.0]]), NAME_B: torch.tensor([[0.0], [4.0]])},
}
EXAMPLES = {"a": 1, "b": 3}
START = {NAME_A: torch.tensor([[0.6, 0.8]]), NAME_B: torch.zeros(2, 1)}


def shared(mode: ModeName, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in MODES[mode].shared_names(tensors)}


def by_hand(mode: ModeName, **changes: Any) -> Aggregated:
    settings = LoraAggregation(mode, **changes)
    updates = {site: shared(mode, tensors) for site, tensors in BY_HAND.items()}
    return aggregate(settings, shared(mode, START), updates, EXAMPLES)


def factors(seed: int, rank: int = r) -> dict[str, Tensor]:
    """Both factors of two modules of distinct prime sizes."""
    generator = torch.Generator().manual_seed(seed)
    return name_factors(
        {
            module: Factors(
                torch.randn(rank, columns, generator=generator),
                torch.randn(rows, rank, generator=generator),
            )
            for module, (rows, columns) in SIZES.items()
        }
    )


def start(rank: int = r) -> dict[str, Tensor]:
    """A random, B zero."""
    return {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in factors(99, rank).items()}


def many(mode: ModeName, num_sites: int = 4) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    updates = {f"site-{s}": shared(mode, factors(s)) for s in range(num_sites)}
    return updates, {site: 2 + 3 * number for number, site in enumerate(updates)}


def products(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {m: p.b.double() @ p.a.double() for m, p in pair_factors(tensors, "test").items()}


def mean_products(
    updates: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    total = sum(weights.values())
    parts = {site: products(update) for site, update in updates.items()}
    return {m: sum(weights[s] / total * parts[s][m] for s in updates) for m in SIZES}  # type: ignore[misc] # sum of tensors


def effective(result: Aggregated) -> dict[str, Tensor]:
    residual = read_residual(result.residual, "test")
    return {
        module: product
        + (residual[module].b.double() @ residual[module].a.double() if module in residual else 0)
        for module, product in products(result.tensors).items()
    }


def close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float) -> bool:
    return left.keys() == right.keys() and all(
        float((left[n].double() - right[n].double()).norm()) <= tolerance * float(right[n].norm())
        for n in left
    )


# By hand -----------------------------------------------------------------------------------------


def test_fedavg_by_hand() -> None:
    """A = (1/4, 3/4), B = (1/2, 3); P = diag(1/2, 3).

    P - B A = ((3/8, -3/8), (-3/4, 3/4)), so the error is sqrt(1.40625 / 9.25).
    """
    result = by_hand("fedavg")
    assert result.tensors[NAME_A].tolist() == [[0.25, 0.75]]
    assert result.tensors[NAME_B].tolist() == [[0.5], [3.0]]
    assert result.residual == {}
    assert result.num_sites == 2
    assert result.exactness is not None
    assert result.exactness.overall == pytest.approx(math.sqrt(1.40625 / 9.25), rel=1e-12)
    assert result.exactness.per_module == {"m": pytest.approx(result.exactness.overall)}


def test_uniform_by_hand() -> None:
    result = by_hand("fedavg", weight_by="uniform")
    assert result.tensors[NAME_A].tolist() == [[0.5, 0.5]]
    assert result.tensors[NAME_B].tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("ffa", NAME_B, [[0.5], [3.0]]),
        ("plora", NAME_B, [[0.5], [3.0]]),
        ("fedsa", NAME_A, [[0.25, 0.75]]),
    ],
)
def test_one_factor_by_hand(mode: ModeName, name: str, expected: list[list[float]]) -> None:
    result = by_hand(mode)
    assert {n: t.tolist() for n, t in result.tensors.items()} == {name: expected}


def test_only_what_the_server_can_know_is_measured() -> None:
    ffa = by_hand("ffa").exactness
    assert ffa is not None
    assert (ffa.overall, ffa.per_module) == (0.0, {"m": 0.0})
    assert by_hand("plora").exactness is None
    assert by_hand("fedsa").exactness is None


def test_svd_by_hand() -> None:
    """P = diag(1/2, 3), best rank 1 is diag(0, 3), the root of 3 in each factor."""
    result, root = by_hand("svd"), math.sqrt(3)
    assert torch.allclose(result.tensors[NAME_A], torch.tensor([[0.0, root]]), atol=1e-6)
    assert torch.allclose(result.tensors[NAME_B], torch.tensor([[0.0], [root]]), atol=1e-6)
    assert result.exactness is not None
    assert result.exactness.overall == pytest.approx(0.5 / math.sqrt(9.25), rel=1e-6)


def test_fedex_by_hand() -> None:
    """Factors as fedavg; the residual is P - B A, dense because 1 * (2 + 2) numbers are no less."""
    result = by_hand("fedex")
    assert result.tensors[NAME_A].tolist() == [[0.25, 0.75]]
    assert list(result.residual) == ["base_model.model.m.residual.weight"]
    expected = torch.tensor([[0.375, -0.375], [-0.75, 0.75]])
    assert torch.allclose(result.residual["base_model.model.m.residual.weight"], expected)


def test_stack_by_hand() -> None:
    """All of P = diag(1/2, 3) is residual; the factors start again."""
    result = by_hand("stack")
    assert torch.equal(result.tensors[NAME_A], START[NAME_A])
    assert not result.tensors[NAME_B].any()
    residual = result.residual["base_model.model.m.residual.weight"]
    assert torch.allclose(residual, torch.diag(torch.tensor([0.5, 3.0])))


def test_hetlora_by_hand() -> None:
    """Norms of the products are 2 and 4: weights 1/3 and 2/3, whatever the examples."""
    result = by_hand("hetlora")
    assert torch.allclose(result.tensors[NAME_A], torch.tensor([[1 / 3, 2 / 3]]))
    assert torch.allclose(result.tensors[NAME_B], torch.tensor([[2 / 3], [8 / 3]]))
    plain = by_hand("hetlora", hetlora_weight_by="weight_by")
    assert torch.equal(plain.tensors[NAME_A], by_hand("fedavg").tensors[NAME_A])


def test_hetlora_pads_by_hand() -> None:
    """Ranks 1 and 2, weights 1 and 1: the second row and column are halved, not averaged away."""
    small = {NAME_A: torch.tensor([[4.0, 0.0]]), NAME_B: torch.tensor([[2.0], [0.0]])}
    large = {NAME_A: torch.tensor([[0.0, 2.0], [6.0, 0.0]]), NAME_B: torch.eye(2)}
    reference = {NAME_A: torch.zeros(2, 2), NAME_B: torch.zeros(2, 2)}
    settings = LoraAggregation("hetlora", weight_by="uniform", hetlora_weight_by="weight_by")
    result = aggregate(settings, reference, {"a": small, "b": large}, {"a": 1, "b": 5})
    assert result.tensors[NAME_A].tolist() == [[2.0, 1.0], [3.0, 0.0]]
    assert result.tensors[NAME_B].tolist() == [[1.5, 0.0], [0.0, 0.5]]


# Properties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ALL)
def test_order_of_sites_changes_nothing(mode: ModeName) -> None:
    updates, examples = many(mode)
    settings, reference = LoraAggregation(mode), shared(mode, start())
    first = aggregate(settings, reference, updates, examples)
    turned = {site: updates[site] for site in reversed(updates)}
    second = aggregate(settings, reference, turned, examples)
    assert first.exactness == second.exactness
    for one, two in ((first.tensors, second.tensors), (first.residual, second.residual)):
        assert list(one) == list(two)
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("mode", ALL)
def test_streaming_in_another_order_is_the_batch(mode: ModeName) -> None:
    updates, examples = many(mode, num_sites=7)
    settings, reference = LoraAggregation(mode), shared(mode, start())
    batch = aggregate(settings, reference, updates, examples)
    stream = LoraSum(settings, reference)
    for site in reversed(updates):
        stream.add(site, updates[site], examples[site])
    streamed = stream.finish()
    if mode in TWO_FACTORS:
        assert close(effective(streamed), effective(batch), 1e-6)
    if mode != "svd":
        assert close(streamed.tensors, batch.tensors, 1e-6)


@pytest.mark.parametrize("mode", ALL)
def test_equal_updates_return_that_update(mode: ModeName) -> None:
    update = factors(5)
    updates = {site: shared(mode, update) for site in ("a", "b", "c")}
    examples = {"a": 1, "b": 20, "c": 3}
    result = aggregate(LoraAggregation(mode), shared(mode, start()), updates, examples)
    if mode in TWO_FACTORS:
        assert close(effective(result), products(update), 1e-6)
        assert result.exactness is not None
        assert result.exactness.overall < 2e-7
    if mode not in ("svd", "stack"):
        assert close(result.tensors, shared(mode, update), 1e-7)
        assert result.residual == {}


@pytest.mark.parametrize("mode", ALL)
def test_only_ratios_of_weights_count(mode: ModeName) -> None:
    updates, examples = many(mode)
    settings, reference = LoraAggregation(mode), shared(mode, start())
    first = aggregate(settings, reference, updates, examples)
    larger = {site: 1000 * count for site, count in examples.items()}
    second = aggregate(settings, reference, updates, larger)
    if mode in TWO_FACTORS:
        assert close(effective(second), effective(first), 1e-6)
    else:
        assert close(second.tensors, first.tensors, 1e-7)


@pytest.mark.parametrize("mode", ALL)
def test_shapes_and_type_are_those_sent_out(mode: ModeName) -> None:
    updates, examples = many(mode)
    reference = shared(mode, start())
    result = aggregate(LoraAggregation(mode), reference, updates, examples)
    assert {n: t.shape for n, t in result.tensors.items()} == {
        n: t.shape for n, t in reference.items()
    }
    assert all(
        t.dtype == torch.float32 for t in (*result.tensors.values(), *result.residual.values())
    )


def test_svd_is_the_best_rank_r_approximation() -> None:
    updates, examples = many("svd")
    result = aggregate(LoraAggregation("svd"), start(), updates, examples)
    means, got = mean_products(updates, examples), products(result.tensors)
    squares = {}
    for module, mean in means.items():
        u, s, v = np.linalg.svd(mean.numpy())
        best = torch.from_numpy(u[:, :r] * s[:r] @ v[:r])
        assert close({"m": got[module]}, {"m": best}, 1e-6)
        squares[module] = ((s[r:] ** 2).sum(), (s**2).sum())
        assert np.linalg.matrix_rank(got[module].numpy(), tol=1e-4) == r
    assert result.exactness is not None
    for module, (tail, whole) in squares.items():
        assert result.exactness.per_module[module] == pytest.approx(
            math.sqrt(tail / whole), rel=1e-5
        )
    overall = math.sqrt(sum(t for t, _ in squares.values()) / sum(w for _, w in squares.values()))
    assert result.exactness.overall == pytest.approx(overall, rel=1e-5)


def test_fedavg_is_wrong_where_factors_differ_and_svd_is_better() -> None:
    updates, examples = many("fedavg")
    errors = {}
    for mode in TWO_FACTORS:
        exactness = aggregate(LoraAggregation(mode), start(), updates, examples).exactness
        assert exactness is not None
        errors[mode] = exactness.overall
    assert errors["fedavg"] > 0.5
    assert errors["svd"] < errors["fedavg"]
    assert errors["fedex"] < 1e-6
    assert errors["stack"] < 1e-6


def test_fedavg_is_right_where_all_share_one_a() -> None:
    same = {name: value for name, value in factors(1).items() if "lora_A" in name}
    updates, examples = many("fedavg")
    updates = {site: {**update, **same} for site, update in updates.items()}
    exactness = aggregate(LoraAggregation("fedavg"), start(), updates, examples).exactness
    assert exactness is not None
    assert exactness.overall < 1e-7


@pytest.mark.parametrize("mode", ["fedex", "stack"])
def test_residual_keeps_the_weights_exact_over_rounds(mode: ModeName) -> None:
    """Each round other sites move; W after it is their weighted mean, to fp32 rounding."""
    sent, residual = start(), dict[str, Tensor]()
    expected_residual = {m: torch.zeros(size, dtype=torch.float64) for m, size in SIZES.items()}
    for round_number in range(4):
        sites = [f"site-{s}" for s in range(5) if s % 2 == round_number % 2]
        updates, examples = {}, {}
        for number, site in enumerate(sites):
            step = factors(100 * round_number + number)
            updates[site] = {name: sent[name] + 0.3 * step[name] for name in sent}
            examples[site] = 1 + 4 * number
        result = aggregate(LoraAggregation(mode), sent, updates, examples, residual)
        expected = {
            m: p + expected_residual[m] for m, p in mean_products(updates, examples).items()
        }
        assert close(effective(result), expected, 1e-6)
        assert result.exactness is not None
        assert result.exactness.overall < 1e-6
        sent, residual = result.tensors, result.residual
        got = effective(result)
        expected_residual = {m: got[m] - products(sent)[m] for m in SIZES}


def test_residual_is_factored_while_that_is_smaller() -> None:
    """Two sites of rank 3: P - B A has rank 3, 3 (23 + 29) < 23 * 29; nine sites make it dense."""
    small, examples = many("fedex", num_sites=2)
    residual = aggregate(LoraAggregation("fedex"), start(), small, examples).residual
    assert {name: tuple(t.shape) for name, t in residual.items()} == {
        "base_model.model.dec.v.residual_A.weight": (3, 19),
        "base_model.model.dec.v.residual_B.weight": (31, 3),
        "base_model.model.enc.q.residual_A.weight": (3, 29),
        "base_model.model.enc.q.residual_B.weight": (23, 3),
    }
    large, examples = many("fedex", num_sites=9)
    residual = aggregate(LoraAggregation("fedex"), start(), large, examples).residual
    assert {name: tuple(t.shape) for name, t in residual.items()} == {
        "base_model.model.dec.v.residual.weight": (31, 19),
        "base_model.model.enc.q.residual.weight": (23, 29),
    }


def test_a_cap_on_the_residual_is_reported() -> None:
    updates, examples = many("fedex")
    settings = LoraAggregation("fedex", max_residual_rank=2)
    result = aggregate(settings, start(), updates, examples)
    assert all(min(t.shape) == 2 for t in result.residual.values())
    whole = aggregate(LoraAggregation("fedex"), start(), updates, examples)
    assert whole.residual_lost == {}
    full, cut = effective(whole), effective(result)
    for module, lost in result.residual_lost.items():
        assert lost == pytest.approx(float((full[module] - cut[module]).norm()), rel=1e-5)
    assert set(result.residual_lost) == set(SIZES)
    assert result.exactness is not None
    assert result.exactness.overall > 0.01


@pytest.mark.parametrize("mode", ["svd", "stack"])
def test_ranks_may_differ(mode: ModeName) -> None:
    updates = {"a": factors(1, rank=2), "b": factors(2, rank=5), "c": factors(3, rank=1)}
    examples = {"a": 3, "b": 2, "c": 7}
    result = aggregate(LoraAggregation(mode), start(5), updates, examples)
    means = mean_products(updates, examples)
    if mode == "stack":
        assert close(effective(result), means, 1e-6)
        return
    for module, got in products(result.tensors).items():
        u, s, v = np.linalg.svd(means[module].numpy())
        assert close({"m": got}, {"m": torch.from_numpy(u[:, :5] * s[:5] @ v[:5])}, 1e-6)


def test_svd_where_nobody_moved_can_still_learn() -> None:
    updates = {"a": start(), "b": start()}
    result = aggregate(LoraAggregation("svd"), start(), updates, {"a": 1, "b": 1})
    for module, (a, b) in pair_factors(result.tensors, "test").items():
        assert not b.any()
        length = pair_factors(start(), "test")[module].a.norm() / math.sqrt(r)
        assert torch.allclose(a.norm(dim=1), length.expand(r), rtol=1e-5)


def test_hetlora_is_uniform_where_nobody_moved() -> None:
    updates = {s: {**start(), **only_a(s)} for s in ("a", "b")}
    result = aggregate(LoraAggregation("hetlora"), start(), updates, {"a": 1, "b": 9})
    for name in only_a("a"):
        assert torch.allclose(result.tensors[name], (updates["a"][name] + updates["b"][name]) / 2)


def only_a(site: str) -> dict[str, Tensor]:
    return {n: t for n, t in factors(ord(site)).items() if "lora_A" in n}


# Bad input ---------------------------------------------------------------------------------------


def test_a_refused_update_leaves_the_sum_as_it_was() -> None:
    updates, examples = many("fedex")
    clean = aggregate(LoraAggregation("fedex"), start(), updates, examples)
    total = LoraSum(LoraAggregation("fedex"), start())
    for site, update in updates.items():
        broken = {name: value * float("nan") for name, value in update.items()}
        with pytest.raises(ParameterError, match=f"from {site} hold NaN or infinity.*enc.q.lora_A"):
            total.add(site, broken, 1)
        total.add(site, update, examples[site])
    result = total.finish()
    assert all(torch.equal(result.tensors[n], clean.tensors[n]) for n in clean.tensors)
    assert all(torch.equal(result.residual[n], clean.residual[n]) for n in clean.residual)


@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_must_be_positive(mode: ModeName, weight: float) -> None:
    total = LoraSum(LoraAggregation(mode), shared(mode, start()))
    with pytest.raises(LoraError, match="site-0: expected a weight > 0, got"):
        total.add("site-0", shared(mode, factors(0)), weight)


@pytest.mark.parametrize("mode", ALL)
def test_names_must_agree(mode: ModeName) -> None:
    total = LoraSum(LoraAggregation(mode), shared(mode, start()))
    update = shared(mode, factors(0))
    name = next(iter(update))
    missing = {n: t for n, t in update.items() if n != name}
    with pytest.raises(ParameterError, match=rf"from site-0 .* missing: \['{name}'\]"):
        total.add("site-0", missing, 1)
    other = factor_name("enc.k", "A")
    with pytest.raises(ParameterError, match=rf"unknown: \['{other}'\]"):
        total.add("site-0", {**update, other: torch.ones(r, 29)}, 1)


@pytest.mark.parametrize("mode", ["ffa", "plora"])
def test_a_factor_that_must_stay_is_refused(mode: ModeName) -> None:
    total = LoraSum(LoraAggregation(mode), shared(mode, start()))
    with pytest.raises(ParameterError, match=r"unknown: .*lora_A"):
        total.add("site-0", factors(0), 1)


@pytest.mark.parametrize("mode", TWO_FACTORS)
def test_shapes_must_agree(mode: ModeName) -> None:
    total = LoraSum(LoraAggregation(mode), start())
    update = factors(0)
    name_a, name_b = factor_name("enc.q", "A"), factor_name("enc.q", "B")
    with pytest.raises(ParameterError, match=r"site-0.*enc\.q"):
        total.add("site-0", {**update, name_a: torch.ones(r, 28)}, 1)
    with pytest.raises(ParameterError, match=r"site-0.*enc\.q"):
        total.add("site-0", {**update, name_b: torch.ones(23, r - 1)}, 1)
    with pytest.raises(ParameterError, match=r"site-0.*enc\.q"):
        total.add("site-0", factors(0, rank=r + 1), 1)
    with pytest.raises(ParameterError, match="float32"):
        total.add("site-0", {n: t.double() for n, t in update.items()}, 1)
    if not MODES[mode].has_mixed_ranks:
        with pytest.raises(ParameterError, match=r"site-0.*expected shape"):
            total.add("site-0", factors(0, rank=r - 1), 1)


def test_a_larger_rank_says_what_to_do() -> None:
    total = LoraSum(LoraAggregation("svd"), start())
    with pytest.raises(
        LoraError, match=r"site-0: ranks beyond the global one: dec\.v 4 > 3, enc\.q 4 > 3; lower"
    ):
        total.add("site-0", factors(0, rank=4), 1)


def test_a_site_counts_once() -> None:
    total = LoraSum(LoraAggregation("fedavg"), start())
    total.add("site-0", factors(0), 1)
    with pytest.raises(LoraError, match="site-0: a second update"):
        total.add("site-0", factors(0), 1)


def test_nothing_to_aggregate() -> None:
    with pytest.raises(LoraError, match="keep the global model"):
        LoraSum(LoraAggregation("fedavg"), start()).finish()
    with pytest.raises(LoraError, match="expected the same sites"):
        aggregate(LoraAggregation("fedavg"), start(), {"a": factors(0)}, {"b": 1})


@pytest.mark.parametrize("mode", ALL)
def test_the_reference_must_be_the_modes(mode: ModeName) -> None:
    wrong = start() if mode in ONE_FACTOR else {n: t for n, t in start().items() if "lora_A" in n}
    with pytest.raises(LoraError, match=f"mode {mode} shares factors"):
        LoraSum(LoraAggregation(mode), wrong)
    with pytest.raises(LoraError, match="the global model has none"):
        LoraSum(LoraAggregation(mode), {})


def test_stack_needs_an_empty_start() -> None:
    with pytest.raises(LoraError, match="starts each round from B = 0"):
        LoraSum(LoraAggregation("stack"), factors(0))


def test_a_residual_that_does_not_belong() -> None:
    updates, examples = many("fedex", num_sites=2)
    residual = aggregate(LoraAggregation("fedex"), start(), updates, examples).residual
    for mode in ("fedavg", "svd"):
        with pytest.raises(LoraError, match=f"mode {mode} has no residual"):
            LoraSum(LoraAggregation(mode), start(), residual)
    with pytest.raises(LoraError, match="mode plora has no residual"):
        LoraSum(LoraAggregation("plora"), shared("plora", start()), residual)
    foreign = {n.replace("enc.q", "enc.k"): t for n, t in residual.items()}
    with pytest.raises(LoraError, match=r"without factors: \['enc.k'\]"):
        LoraSum(LoraAggregation("fedex"), start(), foreign)
    turned = {n: torch.ones(t.shape[0] + 1, t.shape[1]) for n, t in residual.items()}
    with pytest.raises(LoraError, match="ranks of"):
        LoraSum(LoraAggregation("fedex"), start(), turned)
    wide = {"base_model.model.enc.q.residual.weight": torch.ones(29, 23)}
    with pytest.raises(LoraError, match="29 x 23 cannot be added to a product of 23 x 29"):
        LoraSum(LoraAggregation("fedex"), start(), wide)
