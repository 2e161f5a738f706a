"""The base of pipelines that denoise in steps: what callbacks written for diffusers read and change on the way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from latentia.errors import UsageError, check_choice
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.sampling import Conditioning

Callback = Callable[[Any, int, Tensor, dict], dict | None]
_EMBEDS = "encoder_hidden_states"


class DenoisingPipeline(DiffusionPipeline):
    """A pipeline whose call is a loop over time steps, with the attributes that `diffusers.callbacks` expect.

    While it samples, `num_timesteps` is the number of steps, `guidance_scale` the weight of classifier-free guidance,
    and `interrupt` whether the loop ends after the step: a callback sets `pipe._interrupt = True` for that. A callback
    that sets `pipe._guidance_scale` changes the guidance of the steps that follow; as in diffusers, 1 and less switch
    it off.
    """

    unet: Any
    scheduler: Any
    model_cpu_offload_seq: Any

    _callback_tensor_inputs: tuple[str, ...] = ("latents",)
    _num_timesteps = 0
    _guidance_scale = 1.0
    _interrupt = False

    @property
    def num_timesteps(self) -> int:
        """How many steps the call that runs, or the last one, makes."""
        return self._num_timesteps

    @property
    def guidance_scale(self) -> float:
        """The weight of classifier-free guidance at the next step."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next step evaluates the network without condition too."""
        return self._guidance_scale != 1

    @property
    def interrupt(self) -> bool:
        """Whether a callback has ended the loop."""
        return self._interrupt

    def _begin(self, timesteps: Tensor, guidance_scale: float, callback: Callback | None, names: Sequence[str]) -> None:
        """Sets what callbacks read.

        Raises:
            UsageError: `callback_on_step_end_tensor_inputs` names what this pipeline does not hand out.
        """
        for name in getattr(callback, "tensor_inputs", names):
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        self._num_timesteps, self._guidance_scale, self._interrupt = len(timesteps), guidance_scale, False

    def _end_step(
        self,
        step: int,
        t: Tensor,
        x: Tensor,
        conditioning: Conditioning | None,
        callback: Callback | None,
        names: Sequence[str],
    ) -> tuple[Tensor, Conditioning | None]:
        """Calls back, and takes over what the callback changed: the latents, the conditioning and its guidance."""
        if callback is None:
            return x, conditioning
        held: dict[str, Any] = dict.fromkeys(self._callback_tensor_inputs) | {"latents": x}
        if conditioning is not None:
            held["prompt_embeds"] = conditioning.inputs.get(_EMBEDS)
            held["negative_prompt_embeds"] = (conditioning.unconditional or {}).get(_EMBEDS)
        asked = {name: held[name] for name in getattr(callback, "tensor_inputs", names)}
        changed = callback(self, step, t, dict(asked)) or {}
        for name in asked:
            new = changed.get(name, asked[name])
            if asked[name] is not None and new.shape != asked[name].shape:
                raise UsageError(
                    f"callback_on_step_end must leave the shape of {name}, {tuple(asked[name].shape)}, as it is; got "
                    f"{tuple(new.shape)}. Sample one image at a time with a callback that keeps one row."
                )
        if conditioning is not None:
            inputs, unconditional = conditioning.inputs, conditioning.unconditional
            if "prompt_embeds" in asked and "prompt_embeds" in changed:
                inputs = {**inputs, _EMBEDS: changed["prompt_embeds"]}
            if unconditional is not None and "negative_prompt_embeds" in asked and "negative_prompt_embeds" in changed:
                unconditional = {**unconditional, _EMBEDS: changed["negative_prompt_embeds"]}
            scale = conditioning.guidance_scale
            if self._guidance_scale != scale:
                scale = max(1.0, self._guidance_scale)
            if scale != 1 and unconditional is None:
                raise UsageError(
                    f"guidance_scale must be other than 1 in the call, if a callback sets it to {scale} later: 1.001 "
                    "is as good as none."
                )
            conditioning = replace(conditioning, inputs=inputs, unconditional=unconditional, guidance_scale=scale)
        return changed.get("latents", x), conditioning
