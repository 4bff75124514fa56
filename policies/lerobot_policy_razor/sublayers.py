"""The two halves of a pre-norm transformer layer, each with its gradient as one function.

Autograd would run them operator by operator, write every intermediate result into fresh memory and
read it again. On a CPU that takes a third of a gradient step. Here products add to what is there,
gradients are written where the next product reads them, and what is cheap is computed twice rather
than kept. Attention is plain batched products: torch's kernel for the CPU is made for longer
sequences than some twenty tokens.

The results are autograd's, up to rounding.

Axis letters: B batch, N tokens, Q tokens that are updated (the last ones), R = B N rows, D width,
F width between the two linear layers of the second half, h heads, d = D / h.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-5
"""Added to the variance in a layer normalisation; torch's default."""

Affine = tuple[Tensor, Tensor]
"""Weight and bias of a layer."""


def self_attention(
    tokens: Tensor,
    mask: Tensor,
    norm: Affine,
    qkv: Affine,
    out: Affine,
    heads: int,
    first: int = 0,
) -> Tensor:
    """Return x + out(attention(norm(x))) of the tokens from number `first` on, [B, Q, D].

    Args:
        tokens: x [B, N, D].
        mask: bool [B, 1, 1, N], True where a token may be read.
        norm: Layer normalisation, [D] and [D].
        qkv: Linear layer that makes queries, keys and values, [3D, D] and [3D].
        out: Linear layer after attention, [D, D] and [D].
        heads: h, which divides D.
        first: Number of the first token that is updated.
    """
    result: Tensor = _SelfAttention.apply(tokens, mask, *norm, *qkv, *out, heads, first)
    return result


def feed_forward(tokens: Tensor, norm: Affine, wide: Affine, narrow: Affine) -> Tensor:
    """Return x + narrow(gelu(wide(norm(x)))), [..., D].

    Args:
        tokens: x [..., D].
        norm: Layer normalisation, [D] and [D].
        wide: First linear layer, [F, D] and [F].
        narrow: Second linear layer, [D, F] and [D].
    """
    result: Tensor = _FeedForward.apply(tokens, *norm, *wide, *narrow)
    return result


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, *weights: Tensor) -> Tensor:
        gain, offset, wide, wide_bias, narrow, narrow_bias = weights
        x = tokens.reshape(-1, tokens.shape[-1])
        normal, mean, rstd = _normalise(x, gain, offset)
        hidden = torch.addmm(wide_bias, normal, wide.T)
        result = (x + narrow_bias).addmm_(F.gelu(hidden), narrow.T)
        ctx.save_for_backward(x, mean, rstd, hidden, gain, offset, wide, narrow)
        return result.view(tokens.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, hidden, gain, offset, wide, narrow = ctx.saved_tensors
        of_result = gradients[0].reshape(x.shape)
        of_narrow = of_result.T @ F.gelu(hidden)
        of_hidden = _gelu_backward(of_result @ narrow, hidden)
        of_wide = of_hidden.T @ _normalise(x, gain, offset)[0]
        of_x, of_gain, of_offset = _normalise_backward(
            of_hidden @ wide, x, mean, rstd, gain, offset
        )
        return (
            of_x.add_(of_result).view(gradients[0].shape),
            of_gain,
            of_offset,
            of_wide,
            of_hidden.sum(0),
            of_narrow,
            of_result.sum(0),
        )


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        mask: Tensor,
        gain: Tensor,
        offset: Tensor,
        qkv: Tensor,
        qkv_bias: Tensor,
        out: Tensor,
        out_bias: Tensor,
        heads: int,
        first: int,
    ) -> Tensor:
        batch, length, width = tokens.shape
        x = tokens.reshape(-1, width)
        normal, mean, rstd = _normalise(x, gain, offset)
        joined = torch.addmm(qkv_bias, normal, qkv.T).view(batch, length, 3, heads, -1)
        parts = joined.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, length, -1)
        q, k, v = parts[0, :, first:], parts[1], parts[2]
        hidden = tokens.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
        hidden = hidden.expand(batch, heads, 1, length).reshape(-1, 1, length)
        scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=k.shape[-1] ** -0.5)
        weights = torch.softmax(scores, -1)
        read = _rows(torch.bmm(weights, v), heads)
        result = (tokens[:, first:] + out_bias).view(-1, width).addmm_(read, out.T)
        ctx.save_for_backward(x, mean, rstd, parts, weights, read, gain, offset, qkv, out)
        ctx.heads, ctx.first = heads, first
        return result.view(batch, -1, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, parts, weights, read, gain, offset, qkv, out = ctx.saved_tensors
        heads, first = ctx.heads, ctx.first
        batch, _, width = gradients[0].shape
        length, size = parts.shape[2:]
        q, k, v = parts[0, :, first:], parts[1], parts[2]
        of_result = gradients[0].reshape(-1, width)
        of_out = of_result.T @ read
        of_read = _heads(of_result @ out, length - first, heads)
        of_parts = torch.empty_like(parts)
        torch.bmm(weights.transpose(1, 2), of_read, out=of_parts[2])
        of_weights = torch.bmm(of_read, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_scores *= size**-0.5
        torch.bmm(of_scores.transpose(1, 2), q, out=of_parts[1])
        if first:
            of_parts[0, :, :first] = 0.0
            of_parts[0, :, first:] = torch.bmm(of_scores, k)
        else:
            torch.bmm(of_scores, k, out=of_parts[0])
        of_joined = of_parts.view(3, batch, heads, length, size).permute(1, 3, 0, 2, 4)
        of_joined = of_joined.reshape(-1, 3 * width)
        of_qkv = of_joined.T @ _normalise(x, gain, offset)[0]
        of_x, of_gain, of_offset = _normalise_backward(of_joined @ qkv, x, mean, rstd, gain, offset)
        of_tokens = of_x.view(batch, length, width)
        of_tokens[:, first:] += gradients[0]
        return (
            of_tokens,
            None,
            of_gain,
            of_offset,
            of_qkv,
            of_joined.sum(0),
            of_out,
            of_result.sum(0),
            None,
            None,
        )


def _normalise(x: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised rows, and the mean and the inverse deviation of each."""
    return torch.native_layer_norm(x, x.shape[-1:], gain, offset, EPSILON)


def _normalise_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gain: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        gradient, x, x.shape[-1:], mean, rstd, gain, offset, (True, True, True)
    )
    return result


def _gelu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of x, in the memory of the result's gradient."""
    result: Tensor = torch.ops.aten.gelu_backward.grad_input(gradient, x, grad_input=gradient)
    return result


def _rows(tokens: Tensor, heads: int) -> Tensor:
    """Return tokens [B h, N, d] as rows [B N, D]."""
    length, size = tokens.shape[1:]
    return tokens.view(-1, heads, length, size).transpose(1, 2).reshape(-1, heads * size)


def _heads(rows: Tensor, length: int, heads: int) -> Tensor:
    """Return rows [B N, D] as tokens [B h, N, d]."""
    size = rows.shape[-1] // heads
    return rows.view(-1, length, heads, size).transpose(1, 2).reshape(-1, length, size)
