import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vltune.conditions import ConditionError, condition_cache_mapping
from vltune.config import ConfigError
from vltune_lab.jobs.resolve import JobKind, json_able, resolve_job

BASE = {
    "name": "toy",
    "method": "some.module.build_participant",
    "seed": 5,
    "federation": {"rounds": 3},
}
CACHE = condition_cache_mapping(
    "two",
    ["cat", "traffic light"],
    [("colour", "what colours"), ("size", "how large")],
    {"method": "by hand", "date": "2026-01-01"},
)


def write(folder: Path, **changes: Any) -> JobKind:
    path = folder / "jobs" / "toy" / "toy.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return JobKind("Toy", path)


def test_the_job_names_method_and_builder(tmp_path: Path) -> None:
    job = resolve_job(write(tmp_path), ["federation.rounds=7", "seed=11"], name="mine")
    assert job == {
        "name": "mine",
        "method": "Toy",
        "participant": "some.module.build_participant",
        "seed": 11,
        "federation": {"rounds": 7},
    }


def test_the_class_list_comes_with_the_condition_cache(tmp_path: Path) -> None:
    """The path is found upwards from the YAML, whatever the working folder is."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "two.json").write_text(json.dumps(CACHE))
    job = resolve_job(write(tmp_path, conditions="cache/two.json"))
    assert job["classnames"] == ["cat", "traffic light"]
    assert job["conditions"] == CACHE


def test_another_class_list_than_the_caches_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text(json.dumps(CACHE))
    kind = write(tmp_path, conditions="two.json", classnames=["cat", "dog"])
    with pytest.raises(ConditionError):
        resolve_job(kind)


def test_local_weights_become_absolute_and_tags_stay(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    backbone = {"model": "tiny", "weights": "weights"}
    job = resolve_job(write(tmp_path, backbone=backbone))
    assert job["backbone"]["weights"] == str(tmp_path / "weights")
    job = resolve_job(write(tmp_path, backbone=backbone), ["backbone.weights=openai"])
    assert job["backbone"]["weights"] == "openai"


def test_infinity_travels_as_text(tmp_path: Path) -> None:
    job = resolve_job(write(tmp_path, model={"relaxation": float("inf")}))
    assert json.loads(json.dumps(job, allow_nan=False))["model"] == {"relaxation": "inf"}
    assert json_able({"a": (1, Path("b"), -float("inf"))}) == {"a": [1, "b", "-inf"]}


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({}, ["federation.quorum=3"], "federation: unknown key quorum"),
        ({}, ["rounds"], "expected key=value"),
        ({}, ["federation.rounds=many"], "federation: rounds: expected int"),
        ({"conditions": "no/such.json"}, [], "no/such.json: no such file"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, changes: dict[str, Any], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_job(write(tmp_path, **changes), overrides)


@pytest.mark.parametrize("key", ["name", "method", "seed", "federation"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    kind = write(tmp_path)
    content = {name: value for name, value in BASE.items() if name != key}
    kind.yaml.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=f"missing key {key}"):
        resolve_job(kind)


def test_the_methods_own_check_sees_the_resolved_job(tmp_path: Path) -> None:
    def check(job: dict[str, Any]) -> None:
        raise ConfigError(f"seed {job['seed']} is unlucky")

    kind = JobKind("Toy", write(tmp_path).yaml, check=check)
    with pytest.raises(ConfigError, match="seed 13 is unlucky"):
        resolve_job(kind, ["seed=13"])


def test_what_does_not_go_together_ends_before_anything_starts(tmp_path: Path) -> None:
    kind = write(tmp_path, aggregation={"mode": "fedavg"})
    rule = ["federation.min_sites=3", "federation.robust.rule=median"]
    assert resolve_job(kind, rule)["federation"]["robust"] == {"rule": "median"}
    with pytest.raises(ConfigError, match=r"toy\.yaml: median, trimmed_mean excludes LoRA modes"):
        resolve_job(kind, [*rule, "aggregation.mode=stack"])
    with pytest.raises(ConfigError, match=r"min_sites is 1, but robust\.rule median needs 3"):
        resolve_job(kind, rule[1:])
