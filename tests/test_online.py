"""Other ways to the same batch: a teacher in the loop, targets of other views, clips kept in memory."""

import pytest
import torch

from cache.errors import ReskdError
from cache.view import sample_view
from stages.models.checkpoints import load_model, save_model
from stages.shards.dataset import open_dataset
from stages.stream import clips as join
from stages.stream.clips import ClipDataset, decode_row_in_memory
from stages.student.train_student import train_student
from stages.teacher.cache_teacher import cache_teacher
from tests.runs import POLICY, cache_config, cut_at, rows_of, train_config

WIDE = "model.args={channels: [8, 16, 16, 24], layers: [1, 1, 1, 1], output_stride: 8}"
ALL = ["losses.feature_mse=5", "losses.logit_kl=1", "losses.logit_map_kl=0.5", "losses.temperature=2"]
QUICK = ["batch_size=8", "schedule.epochs=1"]


@pytest.fixture(scope="module")
def stored(few, teacher, tmp_path_factory):
    """One view of each, in float16."""
    output = tmp_path_factory.mktemp("cache") / "t.zarr"
    cache_teacher(cache_config(output, few, teacher, "views=1", "targets.logits=float16"))
    return output


def run_of(path, few, *changes) -> list[dict]:
    """The rows of a short run."""
    config = train_config(path, few, *QUICK, *changes)
    train_student(config)
    return rows_of(config.output)


def online(teacher, *changes) -> list[str]:
    return [f"teacher.checkpoint={teacher}", f"policy={POLICY}", *changes]


# ---- a teacher in the loop ----


@pytest.mark.parametrize("model", [[], [WIDE]], ids=["same width", "projector"])
def test_a_teacher_in_the_loop_says_what_the_cache_does(few, teacher, stored, tmp_path, model):
    """In its first epoch a student's fresh views are those that a cache of the same policy has first."""
    replayed = run_of(tmp_path / "replay", few, f"data.cache={stored}", *ALL, *model)
    taught = run_of(tmp_path / "online", few, *online(teacher), *ALL, *model)
    assert len(taught) == len(replayed) == 5
    for ours, theirs in zip(taught, replayed, strict=True):
        assert ours["terms"].keys() == theirs["terms"].keys() and len(ours["terms"]) == 4
        for name, term in theirs["terms"].items():
            assert ours["terms"][name]["value"] == pytest.approx(term["value"], rel=5e-3), name
    assert taught[0]["loss"] == pytest.approx(replayed[0]["loss"], rel=5e-4)


def test_it_sees_fresh_views_each_epoch_and_stays_as_it_is(few, teacher, tmp_path):
    config = train_config(
        tmp_path / "run", few, *online(teacher), *ALL, "schedule.epochs=2", "loader.workers=0", "ema=0.9"
    )
    before = load_model(teacher)[0].state_dict()
    train_student(config)
    after = load_model(teacher)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    clips = ClipDataset(
        open_dataset(few.train), size=16, num_classes=40, policy=config.policy, other_renderings=[(32, None)]
    )
    batches = [clips.__getitems__([(0, 5, epoch)]) for epoch in range(2)]
    assert batches[0].clips.shape == (1, 4, 3, 16, 16) and batches[0].other_renderings[32, None].shape == (
        1,
        4,
        3,
        32,
        32,
    )
    assert not torch.equal(batches[0].other_renderings[32, None], batches[1].other_renderings[32, None])
    shrunk = torch.nn.functional.avg_pool2d(
        batches[0].other_renderings[32, None][0].float(), 2
    )  # the same picture, at another size
    assert (shrunk - batches[0].clips[0].float()).abs().mean() < 8


def test_a_run_with_it_resumes_exactly_and_exports_the_student_alone(few, teacher, tmp_path):
    changes = [*QUICK, *online(teacher), *ALL, "schedule.epochs=2", "checkpoint_every=3"]
    whole, cut = (train_config(tmp_path / name, few, *changes) for name in ("whole", "cut"))
    train_student(whole)
    cut_at(cut, 7)
    train_student(cut, resume=True)
    assert rows_of(cut.output) == rows_of(whole.output)
    student, card = load_model(cut.output / "last.safetensors")
    assert card.size == 16 and sum(p.numel() for p in student.parameters()) < 40_000


def test_refuses_a_teacher_that_does_not_fit(few, teacher, tmp_path):
    def refuses(match, *changes):
        with pytest.raises(ReskdError, match=match):
            train_student(train_config(tmp_path / "run", few, *changes))

    net, card = load_model(teacher)
    classes = (card.classes[1], card.classes[0], *card.classes[2:])
    save_model(tmp_path / "order.safetensors", net, type(card)(**{**card.__dict__, "classes": classes}))
    refuses(r"order\.safetensors knows other classes.*--class-order", *online(tmp_path / "order.safetensors"), *ALL)
    eight = [f"teacher.checkpoint={teacher}", "policy.num_frames=8", "model.num_frames=8"]
    refuses(r"takes 4 frames, the student 8: set model\.num_frames=4", *eight, *ALL)
    refuses("that no loss reads", *online(teacher))
    refuses("remove `teacher`, or the cache", *online(teacher), *ALL, f"data.cache={tmp_path / 't.zarr'}")
    refuses("needs targets", f"policy={POLICY}", *ALL)
    assert not (tmp_path / "run").exists()


def test_fresh_views_never_get_the_targets_of_stored_ones(few, few_cached, tmp_path):
    with pytest.raises(ReskdError, match=r"stored views are replayed: remove `policy`"):
        train_config(tmp_path / "run", few, f"data.cache={few_cached}", f"policy={POLICY}", *ALL)


# ---- clips in memory ----


def test_resident_clips_give_exactly_the_same_run(few, stored, tmp_path):
    changes = [f"data.cache={stored}", *ALL, "schedule.epochs=2", f"data.val={few.val}"]
    plain = run_of(tmp_path / "plain", few, *changes)
    kept = run_of(tmp_path / "kept", few, *changes, "loader.resident=true", "loader.workers=0")
    assert kept == plain and len(plain) == 10
    assert rows_of(tmp_path / "kept", "val") == rows_of(tmp_path / "plain", "val")
    ours, theirs = (load_model(tmp_path / name / "last.safetensors")[0].state_dict() for name in ("kept", "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resident_clip_is_read_and_decoded_once(few, tmp_path, monkeypatch):
    asked, whole = [], join.decode_frames

    def counted(video, frames, decoder):
        asked.append(len(frames))
        return whole(video, frames, decoder)

    monkeypatch.setattr(join, "decode_frames", counted)
    join._whole_clip.cache_clear()
    data, policy = open_dataset(few.train), train_config(tmp_path, few, f"policy={POLICY}").policy
    clips = ClipDataset(data, size=16, num_classes=40, policy=policy, decode=decode_row_in_memory)
    batches = [clips.__getitems__([(0, 7, view)]) for view in range(5)]
    row = data.rows("000000.tar")[7]
    assert asked == [row.frames]
    plain = ClipDataset(data, size=16, num_classes=40, policy=policy)
    assert all(torch.equal(b.clips, plain.__getitems__([(0, 7, v)]).clips) for v, b in enumerate(batches))
    view = sample_view(policy, shard="000000.tar", key=row.key, index=2, num_frames=row.frames, aspect=row.aspect)
    assert len(view.frames) == 4 and asked[1:] == [4] * 5
    join._whole_clip.cache_clear()
