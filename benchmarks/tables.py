"""Tables: every family of `latentia train table` beside SDV's CTGAN, TVAE and Gaussian copula, in one run.

    python -m venv sdv && sdv/bin/pip install sdv==2.0.0        # an environment of its own
    python benchmarks/tables.py --sdv sdv/bin/python
    python benchmarks/tables.py --parts metrics --sdv sdv/bin/python

`models`: of each table a fifth is held out (`MixedTable.parts`). Each family trains on the rest with the recipe of
`RECIPES`; SDV's models train with their defaults, `--sdv_epochs` passes. Both draw as many rows as were trained on,
which are scored by `score_table` against the rows trained on, with those held out beside them. Seconds are those of the
processor, on one thread, the fit of the encoding included, start and sampling left out. `metrics`: our statistics of
columns and SDMetrics' of the same rows.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentia import DiffusionPipeline, TableEncoder
from latentia.commands.tables import fit_copula
from latentia.data.mixed import MixedTable, load_mixed_table, rows_like
from latentia.evaluation.report.table_report import score_table
from latentia.evaluation.table_metrics import correlation_difference, ks_statistics, total_variations
from latentia.runs.tables import rows_of

HERE = Path(__file__).resolve().parent
TABLES = ("iris", "wine", "breast_cancer", "people")
SMALL = ["--train_batch_size", "64", "--max_train_steps"]
LARGE = ["--train_batch_size", "500", "--max_train_steps"]
RECIPES = {  # family -> flags of a table of hundreds of rows, and of tens of thousands
    "vae": ([*SMALL, "1500"], [*LARGE, "1500"]),
    "gan": ([*SMALL, "1500"], [*LARGE, "1500"]),
    "diffusion": ([*SMALL, "1500"], [*LARGE, "2500"]),
    "flow": (
        [*SMALL, "300", "--num_layers", "4", "--hidden_sizes", "32", "--learning_rate", "1e-3"],
        [*LARGE, "800", "--num_layers", "4", "--hidden_sizes", "64"],
    ),
}
SDV = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import pandas as pd, torch
torch.set_num_threads(1)
from sdv.metadata import Metadata
from sdv.single_table import CTGANSynthesizer, GaussianCopulaSynthesizer, TVAESynthesizer
kind, table, kinds, count, epochs, output = sys.argv[1:]
frame = pd.read_parquet(table)
columns = {name: {"sdtype": kind} for name, kind in json.loads(kinds).items()}
for name, column in columns.items():
    if column["sdtype"] == "datetime":
        column["datetime_format"] = "%Y-%m-%d"
        frame[name] = frame[name].astype("datetime64[ns]")  # else all dates are of January 1970, under pandas 3
metadata = Metadata.load_from_dict({"tables": {"t": {"columns": columns}}})
torch.manual_seed(0)
made = {"ctgan": CTGANSynthesizer, "tvae": TVAESynthesizer, "copula": GaussianCopulaSynthesizer}[kind]
options = {} if kind == "copula" else {"epochs": int(epochs), "enable_gpu": False}
model = made(metadata, **options)
started = time.process_time()
model.fit({"t": frame})
seconds = time.process_time() - started
model.sample(int(count))["t"].to_parquet(output)
print(json.dumps({"seconds": seconds}))
"""
SDMETRICS = """
import json, sys
import pandas as pd
from sdmetrics.single_column import KSComplement, TVComplement
from sdmetrics.column_pairs import CorrelationSimilarity
real, made = (pd.read_parquet(path) for path in sys.argv[1:3])
numbers, classes = json.loads(sys.argv[3]), json.loads(sys.argv[4])
found = {"ks": {c: 1 - KSComplement.compute(real[c], made[c]) for c in numbers}}
found["total_variation"] = {c: 1 - TVComplement.compute(real[c], made[c]) for c in classes}
pairs = [(a, b) for i, a in enumerate(numbers) for b in numbers[:i]]
found["correlation"] = max([2 - 2 * CorrelationSimilarity.compute(real[[a, b]], made[[a, b]]) for a, b in pairs] or [0])
print(json.dumps(found))
"""


def head() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()


def scores(made: MixedTable, train: MixedTable, held_out: MixedTable, seconds: float, **more: Any) -> dict[str, Any]:
    """The report of rows; correlations are of as many rows as were trained on, as few are noisy."""
    report = score_table(rows_of(made), rows_of(train), rows_of(held_out))
    found = {key: [round(score.value, 4), round(score.real, 4)] for key, score in report.scores.items()}
    of_all = round(correlation_difference(rows_of(made), rows_of(train)), 4)
    return {"seconds": round(seconds, 1), "correlation of all rows": of_all, **found, **more}


def ours(name: str, family: str, table: MixedTable, folder: Path) -> tuple[float, MixedTable]:
    """Seconds of training, and rows of a family trained by its command."""
    flags = RECIPES[family][len(table) > 5000]
    command = [sys.executable, "-m", "latentia", "train", "table", "--dataset_name", name, "--family", family, *flags]
    whole = processor_seconds(command, folder)
    seconds = whole - processor_seconds([*command, "--max_train_steps", "1"], folder.with_name(f"{family}-1"))
    started = time.process_time()
    TableEncoder.fit(table.columns, table.values)
    return seconds + time.process_time() - started, drawn(DiffusionPipeline.from_pretrained(folder), table)


def processor_seconds(command: list[str], folder: Path) -> float:
    """Of a training command, start and export included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [*command, "--eval_num_samples", "0", "--output_dir", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def drawn(pipe: Any, table: MixedTable) -> MixedTable:
    rows = pipe(len(table), generator=torch.Generator().manual_seed(1), output_type="latent").rows
    return MixedTable(table.columns, pipe.encoder.decode(rows, within=True).numpy(), table.target)


def theirs(python: str, kind: str, train: MixedTable, epochs: int, folder: Path) -> tuple[float, MixedTable]:
    """Seconds of training, and rows of a model of SDV."""
    folder.mkdir(parents=True, exist_ok=True)
    train.frame().to_parquet(folder / "train.parquet")
    named = {"numeric": "numerical", "integer": "numerical", "date": "datetime"}
    kinds = {column.name: named.get(column.kind, column.kind) for column in train.columns}
    paths = [
        str(folder / "train.parquet"),
        json.dumps(kinds),
        str(len(train)),
        str(epochs),
        str(folder / "made.parquet"),
    ]
    done = subprocess.run([python, "-W", "ignore", "-c", SDV, kind, *paths], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])["seconds"], rows_like(train.columns, folder / "made.parquet")


def models(args: argparse.Namespace, save: Any) -> None:
    for name in args.tables:
        table = load_mixed_table(name)
        train, held_out = table.parts()
        epochs = args.sdv_epochs if len(table) > 5000 else 300
        with tempfile.TemporaryDirectory() as place:
            for family in args.families:
                seconds, made = ours(name, family, train, Path(place, family))
                save(name, family, scores(made, train, held_out, seconds, flags=RECIPES[family][len(train) > 5000]))
            started = time.process_time()
            copula = fit_copula(train)
            seconds = time.process_time() - started
            save(name, "copula", scores(drawn(copula, train), train, held_out, seconds))
            for kind in args.sdv_models if args.sdv else ():
                seconds, made = theirs(args.sdv, kind, train, epochs, Path(place, f"sdv-{kind}"))
                more = {} if kind == "copula" else {"epochs": epochs}
                save(name, f"SDV {kind}", scores(made, train, held_out, seconds, **more))


def metrics(args: argparse.Namespace, save: Any) -> None:
    """Largest difference of ours and SDMetrics' numbers, of the held-out and the other rows of each table."""
    for name in args.tables:
        train, held_out = load_mixed_table(name).parts()
        with tempfile.TemporaryDirectory() as place:
            paths = [str(Path(place, f"{side}.parquet")) for side in ("train", "held_out")]
            for path, side in zip(paths, (train, held_out)):
                side.frame().to_parquet(path)
            numbers = [c.name for c in train.columns if c.is_number and c.kind != "date"]
            classes = [c.name for c in train.columns if not c.is_number and not c.missing]
            command = [args.sdv, "-W", "ignore", "-c", SDMETRICS, *paths, json.dumps(numbers), json.dumps(classes)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
        found = json.loads(done.stdout.splitlines()[-1])
        ks, tv = (of(rows_of(held_out), rows_of(train)) for of in (ks_statistics, total_variations))
        only = [c for c, column in enumerate(train.columns) if column.name in numbers and not column.missing]
        both = [np.corrcoef(side.values[:, only], rowvar=False) for side in (train, held_out)]
        own = float(np.abs(both[0] - both[1]).max())
        save("metrics", name, {
            "ks": max(abs(ks[c] - found["ks"][c]) for c in numbers),
            "total_variation": max([abs(tv[c] - found["total_variation"][c]) for c in classes], default=0.0),
            "correlation of numbers without gaps": [own, found["correlation"]],
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["models", "metrics"], choices=["models", "metrics"])
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    parser.add_argument("--families", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--sdv", help="Python of an environment that holds sdv")
    parser.add_argument("--sdv_models", nargs="*", default=["copula", "tvae", "ctgan"])
    parser.add_argument("--sdv_epochs", type=int, default=30, help="of the table of 30 000 rows; of the others 300")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "tables.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(args.output.read_text()) if args.output.exists() else {}

    def save(table: str, model: str, row: dict[str, Any]) -> None:
        found.setdefault(table, {})[model] = {**row, "commit": head()}
        found["about"] = {
            "command": " ".join(["python", *sys.argv]), "cpu": platform.processor() or platform.machine(),
            "threads": os.environ.get("OMP_NUM_THREADS"), "torch": torch.__version__, "latentia": version("latentia"),
        }  # fmt: skip
        args.output.write_text(json.dumps(found, indent=2) + "\n")
        print(table, model, json.dumps(row), flush=True)

    for part in args.parts:
        {"models": models, "metrics": metrics}[part](args, save)


if __name__ == "__main__":
    main()
