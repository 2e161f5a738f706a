"""Names of files and classes: their order, and whether they can be written."""

import re
from collections.abc import Iterable


def class_order(names: Iterable[str]) -> list[str]:
    """The names of classes, each once, sorted: whole numbers by value, so that class "10" is not the third.

    Example:
        >>> class_order(["10", "2", "-1", "2"]), class_order(["b", "10", "a"])
        (['-1', '2', '10'], ['10', 'a', 'b'])
    """
    different = set(names)
    if all(re.fullmatch(r"-?[0-9]+", name) for name in different):
        return sorted(different, key=lambda name: (int(name), name))
    return sorted(different)


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which no file takes: JSON can hold one, and a file name that is not UTF-8.

    Example:
        >>> is_unicode("Gräser"), is_unicode("Gr\\udce4ser")
        (True, False)
    """
    return printable(text) == text


def printable(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair.

    Example:
        >>> printable("Gr\\udce4ser")
        'Gr?ser'
    """
    return text.encode("utf-8", "replace").decode()
