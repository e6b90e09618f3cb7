"""The noise of a row depends on nothing else, and drawing with it samples the distribution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demur.models.sampler import TokenSampler, gumbel


def shares(sampler: TokenSampler, logits: list[float], *, draws: int = 20_000) -> list[float]:
    rows = torch.tensor(logits).expand(draws, -1)
    drawn = sampler.draw(rows, torch.arange(draws) * 7919, torch.full((draws,), 3))
    return [float((drawn == token).float().mean()) for token in range(len(logits))]


def test_drawing_follows_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    found = shares(TokenSampler(temperature=0.7, top_p=1.0, top_k=None), logits.tolist())
    wanted = (logits / 0.7).softmax(-1).tolist()
    assert found == pytest.approx(wanted, abs=0.012)


def test_top_p_keeps_the_smallest_set_that_reaches_it_and_renormalises() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    found = shares(TokenSampler(temperature=1.0, top_p=0.8, top_k=None), logits)
    assert found == pytest.approx([0.625, 0.375, 0, 0], abs=0.012)
    found = shares(TokenSampler(temperature=1.0, top_p=0.81, top_k=None), logits)
    assert found == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], abs=0.012)


def test_top_p_counts_within_top_k() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert shares(TokenSampler(temperature=1.0, top_p=1.0, top_k=2), logits) == pytest.approx(
        [4 / 7, 3 / 7, 0, 0], abs=0.012
    )
    assert shares(TokenSampler(temperature=1.0, top_p=0.5, top_k=2), logits) == [1.0, 0.0, 0.0, 0.0]


def test_a_flat_distribution_wider_than_the_first_candidates_is_drawn_whole() -> None:
    found = shares(TokenSampler(temperature=1.0, top_p=0.99, top_k=None), [0.0] * 200, draws=4000)
    assert sum(share > 0 for share in found) == 198


def test_temperature_zero_is_greedy() -> None:
    assert shares(TokenSampler(temperature=0.0, top_p=0.5, top_k=None), [0.0, 3.0, 1.0], draws=5) == [0.0, 1.0, 0.0]


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel(torch.arange(500), torch.full((500,), 5), torch.arange(200).expand(500, -1)).double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.var()) == pytest.approx(1.6449, abs=0.05)
    across = torch.corrcoef(noise[:50])
    assert float((across - torch.eye(50)).abs().max()) < 0.4


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True), st.integers(0, 10**6), st.data())
def test_a_rows_noise_does_not_depend_on_its_neighbours(seeds: list[int], step: int, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(seeds) - 1))
    tokens = torch.tensor([[0, 5, 151_000]])
    together = gumbel(torch.tensor(seeds), torch.full((len(seeds),), step), tokens.expand(len(seeds), -1))
    alone = gumbel(torch.tensor([seeds[row]]), torch.tensor([step]), tokens)
    assert torch.equal(together[row], alone[0])
    assert torch.isfinite(together).all()
