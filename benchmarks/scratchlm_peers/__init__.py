"""What `scratchlm bench` measures against: the same models made of torch's own modules or of other libraries.

They stand outside of the package, in which nothing is prebuilt, and each is imported when it is measured.
"""

import importlib
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A rival by name: `path` is "module:function", which is imported when it is measured.

    `package`: the distribution that must be installed. `fits`: whether it can be the model of a configuration.
    `equal`: it does the same work, so that its losses and tokens must be those of ours. `writes`: generation is
    measured too. `remembers`: it keeps what it has read when it writes, and does not read all of it again.
    """

    arch: str
    name: str
    package: str
    path: str
    fits: Callable[[Any], bool] = lambda config: True
    equal: bool = True
    writes: bool = True
    remembers: bool = True
    settings: Mapping[str, Any] | None = None

    def version(self) -> str | None:
        """The version of what is installed; None where it is not."""
        if self.settings:  # a clone
            return _commit(self.settings["folder"])
        return installed(self.package)

    def rival(self, model: Any) -> Any:
        """The `Rival` of a model, with its weights, on its device."""
        return load(self.path)(model, **(self.settings or {}))


def installed(package: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load(path: str) -> Callable[..., Any]:
    """A function of this package by "module:function"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"scratchlm_peers.{module}"), name)


def _commit(folder: Path) -> str:
    command = ["git", "--git-dir", str(folder / ".git"), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"


def model_peers(nanogpt: Path | None = None) -> list[Peer]:
    """All rivals of models; nanoGPT's is no package and needs the folder of a clone."""
    peers = [
        Peer(
            arch="gpt", name="transformers GPT2LMHeadModel", package="transformers", path="gpt2:rival",
            fits=lambda config: config.bias,
        ),
        Peer(
            arch="llama", name="transformers LlamaForCausalLM", package="transformers", path="llama:rival",
            fits=lambda config: config.mlp == "swiglu" and not config.qk_norm,
        ),
        *(
            Peer(arch=arch, name=f"nn.{arch.upper()} in the same blocks", package="torch", path="recurrent:rival")
            for arch in ("rnn", "lstm", "gru")
        ),
        Peer(
            arch="transformer", name="nn.Transformer", package="torch", path="transformer:rival", remembers=False,
            fits=lambda config: config.bias and not config.attention_dropout and not config.hidden_dropout,
        ),
        Peer(
            arch="cnn", name="a stack of nn.Conv1d", package="torch", path="convolutions:rival", remembers=False,
            fits=lambda config: config.block == "gated",
        ),
        Peer(arch="cnn", name="our GPT of as many parameters", package="torch", path="own:gpt", equal=False),
        Peer(arch="backpack", name="its trunk alone, a GPT", package="torch", path="own:trunk", equal=False),
    ]  # fmt: skip
    if nanogpt is not None:
        peers.append(
            Peer(
                arch="gpt",
                name="nanoGPT",
                package="nanoGPT",
                path="nanogpt:rival",
                writes=False,
                fits=lambda config: not config.bias,
                settings={"folder": nanogpt},
            )
        )
    return peers


@dataclass(frozen=True, kw_only=True)
class TokenizerPeer:
    """Another library's byte-pair encoding: "module:function" of what is timed, both without arguments once made.

    `train` takes (texts, vocab_size, pattern) and gives what trains, and what encodes with the result; `encode` takes
    (text, tokenizer of ours) and gives what encodes the text. None: it does not.
    """

    name: str
    package: str
    train: str | None = None
    encode: str | None = None
    equal: bool = True  # it must give our ids
    ties: str = "gpt2"  # between pairs that occur equally often

    def version(self) -> str | None:
        """The version of what is installed; None where it is not."""
        return installed(self.package)

    load = staticmethod(load)


TOKENIZER_PEERS = [
    TokenizerPeer(
        name="tokenizers",
        package="tokenizers",
        train="byte_pairs:train_tokenizers",
        encode="byte_pairs:encode_tokenizers",
    ),
    TokenizerPeer(name="rustbpe", package="rustbpe", train="byte_pairs:train_rustbpe", ties="ids"),
    TokenizerPeer(name="tiktoken", package="tiktoken", encode="byte_pairs:encode_tiktoken"),
]
