"""Losses are exact, and comparable: every target once, nats and bits from the same sum."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scratchlm import evaluation
from scratchlm.data.shards import Tokens
from scratchlm.errors import InputError
from scratchlm.evaluation import carried_loss, evaluate
from scratchlm.models.gpt import GPT, GPTConfig
from scratchlm.tokenizers import ByteTokenizer, CharacterTokenizer
from toy import Toy

LENGTHS = np.ones(23, dtype=np.int64)


@pytest.mark.parametrize("model", [GPT, Toy])
@pytest.mark.parametrize(("length", "window"), [(100, 8), (97, 8), (9, 8), (8, 8), (2, 8), (50, 1), (130, 24)])
def test_every_target_is_scored_once_in_its_own_window(model, length, window):
    built = model(model.Config.tiny()).double()
    ids = torch.randint(0, 23, (length,))
    score = evaluate(built, Tokens.of(ids.numpy()), LENGTHS, window)
    losses = []
    for start in range(0, length - 1, window):  # one window at a time, as the definition says
        tokens, targets = ids[start : start + window], ids[start + 1 : start + window + 1]
        features, _ = built(tokens[None, : len(targets)])
        losses.append(F.cross_entropy(built.readout(features)[0], targets, reduction="none"))
    assert score.tokens == score.bytes == length - 1
    assert score.nats_per_token == pytest.approx(torch.cat(losses).mean().item(), rel=1e-12)
    assert score.perplexity == pytest.approx(math.exp(score.nats_per_token))
    assert score.bits_per_byte == pytest.approx(score.nats_per_token / math.log(2))


@pytest.mark.parametrize("score", [lambda model, ids: evaluate(model, ids, LENGTHS, 8), carried_loss])
def test_scoring_keeps_no_graph_and_leaves_the_mode_as_it_was(score, monkeypatch):
    """ScratchLMs estimates losses with gradients on and dropout running."""
    model, seen = Toy(Toy.Config.tiny()).train(), []
    original = evaluation.loss_and_state

    def spy(model, batch, state=None):
        seen.append((torch.is_grad_enabled(), model.training))
        return original(model, batch, state)

    monkeypatch.setattr(evaluation, "loss_and_state", spy)
    score(model, Tokens.of(np.arange(20)))
    assert set(seen) == {(False, False)}
    assert model.training


def test_bits_per_byte_count_the_bytes_of_targets():
    text = "añ€😀" * 30
    for tokenizer in (CharacterTokenizer.train([text]), ByteTokenizer()):
        ids = tokenizer.encode_array(text)
        model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, context=16, dim=16, depth=1, heads=1, dropout=0.0))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()  # a uniform distribution
        score = evaluate(model, Tokens.of(ids), tokenizer.token_lengths(), 16)
        assert score.nats_per_token == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
        assert score.bytes == len(text.encode()) - 1  # the first token, an "a", is no target
        assert score.bits_per_byte == pytest.approx(math.log2(tokenizer.vocab_size) * (len(ids) - 1) / score.bytes)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_comes_back(training):
    model = GPT(GPTConfig(vocab_size=23, context=8, dim=16, depth=1, heads=1, dropout=0.5)).train(training)
    tokens = Tokens.of(np.arange(60) % 23)
    assert evaluate(model, tokens, LENGTHS, 8) == evaluate(model, tokens, LENGTHS, 8)
    assert model.training is training


@pytest.mark.parametrize(("length", "window", "message"), [
    (1, 8, "has 1 tokens, and a loss needs two"),
    (0, 8, "has 0 tokens"),
    (50, 0, "window of 0 tokens does not fit"),
    (50, 25, "window of 25 tokens does not fit the model: it reads 1 to 24"),
])  # fmt: skip
def test_what_cannot_be_scored_is_refused(length, window, message):
    with pytest.raises(InputError, match=message):
        evaluate(GPT(GPT.Config.tiny()), Tokens.of(np.zeros(length, dtype=np.uint8)), LENGTHS, window)
    if window == 0:
        with pytest.raises(InputError, match="it reads 1 or more"):
            evaluate(Toy(Toy.Config.tiny()), Tokens.of(np.zeros(length, dtype=np.uint8)), LENGTHS, window)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
def test_a_carried_loss_predicts_every_token_with_its_whole_history(chunk, monkeypatch):
    monkeypatch.setattr(evaluation, "CARRIED_CHUNK", chunk)
    model, ids = Toy(Toy.Config.tiny()).double(), torch.randint(0, 23, (150,))
    with torch.no_grad():
        expected = F.cross_entropy(model.readout(model(ids[None, :-1])[0])[0], ids[1:])
    assert carried_loss(model, Tokens.of(ids.numpy())) == pytest.approx(expected.item(), rel=1e-12)


def test_a_carried_loss_needs_an_open_context_and_a_target():
    with pytest.raises(InputError, match="without a context limit; this one reads 24 tokens"):
        carried_loss(GPT(GPT.Config.tiny()), Tokens.of(np.arange(9)))
    with pytest.raises(InputError, match="has 1 tokens, and a loss needs two"):
        carried_loss(Toy(Toy.Config.tiny()), Tokens.of(np.arange(1)))
