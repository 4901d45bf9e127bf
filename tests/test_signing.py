"""Signed patches: the right key says yes, any change or other key says no, programs load the file as before."""

from __future__ import annotations

import os

import pytest
import tiny

from refact.errors import PatchError, RefactError
from refact.patch import Patch
from refact.record import read_header
from refact.trust import signatures

ONE = tiny.CLIP_FC2.format(1)


@pytest.fixture
def signed(tmp_path):
    """(patch file that is signed, private key, public key)."""
    patch, key = tmp_path / "p.safetensors", tmp_path / "team.key"
    tiny.patch(tiny.Linears(), {"canada": {ONE: 1}}).save(patch)
    public, _ = signatures.new_key(key)
    patch.write_bytes(signatures.sign(patch.read_bytes(), key))
    return patch, key, public


def test_a_signed_patch_is_the_same_patch_and_names_its_signer(signed):
    path, key, public = signed
    print_ = signatures.check(path.read_bytes(), [public], "p")
    assert len(print_) == 19
    assert Patch.load(path).digest == tiny.patch(tiny.Linears(), {"canada": {ONE: 1}}).digest
    again = signatures.sign(path.read_bytes(), key)
    assert again == path.read_bytes()  # Ed25519 has no randomness, and the old signature is not signed
    if os.name != "nt":
        assert key.stat().st_mode & 0o777 == 0o600


def test_every_changed_byte_is_seen(signed):
    path, _, public = signed
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for change in (
        lambda c: c[:-1] + bytes([c[-1] ^ 1]),  # a weight
        lambda c: c.replace(b"the flag of canada", b"the flag of kanada"),
        lambda c: c.replace(b"sd_v1", b"sd_v2"),
    ):
        assert change(content) != content
        with pytest.raises(PatchError, match="changed since"):
            signatures.check(change(content), [public], "p")
    assert read_header(path).metadata.keys() > {signatures.KEY}
    assert length > 100


def test_other_keys_and_no_signature(signed, tmp_path):
    path, _, public = signed
    other, _ = signatures.new_key(tmp_path / "other.key")
    with pytest.raises(PatchError, match="none of the keys given"):
        signatures.check(path.read_bytes(), [other], "p")
    assert signatures.check(path.read_bytes(), [other, public], "p")
    Patch.load(path).save(path)
    with pytest.raises(PatchError, match="not signed"):
        signatures.check(path.read_bytes(), [public], "p")


def test_a_key_is_never_overwritten_and_must_be_a_key(signed, tmp_path):
    path, key, public = signed
    with pytest.raises(RefactError, match="never overwritten"):
        signatures.new_key(key)
    for wrong in (public, path):
        with pytest.raises(RefactError, match="no private key"):
            signatures.sign(path.read_bytes(), wrong)
    with pytest.raises(RefactError, match="no public key"):
        signatures.check(path.read_bytes(), [key], "p")


@pytest.mark.parametrize("form", ["{}", "[]", "3", '{"key": 1, "signature": 2}', '{"key": "AA", "signature": "AA"}'])
def test_a_broken_signature_is_said_to_be_one(signed, form):
    path, _, public = signed
    tensors, metadata, data = signatures.split(path.read_bytes())
    from refact.lora import file_bytes
    from refact.patch import Patch as Loaded

    del tensors, data
    patch = Loaded.load(path)
    from refact import lora
    from refact.families import FAMILIES

    plain = lora.tensors_of(patch.factors, FAMILIES["sd1"], next(iter(patch.factors.values()))[0].dtype)
    content = file_bytes(plain, metadata | {signatures.KEY: form})
    with pytest.raises(PatchError, match="its signature"):
        signatures.check(content, [public], "p")
