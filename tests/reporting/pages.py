"""Reading a page back: is it sound, and what does it say?"""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Tags in balance, addresses, numbers with their whole value, and text."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.numbers: list[float] = []
        self.text = ""
        self.feed(document)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "xlink:href", "poster"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if tag == "data" and name == "value":
                self.numbers.append(float(value or "nan"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a beginning"
        assert self.open[-1] == tag, f"</{tag}> within <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def sound(document: str) -> Page:
    """The page, after all that must hold of any report."""
    page = Page(document)
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "base", "img"}
    assert not page.handlers
    assert all(a.startswith("#") or a == "data:," for a in page.addresses), page.addresses
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in document
    assert "url(" not in document
    assert "@import" not in document
    return page
