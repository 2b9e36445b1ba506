"""What onnxruntime computes from an exported run is what the model computes; what cannot be a graph is refused."""

import json
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import scratchlm
from scratchlm import tokenizers
from scratchlm.checkpoint import RunFolder, build_model
from scratchlm.cli import main
from scratchlm.config import make_config
from scratchlm.models import MODELS
from scratchlm.models.gpt import GPT
from scratchlm.models.rnn import RNN
from scratchlm.tokenizers import ByteTokenizer

CONTEXT = 24
TINY = {"context": CONTEXT, "dim": 16, "depth": 1, "heads": 2}  # a trace takes longer with each block
DEEPER = {**TINY, "depth": 2}
RECURRENT = {"dim": 12, "hidden_dim": 16, "depth": 2}
SHAPES = {
    "gpt": TINY,
    "lstm": {**RECURRENT, "depth": 1},
    "cnn": {"dim": 16, "depth": 2, "dilations": 2},
}
MORE = {
    "gpt deeper": DEEPER,
    "lstm deeper": RECURRENT,
    "cnn deeper": {"dim": 16, "depth": 3, "dilations": 2},
    "gpt nanogpt": {**DEEPER, "bias": False, "activation": "gelu"},
    "gpt scaled": {**DEEPER, "inverse_layer_scaling": True},
    "backpack": {**DEEPER, "senses": 4},
    "rnn": RECURRENT,
    "gru": RECURRENT,
    "bigram": {},
    "cnn gcnn": {"dim": 16, "depth": 3, "dilations": 2, "hidden_dim": 8, "block": "gcnn"},
    "cnn tcn": {"dim": 16, "depth": 3, "dilations": 3, "hidden_dim": 8, "block": "tcn"},
    "cnn wavenet": {"dim": 16, "depth": 3, "dilations": 3, "kernel": 2, "block": "wavenet"},
}
each = pytest.mark.parametrize("kind", [*SHAPES, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)])


def make_run(path, arch, shape):
    """A run of random weights, none of which is zero or one."""
    config = make_config({"arch": arch, "model": {"vocab_size": ByteTokenizer.vocab_size, **shape}})
    torch.manual_seed(4)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    path.mkdir()
    ByteTokenizer().save(path / "tokenizer.json")
    run = RunFolder(path)
    run.write_config(config, "")
    run.save(3, model.state_dict(), {}, {"best_step": None, "best_loss": None, "val_loss": None})


def session(folder):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4  # 4: what is refused is raised and not printed too
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


class Exported:
    """A run, and what somebody has of it who has the exported folder and onnxruntime."""

    def __init__(self, folder, arch, shape):
        make_run(folder / "run", arch, shape)
        assert main(["export", str(folder / "run"), "--to", "onnx", "--out", str(folder / "graph")]) == 0
        self.folder = folder / "graph"
        self.model, _ = scratchlm.load(folder / "run")
        self.description = json.loads((self.folder / "description.json").read_bytes())
        self.session = session(self.folder)

    def start(self, batch, past=0):
        sizes = {"batch": batch, "past": past}
        memory = self.description["inputs"][1:]
        return [np.zeros([sizes.get(size, size) for size in one["shape"]], one["dtype"]) for one in memory]

    def read(self, tokens, memory):
        names = [one["name"] for one in self.description["inputs"]]
        logits, *memory = self.session.run(None, dict(zip(names, [tokens, *memory], strict=True)))
        return logits, memory

    def chunked(self, tokens, cuts):
        memory, logits = self.start(len(tokens)), []
        for start, end in pairwise([0, *cuts, tokens.shape[1]]):
            chunk, memory = self.read(tokens[:, start:end], memory)
            logits.append(chunk)
        return np.concatenate(logits, 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that exports a run of this kind, once."""

    @cache
    def export(kind):
        return Exported(tmp_path_factory.mktemp("exported"), kind.split()[0], (SHAPES | MORE)[kind])

    return export


# --- the same numbers ----------------------------------------------------------------------------------------------


@each
@torch.no_grad()
def test_any_chunking_gives_the_logits_of_the_model(exported, kind):
    graph = exported(kind)

    @settings(max_examples=30)
    @given(batch=st.integers(1, 4), length=st.integers(1, CONTEXT), data=st.data())
    def check(batch, length, data):
        cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)))) if length > 1 else []
        tokens = torch.randint(ByteTokenizer.vocab_size, (batch, length))
        expected = graph.model.readout(graph.model(tokens)[0])
        assert expected.std() > 0.05
        torch.testing.assert_close(torch.tensor(graph.chunked(tokens.numpy(), cuts)), expected, rtol=0, atol=1e-5)

    check()


@each
def test_greedy_decoding_continues_as_generate_does(exported, kind):
    graph, new = exported(kind), CONTEXT - 4
    prompts = [[1, 2, 3, 4], [250, 0, 7, 7]]
    expected = scratchlm.generate(graph.model, prompts, max_new_tokens=new, temperature=0.0)
    logits, memory = graph.read(np.array(prompts), graph.start(2))
    found = [logits[:, -1].argmax(-1)]
    while len(found) < new:
        logits, memory = graph.read(found[-1][:, None], memory)
        found.append(logits[:, -1].argmax(-1))
    assert np.concatenate([prompts, np.stack(found, 1)], 1).tolist() == expected


@each
def test_the_folder_says_what_is_in_it(exported, kind):
    graph = exported(kind)
    assert sorted(path.name for path in graph.folder.iterdir()) == ["description.json", "model.onnx", "tokenizer.json"]
    assert tokenizers.load(graph.folder / "tokenizer.json").sha256 == ByteTokenizer().sha256
    for side, values in (("inputs", graph.session.get_inputs()), ("outputs", graph.session.get_outputs())):
        assert [(one["name"], one["shape"]) for one in graph.description[side]] == [(v.name, v.shape) for v in values]
    assert graph.description["context"] == graph.model.context
    onnx.checker.check_model(graph.folder / "model.onnx", full_check=True)
    content = (graph.folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert str(Path(scratchlm.__file__).parent).encode() not in content


@pytest.mark.parametrize(("past", "new"), [(0, CONTEXT + 1), (CONTEXT - 1, 3), (CONTEXT, 1)])
def test_a_position_past_the_context_is_an_error(exported, past, new):
    """Of 3 tokens from the last position on, onnxruntime would give all that position: it makes its look-up a slice."""
    graph = exported("gpt")
    graph.read(np.ones((1, 1), np.int64), graph.start(1, CONTEXT - 1))
    with pytest.raises(Exception, match=rf"idx={past + new - 1} must be within the inclusive range \[-24,23\]"):
        graph.read(np.ones((1, new), np.int64), graph.start(1, past))


def test_weights_beyond_a_threshold_of_torchs_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)  # of 1.5 GiB
    graph = Exported(tmp_path, "bigram", {})
    assert (graph.folder / "model.onnx.data").stat().st_size >= 4 * ByteTokenizer.vocab_size**2
    tokens = torch.tensor([[1, 2, 256]])
    with torch.no_grad():
        assert np.array_equal(graph.chunked(tokens.numpy(), [1]), graph.model(tokens)[0].numpy())


# --- what is refused -----------------------------------------------------------------------------------------------


class Branching(GPT):
    """Computes something else where there is one new token, as a trace of several does not."""

    def forward(self, tokens, state=None):
        features, state = super().forward(tokens, state)
        return (2 * features if tokens.shape[1] == 1 else features), state


class Peeking(GPT):
    """Looks at the values of its tokens."""

    def forward(self, tokens, state=None):
        features, state = super().forward(tokens, state)
        return (2 * features if tokens.sum() > 9 else features), state


class Warm(RNN):
    """Starts from something that it remembers."""

    def initial_state(self, batch_size, capacity=None, source=None):
        state = super().initial_state(batch_size, capacity, source)
        state.memories[0][0].fill_(1)
        return state


class Bounded(RNN):
    """A memory of one size, and positions."""

    context = 5


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """A function that exports a run of a class, and gives the one line that says why that is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(MODELS, "_paths", dict(MODELS._paths))

    def export(arch, shape, *flags):
        if isinstance(arch, type):
            MODELS.register("other", f"{__name__}:{arch.__name__}")
            arch = "other"
        make_run(tmp_path / "run", arch, shape)
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert main(["export", "run", "--to", "onnx", *flags]) == 2
        out, err = capfd.readouterr()
        assert (out, sorted(tmp_path.rglob("*"))) == ("", before)
        assert re.fullmatch(r"scratchlm: .+\n", err), err
        return err

    return export


def test_a_model_that_reads_a_source(refused):
    assert "a Transformer reads a source with one graph" in refused("transformer", {"dim": 16, "heads": 2, "depth": 1})


@pytest.mark.slow
def test_a_model_whose_graph_would_compute_something_else(refused):
    assert "the graph of this Branching does not compute what the model does for 1 new" in refused(Branching, TINY)


def test_a_model_that_asks_for_values(refused):
    assert "torch cannot make a graph of this Peeking: " in refused(Peeking, TINY)


@pytest.mark.parametrize(
    ("kind", "message"), [(Warm, "a Warm starts with is more than zeros"), (Bounded, "a Bounded has a context of 5")]
)
def test_a_model_whose_memory_does_not_tell_all(refused, kind, message):
    assert message in refused(kind, RECURRENT)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_the_packages(refused, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'scratchlm[onnx]'" in refused("bigram", {})


def test_a_folder_that_is_there(refused):
    assert "run is there already; name another folder" in refused("bigram", {}, "--out", "run")


@pytest.mark.slow
def test_the_exporter_says_nothing_of_its_own(tmp_path):
    make_run(tmp_path / "run", "gpt", TINY)
    command = [sys.executable, "-m", "scratchlm", "export", "run", "--to", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path)
    assert done.stdout == "run-onnx: description.json, model.onnx, tokenizer.json\n"
    assert done.stderr == "run: imported weights\n"
