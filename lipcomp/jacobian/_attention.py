"""Attention as a function whose derivatives cost four matrix products in either direction, twice the forward pass.

With the scores S = s q kᵀ, P = softmax(S), o = P v and the softmax's (symmetric) differential
D(p) = P ∘ (p - rowsum(P ∘ p)):

    differential   t -> D(s (t_q kᵀ + q t_kᵀ)) v + P t_v
    transpose      g -> s D(g vᵀ) k,   s D(g vᵀ)ᵀ q,   Pᵀ g

Recording the math kernel instead keeps every intermediate and runs twice as many products over badly laid out operands.
Masks, causal attention and grouped queries go to the math kernel.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The replacement of :func:`torch.nn.functional.scaled_dot_product_attention`."""
    if dropout_p > 0:
        raise ValueError(
            f"fn is in training mode: its attention applies dropout with p = {dropout_p}, so it is not deterministic; "
            f"call .eval() on the encoder first"
        )
    plain = attn_mask is None and not is_causal and query.dim() == 4
    if not plain or not query.shape == key.shape == value.shape:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(torch.stack([query, key, value]), scale)


class _Attention(torch.autograd.Function):
    """Attention of (3, batch, heads, tokens, channels), packed; its derivative is :class:`_Transposed`."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, scale: float) -> Tensor:
        parts = packed.contiguous().flatten(1, 2)
        q, k, v = parts
        weights = torch.softmax(torch.baddbmm(_none(q), q, k.mT, beta=0, alpha=scale), -1).to(q.dtype)
        ctx.save_for_backward(parts, weights)
        ctx.scale, ctx.heads = scale, packed.shape[2]
        mixed = torch.empty_like(packed[2], memory_format=torch.contiguous_format)
        torch.bmm(weights, v, out=mixed.flatten(0, 1))  # not a view, so that what follows may work in place
        return mixed

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return _Transposed.apply(cotangents[0], *ctx.saved_tensors, ctx.scale), None


class _Transposed(torch.autograd.Function):
    """The transpose of attention's differential at a point; its derivative is the differential."""

    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, parts: Tensor, weights: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(parts, weights)
        ctx.scale, ctx.heads = scale, cotangent.shape[1]
        q, k, v = parts
        cotangent = cotangent.contiguous().flatten(0, 1)
        scores = _softmax_differential(torch.bmm(cotangent, v.mT), weights)
        pulled = torch.empty_like(parts)
        torch.baddbmm(_none(q), scores, k, beta=0, alpha=scale, out=pulled[0])
        torch.baddbmm(_none(q), scores.mT, q, beta=0, alpha=scale, out=pulled[1])
        torch.bmm(weights.mT, cotangent, out=pulled[2])
        return pulled.unflatten(1, (-1, ctx.heads))

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> Any:
        parts, weights = ctx.saved_tensors
        (q, k, v), (at_q, at_k, at_v) = parts, tangents[0].contiguous().flatten(1, 2)
        scores = torch.baddbmm(_none(q), at_q, k.mT, beta=0, alpha=ctx.scale).baddbmm_(
            q, at_k.mT, alpha=ctx.scale
        )
        mixed = torch.bmm(weights, at_v).baddbmm_(_softmax_differential(scores, weights), v)
        return mixed.unflatten(0, (-1, ctx.heads)), None, None, None


def _none(like: Tensor) -> Tensor:
    """The summand of a product that has none (beta = 0)."""
    return like.new_empty(1, 1, 1)


def _softmax_differential(tangent: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.aten._softmax_backward_data(tangent, weights, -1, weights.dtype)


def multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    """The replacement of :func:`torch.nn.functional.multi_head_attention_forward`, for self-attention without masks.

    Anything else goes to PyTorch's own, whose attention is the math kernel.
    """
    call = dict(zip(NAMES, args, strict=False)) | kwargs
    query, weight = call["query"], call["in_proj_weight"]
    usual = (
        query is call["key"] is call["value"]
        and query.dim() == 3
        and weight is not None
        and not call.get("need_weights", True)
        and not call.get("add_zero_attn")
        and not call.get("is_causal")
        and not call.get("use_separate_proj_weight")
        and all(
            call.get(name) is None
            for name in ("attn_mask", "key_padding_mask", "bias_k", "static_k", "static_v")
        )
        and not (call.get("training", True) and call["dropout_p"] > 0)
    )
    if not usual:
        return F.multi_head_attention_forward(*args, **kwargs)
    tokens = query.transpose(0, 1)  # (batch, tokens, channels): mostly as it was made
    packed = F.linear(tokens, weight, call["in_proj_bias"]).unflatten(2, (3, call["num_heads"], -1))
    packed = packed.permute(2, 0, 3, 1, 4)
    mixed = _Attention.apply(packed, packed.shape[-1] ** -0.5).transpose(1, 2).flatten(2)
    return F.linear(mixed, call["out_proj_weight"], call["out_proj_bias"]).transpose(0, 1), None


NAMES = (
    "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
    "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask", "need_weights",
    "attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "static_k", "static_v",
    "average_attn_weights", "is_causal",
)  # fmt: skip
