"""`evaluate` and `compare`: every kind of source, the files they leave, two processes against one, and nonsense."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from children import ended, enter, ranks
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import perturbed
from huggingface_hub import ModelCard
from PIL import Image

import latentia
from latentia import DDIMScheduler, UnconditionalDiffusionPipeline, UNet2D, compare, evaluate, model_card
from latentia.commands.compare import _runs, failed
from latentia.commands.main import main
from latentia.commands.measurement import KEPT
from latentia.commands.sources import open_source
from latentia.data import ImageData, load_images
from latentia.errors import DataError, UsageError
from latentia.evaluation import dequantise

FAST = ["fd", "kid", "inception_score"]


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    config = {"block_out_channels": (8,), "attention_head_dim": 8, "layers_per_block": 1}
    unet = perturbed(UNet2D(sample_size=8, in_channels=1, num_class_embeds=10, **config))
    return UnconditionalDiffusionPipeline(unet, DDIMScheduler(), label_names=[*"0123456789"])


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    pipe.save_pretrained(folder)
    (folder / "run_summary.json").write_text('{"training_seconds": 12.5}')
    return folder


def real_digits(count, seed):
    """A function source, importable by name."""
    images = load_images("digits").images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images[chosen].float() / 127.5 - 1


def bright(count, seed):
    """Images without a value below the middle of the range."""
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def nothing(count, seed):
    return None


# ---------------------------------------------------------------------------------------------------------- sources


def test_samples_that_all_are_bright_are_scored(digits):
    assert evaluate(bright, data=digits, n=16, batch_size=16, metrics=["kid"]).report["kid"].value > 0
    lifted = ImageData(digits.images[:64].clamp(min=128))
    assert evaluate(real_digits, data=lifted, n=16, metrics=["kid"], extractor="digits").report


def test_every_kind_of_source_gives_bytes_of_the_right_shape(digits, pipe, saved, tmp_path):
    pixels = digits.images[:40].numpy().transpose(0, 2, 3, 1)  # (N, H, W, C)
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "flat.npy", pixels[..., 0])
    np.save(tmp_path / "unit.npy", pixels.astype(np.float32) / 255)
    np.savez(tmp_path / "b.npz", arr_0=pixels)
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(pixels[..., 0]):
        Image.fromarray(image).save(tmp_path / "folder" / f"{i:03d}.png")
    files = ["a.npy", "flat.npy", "unit.npy", "b.npz", "folder"]
    expected = digits.images[5:9]
    for source in [*(str(tmp_path / file) for file in files), digits.images[:40], pixels]:
        opened = open_source(source, digits)
        assert opened.count == 40 and torch.equal(opened.draw(5, 9), expected), source
    for source in (pipe, str(saved), real_digits, f"{__name__}:real_digits", "pca", "kde"):
        opened = open_source(source, digits, num_inference_steps=2 if source is pipe or source == str(saved) else None)
        images = opened.draw(0, 3)
        assert images.dtype == torch.uint8 and images.shape == (3, 1, 8, 8) and opened.count is None, source
        assert (opened.labels is not None) == (source in (pipe, str(saved)))
    about = open_source(str(saved), digits).about
    assert about["class"] == "UnconditionalDiffusionPipeline" and about["training_seconds"] == 12.5
    assert about["parameters"] == sum(p.numel() for p in pipe.unet.parameters())


@pytest.mark.parametrize("source", ["pipe", "pca", "kde"])
def test_an_image_depends_on_its_position_alone(source, digits, pipe):
    opened = open_source(
        pipe if source == "pipe" else source, digits, num_inference_steps=2 if source == "pipe" else None
    )
    whole = opened.draw(0, 7)
    assert torch.equal(torch.cat([opened.draw(0, 2), opened.draw(2, 7)]), whole)
    assert len(torch.unique(whole.flatten(1), dim=0)) == 7
    other = open_source(pipe if source == "pipe" else source, digits, seed=1)
    assert not torch.equal(other.draw(0, 7), whole)


def test_sources_that_cannot_be_used_say_why(digits, tmp_path, monkeypatch):
    np.save(tmp_path / "wrong.npy", np.zeros((4, 9, 9), np.uint8))
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npy").write_bytes(b"no array")
    np.save(tmp_path / "negative.npy", -np.ones((4, 8, 8), np.float32))
    for name, error, match in (
        ("wrong.npy", UsageError, "8 high and 8 wide"),
        ("two.npz", DataError, r"must hold one array of images, .*It holds a \(3,\), b \(3,\)"),
        ("objects.npy", DataError, "objects.npy cannot be read"),
        ("broken.npy", DataError, "broken.npy cannot be read"),
        ("missing.npy", DataError, "missing.npy cannot be read"),
        ("negative.npy", UsageError, r"\[0, 1\]"),
    ):
        with pytest.raises(error, match=match):
            open_source(str(tmp_path / name), digits)
    with pytest.raises(UsageError, match="cannot be imported"):
        open_source("no_such_module:sampler", digits)
    with pytest.raises(UsageError, match=r'has no real_digit.*Did you mean "real_digits"'):
        open_source(f"{__name__}:real_digit", digits)
    with pytest.raises(DataError, match="nothing returned no images"):
        evaluate(nothing, digits, n=10)
    with pytest.raises(DataError, match="returned no images"):
        evaluate(lambda count, seed: [], digits, n=10)
    with pytest.raises(DataError, match="returned 7 images where 10 were asked for"):
        evaluate(lambda count, seed: real_digits(7, seed), digits, n=10)
    with pytest.raises(UsageError, match="1 channel, got 3"):
        evaluate(lambda count, seed: torch.zeros(count, 3, 8, 8), digits, n=10)
    with pytest.raises(UsageError, match=r"must lie in \[-1, 1\]"):
        evaluate(lambda count, seed: torch.full((count, 1, 8, 8), 3.0), digits, n=10)


# --------------------------------------------------------------------------------------------------------- evaluate


def test_real_digits_score_as_real_data_in_every_batch_size(digits):
    found = evaluate(real_digits, digits, n=200, metrics=FAST, batch_size=200)
    assert abs(found.report["fd"].value - found.report["fd"].real) < 4 and found.about["kind"] == "function"
    one, two = (evaluate("pca", digits, n=60, metrics=FAST, batch_size=size) for size in (60, 7))
    assert torch.equal(one.images, two.images) and torch.allclose(one.sample.features, two.sample.features, atol=1e-5)
    assert one.report["fd"].value == pytest.approx(two.report["fd"].value, rel=1e-4)
    assert len(evaluate("pca", digits, n=150, metrics=["kid"]).images) == KEPT


def test_classes_are_asked_for_as_often_as_they_occur(pipe, digits):
    found = evaluate(pipe, digits, n=25, num_inference_steps=2, metrics=["label_agreement", "train_on_synthetic"])
    assert sorted(found.sample.labels.bincount(minlength=10).tolist()) == [2] * 5 + [3] * 5  # nearly equal in digits
    assert set(found.report.scores) == {"label_agreement", "train_on_synthetic"}
    assert found.milliseconds > 0 and found.memory_mb >= 0


def test_a_likelihood_is_taken_where_the_family_has_one(pipe, digits):
    found = evaluate("pca", digits, n=20, metrics=["kid"], likelihood_images=50)
    chosen = digits.images[torch.linspace(0, 1796, 50).long()].float() / 127.5 - 1
    nats = open_source("pca", digits).log_likelihood(chosen)
    assert nats.shape == (50,) and found.likelihood.n == 50
    assert found.likelihood.nats == pytest.approx(float(nats.mean())) and "training images" in found.likelihood.kind
    assert found.likelihood.bits_per_dimension == pytest.approx(-found.likelihood.nats / 64 / np.log(2), rel=1e-9)
    assert evaluate(real_digits, digits, n=20, metrics=["kid"], likelihood_images=50).likelihood is None


def test_exact_likelihoods_stand_beside_bounds(pipe, digits):
    """A flow's density is of dequantised pixels, and its bits are of bins as those of the chain's bound."""
    chain = DDIMScheduler(num_train_timesteps=8)
    untrained = UNet2D.from_config(pipe.unet.config)  # the velocity 0, so that the images are N(0, 1)
    flow = UnconditionalDiffusionPipeline(untrained, FlowMatchEulerDiscreteScheduler())
    asked = {"n": 10, "metrics": ["kid"], "num_inference_steps": 2, "likelihood_images": 3}
    found = compare([flow, UnconditionalDiffusionPipeline(pipe.unet, chain)], digits, **asked)
    exact, bound = (one.likelihood for one in found)
    assert exact.kind.startswith("exact density of dequantised pixels, ") and bound.kind.startswith("lower bound, ")
    assert exact.pixels == "uniform dequantisation of 256 bins" and bound.pixels == "256 bins"
    assert exact.bits_per_dimension == pytest.approx(7 - exact.nats / 64 / np.log(2), rel=1e-9)
    row = next(line for line in found.text().splitlines() if "Bits per dimension" in line)
    assert row.count("≤") == 1
    pixels = dequantise(digits.images[torch.linspace(0, 1796, 3).long()]).values
    assert exact.nats == pytest.approx(float(torch.distributions.Normal(0.0, 1.0).log_prob(pixels).sum() / 3), rel=1e-5)


def test_a_likelihood_repeats_with_its_seed(pipe, digits):
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    quick = UnconditionalDiffusionPipeline(pipe.unet, DDIMScheduler(num_train_timesteps=8))
    one, two, other = (open_source(quick, digits, seed=seed).log_likelihood(x) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_saving_leaves_numbers_and_pictures(digits, tmp_path):
    found = evaluate("kde", digits, n=60)
    found.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["scores"]["fd"]["value"] == found.report["fd"].value and written["source"] == "kde"
    assert written["data"]["fingerprint"] == digits.fingerprint
    for name in ("samples", "neighbours", "classes", "features", "precision_recall"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert min(picture.size) > 200, name


@pytest.mark.parametrize(
    "options, match",
    [
        ({"n": 1}, "from 2 to 898"),
        ({"n": 1000}, "from 2 to 898, half of the 1797 real images"),
        ({"n": 10, "batch_size": 0}, "batch_size must be at least 1"),
        ({"n": 10, "metrics": ["fid"]}, 'Got "fid"'),
        ({"n": 10, "extractor": "digit"}, "digits"),
    ],
)
def test_nonsense_is_refused_before_anything_is_sampled(options, match, digits):
    def never(count, seed):
        raise AssertionError("sampled")

    with pytest.raises(UsageError, match=match):
        evaluate(never, digits, **options)


def test_too_few_files_and_unknown_shapes_are_refused(digits):
    with pytest.raises(UsageError, match="holds 10 images, fewer than n = 20"):
        evaluate(digits.images[:10], digits, n=20)
    odd = latentia.data.ImageData(torch.zeros(10, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(UsageError, match="at least 16 images to train an extractor on; got 10"):
        evaluate("pca", odd, n=2)


# ----------------------------------------------------------------------------------------------- command line, cards


def test_the_command_prints_writes_and_fills_the_card(saved, tmp_path, capsys):
    card = model_card(
        name="tiny", pipeline_class="UnconditionalDiffusionPipeline", family="diffusion", dataset="digits",
        pipeline_tag="unconditional-image-generation", license="apache-2.0", recipe={"seed": 0}, minutes=1, seed=0,
        metrics=[{"type": "fd", "name": "Frechet distance", "value": 999.0}, {"name": "Own metric", "value": 5.0}],
        hardware="CPU",
    )  # fmt: skip
    card.save(saved / "README.md")
    before = (saved / "README.md").read_text()
    argv = ["evaluate", saved, "--data", "digits", "--n", "60", "--num_inference_steps", "2"]
    argv += ["--output_dir", tmp_path / "out", "--overwrite"]
    argv += ["--metrics", *FAST]
    files = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in saved.rglob("*")}
    main([str(word) for word in argv])
    assert files == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in saved.rglob("*")}
    assert "README.md" not in capsys.readouterr().out  # nothing is written into the folder unasked
    (tmp_path / "mine").write_text("mine")
    (saved / "README.tmp").symlink_to(tmp_path / "mine")
    argv.append("--update_card")
    main([str(word) for word in argv])
    assert (tmp_path / "mine").read_text() == "mine"  # nor through a link that waits for it
    out = capsys.readouterr().out
    assert (
        "Frechet distance" in out
        and "mostly bias" in out
        and f"Written: {tmp_path / 'out'} {saved / 'README.md'}" in out
    )
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]
    assert numbers["fd"]["value"] > 10 * numbers["fd"]["real"] > 0
    after = ModelCard.load(saved / "README.md")
    results = {result.metric_name: result for result in after.data.eval_results}
    assert set(results) == {"Frechet distance", "Kernel distance", "Inception score", "Own metric"}
    assert results["Frechet distance"].metric_value == numbers["fd"]["value"]
    assert results["Frechet distance"].metric_args["n_samples"] == 60
    text = (saved / "README.md").read_text()
    assert text.count("## Evaluation") == 1 and "999" not in text.split("---")[2]
    assert "## Training" in text and "## Limits" in text and len(text) > len(before) / 2
    main([str(word) for word in argv])
    assert (saved / "README.md").read_text().split("---\n")[2] == text.split("---\n")[2]  # again: nothing doubles
    latentia.DiffusionPipeline.from_pretrained(saved)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.cells, self.open = [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"])
        self.cells += tag in ("td", "th")


def test_compare_makes_one_table_and_one_page(saved, tmp_path, capsys):
    argv = ["compare", "pca", "kde", "pca", "--data", "digits", "--n", "40", "--output_dir", str(tmp_path)]
    main([*argv, "--likelihood_images", "20"])
    out = capsys.readouterr().out
    for text in (
        "pca (1)",
        "pca (2)",
        "kde",
        "real data",
        "Precision",
        "Bits per dimension",
        "ms per image",
        "n = 40",
    ):
        assert text in out, text
    page = Page((tmp_path / "index.html").read_text())
    assert len(page.images) >= 3 * 3 + 1
    for source in page.images:
        assert (tmp_path / source).is_file(), source
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [entry["source"] for entry in written] == ["pca (1)", "kde", "pca (2)"]
    first, _, again = written
    assert first["scores"] == again["scores"]  # the same source, seed and reference
    assert {entry["scores"]["fd"]["real"] for entry in written} == {first["scores"]["fd"]["real"]}


def test_a_page_escapes_what_a_name_may_hold(digits, tmp_path):
    found = compare(["pca", "kde"], digits, n=20, metrics=["kid", "precision", "recall"])
    found[0].source = "<script>alert(1)</script>"
    (page,) = found.save(tmp_path)
    text = page.read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_compare_needs_two(capsys):
    with pytest.raises(UsageError, match="at least two"):
        compare(["pca"], "digits", n=10)


# ------------------------------------------------------------------------------------------- latents, several runs


@pytest.fixture(scope="module")
def autoencoders(digits, tmp_path_factory):
    """Two linear autoencoders that are PCA, and one that makes grey images alone."""
    folder, x = tmp_path_factory.mktemp("runs"), digits.images.float().flatten(1) / 127.5 - 1
    _, _, components = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    for name, k, size in (("ae-0", 16, 1.0), ("ae-1", 12, 1.0), ("grey", 16, 0.0)):
        network = latentia.Autoencoder(sample_size=8, latent_dim=k)
        with torch.no_grad():
            (inwards,) = [m for m in network.encoder_mlp.modules() if isinstance(m, torch.nn.Linear)]
            (outwards,) = [m for m in network.decoder_mlp.modules() if isinstance(m, torch.nn.Linear)]
            inwards.weight.copy_(components[:k])
            inwards.bias.copy_(-components[:k] @ x.mean(0))
            outwards.weight.copy_(size * components[:k].T)
            outwards.bias.copy_(size * x.mean(0))
        prior = latentia.LatentMixture.fit((x - x.mean(0)) @ components[:k].T, 10)
        latentia.AutoencoderPipeline(network, prior=prior).save_pretrained(folder / name)
    return folder


def test_latents_are_measured_by_the_common_words(autoencoders, pipe, digits):
    options = {"n": 20, "metrics": ["kid"], "latent_images": 300}
    found = evaluate(str(autoencoders / "ae-0"), digits, **options).latents
    assert (found.dimensions, found.n, found.path_length.n, found.images) == (16, 300, 150, "training images")
    assert 0.85 < found.probe.mean < found.pixels_probe.mean + 0.05
    # the way between codes of PCA is the cross-fade, without what the left out components hold
    assert found.path_length.mean == pytest.approx(found.fade_length.mean, rel=0.5) and "path length" in found.text()
    grey = evaluate(str(autoencoders / "grey"), digits, **options).latents
    assert grey.path_length.mean < 1e-6 and grey.fade_length == found.fade_length and grey.probe == found.probe
    noise = evaluate(pipe, digits, n=20, metrics=["kid"], latent_images=12, num_inference_steps=2).latents
    assert noise.dimensions == 64 and noise.path_length.mean > 0 and noise.probe is None  # too few of a class
    assert evaluate("pca", digits, **options).latents is None
    assert evaluate(str(autoencoders / "ae-0"), digits, n=20, metrics=["kid"]).latents is None


def test_noise_goes_along_the_circle(pipe, digits):
    assert open_source(pipe, digits).latent_path == "slerp" and open_source("pca", digits).latent_path == "lerp"


def test_a_run_that_exists_is_a_path_and_no_pattern(tmp_path):
    for name in ("run*", "run1", "run [2]"):
        (tmp_path / name).mkdir()
    for text, names in (("run*", ["run*"]), ("r*", ["run [2]", "run*", "run1"]), ("run [2]", ["run [2]"])):
        assert _runs(f"x={tmp_path}/{text}") == [("x", str(tmp_path / name)) for name in names]


def test_several_runs_are_one_column_with_their_spread(autoencoders, tmp_path, capsys):
    argv = ["compare", f"ae={autoencoders}/ae-*,{autoencoders}/grey", "kde", "--n", "60", "--latent_images", "200"]
    argv += ["--data", "digits"]
    main([*argv, "--output_dir", str(tmp_path), "--metrics", "fd", "missing_classes", "sharpness"])
    out = capsys.readouterr().out
    head, *lines = out.splitlines()
    assert head.split()[:2] == ["ae", "kde"] and "1 of 3" in out and "0 of 1" in out
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [entry["source"] for entry in written] == ["ae-0", "ae-1", "grey", "kde"]
    assert [entry["failed"] for entry in written] == [False, False, True, False]
    values = [entry["scores"]["fd"]["value"] for entry in written[:3]]
    row = next(line for line in lines if line.startswith("Frechet distance"))
    assert f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.0f}" in row
    for text in ("A run failed if", "Path length of the latents", "Linear probe of the latents", "training images"):
        assert text in out and text in (tmp_path / "index.html").read_text(), text
    page = (tmp_path / "index.html").read_text().replace("<wbr>", "")
    assert "ae<small>AutoencoderPipeline, 3 runs" in page


def test_a_run_fails_by_the_stated_rule(digits):
    found = evaluate("kde", digits, n=60, metrics=["fd", "missing_classes"])
    distance = found.report["fd"].value
    assert failed(found, distance - 1) and not failed(found, distance + 1)
    assert failed(evaluate("kde", digits, n=60, metrics=["kid"]), 0.0) is None
    one = evaluate(digits.images[digits.labels < 5][:60], digits, n=60, metrics=["missing_classes"])
    assert failed(one, 1e9)


@pytest.mark.parametrize("source", ["vae=", "=pca", "vae=no-such-folder-*"])
def test_runs_that_do_not_exist_are_refused(source, digits):
    with pytest.raises(UsageError, match=r'given as "name=folder,folder"'):
        compare([source, "pca"], digits, n=20)


# ------------------------------------------------------------------------------------------------- several processes


def evaluated(log, env, folder):
    """One process of those that evaluate together; it writes down what it found."""
    enter(log, env)
    from accelerate import PartialState

    state, found = PartialState(cpu=True), []
    for n, size in ((45, 10), (8, 10)):
        e = evaluate("kde", "digits", n=n, batch_size=size, metrics=["fd", "kid", "sharpness", "inception_score"])
        found.append([e.report.to_dict(), int(e.images.long().sum()), len(e.images), e.images[:, 0, 3, 3].tolist()])
    Path(folder, f"rank{state.process_index}-of-{state.num_processes}.json").write_text(json.dumps(found))


def test_two_processes_give_what_one_gives(start, tmp_path):
    for child in [start(evaluated, str(tmp_path)), *ranks(start, evaluated, str(tmp_path))]:
        code, text = ended(child)
        assert code == 0, text
    one, *two = (json.loads((tmp_path / f"rank{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert two[0] == two[1]
    for alone, shared in zip(one, two[0]):
        assert shared[1:] == alone[1:]  # the very same images in the same order
        for key, found in alone[0]["scores"].items():
            assert shared[0]["scores"][key]["value"] == pytest.approx(found["value"], rel=1e-5), key
            assert shared[0]["scores"][key]["real"] == pytest.approx(found["real"], rel=1e-5), key
        assert shared[0]["n_real"] == 1797


# ------------------------------------------------------------------------------------------------------------ people


def test_a_blind_sheet_and_its_votes_on_the_command_line(saved, tmp_path, capsys):
    folder = tmp_path / "sheet"
    argv = [
        "sheet",
        str(saved),
        "--data",
        "digits",
        "--trials",
        "6",
        "--num_inference_steps",
        "2",
        "--output_dir",
        str(folder),
    ]
    main(argv)
    assert "latentia votes" in capsys.readouterr().out
    key = json.loads((folder / "key.json").read_text())
    lines = [f"{key['sheet']},eva,{trial},left" for trial in range(1, 7)]
    (tmp_path / "votes_eva.csv").write_text("\n".join(["sheet,rater,trial,choice", *lines]))
    main(["votes", str(folder), str(tmp_path / "votes_eva.csv")])
    assert "3 of 6 = 50.0%" in capsys.readouterr().out  # always left: half of the time that was the model
    main(
        ["sheet", "pca", "--data", "digits", "--against", "kde", "--trials", "4", "--output_dir", str(tmp_path / "two")]
    )
    assert set(json.loads((tmp_path / "two" / "key.json").read_text())["names"]) == {"pca", "kde"}


def test_a_comparison_opens_all_before_it_samples_from_any():
    calls = []

    def spy(count, seed):
        calls.append(count)
        return torch.zeros(count, 1, 8, 8)

    with pytest.raises(UsageError, match="neither a folder nor the name of a Hub repository"):
        compare([spy, "/nowhere/at/all"], "digits", n=50, metrics=["kid"])
    assert not calls
