"""Sampling as the reference does it, draws by probability, stop strings that are never shown, and what is refused."""

import math
import random
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from scratchlm.beams import beam_search
from scratchlm.generation import (
    Sampling,
    StopAt,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    row_generator,
    stream,
)
from scratchlm.model import Source
from scratchlm.models import MODELS
from scratchlm.models.gpt import GPT, GPTConfig
from toy import Toy, ToyConfig

# Filters

LOGITS = {
    "random": lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float64),
    "far apart": lambda shape, g: 30 * torch.randn(shape, generator=g, dtype=torch.float64),
    "with ties": lambda shape, g: torch.randint(-3, 4, shape, generator=g).double(),
    "all equal": lambda shape, g: torch.full(shape, 0.7, dtype=torch.float64),
    "some impossible": lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float64).masked_fill(
        torch.rand(shape, generator=g) < 0.3, -math.inf
    ),
}
KS, PS = (1, 2, 5, 17, 1000), (1e-20, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
FILTERS = {
    "top-k": (keep_top_k, TopKLogitsWarper, KS),
    "top-p": (keep_top_p, TopPLogitsWarper, PS),
    "min-p": (keep_min_p, MinPLogitsWarper, PS),
}


def logits_of(kind, dtype, seeds=range(12)):
    """Logits of several vocabularies; the first token is possible everywhere."""
    for seed in seeds:
        for size in (1, 7, 65):
            logits = LOGITS[kind]((3, size), torch.Generator().manual_seed(seed)).to(dtype)
            logits[:, 0] = logits[:, 0].clamp(min=-1)
            yield logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_equals_the_reference(name, kind, dtype):
    ours, theirs, values = FILTERS[name]
    for logits in logits_of(kind, dtype):
        before = logits.clone()
        for value in values:
            kept = ours(logits, value)
            assert kept.dtype == dtype
            assert torch.equal(kept, theirs(value)(None, logits))
            assert torch.isfinite(kept).any(-1).all(), "at least one token stays"
        assert torch.equal(logits, before), "what comes in stays as it is"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LOGITS)
def test_filters_together_equal_the_reference_in_its_order(kind, dtype):
    chosen = random.Random(0)
    for logits in logits_of(kind, dtype, range(40)):
        temperature = chosen.choice([0.1, 0.7, 1.0, 1.3, 5.0])
        k, p, m = (chosen.choice([None, *values]) for values in (KS, PS, (0.001, 0.05, 0.3, 1.0)))
        expected = TemperatureLogitsWarper(temperature)(None, logits)
        expected = expected if k is None else TopKLogitsWarper(k)(None, expected)
        expected = expected if p in (None, 1.0) else TopPLogitsWarper(p)(None, expected)  # as its generate() does
        expected = expected if m is None else MinPLogitsWarper(m)(None, expected)
        filtered = Sampling(temperature=temperature, top_k=k, top_p=p, min_p=m).filter(logits)
        assert filtered.dtype == dtype
        assert torch.equal(filtered, expected)


def test_filters_keep_what_they_say():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64).log()
    kept = {
        "top-k": [torch.isfinite(keep_top_k(logits, k)).sum().item() for k in (1, 2, 3, 4, 9)],
        "top-p": [torch.isfinite(keep_top_p(logits, p)).sum().item() for p in (0.1, 0.49, 0.51, 0.74, 0.76, 1.0)],
        "min-p": [torch.isfinite(keep_min_p(logits, p)).sum().item() for p in (0.2, 0.26, 0.49, 0.51, 1.0)],
    }
    assert kept == {"top-k": [1, 2, 4, 4, 4], "top-p": [1, 1, 2, 2, 3, 4], "min-p": [4, 2, 2, 1, 1]}


def test_nothing_asked_for_changes_nothing():
    logits = torch.randn(3, 9)
    assert torch.equal(Sampling().filter(logits), logits)
    assert torch.equal(Sampling(top_p=1.0).filter(logits), logits)
    assert torch.equal(Sampling(temperature=0.5).filter(logits), 2 * logits)


@pytest.mark.parametrize(
    ("name", "bad"),
    [("temperature", bad) for bad in (-1, -0.5, math.nan, math.inf)]
    + [("top_k", bad) for bad in (0, -1)]
    + [(name, bad) for name in ("top_p", "min_p") for bad in (0, -0.5, 1.5, math.nan, math.inf)],
)
def test_a_bad_value_is_named(name, bad):
    for use in (lambda: Sampling(**{name: bad}), lambda: generate(Toy(ToyConfig.tiny()), [[1]], 1, **{name: bad})):
        with pytest.raises(ValueError, match=f"{name.replace('_', '-')} is {re.escape(str(bad))}; it must be"):
            use()


# Draws


def draws(sampling, logits, generators):
    return sampling.draw(logits.expand(len(generators), -1), generators)


def assert_drawn_as(tokens, probabilities):
    """A chi-square test; its bound lies five deviations above its mean."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0, "an impossible token was drawn"
    expected = probabilities[possible] * len(tokens)
    freedom = possible.sum().item() - 1
    assert ((counts[possible] - expected) ** 2 / expected).sum() < freedom + 5 * math.sqrt(2 * freedom)


PROBABILITIES = torch.tensor([0.4, 0.05, 0.2, 0.01, 0.15, 0.1, 0.06, 0.03], dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2),
        ({"temperature": 3.0}, PROBABILITIES ** (1 / 3)),
        ({"top_k": 3}, PROBABILITIES * (PROBABILITIES >= 0.15)),
        ({"top_p": 0.8}, PROBABILITIES * (PROBABILITIES >= 0.1)),
        ({"min_p": 0.2}, PROBABILITIES * (PROBABILITIES >= 0.08)),
        ({"temperature": 0.5, "top_k": 5, "min_p": 0.1}, PROBABILITIES**2 * (PROBABILITIES >= 0.14)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("rows", ["one generator", "a generator for each row"])
def test_draws_follow_the_probabilities(rows, options, weights):
    count = 5000
    one = row_generator(1, 0)
    generators = [one] * count if rows == "one generator" else [row_generator(2, row) for row in range(count)]
    tokens = draws(Sampling(**options), PROBABILITIES.log(), generators)
    assert (tokens.shape, tokens.dtype) == ((count,), torch.int64)
    assert_drawn_as(tokens, weights / weights.sum())


@pytest.mark.parametrize("size", [2, 9, 65, 50257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperature_zero_takes_the_lowest_of_the_most_probable(size, dtype):
    chosen = random.Random(size)
    logits = torch.randn(20, size, dtype=dtype).clamp(max=4)
    lowest = []
    for row in logits:
        best = chosen.sample(range(size), min(size, 3))
        row[best] = 5
        lowest.append(min(best))
    greedy = Sampling(temperature=0, top_k=3, top_p=0.1, min_p=0.5)
    states = [row_generator(0, row) for row in range(20)]
    assert greedy.draw(logits, states).tolist() == lowest
    assert torch.equal(states[0].get_state(), row_generator(0, 0).get_state()), "greedy draws use no randomness"


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-300])
def test_the_smallest_temperatures_draw_the_most_probable(temperature):
    logits = torch.tensor([[1.0, -3.0, 2.0, 0.0], [1e-2, -5.0, -4.0, -3.0]])
    assert Sampling(temperature=temperature).draw(logits, [row_generator(0, 0)] * 2).tolist() == [2, 0]


def test_a_row_generator_is_one_of_seed_and_row():
    def numbers(seed, row):
        return tuple(torch.rand(4, generator=row_generator(seed, row)).tolist())

    seeds = [*range(20), 2**31, 2**32, 2**63 - 1]
    assert len({numbers(seed, row) for seed in seeds for row in range(20)}) == len(seeds) * 20
    assert numbers(3, 5) == numbers(3, 5)


def test_a_bad_seed_is_named():
    with pytest.raises(ValueError, match="seed is -1"):
        generate(Toy(ToyConfig.tiny()), [[1]], 1, seed=-1)


# Stop strings

TEXT = st.text("ab", max_size=12)
STOPS = st.text("ab", min_size=1, max_size=4)
MANY = settings(max_examples=300)


def cut(text, at):
    """The text in pieces, of which some may be empty."""
    places = [0, *sorted(place % (len(text) + 1) for place in at), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def run(stops, pieces):
    """All that is shown of the pieces, and whether a stop string came; checks what holds after each piece."""
    stop, shown, come = StopAt(stops), "", ""
    for piece in pieces:
        was_stopped = stop.stopped
        new = stop.push(piece)
        assert not (was_stopped and new), "nothing is shown after a stop string"
        shown, come = shown + new, come + piece
        assert come.startswith(shown)
        assert stop.stopped == any(string in come for string in stops)
        held = come[len(shown) :]
        assert stop.stopped or not held or any(s.startswith(held) for s in stops), "held back without a reason"
        assert stop.stopped or all(string not in shown for string in stops)
    tail = stop.flush()
    assert not (stop.stopped and tail)
    return shown + tail, stop.stopped


@MANY
@given(TEXT, STOPS, st.lists(st.integers(0, 99), max_size=8))
def test_text_ends_before_the_first_occurrence_of_a_stop_string(text, stop, at):
    before, found, _ = text.partition(stop)
    assert run([stop], cut(text, at)) == (before, bool(found))


@MANY
@example("baa", ["a", "baa"], [])
@example("baab", ["aab", "aa"], [2])
@given(TEXT, st.lists(STOPS, min_size=2, max_size=3), st.lists(st.integers(0, 99), max_size=8))
def test_of_several_stop_strings_the_first_to_be_whole_ends_the_text(text, stops, at):
    """Of those that are whole with the same character, the longest; how the text is cut does not matter."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    assert run(stops, list(text)) == expected
    assert run(stops, cut(text, at)) == expected


def test_a_tail_that_may_become_a_stop_string_is_held_until_it_is_known():
    stop = StopAt(["\n\n", "END"])
    assert [stop.push(text) for text in ("a\n", "b", "E", "N", "x", "\nE")] == ["a", "\nb", "", "", "ENx", "\n"]
    assert (stop.flush(), stop.stopped) == ("E", False)
    ended = StopAt(["\n\n", "END"])
    assert [ended.push(text) for text in ("aE", "ND", "more")] == ["a", "", ""]
    assert (ended.flush(), ended.stopped) == ("", True)


@given(st.lists(st.text()))
def test_without_stop_strings_all_is_shown_at_once(pieces):
    stop = StopAt([])
    assert [stop.push(piece) for piece in pieces] == pieces
    assert (stop.flush(), stop.stopped) == ("", False)


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_an_empty_stop_string_is_refused(stops):
    with pytest.raises(ValueError, match="a stop string is empty"):
        StopAt(stops)


# Generation

CONTEXT = GPTConfig.tiny().context
CALLS = {"generate": generate, "stream": lambda *a, **k: list(stream(*a, **k))}


@pytest.fixture(scope="module")
def gpt():
    """A GPT whose next token depends much on what it has read."""
    torch.manual_seed(1)
    model = GPT(GPTConfig.tiny()).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def written(model, prompts, new, **options):
    """The rows that `stream` makes of the prompts."""
    rows = [list(prompt) for prompt in prompts]
    for row, token in stream(model, prompts, new, **options):
        rows[row].append(token)
    return rows


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[]], "a prompt is empty"),
        ([[1], []], "a prompt is empty"),
        ([[0, 23]], "ids from 0 to 23; the model knows 0 to 22"),
        ([[1], [5, -1]], "ids from -1 to 5; the model knows 0 to 22"),
    ],
)
def test_a_bad_prompt_is_refused(gpt, call, prompts, message):
    with pytest.raises(ValueError, match=message):
        CALLS[call](gpt, prompts, 2)
    with pytest.raises(ValueError, match=message):
        CALLS[call](gpt, prompts, 0)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("prompts", [[[1]], [[1] * 20], [[1], [2] * 7], [[1] * CONTEXT]], ids=len)
def test_too_many_tokens_name_the_number_that_fits(gpt, call, prompts):
    longest = max(map(len, prompts))
    with pytest.raises(ValueError, match=f"the context is {CONTEXT} tokens, .* need {longest + 98}") as caught:
        CALLS[call](gpt, prompts, 99)
    fits = int(re.search(r"ask for (\d+) new tokens or fewer", str(caught.value))[1])
    assert fits == CONTEXT - longest + 1, "the last token is drawn and not read"
    assert [len(row) for row in written(gpt, prompts, fits)] == [len(prompt) + fits for prompt in prompts]
    with pytest.raises(ValueError, match=f"ask for {fits} new tokens"):
        CALLS[call](gpt, prompts, fits + 1)


def test_a_prompt_longer_than_the_context_is_not_asked_for_fewer_new_tokens(gpt):
    with pytest.raises(ValueError, match=f"the context is {CONTEXT} tokens") as caught:
        generate(gpt, [[1] * (CONTEXT + 1)], 1)
    assert "0 new tokens" not in str(caught.value)


@pytest.mark.parametrize("length", [1, 5, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT])
def test_sliding_goes_on_from_the_newest_half_of_the_context(gpt, length):
    prompt = [(7 * i) % 23 for i in range(length)]
    row, first = list(prompt), 0
    for _ in range(40):
        if len(row) - first > CONTEXT:
            first = len(row) - CONTEXT // 2
        features, _ = gpt(torch.tensor([row[first:]]))
        row.append(gpt.readout(features[0, -1]).argmax().item())
    assert len(set(row[length:])) > 3, "the model must not write one thing for ever"
    assert written(gpt, [prompt], 40, sampling=Sampling(temperature=0), slide=True) == [row]


@pytest.mark.parametrize("longest", [5, CONTEXT, CONTEXT + 10])
def test_sliding_rows_do_not_depend_on_each_other(gpt, longest):
    prompts = [[3], [(5 * i) % 23 for i in range(longest)], [1, 2, 3]]
    options = {"sampling": Sampling(temperature=0), "slide": True}
    assert written(gpt, prompts, 40, **options) == [written(gpt, [prompt], 40, **options)[0] for prompt in prompts]


def test_a_model_without_a_context_needs_no_sliding():
    toy = Toy(ToyConfig.tiny()).double().eval()
    assert len(generate(toy, [[1]], 60)[0]) == 61
    assert generate(toy, [[1]], 60) == written(toy, [[1]], 60, slide=True)


def test_the_end_ends_a_row_and_is_not_yielded(gpt):
    prompts = [[1, 2, 3], [4], [5, 6]]
    free = generate(gpt, prompts, 15, seed=2)
    new = [row[len(prompt) :] for row, prompt in zip(free, prompts, strict=True)]
    end = new[0][4]
    expected = [
        prompt + (tokens[: tokens.index(end)] if end in tokens else tokens)
        for prompt, tokens in zip(prompts, new, strict=True)
    ]
    assert len(expected[0]) < len(free[0])
    assert any(len(row) == len(whole) for row, whole in zip(expected, free, strict=True)), "and another row goes on"
    assert generate(gpt, prompts, 15, seed=2, end=end) == expected
    assert written(gpt, prompts, 15, seed=2, end=end) == expected


def test_an_end_in_a_prompt_ends_nothing(gpt):
    prompt, new = [1, 22, 2], generate(gpt, [[1, 22, 2]], 6, temperature=0)[0][3:]
    assert 22 not in new
    assert generate(gpt, [prompt], 6, temperature=0, end=22) == [prompt + new]


@pytest.mark.parametrize(("prompts", "new"), [([], 5), ([[1], [2, 3]], 0), ([[1]], -1)])
def test_nothing_to_write_writes_nothing(gpt, prompts, new):
    assert generate(gpt, prompts, new) == prompts
    assert list(stream(gpt, prompts, new)) == []


def test_seeds_say_different_things_and_the_same_seed_the_same(gpt):
    said = [generate(gpt, [[1], [1]], 15, temperature=2.0, seed=seed) for seed in range(8)]
    assert len({tuple(row) for rows in said for row in rows}) == 16
    assert generate(gpt, [[1], [1]], 15, temperature=2.0, seed=3) == said[3]


def test_generating_leaves_prompts_and_global_randomness_alone(gpt):
    prompts = [[1, 2], [3]]
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    generate(gpt, prompts, 10, temperature=0.8, top_p=0.9)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert prompts == [[1, 2], [3]]


# Sources


def source_of(*ids, device="cpu"):
    return Source(torch.tensor(ids, device=device), torch.tensor([len(ids[0])] * len(ids), device=device))


DECODERS = {
    "stream": lambda model, source: list(stream(model, [[1], [2]], 3, source=source)),
    "generate": lambda model, source: generate(model, [[1], [2]], 3, source=source),
    "beam search": lambda model, source: beam_search(model, [[1], [2]], 3, end=0, source=source),
}


@pytest.mark.parametrize("call", DECODERS)
@pytest.mark.parametrize(
    ("arch", "source", "message"),
    [
        ("transformer", source_of([1, 2]), "the source has 1 rows and 1 lengths for 2 prompts; give one for each"),
        ("transformer", source_of([1], [2], [3]), "the source has 3 rows and 3 lengths for 2 prompts"),
        ("transformer", Source(torch.ones(2, 3).long(), torch.tensor([3])), "has 2 rows and 1 lengths for 2 prompts"),
        ("transformer", source_of([1, 2], [3, 23]), "the source has ids from 1 to 23; the model knows 0 to 22"),
        ("transformer", source_of([1, -1], [3, 2]), "the source has ids from -1 to 3; the model knows 0 to 22"),
        ("gpt", source_of([1], [2]), "GPT reads no source; leave it out"),
        ("lstm", source_of([1], [2]), "LSTM reads no source; leave it out"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(call, arch, source, message):
    model = MODELS[arch](MODELS[arch].Config.tiny())
    with pytest.raises(ValueError, match=message):
        DECODERS[call](model, source)


class Begun(Exception):
    """The model was asked to begin."""


@pytest.mark.parametrize("call", DECODERS)
def test_a_source_goes_where_the_model_is(call, monkeypatch):
    """The device "meta" holds no values, so the model is asked no more than to begin."""
    seen = []

    def begin(rows, capacity=None, source=None):
        seen.append((source.ids.device.type, source.lengths.device.type))
        raise Begun

    model = MODELS["transformer"](MODELS["transformer"].Config.tiny()).to("meta")
    monkeypatch.setattr(model, "initial_state", begin)
    with pytest.raises(Begun):
        DECODERS[call](model, source_of([1, 2], [3, 4]))
    assert seen == [("meta", "meta")]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_that_it_was_in(training):
    model = Toy(ToyConfig.tiny()).train(training)
    generate(model, [[1]], 3)
    assert model.training == training
    started = stream(model, [[1]], 3)
    next(started)
    assert not model.training, "dropout is off while it writes"
    started.close()
    assert model.training == training
