"""Inception-v3 against the published architecture: shapes, parameters, and every block computed another way."""

import doctest

import pytest
import torch
import torch.nn.functional as F

import latentia.models.inception
from latentia import InceptionV3
from latentia.errors import UsageError

# Szegedy et al. (2015), table 1, in the channels that TF-slim gives to each block: what comes out at 299 x 299, and
# the parameters (weights of convolutions, scale and shift of each batch norm), counted from the lists further below.
SHAPES = {
    "Conv2d_1a_3x3": (32, 149, 149),
    "Conv2d_2a_3x3": (32, 147, 147),
    "Conv2d_2b_3x3": (64, 147, 147),
    "Conv2d_3b_1x1": (80, 73, 73),
    "Conv2d_4a_3x3": (192, 71, 71),
    "Mixed_5b": (256, 35, 35),
    "Mixed_5c": (288, 35, 35),
    "Mixed_5d": (288, 35, 35),
    "Mixed_6a": (768, 17, 17),
    "Mixed_6b": (768, 17, 17),
    "Mixed_6c": (768, 17, 17),
    "Mixed_6d": (768, 17, 17),
    "Mixed_6e": (768, 17, 17),
    "Mixed_7a": (1280, 8, 8),
    "Mixed_7b": (2048, 8, 8),
    "Mixed_7c": (2048, 8, 8),
}
INPUTS = {"Mixed_5b": 192, "Mixed_5c": 256, "Mixed_5d": 288, "Mixed_6a": 288, "Mixed_7a": 768, "Mixed_7b": 1280}
INPUTS |= {f"Mixed_6{letter}": 768 for letter in "bcde"} | {"Mixed_7c": 2048}


# Every convolution as (name, channels in, channels out, height, width of the kernel), written out by hand.
def convolutions_35(c, pool):
    return [
        ("branch1x1", c, 64, 1, 1),
        ("branch5x5_1", c, 48, 1, 1),
        ("branch5x5_2", 48, 64, 5, 5),
        ("branch3x3dbl_1", c, 64, 1, 1),
        ("branch3x3dbl_2", 64, 96, 3, 3),
        ("branch3x3dbl_3", 96, 96, 3, 3),
        ("branch_pool", c, pool, 1, 1),
    ]


def convolutions_17(n):
    return [
        ("branch1x1", 768, 192, 1, 1),
        ("branch7x7_1", 768, n, 1, 1),
        ("branch7x7_2", n, n, 1, 7),
        ("branch7x7_3", n, 192, 7, 1),
        ("branch7x7dbl_1", 768, n, 1, 1),
        ("branch7x7dbl_2", n, n, 7, 1),
        ("branch7x7dbl_3", n, n, 1, 7),
        ("branch7x7dbl_4", n, n, 7, 1),
        ("branch7x7dbl_5", n, 192, 1, 7),
        ("branch_pool", 768, 192, 1, 1),
    ]


def convolutions_8(c):
    return [
        ("branch1x1", c, 320, 1, 1),
        ("branch3x3_1", c, 384, 1, 1),
        ("branch3x3_2a", 384, 384, 1, 3),
        ("branch3x3_2b", 384, 384, 3, 1),
        ("branch3x3dbl_1", c, 448, 1, 1),
        ("branch3x3dbl_2", 448, 384, 3, 3),
        ("branch3x3dbl_3a", 384, 384, 1, 3),
        ("branch3x3dbl_3b", 384, 384, 3, 1),
        ("branch_pool", c, 192, 1, 1),
    ]


CONVOLUTIONS = {
    "Mixed_5b": convolutions_35(192, 32),
    "Mixed_5c": convolutions_35(256, 64),
    "Mixed_5d": convolutions_35(288, 64),
    "Mixed_6a": [
        ("branch3x3", 288, 384, 3, 3),
        ("branch3x3dbl_1", 288, 64, 1, 1),
        ("branch3x3dbl_2", 64, 96, 3, 3),
        ("branch3x3dbl_3", 96, 96, 3, 3),
    ],
    "Mixed_6b": convolutions_17(128),
    "Mixed_6c": convolutions_17(160),
    "Mixed_6d": convolutions_17(160),
    "Mixed_6e": convolutions_17(192),
    "Mixed_7a": [
        ("branch3x3_1", 768, 192, 1, 1),
        ("branch3x3_2", 192, 320, 3, 3),
        ("branch7x7x3_1", 768, 192, 1, 1),
        ("branch7x7x3_2", 192, 192, 1, 7),
        ("branch7x7x3_3", 192, 192, 7, 1),
        ("branch7x7x3_4", 192, 192, 3, 3),
    ],
    "Mixed_7b": convolutions_8(1280),
    "Mixed_7c": convolutions_8(2048),
}
STEM = [
    ("Conv2d_1a_3x3", 3, 32, 3, 3),
    ("Conv2d_2a_3x3", 32, 32, 3, 3),
    ("Conv2d_2b_3x3", 32, 64, 3, 3),
    ("Conv2d_3b_1x1", 64, 80, 1, 1),
    ("Conv2d_4a_3x3", 80, 192, 3, 3),
]


def parameters(convolutions):
    return sum(i * o * h * w + 2 * o for _, i, o, h, w in convolutions)


@pytest.fixture(scope="module")
def network():
    """Fixed weights, and batch norms with statistics, scale and shift of their own."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = InceptionV3().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                values.uniform_(low, high, generator=generator)
    return network


def average(x):
    """The mean of the pixels of the image in each 3 x 3 window: sums, divided by how many there are."""
    ones = torch.ones(1, 1, 3, 3, dtype=x.dtype)
    count = F.conv2d(torch.ones_like(x[:1, :1]), ones, padding=1)
    return F.conv2d(x.flatten(0, 1)[:, None], ones, padding=1).view_as(x) / count


def maximum(x, stride):
    """The largest of the nine shifted pictures."""
    h, w = x.shape[2:]
    if stride == 1:
        x, h, w = F.pad(x, (1, 1, 1, 1), value=-torch.inf), h + 2, w + 2
    shifts = [x[:, :, i : h - 2 + i : stride, j : w - 2 + j : stride] for i in range(3) for j in range(3)]
    return torch.stack(shifts).amax(0)


def block(name, weights, x):
    """What the block `name` makes of x, from the lists of its convolutions and formulas alone."""
    kernels = {conv: (h, w) for conv, _, _, h, w in CONVOLUTIONS[name]}

    def conv(key, x, stride=1):
        w = weights[f"{name}.{key}.conv.weight"]
        mean, variance, scale, shift = (
            weights[f"{name}.{key}.bn.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        assert tuple(w.shape[2:]) == kernels[key]
        h = F.conv2d(x, w, stride=stride, padding=[k // 2 for k in w.shape[2:]] if stride == 1 else 0)
        return ((h - mean) / (variance + 1e-3).sqrt() * scale + shift).clamp(min=0)

    def chain(x, *keys):
        for key in keys:
            x = conv(key, x)
        return x

    if name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        parts = [
            chain(x, "branch1x1"),
            chain(x, "branch5x5_1", "branch5x5_2"),
            chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
            chain(average(x), "branch_pool"),
        ]
    elif name == "Mixed_6a":
        double = conv("branch3x3dbl_3", chain(x, "branch3x3dbl_1", "branch3x3dbl_2"), stride=2)
        parts = [conv("branch3x3", x, stride=2), double, maximum(x, 2)]
    elif name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        parts = [
            chain(x, "branch1x1"),
            chain(x, "branch7x7_1", "branch7x7_2", "branch7x7_3"),
            chain(x, *(f"branch7x7dbl_{i}" for i in range(1, 6))),
            chain(average(x), "branch_pool"),
        ]
    elif name == "Mixed_7a":
        seven = chain(x, "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
        parts = [conv("branch3x3_2", chain(x, "branch3x3_1"), stride=2), conv("branch7x7x3_4", seven, stride=2)]
        parts += [maximum(x, 2)]
    else:
        three, double = chain(x, "branch3x3_1"), chain(x, "branch3x3dbl_1", "branch3x3dbl_2")
        parts = [chain(x, "branch1x1"), chain(three, "branch3x3_2a"), chain(three, "branch3x3_2b")]
        parts += [chain(double, "branch3x3dbl_3a"), chain(double, "branch3x3dbl_3b")]
        parts += [chain(average(x) if name == "Mixed_7b" else maximum(x, 1), "branch_pool")]
    return torch.cat(parts, dim=1)


def test_every_block_has_the_published_shape_at_299(network):
    shapes, hooks = {}, []
    for name in SHAPES:

        def remember(module, inputs, output, name=name):
            shapes[name] = tuple(output.shape)

        hooks.append(getattr(network, name).register_forward_hook(remember))
    output = network(torch.zeros(1, 3, 299, 299))
    for hook in hooks:
        hook.remove()
    assert shapes == {name: (1, *shape) for name, shape in SHAPES.items()}
    assert list(shapes) == list(SHAPES)  # and they run in this order
    assert output.features.shape == (1, 2048) and output.logits.shape == (1, 1008)


def test_parameters_are_the_published_ones(network):
    for name, expected in {**CONVOLUTIONS, **{row[0]: [row] for row in STEM}}.items():
        assert sum(p.numel() for p in getattr(network, name).parameters()) == parameters(expected), name
    # 23 834 568 with the 1000 classes of today's model zoos, without the auxiliary head.
    total = sum(p.numel() for p in network.parameters())
    assert total - 8 * 2049 == 23_834_568
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 94 and all(c.bias is None for c in convolutions)
    assert {norm.eps for norm in norms} == {0.001}


def test_names_are_those_of_the_usual_weights_file(network):
    names = [f"{name}.{conv[0]}" for name, rows in CONVOLUTIONS.items() for conv in rows] + [row[0] for row in STEM]
    parts = ["conv.weight", *(f"bn.{p}" for p in ("weight", "bias", "running_mean", "running_var"))]
    expected = {f"{name}.{part}" for name in names for part in [*parts, "bn.num_batches_tracked"]}
    assert set(network.state_dict()) == expected | {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_block_is_what_its_formula_says(network, name):
    side = 9 if name in ("Mixed_6a", "Mixed_7a") else 6
    x = torch.randn(2, INPUTS[name], side, side + 2, generator=torch.Generator().manual_seed(1))
    expected = block(name, network.state_dict(), x)
    torch.testing.assert_close(getattr(network, name)(x), expected, rtol=1e-4, atol=1e-4)


def test_the_whole_is_stem_blocks_mean_and_an_affine_head(network):
    x = torch.rand(1, 3, 99, 99, generator=torch.Generator().manual_seed(2)) * 2 - 1
    h, weights = x, network.state_dict()
    for name, stride, padding in (
        ("Conv2d_1a_3x3", 2, 0),
        ("Conv2d_2a_3x3", 1, 0),
        ("Conv2d_2b_3x3", 1, 1),
        ("pool", 2, 0),
        ("Conv2d_3b_1x1", 1, 0),
        ("Conv2d_4a_3x3", 1, 0),
        ("pool", 2, 0),
    ):
        if name == "pool":
            h = maximum(h, 2)
            continue
        h = F.conv2d(h, weights[f"{name}.conv.weight"], stride=stride, padding=padding)
        norm = [weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        h = F.batch_norm(h, *norm, eps=1e-3).relu()
    for name in CONVOLUTIONS:
        h = block(name, weights, h)
    features = h.flatten(2).mean(2)
    output = network(x)
    torch.testing.assert_close(output.features, features, rtol=1e-3, atol=1e-4)
    logits = features @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(output.logits, logits, rtol=1e-3, atol=1e-3)
    assert features.std() > 1e-3  # a network that forgets its input would pass as well
    assert torch.equal(network(x, return_dict=False)[1], output.features)


def test_pools_at_the_border_are_those_of_the_graph_of_2015(network):
    """Averages leave the padding out, and only the last block takes the maximum."""
    ones = torch.ones(1, 2048, 5, 5)
    for name, taken in (("Mixed_5b", average), ("Mixed_6c", average), ("Mixed_7b", average), ("Mixed_7c", None)):
        x = ones[:, : INPUTS[name]].clone()
        branch = getattr(network, name).branch_pool
        seen = []
        hook = branch.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        block = getattr(network, name)
        block(x)
        torch.testing.assert_close(seen[0], x)  # a constant stays constant up to the border
        x[:, :, 2, 2] = 10.0
        block(x)
        hook.remove()
        assert seen[1][0, 0, 1, 1] == (pytest.approx(2.0) if taken else 10.0)


def test_what_is_no_picture_for_it_is_refused(network):
    for bad in (torch.zeros(1, 1, 299, 299), torch.zeros(1, 3, 74, 299), torch.zeros(3, 299, 299)):
        with pytest.raises(UsageError, match="299 x 299"):
            network(bad)


def test_documented_examples_run():
    result = doctest.testmod(latentia.models.inception)
    assert result.attempted > 0 and result.failed == 0
