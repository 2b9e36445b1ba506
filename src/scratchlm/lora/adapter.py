"""LoRA: what a model learns anew, as a product of two thin matrices beside each matrix, which stays as it is.

Papers: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; Kalajdzievski 2023, "A Rank Stabilization
Scaling Factor for Fine-Tuning with LoRA"; Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation".

    paper                                               here
    h = W_0 x + s B A x                (LoRA, 3)        Adaptation.branch, where a matrix is called as a module
    W = W_0 + s B A                                     Changed, where it is read as a tensor; merge
    s = alpha / r, rsLoRA: alpha / sqrt(r)              Matrix.scale (targets.py)
    A from a Gaussian, B = 0           (section 4.1)    LowRank: A uniform, of the same use (Kaiming, a = sqrt 5)
    W' = m (W_0 + s B A) / |W_0 + s B A|   (DoRA, 5)    LowRank.factors; the norm is a constant in the backward pass
                                                        (section 4.3)

An adapted model has its base's parameters, frozen, and whatever is trained in modules called `lora`. A parameter that
is read as a tensor is called parametrizations.NAME.original meanwhile, so a base's weights are loaded before it is.
A tie is one matrix here, so it has one change. A model says how it reads its matrices (`fused`, `read_as_tensors`).
Merging is a function and no mode: nothing here depends on train() or eval() but dropout.

Letters in shapes: I columns of a matrix, O its rows, R rank. Of a convolution's weight, I is channels times taps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from scratchlm.config import LoRAConfig
from scratchlm.lora.targets import Matrix, choose
from scratchlm.model import LanguageModel


class LowRank(nn.Module):
    """s B A beside one matrix, or DoRA's direction and length of its rows."""

    magnitude: nn.Parameter | None

    def __init__(self, weight: Tensor, matrix: Matrix, config: LoRAConfig) -> None:
        """`weight` is the matrix itself, (O, I), whose dtype is widened to float32 for what is trained."""
        super().__init__()
        self.rows = matrix.rows
        self.scale = matrix.scale(config)
        rank, (outputs, inputs) = matrix.rank(config), matrix.shape
        like = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
        self.A = nn.Parameter(torch.empty(rank, inputs, **like))
        self.B = nn.Parameter(torch.zeros(outputs, rank, **like))
        if matrix.embedding:  # as loralib's: a token's row is A's mix, whose entries start with a deviation of 1
            nn.init.normal_(self.A)
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.register_parameter("magnitude", nn.Parameter(self.lengths(weight)) if config.dora else None)

    def change(self) -> Tensor:
        """The change itself, s B A. Shapes: (O, I)."""
        return self.scale * (self.B @ self.A)

    def among(self, rows: int) -> Tensor:
        """The matrix s B, with zeros for the other rows of the matrix that it is a part of. Shapes: (rows, R)."""
        return F.pad(self.scale * self.B, (0, 0, self.rows.start, rows - self.rows.stop))

    def lengths(self, weight: Tensor) -> Tensor:
        """|W_0 + s B A| of each row, without the matrix B A and without gradients. Shapes: (O, I) -> (O,).

        In float32 good to 0.2 % where a change leaves a row a hundredth of its length.
        """
        with torch.no_grad():
            weight, scaled = weight.to(self.A.dtype), self.scale * self.B
            cross = (scaled * (weight @ self.A.t())).sum(1)
            own = ((scaled @ (self.A @ self.A.t())) * scaled).sum(1)
            return (weight.square().sum(1) + 2 * cross + own).clamp(min=0).sqrt()

    def factors(self, weight: Tensor) -> Tensor:
        """What DoRA multiplies each row of W_0 + s B A by. Shapes: (O, I) -> (O,)."""
        assert self.magnitude is not None
        lengths = self.lengths(weight)
        return self.magnitude / lengths.where(lengths > 0, 1)  # a row of zeros has no direction

    def changed(self, weight: Tensor) -> Tensor:
        """The matrix with its change, in the wider of both precisions. Shapes: (O, I) -> (O, I)."""
        summed = weight + self.change()
        return summed if self.magnitude is None else self.factors(weight)[:, None] * summed


class Shift(nn.Module):
    """What is added to a bias."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32)))


class Adaptation(nn.Module):
    """All that is trained beside one module: low-rank pairs by the part of its matrix, and the shift of its bias."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.handle: RemovableHandle | None = None  # of the hook, where the matrix is called
        self.pristine: dict[str, Tensor] = {}  # the module's parameters while its changes are merged into them

    @property
    def pairs(self) -> list[LowRank]:
        """Its low-rank pairs."""
        return [child for child in self.children() if isinstance(child, LowRank)]

    def branch(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: W_0 x + b + s B A x. Shapes: inputs (..., I), output (..., O of all parts)."""
        pairs = self.pairs
        if self.pristine or not pairs:
            return output
        like, width = pairs[0].A.dtype, output.shape[-1]
        x = F.dropout(inputs[0].to(like), self.dropout, self.training)
        y = output.to(like)
        # the parts of a fused matrix as one pair: their A one below the other, B with zeros in the others' rows
        down = torch.cat([pair.A for pair in pairs])  # (R of all, I)
        up = torch.cat([pair.among(width) for pair in pairs], 1)  # (O of all, R of all)
        if pairs[0].magnitude is not None:
            factors, plain = self._directed(module, x, output)
            y, up = y + (factors - 1) * plain, factors[:, None] * up
        # the sum and the product with B in one kernel
        y = torch.addmm(y.reshape(-1, width), F.linear(x, down).reshape(-1, len(down)), up.t())
        return y.view_as(output).to(output.dtype)

    def _directed(self, module: nn.Module, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """DoRA's factors of all rows, 1 for those that are not adapted, and W_0 x. Shapes: (O,), (..., O)."""
        weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
        factors = x.new_ones(len(weight))
        for pair in self.pairs:
            factors[pair.rows] = pair.factors(weight[pair.rows])
        if self.dropout and self.training:  # a row is one direction: what W_0 reads of it is what B A reads
            return factors, F.linear(x, weight.to(x.dtype))
        return factors, output.to(x.dtype) - (0 if bias is None else bias)

    def merge(self, module: nn.Module, of: str) -> None:
        """Put the changes into the module's parameters, which are kept as they are for `unmerge`."""
        with torch.no_grad():
            merged = {
                name: cast(Tensor, getattr(module, name)) for name in ("weight", "bias") if _is_changed(module, name)
            }
            if self.handle is not None:
                merged["weight"] = _changed(self.pairs, cast(Tensor, module.weight))
            for name, tensor in merged.items():
                if not bool(tensor.isfinite().all()):
                    raise ValueError(f"the merged {of}.{name} has values that are no numbers; the adapter is damaged")
            self.pristine = {name: p.data for name, p in module.named_parameters() if not name.startswith("lora.")}
            for name, tensor in merged.items():
                if _is_changed(module, name):
                    setattr(module, name, tensor)  # through what other parametrizations the model has itself
                else:
                    module.get_parameter(name).data = tensor

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        if self.pristine:
            raise ValueError("the adapter is merged, and what is loaded now would be lost; unmerge it first")
        super()._load_from_state_dict(*arguments, **named)

    def unmerge(self, module: nn.Module) -> None:
        """Give the module its own parameters back, bit by bit."""
        for name, tensor in self.pristine.items():
            module.get_parameter(name).data = tensor.to(module.get_parameter(name))  # it may have been cast, or moved
        self.pristine = {}


def _changed(pairs: Sequence[LowRank], weight: Tensor) -> Tensor:
    matrix = weight.flatten(1)
    if len(pairs) == 1 and len(pairs[0].B) == len(matrix):
        return pairs[0].changed(matrix).to(weight.dtype).view_as(weight)
    changed = matrix.clone()
    for pair in pairs:
        changed[pair.rows] = pair.changed(matrix[pair.rows]).to(weight.dtype)
    return changed.view_as(weight)


class Changed(nn.Module):
    """A parametrization of a tensor: with its change, or as it is while that is merged into it."""

    def __init__(self, adaptation: Adaptation, name: str) -> None:
        super().__init__()
        self.of = (adaptation, name)  # a tuple hides a module from registration: it is registered as `lora` already

    def forward(self, tensor: Tensor) -> Tensor:
        adaptation, name = self.of
        if adaptation.pristine:
            return tensor
        if name == "bias":
            return (tensor + cast(Shift, adaptation.bias).shift).to(tensor.dtype)
        return _changed(adaptation.pairs, tensor)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        return tensor


def _is_changed(module: nn.Module, name: str) -> bool:
    """Whether a parametrization of ours gives that tensor; one that the model has itself may stand before it."""
    return parametrize.is_parametrized(module, name) and isinstance(
        cast(parametrize.ParametrizationList, cast(nn.ModuleDict, module.parametrizations)[name])[-1], Changed
    )


def adaptations(model: nn.Module) -> dict[str, tuple[nn.Module, Adaptation]]:
    """The adapted modules by name, each with what is trained beside it."""
    there = ((name, module, getattr(module, "lora", None)) for name, module in model.named_modules())
    return {name: (module, beside) for name, module, beside in there if isinstance(beside, Adaptation)}


def adapt(model: LanguageModel, config: LoRAConfig) -> list[Matrix]:
    """Freeze a model and lay an adapter beside it, which changes nothing yet: A is drawn, B is zero.

    Returns the matrices that are adapted. Raises ValueError as `choose` does, and where there is an adapter already.
    """
    if adaptations(model):
        raise ValueError("the model has an adapter already; fold it in, or remove it, before adapting the model again")
    chosen = choose(model, config)
    adapted = {matrix.module for matrix in chosen}
    biased = {name for name, module in model.named_modules() if isinstance(getattr(module, "bias", None), Tensor)}
    biased = {"none": set(), "lora_only": biased & adapted, "all": biased}[config.bias]
    model.requires_grad_(False)
    for name in [name for name, _ in model.named_modules() if name in adapted | biased]:
        module = model.get_submodule(name)
        adaptation = Adaptation(config.dropout).train(module.training)  # a new module drops, in a model in use too
        mine = [matrix for matrix in chosen if matrix.module == name]
        if mine:
            weight = cast(Tensor, module.weight)
            for matrix in mine:
                adaptation.add_module(matrix.part, LowRank(weight.detach().flatten(1)[matrix.rows], matrix, config))
            if mine[0].called:
                adaptation.handle = module.register_forward_hook(adaptation.branch)
            else:
                parametrize.register_parametrization(module, "weight", Changed(adaptation, "weight"))
        if name in biased:
            adaptation.add_module("bias", Shift(cast(Tensor, module.bias)))
            parametrize.register_parametrization(module, "bias", Changed(adaptation, "bias"))
        module.lora = adaptation
    return chosen


def merge(model: LanguageModel) -> None:
    """Put every change into its matrix, so that nothing is computed beside it; the model's own are kept as they are.

    Sums are in the adapter's precision, float32 or wider, and rounded once.
    Raises ValueError, and merges none, where it is merged, or damaged.
    """
    there = adaptations(model)
    if any(adaptation.pristine for _, adaptation in there.values()):
        raise ValueError("the adapter is merged already; unmerge it first")
    try:
        for name, (module, adaptation) in there.items():
            adaptation.merge(module, name)
    except ValueError:
        unmerge(model)
        raise


def unmerge(model: LanguageModel) -> None:
    """Undo `merge`: the model's own parameters come back bit by bit."""
    for module, adaptation in adaptations(model).values():
        adaptation.unmerge(module)


def remove(model: LanguageModel) -> None:
    """Take the adapter off: what is left is the model before `adapt`, bit by bit, all of it to be trained."""
    unmerge(model)
    _detach(model)


def fold(model: LanguageModel) -> None:
    """Make the changes the model's own: what is left has no adapter, and is to be trained as any other."""
    unmerge(model)
    merge(model)
    _detach(model)


def _detach(model: LanguageModel) -> None:
    for module, adaptation in adaptations(model).values():
        if adaptation.handle is not None:
            adaptation.handle.remove()
        for name in ("weight", "bias"):
            if _is_changed(module, name):
                _take_off(module, name)
        del module.lora
    model.requires_grad_(True)


def _take_off(module: nn.Module, name: str) -> None:
    """Remove a parametrization of ours, which is the last; those that the model has itself stay."""
    of = cast(parametrize.ParametrizationList, cast(nn.ModuleDict, module.parametrizations)[name])
    if len(of) > 1:
        del of[-1]
        return
    # torch makes `weight` a property of the module's class and deletes it there, but a deep copy of the module shares
    # the class, and would have no weight any more: so the module gets a class of its own first
    kind = type(module)
    own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, own)
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint has to hold: of an adapted model, merged or not, the adapter alone; of any other everything."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if ".lora." in f".{name}"} if adaptations(model) else state


@dataclass(frozen=True, kw_only=True)
class Size:
    """What training a model takes. Units: parameters; bytes of AdamW's two moments; bytes of what is saved."""

    trained: int
    parameters: int
    optimizer_bytes: int
    saved_bytes: int


def size(model: nn.Module) -> Size:
    """What training the model as it is would take."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Size(
        trained=sum(parameter.numel() for parameter in trained),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        optimizer_bytes=2 * sum(parameter.nbytes for parameter in trained),
        saved_bytes=sum(tensor.nbytes for tensor in trained_tensors(model).values()),
    )
