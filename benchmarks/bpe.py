"""Byte-pair encoding against tiktoken, tokenizers and rustbpe: in one process, interleaved, medians.

    python benchmarks/bpe.py [TEXT] [--repeats 5] [--large] [--json]

TEXT is a file; without it the plays of the corpus shakespeare-tiny. Imports, compilation and caches of kernels are
warm, the cache of chunks is empty, one thread where nothing else is said. "fast" is with numba, "plain" without.
--large trains 32,768 tokens on 100 MB, each contender in a process of its own, with its peak memory.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import regex
import rustbpe
import tiktoken
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from scratchlm.data import corpora
from scratchlm.tokenizers import BPETokenizer, bpe, learning
from scratchlm.tokenizers.splitting import PATTERNS

PATTERN = PATTERNS["gpt4"]
COMPILED = learning.compiled_loops()
LARGE_BYTES, LARGE_VOCABULARY = 100_000_000, 32_768


def use(compiled):
    learning.compiled_loops = bpe.compiled_loops = lambda: compiled


def ours(texts, vocab_size, compiled, workers=1):
    use(compiled)
    return BPETokenizer.train(texts, vocab_size=vocab_size, ties="ids", workers=workers)


def hf(texts, vocab_size):
    made = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    return made


def rust(texts, vocab_size):
    made = rustbpe.Tokenizer()
    made.train_from_iterator(texts, vocab_size, pattern=PATTERN)
    return made


def interleaved(contenders, repeats):
    """Seconds of each, the first round left out; and what each returned."""
    seconds, results = {name: [] for name in contenders}, {}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(times[1:]), 4) for name, times in seconds.items()}, results


def training(text, repeats):
    contenders = {
        "plain": lambda: ours([text], 4096, None),
        "fast": lambda: ours([text], 4096, COMPILED),
        "tokenizers": lambda: hf([text], 4096),
        "rustbpe": lambda: rust([text], 4096),
    }
    seconds, made = interleaved(contenders, repeats)
    ranks = {bytes(token): rank for token, rank in made["rustbpe"].get_mergeable_ranks()}
    assert made["plain"].mergeable_ranks() == made["fast"].mergeable_ranks() == ranks
    return seconds


def encoding(text, repeats):
    tokenizer = ours([text], 4096, COMPILED)
    ranks = tokenizer.mergeable_ranks()
    reference = tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    by_ties = BPETokenizer.train([text], vocab_size=4096)  # the ids of tokenizers have its ties
    library, expression = hf([text], 4096), regex.compile(PATTERN)

    def encode(compiled):
        use(compiled)
        tokenizer._cache.clear()
        return tokenizer.encode_array(text)

    contenders = {
        "plain": lambda: encode(None),
        "fast": lambda: encode(COMPILED),
        "tiktoken, array": lambda: reference.encode_to_numpy(text, disallowed_special=()),
        "tiktoken, list": lambda: reference.encode_ordinary(text),
        "tokenizers": lambda: library.encode(text, add_special_tokens=False).ids,
        "the expression alone": lambda: expression.findall(text),
    }
    seconds, ids = interleaved(contenders, repeats)
    for name in ("fast", "tiktoken, array", "tiktoken, list"):
        assert np.array_equal(ids["plain"], ids[name])
    assert by_ties.encode(text) == ids["tokenizers"]
    return seconds


def write_large(path):
    """100 MB out of the plays: in each copy rare words have other vowels, so that new words keep coming."""
    text, draw = corpora.get("shakespeare"), random.Random(0)
    counts: dict[str, int] = {}
    words = regex.findall(r"\p{L}+|\P{L}+", text)
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < LARGE_BYTES:
            vowels = str.maketrans("aeiou", "".join(draw.sample("aeiouy", 5)))
            share = draw.random() / 2
            file.write("".join(w.translate(vowels) if counts[w] < 50 and draw.random() < share else w for w in words))


LARGE = """
import json, resource, sys, time
sys.path.insert(0, {here!r})
import bpe
from scratchlm.data.text import stream_text
def whole(): return open({path!r}, encoding="utf-8", newline="").read()
if __name__ == "__main__":
    bpe.ours(["warm warm"], 257, bpe.COMPILED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    made = {run}
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({{"seconds": round(seconds, 1), "peak_mb": round(peak / 1024), "imports_mb": round(before / 1024),
                       "largest_worker_mb": round(workers / 1024)}}))
"""
LARGE_RUNS = {
    "fast, 2 workers": "bpe.ours([stream_text({path!r})], {size}, bpe.COMPILED, 2)",
    "fast, 1 process": "bpe.ours([stream_text({path!r})], {size}, bpe.COMPILED)",
    "plain, 2 workers": "bpe.ours([stream_text({path!r})], {size}, None, 2)",
    "tokenizers, 2 threads": "bpe.hf([whole()], {size})",
    "tokenizers, 2 threads, by lines": "bpe.hf(open({path!r}, encoding='utf-8', newline=''), {size})",
    "rustbpe": "bpe.rust([whole()], {size})",
    "rustbpe, by lines": "bpe.rust(open({path!r}, encoding='utf-8', newline=''), {size})",
}


def large():
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.txt"
        write_large(path)
        for name, run in LARGE_RUNS.items():
            script = Path(folder) / "run.py"
            call = run.format(path=str(path), size=LARGE_VOCABULARY)
            script.write_text(LARGE.format(here=str(Path(__file__).parent), path=str(path), run=call), encoding="utf-8")
            done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
            results[name] = json.loads(done.stdout)
            print(f"{name}: {results[name]}", file=sys.stderr)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.large:
        results = {"train 32,768 tokens on 100 MB": large()}
    else:
        text = Path(options.text).read_text(encoding="utf-8") if options.text else corpora.get("shakespeare-tiny")
        results = {
            "megabytes": len(text.encode()) / 1e6,
            "train 4,096 tokens, seconds": training(text, options.repeats),
            "encode, seconds": encoding(text, options.repeats),
        }
    print(json.dumps(results) if options.json else "\n".join(f"{key}: {value}" for key, value in results.items()))


if __name__ == "__main__":
    main()
