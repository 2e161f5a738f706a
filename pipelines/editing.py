"""Prompt editing: swap a word of a prompt and keep the rest of the image, by cross-attention guidance."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.chunks import in_chunks
from latentia.functional.interpolation import interpolate
from latentia.models.unet import UNet2D
from latentia.pipelines.arguments import Generators, draw_noise, image_generators
from latentia.pipelines.attention import CrossAttention
from latentia.pipelines.images import Images, check_output_type
from latentia.pipelines.inversion import Inversion, invert
from latentia.pipelines.latents import latent_shape
from latentia.pipelines.prompts import Texts, listed
from latentia.pipelines.sampling import chunk_size, deterministic_scheduler, deterministic_step


@dataclass(frozen=True)
class Edited:
    """Images in which a word of their prompts was swapped.

    Args:
        images: (B, C, H, W) in [-1, 1].
        inversion: the images before, their noise and reconstruction.
        prompts: before and after, of each image.
    """

    images: Tensor
    inversion: Inversion
    prompts: list[tuple[str, str]]


def swap_word(prompt: str, word: str, replacement: str) -> str:
    """A prompt with another word.

    Raises:
        UsageError: the word does not stand in the prompt.

    Example:
        >>> swap_word("large red circle", "red", "blue")
        'large blue circle'
        >>> swap_word("large red circle", "green", "blue")
        Traceback (most recent call last):
        latentia.errors.UsageError: word must stand in the prompt; "green" is not in "large red circle".
    """
    found = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: replacement, prompt)
    if not word or (found == prompt and word != replacement):
        raise UsageError(f'word must stand in the prompt; "{word}" is not in "{prompt}".')
    return found


def edit_direction(pipe: Any, word: str, replacement: str, sentences: Sequence[str]) -> Tensor:
    """The mean difference of the hidden states of sentences with one word and with another, (L, D).

    Args:
        pipe: of text-to-image.
        word, replacement: the words.
        sentences: each has the first word.

    Raises:
        UsageError: a sentence without the word.

    Zero-shot Image-to-Image Translation (Parmar et al., 2023, 2302.03027), section 3.1.
    """
    others = [swap_word(sentence, word, replacement) for sentence in sentences]
    before, after = (pipe._embedded("prompt", list(texts))[0] for texts in (sentences, others))
    return (after - before).mean(0)


def edit_images(
    pipe: Any,
    images: Images,
    prompt: Texts,
    word: Texts,
    replacement: Texts,
    *,
    attention_weight: float = 0.03,
    sentences: Sequence[str] | None = None,
    num_inference_steps: int = 25,
    refinements: int = 5,
) -> Edited:
    r"""Swap a word of the prompt of images, and keep where the network looks for each word.

    The images are inverted with their prompt. From their noise two chains run: with the prompt, whose cross-attention
    maps are the reference, and with the edited one, whose sample is moved at each step against the gradient of the
    squared difference of the maps, `attention_weight` times. Weight 0 is the plain swap of the prompt.

    Args:
        pipe: a `TextToImagePipeline` with a `UNet2D`.
        images: as for `from_input`.
        prompt: what they show, one text or one for each.
        word: of the prompt, whole; one, or one for each image.
        replacement: what stands in its place; one, or one for each image.
        attention_weight: from 0; large weights keep the colours too. Default 0.03.
        sentences: others with the word, whose mean edit direction is added to the prompt; `None` (default): each prompt
            itself, so that the direction leads to the prompt with the other word.
        num_inference_steps: of inversion and editing. Default 25.
        refinements: evaluations per step of the inversion. Default 5.

    Raises:
        UsageError: a word that does not stand in a prompt, an argument out of its range, or a pipeline of another kind.

    Zero-shot Image-to-Image Translation (Parmar et al., 2023, 2302.03027), eq. 3, without its regularised noise.

    Example:
        >>> from latentia import DDIMScheduler, TextToImagePipeline
        >>> from latentia.models.clip import clip_towers, train_tokenizer
        >>> tokenizer = train_tokenizer(["a red heart", "a green bus"], vocab_size=300)
        >>> text_encoder = clip_towers(tokenizer, 32, width=32)[0].eval()
        >>> unet = UNet2D(8, block_out_channels=(32,), cross_attention_dim=32)
        >>> pipe = TextToImagePipeline(tokenizer, text_encoder, unet, DDIMScheduler())
        >>> edited = edit_images(pipe, torch.zeros(1, 3, 8, 8), "a red heart", "red", "green", num_inference_steps=2)
        >>> edited.prompts, edited.images.shape
        ([('a red heart', 'a green heart')], torch.Size([1, 3, 8, 8]))
    """
    check_range("attention_weight", attention_weight, 0)
    if not pipe.is_text_conditional or not isinstance(getattr(pipe, "unet", None), UNet2D):
        raise UsageError(f"pipe must be a TextToImagePipeline with a UNet2D; got a {type(pipe).__name__}.")
    texts = [listed("prompt", prompt), *([one] if isinstance(one, str) else list(one) for one in (word, replacement))]
    count = max(map(len, texts))
    if any(len(part) not in (1, count) for part in texts):
        raise UsageError(f"prompt, word and replacement must be one, or one for each image; got {[*map(len, texts)]}.")
    prompts, words, others = (part * count if len(part) == 1 else part for part in texts)
    swapped = [swap_word(*row) for row in zip(prompts, words, others)]
    found = invert(
        pipe,
        images,
        prompt=prompts[:1] if count == 1 else prompts,
        num_inference_steps=num_inference_steps,
        refinements=refinements,
    )
    count = len(found.images)
    prompts, swapped = (part * count if len(part) == 1 else part for part in (prompts, swapped))
    hidden, mask = pipe._embedded("prompt", prompts)
    other, other_mask = pipe._embedded("prompt", swapped)
    if sentences is not None:
        if len({*words}) > 1 or len({*others}) > 1:
            raise UsageError("sentences have one word and one replacement; got several. Edit them one after another.")
        other = hidden + edit_direction(pipe, words[0], others[0], sentences)
    columns = [found.latents, hidden.to(found.latents), _mask(mask, hidden), other.to(found.latents)]
    columns.append(_mask(other_mask, other))
    device, channels = found.latents.device, found.latents.shape[1]
    network, run = CrossAttention(pipe.unet), deterministic_scheduler(pipe.scheduler, num_inference_steps, device)

    def edit(noise: Tensor, before: Tensor, seen: Tensor, after: Tensor, seen_after: Tensor) -> Tensor:
        source = target = noise
        conditions = [
            {"encoder_hidden_states": h, "encoder_attention_mask": m} for h, m in ((before, seen), (after, seen_after))
        ]
        for i, t in enumerate(run.timesteps):
            with torch.no_grad():
                output = network(source, t, **conditions[0]).sample[:, :channels]
                source, maps = deterministic_step(run, i, output, source), network.maps
            if attention_weight:
                target = target - attention_weight * _gradient(network, target, t, conditions[1], maps)
            with torch.no_grad():
                output = network(target, t, **conditions[1]).sample[:, :channels]
                target = deterministic_step(run, i, output, target)
        return target

    size = chunk_size(found.latents.shape[2] * found.latents.shape[3], device.type)
    padding = [torch.cat([x, x[-1:].expand(-len(x) % size, *x.shape[1:])]) for x in (y.to(device) for y in columns)]
    latents = in_chunks(edit, *padding, size=size)[: len(found.latents)]  # of one size: see `predict`
    with torch.no_grad():
        made = pipe._images(latents).float().clamp(-1, 1)
    return Edited(made, found, list(zip(prompts, swapped)))


def _mask(mask: Tensor | None, hidden: Tensor) -> Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask.bool()


def _gradient(network: CrossAttention, x: Tensor, t: Tensor, conditions: dict[str, Tensor], maps: list) -> Tensor:
    """That of the squared differences of the cross-attention maps, summed over pixels, tokens and layers."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        network(x, t, **conditions)
        pairs = zip(network.maps, maps, strict=True)
        loss = sum((own - other).square().sum((2, 3)).mean(1).sum() for own, other in pairs)
        return torch.autograd.grad(loss, x)[0]


@torch.no_grad()
def interpolate_prompts(
    pipe: Any,
    a: str,
    b: str,
    steps: int = 8,
    *,
    generator: Generators = None,
    guidance_scale: float = 1.0,
    num_inference_steps: int = 50,
    output_type: str = "pil",
) -> Any:
    """Images of one noise along the straight line between the hidden states of two prompts, both ends included.

    Args:
        pipe: a `TextToImagePipeline`.
        a, b: the prompts.
        steps: how many images, at least 2. Default 8.
        generator: of the noise.
        guidance_scale, num_inference_steps, output_type: as for the call.

    Raises:
        UsageError: an argument out of its range, or a pipeline that takes no texts.
    """
    check_output_type(output_type)
    check_range("steps", steps, 2, integer=True)
    if not pipe.is_text_conditional or not hasattr(pipe, "unet"):
        raise UsageError(f"pipe must be a TextToImagePipeline; got a {type(pipe).__name__}.")
    hidden, mask = pipe._embedded("prompt", [a, b])
    path = interpolate(hidden[:1], hidden[1:], steps, "lerp")
    seen = None if mask is None else mask.bool().any(0, keepdim=True).expand(steps, -1)
    shape = latent_shape(pipe.vae, pipe.unet, None, None, pipe._execution_device)
    noise = draw_noise(image_generators(generator, 1), shape, pipe._execution_device, pipe.unet.dtype)
    return pipe(
        prompt_embeds=path,
        prompt_attention_mask=seen,
        latents=noise.expand(steps, -1, -1, -1),
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        output_type=output_type,
    ).images
