"""The documentation runs, leads where it says, and says what the package says."""

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import torch
from filelock import FileLock

from pages import ROOT, build, fences, module
from scratchlm.cli import COMMANDS, finetune, main
from scratchlm.config import make_config, merge, preset_settings
from scratchlm.files import read_json
from scratchlm.model import Source
from scratchlm.models import MODELS

parts = module(ROOT / "docs" / "parts.py")

DOCS = sorted((ROOT / "docs").rglob("*.md"))
SOURCES = [
    path
    for path in (*DOCS, *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
                 ROOT / "benchmarks" / "README.md", ROOT / "notebooks" / "README.md")
    if path.exists()
]  # fmt: skip
FENCES = [fence for path in DOCS for fence in fences(path)]
ARCHITECTURES = {"rnn": "rnn", "lstm": "rnn", "gru": "rnn"}  # pages that several share

# what cannot run here: part of a command -> why. Nothing else is left out.
NOT_HERE = {
    "--nproc 8 --shard": "needs several processes: tests/test_distribution.py trains so",
}
# what takes more than a few seconds: page -> a word of its fence
SLOW = [
    ("compare.md", "compare"),
    ("backpack.md", "compare"),
    ("exchange.md", "gpt-onnx"),
    ("speedrun.md", "train"),
    ("gallery.md", "compare"),
]


def slow(fence):
    return any(fence.page.endswith(page) and word in fence.code for page, word in SLOW)


def cases(chosen):
    return [pytest.param(fence, id=str(fence), marks=[pytest.mark.slow] * slow(fence)) for fence in chosen]


@pytest.mark.parametrize("fence", cases(fence for fence in FENCES if fence.commands))
def test_a_fence_runs_from_its_first_line_to_its_last(fence, desk, monkeypatch):
    for line, stages in zip(fence.lines, fence.commands, strict=True):
        if not any(part in line for part in NOT_HERE):
            desk.run(stages, monkeypatch)


def test_what_does_not_run_here_is_in_the_pages():
    everything = "".join(fence.code for fence in FENCES)
    assert [part for part in NOT_HERE if part not in everything] == []


@pytest.mark.parametrize("fence", cases(fence for fence in FENCES if fence.language == "python"))
def test_a_block_of_python_runs(fence, desk):
    desk.execute(fence.code)


@pytest.mark.parametrize("fence", [fence for fence in FENCES if re.search(r"^python ", fence.code, re.M)], ids=str)
def test_scripts_that_are_named_are_there(fence):
    for script in re.findall(r"^python (\S+)", fence.code, re.MULTILINE):
        assert (ROOT / script).is_file()


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    found = {}
    for is_prose, piece in build.prose(path.read_text(encoding="utf-8")):
        for heading in re.findall(r"^#+ (.*)$", piece, re.MULTILINE) if is_prose else ():
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
            slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
            found[slug if slug not in found else f"{slug}-{found[slug]}"] = found.get(slug, 0) + 1
    return set(found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_leads_where_it_says(path):
    page, broken = path.relative_to(ROOT).as_posix(), []
    for link in build.links(path.read_text(encoding="utf-8")):
        found = build.local(page, link["target"])
        if found is None:
            continue
        # notebooks/README.md leads to notebooks, which are made of the sources that are here
        file, anchor = ROOT / found[0].replace(".ipynb", ".py"), found[1]
        name = build.code_name(link["label"], found[0])
        if (
            not file.exists()
            or (anchor and anchor not in anchors(file))
            or (name is not None and build.defined_at(file, name) is None)
        ):
            broken.append(link.group())
    assert broken == []


def test_whatever_is_proved_names_a_test():
    """Each claim of a section "What is proved" leads to a test, and the check of links finds it."""
    claims = []
    for path in DOCS:
        _, found, section = path.read_text(encoding="utf-8").partition("\n## What is proved\n")
        bullets = re.split(r"^- ", section.partition("\n## ")[0], flags=re.MULTILINE)[1:]
        assert bullets or not found, path
        claims += [(path.name, bullet) for bullet in bullets]
    assert {page for page, _ in claims} >= {f"{ARCHITECTURES.get(arch, arch)}.md" for arch in MODELS}
    assert [claim for claim in claims if not re.search(r"\[`test_\w+`\]\(\.\./tests/test_\w+\.py\)", claim[1])] == []


def times(what, peer=None):
    """The row of the benchmark's results: our time and its ratio to the peer's."""
    rows = read_json(ROOT / "benchmarks" / "results" / "results.json")["rows"]
    (row,) = [row for row in rows if row["what"] == what and (peer is None or row["peer"] == peer)]
    return row


def test_figures_in_prose_are_those_of_the_results():
    step = "training step: gpt, nanogpt-cpu, 12 x 64"
    share = times(f"{step}, in bf16")["ours"] / times(step)["ours"]
    machines = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"bf16` is faster: ([\d.]+) of the time of a step of `nanogpt-cpu`", machines)
    assert float(told) == pytest.approx(share, abs=0.05)
    losses = {
        row["architecture"]: row["validation"]["nats_per_token"]
        for row in json.loads((ROOT / "docs" / "gallery" / "results.json").read_text(encoding="utf-8"))["rows"]
    }
    # docs/rnn.md, cnn.md and backpack.md: below a GPT of the same size; of characters the Backpack is not
    assert max(losses[name] for name in ("rnn", "lstm", "gru", "cnn")) < losses["gpt"] < losses["backpack"]
    # "it trains faster than a GPT of its size": docs/cnn.md
    assert times("training step: cnn, laptop, 8 x 256", "our GPT of as many parameters")["ratio"] < 1


def test_the_line_of_finetune_that_is_shown(capsys):
    settings = {"lora": {"rank": 8, "targets": ["query", "value"]}, "base": "runs/gpt2", "data": "my.txt"}
    config = make_config(merge({"arch": "gpt"}, preset_settings("gpt", "gpt2"), settings))
    finetune._describe(SimpleNamespace(path="runs/gpt2", has_text=False), SimpleNamespace(step=0), config)
    (shown,) = re.findall(
        r"^an adapter of rank .*$", (ROOT / "docs" / "lora.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert shown in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("arch", MODELS)
def test_the_memory_that_is_told_is_that_of_a_state(arch):
    """What the pages say for each token and for a text adds up to what a state weighs that has read more."""
    model = MODELS[arch](MODELS[arch].Config.tiny()).eval()
    source = Source(torch.ones(1, 3, dtype=torch.int64), torch.tensor([3])) if model.takes_source else None
    _, state = model(torch.ones(1, 9, dtype=torch.int64), model.initial_state(1, source=source))
    told = dict(re.findall(r"([\d,]+) bytes (for [a-z ]+?)(?= and |$)", parts.memory(model.to("meta"))))
    sizes = {what: int(size.replace(",", "")) for size, what in told.items()}
    times = {"for each token": 9, "for each of the source": 3, "for a text": 1}
    assert 0 <= state.nbytes - sum(times[what] * size for what, size in sizes.items()) <= 64


# --- the site ---


class Page(HTMLParser):
    """What a page of the site has: ids, links, what it loads, its text."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.text, self.tags = set(), [], [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("img", "script", "link", "iframe", "source"):
            self.loads += [given[name] for name in ("src", "href") if given.get(name)]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, built by the command of `make docs`; once for all processes of the tests."""
    stamp = tmp_path_factory.getbasetemp().parent / "site-of-the-documentation"
    with FileLock(f"{stamp}.lock"):
        if not stamp.exists():
            built = subprocess.run(
                [sys.executable, str(ROOT / "docs" / "build.py")], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert built.returncode == 0, built.stdout + built.stderr
            stamp.touch()
    return ROOT / "site"


@pytest.fixture(scope="session")
def made(site):
    """The pages of the site by their places in it."""
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_the_sites_links_anchors_and_files_are_there(site, made):
    broken = []
    for place, page in made.items():
        for target in page.links + page.loads:
            url = urlsplit(target)
            if url.scheme or url.netloc or (place, target) == ("404.html", "#__skip"):  # the theme's own
                continue
            base = site if url.path.startswith("/") else (site / place).parent
            file = base / unquote(url.path).lstrip("/") if url.path else site / place
            file = file / "index.html" if file.is_dir() else file
            there = file.is_file()
            if there and url.fragment and file.suffix == ".html":
                there = unquote(url.fragment) in made[file.resolve().relative_to(site.resolve()).as_posix()].ids
            if not there:
                broken.append((place, target))
    assert broken == []


def test_no_page_loads_anything_from_elsewhere(made):
    assert [(place, target) for place, page in made.items() for target in page.loads if urlsplit(target).netloc] == []


def test_every_page_is_in_the_navigation_and_two_levels_are_enough(made):
    import tomllib

    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    named = [page for section in nav for pages in section.values() for entry in pages for page in entry.values()]
    assert all(isinstance(page, str) for page in named)
    there = {place.removesuffix(".html") + ".md" for place in made if not place.startswith("source/")} - {"404.md"}
    assert there == set(named)


@pytest.mark.parametrize("arch", MODELS)
def test_an_architecture_has_its_page(arch, made):
    page = made[f"{ARCHITECTURES.get(arch, arch)}.html"]
    text = "".join(page.text)
    assert "math" in page.tags
    assert [preset for preset in MODELS[arch].presets if preset not in text] == []
    assert arch in made["papers.html"].ids
    assert re.search(r"\$\S[^$\n]*\S\$", text) is None, "a formula was left as it was written"


def test_the_reference_has_every_command_and_every_flag(made, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # no flag is broken in two
    commands, train = ("".join(made[page].text) for page in ("commands.html", "train.html"))
    assert [name for name in COMMANDS if f"scratchlm {name}" not in commands + train] == []
    for name in COMMANDS:
        if name != "train":
            assert flags(capsys, name) - set(re.findall(r"--[\w.-]+", commands)) == set(), name
    for arch in MODELS:
        assert flags(capsys, "train", arch) - set(re.findall(r"--[\w.-]+", train)) == set(), arch


def flags(capsys, *command):
    """What help names, unwrapped."""
    main([*command, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9]", capsys.readouterr().out)) - {"--help", "--version"}


def test_the_reference_has_every_public_name(made):
    import scratchlm

    ids = made["api.html"].ids
    assert [name for name in scratchlm.__all__ if not name.startswith("_") and name != "tokenizers"
            and not any(anchor.endswith(f".{name}") for anchor in ids)] == []  # fmt: skip


@pytest.fixture(scope="module")
def browser(site):
    """A page of a headless browser, the address of a server of the site, and what the page asks for elsewhere."""
    from browsers import headless

    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, headless() as launched:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page, elsewhere = launched.new_page(), []
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:"))
                else elsewhere.append(request.url))  # fmt: skip
        yield page, address, elsewhere
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_the_site_works_offline_and_finds_words(browser):
    page, address, elsewhere = browser
    for place in ("index.html", "backpack.html", "api.html", "source/tests/test_gpt.py.html"):
        page.goto(address + place)
    page.goto(address)
    page.keyboard.press("/")
    page.keyboard.type("perplexity")
    page.wait_for_selector("a[href*='commands.html']:visible, a[href*='training.html']:visible", timeout=10_000)
    assert elsewhere == []


@pytest.mark.parametrize("place", ["index.html", "backpack.html", "commands.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(place, scheme, browser):
    from axe_playwright_python.sync_playwright import Axe

    page, address, _ = browser
    page.emulate_media(color_scheme=scheme)
    page.goto(address + place)
    page.wait_for_selector("body[data-mended]")  # docs/accessible.js has done its part
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found
            if one["impact"] in ("serious", "critical")] == []  # fmt: skip


@pytest.mark.parametrize("width", [360, 1440])
def test_no_page_is_wider_than_the_screen(width, browser):
    page, address, _ = browser
    page.set_viewport_size({"width": width, "height": 800})
    for name in ("index", "gpt", "backpack", "papers", "scaling", "commands", "api"):
        place = f"{name}.html"
        page.goto(address + place)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place
