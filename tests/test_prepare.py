"""Texts of any size to shards: the same tokens as a run has, whoever is killed on the way; and training on them."""

import itertools
import json
import os
import random
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from runs import SETTINGS, TEXT
from scratchlm import tokenizers
from scratchlm.data import journal, pieces
from scratchlm.data import prepare as preparing
from scratchlm.data.pieces import find_source
from scratchlm.data.prepare import Preparation, prepare
from scratchlm.data.shards import SPLITS, Prepared, encode_documents, split_documents
from scratchlm.data.text import read_documents
from scratchlm.errors import InputError
from scratchlm.tokenizers import BPETokenizer, exhaust, splitting
from scratchlm.training.setup import create_run

# what the patterns tell apart, what a line's end may be, and characters of one to four bytes
MARKS = [*"ab'sS \t.(é\u0301\u3000\u2028/", "word ", "of", "\n", "\n\n", "\r\n", "\r", "12345", "漢字。", "😀"]
TEXTS = st.lists(st.sampled_from(MARKS), max_size=30).map("".join)
BYTES = st.lists(st.sampled_from([*"ab \n漢", b"\xff", b"\xe2", b"\x82", b"\x80", b"\xf0\x9f", b"\r\n"]), max_size=20)
PIECES = st.sampled_from([1, 2, 3, 5, 8, 13, 40, 1 << 20])
SHARES = st.sampled_from([(0.9, 0.05, 0.05), (0.5, 0.25, 0.25), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.3, 0.3, 0.4)])


def taught(**settings):
    with warnings.catch_warnings(action="ignore"):  # so small a text supports fewer tokens
        text = "the word of the words ab ab's Sab 漢字。 word. the word\n" * 3
        return BPETokenizer.train([text], vocab_size=290, documents=True, **settings)


TOKENIZERS = ["char", "byte", *(taught(pattern=name) for name in splitting.PATTERNS), taught(level="characters")]


@pytest.fixture(scope="module")
def room():
    """Names folders, one for each example, where syncing costs nothing if there is such a place."""
    place, numbers = Path("/dev/shm"), itertools.count()
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as root:
        yield lambda: Path(root) / str(next(numbers))


def write(folder, **contents):
    folder.mkdir()
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def made(paths, folder, workers=1, **how):
    return exhaust(prepare([*map(str, paths)], folder, Preparation(**how), workers))


def stored(folder):
    """The ids of each split, out of the files."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    found = {}
    for name, split in manifest["splits"].items():
        arrays = [np.load(folder / shard["file"]) for shard in split["shards"]]
        found[name] = np.concatenate([np.empty(0, manifest["dtype"]), *arrays])
        assert len(found[name]) == split["tokens"]
    return found


def expected(path, tokenizer="char", split=(0.9, 0.05, 0.05), errors="strict"):
    """The ids that a run has: what create_run does with --data."""
    documents = read_documents(str(path), errors)
    parts = dict(zip(SPLITS, split_documents(documents, split), strict=True))
    if isinstance(tokenizer, str):
        seen = parts["train"] if tokenizer == "byte" else documents
        tokenizer = exhaust(tokenizers.learn(tokenizer, seen, len(documents) > 1))
    return {name: encode_documents(part, tokenizer) for name, part in parts.items()}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, ids in wanted.items():
        assert found[name].dtype == ids.dtype
        assert found[name].tolist() == ids.tolist(), name


# The same tokens as a run's


@pytest.fixture
def cut(monkeypatch):
    """Sets how long a piece is."""

    def set_(size, looked_at=8):
        monkeypatch.setattr(pieces, "PIECE", size)
        monkeypatch.setattr(pieces, "LOOKED_AT", looked_at)

    return set_


def attempt(action):
    try:
        return action()
    except InputError as error:
        return str(error)


@example([("\ufeffab", False), ("", False)], 2, TOKENIZERS[0], (1.0, 0.0, 0.0), 7)  # a piece of a mark that is dropped
@example([("a\r\nb\r\nc", False)], 1, TOKENIZERS[0], (0.5, 0.5, 0.0), 7)
@given(
    st.lists(st.tuples(TEXTS, st.booleans()), min_size=1, max_size=3), PIECES, st.sampled_from(TOKENIZERS), SHARES,
    st.sampled_from([3, 17, 1 << 20]),
)  # fmt: skip
def test_any_pieces_make_the_tokens_of_a_run(room, texts, size, tokenizer, split, shard_tokens):
    ends = itertools.cycle(["\n", "\r\n", "\r", "\n\n"])
    contents = {}
    for number, (text, lines) in enumerate(texts):
        if lines:
            documents = zip(text.split("a"), ends, strict=False)
            contents[f"{number}_jsonl"] = "".join(json.dumps({"text": one}) + end for one, end in documents)
        else:
            contents[f"{number}_txt"] = text
    folder = room()
    source = write(folder.with_suffix(".src"), **contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", size)
        patch.setattr(pieces, "LOOKED_AT", 8)
        how = {"tokenizer": tokenizer, "split": split}
        found = attempt(lambda: made([source], folder, shard_tokens=shard_tokens, **how))
    wanted = attempt(lambda: expected(source, **how))
    if isinstance(wanted, str):
        assert found == wanted
    else:
        same(stored(folder), wanted)


@given(BYTES, PIECES, st.sampled_from(TOKENIZERS), st.sampled_from(["strict", "replace"]))
def test_bytes_that_are_no_text_are_replaced_or_named_alike(room, parts, size, tokenizer, errors):
    folder = room()
    data = b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    source = write(folder.with_suffix(".src"), a_txt=data) / "a.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", size)
        found = attempt(lambda: made([source], folder, tokenizer=tokenizer, errors=errors))
    wanted = attempt(lambda: expected(source, tokenizer, errors=errors))
    if isinstance(wanted, str):
        assert found == wanted, "the same file, byte and reason"
    else:
        same(stored(folder), wanted)


@pytest.mark.parametrize("size", [4, 1 << 20])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", b"one two three four \0 five"), ("a.txt", "one two".encode("utf-16")), ("a.txt", b""),
        ("a.txt", b"\xef\xbb\xbf"), ("a.jsonl", b'"one"\r\n\n"two"\r{\n"three"'), ("a.jsonl", b'"one"\n{"a": 1}\n'),
        ("a.jsonl", b"\n\n"), ("a.jsonl", b'"one"\n"\\ud83d"'), ("a.jsonl", b'"one \xff"'),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_as_a_run_names_it(name, data, size, cut, tmp_path):
    (tmp_path / name).write_bytes(data)
    cut(size)
    found = attempt(lambda: made([tmp_path / name], tmp_path / "shards"))
    assert found == attempt(lambda: expected(tmp_path / name))
    assert str(tmp_path / name) in found


def test_several_paths_follow_one_another(cut, tmp_path):
    cut(3)
    source = write(tmp_path / "texts", b_txt="bb b", a_jsonl='"one"\n"two"', c_md="cc")
    found = stored_after(tmp_path / "one", [source / "a.jsonl", source / "b.txt", source / "c.md"])
    same(found, expected(source))
    again = stored_after(tmp_path / "two", [source / "c.md", source])
    assert again["train"][:2].tolist() == [again["train"][0]] * 2, "cc comes first"
    with pytest.raises(InputError, match=r"nothing\.txt is empty"):
        made([source, write(tmp_path / "empty", nothing_txt="") / "nothing.txt"], tmp_path / "three")


def stored_after(folder, paths, **how):
    made(paths, folder, **how)
    return stored(folder)


def test_a_trained_bpe_tokenizer_is_that_of_a_run(cut, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    cut(100)
    made([text], tmp_path / "shards", tokenizer="bpe", vocab_size=300)
    run, _ = create_run({**SETTINGS, "data": str(text), "tokenizer": "bpe", "vocab_size": 300}, tmp_path / "run")
    prepared = Prepared(tmp_path / "shards")
    assert prepared.tokenizer.sha256 == run.tokenizer().sha256
    for name, tokens in run.splits().items():
        assert prepared.splits()[name].sha256() == tokens.sha256()


def test_workers_change_nothing(tmp_path):
    lines = "".join(json.dumps(line * 50) + "\n" for line in TEXT.split("\n"))
    source = write(tmp_path / "texts", a_txt=TEXT * 1600, b_jsonl=lines * 30)
    assert find_source(source / "a.txt").stretches > 1 < find_source(source / "b.jsonl").stretches
    for workers in (1, 2):
        made([source], tmp_path / f"by{workers}", workers, tokenizer="char", shard_tokens=1 << 20)
    assert files(tmp_path / "by1") == files(tmp_path / "by2")


def files(folder):
    """What whoever reads shards sees of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("pattern", splitting.CUTS)
def test_a_cut_changes_no_chunk(pattern):
    """All texts of four marks, and random longer ones, cut at every place that CUTS allows and at some of them."""
    letters = "aSsl1 \n\r.'/\u3000\u0301漢\t"
    chunks, cuts = regex.compile(splitting.PATTERNS[pattern]), regex.compile(splitting.CUTS[pattern])
    draw = random.Random(1)
    marks = [*letters, "\u017f", "r", "e", "\ufffd", "\udc80", "\u01c5"]
    texts = itertools.chain(
        map("".join, itertools.product(letters, repeat=3)),
        ("".join(draw.choices(marks, k=draw.randint(4, 14))) for _ in range(4000)),
    )
    found = 0
    for text in texts:
        places = [match.start() for match in cuts.finditer(text)]
        for some in (places, [place for place in places if draw.random() < 0.5]):
            parts = [text[start:end] for start, end in itertools.pairwise([0, *some, len(text)])]
            whole = splitting.split(text, chunks)
            assert [chunk for part in parts for chunk in splitting.split(part, chunks)] == whole, (text, some)
            found += len(some)
    assert found > 3000


# A text without a place to be cut


def test_a_text_of_one_letter_is_cut_anywhere_or_refused(cut, monkeypatch, tmp_path):
    text = tmp_path / "letters.txt"
    text.write_text("a" * 5000, encoding="utf-8")
    cut(100)
    monkeypatch.setattr(pieces, "LONGEST", 1000)
    same(stored_after(tmp_path / "bytes", [text], tokenizer="byte"), expected(text, "byte"))
    with pytest.raises(InputError, match=r"letters\.txt cannot be cut anywhere between byte 100 and byte 1,100"):
        made([text], tmp_path / "bpe", tokenizer="bpe")
    monkeypatch.setattr(pieces, "LONGEST", 5000)
    same(stored_after(tmp_path / "held", [text], tokenizer=TOKENIZERS[2]), expected(text, TOKENIZERS[2]))


def test_a_line_that_is_too_long_is_refused(cut, monkeypatch, tmp_path):
    (tmp_path / "long.jsonl").write_text('"one"\n"' + "a " * 2000 + '"\n', encoding="utf-8")
    cut(100)
    monkeypatch.setattr(pieces, "LONGEST", 1000)
    with pytest.raises(InputError, match=r"between byte 100 and byte 1,100.*a line is a document"):
        made([tmp_path / "long.jsonl"], tmp_path / "shards")


# Going on


@pytest.fixture
def killed(cut, monkeypatch, tmp_path):
    """Prepares a text until a function has been called so often, as if the process had died there."""
    cut(500)
    source = write(tmp_path / "texts", a_txt=TEXT, b_jsonl='"one two"\n' * 40)

    def run(folder, place=None, name="", calls=0, **how):
        with pytest.MonkeyPatch.context() as patch:
            if place is not None:
                whole, count = getattr(place, name), itertools.count(1)

                def dies(*arguments, **options):
                    if next(count) > calls:
                        raise SystemExit
                    return whole(*arguments, **options)

                patch.setattr(place, name, dies)
            made([source], folder, **{"tokenizer": "byte", "shard_tokens": 1000, **how})

    run.source = source
    return run


DEATHS = [
    (preparing, "survey", 3), (preparing, "_encode", 0), (preparing, "_encode", 5), (journal.ShardWriter, "_log", 1),
    (journal.ShardWriter, "_log", 4), (journal.ShardWriter, "_log", 7), (journal, "file_sha256", 1),
    (journal, "npy_header", 2), (preparing, "write_json", 1),
]  # fmt: skip


@pytest.mark.parametrize(("place", "name", "calls"), DEATHS)
def test_whoever_is_killed_goes_on_to_the_same_bytes(place, name, calls, killed, monkeypatch, tmp_path):
    killed(tmp_path / "straight")
    with pytest.raises(SystemExit):
        killed(tmp_path / "shards", place, name, calls)
    assert not (tmp_path / "shards" / "manifest.json").exists(), "what is not whole does not look whole"
    with pytest.raises(InputError, match="is not whole yet: give the command again"):
        Prepared(tmp_path / "shards")
    killed(tmp_path / "shards")
    assert files(tmp_path / "shards") == files(tmp_path / "straight")


def test_what_is_done_is_not_done_again(killed, monkeypatch, tmp_path):
    surveyed, encoded = [], []
    for name, calls in (("survey", surveyed), ("_encode", encoded)):
        whole = getattr(preparing, name)
        monkeypatch.setattr(
            preparing, name, lambda *args, whole=whole, calls=calls: (calls.append(args), whole(*args))[1]
        )
    killed(tmp_path / "straight")
    both = len(surveyed), len(encoded)
    surveyed.clear()
    encoded.clear()
    for calls in (2, 3):
        with pytest.raises(SystemExit):
            killed(tmp_path / "shards", journal.ShardWriter, "write", calls)
    killed(tmp_path / "shards")
    assert len(surveyed) == both[0]
    assert len(encoded) == both[1] + 2, "but for the one that was under way, each time"
    killed(tmp_path / "shards")
    assert len(encoded) == both[1] + 2, "a folder that is whole stays as it is"


def damaged(folder, how):
    part = next(folder.glob("*.part"))
    if how == "gone":
        part.unlink()
    elif how == "short":
        part.write_bytes(part.read_bytes()[:-100])
    else:
        data = bytearray(part.read_bytes())
        data[128] ^= 1
        part.write_bytes(data)


@pytest.mark.parametrize("how", ["gone", "short", "flipped"])
@pytest.mark.parametrize("calls", [1, 3, 6])
def test_a_power_cut_that_takes_the_open_shard_costs_that_shard(how, calls, killed, tmp_path):
    killed(tmp_path / "straight")
    with pytest.raises(SystemExit):
        killed(tmp_path / "shards", journal.ShardWriter, "write", calls)
    damaged(tmp_path / "shards", how)
    with (tmp_path / "shards" / "journal").open("ab") as file:
        file.write(b'{"split": 0, "tok')
    killed(tmp_path / "shards")
    assert files(tmp_path / "shards") == files(tmp_path / "straight")


def test_a_shard_that_was_whole_and_is_gone_is_named(killed, tmp_path):
    with pytest.raises(SystemExit):
        killed(tmp_path / "shards", journal.ShardWriter, "write", 6)
    (tmp_path / "shards" / "train_00000.npy").unlink()
    with pytest.raises(InputError, match=r"train_00000\.npy was written and is gone"):
        killed(tmp_path / "shards")


@pytest.mark.parametrize("whole", [False, True])
def test_other_settings_and_texts_are_refused_by_name(whole, killed, tmp_path):
    shards = tmp_path / "shards"
    if whole:
        killed(shards)
    else:
        with pytest.raises(SystemExit):
            killed(shards, journal.ShardWriter, "write", 3)
    before = files(shards)
    for name, value, message in [
        ("split", (0.8, 0.1, 0.1), "begun with split 0.9 0.05 0.05, and now it is 0.8 0.1 0.1"),
        ("tokenizer", "char", "begun with tokenizer byte, and now it is char"),
        ("errors", "replace", "begun with errors strict"),
        ("shard_tokens", 7, "begun with shard_tokens 1000, and now it is 7"),
    ]:
        with pytest.raises(InputError, match=message):
            killed(shards, **{name: value})
    text = killed.source / "a.txt"
    stamp = text.stat()
    text.write_text(TEXT + "more", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.txt has changed since its tokens were begun"):
        killed(shards)
    text.write_text(TEXT, encoding="utf-8")
    os.utime(text, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (killed.source / "c.txt").write_text("new", encoding="utf-8")
    with pytest.raises(InputError, match="begun with 2 other files"):
        killed(shards)
    (killed.source / "c.txt").unlink()
    assert files(shards) == before
    killed(shards)


def test_a_file_that_changes_under_way_is_noticed(killed, tmp_path):
    """Its size and its time are the same, its content is not."""
    with pytest.raises(SystemExit):
        killed(tmp_path / "shards", journal.ShardWriter, "write", 3)
    text = killed.source / "a.txt"
    stamp = text.stat()
    text.write_text(TEXT[:-40].ljust(len(TEXT), "x"), encoding="utf-8")
    os.utime(text, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(InputError, match=r"a\.txt has changed"):
        killed(tmp_path / "shards")


def test_settings_may_change_as_long_as_no_token_is_written(killed, tmp_path):
    with pytest.raises(InputError, match="at least 256"):
        killed(tmp_path / "shards", tokenizer="bpe", vocab_size=10)
    killed(tmp_path / "shards", tokenizer="bpe", vocab_size=300)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    text = write(tmp_path / "texts", a_txt="text") / "a.txt"
    with pytest.raises(InputError, match="is there already"):
        made([text], tmp_path / "texts")
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["a.txt"]


def test_a_folder_is_prepared_by_one_process(killed, tmp_path):
    with pytest.raises(SystemExit):
        killed(tmp_path / "shards", journal.ShardWriter, "write", 3)
    lock = preparing.FileLock(tmp_path / "shards" / ".lock")
    with lock, pytest.raises(InputError, match="another process is preparing"):
        killed(tmp_path / "shards")


def test_a_full_disk_is_refused_before_it_is_filled_and_gone_on_from(killed, monkeypatch, tmp_path):
    killed(tmp_path / "straight")
    usage = type(shutil.disk_usage("."))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
        with pytest.raises(InputError, match=r"need about 0 MB .* and 0 MB are free; make room"):
            killed(tmp_path / "shards")
    assert not list((tmp_path / "shards").glob("*.npy*"))
    with monkeypatch.context() as patch:

        def full(*arguments):
            raise OSError(28, "No space left on device")

        patch.setattr(journal, "sync", full)
        with pytest.raises(InputError, match="No space left on device; mend that, and the same command goes on"):
            killed(tmp_path / "shards")
    killed(tmp_path / "shards")
    assert files(tmp_path / "shards") == files(tmp_path / "straight")
