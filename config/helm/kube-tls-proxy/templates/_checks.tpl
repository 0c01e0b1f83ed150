{{/* Fails with a sentence if values contradict each other, or have the names that other charts use. The schema knows these names only to let them get here. */}}
{{- define "kube-tls-proxy.checks" -}}
{{- $hints := dict
  "replicaCount" "this chart calls it `replicas`, which counts only with `autoscaling.enabled: false`"
  "existingSecret" "this chart calls it `tls.secretName`"
  "tls.existingSecret" "this chart calls it `tls.secretName`"
  "image.registry" "write the registry into `image.repository`"
  "args" "this chart calls it `extraArgs`"
  "env" "this chart calls it `extraEnv`"
  "volumes" "this chart calls it `extraVolumes`"
  "volumeMounts" "this chart calls it `extraVolumeMounts`"
  "strategy" "this chart calls it `updateStrategy`"
  "pdb" "this chart calls it `podDisruptionBudget`"
  "ingress" "an Ingress cannot pass TLS through in a portable way; docs/from-contour.md has the object for each controller, and `tlsRoute` is for the Gateway API"
  "metrics" "the admin port always has metrics; `serviceMonitor`, `prometheusRule` and `dashboard` use them"
  "config.certificates" "the chart sets them: use `tls.secretName`; `extraArgs`, `extraVolumes` and `extraVolumeMounts` for more certificates"
  "config.listen" "the chart sets it: `listen.allow`, `listen.deny` and `proxyProtocol.from` say who may connect; the port is 8443, and `service.port` and `ipv6` change what clients use"
  "config.reusePort" "it hands a port over between two processes of one host; the Service does that for pods"
  "config.admin" "the chart sets it: use `admin.port`"
  "config.workers" "the chart sets it: use `workers`"
  "config.log.format" "the chart sets it: use `logFormat`"
-}}
{{- range $path, $hint := $hints -}}
  {{- $found := true -}}
  {{- $value := $.Values -}}
  {{- range splitList "." $path -}}
    {{- if not (kindIs "map" $value) -}}{{- $found = false -}}
    {{- else if not (hasKey $value .) -}}{{- $found = false -}}{{- $value = "" -}}
    {{- else -}}{{- $value = get $value . -}}
    {{- end -}}
  {{- end -}}
  {{- if and $found (not (kindIs "invalid" $value)) -}}{{- fail (printf "%s: %s" $path $hint) -}}{{- end -}}
{{- end -}}
{{- with .Values.autoscaling -}}
  {{- if and .enabled (gt (int64 .minReplicas) (int64 .maxReplicas)) -}}
    {{- fail (printf "autoscaling.minReplicas: %v is more than autoscaling.maxReplicas, which is %v" .minReplicas .maxReplicas) -}}
  {{- end -}}
{{- end -}}
{{- if and (kindIs "slice" .Values.listen.allow) (not .Values.listen.allow) -}}
  {{- fail "listen.allow: the list is empty, so no client would be served; write addresses, or null to serve all" -}}
{{- end -}}
{{- with .Values.clientCertificates -}}
  {{- range $name := list "ca" "crl" -}}
    {{- $source := get $.Values.clientCertificates $name -}}
    {{- if and $source.configMap $source.secret -}}{{- fail (printf "clientCertificates.%s: give one of `configMap` and `secret`" $name) -}}{{- end -}}
  {{- end -}}
  {{- $ca := or .ca.configMap .ca.secret -}}
  {{- if and (or .frontProxy.secret .impersonate.enabled .crl.configMap .crl.secret .allowSystem) (not $ca) -}}
    {{- fail "clientCertificates.ca: name the ConfigMap or Secret with the CA that issues the certificates of users" -}}
  {{- end -}}
  {{- if and $ca (not .frontProxy.secret) (not .impersonate.enabled) -}}
    {{- fail "clientCertificates.frontProxy.secret: name the Secret with the front-proxy certificate and its key, or set clientCertificates.impersonate.enabled" -}}
  {{- end -}}
  {{- if .impersonate.enabled -}}
    {{- if .frontProxy.secret -}}{{- fail "clientCertificates: give one of `frontProxy.secret` and `impersonate.enabled`" -}}{{- end -}}
    {{- if not (include "kube-tls-proxy.serviceAccount" $) -}}{{- fail "clientCertificates.impersonate: the service account `default` must not impersonate users; set serviceAccount.create, or name another one in serviceAccount.name" -}}{{- end -}}
    {{- if not .impersonate.groups -}}{{- fail "clientCertificates.impersonate.groups: name the groups (O) of the client certificates, or write [\"*\"] for every group" -}}{{- end -}}
  {{- end -}}
  {{- if and $ca (eq .ca.secret .frontProxy.secret) (not .impersonate.enabled) -}}
    {{- fail "clientCertificates.ca.secret: it is the Secret of the front-proxy certificate, whose ca.crt is usually the CA of front proxies; give the CA that issues the certificates of users in a ConfigMap or Secret of its own" -}}
  {{- end -}}
  {{- if $ca -}}
    {{- $here := list -}}
    {{- range ($.Values.config | default dict).clusters -}}
      {{- if and .inCluster (not .passthrough) -}}{{- $here = append $here .name -}}{{- end -}}
      {{- if and .inCluster .clientCertificates -}}{{- fail (printf "clientCertificates: the cluster %s in config.clusters has this section too; remove one of them" .name) -}}{{- end -}}
    {{- end -}}
    {{- if and ($.Values.config | default dict).clusters (not $here) -}}
      {{- fail "clientCertificates: no cluster in config.clusters has `inCluster: true`; write the section into a cluster there, and mount its files with extraVolumes and extraVolumeMounts" -}}
    {{- end -}}
    {{- if not $here -}}
      {{- $names := $.Values.extraArgs -}}
      {{- range $.Values.extraEnv -}}{{- $names = append $names (.name | replace "KUBE_TLS_PROXY_" "--" | replace "_" "-" | lower) -}}{{- end -}}
      {{- range $names -}}
        {{- if regexMatch "^--(upstream|kubeconfig|context|host)" . -}}
          {{- fail (printf "clientCertificates: %s does not go together with it; write the cluster into config.clusters, such as [{name: here, inCluster: true, hosts: [kube.example.com]}]" (splitList "=" . | first)) -}}
        {{- end -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range (.Values.config | default dict).clusters -}}
  {{- if and (kindIs "map" .inCluster) (not $.Values.discovery.enabled) -}}
    {{- fail (printf "config.clusters: the cluster %s has keys in `inCluster`; write `inCluster: true`, and set discovery.enabled, which adds the token and the Role, too" .name) -}}
  {{- end -}}
{{- end -}}
{{- if .Values.discovery.enabled -}}
  {{- if not (include "kube-tls-proxy.serviceAccount" .) -}}{{- fail "discovery: the service account `default` is for every pod of the namespace; set serviceAccount.create, or name another one in serviceAccount.name" -}}{{- end -}}
  {{- $here := not (.Values.config | default dict).clusters -}}
  {{- range (.Values.config | default dict).clusters -}}{{- if .inCluster -}}{{- $here = true -}}{{- end -}}{{- end -}}
  {{- if not $here -}}{{- fail "discovery: no cluster in config.clusters has `inCluster: true`; add it to the cluster that the pods run in, or set discovery.enabled to false" -}}{{- end -}}
  {{- $names := .Values.extraArgs -}}
  {{- range .Values.extraEnv -}}{{- $names = append $names (.name | replace "KUBE_TLS_PROXY_" "--" | replace "_" "-" | lower) -}}{{- end -}}
  {{- range $names -}}
    {{- if and (not ($.Values.config | default dict).clusters) (regexMatch "^--(upstream|kubeconfig|context|host)" .) -}}
      {{- fail (printf "discovery: %s does not go together with it; write the cluster into config.clusters, such as [{name: here, inCluster: true, hosts: [kube.example.com]}]" (splitList "=" . | first)) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- with .Values.service -}}
  {{- if and .nodePort (eq .type "ClusterIP") -}}{{- fail "service.nodePort: a Service of the type ClusterIP has none; set service.type to NodePort or LoadBalancer" -}}{{- end -}}
  {{- range $key := list "loadBalancerIP" "loadBalancerClass" "loadBalancerSourceRanges" -}}
    {{- if and (get $.Values.service $key) (ne $.Values.service.type "LoadBalancer") -}}{{- fail (printf "service.%s: only a Service of the type LoadBalancer has it, and service.type is %s" $key $.Values.service.type) -}}{{- end -}}
  {{- end -}}
{{- end -}}
{{- with .Values.clusterFiles -}}
  {{- if and .secretName .configMapName -}}{{- fail "clusterFiles: secretName and configMapName exclude each other; remove one of them" -}}{{- end -}}
  {{- $directory := dig "clustersFrom" "directory" "" $.Values.config -}}
  {{- if and (or .secretName .configMapName) (ne $directory "/etc/kube-tls-proxy/clusters.d") -}}{{- fail "clusterFiles: the proxy reads these files only with config.clustersFrom.directory: /etc/kube-tls-proxy/clusters.d" -}}{{- end -}}
{{- end -}}
{{- if .Values.tlsRoute.enabled -}}
  {{- if not .Values.tlsRoute.parentRefs -}}{{- fail "tlsRoute.parentRefs: name the Gateway, such as [{name: public, namespace: gateways, sectionName: tls}]" -}}{{- end -}}
  {{- if not (or .Values.tlsRoute.hostnames .Values.certificate.dnsNames) -}}{{- fail "tlsRoute.hostnames: name the hosts in the `server` of users' kubeconfigs" -}}{{- end -}}
{{- end -}}
{{- end -}}

{{/* The milliseconds of a duration of the configuration file, such as 1m30s. */}}
{{- define "kube-tls-proxy.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
  {{- $sum = add $sum (mul (regexFind "[0-9]+" . | atoi) (get $units (regexFind "[a-z]+" .))) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* How long the kubelet waits: longer than the drain, of which the defaults here are those of the proxy. */}}
{{- define "kube-tls-proxy.gracePeriod" -}}
{{- $timeouts := (.Values.config | default dict).timeouts | default dict -}}
{{- $delay := $timeouts.drainDelay | default "5s" -}}
{{- $drain := $timeouts.drain | default "20s" -}}
{{- $tunnels := $timeouts.drainTunnels | default "60s" -}}
{{- $longer := max (include "kube-tls-proxy.milliseconds" $drain | atoi) (include "kube-tls-proxy.milliseconds" $tunnels | atoi) -}}
{{- $takes := div (add (include "kube-tls-proxy.milliseconds" $delay | atoi) $longer 999) 1000 -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
  {{- range .Values.extraArgs -}}
    {{- if hasPrefix "--drain-" . -}}{{- fail (printf "extraArgs: write %s as a key of config.timeouts, from which the chart computes terminationGracePeriodSeconds, or set that too" (splitList "=" . | first)) -}}{{- end -}}
  {{- end -}}
  {{- range .Values.extraEnv -}}
    {{- if hasPrefix "KUBE_TLS_PROXY_DRAIN_" .name -}}{{- fail (printf "extraEnv: write %s as a key of config.timeouts, from which the chart computes terminationGracePeriodSeconds, or set that too" .name) -}}{{- end -}}
  {{- end -}}
  {{- add $takes 10 -}}
{{- else -}}
  {{- if le (int64 $given) $takes -}}
    {{- fail (printf "terminationGracePeriodSeconds: %v is too short, because the drain takes %d seconds (drainDelay %s, then drain %s and drainTunnels %s); leave it empty, or set it to %d or more" $given $takes $delay $drain $tunnels (add $takes 5)) -}}
  {{- end -}}
  {{- int64 $given -}}
{{- end -}}
{{- end -}}
