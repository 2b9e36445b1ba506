"""CNN: stacks of causal convolutions, whose memory is the last inputs of each convolution.

Papers: Dauphin et al. 2017 (GCNN), Bai et al. 2018 (TCN) and van den Oord et al. 2016 (WaveNet), each a block of its
own; the default is a gated, dilated, pre-norm stack of parts of theirs. A position sees itself and a fixed number of
tokens before it, the receptive field: so nothing limits what it reads, and decoding from the memory is exact.

    paper                                                                   here
    y_t = b + sum_j W_j x_{t-(k-1-j)d}, zeros before the start              CausalConvolution
    x + W_o (a * sigmoid(g)), [a; g] = conv(LayerNorm(x))                   GatedBlock: the gate of Dauphin et al.
                                                                            2017, equation 1; dilation of Kalchbrenner
                                                                            et al. 2016, section 3.4
    GCNN: (x + h(x)) / sqrt(2), h one gated convolution or a bottleneck     GCNNBlock: Dauphin et al. 2017, section 2
    TCN: relu(x + f(f(x))), f(x) = relu(conv(x))                            TCNBlock: Bai et al. 2018, figure 1b
    WaveNet: z = tanh(W_f * x) . sigmoid(W_g * x), residual and skip of z   WaveNetBlock: van den Oord et al. 2016,
                                                                            equation 2 and figure 4
    receptive field 1 + sum (k - 1) d                                       CNNConfig.receptive_field

Departures: every model reads out through its tied embedding, without a bias. GCNN has no adaptive softmax and blocks
of one width; TCN drops single activations, as its released code does, where the paper says whole channels.

Letters in shapes: B batch, T new tokens, C channels in, O channels out, K taps, D dim, E hidden_dim, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from scratchlm.layers import LayerNorm
from scratchlm.model import LanguageModel, Source, State


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """The shape of a stack of causal convolutions.

    Attributes:
        vocab_size: Tokens in the vocabulary (V).
        dim: Width of the embedding and of the features (D).
        depth: Blocks; a TCN's levels.
        hidden_dim: Width inside a block (E); none: dim, and in a GCNN no bottleneck.
        kernel: Taps of a convolution (k).
        dilations: How many dilations 1, 2, 4, ...: the last blocks have one each, those before them 1; 1: no dilation.
        dropout: Share of activations set to zero in training, after the embedding and in each branch.
        block: gated is the default stack; gcnn, tcn and wavenet are the published ones.
    """

    vocab_size: int
    dim: int = 108
    depth: int = 12
    hidden_dim: int | None = None
    kernel: int = 3
    dilations: int = 7
    dropout: float = 0.0
    block: Literal["gated", "gcnn", "tcn", "wavenet"] = "gated"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_dim is not None and self.hidden_dim < 1:
            raise ValueError(f"hidden_dim is {self.hidden_dim}; it must be at least 1, or left out to be dim")
        if self.kernel < 2:
            raise ValueError(f"kernel is {self.kernel}; it must be at least 2 to see any token before the current one")
        most = min(self.depth, 20)  # a dilation of half a million tokens
        if not 1 <= self.dilations <= most:
            raise ValueError(
                f"dilations is {self.dilations}; it must be 1 to {most}: each takes one of the {self.depth} blocks"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @classmethod
    def tiny(cls) -> "CNNConfig":
        """A model that tests run in milliseconds."""
        return cls(vocab_size=23, dim=16, depth=3, dilations=2)

    @classmethod
    def sized(cls, parameters: int, vocab_size: int, context: int = 256) -> "CNNConfig":
        """The gated stack nearest to dim = 9 * depth within 2 % of `parameters`, which sees 1 to 2 times `context`.

        Raises ValueError, naming the nearest count, where there is none.
        """
        furthest = cls(vocab_size=vocab_size, depth=64, dilations=20).receptive_field
        if context > furthest:
            raise ValueError(f"no CNN sees {context:,} tokens; the furthest sees {furthest:,}")
        shapes = {}
        for depth in range(1, 65):
            reaching = [
                shape
                for dilations in range(1, min(depth, 20) + 1)
                if (shape := cls(vocab_size=vocab_size, depth=depth, dilations=dilations)).receptive_field >= context
            ]
            if reaching and reaching[0].receptive_field <= max(2 * context, 3):  # 3: one block of three taps
                for dim in (*range(8, 64), *range(64, 4097, 4)):
                    block = 7 * dim * dim + 5 * dim  # convolution 6 D^2 + 2 D, output D^2 + D, norm 2 D
                    shapes[depth, dim, reaching[0].dilations] = vocab_size * dim + depth * block + 2 * dim
        fitting = [shape for shape, count in shapes.items() if abs(count - parameters) <= 0.02 * parameters]
        if not fitting:
            nearest = min(shapes.values(), key=lambda count: abs(count - parameters))
            raise ValueError(
                f"no CNN with vocabulary {vocab_size} that sees {context} tokens has {parameters:,} "
                f"parameters within 2 %; the nearest has {nearest:,}"
            )
        depth, dim, dilations = min(fitting, key=lambda shape: abs(math.log(shape[1] / shape[0] / 9)))
        return cls(vocab_size=vocab_size, dim=dim, depth=depth, dilations=dilations)

    @property
    def parameters(self) -> int:
        """Parameters, the tied embedding counted once."""
        with torch.device("meta"):  # shapes without numbers
            return sum(parameter.numel() for parameter in CNN(self).parameters())

    @property
    def convolutions(self) -> int:
        """Convolutions of a block, each with a memory."""
        return 2 if self.block == "tcn" else 1

    @property
    def receptive_field(self) -> int:
        """Tokens that decide a feature: the current one and those before it."""
        return 1 + self.convolutions * (self.kernel - 1) * sum(self.dilation(index) for index in range(self.depth))

    @property
    def width(self) -> int:
        """Width inside a block."""
        return self.dim if self.hidden_dim is None else self.hidden_dim

    def dilation(self, index: int) -> int:
        """Tokens from one tap of a block's convolutions to the next."""
        return 2 ** max(0, index - (self.depth - self.dilations))


class CausalConvolution(nn.Module):
    """y_t = b + sum_j W_j x_{t - (k-1-j) d}, with zeros before the start; its weight has the layout of nn.Conv1d.

    `deviation`: that of the weights at the start; the bias starts with zeros.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, deviation: float) -> None:
        super().__init__()
        self.dilation = dilation
        self.reach = (kernel - 1) * dilation  # inputs before the current one that it needs
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=deviation)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The outputs, and the last inputs, which the next chunk needs. No memory: x starts the sequence.

        Shapes: x (B, T, C), T may be 0, memory (B, reach, C) -> (B, T, O), (B, reach, C).
        """
        if memory is not None and memory.shape[1:] != (self.reach, x.shape[2]):
            raise ValueError(
                f"the state is of another model: one of its memories is {tuple(memory.shape[1:])}, where "
                f"{self.reach, x.shape[2]} is needed; start one with initial_state()"
            )
        new, weight = x.shape[1], self.weight  # read once: a parametrization computes it at each reading
        seen = F.pad(x, (0, 0, self.reach, 0)) if memory is None else torch.cat([memory, x], 1)  # (B, reach + T, C)
        if new > 1:
            # An image of height 1 in the layout (B, 1, T, C) is what oneDNN and cuDNN read without a transpose: at
            # (16, 256, 128 -> 256, k 3, d 32) forward and backward 24.6 ms, F.conv1d 30.9, the product below 29.6
            # (one core, 25 November 2026).
            image = seen.transpose(1, 2).unsqueeze(2)  # (B, C, 1, reach + T)
            taps = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            y = F.conv2d(image, taps, self.bias, dilation=(1, self.dilation)).squeeze(2).transpose(1, 2)
        else:  # for one token a product with the weight as it lies: 18 us against 258, same shape
            taps = torch.stack([seen[:, at : at + new] for at in range(0, self.reach + 1, self.dilation)], -1)
            y = F.linear(taps.flatten(2), weight.flatten(1), self.bias)
        memory = seen[:, new:]
        return y, memory.clone() if new > 1 else memory  # a view would keep the whole chunk alive


class GatedBlock(nn.Module):
    """x + W_o (a * sigmoid(g)), [a; g] = conv(LayerNorm(x)): gated, dilated, pre-norm."""

    def __init__(self, config: CNNConfig, index: int) -> None:
        super().__init__()
        dim, hidden = config.dim, config.width
        self.norm = LayerNorm(dim)
        deviation = math.sqrt(4 / (config.kernel * dim))  # the 4 makes up for the gate, which halves its input
        self.convolution = CausalConvolution(dim, 2 * hidden, config.kernel, config.dilation(index), deviation)
        self.output = nn.Linear(hidden, dim)
        nn.init.normal_(self.output.weight, std=1 / math.sqrt(hidden * config.depth))
        nn.init.zeros_(self.output.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor, memories: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        # zeros are padded after the norm, where the memory starts with them too: LayerNorm(0) is its bias
        y, memory = self.convolution(self.norm(x), memories[0] if memories else None)
        return x + F.dropout(self.output(F.glu(y)), self.dropout, self.training), [memory]


class GCNNBlock(nn.Module):
    """(x + h(x)) / sqrt(2): one gated convolution, or with hidden_dim a narrow one between two gated 1x1."""

    def __init__(self, config: CNNConfig, index: int) -> None:
        super().__init__()
        dim, hidden, kept = config.dim, config.width, 1 - config.dropout
        bottleneck = config.hidden_dim is not None
        self.reduce = self._gated_linear(dim, hidden, kept) if bottleneck else None
        self.convolution = weight_norm(
            CausalConvolution(
                hidden,
                2 * hidden,
                config.kernel,
                config.dilation(index),
                math.sqrt(4 * kept / (config.kernel * hidden)),
            )
        )
        self.expand = self._gated_linear(hidden, dim, kept) if bottleneck else None
        self.dropout = config.dropout

    @staticmethod
    def _gated_linear(inputs: int, outputs: int, kept: float) -> nn.Module:
        layer = nn.Linear(inputs, 2 * outputs)
        nn.init.normal_(layer.weight, std=math.sqrt(4 * kept / inputs))
        nn.init.zeros_(layer.bias)
        return weight_norm(layer)

    def forward(self, x: Tensor, memories: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        y = F.dropout(x, self.dropout, self.training)
        if self.reduce is not None:
            y = F.glu(self.reduce(y))
        y, memory = self.convolution(y, memories[0] if memories else None)
        y = F.glu(y)
        if self.expand is not None:
            y = F.glu(self.expand(y))
        return (x + F.dropout(y, self.dropout, self.training)) * math.sqrt(0.5), [memory]


class TCNBlock(nn.Module):
    """relu(x + f_2(f_1(x))), f(x) = dropout(relu(conv(x))), both convolutions with the level's dilation.

    The first level takes the embedding's width, the last one gives it back; x is projected where the widths differ.
    """

    def __init__(self, config: CNNConfig, index: int) -> None:
        super().__init__()
        hidden, kernel, dilation = config.width, config.kernel, config.dilation(index)
        inputs = config.dim if index == 0 else hidden
        outputs = config.dim if index == config.depth - 1 else hidden
        self.first = weight_norm(CausalConvolution(inputs, hidden, kernel, dilation, deviation=0.01))
        self.second = weight_norm(CausalConvolution(hidden, outputs, kernel, dilation, deviation=0.01))
        self.shortcut = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()
        if isinstance(self.shortcut, nn.Linear):
            nn.init.normal_(self.shortcut.weight, std=0.01)
        self.dropout = config.dropout

    def forward(self, x: Tensor, memories: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        y, first = self.first(x, memories[0] if memories else None)
        y, second = self.second(F.dropout(F.relu(y), self.dropout, self.training), memories[1] if memories else None)
        y = F.dropout(F.relu(y), self.dropout, self.training)
        return F.relu(self.shortcut(x) + y), [first, second]


class WaveNetBlock(nn.Module):
    """x + W_r z and s + W_s z, z = tanh(W_f * x) . sigmoid(W_g * x), on one stream [x; s] of width D + E.

    The first block lets the sum of skips s begin with zeros; the last one gives s alone, since nobody reads its x.
    """

    def __init__(self, config: CNNConfig, index: int) -> None:
        super().__init__()
        self.dim, self.hidden = config.dim, config.width
        self.first, last = index == 0, index == config.depth - 1
        deviation = 1 / math.sqrt(config.kernel * self.dim)
        self.convolution = CausalConvolution(
            self.dim, 2 * self.hidden, config.kernel, config.dilation(index), deviation
        )
        self.output = nn.Linear(self.hidden, self.hidden if last else self.dim + self.hidden)  # [W_r; W_s]
        self.dropout = config.dropout

    def forward(self, stream: Tensor, memories: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        if self.first:
            stream = F.pad(stream, (0, self.hidden))  # (B, T, D + E)
        y, memory = self.convolution(stream[..., : self.dim], memories[0] if memories else None)
        signal, gate = y.chunk(2, -1)
        z = F.dropout(torch.tanh(signal) * torch.sigmoid(gate), self.dropout, self.training)
        update = self.output(z)
        return stream[..., -update.shape[-1] :] + update, [memory]


BLOCKS = {"gated": GatedBlock, "gcnn": GCNNBlock, "tcn": TCNBlock, "wavenet": WaveNetBlock}


def _last_layer(config: CNNConfig) -> nn.Module:
    """What stands between the last block and the features."""
    if config.block == "gated":
        return LayerNorm(config.dim)
    if config.block == "wavenet":  # with the read-out: relu, 1x1, relu, 1x1
        return nn.Sequential(nn.ReLU(), nn.Linear(config.width, config.dim), nn.ReLU())
    return nn.Identity()


@dataclass(eq=False)
class CNNState(State):
    """The last inputs (B, reach, C) of each convolution of each block."""

    memories: list[list[Tensor]]


class CNN(LanguageModel):
    """A stack of causal convolutions of the shape that `config` gives."""

    Config = CNNConfig
    StateType = CNNState

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        # the published stacks have no norm that would lift a small embedding to the scale of their weights
        nn.init.normal_(self.embedding.weight, std=0.02 if config.block == "gated" else 0.1)
        self.blocks = nn.ModuleList(BLOCKS[config.block](config, index) for index in range(config.depth))
        self.last = _last_layer(config)

    def initial_state(self, batch_size: int, capacity: int | None = None, source: Source | None = None) -> CNNState:
        with torch.no_grad():  # what the convolutions keep of an empty chunk: zeros
            nothing = self.embedding.weight.new_zeros(batch_size, 0, dtype=torch.int64)
            return CNNState(length=0, memories=self._read(nothing, None)[1])

    def forward(self, tokens: Tensor, state: CNNState | None = None) -> tuple[Tensor, CNNState | None]:
        at = self.position(tokens, state)
        wanted = [self.config.convolutions] * self.config.depth
        if state is not None and (found := [len(memories) for memories in state.memories]) != wanted:
            raise ValueError(
                f"the state is of another model: its blocks have {found} memories, this CNN's {wanted}; "
                "start one with initial_state()"
            )
        features, memories = self._read(tokens, None if state is None else state.memories)
        return features, None if state is None else CNNState(length=at + tokens.shape[1], memories=memories)

    def _read(self, tokens: Tensor, memories: list[list[Tensor]] | None) -> tuple[Tensor, list[list[Tensor]]]:
        x = F.dropout(self.embedding(tokens), self.config.dropout, self.training)  # (B, T, D)
        kept: list[list[Tensor]] = []
        for index, block in enumerate(self.blocks):
            x, memory = block(x, memories[index] if memories else None)
            kept.append(memory)
        return self.last(x), kept

    def readout(self, features: Tensor) -> Tensor:
        return F.linear(features, self.embedding.weight)


CNN.presets = {
    "laptop": {  # less than four minutes on two cores
        "steps": 2000,
        "batch_size": 8,
        "window": 256,
        "eval_every": 500,
        "model": {"dim": 108, "depth": 12, "dilations": 7},
        "optim": {"lr": 3e-3, "min_lr": 3e-4, "warmup": 100, "beta2": 0.99},
    },
    "gcnn": {  # undilated: 37 tokens, near to the 47 words of the published GCNN-14
        "steps": 5000,
        "batch_size": 16,
        "window": 256,
        "model": {"dim": 256, "depth": 12, "kernel": 4, "dilations": 1, "dropout": 0.2, "block": "gcnn"},
        "optim": {"lr": 2e-3, "min_lr": 2e-4, "weight_decay": 0.0, "grad_clip": 0.1},
    },
    "gcnn-bottleneck": {  # 14 times five taps, as the model for the Billion Word corpus, of its first width
        "steps": 5000,
        "batch_size": 16,
        "window": 256,
        "model": {
            "dim": 512, "depth": 14, "hidden_dim": 128, "kernel": 5, "dilations": 1, "dropout": 0.2, "block": "gcnn",
        },
        "optim": {"lr": 2e-3, "min_lr": 2e-4, "weight_decay": 0.0, "grad_clip": 0.1},
    },
    "tcn": {  # the shape, window, dropout and clipping for the characters of Penn Treebank
        "steps": 10_000,
        "batch_size": 32,
        "window": 400,
        "eval_every": 500,
        "model": {"dim": 100, "depth": 3, "hidden_dim": 450, "dilations": 3, "dropout": 0.1, "block": "tcn"},
        "optim": {"lr": 2e-3, "min_lr": 2e-4, "weight_decay": 0.0, "grad_clip": 0.15},
    },
    "wavenet": {  # dilations 1 to 512: 1,024 tokens
        "steps": 3000,
        "batch_size": 4,
        "window": 1024,
        "eval_every": 500,
        "model": {"dim": 128, "depth": 10, "kernel": 2, "dilations": 10, "block": "wavenet"},
        "optim": {"lr": 2e-3, "min_lr": 2e-4, "warmup": 100, "beta2": 0.99},
    },
}  # fmt: skip
