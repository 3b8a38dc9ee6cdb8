"""The losses of the baselines against naive loops, by hand, and their gradients."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck

from baselines.adsh import adsh_loss_parts, update_database_codes
from baselines.cross_entropy import label_cross_entropy
from baselines.csq import CSQ, hash_centres
from baselines.dpsh import DPSH
from baselines.greedyhash import GreedyHash, SignWithIdentityGradient
from baselines.hashnet import HashNet, steepness
from baselines.orthohash import BatchNorm, OrthoHash, fold_batch_norm
from modules.discrete import balance_ratio

N, K, C, DATABASE = 5, 6, 4, 11
ROWS = torch.tensor([7, 2, 9, 0, 4])
SYMMETRIC = ("dpsh", "hashnet", "csq", "greedyhash", "orthohash")


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def several_labels(rows=DATABASE, seed=0):
    """Multi-hot labels; the row at `ROWS[1]` has none."""
    labels = (torch.rand(rows, C, generator=torch.Generator().manual_seed(seed)) < 0.4).double()
    labels[:, 0] += labels.sum(dim=1) == 0
    labels[2] = 0
    return labels


def outputs(rows=N, code_length=K, seed=1):
    """z, away from 0 and ±1, where the losses have no gradient."""
    z = torch.randn(rows, code_length, generator=torch.Generator().manual_seed(seed))
    return z + 0.05 * z.sign()


def make(method, labels=None, code_length=K):
    torch.manual_seed(0)
    labels = several_labels() if labels is None else labels
    return {
        "dpsh": lambda: DPSH(code_length, labels),
        "hashnet": HashNet,
        "csq": lambda: CSQ(code_length, C, seed=3),
        "greedyhash": lambda: GreedyHash(code_length, C),
        "orthohash": lambda: OrthoHash(code_length, C, seed=3),
    }[method]()


def similar(one, other):
    return 1.0 if any(a * b > 0 for a, b in zip(one.tolist(), other.tolist(), strict=True)) else 0.0


def dot(one, other):
    return sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))


def naive_pair(product, similarity):
    return math.log(1 + math.exp(product)) - similarity * product


def mean(values):
    return sum(values) / len(values) if values else 0.0


def naive_cross_entropy(logits, labels):
    """One image, logits and labels as lists."""
    if not sum(labels):
        return 0.0
    total = math.log(sum(math.exp(value) for value in logits))
    return sum(-(y / sum(labels)) * (value - total) for value, y in zip(logits, labels, strict=True))


# ---- Against naive loops ----


def test_dpsh_is_the_definition_over_the_rows_seen_so_far():
    labels, loss = several_labels(), make("dpsh")
    bank = {}
    for step, rows in enumerate((ROWS, torch.tensor([1, 7, 3]), torch.tensor([2]))):
        z = outputs(len(rows), seed=step)
        parts = loss(z, labels[rows], rows, 0.0)
        bank |= dict(zip(rows.tolist(), z, strict=True))
        pairs = [
            naive_pair(dot(z[i], other) / 2, similar(labels[row], labels[j]))
            for i, row in enumerate(rows.tolist())
            for j, other in bank.items()
        ]
        assert parts["pairs"].item() == pytest.approx(mean(pairs), rel=1e-12)
        away = [(value - math.copysign(1, value)) ** 2 for value in z.flatten().tolist()]
        assert parts["quantisation"].item() == pytest.approx(0.1 * mean(away), rel=1e-12)
    assert loss.seen.sum() == 7


def test_the_bank_of_dpsh_is_saved_and_the_labels_are_not():
    loss, again, labels = make("dpsh"), make("dpsh"), several_labels()
    loss(outputs(), labels[ROWS], ROWS, 0.0)
    assert loss.state_dict().keys() == {"bank", "seen"}
    again.load_state_dict(loss.state_dict())
    rows = torch.tensor([3])
    assert loss(outputs(1), labels[rows], rows, 0.0) == again(outputs(1), labels[rows], rows, 0.0)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.999])
def test_hashnet_is_the_definition(progress):
    z, labels = outputs(), several_labels()[ROWS]
    code = torch.tanh(math.sqrt(1 + math.floor(7.5 * progress)) * z)
    pairs = {0.0: [], 1.0: []}
    for i, j in itertools.product(range(N), repeat=2):
        similarity = similar(labels[i], labels[j])
        pairs[similarity].append(naive_pair(0.1 * dot(code[i], code[j]), similarity))
    parts = HashNet()(z, labels, ROWS, progress)
    assert parts["similar"].item() == pytest.approx(mean(pairs[1.0]), rel=1e-12)
    assert parts["dissimilar"].item() == pytest.approx(mean(pairs[0.0]), rel=1e-12)
    weighted = sum(N**2 / len(pairs[s]) * sum(pairs[s]) for s in (0.0, 1.0)) / N**2
    assert sum(parts.values()).item() == pytest.approx(weighted, rel=1e-12)


def test_hashnet_becomes_steeper_every_20_of_150_epochs():
    for epoch in range(150):
        assert steepness(epoch / 150) == math.sqrt(1 + epoch // 20)


def test_csq_is_the_definition():
    z, labels, loss = outputs(), several_labels()[ROWS], make("csq")
    distances, away = [], []
    for i in range(N):
        total = [sum(labels[i, c].item() * loss.centres[c, k].item() for c in range(C)) for k in range(K)]
        target = [math.copysign(1, t) if t else loss.ties[k].item() for k, t in enumerate(total)]
        code = torch.tanh(z[i]).tolist()
        probability = [(u + 1) / 2 for u in code]
        bits = [math.log(p) if c > 0 else math.log(1 - p) for p, c in zip(probability, target, strict=True)]
        distances.append(-mean(bits) if labels[i].any() else 0.0)
        away += [(abs(u) - 1) ** 2 for u in code]
    parts = loss(z, labels, ROWS, 0.0)
    assert parts["centre"].item() == pytest.approx(mean(distances), rel=1e-12)
    assert parts["quantisation"].item() == pytest.approx(1e-4 * mean(away), rel=1e-12)


def test_greedyhash_is_the_definition():
    z, labels, loss = outputs(), several_labels()[ROWS], make("greedyhash")
    weight = loss.classifier.weight
    assert loss.classifier.bias is None and weight.shape == (C, K)
    entropies = [
        naive_cross_entropy([dot(z[i].sign(), weight[c]) for c in range(C)], labels[i].tolist()) for i in range(N)
    ]
    parts = loss(z, labels, ROWS, 0.0)
    assert parts["classification"].item() == pytest.approx(mean(entropies), rel=1e-12)
    away = [abs(abs(value) - 1) ** 3 for value in z.flatten().tolist()]
    assert parts["quantisation"].item() == pytest.approx(0.1 * mean(away), rel=1e-12)


@pytest.mark.parametrize("margin", [0.2, 0.3])
def test_orthohash_is_the_definition(margin):
    z, labels = outputs(), several_labels()[ROWS]
    loss = OrthoHash(K, C, seed=3, margin=margin)
    entropies = []
    for i in range(N):
        cosines = [dot(z[i], t) / math.sqrt(dot(z[i], z[i]) * dot(t, t)) for t in loss.targets]
        logits = [8 * (cosine - margin * y) for cosine, y in zip(cosines, labels[i].tolist(), strict=True)]
        entropies.append(naive_cross_entropy(logits, labels[i].tolist()))
    (part,) = loss(z, labels, ROWS, 0.0).values()
    assert part.item() == pytest.approx(mean(entropies), rel=1e-12)


def naive_softened(labels, database_labels, sample):
    signed = [[2 * similar(labels[i], other) - 1 for other in database_labels] for i in sample]
    total = sum(map(sum, signed))
    ratio = total / sum(1 - value for line in signed for value in line)
    return [[value * (1 + ratio) - ratio for value in line] for line in signed]


def test_adsh_is_the_definition():
    labels, sample = several_labels(), [0, 1, 2, 4, 7, 9]
    codes = outputs(DATABASE, seed=5).sign()
    codes[4] = 0  # never drawn
    softened = dict(zip(sample, naive_softened(labels, labels, sample), strict=True))
    code = outputs().tanh()
    pairs, away = 0.0, 0.0
    for i, row in enumerate(ROWS.tolist()):
        pairs += sum((dot(code[i], codes[j]) - K * softened[row][j]) ** 2 for j in range(DATABASE))
        away += sum((a - b) ** 2 for a, b in zip(code[i].tolist(), codes[row].tolist(), strict=True))
    ratio = balance_ratio(labels[sample], labels)
    parts = adsh_loss_parts(code, labels[ROWS], ROWS, codes, labels, ratio)
    assert parts["similarity"].item() == pytest.approx(pairs / (N * DATABASE), rel=1e-12)
    assert parts["quantisation"].item() == pytest.approx(200 * away / (N * DATABASE), rel=1e-12)


@pytest.mark.parametrize("block", [4, 2**22])
def test_the_discrete_step_of_adsh_is_the_definition(block, monkeypatch):
    monkeypatch.setattr("modules.discrete.BLOCK_PAIRS", block)
    labels, sample = several_labels(), torch.tensor([0, 1, 2, 4, 7, 9])
    codes, code = torch.zeros(DATABASE, K), outputs(len(sample)).tanh()
    softened = torch.tensor(naive_softened(labels, labels, sample.tolist()))
    for _ in range(2):  # from V = 0 and from V = ±1
        expected, spread = codes.clone(), torch.zeros(DATABASE, K)
        spread[sample] = code  # Ū
        linear = K * softened.T @ code + 200 * spread
        for k in range(K):
            for j in range(DATABASE):
                others = [other for other in range(K) if other != k]
                overlap = sum(expected[j, other] * dot(code[:, other], code[:, k]) for other in others)
                expected[j, k] = torch.sign(linear[j, k] - overlap)
        update_database_codes(codes, sample, labels, code)
        assert torch.equal(codes, expected) and set(codes.unique().tolist()) == {-1, 1}


# ---- By hand ----


def test_losses_of_two_images_by_hand():
    z, ln2 = torch.tensor([[2.0, -1.0], [0.0, 1.0]]), math.log(2)
    rows = torch.tensor([0, 1])
    same, other = torch.tensor([[1.0, 0], [1, 0]]), torch.eye(2)
    # θ is 5/2 and 1/2 on the diagonal and −1/2 beside it.
    softplus = {x: math.log(1 + math.exp(x)) for x in (2.5, 0.5, -0.5)}
    parts = DPSH(2, other)(z, other, rows, 0.0)
    pairs = softplus[2.5] - 2.5 + softplus[0.5] - 0.5 + 2 * softplus[-0.5]
    assert parts["pairs"].item() == pytest.approx(pairs / 4)
    # (2 − 1)², (−1 + 1)², (0 − sign 0)², (1 − 1)²
    assert parts["quantisation"].item() == pytest.approx(0.1 * 1 / 4)
    zero = HashNet()(torch.zeros(2, 2), other, rows, 0.0)
    assert zero["similar"].item() == pytest.approx(ln2) and zero["dissimilar"].item() == pytest.approx(ln2)
    assert CSQ(2, 2, seed=0)(torch.zeros(2, 2), same, rows, 0.0)["centre"].item() == pytest.approx(ln2)
    greedy = GreedyHash(2, 2)
    torch.nn.init.zeros_(greedy.classifier.weight)
    parts = greedy(z, torch.ones(2, 2), rows, 0.0)  # two labels each: the target is ½, ½
    assert parts["classification"].item() == pytest.approx(ln2)
    assert parts["quantisation"].item() == pytest.approx(0.1 * 2 / 4)  # |2| − 1 and |0| − 1
    ortho = OrthoHash(2, 2, seed=0)
    ortho.targets.copy_(torch.tensor([[1.0, 1], [1, -1]]))
    (part,) = ortho(torch.tensor([[3.0, 3]]), torch.tensor([[1.0, 0]]), rows[:1], 0.0).values()
    assert part.item() == pytest.approx(math.log(1 + math.exp(-8 * 0.8)))  # logits 8 (1 − 0.2) and 0


def test_large_outputs_overflow_nowhere():
    z, labels = 1e4 * outputs(), several_labels()
    for method in SYMMETRIC:
        for dtype in (torch.float32, torch.float64):
            value = z.detach().clone().to(dtype).requires_grad_()
            torch.set_default_dtype(dtype)
            parts = make(method, labels.to(dtype))(value, labels[ROWS].to(dtype), ROWS, 0.99)
            sum(parts.values()).backward()
            assert all(torch.isfinite(part) for part in parts.values()) and torch.isfinite(value.grad).all()
            assert value.grad.dtype == dtype == sum(parts.values()).dtype


# ---- Gradients ----


@pytest.mark.parametrize("method", ["hashnet", "csq", "orthohash"])
def test_gradients(method):
    labels, loss = several_labels()[ROWS], make(method)
    for part in range(len(loss(outputs(), labels, ROWS, 0.5))):
        assert gradcheck(
            lambda z, part=part: list(loss(z, labels, ROWS, 0.5).values())[part], outputs().requires_grad_()
        )


def test_gradient_of_dpsh_treats_the_bank_as_constant():
    labels = several_labels()

    def fixed_bank(z, part):
        loss = make("dpsh")
        loss.bank[[1, 3]] = outputs(2, seed=8)
        loss.seen[[1, 3]] = True
        return loss(z, labels[ROWS], ROWS, 0.0)[part]

    z, other = outputs().requires_grad_(), outputs().clone()
    similarity = torch.tensor([[similar(labels[i], labels[j]) for j in (1, 3, *ROWS.tolist())] for i in ROWS])

    def apart(z):
        bank = torch.cat((outputs(2, seed=8), other))
        product = z @ bank.T / 2
        return (torch.logaddexp(product, torch.zeros(())) - similarity * product).mean()

    assert gradcheck(apart, z)
    (expected,) = torch.autograd.grad(apart(z), z)
    (gradient,) = torch.autograd.grad(fixed_bank(z, "pairs"), z)
    torch.testing.assert_close(gradient, expected)
    assert gradcheck(lambda z: fixed_bank(z, "quantisation"), z)


def test_gradient_of_greedyhash_passes_through_the_sign():
    z, labels, loss = outputs().requires_grad_(), several_labels()[ROWS], make("greedyhash")
    assert gradcheck(lambda z: loss(z, labels, ROWS, 0.0)["quantisation"], z)
    code = z.detach().sign().requires_grad_()
    assert gradcheck(lambda code: label_cross_entropy(loss.classifier(code), labels), code)
    (at_code,) = torch.autograd.grad(label_cross_entropy(loss.classifier(code), labels), code)
    (at_z,) = torch.autograd.grad(loss(z, labels, ROWS, 0.0)["classification"], z)
    assert torch.equal(at_z, at_code) and at_z.any()
    assert torch.equal(SignWithIdentityGradient.apply(torch.tensor([-2.0, 0.0, 3.0])), torch.tensor([-1.0, 0.0, 1.0]))


def test_gradient_of_adsh():
    labels, codes = several_labels(), outputs(DATABASE, seed=5).sign()
    for part in ("similarity", "quantisation"):
        assert gradcheck(
            lambda code, part=part: adsh_loss_parts(code, labels[ROWS], ROWS, codes, labels, -0.3)[part],
            outputs().tanh().requires_grad_(),
        )


# ---- Edge cases ----


@pytest.mark.parametrize("method", SYMMETRIC)
@pytest.mark.parametrize("labels", ["all similar", "none similar", "unlabelled"])
def test_a_batch_of_one_kind_of_pair_gives_finite_losses(method, labels):
    database = {
        "all similar": torch.ones(DATABASE, C),
        "none similar": torch.eye(C)[[0, 1, 2, 3] * 3][:DATABASE],
        "unlabelled": torch.zeros(DATABASE, C),
    }[labels]
    rows = torch.tensor([0, 1, 2, 3])
    z = outputs(4).requires_grad_()
    parts = make(method, database)(z, database[rows], rows, 0.0)
    sum(parts.values()).backward()
    assert torch.isfinite(z.grad).all() and all(torch.isfinite(part) and part >= 0 for part in parts.values())
    if method == "hashnet":
        assert (parts["dissimilar"] == 0) == (labels == "all similar")
        assert (parts["similar"] == 0) == (labels == "unlabelled")
    if labels == "unlabelled" and method in ("csq", "greedyhash", "orthohash"):
        assert next(iter(parts.values())) == 0


@pytest.mark.parametrize("method", ["csq", "greedyhash", "orthohash"])
def test_an_unlabelled_image_adds_nothing_to_the_classification(method):
    z, labels, loss = outputs().requires_grad_(), several_labels()[ROWS], make(method)
    assert not labels[1].any()
    name = "centre" if method == "csq" else "classification"
    part = loss(z, labels, ROWS, 0.0)[name]
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(part, loss(z[kept], labels[kept], ROWS[kept], 0.0)[name] * 4 / 5)
    (gradient,) = torch.autograd.grad(part, z)
    assert not gradient[1].any() and gradient[kept].any(dim=1).all()


def test_adsh_where_every_pair_is_similar_and_where_none_is():
    codes, code = outputs(DATABASE).sign(), outputs().tanh()
    for labels in (torch.ones(DATABASE, C), torch.zeros(DATABASE, C)):
        ratio = balance_ratio(labels[ROWS], labels)
        parts = adsh_loss_parts(code, labels[ROWS], ROWS, codes, labels, ratio)
        assert all(torch.isfinite(part) for part in parts.values())


# ---- Fixed centres and targets ----


def distances(centres):
    return [int((a != b).sum()) for a, b in itertools.combinations(centres, 2)]


@pytest.mark.parametrize(("code_length", "num_classes"), [(16, 10), (32, 38), (64, 128), (1, 2)])
def test_hadamard_centres_differ_in_half_of_the_bits_or_all(code_length, num_classes):
    centres = hash_centres(code_length, num_classes, seed=0)
    assert centres.shape == (num_classes, code_length) and set(centres.unique().tolist()) <= {-1, 1}
    assert set(distances(centres)) <= {code_length // 2, code_length} - {0}
    assert torch.equal(centres, hash_centres(code_length, num_classes, seed=1)), "nothing is drawn"
    half = min(code_length, num_classes)
    assert torch.equal(centres[half:], -centres[: num_classes - half])


@pytest.mark.parametrize(("code_length", "num_classes"), [(12, 10), (24, 81), (13, 10), (8, 17), (48, 1), (1, 5)])
def test_other_centres_are_balanced_seeded_and_the_best_of_many(code_length, num_classes, monkeypatch):
    centres = hash_centres(code_length, num_classes, seed=0)
    assert centres.shape == (num_classes, code_length) and set(centres.unique().tolist()) <= {-1, 1}
    assert (centres.sum(dim=1).abs() == code_length % 2).all()
    assert torch.equal(centres, hash_centres(code_length, num_classes, seed=0))
    if num_classes > 1:
        assert not torch.equal(centres, hash_centres(code_length, num_classes, seed=1))
        monkeypatch.setattr("baselines.csq.TRIES", 1)
        single = [min(distances(hash_centres(code_length, num_classes, seed))) for seed in range(5)]
        assert min(distances(centres)) >= max(single)


def test_the_target_of_several_labels_is_the_majority_and_ties_are_fixed():
    loss = make("csq")
    loss.centres.copy_(torch.tensor([[1.0, 1, 1, -1, -1, -1], [1, -1, 1, -1, 1, -1], [1, 1, -1, -1, -1, 1], [-1] * 6]))
    labels = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]])
    targets = loss.targets(labels)
    assert torch.equal(targets[0], loss.centres[0])
    assert targets[1].tolist() == [1, 1, 1, -1, -1, -1]
    assert torch.equal(targets[2], torch.cat((loss.ties[:3], -torch.ones(3))))
    assert torch.equal(loss.ties, make("csq").ties) and set(loss.ties.tolist()) <= {-1, 1}


def test_the_targets_of_orthohash_are_seeded_fair_coins():
    targets = OrthoHash(64, 500, seed=1).targets
    assert targets.shape == (500, 64) and set(targets.unique().tolist()) == {-1, 1}
    assert abs(targets.mean().item()) < 4 / math.sqrt(targets.numel())
    assert torch.equal(targets, OrthoHash(64, 500, seed=1).targets)
    assert not torch.equal(targets, OrthoHash(64, 500, seed=2).targets)


# ---- Batch norm of OrthoHash ----


def test_the_folded_batch_norm_gives_the_same_output():
    torch.manual_seed(0)
    linear, norm = torch.nn.Linear(7, K), BatchNorm(K)
    torch.nn.init.normal_(norm.weight)  # a negative weight inverts a bit
    torch.nn.init.normal_(norm.bias)
    for _ in range(5):
        norm(linear(torch.randn(20, 7)))
    folded = fold_batch_norm(linear, norm)
    assert norm.training and folded.state_dict().keys() == {"weight", "bias"}
    features = torch.randn(50, 7)
    torch.testing.assert_close(folded(features), norm.eval()(linear(features)))
    assert (norm.weight < 0).any() and isinstance(folded.weight, torch.nn.Parameter)


def test_batch_norm_of_one_image_uses_the_running_statistics():
    norm, reference = BatchNorm(K), torch.nn.BatchNorm1d(K)
    z = outputs(8)
    for several in (z, z[:2]):
        torch.testing.assert_close(norm(several), reference(several))
    before = norm.running_mean.clone()
    torch.testing.assert_close(norm(z[:1]), reference.eval()(z[:1]))
    assert torch.equal(norm.running_mean, before)
