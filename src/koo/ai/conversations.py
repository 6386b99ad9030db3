"""Bounds the tokens of a conversation's next prompt by the counts of its previous answer, without a tokenizer.

A conversation sends its whole history with each question. The provider has already counted that history, and no
tokenizer produces more tokens from new text than it has bytes. So if a prompt begins with one that was counted:

    tokens ≤ counted prompt + counted answer (if that follows) + bytes of the new text + a margin

Without this the whole history would be held at one token per byte, about four times its real size, and the hold would
grow with each turn. The margin is for the seams: where two texts meet, a tokenizer may split them differently than each
text alone. The bound by the whole prompt's bytes is computed too, and the smaller of the two is used.

No text is kept. A prompt is identified by its length and a fingerprint, keyed with random bytes of this process. An
answer is identified by its length and two fingerprints, of its first characters and of the whole. Prompts with the same
beginning are kept together. So a prompt with an unknown beginning costs one fingerprint of that beginning, and any
other prompt is read once, regardless of how many known prompts it might continue.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

from koo.ai.providers.base import Request
from koo.ai.providers.transport import SLICE
from koo.ai.types import Usage

HEAD = 1024
"""Characters of a prompt's beginning. The hold for a shorter prompt is computed from its bytes, because little can be
saved there."""
ANSWER_HEAD = 32
"""Characters of an answer's beginning, to find it quickly in the next prompt."""
GAP_MAX = 64
"""How many characters after the old prompt the old answer may begin: a role's name or a separator may come between."""
HEADS_MAX = 256
"""The most beginnings remembered: about 4 MB with all prompts that start with them. The oldest are dropped."""
PROMPTS_MAX = 64
"""The most prompts remembered for each beginning: a program's conversations all start with the same instructions."""
KNOWN_S_MAX = 3600.0
"""How long a count is used: a vendor may change the tokenizer behind a model's name."""
MARGIN_PART = 32
"""The margin is 1/32 of what was counted, in addition to the provider's own framing."""
BYTES_PER_TOKEN_MAX = 12
"""With more bytes per token than this, a count has left something out (cached or truncated text) and is not used."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """A prompt's count and its answer's. `answer` is the answer's length and the fingerprints of its head and whole."""

    tokens: int
    at: float
    answer_tokens: int
    answer: tuple[int, bytes, bytes] | None


class Measure(NamedTuple):
    """A prompt's bound, and the mark it is remembered by; None if the prompt is too short to be remembered."""

    tokens_max: int
    mark: tuple[bytes, int, bytes] | None = None


class Conversations:
    """The counted prompts of this process. `now` returns monotonic seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._key = secrets.token_bytes(32)
        self._heads: OrderedDict[bytes, dict[tuple[int, bytes], _Counted]] = OrderedDict()

    def measure(self, service: str, request: Request, bound: Callable[[Request], int]) -> Measure:
        """An upper bound of a prompt's tokens. `bound` returns the bound by bytes of any request."""
        by_bytes = bound(request)
        if len(request.prompt) < HEAD:
            return Measure(by_bytes)
        head = self._head(service, request)
        # This is a copy, because long prompts are measured in a thread: `learn` on the loop would change the dict while
        # it is iterated there.
        known = dict(self._heads.get(head, {}))
        mark, last = self._read(request.prompt, known)
        if last is None:
            return Measure(by_bytes, (head, *mark))
        length, counted = last
        new, tokens = self._new(request.prompt, length, counted)
        rest = bound(replace(request, prompt=new, system=None))
        return Measure(min(by_bytes, tokens + tokens // MARGIN_PART + rest), (head, *mark))

    def learn(self, mark: tuple[bytes, int, bytes] | None, usage: Usage, answer: str) -> None:
        """Remember how many tokens the provider counted for a prompt and its answer."""
        if mark is None or usage.estimated:
            return
        head, length, digest = mark
        if usage.read_tokens * BYTES_PER_TOKEN_MAX < length:
            return
        known = self._heads.setdefault(head, {})
        self._heads.move_to_end(head)
        known.pop((length, digest), None)  # so that the entry below becomes the latest
        known[length, digest] = _Counted(
            usage.read_tokens, self._now(), usage.output_tokens, self._mark_of(answer)
        )
        if len(known) > PROMPTS_MAX:
            del known[next(iter(known))]
        if len(self._heads) > HEADS_MAX:
            self._heads.popitem(last=False)

    def _head(self, service: str, request: Request) -> bytes:
        digest = blake2b(key=self._key, digest_size=16)
        for text in (service, request.model, request.system or "", request.prompt[:HEAD]):
            part = _encode(text)
            digest.update(b"%d:" % len(part) + part)
        return digest.digest()

    def _read(
        self, prompt: str, known: dict[tuple[int, bytes], _Counted]
    ) -> tuple[tuple[int, bytes], tuple[int, _Counted] | None]:
        """The prompt's length and fingerprint, and the longest known prompt that it begins with."""
        # One running digest over the prompt, read off at each known length in rising order. So each character is hashed
        # once, not once for each known prompt.
        digest, at, last = blake2b(key=self._key, digest_size=16), 0, None
        oldest = self._now() - KNOWN_S_MAX
        for length in sorted({length for length, _ in known if length <= len(prompt)}):
            _update(digest, prompt, at, length)
            at = length
            counted = known.get((length, digest.digest()))
            if counted is not None and counted.at >= oldest:
                last = (length, counted)
        _update(digest, prompt, at, len(prompt))
        return (len(prompt), digest.digest()), last

    def _mark_of(self, answer: str) -> tuple[int, bytes, bytes] | None:
        if len(answer) < ANSWER_HEAD:
            return None
        return len(answer), self._short(answer[:ANSWER_HEAD]), self._short(answer)

    def _new(self, prompt: str, length: int, counted: _Counted) -> tuple[str, int]:
        """The text of a prompt beyond its counted part, and the tokens of that part."""
        # The answer may follow after a separator of unknown length, so every start up to `GAP_MAX` is tried. The
        # fingerprint of 32 characters is cheap and rejects almost all of them; only a match pays for the whole answer.
        if counted.answer is not None:
            size, head, whole = counted.answer
            for start in range(length, min(length + GAP_MAX, len(prompt) - size) + 1):
                is_there = self._short(prompt[start : start + ANSWER_HEAD]) == head
                if is_there and self._short(prompt[start : start + size]) == whole:
                    new = prompt[length:start] + prompt[start + size :]
                    return new, counted.tokens + counted.answer_tokens
        return prompt[length:], counted.tokens

    def _short(self, text: str) -> bytes:
        return blake2b(_encode(text), key=self._key, digest_size=16).digest()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _update(digest: blake2b, text: str, start: int, end: int) -> None:
    # The text is encoded in slices: encoding holds the GIL, so one long text would stop the event loop even from a
    # thread. Between two slices the loop gets its turn.
    for at in range(start, end, SLICE):
        digest.update(_encode(text[at : min(end, at + SLICE)]))
