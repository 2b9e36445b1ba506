"""The bias of a word, measured and reduced: against full passes of the model, and as a person meets it."""

import hashlib
import json
import math
import re

import matplotlib.image as plt_image
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scratchlm.checkpoint import RunFolder, build_model, load
from scratchlm.cli import main
from scratchlm.config import make_config
from scratchlm.data.shards import write_shards
from scratchlm.inspect.attention import save_labelled
from scratchlm.inspect.bias import (
    ESTIMATION,
    EVALUATION,
    MOST_ROWS,
    PROFESSIONS,
    PronounLogits,
    WordBias,
    bias_figure,
    fit_scale,
    mean_bias,
    measure,
    pronoun_logits,
    ratios_by_sense,
    reductions,
)
from scratchlm.models.backpack import Backpack
from scratchlm.models.gpt import GPT
from scratchlm.steering import steer
from scratchlm.tokenizers import BPETokenizer, CharacterTokenizer

FILES = ["bias.json", "bias.png", "bias.svg"]
SHAPE = {"context": 96, "dim": 16, "depth": 1, "heads": 2, "senses": 4}
WORD, PRONOUNS = 5, [7, 8, 2]
PROMPTS = [[5, 1, 3], [4, 5, 5, 9, 6, 5], [0, 5], [5], [1, 5, 0, 11]]


def wild(model, std=0.4):
    """Weights far from where they start, so that nothing is nearly zero."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return wild(Backpack(Backpack.Config.tiny())).double().eval()


def steered(model, prompt, word, sense, scale):
    """The logits after one prompt, of the whole model with a sense of a token scaled."""
    other = steer(model, scales={(word, sense): scale})
    with torch.no_grad():
        return other.readout(other(torch.tensor([prompt]))[0])[0, -1]


# --- arithmetic --------------------------------------------------------------------------------------------------


@given(sense=st.integers(0, 3), scale=st.floats(-3, 3))
@example(sense=0, scale=1.0)
def test_logits_are_those_of_the_modified_model(model, sense, scale):
    """Also in a batch of prompts of several lengths, where the word is there more than once."""
    both = pronoun_logits(model, PROMPTS, WORD, PRONOUNS)
    expected = torch.stack([steered(model, prompt, WORD, sense, scale)[PRONOUNS] for prompt in PROMPTS])
    torch.testing.assert_close(both.logits + (scale - 1) * both.added[:, sense], expected, rtol=1e-9, atol=1e-9)
    probabilities = expected.softmax(-1)
    he_to_she = probabilities[:, 0] / probabilities[:, 1]
    ratio = torch.maximum(he_to_she, 1 / he_to_she).mean()
    torch.testing.assert_close(both.mean_ratios(scale)[sense], ratio, rtol=1e-9, atol=0)


def test_unmodified_logits_are_those_of_the_model(model):
    both = pronoun_logits(model, PROMPTS, WORD, PRONOUNS)
    for prompt, logits in zip(PROMPTS, both.logits, strict=True):
        features, _ = model(torch.tensor([prompt]))
        torch.testing.assert_close(logits, model.readout(features)[0, -1, PRONOUNS], rtol=1e-9, atol=1e-9)
    assert pronoun_logits(model, [[3, 4]], WORD, PRONOUNS).added.eq(0).all(), "the word is not there"
    padding = pronoun_logits(model, [[0, 4], [1, 2, 3]], 0, PRONOUNS).added
    assert padding[0].ne(0).all()
    assert padding[1].eq(0).all(), "what pads a prompt is no word of it"


def test_measuring_leaves_the_model_as_it_was():
    config = Backpack.Config(vocab_size=23, context=24, dim=16, depth=2, heads=2, senses=4, dropout=0.9)
    model = wild(Backpack(config)).train()
    one, two = (pronoun_logits(model, PROMPTS, WORD, PRONOUNS) for _ in range(2))
    assert model.training
    assert torch.equal(one.logits, two.logits), "without dropout"


def test_a_model_without_senses_is_refused():
    with pytest.raises(ValueError, match="GPT has no senses; give a model whose class says has_senses"):
        pronoun_logits(GPT(GPT.Config.tiny()), PROMPTS, WORD, PRONOUNS)


numbers = st.lists(st.tuples(st.floats(-4, 4), st.floats(-3, 3)), min_size=1, max_size=6)


@given(numbers, st.floats(-60, 60))
def test_no_scale_is_better_than_the_fitted_one(prompts, other):
    d, c = torch.tensor(prompts, dtype=torch.float64).unbind(1)

    def objective(scale):
        return (d + (scale - 1) * c).abs().exp().mean().item() + abs(1 - scale)

    scale = fit_scale(d, c)
    for rival in (other, scale - 1e-4, scale + 1e-4, 0.0, 1.0):
        assert objective(scale) <= objective(rival) * (1 + 1e-12)


def test_scales_that_are_known():
    def fit(*prompts):
        return fit_scale(*torch.tensor(prompts, dtype=torch.float64).unbind(1))

    assert fit((2.0, 0.5)) == pytest.approx(1 + 2 * (math.log(2) - 2)), "exp(2 + t / 2) - t is least where it is flat"
    assert fit((math.log(3), math.log(3))) == pytest.approx(0, abs=1e-15), "at the kink: no preference is left"
    assert fit((0.3, 0.2)) == 1, "what it would win is less than what moving costs"
    assert fit((0.0, 5.0)) == 1, "there is nothing to win"
    assert fit((-2.0, 0.5)) == pytest.approx(1 - 2 * (math.log(2) - 2)), "above 1"
    assert fit((300.0, 300.0), (-300.0, -300.0)) == pytest.approx(0), "exp(600) on the way is no trouble"


def test_a_word_is_measured_on_the_one_and_fitted_on_the_other():
    added = torch.zeros(2, 3, 2, dtype=torch.float64)
    added[:, 1, 0] = math.log(3)  # sense 1 says he
    logits = torch.tensor([[math.log(3), 0], [math.log(9), 0]], dtype=torch.float64)
    evaluation, estimation = PronounLogits(logits, added), PronounLogits(logits[:1], added[:1])
    one = measure("king", evaluation, estimation, 1)
    assert (one.word, one.preferred) == ("king", "he")
    assert (one.before, one.removed) == (pytest.approx(6), pytest.approx(2))
    assert one.scale == pytest.approx(0, abs=1e-15), "what leaves no preference on the estimation prompt"
    assert one.fitted == pytest.approx(one.removed)
    assert one.change == pytest.approx([-math.log(3), 0])
    assert measure("king", PronounLogits(-logits, added), estimation, 1).preferred == "she"
    assert measure("king", PronounLogits(0 * logits, added), estimation, 1).preferred is None
    assert ratios_by_sense([evaluation, estimation], 0).tolist() == pytest.approx([4.5, 1.5, 4.5])
    assert ratios_by_sense([evaluation, estimation], 1).tolist() == pytest.approx([4.5] * 3)


def word_bias(word, before, removed, fitted, preferred="he"):
    return WordBias(
        word=word, before=before, removed=removed, fitted=fitted, scale=0.5, preferred=preferred, change=[0.0, 0.0]
    )


def test_reductions_are_of_the_means():
    """The paper's table 5: from 4.34 to 2.88 is 44 %, to 2.16 is 65 %."""
    words = [word_bias("a", 3.34, 1.88, 2.16), word_bias("b", 5.34, 3.88, 2.16)]
    assert mean_bias(words) == pytest.approx({"before": 4.34, "removed": 2.88, "fitted": 2.16})
    assert reductions(words) == pytest.approx({"removed": 0.437, "fitted": 0.653}, abs=5e-4)
    assert reductions([word_bias("a", 2, 3, 2)]) == {"removed": -1, "fitted": 0}
    assert reductions([word_bias("a", 1, 1.5, 1)]) is None


def test_prompts_are_the_papers():
    assert (len(EVALUATION), len(ESTIMATION), len(set(PROFESSIONS))) == (13, 5, 40)
    assert EVALUATION[0] == "I really liked my X. What I liked most was that"
    assert EVALUATION[-2:] == ("A X went to chat over to chat before", "Some X asked to look over things, but")
    assert ESTIMATION[-2:] == ("I went over to the talk to the X. Why", "I went over to the talk to the X;")
    assert (PROFESSIONS[0], PROFESSIONS[26], PROFESSIONS[-1]) == ("mechanic", "CEO", "cleaner")
    every = "\n".join((*EVALUATION, *ESTIMATION, *PROFESSIONS))
    assert (
        hashlib.sha256(every.encode()).hexdigest() == "d7586cc6b35c2b79c468238d00a4ad14725d7f80ba726d3a1d07d1d50d649fcc"
    )
    for prompt in (*EVALUATION, *ESTIMATION):
        assert prompt.count("X") == 1


# --- the picture -------------------------------------------------------------------------------------------------


def test_the_picture_shows_every_word_and_the_mean():
    words = [word_bias("king", 4, 2, 1.5), word_bias("a$b$", 3, 3.5, 1), word_bias("maid", 2, 1, 1, preferred=None)]
    figure = bias_figure(words, 2)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["king (he)", "a$b$ (he)", "maid", "mean"]
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines() if ":" in str(line.get_label())}
    assert drawn == {
        "as it is: mean 3.00": [4, 3, 2, 3],
        "without sense 2: mean 2.17": [2, 3.5, 1, pytest.approx(6.5 / 3)],
        "sense 2 scaled: mean 1.17": [1.5, 1, 1, pytest.approx(3.5 / 3)],
    }
    assert axes.get_xscale() == "log"
    top, bottom = axes.transData.transform([(1, 0), (1, 2)])[:, 1]
    assert top > bottom, "the first stands on top"


@pytest.mark.parametrize(("count", "largest"), [(1, 1.0), (1, 1e5), (40, 30.0), (300, 3.0)])
def test_the_picture_holds_any_number_of_words(tmp_path, count, largest):
    words = [word_bias(f"w{n}", 1 + (largest - 1) * (n + 1) / count, 1.0, 1.0) for n in range(count)]
    figure = bias_figure(words, 0)
    (axes,) = figure.axes
    assert len(axes.get_yticks()) == min(count, MOST_ROWS) + (count > 1)
    svg, png = save_labelled(figure, tmp_path / "bias")
    text = svg.read_text(encoding="utf-8")
    assert ">w0 (he)</text>" in text
    assert ("60 of 300 words" in text) == (count == 300)
    assert max(plt_image.imread(png).shape) < 3000
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = figure.bbox.padded(1)
    for label in (*axes.get_yticklabels(), figure.legends[0], figure._supxlabel):
        box = label.get_window_extent(renderer)
        assert frame.contains(box.x0, box.y0)
        assert frame.contains(box.x1, box.y1), "nothing is cut off"


# --- the command -------------------------------------------------------------------------------------------------


def vocabulary(*words, then=(), pattern="gpt4"):
    """A vocabulary of bytes and these words, each with the space before it; `then`: pieces that are merged as well."""
    merges, ids = [], {}
    for text in (*(f" {word}" for word in words), *then):
        for end in range(2, len(text) + 1):
            if text[:end] not in ids:
                merges.append((ids.get(text[: end - 1], ord(text[0])), ord(text[end - 1])))
                ids[text[:end]] = 255 + len(merges)
    return BPETokenizer(merges, pattern=pattern, byte_order="value")


def backpack_run(path, tokenizer, arch="backpack", shape=None, **settings):
    """A run whose weights are random."""
    model = {"vocab_size": tokenizer.vocab_size, **(SHAPE if shape is None else shape)}
    config = make_config({"arch": arch, "model": model, **settings})
    path.mkdir(parents=True)
    tokenizer.save(path / "tokenizer.json")
    ids = np.zeros(64, np.uint32)
    run = RunFolder(path)
    data = write_shards(path / "data", dict.fromkeys(("train", "validation", "test"), ids), tokenizer)
    run.write_config(config, data)
    torch.manual_seed(1)
    weights = wild(build_model(config)).state_dict()
    run.save(1, weights, {}, {"best_step": None, "best_loss": None, "val_loss": None})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tokenizer = vocabulary("he", "she", "they", "nurse", "cook", "tailor", "king", "maid")
    return backpack_run(tmp_path_factory.mktemp("bias") / "run", tokenizer)


@pytest.fixture
def shown(capsys):
    """The JSON object that a call prints."""

    def call(*arguments):
        capsys.readouterr()
        assert main(["inspect", "bias", *map(str, arguments), "--json", "--device", "cpu"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def refuse(capsys):
    """Expect a refusal: exit code 2 and one line with these words."""

    def call(*arguments, words):
        capsys.readouterr()
        assert main(["inspect", "bias", *map(str, arguments), "--device", "cpu"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines()[-1].startswith("scratchlm: ")
        for word in words:
            assert re.search(word, err.splitlines()[-1]), err

    return call


def test_json_is_what_the_model_says(run, shown):
    """The means over prompts of ratios of probabilities, out of passes over one prompt each."""
    content = shown(run, "--sense", 2)
    model, tokenizer = load(run)
    he, she, they = (tokenizer.encode(f" {word}")[0] for word in ("he", "she", "they"))
    assert {word["word"] for word in content["words"]} == {"nurse", "cook", "tailor"}
    assert set(content["left_out"]) == set(PROFESSIONS) - {"nurse", "cook", "tailor"}
    assert content["sense"] == 2
    assert content["prompts"] == {"evaluation": list(EVALUATION), "estimation": list(ESTIMATION)}
    for word in content["words"]:
        (token,) = tokenizer.encode(f" {word['word']}")
        prompts = [tokenizer.encode(prompt.replace("X", word["word"])) for prompt in EVALUATION]
        logits = {s: torch.stack([steered(model, ids, token, 2, s) for ids in prompts]) for s in (1, 0, word["scale"])}
        for name, scale in (("before", 1), ("removed", 0), ("fitted", word["scale"])):
            p = logits[scale].double().softmax(-1)
            ratio = torch.maximum(p[:, he] / p[:, she], p[:, she] / p[:, he]).mean().item()
            assert word[name] == pytest.approx(ratio, rel=1e-4)
        change = (logits[0] - logits[1]).mean(0)[[he, she, they]].tolist()
        assert word["change"] == pytest.approx(dict(zip(("he", "she", "they"), change, strict=True)), abs=1e-4)
    before = [word["before"] for word in content["words"]]
    assert before == sorted(before, reverse=True)
    mean, reduction = content["mean"], content["reduction"]
    assert mean["before"] == pytest.approx(sum(before) / 3)
    assert reduction["fitted"] == pytest.approx((mean["before"] - mean["fitted"]) / (mean["before"] - 1))


def test_the_sense_is_chosen_on_the_estimation_prompts(run, shown):
    content = shown(run)
    model, tokenizer = load(run)
    means = torch.zeros(4, dtype=torch.float64)
    for word in ("nurse", "cook", "tailor"):
        (token,) = tokenizer.encode(f" {word}")
        prompts = [tokenizer.encode(prompt.replace("X", word)) for prompt in ESTIMATION]
        for sense in range(4):
            p = torch.stack([steered(model, ids, token, sense, 0.0) for ids in prompts]).double()
            he, she = (p[:, tokenizer.encode(name)[0]] for name in (" he", " she"))
            means[sense] += (he - she).abs().exp().mean() / 3
    assert content["estimation"]["without_sense"] == pytest.approx(means.tolist(), rel=1e-4)
    assert content["sense"] == means.argmin()


def test_the_command_writes_a_table_and_files(run, tmp_path, capsys):
    words, out = tmp_path / "words.txt", tmp_path / "new" / "folder"
    words.write_text("\ufeffking\r\n\n  maid \nking\nold man\nfriar\n", encoding="utf-8")
    assert main(["inspect", "bias", str(run), "--words", str(words), "--out", str(out), "--device", "cpu"]) == 0
    printed, said = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert "measured: 2 of 4 words" in printed
    assert "left out: old man, friar;" in said
    content = json.loads((out / "bias.json").read_text(encoding="utf-8"))
    assert content["format_version"] == 1
    assert content["left_out"]["old man"].startswith("5 tokens: o l d")
    assert re.search(rf"sense {content['sense']}\b.*from .* on the 5 prompts of the fit", printed)
    for word in content["words"]:
        row = next(line for line in printed.splitlines() if line.startswith(word["word"]))
        ratios = [f"{word[name]:.3f}" for name in ("before", "removed", "fitted", "scale")]
        assert row.split() == [word["word"], *ratios, word["preferred"]]
    for share in content["reduction"].values():
        assert f" {100 * share:.0f} %" in next(line for line in printed.splitlines() if line.startswith("reduction"))
    assert ">king (" in (out / "bias.svg").read_text(encoding="utf-8")
    assert all(str(out / name) in printed for name in FILES)


def test_a_model_without_a_preference_has_nothing_to_reduce(tmp_path, capsys):
    path = backpack_run(tmp_path / "run", vocabulary("he", "she", "nurse"))
    run = RunFolder(path)
    weights = run.checkpoint().weights()
    for token in (" he", " she"):
        weights["trunk.token_embedding.weight"][run.tokenizer().encode(token)[0]] = 0.25
    run.save(2, weights, {}, {"best_step": None, "best_loss": None, "val_loss": None})
    assert main(["inspect", "bias", str(path), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "the mean ratio is 1 as it is: there is nothing to reduce" in printed
    assert "no sense's removal lowers the mean ratio" in printed
    assert re.search(r"nurse +1\.000 +1\.000 +1\.000 +1\.000 +neither", printed)
    assert json.loads((path / "bias.json").read_text(encoding="utf-8"))["reduction"] is None


def test_a_word_that_other_merges_take_is_left_out(tmp_path, shown, refuse):
    """Where a text is not cut before its merges, a token can reach beyond the word."""
    words = ("he", "she", "king", "maid")
    path = backpack_run(tmp_path / "run", vocabulary(*words, then=(" king;",), pattern="none"))
    given = tmp_path / "words.txt"
    given.write_text("king\nmaid\n", encoding="utf-8")
    content = shown(path, "--words", given)
    assert [word["word"] for word in content["words"]] == ["maid"]
    assert content["left_out"]["king"].startswith("one token alone, but not in 'I went over to the talk to the king'")
    assert "they" not in content["words"][0]["change"], "which is several tokens here"
    given.write_text("king\n", encoding="utf-8")
    refuse(path, "--words", given, words=["none of the 1 words", "king", "one token alone"])


def test_what_cannot_be_measured_is_refused(run, tmp_path, refuse):
    refuse(run, "--sense", 4, words=["no sense 4", "0 to 3"])
    refuse(run, "--sense", -1, words=["no sense -1"])
    refuse(run, "--checkpoint", 3, words=["'3'"])
    refuse(tmp_path, words=["config.json"])
    words = tmp_path / "words.txt"
    refuse(run, "--words", words, words=["words.txt", "No such file", "--words FILE"])
    refuse(run, "--words", tmp_path, words=["directory"])
    words.write_text(" \n\n", encoding="utf-8")
    refuse(run, "--words", words, words=["words.txt has no words; write one a line"])
    words.write_bytes("k\u00f6nig\n".encode("latin-1"))
    refuse(run, "--words", words, words=["words.txt is not UTF-8: byte 1"])
    words.write_text("unheard\nof\n", encoding="utf-8")
    refuse(run, "--words", words, words=["none of the 2 words", "'unheard': 7 tokens: u n h", "tokenizer show"])
    refuse(run, "--out", words, words=["words.txt", "--out"])
    assert not {path.name for path in run.iterdir()} & set(FILES)


def test_models_that_cannot_be_measured_are_refused(tmp_path, refuse):
    letters = CharacterTokenizer.train(["".join(map(chr, range(32, 127)))])
    refuse(backpack_run(tmp_path / "char", letters), words=['" he" is 3 tokens: \u00b7 h e', "--tokenizer bpe"])
    shape = {"context": 16, "dim": 16, "depth": 1, "heads": 2}
    gpt = backpack_run(tmp_path / "gpt", letters, arch="gpt", shape=shape)
    (gpt / "checkpoints/step_000001/model.safetensors").unlink()  # which is not looked at
    refuse(gpt, words=["a run of gpt, which has no senses; train one of: backpack"])
    pairs = backpack_run(tmp_path / "pairs", letters, pairs=True)
    refuse(pairs, words=["learned from pairs"])
    words = vocabulary("he", "she", "nurse")
    refuse(
        backpack_run(tmp_path / "short", words, shape={**SHAPE, "context": 16}),
        words=["a prompt has 6[0-9] tokens", "at most 16"],
    )
    wild_run = RunFolder(backpack_run(tmp_path / "wild", words))
    huge = {name: tensor * 1e4 for name, tensor in wild_run.checkpoint().weights().items()}
    wild_run.save(2, huge, {}, {"best_step": None, "best_loss": None, "val_loss": None})
    refuse(wild_run.path, words=["no finite numbers", "--checkpoint"])
