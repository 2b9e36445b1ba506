"""scratchlm compare ARCH ARCH ...: architectures side by side at one budget."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from scratchlm.cli.flags import Int, OptionalInt
from scratchlm.compare.budget import parse_budget
from scratchlm.errors import InputError

if TYPE_CHECKING:
    from scratchlm.compare.plan import Comparison
    from scratchlm.compare.run import Compared


def command(
    *architectures: str,
    data: Annotated[str, Parameter(allow_leading_hyphen=True)] = "shakespeare",
    budget: str = "params=1M,tokens=5M",
    out: str = "runs/compare",
    tokenizer: str = "char",
    vocab_size: OptionalInt = None,
    seed: Int = 1337,
    seeds: Int = 1,
    batch_size: Int = 16,
    window: Int = 256,
    sweep: Annotated[bool, Parameter(negative=())] = False,
    device: str = "auto",
) -> int:
    """Compare architectures: the same parameters, data and budget; a table, curves, samples and a report.

    Interrupted, it goes on when the same command is given again.

    Parameters
    ----------
    architectures
        Two or more.
    data
        A corpus by name, a file or a folder.
    budget
        Parameters of each model, and tokens or time of training: params=1M,tokens=5M or params=1M,time=3m. trunk=1M in
        place of params counts the contextual network alone, which a GPT is all of and a Backpack has a part of.
    out
        The comparison's folder.
    tokenizer
        A kind (char, byte, bpe), a published vocabulary (gpt2, cl100k, o200k) or a tokenizer's file.
    vocab_size
        Tokens of a bpe tokenizer that is trained, special ones not counted; without it 1024.
    seed
        Seed of weights, batches and samples.
    seeds
        Repeat all with so many seeds, from --seed on; losses are then given as mean and spread.
    batch_size
        Windows in a step.
    window
        Tokens of a window, and the context of models that have one.
    sweep
        Try a third and three times each preset's learning rate in short runs first, and take the best.
    device
        auto, cpu, cuda or mps.
    """
    allowed = parse_budget(budget)
    if not out:
        raise InputError("--out is empty; name a folder, or leave it out")
    # torch is imported here, once the flags are known to be right
    from scratchlm.cli.progress import say
    from scratchlm.compare.plan import Request, prepare

    request = Request(
        architectures=architectures,
        data=data,
        budget=allowed,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        seed=seed,
        seeds=seeds,
        batch_size=batch_size,
        window=window,
        sweep=sweep,
        device=device,
    )
    comparison = prepare(request, Path(out), lambda arch: say(f"{arch}: measuring how many steps the time pays for"))
    for entry in comparison.entries:
        floor = "" if entry.sized else ", a floor that is not sized"
        say(f"{entry.arch}: {entry.parameters:,} parameters{floor}, {entry.config.steps:,} steps")
    return _follow(comparison)


def _follow(comparison: "Comparison") -> int:
    """Carry the comparison out and show it. Returns the exit code."""
    from scratchlm.cli.progress import EXIT_CODES, View, say, stopping
    from scratchlm.compare.run import Begins, Chosen, Compared, Diverged, Measuring, compare
    from scratchlm.training.records import Sampled

    view: View | None = None
    compared: Compared | None = None
    try:
        with stopping() as (stop, received), ExitStack() as bar:
            for happening in compare(comparison, stop):
                match happening:
                    case Begins():
                        bar.close()
                        trying = ", a try" if happening.sweep else ""
                        repeated = f", seed {happening.run.config().seed}" if comparison.request.seeds > 1 else ""
                        say(f"\n{happening.arch}{repeated}{trying}: learning rate {happening.lr:.3g}")
                        view = View(happening.run)
                        bar.enter_context(view.bar)
                    case Diverged():
                        what = "this rate of " if happening.sweep else ""
                        say(f"{what}{happening.arch} diverged: {happening.message}; the others go on")
                    case Chosen():
                        losses = (f"{lr:.3g}: {loss or float('nan'):.4f}" for lr, loss in happening.tried.items())
                        say(f"{happening.arch}: learning rate {happening.lr:.3g} is taken ({', '.join(losses)})")
                    case Measuring():
                        bar.close()
                        repeated = " with this seed" if comparison.request.seeds > 1 else ""
                        say(f"\nall are trained{repeated}; scoring them, and measuring speed and memory")
                    case Compared():
                        compared = happening
                    case Sampled():
                        pass  # of many models, each would write over the other
                    case _:
                        assert view is not None
                        view.show(happening)
    except OSError as error:
        say(f"scratchlm: the comparison stopped, since a file could not be written: {error}; "
            "what was saved before is whole: make room, then give the same command again")  # fmt: skip
        return 2
    if compared is not None:
        _finish(comparison, compared)
        return 0
    say(f"stopped, everything is saved; the same command goes on with {comparison.folder}")
    return EXIT_CODES[received[0]]


def _finish(comparison: "Comparison", compared: "Compared") -> None:
    from scratchlm.cli.progress import say
    from scratchlm.compare.report import table

    rows = compared.results["rows"]
    if compared.already:
        say(f"{comparison.folder} is finished")
    print(table(compared.results), end="", flush=True)
    for row in rows:
        if row["message"] is not None:
            say(f"{row['architecture']} diverged: {row['message']}")
    say(f"\nopen {comparison.folder / 'report.html'}; the figures are in {comparison.folder / 'results.json'}")
