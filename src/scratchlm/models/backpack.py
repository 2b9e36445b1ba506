"""Backpack: each word has several senses, and a prediction is a weighted sum of those of the words so far.

Paper: Hewitt et al. 2023, "Backpack Language Models"; where it is silent, the code that was released with it decides.

    paper                                                          here
    o_i = sum_j sum_l alpha[l, i, j] C(x_j)_l    (equation 1)      SenseSum; SenseNetwork.mix
    C(x) = FF(E x)                               (section 3.1)     SenseNetwork
    alpha_l = softmax(h^T K_l^T Q_l h)           (equation 12)     Contextualisation, h = the trunk's output
    P(next) = softmax(E o)                       (equation 4)      Backpack.readout, tied by use

A sense depends on its token alone, and logits are a sum over senses: what sense l of a token pushes up and down is
E C(x)_l, whatever the context; the context only says how much of it (alpha >= 0, its sum over j is 1 for each sense).

The trunk is a GPT, composed and not copied. Its embedding E is used three times: as its input, as the input of the
senses, and to read out. Neither a norm nor a factor 1/k stands between the sum and E.

Departures: what the released code has and the paper does not. The trunk's attention scores are divided by the block's
number; in the contextualisation there are biases, and scores are divided by sqrt(D / k); the senses' network adds a
second normalised copy to the embedding (a residual without a branch, which the paper calls an accident); there is
dropout. In the ablation of the number of senses both parts of their network are narrow, as the paper's counts of
parameters say, and not the last alone, as its text does. One departure is from both: senses are computed once for each
different token of a call, so that in training all occurrences of a token in a batch share their dropout.

Letters in shapes: B batch, T new tokens, S visible tokens, D dim, L senses, K width of a sense's key (D / L), U
different tokens, G width inside the senses' last layer, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scratchlm.layers import LayerNorm, attention_weights
from scratchlm.model import KV, LanguageModel, Recordable, Source, State
from scratchlm.models.gpt import GPT, GPTConfig, GPTState, fitting_shape


@dataclass(frozen=True, kw_only=True)
class BackpackConfig:
    """The shape of a Backpack. Defaults: the Small one of the paper, 170M parameters.

    Attributes:
        vocab_size: Tokens in the vocabulary (V).
        context: Tokens that it can read.
        dim: Width of the trunk's stream and of a sense (d).
        depth: Blocks of the trunk.
        heads: Attention heads in a block of the trunk.
        senses: Sense vectors of each token (k).
        sense_width: Width inside the senses' network, as a multiple of dim; 1 in the paper's ablation.
        dropout: Share of activations set to zero in training.
        activation: gelu-tanh is GPT-2's approximation, gelu the exact function.
        inverse_layer_scaling: Divide each block's attention scores by the block's number, counted from 1.
    """

    vocab_size: int
    context: int = 512
    dim: int = 768
    depth: int = 12
    heads: int = 12
    senses: int = 16
    sense_width: int = 4
    dropout: float = 0.1
    activation: Literal["gelu-tanh", "gelu"] = "gelu-tanh"
    inverse_layer_scaling: bool = True

    def __post_init__(self) -> None:
        for name in ("senses", "sense_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        _ = self.trunk  # which says what is wrong with the rest
        if self.dim % self.senses:
            raise ValueError(f"dim {self.dim} cannot be shared by {self.senses} senses; make dim a multiple of senses")

    @property
    def trunk(self) -> GPTConfig:
        """The GPT that says how much of each sense goes into a prediction."""
        own = ("senses", "sense_width")
        return GPTConfig(**{name: value for name, value in vars(self).items() if name not in own})

    @classmethod
    def tiny(cls) -> "BackpackConfig":
        """A model that tests run in milliseconds."""
        return cls(vocab_size=23, context=24, dim=16, depth=2, heads=2, senses=4, dropout=0.0)

    @classmethod
    def around(cls, trunk: GPTConfig) -> "BackpackConfig":
        """A Backpack whose trunk has this shape, of as many senses up to 16 as share its width with keys of 4 or more.

        A Backpack has biases and scales its trunk's attention, whatever this trunk does.
        """
        fitting = (count for count in range(1, 17) if trunk.dim % count == 0 and trunk.dim // count >= 4)
        senses = max(fitting, default=1)
        own = ("bias", "inverse_layer_scaling")
        shape: dict[str, Any] = {name: value for name, value in vars(trunk).items() if name not in own}
        return cls(**shape, senses=senses)

    @classmethod
    def sized(cls, parameters: int, vocab_size: int, context: int = 256) -> "BackpackConfig":
        """The shape nearest to dim = 48 * depth among those within 2 % of `parameters`.

        Raises ValueError, naming the nearest count, where there is none.
        """
        shapes = [
            cls.around(
                GPTConfig(
                    vocab_size=vocab_size,
                    context=context,
                    dim=dim,
                    depth=depth,
                    heads=next(dim // width for width in (32, 24, 16, 8, 4) if dim % width == 0),
                    dropout=0.0,
                    activation="gelu",  # which a CPU computes faster
                )
            )
            for dim in (*range(8, 64, 4), *range(64, 512, 8), *range(512, 4097, 64))
            for depth in range(max(1, dim // 512), min(64, dim // 4) + 1)
        ]
        return fitting_shape(shapes, parameters, f"Backpack with vocabulary {vocab_size} and context {context}")

    @classmethod
    def sized_trunk(cls, parameters: int, vocab_size: int, context: int = 256) -> "BackpackConfig":
        """A Backpack whose trunk is the GPT of so many parameters. Raises ValueError where there is no such GPT."""
        return cls.around(GPTConfig.sized(parameters, vocab_size, context))

    @property
    def parameters(self) -> int:
        """Parameters, the tied embedding counted once."""
        d, inner, senses = self.dim, self.sense_width * self.dim, self.senses * self.dim
        contextualisation = 2 * d * d + 2 * d
        mlp, last = 2 * d * inner + inner + d, d * inner + inner + inner * senses + senses
        return self.trunk.parameters + contextualisation + 6 * d + mlp + last


class FeedForward(nn.Module):
    """W_2 gelu(W_1 x + b_1) + b_2."""

    def __init__(self, config: BackpackConfig, out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.dim, config.sense_width * config.dim)
        self.output = nn.Linear(config.sense_width * config.dim, out)
        self.approximate = "tanh" if config.activation == "gelu-tanh" else "none"

    def inside(self, x: Tensor) -> Tensor:
        """What the second matrix is given. Shapes: (..., D) -> (..., G)."""
        return F.gelu(self.hidden(x), approximate=self.approximate)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.inside(x))


class SenseNetwork(nn.Module):
    """C(x): the senses of a token, out of its embedding and nothing else.

    r = e + LayerNorm(e);  r = r + FF(LayerNorm(r));  C = FF'(LayerNorm(r)), D -> G -> L * D, sense after sense.
    """

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        self.senses, self.dropout = config.senses, config.dropout
        self.embedding_norm = LayerNorm(config.dim)
        self.mlp_norm = LayerNorm(config.dim)
        self.mlp = FeedForward(config, config.dim)
        self.senses_norm = LayerNorm(config.dim)
        self.senses_mlp = FeedForward(config, config.senses * config.dim)

    def inside(self, embedded: Tensor) -> Tensor:
        """What the last matrix makes senses of: all that has to be kept of a token. Shapes: (..., D) -> (..., G)."""
        x = F.dropout(embedded, self.dropout, self.training)
        x = x + F.dropout(self.embedding_norm(x), self.dropout, self.training)
        x = x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)
        return self.senses_mlp.inside(self.senses_norm(x))

    def forward(self, embedded: Tensor) -> Tensor:
        """Shapes: (..., D) -> (..., L, D)."""
        return self.senses_mlp.output(self.inside(embedded)).unflatten(-1, (self.senses, -1))

    def mix(self, weights: Tensor, inside: Tensor) -> Tensor:
        """The weighted sum of senses, without any of them: the last matrix is linear, so it may come after the sum.

        sum_l sum_j a[l, i, j] (W_l g_j + b_l) = sum_l (W_l (sum_j a[l, i, j] g_j) + b_l sum_j a[l, i, j]).
        Shapes: weights (B, L, T, S), inside (B, 1, S, G) -> (B, T, D).
        """
        batch, senses, new, _ = weights.shape
        matrix = self.senses_mlp.output.weight.unflatten(0, (senses, -1))  # (L, D, G)
        bias = self.senses_mlp.output.bias.unflatten(0, (senses, -1))  # (L, D)
        summed = weights.flatten(1, 2) @ inside.squeeze(1)  # (B, L * T, G); a product of four axes would copy g L times
        summed = summed.unflatten(1, (senses, new)).transpose(0, 1).flatten(1, 2)  # (L, B * T, G)
        mixed = (summed @ matrix.mT).sum(0).view(batch, new, matrix.shape[1])  # (B, T, D)
        return mixed + weights.sum(-1).mT @ bias


def different(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The different tokens (U,) and which of them each is; on the meta device, where none has a value, all differ."""
    if tokens.is_meta:
        return tokens.flatten(), torch.arange(tokens.numel(), device=tokens.device).view_as(tokens)
    unique, index = tokens.unique(return_inverse=True)
    return unique, index


class SenseSum(torch.autograd.Function):
    """sum_l alpha[l] C[x]_l, with the senses of each different token given once.

    The senses of all positions, B * S * L * D numbers, are never there at once, neither here nor for the backward pass:
    both gather one sense at a time.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, senses: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        """Shapes: weights (B, L, T, S), senses (U, L, D), index (B, S) into U -> (B, T, D)."""
        ctx.save_for_backward(weights, senses, index)
        total = weights.new_zeros(weights.shape[0], weights.shape[2], senses.shape[2])
        for one in range(senses.shape[1]):
            values = F.embedding(index, senses[:, one])
            torch.baddbmm(total, weights[:, one], values, out=total)  # its like in place is counted as no product
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """The weights' gradients: the output's times each sense. A sense's: those of the outputs, as weighted."""
        weights, senses, index = ctx.saved_tensors
        of_weights, of_senses = torch.empty_like(weights), torch.empty_like(senses)
        for one in range(senses.shape[1]):
            of_weights[:, one] = gradient @ F.embedding(index, senses[:, one]).mT
            of_positions = weights[:, one].mT @ gradient  # (B, S, D)
            # F.embedding's own backward pass, which adds up in one order on every device
            of_senses[:, one] = torch.ops.aten.embedding_dense_backward(of_positions, index, len(senses), -1, False)
        return of_weights, of_senses, None


class Contextualisation(Recordable):
    """alpha: how much of each sense of each token so far goes into each output, a softmax for each sense.

    alpha_l = softmax(q_l k_l^T / sqrt(D / L)), with [q; k] = W h + b. There are no values: the senses are those.
    """

    def __init__(self, dim: int, senses: int) -> None:
        super().__init__()
        self.senses = senses
        self.query_key = nn.Linear(dim, 2 * dim)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (B, T, D) -> queries, keys (B, L, T, K)."""
        batch, new, dim = hidden.shape
        both = self.query_key(hidden).view(batch, new, 2, self.senses, dim // self.senses)
        queries, keys = both.permute(2, 0, 3, 1, 4).unbind(0)  # (B, L, T, K)
        return queries, keys

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Shapes: (B, L, T, K), (B, L, S, K) -> (B, L, T, S)."""
        weights = attention_weights(queries, keys)
        if self.listener is not None:
            self.listener("weights", weights)
        return weights


@dataclass(eq=False)
class BackpackState(State):
    """The trunk's memory, and of each token its senses' keys (B, L, S, K) and what they are made of (B, 1, S, G)."""

    trunk: GPTState
    senses: KV


class Backpack(LanguageModel):
    """A Backpack of the shape that `config` gives."""

    Config = BackpackConfig
    StateType = BackpackState
    has_senses = True
    read_as_tensors = ("senses_mlp.output",)

    def __init__(self, config: BackpackConfig) -> None:
        super().__init__()
        self.config = config
        self.context = config.context
        self.trunk = GPT(config.trunk)
        self.contextualisation = Contextualisation(config.dim, config.senses)
        self.sense_network = SenseNetwork(config)
        self.reset_parameters()

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The trunk's."""
        return self.trunk.blocks

    def reset_parameters(self) -> None:
        """As the trunk's: N(0, 0.02), both second matrices of the senses' network N(0, 0.02 / sqrt(2 depth))."""
        self.trunk.reset_parameters()
        for name, parameter in [*self.contextualisation.named_parameters(), *self.sense_network.named_parameters()]:
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                second = name.endswith(".output.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.depth) if second else 0.02)

    def initial_state(
        self, batch_size: int, capacity: int | None = None, source: Source | None = None
    ) -> BackpackState:
        trunk = self.trunk.initial_state(batch_size, capacity)
        embedding = self.trunk.token_embedding
        nothing = embedding(embedding.weight.new_zeros(batch_size, 0, dtype=torch.int64))  # (B, 0, D)
        _, keys = self.contextualisation.project(nothing)
        inside = self.sense_network.inside(nothing)[:, None]
        return BackpackState(length=0, trunk=trunk, senses=KV.empty(keys, inside, capacity))

    def senses(self, tokens: Tensor) -> Tensor:
        """C(x) of each token. Shapes: (...) int64 -> (..., L, D)."""
        return self.sense_network(self.trunk.token_embedding(tokens))

    def read(self, tokens: Tensor, state: BackpackState) -> tuple[Tensor, Tensor, BackpackState]:
        """alpha, what the senses of all visible tokens are made of, and the state after these tokens.

        Shapes: tokens (B, T) int64 -> (B, L, T, S), (B, 1, S, G).
        """
        at = self.position(tokens, state)
        count, width = self.config.senses, self.config.dim // self.config.senses
        inner = self.config.sense_width * self.config.dim
        if (*state.senses.keys.shape[1::2], state.senses.values.shape[3]) != (count, width, inner):
            raise ValueError(
                f"the state is of another model than this Backpack of {count} senses with keys of width {width}, made "
                f"of {inner} numbers a token; start one with initial_state()"
            )
        hidden, trunk = self.trunk(tokens, state.trunk)
        queries, keys = self.contextualisation.project(hidden)
        unique, index = different(tokens)
        inside = self.sense_network.inside(self.trunk.token_embedding(unique))[index]  # (B, T, G)
        keys, inside, memory = state.senses.append(keys, inside[:, None], at)
        after = BackpackState(length=at + tokens.shape[1], trunk=trunk, senses=memory)
        return self.contextualisation(queries, keys), inside, after

    def forward(self, tokens: Tensor, state: BackpackState | None = None) -> tuple[Tensor, BackpackState | None]:
        if state is not None:  # a memory keeps G numbers of a token in place of L * D, and the sum comes first
            weights, inside, state = self.read(tokens, state)
            return self.sense_network.mix(weights, inside), state
        hidden, _ = self.trunk(tokens)
        weights = self.contextualisation(*self.contextualisation.project(hidden))
        unique, index = different(tokens)
        return SenseSum.apply(weights, self.senses(unique), index), None

    def readout(self, features: Tensor) -> Tensor:
        return self.trunk.readout(features)


def _openwebtext(dim: int, depth: int, heads: int) -> dict[str, object]:
    """The recipe for OpenWebText: 524,288 tokens a step; the paper's warm-up, of which the code has a fifth.

    Linear decay of the rate, and embeddings without weight decay, are the code's.
    """
    rate = {"schedule": "linear", "lr": 6e-4, "min_lr": 0.0, "warmup": 5000}
    return {
        "steps": 100_000,
        "batch_size": 1024,
        "accumulate": 64,
        "eval_every": 1000,
        "split": (0.999, 0.0005, 0.0005),
        "model": {"vocab_size": 50264, "context": 512, "dim": dim, "depth": depth, "heads": heads, "senses": 16},
        "optim": {**rate, "beta2": 0.999, "decay_embeddings": False},
    }


Backpack.fused = {"query_key_value": ("query", "key", "value"), "query_key": ("query", "key")}
Backpack.presets = {
    "laptop": {
        "tokenizer": "bpe",
        "vocab_size": 4096,
        "steps": 2000,
        "batch_size": 16,
        "eval_every": 500,
        "model": {
            "context": 128,
            "dim": 128,
            "depth": 4,
            "heads": 4,
            "senses": 16,
            "dropout": 0.0,
            "activation": "gelu",
        },
        "optim": {"lr": 3e-3, "min_lr": 3e-4, "warmup": 100, "beta2": 0.99},
    },
    "micro": _openwebtext(384, 6, 6),
    "mini": _openwebtext(640, 8, 8),
    "small": _openwebtext(768, 12, 12),
}
