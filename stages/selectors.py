"""Which documents an id, an address or a domain means: one rule for `exclude` and for `find`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.schemas import ID

SCHEME = r"^[a-zA-Z][a-zA-Z0-9+.\-]*://"
HOST = r"^(?:[^/?#@]*@)?(?P<host>[^/:?#]+)"


def plain_urls(urls: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return addresses as they are compared: no scheme, fragment or slashes at the end, the host in small letters."""
    for pattern in (SCHEME, r"#.*$", r"/+$"):
        urls = pc.replace_substring_regex(urls, pattern, "")
    paths = pc.replace_substring_regex(urls, r"^[^/?]*", "")
    hosts = pc.utf8_lower(pc.replace_substring_regex(urls, r"(?s)[/?].*$", ""))
    return pc.binary_join_element_wise(hosts, paths, "")


def plain_url(url: str) -> str:
    """Return one address as it is compared, see `plain_urls`."""
    return str(plain_urls(pa.array([url]))[0])


def plain_host(host: str) -> str:
    """Return a host or domain as it is compared: small letters, and those outside ASCII in their `xn--` form."""
    try:
        return host.lower().encode("idna").decode()
    except UnicodeError:  # not a host name, or too long for one
        return host.lower()


def names_by_plain(names: Sequence[str], plain: Callable[[str], str]) -> dict[str, list[str]]:
    """Return all names that come to the same when they are compared, by what they come to."""
    by_plain: dict[str, list[str]] = {}
    for name in names:
        by_plain.setdefault(plain(name), []).append(name)
    return by_plain


def parent_domains(host: str) -> list[str]:
    """Return the host and all domains it lies in: `a.b.c` -> [`a.b.c`, `b.c`, `c`]."""
    labels = plain_host(host).rstrip(".").split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]


def select_documents(
    id_column: pa.ChunkedArray,
    url_column: pa.ChunkedArray,
    ids: Sequence[str],
    urls: Sequence[str],
    domains: Sequence[str],
) -> tuple[npt.NDArray[np.bool_], set[str]]:
    """Return a mask of the documents that are meant, and the selectors that meant any.

    id_column: binary(16). url_column: strings, null where a document has no address. ids: hex. urls: whole addresses;
    scheme, fragment and a slash at the end do not count. domains: a domain means its subdomains too.
    """
    mask = np.zeros(len(id_column), bool)
    used: set[str] = set()
    if ids:
        hits = pc.is_in(id_column, value_set=pa.array([bytes.fromhex(text) for text in ids], ID))
        used |= {value.hex() for value in pc.unique(id_column.filter(hits)).to_pylist()}
        mask |= hits.to_numpy()
    if not urls and not domains:
        return mask, used
    plain_column = plain_urls(url_column)
    if urls:
        urls_by_plain = names_by_plain(urls, plain_url)
        hits = pc.is_in(plain_column, value_set=pa.array(list(urls_by_plain), pa.string()))
        hits = pc.fill_null(hits, False)
        for plain in pc.unique(plain_column.filter(hits)).to_pylist():
            used.update(urls_by_plain[plain])
        mask |= hits.to_numpy()
    if domains:
        domains_by_plain = names_by_plain(domains, lambda domain: plain_host(domain).strip("."))
        hosts = pc.struct_field(pc.extract_regex(plain_column, HOST), 0)
        meant_hosts = []
        for host in filter(None, pc.unique(hosts).to_pylist()):
            meant_by = [name for domain in parent_domains(host) for name in domains_by_plain.get(domain, ())]
            if meant_by:
                meant_hosts.append(host)
                used.update(meant_by)
        hits = pc.is_in(hosts, value_set=pa.array(meant_hosts, pa.string()), skip_nulls=True)
        mask |= pc.fill_null(hits, False).to_numpy()
    return mask, used
