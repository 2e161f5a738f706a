"""Edit images by text: invert them, swap a word of their prompt, and say how well they come back without a swap."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from latentia.commands.image_files import described, image_files, opened
from latentia.commands.output import open_output
from latentia.commands.sources import load_pipeline
from latentia.errors import Range, Size, UsageError, check_arguments, counted
from latentia.evaluation import image_grid
from latentia.files.writing import write_image, write_text
from latentia.functional.settings import check_types
from latentia.pipelines.editing import edit_images
from latentia.pipelines.images import to_output


@dataclass(frozen=True)
class Edits:
    """Edited images.

    Args:
        images: (B, C, H, W) in [-1, 1].
        before: as they were given.
        reconstructions: what comes back from their noise with the prompt as it was.
        swapped: with the other word and without attention guidance.
        about: prompts, PSNR of the reconstructions and settings.
    """

    images: Tensor
    before: Tensor
    reconstructions: Tensor
    swapped: Tensor
    about: dict[str, Any]

    def text(self) -> str:
        """Prompts, and how well the images come back."""
        psnr = sum(self.about["psnr"]) / len(self.about["psnr"])
        bound = self.about["autoencoder_psnr"]
        said = f", {sum(bound) / len(bound):.1f} dB after the autoencoder alone" if bound else ""
        prompts = "; ".join(
            f'"{before}" to "{after}"' for before, after in dict.fromkeys(map(tuple, self.about["prompts"]))
        )
        count = counted(len(self.images), "image")
        return f"{count}: {prompts}. Inverted and back {psnr:.1f} dB{said}."

    def save(self, output_dir: str | Path = "outputs/edited", *, overwrite: bool = False) -> list[Path]:
        """Write 00000.png, 00001.png, ..., edits.json and edits_sheet.png: before, back, plain swap and edited.

        Args:
            output_dir: where the images go; it must be empty.
            overwrite: delete what an earlier `edit` left in it.

        Returns:
            The folder.

        Raises:
            UsageError: the folder holds something already, or cannot be written.
        """
        with open_output(output_dir, "edit", overwrite) as folder:
            for i, image in enumerate(to_output(self.images)):
                write_image(folder / f"{i:05d}.png", image)
            rows = {
                "before": self.before,
                "back": self.reconstructions,
                "plain swap": self.swapped,
                "edited": self.images,
            }
            shown = torch.cat([x[:16].cpu() for x in rows.values()])
            sheet = image_grid(shown, len(shown) // len(rows), row_labels=[*rows])
            write_image(folder / "edits_sheet.png", sheet)
            write_text(folder / "edits.json", json.dumps(self.about, indent=1) + "\n")
        return [folder]


@check_types
@check_arguments
def edit(
    source: str | Path,
    *,
    image: Sequence[str] = (),
    prompt: str = "",
    word: str = "",
    replacement: str = "",
    attention_weight: Annotated[float, Range(0, most=1e6)] = 0.03,
    num_inference_steps: Size = 25,
    refinements: Size = 5,
    revision: str | None = None,
) -> Edits:
    """Swap a word of the prompt of images by a text-to-image pipeline, and keep the rest of the image.

    Args:
        source: a saved text-to-image pipeline, a folder or "user/name" on the Hub.
        image: files or folders of images of the size that the pipeline makes.
        prompt: what they show.
        word: of the prompt.
        replacement: what stands in its place.
        attention_weight: how strongly the places that the network attends to are kept; 0: a plain swap of the prompt.
        num_inference_steps: network evaluations of one chain.
        refinements: evaluations per step of the inversion.
        revision: branch, tag or commit on the Hub.

    Returns:
        The images, before, back from their noise, with a plain swap and edited.

    Raises:
        UsageError: a word that does not stand in the prompt, images of another size, or a pipeline of another kind.
        CheckpointError: it is no saved pipeline, or one that does not load.

    Example:
        >>> swap = {"word": "red", "replacement": "blue"}
        >>> edit("pretrained/emoji", image=["heart.png"], prompt="red heart", **swap)  # doctest: +SKIP
    """
    for name, value in {"image": image, "prompt": prompt, "word": word}.items():
        if not value:
            raise UsageError(f'{name} must be given, such as image heart.png, prompt "red heart", word red; got none.')
    pipe = load_pipeline(source, revision)
    if "prompt" not in getattr(pipe, "conditions", ()) or not hasattr(pipe, "unet"):
        raise UsageError(f"source must be a text-to-image pipeline; {source} is a {type(pipe).__name__}.")
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    files = image_files("image", image)
    images = [opened("image", path) for path in files]
    options: dict[str, Any] = {"num_inference_steps": num_inference_steps, "refinements": refinements}
    found = edit_images(pipe, images, prompt, word, replacement, attention_weight=attention_weight, **options)
    plain = edit_images(pipe, images, prompt, word, replacement, attention_weight=0.0, **options)
    inversion = found.inversion
    bound = inversion.autoencoder_psnr
    about = {
        "source": str(source), "images": [described(path) for path in files], "prompts": found.prompts,
        "psnr": [round(x, 2) for x in inversion.psnr.tolist()],
        "autoencoder_psnr": [round(x, 2) for x in bound.tolist()] if bound.isfinite().all() else [],
        "attention_weight": attention_weight, **options,
    }  # fmt: skip
    return Edits(found.images, inversion.images, inversion.reconstruction, plain.images, about)
