"""What LoRA learns of another kind of text, by rank, against training all of the model: from plays to Bible verses.

    python benchmarks/lora_domains.py [--out DIR] [--base-steps 2000] [--steps 400]

A GPT (the preset laptop, byte-pair tokens of the plays) learns 30 of Shakespeare's plays. It is then trained on the
English verses of the corpus bible-de-en: all of it, and with adapters of several ranks beside all matrices but
embeddings. Rates are chosen on the verses' validation split, for full training and for rank 8, whose rate all ranks
have; losses are those of the test split. The other seven plays tell what was forgotten, and that an adapter that is
taken off leaves nothing. Writes lora_domains.json, .svg and .png, and prints the table.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load_checkpoint, restore_weights, starting_model
from scratchlm.data import corpora
from scratchlm.data.shakespeare import plays
from scratchlm.data.shards import Tokens, encode_documents
from scratchlm.evaluation import evaluate
from scratchlm.inspect.curves import COLOURS, save_figure
from scratchlm.lora import remove, size
from scratchlm.training.loop import train
from scratchlm.training.setup import create_run, finetune_settings

RANKS = (1, 2, 4, 8, 16, 32)
FULL_RATES, ADAPTER_RATES = (3e-4, 1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2)


def trained(folder, settings, base=None):
    """A run, taken to its end; one that is there is taken as it is."""
    run = RunFolder(folder) if folder.exists() else create_run(settings, folder, base=base)[0]
    start = time.perf_counter()
    for _ in train(run):
        pass
    print(f"{folder.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return run


def loss(run_or_model, tokenizer, tokens, window=128):
    return evaluate(run_or_model, tokens, tokenizer.token_lengths(), window).nats_per_token


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/lora_domains"))
    parser.add_argument("--base-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    out = given.out
    out.mkdir(parents=True, exist_ok=True)
    texts = plays()
    (out / "plays.txt").write_text("\n".join(texts[:30]), encoding="utf-8")
    lines = corpora.get("bible-de-en").splitlines()
    verses = [
        line.split("\t")[2] for part in ("train", "validation", "test") for line in lines if line.startswith(part)
    ]
    (out / "verses.txt").write_text("\n".join(verses) + "\n", encoding="utf-8")

    base = trained(
        out / "plays",
        {
            "arch": "gpt",
            "data": str(out / "plays.txt"),
            "tokenizer": "bpe",
            "steps": given.base_steps,
            "batch_size": 16,
            "eval_every": 500,
            "model": {"context": 128, "dim": 128, "depth": 4, "heads": 4, "dropout": 0.0, "activation": "gelu"},
            "optim": {"lr": 3e-3, "min_lr": 3e-4, "warmup": 100, "beta2": 0.99},
        },
    )
    start = base.checkpoint()
    model, tokenizer = load_checkpoint(base, start, "cpu")
    unseen = Tokens.of(encode_documents(["\n".join(texts[30:])], tokenizer))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plays_before = loss(model, tokenizer, unseen)

    def tuned(name, lr, rank=None, **more):
        settings = {"data": str(out / "verses.txt"), "steps": given.steps, "optim": {"lr": lr}}
        if rank is not None:
            settings["lora"] = {"rank": rank, **more}
        settings = {**finetune_settings(base, settings), "base": f"../{base.path.name}"}
        run = trained(out / name, settings, (base, start))
        model, _ = load_checkpoint(run, run.checkpoint(), "cpu")
        splits = run.splits()
        adapted = starting_model(run) if rank is not None else model
        found = {
            "name": name,
            "lr": lr,
            "rank": rank,
            "trained": size(adapted).trained,
            "saved_bytes": size(adapted).saved_bytes,
            "validation": loss(model, tokenizer, splits["validation"]),
            "test": loss(model, tokenizer, splits["test"]),
            "plays": loss(model, tokenizer, unseen),
            "curve": [[line["step"], line["val_loss"]] for line in run.metrics() if "val_loss" in line],
        }
        if rank is not None:
            restore_weights(adapted, run.checkpoint())
            remove(adapted)
            same = all(torch.equal(tensor, kept[name]) for name, tensor in adapted.state_dict().items())
            found["restored"] = same and loss(adapted, tokenizer, unseen) == plays_before
        return found, splits

    full, adapters = [], []
    for lr in FULL_RATES:
        found, splits = tuned(f"full-{lr:g}", lr)
        full.append(found)
    before = {name: loss(model, tokenizer, splits[name]) for name in ("validation", "test")}
    best_full = min(full, key=lambda one: one["validation"])
    for lr in ADAPTER_RATES:
        adapters.append(tuned(f"rank-8-{lr:g}", lr, 8)[0])
    rate = min(adapters, key=lambda one: one["validation"])["lr"]
    ranks = [one for one in adapters if one["lr"] == rate]
    ranks += [tuned(f"rank-{rank}", rate, rank)[0] for rank in RANKS if rank != 8]
    ranks.sort(key=lambda one: one["rank"])
    more = [
        tuned("rank-8-query-value", rate, 8, targets=("query", "value"))[0],
        tuned("rank-8-dora", rate, 8, dora=True)[0],
        tuned("rank-32-rslora", rate, 32, rslora=True)[0],
    ]
    gained = before["test"] - best_full["test"]
    for one in (*full, *adapters, *ranks, *more):
        one["share"] = (before["test"] - one["test"]) / gained
    results = {"base": {**before, "plays": plays_before}, "full": full, "rates": adapters, "ranks": ranks, "more": more}
    results["versions"] = runtime.versions()
    (out / "lora_domains.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nbefore: verses {before['test']:.4f}, unseen plays {plays_before:.4f} nats per token\n")
    print("| trained | rate | parameters | saved | verses, test | share of the gain | unseen plays | taken off |")
    print("|---|---|---|---|---|---|---|---|")
    for one in (*full, *ranks, *(a for a in adapters if a["lr"] != rate), *more):
        off = {None: "", True: "the base, bit by bit", False: "NOT THE BASE"}[one.get("restored")]
        print(
            f"| {one['name']} | {one['lr']:g} | {one['trained']:,} | {one['saved_bytes'] / 1e3:,.0f} kB | "
            f"{one['test']:.4f} | {one['share']:.1%} | {one['plays']:.4f} | {off} |"
        )
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(before["validation"], color="grey", linewidth=1, linestyle=":", label="before")
    shown = [(best_full, "all parameters", "black"), *((one, f"rank {one['rank']}", None) for one in ranks)]
    for at, (one, label, colour) in enumerate(shown):
        steps, losses = zip(*([0, before["validation"]], *one["curve"]), strict=True)
        axes.plot(steps, losses, label=label, color=colour or COLOURS[at % len(COLOURS)], marker=".")
    axes.set(xlabel="steps", ylabel="loss of the verses (nats per token)")
    axes.legend(fontsize=8)
    save_figure(figure, out / "lora_domains")


if __name__ == "__main__":
    main()
