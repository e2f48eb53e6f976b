"""The Debian package, in a machine with a real systemd: installed as docs/install.md says, used, reloaded, upgraded, removed."""

import json
import re
import shutil
import subprocess
import time

import pytest

from conftest import commands
from load import Load
from machine import Machine, until

QUESTION = """curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/v3/crm/coupon/getCustomerCoupons \
    -H 'Content-Type: application/json' -d '{"params":{"customerId":"1"}}'"""


@pytest.fixture(scope="module")
def package(release):
    return next(release.glob("zvgate_*.deb"))


def test_lintian_accepts_it(package):
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=error,warning", "--tag-display-limit=0", package],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_has_a_manual_page_and_completions_for_each_command(package, tmp_path):
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    program = tmp_path / "usr/bin/zvgate"
    text = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    names = re.findall(r"^  ([a-z]+) ", text.split("Commands:")[1].split("Options:")[0], re.M)
    assert len(names) >= 9, names
    completions = [
        tmp_path / "usr/share/bash-completion/completions/zvgate",
        tmp_path / "usr/share/zsh/vendor-completions/_zvgate",
        tmp_path / "usr/share/fish/vendor_completions.d/zvgate.fish",
    ]
    for name in [name for name in names if name != "help"]:
        page = tmp_path / f"usr/share/man/man1/zvgate-{name}.1.gz"
        shown = subprocess.run(["man", "--warnings", "-l", page], check=True, capture_output=True, text=True)
        assert f"zvgate-{name}(1)" in shown.stdout and shown.stderr == "", shown.stderr
        assert all(name in path.read_text() for path in completions)
    pages = sorted(path.name for path in (tmp_path / "usr/share/man/man1").iterdir())
    assert len(pages) == len(names), pages
    subprocess.run(["bash", "-n", completions[0]], check=True)
    asked = 'source "$0"; COMP_WORDS=(zvgate ch); COMP_CWORD=1; _zvgate zvgate ch ""; echo "${COMPREPLY[*]}"'
    shown = subprocess.run(["bash", "-c", asked, completions[0]], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "check"


def next_revision(package, work):
    """The same package with a higher revision, as an upgrade."""
    tree = work / "next-revision"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^(Version: .*)-1$", r"\1-2", control.read_text(), flags=re.M))
    conffile = tree / "etc/zvgate/zvgate.toml"
    conffile.write_text("# Another default.\n" + conffile.read_text())
    path = work / "next.deb"
    subprocess.run(["dpkg-deb", "--build", "-Zgzip", "-z1", tree, path], check=True, capture_output=True)
    return path


def test_from_the_package_to_the_first_scrape_and_back(package, tree, work):
    files = tree("bookworm")
    shutil.copy(package, files / "root")
    shutil.copy(next_revision(package, work), files / "root/next.deb")
    machine = Machine(files)
    try:
        install, configure, start, first, reload = commands("docs/install.md", "Debian package")
        [command] = commands("docs/install.md", "Commands beside the service")
        readdress, recover = commands("docs/install.md", "Socket and service")
        machine.shell(f"cd /root; {install}")
        assert machine.property("ActiveState") == "inactive", "nothing is started without a tenant"
        machine.shell(configure)
        machine.start_platform()
        machine.shell("echo '[limits.upstream]\nrate = 0' >>/etc/zvgate/zvgate.toml")
        # Before the service has been started, and while it runs.
        machine.shell(command)
        machine.shell(start)
        assert "live shop: signed call accepted" in machine.shell(command.replace("check --quiet", "check --live")).stdout
        scraped = machine.shell(first).stdout
        assert '"couponId"' in scraped and re.search(r'outcome="ok".* 1$', scraped, re.M), scraped

        it_runs_as_confined(machine)
        it_reports_its_requests(machine)
        an_invalid_configuration_makes_the_reload_fail(machine, reload)
        a_stuck_process_is_replaced(machine)
        an_upgrade_to_a_program_that_rejects_the_configuration_changes_nothing(machine)
        a_restart_loses_nothing(machine, lambda: machine.run("systemctl", "restart", "zvgate.service"))
        a_restart_loses_nothing(machine, lambda: an_upgrade_keeps_the_configuration(machine))
        a_failed_start_is_recovered_from(machine, recover)
        the_addresses_are_changed(machine, readdress)
        it_is_removed(machine)
    finally:
        machine.stop()


def it_runs_as_confined(machine):
    process = machine.property("MainPID")
    status = machine.run("cat", f"/proc/{process}/status").stdout
    user = machine.run("id", "-u", "zvgate").stdout.strip()
    assert re.search(rf"^Uid:\s+{user}\s+{user}", status, re.M) and user != "0"
    assert re.search(r"^CapEff:\s+0+$", status, re.M) and re.search(r"^NoNewPrivs:\s+1$", status, re.M), status
    assert re.search(r"^Seccomp:\s+2$", status, re.M), status
    key = machine.shell("stat -c '%a %U' /etc/zvgate/keys /etc/zvgate/keys/shop").stdout.split("\n")
    assert key[:2] == ["700 root", "600 root"], key
    assert "LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx" not in machine.journal()


def it_reports_its_requests(machine):
    machine.shell(f"for number in $(seq 60); do {QUESTION}; done")
    status = until("requests a second", lambda: busy(machine.property("StatusText")), 15)
    assert status.startswith("serving "), status


def busy(status):
    return status if "requests a second" in status and " 0.0 " not in status else None


def an_invalid_configuration_makes_the_reload_fail(machine, reload):
    machine.shell(reload)
    machine.shell("cp /etc/zvgate/zvgate.toml /root/good; echo '[server]\nlissten = 1' >>/etc/zvgate/zvgate.toml")
    failed = machine.shell(reload, check=False)
    assert failed.returncode != 0, "the reload did not fail"
    until("the journal has the reason", lambda: "server.lissten" in machine.journal())
    assert machine.property("ActiveState") == "active" and machine.shell(QUESTION).stdout == "200"
    # So that the alert fires.
    metric = "curl -s http://127.0.0.1:9464/metrics | grep -x 'zvgate_config_reload_success 0'"
    until("it is reported", lambda: machine.shell(metric, check=False).stdout)
    until("its status says so", lambda: "the last reload failed" in machine.property("StatusText"), 15)
    machine.shell(f"cp /root/good /etc/zvgate/zvgate.toml; echo '[cache]\nttl = \"29s\"' >>/etc/zvgate/zvgate.toml; {reload}")
    applied = "curl -s http://127.0.0.1:9464/config | grep -x 'cache.ttl = \"29s\"'"
    until("the new lifetime is in force", lambda: machine.shell(applied, check=False).stdout)
    assert "upstream.base_url" not in machine.journal(), "the configuration is in the journal"


def a_stuck_process_is_replaced(machine):
    machine.shell("mkdir -p /run/systemd/system/zvgate.service.d")
    machine.shell("printf '[Service]\\nWatchdogSec=3\\n' >/run/systemd/system/zvgate.service.d/watchdog.conf")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "zvgate.service")
    stuck = machine.property("MainPID")
    time.sleep(4)
    assert machine.property("MainPID") == stuck, "the watchdog fired without a reason"
    machine.shell(f"kill -STOP {stuck}")
    until("another process", lambda: machine.property("NRestarts") == "1" and machine.property("ActiveState") == "active")
    assert machine.property("MainPID") != stuck and machine.shell(QUESTION).stdout == "200"
    machine.shell("rm -r /run/systemd/system/zvgate.service.d; systemctl daemon-reload; systemctl restart zvgate.service")


def a_restart_loses_nothing(machine, restart):
    before = machine.property("MainPID")
    load = Load(machine.enter("--net"), "127.0.0.1:8080", rate=300)
    time.sleep(1)
    restart()
    time.sleep(1)
    results = load.stop()
    assert machine.property("MainPID") != before
    assert results["failed"] == {} and results["ok"] > 500, results


def an_upgrade_keeps_the_configuration(machine):
    [upgrade] = commands("docs/upgrading.md", "How")
    machine.shell(upgrade.replace("zvgate_NEW.deb", "next.deb").replace("./", "/root/"))
    assert machine.run("dpkg-query", "--show", "--showformat=${Version}", "zvgate").stdout.endswith("-2")
    assert machine.shell("grep -c '^.tenants.shop' /etc/zvgate/zvgate.toml").stdout == "1\n"
    assert machine.property("ActiveState", "zvgate.socket") == "active"


def an_upgrade_to_a_program_that_rejects_the_configuration_changes_nothing(machine):
    """What that program says of it is what this one says of another configuration."""
    before = machine.property("MainPID")
    machine.shell("cp /etc/zvgate/zvgate.toml /root/good; echo 'unknown = 1' >>/etc/zvgate/zvgate.toml")
    done = machine.run("dpkg", "--install", *names_of_packages(machine))
    assert "the old one is still running" in done.stderr, done.stderr
    assert machine.property("MainPID") == before and machine.shell(QUESTION).stdout == "200"
    machine.shell("cp /root/good /etc/zvgate/zvgate.toml; systemctl reload zvgate.service")


def names_of_packages(machine):
    return machine.shell("ls /root/zvgate_*.deb").stdout.split()


def a_failed_start_is_recovered_from(machine, recover):
    machine.shell("cp /etc/zvgate/zvgate.toml /root/good; echo 'unknown = 1' >>/etc/zvgate/zvgate.toml")
    machine.run("systemctl", "restart", "zvgate.service", check=False)
    # Each connection that waits starts it again, until systemd has enough of that.
    for _ in range(10):
        machine.shell("curl -s --max-time 1 http://127.0.0.1:8080/ || true")
    until("the socket has failed", lambda: machine.property("ActiveState", "zvgate.socket") == "failed")
    machine.shell(f"cp /root/good /etc/zvgate/zvgate.toml; {recover}")
    assert machine.property("ActiveState", "zvgate.socket") == "active" and machine.shell(QUESTION).stdout == "200"


def the_addresses_are_changed(machine, readdress):
    machine.shell(readdress.replace("0.0.0.0:8080", "127.0.0.1:8085"))
    assert machine.shell(QUESTION.replace(":8080", ":8085")).stdout == "200"
    assert machine.shell("curl -s http://127.0.0.1:9464/readyz").stdout == "ready\n"
    assert machine.shell(QUESTION, check=False).returncode != 0, "the old address is served, too"


def it_is_removed(machine):
    counts = "/var/lib/zvgate/usage.json"
    machine.run("systemctl", "stop", "zvgate.service")
    counted = json.loads(machine.run("cat", counts).stdout)
    assert "/v3/crm/coupon/getCustomerCoupons" in json.dumps(counted), counted
    assert "getCustomerCoupons" in machine.run("zvgate", "usage", "--config", "/etc/zvgate/zvgate.toml").stdout
    machine.run("systemctl", "stop", "zvgate.socket")
    machine.run("apt-get", "remove", "--yes", "zvgate")
    assert machine.run("systemctl", "is-active", "zvgate.service", "zvgate.socket", check=False).stdout.split() == ["inactive"] * 2
    machine.shell(f"test -s {counts}; test -s /etc/zvgate/zvgate.toml; test -s /etc/zvgate/keys/shop; ! test -e /usr/bin/zvgate")
    machine.run("apt-get", "purge", "--yes", "zvgate")
    machine.shell("! test -e /etc/zvgate; ! test -e /var/lib/zvgate; ! test -e /etc/systemd/system/sockets.target.wants/zvgate.socket")
