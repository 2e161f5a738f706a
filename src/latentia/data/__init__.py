"""Data sets: folders, parquet, the Hub, streams and built-in ones, through `load_images`; toys of the plane."""

from importlib import import_module

# Public name -> module; a process that only decodes need not import torch.
_EXPORTS = {
    "load_images": "images",
    "ImageData": "images",
    "StreamedImages": "streaming",
    "Factors": "factors",
    "open_image": "decode",
    "BadImage": "decode",
    "PLANES": "plane",
    "Plane": "plane",
    "PlaneData": "plane",
    "gaussian_mixture": "plane",
    "stacked_images": "stacked",
    "cached_latents": "latents",
    "LatentData": "latents",
    "cached_texts": "texts",
    "TextData": "texts",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'latentia.data' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(f"latentia.data.{_EXPORTS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
