"""What this machine can do, and how fast training, generation and tokenizing are on it, against others who do it.

Each group is a module with `rows(setting)`. The peers are in a package of their own, `scratchlm_peers`, since nothing
in this one is prebuilt.
"""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scratchlm.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from scratchlm.bench.measure import Row, Setting

GROUPS = ("ceilings", "training", "distribution", "generation", "tokenizers")


def groups_of(what: str) -> tuple[str, ...]:
    """The groups that a word means. Raises InputError for an unknown one."""
    if what != "all" and what not in GROUPS:
        raise InputError(f"there is no benchmark {what!r}: {did_you_mean(what, ('all', *GROUPS))}")
    return GROUPS if what == "all" else (what,)


def bench(what: str, setting: "Setting") -> "Iterator[Row]":
    """The rows of a group, or of all, as they are measured."""
    for group in groups_of(what):
        yield from importlib.import_module(f"scratchlm.bench.{group}").rows(setting)
