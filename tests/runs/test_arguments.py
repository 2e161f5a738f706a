"""Flags: defaults, then the file, then the command line; and a message for everything that is wrong."""

import dataclasses
import importlib
import inspect
import json
import re
import typing
from pathlib import Path

import pytest
import yaml
from children import EXAMPLES
from helpers import load_example

from latentia import VAE
from latentia.errors import UsageError
from latentia.runs.arguments import NetworkArguments, network_arguments
from latentia.runs.command_line import flat_values, parse_arguments, run_identity

EXAMPLE = EXAMPLES / "train_ddpm.py"
train_ddpm = load_example("train_ddpm")
Arguments = train_ddpm.Arguments


def parse(*argv, config=None, folder=None, name="run.yaml"):
    if config is not None:
        path = folder / name
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        argv = ("--config", str(path), *argv)
    return parse_arguments(Arguments, [str(word) for word in argv], description="test", prog="train")


def test_precedence(tmp_path):
    config = {"seed": 1, "train_batch_size": 8}
    assert parse().optimization.seed == 0
    args = parse("--train_batch_size", 16, config=config, folder=tmp_path)
    assert (args.optimization.seed, args.optimization.train_batch_size) == (1, 16)
    assert args.optimization.learning_rate == parse().optimization.learning_rate
    before = parse("--train_batch_size", 16, "--config", tmp_path / "run.yaml")  # wherever it stands
    assert before == args == parse("--train_batch_size", 16, f"--config={tmp_path / 'run.yaml'}")


@pytest.mark.parametrize("text, value", [("false", False), ("no", False), ("true", True), ("off", False)])
def test_booleans_of_yaml(tmp_path, text, value):
    args = parse(config=f"use_ema: {text}\ncenter_crop: {text}\nstreaming: {text}", folder=tmp_path)
    assert (args.ema.use_ema, args.data.center_crop, args.data.streaming) == (value,) * 3


def test_booleans_on_the_command_line(tmp_path):
    args = parse("--no_use_ema", "--streaming", config={"use_ema": True, "streaming": False}, folder=tmp_path)
    assert args.ema.use_ema is False and args.data.streaming is True


@pytest.mark.parametrize(
    "text, name, value",
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),
        ("learning_rate: 2E+1", "learning_rate", 20.0),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("adam_epsilon: 1.5e-08", "adam_epsilon", 1.5e-8),
        ("mixed_precision: no", "mixed_precision", "no"),
        ("mixed_precision: 'no'", "mixed_precision", "no"),
        ("mixed_precision: bf16", "mixed_precision", "bf16"),
        ("max_train_steps: null", "max_train_steps", None),
        ("max_train_steps: 5", "max_train_steps", 5),
        ("resume_from_checkpoint: none", "resume_from_checkpoint", "none"),
        ("block_out_channels: [8, 16]", "block_out_channels", [8, 16]),
        ("channels: 3", "channels", 3),
        ("channels: null", "channels", None),
    ],
)
def test_values_as_people_write_them_in_yaml(tmp_path, text, name, value):
    found = flat_values(parse(config=text, folder=tmp_path))[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("lerning_rate: 0.1", 'unknown key "lerning_rate". Did you mean "learning_rate"?'),
        ("optimization: {seed: 1}", 'unknown key "optimization"'),
        ("1: 2", 'unknown key "1"'),
        ("train_batch_size: true", "train_batch_size must be of type int; got True (bool)"),
        ("train_batch_size: 8.0", "train_batch_size must be of type int; got 8.0 (float)"),
        ("train_batch_size: '8'", "train_batch_size must be of type int; got '8' (str)"),
        ("train_batch_size: [8]", "train_batch_size must be of type int; got [8] (list)"),
        ("train_batch_size: null", "train_batch_size must be of type int; got None"),
        ("max_train_steps: many", "max_train_steps must be of type int; got 'many' (str)"),
        ("learning_rate: fast", "learning_rate must be of type float; got 'fast' (str)"),
        ("learning_rate: true", "learning_rate must be of type float; got True (bool)"),
        ("use_ema: 1", "use_ema must be of type bool; got 1 (int)"),
        ("use_ema: 'false'", "use_ema must be of type bool; got 'false' (str)"),
        ("output_dir: 7", "output_dir must be of type str; got 7 (int)"),
        ("block_out_channels: 64", "block_out_channels must be of type tuple; got 64 (int)"),
        ("block_out_channels: '64'", "block_out_channels must be of type tuple; got '64' (str)"),
        ("block_out_channels: [64, wide]", "block_out_channels must be of type int; got 'wide' (str)"),
        ("mixed_precision: fp61", "mixed_precision must be one of ('no', 'fp16', 'bf16'); got 'fp61'"),
        ("mixed_precision: yes", "got True"),
        ("lr_scheduler: cosin", 'Did you mean "cosine"?'),
        ("channels: 2", "channels must be one of (1, 3, 4); got 2"),
        ("channels: true", "channels must be one of (1, 3, 4); got True"),
        ("channels: '3'", "channels must be one of (1, 3, 4); got '3'"),
        ("- seed", "must hold a mapping of flags to values; got list"),
        ("", "must hold a mapping of flags to values; got NoneType"),
        ("seed", "must hold a mapping of flags to values; got str"),
        ("seed: [1", "is not valid YAML or JSON"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, text, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse(config=text, folder=tmp_path)
    assert "run.yaml" in str(caught.value) and caught.value.exit_code == 2


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"--config .*missing\.yaml cannot be read: .* holds no file missing.yaml"):
        parse("--config", tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match=r"cannot be read: .* must be a regular file; it is a folder"):
        parse("--config", tmp_path)
    with pytest.raises(UsageError, match="--config needs the path"):
        parse("--config")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UsageError, match="must be text in UTF-8"):
        parse("--config", tmp_path / "binary.yaml")
    with pytest.raises(UsageError, match="not valid YAML or JSON"):
        parse(config='{"seed": 1', folder=tmp_path, name="run.json")
    with pytest.raises(UsageError, match="is not valid YAML or JSON"):
        parse(config="!!python/object/apply:os.system ['true']", folder=tmp_path)


def test_an_unknown_flag_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--learning_rte", "0.1")
    assert caught.value.code == 2
    message = "".join(capsys.readouterr())
    assert "learning_rte" in message and "--learning_rate" in message.replace("-\n", "-")


@pytest.mark.parametrize("argv", [("--seed", "one"), ("--seed", "1.5"), ("--channels", "2"), ("--seed",), ("word",)])
def test_a_command_line_that_is_wrong(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    assert argv[0].strip("-").replace("_", "")[:4] in "".join(capsys.readouterr()).replace("_", "").replace("-", "")


def test_the_configuration_a_run_leaves_gives_the_same_run(tmp_path):
    args = parse(
        *("--dataset_name", "digits", "--max_train_steps", 7, "--block_out_channels", 8, 16, "--learning_rate", "1e-5"),
        *("--no_use_ema", "--train_data_dir", "größe/😀", "--channels", 1, "--adam_epsilon", "1e-10"),
    )
    (tmp_path / "training_config.json").write_text(json.dumps(flat_values(args), indent=1))
    again = parse("--config", tmp_path / "training_config.json")
    assert again == args and again != parse()
    (tmp_path / "same.yaml").write_text(yaml.safe_dump(flat_values(args)))
    assert parse("--config", tmp_path / "same.yaml") == args
    (tmp_path / "defaults.json").write_text(json.dumps(flat_values(parse())))
    assert parse("--config", tmp_path / "defaults.json") == parse()


def test_what_makes_a_run_another_one():
    def identity(*argv):
        return run_identity(parse(*argv))

    assert json.loads(json.dumps(identity())) == identity()
    for free in ("--max_train_steps", "--num_train_epochs", "--train_batch_size", "--gradient_accumulation_steps"):
        assert identity(free, 3) == identity()
    assert identity("--compile") == identity("--gradient_checkpointing") == identity("--output_dir", "x") == identity()
    for bound in (("--learning_rate", 1), ("--seed", 1), ("--no_use_ema",), ("--snr_gamma", 1), ("--dropout", 0.1)):
        assert identity(*bound) != identity()


# A flag is a promise to every script that uses it: taking one away or renaming it has to be meant.
FLAGS = """
    dataset_name dataset_config_name dataset_revision train_data_dir split image_column label_column caption_column
    resolution channels center_crop random_flip max_train_samples streaming on_bad_image dataloader_num_workers
    cache_dir coupling_size few_steps degrade strength target_column target_data_dir control_from
    block_out_channels patch_size layers_per_block attention_head_dim dropout class_conditional learned_variance
    num_train_timesteps beta_schedule prediction_type time_sampling time_loc time_scale loss_weighting snr_gamma
    class_dropout
    train_batch_size gradient_accumulation_steps max_train_steps num_train_epochs learning_rate scale_lr lr_scheduler
    minutes init_from attention_stages
    lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm on_nonfinite max_skips
    mixed_precision allow_tf32
    gradient_checkpointing compile distributed_timeout seed
    use_ema ema_decay ema_warmup
    validation_steps eval_steps eval_num_samples eval_metrics num_inference_steps
    output_dir overwrite_output_dir checkpointing_steps checkpoints_total_limit resume_from_checkpoint report_to
    logging_dir tracker_project_name logging_steps profile
    push_to_hub hub_model_id hub_private_repo hub_license
""".split()


def test_the_flags_of_train_ddpm(capsys):
    assert sorted(flat_values(Arguments())) == sorted(FLAGS)
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert {word for word in re.findall(r"--([a-z_0-9]+)", text) if not word.startswith("no_")} == {"help", *FLAGS}


def test_no_flag_takes_a_secret():
    assert not [flag for flag in FLAGS if re.search("token|secret|password|key", flag)]


SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("train_*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_flag_is_explained(path):
    groups = importlib.import_module(f"latentia.examples.{path.stem}").Arguments()
    for field in dataclasses.fields(groups):
        group = getattr(groups, field.name)
        source = (
            ""
            if isinstance(group, NetworkArguments)
            else "".join(inspect.getsource(kind) for kind in type(group).__mro__[:-1])
        )
        hints = typing.get_type_hints(type(group), include_extras=True)
        for flag in dataclasses.fields(group):
            if isinstance(group, NetworkArguments):  # from the docstring of the network
                (help_of_flag,) = (extra.help for extra in hints[flag.name].__metadata__ if hasattr(extra, "help"))
                assert len(help_of_flag) > 10 and "\n" not in help_of_flag, flag.name
            else:
                assert re.search(rf'^    {flag.name}: [^\n]+\n    """[^\n]+"""$', source, re.MULTILINE), flag.name


def test_flags_of_a_network_are_those_of_its_constructor():
    group = network_arguments(VAE, "latent_dim activation norm", flags={"norm": "vae_norm"}, latent_dim=(3, 2))
    assert dict(group) == {"latent_dim": (3, 2), "activation": "silu", "norm": "group"} and group.vae_norm == "group"
    assert VAE(sample_size=8, hidden_sizes=((4,), (4,)), **group).config.latent_dim == (3, 2)
    with pytest.raises(TypeError, match="latent"):
        network_arguments(VAE, "activation", latent_dim=2)
    with pytest.raises(KeyError):
        network_arguments(VAE, "no_such_argument")
