"""scratchlm bench [WHAT]: this machine, and our speed on it against others'."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from scratchlm.bench import bench, groups_of
from scratchlm.errors import InputError
from scratchlm.files import FORMAT_VERSION

QUICK, THOROUGH = 5, 21  # rounds


def command(
    what: str = "all",
    /,
    *,
    out: str = "runs/bench",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    thorough: Annotated[bool, Parameter(negative=())] = False,
    nanogpt: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile_: Annotated[Literal["off", "auto", "on"], Parameter(name="--compile")] = "off",
) -> int:
    """Measure this machine's products and copies, and training, generation and tokenizers against other libraries.

    A ratio is our time over the peer's, both doing the same work in one process, in turns; below 1 ours is faster. What
    is not installed is named and left out. It takes about five minutes on two cores; run nothing else beside it.

    Parameters
    ----------
    what
        ceilings, training, distribution, generation, tokenizers, or all of them.
    out
        The folder for results.json, table.md and the chart ratios.svg and ratios.png.
    json_
        Print one JSON object, and nothing else on standard output.
    thorough
        Take 21 rounds for 5, and of the whole runs in distribution 5 for 3.
    nanogpt
        The folder of a clone of nanoGPT, to be measured against too.
    device
        auto, cpu, cuda or mps.
    precision
        That of training and generation: fp32, bf16 or fp16; auto is bf16 on CUDA chips that have it, else fp32.
    compile_
        Whether our training steps are compiled: off, on, or auto, which goes on without it where that fails. Peers are
        compiled with them on CUDA alone.
    """
    groups_of(what)
    if not out:
        raise InputError("--out is empty; name a folder, or leave it out")
    if nanogpt is not None and not (Path(nanogpt) / "model.py").is_file():
        raise InputError(f"{nanogpt} has no model.py, so it is no clone of nanoGPT; give the folder that has it")
    # torch is imported here, once the flags are known to be right
    from scratchlm import runtime
    from scratchlm.bench.measure import Setting
    from scratchlm.bench.report import ours, ratio, results_of, table, theirs, write
    from scratchlm.cli.progress import say

    chosen, _ = runtime.choose_device(device)
    dtype, _ = runtime.choose_precision(precision, chosen)
    folder = Path(out)
    try:  # before it is filled, which takes minutes
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the folder {folder}: {error.strerror}") from error
    setting = Setting(
        device=chosen,
        repeats=THOROUGH if thorough else QUICK,
        nanogpt=None if nanogpt is None else Path(nanogpt),
        precision=runtime.precision_name(dtype),
        compile=compile_,
    )
    rows = []
    try:
        for row in bench(what, setting):
            shown = row.json()
            say(f"{row.what}: {ours(shown)}" + (f"; {theirs(shown)}; {ratio(shown)}" if row.peer else ""))
            if row.message is not None:
                say(f"  {row.message}")
            rows.append(row)
    finally:  # what was measured is kept, whatever comes after it
        results = results_of(rows)
        write(results, folder)
    if json_:
        print(json.dumps({"format_version": FORMAT_VERSION, **results}, allow_nan=False))
    else:
        print(table(results["rows"]), end="")
    say(f"\nthe figures are in {folder / 'results.json'}; {folder} has the table and the chart too")
    return 1 if any(row.status in ("failed", "unequal") for row in rows) else 0
