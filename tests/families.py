"""Every kind of training of the house, tiny: what is promised of one is tested of all. A new family is a line here."""

from dataclasses import dataclass
from pathlib import Path

STEPS = 6
DIGITS = ("--dataset_name", "digits", "--max_train_samples", "48", "--eval_num_samples", "0")
COMMON = (
    *("--max_train_steps", f"{STEPS}", "--checkpointing_steps", "2", "--train_batch_size", "8", "--logging_steps", "1"),
    *("--lr_warmup_steps", "2", "--adam_epsilon", "1e-3"),
)


@dataclass(frozen=True)
class Family:
    """`flags`: of `examples/script`; "{parts}" is a folder with a small autoencoder and a small text encoder."""

    name: str
    script: str
    flags: str
    data: tuple[str, ...] = DIGITS

    def command(self, folder: Path, parts: Path, *more: str) -> list[str]:
        flags = self.flags.format(parts=parts).split()
        return [*self.data, *COMMON, *flags, "--output_dir", str(folder), *more]


EMOJI = ("--dataset_name", "emoji", *DIGITS[2:])
UNET = "--block_out_channels 4 32 --num_inference_steps 1"
GAN = "--latent_dim 4 --block_out_channels 4 --generator_norm none"
FAMILIES = [
    Family("ddpm", "train_ddpm.py", f"{UNET} --class_conditional --dropout 0.1"),
    Family("autoencoder", "train_autoencoder.py", "--latent_dim 3 --hidden_sizes 8 --prior_components 2"),
    Family("autoencoder_layers", "train_autoencoder.py", "--latent_dim 3 --hidden_sizes 8 --layerwise_steps 4"),
    Family("vae", "train_vae.py", "--latent_dim 2 --hidden_sizes 8"),
    Family("vqvae", "train_vqvae.py", "--block_out_channels 4 --codebook_size 6 --latent_channels 3"),
    Family(
        "autoencoder_kl",
        "train_autoencoder_kl.py",
        "--block_out_channels 4 4 --norm_num_groups 2 --latent_channels 2 --discriminator_channels 4 4 "
        "--adversarial_start 0.3 --calibration_samples 16",
    ),
    Family("gan", "train_gan.py", GAN),
    Family("gan_remedies", "train_gan.py", f"{GAN} --n_critic 2 --regularise_every 2 --augment ada --replay 16"),
    Family("gan_plane", "train_gan_plane.py", "--hidden_sizes 8 --frame_steps 0", data=()),
    Family("latent_diffusion", "train_latent_diffusion.py", f"{UNET} --autoencoder {{parts}}"),
    Family(
        "text_to_image",
        "train_text_to_image.py",
        "--text_encoder {parts} --block_out_channels 8 8 --attention_head_dim 8 --patch_size 4 --num_inference_steps 1",
        data=EMOJI,
    ),
    Family(
        "text_encoder",
        "train_text_encoder.py",
        "--width 32 --text_layers 1 --image_layers 1 --projection_dim 16 --vocab_size 400",
        data=EMOJI[:4],
    ),
    Family("vq_prior", "train_vq_prior.py", "--vqvae {parts} --width 32 --layers 1 --dropout 0 --class_conditional"),
]
