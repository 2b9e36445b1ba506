"""What a training step takes in time, memory and communication, and what that says for many GPUs: docs/scaling.md.

    python benchmarks/scaling.py [--coefficients FILE.json] [--write]

The tables come from benchmarks/scaling.json: what scaling_measure.py measured here, and what is assumed of a GPU, each
with its source. FILE.json stands over the assumed ones, by name: {"share": [0.4, 0.45], "write_bytes_per_second": 2e9}.
--write puts the tables into docs/scaling.md.

Letters: N parameters, D width, L blocks, H heads, T window, V vocabulary, n GPUs.
"""

import argparse
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from scratchlm.distribution import RESTARTS
from scratchlm.models.gpt import GPTConfig
from scratchlm.runtime import LOGITS_SHARE

FILE = Path(__file__).with_name("scaling.json")
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
SHAPES = {  # GPT-2's and, of 7B, GPT-3 6.7B's: Brown et al. 2020, table 2.1, whose batches in tokens these are
    "124M": (GPTConfig(vocab_size=50257, context=1024, dim=768, depth=12, heads=12), 1 << 19),
    "350M": (GPTConfig(vocab_size=50257, context=1024, dim=1024, depth=24, heads=16), 1 << 19),
    "1.5B": (GPTConfig(vocab_size=50257, context=1024, dim=1600, depth=48, heads=25), 1 << 20),
    "7B": (GPTConfig(vocab_size=50257, context=2048, dim=4096, depth=32, heads=32), 1 << 21),
}
GPUS = (1, 8, 64, 1024)
TOKENS = {"10B": 1e10, "100B": 1e11, "1T": 1e12, "10T": 1e13}
BUCKET = 25 << 20  # DDP's, in bytes
DAY, YEAR = 86400, 365


@dataclass(frozen=True)
class Setting:
    """How a model is laid out. `share`: FSDP2, else DDP."""

    shard: bool = False
    recompute: bool = False

    def name(self, gpus):
        spread = "one process" if gpus == 1 else "FSDP2" if self.shard else "DDP"
        return spread + (" + ckpt" if self.recompute else "")


SETTINGS = [Setting(shard, recompute) for shard in (False, True) for recompute in (False, True)]


# --- counts: exact, or measured once and for all -------------------------------------------------------------------


def per_token_flops(shape, recompute=False):
    """Forward and backward, 6 N + 12 L D T without position embeddings; and another forward pass of the blocks."""
    again = shape.depth * (24 * shape.dim**2 + 4 * shape.dim * shape.context) if recompute else 0
    parameters = shape.parameters - shape.context * shape.dim
    return 6 * parameters + 12 * shape.depth * shape.dim * shape.context + again


def block_parameters(shape):
    """Of one block."""
    return 12 * shape.dim**2 + (13 if shape.bias else 2) * shape.dim


def rest_parameters(shape):
    """Outside of blocks: embeddings and the last norm."""
    return shape.parameters - shape.depth * block_parameters(shape)


def collective_bytes(shape, gpus, setting, accumulate):
    """Bytes of whole tensors that a step all-reduces, all-gathers and reduce-scatters; all of it in float32.

    DDP reduces once. FSDP2 gathers each block for the forward and again for the backward pass, the rest once, and
    scatters all gradients, for each part of an accumulated batch.
    """
    if gpus == 1:
        return 0, 0, 0
    whole = 4 * shape.parameters
    if not setting.shard:
        return whole, 0, 0
    gathered = 8 * shape.depth * block_parameters(shape) + 4 * rest_parameters(shape)
    return 0, accumulate * gathered, accumulate * whole


def block_bytes(shape, kept, precision, recompute):
    """Activations that a block keeps, for each token; of a recomputed one its input."""
    known = kept[precision]
    if recompute:
        return known["recomputed_per_dim"] * shape.dim
    return known["per_dim"] * shape.dim + known["per_head"] * shape.heads


def memory(shape, gpus, setting, windows, kept, device_bytes, precision="bf16"):
    """Bytes of a GPU at the peak, by what they are for; `windows` in a part of a batch.

    Copies: autocast's of all matrices in bf16, which the backward pass keeps, and which FSDP2 does not share out.
    Gathered: of FSDP2 two blocks, a block's gradient, and what is in no block with its gradient.
    """
    n = gpus if setting.shard else 1
    tokens, blocks = windows * shape.context, shape.depth * block_parameters(shape)
    rows = min(tokens, max(256, device_bytes // LOGITS_SHARE // (12 * shape.vocab_size)))
    working = block_bytes(shape, kept, precision, recompute=False) if setting.recompute else 0
    activations = shape.depth * block_bytes(shape, kept, precision, setting.recompute) + working
    return {
        "weights, gradients, moments": 16 * shape.parameters / n,
        "gathered": 4 * (3 * block_parameters(shape) + 2 * rest_parameters(shape)) if n > 1 else 0,
        "copies": 2 * blocks + 2 * shape.vocab_size * shape.dim if precision == "bf16" else 0,
        "activations": tokens * (activations + 12 * shape.dim),
        "logits": 12 * rows * shape.vocab_size,
    }


def muon_flops(shape):
    """Of Muon's orthogonalisation in a step, which each GPU computes whole: five times 4 r^2 c + 2 r^3 a matrix."""
    return 5 * shape.depth * (4 * 6 + 2 * 18) * shape.dim**3


# --- time --------------------------------------------------------------------------------------------------------


def ring_seconds(size, gpus, bytes_per_second, hop, passes):
    """A ring: each sends passes * (n - 1) / n of the bytes, in passes * (n - 1) hops. All-reduce has two passes."""
    return passes * ((gpus - 1) / gpus * size / bytes_per_second + (gpus - 1) * hop)


def step_here(run, measured):
    """Core seconds of a run of scaling_measure.py in a process, by the other coefficients: no two things overlap."""
    shape, setting, gpus = GPTConfig(**run["shape"]), Setting(run["shard"], run["recompute"]), run["processes"]
    known, links = measured["steps"], measured["links"]
    tokens = run["windows"] * shape.context // gpus
    parameters = shape.parameters / (gpus if setting.shard else 1)
    host = known["step_host_seconds"] + run["accumulate"] * shape.depth * known["block_host_seconds"]
    sizes = collective_bytes(shape, gpus, setting, run["accumulate"])
    rates = (links[f"{name}_bytes_per_second"] for name in ("reduce", "gather", "scatter"))
    sent = (
        passes * (gpus - 1) / gpus * size / rate for passes, size, rate in zip((2, 1, 1), sizes, rates, strict=True)
    )
    return (
        tokens * per_token_flops(shape, setting.recompute) / (known["share"] * run["rate"])
        + tokens * shape.vocab_size * known["logit_seconds"]
        + parameters * known["optimizer_seconds_per_parameter"]
        + host
        + sum(sent)
    )


def step(shape, gpus, setting, windows, accumulate, gpu, share):
    """Seconds of a step on GPUs, and what it waits for. Communication goes on behind computation as far as it can."""
    part = windows * shape.context * per_token_flops(shape, setting.recompute) / (gpu["peak"] * share)
    local = shape.parameters / (gpus if setting.shard else 1)
    update = 32 * local / gpu["memory_bytes_per_second"]  # reads gradients twice, weights and moments; writes three
    host = gpu["step_host_seconds"] + accumulate * shape.depth * gpu["block_host_seconds"]
    wire = min(gpu["node_link_bytes_per_second"], gpu["node_gpus"] * gpu["wire_bytes_per_second"])
    link = gpu["link_share"] * (gpu["node_link_bytes_per_second"] if gpus <= gpu["node_gpus"] else wire)
    reduced, gathered, scattered = collective_bytes(shape, gpus, setting, accumulate)
    links, waited = 0.0, 0.0
    if reduced:  # in trees, whose hops are logarithmic; the last bucket has nothing left to hide behind
        trees = 2 * math.log2(gpus) * gpu["hop_seconds"]
        links = 2 * (gpus - 1) / gpus * reduced / link + math.ceil(reduced / BUCKET) * trees
        last = 2 * (gpus - 1) / gpus * BUCKET / link + trees
        waited = max(last, links - part * 2 / 3)
    elif gathered:
        calls = accumulate * (3 * shape.depth + 2)
        links = ring_seconds(gathered + scattered, gpus, link, 0, 1) + calls * (gpus - 1) * gpu["hop_seconds"]
        first = accumulate * (ring_seconds(8 * block_parameters(shape), gpus, link, gpu["hop_seconds"], 1))
        waited = max(first, links - accumulate * part)
    if gpus > 1:  # whether to stop, and whether to save: two numbers over gloo, around the ring one hop after another
        host += 2 * ring_seconds(8, gpus, 1e9, gpu["gloo_hop_seconds"], 2)
    device = accumulate * part + waited + update
    return {"seconds": max(device, host), "compute": accumulate * part, "links": links, "host": host}


def saving(shape, gpu):
    """Seconds of a checkpoint: rank 0 writes weights and moments, and the others wait."""
    return 12 * shape.parameters / gpu["save_bytes_per_second"]


def restart(shape, gpu):
    """Seconds of a start from a checkpoint: imports, all weights drawn, all of the checkpoint read and hashed."""
    read = 24 * shape.parameters / gpu["hash_bytes_per_second"]  # once to hash and once to read
    return gpu["start_seconds"] + shape.parameters / gpu["draw_parameters_per_second"] + read


def young_interval(shape, gpus, gpu):
    """Seconds between checkpoints that cost least: sqrt(2 * saving * time between failures). Young 1974."""
    return math.sqrt(2 * saving(shape, gpu) * gpu["gpu_hours_between_failures"] * 3600 / gpus)


def lost(shape, gpus, gpu):
    """Share of the time that goes to checkpoints, to work done again and to restarts."""
    between, interval = gpu["gpu_hours_between_failures"] * 3600 / gpus, young_interval(shape, gpus, gpu)
    return saving(shape, gpu) / interval + (interval / 2 + restart(shape, gpu)) / between


def critical_batch(tokens):
    """The batch above which more of it saves few steps, in tokens. Zhang et al. 2024, arXiv 2410.21676."""
    return 22.91 * tokens**0.47


def plan(size, gpus, gpu, kept):
    """The fastest setting that fits, and what it takes; None where none does."""
    shape, usual = SHAPES[size]
    windows = max(1, usual // shape.context // gpus)
    best = None
    for setting in SETTINGS:
        for accumulate in (1 << power for power in range(windows.bit_length())):
            part = windows // accumulate
            held = memory(shape, gpus, setting, part, kept, int(gpu["memory"]))
            if sum(held.values()) > gpu["memory"] * gpu["usable"] or (gpus == 1 and setting.shard):
                continue
            times = step(shape, gpus, setting, part, accumulate, gpu, sum(gpu["share"]) / 2)
            if best is None or times["seconds"] < 0.99 * best["times"]["seconds"]:  # else the simpler one
                found = {"setting": setting, "part": part, "accumulate": accumulate, "times": times}
                best = {**found, "memory": sum(held.values()), "batch": windows * gpus * shape.context}
    return best


def troubles(size, gpus, tokens, best, gpu):
    """Days of a run, and the letters of what breaks, in the order in which it is met."""
    shape, _ = SHAPES[size]
    if best is None:
        return None, "M"
    seconds = tokens / best["batch"] * best["times"]["seconds"]
    days = seconds * (1 + lost(shape, gpus, gpu)) / DAY
    evaluated = 0.005 * tokens / 3 / (1000 * best["batch"])  # the presets' validation split and interval
    found = {
        "W": best["times"]["compute"] < 0.5 * best["times"]["seconds"],
        "C": saving(shape, gpu) > 0.05 * 300,
        "E": evaluated > 0.1,
        "R": days * 24 * gpus / gpu["gpu_hours_between_failures"] > RESTARTS,
        "B": best["batch"] > critical_batch(tokens),
        "U": tokens < 20 * shape.parameters,
        "T": days > YEAR,
    }
    return days, "".join(letter for letter, is_so in found.items() if is_so)


# --- tables ------------------------------------------------------------------------------------------------------


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def short(number):
    """Three digits, and no more zeros than needed."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2g}"


def checked_table(measured):
    rows = []
    for name, run in [pair for part in ("alone", "together", "together_bf16") for pair in measured[part].items()]:
        shape, setting = GPTConfig(**run["shape"]), Setting(run["shard"], run["recompute"])
        tokens = run["windows"] * shape.context // run["processes"] // run["accumulate"]
        expected = step_here(run, measured) if run["precision"] == "fp32" else None
        sizes = collective_bytes(shape, run["processes"], setting, run["accumulate"])
        kept = kept_here(shape, setting, tokens, measured["memory"], run["precision"])
        pairs = [(expected, run["core_seconds"]), (sum(sizes) / 1e6, sum(run["collectives"].values()) / 1e6)]
        pairs += [(12 * shape.parameters / (run["processes"] if setting.shard else 1) / 1e6, run["held"] / 1e6)]
        pairs += [(kept / 1e6, sum(run["kept"]) / 1e6)]
        cells = [
            f"{short(b)}" if a is None else f"{short(a)}, {short(b)} ({a / b - 1:+.0%})" if b else "0, 0"
            for a, b in pairs
        ]
        rows.append([name, *cells])
    return table(["run", "core seconds", "MB in collectives", "MB of weights, moments", "MB kept"], rows)


def kept_here(shape, setting, tokens, kept, precision):
    """What a step keeps on a CPU, which in bf16 has attention written out, and all logits at once."""
    known = kept[precision]
    block = block_bytes(shape, kept, precision, setting.recompute)
    if precision == "bf16" and not setting.recompute:
        block += known["written_out_per_head_and_visible_token"] * shape.heads * shape.context
    last = (4 if precision == "fp32" else 6) * shape.dim + 4 * shape.vocab_size
    copies = 2 * shape.vocab_size * shape.dim if precision == "bf16" else 0
    copies += 0 if setting.recompute or precision == "fp32" else 24 * shape.depth * shape.dim**2
    return tokens * (shape.depth * block + last) + copies


def memory_table(gpu, kept):
    rows = []
    for size, (shape, _) in SHAPES.items():

        def held(gpus, setting=Setting(), what="weights, gradients, moments"):
            return short(memory(shape, gpus, setting, 1, kept, int(gpu["memory"]))[what] / 1e9)  # noqa: B023

        sharded = Setting(shard=True)
        states = [held(1), *(held(gpus, sharded) for gpus in GPUS[1:])]
        window = [held(1, Setting(recompute=recompute), "activations") for recompute in (False, True)]
        others = [held(8, sharded, "gathered"), held(1, Setting(), "copies"), *window, held(1, Setting(), "logits")]
        rows.append([size, f"{shape.parameters:,}", *states, *others])
    head = ["model", "N", "DDP", *(f"FSDP2, {gpus}" for gpus in GPUS[1:]), "gathered", "copies", "a window", "+ ckpt"]
    return table([*head, "logits"], rows)


def plan_table(gpu, kept):
    rows = []
    for size, (shape, _) in SHAPES.items():
        for gpus in GPUS:
            best = plan(size, gpus, gpu, kept)
            if best is None:
                rows.append([size, f"{gpus:,}", "nothing fits", *["-"] * 6])
                continue
            ends = (step(shape, gpus, best["setting"], best["part"], best["accumulate"], gpu, s) for s in gpu["share"])
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
            best = plan(size, gpus, gpu, kept)
            cells = []
            for tokens in TOKENS.values():
                days, letters = troubles(size, gpus, tokens, best, gpu)
                cells.append(letters if days is None else f"{short(days)} {letters}".strip())
            rows.append([size, f"{gpus:,}", *cells])
    return table(["model", "GPUs", *TOKENS], rows)


def host_table(gpu):
    rows = []
    for size, (shape, _) in SHAPES.items():
        weights, node = 4 * shape.parameters / 1e9, gpu["node_gpus"]
        intervals = (young_interval(shape, gpus, gpu) / 60 for gpus in (8, 64, 1024))
        rows.append([
            size, short(3 * weights), short(saving(shape, gpu)), short(saving(shape, gpu) / 300 * 100) + " %",
            ", ".join(map(short, intervals)), short(restart(shape, gpu)), short(node * weights),
            short(node * 4 * weights), short(1e3 * muon_flops(shape) / (gpu["peak"] * sum(gpu["share"]) / 2)),
        ])  # fmt: skip
    return table(["model", "GB saved", "s to save", "of 5 minutes", "best interval, min: 8, 64, 1,024 GPUs", "s to restart",
                  "host GB at start", "on resume", "Muon, ms a step"], rows)  # fmt: skip


def tokens_table():
    rows = []
    for name, tokens in TOKENS.items():
        each = ", ".join(short(tokens / shape.parameters) for shape, _ in SHAPES.values())
        scored = 0.005 * tokens
        rows.append([name, f"{2 * tokens / 1e9:,.0f}", f"{critical_batch(tokens) / 1e6:.2g}", each, short(scored / 1e6),
                     short(100 * scored / 3 / (1000 * (1 << 19))) + " %"])  # fmt: skip
    return table(["tokens", "GB of shards", "critical batch, M tokens", "tokens a parameter: 124M, 350M, 1.5B, 7B",
                  "M tokens validated", "validation of training, batch 0.5M"], rows)  # fmt: skip


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
    assumed = [[name, known["value"], known["source"]] for name, known in content["assumed"].items()]
    return {
        "assumed": table(["name", "value", "source"], assumed),
        "checked": checked_table(measured),
        "memory": memory_table(gpu, kept),
        "plan": plan_table(gpu, kept),
        "days": days_table(gpu, kept),
        "hosts": host_table(gpu),
        "tokens": tokens_table(),
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
