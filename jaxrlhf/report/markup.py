"""HTML from functions: what is not `Markup` gets escaped, so no text of a run can become part of the page's own."""

from __future__ import annotations

import html

_WITHOUT_CHILDREN = {"circle", "line", "meta", "path", "polyline", "rect"}

# Control characters have no meaning in HTML, and some end it; each has a picture.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | float | None) -> Markup:
    """Writes an element.

    Args:
        name: of the element.
        children: what is in it, one after the other; None is nothing.
        attributes: `class_` is `class`, `stroke_width` is `stroke-width`; None is left out. Floats are rounded to a
            tenth, which is all that a pixel shows.
    """
    written = "".join(f' {_name(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None)
    if name in _WITHOUT_CHILDREN:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Puts texts and elements one after the other; texts are escaped."""
    return Markup("".join(child if isinstance(child, Markup) else _escape(child) for child in children if child))


def document(title: str, style: str, *body: str) -> Markup:
    """Writes a whole page.

    Args:
        title: of the window.
        style: the stylesheet, which is trusted.
        body: elements of the body.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    return join(Markup("<!doctype html>\n"), tag("html", head, tag("body", *body), lang="en"), "\n")


def decimal(value: float) -> str:
    """A coordinate: at most one decimal, and none that is 0."""
    return f"{value:.1f}".removesuffix(".0")


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return html.escape(value.translate(_VISIBLE)) if isinstance(value, str) else decimal(value)


def _escape(text: str) -> str:
    return html.escape(text.translate(_VISIBLE), quote=False)
