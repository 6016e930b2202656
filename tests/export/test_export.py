"""Exported files answer as the network does, in other programs too; what differs or can't be exported leaves nothing."""

import json
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet

from cache.errors import ReskdError
from cache.view import ViewPolicy
from pipeline import cli
from stages.bench.bad_videos.made_videos import with_matrix
from stages.config.file import load_config
from stages.export.clips import spread
from stages.export.config import ExportConfig
from stages.export.export import _copy_script, export
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, load_model, save_model
from stages.models.config import ModelConfig
from stages.prepare.prepare import prepare
from stages.remote.url_path import UrlPath
from stages.shards.dataset import open_dataset
from stages.stream.clips import ClipDataset
from tests.media import encode_video, moving_square
from tests.models.small_models import RESNET, SWIN, config, random_clips
from tests.runs import command

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

CLASSES = ("[a] thing", "b", "c", "d", "é")
SIZE = 24
STILL = {"num_frames": 4, "jitter": False, "flip": 0.0, "crop": "center"}
# A family, how it samples, and render_via: between them every way to sample and to crop. A TSN is exported in 8 bits.
FAMILIES = {
    "tsm": ({"sampling": "dense_1x", "stride": 2, "crop": "three_crop", "clips": 2}, 2 * SIZE),
    "slowonly": ({"sampling": "dense", "stride": 3, "crop": "full"}, 32),
    "swin": ({"clips": 3}, None),
}


def save_net(path, model: ModelConfig, change=lambda net: None, classes=CLASSES, render_via=None, **policy) -> Path:
    """A checkpoint of a random net whose answers differ from clip to clip."""
    torch.manual_seed(0)
    net = build_model(model).eval()
    torch.nn.init.normal_(net.head.fc.weight, std=1)
    change(net)
    save_model(path, net, ModelCard(model, classes, SIZE, render_via, ViewPolicy(**{**STILL, **policy})))
    return path


def model_of(arch: str) -> ModelConfig:
    if arch == "swin":
        return config(arch, "swin3d_t", SWIN | {"depths": [1, 1]}, num_frames=4)
    return config(arch, "resnet18", RESNET | {"zero_init_last": False}, num_frames=4)


@pytest.fixture(scope="module")
def house(tmp_path_factory, s3) -> SimpleNamespace:
    """Wide, tall, turned and mirrored videos, prepared; a net of each family, exported to .onnx with these videos.

    One of them is exported to a URL, with the script beside it. A TSN is there, too, not exported.
    """
    root = tmp_path_factory.mktemp("export")
    for i in range(6):
        folder = root / "videos" / CLASSES[i % 5]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (48, 80) if i % 2 else (80, 48)
        video = encode_video(moving_square(3 + 4 * i, *shape, seed=i), rotation=i % 4 * 90)
        (folder / f"{i}.mp4").write_bytes(with_matrix(video, -1, 0, 0, 1) if i == 4 else video)
    prepare(root / "videos", root / "data", classes=classes_file(root), workers=0)
    nets, files = {"tsn": save_net(root / "tsn.safetensors", model_of("tsn"))}, {}
    for arch, (policy, via) in FAMILIES.items():
        nets[arch] = save_net(root / f"{arch}.safetensors", model_of(arch), render_via=via, **policy)
        files[arch] = root / "files" / f"{arch}.onnx"
        url = UrlPath(s3.bucket) / "onnx" / files[arch].name
        output = url if arch == "slowonly" else files[arch]
        command("export", nets[arch], output, "--data", root / "data", "--set", "loader.workers=0")
    assert url.parent.files().keys() == {"slowonly.onnx", "run_onnx.py"}
    assert (url.parent / "run_onnx.py").read_bytes() == (root / "files" / "run_onnx.py").read_bytes()
    files["slowonly"].write_bytes((url.parent / "slowonly.onnx").read_bytes())
    return SimpleNamespace(root=root, data=root / "data", nets=nets, files=files)


def classes_file(root: Path) -> Path:
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root / "classes.txt"


def answers(data: Path, checkpoint: Path) -> dict[str, np.ndarray]:
    """Key of a clip -> its probabilities [K], the mean over its views, as evaluate draws them."""
    net, card = load_model(checkpoint)
    dataset = open_dataset(data)
    clips = ClipDataset(dataset, size=card.size, render_via=card.render_via, num_classes=5, policy=card.eval_policy)
    found = {}
    for s, entry in enumerate(dataset.shards):
        for r, row in enumerate(dataset.rows(entry.name)):
            batch = clips.__getitems__([(s, r, v) for v in range(card.eval_policy.views)])
            with torch.no_grad():
                found[row.key] = net(batch.clips).logits.softmax(-1).mean(0).numpy()
    return found


def folder_of(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("arch", FAMILIES)
def test_each_family_answers_in_onnxruntime_for_any_batch(house, arch):
    net, card = load_model(house.nets[arch])
    session = onnxruntime.InferenceSession(house.files[arch].read_bytes(), providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        clips = random_clips(batch, 4, SIZE, seed=batch)
        logits, probabilities = session.run(["logits", "probabilities"], {"frames": clips.numpy()})
        with torch.no_grad():
            wanted = net(clips).logits
        assert logits == pytest.approx(wanted.numpy(), abs=1e-4) and np.ptp(logits) > 1
        assert probabilities == pytest.approx(wanted.softmax(-1).numpy(), abs=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(about["labels"])) == CLASSES and about["arch"] == arch and about["format"] == "1"
    assert (about["size"], about["frames"], json.loads(about["render_via"])) == ("24", "4", card.render_via)
    assert ViewPolicy(**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(about["eval_policy"]).items()}
                      ) == card.eval_policy  # fmt: skip
    assert str(Path(cli.callback.__code__.co_filename).parent).encode() not in house.files[arch].read_bytes()


@pytest.mark.parametrize("arch", ["slowonly", "swin"])
def test_a_volume_and_a_transformer_answer_as_programs_of_torch(house, arch, tmp_path, capfd, s3):
    """The demo exports a TSM so."""
    output = UrlPath(s3.bucket) / "export" / "net.pt2" if arch == "swin" else tmp_path / "net.pt2"
    result = export(ExportConfig(checkpoint=house.nets[arch], output=output))
    if arch == "swin":
        assert output.parent.files() == {"net.pt2": result["bytes"]} and result["path"] == str(output)
        (tmp_path / "net.pt2").write_bytes(output.read_bytes())
        with pytest.raises(ReskdError, match=f"{output} exists already: give another output, or --overwrite"):
            export(ExportConfig(checkpoint=house.nets[arch], output=output))
    about = {"metadata.json": ""}
    with open(tmp_path / "net.pt2", "rb") as file:
        program = torch.export.load(file, extra_files=about).module()
    net, _ = load_model(house.nets[arch])
    clips = random_clips(5, 4, SIZE)
    with torch.no_grad():
        logits, probabilities = program(clips)
        torch.testing.assert_close(logits, net(clips).logits)
    torch.testing.assert_close(probabilities, logits.softmax(-1))
    assert tuple(json.loads(json.loads(about["metadata.json"])["labels"])) == CLASSES
    assert (result["clips"], result["compared_on"], result["opset"]) == (10, "noise", None)
    assert "10 clips of noise" in capfd.readouterr().err and folder_of(tmp_path) == ["net.pt2"]


WITHOUT_TORCH = """
import runpy, sys
sys.modules |= {"torch": None, "torchvision": None, "timm": None}
script, models, videos = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
for model in models:
    sys.argv = [script, model, *videos]
    runpy.run_path(script, run_name="__main__")
"""


def test_the_script_beside_it_sees_what_the_network_sees_and_needs_no_torch(house):
    videos = sorted(map(str, (house.root / "videos").rglob("*.mp4")), key=lambda path: Path(path).stem)
    script = house.files["tsm"].with_name("run_onnx.py")
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, script, ",".join(map(str, house.files.values())), *videos],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = iter(done.stdout.splitlines())
    for arch in FAMILIES:
        wanted = answers(house.data, house.nets[arch])
        assert len({round(float(p.max()), 3) for p in wanted.values()}) > 3
        for (key, probabilities), video in zip(
            sorted(wanted.items(), key=lambda item: item[0][-1]), videos, strict=True
        ):
            path, label = next(lines).split(": ", 1)
            label, probability = label.rsplit(" ", 1)
            assert (path, label) == (video, CLASSES[probabilities.argmax()]), key
            assert float(probability) == pytest.approx(probabilities.max(), abs=1e-3)


def test_the_script_names_what_it_cannot_read_and_goes_on(house, tmp_path):
    """A playlist of another video and a damaged video; without arguments, how it is called."""
    script, video = house.files["tsm"].with_name("run_onnx.py"), next((house.root / "videos").rglob("5.mp4"))
    (tmp_path / "whole.mp4").write_bytes(video.read_bytes())
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    data = bytearray(encode_video(moving_square(12, 64, 64)))
    start = data.index(b"mdat") + 4
    place = start + (len(data) - start) * 76 // 100
    data[place : place + 8] = b"\xff" * 8
    (tmp_path / "damaged.mp4").write_bytes(data)
    call = [sys.executable, script, house.files["tsm"], tmp_path / "list.mp4", tmp_path / "damaged.mp4", video]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.startswith(f"{video}: ") and len(done.stdout.splitlines()) == 1
    errors = [line for line in done.stderr.splitlines() if "can't be read" in line]
    assert (
        len(errors) == 2
        and "list.mp4 can't be read: " in errors[0]
        and "damaged.mp4 can't be read: a frame is damaged" in errors[1]
    )
    alone = subprocess.run(call[:2], capture_output=True, text=True)
    assert alone.returncode == 1 and "python run_onnx.py MODEL.onnx VIDEO..." in alone.stderr


# ---- int8 ----


@pytest.fixture(scope="module")
def judged(house) -> Path:
    """Videos whose labels are the answers of the TSN: in float it is always right."""
    root = house.root / "judged"
    root.mkdir()
    for i in range(16):
        (root / f"{i:02d}.mp4").write_bytes(encode_video(moving_square(8, 32, 32, seed=100 + i)))
    prepare(root, house.root / "unjudged", classes=classes_file(root), workers=0)
    labels = {key: CLASSES[p.argmax()] for key, p in answers(house.root / "unjudged", house.nets["tsn"]).items()}
    (root / "judged.csv").write_text("".join(f"{root}/{Path(key).stem}.mp4,{label}\n" for key, label in labels.items()))
    prepare(root / "judged.csv", house.root / "judged_data", classes=root / "classes.txt", workers=0)
    return house.root / "judged_data"


def test_int8_is_written_with_its_accuracy(house, judged, tmp_path, capfd):
    result = export(config_of(house.nets["tsn"], tmp_path / "i.onnx", data=judged, int8=True, calibrate=8, max_drop=30))
    assert result["top1_network"] == 100 and 70 <= result["top1_int8"] <= 100 and result["scored_clips"] == 16
    assert 1e-4 < result["largest_difference"] < 0.2 and result["clips"] == 8
    assert 2 * result["bytes"] < house.files["tsm"].stat().st_size
    assert "100.00 % in float" in capfd.readouterr().err
    session = onnxruntime.InferenceSession((tmp_path / "i.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(about["labels"])) == CLASSES and about["precision"] == "int8"


def loud(net):
    """The same function, but one channel has values a million times those of the others, so that 8 bits see no other."""
    block = net.backbone.layer1[0]
    with torch.no_grad():
        for weight in (net.backbone.bn1.weight, net.backbone.bn1.bias):
            weight[0] *= 1e6
        for convolution in (block.conv1, block.downsample[0]):
            convolution.weight[:, 0] /= 1e6


def test_int8_that_costs_too_much_is_refused_with_the_figures(house, judged, tmp_path):
    checkpoint = save_net(house.root / "loud.safetensors", model_of("tsn"), loud)
    with pytest.raises(
        ReskdError, match=r"lose [\d.]+ points.*100.00 % in float, [\d.]+ % in int8, on the same 16 clips"
    ):
        export(config_of(checkpoint, tmp_path / "i.onnx", data=judged, int8=True, max_drop=10))
    assert folder_of(tmp_path) == []


# ---- what is refused ----


class _OddBlock(BasicBlock):
    """A block with a step of its own behind it."""

    def forward(self, x):
        return self.odd(super().forward(x))


class _Bessel(_OddBlock):
    odd = staticmethod(torch.special.bessel_j0)


class _Forgetful(_OddBlock):
    """Answers differently from the second time on, but not in an export, which sees one time."""

    times = 0

    def odd(self, x):
        self.times += 1
        return x if self.times == 1 else x * 2 + 1


def odd_net(name: str, block: type, path: Path) -> Path:
    """A checkpoint of a network of timm with such blocks."""

    def build(pretrained=False, **arguments):
        return build_model_with_cfg(
            ResNet, name, pretrained, block=block, layers=(1,) * 4, channels=(8,) * 4, **arguments
        )

    build.__name__, build.__module__ = name, __name__
    register_model(build)
    return save_net(path / f"{name}.safetensors", ModelConfig(backbone=name, num_classes=5, num_frames=4))


def test_an_operator_without_onnx_is_named_in_one_line(house, tmp_path, capfd):
    checkpoint = odd_net("bessel_net", _Bessel, house.root)
    with pytest.raises(
        ReskdError, match=r"bessel_net.safetensors can't be written as ONNX: operator \S*bessel_j0: .+"
    ) as error:
        export(config_of(checkpoint, tmp_path / "net.onnx"))
    assert "\n" not in str(error.value) and folder_of(tmp_path) == [] and capfd.readouterr().out == ""


def test_a_file_with_other_answers_is_not_kept(house, tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"an older file")
    with pytest.raises(ReskdError, match=r"other answers than the network: the largest difference .* of 10 clips"):
        export(config_of(odd_net("forgetful_net", _Forgetful, house.root), tmp_path / "net.pt2", overwrite=True))
    assert folder_of(tmp_path) == ["net.pt2"] and (tmp_path / "net.pt2").read_bytes() == b"an older file"


def test_on_a_full_disk_nothing_is_left(house, tmp_path):
    """No file can be larger than a limit."""
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/net.pt2'"):
            export(ExportConfig(checkpoint=house.nets["tsn"], output=tmp_path / "net.pt2"))
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/run_onnx.py'"):
            _copy_script(tmp_path / "net.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert folder_of(tmp_path) == []


def test_exports_into_one_folder_share_the_script(house, tmp_path):
    """The script is left alone where it is right, so that two exports at once can't disturb each other."""
    script = tmp_path / "run_onnx.py"
    _copy_script(tmp_path / "a.onnx")
    made = script.stat().st_ino
    assert script.read_bytes() == house.files["tsm"].with_name("run_onnx.py").read_bytes()
    _copy_script(tmp_path / "b.onnx")
    assert script.stat().st_ino == made and folder_of(tmp_path) == ["run_onnx.py"]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            script.unlink()
            list(pool.map(_copy_script, [tmp_path / f"{i}.onnx" for i in range(8)]))
            assert folder_of(tmp_path) == ["run_onnx.py"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": "net.onnxx"}, "must end in .onnx or .pt2"),
        ({"output": "net.onnx", "int8": True}, "int8 needs data: .*labels show what int8 costs"),
        ({"output": "net.pt2", "int8": True}, "int8 is for .onnx"),
        ({"output": "old.pt2"}, "exists already.*--overwrite"),
        ({"output": "net.onnx"}, "run_onnx.py exists already and isn't this version's"),
        ({"output": "new.pt2", "checkpoint": "none.safetensors"}, "none.safetensors does not exist"),
    ],
)  # fmt: skip
def test_refuses_what_it_cannot_do_before_any_work(house, tmp_path, changes, said):
    for name in ("old.pt2", "run_onnx.py"):
        (tmp_path / name).write_text("mine")
    values = {"checkpoint": house.nets["tsn"], **changes}
    with pytest.raises(ReskdError, match=said):
        export(config_of(values.pop("checkpoint"), tmp_path / values.pop("output"), **values))
    assert folder_of(tmp_path) == ["old.pt2", "run_onnx.py"]


def test_int8_refuses_other_classes_and_no_labels(house, judged, tmp_path):
    other = save_net(house.root / "other.safetensors", model_of("tsn"), classes=CLASSES[::-1])
    for checkpoint, dataset, said in ((other, judged, "knows other classes than"),
                                      (house.nets["tsn"], house.root / "unjudged", "are unlabelled")):  # fmt: skip
        with pytest.raises(ReskdError, match=said):
            export(config_of(checkpoint, tmp_path / "i.onnx", data=dataset, int8=True))
    assert folder_of(tmp_path) == []


@pytest.mark.parametrize(
    ("policy", "said"), [({"jitter": True}, "must be deterministic"), ({"num_frames": 8}, "8 frames")]
)
def test_refuses_a_checkpoint_without_fixed_views(house, tmp_path, policy, said):
    checkpoint = save_net(tmp_path / "net.safetensors", model_of("tsn"), **policy)
    with pytest.raises(ReskdError, match=f"net.safetensors.*{said}.*train or import it again"):
        export(config_of(checkpoint, tmp_path / "net.pt2"))


def test_says_how_to_install_what_onnx_needs(house, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ReskdError, match=r"onnxscript.*`uv run --extra export pipeline.py export \S+ \S+net.onnx`"):
        export(config_of(house.nets["tsn"], tmp_path / "net.onnx"))


def test_clips_are_spread_evenly():
    rows = [(0, r) for r in range(10)]
    assert spread(rows, 5) == [(0, 1), (0, 3), (0, 5), (0, 7), (0, 9)]
    assert spread(rows, 99) == rows


def config_of(checkpoint: Path, output: Path, **changes) -> ExportConfig:
    values = {"checkpoint": checkpoint, "output": output, "loader.workers": 0, **changes}
    return load_config(ExportConfig, None, [f"{key}={value}" for key, value in values.items()])
