"""A run as an ONNX graph, whose memory goes in and comes out as tensors, so that it decodes token by token anywhere.

    tokens (batch, new), past.0, past.1, ...  ->  logits (batch, new, vocab_size), present.0, present.1, ...

What a model remembers is a pytree of tensors (see `scratchlm/model.py`): its leaves are the graph's inputs and outputs,
in their order, and present.i is the next call's past.i. Before the first token each is zeros, with nothing along `past`
where the memory grows; reading a whole text is the first call with all of it. So one graph scores and generates.

A model whose memory grows (GPT, Backpack) is traced with any number of new tokens; so is a CNN. Any other has a memory
of one size, is traced for one token, and ONNX's Scan repeats that over the new ones (RNN, LSTM, GRU).

What a model here would refuse, onnxruntime 1.32 on a CPU refuses too, positions past the context and ids past the
vocabulary; but an id of -1 is the vocabulary's last, as ONNX has it. Chunks of no tokens fail, except a GPT's and a
Backpack's.

Letters in shapes: B batch, T new tokens, V vocabulary.
"""

import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from scratchlm.checkpoint import Checkpoint, RunFolder, plain_model
from scratchlm.errors import InputError
from scratchlm.files import new_folder, sync, write_json
from scratchlm.model import KV, LanguageModel, Recordable, State
from scratchlm.models.cnn import CNN

if TYPE_CHECKING:
    from onnx import ModelProto

GRAPH, DESCRIPTION, TOKENIZER = "model.onnx", "description.json", "tokenizer.json"


def growing(state: State) -> list[bool]:
    """Of each tensor of a state, whether it grows with the tokens, which are its third axis then."""
    parts = pytree.tree_leaves(state, is_leaf=lambda part: isinstance(part, KV))
    return [isinstance(part, KV) for part in parts for _ in pytree.tree_leaves(part)]


def at_length(state: Any, length: int) -> Any:
    """The same memory as one of `length` tokens, also in the states that a state is made of."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    inner = {name: at_length(value, length) for name, value in fields.items() if isinstance(value, State)}
    return dataclasses.replace(state, length=length, **inner)


def _consumed(tokens: Tensor, state: State) -> int:
    return state.length


class Decoder(nn.Module):
    """A model with its memory laid open: (tokens, past) -> (logits, *present).

    The model that it is given is changed: it can be traced from then on, and checks nothing.
    """

    in_context: Tensor | None

    def __init__(self, model: LanguageModel, state: State) -> None:
        super().__init__()
        self.model = model
        self.structure = pytree.tree_structure(state)
        self.growing = growing(state)
        zeros = None if model.context is None else torch.zeros(model.context, dtype=torch.int64)
        self.register_buffer("in_context", zeros)
        for module in model.modules():
            if isinstance(module, LanguageModel):  # its own asks for sizes as numbers, which a trace would keep
                module.position = _consumed  # type: ignore[method-assign]
            if isinstance(module, Recordable):  # attention and recurrences are written out while someone listens
                module.listener = lambda name, tensor: None

    def forward(self, tokens: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Shapes: tokens (B, T) -> (B, T, V), and the memory after them."""
        lengths = [tensor.shape[2] for tensor, grows in zip(past, self.growing, strict=True) if grows]
        length = lengths[0] if lengths else 0  # what remembers in one size does not ask for it
        if self.in_context is not None:
            # To look up a zero fails beyond the context. The look-up of positions does not: onnxruntime 1.32 makes a
            # slice of it, which ends where the table ends, and adds a single row that is left over to every token.
            last = torch.full((1,), length + tokens.shape[1] - 1, device=tokens.device)
            tokens = tokens + self.in_context.index_select(0, last)
        state = at_length(pytree.tree_unflatten(past, self.structure), length)
        features, state = self.model(tokens, state)
        return self.model.readout(features), *pytree.tree_leaves(state)


class OneToken(Decoder):
    """The same for one token of each row. Shapes: (B,) -> (B, V), and the memory after it."""

    def forward(self, tokens: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        logits, *present = super().forward(tokens[:, None], past)
        return logits[:, 0], *present


def over_time(step: "ModelProto") -> "ModelProto":
    """A graph of one token, `OneToken`, repeated over those of a text. Its weights stay outside of what is repeated."""
    from onnx import ModelProto, ValueInfoProto, helper

    def renamed(value: ValueInfoProto, name: str) -> ValueInfoProto:
        copy = ValueInfoProto()
        copy.CopyFrom(value)
        copy.name = name
        return copy

    inner = step.graph
    (token, *before), (following, *after) = inner.input, inner.output
    past = [renamed(value, f"past.{index}") for index, value in enumerate(before)]
    present = [renamed(value, f"present.{index}") for index, value in enumerate(after)]
    of_token, of_next = token.type.tensor_type, following.type.tensor_type
    vocab_size = of_next.shape.dim[1].dim_value
    tokens = helper.make_tensor_value_info("tokens", of_token.elem_type, ["batch", "new"])
    logits = helper.make_tensor_value_info("logits", of_next.elem_type, ["batch", "new", vocab_size])
    repeated = helper.make_node(
        "Scan",
        [*(value.name for value in past), "steps"],
        [*(value.name for value in present), "all"],
        body=helper.make_graph(inner.node, "step", [*before, token], [*after, following]),
        num_scan_inputs=1,
    )
    nodes = [  # a Scan walks along the first axis
        helper.make_node("Transpose", ["tokens"], ["steps"], perm=[1, 0]),
        repeated,
        helper.make_node("Transpose", ["all"], ["logits"], perm=[1, 0, 2]),
    ]
    graph = helper.make_graph(nodes, inner.name, [tokens, *past], [logits, *present], inner.initializer)
    whole = ModelProto()
    whole.CopyFrom(step)
    whole.graph.CopyFrom(graph)
    return whole


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the terminal what the exporter logs, warns of and prints; what ends it is raised as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def converted(decoder: Decoder, start: list[Tensor]) -> torch.onnx.ONNXProgram:
    """The graph of a decoder, whose memory of nothing for two rows is `start`.

    Raises InputError for what torch cannot trace.
    """
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    of_text = not isinstance(decoder, OneToken)
    tokens = torch.zeros((2, 3) if of_text else (2,), dtype=torch.int64)  # a size of 0 or 1 would stay in the trace
    past = [
        tensor.new_zeros(*tensor.shape[:2], 2, *tensor.shape[3:]) if grows else tensor.clone()
        for tensor, grows in zip(start, decoder.growing, strict=True)
    ]
    batch, new, before = (torch.export.Dim(axis) for axis in ("batch", "new", "past"))
    shapes = (
        {0: batch, 1: new} if of_text else {0: batch},
        [{0: batch, 2: before} if grows else {0: batch} for grows in decoder.growing],
    )
    ins, outs = (("tokens", "past"), ("logits", "present")) if of_text else (("token", "before"), ("next", "after"))
    try:
        with quiet():  # the exporter traces by itself too, but gives an axis one size where it cannot vary
            trace = torch.export.export(decoder, (tokens, past), dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                trace,
                (tokens, past),
                dynamic_shapes=shapes,
                input_names=[ins[0], *(f"{ins[1]}.{index}" for index in range(len(past)))],
                output_names=[outs[0], *(f"{outs[1]}.{index}" for index in range(len(past)))],
                dynamo=True,
                verbose=False,
            )
    except RuntimeError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise InputError(f"torch cannot make a graph of this {type(decoder.model).__name__}: {reason}") from error
    program = cast(torch.onnx.ONNXProgram, exported)
    if not of_text:
        program.model = onnx_ir.from_proto(over_time(program.model_proto))
    ClearMetadataAndDocStringPass()(program.model)  # it says where each line of code lies on this disk
    return program


def check(program: torch.onnx.ONNXProgram, decoder: Decoder, past: list[Tensor]) -> None:
    """Compare the graph, as ONNX's own reference runs it, with the model: from a memory of nothing, in two chunks.

    Raises InputError where they differ.
    """
    from onnx.reference import ReferenceEvaluator

    model, reference = decoder.model, ReferenceEvaluator(program.model_proto)
    ours, theirs = past, [tensor.numpy() for tensor in past]
    for new in (1, 3) if model.context is None or model.context > 3 else (1,):
        tokens = torch.arange(2 * new).view(2, new) % model.config.vocab_size
        logits, *ours = Decoder.forward(decoder, tokens, ours)
        found, *theirs = reference.run(None, dict(zip(reference.input_names, [tokens.numpy(), *theirs], strict=True)))
        for mine, other in zip((logits, *ours), map(torch.from_numpy, (found, *theirs)), strict=True):
            if mine.shape != other.shape or not (mine - other).norm() <= 1e-3 * mine.norm():  # also where one is NaN
                raise InputError(
                    f"the graph of this {type(model).__name__} does not compute what the model does for {new} new "
                    "tokens, since a graph has one path; write its forward() so that any number of tokens takes one"
                )


@torch.no_grad()
def traced(model: LanguageModel) -> torch.onnx.ONNXProgram:
    """The graph of a model, which can be used for nothing else afterwards.

    Raises InputError for a model that no such graph can be made of.
    """
    name = type(model).__name__
    if model.takes_source:
        raise InputError(
            f"a {name} reads a source with one graph and writes with another, and --to onnx writes models of one "
            "graph; export a GPT, a Backpack, a CNN or a recurrent model, or use this one with scratchlm translate"
        )
    state = model.initial_state(2)
    start = pytree.tree_leaves(state)
    if not all(isinstance(leaf, Tensor) and not leaf.any() for leaf in start):
        raise InputError(f"the memory that a {name} starts with is more than zeros; give zeros in initial_state()")
    grows = any(growing(state))
    if model.context is not None and not grows:
        raise InputError(
            f"a {name} has a context of {model.context} tokens and a memory of one size, from which a graph cannot "
            "tell the position; what has no such limit, or a memory that grows, can be exported"
        )
    decoder = (Decoder if grows or isinstance(model, CNN) else OneToken)(model, state).eval()
    program = converted(decoder, start)
    check(program, decoder, start)
    return program


def _described(value: Any) -> dict[str, Any]:
    shape = [axis if isinstance(axis, int) else str(axis) for axis in value.shape]
    return {"name": value.name, "dtype": str(value.dtype.numpy()), "shape": shape}


def export_onnx(run: RunFolder, checkpoint: Checkpoint, folder: Path) -> None:
    """A checkpoint that was verified, as a folder of a graph, what goes in and out of it, and the tokenizer.

    Weights beyond 1.5 GiB lie beside the graph, in model.onnx.data: torch decides, and a protobuf ends at 2 GiB.
    Raises InputError for a run that cannot be a graph, where packages are missing, and where the folder is there
    already; nothing is left behind then.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"--to onnx needs two more packages: pip install 'scratchlm[onnx]' ({error})") from error
    config, tokenizer = run.config(), run.tokenizer()
    with new_folder(folder) as beside:
        model = plain_model(run, checkpoint).eval()
        context = model.context
        program = traced(model)
        program.save(beside / GRAPH)
        graph = program.model.graph
        description = {
            "arch": config.arch,
            "model": dataclasses.asdict(config.model),
            "context": context,
            "end_of_text": tokenizer.end_of_text,
            "inputs": [_described(value) for value in graph.inputs],
            "outputs": [_described(value) for value in graph.outputs],
            "step": checkpoint.step,
        }
        write_json(beside / DESCRIPTION, description)
        tokenizer.save(beside / TOKENIZER)
        for file in (*beside.iterdir(), beside):
            sync(file)
