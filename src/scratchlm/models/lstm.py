"""LSTM: long short-term memory in residual blocks.

Paper: Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", with the forget gate of Gers, Schmidhuber and Cummins
2000, "Learning to Forget". Equations as torch writes them, gates in its order i, f, g, o:

    paper                                                   here
    i, f, o = sigmoid(W x_t + U h_{t-1} + b)                LongShortTermMemory.step
    g       = tanh(W x_t + U h_{t-1} + b)                   the cell's input
    c_t     = f * c_{t-1} + i * g                           the cell, whose error the gate f alone lets fade
    h_t     = o * tanh(c_t)
    forget bias above 0 at the start                        reset_parameters: 1 (Jozefowicz et al. 2015, section 2.2)

Departures: the paper's g and its output squash run to 2 and 1, these are tanh; it has no forget gate and cuts gradients
inside the cell, this goes back through all. No peepholes. The blocks around it are those of `scratchlm/recurrence.py`.

Letters in shapes: T new tokens, B batch, H hidden_dim, I width of the layer's input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scratchlm.recurrence import Memory, Recurrence, RecurrentConfig, RecurrentModel, RecurrentState


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(RecurrentConfig):
    """The shape of an LSTM.

    Attributes:
        vocab_size: Tokens in the vocabulary (V).
        dim: Width of the residual stream.
        hidden_dim: Width of each hidden vector and each cell (the papers' memory cells).
        depth: Blocks.
        dropout: Share of each branch's activations set to zero in training, the same ones at all steps.
    """

    gates = 4


class LongShortTermMemory(Recurrence):
    """i, f, g, o of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh; c_t = f * c_{t-1} + i * g; h_t = o * tanh(c_t)."""

    gates = LSTMConfig.gates
    vectors = ("hidden", "cell")

    def reset_parameters(self) -> None:
        """As every recurrence, and a forget bias of 1: the cell keeps most of what it holds from the first step on."""
        super().reset_parameters()
        nn.init.ones_(self.input.bias.chunk(4)[1])

    def step(self, projected: Tensor, memory: Memory) -> Memory:
        hidden, cell = memory
        i, f, g, o = (projected + self.recurrent(hidden)).chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    @staticmethod
    def unroll(x: Tensor, weights: Memory, memory: Memory) -> tuple[Tensor, Memory, Memory]:
        # tanh is slow on a CPU (see rnn.py): tanh(a) = 1 - 2 sigmoid(-2 a), so the rows of g are scaled by -2 and s =
        # sigmoid(-2 a_g) stands in g's place. The loop carries -2 c: with it tanh(c) is a sigmoid too
        w_input, w_recurrent, *biases = weights
        scale = x.new_tensor([1, 1, -2, 1]).repeat_interleave(memory[0].shape[1])
        hiddens = x.new_empty(len(x) + 1, *memory[0].shape)  # h_{t-1} in row t, the last hidden vector in the last
        cells = torch.empty_like(hiddens)  # -2 c, likewise
        gates = x.new_empty(*x.shape[:2], len(scale))
        ends = torch.empty_like(hiddens[1:])  # sigmoid(-2 c_t)
        transposed = (w_input * scale[:, None]).t().contiguous()
        torch.addmm(sum(biases) * scale, x.flatten(0, 1), transposed, out=gates.flatten(0, 1))
        hiddens[0], cells[0] = memory[0], -2 * memory[1]
        transposed = (w_recurrent * scale[:, None]).t().contiguous()
        h, c, *parts = (rows.unbind(0) for rows in (hiddens, cells, gates, ends, *gates.chunk(4, -1)))
        for t, (gate, end, i, f, s, o) in enumerate(zip(*parts, strict=True)):
            gate.addmm_(h[t], transposed).sigmoid_()
            torch.mul(f, c[t], out=c[t + 1]).add_(i, alpha=-2).addcmul_(i, s, value=4)
            torch.sigmoid(c[t + 1], out=end)
            torch.addcmul(o, o, end, value=-2, out=h[t + 1])
        cells.div_(-2)
        cells[0] = memory[1]
        return hiddens[1:], (hiddens[-1].clone(), cells[-1].clone()), (hiddens, cells, gates, ends)

    @staticmethod
    def unroll_backward(
        kept: Memory, recurrent: Tensor, gradient: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        # dc_t += dh_t o (1 - tanh(c_t)^2);  da_i = dc g i(1-i);  da_f = dc c_{t-1} f(1-f);  da_g = dc i (1-g^2);
        # da_o = dh tanh(c_t) o(1-o);  dc_{t-1} = dc f;  dh_{t-1} = (its own gradient) + W_hh^T da_t
        hiddens, cells, gates, ends = kept
        i, f, s, o = gates.chunk(4, -1)
        slopes = torch.addcmul(gates, gates, gates, value=-1)  # sigmoids' y(1-y); becomes da; 1-g^2 is 4 s(1-s)
        of_i, of_f, of_g, of_o = slopes.chunk(4, -1)
        of_i.addcmul_(of_i, s, value=-2)  # times g
        of_f.mul_(cells[:-1])
        of_g.mul_(i).mul_(4)
        of_o.addcmul_(of_o, ends, value=-2)  # times tanh(c)
        of_cell = torch.addcmul(ends, ends, ends, value=-1).mul_(o).mul_(4)
        of_ifg = slopes[..., : 3 * f.shape[-1]].unflatten(-1, (3, -1))  # (T, B, 3, H)
        own = (torch.zeros_like(memory[0]), *gradient.unbind(0))  # the first memory's is added by autograd
        carried, cell = memory[0] + own[-1], memory[1].clone()
        rows = (slopes.unbind(0), of_ifg.unbind(0), of_o.unbind(0), of_cell.unbind(0), f.unbind(0), own[:-1])
        for slope, ifg, output, through, forget, gained in zip(*(reversed(row) for row in rows), strict=True):
            cell.addcmul_(carried, through)
            output.mul_(carried)
            ifg.mul_(cell[:, None])
            cell.mul_(forget)
            torch.addmm(gained, slope, recurrent, out=carried)
        return slopes, slopes, hiddens[:-1], (carried, cell)


class LSTMState(RecurrentState):
    """The hidden vector and the cell (B, H) of each block."""


class LSTM(RecurrentModel):
    """An LSTM of the shape that `config` gives."""

    Config = LSTMConfig
    StateType = LSTMState
    Layer = LongShortTermMemory


LSTM.fused = dict.fromkeys(("recurrence.input", "recurrence.recurrent"), ("i", "f", "g", "o"))
LSTM.presets = {
    "laptop": {  # sized for four minutes on two cores
        "steps": 1400,
        "batch_size": 16,
        "window": 128,
        "eval_every": 350,
        "model": {"dim": 128, "hidden_dim": 192, "depth": 3},
        "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup": 100, "beta2": 0.99},
    },
}
