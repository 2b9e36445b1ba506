"""A GPT in llama.cpp's file: transformers reads the same model and tokenizer from it; what would differ is refused.

llama.cpp itself opens it in the slow test, as the package cyllama brings it.
"""

import functools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from hypothesis import example, given, settings

from scratchlm.checkpoint import RunFolder, build_model
from scratchlm.cli import main
from scratchlm.config import make_config
from scratchlm.data.corpora import pip_install
from scratchlm.interop.gguf import export_gguf
from scratchlm.tokenizers import BPETokenizer, ByteTokenizer, CharacterTokenizer, IdTokenizer
from test_hub_tokenizer import ANY, PIECES, TEXT

ROWS, CONTEXT = 312, 20
SHAPE = {"vocab_size": ROWS, "context": CONTEXT, "dim": 16, "depth": 2, "heads": 2, "activation": "gelu-tanh"}


@functools.cache
def bpe(pattern="gpt2"):
    """300 tokens; the end of a text is 300, a special token is 305, after a gap, and the model has rows beyond."""
    learned = BPETokenizer.train([TEXT], vocab_size=300, pattern=pattern, ties="ids")
    special = {"<|endoftext|>": 300, "<|user|>": 305}
    return BPETokenizer(learned.merges, pattern=pattern, byte_order="value", special_tokens=special)


def make_run(folder, tokenizer, arch="gpt", **shape):
    """A run of random weights, none of which is zero or one."""
    config = make_config({"arch": arch, "model": {**(SHAPE if arch == "gpt" else {"vocab_size": ROWS}), **shape}})
    torch.manual_seed(4)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    run = RunFolder(folder)
    run.write_config(config, "")
    run.save(3, model.state_dict(), {}, {"best_step": None, "best_loss": None, "val_loss": None})
    return run, model.eval()


@pytest.fixture(scope="module", params=[("gpt2", True), ("gpt4", False)], ids=str)
def exported(request, tmp_path_factory):
    """Our tokenizer and model, and the folder with model.gguf."""
    pattern, bias = request.param
    folder = tmp_path_factory.mktemp("gguf")
    run, model = make_run(folder / "run", bpe(pattern), bias=bias)
    export_gguf(run, run.find("last")[0], folder / "out")
    return bpe(pattern), model, folder / "out"


@torch.no_grad()
def test_transformers_reads_the_same_model(exported):
    _, model, folder = exported
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", n_positions=CONTEXT
    )  # 5.23 takes the context for n_ctx alone
    ids = torch.randint(ROWS, (3, CONTEXT))
    logits = model.readout(model(ids)[0])
    assert logits.std() > 0.3
    torch.testing.assert_close(theirs.eval()(ids).logits, logits, rtol=0, atol=2e-6)
    config = theirs.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (ROWS, 300, 300)


@pytest.fixture(scope="module")
def tokenizer(exported):
    ours, _, folder = exported
    return ours, transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")


@settings(max_examples=50, deadline=None)
@given(text=ANY)
@example(text="".join(PIECES))
def test_transformers_reads_the_same_tokenizer(tokenizer, text):
    ours, theirs = tokenizer
    ids = ours.encode(text, allowed_special="all")  # as llama.cpp's tools and transformers read it
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ours.encode(text)) == text


def test_the_file_says_what_llama_cpp_asks_for(exported):
    ours, model, folder = exported
    assert [path.name for path in folder.iterdir()] == ["model.gguf"]
    reader = gguf.GGUFReader(folder / "model.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tokens, types, merges = (said.pop(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges"))
    assert said == {
        "general.architecture": "gpt2",
        "general.file_type": 0,
        "gpt2.context_length": CONTEXT,
        "gpt2.embedding_length": 16,
        "gpt2.feed_forward_length": 64,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 2,
        "gpt2.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": {"gpt2": "gpt-2", "gpt4": "dbrx"}[ours.pattern],
        "tokenizer.ggml.bos_token_id": 300,
        "tokenizer.ggml.eos_token_id": 300,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert len(tokens) == len(set(tokens)) == len(types) == ROWS
    assert types == [1] * 300 + [3, 5, 5, 5, 5, 3] + [5] * 6
    assert (tokens[300], tokens[301], tokens[305], tokens[311]) == ("<|endoftext|>", "[PAD301]", "<|user|>", "[PAD311]")
    assert len(merges) == len(ours.merges)
    assert all(tokens[256 + at] == merge.replace(" ", "") for at, merge in enumerate(merges))

    arrays = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in reader.tensors)
    known = {name.format(bid=bid) for part in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.GPT2] for bid in range(2)
             for name in [gguf.TENSOR_NAMES[part]]}  # fmt: skip
    assert {name.rsplit(".", 1)[0] for name in arrays} == known - {"output"}, "the readout is the embedding"
    norms_and_matrices = [name for name in arrays if name.endswith(".weight") and "_embd" not in name]
    for name in norms_and_matrices:
        bias = arrays[name.replace(".weight", ".bias")]
        assert len(bias) == arrays[name].shape[0]
        assert bool(bias.any()) == model.config.bias
    block = model.blocks[1]
    for name, expected in {
        "token_embd": model.token_embedding,
        "position_embd": model.position_embedding,
        "output_norm": model.final_norm,
        "blk.1.attn_qkv": block.attention.query_key_value,
        "blk.1.attn_output": block.attention.output,
        "blk.1.ffn_down": block.mlp.output,
    }.items():
        assert torch.equal(arrays[f"{name}.weight"], expected.weight), "as it lies here"


def test_another_token_may_end_a_text(tmp_path):
    ours = bpe()
    other = BPETokenizer(
        ours.merges,
        pattern=ours.pattern,
        byte_order="value",
        special_tokens=ours.special_tokens,
        end_of_text="<|user|>",
    )
    run, _ = make_run(tmp_path / "run", other)
    export_gguf(run, run.find("last")[0], tmp_path / "out")
    fields = gguf.GGUFReader(tmp_path / "out/model.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 305


LLAMA_CPP = """
import json, sys
from cyllama.llama import llama_cpp

file, asked = sys.argv[1], json.load(sys.stdin)

class Model(llama_cpp.LlamaModel):
    n_vocab = asked["rows"]  # which 0.2.18 forgets, and then looks for

model = Model(path_model=file, verbose=False)
vocabulary, settings = model.get_vocab(), llama_cpp.LlamaContextParams()
settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
settings.n_threads = settings.n_threads_batch = 1
settings.flash_attn_type = settings.type_k = settings.type_v = 0  # off, and a cache in float32
context = llama_cpp.LlamaContext(model=model, params=settings, verbose=False)

def logits(ids):
    context.kv_cache_clear(True)
    batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    for at, token in enumerate(ids):
        batch.add(token, at, [0], at == len(ids) - 1)
    context.decode(batch)
    return list(context.get_logits())

print(json.dumps({
    "rows": vocabulary.n_vocab,
    "ends": [vocabulary.token_bos(), vocabulary.token_eos(), vocabulary.token_eot()],
    "ids": [[list(vocabulary.tokenize(text, True, special)) for text in asked["texts"]] for special in (False, True)],
    "logits": [logits(asked["ids"][: at + 1]) for at in range(len(asked["ids"]))],
}))
"""


@pytest.mark.slow
@torch.no_grad()
def test_llama_cpp_opens_it(exported, tmp_path):
    """Its GELU is a table in half precision: without what comes out of that, logits are equal to 1e-5."""
    ours, model, folder = exported
    silent, quiet = make_run(tmp_path / "silent", ours, bias=model.config.bias)
    for block in quiet.blocks:
        block.mlp.output.weight.zero_()
    silent.save(4, quiet.state_dict(), {}, {"best_step": None, "best_loss": None, "val_loss": None})
    export_gguf(silent, silent.find("last")[0], tmp_path / "out")
    pip_install("cyllama==0.2.18", str(tmp_path / "package"))

    chance = random.Random(0)
    drawn = ["".join(chance.choices(PIECES, k=chance.randrange(1, 25))) for _ in range(3000)]
    texts = [text for text in [TEXT, *drawn] if "\0" not in text]  # where its strings end
    ids = torch.randint(ROWS, (CONTEXT,), generator=torch.Generator().manual_seed(0))
    asked = json.dumps({"rows": ROWS, "texts": texts, "ids": ids.tolist()})
    for file, known, tolerance in ((folder, model, 5e-3), (tmp_path / "out", quiet, 1e-5)):
        done = subprocess.run(
            [sys.executable, "-c", LLAMA_CPP, str(file / "model.gguf")],
            input=asked, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "package")},
        )  # fmt: skip
        said = json.loads(done.stdout.splitlines()[-1])
        assert (said["rows"], said["ends"]) == (ROWS, [300, 300, 300])
        assert said["ids"] == [
            [ours.encode(text, allowed_special=allowed) for text in texts] for allowed in ((), "all")
        ]
        expected = known.readout(known(ids[None])[0])[0]
        logits = torch.tensor(said["logits"])
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


# refused


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *arguments):
    """The message of a refusal: exit code 2, one line, nothing created."""
    before = sorted(Path.cwd().rglob("*"))
    assert main(["export", "run", "--to", "gguf", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"scratchlm: .+\n", err), err
    assert sorted(Path.cwd().rglob("*")) == before
    return err


END = {"<|endoftext|>": 300}
CHARACTERS = BPETokenizer([], pattern="gpt2", characters="ab", special_tokens=END)
REFUSED = {
    "activation": (bpe, {"activation": "gelu"}, ["the activation is gelu", "--model.activation gelu-tanh"]),
    "scaling": (bpe, {"inverse_layer_scaling": True}, ["inverse_layer_scaling is True", "train without"]),
    "architecture": (bpe, {"arch": "rnn"}, ["run is a run of rnn", "the gpt alone"]),
    "char": (lambda: CharacterTokenizer("ab"), {}, ["one of char", "scratchlm tokenizer train --pattern gpt2"]),
    "ids": (lambda: IdTokenizer(ROWS), {}, ["import the model with it, --tokenizer gpt2 or FILE, or export --to hf"]),
    "byte": (ByteTokenizer, {}, ["one of byte", "--to hf"]),
    "characters": (lambda: CHARACTERS, {}, ["merges characters", "merges bytes"]),
    "o200k": (
        lambda: BPETokenizer([(1, 2)], pattern="o200k", special_tokens=END),
        {},
        ["pattern is o200k", "gpt2 and"],
    ),
    "uncut": (lambda: BPETokenizer([(1, 2)], pattern="none", special_tokens=END), {}, ["pattern is none"]),
    "no end": (lambda: BPETokenizer([(1, 2)], pattern="gpt2"), {}, ["no end-of-text token", "the token 11"]),
    "no merges": (lambda: BPETokenizer([], pattern="gpt2", special_tokens=END), {}, ["no merges"]),
    "a name": (
        lambda: BPETokenizer([(1, 2)], pattern="gpt2", special_tokens={**END, "[PAD310]": 301}),
        {},
        ["[PAD...]"],
    ),
    "two ways": (
        lambda: BPETokenizer([(1, 2), (256, 3), (2, 3), (1, 258)], pattern="gpt2", special_tokens=END),
        {},
        ["are the bytes"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_would_do_otherwise_is_refused(case, here, capsys):
    make, shape, words = REFUSED[case]
    make_run(here / "run", make(), **shape)
    message = refused(capsys, "--out", "out")
    assert all(word in message for word in words), message


def test_the_command_and_its_errors(here, capsys, monkeypatch):
    make_run(here / "run", bpe())
    assert main(["export", "run", "--to", "gguf"]) == 0
    assert f"{Path('run-gguf')}: model.gguf" in capsys.readouterr().out
    assert "run-gguf is there already" in refused(capsys)
    assert "no checkpoint '7'" in refused(capsys, "--checkpoint", "7", "--out", "out")

    writers = []

    def full(writer):
        writers.append(writer)
        writer.fout[0].write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
        assert "No space left on device" in refused(capsys, "--out", "out")
        assert writers[0].fout is None, "it is closed, as Windows wants before it is deleted"
    monkeypatch.setitem(sys.modules, "gguf", None)  # as where it is not installed
    assert "pip install 'scratchlm[gguf]'" in refused(capsys, "--out", "out")
