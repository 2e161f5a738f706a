"""--init_from: fine-tuning from the weights of a saved pipeline."""

import pytest
import torch
from children import ended, example
from families import FAMILIES
from safetensors.torch import load_file

import latentia

FEW = ("--max_train_steps", "1", "--learning_rate", "1e-12")
BY_NAME = {family.name: family for family in FAMILIES}


def weights(folder):
    return {path.relative_to(folder): load_file(path) for path in folder.glob("*/*.safetensors")}


@pytest.mark.parametrize("name", ["ddpm", "vae", "vqvae", "autoencoder_kl", "gan", "text_encoder", "vq_prior"])
def test_networks_start_from_saved_weights(name, trained, start, parts, tmp_path):
    """A step at a rate of nearly zero leaves what was loaded."""
    family = BY_NAME[name]
    before = trained(family)
    argv = family.command(tmp_path / "run", parts, *FEW, "--init_from", str(before))
    code, text = ended(start(example, family.script, argv))
    assert code == 0 and f"Initial weights of {before}" in text, text
    old, new = weights(before), weights(tmp_path / "run")
    assert old.keys() == new.keys()
    moved = ("running_std", "codebook", "count", "sums")  # buffers that training itself updates
    for path in old:
        for key in old[path]:
            if old[path][key].is_floating_point() and not any(word in key for word in moved):
                torch.testing.assert_close(new[path][key], old[path][key], rtol=1e-3, atol=1e-4, msg=f"{path}: {key}")


def test_weights_that_do_not_fit_are_refused(start, tmp_path):
    saved, argv = tmp_path / "saved", ["--dataset_name", "digits", *FEW, "--output_dir", str(tmp_path / "run")]
    latentia.VAEPipeline(latentia.VAE(sample_size=8, latent_dim=3, hidden_sizes=(8,))).save_pretrained(saved)
    code, text = ended(
        start(example, "train_vae.py", [*argv, "--latent_dim", "2", "--hidden_sizes", "8", "--init_from", str(saved)])
    )
    assert code == 2 and "--latent_dim is 2 here and 3 there" in text, text
    code, text = ended(start(example, "train_vqvae.py", [*argv, "--init_from", str(saved)]))
    assert code == 2 and "holds no VQVAE" in text, text
    code, text = ended(start(example, "train_vae.py", [*argv, "--init_from", str(tmp_path / "nothing")]))
    assert code in (2, 5, 6) and "nothing" in text and "Traceback" not in text, text
