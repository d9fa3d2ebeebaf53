"""Secrets in addresses, options and messages: found by where they stand, and left out of what is shown and written.

A secret is the password of `user:password@`, what stands for a user in an address of the web, and the value of a part
of an address whose name says so (`?X-Amz-Signature=`, `#access_token=`). Standard library only.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote_plus

HIDDEN = "***"
EXACT = ("auth", "jwt", "pass", "pwd", "sas", "sid", "sig")
WORDS = (
    *("authorization", "bearer", "cookie", "credential", "key", "passphrase", "passw", "secret", "session"),
    *("signature", "token"),
)
USER = re.compile(
    r"(?<=://)(?:[^\s/?#@:]*:(?!\d+[/?#])[^\s@]+|(?<=hf://)[^\s@:]*:[^\s@]+"  # a name on the hub has no colon
    r"|(?<=http://)[^\s/?#@]+|(?<=https://)[^\s/?#@]+)(?=@)",
    re.IGNORECASE,
)
PART = re.compile(r"(?<=[?&;#])([^\s?&;#=\"'<>]+)=([^\s&;#\"'<>]+)")  # name=value
OF_ENVIRONMENT = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|_KEY)$")  # ends of names of variables that hold secrets
LEAST = 8  # characters of a variable's value that is looked for


def is_secret(name: str) -> bool:
    """Return whether what is called so in an address or in options of a file system is a secret, by its name."""
    lowered = unquote_plus(name).lower()
    return lowered in EXACT or any(word in lowered for word in WORDS)


def secret_in_address(address: str) -> str:
    """Return what in an address is a secret, for people, or "" where nothing is."""
    if "://" not in address:
        return ""
    if USER.search(address):
        return "a password"
    return next((unquote_plus(name) for name, _ in PART.findall(address) if is_secret(name)), "")


def without_secrets(text: str) -> str:
    """Return a message with the secrets of addresses, and those of the environment, replaced by HIDDEN."""

    def hidden(match: re.Match[str]) -> str:
        return f"{match[1]}={HIDDEN}" if is_secret(match[1]) else match[0]

    text = PART.sub(hidden, USER.sub(HIDDEN, text))
    for name, value in os.environ.items():
        if len(value) >= LEAST and value in text and OF_ENVIRONMENT.search(name.upper()):
            text = text.replace(value, HIDDEN)
    return text
