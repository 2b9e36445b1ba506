"""Interventions are models like any other, and change logits by exactly what the changed senses push."""

import math

import pytest
import torch

import contract
from scratchlm import steering
from scratchlm.generation import generate
from scratchlm.model import State, record
from scratchlm.models.backpack import Backpack, BackpackConfig, SenseNetwork
from scratchlm.models.gpt import GPT, GPTConfig
from scratchlm.steering import Steered, SteeredState, Topic, steer, swapped_senses, topic_scores

BAG, END = (3, 7, 11), 0
TOKENS = contract.tokens_for(Backpack(BackpackConfig.tiny()))


def backpack():
    """A Backpack whose senses say enough that a topic anneals within a few tokens."""
    torch.manual_seed(1)
    model = Backpack(BackpackConfig.tiny()).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def scaled(model):
    return steer(model, scales={(5, 0): 0.0, (5, 3): 2.5, (9, 1): -1.0, **{(t, 2): 1.5 for t in range(12)}})


def replaced(model):
    return steer(model, senses={5: swapped_senses(model, 5, 3, 7), 9: swapped_senses(model, 9, 11, 2)})


def turned(model, strength=3):
    return steer(model, topic=Topic.at(topic_scores(model, BAG, [END]), strength))


def everything(model):
    senses = {token: swapped_senses(model, token, 3, 7) for token in (1, 4, 5, 20)}
    topic = Topic.at(topic_scores(model, BAG, [END]), 2)
    return steer(model, scales={(5, 0): 0.5, (8, 3): 3.0}, senses=senses, topic=topic)


INTERVENTIONS = {function.__name__: function for function in (scaled, replaced, turned, everything)}


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model.readout(model(tokens)[0])


def alpha_of(model, tokens=TOKENS):
    with torch.no_grad(), record(model) as shown:
        model(tokens)
    return next(weights for name, [weights] in shown.items() if name.endswith("contextualisation.weights"))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# An intervention is a model


@pytest.mark.parametrize("check", contract.CHECKS)
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_contract(name, check):
    contract.CHECKS[check](lambda: INTERVENTIONS[name](backpack()))


def test_using_it_leaves_the_backpack_in_its_mode():
    """A steered model was made in training mode, and turned the dropout of the one inside it on when it was used."""
    model = backpack()
    generate(scaled(model), [[1, 2]], 3)
    assert not any(module.training for module in model.modules())
    steered = scaled(model.train())
    model.eval()
    generate(steered, [[1, 2]], 3)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_topic_of_a_narrow_model(dtype):
    model = Backpack(BackpackConfig.tiny()).to(dtype).eval()
    steered = steer(model, topic=Topic.at(topic_scores(model, BAG), 3))
    assert logits(steered).isfinite().all()
    with pytest.raises(ValueError, match="factors have numbers beyond"):
        steer(model.half(), scales={(3, 1): 1e10})


def test_it_shares_its_weights():
    model = backpack()
    steered = everything(model)
    assert {id(parameter) for parameter in steered.parameters()} == {id(parameter) for parameter in model.parameters()}
    before = logits(steered)
    with torch.no_grad():
        model.trunk.position_embedding.weight *= 2
    assert not torch.allclose(logits(steered), before)
    assert steered.config is model.config
    assert steered.context == model.context
    assert steered.blocks is model.blocks


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_alpha_is_the_unsteered_models(name):
    model = backpack()
    assert torch.equal(alpha_of(INTERVENTIONS[name](model)), alpha_of(model))


@pytest.mark.parametrize(
    "nothing",
    [
        steer,
        lambda model: turned(model, 0),
        lambda model: steer(model, scales={(token, 1): 1.0 for token in range(23)}),
        lambda model: steer(model, senses={22: torch.ones(4, 16)}),  # which occurs nowhere
    ],
)
def test_an_intervention_that_changes_nothing_is_the_model_to_the_bit(nothing):
    model = backpack()
    steered, tokens = nothing(model), TOKENS.clamp(max=21)
    with torch.no_grad():
        expected = model(tokens, model.initial_state(len(tokens)))[0]
        assert torch.equal(steered(tokens, steered.initial_state(len(tokens)))[0], expected)
    prompts = [[1, 2, 3], [4]]
    if len(steered.replaced) == 0:
        assert generate(steered, prompts, 12, seed=3) == generate(model, prompts, 12, seed=3)


# What changes, written out


def written_out(model, tokens, factors, senses, topic):
    """Equations 15, 19 and 20 with the released code's constants, one number at a time."""
    alpha = alpha_of(model, tokens[None])[0]
    embedding, own = model.trunk.token_embedding.weight.detach(), model.senses(tokens).detach()
    features = []
    for i in range(len(tokens)):
        total = torch.zeros(16, dtype=torch.float64)
        for j in range(i + 1):
            token = int(tokens[j])
            for sense in range(4):
                delta = float(factors.get((token, sense), 1.0))
                if topic is not None:
                    said = sum(max(float(embedding[int(x)] @ own[j, sense]), 0.0) for x in tokens[: i + 1])
                    weight = (1 + j / 100) / (1 + math.exp(topic.sharpness * said - 6))
                    delta *= weight * float(topic.factors[token, sense]) + (1 - weight)
                total += alpha[sense, i, j] * delta * (senses[token][sense] if token in senses else own[j, sense])
        features.append(total)
    return torch.stack(features)


def test_everything_at_once_written_out():
    model = backpack()
    factors = {(5, 0): 0.5, (8, 3): 3.0, (2, 1): -2.0}
    senses = {token: swapped_senses(model, token, 3, 7) for token in (5, 9)}
    topic = Topic.at(topic_scores(model, BAG, [END]), 3)
    tokens = torch.tensor([5, 2, 8, 5, 17, 9, 3, 8, 2, 1])
    steered = steer(model, scales=factors, senses=senses, topic=topic)
    with torch.no_grad():
        features = steered(tokens[None])[0][0]
    close(features, written_out(model, tokens, factors, senses, topic))
    untouched = written_out(model, tokens, {}, {}, None)
    assert (features - untouched).abs().max() > 0.1, "which is far from what the model says"


def test_a_topic_falls_as_it_is_said():
    """The annealing matters here: without it the tokens would be turned elsewhere."""
    model = backpack()
    full = steer(model, topic=(topic := Topic.at(topic_scores(model, BAG), 3)))
    constant = steer(model, scales={(t, s): float(topic.factors[t, s]) for t in range(23) for s in range(4)})
    turned_by = [(logits(one) - logits(model)).norm(dim=-1)[:, -1].mean() for one in (full, constant)]
    assert turned_by[0] < 0.9 * turned_by[1]


def test_an_edit_changes_logits_by_what_its_senses_change():
    """Delta logits_i = sum_{j: x_j = x} sum_l alpha[l, i, j] E (C~(x)_l - C(x)_l)."""
    model = backpack()
    token = int(TOKENS[0, 2])
    swapped = swapped_senses(model, token, 3, 7)
    change = swapped - model.senses(torch.tensor(token)).detach()  # (L, D)
    here = (token == TOKENS)[:, None, None]
    expected = torch.einsum("blts,ld,vd->btv", alpha_of(model) * here, change, model.trunk.token_embedding.weight)
    assert expected.abs().max() > 0.01
    close(logits(steer(model, senses={token: swapped})) - logits(model), expected.detach())


@pytest.mark.parametrize("factor", [0.0, 0.7, 3.0, -2.0])
def test_scaling_changes_logits_by_so_much_of_the_sense(factor):
    """(s - 1) sum_{j: x_j = x} alpha[l, i, j] E C(x)_l."""
    model = backpack()
    token, sense = int(TOKENS[1, 0]), 2
    pushes = model.readout(model.senses(torch.tensor(token))[sense]).detach()  # (V,)
    amount = (alpha_of(model)[:, sense] * (token == TOKENS)[:, None]).sum(-1)  # (B, T)
    steered = steer(model, scales={(token, sense): factor})
    assert amount.max() == 1  # at the first position, which is this token
    close(logits(steered) - logits(model), (factor - 1) * amount[..., None] * pushes)


# Knowledge edits


def test_a_swap_takes_one_direction_out_and_puts_as_much_on_another():
    model = backpack()
    embedding = model.trunk.token_embedding.weight
    with torch.no_grad():  # two embeddings that have nothing in common: then nothing of the old one may be left
        embedding[7] = 2 * (embedding[7] - (embedding[7] @ embedding[3]) / embedding[3].square().sum() * embedding[3])
    senses, swapped = model.senses(torch.tensor(5)).detach(), swapped_senses(model, 5, 3, 7)
    old, new = embedding[3].detach(), embedding[7].detach()
    close(swapped @ old, torch.zeros(4, dtype=torch.float64))
    # as much of the new as there was of the old, each measured by its own length
    close((swapped - senses) @ new / new.square().sum(), senses @ old / new.square().sum())
    rest = torch.linalg.qr(torch.stack([old, new, *torch.randn(14, 16, dtype=torch.float64)]).mT).Q[:, 2:]
    close(swapped @ rest, senses @ rest)
    close(swapped_senses(model, 5, 3, 3), senses)


def test_swapping_in_training_mode_is_without_dropout():
    model = Backpack(BackpackConfig(**{**vars(BackpackConfig.tiny()), "dropout": 0.5}))
    expected = swapped_senses(model.eval(), 5, 3, 7)
    assert torch.equal(swapped_senses(model.train(), 5, 3, 7), expected)
    assert model.training


# Topics


def test_scores_are_shares_of_the_strongest_push():
    model = backpack()
    pushes = model.readout(model.senses(torch.arange(23))).detach()  # (V, L, V)
    expected = pushes[..., list(BAG)].sum(-1) / pushes.amax(-1)
    scores = topic_scores(model, [*BAG, BAG[0]], [END])  # a word given twice counts once
    assert scores[END].tolist() == [-math.inf] * 4
    close(scores[1:], expected[1:])


def test_scores_need_a_few_tokens_products_at_a_time(monkeypatch):
    model, sizes = backpack(), []
    expected = topic_scores(model, BAG)
    original = model.readout
    model.readout = lambda features: sizes.append(features.shape[:2].numel() * 23) or original(features)
    monkeypatch.setattr(steering, "CHUNK", 500)
    close(topic_scores(model, BAG), expected)
    assert max(sizes) <= 500
    assert len(sizes) == 5


def test_a_sense_that_pushes_nothing_up_has_no_part_in_a_topic():
    model = backpack()
    with torch.no_grad():
        output = model.sense_network.senses_mlp.output
        output.weight[:16] = 0
        output.bias[:16] = 0
    assert topic_scores(model, BAG)[:, 0].tolist() == [0.0] * 23


def test_the_groups_of_a_strength():
    """The shares of the four groups, and the released code's factors."""
    scores = torch.arange(2000, dtype=torch.float64)[torch.randperm(2000)].view(500, 4)
    for strength, factors in enumerate([(1, 1, 1, 1), (1, 1.3, 1.5, 1.5), (1, 1.5, 2.2, 2.2), (1, 3, 3.3, 3.3)]):
        topic = Topic.at(scores, strength)
        assert topic.sharpness == max(factors) / 7.5
        in_order = topic.factors.flatten()[scores.flatten().argsort()].tolist()
        assert in_order == [factors[0]] * 1200 + [factors[1]] * 400 + [factors[2]] * 300 + [factors[3]] * 100
    scores[:10] = -math.inf  # left out: of no group, and not counted in the shares
    assert (Topic.at(scores, 3).factors[:10] == 1).all()
    assert (Topic.at(scores, 3).factors > 1).sum() == round(0.4 * 1960)
    assert (Topic.at(torch.zeros(6, 4), 3).factors == 1).all()


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: steer(m, scales={(23, 0): 1}), "no token has the id 23; the model knows 0 to 22"),
        (lambda m: steer(m, scales={(-1, 0): 1}), "no token has the id -1"),
        (lambda m: steer(m, scales={(0, 4): 1}), "no sense 4; the model's senses are 0 to 3"),
        (lambda m: steer(m, scales={(0, -1): 1}), "no sense -1"),
        (lambda m: steer(m, scales={(0, 0): math.nan}), "factor of sense 0 is nan"),
        (lambda m: steer(m, scales={(0, 0): math.inf}), "factor of sense 0 is inf"),
        (lambda m: steer(m, scales={(0, 0): -1e31}), "factor of sense 0 is -1e\\+31; give a finite number up to 1e"),
        (lambda m: steer(m, senses={23: torch.zeros(4, 16)}), "no token has the id 23"),
        (lambda m: steer(m, senses={2: torch.zeros(4, 15)}), r"token 2 have shape \(4, 15\)"),
        (lambda m: steer(m, senses={2: torch.full((4, 16), math.nan)}), "are no numbers"),
        (
            lambda m: steer(m, topic=Topic(torch.ones(23, 5), 0.4)),
            r"are \(23, 5\), this one's are \(23, 4\)",
        ),
        (lambda m: swapped_senses(m, 5, 3, 99), "no token has the id 99"),
        (lambda m: topic_scores(m, [30]), "no token has the id 30"),
        (lambda m: topic_scores(m, [1], [30]), "no token has the id 30"),
        (lambda m: topic_scores(m, []), "the topic has no words"),
        (lambda m: Topic.at(topic_scores(m, [1]), 4), "the strength is 4; choose 0, 1, 2 or 3"),
        (lambda m: Topic.at(topic_scores(m, [1]), 0.5), "the strength is 0.5; choose"),
        (lambda m: Topic.at(topic_scores(m, [1]), -1), "the strength is -1"),
        (lambda m: steer(steer(m)), "Steered has no senses to steer; give a Backpack, and all interventions in one"),
        (lambda m: swapped_senses(GPT(GPTConfig.tiny()), 5, 3, 7), "GPT has no senses"),
        (lambda m: topic_scores(GPT(GPTConfig.tiny()), [5]), "GPT has no senses"),
        (lambda m: steer(m)(TOKENS, m.initial_state(3)), "BackpackState is no state of Steered"),
        (lambda m: m(TOKENS, steer(m).initial_state(3)), "SteeredState is no state of Backpack"),
        (lambda m: turned(m)(TOKENS, steer(m)(TOKENS, steer(m).initial_state(3))[1]), "of another intervention"),
        (lambda m: steer(m)(TOKENS, turned(m)(TOKENS, turned(m).initial_state(3))[1]), "of another intervention"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(backpack())


# The checks above are tested by bugs


def mutant_forward(change):
    """`Steered.forward` that sees a changed state."""
    original = Steered.forward

    def forward(self, tokens, state=None):
        return original(self, tokens, None if state is None else change(state))

    return forward


def forgets_what_was_said(monkeypatch):
    """The sums start anew with each chunk."""

    def change(state):
        state.said = torch.zeros_like(state.said)
        return state

    monkeypatch.setattr(Steered, "forward", mutant_forward(change))


def anneals_by_the_whole_text(monkeypatch):
    """The released code, which is right only for the last position: all of the text anneals each position's senses."""
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda tensor, dim: tensor.sum(dim, keepdim=True).expand_as(tensor))


def counts_only_new_tokens(monkeypatch):
    """What a new token's senses push of the tokens before it is not counted."""
    original = Steered._annealed

    def annealed(self, tokens, ids, said, inside):
        delta, after = original(self, tokens, ids, said, inside)
        after[:, :, said.shape[2] :] = 0
        return delta, after

    monkeypatch.setattr(Steered, "_annealed", annealed)


def ids_in_place(monkeypatch):
    """The ids in a list that all states share: going on from an older state finds the newer tokens in it."""
    original = torch.cat
    shared = {}

    def cat(tensors, dim=0):
        made = original(tensors, dim)
        if made.dtype != torch.int64:
            return made
        buffer = shared.setdefault(len(made), torch.zeros(len(made), 64, dtype=torch.int64))
        if tensors[0].shape[1] == 0:
            buffer.zero_()
        buffer[:, tensors[0].shape[1] : made.shape[1]] = tensors[1]
        return buffer[:, : made.shape[1]]

    monkeypatch.setattr(steering.torch, "cat", cat)


def rows_share_their_ids(monkeypatch):
    """The first row's ids decide which positions are edited."""
    original = torch.cat

    def cat(tensors, dim=0):
        made = original(tensors, dim)
        return made[:1].expand_as(made) if made.dtype == torch.int64 else made

    monkeypatch.setattr(steering.torch, "cat", cat)


def ids_do_not_follow(monkeypatch):
    """A fork takes the rows of the inner memory only."""

    def select(self, rows):
        chosen = State.select(self, rows)
        chosen.ids = self.ids[: len(rows)]
        return chosen

    monkeypatch.setattr(SteeredState, "select", select)


def senses_without_gradient(monkeypatch):
    """The senses mixed from a detached memory: the senses' network never learns."""
    original = Backpack.read

    def read(self, tokens, state):
        alpha, inside, after = original(self, tokens, state)
        return alpha, inside.detach(), after

    monkeypatch.setattr(Backpack, "read", read)


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        ("stream", forgets_what_was_said),
        ("stream", counts_only_new_tokens),
        ("causal", anneals_by_the_whole_text),
        ("fork", ids_do_not_follow),
        ("siblings", ids_in_place),
        ("rows", rows_share_their_ids),
        ("gradients", senses_without_gradient),
    ],
)
def test_mutant_is_caught(check, mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        contract.CHECKS[check](lambda: everything(backpack()))


def test_renormalised_weights_are_caught(monkeypatch):
    """Weights made to sum to 1 again after the intervention, as attention would have it."""
    mix = SenseNetwork.mix
    monkeypatch.setattr(SenseNetwork, "mix", lambda self, w, inside: mix(self, w / w.sum(-1, keepdim=True), inside))
    with pytest.raises(AssertionError):
        test_scaling_changes_logits_by_so_much_of_the_sense(3.0)
