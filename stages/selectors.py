"""Which documents an id, an address or a domain means: one rule for `exclude` and for `find`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.schemas import ID

SCHEME = r"^[a-zA-Z][a-zA-Z0-9+.\-]*://"
HOST = r"^(?:[^/?#@]*@)?(?P<host>[^/:?#]+)"


def plain_urls(urls: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Addresses as they are compared: without scheme, fragment and slashes at the end, the host in small letters."""
    for pattern in (SCHEME, r"#.*$", r"/+$"):
        urls = pc.replace_substring_regex(urls, pattern, "")
    paths = pc.replace_substring_regex(urls, r"^[^/?]*", "")
    hosts = pc.utf8_lower(pc.replace_substring_regex(urls, r"(?s)[/?].*$", ""))
    return pc.binary_join_element_wise(hosts, paths, "")


def plain_url(url: str) -> str:
    """`plain_urls` of one."""
    return str(plain_urls(pa.array([url]))[0])


def plain_host(host: str) -> str:
    """A host or domain as it is compared: small letters, and those outside ASCII as the `xn--` form of them."""
    try:
        return host.lower().encode("idna").decode()
    except UnicodeError:  # not a host name, or too long for one
        return host.lower()


def spellings(names: list[str], plain: Callable[[str], str]) -> dict[str, list[str]]:
    """What is compared -> all names that come to it."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain(name), []).append(name)
    return found


def parents(host: str) -> list[str]:
    """`a.b.c` -> [`a.b.c`, `b.c`, `c`]."""
    labels = plain_host(host).rstrip(".").split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]


def match(
    ids: pa.ChunkedArray, urls: pa.ChunkedArray, wanted_ids: list[str], wanted_urls: list[str], domains: list[str]
) -> tuple[npt.NDArray[np.bool_], set[str]]:
    """(mask of the documents meant, which of the selectors meant any).

    ids: binary(16) column; urls: string column, null where a document has none. wanted_ids: hex. wanted_urls: whole
    addresses; scheme, fragment and a slash at the end do not count. domains: a domain means its subdomains too.
    """
    mask, used = np.zeros(len(ids), bool), set()
    if wanted_ids:
        values = pa.array([bytes.fromhex(i) for i in wanted_ids], ID)
        hit = pc.is_in(ids, value_set=values)
        used |= {i.hex() for i in pc.unique(ids.filter(hit)).to_pylist()}
        mask |= hit.to_numpy()
    if wanted_urls or domains:
        plain = plain_urls(urls)
    if wanted_urls:
        written = spellings(wanted_urls, plain_url)
        hit = pc.fill_null(pc.is_in(plain, value_set=pa.array(list(written), pa.string())), False)
        used |= {w for u in pc.unique(plain.filter(hit)).to_pylist() for w in written[u]}
        mask |= hit.to_numpy()
    if domains:
        lower = spellings(domains, lambda d: plain_host(d).strip("."))
        hosts = pc.struct_field(pc.extract_regex(plain, HOST), 0)
        meant = {h: [w for p in parents(h) for w in lower.get(p, ())] for h in pc.unique(hosts).to_pylist() if h}
        used |= {d for found in meant.values() for d in found}
        named = pa.array([h for h, found in meant.items() if found], pa.string())
        mask |= pc.fill_null(pc.is_in(hosts, value_set=named, skip_nulls=True), False).to_numpy()
    return mask, used
