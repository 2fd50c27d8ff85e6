"""A page read back: its elements, what is nested in what, and what is wrong with it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree as ET

VOID = {"meta", "link", "input", "br", "hr", "img"}
# Whose attributes make a browser fetch something.
LOADING = {"src", "href", "xlink:href", "data", "poster", "srcset", "action"}


@dataclass(eq=False)
class Element:
    tag: str
    attributes: dict[str, str | None]
    parent: Element | None
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Of the element and all inside it, in order."""
        return " ".join(" ".join(self.pieces).split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Elements inside with a tag and attributes (``kind`` stands for ``class``)."""
        wanted = {("class" if k == "kind" else k): v for k, v in attributes.items()}
        found = []
        for child in self.children:
            if child.tag == tag and all(child.attributes.get(k) == v for k, v in wanted.items()):
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def walk(self) -> list[Element]:
        return [self, *(e for child in self.children for e in child.walk())]


class Page(HTMLParser):
    """Parses strictly: a tag that is closed out of turn, or never, is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {}, None)
        self._at = self.root
        self.declaration = ""
        self.feed(html)
        self.close()
        assert self._at is self.root, f"{self._at.tag} is never closed"

    def handle_decl(self, decl: str) -> None:
        self.declaration = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)
        if tag not in VOID:
            self._at = self._at.children[-1]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self._at.tag, f"</{tag}> closes <{self._at.tag}> at {self.getpos()}"
        assert self._at.parent is not None
        self._at = self._at.parent

    def handle_data(self, data: str) -> None:
        at: Element | None = self._at
        while at is not None:
            at.pieces.append(data)
            at = at.parent

    def _add(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute twice in <{tag}> at {self.getpos()}"
        self._at.children.append(Element(tag, dict(attrs), self._at))


def drawing(image: Element) -> str:
    """The SVG document of an image."""
    kind, _, data = (image.attributes["src"] or "").partition(",")
    assert kind == "data:image/svg+xml"
    return unquote(data)


def read(html: str) -> Element:
    """The page's root, after checks that hold for every page."""
    page = Page(html)
    assert page.declaration == "DOCTYPE html"
    everything = page.root.walk()
    ids = [i for e in everything if (i := e.attributes.get("id"))]
    assert len(ids) == len(set(ids)), sorted({i for i in ids if ids.count(i) > 1})
    for element in everything:
        assert not [a for a in element.attributes if a.startswith("on")], element.attributes
        for name in LOADING & set(element.attributes):
            value = element.attributes[name] or ""
            assert value.startswith(("#", "data:")), (element.tag, name, value)
            if value.startswith("#"):
                assert value[1:] in ids, value
    levels = [int(e.tag[1]) for e in everything if e.tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), levels
    for image in page.root.all("img"):
        assert image.attributes["alt"]
        ET.fromstring(drawing(image))
    return page.root
