"""The Llama architecture in plain torch, for training only, with a head start for copying.

Parameter names equal those of transformers' `LlamaForCausalLM`, so the weights are exported as they
are. Looking a value up in a context needs two cooperating attention layers (an induction circuit),
which tiny models find late or never; the first two layers therefore start as a rough one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

THETA = 500_000.0
HEAD = 32
_CONTENT = [*range(6, 16), *range(22, 32)]
# Slow rotary dimensions: there a match hardly depends on the distance.


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a model: layers, width, width of the feed-forward part, vocabulary."""

    layers: int
    width: int
    inner: int
    vocabulary: int = 2048


class _Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(size.width, size.width))


class _Mlp(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.width, size.inner, bias=False)
        self.up_proj = nn.Linear(size.width, size.inner, bias=False)
        self.down_proj = nn.Linear(size.inner, size.width, bias=False)


class _Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = _Attention(size)
        self.mlp = _Mlp(size)
        self.input_layernorm = nn.RMSNorm(size.width, eps=1e-6)
        self.post_attention_layernorm = nn.RMSNorm(size.width, eps=1e-6)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, d = x.shape
        a = self.self_attn
        h = self.input_layernorm(x)
        w = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
        qkv = F.linear(h, w, torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]))
        q, k, v = qkv.view(b, t, 3, d // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + a.o_proj(y.transpose(1, 2).reshape(b, t, d))
        h = self.post_attention_layernorm(x)
        m = self.mlp
        gate, up = F.linear(h, torch.cat([m.gate_proj.weight, m.up_proj.weight])).chunk(2, -1)
        return x + m.down_proj(F.silu(gate) * up)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


class _Body(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(_Layer(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width, eps=1e-6)


class Model(nn.Module):
    """A Llama with biases in its attention and tied embeddings."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.model = _Body(size)
        frequency = THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
        angle = torch.outer(torch.arange(2048), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self._start()

    def forward(self, ids: Tensor, at: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Return logits at the flat positions `at` only: the rest needs no output layer.

        Args:
            ids: Token ids. Shape (batch, time).
            at: Indices into the flattened (batch * time) positions.
            dtype: Of the activations.
        """
        t = ids.shape[1]
        cos, sin = self.cos[:t].to(dtype), self.sin[:t].to(dtype)
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        x = self.model.norm(x.flatten(0, 1)[at])
        return F.linear(x, self.model.embed_tokens.weight)

    @torch.no_grad()
    def _start(self) -> None:
        size, body = self.size, self.model
        std = 1 / math.sqrt(size.width)
        body.embed_tokens.weight.normal_(0, std)
        for layer in body.layers:
            for name, parameter in layer.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif "norm" not in name:
                    parameter.normal_(0, 0.7 * std)
                    if "o_proj" in name or "down_proj" in name:
                        parameter.mul_(1 / math.sqrt(2 * size.layers))
        _head_start(body.layers[0].self_attn, body.layers[1].self_attn, size.width, std)


def _head_start(first: Any, second: Any, width: int, std: float) -> None:
    """Make heads of the first layer look 1, 2, ... tokens back, and heads of the second match.

    A head of the second layer then attends where what stood before resembles what stands before
    the current token, and copies what came next there: a rough induction circuit.
    """
    heads = width // HEAD
    offsets = [1, 2, 4] if heads == 3 else [1, 2, 3, 4, 5][: max(1, heads - 1)]
    basis = torch.linalg.qr(torch.randn(width, width))[0]
    read = torch.linalg.qr(torch.randn(width, HEAD))[0].T
    slots = {o: basis[:, i * HEAD : (i + 1) * HEAD] for i, o in enumerate(offsets)}
    frequency = THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
    for i, offset in enumerate(offsets):
        rows = slice(i * HEAD, (i + 1) * HEAD)
        amplitude = 6.5 * (torch.arange(16) < 4)
        # A constant query and key: the rotation alone makes the score peak at the offset.
        first.q_proj.bias[rows] = torch.cat(
            [amplitude * (offset * frequency).cos(), -amplitude * (offset * frequency).sin()]
        )
        first.k_proj.bias[rows] = torch.cat([amplitude, torch.zeros(16)])
        first.q_proj.weight[rows] *= 0.3
        first.k_proj.weight[rows] *= 0.3
        first.v_proj.weight[rows] = read
        first.o_proj.weight[:, rows] = slots[offset] * std
    near = [o for o in offsets if o + 1 in slots]
    for h in range(max(2, heads * 2 // 3)):
        rows = slice(h * HEAD, (h + 1) * HEAD)
        q, k = torch.zeros(HEAD, width), torch.zeros(HEAD, width)
        gain = 3.0
        q[_CONTENT] += gain * read[_CONTENT]
        k[_CONTENT] += gain * (slots[1].T)[_CONTENT]
        if h % 2 and near:
            turn = torch.linalg.qr(torch.randn(20, 20))[0]
            o = near[(h // 2) % len(near)]
            q[_CONTENT] += gain * turn @ (slots[o].T)[_CONTENT]
            k[_CONTENT] += gain * turn @ (slots[o + 1].T)[_CONTENT]
        second.q_proj.weight[rows], second.k_proj.weight[rows] = q, k
        part = torch.eye(width)[rows]
        second.v_proj.weight[rows] = part
        second.o_proj.weight[:, rows] = part.T * std


def export(model: Model, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the weights as a Hugging Face folder.

    Args:
        model: The trained model.
        folder: Where config, generation config and weights go.
        dtype: Of the stored weights.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    size = model.size
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // HEAD,
        num_key_value_heads=size.width // HEAD,
        head_dim=HEAD,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        attention_bias=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        dtype=dtype,
    )
    made = LlamaForCausalLM(config).to(dtype)
    weights = {name: value.to(dtype) for name, value in model.state_dict().items()}
    missing = made.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys in ([], ["lm_head.weight"])
    made.tie_weights()
    made.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, do_sample=False)
    made.save_pretrained(folder)


def describe(size: Size) -> dict[str, int]:
    """The size as plain data, for checkpoints."""
    return asdict(size)
