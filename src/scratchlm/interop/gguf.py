r"""A GPT in one file of llama.cpp, GGUF, as its gpt2 architecture.

    here                                                there
    token_embedding, position_embedding                 token_embd, position_embd
    blocks.N.attention_norm, .mlp_norm                  blk.N.attn_norm, .ffn_norm
    blocks.N.attention.query_key_value, .output         blk.N.attn_qkv, .attn_output
    blocks.N.mlp.hidden, .output                        blk.N.ffn_up, .ffn_down
    final_norm                                          output_norm

Matrices lie there as here, (out, in). There is no output.weight: the readout is token_embd, as here. Biases must be
there, so those that a model lacks are zeros. What another function would come out of is refused: the gpt2 of llama.cpp
has the tanh GELU and no inverse_layer_scaling, and its tokenizers cut text by patterns that have names there.

Source: llama.cpp, src/models/gpt2.cpp and src/llama-vocab.cpp, commit 00ad355.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from scratchlm.checkpoint import Checkpoint, RunFolder, plain_weights
from scratchlm.errors import InputError
from scratchlm.files import new_folder, sync
from scratchlm.interop.vocabularies import byte_level_names
from scratchlm.models.gpt import GPTConfig
from scratchlm.tokenizers import BPETokenizer, IdTokenizer, Tokenizer

FILE = "model.gguf"

# Our pattern -> what the one that cuts alike is called there. dbrx is gpt4's, but for an apostrophe before U+017F, the
# long s, which is no contraction there. o200k has none: gpt-4o knows capitals in ASCII only.
PRE_TOKENIZERS = {"gpt2": "gpt-2", "gpt4": "dbrx"}

REMEDY = (  # all of it, since each part takes a new training
    "train with --model.activation gelu-tanh and a tokenizer made by scratchlm tokenizer train --pattern gpt2, or "
    "export --to hf"
)
EMBEDDINGS = {"token_embedding": "token_embd", "position_embedding": "position_embd"}
BLOCK = {
    "attention_norm": "attn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.output": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.hidden": "ffn_up",
    "mlp.output": "ffn_down",
}


def export_gguf(run: RunFolder, checkpoint: Checkpoint, folder: Path) -> None:
    """A checkpoint of a GPT that was verified, as a new folder with model.gguf: float32, and the tokenizer with it.

    Raises InputError where the package gguf is missing, for what llama.cpp would compute or encode otherwise, and
    where the folder is there already; nothing is left behind then.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError("--to gguf takes the package gguf; run: pip install 'scratchlm[gguf]'") from error
    config = run.config()
    if config.arch != "gpt":
        raise InputError(f"{run.path} is a run of {config.arch}, and of ours llama.cpp knows the gpt alone; export one")
    shape = _known_shape(config.model)
    tokenizer = _known_tokenizer(run.tokenizer())
    tokens, types = _tokens(tokenizer, shape.vocab_size)
    with new_folder(folder) as beside:
        writer = gguf.GGUFWriter(beside / FILE, "gpt2")
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.dim)
        writer.add_feed_forward_length(4 * shape.dim)
        writer.add_block_count(shape.depth)
        writer.add_head_count(shape.heads)
        writer.add_layer_norm_eps(1e-5)  # as layers.py
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(PRE_TOKENIZERS[tokenizer.pattern])
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType[kind] for kind in types])
        writer.add_token_merges([f"{tokens[left]} {tokens[right]}" for left, right in tokenizer.merges])
        if tokenizer.end_of_text is not None:  # which _known_tokenizer has seen
            writer.add_bos_token_id(tokenizer.end_of_text)
            writer.add_eos_token_id(tokenizer.end_of_text)
        writer.add_add_bos_token(False)
        for name, array in _arrays(plain_weights(run, checkpoint), shape).items():
            writer.add_tensor(name, array)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        for path in (beside / FILE, beside):
            sync(path)


def _known_shape(shape: GPTConfig) -> GPTConfig:
    if shape.activation != "gelu-tanh":
        raise InputError(
            f"the activation is {shape.activation}, and llama.cpp's gpt2 computes gelu-tanh, another function; {REMEDY}"
        )
    if shape.inverse_layer_scaling:
        raise InputError(
            "inverse_layer_scaling is True, and llama.cpp's gpt2 does not divide by a block's number; train without "
            "--model.inverse-layer-scaling, or export --to hf"
        )
    return shape


def _known_tokenizer(tokenizer: Tokenizer) -> BPETokenizer:
    if isinstance(tokenizer, IdTokenizer):
        raise InputError(
            "the run's text are ids, and llama.cpp wants the tokenizer that they are of: import the model with it, "
            "--tokenizer gpt2 or FILE, or export --to hf"
        )
    if not isinstance(tokenizer, BPETokenizer):
        raise InputError(
            f"the tokenizer is one of {tokenizer.kind}, and llama.cpp's gpt2 has byte-pair encodings; {REMEDY}"
        )
    if tokenizer.characters is not None:
        raise InputError(f"the tokenizer merges characters, and llama.cpp's gpt2 merges bytes; {REMEDY}")
    if tokenizer.pattern not in PRE_TOKENIZERS:
        raise InputError(
            f"the tokenizer's pattern is {tokenizer.pattern}, and llama.cpp cuts text alike by "
            f"{' and '.join(PRE_TOKENIZERS)} alone; {REMEDY}"
        )
    if tokenizer.end_of_text is None:
        raise InputError(
            f"the tokenizer has no end-of-text token, and llama.cpp would end its texts at the token 11; {REMEDY}"
        )
    if not tokenizer.merges:
        raise InputError(f"the tokenizer has no merges, and llama.cpp opens no vocabulary without them; {REMEDY}")
    return tokenizer


def _tokens(tokenizer: BPETokenizer, rows: int) -> tuple[list[str], list[str]]:
    """The name of each row of the embedding, and its kind; a row that is no token is called as llama.cpp's tools do."""
    names = byte_level_names(tokenizer)
    special = {number: name for name, number in tokenizer.special_tokens.items()}
    after = range(len(names), rows)
    tokens = [*names, *(special.get(number, f"[PAD{number}]") for number in after)]
    if len(set(tokens)) < len(tokens):
        raise InputError(
            "a token has the name [PAD...] of a row that is no token; llama.cpp tells tokens by their names, so "
            "export --to hf"
        )
    return tokens, ["NORMAL"] * len(names) + ["CONTROL" if number in special else "UNUSED" for number in after]


def _arrays(weights: Mapping[str, Tensor], shape: GPTConfig) -> dict[str, np.ndarray]:
    """llama.cpp's tensors out of ours."""
    modules = {
        **{f"blocks.{n}.{ours}": f"blk.{n}.{theirs}" for n in range(shape.depth) for ours, theirs in BLOCK.items()},
        "final_norm": "output_norm",
    }
    arrays = {f"{theirs}.weight": weights[f"{ours}.weight"].numpy() for ours, theirs in (EMBEDDINGS | modules).items()}
    for ours, theirs in modules.items():
        width = arrays[f"{theirs}.weight"].shape[0]
        bias = weights.get(f"{ours}.bias")
        arrays[f"{theirs}.bias"] = np.zeros(width, np.float32) if bias is None else bias.numpy()
    return arrays
