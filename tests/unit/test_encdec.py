"""Encoder and decoder: padding and batch do not matter, forced steps are single steps, and they learn to copy."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from export.encdec.module import ATTENTIONS, END, EncoderDecoder, PairConfig, load_pair, save_pair
from export.model import ModelConfig
from streamer.errors import ConfigurationError, ModelError

pytestmark = pytest.mark.torch

FAMILY = [(kind, attention) for kind in ("lstm", "gru", "rnn") for attention in ATTENTIONS]


def make(kind: str = "lstm", attention: str = "general", *, directions: int = 2, layers: int = 1) -> EncoderDecoder:
    torch.manual_seed(0)
    encoder = ModelConfig(
        features=1, hidden=6, kind=kind, directions=directions, layers=layers, vocabulary=7, embedding=4
    )
    config = PairConfig(encoder, 9, 6 * directions, layers=layers, embedding=5, attention=attention, max_steps=6)
    return EncoderDecoder(config).eval()


@pytest.mark.parametrize(("kind", "attention"), FAMILY)
@pytest.mark.parametrize(("directions", "layers"), [(1, 1), (2, 2)])
def test_rows_do_not_depend_on_their_padding_or_their_neighbours(
    kind: str, attention: str, directions: int, layers: int
) -> None:
    model = make(kind, attention, directions=directions, layers=layers)
    x = torch.randint(0, 7, (4, 8, 1)).float()
    lengths = torch.tensor([8, 3, 5, 1])
    symbols = torch.randint(0, 9, (4, 6))
    with torch.no_grad():
        together = model(x, lengths, symbols)
        for row, length in enumerate(lengths.tolist()):
            alone = model(x[row : row + 1, :length], lengths[row : row + 1], symbols[row : row + 1])
            torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=1e-5)
    written, score = model.greedy(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        (alone_written,), alone_score = model.greedy(x[row : row + 1, :length], lengths[row : row + 1])
        assert written[row] == alone_written
        torch.testing.assert_close(score[row], alone_score[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "attention"), FAMILY)
def test_forced_steps_are_single_steps(kind: str, attention: str) -> None:
    model = make(kind, attention, layers=2)
    x, lengths, symbols = torch.randint(0, 7, (3, 5, 1)).float(), torch.tensor([5, 2, 4]), torch.randint(0, 9, (3, 4))
    with torch.no_grad():
        forced = model(x, lengths, symbols)
        memory, states = model.encoder(x, lengths)
        assert len(memory) == {"none": 0, "dot": 1}.get(attention, 2)
        for step in range(4):
            log_probs, states = model.decoder(symbols[:, step], states, memory, lengths)
            torch.testing.assert_close(forced[:, step], log_probs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(forced.exp().sum(-1), torch.ones(3, 4))


def test_greedy_ends_with_the_end_or_after_max_steps() -> None:
    model = make()
    x, lengths = torch.zeros(2, 3, 1), torch.tensor([3, 2])
    with torch.no_grad():
        model.decoder.head.bias[END] = 50.0
        assert model.greedy(x, lengths)[0] == [[], []]
        model.decoder.head.bias[END] = -50.0
        written, _ = model.greedy(x, lengths)
    assert [len(row) for row in written] == [6, 6]


def test_a_file_gives_the_same_model(tmp_path: Path) -> None:
    model = make("gru", "bahdanau")
    save_pair(model, tmp_path / "model.pt")
    again = load_pair(tmp_path / "model.pt")
    x, lengths = torch.ones(1, 4, 1), torch.tensor([4])
    assert again.config == model.config
    assert again.greedy(x, lengths)[0] == model.greedy(x, lengths)[0]
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="does not hold"):
        load_pair(tmp_path / "bad.pt")


def test_sizes_that_do_not_fit_are_said() -> None:
    encoder = ModelConfig(features=1, hidden=6)
    with pytest.raises(ConfigurationError, match="attention dot multiplies"):
        EncoderDecoder(PairConfig(encoder, 9, 8, attention="dot"))
    with pytest.raises(ConfigurationError, match="attention must be one of"):
        EncoderDecoder(PairConfig(encoder, 9, 6, attention="transformer"))
    with pytest.raises(ConfigurationError, match="2 labels for 9"):
        EncoderDecoder(PairConfig(encoder, 9, 6, labels=("a", "b")))
