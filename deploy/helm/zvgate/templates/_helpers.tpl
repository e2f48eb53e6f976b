{{- define "zvgate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "zvgate.fullname" -}}
{{- $name := include "zvgate.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "zvgate.selector" -}}
app.kubernetes.io/name: {{ include "zvgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "zvgate.labels" -}}
{{ include "zvgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "zvgate.metadata" -}}
name: {{ include "zvgate.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "zvgate.labels" . | nindent 2 }}
{{- end }}

{{/* The kind of the workload: see workload.yaml. */}}
{{- define "zvgate.kind" -}}
{{ ternary "Deployment" "StatefulSet" (not (empty .Values.redis.url)) }}
{{- end }}

{{/* What callers speak. */}}
{{- define "zvgate.scheme" -}}
{{ ternary "https" "http" (not (empty .Values.tls.secretName)) }}
{{- end }}

{{/* A name as TOML: bare, or quoted. */}}
{{- define "zvgate.tomlName" -}}
{{ ternary . (toJson .) (regexMatch "^[A-Za-z0-9_-]+$" .) }}
{{- end }}

{{/* A value as TOML: objects as inline tables, all else as in JSON. */}}
{{- define "zvgate.toml" -}}
{{- if kindIs "map" . -}}
{ {{ range $index, $name := keys . | sortAlpha }}{{ if $index }}, {{ end }}{{ include "zvgate.tomlName" $name }} = {{ include "zvgate.toml" (get $ $name) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "zvgate.toml" $item }}{{ end }}]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end }}

{{/* What the values must be beyond what values.schema.json can say. */}}
{{- define "zvgate.validate" -}}
{{- $config := .Values.config -}}
{{- if not .Values.secretName }}{{ fail "secretName: expected the name of an existing Secret with the signing keys: each entry is a file in /run/secrets/zvgate" }}{{ end -}}
{{- if not $config.tenants }}{{ fail "config.tenants: expected at least one, such as config.tenants.shop with open_id, grant_code and open_key_file" }}{{ end -}}
{{- range $name, $tenant := $config.tenants }}
{{- if $tenant.open_key }}{{ fail (printf "config.tenants.%s.open_key: a ConfigMap is no place for a key; expected open_key_file: /run/secrets/zvgate/%s, and an entry %s in the Secret %s" $name $name $name $.Values.secretName) }}{{ end -}}
{{- end -}}
{{- if not .Values.image.repository }}{{ fail "image.repository: expected where the image is, such as registry.example/zvgate" }}{{ end -}}
{{- range $key, $instead := dict "listen" "bindAddress and service" "admin_listen" "bindAddress" "tls" "tls" "drain_delay" "drainDelaySeconds" "drain_timeout" "drainTimeoutSeconds" }}
{{- if and (hasKey (default dict $config.server) $key) (not (and (eq $key "listen") (eq $.Values.mode "sidecar"))) }}{{ fail (printf "config.server.%s: set by the chart; expected %s instead" $key $instead) }}{{ end -}}
{{- end -}}
{{- if dig "budget" "store" "" $config }}{{ fail "config.budget.store: no volume of the pod can be written; Prometheus keeps the counts (zvgate_billed_calls_month)" }}{{ end -}}
{{- if regexMatch "//[^/@]*:[^/@]*@" .Values.redis.url }}{{ fail "redis.url: a ConfigMap is no place for a password; expected redis.passwordKey, the name of an entry in the Secret" }}{{ end -}}
{{- if and (contains "@" .Values.redis.url) (not .Values.redis.passwordKey) }}{{ fail "redis.passwordKey: expected the entry of the Secret with the password of the user in redis.url" }}{{ end -}}
{{- if hasKey (default dict $config.log) "hash_key_file" }}{{ if .Values.redis.url }}{{ fail "config.log.hash_key_file: set by the chart with redis.url; expected redis.hashKey instead" }}{{ end }}{{ end -}}
{{- if eq .Values.mode "sidecar" }}
{{- if .Values.redis.url }}{{ fail "redis.url: sidecars are as many as their pods; expected mode: central, or no Redis" }}{{ end -}}
{{- else }}
{{- if not (or $config.callers (dig "server" "allow_anonymous" false $config)) }}{{ fail "config.callers: expected at least one, because every pod that can connect could use the tenants' keys; or config.server.allow_anonymous: true" }}{{ end -}}
{{- $rate := int (dig "limits" "upstream" "rate" 10 $config) -}}
{{- if and (gt $rate 0) (gt (int .Values.replicaCount) $rate) }}{{ fail (printf "replicaCount: found %d; expected at most %d, config.limits.upstream.rate, because each needs a part of it" (int .Values.replicaCount) $rate) }}{{ end -}}
{{- end -}}
{{- if and (ne .Values.service.type "ClusterIP") .Values.networkPolicy.enabled (not .Values.networkPolicy.callers) }}{{ fail "networkPolicy.callers: with this service.type callers are outside of the namespace; expected their ipBlock or namespaceSelector" }}{{ end -}}
{{- if and .Values.monitoring.podMonitor (eq .Values.mode "central") .Values.networkPolicy.enabled (not .Values.networkPolicy.monitoring) }}{{ fail "networkPolicy.monitoring: with monitoring.podMonitor Prometheus must be let in; expected the namespaceSelector of its namespace" }}{{ end -}}
{{- if and .Values.tls.clientCertificates (not .Values.tls.secretName) }}{{ fail "tls.clientCertificates: expected tls.secretName, too" }}{{ end -}}
{{- end }}

{{/* zvgate.toml: the configuration, with what the chart sets. A key that is null is left out. */}}
{{- define "zvgate.config" -}}
{{- include "zvgate.validate" . -}}
{{- $config := deepCopy .Values.config -}}
{{- $isCentral := eq .Values.mode "central" -}}
{{- $server := dict "admin_listen" (printf "%s:9464" .Values.bindAddress) "drain_timeout" (printf "%ds" (int .Values.drainTimeoutSeconds)) -}}
{{- /* A sidecar's only caller has ended before it. */ -}}
{{- $_ := set $server "drain_delay" (ternary (printf "%ds" (int .Values.drainDelaySeconds)) "0s" $isCentral) -}}
{{- if $isCentral }}{{ $_ := set $server "listen" (printf "%s:8080" .Values.bindAddress) }}{{ end -}}
{{- if .Values.tls.secretName }}
{{- $tls := dict "cert" "/run/secrets/zvgate-tls/tls.crt" "key" "/run/secrets/zvgate-tls/tls.key" -}}
{{- if .Values.tls.clientCertificates }}{{ $_ := set $tls "client_ca" "/run/secrets/zvgate-tls/ca.crt" }}{{ end -}}
{{- $_ := set $server "tls" $tls -}}
{{- end -}}
{{- $config = merge (dict "server" $server) $config -}}
{{- $replicas := int .Values.replicaCount -}}
{{- if .Values.redis.url }}
{{- $cluster := dict "replicas" $replicas "url" .Values.redis.url -}}
{{- if .Values.redis.passwordKey }}{{ $_ := set $cluster "password_file" (printf "/run/secrets/zvgate/%s" .Values.redis.passwordKey) }}{{ end -}}
{{- if .Values.redis.caKey }}{{ $_ := set $cluster "ca" (printf "/run/secrets/zvgate/%s" .Values.redis.caKey) }}{{ end -}}
{{- $config = merge (dict "cluster" $cluster "log" (dict "hash_key_file" (printf "/run/secrets/zvgate/%s" .Values.redis.hashKey))) $config -}}
{{- else if and (gt $replicas 1) $isCentral }}
{{- $_ := set $config "cluster" (dict "replicas" $replicas) -}}
{{- end -}}
{{- range $section := keys $config | sortAlpha }}
{{- $value := get $config $section }}
{{- if kindIs "map" $value }}
{{- range $key := keys $value | sortAlpha }}
{{- if not (kindIs "invalid" (get $value $key)) }}
{{ $section }}.{{ include "zvgate.tomlName" $key }} = {{ include "zvgate.toml" (get $value $key) }}
{{- end }}
{{- end }}
{{- else if not (kindIs "invalid" $value) }}
{{ $section }} = {{ include "zvgate.toml" $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* The container, without the dash of an item. */}}
{{- define "zvgate.container" -}}
name: zvgate
image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve, --config, /etc/zvgate/zvgate.toml]
env:
  # The image sets it, too, and the environment takes precedence over the file.
  - name: ZVGATE__SERVER__ADMIN_LISTEN
    value: {{ printf "%s:9464" .Values.bindAddress | quote }}
ports:
  {{- if eq .Values.mode "central" }}
  - name: {{ include "zvgate.scheme" . }}
    containerPort: 8080
  {{- end }}
  - name: admin
    containerPort: 9464
# A sidecar's pod waits for it before it starts the next container.
startupProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /healthz, port: admin }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: { drop: [ALL] }
  seccompProfile: { type: RuntimeDefault }
volumeMounts:
  - name: zvgate-config
    mountPath: /etc/zvgate
    readOnly: true
  - name: zvgate-secrets
    mountPath: /run/secrets/zvgate
    readOnly: true
  {{- if .Values.tls.secretName }}
  - name: zvgate-tls
    mountPath: /run/secrets/zvgate-tls
    readOnly: true
  {{- end }}
{{- end }}

{{/* For your own pods: an item of initContainers. It starts before the other containers, and ends after them. */}}
{{- define "zvgate.sidecar" -}}
- {{ include "zvgate.container" . | nindent 2 | trim }}
  restartPolicy: Always
{{- end }}

{{/* Items of volumes. The files belong to the group of the pod (0440); in your own pods none is known, and every process of the container reads them (0444). */}}
{{- define "zvgate.volumes" -}}
- name: zvgate-config
  configMap:
    name: {{ include "zvgate.fullname" . }}
- name: zvgate-secrets
  secret:
    secretName: {{ .Values.secretName }}
    defaultMode: {{ ternary 288 292 (eq .Values.mode "central") }}
{{- if .Values.tls.secretName }}
- name: zvgate-tls
  secret:
    secretName: {{ .Values.tls.secretName }}
    defaultMode: {{ ternary 288 292 (eq .Values.mode "central") }}
{{- end }}
{{- end }}

{{/* Ports that the gateway connects to: of the platform, of Redis and its Sentinels, and further ones. */}}
{{- define "zvgate.egressPorts" -}}
{{- $platform := urlParse .Values.config.upstream.base_url -}}
{{- $ports := list (ternary "80" "443" (eq $platform.scheme "http")) -}}
{{- if regexMatch ":[0-9]+$" $platform.host }}{{ $ports = list (regexFind "[0-9]+$" $platform.host) }}{{ end -}}
{{- if .Values.redis.url }}
{{- $found := regexFindAll ":[0-9]+(,|/|$)" .Values.redis.url -1 -}}
{{- range $found }}{{ $ports = append $ports (regexFind "[0-9]+" .) }}{{ end -}}
{{- if or (not $found) (hasPrefix "redis+sentinel" .Values.redis.url) }}{{ $ports = append $ports "6379" }}{{ end -}}
{{- end -}}
{{- range .Values.networkPolicy.extraPorts }}{{ $ports = append $ports (toString .) }}{{ end -}}
{{- range uniq $ports }}
- port: {{ . }}
{{- end }}
{{- end }}
