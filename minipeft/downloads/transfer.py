"""One file from a hub to this machine: what the hub says of it, its bytes, and trying again where that may help."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.downloads.failures import DownloadError, unknown_host
from minipeft.downloads.public import WEIGHTS_FILE, PublicModel

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try, unless the server names another time; a try that brought bytes starts them anew."""
LONGEST_WAIT = 60.0
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Remote:
    """A file somewhere else, and what it must be. `token` None sends the user's token for the hub, False does not."""

    url: str
    sha256: str
    size: int
    revision: str = ""
    token: bool | None = False


def look_up(model: PublicModel, mirror: str | None, say: Say) -> Remote:
    """What the hub knows of the model's file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(model.repo, WEIGHTS_FILE, revision=model.revision, endpoint=mirror)
    found = trying(lambda: get_hf_file_metadata(url, token=token_for(mirror), endpoint=mirror), say)
    digest, commit = (found.etag or "").lower(), found.commit_hash or ""
    if not (re.fullmatch("[0-9a-f]{64}", digest) and re.fullmatch("[0-9a-f]{40}", commit) and found.size):
        raise DownloadError(
            f"{url} names no SHA-256, size and revision of the file, so it could not be checked: that is no hub; use "
            "another --mirror, or none"
        )
    if model.sha256 is not None and digest != model.sha256:
        raise DownloadError(
            f"{url} offers another file than the one that is known (SHA-256 {digest}, not {model.sha256}); use another "
            "--mirror, or none"
        )
    address = hf_hub_url(model.repo, WEIGHTS_FILE, revision=commit, endpoint=mirror)
    return Remote(address, digest, found.size, commit, token_for(mirror))


def pinned(model: PublicModel) -> Remote | None:
    """What is known of the model's file without asking anybody; it has no address."""
    if model.sha256 is None or model.size is None:
        return None
    return Remote("", model.sha256, model.size, model.revision)


def token_for(mirror: str | None) -> bool | None:
    """None lets the hub's client send the token that the user logged in with; a mirror is not to see it."""
    return None if mirror is None else False


def stream(remote: Remote, partial: Path, show: Callable[[int], None]) -> None:
    """Append what is missing to `partial`. Raises what the client raises, and EOFError if too little or much came."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    have = file_size(partial)
    if have > remote.size:
        partial.unlink()
        have = 0
    if have == remote.size:
        return
    headers = build_hf_headers(token=remote.token) | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with (
        get_session().stream("GET", remote.url, headers=headers, follow_redirects=True, timeout=_timeout()) as response,
        open(partial, "ab") as file,
    ):
        if response.status_code == 416:  # the server has no such part: the file is another one there
            file.truncate(0)
            raise EOFError(f"the server has nothing after {have:,} bytes")
        hf_raise_for_status(response)
        if have and not _continues(response, have):
            file.truncate(0)
            have = 0
        show(have)
        for chunk in response.iter_bytes():  # as it comes: nothing that came is lost when the connection breaks
            have += len(chunk)
            if have > remote.size:
                file.truncate(0)
                raise EOFError(f"more than {remote.size:,} bytes came")
            file.write(chunk)
            show(have)
        file.flush()
        os.fsync(file.fileno())
    if have < remote.size:
        raise EOFError(f"{have:,} of {remote.size:,} bytes came")


def _continues(response: Any, have: int) -> bool:
    """Whether the server sends what comes after the first `have` bytes, and not all from the start again."""
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _timeout() -> float:
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def trying(action: Callable[[], Any], say: Say, progressed: Callable[[], int] = lambda: 0) -> Any:
    """What `action` returns, tried again after a pause where the failure may pass: busy servers, broken connections."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    failures, before = 0, progressed()
    while True:
        try:
            return action()
        except HfHubHTTPError as error:
            if error.response.status_code not in TRANSIENT:
                raise
            failure: Exception = error
            reason, named = f"the server answered {error.response.status_code}", _retry_after(error.response.headers)
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, EOFError) as error:
            failure, reason, named = error, str(error) or type(error).__name__, None
            if unknown_host(error) or (isinstance(error, httpx2.ConnectError) and progressed() == 0):
                raise  # nobody is there; once bytes have come, whoever sent them may come back
        now = progressed()
        failures, before = (1 if now > before else failures + 1), max(before, now)
        if failures > len(WAITS):
            raise failure
        wait = WAITS[failures - 1] if named is None else named
        say(f"{reason}; trying again in {wait:.0f} s ({failures} of {len(WAITS)})")
        time.sleep(wait)


def _retry_after(headers: Any) -> float | None:
    """The seconds that a busy server asks for."""
    asked = headers.get("Retry-After", "")
    return min(float(asked), LONGEST_WAIT) if asked.isascii() and asked.isdigit() else None


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
