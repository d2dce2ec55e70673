"""Curves as inline SVG and bars as HTML: no script, no network, colours from the page's style."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vltune_lab.report.markup import Markup, tag

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 92, 24, 38
LABEL_HEIGHT = 14
MAX_DOTS = 30


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        label: Written at its right end; empty for background curves.
        style: CSS class that gives the colour.
        points: (x, y) by ascending x; y None breaks the curve.
        is_dashed: For references.
    """

    label: str
    style: str
    points: tuple[tuple[float, float | None], ...]
    is_dashed: bool = False

    @property
    def known(self) -> list[tuple[float, float]]:
        """Points with a value."""
        return [(x, y) for x, y in self.points if y is not None]


@dataclass(frozen=True)
class Scale:
    """Linear map of values from `low..high` to pixels `start..end`, with ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def nice_ticks(low: float, high: float, most: int = 6, *, is_whole: bool = False) -> list[float]:
    """Ticks at 1, 2 or 5 times a power of ten that enclose `low..high`.

    Args:
        low: Lowest value.
        high: Highest value; equal to `low` is widened by 1.
        most: About how many ticks.
        is_whole: Whole numbers only.
    """
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    step = max(1.0, step) if is_whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_label: str, digits: int = 1
) -> Markup:
    """Curves over rounds with labelled axes; each curve's name stands at its right end.

    Args:
        title: Read out by screen readers.
        series: Curves; those without a single value are left out.
        x_label: Under the axis.
        y_label: Above the axis, with the unit.
        digits: Decimals of the values at the curves' ends.
    """
    drawn = [item for item in series if item.known]
    if not drawn:
        return tag("p", f"{title}: nothing was measured.", class_="quiet")
    xs = [x for item in drawn for x, _ in item.known]
    ys = [y for item in drawn for _, y in item.known]
    x_ticks = nice_ticks(min(xs), max(xs), 8, is_whole=True)
    y_ticks = nice_ticks(min(ys), max(ys))
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (x_ticks[0], x_ticks[-1])
    x = Scale(x_low, x_high, LEFT, WIDTH - RIGHT, tuple(t for t in x_ticks if x_low <= t <= x_high))
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, tuple(y_ticks))
    return tag(
        "svg",
        _axes(x, y, x_label, y_label),
        [_curve(item, x, y, digits) for item in drawn],
        _end_labels([item for item in drawn if item.label], x, y, digits),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
        class_="chart",
    )


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[Markup]:
    digits = 0 if all(float(tick).is_integer() for tick in y.ticks) else 2
    parts = []
    for tick in y.ticks:
        height = y(tick)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, class_="grid"))
        parts.append(_label(f"{tick:.{digits}f}", LEFT - 6, height + 4, anchor="end"))
    parts += [_label(f"{tick:g}", x(tick), HEIGHT - BOTTOM + 16) for tick in x.ticks]
    parts.append(_label(x_label, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, style="axis"))
    parts.append(_label(y_label, 2, 11, anchor="start", style="axis"))
    return parts


def _label(text: str, x: float, y: float, *, anchor: str = "middle", style: str = "tick") -> Markup:
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=style)


def _curve(series: Series, x: Scale, y: Scale, digits: int) -> list[Markup]:
    parts = []
    for is_known, run in itertools.groupby(series.points, key=lambda point: point[1] is not None):
        if is_known:
            path = " ".join(f"{x(a)},{y(b)}" for a, b in run if b is not None)
            style = f"line {series.style}" + (" dashed" if series.is_dashed else "")
            parts.append(tag("polyline", points=path, class_=style))
    if series.label and not series.is_dashed and len(series.known) <= MAX_DOTS:
        for a, b in series.known:
            hint = tag("title", f"{series.label}, {a:g}: {b:.{digits}f}")
            parts.append(tag("circle", hint, cx=x(a), cy=y(b), r=2.6, class_=f"dot {series.style}"))
    return parts


def _end_labels(series: Sequence[Series], x: Scale, y: Scale, digits: int) -> list[Markup]:
    """Names and last values at the right ends, pushed apart so that none covers another."""
    ends = sorted(((y(item.known[-1][1]), item) for item in series), key=lambda end: end[0])
    room = (HEIGHT - BOTTOM) - LABEL_HEIGHT * (len(ends) - 1)
    parts, previous = [], -math.inf
    for place, (height, item) in enumerate(ends):
        height = max(previous + LABEL_HEIGHT, min(height, room + LABEL_HEIGHT * place))
        previous = height
        text = f"{item.label} {item.known[-1][1]:.{digits}f}"
        at = x(item.known[-1][0]) + 7
        style = f"end {item.style}"
        parts.append(_label(text, at, round(height + 4, 1), anchor="start", style=style))
    return parts


@dataclass(frozen=True)
class Bar:
    """One bar: `share` in [0, 1] of the full width, in the colour of CSS class `style`."""

    share: float
    style: str


def bar_row(label: str, bars: Sequence[Bar], values: Sequence[str]) -> Markup:
    """A line of a bar chart: name, bars on top of one another, figures."""
    drawn = [
        tag(
            "span",
            class_=f"bar {bar.style}",
            style=f"width:{100 * min(max(bar.share, 0.0), 1.0):.1f}%",
        )
        for bar in bars
    ]
    figures = [
        tag("span", text, class_=f"figure {bar.style}")
        for text, bar in itertools.zip_longest(values, bars, fillvalue=Bar(0.0, ""))
        if isinstance(text, str)
    ]
    return tag(
        "div",
        tag("span", label, class_="name"),
        tag("span", drawn, class_="bars"),
        tag("span", figures, class_="figures"),
        class_="row",
    )
