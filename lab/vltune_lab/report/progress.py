"""Curves over the rounds, and the same figures as a table."""

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from vltune_lab.report import formats
from vltune_lab.report.charts import Series, line_chart
from vltune_lab.report.markup import Markup, section, table, tag
from vltune_lab.report.schema import RunSummary

METRICS_FILE = "metrics.jsonl"
MAX_SITE_CURVES = 40

SiteCurves = dict[str, list[tuple[float, float | None]]]


class SiteHistory(NamedTuple):
    """Each site's metric over the rounds, and how many lines of the file could not be read."""

    curves: SiteCurves
    num_unreadable: int


def read_site_history(run_folder: Path, metric: str = "mAP") -> SiteHistory:
    """Read each site's metric from metrics.jsonl; the file may be absent or end in half a line."""
    path = run_folder / METRICS_FILE
    if not path.is_file():
        return SiteHistory({}, 0)
    values: dict[str, dict[float, float | None]] = defaultdict(dict)
    num_unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if "event" not in record and record["metric"] == metric:
                value = record["value"]
                values[str(record["site"])][float(record["round"])] = (
                    None if value is None else float(value)
                )
        except (ValueError, KeyError, TypeError):
            num_unreadable += 1
    curves = {site: sorted(values[site].items()) for site in sorted(values)}
    return SiteHistory(curves, num_unreadable)


def curves(summary: RunSummary, history: SiteHistory) -> Markup:
    """Charts of the run's metric and the loss; each site's own curve thinly behind."""
    rounds, metric = summary.per_round, summary.headline.metric
    scores = [summary.round_scores(entry) for entry in rounds]
    lines = [
        *[
            Series("", "site", tuple((a, _hundredfold(b)) for a, b in points))
            for points in list(history.curves.values())[:MAX_SITE_CURVES]
        ],
        *[
            Series(
                name,
                kind,
                tuple(
                    (r.round, _hundredfold(s[half])) for r, s in zip(rounds, scores, strict=True)
                ),
            )
            for half, (name, kind) in enumerate((("global", "federated"), ("worst", "worst")))
        ],
    ]
    loss = [Series("loss", "loss", tuple((r.round, r.loss) for r in rounds))]
    note = "mAP: on the sites' validation data, pooled from their score histograms."
    if summary.scores is not None:
        note = f"{metric}: mean over the sites' validation data, each site counting the same."
    if history.curves:
        note += " Thin lines: the single sites."
    if history.num_unreadable:
        unreadable = formats.count(history.num_unreadable, "line")
        note += f" {unreadable} of {METRICS_FILE} could not be read."
    return section(
        "Round by round",
        tag(
            "div",
            tag(
                "figure",
                line_chart(f"{metric} by round", lines, x_label="round", y_label=f"{metric}, %"),
            ),
            tag(
                "figure",
                line_chart(
                    "Training loss by round",
                    loss,
                    x_label="round",
                    y_label="mean training loss",
                    digits=2,
                ),
            ),
            class_="charts",
        ),
        tag("p", note, class_="quiet"),
        tag("details", tag("summary", "The same as a table"), rounds_table(summary)),
    )


def rounds_table(summary: RunSummary) -> Markup:
    """Every round's figures."""
    metric = f"{summary.headline.metric} %"
    header = ["round", metric, "worst %", "loss", "time", "overhead", "up", "down", "refused"]
    rows = [
        [
            r.round,
            *map(formats.percent, summary.round_scores(r)),
            formats.number(r.loss),
            formats.duration(r.seconds),
            formats.duration(r.overhead_seconds),
            formats.size(r.bytes_up),
            formats.size(r.bytes_down),
            r.rejected,
        ]
        for r in summary.per_round
    ]
    if any(r.exactness_error is not None for r in summary.per_round):
        # How far the joined LoRA is from the mean of the sites' products.
        header.append("exactness error")
        for row, r in zip(rows, summary.per_round, strict=True):
            row.append(formats.number(r.exactness_error))
    return table(header, rows)


def _hundredfold(value: float | None) -> float | None:
    return None if value is None else 100 * value
