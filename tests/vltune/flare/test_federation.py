import pytest

from vltune.config import ConfigError, from_mapping
from vltune.flare.federation import FederationConfig, sites_of_round

SITES = ["c", "a", "b", "e", "d"]


def test_everybody_takes_part_unless_participation_says_otherwise() -> None:
    assert sites_of_round(SITES, FederationConfig(rounds=1), 34, 0) == ["a", "b", "c", "d", "e"]


def test_a_share_of_the_sites_is_drawn_from_the_seed_of_run_and_round() -> None:
    """ceil(0.5 * 5) = 3 sites."""
    config = FederationConfig(rounds=9, participation=0.5)
    drawn = [sites_of_round(SITES, config, 34, number) for number in range(9)]
    assert {len(sites) for sites in drawn} == {3}
    assert drawn == [sites_of_round(sorted(SITES), config, 34, number) for number in range(9)]
    assert len({tuple(sites) for sites in drawn}) > 1
    assert set().union(*drawn) == set(SITES)


def test_a_share_never_falls_below_the_quorum() -> None:
    config = FederationConfig(rounds=1, participation=0.1, min_sites=4)
    assert len(sites_of_round(SITES, config, 34, 0)) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"min_sites": 0},
        {"round_timeout_seconds": 0},
        {"max_update_norm": float("inf")},
        {"participation": 0.0},
        {"participation": 1.5},
        {"weight_by": "luck"},
        {"quorum": 3},
        {"robust": {"rule": "krum"}},
        {"robust": {"rule": "krum", "num_malicious": 1}, "min_sites": 4},
        {"robust": {"rule": "median"}, "min_sites": 2},
        {
            "robust": {"rule": "median", "weighted": True},
            "min_sites": 3,
            "weight_by": "uniform",
        },
    ],
)
def test_a_wrong_value_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="federation"):
        from_mapping(FederationConfig, {"rounds": 2, **changes}, "federation")
