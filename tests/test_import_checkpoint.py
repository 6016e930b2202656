"""A foreign checkpoint becomes one of ours, which the other stages take."""

import pytest
import torch

from cache.errors import ReskdError
from cache.view import ViewPolicy
from stages.config.file import load_config
from stages.evaluate.config import EvaluateConfig
from stages.evaluate.evaluate import evaluate
from stages.import_checkpoint.config import ImportConfig
from stages.import_checkpoint.import_checkpoint import import_checkpoint
from stages.models.checkpoints import load_model
from stages.models.zoo import ZOO
from stages.remote.url_path import UrlPath
from stages.shards.classes import read_classes
from stages.shards.dataset import open_dataset
from tests.foreign_files import (
    as_mmaction2,
    as_pytorchvideo,
    as_rkd,
    clips,
    inflated,
    model_config,
    output,
    resnet,
    shifted,
    swin,
)

NAMES = ("dive", "jump", "ride a bike", "run", "swim")


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES))
    return path


def run(tmp_path, state, arch="tsn", meta=None, classes=None, key="state_dict", **changes):
    path = tmp_path / "theirs.pth"
    torch.save({key: state, "meta": meta or {}}, path)
    config = ImportConfig(
        source=path,
        **{"output": tmp_path / "made" / "ours.safetensors", "model": model_config(arch, classes=None),
           "classes": classes, "size": 32, **changes},
    )  # fmt: skip
    return import_checkpoint(config), config.output


@pytest.mark.parametrize("arch", ["tsn", "tsm", "slowonly", "swin"])
def test_each_family_comes_in_with_its_views_and_gives_the_same(arch, names, tmp_path, capsys):
    net = swin() if arch == "swin" else resnet()
    net = inflated(net, own_weights=True) if arch == "slowonly" else net
    card, path = run(tmp_path, as_mmaction2(net, shift=arch == "tsm"), arch, classes=names)
    model, read = load_model(path)
    assert (
        read == card and card.classes == NAMES == read_classes(path) and card.model.num_classes == 5 and card.size == 32
    )
    views = {
        "tsn": ("segments", 1),
        "tsm": ("segments", 1),
        "slowonly": ("dense", 8),
        "swin": ("dense", 2),
    }[arch]
    wanted = ViewPolicy(sampling=views[0], stride=views[1], num_frames=4, jitter=False, crop="center", flip=0.0)
    assert card.eval_policy == wanted
    with torch.no_grad():
        found = model(clips())
    for mine, theirs in zip(found, output(shifted(net) if arch == "tsm" else net, arch, clips()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    said = capsys.readouterr().err
    assert "mmaction2, " in said and f"{arch} " in said and "5 classes, 32 px, 4 frames" in said


@pytest.mark.parametrize("arch, stride", [("slowonly", 8), ("swin", 2), ("tsm", 1)])
def test_the_test_clips_are_those_of_the_version_of_mmaction2(arch, stride, names, tmp_path, capsys):
    net = swin() if arch == "swin" else resnet()
    net = inflated(net, own_weights=True) if arch == "slowonly" else net
    state = as_mmaction2(net, shift=arch == "tsm")
    for meta, dense in (({"mmaction_version": "0.24.1"}, "dense"), ({"mmengine_version": "0.8.2"}, "dense_1x")):
        card, path = run(tmp_path, state, arch, meta, names, output=tmp_path / f"{dense}.safetensors")
        sampling = "segments" if arch == "tsm" else dense
        assert (card.eval_policy.sampling, card.eval_policy.stride) == (sampling, stride)
        assert load_model(path)[1].eval_policy == card.eval_policy
        assert f"4 frames ({sampling}" in capsys.readouterr().err


def test_pytorchvideos_pixels_are_told(names, tmp_path, capsys):
    state = as_pytorchvideo(inflated(resnet(), own_weights=True))["model_state"]
    pixels = {"mean": (0.45,) * 3, "std": (0.225,) * 3}
    for number, (changes, warned) in enumerate((({}, True), (pixels, False))):
        model = model_config("slowonly", classes=None, **changes)
        run(
            tmp_path,
            state,
            "slowonly",
            None,
            names,
            "model_state",
            model=model,
            output=tmp_path / f"{number}.safetensors",
        )
        told = "--set model.mean=[0.45,0.45,0.45] --set model.std=[0.225,0.225,0.225]" in capsys.readouterr().err
        assert told is warned


def test_the_seeds_teacher_comes_out_of_its_container_with_a_classifier_only_where_asked(names, tmp_path):
    student, teacher = as_mmaction2(resnet(seed=1)), as_mmaction2(resnet(seed=2))
    state = as_rkd(student, teacher, teachers_head=False)
    with pytest.raises(ReskdError, match="its teacher. has no classifier"):
        run(tmp_path, state, part="teacher", classes=names)
    assert not (tmp_path / "made").exists()
    _, path = run(tmp_path, state, part="teacher", head="reinit", classes=names)
    assert torch.equal(load_model(path)[0].backbone.conv1.weight, teacher["backbone.conv1.conv.weight"])


def test_what_a_students_file_does_not_say_is_asked_for(names, tmp_path, capsys):
    state = as_rkd(as_mmaction2(swin(seed=1)), as_mmaction2(swin(seed=2)), teachers_head=True)
    seeds = model_config("swin", classes=None, rel_pos="seed")
    for number, (changes, told) in enumerate((
        ({"size": 32}, ["--size 112 --set render_via=224"]),
        ({"size": 16}, ["--size 112 --set render_via=224", "at 16 px its map of 1×1 is smaller than its window"]),
        ({"size": 16, "render_via": 32, "model": seeds}, []),
        ({"size": 32, "part": "teacher"}, []),
    )):  # fmt: skip
        run(tmp_path, state, "swin", classes=names, output=tmp_path / f"{number}.safetensors", **changes)
        said = capsys.readouterr().err
        assert said.count("warning") == len(told) and all(words in said for words in told)


def test_class_names_come_from_the_list_or_the_checkpoint_and_are_never_made_up(names, tmp_path):
    state = as_mmaction2(resnet())
    with pytest.raises(ReskdError, match=r"theirs.pth doesn't name its 5 classes.*--class-order FILE"):
        run(tmp_path, state)
    assert run(tmp_path, state, meta={"CLASSES": NAMES})[0].classes == NAMES
    (tmp_path / "made" / "ours.safetensors").unlink()
    with pytest.raises(ReskdError, match="class 0 is 'swim' in the checkpoint and 'dive' in the data set"):
        run(tmp_path, state, meta={"CLASSES": NAMES[::-1]}, classes=names)
    names.write_text("\n".join(NAMES[:4]))
    with pytest.raises(
        ReskdError, match="has a classifier of 5 classes, the model's is for 4.*head: reinit.*head: drop"
    ):
        run(tmp_path, state, classes=names)
    with pytest.raises(ReskdError, match="model.num_classes is 400, and .*names.txt has 4 classes"):
        run(tmp_path, state, classes=names, model=model_config("tsn", classes=400))
    assert not (tmp_path / "made" / "ours.safetensors").exists()


def test_nothing_is_overwritten_and_our_own_files_are_not_taken_and_urls_do_the_same(names, tmp_path, s3, capsys):
    card, path = run(tmp_path, as_mmaction2(resnet()), classes=names)
    before = path.read_bytes()
    folder = UrlPath(s3.bucket) / "import"
    (folder / "theirs.pth").upload(tmp_path / "theirs.pth")
    with pytest.raises(ReskdError, match="exists already"):
        run(tmp_path, as_mmaction2(resnet(seed=4)), classes=names)
    assert path.read_bytes() == before
    config = ImportConfig(source=path, output=tmp_path / "b.safetensors", model=model_config("tsn"), classes=names)
    with pytest.raises(ReskdError, match="of this program already"):
        import_checkpoint(config)

    def there(source="theirs.pth", **changes):
        common = {
            "output": folder / "made" / "ours.safetensors",
            "model": model_config("tsn", classes=None),
            "size": 32,
        }
        return import_checkpoint(ImportConfig(source=str(folder / source), **{**common, "classes": names, **changes}))

    with pytest.raises(ReskdError, match=f"checkpoint {folder}/none.pth does not exist"):
        there("none.pth")
    with pytest.raises(ReskdError, match=f"{folder}/theirs.pth doesn't name its 5 classes"):
        there(classes=None)
    capsys.readouterr()
    assert there() == card and card.notes == {"imported": "theirs.pth"}
    assert (folder / "made").files().keys() == {"ours.safetensors"}
    assert (folder / "made" / "ours.safetensors").read_bytes() == before
    assert f"{folder}/made/ours.safetensors: tsn" in capsys.readouterr().err
    with pytest.raises(ReskdError, match=f"{folder}/made/ours.safetensors exists already"):
        there()
    with pytest.raises(ValueError, match=r"http://h/x.safetensors: a web server can only be read"):
        there(output="http://h/x.safetensors")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"output": "net.pth"}, "must end in .safetensors"),
        ({"eval_policy": ViewPolicy(num_frames=3, jitter=False, flip=0.0)}, "num_frames 3 and model.num_frames 8"),
        ({"eval_policy": ViewPolicy(num_frames=8, jitter=True)}, "must be deterministic"),
        ({"render_via": 100}, "render_via 100 must not be below size 224"),
    ],
)
def test_a_config_that_can_not_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ImportConfig(**{"source": "in.pth", "output": "out.safetensors", "model": ZOO["tsm_r50"], **changes})


def test_an_imported_net_is_evaluated(data, tmp_path):
    classes = open_dataset(data.val).classes
    _, path = run(tmp_path, as_mmaction2(resnet(len(classes)), shift=True), "tsm", classes=data.val)
    result = evaluate(load_config(EvaluateConfig, None, [f"checkpoint={path}", f"data={data.val}", "loader.workers=1"]))
    assert 0 <= result["top1"] <= 100 and result["clips"] == 40 and result["size"] == 32
