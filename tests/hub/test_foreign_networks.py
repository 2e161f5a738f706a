"""Reviewed networks of other libraries: every setting out of bounds is refused or built in bounded time and memory."""

import json
import resource
import time

import pytest

from latentia.errors import CheckpointError
from latentia.foreign import IMAGE_NETWORKS, REVIEWED, foreign_class
from latentia.safety import Weight, build_on_meta, check_values

SIDES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SIDES, "vocab_size": 50, "max_position_embeddings": 16}
VISION = {**SIDES, "image_size": 28, "patch_size": 14}
BLOCKS = {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
CROSS = {
    **{**BLOCKS, "cross_attention_dim": 8, "attention_head_dim": 4},
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
}
PATCHES = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 1, "sample_size": 8}
SMALL: dict[str, dict] = {
    **dict.fromkeys(("BertModel", "RobertaModel", "XLMRobertaModel", "MPNetModel"), TEXT),
    **dict.fromkeys(("CLIPTextModel", "CLIPTextModelWithProjection"), TEXT),
    **dict.fromkeys(("CLIPVisionModel", "CLIPVisionModelWithProjection", "ViTModel"), VISION),
    **dict.fromkeys(("Dinov2Model", "Dinov2WithRegistersModel"), VISION),
    "CLIPModel": {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8},
    "DistilBertModel": {"vocab_size": 50, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "T5EncoderModel": {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "GPT2LMHeadModel": {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2},
    "AutoencoderKL": {"block_out_channels": [8], "norm_num_groups": 4},
    "VQModel": {"block_out_channels": [8], "norm_num_groups": 4, "num_vq_embeddings": 8},
    "AsymmetricAutoencoderKL": {
        **{"down_block_out_channels": [8], "up_block_out_channels": [8], "norm_num_groups": 4},
    },
    "AutoencoderTiny": {
        **{"encoder_block_out_channels": [8], "decoder_block_out_channels": [8]},
        **{"num_encoder_blocks": [1], "num_decoder_blocks": [1]},
    },
    "UNet2DModel": {
        **{**BLOCKS, "sample_size": 8, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"]},
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    },
    "UNet2DConditionModel": {**CROSS, "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]},
    "ControlNetModel": CROSS,
    "DiTTransformer2DModel": {**PATCHES, "out_channels": 4, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
    "PixArtTransformer2DModel": {
        **{**PATCHES, "out_channels": 8, "cross_attention_dim": 16, "caption_channels": 8, "norm_num_groups": 4},
    },
    "SD3Transformer2DModel": {
        **{**PATCHES, "out_channels": 4, "joint_attention_dim": 8, "caption_projection_dim": 16},
        **{"pooled_projection_dim": 8, "pos_embed_max_size": 8},
    },
    "FluxTransformer2DModel": {
        **{"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16},
        **{"num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": [4, 4, 8]},
    },
}
OUT_OF_BOUNDS = [
    *(2**20, 4096, -1, 0, "x", 1.5, None, True, [2**20] * 3, [8] * 4096, [[[1]]], {"a": 2**20}, [2] * 2000),
    *(["DownBlock2D"] * 4096, {str(i): "x" for i in range(4096)}),
]


def build(name: str, config: dict):
    """The network of a configuration, as the loaders build it."""
    if name in IMAGE_NETWORKS:
        return foreign_class("diffusers", name, "here").from_config(config)
    kind = foreign_class("transformers", name, "here")
    return kind(kind.config_class.from_dict(dict(config)))


def try_all(name: str, values: list) -> None:
    network = build(name, SMALL[name])
    held = {key: Weight(tuple(value.shape), True) for key, value in network.state_dict().items()}
    base = dict(network.config) if name in IMAGE_NETWORKS else network.config.to_dict()
    text = json.dumps({key: value for key, value in base.items() if not key.startswith("_")})
    base = json.loads(text)
    places = [(key,) for key in base] + [
        (key, inner) for key in base if isinstance(base[key], dict) for inner in base[key]
    ]
    for *above, last in places:
        for wrong in values:
            config = inside = json.loads(text)
            for key in above:
                inside = inside[key]
            inside[last] = wrong
            before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            try:
                check_values(config, "here")
                build_on_meta(lambda config=config: build(name, config), held, "here", factor=4)
            except CheckpointError:
                pass  # whatever it says, in bounded time and memory
            where = (name, *above, last, str(wrong)[:20])
            assert time.process_time() - started < 20, where
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000, where  # kB


def test_every_reviewed_network_is_tried():
    transformers = {name for name in REVIEWED["transformers"] if "Model" in name}
    assert {*SMALL} == IMAGE_NETWORKS | transformers


@pytest.mark.parametrize("name", SMALL)
def test_large_settings_are_refused_in_bounded_time(name):
    try_all(name, [2**20])


@pytest.mark.nightly
@pytest.mark.parametrize("name", SMALL)
def test_every_setting_out_of_bounds_is_bounded(name):
    try_all(name, OUT_OF_BOUNDS)
