"""Texts: bits per character beside Kneser-Ney models, and speed beside a bare loop of torch modules.

    python benchmarks/text.py --parts bits
    python benchmarks/text.py --parts speed

`bits`: `latentia train text` on the shipped text with `--flags`, then bits per character of its test part, each
character given at least half a window before it; beside them 3-gram and 5-gram models of characters with interpolated
Kneser-Ney smoothing, fitted to the same training part. Settings were chosen on the validation part. `speed`: processor
time of a training step of the script and of a bare loop of torch modules of equal sizes, batch and precision, in turn;
and of sampling with and without the cache of keys and values. All on one thread. Each part replaces its own rows alone.
"""

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia import CausalTransformer, TextPipeline
from latentia.data import load_text
from latentia.evaluation.texts import score_texts
from latentia.pipelines.tokens import make_pick

HERE = Path(__file__).resolve().parent
FLAGS = (
    "--context_length 128 --train_batch_size 8 --learning_rate 2e-3 --mixed_precision bf16 --lr_warmup_steps 100 "
    "--checkpointing_steps 100000"
)
ROUNDS = 3


def head() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()


class KneserNey:
    """Interpolated Kneser-Ney smoothing of n-grams of characters (Chen and Goodman, 1999, section 4.1.6).

    The highest order counts how often a character follows a context, every lower one how many different characters
    stand before the context and it. Each order has the discount n1 / (n1 + 2 n2); the lowest is uniform.
    """

    def __init__(self, text: str, order: int, characters: int):
        self.order, self.characters = order, characters
        self.tables: list[dict[str, Counter[str]]] = []
        self.discounts: list[float] = []
        for n in range(1, order + 1):
            table: dict[str, Counter[str]] = defaultdict(Counter)
            if n == order:
                grams = Counter(text[i : i + n] for i in range(len(text) - n + 1))
            else:
                longer = {text[i : i + n + 1] for i in range(len(text) - n)}
                grams = Counter(gram[1:] for gram in longer)
            for gram, count in grams.items():
                table[gram[:-1]][gram[-1]] = count
            ones, twos = (sum(count == k for count in grams.values()) for k in (1, 2))
            self.tables.append(table)
            self.discounts.append(ones / max(1, ones + 2 * twos))
        self.totals = [{context: sum(row.values()) for context, row in table.items()} for table in self.tables]

    def probability(self, context: str, character: str) -> float:
        """p(character | the last order - 1 characters of the context)."""
        found = 1 / self.characters
        for n, (table, totals, discount) in enumerate(zip(self.tables, self.totals, self.discounts)):
            seen = context[len(context) - n :]
            if len(seen) < n or seen not in totals:
                break
            row, total = table[seen], totals[seen]
            found = (max(row[character] - discount, 0) + discount * len(row) * found) / total
        return found

    def bits(self, text: str) -> float:
        """Bits per character of a text; its first characters have shorter contexts."""
        nats = sum(math.log(self.probability(text[max(0, i - self.order + 1) : i], c)) for i, c in enumerate(text))
        return -nats / math.log(2) / len(text)


def check_model(model: KneserNey, text: str, vocabulary: str) -> float:
    """The largest distance from 1 of the sums of probabilities after some contexts."""
    contexts = ["", "zq", *(text[i : i + model.order - 1] for i in range(0, 2000, 97))]
    return max(abs(sum(model.probability(context, c) for c in vocabulary) - 1) for context in contexts)


def train(folder: Path, *flags: str) -> float:
    """Run the script and return the processor seconds that it took, start and export included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "latentia", "train", "text", "--dataset_name", "moby_dick"]
    subprocess.run([*command, "--output_dir", str(folder), *flags], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bits(args: argparse.Namespace) -> dict[str, Any]:
    folder = args.folder / "text"
    flags = [*args.flags.split(), "--max_train_steps", str(args.steps)]
    seconds = train(folder, *flags, "--overwrite_output_dir")
    training, validation, test = (load_text("moby_dick", 64, split=s) for s in ("train", "validation", "test"))
    pipe = TextPipeline.from_pretrained(folder)
    rows: dict[str, Any] = {"transformer": round(pipe.bits_per_character(test.text).item(), 4)}
    rows["transformer, validation"] = round(pipe.bits_per_character(validation.text).item(), 4)
    for order in (3, 5):
        model = KneserNey(training.text, order, len(training.vocabulary))
        assert check_model(model, training.text, training.vocabulary) < 1e-9
        rows[f"{order}-gram, Kneser-Ney"] = round(model.bits(test.text), 4)
    samples = pipe(20, length=1000, generator=torch.Generator().manual_seed(0)).texts
    real = [test.text[i : i + 1000] for i in range(0, 20_000, 1000)]
    report = score_texts(samples, training.text, real, rows["transformer"])
    rows["samples"] = {key: [round(s.value, 4), s.real and round(s.real, 4)] for key, s in report.scores.items()}
    opening = pipe(prompt="Call me ", length=400, temperature=0.8, generator=torch.Generator().manual_seed(0)).texts[0]
    rows |= {
        "processor minutes": round(seconds / 60, 2), "steps": args.steps, "flags": args.flags,
        "parameters": sum(p.numel() for p in pipe.transformer.parameters()), "longest span": report.span,
        "sample": opening, "commit": head(),
    }  # fmt: skip
    return rows


class BareBlock(nn.Module):
    """A block as in GPT-2: learned positions outside, GELU, biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Bare(nn.Module):
    def __init__(self, characters: int, length: int, width: int, layers: int, heads: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(BareBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.blocks(self.tokens(x) + self.places.weight[: x.shape[1]]))
        return h @ self.tokens.weight.T


def bare_seconds(steps: int, batch: int, length: int, bf16: bool) -> float:
    """Processor seconds of a step of the bare loop: windows at random, AdamW, clipping."""
    data = load_text("moby_dick", length)
    tokens, model = data.tokens, Bare(len(data.vocabulary), length, 128, 4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, fused=True)
    for i in range(steps + 3):
        if i == 3:
            began = time.process_time()
        starts = torch.randint(len(tokens) - length - 1, (batch,))
        windows = torch.stack([tokens[j : j + length + 1] for j in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return (time.process_time() - began) / steps


def script_seconds(steps: int, batch: int, length: int, bf16: bool) -> float:
    """Processor seconds of a step of the script: a long run less a short one, which has the same start and end."""
    flags = ["--context_length", str(length), "--train_batch_size", str(batch), "--eval_characters", "0"]
    flags += ["--mixed_precision", "bf16"] if bf16 else []
    with tempfile.TemporaryDirectory() as folder:
        whole, short = (train(Path(folder, str(n)), *flags, "--max_train_steps", str(n)) for n in (steps + 10, 10))
    return (whole - short) / steps


def speed(args: argparse.Namespace) -> dict[str, Any]:
    batch, length, rows = 16, 128, {}
    for name, bf16 in (("float32", False), ("bfloat16", True)):
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(script_seconds(args.speed_steps, batch, length, bf16))
            theirs.append(bare_seconds(args.speed_steps, batch, length, bf16))
        rows[f"training, {name}"] = {
            "tokens per second, script": round(batch * length / min(ours)),
            "tokens per second, bare loop": round(batch * length / min(theirs)),
            "ratio": round(min(theirs) / min(ours), 3),
        }
        print(rows, flush=True)
    network = CausalTransformer(83, (256,)).eval()
    uniform = torch.rand(16, 256)
    seconds: dict[bool, float] = {}
    for cache in (True, False):
        began = time.process_time()
        network.sample(uniform, make_pick(), use_cache=cache)
        seconds[cache] = time.process_time() - began
    rows["sampling 16 texts of 256 characters"] = {
        "tokens per second, cache": round(uniform.numel() / seconds[True]),
        "tokens per second, no cache": round(uniform.numel() / seconds[False]),
        "ratio": round(seconds[False] / seconds[True], 2),
    }
    return rows | {"commit": head()}


PARTS = {"bits": bits, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--flags", default=FLAGS)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--speed_steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark-text"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "results" / "text.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    for part in args.parts:
        result[part] = PARTS[part](args)
        result["machine"] = {
            "threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__,
            "latentia": version("latentia"),
        }  # fmt: skip
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result[part], indent=1), flush=True)


if __name__ == "__main__":
    main()
