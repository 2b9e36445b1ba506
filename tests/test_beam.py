"""Beam search against brute force, against a search that keeps no memory and never stops early, and against bugs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm import beams
from scratchlm.beams import Hypothesis, beam_search
from scratchlm.generation import generate
from scratchlm.model import Source, State
from scratchlm.models import MODELS
from toy import Toy

ARCHITECTURES = {**{name: MODELS[name] for name in MODELS}, "toy": Toy}
PENALTIES = (0.0, 0.6, 1.0)


def made(name, vocab_size, seed=0):
    """A model whose next token depends much on what it has read."""
    torch.manual_seed(seed)
    config = ARCHITECTURES[name].Config.tiny()
    model = ARCHITECTURES[name](dataclasses.replace(config, vocab_size=vocab_size)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.4 * torch.randn_like(parameter))
    return model


def source_for(model, rows, seed=0):
    """A source of random length for each row, where the model takes one."""
    if not model.takes_source:
        return None
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (rows, 6), generator=generator)
    return Source(ids, torch.randint(1, 7, (rows,), generator=generator))


def row_of(source, row):
    return source and Source(source.ids[row : row + 1], source.lengths[row : row + 1])


def log_probabilities(model, tokens, source):
    """Of each next token after each of the tokens, read at once. Shapes: (V,) for each."""
    state = model.initial_state(1, source=source) if source else None
    with torch.no_grad():
        return model.readout(model(torch.tensor([tokens]), state)[0])[0].log_softmax(-1)


def penalised(log_probability, length, alpha):
    return log_probability / ((5 + length) / 6) ** alpha


def rescored(model, prompt, tokens, end, source):
    """The log-probability of the tokens and the end, by teacher forcing."""
    read = log_probabilities(model, [*prompt, *tokens], source)[len(prompt) - 1 :]
    return sum(row[token].item() for row, token in zip(read, [*tokens, end], strict=True))


def plain_search(model, prompt, longest, *, end, beam, alpha, alternatives, source=None):
    """The same search, each hypothesis read from its start at each step, to the greatest length whatever was found."""
    live, finished = [((), 0.0)], []
    for length in range(longest + 1):
        found = []
        for tokens, total in live:
            values = log_probabilities(model, [*prompt, *tokens], source)[-1].tolist()
            found += [
                (tokens, total + values[token], token)
                for token in range(len(values))
                if length < longest or token == end
            ]
        found = sorted(found, key=lambda one: -one[1])[: beam - len(finished)]
        finished += [(tokens, total) for tokens, total, token in found if token == end]
        live = [((*tokens, token), total) for tokens, total, token in found if token != end]
    scored = [(list(tokens), total, penalised(total, len(tokens) + 1, alpha)) for tokens, total in finished]
    return sorted(scored, key=lambda one: -one[2])[:alternatives]


def assert_same(found, expected):
    assert [one.tokens for one in found] == [tokens for tokens, *_ in expected]
    for one, (_, log_probability, score) in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(log_probability, abs=1e-9)
        assert one.score == pytest.approx(score, abs=1e-9)


def follows_the_plain_search(name, seed, *, vocab_size=4, beam=3, alpha=0.6, alternatives=1, longest=(7, 3, 5)):
    model = made(name, vocab_size, seed)
    prompts, source = [[1, 2], [3 % vocab_size], [0, 1]], source_for(model, 3, seed)
    options = {"end": 0, "beam": beam, "alternatives": alternatives}
    found = beam_search(model, prompts, longest, length_penalty=alpha, source=source, **options)
    for row, prompt in enumerate(prompts):
        reference = plain_search(model, prompt, longest[row], alpha=alpha, source=row_of(source, row), **options)
        assert_same(found[row], reference)


@pytest.mark.parametrize("alpha", PENALTIES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_beam_of_one_is_greedy(name, alpha):
    lengths = set()
    for seed in range(4):
        model = made(name, 9, seed)
        prompts, source = [[1, 2], [3], [5, 4], [7, 8, 1]], source_for(model, 4, seed)
        end = generate(model, prompts, 8, temperature=0, source=source)[0][5]
        greedy = generate(model, prompts, 8, temperature=0, end=end, source=source)
        found = beam_search(model, prompts, 8, end=end, beam=1, length_penalty=alpha, source=source)
        assert [prompt + one.tokens for prompt, (one,) in zip(prompts, found, strict=True)] == greedy
        lengths |= {len(one.tokens) for (one,) in found}
    assert len(lengths) > 1, "some end by themselves"


@pytest.mark.parametrize("alpha", PENALTIES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_wide_beam_is_brute_force(name, alpha):
    """A beam of V^(L-1), L counting the end, has a place for every sequence: it finds them all, in order."""
    for seed, (vocab_size, longest, end) in enumerate([(3, 3, 1), (4, 2, 0), (2, 4, 1)]):
        model = made(name, vocab_size, seed)
        source = source_for(model, 1, seed)
        others = [token for token in range(vocab_size) if token != end]
        every = [list(one) for n in range(longest + 1) for one in itertools.product(others, repeat=n)]
        totals = [rescored(model, [1], tokens, end, source) for tokens in every]
        scores = [penalised(total, len(tokens) + 1, alpha) for tokens, total in zip(every, totals, strict=True)]
        ranked = sorted(zip(every, totals, scores, strict=True), key=lambda one: -one[2])
        options = {"end": end, "beam": vocab_size**longest, "length_penalty": alpha, "source": source}
        assert_same(beam_search(model, [[1]], longest, alternatives=len(every), **options)[0], ranked)
        assert_same(beam_search(model, [[1]], longest, **options)[0], ranked[:1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_equals_a_search_without_memory_that_never_stops_early(name):
    """Tokens and scores, however many are asked for: the memory follows the hypotheses, and stopping loses nothing."""

    @settings(max_examples=25)
    @given(
        seed=st.integers(0, 999),
        vocab_size=st.integers(3, 6),
        beam=st.integers(1, 5),
        alpha=st.sampled_from(PENALTIES),
        data=st.data(),
    )
    def check(seed, vocab_size, beam, alpha, data):
        alternatives = data.draw(st.integers(1, beam))
        longest = data.draw(st.lists(st.integers(0, 7), min_size=3, max_size=3))
        follows_the_plain_search(
            name,
            seed,
            vocab_size=max(vocab_size, 3),
            beam=beam,
            alpha=alpha,
            alternatives=alternatives,
            longest=longest,
        )

    check()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_hypothesis_says_is_so(name):
    model = made(name, 7)
    prompts, longest = [[1, 2], [3], [6, 5, 4], [1, 2]], [8, 0, 5, 9]
    source = source_for(model, 4)
    found = beam_search(model, prompts, longest, end=2, beam=5, alternatives=5, source=source)
    assert len(found) == 4
    assert [len(one) for one in found] == [5, 1, 5, 5], "one alone has no tokens"
    for row, hypotheses in enumerate(found):
        assert len({tuple(one.tokens) for one in hypotheses}) == len(hypotheses)
        assert [one.score for one in hypotheses] == sorted((one.score for one in hypotheses), reverse=True)
        for one in hypotheses:
            assert 2 not in one.tokens
            assert len(one.tokens) <= longest[row]
            expected = rescored(model, prompts[row], one.tokens, 2, row_of(source, row))
            assert one.log_probability == pytest.approx(expected, abs=1e-9)
            assert one.score == pytest.approx(penalised(expected, len(one.tokens) + 1, 0.6), abs=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompt_does_not_depend_on_its_batch(name):
    """Also where others end at once, or go on when it has ended."""
    ends = set()
    for seed in range(3):
        model = made(name, 6, seed)
        prompts = [[1, 2], [3], [0], [4, 5, 1], [5], [2, 2]]
        longest, source = [9, 1, 9, 4, 0, 6], source_for(model, 6, seed)
        options = {"end": 0, "beam": 3, "alternatives": 2}
        together = beam_search(model, prompts, longest, source=source, **options)
        for row, prompt in enumerate(prompts):
            (alone,) = beam_search(model, [prompt], longest[row], source=row_of(source, row), **options)
            assert_same(together[row], [dataclasses.astuple(one) for one in alone])
            ends |= {len(one.tokens) for one in alone}
    assert len(ends) > 2


def waits_for_the_longer_one(alpha=0.6):
    """The end is likelier than what goes on, which then goes on to its own end surely: with a penalty that one wins."""
    bigram = MODELS["bigram"](MODELS["bigram"].Config(vocab_size=9)).double()
    with torch.no_grad():
        (table,) = bigram.blocks
        table.weight.fill_(-40)
        table.weight[1, [0, 2]] = torch.tensor([0.55, 0.45], dtype=torch.float64).log()
        for token in range(2, 9):
            table.weight[token, (token + 1) % 9] = 0
    options = {"end": 0, "beam": 2, "alternatives": 1}
    (found,) = beam_search(bigram, [[1]], 12, length_penalty=alpha, **options)
    assert_same(found, plain_search(bigram, [1], 12, alpha=alpha, **options))
    return found[0].tokens


def test_a_longer_hypothesis_is_waited_for():
    assert waits_for_the_longer_one(0.0) == []
    assert waits_for_the_longer_one(0.6) == [2, 3, 4, 5, 6, 7, 8]


# Ties


def uniform(vocab_size):
    toy = Toy(Toy.Config(vocab_size=vocab_size)).double()
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()
    return toy


@pytest.mark.parametrize("longest", [2, 9])
def test_of_equal_hypotheses_those_of_the_first_parent_and_the_lowest_ids_are_kept(longest):
    (found,) = beam_search(uniform(5), [[1]], longest, end=4, beam=3, alternatives=3)
    assert [one.tokens for one in found] == [[0] * (longest - 1) + [last] for last in (0, 1, 2)]
    (found,) = beam_search(uniform(5), [[1]], longest, end=0, beam=3, alternatives=3)
    assert [one.tokens for one in found] == [[], [1], [1, 1]]
    assert [one.log_probability for one in found] == pytest.approx([-n * math.log(5) for n in (1, 2, 3)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_of_equal_logits_the_lowest_id_is_first(dtype):
    logits = torch.randint(-3, 4, (20, 31)).to(dtype)
    before = logits.clone()
    values, ids = beams._largest(logits, 9)
    expected = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected.values[:, :9])
    assert torch.equal(ids, expected.indices[:, :9])
    assert torch.equal(logits, before), "what comes in stays as it is"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_say_nothing_are_refused(bad):
    bigram = MODELS["bigram"](MODELS["bigram"].Config(vocab_size=6))
    with torch.no_grad():
        bigram.blocks[0].weight[2].fill_(bad)
    for longest in (0, 2):
        with pytest.raises(ValueError, match=r"after prompt 1 the model's logits say nothing: .* check its weights"):
            beam_search(bigram, [[1], [2]], [1, longest], end=0)


def test_an_end_that_is_impossible_where_it_must_come_is_named():
    toy = made("toy", 6)
    with torch.no_grad():
        toy.head.bias[0] = -math.inf
    with pytest.raises(ValueError, match=r"prompt 0 can end after 2 tokens: the end token 0 has probability 0 there"):
        beam_search(toy, [[1], [2]], [2, 3], end=0)


def test_half_precision_is_scored_in_single():
    toy = made("toy", 60).to(torch.bfloat16)
    (found,) = beam_search(toy, [[1]], 5, end=0)
    with torch.no_grad():
        logits = toy.readout(toy(torch.tensor([[1, *found[0].tokens]]))[0])[0].float()
    expected = sum(row[token].item() for row, token in zip(logits.log_softmax(-1), [*found[0].tokens, 0], strict=True))
    assert found[0].log_probability == pytest.approx(expected, rel=1e-5)


def test_an_impossible_token_is_in_no_hypothesis():
    toy = made("toy", 6)
    with torch.no_grad():
        toy.head.bias[[1, 3, 4]] = -math.inf
    (found,) = beam_search(toy, [[1]], 2, end=0, beam=9, alternatives=9)
    assert sorted(one.tokens for one in found) == [[], [2], [2, 2], [2, 5], [5], [5, 2], [5, 5]]


# Work that is saved


def rows_read(model, monkeypatch):
    """The shape of each chunk that the model reads."""
    shapes, forward = [], type(model).forward

    def spy(self, tokens, state=None):
        shapes.append(tuple(tokens.shape))
        return forward(self, tokens, state)

    monkeypatch.setattr(type(model), "forward", spy)
    return shapes


def test_a_prompt_is_read_once_and_what_has_ended_leaves_the_batch(monkeypatch):
    model = made("gpt", 12)
    shapes = rows_read(model, monkeypatch)
    prompts = [[1, 2, 3]] * 3
    beam_search(model, prompts, [2, 12, 6], end=0, beam=4, alternatives=4)
    assert shapes[0] == (3, 3)
    rows = [rows for rows, new in shapes[1:]]
    assert all(new == 1 for _, new in shapes[1:])
    assert len(rows) <= 12
    assert rows[0] <= 12
    assert rows == sorted(rows, reverse=True)
    assert max(rows[2:]) <= 8
    assert max(rows[6:]) <= 4


def test_a_search_ends_when_nothing_can_change_what_is_wanted(monkeypatch):
    toy = uniform(7)
    with torch.no_grad():
        toy.head.bias[0] = 9.0  # the end is nearly sure
    shapes = rows_read(toy, monkeypatch)
    (found,) = beam_search(toy, [[1]], 400, end=0)
    assert ([one.tokens for one in found], len(shapes)) == ([[]], 1)
    beam_search(toy, [[1]], 400, end=0, alternatives=4)
    assert len(shapes) <= 4


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "the beam is 0; it must be at least 1"),
        ({"alternatives": 0}, "alternatives is 0; it must be at least 1 and at most the beam, 4"),
        ({"alternatives": 5}, "alternatives is 5; it must be at least 1 and at most the beam, 4"),
        ({"length_penalty": -0.1}, "the length penalty is -0.1; it must be from 0"),
        ({"length_penalty": math.nan}, "the length penalty is nan; it must be from 0"),
        ({"length_penalty": 1e6}, r"the length penalty is 1000000.0; it must be from 0 \(none\) to 10"),
        ({"end": 23}, "the end token is 23; the model knows 0 to 22"),
        ({"end": -1}, "the end token is -1; the model knows 0 to 22"),
        ({"prompts": [[1], []]}, "a prompt is empty"),
        ({"prompts": [[1], [23]]}, "ids from 23 to 23; the model knows 0 to 22"),
        ({"max_new_tokens": [3]}, "max_new_tokens has 1 numbers for 2 prompts"),
        ({"max_new_tokens": [3, -1]}, "max_new_tokens is -1; it must be 0 or more"),
        ({"max_new_tokens": [3, 24]}, "context is 24 tokens, .* need 25; ask for 23 new tokens or fewer"),
        ({"prompts": [[1], [1] * 25]}, "context is 24 tokens, and a prompt has 25; shorten it"),
    ],
    ids=str,
)
def test_bad_values_are_named(options, message):
    given = {"prompts": [[1], [2]], "max_new_tokens": 3, "end": 0, **options}
    gpt = MODELS["gpt"](MODELS["gpt"].Config.tiny())
    with pytest.raises(ValueError, match=message):
        beam_search(gpt, **given)


def test_the_largest_penalty_is_a_number():
    toy = uniform(5)
    with torch.no_grad():
        toy.head.bias[0] = -20.0
    (found,) = beam_search(toy, [[1]], 200, end=0, beam=2, length_penalty=10.0)
    assert -1e-9 < found[0].score < 0


def test_any_integer_says_how_many_tokens():
    model = made("gpt", 9)
    expected = beam_search(model, [[1], [2]], 3, end=0)
    assert beam_search(model, [[1], [2]], np.int64(3), end=0) == expected
    assert beam_search(model, [[1], [2]], np.array([3, 3]), end=0) == expected
    with pytest.raises(TypeError, match="integer"):
        beam_search(model, [[1], [2]], 2.5, end=0)


def test_what_fits_the_context_is_read():
    gpt = made("gpt", 23)
    (found,) = beam_search(gpt, [[1]], gpt.context - 1, end=0, beam=2, alternatives=2)
    assert max(len(one.tokens) for one in found) == gpt.context - 1


def test_nothing_asked_for_is_nothing():
    assert beam_search(uniform(5), [], 9, end=0) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_that_it_was_in(training):
    toy = Toy(Toy.Config.tiny()).train(training)
    (found,) = beam_search(toy, [[1]], 3, end=0)
    assert isinstance(found[0], Hypothesis)
    assert toy.training == training


# Mutants: bugs that beam searches have had, each caught by what is compared above

MUTANTS = {}


def mutant(function):
    MUTANTS[function.__name__] = function
    return function


@mutant
def memory_stays_where_it_was(monkeypatch):
    """Keys and values that are not reordered by the parents: row i goes on with the memory of row i."""
    select = State.select
    monkeypatch.setattr(
        State, "select", lambda self, rows: select(self, torch.arange(len(rows)).clamp(max=self.batch_size - 1))
    )


@mutant
def what_ends_early_is_forgotten(monkeypatch):
    """Only what is in the beam at the last step is ranked."""

    def advance(self, choices):
        self.finished = []
        return original(self, choices)

    original = beams._Beam.advance
    monkeypatch.setattr(beams._Beam, "advance", advance)


@mutant
def the_end_is_not_counted(monkeypatch):
    """A length penalty of the length without the end token."""
    score = beams._Beam.score
    monkeypatch.setattr(beams._Beam, "score", lambda self, total, length: score(self, total, length - 1))


@mutant
def the_bound_is_of_the_present_length(monkeypatch):
    """transformers, BeamHypotheses.is_done: what is attainable is judged at the length reached so far."""

    def decided(self, wanted):
        self.longest, longest = len(self.live[0][1]) if self.live else 0, self.longest
        done = original(self, wanted)
        self.longest = longest
        return done

    original = beams._Beam.decided
    monkeypatch.setattr(beams._Beam, "decided", decided)


@mutant
def the_first_to_end_wins(monkeypatch):
    """A search that stops at the first hypothesis that ends."""
    monkeypatch.setattr(beams._Beam, "decided", lambda self, wanted: bool(self.finished) or not self.live)


@mutant
def one_parent_gives_one_child(monkeypatch):
    """The best continuation of each hypothesis, and not the best of all continuations."""
    original = beams._Beam.advance

    def advance(self, choices):
        return original(self, [list(row)[:1] for row in choices] if len(choices) > 1 else choices)

    monkeypatch.setattr(beams._Beam, "advance", advance)


@mutant
def the_end_goes_on(monkeypatch):
    """A hypothesis with the end inside stays in the beam."""
    original = beams._Beam.advance

    def advance(self, choices):
        self.end, end = (-1, self.end) if len(self.live[0][1]) < self.longest else (self.end, self.end)
        parents = original(self, choices)
        self.end = end
        return parents

    monkeypatch.setattr(beams._Beam, "advance", advance)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch):
    def many():
        for seed in range(30):
            follows_the_plain_search("gpt", seed)
        waits_for_the_longer_one()

    many()
    MUTANTS[name](monkeypatch)
    with pytest.raises(AssertionError):
        many()
