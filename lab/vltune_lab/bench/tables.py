"""README tables, generated from result files.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`; its content is made from
benchmarks/results/NAME.json. `make tables` rewrites them, `make check` fails where they differ.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vltune_lab.bench.results import (
    BENCHMARK,
    Content,
    Row,
    group_rows,
    kind_of,
    load_results,
    spread_of,
)

COMMAND = "make tables"
_TABLE = re.compile(r"(<!-- table:([\w.-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)
_OPENING = re.compile(r"<!-- table:")
_CLOSING = re.compile(r"<!-- /table -->")

# Metric of a protocol file -> heading, factor, decimals.
_COLUMNS: dict[str, tuple[str, float, int]] = {
    "mAP": ("mAP", 100, 1),
    "CF1": ("CF1", 100, 1),
    "OF1": ("OF1", 100, 1),
    "worst_site_mAP": ("worst site mAP", 100, 1),
    "accuracy": ("exact match", 100, 1),
    "worst_site": ("worst site", 100, 1),
    "exactness_error": ("exactness error", 1, 4),
    "vqa": ("VQA soft accuracy", 100, 1),
    "geneval": ("GenEval-style", 100, 1),
    "kept_vqa": ("kept of the centralised gain, VQA", 100, 1),
    "spurious_activation": ("spurious activation, sd", 1, 2),
    "bytes_up": ("kB up per site and round", 1e-3, 1),
    "bytes_down": ("kB down per site and round", 1e-3, 1),
    "cpu_seconds_round": ("processor seconds a round, all sites", 1, 2),
    "cpu_seconds_once": ("before the first round", 1, 2),
    "peak_memory_mb": ("memory of a site, MB", 1, 0),
    "images_per_second": ("images a second", 1, 0),
    "seconds": ("seconds", 1, 1),
}


class TableError(ValueError):
    """A table of the README cannot be made or is out of date; the message names it and the cure."""


def rewrite(readme: Path, results_folder: Path) -> list[str]:
    """Bring every table of `readme` up to date; return the names of those that changed.

    Raises:
        TableError: The file is missing or a marker has no counterpart.
        ResultError: A table's result file is missing or wrong.
    """
    text = _read(readme)
    fresh, changed = render(text, results_folder, str(readme))
    if changed:
        readme.write_text(fresh, encoding="utf-8")
    return changed


def check(readme: Path, results_folder: Path) -> None:
    """Refuse a README whose tables differ from the result files.

    Raises:
        TableError: Naming the tables and the command that mends them.
    """
    _, changed = render(_read(readme), results_folder, str(readme))
    if changed:
        raise TableError(
            f"{readme}: table {', '.join(changed)} differs from {results_folder}. Run `{COMMAND}`."
        )


def render(text: str, results_folder: Path, source: str) -> tuple[str, list[str]]:
    """Text with every table made anew, and the names of the tables that differ."""
    tables = _TABLE.findall(text)
    for marker in (_OPENING, _CLOSING):
        if len(marker.findall(text)) != len(tables):
            raise TableError(
                f"{source}: a table marker has no counterpart. A table starts with the line "
                "<!-- table:NAME --> and ends with the line <!-- /table -->."
            )
    changed = []

    def replace(match: re.Match[str]) -> str:
        opening, name, old, closing = match.groups()
        new = table_of(load_results(results_folder / f"{name}.json"))
        if new != old:
            changed.append(name)
        return f"{opening}{new}{closing}"

    return _TABLE.sub(replace, text), changed


def table_of(content: Content) -> str:
    """Markdown table of a result file, with a line that says how to measure it again."""
    kind = kind_of(content)
    make = _BY_NAME.get(content[kind], _speed if kind == BENCHMARK else _protocol)
    rows = make(content["rows"])
    commit, _, changes = content["commit"].partition("+")
    at = commit[:10] + (f" with {changes}" if changes else "")
    return f"{markdown(rows)}\n`{content['command']}` at {at}, {content['hardware']}.\n"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Markdown table; the first row is the heading, the first column stands left."""
    heading, *body = rows
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in [heading, rule, *body])


def _protocol(rows: Sequence[Row]) -> list[list[str]]:
    """One line a method and setting: mean over seeds, and the deviation where there are several."""
    groups = group_rows(rows, ["method", "setting"])
    has_settings = len({setting for _, setting in groups}) > 1
    shown = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    heading = ["method", *["setting"] * has_settings, *(_COLUMNS[key][0] for key in shown), "seeds"]
    lines = [heading]
    for (method, setting), members in groups.items():
        cells = [str(method), *[str(setting)] * has_settings]
        cells += [_mean_cell(members, key) for key in shown]
        lines.append([*cells, str(len({row["seed"] for row in members}))])
    return lines


def _mean_cell(rows: Sequence[Row], metric: str) -> str:
    found = spread_of(rows, metric)
    if found is None:
        return "not measured"
    _, factor, digits = _COLUMNS[metric]
    text = f"{factor * found.mean:.{digits}f}"
    return f"{text} ± {factor * found.deviation:.{digits}f}" if found.count > 1 else text


def _speed(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["step", "published dataflow", "VLTune", "times faster", "largest difference"]]
    for row in rows:
        unit = row["unit"]
        lines.append(
            [
                row["name"],
                f"{_significant(row['baseline'])} {unit}",
                f"{_significant(row['ours'])} {unit}",
                _significant(row["ratio"]),
                f"{row['max_abs_error']:.0e}",
            ]
        )
    return lines


def _traffic(rows: Sequence[Row]) -> list[list[str]]:
    heading = ["model", "parameters", "full fine-tuning, MB", "LoRA, MB", "times less"]
    is_measured = any("wire_bytes_up" in row for row in rows)
    return [
        [*heading, *["sent in a real round, MB"] * is_measured],
        *(
            [
                row["name"],
                f"{row['parameters'] / 1e6:,.0f} M",
                f"{row['baseline'] / 1e6:,.0f}",
                _significant(row["ours"] / 1e6),
                _significant(row["ratio"]),
                *[_sent(row)] * is_measured,
            ]
            for row in rows
        ),
    ]


def _sent(row: Row) -> str:
    sent = row.get("wire_bytes_up")
    return "not measured" if sent is None else _significant(sent / 1e6)


def _methods_by_setting(rows: Sequence[Row]) -> list[list[str]]:
    """One line a method, one column of exact match a setting; the worst site of the first one."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    groups = group_rows(rows, ["method", "setting"])
    heading = ["exact match", *settings, f"{settings[0]}, worst site", "kB up per site and round"]
    lines = [heading]
    for method in dict.fromkeys(row["method"] for row in rows):
        first = groups.get((method, settings[0]), [])
        cells = [_mean_cell(groups.get((method, name), []), "accuracy") for name in settings]
        lines.append(
            [method, *cells, _mean_cell(first, "worst_site"), _mean_cell(first, "bytes_up")]
        )
    return lines


_BY_NAME = {"traffic": _traffic, "fedvlm": _methods_by_setting}
"""Tables of their own."""


def _significant(value: float) -> str:
    """Three significant digits without an exponent: 0.671, 12.3, 1480."""
    if value == 0:
        return "0"
    text = f"{float(f'{value:.3g}'):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _read(readme: Path) -> str:
    try:
        return readme.read_text(encoding="utf-8")
    except OSError as error:
        raise TableError(f"{readme}: cannot be read: {error.strerror}") from error
