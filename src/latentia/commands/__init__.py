"""The commands of `latentia`: one function each, for Python and for the command line alike.

A command is a public name of this package, see `__init__.pyi`: the function `evaluate` of `evaluate.py` is
`latentia.commands.evaluate` in Python and `latentia evaluate` in a shell. It returns a text or an object with `text()`
and, if it leaves files, `save(output_dir)`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
