"""GRU: gated recurrent units in residual blocks.

Paper: Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", equations 5 to 8, in the form of
torch and cuDNN, gates in their order r, z, n:

    paper                                                   here
    r, z = sigmoid(W x_t + U h_{t-1})      (5, 6)           GatedRecurrentUnit.step
    n    = tanh(W x_t + r * (U h_{t-1}))   (8)              the reset gate acts after the product
    h_t  = z * h_{t-1} + (1 - z) * n       (7)

Departures: the paper's equation 8 resets first, U (r * h_{t-1}); resetting the product is another function, which needs
one product a step and not two. The paper has no biases. The blocks around it are those of `scratchlm/recurrence.py`.

Letters in shapes: T new tokens, B batch, H hidden_dim, I width of the layer's input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scratchlm.recurrence import Memory, Recurrence, RecurrentConfig, RecurrentModel, RecurrentState


@dataclass(frozen=True, kw_only=True)
class GRUConfig(RecurrentConfig):
    """The shape of a GRU.

    Attributes:
        vocab_size: Tokens in the vocabulary (V).
        dim: Width of the residual stream.
        hidden_dim: Width of each hidden vector (the paper's hidden units).
        depth: Blocks.
        dropout: Share of each branch's activations set to zero in training, the same ones at all steps.
    """

    gates = 3


class GatedRecurrentUnit(Recurrence):
    """r, z, n of p = W_ih x_t + b_ih and q = W_hh h_{t-1} + b_hh; h_t = (1 - z) * n + z * h_{t-1}."""

    gates = GRUConfig.gates

    def step(self, projected: Tensor, memory: Memory) -> Memory:
        (hidden,) = memory
        p_r, p_z, p_n = projected.chunk(3, -1)
        q_r, q_z, q_n = self.recurrent(hidden).chunk(3, -1)
        r, z = (p_r + q_r).sigmoid(), (p_z + q_z).sigmoid()
        n = (p_n + r * q_n).tanh()
        return ((1 - z) * n + z * hidden,)

    @staticmethod
    def unroll(x: Tensor, weights: Memory, memory: Memory) -> tuple[Tensor, Memory, Memory]:
        # tanh is slow on a CPU (see rnn.py): n = 1 - 2 s with s = sigmoid(-2 a_n), so the rows of n are scaled by -2.
        # The loop carries v = (1 - h) / 2, for which (7) is v_t = z v_{t-1} + (1 - z) s, one kernel, and
        # W_hh h = W_hh 1 - 2 W_hh v
        w_input, w_recurrent, b_input, b_recurrent = weights
        scale = x.new_tensor([1, 1, -2]).repeat_interleave(memory[0].shape[1])
        states = x.new_empty(len(x) + 1, *memory[0].shape)  # h_{t-1} in row t, the last hidden vector in the last
        gates = x.new_empty(*x.shape[:2], len(scale))  # r, z, s
        products = torch.empty_like(states[1:])  # -2 q_n
        from_input = (w_input * scale[:, None]).t().contiguous()
        from_state = (w_recurrent * (-2 * scale[:, None])).t().contiguous()
        shift = (b_recurrent + w_recurrent.sum(1)) * scale
        both, last = 2 * memory[0].shape[1], shift.chunk(3)[2]
        constant = torch.cat([(b_input * scale)[:both] + shift[:both], (b_input * scale)[both:]])
        torch.addmm(constant, x.flatten(0, 1), from_input, out=gates.flatten(0, 1))
        states[0] = (1 - memory[0]) / 2
        to_gates, to_product = from_state[:, :both], from_state[:, both:]
        v, *parts = (t.unbind(0) for t in (states, gates[..., :both], products, *gates.chunk(3, -1)))
        for t, (gate, product, r, z, s) in enumerate(zip(*parts, strict=True)):
            gate.addmm_(v[t], to_gates).sigmoid_()
            torch.addmm(last, v[t], to_product, out=product)
            s.addcmul_(r, product).sigmoid_()
            torch.lerp(s, v[t], z, out=v[t + 1])
        states.mul_(-2).add_(1)
        states[0] = memory[0]
        return states[1:], (states[-1].clone(),), (states, gates, products)

    @staticmethod
    def unroll_backward(
        kept: Memory, recurrent: Tensor, gradient: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        # da_n = dh (1-z)(1-n^2);  da_z = dh (h_{t-1} - n) z(1-z);  da_r = da_n q_n r(1-r);  dq_n = da_n r;
        # dh_{t-1} = (its own gradient) + dh z + W_hh^T [da_r, da_z, dq_n]
        states, gates, products = kept
        r, z, s = gates.chunk(3, -1)
        slopes = torch.addcmul(gates, gates, gates, value=-1)  # sigmoids' y(1-y); becomes [da_r, da_z, dq_n]
        of_r, of_z, of_n = slopes.chunk(3, -1)
        of_input = (1 - z).mul_(of_n).mul_(4)  # 1 - n^2 is 4 s(1-s)
        of_r.mul_(of_input).mul_(products).mul_(-0.5)
        of_z.mul_(states[:-1] - 1 + 2 * s)
        torch.mul(of_input, r, out=of_n)
        own = (torch.zeros_like(memory[0]), *gradient.unbind(0))  # the first memory's is added by autograd
        carried = torch.empty_like(states)  # dh_{t-1} in row t
        torch.add(memory[0], own[-1], out=carried[-1])
        rows = (slopes.unbind(0), slopes.unflatten(-1, (3, -1)).unbind(0), z.unbind(0), own[:-1])
        after = carried.unbind(0)
        for t, (slope, each, keep, gained) in reversed(list(enumerate(zip(*rows, strict=True)))):
            each.mul_(after[t + 1][:, None])
            torch.addcmul(gained, after[t + 1], keep, out=after[t]).addmm_(slope, recurrent)
        projected = torch.cat([slopes[..., : 2 * z.shape[-1]], of_input.mul_(carried[1:])], -1)  # [da_r, da_z, da_n]
        return projected, slopes, states[:-1], (carried[0],)


class GRUState(RecurrentState):
    """The hidden vector (B, H) of each block."""


class GRU(RecurrentModel):
    """A GRU of the shape that `config` gives."""

    Config = GRUConfig
    StateType = GRUState
    Layer = GatedRecurrentUnit


GRU.fused = dict.fromkeys(("recurrence.input", "recurrence.recurrent"), ("r", "z", "n"))
GRU.presets = {
    "laptop": {  # sized for four minutes on two cores
        "steps": 1600,
        "batch_size": 16,
        "window": 128,
        "eval_every": 400,
        "model": {"dim": 128, "hidden_dim": 192, "depth": 3},
        "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup": 100, "beta2": 0.99},
    },
}
