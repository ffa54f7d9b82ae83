"""What is told of the machine: what decides how results are rounded, and nothing else."""

from __future__ import annotations

import onnxruntime
from durable import begin, make_processor
from simulated import ChainModel

from streamer.core import LogFacts, RecordBatch
from streamer.engine.restore import Found, Names, Restore
from streamer.modelfile.machine import described, machine
from streamer.records.changelog import Identity

CPUINFO = """processor\t: 0
model name\t: Some processor
flags\t\t: fpu sse4_1 avx2 fma ht avx512f amx_tile

processor\t: 1
flags\t\t: fpu
"""


def test_flags_that_choose_kernels_and_the_runtime() -> None:
    assert described("x86_64", CPUINFO, "onnxruntime 1.0") == "x86_64 sse4_1 avx2 fma avx512f amx_tile; onnxruntime 1.0"
    arm = "Features\t: fp asimd aes asimddp sve\n"
    assert described("aarch64", arm, "onnxruntime 1.0") == "aarch64 asimd asimddp sve; onnxruntime 1.0"
    assert described("arm64", "", "onnxruntime 1.0") == "arm64; onnxruntime 1.0"


def test_this_machine_tells_its_runtime() -> None:
    assert machine() == machine()
    assert machine().endswith(f"; onnxruntime {onnxruntime.__version__}")


def test_a_restore_tells_that_another_machine_wrote_the_states() -> None:
    def restoring(written_on: str, here: str) -> str | None:
        names, found = Names("in", "log"), Found(LogFacts("id", 0, 5, 5), None, 0)
        first = make_processor([("chain", ChainModel(), None)], identity=Identity("g", "id", "f", written_on))
        begin(first)
        epoch = first.seal(0)
        assert epoch is not None
        records = [record for part in epoch.changelog for record in part.records]
        piece = RecordBatch(
            0,
            list(range(len(records))),
            [0] * len(records),
            [key for key, _ in records],
            [value for _, value in records],
        )
        second = make_processor([("chain", ChainModel(), None)], identity=Identity("g", "id", "f", here))
        restore = Restore(second, 0, names)
        assert restore.other_machine is None, "nothing is known yet"
        restore.apply(piece)
        restore.finish(found)
        return restore.other_machine

    assert restoring("x; onnxruntime 1", "x; onnxruntime 1") is None
    assert restoring("x; onnxruntime 1", "x; onnxruntime 2") == "x; onnxruntime 1"
    assert restoring("", "x; onnxruntime 2") is None, "an older changelog does not tell"
