"""What decides how the last digits of a result are rounded: instruction sets of the processor, and the runtime's version."""

from __future__ import annotations

import platform
from pathlib import Path

from streamer.modelfile.session import RUNTIME

_FLAGS = (
    # x86: the runtime chooses its kernels by these
    "sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni",
    "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16",
    # ARM
    "asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16", "sme",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")


def machine() -> str:
    """Such as ``x86_64 avx avx2 fma; onnxruntime 1.20.0``. The flags are missing where the system does not tell them."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return described(platform.machine(), text, RUNTIME)


def described(architecture: str, cpuinfo: str, runtime: str) -> str:
    """``cpuinfo``: as Linux writes it. Processors of one machine have the same flags: the first one's count."""
    flags: set[str] = set()
    for line in cpuinfo.splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(values.split())
            break
    return f"{' '.join([architecture, *(flag for flag in _FLAGS if flag in flags)])}; {runtime}"
