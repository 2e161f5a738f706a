"""The objective and the scores of texts and images that find each other."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from children import ended, enter, ranks
from safetensors.torch import load_file
from torch import nn

from latentia.errors import NumericsError, UsageError
from latentia.evaluation import retrieval_scores
from latentia.losses.augmentation import random_affine
from latentia.losses.contrastive import contrastive_loss
from latentia.rng import Rng
from latentia.training.loop import Phase, train


def pairs(n=6, d=5):
    return torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)


def test_the_loss_is_the_mean_of_both_directions():
    x, t = pairs()
    found = contrastive_loss(x, 3 * t, torch.tensor(1.3, dtype=torch.float64))
    total = 0.0
    for i in range(6):
        cosines = [[float(x[a] @ t[b] / x[a].norm() / t[b].norm()) for b in range(6)] for a in range(6)]
        row = [math.exp(math.exp(1.3) * cosines[i][j]) for j in range(6)]
        column = [math.exp(math.exp(1.3) * cosines[j][i]) for j in range(6)]
        total -= (math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))) / 12
    assert float(found["loss"]) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("n", [2, 7])
def test_closed_forms(n):
    alike = torch.ones(n, 4)
    assert float(contrastive_loss(alike, alike, torch.tensor(2.0))["loss"]) == pytest.approx(math.log(n), rel=1e-6)
    own = contrastive_loss(torch.eye(n), torch.eye(n), torch.tensor(1.0))
    assert float(own["loss"]) == pytest.approx(math.log(1 + (n - 1) * math.exp(-math.e)), rel=1e-5)
    assert own["accuracy"] == 1 and float(own["scale"]) == pytest.approx(math.e)


def test_the_scale_is_held_at_100_and_learns_below():
    x, t = pairs()
    for value, held in ((4.0, False), (9.0, True)):
        logit_scale = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        found = contrastive_loss(x, t, logit_scale)
        found["loss"].backward()
        assert (float(found["scale"]) == pytest.approx(100)) == held == (logit_scale.grad == 0)


def test_pairs_of_one_group_are_no_strangers():
    x, t = pairs(4)
    scale = torch.tensor(0.5, dtype=torch.float64)
    x[3], t[3] = x[0], t[0]  # one picture twice
    with_groups = contrastive_loss(x, t, scale, groups=torch.tensor([0, 1, 2, 0]))["loss"]
    logits = math.exp(0.5) * F.normalize(x, dim=1) @ F.normalize(t, dim=1).T
    rows = [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3]]
    wanted = sum(
        torch.logsumexp(way[i, row], 0) - way[i, i] for way in (logits, logits.T) for i, row in enumerate(rows)
    )
    assert float(with_groups) == pytest.approx(float(wanted) / 8, rel=1e-12)
    with pytest.raises(UsageError, match=r"\(B, D\)"):
        contrastive_loss(x, t[:3], scale)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(4, 3).double(), nn.Linear(5, 3).double()
        self.logit_scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, images, texts):
        return self.image(images), self.text(texts), self.logit_scale


class Pairs:
    fingerprint = "pairs"

    def batch(self, first, last, *, seed, device):
        def row(p):
            return torch.randn(9, generator=torch.Generator().manual_seed(p), dtype=torch.float64)

        rows = torch.stack([row(p) for p in range(first, last)])
        return {"x": rows[:, :4], "t": rows[:, 4:], "groups": torch.arange(first, last) // 3}


def trained(folder: Path, batch_size: int) -> None:
    accelerator = Accelerator(cpu=True)
    both = Both()
    network, optimizer = accelerator.prepare(both, torch.optim.SGD(both.parameters(), lr=0.5))

    def loss(batch, rng):
        return contrastive_loss(*network(batch["x"], batch["t"]), groups=batch["groups"])

    folder.mkdir(parents=True, exist_ok=True)
    train(accelerator, [Phase("clip", loss, network, optimizer)], Pairs(), output_dir=folder, max_steps=4,
          batch_size=batch_size, log_every=1)  # fmt: skip


def on_a_rank(log: str, env: dict[str, str], folder: str) -> None:
    enter(log, env)
    trained(Path(folder), 4)


def test_two_processes_equal_one(start, tmp_path):
    trained(tmp_path / "one", 8)
    for child in ranks(start, on_a_rank, str(tmp_path / "two")):
        code, text = ended(child)
        assert code == 0, text
    one, two = (load_file(tmp_path / f / "checkpoints/checkpoint-4/clip.model.safetensors") for f in ("one", "two"))
    (weight,) = (value for key, value in one.items() if "image" in key and value.ndim == 2)
    assert one.keys() == two.keys() and (weight - Both().image.weight).abs().max() > 0.01
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-10, atol=1e-12)


def test_moved_images_keep_colours_and_depend_on_position_alone():
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    whole = random_affine(images, Rng(0, 0, 8, 0, 8))
    assert torch.equal(random_affine(images[4:], Rng(0, 0, 8, 4, 4)), whole[4:])
    assert whole.min() >= images.min() and whole.max() <= images.max() and not torch.allclose(whole, images)
    flat = torch.tensor([0.5, -1.0, 0.25]).view(1, 3, 1, 1).expand(8, 3, 16, 16)
    torch.testing.assert_close(random_affine(flat, Rng(0, 0, 8, 0, 8)), flat.contiguous())
    torch.testing.assert_close(random_affine(images, Rng(0, 0, 8, 0, 8), 0.0, 0.0), images, rtol=1e-4, atol=1e-4)
    dot = torch.zeros(8, 1, 16, 16)
    dot[:, :, 7:9, 7:9] = 1.0
    shifted = random_affine(dot, Rng(0, 0, 8, 0, 8), 0.125, 0.0)
    where = (shifted[:, 0].sum(1) * torch.arange(16.0)).sum(1) / shifted.flatten(1).sum(1) - 7.5
    assert where.abs().max() <= 2 + 1e-4 and where.min() < 0 < where.max()  # an eighth of 16 pixels


def test_retrieval_of_known_orders():
    x = torch.eye(10)
    t = x.clone()
    t[2], t[5] = x[5], x[2]  # two that are exchanged
    found = retrieval_scores(x, t, (1, 5, 10))
    assert found.image_to_text[1] == found.text_to_image[1] == 0.8
    assert found.image_to_text[10] == 1 and found.image_to_text_rank == 1 and found.chance == {1: 0.1, 5: 0.5, 10: 1.0}
    # One text is nearest to every image: the others see it first, and it sees ten images alike.
    hub = torch.cat([torch.ones(1, 10), torch.eye(10)[1:]])
    found = retrieval_scores(torch.eye(10), hub)
    assert found.text_to_image[1] == 0.9
    ranks = found.to_dict()
    assert ranks["pairs"] == 10 and ranks["chance_median_rank"] == 5.5 and "recall@10" in found.text()
    assert {row["type"] for row in found.for_card()} >= {"image_to_text_recall_1", "text_to_image_recall_10"}


def test_ties_count_against_it():
    x = torch.ones(20, 3)
    found = retrieval_scores(x, x, (1, 19, 20))
    assert found.image_to_text == found.text_to_image == {1: 0.0, 19: 0.0, 20: 1.0}
    assert found.image_to_text_rank == 20


def test_the_same_caption_twice_is_as_right():
    x = torch.randn(30, 8)
    t = torch.cat([x[:15], x[:15]])
    pictures = torch.cat([x[:15], x[:15]])
    assert retrieval_scores(pictures, t).image_to_text[1] == 0
    assert retrieval_scores(pictures, t, groups=torch.arange(30) % 15).image_to_text[1] == 1


def test_chance_is_what_random_vectors_get():
    x, t = torch.randn(2000, 16), torch.randn(2000, 16)
    found = retrieval_scores(x, t, (100,))
    assert found.image_to_text[100] == pytest.approx(found.chance[100], abs=4 * (0.05 * 0.95 / 2000) ** 0.5)
    assert found.text_to_image_rank == pytest.approx(found.chance_rank, rel=0.1)
    for bad in (lambda: retrieval_scores(x, t[:3]), lambda: retrieval_scores(x, t, (0,))):
        with pytest.raises(UsageError):
            bad()
    with pytest.raises(NumericsError):
        retrieval_scores(x / 0, t)
