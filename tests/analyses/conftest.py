"""What the studies' tests share: measured studies of made-up worlds whose truth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from analyses.paired_study.answer import answer_study
from analyses.paired_study.frames import load_study
from benchmarks.planted_worlds import WORLDS, build

BY_NAME = {world.name: world for world in WORLDS}


@pytest.fixture(scope="session")
def planted():
    """The function that writes a draw of a world into a folder; fields of the world may be replaced."""

    def write(folder, name="strong", number=0, **changes):
        build(replace(BY_NAME[name], **changes), np.random.default_rng(number), folder)
        return folder

    return write


@pytest.fixture(scope="session")
def altered():
    """The answer of a planted study with every record changed (or left out, by None), or some of its design."""

    def answer(folder, change=lambda record: record, **design):
        file, plan = folder / "records.jsonl", folder / "study.json"
        changed = (change(json.loads(line)) for line in file.read_text().splitlines())
        kept = [{k: v for k, v in record.items() if k != "identity"} for record in changed if record]
        file.write_text("".join(json.dumps(record) + "\n" for record in kept))
        told = json.loads(plan.read_text())
        plan.write_text(json.dumps({**told, "design": {**told["design"], **design}}))
        study = load_study(folder)
        return study, answer_study(study)

    return answer
