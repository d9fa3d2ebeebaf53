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

from stages.extras import extra_versions

EMAILS = ("email@example.com", "firstname.lastname@example.org")
# datatrove's, which answered nothing; of IPv6 the prefix for documentation
ADDRESSES = ("22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11", "18.104.22.168")
ADDRESSES_6 = ("2001:db8::1", "2001:db8::2")
PHONES = ("202-555-0100", "202-555-0101")  # kept free for fiction

LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]"
# Every repetition is bounded, and begins where nothing of its kind stands before: no text takes more than linear time.
EMAIL = re.compile(rf"(?<!{LOCAL}){LOCAL}{{1,64}}@(?:[A-Za-z0-9-]{{1,63}}\.){{1,8}}[A-Za-z][A-Za-z0-9-]{{1,62}}")
# Behind a slash, a hyphen or `==` stands the number of a version, as in `curl/7.8.1.2`.
IPV4 = re.compile(r"(?<![\w.-])(?<![^/:]/)(?<![=<>~!]=)\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w|-[A-Za-z])", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)
NUMBERED = re.compile(  # what is numbered like an address, before it
    r"(?:\b(?:v|ver|version|release|rev|revision|build|firmware|driver|sections?|sec|chapter|clause|paragraph|appendix"
    r"|fig|figure|table|item|step|article|rule|theorem|lemma|upgrade to|updated? to)\b\.?|§)[ :(#]*$",
    re.IGNORECASE,
)
NETWORK = re.compile(
    r"\b(?:ip|ipv4|address(?:es)?|dns|(?:name)?servers?|hosts?|ping|traceroute|whois|resolvers?|router|gateway|proxy"
    r"|subnet|from|at)\b|://$|^(?::\d|/\d)",
    re.IGNORECASE,
)
SMALL = 20  # four numbers below it are one of a version or a section, but where something speaks of a network
NEAR = 32  # characters before and behind in which that may be
# With a plus, or of North America with its parts apart; a bare row of digits may be anything.
PHONE = re.compile(
    r"(?<![\w+.-])(?:\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4})(?![\w-]|\.\d)",
    re.ASCII,
)
AMERICAN = re.compile(r"(?:[89]00|[2-9](?!00|11)[0-8]\d)[2-9](?!11)\d{6}")  # its digits, without the country's 1
CALLED = re.compile(
    r"(?:\b(?:tel|t[eé]l[eé](?:ph|f)\w*|(?:tele)?phone|fax|mobile|call|dial|hotline|sms)\b|[☎📞])[^\d\n]{0,12}$",
    re.IGNORECASE,
)
COUNTRY = re.compile(  # calling codes (ITU-T E.164)
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|21[12368]|2[2-4]\d|25[0-8]|26\d|29[0178]|35\d|37[0-8]"
    r"|38[0-35-79]|42[013]|50\d|59\d|67[02-9]|68[0-35-9]|69[0-2]|80[08]|85[02356]|870|878"
    r"|88[0-368]|96[0-8]|97[0-79]|99[2-68]"
)


def is_public(text: str) -> bool:
    """Return whether an address is one of the public internet's. Numbers that are no address are not."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def is_address(match: re.Match[str]) -> bool:
    """Return whether four numbers are a public address, and not those of a version or a section."""
    if not is_public(match[0]):
        return False
    text, (start, stop) = match.string, match.span()
    before, behind = text[max(0, start - NEAR) : start], text[stop : stop + NEAR]
    if NUMBERED.search(before):
        return False
    is_small = max(map(int, match[0].split("."))) < SMALL
    return not is_small or bool(NETWORK.search(before) or NETWORK.search(behind))


def is_series(numbers: Sequence[int]) -> bool:
    """Return whether numbers grow by the same step or factor, as in a table: 20 30 40, or 256 512 1024."""
    a, b, *rest = numbers
    return all(y - x == b - a or y * a == x * b for x, y in itertools.pairwise([b, *rest]))


def is_phone(match: re.Match[str]) -> bool:
    """Return whether a row of numbers is a telephone's: of a country that there is, and no figures of a table.

    One of North America whose parts blanks or full stops separate is taken for one behind a word that says so.
    """
    written, digits = match[0], re.sub(r"\D", "", match[0])
    parts = [int(part) for part in re.findall(r"\d+", written)]
    called = bool(CALLED.search(match.string[max(0, match.start() - NEAR) : match.start()]))
    if len(parts) > 2 and is_series(parts) and not called:
        return False
    if written[0] != "+":
        is_apart = "-" in written or "(" in written or called
        return is_apart and bool(AMERICAN.fullmatch(digits[-10:]))
    first = re.match(r"\d+", written[1:])
    country = COUNTRY.match(digits)
    if not first or not country or (len(first[0]) <= 3 and first[0] != country[0]):
        return False
    if country[0] == "1":
        return bool(AMERICAN.fullmatch(digits[1:]))
    return (9 if len(country[0]) == 3 else 10) <= len(digits) <= 15


def replace(
    pattern: re.Pattern[str], by: Sequence[str], text: str, check: Callable[[re.Match[str]], bool] | None = None
) -> str:
    """Return the text with the members of `by`, in turn, where `pattern` matches and `check` agrees."""
    in_turn = itertools.cycle(by)

    def substitute(match: re.Match[str]) -> str:
        return match[0] if check and not check(match) else next(in_turn)

    return pattern.sub(substitute, text)


def pii(text: str) -> str:
    """Return the text with e-mail addresses, public IP addresses and telephone numbers replaced."""
    if "@" in text:
        text = replace(EMAIL, EMAILS, text)
    text = replace(IPV4, ADDRESSES, text, is_address)
    text = replace(IPV6, ADDRESSES_6, text, lambda match: is_public(match[0]))
    return replace(PHONE, PHONES, text, is_phone)


def mojibake(text: str) -> str:
    """Return text that was encoded in UTF-8 and decoded as something else, mended."""
    import ftfy

    return text if text.isascii() else ftfy.fix_encoding(text)


def control_characters(text: str) -> str:
    """Return the text without terminal escapes and control characters; tabs, line feeds and form feeds stay.

    A carriage return, with a line feed or alone, becomes a line feed.
    """
    import ftfy.fixes

    text = ftfy.fixes.remove_control_chars(ftfy.fixes.remove_terminal_escapes(text))
    return text.replace("\r\n", "\n").replace("\r", "\n")


EDITS: dict[str, Callable[[str], str]] = {
    "mojibake": mojibake,
    "control_characters": control_characters,
    "pii": pii,
}
OF_FTFY = ("mojibake", "control_characters")


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
    packages = [] if set(OF_FTFY).isdisjoint(edits) else ["ftfy"]
    return extra_versions(packages, f"the edits {', '.join(OF_FTFY)} need", "ftfy")
