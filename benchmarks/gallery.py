"""docs/gallery.md: what the architectures look like, learn and write, out of one comparison and one run of pairs.

    scratchlm compare bigram gpt llama rnn lstm gru cnn backpack --data shakespeare-tiny \
        --budget params=200k,tokens=1M --window 128 --out runs/gallery
    scratchlm train transformer --steps 488 --eval-every 488 --model.dim 64 --model.hidden-dim 192 --model.depth 2 \
        --optim.warmup 50 --out runs/gallery-transformer
    python benchmarks/gallery.py --compared runs/gallery --pairs runs/gallery-transformer
    python benchmarks/gallery.py

The third line fills docs/gallery/ with the results and pictures of these runs; the last one makes the page anew out of
what is there, and of gallery.md.jinja beside this file. A test holds that the page is what this makes.
"""

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scratchlm import load
from scratchlm.checkpoint import RunFolder
from scratchlm.cli import main as scratchlm
from scratchlm.compare.report import cells, columns
from scratchlm.files import read_json, write_json
from scratchlm.translation import decode, encode_source

DOCS = Path(__file__).parent.parent / "docs"
GALLERY, PAGE = DOCS / "gallery", DOCS / "gallery.md"
TIMED = ("training, tokens/s", "generation, tokens/s")  # the machine was shared: benchmarks say how fast they are
TEXT = "To be, or not to be"
LETTERS = ("e", "t", "k")
SPELLED = ("attention", "scratch", "language", "shakespeare", "model", "tensor")
SAMPLE_LINES = 12


def table(results: dict) -> str:
    """The comparison's table as Markdown, without what was timed."""
    names = [name for name in columns(results) if name not in TIMED]
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *(cells(row, names) for row in results["rows"])]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> str:
    """The text of docs/gallery.md."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    results = read_json(GALLERY / "results.json")
    rows = sorted(results["rows"], key=lambda row: row["validation"]["nats_per_token"])
    return environment.get_template("gallery.md.jinja").render(
        request=results["request"],
        versions=results["versions"],
        table=table(results),
        rows=rows,
        samples={row["architecture"]: row["sample"].splitlines()[:SAMPLE_LINES] for row in rows},
        guessing=math.log(results["vocab_size"]),
        pairs=json.loads((GALLERY / "translations.json").read_text(encoding="utf-8")),
        text=TEXT,
        letters=LETTERS,
    )


def pictures(compared: Path) -> None:
    """What a comparison gives the page."""
    results = read_json(compared / "results.json")
    results["versions"] = {name: results["versions"][name] for name in ("python", "torch")}
    write_json(GALLERY / "results.json", results)
    shutil.copyfile(compared / "loss_tokens.svg", GALLERY / "loss_tokens.svg")
    for row in results["rows"]:
        name = row["architecture"]
        assert scratchlm(["info", str(compared / name), "--svg", str(GALLERY / f"{name}.svg")]) == 0
    with tempfile.TemporaryDirectory() as folder:
        inspect = ["inspect", "attention", str(compared / "gpt"), "--text", TEXT, "--layer", "1", "--out", folder]
        assert scratchlm(inspect) == 0
        assert scratchlm(["inspect", "senses", str(compared / "backpack"), *LETTERS, "--out", folder]) == 0
        for name in ("attention.svg", "senses.svg"):
            shutil.copyfile(Path(folder) / name, GALLERY / name)


def translated(folder: Path) -> dict:
    """Words that a run of pairs spells out, and how far it had come."""
    run = RunFolder(folder)
    model, tokenizer = load(folder)
    sources = [encode_source(word, model, tokenizer) for word in SPELLED]
    best = (hypotheses[0] for hypotheses in decode(model, sources, tokenizer.end_of_text, beam=4))
    scored = [line for line in run.metrics() if "val_loss" in line][-1]
    return {
        "command": " ".join(["scratchlm", *run.manifest()["argv"][1:]]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": scored["tokens"],
        "val_loss": scored["val_loss"],
        "translations": [[word, tokenizer.target.decode(one.tokens)] for word, one in zip(SPELLED, best, strict=True)],
    }


def main() -> None:
    """Fill the folder where runs are given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compared", type=Path, help="a comparison's folder")
    parser.add_argument("--pairs", type=Path, help="the folder of a run of pairs")
    given = parser.parse_args()
    GALLERY.mkdir(exist_ok=True)
    if given.compared is not None:
        pictures(given.compared)
    if given.pairs is not None:
        assert scratchlm(["info", str(given.pairs), "--svg", str(GALLERY / "transformer.svg")]) == 0
        (GALLERY / "translations.json").write_text(
            json.dumps(translated(given.pairs), indent=1) + "\n", encoding="utf-8"
        )
    PAGE.write_text(page(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
