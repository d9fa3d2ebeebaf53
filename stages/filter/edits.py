"""Edits that a source can switch on (`edit: [mojibake, control_characters, pii]`), made in this order before its rules.

`mojibake` mends text that was decoded wrongly, `control_characters` removes those that mean nothing in text; both are
ftfy's. `pii` replaces e-mail addresses, public IP addresses and telephone numbers by addresses and numbers reserved for
documentation, as datatrove does for FineWeb: in turn, from the first again in each document. Addresses of private
networks stay. Document ids are of the text before: an edit moves no document between training and validation.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Sequence
from importlib import metadata

EMAILS = ("email@example.com", "firstname.lastname@example.org")
# datatrove's, which answered nothing; of IPv6 the prefix for documentation
ADDRESSES = ("22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11", "18.104.22.168")
ADDRESSES_6 = ("2001:db8::1", "2001:db8::2")
PHONES = ("202-555-0100", "202-555-0101")  # kept free for fiction

LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]"
# Every repetition is bounded, and begins where nothing of its kind stands before: no text takes more than linear time.
EMAIL = re.compile(rf"(?<!{LOCAL}){LOCAL}{{1,64}}@(?:[A-Za-z0-9-]{{1,63}}\.){{1,8}}[A-Za-z][A-Za-z0-9-]{{1,62}}")
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w)", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)
# With a plus, or of North America with its parts apart; a bare row of digits may be anything.
PHONE = re.compile(
    r"(?<![\w+.-])(?:\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4})(?![\w-]|\.\d)",
    re.ASCII,
)


def is_public(text: str) -> bool:
    """Return whether an address is one of the public internet's. Numbers that are no address are not."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def is_number(text: str) -> bool:
    """Return whether a telephone number has 8 to 15 digits (E.164)."""
    return 8 <= sum(map(str.isdigit, text)) <= 15


def replace(pattern: re.Pattern[str], by: Sequence[str], text: str, check: Callable[[str], bool] | None = None) -> str:
    """Return the text with the members of `by`, in turn, where `pattern` matches and `check` agrees."""
    in_turn = itertools.cycle(by)

    def substitute(match: re.Match[str]) -> str:
        return match[0] if check and not check(match[0]) else next(in_turn)

    return pattern.sub(substitute, text)


def pii(text: str) -> str:
    """Return the text with e-mail addresses, public IP addresses and telephone numbers replaced."""
    if "@" in text:
        text = replace(EMAIL, EMAILS, text)
    text = replace(IPV4, ADDRESSES, text, is_public)
    text = replace(IPV6, ADDRESSES_6, text, is_public)
    return replace(PHONE, PHONES, text, is_number)


def mojibake(text: str) -> str:
    """Return text that was encoded in UTF-8 and decoded as something else, mended."""
    import ftfy

    return text if text.isascii() else ftfy.fix_encoding(text)


def control_characters(text: str) -> str:
    """Return the text without terminal escapes and control characters; tabs, line feeds, form feeds, returns stay."""
    import ftfy.fixes

    return ftfy.fixes.remove_control_chars(ftfy.fixes.remove_terminal_escapes(text))


EDITS: dict[str, Callable[[str], str]] = {
    "mojibake": mojibake,
    "control_characters": control_characters,
    "pii": pii,
}
LIBRARIES = {"mojibake": "ftfy", "control_characters": "ftfy"}


def apply_edits(text: str, edits: Sequence[str]) -> str:
    """Return `text` after the edits named. One that leaves what cannot be written as UTF-8 is not made."""
    for name in edits:
        edited = EDITS[name](text)
        try:
            edited.encode()
        except UnicodeEncodeError:
            continue
        text = edited
    return text


def parse_edits(edits: Sequence[str]) -> list[str]:
    """Return the edits in the order in which they are made. Raises ValueError for one that cannot be made here."""
    for name in edits:
        if name not in EDITS:
            raise ValueError(f"no edit {name!r}; the edits are {', '.join(EDITS)}")
    library_versions(edits)
    return [name for name in EDITS if name in edits]


def library_versions(edits: Sequence[str]) -> dict[str, str]:
    """Return the versions of the libraries that the edits use. Raises ValueError where one is not installed."""
    versions = {}
    for name in sorted({LIBRARIES[edit] for edit in edits if edit in LIBRARIES}):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ValueError(f"the edits {', '.join(LIBRARIES)} need {name}; pip install 'shardmill[{name}]'") from None
    return versions
