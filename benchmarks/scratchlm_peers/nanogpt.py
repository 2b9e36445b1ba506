"""nanoGPT's own model, optimizer and generation, out of a clone of github.com/karpathy/nanoGPT."""

import contextlib
import importlib.util
import io
from pathlib import Path

import torch

from scratchlm_peers.rival import Rival

BLOCK = {
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.hidden": "mlp.c_fc",
    "mlp.output": "mlp.c_proj",
}


def quietly(function, *arguments, **named):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it counts
        return function(*arguments, **named)


def rival(model, folder):
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    config, device = model.config, next(model.parameters()).device
    shape = theirs.GPTConfig(
        block_size=config.context,
        vocab_size=config.vocab_size,
        n_layer=config.depth,
        n_head=config.heads,
        n_embd=config.dim,
        dropout=config.dropout,
        bias=config.bias,
    )
    module = quietly(theirs.GPT, shape).to(device)
    names = {
        "transformer.wte.": "token_embedding.",
        "transformer.wpe.": "position_embedding.",
        "transformer.ln_f.": "final_norm.",
    }
    for block in range(config.depth):
        names |= {f"transformer.h.{block}.{there}.": f"blocks.{block}.{here}." for here, there in BLOCK.items()}
    weights = model.state_dict()
    with torch.no_grad():
        for name, parameter in module.named_parameters():  # a tied matrix comes once, as wte
            prefix, _, kind = name.rpartition(".")
            parameter.copy_(weights[names[prefix + "."] + kind])

    def optimizer(module, optim):
        betas = (optim.beta1, optim.beta2)
        return quietly(module.configure_optimizers, optim.weight_decay, optim.lr, betas, device.type)

    def loss(batch):
        return module(batch.tokens, batch.targets)[1]

    return Rival(module=module, loss=loss, optimizer=optimizer)
