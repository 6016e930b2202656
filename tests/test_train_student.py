"""Stage two: what it learns from, what it refuses, and that a run is the same however it is cut up."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cache.errors import ReskdError
from cache.group import load_manifest
from cache.view import View, sample_view
from stages.config.file import load_config, save_config
from stages.models.architectures import build_model
from stages.models.checkpoints import load_model
from stages.prepare.prepare import prepare
from stages.shards.dataset import open_dataset
from stages.stream.epoch_plan import plan_epoch, replay_view
from stages.student.config import TrainConfig
from stages.student.optim import scaled_lr
from stages.student.train_student import train_student
from stages.teacher import cache_teacher as stage
from stages.teacher.cache_teacher import cache_teacher
from stages.video.decode import decode_frames
from stages.video.render import render
from tests.runs import cache_config, cut_at, rows_of, train_config

DISTILLED = ["losses.feature_mse=5", "losses.logit_kl=1", "losses.temperature=2"]


@pytest.fixture(scope="module")
def distilled(data, cached, tmp_path_factory):
    """An undisturbed run on the cache with validation."""
    output = tmp_path_factory.mktemp("runs") / "distilled"
    config = train_config(output, data, f"data.cache={cached}", f"data.val={data.val}", *DISTILLED)
    return config, train_student(config)


def test_a_run_leaves_what_its_help_says(distilled, data):
    config, result = distilled
    names = {p.name for p in config.output.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "last.pt", "last.safetensors", "best.safetensors",
            "result.json"} <= names  # fmt: skip
    rows = rows_of(config.output)
    assert [row["step"] for row in rows] == list(range(1, 25))  # 200 clips, batches of 16, 2 epochs
    assert rows[0]["terms"]["feature_mse"]["weight"] == 5 and rows[0]["terms"]["cross_entropy"]["value"] > 0
    total = sum(t["weight"] * t["value"] for t in rows[0]["terms"].values())
    assert rows[0]["loss"] == pytest.approx(total, rel=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [row["epoch"] for row in rows_of(config.output, "val")] == [1, 2]
    assert json.loads((config.output / "result.json").read_text()) == result
    model, card = load_model(config.output / "last.safetensors")
    assert card.size == 16 and card.classes == open_dataset(data.train).classes and model.num_frames == 4


def test_the_same_loss_curve_as_with_the_teacher_in_the_loop(distilled, data, cached, teacher):
    """A loop of its own, with the teacher in it, over the same views: the losses agree up to the codec's rounding."""
    config, _ = distilled
    dataset, manifest = open_dataset(data.train), load_manifest(cached)
    torch.manual_seed(config.seed)
    student = build_model(config.model.model_copy(update={"num_classes": 40}))
    net, _ = load_model(teacher)
    decay = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decay, "weight_decay": config.optim.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    policy = manifest.identity.policy
    losses = []
    for epoch in range(2):
        shards, rows = plan_epoch(dataset.usable_rows(), seed=config.seed, epoch=epoch, batch_size=16)
        for shard_ids, row_ids in zip(shards, rows, strict=True):
            step, total = len(losses), 24
            for group in optimizer.param_groups:
                group["lr"] = scaled_lr(config.optim, 16) * 0.5 * (1 + np.cos(np.pi * step / total))
            seen, shown, labels = [], [], []
            for s, r in zip(shard_ids, row_ids, strict=True):
                name = dataset.shards[s].name
                row = dataset.rows(name)[r]
                view = _drawn(policy, name, row, replay_view(epoch, name, 2))
                pictures, _ = decode_frames(dataset.read(name, int(r)), view.frames, row.decoder)
                seen.append(render(pictures, view, 32))
                shown.append(render(pictures, view, 16))
                labels.append(row.labels[0])
            with torch.no_grad():
                target = net(torch.from_numpy(np.stack(seen)))
            student.train()
            output = student(torch.from_numpy(np.stack(shown)))
            loss = F.cross_entropy(output.logits, torch.tensor(labels))
            loss = loss + 4 * F.kl_div(F.log_softmax(output.logits / 2, 1), F.softmax(target.logits / 2, 1),
                                       reduction="batchmean")  # fmt: skip
            maps = output.features.flatten(0, 1).permute(0, 3, 1, 2)
            maps = F.interpolate(maps, target.features.shape[2:4], mode="bilinear")
            loss = loss + 5 * F.mse_loss(maps, target.features.flatten(0, 1).permute(0, 3, 1, 2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    ours = [row["loss"] for row in rows_of(config.output)]
    assert ours[0] == pytest.approx(losses[0], rel=1e-4)
    assert np.allclose(ours, losses, rtol=0.02), np.abs(np.array(ours) / losses - 1).max()


def _drawn(policy, shard, row, index) -> View:
    return sample_view(policy, shard=shard, key=row.key, index=index, num_frames=row.frames, aspect=row.aspect)


def test_workers_change_nothing(few, few_cached, tmp_path):
    runs = []
    for workers in (0, 2):
        changes = [f"data.cache={few_cached}", *DISTILLED, "batch_size=8", "loader.resident=false"]
        config = train_config(tmp_path / str(workers), few, *changes, f"loader.workers={workers}")
        train_student(config)
        runs.append(rows_of(config.output))
    assert runs[0] == runs[1]


def test_accumulation_is_a_larger_batch_but_for_batch_statistics(few, tmp_path):
    """Steps are halved; the rate is scaled to the global batch."""
    config = train_config(tmp_path / "run", few, "accumulate=2", "batch_size=8", "schedule.epochs=1")
    result = train_student(config)
    assert result["steps"] == 2 and result["clips_seen"] == 32
    assert rows_of(config.output)[0]["lr"] == pytest.approx(0.005 * 16 / 64)


@pytest.mark.parametrize(
    "changes",
    [
        ["optim.name=sgd", "optim.lr=5", "schedule.name=step", "schedule.milestones=[1]"],
        ["ema=0.9", "optim.clip_grad=1.0", "losses.label_smoothing=0.1"],
        ["losses.cross_entropy=0", "losses.binary_cross_entropy=1"],
        ["render_via=32", "policy.sampling=dense", "policy.num_frames=4"],
    ],
    ids=lambda changes: changes[0],
)
def test_other_ways_to_train(few, tmp_path, changes):
    config = train_config(tmp_path / "run", few, f"data.val={few.val}", "batch_size=8", *changes)
    result = train_student(config)
    assert result["best"]["top1"] >= 0
    assert np.isfinite([row["loss"] for row in rows_of(config.output)]).all()
    torch.manual_seed(config.seed)
    first = build_model(config.model.model_copy(update={"num_classes": 40})).state_dict()
    last, _ = load_model(config.output / "last.safetensors")
    moved = [name for name, value in last.named_parameters() if not torch.equal(value, first[name])]
    assert len(moved) == len(list(last.parameters()))


def test_ema_is_what_is_evaluated_and_kept(few, tmp_path):
    config = train_config(tmp_path / "run", few, "ema=0.9", "batch_size=8", "schedule.epochs=1")
    train_student(config)
    state = torch.load(config.output / "last.pt", weights_only=True)
    kept = load_model(config.output / "last.safetensors")[0].state_dict()
    assert all(torch.equal(kept[name], state["ema"][name]) for name in kept)
    assert all(torch.equal(state["ema"][n], state["model"][n]) for n in kept if "running" in n)  # buffers are copied
    saved = state["ranks"][0]["buffers"]  # statistics, which each rank has of its own; no constants
    assert {name.rpartition(".")[2] for name in saved} == {"running_mean", "running_var", "num_batches_tracked"}
    assert not torch.equal(kept["head.fc.weight"], state["model"]["head.fc.weight"])


def test_step_schedule_and_warmup(few, tmp_path):
    changes = ["optim.name=sgd", "schedule.name=step", "schedule.milestones=[1]", "schedule.warmup_epochs=0.5"]
    config = train_config(tmp_path / "run", few, "batch_size=10", *changes)
    train_student(config)
    rates = [row["lr"] / (0.005 * 10 / 64) for row in rows_of(config.output)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2:4] == pytest.approx([1.0] * 2) and rates[4:] == pytest.approx([0.1] * 4)


def test_first_weights_from_a_checkpoint(few, teacher, tmp_path):
    config = train_config(
        tmp_path / "run", few, f"init={{source: checkpoint, path: {teacher}}}", "optim.lr=1e-12", "schedule.epochs=1"
    )
    train_student(config)
    ours, theirs = load_model(config.output / "last.safetensors")[0], load_model(teacher)[0]
    assert torch.allclose(ours.head.fc.weight, theirs.head.fc.weight, atol=1e-6)


def test_unlabelled_clips_are_distilled_from(data, teacher, tmp_path):
    """A folder of videos without classes: targets are cached, and the distillation terms train on them."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for i, path in enumerate(sorted((data.videos / "val").rglob("*.mp4"))):
        shutil.copy(path, videos / f"{i}.mp4")
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(open_dataset(data.train).classes) + "\n")
    prepare(videos, tmp_path / "data", classes=classes, workers=0)
    unlabelled = type(data)(train=tmp_path / "data", val=data.val)
    config = cache_config(tmp_path / "t.zarr", unlabelled, teacher)
    assert cache_teacher(config)["top1"] is None
    run = train_config(tmp_path / "run", unlabelled, f"data.cache={config.output}", "losses.feature_mse=5")
    train_student(run)
    rows = rows_of(run.output)
    assert all(row["terms"]["cross_entropy"]["value"] == 0 for row in rows)
    assert rows[-1]["terms"]["feature_mse"]["value"] < rows[0]["terms"]["feature_mse"]["value"]
    with pytest.raises(ReskdError, match=r"no labelled clip.*losses\.logit_kl"):
        train_student(train_config(tmp_path / "plain", unlabelled))


def test_a_clip_that_fails_in_training_is_masked_and_counted(few, few_cached, tmp_path):
    """The bytes of one video rot after the data set was made; its header is intact."""
    broken = tmp_path / "data"
    shutil.copytree(few.train, broken)
    dataset = open_dataset(broken)
    row = dataset.rows("000000.tar")[3]
    with open(broken / "000000.tar", "r+b") as tar:
        tar.seek(row.offset)
        tar.write(bytes(row.size))
    config = train_config(tmp_path / "run", type(few)(train=broken, val=few.val), f"data.cache={few_cached}", *DISTILLED,
                          "loader.resident=false", "batch_size=8")  # fmt: skip
    result = train_student(config)
    assert result["failed_clips"] == 2  # once an epoch
    assert rows_of(config.output)[-1]["failed_clips"] == result["failed_clips"]


# ---- what is refused, before any work ----


def refuses(config, match, **options):
    with pytest.raises(ReskdError, match=match):
        train_student(config, **options)


def test_refuses_a_student_that_the_cache_does_not_fit(data, cached, tmp_path):
    cache = f"data.cache={cached}"
    refuses(train_config(tmp_path / "b", data, cache, *DISTILLED, "model.num_frames=8"), "4 frames.*takes 8")
    refuses(train_config(tmp_path / "c", data, cache, "data.views=3"), "data.views 3.*2 views")
    other = type(data)(train=data.val, val=data.val)
    refuses(train_config(tmp_path / "d", other, cache), "clips in the data set|keys")
    assert not list(tmp_path.iterdir())


def test_refuses_a_term_whose_target_is_not_stored(data, teacher, tmp_path):
    config = cache_config(tmp_path / "t.zarr", type(data)(train=data.val), teacher, "targets.features=null", "views=1")
    cache_teacher(config)
    run = train_config(tmp_path / "run", type(data)(train=data.val), f"data.cache={config.output}", *DISTILLED)
    refuses(run, "features")


def test_refuses_another_runs_folder(distilled, data, cached, tmp_path):
    config, _ = distilled
    refuses(config, "--resume.*--overwrite")
    changed = config.model_copy(update={"batch_size": 8})
    refuses(changed, "batch_size: the run has 16, this config 8", resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    refuses(train_config(tmp_path, data), "not an empty folder")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resuming_a_finished_run_returns_its_result(distilled):
    config, result = distilled
    assert train_student(config, resume=True) == result


def test_overwrite_starts_anew(few, tmp_path):
    config = train_config(tmp_path / "run", few, "schedule.epochs=1")
    train_student(config)
    first = rows_of(config.output)
    (config.output / "test.json").write_text(
        "{}"
    )  # whoever keeps something beside a run can begin it anew all the same
    train_student(config, overwrite=True)
    assert rows_of(config.output) == first and (config.output / "test.json").exists()
    refuses(config, "give one of them", resume=True, overwrite=True)


def test_a_resume_replays_the_views_it_began_with(few, teacher, tmp_path):
    """The cache grows between a run's interruption and its resume: nothing changes. Other clips are refused."""
    cache = cache_config(tmp_path / "t.zarr", few, teacher)
    cache_teacher(cache)
    changes = [f"data.cache={cache.output}", *DISTILLED, "checkpoint_every=4", "schedule.epochs=3", "batch_size=8"]
    whole = train_config(tmp_path / "whole", few, *changes)
    train_student(whole)
    cut = train_config(tmp_path / "cut", few, *changes)
    cut_at(cut, 7)
    cache_teacher(cache.model_copy(update={"views": 4}))
    train_student(cut, resume=True)
    assert rows_of(cut.output) == rows_of(whole.output)
    state = torch.load(cut.output / "last.pt", weights_only=True)
    torch.save({**state, "order": "another"}, cut.output / "last.pt")
    (cut.output / "result.json").unlink()
    refuses(cut, "not those that the run began with.*delete", resume=True)


def test_features_alone_leave_the_classifier_as_it_is(few, few_cached, tmp_path, capfd):
    config = train_config(
        tmp_path / "run", few, f"data.cache={few_cached}", "losses={cross_entropy: 0, feature_mse: 1}"
    )
    train_student(config)
    assert "the classifier is not" in " ".join(capfd.readouterr().err.split())


def test_refuses_a_missing_shard_and_a_lost_group_before_work(data, cached, tmp_path):
    shutil.copytree(data.train, tmp_path / "data")
    shutil.copytree(cached, tmp_path / "t.zarr")
    shutil.rmtree(tmp_path / "t.zarr" / "000001.tar")
    run = train_config(tmp_path / "run", data, f"data.cache={tmp_path / 't.zarr'}", *DISTILLED)
    refuses(run, r"lacks 1 shards, 000001\.tar first")
    (tmp_path / "data" / "000002.tar").unlink()
    refuses(train_config(tmp_path / "run", type(data)(train=tmp_path / "data")), r"000002\.tar: missing")
    assert not run.output.exists()


def test_refuses_fewer_clips_than_one_step(data, tmp_path):
    refuses(train_config(tmp_path / "run", data, "batch_size=256"), "200.*256|256.*200")


def test_refuses_other_classes_and_missing_data(data, tmp_path):
    refuses(train_config(tmp_path / "a", data, "model.num_classes=7"), "num_classes is 7.*40 classes")
    refuses(train_config(tmp_path / "b", data, f"data.train={tmp_path / 'nowhere'}"), "nowhere")
    refuses(train_config(tmp_path / "c", data, f"data.cache={tmp_path / 'nowhere.zarr'}"), "nowhere.zarr")


def test_refuses_several_labels_under_cross_entropy(data, tmp_path):
    csv = tmp_path / "two.csv"
    paths = sorted((data.videos / "val").rglob("*.mp4"))[:20]
    csv.write_text("".join(f"{p},a,b\n" if i % 2 else f"{p},a\n" for i, p in enumerate(paths)))
    prepare(csv, tmp_path / "data", workers=0)
    two = type(data)(train=tmp_path / "data", val=None)
    refuses(train_config(tmp_path / "run", two), "2 labels.*binary_cross_entropy")
    train_student(train_config(tmp_path / "ok", two, "losses.cross_entropy=0", "losses.binary_cross_entropy=1"))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(few, tmp_path):
    config = train_config(
        tmp_path / "run", few, "batch_size=8", "checkpoint_every=1", "optim.lr=1e30", "optim.name=sgd"
    )
    refuses(config, r"cross_entropy is not finite at step \d+.*last good checkpoint is .*last\.pt")
    state = torch.load(config.output / "last.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["model"].values() if v.is_floating_point()) or state["step"] >= 1


# ---- an unfinished cache ----


def test_an_unfinished_cache(data, teacher, tmp_path, capfd):
    """A cache whose second shard is missing: refused, or used as far as it goes."""
    config = cache_config(tmp_path / "t.zarr", data, teacher)
    with pytest.raises(KeyboardInterrupt):
        _cache_until(config, "000001.tar")
    assert load_manifest(config.output).finalised == 0
    run = train_config(tmp_path / "run", data, f"data.cache={config.output}", *DISTILLED, "schedule.epochs=1")
    refuses(run, "not finished.*--allow-partial")
    result = train_student(run, allow_partial=True)
    said = " ".join(capfd.readouterr().err.split())
    assert "000001.tar" in said and "2 of 3 shards" in said
    assert result["clips_seen"] == 80  # five batches of 16, the clips of the first shard


def _cache_until(config, shard):
    """Ctrl-C when `shard` begins."""
    whole = stage.cache_shard

    def cut(work, *rest):
        if work.shard == shard:
            raise KeyboardInterrupt
        return whole(work, *rest)

    stage.cache_shard = cut
    try:
        cache_teacher(config)
    finally:
        stage.cache_shard = whole


def test_the_config_of_a_run_is_saved_resolved_and_reads_back(distilled, tmp_path):
    config, _ = distilled
    again = load_config(TrainConfig, config.output / "config.yaml")
    assert again.model.num_classes == 40 and again.eval_policy.crop == "center"
    save_config(again, tmp_path / "again.yaml")
    assert load_config(TrainConfig, tmp_path / "again.yaml") == again
