"""The playground's page in a real browser, over the real server, with small runs that have learned next to nothing.

Whatever a test does, at its end no request may have left the page's origin and no script may have failed.
"""

import itertools
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

import scratchlm
from browsers import headless
from runs import TEXT
from scratchlm.inspect.attention import attention_layers
from scratchlm.inspect.states import carried_states
from scratchlm.serve.app import Desk, create_app
from scratchlm.serve.guard import Door
from scratchlm.serve.player import Player
from scratchlm.serve.runs import Run
from scratchlm.steering import steer
from scratchlm.training import loop
from scratchlm.training.setup import create_run

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
SETTINGS = {
    "steps": 2, "batch_size": 2, "eval_every": 1, "log_every": 1, "device": "cpu", "seed": 5,
    "optim": {"lr": 1e-2, "warmup": 0},
}  # fmt: skip
SHAPES = {
    "gpt": {"context": 32, "dim": 16, "depth": 2, "heads": 2},
    "backpack": {"context": 32, "dim": 16, "depth": 1, "heads": 2, "senses": 4},
    "lstm": {"dim": 12, "hidden_dim": 12, "depth": 2},
    "cnn": {"dim": 8, "depth": 3, "dilations": 3, "kernel": 3},  # sees 1 + 2 (1 + 2 + 4) = 15 tokens
    "transformer": {"dim": 16, "depth": 2, "heads": 2, "hidden_dim": 24, "context": 24, "source_context": 24},
}
WORDS = ["".join(letters) for letters in itertools.product("abc", repeat=4)]
PROMPT = "A and b went up"


# --- runs, servers, pages ------------------------------------------------------------------------------------------


@dataclass
class Served:
    url: str
    folders: list[Path]
    desk: Desk


@contextmanager
def serving(*folders: Path, token: str | None = None, concurrent: int = 4) -> Iterator[Served]:
    """The server in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    runs = [Run(id_, str(folder), "last", "cpu") for id_, folder in zip("ab", folders, strict=False)]
    app, desk = create_app(runs, Door(host="127.0.0.1", port=port, token=token), concurrent=concurrent)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{port}/", [*folders], desk)
    finally:
        server.should_exit = True
        thread.join()
        desk.worker.close()


def new_run(folder: Path, arch: str, name: str, text: str = TEXT, **changed) -> Path:
    """A run's folder, of this name, without a checkpoint."""
    data = folder / f"{name.encode().hex()}.txt"
    if arch == "transformer":
        data = data.with_suffix(".tsv")
        text = "".join(f"{word}\t{' '.join(f'S{letter.upper()}' for letter in reversed(word))}\n" for word in WORDS)
        changed |= {"tokenizer": "char+symbols", "batch_size": None, "batch_tokens": 70, "split": (0.8, 0.1, 0.1)}
    data.write_text(text, encoding="utf-8")
    settings = {**SETTINGS, "arch": arch, "data": str(data), "model": SHAPES[arch], **changed}
    return create_run({key: value for key, value in settings.items() if value is not None}, folder / name)[0].path


def train(folder: Path) -> Path:
    list(loop.train(loop.RunFolder.open(folder)))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A run of each of these architectures."""
    where = tmp_path_factory.mktemp("runs")
    found = {arch: train(new_run(where, arch, arch)) for arch in SHAPES if arch != "backpack"}
    # its senses have to have learned a little, or none of them would change a probability
    found["backpack"] = train(new_run(where, "backpack", "backpack", steps=60, eval_every=60, log_every=60))
    marked = "".join(f"{HOSTILE} \u202e\u0007{number}\n" for number in range(60)) + "e\u0301ü€😀" * 20
    found["hostile"] = train(
        new_run(where, "gpt", "<b onclick=alert(1)>\u202erun", marked, tokenizer="bpe", vocab_size=330)
    )
    return found


@pytest.fixture(scope="module")
def servers(folders) -> Iterator[dict[str, Served]]:
    with ExitStack() as stack:
        pairs = {
            "text": ("gpt", "backpack"),
            "other": ("lstm", "cnn"),
            "pairs": ("transformer",),
            "hostile": ("hostile",),
        }
        yield {name: stack.enter_context(serving(*(folders[one] for one in names))) for name, names in pairs.items()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=15_000)
    with headless() as browser:
        yield browser


@pytest.fixture
def visit(browser):
    """Opens pages; at the end nothing may have been asked of anybody but the server, and no script may have failed."""
    contexts, asked, wrong = [], set(), []

    def opened(served: Served, view: str = "", *, ready: bool = True, beside: Page | None = None, **options) -> Page:
        if beside is None:
            contexts.append(browser.new_context(**options))
            contexts[-1].on("request", lambda request: asked.add(urlsplit(request.url)[:2]))
        page = (contexts[-1] if beside is None else beside.context).new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.goto(f"{served.url}#{view}")
        if ready:
            expect(page.locator("[data-status=ready]")).to_have_count(len(served.folders))
        mine.add(urlsplit(served.url)[:2])
        return page

    mine = set()
    yield opened
    for context in contexts:
        context.close()
    refused = "Failed to load resource"  # the browser's own line for an error that the page shows in words
    assert [message for message in wrong if not message.startswith(refused)] == []
    assert {one for one in asked if one[0] != "data"} == mine


def write(page: Page, prompt: str = PROMPT, tokens: int = 12) -> Locator:
    """Have a text written, and wait for its end; its tokens."""
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Tokens", exact=True).fill(str(tokens))
    page.get_by_role("button", name="Continue the text").click()
    expect(page.get_by_text("the same seed")).to_be_visible()
    return page.get_by_role("option")


def no_wider_than_the_window(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def percent(share: float) -> str:
    """As the page writes it."""
    return f"{100 * share:#.2g}%" if share < 0.01 else f"{100 * share:.1f}%"


def tokens_of(folder: Path, text: str):
    model, tokenizer = scratchlm.load(folder)
    return model, tokenizer.encode(text)


# --- writing -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(folders):
    """The GPT alone."""
    with serving(folders["gpt"]) as served:
        yield served


def test_a_text_streams_and_goes_on_from_an_alternative(visit, alone):
    page = visit(alone)
    tokens = write(page)
    expect(tokens).to_have_count(12)
    before = tokens.all_text_contents()
    assert "It continues text and does not chat." in page.locator("header").inner_text()

    tokens.nth(4).hover()
    box = page.get_by_role("group", name="Instead of")
    expect(box.get_by_role("button")).to_have_count(10)
    shares = [float(text.strip("<>%")) for text in box.locator(".value").all_text_contents()]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 101
    other = box.locator("button:not([aria-current])").first
    label = other.locator(".label").text_content()
    with page.expect_request("**/api/generate") as asked:
        other.click()
    question = asked.value.post_data_json
    assert question["prompt"] == PROMPT
    assert len(question["continuation"]) == 5

    expect(page.get_by_text("12 tokens in")).to_be_visible()
    expect(tokens).to_have_count(5 + 12)
    assert tokens.all_text_contents()[:4] == before[:4]
    assert tokens.nth(4).get_attribute("aria-label").startswith(f"{label},")
    page.get_by_role("button", name="Undo").click()
    assert tokens.all_text_contents() == before
    page.get_by_role("button", name="Write more").click()
    expect(tokens).to_have_count(24)
    assert tokens.all_text_contents()[:12] == before


def test_the_same_seed_writes_the_same_text(visit, alone):
    page = visit(alone)
    first = write(page, tokens=30).all_text_contents()
    page.get_by_label("Seed", exact=True).fill("2")
    second = write(page, tokens=30).all_text_contents()
    page.get_by_label("Seed", exact=True).fill("1")
    assert write(page, tokens=30).all_text_contents() == first != second


def test_escape_stops_and_so_does_leaving(visit, alone):
    page = visit(alone)
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Tokens", exact=True).fill("1000")
    places = alone.desk.writing.places
    for stop in (lambda: page.keyboard.press("Escape"), page.get_by_role("button", name="Stop").click, page.close):
        page.get_by_role("button", name="Continue the text").click()
        expect(page.get_by_role("option").nth(5)).to_be_visible()
        assert len(places) == 1
        stop()
        deadline = time.monotonic() + 10
        while places and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not places  # the server knows
        if not page.is_closed():
            expect(page.get_by_text("stopped")).to_be_visible()
            count = page.get_by_role("option").count()
            assert f"{count} tokens, stopped" in page.locator(".column .figures").inner_text()
            assert 5 < count < 1000


def test_two_models_and_two_tabs(visit, servers):
    one = visit(servers["text"])
    other = visit(servers["text"], beside=one)
    for page, prompt in ((one, "A and b"), (other, "b and A")):
        page.get_by_label("Prompt").fill(prompt)
        page.get_by_label("Tokens", exact=True).fill("60")
        page.get_by_role("button", name="Continue the text").click()
    for page, prompt in ((one, "A and b"), (other, "b and A")):
        expect(page.get_by_text("60 tokens in")).to_have_count(2)
        columns = page.locator("#panel-write .column")
        expect(columns).to_have_count(2)
        for column, name in zip(columns.all(), ("gpt", "backpack"), strict=True):
            assert column.locator(".run-name").inner_text().endswith(name)
            assert column.locator(".prompt").text_content() == prompt
            expect(column.get_by_role("option")).to_have_count(60)


def test_a_tab_waits_for_its_turn(visit, folders):
    with serving(folders["gpt"], concurrent=1) as served:
        first = visit(served)
        second = visit(served, beside=first)
        for page, tokens in ((first, 1000), (second, 5)):
            page.get_by_label("Prompt").fill(PROMPT)
            page.get_by_label("Tokens", exact=True).fill(str(tokens))
            page.get_by_role("button", name="Continue the text").click()
            if page is first:
                expect(page.get_by_role("option").first).to_be_visible()
        expect(second.get_by_text("1 other before this one; it starts by itself.")).to_be_visible()
        first.keyboard.press("Escape")
        expect(second.get_by_text("5 tokens in")).to_be_visible()
        expect(first.get_by_text("tokens, stopped")).to_be_visible()


def test_the_keyboard_alone_is_enough(visit, alone):
    page = visit(alone)

    def focused(what):
        return page.evaluate(f"document.activeElement.{what}")

    def tab_to(role):
        for _ in range(30):
            if focused("getAttribute('role')") == role:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"no {role} is reached")

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # "Skip to the text"
    assert focused("id") == "text"
    page.keyboard.press("Control+a")
    page.keyboard.type("A and")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("100 tokens in")).to_be_visible()
    tab_to("option")
    box = page.get_by_role("group", name="Instead of")
    expect(box).to_be_visible()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(box).to_be_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(box).to_be_hidden()
    assert focused("getAttribute('role')") == "option"
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    label = focused("querySelector('.label').textContent")
    page.keyboard.press("Enter")
    expect(page.get_by_role("option")).to_have_count(4 + 100)
    assert focused("getAttribute('aria-label')").startswith(f"{label},")
    assert page.evaluate("[...document.querySelectorAll('[role=option]')].indexOf(document.activeElement)") == 3
    expect(page.locator("#live")).to_contain_text("has written 100 tokens")
    page.get_by_role("tab", name="Write").focus()
    page.keyboard.press("ArrowRight")
    assert focused("textContent") == "Pieces"
    expect(page.get_by_role("tabpanel")).to_have_attribute("id", "panel-pieces")
    page.keyboard.press("End")
    assert focused("textContent") == "Curve"


# --- looking in ----------------------------------------------------------------------------------------------------


def test_pieces(visit, alone):
    page = visit(alone, "pieces")
    page.get_by_label("Text", exact=True).fill("A and\nb")
    expect(page.get_by_text("7 tokens of 7 bytes: 1.00 bytes each")).to_be_visible()
    page.get_by_role("option").nth(5).click()
    expect(page.get_by_text(re.compile("“↵” is token .*: 1 byte, 0a"))).to_be_visible()


def test_attention_of_every_layer_and_head(visit, alone):
    page = visit(alone, "attention")
    page.get_by_label("Text", exact=True).fill(PROMPT)
    size = [len(PROMPT), len(PROMPT)]
    expect(page.get_by_role("option")).to_have_count(len(PROMPT))
    heads = page.locator(".thumbnail canvas")
    assert heads.evaluate_all("all => all.map(one => [one.width, one.height])") == [size] * 4
    page.get_by_role("button", name="Decoder, layer 2, head 2").click()
    model, ids = tokens_of(alone.folders[0], PROMPT)
    weight = attention_layers(model, ids)[1].weights[1, 3, 2].item()
    page.get_by_role("application").focus()
    for key in ["ArrowRight", *["ArrowDown"] * 3, *["ArrowRight"] * 2]:
        page.keyboard.press(key)
    expect(page.locator(".large .readout")).to_contain_text(f"“n” (4) looks at “a” (3): weight {percent(weight)}")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".large .readout")).to_contain_text("may not see")
    # what is drawn is the weight: darkest where it is largest
    page.get_by_role("option").nth(3).hover()
    shades = page.get_by_role("option").evaluate_all(
        "all => all.map(one => parseInt(one.style.getPropertyValue('--w')))"
    )
    expected = 60 * attention_layers(model, ids)[1].weights[1, 3].sqrt()
    assert torch.tensor(shades[:4]).float().sub(expected[:4]).abs().max() <= 0.51
    assert shades[4:] == [0] * (len(PROMPT) - 4)


def test_a_sense_slider_changes_the_next_token_at_once(visit, servers, folders):
    page = visit(servers["text"], "senses")
    text = "A and b"
    page.get_by_label("Text", exact=True).fill(text)
    expect(page.get_by_role("option")).to_have_count(len(text))
    expect(page.get_by_role("slider")).to_have_count(4)
    page.get_by_role("option").nth(2).click()
    expect(page.get_by_role("heading", name="Senses of “a”")).to_be_visible()
    rows = page.get_by_role("list", name="The next token, before and after").locator("li")
    expect(rows).to_have_count(20)
    assert "→" not in rows.first.inner_text()

    model, ids = tokens_of(folders["backpack"], text)

    def shares(changed):
        read = torch.tensor([ids])
        with torch.no_grad():
            return changed.readout(changed(read, changed.initial_state(1))[0][0, -1]).softmax(-1)

    slider = page.get_by_role("slider", name="Sense 1")
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_text("Changed: sense 1 of “a” \u00d7 3.")).to_be_visible()
    before, after = shares(model).max(), shares(steer(model, scales={(ids[2], 1): 3.0}))[shares(model).argmax()]
    expect(rows.first.locator(".value")).to_have_text(f"{percent(before)} → {percent(after)}")

    page.get_by_role("button", name="Write with these senses").click()
    expect(page.get_by_text("With sense 1 of “a” \u00d7 3")).to_be_visible()
    with page.expect_request(lambda request: '"run":"b"' in (request.post_data or "")) as asked:
        page.get_by_role("button", name="Continue the text").click()
    assert asked.value.post_data_json["changes"] == [{"position": None, "token": ids[2], "sense": 1, "scale": 3}]
    page.get_by_role("tab", name="Senses").click()
    page.get_by_role("button", name="Set all back to 1").click()
    expect(rows.first).not_to_contain_text("→")


def test_what_an_lstm_remembers(visit, servers, folders):
    page = visit(servers["other"], "states")
    page.get_by_label("Text", exact=True).fill(PROMPT)
    expect(page.get_by_role("listbox").get_by_role("option")).to_have_count(len(PROMPT))
    layers = carried_states(*tokens_of(folders["lstm"], PROMPT))
    select = page.get_by_label("Layer and vector")
    assert select.locator("option").all_text_contents() == [layer.name for layer in layers]
    select.select_option(index=3)
    page.get_by_role("application").focus()
    for key in ["ArrowRight", *["ArrowDown"] * 5, *["ArrowRight"] * 2]:
        page.keyboard.press(key)
    shown = page.locator("#panel-states .readout").inner_text()
    value = float(shown.rpartition(": ")[2].replace("\u2212", "-"))
    assert shown.startswith("Unit 5 after “a” (3)")
    assert value == pytest.approx(layers[3].values[2, 5].item(), rel=5e-3)


def test_the_field_of_a_cnn_ends_exactly(visit, servers):
    page = visit(servers["other"], "influence")
    page.get_by_role("radio", name="cnn").check()
    text = TEXT[:40]
    page.get_by_label("Text", exact=True).fill(text)
    tokens = page.locator("#panel-influence").get_by_role("option")
    expect(tokens).to_have_count(40)
    expect(page.get_by_text("can look back over 15 tokens")).to_be_visible()
    said = tokens.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert ["no influence" in one for one in said] == [True] * 25 + [False] * 15
    tokens.nth(24).hover()
    expect(page.get_by_text("exactly 0, it is out of reach")).to_be_visible()
    tree = page.get_by_role("img", name="Tree of 3 convolutions: the next token depends on 15 tokens")
    expect(tree).to_be_visible()
    assert tree.locator("text.far").count() == 25
    page.get_by_role("radio", name="lstm").check()
    expect(tree).to_be_hidden()


def test_a_translation_and_where_it_looked(visit, servers):
    page = visit(servers["pairs"])
    assert page.get_by_label("Source").input_value() in WORDS  # one that it has not learned from
    page.get_by_label("Source").fill("abca")
    page.get_by_label("Shown").fill("9")
    page.get_by_role("button", name="Translate").click()
    expect(page.get_by_role("alert")).to_contain_text("no more than the beam")  # the server's words
    page.get_by_label("Shown").fill("3")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".targets li")).to_have_count(3)
    expect(page.get_by_role("alert")).to_have_count(0)
    looks = page.get_by_role("listbox", name="Tokens that look").get_by_role("option").count()
    sizes = page.locator("#panel-translate .thumbnail canvas").evaluate_all(
        "all => all.map(one => [one.width, one.height])"
    )
    assert sizes == [[5, looks]] * 4  # the source is four letters and its end
    page.get_by_role("tab", name="Attention").click()
    kinds = page.locator("#panel-attention .heads h3")
    expect(kinds).to_have_text(["Encoder", "Decoder", "Cross attention"])


def test_a_run_that_is_still_training(visit, tmp_path):
    """It has no checkpoint, then a curve, which grows, then weights: what was asked meanwhile is answered."""
    folder = new_run(tmp_path, "gpt", "new")
    with serving(folder) as served:
        page = visit(served, ready=False)
        expect(page.get_by_text("no checkpoint yet", exact=True)).to_be_visible()
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_role("button", name="Continue the text").click()
        expect(page.get_by_text("This run has no checkpoint yet.")).to_be_visible()
        metrics = folder / "metrics.jsonl"

        def line(step, **more):
            with metrics.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"step": step, "loss": 4 / step, "tokens": 9 * step, "seconds": 1.0, **more}) + "\n"
                )

        line(1)
        page.get_by_role("tab", name="Curve").click()
        expect(page.get_by_text("Training now: step 1, training 4.")).to_be_visible()
        before = page.locator(".chart .training").get_attribute("d")
        line(2, val_loss=2.5, val_bits_per_byte=3.6)
        expect(
            page.get_by_text("step 2, training 2, validation 2.5 nats per token, 3.6 bits per byte.")
        ).to_be_visible()
        expect(page.locator(".chart .validation-dot")).to_have_count(1)
        assert page.locator(".chart .training").get_attribute("d").startswith(before[:2])
        metrics.unlink()
        train(folder)
        expect(page.locator("[data-status=ready]")).to_have_count(1)
        page.get_by_role("tab", name="Write").click()
        expect(page.get_by_text("100 tokens in")).to_be_visible()


def test_the_band_that_is_expected(visit, alone):
    page = visit(alone, ready=False)
    lines = [{"step": step, "loss": 4.0 - step, "tokens": step, "val_loss": 4.1 - step} for step in (1, 2, 3)]
    band = {"step": [1, 3], "low": [2.0, 0.5], "high": [3.5, 1.5]}
    told = {"lines": lines, "training": False, "steps": 4, "best": lines[-1], "band": band}
    page.route("**/api/curve*", lambda route: route.fulfill(json=told))
    page.get_by_role("tab", name="Curve").click()
    expect(page.get_by_text("expected of this preset")).to_be_visible()
    expect(page.get_by_text("Best validation loss 1.1, at step 3.")).to_be_visible()
    assert page.locator(".chart .band").get_attribute("d").count("L") == 3
    page.get_by_text("The evaluations as a table").click()
    expect(page.get_by_role("row")).to_have_count(4)
    page.locator(".chart").hover()
    expect(page.get_by_text("At step 2, training 2, validation 2.1")).to_be_visible()


def test_a_token_opens_and_a_newer_checkpoint_is_offered(visit, folders, tmp_path):
    folder = Path(shutil.copytree(folders["gpt"], tmp_path / "gpt", symlinks=True))
    (folder / "checkpoints/step_000009").mkdir()
    with serving(folder, token="open-sesame") as served:
        page = visit(served, ready=False)
        expect(page.get_by_role("alert")).to_contain_text("The server wants a token")
        page.goto(f"{served.url}?token=open-sesame#pieces")
        expect(page.locator("[data-status=ready]")).to_have_count(1)
        assert page.url == f"{served.url}#pieces"  # nobody copies the token with the address
        page.reload()
        with page.expect_response("**/api/reload") as answer:
            page.get_by_role("button", name="Load step 9").click()
        assert answer.value.request.headers["authorization"] == "Bearer open-sesame"
        page.get_by_role("tab", name="Write").click()
        write(page)


def test_the_page_is_there_before_the_weights(visit, folders, monkeypatch):
    begun, may = threading.Event(), threading.Event()
    load = Player.load

    def slowly(*given):
        begun.set()
        assert may.wait(30)
        return load(*given)

    monkeypatch.setattr(Player, "load", slowly)
    with serving(folders["gpt"]) as served:
        try:
            page = visit(served, ready=False)
            expect(page.get_by_text("loading the weights …")).to_be_visible()
            assert begun.wait(5)
            page.get_by_label("Prompt").fill("A and")
            page.get_by_label("Tokens", exact=True).fill("7")
            page.get_by_role("button", name="Continue the text").click()
            expect(page.get_by_text("The weights are being loaded; this starts by itself.")).to_be_visible()
        finally:
            may.set()
        expect(page.get_by_text("7 tokens in")).to_be_visible()
        expect(page.get_by_role("option")).to_have_count(7)


# --- what may not happen -------------------------------------------------------------------------------------------


def test_hostile_text_is_text(visit, servers):
    page = visit(servers["hostile"])
    text = f"{HOSTILE}\u202e\u2066\u0000\u0007\u001b[31m{'W' * 3000} \ud83d\ude00<end>&lt;"
    write(page, text, 80)
    for view in page.get_by_role("tab").all():
        view.click()
        expect(page.get_by_role("tabpanel")).to_be_visible()
        expect(page.locator("[aria-busy=true]")).to_have_count(0)
        for width in (1440, 360):
            page.set_viewport_size({"width": width, "height": 800})
            assert no_wider_than_the_window(page), (view.inner_text(), width)
        assert page.locator("main img, main script, main b, header b").count() == 0
        for hidden in "\u202e\u2066\u0007\u001b":
            assert hidden not in page.locator("main").inner_text() + page.locator("header").inner_text() + page.title()
    assert page.evaluate("window.hit") is None


def test_too_much_text_is_refused_in_words(visit, alone):
    page = visit(alone, "pieces", viewport={"width": 360, "height": 800})
    for text, words in (("x" * 2**20, "at most"), ("A" * 21_000, "20000")):
        page.get_by_label("Text", exact=True).fill(text)
        expect(page.get_by_role("alert")).to_contain_text(
            re.compile(words.replace("at most", "the most that the server takes"))
        )
        assert no_wider_than_the_window(page)
    page.get_by_label("Text", exact=True).fill("A")
    expect(page.get_by_text("1 token of 1 byte")).to_be_visible()
    page.get_by_role("tab", name="Write").click()
    page.get_by_label("Tokens", exact=True).fill("1001")
    page.get_by_role("button", name="Continue the text").click()
    expect(page.get_by_role("alert")).to_contain_text("Tokens: ")


def test_a_server_that_went_away_is_missed(visit, folders):
    with serving(folders["gpt"]) as served:
        page = visit(served)
    page.get_by_role("button", name="Continue the text").click()
    expect(page.get_by_role("alert").first).to_contain_text("The server does not answer.")


VIEWS = [
    ("text", "write"), ("text", "pieces"), ("text", "attention"), ("text", "senses"), ("text", "curve"),
    ("other", "states"), ("other", "influence"), ("pairs", "translate"), ("pairs", "attention"),
]  # fmt: skip


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {[node['html'] for node in one['nodes'][:2]]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def fill_view(page: Page, served: str, view: str) -> None:
    """Have the view show something."""
    text = "abca" if served == "pairs" else PROMPT
    if view in ("write", "translate"):
        page.locator("#text").fill(text)
        page.keyboard.press("Control+Enter")
        done = page.locator(".targets li") if view == "translate" else page.get_by_text("tokens in")
        expect(done.last).to_be_visible()
    elif view != "curve":
        with page.expect_response(lambda answer: f'"text":"{text}"' in (answer.request.post_data or "")):
            page.locator("#text").fill(text)
    if view == "write":
        page.get_by_role("option").first.click()
        page.get_by_text("More settings").click()
    if view == "influence":
        page.get_by_role("radio", name="cnn").check()
        expect(page.locator(".tree svg")).to_be_visible()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)


@pytest.mark.parametrize(
    ("name", "view", "theme"),
    [
        # each view in one theme; in the other by make test-slow
        pytest.param(name, view, theme, marks=[pytest.mark.slow] * ((number + dark) % 2))
        for number, (name, view) in enumerate(VIEWS)
        for dark, theme in enumerate(("light", "dark"))
    ],
)
def test_a_view_is_accessible_and_fits(visit, servers, name, view, theme):
    page = visit(servers[name], view, color_scheme=theme, viewport={"width": 360, "height": 740})
    fill_view(page, name, view)
    for width in (360, 768, 1440):
        page.set_viewport_size({"width": width, "height": 740})
        assert no_wider_than_the_window(page), width
    assert serious(page) == []


def test_light_and_dark_and_back(visit, alone):
    page = visit(alone, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    button = page.get_by_role("button", name="Colours")
    button.click()
    expect(button).to_have_text("Colours: light")
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light
    button.click()
    button.click()
    assert page.evaluate(ground) == dark
    page.emulate_media(color_scheme="light")
    assert page.evaluate(ground) == light
