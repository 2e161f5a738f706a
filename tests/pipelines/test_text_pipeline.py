"""The pipeline of texts: bytes in every batch, prompts, likelihoods, precision, files, and the commands on it."""

import itertools
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from devices import DEVICE, separate_device
from helpers import seeded

import latentia
from latentia import CausalTransformer, TextPipeline
from latentia.commands.generate import generate
from latentia.commands.main import main
from latentia.errors import UsageError
from latentia.evaluation.texts import longest_span, ngram_distance, ngram_overlap, score_texts

VOCABULARY = "abcde \n"


@pytest.fixture(scope="module")
def pipe():
    return build()


def build(**config):
    torch.manual_seed(0)
    network = CausalTransformer(len(VOCABULARY), (12,), **{"width": 16, "layers": 2, "heads": 2} | config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    pipe = TextPipeline(network.eval(), VOCABULARY)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_text_has_the_same_characters_in_every_batch(pipe):
    many = pipe(19, length=30, generator=seeded(7)).texts
    assert len({*many}) == 19 and {len(text) for text in many} == {30}
    for n in (1, 2, 17):
        assert pipe(n, length=30, generator=seeded(7)).texts == many[:n]
    alone = pipe(3, length=30, generator=[seeded(1), seeded(2), seeded(7)]).texts
    assert alone[2] == pipe(1, length=30, generator=[seeded(7)]).texts[0] != alone[0]


def test_a_prompt_is_continued_whatever_stands_beside_it(pipe):
    prompts = ["ab", "dec\nabba", "", "abcde" * 9]
    texts = pipe(prompt=prompts, length=20, generator=seeded(3)).texts
    assert all(text.startswith(prompt) and len(text) == len(prompt) + 20 for text, prompt in zip(texts, prompts))
    generators = [seeded(seed) for seed in range(4)]
    together = pipe(prompt=prompts, length=20, generator=generators).texts
    for i, prompt in enumerate(prompts):
        assert pipe(prompt=prompt, length=20, generator=[seeded(i)]).texts == together[i : i + 1]
    assert pipe(2, prompt="ab", length=5, generator=seeded(3)).texts[0][:2] == "ab"


def test_the_likelihood_is_that_of_the_sampler(pipe):
    """Probabilities of all texts of 3 characters sum to 1, and those of windows are those that are sampled from."""
    every = ["".join(letters) for letters in itertools.product(VOCABULARY, repeat=3)]
    assert pipe.log_likelihood(every).exp().sum().item() == pytest.approx(1, abs=1e-5)
    logits = []

    def pick(scores, uniform):
        logits.append(scores.log_softmax(1))
        return scores.argmax(1)

    tokens = pipe.transformer.sample(torch.zeros(1, 41), pick)[0]
    sampled = sum(scores[0, token] for scores, token in zip(logits, tokens)).item()
    text = "".join(VOCABULARY[i] for i in tokens)
    assert pipe.log_likelihood(text).item() == pytest.approx(sampled, rel=1e-4)
    assert pipe.bits_per_character(text).item() == pytest.approx(-sampled / 41 / math.log(2), rel=1e-4)


def test_the_likelihood_does_not_depend_on_what_follows(pipe):
    whole, part = "abba cede\n" * 6, "abba cede\n" * 3
    rest = pipe.log_likelihood([whole, part])
    assert rest[0] < rest[1] < 0
    assert pipe._log_probs(pipe._encode(whole, "x"))[:30].sum().item() == pytest.approx(rest[1].item(), rel=1e-6)


def test_other_precisions_and_devices_are_near_float32(pipe):
    text = "abba cede\n" * 4
    expected = pipe.log_likelihood(text)
    half = build().to(torch.bfloat16)
    assert half.log_likelihood(text).dtype == torch.float64
    assert half.log_likelihood(text).item() == pytest.approx(expected.item(), rel=0.05)
    with separate_device():
        other = build().to(DEVICE)
        assert other(2, length=20, generator=seeded(1)).texts == pipe(2, length=20, generator=seeded(1)).texts
        torch.testing.assert_close(other.log_likelihood(text).cpu(), expected)


def test_threads_get_what_calls_in_turn_get(pipe):
    def ask(i):
        return pipe(1 + i, length=20, generator=seeded(i)).texts

    in_turn = [ask(i) for i in range(4)]
    assert list(ThreadPoolExecutor(4).map(ask, range(4))) == in_turn


FRESH = """
import json, sys, torch, latentia
pipe = latentia.DiffusionPipeline.from_pretrained(sys.argv[1])
texts = pipe(2, prompt="ab", length=20, generator=torch.Generator().manual_seed(7)).texts
print("\\n" + json.dumps([type(pipe).__name__, pipe.config.vocabulary, texts]))
"""


def test_saved_and_loaded_it_writes_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["vocabulary"] == VOCABULARY
    command = [sys.executable, "-W", "ignore", "-c", FRESH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    name, vocabulary, texts = json.loads(done.stdout.splitlines()[-1])
    assert (name, vocabulary) == ("TextPipeline", VOCABULARY)
    assert texts == pipe(2, prompt="ab", length=20, generator=seeded(7)).texts
    again = TextPipeline.from_pipe(pipe)
    assert again.transformer is pipe.transformer and again.config.vocabulary == VOCABULARY


def test_what_makes_no_sense_is_refused(pipe):
    for call, said in (
        (lambda: pipe(prompt="abz"), r"prompt holds 'z' \(U\+007A\) in line 1, column 3"),
        (lambda: pipe(0), "batch_size must be at least 1; got 0"),
        (lambda: pipe(length=0), "length must be in .1, 1048576.; got 0"),
        (lambda: pipe(3, prompt=["a", "b"]), "batch_size is 3, but prompt are given for 2"),
        (lambda: pipe(temperature=0.0), "temperature must be above 0"),
        (lambda: pipe(top_p=1.5), "top_p must be in"),
        (lambda: pipe(top_k=0), "top_k must be"),
        (lambda: pipe.log_likelihood(""), "none of them empty"),
        (lambda: pipe.log_likelihood([]), "none of them empty"),
        (lambda: pipe.encode("a"), "TextPipeline has no encode"),
    ):
        with pytest.raises(UsageError, match=said):
            call()


# ------------------------------------------------------------ scores and commands


def test_scores_of_texts_by_hand():
    assert ngram_overlap(["abcd", "zz"], "xabcx", 3) == 0.5
    assert longest_span(["no", "the cat sat"], "a cat sat down") == " cat sat"
    assert ngram_distance(["abab"], "babab", 2) == pytest.approx(1 / 6)  # 2/3, 1/3 against 1/2, 1/2
    training = "".join(chr(97 + (i * i) % 23) for i in range(3000))
    assert longest_span([training[500:900]], training) == training[500:900]
    report = score_texts([training[:50]], training, [training[100:160]], 2.0)
    assert report.scores["ngram_overlap"].value == 1 and report.scores["longest_span"].value == 50
    assert report.scores["longest_span"].real == 60 and report.scores["bits_per_character"].real is None


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipe")
    (tmp_path / "book.txt").write_text("abba cede\n" * 700)
    return tmp_path


def test_generate_writes_texts_with_their_recipes(folder):
    found = generate(folder / "pipe", 3, prompt=["ab", "ce"], length=10, top_k=3)
    written = found.save(folder / "out")
    assert written == [folder / "out"] and "3 texts of TextPipeline" in found.text()
    texts = [(folder / "out" / f"{i:05d}.txt").read_text() for i in range(3)]
    assert [text[:2] for text in texts] == ["ab", "ce", "ab"] and {len(text) for text in texts} == {12}
    recipes = json.loads((folder / "out" / "recipes.json").read_text())
    assert [recipe["prompt"] for recipe in recipes] == ["ab", "ce", "ab"] and recipes[0]["top_k"] == 3


def test_evaluate_gives_bits_and_scores_beside_real_text(folder):
    evaluation = latentia.evaluate(str(folder / "pipe"), str(folder / "book.txt"), n=2)
    scores = evaluation.report.scores
    text = ("abba cede\n" * 700)[6650:]
    pipe = TextPipeline.from_pretrained(folder / "pipe")
    assert scores["bits_per_character"].value == pytest.approx(pipe.bits_per_character(text).item(), rel=1e-6)
    assert scores["ngram_overlap"].real == 1 and scores["longest_span"].real == 350
    evaluation.save(folder / "page")
    page = (folder / "page" / "index.html").read_text()
    assert "bits per character" in page and "Samples" in page
    assert json.loads((folder / "page" / "metrics.json").read_text())["scores"]["known_words"]["real"] is not None


@pytest.mark.parametrize(
    "words, said",
    [
        (["evaluate", "{}/pipe", "--data", "{}/book.txt", "--extractor", "own"], "--extractor must be left out"),
        (["evaluate", "{}/pipe"], "--data is missing"),
        (["evaluate", "{}/pipe", "--data", "{}/none.txt"], "there is no such file"),
        (["compare", "{}/pipe", "{}/pipe", "--data", "digits"], "must make images"),
        (["generate", "{}/pipe", "--prompt", "xyz"], "--prompt holds 'x'"),
        (["generate", "{}/pipe", "--sampler", "ddim"], "has no scheduler"),
    ],
)
def test_commands_refuse_by_name(folder, words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main([word.format(folder) for word in words])
    err = capsys.readouterr().err
    assert end.value.code in (2, 4) and said in err and "Traceback" not in err
