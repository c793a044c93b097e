"""Reads this project's Markdown: its code blocks, its links, and the commands that it tells people to type."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = tuple(
    sorted(
        [
            *CHECKOUT.glob("*.md"),
            *(CHECKOUT / "docs").rglob("*.md"),
            *(CHECKOUT / "examples").rglob("*.md"),
        ]
    )
)

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
_SPAN: Final = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `name` is the file that its first line says it is."""

    language: str
    text: str

    @property
    def name(self) -> str | None:
        found = re.match(r"# ([\w.-]+\.\w+)\n", self.text)
        return found[1] if found else None


def blocks(page: Path) -> list[Block]:
    """Lists a page's fenced blocks."""
    return [Block(*groups) for groups in _FENCE.findall(page.read_text())]


def block(page: Path, name: str) -> str:
    """Gives the text of the block that calls itself by a file name."""
    return next(each.text for each in blocks(page) if each.name == name)


def links(page: Path) -> list[str]:
    """Lists where a page's links lead."""
    return _LINK.findall(_FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Lists the fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def typed_lines(page: Path) -> list[str]:
    """Lists what a page tells people to type: the lines of its shell blocks, and its inline code."""
    shell = [each.text for each in blocks(page) if each.language in {"", "bash", "console", "sh"}]
    lines = [line.removeprefix("$ ").strip() for text in shell for line in text.splitlines()]
    return lines + _SPAN.findall(_FENCE.sub("", page.read_text()))
