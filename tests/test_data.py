"""From bytes on a disk to batches of tokens: what is read, how it is cut, and what is refused."""

import hashlib
import http.client
import io
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
import urllib.error
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from scratchlm.data import batches, corpora, shards
from scratchlm.data.batches import IGNORED, Batch, CarriedStreams, TrainingWindows, evaluation_batches
from scratchlm.data.shards import Tokens, dtype_for, encode_documents, read_shards, split_documents, write_shards
from scratchlm.data.text import read_documents
from scratchlm.errors import InputError
from scratchlm.model import Source
from scratchlm.tokenizers import ByteTokenizer, CharacterTokenizer


def counted(length):
    """Tokens that are their own positions."""
    return Tokens.of(np.arange(length, dtype=np.uint32))


# Documents


@pytest.fixture(params=["file", "stdin"])
def read(request, tmp_path, monkeypatch):
    """Reads bytes as documents from a file or from standard input, whose name is `read.place`."""

    def read(data, **options):
        if request.param == "stdin":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
            return read_documents("-", **options)
        (tmp_path / "text.txt").write_bytes(data)
        return read_documents(read.place, **options)

    read.place = str(tmp_path / "text.txt") if request.param == "file" else "standard input"
    return read


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"one\ntwo\n", "one\ntwo\n"),
        ("é😀\u2028\x85".encode(), "é😀\u2028\x85"),
        (b"\xef\xbb\xbfone", "one"),
        ("one\ufeff".encode(), "one\ufeff"),
        (b"a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        (b" ", " "),
        (b'{"text": "x"}\n', '{"text": "x"}\n'),
    ],
)
def test_a_text_is_one_document(read, data, text):
    assert read(data) == [text]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ab\xffc\xff", "is not UTF-8: byte 2 is 0xff (invalid start byte)"),
        ("é€".encode() + b"\xe2\x82", "is not UTF-8: byte 5 is 0xe2 (unexpected end of data)"),
        (b"\xef\xbb\xbf\r\n\x80", "is not UTF-8: byte 5 is 0x80"),
        (b"ab\xed\xa0\x80", "is not UTF-8: byte 2 is 0xed"),
        (b"abc\0d\0", "is binary: byte 3 is zero"),
        ("hi".encode("utf-16"), "is UTF-16"),
        (b"\xfe\xff\0h", "is UTF-16"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
)
def test_a_text_in_no_utf8_is_named_with_the_place(read, data, message):
    with pytest.raises(InputError) as caught:
        read(data)
    assert str(caught.value).startswith(f"{read.place} {message}")


def test_bad_bytes_are_replaced_where_that_is_asked_for(read):
    assert read(b"a\xffb\xe2\x82", errors="replace") == ["a\ufffdb\ufffd"]
    with pytest.raises(InputError, match="--errors replace"):
        read(b"a\xffb")
    for data, message in ((b"a\0", "is binary"), (b"\xff\xfea\0", "is UTF-16"), (b"", "is empty")):
        with pytest.raises(InputError, match=message):
            read(data, errors="replace")


def test_json_lines_are_a_document_each(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = ['{"text": "one\\ntwo", "id": 1}', "", '"three \\u00e9"', "   ", '{"text": ""}', '  {"text": "four"}  ']
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert read_documents(str(path)) == ["one\ntwo", "three é", "four"]


def test_line_ends_inside_json_strings_become_newlines_too(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "a\\r\\nb\\rc"}', encoding="utf-8")
    assert read_documents(str(path)) == ["a\nb\nc"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "is not JSON"),
        ("plain text", "is not JSON"),
        ('{"text": "a"} x', "is not JSON"),
        pytest.param("[" * 100_000, "is not JSON", id="nested"),
        ('{"txt": "a"}', "has no text"),
        ('{"text": 5}', "has no text"),
        ('{"text": null}', "has no text"),
        ('["a"]', "has no text"),
        ("5", "has no text"),
        ('{"text": "a\\ud83d"}', "half a surrogate pair"),
    ],
)
def test_a_bad_json_line_is_named_with_its_number(line, message, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"text": "one"}}\n\n{line}\n{{"text": "four"}}\n', encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_documents(str(path))
    assert f"{path}, line 3 " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n""\n'])
def test_json_lines_without_text_are_refused(content, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="is empty"):
        read_documents(str(path))


def files(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return str(root)


def test_a_folder_is_its_texts_in_order_without_hidden_and_other_files(tmp_path):
    root = tmp_path / ".kept"  # hidden parts above the folder that was asked for do not count
    contents = {
        "b.txt": b"b\r\n",
        "a/z.md": b"z",
        "a/deep/er.text": b"er",
        "c.jsonl": b'"c1"\n{"text": "c2"}\n',
        "empty.txt": b"",
        "empty.jsonl": b"\n",
        ".hidden.txt": b"no",
        ".git/description.txt": b"no",
        "a/.cache/x/y.txt": b"no",
        "picture.png": b"\0\xff",
        "script.py": b"no",
        "folder.txt/inside.txt": b"inside",
    }
    assert read_documents(files(root, contents)) == ["er", "z", "b\n", "c1", "c2", "inside"]


@pytest.mark.parametrize(
    "contents",
    [{}, {"x.py": b"no"}, {"x.txt": b""}, {".x.txt": b"no"}, {"x.jsonl": b"\n", "y.md": b"\xef\xbb\xbf"}],
    ids=lambda contents: ", ".join(contents) or "nothing",
)
def test_a_folder_without_text_is_refused(contents, tmp_path):
    with pytest.raises(InputError, match="has no text") as caught:
        read_documents(files(tmp_path, contents))
    assert str(tmp_path) in str(caught.value)
    assert ".txt, .text, .md, .jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"a.txt": b"good", "b/bad.txt": b"x\xff"}, "bad.txt is not UTF-8: byte 1"),
        ({"a.txt": b"good", "b/bad.jsonl": b'"x"\n{'}, "bad.jsonl, line 2 is not JSON"),
    ],
)
def test_a_bad_file_of_a_folder_is_named(contents, message, tmp_path):
    with pytest.raises(InputError) as caught:
        read_documents(files(tmp_path, contents))
    assert f"{tmp_path / 'b'}" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl", "missing/text.txt"])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*: No such file") as caught:
        read_documents(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


# Splits


@example(["x" * 60, "y" * 40], (29, 71, 0))  # 0.29 * 100 is a little less than 29
@given(st.lists(st.text("abc\n", max_size=12), max_size=6), st.tuples(*[st.integers(0, 20)] * 3).filter(any))
def test_splits_are_the_text_cut_at_the_shares_and_between_documents(documents, parts):
    text, whole = "".join(documents), sum(parts)
    splits = split_documents(documents, [part / whole for part in parts])
    ends = [len(text) * sum(parts[: i + 1]) // whole for i in range(3)]
    sizes = [sum(map(len, split)) for split in splits]
    assert list(accumulate(sizes)) == ends
    cuts = sorted({0, *ends, *accumulate(map(len, documents))})
    assert [piece for split in splits for piece in split] == [text[start:end] for start, end in pairwise(cuts)]


def test_a_share_of_nothing_is_an_empty_split():
    assert split_documents(["abcd", "ef"], (0.5, 0.5, 0.0)) == [["abc"], ["d", "ef"], []]
    assert split_documents(["abcd", "ef"], (0.0, 0.0, 1.0)) == [[], [], ["abcd", "ef"]]


@pytest.mark.parametrize(
    "shares",
    [(0.9, 0.1), (0.5, 0.25, 0.125, 0.125), (0.5, 0.4, 0.0), (0.9, 0.9, 0.9), (-0.5, 1.0, 0.5), (0.5, float("nan"), 0)],
)
def test_shares_that_are_none_are_named(shares):
    with pytest.raises(InputError, match="shares of train, validation, test") as caught:
        split_documents(["text"], shares)
    assert str(shares) in str(caught.value)


def test_documents_are_parted_by_the_end_of_a_text():
    ids = encode_documents(iter(["ab", "c", "é"]), ByteTokenizer())
    assert ids.dtype == np.uint16
    assert ids.tolist() == [97, 98, 256, 99, 256, 0xC3, 0xA9]
    characters = CharacterTokenizer("abc", end_of_text=True)
    assert encode_documents(["ab", "c"], characters).tolist() == [0, 1, 3, 2]
    assert encode_documents(["ab", "c"], characters).dtype == np.uint8


def test_one_document_needs_no_end_and_several_do():
    characters = CharacterTokenizer("abc")
    assert encode_documents(["cab"], characters).tolist() == [2, 0, 1]
    nothing = encode_documents([], characters)
    assert (nothing.shape, nothing.dtype) == ((0,), np.uint8)
    with pytest.raises(InputError, match="no end-of-text token"):
        encode_documents(["a", "b"], characters)


# Shards

SIZES = {2: "uint8", 256: "uint8", 257: "uint16", 65536: "uint16", 65537: "uint32"}


def of_size(size):
    """A tokenizer of this many characters, of one to three bytes each."""
    return CharacterTokenizer("".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x11000)][:size])))


@pytest.mark.parametrize(("size", "dtype"), SIZES.items())
def test_the_smallest_type_holds_every_id(size, dtype):
    assert dtype_for(size) == np.dtype(dtype)
    assert np.iinfo(dtype_for(size)).max >= size - 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("in_a_shard", [7, 1 << 27])
def test_shards_hold_the_tokens_and_say_what_they_are(size, in_a_shard, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", in_a_shard)
    tokenizer, folder = of_size(size), tmp_path / "run" / "data"
    dtype = np.dtype(SIZES[size])
    ids = np.random.default_rng(0).integers(0, size, 35).astype(dtype)
    ids[[0, 20]] = size - 1, 0
    splits = {"train": ids[:21], "validation": ids[21:], "test": ids[:0]}
    write_shards(folder, splits, tokenizer)

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["dtype"] == dtype.name
    assert manifest["vocab_size"] == size
    assert manifest["tokenizer_sha256"] == tokenizer.sha256
    for name, tokens in splits.items():
        described = manifest["splits"][name]
        assert described["tokens"] == len(tokens)
        assert described["bytes"] == len(tokenizer.decode_bytes(tokens.tolist()))
        assert len(described["shards"]) == -(-len(tokens) // in_a_shard)
        stored = [np.load(folder / shard["file"]) for shard in described["shards"]]
        assert all(part.dtype == dtype for part in stored)
        assert [len(part) for part in stored] == [shard["tokens"] for shard in described["shards"]]
        assert np.concatenate([tokens[:0], *stored]).tolist() == tokens.tolist()

    read = read_shards(folder, tokenizer)
    assert list(read) == list(splits)
    for name, tokens in splits.items():
        assert len(read[name]) == len(tokens)
        window = read[name].windows(np.zeros(min(1, len(tokens)), dtype=np.int64), len(tokens))
        assert window.dtype == np.int64
        assert window.reshape(-1).tolist() == tokens.tolist()


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """The same tokens three times: as an array, read from shards into memory, and mapped from them at each look."""
    folder = tmp_path_factory.mktemp("mapped") / "data"
    ids = np.random.default_rng(1).integers(0, 257, 40).astype(np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_TOKENS", 9)
        write_shards(folder, {"train": ids}, ByteTokenizer())
    paths = sorted(folder.glob("*.npy"))
    counts = [9, 9, 9, 9, 4]
    return ids, Tokens(paths, counts), Tokens(paths, counts, in_memory_bytes=0)


@given(st.integers(0, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, 40 - n), max_size=5))))
def test_windows_across_shards_are_those_of_the_whole(mapped, drawn):
    ids, *readers = mapped
    length, starts = drawn
    expected = np.array([ids[start : start + length] for start in starts]).reshape(len(starts), length)
    for tokens in readers:
        assert len(tokens) == 40
        read = tokens.windows(np.array(starts, dtype=np.int64), length)
        assert read.dtype == np.int64
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(("start", "length"), [(-1, 3), (38, 3), (40, 1), (0, 41)])
def test_windows_outside_of_the_tokens_are_refused(mapped, start, length):
    for tokens in (*mapped[1:], Tokens.of(mapped[0])):
        with pytest.raises(IndexError, match=f"tokens {start} to {start + length} of 40"):
            tokens.windows(np.array([0, start]), length)


def test_only_mapped_tokens_need_their_files_later(tmp_path):
    write_shards(tmp_path / "data", {"train": np.arange(5, dtype=np.uint16)}, ByteTokenizer())
    file = tmp_path / "data" / "train_00000.npy"
    held, mapped = Tokens([file], [5]), Tokens([file], [5], in_memory_bytes=0)
    file.unlink()
    assert held.windows(np.array([1]), 3).tolist() == [[1, 2, 3]]
    with pytest.raises(FileNotFoundError):
        mapped.windows(np.array([1]), 3)


def test_a_token_that_cannot_be_is_refused_where_it_is_mapped(tmp_path):
    file = tmp_path / "train_00000.npy"
    np.save(file, np.array([1, 2, 300, 4, 5], dtype=np.uint16))
    tokens = Tokens([file], [5], in_memory_bytes=0, vocab_size=256)
    assert tokens.windows(np.array([0]), 2).tolist() == [[1, 2]]
    for look in (lambda: tokens.windows(np.array([0]), 3), lambda: tokens.take(np.array([2]))):
        with pytest.raises(InputError, match=r"hold the token 300, and its vocabulary has 256.*data verify"):
            look()


def test_only_shards_that_are_looked_into_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 10)
    write_shards(tmp_path / "data", {"train": np.arange(100, dtype=np.uint16)}, ByteTokenizer())
    paths = sorted((tmp_path / "data").glob("*.npy"))
    tokens = Tokens(paths, [10] * 10, in_memory_bytes=0)
    for path in (paths[0], paths[4], *paths[6:]):
        path.unlink()
    assert tokens.windows(np.array([12, 35, 17]), 5).tolist() == [[*range(12, 17)], [*range(35, 40)], [*range(17, 22)]]
    assert tokens.take(np.array([[55, 12]])).tolist() == [[55, 12]]
    with pytest.raises(FileNotFoundError):
        tokens.windows(np.array([38]), 5)


def edit(change):
    """A damage to the manifest."""

    def damage(folder):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    return damage


def flip(folder):
    data = bytearray((folder / "train_00001.npy").read_bytes())
    data[-1] ^= 1
    (folder / "train_00001.npy").write_bytes(data)


SHARD_DAMAGE = {
    "a flipped bit": (flip, "train_00001.npy is damaged"),
    "a cut shard": (lambda f: (f / "train_00000.npy").write_bytes(b"\x93NUMPY"), "train_00000.npy is damaged"),
    "a missing shard": (lambda f: (f / "train_00002.npy").unlink(), "cannot read"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "cannot read"),
    "no folder": (shutil.rmtree, "cannot read"),
    "a cut manifest": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "a manifest in no UTF-8": (lambda f: (f / "manifest.json").write_bytes(b"\xff"), "manifest.json is damaged"),
    "a list for a manifest": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "no version": (edit(lambda m: m.pop("format_version")), "manifest.json is damaged"),
    "another version": (edit(lambda m: m.update(format_version=2)), "has format version 2; this scratchlm reads ver"),
    "another content": (edit(lambda m: m.update(tokenizer_sha256="0" * 64)), "does not fit its checksum"),
    "another number of tokens": (edit(lambda m: m["splits"]["train"]["shards"][0].update(tokens=8)), "damaged"),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE)
def test_damaged_shards_are_refused(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 7)
    folder = tmp_path / "data"
    write_shards(folder, {"train": np.arange(20, dtype=np.uint16)}, ByteTokenizer())
    assert len(read_shards(folder, ByteTokenizer())["train"]) == 20
    spoil, message = SHARD_DAMAGE[damage]
    spoil(folder)
    with pytest.raises(InputError) as caught:
        read_shards(folder, ByteTokenizer())
    assert str(folder) in str(caught.value)
    assert message in str(caught.value)


def test_shards_are_read_with_their_own_tokenizer_only(tmp_path):
    write_shards(tmp_path / "data", {"train": np.arange(2, dtype=np.uint8)}, CharacterTokenizer("ab"))
    with pytest.raises(InputError, match="another tokenizer than the one given"):
        read_shards(tmp_path / "data", CharacterTokenizer("ac"))


# Training windows


def rows_of(windows, batch_size, rows):
    """The first rows that training reads, as tokens and targets."""
    batches = [windows.batch(step) for step in range(-(-rows // batch_size))]
    return torch.cat([b.tokens for b in batches])[:rows], torch.cat([b.targets for b in batches])[:rows]


SHAPES = st.integers(1, 9).flatmap(lambda window: st.tuples(st.just(window), st.integers(window + 1, 90)))


@given(SHAPES, st.integers(1, 7), st.integers(0, 2**63 - 1))
def test_an_epoch_reads_back_to_back_windows_once_each(shape, batch_size, seed):
    window, length = shape
    windows = TrainingWindows(counted(length), window, batch_size, seed)
    assert windows.count == max(1, length // window - 1), "all that fit wherever the first one starts"
    tokens, targets = rows_of(windows, batch_size, 3 * windows.count)
    assert (tokens.dtype, tokens.shape[1]) == (torch.int64, window)
    assert torch.equal(tokens, tokens[:, :1] + torch.arange(window))
    assert torch.equal(targets, tokens + 1), "positions as tokens: a target is the next one"
    for starts in tokens[:, 0].split(windows.count):
        phase = starts.min().item()
        assert phase < window
        assert sorted(starts.tolist()) == [phase + i * window for i in range(windows.count)]


@given(SHAPES, st.integers(1, 7), st.integers(0, 2**63 - 1), st.lists(st.integers(0, 50), min_size=1, max_size=6))
def test_a_batch_is_a_function_of_seed_and_step_alone(shape, batch_size, seed, steps):
    window, length = shape
    used = TrainingWindows(counted(length), window, batch_size, seed)
    for step in steps:
        fresh = TrainingWindows(counted(length), window, batch_size, seed).batch(step)
        again = used.batch(step)
        assert again.tokens.shape == (batch_size, window)
        assert torch.equal(again.tokens, fresh.tokens)
        assert torch.equal(again.targets, fresh.targets)


def test_rows_do_not_depend_on_the_batch_size():
    rows = [rows_of(TrainingWindows(counted(100), 5, size, 3), size, 60)[0] for size in (1, 4, 60)]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


def test_epochs_differ_in_phase_and_in_order():
    windows = TrainingWindows(counted(4 * 30), 4, 1, seed=5)
    starts, _ = rows_of(windows, 1, 40 * windows.count)
    epochs = starts[:, 0].reshape(40, windows.count)
    phases = epochs.min(1).values
    assert set(phases.tolist()) == {0, 1, 2, 3}, "every phase comes up"
    assert len(set(map(tuple, (epochs - phases[:, None]).tolist()))) == 40, "no two epochs have one order"


def test_seeds_differ():
    firsts = {tuple(TrainingWindows(counted(500), 5, 8, seed).batch(0).tokens[:, 0].tolist()) for seed in range(50)}
    assert len(firsts) == 50


def test_the_order_stays_what_it_was():
    """A resumed run reads on where it stopped, so these numbers may never change."""
    windows = TrainingWindows(counted(100), 10, 5, seed=1337)
    starts = [windows.batch(step).tokens[:, 0].tolist() for step in range(3)]
    assert starts == [[15, 35, 45, 55, 85], [65, 25, 75, 5, 48], [38, 68, 18, 58, 78]]


@pytest.fixture
def never_sorted(monkeypatch):
    """The order of an epoch as it is where its windows are too many to be sorted."""
    monkeypatch.setattr(batches, "SORTED", 0)


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_an_order_that_is_not_sorted_has_each_place_once(count, seed, epoch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "SORTED", 0)
        order = batches.places_in_order(seed, epoch, count, np.arange(count))
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(count))
        some = np.random.default_rng(0).integers(0, count, 5)
        assert np.array_equal(batches.places_in_order(seed, epoch, count, some), order[some]), "whatever else is asked"


@pytest.mark.parametrize("count", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1])
def test_an_order_that_is_not_sorted_looks_random(count, never_sorted):
    """Chi-square of 16 x 16 cells: turn and place, neighbours, two epochs, last bits; and what shuffling would give."""
    cells = 255  # degrees of freedom at the most: one random order in a thousand is beyond 330
    for seed in range(3):
        order, turns = batches.places_in_order(seed, 0, count, np.arange(count)), np.arange(count)
        other = batches.places_in_order(seed, 1, count, np.arange(count))
        for one, two in [(turns, order), (order[:-1], order[1:]), (order, other), (order % 16, turns % 16)]:
            found, _, _ = np.histogram2d(one, two, bins=16)
            chi_square = ((found - len(one) / 256) ** 2).sum() / (len(one) / 256)
            assert 150 < chi_square < cells + 75
        assert np.abs(order - turns).mean() / count == pytest.approx(1 / 3, abs=0.01), "of a random order a third"
        assert (order == turns).sum() < 10, "of a random order one"
        assert (np.diff(order) > 0).mean() == pytest.approx(1 / 2, abs=0.01)


def test_an_order_of_billions_stays_what_it_was():
    turns = np.array([0, 1, 2, 4_999_999_999])
    assert batches.places_in_order(1337, 0, 5_000_000_000, turns).tolist() == [
        4341601202,
        2448073167,
        2990307487,
        329299733,
    ]
    assert batches.places_in_order(1337, 1, (1 << 22) + 1, np.array([0, 1, 2, 1 << 22])).tolist() == [
        1927404,
        1562308,
        2603941,
        3637575,
    ]


def test_batches_of_ten_trillion_tokens_take_no_memory():
    class Endless(Tokens):
        def __init__(self):
            super().__init__([], [])
            self.asked = []

        def __len__(self):
            return 10**13

        def windows(self, starts, length):
            self.asked.append(starts)
            return np.zeros((len(starts), length), np.int64)

    tokens = Endless()
    windows = TrainingWindows(tokens, 2048, 512, seed=1)
    tracemalloc.start()
    for step in (0, 1, windows.count // 512, 3 * windows.count // 512):  # the last two span two epochs
        assert windows.batch(step).tokens.shape == (512, 2048)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50 << 20, "a batch is 8 MB"
    starts = np.concatenate(tokens.asked)
    assert len(set(starts.tolist())) == len(starts)
    assert starts.min() >= 0
    assert starts.max() + 2049 <= 10**13


@pytest.mark.parametrize(("length", "window"), [(11, 4), (5, 4), (2, 1), (8, 4)])
def test_a_text_smaller_than_a_batch_fills_it(length, window):
    windows = TrainingWindows(counted(length), window, 32, seed=0)
    batch = windows.batch(3)
    assert batch.tokens.shape == batch.targets.shape == (32, window)
    assert torch.equal(batch.targets, batch.tokens + 1)
    assert batch.targets.max() < length
    assert windows.epochs(2) == 64 / windows.count


@pytest.mark.parametrize(("length", "window"), [(2, 2), (5, 5), (5, 64), (64, 64), (200, 256)])
def test_a_text_too_short_names_a_window_that_fits(length, window):
    with pytest.raises(InputError, match=f"has {length} tokens, and a window of {window} needs {window + 1}") as caught:
        TrainingWindows(counted(length), window, 4, seed=0)
    fits = int(re.search(r"--window (\d+) or less", str(caught.value))[1])
    assert fits == length - 1, "the largest one"
    assert TrainingWindows(counted(length), fits, 4, seed=0).batch(0).tokens.tolist() == [list(range(fits))] * 4


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_target_names_no_window(length):
    with pytest.raises(InputError, match=f"has {length} tokens.*two tokens") as caught:
        TrainingWindows(counted(length), 8, 4, seed=0)
    assert "--window" not in str(caught.value)


# Batches


@given(st.integers(1, 9), st.integers(1, 12))
def test_slices_are_the_batch_in_even_parts(rows, parts):
    tokens = torch.arange(rows * 3).reshape(rows, 3)
    targets = (tokens + 1).where(tokens % 4 != 0, IGNORED)
    batch = Batch(tokens, targets)
    slices = [batch.part(index, parts) for index in range(parts)]
    assert all(len(silent.tokens) == 1 and silent.target_count == 0 for silent in slices[rows:])
    slices = slices[:rows]
    sizes = [len(part.tokens) for part in slices]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([part.tokens for part in slices]), tokens)
    assert torch.equal(torch.cat([part.targets for part in slices]), targets)
    counts = [part.target_count for part in slices]
    assert sum(counts) == batch.target_count == rows * 3 - len(range(0, rows * 3, 4))


@given(
    st.sampled_from([TrainingWindows, CarriedStreams]), st.integers(1, 9), st.integers(1, 12), st.integers(0, 30),
    st.integers(1, 5),
)  # fmt: skip
def test_a_process_reads_its_rows_of_a_batch_and_no_others(kind, rows, parts, step, window):
    read = []

    class Watched(Tokens):
        def windows(self, starts, length):
            read.append(len(starts))
            return super().windows(starts, length)

    batches = kind(Watched.of(np.arange(90, dtype=np.uint32)), window, rows, seed=step)
    whole = batches.batch(step)
    read.clear()
    found = [batches.part(step, part, parts) for part in range(parts)]
    assert [count for _, count in found] == [whole.target_count] * parts
    assert read == [len(batch.tokens) for batch, _ in found]
    assert sum(read) == rows
    assert {batch.continues for batch, _ in found} == {whole.continues}
    for part, (batch, _) in enumerate(found[:rows]):
        assert torch.equal(batch.tokens, whole.part(part, parts).tokens)
        assert torch.equal(batch.targets, whole.part(part, parts).targets)


def test_a_batch_keeps_its_source():
    source = Source(torch.arange(10).reshape(5, 2), torch.tensor([2, 1, 2, 1, 2]))
    batch = Batch(torch.zeros(5, 3, dtype=torch.int64), torch.ones(5, 3, dtype=torch.int64), source)
    for parts in ([batch.to(torch.device("cpu"))], [batch.part(0, 2), batch.part(1, 2)]):
        assert all(part.source is not None for part in parts), "a part reads what its rows' sources say"
        assert torch.equal(torch.cat([part.source.ids for part in parts]), source.ids)
        assert torch.equal(torch.cat([part.source.lengths for part in parts]), source.lengths)


@given(st.integers(1, 80), st.integers(1, 12), st.integers(1, 5))
def test_an_evaluation_has_every_token_but_the_first_as_a_target_once(length, window, batch_size):
    batches = list(evaluation_batches(counted(length), window, batch_size))
    targets = [target for batch in batches for target in batch.targets.flatten().tolist()]
    assert targets == list(range(1, length))
    whole, rest = divmod(length - 1, window)
    shapes = [(min(batch_size, whole - first), window) for first in range(0, whole, batch_size)]
    assert [tuple(batch.tokens.shape) for batch in batches] == shapes + [(1, rest)] * bool(rest)
    for batch in batches:
        assert torch.equal(batch.tokens, batch.targets - 1)
        assert torch.equal(batch.tokens[:, 0] % window, torch.zeros(len(batch.tokens), dtype=torch.int64))


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("length", [0, 1])
def test_a_split_without_a_target_has_no_evaluation_batches(length, window):
    assert list(evaluation_batches(counted(length), window, 2)) == []


# Corpora


@pytest.mark.parametrize(
    ("name", "characters", "distinct", "start"),
    [
        ("shakespeare", 4_674_046, 74, "THESEUS:\n"),
        ("shakespeare-tiny", 1_189_045, 64, "First Citizen:\n"),
    ],
)
def test_shakespeare_comes_with_a_package(name, characters, distinct, start):
    assert corpora.available(name)
    text = corpora.get(name)
    assert (len(text), len(set(text))) == (characters, distinct)
    assert not set(text) & set(r"[]*_\#"), "no markup is left"
    assert text.startswith(start)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCHLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch, cache):
    """A corpus whose text is "text", which loads it only after `small.text` was set."""

    class Elsewhere:
        text, loads = None, 0

        def load(self):
            self.loads += 1
            if self.text is None:
                raise OSError("no network")
            return self.text

    elsewhere = Elsewhere()
    described = {"about": "a text", "source": "elsewhere", "licence": "none", "load": elsewhere.load, "fetched": True}
    text = corpora.Corpus(**described, sha256=hashlib.sha256(b"text").hexdigest())
    monkeypatch.setitem(corpora.CORPORA, "small", text)
    return elsewhere


FAILURES = {
    "refused": urllib.error.URLError("no route to host"),
    "slow": TimeoutError("timed out"),
    "cut": http.client.IncompleteRead(b"First"),
    "closed": http.client.RemoteDisconnected("closed without a response"),
    "no HTTP": http.client.BadStatusLine("hello"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_corpus_that_cannot_be_downloaded_names_the_command(failure, cache, monkeypatch):
    def urlopen(*arguments, **options):
        raise FAILURES[failure]

    monkeypatch.setattr(corpora.urllib.request, "urlopen", urlopen)
    assert not corpora.available("tinyshakespeare")
    with pytest.raises(InputError, match="run: scratchlm data get tinyshakespeare;") as caught:
        corpora.get("tinyshakespeare")
    assert str(FAILURES[failure]) in str(caught.value)
    assert "scratchlm data get tinyshakespeare --from FILE" in str(caught.value)
    assert not cache.exists(), "nothing is kept"


@pytest.mark.parametrize(
    ("stderr", "reason"), [("warning\nERROR: no network\n", "ERROR: no network"), ("", "pip gave no reason")]
)
def test_a_corpus_that_pip_cannot_fetch_names_the_command(stderr, reason, cache, monkeypatch):
    asked = []

    def run(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(corpora.subprocess, "run", run)
    with pytest.raises(InputError, match="run: scratchlm data get names;") as caught:
        corpora.get("names")
    assert reason in str(caught.value)
    assert asked[0][-1] == "names==0.3.0"
    assert not cache.exists()


def test_a_fetched_corpus_is_kept_and_fetched_once(small, cache):
    small.text = "text"
    assert not corpora.available("small")
    assert corpora.get("small") == "text"
    assert corpora.available("small")
    assert corpora.get("small") == "text"
    assert small.loads == 1
    assert [file.read_bytes() for file in cache.iterdir()] == [b"text"], "nothing else lies about"
    assert list(cache.iterdir()) == [corpora.cached("small")]


def test_a_corpus_from_a_file_is_kept(small, tmp_path):
    (tmp_path / "mine").write_bytes(b"text")
    assert corpora.get("small", str(tmp_path / "mine")) == "text"
    assert corpora.get("small") == "text"
    assert corpora.cached("small").read_bytes() == b"text"
    assert small.loads == 0


@pytest.mark.parametrize("wrong", [b"other", b"", b"text\n", b"\xff"])
def test_another_text_than_the_corpus_is_refused(wrong, small, cache, tmp_path):
    (tmp_path / "mine").write_bytes(wrong)
    with pytest.raises(InputError, match="so it is another one") as caught:
        corpora.get("small", str(tmp_path / "mine"))
    assert str(tmp_path / "mine") in str(caught.value)
    assert hashlib.sha256(wrong).hexdigest()[:12] in str(caught.value)
    small.text = "changed elsewhere"
    with pytest.raises(InputError, match="so it is another one: elsewhere"):
        corpora.get("small")
    assert not cache.exists(), "nothing is kept"


def test_a_missing_file_of_a_corpus_is_named(small, tmp_path):
    with pytest.raises(InputError, match="cannot be had from") as caught:
        corpora.get("small", str(tmp_path / "missing"))
    assert str(tmp_path / "missing") in str(caught.value)
    assert "scratchlm data get small --from FILE" in str(caught.value)


def test_a_damaged_corpus_in_the_cache_names_the_remedy(small):
    small.text = "text"
    corpora.get("small")
    corpora.cached("small").write_bytes(b"tex")
    with pytest.raises(InputError, match="delete it and run scratchlm data get small") as caught:
        corpora.get("small")
    assert str(corpora.cached("small")) in str(caught.value)
    corpora.cached("small").unlink()
    assert corpora.get("small") == "text"


def test_a_cache_that_cannot_be_written_is_named(small, cache):
    small.text = "text"
    cache.write_bytes(b"a file")
    with pytest.raises(InputError) as caught:
        corpora.get("small")
    assert str(cache) in str(caught.value)


def test_a_wrong_file_for_a_packaged_corpus_is_refused_too(tmp_path):
    (tmp_path / "mine").write_bytes(b"no plays")
    with pytest.raises(InputError, match="so it is another one"):
        corpora.get("shakespeare-tiny", str(tmp_path / "mine"))


@pytest.mark.parametrize("call", [corpora.get, corpora.corpus, corpora.available])
def test_an_unknown_corpus_names_the_nearest(call):
    with pytest.raises(InputError, match="no corpus 'shakespear' and no such file: did you mean 'shakespeare'"):
        call("shakespear")
    with pytest.raises(InputError, match="choose from: bible-de-en, cmudict, cmudict-stress, names, shakespeare, "):
        call("zzz")
