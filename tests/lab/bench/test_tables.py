from pathlib import Path
from typing import Any

import pytest

from vltune_lab.bench.results import ResultError, write_results
from vltune_lab.bench.tables import TableError, check, rewrite, table_of

Content = dict[str, Any]

README = """# Title
<!-- table:demo -->
old
<!-- /table -->
between
<!-- table:speed -->
<!-- /table -->
end
"""


@pytest.fixture
def readme(tmp_path: Path, protocol: Content, speed: Content) -> Path:
    write_results(tmp_path / "results" / "demo.json", protocol)
    write_results(tmp_path / "results" / "speed.json", speed)
    path = tmp_path / "README.md"
    path.write_text(README)
    return path


def test_a_protocol_table_shows_mean_and_deviation(protocol: Content) -> None:
    # mAP 50 and 54: mean 52, deviation sqrt(2 * 2^2 / 1) = 2.83; spurious 0.25 and -0.05:
    # mean 0.10, deviation sqrt(2 * 0.15^2) = 0.21.
    assert table_of(protocol).splitlines() == [
        "| method | mAP | spurious activation, sd | kB up per site and round | seeds |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| zero-shot | 40.0 | not measured | not measured | 1 |",
        "| FedMPT | 52.0 ± 2.8 | 0.10 ± 0.21 | 512.0 ± 0.0 | 2 |",
        "",
        "`vltune bench demo` at 0123456789, a processor, 2 cores.",
    ]


def test_several_settings_get_a_column(protocol: Content) -> None:
    protocol["rows"][0]["setting"] = "8 sites"
    assert table_of(protocol).startswith("| method | setting | mAP |")


def test_fedvlm_has_a_line_a_method_and_a_column_a_setting(protocol: Content) -> None:
    """Exact match 30 and 34 % in one setting: mean 32, deviation 2.8; the other was not run."""
    source = {key: value for key, value in protocol.items() if key not in ("protocol", "rows")}
    rows = [
        {"method": "pLoRA", "setting": "own words", "seed": 1, "accuracy": 0.30, "worst_site": 0.2},
        {"method": "pLoRA", "setting": "own words", "seed": 2, "accuracy": 0.34, "worst_site": 0.2},
        {"method": "local", "setting": "IID", "seed": 1, "accuracy": 0.5, "worst_site": 0.4},
    ]
    lines = table_of(source | {"protocol": "fedvlm", "rows": rows}).splitlines()
    assert lines[0] == (
        "| exact match | own words | IID | own words, worst site | kB up per site and round |"
    )
    assert lines[2] == "| pLoRA | 32.0 ± 2.8 | not measured | 20.0 ± 0.0 | not measured |"
    assert lines[3] == "| local | not measured | 50.0 | not measured | not measured |"


def test_a_speed_table_shows_the_ratio_and_the_error(speed: Content) -> None:
    lines = table_of(speed | {"commit": "0123456789abc+changes"}).splitlines()
    assert lines[2] == "| text \\| prompts | 1480 ms | 67.1 ms | 22.1 | 3e-06 |"
    assert "at 0123456789 with changes" in lines[-1]


def test_tables_are_rewritten_once_and_nothing_else(readme: Path) -> None:
    folder = readme.parent / "results"
    with pytest.raises(TableError, match=r"table demo, speed differs .* Run `make tables`"):
        check(readme, folder)
    assert rewrite(readme, folder) == ["demo", "speed"]
    text = readme.read_text()
    assert text.startswith("# Title\n<!-- table:demo -->\n| method |")
    assert "<!-- /table -->\nbetween\n<!-- table:speed -->\n| step |" in text
    assert text.endswith("<!-- /table -->\nend\n")
    check(readme, folder)
    assert rewrite(readme, folder) == []
    assert readme.read_text() == text


def test_a_changed_number_is_found(readme: Path, protocol: Content) -> None:
    folder = readme.parent / "results"
    rewrite(readme, folder)
    protocol["rows"][1]["mAP"] = 0.51
    write_results(folder / "demo.json", protocol)
    with pytest.raises(TableError, match="table demo differs"):
        check(readme, folder)


def test_a_readme_without_tables_is_in_order(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Title\n")
    check(tmp_path / "README.md", tmp_path)


def test_a_missing_result_file_is_named(readme: Path) -> None:
    (readme.parent / "results" / "speed.json").unlink()
    with pytest.raises(ResultError, match="Measure it with `vltune bench speed`"):
        check(readme, readme.parent / "results")


@pytest.mark.parametrize("text", ["<!-- table:x -->\n", "<!-- /table -->\n"])
def test_a_marker_without_counterpart_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(TableError, match="has no counterpart"):
        check(tmp_path / "README.md", tmp_path)


def test_a_missing_readme_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"README\.md: cannot be read"):
        check(tmp_path / "README.md", tmp_path)
