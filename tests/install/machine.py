"""A Debian machine: a tree of mmdebstrap's, booted by systemd-nspawn with a real systemd."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path


def until(what, condition, seconds=30):
    """Waits until the condition holds, and returns what it returned."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"within {seconds} s: {what}"
        time.sleep(0.1)


PACKAGES = ["ca-certificates", "curl", "dbus", "jq", "systemd", "systemd-sysv"]
# Each tree: its Debian, and its packages.
TREES = {
    "bookworm": ("bookworm", PACKAGES),
    "trixie": ("trixie", PACKAGES),
    "build": ("bookworm", ["ca-certificates", "gcc", "libc6-dev"]),
}


def make_tree(work, name):
    """A minimal Debian, as an archive of tar's, unless it is there."""
    path = work / f"{name}.tar"
    if not path.exists():
        suite, packages = TREES[name]
        made = path.with_name(path.name + ".part")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", f"--include={','.join(packages)}"]
        subprocess.run([*command, suite, str(made)], check=True, env=dict(os.environ, LC_ALL="C.UTF-8"))
        made.rename(path)
    return path


class Machine:
    """A booted tree, with a network of its own: its ports are not those of the host."""

    def __init__(self, tree):
        self.tree = Path(tree)
        self.console = open(self.tree.with_name(self.tree.name + ".console"), "w+")
        command = ["systemd-nspawn", "--quiet", f"--directory={self.tree}", "--boot", "--private-network"]
        # Nothing registers it: there may be no systemd outside.
        command += ["--register=no", "--keep-unit", "--link-journal=no", "--machine=zvgate-test"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console)
        try:
            self.init = until("it has a process 1", self._init)
            until("it has booted", self._has_booted, 120)
        except BaseException:
            self.stop()
            raise

    def _init(self):
        assert self.process.poll() is None, f"systemd-nspawn ended: {self.log()}"
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def _has_booted(self):
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def log(self):
        self.console.flush()
        return Path(self.console.name).read_text()[-4000:]

    def enter(self, *namespaces):
        """What a command is prefixed with, to run in these namespaces of the machine."""
        return ["nsenter", f"--target={self.init}", *namespaces]

    def run(self, *command, check=True):
        """Runs a command as root in the machine."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            [*self.enter("--mount", "--uts", "--ipc", "--net", "--pid"), "--", "env", "-i", path, "DEBIAN_FRONTEND=noninteractive", *command],
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def shell(self, script, check=True):
        """Runs a script, as an operator pastes it."""
        return self.run("sh", "-euc", script, check=check)

    def start_platform(self):
        """Starts the sandbox, and names it in the configuration in place of the platform, which is not reached from here."""
        sandbox = "127.0.0.1:18080"
        self.run("systemd-run", "--unit=platform", "zvgate", "sandbox", f"--listen={sandbox}", "--rate=0")
        self.shell(f"sed -i 's#https://openapi.zvcms.com#http://{sandbox}#' /etc/zvgate/zvgate.toml")

    def property(self, name, unit="zvgate.service"):
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self):
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit=zvgate.service").stdout

    def stop(self):
        if self.process.poll() is None:
            # SIGTERM makes systemd-nspawn power the machine off.
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.console.close()
        shutil.rmtree(self.tree, ignore_errors=True)


if __name__ == "__main__":
    for name in TREES:
        make_tree(Path(sys.argv[1]), name)
