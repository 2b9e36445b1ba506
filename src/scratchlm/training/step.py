"""The one module that training goes through: what distribution and compilation wrap is this, and nothing else."""

from torch import Tensor, nn

from scratchlm.data.batches import Batch
from scratchlm.evaluation import loss_sum
from scratchlm.model import LanguageModel


class TrainingStep(nn.Module):
    """A model together with its loss."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """The sum of the targets' losses in nats, and their number."""
        return loss_sum(self.model, batch)
