"""Trained weights of others run in our layers, and what an Elman network cannot hold: make test-slow."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scratchlm.data.corpora import pip_install
from scratchlm.evaluation import loss_sum
from scratchlm.models import MODELS
from scratchlm.models.gru import GatedRecurrentUnit
from tasks import COPY_VOCABULARY, copy_memory

pytestmark = pytest.mark.slow

GRAPHEMES = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
STRESSED = [vowel + stress for vowel in VOWELS.split() for stress in "012"]
PHONEMES = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*STRESSED, *CONSONANTS.split(), "UW"])]
LONGEST = 20
KNOWN = {  # as dictionaries have them
    "mother": "M AH1 DH ER0",
    "apple": "AE1 P AH0 L",
    "bridge": "B R IH1 JH",
    "center": "S EH1 N T ER0",
    "dinner": "D IH1 N ER0",
    "garden": "G AA1 R D AH0 N",
    "horse": "HH AO1 R S",
    "money": "M AH1 N IY0",
    "north": "N AO1 R TH",
    "music": "M Y UW1 Z IH0 K",
}
WORDS = """
about above across after again air animal answer apple arm back ball bank bear begin better bird black blood board boat
body bone book bottom bread bridge bright bring brother brown build butter camera candle carry castle center chance
change circle clear cloud coffee color copper corner cotton country cover dance danger daughter dinner doctor dollar
dream early east engine evening family father finger finish flower forest garden glass green ground hammer happy heart
holiday horse hospital island journey kitchen language laughter letter little machine market meadow message middle
minute mirror modern money monkey morning mother mountain music nature never north number object ocean office orange
"""


@pytest.fixture(scope="module")
def g2p(tmp_path_factory):
    """The arrays of g2p_en's trained GRU encoder-decoder, its file unpacked and never imported."""
    folder = tmp_path_factory.mktemp("g2p")
    pip_install("g2p-en==2.1.0", str(folder))
    file = Path(folder) / "g2p_en" / "checkpoint20.npz"
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith("b8af35e4")
    arrays = np.load(file, allow_pickle=False)
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def spell(weights, run, word):
    """The phonemes of a word, taken greedily. `run(part, x, hidden)` is the GRU: (T, 1, I) -> (T, 1, H)."""
    letters = torch.tensor([GRAPHEMES.index(letter) for letter in [*word, "</s>"]])
    hidden = run("enc", weights["enc_emb"][letters][:, None], torch.zeros(1, 256))[-1]
    spelled = ["<s>"]
    while spelled[-1] != "</s>" and len(spelled) <= LONGEST:
        x = weights["dec_emb"][PHONEMES.index(spelled[-1])]
        hidden = run("dec", x[None, None], hidden)[-1]
        spelled.append(PHONEMES[int((hidden[0] @ weights["fc_w"].T + weights["fc_b"]).argmax())])
    return " ".join(spelled[1:]).removesuffix(" </s>")


@torch.no_grad()
def test_trained_weights_of_g2p_spell_as_in_torchs_gru(g2p):
    ours, theirs = {}, {}
    for part in ("enc", "dec"):
        ours[part], theirs[part] = GatedRecurrentUnit(256, 256), nn.GRU(256, 256)
        arrays = [g2p[f"{part}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
        layer = ours[part]
        mine = (layer.input.weight, layer.recurrent.weight, layer.input.bias, layer.recurrent.bias)
        for array, one, other in zip(arrays, mine, theirs[part].parameters(), strict=True):
            one.copy_(array)
            other.copy_(array)
    words = WORDS.split()
    assert len(words) >= 100
    spelled = {word: spell(g2p, lambda part, x, h: ours[part](x, (h,))[0], word) for word in words}
    assert spelled == {word: spell(g2p, lambda part, x, h: theirs[part](x, h[None])[0], word) for word in words}
    right = [word for word, phonemes in KNOWN.items() if spelled[word] == phonemes]
    assert len(right) >= 8, {word: spelled[word] for word in KNOWN}


def loss_of_copying(length, gap):
    """Nats for each symbol that an Elman network loses at the end of a short training; ln 8 without a memory."""
    torch.manual_seed(0)
    model = MODELS["rnn"](MODELS["rnn"].Config(vocab_size=COPY_VOCABULARY, dim=32, hidden_dim=64, depth=2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(400):
        total, count = loss_sum(model, copy_memory(16, gap, generator, length))
        optimizer.zero_grad()
        (total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(total.item() / count)
    return sum(losses[-50:]) / 50


def test_an_elman_network_carries_three_symbols_over_two_steps_but_not_ten_over_200():
    """Paper: Arjovsky et al. 2016, figure 1."""
    assert loss_of_copying(3, 2) < 0.1
    assert loss_of_copying(10, 200) == pytest.approx(math.log(8), abs=0.05)
