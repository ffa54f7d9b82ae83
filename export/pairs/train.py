"""Tasks ``sequence-to-sequence`` and ``recognise`` of the command ``train``, and what recipes share with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from streamer.errors import ConfigurationError

from .. import plots
from ..cells import settle_unknown
from ..config import TrainConfig
from ..encdec.module import EncoderDecoder, PairConfig
from ..fit import EpochFigures, FitOptions, History, facts
from ..folders import make_folder
from ..listener import Listener
from ..model import ModelConfig, SequenceModel, build
from ..progress import epochs_progress
from .data import BLANK, END, Alphabet, Pair, PairSplit, Sample
from .fit import PairTrainer
from .learners import CtcLearner, Learner, PairLearner, write_all
from .metrics import METRICS, figures
from .publish import publish
from .read import read_split
from .sections import DecoderSection, PairsSection

_EMBEDDING = 32
_HEARD = 300
"""Sources by which a front end's energies are scaled."""
_LENGTH_FACTOR = 2


@dataclass
class Trained:
    """One seed's result: a learner in evaluation mode, with the weights of its best epoch."""

    seed: int
    learner: Learner
    alphabet: Alphabet
    history: History
    figures: dict[str, dict[str, float]]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.learner.module.parameters())

    def write(self, pair: Pair) -> tuple[str, ...]:
        """What the model writes for a pair's source, free-running."""
        (numbers,) = write_all(self.learner, [self.alphabet.encode(pair.source)])
        return self.alphabet.names(numbers)


def make_learner(config: TrainConfig, split: PairSplit, alphabet: Alphabet, samples: Sequence[Sample]) -> Learner:
    """A fresh model for this data; frames are scaled by the training part."""
    options = msgspec.structs.asdict(config.model)
    options["vocabulary"], options["unknown"] = len(alphabet.source), 0 if alphabet.source else None
    options["embedding"] = (config.model.embedding or _EMBEDDING) if alphabet.source else 0
    width = samples[0].x.shape[1]
    learner: Learner
    if config.task == "recognise":
        symbols = alphabet.symbols
        head: dict[str, Any] = {"outputs": len(symbols), "activation": "softmax", "labels": symbols}
        model = build(ModelConfig(features=width, **head, **options))
        trunk, learner = model, CtcLearner(model)
    else:
        decoder = config.decoder or DecoderSection()
        longest = max(len(sample.y) for sample in samples)
        pair = EncoderDecoder(
            PairConfig(
                encoder=ModelConfig(features=width, **options),
                symbols=len(alphabet.symbols),
                hidden=decoder.hidden or config.model.directions * config.model.hidden,
                layers=decoder.layers,
                embedding=decoder.embedding,
                attention=decoder.attention,
                dropout=config.model.dropout,
                labels=alphabet.symbols,
                max_steps=decoder.max_steps or _LENGTH_FACTOR * longest + 1,
            )
        )
        trunk, learner = pair.encoder.trunk, PairLearner(pair)
    if isinstance(trunk, Listener):
        trunk.settle([sample.x for sample in samples[:: max(1, len(samples) // _HEARD)]])
    elif not alphabet.source and config.data.scale:
        rows = np.concatenate([sample.x for sample in samples]).astype(np.float64)
        std = rows.std(axis=0)
        trunk.mean.copy_(torch.from_numpy(rows.mean(axis=0)))
        trunk.std.copy_(torch.from_numpy(np.where(std < 1e-6, 1.0, std)))
    return learner


def train_seed(
    config: TrainConfig,
    split: PairSplit,
    seed: int,
    *,
    out: Path | None,
    resume: bool = False,
    notes: list[str] | None = None,
) -> Trained:
    """Train one seed to its best epoch by ``pairs.metric``, and judge it on validation and test part."""
    section = config.pairs or PairsSection()
    torch.manual_seed(seed)
    alphabet = Alphabet.of(split, first=BLANK if config.task == "recognise" else END, min_count=config.data.min_count)
    every = [sample for sample in alphabet.samples(split.train) if len(sample.x)]
    if not every:
        raise ConfigurationError("too little data: nothing to train on")
    learner = make_learner(config, split, alphabet, every)
    samples = [sample for sample in every if learner.fits(sample)]
    if notes is not None and len(samples) < len(every):
        why = "longer than its source" if config.task == "recognise" else "longer than decoder.max_steps"
        notes.append(f"{len(every) - len(samples)} of {len(every)} targets cannot be written and are left out: {why}")
    trunk = _trunk(learner)
    neutral = torch.zeros(1) if alphabet.source else trunk.mean
    options = FitOptions(seed=seed, **msgspec.structs.asdict(config.training))
    trainer = PairTrainer(learner, config.task, options, section, neutral)
    checkpoint = out / f"checkpoint-{seed}.pt" if out is not None else None
    trainer.facts = facts(
        model=learner.module.config,
        symbols=alphabet.symbols,
        source=alphabet.source,
        pairs=section,
        scale_of_features=[trunk.mean.tolist(), trunk.std.tolist()],
    )
    if resume and checkpoint is not None and checkpoint.exists():
        trainer.restore(checkpoint)
    judged = split.validation[: section.judged_rows]
    with epochs_progress(f"{config.name} seed {seed}", config.training.epochs, len(trainer.history.epochs)) as advance:
        history = trainer.run(
            samples,
            lambda: _error(evaluate(learner, alphabet, split, judged), section.metric),
            progress=lambda row: advance(_describe(row, section.metric)),
            checkpoint=checkpoint,
        )
    if alphabet.source:
        settle_unknown(trunk.encoder, [sample.x for sample in samples])
    found = {"validation": evaluate(learner, alphabet, split, split.validation)}
    if split.test:
        found["test"] = evaluate(learner, alphabet, split, split.test)
    return Trained(seed, learner, alphabet, history, found)


def evaluate(learner: Learner, alphabet: Alphabet, split: PairSplit, part: Sequence[Pair]) -> dict[str, float]:
    """All metrics of what the model writes free-running, beside the training part's commonest target always."""
    written = [alphabet.names(row) for row in write_all(learner, [alphabet.encode(pair.source) for pair in part])]
    right = [pair.targets for pair in part]
    common, _ = Counter(target for pair in split.train for target in pair.targets).most_common(1)[0]
    bleu = isinstance(learner, PairLearner)
    always = figures([common] * len(part), right, split.separator, bleu=bleu)
    return {
        **figures(written, right, split.separator, bleu=bleu),
        **{f"baseline_{name}": value for name, value in always.items()},
    }


def run(
    config: TrainConfig, base: Path, out: Path, *, resume: bool = False, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """As ``export.train.run``, for tasks with pairs."""
    torch.set_num_threads(config.threads)
    make_folder(out)
    notes: list[str] = []
    split = read_split(config, base, notes)
    trained = [train_seed(config, split, seed, out=out, resume=resume, notes=notes) for seed in config.seeds]
    best = min(trained, key=lambda each: each.history.best_loss)
    metrics = _metrics(config, split, trained, best)
    metrics["notes"] = list(dict.fromkeys(notes))
    metrics["warnings"] = warnings(best.figures)
    for text in [f"note: {note}" for note in metrics["notes"]] + [f"WARNING: {text}" for text in metrics["warnings"]]:
        say(text)
    metrics["verification"] = publish(
        best.learner,
        best.alphabet,
        split,
        out,
        name=config.name,
        version=config.version,
        decoder=config.decoder or DecoderSection(),
        trained_on=metrics["data"],
        metrics=published_metrics(best.figures, metrics["warnings"]),
    )
    plots.write_json(out / "metrics.json", metrics)
    plots.loss_plot(out / "loss.png", {f"seed {t.seed}": t.history for t in trained})
    plots.metric_plot(out / "metric.png", best.figures)
    plots.gradient_norm_plot(
        out / "gradient_norm.png", {f"seed {t.seed}": t.history for t in trained}, config.training.clip_norm
    )
    return metrics


def warnings(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Sentences about every figure that is no better than writing the commonest target always."""
    part = "test" if "test" in found else "validation"
    told = []
    for name, more_is_better in METRICS.items():
        value, baseline = found[part].get(name), found[part].get(f"baseline_{name}")
        if value is None or baseline is None:
            continue
        if not (value > baseline if more_is_better else value < baseline):
            told.append(
                f"{part} {name} {value:.4g} is no better than the baseline's {baseline:.4g} (the commonest target,"
                " whatever the source): this model has learnt nothing that is worth serving"
            )
    return told


def published_metrics(found: Mapping[str, Mapping[str, float]], told: Sequence[str]) -> dict[str, Any]:
    """What the contract says about how good the model is."""
    rows: dict[str, Any] = {f"{part}_{name}": value for part, row in found.items() for name, value in row.items()}
    return {**rows, **({"warnings": list(told)} if told else {})}


def _error(found: Mapping[str, float], metric: str) -> float:
    """The metric as something that is to be small."""
    if metric not in found:
        raise ConfigurationError(f"pairs.metric: {metric} means nothing here, where no target has several words")
    value = found[metric] / 100.0 if metric == "bleu" else found[metric]
    return 1.0 - value if METRICS[metric] else value


def _trunk(learner: Learner) -> SequenceModel:
    """The part that reads the source."""
    trunk = learner.module.encoder.trunk if isinstance(learner, PairLearner) else learner.module
    assert isinstance(trunk, SequenceModel)
    return trunk


def _describe(row: EpochFigures, metric: str) -> str:
    what = f"1 - {metric}" if METRICS[metric] else metric
    return f"train loss {row.train_loss:.4f} validation {what} {row.validation_loss:.4f}"


def _metrics(config: TrainConfig, split: PairSplit, trained: Sequence[Trained], best: Trained) -> dict[str, Any]:
    summary: dict[str, dict[str, float]] = {}
    for part, row in best.figures.items():
        for name in row:
            values = [each.figures[part][name] for each in trained]
            summary[f"{part}_{name}"] = {"mean": float(np.mean(values)), "std": float(np.std(values))}
    return {
        "name": config.name,
        "task": config.task,
        "config": msgspec.to_builtins(config),
        "parameters": best.parameters,
        "data": {
            "file": Path(config.data.path).name,
            "split": "test file" if config.data.test_path else (config.pairs or PairsSection()).split_by,
            "source_units": split.source_units or "frames",
            "target_units": split.target_units,
            "symbols": len(best.alphabet.symbols),
            **{f"{name}_pairs": len(getattr(split, name)) for name in ("train", "validation", "test")},
        },
        "seeds": [{"seed": each.seed, "figures": each.figures, **asdict(each.history)} for each in trained],
        "summary": summary,
        "best": {"seed": best.seed, "figures": best.figures},
        "score": {},
    }
