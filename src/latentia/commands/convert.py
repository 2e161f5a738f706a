"""Convert pickled weights (.bin, .pt, .pth, .ckpt) to safetensors, without running arbitrary code in them."""

from latentia.hub.convert import convert as convert
