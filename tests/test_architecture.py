"""The rules of the house, read from the sources: who imports whom, what nobody imports, how long a file is."""

import ast
import inspect
from pathlib import Path

import diffusers
import pytest

import latentia

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"models", "losses", "schedulers", "training", "data", "evaluation", "hub"}
SHARED = {"errors", "random", "untrusted"}
HOUSE = {
    "pipelines",
    "cli",
    "registration",
    "run",
    "watch",
    "scoreboard",
    "comparison",
    "sources",
    "embedding",
    "generation",
    "doctor",
    "monitor",
    "cli_hub",
    "verification",
}  # what knows several rooms
FORBIDDEN = {"torchvision", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "examples", "benchmarks", "tests"}


def sources():
    """Every module of the package, by its dotted name."""
    package, pipelines = ROOT / "src" / "latentia", ROOT / "pipelines"
    found = {}
    for root, prefix in ((package, ("latentia",)), (pipelines, ("latentia", "pipelines"))):
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


def may_import(module, name):
    parts, target = module.split("."), name.split(".")
    if target[0] != "latentia":
        return target[0] not in FORBIDDEN
    room, other = (part[1] if len(part) > 1 else "" for part in (parts, target))
    if other in SHARED or other == room:
        return True
    if room in SHARED or room == "registration":
        return False
    if room in ROOMS:
        return other not in ROOMS | HOUSE
    if room == "pipelines":
        return other != "cli"
    return True  # the package's own root, the command line


SOURCES = sources()


def test_the_rule_itself_bites():
    assert not may_import("latentia.models.vae", "latentia.losses.vae")
    assert not may_import("latentia.hub.push", "latentia.pipelines.base")
    assert not may_import("latentia.errors", "latentia.models")
    assert not may_import("latentia.models.vae", "torchvision.ops")
    assert may_import("latentia.models.vae", "latentia.models.blocks") and may_import("latentia.hub.x", "latentia")
    assert may_import("latentia.pipelines.vae", "latentia.models.vae")
    assert {module.split(".")[1] for module in SOURCES if "." in module} >= ROOMS | SHARED | {"pipelines"}


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


def test_the_root_says_its_names_three_times_alike():
    tree = ast.parse((ROOT / "src" / "latentia" / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        for alias in node.names
    }
    assert typed == latentia._EXPORTS
    assert set(latentia.__all__) == {*latentia._EXPORTS, "__version__"} <= set(dir(latentia))


@pytest.mark.parametrize("name", [name for name in latentia.__all__ if name != "__version__"])
def test_public_names_are_importable_and_explained(name):
    thing = getattr(latentia, name)
    assert thing.__name__ == name
    own = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__
    assert own and own.strip(), f"latentia.{name} has no docstring of its own"
    if thing.__module__.startswith("latentia."):
        assert thing.__module__ == latentia._EXPORTS[name]
        assert ">>>" in own, f"latentia.{name} has no example in its docstring"
        assert inspect.isclass(thing) or "Args:" in own
    if isinstance(thing, type) and issubclass(thing, diffusers.ModelMixin):
        assert issubclass(thing, latentia.ModelMixin), f"{name} must derive from latentia.models.modeling.ModelMixin"
    if isinstance(thing, type) and issubclass(thing, diffusers.DiffusionPipeline):
        assert issubclass(thing, latentia.DiffusionPipeline)
    # Deeper trees hide what a class does: a network is ModelMixin and ConfigMixin, a pipeline is DiffusionPipeline.
    if isinstance(thing, type) and name not in ("ModelMixin", "SchedulerMixin", "DiffusionPipeline"):
        assert {base.__name__ for base in thing.__bases__} <= {
            *("ModelMixin", "SchedulerMixin", "ConfigMixin", "DiffusionPipeline")
        }


def test_no_component_has_a_parent_package_that_diffusers_takes_for_its_own():
    for name in latentia.__all__:
        parts = latentia._EXPORTS.get(name, "").split(".")
        if parts[0] == "latentia":
            assert len(parts) <= 3 and not hasattr(diffusers.pipelines, parts[-2]), name
