"""The guide to data says what the code says: its tables are made from it, its example is run, its messages exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import export
from export import train
from export.config import read_config, reference
from export.files import FORMATS
from export.pairs.sections import PAIR_TASKS
from streamer.modelfile.feature import Feature
from streamer.modelfile.model import Model
from streamer.modelfile.parts import Input

FOLDER = Path(export.__file__).parent
GUIDE = (FOLDER / "GUIDE-data.md").read_text(encoding="utf-8")
KEYS = re.compile(r"<!-- keys: .*? -->\n(.*)\n<!-- end of keys -->", re.DOTALL)


def test_every_key_with_its_default_is_in_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    found = KEYS.search(GUIDE)
    assert found is not None
    assert found.group(1).strip() == reference().strip(), "run: python -m export train --keys, and paste it"
    assert train.main(["--keys"]) == 0
    assert capsys.readouterr().out == reference()
    for section in ("DataSection", "ModelSection", "TrainSection"):
        for name in getattr(export.config, section).__struct_fields__:
            assert re.search(rf"^\| `{name}` \| .+ \| .{{8,}} \|$", reference(), re.MULTILINE), name


def test_the_keys_of_a_feature_and_the_formats_are_all_there() -> None:
    for name in Feature.__struct_fields__:
        assert f"`{name}`" in GUIDE
    for suffix in FORMATS:
        assert f"`{suffix}`" in GUIDE
    (example,) = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
    import msgspec

    fields = {"name": "x", "shape": ["batch", "time", 5], **msgspec.json.decode(example)}
    assert [each if isinstance(each, str) else each.kind for each in msgspec.convert(fields, Input).features] == [
        "pressure",
        "number",
        "category",
        "present",
        "since_last",
    ]


def test_every_message_of_the_guide_is_one_that_the_code_says() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.py"))
    plain = re.sub(r'"\s*\n\s*f?"', "", code)  # sentences that run over lines
    messages = re.findall(r"^\| `([^`]+)` \|", GUIDE.partition("## When something is wrong")[2], re.MULTILINE)
    assert len(messages) > 15
    for message in messages:
        assert message in plain, message


def test_the_guides_example_of_pairs_is_a_configuration(tmp_path: Path) -> None:
    _, toml = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "train.toml").write_text(toml)
    config = read_config(tmp_path / "train.toml")
    assert config.task in PAIR_TASKS
    assert config.pairs is not None
    assert config.decoder is not None


@pytest.mark.torch
def test_the_guides_example_gives_a_model_that_can_be_served(tmp_path: Path) -> None:
    toml, _ = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    (header,) = re.findall(r"^ +(stream,time,.*)$", GUIDE, re.MULTILINE)
    rng = np.random.default_rng(0)
    lines = [header]
    for pump in range(12):
        for step in range(24):
            hot = rng.random() < 0.3
            temperature = "" if rng.random() < 0.1 else f"{(30 if hot else 20) + rng.normal():.2f}"
            mode = ("idle", "run")[step % 2]
            time = f"2026-03-01T{step:02}:00:00+02:00"
            lines.append(f"pump-{pump},{time},{temperature},1.01,{mode},{'fault' if hot else 'ok'}")
    (tmp_path / "pumps.csv").write_text("\n".join(lines))
    (tmp_path / "train.toml").write_text("\n".join(line.removeprefix("   ") for line in toml.splitlines()))
    assert read_config(tmp_path / "train.toml").name == "pumps"
    assert train.main(["--config", str(tmp_path / "train.toml"), "--out", str(tmp_path / "out")]) == 0
    contract = Model.load(tmp_path / "out" / "model.onnx").contract
    assert contract.feature_names == ("temperature", "pressure", "mode")
    assert contract.feature_tables[0].missing == pytest.approx(23, abs=1.5)
