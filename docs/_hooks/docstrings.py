"""An extension of griffe that reads the section `Example:` of a docstring as the `Examples:` of Google's style."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Without it griffe takes `Example:` for a note and its `>>>` lines for prose."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
