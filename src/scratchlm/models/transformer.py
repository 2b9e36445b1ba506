"""The Transformer: an encoder reads a source, a decoder writes a target while it looks at all of the source.

Paper: Vaswani et al. 2017, "Attention Is All You Need", where only equations 1 to 3 have numbers.

    paper                                                       here
    softmax(Q K^T / sqrt(d_k)) V               (1)              source_weights, @ values; layers.attention_weights
    MultiHead = Concat(head_1 .. head_h) W^O   (3.2.2)          SourceAttention, KeysValues; layers.CausalSelfAttention
    max(0, x W_1 + b_1) W_2 + b_2              (2)              FeedForward
    LayerNorm(x + Sublayer(x))                 (3.1)            EncoderBlock.forward, Block.forward, norm "post"
    PE(p, 2i), PE(p, 2i + 1) = sin, cos(p w_i) (3.5)            sinusoids; w_i = 10000^(-2i / d_model)
    embedding * sqrt(d_model), one for all     (3.4)            Transformer.embed, Transformer.readout
    learning rate                              (3)              the presets' schedule "noam"
    dropout of sub-layers and embeddings       (5.4)            dropout, embedding_dropout

Departures: the linear maps of attention have biases, as in later implementations; `bias=False` is the paper's equation.
The decoder starts with the token that ends a text, in place of a start symbol. The norm "pre", attention and hidden
dropout are later variants, off by default. "pre" ends each stack with one more norm, as nothing else normalises it.
A mask is true where attention is blocked. A query that may see nothing, since its source is empty, gets zeros.

What is sharded piece by piece lies in two lists: `encoder` holds the encoder's blocks, `blocks` the decoder's. The keys
and values of cross-attention are made once a source, so their maps are modules of their own in `source_memories`.

Letters in shapes: B batch, R source rows, T new tokens, S source tokens, D dim, H heads, K head width, V vocabulary.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from scratchlm.layers import CausalSelfAttention, LayerNorm
from scratchlm.model import KV, LanguageModel, Recordable, Source, State


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape of a Transformer. Defaults: the paper's base model.

    Attributes:
        vocab_size: Tokens in the vocabulary that source and target share (V).
        context: Target tokens that it can read.
        source_context: Source tokens that it can read.
        dim: Width of the residual stream (d_model).
        depth: Blocks of the encoder, and as many of the decoder (N).
        heads: Attention heads in a block (h).
        hidden_dim: Width inside of the feed-forward layer (d_ff).
        norm: post normalises after each sum, as the paper; pre before each sub-layer and at the end of each stack.
        dropout: Share of a sub-layer's outputs set to zero in training (P_drop).
        embedding_dropout: The same for the sums of embedding and position (P_drop).
        attention_dropout: The same for attention weights.
        hidden_dropout: The same inside of the feed-forward layer.
        bias: Biases in the linear maps of attention.
    """

    vocab_size: int
    context: int = 256
    source_context: int = 256
    dim: int = 512
    depth: int = 6
    heads: int = 8
    hidden_dim: int = 2048
    norm: Literal["post", "pre"] = "post"
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "source_context", "dim", "depth", "heads", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.norm not in ("post", "pre"):
            raise ValueError(f"norm is {self.norm!r}; it must be 'post' or 'pre'")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be shared by {self.heads} heads; make dim a multiple of heads")
        for name in ("dropout", "embedding_dropout", "attention_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")

    @classmethod
    def tiny(cls) -> "TransformerConfig":
        """A model that tests run in milliseconds."""
        shape = {"dim": 16, "depth": 2, "heads": 2, "hidden_dim": 24}
        return cls(vocab_size=23, context=24, source_context=9, dropout=0.0, embedding_dropout=0.0, **shape)

    @classmethod
    def sized(cls, parameters: int, vocab_size: int, context: int = 256) -> "TransformerConfig":
        """The shape with hidden_dim nearest to 4 * dim among those within 2 % of `parameters`, dim / depth as in base.

        Both contexts are `context`, heads are 16 to 64 wide.
        Raises ValueError, naming the nearest count, where there is none.
        """
        shapes: list[TransformerConfig] = []
        for dim in range(16, 4097, 16):
            shape = {"dim": dim, "depth": max(1, round(dim * 6 / 512)), "heads": dim // math.gcd(dim, 64)}
            least = cls(vocab_size=vocab_size, context=context, source_context=context, hidden_dim=1, **shape)
            missing = (parameters - least.parameters) / (least.depth * 2 * (2 * dim + 1))
            shapes.append(replace(least, hidden_dim=max(1, 1 + round(missing))))
        fitting = [shape for shape in shapes if abs(shape.parameters - parameters) <= 0.02 * parameters]
        if not fitting:
            nearest = min(shapes, key=lambda shape: abs(shape.parameters - parameters))
            wanted = f"no Transformer with vocabulary {vocab_size} has {parameters:,} parameters within 2 %"
            raise ValueError(f"{wanted}; the nearest has {nearest.parameters:,}")
        return min(fitting, key=lambda shape: abs(math.log(shape.hidden_dim / shape.dim / 4)))

    @property
    def parameters(self) -> int:
        """Parameters, the embedding that three places share counted once."""
        d, hidden = self.dim, self.hidden_dim
        attention = 4 * d * d + self.bias * 4 * d
        feed_forward = 2 * d * hidden + hidden + d
        block_pair = 3 * attention + 2 * feed_forward + 5 * 2 * d
        return self.vocab_size * d + self.depth * block_pair + (self.norm == "pre") * 2 * 2 * d


def sinusoids(positions: int, dim: int) -> Tensor:
    """Sines and cosines of each position, interleaved, in wavelengths from 2 pi to 10000 * 2 pi tokens.

    Shapes: (positions, D) in float64. Paper: section 3.5.
    """
    pairs = torch.arange(0, dim, 2, dtype=torch.float64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * 10000 ** (-pairs / dim)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim]  # an odd width lacks the last cosine


def source_weights(query: Tensor, keys: Tensor, blocked: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(K)) over the source slots that are not blocked; zeros where all are.

    Shapes: query (B, H, T, K), keys (B, H, S, K), blocked (B, S) bool -> (B, H, T, S).
    Paper: equation 1.
    """
    scores = query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    blocked = blocked[:, None, None]
    # the lowest number and not -inf, since a row of nothing else would be NaN on its way
    weights = scores.masked_fill(blocked, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(blocked, 0.0)


class KeysValues(nn.Module):
    """What an attention may look at: [k_i; v_i] = W x + b for each head i."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.key_value = nn.Linear(config.dim, 2 * config.dim, bias=config.bias)

    def forward(self, x: Tensor) -> KV:
        """Shapes: (B, S, D) -> keys, values (B, H, S, K)."""
        keys, values = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return KV(keys, values)


class SourceAttention(Recordable):
    """Multi-head attention over a whole source, which knows no order: the encoder's of itself, and cross-attention.

    MultiHead(x) = concat(head_1 .. head_H) W_O, head_i = softmax(q_i k_i^T / sqrt(K)) v_i.
    Paper: section 3.2.2.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.query = nn.Linear(config.dim, config.dim, bias=config.bias)
        self.output = nn.Linear(config.dim, config.dim, bias=config.bias)

    def forward(self, x: Tensor, source: KV, blocked: Tensor) -> Tensor:
        """Shapes: x (B, T, D), source of (B, H, S, K), blocked (B, S) bool -> (B, T, D)."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, K)
        dropout = self.dropout if self.training else 0.0
        if self.listener is None:
            seen = ~blocked[:, None, None]  # that function's masks are true where attention is allowed
            heads = F.scaled_dot_product_attention(query, source.keys, source.values, seen, dropout)
        else:
            weights = source_weights(query, source.keys, blocked)  # (B, H, T, S)
            self.listener("weights", weights)
            heads = F.dropout(weights, dropout) @ source.values  # (B, H, T, K)
        return self.output(heads.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W_2 max(0, W_1 x + b_1) + b_2, at each position by itself. Paper: equation 2."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.dim, config.hidden_dim)
        self.output = nn.Linear(config.hidden_dim, config.dim)
        self.dropout = config.hidden_dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.dropout(F.relu(self.hidden(x)), self.dropout, self.training))


class EncoderBlock(nn.Module):
    """Attention over the whole source, then a feed-forward layer, each added to the stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.keys_values = KeysValues(config)
        self.attention = SourceAttention(config)
        self.attention_norm = LayerNorm(config.dim)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, blocked: Tensor) -> Tensor:
        """Shapes: x (B, S, D), blocked (B, S) bool -> (B, S, D)."""
        if self.pre:
            normed = self.attention_norm(x)
            x = x + self.dropout(self.attention(normed, self.keys_values(normed), blocked))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, self.keys_values(x), blocked)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Block(nn.Module):
    """Attention over the target so far, attention over the source, a feed-forward layer, each added to the stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.attention = CausalSelfAttention(config.dim, config.heads, config.attention_dropout, config.bias)
        self.attention_norm = LayerNorm(config.dim)
        self.cross_attention = SourceAttention(config)
        self.cross_attention_norm = LayerNorm(config.dim)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: KV, at: int, source: KV, blocked: Tensor) -> tuple[Tensor, KV]:
        """Shapes: x (B, T, D), source of (B, H, S, K), blocked (B, S) bool -> (B, T, D)."""
        if self.pre:
            attended, memory = self.attention(self.attention_norm(x), memory, at)
            x = x + self.dropout(attended)
            x = x + self.dropout(self.cross_attention(self.cross_attention_norm(x), source, blocked))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), memory
        attended, memory = self.attention(x, memory, at)
        x = self.attention_norm(x + self.dropout(attended))
        x = self.cross_attention_norm(x + self.dropout(self.cross_attention(x, source, blocked)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x))), memory


@dataclass(eq=False)
class TransformerState(State):
    """Keys and values of the target so far for each row, those of the source once for all rows that read it."""

    memories: list[KV]  # of (B, H, target tokens, K), for each block
    sources: list[KV]  # of (R, H, S, K), for each block
    blocked: Tensor  # (R, S) bool: slots after the source's end
    source_rows: Tensor | None = None  # (B,) int64: which source a row reads; None: row i the source i

    def select(self, rows: Tensor) -> Self:
        """A copy made of these rows; what is kept of the sources never changes, so copies share it."""
        rows = rows.to(self.blocked.device)
        chosen = partial(torch.index_select, dim=0, index=rows)
        source_rows = rows.clone() if self.source_rows is None else chosen(self.source_rows)
        return replace(self, memories=pytree.tree_map_only(Tensor, chosen, self.memories), source_rows=source_rows)


class Transformer(LanguageModel):
    """A Transformer of the shape that `config` gives."""

    Config = TransformerConfig
    StateType = TransformerState
    takes_source = True
    positions: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.context, self.source_context = config.context, config.source_context
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        positions = torch.empty(max(config.context, config.source_context), config.dim)
        self.register_buffer("positions", positions, persistent=False)
        self.encoder = nn.ModuleList(EncoderBlock(config) for _ in range(config.depth))
        self.encoder_norm = LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
        self.source_memories = nn.ModuleList(KeysValues(config) for _ in range(config.depth))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.decoder_norm = LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Embeddings from N(0, 1 / dim), matrices from Xavier's uniform distribution, biases 0, norms 1; positions."""
        self.positions.copy_(sinusoids(*self.positions.shape))
        for name, parameter in self.named_parameters():
            if name == "embedding.weight":
                nn.init.normal_(parameter, std=self.config.dim**-0.5)
            elif "norm" in name or name.endswith("bias"):
                nn.init.constant_(parameter, float(name.endswith("weight")))
            else:
                parts = 3 if "query_key_value" in name else 2 if "key_value" in name else 1
                for matrix in parameter.chunk(parts):  # the bound of a matrix does not depend on what it is stored with
                    nn.init.xavier_uniform_(matrix)

    def embed(self, tokens: Tensor, at: int = 0) -> Tensor:
        """sqrt(dim) * embedding + position, the first of them at position `at`. Shapes: (B, T) -> (B, T, D)."""
        x = self.embedding(tokens) * math.sqrt(self.config.dim) + self.positions[at : at + tokens.shape[1]]
        return F.dropout(x, self.config.embedding_dropout, self.training)

    def initial_state(
        self, batch_size: int, capacity: int | None = None, source: Source | None = None
    ) -> TransformerState:
        """The memory of a source and of no target, with gradients, since this is where the encoder runs.

        Units: capacity in tokens. Raises ValueError where there is no source, or one that does not fit.
        """
        if source is None:
            raise ValueError("a Transformer reads a source; give initial_state(rows, source=Source(ids, lengths))")
        rows, width, lengths = *source.ids.shape, source.lengths
        if not rows == len(lengths) == batch_size:
            raise ValueError(f"the source has {rows} rows and {len(lengths)} lengths, the batch {batch_size} rows")
        if width > self.config.source_context:
            raise ValueError(f"the source context is {self.source_context} tokens, a source has {width}; shorten it")
        # looking at a value would wait for an accelerator at every training step, and end a graph
        known = lengths.device.type == "cpu" and not torch.compiler.is_compiling()
        if known and rows and not 0 <= lengths.min() <= lengths.max() <= width:
            raise ValueError(f"source lengths go from {lengths.min()} to {lengths.max()}; the ids hold 0 to {width}")
        blocked = torch.arange(width, device=source.ids.device) >= lengths.to(source.ids.device)[:, None]  # (B, S)
        x = self.embed(source.ids)  # (B, S, D)
        for block in self.encoder:
            x = block(x, blocked)
        x = self.encoder_norm(x)
        sources = [memory(x) for memory in self.source_memories]
        nothing = sources[0].keys.detach()[:, :, :0]
        memories = [KV.empty(nothing, nothing, capacity) for _ in self.blocks]
        return TransformerState(length=0, memories=memories, sources=sources, blocked=blocked)

    def forward(self, tokens: Tensor, state: TransformerState | None = None) -> tuple[Tensor, TransformerState]:
        if state is None:
            raise ValueError("a Transformer reads a source; give model(tokens, model.initial_state(rows, source=...))")
        at = self.position(tokens, state)
        heads, width = self.config.heads, self.config.dim // self.config.heads
        if [memory.keys.shape[1::2] for memory in state.memories] != [(heads, width)] * self.config.depth:  # (H, K)
            raise ValueError(
                f"the state is of another model than this Transformer of {self.config.depth} blocks with {heads} heads "
                f"of width {width}; start one with initial_state()"
            )
        rows = state.source_rows
        blocked = state.blocked if rows is None else state.blocked.index_select(0, rows)
        x = self.embed(tokens, at)  # (B, T, D)
        after: list[KV] = []
        for block, memory, source in zip(self.blocks, state.memories, state.sources, strict=True):
            if rows is not None:
                source = KV(source.keys.index_select(0, rows), source.values.index_select(0, rows))  # noqa: PLW2901
            x, memory = block(x, memory, at, source, blocked)  # noqa: PLW2901
            after.append(memory)
        return self.decoder_norm(x), replace(state, length=at + tokens.shape[1], memories=after)

    def readout(self, features: Tensor) -> Tensor:
        return F.linear(features, self.embedding.weight)


_ADAM = {"beta2": 0.98, "eps": 1e-9, "weight_decay": 0.0}


def _shape(dim: int, depth: int, heads: int, dropout: float, **more: object) -> dict[str, object]:
    dropouts = {"dropout": dropout, "embedding_dropout": dropout}
    return {"dim": dim, "depth": depth, "heads": heads, "hidden_dim": 4 * dim, **dropouts, **more}


def _paper(steps: int, dim: int, heads: int, dropout: float) -> dict[str, object]:
    """One of the paper's models with its recipe for English to German; equation 3 peaks at this rate, at step 4,000."""
    return {
        "steps": steps,
        "batch_tokens": 25_000,
        "label_smoothing": 0.1,
        "model": _shape(dim, 6, heads, dropout, vocab_size=37_000),
        "optim": {"schedule": "noam", "lr": (dim * 4000) ** -0.5, "warmup": 4000, "grad_clip": 0.0, **_ADAM},
    }


Transformer.fused = {"query_key_value": ("query", "key", "value"), "key_value": ("key", "value")}
Transformer.presets = {
    "cmudict": {  # 23 minutes on two cores; what it was chosen from is in docs/transformer.md
        "data": "cmudict",
        "steps": 8000,
        "eval_every": 1000,
        "label_smoothing": 0.1,
        "model": _shape(128, 3, 4, 0.0, norm="pre", context=64, source_context=64),
        "optim": {"lr": 2.5e-3, "min_lr": 1e-5, "warmup": 400, **_ADAM},
    },
    "laptop": {  # sentences
        "steps": 5000,
        "eval_every": 500,
        "keep": 5,  # to be averaged
        "label_smoothing": 0.1,
        "model": _shape(128, 4, 4, 0.2, norm="pre", context=128, source_context=128),
        "optim": {"lr": 2e-3, "min_lr": 1e-5, "warmup": 500, **_ADAM},
    },
    "base": _paper(100_000, 512, 8, 0.1),
    "big": _paper(300_000, 1024, 16, 0.3),
}
