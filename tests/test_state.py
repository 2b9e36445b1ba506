"""The memories of models: what the pytree operations promise."""

import pytest
import torch

from scratchlm.model import KV
from scratchlm.models.gpt import GPT
from toy import Toy


def gpt_state(capacity, length=5, rows=3):
    model = GPT(GPT.Config.tiny()).double()
    tokens = torch.randint(0, 23, (rows, length))
    _, state = model(tokens, model.initial_state(rows, capacity=capacity))
    return model, tokens, state


@pytest.mark.parametrize("capacity", [None, 8])
def test_bytes_and_rows(capacity):
    _, _, state = gpt_state(capacity)
    slots = 5 if capacity is None else capacity
    assert state.nbytes == 2 * 2 * 3 * slots * 16 * 8  # keys and values, blocks, rows, slots, dim, bytes of a float64
    assert state.batch_size == 3
    assert state.select(torch.tensor([1])).batch_size == 1


@pytest.mark.parametrize("capacity", [None, 8])
def test_select_copies(capacity):
    model, tokens, state = gpt_state(capacity)
    copy = state.select(torch.arange(3))
    before = model(tokens[:, :1], state)[0].clone()
    for memory in copy.memories:
        memory.keys.detach().zero_()
    torch.testing.assert_close(model(tokens[:, :1], state)[0], before)


def test_a_full_memory_says_what_would_fit():
    model, tokens, state = gpt_state(8)
    with pytest.raises(ValueError, match="holds 8 tokens, 10 are needed; ask for capacity=10"):
        model(tokens, state)
    with pytest.raises(ValueError, match="capacity is -1"):
        model.initial_state(1, capacity=-1)


def test_a_preallocated_memory_keeps_no_gradient_and_a_growing_one_does():
    _, _, fixed = gpt_state(8)
    _, _, growing = gpt_state(None)
    assert not fixed.memories[0].keys.requires_grad
    assert growing.memories[0].keys.requires_grad
    assert not growing.detach().memories[0].keys.requires_grad


def test_a_stale_state_is_refused_until_it_is_forked_in_time():
    model, tokens, state = gpt_state(8)
    fork = state.select(torch.arange(3))
    _, first = model(tokens[:, :1], state)
    kept = first.select(torch.arange(3))
    model(tokens[:, 1:2], state)  # ends `first`
    with pytest.raises(ValueError, match="select"):
        model(tokens[:, :1], first)
    with pytest.raises(ValueError, match="select"):
        model(tokens[:, :1], first.select(torch.arange(3)))  # too late: the copy has the other's tokens
    torch.testing.assert_close(model(tokens[:, :1], kept)[0], model(tokens[:, :2][:, [0, 0]], fork)[0][:, 1:])


def test_moving_and_detaching_share_the_history_of_a_buffer():
    model, tokens, state = gpt_state(8)
    for alias in (state.detach(), state.to("cpu")):
        _, first = model(tokens[:, :1], alias)
        model(tokens[:, 1:2], state)
        with pytest.raises(ValueError, match="stale"):
            model(tokens[:, :1], first)


def test_reset_forgets_rows_of_fixed_memories_alone():
    toy = Toy(Toy.Config.tiny()).double()
    tokens = torch.randint(0, 23, (3, 4))
    _, state = toy(tokens, toy.initial_state(3))
    cleared = state.reset(torch.tensor([1]))
    after, _ = toy(tokens, cleared)
    torch.testing.assert_close(after[1:2], toy(tokens[1:2])[0])
    torch.testing.assert_close(after[[0, 2]], toy(tokens, state)[0][[0, 2]])
    assert (state.hidden[0][1] != 0).any(), "the state that was reset is left as it was"
    _, _, growing = gpt_state(None)
    with pytest.raises(ValueError, match="cannot start over"):
        growing.reset(torch.tensor([0]))


def test_the_memory_takes_its_dtype_from_activations():
    model = GPT(GPT.Config.tiny())
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model(torch.zeros(1, 3, dtype=torch.int64), model.initial_state(1, capacity=4))
    assert state.memories[0].keys.dtype == torch.bfloat16
    assert isinstance(state.memories[0], KV)
