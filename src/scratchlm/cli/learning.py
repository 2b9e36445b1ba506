"""What the training of a tokenizer looks like: a bar where there is a terminal, and a line at the end."""

import time
from collections.abc import Generator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scratchlm.tokenizers import BPETokenizer, Learning, Tokenizer

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)


def follow(steps: Generator[Learning, None, Tokenizer]) -> Tokenizer:
    """Take the training of a tokenizer to its end and draw it."""
    start, stage = time.perf_counter(), None
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("tokenizer", total=None, count="")
        while True:
            try:
                at = next(steps)
            except StopIteration as end:
                tokenizer = end.value
                break
            if stage != at.stage:
                stage = at.stage
                bar.reset(task, total=at.total, description=f"tokenizer: {stage}")
            bar.update(task, completed=at.done, count=f"{at.done:,}")
    if isinstance(tokenizer, BPETokenizer) and stage is not None:
        console.print(
            f"trained a bpe tokenizer of {tokenizer.vocab_size:,} tokens in {time.perf_counter() - start:.1f} s"
        )
    return tokenizer
