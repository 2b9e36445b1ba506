"""A GPT as transformers has it."""

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from scratchlm.data.batches import IGNORED
from scratchlm.interop.hub.gpt2 import GPT2, write_shape
from scratchlm_peers.rival import Rival


def of_transformers(module):
    """A causal language model of transformers as a rival."""
    module.generation_config.eos_token_id = None  # every row gets all of its tokens
    module.generation_config.pad_token_id = 0

    def loss(batch):
        logits = module(batch.tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)

    def generate(prompts, new, source):
        with torch.inference_mode():
            return module.generate(
                prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, do_sample=False
            )

    return Rival(module=module, loss=loss, generate=generate)


def rival(model):
    config = model.config
    weights, device = model.state_dict(), next(model.parameters()).device
    module = GPT2LMHeadModel(GPT2Config(**write_shape(config), bos_token_id=None, eos_token_id=None)).to(device)
    named = {
        place.name: weights[ours].mT if place.transposed else weights[ours]
        for ours, place in GPT2.places(config.depth).items()
    }
    said = module.load_state_dict(named, strict=False)
    assert not said.unexpected_keys
    assert set(said.missing_keys) <= {"lm_head.weight"}, said
    return of_transformers(module)
