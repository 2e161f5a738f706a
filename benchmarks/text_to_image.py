"""Whether pictures show what the text says: colours, categories, and the caption found again from the picture.

    python benchmarks/text_to_image.py --pipeline emoji-pictures --clip emoji-text

For a pipeline trained on the embedded emoji. Colour words (F17): the mean colour of a picture is nearest to the mean
of the real pictures of that word, of nine; "seen" are all training captions with one colour word, "new" are pairs of a
thing and a colour that no caption has. Category: our classifier's answer against the category of the caption, of test
captions. Retrieval: the image encoder that was trained beside the text encoder, on real pictures alone, looks for the
caption of a generated picture among all test captions; both know the same text encoder, so it is a mild judge.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from lecture_diffusion import environment
from lecture_gan import rounded, seeded

from latentia import DiffusionPipeline
from latentia.data import load_images
from latentia.evaluation import (
    color_word,
    color_word_accuracy,
    extractor_for,
    frechet_distance,
    image_grid,
    palette,
    retrieval_scores,
)

HERE = Path(__file__).resolve().parent
THINGS = ("heart", "book", "apple", "mushroom", "flag", "cat", "salad", "large circle", "large square", "large diamond")
SHOWN = ["red heart", "purple apple", "large green circle", "blue cat", "orange book", "smiling face with sunglasses",
         "flag: Italy", "black cat"]  # fmt: skip


def as_floats(data) -> torch.Tensor:
    return data.images.float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", required=True, help="folder or Hub id of a text-to-image pipeline")
    parser.add_argument("--clip", required=True, help="the run of train_text_encoder.py")
    parser.add_argument("--guidance", type=float, nargs="+", default=[0, 1, 2, 3, 5])
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "text_to_image.json")
    args = parser.parse_args()
    pipe, clip = (DiffusionPipeline.from_pretrained(name) for name in (args.pipeline, args.clip))
    pipe.set_progress_bar_config(disable=True)
    train, test = (load_images("emoji", split=split) for split in ("train", "test"))
    colors = palette(as_floats(train), train.captions)
    seen = [caption for caption in train.captions if color_word(caption) in colors]
    known = {*train.captions, *test.captions}
    new = [f"{word} {thing}" if " " not in thing else thing.replace(" ", f" {word} ") for thing in THINGS
           for word in colors]  # fmt: skip
    new = [text for text in new if text not in known]
    extractor = extractor_for(test.shape)
    real = extractor(as_floats(test))

    def drawn(prompts: list[str], guidance: float) -> torch.Tensor:
        return pipe(
            prompts, guidance_scale=guidance, num_inference_steps=args.num_inference_steps, generator=seeded(0),
            output_type="latent",
        ).images.clamp(-1, 1)  # fmt: skip

    rows = []
    for guidance in args.guidance:
        pictures = {"seen": drawn(seen, guidance), "new": drawn(new, guidance), "test": drawn(test.captions, guidance)}
        out = extractor(pictures["test"])
        found = retrieval_scores(clip.encode(pictures["test"]), clip.encode_text(test.captions)).to_dict()
        again = drawn(["red heart"] * 16, guidance)
        rows.append(
            {
                "guidance": guidance,
                "colour of seen captions": color_word_accuracy(pictures["seen"], seen, colors),
                "colour of new pairs": color_word_accuracy(pictures["new"], new, colors),
                "category of test captions": float((out.logits.argmax(1) == test.labels).double().mean()),
                "FD of test captions": frechet_distance(out.features, real.features),
                "spread of one prompt": float(again.std(0).mean()),
                **found,
            }
        )
        print(rounded(rows[-1]), flush=True)
    real_rows = {
        "colour of seen captions": color_word_accuracy(
            as_floats(train)[[train.captions.index(text) for text in seen]], seen, colors
        ),
        "category of test captions": float((real.logits.argmax(1) == test.labels).double().mean()),
        **retrieval_scores(clip.encode(as_floats(test)), clip.encode_text(test.captions)).to_dict(),
    }
    middle = args.guidance[-2]
    shown = [text for text in SHOWN for _ in range(8)]
    image_grid(drawn(shown, middle), 8, row_labels=SHOWN).save(args.pictures / "text-to-image.png")
    told = " ".join(word if "/" not in word else Path(word).name for word in sys.argv[1:])
    result = {
        "what": "text to image on the embedded emoji", "command": f"python benchmarks/text_to_image.py {told}",
        **environment(), "captions": {"seen": len(seen), "new": len(new), "test": len(test)},
        "chance": {"colour": 1 / len(colors), "category": float(test.labels.bincount().max() / len(test))},
        "real pictures": real_rows, "rows": rows,
    }  # fmt: skip
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(rounded(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
