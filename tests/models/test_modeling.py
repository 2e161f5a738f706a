"""The base of every network: names of parts, and files of an earlier version."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentia import VAE, DCGANDiscriminator
from latentia.errors import CheckpointError
from latentia.models.modeling import FORMAT, FORMAT_KEY

WEIGHTS = "diffusion_pytorch_model.safetensors"


def saved(folder, *, settings=(), weights=(), current=True):
    """A VAE in `folder`, some of whose settings and weights bear other names."""
    VAE(sample_size=8, latent_dim=2, hidden_sizes=(4,)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop(FORMAT_KEY) == FORMAT
    for name, other in settings:
        config[other] = config.pop(name)
    (folder / "config.json").write_text(json.dumps(config | ({FORMAT_KEY: FORMAT} if current else {})))
    held = load_file(folder / WEIGHTS)
    for name, other in weights:
        held = {key.replace(name, other): value for key, value in held.items()}
    save_file(held, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "other", [{"weights": [("posterior.", "heads.")]}, {"settings": [("likelihood", "decoder")]}], ids=str
)
def test_a_network_of_an_earlier_version_is_refused_as_such(tmp_path, other, strict):
    with pytest.raises(CheckpointError, match=r"VAE saved by latentia 0.1, .*Train it again"):
        VAE.from_pretrained(saved(tmp_path, **other, current=False), strict=strict)


def test_weights_of_today_that_do_not_fit_are_no_earlier_version(tmp_path):
    with pytest.raises(CheckpointError, match=r"do not fit VAE: 2 .* 2 "):
        VAE.from_pretrained(saved(tmp_path, weights=[("posterior.", "heads.")]))
    with pytest.raises(CheckpointError, match="'decoder', which is no setting of VAE"):
        VAE.from_pretrained(saved(tmp_path, settings=[("likelihood", "decoder")]))


def test_a_configuration_without_a_format_loads_if_all_fits(tmp_path):
    VAE.from_pretrained(saved(tmp_path, current=False))


def test_the_settings_of_another_network_are_no_earlier_version(tmp_path):
    folder = saved(tmp_path, settings=[("likelihood", "decoder")], current=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))
    with pytest.raises(CheckpointError, match="'decoder', which is no setting of VAE"):
        VAE.from_pretrained(folder)


def test_a_part_may_bear_the_name_of_a_setting():
    network = DCGANDiscriminator(sample_size=8, block_out_channels=(4,), minibatch_std=2)
    assert isinstance(network.minibatch_std, torch.nn.Module) and network.config.minibatch_std == 2
    with pytest.raises(AttributeError, match="sample_size"):
        _ = network.sample_size
