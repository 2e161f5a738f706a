"""What several networks return."""

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor

# The default of every field of an output dataclass but its first. accelerate converts an output (to float32 after mixed
# precision, to a device) into `type(output)({name: value})`, one dictionary, which diffusers' `BaseOutput` reads only
# if all other fields may be left out. Networks set them all, so the annotation beside it is the type without None.
UNSET: Any = None


@dataclass
class GeneratorOutput(BaseOutput):
    """`sample`: (B, C, H, W) in [-1, 1], or points (B, D) without bounds."""

    sample: Tensor


@dataclass
class DiscriminatorOutput(BaseOutput):
    """A discriminator's logits of B samples, or of B / pack packs of them.

    Args:
        logits: (B / pack,), positive for real; or (B, 1, h, w), one for each patch.
        features: the input of the last layer, or the output of the layer that was asked for, (B / pack, F); of a
            discriminator of patches all activations, (B, F), if they are asked for, else None.
        class_logits: of the auxiliary classifier, (B / pack, num_aux_classes); None without.
    """

    logits: Tensor
    features: Tensor | None = None
    class_logits: Tensor | None = None


@dataclass
class ClassifierOutput(BaseOutput):
    """The classification of B images.

    Args:
        logits: unnormalised log p(c|x), (B, num_classes).
        features: the layer before the last, (B, feature_dim). `logits` is an affine function of it.
    """

    logits: Tensor
    features: Tensor = UNSET


@dataclass
class AutoregressiveOutput(BaseOutput):
    """The distribution of each value given those before it.

    Args:
        logits: (B, *shape, K), unnormalised log p(x_i = k | x_1, ..., x_{i-1}) of each of the values of a sample.
    """

    logits: Tensor


@dataclass
class ControlNet2DOutput(BaseOutput):
    """What a control branch adds to a network's features.

    Args:
        middle: of the middle, (B, C, h, w).
        down: of each block on the way down, from fine to coarse; (B, C, h, w) each.
    """

    middle: Tensor
    down: tuple[Tensor, ...] = UNSET
