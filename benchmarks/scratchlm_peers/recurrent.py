"""Our recurrent model with torch's recurrence in each of its blocks: all else is the same."""

import copy

import torch
from torch import nn

from scratchlm_peers.own import language_model

LAYERS = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}  # by the number of their gates


class Layer(nn.Module):
    """One of torch's layers where our blocks have a recurrence."""

    def __init__(self, ours):
        super().__init__()
        self.vectors = len(ours.vectors)
        inputs, hidden = ours.input.in_features, ours.recurrent.in_features
        self.layer = LAYERS[ours.gates](inputs, hidden, device=ours.input.weight.device)
        with torch.no_grad():
            for suffix, linear in (("ih", ours.input), ("hh", ours.recurrent)):
                getattr(self.layer, f"weight_{suffix}_l0").copy_(linear.weight)
                getattr(self.layer, f"bias_{suffix}_l0").copy_(linear.bias)

    def initial_memory(self, nothing):
        zeros = nothing.new_zeros(nothing.shape[1], self.layer.hidden_size)
        return (zeros,) * self.vectors

    def forward(self, x, memory):
        if not len(x):  # torch's layers read no empty text
            return x.new_zeros(0, x.shape[1], self.layer.hidden_size), memory
        first = tuple(vector[None] for vector in memory)
        hidden, after = self.layer(x, first if self.vectors > 1 else first[0])
        return hidden, tuple(vector[0] for vector in (after if self.vectors > 1 else (after,)))


def rival(model):
    module = copy.deepcopy(model)
    for block in module.blocks:
        block.recurrence = Layer(block.recurrence)
    return language_model(module)
