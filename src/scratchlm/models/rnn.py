"""RNN: the simple recurrent network of Elman, in residual blocks.

Paper: Elman 1990, "Finding Structure in Time". A context layer holds the hidden vector of the step before; as the
paper states in words, and with today's tanh for its logistic units:

    paper                                                   here
    hidden = f(input, context)                              h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh): step
    context = the last hidden vector                        RecurrentState
    prediction from the hidden units                        Block: W_o h_t, added to the residual stream
    training: backpropagation                               unroll_backward: through time (Werbos 1990)

Departures: the paper cuts the gradient at the context, this goes back through all steps of a chunk. A stack of layers
stands in pre-norm residual blocks with an MLP each, as a GPT's attention does, with a final norm and a tied read-out
(`scratchlm/recurrence.py`).

Letters in shapes: T new tokens, B batch, H hidden_dim, I width of the layer's input.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from scratchlm.recurrence import Memory, Recurrence, RecurrentConfig, RecurrentModel, RecurrentState


@dataclass(frozen=True, kw_only=True)
class RNNConfig(RecurrentConfig):
    """The shape of an Elman network.

    Attributes:
        vocab_size: Tokens in the vocabulary (V).
        dim: Width of the residual stream.
        hidden_dim: Width of each hidden vector (the paper's hidden and context units).
        depth: Blocks.
        dropout: Share of each branch's activations set to zero in training, the same ones at all steps.
    """

    hidden_per_dim = 2


class Elman(Recurrence):
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)."""

    gates = RNNConfig.gates

    def step(self, projected: Tensor, memory: Memory) -> Memory:
        (hidden,) = memory
        return (torch.tanh(projected + self.recurrent(hidden)),)

    @staticmethod
    def unroll(x: Tensor, weights: Memory, memory: Memory) -> tuple[Tensor, Memory, Memory]:
        # torch's sigmoid is five times as fast as its tanh on a CPU (4 against 22 us for 32 x 256, November 2026), so
        # the loop carries u = sigmoid(2 a) = (tanh(a) + 1) / 2; then 2 a_t = 2 (W_ih x + b - W_hh 1) + 4 W_hh u_{t-1}
        w_input, w_recurrent, *biases = weights
        states = x.new_empty(len(x) + 1, *memory[0].shape)  # h_{t-1} in row t, the last hidden vector in the last
        shift = 2 * (sum(biases) - w_recurrent.sum(1))
        torch.addmm(shift, x.flatten(0, 1), w_input.t().contiguous(), alpha=2, out=states[1:].flatten(0, 1))
        states[0] = (memory[0] + 1) / 2
        transposed = w_recurrent.t().contiguous()
        for before, now in itertools.pairwise(states.unbind(0)):
            now.addmm_(before, transposed, alpha=4).sigmoid_()
        states.mul_(2).sub_(1)
        states[0] = memory[0]
        return states[1:], (states[-1].clone(),), (states,)

    @staticmethod
    def unroll_backward(
        kept: Memory, recurrent: Tensor, gradient: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        # da_t = dh_t (1 - h_t^2);  dh_{t-1} = (its own gradient) + W_hh^T da_t
        (states,) = kept
        slopes = torch.addcmul(states.new_ones(()), states[1:], states[1:], value=-1)  # becomes da
        own = (torch.zeros_like(memory[0]), *gradient.unbind(0))  # the first memory's is added by autograd
        carried = memory[0] + own[-1]
        for slope, gained in zip(reversed(slopes.unbind(0)), reversed(own[:-1]), strict=True):
            torch.addmm(gained, slope.mul_(carried), recurrent, out=carried)
        return slopes, slopes, states[:-1], (carried,)


class RNNState(RecurrentState):
    """The hidden vector (B, H) of each block."""


class RNN(RecurrentModel):
    """An Elman network of the shape that `config` gives."""

    Config = RNNConfig
    StateType = RNNState
    Layer = Elman


RNN.presets = {
    "laptop": {  # sized for four minutes on two cores; the rate won over 2e-3 in 500 steps
        "steps": 2000,
        "batch_size": 16,
        "window": 128,
        "eval_every": 500,
        "model": {"dim": 128, "hidden_dim": 256, "depth": 3},
        "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup": 100, "beta2": 0.99},
    },
}
