"""The sample, the softened similarity and the discrete step against their definitions."""

import pytest
import torch

from modules import discrete
from modules.discrete import balance_ratio, draw_sample, label_similarity, soft_similarity, update_codes


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


@pytest.mark.parametrize("block", [1, 200, 2**22])
def test_soft_similarity_is_the_same_in_any_blocks(monkeypatch, block):
    monkeypatch.setattr(discrete, "BLOCK_PAIRS", block)
    labels = random_labels(90, 5, seed=1)
    index = torch.randperm(90, generator=torch.Generator().manual_seed(2))[:40]
    expected = naive_soft_similarity(labels[index], labels, index)
    torch.testing.assert_close(soft_similarity(labels[index], labels, index), expected, rtol=1e-14, atol=0)


def test_soft_similarity_balances_the_whole_database():
    labels = torch.eye(10)[torch.arange(200) % 10]
    index = torch.arange(0, 200, 3)
    ratio = balance_ratio(labels[index], labels)
    assert ratio == pytest.approx((0.1 - 0.9) / (2 * 0.9))
    similarity = soft_similarity(labels[index], labels, index)
    assert similarity.dtype == torch.float32
    assert similarity.unique().tolist() == pytest.approx(sorted([1.0, -1 - 2 * ratio]))


def test_soft_similarity_of_integer_labels_and_of_a_database_of_one_class():
    labels = torch.ones(6, 1, dtype=torch.int64)
    assert torch.equal(soft_similarity(labels[:3], labels, torch.arange(3)), torch.ones(3, 3))


@pytest.mark.parametrize("bits", [1, 2, 16])
def test_update_codes_is_the_definition(bits):
    generator = torch.Generator().manual_seed(bits)
    image, label, latent = (torch.randn(40, bits, generator=generator, dtype=torch.float64).tanh() for _ in range(3))
    codes = torch.randn(40, bits, generator=generator, dtype=torch.float64).sign()
    codes[:7] = 0  # rows drawn for the first time
    labels = random_labels(40, 5, seed=3)
    similarity = naive_soft_similarity(labels, labels, torch.arange(40))
    before = codes.clone()
    weights = {"alpha": 2.0, "beta": 0.1, "gamma": 10.0}
    after = update_codes(codes, image, label, latent, similarity, **weights)
    assert torch.equal(after, naive_update(codes, image, label, latent, similarity, **weights))
    assert torch.equal(codes, before)
    assert not torch.equal(after, before)


def test_update_codes_uses_the_transposed_similarity_and_every_weight():
    generator = torch.Generator().manual_seed(0)
    image, label, latent = (torch.randn(30, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    codes = torch.zeros(30, 8, dtype=torch.float64)
    similarity = torch.randn(30, 30, generator=generator, dtype=torch.float64) / 100  # not symmetric
    weights = {"alpha": 2.0, "beta": 0.1, "gamma": 10.0}
    reference = update_codes(codes, image, label, latent, similarity, **weights)
    assert torch.equal(reference, naive_update(codes, image, label, latent, similarity, **weights))
    assert not torch.equal(reference, update_codes(codes, image, label, latent, 40 * similarity.T, **weights))
    for name, value in (("alpha", -20.0), ("beta", 30.0), ("gamma", -10.0)):
        changed = update_codes(codes, image, label, latent, similarity, **weights | {name: value})
        assert torch.equal(changed, naive_update(codes, image, label, latent, similarity, **weights | {name: value}))
        assert not torch.equal(changed, reference)


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
