"""Autoencoders of time series and sounds, convolutional and recurrent: promises of pipelines, scripts, commands."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import load_example, quiet, seeded

import latentia
from latentia import (
    Autoencoder,
    AutoencoderPipeline,
    LatentMixture,
    LogMel,
    RecurrentAutoencoder,
    RecurrentAutoencoderPipeline,
    SeriesScaler,
)
from latentia.commands.anomalies import anomalies
from latentia.commands.embed import embed
from latentia.commands.evaluate import evaluate
from latentia.commands.sources import modality_of
from latentia.data import load_series, load_sounds
from latentia.errors import UsageError
from latentia.runs.command_line import parse_arguments
from latentia.runs.signal_data import arguments_of

STEPS = np.concatenate([np.arange(6 + i % 3) for i in range(60)])
TABLE = {
    "series": np.repeat(np.arange(60), 6 + np.arange(60) % 3),
    "time": STEPS,
    "u": np.arange(len(STEPS)) ** 2 % 13,
    "v": np.arange(len(STEPS)) ** 3 % 7,
}
UNEQUAL = load_series(TABLE)  # 6, 7 or 8 steps of two channels
EQUAL = load_series("sines_ar2", max_samples=30, window=15)
SOUNDS = load_sounds("tones", max_samples=12)


def scaler(series):
    return SeriesScaler.fit(series.describe_channels(), series.values, series.lengths)


def fitted(pipe, signals):
    pipe.register_modules(prior=LatentMixture.fit(pipe.encode(signals), 2))
    return quiet(pipe)


def convolutional(series):
    torch.manual_seed(0)
    channels, steps = series.values.shape[1:]
    network = Autoencoder((steps,), channels, 3, block_out_channels=(4, 8)).eval()
    return fitted(AutoencoderPipeline(network, codec=scaler(series)), series)


def recurrent(signals, codec, features):
    torch.manual_seed(0)
    network = RecurrentAutoencoder(features, 3, 8).eval()
    return fitted(RecurrentAutoencoderPipeline(network, codec=codec), signals)


LOG_MEL = LogMel.fit(torch.from_numpy(SOUNDS.waves), SOUNDS.sampling_rate, num_mels=8)
PIPELINES = {
    "series": (convolutional(EQUAL), EQUAL),
    "series-unequal": (recurrent(UNEQUAL, scaler(UNEQUAL), 2), UNEQUAL),
    "sound-recurrent": (recurrent(SOUNDS, LOG_MEL, 8), SOUNDS),
}
every = pytest.mark.parametrize("name", PIPELINES)


def sample(pipe, n, **options):
    return getattr(pipe(n, **{"output_type": "latent", "generator": seeded(7)} | options), pipe.modality)


@every
def test_autoencoders_of_signals_keep_the_promises(name, tmp_path):
    pipe, signals = PIPELINES[name]
    many = sample(pipe, 20)
    assert many.shape == (20, *pipe.form.shape) and len(many.unique(dim=0)) == 20
    for n in (1, 9):
        assert torch.equal(sample(pipe, n), many[:n])
    made = sample(pipe, 3, output_type=pipe.modality)
    assert type(made) is type(signals) and len(made) == 3
    pipe.save_pretrained(tmp_path)
    loaded = quiet(latentia.DiffusionPipeline.from_pretrained(tmp_path))
    assert torch.equal(sample(loaded, 3), many[:3]) and loaded.modality == modality_of(tmp_path) == name.split("-")[0]
    latents = pipe.encode(signals)
    assert latents.shape == (len(signals), 3) and torch.equal(pipe.encode(signals.take(slice(5))), latents[:5])
    x = pipe.form.tensors(signals, latents.device, latents.dtype)
    again = pipe.reconstruct(signals, output_type="latent")
    torch.testing.assert_close(pipe.anomaly_score(signals), (again - x).square().sum((1, 2)))
    ends = pipe.interpolate(signals.take(slice(1)), signals.take(slice(1, 2)), 3, output_type="latent")
    torch.testing.assert_close(ends[0, :, :6], again[0, :, :6])
    if name == "series-unequal":
        lengths = pipe(200, generator=seeded(1)).lengths
        assert lengths.unique().tolist() == [6, 7, 8]
        held = pipe.reconstruct(signals, output_type="series")
        beyond = ~torch.from_numpy(signals.mask)[:, None].expand_as(again)
        assert (held.lengths == signals.lengths).all() and (again[beyond] == 0).all()


def test_what_lies_beyond_the_end_of_a_series_changes_nothing():
    pipe = PIPELINES["series-unequal"][0]
    spoilt = dataclasses.replace(UNEQUAL, values=np.where(UNEQUAL.mask[:, None], UNEQUAL.values, 1e3))
    assert torch.equal(pipe.encode(spoilt), pipe.encode(UNEQUAL))
    assert torch.equal(pipe.anomaly_score(spoilt), pipe.anomaly_score(UNEQUAL))
    alone = UNEQUAL.take(slice(1))  # of six steps, read without those that follow
    short = dataclasses.replace(alone, values=alone.values[:, :, :6])
    assert torch.equal(pipe.encode(short), pipe.encode(UNEQUAL)[:1])


def test_scripts_train_on_series_and_commands_take_them(tmp_path):
    import pandas as pd

    pd.DataFrame(TABLE).to_csv(tmp_path / "sensors.csv", index=False)
    common = f"--train_data_dir {tmp_path / 'sensors.csv'} --max_train_steps 2 --train_batch_size 8 --latent_dim 2"
    common += " --eval_num_samples 0 --prior_components 2"
    for family, own in (
        ("recurrent_autoencoder", "--hidden_size 4 --min_rows 3"),
        ("autoencoder", "--block_out_channels 4 --window 6 --corruption gaussian --corruption_strength 0.1"),
    ):
        example = load_example(f"train_{family}")
        folder = str(tmp_path / family)
        words = [*common.split(), *own.split(), "--output_dir", folder]
        assert example.main(parse_arguments(arguments_of(example.Arguments, words), words, description="")) == 0
        assert anomalies(folder, max_samples=9).scores.shape == (9,)
        found = embed(folder, max_samples=20, points=20)
        assert found.latents.shape == (20, 2) and found.about["data"] == "sensors.csv"
        assert evaluate(folder, metrics=["spectrum"], n=12).modality == "series"
    words = [*words, "--corruption", "masking"]
    with pytest.raises(UsageError, match="corruption must be gaussian or none for series and sounds"):
        example.main(parse_arguments(arguments_of(example.Arguments, words), words, description=""))


def test_series_that_an_autoencoder_does_not_take_are_refused():
    longer = load_series({**TABLE, "series": TABLE["series"] // 2, "time": np.arange(len(STEPS))})
    for call, text in (
        (lambda: PIPELINES["series-unequal"][0].encode(longer), "series must have at most 8 steps each"),
        (lambda: PIPELINES["series"][0].encode(np.zeros((1, 1, 9))), "series must have 15 steps each"),
        (lambda: RecurrentAutoencoderPipeline(RecurrentAutoencoder(3), codec=scaler(UNEQUAL)), "codec must be of sequ"),
        (lambda: AutoencoderPipeline(Autoencoder((15,), latent_dim=2)), "codec must be a SeriesScaler or a LogMel"),
    ):
        with pytest.raises(UsageError, match=text):
            call()
