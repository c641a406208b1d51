"""Steps drawn in proportion to their losses: unbiased, the same on any number of processes, the same after a resume."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.importance import ImportanceSteps, LossMemory
from ldm.diffusion.network_input import TableIndex
from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import EpsPrediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.time_density import UniformSteps, UniformTime
from ldm.diffusion.weighting import Constant

F64 = torch.float64
PROCESS = DiscreteVP(num_steps=4)
STEPS = torch.arange(1, 5, dtype=F64) / 4


def streams(count: int, step: int = 0) -> Streams:
    return Streams.of("train", step, samples=range(count))


def memory_of(*losses: list[float], even_share: float = 0.001) -> LossMemory:
    """A memory that has recorded the losses of steps 1 to 4, one list after the other."""
    density = ImportanceSteps(history=len(losses[-2:]), even_share=even_share)
    memory = density.begin(PROCESS)
    assert isinstance(memory, LossMemory)
    for one in losses:
        memory.record(STEPS, torch.tensor(one))
    return memory


def test_probability_follows_the_second_moment_of_the_latest_losses() -> None:
    """Nichol & Dhariwal 2021, eq. 18: sqrt(E[L^2]) over the history (here 2), mixed with a uniform share."""
    memory = memory_of([9, 9, 9, 9], [3, 1, 0, 2], [4, 1, 0, 2], even_share=0.2)
    size = torch.tensor([12.5**0.5, 1, 0, 2], dtype=F64)
    assert_close(memory.probabilities(), 0.2 / 4 + 0.8 * size / size.sum())


def test_uniform_until_all_steps_have_losses() -> None:
    memory = memory_of([9, 1, 1, 1], [9, 1, 1, 1])
    assert memory.probabilities().max() > 0.6
    memory.seen[2] = 1
    assert memory.probabilities().tolist() == [0.25] * 4
    assert torch.equal(memory.draw(streams(100), PROCESS), UniformSteps().draw(streams(100), PROCESS))


def test_steps_are_drawn_with_their_probabilities_and_weighted_back() -> None:
    memory = memory_of([8, 4, 2, 2], even_share=0.01)
    t = memory.draw(streams(4000), PROCESS)
    counts = torch.bincount((t * 4).long(), minlength=5)[1:] / 4000
    assert_close(counts.double(), memory.probabilities(), rtol=0, atol=4 * 0.008)
    assert_close((memory.probabilities() * memory.weight(STEPS) * STEPS).sum(), STEPS.mean())  # no bias, whatever the loss


def test_several_processes_record_what_one_would() -> None:
    """Each of two records its share; the sum of torch.distributed is computed by hand."""
    losses = torch.rand(7, generator=torch.Generator().manual_seed(0))
    alone = memory_of([8, 4, 2, 2])
    alone.learn(losses, streams(7), PROCESS, 7, lambda tensors: None)

    sent: list[Tensor] = []
    for start, stop in ((0, 4), (4, 7)):
        memory_of([8, 4, 2, 2]).learn(
            losses[start:stop], streams(7).part(start, stop), PROCESS, 7, lambda tensors: sent.append(tensors[0].clone())
        )
    for _ in range(2):
        one = memory_of([8, 4, 2, 2])
        one.learn(losses[:4], streams(7).part(0, 4), PROCESS, 7, lambda tensors: tensors[0].copy_(sent[0] + sent[1]))
        assert_close(one.losses, alone.losses, rtol=1e-6, atol=0)
        assert torch.equal(one.seen, alone.seen)


def test_recorded_losses_are_unweighted() -> None:
    memory = memory_of([8, 4, 2, 2], even_share=0.5)
    t = memory.draw(streams(50), PROCESS)
    cost = t + 1
    memory.learn((cost * memory.weight(t)).float(), streams(50), PROCESS, 50, lambda tensors: None)
    assert_close(memory.losses[:, 0], STEPS + 1, rtol=1e-6, atol=0)


def test_the_loss_is_weighted_back() -> None:
    """Steps that are drawn more often count less: each sample's loss is the loss at its step times the memory's weight."""
    memory, x0 = memory_of([8, 4, 2, 2], even_share=0.5), torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    parts = {"process": PROCESS, "prediction": EpsPrediction(), "weighting": Constant(), "network_input": TableIndex()}
    t = memory.draw(streams(40), PROCESS)
    drawn = Objective(density=memory, **parts)(lambda x, network_time, condition: 0.3 * x, x0, Condition(), streams(40))

    class Same(UniformSteps):
        def draw(self, streams: Streams, process: DiscreteVP) -> Tensor:
            return t

    plain = Objective(density=Same(), **parts)(lambda x, network_time, condition: 0.3 * x, x0, Condition(), streams(40))
    assert memory.weight(t).unique().numel() == 3
    assert_close(drawn, plain * memory.weight(t).float())


def test_a_resumed_memory_draws_the_same() -> None:
    before, after = memory_of([8, 4, 2, 2]), memory_of([1, 1, 1, 1])
    assert not torch.equal(before.draw(streams(99), PROCESS), after.draw(streams(99), PROCESS))
    after.load_state_dict(before.state_dict())
    assert torch.equal(before.draw(streams(99), PROCESS), after.draw(streams(99), PROCESS))


def test_before_it_begins_it_draws_steps_alike_and_the_bound_may_be_trained() -> None:
    """Defaults are those of Nichol & Dhariwal 2021, sec. 3.3, and their code."""
    density = ImportanceSteps()
    assert (density.history, density.even_share) == (10, 0.001)
    assert torch.equal(density.draw(streams(99), PROCESS), UniformSteps().draw(streams(99), PROCESS))
    Objective(process=PROCESS, prediction=EpsPrediction(), density=density, loss="vlb")  # a sum over the chain's steps
    with pytest.raises(UserError, match="sum over the chain's steps"):
        Objective(process=PROCESS, prediction=EpsPrediction(), density=UniformTime(), loss="vlb")


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="history >= 1"):
        ImportanceSteps(history=0)
    with pytest.raises(UserError, match="even_share <= 1"):
        ImportanceSteps(even_share=0.0)
