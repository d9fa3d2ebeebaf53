"""The keys of a model: its shape, its parts and their first values (see train/keys.py).

Without a word it is the seed's Shard-40m. Every other part is off by default, and then the model runs the operations it
would run if the part did not exist, and checkpoints do not name it (`switch`). Formulas and sources of the parts are in
docs/trainer-math.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from train.keys import ConfigError, Keys, check, key, keys_fixed_by_weights

LayerKind = Literal["sliding", "global"]
MOST_WIDTH = 2**20  # of a matrix, by a single key: products of them stay far below what an index can count
MOST_ROWS = 2**31  # of a table, or of a text
MOST_PARTS = 1024  # built one by one: a slip of the hand should be an error, and not an hour


@dataclass(frozen=True)
class ModelConfig(Keys):
    """The architecture. The defaults are Shard-40m's: 54,538,752 parameters with a vocabulary of 8192 ids."""

    where = "model"

    dim: int = key(512, "Width of the residual stream.", above=0, at_most=MOST_WIDTH, fixed_by="weights")
    n_layers: int = key(12, "Number of blocks; even for gemma4.", above=0, at_most=MOST_PARTS, fixed_by="weights")
    n_heads: int = key(8, "Attention heads.", above=0, at_most=MOST_WIDTH, fixed_by="weights")
    n_kv_heads: int | None = key(
        None,
        "Heads of keys and values, each of which n_heads / n_kv_heads heads share; null: n_heads.",
        above=0,
        at_most=MOST_WIDTH,
        fixed_by="weights",
        switch="n_kv_heads",
    )
    head_dim: int | None = key(
        None,
        "Width of a head; null: dim / n_heads. All heads together may be wider or narrower than dim.",
        above=0,
        at_most=MOST_WIDTH,
        fixed_by="weights",
    )
    qk_norm: Literal["none", "rms", "weighted"] = key(
        "none",
        "RMSNorm over the width of each head of q and k, ahead of the rotation; weighted: with a weight, as `norm` has "
        "it.",
        fixed_by="weights",
        switch="qk_norm",
    )
    q_gain: float | None = key(
        None,
        "Multiply each head's q, after the rotation, by a learned number that starts at this; null: no gain.",
        at_least=-1e6,
        at_most=1e6,
        fixed_by="weights",
        switch="q_gain",
    )
    mlp: Literal["swiglu", "geglu", "relu2"] = key(
        "swiglu",
        "The MLP: down(f(gate x) * up x) with f silu for swiglu and gelu (tanh) for geglu; down(relu(up x)²) for "
        "relu2.",
        fixed_by="weights",
        switch="mlp",
    )
    mlp_hidden: int | None = key(
        None, "Width inside the MLP; null: 4 * dim.", above=0, at_most=MOST_WIDTH, fixed_by="weights"
    )
    max_seq_len: int = key(
        8192,
        "Tokens that the table of rotary positions covers; train.seq_len may not exceed it.",
        above=0,
        at_most=MOST_ROWS,
    )
    attention_pattern: Literal["all_global", "gemma4"] = key(
        "gemma4",
        "Which layers see the whole row. gemma4: the odd ones, counted from 0; the even ones have a sliding window.",
        fixed_by="weights",
    )
    layer_kinds: tuple[LayerKind, ...] | None = key(
        None,
        "Each layer by itself, sliding or global, instead of attention_pattern; null: by that.",
        fixed_by="weights",
        switch="layer_kinds",
    )
    sliding_window: int = key(
        1024,
        "Tokens that a layer with a sliding window sees, its own included.",
        above=0,
        at_most=MOST_ROWS,
        fixed_by="weights",
    )
    rope_base: float = key(
        10000.0, "Base of the rotary frequencies, the same in all layers.", above=0, fixed_by="weights"
    )
    rope_base_global: float | None = key(
        None,
        "Base of the rotary frequencies in global layers; null: rope_base.",
        above=0,
        fixed_by="weights",
        switch="rope_base_global",
    )
    rope_dims: int | None = key(
        None,
        "The first so many channels of a head rotate, the others do not; null: all do.",
        above=0,
        at_most=MOST_WIDTH,
        fixed_by="weights",
        switch="rope_dims",
    )
    rope_table: Literal["fp32", "bf16_freq"] = key(
        "fp32",
        "bf16_freq: frequencies rounded to bfloat16, as models have them that were cast with their buffers "
        "(parameter-golf's). It blurs far positions.",
        fixed_by="weights",
        switch="rope_table",
    )
    norm: Literal["weighted", "one_plus", "plain"] = key(
        "weighted",
        "What RMSNorm multiplies by: a weight that starts at 1; 1 + w, w starting at 0; nothing.",
        fixed_by="weights",
        switch="norm",
    )
    norm_eps: float = key(1e-5, "Added to the mean square in RMSNorm.", above=0, fixed_by="weights")
    sandwich_norms: bool = key(
        False,
        "Norm what attention and the MLP give, ahead of adding it, besides what they are given.",
        fixed_by="weights",
        switch="sandwich_norms",
    )
    embed_norm: bool = key(False, "Norm the stream behind the embedding.", fixed_by="weights", switch="embed_norm")
    embed_scale: Literal["none", "sqrt_dim", "sqrt_dim_rounded"] = key(
        "none",
        "Multiply embeddings by sqrt(dim); rounded: by that in the type of activations, as transformers does.",
        fixed_by="weights",
        switch="embed_scale",
    )
    smear: bool = key(
        False,
        "SmearGate: mix each embedding with the one before it, by a learned gate a channel.",
        fixed_by="weights",
        switch="smear",
    )
    smear_bos_mask: bool = key(
        False,
        "Mix nothing into the embedding of BOS, so that nothing of one document gets into the next.",
        fixed_by="weights",
        switch="smear_bos_mask",
    )
    bigram_buckets: int = key(
        0,
        "BigramHash: rows of a table that pairs of neighboring ids share, added to the embedding; 0: none.",
        at_least=0,
        at_most=MOST_ROWS,
        fixed_by="weights",
        switch="bigram_buckets",
    )
    bigram_dim: int = key(
        128,
        "Width of that table, ahead of its projection.",
        above=0,
        at_most=MOST_WIDTH,
        fixed_by="weights",
        switch="bigram_buckets",
    )
    bigram_init: Literal["orthogonal", "zero"] = key(
        "orthogonal",
        "First values of that projection; the table starts at 0. zero: as parameter-golf PR #352 has it, where both "
        "are 0, no gradient reaches either, and the part never trains.",
        switch="bigram_buckets",
    )
    memory_tokens: int = key(
        0,
        "Learned embeddings that take the place of a row's first so many, which are no targets then; in evaluation "
        "and generation they can stand in front of the text. 0: none.",
        at_least=0,
        at_most=MOST_ROWS,
        fixed_by="weights",
        switch="memory_tokens",
    )
    residual_mix: bool = key(
        False,
        "Begin each block with a x + b x0, x0 being the stream ahead of the first; a and b are learned, one a channel.",
        fixed_by="weights",
        switch="residual_mix",
    )
    branch_scales: bool = key(
        False,
        "Multiply what attention and the MLP add by a learned number a channel.",
        fixed_by="weights",
        switch="branch_scales",
    )
    depth_scale: bool = key(
        False,
        "Multiply normed inputs of attention and the MLP by 1 / sqrt(layer + 1), layers counted from 0.",
        fixed_by="weights",
        switch="depth_scale",
    )
    unet_skips: bool = key(
        False,
        "Add to the input of each block of the second half what its mirror in the first half gave, times a learned "
        "number a channel.",
        fixed_by="weights",
        switch="unet_skips",
    )
    mtp_heads: int = key(
        0,
        "Heads that predict further tokens in training: the second after the present, the third and so on. 0: none.",
        at_least=0,
        at_most=MOST_PARTS,
        fixed_by="weights",
        switch="mtp_heads",
    )
    mtp_weight: float = key(
        0.2, "Weight of the mean of those heads' losses beside the main one.", at_least=0, switch="mtp_heads"
    )
    mtp_decay: Literal["none", "rate", "previous_rate"] = key(
        "rate",
        "What that weight is multiplied by in each step. rate: the factor of its learning rate; previous_rate: that of "
        "the step before, only to repeat a public record.",
        switch="mtp_heads",
    )
    engram_enabled: bool = key(
        False,
        "Have a bank of learned keys and values, the engram, that every position reads.",
        fixed_by="weights",
        switch="engram_enabled",
    )
    engram_slots: int = key(
        512,
        "Pairs of key and value in the engram.",
        above=0,
        at_most=MOST_ROWS,
        fixed_by="weights",
        switch="engram_enabled",
    )
    engram_inject_layer: int = key(
        6, "The block, counted from 0, ahead of which the engram is read.", fixed_by="weights", switch="engram_enabled"
    )
    dropout: float = key(0.0, "Probability of dropout on the output of attention and of the MLP.", at_least=0, below=1)
    tie_embeddings: bool = key(True, "Use the embedding as the head too.", fixed_by="weights")
    lm_head_logit_cap: float | None = key(30.0, "Logits z become cap * tanh(z / cap); null: no cap.", above=0)
    z_loss_weight: float = key(1e-4, "Weight of the z-loss, the mean square of the log-partition; 0: none.", at_least=0)
    init: Literal["normal", "orthogonal", "linear"] = key(
        "normal",
        "First values of the matrices: from N(0, init_std²); orthogonal; or uniform in ±1 / sqrt(inputs), as "
        "torch.nn.Linear has them. Embeddings, memory and engram are always normal.",
        switch="init",
    )
    init_std: float = key(0.02, "Standard deviation of what starts normal.", at_least=0)
    embed_init_std: float | None = key(
        None, "Standard deviation of the embedding at the start; null: init_std.", at_least=0, switch="embed_init_std"
    )
    zero_init_out: bool = key(
        False,
        "Start the last matrix of attention and of the MLP at 0, so that every block starts as the identity.",
        switch="zero_init_out",
    )
    expect_params: int | None = key(
        None, "The number of trained parameters that this model must turn out to have; null: not asserted."
    )
    vocab_size: int | None = key(
        None,
        "The number of ids that the tokenizer must turn out to have; null: not asserted.",
        fixed_by="weights",
    )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def rotary_size(self) -> int:
        """Channels of a head that rotate."""
        return self.head_size if self.rope_dims is None else self.rope_dims

    @property
    def hidden(self) -> int:
        """Width inside the MLP."""
        return 4 * self.dim if self.mlp_hidden is None else self.mlp_hidden

    @property
    def has_sliding_layers(self) -> bool:
        """Whether any layer has a window."""
        return not all(map(self.is_global, range(self.n_layers)))

    @property
    def layers_text(self) -> str:
        """Which layers see what, in words."""
        if self.layer_kinds is None:
            return self.attention_pattern
        count = sum(map(self.is_global, range(self.n_layers)))
        return f"{self.n_layers - count} sliding and {count} global"

    def is_global(self, layer: int) -> bool:
        """Return whether `layer` attends to everything before it.

        Where attention_pattern says so, odd ones do, so that the last of an even number does.
        """
        if self.layer_kinds is not None:
            return self.layer_kinds[layer] == "global"
        return self.attention_pattern == "all_global" or layer % 2 == 1

    def further_parts(self) -> dict[str, Any]:
        """Return the keys, with their values, that make the model another than Shard can be."""
        own = [field.name for field in dataclasses.fields(self) if field.metadata["switch"] == field.name]
        parts = {name: getattr(self, name) for name in own if name in keys_fixed_by_weights(ModelConfig)}
        changed = {name: value for name, value in parts.items() if value != getattr(ModelConfig, name)}
        changed.pop("engram_enabled", None)
        if self.n_heads * self.head_size != self.dim:
            changed["head_dim"] = self.head_dim
        return changed

    def without_training_parts(self) -> ModelConfig:
        """Return the configuration of what is exported: heads of further tokens are trained and not used."""
        return dataclasses.replace(self, mtp_heads=0, expect_params=None) if self.mtp_heads else self

    def fixed_by_run(self) -> dict[str, Any]:
        """Return what `Keys.fixed_by_run` does, with the defaults that follow from other keys filled in."""
        values = super().fixed_by_run() | {"head_dim": self.head_size, "mlp_hidden": self.hidden}
        if self.kv_heads == self.n_heads:
            values.pop("n_kv_heads", None)
        return values

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_heads()
        self._check_layers()
        check(
            not self.smear_bos_mask or self.smear,
            "model.smear_bos_mask = True: it is the smear's; set model.smear=true",
        )
        check(
            self.bigram_buckets != 1,
            "model.bigram_buckets = 1: must be 0, or at least 2: the last one is for a row's first token",
        )

    def _check_heads(self) -> None:
        if self.head_dim is None:
            check(
                self.dim % self.n_heads == 0,
                f"model.n_heads = {self.n_heads}: must divide model.dim = {self.dim}, or say model.head_dim",
            )
        check(self.head_size % 2 == 0, f"model.head_dim = {self.head_size}: must be even (rotary halves)")
        check(
            self.n_heads % self.kv_heads == 0,
            f"model.n_kv_heads = {self.kv_heads}: must divide model.n_heads = {self.n_heads}",
        )
        check(
            self.rotary_size % 2 == 0 and self.rotary_size <= self.head_size,
            f"model.rope_dims = {self.rotary_size}: must be even, and at most the width of a head, {self.head_size}",
        )

    def _check_layers(self) -> None:
        if self.layer_kinds is None:
            check(
                self.attention_pattern != "gemma4" or self.n_layers % 2 == 0,
                f"model.n_layers = {self.n_layers}: gemma4 needs an even number, so that the last layer is global",
            )
        elif len(self.layer_kinds) != self.n_layers or not {*self.layer_kinds} <= {"sliding", "global"}:
            raise ConfigError(
                f"model.layer_kinds = {', '.join(self.layer_kinds)}: must be sliding or global for each of "
                f"model.n_layers = {self.n_layers}"
            )
        check(
            not self.engram_enabled or 0 <= self.engram_inject_layer < self.n_layers,
            f"model.engram_inject_layer = {self.engram_inject_layer}: must be in [0, model.n_layers = {self.n_layers})",
        )
