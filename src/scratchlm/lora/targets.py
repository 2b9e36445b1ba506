"""Which matrices of a model can be adapted, and which a configuration adapts."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from scratchlm.config import LoRAConfig
from scratchlm.model import LanguageModel

WHOLE = "whole"  # the part that is all of a matrix


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix that can be adapted: all of a module's, or a part of one that several were fused into."""

    module: str
    part: str
    rows: slice
    shape: tuple[int, int]  # (O, I)
    called: bool  # as a module, and never read as a tensor
    embedding: bool

    @property
    def name(self) -> str:
        """What it is called by users: its module, and its part."""
        return self.module if self.part == WHOLE else f"{self.module}.{self.part}"

    def answers(self, target: str) -> bool:
        """Whether that is its name, or the end of it."""
        return fnmatchcase(self.name, target) or fnmatchcase(self.name, f"*.{target}")

    def rank(self, config: LoRAConfig) -> int:
        """The rank of its change (r)."""
        return next((rank for target, rank in config.ranks.items() if self.answers(target)), config.rank)

    def scale(self, config: LoRAConfig) -> float:
        """What its change is multiplied by (s)."""
        alpha = next((alpha for target, alpha in config.alphas.items() if self.answers(target)), config.alpha)
        rank = self.rank(config)
        return alpha / (math.sqrt(rank) if config.rslora else rank)


def matrices(model: LanguageModel) -> list[Matrix]:
    """All that can be adapted: each module's matrix, then the parts of a fused one."""
    found: list[Matrix] = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            continue
        rows, columns = len(weight), weight[0].numel()
        read = any(_ends(name, end) for end in model.read_as_tensors) or parametrize.is_parametrized(module, "weight")
        how = {"called": isinstance(module, nn.Linear) and not read, "embedding": isinstance(module, nn.Embedding)}
        found.append(Matrix(module=name, part=WHOLE, rows=slice(0, rows), shape=(rows, columns), **how))
        parts = next((parts for end, parts in model.fused.items() if _ends(name, end)), ())
        for index, part in enumerate(parts):
            each = rows // len(parts)
            own = slice(index * each, (index + 1) * each)
            found.append(Matrix(module=name, part=part, rows=own, shape=(each, columns), **how))
    return found


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def choose(model: LanguageModel, config: LoRAConfig) -> list[Matrix]:
    """The matrices that a configuration adapts.

    Raises ValueError for a name that means none of them, saying what there is, and for too large a rank.
    """
    there = matrices(model)
    for target in (*(config.targets or ()), *config.ranks, *config.alphas):
        if not any(matrix.answers(target) for matrix in there):
            raise ValueError(f"no matrix is called {target!r}; choose from: {_names(there)}")
    if config.targets is None:
        wholes = [matrix for matrix in there if matrix.part == WHOLE]
        chosen = [matrix for matrix in wholes if not matrix.embedding] or wholes
    else:
        chosen = [matrix for matrix in there if any(matrix.answers(target) for target in config.targets)]
        whole = {matrix.module for matrix in chosen if matrix.part == WHOLE}  # which has its parts' change in it
        chosen = [matrix for matrix in chosen if matrix.part == WHOLE or matrix.module not in whole]
    for target in (*config.ranks, *config.alphas):
        if not any(matrix.answers(target) for matrix in chosen):
            raise ValueError(
                f"a rank or an alpha is set for {target!r}, which is not adapted; adapted are: {_names(chosen)}"
            )
    for matrix in chosen:
        if (rank := matrix.rank(config)) > min(matrix.shape):
            raise ValueError(
                f"the rank {rank} is larger than the matrix {matrix.name} of {matrix.shape[0]} x {matrix.shape[1]}; "
                f"the largest that means anything is {min(matrix.shape)}"
            )
    return chosen


def _names(there: Sequence[Matrix]) -> str:
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\b", ".*", matrix.name) for matrix in there))
