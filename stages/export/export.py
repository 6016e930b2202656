"""Writes a checkpoint as ONNX or as a program of torch.export, once the written file has answered as the network does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from cache.errors import ReskdError
from cache.store import make_folders, move_into_place, naming, no_link, partial_file
from stages.config.json_result import check_writable
from stages.config.schema import check_deterministic
from stages.export.check import Comparison, careful, check_equal, compare, onnx_runner, pt2_runner
from stages.export.clips import EvaluationClips, noise_batches
from stages.export.config import ExportConfig
from stages.export.metadata import metadata_of
from stages.export.program import check_packages, onnx_bytes, pt2_bytes, to_program
from stages.export.quantise import Accuracy, check_drop, measure_accuracy, quantise
from stages.models.checkpoints import ModelCard, load_model
from stages.remote.outputs import written_at
from stages.remote.url_path import Location
from stages.runtime.terminal import console

SCRIPT = Path(__file__).with_name("run_onnx.py")  # a copy of it is written beside an ONNX file


def export(config: ExportConfig) -> dict:
    """Export a checkpoint. Returns "path", "bytes", "opset" (None for .pt2), "size", "frames", "clips" (on which the file was
    compared), "compared_on" (the data set, or "noise"), "largest_difference" (of two logits, as a share of the largest
    logit), "ms_per_clip", and for int8 "top1_network", "top1_int8", "scored_clips".

    Raises ReskdError if the output exists, a package is missing, the network can't be exported, the file's answers differ
    from the network's, or int8 costs too much accuracy. Then nothing is left of the file.
    """
    is_onnx = config.output.suffix == ".onnx"
    if is_onnx:
        check_packages(config.output.name, f"export {config.checkpoint} {config.output}")
    _check_output(config)
    model, card = load_model(config.checkpoint)
    _check_policy(card, config.checkpoint)
    clips = config.data and EvaluationClips(config.data, card, config.checkpoint, config.loader, labelled=config.int8)
    metadata = metadata_of(config.checkpoint, card)
    some = (lambda: clips.some(config.calibrate)) if clips else lambda: noise_batches(card)
    accuracy = None
    with written_at(config.output) as output:
        with _checked_file(output, partial_file(output)) as partial:
            with console.status(f"writing {output.name}"):
                program = to_program(model, card.size, config.checkpoint)
                data = onnx_bytes(program, metadata, config.checkpoint) if is_onnx else pt2_bytes(program, metadata)
                _write(partial, data, output)
            with console.status("comparing it with the network"):
                comparison = compare(model, careful(onnx_runner if is_onnx else pt2_runner, partial, output), some())
                check_equal(comparison, output)
            if config.int8:
                comparison, accuracy = _quantise(partial, config, model, card, clips, some)
            if is_onnx:
                _copy_script(output)
        size, opset = output.stat().st_size, _opset(output)
    return _report(config, card, comparison, accuracy, size, opset)


def _check_output(config: ExportConfig) -> None:
    """Raises ReskdError, before the work, if a file is in the way or can't be written."""
    check_writable(config.output)
    script = config.output.with_name(SCRIPT.name)
    if config.overwrite:
        return
    if config.output.exists():
        raise ReskdError(f"{config.output} exists already: give another output, or --overwrite")
    if config.output.suffix == ".onnx" and script.exists() and script.read_bytes() != SCRIPT.read_bytes():
        raise ReskdError(f"{script} exists already and isn't this version's: move it away, give an output in another "
                         "folder, or --overwrite")  # fmt: skip


def _check_policy(card: ModelCard, checkpoint: Location) -> None:
    """Raises ReskdError if the checkpoint's views of evaluation aren't fixed ones of as many frames as the model takes."""
    try:
        check_deterministic("eval_policy", card.eval_policy)
    except ValueError as error:
        raise ReskdError(f"{checkpoint}: {error}: train or import it again") from error
    if card.eval_policy.num_frames != card.model.num_frames:
        raise ReskdError(f"{checkpoint}: its eval_policy has {card.eval_policy.num_frames} frames, its network takes "
                         f"{card.model.num_frames}: train or import it again")  # fmt: skip


@contextmanager
def _checked_file(output: Path, partial: Path) -> Iterator[Path]:
    """The path of an unfinished file, which becomes the output at the end; after an error nothing is left of it."""
    make_folders(output.parent)
    try:
        yield partial
        move_into_place(partial, output)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write(partial: Path, data: bytes, output: Path) -> None:
    """Write an unfinished file durably. An error names the output."""
    with naming(output), open(partial, "wb", opener=no_link) as file:  # closing it may fail, too
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _copy_script(output: Path) -> None:
    """Write the script beside the output, unless it is there. Exports of other files into the folder may run at the same time."""
    script, data = output.with_name(SCRIPT.name), SCRIPT.read_bytes()
    if script.exists() and script.read_bytes() == data:
        return
    with _checked_file(script, script.with_name(f".{output.name}.{script.name}.partial")) as partial:
        _write(partial, data, script)


def _quantise(
    partial: Path,
    config: ExportConfig,
    model: nn.Module,
    card: ModelCard,
    clips: EvaluationClips,
    some: Callable[[], Iterator[Tensor]],
) -> tuple[Comparison, Accuracy]:
    """Replace an ONNX file by its 8-bit one."""
    metadata = metadata_of(config.checkpoint, card, "int8")
    with console.status("calibrating int8"):
        _write(partial, quantise(partial, some(), metadata), config.output)
    run = careful(onnx_runner, partial, config.output)
    with console.status("measuring the accuracy of int8"):
        accuracy = measure_accuracy(model, run, clips.scored(), len(card.classes))
        check_drop(accuracy, config.max_drop, config.output)
        return compare(model, run, some()), accuracy


def _report(
    config: ExportConfig,
    card: ModelCard,
    comparison: Comparison,
    accuracy: Accuracy | None,
    size: int,
    opset: int | None,
) -> dict:
    result = {
        "path": str(config.output),
        "bytes": size,
        "opset": opset,
        "size": card.size,
        "frames": card.model.num_frames,
        "clips": comparison.clips,
        "compared_on": "noise" if config.data is None else str(config.data),
        "largest_difference": comparison.largest,
        "ms_per_clip": comparison.ms,
    }
    lines = [
        f"{config.output}: {size / 1e6:.1f} MB" + (f", opset {opset}" if opset else ""),
        f"largest difference from the network {comparison.largest:.1g} of the largest logit, on {comparison.clips} clips of "
        + ("noise (give --data for real ones)" if config.data is None else f"{config.data}"),
        f"{comparison.ms:.1f} ms a clip on this CPU, in batches of 1 to 4",
    ]
    if accuracy is not None:
        result |= {"top1_network": accuracy.network, "top1_int8": accuracy.int8, "scored_clips": accuracy.clips}
        lines.append(
            f"top-1 {accuracy.network:.2f} % in float, {accuracy.int8:.2f} % in int8, on {accuracy.clips} clips"
        )
    if config.output.suffix == ".onnx":
        script = config.output.with_name(SCRIPT.name)
        lines.append(f"python {script} {config.output} VIDEO... runs it on videos" + ("" if isinstance(script, Path) else
                     " (copy both files to a machine first)"))  # fmt: skip
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return result


def _opset(output: Path) -> int | None:
    if output.suffix != ".onnx":
        return None
    import onnx

    model = onnx.load_from_string(output.read_bytes())
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
