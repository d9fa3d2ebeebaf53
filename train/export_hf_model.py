"""The Shard architecture for Hugging Face transformers, in one file that imports torch and transformers only.

Of transformers it needs 4.57 or later; the names that differ in 4 and 5 are asked for where they are used.

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

A pre-norm transformer: RMSNorm, rotary positions, SwiGLU, no biases. With layer_types alternating, even layers see
the last `sliding_window` tokens (0 <= i - j < window) and odd ones all. Logits are capped: cap * tanh(z / cap). Ahead
of layer `engram_inject_layer`, if there is an engram, every position reads a bank of learned keys and values.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

try:
    from transformers import initialization  # of 5: it leaves a parameter that was loaded as it is
except ImportError:
    from torch.nn import init as initialization  # type: ignore[no-redef]

MASK_MAKERS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
MASK_ARGUMENTS = frozenset(inspect.signature(create_causal_mask).parameters)


class ShardConfig(PretrainedConfig):
    """The defaults are Shard-40m-v1."""

    model_type = "shard"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 8192,
        hidden_size: int = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,  # every head has its own keys and values
        intermediate_size: int = 2048,
        max_position_embeddings: int = 8192,  # of training; longer texts run
        sliding_window: int = 1024,  # tokens a sliding layer sees, itself included
        layer_types: list[str] | None = None,  # sliding_attention or full_attention; None: full in odd layers
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-5,
        final_logit_softcapping: float | None = 30.0,  # None: off
        engram_slots: int = 0,  # pairs in the bank; 0: no engram
        engram_inject_layer: int = 6,  # it is read ahead of this layer, counted from 0
        residual_dropout: float = 0.0,  # on the output of attention and of the MLP
        initializer_range: float = 0.02,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 0,  # a text ends where the next one begins
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.max_position_embeddings, self.sliding_window = max_position_embeddings, sliding_window
        kinds = ("sliding_attention", "full_attention")
        self.layer_types = layer_types or [kinds[layer % 2] for layer in range(num_hidden_layers)]
        self.rope_theta, self.rms_norm_eps = rope_theta, rms_norm_eps
        self.final_logit_softcapping = final_logit_softcapping
        self.engram_slots, self.engram_inject_layer = engram_slots, engram_inject_layer
        self.residual_dropout, self.initializer_range = residual_dropout, initializer_range
        self.use_cache = use_cache
        kwargs |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)  # type: ignore[call-arg] # as 5 names it

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads


def rope(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, (B, 1, T, head_dim / 2) fp32, of position * base ** (-2k / head_dim), for positions (B, T).

    Computed in fp64 where the device has it, so that a later position is as exact as an early one.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    k = torch.arange(0, head_dim, 2, dtype=wide, device=positions.device)
    angles = positions[:, None, :, None].to(wide) * base ** (-k / head_dim)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) turned by +theta, the first half of D paired with the second; in fp32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class ShardRMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; statistics in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class ShardAttention(nn.Module):
    """Multi-head attention over what the mask shows."""

    def __init__(self, config: ShardConfig, layer: int) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads, self.layer = config.num_attention_heads, layer
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None, places: Tensor
    ) -> Tensor:
        """places (T,): where in the cache the new keys go, which transformers 4 wants to be told."""
        B, T, d = x.shape
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).view(B, T, self.heads, -1).transpose(1, 2) for p in projections)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, self.layer, {"cache_position": places})
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and T > 1)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, d))


class ShardMLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, config: ShardConfig) -> None:
        super().__init__()
        d, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ShardLayer(GradientCheckpointingLayer):
    """Attention and MLP, each on a normed copy, added to the stream."""

    def __init__(self, config: ShardConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = ShardRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ShardAttention(config, layer)
        self.post_attention_layernorm = ShardRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ShardMLP(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None, places: Tensor
    ) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask, cache, places))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class ShardEngram(nn.Module):
    """x + gate * softmax(norm(x) Kᵀ / sqrt(d)) V, with K and V learned."""

    def __init__(self, config: ShardConfig) -> None:
        super().__init__()
        slots, d = config.engram_slots, config.hidden_size
        self.norm = ShardRMSNorm(d, config.rms_norm_eps)
        self.keys, self.values = (nn.Parameter(torch.empty(slots, d)) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.norm(x) @ self.keys.T).float() * x.shape[-1] ** -0.5  # (B, T, slots)
        return x + self.gate * (torch.softmax(scores, -1).to(x.dtype) @ self.values)


class ShardPreTrainedModel(PreTrainedModel):
    """What transformers asks of every model."""

    config_class = ShardConfig
    config: ShardConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ShardLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ShardEngram):
            initialization.normal_(module.keys, 0.0, self.config.initializer_range)
            initialization.normal_(module.values, 0.0, self.config.initializer_range)
            initialization.zeros_(module.gate)


class ShardModel(ShardPreTrainedModel):
    """Token ids to normed states."""

    def __init__(self, config: ShardConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ShardLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = ShardRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.engram = ShardEngram(config) if config.engram_slots else None
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids (B, T), or inputs_embeds (B, T, d). attention_mask (B, columns so far): 0 where there is padding.

        hidden_states, if asked for, are the stream ahead of each layer, and the result.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        config = self.config
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values
        if cache is None and (config.use_cache if use_cache is None else use_cache) and not self.training:
            cache = DynamicCache(config=config)
        if cache_position is None:
            start = 0 if cache is None else cache.get_seq_length()
            cache_position = torch.arange(x.shape[1], device=x.device) + start
        if position_ids is None:
            position_ids = cache_position[None]
        masks: Any = attention_mask  # generate() with a static cache makes the masks itself
        if not isinstance(masks, dict):
            asked: dict[str, Any] = {
                "config": config,
                "inputs_embeds": x,
                "input_embeds": x,  # in transformers 4
                "attention_mask": attention_mask,
                "past_key_values": cache,
                "position_ids": position_ids,
                "cache_position": cache_position,
            }
            known = {name: value for name, value in asked.items() if name in MASK_ARGUMENTS}
            masks = {kind: MASK_MAKERS[kind](**known) for kind in set(config.layer_types)}
        cos, sin = rope(position_ids, config.head_dim, config.rope_theta)
        streams: tuple[Tensor, ...] = ()
        for number, (layer, kind) in enumerate(zip(self.layers, config.layer_types, strict=True)):
            streams += (x,) if output_hidden_states else ()
            if self.engram is not None and number == config.engram_inject_layer:
                x = self.engram(x)
            x = layer(x, cos, sin, masks[kind], cache, cache_position)
        x = self.norm(x)
        shown = (*streams, x) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=cache, hidden_states=shown)


class ShardForCausalLM(ShardPreTrainedModel, GenerationMixin):
    """The language model: states to capped logits, and the loss when labels are given."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: ShardConfig) -> None:
        super().__init__(config)
        self.model = ShardModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """labels (B, T): the ids themselves, shifted here; -100 where none is asked. logits_to_keep: of the last n."""
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            cache_position,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept]).float()
        cap = self.config.final_logit_softcapping
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )
