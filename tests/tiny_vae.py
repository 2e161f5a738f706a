"""VAEs in double precision small enough for closed forms, and what their tests are given."""

import torch

from latentia import VAE
from latentia.rng import Rng
from latentia.runs.command_line import parse_arguments

DOUBLE = {"dtype": torch.float64}


def draws(n, seed=0, start=0, whole=None):
    return Rng(seed, 0, whole or n, start, n)


def tiny(**config):
    torch.manual_seed(0)
    return VAE(**{"sample_size": 4, "latent_dim": 3, "hidden_sizes": (8,)} | config).double()


def pictures(n, *shape):
    return torch.rand(n, *(shape or (1, 4, 4)), **DOUBLE) * 2 - 1


def binary(n):
    return torch.where(pictures(n) > 0, 1.0, -1.0).double()


def gradients(loss, vae):
    vae.zero_grad()
    loss["loss"].backward()
    return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def arguments(example, *argv):
    words = ["--dataset_name", "digits", "--max_train_steps", "12", "--eval_num_samples", "20", *map(str, argv)]
    return parse_arguments(example.Arguments, words, description="test", prog="train")
