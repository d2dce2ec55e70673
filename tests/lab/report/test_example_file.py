import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from vltune_lab.report.example_file import (
    Example,
    ExamplesError,
    Prediction,
    RegionMap,
    encode_png,
    load_examples,
    save_examples,
)
from vltune_lab.report.html import build_report


def example(name: str = "cat") -> Example:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    return Example(
        index=3,
        image_png=encode_png(buffer.getvalue()),
        gate=(0.75, 0.25),
        predictions=(Prediction(name, 0.8, 1), Prediction("dog", 0.3, -1)),
        maps=(RegionMap(name, ((0.5, 0.5), (0.0, 0.0))),),
    )


def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    save_examples(tmp_path, 7, ["pose", "colour"], [example()])
    loaded = load_examples(tmp_path)
    assert loaded is not None
    assert loaded.examples == (example(),)
    assert loaded.conditions == ("pose", "colour")


def test_a_run_without_examples_has_none(tmp_path: Path) -> None:
    assert load_examples(tmp_path) is None


def test_the_report_shows_image_maps_scores_and_gate(run_folder: Path) -> None:
    save_examples(run_folder, 7, ["<b>pose", "colour"], [example("<i>cat")])
    text = build_report(run_folder).read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 2  # the image and one map
    assert "&lt;b&gt;pose" in text
    assert "<i>" not in text
    assert "peak 2.0" in text  # 0.5 of four patches
    assert "unknown" in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"gate": [', '"gate": [0.1, ', "3 gate weights for 2 conditions"),
        ('"schema_version": 1', '"schema_version": 2', "schema_version is 2"),
        ('"image_png": "', '"image_png": "javascript:', "image_png is no base64"),
        ('"image_png": "', '"image_png": "AAAA', "image_png is no PNG"),
        ("0.5,", "1.5,", "expected shares in [0, 1]"),
        ('"index"', '"place"', "unknown key place"),
    ],
)
def test_a_damaged_file_is_named_with_the_cure(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = save_examples(tmp_path, 7, ["pose", "colour"], [example()])
    text = json.dumps(json.loads(path.read_text()))
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ExamplesError, match=re.escape(message)) as caught:
        load_examples(tmp_path)
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_rows_of_a_map_are_equally_long() -> None:
    with pytest.raises(ValueError, match="rows of equal length"):
        RegionMap("cat", ((0.5, 0.5), (0.0,)))
    with pytest.raises(ValueError, match="rows of equal length"):
        RegionMap("cat", ())
