"""Group norm in the precision of its input, as accelerators run it."""

import pytest
import torch
from torch import nn

from latentia import UNet2D
from latentia.models.layers.norm import GroupNorm, group_norm


def both(dtype, x):
    torch.manual_seed(0)
    plain, ours = (nn.GroupNorm(2, 8), GroupNorm(2, 8))
    nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    ours.load_state_dict(plain.state_dict())
    return plain.to(dtype)(x), group_norm(x, 2, ours.weight, ours.bias, ours.eps)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
def test_it_is_torchs_group_norm(dtype, tolerance, layout):
    x = torch.randn(3, 8, 4, 6, dtype=dtype).to(memory_format=layout)
    plain, ours = both(dtype, x)
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    assert ours.dtype == dtype


def test_autocast_leaves_the_precision_of_the_input():
    """torch's own is in autocast's list of float32 on GPUs; here the input would be cast, and the output cast back."""
    norm = GroupNorm(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        x = nn.Conv2d(8, 8, 1)(torch.randn(2, 8, 4, 4))
        out = group_norm(x, 2, norm.weight, norm.bias)
    assert x.dtype == out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert norm.weight.grad.dtype == torch.float32 and norm.bias.grad.eq(32).all()


def test_gradients_twice():
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: group_norm(a[0], 2, a[1], a[2]), (x, weight, bias))
    assert torch.autograd.gradgradcheck(lambda *a: group_norm(a[0], 2, a[1], a[2]), (x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_norm_of_a_unet_leaves_the_precision_elsewhere(dtype):
    """`meta` stands for an accelerator."""
    with torch.device("meta"):
        unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(8, 32), num_class_embeds=3).to(dtype)
        seen = []
        for module in unet.modules():
            if isinstance(module, GroupNorm):
                module.register_forward_hook(lambda module, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
        out = unet(torch.zeros(2, 1, 8, 8, dtype=dtype), torch.zeros(2, dtype=torch.int64)).sample
    assert out.dtype == dtype and len(seen) > 10 and {*seen} == {(dtype, dtype)}


def test_the_network_is_the_same_either_way(monkeypatch):
    """Within the precision of float32, so that weights that were trained before serve as they are."""
    torch.manual_seed(0)
    unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(8, 32), attention_head_dim=8).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
        before = unet(x, t).sample
        here = lambda self, x: group_norm(x, self.num_groups, self.weight, self.bias, self.eps)  # noqa: E731
        monkeypatch.setattr(GroupNorm, "forward", here)
        torch.testing.assert_close(unet(x, t).sample, before, rtol=1e-5, atol=1e-6)
