"""The text of tokens that come one after another: whole characters only, and nothing of a text that ends it."""

import codecs
from collections.abc import Sequence

from minipeft.tokenizer import Tokenizer


class Written:
    """The text that a row has written so far, until one of `stop` is in it."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop, self.stopped = tokenizer, tuple(stop), False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, token: int) -> str:
        """What is sure to stand in the text once this token is written; the rest is held back."""
        return self._told(self._decoder.decode(self.tokenizer.token_bytes(token)))

    def end(self) -> str:
        """What was held back, now that nothing more comes."""
        told = self._told(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return told

    def _told(self, more: str) -> str:
        """The text up to where a stop begins, or may begin."""
        if self.stopped:
            return ""
        text = self._held + more
        found = [place for place in map(text.find, self.stop) if place >= 0]
        self.stopped = bool(found)
        sure = min(found) if found else len(text) - self._beginning_of_stop(text)
        self._held = "" if found else text[sure:]
        return text[:sure]

    def _beginning_of_stop(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop."""
        lengths = (n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(lengths, default=0)
