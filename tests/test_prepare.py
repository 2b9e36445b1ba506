"""Texts of any size to shards: the same tokens as a run has, whoever is killed on the way; and training on them."""

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from runs import SETTINGS, TEXT, same_end
from scratchlm import tokenizers
from scratchlm.checkpoint import RunFolder
from scratchlm.cli import main
from scratchlm.config import read_settings
from scratchlm.data import journal, pieces
from scratchlm.data import prepare as preparing
from scratchlm.data.pieces import find_source
from scratchlm.data.prepare import Preparation, prepare
from scratchlm.data.shards import SPLITS, Prepared, encode_documents, split_documents
from scratchlm.data.text import read_documents
from scratchlm.errors import InputError
from scratchlm.files import read_json, write_json
from scratchlm.tokenizers import BPETokenizer, CharacterTokenizer, exhaust, splitting
from scratchlm.training.loop import train
from scratchlm.training.material import read_data
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
    (journal, "npy_header", 2), (preparing, "write_json", 1), (preparing, "write_json", 2),
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


def test_another_tokenizer_after_a_kill_is_refused(killed, monkeypatch, tmp_path):
    """Else the rest of the shards would be of it, and verify as good."""
    with pytest.raises(SystemExit):
        killed(tmp_path / "shards", journal.ShardWriter, "write", 3)
    tokenizers.Tokenizer.kinds["char"].train(["other text"], documents=False).save(tmp_path / "shards/tokenizer.json")
    with pytest.raises(InputError, match=r"is not the tokenizer that .* was begun with"):
        killed(tmp_path / "shards")


def test_a_whole_folder_that_lost_a_shard_is_not_called_whole(killed, tmp_path):
    killed(tmp_path / "shards")
    next((tmp_path / "shards").glob("train_*.npy")).unlink()
    with pytest.raises(InputError, match=r"remove the folder .*, and give the command again"):
        killed(tmp_path / "shards")


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
        file.write(b"\0\0\n" if calls == 3 else b'{"split": 0, "tok')
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


# The command line


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_prepare_says_what_it_made_and_verify_that_it_is_whole(here, capsys):
    assert main(["data", "prepare", "text.txt", "--out", "shards", "--split", "0.8", "0.1", "0.1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"train +2,304 tokens +2,304 bytes +1 documents", said)
    assert main(["data", "verify", "shards"]) == 0
    assert "every file is as its hash says" in capsys.readouterr().out
    assert main(["data", "prepare", "text.txt", "--out", "shards", "--split", "0.8", "0.1", "0.1"]) == 0
    assert capsys.readouterr().out == said, "once more changes nothing"
    data = bytearray(Path("shards/train_00000.npy").read_bytes())
    data[-1] ^= 1
    Path("shards/train_00000.npy").write_bytes(data)
    assert main(["data", "verify", "shards"]) == 2
    assert "train_00000.npy is damaged: its sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the texts"), (["text.txt"], "--out shards"), (["-", "--out", "s"], "write standard input to a file"),
        (["missing.txt", "--out", "s"], "cannot read missing.txt: No such file"),
        (["pairs.tsv", "--out", "s"], "holds pairs"), (["text.txt", "--out", "s", "--tokenizer", "bep"], "mean 'bpe'"),
        (["text.txt", "--out", "s", "--vocab-size", "300"], "the vocabulary size is 300"),
        (["text.txt", "--out", "s", "--split", "0.9", "0.9", "0"], "shares of train"),
        (["text.txt", "--out", "s", "--workers", "0"], "workers is 0"),
        (["text.txt", "--out", "s", "--shard-tokens", "0"], "at least 1"),
        (["text.txt", "--out", "s", "--tokenizer", "pair"], "a tokenizer of pairs"),
    ],
)  # fmt: skip
def test_what_cannot_be_prepared_is_refused_and_leaves_nothing(words, message, here, capsys):
    assert main(["data", "prepare", *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["text.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with a name")
def test_what_can_be_read_once_only_is_refused(here, capsys):
    os.mkfifo("pipe")
    assert main(["data", "prepare", "pipe", "--out", "s"]) == 2
    assert "pipe is no file" in capsys.readouterr().err


def start(*words, **options):
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scratchlm", "data", "prepare", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


def test_ctrl_c_ends_with_130_and_the_command_goes_on(here):
    Path("long.txt").write_text(TEXT * 2000, encoding="utf-8")
    words = ["long.txt", "--out", "shards", "--workers", "2"]
    process = start(*words, start_new_session=True)
    while not Path("shards/preparation.json").is_file() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too, which have just been started
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines() == ["stopped; the same command goes on, and what is in shards is not made again"]
    made(["long.txt"], here / "shards")
    same(stored(Path("shards")), expected("long.txt"))


# Training


def test_a_run_on_a_prepared_folder_is_the_run_on_its_text(here):
    made(["text.txt"], here / "shards", shard_tokens=500)
    settings = {**SETTINGS, "steps": 2, "eval_every": 2}
    runs = [
        create_run({**settings, "data": data}, here / name)[0] for data, name in (("text.txt", "a"), ("shards", "b"))
    ]
    assert not (runs[1].path / "data").exists(), "the tokens stay where they are"
    assert runs[1].config().prepared == "../shards"
    for run in runs:
        list(train(run))
    same_end(*runs)


def prepared_run(here, **changed):
    made(["text.txt"], here / "shards")
    return create_run({**SETTINGS, "steps": 2, "data": "shards", **changed}, here / "runs" / "a")[0]


def test_a_run_finds_its_tokens_where_both_have_moved_and_says_so_where_not(here):
    wanted = {name: tokens.sha256() for name, tokens in prepared_run(here).splits().items()}
    Path("elsewhere").mkdir()
    for name in ("runs", "shards"):
        Path(name).rename(Path("elsewhere") / name)
    run = RunFolder.open("elsewhere/runs/a")
    assert {name: tokens.sha256() for name, tokens in run.splits().items()} == wanted
    Path("elsewhere/shards").rename("elsewhere/other")
    with pytest.raises(
        InputError, match=r"tokens are in the folder .*elsewhere.shards, .*; put it back there, or a link"
    ):
        run.splits()
    Path("elsewhere/shards").symlink_to("other")
    assert {name: tokens.sha256() for name, tokens in run.splits().items()} == wanted


DAMAGE = {
    "another folder": (
        lambda: (shutil.rmtree("shards"), made(["text.txt"], Path("shards"), tokenizer="byte")),
        "another run",
    ),
    "a shard of another length": (
        lambda: np.save("shards/train_00000.npy", np.zeros(5, np.uint8)),
        "is damaged: it has (5,)",
    ),
    "a shard of another type": (lambda: np.save("shards/test_00000.npy", np.zeros(144, np.uint16)), "of uint16"),
    "a cut shard": (lambda: os.truncate("shards/train_00000.npy", 1000), "train_00000.npy is damaged"),
    "an empty shard": (lambda: os.truncate("shards/train_00000.npy", 0), "train_00000.npy is damaged"),
    "no shard": (lambda: Path("shards/validation_00000.npy").unlink(), "cannot read"),
    "another tokenizer": (lambda: CharacterTokenizer("abc").save("shards/tokenizer.json"), None),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_is_not_what_it_was_is_refused(damage, here):
    run = prepared_run(here)
    change, message = DAMAGE[damage]
    change()
    if message is None:  # the run has the tokenizer itself; a new one needs the folder's
        run.splits()
        with pytest.raises(InputError, match="made by another tokenizer"):
            create_run({**SETTINGS, "data": "shards"}, here / "new")
    else:
        with pytest.raises(InputError, match=re.escape(message)):
            run.splits()


def test_a_run_on_a_prepared_folder_takes_what_the_folder_decides(here):
    run = prepared_run(here)
    again = create_run({**run_settings(run)}, here / "runs" / "b")[0]
    assert again.config() == run.config(), "its config.json repeats it"
    for changed, message in [
        ({"tokenizer": "byte"}, "--tokenizer is byte, but shards was prepared with its own; leave it out"),
        ({"vocab_size": 300}, "--vocab-size is 300"),
        ({"split": (0.8, 0.1, 0.1)}, "--split is 0.8 0.1 0.1, but shards was prepared with its own, 0.9 0.05 0.05"),
        ({"errors": "replace"}, "--errors is replace"),
    ]:
        with pytest.raises(InputError, match=message):
            create_run({**SETTINGS, "data": "shards", **changed}, here / "new")
    made(["text.txt"], here / "small", split=(1.0, 0.0, 0.0))
    with pytest.raises(InputError, match="the validation text has 0 tokens"):
        create_run({**SETTINGS, "data": "small"}, here / "new")
    with pytest.raises(InputError, match="shards is a folder of prepared tokens, which train, finetune and eval read"):
        read_data("shards")


def run_settings(run):
    return {**read_settings(str(run.path / "config.json")), "data": "shards"}


def test_presets_leave_to_a_folder_what_it_decides(here, monkeypatch):
    """nanogpt-cpu has a split of its own, the Backpack's default a tokenizer."""
    made(["text.txt"], here / "shards")
    asked = []
    monkeypatch.setattr("scratchlm.cli.train._train", lambda settings, *rest: asked.append(settings) or 0)
    for words in (["gpt", "--preset", "nanogpt-cpu"], ["backpack"]):
        for data in ("text.txt", "shards"):
            assert main(["train", *words, "--data", data]) == 0
    assert ["split" in settings for settings in asked[:2]] == [True, False]
    assert ["tokenizer" in settings for settings in asked[2:]] == [True, False]


def test_finetune_and_eval_read_a_prepared_folder_of_their_tokenizer(here, capsys):
    run = prepared_run(here)
    list(train(run))
    assert main(["finetune", "runs/a", "--data", "shards", "--steps", "1", "--out", "runs/b"]) == 0
    assert RunFolder("runs/b").config().prepared == "../../shards"
    capsys.readouterr()
    scores = []
    for words in (["--data", "shards", "--split", "test"], ["--split", "test"]):
        assert main(["eval", "runs/a", *words, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1]
    made(["text.txt"], here / "bytes", tokenizer="byte")
    assert main(["eval", "runs/a", "--data", "bytes"]) == 2
    assert "made by another tokenizer" in capsys.readouterr().err
    assert main(["finetune", "runs/a", "--data", "bytes", "--out", "runs/c"]) == 2
    assert "prepared with another tokenizer than that of the model to start from" in capsys.readouterr().err


# Slow: what is larger than memory should be


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_bytes(here):
    """200 MB, SIGKILL again and again, to the process alone: its workers end with it."""
    Path("long.txt").write_text(TEXT * (200_000_000 // len(TEXT)), encoding="utf-8")
    taught().save("tokenizer.json")
    words = ["long.txt", "--tokenizer", "tokenizer.json", "--workers", "2", "--shard-tokens", "5000000"]
    began = time.monotonic()
    assert start(*words, "--out", "straight").wait(300) == 0
    whole, draw, kills = time.monotonic() - began, random.Random(3), 0
    while True:
        process = start(*words, "--out", "shards")
        try:
            assert process.wait(draw.uniform(1, whole / 2)) == 0
            break
        except subprocess.TimeoutExpired:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            workers = children.read_text().split() if children.exists() else []
            process.kill()
            process.wait()
            kills += 1
            deadline = time.monotonic() + 20
            while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not any(Path(f"/proc/{worker}").exists() for worker in workers), "no worker is left behind"
    assert kills >= 2
    assert files(here / "shards") == files(here / "straight")


def memory(pid):
    """The resident memory of a process and of those that it started, in MB."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(map(memory, children))
    return 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["prose", "one letter a line", "emoji"])
def test_memory_stays_below_a_gigabyte(kind, here):
    line = {"prose": TEXT, "one letter a line": "a" * 7_000_000 + "\n", "emoji": "😀漢字 " * 1000 + "\n"}[kind]
    Path("long.txt").write_text(line * (200_000_000 // len(line.encode())), encoding="utf-8")
    taught().save("tokenizer.json")
    process, most = start("long.txt", "--tokenizer", "tokenizer.json", "--workers", "2", "--out", "shards"), 0
    while process.poll() is None:
        most = max(most, memory(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0
    print(f"{kind}: at most {most:,.0f} MB")
    assert most < 1000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_training_on_two_gigabytes_takes_no_more_memory_at_the_end_than_at_the_start(here):
    """Ten shards of 100 million tokens, written without a text; random windows of all of them, while a model trains."""
    prepared_folder(here / "shards", shards=10, shard_tokens=100_000_000)
    script = """
from pathlib import Path
from runs import SETTINGS
from scratchlm.training.loop import train
from scratchlm.training.records import Progress
from scratchlm.training.setup import create_run
changed = {"model": {**SETTINGS["model"], "dim": 8, "depth": 1}, "steps": 600, "eval_every": 600, "log_every": 100}
run, _ = create_run({**SETTINGS, **changed, "data": "shards", "batch_size": 256}, Path("run"))
for record in train(run):
    if isinstance(record, Progress):
        print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 1_000_000)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = list(map(int, done.stdout.split()))
    print(f"MB each hundred steps: {found}")
    assert len(found) == 6
    assert max(found) - found[0] < 30, "153,600 random windows touch 600 MB of the shards"


def prepared_folder(folder, shards, shard_tokens):
    """What data prepare makes of a text, with other tokens for those of training."""
    made(["text.txt"], folder, tokenizer=taught())
    manifest = read_json(folder / "manifest.json")
    numbers = np.random.default_rng(0)
    described = []
    for number in range(shards):
        file = folder / f"train_{number:05d}.npy"
        np.save(file, numbers.integers(0, 256, shard_tokens, dtype=np.uint16))
        described.append({"file": file.name, "tokens": shard_tokens, "sha256": ""})
    manifest["splits"]["train"] |= {"shards": described, "tokens": shards * shard_tokens}
    write_json(folder / "manifest.json", manifest)
