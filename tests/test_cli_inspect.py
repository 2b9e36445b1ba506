"""scratchlm inspect, as a person or a script meets it."""

import json
import re

import pytest
import torch

from runs import run_maker
from scratchlm.checkpoint import RunFolder, build_model, load
from scratchlm.cli import main
from scratchlm.config import make_config
from scratchlm.data.pairs import Pair, encode_pairs
from scratchlm.data.shards import write_shards
from scratchlm.inspect.attention import attention_layers
from scratchlm.model import Source
from scratchlm.tokenizers import CharacterTokenizer, PairTokenizer, SymbolTokenizer
from scratchlm.training import loop

FILES = ["attention.json", "attention.png", "attention.svg"]
SHAPES = {
    "gpt": {"context": 24, "dim": 16, "depth": 2, "heads": 2},
    "transformer": {"context": 12, "source_context": 8, "dim": 16, "depth": 2, "heads": 2, "hidden_dim": 24},
}
PAIRS = (Pair("cab a", "XZ", 1), Pair("b", "Y", 2))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """A trained run of one text."""
    run = run_maker(tmp_path_factory.mktemp("gpt"))(steps=4)
    list(loop.train(run))
    return run.path


def pairs_run(path, arch, tokenizer=None, pairs=PAIRS):
    """A run of pairs whose weights are random."""
    sides = (CharacterTokenizer.train(["abc "]), CharacterTokenizer.train(["XYZ"]))
    tokenizer = tokenizer or PairTokenizer(*sides)
    config = make_config({"arch": arch, "pairs": True, "model": {"vocab_size": tokenizer.vocab_size, **SHAPES[arch]}})
    path.mkdir()
    tokenizer.save(path / "tokenizer.json")
    ids = encode_pairs(pairs, tokenizer)
    run = RunFolder(path)
    run.write_config(
        config, write_shards(path / "data", dict.fromkeys(("train", "validation", "test"), ids), tokenizer)
    )
    torch.manual_seed(1)
    run.save(1, build_model(config).state_dict(), {}, {"best_step": None, "best_loss": None, "val_loss": None})
    return path


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    return pairs_run(tmp_path_factory.mktemp("transformer") / "run", "transformer")


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    return pairs_run(tmp_path_factory.mktemp("joined") / "run", "gpt")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run of a decoder alone on pairs with one tokenizer, as `train gpt --data my.tsv` makes."""
    path = tmp_path_factory.mktemp("shared") / "run"
    return pairs_run(path, "gpt", CharacterTokenizer("abcXYZ ", end_of_text=True))


@pytest.fixture(scope="module")
def symbols(tmp_path_factory):
    tokenizer = PairTokenizer(SymbolTokenizer(["a", "b"]), SymbolTokenizer(["AH", "B"]))
    path = tmp_path_factory.mktemp("symbols") / "run"
    return pairs_run(path, "transformer", tokenizer, (Pair("b a", "B AH", 1),))


@pytest.fixture
def shown(capsys):
    """The JSON object that a call prints."""

    def call(*arguments):
        capsys.readouterr()
        assert main(["inspect", "attention", *map(str, arguments), "--json", "--device", "cpu"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def refuse(capsys):
    """Expect a refusal: exit code 2 and one line with these words."""

    def call(*arguments, words):
        capsys.readouterr()
        assert main(["inspect", "attention", *map(str, arguments), "--device", "cpu"]) == 2
        out, err = capsys.readouterr()
        line = err.splitlines()[-1]
        assert out == ""
        assert line.startswith("scratchlm: ")
        for word in words:
            assert re.search(word, line), line

    return call


def weights(layer):
    return torch.tensor([head["weights"] for head in layer["heads"]])


def test_attention_is_drawn_into_the_folder(gpt, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert main(["inspect", "attention", str(gpt), "--text", "up the hill\n", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    printed = capsys.readouterr().out
    assert all(str(out / name) in printed for name in FILES)
    content = json.loads((out / "attention.json").read_text(encoding="utf-8"))
    assert content["format_version"] == 1
    assert content["tokens"] == list("up the hill\n")
    assert content["source"] is None
    svg = (out / "attention.svg").read_text(encoding="utf-8")
    for label in ("u", "\u00b7", "\u21b5", "decoder layer 2, head 2"):
        assert re.search(rf">{label}</text>", svg), label
    for layer in content["layers"]:
        torch.testing.assert_close(weights(layer).sum(-1), torch.ones(2, 12), rtol=0, atol=1e-4)


def test_json_is_what_the_model_looks_at(gpt, shown):
    content = shown(gpt, "--text", "and A came")
    model, tokenizer = load(gpt)
    layers = attention_layers(model, tokenizer.encode("and A came"))
    for layer, expected in zip(content["layers"], layers, strict=True):
        torch.testing.assert_close(weights(layer), expected.weights, rtol=0, atol=6e-6)
    (one,) = shown(gpt, "--text", "and A came", "--layer", 2, "--head", 1)["layers"]
    assert one == {**content["layers"][1], "heads": content["layers"][1]["heads"][:1]}


def test_without_a_text_the_validation_text_is_read(gpt, shown):
    validation = RunFolder(gpt).splits()["validation"].windows(torch.tensor([0]).numpy(), 16)[0]
    _, tokenizer = load(gpt)
    assert "".join(shown(gpt)["tokens"]) == tokenizer.decode(validation.tolist()), "as much as the context takes"


def test_a_transformer_shows_three_kinds_over_its_own_translation(transformer, shown):
    content = shown(transformer, "--text", "ab c")
    assert content["source"] == [*"ab c", "<end>"]
    assert content["tokens"][0] == "<end>"
    model, tokenizer = load(transformer)
    ids = [*tokenizer.source.encode("ab c"), tokenizer.end_of_text]
    source, end = Source(torch.tensor([ids]), torch.tensor([5])), tokenizer.end_of_text
    written, state = [end], model.initial_state(1, source=source)
    while len(written) < 12:
        features, state = model(torch.tensor([written[-1:]]), state)
        token = model.readout(features)[0, -1].argmax().item()
        if token == end:
            break
        written.append(token)
    assert content["tokens"][1:] == [tokenizer.decode([token]) for token in written[1:]]
    layers = attention_layers(model, written, source)
    assert [layer["kind"] for layer in content["layers"]] == ["encoder"] * 2 + ["decoder"] * 2 + ["cross"] * 2
    for layer, expected in zip(content["layers"], layers, strict=True):
        torch.testing.assert_close(weights(layer), expected.weights, rtol=0, atol=6e-6)


def test_a_target_may_be_given(transformer, shown):
    content = shown(transformer, "--text", "ab c", "--target", "XYZ")
    assert content["tokens"] == ["<end>", *"XYZ"]
    assert weights(content["layers"][-1]).shape == (2, 4, 5)
    assert shown(transformer, "--target", "X")["source"] == [*"cab a", "<end>"], "the first of the validation pairs"


def test_a_decoder_alone_reads_both_sides_as_one(joined, shown):
    assert shown(joined, "--text", "ab", "--target", "ZX")["tokens"] == [*"ab", "<end>", *"ZX"]
    own = shown(joined)
    assert own["tokens"][:6] == [*"cab a", "<end>"]
    assert own["source"] is None
    assert [layer["kind"] for layer in own["layers"]] == ["decoder"] * 2


def test_one_tokenizer_for_both_sides_makes_no_text_of_pairs(shared, shown):
    """The run says what its data are: the tokenizer does not."""
    assert shown(shared, "--text", "ab", "--target", "ZX")["tokens"] == [*"ab", "<end>", *"ZX"]
    for options, source in (([], "cab a"), (["--text", "bc"], "bc")):
        tokens = shown(shared, *options)["tokens"]
        assert tokens[: len(source) + 1] == [*source, "<end>"]
        assert "<end>" not in tokens[len(source) + 1 :], "and then what the model writes by itself"


def test_symbols_are_labelled_without_the_space_behind_them(symbols, tmp_path, shown):
    assert main(["inspect", "attention", str(symbols), "--target", "AH B", "--out", str(tmp_path)]) == 0
    svg = (tmp_path / "attention.svg").read_text(encoding="utf-8")
    for label in ("AH", "B", "a", "b", "&lt;end&gt;"):
        assert f">{label}</text>" in svg, label
    assert "\u00b7" not in svg
    assert shown(symbols, "--target", "AH B")["tokens"] == ["<end>", "AH", "B"]


def test_the_mean_of_weights_can_be_looked_at(tmp_path, shown, refuse):
    path = pairs_run(tmp_path / "run", "gpt")
    run = RunFolder(path)
    first = run.checkpoint().weights()
    second = {name: torch.randn_like(tensor) for name, tensor in first.items()}
    run.save(2, second, {}, {"best_step": None, "best_loss": None, "val_loss": None})
    model, tokenizer = load(path)
    model.load_state_dict({name: (first[name] + second[name]) / 2 for name in first})
    ids = [*tokenizer.source.encode("ab"), tokenizer.end_of_text, *tokenizer.target.encode("X")]
    content = shown(path, "--text", "ab", "--target", "X", "--average", 2)
    for layer, expected in zip(content["layers"], attention_layers(model, ids), strict=True):
        torch.testing.assert_close(weights(layer), expected.weights, rtol=0, atol=6e-6)
    refuse(path, "--average", 3, words=["3 checkpoints are to be averaged"])


def test_what_cannot_be_shown_is_refused(gpt, transformer, joined, symbols, refuse, tmp_path):
    refuse(gpt, "--text", "", words=["--text is empty"])
    refuse(transformer, "--target", "", words=["--target is empty"])
    refuse(gpt, "--text", "up the hill and down", words=["--text has 20 tokens", "at most 16"])
    refuse(gpt, "--text", "7", words=["'7'"])
    refuse(gpt, "--target", "up", words=["learned from a text and not from pairs; leave --target out"])
    refuse(symbols, "--text", " ", words=["--text is empty: ' ' has no token"])
    refuse(symbols, "--target", " ", words=["--target is empty: ' ' has no token"])
    refuse(gpt, "--layer", 3, words=["no layer 3", "1 to 2"])
    refuse(gpt, "--head", 0, words=["no head 0", "1 to 2"])
    refuse(gpt, "--checkpoint", 3, words=["'3'"])
    refuse(transformer, "--text", "abcabcab", words=["--text with its end has 9 tokens", "at most 8"])
    refuse(transformer, "--text", "a", "--target", "X" * 12, words=["--target with its start has 13", "at most 12"])
    refuse(joined, "--text", "a" * 20, "--target", "X" * 4, words=["--text and --target have 25", "at most 24"])
    refuse(tmp_path, words=["config.json"])
    (tmp_path / "file").write_text("x", encoding="utf-8")
    refuse(gpt, "--out", tmp_path / "file", words=["file", "--out"])
    assert not {path.name for path in gpt.iterdir()} & set(FILES)


@pytest.mark.parametrize("arch", ["rnn", "lstm", "cnn", "bigram"])
def test_a_model_without_attention_names_those_that_have_it(new_run, refuse, arch):
    run = new_run(arch=arch, model={}, window=16)
    refuse(run.path, words=[arch, "no attention", "gpt, transformer, backpack"])


def test_weights_without_numbers_are_named(tmp_path, refuse):
    path = pairs_run(tmp_path / "run", "gpt")
    run = RunFolder(path)
    huge = {name: tensor * 1e30 for name, tensor in run.checkpoint().weights().items()}
    run.save(2, huge, {}, {"best_step": None, "best_loss": None, "val_loss": None})
    refuse(path, "--text", "ab", "--target", "X", words=["step_000002", "no numbers", "--checkpoint"])
