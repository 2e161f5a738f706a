"""What of a source is not taken, and why: files by suffix, folders, columns, images that cannot be read."""

from latentia.data.names import printable

_SHOWN = 3  # names in a line


class LeftOut:
    """What was found in a source and is not used; nothing is passed over without an entry here.

    Example:
        >>> left_out = LeftOut()
        >>> for name in ("a.txt", "b.txt"):
        ...     left_out.add(".txt", "a text", name)
        >>> left_out.lines()
        ['2 x .txt (a.txt, b.txt): a text']
        >>> left_out.counts()
        ['2 x .txt: a text']
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, kind: str, reason: str, name: str) -> None:
        """Note one thing that is not taken.

        Args:
            kind: what it is: a suffix, as in ".txt", "folder", "column".
            reason: why it is not taken, without a period.
            name: of the file, relative to the source.
        """
        self._names.setdefault((printable(kind), printable(reason)), []).append(printable(name))

    def counts(self) -> list[str]:
        """One line for each kind and reason, the most frequent first, without names of files: for a model card."""
        return [f"{len(names)} x {kind}: {reason}" for (kind, reason), names in self._sorted()]

    def lines(self) -> list[str]:
        """As `counts`, with the first names."""
        return [
            f"{len(names)} x {kind} ({', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}): {reason}"
            for (kind, reason), names in self._sorted()
        ]

    def _sorted(self) -> list[tuple[tuple[str, str], list[str]]]:
        return sorted(self._names.items(), key=lambda item: (-len(item[1]), item[0]))
