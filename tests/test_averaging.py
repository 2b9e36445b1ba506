"""The mean of the weights of several checkpoints."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runs import run_maker
from scratchlm.checkpoint import RunFolder, load, load_checkpoint
from scratchlm.checkpoint.weights import mean_weights
from scratchlm.cli import main
from scratchlm.errors import InputError
from scratchlm.evaluation import evaluate
from scratchlm.training import loop

NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run of the bigram, whose logits are linear in its weights, with checkpoints of steps 0, 4, 8 and 12."""
    run = run_maker(tmp_path_factory.mktemp("several"))(arch="bigram", model={}, window=16, keep=9)
    list(loop.train(run))
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [0, 4, 8, 12]
    return run


@given(NUMBERS, st.integers(1, 9))
def test_the_mean_of_copies_is_the_identity_bit_for_bit(values, count):
    weights = {"w": torch.tensor(values), "half": torch.tensor(values).bfloat16()}
    before = {name: tensor.clone() for name, tensor in weights.items()}
    mean = mean_weights([weights] * count)
    for name, tensor in before.items():
        assert mean[name].dtype == tensor.dtype
        assert torch.equal(mean[name].view(torch.uint8), tensor.view(torch.uint8)), "also the sign of zero"
        assert torch.equal(weights[name], tensor), "what is averaged stays as it was"


def test_the_sum_is_in_float64():
    values = [2.0**24, *[1.0] * 62, 2.0]  # a sum in float32 loses each 1
    mean = mean_weights({"w": torch.tensor([value])} for value in values)
    assert mean["w"].item() == (2**24 + 64) / 64


def test_counters_and_masks_are_those_of_the_newest():
    older = {"w": torch.zeros(2), "count": torch.tensor(3), "mask": torch.tensor([True, False])}
    newer = {"w": torch.ones(2), "count": torch.tensor(10), "mask": torch.tensor([False, True])}
    mean = mean_weights([older, newer])
    assert mean["w"].tolist() == [0.5, 0.5]
    assert torch.equal(mean["count"], newer["count"])
    assert torch.equal(mean["mask"], newer["mask"])


def test_the_average_of_linear_models_is_the_model_of_the_average(several):
    tokens = torch.arange(10)[None]

    def logits(model):
        return model.readout(model(tokens)[0]).double()

    run = RunFolder.open(several.path)
    alone = [logits(load(run.path, str(step))[0]) for step in (8, 12)]
    averaged, _ = load(run.path, average=2)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    torch.testing.assert_close(logits(averaged), (alone[0] + alone[1]) / 2, rtol=0, atol=1e-6)
    assert not averaged.training


def test_the_newest_up_to_the_chosen_one_are_averaged(several):
    def averaged_by_hand(*steps):
        parts = [several.checkpoint(str(step)).weights() for step in steps]
        return {name: (sum(part[name].double() for part in parts) / len(parts)).float() for name in parts[0]}

    for which, count, steps in (("last", 3, (4, 8, 12)), ("last", 2, (8, 12)), ("8", 2, (4, 8)), ("0", 1, (0,))):
        model, _ = load(several.path, which, average=count)
        for name, expected in averaged_by_hand(*steps).items():
            assert torch.equal(model.state_dict()[name], expected), (which, count)


def test_too_few_are_refused_with_their_number_and_a_remedy(several):
    with pytest.raises(InputError, match=r"4 checkpoints .* only 3 trained checkpoints up to step 12 .*--keep 4"):
        load(several.path, average=4)  # step 0 has learned nothing
    with pytest.raises(InputError, match=r"only 1 trained checkpoint up to step 4"):
        load(several.path, "4", average=2)
    for count in (0, -1):
        with pytest.raises(InputError, match=f"{count} checkpoints"):
            load(several.path, average=count)


def test_a_damaged_one_among_them_is_named(new_run):
    run = new_run(keep=9)
    list(loop.train(run))
    file = run.checkpoint("8").path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"step_000008.*damaged"):
        load(run.path, average=3)
    load(run.path)


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_the_commands_average_and_say_so(several, capsys, command):
    def call(*flags):
        assert main([command, str(several.path), "--json", "--device", "cpu", *flags]) == 0
        return capsys.readouterr()

    averaged, alone = call("--average", "3"), call()
    assert "mean of the weights of steps 4, 8, 12\n" in averaged.err
    assert "steps" not in alone.err
    assert json.loads(averaged.out) != json.loads(alone.out)
    assert call("--average", "1") == alone
    assert main([command, str(several.path), "--average", "4"]) == 2
    assert "--keep 4" in capsys.readouterr().err


def test_what_eval_scores_is_the_averaged_model(several, capsys):
    assert main(["eval", str(several.path), "--json", "--average", "2"]) == 0
    shown = json.loads(capsys.readouterr().out)
    model, tokenizer = load_checkpoint(several, several.checkpoint(), "cpu", 2)
    score = evaluate(model, several.splits()["validation"], tokenizer.token_lengths(), 16)
    assert shown["nats_per_token"] == score.nats_per_token
