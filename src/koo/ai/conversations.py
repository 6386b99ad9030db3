"""How prompts were counted: the last answer of a conversation bounds its next prompt, without a tokenizer.

A conversation sends its whole past with each question. The provider has counted that past before, and no tokenizer
makes more tokens of new text than it has bytes. So if a prompt begins with one that was counted:

    tokens ≤ counted prompt + counted answer (if that follows) + bytes of the new text + a margin

The margin is for the seams: where two texts meet, a tokenizer may split them differently than each alone. The bound by
the whole prompt's bytes is kept beside it, and the smaller of the two is used.

No text is kept. A prompt is known by its length and a fingerprint, keyed with random bytes of this process, and so are
the first characters of an answer and the whole of it. Prompts with the same beginning are kept together: a prompt with
an unknown beginning costs one fingerprint of that, and any other is read once, whatever the number of prompts that it
may continue.
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
"""Characters. Shorter prompts are held by their bytes: there is little to gain."""
ANSWER_HEAD = 32
GAP_MAX = 64
"""How far behind the old prompt the old answer is looked for: a role's name or a separator may stand between."""
HEADS_MAX = 256
"""Beginnings remembered, the latest; some 4 MB with everything that begins with them."""
PROMPTS_MAX = 64
"""Prompts remembered for each beginning: conversations of one program begin with the same instructions."""
KNOWN_S_MAX = 3600.0
"""A model's name may stand for another tokenizer tomorrow."""
MARGIN_PART = 32
"""A thirty-second of what was counted, beside the provider's own framing."""
BYTES_PER_TOKEN_MAX = 12
"""A lower count leaves something out (text from a cache, or cut off): nothing is learnt from it."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """One prompt as it was counted, and its answer: `answer` is its length and fingerprints, of its head and whole."""

    tokens: int
    at: float
    answer_tokens: int
    answer: tuple[int, bytes, bytes] | None


class Measure(NamedTuple):
    """A prompt's bound, and what it is remembered by; `mark` None: it is too short to be remembered."""

    tokens_max: int
    mark: tuple[bytes, int, bytes] | None = None


class Conversations:
    """This process's counted prompts, bounded in number. `bound`: by bytes, of any text that is sent."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._key = secrets.token_bytes(32)
        self._heads: OrderedDict[bytes, dict[tuple[int, bytes], _Counted]] = OrderedDict()

    def measure(self, service: str, request: Request, bound: Callable[[Request], int]) -> Measure:
        """An upper bound of a prompt's tokens."""
        by_bytes = bound(request)
        if len(request.prompt) < HEAD:
            return Measure(by_bytes)
        head = self._head(service, request)
        known = dict(self._heads.get(head, {}))  # a copy: long prompts are measured in threads
        mark, last = self._read(request.prompt, known)
        if last is None:
            return Measure(by_bytes, (head, *mark))
        length, counted = last
        new, tokens = self._new(request.prompt, length, counted)
        rest = bound(replace(request, prompt=new, system=None))
        return Measure(min(by_bytes, tokens + tokens // MARGIN_PART + rest), (head, *mark))

    def learn(self, mark: tuple[bytes, int, bytes] | None, usage: Usage, answer: str) -> None:
        """Remember how a prompt was counted."""
        if mark is None or usage.estimated:
            return
        head, length, digest = mark
        if usage.read_tokens * BYTES_PER_TOKEN_MAX < length:
            return
        known = self._heads.setdefault(head, {})
        self._heads.move_to_end(head)
        known.pop((length, digest), None)  # so that it is the latest
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
        """The prompt's length and fingerprint, and the longest known prompt with which it begins."""
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
        """What a prompt has beyond the part that was counted, and that part's tokens."""
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
    # In slices: this runs in a thread, and the loop gets its turn between two of them.
    for at in range(start, end, SLICE):
        digest.update(_encode(text[at : min(end, at + SLICE)]))
