"""The GPU's benchmark, tried at small shapes on the CPU, and what it makes of a trace."""

from __future__ import annotations

import json
import time

import pytest
import torch
import yaml

from benchmarks import gpu, gpu_items, gpu_profile, measure
from benchmarks.gpu_items import Item, run_items
from benchmarks.gpu_systems import SYSTEMS, B, setting
from train.model.transformer import check_parameters

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_command_runs_every_variant_at_a_small_shape(tmp_path, capsys):
    """FlexAttention's gradient, cuDNN and varlen_attn are CUDA's: they are noted as failed, and nothing else is."""
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json")]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["systems"]) == list(SYSTEMS) and result["device"] == "cpu"
    for name, system in SYSTEMS.items():
        variants = result["systems"][name]["variants"]
        failed = {kind for kind, seen in variants.items() if "tokens_per_second" not in seen}
        in_run = {kind for kind, variant in system.variants.items() if variant.run == "A"}
        assert failed == {kind for kind in in_run if "varlen" in kind} and set(variants) == in_run
        assert variants["stock"]["mfu"].keys() == {"causal", "full"}
        assert all("line" in seen["trace"] for kind, seen in variants.items() if kind in failed)
    assert {n for n, check in result["checks"].items() if not check["passed"]} == {
        name for name in result["checks"] if name.startswith(("flex", "varlen"))
    }
    first = result["systems"]["shard_40m"]
    ran = {part for part, seen in first["kernels"].items() if "failed" not in seen}
    assert ran >= {"loss", "Newton-Schulz", "products", "whole rows, FlashAttention-2"}
    assert all(part.endswith("flex") for part in ran if "window" in part or "documents" in part)  # by processor
    trained = first["training"]
    assert "failed" not in trained, trained
    assert trained["exit_statuses"][-1] == 0 and trained["steps"] == 8 and trained["steps_that_compiled"] == []
    assert "floor 400,000: not reached" in said and "goal 320,000: not reached" in said


def test_what_was_done_is_written_ahead_of_what_follows_and_a_traceback_whole(tmp_path):
    path = tmp_path / "gpu.json"
    write = gpu.written(path, torch.device("cpu"), True)
    seen = []

    def breaks():
        raise RuntimeError("no such kernel\nin all its lines")

    def looks():
        seen.append(json.loads(path.read_text()))
        return {"passed": True}

    items = [Item(("a", "b"), 1.0, breaks), Item(("a", "c"), 1.0, looks), Item(("d",), 1e6, breaks)]
    result = {}
    run_items(items, result, time.monotonic() + 100, torch.device("cpu"), lambda: write(result))
    assert seen[0]["a"]["b"]["failed"] == "RuntimeError: no such kernel" and "in breaks" in seen[0]["a"]["b"]["trace"]
    assert "in all its lines" in seen[0]["a"]["b"]["trace"]
    assert json.loads(path.read_text()) == result and result["a"]["c"]["passed"]
    assert result["d"]["left_out"].startswith("some ") and "s were left" in result["d"]["left_out"]


def test_an_item_is_left_out_by_what_the_ones_before_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(gpu_items.time, "monotonic", lambda: now[0])

    def takes(seconds):
        def work():
            now[0] += seconds
            return {}

        return work

    items = [Item(("slow",), 10.0, takes(20)), Item(("long",), 50.0, takes(50)), Item(("short",), 10.0, takes(20))]
    result = {}
    run_items(items, result, 100.0, torch.device("cpu"), lambda: None)
    assert "left_out" in result["long"] and result["short"] == {"seconds": 20}  # twice 50 s would not end in 80


def test_without_time_items_are_left_out_and_named(tmp_path):
    for run in "ABC":
        gpu.main(["--device", "cpu", "--tiny", "--minutes", "0", "--run", run, "--out", str(tmp_path / run)])
        systems = json.loads((tmp_path / run).read_text())["systems"]
        assert all("left_out" in seen for system in systems.values() for seen in system["variants"].values())
        trained = [name for name in systems if "training" in systems[name]]
        assert trained == {"A": ["shard_40m"], "B": [], "C": [*SYSTEMS]}[run]
        assert run != "B" or set(systems["shard_40m"]["variants"]) == {"stock", *B}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_written_and_each_cell_says_that_it_was_not_measured(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 0
    said = capsys.readouterr().out
    cells = sum(len(system.variants) + len(system.goals) for system in SYSTEMS.values())
    assert said.count("not measured") == 1 + cells and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_its_recipe(name):
    """The model and what shapes a step are the recipe's, and the micro-batch divides the batch."""
    made = setting(SYSTEMS[name], tiny=False)
    model, train = gpu.configs({"model": made.model, "train": {"pretrain": made.train}}, "pretrain", [], name)
    check_parameters(model, made.vocab)  # the recipe's expect_params
    recipe = yaml.safe_load((measure.ROOT / "manifests" / f"{name}.yaml").read_text())["train"]["pretrain"]
    for key in ("optimizer", "muon", "adamw", "groups", "qat", "ema", "swa", "grad_clip", "seq_len", "document_mask"):
        assert made.train.get(key) == recipe.get(key), key
    for variant in SYSTEMS[name].variants.values():
        assert train.batch_size % variant.settings.get("micro_batch", train.micro_batch) == 0


def test_items_come_in_the_order_of_what_they_tell(tmp_path):
    """Cheap checks, the first variant of each system, its parts; what compiles long comes last."""
    bench = gpu.Bench({name: setting(system, False) for name, system in SYSTEMS.items()}, tmp_path, CPU, False)
    places = [item.place for item in gpu.items_of(bench, "A")]
    assert len(set(places)) == len(places) and places[0][0] == "checks"
    variants = [place[1::2] for place in places if place[2:3] == ("variants",)]
    assert variants[:5] == [*((name, "stock") for name in SYSTEMS), ("shard_40m", "attention varlen")]
    seconds = {item.place: item.seconds for item in gpu.items_of(bench, "A")}
    stock, whole, eager = (
        seconds["systems", "shard_40m", "variants", kind]
        for kind in ("stock", "stock, the whole trunk compiled", "without compile")
    )
    assert 30 < eager < stock < 90 and 3 * stock < whole < 300
    assert sum(seconds.values()) < 3600


def test_shares_of_a_trace():
    def event(cat, name, ts, dur):
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    kernels = [
        ("void pytorch_flash::flash_fwd_kernel", 0, 30),
        ("triton_tem_fused_flex_attention_7", 30, 10),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", 40, 25),
        ("triton_poi_fused_silu_mul_3", 70, 5),
        ("sm90_xmma_gemm_bf16", 80, 10),  # of the loss, though a product
        ("Memcpy HtoD (Pinned -> Device)", 90, 5),
        ("ampere_sgemm_64x64", 95, 5),  # of the optimiser
    ]
    trace = [event("kernel", *k) for k in kernels]
    trace += [event("gpu_user_annotation", "loss", 79, 12), event("gpu_user_annotation", "optimiser", 95, 5)]
    trace += [event("cpu_op", "aten::mm", 0, 1000), {"ph": "M", "name": "process_name"}]
    found = gpu_profile.shares({"traceEvents": trace})
    want = {"attention": 40, "matrix products": 25, "elementwise": 5, "loss": 10, "copies": 5, "optimiser": 5}
    assert found["shares"] == {k: pytest.approx(v / 90, abs=1e-4) for k, v in want.items()}
    assert found["idle"] == pytest.approx(0.1, abs=1e-4) and found["kernels_ms"] == 0.09
    names = {"void pytorch_flash::flash_fwd_kernel": 0.03, "triton_tem_fused_flex_attention_7": 0.01}
    assert found["attention_kernels_ms"] == names
    assert gpu_profile.shares({"traceEvents": trace[-3:]}) == {}
