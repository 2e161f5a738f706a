"""Registration of the public classes: with diffusers, as a library of saved components, and with the lower rooms.

A saved pipeline names the library and the class of each component. diffusers writes `["latentia", "UNet2D"]`, instead
of the path of a module, and loads such a component from the Hub, only if the library is in its table
`LOADABLE_CLASSES`. The class of a pipeline, and of a network that is loaded by `AutoModel` from a folder of its own, it
looks up as an attribute of its root module; so that module passes names that it lacks on to latentia. Both have to be
there whichever of the two packages is imported first, so diffusers is not imported for it.

Rooms that read saved files look the classes up here by their public names, and so need not import the root package.
"""

import sys
from collections.abc import Callable, Iterable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_TABLE_MODULE = "diffusers.pipelines.pipeline_loading_utils"
_public: dict[str, Callable[[str], Any]] = {}  # public name -> what imports it


def publish(names: Iterable[str], get: Callable[[str], Any]) -> None:
    """Adds public names, each imported by `get(name)` when it is first looked up."""
    _public.update(dict.fromkeys(names, get))


def public_names() -> list[str]:
    """The public names of latentia.

    Example:
        >>> "UNet2D" in public_names()
        True
    """
    return [*_public]


def public(name: str) -> Any:
    """The object of a public name; None if there is no such name.

    Example:
        >>> public("UNet2D").__name__, public("os")
        ('UNet2D', None)
    """
    return _public[name](name) if name in _public else None


def register(module: ModuleType) -> None:
    """Adds latentia's two base classes, and how they are saved and loaded, to the table in `module`.

    The root module of diffusers gets a `__getattr__` (PEP 562), which is asked before its own: names that diffusers has
    itself stay its own, and classes of latentia beside them are imported when they are first asked for.
    """
    methods = ["save_pretrained", "from_pretrained"]
    module.LOADABLE_CLASSES["latentia"] = {"ModelMixin": methods, "SchedulerMixin": methods}
    diffusers = sys.modules["diffusers"]

    def find(name: str) -> Any:
        if name in _public and name[0].isupper() and name not in getattr(diffusers, "__all__", ()):
            return public(name)
        raise AttributeError(f"module diffusers has no attribute {name}")

    diffusers.__getattr__ = find  # type: ignore[method-assign]


class _RegisterWhenImported(MetaPathFinder):
    """Finds nothing itself: takes the usual spec of diffusers' module and registers once that module has run."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _TABLE_MODULE else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            register(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Registers now if diffusers' table is already imported, else as soon as it is."""
    if _TABLE_MODULE in sys.modules:
        register(sys.modules[_TABLE_MODULE])
    else:
        sys.meta_path.insert(0, _RegisterWhenImported())
