"""Byte-pair encoding of other libraries: what trains on or encodes a text, ready to be timed."""

from scratchlm.tokenizers.splitting import PATTERNS


def train_tokenizers(texts, vocab_size, pattern):
    """Gives what trains, and what encodes with the result."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    def train():
        made = Tokenizer(models.BPE())
        cut = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(texts, trainer)
        return made

    return train, lambda made, sample: made.encode(sample, add_special_tokens=False).ids


def train_rustbpe(texts, vocab_size, pattern):
    import rustbpe

    def train():
        made = rustbpe.Tokenizer()
        made.train_from_iterator(texts, vocab_size, pattern=PATTERNS[pattern])
        return made

    return train, lambda made, sample: made.encode(sample)


def encode_tiktoken(text, tokenizer):
    import tiktoken

    ranks, pattern = tokenizer.mergeable_ranks(), PATTERNS[tokenizer.pattern]
    made = tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda: made.encode_to_numpy(text, disallowed_special=())


def encode_tokenizers(text, tokenizer):
    from tokenizers import Tokenizer

    from scratchlm.interop.vocabularies.tokenizer_json import tokenizer_json

    made = Tokenizer.from_str(tokenizer_json(tokenizer))

    def encode():
        made.model._clear_cache()  # of words, as ours is cleared; that takes some microseconds
        return made.encode(text, add_special_tokens=False).ids

    return encode
