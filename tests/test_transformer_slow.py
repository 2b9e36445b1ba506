"""What an encoder-decoder learns in a minute, judged by what it writes, and what it cannot learn: make test-slow."""

import datetime
import random

import pytest
import torch
import torch.nn.functional as F

from scratchlm import generation, layers
from scratchlm.data.batches import IGNORED
from scratchlm.model import Source
from scratchlm.models.transformer import Transformer, TransformerConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

END, SYMBOLS, LONGEST = 0, 10, 10  # ids: 0 ends a source, starts a target and ends it; 1 to 10 are symbols
SHAPE = {"dim": 64, "depth": 2, "heads": 4, "hidden_dim": 128, "norm": "pre", "dropout": 0.0, "embedding_dropout": 0.0}


def padded(rows, filler):
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def source_of(pairs):
    rows = [[*source, END] for source, _ in pairs]
    return Source(padded(rows, END), torch.tensor([len(row) for row in rows]))


def teacher_forced(model, pairs):
    """Logits with the right prefix at each position, and what is right."""
    tokens = padded([[END, *target] for _, target in pairs], END)
    targets = padded([[*target, END] for _, target in pairs], IGNORED)
    features, _ = model(tokens, model.initial_state(len(pairs), source=source_of(pairs)))
    return model.readout(features), targets


def train(model, draw, steps, lr=1e-3):
    """Adam with a short warm-up and a linear fall over the last 40 % of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.98))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 100, (steps - step) / (0.4 * steps))
        logits, targets = teacher_forced(model, [draw() for _ in range(64)])
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def written_right(model, pairs):
    """Share of the targets that greedy decoding writes exactly, their end included."""
    longest = max(len(target) for _, target in pairs)
    rows = generation.generate(
        model, [[END]] * len(pairs), longest + 2, temperature=0, end=END, source=source_of(pairs)
    )
    return sum(row[1:] == target for row, (_, target) in zip(rows, pairs, strict=True)) / len(pairs)


def small(vocab_size=SYMBOLS + 1, context=16):
    torch.manual_seed(0)
    return Transformer(TransformerConfig(vocab_size=vocab_size, context=context, source_context=32, **SHAPE))


def drawer(task, seed, lengths=(1, LONGEST)):
    chance = random.Random(seed)

    def draw():
        symbols = [chance.randint(1, SYMBOLS) for _ in range(chance.randint(*lengths))]
        return symbols, task(symbols)

    return draw


def held_out(task, count=256):
    draw = drawer(task, "held out")
    return [draw() for _ in range(count)]


TASKS = {"copy": list, "reverse": lambda symbols: symbols[::-1], "sort": sorted}


@pytest.mark.parametrize("name", TASKS)
def test_it_learns_to(name):
    """Sorting has duplicates: most rows of ten symbols repeat one."""
    task = TASKS[name]
    model = train(small(), drawer(task, 1), 1000)
    right = written_right(model, held_out(task))
    assert right >= 0.98


def test_it_cannot_reverse_without_positions():
    model = small()
    model.positions.zero_()
    train(model, drawer(TASKS["reverse"], 1), 1000)
    right = written_right(model, held_out(TASKS["reverse"]))
    assert right < 0.3


def test_it_cannot_copy_without_looking_at_the_source():
    model = small()
    for block in model.blocks:
        block.cross_attention.forward = lambda x, source, blocked: torch.zeros_like(x)
    train(model, drawer(TASKS["copy"], 1), 400)
    right = written_right(model, held_out(TASKS["copy"]))
    assert right < 0.05


def test_who_saw_the_future_in_training_cannot_write(monkeypatch):
    """Without the causal mask each target can be read off the input one place ahead; alone, there is nothing ahead."""
    with monkeypatch.context() as patch:
        patch.setattr(layers, "fused_attention", lambda q, k, v, dropout=0.0: F.scaled_dot_product_attention(q, k, v))
        model = train(small(), drawer(TASKS["reverse"], 1), 400)
        pairs = held_out(TASKS["reverse"])
        logits, targets = teacher_forced(model, pairs)
        forced = (logits.argmax(-1) == targets)[targets != IGNORED].float().mean().item()
    right = written_right(model, pairs)
    assert forced > 0.98
    assert right < 0.3


MONTHS = [
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
]  # fmt: skip
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
LETTERS = " ,-./0123456789abcdefghijklmnopqrstuvwxyz"


def ordinal(day):
    return f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def spellings(date):
    """The date as people write it; of numbers alone, the month comes first."""
    year, month, day = date.year, date.month, date.day
    name, weekday = MONTHS[month - 1], DAYS[date.weekday()]
    return [
        f"{day} {name} {year}",
        f"{day} {name[:3]} {year}",
        f"{name} {day}, {year}",
        f"{name[:3]} {day} {year}",
        f"{name} {ordinal(day)}, {year}",
        f"the {ordinal(day)} of {name} {year}",
        f"{weekday}, {month}/{day}/{year % 100:02}",
        f"{weekday[:3]} {day} {name} {year}",
        f"{month}/{day}/{year % 100:02}",
        f"{month:02}/{day:02}/{year}",
        f"{year}.{month}.{day}",
    ]


def test_it_learns_to_normalise_dates_that_it_has_never_seen():
    days = [datetime.date(1970, 1, 1) + datetime.timedelta(day) for day in range(60 * 365)]  # two digits name a year
    chance = random.Random(1)
    chance.shuffle(days)
    unseen, seen = days[:512], days[512:]

    def pair(date, chance):
        source = chance.choice(spellings(date))
        return [[1 + LETTERS.index(letter) for letter in text] for text in (source, date.isoformat())]

    model = train(small(len(LETTERS) + 1), lambda: pair(chance.choice(seen), chance), 1500, lr=3e-3)
    right = written_right(model, [pair(date, random.Random(date.toordinal())) for date in unseen])
    assert right >= 0.99
