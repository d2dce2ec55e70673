import itertools
import re

import pytest

from vltune_lab.report.charts import HEIGHT, WIDTH, Bar, Series, bar_row, line_chart, nice_ticks
from vltune_lab.report.markup import Markup, join, tag


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (33.8, 57.8, [30, 35, 40, 45, 50, 55, 60]),
        (0.5, 0.5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (2.8, 6.9, [2, 3, 4, 5, 6, 7]),
    ],
)
def test_ticks_are_round_numbers_that_enclose_the_data(
    low: float, high: float, expected: list[float]
) -> None:
    assert nice_ticks(low, high) == expected


def test_rounds_have_whole_ticks() -> None:
    assert nice_ticks(0, 3, 8, is_whole=True) == [0, 1, 2, 3]


def points(*values: float | None) -> tuple[tuple[float, float | None], ...]:
    return tuple(enumerate(values))


def chart(*series: Series) -> str:
    return line_chart("mAP by round", series, x_label="round", y_label="mAP, %")


def test_axes_are_labelled_and_everything_stays_inside() -> None:
    text = chart(Series("global", "federated", points(10.0, 20.0, 15.0)))
    assert ">round<" in text
    assert ">mAP, %<" in text
    assert "global 15.0" in text
    for x, y in re.findall(r"(\d+\.?\d*),(\d+\.?\d*)", re.findall(r'points="([^"]*)"', text)[0]):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_a_missing_value_breaks_the_curve() -> None:
    text = chart(Series("global", "federated", points(1.0, 2.0, None, 4.0)))
    assert text.count("<polyline") == 2


def test_a_curve_of_one_round_is_a_dot() -> None:
    text = chart(Series("global", "federated", points(1.0)))
    assert text.count("<circle") == 1


def test_names_at_the_ends_do_not_cover_one_another() -> None:
    text = chart(*(Series(f"s{n}", "worst", points(1.0, 2.0 + n / 1000)) for n in range(5)))
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*class="end', text))
    assert len(heights) == 5
    assert all(b - a > 13.8 for a, b in itertools.pairwise(heights))  # rounded to 0.1
    assert heights[-1] <= HEIGHT


def test_without_a_single_value_it_says_so() -> None:
    assert "nothing was measured" in chart(Series("global", "federated", points(None, None)))


def test_bars_never_leave_their_space() -> None:
    text = bar_row("<i>", [Bar(1.7, "federated"), Bar(-1, "zero-shot")], ["1", "2"])
    assert "width:100.0%" in text
    assert "width:0.0%" in text
    assert "&lt;i&gt;" in text


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "<", Markup("<br>"), class_='"') == '<p class="&quot;">&lt;<br></p>'
    assert join(None, ["a", 1, [2.5]]) == "a12.5"
    with pytest.raises(TypeError, match="cannot render object"):
        join(object())
