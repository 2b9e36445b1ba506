"""The contract suite, and that of adapters, are tested by bugs: each must be caught by the check for its kind.

Each docstring names where the bug was seen.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import adapted
import contract
from scratchlm import generation, layers, lora, model
from scratchlm.models import backpack as backpacks
from scratchlm.models import llama as llamas
from scratchlm.models.backpack import Backpack, BackpackState
from scratchlm.models.bigram import Bigram
from scratchlm.models.cnn import CNN, CausalConvolution
from scratchlm.models.gpt import GPT, Block, GPTState
from scratchlm.models.gru import GRU
from scratchlm.models.llama import Llama, RMSNorm, Rotation
from scratchlm.models.lstm import LSTM, LongShortTermMemory
from scratchlm.models.rnn import RNN, Elman
from scratchlm.models.transformer import SourceAttention, Transformer, TransformerState
from toy import Toy, ToyState

MUTANTS = {}


def mutant(base, caught_by):
    """Register a function that breaks a model of class `base`, or what it uses through monkeypatch."""

    def register(function):
        MUTANTS[function.__name__] = (base, caught_by, function)
        return function

    return register


def forward_with(instance, forward):
    instance.forward = forward.__get__(instance)


@mutant(GPT, "stream")
def position_zero(gpt, monkeypatch):
    """ScratchLMs, GPT: a cached step always gets position 0."""
    embedding = gpt.position_embedding
    original = embedding.forward
    embedding.forward = lambda positions: original(torch.arange(len(positions)))


@mutant(GPT, "stream")
def mask_cut_on_the_wrong_side(gpt, monkeypatch):
    """LLMs-from-scratch, kv_cache/gpt2.py: the mask of a later chunk is cut as if the chunk were the first."""
    monkeypatch.setattr(layers, "future_mask", lambda t, s, device: torch.ones(t, s, dtype=torch.bool).triu(1))


@mutant(GPT, "stream")
def smear_forgets_its_neighbour(gpt, monkeypatch):
    """nanochat, gpt.py: the first token of a chunk is not mixed with the token before it."""
    original = gpt.token_embedding.forward

    def smeared(tokens):
        x = original(tokens)
        return x + 0.5 * F.pad(x, (0, 0, 1, 0))[:, :-1]

    gpt.token_embedding.forward = smeared


@mutant(GPT, "causal")
def mask_off_by_one(gpt, monkeypatch):
    """annotated-transformer and many copies: triu(k) with the wrong k lets a position see the next one."""

    def peeking(query, keys, values, dropout=0.0):
        mask = ~torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool).triu(keys.shape[2] - query.shape[2] + 2)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    monkeypatch.setattr(layers, "fused_attention", peeking)


@mutant(GPT, "causal")
def no_mask(gpt, monkeypatch):
    """An encoder's attention in a decoder."""
    monkeypatch.setattr(layers, "fused_attention", lambda q, k, v, dropout=0.0: F.scaled_dot_product_attention(q, k, v))


@mutant(GPT, "fork")
def cache_stays_when_rows_move(gpt, monkeypatch):
    """x-transformers, beam search: rows are reordered, the cache is not."""
    monkeypatch.setattr(GPTState, "select", lambda self, rows: self)


@mutant(GPT, "rollback")
def state_updated_in_place(gpt, monkeypatch):
    """transformers' DynamicCache: the cache that was passed in is the one that grows."""
    original = type(gpt).forward

    def forward(self, tokens, state=None):
        features, after = original(self, tokens, state)
        if state is not None:
            state.length, state.memories = after.length, after.memories
        return features, state

    forward_with(gpt, forward)


@mutant(GPT, "siblings")
def stale_memory_is_read(gpt, monkeypatch):
    """Static caches everywhere: two continuations share one buffer, the second overwrites the first in silence."""

    def write(self, start, end, stamp):
        return stamp

    monkeypatch.setattr(model.WriteLog, "write", write)


@mutant(GPT, "rows")
def statistics_over_the_batch(gpt, monkeypatch):
    """BatchNorm in place of LayerNorm: a row's features depend on its neighbours."""
    original = gpt.final_norm.forward
    gpt.final_norm.forward = lambda x: original(x - x.mean(0, keepdim=True))


@mutant(GPT, "gradients")
def dead_block(gpt, monkeypatch):
    """ScratchLMs, RNN: every layer reads the embedding and only the last one's output is used."""
    monkeypatch.setattr(
        Block, "forward", lambda self, x, memory, at: (x, self.attention(self.attention_norm(x), memory, at)[1])
    )


@mutant(GPT, "gradients")
def cache_cut_from_the_graph(gpt, monkeypatch):
    """Keys and values detached before they are kept: a carried state trains on half of its gradient."""

    def append(self, keys, values, at):
        grown = model.KV(
            torch.cat([self.keys, keys.detach()], 2), torch.cat([self.values, values.detach()], 2), None, 0
        )
        return grown.keys, grown.values, grown

    monkeypatch.setattr(model.KV, "append", append)


@mutant(GPT, "ragged")
def padding_without_a_mask(gpt, monkeypatch):
    """Batched generate() of many scripts: prompts are padded on the left, and the padding is read as text."""

    def padded(model, prompts, max_new_tokens, **options):
        longest = max(map(len, prompts))
        rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        new = original(model, rows, max_new_tokens, **options)
        return [row[longest - len(prompt) :] for row, prompt in zip(new, prompts, strict=True)]

    original = generation.generate
    monkeypatch.setattr(generation, "generate", padded)


@mutant(GPT, "ragged")
def one_generator_for_all_rows(gpt, monkeypatch):
    """torch.multinomial on the whole batch: what a row says depends on how many rows there are."""
    shared = torch.Generator().manual_seed(0)
    monkeypatch.setattr(generation, "row_generator", lambda seed, row: shared)


@mutant(GPT, "learns")
def softmax_before_the_loss(gpt, monkeypatch):
    """Probabilities handed to cross_entropy, which takes logits: the loss falls a little and stays."""
    original = gpt.readout
    gpt.readout = lambda features: original(features).softmax(-1)


@mutant(GPT, "stream")
def dropout_never_off(gpt, monkeypatch):
    """F.dropout(x, p) without training=self.training: generation is noisy for ever."""
    original = gpt.final_norm.forward
    gpt.final_norm.forward = lambda x: F.dropout(original(x), 0.1)


@mutant(GPT, "rows")
def heads_mixed_with_rows(gpt, monkeypatch):
    """view(B, H, T, K) where view(B, T, H, K).transpose(1, 2) is meant, on a tensor whose rows lie side by side."""
    attention = gpt.blocks[0].attention

    def project(x):
        batch, new, _ = x.shape
        mixed = attention.query_key_value(x.transpose(0, 1)).reshape(3, batch, attention.heads, new, -1)
        return mixed[0], mixed[1], mixed[2]

    attention.project = project


@mutant(GPT, "causal")
def scores_scaled_by_the_longest_row(gpt, monkeypatch):
    """Features normalised over time: an earlier position knows of the later ones through the mean."""
    original = gpt.final_norm.forward
    gpt.final_norm.forward = lambda x: original(x - x.mean(1, keepdim=True)) if x.shape[1] else original(x)


@mutant(Toy, "stream")
def hidden_state_reset(toy, monkeypatch):
    """ScratchLMs, RNN: the hidden state starts anew at every call."""
    original = type(toy).forward

    def forward(self, tokens, state=None):
        fresh = None if state is None else dataclasses.replace(self.initial_state(len(tokens)), length=state.length)
        return original(self, tokens, fresh)

    forward_with(toy, forward)


@mutant(Toy, "gradients")
def layers_all_read_the_embedding(toy, monkeypatch):
    """ScratchLMs, RNN: five of six layers are dead."""

    def forward(self, tokens, state=None):
        before = state if state is not None else self.initial_state(len(tokens))
        x = self.embedding(tokens)
        outputs = [layer(x, h) for layer, h in zip(self.blocks, before.hidden, strict=True)]
        after = (
            None if state is None else ToyState(length=state.length + tokens.shape[1], hidden=[h for _, h in outputs])
        )
        return outputs[-1][0], after

    forward_with(toy, forward)


@mutant(Toy, "rollback")
def hidden_state_written_in_place(toy, monkeypatch):
    """A carried hidden tensor that is filled with copy_(): whoever kept the older state has the newer one."""
    original = type(toy).forward

    def forward(self, tokens, state=None):
        features, after = original(self, tokens, state)
        if state is not None:
            with torch.no_grad():
                for kept, new in zip(state.hidden, after.hidden, strict=True):
                    kept.copy_(new)
        return features, after

    forward_with(toy, forward)


@mutant(RNN, "gradients")
def blocks_all_read_the_embedding(rnn, monkeypatch):
    """ScratchLMs, RNN: each block reads the embedding, so all but the last compute for nothing and train nothing."""

    def forward(self, tokens, state=None):
        before = self.initial_state(len(tokens)) if state is None else state
        x = self.token_embedding(tokens.t())
        outputs = [block(x, memory) for block, memory in zip(self.blocks, before.memories, strict=True)]
        features = self.final_norm(outputs[-1][0]).transpose(0, 1)
        after = dataclasses.replace(
            before, length=before.length + tokens.shape[1], memories=[memory for _, memory in outputs]
        )
        return features, None if state is None else after

    forward_with(rnn, forward)


@mutant(RNN, "stream")
def each_call_starts_anew(rnn, monkeypatch):
    """ScratchLMs, RNN: forward() resets the hidden states, so a sampled token follows from the last one alone."""
    original = type(rnn).forward

    def forward(self, tokens, state=None):
        fresh = None if state is None else dataclasses.replace(self.initial_state(len(tokens)), length=state.length)
        return original(self, tokens, fresh)

    forward_with(rnn, forward)


@mutant(RNN, "causal")
def state_kept_in_the_module(rnn, monkeypatch):
    """ScratchLMs, RNN: hidden states are attributes of the module, so one call leaks into the next."""
    original = type(rnn).forward

    def forward(self, tokens, state=None):
        kept = getattr(self, "kept", None) if state is None else state
        features, self.kept = original(self, tokens, self.initial_state(len(tokens)) if kept is None else kept)
        return features, None if state is None else self.kept

    forward_with(rnn, forward)


@mutant(RNN, "gradients")
def state_never_detached(rnn, monkeypatch):
    """ScratchLMs, RNN: a carried state is never detached, so a second backward pass meets a freed graph."""
    monkeypatch.setattr(model.State, "detach", lambda self: self)


@mutant(RNN, "ragged")
def prompt_padded_on_the_left(rnn, monkeypatch):
    """ScratchLMs, RNN: prompts are padded with a real token, and the padding moves the state on."""
    padding_without_a_mask(rnn, monkeypatch)


@mutant(RNN, "rollback")
def memory_filled_in_place(rnn, monkeypatch):
    """A hidden vector that is overwritten with copy_(): whoever kept the older state has the newer one."""
    original = Elman.forward

    def forward(self, x, memory):
        hidden, after = original(self, x, memory)
        with torch.no_grad():
            memory[0].copy_(after[0])
        return hidden, after

    monkeypatch.setattr(Elman, "forward", forward)


@mutant(RNN, "gradients")
def backpropagation_ends_at_the_chunk(rnn, monkeypatch):
    """A backward pass by hand that gives the carried vector no gradient: training through a state loses its past."""
    original = Elman.unroll_backward

    def unroll_backward(*arguments):
        projected, recurrent, before, memory = original(*arguments)
        return projected, recurrent, before, tuple(map(torch.zeros_like, memory))

    monkeypatch.setattr(Elman, "unroll_backward", staticmethod(unroll_backward))


@mutant(LSTM, "stream")
def cell_is_not_carried(lstm, monkeypatch):
    """A state of the hidden vector alone: many hand-written samplers drop c."""
    original = LongShortTermMemory.forward
    monkeypatch.setattr(
        LongShortTermMemory, "forward", lambda self, x, memory: original(self, x, (memory[0], 0 * memory[1]))
    )


@mutant(GRU, "rows")
def batch_read_as_time(gru, monkeypatch):
    """nn.GRU without batch_first=True on a batch-first tensor: the recurrence runs over the rows."""

    def forward(self, x, memory):
        hidden, _ = original(self, x.transpose(0, 1), (memory[0].new_zeros(len(x), memory[0].shape[1]),))
        return hidden.transpose(0, 1), memory

    original = type(gru.blocks[0].recurrence).forward
    monkeypatch.setattr(type(gru.blocks[0].recurrence), "forward", forward)


@mutant(Bigram, "causal")
def table_read_at_the_target(bigram, monkeypatch):
    """Inputs and targets shifted the wrong way: the row of the next token is the one that is read."""
    original = type(bigram).forward
    forward_with(bigram, lambda self, tokens, state=None: original(self, tokens.roll(-1, 1), state))


def convolve_with(monkeypatch, change):
    """Let `change` have its hand in what each convolution reads and keeps: (x, memory, convolution) -> (y, memory)."""
    original = CausalConvolution.forward

    def forward(self, x, memory=None):
        return change(lambda x, memory: original(self, x, memory), x, memory, self)

    monkeypatch.setattr(CausalConvolution, "forward", forward)


@mutant(CNN, "causal")
def padding_on_both_sides(cnn, monkeypatch):
    """nn.Conv1d(padding="same") and keras' Conv1D without "causal": each position sees half a kernel of its future."""

    def centred(convolve, x, memory, layer):
        ahead = layer.reach // 2
        y, memory = convolve(F.pad(x, (0, 0, 0, ahead)), memory)
        return y[:, ahead:], memory[:, : layer.reach]

    convolve_with(monkeypatch, centred)


@mutant(CNN, "causal")
def head_chopped_instead_of_the_tail(cnn, monkeypatch):
    """Padded on both sides as in TCN, but the first outputs are cut off, where its Chomp1d cuts the last ones."""

    def chopped(convolve, x, memory, layer):
        y, memory = convolve(F.pad(x, (0, 0, 0, layer.reach)), memory)
        return y[:, layer.reach :], memory[:, : layer.reach]

    convolve_with(monkeypatch, chopped)


@mutant(CNN, "stream")
def padding_before_the_norm(cnn, monkeypatch):
    """Zeros padded to the stream: LayerNorm(0) is its bias, and once that moves the memory starts with other values."""
    for block in cnn.blocks:
        torch.nn.init.normal_(block.norm.bias)
        leaked = block.norm.bias.detach()

        def convolve(x, memory=None, leaked=leaked, original=block.convolution.forward, reach=block.convolution.reach):
            start = leaked.expand(len(x), reach, -1)
            return original(x, start if memory is None and x.shape[1] else memory)

        block.convolution.forward = convolve


@mutant(CNN, "stream")
def memory_off_by_one(cnn, monkeypatch):
    """A ring buffer of (k - 1) d slots that is read before the current input is written into it."""
    convolve_with(
        monkeypatch,
        lambda convolve, x, memory, layer: convolve(x, None if memory is None else memory.roll(1, 1)),
    )


@mutant(CNN, "stream")
def dilation_ignored_in_memory(cnn, monkeypatch):
    """A queue of k inputs, as fairseq's LinearizedConvolution keeps, put under a dilated convolution."""

    def short(convolve, x, memory, layer):
        y, after = convolve(x, memory)
        after = after.clone()
        after[:, : -layer.reach // layer.dilation] = 0
        return y, after

    convolve_with(monkeypatch, short)


@mutant(CNN, "stream")
def only_the_last_input_is_kept(cnn, monkeypatch):
    """fairseq's LinearizedConvolution: each call shifts the buffer by one and puts in the chunk's last input alone."""

    def shifted(convolve, x, memory, layer):
        y, after = convolve(x, memory)
        return y, after if memory is None else torch.cat([memory, x[:, -1:]], 1)[:, -layer.reach :]

    convolve_with(monkeypatch, shifted)


@mutant(CNN, "rollback")
def buffer_shifted_in_place(cnn, monkeypatch):
    """fairseq's LinearizedConvolution: the buffer that was passed in is shifted, so an older state has newer inputs."""

    def in_place(convolve, x, memory, layer):
        y, after = convolve(x, memory)
        return y, after if memory is None else memory.copy_(after)

    convolve_with(monkeypatch, in_place)


@mutant(Transformer, "stream")
def cached_step_at_position_zero(transformer, monkeypatch):
    """ScratchLMs, Transformer: the position of a cached step is always 0."""
    original = transformer.embed
    transformer.embed = lambda tokens, at=0: original(tokens)


@mutant(Transformer, "causal")
def decoder_sees_its_future(transformer, monkeypatch):
    """The encoder's attention copied into the decoder: trained by teacher forcing it is perfect, and cannot write."""
    no_mask(transformer, monkeypatch)


def attend_with(monkeypatch, change):
    """Let `change` have its hand in what each attention over a source reads: (keys and values, blocked, layer)."""
    original = SourceAttention.forward

    def forward(self, x, source, blocked):
        return original(self, x, *change(source, blocked, self))

    monkeypatch.setattr(SourceAttention, "forward", forward)


@mutant(Transformer, "rows")
def padding_is_read(transformer, monkeypatch):
    """ScratchLMs, Transformer: neither the encoder nor cross-attention has a mask for the padding of a source."""
    attend_with(monkeypatch, lambda source, blocked, layer: (source, torch.zeros_like(blocked)))


@mutant(Transformer, "rows")
def encoder_reads_its_padding(transformer, monkeypatch):
    """Tutorials that mask cross-attention alone: padding leaks into the words that the decoder looks at."""
    encoder = {block.attention for block in transformer.encoder}
    attend_with(
        monkeypatch,
        lambda source, blocked, layer: (source, torch.zeros_like(blocked) if layer in encoder else blocked),
    )


@mutant(Transformer, "rows")
def cross_attention_reads_padding(transformer, monkeypatch):
    """nn.Transformer called without memory_key_padding_mask: the encoder is right, the decoder looks at padding."""
    encoder = {block.attention for block in transformer.encoder}
    attend_with(
        monkeypatch,
        lambda source, blocked, layer: (source, blocked if layer in encoder else torch.zeros_like(blocked)),
    )


@mutant(Transformer, "rows")
def mask_in_the_other_sense(transformer, monkeypatch):
    """A mask of nn.MultiheadAttention, true where blocked, given to F.scaled_dot_product_attention as it is."""
    attend_with(monkeypatch, lambda source, blocked, layer: (source, ~blocked))


@mutant(Transformer, "fork")
def source_stays_when_rows_move(transformer, monkeypatch):
    """A beam search that reorders the decoder's cache alone, over several sentences: rows read another's source."""
    original = TransformerState.select

    def select(self, rows):
        moved = original(self, rows)
        return dataclasses.replace(moved, source_rows=torch.arange(len(rows)))

    monkeypatch.setattr(TransformerState, "select", select)


@mutant(Transformer, "fork")
def second_selection_counts_from_the_sources(transformer, monkeypatch):
    """Rows of the batch taken for rows of the sources: right for the first reordering of beams, wrong from then on."""
    original = TransformerState.select
    monkeypatch.setattr(
        TransformerState, "select", lambda self, rows: dataclasses.replace(original(self, rows), source_rows=rows)
    )


@mutant(Transformer, "stream")
def source_handed_to_the_first_step_alone(transformer, monkeypatch):
    """A cached generation loop whose later steps pass the newest token and no source."""
    original = type(transformer).forward

    def forward(self, tokens, state=None):
        features, after = original(self, tokens, state)
        return features, dataclasses.replace(after, blocked=torch.ones_like(after.blocked))

    forward_with(transformer, forward)


@mutant(Transformer, "gradients")
def encoder_without_gradient(transformer, monkeypatch):
    """initial_state under no_grad, as generation wants it: the encoder never learns."""
    original = transformer.initial_state
    transformer.initial_state = torch.no_grad()(original)


@mutant(Transformer, "gradients")
def last_encoder_block_is_skipped(transformer, monkeypatch):
    """ScratchLMs, Transformer: the decoder looks at what the last encoder block read, not at what it made."""
    transformer.encoder[-1].forward = lambda x, blocked: x


@mutant(Backpack, "stream")
def alpha_over_the_new_chunk_alone(backpack, monkeypatch):
    """The Hugging Face port under a trunk with a cache: its softmax is over the chunk that it is given, and no memory
    holds the senses of what came before, so a cached step predicts from the newest word alone."""
    layer, network = backpack.contextualisation, backpack.sense_network
    alpha, mix = type(layer).forward, type(network).mix
    monkeypatch.setattr(layer, "forward", lambda q, k: alpha(layer, q, k[:, :, k.shape[2] - q.shape[2] :]))
    monkeypatch.setattr(network, "mix", lambda a, g: mix(network, a, g[:, :, g.shape[2] - a.shape[2] :]))


@mutant(Backpack, "causal")
def alpha_without_a_mask(backpack, monkeypatch):
    """flash-attention's SelfAttention, causal=False by default, as the layer of alpha: the trunk has its mask."""
    monkeypatch.setattr(backpacks, "attention_weights", lambda q, k: (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))


@mutant(Backpack, "rows")
def inverse_of_unique_in_another_shape(backpack, monkeypatch):
    """unique's inverse, which numpy gave flat up to 1.26 and in the input's shape since: folded back by columns where
    it was by rows, the senses of a token go to another row's."""
    apply = backpacks.SenseSum.apply
    monkeypatch.setattr(
        backpacks.SenseSum, "apply", lambda weights, senses, index: apply(weights, senses, index.T.reshape(index.shape))
    )


@mutant(Backpack, "gradients")
def table_of_senses_left_on_in_training(backpack, monkeypatch):
    """The released tool's table of all senses, made once: right until the weights move, and they get no gradient."""
    table = backpack.senses(torch.arange(backpack.config.vocab_size)).detach()
    backpack.senses = lambda tokens: table[tokens]


@mutant(Backpack, "fork")
def senses_stay_when_rows_move(backpack, monkeypatch):
    """transformers' beam search reorders past_key_values alone: what a model remembers beside them stays in place."""
    original = BackpackState.select

    def select(self, rows):
        return dataclasses.replace(original(self, rows), senses=self.senses)

    monkeypatch.setattr(BackpackState, "select", select)


@mutant(Backpack, "ragged")
def port_has_no_mask_for_padding(backpack, monkeypatch):
    """The Hugging Face port takes no attention_mask: batched generation reads its padding in the trunk and in alpha."""
    padding_without_a_mask(backpack, monkeypatch)


@mutant(Llama, "stream")
def cached_step_rotated_as_the_first(llama, monkeypatch):
    """executorch, pull request 2010: with a cache the angles are those of positions 0 and on."""
    original = Rotation.at
    monkeypatch.setattr(Rotation, "at", lambda start, new, config, like: original(0, new, config, like))


@mutant(Llama, "stream")
def angles_kept_by_length_alone(llama, monkeypatch):
    """lucidrains/rotary-embedding-torch, issue 11: the table of angles is found by its length, whatever its offset."""
    original, table = Rotation.at, {}

    def at(start, new, config, like):
        return table.setdefault(new, original(start, new, config, like))

    monkeypatch.setattr(Rotation, "at", at)


@mutant(Llama, "stream")
def upper_blocks_are_one_ahead(llama, monkeypatch):
    """flash-linear-attention, issue 766: block 0 counts the tokens before the other blocks read the count."""
    config = llama.config
    for block in llama.blocks[1:]:

        def forward(x, rotation, memory, at, original=block.forward):
            ahead = Rotation.at(at + (at > 0), x.shape[1], config, x)
            return original(x, ahead, memory, at)

        block.forward = forward


@mutant(Llama, "stream")
def kept_keys_rotated_again(llama, monkeypatch):
    """shainet, pull request 110: keys are kept rotated, and all of the memory is rotated at each step."""
    original = model.KV.append

    def append(self, keys, values, at):
        keys, values, kept = original(self, keys, values, at)
        rotation = Rotation.at(0, at, llama.config, keys)
        return torch.cat([rotation.turn(keys[:, :, :at]), keys[:, :, at:]], 2), values, kept

    monkeypatch.setattr(model.KV, "append", append)


@mutant(Llama, "stream")
def heads_shared_in_another_order_when_decoding(llama, monkeypatch):
    """candle-vllm, pull request 52: keys are laid out for the heads of queries otherwise in decoding than before."""
    original = llamas.grouped_attention

    def attention(query, keys, values, dropout=0.0):
        if query.shape[2] == 1:
            shared = query.shape[1] // keys.shape[1]
            keys, values = keys.repeat(1, shared, 1, 1), values.repeat(1, shared, 1, 1)
        return original(query, keys, values, dropout)

    monkeypatch.setattr(llamas, "grouped_attention", attention)


@mutant(Llama, "causal")
def norm_over_all_positions(llama, monkeypatch):
    """Norms of a head's queries and keys taken over the positions too, as from x.flatten() or a transposed layout."""
    monkeypatch.setattr(
        RMSNorm, "forward", lambda self, x: x * x.square().mean((-2, -1), keepdim=True).add(self.eps).rsqrt()
    )


def breaks(name, check, monkeypatch):
    base, _, function = MUTANTS[name]

    def make():
        torch.manual_seed(0)
        instance = base(base.Config.tiny()).double().eval()
        function(instance, monkeypatch)
        return instance

    try:
        contract.CHECKS[check](make)
    except (AssertionError, RuntimeError):  # torch refuses some in-place writes by itself
        return True
    return False


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch):
    assert breaks(name, MUTANTS[name][1], monkeypatch), f"{name} passes the check {MUTANTS[name][1]!r}"


def test_every_check_has_a_mutant():
    assert {caught_by for _, caught_by, _ in MUTANTS.values()} == set(contract.CHECKS)


# Adapters: what adapted.py must catch

ADAPTERS = {}


def adapter_mutant(base, caught_by):
    """Register a function that breaks, through monkeypatch, how adapters are laid beside models of class `base`."""

    def register(function):
        ADAPTERS[function.__name__] = (base, caught_by, function)
        return function

    return register


@adapter_mutant(LSTM, "alone")
def matrix_read_and_not_declared(monkeypatch):
    """PEFT on nn.LSTM's kind of module, or on an attention that reads `linear.weight`: its branch is never called."""
    monkeypatch.setattr(LSTM, "read_as_tensors", ())


@adapter_mutant(Backpack, "alone")
def matrix_called_here_and_read_there(monkeypatch):
    """The Backpack's last matrix: called in one chunk, read as a tensor with a memory, where the sum comes first."""
    monkeypatch.setattr(Backpack, "read_as_tensors", ())


@adapter_mutant(GPT, "merged")
def tie_merged_twice(monkeypatch):
    """PEFT 0.21.2, ensure_weight_tying: input and head are merged in turn into the one matrix that they share."""
    original = lora.Adaptation.merge

    def merge(self, module, of):
        original(self, module, of)
        if isinstance(module, torch.nn.Embedding) and self.pairs:
            module.parametrizations.weight.original.data = module.weight.data + self.pairs[0].change().data

    monkeypatch.setattr(lora.Adaptation, "merge", merge)


@adapter_mutant(GPT, "written_out")
def tie_adapted_at_one_end(monkeypatch):
    """PEFT on ["wte"]: the head goes on with the matrix as it was."""

    def readout(self, features):
        own = self.token_embedding
        return features @ (own.parametrizations.weight.original if hasattr(own, "lora") else own.weight).t()

    monkeypatch.setattr(GPT, "readout", readout)


@adapter_mutant(GPT, "merged")
def merge_without_the_scale(monkeypatch):
    """W + B A where W + (alpha / r) B A is meant: right for alpha = r alone, as it is in many examples."""
    monkeypatch.setattr(lora.LowRank, "change", lambda self: self.B @ self.A)


@adapter_mutant(CNN, "written_out")
def convolution_without_the_scale(monkeypatch):
    """The same where a matrix is read as a tensor: adapted and merged agree, and both are wrong."""
    merge_without_the_scale(monkeypatch)


@adapter_mutant(GPT, "written_out")
def root_of_the_rank_forgotten(monkeypatch):
    """A file's use_rslora that is read and not used."""
    monkeypatch.setattr(lora.Matrix, "scale", lambda self, config: config.alpha / self.rank(config))


@adapter_mutant(GPT, "merged")
def square_matrix_transposed(monkeypatch):
    """fan_in_fan_out set for a linear module: only a square matrix takes the change, and takes it the wrong way."""
    original = lora.LowRank.change

    def change(self):
        found = original(self)
        return found.t() if found.shape[0] == found.shape[1] else found

    monkeypatch.setattr(lora.LowRank, "change", change)


@adapter_mutant(GPT, "written_out")
def parts_off_by_one(monkeypatch):
    """Fused rows taken in another order (key, value, query): the forward pass and a merge agree on the wrong rows."""
    original = lora.matrices

    def matrices(of):
        return [
            matrix
            if matrix.part == "whole"
            else dataclasses.replace(
                matrix, rows=slice(start := matrix.rows.stop % (3 * matrix.shape[0]), start + matrix.shape[0])
            )
            for matrix in original(of)
        ]

    monkeypatch.setattr("scratchlm.lora.targets.matrices", matrices)


@adapter_mutant(GPT, "cycles")
def unmerge_subtracts(monkeypatch):
    """PEFT and loralib: W - (alpha / r) B A, which is not what W was."""

    def unmerge(self, module):
        for name in self.pristine:
            if name.endswith(("weight", "weight.original")) and self.pairs:
                parameter = module.get_parameter(name)
                parameter.data = (parameter.data - self.pairs[0].change().data).to(parameter.dtype)
        self.pristine = {}

    monkeypatch.setattr(lora.Adaptation, "unmerge", unmerge)


@adapter_mutant(GPT, "dropout")
def dropout_between_the_matrices(monkeypatch):
    """B dropout(A x): what is dropped is a whole direction, of which there are few."""

    def branch(self, module, inputs, output):
        [pair] = self.pairs
        low = F.linear(inputs[0], pair.A)
        return output + pair.scale * F.linear(F.dropout(low, self.dropout, self.training), pair.B)

    monkeypatch.setattr(lora.Adaptation, "branch", branch)


@adapter_mutant(GPT, "dropout")
def dropout_of_what_the_base_reads(monkeypatch):
    """One dropped x for both: the base, which is not trained, is noisy too."""
    original = F.linear

    def branch(self, module, inputs, output):
        [pair] = self.pairs
        x = F.dropout(inputs[0], self.dropout, self.training)
        return original(x, module.weight, module.bias) + pair.scale * original(original(x, pair.A), pair.B)

    monkeypatch.setattr(lora.Adaptation, "branch", branch)


@adapter_mutant(GPT, "dropout")
def new_adapters_drop_in_use(monkeypatch):
    """Ours, before this test: a new module is in training mode, and so was the adapter of a model in use."""
    monkeypatch.setattr(lora.Adaptation, "train", lambda self, mode=True: self)


@adapter_mutant(GPT, "modes")
def eval_merges(monkeypatch):
    """loralib, merge_weights=True: eval() merges, so that a state saved in it counts the change twice."""
    original = GPT.train

    def train(self, mode=True):
        trained = original(self, mode)
        if lora.adaptations(self):
            (lora.unmerge if mode else lora.merge)(self)
        return trained

    monkeypatch.setattr(GPT, "train", train)


@adapter_mutant(GPT, "gradients")
def norm_with_a_gradient(monkeypatch):
    """DoRA's norm in the graph: the published gradient, and its memory, take it for a constant."""
    original = lora.LowRank.changed

    def changed(self, weight):
        if self.magnitude is None:
            return original(self, weight)
        summed = weight + self.change()
        return self.magnitude[:, None] * summed / summed.norm(dim=1, keepdim=True)

    monkeypatch.setattr(lora.LowRank, "changed", changed)


@adapter_mutant(GPT, "lengths")
def norm_over_the_other_axis(monkeypatch):
    """ "Column-wise norm" of the paper taken for columns of torch's (O, I), where it is one for each output."""
    original = lora.LowRank.changed

    def changed(self, weight):
        if self.magnitude is None or weight.shape[0] != weight.shape[1]:
            return original(self, weight)
        summed = weight + self.change()
        return self.magnitude * summed / summed.norm(dim=0)

    monkeypatch.setattr(lora.LowRank, "changed", changed)


@adapter_mutant(GPT, "first_steps")
def both_matrices_zero(monkeypatch):
    """A = 0 and B = 0: no gradient ever reaches either."""
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", lambda tensor, a: tensor.data.zero_())


@adapter_mutant(GPT, "fresh")
def both_matrices_drawn(monkeypatch):
    """PEFT's init_lora_weights=False, which is for debugging: the adapter changes something before it has learned."""
    original = lora.LowRank.__init__

    def init(self, *arguments):
        original(self, *arguments)
        torch.nn.init.normal_(self.B)

    monkeypatch.setattr(lora.LowRank, "__init__", init)


@adapter_mutant(GPT, "first_steps")
def base_left_to_learn(monkeypatch):
    """An adapter laid beside weights that are not frozen: removing it gives another model than there was."""
    monkeypatch.setattr(GPT, "requires_grad_", lambda self, requires_grad=True: self)


@adapter_mutant(GPT, "folded")
def property_taken_off_the_shared_class(monkeypatch):
    """torch's remove_parametrizations on a deep copy: the class is the original's too, which loses its weight."""

    def take_off(module, name):
        torch.nn.utils.parametrize.remove_parametrizations(module, name, leave_parametrized=False)

    monkeypatch.setattr("scratchlm.lora.adapter._take_off", take_off)


@adapter_mutant(GPT, "adapter_alone")
def merged_weights_in_the_checkpoint(monkeypatch):
    """loralib's state of everything, saved while merged: loaded beside the base, the change counts twice."""
    monkeypatch.setattr(lora, "trained_tensors", lambda of: of.state_dict())


@adapter_mutant(GPT, "removed")
def biases_trained_in_place(monkeypatch):
    """PEFT and loralib with bias="all": biases are the base's own, and disabling the adapter leaves them trained."""
    original = lora.Adaptation.unmerge

    def unmerge(self, module):
        original(self, module)
        if hasattr(self, "bias"):
            module.parametrizations.bias.original.data += self.bias.shift.data

    monkeypatch.setattr(lora.Adaptation, "unmerge", unmerge)


@adapter_mutant(GPT, "recomputed")
def dropout_drawn_by_the_call(monkeypatch):
    """A branch that is not the same when it is computed again: gradients are those of another function."""
    original, calls = lora.Adaptation.branch, iter(range(1, 1 << 30))

    def branch(self, module, inputs, output):
        return output + (original(self, module, inputs, output) - output) * (1 + 0.1 * (next(calls) % 7))

    monkeypatch.setattr(lora.Adaptation, "branch", branch)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_mutant_is_caught(name, monkeypatch):
    base, caught_by, function = ADAPTERS[name]
    make = adapted.maker(base, base.Config.tiny())
    function(monkeypatch)
    with pytest.raises((AssertionError, AttributeError)):  # torch's, where a class has lost its property
        adapted.CHECKS[caught_by](make)


def test_every_check_of_adapters_has_a_mutant():
    assert {caught_by for _, caught_by, _ in ADAPTERS.values()} == set(adapted.CHECKS)
