"""Numbers as people read them: percent appears here for the first time."""

NOT_MEASURED = "\N{EN DASH}"
_KILO = 1000


def percent(value: float | None) -> str:
    """0.583 -> "58.3"; the unit stands in the heading."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}"


def points(new: float | None, old: float | None) -> str:
    """Difference in percentage points with its sign: "+12.4"."""
    if new is None or old is None:
        return NOT_MEASURED
    # From the rounded figures, so that the columns of a table add up.
    difference = round(round(100 * new, 1) - round(100 * old, 1), 1) + 0.0
    return f"{difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def number(value: float | None, digits: int = 3) -> str:
    """A plain number."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def size(num_bytes: float | None) -> str:
    """1234567 -> "1.2 MB" (1 kB is 1000 bytes)."""
    if num_bytes is None:
        return NOT_MEASURED
    value = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if value < _KILO:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KILO
    return f"{value:.1f} GB"


def duration(seconds: float | None) -> str:
    """83.5 -> "1 min 24 s"."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 10:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def count(value: int, noun: str) -> str:
    """Count with its noun: "1 round", "3 rounds"."""
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"
