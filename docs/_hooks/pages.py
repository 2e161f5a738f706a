"""Hooks of mkdocs that write the generated pages: home, API reference by room, command line, texts beside the README.

The API pages follow the source tree, one page for each module, so a new module appears without being listed. The pages
of the command line are what the real `--help` prints.
"""

import ast
import io
import os
import re
import runpy
import sys
from contextlib import chdir, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from latentia import commands as public_commands
from latentia.commands.main import main

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"latentia": ROOT / "src" / "latentia", "latentia.pipelines": ROOT / "pipelines"}
HOME = "README.md"
TEXTS = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
BELOW = "---\nsearch:\n  boost: 0.3\n"  # generated pages are found after those that people wrote
Nav = list[dict[str, "str | Nav"]]


def on_config(config: MkDocsConfig) -> None:
    """Replace "api/" and "commands/" in the navigation by their pages."""
    generated = {"api/": api_nav(), "commands/": command_nav()}
    for part in config.nav or []:
        for entries in part.values():
            if isinstance(entries, list):
                entries[:] = [generated.get(entry, entry) if isinstance(entry, str) else entry for entry in entries]
                for entry in entries:
                    if isinstance(entry, dict):
                        entry.update({name: generated.get(page, page) for name, page in entry.items()})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages to those of docs/."""
    for path, text in {**home_pages(), **command_pages(), **api_pages()}.items():
        files.append(File.generated(config, path, content=text))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links of docs/ to the README and its neighbours to their pages."""
    return moved(markdown, "../") if "/" not in page.file.src_uri else markdown


@cache
def modules() -> dict[str, Path]:
    """Name and file of each public module, sorted by name."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            if not any(part.startswith("_") for part in name.split(".")) and "pipelines" not in parts:
                found[name] = file
    return dict(sorted(found.items()))


def rooms() -> dict[str, list[str]]:
    """The modules of each room; those that lie loose in latentia are the last room, "latentia"."""
    found: dict[str, list[str]] = {}
    for name, file in modules().items():
        if name != "latentia":
            loose = name.count(".") == 1 and file.name != "__init__.py"
            found.setdefault("latentia" if loose else ".".join(name.split(".")[:2]), []).append(name)
    return dict(sorted(found.items(), key=lambda room: (room[0] == "latentia", room[0])))


def page_of(name: str) -> str:
    """The page of a module, with `index.md` for a package."""
    path = name.removeprefix("latentia.").replace(".", "/")
    return f"api/{path}/index.md" if modules()[name].name == "__init__.py" else f"api/{path}.md"


def api_nav() -> Nav:
    """The API index and one entry for each room, with its modules."""
    nav: Nav = [{"API": "api/index.md"}]
    for room, names in rooms().items():
        entries: Nav = [{name.removeprefix(room + "."): page_of(name)} for name in names]
        nav.append({room.removeprefix("latentia."): entries})
    return nav


def api_pages() -> dict[str, str]:
    """One page for each module, and the table of all of them."""
    pages = {
        page_of(n): f"{BELOW}---\n\n# {n}\n\n::: {n}\n    options:\n      show_root_heading: false\n"
        for n in modules()
        if n != "latentia"
    }
    lines = ["# API reference", "", "Each page is made from the docstrings of one module.", ""]
    for room, names in rooms().items():
        lines += [f"## {room}", "", "| module | |", "|---|---|"]
        lines += [f"| [`{name}`]({page_of(name).removeprefix('api/')}) | {first_line(name)} |" for name in names]
        lines.append("")
    return pages | {"api/index.md": "\n".join(lines)}


def first_line(name: str) -> str:
    """The first paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(modules()[name].read_text(encoding="utf-8"))) or ""
    return docstring.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def help_of(*words: str) -> str:
    """What `--help` prints, without colours and boxes. In this process, so that torch is imported once."""
    program, *more = words
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    plain = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    with patch.object(sys, "argv", [*words, "--help"]), patch.dict(os.environ, plain), chdir(ROOT):
        with redirect_stdout(shown), suppress(SystemExit):
            if program == "latentia":
                main([*more, "--help"])
            else:
                runpy.run_path(program, run_name="__main__")
    shown.seek(0)
    text = re.sub(r"^╭─ (.*?) ─*╮$", r"\n\1", shown.read(), flags=re.M)
    text = re.sub(r"^(╰─*╯|│ ─+ │)$\n?", "", text, flags=re.M)
    text = re.sub(r"^│( .*)│$", r"\1", text, flags=re.M)
    if "usage:" not in text:
        raise RuntimeError(f"{' '.join(words)} --help prints no usage")
    return re.sub(r" +$", "", text, flags=re.M).strip()


def commands() -> dict[str, tuple[str, ...]]:
    """Title and command line of `latentia`, each of its commands and each training script."""
    named = {f"latentia {name}": ("latentia", name) for name in public_commands.__all__}
    scripts = {file.name: (f"examples/{file.name}",) for file in sorted((ROOT / "examples").glob("train_*.py"))}
    return {"latentia": ("latentia",), **named, **scripts}


def command_page(title: str) -> str:
    return f"commands/{title.removeprefix('latentia ').removesuffix('.py')}.md"


def command_nav() -> Nav:
    return [{title: command_page(title)} for title in commands()]


def command_pages() -> dict[str, str]:
    """The help of each command and script on a page of its own."""
    return {
        command_page(title): f"{BELOW}hide: [toc]\n---\n\n# {title}\n\n```text\n{help_of(*words)}\n```\n"
        for title, words in commands().items()
    }


def home_pages() -> dict[str, str]:
    """The README as the home page, and the texts that lie beside it."""
    pages = {name.lower(): moved((ROOT / name).read_text(encoding="utf-8"), "") for name in (HOME, *TEXTS)}
    home = pages.pop(HOME.lower())
    return pages | {"index.md": f"---\nhide: [navigation]\n---\n\n{home}"}


def moved(text: str, prefix: str) -> str:
    """Links of `text` as they are on the site, where README.md is the index and TEXTS lie among the pages of docs/."""
    text = text.replace("](docs/", "](")
    for name in (HOME, *TEXTS):
        text = text.replace(f"]({prefix}{name}", "](index.md" if name == HOME else f"]({name.lower()}")
    return text
