"""Byte-pair encoding learned from 100 MB against tokenizers and rustbpe: seconds, and the peak of memory.

    python benchmarks/bpe.py [--json]

32,768 tokens, each contender in a process of its own, imports, compilation and caches of kernels warm. "fast" is with
numba, "plain" without. On small texts, and of encoding, `scratchlm bench tokenizers` has the figures.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import regex

from scratchlm.data import corpora
from scratchlm.tokenizers import BPETokenizer, bpe, learning

PATTERN, BYTES, VOCABULARY = "gpt4", 100_000_000, 32_768


def ours(texts, compiled, workers=1):
    if not compiled:
        learning.compiled_loops = bpe.compiled_loops = lambda: None
    return BPETokenizer.train(texts, vocab_size=VOCABULARY, pattern=PATTERN, ties="ids", workers=workers)


def write_text(path):
    """100 MB out of the plays: in each copy rare words have other vowels, so that new words keep coming."""
    text, draw = corpora.get("shakespeare"), random.Random(0)
    counts: dict[str, int] = {}
    words = regex.findall(r"\p{L}+|\P{L}+", text)
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < BYTES:
            vowels = str.maketrans("aeiou", "".join(draw.sample("aeiouy", 5)))
            share = draw.random() / 2
            file.write("".join(w.translate(vowels) if counts[w] < 50 and draw.random() < share else w for w in words))


SCRIPT = """
import json, resource, sys, time
sys.path.insert(0, {here!r})
import bpe
from scratchlm.data.text import stream_text
from scratchlm_peers.byte_pairs import train_rustbpe, train_tokenizers
def whole(): return open({path!r}, encoding="utf-8", newline="").read()
def lines(): return open({path!r}, encoding="utf-8", newline="")
if __name__ == "__main__":
    bpe.BPETokenizer.train(["warm warm"], vocab_size=257)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    made = {run}
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({{"seconds": round(seconds, 1), "peak_mb": round(peak / 1024), "imports_mb": round(before / 1024),
                       "largest_worker_mb": round(workers / 1024)}}))
"""
RUNS = {
    "fast, 2 workers": "bpe.ours([stream_text({path!r})], True, 2)",
    "fast, 1 process": "bpe.ours([stream_text({path!r})], True)",
    "plain, 2 workers": "bpe.ours([stream_text({path!r})], False, 2)",
    "tokenizers, 2 threads": "train_tokenizers([whole()], bpe.VOCABULARY, bpe.PATTERN)[0]()",
    "tokenizers, 2 threads, by lines": "train_tokenizers(lines(), bpe.VOCABULARY, bpe.PATTERN)[0]()",
    "rustbpe": "train_rustbpe([whole()], bpe.VOCABULARY, bpe.PATTERN)[0]()",
    "rustbpe, by lines": "train_rustbpe(lines(), bpe.VOCABULARY, bpe.PATTERN)[0]()",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.txt"
        write_text(path)
        for name, run in RUNS.items():
            script = Path(folder) / "run.py"
            call = run.format(path=str(path))
            script.write_text(
                SCRIPT.format(here=str(Path(__file__).parent), path=str(path), run=call), encoding="utf-8"
            )
            done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
            results[name] = json.loads(done.stdout)
            print(f"{name}: {results[name]}", file=sys.stderr)
    print(json.dumps(results) if options.json else "\n".join(f"{key}: {value}" for key, value in results.items()))


if __name__ == "__main__":
    main()
