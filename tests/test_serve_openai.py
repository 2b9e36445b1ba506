"""OpenAI's own client against a server that listens: its plain and its streamed answers."""

import math
import socket
import threading

import openai
import pytest
import torch
import uvicorn

from playing import characters, make_run, sides
from scratchlm.checkpoint import load
from scratchlm.generation import generate, inference
from scratchlm.serve.app import create_app
from scratchlm.serve.guard import Door
from scratchlm.serve.runs import Run


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """This machine may be reached, and no other."""
    connect = socket.socket.connect

    def check(self, address, *rest):
        assert address[0] in ("127.0.0.1", "::1"), f"a test tried to reach {address}"
        return connect(self, address, *rest)

    monkeypatch.setattr(socket.socket, "connect", check)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai")
    return [
        make_run(folder / "gpt", "gpt", characters(), context=32).path,
        make_run(folder / "pairs", "transformer", sides()).path,
    ]


@pytest.fixture(scope="module")
def client(folders):
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    runs = [Run(id_, str(folder), "last", "cpu") for id_, folder in zip("ab", folders, strict=True)]
    app, desk = create_app(runs, Door(host="127.0.0.1", port=port, token="s3cret"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    for run in runs:
        run.load(desk.worker).result()
    made = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="s3cret", max_retries=0)
    yield made
    made.close()
    server.should_exit = True
    thread.join()
    desk.worker.close()


@pytest.fixture(scope="module")
def model(folders):
    return load(folders[0])


def test_models(client, folders):
    assert [model.id for model in client.models.list()] == [str(folder) for folder in folders]
    assert client.models.retrieve("a").id == str(folders[0])
    with pytest.raises(openai.NotFoundError, match="no run 'gpt-4'"):
        client.models.retrieve("gpt-4")


def test_a_completion(client, folders, model):
    network, tokenizer = model
    answer = client.completions.create(model=str(folders[0]), prompt="the sea", max_tokens=40, temperature=0.7, seed=3)
    assert (answer.object, answer.model) == ("text_completion", str(folders[0]))
    ids = tokenizer.encode("the sea")
    expected = next_tokens(network, [ids], 40, temperature=0.7, seed=3)[0]
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (tokenizer.decode(expected), "length", None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 40, 47)
    assert len(client.completions.create(model="a", prompt="the").choices[0].text) == 16


def next_tokens(network, prompts, tokens, **settings):
    from scratchlm.generation import Sampling, stream

    seed = settings.pop("seed")
    rows = [[] for _ in prompts]
    for row, token in stream(network, prompts, tokens, Sampling(**settings), seed=seed, slide=True):
        rows[row].append(token)
    return rows


def test_streamed_it_is_the_same(client):
    asked = {"model": "a", "prompt": "the sea", "max_tokens": 20, "seed": 5, "logprobs": 2}
    whole = client.completions.create(**asked)
    parts = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert len(parts) > 15
    *texts, last = parts
    assert (last.choices, last.usage) == ([], whole.usage)
    assert "".join(part.choices[0].text for part in texts) == whole.choices[0].text
    assert [part.choices[0].finish_reason for part in texts] == [None] * (len(texts) - 1) + ["length"]
    logprobs = [value for part in texts for value in part.choices[0].logprobs.token_logprobs]
    assert logprobs == whole.choices[0].logprobs.token_logprobs


def test_several_prompts_and_several_texts(client, model):
    network, tokenizer = model
    prompts = ["the sea", "a rose", "t"]
    answer = client.completions.create(model="a", prompt=prompts, n=2, max_tokens=10, seed=1)
    rows = [tokenizer.encode(prompt) for prompt in prompts for _ in range(2)]
    expected = next_tokens(network, rows, 10, temperature=1.0, seed=1)
    assert [choice.text for choice in answer.choices] == [tokenizer.decode(row) for row in expected]
    assert [choice.index for choice in answer.choices] == list(range(6))
    streamed = [""] * 6
    for part in client.completions.create(model="a", prompt=prompts, n=2, max_tokens=10, seed=1, stream=True):
        streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == [choice.text for choice in answer.choices]
    with pytest.raises(openai.UnprocessableEntityError, match="9 texts"):
        client.completions.create(model="a", prompt=prompts, n=3)


def test_a_stop_string_ends_a_text(client):
    asked = {"model": "a", "prompt": "the sea", "max_tokens": 60, "seed": 2, "logprobs": 0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[20:23]
    for stops in (stop, ["~~", stop]):
        (choice,) = client.completions.create(**asked, stop=stops).choices
        assert choice.text == text[: text.index(stop)]
        assert choice.finish_reason == "stop"
        assert "".join(choice.logprobs.tokens) == choice.text
        streamed = list(client.completions.create(**asked, stop=stops, stream=True))
        assert "".join(part.choices[0].text for part in streamed) == choice.text
        assert streamed[-1].choices[0].finish_reason == "stop"


def test_logprobs_and_echo(client, model):
    network, tokenizer = model
    asked = {"model": "a", "prompt": "the sea", "max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 3}
    (choice,) = client.completions.create(**asked).choices
    ids = generate(network, [tokenizer.encode("the sea")], 4, temperature=0)[0]
    assert choice.text == tokenizer.decode(ids)
    with inference(network):
        expected = network.readout(network(torch.tensor([ids]))[0][0]).log_softmax(-1)
    found = choice.logprobs
    assert found.tokens == [tokenizer.decode([token]) for token in ids]
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    for at in range(1, len(ids)):
        assert found.token_logprobs[at] == pytest.approx(expected[at - 1, ids[at]].item(), abs=1e-4)
        values, best = expected[at - 1].topk(3)
        assert found.top_logprobs[at] == pytest.approx(
            {tokenizer.decode([token]): value for token, value in zip(best.tolist(), values.tolist(), strict=True)},
            abs=1e-4,
        )
    assert found.text_offset == list(range(len(ids)))
    (scored,) = client.completions.create(**{**asked, "max_tokens": 0}).choices
    assert scored.text == "the sea"
    assert scored.logprobs.token_logprobs == pytest.approx([None, *found.token_logprobs[1:7]], abs=1e-4)


def test_without_a_seed_texts_differ(client):
    texts = {client.completions.create(model="a", prompt="the sea", max_tokens=20).choices[0].text for _ in range(3)}
    assert len(texts) > 1


def test_errors_are_openais(client, folders):
    with pytest.raises(openai.NotFoundError) as found:
        client.completions.create(model="nothing", prompt="a")
    assert found.value.body == {
        "message": "there is no run 'nothing'; choose from: a, b", "type": "invalid_request_error", "param": None,
        "code": "not_found",
    }  # fmt: skip
    for wrong in (
        {"temperature": -1}, {"temperature": math.inf}, {"n": 0}, {"logprobs": 21}, {"max_tokens": 1001}, {"seed": -1},
        {"stop": ""}, {"best_of": 2}, {"extra_body": {"unknown": 1}}, {"prompt": [1, 2]}, {"prompt": "\u20ac"},
        {"prompt": ["a"] * 9}, {"top_p": 0},
    ):  # fmt: skip
        asked = {"model": "a", "prompt": "a", **wrong}
        with pytest.raises((openai.UnprocessableEntityError, ValueError)):
            client.completions.create(**asked)
    with pytest.raises(openai.UnprocessableEntityError, match="has no generate"):
        client.completions.create(model=str(folders[1]), prompt="a")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
