"""The GPU's benchmark, tried at a small shape on the CPU, and what it makes of a trace."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
def test_the_command_runs_every_variant_at_a_small_shape(tmp_path, capsys):
    """FlexAttention's gradient and varlen_attn are CUDA's: they are noted as failed, and nothing else is."""
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json")]) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "gpu.json").read_text())
    failed = {name for name, seen in result["variants"].items() if "tokens_per_second" not in seen}
    assert failed == {name for name in gpu.VARIANTS if "varlen" in name} and set(result["variants"]) == set(
        gpu.VARIANTS
    )
    assert {n for n, check in result["checks"].items() if not check["passed"]} == {
        name for name in result["checks"] if name.startswith(("flex", "varlen"))
    }
    assert result["variants"]["stock"]["mfu"].keys() == {"causal", "full"} and result["device"] == "cpu"
    assert "floor 400,000: not reached" in said


def test_without_time_variants_are_left_out_and_named(tmp_path):
    gpu.main(["--device", "cpu", "--tiny", "--minutes", "0", "--out", str(tmp_path / "gpu.json")])
    seen = json.loads((tmp_path / "gpu.json").read_text())["variants"]
    assert all("left_out" in variant for variant in seen.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_or_written(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out == "not measured: no CUDA device\n" and not list(tmp_path.iterdir())


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
    found = gpu.shares({"traceEvents": trace})
    want = {"attention": 40, "matrix products": 25, "elementwise": 5, "loss": 10, "copies": 5, "optimiser": 5}
    assert found["shares"] == {k: pytest.approx(v / 90, abs=1e-4) for k, v in want.items()}
    assert found["idle"] == pytest.approx(0.1, abs=1e-4) and found["kernels_ms"] == 0.09
    assert gpu.shares({"traceEvents": trace[-3:]}) == {}
