"""A build whose documents, files and evaluation items are written to break out of a page, or out of a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from built import RECIPE, build, texts

from train.main import run

# Ends elements, scripts and attributes; is a template; moves a cursor; turns the direction of text; hides text.
HOSTILE = (
    '</div></main></body></html><script>alert(1)</script><img src=x onerror=alert(2)>"\' onload="alert(3) '
    "{{ 7 * 7 }}{% include 'x' %}<!-- ]]> \x1b[31mred\x1b]0;title\x07\x9b2J \u202egnp.exe\u202c \u2066\u200f\u061c "
    "\U000e0041\U000e0042 \u2028line \ufeff"
)
RIGHT_TO_LEFT = "שלום עולם مرحبا بالعالم "
FILE = "a <b>&\"'\u202e.jsonl"
ITEM = f"what is {HOSTILE} and " + " ".join(f"exam{i}" for i in range(30))
RULES = [
    {
        "gopher_quality": {
            "min_words": 20,
            "max_words": 10_000,
            "min_mean_word_length": 2,
            "max_mean_word_length": 40,
            "min_stop_words": 0,
            "min_alphabetic_words": 0.6,
        }
    }
]


def documents() -> list[str]:
    """The texts of the hostile source."""
    prose = texts(6, 60)
    long = [" ".join(texts(salt, 6)) for salt in (11, 12)]
    return [
        *(f"{HOSTILE} {RIGHT_TO_LEFT} {text} {text} {i}" for i, text in enumerate(prose)),  # kept, or near-duplicates
        *(f"{HOSTILE} {text} " + "12 34 " * 300 for text in prose[:8]),  # few letters
        *(f"{HOSTILE} {i}" for i in range(6)),  # short
        *(f"{HOSTILE} {text} {end}" for text in long for end in ("one", "two")),  # pairs of near-duplicates
        f"{HOSTILE} {ITEM} {' '.join(texts(13, 6))}",  # a leak
        "word " * 2_000_000,  # a line of 10 MB
    ]


def hostile_build(folder: Path) -> tuple[Path, Path]:
    """Build it and train on it a little. Returns the recipe's file, and the folder of results."""
    (folder / FILE).write_text("".join(json.dumps({"text": text, "url": HOSTILE}) + "\n" for text in documents()))
    (folder / "plain.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(2, 400)))
    (folder / "exam.jsonl").write_text(json.dumps({"question": ITEM}) + "\n")
    recipe = {
        **RECIPE,
        "name": "hostile",
        "sources": {
            "odd": {"from": "jsonl", "path": str(folder / FILE), "url": "url", "rules": RULES},
            "plain": {"from": "jsonl", "path": str(folder / "plain.jsonl"), "license": HOSTILE},
        },
        "decontaminate": {
            "against": {"exam": {"from": "jsonl", "path": str(folder / "exam.jsonl"), "fields": ["question"]}}
        },
        "model": {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 32, "sliding_window": 16},
        "train": {"anneal": {"init_from": "none", "steps": 44, "batch_size": 2, "seq_len": 32, "log_every": 1}},
        "mixtures": {"anneal": {"tokens": 20_000, "ratios": {"odd": "20%", "plain": "80%"}, "max_epochs": 9}},
    }
    build(folder, recipe).save_state()
    results = folder / "build" / "hostile"
    settings = [f"train.out={results / 'train' / 'anneal'}", "train.eval_every=22", "train.spike_sigma=0.01"]
    run(results / "anneal" / "manifest.json", settings)  # every second step is out of the ordinary then
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file, folder / "build"
