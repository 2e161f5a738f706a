"""Properties that hold for every network, and those of UNet2D."""

import json

import pytest
import torch
from helpers import perturbed
from torch._dynamo.testing import CompileCounter
from zoo import ZOO

import latentia
from latentia import UNet2D
from latentia.errors import UsageError
from latentia.models.layers.conditioning import sinusoidal_embedding


@pytest.fixture(params=ZOO, ids=lambda entry: entry.name)
def entry(request):
    torch.manual_seed(0)
    return request.param


def test_output_has_the_shape_and_is_an_output_dataclass(entry):
    out = entry.build().eval()(**entry.inputs(3))
    assert tuple(out[0].shape) == entry.shape(3) and out[0].dtype == torch.float32
    assert torch.equal(out.to_tuple()[0], out[0])


def test_every_parameter_gets_a_gradient(entry):
    network = perturbed(entry.build())
    out = entry.through(network(**entry.inputs(11)))
    (out * torch.randn_like(out)).sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_save_and_load_is_bit_equal(entry, tmp_path):
    network = perturbed(entry.build()).eval()
    network.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = type(network).from_pretrained(tmp_path)
    inputs = entry.inputs(2)
    expected = network(**inputs)[0]
    saved, found = network.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys() and all(torch.equal(saved[key], found[key]) for key in saved)
    torch.testing.assert_close(loaded(**inputs)[0], expected)
    # Some processors round by where weights lie in memory, so bits are compared in the same place.
    network.load_state_dict(found)
    assert torch.equal(network(**inputs)[0], expected)
    configs = [json.loads(n.to_json_string()) for n in (loaded, network)]
    assert [{k: v for k, v in c.items() if k != "_name_or_path"} for c in configs] == [configs[1]] * 2


def test_samples_do_not_see_each_other(entry):
    network = perturbed(entry.build()).eval().double()
    inputs = {k: v.double() if torch.is_floating_point(v) else v for k, v in entry.inputs(4).items()}
    whole = network(**inputs)[0]
    alone = network(**{key: value[1:2] for key, value in inputs.items()})[0]
    torch.testing.assert_close(whole[1:2], alone, atol=1e-10, rtol=1e-8)


def test_channels_last_gives_the_same(entry):
    network = perturbed(entry.build()).eval()
    inputs = entry.inputs(2)
    expected = network(**inputs)[0]
    torch.testing.assert_close(
        network.to(memory_format=torch.channels_last)(**inputs)[0], expected, atol=1e-4, rtol=1e-4
    )


# Tracing takes seconds: of networks with the same code one, the others at night.
TRACED_AT_NIGHT = {
    *("unet-8", "unet-rectangular-rgba", "unet-64-deep", "unet-all-attend", "unet-learned-variance", "inception"),
    *("unet-no-attention", "autoencoder-tied", "autoencoder-resize", "vae-gamma", "vae-mixture", "vae-samples"),
    *("vae-no-likelihood", "generator-resize", "discriminator-spectral", "discriminator-instance"),
    *("discriminator-patch-spectral", "discriminator-patch-none", "discriminator-mlp-times"),
    *("flow-nice", "flow-realnvp", "flow-glow", "flow-variational"),
    *("vector-flow-nice", "vector-flow-iaf", "vector-flow-spline_maf"),
}


@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, id=e.name, marks=[pytest.mark.nightly] * (e.name in TRACED_AT_NIGHT)) for e in ZOO],
)
def test_compiles_whole_without_recompiling_between_steps(entry):
    torch.manual_seed(0)
    network = perturbed(entry.build()).eval()
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(lambda **inputs: network(**inputs)[0], backend=counter, fullgraph=True)
    inputs = entry.inputs(2)
    for t in (torch.tensor(999), torch.tensor(500), torch.tensor(0)):
        if "timestep" in inputs:
            inputs["timestep"] = t
        assert torch.equal(compiled(**inputs), network(**inputs)[0])
    assert counter.frame_count == 1


def test_weights_may_be_stored_in_float8(entry):
    network = entry.build().eval()
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert network(**entry.inputs(2))[0].isfinite().all()


@pytest.mark.parametrize("entry", [e for e in ZOO if e.name.startswith("vae")], ids=lambda e: e.name)
def test_an_exported_vae_is_saved_and_loaded(entry, tmp_path):
    network, inputs = entry.build().eval(), entry.inputs(2)
    torch.export.save(torch.export.export(network, (), kwargs=inputs), tmp_path / "vae.pt2")
    again = torch.export.load(tmp_path / "vae.pt2").module()(**inputs)
    torch.testing.assert_close(again[0], network(**inputs)[0])


def test_gradient_checkpointing_changes_no_gradient():
    entry = next(e for e in ZOO if e.name == "unet-text")
    network, inputs = perturbed(entry.build()).double(), entry.inputs(2)
    inputs = {k: v.double() if torch.is_floating_point(v) else v for k, v in inputs.items()}
    gradients = []
    for _ in range(2):
        network.zero_grad()
        network(**inputs)[0].pow(2).sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
        network.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    calls = []
    network._gradient_checkpointing_func = lambda stage, *args: calls.append(stage) or stage(*args)
    network(**inputs)
    assert len(calls) == sum(isinstance(m, type(network.mid_block[0])) for m in network.modules())


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64, 128, 256])
def test_unet_runs_at_every_size_from_8_to_256(size):
    unet = UNet2D(
        sample_size=size, in_channels=2, block_out_channels=(4, 8), attention_head_dim=4, patch_size=max(1, size // 32)
    )
    assert unet(torch.randn(1, 2, size, size), 5).sample.shape == (1, 2, size, size)


def test_unet_starts_as_zero_and_its_blocks_as_the_identity():
    unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(8, 16), attention_head_dim=8)
    assert not unet(torch.randn(2, 1, 8, 8), 3).sample.any()
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(unet.mid_block[0](x, torch.randn(2, 32), None, None), x)


def test_the_class_none_is_the_extra_row_and_labels_matter():
    entry = next(e for e in ZOO if e.name == "unet-classes")
    unet, x = perturbed(entry.build()).eval(), torch.randn(2, 1, 8, 8)
    nothing = unet(x, 5).sample
    torch.testing.assert_close(nothing, unet(x, 5, torch.tensor([10, 10])).sample)
    assert not torch.allclose(nothing, unet(x, 5, torch.tensor([1, 2])).sample)


def test_masked_tokens_are_not_seen():
    entry = next(e for e in ZOO if e.name == "unet-text")
    unet, inputs = perturbed(entry.build()).eval(), entry.inputs(2)
    before = unet(**inputs).sample
    inputs["encoder_hidden_states"][0, 3:] += 7.0
    torch.testing.assert_close(unet(**inputs).sample, before)
    inputs["encoder_hidden_states"][0, :3] += 7.0
    assert not torch.allclose(unet(**inputs).sample, before)


def test_time_encodings_differ_and_fade_with_distance():
    e = sinusoidal_embedding(torch.arange(1000), 64)
    assert torch.allclose(e.pow(2).sum(1), torch.tensor(32.0))  # cos^2 + sin^2
    similarity = e[500] @ e.T / 32
    assert similarity.argmax() == 500 and (similarity < 1 - 1e-4).sum() == 999
    assert similarity[500] > similarity[505] > similarity[520] > similarity[600]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"sample_size": 30}, ["sample_size", "4", "30", "28 or 32"]),
        ({"sample_size": 28, "patch_size": 4}, ["sample_size", "16", "28"]),
        ({"sample_size": (32, 31)}, ["31"]),
        ({"attention_stages": (True, False)}, ["attention_stages", "3 stages"]),
        ({"attention_head_dim": 24}, ["attention_head_dim", "24", "256"]),
        ({"in_channels": 0}, ["in_channels", "at least 1", "0"]),
    ],
)
def test_bad_configurations_say_what_and_why(config, words):
    with pytest.raises(UsageError) as error:
        UNet2D(**config)
    assert all(word in str(error.value) for word in words), error.value


def test_conditions_that_the_network_has_not_are_refused():
    unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8)
    with pytest.raises(UsageError, match="num_class_embeds"):
        unet(torch.randn(1, 1, 8, 8), 1, class_labels=torch.tensor([1]))
    with pytest.raises(UsageError, match="takes no context"):
        unet(torch.randn(1, 1, 8, 8), 1, encoder_hidden_states=torch.randn(1, 2, 4))
    text = UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8, cross_attention_dim=4)
    with pytest.raises(UsageError, match="needs a context"):
        text(torch.randn(1, 1, 8, 8), 1)


def test_all_networks_of_the_house_are_in_the_zoo():
    public = {name: getattr(latentia, name) for name in latentia.__all__}
    networks = {n for n, c in public.items() if isinstance(c, type) and issubclass(c, latentia.ModelMixin)}
    # HashedWords takes texts, TableEncoder tables, SeriesScaler series and LogMel sounds; they have no weights.
    without = {"ModelMixin", "HashedWords", "TableEncoder", "SeriesScaler", "LogMel"}
    assert networks - without == {type(entry.build()).__name__ for entry in ZOO}
