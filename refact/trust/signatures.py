"""Signed patches: who made a file, by an Ed25519 key inside the file's own metadata. The only file that signs.

What is signed is everything that a reader can see: each tensor's name, type, shape and bytes, and all metadata but the
signature. A program that ignores signatures loads the file as before; one that writes it anew drops the signature.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import PatchError, RefactError, shown
from . import disk

KEY = "refact.signature"  # in a file's metadata
DOMAIN = b"refact patch signature 1\n"


def digest(tensors: dict[str, dict], metadata: dict[str, str], data: bytes) -> bytes:
    """What is signed. tensors: the header's entries; data: the bytes of all tensors."""
    signed = {key: value for key, value in metadata.items() if key != KEY}
    header = json.dumps({"tensors": tensors, "metadata": signed}, sort_keys=True, ensure_ascii=True).encode()
    return DOMAIN + hashlib.sha256(header).digest() + hashlib.sha256(data).digest()


def split(content: bytes) -> tuple[dict[str, dict], dict[str, str], bytes]:
    """A safetensors file that has been checked already: tensors' entries, metadata, the tensors' bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, header.pop("__metadata__", {}), content[8 + length :]


def sign(content: bytes, key: Path) -> bytes:
    """The file with a signature by the private key in the file `key`, in place of any that it had."""
    private = _private(key)
    tensors, metadata, data = split(content)
    signature = private.sign(digest(tensors, metadata, data))
    form = {"key": _text(_raw(private.public_key())), "signature": _text(signature)}
    header = {**tensors, "__metadata__": metadata | {KEY: json.dumps(form, sort_keys=True)}}
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def check(content: bytes, trusted: Iterable[Path], where: str) -> str:
    """The fingerprint of the trusted public key that signed the file. Raises PatchError where none of them did."""
    _library()
    from cryptography.exceptions import InvalidSignature

    tensors, metadata, data = split(content)
    raw, signature = _signature(metadata, where)
    keys = {_raw(_public(path)): path for path in trusted}
    if raw not in keys:
        raise PatchError(f"{where}: signed by {fingerprint(raw)}, which is none of the keys given")
    try:
        _public(keys[raw]).verify(signature, digest(tensors, metadata, data))
    except InvalidSignature:
        raise PatchError(f"{where}: changed since {fingerprint(raw)} signed it") from None
    return fingerprint(raw)


def _signature(metadata: dict[str, str], where: str) -> tuple[bytes, bytes]:
    if KEY not in metadata:
        raise PatchError(f"{where}: not signed")
    try:
        form = json.loads(metadata[KEY])
        raw, signature = (base64.b64decode(form[name], validate=True) for name in ("key", "signature"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PatchError(f"{where}: its signature cannot be read: {error}") from None
    if len(raw) != 32 or len(signature) != 64:
        raise PatchError(f"{where}: its signature is none of Ed25519")
    return raw, signature


def fingerprint(raw: bytes) -> str:
    """A public key as people compare it: 16 hex digits of its sha256, in fours."""
    digits = hashlib.sha256(raw).hexdigest()[:16]
    return "-".join(digits[at : at + 4] for at in range(0, 16, 4))


def new_key(path: Path) -> tuple[Path, str]:
    """Write a new private key to `path`, which only its owner may read, and its public key beside it (.pub).

    The path of the public key and its fingerprint. Raises RefactError where a file is there already.
    """
    ed25519, serialization = _library()
    public = path.with_name(path.name + ".pub")
    if there := [file for file in (path, public) if file.exists()]:
        raise RefactError(f"{there[0]} is there already: a key is never overwritten")
    private = ed25519.Ed25519PrivateKey.generate()
    how = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(private.private_bytes(*how))
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    disk.write(public, pem)
    return public, fingerprint(_raw(private.public_key()))


def _private(path: Path) -> Any:
    ed25519, serialization = _library()
    try:
        found = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError) as error:
        raise RefactError(f"{path}: no private key without a password: {shown(error, 200)}") from None
    if not isinstance(found, ed25519.Ed25519PrivateKey):
        raise RefactError(f"{path}: a key of another kind than Ed25519; `refact sign --new-key` makes one")
    return found


def _public(path: Path) -> Any:
    ed25519, serialization = _library()
    try:
        found = serialization.load_pem_public_key(_read(path))
    except ValueError as error:
        raise RefactError(f"{path}: no public key: {shown(error, 200)}") from None
    if not isinstance(found, ed25519.Ed25519PublicKey):
        raise RefactError(f"{path}: a key of another kind than Ed25519")
    return found


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100_000)


def _raw(public: Any) -> bytes:
    return public.public_bytes_raw()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise RefactError("signatures need one more package: pip install 'refact-edit[sign]'") from None
    return ed25519, serialization
