"""What a training step takes in time, memory and communication: the model behind docs/scaling.md.

What is counted is exact; coefficients come from scaling_measure.py, or are assumed of a GPU. Units: bytes, seconds.
Letters: N parameters, D width, L blocks, H heads, T window, V vocabulary, n GPUs.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from scratchlm.distribution import RESTARTS
from scratchlm.evaluation import LOGITS_IN_MEMORY
from scratchlm.models.gpt import GPTConfig
from scratchlm.runtime import LOGITS_SHARE

SHAPES = {  # GPT-2's and, of 7B, GPT-3 6.7B's: Brown et al. 2020, table 2.1, whose batches in tokens these are
    "124M": (GPTConfig(vocab_size=50257, context=1024, dim=768, depth=12, heads=12), 1 << 19),
    "350M": (GPTConfig(vocab_size=50257, context=1024, dim=1024, depth=24, heads=16), 1 << 19),
    "1.5B": (GPTConfig(vocab_size=50257, context=1024, dim=1600, depth=48, heads=25), 1 << 20),
    "7B": (GPTConfig(vocab_size=50257, context=2048, dim=4096, depth=32, heads=32), 1 << 21),
}
GPUS = (1, 8, 64, 1024)
TOKENS = {"10B": 1e10, "100B": 1e11, "1T": 1e12, "10T": 1e13}
VALIDATED = 0.005  # of the tokens, every 1,000 steps: the presets gpt2 to gpt2-xl
BUCKET = 25 << 20  # DDP's, in bytes


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


def muon_flops(shape):
    """Of Muon's orthogonalisation in a step, which each GPU computes whole: five times 4 r^2 c + 2 r^3 a matrix."""
    return 5 * shape.depth * (4 * 6 + 2 * 18) * shape.dim**3


# --- time --------------------------------------------------------------------------------------------------------


def ring_seconds(size, gpus, bytes_per_second, hop, passes):
    """A ring: each sends passes * (n - 1) / n of the bytes, in passes * (n - 1) hops. All-reduce has two passes."""
    return passes * ((gpus - 1) / gpus * size / bytes_per_second + (gpus - 1) * hop)


def rate_here(parameters, models):
    """Operations per second of forward and backward, between what models of other sizes reach, by log N."""
    known = sorted((math.log(one["parameters"]), one["flops_per_second"]) for one in models.values())
    at = min(max(math.log(parameters), known[0][0]), known[-1][0])
    (low, slow), (high, fast) = next(pair for pair in pairwise(known) if at <= pair[1][0])
    return slow + (fast - slow) * (at - low) / (high - low)


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
        tokens * per_token_flops(shape, setting.recompute) / rate_here(shape.parameters, known["models"])
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
    # whether to stop, and whether to save: numbers over gloo, around the ring one hop after another
    host += gpu["agreements_a_step"] * 2 * (gpus - 1) * gpu["gloo_hop_seconds"]
    device = accumulate * part + waited + update
    return {"seconds": max(device, host), "compute": accumulate * part, "links": links, "host": host}


def evaluation(shape, gpus, tokens, gpu):
    """Seconds in which a validation split is scored: of each batch every process has some rows."""
    rows = max(1, min(64, LOGITS_IN_MEMORY // (shape.context * shape.vocab_size)))
    forward = rows * shape.context * per_token_flops(shape) / 3 / (gpu["peak"] * sum(gpu["share"]) / 2)
    return tokens / (gpus * rows * shape.context) * max(forward, shape.depth * gpu["block_host_seconds"] / 3)


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
            if best is None or times["seconds"] < 0.9 * best["times"]["seconds"]:  # else the simpler one
                found = {"setting": setting, "part": part, "accumulate": accumulate, "times": times}
                best = {**found, "memory": sum(held.values()), "batch": windows * gpus * shape.context}
    return best


def troubles(size, gpus, tokens, best, gpu):
    """Days of a run, and the letters of what breaks, in the order in which it is met."""
    shape, _ = SHAPES[size]
    if best is None:
        return None, "M"
    seconds = tokens / best["batch"] * best["times"]["seconds"]
    days = seconds * (1 + lost(shape, gpus, gpu)) / 86400
    scored = evaluation(shape, gpus, VALIDATED * tokens, gpu)
    found = {
        "W": best["times"]["compute"] < 0.5 * best["times"]["seconds"],
        "C": saving(shape, gpu) > 0.05 * 300,  # of five minutes, --save-minutes' default
        "E": scored > 0.1 * 1000 * best["times"]["seconds"],
        "R": days * 24 * gpus / gpu["gpu_hours_between_failures"] > RESTARTS,
        "B": best["batch"] > critical_batch(tokens),
        "U": tokens < 20 * shape.parameters,
        "T": days > 365,
    }
    return days, "".join(letter for letter, is_so in found.items() if is_so)
