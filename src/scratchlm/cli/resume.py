"""scratchlm resume DIR: go on with a run."""

from typing import Any, Literal

from scratchlm.checkpoint import RunFolder
from scratchlm.cli.flags import OptionalInt
from scratchlm.cli.progress import check_processes, follow
from scratchlm.errors import InputError


def command(
    directory: str,
    /,
    *,
    steps: OptionalInt = None,
    base: str | None = None,
    nproc: OptionalInt = None,
    device: Literal["auto", "cpu", "cuda", "mps"] | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    compile: Literal["auto", "on", "off"] | None = None,  # noqa: A002 - as the setting is called
    accumulate: OptionalInt = None,
    checkpoint_activations: bool | None = None,
    loss_rows: OptionalInt = None,
    shard: bool | None = None,
) -> int:
    """Go on with a run from its newest checkpoint, on this machine or another.

    How a step is computed may change, and is kept in the run's settings; what is computed stays.

    Parameters
    ----------
    directory
        The run's folder.
    steps
        Train up to this many steps, more than were planned; the schedule stays, its last rate goes on.
    base
        Of an adapter: the folder of its base, if that is no longer where it was.
    nproc
        Processes of this machine that share the work, whatever their number was before.
    device
        auto, cpu, cuda or mps.
    precision
        What products are computed in.
    compile
        Whether torch compiles the step.
    accumulate
        Parts that a step's batch is computed in.
    checkpoint_activations
        Compute each block's activations again for the backward pass.
    loss_rows
        Tokens whose logits are held at once.
    shard
        Share out the model too, among several processes.
    """
    check_processes(nproc)
    run = RunFolder.open(directory, base)
    if not run.has_text:
        raise InputError(
            f"{directory} has weights from elsewhere and no training that could go on; train them further with "
            f"scratchlm finetune {directory} --data TEXT, write with them: scratchlm sample {directory}"
        )
    planned = run.config().steps
    if steps is not None and steps < planned:
        raise InputError(f"--steps is {steps}, but the run was planned for {planned}; give more, or leave it out")
    given: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "compile": compile,
        "accumulate": accumulate,
        "checkpoint_activations": checkpoint_activations,
        "loss_rows": loss_rows,
        "shard": shard,
    }
    return follow(run, steps, nproc, {name: value for name, value in given.items() if value is not None})
