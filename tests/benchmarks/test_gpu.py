"""The GPU's benchmark, tried at small shapes on the CPU, and what it makes of a trace."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from benchmarks import gpu, gpu_profile, measure
from benchmarks.gpu_systems import SYSTEMS, setting
from train.model.transformer import check_parameters


@pytest.mark.slow
def test_the_command_runs_every_variant_at_a_small_shape(tmp_path, capsys):
    """FlexAttention's gradient and varlen_attn are CUDA's: they are noted as failed, and nothing else is."""
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json")]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["systems"]) == list(SYSTEMS) and result["device"] == "cpu"
    for name, system in SYSTEMS.items():
        variants = result["systems"][name]["variants"]
        failed = {kind for kind, seen in variants.items() if "tokens_per_second" not in seen}
        assert failed == {kind for kind in system.variants if "varlen" in kind} and set(variants) == set(
            system.variants
        )
        assert variants["stock"]["mfu"].keys() == {"causal", "full"}
    assert {n for n, check in result["checks"].items() if not check["passed"]} == {
        name for name in result["checks"] if name.startswith(("flex", "varlen"))
    }
    assert "floor 400,000: not reached" in said and "goal 320,000: not reached" in said


def test_without_time_variants_are_left_out_and_named(tmp_path):
    gpu.main(["--device", "cpu", "--tiny", "--minutes", "0", "--out", str(tmp_path / "gpu.json")])
    systems = json.loads((tmp_path / "gpu.json").read_text())["systems"]
    assert all("left_out" in seen for system in systems.values() for seen in system["variants"].values())


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


def test_the_first_variant_of_each_system_comes_first():
    assert gpu.order(list(SYSTEMS))[:5] == [*((name, "stock") for name in SYSTEMS), ("shard_40m", "attention varlen")]


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
    assert gpu_profile.shares({"traceEvents": trace[-3:]}) == {}
