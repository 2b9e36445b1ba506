"""What PEFT's files and the tensors in them are called."""

from collections.abc import Mapping
from dataclasses import replace

from scratchlm.interop.hub import gpt2
from scratchlm.interop.hub.layout import Place
from scratchlm.lora import WHOLE

CONFIG, SAFETENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, TRUNK = "base_model.model.", "transformer."
TIED = "token_embedding"
DORA_EMBEDDING = "PEFT learns a length for each column of an embedding, and a model here for each row, which is a token"

LINEAR = {"A": Place("lora_A.weight"), "B": Place("lora_B.weight"), "magnitude": Place("lora_magnitude_vector")}
EMBEDDING = {"A": Place("lora_embedding_B", transposed=True), "B": Place("lora_embedding_A", transposed=True)}


def names_of(depth: int) -> dict[str, str]:
    """What GPT2LMHeadModel calls each module of a GPT."""
    places = gpt2.places(depth, "", TRUNK)
    return {
        ours.removesuffix(".weight"): place.name.removesuffix(".weight")
        for ours, place in places.items()
        if ours.endswith(".weight")
    }


def place_of(tensor: str, names: Mapping[str, str], adapted: set[str]) -> Place:
    """Where PEFT has a tensor of an adapter of whole matrices; `adapted`: the modules whose matrices those are."""
    module, _, part = tensor.partition(".lora.")
    if part == "bias.shift":
        return Place(f"{PREFIX}{names[module]}.{'base_layer.' if module in adapted else ''}bias")
    place = (EMBEDDING if module.endswith("embedding") else LINEAR)[part.removeprefix(f"{WHOLE}.")]
    return replace(place, name=f"{PREFIX}{names[module]}.{place.name}")
