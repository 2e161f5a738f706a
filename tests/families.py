"""Every kind of training, tiny: what is promised of one is tested of all. A new family is a line here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

STEPS = 6
DIGITS = ("--dataset_name", "digits", "--max_train_samples", "48", "--eval_num_samples", "0")
EMOJI = ("--dataset_name", "emoji", *DIGITS[2:])
TABLE = ("--dataset_name", "people", "--max_train_samples", "60", "--eval_num_samples", "0")
SERIES = ("--dataset_name", "sines_ar2", "--max_train_samples", "60", "--eval_num_samples", "0")
COMMON = (
    *("--max_train_steps", f"{STEPS}", "--checkpointing_steps", "2", "--train_batch_size", "8", "--logging_steps", "1"),
    *("--lr_warmup_steps", "2", "--adam_epsilon", "1e-3"),
)
SCORED = ("--validation_steps", "1", "--eval_num_samples", "16", "--eval_metrics", "fd", "--max_train_steps", "2")
TABLE_SCORED = (*SCORED[:5], "ks", *SCORED[6:])
SERIES_SCORED = (*SCORED[:5], "spectrum", *SCORED[6:])
MODES = {
    "bf16": ("--mixed_precision", "bf16"),
    "fp16": ("--mixed_precision", "fp16"),
    "compile": ("--compile",),
    "checkpointing": ("--gradient_checkpointing",),
    "accumulation": ("--train_batch_size", "4", "--gradient_accumulation_steps", "2"),
}


@dataclass(frozen=True)
class Family:
    """One kind of training.

    Args:
        name: of the family, or of a variant of its training.
        script: in `examples/`.
        flags: of the script; "{parts}" is a folder with a small autoencoder, text encoder and diffusion pipeline.
        data: flags of the data set.
        refuses: those of `MODES` that the script refuses, and words of the error.
        same: flags without which splitting a batch changes numbers: each process draws dropout for itself.
        scored: flags with which samples are drawn on the way and scored at the end.
        buffers: ends of names of buffers whose changes are no measure of training: counts, images, and statistics that
            each forward pass adds to, so each micro-batch.
        splits: whether a step of micro-batches equals one of the whole batch.
        waits: what makes a step wait for the device. Default: nothing.
        at_night: a variant whose parts other kinds of training test by day; its own battery is of `make nightly`.
    """

    name: str
    script: str
    flags: str
    data: tuple[str, ...] = DIGITS
    refuses: Mapping[str, str] = field(default_factory=dict)
    same: tuple[str, ...] = ()
    scored: tuple[str, ...] = SCORED
    buffers: tuple[str, ...] = ()
    splits: bool = True
    waits: str = ""
    at_night: bool = False

    def command(self, folder: Path, parts: Path, *more: str) -> list[str]:
        flags = self.flags.format(parts=parts).split()
        return [*self.data, *COMMON, *flags, "--output_dir", str(folder), *more]


UNET = "--block_out_channels 4 32 --num_inference_steps 1"
GAN = "--latent_dim 4 --block_out_channels 4 --generator_norm none"
NO_DROPOUT = ("--dropout", "0")
NO_BLOCKS = {"checkpointing": "has no blocks that support it"}
SECOND_DERIVATIVES = {"checkpointing": "second derivatives", "compile": "second derivatives"}
FAMILIES = [
    Family("ddpm", "train_ddpm.py", f"{UNET} --class_conditional --dropout 0.1", same=NO_DROPOUT),
    Family(
        "flow_matching",
        "train_ddpm.py",
        f"{UNET} --class_conditional --prediction_type flow --coupling_size 4",
        waits="noise is assigned to images on the CPU",
        at_night=True,
    ),
    *(
        Family(
            name,
            "train_ddpm.py",
            f"{UNET} --class_conditional --prediction_type flow --few_steps {name}",
            at_night=True,
        )
        for name in ("mean_flow", "shortcut")
    ),
    Family(
        "autoencoder",
        "train_autoencoder.py",
        "--latent_dim 3 --hidden_sizes 8 --prior_components 2",
        refuses=NO_BLOCKS,
    ),
    Family(
        "autoencoder_layers",
        "train_autoencoder.py",
        "--latent_dim 3 --hidden_sizes 8 --layerwise_steps 4",
        refuses=NO_BLOCKS,
    ),
    Family(
        "recurrent_autoencoder",
        "train_recurrent_autoencoder.py",
        "--latent_dim 3 --hidden_size 8 --min_rows 2 --prior_components 2",
        refuses=NO_BLOCKS,
        at_night=True,
    ),
    Family(
        "recurrent_autoencoder_series",
        "train_recurrent_autoencoder.py",
        "--latent_dim 3 --hidden_size 8 --min_rows 4 --prior_components 2 --window 16",
        data=SERIES,
        scored=SERIES_SCORED,
        refuses=NO_BLOCKS,
        at_night=True,
    ),
    Family("vae", "train_vae.py", "--latent_dim 2 --hidden_sizes 8", refuses=NO_BLOCKS),
    Family(
        "vae_factor",
        "train_vae.py",
        "--latent_dim 2 --hidden_sizes 8 --objective factor --discriminator_hidden_sizes 8",
        refuses=NO_BLOCKS,
        splits=False,  # latents are permuted within their micro-batch
        at_night=True,
    ),
    Family(
        "vqvae", "train_vqvae.py", "--block_out_channels 4 --codebook_size 6 --latent_channels 3", refuses=NO_BLOCKS
    ),
    Family(
        "vqvae_series",
        "train_vqvae.py",
        "--block_out_channels 4 --codebook_size 6 --latent_channels 3 --window 16",
        data=SERIES,
        scored=SERIES_SCORED,
        refuses=NO_BLOCKS,
        at_night=True,
    ),
    Family(
        "autoencoder_kl",
        "train_autoencoder_kl.py",
        "--block_out_channels 4 4 --norm_num_groups 2 --latent_channels 2 --discriminator_channels 4 4 "
        "--adversarial_start 0.3 --calibration_samples 16",
    ),
    Family("gan", "train_gan.py", GAN, refuses=SECOND_DERIVATIVES, buffers=("running_std",)),
    Family(
        "gan_remedies",
        "train_gan.py",
        f"{GAN} --n_critic 2 --regularise_every 2 --augment ada --replay 16",
        refuses=SECOND_DERIVATIVES,
        buffers=("running_std", "count", "signs", "replay.model.images"),
    ),
    Family(
        "gan_plane",
        "train_gan_plane.py",
        "--hidden_sizes 8 --frame_steps 0",
        data=(),
        scored=("--frame_steps", "1", "--max_train_steps", "2"),
        refuses=NO_BLOCKS | {"compile": "second derivatives"},
    ),
    Family(
        "flow",
        "train_flow.py",
        "--num_layers 2 --hidden_sizes 8 8 --class_conditional --dequantization variational",
        refuses=NO_BLOCKS,
    ),
    Family(
        "flow_gan",
        "train_flow.py",
        "--num_layers 2 --hidden_sizes 8 8 --likelihood_weight 0.5 --discriminator_block_out_channels 4",
        refuses=NO_BLOCKS | {"compile": "second"},
        at_night=True,
    ),
    Family(
        "flow_plane",
        "train_flow_plane.py",
        "--num_layers 2 --hidden_sizes 8",
        data=(),
        scored=("--max_train_steps", "2"),
        refuses=NO_BLOCKS,
        at_night=True,
    ),
    Family(
        "gan_diffusion",
        "train_gan.py",
        f"{GAN} --augment diffusion --class_conditional --diffusion_min_steps 400",
        refuses=SECOND_DERIVATIVES,
        buffers=("running_std", "count", "signs"),
        at_night=True,
    ),
    Family(
        "gan_plane_diffusion",
        "train_gan_plane.py",
        "--hidden_sizes 8 --frame_steps 0 --pack 2 --augment diffusion --diffusion_min_steps 400",
        data=(),
        scored=("--frame_steps", "1", "--max_train_steps", "2"),
        refuses=NO_BLOCKS | {"compile": "second derivatives"},
        buffers=("count", "signs"),
        at_night=True,
    ),
    Family(
        "vae_gan",
        "train_vae_gan.py",
        "--latent_dim 3 --block_out_channels 4 8 --discriminator_block_out_channels 4 8 --class_conditional "
        "--discriminator_layer down_blocks.0",
        refuses=NO_BLOCKS,
        at_night=True,
    ),
    Family(
        "translation",
        "train_translation.py",
        "--block_out_channels 4 8 8 --discriminator_channels 4 8 --dropout 0.5 --keep_dropout --feature_weight 1 "
        "--target_column twemoji --image_column noto --adam_epsilon 1",  # of a loss that is 100 times as large
        data=EMOJI,
        refuses=NO_BLOCKS,
    ),
    Family(
        "restoration",
        "train_translation.py",
        "--block_out_channels 4 8 --degrade masked --adversarial_weight 0 --architecture resnet --num_res_blocks 1",
        refuses=NO_BLOCKS,
        at_night=True,
    ),
    Family(
        "cycle",
        "train_cycle.py",
        "--block_out_channels 4 8 --num_res_blocks 1 --discriminator_channels 4 8 --pool_size 8 "
        "--target_column twemoji --image_column noto --adam_epsilon 1",
        data=EMOJI,
        refuses=NO_BLOCKS,
        buffers=("images", "filled"),
    ),
    Family(
        "diffusion_on_images",
        "train_ddpm.py",
        f"{UNET} --degrade masked --class_conditional",
        at_night=True,
    ),
    Family(
        "control_branch",
        "train_ddpm.py",
        "--control_from {parts}/teacher --degrade edges --class_conditional --num_inference_steps 1",
    ),
    Family(
        "latent_diffusion_on_images",
        "train_latent_diffusion.py",
        f"{UNET} --autoencoder {{parts}} --degrade smaller",
        at_night=True,
    ),
    Family("latent_diffusion", "train_latent_diffusion.py", f"{UNET} --autoencoder {{parts}}"),
    Family(
        "distillation",
        "train_distillation.py",
        "--teacher {parts}/teacher --class_conditional --guidance_scale 2 --num_inference_steps 1 "
        "--adversarial_weight 0.1 --discriminator_block_out_channels 8",
        at_night=True,
    ),
    Family(
        "reflow",
        "train_distillation.py",
        "--teacher {parts}/teacher --class_conditional --method reflow --teacher_steps 1 --num_inference_steps 1",
        at_night=True,
    ),
    Family(
        "text_to_image",
        "train_text_to_image.py",
        "--text_encoder {parts} --block_out_channels 8 8 --attention_head_dim 8 --patch_size 4 --num_inference_steps 1",
        data=EMOJI,
        scored=("--validation_steps", "1", "--max_train_steps", "2"),
    ),
    Family(
        "text_encoder",
        "train_text_encoder.py",
        "--width 32 --text_layers 1 --image_layers 1 --projection_dim 16 --vocab_size 400",
        data=EMOJI[:4],
        scored=("--validation_steps", "1", "--eval_steps", "1", "--max_train_steps", "2"),
        same=NO_DROPOUT,
        splits=False,  # each image is told from the others of its micro-batch
    ),
    Family(
        "table_diffusion",
        "train_table.py",
        "--family diffusion --hidden_sizes 8 --num_train_timesteps 4 --components 2",
        data=TABLE,
        scored=TABLE_SCORED,
        refuses=NO_BLOCKS,
    ),
    Family(
        "table_gan",
        "train_table.py",
        "--family gan --hidden_sizes 8 --latent_dim 4 --components 2",
        data=TABLE,
        scored=TABLE_SCORED,
        refuses=NO_BLOCKS | {"compile": "second derivatives"},
        at_night=True,
    ),
    Family(
        "table_flow",
        "train_table.py",
        "--family flow --hidden_sizes 8 --num_layers 2 --components 2",
        data=TABLE,
        scored=TABLE_SCORED,
        refuses=NO_BLOCKS,
        at_night=True,
    ),
    Family(
        "table_vae",
        "train_table.py",
        "--family vae --hidden_sizes 8 --latent_dim 3 --components 2",
        data=TABLE,
        scored=TABLE_SCORED,
        refuses=NO_BLOCKS,
        at_night=True,
    ),
    Family(
        "series",
        "train_series.py",
        f"{UNET} --attention_head_dim 8 --class_conditional --dropout 0.1",
        data=SERIES,
        scored=SERIES_SCORED,
        same=NO_DROPOUT,
    ),
    Family(
        "series_flow",
        "train_series.py",
        f"{UNET} --attention_head_dim 8 --window 16 --prediction_type flow --few_steps shortcut",
        data=SERIES,
        scored=SERIES_SCORED,
        at_night=True,
    ),
    Family(
        "sound",
        "train_sound.py",
        f"{UNET} --attention_head_dim 8 --num_mels 8 --class_conditional --dropout 0.1",
        data=("--dataset_name", "tones", *SERIES[2:]),
        scored=(*SCORED[:5], "log_spectral", *SCORED[6:]),
        same=NO_DROPOUT,
        at_night=True,
    ),
    Family(
        "vq_prior",
        "train_vq_prior.py",
        "--vqvae {parts} --width 32 --layers 1 --dropout 0 --class_conditional",
        waits="transformers reads whether several sequences are packed into one",
    ),
    Family(
        "text",
        "train_text.py",
        "--width 16 --layers 1 --heads 2 --dropout 0.1",
        data=("--dataset_name", "moby_dick", "--context_length", "16", "--eval_characters", "0"),
        same=NO_DROPOUT,
        scored=("--validation_steps", "1", "--eval_characters", "600", "--max_train_steps", "2"),
    ),
    Family("pixelcnn", "train_pixelcnn.py", "--levels 17 --hidden_channels 8 --layers 2 --class_conditional"),
    Family(
        "pixel_transformer",
        "train_pixelcnn.py",
        "--architecture transformer --levels 2 --width 16 --transformer_layers 1 --heads 2",
        at_night=True,
    ),
    Family(
        "made",
        "train_pixelcnn.py",
        "--architecture made --levels 2 --hidden_sizes 16",
        refuses=NO_BLOCKS,
        at_night=True,
    ),
]
