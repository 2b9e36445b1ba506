"""What is shown of senses is what the model computes, and the command says what it cannot show."""

import dataclasses
import html
import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runs import TEXT
from scratchlm.checkpoint import RunFolder, build_model, load
from scratchlm.cli import main
from scratchlm.config import make_config
from scratchlm.data.pairs import Pair, encode_pairs
from scratchlm.data.shards import write_shards
from scratchlm.inspect import senses
from scratchlm.inspect.attention import attention_figure, attention_layers, described, pick, save_labelled
from scratchlm.inspect.senses import (
    Contributions,
    Sense,
    contributions,
    contributions_figure,
    look_up,
    senses_figure,
    similarities,
    word_senses,
)
from scratchlm.model import LanguageModel
from scratchlm.models.backpack import Backpack
from scratchlm.models.gpt import GPT
from scratchlm.tokenizers import BPETokenizer, CharacterTokenizer, PairTokenizer

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
WORDS = [[7], [3, 11, 3]]
SHAPE = {"context": 16, "dim": 16, "depth": 2, "heads": 2, "senses": 4, "dropout": 0.2}
NO_SCORE = {"best_step": None, "best_loss": None, "val_loss": None}


def backpack(**shape):
    model = Backpack(dataclasses.replace(Backpack.Config.tiny(), **shape)).double()
    for parameter in model.parameters():  # senses and weights that differ
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def written_out(model, words, vocabulary, top):
    """The four figures of each sense of each word, one number after another."""
    embedding, found = model.trunk.token_embedding.weight, []
    with torch.no_grad():
        every = [model.senses(torch.tensor(token)) for token in range(len(embedding))]
    for word in words:
        rows = []
        for sense in range(model.config.senses):
            vector = sum(every[token][sense] for token in word) / len(word)
            logits = {token: (embedding[token] @ vector).item() for token in vocabulary}
            cosines = {
                t: F.cosine_similarity(vector, every[t][sense], dim=0).item() for t in vocabulary if t not in word
            }
            mean = sum(logits.values()) / len(logits)
            spread = (sum((logit - mean) ** 2 for logit in logits.values()) / len(logits)) ** 0.5
            up, near = (sorted(of.items(), key=lambda pair: -pair[1])[:top] for of in (logits, cosines))
            down = sorted(logits.items(), key=lambda pair: pair[1])[:top]
            rows.append(Sense(up, down, spread, near))
        found.append(rows)
    return found


def same(one, other):
    assert [token for token, _ in one] == [token for token, _ in other]
    np.testing.assert_allclose([value for _, value in one], [value for _, value in other], rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("top", [1, 5, 40])
def test_what_a_sense_does_is_what_is_written_out(monkeypatch, chunk, top):
    """Whatever the size of a chunk, whose tokens alone have senses at that time."""
    monkeypatch.setattr(senses, "CHUNK", chunk)
    model, vocabulary = backpack(), [token for token in range(23) if token not in (0, 8, 22)]
    sizes = []
    model.sense_network.register_forward_hook(lambda network, given, made: sizes.append(made.shape[0]))
    found = look_up(model, WORDS, vocabulary, top)
    assert max(sizes) == max(min(chunk, len(vocabulary)), 3)
    for word, expected in zip(found, written_out(model, WORDS, vocabulary, top), strict=True):
        for sense, one in zip(word, expected, strict=True):
            same(sense.up, one.up)
            same(sense.down, one.down)
            same(sense.neighbours, one.neighbours)
            assert sense.spread == pytest.approx(one.spread, abs=1e-12)


def test_a_word_of_several_tokens_has_the_mean_of_their_senses():
    model = backpack(dropout=0.9).train()
    found = word_senses(model, WORDS)
    assert model.training
    model.eval()
    with torch.no_grad():
        expected = [model.senses(torch.tensor(7)), model.senses(torch.tensor([3, 11, 3])).mean(0)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-14)


def test_similarity_is_the_cosine_of_each_sense():
    vectors = word_senses(backpack(), [*WORDS, [7]])
    found = similarities(vectors)
    assert found.shape == (3, 3, 4)
    for one in range(3):
        for other in range(3):
            torch.testing.assert_close(found[one, other], F.cosine_similarity(vectors[one], vectors[other], dim=-1))
    torch.testing.assert_close(found[0, 2], torch.ones(4).double())  # the same word


@pytest.mark.parametrize("tokens", [TOKENS, [4], [2] * 24])
def test_contributions_sum_to_the_logit_less_the_mean_logit(tokens):
    model = backpack(dropout=0.5).train()
    shown = contributions(model, tokens, range(23))
    assert model.training
    model.eval()
    read = torch.tensor([tokens])
    with torch.no_grad():
        logits = model.readout(model(read)[0])[0, -1]
        weights, _, _ = model.read(read, model.initial_state(1))
    assert shown.target == logits.argmax()
    assert shown.logit == pytest.approx(logits.max().item(), abs=1e-12)
    assert shown.added.sum().item() == pytest.approx((logits.max() - logits.mean()).item(), abs=1e-12)
    assert shown.mean == pytest.approx(logits.mean().item(), abs=1e-12)
    assert shown.probability == pytest.approx(logits.softmax(-1).max().item(), abs=1e-12)
    torch.testing.assert_close(shown.weights, weights[0, :, -1].T)
    embedding = model.trunk.token_embedding.weight
    for at, token in enumerate(tokens):
        for sense, vector in enumerate(model.senses(torch.tensor(token))):
            pushed = embedding @ vector
            expected = weights[0, sense, -1, at] * (pushed[shown.target] - pushed.mean())
            torch.testing.assert_close(shown.added[at, sense], expected, rtol=0, atol=1e-12)
    others = [token for token in range(23) if token != shown.target]
    assert contributions(model, tokens, others).target == others[int(logits[others].argmax())], "one of those alone"
    for target in (0, 22):
        one = contributions(model, tokens, [target])
        assert (one.target, one.logit) == (target, pytest.approx(logits[target].item(), abs=1e-12))
        assert one.added.sum().item() == pytest.approx((logits[target] - logits.mean()).item(), abs=1e-12)


def test_what_is_added_to_all_logits_alike_is_no_contribution():
    """The same direction in every row of E changes all logits by the same, and no probability."""
    model = backpack().eval()
    before = contributions(model, TOKENS, [3])
    readout, direction = model.readout, torch.randn(16, dtype=torch.float64)
    model.readout = lambda features: readout(features) + (features @ direction)[..., None]
    after = contributions(model, TOKENS, [3])
    assert abs(after.logit - before.logit) > 0.01
    assert after.probability == pytest.approx(before.probability, abs=1e-12)
    torch.testing.assert_close(after.added, before.added, rtol=0, atol=1e-12)


def test_what_has_no_senses_is_refused():
    with pytest.raises(ValueError, match="GPT has no senses"):
        look_up(GPT(GPT.Config.tiny()), WORDS, range(23))
    with pytest.raises(ValueError, match="no token"):
        word_senses(backpack(), [[7], []])
    with pytest.raises(ValueError, match="after a token"):
        contributions(backpack(), [], [1])
    with pytest.raises(ValueError, match="context is 24"):
        contributions(backpack(), [1] * 25, [1])


# --- attention of a Backpack -------------------------------------------------------------------------------------


def test_attention_shows_the_trunk_and_how_much_of_each_sense_goes_in():
    model = backpack()
    layers = attention_layers(model, TOKENS)
    assert [(one.name, one.kind, one.layer, one.heads) for one in layers] == [
        ("trunk.blocks.0.attention", "decoder", 1, [1, 2]), ("trunk.blocks.1.attention", "decoder", 2, [1, 2]),
        ("contextualisation", "senses", None, [0, 1, 2, 3])]  # fmt: skip
    with torch.no_grad():
        weights, _, _ = model.eval().read(torch.tensor([TOKENS]), model.initial_state(1))
    torch.testing.assert_close(layers[-1].weights, weights[0])
    for one in attention_layers(model.trunk, TOKENS):
        assert torch.equal(one.weights, layers[one.layer - 1].weights), "the trunk reads as it does alone"
    assert json.loads(json.dumps(described(layers)))[-1]["layer"] is None


def test_a_layer_a_head_or_a_sense_is_picked():
    layers = attention_layers(backpack(), TOKENS)
    assert pick(layers, None, None, None) == layers
    (one,) = pick(layers, None, None, 2)
    assert (one.kind, one.heads) == ("senses", [2])
    assert torch.equal(one.weights, layers[-1].weights[2:3])
    assert [(one.name, one.heads) for one in pick(layers, None, 2, None)] == [
        ("trunk.blocks.0.attention", [2]), ("trunk.blocks.1.attention", [2])]  # fmt: skip
    assert pick(layers, 2, None, None) == layers[1:2]
    for chosen, words in (((None, None, 4), "no sense 4; .* 0 to 3"), ((None, None, -1), "no sense -1"),
                          ((1, None, 2), "sense 2 has no layer"), ((3, None, None), "1 to 2")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            pick(layers, *chosen)
    with pytest.raises(ValueError, match="no sense 0: this model has none"):
        pick(layers[:2], None, None, 0)


@pytest.mark.parametrize("number", [1, 3, 6, 16])
def test_senses_take_several_rows(number):
    layers = attention_layers(backpack(dim=48, senses=number), TOKENS)
    figure = attention_figure(layers, [f"t{token}" for token in TOKENS])
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_images()}
    assert list(panels)[4:] == [f"sense {sense}" for sense in range(number)]
    for sense, weights in enumerate(layers[-1].weights):
        drawn = panels[f"sense {sense}"].get_images()[0].get_array()
        assert drawn.mask.tolist() == np.triu(np.ones((8, 8)), 1).astype(bool).tolist(), "grey is the future"
        np.testing.assert_array_equal(drawn.filled(0), weights.numpy())
    width, _ = figure.get_size_inches()
    assert width < 12, "four beside each other"
    for sense in range(number):
        tokens = [label.get_text() for label in panels[f"sense {sense}"].get_xticklabels()]
        assert tokens == ([] if sense + 4 < number else [f"t{token}" for token in TOKENS]), "where none is below it"
    alone = attention_figure(layers[-1:], [f"t{token}" for token in TOKENS])
    assert alone.axes[0].get_ylabel() == "weight of the sense"
    assert alone.axes[1].get_ylabel() == "prediction after"
    assert "token that looks" not in alone.texts[0].get_text()
    assert figure.axes[0].get_ylabel() == "attention weight"
    boxes = [axes.get_position() for axes in figure.axes]
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


# --- pictures ----------------------------------------------------------------------------------------------------


def made_up(words, number, length=10):
    ranking = [(token, 1.0) for token in range(length)]
    return [
        [Sense(ranking, ranking[::-1], word + sense / 100, ranking) for sense in range(number)] for word in range(words)
    ]


def panels_of(figure):
    return [axes for axes in figure.axes if axes.get_images()]


@pytest.mark.parametrize(("words", "number"), [(1, 1), (1, 16), (3, 16), (4, 4), (5, 16), (8, 16), (12, 16), (1, 64)])
def test_the_picture_of_words_shows_the_strongest_tokens(words, number):
    table = made_up(words, number)
    figure = senses_figure([f"word{word}" for word in range(words)], table, lambda token: f"t{token}")
    panels = panels_of(figure)
    headings = [label.get_text() for panel in panels for label in panel.get_xticklabels()]
    assert headings == [f"word{word}" for word in range(words)]
    drawn = np.concatenate([panel.get_images()[0].get_array() for panel in panels], axis=1)
    np.testing.assert_allclose(drawn, np.array([[one.spread for one in word] for word in table]).T)
    assert len({panel.get_images()[0].norm for panel in panels}) == 1
    texts = [text.get_text() for panel in panels for text in panel.texts]
    assert len(texts) == 2 * words * number
    assert {text.split("\u00a0")[0] for text in texts} == {"\u25b2 t0", "\u25bc t9"}
    fits(figure)


@pytest.mark.parametrize("token", ["x" * 40, "\u00b7BOLINGBROKE", "a", "\u65e5\u672c\u8a9e"])
def test_lists_of_tokens_stay_in_their_cells(token):
    figure = senses_figure(["word", "other"], made_up(2, 4, 60), lambda _: token)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.canvas.draw()
        (panel,) = panels_of(figure)
        for text in panel.texts:
            column = round(text.get_position()[0] + 0.5)
            box = panel.transData.inverted().transform(text.get_window_extent())
            assert column - 0.5 <= box[0, 0] < box[1, 0] <= column + 0.5
    assert all(len(text.get_text()) > 8 for text in panel.texts), "and there is something in each"


def written(value):
    return f"{value:+.2g}" if abs(value) < 99 else f"{value:+.0f}"


def test_a_short_bar_is_not_called_zero():
    added = torch.tensor([[0.004, -0.0031], [0.0, 123.4]], dtype=torch.float64)
    panels = contributions_figure(Contributions(0, 1.0, 0.0, 0.5, added, added), ["a", "b"], "c").axes
    assert [label.get_text() for label in panels[1].get_yticklabels()] == ["+0.0009", "+123"]
    assert [label.get_text() for label in panels[2].get_xticklabels()] == ["+0.004", "+123"]


@pytest.mark.parametrize(("count", "number"), [(1, 1), (1, 16), (6, 16), (32, 4), (128, 16), (512, 16), (3, 64)])
def test_the_picture_of_contributions_shows_them_and_their_sums(count, number):
    added = torch.randn(count, number, dtype=torch.float64)
    shown = Contributions(5, added.sum().item() - 1.5, -1.5, 0.25, torch.rand(count, number), added)
    labels = [f"t{token}" for token in range(count)]
    figure = contributions_figure(shown, labels, "$\u00b7the$")
    panel, beside, below = figure.axes[:3]
    np.testing.assert_array_equal(panel.get_images()[0].get_array(), added.numpy())
    norm = panel.get_images()[0].norm
    assert norm(0.0) == 0.5, "white is nothing"
    assert -norm.vmin == norm.vmax == added.abs().max()
    assert norm(norm.vmax / 4) == pytest.approx(0.75)
    np.testing.assert_allclose([bar.get_width() for bar in beside.patches], added.sum(1).numpy())
    np.testing.assert_allclose([bar.get_height() for bar in below.patches], added.sum(0).numpy())
    assert [label.get_text() for label in below.get_xticklabels()] == [written(one) for one in added.sum(0).tolist()]
    assert beside.get_xlim() == below.get_ylim(), "one scale, also in inches:"
    width, height = figure.get_size_inches()
    assert beside.get_position().width * width == pytest.approx(below.get_position().height * height)
    if count <= 128:
        assert [label.get_text() for label in panel.get_yticklabels()] == labels
        assert [label.get_text() for label in beside.get_yticklabels()] == [
            written(one) for one in added.sum(1).tolist()
        ]
    fits(figure)


def fits(figure):
    width, height = figure.get_size_inches()
    assert max(width, height) * 150 < 2**14, "pixels"
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def text_of(svg):
    """The words of a picture, lines joined."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", svg.read_text(encoding="utf-8"))).split())


def test_files_hold_odd_tokens_as_text(tmp_path):
    tokens = ["$a$", "\u00b7", "\u21b5", "\u65e5", "<end>", "x" * 40]
    shown = Contributions(0, 1.0, -0.5, 0.5, torch.ones(6, 2), torch.ones(6, 2) / 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_labelled(contributions_figure(shown, tokens, "$b$"), tmp_path / "contributions")
        save_labelled(senses_figure(["$w$"], made_up(1, 2, 6), tokens.__getitem__), tmp_path / "senses")
    for name, others in (
        (
            "contributions",
            ["logit of $b$", "are 1.50, the logit (1.00) less the mean of all logits (-0.50)", "a line end"],
        ),
        ("senses", ["$w$", "sense 1", "a space"]),
    ):
        words = text_of(tmp_path / f"{name}.svg")
        for label in [*tokens[:4], *others]:
            assert label in words
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# --- the command -------------------------------------------------------------------------------------------------


def random_run(path, tokenizer, ids, **settings):
    """A run of a Backpack whose weights are random."""
    shape = {**SHAPE, "vocab_size": tokenizer.vocab_size}
    config = make_config({"arch": "backpack", "model": shape, **settings})
    path.mkdir()
    tokenizer.save(path / "tokenizer.json")
    run = RunFolder(path)
    splits = dict.fromkeys(("train", "validation", "test"), ids)
    run.write_config(config, write_shards(path / "data", splits, tokenizer))
    torch.manual_seed(1)
    weights = build_model(config).state_dict()
    run.save(1, {name: one + 0.1 * torch.randn_like(one) for name, one in weights.items()}, {}, NO_SCORE)
    return path


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    tokenizer = CharacterTokenizer.train([TEXT], documents=True)
    return random_run(tmp_path_factory.mktemp("char") / "run", tokenizer, tokenizer.encode_array(TEXT))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    tokenizer = BPETokenizer.train([TEXT], documents=True, vocab_size=280)
    return random_run(tmp_path_factory.mktemp("bpe") / "run", tokenizer, tokenizer.encode_array(TEXT))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    tokenizer = PairTokenizer(CharacterTokenizer.train(["abc "]), CharacterTokenizer.train(["XYZ "]))
    ids = encode_pairs((Pair("cab a", "XZ", 1), Pair("b", "Y", 2)), tokenizer)
    return random_run(tmp_path_factory.mktemp("pairs") / "run", tokenizer, ids, pairs=True)


@pytest.fixture
def shown(capsys):
    """The JSON object that a call prints."""

    def call(*arguments):
        capsys.readouterr()
        assert main(["inspect", "senses", *map(str, arguments), "--json", "--device", "cpu"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def refuse(capsys):
    """Expect a refusal: exit code 2 and one line with these words."""

    def call(*arguments, words, command="senses"):
        capsys.readouterr()
        assert main(["inspect", command, *map(str, arguments), "--device", "cpu"]) == 2
        out, err = capsys.readouterr()
        line = err.splitlines()[-1]
        assert out == ""
        assert line.startswith("scratchlm: ")
        for word in words:
            assert re.search(word, line), line

    return call


@pytest.mark.parametrize(("which", "target", "written"), [("characters", "A", "A"), ("bpe", "the", " the")])
def test_json_is_what_the_library_computes(request, which, target, written, shown):
    path = request.getfixturevalue(which)
    model, tokenizer = load(path)
    content = shown(path, "hill", "A", "and", "--top", 4, "--text", "went up", "--target", target)
    assert content["format_version"] == 1
    assert (content["arch"], content["step"]) == ("backpack", 1)
    ids = [tokenizer.encode_word(word) for word in ("hill", "A", "and")]
    vocabulary = [token for token in range(tokenizer.vocab_size) if tokenizer.token_bytes(token)]
    assert len(vocabulary) < model.config.vocab_size
    for word, tokens, table in zip(content["words"], ids, look_up(model, ids, vocabulary, 4), strict=True):
        assert "".join(word["tokens"]).strip() == word["word"]
        assert word["tokens"] == [tokenizer.decode([token]) for token in tokens]
        assert word["ids"] == tokens
        for sense, expected in zip(word["senses"], table, strict=True):
            assert sense["spread"] == pytest.approx(expected.spread, abs=1e-5)
            for name in ("up", "down", "neighbours"):
                ranking = getattr(expected, name)
                assert len(ranking) == 4
                assert [one["id"] for one in sense[name]] == [token for token, _ in ranking]
                assert [one["token"] for one in sense[name]] == [tokenizer.decode([token]) for token, _ in ranking]
                assert [one["value"] for one in sense[name]] == pytest.approx([v for _, v in ranking], abs=1e-5)
    likeness = similarities(word_senses(model, ids))
    for pair, (one, other) in zip(content["similarities"], [(0, 1), (0, 2), (1, 2)], strict=True):
        assert pair["words"] == [content["words"][one]["word"], content["words"][other]["word"]]
        assert pair["senses"] == pytest.approx(likeness[one, other].tolist(), abs=1e-5)
        assert pair["min"] == min(pair["senses"])
    added = content["contributions"]
    read = tokenizer.encode("went up")
    expected = contributions(model, read, tokenizer.encode(written))
    assert added["tokens"] == [tokenizer.decode([token]) for token in read]
    assert added["ids"] == read
    assert added["target"] == written
    assert added["target_id"] == expected.target
    assert np.sum(added["added"]) == pytest.approx(added["logit"] - added["mean_logit"], abs=1e-5)
    assert np.allclose(added["added"], expected.added.numpy(), atol=1e-6)
    assert np.allclose(added["weights"], expected.weights.numpy(), atol=1e-5)
    assert (added["probability"], added["mean_logit"]) == pytest.approx((expected.probability, expected.mean))


def test_words_and_a_text_are_drawn_into_a_folder(bpe, tmp_path, capsys):
    out = tmp_path / "new"
    assert main(["inspect", "senses", str(bpe), "hill", "murder", "--text", "up\nthe", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    names = [f"{name}.{kind}" for name in ("contributions", "senses") for kind in ("json", "png", "svg")][1:]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all(str(out / name) in printed for name in names)
    _, tokenizer = load(bpe)
    pieces = [tokenizer.decode([token]).replace(" ", "\u00b7") for token in tokenizer.encode_word("murder")]
    assert len(pieces) > 1
    said = f"mean of {len(pieces)} tokens: {' '.join(pieces)}"
    assert f"murder  ({said})" in printed
    assert f"murder is the {said}" in text_of(out / "senses.svg")
    lines = printed.splitlines()
    for sense in range(4):
        assert sum(bool(re.match(rf"\s+{sense}\s+\d+\.\d\d  ", line)) for line in lines) == 2, "a line for each word"
    (similarity,) = [line for line in lines if line.startswith("hill  murder")]
    assert len(similarity.split()) == 2 + 1 + 4
    assert re.search("right after it .*: probability .*, logit ", printed)
    again = tmp_path / "again"
    assert main(["inspect", "senses", str(bpe), "hill", "--out", str(again)]) == 0
    assert sorted(path.name for path in again.iterdir()) == ["senses.json", "senses.png", "senses.svg"]
    assert json.loads((again / "senses.json").read_text(encoding="utf-8"))["contributions"] is None


def test_without_words_and_text_the_validation_text_is_read(characters, shown):
    content = shown(characters)
    model, tokenizer = load(characters)
    validation = RunFolder(characters).splits()["validation"].windows(np.array([0]), 16)[0].tolist()
    assert "".join(content["contributions"]["tokens"]) == tokenizer.decode(validation)
    with torch.no_grad():
        logits = model.readout(model(torch.tensor([validation]))[0])[0, -1, : tokenizer.vocab_size]
    assert content["contributions"]["target"] == tokenizer.decode([int(logits.argmax())])
    assert content["words"] == content["similarities"] == []


def test_a_special_token_is_not_shown(bpe, shown):
    _, tokenizer = load(bpe)
    assert tokenizer.end_of_text is not None
    content = shown(bpe, "A", "--top", 1000)
    for sense in content["words"][0]["senses"]:
        for name, count in (("up", 280), ("down", 280), ("neighbours", 279)):
            assert len(sense[name]) == count
            assert tokenizer.end_of_text not in {one["id"] for one in sense[name]}


def test_of_pairs_words_are_of_the_target_and_a_text_is_a_source(pairs, shown, refuse):
    content = shown(pairs, "XY", "--text", "ab", "--target", "Z")
    assert content["words"][0]["tokens"] == ["X", "Y"]
    assert content["contributions"]["tokens"] == ["a", "b", "<end>"]
    assert content["contributions"]["target"] == "Z"
    model, tokenizer = load(pairs)
    ends, reached = tokenizer.end_of_text, set()
    for text in ("a", "b", "c", "ab", "bc", "cab", "aa", "bb"):
        with torch.no_grad():
            read = torch.tensor([[*tokenizer.source.encode(text), ends]])
            logits = model.readout(model(read)[0])[0, -1]
        reached.add(int(logits.argmax()))
        found = shown(pairs, "--text", text)["contributions"]["target_id"]
        assert found == 4 + int(logits[4:9].argmax()), "a token of the target, or the end"
    assert min(reached) < 4, "what a source has is sometimes more probable"
    content = shown(pairs, "XY", "--top", "100")
    for sense in content["words"][0]["senses"]:
        assert {one["id"] for one in sense["up"]} == {one["id"] for one in sense["down"]} == {4, 5, 6, 7}
        assert len(sense["neighbours"]) == 2
    (found,) = look_up(model, [tokenizer.target.encode("XY")], range(4, 8), 100)
    spreads = [sense["spread"] for sense in content["words"][0]["senses"]]
    assert spreads == pytest.approx([one.spread for one in found], abs=1e-5)
    refuse(pairs, words=["learned from pairs", "--text"])
    refuse(pairs, "--text", "a" * 16, words=["--text with its end has 17 tokens", "at most 16"])


def test_more_words_than_a_picture_holds(characters, tmp_path, capsys):
    words = list("ABCDEFGHabcdefgh")
    assert main(["inspect", "senses", str(characters), *words, "A", "--top", "2", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "senses.json").read_text(encoding="utf-8"))
    assert [word["word"] for word in content["words"]] == words, "each once"
    assert len(content["similarities"]) == 16 * 15 / 2
    assert "The first 12 of 16 words." in text_of(tmp_path / "senses.svg")


def test_what_cannot_be_shown_is_refused(characters, bpe, refuse, tmp_path, new_run):
    refuse(characters, "", words=["word '' is empty"])
    refuse(characters, "7", words=["'7'"])
    refuse(characters, "A", "--top", 0, words=["--top is 0"])
    refuse(characters, "A", "--target", "B", words=["--target", "--text"])
    refuse(characters, "--text", "", words=["--text is empty"])
    refuse(characters, "--text", "and" * 6, words=["--text has 18 tokens", "at most 16"])
    refuse(bpe, "--text", "up", "--target", "murder", words=["--target 'murder' is . tokens", "of one token"])
    refuse(bpe, "--text", "up", "--target", "q", words=[r"--target 'q' is 2 tokens \(\u00b7 q\)", "of one token"])
    refuse(bpe, "--text", "up", "--target", "", words=["--target is empty"])
    refuse(characters, "--text", "up", "--target", "and", words=[r"--target 'and' is 3 tokens \(a n d\)"])
    refuse(characters, "A", "--checkpoint", 7, words=["'7'"])
    refuse(tmp_path, "A", words=["config.json"])
    (tmp_path / "file").write_text("x", encoding="utf-8")
    refuse(characters, "A", "--out", tmp_path / "file", words=["file", "--out"])
    refuse(characters, "--sense", 4, command="attention", words=["no sense 4", "0 to 3"])
    refuse(new_run(arch="gpt").path, "A", words=["run of gpt", "no senses", "train one of: backpack"])


def test_a_folder_that_cannot_be_is_found_before_the_work(characters, tmp_path, refuse, monkeypatch):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    monkeypatch.setattr(LanguageModel, "load_state_dict", None)  # no weights are read
    refuse(characters, "A", "--out", tmp_path / "file" / "new", words=["cannot write into .*new", "--out"])


def test_senses_without_numbers_are_named(characters, tmp_path, refuse):
    path = tmp_path / "run"
    shutil.copytree(characters, path, symlinks=True)
    run = RunFolder(path)
    huge = {name: tensor * 1e30 for name, tensor in run.checkpoint().weights().items()}
    run.save(2, huge, {}, NO_SCORE)
    refuse(path, "A", words=["step_000002", "no numbers", "--checkpoint"])
    refuse(path, "--text", "A", words=["step_000002", "no numbers", "--checkpoint"])


def test_attention_of_a_backpack_on_the_command_line(bpe, tmp_path, capsys):
    assert (
        main(["inspect", "attention", str(bpe), "--text", "up the", "--sense", "3", "--json", "--device", "cpu"]) == 0
    )
    (layer,) = json.loads(capsys.readouterr().out)["layers"]
    assert (layer["kind"], layer["layer"], [head["head"] for head in layer["heads"]]) == ("senses", None, [3])
