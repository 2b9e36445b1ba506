"""Models in the folders of Hugging Face's hub: read into a run of ours, and a run of ours written as one.

    config.json                                    the shape, and switches that change what the model computes
    model.safetensors                              the weights, or
    model.safetensors.index.json                   which of several files each tensor is in; where there is neither, a
                                                   pickle, pytorch_model.bin
    tokenizer.json, or vocab.json and merges.txt   the vocabulary

Nothing is guessed: a switch that would make another function of the same weights is taken over or refused, and a
tensor that is missing, left over or of another shape is named.
"""

from scratchlm.interop.hub.files import hub_folder
from scratchlm.interop.hub.runs import Imported, export_run, import_run

__all__ = ["Imported", "export_run", "hub_folder", "import_run"]
