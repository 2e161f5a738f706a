"""A range beside every number: each flag of each script is tried with numbers that are out of bounds, up to step 1."""

import dataclasses
import math
import sys
import typing

import pytest
from children import EXAMPLES
from helpers import load_example

from latentia.errors import UsageError, range_of
from latentia.runs import run
from latentia.runs.arguments import RunArguments, check_ranges
from latentia.runs.command_line import parse_arguments, run_script, with_values

SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("train_*.py"))
VALUES = (-1, 0, math.nan, math.inf, 1e308, 10**30)
SHARED = {type(getattr(RunArguments(), field.name)) for field in dataclasses.fields(RunArguments)}
WITHOUT_OTHERS = (
    "autoencoder",
    "autoencoder_kl",
    "cycle",
    "ddpm",
    "flow",
    "flow_plane",
    "gan",
    "gan_plane",
    "pixelcnn",
    "recurrent_autoencoder",
    "series",
    "sound",
    "text",
    "table",
    "text_encoder",
    "translation",
    "vae",
    "vae_gan",
    "vqvae",
)
SMALL = {  # what makes a first step quick
    "autoencoder": {"latent_dim": 2, "prior_samples": 40, "prior_components": 2},
    "autoencoder_kl": {"block_out_channels": [8, 8], "perceptual_weight": 0.0, "discriminator_channels": [4, 4]},
    "cycle": {"dataset_name": "emoji", "image_column": "noto", "target_column": "twemoji", "num_res_blocks": 1},
    "ddpm": {"block_out_channels": [8], "attention_head_dim": 8, "num_inference_steps": 1},
    "flow": {"num_layers": 2, "hidden_sizes": [4, 4], "num_stages": 1},
    "flow_plane": {"num_layers": 2, "hidden_sizes": [4]},
    "gan": {"block_out_channels": [4], "latent_dim": 2},
    "gan_plane": {},
    "pixelcnn": {"hidden_channels": 4, "layers": 1, "first_kernel_size": 3},
    "recurrent_autoencoder": {"latent_dim": 2, "hidden_size": 4, "prior_samples": 40, "prior_components": 2},
    "series": {"dataset_name": "sines_ar2", "block_out_channels": [8], "attention_head_dim": 8},
    "sound": {"dataset_name": "tones", "max_train_samples": 10, "block_out_channels": [8], "attention_head_dim": 8},
    "text": {"dataset_name": "moby_dick", "context_length": 8, "width": 8, "layers": 1, "eval_characters": 0},
    "table": {"dataset_name": "iris", "hidden_sizes": [4], "components": 2},
    "text_encoder": {"dataset_name": "emoji", "width": 32, "text_layers": 1, "image_layers": 1},
    "translation": {"degrade": "noised", "block_out_channels": [4, 4], "discriminator_channels": [4, 4]},
    "vae": {"latent_dim": 2, "hidden_sizes": [4]},
    "vae_gan": {"block_out_channels": [4], "latent_dim": 2, "discriminator_block_out_channels": [4]},
    "vqvae": {"block_out_channels": [4], "latent_channels": 2, "codebook_size": 8, "prior_samples": 40},
}


class FirstStep(Exception):
    """The run would train now."""


def number_flags(arguments):
    """(name, type) of each flag that is a number, or several."""
    for field in dataclasses.fields(arguments):
        group = type(getattr(arguments, field.name))
        for name, hint in typing.get_type_hints(group, include_extras=True).items():
            flat = str(typing.get_type_hints(group)[name])
            if name != "flags" and ("int" in flat or "float" in flat) and "Literal" not in flat:
                yield group, name, hint, "float" in flat, "tuple" in flat and "int |" not in flat


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_of_every_flag_has_a_range(script):
    flags = list(number_flags(load_example(script).Arguments()))
    assert len(flags) > 20
    assert [name for _, name, hint, *_ in flags if range_of(hint) is None] == []


def tried(arguments, only_own):
    """(flag, value, whether it is legal, the arguments with it) of all flags and values that their types allow."""
    for group, name, hint, is_float, several in number_flags(arguments):
        if only_own and group in SHARED:
            continue
        for value in VALUES:
            if is_float or isinstance(value, int):
                filled = with_values(arguments, {name: [value] if several else value}, "run.yaml")
                yield name, value, value in range_of(hint), filled


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_number_out_of_its_range_is_refused_by_name(script):
    refused = 0
    for name, value, legal, filled in tried(load_example(script).Arguments(), only_own=False):
        if legal:
            check_ranges(filled)
        else:
            with pytest.raises(UsageError, match=rf"^{name} must (each )?be .*; got "):
                check_ranges(filled)
            refused += 1
        assert not legal or abs(value) < 1e30
    assert refused > 60


@pytest.mark.parametrize("script", WITHOUT_OTHERS)
def test_a_legal_number_reaches_the_first_step(script, tmp_path, monkeypatch, capsys):
    """Or an error of ours names the flag: no traceback of torch or numpy."""

    def first_step(*_, **__):
        raise FirstStep

    example = load_example(f"train_{script}")
    monkeypatch.setattr(run, "train", first_step)
    output = {"output_dir": str(tmp_path / "run"), "max_train_steps": 2, "train_batch_size": 8}
    output |= {} if script.endswith("_plane") else {"dataset_name": "digits"}
    output |= {} if script.endswith("_plane") or script in ("text", "text_encoder") else {"eval_num_samples": 0}
    small = with_values(example.Arguments(), output | SMALL[script], "run.yaml")
    reached = 0
    for name, value, legal, filled in tried(small, only_own=script != "vae"):
        if legal:
            try:
                example.main(filled)
            except FirstStep:
                reached += 1
            except UsageError as error:
                assert name in str(error), (name, value)
    assert reached > 0


def test_the_command_line_names_the_flag_and_its_rule(capsys, monkeypatch, tmp_path):
    example = load_example("train_vae")
    for flag, value, text in (
        ("--seed", 10**30, "--seed must be at most 9.22337e+18; got 1000000"),
        ("--minutes", "1e308", "--minutes must be at most 1000000; got 1e+308"),
        ("--distributed_timeout", "nan", "--distributed_timeout must be positive and finite; got nan"),
        ("--observation_std", 0, "--observation_std must be positive; got 0.0"),
        ("--latent_dim", -3, "--latent_dim must be at least 1; got -3"),
        ("--seed", "nan", "--seed"),
        ("--train_batch_size", "1e308", "--train_batch_size"),
    ):
        monkeypatch.setattr(sys, "argv", ["train_vae.py", flag, str(value), "--output_dir", str(tmp_path / "run")])
        with pytest.raises(SystemExit) as ended:
            run_script(example.Arguments, lambda args: pytest.fail("it has begun"), "test")
        said = capsys.readouterr()
        assert ended.value.code == 2 and text in said.err + said.out and "Traceback" not in said.err


def test_help_shows_the_range_beside_the_default(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(load_example("train_vae").Arguments, ["--help"], description="test", prog="train")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for said in ("(at least 1; default: 64)", "(in [0, 1); default: 0.99)", "(positive; default: 0.001)"):
        assert said in text
    assert "(at least 1; default: 16)" in text  # of the network


def test_sizes_beyond_the_memory_are_said(capsys, monkeypatch, tmp_path):
    words = ["--dataset_name", "digits", "--hidden_sizes", "1000000", "1000000", "--output_dir", str(tmp_path / "run")]
    example = load_example("train_vae")
    monkeypatch.setattr(sys, "argv", ["train_vae.py", *words])
    with pytest.raises(SystemExit) as ended:
        run_script(example.Arguments, example.main, "test")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "error: There is not enough memory" in said and "Traceback" not in said

    def broken(args):
        raise RuntimeError("another fault")

    with pytest.raises(RuntimeError, match="another fault"):
        run_script(example.Arguments, broken, "test")
