"""Translators: the published sizes, any image size, what an output keeps of its input, and dropout by seeds."""

import pytest
import torch

from latentia import CycleTranslator, ImageTranslator, PatchDiscriminator
from latentia.errors import UsageError
from latentia.functional.degradation import luminance, masked

SMALL = {"block_out_channels": (4, 8)}


def millions(network) -> float:
    return sum(weight.numel() for weight in network.parameters()) / 1e6


def test_published_shapes_have_the_published_sizes():
    """pix2pix prints 54.414 M for its U-Net of 256 pixels and 2.769 M for its discriminator, CycleGAN 11.378 M."""
    with torch.device("meta"):
        unet = ImageTranslator(block_out_channels=(64, 128, 256, *[512] * 5))
        resnet = ImageTranslator(architecture="resnet", block_out_channels=(64, 128, 256), num_res_blocks=9)
        patches = PatchDiscriminator(6, (64, 128, 256, 512))
    assert [round(millions(network), 1) for network in (unet, resnet, patches)] == [54.4, 11.4, 2.8]
    assert patches.receptive_field == 70 and unet.least_size == 256


def test_a_logit_depends_on_its_receptive_field_alone():
    patches = PatchDiscriminator(2, (4, 4, 4), norm="none").double()
    x = torch.randn(1, 2, 64, 64, dtype=torch.float64, requires_grad=True)
    logits = patches(x).logits
    (gradient,) = torch.autograd.grad(logits[0, 0, 7, 7], x)
    seen = gradient[0].abs().sum(0).nonzero()
    spans = (seen.max(0).values - seen.min(0).values + 1).tolist()
    assert spans == [patches.receptive_field] * 2 == [34, 34]


@pytest.mark.parametrize("architecture", ["unet", "resnet"])
@pytest.mark.parametrize("size", [(16, 16), (28, 28), (33, 17), (4, 6), (96, 40)])
def test_it_takes_any_size_of_image(architecture, size):
    network = ImageTranslator(3, 1, architecture, num_res_blocks=1, **SMALL)
    x = torch.rand(2, 3, *size) * 2 - 1
    made = network(x).sample
    assert made.shape == (2, 1, *size) and made.abs().max() <= 1
    whole = torch.nn.functional.pad(x, (0, -size[1] % 4, 0, -size[0] % 4), mode="replicate")
    torch.testing.assert_close(network(whole).sample[..., : size[0], : size[1]], made)


def test_a_grey_input_is_kept_and_so_is_all_outside_of_a_hole():
    torch.manual_seed(0)
    grey, image = torch.rand(3, 1, 12, 12) * 2 - 1, torch.rand(3, 3, 12, 12) * 2 - 1
    for weights in (0.0, 1.0):  # at its start and far from it
        color, filled = ImageTranslator(1, 3, output="luminance", **SMALL), ImageTranslator(4, output="hole", **SMALL)
        for network in (color, filled):
            for parameter in network.parameters():
                parameter.data += weights * torch.randn_like(parameter)
        torch.testing.assert_close(luminance(color(grey).sample), grey, atol=1e-5, rtol=0)
        hole = torch.zeros(3, 1, 12, 12)
        hole[:, :, 3:9, 2:5] = 1
        made = filled(masked(image, hole)).sample
        assert torch.equal(torch.where(hole > 0, 0, made), torch.where(hole > 0, 0, image))
        assert (made - image)[hole.expand(-1, 3, -1, -1) > 0].abs().mean() > 0.1
    assert color(grey).sample.std(1).mean() > 0.05


def test_a_residual_output_starts_at_the_input():
    network, x = ImageTranslator(1, 1, output="residual", **SMALL), torch.rand(1, 1, 8, 8) * 2 - 1
    for parameter in network.body.up[-1].parameters():
        parameter.data.zero_()
    assert torch.equal(network(x).sample, x)


@pytest.mark.parametrize("network", [
    ImageTranslator(1, 1, dropout=0.5, keep_dropout=True, **SMALL),
    ImageTranslator(1, 1, "resnet", (4, 8), 1, dropout=0.5, keep_dropout=True),
    CycleTranslator(1, 1, num_res_blocks=1, dropout=0.5, keep_dropout=True, **SMALL),
], ids=["unet", "resnet", "cycle"])  # fmt: skip
def test_dropout_that_stays_on_follows_its_seeds(network):
    x, seeds = torch.rand(3, 1, 8, 8), torch.tensor([5, 6, 7])
    call = (
        network.translate
        if isinstance(network, CycleTranslator)
        else lambda x, dropout_seeds: network(x, dropout_seeds).sample
    )
    for mode in (network.train, network.eval):
        mode()
        many = call(x, dropout_seeds=seeds)
        torch.testing.assert_close(call(x[1:2], dropout_seeds=seeds[1:2]), many[1:2])
        assert not torch.allclose(call(x, dropout_seeds=seeds + 1), many)
    state = torch.random.get_rng_state()
    assert torch.equal(call(x, dropout_seeds=None), call(x, dropout_seeds=torch.zeros(3, dtype=torch.int64)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_makes_no_network_is_refused():
    for words, arguments in (
        ("output must be .*Did you mean", {"output": "luminence"}),
        ("output luminance needs in_channels 1 and out_channels 3; got 3 and 3", {"output": "luminance"}),
        ("output hole needs in_channels of one more", {"output": "hole"}),
        ("output residual needs in_channels equal", {"output": "residual", "out_channels": 1}),
        ("block_out_channels must be at least two", {"block_out_channels": (8,)}),
        ("architecture must be", {"architecture": "vit"}),
        ("norm must be", {"norm": "batch"}),
    ):
        with pytest.raises(UsageError, match=words):
            ImageTranslator(**arguments)
    with pytest.raises(UsageError, match=r"at least 4 pixels each way; got \(1, 3, 2, 8\). Smaller images need fewer"):
        ImageTranslator(**SMALL)(torch.zeros(1, 3, 2, 8))
