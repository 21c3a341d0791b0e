"""requirements.txt of a job: pinned, complete, and without what the training image brings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from binventory.errors import ConfigError, InputError
from binventory.sagemaker.requirements import container_requirements
from tests.running import ROOT


def names(requirements: str) -> set[str]:
    return {canonicalize_name(line.partition("==")[0]) for line in requirements.splitlines()}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that needs packages that are installed here, and pins all of them."""
    write_project(tmp_path, ["torch", "Requests>=2"])
    (tmp_path / "constraints.txt").write_text((ROOT / "constraints.txt").read_text())
    return tmp_path


def write_project(folder: Path, dependencies: list[str], **extras: list[str]) -> None:
    listed = "\n".join(f"{name} = {values}" for name, values in extras.items())
    text = f'[project]\nname = "My.Project"\ndependencies = {dependencies}\n[project.optional-dependencies]\n{listed}\n'
    (folder / "pyproject.toml").write_text(text)


def test_this_project_is_pinned_with_all_that_it_needs() -> None:
    requirements = container_requirements(ROOT)
    found = names(requirements)
    assert {"timm", "pytorch-lightning", "hydra-core", "huggingface-hub", "numpy", "pillow", "itables"} <= found
    assert not found & {"binventory", "torch", "torchvision", "triton", "sympy", "networkx", "boto3", "wandb", "pytest"}
    assert not any(name.startswith(("nvidia-", "cuda-")) for name in found)
    assert requirements.splitlines() == sorted(
        requirements.splitlines(), key=lambda line: canonicalize_name(line.split("==")[0])
    )
    assert set(requirements.splitlines()) <= set((ROOT / "constraints.txt").read_text().splitlines())


def test_extras_add_what_they_need() -> None:
    core, more = (names(container_requirements(ROOT, extras)) for extras in ([], ["s3", "wandb"]))
    assert {"boto3", "botocore", "jmespath", "wandb", "protobuf"} <= more - core
    assert core < more


def test_transitive_without_the_image(project: Path) -> None:
    assert names(container_requirements(project)) == {"requests", "urllib3", "idna", "certifi", "charset-normalizer"}


def test_extras_of_packages_and_of_the_project_itself(project: Path) -> None:
    write_project(project, ["requests"], all=["my-project[s3]"], s3=["boto3"])
    assert "botocore" in names(container_requirements(project, ["all"]))
    write_project(project, ["certifi"], a=["my-project[b]", "six"], b=["my-project[a]"])
    assert names(container_requirements(project, ["b"])) == {"certifi", "six"}
    write_project(project, ["moto", "moto[server]"])
    assert "flask" in names(container_requirements(project))
    write_project(project, ["moto"])
    assert "flask" not in names(container_requirements(project))


def test_markers_are_those_of_the_container(project: Path) -> None:
    write_project(
        project,
        [
            "requests; sys_platform == 'win32'", "idna; platform_system == 'Linux'", "certifi; python_version < '3.12'",
            "urllib3; python_version >= '3.12'", "not-installed; python_version < '3'",
        ],
    )  # fmt: skip
    assert names(container_requirements(project, python="3.11")) == {"idna", "certifi"}
    assert names(container_requirements(project, python="3.12")) == {"idna", "urllib3"}
    pins = "idna==3.20; sys_platform == 'linux'  # a comment\nidna==1; sys_platform == 'win32'\n\nCERTIFI==1\n"
    (project / "constraints.txt").write_text(pins)
    assert container_requirements(project, python="3.11") == "CERTIFI==1\nidna==3.20\n"


def test_the_machine_that_submits_does_not_matter(project: Path) -> None:
    """In a process of its own: the platform is looked up once in each."""
    write_project(project, ["idna; sys_platform == 'linux' and platform_machine == 'x86_64'", "six; os_name == 'nt'"])
    code = (
        "import os, platform, sys; from pathlib import Path; from packaging import markers\n"
        "elsewhere = 'win32', 'nt'; sys.platform, os.name = elsewhere; platform.machine = lambda: 'arm64'\n"
        "assert markers.default_environment()['sys_platform'] == 'win32'\n"
        "sys.platform, os.name = 'linux', 'posix'\n"
        "from binventory.sagemaker.requirements import container_requirements\n"
        "print(container_requirements(Path(sys.argv[1])), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(project)], capture_output=True, text=True, check=False)
    assert names(done.stdout) == {"idna"}, done.stderr


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ("requests==2.34.2\nidna==3.20\n", "has no version of certifi, charset-normalizer, urllib3, which a job needs"),
        ("requests>=2\n", "constraints.txt:1: 'requests>=2' is no pin; write NAME==VERSION"),
        ("idna==3.20\n\nrequests==2.*\n", "constraints.txt:3: 'requests==2.*' is no pin"),
        ("requests==2,==3\n", "constraints.txt:1: 'requests==2,==3' is no pin"),
        ("-e .\n", "constraints.txt:1: '-e .' is no pin"),
        ("requests @ https://host/a.whl\n", "is no pin"),
        (None, "constraints.txt: cannot be read: No such file"),
    ],
)
def test_constraints_that_cannot_be_used(project: Path, constraints: str | None, said: str) -> None:
    path = project / "constraints.txt"
    path.unlink() if constraints is None else path.write_text(constraints)
    with pytest.raises(InputError) as caught:
        container_requirements(project)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_project_that_cannot_be_used(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"extras: .*pyproject\.toml has no extra 's4'; choose among s3, wandb"):
        container_requirements(ROOT, ["s4"])
    write_project(project, ["no-such-package-of-ours"])
    with pytest.raises(ConfigError, match=r"no-such-package-of-ours: a job needs it .*; pip install"):
        container_requirements(project)
    for text in ("[project]\nname = 'a'", "[project", "[project]\nname = 'a'\ndependencies = ['a b c']"):
        (project / "pyproject.toml").write_text(text)
        with pytest.raises(InputError, match=r"pyproject\.toml: says not what the project needs \(.*\); mend it"):
            container_requirements(project)
