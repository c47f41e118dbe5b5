"""Pages as tests read them: their elements, their plots, and how a browser shows them."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '" onmouseover="document.title=1" x="',
    "{{ 7 * 7 }}{% raw %}",
    "<b>bold</b>&amp;\u2028$\\alpha$",
]


def squeezed(text: str) -> str:
    """`text` as a page shows it: runs of white space are one space."""
    return re.sub(r"[ \t\n]+", " ", text).strip(" ")


class Page(HTMLParser):
    """Elements of a page in document order, with their attributes and own text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "link", "input", "img", "br"):
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.handle_data(" ")
        while self._open:
            if self.elements[self._open.pop()][0] == tag:
                break

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.elements[index][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            (attrs, "".join(text))
            for name, attrs, text in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [squeezed(text) for _, text in self.all(tag, **attributes)]

    def plots(self) -> dict[str, dict[str, Any]]:
        (text,) = self.texts("script", id="plots")
        return {plot["key"]: plot for plot in json.loads(text)}


def painted(value: Any) -> Any:
    """A figure with a colour in place of the names of variables, as plotly takes it."""
    if isinstance(value, list):
        return [painted(item) for item in value]
    if isinstance(value, dict):
        return {key: painted(item) for key, item in value.items()}
    return "#123456" if isinstance(value, str) and value.startswith("--") else value


CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", "chrome"])),
    None,
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def browse(page: Path, profile: Path, *options: str) -> tuple[str, list[str]]:
    """Open `page` in headless Chromium; its standard output, and what the console said."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=10000"),
            f"--user-data-dir={profile}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
