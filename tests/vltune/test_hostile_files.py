"""Damaged and malicious files: the right reading, or an error of ours that names file and cure."""

import random
import resource
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from hostile_files import NAMES, lay_out, outcome, readers
from spoiled_bytes import bombs, mutated

GROWTH_BYTES = 400_000_000
FOUND = Path(__file__).parent / "fuzz_corpus"
"""Inputs that a fuzzer found, by the file that they are; each did harm once."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two pictures; files under test lie there."""
    folder = tmp_path / "site" / "run"
    lay_out(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_unchanged_file_is_read(name: str, place: Path) -> None:
    reader = readers(place)[name]
    assert outcome(reader, place / reader.name, reader.content) == ""


@pytest.mark.parametrize("name", NAMES)
def test_files_made_to_hurt(name: str, place: Path) -> None:
    canary = place / "canary"
    reader = readers(place)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb, content in bombs(canary).items():
        try:
            outcome(reader, place / reader.name, content)
        except Exception as error:
            raise AssertionError(f"{bomb}: {error!r:.300}") from error
        assert not canary.exists(), bomb
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < GROWTH_BYTES


def damage(name: str, place: Path, count: int) -> None:
    reader = readers(place)[name]
    dice = random.Random(f"{name} 34")
    refused = 0
    for number in range(count):
        content = mutated(reader.content, dice)
        try:
            refused += bool(outcome(reader, place / reader.name, content))
        except Exception as error:
            raise AssertionError(f"number {number} ({content[:300]!r}): {error!r:.500}") from error
    assert refused > count // 10
    assert not (place / "canary").exists()


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(name: str, place: Path) -> None:
    damage(name, place, 150)


@pytest.mark.faults
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files(name: str, place: Path) -> None:
    damage(name, place, 10_000)


def found_inputs() -> list[Path]:
    return sorted(path for path in FOUND.glob("*/*") if path.is_file())


@pytest.mark.parametrize(
    "found", found_inputs(), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_what_fuzzing_found_stays_mended(found: Path, place: Path) -> None:
    reader = readers(place)[found.parent.name.replace("_", " ")]
    outcome(reader, place / reader.name, found.read_bytes())
