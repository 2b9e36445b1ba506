"""scratchlm resume DIR: go on with a run."""

from scratchlm.checkpoint import RunFolder
from scratchlm.cli.flags import OptionalInt
from scratchlm.cli.progress import check_processes, follow
from scratchlm.errors import InputError


def command(directory: str, /, *, steps: OptionalInt = None, base: str | None = None, nproc: OptionalInt = None) -> int:
    """Go on with a run from its newest checkpoint.

    Parameters
    ----------
    directory
        The run's folder.
    steps
        Train up to this many steps, more than were planned; the schedule stays, its last rate goes on.
    base
        Of an adapter: the folder of its base, if that is no longer where it was.
    nproc
        Processes of this machine that share the work; as many as before, or not.
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
    return follow(run, steps, nproc)
