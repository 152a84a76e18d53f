"""The model in PyTorch: the same arithmetic as llama.cpp's for `general.architecture` = `llama`."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .recipe import Shape

_UNDRAWN = "meta"
"""Device on which layers are created, so that PyTorch draws no weights from its global generator. Ours follow later."""


class Llama(nn.Module):
    """A llama model from tokens to logits. The embedding is also the output matrix."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, shape: Shape, *, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width, device=_UNDRAWN).to_empty(device="cpu")
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        cosines, sines = _rotations(shape)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        self._draw_weights(torch.Generator().manual_seed(seed))

    def forward(self, ids: Tensor) -> Tensor:
        """Compute logits (rows, tokens, vocabulary) for `ids` (rows, tokens)."""
        hidden = self.token_embd(ids)
        for block in self.blk:
            hidden = block(hidden, self.cosines, self.sines)
        return functional.linear(self.output_norm(hidden), self.token_embd.weight)

    def _draw_weights(self, dice: torch.Generator) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() < 2:
                continue  # Norms start at one.
            # Matrices that write to the residual stream start smaller, so that its size does not grow with depth.
            added = name.endswith(("attn_output.weight", "ffn_down.weight"))
            deviation = 0.02 / math.sqrt(2 * self.shape.layers) if added else 0.02
            nn.init.normal_(weight, std=deviation, generator=dice)


class Block(nn.Module):
    """Attention, then a gated feed-forward. Both read the normed stream and add to it. Names are as in GGUF."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attn_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.attn_q = _matrix(shape.width, shape.width)
        self.attn_k = _matrix(shape.width, shape.kv_width)
        self.attn_v = _matrix(shape.width, shape.kv_width)
        self.attn_output = _matrix(shape.width, shape.width)
        self.ffn_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.ffn_gate = _matrix(shape.width, shape.feed_forward)
        self.ffn_up = _matrix(shape.width, shape.feed_forward)
        self.ffn_down = _matrix(shape.feed_forward, shape.width)

    def forward(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        hidden = hidden + self._attend(self.attn_norm(hidden), cosines, sines)
        normed = self.ffn_norm(hidden)
        fed: Tensor = self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed))
        return hidden + fed

    def _attend(self, normed: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        queries = _rotate(self._heads(self.attn_q(normed)), cosines, sines)
        keys = _rotate(self._heads(self.attn_k(normed)), cosines, sines)
        values = self._heads(self.attn_v(normed))
        shared_by = self.shape.heads // self.shape.kv_heads
        keys, values = keys.repeat_interleave(shared_by, 1), values.repeat_interleave(shared_by, 1)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        gathered: Tensor = self.attn_output(seen.transpose(1, 2).flatten(-2))
        return gathered

    def _heads(self, projected: Tensor) -> Tensor:
        # (rows, tokens, heads * head width) → (rows, heads, tokens, head width)
        return projected.view(*projected.shape[:-1], -1, self.shape.head_width).transpose(1, 2)


def _matrix(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, device=_UNDRAWN).to_empty(device="cpu")


def _rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    pairs = torch.arange(0, shape.head_width, 2).float() / shape.head_width
    angles = torch.outer(torch.arange(shape.context).float(), shape.rope_base**-pairs)
    return angles.cos(), angles.sin()


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    # Neighbours form a pair, as llama.cpp expects of this architecture; Hugging Face pairs halves instead.
    pairs = heads.reshape(*heads.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    cosines, sines = cosines[: heads.shape[-2]], sines[: heads.shape[-2]]
    return torch.stack((first * cosines - second * sines, first * sines + second * cosines), -1).flatten(-2)
