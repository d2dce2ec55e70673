"""`vltune report`: one self-contained report.html from the files of a run folder."""

from pathlib import Path

from vltune.files import write_bytes_atomic
from vltune_lab.report import overview, progress, results
from vltune_lab.report.costs import costs, privacy, refused
from vltune_lab.report.drawings import drawn_pictures
from vltune_lab.report.example_file import Examples, load_examples
from vltune_lab.report.gallery import gallery
from vltune_lab.report.markup import Markup, join, tag
from vltune_lab.report.schema import RunSummary
from vltune_lab.report.settings import settings
from vltune_lab.report.style import STYLE
from vltune_lab.report.summary import load_summary

REPORT_FILE = "report.html"

# Nothing is loaded and no script runs, whatever a class name holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def build_report(run_folder: Path) -> Path:
    """Write report.html from summary.json, metrics.jsonl and examples.json; return its path.

    Args:
        run_folder: A run's folder, runs/NAME.

    Raises:
        SummaryError: summary.json is missing or damaged.
        ExamplesError: examples.json is damaged.
        ConfigError: The index of drawn pictures is damaged.
        OutputError: The folder cannot be written.
    """
    summary = load_summary(run_folder)
    history = progress.read_site_history(run_folder, summary.headline.metric)
    page = render(summary, history, load_examples(run_folder), drawn=drawn_pictures(run_folder))
    # A lone surrogate in a name has no UTF-8; it becomes a question mark.
    write_bytes_atomic(run_folder / REPORT_FILE, page.encode("utf-8", errors="replace"))
    return run_folder / REPORT_FILE


def render(
    summary: RunSummary,
    history: progress.SiteHistory,
    examples: Examples | None,
    *,
    drawn: Markup | None = None,
) -> Markup:
    """The whole page."""
    title = f"{summary.job}: {summary.method} over {summary.sites} sites"
    version = summary.versions.get("vltune", "")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "body",
        tag(
            "main",
            tag("header", tag("h1", summary.job), overview.headline(summary)),
            overview.notices(summary),
            overview.tiles(summary),
            progress.curves(summary, history),
            results.by_site(summary),
            results.on_global_test(summary),
            gallery(examples),
            drawn,
            results.by_class(summary),
            costs(summary),
            refused(summary),
            privacy(summary),
            overview.what_was_run(summary),
            settings(summary),
            tag("footer", f"VLTune {version}. Percentages are of 100; 1 kB is 1000 bytes."),
        ),
    )
    return join(Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n")
