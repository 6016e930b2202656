"""The zoo's costs, against figures of others, and against the table in configs/README.md."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cache.errors import ReskdError
from pipeline import cli
from stages.models.list_models import list_models
from stages.models.zoo import PROTOCOLS, ZOO

GMACS = {  # of one view at 224 and 112 px, computed elsewhere
    "tsn_r50": (65.4, 17.25),
    "tsn_r152": (184.2, None),
    "tsm_r50": (32.7, 8.62),
    "slowonly_r50": (41.74, 10.99),
    "swin_s": (165.7, 42.2),
    "swin_b": (281.3, 71.8),
    "r2plus1d_18": (None, 40.519),  # torchvision's own figures; that of S3D is of 16 frames
    "s3d": (8 * 17.979, None),
    "mvit_v2_s": (64.224, None),
}
VIEWS = {"tsn_r50": 1, "tsn_r152": 1, "tsm_r50": 6, "slowonly_r50": 30, "swin_s": 12, "swin_b": 12,
         "r2plus1d_18": 5, "s3d": 1, "mvit_v2_s": 5}  # fmt: skip
MAPS = {"r2plus1d_18": [(2, 14, 14), (2, 7, 7)], "s3d": [(16, 7, 7), (16, 3, 3)], "mvit_v2_s": [(8, 7, 7), (8, 4, 4)]}


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> tuple[list[dict], str]:
    """What `models` writes and what it prints."""
    file = tmp_path_factory.mktemp("models") / "models.json"
    printed = CliRunner().invoke(cli, ["models", "--json", str(file)], env={"COLUMNS": "80"}).output
    return json.loads(file.read_text()), printed


def test_the_table_in_the_readme_is_what_the_command_prints(listed):
    table = "\n".join(line.rstrip() for line in listed[1].strip().splitlines())
    assert table in (Path(__file__).parents[1] / "configs/README.md").read_text()


def test_the_zoo_costs_what_is_known_of_it(listed):
    rows, printed = listed
    assert [(row["name"], row["size"]) for row in rows] == [(name, size) for name in GMACS for size in (224, 112)]
    for row in rows:
        expected = GMACS[row["name"]][row["size"] == 112]
        if expected is not None:
            assert row["gmacs"] == pytest.approx(expected, rel=0.003)
        assert row["gmacs_video"] == pytest.approx(row["gmacs"] * VIEWS[row["name"]])
        frames = row["frames"] // 2 if row["arch"] == "swin" else row["frames"]
        usual = [(frames, 7, 7), (frames, 4, 4)]
        assert tuple(row["grid"]) == MAPS.get(row["name"], usual)[row["size"] == 112]
    # 1000 classes of torchvision's 25,557,032; its Swin-S has 49,816,678 with 400
    parameters = {row["name"]: row["parameters"] for row in rows}
    assert parameters["tsn_r50"] == parameters["tsm_r50"] == 25_557_032 - 600 * 2049
    assert parameters["swin_s"] == 49_816_678
    assert parameters["r2plus1d_18"] == 31_505_325 and parameters["mvit_v2_s"] == 34_537_744  # torchvision's
    for words in ("slowonly_r50 │   8×112² │ 32.5 M │  10.99 │  10×3 │   329.8 │  8×4×4×2048", "swin_b"):
        assert words in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_every_network_has_a_protocol():
    assert ZOO.keys() == PROTOCOLS.keys()


def test_a_size_that_no_config_could_have_is_refused():
    with pytest.raises(ReskdError, match="size 0 must be from 8 to 1024 px"):
        list_models((112, 0))
