"""What can go wrong while weights are brought, each as one sentence that ends with what to type next."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from minipeft.files import CheckpointError


class DownloadError(FileNotFoundError):
    """Weights that could not be brought; the message says why, and what to type next."""


@dataclass(frozen=True)
class Advice:
    """What a person can do: type `again`, do `otherwise`, or take another place for the file, `elsewhere`."""

    again: str
    otherwise: str
    elsewhere: str


@contextmanager
def explained(what: str, host: str, advice: Advice) -> Iterator[None]:
    """Any failure inside, as one sentence that ends with what to type next."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import logging

    then, level = f"then type: {advice.again} (or {advice.otherwise})", logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings say what `trying` says in its own words
    try:
        yield
    except (DownloadError, CheckpointError):
        raise
    except HfHubHTTPError as error:
        raise DownloadError(f"{_status(what, error.response)}; {then}") from None
    except OfflineModeIsEnabled:
        raise DownloadError(f"{what} is not here, and HF_HUB_OFFLINE forbids bringing it: unset it; {then}") from None
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, UnicodeError):
        raise DownloadError(f"{host} is no address of a hub, such as https://hf-mirror.com; {then}") from None
    except (httpx2.TransportError, LocalEntryNotFoundError, EOFError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        raise DownloadError(f"{_connection(what, host, cause or error)}; {then}") from None
    except httpx2.HTTPError as error:
        raise DownloadError(f"{what} could not be brought ({error}): is the address right? {then}") from None
    except OSError as error:
        reason, place = error.strerror or str(error), f" {error.filename}" if error.filename else ""
        trouble = f"the disk is full ({reason})" if error.errno == errno.ENOSPC else f"cannot write{place} ({reason})"
        raise DownloadError(f"{trouble}: make room, or take another place {advice.elsewhere}; {then}") from None
    finally:
        logging.set_verbosity(level)


def _status(what: str, response: Any) -> str:
    """What an HTTP status means here, and what to do about it."""
    status, host = response.status_code, response.request.url.host
    advice = {
        401: f"wants to know who asks for {what} (401): log in with `hf auth login`",
        403: f"does not let you have {what} (403): ask there for access",
        404: f"has no such file of {what} (404): is the address right?",
        429: "has had too many requests from here (429): wait some minutes",
    }
    if status in advice:
        return f"{host} {advice[status]}"
    if status >= 500:
        return f"{host} is in trouble ({status}): wait some minutes"
    return f"{host} refuses to give {what} ({status}): is the address right?"


def _connection(what: str, host: str, error: BaseException) -> str:
    """What a broken connection means here, and what to do about it."""
    if unknown_host(error):
        return f"the name of {host} cannot be looked up: check the network"
    if isinstance(error, EOFError):
        return f"{host} does not send {what} whole ({error}): wait some minutes"
    return f"{host} cannot be reached ({str(error) or type(error).__name__}): check the network and the proxy"


def unknown_host(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, socket.gaierror) or "Name or service not known" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
