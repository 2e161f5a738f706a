"""Sources of unlike kinds on one table: steps for some, reconstructions for others, equal names, noise."""

import json

import pytest
import torch
from helpers import perturbed
from PIL import Image

import latentia
from latentia import DDIMScheduler, UnconditionalDiffusionPipeline, UNet2D, compare, evaluate
from latentia.commands.main import main
from latentia.commands.sources import open_source
from latentia.data import load_images
from latentia.errors import UsageError
from latentia.evaluation.report.table import table

FAST = {"n": 20, "metrics": ["kid"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A diffusion model, a VAE, an autoencoder without a prior, and digits as a folder with a test split."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    config = {"block_out_channels": (8,), "attention_head_dim": 8, "layers_per_block": 1}
    unet = perturbed(UNet2D(sample_size=8, in_channels=1, **config))
    UnconditionalDiffusionPipeline(unet, DDIMScheduler()).save_pretrained(folder / "ddpm")
    latentia.VAEPipeline(latentia.VAE(sample_size=8, in_channels=1, latent_dim=2)).save_pretrained(folder / "vae")
    latentia.AutoencoderPipeline(latentia.Autoencoder(sample_size=8, latent_dim=4)).save_pretrained(folder / "ae")
    for i, image in enumerate(load_images("digits").images[:140, 0].numpy()):
        path = folder / "data" / ("train" if i < 100 else "test") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_steps_go_to_those_that_take_them(runs, capsys):
    found = compare([str(runs / "ddpm"), str(runs / "vae"), "pca"], "digits", num_inference_steps=2, **FAST)
    row = next(line for line in found.text().splitlines() if line.startswith("Network evaluations"))
    assert row.split()[2:] == ["2", "–", "–"]
    for sources in (str(runs / "vae"), [str(runs / "vae"), "pca"]):
        with pytest.raises(UsageError, match="num_inference_steps must be left out: vae"):
            (evaluate if isinstance(sources, str) else compare)(sources, "digits", num_inference_steps=2, **FAST)


def test_an_autoencoder_without_a_prior_is_measured(runs, tmp_path, capsys):
    words = ["--data", str(runs / "data"), "--channels", "1", "--extractor", "digits", "--n", "20", "--metrics", "fd"]
    main(["compare", str(runs / "ae"), str(runs / "vae"), *words, "--output_dir", str(tmp_path / "page")])
    out = capsys.readouterr().out
    assert "PSNR, dB of reconstructions" in out and "Reconstructions: of 20 test images." in out
    assert "no prior to sample from, so its images here are reconstructions of test images" in out
    ae, vae = json.loads((tmp_path / "page" / "comparison.json").read_text())
    assert vae["reconstruction"] is None and ae["kind"] == "reconstructions of test images"
    pipe = latentia.DiffusionPipeline.from_pretrained(runs / "ae")
    test = load_images(runs / "data", split="test", channels=1).images
    chosen = test[torch.linspace(0, 39, 20).long()].float() / 127.5 - 1
    again = pipe.reconstruct(chosen, output_type="latent").clamp(-1, 1)
    expected = (10 * (4 / (again - chosen).square().flatten(1).mean(1)).log10()).mean()
    assert ae["reconstruction"]["psnr"] == pytest.approx(float(expected), abs=0.05)
    found = evaluate(str(runs / "vae"), "digits", reconstruction_images=30, **FAST).reconstruction
    assert (found.n, found.images, found.ssim_window) == (30, "training images", 7) and found.psnr > 3


def test_what_cannot_be_compared_is_found_before_sampling(runs):
    calls = []

    def spy(count, seed):
        calls.append(count)
        return torch.zeros(count, 1, 8, 8)

    wide = latentia.VAEPipeline(latentia.VAE(sample_size=16, in_channels=1, latent_dim=2))
    with pytest.raises(UsageError, match=r"makes images of shape \(1, 16, 16\)"):
        compare([spy, wide], "digits", **FAST)
    assert not calls


def test_equal_names_stay_apart(runs):
    both = f"vae={runs / 'vae'},{runs / 'vae'}"
    found = compare([both, str(runs / "vae"), "pca"], "digits", n=20, metrics=["fd", "kid"])
    assert [one.runs_of or one.source for one in found] == ["vae (1)", "vae (1)", "vae (2)", "pca"]
    assert found.text().splitlines()[0].split()[:5] == ["vae", "(1)", "vae", "(2)", "pca"]


def test_n_is_what_there_is(runs):
    digits = load_images("digits")
    found = compare([digits.images[:30], digits.images[30:70]], digits, metrics=["kid"])
    assert [one.report.n for one in found] == [30, 30]
    assert evaluate("pca", str(runs / "data"), channels=1, extractor="digits", metrics=["kid"]).report.n == 50


def test_a_model_that_noise_equals_is_told_so(runs):
    def noise(count, seed):
        return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1

    found = evaluate(noise, "digits", n=60, metrics=["fd", "precision"])
    assert any("NOISE DOES AS WELL in Frechet distance" in note for note in found.report.notes)
    assert set(found.to_dict()["noise"]["scores"]) == {
        "uniform noise", "shuffled pixels", "positions at random", "Gaussian",
    }  # fmt: skip
    assert not any("NOISE" in note for note in evaluate("kde", "digits", n=60, metrics=["fd"]).report.notes)


def test_nothing_is_best_where_noise_gets_as_much_as_real_images(runs):
    found = [one.to_dict() for one in compare(["pca", "kde"], "digits", n=60, metrics=["precision"])]
    noise = found[0]["noise"]["scores"]["Gaussian"]
    ranks = []
    for value in (0.1, 0.99):
        noise["precision"] = value
        ranks.append([cell.rank for cell in table(found)[0].cells])
    assert "best" in ranks[0] and "best" not in ranks[1] and "tied" not in ranks[1]


def test_captions_are_not_taken_from_the_beginning_alone():
    """A folder is sorted by class: its first captions would be of one kind."""
    from tiny_pipelines import text_pipeline

    seen = []
    real = latentia.data.ImageData(
        torch.zeros(40, 3, 16, 16, dtype=torch.uint8), captions=["a red heart"] * 20 + ["a green bus"] * 20
    )
    pipe = text_pipeline(False)
    kind = type(pipe)

    class Spy(kind):
        def __call__(self, *args, prompt: str | list[str] | None = None, num_inference_steps: int = 1, **options):
            seen.extend(prompt)
            return kind.__call__(self, *args, prompt=prompt, num_inference_steps=num_inference_steps, **options)

    pipe.__class__ = Spy
    open_source(pipe, real, num_inference_steps=1).draw(0, 10)
    assert 2 <= seen.count("a red heart") <= 8
