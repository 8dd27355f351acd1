"""Model cards as the Hub reads them: YAML front matter and its rules."""

from __future__ import annotations

import re
from typing import Any

import yaml

FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
REPO_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
    c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
    odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 grok2-community gemma unknown other
"""
RELATIONS = ("adapter", "finetune", "merge", "quantized")


def front_matter(text: str) -> dict[str, Any] | None:
    """The metadata of a card; None without any, or where it is broken."""
    found = FRONT.match(text)
    try:
        data = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return None
    return data if isinstance(data, dict) else None


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a card's metadata."""
    found = FRONT.match(text)
    if not found or not found[1].strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {' '.join(str(error).split())}"], []
    if not isinstance(data, dict):
        return ['"metadata" must be an object'], []
    return _errors(data), []


def _errors(data: dict[str, Any]) -> list[str]:
    errors = []
    for key in ("license", "base_model", "language", "datasets"):
        if key in data and not _texts(data[key], alone=True):
            errors.append(f'"{key}" must be a string or an array of strings')
    if "tags" in data and not _texts(data["tags"], alone=False):
        errors.append('"tags" must be an array of strings')
    for key in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    for each in _listed(data.get("license")):
        if each not in LICENSES.split():
            errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES.split()))}]')
    for each in _listed(data.get("base_model")):
        if not REPO_ID.fullmatch(each):
            errors.append(f'"base_model" with value "{each}" is not valid: use a model id')
    relation = data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    for number, each in enumerate(data.get("model-index") or []):
        for key, kind in (("name", str), ("results", list)):
            if not isinstance(each, dict) or not isinstance(each.get(key), kind):
                errors.append(f'"model-index[{number}].{key}" is required')
    return errors


def _texts(value: Any, alone: bool) -> bool:
    if isinstance(value, str):
        return alone and bool(value)
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]
