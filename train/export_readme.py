"""The README of a model for transformers: what it is, what it needs, how it is loaded, and what it read."""

from __future__ import annotations

from train.checkpoint.load_model import TrainedModel
from train.data.manifest import Tokenizer
from train.model.transformer import count_parameters

README = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# {title}

{parameters:,} parameters, trained on windows of {seq_len:,} tokens. A base model: it continues texts.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER{trust})
model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto"{trust})
batch = tokenizer(["The capital"], return_tensors="pt")  # BOS is put in front
print(tokenizer.batch_decode(model.generate(**batch, max_new_tokens=50))[0])
```

* It needs transformers from 4.57 on, whose `dtype="auto"` takes the weights in the type that they are stored in.
* A text begins with `{bos}`, which the tokenizer puts in front. For a piece of text that goes on give
  `add_special_tokens=False`, or a second BOS begins another text in the middle.
* `{bos}` and the like written in a text become the tokens themselves. In texts of others give
  `split_special_tokens=True`, as in training, where text never spelled one.
* Texts longer than `max_position_embeddings`, {max_seq_len:,}, run, but nothing of that length was learned.

Checkpoint {checkpoint}, of data build {build}.
"""


def readme(trained: TrainedModel, has_code: bool = True) -> str:
    """Return the model card: what it is, how to load it, and what it read, if the manifest is of its own build.

    has_code: the folder holds the model's code, which whoever loads it has to trust.
    """
    manifest, origin = trained.manifest, trained.provenance()
    title = f"{origin['name']}, {origin['phase']}, step {origin['step']:,}"
    text = README.format(
        title=f"{title}, {trained.average}" if trained.average else title,
        parameters=count_parameters(trained.cfg, manifest.tokenizer.vocab_size),
        seq_len=trained.seq_len,
        max_seq_len=trained.cfg.max_seq_len,
        bos=bos_name(manifest.tokenizer),
        trust=", trust_remote_code=True" if has_code else "",
        checkpoint=origin["checkpoint_sha256"],
        build=origin["build_id"],
    )
    if manifest.build_id != origin["build_id"] or not manifest.sources:
        return text
    rows = [f"| {s.name} | {s.tokens:,} | {s.license or 'not stated'} |" for s in manifest.sources]
    return "\n".join([text, "| source | tokens in the mixture | license |", "|---|---|---|", *rows]) + "\n"


def bos_name(tokenizer: Tokenizer) -> str:
    """Return how BOS is written."""
    return next(name for name, i in tokenizer.special_ids.items() if i == tokenizer.bos_id)
