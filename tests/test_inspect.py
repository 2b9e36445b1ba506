"""What is shown of a model and of a run is true."""

import dataclasses
import html
import json
import warnings

import matplotlib.image as plt_image
import numpy as np
import pytest
import torch

from scratchlm.inspect.attention import (
    AttentionLayer,
    attention_figure,
    attention_layers,
    described,
    has_attention,
    pick,
    save_labelled,
)
from scratchlm.inspect.curves import loss_figure, save_loss_curve
from scratchlm.inspect.modules import flops_per_token, module_rows
from scratchlm.model import Recordable, Source, record
from scratchlm.models import MODELS
from scratchlm.models.gpt import GPT, GPTConfig
from scratchlm.models.transformer import Transformer

METRICS = [{"step": step, "loss": 3.0 / step, "tokens": step * 1000, "lr": 0.1, "grad_norm": 1.0, "seconds": 0.1 * step,
            **({"val_loss": 3.2 / step, "val_bits_per_byte": 4.6 / step} if step % 5 == 0 else {})}
           for step in range(1, 21)]  # fmt: skip


def test_the_module_tree_counts_every_parameter():
    model = GPT(GPT.Config.tiny())
    rows = list(module_rows(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert rows[0].parameters == total
    own = sum(torch.Size(shape).numel() for row in rows for shape in row.shapes.values())
    assert own == total
    assert {row.name for row in rows} >= {"blocks.1.attention.query_key_value", "final_norm"}
    depths = {row.name: row.depth for row in rows}
    assert depths["blocks.1.attention"] == 3


@pytest.mark.parametrize("shape", [
    {"vocab_size": 61, "context": 32, "dim": 24, "depth": 3, "heads": 4},
    {"vocab_size": 50257, "context": 1024, "dim": 768, "depth": 12, "heads": 12},
])  # fmt: skip
def test_operations_are_those_of_the_matrix_products(shape):
    config = GPTConfig(**shape)
    with torch.device("meta"):
        model = GPT(config)
    window, d = config.context, config.dim
    products = config.depth * (2 * 12 * d * d + 4 * window * d) + 2 * config.vocab_size * d
    assert flops_per_token(model, window) == products
    if window == 1024:
        assert products * window == 291_648_307_200  # counted by hand for GPT-2 of 124M parameters


def test_the_curve_shows_the_run(tmp_path):
    axes = loss_figure(METRICS, "gpt on shakespeare").axes[0]
    training, validation = axes.get_lines()
    assert training.get_ydata().tolist() == [line["loss"] for line in METRICS]
    assert validation.get_xdata().tolist() == [0.005, 0.010, 0.015, 0.020]
    assert axes.get_ylabel() == "loss (nats per token)"
    assert "0.160" in axes.texts[0].get_text()
    files = save_loss_curve(METRICS, "gpt on shakespeare", tmp_path)
    assert files[0].read_text(encoding="utf-8").startswith("<?xml")
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_a_run_without_an_evaluation_has_a_curve_too(tmp_path):
    save_loss_curve(METRICS[:3], "gpt", tmp_path)
    save_loss_curve([], "gpt", tmp_path)
    assert (tmp_path / "loss.svg").stat().st_size > 1000


# --- attention ---------------------------------------------------------------------------------------------------

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def gpt_layers(**shape):
    model = GPT(dataclasses.replace(GPT.Config.tiny(), **shape))
    for parameter in model.parameters():  # weights far from uniform
        torch.nn.init.normal_(parameter, std=0.5)
    return model, attention_layers(model, TOKENS)


def test_attention_is_what_the_layers_show():
    model, layers = gpt_layers(depth=3)
    with record(model.eval()) as shown, torch.no_grad():
        model(torch.tensor([TOKENS]))
    assert [(one.name, one.kind, one.layer, one.heads) for one in layers] == [
        (f"blocks.{n}.attention", "decoder", n + 1, [1, 2]) for n in range(3)
    ]
    for one in layers:
        assert torch.equal(one.weights, shown[f"{one.name}.weights"][0][0])
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(2, len(TOKENS)))
        assert not one.weights.triu(1).any(), "nobody looks ahead"
        assert one.weights.max() > 0.5


def test_looking_leaves_the_model_as_it_was():
    model = GPT(dataclasses.replace(GPT.Config.tiny(), dropout=0.9)).train()
    first, second = attention_layers(model, TOKENS), attention_layers(model, TOKENS)
    assert model.training
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.weights, two.weights), "without dropout"
    assert all(module.listener is None for module in model.modules() if isinstance(module, Recordable))


def test_attention_of_an_encoder_decoder():
    model = Transformer(Transformer.Config.tiny())
    layers = attention_layers(model, TOKENS, Source(torch.tensor([[7, 8, 9, 0]]), torch.tensor([3])))
    assert [(one.kind, one.layer) for one in layers] == [
        ("encoder", 1), ("encoder", 2), ("decoder", 1), ("decoder", 2), ("cross", 1), ("cross", 2)]  # fmt: skip
    shapes = {"encoder": (2, 4, 4), "decoder": (2, 8, 8), "cross": (2, 8, 4)}
    for one in layers:
        assert one.weights.shape == shapes[one.kind]
        torch.testing.assert_close(one.weights.sum(-1), torch.ones(shapes[one.kind][:2]))
        if one.kind == "decoder":
            assert not one.weights.triu(1).any()
        else:
            assert not one.weights[:, :, 3].any(), "nobody looks at padding"
            assert one.weights[:, :, :3].all(), "a source has no order"


def test_which_architectures_have_attention():
    having = {name for name in MODELS if has_attention(MODELS[name](MODELS[name].Config.tiny()))}
    assert having == {"gpt", "transformer", "backpack", "llama"}


def test_one_layer_and_one_head_are_picked():
    _, layers = gpt_layers(depth=3)
    (one,) = pick(layers, 3, 2)
    assert (one.layer, one.heads) == (3, [2])
    assert torch.equal(one.weights, layers[2].weights[1:])
    assert pick(layers, None, None) == layers
    for layer, head, words in ((4, None, "layer 4; .* 1 to 3"), (0, None, "layer 0"), (None, 3, "head 3; .* 1 to 2")):
        with pytest.raises(ValueError, match=words):
            pick(layers, layer, head)


def test_attention_as_json_is_the_tensor_rounded():
    _, layers = gpt_layers()
    for one, content in zip(layers, json.loads(json.dumps(described(layers))), strict=True):
        weights = torch.tensor([head["weights"] for head in content["heads"]])
        torch.testing.assert_close(weights, one.weights, rtol=0, atol=6e-6)
        assert [head["head"] for head in content["heads"]] == one.heads
        assert (content["name"], content["kind"], content["layer"]) == (one.name, one.kind, one.layer)


def test_the_picture_shows_the_weights():
    _, layers = gpt_layers()
    figure = attention_figure(layers, [f"t{token}" for token in TOKENS])
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_images()}
    assert list(panels) == [f"decoder layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2)]
    for one in layers:
        for head, weights in zip(one.heads, one.weights, strict=True):
            (image,) = panels[f"decoder layer {one.layer}, head {head}"].get_images()
            drawn = image.get_array()
            assert drawn.mask.tolist() == np.triu(np.ones((8, 8)), 1).astype(bool).tolist(), "grey is the future"
            np.testing.assert_array_equal(drawn.filled(0), weights.numpy())
            assert (image.norm.vmin, image.norm.vmax) == (0, 1)
    first = panels["decoder layer 1, head 1"]
    assert [label.get_text() for label in first.get_yticklabels()] == [f"t{token}" for token in TOKENS]
    assert "query" in first.get_ylabel()
    below = panels["decoder layer 2, head 1"]
    assert (first.get_xlabel(), len(first.get_xticks())) == ("", 0), "written once for each kind"
    assert "key" in below.get_xlabel()
    assert [label.get_text() for label in below.get_xticklabels()] == [f"t{token}" for token in TOKENS]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 40), (1, 25, 40, 30), (24, 1, 30, 30), (1, 2, 900, 900)])
def test_a_picture_fits_what_can_be_opened_and_its_labels_do_not_touch(shape):
    depth, heads, queries, keys = shape
    layers = [
        AttentionLayer("x", "cross", n + 1, list(range(1, heads + 1)), torch.zeros(heads, queries, keys))
        for n in range(depth)
    ]
    figure = attention_figure(layers, ["long token"] * queries, ["a"] * keys)
    width, height = figure.get_size_inches()
    assert max(width, height) * 150 < 2**14, "pixels"
    for axes in figure.axes[1:]:
        box = axes.get_position()
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1
        inches = box.width * width
        assert inches / max(1, len(axes.get_xticks())) > 0.1, "labels beside each other"
    boxes = [axes.get_position() for axes in figure.axes]
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_attention_files_hold_the_labels_as_text(tmp_path):
    _, layers = gpt_layers(depth=1)
    labels = ["$a$", "<end>", "\u00b7", "\u21b5", "\u65e5", "x" * 40, "b", "c"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = save_labelled(attention_figure(layers, labels), tmp_path / "attention")
    assert [file.name for file in files] == ["attention.svg", "attention.png"]
    svg = html.unescape(files[0].read_text(encoding="utf-8"))
    for label in [*labels[:5], "x" * 11 + "\u2026", "decoder layer 1, head 2", "a space", "a line end"]:
        assert label in svg
    picture = plt_image.imread(files[1])
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50, "more colours than a blank one has"
