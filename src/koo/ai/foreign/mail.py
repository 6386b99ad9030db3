"""Classify the replies of mail and file servers: smtplib, aiosmtplib, ftplib.

Their codes look like HTTP's and mean something else: 550 is a mailbox or a file that does not exist. smtplib's errors
are also `OSError`s. Without this, five mistyped addresses would open the breaker of a healthy mail server.
"""

from __future__ import annotations

from koo.ai.foreign.http_libraries import Found
from koo.ai.foreign.peek import peek
from koo.errors import Kind
from koo.policies.treatment import MISTAKEN
from koo.policies.verdict import FAILURE, Fault

ABOUT_THE_MESSAGE = frozenset({"SMTPNotSupportedError", "SMTPRecipientsRefused", "SMTPRecipientRefused"})
"""Recipients are refused individually, and sometimes only temporarily: by a full mailbox or a greylist."""
ABOUT_THE_SERVER = frozenset({"SMTPConnectError", "SMTPHeloError"})
BUSY = Fault(verdict=FAILURE, kind=Kind.OVERLOADED, repeatable=True)


def judge_smtp(error: Exception, names: set[str], service: str) -> Found:
    """A permanent reply (5xx) is about the message or its sender; a temporary one (4xx) is the server's failure."""
    if names & ABOUT_THE_MESSAGE:
        return MISTAKEN
    if "SMTPResponseException" not in names:
        return None
    if names & ABOUT_THE_SERVER:
        return BUSY
    code = peek(error, "smtp_code") or peek(error, "code")
    return MISTAKEN if isinstance(code, int) and code >= 500 else BUSY


def judge_ftp(error: Exception, names: set[str], service: str) -> Found:
    return MISTAKEN if "error_perm" in names else None
