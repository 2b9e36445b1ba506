"""What each preset's loss is on the way: whole runs of the product, or their first part, with several seeds.

    python benchmarks/expected.py gpt/laptop lstm/laptop [--seeds 1 2] [--evaluations 1] [--runs runs/expected]

Each run has the preset's settings and its whole schedule; with --evaluations it ends after so many of them. A run that
was interrupted goes on, and so does one that is to have more evaluations. src/scratchlm/training/expected.json then has
what all runs of these presets in --runs gave: the validation loss at each evaluation, the training loss at each line,
and with what they were measured. The table in docs/curves.md is made of it; without presets, that is all that is done.
"""

import argparse
import datetime
import json
import os
import re
import threading
from pathlib import Path

import torch

from scratchlm.checkpoint import RunFolder
from scratchlm.config import merge, preset_settings, without_vocabulary
from scratchlm.files import read_json, replace_file
from scratchlm.models import MODELS
from scratchlm.training.expected import FILE, all_expected, deciding
from scratchlm.training.loop import train
from scratchlm.training.records import Evaluated
from scratchlm.training.setup import create_run

PAGE = Path(__file__).parent.parent / "docs" / "curves.md"
MARK = "<!-- made by benchmarks/expected.py -->\n"
EVERY = 10  # steps between training losses that are written down


def measure(name: str, seed: int, evaluations: int | None, folder: Path) -> None:
    """Train one run of a preset as far as asked, or go on with it, on the data that it takes when none are named."""
    arch, _, preset = name.partition("/")
    own = without_vocabulary(preset_settings(arch, preset))
    own = merge({"arch": arch}, own, {"keep": 1, "seed": seed, "log_every": EVERY})
    run = RunFolder(folder) if folder.exists() else create_run(own, folder)[0]
    done, stop = sum("val_loss" in line for line in run.metrics()), threading.Event()
    if evaluations is not None and done >= evaluations:
        return
    for record in train(run, stop=stop):
        if isinstance(record, Evaluated):
            done += 1
            print(f"{name} seed {seed} step {record.step:,}: {record.score.nats_per_token:.4f}", flush=True)
            if done == evaluations:
                stop.set()


def collected(name: str, folders: dict[int, Path], command: str) -> dict[str, object]:
    """What the runs of a preset gave. All must have had the same settings and text."""
    seeds, decided = {}, []
    for seed, folder in sorted(folders.items()):
        run = RunFolder(folder)
        lines = run.metrics()
        decided.append(deciding(run.config(), read_json(folder / "config.json")["data_checksum"]))
        seeds[seed] = {
            "validation": {line["step"]: round(line["val_loss"], 5) for line in lines if "val_loss" in line},
            "training": {line["step"]: round(line["loss"], 4) for line in lines if line["step"] % EVERY == 0},
        }
    if any(one != decided[0] for one in decided):
        raise SystemExit(f"the runs of {name} were made with different settings; remove those that are old")
    measured = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "torch": torch.__version__.partition("+")[0],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "device": "cpu",
        "command": command,
    }
    return {"settings": decided[0], "measured": measured, "seeds": seeds}


def page() -> str:
    """The text of docs/curves.md: what is written there, and below the mark what was measured."""
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    lines = [
        "| preset | seeds | measured at steps | expected at the last of them | made |",
        "| --- | ---: | --- | --- | --- |",
    ]
    for name, one in all_expected().items():
        arch, _, preset = name.partition("/")
        last, how = one.bands()[-1], one.measured
        steps = ", ".join(f"{step:,}" for step in one.steps)
        lines.append(
            f"| {name} | {last.seeds} | {steps} of {MODELS[arch].presets[preset]['steps']:,} | {last.low:.4f} to "
            f"{last.high:.4f} | {how['date']}, torch {how['torch']}, {how['threads']} thread of a CPU |"
        )
    return head + mark + "\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write down what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="ARCH/PRESET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--evaluations", type=int, help="how many a run is to have, if not all")
    parser.add_argument("--runs", type=Path, default=Path("runs/expected"))
    given = parser.parse_args()
    for name in given.presets:
        arch, _, preset = name.partition("/")
        if arch not in MODELS or preset not in MODELS[arch].presets:
            raise SystemExit(f"there is no preset {name}")
    for name in given.presets:
        for seed in given.seeds:
            measure(name, seed, given.evaluations, given.runs / f"{name.replace('/', '-')}-{seed}")
        named = re.compile(re.escape(name.replace("/", "-")) + r"-(\d+)")
        found = [match for folder in given.runs.iterdir() if (match := named.fullmatch(folder.name))]
        folders = {int(match[1]): given.runs / match[0] for match in found}
        seeds = " ".join(map(str, sorted(folders)))
        part = "" if given.evaluations is None else f" --evaluations {given.evaluations}"
        command = f"python benchmarks/expected.py {name} --seeds {seeds}{part}"
        content = {**json.loads(FILE.read_text(encoding="utf-8")), name: collected(name, folders, command)}
        replace_file(FILE, (json.dumps(dict(sorted(content.items())), indent=1) + "\n").encode())
        all_expected.cache_clear()
    replace_file(PAGE, page().encode())


if __name__ == "__main__":
    main()
