"""The sample, the softened similarity and the discrete step against their definitions."""

import pytest
import torch

from modules import discrete
from modules.discrete import (
    balance_ratio,
    coordinate_descent,
    discrete_step,
    draw_sample,
    label_similarity,
    signs,
    similar_pairs,
    softened,
)


def random_labels(n, classes, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, classes, generator=generator) > 0.7).to(dtype)


def naive_soft_similarity(sample_labels, database_labels, sample_index):
    similarity = torch.where(sample_labels @ database_labels.T > 0, 1.0, -1.0).double()
    ratio = similarity.sum() / (1 - similarity).sum()
    return (similarity * (1 + ratio) - ratio)[:, sample_index]


def naive_update(codes, image, label, latent, similarity, alpha, beta, gamma):
    codes = codes.clone()
    bits = codes.shape[1]
    query = (bits * similarity).T @ image + gamma * image
    for k in range(bits):
        others = [j for j in range(bits) if j != k]
        pull = codes[:, others] @ image[:, others].T @ image[:, k]
        codes[:, k] = torch.sign(query[:, k] - pull + alpha * label[:, k] + beta * latent[:, k])
    return codes


WEIGHTS = {"alpha": 2.0, "beta": 0.1, "gamma": 10.0}


def random_step(bits, n_database=90, num_samples=40):
    """The arguments of a discrete step: codes, sample, labels, codes of the sample; a few rows are drawn first here."""
    generator = torch.Generator().manual_seed(bits)
    sample = torch.randperm(n_database, generator=generator)[:num_samples].sort().values
    sample_codes = torch.randn(3, num_samples, bits, generator=generator, dtype=torch.float64).tanh()
    codes = torch.randn(n_database, bits, generator=generator, dtype=torch.float64).sign()
    codes[sample[:7]] = 0
    return codes, sample, random_labels(n_database, 5, seed=3), sample_codes


def naive_step(codes, sample, labels, sample_codes, **weights):
    """B after the discrete step."""
    similarity = naive_soft_similarity(labels[sample], labels, sample)
    codes = codes.clone()
    codes[sample] = naive_update(codes[sample], *sample_codes, similarity, **weights)
    return codes


def step(codes, *arguments, **weights):
    """B after `discrete_step`, as a new tensor."""
    codes = codes.clone()
    discrete_step(codes, *arguments, **weights)
    return codes


@pytest.mark.parametrize("block", [1, 200, 2**22])
def test_softened_similarity_is_the_same_in_any_blocks(monkeypatch, block):
    monkeypatch.setattr(discrete, "BLOCK_PAIRS", block)
    labels = random_labels(90, 5, seed=1)
    index = torch.randperm(90, generator=torch.Generator().manual_seed(2))[:40]
    similarity = softened(labels[index], labels[index], balance_ratio(labels[index], labels))
    torch.testing.assert_close(similarity, naive_soft_similarity(labels[index], labels, index), rtol=1e-14, atol=0)


def test_softened_similarity_balances_the_whole_database():
    labels = torch.eye(10)[torch.arange(200) % 10]
    index = torch.arange(0, 200, 3)
    ratio = balance_ratio(labels[index], labels)
    assert ratio == pytest.approx((0.1 - 0.9) / (2 * 0.9))
    similarity = softened(labels[index], labels[index], ratio)
    assert similarity.dtype == torch.float32
    assert similarity.unique().tolist() == pytest.approx(sorted([1.0, -1 - 2 * ratio]))
    torch.testing.assert_close(softened(labels[index], labels, ratio).sum(), torch.tensor(0.0), rtol=0, atol=0.01)


@pytest.mark.parametrize("labels_per_image", [0, 1, 2, 5])
def test_similar_pairs_are_counted(labels_per_image):
    some, others = (
        torch.stack([torch.randperm(5, generator=generator) < labels_per_image for _ in range(count)]).float()
        for count, generator in ((40, torch.Generator().manual_seed(1)), (90, torch.Generator().manual_seed(2)))
    )
    assert similar_pairs(some, others) == int((some @ others.T > 0).sum())


def test_softened_similarity_of_integer_labels_and_of_a_database_of_one_class():
    labels = torch.ones(6, 1, dtype=torch.int64)
    similarity = softened(labels[:3], labels[:3], balance_ratio(labels[:3], labels))
    assert similarity.dtype == torch.float32 and torch.equal(similarity, torch.ones(3, 3))
    assert balance_ratio(labels[:3], labels) == 0


@pytest.mark.parametrize("block", [1, 100, 2**22])
@pytest.mark.parametrize("bits", [1, 2, 16])
def test_discrete_step_is_the_definition(monkeypatch, bits, block):
    monkeypatch.setattr(discrete, "BLOCK_PAIRS", block)
    codes, sample, labels, sample_codes = random_step(bits)
    inputs = [tensor.clone() for tensor in (sample, labels, sample_codes)]
    after = step(codes, sample, labels, sample_codes, **WEIGHTS)
    assert torch.equal(after, naive_step(codes, sample, labels, sample_codes, **WEIGHTS))
    assert not torch.equal(after, codes)
    others = torch.ones(len(codes), dtype=torch.bool).index_fill(0, sample, False)
    assert torch.equal(after[others], codes[others])
    assert all(torch.equal(*pair) for pair in zip(inputs, (sample, labels, sample_codes), strict=True))


def test_discrete_step_uses_every_weight():
    arguments = random_step(8)
    reference = step(*arguments, **WEIGHTS)
    for name, value in (("alpha", -2000.0), ("beta", 3000.0), ("gamma", -1000.0)):
        changed = step(*arguments, **WEIGHTS | {name: value})
        assert torch.equal(changed, naive_step(*arguments, **WEIGHTS | {name: value}))
        assert not torch.equal(changed, reference)


def test_coordinate_descent_leaves_its_input_alone():
    codes, sample, _, sample_codes = random_step(16)
    rows = codes[sample]
    before, linear = rows.clone(), 10 * sample_codes[1]
    after = coordinate_descent(rows, linear, sample_codes[0])
    # Without S and with gamma 0 the definition has the sum of alpha, U_label alone.
    nothing = torch.zeros(len(sample), len(sample), dtype=torch.float64)
    assert torch.equal(after, naive_update(rows, *sample_codes, nothing, alpha=10.0, beta=0.0, gamma=0.0))
    assert torch.equal(rows, before) and not torch.equal(after, before)


def test_a_sign_is_never_0():
    """0 stands for an item that was never encoded."""
    assert signs(torch.tensor([-2.0, -0.0, 0.0, 0.5])).tolist() == [-1, 1, 1, 1]
    assert bool(signs(torch.tensor([torch.nan, torch.inf, -torch.inf])).isnan().all())
    codes = coordinate_descent(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(3, 4))
    assert torch.equal(codes, torch.ones(2, 4))


def test_sample_depends_on_seed_and_iteration_alone():
    first = draw_sample(1000, 300, seed=1, iteration=0)
    assert torch.equal(first, draw_sample(1000, 300, seed=1, iteration=0))
    assert len(first.unique()) == 300 and first.min() >= 0 and first.max() < 1000
    assert torch.equal(first, first.sort().values)
    assert not torch.equal(first, draw_sample(1000, 300, seed=1, iteration=1))
    assert not torch.equal(first, draw_sample(1000, 300, seed=2, iteration=0))


def test_label_similarity():
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]])
    expected = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert torch.equal(label_similarity(labels), expected)
