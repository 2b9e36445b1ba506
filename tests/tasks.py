"""Synthetic tasks that tell what a memory can hold."""

import torch

from scratchlm.data.batches import IGNORED, Batch

BLANK, SYMBOLS, SIGNAL = 0, 8, 9  # ids: 0 is a blank, 1 to 8 are symbols, 9 says "now repeat"
COPY_VOCABULARY = 10


def copy_memory(rows, gap, generator, length=10):
    """Read `length` random symbols, then wait for `gap` tokens, then write the symbols while the signal lasts.

    Only the symbols at the end are targets: who remembers nothing loses ln 8 = 2.079 nats on each.
    Shapes: tokens, targets (rows, 2 length + gap). Paper: Hochreiter and Schmidhuber 1997; Bai et al. 2018, 4.1.
    """
    symbols = torch.randint(1, SYMBOLS + 1, (rows, length), generator=generator)
    blanks, signals = torch.full((rows, gap - 1), BLANK), torch.full((rows, length + 1), SIGNAL)
    tokens = torch.cat([symbols, blanks, signals], 1)
    targets = torch.full_like(tokens, IGNORED)
    targets[:, -length:] = symbols
    return Batch(tokens, targets)
