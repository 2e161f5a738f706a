"""Convert old weights (.bin, .pt, .pth, .ckpt) to safetensors, without running what may hide in them."""

from latentia.hub.convert import convert as convert
