"""Sounds: WAV and FLAC files, what is decided in reading them and said, what is refused by its place, and frames."""

import re

import numpy as np
import pytest
import soundfile
import torch

from latentia import LogMel
from latentia.data import SoundFrames, load_sounds
from latentia.data.shipped_sounds import FORMANTS, PITCHES, RATE, tones, vowels
from latentia.data.sounds import wav_bytes
from latentia.errors import DataError, UsageError


def sine(seconds=0.2, rate=RATE, pitch=440.0, size=0.5):
    return size * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path):
    """Two classes of two files each."""
    for name, suffix, pitch in (("high", "wav", 800), ("high", "flac", 900), ("low", "wav", 200), ("low", "flac", 300)):
        (tmp_path / name).mkdir(exist_ok=True)
        soundfile.write(tmp_path / name / f"{pitch}.{suffix}", sine(pitch=pitch), RATE)
    return tmp_path


def test_folders_are_classes_and_both_formats_are_read(folder):
    found = load_sounds(folder)
    assert found.waves.shape == (4, 1600) and found.waves.dtype == np.float32 and found.sampling_rate == RATE
    assert found.label_names == ["high", "low"] and found.labels.tolist() == [0, 0, 1, 1]
    assert np.abs(found.waves[0] - sine(pitch=800)).max() < 1e-4
    assert load_sounds(folder / "high").labels is None and len(load_sounds(folder / "high" / "800.wav")) == 1
    assert "4 clips of 0.2 s at 8000 Hz, 2 classes" in repr(found)


def test_what_is_written_is_read_again(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav_bytes(sine(), RATE))
    assert np.abs(load_sounds(tmp_path).waves[0] - sine()).max() < 2**-15


def test_files_are_cut_resampled_and_made_mono_and_it_is_said(folder):
    soundfile.write(folder / "low" / "stereo.wav", np.stack([sine(0.45, 16_000), 0 * sine(0.45, 16_000)], 1), 16_000)
    found = load_sounds(folder, sampling_rate=RATE, clip_seconds=0.1)
    assert found.waves.shape == (12, 800) and np.bincount(found.files).tolist() == [2, 2, 2, 2, 4]
    stereo = found.waves[found.files == 4]
    assert np.abs(stereo[1] - sine(0.45)[800:1600] / 2).max() < 0.01  # resampled, and the mean of both channels
    for said in ("1 file made mono", "1 file resampled", "400 samples left out"):
        assert said in repr(found)
    train, held_out = found.parts(0.4)
    assert len(train) + len(held_out) == 12 and not {*train.files} & {*held_out.files}


@pytest.mark.parametrize(
    ("samples", "rate", "options", "text"),
    [
        (
            sine(rate=4000),
            4000,
            {},
            "800.wav has 8000 Hz and low/z.wav 4000 Hz. Give sampling_rate=4000",
        ),
        (
            sine(0.1),
            RATE,
            {},
            "one length: high.800.wav has 1600 samples and low.z.wav 800. Give clip_seconds, at most the length of",
        ),
        (sine(0.1), RATE, {"clip_seconds": 0.15}, "z.wav has 0.1 s, less than a clip of clip_seconds=0.15"),
        (np.zeros(1600), RATE, {}, 'z.wav is silent from 0 s to 0.2 s, below -60 dB.*on_silence="skip"'),
        (np.r_[sine(0.1), np.zeros(800)], RATE, {"clip_seconds": 0.1}, "z.wav is silent from 0.1 s to 0.2 s"),
        (np.zeros(0), RATE, {}, "z.wav holds no samples"),
    ],
)
def test_what_is_no_clip_is_refused_by_its_file(folder, samples, rate, options, text):
    soundfile.write(folder / "low" / "z.wav", samples, rate)
    with pytest.raises(DataError, match=text):
        load_sounds(folder, **options)


def test_files_that_are_no_sound_are_refused(folder, tmp_path):
    soundfile.write(folder / "low" / "z.wav", np.full(1600, 1.5), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"z.wav has samples beyond \[-1, 1\]"):
        load_sounds(folder)
    (folder / "low" / "z.wav").write_bytes(b"RIFF nothing")
    with pytest.raises(DataError, match=r"z.wav cannot be read as sound.*Repair or remove it"):
        load_sounds(folder)
    (tmp_path / "empty").mkdir()
    for source, error, text in (
        (tmp_path / "empty", DataError, "holds no .wav or .flac file"),
        ("tone", UsageError, 'Did you mean "tones"'),
    ):
        with pytest.raises(error, match=text):
            load_sounds(source)
    for options, text in (
        ({"clip_seconds": 1.0}, "are of files, and tones is none"),
        ({"on_silence": "keep"}, "on_silence must be one of"),
        ({"max_samples": 0}, "max_samples must be"),
    ):
        with pytest.raises(UsageError, match=text):
            load_sounds("tones", **options)


def test_silent_clips_are_left_out_if_asked_for(folder):
    soundfile.write(folder / "low" / "z.wav", np.zeros(1600), RATE)
    found = load_sounds(folder, on_silence="skip")
    assert len(found) == 4 and "1 silent clip left out" in repr(found)


def test_tones_have_their_pitch_and_vowels_their_formants():
    waves, labels = tones(30, seed=3)
    for wave, label in zip(waves, labels):
        power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**16))
        sharp = np.arange(len(power)) * RATE / 2**16
        octaves = [[*PITCHES.values()][label] * 2.0**k for k in (-1, 0, 1)]
        near = [power[np.abs(sharp - pitch) < 0.012 * pitch].max() for pitch in octaves]
        assert max(near) > 0.9 * power.max()
    waves, labels = vowels(50, seed=3)
    assert np.array_equal(waves, vowels(50, seed=3)[0]) and abs(np.abs(waves).max() - 0.5) < 1e-6
    mean = [np.abs(np.fft.rfft(waves[labels == k], axis=1)).mean(0) for k in range(5)]
    high = [power[1000:].sum() / power.sum() for power in mean]  # above 1950 Hz
    assert [*FORMANTS][int(np.argmax(high))] in ("i", "e") and max(high) > 5 * high[[*FORMANTS].index("u")]


def test_frames_are_standardised_and_griffin_lim_is_near():
    sounds = load_sounds("vowels", max_samples=40)
    codec = LogMel.fit(torch.from_numpy(sounds.waves), sounds.sampling_rate, num_mels=40, n_fft=512, hop_length=128)
    data = SoundFrames(sounds, codec)
    x = data.batch(0, 40)["x"]
    assert (
        x.shape == (40, *codec.shape) and x.mean((0, 2)).abs().max() < 1e-3 and (x.std((0, 2)) - 1).abs().max() < 0.01
    )
    again = codec.encode(codec.decode(data.inputs[:8]))
    assert (again - data.inputs[:8]).square().mean().sqrt() < 0.4  # of standard deviations
    for count in (1, 3):  # a clip is the same whatever is decoded beside it
        assert torch.equal(codec.decode(data.inputs[:count]), codec.decode(data.inputs[:8])[:count])


def test_a_louder_clip_is_shifted_by_its_logarithm():
    codec = LogMel(samples=1024)
    wave = torch.from_numpy(sine(0.128)).float()[None]
    loud = codec.encode(wave) > -8  # far from the floor
    shift = (codec.encode(wave) - codec.encode(wave / 2))[loud & (codec.encode(wave / 2) > -8)]
    torch.testing.assert_close(shift, torch.full_like(shift, float(np.log(2))))
    for call, text in (
        (lambda: codec.encode(torch.zeros(1, 99)), r"waves must be floats \(B, 1024\)"),
        (lambda: codec.decode(torch.zeros(1, 80, 3)), r"sequences must be \(B, 80, 5\)"),
        (lambda: LogMel(hop_length=600), "hop_length must be at most half of n_fft"),
        (lambda: LogMel(samples=500), "n_fft must be at most the samples of a clip, 500.* such as n_fft=500"),
        (lambda: LogMel(num_mels=400), "num_mels must be so few"),
    ):
        with pytest.raises(UsageError, match=text):
            call()


@pytest.mark.parametrize("rate", [100, 1000, 8000, 44100, 96000])
def test_default_bands_fit_or_an_error_says_how_many_do(rate):
    try:
        LogMel(rate, samples=1024)
    except UsageError as error:
        most = int(re.search(r"at most (\d+) num_mels", str(error)).group(1))
        assert rate == 96000 and LogMel(rate, samples=1024, num_mels=most).shape == (most, 5)
        with pytest.raises(UsageError, match="num_mels"):
            LogMel(rate, samples=1024, num_mels=most + 1)
