"""Every key of a config and every option that is a path takes a URL, or refuses it by name: none makes a folder `s3:`."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import TypeAdapter, ValidationError

from cache.errors import ReskdError
from pipeline import cli
from stages.config.file import load_config
from stages.config.options import ANY_PATH, LocalPath
from stages.config.schema import Config, lost_url
from stages.evaluate.config import EvaluateConfig
from stages.prepare.config import PrepareConfig
from stages.remote.url_path import UrlPath
from stages.student.config import TrainConfig

URL = "s3://bucket/folder/x.mp4"
TAKEN = {
    *(("TrainData", key) for key in ("train", "val", "cache", "pack", "val_pack")),
    ("OnlineTeacherConfig", "checkpoint"),
    ("InitConfig", "path"),
    ("CacheConfig", "data"),
    ("TeacherConfig", "checkpoint"),
    ("FeaturesConfig", "basis"),
    *(("EvaluateConfig", key) for key in ("checkpoint", "data", "pack")),
    *(("PackConfig", key) for key in ("data", "cache", "output")),
    *(("PredictConfig", key) for key in ("checkpoint", "inputs", "output", "csv", "plot", "annotate")),
    *(("ExportConfig", key) for key in ("checkpoint", "data", "output")),
    *(("ImportConfig", key) for key in ("source", "classes", "output")),
    *(("PrepareConfig", key) for key in ("source", "output", "classes", "disjoint_from")),
}


def configs(base: type[Config] = Config) -> Iterator[type[Config]]:
    for config in base.__subclasses__():
        yield config
        yield from configs(config)


def test_each_key_takes_a_url_or_refuses_it_by_name():
    taken, refused = set(), set()
    for config in configs():
        for name, field in config.model_fields.items():
            if "Path" not in str(field.annotation):
                continue
            value = [URL] if "tuple" in str(field.annotation) else URL
            found = TypeAdapter(field.rebuild_annotation()).validate_python(value)
            try:
                config.model_validate({name: value})
                faults = []
            except ValidationError as error:  # other keys are missing
                faults = [fault["msg"] for fault in error.errors() if fault["loc"][:1] == (name,)]
            if found in (UrlPath(URL), (UrlPath(URL),)):
                assert faults == []
                taken.add((config.__name__, name))
            else:
                assert faults and f"{URL} is a URL, and this must be a path of this machine" in faults[0], (
                    config,
                    name,
                )
                refused.add((config.__name__, name))
    assert taken >= TAKEN and len(refused) > 3, TAKEN - taken


def commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from commands(below)


def test_each_option_that_is_a_path_takes_a_url_or_refuses_it():
    kinds = {param.type for command in commands(cli) for param in command.params}
    paths = [kind for kind in kinds if isinstance(kind, click.Path)]
    assert ANY_PATH in kinds and len(paths) > 3
    for kind in paths:
        assert isinstance(kind, LocalPath)
        with pytest.raises(click.BadParameter, match=f"{URL} is a URL, and this must be a path of this machine"):
            kind.convert(URL, None, None)


def test_a_url_is_kept_and_one_that_became_a_path_is_refused():
    config = load_config(TrainConfig, None, ["output=out", "data.train=s3://b//data/", "data.val=local"])
    assert config.data.train == UrlPath("s3://b/data") and config.data.val == Path("local")
    assert config.model_dump(mode="json")["data"]["train"] == "s3://b/data"
    with pytest.raises(ReskdError, match="output: .*s3://b/x is a URL"):
        load_config(EvaluateConfig, None, ["checkpoint=c", "data=d", f"output={Path('s3://b/x')}"])
    with pytest.raises(ReskdError, match="data.train: .*ftp://b/x: not a URL of a store"):
        load_config(TrainConfig, None, ["output=out", "data.train=ftp://b/x"])
    with pytest.raises(ReskdError, match="output: .*http://h/x: a web server can only be read"):
        load_config(PrepareConfig, None, ["source=x", "output=http://h/x"])
    assert lost_url(Path("s3://b/x")) == "s3://b/x" and lost_url(Path("gs:/b")) == "gs://b"
    assert lost_url(Path("C:/x")) is None and lost_url(Path("a/s3:/x")) is None and lost_url(Path("/s3:/x")) is None
