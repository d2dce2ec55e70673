import pytest

from vltune_lab.report import formats


def test_percent_and_points() -> None:
    assert formats.percent(0.5834) == "58.3"
    assert formats.percent(None) == "\N{EN DASH}"
    assert formats.points(0.583, 0.459) == "+12.4"
    assert formats.points(0.4, 0.523) == "\N{MINUS SIGN}12.3"
    assert formats.points(0.4, 0.4) == "+0.0"
    assert formats.points(None, 0.4) == "\N{EN DASH}"


def test_points_are_the_difference_of_what_is_shown() -> None:
    # 10.04 is shown as 10.0 and 9.96 as 10.0: their difference is shown as 0.0, not 0.1.
    assert formats.points(0.1004, 0.0996) == "+0.0"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (1_234_567, "1.2 MB"), (5e10, "50.0 GB")],
)
def test_size(value: float, expected: str) -> None:
    assert formats.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.314, "0.31 s"),
        (31.4, "31 s"),
        (83.5, "1 min 24 s"),
        (119.7, "2 min 0 s"),
        (7265, "2 h 1 min"),
    ],
)
def test_duration(value: float, expected: str) -> None:
    assert formats.duration(value) == expected


def test_count() -> None:
    assert formats.count(1, "round") == "1 round"
    assert formats.count(0, "round") == "0 rounds"
