"""Llama: a modern decoder, the Transformer as it is built since 2023.

Paper: Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", section 2.2, and of its parts:
rotary positions, Su et al. 2021; RMS norm, Zhang and Sennrich 2019; gated MLP, Shazeer 2020; squared ReLU, So et al.
2021; grouped-query attention, Ainslie et al. 2023; norms of queries and keys, Dehghani et al. 2023, as Qwen3 has them.

    paper                                                   here
    y = x / RMS(x) * g, RMS(x)^2 = mean(x^2)                RMSNorm (Zhang and Sennrich, equation 4)
    q_t, k_t = R_t W_q x_t, R_t W_k x_t                     Rotation.turn (Su et al., equations 14 and 34)
    H heads of queries share G heads of keys and values     GroupedQueryAttention (Ainslie et al., section 2.2)
    W_2 (silu(W_g x) * W_1 x)                (SwiGLU)       GatedMLP (Shazeer, equation 6)
    W_2 relu(W_1 x)^2                                       SquaredReLU (So et al., section 4)
    h = h + Attention(norm(h)); h = h + MLP(norm(h))        Block.forward
    P(next) = softmax(W_v norm(h))                          final_norm; Llama.readout

Departures: none for the `llama` presets, but that rotations are not stretched for contexts beyond the trained one
(rope scaling of Llama 3.1 and later). Su et al. pair the dimensions 2i and 2i+1; here, as in the weights that are in
circulation, i and i + K/2 are a pair, which is a permutation of the rows of W_q and W_k. No paper gives the weights at
the start: see `reset_parameters`. `qk_norm`, `mlp="relu2"`, `zero_output` and `tied` are for other models of the
family and for the speedruns.

Letters in shapes: B batch, T new tokens, S visible tokens, D dim, H heads, G heads of keys and values, K width of a
head, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scratchlm.layers import attention_weights, future_mask
from scratchlm.model import KV, LanguageModel, Recordable, Source, State


class EagerRMSNorm(torch.autograd.Function):
    """`F.rms_norm` with its gradient written out: on a CPU 0.6 of the time (torch 2.13, 32 x 64 x 128, two cores)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).sqrt_()
        normal = x / rms
        ctx.save_for_backward(normal, weight, rms)
        return normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        normal, weight, rms = ctx.saved_tensors
        product = gradient * normal
        along = (product @ weight).unsqueeze(-1).div_(-normal.shape[-1])  # the part that changes the length alone
        return (gradient * weight).addcmul_(normal, along).div_(rms), product.flatten(0, -2).sum(0), None


class RMSNorm(nn.Module):
    """Root-mean-square normalisation: y = x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., D) -> (..., D)."""
        weight = self.weight.to(x.dtype)  # under autocast x may be narrow
        if x.is_cpu and x.dtype.itemsize > 2 and not torch.compiler.is_compiling():  # 16 bits cannot hold its squares
            return EagerRMSNorm.apply(x, weight, self.eps)
        return F.rms_norm(x, weight.shape, weight, self.eps)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a Llama. Defaults: Llama 3 of 8B parameters.

    Attributes:
        vocab_size: Tokens in the vocabulary (V).
        context: Tokens that it can read (max_position_embeddings).
        dim: Width of the residual stream (hidden_size).
        depth: Blocks (num_hidden_layers).
        heads: Heads of queries in a block (num_attention_heads).
        kv_heads: Heads of keys and values, each for heads / kv_heads of queries (num_key_value_heads).
        hidden_dim: Width inside the MLP (intermediate_size).
        dropout: Share of activations set to zero in training, after embeddings, attention and each branch.
        rope_base: The slowest rotation turns by about 1 / rope_base a token (rope_theta).
        norm_eps: Added to the mean of squares (rms_norm_eps).
        mlp: swiglu is gated, relu2 the squared ReLU.
        qk_norm: Normalise each head's queries and keys before they are rotated, as Qwen3 does.
        zero_output: Start with zeros where a branch writes to the stream, and in the readout if it is not tied.
        tied: Read out with the embedding's matrix (tie_word_embeddings).
    """

    vocab_size: int
    context: int = 8192
    dim: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 8
    hidden_dim: int = 14336
    dropout: float = 0.0
    rope_base: float = 500_000.0
    norm_eps: float = 1e-5
    mlp: Literal["swiglu", "relu2"] = "swiglu"
    qk_norm: bool = False
    zero_output: bool = False
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "dim", "depth", "heads", "kv_heads", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"dim {self.dim} cannot be shared by {self.heads} heads of an even width, whose halves are rotated; "
                "make dim a multiple of 2 * heads"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv_heads; make heads a multiple of them")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        for name in ("rope_base", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0, and finite")

    @classmethod
    def tiny(cls) -> "LlamaConfig":
        """A model that tests run in milliseconds, with every part but the squared ReLU."""
        shape = {"dim": 16, "depth": 2, "heads": 4, "kv_heads": 2, "hidden_dim": 24}
        return cls(vocab_size=23, context=24, **shape, rope_base=100.0, qk_norm=True)

    @classmethod
    def sized(cls, parameters: int, vocab_size: int, context: int = 256) -> "LlamaConfig":
        """The shape nearest to dim = 48 * depth within 2 % of `parameters`: tied, heads 16 to 64 wide, none shared.

        Raises ValueError, naming the nearest count, where there is none.
        """
        shapes = [
            cls(
                vocab_size=vocab_size, context=context, dim=dim, depth=depth, heads=dim // width,
                kv_heads=dim // width, hidden_dim=round(2 * dim / 3) * 4, rope_base=10_000.0, tied=True,
            )
            for dim in range(16, 4097, 4)
            for width in sorted((w for w in range(16, 65, 2) if dim % w == 0), key=lambda w: abs(w - 32))[:1]
            for depth in range(max(1, dim // 512), min(64, dim // 8) + 1)
        ]  # fmt: skip
        nearest = min(shapes, key=lambda shape: abs(shape.parameters - parameters)).parameters
        if abs(nearest - parameters) > 0.02 * parameters:
            raise ValueError(
                f"no Llama with vocabulary {vocab_size} has {parameters:,} parameters within 2 %; the nearest has "
                f"{nearest:,}"
            )
        fitting = [shape for shape in shapes if abs(shape.parameters - parameters) <= 0.02 * parameters]
        return min(fitting, key=lambda shape: abs(math.log(shape.dim / shape.depth / 48)))

    @property
    def head_dim(self) -> int:
        """Width of a head (K)."""
        return self.dim // self.heads

    @property
    def parameters(self) -> int:
        """Parameters, a tied embedding counted once."""
        d, k = self.dim, self.head_dim
        attention = 2 * d * d + 2 * d * self.kv_heads * k + 2 * k * self.qk_norm
        mlp = (3 if self.mlp == "swiglu" else 2) * d * self.hidden_dim
        return (2 - self.tied) * self.vocab_size * d + self.depth * (attention + mlp + 2 * d) + d


class Rotation(NamedTuple):
    """Rotary positions: the pair of dimensions i and i + K/2 is turned by the angle position * base^(-2i/K).

    So the product of a query and a key depends on how far they are apart, and not on where they are.
    Paper: Su et al. 2021, equation 34.
    """

    cos: Tensor  # (T, K)
    sin: Tensor  # (T, K), that of the first half negative

    @classmethod
    def at(cls, start: int, new: int, config: LlamaConfig, like: Tensor) -> "Rotation":
        """Of the positions start .. start + new - 1, on the device and in the dtype of `like`."""
        # angles in float32 whatever the dtype: bfloat16 cannot count beyond 256
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=like.device)
        positions = torch.arange(start, start + new, dtype=torch.float32, device=like.device)
        angles = torch.outer(positions, 1 / config.rope_base ** (pairs / config.head_dim))  # (T, K / 2)
        cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
        return cls(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))

    def turn(self, x: Tensor) -> Tensor:
        """Shapes: (..., T, K) -> (..., T, K)."""
        # (a, b) -> (a cos - b sin, b cos + a sin). The roll swaps the halves, in a third of the time that splitting and
        # joining them takes (forward and backward, two cores, torch 2.13)
        return x * self.cos + x.roll(x.shape[-1] // 2, -1) * self.sin


def grouped_attention(query: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
    """`fused_attention` for H heads of queries and G of keys and values, whose copies it does not make.

    Shapes: query (B, H, T, K), keys (B, G, S, K), values (B, G, S, K), S >= T -> (B, H, T, K).
    """
    new, visible = query.shape[2], keys.shape[2]
    mask = None if new in (1, visible) else ~future_mask(new, visible, query.device)
    # one token with 512 in the memory, B 16, H 32, G 8: 2.9 ms, and 45 ms with keys and values repeated (two cores)
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=1 < new == visible, enable_gqa=True
    )


class GroupedQueryAttention(Recordable):
    """Attention in which each head of keys and values serves heads / kv_heads neighbouring heads of queries."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.dim, config.dim, bias=False)
        self.key_value = nn.Linear(config.dim, 2 * config.kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.dim, config.dim, bias=False)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: (B, T, D) -> query (B, H, T, K), keys, values (B, G, T, K)."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = self.key_value(x).unflatten(-1, (2, self.kv_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query, keys = rotation.turn(self.query_norm(query)), rotation.turn(self.key_norm(keys))
        return query.to(values.dtype), keys.to(values.dtype), values  # autocast leaves angles in float32

    def forward(self, x: Tensor, rotation: Rotation, memory: KV | None, at: int) -> tuple[Tensor, KV | None]:
        """Shapes: (B, T, D) -> (B, T, D). `at`: tokens already in the memory."""
        query, keys, values = self.project(x, rotation)
        if memory is not None:
            keys, values, memory = memory.append(keys, values, at)
        dropout = self.dropout if self.training else 0.0
        if self.listener is None and not (query.is_cpu and query.dtype == torch.bfloat16 and query.requires_grad):
            heads = grouped_attention(query, keys, values, dropout)  # (B, H, T, K)
        else:  # also in bf16 on a CPU, whose kernel goes back slowly
            keys, values = (one.repeat_interleave(self.heads // self.kv_heads, 1) for one in (keys, values))
            weights = attention_weights(query, keys)  # (B, H, T, S)
            if self.listener is not None:
                self.listener("weights", weights)
            heads = F.dropout(weights, dropout) @ values
        return self.output(heads.transpose(1, 2).flatten(2)), memory


class GatedMLP(nn.Module):
    """W_2 (silu(W_g x) * W_1 x)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_hidden = nn.Linear(config.dim, 2 * config.hidden_dim, bias=False)
        self.output = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, hidden = self.gate_hidden(x).chunk(2, -1)
        return self.output(F.silu(gate) * hidden)


class SquaredReLU(nn.Module):
    """W_2 relu(W_1 x)^2."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.output = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(self.hidden(x)).square())


class Block(nn.Module):
    """Attention and MLP, each on the normalised stream and added back to it (pre-norm)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = GroupedQueryAttention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = GatedMLP(config) if config.mlp == "swiglu" else SquaredReLU(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotation: Rotation, memory: KV | None, at: int) -> tuple[Tensor, KV | None]:
        attended, memory = self.attention(self.attention_norm(x), rotation, memory, at)
        x = x + F.dropout(attended, self.dropout, self.training)
        x = x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)
        return x, memory


@dataclass(eq=False)
class LlamaState(State):
    """Keys, already rotated, and values of each block."""

    memories: list[KV]


class Llama(LanguageModel):
    """A Llama of the shape that `config` gives."""

    Config = LlamaConfig
    StateType = LlamaState

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.context = config.context
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = RMSNorm(config.dim, config.norm_eps)
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 0.02), those that write to the residual stream from N(0, 0.02 / sqrt(2 depth)).

        With `zero_output` the latter are zeros, and so is a readout of its own.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                writes = name.endswith(".output.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.depth) if writes else 0.02)
                if self.config.zero_output and (writes or name == "head.weight"):
                    nn.init.zeros_(parameter)

    def initial_state(self, batch_size: int, capacity: int | None = None, source: Source | None = None) -> LlamaState:
        nothing = self.token_embedding(self.token_embedding.weight.new_zeros(batch_size, 0, dtype=torch.int64))
        rotation, memories = Rotation.at(0, 0, self.config, nothing), []
        for block in self.blocks:
            _, keys, values = cast(Block, block).attention.project(nothing, rotation)
            memories.append(KV.empty(keys, values, capacity))
        return LlamaState(length=0, memories=memories)

    def forward(self, tokens: Tensor, state: LlamaState | None = None) -> tuple[Tensor, LlamaState | None]:
        at, config = self.position(tokens, state), self.config
        memories = [] if state is None else [memory.keys.shape[1::2] for memory in state.memories]  # (G, K) each
        if state is not None and memories != [(config.kv_heads, config.head_dim)] * config.depth:
            raise ValueError(
                f"the state is of another model than this Llama of {config.depth} blocks with {config.kv_heads} heads "
                f"of keys of width {config.head_dim}; start one with initial_state()"
            )
        x = F.dropout(self.token_embedding(tokens), config.dropout, self.training)  # (B, T, D)
        rotation = Rotation.at(at, tokens.shape[1], config, x)
        after: list[KV] = []
        for index, block in enumerate(self.blocks):
            x, memory = block(x, rotation, None if state is None else state.memories[index], at)
            after.append(memory)
        x = self.final_norm(x)
        return x, None if state is None else LlamaState(length=at + tokens.shape[1], memories=after)

    def readout(self, features: Tensor) -> Tensor:
        return F.linear(features, self.token_embedding.weight) if self.head is None else self.head(features)


def _published(lr: float, **model: object) -> dict[str, object]:
    """A published shape with the recipe of Touvron et al. 2023, section 2.3: four million tokens a step, 1 trillion."""
    return {
        "steps": 250_000, "batch_size": 2048, "accumulate": 512, "window": 2048, "eval_every": 1000,
        "split": (0.99, 0.005, 0.005),
        "model": model,
        "optim": {"lr": lr, "min_lr": lr / 10, "warmup": 2000, "beta2": 0.95},
    }  # fmt: skip


def _speedrun(steps: int, batch_size: int, lr: float, rope_base: float, **model: object) -> dict[str, object]:
    """What docs/speedrun.md measures: Muon at a rate that falls along a line; no warm-up, no decay, no clipping."""
    return {
        "steps": steps, "batch_size": batch_size, "eval_every": steps, "split": (0.9, 0.1, 0.0),
        "model": {"mlp": "relu2", "qk_norm": True, "zero_output": True, "rope_base": rope_base, **model},
        "optim": {
            "name": "muon", "lr": lr, "min_lr": 0.0, "schedule": "linear", "warmup": 0,
            "beta1": 0.8, "weight_decay": 0.0, "grad_clip": 0.0,
        },
    }  # fmt: skip


Llama.fused = {"key_value": ("key", "value"), "gate_hidden": ("gate", "hidden")}
Llama.presets = {
    "laptop": {  # about four minutes on two cores
        "steps": 3000, "batch_size": 16, "eval_every": 500,
        "model": {
            "context": 128, "dim": 128, "depth": 4, "heads": 4, "kv_heads": 2, "hidden_dim": 344,
            "rope_base": 10_000.0, "tied": True,
        },
        "optim": {"lr": 3e-3, "min_lr": 3e-4, "warmup": 100, "beta2": 0.99},
    },
    "speedrun": _speedrun(165, 32, 0.016, 100.0, context=64, dim=64, depth=2, heads=4, kv_heads=4, hidden_dim=256),
    "speedrun-5min": _speedrun(1600, 8, 0.006, 1e3, context=256, dim=128, depth=4, heads=4, kv_heads=4, hidden_dim=512),
    "speedrun-gpu": _speedrun(
        1500, 64, 0.004, 1e3, context=256, dim=384, depth=6, heads=6, kv_heads=6, hidden_dim=1536, dropout=0.2
    ),
    "llama-7b": _published(  # Touvron et al. 2023, table 2, and the released params.json
        3e-4, vocab_size=32_000, context=2048, kv_heads=32, hidden_dim=11_008, rope_base=10_000.0, norm_eps=1e-6
    ),
    "llama-3-8b": _published(3e-4, vocab_size=128_256),  # Dubey et al. 2024, table 3
    "llama-3.2-1b": _published(  # the config.json of meta-llama/Llama-3.2-1B, without its rope scaling
        3e-4, vocab_size=128_256, dim=2048, depth=16, hidden_dim=8192, tied=True
    ),
}  # fmt: skip
