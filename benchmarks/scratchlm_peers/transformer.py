"""torch's nn.Transformer, and what it leaves to its user: embeddings, their scale, positions, the readout."""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from scratchlm.data.batches import IGNORED
from scratchlm.models.transformer import sinusoids
from scratchlm_peers.rival import Rival, greedily


class TorchTransformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        with warnings.catch_warnings(action="ignore"):  # it says that it cannot use nested tensors before the norm
            self.core = nn.Transformer(
                config.dim, config.heads, config.depth, config.depth, config.hidden_dim,
                dropout=config.dropout, batch_first=True, norm_first=config.norm == "pre",
            )  # fmt: skip
        self.core.encoder.use_nested_tensor = False  # it would set padded positions to zeros
        if config.norm == "post":  # final norms are there whatever the norm, and the paper has none
            self.core.encoder.norm = self.core.decoder.norm = None
        length = max(config.context, config.source_context)
        self.register_buffer("positions", sinusoids(length, config.dim).float())

    def embed(self, ids):
        return self.embedding(ids) * math.sqrt(self.embedding.embedding_dim) + self.positions[: ids.shape[1]]

    def blocked(self, source):
        return torch.arange(source.ids.shape[1], device=source.ids.device) >= source.lengths[:, None]

    def decode(self, tokens, memory, blocked):
        future = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.core.decoder(
            self.embed(tokens), memory, tgt_mask=future, memory_key_padding_mask=blocked, tgt_is_causal=True
        )

    def forward(self, source, tokens):
        blocked = self.blocked(source)
        memory = self.core.encoder(self.embed(source.ids), src_key_padding_mask=blocked)
        return F.linear(self.decode(tokens, memory, blocked), self.embedding.weight)


def parts(name):
    """Our parameters that make up one of theirs, in order."""
    if name == "embedding.weight":
        return [name]
    _, stack, place, *rest = name.split(".")  # core.decoder.layers.0.multihead_attn.in_proj_weight
    kind = name.rpartition(".")[2].rpartition("_")[2]  # weight or bias
    if place == "norm":
        return [f"{stack}_norm.{kind}"]
    index, layer, *_ = rest
    block = f"{'encoder' if stack == 'encoder' else 'blocks'}.{index}"
    if layer.startswith("norm"):
        after = (
            ["attention", "feed_forward"] if stack == "encoder" else ["attention", "cross_attention", "feed_forward"]
        )
        return [f"{block}.{after[int(layer[-1]) - 1]}_norm.{kind}"]
    if layer.startswith("linear"):
        return [f"{block}.feed_forward.{'hidden' if layer == 'linear1' else 'output'}.{kind}"]
    attention = f"{block}.{'cross_attention' if layer == 'multihead_attn' else 'attention'}"
    if "out_proj" in rest:
        return [f"{attention}.output.{kind}"]
    if layer == "multihead_attn":
        return [f"{attention}.query.{kind}", f"source_memories.{index}.key_value.{kind}"]
    if stack == "encoder":
        return [f"{attention}.query.{kind}", f"{block}.keys_values.key_value.{kind}"]
    return [f"{attention}.query_key_value.{kind}"]


def rival(model):
    module = TorchTransformer(model.config).to(next(model.parameters()).device)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.cat([weights.pop(part) for part in parts(name)]))
    assert not weights, f"without a place: {', '.join(weights)}"

    def loss(batch):
        logits = module(batch.source, batch.tokens)
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)

    def generate(prompts, new, source):
        """It has no memory of what it read, so the target is read again for each token; the source is not."""
        with torch.inference_mode():
            blocked = module.blocked(source)
            memory = module.core.encoder(module.embed(source.ids), src_key_padding_mask=blocked)
            return greedily(
                lambda tokens: F.linear(module.decode(tokens, memory, blocked)[:, -1], module.embedding.weight),
                prompts,
                new,
            )

    return Rival(module=module, loss=loss, generate=generate)
