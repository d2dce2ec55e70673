import json
import re
from pathlib import Path
from typing import Any

import pytest

from vltune_lab.bench.provenance import provenance
from vltune_lab.bench.results import (
    ResultError,
    group_rows,
    load_results,
    spread,
    spread_of,
    validate_results,
    write_results,
)

Content = dict[str, Any]


def test_both_sorts_are_read_as_they_were_written(
    tmp_path: Path, protocol: Content, speed: Content
) -> None:
    for content in (protocol, speed):
        path = write_results(tmp_path / "results" / "x.json", content)
        assert load_results(path) == content


def test_mean_and_spread() -> None:
    # 2, 4, 9: mean 5, squared distances 9 + 1 + 16 = 26, sample variance 26 / 2 = 13.
    found = spread([2, 4, 9])
    assert found == (5.0, pytest.approx(13**0.5), 2.0, 9.0, 3)
    assert spread([0.3]) == (0.3, 0.0, 0.3, 0.3, 1)
    with pytest.raises(ResultError, match="no values"):
        spread([])


def test_rows_are_grouped_in_their_order_and_gaps_left_out(protocol: Content) -> None:
    groups = group_rows(protocol["rows"], ["method"])
    assert list(groups) == [("zero-shot",), ("FedMPT",)]
    assert spread_of(groups["FedMPT",], "mAP") == spread([0.50, 0.54])
    assert spread_of(groups["zero-shot",], "spurious_activation") is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mAP", 50.0, "rows[1]: mAP is 50.0, expected a fraction in [0, 1]"),
        ("mAP", "0.5", "mAP is '0.5', expected a number"),
        ("bytes_up", -1, "bytes_up is -1, expected a number >= 0"),
        ("seconds", float("nan"), "seconds is nan; null means not measured"),
        ("seed", 1.5, "seed is 1.5, expected int"),
        ("extra", [1], "extra is [1], expected a number or text"),
    ],
)
def test_a_wrong_value_is_named(protocol: Content, key: str, value: Any, message: str) -> None:
    protocol["rows"][1][key] = value
    with pytest.raises(ResultError, match=re.escape(message)):
        validate_results(protocol)


def test_a_missing_key_is_named(protocol: Content, speed: Content) -> None:
    del speed["rows"][0]["max_abs_error"]
    with pytest.raises(ResultError, match=r"rows\[0\]: missing key max_abs_error"):
        validate_results(speed)
    del protocol["commit"]
    with pytest.raises(ResultError, match="missing key commit"):
        validate_results(protocol)


def test_a_file_is_of_one_sort_and_has_rows(protocol: Content) -> None:
    with pytest.raises(ResultError, match="one of the keys protocol and benchmark"):
        validate_results(protocol | {"benchmark": "speed"})
    with pytest.raises(ResultError, match="at least one row"):
        validate_results(protocol | {"rows": []})
    with pytest.raises(ResultError, match="unknown key colour"):
        validate_results(protocol | {"colour": "red"})


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="Measure it with `vltune bench speed`"):
        load_results(tmp_path / "speed.json")
    (tmp_path / "speed.json").write_text("{")
    with pytest.raises(ResultError, match="cannot be read"):
        load_results(tmp_path / "speed.json")
    (tmp_path / "speed.json").write_text("[]")
    with pytest.raises(ResultError, match="expected an object, got list"):
        load_results(tmp_path / "speed.json")


def test_a_wrong_result_leaves_the_old_file_alone(tmp_path: Path, protocol: Content) -> None:
    path = write_results(tmp_path / "x.json", protocol)
    with pytest.raises(ResultError):
        write_results(path, protocol | {"rows": []})
    assert json.loads(path.read_text()) == protocol


def test_provenance_fits_a_result_file(protocol: Content) -> None:
    found = provenance("vltune bench speed")
    assert found["command"] == "vltune bench speed"
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", found["commit"])
    assert "core" in found["hardware"]
    validate_results(protocol | found)
