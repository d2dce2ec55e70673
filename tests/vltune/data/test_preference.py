"""Preference pairs from JSON lines and Parquet, with every way a site's files can be wrong."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from answer_files import pair, picture, write_images, write_lines

from vltune.data.image_sources import read_source
from vltune.data.image_text import Record
from vltune.data.images import ImageError
from vltune.data.parquet import ParquetError
from vltune.data.preference import load_preference
from vltune.data.rows import RecordError

RLAIF_V = {
    "ds_name": "d",
    "origin_dataset": "o",
    "origin_split": "{}",
    "idx": "3",
    "image_path": "",
}


def test_pairs_of_one_image_share_it(tmp_path: Path) -> None:
    """Images 2, 0, 2 again; a copy of image 0 under another name is image 0."""
    write_images(tmp_path, 3)
    (tmp_path / "images" / "copy.png").write_bytes(picture(0))
    path = write_lines(
        tmp_path / "train.jsonl",
        [
            pair(2, **RLAIF_V),
            pair(0),
            "",
            pair(2, question="  colour? ", chosen="Zu\u0308rich blue\n"),
            pair(1, image="images/copy.png", question="which?"),
        ],
    )
    samples = load_preference([path])
    assert samples.records == (
        Record(0, "how many dogs?", ("2 dogs",), "no dogs"),
        Record(1, "how many dogs?", ("0 dogs",), "no dogs"),
        Record(0, "colour?", ("Zürich blue",), "no dogs"),
        Record(1, "which?", ("1 dogs",), "no dogs"),
    )
    assert len(samples.images) == len(set(samples.digests)) == 2
    assert read_source(samples.images[0]).size == (7, 5)
    assert (samples.num_skipped, samples.num_skipped_records, samples.num_duplicates) == (0, 0, 0)


def test_the_same_record_twice_counts_once(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    again = pair(0, question=" how many dogs? ", idx="7")
    path = write_lines(tmp_path / "a.jsonl", [pair(0), again, pair(0, rejected="one dog")])
    samples = load_preference([path])
    assert [record.rejected for record in samples.records] == ["no dogs", "one dog"]
    assert samples.num_duplicates == 1


WRONG_LINES: dict[str, tuple[Any, str]] = {
    "cut off": ('{"image": "images/0.png", "question', r"not JSON \(Invalid control"),
    "nested beyond reason": ("[" * 200_000, r"not JSON \(RecursionError"),
    "a list": ([1], "expected an object, got a list"),
    "a key twice": ('{"question": "a", "question": "b"}', "a key is there twice"),
    "NaN": ('{"image": "images/0.png", "question": NaN}', "NaN is no value"),
    "no image": (pair(0, image=None), "key 'image' is missing"),
    "no rejected": (pair(0, rejected=None), "missing 'rejected'.*data: captions"),
    "other schema": (
        {"image": "images/0.png", "prompt": "a", "answer": "b"},
        "missing 'chosen',",
    ),
    "unknown key": (pair(0, label=3), "unknown key 'label'; known: image, question"),
    "content as key": (pair(0, **{"Mr Smith has": 1}), "unknown key 1 that are no names;"),
    "empty text": (pair(0, chosen=" \n"), "'chosen' is empty"),
    "number": (pair(0, question=4), "'question' is int; expected text"),
    "list for text": (pair(0, rejected=["a"]), "'rejected' is list; expected text"),
    "null": (json.dumps(pair(0) | {"chosen": None}), "'chosen' is NoneType; expected text"),
    "half a surrogate pair": (
        json.dumps(pair(0)).replace("0 dogs", "\\ud800"),
        "'chosen' is no valid Unicode",
    ),
    "the same answers": (pair(0, rejected="0 dogs "), "'chosen' and 'rejected' are the same"),
    "image is a number": (pair(0, image=4), "'image' is int; expected a path"),
}


@pytest.mark.parametrize("case", WRONG_LINES)
def test_wrong_lines_are_named_by_number(case: str, tmp_path: Path) -> None:
    line, message = WRONG_LINES[case]
    write_images(tmp_path, 2)
    path = write_lines(tmp_path / "train.jsonl", [pair(1), line])
    with pytest.raises(RecordError, match=message) as caught:
        load_preference([path])
    assert str(caught.value).startswith(f"{path}: line 2: ")
    assert "Smith" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../0.png", "a/../../0.png", "/etc/0.png", "C:\\0.png", "..\\0.png", "", ".", "a\0b"],
)
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_an_image_outside_the_folder_is_refused(name: str, policy: Any, tmp_path: Path) -> None:
    """And not named: the message may leave the site."""
    write_images(tmp_path, 1)
    path = write_lines(tmp_path / "train.jsonl", [pair(0), pair(0, image=name)])
    with pytest.raises(RecordError, match="line 2: 'image' does not stay inside") as caught:
        load_preference([path], on_bad_image=policy)
    assert not name.strip("./") or name not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.jsonl: no such data file.*vltune_site"):
        load_preference([tmp_path / "none.jsonl"])
    with pytest.raises(RecordError, match=r"ends in \.jsonl or \.parquet"):
        load_preference([tmp_path / "train.json"])
    (tmp_path / "empty.jsonl").write_text("\n  \n")
    with pytest.raises(RecordError, match=r"empty\.jsonl: has no rows"):
        load_preference([tmp_path / "empty.jsonl"])
    (tmp_path / "latin.jsonl").write_bytes(b"{}\n\xff\n")
    with pytest.raises(RecordError, match=r"line 1: key 'image'"):
        load_preference([tmp_path / "latin.jsonl"])
    (tmp_path / "latin.jsonl").write_bytes(b"\n\xff\n")
    with pytest.raises(RecordError, match=r"line 2: not UTF-8"):
        load_preference([tmp_path / "latin.jsonl"])


def test_a_byte_order_mark_and_line_separators_inside_text(tmp_path: Path) -> None:
    """U+2028 ends no line of this format, though str.splitlines thinks so."""
    write_images(tmp_path, 1)
    text = json.dumps(pair(0, chosen="one\u2028two"), ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    assert load_preference([tmp_path / "a.jsonl"]).records[0].answers == ("one\u2028two",)


def damaged(tmp_path: Path) -> Path:
    """Ten images; 3 is missing, 4 is no image; two records each."""
    write_images(tmp_path, 10)
    (tmp_path / "images" / "3.png").unlink()
    (tmp_path / "images" / "4.png").write_bytes(b"no image")
    rows = [pair(i, question=q) for q in ("how many?", "which?") for i in range(10)]
    return write_lines(tmp_path / "train.jsonl", rows)


def test_bad_images_stop_or_are_skipped_and_counted(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    with pytest.raises(ImageError, match="2 of 10 images cannot be used") as caught:
        load_preference([path])
    message = str(caught.value)
    assert "line 4: no such image file" in message
    assert "line 5: cannot be read as an image" in message
    assert "on_bad_image: skip" in message
    assert ".png" not in message
    samples = load_preference([path], on_bad_image="skip", max_skipped_share=0.2)
    assert (len(samples.images), len(samples.records)) == (8, 16)
    assert (samples.num_skipped, samples.num_skipped_records) == (2, 4)
    with pytest.raises(ImageError, match=r"2 of 10 .* more than the share of 0\.1 that may"):
        load_preference([path], on_bad_image="skip")


def test_no_readable_image_is_an_error_even_when_all_may_be_skipped(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [pair(0)])
    with pytest.raises(RecordError, match="no record is left"):
        load_preference([path], on_bad_image="skip", max_skipped_share=1.0)


def test_images_that_were_read_before_are_not_decoded_again_but_must_exist(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    samples = load_preference([path], on_bad_image="skip", already_read=lambda digest: True)
    assert (len(samples.images), samples.num_skipped) == (9, 1)


def test_logs_hold_counts_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = damaged(tmp_path)
    with caplog.at_level("DEBUG"):
        load_preference([path], on_bad_image="skip", max_skipped_share=0.5)
    ours = [record.getMessage() for record in caplog.records if "vltune" in record.name]
    assert ours == ["16 records of 8 images, 2 images skipped, 0 records twice"]


# Parquet


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 1000) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def cells(number: int) -> dict[str, Any]:
    return {"image": {"bytes": picture(number), "path": f"{number}.png"}}


def test_parquet_of_the_hub_equals_json_lines(tmp_path: Path) -> None:
    """Bytes in a struct, bare bytes and paths: the same records, images and digests."""
    write_images(tmp_path, 90)
    numbers = [*range(90), *range(40)]
    rows = [pair(n, question=f"{i}?", **RLAIF_V) for i, n in enumerate(numbers)]
    lines = load_preference([write_lines(tmp_path / "a.jsonl", rows)])
    variants = {
        "struct": [row | cells(n) for row, n in zip(rows, numbers, strict=True)],
        "bytes": [row | {"image": picture(n)} for row, n in zip(rows, numbers, strict=True)],
        "path": rows,
        "struct of path": [row | {"image": {"bytes": None, "path": row["image"]}} for row in rows],
    }
    for name, variant in variants.items():
        table = load_preference([write_parquet(tmp_path / f"{name}.parquet", variant, group=50)])
        assert table.records == lines.records, name
        assert table.digests == lines.digests, name
        for index in (89, 0, 55, 33, 34, 88, 2):
            assert (
                read_source(table.images[index]).tobytes()
                == read_source(lines.images[index]).tobytes()
            )


WRONG_TABLES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no rows": ([], "column 'image' is missing"),
    "no image": ([{"question": "a"}], "column 'image' is missing; it has 'question'"),
    "null image": (
        [pair(0) | cells(0), pair(1) | {"image": None}],
        "row 2: key 'image' is missing",
    ),
    "image is a number": ([pair(0, image=4)], "row 1: 'image' is int"),
    "null text": (
        [pair(0) | cells(0) | {"chosen": None}, pair(1) | cells(1)],
        "row 1: 'chosen' is N",
    ),
    "NaN": ([pair(0, chosen=float("nan")) | cells(0)], "row 1: 'chosen' is NaN"),
    "missing column": ([pair(0, rejected=None) | cells(0)], "row 1: missing 'rejected'"),
    "other struct": ([pair(0, image={"url": "a"})], "row 1: 'image' has other fields"),
    "outside": ([pair(0, image={"bytes": None, "path": "../a"})], "row 1: 'image' does not stay"),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_wrong_tables(case: str, tmp_path: Path) -> None:
    rows, message = WRONG_TABLES[case]
    path = write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(RecordError, match=message) as caught:
        load_preference([path])
    assert str(path) in str(caught.value)


def test_a_table_without_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = ("image", "question", "chosen", "rejected")
    pq.write_table(
        pa.table({name: pa.array([], pa.string()) for name in columns}), tmp_path / "a.parquet"
    )
    with pytest.raises(RecordError, match="has no rows"):
        load_preference([tmp_path / "a.parquet"])


def test_bad_bytes_are_bad_images(tmp_path: Path) -> None:
    rows = [pair(i, question=f"{i}") | cells(i) for i in range(20)]
    rows[3]["image"]["bytes"] = b"no image"
    rows[4]["image"]["bytes"] = b""
    path = write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(ImageError, match=r"2 of 20 (?s:.*)row 4: cannot be read as an image"):
        load_preference([path])
    samples = load_preference([path], on_bad_image="skip")
    assert (len(samples.images), samples.num_skipped) == (18, 2)


def test_a_cut_off_or_damaged_table(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [pair(i) | cells(i) for i in range(50)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ParquetError, match=r"a\.parquet: cannot be read as Parquet"):
        load_preference([path])
    broken = bytearray(whole)
    broken[4:2000] = bytes(1996)
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"a\.parquet: damaged"):
        load_preference([path])


def test_without_pyarrow_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ParquetError, match=r"needs pyarrow.*pip install vltune\[parquet\]"):
        load_preference([tmp_path / "a.parquet"])
