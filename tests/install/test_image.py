"""The image, built by buildah from its Dockerfile on a Debian of mmdebstrap's, and run as docs/install.md says.

The program in it is built without optimisation, which takes a minute and not three; what else is in it is the same."""

import json
import os
import shlex
import subprocess

import pytest

from conftest import ROOT, Processes, commands, free_port
from machine import make_tree, until

# Without the storage of this machine's own containers.
STORAGE = ROOT / "target/install/containers"
BUILDAH = ["buildah", f"--root={STORAGE}", f"--runroot={STORAGE}-run", "--storage-driver=vfs"]
ENVIRONMENT = dict(os.environ, BUILDAH_ISOLATION="chroot")
KEY = "zvg_example"


def buildah(*arguments):
    done = subprocess.run([*BUILDAH, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def base(work):
    """Replaces both base images: no registry of images is reached here."""
    tree = make_tree(work, "build")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, tree, "/")
    # What this machine trusts.
    authorities = "/etc/ssl/certs/ca-certificates.crt"
    buildah("add", "--quiet", container, authorities, authorities)
    path = "PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah("config", "--env", path, "--env", "CARGO_HOME=/usr/local/cargo", container)
    buildah("commit", "--quiet", "--rm", container, "localhost/zvgate-base")
    return "localhost/zvgate-base"


@pytest.fixture(scope="session")
def image(base):
    """Built with the command of docs/install.md."""
    build = shlex.split(commands("docs/install.md", "Image")[0].replace("$(git rev-parse --short HEAD)", "abc1234"))
    assert build[:2] == ["docker", "build"]
    toolchain = subprocess.run(["rustc", "--print", "sysroot"], check=True, capture_output=True, text=True).stdout.strip()
    buildah(
        *("bud", "--format=docker", "--quiet"),
        *(f"--build-arg=BUILD_IMAGE={base}", f"--build-arg=RUNTIME_IMAGE={base}", "--build-arg=PROFILE=dev"),
        *(f"--volume={toolchain}:/usr/local/rust:ro", f"--volume={ROOT}/target/tools:/tools"),
        *build[2:-1],
        ROOT,
    )
    return build[build.index("-t") + 1]


@pytest.fixture(scope="session")
def config(image):
    return json.loads(buildah("inspect", "--type=image", image))["Docker"]["config"]


@pytest.fixture
def container(image):
    name = buildah("from", image)
    yield name
    buildah("rm", name)


@pytest.fixture
def root(container):
    """The files of the image."""
    return buildah("mount", container)


def test_hadolint_accepts_the_dockerfile():
    subprocess.run(["hadolint", ROOT / "deploy/Dockerfile"], check=True)


def test_it_says_how_it_is_run(config):
    assert config["User"] == "65532:65532"
    assert config["Healthcheck"]["Test"] == ["CMD", "/zvgate", "health"]
    assert config["Entrypoint"] == ["/zvgate"] and config["Cmd"][0] == "serve"
    assert set(config["ExposedPorts"]) == {"8080/tcp", "9464/tcp"}


def test_it_holds_nothing_else(root):
    found = subprocess.run(["find", ".", "!", "-type", "d"], cwd=root, check=True, capture_output=True, text=True)
    libraries = [path for path in found.stdout.split() if ".so" in path]
    others = {path for path in found.stdout.split() if path not in libraries}
    assert others == {
        "./zvgate",
        "./etc/passwd",
        "./etc/group",
        "./etc/nsswitch.conf",
        "./etc/ssl/certs/ca-certificates.crt",
        "./usr/share/sbom/zvgate.cdx.json",
    }
    assert 3 <= len(libraries) <= 6, libraries
    parts = json.loads(open(f"{root}/usr/share/sbom/zvgate.cdx.json").read())["components"]
    assert {"hyper", "moka", "rustls"} <= {part["name"] for part in parts}
    sections = subprocess.run(["readelf", "-S", f"{root}/zvgate"], check=True, capture_output=True, text=True).stdout
    assert ".dep-v0" in sections, "the list of what the program consists of"


class Network:
    """A network of its own, as a container has: the ports of the image are free in it."""

    def __enter__(self):
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.prefix = ["nsenter", f"--target={self.holder.pid}", "--net", "--"]
        own = os.readlink("/proc/self/ns/net")
        until("it is there", lambda: os.readlink(f"/proc/{self.holder.pid}/ns/net") != own)
        subprocess.run([*self.prefix, "ip", "link", "set", "lo", "up"], check=True)
        return self

    def curl(self, *arguments):
        done = subprocess.run([*self.prefix, "curl", "-sS", "--max-time", "10", *arguments], capture_output=True, text=True)
        return done.stdout

    def __exit__(self, *_):
        self.holder.kill()
        self.holder.wait()


def prepared(folder, sandbox):
    """The files of docs/install.md, with the sandbox in place of the platform."""
    write = commands("docs/install.md", "Image")[2]
    subprocess.run(["sh", "-euc", write], cwd=folder, check=True)
    path = folder / "gateway/zvgate.toml"
    text = path.read_text().replace("https://openapi.zvcms.com", f"http://127.0.0.1:{sandbox}")
    digest = subprocess.run(["sha256sum"], input=KEY, check=True, capture_output=True, text=True).stdout.split()[0]
    text = text.replace("cc73531800c5b3194ca6784b84bb299bf90df8c8be2e35c0a2061c461f808b04", digest)
    path.write_text(text + "[limits.upstream]\nrate = 0\n")


# The files of the image, read-only, with /proc and the configuration as a container would have them.
READ_ONLY = """
mkdir -p "$0/proc" "$0/etc/zvgate"
mount --bind "$0" "$0"
mount -t proc proc "$0/proc"
mount --bind "$1" "$0/etc/zvgate"
mount -o remount,ro,bind "$0/etc/zvgate"
mount -o remount,ro,bind "$0"
root=$0
shift
exec chroot --userspec=65532:65532 --groups= "$root" "$@"
"""


def start(container, config, root, folder, processes, read_only):
    """Runs the image as its configuration says: by buildah, or, since that has no read-only root, by chroot on the same files."""
    command = [*config["Entrypoint"], *config["Cmd"]]
    if read_only:
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", READ_ONLY, root, folder / "gateway"]
        environment = dict(pair.split("=", 1) for pair in config["Env"])
        processes.start(*isolated, *command, env=dict(environment, PATH=os.environ["PATH"]))
    else:
        processes.start(*BUILDAH, "run", f"--volume={folder}/gateway:/etc/zvgate:ro", container, "--", *command, env=ENVIRONMENT)


@pytest.mark.parametrize("read_only", [False, True], ids=["buildah", "read-only"])
def test_from_the_image_to_the_first_scrape(container, config, root, tmp_path, program, read_only):
    sandbox = free_port()
    with Network() as network, Processes(tmp_path, network.prefix) as processes:
        prepared(tmp_path, sandbox)
        processes.start(program, "sandbox", "--listen", f"127.0.0.1:{sandbox}", "--rate", "0")
        start(container, config, root, tmp_path, processes, read_only)
        health = [*network.prefix, "chroot", "--userspec=65532:65532", root, *config["Healthcheck"]["Test"][1:]]
        until("it is healthy", lambda: subprocess.run(health, capture_output=True).returncode == 0)
        body = '{"params":{"customerId":"1"}}'
        url = "http://127.0.0.1:8080/v3/crm/coupon/getCustomerCoupons"
        call = [url, "-H", "Content-Type: application/json", "-d", body]
        assert '"unauthenticated"' in network.curl(*call)
        assert '"couponId"' in network.curl(*call, "-H", f"Authorization: Bearer {KEY}")
        scraped = network.curl("http://127.0.0.1:9464/metrics")
        assert 'outcome="ok",route="/v3/crm/coupon/getCustomerCoupons",tenant="shop"} 1\n' in scraped
        assert 'revision="abc1234"' in scraped
        # It runs as that user.
        served = subprocess.run(["pgrep", "--full", "--uid=65532", "^/zvgate serve"], capture_output=True, text=True).stdout.split()
        assert len(served) == 1, served
        # A stop as Docker's: SIGTERM, and an end in order.
        os.kill(int(served[0]), 15)
        until("it has ended", lambda: not os.path.exists(f"/proc/{served[0]}"))
        assert '"stopped"' in (tmp_path / "output-1").read_text()
    assert subprocess.run(health, capture_output=True).returncode != 0


def test_the_command_of_the_document_runs_it_confined():
    [run] = [block for block in commands("docs/install.md", "Image") if "--read-only" in block]
    words = shlex.split(run)
    assert {"--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--stop-timeout=45"} <= set(words)
    assert all(words[at + 1].startswith("127.0.0.1:") for at, word in enumerate(words) if word == "-p")
