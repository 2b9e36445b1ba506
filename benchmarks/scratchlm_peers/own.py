"""Models of ours that another of ours is measured against, and what is one by its interface."""

import copy

import torch
import torch.nn.functional as F

from scratchlm.data.batches import IGNORED
from scratchlm.evaluation import features_and_state, wide_logits
from scratchlm.generation import generate as generated
from scratchlm.models.gpt import GPT, GPTConfig
from scratchlm_peers.rival import Rival

CONTEXT = 256  # tokens that the GPT reads, the window of the preset of a CNN


def language_model(module):
    """A model that obeys the contract as a rival."""

    def loss(batch):
        features, _ = features_and_state(module, batch, None)
        return F.cross_entropy(wide_logits(module, features), batch.targets.flatten(), ignore_index=IGNORED)

    def generate(prompts, new, source):
        return torch.tensor(generated(module, prompts.tolist(), new, temperature=0), device=prompts.device)

    return Rival(module=module, loss=loss, generate=generate)


def trunk(model):
    """A Backpack's trunk: what the senses cost is what it is slower."""
    return language_model(copy.deepcopy(model.trunk))


def gpt(model):
    """The GPT of as many parameters, as `scratchlm compare` sizes it."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = GPTConfig.sized(parameters, vocab_size=model.config.vocab_size, context=CONTEXT)
    return language_model(GPT(config).to(next(model.parameters()).device))
