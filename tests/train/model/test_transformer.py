"""The architecture: against a plain transformer to the bit, and the rule of the window."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from train.config import AdamWConfig, ConfigError, ModelConfig, TrainConfig
from train.model.attention import attend
from train.model.layers import Linear, fused_linear, project
from train.model.transformer import build, check_parameters, count_parameters, on_meta_device
from train.optim.optimizer import Optimizer

PLAIN = ModelConfig(
    dim=32,
    n_layers=3,
    n_heads=2,
    max_seq_len=32,
    attention_pattern="all_global",
    lm_head_logit_cap=None,
    z_loss_weight=0,
)
TINY = ModelConfig(dim=16, n_layers=2, n_heads=2, max_seq_len=64, sliding_window=8)


class PlainBlock(nn.Module):
    def __init__(self, d, heads, hidden):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.RMSNorm(d, eps=1e-5), nn.RMSNorm(d, eps=1e-5)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden, bias=False)
        self.down = nn.Linear(hidden, d, bias=False)

    def forward(self, x):
        B, T, d = x.shape
        y = self.n1(x)
        q, k, v = (f(y).view(B, T, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        angle = torch.outer(
            torch.arange(T).double(), 10000.0 ** (-torch.arange(0, d // self.heads, 2).double() / (d // self.heads))
        )
        cos, sin = angle.cos().float(), angle.sin().float()

        def turn(t):
            a, b = t[..., : t.shape[-1] // 2], t[..., t.shape[-1] // 2 :]
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, d))
        y = self.n2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Plain(nn.Module):
    """A causal transformer as anyone would write it."""

    def __init__(self, vocab, d, layers, heads, hidden):
        super().__init__()
        self.embed = nn.Embedding(vocab, d)
        self.blocks = nn.ModuleList(PlainBlock(d, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(d, eps=1e-5)

    def forward(self, ids, targets):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(F.linear(self.norm(x), self.embed.weight).flatten(0, 1), targets.flatten())


def test_with_every_lever_off_it_is_a_plain_transformer_to_the_bit():
    ours = build(PLAIN, 50, seed=1)
    plain = Plain(50, 32, 3, 2, 128)
    mine, theirs = list(ours.parameters()), list(plain.parameters())
    renamed = {"attn_norm": "n1", "mlp_norm": "n2"}
    names = [
        ".".join(renamed.get(p, p) for p in n.split(".") if p not in ("attn", "mlp"))
        for n, _ in ours.named_parameters()
    ]
    plain.load_state_dict(dict(zip(names, mine, strict=True)))
    ids = torch.randint(0, 50, (3, 33), generator=torch.Generator().manual_seed(0))
    rates = AdamWConfig(lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    a = Optimizer(ours, TrainConfig(optimizer="adamw", grad_clip=0, adamw=rates))
    b = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0, fused=True)
    for _ in range(3):
        total, ce = ours(ids[:, :-1], ids[:, 1:])
        loss = plain(ids[:, :-1], ids[:, 1:])
        assert total.item() == loss.item() == ce.item()
        a.grads.zero_()
        b.zero_grad()
        total.backward()
        loss.backward()
        a.step(1.0)
        b.step()
    for (name, p), key in zip(ours.named_parameters(), names, strict=True):
        assert torch.equal(p, plain.get_parameter(key)), name


def test_a_lever_that_is_on_changes_the_loss():
    ids = torch.randint(0, 50, (2, 33))
    base = build(PLAIN, 50, 1)(ids[:, :-1], ids[:, 1:])[0].item()
    for change in ({"lm_head_logit_cap": 0.1}, {"z_loss_weight": 0.1}, {"dropout": 0.5}):
        other = build(dataclasses.replace(PLAIN, **change), 50, 1)
        assert other(ids[:, :-1], ids[:, 1:])[0].item() != base, change


def test_a_sliding_layer_sees_exactly_the_window():
    model = build(dataclasses.replace(TINY, init_std=0.3), 50, seed=2)
    assert model.blocks[0].attn.window == 8 and model.blocks[1].attn.window is None  # even slides, odd is global
    x = torch.randn(1, 24, 16, requires_grad=True)
    cos, sin = model.cos[:24, None], model.sin[:24, None]
    sliding, whole = (partial(attend, mask=mask) for mask in model.mask_builder(torch.zeros(1, 24)))
    model.blocks[0].attn(x, cos, sin, sliding)[0, 20].sum().backward()
    seen = (x.grad[0].abs().sum(-1) > 0).nonzero()[:, 0].tolist()
    assert seen == list(range(13, 21))  # 0 <= 20 - j < 8
    x.grad = None
    model.blocks[1].attn(x, cos, sin, whole)[0, 20].sum().backward()
    assert (x.grad[0].abs().sum(-1) > 0).nonzero()[:, 0].tolist() == list(range(21))


@settings(max_examples=20)
@given(window=st.integers(1, 20), beyond=st.integers(0, 8), after=st.integers(0, 3), seed=st.integers(0, 9))
def test_logits_at_i_change_with_token_i_minus_window_plus_1_and_not_with_the_one_before(window, beyond, after, seed):
    """Of a model of one sliding layer; of a global one they change with either."""
    cfg = dataclasses.replace(TINY, sliding_window=window, init_std=0.3)
    i = window + beyond  # so that both tokens exist
    ids = torch.randint(0, 50, (1, i + 1 + after), generator=torch.Generator().manual_seed(seed))

    def changed(model, position):
        other = ids.clone()
        other[0, position] = (other[0, position] + 1) % 50
        a, b = (model.trunk(x)[0] @ model.head_weight.T for x in (ids, other))
        assert torch.equal(a[:position], b[:position])  # causal
        return not torch.equal(a[i], b[i])

    slide, whole = build(cfg, 50, seed), build(cfg, 50, seed)
    slide.blocks, whole.blocks = slide.blocks[:1], whole.blocks[1:]
    assert not changed(slide, i - window) and changed(slide, i - window + 1)
    assert changed(whole, i - window) and changed(whole, i - window + 1)


def test_a_window_as_long_as_the_sequence_is_plain_causal():
    ids = torch.randint(0, 50, (2, 17), generator=torch.Generator().manual_seed(0))
    cap = dataclasses.replace(TINY, sliding_window=16)
    all_global = dataclasses.replace(TINY, attention_pattern="all_global")
    assert torch.equal(
        build(cap, 50, 1)(ids[:, :-1], ids[:, 1:])[0], build(all_global, 50, 1)(ids[:, :-1], ids[:, 1:])[0]
    )
    shorter = dataclasses.replace(TINY, sliding_window=15)
    assert build(shorter, 50, 1)(ids[:, :-1], ids[:, 1:])[0] != build(cap, 50, 1)(ids[:, :-1], ids[:, 1:])[0]


def test_fused_projections_are_those_apart():
    linears = [Linear(16, n) for n in (16, 16, 24)]
    for linear in linears:  # a Linear is empty until `build` or a checkpoint fills it
        torch.nn.init.normal_(linear.weight)
    x = torch.randn(2, 5, 16, requires_grad=True)
    results = []
    for f in (project, fused_linear):
        outs = f(x, *linears)
        torch.autograd.backward(outs, [torch.ones_like(y) for y in outs])
        results.append([*outs, x.grad, *(linear.weight.grad for linear in linears)])
        x.grad = None
        for linear in linears:
            linear.weight.grad = None
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    bf16 = fused_linear(x.bfloat16(), *linears)
    assert [y.shape[-1] for y in bf16] == [16, 16, 24] and bf16[0].dtype == torch.bfloat16


def test_weights_depend_on_the_seed_only_and_have_the_std():
    a, b, c = build(TINY, 500, 1), build(TINY, 500, 1), build(TINY, 500, 2)
    assert torch.equal(a.embed.weight, b.embed.weight) and not torch.equal(a.embed.weight, c.embed.weight)
    assert a.embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
    untied = build(dataclasses.replace(TINY, tie_embeddings=False), 500, 1)
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in a.parameters()) == 500 * 16


def test_logits_agree_with_the_training_path():
    model = build(dataclasses.replace(TINY, init_std=0.3), 50, 3)
    ids = torch.randint(0, 50, (1, 20))
    nll = model.score(ids[:, :-1], ids[:, 1:])[0, -1]
    want = -torch.log_softmax(model.logits(model.trunk(ids[:, :-1]))[0, -1], -1)[ids[0, -1]]
    assert torch.allclose(nll, want, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"engram_enabled": True, "engram_inject_layer": 1}])
def test_parameters_are_counted_without_memory_as_they_are_built(changes):
    cfg = dataclasses.replace(TINY, **changes)
    assert count_parameters(cfg, 50) == sum(p.numel() for p in build(cfg, 50, 0).parameters())
    random_state = torch.get_rng_state()
    counted = on_meta_device(cfg, 50)
    assert all(p.is_meta for p in counted.parameters()) and torch.equal(torch.get_rng_state(), random_state)


def test_parameters_and_vocabulary_are_asserted():
    assert check_parameters(dataclasses.replace(TINY, expect_params=None), 50) > 0
    with pytest.raises(ConfigError, match="expect_params says 7"):
        check_parameters(dataclasses.replace(TINY, expect_params=7), 50)
    with pytest.raises(ConfigError, match="tokenizer has 50"):
        check_parameters(dataclasses.replace(TINY, vocab_size=49), 50)
