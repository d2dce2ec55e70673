"""What the run cost: bytes by site, wall time by phase; and which updates were refused."""

from collections import defaultdict

from vltune_lab.report import formats
from vltune_lab.report.charts import Bar, bar_row
from vltune_lab.report.markup import Markup, section, table, tag
from vltune_lab.report.schema import RunSummary


def costs(summary: RunSummary) -> Markup:
    """Bytes and wall time."""
    return section(
        "Bytes and wall time",
        tag(
            "div",
            tag("div", tag("h3", "Sent and received, by site"), _bytes_table(summary)),
            tag("div", tag("h3", "Wall time, by phase"), _phases(summary)),
            class_="charts",
        ),
    )


def _bytes_table(summary: RunSummary) -> Markup:
    up: dict[str, list[int]] = defaultdict(list)
    down: dict[str, list[int]] = defaultdict(list)
    for message in summary.bytes_per_site_per_round:
        up[message.site].append(message.bytes_up)
        down[message.site].append(message.bytes_down)
    if not up:
        text = f"{formats.size(summary.bytes_up_per_site_per_round)} up, a site and round."
        return tag("p", text)
    rows = [
        [
            site,
            formats.size(sum(up[site]) / len(up[site])),
            formats.size(sum(down[site]) / len(down[site])),
            formats.size(sum(up[site])),
            formats.size(sum(down[site])),
        ]
        for site in sorted(up)
    ]
    if len(rows) > 1:
        all_up, all_down = sum(map(sum, up.values())), sum(map(sum, down.values()))
        rows.append(["all", "", "", formats.size(all_up), formats.size(all_down)])
    return table(["site", "up a round", "down a round", "up", "down"], rows)


def _phases(summary: RunSummary) -> Markup:
    phases = summary.wall_seconds_by_phase
    longest = max(phases.values(), default=0.0)
    rows = [
        bar_row(name, [Bar(value / longest if longest else 0, "time")], [formats.duration(value)])
        for name, value in phases.items()
    ]
    return tag(
        "div",
        tag("div", rows, class_="rows phases"),
        tag("p", f"{formats.duration(summary.wall_seconds)} in all.", class_="quiet"),
    )


def privacy(summary: RunSummary) -> Markup:
    """What each site has spent of its differential privacy; nothing without it."""
    if not summary.privacy:
        return Markup("")
    rows = [[x.site, x.level, formats.number(x.epsilon), f"{x.delta:g}"] for x in summary.privacy]
    return section("Differential privacy", table(["site", "hides one", "epsilon", "delta"], rows))


def refused(summary: RunSummary) -> Markup:
    """Updates that the server refused, or its robust rule did not take as they came, and why."""
    if not (summary.rejected_updates or summary.robust_decisions):
        return section("Refused updates", tag("p", "None."))
    rows = [[x.site, x.round, "refused", x.reason] for x in summary.rejected_updates]
    rows += [
        [x.site, x.round, x.action.replace("_", " "), x.reason] for x in summary.robust_decisions
    ]
    heads = ["site", "round", "what", "reason"]
    return section("Refused updates", table(heads, rows, text_columns=4))
