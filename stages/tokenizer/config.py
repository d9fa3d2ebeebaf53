"""The recipe's group `tokenizer`: the byte-level BPE that is trained, or taken as it is."""

from __future__ import annotations

import importlib.util
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.config import Count, Model
from stages.tokenizer.spec import PIECE_SPECIALS, SPECIALS
from train.tokenizer.vocabulary import MOST_IDS


class TokenizerConfig(Model):
    """The byte-level BPE that the pipeline trains, or takes as it is (`from`)."""

    kind: Literal["byte_level", "sentencepiece"] = Field(
        "byte_level",
        description="What is trained. sentencepiece: a .model as the parameter-golf scripts read it, made with the "
        "package of that name; digits stand alone, and what is no piece is spelled in bytes.",
    )
    model_type: Literal["bpe", "unigram"] = Field("bpe", description="Of sentencepiece: how its pieces are found.")
    source: str | None = Field(
        None,
        alias="from",
        description="A tokenizer to take as it is: tokenizer.json, its folder, owner/name[@revision] of the hub, or a "
        "SentencePiece .model that changes no text, of the hub as owner/name/tokenizer.model.",
    )
    bos: str | None = Field(None, description="With `from`: the special token between documents, if not a known name.")
    vocab_size: Count | None = Field(
        None,
        description="Ids in all: specials, 256 bytes and merges. Default 8192, or what `from` has, whose special ids "
        "beyond may be left out. Above 65,536 each is stored in four bytes instead of two.",
    )
    split: Literal["gpt4", "gpt2", "gpt4_marks"] = Field(
        "gpt4",
        description="How text is cut before merging, as GPT-4 or GPT-2 do; gpt4_marks keeps combining marks with their "
        "letters, for Hindi, Thai, Arabic and other scripts with marks.",
    )
    digits: Annotated[int, Field(ge=1, le=9)] | None = Field(
        None, description="Most digits in a token; gpt4 has 3, gpt2 no limit. Others but gpt4 with 1 encode slower."
    )
    reserved: Annotated[int, Field(ge=0, le=4096)] | list[str] = Field(
        0, description="Special tokens after the 8 that are always there: how many, or their names as <|name|>."
    )
    sample: Count = Field(20_000_000, description="Bytes of text to train on and report on, stratified by source.")

    def reserved_names(self) -> list[str]:
        """Return the special tokens asked for, in the order of their ids, which follow the 8 that are always there."""
        if isinstance(self.reserved, int):
            return [f"<|reserved_{n}|>" for n in range(1, self.reserved + 1)]
        return list(self.reserved)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("from", value.get("source")) is None:
            return {**value, "vocab_size": 8192 if value.get("vocab_size") is None else value["vocab_size"]}
        return value

    @model_validator(mode="after")
    def _fits(self) -> TokenizerConfig:
        names = [*(SPECIALS if self.kind == "byte_level" else PIECE_SPECIALS), *self.reserved_names()]
        if self.source is None and self.bos is not None:
            raise ValueError(f"bos goes with `from`; a tokenizer that is trained here has {SPECIALS[0]}")
        fields = type(self).model_fields
        given = [
            key
            for key in ("kind", "model_type", "split", "digits", "reserved")
            if getattr(self, key) != fields[key].default
        ]
        if self.source is not None and given:
            raise ValueError(f"{', '.join(given)} cannot be set with `from`: that tokenizer is taken as it is")
        if self.kind == "sentencepiece":
            self._check_sentencepiece()
        elif self.model_type != fields["model_type"].default:
            raise ValueError("model_type goes with kind: sentencepiece")
        for name in names[-len(self.reserved_names()) or len(names) :]:
            if not re.fullmatch(r"<\|[A-Za-z][A-Za-z0-9_.-]*\|>", name) or names.count(name) > 1:
                raise ValueError(
                    f"reserved names {name!r}; write each once, as <|name|>, and none that is always there"
                )
        least = len(names) + 256
        size = self.vocab_size or least
        if size > MOST_IDS:
            raise ValueError(f"vocab_size is {size:,}: no vocabulary has more than {MOST_IDS:,}; lower it")
        if size < least:
            raise ValueError(f"vocab_size is {size}: special tokens and the 256 bytes alone take {least}")
        return self

    def _check_sentencepiece(self) -> None:
        if self.split != "gpt4" or self.digits is not None:
            raise ValueError("split and digits are not for kind: sentencepiece, which cuts at spaces and every digit")
        if importlib.util.find_spec("sentencepiece") is None:
            raise ValueError("kind: sentencepiece needs the package: pip install 'shardmill[sentencepiece]'")
