"""`teacher.bn: recalibrate`: BatchNorm statistics of the stored views, estimated once in a cache's life."""

import io
import shutil
import tarfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from cache.errors import ReskdError
from cache.group import load_manifest
from cache.reader import CacheReader
from cache.view import ViewPolicy
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, load_model, save_model, weights_sha256
from stages.models.config import ModelConfig
from stages.prepare.prepare import prepare
from stages.shards.dataset import open_dataset
from stages.stream.all_views import AllViews, ShardWork
from stages.teacher import batch_norm_pass
from stages.teacher.cache_teacher import cache_teacher
from stages.teacher.recalibrate import batch_norms, recalibrate
from tests.runs import NET, POLICY, cache_config, tree

KEPT = ".teacher.safetensors"


def small(**fields) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(backbone="resnet18", args=NET, num_classes=5, num_frames=2, **fields))


def clips_of(*sizes: int) -> list[torch.Tensor]:
    draw = np.random.default_rng(1)
    return [torch.from_numpy(draw.integers(0, 256, (n, 2, 3, 24, 24), np.uint8)) for n in sizes]


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if "running" in name or "tracked" in name}


# ---- the estimate ----


def test_it_is_torchs_own_cumulative_average():
    ours, torchs, batches = small(), small(), clips_of(4, 4, 3, 1)
    assert recalibrate(ours, batches, torch.float32) == 4
    update_bn(batches, torchs)
    for name, value in statistics(torchs).items():
        assert torch.allclose(statistics(ours)[name], value, rtol=1e-6, atol=1e-7), name
    assert not ours.training and all(not m.training and m.momentum == 0.1 for m in batch_norms(ours))
    fresh = small()
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), fresh.parameters(), strict=True))


def test_a_layers_statistics_are_the_means_of_the_batches_means_and_unbiased_variances():
    """Of the first layer, from its inputs, by numpy."""
    model, batches, seen = small(), clips_of(4, 3), []
    model.backbone.bn1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].double().numpy()))
    recalibrate(model, batches, torch.float32)
    means = np.mean([x.mean((0, 2, 3)) for x in seen], axis=0)
    variances = np.mean([x.var((0, 2, 3), ddof=1) for x in seen], axis=0)
    assert np.allclose(model.backbone.bn1.running_mean, means, rtol=1e-5, atol=1e-6)
    assert np.allclose(model.backbone.bn1.running_var, variances, rtol=1e-5)


def test_nothing_else_is_in_train_mode():
    """Dropout inside the net would make the statistics a matter of chance."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(3)

        def forward(self, clips):
            return self.norm(self.dropout(clips.float().mean((1, 3, 4))))

    net, batches = Net(), clips_of(4, 4)
    recalibrate(net, batches, torch.float32)
    inputs = [b.float().mean((1, 3, 4)) for b in batches]
    assert torch.allclose(net.norm.running_mean, torch.stack([x.mean(0) for x in inputs]).mean(0))


def test_processes_that_share_the_batches_end_alike():
    """Each with its batches, summed as they would be: the average over all batches, of any share."""
    batches, alone = clips_of(4, 4, 3, 2), small()
    recalibrate(alone, batches, torch.float32)
    sums = []

    def waits(own):
        sums.append(own)
        raise TimeoutError

    for share in (batches[:3], batches[3:], []):
        with pytest.raises(TimeoutError):
            recalibrate(small(), share, torch.float32, sum_over_ranks=waits)
    for share in (batches[:3], []):
        model = small()
        assert recalibrate(model, share, torch.float32, sum_over_ranks=lambda t: sum(sums)) == 4
        for name, value in statistics(alone).items():
            assert torch.allclose(statistics(model)[name], value, rtol=1e-6, atol=1e-7), name


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ReskdError, match="no clip can be decoded"):
        recalibrate(small(), [], torch.float32)
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3), nn.BatchNorm1d(3)).double()
    with pytest.raises(ReskdError, match=r"batch of 1 clips.*teacher\.batch_size"):
        recalibrate(net, [torch.zeros(1, 2, 3, 8, 8, dtype=torch.float64)], torch.float32)


# ---- through stage one ----


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """Untrained, so that its running statistics are far from any data's."""
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18", args=NET, num_classes=40, num_frames=4, dropout=0.5)
    card = ModelCard(config, open_dataset(data.val).classes, 32, None, ViewPolicy(num_frames=4, jitter=False, flip=0))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_model(path, build_model(config), card)
    return path


def recalibrated(output, data, teacher, *changes):
    """Of 40 clips in one shard, in forwards of 16."""
    few = type(data)(train=data.val)
    return cache_config(output, few, teacher, "teacher.bn=recalibrate", "targets.logits=float16", *changes)


@pytest.fixture(scope="module")
def made(data, teacher, tmp_path_factory):
    config = recalibrated(tmp_path_factory.mktemp("cache") / "t.zarr", data, teacher)
    return config, cache_teacher(config, verify=10)


def test_the_statistics_are_of_the_caches_own_forwards(made, data, teacher):
    config, result = made
    assert result["verified"] < 0.01
    net, expected = load_model(config.output / KEPT)[0], load_model(teacher)[0]
    views = AllViews(open_dataset(data.val), [ShardWork("000000.tar", range(2))], config.policy, 32, 16)
    update_bn([clips[: len(batch.frames)] for batch in views for clips in batch.clips], expected)
    for name, value in statistics(expected).items():
        assert torch.allclose(statistics(net)[name], value, rtol=1e-5, atol=1e-6), name
    assert (net.backbone.bn1.running_var - load_model(teacher)[0].backbone.bn1.running_var).abs().max() > 0.1


def test_targets_are_the_kept_teachers_and_its_identity_the_caches(made, data, teacher):
    config, _ = made
    net, card = load_model(config.output / KEPT)
    identity = load_manifest(config.output).identity.teacher
    assert identity["bn"] == "recalibrate" and identity["weights_sha256"] == weights_sha256(net)
    assert identity["base_weights_sha256"] == weights_sha256(load_model(teacher)[0])
    assert card.notes["recalibrated"]["weights_sha256"] == identity["base_weights_sha256"] and card.notes["views"] == 2
    views = AllViews(open_dataset(data.val), [ShardWork("000000.tar", range(2))], config.policy, 32, 16)
    reader = CacheReader(config.output, ("logits", "features"))
    for batch in views:
        for view, clips in enumerate(batch.clips):
            rows = slice(batch.start, batch.start + len(batch.frames))
            stored = reader.block("000000.tar", view, 0)
            with torch.no_grad():
                output = net(clips[: len(batch.frames)])
            assert np.allclose(stored.logits[rows], output.logits, atol=1e-3)
            assert np.allclose(stored.features[rows], output.features, rtol=2e-3, atol=1e-3)


def test_the_kept_teacher_is_a_checkpoint_like_any_other(made, data, tmp_path):
    config, _ = made
    plain = cache_config(
        tmp_path / "t.zarr", type(data)(train=data.val), config.output / KEPT, "targets.logits=float16"
    )
    cache_teacher(plain)
    ours, kept = (CacheReader(c.output).view("000000.tar", 0).logits for c in (plain, config))
    assert (ours == kept).all()


def test_workers_and_reruns_change_nothing(made, data, teacher, tmp_path, monkeypatch):
    config, _ = made
    cache_teacher(recalibrated(tmp_path / "t.zarr", data, teacher, "loader.workers=0"))
    whole = tree(config.output)
    assert tree(tmp_path / "t.zarr") == whole
    monkeypatch.setattr(batch_norm_pass, "recalibrate", None)  # not called again
    assert cache_teacher(config)["clip_views"] == 0 and tree(config.output) == whole


def test_more_views_keep_the_statistics(made, data, teacher, tmp_path, monkeypatch):
    config, _ = made
    shutil.copytree(config.output, tmp_path / "t.zarr")
    monkeypatch.setattr(batch_norm_pass, "recalibrate", None)
    grown = recalibrated(tmp_path / "t.zarr", data, teacher, "views=3")
    assert cache_teacher(grown)["clip_views"] == 40
    after, before = tree(grown.output), tree(config.output)
    assert after[KEPT] == before[KEPT] and load_manifest(grown.output).finalised == 3


def test_killed_during_the_pass_it_is_made_again_and_afterwards_it_is_not(made, data, teacher, tmp_path, monkeypatch):
    config = recalibrated(tmp_path / "t.zarr", data, teacher)
    real = batch_norm_pass.recalibrate

    def killed(model, batches, *rest):
        next(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_norm_pass, "recalibrate", killed)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(config)
    assert not config.output.exists()
    monkeypatch.setattr(batch_norm_pass, "recalibrate", real)
    monkeypatch.setattr("stages.teacher.url_output.create_cache", killed_later)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(config)
    assert [p.name for p in config.output.iterdir()] == [KEPT]
    monkeypatch.undo()
    monkeypatch.setattr(batch_norm_pass, "recalibrate", None)
    written = (config.output / KEPT).stat().st_mtime_ns
    cache_teacher(config)
    assert (config.output / KEPT).stat().st_mtime_ns == written
    assert tree(config.output) == tree(made[0].output)


def killed_later(*_):
    raise KeyboardInterrupt


def test_one_left_of_another_policy_is_replaced_while_there_is_no_cache(made, data, teacher, tmp_path):
    config, _ = made
    (tmp_path / "t.zarr").mkdir()
    shutil.copy(config.output / KEPT, tmp_path / "t.zarr" / KEPT)
    other = recalibrated(tmp_path / "t.zarr", data, teacher, "policy.seed=1", "targets.features=null")
    cache_teacher(other)
    _, card = load_model(other.output / KEPT)
    assert card.notes["recalibrated"]["policy"]["seed"] == 1


def test_refuses_to_mix(made, data, teacher, tmp_path):
    config, _ = made
    shutil.copytree(config.output, tmp_path / "t.zarr")
    before = tree(tmp_path / "t.zarr")

    def refused(match, *changes, teacher=teacher):
        with pytest.raises(ReskdError, match=match):
            cache_teacher(recalibrated(tmp_path / "t.zarr", data, teacher, *changes))

    refused('teacher.bn: the cache has "recalibrate", this run wants "running"', "teacher.bn=running")
    refused(r"policy\.seed.*0.*1", "policy.seed=1")
    net, card = load_model(teacher)
    torch.nn.init.ones_(net.head.fc.bias)
    save_model(tmp_path / "other.safetensors", net, card)
    refused("base_weights_sha256", teacher=tmp_path / "other.safetensors")
    assert tree(tmp_path / "t.zarr") == before
    (tmp_path / "t.zarr" / KEPT).unlink()
    refused(r"weights_sha256.*\.teacher\.safetensors, which is missing")


def test_a_net_without_batchnorm_is_refused(data, tmp_path):
    config = ModelConfig(arch="swin", backbone="swin3d_t", num_classes=40, num_frames=4,
                         args={"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]})  # fmt: skip
    card = ModelCard(config, open_dataset(data.val).classes, 32, None, ViewPolicy(num_frames=4, jitter=False, flip=0))
    save_model(tmp_path / "swin.safetensors", build_model(config), card)
    with pytest.raises(ReskdError, match=r"swin.*no BatchNorm.*teacher\.bn=running"):
        cache_teacher(recalibrated(tmp_path / "t.zarr", data, tmp_path / "swin.safetensors"))


def test_a_dry_run_says_that_a_pass_would_be_made(made, data, teacher, tmp_path):
    config, _ = made
    assert cache_teacher(config, dry_run=True)["clip_views_recalibrated_on"] == 0
    fresh = recalibrated(tmp_path / "t.zarr", data, teacher, "views=3")
    assert cache_teacher(fresh, dry_run=True)["clip_views_recalibrated_on"] == 120
    assert not list(tmp_path.iterdir())


def test_unreadable_clips_are_left_out_or_fatal(data, teacher, tmp_path):
    videos = [p.read_bytes() for p in sorted((data.videos / "val").rglob("*.mp4"))[:6]]
    members = {f"clip{i}": v for i, v in enumerate(videos)} | {"clip2a": videos[0][: len(videos[0]) // 2]}
    (tmp_path / "foreign").mkdir()
    with tarfile.open(tmp_path / "foreign" / "a.tar", "w") as tar:
        for key in sorted(members):
            info = tarfile.TarInfo(f"{key}.mp4")
            info.size = len(members[key])
            tar.addfile(info, io.BytesIO(members[key]))
    (tmp_path / "classes.txt").write_text("\n".join(open_dataset(data.val).classes) + "\n")
    prepare(tmp_path / "foreign", tmp_path / "index", classes=tmp_path / "classes.txt", workers=1)
    bad = type(data)(val=tmp_path / "index", train=tmp_path / "index")
    config = recalibrated(tmp_path / "t.zarr", bad, teacher, "teacher.batch_size=4", f"policy={POLICY}", "views=1")
    with pytest.raises(ReskdError, match="a.tar, clip 'clip2a'.*--strict"):
        cache_teacher(config, strict=True)
    assert not config.output.exists()
    assert cache_teacher(config)["quarantined"] == 1
    expected = load_model(teacher)[0]
    (first, second) = AllViews(open_dataset(bad.val), [ShardWork("a.tar", range(1))], config.policy, 32, 4)
    update_bn([first.clips[0][[0, 1, 2]], second.clips[0][:3]], expected)  # clip0, 1, 2 | 3, 4, 5
    kept = statistics(load_model(config.output / KEPT)[0])
    assert all(torch.allclose(kept[n], v, rtol=1e-5, atol=1e-6) for n, v in statistics(expected).items())
