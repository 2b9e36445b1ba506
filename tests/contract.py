"""The nine checks that every architecture must pass, in float64, to 1e-9.

Each takes a function that makes a fresh model and raises AssertionError where the model breaks the contract.
"""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm import generation
from scratchlm.model import Source

ROWS, LENGTH = 3, 12
FEW = settings(max_examples=12, derandomize=True, deadline=None, database=None)  # alike in tests and in notebooks


def tokens_for(model, rows=ROWS, length=LENGTH):
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(7))


def other(model, tokens):
    return (tokens + 3) % model.config.vocab_size


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def source_for(model, tokens):
    """What each row reads, for a model that reads a source: its first token decides, so it moves with the row.

    The sources of a batch have several lengths, and a batch is as wide as its longest one.
    """
    if not model.takes_source:
        return None
    first = tokens[:, :1]
    lengths = 1 + first[:, 0] % model.source_context
    ids = (5 * first + 7 * torch.arange(int(lengths.max())) + 2) % model.config.vocab_size
    return Source(ids, lengths)


def begin(model, tokens, capacity=None):
    """The memory of nothing, or of the rows' sources, for these tokens."""
    return model.initial_state(len(tokens), capacity=capacity, source=source_for(model, tokens))


def whole(model, tokens):
    if model.takes_source:
        return model(tokens, begin(model, tokens))[0]
    features, state = model(tokens)
    assert state is None, "no state in, none out"
    return features


def in_chunks(model, tokens, cuts, capacity):
    state = begin(model, tokens, capacity)
    assert state.length == 0
    parts = []
    for start, end in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        features, state = model(tokens[:, start:end], state)
        assert state.length == end, "the state counts the tokens that it has consumed"
        parts.append(features)
    return torch.cat(parts, 1), state


def causal(make):
    """Changing later tokens changes no earlier feature, and does change later ones."""
    model = make()
    tokens = tokens_for(model)
    before = whole(model, tokens)
    for at in (1, 7, LENGTH - 1):
        changed = torch.cat([tokens[:, :at], other(model, tokens[:, at:])], 1)
        after = whole(model, changed)
        close(after[:, :at], before[:, :at])
        assert not torch.allclose(after[:, at:], before[:, at:]), "later features must follow their tokens"


def stream(make):
    """Any chunking, empty chunks too, equals one chunk, with both kinds of memory."""
    model = make()
    tokens = tokens_for(model)
    expected = whole(model, tokens)

    @FEW
    @given(st.lists(st.integers(0, LENGTH), max_size=6).map(sorted), st.sampled_from([None, LENGTH, LENGTH + 5]))
    def chunked(cuts, capacity):
        close(in_chunks(model, tokens, cuts, capacity)[0], expected)

    chunked()
    for capacity in (None, LENGTH):
        close(in_chunks(model, tokens, list(range(1, LENGTH)), capacity)[0], expected)


def fork(make):
    """`select` equals rerunning the selected rows, also of rows that were selected."""
    model = make()
    tokens, rows = tokens_for(model), torch.tensor([2, 0, 0])
    for capacity in (None, LENGTH):
        _, state = in_chunks(model, tokens[:, :6], [], capacity)
        features, _ = model(tokens[rows, 6:], state.select(rows))
        close(features, whole(model, tokens[rows])[:, 6:])
        one, _ = model(tokens[1:2, 6:], state.select(torch.tensor([1])))
        close(one, whole(model, tokens[1:2])[:, 6:])
        again, _ = model(tokens[[0, 2], 6:], state.select(rows).select(torch.tensor([2, 0])))
        close(again, whole(model, tokens[[0, 2]])[:, 6:])


def rollback(make):
    """Going on from an older state is right, whatever was done since."""
    model = make()
    tokens = tokens_for(model)
    for capacity in (None, LENGTH):
        _, state = in_chunks(model, tokens[:, :6], [], capacity)
        model(other(model, tokens[:, 6:9]), state)
        features, _ = model(tokens[:, 6:], state)
        close(features, whole(model, tokens)[:, 6:])


def siblings(make):
    """Two continuations of one state are right, or the one that no longer lives is refused."""
    model = make()
    tokens = tokens_for(model)
    second = torch.cat([tokens[:, :6], other(model, tokens[:, 6:])], 1)
    for capacity in (None, LENGTH):
        _, state = in_chunks(model, tokens[:, :6], [], capacity)
        _, first = model(tokens[:, 6:8], state)
        _, later = model(second[:, 6:8], state)
        close(model(second[:, 8:], later)[0], whole(model, second)[:, 8:])
        try:
            features, _ = model(tokens[:, 8:], first)
        except ValueError as error:
            refusal = str(error)
            assert "select" in refusal, "a refusal names the remedy"
        else:
            close(features, whole(model, tokens)[:, 8:])


def rows(make):
    """A row does not depend on its batch."""
    model = make()
    tokens = tokens_for(model)
    together = whole(model, tokens)
    for row in range(ROWS):
        close(whole(model, tokens[row : row + 1]), together[row : row + 1])


def _loss(model, features, tokens):
    return F.cross_entropy(model.readout(features[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def gradients(make):
    """Every parameter gets a gradient; through a carried state it is that of the whole; a detached state trains."""
    model = make()
    tokens = tokens_for(model)
    _loss(model, whole(model, tokens), tokens).backward()
    expected = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.abs().sum() > 0, f"{name} gets a gradient of zeros"
        expected[name] = parameter.grad.clone()
    model.zero_grad()
    features, state = in_chunks(model, tokens, [5], None)
    _loss(model, features, tokens).backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name])
    model.zero_grad()
    state = begin(model, tokens)
    for chunk in tokens.split(4, 1):
        features, state = model(chunk, state.detach())
        _loss(model, features, chunk).backward()
    assert any((parameter.grad != 0).any() for parameter in model.parameters())


def ragged(make):
    """Batched generation from prompts of several lengths equals one by one, greedy and sampled."""
    model = make()
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 9], [10, 11]]
    sources = source_for(model, torch.tensor([prompt[:1] for prompt in prompts]))
    together = generation.generate(model, prompts, 6, temperature=0, source=sources)
    for row, prompt in enumerate(prompts):
        source = source_for(model, torch.tensor([prompt]))
        assert generation.generate(model, [prompt], 6, temperature=0, source=source)[0] == together[row]
        tokens = torch.tensor([together[row]])
        best = model.readout(whole(model, tokens))[0, len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == together[row][len(prompt) :], "greedy decoding must follow the training path"
    sampled = generation.generate(model, prompts, 6, seed=3, source=sources)
    for row, prompt in enumerate(prompts):
        drawn = []
        for _ in range(6):  # the same draws, from the training path
            logits = model.readout(whole(model, torch.tensor([prompt + drawn])))[:, -1]
            generator = generation.row_generator(3, row)
            for _ in drawn:
                torch.multinomial(logits.softmax(-1)[0], 1, generator=generator)
            drawn.append(generation.Sampling().draw(logits, [generator]).item())
        assert prompt + drawn == sampled[row]


def learns(make):
    """It overfits one batch: most do in 60 steps; a bare table, whose logits move by the rate alone, needs 200."""
    model = make()
    tokens = tokens_for(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    first = _loss(model, whole(model, tokens), tokens).item()
    for _ in range(300):
        optimizer.zero_grad()
        loss = _loss(model, whole(model, tokens), tokens)
        if loss.item() < 0.5 * first:
            return
        loss.backward()
        optimizer.step()
    raise AssertionError(f"from {first:.3f} to {loss.item():.3f} only")


CHECKS = {
    check.__name__: check for check in (causal, stream, fork, rollback, siblings, rows, gradients, ragged, learns)
}


def failed(make):
    """The names of the checks that the model fails; torch refuses some in-place writes by itself."""
    names = []
    for name, check in CHECKS.items():
        try:
            check(make)
        except (AssertionError, RuntimeError):
            names.append(name)
    return names
