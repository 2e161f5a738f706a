"""VQ-VAEs of time series and sounds, and priors of their codes: promises of pipelines, scripts, commands, refusals."""

import numpy as np
import pytest
import torch
from helpers import load_example, quiet, seeded

import latentia
from latentia import LogMel, SeriesScaler, VQPriorPipeline, VQVAEPipeline
from latentia.commands.anomalies import anomalies
from latentia.commands.evaluate import evaluate
from latentia.commands.generate import generate
from latentia.commands.sources import modality_of
from latentia.data import load_series, load_sounds
from latentia.errors import DataError, UsageError
from latentia.hub.usage import pipeline_usage
from latentia.models.layers.convolution import Decoder, Encoder
from latentia.models.vq_prior import code_transformer
from latentia.models.vqvae import VQVAE
from latentia.pipelines.capabilities import capabilities
from latentia.runs.command_line import parse_arguments
from latentia.runs.signal_data import arguments_of

SERIES = load_series("sines_ar2", max_samples=30, window=15)
SOUNDS = load_sounds("tones", max_samples=12)
SMALL = {"block_out_channels": (8,), "codebook_size": 12, "latent_channels": 4}
SCALER = SeriesScaler.fit(SERIES.describe_channels(), SERIES.values, SERIES.lengths)
LOG_MEL = LogMel.fit(torch.from_numpy(SOUNDS.waves), SOUNDS.sampling_rate, num_mels=8)


def vqvae(codec):
    torch.manual_seed(0)
    channels, steps = (1, 15) if codec is SCALER else codec.shape
    network = VQVAE(sample_size=(steps,), in_channels=channels, **SMALL).eval()
    torch.nn.init.normal_(network.quantize.codebook, std=0.5)
    return network


def with_positions(codec, signals):
    pipe = VQVAEPipeline(vqvae(codec), codec=codec)
    pipe.register_modules(prior=pipe.fit_prior(signals))
    return quiet(pipe)


def with_transformer(codec, names):
    network = vqvae(codec)
    transformer = code_transformer(12, network.code_shape, num_classes=names and len(names), width=32, layers=1)
    for weight in transformer.parameters():  # far from the start, where all codes are alike
        torch.nn.init.normal_(weight, std=0.3)
    return quiet(VQPriorPipeline(network, transformer.eval(), label_names=names, codec=codec))


PIPELINES = {
    "series": (with_positions(SCALER, SERIES), SERIES),
    "series-classes": (with_transformer(SCALER, SERIES.label_names), SERIES),
    "sound": (with_positions(LOG_MEL, SOUNDS), SOUNDS),
    "sound-prior": (with_transformer(LOG_MEL, None), SOUNDS),
}
every = pytest.mark.parametrize("name", PIPELINES)


def sample(pipe, n, **options):
    asked = {"class_labels": [i % 2 for i in range(n)]} if pipe.num_classes else {}
    options = {"output_type": "latent", "generator": seeded(7)} | asked | options
    return getattr(pipe(n, **options), pipe.modality)


@every
def test_signals_of_codes_keep_the_promises_of_pipelines(name, tmp_path):
    pipe, signals = PIPELINES[name]
    many = sample(pipe, 20)
    assert many.shape == (20, *pipe.form.shape) and len(many.unique(dim=0)) > 10
    for n in (1, 9):
        assert torch.equal(sample(pipe, n), many[:n])
    made = sample(pipe, 3, output_type=pipe.modality)
    assert type(made) is type(signals) and len(made) == 3 and (made.labels is None) == (pipe.num_classes is None)
    pipe.save_pretrained(tmp_path)
    loaded = quiet(latentia.DiffusionPipeline.from_pretrained(tmp_path))
    assert torch.equal(sample(loaded, 3), many[:3]) and capabilities(loaded) == capabilities(pipe)
    assert modality_of(tmp_path) == capabilities(pipe).modality == name.partition("-")[0]
    assert pipeline_usage(type(pipe), pipe.config, []).gives == "signals"
    codes = pipe.encode(signals)
    assert codes.shape == (len(signals), *pipe.vqvae.code_shape) and codes.max() < 12
    again = pipe.decode(codes, output_type="latent")
    ends = pipe.interpolate(signals.take(slice(1)), signals.take(slice(1, 2)), 3, output_type="latent")
    torch.testing.assert_close(ends[[0, 2]], again[:2])
    if hasattr(pipe, "reconstruct"):
        x = pipe.form.tensors(signals, again.device, again.dtype)
        torch.testing.assert_close(pipe.anomaly_score(signals), (again - x).square().sum((1, 2)))


def test_a_sequence_is_filled_up_with_zeros_and_cut_again():
    x, padding = torch.randn(3, 2, 13), torch.zeros(3, 2, 3)
    torch.manual_seed(0)
    odd, decoder = Encoder(2, (4, 8), (13,), 2), Decoder(2, (4, 8), (13,), 2, upsample="resize")
    even, whole = Encoder(2, (4, 8), (16,), 2), Decoder(2, (4, 8), (16,), 2, upsample="resize")
    even.load_state_dict(odd.state_dict())
    whole.load_state_dict(decoder.state_dict())
    z = odd(x)
    torch.testing.assert_close(z, even(torch.cat([x, padding], 2)))
    torch.testing.assert_close(decoder(z), whole(z)[:, :, :13])


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        pytest.param(("sines_ar2", "series"), "--window 16", id="series"),
        pytest.param(("tones", "sound"), "--num_mels 6", id="sound", marks=pytest.mark.nightly),
    ],
)
def test_scripts_train_on_signals_and_commands_take_them(data, flags, tmp_path):
    name, modality = data
    common = (
        f"--dataset_name {name} --max_train_samples 60 --max_train_steps 2 --train_batch_size 8 --eval_num_samples 0"
    )
    common += f" {flags if modality == 'series' else ''}"
    size = "--block_out_channels 4 --codebook_size 6 --latent_channels 2"
    sizes = f"--vqvae {tmp_path / 'vqvae'} --width 32 --layers 1 --class_conditional"
    for family, own in (("vqvae", f"{size} {'' if modality == 'series' else flags}"), ("vq_prior", sizes)):
        example = load_example(f"train_{family}")
        words = [*common.split(), *own.split(), "--output_dir", str(tmp_path / family)]
        kind = arguments_of(example.Arguments, words)
        assert example.main(parse_arguments(kind, words, description="")) == 0
    folder = str(tmp_path / "vq_prior")
    assert modality_of(folder) == modality and "pipeline_tag: other" in (tmp_path / "vq_prior/README.md").read_text()
    made = generate(folder, 3, seed=1, top_k=3, class_labels=[0])
    assert made.modality == modality and made.signals.labels.tolist() == [0, 0, 0]
    if modality == "series":
        assert evaluate(folder, metrics=["spectrum"], n=12).report.n == 12
        assert anomalies(str(tmp_path / "vqvae"), max_samples=9).scores.shape == (9,)


def test_what_is_trained_on_is_named_by_the_data_or_the_flag(tmp_path):
    images = load_example("train_vqvae").Arguments
    (tmp_path / "run.yaml").write_text("train_data_dir: sensors.csv\n")
    for words, modality in (
        (["--dataset_name=vowels"], "sound"),
        (["--train-data-dir", "a.tsv"], "series"),
        (["--config", str(tmp_path / "run.yaml")], "series"),
        (["--train_data_dir", "clips", "--modality", "sound"], "sound"),
    ):
        assert arguments_of(images, words)().modality.modality == modality
    assert arguments_of(images, ["--train_data_dir", "photos"]) is images


def test_signals_that_codes_cannot_hold_are_refused():
    pipe = PIPELINES["series"][0]
    longer = load_series("sines_ar2", max_samples=4)
    for call, text in (
        (lambda: VQVAEPipeline(vqvae(SCALER)), "codec must be a SeriesScaler or a LogMel"),
        (lambda: VQVAEPipeline(vqvae(SCALER), codec=LOG_MEL), "codec must be of sequences of the shape"),
        (lambda: VQVAEPipeline(vqvae(SCALER), codec=pipe.vqvae), "codec must be a SeriesScaler, a LogMel or None"),
        (lambda: pipe.encode(longer), "series must have 15 steps each.*window=15"),
        (lambda: pipe(2, output_type="pil"), "output_type must be one of"),
        (lambda: pipe.decode(torch.zeros(1, 3, dtype=torch.long)), r"codes must have shape \(B, 8\)"),
        (lambda: pipe.decode(torch.zeros(1, 3, 8)), r"latents must have shape \(B, 4, l\)"),
    ):
        with pytest.raises(UsageError, match=text):
            call()


def test_series_of_unequal_lengths_need_a_window(tmp_path):
    table = {"series": np.repeat([0, 1, 2, 3], [5, 6, 5, 6]), "x": np.arange(22) ** 2 % 7}
    np.savetxt(tmp_path / "a.csv", np.stack([*table.values()], 1), delimiter=",", header="series,x", comments="")
    example = load_example("train_vqvae")
    words = ["--train_data_dir", str(tmp_path / "a.csv"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(DataError, match="series must be of one length for this network; cut them with window"):
        example.main(parse_arguments(arguments_of(example.Arguments, words), words, description=""))
