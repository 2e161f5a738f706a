"""Names of files and classes: their order, and whether they can be written."""

from collections.abc import Iterable


def class_order(names: Iterable[str]) -> list[str]:
    """The names of classes, each once, sorted: whole numbers by value, so that class "10" is not the third.

    Example:
        >>> class_order(["10", "2", "0", "2"]), class_order(["b", "10", "a"])
        (['0', '2', '10'], ['10', 'a', 'b'])
    """
    different = set(names)
    if all(name.isascii() and name.isdecimal() for name in different):
        value = {name: name.lstrip("0") for name in different}  # compared as text, as int() refuses a long one
        return sorted(different, key=lambda name: (len(value[name]), value[name], name))
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
