"""Make the emoji that ship with the package: 32 x 32, without skin tones, from the 64 x 64 parquet files.

python benchmarks/build_emoji.py --data_dir <folder with train.parquet and test.parquet>

The source has the columns noto and twemoji (PNG), text, category, subcategory, skin_tone and codepoint.
"""

import argparse
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

STYLES = ("noto", "twemoji")
SIDE = 32


def small(data: bytes) -> bytes:
    """A PNG of SIDE x SIDE pixels, shrunk with antialias."""
    image = Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")
    out = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parents[1] / "src/latentia/data/embedded")
    options = parser.parse_args()
    splits = {
        split: [row for row in pq.read_table(options.data_dir / f"{split}.parquet").to_pylist() if not row["skin_tone"]]
        for split in ("train", "test")
    }
    names = {
        column: sorted({row[column] for rows in splits.values() for row in rows})
        for column in ("category", "subcategory")
    }
    features: dict[str, dict] = {style: {"_type": "Image"} for style in STYLES}
    features |= {column: {"_type": "ClassLabel", "names": classes} for column, classes in names.items()}
    features |= {column: {"_type": "Value", "dtype": "string"} for column in ("text", "codepoint")}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    types = {style: image for style in STYLES} | {column: pa.int64() for column in names}
    types |= {column: pa.string() for column in ("text", "codepoint")}
    schema = pa.schema(types, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    for split, rows in splits.items():
        table = {style: [{"bytes": small(row[style]["bytes"]), "path": None} for row in rows] for style in STYLES}
        table |= {column: [classes.index(row[column]) for row in rows] for column, classes in names.items()}
        table |= {column: [row[column] for row in rows] for column in ("text", "codepoint")}
        file = options.output_dir / f"emoji-{split}.parquet"
        pq.write_table(pa.table(table, schema=schema), file, compression="zstd", compression_level=19)
        print(f"{file.name}: {len(rows)} rows, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
