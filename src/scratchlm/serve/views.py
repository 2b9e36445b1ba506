"""Looks into a loaded run: attention, states, influence, senses, translations. Each gives JSON as bytes.

Letters in shapes: T tokens, D units, L senses, V vocabulary.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scratchlm.errors import InputError
from scratchlm.generation import inference
from scratchlm.inspect.attention import attention_layers, described
from scratchlm.inspect.influence import influence
from scratchlm.inspect.senses import contributions, pushed, word_senses
from scratchlm.inspect.states import carried_states
from scratchlm.model import LanguageModel
from scratchlm.serve.player import Player, as_json
from scratchlm.serve.wire import AskedAttention, AskedSenses, AskedSteer, AskedText, AskedTranslate
from scratchlm.translation import as_source, decode, encode_source, source_limit

LONGEST = 128  # tokens of a text that is looked at
LONGEST_FIELD = 512  # a receptive field has hundreds
MOST_WEIGHTS = 3_000_000  # of all heads, about 24 MB of JSON
MOST_UNITS = 256  # of a vector that are shown
NEXT = 20  # most probable next tokens


def _last(player: Player, ids: list[int], longest: int) -> tuple[list[int], bool]:
    """The end of a text that the model reads at once, and whether that is less than all of it."""
    limit = source_limit(player.model) if player.pairs else player.model.context
    kept = ids[-min(longest, limit or longest) :]
    return kept, len(kept) < len(ids)


def _next(player: Player, logits: Tensor, count: int = NEXT) -> list[dict[str, Any]]:
    """The most probable next tokens. Shapes: logits (V,)."""
    return player.top(logits[: player.tokenizer.vocab_size].double().softmax(-1), count)


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _target(player: Player, source: list[int], target: str | None) -> list[int]:
    """What a model of pairs has written after a source: the target that was given, or its own."""
    assert player.end is not None
    if target is not None:
        return player.tokenizer.target.encode(target)
    return decode(player.model, [source], player.end)[0][0].tokens


def pieces(player: Player, asked: AskedText) -> bytes:
    """What the tokenizer makes of a text."""
    ids = player.tokenizer.source.encode(asked.text) if player.pairs else player.tokenizer.encode(asked.text)
    return as_json({"pieces": [*map(player.piece, ids)], "bytes": len(asked.text.encode()), "tokens": len(ids)})


def attention(player: Player, asked: AskedAttention) -> bytes:
    """What each token looks at, in every layer and head."""
    player.expect("attention")
    model, config = player.model, player.model.config
    heads = len(model.blocks) * getattr(config, "heads", 1) * (3 if model.takes_source else 1)
    heads += getattr(config, "senses", 0)
    longest = min(LONGEST, max(1, math.isqrt(MOST_WEIGHTS // heads)))
    ids, cut = _last(player, player.read(asked.text), longest)
    source: list[int] | None = None
    if player.pairs:
        written = _target(player, ids, asked.target)
        source, ids = (ids, [ids[-1], *written]) if model.takes_source else (None, [*ids, *written])
        limit = min(longest, model.context or longest)
        ids, cut = ids[:limit], cut or len(ids) > limit
    elif asked.target is not None:
        raise InputError("this run learned from a text and not from pairs; leave the target out")
    layers = attention_layers(model, ids, None if source is None else as_source([source], source[-1]))
    return as_json(
        {
            "tokens": player.labels(ids),
            "source": None if source is None else player.labels(source),
            "cut": cut,
            "layers": described(layers),
        }
    )


def states(player: Player, asked: AskedText) -> bytes:
    """What a recurrent model carries after each token."""
    player.expect("states")
    ids, cut = _last(player, player.read(asked.text), LONGEST)
    layers = carried_states(player.model, ids)
    width = layers[0].values.shape[1]
    units = sorted({round(unit) for unit in torch.linspace(0, width - 1, min(width, MOST_UNITS)).tolist()})
    shown = [
        {"name": layer.name, "values": [_rounded(row) for row in layer.values[:, units].tolist()]} for layer in layers
    ]
    return as_json({"tokens": player.labels(ids), "layers": shown, "width": width, "units": units, "cut": cut})


def field(player: Player, asked: AskedText) -> bytes:
    """How much each token has to do with the next one, and how far the model reaches."""
    player.expect("influence")
    model, config = player.model, player.model.config
    ids, cut = _last(player, player.read(asked.text), LONGEST_FIELD)
    read, source = ids, None
    if model.takes_source:
        read, source = [ids[-1]], as_source([ids], ids[-1])
    by_token, logits = influence(model, read, source, player.tokenizer.vocab_size)
    convolutions, reach = [], 1
    for index in range(config.depth) if "field" in player.views else ():
        reach += config.convolutions * (config.kernel - 1) * config.dilation(index)
        block = {"name": f"block {index + 1}", "width": config.kernel, "dilation": config.dilation(index)}
        convolutions.append({**block, "reach": reach})
    return as_json(
        {
            "tokens": player.labels(ids),
            "reach": getattr(config, "receptive_field", model.context),
            "influence": _rounded(by_token.tolist()),
            "layers": convolutions,
            "next": _next(player, logits, 10),
            "cut": cut,
        }
    )


def senses(player: Player, asked: AskedSenses) -> bytes:
    """What the senses of a token push, and how much of each goes into the prediction after the last token."""
    player.expect("senses")
    ids, cut = _last(player, player.read(asked.text), LONGEST)
    at = len(ids) - 1 if asked.position is None else asked.position
    if at >= len(ids):
        raise InputError(f"position is {at}, and {len(ids)} tokens are read; it must be from 0 to {len(ids) - 1}")
    vectors = word_senses(player.model, [[ids[at]]])[0]  # (L, D)
    found = pushed(player.model, vectors, player.ordinary, asked.top)
    weights = contributions(player.model, ids, player.ordinary).weights  # (T, L)

    def ranked(ranking: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        names = player.labels([token for token, _ in ranking])
        return [
            {"id": token, "label": name, "value": float(f"{value:.4g}")}
            for name, (token, value) in zip(names, ranking, strict=True)
        ]

    shown = [
        {"sense": sense, "up": ranked(up), "down": ranked(down), "spread": spread, "weights": _rounded(column)}
        for sense, (up, down, spread, column) in enumerate(zip(*found, weights.T.tolist(), strict=True))
    ]
    after = _next(player, _after(player.model, ids))
    labels = player.labels(ids)
    return as_json({"tokens": labels, "ids": ids, "position": at, "senses": shown, "next": after, "cut": cut})


def _after(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """The logits of what comes after these tokens. Shapes: -> (V,)."""
    with inference(model):
        tokens = torch.tensor([ids], device=next(model.parameters()).device)
        # through a memory, as a model that is steered reads, so that what changes nothing changes not a bit
        return model.readout(model(tokens, model.initial_state(1))[0][0, -1])


def steer(player: Player, asked: AskedSteer) -> bytes:
    """The most probable next tokens before and after some senses are changed."""
    player.expect("senses")
    ids, _ = _last(player, player.read(asked.text), LONGEST)
    began = time.perf_counter()
    model, size = player.changed(asked.changes), player.tokenizer.vocab_size
    before, after = (_after(one, ids)[:size].double().softmax(-1).cpu() for one in (player.model, model))
    milliseconds = 1000 * (time.perf_counter() - began)
    shown = before.topk(min(NEXT, size)).indices.tolist()
    added = [token for token in after.topk(min(NEXT, size)).indices.tolist() if token not in shown]

    def rows(probabilities: Tensor, tokens: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {"id": token, "label": label, "probability": probabilities[token].item()}
            for token, label in zip(tokens, player.labels(tokens), strict=True)
        ]

    return as_json(
        {"before": rows(before, shown), "after": rows(after, [*shown, *added]), "milliseconds": milliseconds}
    )


def translate(player: Player, asked: AskedTranslate) -> bytes:
    """The best targets of a source, and what the best one looks at in it."""
    player.expect("translate")
    assert player.end is not None
    if asked.alternatives > asked.beam:
        raise InputError(f"alternatives is {asked.alternatives} and beam {asked.beam}; ask for no more than the beam")
    source = encode_source(asked.text.strip(), player.model, player.tokenizer)
    options = {"beam": asked.beam, "alternatives": asked.alternatives}
    found = decode(player.model, [source], player.end, **options)[0]
    layers: list[dict[str, Any]] = []
    if player.model.takes_source:
        read = [player.end, *(found[0].tokens if found else [])]
        weights = attention_layers(player.model, read, as_source([source], player.end))
        layers = described([layer for layer in weights if layer.kind == "cross"])
    targets = [
        {
            "text": player.tokenizer.target.decode(one.tokens),
            "labels": player.labels(one.tokens),
            "score": one.score,
            "log_probability": one.log_probability,
        }
        for one in found
    ]
    return as_json({"source": player.labels(source), "targets": targets, "layers": layers})
