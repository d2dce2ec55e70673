"""Hash and modules of a small package, changed in each way that a package can change."""

from pathlib import Path

import pytest

from vltune.code_identity import code_files, code_hash, describe_code


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "flare").mkdir()
    (tmp_path / "one.py").write_text("x = 1\n")
    (tmp_path / "flare" / "__init__.py").write_text("")
    return tmp_path


def test_hash_sees_names_and_content(package: Path) -> None:
    first = code_hash(package)
    (package / "notes.txt").write_text("no code")
    assert code_hash(package) == first
    (package / "one.py").rename(package / "two.py")
    renamed = code_hash(package)
    (package / "two.py").write_text("x = 2\n")
    assert len({first, renamed, code_hash(package)}) == 3


def test_modules_are_named_with_dots_and_no_slash(package: Path) -> None:
    assert list(code_files(package)) == ["flare.__init__", "one"]


def test_the_difference_names_what_the_job_knows_and_counts_the_rest(package: Path) -> None:
    job = code_files(package)
    assert describe_code(job, code_files(package)) == ""
    (package / "one.py").write_text("x = 2\n")
    (package / "flare" / "__init__.py").unlink()
    (package / "patient_4711.py").write_text("")
    text = describe_code(job, code_files(package))
    assert text == "one changed; flare.__init__ missing; 1 that the job does not know"
    assert describe_code({}, code_files(package)) == ""  # an older export said nothing


def test_many_modules_are_counted() -> None:
    job = {f"m{number}": "a" for number in range(5)}
    here = dict.fromkeys(job, "b")
    assert describe_code(job, here) == "m0, m1, m2 and 2 more changed"
