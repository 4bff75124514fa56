"""The two halves of a transformer layer give what autograd gives, and step aside for adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lerobot_policy_razor.modeling_razor import Block, ValueHead

DIM, HEADS, HIDDEN = 16, 4, 24


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = Block(DIM, HEADS, HIDDEN)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


@pytest.fixture
def tokens():
    return torch.randn(5, 7, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    mask = torch.rand(5, 1, 1, 7, generator=torch.Generator().manual_seed(2)) > 0.3
    mask[..., -3:] = True
    return mask


def gradients(block, tokens, mask, last):
    """Return the output, and the gradients of the tokens and of all parameters."""
    tokens = tokens.clone().requires_grad_()
    block.zero_grad()
    output = block(tokens, mask, last)
    (output * torch.linspace(-1, 1, DIM)).square().sum().backward()
    return [output.detach(), tokens.grad, *(p.grad.clone() for p in block.parameters())]


@pytest.mark.parametrize("last", [None, 3])
def test_outputs_and_gradients_are_those_of_autograd(block, tokens, mask, last, monkeypatch):
    fused = gradients(block, tokens, mask, last)
    assert block(tokens, mask, last).grad_fn.name() == "_FeedForwardBackward"
    monkeypatch.setattr(block, "_is_plain", lambda tokens: False)
    for got, wanted in zip(fused, gradients(block, tokens, mask, last), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_token_that_may_not_be_read_changes_nothing(block, tokens, mask):
    mask[:, :, :, 0] = False
    other = tokens.clone()
    other[:, 0] += 5.0
    assert torch.equal(block(tokens, mask, 3), block(other, mask, 3))
    mask[:, :, :, 0] = True
    assert not torch.equal(block(tokens, mask, 3), block(other, mask, 3))


def test_the_gradient_is_right_in_double_precision(block, tokens, mask):
    block, tokens = block.double(), tokens[:2, :4].double().requires_grad_()
    mask = mask[:2, ..., -4:]
    norm1, qkv, out, norm2, wide, narrow = block.affine()
    from lerobot_policy_razor.sublayers import feed_forward, self_attention

    for first in (0, 1):

        def attention(x, first=first):
            return self_attention(x, mask, norm1, qkv, out, HEADS, first)

        assert torch.autograd.gradcheck(attention, (tokens,))
    assert torch.autograd.gradcheck(lambda x: feed_forward(x, norm2, wide, narrow), (tokens,))


class Doubled(nn.Linear):
    """A layer that an adapter has changed."""

    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize("name", ["qkv", "out"])
def test_a_changed_layer_is_called(block, tokens, mask, name):
    before = block(tokens, mask)
    getattr(block, name).__class__ = Doubled
    assert not torch.allclose(block(tokens, mask), before)


def test_hooks_of_the_layers_are_called(block, tokens, mask):
    seen = []
    handles = [
        layer.register_forward_hook(lambda *_: seen.append(1))
        for layer in (block.qkv, block.out, block.mlp[0], block.mlp[2])
    ]
    block(tokens, mask)
    assert len(seen) == 4
    for handle in handles:
        handle.remove()
    block(tokens, mask)
    assert len(seen) == 4


def test_half_precision_is_rounded_like_autograd(block, tokens, mask):
    with torch.autocast("cpu", torch.bfloat16):
        half = block(tokens, mask)
    torch.testing.assert_close(half.float(), block(tokens, mask), rtol=0.05, atol=0.3)
    assert not torch.equal(half.float(), block(tokens, mask))


def test_the_value_head_reads_keys_and_values_of_every_token(tokens, mask):
    torch.manual_seed(3)
    head = ValueHead(DIM, HEADS, HIDDEN)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    key, value = (
        part.unflatten(-1, (HEADS, -1)) for part in head.key_value(head.norm(tokens)).chunk(2, -1)
    )
    scores = (key * head.query.view(HEADS, -1)).sum(-1) * (DIM // HEADS) ** -0.5
    scores = scores.masked_fill(~mask[:, 0, 0, :, None], float("-inf"))
    attended = (torch.softmax(scores, 1)[..., None] * value).sum(1).flatten(1)
    wanted = (head.mlp(attended) * head.weight).sum(-1) + head.bias
    torch.testing.assert_close(head(tokens, mask), wanted)
