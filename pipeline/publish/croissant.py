"""croissant.json: the data set for machines, in the Croissant format, version 1.0 (docs.mlcommons.org/croissant)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.publish.facts import Facts
from train.files import sha256_file

TYPED = {"@type": "@vocab"}
JSON = {"@type": "@json"}
TERMS = re.findall(
    r"\w+",
    "citeAs column conformsTo data dataType equivalentProperty examples extract field fileObject fileProperty fileSet "
    "format includes isLiveDataset jsonPath key md5 parentField path recordSet references regex repeated replace "
    "samplingRate separator source subField transform",
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in TERMS},
    "conformsTo": "dct:conformsTo",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", **JSON},
    "examples": {"@id": "cr:examples", **JSON},
    "dataType": {"@id": "cr:dataType", **TYPED},
}
TYPES = {"string": "sc:Text", "int64": "sc:Integer", "double": "sc:Float", "float": "sc:Float", "bool": "sc:Boolean"}


def croissant(facts: Facts, folder: Path, address: str) -> dict[str, Any]:
    """Return the metadata of the published `folder`. address: its page, or "" where that is not known."""
    manifest = facts.manifest
    files = [file_object(folder, path) for path in sorted((folder / "text").iterdir())]
    stated = list(dict.fromkeys(source.license for source in facts.sources if source.license))
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"{manifest.name}-{manifest.mixture}",
        "description": f"{sum(facts.documents.values()):,} curated documents, {manifest.tokens:,} tokens of which are "
        f"packed as mixture {manifest.mixture} of recipe {manifest.name}, build {manifest.build_id}.",
        **({"license": stated} if stated else {}),
        **({"url": address} if address else {}),
        "distribution": [*files, *map(file_set, sorted(facts.documents))],
        "recordSet": [record_set(folder, source) for source in sorted(facts.documents)],
    }


def file_object(folder: Path, path: Path) -> dict[str, Any]:
    """Return the entry of one file of text."""
    relative = path.relative_to(folder).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": relative,
        "name": relative,
        "contentUrl": relative,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": sha256_file(path),
    }


def file_set(source: str) -> dict[str, Any]:
    """Return the entry of all files of one source."""
    return {
        "@type": "cr:FileSet",
        "@id": f"files/{source}",
        "name": f"files/{source}",
        "encodingFormat": "application/x-parquet",
        "includes": f"text/{source}-*.parquet",
    }


def record_set(folder: Path, source: str) -> dict[str, Any]:
    """Return the documents of one source, with the columns of its files."""
    schema = pq.read_schema(next((folder / "text").glob(f"{source}-*.parquet")))
    return {
        "@type": "cr:RecordSet",
        "@id": source,
        "name": source,
        "description": f"The curated documents of source {source}.",
        "field": [field(source, column) for column in schema if column.name != "document_id"],
    }


def field(source: str, column: pa.Field) -> dict[str, Any]:
    """Return one column."""
    return {
        "@type": "cr:Field",
        "@id": f"{source}/{column.name}",
        "name": f"{source}/{column.name}",
        "description": column.name,
        "dataType": TYPES.get(str(column.type), "sc:Text"),
        "source": {"fileSet": {"@id": f"files/{source}"}, "extract": {"column": column.name}},
    }
