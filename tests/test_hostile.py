"""Files that want to do harm, or are broken, end in a PatchError that says what and where."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from refact.errors import PatchError
from refact.patch import Patch, from_lora
from refact.record import HEADER_LIMIT, describe, read_header, read_record

FC2 = tiny.CLIP_FC2
ONE, TWO = FC2.format(1), FC2.format(2)


def pack(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(dtype="F32", shape=(1,), offsets=(0, 4), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


BAD_FILES = {
    "no file": (None, "No such file"),
    "empty": (b"", "not a safetensors file"),
    "short": (b"\x01\x02", "not a safetensors file"),
    "a header longer than the file": (pack({}, length=10**6), "announces 1000000 bytes"),
    "a header of 2^63 bytes": (pack({}, length=2**63), "announces"),
    "no JSON": (pack(b"{'a': 1}"), "not valid JSON"),
    "no UTF-8": (pack(b"\xff\xfe{}"), "not valid JSON"),
    "nested a million deep": (pack(b"[" * 10**6), "not valid JSON"),
    "a list": (pack(b"[]"), "not a JSON object"),
    "metadata that is a number": (pack({"__metadata__": {"a": 1}}), "metadata are not texts"),
    "a tensor twice": (pack(b'{"a": {}, "a": {}}'), "twice"),
    "NaN in the header": (pack(b'{"a": NaN}'), "no number"),
    "a number of 5000 digits": (pack(b'{"a": ' + b"1" * 5000 + b"}"), "not valid JSON"),
    "a number of 65 bits": (pack(b'{"a": 9223372036854775808}'), "does not fit into 64 bits"),
    "a tensor without shape": (pack({"a": {"dtype": "F32"}}), "needs dtype, shape and data_offsets"),
    "a tensor with more": (pack({"a": tensor(code="x")}, bytes(4)), "needs dtype"),
    "an unknown dtype": (pack({"a": tensor("P64")}, bytes(4)), "dtype 'P64'"),
    "a negative shape": (pack({"a": tensor(shape=(-1,))}, bytes(4)), "has shape"),
    "a shape of truth": (pack({"a": tensor(shape=(True,))}, bytes(4)), "has shape"),
    "a shape that does not fill": (pack({"a": tensor(shape=(2,))}, bytes(4)), "does not fill"),
    "a shape of 2^80": (pack({"a": tensor(shape=(2**40, 2**40))}, bytes(4)), "no side may be longer"),
    "a vocabulary of two million": (pack({"a": tensor("F16", shape=(2**21, 1))}, bytes(4)), "longer than 1048576"),
    "an offset of truth": (pack({"a": tensor(offsets=(False, 4))}, bytes(4)), "offsets False and 4"),
    "seventy dimensions": (pack({"a": tensor(shape=[1] * 70)}, bytes(4)), "has 70 dimensions"),
    "a million dimensions": (pack({"a": tensor(shape=[-1] * 10**6)}, bytes(4)), "has shape"),
    "bytes past the end": (pack({"a": tensor(offsets=(0, 4))}, b""), "the file has 0"),
    "bytes nobody names": (pack({"a": tensor()}, bytes(9)), "the file has 9"),
    "overlapping tensors": (pack({"a": tensor(), "b": tensor()}, bytes(4)), "begins at byte 0, expected 4"),
    "a hole": (pack({"a": tensor(offsets=(4, 8))}, bytes(8)), "begins at byte 4, expected 0"),
    "a pickle": (b"\x80\x04\x95" + bytes(60), "announces|not"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("read", [Patch.load, read_record, from_lora, read_header])
def test_bad_files_are_refused(tmp_path, case, read):
    content, message = BAD_FILES[case]
    path = tmp_path / "p.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PatchError, match=message) as error:
        read(path)
    assert len(str(error.value)) < 600


def test_a_folder_and_a_header_without_end_are_refused(tmp_path):
    with pytest.raises(PatchError, match="cannot be read: Is a directory"):
        Patch.load(tmp_path)
    (tmp_path / "p.safetensors").write_bytes(pack(b"{}" + b" " * HEADER_LIMIT))  # valid, but for its size
    with pytest.raises(PatchError, match="announces"):
        read_record(tmp_path / "p.safetensors")


def rewritten(tmp_path, patch, change_tensors=None, change_record=None, hashed=False):
    """The patch's file with tensors or record changed, without the hash that would give it away."""
    path = tmp_path / "bad.safetensors"
    patch.save(path)
    tensors, metadata = load_file(path), dict(read_header(path).metadata)
    if change_tensors:
        change_tensors(tensors)
    if change_record:
        record = json.loads(metadata["refact"])
        metadata["refact"] = json.dumps(change_record(record) or record)
    if not hashed:
        del metadata["modelspec.hash_sha256"]
    save_file(tensors, path, metadata=metadata)
    return path


STEM = "lora_te_text_model_encoder_layers_1_mlp_fc2"
DOWN, UP, ALPHA = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight", f"{STEM}.alpha"
BAD_TENSORS = {
    "rows that nobody owns": (lambda t: t[UP].fill_(1.0), "belong to no edit|rows"),
    "a missing up": (lambda t: t.pop(UP), "up is missing"),
    "a missing site": (lambda t: [t.pop(k) for k in (UP, DOWN, ALPHA)], "for which there are no factors"),
    "ranks that differ": (lambda t: t.update({DOWN: torch.ones(3, 20)}), "expected \\(d_out, r\\)"),
    "a vector": (lambda t: t.update({UP: torch.ones(12)}), "expected \\(d_out, r\\)"),
    "four dimensions": (lambda t: t.update({DOWN: torch.ones(4, 20, 1, 1)}), "expected \\(d_out, r\\)"),
    "nothing": (lambda t: t.update({DOWN: torch.ones(4, 0)}), "is empty"),
    "integers": (lambda t: t.update({UP: torch.ones(12, 4, dtype=torch.int32)}), "is I32"),
    "float64": (lambda t: t.update({UP: torch.ones(12, 4, dtype=torch.float64)}), "is F64"),
    "not a number": (lambda t: t[UP][0].fill_(torch.nan), "not finite"),
    "infinity": (lambda t: t[DOWN][0].fill_(torch.inf), "not finite"),
    "an infinite alpha": (lambda t: t.update({ALPHA: torch.tensor(torch.inf)}), "not finite"),
    "an alpha of two": (lambda t: t.update({ALPHA: torch.ones(2)}), "one finite number"),
    "a foreign tensor": (lambda t: t.update({"unet.conv_in.weight": torch.ones(1)}), "changes something else"),
    "another layer's fc1": (lambda t: t.update({DOWN.replace("fc2", "fc1"): torch.ones(4, 20)}), "something else"),
    "a site twice": (lambda t: t.update({DOWN.replace("te_", "te1_"): t[DOWN].clone()}), "'down' twice"),
    "another style": (lambda t: t.update({DOWN.replace("te_", "te1_"): t.pop(DOWN)}), "has no tensor"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_are_refused(tmp_path, patch, case):
    spoil, message = BAD_TENSORS[case]
    with pytest.raises(PatchError, match=message):
        Patch.load(rewritten(tmp_path, patch, spoil))


def test_a_damaged_file_is_told_from_its_hash(tmp_path, patch):
    with pytest.raises(PatchError, match="hash_sha256 differs"):
        Patch.load(rewritten(tmp_path, patch, lambda t: t[UP][0, 0].add_(1), hashed=True))


def at(*path):
    """record -> the place in it that the path leads to."""

    def go(record):
        for step in path:
            record = record[step]
        return record

    return go


EDIT, ENTRY = at("edits", 0), at("edits", 0, "sites", ONE)
BAD_RECORDS = {
    "a list": (lambda r: [1], "not a JSON object"),
    "a later version": (lambda r: r.update(refact=2), "version 2; this refact reads version 1"),
    "a true version": (lambda r: r.update(refact=True), "version True"),
    "no version": (lambda r: r.pop("refact"), "version None"),
    "an unknown family": (lambda r: r.update(family="sd9"), "family 'sd9'; known are sd1"),
    "a family that is a list": (lambda r: r.update(family=["sd1"]), "family"),
    "a family without the site": (lambda r: r.update(family="flux"), "no tensor|no site"),
    "no model": (lambda r: r.pop("model"), "has no 'model'"),
    "hashes that are numbers": (
        lambda r: r.update(model={"name": "x", "encoders": {"text_encoder": 1}}),
        "model.encoders.text_encoder': a text",
    ),
    "a model name that rings": (lambda r: r["model"].update(name="\x1b[2J"), "model.name': printable"),
    "no method": (lambda r: r.pop("method"), "has no 'method'"),
    "templates that are a number": (lambda r: r["method"].update(templates=3), "method.templates': a list"),
    "contexts without end": (lambda r: r["method"].update(contexts="all"), "method.contexts': a whole number"),
    "covariance that is a list": (lambda r: r.update(covariance=[]), "'covariance': a JSON object"),
    "refactored maybe": (lambda r: r.update(refactored="maybe"), "'refactored'"),
    "no edits": (lambda r: r.pop("edits"), "has no 'edits'"),
    "edits by name": (lambda r: r.update(edits={"canada": {}}), "'edits': a list"),
    "an edit that is a text": (lambda r: r.update(edits=["canada"]), r"'edits\[0\]': a JSON object"),
    "two of a name": (lambda r: r["edits"][1].update(name="canada"), "names that differ"),
    "a name that rings": (lambda r: EDIT(r).update(name="a\x07"), "printable"),
    "a prompt that is a number": (lambda r: EDIT(r).update(prompt=3), r"edits\[0\].prompt': a text is needed, not 3"),
    "an empty prompt": (lambda r: EDIT(r).update(prompt=""), "needs a prompt"),
    "a target that is null": (lambda r: EDIT(r).update(new=None), r"edits\[0\].new': a text is needed, not None"),
    "aliases that are one text": (lambda r: EDIT(r).update(aliases="x"), r"edits\[0\].aliases': a list"),
    "an edit with code": (lambda r: EDIT(r).update(code="x"), "no \\['code'\\]"),
    "no sites": (lambda r: EDIT(r).pop("sites"), r"has no 'edits\[0\].sites'"),
    "a site of others": (lambda r: EDIT(r)["sites"].update({FC2.format(3): {"rows": [0, 1]}}), "no factors"),
    "rows past the end": (lambda r: ENTRY(r).update(rows=[0, 99]), "rows 0 to"),
    "rows before the start": (lambda r: ENTRY(r).update(rows=[-1, 1]), "greater than or equal to 0, not -1"),
    "no rows": (lambda r: ENTRY(r).update(rows=[1, 1]), "rows 0 to"),
    "rows that are real": (lambda r: ENTRY(r).update(rows=[0.0, 1.0]), "a whole number is needed, not 0.0"),
    "rows that are true": (lambda r: ENTRY(r).update(rows=[False, True]), "a whole number is needed, not False"),
    "rows that are one number": (lambda r: ENTRY(r).update(rows=1), "a list is needed, not 1"),
    "a strength that is a text": (
        lambda r: ENTRY(r).update(strength="big"),
        "strength': a number is needed, not 'big'",
    ),
    "a share that is a text": (lambda r: ENTRY(r).update(share="all"), "share"),
    "rows left over": (lambda r: r["edits"].pop(), "belong to no edit"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records_are_refused(tmp_path, patch, case):
    spoil, message = BAD_RECORDS[case]

    def spoiled(record):
        result = spoil(record)
        return result if result == [1] else None

    path = rewritten(tmp_path, patch, None, spoiled)
    with pytest.raises(PatchError, match=message) as error:
        Patch.load(path)
    assert len(str(error.value)) < 600


def test_a_lora_without_a_record_is_no_patch(tmp_path, patch):
    save_file({DOWN: torch.ones(1, 20), UP: torch.ones(12, 1)}, tmp_path / "p.safetensors")
    with pytest.raises(PatchError, match="refact import"):
        Patch.load(tmp_path / "p.safetensors")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_flipped_byte_escapes(tmp_path_factory, data):
    """A byte changed anywhere gives the error of this package, or a patch that is whole."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "flipped.safetensors"
    tiny.patch(tiny.Linears(), {"canada": {ONE: 1}}).save(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        loaded = Patch.load(path)
    except PatchError:
        return
    assert all(f.isfinite().all() for pair in loaded.factors.values() for f in pair)
    describe(path, loaded.record)
