"""The public GPT-2 weights, brought and checked."""

from minipeft.downloads.failures import Advice, DownloadError
from minipeft.downloads.public import PUBLIC
from minipeft.downloads.store import adopt, download, fetch, verify
from minipeft.downloads.transfer import Remote

__all__ = ["PUBLIC", "Advice", "DownloadError", "Remote", "adopt", "download", "fetch", "verify"]
