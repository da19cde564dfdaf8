"""The signature of a version: who signed it, by an elliptic curve key, and that no file has changed since.

It is a bundle of Sigstore's form in `assets.extra/model.sig`, made and checked by the library model-signing, without a
network. It covers every other file of the folder, so also the manifest, which ties it to a model and a number. The
library is the extra `signing`, and imported when it is needed.
"""

import ast
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from bookserve.serving.wire import missing_package
from bookserve.serving.wire.version_folder import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE

if TYPE_CHECKING:
    from model_signing import hashing

_MAX_SIGNATURE_BYTES = 16 << 20
_MISMATCH = "Signature mismatch: "  # before a list of strings in Python's form
_CHANGED = re.compile(r"Hash mismatch for '(.+?)': Expected .*", re.DOTALL)


class SignatureError(Exception):
    """A version is not signed as it has to be, or a key cannot be used; the message says why."""


def check_key(public_key: Path) -> None:
    """Raises SignatureError where the file is no public key that signatures can be checked with."""
    try:
        from model_signing import verifying
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # whatever the libraries raise on a file that is no key
        raise SignatureError(f"{public_key} is no public key of an elliptic curve in PEM form: {error}") from error


def verify(folder: Path, public_key: Path, version: int, models: Collection[str]) -> None:
    """Whether `folder` was signed with the private key of `public_key`, as that version of one of `models`.

    Raises:
        SignatureError: it was not, or a file changed, came or went since; or the library is missing.
    """
    try:
        from model_signing import verifying
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    signature = folder / SIGNATURE
    if not signature.is_file() or signature.is_symlink():
        raise SignatureError(f"it has no signature ({SIGNATURE}): 'bookserve models sign' signs it")
    if signature.stat().st_size > _MAX_SIGNATURE_BYTES:
        raise SignatureError(f"its signature has more than {_MAX_SIGNATURE_BYTES} bytes")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(what_is_signed()).verify(folder, signature)
    except Exception as error:  # the library names no errors of its own
        raise SignatureError(f"its signature does not hold: {_reason(error)}") from error
    _check_subject(folder / MANIFEST, version, models)


def what_is_signed() -> "hashing.Config":
    """Every file by its SHA-256, but the signature; a link is an error."""
    from model_signing import hashing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _reason(error: Exception) -> str:
    """What the library says, without the digests of changed files."""
    text = str(error).strip() or "it was not made with this key"
    try:
        differences = ast.literal_eval(text.removeprefix(_MISMATCH)) if text.startswith(_MISMATCH) else [text]
        text = "; ".join(_CHANGED.sub(r"\1 changed", difference) for difference in differences)
    except (ValueError, SyntaxError, TypeError):  # the library's next version may write it otherwise
        pass
    return text[:600]


def _check_subject(manifest: Path, version: int, models: Collection[str]) -> None:
    """A signed version may not lie under another name or number, as an old one in the place of a new one."""
    try:
        with manifest.open("rb") as file:
            content = json.loads(file.read(MAX_MANIFEST_BYTES))
        signed = content["model"], content["version"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise SignatureError(f"it has no manifest that ties its signature to a model and number: {error!r}") from error
    if signed[0] not in models or signed[1] != version:
        raise SignatureError(f"it is signed as {signed[0]} version {signed[1]}")


def _not_installed(error: ModuleNotFoundError) -> SignatureError:
    return SignatureError(f"signatures need {missing_package.told(error, 'signing')}")
