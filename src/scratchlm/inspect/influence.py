"""Which tokens of a text its next token depends on, by the gradient: for any model that embeds its tokens.

Letters in shapes: T tokens, D dim, L senses, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scratchlm.inspect.senses import token_senses
from scratchlm.model import LanguageModel, Source, record


def _embeddings(model: LanguageModel) -> list[nn.Embedding]:
    size = model.config.vocab_size
    return [part for part in model.modules() if isinstance(part, nn.Embedding) and part.num_embeddings == size]


def embeds(model: LanguageModel) -> bool:
    """Whether there is an embedding of tokens that gradients can be taken by."""
    return bool(_embeddings(model))


@contextmanager
def _embedded(model: LanguageModel) -> Iterator[list[Tensor]]:
    """What the model's embeddings give while the block runs, each a tensor that gradients can be taken by."""
    found: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if output.numel():
            output = output.detach().requires_grad_()
            found.append(output)
        return output

    handles = [part.register_forward_hook(cut) for part in _embeddings(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def influence(
    model: LanguageModel, tokens: Sequence[int], source: Source | None = None, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """How much each token has to do with the most probable next one, and the logits of the next one.

    That is the length of the gradient of that token's log-probability by the embedding of each token that was read; the
    lengths are divided by their sum. A token beyond the model's reach has exactly 0. Of a model that takes a source the
    source's tokens are meant, and `tokens` is what it has written so far.
    Shapes: -> (T,), (V,). `vocab_size`: ids from it on are not looked at.
    Raises ValueError where the model embeds no tokens.
    """
    if not embeds(model):
        raise ValueError(f"{type(model).__name__} embeds no tokens, so there is no gradient by them")
    device = next(model.parameters()).device
    ids = torch.tensor([tokens], device=device)
    training = model.training
    model.eval()
    try:
        with torch.enable_grad(), _embedded(model) as leaves, record(model) as shown:
            state = None
            if source is not None:
                state = model.initial_state(1, source=Source(source.ids.to(device), source.lengths.to(device)))
            features, _ = model(ids, state)
            leaf, last = leaves[0], features[0, -1]
            logits = model.readout(last)[:vocab_size]
            (wanted,) = torch.autograd.grad(logits.log_softmax(-1).max(), last, retain_graph=True)  # (D,)
            (gradient,) = torch.autograd.grad(last, leaf, wanted, allow_unused=True)
            read = len(tokens) if source is None else source.ids.shape[1]
            by_token = (torch.zeros_like(leaf) if gradient is None else gradient).reshape(read, -1)
            if model.has_senses:
                by_token = by_token + _through_senses(model, ids[0], shown["contextualisation.weights"][0], wanted)
    finally:
        model.train(training)
    lengths = by_token.norm(dim=-1)
    total = lengths.sum()
    return (lengths / total if total > 0 else lengths).cpu(), logits.detach().cpu()


def _through_senses(model: LanguageModel, tokens: Tensor, weights: Tensor, wanted: Tensor) -> Tensor:
    """The part of the gradient that goes through each token's own senses, with what is read of the context held still.

    The model makes the senses of each different token once, so they are made again here, token by token.
    Shapes: tokens (T,), weights (1, L, T, T), wanted (D,) -> (T, D).
    """
    with _embedded(model) as leaves:
        mixed = torch.einsum("lt,tld->d", weights[0, :, -1], token_senses(model, tokens))
    (gradient,) = torch.autograd.grad(mixed, leaves[0], wanted)
    return gradient
