"""What predict refuses, before the work."""

import pytest
from click.testing import CliRunner

from cache.errors import ReskdError, StoreError
from pipeline import cli
from stages.remote.url_path import UrlPath
from tests.predict.runs import config_of, lines_of


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["window=0"], "window.*greater than 0.*given: 0"),
        (["window=-1"], "window.*greater than 0.*given: -1"),
        (["window=1", "hop=2"], "hop is 2 s and window 1 s: the net would not see"),
        (["hop=2"], "hop needs windows"),
        (["timeline=true"], "timeline needs windows: give window, in seconds"),
        (["plot=here"], "plot needs windows"),
        (["annotate=a.mkv"], "annotate writes MP4"),
        (["output={net}"], "is an input, which would be overwritten"),
        (["csv={film}"], "is an input, which would be overwritten"),
        (["csv={root}"], "is a folder"),
        (["protocol=2x2"], "protocol.*2x2"),
        (["policy={num_frames: 4, flip: 0}"], "deterministic"),
        (["checkpoint={film}"], "film.mp4"),
    ],
)
def test_refuses_what_it_cannot_mean(bright, changes, said):
    changes = [c.replace("{net}", str(bright.net)).replace("{film}", str(bright.film)) for c in changes]
    changes = [c.replace("{root}", str(bright.root)) for c in changes]
    with pytest.raises(ReskdError, match=said):
        lines_of(bright.net, [bright.film], bright.root, *changes)


def test_refuses_paths_with_nul_between_them(bright):
    done = CliRunner().invoke(cli, ["predict", str(bright.net), "-"], input=f"{bright.dark}\0{bright.light}\0")
    assert done.exit_code == 1 and "dark.mp4': give one path a line, and leave -print0 out" in done.stderr.replace(
        "\n", " "
    )


def test_refuses_inputs_without_a_video(bright, tmp_path):
    (tmp_path / "notes.txt").touch()
    for given, said in (
        (tmp_path, "no video in .*known as videos: .*mp4"),
        (tmp_path / "gone.mp4", "gone.mp4: no such file or folder"),
        (tmp_path / "*.mp4", "nothing matches this pattern"),
    ):
        with pytest.raises(ReskdError, match=said):
            lines_of(bright.net, [given], tmp_path)
    with pytest.raises(ReskdError, match="inputs"):
        config_of(bright.net, [])
    with pytest.raises(ReskdError, match="annotate takes one video, and 2 are given"):
        lines_of(bright.net, [bright.film, bright.dark], tmp_path, "window=1", f"annotate={tmp_path / 'a.mp4'}")


@pytest.mark.parametrize("key", ["plot", "csv"])
def test_refuses_urls_where_nothing_can_be_put(bright, tmp_path, s3, monkeypatch, key):
    url = UrlPath(s3.bucket) / "refused" / key

    def refused(path, data):
        raise StoreError(f"{path}: put failed (403 Forbidden)")

    monkeypatch.setattr(UrlPath, "write_bytes", refused)
    with pytest.raises(StoreError, match=f"{url}.* can't be written: {url.parent}/.*put failed .403"):
        lines_of(bright.net, [bright.film], tmp_path, "window=1", f"{key}={url}")
    assert not list(tmp_path.iterdir()) and not url.parent.exists()
