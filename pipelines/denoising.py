"""What callbacks written for diffusers read and change while a pipeline denoises in steps.

While it samples, `pipe.num_timesteps` is the number of steps, `pipe.guidance_scale` the weight of classifier-free
guidance, and `pipe.interrupt` whether the loop ends after the step: a callback sets `pipe._interrupt = True` for that.
A callback that sets `pipe._guidance_scale` changes the guidance of the steps that follow; as in diffusers, 1 and less
switch it off.

Several threads may call one pipeline at once. Each call has its own scheduler and its own `CallState`, which these
attributes find by the thread; a thread without a call sees the call that began last, and can interrupt it.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from latentia.errors import UsageError, check_choice
from latentia.pipelines.sampling import Conditioning

Callback = Callable[[Any, int, Tensor, dict], dict | None]
_EMBEDS = "encoder_hidden_states"


@dataclass
class CallState:
    """State of one call that callbacks read and change."""

    num_timesteps: int = 0
    guidance_scale: float = 1.0
    interrupt: bool = False


class OfCall:
    """An attribute `_name` of a pipeline: `name` of the `CallState` of this thread, or of the last call."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removeprefix("_")

    def __get__(self, pipe: Any, owner: type | None = None) -> Any:
        return self if pipe is None else getattr(_state(pipe), self.name)

    def __set__(self, pipe: Any, value: Any) -> None:
        setattr(_state(pipe), self.name, value)


def _calls(pipe: Any) -> dict[int | None, CallState]:
    """The states of a pipeline's calls by thread; that of the last call at None."""
    return vars(pipe).setdefault("_call_states", {None: CallState()})


def _state(pipe: Any) -> CallState:
    calls = _calls(pipe)
    return calls.get(threading.get_ident()) or calls[None]


class Steps:
    """The steps of one call of a pipeline.

    `scheduler` is a copy of the pipeline's that shares nothing which steps change. The pipeline's own is brought to its
    state at the first step and before each callback, which may read it.

    Args:
        pipe: the pipeline.
        guidance_scale: of the first step.
        callback: called after each step; `None`: none.
        names: of the tensors that the callback gets.

    Raises:
        UsageError: `callback_on_step_end_tensor_inputs` names what this pipeline does not hand out.
    """

    def __init__(self, pipe: Any, guidance_scale: float, callback: Callback | None, names: Sequence[str]):
        self.names = list(getattr(callback, "tensor_inputs", names))
        for name in self.names:
            check_choice("callback_on_step_end_tensor_inputs", name, pipe._callback_tensor_inputs)
        self.pipe, self.callback, self.shown = pipe, callback, pipe.scheduler
        # First the attributes at once, then what they hold: another thread may add some meanwhile.
        self.scheduler = copy.deepcopy(copy.copy(self.shown))
        self.state = CallState(guidance_scale=guidance_scale)

    def over(self, timesteps: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(index, time step) of each, until a callback ends them."""
        calls, thread = _calls(self.pipe), threading.get_ident()
        outer = calls.get(thread)  # of a callback that calls the pipeline
        self.state.num_timesteps = len(timesteps)
        calls[thread] = calls[None] = self.state
        self._show()
        try:
            for i, t in enumerate(self.pipe.progress_bar(timesteps)):
                yield i, t
                if self.state.interrupt:
                    break
        finally:
            if outer is None:
                calls.pop(thread, None)
            else:
                calls[thread] = outer

    def _show(self) -> None:
        vars(self.shown).update(vars(self.scheduler))

    def _check_changed(self, changed: Any, held: Mapping[str, Any]) -> None:
        """UsageError unless a callback returned tensors that the pipeline hands out, each of its shape."""
        if not isinstance(changed, Mapping):
            raise UsageError(f"callback_on_step_end must return a dict of tensors, or None; got {changed!r}.")
        for name, new in changed.items():
            check_choice("the keys that callback_on_step_end returns", name, self.pipe._callback_tensor_inputs)
            if held[name] is None and new is None:
                continue
            if not isinstance(new, Tensor):
                raise UsageError(
                    f"callback_on_step_end must return a tensor as {name}; got {new!r}. Leave {name} out to change "
                    "nothing."
                )
            if held[name] is not None and new.shape != held[name].shape:
                raise UsageError(
                    f"callback_on_step_end must leave the shape of {name}, {tuple(held[name].shape)}, as it is; got "
                    f"{tuple(new.shape)}. Sample one image at a time with a callback that keeps one row."
                )

    def end(
        self, step: int, t: Tensor, x: Tensor, conditioning: Conditioning | None
    ) -> tuple[Tensor, Conditioning | None]:
        """Calls back, and takes over what the callback changed: the latents, the conditioning and its guidance."""
        if self.callback is None:
            return x, conditioning
        self._show()
        held: dict[str, Any] = dict.fromkeys(self.pipe._callback_tensor_inputs) | {"latents": x}
        if conditioning is not None:
            held["prompt_embeds"] = conditioning.inputs.get(_EMBEDS)
            held["negative_prompt_embeds"] = (conditioning.unconditional or {}).get(_EMBEDS)
        asked = {name: held[name] for name in self.names}
        changed = self.callback(self.pipe, step, t, dict(asked))
        changed = {} if changed is None else changed
        self._check_changed(changed, held)
        if conditioning is not None:
            inputs, unconditional = conditioning.inputs, conditioning.unconditional
            if changed.get("prompt_embeds") is not None:
                inputs = {**inputs, _EMBEDS: changed["prompt_embeds"]}
            if unconditional is not None and changed.get("negative_prompt_embeds") is not None:
                unconditional = {**unconditional, _EMBEDS: changed["negative_prompt_embeds"]}
            scale = conditioning.guidance_scale
            if self.state.guidance_scale != scale:
                scale = max(1.0, self.state.guidance_scale)
            if scale != 1 and unconditional is None:
                raise UsageError(
                    f"guidance_scale must be other than 1 in the call, if a callback sets it to {scale} later: 1.001 "
                    "is as good as none."
                )
            conditioning = replace(conditioning, inputs=inputs, unconditional=unconditional, guidance_scale=scale)
        return changed.get("latents", x), conditioning
