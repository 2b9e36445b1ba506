"""The rooms and what may lean on what, read out of the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scratchlm

ROOT = Path(scratchlm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TORCH_ONLY = {"torch", "scratchlm.model"}
PREBUILT = {"RNN", "LSTM", "GRU", "Transformer", "MultiheadAttention", "TransformerEncoder", "TransformerDecoder"}
REFERENCES = {"transformers", "peft", "tokenizers", "tiktoken", "sentencepiece", "rustbpe"}

# what a room may import of ours; a room that is not listed may import anything but the command line
ALLOWED = {
    "errors": set(),
    "distribution": {"errors"},
    "files": {"errors"},
    "model": set(),
    "layers": {"model"},
    "lora": {"config", "lora", "model"},
    "recurrence": {"model", "layers"},
    "models": {"model", "layers", "recurrence", "errors", "models"},
    "tokenizers": {"tokenizers", "errors"},
    "data": {"data", "tokenizers", "errors", "files", "model"},
    "generation": {"model"},
    "beams": {"generation", "model"},
    "steering": {"generation", "model", "models"},
    "evaluation": {"data", "distribution", "model", "errors", "generation"},
    "translation": {"beams", "data", "errors", "model", "tokenizers"},
    "flops": {"data", "evaluation", "model"},
    "bench": {
        "bench", "config", "data", "errors", "evaluation", "files", "flops", "generation", "inspect", "model",
        "models", "runtime", "tokenizers", "training",
    },
    "config": {"models", "errors"},
    "checkpoint": {"checkpoint", "config", "data", "errors", "files", "lora", "model", "models", "tokenizers"},
    "interop": {
        "checkpoint", "config", "data", "errors", "files", "interop", "lora", "model", "models", "runtime",
        "tokenizers",
    },
    "runtime": {"data", "errors", "model"},
    "inspect": {"inspect", "model"},
    "serve": {
        "checkpoint", "errors", "files", "generation", "inspect", "model", "models", "runtime", "serve", "steering",
        "tokenizers", "training", "translation",
    },
    "compare": {
        "checkpoint", "compare", "config", "data", "errors", "evaluation", "files", "generation", "inspect", "model",
        "models", "runtime", "tokenizers", "training",
    },
    "training": {
        "checkpoint", "config", "data", "distribution", "errors", "evaluation", "files", "flops", "generation",
        "interop", "lora", "model", "models", "runtime", "tokenizers", "training", "translation",
    },
}  # fmt: skip


def room(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            module = node.module or ""
            # "from scratchlm import tokenizers" is an import of the room
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "scratchlm" else {module}
    return found


def ours(file: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(file) if name.startswith("scratchlm.")} - {"__version__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_leans_on_what_it_may(file):
    if room(file) in ALLOWED:
        assert ours(file) <= ALLOWED[room(file)]
    elif room(file) not in ("cli", "__init__", "__main__"):
        raise AssertionError(f"{room(file)} is a new room: say above what it may import")


@pytest.mark.parametrize("file", sorted((ROOT / "models").glob("[!_]*.py")), ids=lambda file: file.stem)
def test_models_never_import_each_other(file):
    """But for a Backpack, whose trunk is a GPT."""
    allowed = {"scratchlm.models.gpt"} if file.stem == "backpack" else set()
    assert {name for name in imports(file) if name.startswith("scratchlm.models")} == allowed


def test_the_contract_imports_torch_only():
    for name in imports(ROOT / "model.py") | imports(ROOT / "layers.py"):
        assert name.split(".")[0] in {*sys.stdlib_module_names, "torch"} or name in TORCH_ONLY, name


def test_tokenizers_know_nothing_of_torch():
    for file in (ROOT / "tokenizers").glob("*.py"):
        assert not any(name.split(".")[0] == "torch" for name in imports(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_from_scratch_means_from_scratch(file):
    """No prebuilt layer and no reference library in the package."""
    assert not {name.split(".")[0] for name in imports(file)} & REFERENCES
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Attribute) and node.attr in PREBUILT), f"{file} uses {ast.unparse(node)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_runtime_chooses_devices_and_seeds(file):
    if file.name == "runtime.py":
        return
    source = file.read_text(encoding="utf-8")
    for call in ("cuda.is_available", "torch.manual_seed(", "set_num_threads", "torch.compile(", "set_default_d"):
        assert call not in source, f"{call} belongs in runtime.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_outgrows_its_room(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400


def test_an_architecture_is_read_in_750_lines():
    for file in (ROOT / "models").glob("[!_]*.py"):
        # whoever reads a Backpack has read the GPT that is its trunk
        read = [file] + [ROOT / f"{name}.py" for name in {"model", "layers"} | ours(file) - {"errors", "models"}]
        assert sum(len(one.read_text(encoding="utf-8").splitlines()) for one in read) <= 750, file.name


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["data", "list"], ["train", "--help"], ["compare", "--help"]]
)
def test_what_needs_no_torch_does_not_import_it(command):
    script = "import sys; from scratchlm.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1] == "False", done


def test_the_public_names_are_there():
    for name in scratchlm.__all__:
        assert getattr(scratchlm, name) is not None
    from scratchlm.generation import generate

    assert scratchlm.generate is generate
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        scratchlm.nonsense  # noqa: B018
