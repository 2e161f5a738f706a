"""The pipeline of sounds: what is promised of every pipeline, WAV files, and sounds in the commands and scores."""

import io
import json

import numpy as np
import pytest
import soundfile
import torch
from devices import DEVICE, separate_device
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import quiet, seeded
from tiny_pipelines import COSINE

import latentia
from latentia import DDIMScheduler, LogMel, SoundPipeline, UNet1D
from latentia.commands.compare import compare
from latentia.commands.evaluate import evaluate
from latentia.commands.generate import generate
from latentia.data import load_sounds
from latentia.errors import DataError, UsageError
from latentia.evaluation.sound_metrics import SoundSet, check_sound_metrics, log_spectral_distance
from latentia.pipelines.capabilities import capabilities

SOUNDS = load_sounds("tones", max_samples=65)
SHORT = {"num_inference_steps": 2, "iterations": 4}


def build(scheduler=None, classes=5):
    torch.manual_seed(0)
    log_mel = LogMel.fit(torch.from_numpy(SOUNDS.waves), SOUNDS.sampling_rate, num_mels=12)
    unet = UNet1D(17, 12, block_out_channels=(8, 16), attention_head_dim=8, num_class_embeds=classes)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    names = SOUNDS.label_names if classes else None
    return quiet(SoundPipeline(log_mel, unet.eval(), scheduler or DDIMScheduler(**COSINE), names))


PIPELINES = {"classes": build, "flow": lambda: build(FlowMatchEulerDiscreteScheduler(), None)}
BUILT = {name: make() for name, make in PIPELINES.items()}
every = pytest.mark.parametrize("name", PIPELINES)


def sample(pipe, n, seed=7, **options):
    asked = {"class_labels": [i % 5 for i in range(n)], "guidance_scale": 2.0} if pipe.num_classes else {}
    return pipe(n, generator=seeded(seed), **{"output_type": "latent"} | SHORT | asked | options).sound


def test_every_public_pipeline_of_sounds_is_here():
    public = {name for name in latentia.__all__ if name.endswith("Pipeline")} - {"DiffusionPipeline"}
    assert {name for name in public if getattr(latentia, name).modality == "sound"} == {"SoundPipeline"}


@every
def test_a_clip_has_the_same_bytes_in_every_batch(name):
    pipe = BUILT[name]
    many = sample(pipe, 20, output_type="np")
    assert many.shape == (20, 4096) and np.abs(many).max() <= 1 and len(np.unique(many, axis=0)) == 20
    for n in (1, 9):
        assert np.array_equal(sample(pipe, n, output_type="np"), many[:n])


@every
def test_output_types_agree_and_options_have_help(name):
    pipe = BUILT[name]
    waves, files, held = (sample(pipe, 2, output_type=kind) for kind in ("np", "wav", "sound"))
    read, rate = soundfile.read(io.BytesIO(files[1]))
    assert rate == 8000 and np.abs(read - waves[1]).max() < 2**-14 and np.array_equal(held.waves, waves)
    assert held.label_names == (SOUNDS.label_names if pipe.num_classes else None)
    able = capabilities(pipe)
    assert able.modality == "sound" and all(option.help for option in able.options.values())
    assert isinstance(pipe(1, return_dict=False, **SHORT), tuple)


@every
def test_saved_and_loaded_it_gives_the_same_clips(name, tmp_path):
    pipe = BUILT[name]
    pipe.save_pretrained(tmp_path)
    loaded = quiet(latentia.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is SoundPipeline and capabilities(loaded) == capabilities(pipe)
    torch.testing.assert_close(sample(loaded, 3), sample(pipe, 3))


@every
def test_half_precision_and_another_device_are_near(name):
    full = sample(BUILT[name], 4)
    half = sample(PIPELINES[name]().to(torch.bfloat16), 4).float()
    assert (half - full).abs().mean() < 0.05 * full.std()
    with separate_device():
        moved = sample(PIPELINES[name]().to(DEVICE), 4, output_type="np")
    np.testing.assert_allclose(moved, sample(BUILT[name], 4, output_type="np"), atol=1e-3)


def test_decode_inverts_encode_up_to_the_phases():
    pipe = build(FlowMatchEulerDiscreteScheduler(), None)
    latents = pipe.encode(SOUNDS.take(slice(2)), num_inference_steps=40, refinements=4)
    frames = pipe.decode(latents, num_inference_steps=40, output_type="latent")
    expected = pipe.log_mel.encode(torch.from_numpy(SOUNDS.waves[:2]))
    assert (frames - expected).abs().max() < 0.05 * expected.std()
    path = pipe.interpolate(SOUNDS.waves[:1], SOUNDS.waves[1:2], 3, num_inference_steps=2, output_type="latent")
    assert path.shape == (3, 12, 17)


def test_what_makes_no_sense_is_refused():
    pipe = BUILT["classes"]
    other = load_sounds("vowels", max_samples=2)
    faster = type(other)(other.waves, 16_000)
    for call, text in (
        (lambda: pipe(output_type="mp3"), "output_type must be one of"),
        (lambda: pipe(iterations=-1), "iterations must be"),
        (lambda: pipe(class_labels=["H"]), "H"),
        (lambda: pipe.encode(faster), "must have 8000 samples per second, as in training; got 16000"),
        (lambda: pipe.encode(2 * torch.ones(1, 4096)), r"waves in \[-1, 1\]"),
        (lambda: SoundPipeline(pipe.log_mel, UNet1D(8), pipe.scheduler), "unet must be of 12 bands and 17 frames"),
        (lambda: SoundPipeline(pipe.unet, pipe.unet, pipe.scheduler), "log_mel must be a LogMel; got UNet1D"),
    ):
        with pytest.raises(UsageError, match=text):
            call()


# ------------------------------------------------------------ commands and scores


def test_generate_writes_wav_files_with_spectrograms(tmp_path):
    BUILT["classes"].save_pretrained(tmp_path / "pipe")
    made = generate(str(tmp_path / "pipe"), 3, seed=2, class_labels=["A", "C"], num_inference_steps=2, iterations=2)
    folder, figure = made.save(tmp_path / "made")
    assert figure.name == "signals.png" and "3 sounds of SoundPipeline" in made.text()
    assert sorted(path.name for path in folder.glob("*.wav")) == ["00000.wav", "00001.wav", "00002.wav"]
    assert json.loads((folder / "recipes.json").read_text())[0]["class_labels"] == ["A", "C", "A"]
    assert load_sounds(folder).waves.shape == (3, 4096)
    generate(str(tmp_path / "pipe"), 1, num_inference_steps=1, iterations=0).save(tmp_path / "made", overwrite=True)
    assert len([*folder.glob("*.wav")]) == 1


def test_scores_know_real_clips_from_noise(tmp_path):
    found = evaluate(BUILT["classes"], SOUNDS, metrics=["log_spectral", "class_accuracy"], num_inference_steps=1)
    assert found.report["class_accuracy"].value < 0.7 < found.report["class_accuracy"].real
    found.save(tmp_path / "page")
    assert {"signals.png", "spectra.png", "real.png"} <= {path.name for path in (tmp_path / "page").iterdir()}
    compared = compare(["griffin_lim", BUILT["flow"]], SOUNDS, metrics=["log_spectral"], num_inference_steps=1)
    assert compared[0].report["log_spectral"].value < compared[1].report["log_spectral"].value
    assert "Log-spectral" in compared.text()


def test_a_distance_of_spectra_is_in_decibels():
    loud = SoundSet(SOUNDS.waves, 8000)
    assert log_spectral_distance(loud, loud) == 0
    quiet_ = SoundSet(SOUNDS.waves / 10, 8000)
    assert abs(log_spectral_distance(loud, quiet_) - 20) < 0.05
    assert [*check_sound_metrics(None, labels=False)] == ["log_spectral"]
    for metrics, labels, text in ((["log_spectal"], True, "Did you mean"), (["class_accuracy"], False, "needs labels")):
        with pytest.raises(UsageError, match=text):
            check_sound_metrics(metrics, labels)


def test_sounds_of_another_form_are_refused(tmp_path):
    for i in range(14):
        soundfile.write(tmp_path / f"{i}.wav", SOUNDS.waves[i, :2048], 8000)
    with pytest.raises(DataError, match="clips of 2048 samples at 8000 Hz, and the data have clips of 4096 samples"):
        evaluate(str(tmp_path), SOUNDS)
    with pytest.raises(UsageError, match=r"data is missing: SoundPipeline is no folder.*tones, vowels"):
        evaluate(BUILT["classes"])
