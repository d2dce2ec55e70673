"""One table: in code, in the documentation, and where it is asked."""

import re
from pathlib import Path
from typing import Any

import pytest

from vltune.compatibility import (
    DESCRIPTIONS,
    EXCLUSIONS,
    Feature,
    as_table,
    check_features,
    check_job,
    conflicts,
    feature_of_filter,
    features_of,
)
from vltune.config import ConfigError
from vltune.lora_modes import MODES, LoraAggregation
from vltune.privacy import PrivacyConfig
from vltune.robust_aggregation import RobustAggregation

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
KRUM = RobustAggregation(rule="krum", num_malicious=1)
MEDIAN = RobustAggregation(rule="median")


def test_the_documentation_shows_the_table_of_the_code() -> None:
    assert DOCUMENT.read_text(encoding="utf-8").endswith("\n\n" + as_table())


def test_each_pair_stands_once_and_each_feature_is_described() -> None:
    pairs = [frozenset({line.first, line.second}) for line in EXCLUSIONS]
    assert len(set(pairs)) == len(pairs)
    assert all(len(pair) == 2 for pair in pairs)
    assert set(DESCRIPTIONS) == set(Feature)
    assert set().union(*pairs) == set(Feature)


@pytest.mark.parametrize("line", EXCLUSIONS, ids=lambda line: f"{line.first}-{line.second}")
def test_every_line_is_enforced_with_reason_and_cure(line: Any) -> None:
    assert conflicts([line.second, line.first]) == (line,)
    with pytest.raises(ConfigError, match=f"the job: {re.escape(line.first)} excludes") as caught:
        check_features({line.first, line.second}, "the job")
    assert line.reason in str(caught.value)
    assert line.cure in str(caught.value)
    check_features({line.first}, "the job")


def test_what_a_job_switches_on() -> None:
    always = {Feature.UPDATE_CHECKS}
    assert features_of(None, RobustAggregation()) == always
    assert features_of(None, KRUM) == always | {Feature.ROBUST}
    assert features_of(None, MEDIAN) == always | {Feature.ROBUST, Feature.BY_COORDINATE}
    linear = LoraAggregation(mode="hetlora", hetlora_weight_by="weight_by")
    lora = always | {Feature.LORA}
    assert features_of(linear, RobustAggregation()) == lora | {Feature.HETLORA}
    for level, feature in (("site", Feature.SITE_PRIVACY), ("record", Feature.RECORD_PRIVACY)):
        privacy = PrivacyConfig(level, 1.0, 1.0, 1e-5)
        assert features_of(None, RobustAggregation(), privacy) == always | {feature}


@pytest.mark.parametrize("mode", list(MODES))
def test_which_modes_go_with_which_rules(mode: Any) -> None:
    aggregation = LoraAggregation(mode=mode)
    krum = bool(conflicts(features_of(aggregation, KRUM)))
    median = bool(conflicts(features_of(aggregation, MEDIAN)))
    assert krum == (mode == "hetlora")
    assert median == (mode in ("svd", "fedex", "stack", "hetlora"))
    assert not conflicts(features_of(aggregation, RobustAggregation()))


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("CKKS", Feature.ENCRYPTION),
        ("blockwise8", Feature.QUANTIZATION),
        ("float16", Feature.QUANTIZATION),
        ("other", None),
    ],
)
def test_flares_filters_are_known_by_their_names(name: str, feature: Feature | None) -> None:
    assert feature_of_filter(name) == feature
    if feature is not None:  # whatever the job, this server checks what it adds
        assert conflicts({Feature.UPDATE_CHECKS, feature})


def test_the_names_are_those_of_flare() -> None:
    constants = pytest.importorskip("nvflare.app_opt.pt.quantization.constant")
    for name in constants.QUANTIZATION_TYPE:
        assert feature_of_filter(name) == Feature.QUANTIZATION


def test_a_job_is_refused_with_its_name() -> None:
    good = {"federation": {"rounds": 1}, "aggregation": {"mode": "svd"}}
    check_job(good, "x.yaml")
    bad = good | {"federation": {"rounds": 1, "robust": {"rule": "median"}}}
    with pytest.raises(ConfigError, match=r"x.yaml: median, trimmed_mean excludes LoRA modes"):
        check_job(bad, "x.yaml")
    wrong = {"federation": {"robust": {"rule": "krum"}}}
    with pytest.raises(ConfigError, match=r"x.yaml: federation.robust: rule krum needs"):
        check_job(wrong, "x.yaml")
