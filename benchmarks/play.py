"""How fast scratchlm play is: until the page is there, to the first token, and with fifty clients at once.

    python benchmarks/play.py [DIR]

Without DIR: a GPT of the laptop preset whose weights were drawn, which computes as a trained one does. Times are those
that a client sees on this machine, processes and imports counted. Memory is the most that the server had (Linux).
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

PROMPT = "ROMEO: But soft, what light through yonder window breaks? "
CLIENTS, TOKENS = 50, 100


def laptop_run(folder: Path) -> Path:
    """A run of the laptop preset, by a process of its own, so that this one has no torch."""
    script = (
        "import sys; from pathlib import Path; from scratchlm.checkpoint import RunFolder, build_model; "
        "from scratchlm.config import make_config, merge, preset_settings; "
        "from scratchlm.tokenizers import CharacterTokenizer; "
        "made = CharacterTokenizer.train([''.join(map(chr, range(32, 127))) + chr(10)]); "
        "config = make_config(merge({'arch': 'gpt'}, preset_settings('gpt', 'laptop'), "
        "{'model': {'vocab_size': made.vocab_size}})); "
        "RunFolder.create(Path(sys.argv[1]), config, made, build_model(config).state_dict(), {})"
    )
    subprocess.run([sys.executable, "-c", script, str(folder / "gpt")], check=True)
    return folder / "gpt"


class Server:
    """scratchlm play in a process of its own."""

    def __init__(self, folder: str, *more: str) -> None:
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "scratchlm", "play", folder, "--port", "0", "--no-open", *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        address = self.process.stdout.readline().strip()
        if not address:
            raise SystemExit("scratchlm play did not start")
        self.host = urlsplit(address).netloc

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.host, timeout=300)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body

    def write(self, seed: int, tokens: int) -> dict[str, float | int | str]:
        """Have a text written: how many tokens came, and the seconds to the first and to the end."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection(self.host, timeout=300)
        body = json.dumps({"run": "a", "prompt": PROMPT, "tokens": tokens, "seed": seed})
        connection.request("POST", "/api/generate", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        found: dict[str, float | int | str] = {"status": answer.status, "tokens": 0, "end": ""}
        while line := answer.readline():
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            if event["type"] == "token":
                found.setdefault("first", time.perf_counter() - began)
                found["tokens"] += 1  # type: ignore[operator]
            found["end"] = event["type"]
        return {**found, "seconds": time.perf_counter() - began}

    def ready(self) -> None:
        while json.loads(self.get("/api/runs"))["runs"][0]["status"] == "loading":
            time.sleep(0.02)

    def peak_mib(self) -> float | None:
        """The most memory that it has had, in MiB."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = given.run or str(laptop_run(Path(folder)))
        pages, loads = [], []
        for turn in range(given.repeat):
            server = Server(run)
            server.get("/")
            pages.append(time.perf_counter() - server.began)
            server.ready()
            loads.append(time.perf_counter() - server.began)
            if turn < given.repeat - 1:
                server.end()
        firsts = [float(server.write(seed, 20)["first"]) for seed in range(21)]
        alone = server.write(0, TOKENS)
        before = server.peak_mib()
        found: list[dict[str, float | int | str]] = []
        threads = [
            threading.Thread(target=lambda seed=seed: found.append(server.write(seed, TOKENS)))
            for seed in range(CLIENTS)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        whole = time.perf_counter() - began
        after = server.peak_mib()
        server.end()
    complete = sum(one["status"] == 200 and one["end"] == "end" and one["tokens"] == TOKENS for one in found)
    ends, starts = (sorted(float(one[name]) for one in found) for name in ("seconds", "first"))
    print(f"page answered after the start of the command: {statistics.median(pages):.2f} s, worst {max(pages):.2f} s")
    print(f"model ready after it: {statistics.median(loads):.2f} s")
    print(f"first token: {1000 * statistics.median(firsts):.1f} ms, worst of {len(firsts)} {1000 * max(firsts):.1f} ms")
    print(f"{TOKENS} tokens for one client: {float(alone['seconds']):.2f} s")
    print(f"{CLIENTS} clients at once, {TOKENS} tokens each: {complete} complete, in {whole:.1f} s")
    for name, times in (("first token", starts), ("all tokens", ends)):
        print(f"  {name}: p50 {times[len(times) // 2]:.2f} s, p95 {times[int(0.95 * len(times))]:.2f} s")
    if before is not None and after is not None:
        print(f"memory, most: {before:.0f} MiB with one client, {after:.0f} MiB with {CLIENTS}")
    if complete < CLIENTS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
