"""The loop knows no modality: whatever is trained on, is a `Dataset` to it."""

import re
from pathlib import Path

import latentia

TRAINING = Path(latentia.__file__).parent / "training"
MODALITIES = re.compile(
    r"\b(pixels?|tables?|tabular|captions?|prompts?|sounds?|waves?|audio|spectrograms?|modality)\b", re.IGNORECASE
)
IMPORTED = re.compile(r"^(from|import) latentia\.(data|evaluation|models|pipelines|losses)\b", re.MULTILINE)


def code(path: Path) -> str:
    """A file without its strings and comments."""
    import io
    import tokenize

    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    left_out = (tokenize.STRING, tokenize.COMMENT)
    return " ".join(token.string for token in tokens if token.type not in left_out)


def test_no_file_of_the_loop_names_a_modality():
    files = sorted(TRAINING.glob("*.py"))
    assert len(files) > 5
    for path in files:
        assert not MODALITIES.findall(code(path)), path.name
        assert not IMPORTED.findall(path.read_text()), path.name
