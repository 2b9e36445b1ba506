"""The benchmark: ratios that are right, peers that do the same work, refusals; no time is judged."""

import ast
import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scratchlm_peers
import torch
import torch.nn.functional as F
from scratchlm_peers import Peer, byte_pairs
from scratchlm_peers.own import language_model

from scratchlm import runtime
from scratchlm.bench import GROUPS, ceilings, distribution, generation, measure, report, tokenizers, training
from scratchlm.bench.cases import Case, cases, of_preset
from scratchlm.bench.measure import OURS, Setting, Trial, in_turns, row, row_of, spread
from scratchlm.cli import main
from scratchlm.files import read_json
from scratchlm.models import MODELS
from scratchlm.tokenizers import BPETokenizer, learning

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
ONCE = Setting(device=CPU, repeats=1, least=0.0)


def tiny(arch, **more):
    """The smallest model, with a few rows of tokens."""
    return Case(name="tiny", arch=arch, rows=3, tokens=8, model=vars(MODELS[arch].Config.tiny()) | more)


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """The product of matrices that is a CPU's peak takes no time here."""
    product = training.square_product
    monkeypatch.setattr(training, "square_product", lambda device, precision: product(device, precision, 8))


@pytest.fixture
def one_peer(monkeypatch):
    """A function that makes this the one peer of all models: a rival's maker, and what else a peer is."""

    def only(rival, **more):
        def known(nanogpt):
            return [SimpleNamespace(**peer)]

        peer = {
            "arch": "gpt", "name": "other", "package": "torch", "version": lambda: "1", "fits": lambda config: True,
            "equal": True, "writes": True, "remembers": True, "rival": rival, **more,
        }  # fmt: skip
        monkeypatch.setattr(scratchlm_peers, "model_peers", known)

    return only


# --- timing and ratios --------------------------------------------------------------------------------------------


def test_sides_are_timed_in_turns_and_every_other_round_backwards():
    calls = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = in_turns(sides, Setting(device=CPU, repeats=3, least=0.0))
    assert "".join(calls) == "aabb" + "ab" + "ba" + "ab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_what_is_short_is_done_several_times_in_one_timing(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) / 10)  # each look takes a tenth of a second
    calls = []
    seconds = in_turns({"a": lambda: calls.append(1)}, Setting(device=CPU, repeats=1, least=0.35))
    assert len(calls) == 2 + 4
    assert seconds["a"] == [pytest.approx(0.1 / 4)]


def test_a_ratio_is_the_median_of_rounds_of_our_time_over_theirs():
    peer = SimpleNamespace(name="other", package="other", version=lambda: "7", equal=True)
    seconds = {OURS: [1.0, 2.0, 9.0], "other": [2.0, 1.0, 3.0]}
    found = row_of(ONCE, "training", "a step", seconds, peer, {"other": Trial(print)}, per=2, asked=0.5)
    assert (found.ours, found.theirs, found.unit) == (1000, 1000, "ms")  # of one of two parts
    assert found.ratio == 2.0  # of 0.5, 2 and 3, and not of the medians
    assert found.quartiles == (1.25, 2.5)
    assert (found.repeats, found.threads, found.precision, found.asked) == (3, torch.get_num_threads(), "fp32", 0.5)
    assert found.versions["other"] == "7"
    assert found.versions["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert spread([4.0]) == (4.0, (4.0, 4.0))


def test_a_row_is_valid_json_with_the_digits_of_a_timing():
    found = row(ONCE, "ceilings", "copy", [1.23456789], "GB/s", figures={"share_of_peak": float("nan")})
    assert json.loads(json.dumps(found.json(), allow_nan=False)) == found.json()
    assert found.json()["ours"] == 1.235
    assert found.json()["figures"] == {"share_of_peak": None}


# --- the same work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", list(MODELS))
def test_every_peer_trains_alike_and_writes_alike(arch):
    """The smallest model of each architecture: the rows say that losses and choices were ours."""
    shape = {"mlp": "swiglu", "qk_norm": False} if arch == "llama" else {}
    case = tiny(arch, **shape)
    trained = list(training.rows_of(case, ONCE))
    written = list(generation.rows_of(case, ONCE, new=5))
    peers = [peer for peer in scratchlm_peers.model_peers() if peer.arch == arch]
    expected = [peer.name for peer in peers] or [None]
    assert [found.peer for found in trained] == expected
    again = {peer.name: f"{peer.name}, which reads all again" for peer in peers if not peer.remembers}
    assert [found.peer for found in written] == [again.get(name, name) for name in expected]
    for found in trained + written:
        if found.peer is None:
            assert found.ratio is None
        elif found.peer == "our GPT of as many parameters":
            assert found.status == "failed"  # no GPT is as small
        elif found.status != "not installed" or "transformers" not in found.peer:
            assert (found.status, found.message) == ("measured", None)
            alone = found.peer == "its trunk alone, a GPT" or found.peer.endswith("which reads all again")
            assert found.contest == (not alone)
            assert found.ratio == pytest.approx(found.ours / found.theirs)
    assert trained[0].figures["tokens_per_second"] > 0
    assert ("mfu" in trained[0].figures) == (arch not in ("bigram", "backpack"))  # see training.py


def test_a_norm_before_each_sublayer_is_the_same_transformer_too():
    """The tiny one normalises after each; that of the default preset before."""
    (found,) = training.rows_of(tiny("transformer", norm="pre"), ONCE)
    assert (found.status, found.message) == ("measured", None)


@pytest.mark.skipif("NANOGPT" not in os.environ, reason="NANOGPT names no clone of nanoGPT")
def test_nanogpt_trains_alike():
    setting = dataclasses.replace(ONCE, nanogpt=Path(os.environ["NANOGPT"]))
    (found,) = training.rows_of(tiny("gpt", bias=False, activation="gelu"), setting)
    assert (found.peer, found.status, found.message) == ("nanoGPT", "measured", None)


def perturbed(model):
    """A rival that is another function."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return language_model(model)


def test_other_work_gets_no_ratio(one_peer):
    one_peer(perturbed)
    for found in (*training.rows_of(tiny("gpt"), ONCE), *generation.rows_of(tiny("gpt"), ONCE)):
        assert (found.status, found.ratio, found.theirs) == ("unequal", None, None), found
        assert found.message


def test_an_optimizer_that_does_less_is_other_work(one_peer):
    one_peer(lambda model: dataclasses.replace(
        language_model(model), optimizer=lambda module, optim: torch.optim.SGD(module.parameters(), lr=0.0)
    ))  # fmt: skip
    case = dataclasses.replace(tiny("gpt"), optim=dataclasses.replace(tiny("gpt").optim, lr=0.1))
    (found,) = training.rows_of(case, ONCE)
    assert found.status == "unequal"
    assert "steps" in found.message


def test_a_text_that_is_too_short_is_other_work(one_peer):
    def lazy(model):
        rival = language_model(model)
        return dataclasses.replace(rival, generate=lambda prompts, new, source: rival.generate(prompts, 1, source))

    one_peer(lazy)
    (found,) = generation.rows_of(tiny("gpt"), ONCE)
    assert found.status == "unequal"


def test_what_is_not_installed_or_fails_is_named_and_the_rest_is_measured(one_peer):
    def broken(model):
        raise AttributeError("this version has no such thing")

    one_peer(broken)
    (found,) = training.rows_of(tiny("gpt"), ONCE)
    assert (found.status, found.ratio) == ("failed", None)
    assert "no such thing" in found.message
    one_peer(broken, version=lambda: None, package="nowhere")
    (found,) = training.rows_of(tiny("gpt"), ONCE)
    assert (found.status, found.ratio, found.message) == ("not installed", None, "nowhere is not installed")
    assert found.ours > 0


def test_a_cost_is_measured_without_being_the_same_work(one_peer):
    one_peer(perturbed, equal=False)
    assert [(found.status, found.contest) for found in training.rows_of(tiny("gpt"), ONCE)] == [("measured", False)]


# --- compilation and precision of both sides ----------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch):
    """What torch compiles, which runs as it is then."""
    found = []

    def backend(graph, inputs):
        found.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what, **more: real(what, **{**more, "backend": backend}))
    yield found
    torch.compiler.reset()


@pytest.mark.parametrize("arch", ["gpt", "rnn", "cnn", "transformer", "llama"])
def test_a_compiled_peer_has_its_loss_compiled_too(monkeypatch, graphs, arch):
    """Replay: its module was compiled alone, and our step with its loss."""
    monkeypatch.setattr(training, "peers_are_compiled", lambda case, setting: True)
    found = list(training.rows_of(tiny(arch, **({"mlp": "swiglu", "qk_norm": False} if arch == "llama" else {})), ONCE))
    if found[0].status == "not installed":
        pytest.skip(found[0].message)
    assert (found[0].status, found[0].peer.endswith(", in fp32, compiled")) == ("measured", True), found[0].message
    assert [node for graph in graphs for node in graph.graph.nodes if node.target is F.cross_entropy]
    assert len(graphs) == 1 or arch == "rnn"  # torch compiles no nn.RNN, and nothing else may part the graph


def test_a_peer_that_cannot_be_compiled_is_named_and_the_rest_is_measured(monkeypatch, one_peer):
    def refuse(what, **more):
        def fails(batch):
            raise RuntimeError("there is no compiler")

        return fails

    monkeypatch.setattr(training, "peers_are_compiled", lambda case, setting: True)
    monkeypatch.setattr(torch, "compile", refuse)
    one_peer(language_model)
    (found,) = training.rows_of(tiny("gpt"), ONCE)
    assert (found.status, found.message) == ("failed", "RuntimeError: there is no compiler")
    assert found.ours > 0


def test_the_tenth_compiled_model_is_compiled_too(graphs):
    """Replay: torch compiles a function eight times at most, so later models ran as they are, called compiled."""
    for vocab_size in range(20, 30):
        graphs.clear()
        (found,) = training.rows_of(tiny("bigram", vocab_size=vocab_size), dataclasses.replace(ONCE, compile="on"))
        assert found.what.endswith(", compiled")
        assert graphs, vocab_size


@pytest.mark.parametrize(
    ("device", "ours", "all_of_them", "expected"),
    [
        ("cpu", "auto", "on", False),
        ("cuda", None, "off", False),
        ("cuda", None, "auto", True),
        ("cuda", "auto", "off", True),
    ],
)
def test_peers_are_compiled_with_ours_on_an_accelerator(device, ours, all_of_them, expected):
    case = dataclasses.replace(tiny("gpt"), compile=ours)
    setting = dataclasses.replace(ONCE, device=torch.device(device), compile=all_of_them)
    assert training.peers_are_compiled(case, setting) == expected


def test_a_row_says_what_each_side_computes_in_where_that_differs(graphs, one_peer):
    one_peer(language_model)
    case = dataclasses.replace(tiny("gpt"), asked={"other": 0.75})
    bf16, compiled = dataclasses.replace(case, precision="bf16"), dataclasses.replace(case, compile="auto")
    (plain,), (exact,), (eager,) = (training.rows_of(one, ONCE) for one in (case, bf16, compiled))
    (both,) = training.rows_of(case, dataclasses.replace(ONCE, precision="bf16"))
    said = [(found.what.partition("3 x 8")[2], found.peer, found.asked) for found in (plain, exact, eager, both)]
    assert said == [
        ("", "other", 0.75),
        (", in bf16", "other, in fp32, eager", 0.75),
        (", compiled", "other, in fp32, eager", 0.75),
        (", in bf16", "other", 0.75),
    ]
    shown = report.results_of([exact])["rows"]
    assert "| other, in fp32, eager: " in report.table(shown)
    (label,) = report.figure(shown).axes[0].get_yticklabels()
    assert label.get_text().endswith("in bf16, against other, in fp32, eager")


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("repeats", "rounds"), [(5, 3), (21, 5)])
def test_two_processes_are_set_against_one_round_by_round(monkeypatch, repeats, rounds):
    alone, shared = iter([100.0, 200.0, 100.0, 100.0, 100.0]), iter([110.0, 220.0, 300.0, 120.0, 130.0])
    taken = []

    def milliseconds(processes, threads):
        taken.append((processes, threads))
        return next({(1, 2): alone, (2, 1): shared}[processes, threads])

    monkeypatch.setattr(distribution, "milliseconds", milliseconds)
    (found,) = distribution.rows(dataclasses.replace(ONCE, repeats=repeats))
    assert taken == [(1, 2), (2, 1)] * rounds
    assert (found.repeats, found.threads, found.asked, found.contest) == (rounds, 1, 1 / 0.85, False)
    ratio, quartiles = (1.1, (1.1, 2.05)) if rounds == 3 else (1.2, (1.1, 1.3))  # of rounds: 1.1, 1.1, 3, 1.2, 1.3
    assert (found.ratio, found.quartiles) == (pytest.approx(ratio), pytest.approx(quartiles))
    assert (found.ours, found.theirs) == (220 if rounds == 3 else 130, 100)


def test_an_accelerator_has_one_process(monkeypatch):
    monkeypatch.setattr(distribution, "milliseconds", None)
    assert not list(distribution.rows(dataclasses.replace(ONCE, device=torch.device("cuda"))))


# --- memory and cases ---------------------------------------------------------------------------------------------


def test_a_token_far_from_the_start_and_one_without_memory(monkeypatch):
    monkeypatch.setattr(generation, "FAR", 30)
    monkeypatch.setattr(generation, "REREAD", 12)
    far = generation.far_from_the_start(tiny("lstm"), ONCE)
    assert (far.what, far.peer) == ("one token after 30 others: lstm, tiny", "one after 10")
    again = generation.without_memory(tiny("gpt"), ONCE)
    assert (again.what, again.peer) == ("one token after 12 others: gpt, tiny", "reading all of them again")
    assert far.ratio > 0
    assert again.ratio > 0


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_every_architecture_has_a_case_that_its_model_takes(device):
    found = list(cases(torch.device(device)))
    assert {case.arch for case in found} == set(MODELS)
    for case in found:
        with torch.device("meta"):
            model = MODELS[case.arch](MODELS[case.arch].Config(**case.model))
        assert case.tokens <= (model.context or case.tokens), case
        assert not [name for name in case.model if name.endswith("dropout") and case.model[name]]
    asked = [case for case in found if case.asked]
    own = [(0.75, None, "auto")]
    if runtime.cpu_has_bf16():
        own += [(0.75, "bf16", None), (0.75, "bf16", "auto")]
    assert [(case.asked["nanoGPT"], case.precision, case.compile) for case in asked] == (
        own if device == "cpu" else [(1 / 1.1, None, None)]
    )
    assert not MODELS["gpt"].Config(**asked[0].model).bias  # nanoGPT trains without


def test_a_batch_is_always_the_same_and_a_models_weights_too():
    case = dataclasses.replace(of_preset("transformer", "cmudict"), rows=4)
    one, other = case.batch(CPU), case.batch(CPU)
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.source.ids, other.source.ids)
    assert one.target_count < one.targets.numel()  # rows have several lengths
    one, other = tiny("gpt").make(CPU), tiny("gpt").make(CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# --- tokenizers ---------------------------------------------------------------------------------------------------


def test_every_tokenizer_learns_and_says_the_same():
    text = "the cat sat on the mat, the hen on the pen; a man ran and ran.\n" * 40
    before = learning.compiled_loops
    found = [*tokenizers.training(text, 280, ONCE), *tokenizers.encoding(text, 280, ONCE)]
    assert learning.compiled_loops is before
    ways = 2 if learning.compiled_loops() is not None else 1
    trained = ["tokenizers"] * ways + ["rustbpe"] * ways
    assert [one.peer for one in found] == trained + ["tokenizers", "tiktoken"] * ways
    for one in found:
        assert one.status in ("measured", "not installed"), one.message
        assert one.figures["megabytes_per_second"] > 0


def test_other_ids_get_no_ratio(monkeypatch):
    wrong = SimpleNamespace(
        name="wrong", package="torch", version=lambda: "1", equal=True, train=None, encode="wrong",
        load=lambda name: lambda text, tokenizer: lambda: np.zeros(3, np.uint32),
    )  # fmt: skip
    monkeypatch.setattr(scratchlm_peers, "TOKENIZER_PEERS", [wrong])
    (one, *_) = tokenizers.encoding("some words, some words\n", 258, ONCE)
    assert (one.status, one.ratio) == ("unequal", None)


@pytest.mark.parametrize("ties", ["gpt2", "ids"])
def test_each_way_that_is_timed_must_learn_the_same(monkeypatch, ties):
    """Replay: with numba nothing of what was learned was looked at."""
    train = BPETokenizer.train

    def other_with_loops(texts, vocab_size, **settings):
        differs = learning.compiled_loops() is loops and settings["ties"] == ties
        with tokenizers.using(None):
            return train(texts, vocab_size=vocab_size - differs, **settings)

    loops = SimpleNamespace()
    monkeypatch.setattr(tokenizers, "_ways", lambda: {"": None, ", with numba": loops})
    monkeypatch.setattr(BPETokenizer, "train", other_with_loops)
    with pytest.raises(measure.UnequalError):
        list(tokenizers.training("the cat sat on the mat, the hen on the pen\n" * 9, 270, ONCE))


def test_each_way_that_is_timed_must_encode_the_same(monkeypatch):
    encode = BPETokenizer.encode_array

    def other_with_loops(tokenizer, text):
        found = learning.compiled_loops() is loops
        with tokenizers.using(None):
            return encode(tokenizer, text)[found:]

    loops = SimpleNamespace()
    monkeypatch.setattr(tokenizers, "_ways", lambda: {"": None, ", with numba": loops})
    monkeypatch.setattr(BPETokenizer, "encode_array", other_with_loops)
    with pytest.raises(measure.UnequalError):
        list(tokenizers.encoding("the cat sat on the mat, the hen on the pen\n" * 9, 270, ONCE))


def test_what_is_timed_against_a_peer_has_its_ties(monkeypatch):
    """Replay: it was timed with those of rustbpe, whatever the peer's."""
    asked, train = [], BPETokenizer.train

    def noted(texts, **settings):
        asked.append(settings["ties"])
        return train(texts, **settings)

    monkeypatch.setattr(BPETokenizer, "train", noted)
    monkeypatch.setattr(scratchlm_peers, "TOKENIZER_PEERS", scratchlm_peers.TOKENIZER_PEERS[:1])
    assert scratchlm_peers.TOKENIZER_PEERS[0].ties == "gpt2"
    list(tokenizers.training("the cat sat on the mat, the hen on the pen\n" * 9, 270, ONCE))
    assert set(asked) == {"gpt2"}


def test_a_peer_knows_no_word_of_an_earlier_round(monkeypatch):
    """Replay: tokenizers kept its words from round to round, and ours were forgotten."""
    known, found = set(), []

    def encode(text, add_special_tokens):
        found.append(text in known)
        known.add(text)
        return SimpleNamespace(ids=[])

    made = SimpleNamespace(model=SimpleNamespace(_clear_cache=known.clear), encode=encode)
    monkeypatch.setitem(
        sys.modules, "tokenizers", SimpleNamespace(Tokenizer=SimpleNamespace(from_str=lambda text: made))
    )
    run = byte_pairs.encode_tokenizers("a text", BPETokenizer.train(["a text"], vocab_size=258))
    for _ in range(3):
        run()
    assert found == [False] * 3


# --- what is left behind ------------------------------------------------------------------------------------------


def some_rows():
    peer = SimpleNamespace(name="nanoGPT", package="nanoGPT", version=lambda: "abc", equal=True)
    seconds = {OURS: [0.03, 0.031], "nanoGPT": [0.04, 0.04]}
    figures = {"tokens_per_second": 25000.0, "mfu": 0.5}
    missing = {"nanoGPT": Trial(None, "not installed", "nanoGPT is not installed")}
    return [
        row(ONCE, "ceilings", "matrix product, fp32", [100.0, 120.0], "GFLOP/s", figures={"share_of_peak": 0.8}),
        row_of(ONCE, "training", "a step", seconds, peer, {"nanoGPT": Trial(print)}, figures=figures, asked=0.75),
        row_of(ONCE, "training", "another", {OURS: [0.5]}, peer, missing),
        row_of(ONCE, "training", "alone", {OURS: [0.5]}, None, {}),
    ]


def test_the_table_says_all_that_was_measured():
    text = report.table(report.results_of(some_rows())["rows"])
    assert "| matrix product, fp32 | 110 GFLOP/s, 80% of its peak | 105 to 115 |" in text
    assert "| a step | 30.5 ms, 25,000 tokens/s, MFU 50% | nanoGPT: 40 ms | 0.76 (0.76 to 0.77, asked 0.75) |" in text
    assert "| another | 500 ms | nanoGPT | not installed |" in text
    assert "| alone | 500 ms | - | - |" in text
    assert f"{torch.get_num_threads()} thread" in text
    assert "nanoGPT abc" in text


def test_a_table_says_how_far_its_rows_differ():
    one = report.results_of(some_rows())["rows"][1]
    other = {**one, "repeats": 21, "threads": one["threads"] + 1, "date": "2099-01-01"}
    several = f"{one['threads']} to {one['threads'] + 1} threads, medians of 2 to 21, {one['date']} to 2099-01-01, "
    assert several in report.table([other, one])
    threads = f"{other['threads']} thread{'s' if other['threads'] > 1 else ''}"
    assert f"{threads}, medians of 21, 2099-01-01, " in report.table([other])


def test_the_chart_has_a_point_for_each_ratio(tmp_path):
    results = report.results_of(some_rows())
    (axes,) = report.figure(results["rows"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a step, against nanoGPT"]
    points = [line for line in axes.lines if line.get_marker() not in ("None", "|")]
    assert [list(line.get_xdata()) for line in points] == [[results["rows"][1]["ratio"]]]
    report.write(results, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "table.md", "ratios.svg", "ratios.png"}
    assert read_json(tmp_path / "results.json")["rows"] == json.loads(json.dumps(results["rows"]))


def test_the_readme_has_the_tables_of_the_results():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.with_tables(page, read_json(readme.RESULTS)) == page, "run python benchmarks/readme.py"


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Products and copies of nothing much, in a folder of its own."""
    product = ceilings.square_product
    monkeypatch.setattr(ceilings, "square_product", lambda device, precision: product(device, precision, 8))
    monkeypatch.setattr(ceilings, "precisions", lambda device: ("fp32", "bf16"))  # whatever this CPU has
    monkeypatch.setattr(ceilings, "COPIED", {"cpu": 1 << 10})
    monkeypatch.setattr(ceilings, "in_turns", lambda sides, setting: {name: [1.0] for name in sides})
    monkeypatch.chdir(tmp_path)


def test_json_is_one_object_and_nothing_else(small, capsys):
    assert main(["bench", "ceilings", "--json", "--out", "here/there"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [one["what"].split(",")[0] for one in found["rows"]] == ["matrix product"] * 2 + ["memory copy"]
    assert found["rows"][0].keys() == {field.name for field in dataclasses.fields(measure.Row)}
    assert "matrix product, bf16" in err
    assert read_json(Path("here/there/results.json"))["rows"] == found["rows"]
    assert not Path("here/there/ratios.svg").exists()  # nothing was compared


def test_without_json_the_tables_are_printed(small, capsys):
    assert main(["bench", "ceilings"]) == 0
    assert capsys.readouterr().out == Path("runs/bench/table.md").read_text(encoding="utf-8")


def test_work_that_was_not_the_same_is_a_fault(small, monkeypatch, capsys, one_peer):
    monkeypatch.setattr(training, "cases", lambda device: [tiny("gpt")])
    one_peer(perturbed)
    assert main(["bench", "training"]) == 1
    out, err = capsys.readouterr()
    assert "unequal" in out
    assert "the losses are" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["training!"], ["'training!'", "'training'"]),
        (["nonsense"], ["'nonsense'", *GROUPS, "all"]),
        (["ceilings", "--out", "file"], ["file"]),
        (["ceilings", "--out", ""], ["--out"]),
        (["training", "--nanogpt", "."], ["model.py", "nanoGPT"]),
        (["ceilings", "--device", "tpu"], ["'tpu'"]),
        (["ceilings", "--precision", "fp8"], ["'fp8'", "bf16"]),
    ],
)
def test_bad_input_is_refused_with_the_remedy(small, capsys, arguments, words):
    Path("file").write_text("")
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words), err
    assert not Path("runs").exists()


def test_the_list_of_peers_imports_none_of_them():
    """So that whoever lists them needs none of their libraries, and a benchmark of memory has no torch in it."""
    found = ast.parse(Path(scratchlm_peers.__file__).read_text(encoding="utf-8")).body
    named = [one for one in found if isinstance(one, (ast.Import, ast.ImportFrom))]
    modules = {one.module if isinstance(one, ast.ImportFrom) else one.names[0].name for one in named}
    assert {module.split(".")[0] for module in modules} <= set(sys.stdlib_module_names)
    assert all(isinstance(peer, Peer) for peer in scratchlm_peers.model_peers(Path("somewhere")))
