"""What callbacks written for diffusers read and change while a pipeline denoises in steps.

While it samples, `pipe.num_timesteps` is the number of steps, `pipe.guidance_scale` the weight of classifier-free
guidance, and `pipe.interrupt` whether the loop ends after the step: a callback sets `pipe._interrupt = True` for that.
A callback that sets `pipe._guidance_scale` changes the guidance of the steps that follow; as in diffusers, 1 and less
switch it off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from latentia.errors import UsageError, check_choice
from latentia.pipelines.sampling import Conditioning

Callback = Callable[[Any, int, Tensor, dict], dict | None]
_EMBEDS = "encoder_hidden_states"


def begin_steps(
    pipe: Any, timesteps: Tensor, guidance_scale: float, callback: Callback | None, names: Sequence[str]
) -> None:
    """Sets what callbacks read.

    Raises:
        UsageError: `callback_on_step_end_tensor_inputs` names what this pipeline does not hand out.
    """
    for name in getattr(callback, "tensor_inputs", names):
        check_choice("callback_on_step_end_tensor_inputs", name, pipe._callback_tensor_inputs)
    pipe._num_timesteps, pipe._guidance_scale, pipe._interrupt = len(timesteps), guidance_scale, False


def end_step(
    pipe: Any,
    step: int,
    t: Tensor,
    x: Tensor,
    conditioning: Conditioning | None,
    callback: Callback | None,
    names: Sequence[str],
) -> tuple[Tensor, Conditioning | None]:
    """Calls back, and takes over what the callback changed: the latents, the conditioning and its guidance.

    Raises:
        UsageError: the callback returns no dict, a key that this pipeline does not hand out, or another shape.
    """
    if callback is None:
        return x, conditioning
    held: dict[str, Any] = dict.fromkeys(pipe._callback_tensor_inputs) | {"latents": x}
    if conditioning is not None:
        held["prompt_embeds"] = conditioning.inputs.get(_EMBEDS)
        held["negative_prompt_embeds"] = (conditioning.unconditional or {}).get(_EMBEDS)
    asked = {name: held[name] for name in getattr(callback, "tensor_inputs", names)}
    changed = callback(pipe, step, t, dict(asked))
    changed = {} if changed is None else changed
    if not isinstance(changed, Mapping):
        raise UsageError(f"callback_on_step_end must return a dict of tensors, or None; got {changed!r}.")
    for name, new in changed.items():
        check_choice("the keys that callback_on_step_end returns", name, pipe._callback_tensor_inputs)
        if held[name] is None and new is None:
            continue
        if not isinstance(new, Tensor):
            raise UsageError(
                f"callback_on_step_end must return a tensor as {name}; got {new!r}. Leave {name} out to change nothing."
            )
        if held[name] is not None and new.shape != held[name].shape:
            raise UsageError(
                f"callback_on_step_end must leave the shape of {name}, {tuple(held[name].shape)}, as it is; got "
                f"{tuple(new.shape)}. Sample one image at a time with a callback that keeps one row."
            )
    if conditioning is not None:
        inputs, unconditional = conditioning.inputs, conditioning.unconditional
        if changed.get("prompt_embeds") is not None:
            inputs = {**inputs, _EMBEDS: changed["prompt_embeds"]}
        if unconditional is not None and changed.get("negative_prompt_embeds") is not None:
            unconditional = {**unconditional, _EMBEDS: changed["negative_prompt_embeds"]}
        scale = conditioning.guidance_scale
        if pipe._guidance_scale != scale:
            scale = max(1.0, pipe._guidance_scale)
        if scale != 1 and unconditional is None:
            raise UsageError(
                f"guidance_scale must be other than 1 in the call, if a callback sets it to {scale} later: 1.001 "
                "is as good as none."
            )
        conditioning = replace(conditioning, inputs=inputs, unconditional=unconditional, guidance_scale=scale)
    return changed.get("latents", x), conditioning
