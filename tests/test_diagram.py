"""The diagram of a model's tree: its numbers are the model's, and any reader of SVG can show it."""

import re
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from scratchlm.cli import main
from scratchlm.inspect.diagram import diagram
from scratchlm.inspect.modules import flops_per_token
from scratchlm.inspect.tracing import trace
from scratchlm.models import MODELS
from scratchlm.models.cnn import CNN, CNNConfig
from scratchlm.models.gpt import GPT, GPTConfig
from scratchlm.models.llama import Llama
from scratchlm.models.rnn import RNN
from scratchlm.models.transformer import Transformer

SVG = "{http://www.w3.org/2000/svg}"
WINDOW = 8
BLOCKS = {f"cnn {block}": block for block in ("gcnn", "tcn", "wavenet")}
DRAWN = [*MODELS, *BLOCKS]


def tiny(arch):
    with torch.device("meta"):
        if arch in BLOCKS:
            return CNN(CNNConfig(vocab_size=23, dim=16, depth=3, hidden_dim=8, dilations=2, block=BLOCKS[arch]))
        return MODELS[arch](MODELS[arch].Config.tiny())


def boxes(parent):
    """The boxes right inside of an element."""
    return [group for group in parent.findall(f"{SVG}g") if "data-name" in group.attrib]


def number(box, what):
    return int(box.get(f"data-{what}"))


def drawn(model, title="a model", window=WINDOW):
    root = ElementTree.fromstring(diagram(model, title, window))
    (box,) = boxes(root)
    return root, box


@pytest.mark.parametrize("arch", DRAWN)
def test_the_numbers_of_a_diagram_add_up_to_those_of_the_model(arch):
    model = tiny(arch)
    root, whole = drawn(model)
    assert root.tag == f"{SVG}svg"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert number(whole, "parameters") == parameters
    assert number(whole, "flops") == flops_per_token(model, WINDOW) * WINDOW
    text = "".join(whole.itertext())
    flops = flops_per_token(model, WINDOW)
    assert f"{parameters:,} parameters" + (f", {flops:,.0f} FLOPs a token" if flops else "") in text
    modules, seen = dict(model.named_modules()), 0
    pending = [whole]
    while pending:
        box = pending.pop()
        module, copies = modules[box.get("data-name")], number(box, "copies")
        inner = boxes(box)
        seen += copies * sum(parameter.numel() for parameter in module.parameters(recurse=not inner))
        for what, own in (("flops", copies), ("kept", 1)):  # bytes are given of all copies, since they may differ
            inside = sum(number(one, what) * (number(one, "copies") if what == "flops" else 1) for one in inner)
            assert inside <= number(box, what) * own
        pending += inner
    assert seen == parameters, "each parameter lies in one box"


@pytest.mark.parametrize("arch", DRAWN)
def test_a_diagram_is_closed_in_itself(arch):
    svg = diagram(tiny(arch), "a model", WINDOW)
    root = ElementTree.fromstring(svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "style", "rect", "g", "text", "tspan", "path", "circle"}  # fmt: skip
    assert not re.search(r"href|url\(|@import|<!", svg)
    assert "prefers-color-scheme: dark" in svg
    width, height = map(float, root.get("viewBox").split()[2:])
    for rect in root.iter(f"{SVG}rect"):
        x, y, wide, high = (float(rect.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert min(x, y, wide, high) >= 0
        assert x + wide <= width
        assert y + high <= height


def test_boxes_do_not_overlap():
    for arch in DRAWN:
        pending = [drawn(tiny(arch))[0]]
        while pending:
            parent = pending.pop()
            places = [[float(box.find(f"{SVG}rect").get(key)) for key in ("x", "y", "width", "height")]
                      for box in boxes(parent)]  # fmt: skip
            for number_, (x, y, wide, high) in enumerate(places):
                for left, top, across, down in places[number_ + 1 :]:
                    assert x + wide <= left or left + across <= x or y + high <= top or top + down <= y, arch
            pending += boxes(parent)


def test_what_an_attacker_would_write_is_text():
    root, _ = drawn(tiny("gpt"), title='</title><script>alert("&")</script>')
    assert root.find(f"{SVG}title").text == '</title><script>alert("&")</script>'
    assert not list(root.iter(f"{SVG}script"))


def test_equal_blocks_are_drawn_once():
    _, whole = drawn(tiny("gpt"))
    assert [box.get("data-name") for box in boxes(whole)] == [
        "token_embedding", "position_embedding", "blocks.0", "final_norm"]  # fmt: skip
    assert number(boxes(whole)[2], "copies") == 2
    assert "blocks 0 to 1 Block \N{MULTIPLICATION SIGN} 2" in "".join(whole.itertext())
    with torch.device("meta"):
        _, whole = drawn(CNN(CNNConfig(vocab_size=23, dim=16, depth=4, dilations=3)))
    assert [number(box, "copies") for box in boxes(whole) if "blocks" in box.get("data-name")] == [4]
    assert "dilation 1 to 4, reach 2 to 8" in "".join(whole.itertext())


def test_a_residual_sum_reads_what_went_past():
    steps = trace(tiny("gpt"), WINDOW)["blocks.1"].steps
    assert [(step.kind, step.name, step.sources) for step in steps] == [
        ("module", "attention_norm", [-1]), ("module", "attention", [0]), ("sum", "", [-1, 1]),
        ("module", "mlp_norm", [2]), ("module", "mlp", [3]), ("sum", "", [2, 4])]  # fmt: skip


def test_a_post_norm_block_normalises_sums():
    steps = trace(tiny("transformer"), WINDOW)["blocks.0"].steps
    assert [step.kind if step.kind == "sum" else step.name for step in steps] == [
        "attention", "sum", "attention_norm", "cross_attention", "sum", "cross_attention_norm",
        "feed_forward", "sum", "feed_forward_norm"]  # fmt: skip
    cross = next(step for step in steps if step.name == "cross_attention")
    assert trace(tiny("transformer"), WINDOW)["blocks.0"].inputs == ["x", "source"]
    assert -2 in cross.sources, "cross-attention reads the source, the second thing that a block is given"


def test_encoder_and_decoder_stand_beside_each_other():
    _, whole = drawn(tiny("transformer"))
    places = {box.get("data-name"): box.find(f"{SVG}rect") for box in boxes(whole)}
    left, right = places["encoder.0"], places["blocks.0"]
    assert float(left.get("x")) + float(left.get("width")) < float(right.get("x"))
    assert left.get("y") == right.get("y")


def test_tied_weights_are_marked():
    text = "".join(drawn(tiny("gpt"))[1].itertext())
    assert "weight is tied: the readout uses it too" in text
    assert "uses token_embedding.weight, tied" in text
    assert ("tied" in "".join(drawn(tiny("llama"))[1].itertext())) == Llama.Config.tiny().tied
    assert "tied" not in "".join(drawn(tiny("bigram"))[1].itertext())


def test_what_a_weight_is_made_of_is_told():
    text = "".join(drawn(tiny("cnn gcnn"))[1].itertext())
    assert "Parametrized" not in text
    assert "weight.original0 16" in text
    assert "dilation 1 to 2" in text


def test_a_thing_that_comes_in_parts_is_one_input():
    """Rotations are two tensors, and one thing that attention is given."""
    assert trace(tiny("llama"), WINDOW)["blocks.0.attention"].inputs == ["x", "rotation"]


def test_a_recurrence_shows_how_often_it_is_called():
    model = tiny("rnn")
    assert trace(model, WINDOW)["blocks.0.recurrence.recurrent"].calls == WINDOW
    assert f"in each of {WINDOW} calls" in "".join(drawn(model)[1].itertext())
    assert model.training, "the model is as it was before"


@pytest.mark.parametrize(("arch", "fast"), [("gpt", True), ("rnn", True), ("gpt", False), ("transformer", False)])
def test_bytes_are_those_that_autograd_keeps(arch, fast):
    """Of the written-out paths the same storages, counted another way on a CPU; the fused paths keep no more."""
    model = MODELS[arch](MODELS[arch].Config.tiny())
    kept = sum(one.kept for one in trace(tiny(arch), WINDOW).values())
    if fast:
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        held = {}
        with saved_tensors_hooks(lambda t: held.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t):
            model.readout(model(torch.zeros(1, WINDOW, dtype=torch.int64))[0])
        sizes = [t.untyped_storage().nbytes() for at, t in held.items() if at not in parameters]
        assert 0 < sum(sizes) <= kept
    else:
        assert sum(one.kept for one in trace(model, WINDOW).values()) == kept


def test_a_single_product_keeps_its_input():
    """x W_1, gelu, W_2: the MLP keeps the normalised stream, what gelu is given, and what it gives."""
    config = GPTConfig(vocab_size=5, context=WINDOW, dim=4, depth=1, heads=1, dropout=0.0)
    with torch.device("meta"):
        traces = trace(GPT(config), WINDOW)
    assert traces["blocks.0.mlp.hidden"].kept == 4 * WINDOW * 4
    assert traces["blocks.0.mlp"].kept == 4 * WINDOW * 16
    assert traces["blocks.0.mlp.output"].kept == 4 * WINDOW * 16


def test_a_part_that_is_called_without_the_whole_is_a_step_of_it():
    steps = trace(tiny("backpack"), WINDOW)["sense_network"].steps
    assert [step.name for step in steps if step.kind == "module"] == [
        "embedding_norm", "mlp_norm", "mlp", "senses_norm", "senses_mlp"]  # fmt: skip
    root = trace(tiny("backpack"), WINDOW)[""].steps
    senses = next(step for step in root if step.name == "sense_network")
    assert root[senses.sources[0]].name == "trunk", "senses are made of the trunk's embedding"


def test_the_memory_of_nothing_is_no_step():
    """A recurrent model asks its layers for an empty memory, with no token, before it reads."""
    traces = trace(tiny("lstm"), WINDOW)
    assert [step.name for step in traces["blocks.0"].steps[:3]] == [
        "recurrence_norm",
        "recurrence",
        "recurrence_output",
    ]
    assert traces["blocks.0.recurrence.input"].calls == traces["token_embedding"].calls == 1


def test_what_hands_on_is_not_drawn():
    _, whole = drawn(tiny("transformer"))
    assert "Identity" not in "".join(whole.itertext())
    assert isinstance(Transformer(Transformer.Config.tiny()).decoder_norm, nn.Identity)
    assert RNN.Config.tiny().depth == 2


def test_info_writes_the_diagram(tmp_path, capsys):
    file = tmp_path / "gpt.svg"
    assert main(["info", "gpt", "--svg", str(file)]) == 0
    out = capsys.readouterr().out
    (box,) = boxes(ElementTree.fromstring(file.read_text(encoding="utf-8")))
    assert f"parameters           {number(box, 'parameters'):,} " in out
    assert f"{number(box, 'flops') / 128:,.0f} forward" in out
    assert str(file) in out


@pytest.mark.parametrize(("name", "word"), [("missing/gpt.svg", "missing"), ("gpt.png", ".svg"), ("gpt", ".svg")])
def test_a_file_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, name, word):
    monkeypatch.chdir(tmp_path)
    assert main(["info", "gpt", "--svg", name]) == 2
    assert word in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
