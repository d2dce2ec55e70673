import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from vltune.config import to_mapping
from vltune_lab.report.schema import RoundSummary, RunSummary
from vltune_lab.report.summary import (
    SummaryError,
    fraction_or_none,
    load_summary,
    validate,
    worst_of,
    write_summary,
)

Content = dict[str, Any]


def test_it_reads_what_it_wrote(tmp_path: Path, summary: Content) -> None:
    path = write_summary(tmp_path, summary)
    assert path == tmp_path / "summary.json"
    loaded = load_summary(tmp_path)
    assert loaded == validate(summary)
    assert write_summary(tmp_path, loaded) == path
    assert load_summary(tmp_path) == loaded


def test_the_keys_that_other_tools_rely_on_stand_at_the_top(
    tmp_path: Path, summary: Content
) -> None:
    keys = list(json.loads(write_summary(tmp_path, validate(summary)).read_text()))
    assert keys[:11] == [
        "schema_version",
        "job",
        "method",
        "sites",
        "rounds",
        "seed",
        "zero_shot_mAP",
        "global_mAP",
        "worst_site_mAP",
        "bytes_up_per_site_per_round",
        "wall_seconds",
    ]


def test_every_key_of_the_schema_is_documented() -> None:
    text = Path("docs/run_folder.md").read_text(encoding="utf-8")
    for cls in (RunSummary, RoundSummary):
        for key in cls.__dataclass_fields__:
            assert f"`{key}`" in text, key


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("global_mAP", 58.3, "global_mAP is 58.3, expected a fraction in [0, 1]"),
        ("worst_site_mAP", -0.1, "worst_site_mAP is -0.1"),
        ("sites", "4", "sites: expected int, got '4'"),
        ("wall_seconds", -1.0, "wall_seconds is -1.0, expected a number >= 0"),
        ("thresholds", {"CF1": 50.0}, "thresholds.CF1 is 50.0"),
        ("per_site", {}, "per_site: expected a list"),
        ("global_test", None, "measured_on is global_test, but global_test is null"),
        ("colour", "red", "unknown key colour"),
    ],
)
def test_a_wrong_value_is_named(summary: Content, key: str, value: Any, message: str) -> None:
    with pytest.raises(SummaryError, match=re.escape(message)):
        validate(summary | {key: value}, "runs/x/summary.json")


def test_a_missing_key_is_named(summary: Content) -> None:
    del summary["seed"]
    with pytest.raises(SummaryError, match=r"runs/x/summary\.json: missing key seed"):
        validate(summary, "runs/x/summary.json")


def test_a_wrong_value_deep_inside_is_named_with_its_place(summary: Content) -> None:
    summary["per_round"][1]["mAP"] = 41.0
    with pytest.raises(SummaryError, match=r"per_round\[1\]: mAP is 41"):
        validate(summary)


def test_rounds_must_ascend_and_sites_must_differ(summary: Content) -> None:
    twice = summary | {"per_round": [*summary["per_round"], summary["per_round"][0]]}
    with pytest.raises(SummaryError, match="per_round: 0 stands behind 2"):
        validate(twice)
    with pytest.raises(SummaryError, match="per_site: 'site-1' stands behind 'site-1'"):
        validate(summary | {"per_site": [summary["per_site"][0]] * 2})


@pytest.mark.parametrize("version", [None, 2, "1"])
def test_another_schema_version_is_refused_before_anything_else(version: Any) -> None:
    with pytest.raises(SummaryError, match="this VLTune reads 1"):
        validate({"schema_version": version})


def test_a_run_without_a_global_test_set_is_valid(summary: Content) -> None:
    changed = summary | {"global_test": None, "measured_on": "site_histograms"}
    assert validate(changed).global_test is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "summary.json: not found. Give the folder of a finished run"),
        ("{", "is no valid JSON"),
        ('{"schema_version": NaN}', "NaN is no JSON number"),
        ("[]", "expected an object, got list"),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_the_cure(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(SummaryError, match=re.escape(message)) as caught:
        load_summary(tmp_path)
    assert str(tmp_path / "summary.json") in str(caught.value)


def test_infinity_in_the_configuration_becomes_text(tmp_path: Path, summary: Content) -> None:
    summary["config"]["model"]["transport"]["relaxation"] = math.inf
    write_summary(tmp_path, summary)
    assert load_summary(tmp_path).config["model"]["transport"]["relaxation"] == "inf"


def test_a_wrong_summary_leaves_the_old_file_alone(tmp_path: Path, summary: Content) -> None:
    path = write_summary(tmp_path, summary)
    before = path.read_bytes()
    with pytest.raises(SummaryError):
        write_summary(tmp_path, summary | {"global_mAP": 2.0})
    assert path.read_bytes() == before


def test_metrics_that_could_not_be_measured_become_null() -> None:
    assert fraction_or_none(float("nan")) is None
    assert fraction_or_none(0.25) == 0.25
    assert worst_of([0.5, None, 0.3]) == 0.3
    assert worst_of([None]) is None


def test_the_schema_turns_into_plain_json(summary: Content) -> None:
    plain = json.loads(json.dumps(to_mapping(validate(summary))))
    for entry in summary["per_round"]:
        entry.update(exactness_error=None, score=None, worst_site_score=None)
    for entry in summary["per_site"]:
        entry["metrics"] = {}
    assert plain == summary | {"extra": {}, "scores": None, "privacy": []}


def test_the_headline_of_another_metric(summary: Content) -> None:
    scores = {"metric": "accuracy", "zero_shot": 0.2, "overall": 0.6, "worst_site": 0.5}
    summary |= {"scores": scores, "zero_shot_mAP": None, "global_mAP": None}
    summary["per_round"][0].update(score=0.2, worst_site_score=0.1)
    summary["per_site"][0]["metrics"] = {"zero_shot_accuracy": 0.3, "accuracy": 0.7}
    read = validate(summary)
    assert read.headline.overall == 0.6
    assert read.round_scores(read.per_round[0]) == (0.2, 0.1)
    assert read.site_scores(read.per_site[0]) == (0.3, 0.7)
    assert read.site_scores(read.per_site[1]) == (None, None)


def test_the_headline_is_map_where_nothing_else_is_said(summary: Content) -> None:
    read = validate(summary)
    assert read.headline.metric == "mAP"
    assert read.headline.overall == read.global_mAP
    assert read.site_scores(read.per_site[0])[1] == read.per_site[0].mAP


def test_figures_beyond_one_are_refused(summary: Content) -> None:
    summary["per_site"][0]["metrics"] = {"accuracy": 70.0}
    with pytest.raises(SummaryError, match=r"metrics\.accuracy is 70"):
        validate(summary)
