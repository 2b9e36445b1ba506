"""A model's modules: shapes, parameters and floating-point operations, counted and not estimated."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from scratchlm.model import LanguageModel, Source, record


@dataclass(frozen=True, kw_only=True)
class ModuleRow:
    """One module: its place in the tree, the shapes of its own parameters, and all parameters below it."""

    name: str
    depth: int
    kind: str
    shapes: dict[str, tuple[int, ...]]
    parameters: int


def module_rows(model: LanguageModel) -> Iterator[ModuleRow]:
    """The module tree, parents before children."""
    for name, module in model.named_modules():
        yield ModuleRow(
            name=name or type(model).__name__,
            depth=name.count(".") + 1 if name else 0,
            kind=type(module).__name__,
            shapes={key: tuple(parameter.shape) for key, parameter in module.named_parameters(recurse=False)},
            parameters=sum(parameter.numel() for parameter in module.parameters()),
        )


def flops_per_token(model: LanguageModel, window: int) -> float:
    """Floating-point operations of the forward pass for each token of a window; training takes three times as many.

    A model that reads a source reads one as long as the window, if it can, and what that costs is counted too.

    Counts the matrix products that run, a multiplication and an addition as two, attention over the whole square.
    """
    training = model.training
    model.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), record(model), counter:  # the written-out paths: a fused kernel hides its products
        read_window(model, window)
    model.train(training)
    return counter.get_total_flops() / window


def read_window(model: LanguageModel, window: int) -> None:
    """Have a model read a window of zeros up to its logits, and a source as long first, where it takes one."""
    tokens = torch.zeros(1, window, dtype=torch.int64, device=next(model.parameters()).device)
    read = tokens[:, : model.source_context]
    source = Source(read, torch.tensor([read.shape[1]], device=tokens.device))
    features, _ = model(tokens, model.initial_state(1, source=source) if model.takes_source else None)
    model.readout(features)
