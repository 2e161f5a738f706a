"""Feature extractors around pretrained networks: Inception-v3 as for FID, and vision models of transformers."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.errors import CheckpointError, LatentiaError, UsageError, did_you_mean
from latentia.evaluation.features.base import Predictions, check_images, in_batches
from latentia.evaluation.features.classifier import WEIGHTS_FILE, check_statement, hash_of
from latentia.evaluation.features.preprocessing import Preprocessing, read_preprocessing
from latentia.files.reading import user_path
from latentia.foreign import VISION_MODELS, check_network, foreign_class
from latentia.registration import public
from latentia.safety import LOADING, fetch, read_json, read_weight_headers

# Of pt_inception-2015-12-05, the file that pytorch-fid and torch-fidelity download, before it is made a safetensors.
INCEPTION_PTH_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


# clean-fid resizes as PIL does, without rounding to bytes, and feeds (x - 128) / 128 of x in [0, 255] as the original
# graph does; pytorch-fid resizes without antialias and feeds x / 127.5 - 1.
_RESIZE = {
    "clean": Preprocessing((299, 299), "bicubic", True, mean=(128 / 255,), std=(128 / 255,)),
    "legacy": Preprocessing((299, 299), "bilinear", False, mean=(0.5,), std=(0.5,)),
}


class NetworkExtractor:
    """A `FeatureExtractor` around any network, for images of any size in one or three channels.

    Args:
        model: the network; it is put in evaluation mode and stays on its device.
        forward: preprocessed images (B, 3, h, w) -> features (B, D) and logits (B, K) or None.
        preprocess: applied to the images first; its text is the extractor's `preprocessing`.
        name: what the report calls it.
        sha256: of its weights file.
        revision: commit of the Hub repository that it came from, or None.
        batch_size: images per forward pass; it bounds memory and does not change the numbers.
    """

    image_shape: tuple[int, int, int] | None = None
    class_names: list[str] | None = None

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        preprocess: Preprocessing,
        name: str,
        sha256: str,
        revision: str | None = None,
        batch_size: int = 32,
    ):
        self.model = model.eval().requires_grad_(False)
        self.forward, self.preprocess, self.name, self.sha256 = forward, preprocess, name, sha256
        self.revision, self.batch_size, self.preprocessing = revision, batch_size, str(preprocess)

    def __call__(self, images: Tensor) -> Predictions:
        """Features (N, D) and logits (N, K) or None, on the CPU.

        Raises:
            UsageError: `images` is not a float tensor (N, 1 or 3, H, W) in [-1, 1].
            DataError: `images` holds NaN or infinity.
        """
        check_images(images)
        if images.shape[1] not in (1, 3):
            raise UsageError(
                f"`images` must have 1 or 3 channels for {self.name}. Got {images.shape[1]}; lay transparent images "
                "over a colour, (1 - alpha) * colour + alpha * images[:, :3], and choose 3 of other channels."
            )
        device = next(self.model.parameters()).device
        return in_batches(
            lambda x: self.forward(self.preprocess(x.expand(-1, 3, -1, -1))), images, device, self.batch_size
        )

    def __repr__(self) -> str:
        return f"NetworkExtractor({self.name!r}, sha256={self.sha256[:12]}...)"


def inception_extractor(
    weights: str | Path,
    sha256: str | None = None,
    resize: str = "clean",
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> NetworkExtractor:
    """Inception-v3 in the form that FID is defined with: 2048 features, 1008 logits.

    The usual weights are a pickle, pt_inception-2015-12-05-6726825d.pth of pytorch-fid. Convert it once, after its
    sha256 was compared with `INCEPTION_PTH_SHA256`:

        save_file(torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True), "inception.safetensors")

    Greyscale images are repeated to three channels. The logits leave the last layer's bias out, as the Inception score
    always did (Improved Techniques for Training GANs, Salimans et al., 2016, 1606.03498, and its code).

    Args:
        weights: a .safetensors file, a folder written by `InceptionV3.save_pretrained`, or "user/name" on the Hub.
        sha256: what the weights file must have, 64 hexadecimal digits; None takes any and only reports it.
        resize: "clean" is bicubic with antialias as in PIL (On Aliased Resizing and Surprising Subtleties in GAN
            Evaluation, Parmar et al., 2022, 2104.11222), then (x - 128) / 128 of x in [0, 255]; "legacy" is bilinear
            without antialias, then x / 127.5 - 1, as in pytorch-fid. Their distances do not compare. Images are not
            rounded to bytes first: do so where you compare with a tool that reads image files.
        device: where it runs.
        revision: branch, tag or commit on the Hub.

    Raises:
        UsageError: `resize` or `sha256` is none of these, or `weights` is neither there nor a repository's name.
        CheckpointError: the weights are damaged, of another network, not safetensors, or of another sha256.
        HubError: the repository cannot be fetched.

    Example:
        >>> extractor = inception_extractor("inception.safetensors")  # doctest: +SKIP
        >>> extractor(torch.zeros(2, 1, 28, 28)).features.shape  # doctest: +SKIP
        torch.Size([2, 2048])
    """
    if resize not in _RESIZE:
        raise UsageError(
            f'`resize` must be one of {", ".join(_RESIZE)}. Got "{resize}".{did_you_mean(resize, _RESIZE)}'
        )
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise UsageError(f'`sha256` must be 64 hexadecimal digits. Got "{sha256}".')
    place, commit = _at(weights, revision, ["*.safetensors", "evaluation.json"])
    file = _only_weights(place) if place.is_dir() else place
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{file} must be a .safetensors file: pickled weights can run arbitrary code. Convert it once, "
            'safetensors.torch.save_file(torch.load(path, weights_only=True), "inception.safetensors"); the sha256 of '
            f"pytorch-fid's pt_inception-2015-12-05-6726825d.pth is {INCEPTION_PTH_SHA256}."
        )
    found = hash_of(file)
    if sha256 is not None and found != sha256.lower():
        raise CheckpointError(
            f"{file} must have the sha256 {sha256.lower()}. Got {found}: other weights, whose distances do not "
            "compare. Fetch or convert the file again, or give the sha256 of this one."
        )
    check_statement(file.parent, found)
    with torch.device("meta"):
        model = public("InceptionV3")()
    _fill(model, file)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        features = model(x).features
        return features, F.linear(features, model.fc.weight)

    name = "inception" if resize == "clean" else f"inception-{resize}"
    return NetworkExtractor(model.to(device), forward, _RESIZE[resize], name, found, commit)


def transformers_extractor(
    name_or_path: str | Path, revision: str | None = None, device: str | torch.device = "cpu"
) -> NetworkExtractor:
    """A vision model of transformers, CLIP, DINOv2 or ViT; it knows no classes.

    Features are CLIP's image embedding, else the pooled output, else, where there is no trained pooler, the first
    token of the last layer. Images are resized, cropped and normalised as its preprocessor_config.json says, in
    floats: they differ from the model's own image processor by what that rounds to bytes.

    Args:
        name_or_path: a folder, or "user/name" on the Hub, with safetensors.
        revision: branch, tag or commit on the Hub; it is resolved to a commit, `extractor.revision`.
        device: where it runs.

    Raises:
        UsageError: transformers is not installed, or the name is neither a folder nor a repository's.
        CheckpointError: no vision model of these kinds, weights that are missing, damaged or not
            safetensors, or a preprocessing that is not known here.
        HubError: the repository cannot be fetched.

    Example:
        >>> extractor = transformers_extractor("facebook/dinov2-small")  # doctest: +SKIP
        >>> extractor(torch.zeros(2, 3, 64, 64)).features.shape  # doctest: +SKIP
        torch.Size([2, 384])
    """
    wanted = ["config.json", "*processor_config.json", "model.safetensors", "model-*-of-*.safetensors"]
    folder, commit = _at(name_or_path, revision, [*wanted, "model.safetensors.index.json"])
    config = read_json(folder / "config.json")
    preprocess = read_preprocessing(folder)
    sha256 = _hash_of_shards(folder)
    kind = str(config.get("model_type"))
    projected = "CLIPVisionModelWithProjection" in (config.get("architectures") or [])
    if not projected and kind not in VISION_MODELS:
        raise CheckpointError(
            f"{folder} must hold a vision model of the kinds {', '.join(VISION_MODELS)}; got {kind!r}. Load others "
            "with transformers and wrap them in an extractor of your own, NetworkExtractor."
        )
    name = "CLIPVisionModelWithProjection" if projected else VISION_MODELS[kind]
    loader = foreign_class("transformers", name, str(folder))
    try:
        check_network(folder, config, "model", lambda: loader(loader.config_class.from_pretrained(folder)))
        with LOADING:
            model, info = loader.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
    except LatentiaError:
        raise
    except Exception as error:  # each of the layers below has errors of its own
        raise CheckpointError(f"{folder} cannot be loaded with transformers: {error}") from error
    if kind == "clip":
        del model.text_model  # never run here
    missing = {str(key) for key in info["missing_keys"]}
    untrained_pooler = any("pooler" in key for key in missing)
    if wrong := sorted(key for key in missing if "pooler" not in key) or list(info["mismatched_keys"]):
        raise CheckpointError(f"{folder}: weights and config.json must agree. They differ in {wrong[:4]}.")

    def forward(x: Tensor) -> tuple[Tensor, None]:
        if kind == "clip":
            return model.visual_projection(model.vision_model(pixel_values=x).pooler_output), None
        output = model(pixel_values=x)
        if projected:
            return output.image_embeds, None
        pooled = getattr(output, "pooler_output", None)
        if pooled is None or untrained_pooler:
            pooled = output.last_hidden_state[:, 0]
        return pooled.flatten(1), None

    name = str(name_or_path) if commit else Path(name_or_path).resolve().name
    return NetworkExtractor(model.to(device), forward, preprocess, name, sha256, commit)


def _at(name_or_path: str | Path, revision: str | None, patterns: list[str]) -> tuple[Path, str | None]:
    """A local path as it is, or the folder and the commit of the files of a Hub repository."""
    path = user_path(name_or_path)
    if path.exists():
        if revision is not None:
            raise UsageError(f'`revision` is for the Hub, and {path} lies on this machine. Got "{revision}".')
        return path, None
    folder = fetch(os.fspath(name_or_path), patterns, revision=revision)
    return folder, folder.name


def _only_weights(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if (folder / WEIGHTS_FILE) in files:
        return folder / WEIGHTS_FILE
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} must hold {WEIGHTS_FILE} or one other .safetensors file. It has "
            f"{', '.join(file.name for file in files) or 'none'}; give the path of the file."
        )
    return files[0]


def _fill(model: nn.Module, file: Path) -> None:
    """Loads a file into the network on the meta device, exactly."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    wanted = model.state_dict()
    # Counters of training steps, which the published file lacks and nothing here reads.
    given |= {key: torch.tensor(0) for key in wanted.keys() - given.keys() if key.endswith("num_batches_tracked")}
    unfit = [f"no {key}" for key in wanted if key not in given] + [f"{key} too many" for key in given.keys() - wanted]
    unfit += [
        f"{key} {tuple(given[key].shape)} {given[key].dtype} instead of {tuple(wanted[key].shape)} {wanted[key].dtype}"
        for key in wanted.keys() & given.keys()
        if (given[key].shape, given[key].dtype) != (wanted[key].shape, wanted[key].dtype)
    ]
    if unfit:
        raise CheckpointError(
            f"{file} does not fit {type(model).__name__}: {'; '.join(sorted(unfit)[:4])} ({len(unfit)} in all). The "
            "weights of FID are of 2015-12-05; those of model zoos, with 1000 classes, belong to another graph."
        )
    if bad := [key for key, value in given.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{file} must hold finite weights. {bad[0]} has NaN or infinity.")
    model.load_state_dict(given, assign=True)


def _hash_of_shards(folder: Path) -> str:
    """sha256 of model.safetensors or, of a model in parts, of the list of their hashes."""
    if (folder / "model.safetensors").is_file():
        return hash_of(folder / "model.safetensors")
    read_weight_headers(folder, "model")  # which refuses what is none
    names = sorted(set(read_json(folder / "model.safetensors.index.json", sizes=False)["weight_map"].values()))
    return hashlib.sha256("\n".join(hash_of(folder / name) for name in names).encode()).hexdigest()
