"""What lies in an export, and the lines with which the other project reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.publish.token_files import Written
from train.data.manifest import Manifest
from train.data.tokens import UINT16, token_dtype

PROJECTS = {"raw": "nanoGPT", "olmo": "OLMo-core", "ds": "nanotron and datatrove", "tiktoken": "tiktoken"}
RAW = """\
```sh
ln -s {out} data/{name}      # in nanoGPT's folder
python train.py --dataset={name}{note}
```

`train.bin` and `val.bin` are {dtype}; `meta.pkl` gives train.py the size of the vocabulary, {vocab_size:,}. nanoGPT has
no use for ends of documents: each document ends with the token {bos_id}. sample.py encodes a prompt character by
character; `tokenizer/` does it as the text was.
"""
WIDE = """
The ids need four bytes, and nanoGPT reads two: in its train.py write `dtype=np.uint32` for both `dtype=np.uint16`.
"""
OLMO = """\
```python
from olmo_core.data import NumpyDatasetDType, NumpyFSLDatasetConfig, TokenizerConfig

tokenizer = TokenizerConfig(
    vocab_size={vocab_size}, eos_token_id={bos_id}, pad_token_id={pad_id}, identifier="{out}/tokenizer"
)
config = NumpyFSLDatasetConfig(
    paths=["{out}/train/*.npy"], expand_glob=True, tokenizer=tokenizer, dtype=NumpyDatasetDType.{dtype},
    sequence_length=1024,
)
```

The `.npy` are {dtype} without numpy's header. A line of each `.csv.gz` is a document: start, end, its id here, the file
and the row that it came from.
"""
DS = """\
```python
from datatrove.utils.dataset import DatatroveFolderDataset

dataset = DatatroveFolderDataset("{out}/train", seq_len=1024, token_size={width}, return_positions=True)
```

In a configuration of nanotron:

```yaml
dataset:
  dataset_folder: {out}/train
```

`.ds` are {dtype}, `.ds.index` the ends of documents. The first line of each `.ds.metadata` names the tokenizer, which
nanotron opens: after moving this folder, write its new place there.
"""
TIKTOKEN = """\
```python
import sys

sys.path.insert(0, "{out}")
from encoding import encoding

ids = encoding.encode_ordinary("A text")  # the ids of training; BOS in front of a document is {bos_id}
```

`tokenizer.tiktoken` has a line a token: its bytes in base64, and its rank, which is its id. `tiktoken.json` has the
pattern that cuts text and the special tokens.
"""
BODIES = {"raw": RAW, "olmo": OLMO, "ds": DS, "tiktoken": TIKTOKEN}


def readme(manifest: Manifest, out: Path, form: str, written: Mapping[str, Written]) -> str:
    """Return the README of an export into `out`. written: split -> what there is of it."""
    tokenizer = manifest.tokenizer
    dtype = token_dtype(tokenizer.vocab_size)
    facts = {
        "out": out.absolute(),
        "name": manifest.name,
        "note": "" if written.get("val") else "     # nothing is held out: val.bin is missing",
        "dtype": dtype.name,
        "width": dtype.itemsize,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "pad_id": tokenizer.pad_id,
    }
    what = "The tokenizer" if form == "tiktoken" else "The tokens"
    lines = [f"# {what} of {manifest.name}, mixture {manifest.mixture}, for {PROJECTS[form]}", ""]
    lines += [f"Made from build {manifest.build_id}.", ""]
    for split, (tokens, documents) in written.items():
        lines.append(f"* {split}: {tokens:,} tokens, {documents:,} documents")
    text = "\n".join([*lines, ""] if written else lines) + "\n" + BODIES[form].format(**facts)
    text += WIDE if form == "raw" and dtype != UINT16 else ""
    return text + ends(manifest, written) if written else text


def ends(manifest: Manifest, written: Mapping[str, Written]) -> str:
    """Say how documents end, and what is more or less than in our shards."""
    text = (
        f"\nA document ends with token {manifest.tokenizer.bos_id}, which stands in front of it in the shards of this "
        "project.\n"
    )
    padding = sum(shard.padding for shard in manifest.shards if not shard.source)
    more = sum(count.tokens for count in written.values()) - (manifest.tokens + manifest.val_tokens)
    if padding:
        text += f"{padding:,} tokens of padding, of no document, are left out.\n"
    if more:
        text += f"{more:,} tokens end further parts of documents that are longer than a shard.\n"
    return text
