"""The mains against the plain transcription of the method, and what each optimiser step may touch."""

import copy
import dataclasses
import json

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import main_mmasia
import main_tomm
import training.progress
import training.recorder
from data import Options, load_data
from data.data_loader import train_batches
from modules.discrete import draw_sample
from tests import small_networks
from tests.plain_step import Networks, plain_discrete_step, plain_step
from tests.small_networks import changed, shrink, state
from training.run_folder import RunFolder
from training.settings import Settings

MAINS = {"main_mmasia": main_mmasia, "main_tomm": main_tomm}
NAMES = ("image_network", "MLP", "CycleNet", "ReconstructionDiscriminator")


@pytest.fixture(scope="module")
def split():
    return load_data("digits", "unused", Options(seed=0, image_size=16))


def settings_for(method, tmp_path, **given):
    small = {"num_samples": 60, "batch_size": 24, "max_iter": 2, "max_epoch": 2, "image_size": 16, "augment": "crop"}
    return Settings.for_dataset("digits", method=method, logs=str(tmp_path), lr=1e-3, **{**small, **given})


@pytest.fixture
def in_float64(monkeypatch):
    """Everything in float64, so that the order of sums does not hide a wrong sign."""
    small_networks.in_float64(monkeypatch)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", MAINS)
def test_training_equals_the_plain_transcription(method, split, tmp_path, monkeypatch, in_float64):
    main, settings = MAINS[method], settings_for(method, tmp_path)
    built = shrink(monkeypatch, main)
    initial = []

    def remember_start(optimizer, *_):
        if not initial:
            initial.extend(copy.deepcopy(built[name][0]) for name in NAMES if name in built)

    learned = {}
    finish = training.recorder.Recorder.finish
    monkeypatch.setattr(
        training.recorder.Recorder,
        "finish",
        lambda self, codes, simplify: learned.update(codes=codes.clone()) or finish(self, codes, simplify),
    )
    hook = register_optimizer_step_pre_hook(remember_start)
    try:
        main.train(RunFolder(settings, torch.device("cpu")), 8, split)
    finally:
        hook.remove()

    networks = Networks(*initial, lr=settings.lr, weight_decay=settings.weight_decay)
    labels = split.database.labels.double()
    codes = torch.zeros(len(split.database), 8)
    for iteration in range(settings.max_iter):
        sample = draw_sample(len(split.database), settings.num_samples, settings.seed, iteration)
        last = [torch.zeros(len(split.database), 8) for _ in range(3)]
        for epoch in range(settings.max_epoch):
            # MM Asia draws afresh each pass; TOMM replays what it drew for the iteration.
            key = (settings.seed, "batches", iteration) + (() if method == "main_tomm" else (epoch,))
            batches = train_batches(
                split.database, sample, batch_size=24, key=key, augment="crop", device=torch.device("cpu")
            )
            for images, targets, rows in batches:
                _, kept = plain_step(networks, images.double(), targets.double(), codes[rows], settings.gamma)
                for all_rows, code in zip(last, kept, strict=True):
                    all_rows[rows] = code
        codes[sample] = plain_discrete_step(
            codes[sample],
            tuple(all_rows[sample] for all_rows in last),
            labels[sample],
            labels,
            sample,
            settings.alpha,
            settings.beta,
            settings.gamma,
        )

    assert torch.equal(learned["codes"], codes)
    for name, network in zip(NAMES, initial, strict=False):
        for parameter, expected in zip(built[name][0].parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", MAINS)
def test_each_optimiser_changes_its_own_networks_only(method, split, tmp_path, monkeypatch):
    main = MAINS[method]
    settings = settings_for(method, tmp_path, max_iter=1, max_epoch=1)
    built, steps, before = shrink(monkeypatch, main), [], {}

    def note(optimizer, *_):
        before.update({name: state(networks[0]) for name, networks in built.items()})

    def compare(optimizer, *_):
        steps.append({name for name, networks in built.items() if changed(before[name], networks[0])})

    hooks = [register_optimizer_step_pre_hook(note), register_optimizer_step_post_hook(compare)]
    try:
        main.train(RunFolder(settings, torch.device("cpu")), 8, split)
    finally:
        for hook in hooks:
            hook.remove()
    cycle, discriminator, generator = (
        {"image_network", "MLP", "CycleNet"},
        {"ReconstructionDiscriminator"},
        {"CycleNet"},
    )
    a_batch = [cycle] if method == "main_mmasia" else [cycle, discriminator, generator]
    assert steps == a_batch * 3  # 60 samples in batches of 24


def test_tomm_divides_the_rates_of_g_and_d_by_five(split, tmp_path, monkeypatch):
    for preset, max_iter, schedule in (("cifar-10", 50, {6: 1 / 5, 41: 1 / 25}), ("flickr25k", 132, {131: 1 / 5})):
        shrink(monkeypatch, main_tomm)
        settings = settings_for("main_tomm", tmp_path, max_iter=max_iter, max_epoch=1, num_samples=8, eval_iter=1000)
        settings = dataclasses.replace(settings, milestones=Settings.for_dataset(preset).milestones)
        rates = []
        hook = register_optimizer_step_pre_hook(
            lambda optimizer, *_, into=rates: into.append(optimizer.param_groups[0]["lr"])
        )
        try:
            main_tomm.train(RunFolder(settings, torch.device("cpu")), 8, split)
        finally:
            hook.remove()
        assert len(rates) == 3 * max_iter
        factor = 1.0
        for iteration in range(max_iter):
            factor = schedule.get(iteration, factor)
            expected = [settings.lr, settings.lr * factor, settings.lr * factor]
            assert rates[3 * iteration : 3 * iteration + 3] == pytest.approx(expected)


@pytest.mark.parametrize("method", MAINS)
def test_rows_never_drawn_stay_zero_and_the_log_counts_iterations(method, split, tmp_path, monkeypatch):
    shrink(monkeypatch, MAINS[method])
    settings = settings_for(method, tmp_path, max_iter=3, eval_iter=2)
    run = RunFolder(settings, torch.device("cpu"))
    row = MAINS[method].train(run, 8, split)
    (path,) = run.path.glob("*-database_code.t")
    codes = torch.load(path, weights_only=True)
    drawn = torch.cat([draw_sample(len(codes), 60, settings.seed, iteration) for iteration in range(3)]).unique()
    zero = (codes == 0).all(dim=1)
    assert not zero[drawn].any() and zero.sum() == len(codes) - len(drawn)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert ["map" in line for line in lines] == [False, True, True]
    assert row["best"]["expected"] == max(line["map"] for line in lines if "map" in line)


def test_three_steps_of_the_real_networks_equal_the_plain_step_in_float32(tmp_path, monkeypatch):
    """AlexNet and the networks of TOMM, which has all of them, batch 64, dropout off: same losses and weights."""
    split = load_data("digits", "unused", Options(seed=0, image_size=64))
    small = {"image_size": 64, "num_samples": 192, "batch_size": 64, "max_iter": 1, "max_epoch": 1}
    settings = settings_for("main_tomm", tmp_path, **small)
    settings = dataclasses.replace(settings, lr=Settings.lr)
    built, losses = {}, []
    for name in NAMES:
        monkeypatch.setattr(main_tomm, name, recorded(getattr(main_tomm, name), name, built))
    monkeypatch.setattr(training.progress.Progress, "step", lambda self, parts: losses.append(parts))
    monkeypatch.setattr(training.progress.Progress, "end_pass", lambda self, *_: {})
    monkeypatch.setattr(training.recorder.Recorder, "record", lambda self, *_: None)
    monkeypatch.setattr(training.recorder.Recorder, "finish", lambda self, codes, simplify: {})
    torch.manual_seed(settings.seed)
    main_tomm.train(RunFolder(dataclasses.replace(settings, weights="none"), torch.device("cpu")), 32, split)

    initial = {name: copy.deepcopy(start) for name, (_, start) in built.items()}
    networks = Networks(*(initial[name] for name in NAMES), lr=settings.lr)
    sample = draw_sample(len(split.database), 192, settings.seed, 0)
    key = (settings.seed, "batches", 0)
    batches = train_batches(split.database, sample, batch_size=64, key=key, augment="crop", device=torch.device("cpu"))
    for step, (images, targets, _) in enumerate(batches):
        loss, _ = plain_step(networks, images, targets, torch.zeros(len(images), 32), settings.gamma)
        cycle = sum(value for part, value in losses[step].items() if part not in ("discriminator", "generator"))
        torch.testing.assert_close(cycle.detach(), loss, rtol=1e-5, atol=0)
    assert len(losses) == 3
    for name, (network, start) in built.items():
        for (part, parameter), expected, first in zip(
            network.named_parameters(), initial[name].parameters(), start.parameters(), strict=True
        ):
            # Adam divides by the gradient's own size, so rounding counts where a gradient is nearly 0: as a share of
            # how far the weights have moved in three steps it is at most 0.00005 here.
            off, moved = (parameter - expected).norm().item(), (expected - first).norm().item()
            assert off <= 0.001 * moved, (name, part, off / moved)


def recorded(constructor, name, built):
    """`constructor` with dropout off, noting under `name` the network it builds and a copy of it."""

    def construct(*arguments, **options):
        network = constructor(*arguments, **options)
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        built[name] = network, copy.deepcopy(network)
        return network

    return construct
