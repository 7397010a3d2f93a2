"""The real GPT-2 in a lesson: used where its weights are, and where they are not, said so."""

from minipeft.downloads import PUBLIC
from minipeft.gpt2 import GPT2


def real_gpt2() -> GPT2 | None:
    """GPT-2 small from this machine's cache, or None and a line that says how to get it. Never asks the network."""
    if PUBLIC["gpt2"].find() is None:
        print("The real GPT-2 is not on this machine; `python weights_download.py gpt2` brings it.")
        return None
    return GPT2.from_pretrained("gpt2")
