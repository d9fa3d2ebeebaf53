"""Licenses of sources, as their cards state them: what each asks for, and the hub's name for it."""

from __future__ import annotations

import re

# Identifiers of the hub (its documentation, "Licenses") that texts, code and data have.
HUB = frozenset(
    re.findall(
        r"\S+",
        "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc "
        "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 "
        "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 "
        "cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
        "eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by "
        "ofl-1.1 osl-3.0 pddl postgresql unlicense wtfpl zlib",
    )
)
ALIASES = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl", "cc0": "cc0-1.0", "apache": "apache-2.0"}
UNSTATED = {"", "unknown", "other", "none", "various", "mixed", "see card", "not stated"}
CONCERNS = (
    ("non-commercial", re.compile(r"\bnc\b|non-?commercial|research[- ]only", re.IGNORECASE)),
    ("no derivatives", re.compile(r"\bnd\b|no-?deriv", re.IGNORECASE)),
    (
        "share-alike",
        re.compile(r"\bsa\b|share-?alike|\b[al]?gpl|\bgfdl\b|\bodbl\b|cdla-sharing|\bosl-", re.IGNORECASE),
    ),
)


def parts(license: str) -> list[str]:
    """Return the licenses that an expression names, in its order: what AND, OR and commas stand between."""
    without_exceptions = re.sub(r"\s+WITH\s+[^\s,;()]+", "", license)
    names = re.split(r"\s+(?:AND|OR|and|or)\s+|[,;()]", without_exceptions)
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def concerns(license: str) -> list[str]:
    """Return what to look at before such text is used or handed on: nothing for a license that only asks for credit.

    `unknown` where none is stated. Words are looked for; the license is not interpreted.
    """
    if license.strip().lower() in UNSTATED:
        return ["unknown"]
    return [name for name, pattern in CONCERNS if pattern.search(license)]


def hub_names(license: str) -> list[str]:
    """Return the hub's identifiers for a license: `other` for what it has none for, `unknown` where none is stated."""
    if license.strip().lower() in UNSTATED:
        return ["unknown"]
    return list(dict.fromkeys(map(hub_name, parts(license))))


def hub_name(license: str) -> str:
    """Return the hub's identifier for one license, `other` where it has none."""
    name = re.sub(r"[\s_]+", "-", re.sub(r"\blicen[cs]e\b", "", license, flags=re.IGNORECASE).strip().lower())
    name = re.sub(r"-(?:only|or-later)$|\+$|(?<=-)v(?=\d)", "", name.removeprefix("the-"))
    name = ALIASES.get(name, name)
    return name if name in HUB else "other"
