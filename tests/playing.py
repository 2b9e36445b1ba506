"""Runs to play with, made in milliseconds: random weights, large enough that probabilities differ."""

import dataclasses
import json
from contextlib import contextmanager

import torch
from fastapi.testclient import TestClient

from scratchlm.checkpoint import RunFolder, build_model
from scratchlm.config import make_config
from scratchlm.models import MODELS
from scratchlm.serve.app import create_app
from scratchlm.serve.guard import Door
from scratchlm.serve.runs import Run
from scratchlm.tokenizers import BPETokenizer, CharacterTokenizer, PairTokenizer, SymbolTokenizer

ORIGIN = "http://127.0.0.1:8765"
TEXT = "a rose is a rose, and the sea is wide; the ship sails on the sea at night. " * 3


def characters():
    return CharacterTokenizer.train([TEXT])


def subwords():
    return BPETokenizer.train([TEXT], vocab_size=270)


def sides():
    return PairTokenizer(CharacterTokenizer.train(["abc"]), SymbolTokenizer.train(["A B C"]))


def make_run(folder, arch, tokenizer, seed=0, **shape):
    """A run of random weights at step 0, as an imported one is."""
    tiny = dataclasses.asdict(MODELS[arch].Config.tiny())
    model = {**tiny, **shape, "vocab_size": tokenizer.vocab_size}
    config = make_config({"arch": arch, "model": model, "pairs": isinstance(tokenizer, PairTokenizer)})
    torch.manual_seed(seed)
    weights = build_model(config).state_dict()
    for name, weight in weights.items():
        if weight.dim() > 1 and "norm" not in name:
            weight.mul_(3)
    return RunFolder.create(folder, config, tokenizer, weights, {})


@contextmanager
def serving(*folders, token=None, host="127.0.0.1", checkpoint="last", **limits):
    """A client of these runs, once they are loaded, and what its requests share."""
    runs = [Run(id_, str(folder), checkpoint, "cpu") for id_, folder in zip("ab", folders, strict=False)]
    app, desk = create_app(runs, Door(host=host, port=8765, token=token), **limits)
    with TestClient(app, base_url=ORIGIN, raise_server_exceptions=False) as client:
        for run in runs:
            run.load(desk.worker).result()
        client.desk = desk
        yield client
    desk.worker.close()


def events(answer):
    """What a stream of server-sent events says."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    parts = answer.content.decode().split("\n\n")
    assert parts.pop() == ""
    return [json.loads(part.removeprefix("data: ")) for part in parts]
