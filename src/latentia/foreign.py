"""Classes of diffusers and transformers that a saved file may name, the reviewed list, and checks of their files.

Each was read before it was put here: it is built from its own configuration, weights or vocabulary alone, and has no
loader of its own that names other files, repositories or classes. What is not here is not loaded from a file that is
not trusted, since a class with such a loader undoes every check of the folder.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from latentia.errors import CheckpointError, UsageError, did_you_mean
from latentia.safety import build_on_meta, check_files, check_keys, check_loader_options, read_json, read_weight_headers

# What transformers reads beside config.json and vocabularies.
_SETTINGS = (
    *("added_tokens.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("special_tokens_map.json", "tokenizer_config.json"),
)
SCHEDULERS = frozenset(
    "AmusedScheduler CMStochasticIterativeScheduler DDIMInverseScheduler DDIMParallelScheduler DDIMScheduler "
    "DDPMParallelScheduler DDPMScheduler DDPMWuerstchenScheduler DEISMultistepScheduler "
    "DPMSolverMultistepInverseScheduler DPMSolverMultistepScheduler DPMSolverSDEScheduler DPMSolverSinglestepScheduler "
    "EDMDPMSolverMultistepScheduler EDMEulerScheduler EulerAncestralDiscreteScheduler EulerDiscreteScheduler "
    "FlowMatchEulerDiscreteScheduler FlowMatchHeunDiscreteScheduler FlowMatchLCMScheduler HeunDiscreteScheduler "
    "IPNDMScheduler KDPM2AncestralDiscreteScheduler KDPM2DiscreteScheduler KarrasVeScheduler LCMScheduler "
    "LMSDiscreteScheduler PNDMScheduler RePaintScheduler SASolverScheduler SCMScheduler ScoreSdeVeScheduler "
    "TCDScheduler UnCLIPScheduler UniPCMultistepScheduler VQDiffusionScheduler".split()
)
# Networks of images: autoencoders, U-Nets and transformers.
IMAGE_NETWORKS = frozenset(
    "AsymmetricAutoencoderKL AutoencoderKL AutoencoderTiny VQModel UNet2DModel UNet2DConditionModel ControlNetModel "
    "DiTTransformer2DModel FluxTransformer2DModel PixArtTransformer2DModel SD3Transformer2DModel".split()
)
# model_type in config.json -> the class that is loaded, and the tokenizer where its files name none.
TEXT_ENCODERS = {
    "bert": ("BertModel", "BertTokenizer"),
    "clip": ("CLIPTextModelWithProjection", "CLIPTokenizer"),
    "clip_text_model": ("CLIPTextModelWithProjection", "CLIPTokenizer"),
    "distilbert": ("DistilBertModel", "DistilBertTokenizer"),
    "mpnet": ("MPNetModel", "MPNetTokenizer"),
    "roberta": ("RobertaModel", "RobertaTokenizer"),
    "t5": ("T5EncoderModel", "T5Tokenizer"),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaTokenizer"),
}
VISION_MODELS = {
    "clip": "CLIPModel",
    "clip_vision_model": "CLIPVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
}
TOKENIZERS = frozenset(
    {"TokenizersBackend", "PreTrainedTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast"}
    | {name + suffix for _, name in TEXT_ENCODERS.values() for suffix in ("", "Fast")}
)
PROCESSORS = frozenset(  # "Pil" is what transformers 5 saves where torchvision is not installed
    "CLIPFeatureExtractor CLIPImageProcessor CLIPImageProcessorPil ViTImageProcessor ViTImageProcessorPil".split()
)
REVIEWED: dict[str, frozenset[str]] = {
    "diffusers": SCHEDULERS | IMAGE_NETWORKS,
    "transformers": TOKENIZERS
    | PROCESSORS
    | {name for name, _ in TEXT_ENCODERS.values()}
    | {*VISION_MODELS.values(), "CLIPTextModel", "CLIPVisionModelWithProjection", "GPT2LMHeadModel"},
}


def foreign_class(library: str, name: str, where: str) -> Any:
    """Import a class of another library, if it is on the reviewed list.

    Args:
        library: "diffusers" or "transformers".
        name: of the class.
        where: the file that names it, for messages.

    Raises:
        CheckpointError: the class is not on the list, or the library lacks it.
        UsageError: the library is not installed.

    Example:
        >>> foreign_class("transformers", "DiaProcessor", "model_index.json")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        latentia.errors.CheckpointError: model_index.json names DiaProcessor of transformers, which is not on the ...
    """
    if name not in REVIEWED[library]:
        hint = did_you_mean(name, REVIEWED[library])
        raise CheckpointError(
            f"{where} names {name} of {library}, which is not on the list of reviewed classes: the loader of such a "
            f"class may read other files or repositories, or take memory without bounds.{hint} If you trust the "
            f"folder, load that part with {library} itself and pass it to the pipeline as an argument."
        )
    try:
        found = getattr(import_module(library), name, None)
    except ImportError as error:
        raise UsageError(
            f"{where} needs {name} of {library}, which cannot be imported: {error}. pip install latentia[text]"
        ) from error
    if not isinstance(found, type):
        raise CheckpointError(f"{where} names {name}, which the installed {library} lacks. Install another version.")
    return found


def check_foreign_files(folder: Path) -> None:
    """Check the files of a component of another library: as `check_files`, and what its settings name.

    Raises:
        CheckpointError: a file is a link out of the folder, too large, or sets an option of a loader.
    """
    check_files(folder)
    for path in (folder / name for name in _SETTINGS):
        if path.exists():
            check_loader_options(read_json(path, sizes=False), str(path))


def check_network(
    folder: Path, config: dict[str, Any], stem: str, build: Callable[[], torch.nn.Module], variant: str | None = None
) -> None:
    """Check the files of a network of diffusers or transformers before it is loaded, and its size against its weights.

    Args:
        folder: holds config.json and the weights.
        config: the parsed config.json.
        stem: of the weights, as in `read_weight_headers`.
        build: makes the network from `config`.
        variant: of the weights, such as "fp16", where the folder has such files. Default none.

    Raises:
        CheckpointError: a file is missing, a symbolic link out of the folder, too large, or sets an option of a
            loader; the network asks for more than its weights hold.
    """
    check_foreign_files(folder)
    check_keys(config, str(folder / "config.json"))
    check_loader_options(config, str(folder / "config.json"))
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder} holds adapter_config.json, which names weights elsewhere. Merge them first.")
    held = read_weight_headers(folder, stem, variant if variant and any(folder.glob(f"{stem}*.{variant}*")) else None)
    # Weights may be shared, of an older layout, or of one half of a network only.
    build_on_meta(build, held, str(folder), factor=4)
