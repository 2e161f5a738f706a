"""What a run looks at while it trains."""

from types import SimpleNamespace

import torch
from torch import nn

from latentia import VAE, VAEPipeline
from latentia.data import ImageData, load_images
from latentia.runs.validation import Validation, reconstructor, sampler
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
        found = sampler(pipeline, vae.train(training), temperature=0.0)(7, 1)
        assert vae.training == training and seen.pop() is False
        expected = VAEPipeline(vae.eval())(7, class_labels=[0, 1, 2, 0, 1, 2, 0], temperature=0.0, output_type="latent")
        assert torch.equal(found, expected.images.clamp(-1, 1)) and not torch.equal(found[0], found[1])
    drawn = [sampler(VAEPipeline, network())(2, seed) for seed in (0, 0, 1)]
    assert torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:])


def test_reconstructions_stand_beside_their_images():
    class Data:
        def batch(self, start, stop, seed, device):
            return {"x": torch.rand(stop - start, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1}

    vae = network()
    pairs = reconstructor(VAEPipeline, vae, Data())(6, 2)
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
        validation = Validation(args, data, {"ema": lambda n, seed: torch.rand(n, 1, 8, 8)})
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
        validation = Validation(args, data, {"ema": lambda n, seed: 2 * torch.rand(n, 1, 8, 8) - 1})
        assert {key.removeprefix("eval/") for key in validation.score(Progress()) if "real" not in key} == expected
        marked = "borrowed" in validation.report.extractor and "BORROWED" in validation.report.notes[0]
        assert marked == (len(expected) == 1)


def test_classes_are_as_frequent_as_in_the_data():
    """Else a score would compare other mixtures; a data set without labels, and equal shares, go in turn."""
    asked, vae = [], network(num_class_embeds=3)

    class Watched(VAEPipeline):
        def __call__(self, *args, class_labels, **options):
            asked.append(class_labels)
            return super().__call__(*args, class_labels=class_labels, **options)

    images, names = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), [*"abc"]
    for data in (ImageData(images, torch.tensor([0] * 6 + [1, 2]), names), ImageData(images)):
        drawn = sampler(lambda weights: Watched(weights, label_names=names), vae, data)
        drawn(8, 0)
        assert drawn.labels(8) == [names[i] for i in asked[-1]]
    assert sorted(asked[0]) == [0] * 6 + [1, 2] and asked[1] == [0, 1, 2, 0, 1, 2, 0, 1]
