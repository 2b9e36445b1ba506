"""An adapter's run exported is its merged run exported, in each format; and where an export without --out goes."""

from pathlib import Path

import pytest
import torch

from scratchlm.checkpoint import RunFolder
from scratchlm.cli import main
from scratchlm.errors import InputError
from test_gguf import SHAPE, bpe, make_run
from test_peft import make_adapter

FILES = {"hf": "model.safetensors", "gguf": "model.gguf", "onnx": "model.onnx"}


def run_all(*commands):
    for command in commands:
        assert main(command.split()) == 0


@pytest.mark.parametrize("to", ["hf", "gguf", pytest.param("onnx", marks=pytest.mark.slow)])
def test_an_adapter_is_exported_as_what_it_merges_to(tmp_path, monkeypatch, to):
    monkeypatch.chdir(tmp_path)
    base, _ = make_run(Path("base"), bpe())
    make_adapter(base, Path("adapter"), rank=2, targets=("query", "mlp.output"), bias="all")
    run_all("merge adapter", *(f"export {run} --to {to}" for run in ("base", "adapter", "adapter-merged")))
    plain, own, merged = (Path(f"{run}-{to}", FILES[to]).read_bytes() for run in ("base", "adapter", "adapter-merged"))
    assert own == merged
    assert own != plain


def test_the_graph_of_an_adapter_is_made_of_what_it_merges_to(tmp_path, monkeypatch, capsys):
    """The same in short: the weights of the model that is traced."""
    monkeypatch.chdir(tmp_path)
    base, _ = make_run(Path("base"), bpe())
    make_adapter(base, Path("adapter"), rank=2, targets=("query", "mlp.output"), bias="all")
    run_all("merge adapter")
    seen = []

    def traced(model):
        seen.append(model.state_dict())
        raise InputError("enough is seen")

    monkeypatch.setattr("scratchlm.interop.onnx.traced", traced)
    for run in ("adapter", "adapter-merged", "base"):
        assert main(["export", run, "--to", "onnx"]) == 2
    own, merged, plain = seen
    assert own.keys() == merged.keys() == plain.keys()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in own.items())
    assert not all(torch.equal(tensor, plain[name]) for name, tensor in own.items())


def test_from_inside_a_run_its_neighbours_are_named(tmp_path, monkeypatch, capsys):
    base, _ = make_run(tmp_path / "base", bpe(), **SHAPE)
    make_adapter(base, tmp_path / "adapter", rank=2)
    before = {path.name for path in base.path.iterdir()}
    monkeypatch.chdir(base.path)
    run_all("export . --to gguf", "merge ../adapter/checkpoints/..")
    assert f"{Path('..', 'base-gguf')}: model.gguf" in capsys.readouterr().out
    assert {path.name for path in base.path.iterdir()} == before
    assert (tmp_path / "base-gguf").is_dir()
    weights = RunFolder(tmp_path / "adapter-merged").checkpoint().weights()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
