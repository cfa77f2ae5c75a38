"""Reading a page that the tests wrote."""

import re
from html.parser import HTMLParser

Attributes = list[tuple[str, str | None]]

VOID = {"meta", "link", "img", "br", "input", "hr", "path", "line", "circle"}


class Page(HTMLParser):
    """Counts elements, collects text and addresses, and sees to it that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.counts: dict[str, int] = {}
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Attributes) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [value or "" for key, value in attributes if key in ("src", "href", "action", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Attributes) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def needs_nothing(self) -> bool:
        """No address but data: and the page's own places, and nothing that a style or script would fetch."""
        rest = re.sub(r"base64,[A-Za-z0-9+/=]*", "", self.html)
        inside = all(address.startswith(("data:", "#")) for address in self.addresses)
        return inside and not re.search(r"(https?:)?//[a-z]|@import|url\(", rest)
