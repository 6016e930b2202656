"""What the report makes of runs and files as they are found: unfinished, damaged, hostile, and many."""

import base64
import hashlib
import html
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from cache.errors import ReskdError
from stages.config.json_result import check_writable
from stages.metrics.spread import SeedScores
from stages.remote.url_path import UrlPath
from stages.report.curve_chart import Line, curve_chart
from stages.report.find_sources import _sort_in, find_sources
from stages.report.front_chart import front_chart
from stages.report.report import write_report
from stages.report.runs import curve, read_run
from stages.report.seed_groups import differing_keys, group_by_seed, with_joined_sections
from stages.sweep.pareto_front import Point
from tests.cache.small_caches import SHARD, make_cache
from tests.report.folders import make_answers, make_run, make_score, text_of
from tests.runs import command

BAD = "<b onclick=x>\x1b[31m\u202e"


# ---- runs that are at work, empty, or damaged ----


def test_a_run_at_work_has_written_half_a_line(tmp_path):
    run = read_run(make_run(tmp_path / "run", finished=False, cut=True), "run")
    assert run.loss.x.tolist() == [1, 2, 3, 4, 5, 6] and run.validation.x.tolist() == [1]  # the second one is cut
    assert run.state == "not finished, at step 6, no checkpoint yet" and not run.faults


def test_a_run_that_has_just_begun_and_an_empty_folder(tmp_path):
    (make_run(tmp_path / "begun", finished=False) / "metrics.jsonl").unlink()
    (tmp_path / "nothing").mkdir()
    told = write_report([tmp_path / "begun", tmp_path / "nothing"], tmp_path / "r.html")
    assert told["problems"] == [[str(tmp_path / "nothing"), "holds no run, sweep, cache, evaluation or study"]]
    seen = text_of(tmp_path / "r.html")
    assert "begun, nothing is logged yet" in seen and "holds no run" in seen


def test_an_empty_folder_alone_is_a_page_that_says_so(tmp_path):
    write_report([tmp_path], tmp_path / "r.html")
    assert "Nothing that this page shows was found." in text_of(tmp_path / "r.html")


def test_damage_costs_what_is_damaged(tmp_path):
    folder = make_run(tmp_path / "all" / "whole")
    (make_run(tmp_path / "all" / "curves") / "metrics.jsonl").write_text('{"kind": "train", "step": "x"}\n{]\n')
    (make_run(tmp_path / "all" / "result") / "result.json").write_text('{"gmacs"')
    (make_run(tmp_path / "all" / "config") / "config.yaml").write_text("- a\n- b\n")
    (make_run(tmp_path / "all" / "types") / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": []}\n')
    (tmp_path / "all" / "broken.zarr").mkdir()
    (tmp_path / "all" / "broken.zarr" / "zarr.json").write_text("[")
    told = write_report([tmp_path / "all"], tmp_path / "r.html")
    assert told["runs"] == 4 and told["caches"] == 0 and len(told["problems"]) == 5
    seen = text_of(tmp_path / "r.html")
    assert all(reason in seen for problem in told["problems"] for reason in problem)
    assert folder.name in seen and "How the runs learned" in seen


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path):
    folder = make_run(tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"loss": 1.0', '"loss": NaN'))
    assert np.isnan(read_run(folder, "run").loss.y).tolist() == [False, True, False, False, False, False]
    assert not write_report([folder], tmp_path / "r.html")["problems"]


# ---- seeds, and differences ----


def test_seeds_are_a_mean_and_a_band():
    two = Line("two", (curve([(1, 1.0), (2, 5.0)]), curve([(1, 3.0), (2, 6.0), (3, 8.0)])))
    one = Line("one", (curve([(1, 4.0)]),))
    chart = curve_chart("c", [two, one], "x", "y")
    assert "two: 8 at the end" in chart.svg and "one: 4 at the end" in chart.svg
    assert "from the lowest to the highest" in chart.note and "band" not in curve_chart("c", [one], "x", "y").note
    assert curve_chart("c", [Line("none", (curve([]),))], "x", "y") is None


def test_runs_that_differ_in_their_seeds_are_one_group(tmp_path):
    names = {"a-0": (0, 0.1), "a-1": (1, 0.1), "b,seed=0": (0, 0.2), "b,seed=1": (1, 0.2), "c": (0, 0.3)}
    runs = [read_run(make_run(tmp_path / name, seed=seed, lr=lr), name) for name, (seed, lr) in names.items()]
    assert [group.label for group in group_by_seed(runs)] == ["a (2 seeds)", "b (2 seeds)", "c"]
    assert differing_keys([run.config for run in runs]) == ["optim.lr", "seed"]


def test_a_section_that_some_lack_is_one_difference():
    configs = with_joined_sections([{"policy.crop": "center", "policy.flip": 0.5, "a": 1}, {"policy": None, "a": 1}])
    assert configs == [{"policy": "crop center, flip 0.5", "a": 1}, {"policy": None, "a": 1}]
    assert differing_keys(configs) == ["policy"]


# ---- charts ----


def test_names_in_charts_are_text():
    names = (BAD, "$\\frac{1}{$", "x$y$z", "日本")
    svg = front_chart("c", [Point(n, 1.0 + i, SeedScores((50.0,))) for i, n in enumerate(names)], "GFLOPs", "y").svg
    assert "<b" not in svg and "\x1b" not in svg and "\u202e" not in svg
    texts = {*re.findall("<text[^>]*>(.*?)</text>", svg)}
    assert {"&lt;b onclick=x&gt;\\x1b[31m\\u202e", *names[1:]} <= texts


def test_colours_are_those_of_the_page_and_ids_have_a_prefix():
    svg = front_chart("c", [Point("a", 1.0, SeedScores((1.0, 2.0))), Point("b", 2.0, SeedScores((3.0,)))], "x", "y").svg
    assert "var(--data0)" in svg and "currentColor" in svg and "#0a0" not in svg
    assert "<style" not in svg and "<metadata" not in svg and "DOCTYPE" not in svg
    assert all(name.startswith("chart-number-") for name in re.findall(r'(?: id="|href="#|url\(#)([^")]*)', svg))


# ---- caches ----


def test_encodings_and_the_clips_that_are_left_out(tmp_path):
    cache = tmp_path / "small.zarr"
    make_cache(cache, {SHARD: 130}, 1, features=True)
    node = json.loads((cache / "zarr.json").read_text())
    node["attributes"]["notes"]["features"] = {"channels": 0.91, "grid": 1.0, "rounding": 0.002, "held_out": 7.0}
    node["attributes"]["quarantine"] = {SHARD: {str(row): f"why {row} {BAD}" for row in range(120)}}
    (cache / "zarr.json").write_text(json.dumps(node))
    assert not write_report([cache], tmp_path / "r.html")["problems"]
    seen, page = text_of(tmp_path / "r.html"), (tmp_path / "r.html").read_text()
    assert "small.zarr 91 100 0.2 7" in seen and "float16, 1 × 2 × 2 positions, 3 channels" in seen
    assert "120 clips are in quarantine: no net sees them. The first 100 are named." in seen
    assert f"{SHARD}/000000-0099 why 99 <b onclick=x>\\x1b[31m\\u202e" in seen and "why 100" not in seen
    assert "<b onclick" not in page and "\x1b" not in page


# ---- paths, output, size ----


def test_no_path_at_all_is_an_error(tmp_path):
    with pytest.raises(ReskdError, match="gone.*no such file or folder"):
        write_report([tmp_path / "gone", tmp_path / "lost"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    told = write_report([tmp_path / "gone", make_run(tmp_path / "run")], tmp_path / "r.html")
    assert told["problems"] == [[str(tmp_path / "gone"), "no such file or folder"]] and told["runs"] == 1


def test_urls_at_which_nothing_is_are_an_error(tmp_path, s3):
    urls = [UrlPath(s3.bucket) / "none.json", UrlPath(s3.bucket) / "none"]
    with pytest.raises(ReskdError, match=f"{urls[0]}: no such object\n{urls[1]}: no run, sweep, cache or data set"):
        write_report(urls, tmp_path / "r.html")
    told = write_report([urls[0], make_run(tmp_path / "run")], tmp_path / "r.html")
    assert told["problems"] == [[str(urls[0]), "no such object"]] and told["runs"] == 1


def test_a_folder_that_may_not_be_entered_is_one_line(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "one")
    for name in ("a", "b"):
        make_score(tmp_path / "runs" / "closed" / f"{name}.json", "x")
    tmp_path.chmod(0o755)
    (tmp_path / "runs" / "closed").chmod(0o644)
    monkeypatch.chdir(tmp_path)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)  # root may enter everywhere
        sources = find_sources([Path("runs")])
        _sort_in(Path("runs/closed/a.json"), sources)
    finally:
        os.seteuid(user)
        (tmp_path / "runs" / "closed").chmod(0o755)
    assert sources.runs == [Path("runs/one")] and not sources.evaluations
    assert sources.problems == [
        ("runs/closed", "can't be read (Permission denied)"),
        ("runs/closed/a.json", "is no regular file: left out"),
    ]


def test_a_link_to_the_folder_above_ends(tmp_path):
    make_run(tmp_path / "a" / "run")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert find_sources([tmp_path, tmp_path / "a"]).runs == [tmp_path / "a" / "run"]


def test_pipes_and_large_files_of_others_are_passed_over(tmp_path):
    folder = make_run(tmp_path / "all" / "run")
    (folder / "metrics.jsonl").unlink()
    (tmp_path / "all" / "pipe").mkdir()
    for pipe in (folder / "metrics.jsonl", tmp_path / "all" / "p.json", tmp_path / "all" / "pipe" / "config.yaml"):
        os.mkfifo(pipe)
    with open(tmp_path / "all" / "large.json", "wb") as file:
        file.truncate(17 << 20)
    sources = find_sources([tmp_path / "all"])
    assert sources.runs == [folder] and not len(read_run(folder, "run").loss.x)
    reasons = {os.path.basename(path): reason for path, reason in sources.problems}
    assert "no regular file" in reasons["p.json"] and "more than 16 MiB" in reasons["large.json"] and len(reasons) == 2


def test_a_file_that_is_read_is_not_written(tmp_path):
    score = make_score(tmp_path / "run" / "s.json", "x")
    make_answers(tmp_path / "run" / "s.answers.csv", 2)
    config = make_run(tmp_path / "run" / "below") / "config.yaml"
    make_cache(tmp_path / "run" / "c.zarr", {SHARD: 2}, 1)
    for file in (score, tmp_path / "run" / "s.answers.csv", config, tmp_path / "run" / "c.zarr" / "zarr.json"):
        before = file.read_bytes()
        with pytest.raises(ReskdError, match="is an input, which would be overwritten: give another name"):
            write_report([tmp_path / "run"], file)
        assert file.read_bytes() == before


def test_an_output_that_can_not_be_written_is_an_error_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "old").touch()
    locked = {tmp_path}  # root may write everywhere, so the system's answer is a made one
    monkeypatch.setattr(os, "access", lambda path, mode: path not in locked)
    with pytest.raises(ReskdError, match=f"you may not write to the folder {tmp_path}.*another folder"):
        check_writable(tmp_path / "old")
    check_writable(tmp_path / "old", in_place=True)  # such as /dev/null
    locked.add(tmp_path / "old")
    with pytest.raises(ReskdError, match="you may not write to this file"):
        check_writable(tmp_path / "old", in_place=True)


def test_the_command_names_what_it_left_out_and_keeps_the_old_page_until_the_new_one_is_whole(tmp_path):
    output = tmp_path / "deep" / "page.html"
    make_run(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "x\x1b[31m.json").write_text("{")
    said = " ".join(command("report", tmp_path / "runs", "--output", output).split())
    assert "left out" in said and "x\\x1b[31m.json" in said and "1 run." in said and "\x1b[31m.json" not in said
    assert os.listdir(output.parent) == ["page.html"]
    with pytest.raises(ReskdError, match="is a folder"):
        write_report([tmp_path / "runs"], tmp_path / "deep")


def test_the_policy_lets_our_script_run_and_nothing_else(tmp_path):
    write_report([make_run(tmp_path / "run")], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    policy = html.unescape(re.search('Content-Security-Policy" content="(.*?)"', page)[1])
    script = re.search("<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:; ") and f"script-src 'sha256-{digest}';" in policy
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "://" not in re.sub('xmlns[:a-z]*="[^"]*"', "", page)


def test_two_hundred_runs_are_one_small_page(tmp_path):
    for number in range(200):
        folder, lr = tmp_path / "many" / f"lr{number // 2},seed={number % 2}", 1 + number // 2
        make_run(folder, 90, seed=number % 2, lr=lr, top1=lr / 2)
    began = time.process_time()
    told = write_report([tmp_path / "many"], tmp_path / "r.html")
    assert told["runs"] == 200 and told["bytes"] < 5e6 and time.process_time() - began < 30
    page = (tmp_path / "r.html").read_text()
    assert "92 of 100 lines are grey" in page
    legend = {*re.findall(r"<text[^>]*>(lr\d+ \(2 seeds\))</text>", page)}
    assert legend == {f"lr{number} (2 seeds)" for number in range(92, 100)}  # the best ones
