"""GPT-2 as transformers has it: what its config.json means, and what its tensors are called.

    transformers                                    here
    transformer.wte, wpe, ln_f                      token_embedding, position_embedding, final_norm
    transformer.h.0.attn.c_attn, c_proj             blocks.0.attention.query_key_value, output     Conv1D: transposed
    transformer.h.0.mlp.c_fc, c_proj                blocks.0.mlp.hidden, output                    likewise
    lm_head.weight                                  token_embedding.weight, of which it is an alias

Files of GPT2Model, openai-community/gpt2 among them, have the names without "transformer.". What is built on a GPT-2
uses this too: a Backpack's trunk is one.
"""

from collections.abc import Mapping
from typing import Any

from scratchlm.errors import InputError
from scratchlm.interop.hub.layout import Layout, Place, places_of
from scratchlm.models.gpt import GPTConfig

ACTIVATIONS = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu": "gelu"}  # theirs -> ours
SIZES = {"vocab_size": "vocab_size", "n_positions": "context", "n_embd": "dim", "n_layer": "depth", "n_head": "heads"}
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
INVERSE = "scale_attn_by_inverse_layer_idx"
TRUNK = "transformer."

# what a switch must say, what it means where it is left out, and why
SWITCHES: dict[str, tuple[Any, str]] = {
    "layer_norm_epsilon": (1e-5, "norms here add 1e-5"),
    "scale_attn_weights": (True, "attention here divides its scores by the root of a head's width"),
    "tie_word_embeddings": (True, "a model here reads out with its embedding"),
}

# of how a model is made, kept, called, or drawn from; nothing of what it computes in float32
OF_NO_EFFECT = {
    "_attn_implementation_autoset", "_name_or_path", "_num_labels", "architectures", "auto_map", "bos_token_id",
    "dtype", "eos_token_id", "gradient_checkpointing", "id2label", "initializer_range", "label2id", "model_type",
    "num_labels", "output_attentions", "output_hidden_states", "output_past", "pad_token_id", "predict_special_tokens",
    "reorder_and_upcast_attn", "return_dict", "sep_token_id", "summary_activation", "summary_first_dropout",
    "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params", "tokenizer_class",
    "torch_dtype", "transformers_version", "unk_token_id", "use_cache",
    "begin_suppress_tokens", "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
    "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
}  # fmt: skip

BLOCK = {
    "attention_norm": ("ln_1", False),
    "attention.query_key_value": ("attn.c_attn", True),
    "attention.output": ("attn.c_proj", True),
    "mlp_norm": ("ln_2", False),
    "mlp.hidden": ("mlp.c_fc", True),
    "mlp.output": ("mlp.c_proj", True),
}


def whole_number(config: Mapping[str, Any], key: str) -> int:
    """A size in a config.json. Raises InputError where it is missing or none."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{key} is {value!r}; it must be a whole number, 1 or more")
    return value


def read_shape(config: Mapping[str, Any], also: set[str]) -> dict[str, Any]:
    """The settings of a GPT out of config.json; `also`: keys that the caller reads itself.

    Raises InputError for a feature that a GPT here does not have, and for one that is not known.
    """
    if "n_positions" not in config and "n_ctx" in config:  # its older name
        config = {**config, "n_positions": config["n_ctx"]}
    shape: dict[str, Any] = {ours: whole_number(config, theirs) for theirs, ours in SIZES.items()}
    for key, (value, why) in SWITCHES.items():
        if config.get(key, value) != value:
            raise InputError(f"{key} is {config[key]!r}; only {value} can be read: {why}")
    if config.get("n_inner") not in (None, 4 * shape["dim"]):
        raise InputError(f"n_inner is {config['n_inner']!r}; only 4 * n_embd (or null) can be read")
    if config.get("n_ctx", shape["context"]) != shape["context"]:
        raise InputError(f"n_ctx is {config['n_ctx']!r} and n_positions {shape['context']}; one is wrong")
    activation = config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise InputError(f"activation_function is {activation!r}; {', '.join(ACTIVATIONS)} can be read")
    dropouts = {key: config.get(key, 0.1) for key in DROPOUTS}
    dropout = dropouts["resid_pdrop"]
    if any(other != dropout for other in dropouts.values()) or not isinstance(dropout, (int, float)):
        raise InputError(
            f"{', '.join(f'{key} is {value!r}' for key, value in dropouts.items())}; a model here has one share of "
            "dropout, which counts in training only: write one number three times"
        )
    inverse = config.get(INVERSE, False)
    if not isinstance(inverse, bool):
        raise InputError(f"{INVERSE} is {inverse!r}; it must be true or false")
    known = {*SIZES, *SWITCHES, *DROPOUTS, *OF_NO_EFFECT, "n_inner", "n_ctx", "activation_function", INVERSE, *also}
    for key in sorted(config.keys() - known):
        if config[key]:
            raise InputError(
                f"{key} is {config[key]!r}, which is not known here and may change what the model computes; take it "
                "out if it does not"
            )
    activation = ACTIVATIONS[activation]
    return {**shape, "dropout": dropout, "activation": activation, "inverse_layer_scaling": inverse}


def write_shape(shape: GPTConfig) -> dict[str, Any]:
    """The keys of config.json that say what a GPT is."""
    theirs = {ours: name for name, ours in reversed(ACTIVATIONS.items())}  # of two names the first
    return {
        "model_type": "gpt2",
        **{key: getattr(shape, ours) for key, ours in SIZES.items()},
        "n_inner": None,
        "activation_function": theirs[shape.activation],
        **dict.fromkeys(DROPOUTS, shape.dropout),
        INVERSE: shape.inverse_layer_scaling,
        **{key: value for key, (value, _) in SWITCHES.items()},
        "initializer_range": 0.02,
    }


def places(depth: int, ours: str, theirs: str) -> dict[str, Place]:
    """Where a GPT's tensors are, with what stands before their names here and there."""
    embeddings = {"token_embedding": ("wte", False), "position_embedding": ("wpe", False)}
    found = places_of(embeddings, ours, theirs, ["weight"])
    for block in range(depth):
        found |= places_of(BLOCK, f"{ours}blocks.{block}.", f"{theirs}h.{block}.")
    return found | places_of({"final_norm": ("ln_f", False)}, ours, theirs)


def masks(depth: int, theirs: str) -> set[str]:
    """The causal masks that older files have among their tensors."""
    return {f"{theirs}h.{block}.attn.{name}" for block in range(depth) for name in ("bias", "masked_bias")}


def _read_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    if (kind := config.get("model_type")) != "gpt2":
        raise InputError(
            f"model_type is {kind!r}; that of a GPT-2 is 'gpt2', and the same names of tensors mean another model "
            "elsewhere"
        )
    return read_shape(config, set())


GPT2 = Layout(
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    read_shape=_read_shape,
    write_shape=write_shape,
    places=lambda depth: places(depth, "", TRUNK),
    aliases={f"{TRUNK}wte.weight": ("lm_head.weight",)},
    buffers=lambda depth: masks(depth, TRUNK),
    prefix=TRUNK,
)
