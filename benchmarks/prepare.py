"""scratchlm data prepare against its tokenizer alone in as many processes: time, and the memory of all processes.

    python benchmarks/prepare.py [MEGABYTES] [WORKERS] [TOKENIZER]

The text is the plays' lines, shuffled anew for each copy. The tokenizer is one of 4,096 tokens learned from the plays,
or a file. Alone means: each process has its share of the text in memory, and encodes it in blocks as large as those of
data prepare; starting, reading and writing are not in its time, and all of them are in that of data prepare.
"""

import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scratchlm import tokenizers
from scratchlm.data import corpora
from scratchlm.data.pieces import PIECE

CONTEXT = multiprocessing.get_context("spawn")


def write_text(path: Path, size: int) -> None:
    draw, lines, done = random.Random(0), corpora.get("shakespeare").splitlines(keepends=True), 0
    with path.open("w", encoding="utf-8", newline="") as file:
        while done < size:
            draw.shuffle(lines)
            done += file.write("".join(lines)[: size - done])


def cpu_seconds() -> float:
    """What all processes have taken that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def encode(path: str, share: int, shares: int, tokenizer_path: str, barrier, cpu) -> None:
    tokenizer = tokenizers.load(tokenizer_path)
    size = Path(path).stat().st_size // shares
    with Path(path).open("rb") as file:
        file.seek(share * size)
        text = file.read(size).decode("utf-8", "ignore")
    tokenizer.encode_array(text[: 1 << 17])  # what is compiled is loaded
    barrier.wait()
    start = time.process_time()
    for at in range(0, len(text), PIECE):
        tokenizer.encode_array(text[at : at + PIECE])
    cpu[share] = time.process_time() - start
    barrier.wait()


def alone(path: Path, workers: int, tokenizer: Path) -> tuple[float, float]:
    barrier, cpu = CONTEXT.Barrier(workers + 1), CONTEXT.Array("d", workers)
    processes = [
        CONTEXT.Process(target=encode, args=(str(path), share, workers, str(tokenizer), barrier, cpu))
        for share in range(workers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return seconds, sum(cpu)


def resident(pid: int) -> float:
    """MB of a process and of those that it started, pages that they share counted for each."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(map(resident, children))


def prepare(path: Path, workers: int, tokenizer: Path, out: Path) -> tuple[float, float, float]:
    command = ["data", "prepare", path, "--out", out, "--tokenizer", tokenizer, "--workers", workers]
    start, used, most = time.perf_counter(), cpu_seconds(), 0.0
    process = subprocess.Popen([sys.executable, "-m", "scratchlm", *map(str, command)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, resident(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0
    return time.perf_counter() - start, cpu_seconds() - used, most


def main(megabytes: int = 100, workers: int = os.cpu_count() or 1, tokenizer: Path | None = None) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "text.txt"
        write_text(path, megabytes * 1_000_000)
        if tokenizer is None:
            tokenizer = Path(root) / "tokenizer.json"
            tokenizers.BPETokenizer.train([corpora.get("shakespeare")], vocab_size=4096, documents=True).save(tokenizer)
        before, cpu_before = alone(path, workers, tokenizer)
        seconds, cpu, most = prepare(path, workers, tokenizer, Path(root) / "shards")
        after, cpu_after = alone(path, workers, tokenizer)
    print(f"{megabytes:,} MB, {workers} processes; the tokenizer alone {before:.1f} s before and {after:.1f} s after")
    ratio, of_cpu = (before + after) / 2 / seconds, (cpu_before + cpu_after) / 2 / cpu
    print(f"data prepare {seconds:.1f} s, {megabytes / seconds:.1f} MB/s, {ratio:.2f} of the tokenizer; {most:,.0f} MB")
    print(f"CPU seconds, which other work disturbs less: {(cpu_before + cpu_after) / 2:.1f}, {cpu:.1f}, {of_cpu:.2f}")


if __name__ == "__main__":
    megabytes, workers, tokenizer = (*sys.argv[1:], None, None, None)[:3]
    main(int(megabytes or 100), int(workers or os.cpu_count() or 1), tokenizer and Path(tokenizer))
