"""koo reads at least what the vendors' own SDKs read: each odd answer, sent to both."""

from __future__ import annotations

import asyncio

import pytest

from tests.ai.odd_server import OddServer
from tests.ai.oddities import Oddity
from tests.ai.test_oddities import ALL
from tests.ai.vendor_sdks import ASKS

SILENCE_S = 2.0
"""An SDK that has read nothing for so long waits for its own timeout of minutes: it has no answer."""
ANSWERS = [oddity for oddity in ALL if oddity.status < 400 and oddity.format in ASKS]


async def read_by_sdk(oddity: Oddity) -> tuple[str, BaseException | None]:
    """The text that the SDK's user gets, and the error where there is one."""
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
@pytest.mark.filterwarnings("ignore")  # of the SDKs, about fields that are not as their classes have them
def test_koo_reads_at_least_what_the_vendors_sdk_reads(oddity: Oddity) -> None:
    """What koo reads is what the row says, and `test_oddities.py` holds that.

    An answer that says of itself that it failed is an error, whatever the SDK makes of it: then koo's caller gets what
    was streamed before.
    """
    text, error = asyncio.run(read_by_sdk(oddity))
    if error is not None:
        text = text if oddity.streamed else ""
    # Half a pair is no character; what an SDK leaves out, koo may have.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if oddity.kind is None or oddity.streamed:
        assert text.rstrip("\ufffd") in oddity.text, f"the SDK reads {text!r}"
