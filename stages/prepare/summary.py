"""What `prepare` says of the data set that it has made, or would make."""

from collections.abc import Sequence

from stages.prepare.duplicates import count_kinds
from stages.prepare.output import Output
from stages.prepare.output_folder import Note, read_note
from stages.prepare.plan import Plan
from stages.prepare.progress import say
from stages.prepare.source import Source
from stages.remote.url_path import Location


def summarise(plan: Plan, output: Location, notes: Sequence[Note]) -> None:
    clips, shards = (
        sum(note.clips - len(note.quarantine) for note in notes),
        sum(note.entry is not None for note in notes),
    )
    say(f"{output}: {clips} clips in {shards} shards, {len(plan.classes)} classes.")
    _say_forms(plan)
    if several := sum(note.several for note in notes):
        say(f"{several} clips have several labels.")
    if unlabelled := sum(note.unlabelled for note in notes):
        say(f"{unlabelled} clips have no label: they can be cached and distilled from.")
    if fallbacks := sum(note.fallbacks for note in notes):
        say(f"{fallbacks} clips are decoded by PyAV instead of decord.")


def _say_forms(plan: Plan) -> None:
    if plan.forms:
        names = ", ".join(plan.forms)
        say(
            f"Class names in two Unicode forms (NFC and NFD), which look the same, count as one class: {names}.",
        )


def describe(plan: Plan, found: Source, output: Output) -> None:
    """Say what a run would do."""
    several = f", {plan.several} with several labels" if plan.several else ""
    labelled = "" if plan.labelled is None else f" ({plan.labelled} labelled{several})"
    clips = plan.clips - plan.without_video
    say(f"Dry run: {output.place} would have {clips} clips{labelled} of {len(plan.classes)} classes, "
                  f"{sum(plan.sizes.values()) / 1e9:.3f} GB more, in {len(plan.make)} shards.")  # fmt: skip
    _say_forms(plan)
    if plan.without_video:
        say(f"{plan.without_video} keys in the tars have no video. They will be quarantined.")
    if finished := sum(
        read_note(output, name, found.tars.get(name) or output.tar_bytes(name)) is not None for name in plan.make
    ):
        say(f"{finished} of the shards are finished already.")
    if found.clip_list.quarantine:
        say(f"Not in the data set: {count_kinds(found.clip_list.quarantine)}. For example:")
        examples = {line["kind"]: line for line in reversed(found.clip_list.quarantine)}
        for kind in sorted(examples):
            say(f"  {kind}: {examples[kind]['path']}: {examples[kind]['reason']}")
