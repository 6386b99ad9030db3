"""koo reads at least what the vendors' own SDKs read. Each odd answer is sent to both."""

from __future__ import annotations

import asyncio

import pytest

from tests.ai.odd_server import OddServer
from tests.ai.oddities import Oddity
from tests.ai.test_oddities import ALL
from tests.ai.vendor_sdks import ASKS

SILENCE_S = 2.0
"""An SDK that has read nothing for this long is waiting for its own timeout of several minutes."""
ANSWERS = [oddity for oddity in ALL if oddity.status < 400 and oddity.format in ASKS]


async def read_by_sdk(oddity: Oddity) -> tuple[str, BaseException | None]:
    """The text that the SDK's user gets, and the error if there is one."""
    text = ""
    async with OddServer(oddity) as server:
        try:
            async with asyncio.timeout(SILENCE_S):
                async for piece in ASKS[oddity.format](server.base_url, oddity.streamed):
                    text += piece
        except Exception as error:
            return text, error
    return text, None


@pytest.mark.parametrize("oddity", ANSWERS, ids=lambda oddity: oddity.name)
@pytest.mark.filterwarnings("ignore")  # the SDKs warn about fields of unexpected types
def test_koo_reads_at_least_what_the_vendors_sdk_reads(oddity: Oddity) -> None:
    """The row says what koo reads, and `test_oddities.py` checks that.

    An answer that reports its own failure is an error in koo, whatever the SDK makes of it. Then koo's caller gets the
    text that was streamed before.
    """
    text, error = asyncio.run(read_by_sdk(oddity))
    if error is not None:
        text = text if oddity.streamed else ""
    # Half a surrogate pair is not a character. koo may replace what an SDK leaves out.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if oddity.kind is None or oddity.streamed:
        assert text.rstrip("\ufffd") in oddity.text, f"the SDK reads {text!r}"
