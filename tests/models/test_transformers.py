"""Networks of Hugging Face's transformers: what they say is what the library says, and nothing in a folder is run."""

import http.server
import json
import pickle
import shutil
import sys
import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from cache.errors import ReskdError
from stages.import_checkpoint.config import ImportConfig
from stages.import_checkpoint.hub import copy_of
from stages.import_checkpoint.import_checkpoint import import_checkpoint
from stages.models.architectures import build_model
from stages.models.checkpoints import load_model, save_model
from stages.models.config import ModelConfig
from stages.models.grad_checkpointing import enable_grad_checkpointing
from stages.models.transformers_families import FAMILIES
from stages.models.video_model import model_stats
from stages.remote.url_path import UrlPath
from tests.models.small_models import random_clips

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = SMALL | {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
CONV = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
NETS = {
    "videomae": VIT | {"num_frames": 4},
    "timesformer": VIT | {"num_frames": 4},
    "vivit": VIT | {"num_frames": 4, "tubelet_size": [2, 8, 8]},
    "vjepa2": SMALL | {"crop_size": 32, "patch_size": 8, "frames_per_clip": 4, "num_pooler_layers": 1,
                       "pred_hidden_size": 16, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
    "vit": VIT,
    "deit": VIT,
    "dinov2": SMALL | {"image_size": 32, "patch_size": 8},
    "dinov2_with_registers": SMALL | {"image_size": 32, "patch_size": 8},
    "dinov3_vit": VIT | {"num_register_tokens": 2},
    "convnext": CONV,
    "convnextv2": CONV,
}  # fmt: skip
del NETS["vivit"]["patch_size"]
CLASSES = ("dive", "jump", "run")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def library_net(name, kind="classifier", **changes):
    """A network of the library whose every weight matters."""
    torch.manual_seed(0)
    wanted = getattr(transformers, getattr(FAMILIES[name], kind, None) or kind)
    net = wanted(wanted.config_class(**{**NETS[name], "id2label": dict(enumerate(CLASSES)), **changes})).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def folder_of(net, path, preprocessor=None, **shards):
    net.save_pretrained(path, **shards)
    pixels = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}}
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor or pixels))
    return path


def imported(folder, frames=4, **options):
    """Our model of a folder, in a file that needs the folder no more."""
    name = json.loads((folder / "config.json").read_text())["model_type"]
    model = {} if FAMILIES[name].video else {"model": ModelConfig(num_frames=frames)}
    output = folder.parent / "ours.safetensors"
    card = import_checkpoint(ImportConfig(**{"source": folder, "output": output, **model, **options}))
    folder.rename(folder.parent / "gone")
    model, read = load_model(output)
    assert read == card
    return model, card


def pixels(clips):
    return (clips / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def differ(found, wanted) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NETS if FAMILIES[name].classifier])
def test_the_logits_are_the_librarys(name, tmp_path):
    net, clips, video = library_net(name), random_clips(2, 4, 32), FAMILIES[name].video
    model, card = imported(folder_of(net, tmp_path / "net"))
    assert card.classes == CLASSES and card.size == 32 and card.model.mean == MEAN and card.model.std == STD
    assert card.eval_policy.sampling == ("dense" if video else "segments")
    inputs = pixels(clips)
    wanted = net(inputs).logits if video else net(inputs.flatten(0, 1)).logits.unflatten(0, (2, 4)).mean(1)
    found = model(clips)
    assert wanted.std() > 0.05 and differ(found.logits, wanted) < 1e-5
    times = 2 if hasattr(net.config, "tubelet_size") else 4
    assert found.features.shape == (2, times, *((1, 1, 24) if "convnext" in name else (4, 4, 32)))


@torch.no_grad()
@pytest.mark.parametrize(
    "name, others", [("timesformer", 1), ("dinov3_vit", 3), ("vit", 1), ("deit", 2), ("videomae", 0)]
)
def test_the_map_of_an_encoder_has_its_patches_in_their_places(name, others, tmp_path):
    """A change of the last frame's last corner is in the map's last corner; the library's own tokens are in the map."""
    net = library_net(name, "encoder")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    model, card = imported(folder_of(net, tmp_path / "net"), head="drop", classes=tmp_path / "names.txt")
    assert card.model.pooling == "mean"
    clips = random_clips(2, 4, 32)
    video, found = FAMILIES[name].video, model(clips)
    tokens = net(pixels(clips) if video else pixels(clips).flatten(0, 1)).last_hidden_state[:, others:]
    if name == "timesformer":  # its order is row, column, time
        tokens = tokens.unflatten(1, (16, 4)).transpose(1, 2)
    torch.testing.assert_close(found.features.flatten(), tokens.flatten(), atol=1e-5, rtol=1e-5)
    assert differ(model.head.fc(found.features.mean((1, 2, 3))), found.logits) < 1e-5
    alone = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
    changed = alone.clone()
    changed[:, -1, :, -8:, :8] = 255  # below, on the left
    part = model.extract(changed) - model.extract(alone)
    moved = part.square().sum(-1)[0, -1]
    assert moved.argmax() == 12 and moved[3, 0] > 1.5 * moved.flatten().topk(2).values[1]


@torch.no_grad()
def test_videomae_without_its_mean_takes_the_first_token(tmp_path):
    net, clips = library_net("videomae", use_mean_pooling=False), random_clips(1, 4, 32)
    model, _ = imported(folder_of(net, tmp_path / "net"))
    assert differ(model(clips).logits, net(pixels(clips)).logits) < 1e-5


def test_a_file_whose_names_another_version_wrote_says_so(tmp_path):
    folder = folder_of(library_net("timesformer"), tmp_path / "net")
    card = import_checkpoint(ImportConfig(source=folder, output=tmp_path / "ours.safetensors"))
    model, _ = load_model(tmp_path / "ours.safetensors")
    model.backbone.timesformer.renamed = model.backbone.timesformer.layernorm
    del model.backbone.timesformer.layernorm
    save_model(tmp_path / "newer.safetensors", model, card)
    with pytest.raises(
        ReskdError, match=r"(?s)doesn't fit the model as transformers 5\S+ builds it .other versions.*renamed"
    ):
        load_model(tmp_path / "newer.safetensors")


@torch.no_grad()
def test_other_sizes_where_the_library_interpolates_and_a_name_where_it_does_not(tmp_path):
    net, clips = library_net("vit"), random_clips(1, 4, 48)
    model, card = imported(folder_of(net, tmp_path / "net"), size=48)
    assert card.size == 48 and model_stats(model, 48).grid == (4, 6, 6)
    wanted = net(pixels(clips)[0], interpolate_pos_encoding=True).logits.mean(0)
    assert differ(model(clips).logits[0], wanted) < 1e-5
    folder = folder_of(library_net("videomae"), tmp_path / "fixed")
    with pytest.raises(ReskdError, match=r"VideoMAEFor.* can't take 4 frames of 48 px: .*choose another size"):
        import_checkpoint(ImportConfig(source=folder, output=tmp_path / "x.safetensors", size=48))
    assert not (tmp_path / "x.safetensors").exists()


OTHER_SIZES = {name: 40 for name in NETS if name not in ("videomae", "vivit")} | dict.fromkeys(
    ("convnext", "convnextv2"), 64
)


def net_of_size(net, size, frames):
    """The library's network that is made for another size, with the same weights: tables of positions are resized."""
    sizes = {key: size for key in ("image_size", "crop_size") if hasattr(net.config, key)}
    frames = {"num_frames": frames} if hasattr(net.config, "num_frames") else {}
    made = type(net)(type(net.config)(**net.config.to_dict() | sizes | frames)).eval()
    state = {}
    for name, wanted in made.state_dict().items():
        table = state[name] = net.state_dict()[name]
        if table.shape != wanted.shape and name.endswith("time_embeddings"):
            state[name] = torch.nn.functional.interpolate(table.mT, size=wanted.shape[1]).mT
        elif table.shape != wanted.shape:
            others, side = table.shape[1] - 16, round((wanted.shape[1] - table.shape[1] + 16) ** 0.5)
            square = table[:, others:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
            mode = "nearest" if type(net).__name__.startswith("Timesformer") else "bicubic"
            smooth = "WithRegisters" in type(net).__name__
            square = torch.nn.functional.interpolate(square, size=(side, side), mode=mode, antialias=smooth)
            state[name] = torch.cat([table[:, :others], square.flatten(2).mT], 1)
    made.load_state_dict(state)
    return made


@torch.no_grad()
@pytest.mark.parametrize("name", OTHER_SIZES)
def test_at_another_size_it_is_the_librarys_network_of_that_size(name):
    """Positions are those of the input, not of the config. A network for videos also gets twice the frames of its config."""
    net, video, size = library_net(name, "encoder"), FAMILIES[name].video, OTHER_SIZES[name]
    frames = 8 if video else 2
    ours = build_model(
        ModelConfig(arch="transformers", backbone=name, args=NETS[name], num_classes=3, num_frames=frames)
    ).eval()
    ours.backbone.load_state_dict({k: v for k, v in net.state_dict().items() if k in ours.backbone.state_dict()})
    for side in (size, 32):  # and back to the first size
        clips = random_clips(2, frames, side)
        pictures = (clips / 255 - ours.mean) / ours.std
        wanted = net_of_size(net, side, frames)(pictures if video else pictures.flatten(0, 1)).last_hidden_state
        if name == "timesformer":  # its order is row, column, time
            wanted = torch.cat(
                [wanted[:, :1], wanted[:, 1:].unflatten(1, (-1, frames)).transpose(1, 2).flatten(1, 2)], 1
            )
        found = ours.extract(clips)
        assert model_stats(ours, side).grid == found.shape[1:4]
        if "convnext" in name:
            wanted = wanted.flatten(2).mT
        found = found.flatten(1, 3) if video else found.flatten(0, 1).flatten(1, 2)
        assert differ(found, wanted[:, -found.shape[1] :]) < 1e-5


def test_a_pretrained_videomae_and_sharded_files_are_a_base_for_features(tmp_path, capsys):
    net = library_net("videomae", "VideoMAEForPreTraining", decoder_hidden_size=16, decoder_num_attention_heads=2,
                      decoder_num_hidden_layers=1, decoder_intermediate_size=16)  # fmt: skip
    folder = folder_of(net, tmp_path / "net", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    with pytest.raises(ReskdError, match="has no classifier, and the model's is for 3 classes.*head: drop"):
        import_checkpoint(ImportConfig(source=folder, output=tmp_path / "x.safetensors"))
    model, _ = imported(folder, head="drop")
    assert torch.equal(
        model.backbone.encoder.layer[0].output.dense.weight, net.videomae.encoder.layer[0].output.dense.weight
    )
    assert "left out: decoder, encoder_to_decoder, mask_token, a fresh classifier" in " ".join(
        capsys.readouterr().err.split()
    )


def test_it_trains_and_blocks_that_run_again_give_the_same_gradients():
    config = ModelConfig(arch="transformers", backbone="dinov2", args=NETS["dinov2"], num_classes=3, num_frames=2)
    model, clips = build_model(config.model_copy(update={"pooling": "own"})).train(), random_clips(2, 2, 32)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.dinov2.embeddings.mask_token"}
    torch.nn.init.normal_(model.head.fc.weight)
    results = []
    for again in (False, True):
        if again:
            enable_grad_checkpointing(model, compiled=False)
        torch.manual_seed(1)
        model.zero_grad()
        model(clips).logits.square().sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        results.append(model.backbone.dinov2.embeddings.patch_embeddings.projection.weight.grad.clone())
    assert results[0].abs().max() > 0
    torch.testing.assert_close(*results)
    video = build_model(ModelConfig(arch="transformers", backbone="videomae", args=NETS["videomae"], num_classes=3,
                                    num_frames=4, pooling="own"))  # fmt: skip
    assert video.backbone.pooling_only == ["fc_norm.bias", "fc_norm.weight"]  # not trained by the map alone


# ---- folders that can't be taken ----


@pytest.fixture
def folder(tmp_path):
    return folder_of(library_net("videomae"), tmp_path / "net")


def refused(folder, message, **options):
    output = folder.parent / "ours.safetensors"
    with pytest.raises(ReskdError, match=message):
        import_checkpoint(ImportConfig(**{"source": folder, "output": output, **options}))
    assert not output.exists()


def change(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_in_a_folder_is_named_and_not_run(folder, tmp_path, capsys):
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')")
    auto = {"AutoModelForVideoClassification": "modeling_evil.Evil", "AutoConfig": "modeling_evil.EvilConfig"}
    change(folder, auto_map=auto, architectures=["Evil"])
    refused(folder, "its class Evil is none of transformers'.* no code of a checkpoint is run")
    change(folder, model_type="evil")
    refused(folder, r"model_type 'evil' is not known here. It holds code \(modeling_evil.py, auto_map in config.json\)")
    change(folder, model_type="videomae", architectures=["VideoMAEForVideoClassification"])
    imported(folder)
    assert "holds code (modeling_evil.py, auto_map in config.json), which is not run" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "RAN").exists()


def test_a_folder_at_a_url_is_the_local_one(folder, tmp_path, s3, capsys, monkeypatch):
    url = UrlPath(s3.bucket) / "hf" / "net"
    (folder / "modeling.py").write_text("raise SystemExit")
    for file in folder.iterdir():
        (url / file.name).upload(file)
    (url / "onnx" / "config.json").write_bytes(b"{")
    there = ImportConfig(source=str(url), output=url.parent / "ours.safetensors")
    _, card = imported(folder)
    capsys.readouterr()
    assert import_checkpoint(there) == card and card.notes == {"imported": "net"}
    assert there.output.read_bytes() == (tmp_path / "ours.safetensors").read_bytes()
    assert f"warning {url} holds code (modeling.py), which is not run" in " ".join(capsys.readouterr().err.split())
    (url / "model.safetensors").unlink()
    (url / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ReskdError, match=rf"{url} has its weights in pytorch_model.bin.*from_pretrained\('{url}'\)"):
        import_checkpoint(there.model_copy(update={"output": tmp_path / "x.safetensors"}))
    with pytest.raises(ReskdError, match=f"{url.parent}/config.json does not exist: give the whole folder"):
        import_checkpoint(there.model_copy(update={"source": url.parent, "output": tmp_path / "x.safetensors"}))

    fetched, real = [], UrlPath.download
    monkeypatch.setattr(UrlPath, "download", lambda url, file: fetched.append(url.name) or real(url, file))
    (url / "model.safetensors").write_bytes(b"never read")
    (url / "config.json").write_bytes(b'{"model_type": "evil"}')
    with pytest.raises(ReskdError, match=f"{url}: a network of model_type 'evil' is not known here"):
        import_checkpoint(there.model_copy(update={"output": tmp_path / "x.safetensors"}))
    assert "config.json" in fetched and "model.safetensors" not in fetched
    monkeypatch.setattr(UrlPath, "iterdir", lambda url: iter([UrlPath(f"{url}/..\\x.json"), url / "config.json"]))
    with copy_of(url) as (copy, _):
        assert [path.name for path in copy.iterdir()] == ["config.json"]


def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors: copy the whole folder")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": 1}))
    refused(folder, r"weights in pytorch_model.bin, which may hold code.*from_pretrained\('.*net'\).save_pretrained")


def test_labels_that_are_none_or_others_are_told(folder, tmp_path):
    (tmp_path / "names.txt").write_text("dive\nrun\njump")
    refused(
        folder,
        "class 1 is 'jump' in the checkpoint and 'run' in the data set.*head: reinit",
        classes=tmp_path / "names.txt",
    )
    change(folder, id2label={str(i): f"LABEL_{i}" for i in range(3)})
    refused(folder, r"net doesn't name its 3 classes.*--class-order FILE")
    card = import_checkpoint(
        ImportConfig(source=folder, output=tmp_path / "o.safetensors", classes=tmp_path / "names.txt")
    )
    assert card.classes == ("dive", "run", "jump")


def test_what_is_missing_or_wrong_in_a_folder_is_named(folder, tmp_path):
    refused(folder, "config.json says which network it is: leave --model", model=ModelConfig(backbone="resnet18"))
    change(folder, model_type=None, architecture="vit_small_patch16_224")
    refused(
        folder, r"holds a network of timm: import its file .*model.safetensors with .*backbone=vit_small_patch16_224"
    )
    change(folder, model_type="videomae")
    refused(folder, "has positions for 4 frames: set model.num_frames=4", model=ModelConfig(num_frames=8))
    change(folder, hidden_size=48)
    refused(folder, r"doesn't fit a transformers of videomae:\n.*shape \[32\], the model \[48\]")
    change(folder, hidden_size=32, num_hidden_layers=1)
    refused(folder, r"(?s)doesn't fit a transformers of videomae:.*unexpected backbone.videomae.encoder.layer.1")
    change(folder, num_hidden_layers=3)
    refused(folder, r"(?s)doesn't fit a transformers of videomae:.*missing backbone.videomae.encoder.layer.2")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    refused(folder, r"names files of weights that are not in .*\.\./\.\./secret")
    (folder / "preprocessor_config.json").unlink()
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "has no preprocessor_config.json, which says size, mean and std")


def test_the_pixels_are_those_of_the_preprocessor(tmp_path):
    """ViViT's: v / 127.5 - 1. A crop of the middle counts, not the size before it."""
    said = {"do_rescale": True, "rescale_factor": 1 / 127.5, "offset": True, "do_normalize": False, "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 36}}  # fmt: skip
    _, card = imported(folder_of(library_net("videomae"), tmp_path / "net", said))
    assert card.size == 32 and card.model.mean == (0.5,) * 3 and card.model.std == (0.5,) * 3


def test_a_name_on_the_hub_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ReskdError, match="nobody/no-net is no file or folder here, and can't be fetched from .*hub"):
        import_checkpoint(ImportConfig(source="nobody/no-net", output=tmp_path / "x.safetensors"))
    with pytest.raises(ReskdError, match="checkpoint tests/no-net does not exist"):  # a path that is mistyped
        import_checkpoint(ImportConfig(source="tests/no-net", output=tmp_path / "x.safetensors"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this computer with the models of the folder `root`; `sent` are the names of the files that it has sent."""
    hub = SimpleNamespace(root=tmp_path / "models", sent=[])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, hub))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    address = f"http://127.0.0.1:{server.server_port}"
    pages = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", pages)
    yield hub
    server.shutdown()
    server.server_close()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers the few requests of a download."""

    def __init__(self, hub, *args):
        self.hub = hub
        super().__init__(*args)

    def log_message(self, *args): ...

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        _, *parts = self.path.partition("?")[0].split("/")
        if parts[0] == "api":
            files = sorted((self.hub.root / parts[3]).rglob("*.*"))
            names = [str(file.relative_to(self.hub.root / parts[3])) for file in files]
            tree = [{"type": "file", "path": name, "size": 1, "oid": name} for name in names]
            about = {"id": "o/n", "sha": "0" * 40, "siblings": [{"rfilename": name} for name in names]}
            body = json.dumps(tree if "tree" in parts else about).encode()
        else:
            body = (self.hub.root / parts[1]).joinpath(*parts[4:]).read_bytes()
        self.send_response(200)
        for key, value in {"ETag": f'"{hash(body)}"', "X-Repo-Commit": "0" * 40, "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.hub.sent += [parts[-1]] if parts[0] != "api" else []


def test_weights_of_the_hub_are_fetched_when_the_network_is_known(hub, tmp_path):
    folder = folder_of(library_net("vit"), hub.root / "net")
    (folder / "other").mkdir()
    (folder / "other" / "model.safetensors").touch()
    config = ImportConfig(source="owner/net", output=tmp_path / "ours.safetensors", model=ModelConfig(num_frames=4))
    change(folder, model_type="unknown")
    with pytest.raises(ReskdError, match="a network of model_type 'unknown' is not known here"):
        import_checkpoint(config)
    assert sorted(hub.sent) == ["config.json", "preprocessor_config.json"]
    shutil.rmtree(tmp_path / "hub")
    change(folder, model_type="vit")
    assert import_checkpoint(config).classes == CLASSES
    assert sorted(hub.sent[2:4]) == ["config.json", "preprocessor_config.json"] and hub.sent[4:] == [
        "model.safetensors"
    ]


@pytest.mark.parametrize("name", ["net.pyth", "net.pth.tar"])
def test_a_mistyped_file_is_no_name_on_the_hub(name, tmp_path):
    with pytest.raises(ReskdError, match=f"checkpoint nobody/{name} does not exist"):
        import_checkpoint(ImportConfig(source=f"nobody/{name}", output=tmp_path / "x.safetensors"))


def test_without_the_library_its_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(folder, "transformers is not installed: run `uv run --extra hf pipeline.py")


HOSTILE = {
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is too large: the limit is 256"),
    "width": ({"hidden_size": 10**9}, "hidden_size 1000000000 is too large"),
    "parameters": (
        {"hidden_size": 65536, "intermediate_size": 65536, "num_hidden_layers": 200},
        "parameters, the limit is",
    ),
    "positions": ({"image_size": 65536, "patch_size": 1}, "positions of a frame are too many"),
    "no patch": ({"patch_size": 0}, "patch_size 0 must be above 0"),
    "a text": ({"hidden_size": "evil"}, "can't build a vit of these model.args"),
    "a function": ({"hidden_act": "os.system"}, "can't build a vit"),
    "code": ({"auto_map": {"AutoModel": "evil.Evil"}}, "model.args.auto_map is no key of ViTConfig"),
    "lists in lists": ({"image_size": [[1]]}, "image_size is no number"),
    "heads": ({"num_attention_heads": 0}, "can't build a vit"),
}


@pytest.mark.parametrize("changes, message", HOSTILE.values(), ids=HOSTILE)
def test_a_description_that_asks_for_too_much_is_refused_at_once(changes, message):
    with pytest.raises(ReskdError, match=message):
        build_model(ModelConfig(arch="transformers", backbone="vit", args=VIT | changes, num_classes=3))
