"""A run whose output is a URL: it works in a folder of this machine, and a thread uploads the files behind the training.

What is at the URL is at any time a run that can be resumed. Every object is replaced only if it is the one that was read
or put before: so two runs can't mix their files, wherever they are.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cache.errors import ReskdError, StoreError
from cache.json_file import read_json
from cache.store import side_by_side, write_atomically
from stages.remote.outputs import MAX_PUT, put_known, working_folder
from stages.remote.probe import check_conditional_puts
from stages.remote.store import Changed
from stages.remote.url_path import Location, UrlPath
from stages.runtime.lock import locked_working_folder
from stages.runtime.terminal import console

# Files are put in this order and read in the other one: an object is never older than those that are put after it.
FIRST, LAST = ("config.yaml", "best.safetensors", "metrics.jsonl"), ("last.pt", "last.safetensors", "result.json")
# What a resume reads, in the order of reading; that of a finished run doesn't read last.pt, which is large.
NEEDED = ("result.json", "last.pt", "metrics.jsonl", "config.yaml")
CHECKED = ("config.yaml",)  # what the check reads whether it can be resumed
EVERY = 0.2  # seconds between two looks at the files
LOG_EVERY = 30.0  # seconds after which logs are put without a new checkpoint; each time they are put whole
AGAIN = 10.0  # seconds from an upload that failed to the next one


class RunUpload:
    """The files of one run: those in `folder`, and those at `url`."""

    def __init__(self, url: UrlPath):
        self.url, self.folder = url, working_folder(url)
        self.note = self.folder.with_name(f"{self.folder.name}.uploaded.json")
        self.etags: dict[str, str] = {}  # file -> the ETag of its object, as this run has read it or put it
        self.states: dict[str, list[int]] = {}  # file -> the state of the local file that the object has
        self.error: Exception | None = None  # after which nothing is uploaded any more
        self.told = False  # whether `error` was raised
        self.unused = False  # whether the local folder is a copy of what is at the URL, and no more
        self.logs_put = 0.0
        self.ended = threading.Event()

    def fetch(self, names: Sequence[str] = NEEDED) -> None:
        """Fill the local folder with the run at the URL, to resume it, or with these files of it alone.

        If the objects are those that this machine has put, then the local files go on from there, and they are kept.
        """
        objects = (*FIRST, *LAST)
        etags = side_by_side(self.url, lambda name: (self.url / name).etag_or_none(), objects)
        found = {name: etag for name, etag in zip(objects, etags, strict=True) if etag}
        needed = [name for name in names if name in found and not (name == "last.pt" and "result.json" in found)]
        noted = self._read_note()
        is_here = all((self.folder / name).is_file() for name in needed)
        if noted == found and is_here:
            return
        if noted is not None:
            why = "it isn't what this machine has put there last" if is_here else f"{self.folder} is gone"
            console.print(f"{self.url}: taken from there, since {why}", highlight=False, soft_wrap=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.etags, self.states = found, {}
        for name in needed:
            data, self.etags[name] = (self.url / name).read_with_etag()
            write_atomically(self.folder / name, data)
            self.states[name] = _state(self.folder / name)
        self._write_note()
        self.unused = True

    def drop_unused(self) -> None:
        """Remove the copy of a run that was not gone on with."""
        if self.unused:
            self._remove_folder()

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Put config.yaml, by which others see the run, and upload behind what is done inside. The end waits for the rest.

        Raises StoreError if the store doesn't take it, or the rest (it names the local folder, which stays then), and for a new
        run in a store without conditional puts.
        """
        self.unused = False
        if "config.yaml" not in self.etags:
            check_conditional_puts(self.url)
        self._put("config.yaml", (self.folder / "config.yaml").read_bytes(), _state(self.folder / "config.yaml"))
        thread = threading.Thread(target=self._work, name="upload", daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            try:
                self._finish(thread)
            except ReskdError as other:
                if isinstance(error, ReskdError):  # Interrupted, for example, which has an exit status
                    error.args = (f"{error}\n{other}",)
                    raise error from other
                console.print(f"[yellow]warning[/] {other}", highlight=False, soft_wrap=True)
            raise
        else:
            self._finish(thread)
        finally:  # a second Ctrl-C comes here at once
            self.ended.set()

    def check(self) -> None:
        """Raises Changed if another run has written to the URL since this one began."""
        if self.error:
            self.told = True
            raise self.error

    def _work(self) -> None:
        warned = False
        while not self.ended.wait(EVERY):
            try:
                self._put_changed()
                warned = False
            except (Changed, OSError) as error:
                self.error = error
                return
            except StoreError as error:
                if not warned:
                    console.print(f"[yellow]warning[/] not uploaded yet, and tried again behind the training: {error}",
                                  highlight=False, soft_wrap=True)  # fmt: skip
                warned = True
                self.ended.wait(AGAIN)

    def _finish(self, thread: threading.Thread) -> None:
        """Wait for the thread, and put what is left. Then the local folder isn't needed any more."""
        self.ended.set()
        thread.join()
        if self.error and self.told:
            return
        self.check()
        try:
            self._put_changed(all_files=True)
        except Changed:
            raise
        except StoreError as error:
            raise StoreError(
                f"{error}. {self.url} isn't complete; the whole run is in {self.folder}: run the command with --resume "
                "on this machine when the store can be reached"
            ) from error
        self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.note.unlink(missing_ok=True)

    def _put_changed(self, all_files: bool = False) -> None:
        """Put the files that have changed. Not `all_files`: logs only before a new checkpoint, and every LOG_EVERY seconds."""
        boards = sorted(f"tensorboard/{file.name}" for file in (self.folder / "tensorboard").glob("*"))
        states = {n: s for n in (*FIRST, *boards, *LAST) if (s := _state(self.folder / n)) and s != self.states.get(n)}
        logs_wait = not all_files and not states.keys() & {*LAST} and time.monotonic() < self.logs_put + LOG_EVERY
        chosen = [name for name in states if not (logs_wait and name in ("metrics.jsonl", *boards))]
        contents = {name: (self.folder / name).read_bytes() for name in reversed(chosen)}
        for name in chosen:
            self._put(name, contents[name], states[name])
        if "metrics.jsonl" in chosen:
            self.logs_put = time.monotonic()

    def _put(self, name: str, data: bytes, state: list[int]) -> None:
        """Put a file. Raises Changed if the object isn't the one that this run knows."""
        object_, known = self.url / name, self.etags.get(name)
        if len(data) > MAX_PUT:
            raise Changed(f"{object_}: {len(data) / 2**30:.1f} GiB, and a store takes 5 GiB in one conditional request. The "
                          f"whole run is in {self.folder}; copy it, and go on with --resume and an output on a disk")  # fmt: skip
        etag = put_known(object_, data, known)
        if etag is None:
            raise Changed(f"{object_}: another run has written it, or it was deleted, since this run began; nothing there was "
                          "replaced. Let one of them end, then go on with --resume, or give another output")  # fmt: skip
        self.etags[name], self.states[name] = etag, state
        self._write_note()

    def _write_note(self) -> None:
        write_atomically(self.note, json.dumps({"etags": self.etags, "states": self.states}).encode())

    def _read_note(self) -> dict[str, str] | None:
        """Take up what was noted. Returns the ETags, without those of TensorBoard; None without a note that can be read."""
        try:
            noted = read_json(self.note)
            self.etags, self.states = dict(noted["etags"]), dict(noted["states"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return {name: etag for name, etag in self.etags.items() if name in FIRST + LAST}


def fetch_runs(
    outputs: Iterable[Location], resume: bool, opened: ExitStack, files: Sequence[str] = NEEDED
) -> dict[Location, RunUpload]:
    """Lock and prepare the local folders of the outputs that are URLs. `opened` gets the locks. Other outputs are left out.

    `files`: those that are fetched of a run to resume.

    Raises ReskdError if another process of this machine has a run at one of the URLs, and StoreError.
    """
    uploads: dict[Location, RunUpload] = {}
    for url in outputs:
        if isinstance(url, UrlPath):
            upload = RunUpload(url)
            opened.enter_context(locked_working_folder(url))
            if resume:
                opened.callback(upload.drop_unused)
                upload.fetch(files)
            uploads[url] = upload
    return uploads


def _state(file: Path) -> list[int] | None:
    """What changes with every write of a file; None without a file."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return [found.st_ino, found.st_mtime_ns, found.st_size]
