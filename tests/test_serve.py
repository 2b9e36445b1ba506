"""scratchlm play, what it answers: compared with the library called by hand."""

import asyncio
import itertools
import json
import math
import threading

import pytest
import torch

from playing import TEXT, characters, events, make_run, serving, sides, subwords
from runs import run_maker
from scratchlm.checkpoint import build_model, load
from scratchlm.cli import main
from scratchlm.generation import Sampling, generate, inference, stream
from scratchlm.inspect.attention import attention_layers, described
from scratchlm.inspect.influence import influence
from scratchlm.inspect.senses import contributions, look_up
from scratchlm.inspect.states import carried_states
from scratchlm.models import MODELS
from scratchlm.runtime import SMALL, few_threads
from scratchlm.serve.app import create_app
from scratchlm.serve.guard import Door
from scratchlm.serve.runs import Run
from scratchlm.serve.turns import BusyError, Turns
from scratchlm.steering import steer
from scratchlm.tokenizers import whole_characters
from scratchlm.training import loop
from scratchlm.training.expected import Expected, deciding
from scratchlm.translation import as_source, decode


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play")
    made = {
        "gpt": make_run(folder / "gpt", "gpt", characters(), context=16),
        "lstm": make_run(folder / "lstm", "lstm", characters()),
        "cnn": make_run(folder / "cnn", "cnn", subwords()),
        "backpack": make_run(folder / "backpack", "backpack", subwords()),
        "transformer": make_run(folder / "transformer", "transformer", sides()),
        "bigram": make_run(folder / "bigram", "bigram", characters()),
    }
    return {arch: run.path for arch, run in made.items()}


@pytest.fixture(scope="module")
def clients(folders):
    """A client of each run, its model beside it."""
    with (
        serving(folders["gpt"], folders["lstm"]) as both,
        serving(folders["cnn"], folders["backpack"]) as others,
        serving(folders["transformer"], folders["bigram"]) as rest,
    ):
        yield {"gpt": (both, "a"), "lstm": (both, "b"), "cnn": (others, "a"), "backpack": (others, "b"),
               "transformer": (rest, "a"), "bigram": (rest, "b")}  # fmt: skip


@pytest.fixture
def ask(clients):
    """Ask a run's path something: the answer, which has to be good."""

    def asked(arch, path, **body):
        client, run = clients[arch]
        answer = client.post(f"/api/{path}", json={"run": run, **body})
        assert answer.status_code == 200, answer.text
        return events(answer) if path == "generate" else answer.json()

    return asked


@pytest.fixture
def refused(clients):
    """Ask something that is refused: the message."""

    def asked(arch, path, status=422, **body):
        client, run = clients[arch]
        answer = client.post(f"/api/{path}", json={"run": run, **body})
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error.keys() == {"message", "type"}
        return error["message"]

    return asked


# --- runs --------------------------------------------------------------------------------------------------------


def test_runs_say_what_they_are(clients, folders):
    client, _ = clients["cnn"]
    one, other = client.get("/api/runs").json()["runs"]
    model, tokenizer = load(folders["cnn"])
    assert one == {
        "id": "a", "name": str(folders["cnn"]), "arch": "cnn", "title": "CNN", "status": "ready", "message": "",
        "parameters": sum(p.numel() for p in model.parameters()), "step": 0, "newest": 0, "steps": None,
        "training": False, "val_loss": None, "vocab_size": tokenizer.vocab_size, "context": None, "device": "cpu",
        "pairs": False, "layers": 3, "heads": 0, "senses": 0, "views": ["generate", "pieces", "influence", "field"],
        "example": None, "note": "It continues text and does not chat.",
    }  # fmt: skip
    assert other["views"] == ["generate", "pieces", "influence", "attention", "senses"]
    assert (other["senses"], other["heads"]) == (MODELS["backpack"].Config.tiny().senses, 2)
    runs = {arch: client.get("/api/runs").json()["runs"]["ab".index(run)] for arch, (client, run) in clients.items()}
    assert runs["lstm"]["views"] == ["generate", "pieces", "influence", "states"]
    assert runs["transformer"]["views"] == ["pieces", "influence", "attention", "translate"]
    assert runs["transformer"]["pairs"]
    assert runs["gpt"]["context"] == 16


def test_every_architecture_can_be_played_with(tmp_path):
    for arch in MODELS:
        with serving(
            make_run(tmp_path / arch, arch, sides() if arch == "transformer" else characters()).path
        ) as client:
            (run,) = client.get("/api/runs").json()["runs"]
            assert (run["status"], run["title"].lower()) == ("ready", arch)
            assert "influence" in run["views"]


def test_an_adapter_is_played_with(tmp_path):
    """Its base's weights with its changes in them."""
    (tmp_path / "more.txt").write_text(TEXT * 3, encoding="utf-8")
    base = make_run(tmp_path / "base", "gpt", characters(), context=16).path
    more = ["--data", str(tmp_path / "more.txt"), "--steps", "2", "--eval-every", "2", "--device", "cpu"]
    assert main(["finetune", str(base), "--lora", *more, "--out", str(tmp_path / "lora"), "--optim.lr", "0.1"]) == 0
    with serving(tmp_path / "lora", base) as client:
        one, other = client.get("/api/runs").json()["runs"]
        assert (one["status"], one["step"], other["step"]) == ("ready", 2, 0)
        assert one["example"] in TEXT
        asked = {"prompt": "the sea", "tokens": 20, "temperature": 0}
        ids = [
            [event["id"] for event in events(client.post("/api/generate", json={"run": run, **asked}))[1:-1]]
            for run in "ab"
        ]
    for found, folder in zip(ids, (tmp_path / "lora", base), strict=True):
        model, tokenizer = load(folder)
        drawn = stream(model, [tokenizer.encode("the sea")], 20, Sampling(temperature=0), slide=True)
        assert found == [token for _, token in drawn]
    assert ids[0] != ids[1]


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("gpt", {"temperature": 0.7, "seed": 3}),
        ("gpt", {"temperature": 0}),
        ("lstm", {"top_k": 5, "seed": 1}),
        ("cnn", {"top_p": 0.9, "seed": 1 << 52}),
        ("backpack", {"min_p": 0.1}),
    ],
)
def test_a_text_is_the_one_that_the_library_writes(ask, folders, arch, settings):
    """Beyond the context too, with the probabilities of the model itself."""
    model, tokenizer = load(folders[arch])
    prompt, tokens = tokenizer.encode("the sea"), 30
    start, *written, end = ask(arch, "generate", prompt="the sea", tokens=tokens, alternatives=4, **settings)
    sampling = Sampling(**{"temperature": 0.8, **{key: value for key, value in settings.items() if key != "seed"}})
    expected, seen = [], []
    watched = stream(
        model, [prompt], tokens, sampling, seed=settings.get("seed", 0), slide=True, end=tokenizer.end_of_text,
        vocab_size=tokenizer.vocab_size, watch=lambda rows, logits: seen.append(logits[0].softmax(-1)),
    )  # fmt: skip
    expected = [token for _, token in watched]
    assert [event["id"] for event in written] == expected
    assert start["type"] == "start"
    assert [piece["id"] for piece in start["prompt"]] == prompt
    assert (start["continuation"], start["read"]) == ([], len(prompt))
    assert start["slides"] == (arch == "gpt" or (arch == "backpack" and len(prompt) + tokens > model.context))
    assert end.items() >= {"type": "end", "tokens": len(expected)}.items()
    assert end["reason"] == ("length" if len(expected) == tokens else "end_of_text")
    for event, probabilities in zip(written, seen, strict=False):
        assert event["probability"] == pytest.approx(probabilities[event["id"]].item(), rel=1e-4)
        entropy = torch.special.entr(probabilities).sum().item()
        assert event["entropy"] == pytest.approx(entropy, rel=1e-4)
        best = event["alternatives"]
        assert [one["probability"] for one in best] == pytest.approx(probabilities.topk(4).values.tolist(), rel=1e-4)
        assert {one["id"] for one in best} == set(probabilities.topk(4).indices.tolist())
    assert "".join(event["text"] for event in written) == whole_characters(tokenizer, expected)


@pytest.mark.parametrize("arch", ["gpt", "lstm", "cnn", "backpack"])
def test_what_was_written_is_scored_again_as_it_was(ask, arch):
    """A text is gone on from: the tokens so far have the probabilities and alternatives that they had, slid or not."""
    for tokens in (5, 40):
        first = ask(arch, "generate", prompt="the sea", tokens=tokens, seed=4)
        written = [event for event in first if event["type"] == "token"]
        again = ask(arch, "generate", prompt="the sea", continuation=[event["id"] for event in written], tokens=1)[0]
        assert [event["text"] for event in again["continuation"]] == [event["text"] for event in written]
        for one, other in zip(again["continuation"], written, strict=True):
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-3)
            assert one["entropy"] == pytest.approx(other["entropy"], rel=1e-3)
            assert one["alternatives"][0]["id"] == other["alternatives"][0]["id"]


def test_an_alternative_is_gone_on_from(ask, folders):
    model, tokenizer = load(folders["lstm"])
    written = ask("lstm", "generate", prompt="the", tokens=6, seed=2)[1:-1]
    chosen = [*(event["id"] for event in written[:3]), written[3]["alternatives"][5]["id"]]
    start, *new, _ = ask("lstm", "generate", prompt="the", continuation=chosen, tokens=8, seed=9)
    prompt = tokenizer.encode("the")
    expected = generate(model, [prompt + chosen], 8, temperature=0.8, seed=9)[0]
    assert [event["id"] for event in new] == expected[len(prompt) + 4 :]
    assert start["read"] == len(prompt) + 4


def test_half_a_character_waits_for_the_rest(tmp_path):
    """Bytes of a character that several tokens make are shown with the last of them."""
    with serving(make_run(tmp_path / "run", "gpt", subwords(), context=64).path) as client:
        euro = subwords().encode("\u20ac")
        answer = client.post("/api/generate", json={"run": "a", "prompt": "", "continuation": euro, "tokens": 1})
        start = events(answer)[0]
        assert [event["text"] for event in start["continuation"]] == ["", "", "\u20ac"]
        assert start["continuation"][0]["label"] == r"\xe2"
        assert [piece["id"] for piece in start["prompt"]] == [subwords().start]


def test_senses_are_changed_in_what_is_written(ask, refused, folders):
    model, tokenizer = load(folders["backpack"])
    prompt = tokenizer.encode("the sea")
    changes = [{"position": None, "token": token, "sense": sense, "scale": 6.0} for token in prompt for sense in (0, 1)]
    written = ask("backpack", "generate", prompt="the sea", tokens=12, seed=1, changes=changes)[1:-1]
    steered = steer(model, scales={(token, sense): 6.0 for token in prompt for sense in (0, 1)})
    expected = generate(steered, [prompt], 12, temperature=0.8, seed=1, vocab_size=tokenizer.vocab_size)[0]
    assert [event["id"] for event in written] == expected[len(prompt) :][: len(written)]
    assert "no sense 99" in refused("backpack", "generate", prompt="a", changes=[{**changes[0], "sense": 99}])
    assert "no senses" in refused("lstm", "generate", prompt="a", changes=changes[:1])


def test_what_cannot_be_written(refused, clients):
    assert "has no generate" in refused("transformer", "generate", prompt="a")
    assert "no token has the id 999" in refused("gpt", "generate", prompt="a", continuation=[999])
    assert "was not in the training text" in refused("gpt", "generate", prompt="\u20ac")
    client, _ = clients["gpt"]
    answer = client.post("/api/generate", json={"run": "z", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")
    assert not client.desk.writing.places


def test_texts_that_are_written_beside_each_other_do_not_mix(clients, folders):
    """Many at once, of two models, with looks in between: each is the one that it would be alone."""
    client, _ = clients["gpt"]
    found = {}

    def write(run, seed):
        asked = {"run": run, "prompt": "a rose", "tokens": 25, "seed": seed}
        said = events(client.post("/api/generate", json=asked))
        found[run, seed] = [event["id"] for event in said if event["type"] == "token"]
        client.post("/api/attention" if run == "a" else "/api/states", json={"run": run, "text": "a rose"})

    threads = [threading.Thread(target=write, args=(run, seed)) for seed in range(6) for run in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run, arch in (("a", "gpt"), ("b", "lstm")):
        model, tokenizer = load(folders[arch])
        for seed in range(6):
            drawn = stream(model, [tokenizer.encode("a rose")], 25, Sampling(temperature=0.8), seed=seed, slide=True)
            assert found[run, seed] == [token for _, token in drawn]


class Caller:
    """One request, made by hand: what comes, and when its client leaves."""

    def __init__(self, app, path, body, send=None):
        self.events, self.left, self.parts = asyncio.Queue(), asyncio.Event(), 0
        content = json.dumps(body).encode()
        headers = [(b"host", b"127.0.0.1:8765"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers,
                 "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "http",
                 "root_path": "", "server": ("127.0.0.1", 8765), "client": ("127.0.0.1", 1)}  # fmt: skip
        told = False

        async def receive():
            nonlocal told
            if not told:
                told = True
                return {"type": "http.request", "body": content, "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        self.task = asyncio.ensure_future(app(scope, receive, send or self.events.put))

    async def event(self):
        message = await self.events.get()
        return message.get("body", b"") if message["type"] == "http.response.body" else message["status"]


class Counted:
    """A model's forward pass that counts its calls, and goes on only when it may."""

    def __init__(self, monkeypatch, model):
        self.calls, self.may = 0, threading.Semaphore(0)
        inner = model.forward

        def forward(*arguments):
            self.calls += 1
            assert self.may.acquire(timeout=60)
            return inner(*arguments)

        monkeypatch.setattr(model, "forward", forward)

    def let(self, count):
        for _ in range(count):
            self.may.release()


def in_a_loop(folders, check, **limits):
    """Run a check with an application whose runs are loaded, without a server."""

    async def run():
        runs = [Run(id_, str(folder), "last", "cpu") for id_, folder in zip("ab", folders, strict=False)]
        app, desk = create_app(runs, Door(host="127.0.0.1", port=8765), **limits)
        for one in runs:
            await asyncio.wrap_future(one.load(desk.worker))
        try:
            await check(app, desk)
        finally:
            desk.worker.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"run": "a", "prompt": "a", "tokens": 1000}),
        ("/v1/completions", {"model": "a", "prompt": "a", "max_tokens": 1000, "stream": True}),
        ("/v1/completions", {"model": "a", "prompt": "a", "max_tokens": 1000}),
    ],
)
def test_who_leaves_ends_what_is_written_for_them(folders, monkeypatch, path, body):
    """After the token that is being computed, and no later."""

    async def check(app, desk):
        model = Counted(monkeypatch, desk.runs[0].player.model)
        caller = Caller(app, path, body)
        model.let(3)
        while model.calls < 4:  # three tokens are out, the fourth is being computed
            await asyncio.sleep(0)
        caller.left.set()
        await caller.task
        model.let(1000)
        await desk.worker(int)  # all that was asked of the worker before is done
        assert model.calls == 4
        assert not desk.writing.places

    in_a_loop([folders["lstm"]], check)


def test_who_does_not_read_gives_the_turn_away(folders, monkeypatch):
    monkeypatch.setattr("scratchlm.serve.answers.STALLED", 0.01)

    async def check(app, desk):
        async def send(message):
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        await Caller(app, "/api/generate", {"run": "a", "prompt": "a", "tokens": 2}, send).task
        assert not desk.writing.places

    in_a_loop([folders["lstm"]], check)


def test_turns_are_kept_and_those_who_wait_are_told(folders, monkeypatch):
    """Two at once, two wait and hear how many are before them, the fifth is refused; nobody is lost."""

    async def check(app, desk):
        model = Counted(monkeypatch, desk.runs[0].player.model)
        body = {"run": "a", "prompt": "a", "tokens": 2}
        callers = [Caller(app, "/api/generate", {**body, "seed": seed}) for seed in range(4)]
        while len(desk.writing.places) < 4:
            await asyncio.sleep(0)
        assert [await caller.event() for caller in callers] == [200] * 4
        for before, caller in enumerate(callers[2:], 1):
            assert json.loads((await caller.event()).removeprefix(b"data: ")) == {"type": "waiting", "before": before}
        late = Caller(app, "/api/generate", body)
        assert await late.event() == 503
        assert json.loads(await late.event())["error"]["type"] == "busy"
        callers[3].left.set()  # one who waits leaves, and frees the place
        await callers[3].task
        assert len(desk.writing.places) == 3
        model.let(100)
        await asyncio.gather(*(caller.task for caller in callers[:3]))
        for caller in callers[:3]:
            said = []
            while not caller.events.empty():
                said.append(await caller.event())
            assert b'"type": "end"' in said[-2]
        assert not desk.writing.places

    in_a_loop([folders["lstm"]], check, concurrent=2, waiting=2)


def test_two_texts_take_turns_token_by_token(folders, monkeypatch):
    async def check(app, desk):
        order = []
        for run in desk.runs:
            inner = run.player.model.forward

            def forward(*arguments, inner=inner, id_=run.id):
                order.append(id_)
                return inner(*arguments)

            monkeypatch.setattr(run.player.model, "forward", forward)
        callers = [Caller(app, "/api/generate", {"run": id_, "prompt": "a", "tokens": 20}) for id_ in "ab"]
        await asyncio.gather(*(caller.task for caller in callers))
        assert sorted(order) == ["a"] * 20 + ["b"] * 20
        changes = sum(one != other for one, other in itertools.pairwise(order))
        assert changes >= 30  # whoever began first has some tokens alone

    in_a_loop([folders["lstm"], folders["gpt"]], check)


def test_turns():
    row = Turns(1, 1)
    first, second = row.enter(), row.enter()
    assert (first.before, second.before) == (0, 1)
    with pytest.raises(BusyError, match="2 are served or waiting"):
        row.enter()
    first.leave()
    first.leave()
    assert second.before == 0
    assert row.enter().before == 1


# --- looks -------------------------------------------------------------------------------------------------------


def test_pieces(ask, clients):
    text = "the sea \u20ac\n<|endoftext|>"
    found = ask("cnn", "pieces", text=text)
    tokenizer = subwords()
    assert [piece["id"] for piece in found["pieces"]] == tokenizer.encode(text)
    assert bytes(byte for piece in found["pieces"] for byte in piece["bytes"]) == text.encode()
    assert (found["bytes"], found["tokens"]) == (len(text.encode()), len(found["pieces"]))
    assert tokenizer.end_of_text not in [piece["id"] for piece in found["pieces"]]
    assert "\u21b5" in [piece["label"] for piece in found["pieces"]]
    assert ask("cnn", "pieces", text="") == {"pieces": [], "bytes": 0, "tokens": 0}
    assert [piece["text"] for piece in ask("transformer", "pieces", text="abca")["pieces"]] == list("abca")


def test_attention(ask, refused, folders):
    model, tokenizer = load(folders["gpt"])
    for text in ("the sea", TEXT):
        ids = tokenizer.encode(text)[-model.context :]
        found = ask("gpt", "attention", text=text)
        assert found["layers"] == described(attention_layers(model, ids))
        assert found["tokens"] == [character.replace(" ", "\u00b7") for character in text[-model.context :]]
        assert (found["source"], found["cut"]) == (None, len(text) > model.context)
    assert {layer["kind"] for layer in ask("backpack", "attention", text="the sea")["layers"]} == {"decoder", "senses"}
    assert "from a text and not from pairs" in refused("gpt", "attention", text="a", target="b")
    assert "has no attention" in refused("cnn", "attention", text="a")
    assert len(ask("gpt", "attention", text="")["tokens"]) == 1


def test_attention_between_source_and_target(ask, folders):
    model, tokenizer = load(folders["transformer"])
    end = tokenizer.end_of_text
    source, target = [*tokenizer.source.encode("abc"), end], [end, *tokenizer.target.encode("C B A")]
    found = ask("transformer", "attention", text="abc", target="C B A")
    assert found["layers"] == described(attention_layers(model, target, as_source([source], end)))
    assert (found["source"], found["tokens"]) == (["a", "b", "c", "<end>"], ["<end>", "C", "B", "A"])
    own = ask("transformer", "attention", text="abc")
    assert len(own["tokens"]) == 1 + len(decode(model, [source], end)[0][0].tokens)


def test_states(ask, refused, folders):
    model, tokenizer = load(folders["lstm"])
    found = ask("lstm", "states", text="the sea")
    assert [layer["name"] for layer in found["layers"]] == [
        f"layer {layer}, {vector}" for layer in (1, 2) for vector in ("hidden", "cell")
    ]
    assert (found["width"], found["units"], found["cut"]) == (16, list(range(16)), False)
    state = model.initial_state(1)
    with inference(model):
        for at, token in enumerate(tokenizer.encode("the sea")):
            _, state = model(torch.tensor([[token]]), state)
            for layer, vectors in enumerate(state.memories):
                for vector, expected in enumerate(vectors):
                    values = found["layers"][2 * layer + vector]["values"][at]
                    assert values == pytest.approx(expected[0].tolist(), abs=1e-3)
    long = ask("lstm", "states", text=TEXT)
    assert (len(long["tokens"]), len(long["layers"][0]["values"]), long["cut"]) == (128, 128, True)
    assert "has no states" in refused("gpt", "states", text="a")


def test_of_many_units_some_are_shown(tmp_path):
    with serving(make_run(tmp_path / "wide", "rnn", characters(), hidden_dim=300).path) as client:
        found = client.post("/api/states", json={"run": "a", "text": "the sea"}).json()
        assert (found["width"], len(found["units"]), found["units"][0], found["units"][-1]) == (300, 256, 0, 299)
        assert all(len(row) == 256 for layer in found["layers"] for row in layer["values"])


def test_the_field_of_a_cnn(ask, folders):
    model, tokenizer = load(folders["cnn"])
    config, ids = model.config, tokenizer.encode(TEXT)
    found = ask("cnn", "field", text=TEXT)
    reach = config.receptive_field
    assert (found["reach"], found["layers"][-1]["reach"]) == (reach, reach)
    assert [layer["dilation"] for layer in found["layers"]] == [1, 1, 2]
    assert found["influence"][:-reach] == [0] * (len(ids) - reach)
    assert all(value > 0 for value in found["influence"][-reach:])
    assert sum(found["influence"]) == pytest.approx(1, abs=1e-3)
    with inference(model):
        best = model.readout(model(torch.tensor([ids]))[0][0, -1])[: tokenizer.vocab_size].softmax(-1)
    assert found["next"][0]["id"] == best.argmax().item()
    assert found["next"][0]["probability"] == pytest.approx(best.max().item(), rel=1e-4)


def test_influence_is_there_for_others_too(ask):
    found = ask("gpt", "field", text=TEXT)
    assert (found["reach"], found["layers"], found["cut"], len(found["influence"])) == (16, [], True, 16)
    assert all(found["influence"])
    found = ask("bigram", "field", text="the sea")
    assert found["influence"] == [0, 0, 0, 0, 0, 0, 1]
    found = ask("transformer", "field", text="abc")
    assert (found["tokens"], len(found["influence"])) == (["a", "b", "c", "<end>"], 4)
    assert all(found["influence"])


def test_senses(ask, refused, folders):
    model, tokenizer = load(folders["backpack"])
    ids = tokenizer.encode("the sea is")
    lengths = tokenizer.token_lengths()
    ordinary = [token for token in range(tokenizer.vocab_size) if lengths[token]]
    found = ask("backpack", "senses", text="the sea is", position=1, top=5)
    (expected,) = look_up(model, [[ids[1]]], ordinary, 5)
    weights = contributions(model, ids, ordinary).weights
    assert (found["position"], len(found["tokens"]), found["ids"]) == (1, len(ids), ids)
    for number, (shown, sense) in enumerate(zip(found["senses"], expected, strict=True)):
        assert shown["sense"] == number
        assert [one["id"] for one in shown["up"]] == [token for token, _ in sense.up]
        assert [one["value"] for one in shown["down"]] == pytest.approx([value for _, value in sense.down], rel=1e-3)
        assert shown["spread"] == pytest.approx(sense.spread)
        assert shown["weights"] == pytest.approx(weights[:, number].tolist(), abs=1e-4)
    assert ask("backpack", "senses", text="the sea is")["position"] == len(ids) - 1
    assert "position is 9" in refused("backpack", "senses", text="the sea", position=9)
    assert "has no senses" in refused("gpt", "senses", text="a")


def test_a_slider_changes_the_next_token(ask, folders):
    model, tokenizer = load(folders["backpack"])
    ids = tokenizer.encode("the sea")
    nothing = ask("backpack", "steer", text="the sea", changes=[])
    assert nothing["before"] == nothing["after"]
    changes = [{"position": 0, "token": ids[0], "sense": 1, "scale": 8.0}]
    found = ask("backpack", "steer", text="the sea", changes=changes)
    assert found["before"] == nothing["before"]
    steered = steer(model, scales={(ids[0], 1): 8.0})
    with inference(steered):
        after = steered.readout(steered(torch.tensor([ids]))[0][0, -1])[: tokenizer.vocab_size].softmax(-1)
    for row in found["after"]:
        assert row["probability"] == pytest.approx(after[row["id"]].item(), rel=1e-3)
    assert {row["id"] for row in found["after"]} >= set(after.topk(20).indices.tolist())
    assert found["after"][: len(found["before"])] != found["before"]


def test_a_translation(ask, refused, folders):
    model, tokenizer = load(folders["transformer"])
    end = tokenizer.end_of_text
    source = [*tokenizer.source.encode("abcb"), end]
    hypotheses = decode(model, [source], end, beam=3, alternatives=2)[0]
    found = ask("transformer", "translate", text="abcb", beam=3, alternatives=2)
    assert found["source"] == ["a", "b", "c", "b", "<end>"]
    assert [target["score"] for target in found["targets"]] == pytest.approx([one.score for one in hypotheses])
    assert [target["text"] for target in found["targets"]] == [
        tokenizer.target.decode(one.tokens) for one in hypotheses
    ]
    assert {layer["kind"] for layer in found["layers"]} == {"cross"}
    weights = found["layers"][0]["heads"][0]["weights"]
    assert (len(weights), len(weights[0])) == (1 + len(hypotheses[0].tokens), 5)
    assert "ask for no more than the beam" in refused("transformer", "translate", text="a", beam=1, alternatives=2)
    assert "has no translate" in refused("gpt", "translate", text="a")


def test_a_model_that_reads_pairs_as_one_text(tmp_path):
    with serving(make_run(tmp_path / "run", "gpt", sides(), context=8).path) as client:

        def ask(path, **body):
            answer = client.post(f"/api/{path}", json={"run": "a", **body})
            return answer.status_code, answer.json()

        assert client.get("/api/runs").json()["runs"][0]["views"] == ["pieces", "influence", "attention", "translate"]
        status, found = ask("attention", text="abc", target="B A")
        assert (status, found["source"], found["tokens"]) == (200, None, ["a", "b", "c", "<end>", "B", "A"])
        status, found = ask("attention", text="abcabcabc")
        assert (status, found["cut"], found["tokens"][:7]) == (200, True, [*"abcabc", "<end>"])
        status, found = ask("field", text="abc")
        assert (status, found["tokens"]) == (200, ["a", "b", "c", "<end>"])
        status, found = ask("translate", text="abc")
        assert (status, found["layers"], len(found["targets"])) == (200, [], 3)
        status, found = ask("translate", text="abcabcabc")
        assert (status, "shorten it" in found["error"]["message"]) == (422, True)
        assert ask("generate", prompt="a")[0] == 422


def test_numbers_that_are_none_are_said_and_not_sent(tmp_path, monkeypatch):
    with serving(make_run(tmp_path / "wild", "lstm", characters()).path) as client:
        model = client.desk.runs[0].player.model
        readout = model.readout
        monkeypatch.setattr(model, "readout", lambda features: readout(features) * math.nan)
        answer = client.post("/api/field", json={"run": "a", "text": "the"})
        assert answer.status_code == 422
        assert "beyond what its type holds" in answer.json()["error"]["message"]
        for temperature in (0, 1):
            asked = {"run": "a", "prompt": "the", "tokens": 3, "temperature": temperature}
            said = events(client.post("/api/generate", json=asked))
            assert [event["type"] for event in said] == ["start", "error"]
            assert "Traceback" not in said[-1]["message"]


# --- runs that change --------------------------------------------------------------------------------------------


def test_a_run_that_is_still_training(tmp_path):
    """No checkpoint yet, then the first, then a newer one; its curve grows."""
    run = run_maker(tmp_path)()
    checkpoints = run.path / "checkpoints"
    away = checkpoints.rename(tmp_path / "away") if checkpoints.exists() else None
    with serving(run.path) as client:

        def described():
            return client.get("/api/runs").json()["runs"][0]

        assert (described()["status"], described()["views"], described()["step"]) == ("waiting", [], None)
        answer = client.post("/api/pieces", json={"run": "a", "text": "a"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (409, "not_ready")
        assert "no checkpoint yet" in answer.json()["error"]["message"]
        if away is not None:
            away.rename(checkpoints)
        trained = loop.train(run)
        while run.checkpoints()[-1:] == [] or run.checkpoints()[-1].step < 4:
            next(trained)
        assert described()["status"] in ("waiting", "loading", "ready")  # which has it loaded
        client.desk.runs[0].load(client.desk.worker).result()
        while (found := described())["training"] is False:
            next(trained)
        assert (found["status"], found["steps"]) == ("ready", 12)
        assert found["step"] >= 4
        assert "curve" in found["views"]
        assert " went up the hill, " in found["example"]
        early = client.get("/api/curve?run=a").json()
        assert early["training"]
        list(trained)
        assert described()["newest"] == 12
        assert client.post("/api/reload", json={"run": "a"}).json()["step"] == 12
        assert not described()["training"]
        assert described()["val_loss"] == run.metrics()[-1]["val_loss"]
        late = client.get("/api/curve", params={"run": "a", "after": early["lines"][-1]["step"]}).json()
        whole = client.get("/api/curve?run=a").json()
        assert early["lines"] + late["lines"] == whole["lines"]
        assert [line["step"] for line in whole["lines"]] == [line["step"] for line in run.metrics()]
        assert whole["best"]["val_loss"] == min(line["val_loss"] for line in run.metrics() if "val_loss" in line)
        assert (whole["steps"], whole["training"], whole["band"]) == (12, False, None)


def test_a_curve_has_the_band_that_is_expected_of_its_run(tmp_path, monkeypatch):
    run = run_maker(tmp_path)()
    run.save(4, build_model(run.config()).state_dict(), {}, {"best_step": None, "best_loss": None, "val_loss": None})
    settings = deciding(run.config(), json.loads((run.path / "config.json").read_text())["data_checksum"])
    losses = {1: {4: 3.0, 8: 2.0}, 2: {4: 3.4, 8: 2.0}}
    measured = Expected(preset="gpt/tiny", settings=settings, validation=losses, measured={})
    monkeypatch.setattr("scratchlm.training.expected.all_expected", lambda: {"gpt/tiny": measured})
    with serving(run.path) as client:
        band = client.get("/api/curve?run=a").json()["band"]
        assert band["step"] == [4, 8]
        assert band["low"] == pytest.approx([measured.band(4).low, measured.band(8).low])
        assert band["high"] == pytest.approx([measured.band(4).high, measured.band(8).high])


def test_a_curve_of_very_many_lines_is_thinned_and_has_only_numbers(tmp_path):
    run = make_run(tmp_path / "run", "bigram", characters())
    lines = [{"step": step, "loss": 1.0 if step % 7 else math.nan, "secret": 1} for step in range(5000)]
    lines[3]["val_loss"] = 2.0
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.path / "metrics.jsonl").write_text(text + '{"step": 5000, "lo')
    with serving(run.path) as client:
        found = client.get("/api/curve?run=a").json()
        steps = [line["step"] for line in found["lines"]]
        assert len(steps) <= 2002
        assert {0, 3, 4999} <= set(steps)
        assert {key for line in found["lines"] for key in line} == {"step", "loss", "val_loss"}


def test_a_run_that_cannot_be_loaded_says_why(tmp_path):
    good, bad = make_run(tmp_path / "good", "gpt", characters()), make_run(tmp_path / "bad", "gpt", characters())
    weights = next(bad.path.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    with serving(good.path, bad.path) as client:
        one, other = client.get("/api/runs").json()["runs"]
        assert (one["status"], other["status"]) == ("ready", "failed")
        assert "is damaged" in other["message"]
        answer = client.post("/api/generate", json={"run": "b", "prompt": "a"})
        assert answer.status_code == 409


def test_a_reload_that_fails_leaves_the_model_that_was_there(tmp_path):
    run = make_run(tmp_path / "run", "gpt", characters())
    with serving(run.path) as client:
        weights = next(run.path.rglob("model.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-8])
        answer = client.post("/api/reload", json={"run": "a"})
        assert answer.status_code == 422
        assert "damaged" in answer.json()["error"]["message"]
        assert client.get("/api/runs").json()["runs"][0]["status"] == "ready"
        assert events(client.post("/api/generate", json={"run": "a", "prompt": "a", "tokens": 2}))[-1]["type"] == "end"


def test_a_faulty_view_shows_no_traceback(clients, monkeypatch):
    client, run = clients["gpt"]
    monkeypatch.setattr("scratchlm.serve.views.pieces", lambda *_: 1 / 0)
    answer = client.post("/api/pieces", json={"run": run, "text": "a"})
    assert answer.status_code == 500
    assert answer.json() == {"error": {"message": "something went wrong here; the terminal says more", "type": "fault"}}
    assert "content-security-policy" in answer.headers


# --- what looks lean on ------------------------------------------------------------------------------------------


def test_influence_is_the_gradient(monkeypatch):
    """Token by token, also where a Backpack makes the senses of a repeated token once."""
    for arch in ("gpt", "llama", "rnn", "lstm", "gru", "cnn", "backpack"):
        torch.manual_seed(0)
        model = MODELS[arch](MODELS[arch].Config.tiny()).double().eval()
        tokens = [3, 1, 3, 3, 2, 1]
        found, logits = influence(model, tokens)
        if arch == "backpack":  # as if all tokens were different ones
            monkeypatch.setattr(
                "scratchlm.models.backpack.different", lambda ids: (ids.flatten(), torch.arange(ids.numel())[None])
            )
        embeddings = [
            part for part in model.modules()
            if isinstance(part, torch.nn.Embedding) and part.num_embeddings == model.config.vocab_size
        ]  # fmt: skip
        moved = torch.zeros(len(tokens), embeddings[0].embedding_dim, dtype=torch.float64, requires_grad=True)
        handles = [
            part.register_forward_hook(
                lambda module, inputs, output, moved=moved: output + moved.view_as(output) if output.numel() else output
            )
            for part in embeddings
        ]
        features, _ = model(torch.tensor([tokens]))
        (slopes,) = torch.autograd.grad(model.readout(features[0, -1]).log_softmax(-1).max(), moved)
        for handle in handles:
            handle.remove()
        assert logits.argmax() == model.readout(features[0, -1]).argmax()
        torch.testing.assert_close(found, slopes.norm(dim=-1) / slopes.norm(dim=-1).sum(), rtol=1e-9, atol=1e-12)


def test_only_recurrent_models_carry_states():
    for arch in MODELS:
        if arch != "transformer":
            model = MODELS[arch](MODELS[arch].Config.tiny())
            assert bool(carried_states(model, [1, 2])) == (arch in ("rnn", "lstm", "gru"))


def test_a_caller_of_stream_has_its_own_gradient_mode():
    """Between two tokens, and two streams that take turns do not end each other's."""
    model = MODELS["lstm"](MODELS["lstm"].Config.tiny())
    streams = [stream(model, [[1, 2]], 4, seed=seed) for seed in range(2)]
    expected = [generate(model, [[1, 2]], 4, seed=seed)[0][2:] for seed in range(2)]
    found = [[], []]
    for _ in range(4):
        for tokens, one in zip(found, streams, strict=True):
            tokens.append(next(one)[1])
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert not (torch.ones(1, requires_grad=True) * 2).is_inference()
    assert found == expected


def test_small_models_compute_on_one_core():
    try:
        torch.set_num_threads(2)
        few_threads(SMALL)
        assert torch.get_num_threads() == 2
        few_threads(SMALL - 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
