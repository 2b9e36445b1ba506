"""What the README tells a person to type does what it says."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from runs import TEXT
from scratchlm.cli import main, progress

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BRIEF = ["--steps=4", "--eval-every=2", "--batch-size=4", "--device=cpu"]
TINY = [*BRIEF, "--model.dim=16", "--model.depth=1"]
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for _, block in re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("scratchlm ")
]


@pytest.fixture
def with_a_run(tmp_path, monkeypatch, capsys):
    """A folder in which a text and pairs were written, and `scratchlm train gpt` was run."""
    monkeypatch.chdir(tmp_path)
    words = ["scratch", "crash", "chart", "arch"]
    sources = [f"{one} {other} {third}" for one in words for other in words for third in words]
    sides = [sources, ["S K R AE CH"] * len(sources)]
    pairs = map("\t".join, zip(*sides, strict=True))
    for name, lines in (("de.txt", sides[0]), ("en.txt", sides[1]), ("pairs.tsv", pairs)):
        Path(name).write_text("\n".join(lines), encoding="utf-8")
    Path("my.txt").write_text("ROMEO:\n" + TEXT * 3, encoding="utf-8")
    assert main(["train", "gpt", "--data=my.txt", "--model.heads=2", *TINY]) == 0
    capsys.readouterr()


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_readme(command, with_a_run, monkeypatch):
    # what takes minutes, the network or other processes is tested elsewhere
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(progress, "launch", lambda processes, arguments: main(arguments))
    command = ["my.txt" if word == "tinyshakespeare" else word for word in command]
    if command == ["bench"]:
        command = ["bench", "ceilings"]
    if "big.txt" in command or "shards" in command:
        Path("more").mkdir()
        for file in ("big.txt", "more/other.txt"):
            Path(file).write_text(TEXT * 3, encoding="utf-8")
    if command[0] == "train" and "shards" in command:
        assert main(["data", "prepare", "big.txt", "--out=shards", "--tokenizer=byte"]) == 0
    if command[:2] == ["tokenizer", "show"]:
        assert main(["tokenizer", "train", "my.txt", "--out=my.json", "--vocab-size=280"]) == 0
    pairs = ["--data=pairs.tsv", "--tokenizer=char+symbols"]
    if "runs/transformer" in command:
        assert main(["train", "transformer", *pairs, *TINY]) == 0
    if "runs/backpack" in command:
        Path("kings.txt").write_text("My love, the king is dead, said the guard; he or she. " * 200, encoding="utf-8")
        assert main(["train", "backpack", "--data=kings.txt", "--vocab-size=320", *TINY]) == 0
    if "runs/gpt-lora" in command:
        assert main(["finetune", "runs/gpt", "--data=my.txt", "--lora", *BRIEF]) == 0
    if "runs/gpt-hf" in command:
        assert main(["export", "runs/gpt", "--to=hf"]) == 0
    if command[0] == "finetune":
        command = [*command, *BRIEF]
    small = TINY if command[0] == "train" and "--help" not in command else []
    data = [] if not small or {"--data", "--source"} & {*command} else ["--data=my.txt"]
    if command[:2] == ["train", "transformer"]:
        data = pairs if data else ["--tokenizer=char+symbols"]
    heads = ["--model.heads=2"] if small and command[1] == "gpt" else []
    assert main([*command, *small, *data, *heads]) == 0


def test_the_python_of_the_readme(with_a_run, capsys):
    (python,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(python, {})
    written = capsys.readouterr().out
    assert written.startswith("ROMEO:")
    assert len(written) == len("ROMEO:") + 100 + 1
