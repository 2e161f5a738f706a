"""Generated sections of a model card, between HTML comments; text outside of them belongs to the user.

Each comment holds a hash of its section. A section that was edited by hand is recognised by it and left as it is.
"""

import hashlib
import re
from collections.abc import Sequence

_BLOCK = re.compile(r"<!-- latentia:(\w+) ([0-9a-f]{8}) -->\n(.*?)\n<!-- /latentia:\1 -->\n", re.DOTALL)


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


def read_blocks(text: str) -> dict[str, str | None]:
    """Read the marked sections of a card: name -> text, or None for one that was edited by hand."""
    return {name: body if _hash(body) == seen else None for name, seen, body in _BLOCK.findall(text)}


def put_block(text: str, name: str, lines: Sequence[str], before: str | None = None) -> tuple[str, bool]:
    """Replace the section `name` of a card, unless it was edited by hand; a new one goes before `before` or at the end.

    Returns:
        The text, and whether the section was written.
    """
    there = read_blocks(text)
    if name in there and there[name] is None:
        return text, False
    new = block(name, lines)
    for match in _BLOCK.finditer(text):
        if match[1] == name:
            return text[: match.start()] + new + text[match.end() :], True
    at = next((match.start() for match in _BLOCK.finditer(text) if match[1] == before), None)
    if at is None:
        return text.rstrip("\n") + "\n\n" + new, True
    return text[:at] + new + "\n" + text[at:], True
