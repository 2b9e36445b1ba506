"""Memory that `scratchlm import` takes, in times of the weights: a GPT-2 of 124M parameters at random, float32.

Counted is the peak of the process's resident memory while the command runs (VmHWM in /proc, which has the mapped pages
of files in it), less what was resident once everything that the command needs had been imported. Linux only.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

COMMAND = """
import re, sys
from pathlib import Path
import scratchlm.cli.import_, scratchlm.models.gpt
from scratchlm.cli import main

def kilobytes(field):
    return int(re.search(rf"{field}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
code = main(sys.argv[1:])
print(code, before, kilobytes("VmHWM"))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = GPT2LMHeadModel(GPT2Config())
        size = 4 * sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(folder / "one file")
        model.save_pretrained(folder / "several files", max_shard_size="100MB")
        model.to(torch.float16).save_pretrained(folder / "float16")
        (folder / "pickle").mkdir()
        (folder / "pickle/config.json").write_bytes((folder / "one file/config.json").read_bytes())
        torch.save(load_file(folder / "one file/model.safetensors"), folder / "pickle/pytorch_model.bin")
        print(f"{size / 1e6:.0f} MB of weights")
        for kind in ("one file", "several files", "float16", "pickle"):
            arguments = ["import", folder / kind, "--tokenizer", "none", "--unpickle", "--out", folder / f"{kind} run"]
            done = subprocess.run(
                [sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=True
            )
            code, before, peak = map(int, done.stdout.split("\n")[-2].split())
            assert code == 0, done.stderr
            taken = 1024 * (peak - before)
            print(
                f"{kind}: {taken / 1e6:.0f} MB above the {before / 1e3:.0f} MB of the imports, {taken / size:.2f} times"
            )


if __name__ == "__main__":
    main()
