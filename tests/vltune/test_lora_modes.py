import pytest

from vltune.config import ConfigError, from_mapping
from vltune.lora_factors import LoraError, factor_name
from vltune.lora_modes import MODES, LoraAggregation
from vltune.parameters import Ownership

NAME_A, NAME_B = factor_name("m", "A"), factor_name("m", "B")
SPEC = {NAME_A: (2, 5), NAME_B: (7, 2)}
S, P, F = Ownership.SHARED, Ownership.PERSONAL, Ownership.FROZEN


@pytest.mark.parametrize(
    ("mode", "owners", "upload"),
    [
        ("fedavg", (S, S), 96),
        ("ffa", (F, S), 56),
        ("fedsa", (S, P), 40),
        ("plora", (P, S), 56),
        ("svd", (S, S), 96),
        ("fedex", (S, S), 96),
        ("stack", (S, S), 96),
        ("hetlora", (S, S), 96),
    ],
)
def test_who_sees_what_and_what_it_costs(
    mode: str, owners: tuple[Ownership, Ownership], upload: int
) -> None:
    """A has 2 * 5 numbers, B 7 * 2, of 4 bytes."""
    description = MODES[mode]  # type: ignore[index] # one of the names
    assert description.ownership(SPEC) == dict(zip((NAME_A, NAME_B), owners, strict=True))
    assert description.upload_bytes(SPEC) == upload
    shared = tuple(n for n, o in zip((NAME_A, NAME_B), owners, strict=True) if o is S)
    assert description.shared_names(SPEC) == shared
    assert not description.shared & description.personal
    assert description.shared | description.personal | description.frozen == {"A", "B"}


def test_linear_modes_and_no_others() -> None:
    linear = {mode for mode in MODES if LoraAggregation(mode).is_linear}
    assert linear == {"fedavg", "ffa", "fedsa", "plora"}
    for mode in linear:
        LoraAggregation(mode).require_linear("homomorphic encryption")


@pytest.mark.parametrize("mode", ["svd", "fedex", "stack", "hetlora"])
def test_other_modes_are_refused_with_a_reason(mode: str) -> None:
    settings = from_mapping(LoraAggregation, {"mode": mode}, "job.yaml")
    with pytest.raises(LoraError, match=f"mode '{mode}' cannot work under secure aggregation: ."):
        settings.require_linear("secure aggregation")


def test_hetlora_is_linear_without_norms() -> None:
    LoraAggregation("hetlora", hetlora_weight_by="weight_by").require_linear("HE")


def test_measured_where_the_server_sees_both() -> None:
    assert {mode for mode in MODES if not MODES[mode].is_measured} == {"fedsa", "plora"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "fedprox"}, "mode: expected one of fedavg, ffa"),
        ({"weight_by": "steps"}, "weight_by: expected one of"),
        ({"max_residual_rank": 0}, "max_residual_rank must be >= 1 or null, got 0"),
        ({"rank": 3}, "unknown key rank"),
    ],
)
def test_bad_configuration(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(LoraAggregation, {"mode": "fedex", **change}, "job.yaml")


@pytest.mark.parametrize(
    "change",
    [{"mode": "x"}, {"weight_by": "x"}, {"hetlora_weight_by": "x"}],
)
def test_bad_arguments(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="'x'"):
        LoraAggregation(**change)  # type: ignore[arg-type] # that is the point
