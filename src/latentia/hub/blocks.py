"""Generated sections of a model card, between HTML comments; text outside of them belongs to the user.

Each comment holds a hash of its section. A section that was edited by hand is recognised by it and left as it is.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_START = re.compile(r"<!-- latentia:(\w+) ([0-9a-f]{8}) -->\n")
_END = re.compile(r"\n<!-- /latentia:(\w+) -->(?=\n)")


class _Block(NamedTuple):
    name: str
    body: str | None  # None: edited by hand
    start: int
    stop: int


def block(name: str, lines: Sequence[str]) -> str:
    """Make the marked section `name`.

    Example:
        >>> print(block("use", ["Like this."]), end="")
        <!-- latentia:use 94647751 -->
        Like this.
        <!-- /latentia:use -->
    """
    body = "\n".join(lines).strip("\n")
    return f"<!-- latentia:{name} {_hash(body)} -->\n{body}\n<!-- /latentia:{name} -->\n"


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:8]


def _blocks(text: str) -> Iterator[_Block]:
    """The marked sections, each from a start to the first end of its name, at a cost linear in the text."""
    ends: dict[str, list[re.Match[str]]] = {}
    for end in _END.finditer(text):
        ends.setdefault(end[1], []).append(end)
    done = 0
    for start in _START.finditer(text):
        own = ends.get(start[1], [])
        i = bisect_left(own, start.end(), key=lambda end: end.start())
        if start.start() >= done and i < len(own):
            body, done = text[start.end() : own[i].start()], own[i].end() + 1
            yield _Block(start[1], body if _hash(body) == start[2] else None, start.start(), done)


def read_blocks(text: str) -> dict[str, str | None]:
    """Read the marked sections of a card: name -> text, or None for one that was edited by hand."""
    return {found.name: found.body for found in _blocks(text)}


def put_block(text: str, name: str, lines: Sequence[str], before: str | None = None) -> tuple[str, bool]:
    """Replace the section `name` of a card, unless it was edited by hand; a new one goes before `before` or at the end.

    Returns:
        The text, and whether the section was written.
    """
    there = list(_blocks(text))
    new = block(name, lines)
    for old in there:
        if old.name == name:
            written = old.body is not None
            return (text[: old.start] + new + text[old.stop :] if written else text), written
    at = next((other.start for other in there if other.name == before), None)
    if at is None:
        return text.rstrip("\n") + "\n\n" + new, True
    return text[:at] + new + "\n" + text[at:], True
