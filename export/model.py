"""Models as plain values: configured, built, saved and loaded again.

Shapes: F features, O outputs. What the models compute is in ``export.sequence``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from streamer.errors import ConfigurationError, ModelError

from .cells import ColumnEncoder, TokenEmbedding, initialise, zero_last_linear
from .frontend import FrontEnd
from .listener import Listener
from .sequence import Forecaster, ModelConfig, SequenceModel, check_choice

__all__ = [
    "Forecaster",
    "ModelConfig",
    "SequenceModel",
    "TokenEmbedding",
    "build",
    "fold_target_scale",
    "load",
    "save",
]


def build(config: ModelConfig) -> SequenceModel:
    """A freshly initialised model: orthogonal recurrent weights, Xavier input weights, forget-gate bias."""
    check_choice("task", config.task, ("sequence", "forecast"))
    forecast = config.task == "forecast"
    if (config.vocabulary > 0) != (config.embedding > 0):
        raise ConfigurationError("vocabulary and embedding belong together: give both or neither")
    if config.vocabulary and (config.features != 1 or forecast):
        raise ConfigurationError("an embedding needs one feature (the category) and no forecast task")
    if config.categories and (forecast or config.vocabulary):
        raise ConfigurationError("a forecast is of numbers: leave the columns of words out of its features")
    if not 0.0 <= config.embedding_dropout < 1.0:
        raise ConfigurationError(f"embedding_dropout must be in [0, 1), not {config.embedding_dropout}")
    if config.frontend is not None and (forecast or config.vocabulary or config.categories):
        raise ConfigurationError("a front end hears samples: no forecast, and no words among the features")
    encoder, encoded = _make_encoder(config)
    common: dict[str, Any] = {
        "kind": config.kind,
        "nonlinearity": config.nonlinearity,
        "layers": config.layers,
        "directions": config.directions,
        "dropout": config.dropout,
        "encoder": encoder,
        "encoded": encoded,
        "head": _make_head(config),
        "reduce": config.reduce,
        "activation": config.activation,
        "output": config.output,
        "labels": config.labels,
        "window": config.window,
    }
    model: SequenceModel
    if forecast:
        model = Forecaster(config.features, config.hidden, score=config.score, skip=config.skip, **common)
        initialise(model.core, config.kind, forget_bias=config.forget_bias)
        zero_last_linear(model.head)
    elif config.frontend is not None:
        del common["encoder"], common["encoded"]
        model = Listener(config.features, config.hidden, front=config.frontend, **common)
        initialise(model.core, config.kind, forget_bias=config.forget_bias)
    else:
        model = SequenceModel(config.features, config.hidden, **common)
        initialise(model.core, config.kind, forget_bias=config.forget_bias)
    if config.labels is not None and len(config.labels) != model.width:
        raise ConfigurationError(f"{len(config.labels)} labels for {model.width} outputs")
    model.config = config
    return model


def save(model: SequenceModel, path: str | os.PathLike[str]) -> None:
    """Config and weights into one file, atomically. ModelError for a model that was not made by ``build``."""
    if model.config is None:
        raise ModelError("only a model made by build(ModelConfig) can be saved with its configuration")
    target = Path(path)
    temporary = target.with_name(target.name + ".part")
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    torch.save({"format": 1, "config": msgspec.to_builtins(model.config), "weights": weights}, temporary)
    os.replace(temporary, target)


def load(path: str | os.PathLike[str]) -> SequenceModel:
    """The model of a file written by ``save``, in evaluation mode; nothing in the file is executed."""
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        config = dict(document["config"])
        if config["labels"] is not None:
            config["labels"] = tuple(config["labels"])
        config["categories"] = tuple(tuple(each) for each in config.get("categories", ()))
        if config.get("frontend") is not None:
            config["frontend"] = msgspec.convert(config["frontend"], FrontEnd)
        model = build(ModelConfig(**config))
        model.load_state_dict(document["weights"])
    except FileNotFoundError as error:
        raise ModelError(f"no such file of weights: {path}") from error
    except (KeyError, TypeError, RuntimeError, ValueError, EOFError) as error:
        raise ModelError(f"{path} is not a file of weights written by train or export: {error}") from error
    except Exception as error:  # pickle.UnpicklingError and what else a foreign file provokes
        raise ModelError(f"{path} cannot be read as weights: {error}") from error
    model.eval()
    return model


def fold_target_scale(model: SequenceModel, mean: float, std: float) -> None:
    """Puts the way back from standardised targets into the head's last layer, so that the graph gives their units."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(std)
        last.bias.mul_(std).add_(mean)


def _make_encoder(config: ModelConfig) -> tuple[nn.Module | None, int | None]:
    """The encoder and the width of its result; None and None where events are numbers only."""
    if config.vocabulary:
        options: dict[str, Any] = {"unknown": config.unknown, "dropout": config.embedding_dropout}
        return TokenEmbedding(config.vocabulary, config.embedding, **options), config.embedding
    if config.categories:
        columns = ColumnEncoder(config.features, config.categories, dropout=config.embedding_dropout)
        return columns, columns.width
    return None, None


def _make_head(config: ModelConfig) -> nn.Module | None:
    outputs = config.features if config.task == "forecast" else config.outputs
    width = config.directions * config.hidden
    if outputs == 0:
        return None
    if config.head_hidden == 0:
        return nn.Linear(width, outputs)
    return nn.Sequential(nn.Linear(width, config.head_hidden), nn.ReLU(), nn.Linear(config.head_hidden, outputs))
