"""What `refact build` does around a build: which earlier patch it may replace, and the lock file beside it."""

from __future__ import annotations

import dataclasses
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..edits import Edit, distinct
from ..errors import PatchError, RefactError, quoted, shown
from ..methods.refact import ReFACT
from ..trust import inputs

SHOWN = 5  # facts that a line names


def earlier(
    output: Path, source: Path, wanted: Sequence[Edit], locked: bool, replace: bool
) -> tuple[Any | None, list[str]]:
    """The patch that is there, from which unchanged facts are taken, and what a person should know of it.

    Raises RefactError where writing would lose what no build can make again: a file that is no patch, or facts that
    neither the file of facts has nor an earlier build put there. replace: they may be lost.
    """
    from ..patch import Patch

    lock = inputs.read(output)
    if locked and lock is None:
        raise RefactError(f"there is no {inputs.path_of(output)} to compare with: build once without --locked")
    if not output.exists() or not output.stat().st_size:
        return None, []
    try:
        before = Patch.load(output)
    except PatchError as error:
        if lock is None and not replace:
            raise RefactError(f"{error}. Remove it, give another name, or --replace it") from None
        return None, [f"{shown(output)} is damaged, and is made anew: {error}"]
    lost = _lost(before, wanted)
    foreign = [prompt for prompt in lost if lock is None or prompt not in lock["inputs"]["facts"]]
    if foreign and not replace:
        raise RefactError(
            f"{output} holds what {source} does not have, and no build put there: {_named(foreign)}; add it to "
            f"{source}, give another name with -o, or drop it with --replace"
        )
    left_out = [f"{shown(output)} had {_named(lost)}, which {shown(source)} does not have: left out"] if lost else []
    return (None if locked else before), left_out


def _lost(before: Any, wanted: Sequence[Edit]) -> list[str]:
    """What of a patch is about no prompt of these facts: prompts, and names of imported LoRAs."""
    prompts = {edit.prompt.casefold() for edit in wanted}
    gone = [edit.prompt for edit in before.edits if edit.prompt.casefold() not in prompts]
    return gone + [part["name"] for part in before.record.get("imported", [])]


def _named(prompts: Sequence[str]) -> str:
    more = f" and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else ""
    return ", ".join(map(quoted, prompts[:SHOWN])) + more


def made(
    model: Any,
    wanted: Sequence[Edit],
    method: ReFACT,
    output: Path,
    before: Any | None,
    locked: bool,
    cluster: Any = None,
) -> tuple[Any, list[str]]:
    """The patch, written with its lock file, and the names of the facts that were searched for.

    Where nothing has changed since the lock file was written, no byte is. locked: everything is made anew, and written
    only where it is to the byte what the lock file says; RefactError tells what differs.
    """
    from ..stores import build

    edits, lock = distinct(wanted), inputs.read(output)
    used = _inputs(model, edits, method)
    upon = inputs.digest(output.read_bytes()) if before is not None else None
    if lock and before is not None and lock["inputs"] == used and lock["made"]["sha256"] == upon:
        return before, []
    if lock and _means_otherwise(lock["inputs"]["model"], used["model"]):
        before = upon = None  # its searches were for words that mean something else now
    patch, new = build(model, edits, method, before, cluster)
    covariance = patch.record.get("covariance", {})
    if locked and lock:
        _check(lock, used, covariance, _bytes(patch))
    patch.save(output)
    inputs.write(output, used, covariance, upon if len(new) < len(edits) else None)
    return patch, new


def _means_otherwise(there: dict, here: dict) -> bool:
    """Whether the words of a fact that is in both, or the space that texts are compared in, have changed."""
    words = there.get("words", {})
    changed = any(words.get(prompt, found) != found for prompt, found in here["words"].items())
    return changed or there.get("companion", here["companion"]) != here["companion"]


def _inputs(model: Any, edits: Sequence[Edit], method: ReFACT) -> dict:
    import torch
    import transformers

    from ..editing import projection_print, words_print
    from ..models.covariance import corpus_label

    vocabularies = {e.name: inputs.hash_of(e.tokenizer.get_vocab()) for e in model.encoders.values()}
    about = {"name": model.name, "encoders": model.fingerprints(), "tokenizers": vocabularies}
    about["words"] = {edit.prompt: words_print(model, [edit]) for edit in edits}
    about["companion"] = projection_print(model) if method.space else ""
    ends = [end for edit in edits for end in (edit.new, edit.old) if isinstance(end, tuple)]
    pictures = [Path(picture) for end in ends for picture in end]
    versions = {
        "refact": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "device": str(model.device),
    }
    corpus = corpus_label(method.corpus or model.corpus)
    how = {"name": type(method).__name__, **dataclasses.asdict(method), "corpus": corpus}
    return inputs.inputs_of([edit.to_json() for edit in edits], pictures, about, how, versions)


def _bytes(patch: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patch.safetensors"
        patch.save(path)
        return path.read_bytes()


def _check(lock: dict, used: dict, covariance: dict, content: bytes) -> None:
    """RefactError where a build made anew is not what the lock file says; it tells what differs."""
    if lock["made"]["sha256"] == inputs.digest(content):
        return
    there = lock["inputs"] | {"covariance": lock["made"]["covariance"]}
    found = inputs.differing(there, used | {"covariance": covariance})
    if lock["made"]["upon"]:
        found.append("the locked build took some facts from an earlier patch, and no build made anew is that")
    reason = "; ".join(found) or "its inputs are the same, so the processor or the libraries' builds must differ"
    raise RefactError(f"not what {lock['made']['file']} was, and nothing is written: {reason}")
