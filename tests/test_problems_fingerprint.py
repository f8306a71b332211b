"""Fingerprints of models and mini-batches see everything that changes a result."""

from pathlib import Path

import torch
from torch import nn

from vivit_bench.problems.workload import batch_fingerprint, model_fingerprint


def test_model_fingerprint_sees_parameters_buffers_structure_and_frozen_layers():
    def fingerprint(change: str = "") -> str:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        if change == "parameter":
            model[0].weight.data[0, 0] += 1e-6
        elif change == "buffer":
            model[1].running_mean += 1e-6
        elif change == "frozen":
            model[0].requires_grad_(False)
        elif change == "structure":
            model.append(nn.ReLU())
        loss = nn.MSELoss() if change == "loss" else nn.CrossEntropyLoss()
        return model_fingerprint("mnist_mlp", model, loss)

    assert fingerprint() == fingerprint()
    changes = ["", "parameter", "buffer", "frozen", "structure", "loss"]
    assert len({fingerprint(change) for change in changes}) == len(changes)


def test_model_fingerprint_sees_the_users_file(tmp_path: Path):
    file = tmp_path / "net.py"
    model, loss = nn.Flatten(), nn.MSELoss()
    prints = set()
    for source in ("x = 1", "x = 2"):
        file.write_text(source)
        prints.add(model_fingerprint(f"{file}:make", model, loss))
    assert len(prints) == 2


def test_batch_fingerprint_sees_values_shape_and_type():
    inputs, targets = torch.zeros(2, 3), torch.tensor([0, 1])
    variants = [
        (inputs, targets),
        (inputs + 1e-30, targets),
        (inputs.view(3, 2), targets),
        (inputs.double(), targets),
        (inputs, targets + 1),
    ]
    assert len({batch_fingerprint(*batch) for batch in variants}) == len(variants)
    assert batch_fingerprint(inputs, targets) == batch_fingerprint(inputs.clone(), targets)
