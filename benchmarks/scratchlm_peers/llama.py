"""A Llama as transformers has it."""

from transformers import LlamaConfig, LlamaForCausalLM

from scratchlm_peers.gpt2 import of_transformers
from scratchlm_peers.rival import Rival


def rival(model) -> Rival:
    config, device = model.config, next(model.parameters()).device
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context,
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        intermediate_size=config.hidden_dim,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        tie_word_embeddings=config.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    module = LlamaForCausalLM(shape).to(device)
    ours = model.state_dict()
    theirs = {
        "model.embed_tokens.weight": ours["token_embedding.weight"],
        "model.norm.weight": ours["final_norm.weight"],
        "lm_head.weight": ours["token_embedding.weight" if config.tied else "head.weight"],
    }
    for block in range(config.depth):
        own, there = f"blocks.{block}.", f"model.layers.{block}."
        keys, values = ours[own + "attention.key_value.weight"].chunk(2)
        gate, hidden = ours[own + "mlp.gate_hidden.weight"].chunk(2)
        theirs |= {
            there + "self_attn.q_proj.weight": ours[own + "attention.query.weight"],
            there + "self_attn.k_proj.weight": keys,
            there + "self_attn.v_proj.weight": values,
            there + "self_attn.o_proj.weight": ours[own + "attention.output.weight"],
            there + "mlp.gate_proj.weight": gate,
            there + "mlp.up_proj.weight": hidden,
            there + "mlp.down_proj.weight": ours[own + "mlp.output.weight"],
            there + "input_layernorm.weight": ours[own + "attention_norm.weight"],
            there + "post_attention_layernorm.weight": ours[own + "mlp_norm.weight"],
        }
    module.load_state_dict(theirs)
    return of_transformers(module)
