"""A model file becomes a ``Model``: read, checked against its contract, and tried.

model = Model.load("model.onnx")
outputs, states = model.run(x, lengths, model.initial_states(len(x)))
"""

from __future__ import annotations

from pathlib import Path

from streamer.errors import ModelError
from streamer.modelfile.contract import METADATA_KEY, Contract, load_sidecar
from streamer.modelfile.graph import check, digest, external_files, scan
from streamer.modelfile.pair import DecoderGraph, decoder_bytes
from streamer.modelfile.probe import Finding, Probe
from streamer.modelfile.session import Session


class Model(Session):
    """One loaded model file. ``sha256``: of the file and its tensor files, in hex; ``findings``: what the probe saw."""

    def __init__(self, source: Path | bytes, contract: Contract, *, sha256: str, path: Path, threads: int = 1) -> None:
        super().__init__(source, contract, threads=threads)
        self.sha256 = sha256
        self.path = path
        self.findings: list[Finding] = []
        self.decoder: DecoderGraph | None = None
        """The second graph of a pair (``streamer.modelfile.pair``)"""

    @classmethod
    def load(cls, path: str | Path, *, sha256: str | None = None, threads: int = 1, probe: bool = True) -> Model:
        """Reads, checks and (with ``probe``) tries a model file. ModelError, in one sentence, if it cannot be trusted.

        ``sha256``: the pinned digest in hex; ``threads``: of one call (more pay only for large models and batches).
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"the model {path} cannot be read: {error.strerror}") from None
        try:
            found = scan(data)
            files = external_files(path, found.external)
            digested = digest(data, files)
            if sha256 is not None and digested != sha256.lower():
                raise ModelError(
                    f"sha256 is {digested}, but {sha256} is pinned: deploy the pinned file, or pin this one"
                )
            check(found)
            contract = _contract(path, found.metadata.get(METADATA_KEY))
            model = cls(path if files else data, contract, sha256=digested, path=path, threads=threads)
            if (graph := decoder_bytes(contract, found.metadata)) is not None:
                model.decoder = DecoderGraph(graph, contract, threads=threads)
            if probe:
                model.probe()
        except ModelError as error:
            raise ModelError(f"the model {path}: {error}") from None
        except UnicodeDecodeError:  # ONNX Runtime hands names out as they are
            raise ModelError(f"the model {path}: a name in the graph is not UTF-8: export or copy it again") from None
        return model

    def probe(self) -> list[Finding]:
        """Tries what the contract promises, on made-up events; where the batch axis is false, it falls back to one row.

        ModelError if the model does not run, gives other shapes than declared, depends on padding although it has
        lengths, or (step mode) gives another result for a sequence than step by step.
        """
        with self.quiet():
            self.findings = Probe(self).run()
            if self.decoder is not None:
                self.findings += self.decoder.probe(self)
        return self.findings


def _contract(path: Path, embedded: bytes | None) -> Contract:
    sidecar = path.with_suffix(".toml")
    if embedded is not None and sidecar.exists():
        raise ModelError(f"it has a contract inside and the sidecar {sidecar.name} beside it: remove one of the two")
    if embedded is not None:
        return Contract.parse(embedded, source=f"metadata {METADATA_KEY}")
    if not sidecar.exists():
        raise ModelError(
            "it has no contract: export it with `python -m streamer_export` (in the checkout `python -m export`), or write "
            f"{sidecar.name} beside it"
            f" (`streamer inspect {path.name} --draft` proposes one)"
        )
    return load_sidecar(sidecar)
