"""The command line: wiring, drawing and argument errors. A command is a file of its own, loaded when it is called."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from keyword import iskeyword

from cyclopts import App, CycloptsError

from scratchlm import __version__
from scratchlm.errors import InputError

COMMANDS = {
    "train": "Train an architecture: scratchlm train gpt. With --help behind it: all settings.",
    "finetune": "Train a model further on another text: all of it, or an adapter beside it (LoRA).",
    "merge": "Put an adapter into its base's weights: a plain run.",
    "resume": "Go on with a run that was stopped, or train a finished one for longer.",
    "sample": "Let a trained model write.",
    "translate": "Translate with a model that learned from pairs of source and target.",
    "eval": "Score a model on a whole split: nats per token, perplexity, bits per byte.",
    "compare": "Compare architectures at one budget of parameters and tokens or time: a table, curves and a report.",
    "import": "Make a run of a folder of Hugging Face's: a GPT-2, a Backpack, an adapter of PEFT.",
    "export": "Write a run's model in the files of another library.",
    "info": "Show a model's modules, parameters and operations.",
    "inspect": "Look into a trained model: what each token attends to, what a word's senses do.",
    "play": "Open a page over a trained model: write, look inside, compare; OpenAI's clients can ask it too.",
    "data": "List, show and fetch corpora.",
    "tokenizer": "Train tokenizers, use them, look into them, carry them to other libraries.",
    "presets": "List and show presets.",
    "bench": "Measure this machine, and our speed on it against other libraries.",
    "doctor": "Show this machine as scratchlm sees it, and what it would choose.",
}
GROUPS = ("data", "inspect", "presets", "tokenizer")  # commands that have commands


def root() -> App:
    """The command line, its commands not imported yet."""
    app = App(
        name="scratchlm",
        help="Language-model architectures written from scratch, to be read, trusted and trained.",
        version=f"scratchlm {__version__}",
    )
    for name, summary in COMMANDS.items():
        module = f"{name}_" if iskeyword(name) else name
        place = f"scratchlm.cli.{module}:{'app' if name in GROUPS else 'command'}"
        passes_on = {"help_flags": [], "version_flags": []} if name in ("finetune", "train") else {}
        app.command(place, name=name, help=summary, **passes_on)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 2 bad input, 3 diverged, 130 or 143 stopped with all saved."""
    if "SCRATCHLM_OUTCOME" not in os.environ:
        return _main(arguments)
    from scratchlm.distribution import end_with_parent, is_over, leave  # this is one of several processes

    end_with_parent()
    return 0 if is_over() else leave(_main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows would be written in another encoding
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = root()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        return _refuse(str(error))
    except InputError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:  # cyclopts turns Ctrl-C into it, rich a closed pipe
        return _reader_left() if error.code == 1 else error.code if isinstance(error.code, int) else 0
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _refuse(f"{error.filename} is too long for a name of a file; give a shorter one")
    except MemoryError:
        return _refuse(
            "not enough memory; make the model (--model.*) or the batch (--batch-size, of pairs --batch-tokens) smaller"
        )


def _reader_left() -> int:
    """Whoever read our output has gone, as `head` does: nothing more can be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    if sys.stderr is not None:
        print(" ".join(str(message).split()), file=sys.stderr)


def _refuse(message: str) -> int:
    if sys.stderr is not None and os.environ.get("RANK", "0") == "0":
        print("scratchlm: " + " ".join(message.split()), file=sys.stderr)  # one line, whatever a file is called
    return 2
