"""Archives are signed with SSH keys, and each way in which a signature can be wrong has its own message."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.checkout import copy_folder
from support.laboratory import Lab, failure, run

from qlora_repeat.archive.signature import check_signature, sign
from qlora_repeat.errors import KitError, MissingError, UsageError

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


def new_key(folder: Path, name: str, kind: str = "ed25519") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", folder / name], check=True)
    return folder / name


@pytest.fixture
def lab(finished: Lab, tmp_path: Path) -> Lab:
    """Return a copy of the finished study with a key."""
    copy_folder(finished.folder, tmp_path / "lab")
    new_key(tmp_path, "mine")
    return Lab(tmp_path / "lab", finished.cache)


@pytest.fixture
def signed(lab: Lab, tmp_path: Path) -> Lab:
    packed = lab.kit("pack", "--sign", tmp_path / "mine")
    assert packed.exit_code == 0, (packed.output, packed.exception)
    assert f"{lab.archive}.sig: the signature" in packed.stdout
    return lab


def refusal(lab: Lab, signer: Path) -> KitError:
    return failure(run("check", lab.archive, "--cache", lab.cache, "--signer", signer))


def test_a_signed_archive_is_checked_with_the_public_key(signed: Lab, tmp_path: Path) -> None:
    result = run("check", signed.archive, "--cache", signed.cache, "--signer", tmp_path / "mine.pub")
    assert result.exit_code == 0, (result.output, result.exception)
    shown = subprocess.run(["ssh-keygen", "-lf", tmp_path / "mine.pub"], capture_output=True, text=True)
    assert f"signed with {shown.stdout.split()[1]}, which is in {tmp_path}/mine.pub" in result.stdout
    several = tmp_path / "several"
    several.write_text(f"# ours\n{new_key(tmp_path, 'b').with_suffix('.pub').read_text()}\n")
    several.write_text(several.read_text() + (tmp_path / "mine.pub").read_text())
    assert run("check", signed.archive, "--cache", signed.cache, "--signer", several).exit_code == 0


def test_an_archive_whose_name_begins_with_a_dash_is_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive, key = Path("-study.zip"), new_key(tmp_path, "mine")
    archive.write_text("an archive")
    sign(archive, key)
    assert check_signature(archive, key.with_suffix(".pub")).startswith("SHA256:")


def test_a_changed_byte_another_key_and_no_signature_are_told_apart(signed: Lab, tmp_path: Path) -> None:
    other = new_key(tmp_path, "other").with_suffix(".pub")
    assert "signed with another key (SHA256:" in str(refusal(signed, other))
    content = bytearray(signed.archive.read_bytes())
    content[len(content) // 2] ^= 1
    signed.archive.write_bytes(content)
    assert "was changed" in str(refusal(signed, tmp_path / "mine.pub"))
    assert "was changed" in str(refusal(signed, other))
    Path(f"{signed.archive}.sig").unlink()
    assert "has no signature tiny.zip.sig next to it" in str(refusal(signed, tmp_path / "mine.pub"))


def test_a_signature_for_another_purpose_does_not_count(signed: Lab, tmp_path: Path) -> None:
    signature = Path(f"{signed.archive}.sig")
    signature.unlink()
    sign = ["ssh-keygen", "-Y", "sign", "-q", "-f", tmp_path / "mine", "-n", "git", signed.archive]
    subprocess.run(sign, check=True)
    assert "for another purpose" in str(refusal(signed, tmp_path / "mine.pub"))
    signature.write_bytes(os.urandom(200_000))
    assert "not a readable signature" in str(refusal(signed, tmp_path / "mine.pub"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        b"\xff",
        b"x" * 200_000,
        b"cert-authority ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4sKqLzVq6zj0pVw1r1u7g0WmWkqBqgWmWkqBqgWmWk",
        b"* ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4sKqLzVq6zj0pVw1r1u7g0WmWkqBqgWmWkqBqgWmWk",
    ],
)
def test_only_plain_public_keys_are_signers(content: bytes, signed: Lab, tmp_path: Path) -> None:
    """Refuse the options of ssh's files of allowed signers, which could admit any key."""
    (tmp_path / "keys").write_bytes(content)
    assert isinstance(refusal(signed, tmp_path / "keys"), UsageError)


def test_a_key_that_cannot_sign_gives_one_line(lab: Lab, tmp_path: Path) -> None:
    lab.archive.unlink(missing_ok=True)
    assert isinstance(failure(lab.kit("pack", "--sign", tmp_path / "none")), MissingError)
    assert not lab.archive.exists()
    (tmp_path / "text").write_text("no key")
    assert "cannot sign with it" in str(failure(lab.kit("pack", "--sign", tmp_path / "text")))
    study = failure(run("check", lab.study, "--runs", lab.runs, "--signer", tmp_path / "mine.pub"))
    assert "--signer is for an archive" in str(study)
