"""End of the report: everything needed to run it again."""

from collections.abc import Mapping
from typing import Any

from vltune_lab.report.markup import Markup, section, table, tag
from vltune_lab.report.schema import RunSummary

MAX_ITEMS = 200


def settings(summary: RunSummary) -> Markup:
    """Files, seeds, versions and the resolved configuration."""
    return section(
        "To run it again",
        tag(
            "div",
            _pairs("Seeds", summary.seeds),
            _pairs("Versions", summary.versions),
            _pairs("Files in this folder", summary.artefacts),
            class_="charts",
        ),
        tag("details", tag("summary", "Configuration"), _pairs("", flatten(summary.config))),
    )


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as `a.b` -> text; lists on one line."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            shown = ", ".join(str(item) for item in value[:MAX_ITEMS])
            flat[name] = shown + (" ..." if len(value) > MAX_ITEMS else "")
        else:
            flat[name] = str(value)
    return flat


def _pairs(title: str, content: Mapping[str, Any]) -> Markup | None:
    if not content:
        return None
    rows = [[name, str(value)] for name, value in content.items()]
    heading = tag("h3", title) if title else None
    return tag("div", heading, table(["name", "value"], rows, text_columns=2), class_="pairs")
