"""scratchlm sample with --sense, --swap and --topic, as a person or a script meets it."""

import json
import re

import pytest
import torch

from runs import run_maker
from scratchlm.checkpoint import RunFolder, load
from scratchlm.cli import main
from scratchlm.cli.steering import Plan, logit_changes
from scratchlm.models.backpack import Backpack, BackpackConfig
from scratchlm.steering import Topic, steer, swapped_senses, topic_scores
from scratchlm.training import loop

TEXT = "the sea and a ship went up; the king and a queen came down to the sea: the ship of the king.\n" * 40
MODEL = {"context": 16, "dim": 16, "depth": 1, "heads": 2, "senses": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def backpack(tmp_path_factory):
    """A run of words, whose senses say enough to be turned; a person would train it for longer."""
    folder = tmp_path_factory.mktemp("backpack")
    (folder / "words.txt").write_text(TEXT, encoding="utf-8")
    make = run_maker(folder)
    settings = {"arch": "backpack", "data": str(folder / "words.txt"), "tokenizer": "bpe", "vocab_size": 290}
    run = make(**settings, model=MODEL, steps=10, eval_every=10, optim={"lr": 3e-2, "min_lr": 3e-2, "warmup": 2})
    list(loop.train(run))
    return run.path


@pytest.fixture
def cli(capsys):
    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def found(result):
    code, out, _ = result
    assert code == 0, result
    assert out.count("\n") == 1
    return json.loads(out)


def logits_of(model, ids):
    with torch.inference_mode():
        return model.readout(model(torch.tensor([ids]))[0])[0, -1]


def changes(entry):
    return {row["id"]: row["after"]["logit"] - row["before"]["logit"] for row in (*entry["rises"], *entry["falls"])}


def test_a_scaled_sense_before_and_after(cli, backpack):
    flags = ["--prompt", "the king and the sea", "--prompt", "down", "--samples", 2, "--tokens", 9, "--seed", 4]
    plain = found(cli("sample", backpack, *flags, "--json"))
    code, out, err = cli("sample", backpack, *flags, "--sense", "king:2:9", "--sense", "sea:0:0")
    assert code == 0
    assert err.count("\n") == 1
    headings = re.findall(r"^=== (.*) ===$", out, re.MULTILINE)
    after = "logits of the next token after"
    assert headings == ["before", "after", f"{after} 'the king and the sea'", f"{after} 'down'"]
    assert out.count("--- 4 ---") == 2
    assert "\nnothing changes yet: no sense that has been read is another\n" in out
    shown = found(cli("sample", backpack, *flags, "--sense", "king:2:9", "--sense", "sea:0:0", "--json"))
    assert shown.keys() == {"step", "seed", "before", "after", "logits"}
    assert shown["before"]["samples"] == plain["samples"]
    for heading in ("before", "after"):
        texts = [sample["prompt"] + sample["text"] for sample in shown[heading]["samples"]]
        assert f"=== {heading} ===\n{texts[0]}\n--- 2 ---\n{texts[1]}\n" in out
    assert shown["after"]["samples"][:2] != plain["samples"][:2]
    changed, same = shown["logits"]
    assert (same["prompt"], same["rises"], same["falls"]) == ("down", [], [])
    model, tokenizer = load(backpack)
    ids = tokenizer.encode("the king and the sea")
    king, sea = (tokenizer.encode_word(word)[0] for word in ("king", "sea"))
    assert {king, sea} <= set(ids)
    before, after = logits_of(model, ids), logits_of(steer(model, scales={(king, 2): 9.0, (sea, 0): 0.0}), ids)
    order = (after - before).argsort().tolist()
    assert [row["id"] for row in changed["rises"]] == order[:-6:-1]
    assert [row["id"] for row in changed["falls"]] == order[:5]
    for row in (*changed["rises"], *changed["falls"]):
        assert row["token"] == tokenizer.decode([row["id"]])
        for when, logits in (("before", before), ("after", after)):
            assert row[when]["logit"] == pytest.approx(logits[row["id"]].item(), abs=1e-4)
            assert row[when]["probability"] == pytest.approx(logits.softmax(-1)[row["id"]].item(), abs=1e-5)
    top = changed["rises"][0]
    assert f"{top['after']['logit'] - top['before']['logit']:+.4g}" in out


def test_a_swap_is_the_librarys(cli, backpack):
    model, tokenizer = load(backpack)
    word, old, new = (tokenizer.encode_word(word)[0] for word in ("ship", "king", "sea"))
    ids = tokenizer.encode("a ship")
    expected = logits_of(steer(model, senses={word: swapped_senses(model, word, old, new)}), ids) - logits_of(
        model, ids
    )
    [entry] = found(cli("sample", backpack, "--swap", "ship:king:sea", "--prompt", "a ship", "--tokens", 3, "--json"))[
        "logits"
    ]
    assert len(changes(entry)) == 10
    for token, change in changes(entry).items():
        assert change == pytest.approx(expected[token].item(), abs=1e-4)


@pytest.mark.parametrize(("flags", "strength"), [([], 1), (["--strength", 3], 3)])
def test_a_topic_is_the_librarys(cli, backpack, flags, strength):
    model, tokenizer = load(backpack)
    words, ids = [tokenizer.encode_word(word)[0] for word in ("sea", "ship", "harbour")], tokenizer.encode("the king")
    assert len(tokenizer.encode_word("harbour")) > 1
    topic = Topic.at(topic_scores(model, words), strength)
    expected = logits_of(steer(model, topic=topic), ids) - logits_of(model, ids)
    result = cli(
        "sample", backpack, "--topic", "sea, ship harbour", *flags, "--prompt", "the king", "--tokens", 3, "--json"
    )
    said = rf"^topic at strength {strength}: sea, ship, harbour \(by its first token, .+\)$"
    assert len(re.findall(said, result[2], re.MULTILINE)) == 1
    [entry] = found(result)["logits"]
    assert len(changes(entry)) == 10
    for token, change in changes(entry).items():
        assert change == pytest.approx(expected[token].item(), abs=1e-4)


def test_strength_0_writes_the_same(cli, backpack):
    shown = found(cli("sample", backpack, "--topic", "sea", "--strength", 0, "--tokens", 40, "--json"))
    assert shown["before"] == shown["after"]
    assert shown["logits"] == [{"prompt": "", "rises": [], "falls": []}]


def test_rows_that_stand_for_no_token_are_neither_turned_nor_shown(backpack):
    """An imported model may have more rows than its tokenizer has tokens."""
    _, tokenizer = load(backpack)
    known = tokenizer.vocab_size
    torch.manual_seed(0)
    model = Backpack(BackpackConfig(**{**vars(BackpackConfig.tiny()), "vocab_size": known + 50})).eval()
    with torch.no_grad():
        model.trunk.token_embedding.weight[known:] *= 100
    plan = Plan(scales={}, swaps={}, topic=tokenizer.encode_word("sea"), strength=3, notes=[])
    steered = plan.apply(model, tokenizer)
    assert (steered.topic_factors[known:] == 1).all()
    assert (steered.topic_factors[:known] > 1).any()
    [change] = logit_changes(model, steered, tokenizer, {"the sea": tokenizer.encode("the sea")})
    shown = [row["id"] for row in (*change["rises"], *change["falls"])]
    assert len(shown) == 10
    assert max(shown) < known


def test_past_the_context_it_says_so_once(cli, backpack):
    prompt = TEXT[:93]
    _, tokenizer = load(backpack)
    assert len(tokenizer.encode(prompt)) > 16
    code, out, err = cli("sample", backpack, "--topic", "sea", "--prompt", prompt, "--tokens", 30)
    assert code == 0
    assert err.count("the context of 16") == 1
    assert out.count(prompt) == 2


def test_a_word_may_hold_a_colon(cli, backpack):
    _, _, err = cli("sample", backpack, "--sense", "sea:9:1:2")
    assert err == "scratchlm: --sense: 'sea:9' is 3 tokens (·sea, :, 9); senses belong to one: choose another word\n"
    assert cli("sample", backpack, "--sense", "::1:2", "--tokens", 3)[0] == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sense", "sea:4:2"], ["no sense 4", "0 to 3"]),
        (["--sense", "sea:-1:2"], ["no sense -1", "0 to 3"]),
        (["--sense", "sea:0:inf"], ["sense 0 is inf", "finite"]),
        (["--sense", "sea:0:nan"], ["sense 0 is nan", "finite"]),
        (["--sense", "sea:0:1e39"], ["1e+39", "finite"]),
        (["--sense", "sea:0"], ["'sea:0'", "WORD:INDEX:SCALE"]),
        (["--sense", ":0:1"], ["':0:1'", "WORD:INDEX:SCALE"]),
        (["--sense", "sea:one:1"], ["'sea:one:1'", "WORD:INDEX:SCALE"]),
        (["--sense", "sea:1:more"], ["'sea:1:more'", "WORD:INDEX:SCALE"]),
        (["--sense", "xylophone:0:1"], ["'xylophone' is", "tokens (", "choose another word"]),
        (["--sense", "sea:0:1", "--sense", "sea:0:2"], ["sense 0 of 'sea' twice"]),
        (["--swap", "sea:king"], ["'sea:king'", "WORD:FROM:TO"]),
        (["--swap", "sea:king:zebra"], ["--swap: 'zebra' is", "choose another word"]),
        (["--swap", "sea:king:ship", "--swap", "sea:ship:king"], ["'sea' twice"]),
        (["--topic", " , "], ["--topic is ' , '", "give words"]),
        (["--topic", "sea", "--strength", "4"], ["--strength is 4", "0, 1, 2 or 3"]),
        (["--topic", "sea", "--strength", "0.5"], ["0.5"]),
        (["--strength", "1"], ["--strength 1", "--topic WORDS"]),
    ],
)
def test_refusals(cli, backpack, flags, words):
    code, out, err = cli("sample", backpack, *flags)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"scratchlm: .+\n", err)
    for word in words:
        assert word in err


def test_a_model_without_senses_is_refused_before_its_weights_are_read(cli, tmp_path):
    run = run_maker(tmp_path)(steps=4)
    list(loop.train(run))
    for weights in RunFolder(run.path).path.rglob("model.safetensors"):
        weights.unlink()
    for flags in (["--sense", "a:0:1"], ["--swap", "a:b:c"], ["--topic", "a"]):
        code, out, err = cli("sample", run.path, *flags)
        assert (code, out) == (2, "")
        assert f"{run.path} is a run of gpt, which has no senses" in err
        assert "train one of: backpack" in err
