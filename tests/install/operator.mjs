// Checks objects of the Prometheus operator, a JSON array on standard input, with the operator's own schemas.
import { PodMonitor, PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/index";

const kinds = { PodMonitor, PrometheusRule };
let input = "";
for await (const chunk of process.stdin) input += chunk;
for (const object of JSON.parse(input)) {
  const Kind = kinds[object.kind];
  if (!Kind) throw new Error(`no schema for ${object.kind}`);
  new Kind(object).validate();
}
