"""What pages tell a person to type: run as it stands, at sizes that take moments, with what it names lying there."""

import contextlib
import importlib.util
import io
import json
import re
import shlex
import shutil
import string
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from runs import TEXT
from scratchlm.cli import main

ROOT = Path(__file__).parent.parent
BRIEF = ["--steps=4", "--eval-every=2", "--batch-size=4", "--device=cpu"]
TINY = [*BRIEF, "--model.dim=16", "--model.depth=1"]
PAIRS = {"cmudict", "cmudict-stress", "bible-de-en"}
TEXTS = {"shakespeare", "shakespeare-tiny", "tinyshakespeare"}
BUDGET = {"params": "params=100k,tokens=2k", "trunk": "trunk=100k,tokens=2k"}
SMALL = "params=200k"  # is small as it is, and all architectures have a shape of it
KINGS = (
    "My love, the king is dead, said the guard; he or she. I would that thou art night and father. "
    "The crown of England, the sea, ship, wind, water, shore, and blood. To be, or not to be: king thou England.\n"
)


def module(path):
    """A Python file that is no part of the package, imported."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(path.parent))
    return made


build = module(ROOT / "docs" / "build.py")


@dataclass(frozen=True)
class Fence:
    """A block of code in a page."""

    page: str
    line: int
    language: str
    code: str

    def __str__(self):
        return f"{self.page}:{self.line}"

    @property
    def commands(self):
        """Of each line that calls scratchlm the words, and those of what it is piped into."""
        return [commands_of(line) for line in self.lines]

    @property
    def lines(self):
        """The lines that call scratchlm."""
        return [line for line in self.code.splitlines() if re.match(r"(\$ )?scratchlm ", line)]


def commands_of(line):
    """A line of a shell as lists of words, the program's name left out."""
    stages = [[]]
    for word in shlex.split(line.removeprefix("$ "), comments=True):
        if word == "|":
            stages.append([])
        else:
            stages[-1].append(word)
    assert all(stage[0] == "scratchlm" for stage in stages), line
    return [stage[1:] for stage in stages]


def fences(path):
    """The blocks of code of a page, those that are indented too."""
    text, page = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    indented = re.finditer(
        r"(?<=\n\n)(?P<code>(?:    .*\n)+)(?=\n)", build.FENCE.sub(lambda m: re.sub(".", "x", m[0]), text)
    )
    found = [(fence.start(), fence["language"], fence["code"]) for fence in build.FENCE.finditer(text)]
    found += [(block.start(), "", textwrap.dedent(block["code"])) for block in indented]
    return [Fence(page, text.count("\n", 0, at) + 1, language, code) for at, language, code in sorted(found)]


class Desk:
    """A folder, the current one, where what a command names is made before it runs.

    `kept`: a folder of all desks, where what takes training is made once.
    """

    def __init__(self, folder, kept):
        self.folder, self.kept, self.making = folder, kept, set()

    def need(self, name):
        """Make a file or folder that is not there yet."""
        if (self.folder / name).exists() or name not in MADE or name in self.making:
            return
        self.making.add(name)
        made = MADE[name]
        if not callable(made):
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(made, encoding="utf-8")
        elif self.folder == self.kept:
            made(self)
        else:
            with contextlib.chdir(self.kept), contextlib.redirect_stdout(io.StringIO()):
                Desk(self.kept, self.kept).need(name)
            copy = shutil.copytree if (self.kept / name).is_dir() else shutil.copyfile
            copy(self.kept / name, self.folder / name)
            for beside in BESIDE.get(name, ()):
                self.need(beside)

    def run(self, stages, monkeypatch):
        """Run a line of a shell; what it writes."""
        written = None
        for stage in stages:
            for before, word in zip(["", *stage], stage, strict=False):
                if before != "--out":
                    self.need(word.rstrip("/"))
            if written is not None:
                monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(written.encode())))
            with contextlib.redirect_stdout(io.StringIO()) as output:
                code = main(self.brief(stage))
            written = output.getvalue()
            assert code == 0, f"scratchlm {shlex.join(stage)} ends with {code}"
        return written

    def brief(self, words):
        """The command at a size that takes moments, on texts that are at hand."""
        words = ["pairs.tsv" if word in PAIRS else "my.txt" if word in TEXTS else word for word in words]
        for data in ("pairs.tsv", "my.txt"):
            self.need(data)
        given = {word.partition("=")[0] for word in words}
        if words[0] == "bench" and len(words) == 1:
            return ["bench", "ceilings"]
        if words[0] == "resume" and "--steps" in words:
            words[words.index("--steps") + 1] = "6"
        if words[0] == "compare":
            at = words.index("--budget") + 1
            small = words[at].startswith(SMALL)
            words[at] = f"{SMALL},tokens=2k" if small else BUDGET[words[at].partition("=")[0]]
            small = ["--batch-size=4", "--device=cpu", *([] if "--window" in given else ["--window=16"])]
            return [*words, *small, *([] if "--data" in given else ["--data=my.txt"])]
        if words[:2] == ["data", "prepare"]:
            return [*words, *([] if "--workers" in given else ["--workers=1"])]
        if words[0] == "finetune":
            return [*words, *BRIEF]
        if words[0] != "train" or "--help" in given:
            return words
        words += [*BRIEF, f"--model.dim={24 if words[1] == 'llama' else 16}", "--model.depth=1"]
        words += ["--model.heads=2"] if words[1] == "gpt" else []
        if words[1] != "transformer":
            return words if given & {"--data", "--source"} else [*words, "--data=my.txt"]
        if not given & {"--data", "--source"}:
            words += ["--data=pairs.tsv"]
        return words if "--tokenizer" in given else [*words, "--tokenizer=char+symbols"]

    def execute(self, code):
        """Run Python; what it writes."""
        for name in re.findall(r'"([\w./-]+)"', code):
            for part in (name, str(Path(name).parent)):
                self.need(part)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, self.names(code))
        return output.getvalue()

    def names(self, code):
        """What a sketch takes as given."""
        if "import" in code:
            return {}
        import torch

        from scratchlm.models.gpt import GPT

        tokens = torch.ones(2, 3, dtype=torch.int64)
        return {"model": GPT(GPT.Config.tiny()), "tokens": tokens, "state": None, "batch_size": 2}


def calling(*arguments):
    """A maker that runs a command, after what it names was made."""

    def make(desk):
        for word in arguments:
            for name in re.findall(r"[\w./-]+", word):
                desk.need(name)
        assert main([*arguments]) == 0

    return make


WORDS = ["scratch", "crash", "chart", "arch"]
VERSE = "und sie sprachen zu ihr: Doch, wir wollen mit dir zu deinem Volke zurückkehren!"
SOURCES = ["kubernetes", "scratchable", VERSE]
SOURCES += [f"{one} {other} {third}" for one in WORDS for other in WORDS for third in WORDS]
TARGETS = ["S K R AE CH"] * len(SOURCES)
PROSE = f"ROMEO:\nBut soft, what light? To be, or not to be.\n{string.ascii_letters}\n" + TEXT * 3


def gpt2s_pair(desk):
    """GPT-2's two files, of a vocabulary as small as can be."""
    from scratchlm.tokenizers import BPETokenizer

    tokenizer = BPETokenizer.train([PROSE], vocab_size=270, pattern="gpt2", ties="gpt2")
    tokenizer.save("pair.json")
    assert main(["tokenizer", "export", "pair.json", "--to", "hf", "--out", "pair"]) == 0
    (exported,) = Path("pair").rglob("tokenizer.json") if Path("pair").is_dir() else [Path("pair")]
    model = json.loads(exported.read_text(encoding="utf-8"))["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    Path("vocab.bpe").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    Path("encoder.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")


# texts, and what a function of a desk makes in the current folder
MADE = {
    "my.txt": PROSE,
    "big.txt": PROSE,
    "web.jsonl": json.dumps({"text": PROSE}) + "\n",
    "a.txt": "\n".join(SOURCES),
    "b.txt": "\n".join(TARGETS),
    "de.txt": "\n".join(SOURCES),
    "en.txt": "\n".join(TARGETS),
    "words.txt": "\n".join(SOURCES[:5]),
    "kings.txt": KINGS * 150,
    "pairs.tsv": "\n".join(map("\t".join, zip(SOURCES, TARGETS, strict=True))),
    "my.json": calling("tokenizer", "train", "my.txt", "--out=my.json", "--vocab-size=280"),
    "vocab.bpe": gpt2s_pair,
    "encoder.json": gpt2s_pair,
    "shards": calling("data", "prepare", "big.txt", "--out=shards", "--tokenizer=byte", "--workers=1"),
    "runs/gpt": calling("train", "gpt", "--data=my.txt", "--model.heads=2", *TINY),
    "runs/rnn": calling("train", "rnn", "--data=my.txt", *TINY),
    "runs/gpt-lora": calling("finetune", "runs/gpt", "--data=my.txt", "--lora", *BRIEF),
    "runs/gpt-hf": calling("export", "runs/gpt", "--to=hf"),
    "gpt-hf": calling("export", "runs/gpt", "--to=hf", "--out=gpt-hf"),
    "gpt-onnx": calling("export", "runs/gpt", "--to=onnx", "--out=gpt-onnx"),
    "runs/gpt-lora-peft": calling("export", "runs/gpt-lora", "--to=peft"),
    "runs/transformer": calling("train", "transformer", "--data=pairs.tsv", "--tokenizer=char+symbols", *TINY),
    "runs/transformer-2": calling(
        "train", "transformer", "--data=pairs.tsv", "--tokenizer=char+symbols", "--out=runs/transformer-2", *TINY
    ),
    "runs/backpack": calling("train", "backpack", "--data=kings.txt", "--vocab-size=500", *TINY),
}


def folder_of_texts(name):
    def make(desk):
        Path(name).mkdir()
        (Path(name) / "other.txt").write_text(PROSE, encoding="utf-8")

    return make


MADE |= {name: folder_of_texts(name) for name in ("more", "books")}
BESIDE = {"runs/gpt-lora": ["runs/gpt"], "vocab.bpe": ["encoder.json"], "shards": ["big.txt"]}
