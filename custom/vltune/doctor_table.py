"""The doctor's report as a table for people at the site."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vltune.doctor import Report

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def print_report(report: Report, console: Console) -> None:
    """Print one table, then what to do about everything that is not green."""
    table = Table(title=Text(f"site {report.site}: {report.status}"), title_justify="left")
    for heading in ("", "check", "found", "expected"):
        table.add_column(heading, overflow="fold")
    for finding in report.findings:
        mark = Text(finding.status, style=COLOURS[finding.status])
        # As text: a message may hold brackets, which rich would take for markup.
        table.add_row(mark, Text(finding.name), Text(finding.value), Text(finding.expected))
    console.print(table)
    for finding in report.findings:
        if finding.status != "ok":
            console.print(Text(f"{finding.name}:", style=COLOURS[finding.status]), end=" ")
            lines = [part for part in (finding.cure, finding.private) if part]
            console.print(Text("\n  ".join(lines)), soft_wrap=True)
