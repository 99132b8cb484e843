"""Reading the documents: their pages, links, blocks of code and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "configs").glob("*/RESULTS.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    text: str
    line: int
    """The line of the page on which its text begins."""


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [Block(m[1], m[2], text.count("\n", 0, m.start()) + 2) for m in FENCE.finditer(text)]
    return [b for b in found if b.language == language]


def prose(page: Path) -> str:
    """The page without its blocks of code; lines keep their numbers."""
    return FENCE.sub(lambda m: "\n" * m[0].count("\n"), page.read_text(encoding="utf-8"))


def links(page: Path) -> list[tuple[str, str]]:
    """(path, anchor) of every link within the project; an empty path is the page itself."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text)
    return [(path, anchor) for path, anchor in found if not path.startswith(("http:", "https:", "mailto:"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    found: dict[str, int] = {}
    every = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        every.add(f"{slug}-{count}" if count else slug)
    return every


@dataclass(frozen=True)
class Command:
    """A command that a page shows."""

    words: tuple[str, ...]
    inline: bool
    """In a sentence, where arguments may be left out."""

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands(page: Path, program: str) -> Iterator[Command]:
    """The page's commands `PROGRAM ...`, from its blocks and its sentences, each once."""
    lines = [(line.removeprefix("$ "), False) for b in blocks(page, "console") for line in b.text.splitlines()]
    lines += [(line, False) for b in blocks(page, "bash") for line in b.text.splitlines()]
    lines += [(code, True) for code in re.findall(r"`([^`\n]+)`", prose(page))]
    seen = set()
    for line, inline in lines:
        for part in re.split(r" && | \| | > ", line):
            words = tuple(shlex.split(part, comments=True)) if program in part else ()
            if words and Path(words[0]).name == program and (words, inline) not in seen:
                seen.add((words, inline))
                yield Command(words, inline)
