"""HTML and SVG elements whose text is escaped unless it is markup already."""

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"br", "col", "img", "meta"})

Child = object
"""Text, markup, None (nothing), or an iterable of children."""


class Markup(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Build an element.

    Args:
        name: Element name.
        children: Text is escaped; `Markup` is taken as it is.
        attributes: `class_` gives class, `_` inside a name gives `-`; None and False leave it out.
    """
    parts = [
        f" {key.removesuffix('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    opening = f"<{name}{''.join(parts)}>"
    return Markup(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Put children behind one another."""
    return Markup("".join(_text(child) for child in children))


def table(
    header: Iterable[Child], rows: Iterable[Iterable[Child]], *, text_columns: int = 1
) -> Markup:
    """Table that scrolls sideways where it is too wide; numbers stand right.

    Args:
        header: Column names.
        rows: Cells.
        text_columns: Leading columns that stand left.
    """

    def cells(name: str, values: Iterable[Child]) -> list[Markup]:
        return [
            tag(name, value, class_=None if place < text_columns else "number")
            for place, value in enumerate(values)
        ]

    body = tag("tbody", [tag("tr", cells("td", row)) for row in rows])
    head = tag("thead", tag("tr", cells("th", header)))
    return tag("div", tag("table", head, body), class_="scroll")


def section(title: str, *children: Child, identity: str = "") -> Markup:
    """A titled part of the page."""
    return tag("section", tag("h2", title), *children, id=identity or None)


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return escape(str(child))
    if isinstance(child, Iterable):
        return join(*child)
    raise TypeError(f"cannot render {type(child).__name__}")
