"""What train.toml may say about pairs; ``export.config`` has the rest of the file."""

from __future__ import annotations

import msgspec

from streamer.modelfile.decoder import MAX_NORMALISATION, MAX_WIDTH

from ..bounds import Count, Size

PAIR_TASKS = ("sequence-to-sequence", "recognise")
"""Tasks whose data is pairs of a source and what is to be written for it."""


class PairsSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What tasks with pairs want to know beside the rest: sequence-to-sequence and recognise."""

    source: str = "source"
    """Column of the source's text. A .txt file, or a file without these columns, has lines SOURCE, tab, TARGET."""
    target: str = "target"
    """Column of the target's text. Several rows of one source: any of their targets is right."""
    source_units: str = "characters"
    """``characters`` or ``words``: what a step of the source is."""
    target_units: str = "characters"
    """``characters`` or ``words``: what is written at each step."""
    transcripts: str | None = None
    """File of two columns, stream and target; ``data.path`` then holds the frames of each stream, as for other tasks."""
    split_by: str = "source"
    """``source`` or ``target``: pairs that have it in common go to the same part."""
    metric: str = "symbol_error"
    """What decides which epoch is the best, and when ``patience`` ends: ``exact_match``, ``symbol_error``,
    ``word_error`` or ``bleu``, of the validation part, decoded free-running."""
    judged_rows: Size = 1000
    """Pairs of the validation part that are decoded after each epoch, at most; the final figures are of all."""
    label_smoothing: float = 0.0
    """sequence-to-sequence: share of the probability that is spread over all symbols."""
    sampling: float = 0.0
    """sequence-to-sequence: how often, in the last epoch, a step is given the model's own last symbol instead of the
    true one (scheduled sampling); the share grows from 0."""
    mask_steps: Size = 0
    """Longest run of steps that is masked in a training source."""
    mask_features: Size = 0
    """Most neighbouring features that are masked in a training source, for frames."""

    def problem(self) -> str | None:
        """A value that means nothing; None if all can be used."""
        choices = {
            "source_units": ("characters", "words"),
            "target_units": ("characters", "words"),
            "split_by": ("source", "target"),
            "metric": ("exact_match", "symbol_error", "word_error", "bleu"),
        }
        for key, allowed in choices.items():
            if (value := getattr(self, key)) not in allowed:
                return f"pairs.{key} must be one of {', '.join(allowed)}, not {value!r}"
        for key in ("label_smoothing", "sampling"):
            if not 0.0 <= getattr(self, key) < 1.0:
                return f"pairs.{key} must be at least 0 and below 1, not {getattr(self, key):g}"
        if min(self.mask_steps, self.mask_features) < 0 or self.judged_rows < 1:
            return "pairs.mask_steps and pairs.mask_features must be at least 0, pairs.judged_rows at least 1"
        return None


class DecoderSection(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """sequence-to-sequence: what writes; its kind of cell is that of ``[model]``, which reads."""

    hidden: Size = 0
    """Width of its state; 0: the width of what the encoder gives, both directions together."""
    layers: Count = 1
    """Recurrent layers."""
    embedding: Count = 32
    """Width of the embedding of a written symbol."""
    attention: str = "general"
    """``general`` or ``dot`` (Luong et al. 2015), ``bahdanau`` (Bahdanau et al. 2015; slower to train), or ``none``."""
    max_steps: Size = 0
    """Symbols after which a sequence ends in any case; 0: twice the longest of the training part."""
    search: str = "greedy"
    """How the service decodes: ``greedy`` or ``beam``."""
    width: Size = 4
    """Hypotheses of a beam; not more than there are symbols."""
    length_normalisation: float = 0.0
    """Of a beam's scores: alpha of Wu et al. 2016; 0: none."""


def sections_problem(task: str, pairs: PairsSection | None, decoder: DecoderSection | None) -> str | None:
    """What does not go together in [pairs], [decoder] and the task; None if all does."""
    if task not in PAIR_TASKS:
        extra = next((name for name, each in (("pairs", pairs), ("decoder", decoder)) if each is not None), None)
        return f"[{extra}] belongs to the tasks {' and '.join(PAIR_TASKS)}, not to {task}" if extra else None
    if task == "recognise" and decoder is not None:
        return "[decoder] belongs to task sequence-to-sequence: recognise has a label per step, and no decoder"
    if decoder is not None and decoder.search not in ("greedy", "beam"):
        return f"decoder.search must be greedy or beam, not {decoder.search!r}"
    if decoder is not None and not 1 <= decoder.width <= MAX_WIDTH:
        return f"decoder.width must be 1 to {MAX_WIDTH}, not {decoder.width}"
    if decoder is not None and not 0 <= decoder.length_normalisation <= MAX_NORMALISATION:
        return f"decoder.length_normalisation must be 0 to {MAX_NORMALISATION}, not {decoder.length_normalisation:g}"
    return pairs.problem() if pairs is not None else None
