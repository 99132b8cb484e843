"""Text that came from files, made safe to show: in HTML, in Markdown, on a terminal."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

LONGEST = 300
"""Characters of one value that are shown; the rest is counted."""


def shown(value: object, limit: int = LONGEST) -> str:
    """One printable line: control characters, NUL, direction marks and lone surrogates as escapes (`\\x1b`), what is too
    long cut with the number of its characters. Still to be escaped for the document it goes into."""
    text = str(value)
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:limit])
    return line if len(text) <= limit else f"{line}… ({len(text):,} characters)"


def shown_setting(value: Any, limit: int = LONGEST) -> str:
    """A config value on one line, strings as they are, the rest as JSON."""
    if isinstance(value, str):
        return shown(value, limit)
    try:
        return shown(json.dumps(value, ensure_ascii=False, default=str), limit)
    except (TypeError, ValueError):
        return shown(repr(value), limit)


def in_html(value: object, limit: int = LONGEST) -> str:
    """`value` as text of an HTML document, or of an attribute in quotes."""
    return html.escape(shown(value, limit), quote=True)


def in_markdown(value: object, limit: int = LONGEST) -> str:
    """`value` as text of a Markdown document: no mark-up, no HTML."""
    escaped = re.sub(r"([\\`*_\[\]|~#!>(){}+-])", r"\\\1", shown(value, limit))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace("\\>", "&gt;")


def without_links(document: str) -> str:
    """A Markdown document in which nothing is an address: some readers make links of bare ones. The report has none of
    its own."""
    document = document.replace("://", "&#58;//").replace("@", "&#64;")
    return re.sub(r"\bwww\.", "www&#46;", document, flags=re.IGNORECASE)


def flattened(value: Any, most: int = 2000) -> dict[str, Any]:
    """A nested mapping as `a.b.c` -> value, in order; no more than `most` of them."""
    found: dict[str, Any] = {}

    def walk(part: Any, prefix: str) -> None:
        if isinstance(part, Mapping) and part:
            for key, item in part.items():
                if len(found) >= most:
                    return
                name = shown(key, 100)
                walk(item, f"{prefix}.{name}" if prefix else name)
        else:
            found[prefix] = part

    if isinstance(value, Mapping) and value:
        walk(value, "")
    return found
