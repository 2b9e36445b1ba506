"""Decoding of parallel data, and the figures that say how good it is."""

import math

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st

from scratchlm import generation
from scratchlm.data.pair_batches import Pairs
from scratchlm.data.pairs import Pair, encode_pairs
from scratchlm.data.shards import Tokens
from scratchlm.errors import InputError
from scratchlm.models import MODELS
from scratchlm.tokenizers import CharacterTokenizer, PairTokenizer, SymbolTokenizer
from scratchlm.translation import (
    Translated,
    a_few,
    as_lines,
    as_source,
    bleu,
    decode,
    encode_source,
    error_rates,
    measure,
    translate_pairs,
)

TOKENIZER = PairTokenizer(CharacterTokenizer("abcdefghij"), SymbolTokenizer([f"S{n}" for n in range(12)]))
PAIRS = [("abc", "S1 S2"), ("j", "S11"), ("abc", "S1 S3 S4"), ("ghijabcd", "S5"), ("bbbb", "S6 S7 S8 S9")]
SYMBOLS = st.lists(st.sampled_from("xyz"), max_size=6)


def model_of(name, dtype=torch.float64):
    torch.manual_seed(1)
    config = MODELS[name].Config.tiny()
    assert config.vocab_size == TOKENIZER.vocab_size, "23 tokens, as all tiny models have"
    return MODELS[name](config).to(dtype).eval()


def pairs_of(rows):
    flat = encode_pairs([Pair(source, target, line) for line, (source, target) in enumerate(rows, 1)], TOKENIZER)
    return Pairs(Tokens.of(flat), TOKENIZER.end_of_text)


def translated(target, *references):
    return Translated(source="s", target=target, references=references)


def distance(one, other):
    """The edit distance by its definition (Levenshtein 1966), without a table."""
    if not one or not other:
        return len(one) + len(other)
    changed = distance(one[1:], other[1:]) + (one[0] != other[0])
    return min(changed, distance(one[1:], other) + 1, distance(one, other[1:]) + 1)


@given(st.lists(st.tuples(SYMBOLS, st.lists(SYMBOLS.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=4))
def test_error_rates_are_distances_to_the_nearest_reference(rows):
    rates = error_rates([translated(" ".join(said), *map(" ".join, references)) for said, references in rows])
    nearest = [min(((distance(said, ref), len(ref)) for ref in refs), key=lambda pair: pair[0]) for said, refs in rows]
    assert rates.sequence_error_rate == sum(edits > 0 for edits, _ in nearest) / len(rows)
    assert rates.symbol_error_rate == sum(edits for edits, _ in nearest) / sum(length for _, length in nearest)
    assert rates.sources == len(rows)


def test_error_rates_by_hand():
    """One substitution, an insertion, a deletion, one right by its second reference."""
    rows = [
        translated("A B X", "A B C"),
        translated("A", "A B"),
        translated("A B", "B"),
        translated("K L M", "K", "K L M"),
    ]
    rates = error_rates(rows)
    assert (rates.symbol_error_rate, rates.sequence_error_rate) == (3 / 9, 3 / 4)
    assert str(rates) == "symbols wrong 33.33%, sequences wrong 75.00% of 4"


def test_bleu_is_sacrebleus_with_all_references():
    rows = [
        translated("the cat sat on the mat today", "the cat sat on a mat today"),
        translated("a dog ran far away from us", "the dog ran far away from us", "a dog ran away from us all"),
    ]
    expected = sacrebleu.corpus_bleu(
        [row.target for row in rows], [[row.references[0] for row in rows], [None, rows[1].references[1]]]
    )
    found = bleu(rows)
    assert found.bleu == pytest.approx(expected.score)
    assert found.signature.endswith(f"tok:13a|smooth:exp|version:{sacrebleu.__version__}")
    assert found.interval is None
    assert 0 < bleu(rows, bootstrap=50).interval < 100
    assert bleu([translated("right as it is now", "right as it is now")]).bleu == pytest.approx(100)


def test_bleu_by_its_definition():
    """Papineni et al. 2002: clipped counts pooled over the corpus, brevity penalty."""
    rows = [translated("the the the cat sat down here", "the cat sat down here with the dog")]
    # unigrams 6 of 7 (one "the" too many), bigrams 4 of 6, trigrams 3 of 5, 4-grams 2 of 4; 7 words against 8
    precisions = [6 / 7, 4 / 6, 3 / 5, 2 / 4]
    expected = 100 * math.exp(1 - 8 / 7) * math.exp(sum(map(math.log, precisions)) / 4)
    assert bleu(rows).bleu == pytest.approx(expected)


def test_what_is_measured_depends_on_what_the_targets_are():
    rows = [translated("S1 S2", "S1 S2")]
    assert measure(rows, TOKENIZER).fields() == {"symbol_error_rate": 0, "sequence_error_rate": 0}
    assert "bleu" in measure(rows, CharacterTokenizer("S12 ", end_of_text=True)).fields()


@pytest.mark.parametrize("name", ["transformer", "gpt", "lstm", "bigram"])
@pytest.mark.parametrize("beam", [1, 3])
def test_sources_are_decoded_in_their_order_and_each_as_if_alone(name, beam):
    model, end = model_of(name), TOKENIZER.end_of_text
    sources = [[*TOKENIZER.source.encode(source), end] for source, _ in PAIRS]
    together = decode(model, sources, end, beam=beam, alternatives=beam)
    alone = [decode(model, [source], end, beam=beam, alternatives=beam)[0] for source in sources]
    for many, one in zip(together, alone, strict=True):
        assert [h.tokens for h in many] == [h.tokens for h in one]
        assert [h.score for h in many] == pytest.approx([h.score for h in one], rel=1e-9)


@pytest.mark.parametrize("name", ["transformer", "gpt"])
def test_a_beam_of_one_is_what_generate_writes(name):
    model, end = model_of(name), TOKENIZER.end_of_text
    for source, _ in PAIRS:
        ids = [*TOKENIZER.source.encode(source), end]
        given = as_source([ids], end) if model.takes_source else None
        prompt = [end] if model.takes_source else ids
        room = min(len(ids) - 1 + 50, model.context - len(prompt))
        written = generation.generate(model, [prompt], room, temperature=0, end=end, source=given)[0]
        assert decode(model, [ids], end)[0][0].tokens == written[len(prompt) :]


def test_small_batches_change_nothing(monkeypatch):
    model, end = model_of("transformer"), TOKENIZER.end_of_text
    sources = [[*TOKENIZER.source.encode(source), end] for source, _ in PAIRS]
    expected = [one[0].tokens for one in decode(model, sources, end)]
    monkeypatch.setattr("scratchlm.translation.BATCH_TOKENS", 5)
    assert [one[0].tokens for one in decode(model, sources, end)] == expected
    assert decode(model, [], end) == []


def test_a_source_with_several_targets_is_translated_once():
    rows = translate_pairs(model_of("transformer"), TOKENIZER, pairs_of(PAIRS))
    assert [(row.source, row.references) for row in rows] == [
        ("abc", ("S1 S2", "S1 S3 S4")),
        ("j", ("S11",)),
        ("ghijabcd", ("S5",)),
        ("bbbb", ("S6 S7 S8 S9",)),
    ]


def test_sources_that_do_not_fit_are_refused_with_their_length():
    model = model_of("transformer")
    assert len(encode_source("abcdefgh", model, TOKENIZER)) == 9
    with pytest.raises(InputError, match="'abcdefghi' has 10 tokens with its end, and the model was trained to read 9"):
        encode_source("abcdefghi", model, TOKENIZER)
    with pytest.raises(InputError, match="has 31 tokens with its end, and the model was trained to read 23; shorten"):
        encode_source("a" * 30, model_of("gpt"), TOKENIZER)
    assert len(encode_source("a" * 3000, model_of("lstm"), TOKENIZER)) == 3001
    with pytest.raises(InputError, match="character 'q' at position 1"):
        encode_source("aq", model, TOKENIZER)


def test_lines_for_people():
    rows = [translated("A", "A"), translated("B", "C", "D")]
    assert as_lines(rows) == "s -> A  (right)\ns -> B  (should be: C or D)\n"
    many = [translated(str(n), "x") for n in range(100)]
    assert [row.target for row in a_few(many, 4)] == ["0", "25", "50", "75"]
    assert a_few(rows) == rows


def test_targets_of_a_source_are_counted_by_bytes_of_their_symbols():
    lengths = TOKENIZER.token_lengths()
    ids = TOKENIZER.target.encode("S1 S11")
    assert int(lengths[np.array(ids)].sum()) == len("S1 S11 ")
