"""A Backpack in the layout of stanfordnlp/backpack-gpt2.

    hub                                             here
    backpack.gpt2_model.*                           trunk.*
    backpack.sense_network.ln, block.ln_1, ln_2     sense_network.embedding_norm, mlp_norm, senses_norm
    backpack.sense_network.block.mlp, final_mlp     sense_network.mlp, senses_mlp       Conv1D: transposed
    backpack.sense_weight_net.c_attn                contextualisation.query_key         a Linear: not transposed

Both keep the senses of a token one after another, so that no row has to move.
"""

from collections.abc import Mapping
from typing import Any

from scratchlm.errors import InputError
from scratchlm.interop.hub import gpt2
from scratchlm.interop.hub.layout import Layout, Place, places_of
from scratchlm.models.backpack import BackpackConfig

ARCHITECTURE, TRUNK = "BackpackGPT2LMHeadModel", "backpack.gpt2_model."
SENSES, SCALE = "num_senses", "sense_intermediate_scale"
OURS = {
    "contextualisation.query_key": ("sense_weight_net.c_attn", False),
    "sense_network.embedding_norm": ("sense_network.ln", False),
    "sense_network.mlp_norm": ("sense_network.block.ln_1", False),
    "sense_network.mlp.hidden": ("sense_network.block.mlp.c_fc", True),
    "sense_network.mlp.output": ("sense_network.block.mlp.c_proj", True),
    "sense_network.senses_norm": ("sense_network.block.ln_2", False),
    "sense_network.senses_mlp.hidden": ("sense_network.final_mlp.c_fc", True),
    "sense_network.senses_mlp.output": ("sense_network.final_mlp.c_proj", True),
}
WIDTHS = (
    "sense_width scales both matrices inside the senses' network here, sense_intermediate_scale on the hub only the "
    "last, and the two agree at 4"
)


def _is_levanter(config: Mapping[str, Any]) -> bool:
    """Levanter's own names: of its model type, of the module that its code lies in, or of its folders on the hub."""
    code = config.get("auto_map")
    modules = [str(place).rpartition(".")[0] for place in code.values()] if isinstance(code, Mapping) else []
    return (
        config.get("model_type") == "backpack-gpt2"
        or any(module.endswith("backpack_model") for module in modules)
        or "levanter" in str(config.get("_name_or_path")).lower()
    )


def _read_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    if _is_levanter(config):
        raise InputError(
            "this is a Backpack of Levanter's: its tensors have the same names, but it divides the sum over senses by "
            "their number, so that a model here would predict something else with them; it cannot be imported"
        )
    if (kind := config.get("model_type")) != "gpt2":
        raise InputError(
            f"model_type is {kind!r}; that of stanfordnlp/backpack-gpt2 is 'gpt2', and Backpacks of other kinds "
            "compute something else with the same names of tensors (Levanter's divide by the number of senses)"
        )
    if gpt2.INVERSE not in config:
        raise InputError(
            f"there is no {gpt2.INVERSE}, which says whether each block's attention scores are divided by the block's "
            "number; the weights fit both, and predict badly with the wrong one. "
            f'Write "{gpt2.INVERSE}": true if the model was trained so, as stanfordnlp/backpack-gpt2 was, else false'
        )
    if (scale := config.get(SCALE)) != 4:
        raise InputError(f"{SCALE} is {scale!r}; only 4 can be read: {WIDTHS}")
    senses = gpt2.whole_number(config, SENSES)
    return {**gpt2.read_shape(config, {SENSES, SCALE}), "senses": senses, "sense_width": 4}


def _write_shape(shape: BackpackConfig) -> dict[str, Any]:
    if shape.sense_width != 4:
        raise InputError(
            f"the model's sense_width is {shape.sense_width}, and only 4 has a place in the hub's layout: {WIDTHS}"
        )
    return {**gpt2.write_shape(shape.trunk), SENSES: shape.senses, SCALE: shape.sense_width}


def _places(depth: int) -> dict[str, Place]:
    return gpt2.places(depth, "trunk.", TRUNK) | places_of(OURS, theirs="backpack.")


BACKPACK = Layout(
    architectures=(ARCHITECTURE,),
    read_shape=_read_shape,
    write_shape=_write_shape,
    places=_places,
    aliases={
        f"{TRUNK}wte.weight": ("backpack.word_embeddings.weight", "lm_head.weight"),
        f"{TRUNK}wpe.weight": ("backpack.position_embeddings.weight",),
    },
    buffers=lambda depth: gpt2.masks(depth, TRUNK),
)
