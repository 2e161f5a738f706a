"""UNet2D under adapters of PEFT, regional compilation and layerwise casting, as diffusers offers them."""

import diffusers
import pytest
import torch
from helpers import perturbed, quiet, seeded

import latentia
from latentia.errors import UsageError

TARGETS = [
    "to_qkv",
    "to_out",
    "cross_to_q",
    "cross_to_kv",
    "cross_to_out",
    "conv1",
    "conv2",
]  # as docs/diffusers.md names them


def network(**changes):
    torch.manual_seed(0)
    config = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 16), "attention_head_dim": 8}
    return perturbed(latentia.UNet2D(**config | {"layers_per_block": 1} | changes)).eval()


def test_the_targets_of_adapters_are_parts_of_the_network():
    names = {name.rpartition(".")[2] for name, _ in network(cross_attention_dim=16).named_modules()}
    assert set(TARGETS) <= names


def test_lora_adapters_are_added_trained_saved_and_loaded(tmp_path):
    peft = pytest.importorskip("peft")
    x, unet = torch.randn(2, 1, 8, 8, generator=seeded(0)), network()
    before = unet(x, 10).sample
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=TARGETS[:2], init_lora_weights=False))
    after = unet(x, 10).sample
    assert not torch.allclose(before, after) and unet.active_adapters() == ["default"]
    unet.save_lora_adapter(tmp_path)
    again = network()
    again.load_lora_adapter(tmp_path, prefix=None)
    torch.testing.assert_close(again(x, 10).sample, after)
    again.disable_adapters()
    torch.testing.assert_close(again(x, 10).sample, before)
    with pytest.raises(UsageError, match="use_safetensors must be True"):
        again.load_lora_adapter(tmp_path, use_safetensors=False)


def test_a_network_wrapped_by_peft_samples_in_a_pipeline():
    peft = pytest.importorskip("peft")
    pipe = latentia.UnconditionalDiffusionPipeline(network(), latentia.DDIMScheduler())
    asked = {"num_inference_steps": 2, "output_type": "latent"}
    plain = quiet(pipe)(generator=seeded(1), **asked).images
    pipe.unet = peft.get_peft_model(pipe.unet, peft.LoraConfig(r=2, target_modules=TARGETS[:2]))
    torch.testing.assert_close(pipe(generator=seeded(1), **asked).images, plain)
    noise = pipe.encode(torch.zeros(1, 1, 8, 8), num_inference_steps=2)
    assert pipe.decode(noise, num_inference_steps=2, output_type="latent").isfinite().all()


@pytest.mark.nightly  # blocks of two stages compile by day, in the battery of networks
def test_blocks_of_four_stages_compile_alone():
    """Each stage has widths of its own, more shapes than torch compiles of one function by default."""
    unet = network(sample_size=32, block_out_channels=(8, 16, 24, 32), layers_per_block=2)
    x = torch.randn(1, 1, 32, 32, generator=seeded(0))
    with torch.no_grad():
        expected = unet(x, 10).sample
        unet.compile_repeated_blocks(fullgraph=True, backend="eager")
        torch.testing.assert_close(unet(x, 10).sample, expected)
        unet(torch.randn(2, 1, 64, 64, generator=seeded(0)), 10)


def test_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(UsageError, match=r"sides divisible by 2; got \(9, 8\)"):
        network()(torch.zeros(1, 1, 9, 8), 10)
    assert isinstance(network(), diffusers.loaders.PeftAdapterMixin)
