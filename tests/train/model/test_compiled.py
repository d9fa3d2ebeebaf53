"""Every system's model as it is compiled: whole, once, and no more for other documents, other weights or a late switch.

The backend traces as on a GPU, forward and backward, and runs what it traced as it is.
"""

from __future__ import annotations

import pytest
import torch
import torch._dynamo

from benchmarks.gpu_systems import SYSTEMS, setting
from train.model import loss
from train.model.fake_quant import FakeQuant
from train.model.loss import chunk_values_pure
from train.model.transformer import Model, build
from train.monitor.dead_parts import graphs_compiled
from train.overrides import configs

ROWS, LENGTH, BATCHES = 2, 48, 3  # rows longer than the windows of 32


def documents_of(batch: int) -> torch.Tensor:
    """Return where documents begin in the rows of a batch: each batch has another number of them."""
    inside = torch.randint(1, ROWS * LENGTH, (1 + 3 * batch,), generator=torch.Generator().manual_seed(batch))
    return torch.cat([torch.arange(ROWS + 1) * LENGTH, inside]).unique().int()


def model_of(name: str) -> tuple[Model, FakeQuant | None]:
    """Return a system's model in small, with its recipe's late rounding where it has that."""
    made = setting(SYSTEMS[name], tiny=True)
    cfg, train = configs({"model": made.model, "train": {"pretrain": made.train}}, "pretrain", [], name)
    model = build(cfg, made.vocab, 0, made.vocab - 1)
    return model, FakeQuant(model, train.qat, train.artefact) if train.qat.start_frac else None


def losses(model: Model, switch: FakeQuant | None, cut: bool) -> tuple[list[float], list[int]]:
    """Return the loss of each batch, and how many graphs there were behind it; weights move after each."""
    found, graphs, before = [], [], graphs_compiled()
    for batch in range(BATCHES):
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(0, model.vocab_size, (ROWS, LENGTH + 1), generator=generator)
        by_target = torch.zeros(2, ROWS * LENGTH) if batch else None  # a first step without, and no graph more
        total, ce = model(ids[:, :-1], ids[:, 1:], None, documents_of(batch) if cut else None, by_target)
        if by_target is not None:
            assert torch.allclose(by_target[0].sum() / by_target[1].sum(), ce)
        total.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
                parameter.grad = None
        found.append(total.item())
        graphs.append(graphs_compiled() - before)
        model.mtp_weight *= 0.9  # as it falls with the rate
        if switch is not None and batch == 1:
            switch.turn_on()
    return found, graphs


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_model_is_two_graphs_whatever_comes(name, monkeypatch):
    """The trunk, and what lies between the loss's products; with the losses of the model that is not compiled.

    Rows are cut into documents but where no run can have that: behind memory tokens.
    """
    monkeypatch.setattr(loss, "CHUNK_CPU", loss.CHUNK_CUDA)  # chunks of a CPU are of two sizes, and so two graphs
    model, switch = model_of(name)
    cut = not model.cfg.memory_tokens
    eager = losses(model, switch, cut)[0]
    torch._dynamo.reset()
    model, switch = model_of(name)
    assert (switch is not None) == (name == "golf_memory_tokens")
    for part, function in (("run_trunk", model.trunk), ("chunk_values", chunk_values_pure)):
        setattr(model, part, torch.compile(function, dynamic=False, fullgraph=True, backend="aot_eager"))
    compiled, graphs = losses(model, switch, cut)
    assert graphs == [2] * BATCHES
    assert compiled == pytest.approx(eager, rel=1e-5)
    torch._dynamo.reset()
