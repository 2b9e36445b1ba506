"""Interventions on a Backpack's senses: some scaled, some replaced, a text turned towards a topic.

An intervention is itself a model: generator, evaluator and command line know nothing of it. It changes how much a sense
counts, or what it is, and never alpha, which is what the model read; nothing is normalised again. So logits change by
exactly what the changed senses push, which is a sum.

Paper: Hewitt et al. 2023; where the code that was released with it differs, the code decides.

    paper                                                                  here
    o_i = sum_j sum_l alpha[l, i, j] delta[l, i, j] C(x_j)_l (equation 15) Steered
    a word's senses without one association, with another (table 6)        swapped_senses
    senses that push a bag of words, in four groups by quantiles           topic_scores, Topic.at
    delta falls as a sense's words are said (equations 19 and 20)          Topic, Steered._annealed

Departures: the released code anneals every position by the text up to the last one, so that what a position says would
depend on what comes after it; here each goes by the text up to itself. Tokens that are left out of a topic (the end of
a text, rows that stand for no token) are not among the scores whose quantiles are taken; there they are, as zeros.

Letters in shapes: B batch, T new tokens, S visible tokens, D dim, L senses, G width inside the senses' last layer,
V vocabulary, N tokens whose senses are replaced, U tokens of a chunk.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from scratchlm.generation import inference
from scratchlm.model import LanguageModel, Source, State
from scratchlm.models.backpack import Backpack, BackpackState

QUANTILES = (0.60, 0.80, 0.95)  # of all scores, which part senses into four groups
FACTORS = (  # delta of each group at each strength, the lowest scores first
    (1.0, 1.0, 1.0, 1.0),
    (1.0, 1.3, 1.5, 1.5),
    (1.0, 1.5, 2.2, 2.2),
    (1.0, 3.0, 3.3, 3.3),
)
LARGEST = 1e30  # a factor with which logits are finite in float32
CHUNK = 1 << 24  # numbers that scoring holds at once: 64 MB in float32


def _with_senses(model: LanguageModel) -> Backpack:
    if not model.has_senses:
        raise ValueError(
            f"{type(model).__name__} has no senses to steer; give a Backpack, and all interventions in one call"
        )
    return cast(Backpack, model)


def _check_tokens(model: LanguageModel, tokens: Iterable[int]) -> None:
    for token in tokens:
        if not 0 <= token < model.config.vocab_size:
            raise ValueError(f"no token has the id {token}; the model knows 0 to {model.config.vocab_size - 1}")


@dataclass(frozen=True, eq=False)
class Topic:
    """A topic at one strength: factors of senses as long as nothing of them was said, and how fast they fall to 1 then.

    Shapes: factors (V, L).
    """

    factors: Tensor
    sharpness: float

    @classmethod
    def at(cls, scores: Tensor, strength: int) -> "Topic":
        """The topic whose `topic_scores` these are. Strength 0 changes nothing, 3 is the strongest of the paper's.

        A score on a threshold belongs to the group below it. c = max(delta) / 7.5, as the code has it; equation 19
        prints the inverse, with which nothing would be turned.
        Shapes: scores (V, L). Raises ValueError for a strength that is not 0, 1, 2 or 3.
        """
        if not isinstance(strength, int) or strength not in range(len(FACTORS)):
            raise ValueError(f"the strength is {strength}; choose 0, 1, 2 or 3")
        known = scores[scores.isfinite()]
        if not len(known):
            raise ValueError("every token is left out of the topic; leave some in")
        thresholds = known.quantile(scores.new_tensor(QUANTILES))
        factors = scores.new_tensor(FACTORS[strength])
        return cls(factors[torch.bucketize(scores, thresholds)], max(FACTORS[strength]) / 7.5)


def topic_scores(model: LanguageModel, words: Iterable[int], left_out: Sequence[int] = ()) -> Tensor:
    """How much each sense of each token pushes a topic's tokens, of how much it pushes what it pushes most.

    sum_{v in words} E_v C(x)_l / max_v E_v C(x)_l; 0 for a sense that pushes nothing up, and minus infinity for tokens
    `left_out`, such as the end of a text.
    Shapes: -> (V, L). Raises ValueError for an unknown token, for no words, and for a model without senses.
    """
    backpack, wanted = _with_senses(model), sorted(set(words))
    if not wanted:
        raise ValueError("the topic has no words; give at least one token")
    _check_tokens(model, [*wanted, *left_out])
    vocab_size, senses = backpack.config.vocab_size, backpack.config.senses
    device = backpack.trunk.token_embedding.weight.device
    scores: list[Tensor] = []
    with inference(backpack):
        # all products, V * L * V numbers, are never there at once
        for tokens in torch.arange(vocab_size, device=device).split(max(1, CHUNK // (senses * vocab_size))):
            pushes = backpack.readout(backpack.senses(tokens))  # (U, L, V)
            most = pushes.amax(-1)
            scores.append(torch.where(most > 0, pushes[..., wanted].sum(-1) / most, 0.0))
        every = torch.cat(scores)
        every[list(left_out)] = -math.inf
    every = every.clone()  # which autograd may keep
    return every if every.dtype == torch.float64 else every.float()  # quantiles want no less


def swapped_senses(model: LanguageModel, token: int, old: int, new: int) -> Tensor:
    """The senses of `token`, with what they say of `old` said of `new` instead.

    C~_l = C_l + (C_l E_old / |E_old|^2) (E_new / phi - E_old), phi = |E_new|^2 / |E_old|^2: the part along the old
    token's embedding is projected out, and as much put along the new one's. The paper prints |C(old)_l|^2 as the
    denominator; |E_old|^2 is the code's, and makes it a projection.
    Shapes: -> (L, D). Raises ValueError for an unknown token, and for a model without senses.
    """
    backpack = _with_senses(model)
    _check_tokens(model, (token, old, new))
    embedding = backpack.trunk.token_embedding
    tokens = torch.tensor([token, old, new], device=embedding.weight.device)
    with inference(backpack):
        senses, (out, into) = backpack.senses(tokens[0]), embedding(tokens[1:])  # (L, D), (D,) twice
        amount = senses @ out / out.square().sum()  # (L,)
        swapped = senses + amount[:, None] * (into * out.square().sum() / into.square().sum() - out)
    return swapped.clone()  # which autograd may keep


@dataclass(eq=False)
class SteeredState(State):
    """The Backpack's memory; ids so far (B, S); where there is a topic, how much of each sense was said (B, L, S)."""

    inner: BackpackState
    ids: Tensor
    said: Tensor


class Steered(LanguageModel):
    """A Backpack whose weights it shares, with factors on its senses, some of them replaced, and a topic.

    It has no `senses` of its own: under a topic they depend on the text.
    """

    StateType = SteeredState

    factors: Tensor  # (V, L)
    replaced: Tensor  # (N,)
    replacements: Tensor  # (N, L, D)
    topic_factors: Tensor  # (V, L)

    def __init__(self, model: Backpack, factors: Tensor, senses: Mapping[int, Tensor], topic: Topic | None) -> None:
        super().__init__()
        self.model, self.config, self.context = model, model.config, model.context
        self.sharpness = None if topic is None else topic.sharpness
        embedding = model.trunk.token_embedding.weight
        shape = len(senses), model.config.senses, model.config.dim
        replacements = torch.stack(list(senses.values())) if senses else embedding.new_empty(shape)
        for name, tensor in (
            ("factors", factors.to(embedding)),
            ("replaced", torch.tensor(list(senses), dtype=torch.int64, device=embedding.device)),
            ("replacements", replacements.to(embedding)),
            ("topic_factors", (factors.new_empty(0) if topic is None else topic.factors).to(embedding)),
        ):
            if name != "replaced" and not tensor.isfinite().all():
                raise ValueError(f"{name} have numbers beyond what {embedding.dtype} holds; give smaller ones")
            self.register_buffer(name, tensor, persistent=False)
        self.train(model.training)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The Backpack's."""
        return self.model.blocks

    def initial_state(self, batch_size: int, capacity: int | None = None, source: Source | None = None) -> SteeredState:
        inner = self.model.initial_state(batch_size, capacity, source)
        ids = inner.senses.keys.new_zeros(batch_size, 0, dtype=torch.int64)
        said = inner.senses.keys.new_zeros(batch_size, self.config.senses, 0)
        return SteeredState(length=0, inner=inner, ids=ids, said=said)

    def forward(self, tokens: Tensor, state: SteeredState | None = None) -> tuple[Tensor, SteeredState | None]:
        at = self.position(tokens, state)
        before = self.initial_state(len(tokens)) if state is None else state
        if before.said.shape[2] != (0 if self.sharpness is None else at):
            raise ValueError("the state is of another intervention than this one; start one with initial_state()")
        alpha, inside, inner = self.model.read(tokens, before.inner)
        ids = torch.cat([before.ids, tokens], 1)  # (B, S)
        weights, said = alpha * self.factors[ids].mT[:, :, None], before.said  # (B, L, T, S)
        if self.sharpness is not None:
            delta, said = self._annealed(tokens, ids, said, inside)
            weights = weights * delta
        replaced = (ids[..., None] == self.replaced).to(weights.dtype)  # (B, S, N)
        kept = 1 - replaced.sum(-1)[:, None, None]  # (B, 1, 1, S)
        features = self.model.sense_network.mix(weights * kept, inside)
        features = features + torch.einsum("bltn,nld->btd", weights @ replaced[:, None], self.replacements)
        after = SteeredState(length=at + tokens.shape[1], inner=inner, ids=ids, said=said)
        return features, None if state is None else after

    def readout(self, features: Tensor) -> Tensor:
        return self.model.readout(features)

    def _annealed(self, tokens: Tensor, ids: Tensor, said: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """The factor of each sense of each visible token at each new one, and how much of each is said after them.

        With j from 0 and i over the whole text so far, the tokens before j and j itself too:
        a[j, l] = sum_i max(E_{x_i} C(x_j)_l, 0); w = sigmoid(6 - c a) (1 + j / 100); delta = 1 + w (delta_0 - 1).
        Equation 19 prints (1 + j) / 100 and 7.5 / max(delta), equation 20 has a in place of w; these constants are the
        code's. A state that starts anew, as where a text slides, has said nothing yet.
        Shapes: tokens (B, T), ids (B, S), said (B, L, S - T), inside (B, 1, S, G) -> (B, L, T, S), (B, L, S).
        """
        embedding, last = self.model.trunk.token_embedding, self.model.sense_network.senses_mlp.output
        older, new = embedding(ids[:, : said.shape[2]]), embedding(tokens)
        # new senses by older tokens: the senses are made, since they are few
        by_older = torch.einsum("btld,bsd->blts", self.model.senses(tokens), older).relu().sum(-1)  # (B, L, T)
        # all senses by new tokens: the tokens go through the last matrix, since the senses are many
        matrix, bias = (parameter.unflatten(0, (self.config.senses, -1)) for parameter in (last.weight, last.bias))
        through = torch.einsum("btd,ldg->bltg", new, matrix)
        # one product of three axes: of four, it would copy the memory for each sense
        by_new = (through.flatten(1, 2) @ inside.squeeze(1).mT).unflatten(1, through.shape[1:3])
        by_new = (by_new + (new @ bias.mT).mT[..., None]).relu()  # (B, L, T, S)
        said = torch.cat([said, by_older], 2)  # (B, L, S)
        so_far = said[:, :, None] + by_new.cumsum(2)
        position = torch.arange(ids.shape[1], device=ids.device, dtype=so_far.dtype)
        weight = torch.sigmoid(6 - self.sharpness * so_far) * (1 + position / 100)
        return 1 + weight * (self.topic_factors[ids].mT[:, :, None] - 1), said + by_new.sum(2)


def steer(
    model: LanguageModel,
    *,
    scales: Mapping[tuple[int, int], float] | None = None,
    senses: Mapping[int, Tensor] | None = None,
    topic: Topic | None = None,
) -> Steered:
    """The model with some senses scaled, {(token, sense): factor}, some tokens' senses replaced, and a topic.

    A factor also multiplies a sense that was replaced. A topic goes by the senses that the model has itself.
    Shapes: senses (L, D) of each token. Paper: equation 15.
    Raises ValueError for a model without senses, an unknown token or sense, what is not finite or of another shape.
    """
    backpack, scales, senses = _with_senses(model), scales or {}, senses or {}
    config = backpack.config
    _check_tokens(model, [*(token for token, _ in scales), *senses])
    factors = torch.ones(config.vocab_size, config.senses, dtype=torch.float64)
    for (token, sense), factor in scales.items():
        if not 0 <= sense < config.senses:
            raise ValueError(f"a token has no sense {sense}; the model's senses are 0 to {config.senses - 1}")
        if not abs(factor) <= LARGEST:
            raise ValueError(
                f"the factor of sense {sense} is {factor}; give a finite number up to {LARGEST:g}, such as 0 or 2.5"
            )
        factors[token, sense] = factor
    for token, tensor in senses.items():
        if tensor.shape != (config.senses, config.dim) or not tensor.isfinite().all():
            raise ValueError(
                f"the senses of token {token} have shape {tuple(tensor.shape)}, or are no numbers; "
                f"give finite ones of ({config.senses}, {config.dim})"
            )
    if topic is not None and topic.factors.shape != factors.shape:
        raise ValueError(
            f"the topic is of a model whose tokens and senses are {tuple(topic.factors.shape)}, this one's are "
            f"{tuple(factors.shape)}; make one out of this model's topic_scores"
        )
    return Steered(backpack, factors, senses, topic)
