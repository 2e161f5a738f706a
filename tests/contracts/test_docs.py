"""Every example in docstrings, README and docs runs."""

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import shlex
import typing
from pathlib import Path

import pytest
import torch
import yaml
from helpers import load_example, perturbed

import latentia
import latentia.commands as commands
from latentia import DDIMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.commands.main import arguments
from latentia.commands.reference import data_options
from latentia.pipelines.capabilities import call_options
from latentia.runs.command_line import flat_values, parse_arguments
from latentia.runs.signal_data import arguments_of

ROOT = Path(__file__).resolve().parents[2]
MODULES = [m.name for m in pkgutil.walk_packages(latentia.__path__, "latentia.")]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


COMMAND = re.compile(
    r"(?:examples/(train_\w+)\.py|latentia train (\w+)|latentia ((?!train)[a-z]+)) ((?:(?!latentia )[^`|])*)"
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, tmp_path, monkeypatch, real_chunks):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    names = {"torch": torch, "nn": torch.nn}
    torch.manual_seed(0)
    failures, _ = doctest.testmod(module, extraglobs=names, optionflags=flags)
    assert failures == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_the_documents_run(page, tmp_path, monkeypatch):
    """Only whole programs count: blocks that import what they use. They find a pipeline where the pages train one."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    programs = [b for b in blocks if re.search(r"^import |^from ", b, re.M)]
    monkeypatch.chdir(tmp_path)
    if programs:
        torch.manual_seed(0)
        unet = perturbed(
            UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8, num_class_embeds=10)
        )
        for folder in ("outputs/demo", "outputs/digits"):
            UnconditionalDiffusionPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    names: dict = {}
    for program in programs:  # later blocks of a page may use the names of earlier ones
        exec(compile(program, str(page), "exec"), names)


def test_files_and_links_that_the_documents_name_exist():
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
        for target in re.findall(r"`((?:examples|benchmarks|docs)/[\w./-]+\.\w+)`", text):
            assert (ROOT / target).exists(), f"{page.name} names {target}"


def flags(script, command):
    """The flags of a training script or of a command of `latentia`."""
    if script:
        groups = runpy.run_path(str(ROOT / "examples" / f"{script}.py"))["Arguments"]
        return {*flat_values(groups()), "config", "help"}
    function = getattr(commands, command)
    saver = getattr(typing.get_type_hints(function)["return"], "save", None)
    known = {*arguments(function), *([] if saver is None else arguments(saver)), "help"}
    if command == "generate":  # the other options are those of the saved pipeline
        pipelines = [latentia.registration.public(name) for name in latentia.__all__ if name.endswith("Pipeline")]
        known |= {option for pipeline in pipelines for option in call_options(pipeline.__call__)}
    elif any(one.kind is one.VAR_KEYWORD for one in inspect.signature(function).parameters.values()):
        known |= {*data_options()}  # the flags of the data of the training scripts
    return known


def test_every_flag_of_a_documented_command_exists():
    found = 0
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        text = re.sub(r"(?<!`)`[^`]+`(?!`)", lambda code: code[0].replace("\n", " "), text)
        for line in text.splitlines():
            for script, family, command, rest in COMMAND.findall(line):
                named = set(re.findall(r"--(\w+)", rest))
                known = flags(script or (family and f"train_{family}"), command) if named else set()
                unknown = {name for name in named if name not in known and name.removeprefix("no_") not in known}
                assert not unknown, f"{page.name}: {line.strip()} has no --{', --'.join(unknown)}"
                found += len(named)
    assert found > 60


def printed_commands():
    """The lines of the pages' code blocks that train something, whole, as (page, script, words)."""
    start = re.compile(r"^(?:accelerate launch |python )?(?:examples/(train_\w+)\.py|(?:-m )?latentia train (\w+)) ")
    for page in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in [] if language else block.replace("\\\n", " ").splitlines():
                found = start.match(line)
                words = shlex.split(line[found.end() :], comments=True) if found else ["..."]
                if found and not {"...", "--help", "|"} & set(words):
                    yield page.name, found[1] or f"train_{found[2]}", words


PRINTED = [*printed_commands()]


def test_printed_commands_are_found():
    assert len(PRINTED) > 25 and {"README.md", "quicktour.md", "resume.md"} <= {page for page, *_ in PRINTED}


@pytest.mark.parametrize(
    ("page", "script", "words"), PRINTED, ids=[f"{page}-{i}" for i, (page, *_) in enumerate(PRINTED)]
)
def test_printed_training_commands_are_accepted(page, script, words):
    """Flags, types and values: all that is checked before data are read. `--config` files are another run's."""
    if "--config" not in words:
        parse_arguments(arguments_of(load_example(script).Arguments, words), words, description="")


def test_the_first_commands_of_the_readme_need_nothing_else():
    """What is trained first is in the package, takes its time from a flag, and is what the first program loads."""
    first, second = re.findall(r"^```(?:python)?\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[:2]
    install, train = first.splitlines()
    assert install.startswith("pip install .")
    [words] = [words for page, _, words in PRINTED if page == "README.md" and shlex.join(words) in train]
    assert words[words.index("--dataset_name") + 1] == "digits" and "--minutes" in words
    assert f'from_pretrained("{words[words.index("--output_dir") + 1]}")' in second
    named = re.findall(r"\.\[([\w,]+)\]", (ROOT / "README.md").read_text())
    setup = (ROOT / "setup.py").read_text()
    assert named and all(f'"{extra}": [' in setup for group in named for extra in group.split(","))


def test_the_environment_is_entered_where_commands_begin():
    for page in ("README.md", "docs/quicktour.md"):
        text = (ROOT / page).read_text()
        made = text.index("make demo")
        entered, used = text.index(". .venv/bin/activate", made), text.index("\nlatentia ", made)
        assert made < entered < used, page


@pytest.mark.parametrize("command", commands.__all__)
def test_every_flag_of_a_command_has_a_help_text(command):
    """Flags of training scripts are checked in tests/runs/test_arguments.py."""
    function = getattr(commands, command)
    saver = getattr(typing.get_type_hints(function)["return"], "save", None)
    known = {**arguments(function), **({} if saver is None else arguments(saver))}
    texts = {name: [getattr(about, "help", None) for about in p.annotation.__metadata__] for name, p in known.items()}
    if command == "generate":
        pipelines = [latentia.registration.public(name) for name in latentia.__all__ if name.endswith("Pipeline")]
        options = {key: one for pipeline in pipelines for key, one in call_options(pipeline.__call__).items()}
        texts |= {key: [option.help] for key, option in options.items()}
    assert texts and not [name for name, found in texts.items() if not any(text and len(text) > 5 for text in found)]


SEARCHED = {  # a term of the field -> the page that must be found by it, in its title or first paragraph
    "distillation": "few-steps.md",
    "inpainting": "image-to-image.md",
    "super-resolution": "image-to-image.md",
    "img2img": "image-to-image.md",
    "resume": "resume.md",
    "checkpoint": "resume.md",
    "FID": "evaluation.md",
    "own images": "own-images.md",
    "fine-tuning": "own-images.md",
    "mixed precision": "mixed-precision.md",
    "multi-GPU": "distributed.md",
    "latentia train": "train.md",
    "exit code": "exit-codes.md",
    "untrusted": "untrusted-files.md",
    "generate": "generate.md",
    "GAN": "gans.md",
    "variational autoencoder": "vae.md",
    "amortisation gap": "inference.md",
    "variational inference": "inference.md",
    "beta-TCVAE": "which-vae.md",
    "VQ-VAE": "vqvae.md",
    "normalizing flow": "flows.md",
    "ControlNet": "control.md",
    "DDIM inversion": "editing.md",
    "pix2pix-zero": "editing.md",
    "pix2pix": "translation.md",
    "CycleGAN": "translation.md",
    "colourisation": "translation.md",
    "PixelCNN": "autoregressive.md",
    "MADE": "autoregressive.md",
    "causal transformer": "autoregressive.md",
    "CSV": "tables.md",
    "anomaly detection": "anomalies.md",
    "outlier detection": "anomalies.md",
    "synthetic": "tables.md",
    "time series": "series.md",
    "WAV": "sound.md",
    "spectrograms": "sound.md",
    "DDPM": "diffusion.md",
    "CLIP": "text-encoders.md",
    "text-to-image": "text-to-image.md",
}


@pytest.mark.parametrize("term", SEARCHED)
def test_searched_terms_open_their_page(term):
    title, first, *_ = (ROOT / "docs" / SEARCHED[term]).read_text().split("\n\n")
    assert title.startswith("# ")
    assert term.lower() in f"{title}\n{first}".lower().replace("\n", " ")


def navigation(entries):
    for entry in entries:
        values = entry.values() if isinstance(entry, dict) else [entry]
        for value in values:
            yield from navigation(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_and_the_readme():
    lines = (ROOT / "mkdocs.yml").read_text()
    listed = list(navigation(yaml.safe_load(lines[lines.index("\nnav:") :])["nav"]))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert len(listed) == len(set(listed))
    assert pages <= set(listed)
    generated = {"index.md", "commands/", "api/", "security.md", "changelog.md", "contributing.md"}
    assert set(listed) - pages == generated
    readme = (ROOT / "README.md").read_text()
    assert {page for page in pages if f"(docs/{page})" not in readme} == set()


def test_the_citation_has_the_version_of_the_package():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == latentia.__version__


def test_every_test_that_the_guarantees_name_exists():
    pages = [(ROOT / "docs" / name).read_text() for name in ("guarantees.md", "faults.md")]
    named = [found for page in pages for found in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)]
    assert len(named) > 80
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.M), f"{file} has no {name}"
