"""The source archive: exactly the checkout's files, the same bytes each time, and no secret among them."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from binventory.errors import ConfigError, InputError, UserError
from binventory.sagemaker.checkout import CheckoutFile, read_file
from binventory.sagemaker.outputs import extract
from binventory.sagemaker.secret_scan import find_secrets
from binventory.sagemaker.source import SourceArchive, write_source
from tests.running import ROOT

# The files of this repository in which tests plant secrets that are none.
PLANTED = ("tests/config/test_capture.py", "tests/security/test_secrets.py")


def git(folder: Path, *arguments: str) -> None:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", "-C", str(folder), *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with a commit."""
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "train.py").write_text("print(1)\n")
    (folder / "src" / "model.py").write_text("lr = 0.1\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / ".gitignore").write_text("outputs/\n*.log\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def pack(project: Path, **options: object) -> SourceArchive:
    return write_source(project, project.parent / "archives", **options)  # type: ignore[arg-type]


def entries(archive: SourceArchive) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(archive.path, encoding="utf-8") as tar:
        return {member.name: member for member in tar.getmembers()}


def test_tracked_and_untracked_files_and_no_others(project: Path) -> None:
    (project / "new.py").write_text("x = 1\n")
    (project / "outputs").mkdir()
    (project / "outputs" / "weights").write_text("ignored")
    (project / "a.log").write_text("ignored")
    (project / "src" / "model.py").write_text("lr = 0.2\n")  # not committed: what lies there is sent
    (project / "train.py").unlink()  # deleted and not committed
    archive = pack(project)
    assert list(entries(archive)) == [".gitignore", "new.py", "run.sh", "src/model.py"]
    extract(archive.path, project.parent / "there")
    assert (project.parent / "there" / "src" / "model.py").read_text() == "lr = 0.2\n"
    assert entries(archive)["run.sh"].mode == 0o755
    assert entries(archive)["new.py"].mode == 0o644
    assert [file.name for file in archive.files] == list(entries(archive))
    *lines, total = archive.manifest()
    assert len(lines) == 4
    assert lines[1].split() == [archive.files[1].sha256, "6", "new.py"]
    assert total.startswith("4 files, 0.0 MB, packed ")


def test_a_folder_of_a_larger_checkout_is_sent_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as within a git hook
    assert list(entries(pack(project / "src"))) == ["model.py"]


def test_same_content_same_bytes(project: Path) -> None:
    first = pack(project)
    twin = project.parent / "twin"
    twin.mkdir()
    git(twin, "init", "--quiet")
    for name in ("train.py", "run.sh", ".gitignore", "src/model.py"):  # another order, owner's umask and time
        (twin / name).parent.mkdir(exist_ok=True)
        (twin / name).write_bytes((project / name).read_bytes())
        (twin / name).chmod(0o700 if name == "run.sh" else 0o600)
        os.utime(twin / name, (1, 1))
    again = write_source(twin, project.parent / "others")
    assert again.path.name == first.path.name == f"{first.sha256}.tar.gz"
    assert again.path.read_bytes() == first.path.read_bytes()
    members = list(entries(first).values())
    assert {(member.mtime, member.uid, member.gid, member.uname, member.gname) for member in members} == {
        (0, 0, 0, "", "")
    }
    assert first.path.read_bytes()[3:8] == bytes(5), "gzip's header holds neither name nor time"
    (twin / "run.sh").chmod(0o600)
    assert write_source(twin, project.parent / "others").sha256 != first.sha256


def test_odd_names(project: Path) -> None:
    names = [b"\xff\xfe.txt", "zählen.txt".encode(), b"a\nb.txt", b"-rf", b"l" * 200 + b".txt", b"two words"]
    for name in names:
        Path(os.fsdecode(os.fsencode(project) + b"/" + name)).write_text("x")
    archive = pack(project)
    assert set(names) <= {os.fsencode(name) for name in entries(archive)}
    assert all(line.isprintable() for line in archive.manifest())


def test_links_inside_are_kept(project: Path) -> None:
    (project / "src" / "configs").symlink_to("../train.py")
    (project / "here").symlink_to("src")
    archive = pack(project)
    assert entries(archive)["src/configs"].linkname == "../train.py"
    assert entries(archive)["here"].issym()


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../outside", "src/../../outside", "../project/train.py", "out", "inside"]
)
def test_links_that_lead_out_are_refused(project: Path, target: str) -> None:
    (project.parent / "outside").write_text("secret")
    target = str(project / "train.py") if target == "inside" else target  # in the container the project lies elsewhere
    if target == "out":  # by way of a link that is not sent
        (project / "out.log").symlink_to("../outside")
        target = "out.log"
    (project / "link").symlink_to(target)
    with pytest.raises(InputError, match=r"link -> .*: a link out of the project"):
        pack(project)


def test_folder_that_became_a_link_out_is_refused(project: Path) -> None:
    (project / "src").rename(project.parent / "elsewhere")
    (project / "src").symlink_to(project.parent / "elsewhere")
    with pytest.raises(InputError, match=r"src/model\.py: its folder is a link out of the project"):
        pack(project)


def test_submodules(project: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "layer.py").write_text("y = 2\n")
    git(part, "init", "--quiet")
    git(part, "add", ".")
    git(part, "commit", "--quiet", "-m", "first")
    git(project, "submodule", "add", "--quiet", str(part), "libs/part")
    (project / "libs" / "part" / "new.py").write_text("z = 3\n")
    assert {"libs/part/layer.py", "libs/part/new.py", ".gitmodules"} <= set(entries(pack(project)))
    git(project, "submodule", "deinit", "--force", "--all")
    with pytest.raises(InputError, match=r"libs/part: a submodule that is not checked out; git submodule update"):
        pack(project)


def no_checkout(project: Path) -> Path:
    (project / ".git").rename(project.parent / "was.git")
    return project


def nested(project: Path) -> Path:
    (project / "clone").mkdir()
    git(project / "clone", "init", "--quiet")
    (project / "clone" / "a.py").write_text("x")
    return project


def pipe(project: Path) -> Path:
    (project / "train.py").unlink()
    os.mkfifo(project / "train.py")
    return project


def nothing(project: Path) -> Path:
    (project / "empty").mkdir()
    return project / "empty"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_checkout, "no git checkout, .* run `git init` there"),
        (nested, "clone/: another checkout in this one"),
        (pipe, r"train\.py: is neither file nor link"),
        (nothing, "has no files that git tracks or would track"),
        (lambda project: project / "none", "git cannot list its files: .*none"),
    ],
)
def test_what_is_no_project(project: Path, spoil: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        pack(spoil(project))
    assert str(caught.value).isprintable()
    assert not (project.parent / "archives").exists()


def test_without_git(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    with pytest.raises(InputError, match=r"git: cannot be run .*install git"):
        pack(project)


def test_too_large_names_the_largest(project: Path) -> None:
    for number in range(7):
        (project / f"photo{number}.jpg").write_bytes(bytes(100_000 * number))
    said = r"max_source_mb=2: the project's 11 files have 2\.1 MB, the largest photo6\.jpg \(0\.6 MB\), photo5\.jpg"
    with pytest.raises(ConfigError, match=said):
        pack(project, max_source_mb=2.0)
    assert pack(project, max_source_mb=2.2).path.exists()


def test_extra_files(project: Path) -> None:
    archive = pack(project, extra={"requirements.txt": b"timm==1.0\n", "jobs/0.json": b"{}"})
    assert list(entries(archive)) == [
        ".gitignore",
        "jobs/0.json",
        "requirements.txt",
        "run.sh",
        "src/model.py",
        "train.py",
    ]
    for name in ("train.py", "src", "train.py/x"):
        with pytest.raises(ConfigError, match=f"{name}: the project has a file or folder of that name"):
            pack(project, extra={name: b""})


def grow_while_read(monkeypatch: pytest.MonkeyPatch, path: Path, times: int) -> None:
    """Append a byte to `path` after each of the next `times` looks at an open file's size."""
    look, left = os.fstat, iter(range(times))

    def look_and_grow(descriptor: int) -> os.stat_result:
        status = look(descriptor)
        if next(left, None) is not None:
            with path.open("ab") as file:
                file.write(b"x")
        return status

    monkeypatch.setattr(os, "fstat", look_and_grow)


def test_file_that_changes_while_it_is_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that never rests is told; the archive of one that does holds its last bytes."""
    path = project / "growing.bin"
    path.write_bytes(bytes(2_000_000))
    file = CheckoutFile("growing.bin", path, 2_000_000)
    with monkeypatch.context() as during:
        grow_while_read(during, path, times=1000)
        with pytest.raises(InputError, match=r"growing\.bin: changes while it is read"):
            read_file(file, 50_000_000)
    with monkeypatch.context() as during:
        grow_while_read(during, path, times=2)
        assert read_file(file, 50_000_000)[0] == path.read_bytes()
    with pytest.raises(InputError, match="grew over 1,000 bytes"):
        read_file(file, 1000)


# Built here, so that no file of ours holds what looks like a secret.
KEY_ID = "AKIA" + "QWERTZUIOPASDFGH"
SECRET_KEY = "wJa7rXUtn" + "FEMI/K7MDENG/bPxRfiCYzzzzzz1k+a"
BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"
BEGIN = "-----BEGIN " + "PRIVATE KEY-----"
SECRETS = {
    f"key = '{KEY_ID}'": "AWS access key id",
    f"aws_secret_access_key={SECRET_KEY}": "AWS secret access key",
    f'"SecretAccessKey": "{SECRET_KEY}"': "AWS secret access key",
    f"AWS_SECRET_KEY: {SECRET_KEY}": "AWS secret access key",
    f"{BEGIN}\n{BODY}\n": "private key",
    '{"private_key": "' + BEGIN + "\\n" + BODY + '"}': "private key",
    "-----BEGIN " + "RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n" + BODY: "private key",
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----\r\n" + BODY: "private key",
    "WANDB_API_KEY=" + "0123456789abcdef" * 2 + "01234567": "W&B API key",
    "wandb.login(key='" + "fedcba98" * 5 + "')": "W&B API key",
    "k = wandb_" + "v1_" + "aB3" * 20: "W&B API key",
    "token: hf_" + "aBcDeFgHiJ" * 3 + "kLmN": "Hugging Face token",
    "ghp_" + "a1B2" * 9: "GitHub token",
    "github_" + "pat_" + "11ABCDEFG0" * 8: "GitHub token",
    "glpat-" + "a1B2c3D4e5F6g7H8i9J0": "GitLab token",
    "pypi-" + "AgEIcHlwaS5vcmc" + "x1" * 30: "PyPI token",
    "xoxb-" + "123456789012-abcdefGHIJKL": "Slack token",
    "pip install --index" + "-url https://me:" + "s3cr3tvalue@pypi.company.io/simple": "password in a URL",
    "postgres://" + "admin:hunter22@10.0.0.5:5432/db": "password in a URL",
}
HARMLESS = [
    "AKIAIOSFODNN7" + "EXAMPLE",
    "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY",
    "aws_secret_access_key=" + "x" * 40,
    "re.compile('" + BEGIN + "')",
    "https://user:password@example.org/x",
    "https://user:s3cr3t@localhost:8080",
    "http://user:{password}@company.io",
    "http://user:password@company.io",
    "https://user:$PASSWORD@company.io",
    "https://host:8080/a@b",
    "s3://bucket/a:b@c",
    "sha256 = '" + "0123456789abcdef" * 4 + "'",
    "commit fedcba98fedcba98fedcba98fedcba98fedcba98 of the wandb key",
    "hf_hub_download(hf_token)",
    "git@github.com:me/project.git",
]


@pytest.mark.parametrize(("text", "kind"), SECRETS.items(), ids=list(map(str, range(len(SECRETS)))))
def test_secret_is_found(text: str, kind: str) -> None:
    (found,) = find_secrets("a.txt", b"first\n" + text.encode() + b"\n")
    assert (found.name, found.line, found.kind) == ("a.txt", 2, kind)
    value = text[:12]
    assert value not in str(found)
    assert find_secrets("a.txt", ("\ufeff\n" + text).encode("utf-16"))[0].kind == kind
    first, *rest = text.split("\n", 1)
    allowed = "\n".join([f"{first}  # pragma: allowlist secret", *rest])
    assert find_secrets("a.txt", allowed.encode()) == []
    assert find_secrets("a.txt", b"\0" + text.encode()) == []


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_passes(text: str) -> None:
    assert find_secrets("a.txt", text.encode()) == []


def test_a_list_of_keys_is_told_at_once() -> None:
    assert len(find_secrets("a.txt", f"{KEY_ID}\n".encode() * 100_000)) == 100


def test_secret_files_by_name() -> None:
    for name in (".env", "a/.env", "prod.env", ".env.local", ".netrc", ".aws/credentials", "credentials.csv", "id_rsa"):
        (found,) = find_secrets(name, b"x")
        assert found.line is None
        assert find_secrets(name, b"\n") == []
    for name in (".env.example", "configs/s3/credentials.yaml", "environment.py", "id_rsa.pub"):
        assert find_secrets(name, b"x") == []


def test_archive_with_a_secret_is_refused(project: Path) -> None:
    (project / "notes.txt").write_text(f"a\nb\nkey {KEY_ID}\n")
    (project / ".env").write_text("A=1\n")
    with pytest.raises(InputError) as caught:
        pack(project)
    message = str(caught.value)
    assert message.startswith("secrets would be sent: .env (environment file); notes.txt:3 (AWS access key id); remove")
    assert KEY_ID not in message
    assert not (project.parent / "archives").exists()
    archive = pack(project, allow_secrets=["notes.*", "*.env"])
    assert {".env", "notes.txt"} <= set(entries(archive))
    with pytest.raises(InputError, match=r"job\.json:1 \(AWS access key id\)"):
        pack(project, allow_secrets=["notes.*", "*.env"], extra={"job.json": KEY_ID.encode()})


def test_this_repository(tmp_path: Path) -> None:
    """No false alarm in all of it but where tests plant secrets; the link to the configs goes along."""
    try:
        archive = write_source(ROOT, tmp_path, allow_secrets=PLANTED)
    except UserError as error:
        if "no git checkout" in str(error):
            pytest.skip("the tests run outside of a checkout")
        raise
    found = entries(archive)
    assert found["src/binventory/configs"].linkname == "../../configs"
    assert {"train.py", "constraints.txt", "pyproject.toml"} <= set(found)
    assert not any(name.startswith((".venv", "outputs")) for name in found)
