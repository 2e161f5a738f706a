"""Measure the structure of the code: loose modules, circles, families that import each other, share of idea in scripts.

    python benchmarks/structure.py
    python benchmarks/structure.py --checkout ../latentia-before

A family file is one of `models/`, `pipelines/` or `examples/` that is about one family; what several share is listed in
`SHARED`. The idea of a script is its lines of code that are no imports and stand in no two other scripts. The table is
printed, and for this checkout written to `benchmarks/results/structure.json`.
"""

import argparse
import ast
import io
import json
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SHARED = {  # by several families
    *"__init__ base modeling layers convolution priors players levels mixture inputs outputs capabilities".split(),
    *"arguments sampling conditioning latents texts prompts images rejection denoising threads codebook".split(),
    "image_conditioning",
}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for inside, place in ((("latentia",), root / "src" / "latentia"), (("latentia", "pipelines"), root / "pipelines")):
        for path in sorted(place.rglob("*.py")):
            parts = path.relative_to(place).with_suffix("").parts
            found[".".join((*inside, *parts)).removesuffix(".__init__")] = path
    return found


def imports(module: str, path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in it, relative ones made absolute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            named = {f"{start}.{alias.name}" for alias in node.names}
            rooms = start == "latentia" and all(
                (HERE / "src" / "latentia" / alias.name).is_dir() for alias in node.names
            )
            found |= named if rooms else named | {start}  # a room of the package is not its public names
    return found


def circles(graph: dict[str, set[str]]) -> int:
    """How many groups of files import each other."""
    reach = {node: set(targets) for node, targets in graph.items()}
    changed = True
    while changed:
        changed = False
        for targets in reach.values():
            more = set().union(*(reach[target] for target in targets)) - targets if targets else set()
            if more:
                targets |= more
                changed = True
    return len({frozenset(n for n in reach[node] if node in reach[n]) for node in reach if node in reach[node]})


def code_lines(path: Path) -> list[str]:
    """The lines of code without comments, docstrings and imports."""
    text = path.read_text(encoding="utf-8")
    tree, left_out = ast.parse(text), set()
    for node in ast.walk(tree):
        doc = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if doc or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= {*range(node.lineno, node.end_lineno + 1)}
    kinds = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}
    used = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type in kinds}
    return [line.strip() for i, line in enumerate(text.splitlines(), 1) if i in used - left_out]


def measure(root: Path) -> dict:
    """The numbers of a checkout."""
    found = modules(root)
    graph = {
        name: {
            target
            for imported in imports(name, path)
            for target in (imported, imported.rpartition(".")[0])
            if target in found and target != name and found[target].name != "__init__.py"
        }
        for name, path in found.items()
    }
    loose = [name for name in found if name.count(".") == 1 and found[name].name != "__init__.py"]
    families = [
        (name, target)
        for name, targets in graph.items()
        for target in targets
        for room in (("models",), ("pipelines",))
        if name.split(".")[1:2] == target.split(".")[1:2] == [*room]
        and name.split(".")[2] not in SHARED
        and target.split(".")[2] not in SHARED
    ]
    scripts = {path.stem: code_lines(path) for path in sorted((root / "examples").glob("train_*.py"))}
    seen = Counter(line for lines in scripts.values() for line in {*lines})
    idea = {name: sum(seen[line] < 3 for line in lines) for name, lines in scripts.items()}
    total = {
        name: len(path.read_text().splitlines()) for name, path in ((p.stem, p) for p in root.glob("examples/train_*"))
    }
    root_imports = [
        name
        for name, path in found.items()
        if "latentia" in imports(name, path) and name.count(".") > 1 and name.split(".")[1] not in ("examples",)
    ]
    return {
        "modules": len(found),
        "loose_modules": len([name for name in loose if name != "latentia.__main__"]),
        "circles_of_files": circles(graph),
        "files_that_import_the_root_package": sorted(root_imports),
        "imports_of_one_family_from_another": len(families),
        "which": sorted(f"{a} -> {b}" for a, b in families),
        "lines_of_scripts": sum(total.values()),
        "share_of_idea": round(sum(idea.values()) / sum(total.values()), 3),
        "share_of_idea_in_code": round(sum(idea.values()) / sum(map(len, scripts.values())), 3),
        "longest_file": max((len(path.read_text().splitlines()), name) for name, path in found.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=HERE)
    args = parser.parse_args()
    describe = ["git", "-C", str(args.checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    result = {"command": "python benchmarks/structure.py", "commit": commit, **measure(args.checkout.resolve())}
    print(json.dumps(result, indent=1))
    if args.checkout == HERE:
        (HERE / "benchmarks" / "results" / "structure.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
