"""On a GPU, where there is one: the same numbers as on the CPU, the same every time, within a share of the memory."""

from __future__ import annotations

import io
import json
from functools import partial

import numpy as np
import pytest
import torch
from model_cases import fine_tuning, finished, numbers, predictions, sample, thirds
from sweeps import new, prepare, run

from models.crystals.chgnet.model import load_chgnet
from models.crystals.composition.model import COMPOSITION_NETWORK
from models.crystals.gaussian_process.model import GAUSSIAN_PROCESS
from models.crystals.rows import CrystalRows
from models.device import device_of_share
from models.model import TrainingPart
from tune.runs import load_sweep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

N_ROWS = 48
TRAIN, VAL, TEST = thirds(N_ROWS)
ON_GPU = partial(fine_tuning, device="cuda")
# Every lever that computes something of its own in a step, an epoch or at the end.
LEVERS = {
    "readout": {},
    "full": {"freeze_depth": "full"},
    "half": {"freeze_depth": "last_two_convs"},
    "random": {"weights": "random", "lr": 1e-2, "freeze_depth": "full"},
    "ema": {"averaging": "ema", "freeze_depth": "full"},
    "swa": {"averaging": "swa"},
    "snapshots": {"averaging": "snapshots", "snapshots": 2},
    "mixup": {"mixup": True, "mixup_probability": 1.0, "freeze_depth": "full"},
    "noise": {"jitter": 0.01, "strain": 0.005, "freeze_depth": "full"},
    "clip": {"gradient_clip": 0.1, "freeze_depth": "full", "layer_decay": 0.5, "unfreeze_every": 1},
    "radam": {"optimizer": "radam", "lr": 3e-3, "loss": "huber", "refit_reference": True},
    "undo": {"undo_mp2020": True, "loss": "log_cosh", "target_scale": "standard"},
}


@pytest.fixture(autouse=True)
def _as_in_a_trial():
    device_of_share(1.0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def data_for(at_hand):
    """Gives the crystals with the features of a config's weights."""
    return lambda fields: sample(N_ROWS, fields.get("weights", "0.3.0"), at_hand, small=True)


@pytest.mark.parametrize("collapse", [False, True])
@pytest.mark.parametrize("name", LEVERS)
def test_training_is_that_of_the_cpu(name, collapse, data_for):
    """Rounding grows from step to step, so the steps are small and few."""
    fields = {"epochs": 2, "lr": 1e-4, "keep": "last", **LEVERS[name]}
    data = data_for(fields)
    on_gpu, on_cpu = (finished(start(data, collapse=collapse, **fields)) for start in (ON_GPU, fine_tuning))
    assert on_gpu.device.type == "cuda"
    np.testing.assert_allclose(numbers(on_gpu), numbers(on_cpu), rtol=1e-3, atol=2e-4)
    before = predictions(fine_tuning(data, collapse=collapse, **fields))
    on_gpu.fitted(), on_cpu.fitted()
    ours, theirs = predictions(on_gpu), predictions(on_cpu)
    moved = np.abs(theirs - before).max()
    assert moved > 2e-3, "there was nothing to agree on"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * moved + 2e-4)


@pytest.mark.parametrize("name", LEVERS)
def test_two_runs_are_the_same_to_the_last_digit(name, data_for):
    fields = {"epochs": 2, **LEVERS[name]}
    one, other = (finished(ON_GPU(data_for(fields), **fields)) for _ in range(2))
    np.testing.assert_array_equal(numbers(one), numbers(other))
    np.testing.assert_array_equal(predictions(one), predictions(other))


def gone_on(first, second, epochs_before: int):
    """The second run, from the file of the first one after some epochs (the first is epoch 0), trained to its end."""
    for _, _ in zip(range(epochs_before), first.epochs(), strict=False):
        pass
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.restore(torch.load(file, weights_only=True, map_location="cpu"))
    return finished(second)


@pytest.mark.parametrize("name", ["full", "ema", "swa", "snapshots", "mixup", "clip", "radam"])
def test_resumed_from_its_file_is_uninterrupted(name, data_for):
    fields = {"epochs": 4, **LEVERS[name]}
    data = data_for(fields)
    resumed = gone_on(ON_GPU(data, **fields), ON_GPU(data, **fields), 3)
    whole = finished(ON_GPU(data, **fields))
    np.testing.assert_array_equal(numbers(resumed), numbers(whole))
    np.testing.assert_array_equal(predictions(resumed), predictions(whole))


def test_a_state_of_the_gpu_goes_on_on_the_cpu(data_for):
    fields = {"epochs": 3, "freeze_depth": "full", "lr": 1e-4}
    first = ON_GPU(data_for(fields), **fields)
    second = gone_on(first, fine_tuning(data_for(fields), **fields), 2)
    np.testing.assert_allclose(numbers(second), numbers(finished(first)), rtol=1e-3, atol=2e-4)


def test_what_was_trained_on_a_gpu_predicts_the_same_on_the_cpu(data_for):
    data = data_for({})
    fitted = finished(ON_GPU(data, freeze_depth="full")).fitted()
    file = io.BytesIO()
    torch.save(fitted.content(), file)
    file.seek(0)
    on_cpu = load_chgnet(torch.load(file, weights_only=True, map_location="cpu"))
    everything = np.arange(N_ROWS)
    np.testing.assert_allclose(
        on_cpu.predict_rows(data.rows, everything).values,
        fitted.predict_rows(data.rows, everything).values,
        rtol=0,
        atol=1e-5,
    )


def test_where_a_share_of_the_memory_is_too_small_for_a_batch_it_takes_more_passes(data_for):
    """The gradient stays that of the whole batch; the memory that runs out is torch's own limit, not an injection."""
    data = data_for({})
    rows = np.tile(np.arange(N_ROWS), 40)  # 1,920 crystals in one batch
    part = thirds(len(rows))
    big = CrystalRows(data.rows.fractions[rows], data.rows.n_atoms[rows], data.rows.graphs.select(rows))
    fields = {"freeze_depth": "full", "epochs": 1, "batch_size": len(part[0]), "loss": "mse", "lr": 1e-5}
    start = partial(ON_GPU, data, data.targets[rows], rows=big, parts=part[:2], **fields)
    torch.cuda.reset_peak_memory_stats()
    whole = finished(start())
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    try:
        limited = finished(start())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert whole.history[-1].parts == 1
    assert limited.history[-1].parts > 1
    np.testing.assert_allclose(numbers(limited), numbers(whole), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", [COMPOSITION_NETWORK, GAUSSIAN_PROCESS], ids=lambda model: model.name)
def test_other_models_are_those_of_the_cpu(model, data_for):
    data = data_for({})
    part = TrainingPart(data.targets, TRAIN, VAL, "regression", "energy_per_atom")
    config = model.config(**({"epochs": 2, "width": 16} if model is COMPOSITION_NETWORK else {}))
    found = []
    for device in ("cuda", "cpu"):
        ran = model.start(
            config,
            CrystalRows(data.rows.fractions, data.rows.n_atoms, data.rows.graphs),
            part,
            device,
        )
        for _ in ran.epochs():
            pass
        found.append(ran.fitted().predict_rows(data.rows, TEST).values)
    np.testing.assert_allclose(*found, rtol=0, atol=1e-3)
    assert np.ptp(found[0]) > 0.1


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A sweep with `--gpus-per-trial auto` of every 8th crystal of the demo."""
    folder = prepare(
        tmp_path_factory.mktemp("packed"),
        8,
        small="num_samples: 6\ngrace_epochs: 1\n"
        "parameters: {freeze_depth: full, epochs: 2, lr: {loguniform: [1.0e-4, 1.0e-3]}}\n",
    )
    arguments = [one for one in new(folder, "packed") if not one.startswith("--max-concurrent")]
    return folder, run(folder, *arguments, "--gpus-per-trial=auto", "--folds=0,1")


def test_a_sweep_packs_its_trials(packed):
    folder, output = packed
    known = json.loads((folder / "results/packed/packing.json").read_text())
    (probe,) = known["probes"]
    assert 1e8 < probe["used_bytes"] < probe["total_bytes"] == torch.cuda.mem_get_info()[1]
    assert known["share"] < 0.5
    assert "trials share a GPU" in output
    sweep = load_sweep(str(folder / "results/packed"))
    assert "failed" not in sweep.trials, sweep.trials["failed"]
    assert torch.cuda.get_device_name() in json.dumps(sweep.results)


def test_passes_are_recorded_once_for_each_size(data_for):
    run = ON_GPU(data_for({}), freeze_depth="full", epochs=3)
    seen = []
    for _ in run.epochs():
        seen.append(len(run.recorded.recordings))
    n_batches = -(-len(TRAIN) // 8)
    assert 0 < seen[1] <= n_batches
    assert seen[3] < 2 * n_batches
    assert run.recorded.on
