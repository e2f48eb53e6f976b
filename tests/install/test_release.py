"""What deploy/release makes: the archive, installed as docs/install.md says, and what stands beside it."""

import json
import re
import shutil
import subprocess

import pytest

from conftest import ROOT, VERSION, commands
from machine import Machine


@pytest.fixture(scope="module")
def archive(release):
    return next(release.glob("*.tar.gz"))


def test_the_checksums_are_those_of_every_file(release):
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=release, check=True, capture_output=True)
    summed = {line.split(maxsplit=1)[1] for line in (release / "SHA256SUMS").read_text().splitlines()}
    assert summed == {path.name for path in release.iterdir()} - {"SHA256SUMS"}
    assert len(summed) == 4


def test_the_changes_are_those_of_this_version(release):
    [notes] = release.glob("CHANGES-*.md")
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert notes.read_text().strip() in changelog and "\n## " not in notes.read_text()
    assert notes.stem == f"CHANGES-{VERSION}" and release.name == f"release-{VERSION}"
    assert re.search(rf"^## {re.escape(VERSION)} – \d{{4}}-\d\d-\d\d$", changelog, re.M)


def test_every_file_names_this_version():
    """Those of docs/releasing.md."""
    for path in ["deploy/compose/compose.yaml", "docs/install.md", "deploy/Dockerfile"]:
        found = set(re.findall(r"zvgate:(\d+\.\d+\.\d+)", (ROOT / path).read_text()))
        assert found == {VERSION}, path


def test_the_list_of_parts_is_that_of_the_lock_file(release):
    [listed] = release.glob("*.cdx.json")
    bom = json.loads(listed.read_text())
    assert bom["bomFormat"] == "CycloneDX" and bom["metadata"]["component"]["name"] == "zvgate"
    locked = set(re.findall(r'^name = "(.*)"\nversion = "(.*)"$', (ROOT / "Cargo.lock").read_text(), re.M))
    parts = {(part["name"], part["version"]) for part in bom["components"]}
    assert len(parts) > 100 and parts <= locked, parts - locked
    assert str(ROOT) not in listed.read_text() and "serialNumber" not in bom, "what differs with each build"
    assert not [name for name, _ in parts if name in ("proptest", "criterion")], "what only tests need is not in it"


def test_the_image_is_built_with_the_same_tools():
    release, dockerfile = ((ROOT / path).read_text() for path in ("deploy/release", "deploy/Dockerfile"))
    for tool in ["cargo-auditable", "cargo-cyclonedx"]:
        [one], [other] = (set(re.findall(rf"{tool}@([0-9.]+)", text)) for text in (release, dockerfile))
        assert one == other


def test_from_the_archive_to_the_first_scrape(archive, tree):
    """On another Debian than the package, with a newer systemd."""
    files = tree("trixie")
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", files / "root", "--no-same-owner"], check=True)
    [unpacked] = (files / "root").glob("zvgate-*")
    machine = Machine(files)
    try:
        [install] = commands("docs/install.md", "Archive")
        machine.shell(f"cd /root/{unpacked.name}; {install}")
        _, configure, start, first, _ = commands("docs/install.md", "Debian package")
        machine.shell(configure)
        # As an earlier unit left it, whose user was dynamic.
        machine.shell(
            "mkdir -p -m 700 /var/lib/private/zvgate; echo kept >/var/lib/private/zvgate/kept;"
            "chown -R 61234:61234 /var/lib/private/zvgate; ln -s private/zvgate /var/lib/zvgate"
        )
        machine.start_platform()
        machine.shell(start)
        scraped = machine.shell(first).stdout
        assert '"couponId"' in scraped and re.search(r'outcome="ok".* 1$', scraped, re.M), scraped
        # A folder without keys is no reason not to start: here one that the user reads itself.
        machine.shell(
            "mv /etc/zvgate/keys/shop /etc/zvgate/shop; chown root:zvgate /etc/zvgate/shop; chmod 640 /etc/zvgate/shop;"
            "sed -i s,/run/zvgate/keys_shop,/etc/zvgate/shop, /etc/zvgate/zvgate.toml; systemctl restart zvgate.service"
        )
        machine.shell(first)
        assert machine.shell("stat -c %U /var/lib/zvgate/ /var/lib/zvgate/kept").stdout.split() == ["zvgate"] * 2
    finally:
        machine.stop()


def test_the_archive_says_nothing_of_who_built_it_and_when(archive):
    listed = subprocess.run(
        ["tar", "--list", "--verbose", "--numeric-owner", "--full-time", "--file", archive], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    # Mode, owner, size, day, time, name.
    entries = [line.split(maxsplit=5) for line in listed]
    assert {entry[1] for entry in entries} == {"0/0"} and len({(entry[3], entry[4]) for entry in entries}) == 1
