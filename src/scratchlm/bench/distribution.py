"""Two processes with one thread each against one process with two threads: what sharing a batch out costs on a CPU."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scratchlm.bench.measure import Row, Setting, row, spread
from scratchlm.errors import InputError

STEPS, WARM = 60, 20
ASKED = 1 / 0.85  # our time over that of one process: 0.85 of its tokens for each second


def rows(setting: Setting) -> Iterator[Row]:
    """The one row, of whole runs of `scratchlm train`; nothing on an accelerator, which one process has to itself."""
    if setting.device.type != "cpu":
        return
    alone, shared = [], []
    for _ in range(max(3, setting.repeats // 4)):  # a side of one takes many seconds
        alone.append(milliseconds(processes=1, threads=2))
        shared.append(milliseconds(processes=2, threads=1))
    ratio, quartiles = spread([ours / one for ours, one in zip(shared, alone, strict=True)])
    what = "training step: gpt, laptop, in 2 processes with 1 thread each"
    yield replace(
        row(setting, "distribution", what, shared, "ms", asked=ASKED, threads=1, precision="fp32"),
        peer="1 process with 2 threads",
        theirs=spread(alone)[0],
        ratio=ratio,
        quartiles=quartiles,
    )


def milliseconds(processes: int, threads: int) -> float:
    """A step's time in a run of its own, the first steps left out."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        size = ["--preset", "laptop", "--steps", str(STEPS), "--eval-every", str(STEPS), "--log-every", str(WARM)]
        flags = ["--data", "shakespeare-tiny", "--device", "cpu", "--out", str(run), "--nproc", str(processes)]
        command = [sys.executable, "-m", "scratchlm", "train", "gpt", *size, *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(  # noqa: S603 - our own words
            command, check=False, capture_output=True, text=True, env=environment
        )
        if done.returncode:
            raise InputError(f"scratchlm train ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        return 1e3 * (lines[-1]["seconds"] - lines[0]["seconds"]) / (lines[-1]["step"] - lines[0]["step"])
