"""The rules of the house, read from the sources: who imports whom, what nobody imports, how long a file is."""

import ast
import inspect
import re
from pathlib import Path

import diffusers
import pytest

import latentia

ROOT = Path(__file__).resolve().parents[2]
# Who may import whom: a module may import those of its own room and of the layers above it. Rooms of one layer do not
# import each other.
LAYERS = [
    {"errors", "rng", "safety", "registration", "files", "foreign"},
    {"functional"},
    {"inference"},
    {"models", "losses", "schedulers", "training", "data", "evaluation", "hub"},
    {"pipelines"},
    {"runs", "commands", "sklearn"},
    {""},  # the root: public names for users
    {"examples", "__main__"},
]
BETWEEN = {  # within a layer, one way only
    *(("safety", "errors"), ("files", "errors"), ("safety", "files"), ("commands", "runs"), ("rng", "errors")),
    *(("foreign", "errors"), ("foreign", "files"), ("foreign", "safety")),
}
FORBIDDEN = {"torchvision", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "benchmarks", "tests"}


def sources():
    """Every module of the package, by its dotted name."""
    places = {(): ROOT / "src" / "latentia", ("pipelines",): ROOT / "pipelines", ("examples",): ROOT / "examples"}
    found = {}
    for inside, root in places.items():
        prefix = ("latentia", *inside)
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join((*prefix, *parts)).removesuffix(".__init__")] = path
    return found


def imports(path, module):
    """The dotted names that a file imports, wherever in it, relative ones made absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def layer_of(room):
    return next((i for i, layer in enumerate(LAYERS) if room in layer), None)


def may_import(module, name):
    if name.split(".")[0] != "latentia":
        return name.split(".")[0] not in FORBIDDEN
    room, other = room_of(module), room_of(name)
    if layer_of(other) is None:  # a public name of the root package, such as `latentia.VAE`
        other = ""
    return room == other or (room, other) in BETWEEN or layer_of(other) < layer_of(room)


SOURCES = sources()


def test_every_module_is_on_a_layer():
    assert not [module for module in SOURCES if layer_of(room_of(module)) is None]
    loose = {module for module in SOURCES if module.count(".") == 1 and not SOURCES[module].name == "__init__.py"}
    assert len(loose - {"latentia.__main__"}) <= 5, sorted(loose)


# Files are read and written by the room `files`, which asks what they are and goes through no link. Beside it:
BY_HAND = {
    "latentia.training.checkpoint",  # whose order on the disk is its own, below a folder that the run holds
    "latentia.training.state",  # the lock
    "latentia.training.progress",  # the log, to which lines are added
    "latentia.commands.main",  # what is written to a closed pipe
}
READERS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "savefig"}  # of paths
OPENED_ELSEWHERE = {"Image", "fsspec", "os", "source", "found"}


def bare_files(path):
    """Lines that open, read or write a file by its path."""
    for node in ast.walk(ast.parse(path.read_text())):
        of = node.func if isinstance(node, ast.Call) else None
        if isinstance(of, ast.Name) and of.id == "open":
            yield node.lineno
        elif isinstance(of, ast.Attribute):
            owner = getattr(of.value, "id", "")
            if (of.attr in READERS and owner not in OPENED_ELSEWHERE) or (of.attr, owner) == ("load", "json"):
                yield node.lineno


def test_files_are_opened_by_one_room_alone():
    found = {
        f"{module}:{line}"
        for module, path in SOURCES.items()
        if room_of(module) not in ("files", "examples") and module not in BY_HAND
        for line in bare_files(path)
    }
    assert not found
    assert [*bare_files(SOURCES["latentia.training.checkpoint"])]  # the rule sees them


def test_the_rule_of_layers_forbids():
    assert not may_import("latentia.models.vae", "latentia.losses.vae")
    assert not may_import("latentia.hub.push", "latentia.pipelines.base")
    assert not may_import("latentia.errors", "latentia.models")
    assert not may_import("latentia.functional.bounds", "latentia.models.vae")
    assert not may_import("latentia.models.vae", "torchvision.ops")
    assert not may_import("latentia.hub.x", "latentia.VAE")
    assert may_import("latentia.models.vae", "latentia.models.layers.norm")
    assert may_import("latentia.pipelines.vae", "latentia.models.vae")
    assert may_import("latentia.examples.train_vae", "latentia.VAE")


def test_files_do_not_import_each_other_in_circles():
    """Imports inside functions count too: a circle of files is one idea in two places."""
    graph = {
        module: {
            target
            for name in imports(path, module)
            for target in (name, name.rpartition(".")[0])
            if target in SOURCES and target != module and SOURCES[target].name != "__init__.py"
        }
        for module, path in SOURCES.items()
    }
    ends = True
    while ends:  # take away what imports nothing that is left, and what nothing that is left imports
        imported = set().union(*graph.values()) if graph else set()
        ends = {module for module, targets in graph.items() if not targets & graph.keys() or module not in imported}
        graph = {module: targets for module, targets in graph.items() if module not in ends}
    assert not graph, f"these import each other: {sorted(graph)}"


@pytest.mark.parametrize("module", SOURCES)
def test_rooms_import_only_what_they_may(module):
    wrong = [name for name in imports(SOURCES[module], module) if not may_import(module, name)]
    assert not wrong, f"{module} imports {', '.join(wrong)}"


@pytest.mark.parametrize("module", SOURCES)
def test_nothing_is_unpickled_and_nothing_evaluated(module):
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if module == "latentia.hub.unpickle" and called == "torch.load":  # a script for a process of its own
                assert "weights_only=True" in ast.unparse(node)
                continue
            assert called not in ("torch.load", "torch.save", "np.save", "eval", "exec", "os.system"), (
                f"{module}:{node.lineno} calls {called}"
            )
            if called in ("np.load", "numpy.load"):
                assert "allow_pickle=True" not in ast.unparse(node), f"{module}:{node.lineno}"
            assert "trust_remote_code=True" not in ast.unparse(node), f"{module}:{node.lineno}"


def test_nothing_imports_the_script_that_reads_pickles():
    for module, path in SOURCES.items():
        assert not any("unpickle" in name for name in imports(path, module)), module


@pytest.mark.parametrize(
    "path", sorted({*SOURCES.values(), *(ROOT / "examples").glob("*.py")}), ids=lambda path: path.name
)
def test_files_stay_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{path.name} has {lines} lines; split it by idea"


def public_modules():
    """Public name -> the module that the stub of the root takes it from."""
    tree = ast.parse((ROOT / "src" / "latentia" / "__init__.pyi").read_text(encoding="utf-8"))
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"latentia.{node.module}" for node in froms for alias in node.names}


def test_public_names_are_those_of_the_stub():
    assert {*latentia.__all__} == {*public_modules(), "__version__"} and {*public_modules()} <= {*dir(latentia)}


@pytest.mark.parametrize("name", [name for name in latentia.__all__ if name != "__version__"])
def test_public_names_are_importable_and_explained(name):
    thing = getattr(latentia, name)
    assert thing.__name__ == name
    own = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__
    assert own and own.strip(), f"latentia.{name} has no docstring of its own"
    if thing.__module__.startswith("latentia."):
        assert thing.__module__ == public_modules()[name]
        assert ">>>" in own, f"latentia.{name} has no example in its docstring"
        assert inspect.isclass(thing) or "Args:" in own
    if isinstance(thing, type) and issubclass(thing, diffusers.ModelMixin):
        assert issubclass(thing, latentia.ModelMixin), f"{name} must derive from latentia.models.modeling.ModelMixin"
    if isinstance(thing, type) and issubclass(thing, diffusers.DiffusionPipeline):
        assert issubclass(thing, latentia.DiffusionPipeline)
    # Deeper trees hide what a class does: a network is ModelMixin and ConfigMixin, a pipeline is DiffusionPipeline, of
    # tables TablePipeline, which has the words of rows.
    if isinstance(thing, type) and name not in ("ModelMixin", "SchedulerMixin", "DiffusionPipeline"):
        assert {base.__name__ for base in thing.__bases__} <= {
            *("ModelMixin", "SchedulerMixin", "ConfigMixin", "DiffusionPipeline", "TablePipeline")
        }


def test_no_parent_package_is_taken_for_one_of_diffusers():
    for name in latentia.__all__:
        parts = public_modules().get(name, "").split(".")
        if parts[0] == "latentia":
            assert len(parts) <= 3 and not hasattr(diffusers.pipelines, parts[-2]), name


def test_test_files_have_names_of_their_own():
    """pytest imports them by their names alone, in every process."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "__init__.py"]
    assert sorted(names) == sorted({*names})


def test_test_names_have_at_most_60_characters():
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
        assert [name for name in names if len(name) > 60] == [], path.name
