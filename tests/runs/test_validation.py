"""What a run looks at while it trains."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

from latentia import VAE, VAEPipeline
from latentia.data import ImageData, load_images
from latentia.runs.validation import Samples, Validation, reconstructor, sampler
from latentia.training.progress import Progress


def network(**config):
    torch.manual_seed(0)
    return VAE(sample_size=8, latent_dim=3, hidden_sizes=(8,), likelihood="gaussian", **config)


def test_a_sampler_asks_for_each_class_and_restores_the_mode():
    vae, seen = network(num_class_embeds=3), []
    vae.decoder_mlp.insert(0, nn.Dropout(0.5))  # the mode shows

    def pipeline(weights):
        seen.append(weights.training)
        return VAEPipeline(weights)

    for training in (True, False):
        found = sampler(pipeline, vae.train(training), load_images("digits"), temperature=0.0)(7, 1).images
        assert vae.training == training and seen.pop() is False
        expected = VAEPipeline(vae.eval())(7, class_labels=[0, 1, 2, 0, 1, 2, 0], temperature=0.0, output_type="latent")
        assert torch.equal(found, expected.images.clamp(-1, 1)) and not torch.equal(found[0], found[1])
    drawn = [sampler(VAEPipeline, network(), load_images("digits"))(2, seed).images for seed in (0, 0, 1)]
    assert torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:])


def test_reconstructions_stand_beside_their_images():
    class Data:
        def batch(self, start, stop, seed, device):
            return {"x": torch.rand(stop - start, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1}

    vae = network()
    pairs = reconstructor(VAEPipeline, vae, Data())(6, 2).images
    torch.testing.assert_close(pairs[::2], Data().batch(0, 3, 2, None)["x"])
    torch.testing.assert_close(pairs[1::2], vae(pairs[::2]).reconstruction.detach().clamp(-1, 1))


def test_samples_that_all_are_bright_are_scored(tmp_path):
    """Early samples of a run may all lie in [0, 1]; they are its own, and so not a mistake of the user."""
    options = {"eval_metrics": ("kid",), "eval_num_samples": 16, "validation_steps": 0, "eval_steps": 0}
    args = SimpleNamespace(
        evaluation=SimpleNamespace(**options),
        optimization=SimpleNamespace(seed=0),
        output=SimpleNamespace(output_dir=str(tmp_path)),
    )
    digits = load_images("digits")
    for data in (digits, ImageData(digits.images[:64].clamp(min=128))):
        validation = Validation(args, data, {"ema": lambda n, seed: Samples(torch.rand(n, 1, 8, 8))})
        assert validation.score(Progress())["eval/kid"] > 0


def test_a_classifier_of_other_classes_is_marked_in_the_score(tmp_path):
    """A shipped classifier fits the size of the images and not what they show: distances only, and marked."""
    options = {"eval_metrics": ("kid", "inception_score"), "eval_num_samples": 16, "validation_steps": 0}
    args = SimpleNamespace(
        evaluation=SimpleNamespace(**options, eval_steps=0),
        optimization=SimpleNamespace(seed=0),
        output=SimpleNamespace(output_dir=str(tmp_path)),
    )
    digits = load_images("digits")
    for names, expected in ((digits.label_names, {"kid", "inception_score"}), ([*"abcdefghij"], {"kid"})):
        data = ImageData(digits.images[:64], digits.labels[:64], names)
        validation = Validation(args, data, {"ema": lambda n, seed: Samples(2 * torch.rand(n, 1, 8, 8) - 1)})
        assert {key.removeprefix("eval/") for key in validation.score(Progress()) if "real" not in key} == expected
        marked = "borrowed" in validation.report.extractor and "BORROWED" in validation.report.notes[0]
        assert marked == (len(expected) == 1)


class Watched(VAEPipeline):
    """Notes the classes that it is asked for."""

    asked: ClassVar[list] = []

    def __call__(self, *args, class_labels, **options):
        self.asked.append(class_labels)
        return super().__call__(*args, class_labels=class_labels, **options)


@pytest.fixture
def watched():
    Watched.asked = []
    return Watched


def test_scores_that_are_not_taken_are_said(tmp_path, capsys):
    options = {"eval_metrics": ("kid",), "eval_num_samples": 16, "validation_steps": 0, "eval_steps": 0}
    args = SimpleNamespace(
        evaluation=SimpleNamespace(**options),
        optimization=SimpleNamespace(seed=0),
        output=SimpleNamespace(output_dir=str(tmp_path)),
    )
    for shape, count, said in (
        ((1, 8, 8), 16, ""),
        ((3, 8, 8), 16, "no shipped extractor fits images of 3 x 8 x 8"),
        ((1, 8, 8), 3, "at least 4 images"),
    ):
        data = ImageData(torch.randint(256, (count, *shape), dtype=torch.uint8))
        validation = Validation(args, data, {"ema": lambda n, seed, shape=shape: Samples(torch.zeros(n, *shape))})
        validation.check()
        out = capsys.readouterr().out
        assert (said in out and "No scores while training" in out) if said else not out
        assert bool(validation.score(Progress())) != bool(said)
    args.evaluation.eval_num_samples = 0  # nobody asked
    Validation(args, data, {"ema": lambda n, seed: Samples(torch.zeros(n, 1, 8, 8))}).check()
    assert not capsys.readouterr().out


def test_classes_are_as_frequent_as_in_the_data(watched):
    """Else a score would compare other mixtures; a data set without labels, and equal shares, go in turn."""
    images, names = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), [*"abc"]
    vae = network(num_class_embeds=3)
    for data in (ImageData(images, torch.tensor([0] * 6 + [1, 2]), names), ImageData(images)):
        drawn = sampler(lambda weights: watched(weights, None, names), vae, data)(8, 0)
        assert drawn.labels == [names[i] for i in watched.asked[-1]]
    assert sorted(watched.asked[0]) == [0] * 6 + [1, 2] and watched.asked[1] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_more_classes_than_one_chunk_holds_are_all_scored(watched, tmp_path):
    """Each chunk goes on where the last one ended; two pipelines are built, one for the time that it will take."""
    vae, drawn, built = network(num_class_embeds=250), [], []
    data = ImageData(torch.zeros(600, 1, 8, 8, dtype=torch.uint8))

    def pipeline(weights):
        built.append(watched(weights))
        return built[-1]

    whole = sampler(pipeline, vae, data)

    def counted(*args):
        drawn.append(whole(*args))
        return drawn[-1]

    args = SimpleNamespace(
        evaluation=SimpleNamespace(eval_metrics=("kid",), eval_num_samples=300, validation_steps=0, eval_steps=0),
        optimization=SimpleNamespace(seed=0),
        output=SimpleNamespace(output_dir=str(tmp_path)),
    )
    assert Validation(args, data, {"ema": counted}).score(Progress())
    assert [i for chunk in watched.asked for i in chunk] == [*range(250), *range(50)] and len(built) == 2
    images = torch.cat([samples.images for samples in drawn])
    assert torch.equal(images, whole(300, 1).images) and len(images.flatten(1).unique(dim=0)) == 300


def test_captions_of_the_data_are_the_prompts(tmp_path):
    """The grid cuts them, so that they stand in a file beside it, one for each image."""
    texts = [f"caption {i}" for i in range(8)]
    data = ImageData(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), captions=texts)

    class Texts(VAEPipeline):
        conditions, is_text_conditional = ("prompt",), True

        def __call__(self, prompt, **options):
            return super().__call__(len(prompt), **options)

    drawn = sampler(Texts, network(), data)
    assert drawn(8, 3).labels == data.batch(0, 8, seed=3)["captions"] and {*drawn(8, 3).labels} == {*texts}
    args = SimpleNamespace(
        evaluation=SimpleNamespace(eval_metrics=("kid",), eval_num_samples=0, validation_steps=1, eval_steps=0),
        optimization=SimpleNamespace(seed=3),
        output=SimpleNamespace(output_dir=str(tmp_path)),
    )
    Validation(args, data, {"ema": drawn}).draw(Progress())
    assert (tmp_path / "samples" / "ema-labels.txt").read_text().splitlines() == drawn(64, 3).labels
