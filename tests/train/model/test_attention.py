"""Who sees whom, and that every kernel says the same: against the dense masks, and those against the rule in words."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen

from train.config import ConfigError, ModelConfig
from train.model import attention
from train.model.attention import attend, choose_kernel
from train.model.masks import FLEX_BLOCK, Mask, MaskBuilder, block_mask, dense_mask, document_ids
from train.model.transformer import build

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = ModelConfig(dim=32, n_layers=2, n_heads=2, max_seq_len=512, sliding_window=8, init_std=0.3)
MODELS = {  # parts beside TINY's
    "all of golf's": {
        "n_kv_heads": 1,
        "qk_norm": "rms",
        "q_gain": 1.5,
        "mlp": "relu2",
        "rope_dims": 8,
        "rope_table": "bf16_freq",
        "norm": "plain",
        "embed_norm": True,
        "smear": True,
        "smear_bos_mask": True,
        "bigram_buckets": 32,
        "bigram_dim": 8,
        "memory_tokens": 3,
        "residual_mix": True,
        "branch_scales": True,
        "depth_scale": True,
        "unet_skips": True,
        "mtp_heads": 2,
    },
    "all of Gemma's and Engram": {
        "engram_enabled": True,
        "engram_inject_layer": 1,
        "n_heads": 4,
        "n_kv_heads": 1,
        "head_dim": 16,
        "qk_norm": "weighted",
        "mlp": "geglu",
        "norm": "one_plus",
        "sandwich_norms": True,
        "layer_kinds": ("sliding", "global"),
        "rope_base_global": 1e6,
        "embed_scale": "sqrt_dim_rounded",
    },
}
UNFUSED = "ignore:flex_attention called without"  # on a CPU, on purpose


def some_borders(draw, rows, length):
    inside = draw(st.sets(st.integers(0, rows * length), max_size=6))
    return torch.tensor(sorted({*range(0, rows * length + 1, length), *inside}), dtype=torch.int32)


@settings(max_examples=40)
@given(data=st.data(), rows=st.integers(1, 3), length=st.integers(1, 20), window=st.none() | st.integers(1, 24))
def test_the_dense_mask_is_the_rule_in_words(data, rows, length, window):
    cu_seqlens = some_borders(data.draw, rows, length)
    mask = dense_mask(length, window, document_ids(cu_seqlens, rows, CPU), CPU)
    plain = dense_mask(length, window, None, CPU)
    for b in range(rows):
        of = [int((cu_seqlens <= b * length + i).sum()) for i in range(length)]
        for i in range(length):
            for j in range(length):
                near = i - j >= 0 and (window is None or i - j < window)
                assert plain[i, j] == near and mask[b, 0, i, j] == (near and of[i] == of[j])


@settings(max_examples=30)
@given(data=st.data(), rows=st.integers(1, 2), blocks=st.integers(1, 4), window=st.none() | st.integers(1, 600))
def test_blocks_hold_every_pair_and_full_ones_no_other(data, rows, blocks, window):
    length = blocks * FLEX_BLOCK
    near = data.draw(st.sets(st.sampled_from([1, FLEX_BLOCK - 1, FLEX_BLOCK, FLEX_BLOCK + 1])))  # where mistakes are
    cu_seqlens = torch.tensor(
        sorted({*some_borders(data.draw, rows, length).tolist(), *(n for n in near if n < length)}), dtype=torch.int32
    )
    documents = document_ids(cu_seqlens, rows, CPU) if data.draw(st.booleans()) else None
    tiles = dense_mask(length, window, documents, CPU).view(-1, 1, blocks, FLEX_BLOCK, blocks, FLEX_BLOCK)
    some, every = tiles.any(-1).any(3), tiles.all(-1).all(3)  # (B, 1, blocks, blocks)
    made = block_mask(length, window, documents, CPU)
    partial, full = (
        torch.zeros_like(some).scatter_(-1, which.long(), torch.arange(blocks) < count[..., None])
        for count, which in (
            (made.kv_num_blocks, made.kv_indices),
            (made.full_kv_num_blocks, made.full_kv_indices),
        )
    )
    assert torch.equal(full, every)
    assert not (partial & full).any() and not (some & ~(partial | full)).any()
    if documents is None or window is None:
        assert torch.equal(partial | full, some)


@pytest.mark.slow
@pytest.mark.filterwarnings(UNFUSED)
@pytest.mark.parametrize(("window", "kv_heads"), [(None, 2), (1, 1), (100, 1), (200, 2)])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 3, 128, 256, 300, 512]])
def test_flex_is_the_dense_mask(window, cu_seqlens, kv_heads):
    rows, length = 2, 2 * FLEX_BLOCK
    documents = None if cu_seqlens is None else document_ids(torch.tensor(cu_seqlens, dtype=torch.int32), rows, CPU)
    q, k, v = torch.randn(3, rows, 2, length, 16, generator=torch.Generator().manual_seed(0))
    k, v = k[:, :kv_heads], v[:, :kv_heads]
    a = attend(q, k, v, Mask(blocks=block_mask(length, window, documents, CPU)))
    assert torch.allclose(a, attend(q, k, v, Mask(dense=dense_mask(length, window, documents, CPU))), atol=1e-5)


def repeated(q, x):
    """Keys or values (B, H_kv, S, D) as if each head of q had its own: the first of x serves the first H / H_kv."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def flash(q, k, v, cu_seqlens, _, max_q, max_k, *, window_size, enable_gqa=False):
    """What varlen_attn says it does, one document at a time: it runs on CUDA only."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    assert cu_seqlens.dtype == torch.int32 and max_q == max_k >= cu_seqlens.diff().max()
    before, after = window_size
    assert after == 0
    out = torch.empty_like(q)
    for a, b in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        i = torch.arange(b - a)
        far = i[:, None] - i
        mask = (far >= 0) & ((far <= before) if before >= 0 else True)
        part = (x[a:b].transpose(0, 1) for x in (q, k, v))
        if b > a:
            out[a:b] = F.scaled_dot_product_attention(*part, attn_mask=mask).transpose(0, 1)
    return out


@settings(max_examples=20)
@given(
    data=st.data(),
    rows=st.integers(1, 3),
    length=st.integers(2, 20),
    window=st.integers(1, 24),
    shared=st.sampled_from([1, 2, 4]),
)
def test_varlen_is_given_the_same_masks(data, rows, length, window, shared):
    """Its layout, its cu_seqlens and its window, which counts tokens before its own; not its kernel."""
    cfg = dataclasses.replace(TINY, sliding_window=window)
    cu_seqlens = some_borders(data.draw, rows, length) if data.draw(st.booleans()) else None
    q, k, v = torch.randn(3, rows, 4, length, 16, generator=torch.Generator().manual_seed(0))
    k, v = k[:, : 4 // shared], v[:, : 4 // shared]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", flash)
        ids = torch.zeros(rows, length)
        for a, b in zip(MaskBuilder(cfg, "varlen")(ids, cu_seqlens), MaskBuilder(cfg)(ids, cu_seqlens), strict=True):
            assert torch.allclose(attend(q, k, v, a), attend(q, k, v, b), atol=1e-5)
            own = attend(q, repeated(q, k), repeated(q, v), b)
            assert torch.allclose(attend(q, k, v, b), own, atol=1e-5)


def test_heads_that_share_keys_have_the_gradients_of_copies():
    q, k, v = torch.randn(3, 2, 6, 10, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for of_copies in (False, True):
        inputs = [x.clone().requires_grad_() for x in (q, k[:, :2], v[:, :2])]
        a, b, c = inputs
        given_k, given_v = (repeated(a, b), repeated(a, c)) if of_copies else (b, c)
        out = attend(a, given_k, given_v, Mask(dense=dense_mask(10, 4, None, CPU)))
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in inputs)])
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@settings(max_examples=15)
@given(window=st.integers(2, 12), cut=st.integers(1, 23), seed=st.integers(0, 9))
def test_nothing_crosses_a_border(window, cut, seed):
    """Of a whole model: a document's logits are those it has on its own, up to the rounding of rotary positions."""
    model = build(dataclasses.replace(TINY, sliding_window=window), 50, seed)
    ids = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(seed))
    cu_seqlens = torch.tensor([0, cut, 24, 48], dtype=torch.int32)
    masks = model.mask_builder(ids, cu_seqlens)
    whole = model.trunk(ids, masks=masks)
    for part in (slice(0, cut), slice(cut, 24)):
        assert torch.allclose(whole[0, part], model.trunk(ids[:1, part])[0], atol=1e-4)
    assert torch.allclose(whole[1], model.trunk(ids)[1], atol=1e-6)
    other = ids.clone()
    other[0, cut - 1] = (other[0, cut - 1] + 1) % 50  # the last token before the border
    a, b = whole[0], model.trunk(other, masks=masks)[0]
    assert torch.equal(a[cut:], b[cut:]) and not torch.equal(a[cut - 1], b[cut - 1])
    assert not torch.equal(model.trunk(ids)[0, cut], model.trunk(other)[0, cut])  # without masks it is seen


@pytest.mark.slow
@pytest.mark.parametrize("parts", MODELS)
@pytest.mark.parametrize("kernel, documents", [("flex", False), ("flex", True), ("varlen", True)])
def test_the_trunk_is_one_graph_and_stays_it(kernel, documents, parts):
    """No break, and no new compilation for other documents. FlexAttention has no gradient on a CPU, and varlen's kernel
    does not run there at all: it is only traced."""
    torch._dynamo.reset()
    model = build(dataclasses.replace(TINY, sliding_window=100, **MODELS[parts]), 50, 0, bos_id=1)
    model.mask_builder = MaskBuilder(model.cfg, kernel)
    ids = torch.randint(0, 50, (2, 256), generator=torch.Generator().manual_seed(0))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward if kernel == "flex" else lambda *given: (torch.zeros(2, 256, 32),)

    run = torch.compile(model.trunk, dynamic=False, fullgraph=True, backend=count)
    dense = MaskBuilder(model.cfg)
    with torch.no_grad():
        for cuts in ([], [10], [128, 200], range(1, 200, 7), [3]):  # one document a row, and many
            cu_seqlens = torch.tensor([0, *cuts, 256, 300, 512], dtype=torch.int32) if documents else None
            got = run(ids, masks=model.mask_builder(ids, cu_seqlens))
            assert kernel != "flex" or torch.allclose(got, model.trunk(ids, masks=dense(ids, cu_seqlens)), atol=1e-4)
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("parts", MODELS)
def test_a_compiled_trunk_has_the_same_gradients(parts):
    torch._dynamo.reset()
    model = build(dataclasses.replace(TINY, **MODELS[parts]), 50, 0, bos_id=1)
    ids = torch.randint(0, 50, (2, 33), generator=torch.Generator().manual_seed(0))
    results = []
    for run in (model.trunk, torch.compile(model.trunk, dynamic=False, fullgraph=True, backend="eager")):
        model.run_trunk = run
        model.zero_grad()
        total, _ = model(ids[:, :-1], ids[:, 1:], None, torch.tensor([0, 7, 32, 64], dtype=torch.int32))
        total.backward()
        results.append([total.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    torch._dynamo.reset()


def test_the_kernel_is_chosen_and_a_slow_one_said_aloud(capsys, monkeypatch):
    bf16 = torch.bfloat16
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: object())
    assert choose_kernel("auto", TINY, 256, False, CUDA, bf16) == "flex"
    everything = dataclasses.replace(TINY, attention_pattern="all_global")
    assert choose_kernel("auto", everything, 33, False, CUDA, bf16) == "sdpa"  # causal, and nothing to skip
    assert choose_kernel("auto", everything, 256, True, CUDA, bf16) == "flex"
    assert choose_kernel("varlen", TINY, 33, True, CUDA, bf16) == "varlen"
    assert (
        choose_kernel("auto", TINY, 64, True, CPU, bf16) == choose_kernel("sdpa", TINY, 64, True, CPU, bf16) == "sdpa"
    )
    assert capsys.readouterr().err == ""
    for wanted, length in (("auto", 33), ("sdpa", 256)):
        assert choose_kernel(wanted, TINY, length, False, CUDA, bf16) == "sdpa"
        assert "SLOW attention path" in capsys.readouterr().err
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert choose_kernel("auto", TINY, 256, False, CUDA, bf16) == "sdpa"
    assert "triton is not installed" in capsys.readouterr().err
    for wanted, device, dtype in (("flex", CPU, bf16), ("varlen", CPU, bf16), ("varlen", CUDA, torch.float32)):
        with pytest.raises(ConfigError, match=f"train.attention = {wanted}: needs"):
            choose_kernel(wanted, TINY, 256, False, device, dtype)
    with pytest.raises(ConfigError, match="no varlen_attn"):
        choose_kernel("varlen", TINY, 256, False, CUDA, bf16)
