"""A transformer over the codes of a VQ-VAE: one vocabulary, causality, cached sampling, likelihoods, the example."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers import load_example, seeded
from safetensors.torch import load_file

import latentia.pipelines.vq_prior as module
from latentia import VQVAE, DiffusionPipeline, VQPriorPipeline
from latentia.data import load_images
from latentia.errors import CheckpointError, UsageError
from latentia.losses.autoregressive import code_log_probs, code_loss
from latentia.models.clip import train_tokenizer
from latentia.models.vq_prior import code_prefix, code_transformer
from latentia.pipelines.tokens import inverse_cdf, make_processors
from latentia.pipelines.vq_prior import text_tokens
from latentia.rng import Rng
from latentia.runs.command_line import parse_arguments

K = 12
DRAW = Rng(0, 0, 4, 0, 4)


def vqvae(size=8, codebook_size=K):
    torch.manual_seed(0)
    config = {"in_channels": 1, "block_out_channels": (8,), "layers_per_block": 1, "latent_channels": 4}
    network = VQVAE(sample_size=size, codebook_size=codebook_size, **config).eval()
    torch.nn.init.normal_(network.quantize.codebook, std=0.5)
    return network


def transformer(codebook_size=K, shape=(4, 4), **options):
    torch.manual_seed(1)
    network = code_transformer(codebook_size, shape, **{"width": 32, "layers": 2, **options}).eval()
    for weight in network.parameters():  # far from the start, where all codes are alike
        torch.nn.init.normal_(weight, std=0.3)
    return network


def tokenizer():
    return train_tokenizer(["a red heart", "a green bus"], 270, max_tokens=8)


def plain():
    return VQPriorPipeline(vqvae(), transformer())


def classes():
    return VQPriorPipeline(vqvae(), transformer(num_classes=3), label_names=["cat", "dog", "owl"])


def texts():
    return VQPriorPipeline(vqvae(), transformer(tokenizer=tokenizer()), tokenizer())


ASKED = {plain: {}, classes: {"class_labels": ["owl", 0, 1]}, texts: {"prompt": ["a red bus", "", "heart"]}}
KINDS = pytest.mark.parametrize("build", ASKED)


def constant(network, scores):
    """Make the scores of all tokens the same everywhere."""
    with torch.no_grad():
        network.transformer.ln_f.weight.zero_()
        network.transformer.ln_f.bias.zero_()[0] = 1
        network.lm_head.weight.zero_()[:, 0] = scores
    return network


# ------------------------------------------------------------ the sequence


def test_codes_classes_and_texts_are_disjoint_ranges():
    words = tokenizer()
    network = transformer(tokenizer=words)
    prefix = code_prefix(K, text_tokens(words, ["a red heart", ""]), 2)
    assert prefix.shape == (2, 9) and (prefix[:, -1] == K).all() and (prefix[:, :-1] > K).all()
    assert network.config.vocab_size == K + 1 + len(words) and network.config.n_positions == 8 + 1 + 16
    decoded = words.decode(prefix[0, :-1] - K - 1, skip_special_tokens=True)
    assert decoded.strip() == "a red heart"
    assert code_prefix(K, torch.tensor([[2]]), 1).tolist() == [[K + 3, K]] and code_prefix(K, None, 2).shape == (2, 1)


@KINDS
def test_a_later_token_changes_no_earlier_probability(build):
    pipe = build()
    prefix = pipe._prefix(ASKED[build].get("prompt"), ASKED[build].get("class_labels"), 3)
    codes = torch.randint(K, (3, 16), generator=seeded(0))
    before = code_log_probs(pipe.transformer, prefix, codes)
    for place in (0, 7, 15):
        other = codes.clone()
        other[:, place] = (other[:, place] + 1) % K
        after = code_log_probs(pipe.transformer, prefix, other)
        assert torch.equal(before[:, :place], after[:, :place])
        assert (before[:, place:] != after[:, place:]).all()
    if build is not plain:
        changed = code_log_probs(pipe.transformer, prefix.roll(1, 0), codes)
        assert not torch.allclose(changed[:, 0], before[:, 0])  # the condition reaches the first code


@KINDS
def test_cached_sampling_sees_the_scores_of_the_whole_sequence(build):
    pipe, seen = build(), []
    prefix = pipe._prefix(ASKED[build].get("prompt"), ASKED[build].get("class_labels"), 3)
    codes = pipe._draw(
        prefix, torch.rand(3, 16, generator=seeded(0)), lambda ids, scores: seen.append(scores) or scores
    )
    with torch.no_grad():
        whole = pipe.transformer(input_ids=torch.cat([prefix, codes[:, :-1]], 1)).logits[:, prefix.shape[1] - 1 :, :K]
    torch.testing.assert_close(torch.stack(seen, 1), whole, rtol=1e-4, atol=1e-4)
    assert codes.unique().numel() > 4


def decoded(codes):
    """Images in place of those of a decoder."""
    return torch.zeros(len(codes), 1, 8, 8)


def test_only_codes_are_drawn_even_if_all_else_is_likelier(monkeypatch):
    pipe = classes()
    scores = torch.full((K + 4,), 50.0)
    scores[:K] = torch.arange(K).float() / 10
    constant(pipe.transformer, scores)
    drawn = []
    monkeypatch.setattr(module, "decode_codes", lambda _, codes, device: drawn.append(codes) or decoded(codes))
    pipe(200, class_labels=1, generator=seeded(0))
    assert drawn[0].shape == (200, 4, 4) and set(drawn[0].unique().tolist()) == set(range(K))


# ------------------------------------------------------------ probabilities


def exact(scores, **options):
    """Shares of 100 000 even numbers in [0, 1)."""
    grid = (torch.arange(100_000) + 0.5) / 100_000
    processed = make_processors(**{"temperature": 1.0, "top_k": None, "top_p": 1.0, **options})(None, scores[None])
    return torch.bincount(inverse_cdf(processed.expand(len(grid), -1), grid)[:, 0], minlength=len(scores)) / len(grid)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.8}, [0, 16 / 25, 0, 9 / 25]),
    ],
)
def test_top_k_top_p_and_temperature_of_a_known_distribution(options, expected):
    shares = exact(torch.tensor([0.1, 0.4, 0.2, 0.3]).log(), **options)
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=2e-5, rtol=0)


def test_what_has_no_probability_is_not_drawn_at_either_end():
    scores, least, most = (
        torch.tensor([[0, 0.7, 0.3, 0]]).log(),
        torch.zeros(1),
        torch.ones(1).nextafter(torch.zeros(1)),
    )
    assert inverse_cdf(scores, least).item() == 1 and inverse_cdf(scores, most).item() == 2


def test_samples_have_the_probabilities_of_the_network(monkeypatch):
    pipe = plain()
    p = torch.tensor([0.5, 0.3, 0.1, *[0.1 / 9] * 9])
    constant(pipe.transformer, torch.cat([p.log(), torch.zeros(1)]))
    drawn = []
    shares = lambda codes: torch.bincount(codes.flatten(), minlength=K) / codes.numel()  # noqa: E731
    monkeypatch.setattr(module, "decode_codes", lambda _, codes, device: drawn.append(shares(codes)) or decoded(codes))
    for options in ({}, {"top_k": 2}, {"top_p": 0.85}, {"temperature": 0.5}):
        pipe(500, generator=seeded(0), **options)
    torch.testing.assert_close(drawn[0], p, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn[1][:2], p[:2] / 0.8, atol=0.02, rtol=0)
    assert drawn[1][2:].sum() == 0 and drawn[2][3:].sum() == 0 and drawn[2][2] > 0.05
    torch.testing.assert_close(drawn[3], p**2 / p.square().sum(), atol=0.02, rtol=0)


def test_the_objective_closed_form():
    scores = torch.randn(K + 4, generator=seeded(0))
    network = constant(transformer(num_classes=3), scores)
    codes = torch.randint(K, (5, 16), generator=seeded(1))
    batch = {"prefix": code_prefix(K, torch.arange(5)[:, None] % 3, 5), "codes": codes}
    values = code_loss(network, batch, DRAW)
    expected = -scores[:K].log_softmax(0)[codes].mean()
    torch.testing.assert_close(values["loss"], expected)
    torch.testing.assert_close(values["bits_per_code"], expected / math.log(2))
    constant(network, torch.zeros(K + 4))
    assert code_loss(network, batch, DRAW)["loss"].item() == pytest.approx(math.log(K), abs=1e-6)


def test_probabilities_of_all_pictures_sum_to_one():
    pipe = VQPriorPipeline(vqvae(4, 3), transformer(3, (2, 2), num_classes=2))
    every = torch.tensor([*itertools.product(range(3), repeat=4)]).view(-1, 2, 2)
    pipe.encode = lambda images: images
    for label in (0, 1):
        total = pipe.log_likelihood(every, class_labels=label).double().exp().sum().item()
        assert total == pytest.approx(1, abs=1e-5)


def test_the_likelihood_is_that_of_the_codes_given_the_condition():
    pipe, images = texts(), torch.rand(3, 1, 8, 8, generator=seeded(0)) * 2 - 1
    prompts = ASKED[texts]["prompt"]
    nats = pipe.log_likelihood(images, prompt=prompts)
    prefix = code_prefix(K, text_tokens(pipe.tokenizer, prompts), 3)
    with torch.no_grad():
        expected = code_log_probs(pipe.transformer, prefix, pipe.encode(images).flatten(1)).sum(1)
    torch.testing.assert_close(nats, expected)
    assert nats.shape == (3,) and not torch.allclose(nats, pipe.log_likelihood(images, prompt="bus"))


def test_it_learns_the_entropy_of_a_markov_chain():
    p = torch.tensor([[0.8, 0.15, 0.05], [0.05, 0.8, 0.15], [0.15, 0.05, 0.8]])  # its stationary shares are even
    entropy = (math.log(3) - 15 * (p[0] * p[0].log()).sum().item()) / 16

    def chains(n, generator):
        codes = torch.randint(3, (n, 1), generator=generator)
        for _ in range(15):
            codes = torch.cat([codes, torch.multinomial(p[codes[:, -1]], 1, generator=generator)], 1)
        return {"prefix": code_prefix(3, None, n), "codes": codes}

    torch.manual_seed(0)
    network = code_transformer(3, (4, 4), width=32, layers=1)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    for step in range(150):
        optimizer.zero_grad()
        code_loss(network, chains(64, seeded(step)), DRAW)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        found = code_loss(network.eval(), chains(2000, seeded(999)), DRAW)["loss"].item()
    assert entropy * 0.98 < found < entropy * 1.03 < 0.7 * math.log(3)


# ------------------------------------------------------------ pipeline


@KINDS
def test_the_same_seed_gives_the_same_bytes_whatever_the_batch(build):
    pipe, asked, sizes = build(), ASKED[build], set()
    validation = pipe.transformer.register_forward_pre_hook  # kernels are chosen by the shape of a batch
    validation(lambda module, args, kwargs: sizes.add(len(kwargs["input_ids"])), with_kwargs=True)
    few = pipe(3, generator=seeded(4), **asked).images
    many = pipe(69, generator=seeded(4), **{key: value * 23 for key, value in asked.items()}).images
    assert [np.asarray(image).tobytes() for image in few] == [np.asarray(image).tobytes() for image in many[:3]]
    assert len({np.asarray(image).tobytes() for image in many}) > 60 and len(sizes) == 1
    again = pipe(3, generator=[seeded(9) for _ in range(3)], output_type="latent", **asked).images
    if build is plain:
        assert torch.equal(again[0], again[1])
    other = pipe(3, generator=seeded(5), output_type="np", **asked).images
    assert other.shape == (3, 8, 8, 1) and not np.array_equal(
        other, pipe(3, generator=seeded(4), output_type="np", **asked).images
    )


@KINDS
def test_saved_and_loaded_it_is_the_same(build, tmp_path):
    pipe, asked = build(), ASKED[build]
    pipe.save_pretrained(tmp_path / "one")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "one")
    assert type(loaded) is VQPriorPipeline and loaded.num_classes == (3 if build is classes else None)
    states = [p.transformer.state_dict() for p in (pipe, loaded)]
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    drawn = [p(3, generator=seeded(1), output_type="latent", **asked).images for p in (pipe, loaded)]
    assert torch.equal(*drawn)
    loaded.save_pretrained(tmp_path / "two")
    assert not [path for path in (tmp_path / "two").rglob("*.json") if str(tmp_path) in path.read_text()]


def test_words():
    pipe, images = classes(), torch.rand(2, 1, 8, 8, generator=seeded(0)) * 2 - 1
    codes = pipe.encode(images)
    assert codes.shape == (2, 4, 4) and pipe.encode(images, continuous=True).shape == (2, 4, 4, 4)
    assert pipe.decode(codes)[0].size == (8, 8) and len(pipe.interpolate(images[:1], images[1:], 5)) == 5
    assert len(pipe(class_labels=[0, "dog"]).images) == 2 and len(texts()(prompt=["bus", "heart"]).images) == 2
    assert pipe(class_labels=1, return_dict=False)[0][0].mode == "L"
    assert pipe.to(torch.bfloat16)(class_labels=1, output_type="pt").images.isfinite().all()


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: VQPriorPipeline(vqvae(8, 16), transformer()), "whose codes are 16; those of the transformer are 12"),
        (lambda: VQPriorPipeline(vqvae(16), transformer()), r"height and width are \(8, 8\).*\(4, 4\)"),
        (lambda: VQPriorPipeline(transformer(), vqvae()), "vqvae must be a VQVAE; got GPT2LMHeadModel"),
        (lambda: VQPriorPipeline(vqvae(), vqvae()), "transformer must come from code_transformer; got VQVAE"),
        (lambda: VQPriorPipeline(vqvae(), transformer(), 3), "tokenizer must be one of transformers; got int"),
        (lambda: VQPriorPipeline(vqvae(), transformer(), tokenizer()), "None without"),
        (lambda: VQPriorPipeline(vqvae(), transformer(tokenizer=tokenizer())), "tokenizer must be the one"),
        (lambda: code_transformer(K, (4, 4), num_classes=3, tokenizer=tokenizer()), "one condition"),
        (lambda: code_transformer(K, (4, 4), width=33), "multiple of 32"),
        (lambda: code_transformer(1, (4, 4)), "codebook_size must be at least 2; got 1"),
        (lambda: code_transformer(K, (4, 4), layers=0), "layers must be at least 1; got 0"),
        (lambda: code_transformer(K, (4, 4), num_classes=0), "num_classes must be at least 1; got 0"),
        (lambda: code_transformer(K, (4, 4), dropout=1.0), r"dropout must be in \[0, 1\); got 1.0"),
        (lambda: plain()(2, top_k=0), "top_k must be an integer of at least 1.*got 0"),
        (lambda: plain()(2, top_k=2.5), "top_k must be an integer"),
        (lambda: plain()(2, top_p=0.0), r"top_p must be in \(0, 1\]; got 0.0"),
        (lambda: plain()(2, top_p=1.1), r"top_p must be in \(0, 1\]; got 1.1"),
        (lambda: plain()(2, top_p=math.nan), "top_p must be in"),
        (lambda: plain()(2, temperature=0), "temperature must be above 0.*top_k=1"),
        (lambda: plain()(2, temperature=math.inf), "temperature must be above 0 and finite"),
        (lambda: plain()(0), "batch_size must be at least 1"),
        (lambda: plain()(prompt="heart"), "trained without texts; leave it out"),
        (lambda: plain()(class_labels=1), "trained without classes; leave them out"),
        (lambda: classes()(2), "class_labels are missing: this pipeline was trained with 3 classes"),
        (lambda: classes()(prompt="heart", class_labels=0), "trained without texts"),
        (lambda: classes()(3, class_labels=[0, 1]), "class_labels are given for 2 images"),
        (lambda: texts()(2), "prompt must be a text, or one for each of 2 images.*got None"),
        (lambda: texts()(3, prompt=["a", "b"]), "batch_size is 3, but prompt are given for 2 images"),
        (lambda: texts()(prompt=[]), r"got \[\]"),
        (lambda: texts()(prompt=[3]), "prompt must be a text"),
        (lambda: texts().log_likelihood(torch.zeros(1, 1, 8, 8)), "prompt must be a text"),
        (lambda: plain()(output_type="jpg"), "output_type"),
    ],
)  # fmt: skip
def test_bad_input(call, text):
    with pytest.raises(UsageError, match=text):
        call()


def test_what_is_cut_off_is_said(caplog):
    texts()(prompt="a red heart and a green bus and a red bus")
    assert "cut off" in caplog.text


# ------------------------------------------------------------ the example


@pytest.fixture(scope="module")
def example():
    return load_example("train_vq_prior")


def saved_vqvae(folder, data):
    side, channels = (8, 1) if data == "digits" else (32, 3)
    torch.manual_seed(0)
    widths = (4,) if data == "digits" else (4, 4, 4)
    network = VQVAE(
        sample_size=side, in_channels=channels, block_out_channels=widths, codebook_size=K, latent_channels=4
    )
    torch.nn.init.normal_(network.quantize.codebook, std=0.3)
    network.save_pretrained(folder)
    return folder


def run(example, folder, network, *argv, data="digits"):
    words = f"""--dataset_name {data} --max_train_samples 60 --vqvae {network} --output_dir {folder} --width 32
        --layers 1 --train_batch_size 8 --checkpointing_steps 2 --logging_steps 1 --lr_scheduler constant
        --lr_warmup_steps 2 --eval_num_samples 0""".split()
    return example.main(parse_arguments(example.Arguments, [*words, *map(str, argv)], description="test", prog="train"))


@pytest.mark.parametrize(
    "data, flags",
    [
        ("digits", ()),
        pytest.param("digits", ("--class_conditional",), marks=pytest.mark.nightly),
        ("emoji", ("--caption", "--max_tokens", "6", "--vocab_size", "300")),
    ],
    ids=["plain", "classes", "captions"],
)
def test_the_example_resumes_bit_equal_and_leaves_a_pipeline(example, tmp_path, capsys, data, flags):
    network = saved_vqvae(tmp_path / "vqvae", data)
    straight, broken, moved = tmp_path / "straight", tmp_path / "broken", tmp_path / "moved"
    assert run(example, straight, network, *flags, "--max_train_steps", 4, data=data) == 0
    assert run(example, broken, network, *flags, "--max_train_steps", 2, data=data) == 0
    shutil.copytree(network, moved)  # a run is known by the weights, not by where they lie
    assert run(example, broken, moved, *flags, "--max_train_steps", 4, data=data) == 0
    one, other = (load_file(folder / "transformer" / "model.safetensors") for folder in (straight, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    pipe = DiffusionPipeline.from_pretrained(straight)
    asked = {"class_labels": "7"} if "--class_conditional" in flags else {"prompt": "heart"} if flags else {}
    assert type(pipe) is VQPriorPipeline and len(pipe(2, **asked).images) == 2
    assert (straight / "samples" / "grid.png").is_file()
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "prior/loss" in row]
    assert len(rows) == 4 and rows[-1]["prior/bits_per_code"] == pytest.approx(
        rows[-1]["prior/loss"] / math.log(2), rel=1e-4
    )
    assert "at most log2 12" in capsys.readouterr().out


def test_codes_are_kept_and_flags_that_contradict_are_refused(example, tmp_path):
    network = saved_vqvae(tmp_path / "vqvae", "digits")
    file = tmp_path / "codes.safetensors"
    run(example, tmp_path / "run", network, "--max_train_steps", 1, "--codes_file", file)
    kept = load_file(file)["mean"]
    pipe = VQPriorPipeline(VQVAE.from_pretrained(network), code_transformer(K, (4, 4), width=32))
    expected = pipe.encode(load_images("digits", max_samples=60).images)
    assert torch.equal(kept[:, 0].long(), expected)
    other = VQVAE.from_pretrained(network)
    torch.nn.init.normal_(other.quantize.codebook, std=0.3)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="data"):
        run(example, tmp_path / "run", tmp_path / "other", "--max_train_steps", 2)
    small = VQVAE(sample_size=16, in_channels=1, block_out_channels=(4,), codebook_size=K)
    small.save_pretrained(tmp_path / "small")
    for argv, text in (
        ((tmp_path / "small",), r"--vqvae was trained on inputs of shape \(1, 16, 16\).*\(1, 8, 8\)"),
        ((network, "--caption"), "--caption needs captions.*--caption_column"),
        ((network, "--caption", "--class_conditional"), "--caption must be left out"),
        ((network, "--width", 20), "width must be a multiple of 32"),
    ):
        with pytest.raises(UsageError, match=text):
            run(example, tmp_path / "nothing", *argv, "--max_train_steps", 1)
    assert not list((tmp_path / "nothing").glob("[!.]*"))
