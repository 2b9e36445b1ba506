"""Memory that `scratchlm import` takes, in times of the weights: a GPT-2 of 124M parameters at random, float32.

    python benchmarks/import_memory.py

Counted is the peak of the process's resident memory while the command runs (VmHWM in /proc, the mapped pages of files
in it), less what was resident before: once all modules had been imported that the command names, and, as a second
figure, once it had imported a tiny model, since torch imports more on first use. Linux only.
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

measured, flags = [], ["--tokenizer", "none", "--unpickle", "--out"]
for source, out in zip(sys.argv[1::2], sys.argv[2::2]):
    measured.append(kilobytes("VmRSS"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    assert main(["import", source, *flags, out]) == 0
print(*measured, kilobytes("VmHWM"))
"""


def save_models(folder):
    model = GPT2LMHeadModel(GPT2Config())
    model.save_pretrained(folder / "one file")
    model.save_pretrained(folder / "several files", max_shard_size="100MB")
    (folder / "pickle").mkdir()
    (folder / "pickle/config.json").write_bytes((folder / "one file/config.json").read_bytes())
    torch.save(load_file(folder / "one file/model.safetensors"), folder / "pickle/pytorch_model.bin")
    model.to(torch.float16).save_pretrained(folder / "float16")
    tiny = GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=9, bos_token_id=None, eos_token_id=None)
    GPT2LMHeadModel(tiny).save_pretrained(folder / "tiny")
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def main():
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = save_models(folder)
        print(f"{size / 1e6:.0f} MB of weights")
        for kind in ("one file", "several files", "float16", "pickle"):
            paths = [folder / "tiny", folder / f"{kind} tiny", folder / kind, folder / f"{kind} run"]
            done = subprocess.run([sys.executable, "-c", COMMAND, *paths], capture_output=True, text=True, check=True)
            imports, used, peak = (1024 * int(word) for word in done.stdout.split("\n")[-2].split())
            print(
                f"{kind}: peak {peak / 1e6:.0f} MB; {(peak - imports) / size:.2f} times the weights above the imports' "
                f"{imports / 1e6:.0f} MB, {(peak - used) / size:.2f} above the {used / 1e6:.0f} MB after a tiny model"
            )


if __name__ == "__main__":
    main()
