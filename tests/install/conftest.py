"""What the tests of the installation share."""

import socket
import subprocess
from pathlib import Path

import pytest

from machine import make_tree

ROOT = Path(__file__).resolve().parents[2]
VERSION = (ROOT / "Cargo.toml").read_text().split('\nversion = "', 1)[1].split('"', 1)[0]


@pytest.fixture(scope="session")
def work():
    """Where everything is made."""
    folder = ROOT / "target" / "install"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def release():
    """What deploy/release has built."""
    folders = sorted((ROOT / "target").glob("release-[0-9]*"))
    assert len(folders) == 1, f"expected one folder target/release-VERSION, made by deploy/release; found {folders}"
    return folders[0]


@pytest.fixture
def tree(work):
    """Makes a fresh tree of a Debian that boots."""

    def make(suite):
        debian = make_tree(work, suite)
        path = work / f"machine-{suite}"
        subprocess.run(["rm", "-rf", path], check=True)
        path.mkdir()
        subprocess.run(["tar", "--extract", "--numeric-owner", "--file", debian, "--directory", path], check=True)
        return path

    return make


def commands(document, heading):
    """The blocks of shell commands in a section of a document, as an operator would paste them."""
    text = (ROOT / document).read_text()
    section = text.split(f"\n## {heading}\n", 1)
    assert len(section) == 2, f"{document}: no section {heading!r}"
    blocks = section[1].split("\n## ", 1)[0].split("\n```sh\n")[1:]
    return [block.split("\n```", 1)[0] for block in blocks]


@pytest.fixture(scope="session")
def program(release, work):
    """The released program."""
    archive = next(release.glob("*.tar.gz"))
    name = archive.name.removesuffix(".tar.gz")
    path = work / "zvgate"
    with open(path, "wb") as file:
        subprocess.run(["tar", "--extract", "--to-stdout", "--file", archive, f"{name}/zvgate"], check=True, stdout=file)
    path.chmod(0o755)
    return path


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Processes:
    """Processes of a test, each with its output in a file, which end with it."""

    def __init__(self, folder, prefix=()):
        self.folder, self.prefix, self.running = folder, list(prefix), []

    def __enter__(self):
        return self

    def start(self, *command, env=None):
        output = open(self.folder / f"output-{len(self.running)}", "w")
        command = [*self.prefix, *map(str, command)]
        self.running.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env))
        output.close()
        return self.running[-1]

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.terminate()
            process.wait(60)
