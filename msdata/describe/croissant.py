"""Makes the data card for machines: Croissant JSON-LD, which search engines and loaders read.

Source: the Croissant format specification 1.0, docs.mlcommons.org/croissant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from msdata.describe.card import IMAGING, CardText, default_description
from msdata.describe.info import DatasetInfo
from msdata.schema import Survey

CROISSANT_NAME = "croissant.json"
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
_FORMATS = {
    "tar": ("application/x-tar", "*.tar"),
    "hdf5": ("application/x-hdf5", "*.h5"),
    "indexed": ("application/octet-stream", "*"),
}
_FILE_FORMATS = {
    ".json": "application/json",
    ".parquet": "application/x-parquet",
    ".csv": "text/csv",
}
# Of the format's vocabulary, unless another meaning is given; in the order of the specification.
_MEANINGS: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
}
_TERMS = """
    @language @vocab citeAs column conformsTo cr rai data dataType dct equivalentProperty
    examples extract field fileProperty fileObject fileSet format includes isLiveDataset
    jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate
    sc separator source subField transform
"""
_CONTEXT = {term: _MEANINGS.get(term, f"cr:{term}") for term in _TERMS.split()}


def croissant(
    info: DatasetInfo, text: CardText, sums: Mapping[str, str], columns: Mapping[str, str]
) -> dict[str, Any]:
    """Makes the JSON-LD.

    Args:
        info: result of `describe`.
        text: facts that the user supplied.
        sums: SHA-256 by file; `index.parquet` among them.
        columns: name and Parquet type of every column of the index.
    """
    manifest = info.manifest
    known: dict[str, Any] = {
        "license": text.license,
        "url": text.url,
        "citeAs": text.cite,
        "datePublished": text.published,
        "creator": None
        if text.creator is None
        else {"@type": "Organization", "name": text.creator},
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": text.name,
        "description": text.description or default_description(info),
        "conformsTo": CONFORMS_TO,
        **{name: value for name, value in known.items() if value is not None},
        # Croissant requires three numbers; the fingerprint identifies the content.
        "version": f"1.0.0+{manifest.fingerprint}",
        "isBasedOn": [IMAGING[n][0] for n in manifest.schema.names if n in IMAGING],
        "distribution": [*_files(sums), *_shards(info)],
        "recordSet": [_samples(columns), _arrays(info)],
    }


def _files(sums: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "contentUrl": name,
            "encodingFormat": _FILE_FORMATS.get("." + name.rsplit(".", 1)[-1], "text/plain"),
            "sha256": digest,
        }
        for name, digest in sums.items()
        if "/" not in name
    ]


def _shards(info: DatasetInfo) -> list[dict[str, Any]]:
    kind, pattern = _FORMATS[info.manifest.container]
    return [
        {
            "@type": "cr:FileSet",
            "@id": quote(f"{split.name}-shards"),
            "name": quote(f"{split.name}-shards"),
            "description": f"{split.num_samples} samples in {split.num_shards} shards",
            "encodingFormat": kind,
            "includes": f"{split.name}/{pattern}",
        }
        for split in info.splits
    ]


def _samples(columns: Mapping[str, str]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "One row per sample, in the order of the shards: its place and labels.",
        "key": {"@id": "samples/sample_id"},
        "field": [
            {
                # The id must be an IRI.
                **_field(f"samples/{quote(name)}", _data_type(kind)),
                # Steps of the codes, one per band.
                **({"repeated": True} if "list<" in kind else {}),
                "source": {"fileObject": {"@id": "index.parquet"}, "extract": {"column": name}},
            }
            for name, kind in columns.items()
        ],
    }


def _field(name: str, data_type: str) -> dict[str, Any]:
    return {"@type": "cr:Field", "@id": name, "name": name, "dataType": data_type}


def _data_type(kind: str) -> str:
    if kind.startswith(("int", "uint")):
        return "sc:Integer"
    if kind.startswith(("float", "double", "half")) or "list<" in kind:
        return "sc:Float"
    return "sc:Boolean" if kind == "bool" else "sc:Text"


def _arrays(info: DatasetInfo) -> dict[str, Any]:
    names = ("name", "shape", "dtype", "bands", "pixel_scale_arcsec", "unit", "zero_points_ab")
    return {
        "@type": "cr:RecordSet",
        "@id": "arrays",
        "name": "arrays",
        "description": "The arrays of every sample, as members of the shards.",
        "field": [_field(f"arrays/{name}", "sc:Text") for name in names],
        "data": [
            {f"arrays/{name}": value for name, value in zip(names, _described(a), strict=True)}
            for a in info.manifest.schema.arrays
        ],
    }


def _described(array: Survey) -> tuple[str, ...]:
    zero_points = array.zero_points_ab
    return (
        array.name,
        ",".join(map(str, array.shape)),
        array.dtype,
        ",".join(array.bands),
        "" if array.pixel_scale_arcsec is None else f"{array.pixel_scale_arcsec:g}",
        array.unit,
        "" if zero_points is None else ",".join(f"{z:g}" for z in zero_points),
    )
