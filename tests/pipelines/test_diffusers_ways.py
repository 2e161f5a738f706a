"""What users of diffusers expect of pipelines that denoise: callbacks, sizes, lists of steps, embeddings, guidance."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from helpers import quiet, seeded
from tiny_pipelines import COSINE, FLOW, WORDS, kl, text_pipeline, unet

from latentia import DDIMScheduler, LatentDiffusionPipeline, UnconditionalDiffusionPipeline
from latentia.errors import UsageError
from latentia.pipelines.sampling import is_flow, step_options

STEPS = {"num_inference_steps": 4, "output_type": "latent"}


def pixels(**options):
    return quiet(UnconditionalDiffusionPipeline(unet(1, 16, 3), DDIMScheduler(**COSINE), **options))


def latents(**options):
    return quiet(LatentDiffusionPipeline(kl(), unet(classes=3), DDIMScheduler(**COSINE), **options))


BUILD = {"pixels": pixels, "latents": latents, "texts": text_pipeline}
ASK = {"pixels": {"class_labels": 1}, "latents": {"class_labels": 1}, "texts": {"prompt": WORDS[0]}}
every = pytest.mark.parametrize("kind", BUILD)


def draw(pipe, kind, **options):
    return pipe(**ASK[kind] | STEPS | {"generator": seeded(3)} | options).images


# ------------------------------------------------------------ callbacks


@every
def test_callbacks_see_the_run_and_can_end_it(kind):
    pipe, seen = BUILD[kind](), []

    def stop(pipe, step, t, held):
        seen.append((step, pipe.num_timesteps, pipe.guidance_scale, pipe.do_classifier_free_guidance, sorted(held)))
        pipe._interrupt = step == 1
        return held

    names = list(type(pipe)._callback_tensor_inputs)
    options = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": names}
    early = draw(pipe, kind, guidance_scale=2.0, **options)
    assert seen == [(step, 4, 2.0, True, sorted(names)) for step in (0, 1)] and pipe.interrupt
    assert not torch.equal(early, draw(pipe, kind, guidance_scale=2.0)) and not pipe.interrupt
    with pytest.raises(UsageError, match=r'callback_on_step_end_tensor_inputs must be one of.*Did you mean "latents"'):
        draw(pipe, kind, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["latent"])


@every
def test_a_callback_changes_the_guidance_of_later_steps(kind):
    pipe = BUILD[kind]()

    def grow(pipe, step, t, held):
        pipe._guidance_scale += 1.0
        return held

    def cut(pipe, step, t, held):
        pipe._guidance_scale = 0.0  # off, for diffusers

    plain = draw(pipe, kind, guidance_scale=2.0)
    assert not torch.allclose(draw(pipe, kind, guidance_scale=2.0, callback_on_step_end=grow), plain)
    assert pipe.guidance_scale == 6.0
    scales = []

    def replay(pipe, step, t, held):
        scales.append(pipe.guidance_scale)
        return {"latents": held["latents"]}

    assert torch.equal(draw(pipe, kind, guidance_scale=2.0, callback_on_step_end=replay), plain) and set(scales) == {
        2.0
    }
    off = draw(pipe, kind, guidance_scale=2.0, callback_on_step_end=cut)
    one_step = {"timesteps": [999]}
    assert not torch.allclose(off, plain) and not torch.allclose(off, draw(pipe, kind))
    # guidance at the first of one step only is guidance
    assert torch.equal(
        draw(pipe, kind, guidance_scale=2.0, callback_on_step_end=cut, **one_step),
        draw(pipe, kind, guidance_scale=2.0, **one_step),
    )
    with pytest.raises(UsageError, match="guidance_scale must be other than 1 in the call"):
        draw(pipe, kind, callback_on_step_end=grow)


@every
def test_calls_in_threads_have_callbacks_of_their_own(kind):
    """What a callback reads and sets is of its call, whoever else samples; another thread reaches the last call."""
    pipe, together = BUILD[kind](), threading.Barrier(3, timeout=60)

    def call(steps):
        seen = []

        def watch(pipe, step, t, held):
            if step < 3:
                together.wait()
            seen.append((pipe.num_timesteps, pipe.guidance_scale, pipe.interrupt))
            pipe._guidance_scale += steps
            pipe._interrupt = step == steps - 2

        options = {"num_inference_steps": steps, "guidance_scale": float(steps), "callback_on_step_end": watch}
        return draw(pipe, kind, **options), seen

    def alone(steps):
        def grow(pipe, step, t, held):
            pipe._guidance_scale += steps
            pipe._interrupt = step == steps - 2

        return draw(pipe, kind, num_inference_steps=steps, guidance_scale=float(steps), callback_on_step_end=grow)

    for steps, (images, seen) in zip((4, 5, 6), ThreadPoolExecutor(3).map(call, (4, 5, 6))):
        assert seen == [(steps, float(steps * (1 + i)), False) for i in range(steps - 1)]
        assert torch.equal(images, alone(steps))
    begun = threading.Event()
    endless = {"num_inference_steps": 1000, "callback_on_step_end": lambda *_: begun.set()}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(draw, pipe, kind, **endless)
        assert begun.wait(60) and pipe.num_timesteps == 1000
        pipe._interrupt = True
        running.result(30)


def test_an_error_in_a_callback_leaves_no_state_behind():
    pipe = pixels()

    def fail(pipe, step, t, held):
        pipe._interrupt = True
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        draw(pipe, "pixels", callback_on_step_end=fail)
    assert draw(pipe, "pixels").isfinite().all() and not pipe.interrupt and pipe.num_timesteps == 4
    assert copy.deepcopy(pipe).num_timesteps == 4 and pickle.loads(pickle.dumps(pipe)).num_timesteps == 4


def test_the_callbacks_of_diffusers_run():
    pipe = text_pipeline()
    calls = MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.5)])
    off = draw(pipe, "texts", guidance_scale=3.0, callback_on_step_end=calls)

    def cut(pipe, step, t, held):
        pipe._guidance_scale = 0.0 if step == 2 else pipe._guidance_scale

    assert torch.equal(off, draw(pipe, "texts", guidance_scale=3.0, callback_on_step_end=cut))
    assert not torch.equal(off, draw(pipe, "texts", guidance_scale=3.0))
    with pytest.raises(UsageError, match="must leave the shape of prompt_embeds"):
        draw(pipe, "texts", prompt=WORDS[:2], guidance_scale=3.0, callback_on_step_end=calls)


# ------------------------------------------------------------ sizes, steps, masks


@every
def test_height_and_width_are_those_of_the_images(kind):
    pipe = BUILD[kind]()
    images = draw(pipe, kind, height=24, width=32, output_type="np")
    assert images.shape[1:3] == (24, 32)
    assert torch.equal(draw(pipe, kind, height=16), draw(pipe, kind))
    source = torch.zeros(1, 1 if kind != "texts" else 3, 24, 32)
    filled = draw(pipe, kind, image=source, mask_image=torch.zeros(24, 32), height=24, width=32)
    assert torch.equal(filled, source)
    with pytest.raises(UsageError, match=r"height must be a positive|sides divisible by 2"):
        draw(pipe, kind, height=17)


@every
def test_mask_image_is_another_name_of_mask(kind):
    pipe, mask = BUILD[kind](), torch.zeros(16, 16)
    mask[:, :8] = 1
    image = torch.zeros(1, 1 if kind != "texts" else 3, 16, 16)
    assert torch.equal(draw(pipe, kind, image=image, mask=mask), draw(pipe, kind, image=image, mask_image=mask))
    with pytest.raises(UsageError, match="two names of one argument"):
        draw(pipe, kind, image=image, mask=mask, mask_image=mask)


@every
def test_lists_of_steps_are_those_that_are_visited(kind):
    pipe = BUILD[kind]()
    pipe.scheduler.set_timesteps(4)
    visited = pipe.scheduler.timesteps.tolist()
    assert torch.equal(draw(pipe, kind, timesteps=visited), draw(pipe, kind))
    assert not torch.equal(draw(pipe, kind, timesteps=[999, 300]), draw(pipe, kind))
    image = torch.zeros(1, 1 if kind != "texts" else 3, 16, 16)
    draw(pipe, kind, timesteps=[999, 300], image=image, strength=0.5)
    assert pipe.num_timesteps == 1
    for given, words in [
        ({"sigmas": [1.0, 0.5]}, "sigmas must be left out: DDIMScheduler"),
        ({"timesteps": [3, 2], "sigmas": [1.0]}, "give one of them"),
    ]:
        with pytest.raises(UsageError, match=words):
            draw(pipe, kind, **given)
    pipe.scheduler = FLOW()
    assert draw(pipe, kind, sigmas=[1.0, 0.6, 0.3]).isfinite().all() and pipe.num_timesteps == 3


def test_clipping_is_that_of_diffusers_if_it_is_asked_for():
    """With the default, True, eps is computed anew from the clipped x_0."""
    network = unet(1, 16)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True)
    pipe = quiet(UnconditionalDiffusionPipeline(network, scheduler))
    x = noise = torch.randn(2, 1, 16, 16, generator=seeded(0))
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    asked = {"latents": noise, "num_inference_steps": 5, "output_type": "latent"}
    found = pipe(use_clipped_model_output=False, **asked).images
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(pipe(**asked).images, x, atol=1e-2)


# ------------------------------------------------------------ texts


def test_embeddings_of_prompts_stand_for_them():
    pipe = text_pipeline()
    asked = {"guidance_scale": 2.0, "generator": seeded(1), **STEPS}
    plain = pipe(WORDS[:2], negative_prompt=WORDS[3], num_images_per_prompt=2, **asked).images
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    for repeats in (1, 2):
        given = pipe.encode_prompt(WORDS[:2], negative_prompt=WORDS[3], num_images_per_prompt=repeats)
        asked["generator"] = seeded(1)
        again = pipe(**dict(zip(names, given)), num_images_per_prompt=2 // repeats, **asked).images
        assert torch.equal(again, plain)
    assert pipe.encode_prompt("a", do_classifier_free_guidance=False)[2:] == (None, None)
    embeds, mask, *_ = pipe.encode_prompt(WORDS[:2])
    for given, words in [
        ({"prompt_embeds": embeds}, "prompt_attention_mask must be given"),
        ({"prompt_attention_mask": mask}, "belongs to prompt_embeds"),
        ({"prompt": "a", "prompt_embeds": embeds, "prompt_attention_mask": mask}, "two ways to give the texts"),
        ({"prompt_embeds": embeds[0], "prompt_attention_mask": mask}, r"must have shape \(B, L, 32\)"),
        ({"prompt_embeds": embeds, "prompt_attention_mask": mask[:1]}, "prompt_attention_mask must have shape"),
    ]:
        with pytest.raises(UsageError, match=words):
            pipe(**given, **STEPS)


# ------------------------------------------------------------ guidance of what was never trained


@pytest.mark.parametrize("build", [pixels, latents])
def test_without_class_dropout_nothing_untrained_is_asked(build, tmp_path):
    build(unconditional=False).save_pretrained(tmp_path)
    pipe = quiet(type(build()).from_pretrained(tmp_path))  # it is known to the saved pipeline
    pipe(class_labels=1, **STEPS)
    with pytest.raises(UsageError, match=r"guidance_scale must be 1.*without class dropout.*class_dropout=0.1"):
        pipe(class_labels=1, guidance_scale=2.0, **STEPS)
    for call in (lambda: pipe(2, **STEPS), lambda: pipe.encode(torch.zeros(1, 1, 16, 16), num_inference_steps=2)):
        with pytest.raises(UsageError, match=r"class_labels are missing: .*without class dropout"):
            call()


def test_a_network_of_diffusers_with_classes_is_not_guided():
    network = diffusers.UNet2DModel(
        8, 1, 1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(8,),
        layers_per_block=1, norm_num_groups=4, num_class_embeds=3,
    )  # fmt: skip
    pipe = quiet(UnconditionalDiffusionPipeline(network, DDIMScheduler()))
    with pytest.raises(UsageError, match="no row for no class"):
        pipe(class_labels=1, guidance_scale=2.0, **STEPS)


# ------------------------------------------------------------ schedulers


def kinds():
    for name in sorted(dir(diffusers)):
        if name.endswith("Scheduler") and not name.startswith("Flax"):
            kind = getattr(diffusers, name)
            try:
                yield kind()
            except (TypeError, ImportError):  # arguments that it needs, and packages that are not here
                continue


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers' own schedulers, under a newer numpy
def test_every_scheduler_of_flow_matching_is_known_as_one():
    found = {type(scheduler).__name__ for scheduler in kinds() if is_flow(scheduler)}
    assert {name for name in dir(diffusers) if name.startswith("FlowM") and name.endswith("Scheduler")} <= found
    assert "LTXEulerAncestralRFScheduler" in found
    others = {type(scheduler).__name__ for scheduler in kinds() if hasattr(scheduler, "betas")}
    assert not found & others and not found & {"EDMEulerScheduler", "CMStochasticIterativeScheduler", "SCMScheduler"}


def test_a_flow_is_inverted_by_its_own_steps():
    """And not by DDIM over betas that it has not got."""
    ours, found = unet(1, 16), []
    kinds = (FLOW, diffusers.FlowMatchHeunDiscreteScheduler, diffusers.LTXEulerAncestralRFScheduler)
    x = torch.rand(1, 1, 16, 16, generator=seeded(0)) * 2 - 1
    for kind in kinds:
        pipe = quiet(UnconditionalDiffusionPipeline(ours, kind()))
        found.append(pipe.encode(x, num_inference_steps=4))
        with pytest.raises(UsageError, match=f"schedule of betas for this; a {kind.__name__} has none"):
            pipe.log_likelihood(x, method="bound")
        assert pipe.log_likelihood(x, num_inference_steps=4).isfinite()  # of its own ODE
        pipe(image=x, strength=0.5, **STEPS)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(UsageError, match="schedule of betas for this; a EDMEulerScheduler has none"):
        pipe.encode(x)


def test_a_scheduler_that_steps_otherwise_is_refused_in_words():
    pipe = pixels()
    for kind in (diffusers.KarrasVeScheduler, diffusers.RePaintScheduler, diffusers.CogVideoXDPMScheduler):
        pipe.scheduler = kind()
        with pytest.raises(UsageError, match=f"scheduler must be one .*; got {kind.__name__}, whose step takes"):
            pipe(**STEPS)
        with pytest.raises(UsageError, match="scheduler must be one"):
            UnconditionalDiffusionPipeline(pipe.unet, kind())


def test_a_path_of_noise_of_a_scheduler_is_seeded_by_ours():
    """DPMSolverSDEScheduler draws from a Brownian path, by one seed or one for each image; it needs torchsde."""

    class Brownian(DDIMScheduler):
        noise_sampler_seed = None

    scheduler = Brownian()
    seeds = []
    for seed in (1, 1, 2):
        options = step_options(scheduler, [seeded(seed), seeded(9)], 0.0)
        seeds.append(scheduler.noise_sampler_seed)
        assert "noise_sampler_seed" not in options
    assert seeds[0] == seeds[1] and seeds[0][0] != seeds[2][0] and seeds[0][1] == seeds[2][1]


def test_latents_of_other_channels_are_refused():
    pipe = pixels()
    for call in (lambda z: pipe(latents=z, **STEPS), lambda z: pipe.decode(z, num_inference_steps=2)):
        with pytest.raises(UsageError, match=r"latents must have shape \(B, 1, h, w\)"):
            call(torch.zeros(2, 3, 16, 16))
