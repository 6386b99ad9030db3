"""Signs webhook messages, to prove that a message comes from this koo, is unchanged, and is not an old one replayed.

It follows https://www.standardwebhooks.com, for which there are libraries in most languages. The HMAC-SHA256 covers the
message's id, the time of sending and the body, joined by dots.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from hashlib import sha256

PREFIX = "whsec_"
BYTES_MIN = 24
ALLOWED_SECRET = (
    f'{PREFIX} and the base64 of {BYTES_MIN} random bytes or more, as `python3 -c "import base64, secrets; '
    f"print('{PREFIX}' + base64.b64encode(secrets.token_bytes(32)).decode())\"` prints it"
)


def read_secret(text: str) -> bytes:
    """Decode a secret into its key. Raises `ValueError`, whose message says what is allowed and omits the secret."""
    try:
        if text.startswith(PREFIX):
            key = b64decode(text.removeprefix(PREFIX), validate=True)
            if len(key) >= BYTES_MIN:
                return key
    except ValueError:
        pass
    raise ValueError(f"expected {ALLOWED_SECRET}")


def signed(key: bytes, message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """The signature headers of a message."""
    # The time is signed too. A receiver that rejects old times is then safe from a recorded message that an attacker
    # sends again with a new time.
    digest = hmac.digest(key, f"{message_id}.{at_s}.".encode() + body, sha256)
    return {"webhook-timestamp": str(at_s), "webhook-signature": f"v1,{b64encode(digest).decode()}"}
