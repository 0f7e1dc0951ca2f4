"""Signatures of archives with SSH keys, by OpenSSH's ssh-keygen (``ssh-keygen -Y``, OpenSSH 8.2)."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qlora_repeat.errors import MissingError, UsageError
from qlora_repeat.system.files import (
    SET_TMPDIR,
    disk_errors,
    read_file,
    remove,
    temporary_folder,
    write_bytes,
    write_text,
)

NAMESPACE = "qlora-repeat"
"""Signatures for another purpose, such as Git commits, do not count (PROTOCOL.sshsig)."""
_LARGEST_FILE = 100_000
"""Bytes of a signature or of a file of public keys."""
_IDENTITY = "signer"
_PUBLIC_KEY = re.compile(r"(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[\w.@-]{1,60} [A-Za-z0-9+/]{40,10000}={0,2}(?: .*)?")


def signature_file(archive: Path) -> Path:
    """Return the path of an archive's signature, next to the archive."""
    return archive.with_name(f"{archive.name}.sig")


def sign(archive: Path, key: Path) -> Path:
    """Sign an archive with a private SSH key, or with the key of the agent that a public key names.

    ssh-keygen asks on the terminal for the passphrase of the key, if it has one.

    Returns:
        The signature, in a file next to the archive.

    Raises:
        MissingError: there is no ssh-keygen here, or no such key.
        UsageError: ssh-keygen cannot sign with the key; the message quotes it.
    """
    require_key(key)
    target = signature_file(archive)
    remove(target)  # ssh-keygen asks before it replaces a file
    named = ["-n", NAMESPACE, str(archive.absolute())]  # a relative name may begin with a dash
    done = _ssh_keygen(["-Y", "sign", "-q", "-f", str(key), *named], ask=True)
    if done.returncode != 0 or not target.is_file():
        raise UsageError(f"--sign {key}: ssh-keygen cannot sign with it ({_last_line(done)})")
    return target


def require_key(key: Path) -> None:
    """Check that a key is there to sign with, before an archive is written.

    Raises:
        MissingError: there is no ssh-keygen here, or no such key.
    """
    if not key.is_file():
        raise MissingError(f"--sign {key}: no such file; `ssh-keygen -t ed25519` makes a key")
    _ssh_keygen(["-?"])  # prints its usage


def check_signature(archive: Path, signer: Path) -> str:
    """Check that an archive was signed with one of the public keys in a file.

    Returns:
        The fingerprint of the key, as ``SHA256:...``.

    Raises:
        UsageError: `signer` is not a file of public keys.
        MissingError: there is no archive or signature; the archive was changed after it was signed; or it was
            signed with another key.
    """
    allowed = "".join(f'{_IDENTITY} namespaces="{NAMESPACE}" {key}\n' for key in _public_keys(signer))
    if not archive.is_file():
        raise MissingError(f"{archive}: no such archive")
    signature = signature_file(archive)
    try:
        content = read_file(signature, _LARGEST_FILE, follow=True)
    except FileNotFoundError:
        raise MissingError(
            f"{archive}: has no signature {signature.name} next to it; ask who packed it for one"
        ) from None
    except (OSError, ValueError) as error:
        raise MissingError(f"{signature}: not a readable signature ({error})") from None
    with temporary_folder() as folder, disk_errors(folder, SET_TMPDIR):
        keys, copy = folder / "allowed_signers", folder / "signature"
        write_text(keys, allowed)
        write_bytes(copy, content)  # what is checked cannot change between the two calls
        named = ["-n", NAMESPACE, "-s", str(copy)]
        valid = _ssh_keygen(["-Y", "check-novalidate", *named], archive)
        if valid.returncode != 0:
            raise MissingError(
                f"{archive}: the signature does not fit: the archive or {signature.name} was changed, or the "
                f"signature is for another purpose ({_last_line(valid)}); get both again from who packed it"
            )
        found = _ssh_keygen(["-Y", "verify", "-f", str(keys), "-I", _IDENTITY, *named], archive)
    fingerprint = re.search(r"SHA256:[A-Za-z0-9+/]{43}", valid.stdout)
    used = fingerprint[0] if fingerprint else "an unknown key"
    if found.returncode != 0:
        raise MissingError(
            f"{archive}: signed with another key ({used}) than {signer} has; ask who packed it which is right"
        )
    return used


def _public_keys(path: Path) -> list[str]:
    """Return the public keys in a file, one per line, without comments."""
    try:
        text = read_file(path, _LARGEST_FILE, follow=True).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--signer {path}: not a readable file of public keys ({reason})") from None
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or any(_PUBLIC_KEY.fullmatch(line) is None for line in lines):
        raise UsageError(
            f"--signer {path}: expected one SSH public key per line, such as the content of id_ed25519.pub"
        )
    return [" ".join(line.split(" ")[:2]) for line in lines]


def _ssh_keygen(
    arguments: Sequence[str], message: Path | None = None, *, ask: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ssh-keygen, with a file as its input; with `ask`, it may ask for a passphrase."""
    try:
        with (message or Path(os.devnull)).open("rb") as file:
            return subprocess.run(
                ["ssh-keygen", *arguments],
                stdin=None if ask else file,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
    except FileNotFoundError:
        raise MissingError(
            "ssh-keygen: not found; install OpenSSH's client (package openssh-client on Debian and Ubuntu)"
        ) from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {done.returncode}"
