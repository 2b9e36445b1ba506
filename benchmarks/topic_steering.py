"""How often a topic's words are said as a Backpack is turned towards it, at strengths 0 to 3.

    python benchmarks/topic_steering.py RUN [--topic sea=sea,ship,wind ...] [--samples 200] [--tokens 100] [--out DIR]

Samples are drawn from the start token at temperature 1, nothing cut off, with the same seed at every strength. Two
shares, each with its standard error over samples: of samples with a word of the topic in their text, and of tokens that
are one of its words. A bag holds only words that are one token; others are left out and named. Writes
topic_steering.json, .svg and .png, and prints the table.
"""

import argparse
import json
import math
import re
import statistics
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure

from scratchlm.checkpoint import RunFolder, load_checkpoint
from scratchlm.generation import generate
from scratchlm.inspect.curves import COLOURS, MARKERS, save_figure
from scratchlm.steering import Topic, steer, topic_scores

TOPICS = (
    "sea=sea,ship,wind,water,shore",
    "war=war,wars,battle,sword,arms,soldier",
    "love=love,heart,kiss,sweet,lover",
)
STRENGTHS = (0, 1, 2, 3)


def bag_of(tokenizer, given):
    """(name, {word: id}) of NAME=WORD,WORD, without the words that are several tokens."""
    name, _, words = given.rpartition("=")
    encoded = {word: tokenizer.encode_word(word) for word in words.split(",")}
    for word, ids in encoded.items():
        if len(ids) > 1:
            print(f"{name}: {word!r} is {len(ids)} tokens and is left out", file=sys.stderr)
    return name, {word: ids[0] for word, ids in encoded.items() if len(ids) == 1}


def mean(values):
    """The mean and its standard error."""
    return {"mean": statistics.mean(values), "error": statistics.stdev(values) / math.sqrt(len(values))}


def counted(samples, tokenizer, bag):
    """Both shares over samples, each a list of new tokens."""
    word = re.compile(rf"\b(?:{'|'.join(map(re.escape, bag))})\b", re.IGNORECASE)
    wanted = set(bag.values())
    return {
        "samples": mean([float(bool(word.search(tokenizer.decode(tokens)))) for tokens in samples]),
        "tokens": mean([sum(token in wanted for token in tokens) / max(len(tokens), 1) for tokens in samples]),
    }


def chart(topics):
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, what, label in (
        (left, "samples", "samples with a word of the topic (%)"),
        (right, "tokens", "tokens that are a word of the topic (%)"),
    ):
        for number, (name, topic) in enumerate(topics.items()):
            shares = [topic["strengths"][str(strength)][what] for strength in STRENGTHS]
            axes.errorbar(
                STRENGTHS,
                [100 * share["mean"] for share in shares],
                yerr=[100 * share["error"] for share in shares],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                capsize=3,
                label=name,
            )
        axes.set(xlabel="strength", ylabel=label, xticks=STRENGTHS)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--topic", action="append", help="NAME=WORD,WORD; may be given several times")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="last")
    parser.add_argument("--out", default=".")
    options = parser.parse_args()
    run = RunFolder.open(options.run)
    checkpoint, _ = run.find(options.checkpoint)
    model, tokenizer = load_checkpoint(run, checkpoint, "cpu")
    bags = dict(bag_of(tokenizer, given) for given in options.topic or TOPICS)
    left_out = list(range(tokenizer.vocab_size, model.config.vocab_size))  # rows that stand for no token
    left_out += [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    began = time.perf_counter()

    def sampled(one):
        prompts = [[tokenizer.start]] * options.samples
        known = {"end": tokenizer.end_of_text, "vocab_size": tokenizer.vocab_size}
        written = generate(one, prompts, options.tokens, seed=options.seed, **known)
        return [tokens[1:] for tokens in written]

    untouched = sampled(model)  # which strength 0 is, to the bit
    topics = {}
    for name, bag in bags.items():
        scores = topic_scores(model, bag.values(), left_out)
        written = {0: untouched}
        for strength in STRENGTHS[1:]:
            written[strength] = sampled(steer(model, topic=Topic.at(scores, strength)))
            print(f"{name}, strength {strength}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        topics[name] = {
            "words": list(bag),
            "strengths": {str(strength): counted(written[strength], tokenizer, bag) for strength in STRENGTHS},
            "first sample": {str(strength): tokenizer.decode(written[strength][0]) for strength in STRENGTHS},
        }
    result = {
        "arguments": vars(options) | {"topic": options.topic or list(TOPICS)},
        "step": checkpoint.step,
        "validation_loss": checkpoint.state()["val_loss"],
        "seconds": round(time.perf_counter() - began),
        "topics": topics,
    }
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "topic_steering.json").write_text(
        json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    save_figure(chart(topics), folder / "topic_steering")
    for what, digits in (("samples", 1), ("tokens", 2)):
        print(f"\n| share of {what} | {' | '.join(map(str, STRENGTHS))} |\n|{'---|' * (1 + len(STRENGTHS))}")
        for name, topic in topics.items():
            shares = [topic["strengths"][str(strength)][what] for strength in STRENGTHS]
            cells = [f"{share['mean']:.{digits}%} ± {share['error']:.{digits}%}" for share in shares]
            print(f"| {name}: {', '.join(topic['words'])} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
