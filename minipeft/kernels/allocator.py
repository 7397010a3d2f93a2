"""Memory on Linux: keep big freed tensors in the process, let weights that wait go back to their file, put weights that
are read all the time into huge pages."""

import ctypes
import mmap
import platform
from collections.abc import Iterable

import torch
from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ONE_GIB = 1 << 30
_PAGE_OUT, _COLLAPSE = 21, 25
"""MADV_PAGEOUT and MADV_COLLAPSE; kernels before 5.4 and 6.1 refuse them and do nothing."""
_HUGE = 1 << 21


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed blocks of up to 1 GiB; returns whether it will. Elsewhere: nothing, False.

    A training step allocates and frees the same large activations over and over; by default each is a fresh `mmap`
    whose pages the kernel must clear. A pretraining step of nano took 1.30 times as long without this, median of three
    pairs on two cores (`benchmarks/allocator.py`).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_THRESHOLD, _ONE_GIB) and libc.mallopt(_TRIM_THRESHOLD, 2 * _ONE_GIB - 1))


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this is a device, or the CPU, that had no room for a tensor; nothing else is to be tried again."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)
    )


def first_sentence(error: BaseException) -> str:
    """What an error of PyTorch says, without the advice behind it."""
    return str(error).strip().split("\n")[0].split(". ")[0]


def page_out(tensors: Iterable[Tensor]) -> None:
    """Let the system take back the memory of weights that are read from a file and not needed for now.

    Only pages that the file still holds go; they come back when they are read. On Linux; elsewhere nothing happens.
    """
    if platform.system() != "Linux":
        return
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None)
    for start, size in {(s.data_ptr(), s.nbytes()) for s in (tensor.untyped_storage() for tensor in tensors)}:
        first, end = -(-start // page) * page, (start + size) // page * page
        if first < end:
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _PAGE_OUT)


def move_to_huge_pages(start: int, size: int) -> None:
    """Move so many bytes at an address to pages of 2 MiB, with what shares the first and the last of them.

    Where each is, a processor need not look up 512 times as often: two cores of an AMD EPYC (Zen 4, a virtual machine)
    sum 200 MB in 0.83 of the time. On Linux; elsewhere, or where no such page is free, nothing happens.
    """
    if platform.system() == "Linux":
        first, end = start // _HUGE * _HUGE, -(-(start + size) // _HUGE) * _HUGE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _COLLAPSE)
