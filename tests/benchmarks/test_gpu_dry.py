"""Trunks of all systems are one graph in training, and what is tried of a system on a GPU covers it."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_dry
from benchmarks.gpu_systems import SYSTEMS, Variant, setting, write_mixture
from train.model.transformer import Model


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_steps_over_changing_documents_are_one_graph(name, tmp_path, monkeypatch):
    """Forward and backward, in whole runs; what lies between the loss's products is compiled on a GPU alone."""
    monkeypatch.setattr(gpu_dry, "STEPS", 8)
    graphs = []

    def compile_trunk(model):
        graphs.append(model)
        model.run_trunk = torch.compile(model.trunk, dynamic=False, fullgraph=True, backend="aot_eager")

    monkeypatch.setattr(Model, "compile_parts", compile_trunk)
    made = setting(SYSTEMS[name], tiny=True)
    path = write_mixture(tmp_path / "mixture", 60_000, made)
    documents = not made.model.get("memory_tokens")
    seen = gpu_dry.tried(
        path,
        Variant({"compile": True, "document_mask": documents, "log_every": 100}),
        tmp_path / "run",
        torch.device("cpu"),
    )
    assert (seen["graphs"], seen["late"], len(graphs)) == (1, [], 1)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_variant_is_tried_but_for_sizes(name):
    cells = gpu_dry.cells(name)
    tried = [(v.settings, v.hook, v.around) for v in cells.values()]
    for variant in SYSTEMS[name].variants.values():
        settings = {k: v for k, v in variant.settings.items() if k != "micro_batch"}
        assert (settings, variant.hook, variant.around) in tried or not settings.keys() - {"attention", "document_mask"}
    kernels = {(v.settings.get("attention"), v.settings.get("document_mask")) for v in cells.values()}
    documents = [False] if name == "golf_memory_tokens" else [False, True]
    assert kernels >= {(kernel, mask) for kernel in ("flex", "varlen") for mask in documents}
    short = gpu_dry.shortened(setting(SYSTEMS[name], tiny=False))
    assert short.model["n_layers"] == 2 and short.train["seq_len"] == 1024
