"""The ablation switches: each changes what it names, and nothing is changed when none is given."""

import json

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import main_mmasia
import main_tomm
import run
from modules import CycleNet, cycle_loss_parts, discrete
from modules.discrete import discrete_step
from modules.gcn.layers import normalise_adjacency
from modules.gcn.models import GraphHash
from modules.losses import code_loss
from tests.modules.test_discrete import naive_soft_similarity, naive_step, random_labels
from tests.small_networks import shrink

TINY = ["--dataset", "digits", "--image-size", "16", "--num-samples", "60", "--max-iter", "2", "--max-epoch", "2"]
TINY += ["--batch-size", "24", "--augment", "crop", "--code-length", "8", "--save-iter", "0"]
WEIGHTS = {"alpha": 2.0, "beta": 0.1, "gamma": 10.0}


def codes_of_a_batch():
    generator = torch.Generator().manual_seed(0)
    latent, image, label, image_rec, label_rec = torch.rand(5, 6, 4, generator=generator, dtype=torch.float64) * 2 - 1
    similarity = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).double()
    return [latent, image, label, image_rec, label_rec, image.sign(), similarity]


def test_normalised_adjacency_is_the_definition():
    similarity = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    degree = similarity.sum(dim=1)
    expected = torch.zeros(4, 4)
    for i in range(3):
        for j in range(3):
            expected[i, j] = similarity[i, j] / (degree[i] * degree[j]).sqrt()
    torch.testing.assert_close(normalise_adjacency(similarity), expected)


def test_the_latent_graph_takes_its_switches():
    torch.manual_seed(0)
    plain = GraphHash(5, 7, 4).eval()
    x, similarity = torch.randn(6, 5), codes_of_a_batch()[-1].float()
    code, features = plain(x, similarity)
    tanh = GraphHash(5, 7, 4, latent="tanh").eval()
    tanh.load_state_dict(plain.state_dict())
    torch.testing.assert_close(tanh(x, similarity)[0], torch.tanh(torch.logit(code)))
    normalised = GraphHash(5, 7, 4, adjacency="normalised").eval()
    normalised.load_state_dict(plain.state_dict())
    torch.testing.assert_close(normalised(x, similarity)[1], plain(x, normalise_adjacency(similarity))[1])
    assert not torch.allclose(normalised(x, similarity)[1], features)


def test_the_cycle_network_passes_its_switches_on():
    network = CycleNet(4, image_dim=6, label_dim=5, latent_dim=7, hidden_dim=3, latent="tanh", adjacency="normalised")
    assert network.gcn.activation is torch.tanh and network.gcn.normalised
    network = CycleNet(4, image_dim=6, label_dim=5, latent_dim=7, hidden_dim=3)
    assert network.gcn.activation is torch.sigmoid and not network.gcn.normalised


def test_signed_similarity_is_the_target_of_the_three_code_terms():
    batch = codes_of_a_batch()
    plain, signed = cycle_loss_parts(*batch, gamma=10.0), cycle_loss_parts(*batch, gamma=10.0, signed=True)
    latent, image, label, *_, b, similarity = batch
    for name, code in (("image", image), ("label", label), ("latent", latent)):
        assert signed[name] == code_loss(code, b, 2 * similarity - 1, 10.0) != plain[name]
    assert signed["image_rec"] == plain["image_rec"]


def test_detached_targets_keep_their_value_and_lose_their_gradient():
    batch = codes_of_a_batch()
    image = batch[1].requires_grad_()
    detached = cycle_loss_parts(*batch, gamma=10.0, detach_targets=True)
    assert detached["image_rec"] == cycle_loss_parts(*batch, gamma=10.0)["image_rec"]
    assert not detached["image_rec"].requires_grad and detached["image"].requires_grad
    cycle_loss_parts(*batch, gamma=10.0)["image_rec"].backward()
    assert image.grad.abs().sum() > 0


def test_without_cycle_terms_three_are_left():
    parts = cycle_loss_parts(*codes_of_a_batch(), gamma=10.0, cycle_terms=False)
    assert list(parts) == ["image", "label", "latent"]


@pytest.mark.parametrize("block", [1, 100, 2**22])
def test_the_discrete_step_does_not_depend_on_its_blocks(monkeypatch, block):
    monkeypatch.setattr(discrete, "BLOCK_PAIRS", block)
    labels = random_labels(90, 5, seed=1)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randperm(90, generator=generator)[:40].sort().values
    sample_codes = torch.rand(3, 40, 12, generator=generator, dtype=torch.float64) * 2 - 1
    codes = torch.randint(-1, 2, (90, 12), generator=generator).double()
    expected = naive_step(codes, sample, labels, sample_codes, **WEIGHTS)
    discrete_step(codes, sample, labels, sample_codes, **WEIGHTS)
    assert torch.equal(codes, expected)


def test_the_update_of_all_rows_is_the_full_database_update(monkeypatch):
    monkeypatch.setattr(discrete, "BLOCK_PAIRS", 300)
    labels = random_labels(70, 5, seed=1)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randperm(70, generator=generator)[:30].sort().values
    sample_codes = torch.rand(3, 30, 6, generator=generator, dtype=torch.float64) * 2 - 1
    others = torch.rand(3, 70, 6, generator=generator, dtype=torch.float64) * 2 - 1
    codes = torch.randint(-1, 2, (70, 6), generator=generator).double()

    similarity = naive_soft_similarity(labels[sample], labels, torch.arange(70))  # [n, n_database]
    of_rows = others.clone()
    of_rows[:, sample] = sample_codes
    u = sample_codes[0]
    query = (6 * similarity).T @ u + 10 * of_rows[0]
    expected = codes.clone()
    for k in range(6):
        rest = [j for j in range(6) if j != k]
        pull = expected[:, rest] @ u[:, rest].T @ u[:, k]
        expected[:, k] = torch.sign(query[:, k] - pull + 2 * of_rows[1, :, k] + 0.1 * of_rows[2, :, k])
    discrete_step(codes, sample, labels, sample_codes, others, **WEIGHTS)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
def test_bfloat16_is_for_the_networks_and_float32_for_losses_and_weights(method, monkeypatch, tmp_path, capsys):
    seen = set()

    def watch(main, name):
        real = getattr(main, name)

        def watched(*arguments, **options):
            seen.update(value.dtype for value in arguments if isinstance(value, torch.Tensor))
            return real(*arguments, **options)

        monkeypatch.setattr(main, name, watched)

    main = {"main_mmasia": main_mmasia, "main_tomm": main_tomm}[method]
    for name in ("cycle_loss_parts", "discriminator_loss", "generator_loss", "discrete_step"):
        if hasattr(main, name):
            watch(main, name)
    exact, *_ = outcome(monkeypatch, tmp_path, capsys, "--method", method)
    coarse, *_ = outcome(monkeypatch, tmp_path, capsys, "--method", method, "--precision", "bfloat16")
    assert seen == {torch.float32, torch.int64}, "int64: the rows of the sample"
    assert exact != coarse
    for part, value in exact[0].items():
        assert coarse[0][part] == pytest.approx(value, rel=0.05)


def outcome(monkeypatch, tmp_path, capsys, *flags):
    """The loss lines of a tiny run and what each optimiser step left of the discriminator's state."""
    for main in (main_mmasia, main_tomm):
        built = shrink(monkeypatch, main, dropout=0.5)
    steps = []
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: steps.append(len(optimizer.param_groups[0]["params"]))
    )
    logs = tmp_path / "-".join(("logs", *flags)).replace("/", "")
    try:
        assert run.main([*TINY, *flags, "--logs", str(logs)]) == 0, capsys.readouterr().err
    finally:
        hook.remove()
    (folder,) = logs.iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (codes,) = folder.glob("*-database_code.t")
    return [line["loss"] for line in lines], torch.load(codes, weights_only=True), steps, built


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
def test_every_switch_changes_the_run_and_none_is_the_default(method, monkeypatch, tmp_path, capsys):
    def losses(*flags):
        return outcome(monkeypatch, tmp_path, capsys, "--method", method, *flags)

    released, codes, steps, _ = losses()
    defaults = ["--latent", "sigmoid", "--similarity", "binary", "--adjacency", "raw", "--precision", "float32"]
    assert losses(*defaults)[0] == released
    for flags in (
        ["--latent", "tanh"],
        ["--similarity", "signed"],
        ["--adjacency", "normalised"],
        ["--detach-targets"],
        ["--precision", "bfloat16"],
    ):
        assert losses(*flags)[0] != released, flags
    without, _, _, _ = losses("--no-cycle-terms")
    assert "image_rec" not in without[0] and "image_rec" in released[0]
    all_rows = losses("--update-all-rows")
    assert (codes == 0).all(dim=1).any() and not (all_rows[1] == 0).any()
    assert all_rows[0][0] == released[0] and all_rows[0][1] != released[1]  # B differs from the second iteration on
    if method == "main_tomm":
        fresh, _, _, _ = losses("--fresh-batches")
        assert fresh[0] != released[0]
        plain, _, fewer, _ = losses("--no-discriminator")
        assert "generator" not in plain[0] and "generator" in released[0]
        assert len(steps) == 3 * len(fewer) and set(fewer) == {max(steps)}


@pytest.mark.parametrize("method", ["main_mmasia", "main_tomm"])
def test_only_attached_targets_and_beta_lead_from_the_cycle_to_the_codes(method, monkeypatch, tmp_path, capsys):
    """The features enter model_cycle detached: without those two the cycle terms change no code (docs/ablations.md)."""

    def codes(*flags):
        losses, database_code, _, _ = outcome(monkeypatch, tmp_path, capsys, "--method", method, "--beta", "0", *flags)
        return [(loss["image"], loss["label"]) for loss in losses], database_code

    detached, without, released = codes("--detach-targets"), codes("--no-cycle-terms"), codes()
    assert detached[0] == without[0] != released[0]
    assert torch.equal(detached[1], without[1])


@pytest.mark.parametrize("flag", ["--fresh-batches", "--no-discriminator"])
def test_an_ablation_of_the_other_variant_is_refused(flag, tmp_path, capsys):
    assert run.main([*TINY, flag, "--method", "main_mmasia", "--logs", str(tmp_path / "logs")]) == 2
    assert f"{flag}: main_mmasia has nothing that it changes" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
