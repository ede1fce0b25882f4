{{/* Worker groups as a list: `workers`, then each further group with what it leaves out taken from `workers`. */}}
{{- define "hdet.groups" -}}
{{- $groups := list .Values.workers -}}
{{- range .Values.extraWorkerGroups -}}
{{- $own := deepCopy . -}}
{{- $rest := omit (deepCopy $.Values.workers) "name" "min" "max" -}}
{{- /* Maps are replaced, not mixed: a group's nodeSelector is what it says. */ -}}
{{- range $key, $value := $own }}{{ $_ := set $rest $key $value }}{{ end -}}
{{- $groups = append $groups $rest -}}
{{- end -}}
{{- toYaml (dict "groups" $groups) -}}
{{- end -}}
