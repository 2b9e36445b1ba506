"""The tables of docs/scaling.md: what a training step takes, checked here, and what follows for many GPUs.

    python benchmarks/scaling.py [--coefficients FILE.json] [--write]

They come from benchmarks/scaling.json: what scaling_measure.py measured here, and what is assumed of a GPU, each with
its source. FILE.json stands over these, by name: {"share": [0.4, 0.45], "save_bytes_per_second": 2e9}. --write puts the
tables into the page.
"""

import argparse
import json
import re
from pathlib import Path

import scaling_model as model
from scaling_model import GPUS, SHAPES, TOKENS, Setting

from scratchlm.distribution import WAITED
from scratchlm.models.gpt import GPTConfig

FILE = Path(__file__).with_name("scaling.json")
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def short(number):
    """Three digits, and no more zeros than needed."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2g}"


def numbers(value):
    """As it is typed in a file of coefficients."""
    return f"{value:g}" if not isinstance(value, list) else ", ".join(map(numbers, value))


def measured_table(measured):
    steps, links, disk, begin = (measured[part] for part in ("steps", "links", "disk", "start"))
    kept, agreed = measured["memory"], links["agreement_seconds"]
    models = "; ".join(
        f"{name} {one['flops_per_second'] / 1e9:.0f}, {one['mfu']:.2f}" for name, one in steps["models"].items()
    )
    hops = ", ".join(f"{1e6 * seconds / (2 * int(n) - 2):.0f}" for n, seconds in agreed.items())
    rates = ", ".join(f"{measured['rates'][precision] / 1e9:.0f}" for precision in ("fp32", "bf16"))
    copies = f"{kept['bf16']['copies_per_matrix_parameter']:.1f} bytes of a matrix's parameter"
    linked = ", ".join(f"{links[f'{name}_bytes_per_second'] / 1e9:.2f}" for name in ("reduce", "gather", "scatter"))
    alone, two = (begin["run_of_a_step_seconds"][n] for n in "12")

    def block(precision):
        return f"{kept[precision]['per_dim']:.1f} D + {kept[precision]['per_head']:.0f} H"

    rows = [
        ["products of 1024 x 1024, fp32 and bf16", f"{rates} GFLOP/s", "rates"],
        ["forward and backward pass of three sizes: GFLOP/s, MFU of the whole step", models, "steps"],
        ["clipping and AdamW", f"{1e9 * steps['optimizer_seconds_per_parameter']:.2f} ns a parameter", "steps"],
        ["loss of a logit, forward and back", f"{1e9 * steps['logit_seconds']:.1f} ns", "steps"],
        ["a block of hardly any width: what the host takes", f"{1e3 * steps['block_host_seconds']:.2f} ms", "steps"],
        ["evaluation of a token, of its forward and backward pass", f"{steps['evaluation_of_step']:.2f}", "steps"],
        ["kept of a block for each token, fp32", block("fp32") + " bytes", "memory"],
        ["the same in bf16, attention in a kernel", block("bf16") + " bytes", "memory"],
        ["the same with --checkpoint-activations", f"{kept['bf16']['recomputed_per_dim']:.0f} D bytes", "memory"],
        ["kept in bf16: copies of the weights", copies, "memory"],
        ["two processes over gloo on loopback: all-reduce, all-gather, reduce-scatter, of a process's time on a core",
         f"{linked} GB/s", "links"],
        ["agreeing on one number: a hop of 2 (n - 1), for 2, 4, 8 processes", f"{hops} us", "links"],
        ["saving a checkpoint of 1.5 GB, hashed and synced", f"{disk['save_bytes_per_second'] / 1e9:.2f} GB/s", "disk"],
        ["hashing a file", f"{disk['hash_bytes_per_second'] / 1e9:.2f} GB/s", "disk"],
        ["windows out of mapped shards", f"{disk['window_tokens_per_second'] / 1e6:.0f} M tokens/s", "disk"],
        ["drawing weights", f"{begin['draw_parameters_per_second'] / 1e6:.0f} M/s", "start"],
        ["a run of one step, from the command line: one process, two", f"{alone:.1f}, {two:.1f} s", "start"],
    ]  # fmt: skip
    return table(["what", "measured", "part"], rows)


def against(expected, found, digits):
    """Predicted, measured and the error."""
    pair = f"{expected:,.{digits}f}, {found:,.{digits}f}"
    return pair if not found else f"{pair} ({100 * (expected / found - 1):+.0f} %)"


def checked_table(measured):
    rows = []
    for name, run in [
        pair for part in ("alone", "together", "together_bf16") for pair in measured[part]["runs"].items()
    ]:
        shape, setting = GPTConfig(**run["shape"]), Setting(run["shard"], run["recompute"])
        tokens = run["windows"] * shape.context // run["processes"] // run["accumulate"]
        sizes = model.collective_bytes(shape, run["processes"], setting, run["accumulate"])
        kept = model.kept_here(shape, setting, tokens, measured["memory"], run["precision"])
        held = 12 * shape.parameters / (run["processes"] if setting.shard else 1)
        rows.append([
            name,
            against(model.step_here(run, measured), run["core_seconds"], 2) if run["precision"] == "fp32" else "",
            against(sum(sizes) / 1e6, sum(run["collectives"].values()) / 1e6, 0),
            against(held / 1e6, run["held"] / 1e6, 0),
            against(kept / 1e6, sum(run["kept"]) / 1e6, 1),
        ])  # fmt: skip
    return table(["run", "core seconds a step", "MB in collectives", "MB of weights and moments", "MB kept"], rows)


def memory_table(gpu, kept):
    rows = []
    sharded, ckpt = Setting(shard=True), Setting(recompute=True)
    for size, (shape, _) in SHAPES.items():
        columns = [(1, Setting(), "weights, gradients, moments")]
        columns += [(gpus, sharded, "weights, gradients, moments") for gpus in GPUS[1:]]
        columns += [(8, sharded, "gathered"), (8, sharded, "copies")]
        columns += [(1, setting, "activations") for setting in (Setting(), ckpt)] + [(1, Setting(), "logits")]
        held = [
            model.memory(shape, n, setting, 1, kept, int(gpu["memory"]))[what] / 1e9 for n, setting, what in columns
        ]
        rows.append([size, f"{shape.parameters:,}", *(f"{size:.1f}" if size >= 10 else f"{size:.2f}" for size in held)])
    head = ["model", "N", "DDP", *(f"FSDP2, {gpus:,}" for gpus in GPUS[1:]), "gathered", "copies", "a window", "+ ckpt"]
    return table([*head, "its logits"], rows)


def plan_table(gpu, kept):
    rows = []
    for size, (shape, _) in SHAPES.items():
        for gpus in GPUS:
            best = model.plan(size, gpus, gpu, kept)
            if best is None:
                rows.append([size, f"{gpus:,}", "nothing fits", *["-"] * 6])
                continue
            ends = (
                model.step(shape, gpus, best["setting"], best["part"], best["accumulate"], gpu, s) for s in gpu["share"]
            )
            rates = " to ".join(short(best["batch"] / times["seconds"] / 1e3) for times in ends)
            times = [short(1e3 * best["times"][name]) for name in ("seconds", "compute", "links", "host")]
            batch = f"{best['part']} x {best['accumulate']}"
            held = f"{best['memory'] / 1e9:.0f}"
            rows.append([size, f"{gpus:,}", best["setting"].name(gpus), batch, f"{best['batch'] / 1e6:.2g}", held,
                         times[0], f"{times[1]}, {times[2]}, {times[3]}", rates])  # fmt: skip
    return table(["model", "GPUs", "setting", "windows x parts", "batch, M tokens", "GB a GPU", "ms a step",
                  "computing, links, host", "thousand tokens/s"], rows)  # fmt: skip


def days_table(gpu, kept):
    rows = []
    for size in SHAPES:
        for gpus in GPUS:
            best = model.plan(size, gpus, gpu, kept)
            cells = []
            for tokens in TOKENS.values():
                days, letters = model.troubles(size, gpus, tokens, best, gpu)
                cells.append(letters if days is None else f"{short(days)} {letters}".strip())
            rows.append([size, f"{gpus:,}", *cells])
    return table(["model", "GPUs", *TOKENS], rows)


def host_table(gpu):
    rows = []
    for size, (shape, _) in SHAPES.items():
        weights, node, seconds = 4 * shape.parameters / 1e9, gpu["node_gpus"], model.saving(shape, gpu)
        intervals = ", ".join(f"{model.young_interval(shape, gpus, gpu) / 60:.0f}" for gpus in GPUS[1:])
        rows.append([
            size, f"{3 * weights:.1f}", f"{seconds:.0f}", f"{seconds / 3:.1f} %",
            f"{1e3 * 3 * weights / WAITED.total_seconds():.0f}", intervals, f"{model.restart(shape, gpu):.0f}",
            f"{node * weights:,.0f}",
            f"{1e3 * model.muon_flops(shape) / (gpu['peak'] * sum(gpu['share']) / 2):,.0f}",
        ])  # fmt: skip
    return table(["model", "GB saved, gathered by rank 0", "s to save", "of 5 minutes", "MB/s or the others give up",
                  "best minutes between: 8, 64, 1,024 GPUs", "s to restart", "host GB of a node at the start",
                  "Muon, ms a step"], rows)  # fmt: skip


def tokens_table(gpu):
    rows = []
    for name, tokens in TOKENS.items():
        shapes = [shape for shape, _ in SHAPES.values()]
        each = ", ".join(f"{tokens / shape.parameters:,.0f}" for shape in shapes)
        hours = ", ".join(short(model.evaluation(shape, 8, model.VALIDATED * tokens, gpu) / 3600) for shape in shapes)
        batch, scored = model.critical_batch(tokens) / 1e6, model.VALIDATED * tokens / 1e6
        rows.append([name, f"{2 * tokens / 1e9:,.0f}", f"{batch:.1f}", each, f"{scored:,.0f}", hours])
    return table(["tokens", "GB of shards", "critical batch, M tokens", "tokens a parameter: 124M, 350M, 1.5B, 7B",
                  "M tokens in 0.5 %", "hours to score them: 124M, 350M, 1.5B, 7B"], rows)  # fmt: skip


def tables(content, given):
    """The page's tables by name. `given` stands over the coefficients that are assumed."""
    measured = content["measured"]
    gpu = {
        "block_host_seconds": measured["steps"]["block_host_seconds"],
        "step_host_seconds": measured["steps"]["step_host_seconds"],
        "gloo_hop_seconds": measured["links"]["hop_seconds"],
        "save_bytes_per_second": measured["disk"]["save_bytes_per_second"],
        "hash_bytes_per_second": measured["disk"]["hash_bytes_per_second"],
        "draw_parameters_per_second": measured["start"]["draw_parameters_per_second"],
        "start_seconds": measured["start"]["run_of_a_step_seconds"]["2"],
        **{name: known["value"] for name, known in content["assumed"].items()},
        **given,
    }
    kept = measured["memory"]
    assumed = [[f"`{name}`", numbers(gpu[name]), known["source"]] for name, known in content["assumed"].items()]
    return {
        "measured": measured_table(measured),
        "assumed": table(["name", "value", "source"], assumed),
        "checked": checked_table(measured),
        "memory": memory_table(gpu, kept),
        "plan": plan_table(gpu, kept),
        "days": days_table(gpu, kept),
        "hosts": host_table(gpu),
        "tokens": tokens_table(gpu),
    }


def written(page, made):
    """The page with each table between its markers."""
    for name, text in made.items():
        page, count = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{text}\n\2", page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table {name}; give it one")
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--coefficients", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    given = json.loads(options.coefficients.read_text(encoding="utf-8")) if options.coefficients else {}
    made = tables(json.loads(FILE.read_text(encoding="utf-8")), given)
    if options.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    print("\n\n".join(f"{name}\n\n{text}" for name, text in made.items()))


if __name__ == "__main__":
    main()
