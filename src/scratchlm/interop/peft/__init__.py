"""Adapters in the files of Hugging Face's PEFT: a run with an adapter written as one, and one read into such a run.

    PEFT, on GPT2LMHeadModel                        here, on a GPT
    <module>.lora_A.weight, lora_B.weight           <module>.lora.whole.A, B
    transformer.wpe.lora_embedding_A, _B            position_embedding.lora.whole.B, A     transposed
    <module>.lora_magnitude_vector                  <module>.lora.whole.magnitude          DoRA
    <module>.base_layer.bias, <module>.bias         the base's bias + <module>.lora.bias.shift
    lora_alpha / r, patterns of both                LoRAConfig.alpha / rank, alphas and ranks

Modules are called as in `interop.hub.gpt2`, behind "base_model.model.". A matrix is adapted as a whole there: the
pairs of its parts become one pair, their ranks one after another, and B has zeros where a row is of another part.

What PEFT passes over in silence is an error here: a missing tensor, one left over, a feature that is not known.

A GPT has one embedding for reading and writing, and one change of it. PEFT (0.21.2) has two modules on that one matrix:

    its adapter is beside       there                                             here
    wte                         only what is read changes, until it is merged     refused
    lm_head                     only what is written changes, until it is merged  refused
    both, ensure_weight_tying   one change, merged twice                          token_embedding's change
    a saved lm_head             a matrix of its own                               refused

The first three mean something else once they are merged, and of the third PEFT loads one half of what it has saved:
so a change of token_embedding is not written for it.
"""

from scratchlm.interop.peft.reading import import_adapter
from scratchlm.interop.peft.writing import export_adapter

__all__ = ["export_adapter", "import_adapter"]
