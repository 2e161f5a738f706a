"""What `evaluate` is asked for is checked before anything is computed; its sources in every layout, by name."""

import numpy as np
import pytest
import torch

from latentia import compare, evaluate
from latentia.data import load_images
from latentia.errors import UsageError

SMALL = {"n": 20, "metrics": ["fd"], "extractor": "digits"}


@pytest.mark.parametrize(
    "options, rule",
    [
        ({"metrics": []}, "metrics must name at least one of fd,"),
        ({"metrics": "fd"}, "metrics must be a sequence of texts.*; got 'fd'. Give \\[\"fd\"\\]"),
        ({"likelihood_images": -1}, "likelihood_images must be at least 0; got -1"),
        ({"latent_images": -1}, "latent_images must be at least 0; got -1"),
        ({"reconstruction_images": 1}, "reconstruction_images must be 0 or at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"device": "cuda:99"}, "device must be one of cpu.*; got 'cuda:99'"),
        ({"device": "gpu"}, "device must be one of cpu.*; got 'gpu'"),
        ({"device": "meta"}, "device must be one of cpu.*; got 'meta'"),
        (
            {"extractor": 3},
            "extractor must be a name, a folder or a FeatureExtractor; got int, which has no class_names",
        ),
        ({"extractor": np.zeros(3)}, "extractor must be .* got ndarray"),
        ({"n": 10.0}, "n must be an integer.*; got 10.0"),
        ({"extractor": "nope"}, "extractor must be one of digits, mnist, emoji"),
    ],
)
def test_options_that_cannot_be_are_refused(options, rule):
    with pytest.raises(UsageError, match=rule):
        evaluate("pca", "digits", **{**SMALL, **options})
    with pytest.raises(UsageError, match=rule):
        compare(["pca", "kde"], "digits", **{**SMALL, **options})


@pytest.mark.parametrize(
    "source, rule",
    [
        (
            torch.zeros(20, 1, 8, 8, device="meta"),
            "source must be a dense tensor of values; got one that is on the device",
        ),
        (torch.zeros(20, 1, 8, 8).to_sparse(), "source must be a dense tensor of values; got one that is sparse"),
    ],
)
def test_tensors_without_values_are_refused(source, rule):
    with pytest.raises(UsageError, match=rule):
        evaluate(source, "digits", **SMALL)


def test_functions_give_arrays_in_every_layout():
    pixels = load_images("digits").images[:20].numpy()  # (N, 1, 8, 8)
    layouts = {
        "nchw": pixels,
        "nhwc": pixels.transpose(0, 2, 3, 1),
        "nhw": pixels[:, 0],
        "floats": pixels[:, 0] / 255.0,
    }
    found = [
        evaluate(lambda count, seed, x=x: x[:count], "digits", batch_size=20, **SMALL).report["fd"].value
        for x in layouts.values()
    ]
    assert len({round(value, 9) for value in found}) == 1


def test_a_function_without_arguments_is_refused():
    with pytest.raises(UsageError, match=r"pixels must be a function \(count, seed\) -> images"):

        def pixels():
            return None

        evaluate(pixels, "digits", **SMALL)


@pytest.mark.parametrize(
    "array, rule",
    [
        (np.full((30, 8, 8), np.nan), "odd: images must be finite; 30 of 30 hold NaN or infinity"),
        (np.full((30, 8, 8), 7.5), r"odd: images must lie in \[0, 1\]"),
        (np.zeros((1, 8, 8), np.uint8), "odd must hold at least 2 images to be measured; it holds 1"),
    ],
)
def test_a_file_of_bad_images_is_named(array, rule, tmp_path):
    np.save(tmp_path / "odd.npy", array)
    with pytest.raises(UsageError, match=rule):
        evaluate(tmp_path / "odd.npy", "digits", **{**SMALL, "n": None})


def test_figures_and_notes_are_of_the_metrics_asked_for(tmp_path):
    evaluation = evaluate("pca", "digits", **{**SMALL, "metrics": ["sharpness"]})
    assert not any("Frechet" in note for note in evaluation.report.notes)
    evaluation.save(tmp_path / "page")
    assert not (tmp_path / "page" / "precision_recall.png").exists()
    assert "precision_recall" not in (tmp_path / "page" / "index.html").read_text()
    evaluate("pca", "digits", **{**SMALL, "metrics": ["precision", "recall"]}).save(tmp_path / "other")
    assert (tmp_path / "other" / "precision_recall.png").exists()


def test_latents_without_a_probe_say_why(tmp_path):
    from latentia import VAE, VAEPipeline

    torch.manual_seed(0)
    found = evaluate(VAEPipeline(VAE(sample_size=8, latent_dim=2)), "digits", latent_images=12, **SMALL)
    assert "no linear probe, which needs labels and five images of each class" in found.latents.text()
