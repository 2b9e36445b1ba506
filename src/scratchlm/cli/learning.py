"""What long work on a text looks like: a bar where there is a terminal; of a tokenizer a line at the end."""

import time
from collections.abc import Generator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scratchlm.tokenizers import BPETokenizer, Learning

T = TypeVar("T")

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)


def follow(steps: Generator[Learning, None, T], name: str = "tokenizer") -> T:
    """Take the training of a tokenizer, or what else tells how far it is, to its end and draw it."""
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
        task = bar.add_task(name, total=None, count="")
        while True:
            try:
                at = next(steps)
            except StopIteration as end:
                made = end.value
                break
            if stage != at.stage:
                stage = at.stage
                bar.reset(task, total=at.total, description=f"{name}: {stage}")
            bar.update(task, completed=at.done, count=f"{at.done:,}")
    if isinstance(made, BPETokenizer) and stage is not None:
        console.print(f"trained a bpe tokenizer of {made.vocab_size:,} tokens in {time.perf_counter() - start:.1f} s")
    return made
