"""Parts that two or more architectures use verbatim.

Letters in shapes: B batch, T new tokens, S visible tokens, D width, H heads, K width of a key, W width of a value.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scratchlm.model import KV, Recordable


class LayerNorm(nn.Module):
    """Layer normalisation: y = (x - mean) / sqrt(variance + 1e-5) * weight + bias.

    Paper: Ba et al. 2016, equation 4; the variance is the biased one and epsilon stands inside the root.
    """

    def __init__(self, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., D) -> (..., D)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


def future_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """True where a query may not look: the queries are the last of the keys' positions. Shapes: (T, S) bool."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)


def attention_weights(query: Tensor, keys: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(K)), each query seeing the keys up to its own position.

    Shapes: query (B, H, T, K), keys (B, H, S, K), S >= T -> (B, H, T, S).
    Paper: Vaswani et al. 2017, equation 1, with the mask of section 3.2.3.
    """
    scores = query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    scores = scores.masked_fill(future_mask(query.shape[2], keys.shape[2], scores.device), -math.inf)
    return scores.softmax(-1)


def fused_attention(query: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
    """The same attention applied to the values, in one kernel that never forms the weights.

    Shapes: query (B, H, T, K), keys (B, H, S, K), values (B, H, S, W), S >= T -> (B, H, T, W).
    """
    if query.dtype == torch.bfloat16 and query.is_cpu and query.requires_grad:  # whose kernel goes back slowly
        return F.dropout(attention_weights(query, keys), dropout) @ values
    if query.shape[2] == keys.shape[2]:
        return F.scaled_dot_product_attention(query, keys, values, dropout_p=dropout, is_causal=True)
    # is_causal aligns the mask at the first key, so a later chunk needs its own; a single query sees everything
    mask = None if query.shape[2] == 1 else ~future_mask(query.shape[2], keys.shape[2], query.device)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, dropout_p=dropout)


class CausalSelfAttention(Recordable):
    """Multi-head attention of each position over itself and those before it.

    MultiHead(x) = concat(head_1 .. head_H) W_O, head_i = softmax(q_i k_i^T / sqrt(K)) v_i, with [q; k; v] = W x + b.
    Paper: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(self, dim: int, heads: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (B, T, D) -> query, keys, values (B, H, T, K)."""
        batch, new, dim = x.shape
        heads = self.query_key_value(x).view(batch, new, 3, self.heads, dim // self.heads)
        query, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, K)
        return query, keys, values

    def memory(self, x: Tensor, capacity: int | None) -> KV:
        """The memory of nothing, on the device and in the dtype that keys have. Shapes: (B, 0, D)."""
        _, keys, values = self.project(x)
        return KV.empty(keys, values, capacity)

    def forward(self, x: Tensor, memory: KV | None = None, at: int = 0) -> tuple[Tensor, KV | None]:
        """Shapes: (B, T, D) -> (B, T, D). `at`: tokens already in the memory."""
        query, keys, values = self.project(x)
        if memory is not None:
            keys, values, memory = memory.append(keys, values, at)
        dropout = self.dropout if self.training else 0.0
        if self.listener is None:
            heads = fused_attention(query, keys, values, dropout)  # (B, H, T, K)
        else:
            weights = attention_weights(query, keys)  # (B, H, T, S)
            self.listener("weights", weights)
            heads = F.dropout(weights, dropout) @ values
        return self.output(heads.transpose(1, 2).flatten(2)), memory
