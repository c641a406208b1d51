"""Distances between sets of features: closed forms, identities, peers, and the coverage of intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from ldm.metrics import bootstrap
from ldm.metrics.attribution import attribute
from ldm.metrics.bootstrap import FEW, around, draws, of_mean, of_share, of_share_with_error
from ldm.metrics.frechet import FrechetReference, paired_replicates
from ldm.metrics.kernel import KernelReference
from ldm.metrics.manifold import NEIGHBOURS, precision_recall, recall_error
from ldm.metrics.neighbours import chance, midpoints, nearest, ranks
from ldm.metrics.sliced import SlicedReference


def normal(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean, covariance, count=50, seed=0):
    """Rows whose sample mean and covariance are exactly these."""
    x = normal(count, len(mean), seed)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T)).T)
    return x @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_of_two_gaussians_in_closed_form():
    """For diagonal covariances: the sum of (s - s')^2 and of (m - m')^2."""
    mean, other = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 0.0, 2.0]).double()
    one, two = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    expected = (mean - other).square().sum() + (one.sqrt() - two.sqrt()).square().sum()
    found = FrechetReference(with_moments(mean, one.diag())).distance(with_moments(other, two.diag(), 70, seed=1))
    assert found == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute():
    """In two dimensions tr (S S')^(1/2) = (tr S S' + 2 (det S S')^(1/2))^(1/2)."""
    one = torch.tensor([[2.0, 0.9], [0.9, 1.0]]).double()
    two = torch.tensor([[1.0, -0.7], [-0.7, 3.0]]).double()
    product = one @ two
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    zero = torch.zeros(2).double()
    found = FrechetReference(with_moments(zero, one)).distance(with_moments(zero, two, seed=1))
    assert found == pytest.approx((one.trace() + two.trace()).item() - 2 * root, rel=1e-9)


@pytest.mark.parity
@pytest.mark.parametrize("count, others", [(30, 40), (12, 300), (200, 9), (60, 60)])
def test_frechet_is_the_peers_for_more_and_for_fewer_images_than_features(count, others):
    x, y = normal(count, 24), normal(others, 24, seed=1) * 1.3 + 0.1
    statistics = [fid_features_to_statistics(features) for features in (x, y)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert FrechetReference(y).distance(x) == pytest.approx(expected, rel=1e-5)
    assert FrechetReference(x).distance(y) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [5, 100])
def test_a_set_has_distance_zero_from_itself(count):
    x = normal(count, 16)
    assert FrechetReference(x).distance(x) < 1e-9
    assert FrechetReference(x).distance(x.flip(0)) < 1e-9
    assert precision_recall(x, x) == (1.0, 1.0)
    assert nearest(x, x.flip(0)).abs().max() == 0


@pytest.mark.parametrize("count, others", [(10, 30), (40, 30), (40, 12)])
def test_replicates_are_the_distances_of_the_redrawn_rows(count, others):
    x, y = normal(count, 16) + 0.3, normal(others, 16, seed=1)
    drawn = draws(count, 5)
    frechet, kernel = FrechetReference(y), KernelReference(y)
    expected = torch.tensor([frechet.distance(x[draw]) for draw in drawn]).double()
    torch.testing.assert_close(frechet.replicates(x, drawn), expected, rtol=1e-6, atol=1e-6)
    if count <= others:
        pairs = torch.tensor([FrechetReference(y[draw]).distance(x[draw]) for draw in drawn]).double()
        torch.testing.assert_close(paired_replicates(x, y[:count], drawn), pairs, rtol=1e-6, atol=1e-6)
    every = torch.arange(count)[None]
    torch.testing.assert_close(kernel.replicates(x, every), torch.tensor([kernel.distance(x)]).double())


def test_kernel_replicates_never_compare_an_image_with_itself():
    """A draw of one image three times and another once: only pairs of different images count, each as often as it is drawn."""
    x, y = normal(4, 3), normal(6, 3, seed=1)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within = k(x[0], x[1])  # 3 + 3 ordered pairs, all the same
    among = sum(k(y[i], y[j]) for i in range(6) for j in range(6) if i != j) / 30
    across = sum(weight * sum(k(x[i], y[j]) for j in range(6)) / 6 for i, weight in ((0, 0.75), (1, 0.25)))
    found = KernelReference(y).replicates(x, torch.tensor([[0, 0, 0, 1]]))
    torch.testing.assert_close(found[0], within + among - 2 * across)


@pytest.mark.parity
def test_kernel_distance_is_the_peers_with_one_full_size_subset():
    x, y = normal(40, 16) + 0.5, normal(40, 16, seed=1)
    expected = kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=40, verbose=False)["kernel_inception_distance_mean"]
    assert KernelReference(y).distance(x) == pytest.approx(expected, rel=1e-9)


def test_the_standard_error_of_a_kernel_distance_is_the_deviation_over_new_samples():
    reference = KernelReference(normal(400, 4, seed=999) * 1.2)
    found = [(reference.distance(x), reference.standard_error(x)) for x in (normal(300, 4, seed) + 0.3 for seed in range(80))]
    values, errors = torch.tensor(found).T
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.25)


def test_kernel_distance_has_no_bias():
    """Small sets of one distribution are at distance 0 on average."""
    found = torch.tensor([KernelReference(normal(6, 4, seed)).distance(normal(5, 4, 1000 + seed)) for seed in range(400)])
    assert found.mean().abs() < 3 * found.std() / 20
    assert (found < 0).any()


def test_precision_is_of_the_generated_and_recall_of_the_real():
    """Real images in two distant clusters, generated ones in one of them: precision is 1, recall 1/2."""
    cluster = normal(20, 3)
    real = torch.cat([cluster, cluster + 1000])
    assert precision_recall(cluster + 0.001, real) == (1.0, 0.5)
    assert precision_recall(real, cluster + 0.001) == (0.5, 1.0)


@pytest.mark.parity
def test_precision_and_recall_are_the_peers():
    generated, real = normal(300, 6) * 0.9 + 0.3, normal(250, 6, seed=1)
    assert precision_recall(generated, real) == pytest.approx(
        calculate_precision_recall_full(generated.double(), real.double(), NEIGHBOURS)
    )


def test_the_error_of_recall_is_near_the_deviation_over_new_samples():
    """With fixed real images and newly drawn generated ones, it is at most 1.6 times too large. For two distant sets it is 0."""
    real = normal(400, 8, seed=99)
    sets = [normal(150, 8, seed) * 0.8 for seed in range(40)]
    values = torch.tensor([precision_recall(x, real)[1] for x in sets])
    errors = torch.tensor([recall_error(x, real) for x in sets])
    assert 0.9 < errors.mean() / values.std() < 1.6
    assert recall_error(normal(20, 3) + 1000, normal(20, 3)) == 0


def test_the_interval_of_a_share_with_an_error():
    """Its width follows from the error, or from the number of images if the error is not usable."""
    low, high = of_share_with_error(0.4, 0.01, 500)
    assert (low, high) == (pytest.approx(0.3806, abs=1e-3), pytest.approx(0.4197, abs=1e-3))
    low, high = of_share_with_error(0.5, 0.001, 500)  # the error of 250,000 independent images
    assert (high - low) == pytest.approx(2 * 1.96 * 0.001, rel=1e-3)
    assert of_share_with_error(0.5, 0.001, FEW) is None
    assert of_share_with_error(0.0, 0.0, 12) == of_share(0.0, 12)
    assert of_share_with_error(1.0, 0.1, 12) == of_share(1.0, 12)


def test_chance_is_that_of_a_random_order():
    """Groups of 3, 1 and 6 images: the share of random orders with one of the group first, or among the first 5."""
    groups = torch.tensor([0] * 3 + [1] + [2] * 6)
    random = torch.Generator().manual_seed(0)
    orders = torch.rand(20_000, 10, generator=random).argsort(1)
    for top in (1, 5):
        for group in (0, 1, 2):
            share = (groups[orders[:, :top]] == group).any(1).double().mean().item()
            assert chance(torch.tensor([group]), groups, top) == pytest.approx(share, abs=0.015)
    assert chance(torch.tensor([0, 1]), groups, 1) == pytest.approx(0.2)
    assert chance(torch.tensor([1]), torch.tensor([1, 1]), 5) == 1


def test_balls_reach_to_the_third_neighbour():
    """0, 1, 2, 3 on a line: the third neighbours are 3, 2, 2, 3 away, so the balls cover -3 to 6, ends included."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    generated = torch.tensor([[-3.0], [6.0], [6.01], [-3.01]])
    assert precision_recall(generated, real)[0] == 0.5


def test_nearest_and_ranks():
    features = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    others = torch.tensor([[3.0, 4.0], [1.0, 0.0], [9.0, 0.0], [20.0, 0.0]])
    assert nearest(features, others).tolist() == [1.0, 1.0]
    groups = torch.tensor([7, 8, 9, 7])  # two images of one caption: the nearer counts
    assert ranks(features, torch.tensor([7, 7]), others, groups).tolist() == [2, 2]
    assert ranks(features, torch.tensor([8, 8]), others, groups).tolist() == [1, 3]


def test_the_interval_of_a_mean_is_the_normal_one():
    values = normal(400, 1)[:, 0]
    low, high = of_mean(values)
    assert (high - low) == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.1)
    assert low < values.mean() < high
    assert of_mean(torch.zeros(FEW)) is None


def test_the_interval_of_a_share():
    """For 0 of 12 the upper end is z^2 / (12 + z^2); for many images it is the normal interval."""
    assert of_share(0.0, 12) == (0.0, pytest.approx(3.8415 / 15.8415, rel=1e-4))
    assert of_share(1.0, 12) == (pytest.approx(12 / 15.8415, rel=1e-4), 1.0)
    low, high = of_share(0.3, 4000)
    assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(0.21 / 4000), rel=1e-3)


def test_intervals_of_distances_cover():
    """For 60 sets of 60 images, at least 85 % of the intervals contain the mean distance, and their width is 2 * 1.96 true deviations."""
    reference = normal(300, 3, seed=99) * 1.2
    drawn = draws(60, 100)
    for side in (FrechetReference(reference), KernelReference(reference)):
        sets = [normal(60, 3, seed) + 0.5 for seed in range(60)]
        values = torch.tensor([side.distance(x) for x in sets])
        spans = [around(value, side.replicates(x, drawn)) for value, x in zip(values.tolist(), sets, strict=True)]
        low, high = torch.tensor(spans).T
        assert ((low <= values.mean()) & (values.mean() <= high)).double().mean() >= 0.85
        assert (high - low).mean().item() == pytest.approx(2 * 1.96 * values.std().item(), rel=0.25)


def test_repeated_images_do_not_shift_the_interval():
    """With fewer images than features every redrawn set is farther away; only the deviations of those distances are used."""
    x, reference = normal(20, 40), FrechetReference(normal(200, 40, seed=1))
    value, replicates = reference.distance(x), reference.replicates(x, draws(20))
    assert replicates.min() > value
    low, high = around(value, replicates)
    assert low < value < high
    assert (high - low) == pytest.approx(3.92 * replicates.std().item(), rel=0.2)


def test_the_same_draws_every_time():
    assert torch.equal(draws(10, 3), draws(10, 3))
    assert draws(50).unique().tolist() == list(range(50))
    assert (draws(2).sort(1).values == torch.tensor([0, 1])).all()  # never one image only


def test_attribution_names_the_limiting_stage():
    training, real = normal(400, 4), normal(100, 4, seed=1)
    near, far = real + 0.02 * normal(100, 4, seed=2), 3 * real + 1
    reference = FrechetReference(training)
    two = attribute(reference, real, near, far)
    assert two.line.startswith("stage two is the limit") and two.stage_two.value > 10 > two.stage_one.value
    one = attribute(reference, real, far, far)
    assert one.line.startswith("stage one is the limit") and one.stage_two.value == 0 and one.stage_two.interval == (0, 0)
    neither = attribute(reference, real, real, real.flip(0))
    assert neither.line.startswith("neither stage is the limit at 100 pictures")
    assert neither.stage_one.interval == (0, 0)  # the same indices are drawn for all three sets
    both = attribute(reference, real, real + 0.7, real + 0.99)
    assert both.line.startswith("100 pictures are too few to decide")
    assert two.real == pytest.approx(reference.distance(real)) and two.generated == pytest.approx(reference.distance(far))


def test_fewer_than_ten_images_have_no_interval() -> None:
    values = torch.linspace(0, 1, bootstrap.SMALLEST)
    assert bootstrap.of_mean(values) is not None and bootstrap.of_mean(values[1:]) is None
    assert bootstrap.of_share(0.5, bootstrap.SMALLEST) is not None and bootstrap.of_share(0.5, bootstrap.SMALLEST - 1) is None
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
    found = attribute(FrechetReference(features), features, features + 0.1, features + 0.5)
    assert found.stage_one.interval is None and found.line.startswith("9 pictures say nothing of which stage is the limit")


def gaussian(count: int, width: int, mean: float, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + mean


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_mind_of_a_shift_is_the_closed_form(shift):
    """Of two isotropic Gaussians every direction u sees a shift of u.m, whose mean square is |m|^2 / D: MIND is 3 |m|^2."""
    x, y = gaussian(4000, 64, 0.0, 11), gaussian(4000, 64, shift, 22)
    assert SlicedReference(y).distance(x) == pytest.approx(3 * 64 * shift**2, rel=0.05)
    assert SlicedReference(x).distance(x) == 0


def test_mind_of_another_spread_is_the_closed_form():
    """In one dimension W2^2 of N(0, 1) and N(0, s^2) is (s - 1)^2; every direction sees this."""
    x = gaussian(6000, 32, 0.0, 1)
    assert SlicedReference(2 * gaussian(6000, 32, 0.0, 2)).distance(x) == pytest.approx(3 * 32 * 1.0, rel=0.05)


def test_mind_draws_as_torch_fidelity_does():
    """Its generator, seed and order: a larger first set is cut before a larger second one, directions come last."""
    generated, real = gaussian(90, 8, 0.0, 1), gaussian(70, 8, 0.5, 2)
    random = torch.Generator().manual_seed(2020)
    generated_cut = generated[torch.randperm(90, generator=random)[:70]]
    directions = torch.randn(1000, 8, generator=random)
    directions = directions / directions.norm(dim=1, keepdim=True)
    sides = [np.sort((rows @ directions.T).numpy(), axis=0) for rows in (generated_cut, real)]
    expected = 3 * 8 * np.mean((sides[0] - sides[1]).astype(np.float64) ** 2)
    assert SlicedReference(real).distance(generated) == pytest.approx(expected, rel=1e-6)


def test_mind_of_a_draw_is_that_of_its_rows():
    generated, reference = gaussian(40, 8, 0.0, 1), SlicedReference(gaussian(40, 8, 0.5, 2))
    draws = torch.stack([torch.arange(40), torch.arange(40).roll(3), torch.arange(20).repeat(2)])
    found = reference.replicates(generated, draws)
    assert found[0] == found[1] == reference.distance(generated)
    assert found[2] == pytest.approx(reference.distance(generated[draws[2]]))


def test_midpoints_lie_half_way_to_the_nearest_other_one():
    latents = torch.randn(250, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    rows = latents.flatten(1).double().numpy()
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    expected = (rows + rows[distances.argmin(1)]) / 2
    np.testing.assert_allclose(midpoints(latents).flatten(1).numpy(), expected, atol=1e-6)
    twice = torch.cat([latents, latents])
    assert_close(midpoints(twice), twice)  # each has its double
