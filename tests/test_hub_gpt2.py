"""GPT-2 in the hub's folders: imported, it computes what transformers computes; exported, transformers opens it."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as TheirTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

import scratchlm
from hub_folders import PICKLE, SAFETENSORS, call, change, config, contents, file, refused, tensors
from scratchlm.checkpoint import RunFolder, build_model, meta_model
from scratchlm.config import make_config
from scratchlm.files import file_sha256
from scratchlm.generation import generate
from scratchlm.interop.hub import runs
from scratchlm.interop.hub.files import INDEX, TensorFiles
from scratchlm.interop.hub.gpt2 import GPT2
from scratchlm.interop.vocabularies import export_vocabulary
from scratchlm.tokenizers import BPETokenizer, IdTokenizer, IncrementalDecoder, load, train

ROWS, END, DEPTH, CONTEXT = 300, 280, 2, 24
TEXT = "the quick brown fox jumps over the lazy dog\n" * 3
WTE, PROJECTION = "transformer.wte.weight", "transformer.h.0.attn.c_proj.weight"


def perturbed(model):
    """The model with no weight at zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def their_model():
    """The same at each call."""
    torch.manual_seed(5)
    sizes = {"vocab_size": ROWS, "n_positions": CONTEXT, "n_embd": 16, "n_layer": DEPTH, "n_head": 2}
    return perturbed(GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=END, eos_token_id=END)))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A byte-level vocabulary with an end of text, as tokenizer.json and as GPT-2's two files."""
    folder = tmp_path_factory.mktemp("vocabulary")
    own = BPETokenizer.train([TEXT, TEXT], documents=True, vocab_size=END)
    export_vocabulary(own, "hf", folder / "tokenizer.json")
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    ids = {**model["vocab"], "<|endoftext|>": own.end_of_text}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory, vocabulary):
    """A folder as transformers and tokenizers save one, which no test may change."""
    folder = tmp_path_factory.mktemp("saved") / "hub"
    their_model().save_pretrained(folder)
    shutil.copy(vocabulary / "tokenizer.json", folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch, saved):
    """A copy of it as the folder "hub", where the test runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCHLM_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(saved, "hub"))


def read_again(folder, attention="eager"):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32).eval()


@torch.no_grad()
def logits_of(model, ids):
    return model.readout(model(ids)[0]) if hasattr(model, "readout") else model(ids).logits


def assert_same_logits(ours, theirs):
    """In float32 and in float64, read at once and one by one."""
    ids = torch.randint(ours.config.vocab_size, (3, min(ours.context, CONTEXT)))
    for dtype, error in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        expected = logits_of(theirs.to(dtype), ids)
        assert expected.std() > 0.3
        torch.testing.assert_close(logits_of(ours.to(dtype), ids), expected, rtol=error, atol=error)
        state, cache = ours.initial_state(len(ids)), None
        for at in range(ids.shape[1]):
            with torch.no_grad():
                features, state = ours(ids[:, at : at + 1], state)
                step = theirs(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            torch.testing.assert_close(ours.readout(features).detach(), step.logits, rtol=error, atol=error)
    ours.float(), theirs.float()


def bare(folder):
    """As openai-community/gpt2 has it: no prefix, masks among the tensors, here with the alias too."""

    def edit(there):
        for name in list(there):
            there[name.removeprefix("transformer.")] = there.pop(name)
        for block in range(DEPTH):
            there[f"h.{block}.attn.bias"] = torch.ones(CONTEXT, CONTEXT).tril()[None, None]
            there[f"h.{block}.attn.masked_bias"] = torch.tensor(-1e4)
        there["lm_head.weight"] = there["wte.weight"].clone()

    change(folder, edit)


def body_alone(folder):
    GPT2LMHeadModel.from_pretrained(folder).transformer.save_pretrained(folder)


# --- transformers' weights ------------------------------------------------------------------------------------------


FORMS = {
    "as saved": (lambda folder: None),
    "bare names and masks": bare,
    "GPT2Model": body_alone,
    "one name for the tied": tensors(lambda t: t.update({"lm_head.weight": t.pop(WTE)})),
    "n_ctx": config(n_positions="left out", n_ctx=CONTEXT),
    "n_inner": config(n_inner=64),
    "exact gelu": config(activation_function="gelu"),
    "another name of the tanh": config(activation_function="gelu_pytorch_tanh"),
    "what transformers takes for granted": config(
        activation_function="left out", attn_pdrop="left out", embd_pdrop="left out", resid_pdrop="left out"
    ),
    "divided by the block's number": config(scale_attn_by_inverse_layer_idx=True),
    "as older files": config(
        n_special=0, predict_special_tokens=True, output_past=True, n_ctx=CONTEXT, id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0}, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    ),
    "with what generates by default": config(
        tokenizer_class="GPT2Tokenizer", _attn_implementation_autoset=True, gradient_checkpointing=True, unk_token_id=3,
        sep_token_id=4, return_dict=True, max_length=20, min_length=1, top_k=50, top_p=0.9, temperature=0.7,
        num_beams=2, length_penalty=1.0, do_sample=True, repetition_penalty=1.1, typical_p=1.0, early_stopping=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_transformers_and_back(hub, capsys, form):
    FORMS[form](hub)
    # of an alias alone, and of n_ctx, transformers 5 makes nothing
    theirs = their_model() if form in ("one name for the tied", "n_ctx") else read_again(hub)
    out = call(capsys, "import", "hub", "--out", "run")
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    assert f"run: gpt, {parameters:,} parameters out of {Path('hub') / SAFETENSORS}" in out
    ours, tokenizer = scratchlm.load("run")
    assert_same_logits(ours, theirs)
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (END + 1, END)

    call(capsys, "export", "run", "--to", "hf", "--out", "again")
    written = load_file("again/" + SAFETENSORS)
    assert written.keys() == theirs.state_dict().keys() - {"lm_head.weight"}
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in written.items())
    assert_same_logits(ours, read_again("again"))


@torch.no_grad()
def test_attention_in_another_order_is_the_same_function(hub, capsys):
    config(reorder_and_upcast_attn=True)(hub)
    call(capsys, "import", "hub", "--out", "run")
    theirs, ids = read_again(hub), torch.randint(ROWS, (2, CONTEXT))
    assert theirs.config.reorder_and_upcast_attn
    torch.testing.assert_close(logits_of(scratchlm.load("run")[0], ids), logits_of(theirs, ids), rtol=1e-5, atol=1e-5)


def test_the_same_text_greedily(hub, capsys):
    call(capsys, "import", "hub", "--out", "run")
    call(capsys, "export", "run", "--to", "hf", "--out", "again")
    ours, tokenizer = scratchlm.load("run")
    prompt = tokenizer.encode("the quick")
    expected = generate(ours, [prompt], 12, temperature=0)[0]
    for folder in ("hub", "again"):
        theirs = read_again(folder, "sdpa")
        found = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert found[0].tolist() == expected
    assert len(set(expected)) > 4


def test_the_measure_sees_a_square_matrix_the_wrong_way_round(hub, capsys):
    theirs = read_again(hub)
    change(hub, lambda t: t.update({PROJECTION: t[PROJECTION].mT.contiguous()}))
    call(capsys, "import", "hub", "--out", "run")
    ids = torch.randint(ROWS, (2, CONTEXT))
    assert (logits_of(scratchlm.load("run")[0], ids) - logits_of(theirs, ids)).abs().max() > 1e-2


def test_the_table_names_every_tensor():
    for depth in (1, 3):
        model = meta_model(make_config({"arch": "gpt", "model": {"vocab_size": 9, "depth": depth}}))
        assert GPT2.places(depth).keys() == model.state_dict().keys()


# --- the files ------------------------------------------------------------------------------------------------------


def shard(folder):
    GPT2LMHeadModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="12KB")
    (folder / SAFETENSORS).unlink(missing_ok=True)
    return sorted(folder.glob("model-*.safetensors"))


def test_several_files_are_as_one(hub, capsys):
    call(capsys, "import", "hub", "--out", "one")
    shards = shard(hub)
    assert len(shards) > 2
    assert f"out of {hub / INDEX}" in call(capsys, "import", "hub", "--out", "run")
    model, again = scratchlm.load("one")[0], scratchlm.load("run")[0]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    manifest = json.loads(Path("run/manifest.json").read_text(encoding="utf-8"))
    assert manifest["imported"] == {"folder": "hub", "sha256": {path.name: file_sha256(path) for path in shards}}


def index(edit):
    def damage(folder):
        path = folder / INDEX
        content = json.loads(path.read_text(encoding="utf-8"))
        edit(content["weight_map"])
        path.write_text(json.dumps(content), encoding="utf-8")

    return damage


def of_a_shard(act):
    return lambda folder: act(sorted(folder.glob("model-*.safetensors"))[1])


BAD_SHARDS = {
    "one is missing": (of_a_shard(os.remove), ["model-00002-of-", "is missing", "download it too"]),
    "one is cut off": (of_a_shard(lambda path: os.truncate(path, 400)), ["model-00002-of-", "is damaged"]),
    "one has more": (
        of_a_shard(lambda path: save_file({**load_file(path), "bonus": torch.ones(1)}, path)),
        ["model-00002-of-", "has the tensor bonus, unlike", INDEX],
    ),
    "one has less": (
        of_a_shard(lambda path: save_file(dict(list(load_file(path).items())[1:]), path)),
        ["model-00002-of-", "has no tensor transformer.", "unlike"],
    ),
    "an index of no model": (file(INDEX, b"{}"), [INDEX, "weight_map does not name"]),
    "half an index": (file(INDEX, b"{"), [INDEX, "is damaged"]),
    "an index that leads elsewhere": (
        index(lambda places: places.update({WTE: "../elsewhere.safetensors"})),
        ["weight_map does not name the file of each tensor"],
    ),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_what_is_wrong_with_several_files_is_said(hub, capsys, case):
    shard(hub)
    damage, words = BAD_SHARDS[case]
    damage(hub)
    message = refused(capsys, "import", "hub", "--out", "run")
    assert all(word in message for word in words), message


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts the mappings that Linux tells of")
def test_no_file_is_kept_in_memory(saved, monkeypatch, tmp_path):
    """What was read of the file is let go before the next tensor is read, unless it is the weight itself."""
    kept, counts, read = set(), [], TensorFiles.__getitem__
    transposed = {place.name for place in GPT2.places(DEPTH).values() if place.transposed}

    def follow(self, name):
        tensor = read(self, name)
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8").count(str(saved / SAFETENSORS))
        counts.append(mapped)
        assert mapped <= len(kept) + 1, "a tensor that was copied is still there"
        kept.update({name} - transposed)
        return tensor

    monkeypatch.setattr(TensorFiles, "__getitem__", follow)
    runs.import_run(saved, tmp_path / "run", runs.NO_TOKENIZER, load)
    assert kept == set(TensorFiles(saved)) - transposed
    assert max(counts) > 10, "each tensor has its own mapping"


# --- the tokenizer --------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_the_folders_own(hub, capsys, vocabulary):
    theirs = TheirTokenizer.from_file(str(hub / "tokenizer.json"))
    call(capsys, "import", "hub", "--out", "json")
    (hub / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, hub)
    assert "300 rows for 281 tokens" in call(capsys, "import", "hub", "--out", "pair")
    for run in ("json", "pair"):
        tokenizer = RunFolder(run).tokenizer()
        assert RunFolder(run).config().tokenizer == "hub"
        assert tokenizer.end_of_text == theirs.token_to_id("<|endoftext|>") == END
        for text in (TEXT, "The dog's 12 foxes,\n\n jumping \u00e9"):
            assert tokenizer.encode(text) == theirs.encode(text).ids
    assert "the quick" in call(capsys, "sample", "json", "--prompt", "the quick", "--tokens", 5, "--device", "cpu")


def test_a_tokenizer_that_transformers_saved_is_read(hub, capsys, vocabulary):
    theirs = GPT2Tokenizer(vocab=str(vocabulary / "vocab.json"), merges=str(vocabulary / "merges.txt"))
    theirs.save_pretrained(hub)
    content = json.loads((hub / "tokenizer.json").read_text(encoding="utf-8"))
    assert content["post_processor"]["type"] == "TemplateProcessing"
    call(capsys, "import", "hub", "--out", "run")
    tokenizer = RunFolder("run").tokenizer()
    assert tokenizer.end_of_text == theirs.eos_token_id == END
    assert tokenizer.encode(TEXT + "The dog's 12 foxes") == theirs.encode(TEXT + "The dog's 12 foxes")
    content["post_processor"]["single"].append({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}})
    (hub / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert "post-processor TemplateProcessing" in refused(capsys, "import", "hub", "--out", "again")


def as_two_files(folder, vocabulary, **beside):
    """GPT-2's two files in place of tokenizer.json, and others as JSON."""
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, folder)
    for name, content in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


PAD = {"content": "[PAD]", "special": True}
BESIDE = {
    "by id": {"tokenizer_config": {"added_tokens_decoder": {"281": PAD}}},
    "by id, and its role": {"added_tokens": {"[PAD]": 281}, "special_tokens_map": {"pad_token": "[PAD]"}},
    "by its role": {"special_tokens_map": {"pad_token": PAD}},
    "by its role in the settings": {"tokenizer_config": {"pad_token": "[PAD]", "eos_token": "<|endoftext|>"}},
    "one of more": {"tokenizer_config": {"extra_special_tokens": ["[PAD]"]}},
}


@pytest.mark.parametrize("case", BESIDE)
def test_special_tokens_beside_the_vocabulary_are_taken_over(hub, capsys, vocabulary, case):
    files = {"tokenizer_config": {}, **BESIDE[case]}
    files["tokenizer_config"] = {"tokenizer_class": "GPT2Tokenizer", **files["tokenizer_config"]}
    as_two_files(hub, vocabulary, **files)
    call(capsys, "import", "hub", "--out", "run")
    tokenizer, theirs = RunFolder("run").tokenizer(), AutoTokenizer.from_pretrained(hub)
    assert tokenizer.special_tokens == {"<|endoftext|>": END, "[PAD]": 281}
    assert tokenizer.end_of_text == END
    text = "the quick[PAD] fox<|endoftext|>"
    assert tokenizer.encode(text, allowed_special="all") == theirs(text).input_ids


REFUSED_BESIDE = {
    "a space before": ({"tokenizer_config": {"add_prefix_space": True}}, ["config.json has add_prefix_space"]),
    "not special": ({"added_tokens": {"<new>": 281}}, ["added_tokens.json has the added token '<new>', which is not"]),
    "not special, by id": (
        {"tokenizer_config": {"added_tokens_decoder": {"281": {"content": "<new>"}}}},
        ["tokenizer_config.json has the added token '<new>', which is not special"],
    ),
    "another id": ({"added_tokens": {"<|endoftext|>": 281}}, ["'<|endoftext|>' has the id 281, and 280 in the vocab"]),
    "a flag": (
        {"tokenizer_config": {"added_tokens_decoder": {"281": {**PAD, "lstrip": True}}}},
        ["the added token '[PAD]' with lstrip"],
    ),
    "an id that is taken": (
        {"added_tokens": {"[PAD]": 5}, "special_tokens_map": {"pad_token": "[PAD]"}},
        ["'[PAD]' cannot have the id 5"],
    ),
    "of another form": ({"tokenizer_config": {"added_tokens_decoder": [1]}}, ["is damaged"]),
    "no names": ({"added_tokens": [1]}, ["added_tokens.json is JSON without names"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_BESIDE)
def test_what_lies_beside_a_vocabulary_and_cannot_be_is_refused(hub, capsys, vocabulary, case):
    beside, words = REFUSED_BESIDE[case]
    as_two_files(hub, vocabulary, **beside)
    message = refused(capsys, "import", "hub", "--out", "run")
    assert all(word in message for word in [*words, REMEDY]), message


def another_end(folder, **changed):
    """The folder with </s> as 281, which ends its texts."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][0], "id": 281, "content": "</s>"})
    path.write_text(json.dumps(content), encoding="utf-8")
    config(**{"eos_token_id": 281, **changed})(folder)
    (folder / "generation_config.json").unlink()


def test_the_end_of_a_text_may_have_another_name(hub, capsys):
    another_end(hub)
    assert "eos_token_id" not in call(capsys, "import", "hub", "--out", "run")
    tokenizer = RunFolder("run").tokenizer()
    assert (tokenizer.end_of_text, tokenizer.special_tokens["</s>"]) == (281, 281)
    call(capsys, "export", "run", "--to", "hf", "--out", "out")
    assert json.loads(Path("out/config.json").read_text(encoding="utf-8"))["eos_token_id"] == 281
    theirs = AutoTokenizer.from_pretrained("out")
    assert (theirs.eos_token, theirs.eos_token_id) == ("</s>", 281)
    call(capsys, "import", "out", "--out", "again")
    assert RunFolder("again").tokenizer().sha256 == tokenizer.sha256
    assert RunFolder("again").tokenizer().end_of_text == 281


def test_how_texts_are_generated_says_where_they_end(hub, capsys):
    another_end(hub, eos_token_id=END)
    (hub / "generation_config.json").write_text(json.dumps({"eos_token_id": [281]}), encoding="utf-8")
    call(capsys, "import", "hub", "--out", "run")
    assert RunFolder("run").tokenizer().end_of_text == 281


@pytest.mark.parametrize(("ends", "said"), [(17, [17]), ([END, 281], [281]), (ROWS, []), (None, []), ("x", [])])
def test_an_end_that_is_none_here_is_named(hub, capsys, ends, said):
    another_end(hub, eos_token_id=ends)
    out = call(capsys, "import", "hub", "--out", "run")
    assert [line for line in out.splitlines() if "eos_token_id" in line] == [
        f"in hub the token {end} ends a text (eos_token_id), here it does not: it is no special token of this bpe "
        "tokenizer, or not the one that ends its texts"
        for end in said
    ]
    assert RunFolder("run").tokenizer().end_of_text == END


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def of_another_kind(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "normalizer": {"type": "Lowercase"}}), encoding="utf-8")


REMEDY = "--tokenizer gpt2, --tokenizer FILE, or --tokenizer none"
BAD = {
    "no tokenizer": (without_tokenizer, ["no tokenizer.json, no vocab.json, no merges.txt", REMEDY]),
    "half a vocabulary": (
        lambda f: (f / "tokenizer.json").rename(f / "vocab.json"),
        ["hub has no vocabulary", REMEDY],
    ),
    "another kind of tokenizer": (of_another_kind, ["normalizer Lowercase", REMEDY]),
    "a damaged tokenizer": (file("tokenizer.json", b"{"), ["tokenizer.json is damaged", REMEDY]),
    "fewer rows": (config(vocab_size=280), ["the tokenizer hub has 281 tokens, and the model knows 280"]),
    "another architecture": (
        config(architectures=["LlamaForCausalLM"]),
        ["['LlamaForCausalLM']; what can be imported: GPT2LMHeadModel, GPT2Model, BackpackGPT2LMHeadModel"],
    ),
    "GPT-Neo": (config(architectures=["GPTNeoForCausalLM"]), ["GPTNeoForCausalLM", "what can be imported"]),
    "two heads": (config(architectures=["GPT2DoubleHeadsModel"]), ["GPT2DoubleHeadsModel", "what can be imported"]),
    "two architectures": (config(architectures=["GPT2LMHeadModel"] * 2), ["what can be imported"]),
    "another type": (config(model_type="gpt_neo"), ["model_type is 'gpt_neo'; that of a GPT-2 is 'gpt2'"]),
    "relu": (config(activation_function="relu"), ["activation_function is 'relu'; gelu_new, gelu_pytorch_tanh, gelu"]),
    "an older name": (config(activation_function="left out", afn="gelu"), ["afn is 'gelu', which is not known here"]),
    "inner": (config(n_inner=32), ["n_inner is 32; only 4 * n_embd"]),
    "n_ctx": (config(n_ctx=12), ["n_ctx is 12 and n_positions 24"]),
    "no context": (config(n_positions="left out"), ["n_positions is None; it must be a whole number"]),
    "dropouts": (config(attn_pdrop=0.0), ["attn_pdrop is 0.0", "write one number three times"]),
    "untied": (config(tie_word_embeddings=False), ["tie_word_embeddings is False"]),
    "cross attention": (config(add_cross_attention=True), ["add_cross_attention is True"]),
    "a head apart": (tensors(lambda t: t.update({"lm_head.weight": t[WTE] + 1})), ["lm_head.weight differs from", WTE]),
    "half the weights": (lambda f: os.truncate(f / SAFETENSORS, 9000), [f"{SAFETENSORS} is damaged"]),
    "not a block's mask": (
        tensors(lambda t: t.update({"transformer.h.2.attn.bias": torch.ones(1)})),
        ["unknown: transformer.h.2.attn.bias"],
    ),
    "a prefix here and there": (
        tensors(lambda t: t.update({"ln_f.bias": t.pop("transformer.ln_f.bias")})),
        ["missing: transformer.ln_f.bias; unknown: ln_f.bias"],
    ),
    "a bare name missing": (
        lambda f: (bare(f), change(f, lambda t: t.pop("h.1.ln_1.bias"))),
        ["missing: h.1.ln_1.bias"],
    ),
    "a shape": (
        tensors(lambda t: t.update({"transformer.h.1.mlp.c_fc.weight": torch.ones(64, 16)})),
        ["transformer.h.1.mlp.c_fc.weight has the shape (64, 16); by config.json it is (16, 64)"],
    ),
    "no numbers": (tensors(lambda t: t[PROJECTION].fill_(torch.inf)), [PROJECTION, "no numbers"]),
    "a pickle": (
        lambda f: torch.save({}, f / PICKLE) or (f / SAFETENSORS).unlink(),
        ["only as pytorch_model.bin, a pickle, which may run code", "--unpickle"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(hub, capsys, case):
    damage, words = BAD[case]
    damage(hub)
    message = refused(capsys, "import", "hub", "--out", "run")
    assert all(word in message for word in words), message


# --- ids only -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 299)), st.sampled_from([" ", "\n", " \t "]))
def test_ids_are_read_back(ids, space):
    tokenizer = IdTokenizer(300)
    text = space.join(map(str, ids))
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == " ".join(map(str, ids))
    decoder = IncrementalDecoder(tokenizer)
    assert "".join(map(decoder.push, ids)) == "".join(f"{token} " for token in ids)
    assert tokenizer.token_lengths()[ids].tolist() == [len(str(token)) + 1 for token in ids]


def test_ids_are_saved_and_trained(tmp_path):
    tokenizer = train("ids", ["12 7\n9 "])
    assert tokenizer.vocab_size == 13
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256 == IdTokenizer(13).sha256
    assert (tokenizer.start, tokenizer.end_of_text, tokenizer.symbolic) == (0, None, True)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda t: t.encode("1 x 2"), "'x' at position 2 is no id"),
        (lambda t: t.encode("-1"), "'-1' at position 0 is no id"),
        (lambda t: t.encode("1 01"), "'01' at position 2 is no id"),
        (lambda t: t.encode("\u0661"), "is no id"),
        (lambda t: t.encode("1,2"), "'1,2' at position 0 is no id"),
        (lambda t: t.encode("299 300"), "the id 300 at position 4 is too large; the ids are 0 to 299"),
        (lambda t: t.encode("9" * 5000), r"the id 9{40}\.\.\. at position 0 is too large"),
        (lambda t: t.decode([300]), "no token has the id 300"),
        (lambda t: train("ids", [" \n"]), "the text is empty"),
        (lambda t: train("ids", ["1", "2"]), "no end-of-text token to part documents"),
        (lambda t: train("ids", ["to be"]), "'to' at position 0 is no id"),
        (lambda t: train("ids", ["1"], vocab_size=9), "not for choosing"),
        (lambda t: IdTokenizer(0), "the number of ids is 0"),
        (lambda t: IdTokenizer(True), "the number of ids is True"),
        (lambda t: IdTokenizer.from_settings({"vocab_size": "9"}), "the number of ids is '9'"),
    ],
)
def test_what_is_no_id_is_refused(act, words):
    with pytest.raises(scratchlm.InputError, match=words):
        act(IdTokenizer(300))


@torch.no_grad()
def test_a_run_of_ids_is_a_run(hub, capsys):
    without_tokenizer(hub)
    call(capsys, "import", "hub", "--tokenizer", "none", "--out", "run")
    model, tokenizer = scratchlm.load("run")
    assert (tokenizer.kind, tokenizer.vocab_size, RunFolder("run").config().tokenizer) == ("ids", ROWS, "ids")
    flags = ["--tokens", 6, "--temperature", 0, "--device", "cpu"]
    expected = " ".join(map(str, generate(model, [[2, 15, 7]], 6, temperature=0)[0]))
    assert call(capsys, "sample", "run", "--prompt", "2 15 7", *flags).rstrip() == expected
    assert "is no id" in refused(capsys, "sample", "run", "--prompt", "to be", *flags)
    Path("ids.txt").write_text("2 15 7 299\n0 1\n", encoding="utf-8")
    figures = json.loads(call(capsys, "eval", "run", "--data", "ids.txt", "--device", "cpu", "--json"))
    ids = torch.tensor([[2, 15, 7, 299, 0, 1]])
    loss = read_again(hub)(ids, labels=ids).loss.item()
    assert figures["nats_per_token"] == pytest.approx(loss, abs=1e-5)
    call(capsys, "export", "run", "--to", "hf", "--out", "again")
    assert json.loads(Path("again/config.json").read_text(encoding="utf-8"))["eos_token_id"] is None
    assert_same_logits(model, read_again("again"))


# --- names on the hub -----------------------------------------------------------------------------------------------


def test_a_name_is_fetched(hub, capsys, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(hub)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for name, run in (("gpt2", "gpt2"), ("openai-community/gpt2-xl", "gpt2-xl")):
        assert f"{Path('runs') / run}: gpt" in call(capsys, "import", name)
    assert [name for name, _ in asked] == ["gpt2", "openai-community/gpt2-xl"]
    assert asked[0][1] == [
        "config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json", "vocab.json",
        "merges.txt", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "generation_config.json",
    ]  # fmt: skip
    call(capsys, "import", "hub", "--out", "run")
    assert len(asked) == 2, "a folder is not asked for"


def test_a_pickle_is_fetched_on_request_only(hub, capsys, monkeypatch):
    there = hub.rename("there")
    torch.save(load_file(there / SAFETENSORS), there / PICKLE)
    (there / SAFETENSORS).unlink()

    def download(name, allow_patterns):
        shutil.rmtree("fetched", ignore_errors=True)
        Path("fetched").mkdir()
        for path in there.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, "fetched")
        return "fetched"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    download("", ["config.json", "*.json"])
    message = refused(capsys, "import", "some/pickled")
    assert "has its weights only as a pickle, which is not fetched without --unpickle" in message
    assert f"out of {Path('fetched') / PICKLE}" in call(capsys, "import", "some/pickled", "--unpickle")


def unreachable(name, **_):
    raise OSError("no route\n\nto the host")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt2", ["gpt2 is no folder, and could not be fetched from the hub (OSError: no route to the host)"]),
        ("./gpt2", ["'./gpt2' is no folder, and no model's name on the hub"]),
        ("a/b/c", ["'a/b/c' is no folder, and no model's name"]),
        ("", ["'' is no folder, and no model's name"]),
        ("hub/config.json", ["config.json is a file"]),
        ("hub/modle", ["hub/modle is no folder: hub is one, without modle in it"]),
        ("x" * 5000, ["File name too long"]),
        ("a\0b", ["no folder, and no model's name"]),
    ],
)
def test_what_is_neither_a_folder_nor_there_to_be_fetched(hub, capsys, monkeypatch, name, words):
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    message = refused(capsys, "import", name)
    assert all(word in message for word in [*words, "with config.json, model.safetensors and tokenizer.json in it"])


@pytest.mark.parametrize("kind", ["bpe", "ids", "byte"])
def test_a_kind_is_no_vocabulary(hub, capsys, kind):
    message = refused(capsys, "import", "hub", "--tokenizer", kind)
    assert f"--tokenizer {kind} names a kind" in message
    assert "gpt2 (as published), FILE, or none" in message


def test_without_the_package_it_says_so(hub, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'scratchlm[hf]'; or give a folder" in refused(capsys, "import", "gpt2")
    call(capsys, "import", "hub", "--out", "run")


# --- exports --------------------------------------------------------------------------------------------------------


def make_run(path, **shape):
    """A run of random weights, none of which is zero or one."""
    sizes = {"vocab_size": ROWS, "context": CONTEXT, "dim": 16, "depth": DEPTH, "heads": 2}
    settings = make_config({"arch": "gpt", "model": sizes | shape})
    model = perturbed(build_model(settings))
    path.mkdir()
    BPETokenizer.train([TEXT, TEXT], documents=True, vocab_size=END).save(path / "tokenizer.json")
    run = RunFolder(path)
    run.write_config(settings, "")
    run.save(3, model.state_dict(), {}, {"best_step": None, "best_loss": None, "val_loss": None})
    return model


@pytest.mark.parametrize(
    "shape",
    [{}, {"activation": "gelu", "dropout": 0.0}, {"bias": False}, {"inverse_layer_scaling": True, "depth": 3}],
    ids=str,
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_opens_an_export(hub, capsys, shape, attention):
    model = make_run(Path("made"), **shape)
    call(capsys, "export", "made", "--to", "hf", "--out", "out")
    theirs = read_again("out", attention)
    assert type(theirs) is GPT2LMHeadModel
    assert_same_logits(model, theirs)
    content = json.loads(Path("out/config.json").read_text(encoding="utf-8"))
    assert (content["architectures"], content["model_type"]) == (["GPT2LMHeadModel"], "gpt2")
    assert content["tie_word_embeddings"]
    assert content["bos_token_id"] == content["eos_token_id"] == END
    call(capsys, "import", "out", "--tokenizer", "made", "--out", "run")
    again, _ = scratchlm.load("run")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict().get(name, torch.zeros_like(tensor)))
    call(capsys, "export", "run", "--to", "hf", "--out", "twice")
    assert contents(Path("out")).keys() == {Path("out") / path.name for path in Path("twice").iterdir()}
    assert all((Path("twice") / path.name).read_bytes() == path.read_bytes() for path in Path("out").iterdir())


# --- weights that were trained --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(microformer, tmp_path_factory):
    """The run of a GPT-2 that a package has, and what transformers makes of the same folder."""
    run = tmp_path_factory.mktemp("trained") / "run"
    runs.import_run(microformer, run, runs.NO_TOKENIZER, load, unpickle=True)
    return run, GPT2LMHeadModel.from_pretrained(microformer, attn_implementation="eager").eval()


def test_trained_weights_compute_what_transformers_computes(trained):
    (model, tokenizer), theirs = scratchlm.load(trained[0]), trained[1]
    assert tokenizer.vocab_size == 9669
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_924_928
    ids = torch.randint(9669, (2, 256))
    for dtype, error in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        expected = logits_of(theirs.to(dtype), ids)
        assert expected.std() > 2
        torch.testing.assert_close(logits_of(model.to(dtype), ids), expected, rtol=0, atol=error)
    prompt = [2, 15, 7]
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert generate(model, [prompt], 40, temperature=0)[0] == found[0].tolist()
