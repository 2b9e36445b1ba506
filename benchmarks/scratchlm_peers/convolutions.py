"""The gated stack as it is usually written: nn.Conv1d on the time axis, padded on the left."""

import torch.nn.functional as F
from torch import nn

from scratchlm_peers.rival import Rival, greedily


class Block(nn.Module):
    def __init__(self, dim, hidden, kernel, dilation):
        super().__init__()
        self.reach = (kernel - 1) * dilation
        self.norm = nn.LayerNorm(dim)
        self.convolution = nn.Conv1d(dim, 2 * hidden, kernel, dilation=dilation)
        self.output = nn.Linear(hidden, dim)

    def forward(self, x):  # (B, T, D)
        y = F.pad(self.norm(x).transpose(1, 2), (self.reach, 0))  # (B, D, reach + T)
        y = self.convolution(y).transpose(1, 2)  # (B, T, 2 E)
        return x + self.output(F.glu(y, -1))


class Stack(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.width, config.kernel, config.dilation(index)) for index in range(config.depth)
        )
        self.last = nn.LayerNorm(config.dim)

    def features(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.last(x)

    def forward(self, tokens):
        return F.linear(self.features(tokens), self.embedding.weight)


def rival(model):
    module = Stack(model.config).to(next(model.parameters()).device)
    module.load_state_dict(model.state_dict())
    field = model.config.receptive_field

    def loss(batch):
        return F.cross_entropy(module(batch.tokens).flatten(0, 1), batch.targets.flatten())

    def generate(prompts, new, source):
        def next_logits(tokens):
            return F.linear(module.features(tokens[:, -field:])[:, -1], module.embedding.weight)

        return greedily(next_logits, prompts, new)

    return Rival(module=module, loss=loss, generate=generate)
