#!/usr/bin/env bash
# Fetches the types of Grafana, Kubernetes and the Prometheus operator from npm into the folder $1, and makes strict JSON
# schemas of them there, without additional properties. The tests of dashboards/ read these. Nothing of it is committed.
set -euo pipefail
mkdir -p "$1" && cd "$1"
npm install --prefix . --no-save --no-audit --no-fund --silent @grafana/schema@11.6.0 kubernetes-models@5.1.0 \
  @kubernetes-models/prometheus-operator@6.0.0 ts-json-schema-generator@2.9.0
echo '{"compilerOptions": {"module": "esnext", "moduleResolution": "bundler", "target": "es2022"}}' >tsconfig.json

schema() { # schema NAME DECLARATION TYPE: NAME.json from a type that a file below node_modules exports
  node_modules/.bin/ts-json-schema-generator --tsconfig tsconfig.json --no-type-check \
    --path "node_modules/$2" --type "$3" --out "$1.json"
}

raw=@grafana/schema/dist/esm/raw operator=@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1
schema dashboard $raw/dashboard/x/dashboard_types.gen.d.ts '*'
schema timeseries $raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts '*'
schema stat $raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts '*'
schema heatmap $raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.d.ts '*'
schema ConfigMap kubernetes-models/v1/ConfigMap.d.ts IConfigMap
schema CronJob kubernetes-models/batch/v1/CronJob.d.ts ICronJob
for kind in PodMonitor ServiceMonitor PrometheusRule; do schema $kind $operator/$kind.d.ts I$kind; done
