"""What tests of the hub's folders share: the command line called, and the folders damaged."""

import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file

from scratchlm.cli import main

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"


def call(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(capsys, *arguments):
    """The message of a refusal: exit code 2, one line, nothing created or changed."""
    before = contents(Path.cwd())
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert re.fullmatch(r"scratchlm: .+\n", err), err
    assert contents(Path.cwd()) == before
    return err


def change(folder, edit):
    tensors = load_file(folder / SAFETENSORS)
    edit(tensors)
    save_file(tensors, folder / SAFETENSORS, {"format": "pt"})


def config(**changed):
    """Change config.json; "left out" takes a key out."""

    def edit(folder):
        content = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **changed}
        kept = {key: value for key, value in content.items() if changed.get(key, value) != "left out"}
        (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")

    return edit


def tensors(edit):
    return lambda folder: change(folder, edit)


def file(name, data):
    return lambda folder: (folder / name).write_bytes(data)
